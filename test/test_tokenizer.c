/*
test_tokenizer.c: tokenizer.h against other implementations, against itself, and against bad files.

    gcc -O2 -I. test/test_tokenizer.c -o test_tokenizer -lm && ./test_tokenizer

Run from the top of the repository. The reference ids in test/tokenizer_cases.bin come from tiktoken and
Hugging Face tokenizers (dev/make_tokenizer_cases.py). They are given for a small vocabulary that stands in
that file, and for GPT-2's, which is too large to commit: RRHF_TOKENIZER=gpt2_tokenizer.bin in the environment
adds those checks.
*/
#include "../tokenizer.h" // what is tested
#include "test.h"         // defines: check, check_dies, test_summary

#define CASES "test/tokenizer_cases.bin"

static char dir[] = "/tmp/rrhf_tokenizer_XXXXXX"; // the files that the tests write
static char file[64];                             // one of them, used again and again

static void put_file(const void *bytes, size_t n) {
    Out out = out_open(file);
    out_write(&out, bytes, n);
    out_close(&out);
}

static char *get_file(size_t *n) { // the whole of it; free()
    In in = in_open(file);
    *n = (size_t)in.size;
    char *bytes = (char *)xalloc(*n, 1);
    in_read(&in, bytes, in.size, "all of it");
    in_close(&in);
    return bytes;
}

// Encodes, decodes, compares; returns the number of tokens, or -1 if the bytes differ.
static long round_trip(Tokenizer *t, const char *text, size_t n) {
    Tokens ids = {0, 0, 0};
    size_t len, count = tokenizer_encode(t, text, n, &ids);
    char *back = tokenizer_text(t, ids.id, ids.n, &len);
    int same = count == ids.n && len == n && memcmp(back, text, n) == 0;
    for (size_t i = 0; i < ids.n; i++) same = same && ids.id[i] < t->V && ids.id[i] != t->eot;
    free(back);
    tokens_free(&ids);
    return same ? (long)count : -1;
}

// ----------------------------------------------------------------------------
// Reference ids

typedef struct {
    char name[64];
    char *text;
    uint16_t *ids[2]; // by the small vocabulary, by GPT-2's
    int n, n_ids[2];
} Case;

typedef struct { Tokenizer small; uint64_t classes; Case *c; int n; } Cases;

static void *read_array(In *in, int n, size_t size) {
    void *p = xalloc((size_t)n, size);
    in_read(in, p, (int64_t)n * (int64_t)size, "a case");
    return p;
}

static Cases cases_read(void) {
    Cases cases;
    In in = in_open(CASES);
    int bytes = in_i32(&in, "the vocabulary's size");
    void *vocabulary = read_array(&in, bytes, 1);
    put_file(vocabulary, (size_t)bytes);
    free(vocabulary);
    cases.small = tokenizer_read(file);
    in_read(&in, &cases.classes, sizeof cases.classes, "the classes");
    cases.n = in_i32(&in, "the number of cases");
    cases.c = (Case *)xalloc((size_t)cases.n, sizeof(Case));
    for (int i = 0; i < cases.n; i++) {
        Case *c = &cases.c[i];
        int name = in_i32(&in, "a length");
        c->n = in_i32(&in, "a length");
        for (int v = 0; v < 2; v++) c->n_ids[v] = in_i32(&in, "a length");
        if (name < 0 || name >= (int)sizeof c->name) die(CASES ": a name of %d bytes", name);
        in_read(&in, c->name, name, "a name");
        c->text = (char *)read_array(&in, c->n, 1);
        for (int v = 0; v < 2; v++) c->ids[v] = (uint16_t *)read_array(&in, c->n_ids[v], sizeof(uint16_t));
    }
    in_close(&in);
    return cases;
}

static void cases_free(Cases *cases) {
    for (int i = 0; i < cases->n; i++) {
        free(cases->c[i].text); free(cases->c[i].ids[0]); free(cases->c[i].ids[1]);
    }
    free(cases->c);
    tokenizer_free(&cases->small);
}

