/*
encode.c: how fast tokenizer.h encodes. encode TOKENIZER FILE encodes the file as one text on one thread and prints

  encode_mb_per_s <megabytes of text per second> tokens <how many> sum <over i of (i + 1) id_i, modulo 2^64>

The sum tells whether two programs made the same tokens. Reading the two files is not counted.
*/
#include "../../util.h"        // defines: In, die_usage, now_s
#include "../../tokenizer.h"   // defines: Tokenizer, Tokens

int main(int argc, char **argv) {
    if (argc != 3) die_usage("usage: encode TOKENIZER FILE");
    Tokenizer t = tokenizer_read(argv[1]);
    In in = in_open(argv[2]);
    char *text = (char *)xalloc((size_t)in.size + 1, 1);
    in_read(&in, text, in.size, "the text");
    in_close(&in);
    Tokens tokens = {0, 0, 0};
    double start = now_s();
    tokenizer_encode(&t, text, (size_t)in.size, &tokens);
    double seconds = now_s() - start;
    uint64_t sum = 0;
    for (size_t i = 0; i < tokens.n; i++) sum += (i + 1) * (uint64_t)tokens.id[i];
    printf("encode_mb_per_s %.2f tokens %zu sum %" PRIu64 "\n", (double)in.size / seconds / 1e6, tokens.n, sum);
    tokens_free(&tokens);
    tokenizer_free(&t);
    free(text);
    return 0;
}
