/*
test_convert.c: dev/convert there and back, against what it should write, and on bad input.

    make dev/convert
    gcc -O2 test/test_convert.c -o test_convert -lm && ./test_convert [dev/convert]

Run from the top of the repository; needs no cJSON and no Python itself. The vocabulary and the models are
made here. Hugging Face's names and layouts are written out a second time on purpose, from the outside: a slip
that from-hf and to-hf share would pass every round trip.
*/
#include "../util.h"       // defines: In, Out, Rng, path_join; first, for _GNU_SOURCE
#include <float.h>         // defines: FLT_MAX
#include "test.h"          // defines: check, test_summary (before model.h: no helpers for train_rrhf.c)
#include "../dataloader.h" // defines: Ranked, ranked_read, ranked_write
#include "../model.h"      // defines: Config, checkpoint_read, checkpoint_write
#include "../tokenizer.h"  // defines: Tokenizer, tokenizer_train, tokenizer_encode

static const char *convert = "dev/convert";
static char dir[] = "/tmp/rrhf_convert_XXXXXX";

// ----------------------------------------------------------------------------
// Files and runs. All names are relative to `dir`.

static char *at(const char *name) { // its path: a static buffer each of four turns
    static char path[4][RRHF_PATH_MAX];
    static int turn;
    return path_join(path[turn = (turn + 1) % 4], dir, name);
}

static void put(const char *name, const void *bytes, size_t n) {
    Out out = out_open(at(name));
    out_write(&out, bytes, n);
    out_close(&out);
}

// JSON lines with ' for ": what stands in this file stays readable.
static void put_json(const char *name, const char *text) {
    char *s = strdup(text);
    for (char *c = s; c && *c; c++) if (*c == '\'') *c = '"';
    put(name, s, strlen(s));
    free(s);
}

static char *get(const char *name, size_t *n) { // free(); ends with a zero
    In in = in_open(at(name));
    char *bytes = (char *)xalloc((size_t)in.size + 1, 1);
    if (n) *n = (size_t)in.size;
    in_read(&in, bytes, in.size, "all of it");
    in_close(&in);
    return bytes;
}

static int exists(const char *name) { return access(at(name), F_OK) == 0; }

static int same_files(const char *a, const char *b) {
    size_t na, nb;
    char *x = get(a, &na), *y = get(b, &nb);
    int same = na == nb && memcmp(x, y, na) == 0;
    free(x);
    free(y);
    return same;
}

// Replaces the first `from` in a file (which may be binary) by `to`.
static void edit(const char *name, const char *from, const char *to) {
    size_t n, nf = strlen(from), nt = strlen(to);
    char *s = get(name, &n), *hit = (char *)memmem(s, n, from, nf);
    if (!hit) die("test: no '%s' in %s", from, name);
    Out out = out_open(at(name));
    out_write(&out, s, (size_t)(hit - s));
    out_write(&out, to, nt);
    out_write(&out, hit + nf, n - nf - (size_t)(hit - s));
    out_close(&out);
    free(s);
}

