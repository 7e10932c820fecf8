/*
make_step.c: the files that bench_cpu.sh measures with. make_step DIR STEPS writes DIR/model.bin, a GPT-2 of 124M random
parameters, and of random tokens

  k2.bin k4.bin k6.bin k8.bin k16.bin    STEPS queries of 64 tokens, each with so many responses of 48 and random scores
  one.bin                                one such query with 6 responses
  ask64.bin ask16.bin                    64 and 16 queries of 64 tokens to complete

Every step has a query of its own, as the PyTorch script's have: a query seen twice would be in order by then. An epoch
is a whole run, since a run that reaches its last step saves no optimizer state.
*/
#include "../../util.h"        // defines: die_usage, Rng, xalloc
#include "../../model.h"       // defines: Config, gpt2_random, checkpoint_write
#include "../../dataloader.h"  // defines: Ranked

int main(int argc, char **argv) {
    int steps = argc == 3 ? atoi(argv[2]) : 0;
    if (steps < 1) die_usage("usage: make_step DIR STEPS");
    const struct { const char *name; int queries, k, length; } files[] = {
        {"k2.bin", steps, 2, 48}, {"k4.bin", steps, 4, 48}, {"k6.bin", steps, 6, 48},
        {"k8.bin", steps, 8, 48}, {"k16.bin", steps, 16, 48},
        {"one.bin", 1, 6, 48}, {"ask64.bin", 64, 1, 1}, {"ask16.bin", 16, 1, 1}};
    char path[RRHF_PATH_MAX];
    Config c = {1024, 50257, 50304, 12, 12, 768, 0, 0};
    float *params = (float *)xalloc(gpt2_count(c), sizeof *params);
    gpt2_random(c, 1337, params);
    make_dir(argv[1]);
    checkpoint_write(path_join(path, argv[1], "model.bin"), c, params);
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        uint16_t tokens[64];
        Ranked d = {0};
        Rng r = rng_make(1337, RNG_DEMO, f);
        d.V = c.V;
        for (int q = 0; q < files[f].queries; q++)
            for (int i = 0; i <= files[f].k; i++) { // the query, then its responses
                for (int t = 0; t < 64; t++) tokens[t] = (uint16_t)rng_below(&r, c.V - 1); // without end-of-text
                if (i == 0) ranked_query(&d, tokens, 64);
                else ranked_response(&d, tokens, files[f].length, (float)rng_normal(&r), 1);
            }
        ranked_write(path_join(path, argv[1], files[f].name), &d);
        ranked_free(&d);
    }
    free(params);
    return 0;
}
