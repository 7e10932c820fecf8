/*
imdb.c: the IMDB reviews (Maas et al. 2011) as this program's files. Called by dev/imdb.sh.

  dev/imdb ACLIMDB_DIR GPT2_TOKENIZER OUT_DIR VOCABULARY STREAM_TOKENS LABELLED QUERIES TEST_QUERIES

writes to OUT_DIR
  tokenizer.bin     the first VOCABULARY - 1 GPT-2 tokens and end-of-text
  stream.bin        STREAM_TOKENS tokens of training reviews (unlabelled ones too, where present), shuffled, joined by
                    end-of-text; the last review is whole
  labels.bin        LABELLED training reviews as k = 1 responses with score 0 (negative) or 1: of each its first and
                    its last SNIPPET tokens, the length that the reward model will judge
  labels_test.bin   the same of test reviews, at most 5,000 of them
  queries.bin       QUERIES training reviews: the first QUERY tokens, and the next RESPONSE as the data set's own
                    response
  queries_test.bin  the same of TEST_QUERIES test reviews: held out from everything above
*/
#include "../util.h"          // defines: die, In, Rng, xalloc; first, for _GNU_SOURCE
#include <dirent.h>           // defines: scandir, alphasort
#include "../dataloader.h"    // defines: Ranked, stream_write
#include "../tokenizer.h"     // defines: Tokenizer

enum { QUERY = 64, RESPONSE = 48, SNIPPET = QUERY + RESPONSE };

typedef struct { char *path; int label; } Review; // label: 1 positive, 0 negative, -1 not known
typedef struct { Review *r; int n; size_t cap; } Reviews;

static int is_text(const struct dirent *e) {
    size_t n = strlen(e->d_name);
    return n > 4 && !strcmp(e->d_name + n - 4, ".txt");
}

// Appends a folder's reviews in the order of their names; returns how many.
static int reviews_add(Reviews *all, const char *dir, const char *sub, int label) {
    char path[RRHF_PATH_MAX];
    struct dirent **e;
    int n = scandir(path_join(path, dir, sub), &e, is_text, alphasort);
    for (int i = 0; i < n; i++) {
        XGROW(all->r, all->cap, (size_t)all->n + 1);
        size_t len = strlen(path) + strlen(e[i]->d_name) + 2;
        Review *r = &all->r[all->n++];
        r->path = (char *)xalloc(len, 1);
        snprintf(r->path, len, "%s/%s", path, e[i]->d_name);
        r->label = label;
        free(e[i]);
    }
    if (n >= 0) free(e);
    return n < 0 ? 0 : n;
}

static void reviews_shuffle(Reviews *a, uint64_t index) {
    Rng r = rng_make(1337, RNG_DEMO, index);
    int *order = (int *)xalloc((size_t)a->n, sizeof *order);
    Review *was = (Review *)xalloc((size_t)a->n, sizeof *was);
    memcpy(was, a->r, (size_t)a->n * sizeof *was);
    rng_shuffle(&r, order, a->n);
    for (int i = 0; i < a->n; i++) a->r[i] = was[order[i]];
    free(order);
    free(was);
}

// A review's tokens; its HTML line breaks become one space.
static void review_tokens(Tokenizer *t, const Review *r, Tokens *out) {
    In in = in_open(r->path);
    size_t n = (size_t)in.size, m = 0;
    char *text = (char *)xalloc(n + 1, 1);
    in_read(&in, text, in.size, "the review");
    in_close(&in);
    for (size_t i = 0; i < n;) {
        if (n - i >= 6 && !memcmp(text + i, "<br />", 6)) {
            i += 6;
            if (m && text[m - 1] != ' ') text[m++] = ' ';
        } else if (text[i] == ' ' && m && text[m - 1] == ' ') i++;
        else text[m++] = text[i++];
    }
    out->n = 0;
    tokenizer_encode(t, text, m, out);
    free(text);
}

static void add_snippet(Ranked *d, const uint16_t *ids, int n, int label) {
    if (n < 2) return;
    ranked_query(d, ids, 1);
    ranked_response(d, ids + 1, n - 1, (float)label, 0);
}