static void test_case(Tokenizer *t, const Case *c, int v, const char *vocabulary) {
    Tokens ids = {0, 0, 0};
    tokenizer_encode(t, c->text, (size_t)c->n, &ids);
    size_t n = (size_t)c->n_ids[v], same = 0;
    while (same < ids.n && same < n && ids.id[same] == c->ids[v][same]) same++;
    check(ids.n == n && same == n && round_trip(t, c->text, (size_t)c->n) >= 0,
          "%s: %s  %d bytes, first %zu of %zu tokens equal", vocabulary, c->name, c->n, same, n);
    tokens_free(&ids);
}

// Each case on its own, then twice over with everything remembered, then all in one text.
static void test_cases(const Cases *cases, Tokenizer *t, int v, const char *vocabulary) {
    size_t before = (size_t)failed;
    for (int i = 0; i < cases->n; i++) test_case(t, &cases->c[i], v, vocabulary);
    Tokens ids = {0, 0, 0}, want = {0, 0, 0};
    for (int i = 0; i < cases->n; i++) {
        const Case *c = &cases->c[i];
        size_t n = (size_t)c->n_ids[v];
        tokenizer_encode(t, c->text, (size_t)c->n, &ids); // appends
        XGROW(want.id, want.cap, want.n + n);
        if (n) memcpy(want.id + want.n, c->ids[v], n * sizeof(uint16_t));
        want.n += n;
    }
    check(ids.n == want.n && memcmp(ids.id, want.id, ids.n * sizeof(uint16_t)) == 0,
          "%s: all again, appended, words remembered  %zu tokens, %zu failed before", vocabulary, ids.n,
          (size_t)failed - before);
    tokens_free(&ids);
    tokens_free(&want);
}

// The class of every code point, through UTF-8, as one number.
static void test_classes(const Cases *cases) {
    uint64_t h = 0xCBF29CE484222325ull;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char s[4] = {(char)c, 0, 0, 0};
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, len;
        for (size_t i = n; n > 1 && i-- > 0;) {
            uint32_t six = c >> (6 * (n - 1 - i));
            s[i] = (char)(i ? 0x80 | (six & 0x3F) : (0xF00u >> n & 0xFF) | six);
        }
        int k = kind_at(&cases->small, s, n, &len);
        h = (h ^ (uint64_t)k) * 0x100000001B3ull;
    }
    check(h == cases->classes, "letter, number, space, other: all 1114112 code points  hash %016" PRIx64
          ", expected %016" PRIx64, h, cases->classes);
}

// ----------------------------------------------------------------------------
// Against the definition

// Whether token id, which text may become, is these bytes.
static int token_is(const Tokenizer *t, int id, const char *s, size_t n) {
    int len;
    const char *b = tokenizer_decode(t, id, &len);
    return id != t->eot && (size_t)len == n && memcmp(b, s, n) == 0;
}

// Merging as the definition says it, by comparing with every token. Returns the number of ids.
static size_t naive_merge(const Tokenizer *t, const char *s, size_t n, uint16_t *ids) {
    size_t start[512], parts = n;
    for (size_t i = 0; i <= n; i++) start[i] = i;
    for (;;) {
        int best = t->V;
        size_t best_i = 0;
        for (size_t i = 0; i + 1 < parts; i++)
            for (int id = 0; id < best; id++) {
                if (!token_is(t, id, s + start[i], start[i + 2] - start[i])) continue;
                best = id; // a lower id than before, so the leftmost of its rank
                best_i = i;
            }
        if (best == t->V) break;
        memmove(start + best_i + 1, start + best_i + 2, (parts - best_i - 1) * sizeof *start);
        parts--;
    }
    for (size_t i = 0; i < parts; i++) {
        int id = 0;
        while (!token_is(t, id, s + start[i], start[i + 1] - start[i])) id++;
        ids[i] = (uint16_t)id;
    }
    return parts;
}

// Random words of the vocabulary's own tokens and of single bytes.
static size_t random_word(const Tokenizer *t, Rng *r, char *s, size_t room) {
    size_t n = 0;
    for (int k = 1 + rng_below(r, 12); k > 0; k--) {
        int len;
        const char *b = tokenizer_decode(t, rng_below(r, t->V), &len);
        if (n + (size_t)len > room) break;
        memcpy(s + n, b, (size_t)len);
        n += (size_t)len;
        if (rng_below(r, 3) == 0 && n < room) s[n++] = (char)('a' + rng_below(r, 26));
    }
    return n;
}