// Runs dev/convert in `dir` with these arguments; its output lands in the files "stdout" and "stderr".
static int run(const char *args) {
    char command[8192], here[RRHF_PATH_MAX] = "";
    if (convert[0] != '/' && !getcwd(here, sizeof here)) die("test: no working directory");
    snprintf(command, sizeof command, "cd '%s' && '%s/%s' %s >stdout 2>stderr", dir, here, convert, args);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int check_runs(const char *what, const char *args) {
    int code = run(args);
    char *said = get("stderr", NULL);
    said[strcspn(said, "\n")] = 0;
    int ok = check(code == 0, "%s: exit code %d %s", what, code, said);
    free(said);
    return ok;
}

// It must end with this code and one line on stderr that holds `text`, and leave no file "out*".
static void check_fails(const char *what, const char *args, int want, const char *text) {
    int code = run(args);
    char *said = get("stderr", NULL), *end = strchr(said, '\n');
    int one_line = end && end[1] == 0 && strncmp(said, "error: ", 7) == 0;
    int left = exists("out") || exists("out.tmp") || exists("out.model.bin") || exists("out.tokenizer.bin");
    if (end) *end = 0;
    check(code == want && one_line && strstr(said, text) && !left, "%s: exit code %d, \"%s\"%s", what, code,
          said, left ? ", but a file was written" : "");
    free(said);
    unlink(at("out"));
}

// ----------------------------------------------------------------------------
// ranked and jsonl

static Tokenizer tok; // "tok": 256 bytes, some merges, end-of-text; "no_eot": the same without the last

static void make_tokenizers(void) {
    static const char text[] =
        "the film was good, the film was bad and \"the end\" was not. a good end is a good thing\n"
        "caf\xC3\xA9 caf\xC3\xA9 na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC \xE6\x97\xA5\xE6\x9C\xAC good bad\n\n";
    tok = tokenizer_train(text, sizeof text - 1, 300);
    tokenizer_write(at("tok"), &tok);
    Tokenizer no_eot = tok;
    no_eot.V--;
    no_eot.eot = -1;
    tokenizer_write(at("no_eot"), &no_eot);
}

// Is this response (-1: the query) of query q exactly these bytes, and end-of-text if eos?
static int is_text(const Ranked *d, int q, int i, const char *text, int eos) {
    Tokens ids = {0, 0, 0};
    tokenizer_encode(&tok, text, strlen(text), &ids);
    int n = i < 0 ? d->query_len[q] : d->resp_len[d->first[q] + i];
    const uint16_t *have = d->tokens + (i < 0 ? d->query_at[q] : d->resp_at[d->first[q] + i]);
    int same = (size_t)n == ids.n + (size_t)eos && (!ids.n || memcmp(have, ids.id, 2 * ids.n) == 0);
    same = same && (!eos || have[n - 1] == tok.eot);
    tokens_free(&ids);
    return same;
}

static const char *const three_lines = // other keys and blank lines between, no newline at the end
    "{'query': 'the \\'film\\'\\n\\t\\\\ \\/ \\u00e9', "
    "'responses': ['good', '', ' caf\\u00e9 \\ud83d\\ude00'], 'scores': [0.1, -1e-3, 3], "
    "'id': {'a': [1, null]}}\n\n  \t\r\n"
    "{'scores': [16777217], 'query': '\xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x91\x8D', "
    "'responses': ['a\\u0001\\u001fb\\r\\b'], 'sources': [7]}\r\n"
    "{'query': 'q', 'responses': ['<|endoftext|>', 'b'], 'scores': [1, 1], 'eos': [true, 0]}";

static void test_ranked(void) {
    put_json("a.jsonl", three_lines);
    if (!check_runs("ranked", "ranked a.jsonl a.bin --tokenizer tok")) return;
    Ranked d = ranked_read(at("a.bin"));
    check(d.Q == 3 && d.R == 6 && d.V == tok.V, "ranked: %d queries, %d responses", d.Q, d.R);
    check(is_text(&d, 0, -1, "the \"film\"\n\t\\ / \xC3\xA9", 0) && is_text(&d, 0, 0, "good", 1) &&
          is_text(&d, 0, 1, "", 1) && is_text(&d, 0, 2, " caf\xC3\xA9 \xF0\x9F\x98\x80", 1),
          "ranked: escapes, an empty response, a surrogate pair");
    check(is_text(&d, 1, -1, "\xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x91\x8D", 0) &&
          is_text(&d, 1, 0, "a\x01\x1F" "b\r\b", 1), "ranked: raw UTF-8 and control characters");
    check(is_text(&d, 2, 0, "<|endoftext|>", 1) && is_text(&d, 2, 1, "b", 0), "ranked: \"eos\" per response");
    check(d.score[0] == 0.1f && d.score[1] == -1e-3f && d.score[3] == 16777216.0f, "ranked: float32 scores");
    check(d.source[0] == 0 && d.source[3] == 7, "ranked: sources");
    ranked_free(&d);
}

static void test_round_trip(void) {
    check_runs("jsonl", "jsonl a.bin b.jsonl --tokenizer tok");
    check_runs("ranked of jsonl", "ranked b.jsonl b.bin --tokenizer tok");
    check(same_files("a.bin", "b.bin"), "ranked -> jsonl -> ranked: the same bytes");
    put_json("want.jsonl",
             "{'query': 'the \\'film\\'\\n\\t\\\\ / \xC3\xA9', "
             "'responses': ['good', '', ' caf\xC3\xA9 \xF0\x9F\x98\x80'], "
             "'scores': [0.100000001, -0.00100000005, 3]}\n"
             "{'query': '\xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x91\x8D', "
             "'responses': ['a\\u0001\\u001fb\\r\\u0008'], 'scores': [16777216], 'sources': [7]}\n"
             "{'query': 'q', 'responses': ['<|endoftext|>', 'b'], 'scores': [1, 1], 'eos': [1, 0]}\n");
    check(same_files("b.jsonl", "want.jsonl"), "jsonl: as expected, to the byte");
    // FLT_MAX, as jsonl writes it
    put_json("max.jsonl", "{'query': 'q', 'responses': ['a'], 'scores': [3.40282347e+38]}\n");
    check_runs("ranked of the largest score", "ranked max.jsonl max.bin --tokenizer tok");
    Ranked d = ranked_read(at("max.bin"));
    check(d.score[0] == FLT_MAX, "the largest score: %g", d.score[0]);
    ranked_free(&d);
}

// Queries whose responses or scores are still to be made.
static void test_missing(void) {
    static const char *const note[2] = {": 2 queries without \"responses\"", ": 1 queries without \"scores\""};
    put_json("a.jsonl", "{'query':'a','responses':['b','c']}\n{'query':'d'}\n"
             "{'query':'e','responses':[],'scores':[],'eos':[]}\n{'query':'f','responses':['g'],'scores':[2]}\n");
    if (!check_runs("missing responses and scores", "ranked a.jsonl a.bin --tokenizer tok")) return;
    char *said = get("stderr", NULL);
    check(strstr(said, note[0]) && strstr(said, note[1]), "missing responses and scores: counted on stderr");
    free(said);
    Ranked d = ranked_read(at("a.bin"));
    check(d.Q == 4 && d.R == 5 && is_text(&d, 0, 1, "c", 1) && d.score[0] == 0 && d.score[1] == 0,
          "no scores: 0 for each response");
    check(is_text(&d, 1, 0, "", 1) && is_text(&d, 2, 0, "", 1) && d.score[2] == 0 && d.source[3] == 0,
          "no responses: one of end-of-text alone");
    check(is_text(&d, 3, 0, "g", 1) && d.score[4] == 2, "the line after them is whole");
    ranked_free(&d);
    check_runs("missing responses: jsonl", "jsonl a.bin b.jsonl --tokenizer tok");
    check_runs("missing responses: back", "ranked b.jsonl b.bin --tokenizer tok");
    check(same_files("a.bin", "b.bin"), "missing responses: there and back, the same bytes");
    check_fails("no responses, --eos 0", "ranked a.jsonl out --tokenizer tok --eos 0", 1, "a.jsonl:2: no responses");
    put_json("a.jsonl", "{'query':'a','responses':['b']}\n");
    check_runs("no scores, --eos 0", "ranked a.jsonl a.bin --tokenizer tok --eos 0");
}

// Random finite floats of all sizes must come back to the bit.
static void test_scores(void) {
    Ranked d = {.V = tok.V};
    Rng r = {1};
    uint16_t x = 'x', y[2] = {'y', (uint16_t)tok.eot};
    ranked_query(&d, &x, 1);
    while (d.R < 2000) {
        uint32_t bits = (uint32_t)rng_u64(&r);
        float f;
        memcpy(&f, &bits, 4);
        if (isfinite(f)) ranked_response(&d, y, 2, f, 0);
    }
    ranked_write(at("s.bin"), &d);
    int ok = run("jsonl s.bin s.jsonl --tokenizer tok") == 0 &&
             run("ranked s.jsonl s2.bin --tokenizer tok") == 0;
    check(ok && same_files("s.bin", "s2.bin"), "2000 random scores: the same bits");
    ranked_free(&d);
}

static void test_cuts(void) {
    put_json("a.jsonl", "{'query':'abcdef','responses':['xyz','uvwxy',''],'scores':[1,2,3]}\n");
    check_runs("cuts", "ranked a.jsonl a.bin --tokenizer tok --max-query-tokens 2 --max-response-tokens 4");
    Ranked d = ranked_read(at("a.bin"));
    check(is_text(&d, 0, -1, "ef", 0), "cuts: a query on the left");
    check(is_text(&d, 0, 0, "xyz", 1) && is_text(&d, 0, 1, "uvwx", 0) && is_text(&d, 0, 2, "", 1),
          "cuts: responses on the right, end-of-text first");
    ranked_free(&d);
    check_runs("cuts: jsonl", "jsonl a.bin b.jsonl --tokenizer tok");
    check_runs("cuts: back", "ranked b.jsonl b.bin --tokenizer tok");
    check(same_files("a.bin", "b.bin"), "cuts: \"eos\" carries which responses have end-of-text");
}

// Tokens that are no text: a surrogate, what lies beyond Unicode, half a character, a zero, end-of-text in the middle.
static void test_lost(void) {
    uint16_t x[] = {'a', 0xED, 0xA0, 0x80, 'b', 0xF4, 0x90, 0x80, 0x80, 0xC3}, y[] = {0, (uint16_t)tok.eot, 'z'};
    Ranked d = {.V = tok.V};
    ranked_query(&d, x, 10);
    ranked_response(&d, y, 3, 1.5f, 0);
    ranked_write(at("l.bin"), &d);
    ranked_free(&d);
    check_runs("bytes that are no text", "jsonl l.bin l.jsonl --tokenizer tok");
    char *said = get("stderr", NULL);
#define LOST "\xEF\xBF\xBD"
    put_json("want.jsonl", "{'query': 'a" LOST LOST LOST "b" LOST LOST LOST LOST LOST "', "
             "'responses': ['" LOST "<|endoftext|>z'], 'scores': [1.5], 'eos': [0]}\n");
#undef LOST
    check(same_files("l.jsonl", "want.jsonl"), "bytes that are no text: U+FFFD");
    check(strstr(said, "U+FFFD stands for 9 bytes") && strstr(said, "1 end-of-text tokens"),
          "bytes that are no text: counted on stderr");
    free(said);
}

static void test_long_line(void) {
    size_t n = 3000000, at0;
    char *line = (char *)xalloc(n + 200, 1);
    at0 = (size_t)sprintf(line, "{'query': 'q', 'scores': [1], 'responses': ['");
    for (size_t i = 0; i < n; i++) line[at0 + i] = i % 7 ? (char)('a' + i % 26) : ' ';
    strcpy(line + at0 + n, "']}\n");
    put_json("long.jsonl", line);
    int ok = run("ranked long.jsonl long.bin --tokenizer tok") == 0 &&
             run("jsonl long.bin long2.jsonl --tokenizer tok") == 0 &&
             run("ranked long2.jsonl long2.bin --tokenizer tok") == 0;
    check(ok && same_files("long.bin", "long2.bin"), "a line of %zu bytes: there and back", at0 + n + 4);
    free(line);
}

// ----------------------------------------------------------------------------
// Bad JSON lines

static void test_bad_lines(void) {
    static const char good[] = "{'query':'a','responses':['b'],'scores':[1]}\n\n"; // the two lines before
    static const struct { const char *what, *line, *text; } bad[] = {
        {"half an object", "{'query':", "in.jsonl:3: not JSON"},
        {"no object", "[1]", "in.jsonl:3: found an array"},
        {"junk after the object", "{'query':'a','responses':['b'],'scores':[1]} x", "at 'x'"},
        {"no query", "{'responses':['b'],'scores':[1]}", "no \"query\""},
        {"a key in capitals", "{'Query':'a','responses':['b'],'scores':[1]}", "no \"query\""},
        {"a score of no response", "{'query':'a','scores':[1]}", "0 responses but 1 entries in \"scores\""},
        {"no score of a response", "{'query':'a','responses':['b'],'scores':[]}",
         "1 responses but 0 entries in \"scores\""},
        {"responses is null", "{'query':'a','responses':null}", "\"responses\" is null"},
        {"query is a number", "{'query':1,'responses':['b'],'scores':[1]}", "\"query\" is a number"},
        {"responses is a string", "{'query':'a','responses':'b','scores':[1]}", "\"responses\" is a string"},
        {"scores is null", "{'query':'a','responses':['b'],'scores':null}", "\"scores\" is null"},
        {"a response is an object", "{'query':'a','responses':[{}],'scores':[1]}", "response 0 is an object"},
        {"a score is a string", "{'query':'a','responses':['b','c'],'scores':[1,'2']}",
         "score 1 is a string"},
        {"k differs", "{'query':'a','responses':['b'],'scores':[1,2]}",
         "1 responses but 2 entries in \"scores\""},
        {"an empty query", "{'query':'','responses':['b'],'scores':[1]}", "the query is empty"},
        {"an empty response", "{'query':'a','responses':[''],'scores':[1],'eos':[0]}", "response 0 is empty"},
        {"NaN", "{'query':'a','responses':['b'],'scores':[NaN]}", "JSON has no NaN"},
        {"-Infinity", "{'query':'a','responses':['b'],'scores':[-Infinity]}", "JSON has no NaN"},
        {"a score beyond double", "{'query':'a','responses':['b'],'scores':[1e999]}", "score 0 is inf"},
        {"a score beyond float32", "{'query':'a','responses':['b'],'scores':[-1e39]}", "score 0 is -1e+39"},
        {"sources differ in k", "{'query':'a','responses':['b'],'scores':[1],'sources':[]}",
         "0 entries in \"sources\""},
        {"a source of 0.5", "{'query':'a','responses':['b'],'scores':[1],'sources':[0.5]}",
         "entry 0 of \"sources\""},
        {"eos is 2", "{'query':'a','responses':['b'],'scores':[1],'eos':[2]}", "entry 0 of \"eos\""},
        {"\\u0000", "{'query':'a\\u0000b','responses':['b'],'scores':[1]}", "the escape \\u0000 at byte 12"},
        {"\\u without digits", "{'query':'a\\uZZZZb','responses':['b'],'scores':[1]}",
         "the escape '\\uZZZZ' at byte 12"},
        {"\\u with three digits", "{'query':'a','responses':['b\\u041'],'scores':[1]}",
         "the escape '\\u041\"' at byte 29"},
        {"a key twice", "{'query':'a','query':'b','responses':['b'],'scores':[1]}", "\"query\" is there twice"},
        {"half a surrogate pair", "{'query':'\\ud800','responses':['b'],'scores':[1]}",
         "not JSON from byte 11"},
        {"Latin-1", "{'query':'caf\xE9','responses':['b'],'scores':[1]}", "byte 0xE9 at 14 is not UTF-8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[512];
        snprintf(text, sizeof text, "%s%s\n", good, bad[i].line);
        put_json("in.jsonl", text);
        check_fails(bad[i].what, "ranked in.jsonl out --tokenizer tok", 1, bad[i].text);
    }
    put_json("in.jsonl", "{'query':'a\\\\u0000','responses':['b'],'scores':[1]}\n");
    check_runs("\\\\u0000 is text", "ranked in.jsonl ok.bin --tokenizer tok");
    put("in.jsonl", "{\"query\":\"a\0\"}", 14);
    check_fails("a zero byte", "ranked in.jsonl out --tokenizer tok", 1, "in.jsonl:1: a zero byte at 12");
    put_json("in.jsonl", " \n\n");
    check_fails("nothing but blank lines", "ranked in.jsonl out --tokenizer tok", 1, "no query in 2 lines");
    put_json("in.jsonl", "");
    check_fails("an empty file", "ranked in.jsonl out --tokenizer tok", 1, "no query");
}

static void test_bad_tokenizers(void) {
    put_json("in.jsonl", "{'query':'a','responses':['b'],'scores':[1]}\n");
    check_fails("--eos 1 without end-of-text", "ranked in.jsonl out --tokenizer no_eot", 1, "no end-of-text");
    check_runs("--eos 0 without end-of-text", "ranked in.jsonl ok.bin --tokenizer no_eot --eos 0");
    check_fails("jsonl with another vocabulary", "jsonl ok.bin out --tokenizer tok", 1, "vocabulary of");
    put_json("in.jsonl", "{'query':'a','responses':['b'],'scores':[1],'eos':[1]}\n");
    check_fails("\"eos\" 1 without end-of-text", "ranked in.jsonl out --tokenizer no_eot --eos 0", 1,
                "in.jsonl:1: response 0");
    Tokenizer few = tokenizer_make(2, 2); // knows a and b
    tokenizer_add(&few, "a", 1, 0);
    tokenizer_add(&few, "b", 1, 0);
    tokenizer_write(at("few"), &few);
    tokenizer_free(&few);
    put_json("in.jsonl", "{'query':'a','responses':['b','c'],'scores':[1,2]}\n");
    check_fails("a byte without a token", "ranked in.jsonl out --tokenizer few --eos 0", 1,
                "in.jsonl:1: response 1 has byte 0x63");
    check_fails("a model as tokenizer", "ranked in.jsonl out --tokenizer in.jsonl", 1, "tokenizer");
    check_fails("a tokenizer as data", "jsonl tok out --tokenizer tok", 1, "magic number");
    check_fails("no such file", "ranked none.jsonl out --tokenizer tok", 1, "none.jsonl");
}

static void test_usage(void) {
    static const struct { const char *args, *text; } bad[] = {
        {"", "no command"}, {"rank", "'rank' is no command"},
        {"ranked a", "2 paths"}, {"ranked a b c", "'c'"},
        {"ranked a out", "--tokenizer"}, {"ranked a out --tokenizer", "expected a value"},
        {"ranked a out --tokenizer tok --eos 2", "--eos '2'"},
        {"ranked a out --tokenizer tok --eos", "expected a value"},
        {"ranked a out --tokenizer tok --max-query-tokens -1", "--max-query-tokens '-1'"},
        {"ranked a out --tokenizer tok --max-response-tokens 9x", "'9x'"},
        {"jsonl a out --tokenizer tok --eos 1", "--eos"}, {"from-hf a out --tokenizer tok", "--tokenizer"},
        {"to-hf a b", "3 paths"}, {"ranked a out --tokeniser tok", "--tokeniser"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_fails(*bad[i].args ? bad[i].args : "no arguments", bad[i].args, 2, bad[i].text);
    check_runs("--help", "--help");
    char *text = get("stdout", NULL);
    check(strstr(text, "from-hf") && strstr(text, "--max-response-tokens"), "--help: commands and options");
    free(text);
}

// ----------------------------------------------------------------------------
// Hugging Face: there and back

static Config shape(void) {
    Config c = {.T = 12, .V = tok.V, .Vp = (tok.V + 127) / 128 * 128, .L = 2, .NH = 2, .C = 8};
    return c;
}

// Random weights, biases and LayerNorms too.
static float *make_model(Config c, const char *name) {
    float *p = (float *)xalloc(gpt2_count(c), sizeof *p);
    Rng r = {3};
    for (size_t i = 0; i < gpt2_count(c); i++) {
        p[i] = (float)rng_normal(&r);
        if (i >= (size_t)c.V * (size_t)c.C && i < (size_t)c.Vp * (size_t)c.C) p[i] = 0; // wte's padding
    }
    checkpoint_write(at(name), c, p);
    return p;
}

// The tensor `name` of DIR hf's model.safetensors, to be freed. NULL: not there, or of another shape.
static float *hf_tensor(const char *name, const char *want_shape) {
    char key[256];
    size_t n;
    uint64_t header;
    long begin, end;
    char *s = get("hf/model.safetensors", &n);
    float *data = NULL;
    memcpy(&header, s, 8);
    snprintf(key, sizeof key, "\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[", name, want_shape);
    char *hit = (char *)memmem(s + 8, (size_t)header, key, strlen(key));
    if (hit && header % 8 == 0 && sscanf(hit + strlen(key), "%ld,%ld]", &begin, &end) == 2 && begin <= end &&
        8 + header + (uint64_t)end <= n) {
        data = (float *)xalloc((size_t)(end - begin), 1);
        memcpy(data, s + 8 + header + (size_t)begin, (size_t)(end - begin));
    }
    free(s);
    return data;
}

static void test_to_hf(void) {
    Config c = shape();
    float *flat = make_model(c, "m.bin");
    Params p = gpt2_params(c, flat);
    if (!check_runs("to-hf", "to-hf m.bin tok hf")) return;
    char want[32];
    snprintf(want, sizeof want, "[%d,%d]", c.V, c.C);
    float *w = hf_tensor("transformer.wte.weight", want);
    check(w && memcmp(w, p.wte, 4 * (size_t)(c.V * c.C)) == 0, "to-hf: wte without its padding");
    free(w);
    w = hf_tensor("transformer.h.1.attn.c_attn.weight", "[8,24]");
    int same = w != NULL;
    for (int o = 0; same && o < 24; o++)
        for (int i = 0; i < 8; i++) same = same && w[i * 24 + o] == p.qkvw[24 * 8 + o * 8 + i];
    check(same, "to-hf: the second block's c_attn is ours transposed");
    free(w);
    w = hf_tensor("transformer.h.0.mlp.c_proj.bias", "[8]");
    check(w && memcmp(w, p.fcprojb, 32) == 0, "to-hf: the first block's mlp.c_proj.bias");
    free(w);
    char *text = get("hf/config.json", NULL);
    check(strstr(text, "\"vocab_size\": 300") && strstr(text, "\"eos_token_id\": 299") &&
          strstr(text, "\"n_positions\": 12") && strstr(text, "\"n_head\": 2"), "to-hf: config.json");
    free(text);
    text = get("hf/vocab.json", NULL); // byte 0 is U+0100, a space U+0120, byte 173 U+0143
    check(strstr(text, "\"\xC4\x80\": 0,") && strstr(text, "\"\xC4\xA0\": 32,") &&
          strstr(text, "\"\xC5\x83\": 173,") && strstr(text, "\"\\\"\": 34,") &&
          strstr(text, "\"<|endoftext|>\": 299}"),
          "to-hf: vocab.json in GPT-2's byte alphabet");
    free(text);
    text = get("hf/merges.txt", NULL);
    int lines = 0;
    for (char *s = text; *s; s++) lines += *s == '\n';
    check(lines == 300 - 256 && strncmp(text, "#version", 8) == 0, "to-hf: merges.txt has %d lines", lines);
    free(text);
    check_runs("from-hf", "from-hf hf back");
    check(same_files("m.bin", "back.model.bin"), "to-hf -> from-hf: the same model, to the bit");
    check(same_files("tok", "back.tokenizer.bin"), "to-hf -> from-hf: the same tokenizer, to the bit");
    free(flat);
}

static void test_no_eot(void) {
    Config c = shape();
    c.V--;
    free(make_model(c, "m2.bin"));
    check_runs("no end-of-text: to-hf", "to-hf m2.bin no_eot hf2");
    check_runs("no end-of-text: from-hf", "from-hf hf2 back2");
    check(same_files("m2.bin", "back2.model.bin") && same_files("no_eot", "back2.tokenizer.bin"),
          "no end-of-text: the same model and tokenizer");
}

// ----------------------------------------------------------------------------
// Hugging Face: what others write

// GPT-2's tensors as Hugging Face lays them out; X(name, rows, columns): a matrix, 0 rows: a vector.
#define HF_BLOCK(X)                                                                                          \
    X("ln_1.weight", 0, C) X("ln_1.bias", 0, C) X("attn.c_attn.weight", C, 3 * C)                            \
    X("attn.c_attn.bias", 0, 3 * C) X("attn.c_proj.weight", C, C) X("attn.c_proj.bias", 0, C)                \
    X("ln_2.weight", 0, C) X("ln_2.bias", 0, C) X("mlp.c_fc.weight", C, 4 * C) X("mlp.c_fc.bias", 0, 4 * C)  \
    X("mlp.c_proj.weight", 4 * C, C) X("mlp.c_proj.bias", 0, C)

typedef struct { char header[16384]; size_t n, at; const char *dtype; int size; } Writer;

static void writer_add(Writer *w, const char *name, int rows, int cols) {
    size_t bytes = (size_t)(rows ? rows : 1) * (size_t)cols * (size_t)w->size;
    w->n += (size_t)sprintf(w->header + w->n, "%s\"%s\": {\"shape\": [", w->n > 1 ? ", " : "", name);
    if (rows) w->n += (size_t)sprintf(w->header + w->n, "%d, ", rows);
    w->n += (size_t)sprintf(w->header + w->n, "%d], \"dtype\": \"%s\", \"data_offsets\": [%zu, %zu]}", cols,
                            w->dtype, w->at, w->at + bytes);
    w->at += bytes;
}

// Element i of the data: small numbers that every type holds exactly, after the corner cases of its own.
static float number(size_t i, const char *dtype) {
    static const float
        f32[] = {0x1.fffffep127f, -0x1.fffffep-126f, 0x1p-149f, -0x1.fffffcp-127f, -0.0f},
        f16[] = {65504, -0x1.ffcp-14f, 0x1p-24f, -0x3ffp-24f, -0.0f},
        bf16[] = {0x1.fep127f, -0x1.fep-126f, 0x1p-133f, -0x7fp-133f, -0.0f};
    if (i < 5) return dtype[0] == 'B' ? bf16[i] : dtype[1] == '1' ? f16[i] : f32[i];
    return (float)((int)(i * 37 % 255) - 127) / 64.0f;
}

static uint16_t half_bits(float f) { // float16 of a number that it holds exactly
    int e;
    float m = frexpf(fabsf(f), &e); // f = m * 2^e, m in [0.5, 1)
    int sign = signbit(f) ? 1 << 15 : 0;
    if (m == 0) return (uint16_t)sign;
    if (e < -13) return (uint16_t)(sign | (int)ldexpf(fabsf(f), 24));
    return (uint16_t)(sign | (e + 14) << 10 | ((int)ldexpf(m, 11) - 1024));
}

static void out_f16(Out *out, float f) {
    uint16_t h = half_bits(f);
    out_write(out, &h, 2);
}

enum Head { NO_HEAD, TIED, UNTIED }; // lm_head.weight: not there, wte's numbers, others

// As on the hub: names without "transformer.", and each block with its causal mask.
static void write_hub(const char *file, Config c, const char *dtype, int size, enum Head head) {
    static Writer w;
    int C = c.C;
    memset(&w, 0, sizeof w);
    w.dtype = dtype, w.size = size, w.header[w.n++] = '{';
    writer_add(&w, "wte.weight", c.V, C);
    writer_add(&w, "wpe.weight", c.T, C);
    for (int l = 0; l < c.L; l++) {
        char name[64];
#define X(s, rows, cols) snprintf(name, sizeof name, "h.%d.%s", l, s); writer_add(&w, name, rows, cols);
        HF_BLOCK(X)
#undef X
        snprintf(name, sizeof name, "h.%d.attn.bias", l);
        writer_add(&w, name, c.T, c.T);
        snprintf(name, sizeof name, "h.%d.attn.masked_bias", l);
        writer_add(&w, name, 0, 1);
    }
    writer_add(&w, "ln_f.weight", 0, C);
    writer_add(&w, "ln_f.bias", 0, C);
    size_t first = w.at / (size_t)size; // element of lm_head.weight
    if (head != NO_HEAD) writer_add(&w, "lm_head.weight", c.V, C);
    w.header[w.n++] = '}';
    Out out = out_open(at(file));
    uint64_t n = w.n;
    out_write(&out, &n, 8);
    out_write(&out, w.header, w.n);
    for (size_t i = 0; i < w.at / (size_t)size; i++) {
        float f = number(head == TIED && i >= first ? i - first : i, dtype);
        const char *bytes = (const char *)&f;
        if (size == 4) out_write(&out, &f, 4);
        else if (dtype[0] == 'B') out_write(&out, bytes + 2, 2); // the upper half
        else out_f16(&out, f);
    }
    out_close(&out);
}

// Does our tensor (rows, cols) at `ours` hold their elements from *i on, transposed? Moves *i past them.
static int same_tensor(const float *ours, int rows, int cols, int transposed, size_t *i, const char *dtype) {
    int same = 1;
    for (int a = 0; a < (transposed ? cols : rows); a++)
        for (int b = 0; b < (transposed ? rows : cols); b++, ++*i) {
            float f = number(*i, dtype), g = transposed ? ours[b * cols + a] : ours[a * cols + b];
            same = same && memcmp(&f, &g, 4) == 0;
        }
    return same;
}

static int same_model(const char *file, const char *dtype) {
    Config c, want = shape();
    float *flat = checkpoint_read(at(file), &c);
    Params p = gpt2_params(c, flat);
    size_t i = 0;
    int C = c.C, same = memcmp(&c, &want, sizeof c) == 0;
    same = same && same_tensor(p.wte, c.V, C, 0, &i, dtype);
    for (int k = c.V * C; k < c.Vp * C; k++) same = same && p.wte[k] == 0;
    same = same && same_tensor(p.wpe, c.T, C, 0, &i, dtype);
    for (int l = 0; same && l < c.L; l++) {
#define IS(tensor, rows, cols, transposed) \
        same = same && same_tensor(tensor + l * (rows) * (cols), rows, cols, transposed, &i, dtype);
        IS(p.ln1w, 1, C, 0) IS(p.ln1b, 1, C, 0) IS(p.qkvw, 3 * C, C, 1) IS(p.qkvb, 1, 3 * C, 0)
        IS(p.attprojw, C, C, 1) IS(p.attprojb, 1, C, 0) IS(p.ln2w, 1, C, 0) IS(p.ln2b, 1, C, 0)
        IS(p.fcw, 4 * C, C, 1) IS(p.fcb, 1, 4 * C, 0) IS(p.fcprojw, C, 4 * C, 1) IS(p.fcprojb, 1, C, 0)
#undef IS
        i += (size_t)(c.T * c.T) + 1; // the masks
    }
    same = same && same_tensor(p.lnfw, 1, C, 0, &i, dtype) && same_tensor(p.lnfb, 1, C, 0, &i, dtype);
    free(flat);
    return same;
}

static void test_hub(void) {
    static const struct { const char *dtype; int size; } type[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}};
    for (int i = 0; i < 3; i++) {
        write_hub("hf/model.safetensors", shape(), type[i].dtype, type[i].size, NO_HEAD);
        if (check_runs(type[i].dtype, "from-hf hf hub"))
            check(same_model("hub.model.bin", type[i].dtype), "%s, no prefix, with masks: every element",
                  type[i].dtype);
    }
    write_hub("hf/model.safetensors", shape(), "F32", 4, TIED);
    check_runs("tied lm_head.weight", "from-hf hf hub");
    check(same_model("hub.model.bin", "F32"), "tied lm_head.weight: left out");
    write_hub("hf/model.safetensors", shape(), "F32", 4, UNTIED);
    check_fails("untied lm_head.weight", "from-hf hf out", 1, "lm_head.weight differs from wte.weight");
    write_hub("hf/model.safetensors", shape(), "F32", 4, NO_HEAD);
    edit("hf/model.safetensors", "h.1.attn.masked_bias", "h.1.attn.casked_bias");
    check_fails("an unknown tensor", "from-hf hf out", 1, "'h.1.attn.casked_bias' is none of a GPT-2");
}

// ----------------------------------------------------------------------------
// Hugging Face: what is refused

// Makes hf anew, edits one of its files, and expects from-hf to refuse it.
static void refused(const char *what, const char *name, const char *from, const char *to, const char *text) {
    if (run("to-hf m.bin tok hf")) die("test: to-hf failed");
    edit(name, from, to);
    check_fails(what, "from-hf hf out", 1, text);
}

static void test_bad_models(void) {
    const char *st = "hf/model.safetensors", *config = "hf/config.json";
    refused("a tensor is missing", st, "h.1.mlp.c_fc.bias", "h.1.mlp.x_fc.bias", "no tensor 'h.1.mlp.c_fc.");
    refused("a wrong shape", st, ":[12,8]", ":[8,12]", "wpe.weight: shape [8,12], expected [12,8]");
    refused("a tensor that begins within another", st, "[9600,9984]", "[9596,9984]",
            "its tensors follow one another for 9600 bytes");
    refused("a tensor of another's data", st, "[0,9600]", "[9600,9600]", "its tensors follow one another for 0 bytes");
    refused("three offsets", st, "[9600,9984]", "[9600,9984,9984]",
            "wpe.weight: data_offsets are not where it begins and where it ends");
    refused("a type of another size", st, "\"dtype\":\"F32\"", "\"dtype\":\"F16\"",
            "data_offsets are not 2400 elements of 2");
    refused("a wrong type", st, "\"dtype\":\"F32\"", "\"dtype\":\"I32\"", "dtype 'I32', expected F32");
    refused("tensors too many", config, "\"n_layer\": 2", "\"n_layer\": 1", "'transformer.h.1.");
    refused("tensors too few", config, "\"n_layer\": 2", "\"n_layer\": 3", "no tensor 'h.2.ln_1.weight'");
    refused("no vocab_size", config, "vocab_size", "vocab", "no \"vocab_size\"");
    refused("another activation", config, "gelu_new", "relu", "'relu', expected 'gelu_new'");
    refused("the activation with erf", config, "gelu_new", "gelu", "'gelu', expected 'gelu_new'");
    refused("another epsilon", config, "1e-05", "1e-06", "expected 1e-05");
    refused("another width", config, "\"n_inner\": null", "\"n_inner\": 16", "n_inner");
    refused("untied", config, "embeddings\": true", "embeddings\": false", "tie_word_embeddings");
    refused("scores not scaled", config, "attn_weights\": true", "attn_weights\": false", "scale_attn_weights");
    refused("cross-attention", config, "\"n_inner\"", "\"add_cross_attention\": true, \"n_inner\"",
            "\"add_cross_attention\" is not false");
    refused("scores scaled by layer", config, "\"n_inner\"", "\"scale_attn_by_inverse_layer_idx\": true, \"n_inner\"",
            "\"scale_attn_by_inverse_layer_idx\" is not false");
    refused("scores scaled by layer, as a number", config, "\"n_inner\"",
            "\"scale_attn_by_inverse_layer_idx\": 1, \"n_inner\"", "\"scale_attn_by_inverse_layer_idx\" is not false");
    refused("a setting twice", config, "\"n_inner\"", "\"n_head\": 1, \"n_inner\"", "\"n_head\" is there twice");
    refused("another model", config, "\"gpt2\"", "\"bert\"", "'bert'");
    refused("heads do not divide C", config, "\"n_head\": 2", "\"n_head\": 3", "heads");
    refused("config.json is no JSON", config, "{", "[", "config.json");
}

static void test_bad_weights(void) {
    const char *st = "hf/model.safetensors";
    size_t n;
    float nan_value = NAN;
    if (run("to-hf m.bin tok hf")) die("test: to-hf failed");
    char *s = get(st, &n);
    put(st, s, n - 4);
    check_fails("weights cut short", "from-hf hf out", 1, "its tensors follow one another for ");
    char *longer = (char *)xalloc(n + 4, 1);
    memcpy(longer, s, n);
    put(st, longer, n + 4);
    free(longer);
    check_fails("data after the last tensor", "from-hf hf out", 1, "its tensors follow one another for ");
    put(st, s, 100);
    check_fails("header cut short", "from-hf hf out", 1, "is it a safetensors file");
    put(st, s, 3);
    check_fails("no header", "from-hf hf out", 1, "truncated");
    memcpy(s + n - 4, &nan_value, 4);
    put(st, s, n);
    check_fails("weights with a NaN", "from-hf hf out", 1, "transformer.ln_f.bias: element 7 is nan");
    put("hf/config.json", "{}\0{}", 5);
    check_fails("a zero byte in config.json", "from-hf hf out", 1, "config.json: a zero byte at 3");
    if (run("to-hf m.bin tok hf")) die("test: to-hf failed");
    unlink(at(st));
    check_fails("no weights", "from-hf hf out", 1, "safe_serialization");
    free(s);
    check_fails("no directory", "from-hf none out", 1, "none/config.json");
}

// Swaps two neighbours: the n1 bytes at a and the n2 bytes after them.
static void swap_halves(char *a, size_t n1, size_t n2) {
    char *copy = (char *)xalloc(n1 + n2, 1);
    memcpy(copy, a, n1 + n2);
    memcpy(a, copy + n1, n2);
    memcpy(a + n2, copy, n1);
    free(copy);
}

// Expects from-hf to refuse a directory with this change to its merges.txt.
static void refused_merges(const char *what, int change, const char *text) {
    if (run("to-hf m.bin tok hf")) die("test: to-hf failed");
    char *s = get("hf/merges.txt", NULL), *line = strchr(s, '\n') + 1, *next = strchr(line, '\n') + 1;
    size_t n = (size_t)(next - line);
    char *space = strchr(line, ' ');
    Out out = out_open(at("hf/merges.txt"));
    switch (change) {
        case 's': swap_halves(line, n, strcspn(next, "\n") + 1); break;       // the first two
        case 'd': memmove(line, next, strlen(next) + 1); break;               // without the first
        case 'l': *strrchr(s, '\n') = 0, strrchr(s, '\n')[1] = 0; break;      // without the last
        case '2': out_write(&out, s, (size_t)(next - s)); break;              // the first twice
        case 'p': // another pair for the same token: a space one letter to the left
            while (space && (space[-2] == '\n' || space[-1] < 'a' || space[-1] > 'z'))
                space = strchr(space + 1, ' ');
            if (!space) die("test: no merge to change");
            swap_halves(space - 1, 1, 1);
    }
    const char *rest = change == '2' ? line : s;
    out_write(&out, rest, strlen(rest));
    out_close(&out);
    free(s);
    check_fails(what, "from-hf hf out", 1, text);
}

static void test_bad_vocabularies(void) {
    refused("an added token", "hf/vocab.json", "299}", "299, \"[PAD]\": 300}",
            "301 tokens, but config.json's vocab_size is 300");
    refused("an id twice", "hf/vocab.json", "\"!\": 33,", "\"!\": 34,", "'!' and '\"' both have id 34");
    refused("an id too high", "hf/vocab.json", "\"!\": 33,", "\"!\": 300,", "the id of '!'");
    refused("an id that is text", "hf/vocab.json", "\"!\": 33,", "\"!\": \"33\",", "the id of '!'");
    refused("no byte's letter", "hf/vocab.json", "\"!\": 33,", "\"\xE2\x96\x81\": 33,", "token 33");
    refused("a token with \\u and no digits", "hf/vocab.json", "\"!\": 33,", "\"!\\uZZZZ\": 33,",
            "the escape '\\uZZZZ'");
    refused("a merge of no token", "hf/merges.txt", "\n", "\nz z\n", "merges.txt:2: 'z z' makes no token");
    refused("a version among the merges", "hf/merges.txt", "\n", "\n#version: 0.2\n",
            "merges.txt:2: '#version: 0.2' makes no token");
    refused("a merge of one part", "hf/merges.txt", "\n", "\nzz\n", "merges.txt:2: 'zz', expected two");
    refused_merges("merges out of order", 's', "merges.txt:2: makes token 257 before there was a merge");
    refused_merges("another pair", 'p', "comes to another pair");
    refused_merges("a merge less", 'd', "merges.txt:2: makes token 257 before there was a merge for 256");
    refused_merges("the last merge less", 'l', "no merge makes token 298");
    refused_merges("a merge twice", '2', "merges.txt:3: makes token 256 a second time");
}

// merges.txt as an editor on Windows leaves it.
static void test_carriage_returns(void) {
    if (run("to-hf m.bin tok hf")) die("test: to-hf failed");
    char *s = get("hf/merges.txt", NULL);
    Out out = out_open(at("hf/merges.txt"));
    for (char *c = s; *c; c++) out_printf(&out, *c == '\n' ? "\r\n" : "%c", *c);
    out_close(&out);
    free(s);
    check_runs("lines that end in \\r\\n", "from-hf hf back");
    check(same_files("tok", "back.tokenizer.bin"), "lines that end in \\r\\n: the same tokenizer");
}

static void test_to_hf_refuses(void) {
    Config c = shape();
    c.reward = 1;
    free(make_model(c, "reward.bin"));
    check_fails("a reward model", "to-hf reward.bin tok out", 1, "reward model");
    check_fails("another vocabulary", "to-hf m.bin no_eot out", 1, "299 tokens, but the vocabulary of m.bin");
    check_fails("a tokenizer as model", "to-hf tok tok out", 1, "magic number");
    static const struct { const char *what, *token, *eot, *text; } bad[] = {
        {"a token of three pieces", "abc", "<|endoftext|>", "token 256 ('abc') comes to 3 pieces"},
        {"a token twice", "a", "<|endoftext|>", "tokens 97 and 256 have the same bytes"},
        {"end-of-text that is a token", "<|endoftext|>", "<|endoftext|>", "token 256 spells end-of-text"},
        {"another end-of-text", "ab", "<eos>", "end-of-text, token 257, is '<eos>', expected <|endoftext|>"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Tokenizer t = tokenizer_make(258, 600);
        for (int b = 0; b < 256; b++) tokenizer_add(&t, (const char[]){(char)b}, 1, 0);
        tokenizer_add(&t, bad[i].token, strlen(bad[i].token), 0);
        tokenizer_add(&t, bad[i].eot, strlen(bad[i].eot), 1);
        tokenizer_write(at("bad"), &t);
        tokenizer_free(&t);
        c = shape();
        c.V = 258;
        free(make_model(c, "m258.bin"));
        check_fails(bad[i].what, "to-hf m258.bin bad out", 1, bad[i].text);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) convert = argv[1];
    if (!check(access(convert, X_OK) == 0, "%s can be run; if not: make dev/convert", convert))
        return test_summary();
    if (!mkdtemp(dir)) die("%s: %s", dir, strerror(errno));
    make_tokenizers();
    test_ranked();
    test_round_trip();
    test_missing();
    test_scores();
    test_cuts();
    test_lost();
    test_long_line();
    test_bad_lines();
    test_bad_tokenizers();
    test_usage();
    test_to_hf();
    test_no_eot();
    test_hub();
    test_bad_models();
    test_bad_weights();
    test_bad_vocabularies();
    test_carriage_returns();
    test_to_hf_refuses();
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (!failed && system(command)) fprintf(stderr, "note: %s is left\n", dir);
    return test_summary();
}
