/*
make_files.c: the small files that test_cli.sh feeds to train_rrhf, and damaged copies of them. Same bytes every time.

  make_files all DIR                  models, ranked files, streams and tokenizers, listed in write_all; odd.txt: the
                                      lines that a reward command should read about odd.bin
  make_files edit IN OUT OP...        a copy of IN, changed by one OP after another:
      i32 AT VALUE   f32 AT VALUE   u16 AT VALUE   u8 AT VALUE     at byte AT; from the end where AT < 0
      h INDEX VALUE  int32 INDEX of the header           cut BYTES  keep so many; drop -BYTES where BYTES < 0
      pad BYTES      append zeros                        fuzz SEED  overwrite a few bytes with random ones
  make_files show RANKED              "query response length score source first-token" per response
*/
#include "../model.h"     // defines: Config, checkpoint_write
#include "../tokenizer.h" // defines: Tokenizer, tokenizer_make, tokenizer_add, tokenizer_write
#include "../rrhf.h"      // defines: Objective, which test.h names
#include "test.h"         // defines: test_params

enum { V = 60, T = 24 };

static const char *dir;

static const char *in_dir(const char *name) {
    static char path[RRHF_PATH_MAX];
    return path_join(path, dir, name);
}

static Config config(int vocabulary, int reward) {
    Config c = {T, vocabulary, 64, 2, 2, 16, reward, reward};
    return c;
}

static void write_models(void) {
    float *p = test_params(config(V, 0), 1), *r = test_params(config(V, 1), 2), *w = test_params(config(61, 0), 3);
    size_t n = gpt2_count(config(V, 0));
    Out out;
    checkpoint_write(in_dir("policy.bin"), config(V, 0), p);
    checkpoint_write(in_dir("reward.bin"), config(V, 1), r);
    checkpoint_write(in_dir("policy61.bin"), config(61, 0), w);
    // bfloat16: the upper half of each float32; and the float32 with the lower half zeroed
    int32_t h[256] = {CHECKPOINT_MAGIC, CHECKPOINT_BF16, T, V, 2, 2, 16, 64};
    out = out_open(in_dir("bf16.bin"));
    out_write(&out, h, sizeof h);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &p[i], 4);
        uint16_t half = (uint16_t)(bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&p[i], &bits, 4);
        out_write(&out, &half, 2);
    }
    out_close(&out);
    checkpoint_write(in_dir("bf16_as_fp32.bin"), config(V, 0), p);
    free(p), free(r), free(w);
}

// n queries with up to k responses of up to most tokens. Query 0: 3 tokens and responses of 2 and 3.
static void write_ranked(const char *name, uint64_t seed, int n, int k, int most, int labels) {
    Ranked d = {0};
    uint16_t tok[T];
    Rng r = rng_make(seed, RNG_DEMO, 0);
    d.V = V;
    for (int q = 0; q < n; q++) {
        int kq = q ? 1 + rng_below(&r, k) : k < 2 ? k : 2;
        for (int i = -1; i < kq; i++) {
            int len = q ? 1 + rng_below(&r, most) : i == 0 ? 2 : 3;
            for (int t = 0; t < len; t++) tok[t] = (uint16_t)rng_below(&r, V - 1);
            if (i < 0) ranked_query(&d, tok, len);
            else ranked_response(&d, tok, len, labels ? (float)(q & 1) : (float)rng_below(&r, 5) / 4, 0);
        }
    }
    ranked_write(in_dir(name), &d);
    ranked_free(&d);
}

// One query of 20 tokens with a response of 10: more than T.
static void write_long(void) {
    Ranked d = {0};
    uint16_t tok[20];
    d.V = V;
    for (int i = 0; i < 20; i++) tok[i] = (uint16_t)i;
    ranked_query(&d, tok, 20);
    ranked_response(&d, tok, 10, 1, 0);
    ranked_write(in_dir("long.bin"), &d);
    ranked_free(&d);
}

static void write_stream(const char *name, int n) {
    uint16_t *tok = (uint16_t *)xalloc((size_t)n, sizeof *tok);
    Rng r = rng_make(7, RNG_DEMO, 0);
    for (int i = 0; i < n; i++) tok[i] = (uint16_t)rng_below(&r, V);
    stream_write(in_dir(name), tok, n);
    free(tok);
}

static void write_tokenizer(const char *name, int vocabulary) { // printable bytes, the last one end-of-text
    Tokenizer t = tokenizer_make(vocabulary, 1024);
    for (int i = 0; i < vocabulary; i++) {
        char c = (char)(32 + i);
        if (i + 1 < vocabulary) tokenizer_add(&t, &c, 1, 0);
        else tokenizer_add(&t, END_OF_TEXT, sizeof END_OF_TEXT - 1, 1);
    }
    tokenizer_write(in_dir(name), &t);
    tokenizer_free(&t);
}