static void test_merge(Tokenizer *t, const char *what, int words) {
    Rng r = rng_make(1, RNG_SAMPLE, (uint64_t)t->V);
    int same = 0;
    Tokens got = {0, 0, 0};
    for (int i = 0; i < words; i++) {
        char s[256];
        uint16_t want[256];
        size_t n = random_word(t, &r, s, sizeof s), n_want = naive_merge(t, s, n, want);
        got.n = 0;
        XGROW(got.id, got.cap, n + 1);
        merge_word(t, s, n, &got);
        same += got.n == n_want && memcmp(got.id, want, n_want * sizeof(uint16_t)) == 0;
    }
    tokens_free(&got);
    check(same == words, "%s: random words merge as defined  %d of %d", what, same, words);
}

// Every token but end-of-text is what merging its own bytes comes to (true of learnt vocabularies).
static void test_own_tokens(Tokenizer *t, const char *what) {
    Tokens got = {0, 0, 0};
    int same = 0, tokens = t->V - (t->eot >= 0);
    for (int id = 0; id < t->V; id++) {
        int len;
        const char *b = tokenizer_decode(t, id, &len);
        if (id == t->eot) continue;
        got.n = 0;
        XGROW(got.id, got.cap, (size_t)len);
        merge_word(t, b, (size_t)len, &got);
        same += got.n == 1 && got.id[0] == id;
    }
    tokens_free(&got);
    check(same == tokens, "%s: each token's bytes merge to it  %d of %d", what, same, tokens);
}

static void test_long_word(Tokenizer *t) {
    size_t n = 1000000;
    char *s = (char *)xalloc(n, 1);
    memset(s, 'a', n);
    double start = now_s();
    long tokens = round_trip(t, s, n);
    check(tokens > 0, "a word of %zu equal letters  %ld tokens, %.2f s", n, tokens, now_s() - start);
    Rng r = rng_make(2, RNG_SAMPLE, 0);
    for (size_t i = 0; i < n; i++) s[i] = "etaoinsr"[rng_below(&r, 8)];
    start = now_s();
    tokens = round_trip(t, s, n);
    check(tokens > 0, "a word of %zu random letters  %ld tokens, %.2f s", n, tokens, now_s() - start);
    free(s);
}

// ----------------------------------------------------------------------------
// Any bytes in, the same bytes out

static void test_random_bytes(Tokenizer *t, const char *what, int texts) {
    Rng r = rng_make(3, RNG_SAMPLE, (uint64_t)t->V);
    int same = 0;
    size_t bytes = 0;
    for (int i = 0; i < texts; i++) {
        char s[400];
        size_t n = (size_t)rng_below(&r, sizeof s + 1);
        int high = i % 3 == 0 ? 256 : i % 3 == 1 ? 128 : 8; // any bytes, ASCII, few different ones
        for (size_t k = 0; k < n; k++) {
            int b = rng_below(&r, high);
            s[k] = high == 8 ? " ea\n'1.\xC3"[b] : (char)b;
        }
        same += round_trip(t, s, n) >= 0;
        bytes += n;
    }
    check(same == texts, "%s: round trip of random bytes  %d of %d texts, %zu bytes", what, same, texts,
          bytes);
}

static void test_truncate(const Tokenizer *t, const Cases *cases) {
    static const int sizes[] = {257, 258, 300, 511, 512, 1000, 1499, 1500};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char what[64];
        int n = sizes[i], len, ok = 1;
        Tokenizer u = tokenizer_truncate(t, n);
        snprintf(what, sizeof what, "cut to %d tokens", n);
        for (int id = 0; id < n - 1; id++) {
            const char *b = tokenizer_decode(t, id, &len);
            ok = ok && token_is(&u, id, b, (size_t)len);
        }
        const char *eot = tokenizer_decode(&u, n - 1, &len);
        ok = ok && u.V == n && u.eot == n - 1 && len == 13 && memcmp(eot, "<|endoftext|>", 13) == 0;
        check(ok, "%s: ids kept, end-of-text is %d", what, u.eot);
        test_merge(&u, what, 100);
        test_random_bytes(&u, what, 100);
        for (int k = 0; k < cases->n; k++)
            ok = ok && round_trip(&u, cases->c[k].text, (size_t)cases->c[k].n) >= 0;
        check(ok, "%s: round trip of the %d reference texts", what, cases->n);
        tokenizer_free(&u);
    }
}