// Labels and queries from the first reviews of a labelled set.
static void write_labelled(Tokenizer *t, const Reviews *a, const char *out, const char *suffix, int labelled,
                           int queries) {
    char path[RRHF_PATH_MAX], name[64];
    Ranked labels = {0}, ask = {0};
    Tokens ids = {0, 0, 0};
    labels.V = ask.V = t->V;
    Progress bar = progress_start(*suffix ? "test" : "train", 0);
    for (int i = 0; i < a->n && (i < labelled || ask.Q < queries); i++) {
        review_tokens(t, &a->r[i], &ids);
        int n = (int)ids.n;
        if (i < labelled) {
            add_snippet(&labels, ids.id, n < SNIPPET ? n : SNIPPET, a->r[i].label);
            if (n > SNIPPET) add_snippet(&labels, ids.id + n - SNIPPET, SNIPPET, a->r[i].label);
        }
        if (ask.Q < queries && n >= SNIPPET) {
            ranked_query(&ask, ids.id, QUERY);
            ranked_response(&ask, ids.id + QUERY, RESPONSE, 0, 0);
        }
        progress(&bar, i + 1, labelled > queries ? labelled : queries, "reviews");
    }
    snprintf(name, sizeof name, "labels%s.bin", suffix);
    ranked_write(path_join(path, out, name), &labels);
    snprintf(name, sizeof name, "queries%s.bin", suffix);
    ranked_write(path_join(path, out, name), &ask);
    ranked_free(&labels);
    ranked_free(&ask);
    tokens_free(&ids);
}

static void write_stream(Tokenizer *t, const Reviews *a, const char *out, size_t tokens) {
    char path[RRHF_PATH_MAX];
    Tokens ids = {0, 0, 0};
    uint16_t *stream = NULL;
    size_t n = 0, cap = 0;
    Progress bar = progress_start("stream", 0);
    for (int i = 0; i < a->n && n < tokens; i++) {
        review_tokens(t, &a->r[i], &ids);
        XGROW(stream, cap, n + ids.n + 1);
        memcpy(stream + n, ids.id, ids.n * sizeof *stream);
        n += ids.n;
        stream[n++] = (uint16_t)t->eot;
        progress(&bar, n < tokens ? (int64_t)n : (int64_t)tokens, (int64_t)tokens, "tokens");
    }
    fprintf(stderr, "\n");
    stream_write(path_join(path, out, "stream.bin"), stream, (int)n);
    tokens_free(&ids);
    free(stream);
}

static int number(const char *name, const char *value) {
    char *end;
    long v = strtol(value, &end, 10);
    if (end == value || *end || v < 1 || v > 1000000000)
        die_usage("dev/imdb: %s '%s': expected a whole number from 1 to 1e9", name, value);
    return (int)v;
}

int main(int argc, char **argv) {
    if (argc != 9)
        die_usage("usage: dev/imdb ACLIMDB_DIR GPT2_TOKENIZER OUT_DIR VOCABULARY STREAM_TOKENS LABELLED QUERIES "
                  "TEST_QUERIES");
    int vocabulary = number("VOCABULARY", argv[4]), stream = number("STREAM_TOKENS", argv[5]);
    int labelled = number("LABELLED", argv[6]);
    int queries = number("QUERIES", argv[7]), test = number("TEST_QUERIES", argv[8]);
    char path[RRHF_PATH_MAX];
    Reviews train = {0, 0, 0}, held = {0, 0, 0}, all = {0, 0, 0};
    Tokenizer full = tokenizer_read(argv[2]), t = tokenizer_truncate(&full, vocabulary);
    int n = reviews_add(&train, argv[1], "train/pos", 1), m = reviews_add(&train, argv[1], "train/neg", 0);
    int tp = reviews_add(&held, argv[1], "test/pos", 1), tn = reviews_add(&held, argv[1], "test/neg", 0);
    if (!n || !m || !tp || !tn)
        die("%s: %d, %d, %d, %d reviews in train/pos, train/neg, test/pos, test/neg; expected the folder aclImdb",
            argv[1], n, m, tp, tn);
    reviews_add(&all, argv[1], "train/pos", 1);
    reviews_add(&all, argv[1], "train/neg", 0);
    reviews_add(&all, argv[1], "train/unsup", -1);
    reviews_shuffle(&train, 1);
    reviews_shuffle(&held, 2);
    reviews_shuffle(&all, 3);
    fprintf(stderr, "imdb     %d labelled, %d test, %d training reviews in all\n", train.n, held.n, all.n);
    make_dir(argv[3]);
    tokenizer_write(path_join(path, argv[3], "tokenizer.bin"), &t);
    write_stream(&t, &all, argv[3], (size_t)stream);
    write_labelled(&t, &train, argv[3], "", labelled, queries);
    write_labelled(&t, &held, argv[3], "_test", labelled < 5000 ? labelled : 5000, test);
    return 0;
}
