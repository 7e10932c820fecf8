/*
make_step.c: the files of the speed yardstick. dev/bench/make_step DIR writes DIR/model.bin, a GPT-2 of 124M random
parameters, and DIR/ranked.bin, 16 queries of 64 random tokens with 6 responses of 48 and random scores.
*/
#include "../../util.h"        // defines: die, Rng, xalloc
#include "../../model.h"       // defines: Config, gpt2_random, checkpoint_write
#include "../../dataloader.h"  // defines: Ranked

int main(int argc, char **argv) {
    if (argc != 2) die_usage("usage: dev/bench/make_step DIR");
    char path[RRHF_PATH_MAX];
    Config c = {1024, 50257, 50304, 12, 12, 768, 0, 0};
    float *params = (float *)xalloc(gpt2_count(c), sizeof *params);
    gpt2_random(c, 1337, params);
    make_dir(argv[1]);
    checkpoint_write(path_join(path, argv[1], "model.bin"), c, params);
    Ranked d;
    uint16_t tokens[64];
    Rng r = rng_make(1337, RNG_DEMO, 0);
    memset(&d, 0, sizeof d);
    d.V = c.V;
    for (int q = 0; q < 16; q++)
        for (int i = 0; i <= 6; i++) { // the query, then its responses
            for (int t = 0; t < 64; t++) tokens[t] = (uint16_t)rng_below(&r, c.V);
            if (i == 0) ranked_query(&d, tokens, 64);
            else ranked_response(&d, tokens, 48, (float)rng_normal(&r), 1);
        }
    ranked_write(path_join(path, argv[1], "ranked.bin"), &d);
    return 0;
}
