/*
test_eval.c: eval's figures by hand, and the demo's data. The cases are small enough to be worked out in the comment
beside them; a wrong sign, a wrong weight or a wrong standard error gives other numbers.

  cc -std=c11 -O2 -fopenmp-simd -DNO_MAIN test/test_eval.c -o test/test_eval -lm && test/test_eval
*/
#include "../train_rrhf.c" // defines: figure_mean, eval_row, story_data, ...
#include "test.h"          // defines: check, test_summary

static const double LN2 = 0.69314718055994530942;

static void check_figure(const char *what, Figure f, double mean, double err, int n) {
    int close = fabs(f.mean - mean) <= 1e-12 * (1 + fabs(mean)) && fabs(f.err - err) <= 1e-12 * (1 + err);
    check(close && f.n == n, "%s: %.9g +- %.9g over %d, by hand %.9g +- %.9g over %d", what, f.mean, f.err, f.n,
          mean, err, n);
}

// Queries of one token with responses of these lengths; k[q] of them belong to query q. Tokens count up from 1.
static Ranked responses(int queries, const int *k, const int *len, const float *score) {
    Ranked d = {0};
    d.V = 100;
    for (int q = 0, r = 0; q < queries; q++) {
        uint16_t y[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        ranked_query(&d, y, 1);
        for (int i = 0; i < k[q]; i++, r++) ranked_response(&d, y, len[r], score[r], 0);
    }
    return d;
}

// ----------------------------------------------------------------------------
// The figures

static void test_means(void) {
    static const double x[3] = {1, 2, 6}, a[3] = {1, 3, 2}, b[3] = {2, 2, 4}, one[3] = {1, 1, 1}, none[3] = {0, 0, 0};
    // mean 3, deviations -2 -1 3: variance 14 / (3 - 1) = 7, of the mean 7 / 3
    check_figure("mean of 1 2 6", figure_mean(x, 3), 3, sqrt(7.0 / 3), 3);
    check_figure("mean of one number", figure_mean(x, 1), 1, 0, 1);
    // 6 / 8; residuals a - 3/4 b: -1/2 3/2 -1, their squares 7/2; sqrt(7/2 * 3/2) / 8
    check_figure("ratio 1 3 2 : 2 2 4", figure_ratio(a, b, 3), 0.75, sqrt(5.25) / 8, 3);
    check_figure("ratio with all denominators 1 is the mean", figure_ratio(x, one, 3), 3, sqrt(7.0 / 3), 3);
    check_figure("ratio with nothing below", figure_ratio(x, none, 3), 0, 0, 3);
    check_figure("ratio of one query", figure_ratio(a, b, 1), 0.5, 0, 1);
}

// Query 0 has two responses, query 1 three: means over queries differ from means over responses.
static const int two_three[2] = {2, 3}, lengths[5] = {1, 3, 2, 4, 3};
static const float scores[5] = {1, 3, 4, 2, 9};

static void test_row(void) {
    static const double pi[5] = {-1, -2, -1, -1, -1}, rho[5] = {-3, -4.5, -1.5, -0.5, -4};
    static const double judge[5] = {-3, -9, -3, -4, -5};
    Ranked d = responses(2, two_three, lengths, scores);
    double logp[5];
    for (int r = 0; r < 5; r++) logp[r] = judge[r] * LN2;
    EvalRow row = eval_row("some", &d, logp, pi, rho, 0, 9, 1);
    check(!strcmp(row.name, "some"), "row: its name is %s", row.name);
    check_figure("reward", row.figure[REWARD], 3.5, 1.5, 2);    // (1 + 3) / 2 = 2 and (4 + 2 + 9) / 3 = 5
    check_figure("mean length", row.figure[TOKENS], 2.5, 0.5, 2); // (1 + 3) / 2 = 2 and (2 + 4 + 3) / 3 = 3
    // pi - rho: 2 2.5 | 0.5 -0.5 3, so 2.25 and 1: the policy finds its own completions likelier than the start does
    check_figure("KL", row.figure[KL], 1.625, 0.625, 2);
    // bits per query: (3 + 9) / 2 = 6 on 2 tokens, (3 + 4 + 5) / 3 = 4 on 3: 10 / 5 = 2 bits a token, 2^2;
    // residuals 6 - 2 * 2, 4 - 2 * 3: sqrt((4 + 4) * 2/1) / 5 = 0.8 bits, and d 2^x = 2^x ln 2 dx
    check_figure("perplexity", row.figure[PERPLEXITY], 4, 4 * 0.8 * LN2, 2);
    row = eval_row("", &d, logp, pi, NULL, 2, 0, 1);
    check(!strcmp(row.name, "best-of-2") && row.figure[KL].n == 0 && row.figure[DISTINCT_1].n == 0,
          "row: %s has no KL and no distinct-n", row.name);
    // the better of two: of query 0 it is 3; of query 1's three pairs 4 2, 4 9, 2 9 it is 4, 9, 9
    check_figure("reward, best of 2", row.figure[REWARD], (3 + 22.0 / 3) / 2, (22.0 / 3 - 3) / 2, 2);
    // lengths: of query 0 3; of query 1 one third 2 (score 4), two thirds 3 (score 9)
    check_figure("mean length, best of 2", row.figure[TOKENS], (3 + 8.0 / 3) / 2, (3 - 8.0 / 3) / 2, 2);
    // bits and tokens: 9 on 3; (3 + 2 * 5) / 3 = 13/3 on 8/3: the ratio m = (40/3) / (17/3) = 40/17
    double m = 40.0 / 17, e0 = 9 - m * 3, e1 = 13.0 / 3 - m * 8 / 3, bits = sqrt((e0 * e0 + e1 * e1) * 2) / (17.0 / 3);
    check_figure("perplexity, best of 2", row.figure[PERPLEXITY], pow(2, m), pow(2, m) * LN2 * bits, 2);
    ranked_free(&d);
}

static void test_accuracy(void) {
    static const int k[3] = {3, 2, 2}, len[7] = {1, 1, 1, 1, 1, 1, 1};
    static const float r[7] = {1, 2, 3, 0, 1, 5, 5};
    static const double p[7] = {-1, -3, -2, -4, -4, -1, -2};
    double turned[7];
    Ranked d = responses(3, k, len, r);
    // query 0: of its pairs 1 < 2, 1 < 3, 2 < 3 p orders the last alone rightly; 1: a tie of p, half; 2: no pair.
    // 1.5 / 4; residuals 1 - 3 * 3/8 and 1/2 - 3/8 are -1/8 and 1/8: sqrt(2/64 * 2/1) / 4
    check_figure("accuracy of p_i", eval_accuracy(&d, d.score, p), 0.375, 0.0625, 2);
    for (int i = 0; i < 7; i++) turned[i] = -p[i];
    check_figure("accuracy of -p_i", eval_accuracy(&d, d.score, turned), 0.625, 0.0625, 2);
    ranked_free(&d);
}

static void test_distinct(void) {
    static const uint16_t y[4][3] = {{1, 2, 1}, {1, 2, 0}, {3, 0, 0}, {2, 1, 0}};
    static const int len[4] = {3, 2, 1, 2};
    Ranked d = {0};
    for (int r = 0; r < 4; r++) {
        if (r % 2 == 0) ranked_query(&d, y[0], 1);
        ranked_response(&d, y[r], len[r], 0, 0);
    }
    // 1 2 1 | 1 2 || 3 | 2 1: tokens 1 2 3 of eight; pairs 12 21 | 12 || 21, none of them across responses
    // without query 0: 3 of 3, 1 of 1; without query 1: 2 of 5 (the 3 goes), 2 of 3. Q = 2: half their difference
    check_figure("distinct-1", eval_distinct(&d, 1, 2), 3.0 / 8, (1 - 2.0 / 5) / 2, 2);
    check_figure("distinct-2", eval_distinct(&d, 2, 2), 2.0 / 4, (1 - 2.0 / 3) / 2, 2);
    // each query's first, 1 2 1 || 3: without query 0 1 of 1, and no pair; without query 1 2 of 3, 2 of 2
    check_figure("distinct-1 of one response per query", eval_distinct(&d, 1, 1), 3.0 / 4, (1 - 2.0 / 3) / 2, 2);
    check_figure("distinct-2 of one response per query", eval_distinct(&d, 2, 1), 1, (1 - 0.0) / 2, 2);
    d.resp_len[0] = d.resp_len[1] = d.resp_len[3] = 1;
    check_figure("distinct-2 of single tokens", eval_distinct(&d, 2, 2), 0, 0, 2);
    // a third query: 1 || 1 || 2, whose figures without one of them are 2/2, 2/2, 1/2, the mean 5/6:
    // 2/3 (1/36 + 1/36 + 4/36) = 1/9
    static const uint16_t z[3] = {1, 1, 2};
    Ranked e = {0};
    for (int q = 0; q < 3; q++) ranked_query(&e, z, 1), ranked_response(&e, z + q, 1, 0, 0);
    check_figure("distinct-1 of three queries", eval_distinct(&e, 1, 1), 2.0 / 3, 1.0 / 3, 3);
    ranked_free(&e);
    ranked_free(&d);
}

// ----------------------------------------------------------------------------
// The demo's data

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Ends like a sentence, has its capitals and its articles, and no rule left in it.
static int well_formed(const char *s) {
    size_t n = strlen(s);
    int words = 1, ok = n > 1 && s[0] >= 'A' && s[0] <= 'Z' && strchr(".!", s[n - 1]);
    for (size_t i = 0; i < n; i++) {
        words += s[i] == ' ';
        if (s[i] < 32 || s[i] > 126 || strchr("$|", s[i])) ok = 0;
        if (i + 2 < n && strchr(".!", s[i]) && (s[i + 1] != ' ' || s[i + 2] < 'A' || s[i + 2] > 'Z')) ok = 0;
    }
    for (const char *a = s; (a = strstr(a, " a ")); a++) if (strchr("aeiou", a[3])) ok = 0;
    return ok && !strstr(s, "  ") && words >= 25 && words <= 120;
}

static int says(const char *s, const char *const *list, int n) { // how many of them
    int said = 0;
    for (int i = 0; i < n; i++) said += strstr(s, list[i]) != NULL;
    return said;
}

// What counting words cannot tell: $! turns the sentiment round, a hero keeps name and sex, and no remark comes twice.
// Each fault, beside how often there was occasion for it.
typedef struct { int turned, verdicts, other, heroes, twice, remarks; } Faults;

static void review_faults(const char *s, int kind, Faults *f) {
    static const char *const traits[2][8] = {
        {"dull", "predictable", "forced", "clumsy", "boring", "flat", "tiresome", "careless"},
        {"convincing", "original", "moving", "exciting", "surprising", "interesting", "memorable", "clever"}};
    static const char *const sexes[2][6] = {
        {" sheriff", " gambler", " uncle", " small boy", " sailor", " captain"},
        {" widow", " bride", " nurse", " aunt", " little girl", " ship doctor"}};
    static const char *const words[2][2] = {{"actor who", " he says"}, {"actress who", " she says"}};
    static const char *const remarks[] = {"runs for about two hours", "shot in winter", "sat near the front",
                                          "theater was half full", "a small part for a dog"};
    const char *verdict = strstr(s, "All in all, it is never "); // dull, where the review is kind
    for (int i = 0; verdict && i < 16; i++) {
        const char *trait = traits[i % 2][i / 2];
        if (strncmp(verdict + 24, trait, strlen(trait))) continue;
        f->verdicts++;
        f->turned += i % 2 == kind;
    }
    for (int sex = 0; sex < 2; sex++) {
        if (!says(s, sexes[sex], 6)) continue;
        f->heroes += says(s, words[sex], 2) > 0;
        f->other += says(s, sexes[sex], 6) > 1 || says(s, sexes[!sex], 6) || says(s, words[!sex], 2);
    }
    for (int i = 0; i < 5; i++) {
        const char *first = strstr(s, remarks[i]);
        f->remarks += first != NULL;
        f->twice += first && strstr(first + 1, remarks[i]);
    }
}

static void test_reviews(void) {
    static const char *const kind[] = {"wonderful", "brilliant", "superb", "I would see it again", "do not miss it"};
    static const char *const unkind[] = {"terrible", "awful", "dreadful", "I would not see it again", "do not see it"};
    enum { ALL = STORY_TRAIN + STORY_HELD + 100 };
    char **text = (char **)xalloc(ALL, sizeof *text);
    Review r = {NULL, 0, 0};
    int good = 0, same = 0, said[2][2] = {{0, 0}, {0, 0}};
    Faults f = {0, 0, 0, 0, 0, 0};
    for (int i = 0; i < ALL; i++) {
        story_review(i, &r);
        text[i] = strdup(r.text);
        good += strlen(r.text) == r.len && well_formed(r.text);
        said[i & 1][0] += says(r.text, unkind, 5), said[i & 1][1] += says(r.text, kind, 5);
        review_faults(r.text, i & 1, &f);
    }
    check(good == ALL, "demo: %d of %d reviews are well formed", good, ALL);
    check(said[1][1] > 2 * said[1][0] && said[0][0] > 2 * said[0][1],
          "demo: kind words %d times in kind reviews, %d in unkind ones; unkind words %d and %d",
          said[1][1], said[0][1], said[1][0], said[0][0]);
    check(!f.turned && f.verdicts > 100, "demo: %d of %d verdicts 'never ...' say the opposite", f.turned, f.verdicts);
    check(!f.other && f.heroes > 100, "demo: %d heroes become others, %d agree with their pronoun or actor", f.other,
          f.heroes);
    check(!f.twice && f.remarks > 1000, "demo: %d of %d remarks come twice in their review", f.twice, f.remarks);
    story_review(7, &r);
    check(!strcmp(r.text, text[7]), "demo: the same review again");
    qsort(text, ALL, sizeof *text, compare_text);
    for (int i = 1; i < ALL; i++) same += !strcmp(text[i - 1], text[i]);
    check(same == 0, "demo: %d of %d reviews occur twice: none held out has been trained on", same, ALL);
    for (int i = 0; i < ALL; i++) free(text[i]);
    free(text);
    free(r.text);
}

static int all_are(const int *x, int n, int want) {
    for (int i = 0; i < n; i++) if (x[i] != want) return 0;
    return 1;
}

// The files that the demo makes of the first reviews and of those that are held out.
static void test_data(void) {
    enum { SOME = 300 };
    static char dir[] = "/tmp/rrhf_eval_XXXXXX";
    static const char *const names[6] = {"tokenizer.bin", "stream.bin", "labels_train.bin", "queries_train.bin",
                                         "labels_held.bin", "queries_held.bin"};
    char path[6][RRHF_PATH_MAX];
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    for (int i = 0; i < 6; i++) path_join(path[i], dir, names[i]);
    story_tokenizer(path[0]);
    Tokenizer t = tokenizer_read(path[0]);
    check(t.V == STORY_VOCABULARY && t.eot >= 0, "demo: a vocabulary of %d with end-of-text", t.V);
    story_data(&t, dir, "train", 0, SOME, 64);
    story_data(&t, dir, "held", STORY_TRAIN, STORY_HELD + 100, STORY_HELD);
    Ranked stream = stream_read(path[1], 1 << 30), label = ranked_read(path[2]);
    Ranked query = ranked_read(path[3]), held = ranked_read(path[5]);
    int ends = 0, kind = 0, fits = 1, seen = 0;
    for (int64_t i = 0; i < stream.n_tokens; i++) ends += stream.tokens[i] == t.eot;
    check(ends == SOME && stream.tokens[stream.n_tokens - 1] == t.eot,
          "demo: a stream of %d reviews, each with its end", ends);
    for (int r = 0; r < label.R; r++) {
        kind += label.score[r] == 1;
        fits &= (label.score[r] == 1) == (r & 1) && label.resp_len[r] < STORY_SNIPPET;
    }
    check(label.Q == SOME && label.R == SOME && 2 * kind == SOME && fits && all_are(label.query_len, SOME, 1),
          "demo: %d labelled snippets, %d of them kind, none longer than the reward model will judge", label.R, kind);
    check(query.Q == 64 && query.R == 64 && all_are(query.query_len, 64, STORY_QUERY) &&
          all_are(query.resp_len, 64, STORY_RESPONSE) && all_are(query.source, 64, SOURCE_DATA),
          "demo: %d queries of %d tokens, each with its review's next %d", query.Q, STORY_QUERY, STORY_RESPONSE);
    check(held.Q == STORY_HELD && held.R == STORY_HELD, "demo: %d held-out queries out of %d reviews",
          held.Q, STORY_HELD + 100);
    for (int q = 0; q < held.Q; q++)
        for (int i = 0; i < query.Q; i++) // a query's tokens and its one response's lie side by side
            seen += !memcmp(held.tokens + held.query_at[q], query.tokens + query.query_at[i], 2 * STORY_SNIPPET);
    check(seen == 0, "demo: %d held-out snippets are among those to train on", seen);
    ranked_free(&stream);
    ranked_free(&label);
    ranked_free(&query);
    ranked_free(&held);
    tokenizer_free(&t);
    for (int i = 0; i < 6; i++) unlink(path[i]);
    rmdir(dir);
}

// Pairs of ids above 255, which must not run into each other.
static void test_distinct_large(void) {
    static const uint16_t y[3][2] = {{1, 0x203}, {3, 3}, {0x102, 0x301}};
    Ranked d = {0};
    ranked_query(&d, y[0], 1);
    for (int r = 0; r < 3; r++) ranked_response(&d, y[r], 2, 0, 0);
    check_figure("distinct-1 of large ids", eval_distinct(&d, 1, 3), 5.0 / 6, 0, 1);
    check_figure("distinct-2 of large ids", eval_distinct(&d, 2, 3), 1, 0, 1);
    ranked_free(&d);
}

// Best of n among equal scores: they stand in the order of the file.
static void test_weights(void) {
    static const uint16_t tok[1] = {1};
    Ranked d = {0};
    double w[4], e = 0;
    static const double want[4] = {0, 1 / 6.0, 2 / 6.0, 3 / 6.0}; // C(j-1, 1) / C(4, 2)
    ranked_query(&d, tok, 1);
    for (int r = 0; r < 4; r++) ranked_response(&d, tok, 1, 7, 0);
    eval_weights(&d, 2, w);
    for (int r = 0; r < 4; r++) e = fmax(e, fabs(w[r] - want[r]));
    check(e < 1e-15, "best of 2 of 4 equal scores: weights %.3f %.3f %.3f %.3f, error %.1e, tolerance 1e-15",
          w[0], w[1], w[2], w[3], e);
    ranked_free(&d);
}

int main(void) {
    test_means();
    test_row();
    test_accuracy();
    test_distinct();
    test_reviews();
    test_data();
    test_distinct_large();
    test_weights();
    return test_summary();
}