static void test_end_of_text(Tokenizer *t, const char *what) {
    const char *text = "<|endoftext|> a<|endoftext|><|endoftext|>";
    Tokens ids = {0, 0, 0};
    tokenizer_encode(t, text, strlen(text), &ids);
    int made = 0, len;
    for (size_t i = 0; i < ids.n; i++) made += ids.id[i] == t->eot;
    const char *s = tokenizer_decode(t, t->eot, &len);
    check(!made && len == 13 && memcmp(s, "<|endoftext|>", 13) == 0,
          "%s: end-of-text %d spelt out is text  %d of %zu tokens", what, t->eot, made, ids.n);
    ids.n = 0; // and as one word, which no text has: merging does not reach it either
    merge_word(t, "<|endoftext|>", 13, &ids);
    check(ids.n > 1, "%s: no merge makes end-of-text  %zu tokens", what, ids.n);
    tokens_free(&ids);
}

// ----------------------------------------------------------------------------
// Files

static void test_write(const Tokenizer *t) {
    size_t n, m;
    tokenizer_write(file, t);
    char *a = get_file(&n);
    Tokenizer u = tokenizer_read(file);
    tokenizer_write(file, &u);
    char *b = get_file(&m);
    check(n == m && memcmp(a, b, n) == 0 && u.V == t->V && u.eot == t->eot,
          "written, read, written again  %zu bytes", n);
    free(a); free(b);
    tokenizer_free(&u);
}

// A file that others cut to its first ids: end-of-text is gone, and that is no error.
static void test_cut_file(const Tokenizer *t) {
    static const int eots[] = {50256, 400, -1};
    for (int i = 0; i < 3; i++) {
        Tokenizer u = tokenizer_truncate(t, 401);
        u.V = 400;
        u.eot = eots[i];
        tokenizer_write(file, &u);
        Tokenizer v = tokenizer_read(file);
        check(v.V == 400 && v.eot == -1 && round_trip(&v, "It wasn't bad.", 14) > 0,
              "first 400 ids, end-of-text id %d in the header: loads without one", eots[i]);
        Tokenizer w = tokenizer_truncate(&v, 401);
        check(w.V == 401 && w.eot == 400, "  and gets one back by tokenizer_truncate to 401");
        tokenizer_free(&u); tokenizer_free(&v); tokenizer_free(&w);
    }
}

// Equal tokens: the lowest id stands for both, all of them decode.
static void test_duplicates(void) {
    Tokenizer t = tokenizer_make(6, 64);
    static const char *tokens[] = {"a", "b", "ab", "a", "ab", "<|endoftext|>"};
    for (int i = 0; i < 6; i++) tokenizer_add(&t, tokens[i], strlen(tokens[i]), i == 5);
    Tokens ids = {0, 0, 0};
    tokenizer_encode(&t, "aba", 3, &ids);
    int len;
    const char *s = tokenizer_decode(&t, 4, &len);
    check(ids.n == 2 && ids.id[0] == 2 && ids.id[1] == 0 && len == 2 && memcmp(s, "ab", 2) == 0,
          "equal tokens: the lowest id is used");
    tokens_free(&ids);
    tokenizer_free(&t);
}

static void try_read(const void *path) {
    Tokenizer t = tokenizer_read((const char *)path);
    tokenizer_free(&t);
}

// Reading `bytes` bytes made of a header (v: the four numbers) and a body must fail.
static void bad_file(const char *what, const int32_t v[4], const char *body, size_t n, const char *text) {
    char bytes[2048] = {0};
    memcpy(bytes, v, 16);
    memcpy(bytes + 1024, body, n);
    put_file(bytes, 1024 + n);
    check_dies(what, try_read, file, text);
}

static void try_encode(const void *text) {
    Tokenizer t = tokenizer_make(2, 8), *p = &t;
    Tokens ids = {0, 0, 0};
    tokenizer_add(p, "a", 1, 0);
    tokenizer_add(p, " ", 1, 0);
    tokenizer_encode(p, (const char *)text, strlen((const char *)text), &ids);
}