// Texts that a line cannot hold as they are, a token a byte, and the lines that stand for them.
static void write_odd(void) {
    static const struct { const char *query; int n; const char *response; int k; const char *line; } texts[] = {
        {"one\ntwo", 7, "\r\n", 2, "one\\ntwo\\r\\n\n"}, {"\\", 1, "n", 1, "\\\\n\n"},
        {"\\n", 2, "\n", 1, "\\\\n\\n\n"}, {" tab\there", 9, "  ", 2, " tab\there  \n"},
        {"a\0b", 3, "\0", 1, "ab\n"}, {"\0", 1, "\0", 1, "\n"},
        {"$(x) `y`", 8, "'\"*;|&<>%s", 10, "$(x) `y`'\"*;|&<>%s\n"},
        {"\xc3", 1, "\xa9\xff\x01", 3, "\xc3\xa9\xff\x01\n"}};
    Tokenizer t = tokenizer_make(V, 1024);
    uint16_t of[256], tok[16];
    Ranked d = {0};
    memset(of, 255, sizeof of);
    d.V = V;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (int part = 0; part < 2; part++) {
            const char *s = part ? texts[i].response : texts[i].query;
            int n = part ? texts[i].k : texts[i].n;
            for (int j = 0; j < n; j++) {
                unsigned char c = (unsigned char)s[j];
                if (of[c] == 65535) of[c] = (uint16_t)t.V, tokenizer_add(&t, &s[j], 1, 0);
                tok[j] = of[c];
            }
            if (part && i == 0) tok[n++] = V - 1; // end-of-text is no part of it
            if (part) ranked_response(&d, tok, n, 0, 0);
            else ranked_query(&d, tok, n);
        }
    }
    while (t.V < V - 1) tokenizer_add(&t, "unused", 6, 0);
    tokenizer_add(&t, END_OF_TEXT, sizeof END_OF_TEXT - 1, 1);
    tokenizer_write(in_dir("odd_tokenizer.bin"), &t);
    tokenizer_free(&t);
    Out lines = out_open(in_dir("odd.txt"));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) out_printf(&lines, "%s", texts[i].line);
    out_close(&lines);
    ranked_write(in_dir("odd.bin"), &d);
    ranked_free(&d);
}

// One query of 200,000 tokens, for a reward program.
static void write_wide(const char *path) {
    enum { WIDE = 200000 };
    uint16_t *tok = (uint16_t *)xalloc(WIDE, sizeof *tok);
    Ranked d = {0};
    for (int i = 0; i < WIDE; i++) tok[i] = 'A' - 32;
    d.V = V;
    ranked_query(&d, tok, WIDE);
    ranked_response(&d, tok, 1, 0, SOURCE_DATA);
    ranked_write(path, &d);
    ranked_free(&d);
    free(tok);
}

static void write_all(void) {
    write_models();
    write_ranked("ranked.bin", 11, 13, 4, 8, 0);   // preferences, ragged
    write_ranked("held.bin", 12, 5, 3, 8, 0);
    write_ranked("labels.bin", 13, 12, 1, 8, 1);   // k = 1, labels 0 and 1
    write_ranked("queries.bin", 14, 2200, 1, 2, 0); // many, short
    write_long();
    write_stream("stream.bin", 300);
    write_tokenizer("tokenizer.bin", V);
    write_tokenizer("tokenizer61.bin", 61);
    write_odd();
}

static void edit(int argc, char **argv) {
    In in = in_open(argv[0]);
    int64_t n = in.size, room = n + (1 << 20);
    char *b = (char *)xalloc((size_t)room, 1);
    in_read(&in, b, n, "the file");
    in_close(&in);
    for (int i = 2; i < argc; i++) {
        const char *op = argv[i], *first = argv[++i], *second = "";
        if (strcmp(op, "cut") && strcmp(op, "pad") && strcmp(op, "fuzz")) second = argv[++i];
        int64_t at = strtoll(first, NULL, 10);
        int32_t v = (int32_t)strtoll(second, NULL, 10);
        float f = strtof(second, NULL);
        if (!strcmp(op, "h")) op = "i32", at *= 4;
        if (!strcmp(op, "cut")) n = at < 0 ? n + at : at;
        else if (!strcmp(op, "pad")) n += at;
        else if (!strcmp(op, "fuzz")) {
            Rng r = rng_make((uint64_t)at, RNG_DEMO, 1);
            for (int k = 1 + rng_below(&r, 4); k > 0; k--) { // headers and what follows them, more often than the rest
                int where = rng_below(&r, 3), span = where == 0 ? 40 : n < 1200 || where == 2 ? (int)n : 1200;
                int start = where == 1 && span > 1024 ? 1024 : 0;
                b[start + rng_below(&r, span - start)] =
                    (char)(rng_below(&r, 2) ? rng_below(&r, 256) : rng_below(&r, 2) ? 255 : 127);
            }
        } else {
            if (at < 0) at += n;
            if (!strcmp(op, "i32")) memcpy(b + at, &v, 4);
            else if (!strcmp(op, "f32")) memcpy(b + at, &f, 4);
            else if (!strcmp(op, "u16")) memcpy(b + at, &v, 2);
            else if (!strcmp(op, "u8")) memcpy(b + at, &v, 1);
            else die_usage("'%s': no such change", op);
        }
    }
    Out out = out_open(argv[1]);
    out_write(&out, b, (size_t)n);
    out_close(&out);
    free(b);
}

static void show(const char *path) {
    Ranked d = ranked_read(path);
    for (int q = 0; q < d.Q; q++)
        for (int r = d.first[q]; r < d.first[q + 1]; r++)
            printf("%d %d %d %.9g %d %d\n", q, r - d.first[q], d.resp_len[r], d.score[r], d.source[r],
                   d.tokens[d.resp_at[r]]);
    ranked_free(&d);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "all")) dir = argv[2], write_all();
    else if (argc >= 4 && !strcmp(argv[1], "edit")) edit(argc - 2, argv + 2);
    else if (argc == 3 && !strcmp(argv[1], "show")) show(argv[2]);
    else if (argc == 3 && !strcmp(argv[1], "wide")) write_wide(argv[2]);
    else die_usage("make_files all DIR | wide FILE | edit IN OUT OP... | show RANKED");
    return 0;
}