static void try_decode(const void *id) {
    Tokenizer t = tokenizer_make(1, 8);
    int len;
    tokenizer_add(&t, "a", 1, 0);
    tokenizer_decode(&t, *(const int *)id, &len);
}

static void try_truncate(const void *n) {
    Tokenizer t = tokenizer_make(1, 8);
    tokenizer_add(&t, "a", 1, 0);
    tokenizer_truncate(&t, *(const int *)n);
}

static void try_train(const void *V) { tokenizer_train("some text", 9, *(const int *)V); }

static void test_bad_input(void) {
    static const int32_t good[4] = {20240328, 2, 3, 2};
    static const int32_t magic[4] = {20240326, 2, 3, 2}, version[4] = {20240328, 1, 3, 2};
    static const int32_t none[4] = {20240328, 2, 0, 0}, negative[4] = {20240328, 2, -5, 2};
    static const int32_t many[4] = {20240328, 2, 65537, 2}, eot[4] = {20240328, 2, 3, -2};
    static const int zero = 0, three = 3, minus = -1, one = 1, small = 256, large = 65537;
    const char *body = "\1a\2ab\3end"; // three tokens, 9 bytes
    char missing[80];
    snprintf(missing, sizeof missing, "%s/missing.bin", dir);
    check_dies("file: missing", try_read, missing, missing);
    check_dies("file: a directory", try_read, dir, "not a regular file");
    put_file("", 0);
    check_dies("file: empty", try_read, file, "0 bytes");
    put_file("not a tokenizer", 15);
    check_dies("file: shorter than a header", try_read, file, "15 bytes");
    bad_file("file: wrong magic number", magic, body, 9, "20240326");
    bad_file("file: wrong version", version, body, 9, "version 1");
    bad_file("file: no tokens", none, body, 9, "0 tokens");
    bad_file("file: negative vocabulary", negative, body, 9, "-5 tokens");
    bad_file("file: too large a vocabulary", many, body, 9, "65537 tokens");
    bad_file("file: negative end-of-text", eot, body, 9, "-2");
    bad_file("file: no token after the header", good, body, 0, "truncated");
    bad_file("file: ends before a token", good, body, 5, "truncated");
    bad_file("file: ends inside a token", good, body, 8, "truncated");
    bad_file("file: an empty token", good, "\1a\0\3end", 7, "token 1 is empty");
    bad_file("file: a byte too many", good, "\1a\2ab\3end!", 10, "too many");
    check_dies("encode: a byte the vocabulary lacks", try_encode, "aa\xFE", "0xFE");
    check_dies("decode: an id beyond the vocabulary", try_decode, &one, "token 1");
    check_dies("decode: a negative id", try_decode, &minus, "token -1");
    check_dies("truncate to 0 tokens", try_truncate, &zero, "to 0");
    check_dies("truncate to more than there are", try_truncate, &three, "to 3");
    check_dies("train for fewer tokens than bytes", try_train, &small, "256");
    check_dies("train for too many tokens", try_train, &large, "65537");
}

// ----------------------------------------------------------------------------
// Learning

// Made-up reviews: `n` sentences, to be freed.
static char *make_text(int n, size_t *len) {
    static const char *who[] = {"The film", "This movie", "Her acting", "The plot", "His work", "The ending"};
    static const char *how[] = {"is", "wasn't", "seemed", "feels", "is not", "couldn't have been more"};
    static const char *what[] = {"wonderful", "dull", "really funny", "a waste of 2 hours", "fine", "awful"};
    static const char *end[] = {".", "!", "...", " and I loved it.", ", sadly.", "\n"};
    Rng r = rng_make(4, RNG_DEMO, 0);
    char *text = (char *)xalloc((size_t)n, 100);
    *len = 0;
    for (int i = 0; i < n; i++)
        *len += (size_t)sprintf(text + *len, "%s %s %s%s ", who[rng_below(&r, 6)], how[rng_below(&r, 6)],
                                what[rng_below(&r, 6)], end[rng_below(&r, 6)]);
    return text;
}

static int same_vocabulary(const Tokenizer *a, const Tokenizer *b) {
    return a->V == b->V && a->eot == b->eot && memcmp(a->at, b->at, ((size_t)a->V + 1) * sizeof *a->at) == 0
        && memcmp(a->bytes, b->bytes, a->at[a->V]) == 0;
}

static void test_train(void) {
    size_t n;
    char *text = make_text(25000, &n);
    double start = now_s();
    Tokenizer t = tokenizer_train(text, n, 340), u = tokenizer_train(text, n, 340);
    check(t.V == 340 && t.eot == 339, "train: %zu bytes to %d tokens  %.3f s", n, t.V, (now_s() - start) / 2);
    check(same_vocabulary(&t, &u), "train: twice gives the same");
    long tokens = round_trip(&t, text, n);
    check(tokens > 0 && (size_t)tokens * 2 < n, "train: round trip of its own text  %.2f bytes per token",
          (double)n / (double)tokens);
    test_merge(&t, "train", 300);
    test_own_tokens(&t, "train");
    test_random_bytes(&t, "train", 200);
    test_end_of_text(&t, "train");
    test_write(&t);
    tokenizer_free(&t); tokenizer_free(&u);
    t = tokenizer_train(text, n, 65536); // every word becomes a token, then no pair is left
    check(t.V > 257 && t.V < 400 && t.eot == t.V - 1, "train: stops where no pair is left  %d tokens", t.V);
    tokenizer_free(&t);
    free(text);
}

// Small texts whose merges can be counted by hand.
static void test_train_by_hand(void) {
    // Words: "ab", twice " ab", twice " cd". First a+b, three times. Then all pairs left occur twice, and the
    // lowest ids go first: ' '+c, ' '+ab, " c"+d.
    Tokenizer t = tokenizer_train("ab ab ab cd cd", 14, 300);
    check(t.V == 261 && t.eot == 260 && token_is(&t, 256, "ab", 2) && token_is(&t, 257, " c", 2) &&
          token_is(&t, 258, " ab", 3) && token_is(&t, 259, " cd", 3),
          "train: 'ab ab ab cd cd' learns 'ab', ' c', ' ab', ' cd' and stops");
    tokenizer_free(&t);
    t = tokenizer_train("", 0, 300);
    check(t.V == 257 && t.eot == 256 && round_trip(&t, "x", 1) == 1, "train: no text gives the 256 bytes");
    tokenizer_free(&t);
    char *s = (char *)xalloc(20000, 1);
    memset(s, '=', 20000);
    t = tokenizer_train(s, 20000, 300);
    check(t.longest <= 255 && round_trip(&t, s, 20000) > 0,
          "train: one word of 20000 bytes, longest token %u", t.longest);
    tokenizer_free(&t);
    for (int k = 254; k <= 256; k++) { // one random word of k letters, over and over, a new line between
        Rng r = rng_make(6, RNG_DEMO, (uint64_t)k);
        for (int i = 0; i < 20 * (k + 1); i++)
            s[i] = i % (k + 1) == k ? '\n' : i > k ? s[i - k - 1] : (char)('a' + rng_below(&r, 26));
        t = tokenizer_train(s, (size_t)(20 * (k + 1)), 600);
        int whole = t.longest == (uint32_t)k;
        check(whole == (k < 256), "train: a word of %d letters, longest token %u of at most 255", k, t.longest);
        tokenizer_free(&t);
    }
    free(s);
}

// GPT-2's words, split by hand: of white space before a word only the last character is its own, at the end of the text
// none is left over; bytes that are no UTF-8 (too long a form, a surrogate) are no letters.
static void test_words(const Tokenizer *t) {
    static const char *const texts[] = {
        "it|'s| | we|'ll| 12|ab", "a|  ", "a| \n", "a|\n\n", "  ", "\n|\n|b", "a|  | b", " a|!?'|x",
        "\xE0\x81\x81|b", "\xED\xA0\x80|b", "\xC3\xA9t\xC3\xA9|.", "\xF0\x82\x82\xAC|b",
    };
    int wrong = 0, n = (int)(sizeof texts / sizeof *texts);
    for (int i = 0; i < n; i++) {
        char text[64], split[64];
        size_t size = 0, at = 0;
        for (const char *c = texts[i]; *c; c++) if (*c != '|') text[size++] = *c;
        for (size_t from = 0, end; from < size; from = end) {
            end = word_end(t, text, size, from);
            if (from) split[at++] = '|';
            memcpy(split + at, text + from, end - from);
            at += end - from;
        }
        split[at] = 0;
        wrong += strcmp(split, texts[i]) != 0;
    }
    check(wrong == 0, "words by hand: %d of %d texts are split otherwise", wrong, n);
}

// Text whose bytes are those of end-of-text does not become it, whatever they are.
static void test_end_of_text_bytes(void) {
    Tokenizer t = tokenizer_make(4, 8);
    Tokens ids = {NULL, 0, 0};
    tokenizer_add(&t, "a", 1, 0);
    tokenizer_add(&t, "b", 1, 0);
    tokenizer_add(&t, "ab", 2, 1);
    size_t n = tokenizer_encode(&t, "ab", 2, &ids);
    check(t.eot == 2 && n == 2 && ids.id[0] == 0 && ids.id[1] == 1,
          "'ab' with an end-of-text of these bytes: %zu tokens, the first %d", n, n ? ids.id[0] : -1);
    tokens_free(&ids);
    tokenizer_free(&t);
}

// Words that share a place in the cache and differ in one letter: the first of five, or the last of eight, which the
// hash's low bits do not see.
static void test_cache(Tokenizer *t) {
    static const size_t len[2] = {5, 8}, at[2] = {0, 7};
    int pairs[2] = {0, 0}, wrong = 0;
    for (int k = 0; k < 2 * 26 * 26 * 26; k++)
        for (int xy = 0, kind = k % 2; xy < 26 * 26 && pairs[kind] < 30; xy++) {
            char w[2][9] = {"qqqqqqqq", "qqqqqqqq"};
            for (int i = 0; i < 2; i++) {
                w[i][1] = (char)('a' + k / 2 % 26), w[i][2] = (char)('a' + k / 52 % 26);
                w[i][3] = (char)('a' + k / 1352);
                w[i][at[kind]] = (char)('a' + (i ? xy / 26 : xy % 26));
            }
            size_t n = len[kind];
            if (xy % 26 <= xy / 26 || (hash64(HASH64, w[0], n) ^ hash64(HASH64, w[1], n)) % CACHE_WORDS) continue;
            pairs[kind]++;
            for (int i = 0; i < 2; i++) {
                Tokens ids = {NULL, 0, 0};
                size_t m;
                tokenizer_encode(t, w[i], n, &ids);
                char *back = tokenizer_text(t, ids.id, ids.n, &m);
                wrong += m != n || memcmp(back, w[i], n) != 0;
                free(back);
                tokens_free(&ids);
            }
        }
    check(pairs[0] == 30 && pairs[1] == 30 && wrong == 0,
          "%d and %d pairs of words at one place of the cache: %d come back as another", pairs[0], pairs[1], wrong);
}

int main(void) {
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    snprintf(file, sizeof file, "%s/t.bin", dir);
    Cases cases = cases_read();
    test_classes(&cases);
    test_cases(&cases, &cases.small, 0, "first 1499");
    test_merge(&cases.small, "first 1499", 300);
    test_own_tokens(&cases.small, "first 1499");
    test_random_bytes(&cases.small, "first 1499", 1000);
    test_end_of_text(&cases.small, "first 1499");
    test_truncate(&cases.small, &cases);
    test_words(&cases.small);
    test_end_of_text_bytes();
    test_cache(&cases.small);
    test_long_word(&cases.small);
    test_write(&cases.small);
    test_cut_file(&cases.small);
    test_duplicates();
    test_train();
    test_train_by_hand();
    test_bad_input();
    const char *full = getenv("RRHF_TOKENIZER");
    if (full) {
        Tokenizer t = tokenizer_read(full);
        test_cases(&cases, &t, 1, "GPT-2");
        test_merge(&t, "GPT-2", 10);
        test_own_tokens(&t, "GPT-2");
        test_random_bytes(&t, "GPT-2", 1000);
        test_end_of_text(&t, "GPT-2");
        test_long_word(&t);
        tokenizer_free(&t);
    } else printf("     (RRHF_TOKENIZER is not set: GPT-2's whole vocabulary was not tested)\n");
    cases_free(&cases);
    unlink(file);
    rmdir(dir);
    return test_summary();
}
