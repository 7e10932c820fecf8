/*
test_sampler.c: sampler.h against transformers' beam search, against enumeration, against generation without a cache,
against exact probabilities, and against itself with other wave sizes and thread counts.

  cc -std=c11 -O2 -fopenmp-simd -DNO_MAIN test/test_sampler.c -o test/test_sampler -lm && test/test_sampler

Run from the top of the repository: test/beam_cases.bin holds the reference beams (dev/make_beam_cases.py).
*/
#include "../train_rrhf.c" // defines: sample, beam_search and what they are made of, the model
#include "test.h"          // defines: check, check_dies, test_params, test_ranked, test_summary

#define CASES "test/beam_cases.bin"

static Sampling sampling_of(int num_return, int max_new, double temperature, int top_k, double top_p, int eot) {
    Sampling s = {num_return, max_new, {temperature, top_p, top_k}, eot, 77};
    return s;
}

// One token, drawn from all V logits as gpt2_decode_draw draws it. room (top_k, or V)
static int sample_token(const float *logits, int V, Sampling s, Rng *rng, Candidate *room) {
    return draw(room, top_k_candidates(room, logits, V, draw_width(s.draw, V)), s.draw, rng_uniform(rng));
}

static Beaming beaming_of(int beams, int groups, double diversity, int num_return, int max_new, int eot) {
    Beaming b = {beams, groups, diversity, 1, num_return, max_new, eot};
    return b;
}

// A small model; large weights, so that distributions are far from uniform.
static GPT2 *small_model(int V, int T, uint64_t seed) {
    Config c = {0};
    c.T = T, c.V = V, c.Vp = V + 3, c.L = 2, c.NH = 2, c.C = 24;
    float *params = test_params(c, seed);
    for (size_t i = 0; i < gpt2_count(c); i++) params[i] *= 2;
    GPT2 *m = gpt2_build(c, params, 0);
    free(params);
    return m;
}

static Ranked small_queries(int V, int Q, int longest) {
    int *k = (int *)xalloc((size_t)Q, sizeof *k);
    for (int q = 0; q < Q; q++) k[q] = 1 + q % 3;
    Ranked d = test_ranked(5, V, Q, k, longest, 6);
    free(k);
    return d;
}

static const uint16_t *response(const Ranked *d, int r) { return d->tokens + d->resp_at[r]; }

// The number of responses that differ in tokens, score or source. A library's matrix product may round a row in another
// way among more rows; the built-in does not.
static int ranked_differ(const Ranked *a, const Ranked *b) {
    if (a->Q != b->Q || a->R != b->R) return a->R + b->R + 1;
    int n = memcmp(a->first, b->first, ((size_t)a->Q + 1) * sizeof(int)) != 0;
    double rounding = gemm_kind == GEMM_CBLAS ? 1e-5 : 0;
    for (int r = 0; r < a->R; r++)
        n += a->resp_len[r] != b->resp_len[r] || !(fabs(a->score[r] - b->score[r]) <= rounding * fabs(a->score[r])) ||
             a->source[r] != b->source[r] || memcmp(response(a, r), response(b, r), 2 * (size_t)a->resp_len[r]);
    return n;
}

// log P of each response's tokens, without a cache: sum (R).
static void forward_logp(GPT2 *m, const Ranked *d, double *sum) {
    Batch b = test_batch(d);
    real *logp = (real *)xalloc((size_t)b.P, sizeof *logp);
    gpt2_plan(m, b.N, b.U);
    gpt2_forward(m, &b, logp);
    for (int r = 0; r < b.R; r++) sum[r] = 0;
    for (int p = 0; p < b.P; p++) sum[b.resp[p]] += (double)logp[p];
    free(logp);
    batch_free(&b);
}

// The distribution of the token that follows, without a cache: logp (V). Each token is a response of its own.
static void forward_next(GPT2 *m, const uint16_t *tokens, int n, float *logp) {
    int V = gpt2_config(m).V;
    double *sum = (double *)xalloc((size_t)V, sizeof *sum);
    Ranked d = {0};
    ranked_query(&d, tokens, n);
    for (int v = 0; v < V; v++) {
        uint16_t t = (uint16_t)v;
        ranked_response(&d, &t, 1, 0, 0);
    }
    forward_logp(m, &d, sum);
    for (int v = 0; v < V; v++) logp[v] = (float)sum[v];
    ranked_free(&d);
    free(sum);
}

// ----------------------------------------------------------------------------
// Reference beams

typedef struct { int wrong, responses, ended; double error; } Tally;

// One setting: its expected responses follow in the file.
static void compare_setting(GPT2 *m, const Ranked *prompts, In *in, Tally *t) {
    Beaming b;
    float f[2], score;
    uint16_t want[64];
    b.num_beams = in_i32(in, "a setting");
    b.num_beam_groups = in_i32(in, "a setting");
    b.num_return = in_i32(in, "a setting");
    b.max_new_tokens = in_i32(in, "a setting");
    in_read(in, f, sizeof f, "a setting");
    b.diversity_penalty = f[0];
    b.length_penalty = f[1];
    b.eot = prompts->V - 1;
    Ranked got = beam_search(m, prompts, b, 0, "");
    for (int r = 0; r < prompts->Q * b.num_return; r++) {
        int n = in_i32(in, "a length");
        in_read(in, &score, 4, "a score");
        if (n < 1 || n > 64) die(CASES ": a response of %d tokens", n);
        in_read(in, want, 2 * n, "a response");
        int same = r < got.R && got.resp_len[r] == n && !memcmp(response(&got, r), want, 2 * (size_t)n);
        t->wrong += !same;
        t->ended += want[n - 1] == b.eot;
        t->responses++;
        if (same) t->error = worse(t->error, fabs(got.score[r] - score) / (1 + fabs(score)));
    }
    t->wrong += got.R != prompts->Q * b.num_return;
    ranked_free(&got);
}

static GPT2 *case_model(In *in) {
    char path[] = "/tmp/rrhf_sampler_XXXXXX";
    Config c;
    int bytes = in_i32(in, "a checkpoint's size"), f = mkstemp(path);
    void *blob = xalloc((size_t)(bytes > 0 ? bytes : 0), 1);
    in_read(in, blob, bytes, "a checkpoint");
    if (f < 0 || write(f, blob, (size_t)bytes) != bytes || close(f)) die("%s: cannot write", path);
    float *params = checkpoint_read(path, &c);
    unlink(path);
    free(blob);
    GPT2 *m = gpt2_build(c, params, 0);
    free(params);
    return m;
}

static void test_reference(void) {
    char name[128];
    uint16_t tok[64];
    In in = in_open(CASES);
    int n = in_i32(&in, "a length");
    if (n < 1 || n >= (int)sizeof name) die(CASES ": a name of %d bytes", n);
    in_read(&in, name, n, "the versions");
    name[n] = 0;
    int models = in_i32(&in, "a count");
    for (int i = 0; i < models; i++) {
        Tally t = {0, 0, 0, 0};
        GPT2 *m = case_model(&in);
        Ranked d = {0};
        d.V = gpt2_config(m).V;
        int prompts = in_i32(&in, "a count");
        for (int p = 0; p < prompts; p++) {
            int len = in_i32(&in, "a length");
            if (len < 1 || len > 64) die(CASES ": a prompt of %d tokens", len);
            in_read(&in, tok, 2 * len, "a prompt");
            ranked_query(&d, tok, len);
        }
        int settings = in_i32(&in, "a count");
        for (int s = 0; s < settings; s++) compare_setting(m, &d, &in, &t);
        check(t.wrong == 0 && t.error <= 1e-4, "%s, model %d: %d settings, %d responses (%d end), %d differ, "
              "score error %.1e, tolerance 1e-4", name, i, settings, t.responses, t.ended, t.wrong, t.error);
        ranked_free(&d);
        gpt2_free(m);
    }
    in_close(&in);
}

// ----------------------------------------------------------------------------
// Diversity by hand: P = 1/2, 3/10, 1/5 for the tokens 0, 1, 2; groups of one beam, which chooses

static void test_diversity(void) {
    static const double penalty[3] = {1, 0.3, 0.1};
    // 1: 0 at -.69; then 0 costs 1.69 and 1 at -1.20 wins; then 1 costs 2.20 and 2 at -1.61 wins against 0 at -1.69;
    //      then each has been chosen once, and the order is the first again.
    // 0.3: the second 0 is at -.99, still before 1 at -1.20; the third would be at -1.29: 1. Then 0 at -1.29 against
    //      1 at -1.50 and 2 at -1.61.
    // 0.1: the n-th 0 is at -.69 - .1 (n - 1): it wins all four.
    static const int want[3][4] = {{0, 1, 2, 0}, {0, 0, 1, 0}, {0, 0, 0, 0}};
    static const double score[3][4] = {{-0.693147, -1.203973, -1.609438, -1.693147},
                                       {-0.693147, -0.993147, -1.203973, -1.293147},
                                       {-0.693147, -0.793147, -0.893147, -0.993147}};
    float logp[3] = {logf(0.5f), logf(0.3f), logf(0.2f)};
    for (int i = 0; i < 3; i++) {
        int chosen[4], row = 0, wrong = 0;
        double error = 0;
        Continuation beam = {-2, 0, 0}; // what the beam has so far is added
        Candidate top[3];
        Continuation all[3];
        double lse = log_sum_exp(logp, 3);
        Rows rows = {top, &lse, top_k_candidates(top, logp, 3, 0)};
        for (int g = 0; g < 4; g++) {
            int n = beam_continuations(all, 2, rows, &beam, &row, 1, chosen, g, penalty[i]);
            wrong += n != 2 || all[0].token != want[i][g] || all[0].sum < all[1].sum;
            error = worse(error, fabs(all[0].sum + 2 - score[i][g]));
            chosen[g] = all[0].token;
        }
        check(!wrong && error <= 1e-5, "diversity penalty %g on three tokens: chosen %d %d %d %d, error %.1e, "
              "tolerance 1e-5", penalty[i], chosen[0], chosen[1], chosen[2], chosen[3], error);
    }
}

// beam_continuations looks at few tokens of each row: against all of them, sorted.
static void test_continuations(void) {
    enum { TRIALS = 2000, V = 17, MAX = 6 };
    Rng g = rng_make(3, RNG_DEMO, 0);
    int wrong = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        float logits[MAX * V];
        double lse[MAX];
        int row[MAX], chosen[2 * MAX], beams = 1 + rng_below(&g, MAX), n_chosen = rng_below(&g, 2 * MAX);
        int want = 2 * beams;
        double penalty = rng_uniform(&g) * 2;
        int k = want + n_chosen < V ? want + n_chosen : V;
        Candidate top[MAX * V];
        Continuation beam[MAX] = {{0}}, got[MAX * V], all[MAX * V];
        for (int i = 0; i < MAX * V; i++) logits[i] = (float)rng_normal(&g);
        for (int i = 0; i < MAX; i++) {
            top_k_candidates(top + i * k, logits + i * V, V, k);
            lse[i] = log_sum_exp(logits + i * V, V);
        }
        for (int b = 0; b < beams; b++) beam[b].sum = -3 * rng_uniform(&g), row[b] = rng_below(&g, MAX);
        for (int i = 0; i < n_chosen; i++) chosen[i] = rng_below(&g, 5);
        for (int b = 0; b < beams; b++)
            for (int v = 0; v < V; v++) {
                Continuation c = {beam[b].sum - lse[row[b]] + logits[row[b] * V + v], b, v};
                for (int i = 0; i < n_chosen; i++) c.sum -= chosen[i] == v ? penalty : 0;
                all[b * V + v] = c;
            }
        qsort(all, (size_t)(beams * V), sizeof *all, compare_continuations);
        Rows rows = {top, lse, k};
        int n = beam_continuations(got, want, rows, beam, row, beams, chosen, n_chosen, penalty);
        for (int i = 0; i < want; i++) // beams with the same row and token can tie
            wrong += n != want || (got[i].token != all[i].token && fabs(got[i].sum - all[i].sum) > 1e-12);
    }
    check(wrong == 0, "continuations against sorting them all: %d of %d searches differ", wrong, TRIALS);
}

// ----------------------------------------------------------------------------
// Enumeration: a search as wide as there are texts finds all of them, in order

// Appends every text of up to n tokens: it ends with eot (-1 = none) or has n.
static void enumerate(Ranked *d, uint16_t *text, int len, int n, int V, int eot) {
    for (int v = 0; v < V; v++) {
        text[len] = (uint16_t)v;
        if (v == eot || len + 1 == n) ranked_response(d, text, len + 1, 0, 0);
        else enumerate(d, text, len + 1, n, V, eot);
    }
}

static void test_exhaustive(int eot, double length_penalty) {
    enum { V = 4, NEW = 3, BEAMS = 64 };
    GPT2 *m = small_model(V, 16, 8);
    uint16_t query[5] = {2, 0, 1, 1, 2}, text[NEW];
    Ranked d = {0}, all = {0};
    ranked_query(&d, query, 5);
    ranked_query(&all, query, 5);
    enumerate(&all, text, 0, NEW, V, eot);
    double *score = (double *)xalloc((size_t)all.R, sizeof *score), error = 0;
    forward_logp(m, &all, score);
    for (int r = 0; r < all.R; r++) score[r] /= pow(all.resp_len[r], length_penalty);
    Beaming b = beaming_of(BEAMS, 1, 0, BEAMS, NEW, eot);
    b.length_penalty = length_penalty;
    Ranked got = beam_search(m, &d, b, 0, "");
    int wrong = got.R != all.R;
    for (int r = 0; r < got.R; r++) { // the r-th best of all
        int best = 0;
        for (int i = 1; i < all.R; i++) if (score[i] > score[best]) best = i;
        wrong += got.resp_len[r] != all.resp_len[best] ||
                 memcmp(response(&got, r), response(&all, best), 2 * (size_t)got.resp_len[r]);
        error = worse(error, fabs(got.score[r] - score[best]));
        score[best] = -INFINITY;
    }
    check(!wrong && error <= 1e-5, "%d beams find all %d texts, length penalty %g, %s end-of-text: %d found, %d wrong, "
          "error %.1e, tolerance 1e-5", BEAMS, all.R, length_penalty, eot < 0 ? "no" : "with", got.R, wrong, error);
    free(score);
    ranked_free(&got);
    ranked_free(&all);
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// The cache: generation without it, from the whole text at each step

static void test_no_cache(const char *what, Sampling s) {
    enum { V = 23, Q = 5 };
    GPT2 *m = small_model(V, 48, 4);
    Ranked d = small_queries(V, Q, 11), got;
    float logp[V];
    Candidate room[V];
    uint16_t text[48];
    int wrong = 0, n, tokens = 0;
    got = sample(m, &d, s, 0, "");
    for (int q = 0; q < Q; q++)
        for (int i = 0; i < s.num_return; i++) {
            int r = q * s.num_return + i, len = d.query_len[q], end = 0;
            Rng rng = rng_make(s.seed, RNG_SAMPLE, (uint64_t)r);
            memcpy(text, d.tokens + d.query_at[q], 2 * (size_t)len);
            for (n = 0; n < s.max_new_tokens && !end; n++) {
                forward_next(m, text, len + n, logp);
                text[len + n] = (uint16_t)sample_token(logp, V, s, &rng, room);
                end = text[len + n] == s.eot;
            }
            wrong += got.resp_len[r] != n || memcmp(response(&got, r), text + len, 2 * (size_t)n);
            tokens += n;
        }
    check(got.R == Q * s.num_return && !wrong, "%s: %d of %d completions (%d tokens) differ from those without a cache",
          what, wrong, got.R, tokens);
    ranked_free(&got);
    ranked_free(&d);
    gpt2_free(m);
}

// log P of sampled completions, fed through the cache token by token, and of beams, as the search scores them.
static void test_cache_logp(void) {
    enum { V = 23, Q = 6 };
    GPT2 *m = small_model(V, 48, 4);
    Ranked d = small_queries(V, Q, 11), y;
    double error = 0, *sum;
    y = sample(m, &d, sampling_of(3, 20, 1, 0, 1, V - 1), 1, "");
    sum = (double *)xalloc((size_t)y.R, sizeof *sum);
    forward_logp(m, &y, sum);
    for (int q = 0; q < Q; q++)
        for (int r = y.first[q]; r < y.first[q + 1]; r++) {
            Wave w = wave_make(m, &d, 1, 1, 20);
            wave_prefill(&w, &d, q, 1, 1);
            const float *logits = decode_logits(m, &w.d);
            double total = 0;
            for (int t = 0; t < y.resp_len[r]; t++) {
                total += logits[response(&y, r)[t]] - log_sum_exp(logits, V);
                wave_append(&w, 0, response(&y, r)[t]);
                w.d.n = w.d.n_rows = 0;
                wave_feed(&w, 0, 1);
                logits = decode_logits(m, &w.d);
            }
            error = worse(error, fabs(total - sum[r]) / (1 + fabs(sum[r])));
            wave_free(&w);
        }
    check(error <= 1e-5, "log P of %d completions through the cache: error %.1e, tolerance 1e-5", y.R, error);
    free(sum);
    ranked_free(&y);
    y = beam_search(m, &d, beaming_of(5, 1, 0, 5, 20, V - 1), 0, "");
    sum = (double *)xalloc((size_t)y.R, sizeof *sum);
    forward_logp(m, &y, sum);
    error = 0;
    for (int r = 0; r < y.R; r++) error = worse(error, fabs(y.score[r] - sum[r] / y.resp_len[r]));
    check(error <= 1e-5, "scores of %d beams against log P / n without a cache: error %.1e, tolerance 1e-5", y.R,
          error);
    free(sum);
    ranked_free(&y);
    ranked_free(&d);
    gpt2_free(m);
}

static void test_greedy_is_one_beam(void) {
    enum { V = 23 };
    GPT2 *m = small_model(V, 48, 4);
    Ranked d = small_queries(V, 12, 11), a, b;
    a = sample(m, &d, sampling_of(1, 20, 0, 0, 1, V - 1), 0, "");
    b = beam_search(m, &d, beaming_of(1, 1, 0, 1, 20, V - 1), 0, "");
    for (int r = 0; r < b.R; r++) b.score[r] = 0, b.source[r] = SOURCE_SAMPLE; // only the texts are the same
    check(ranked_differ(&a, &b) == 0, "one beam is greedy: %d of %d differ", ranked_differ(&a, &b), a.R);
    ranked_free(&a);
    ranked_free(&b);
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// Waves and threads: how many queries run at once must not matter

static Ranked policy_run(GPT2 *m, const Ranked *d, int policy, int eot) {
    if (policy == 0) return sample(m, d, sampling_of(4, 14, 0.8, 0, 0.95, eot), 1, "");
    return beam_search(m, d, beaming_of(4, policy == 1 ? 1 : 4, 1, 4, 14, eot), 1, "");
}

static Ranked one_query(const Ranked *d, int q) {
    Ranked one = {0};
    one.V = d->V;
    policy_query(&one, d, q, 1);
    return one;
}

static void test_waves(void) {
    enum { V = 23, Q = 21 };
    static const char *name[3] = {"samples", "beams", "diverse beams"};
    static const int sequences[4] = {1, 12, 30, 1 << 20};
    GPT2 *m = small_model(V, 48, 4);
    Ranked d = small_queries(V, Q, 17);
    int keep = wave_sequences;
    for (int policy = 0; policy < 3; policy++) {
        Ranked want = policy_run(m, &d, policy, V - 1);
        int wrong = 0, alone = 0;
        for (int i = 0; i < 4; i++) {
            wave_sequences = sequences[i];
            Ranked got = policy_run(m, &d, policy, V - 1);
            wrong += ranked_differ(&want, &got);
            ranked_free(&got);
        }
        wave_sequences = keep;
        for (int q = 0; q < (policy ? Q : 1); q++) { // the random streams are numbered: only query 0 keeps its own
            Ranked one = one_query(&d, q), whole = one_query(&want, q);
            Ranked got = policy_run(m, &one, policy, V - 1);
            memcpy(whole.score, want.score + want.first[q], (size_t)whole.R * sizeof(float));
            memcpy(whole.source, want.source + want.first[q], (size_t)whole.R * sizeof(int));
            alone += ranked_differ(&whole, &got);
            ranked_free(&one);
            ranked_free(&got);
            ranked_free(&whole);
        }
        check(!wrong && !alone, "%s of %d queries, 1 .. all at once: %d differ; alone: %d differ", name[policy], Q,
              wrong, alone);
        backend_start(3);
        Ranked got = policy_run(m, &d, policy, V - 1);
        backend_start(1);
        check(ranked_differ(&want, &got) == 0, "%s with 1 and 3 threads: %d differ", name[policy],
              ranked_differ(&want, &got));
        ranked_free(&got);
        ranked_free(&want);
    }
    ranked_free(&d);
    gpt2_free(m);
}

// The cache stays within a GiB: with 24 layers of 1024 channels it has 2^30 / 196608 = 5461 slots.
static void test_cache_bound(void) {
    static const struct { int k, max_new, want; } cases[] = {
        {4, 100, 11}, // 60 + 4 * 100 slots a query: 11.87
        {1, 100, 34}, // 60 + 100: 34.13
        {64, 900, 1}, // none fits, but one there must be
        {16, 4, 16},  // 256 sequences, and not the cache, are the limit: 256 / 16
    };
    GPT2 m = {0};
    Ranked d = {0};
    uint16_t query[60] = {0};
    m.c.T = 1024, m.c.V = 100, m.c.Vp = 128, m.c.L = 24, m.c.NH = 16, m.c.C = 1024;
    for (int q = 0; q < 100; q++) ranked_query(&d, query, 60);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = wave_queries(&m, &d, cases[i].k, cases[i].max_new);
        check(n == cases[i].want, "%d x %d tokens for each query of 60: %d queries at once, expected %d", cases[i].k,
              cases[i].max_new, n, cases[i].want);
    }
    ranked_free(&d);
}

// ----------------------------------------------------------------------------
// One token: frequencies against probabilities

enum { DRAW_V = 12, DRAWS = 200000 };

// The definition: softmax at the temperature, then all but the k largest and all but the smallest set that reaches
// top_p removed, in that order, and what is left made to sum to 1.
static void exact(const float *logits, Sampling s, double *p) {
    int order[DRAW_V], n = s.draw.top_k && s.draw.top_k < DRAW_V ? s.draw.top_k : DRAW_V, kept = 0;
    double sum = 0, before = 0, left = 0;
    for (int i = 0; i < DRAW_V; i++) {
        int j = i;
        for (; j > 0 && logits[order[j - 1]] < logits[i]; j--) order[j] = order[j - 1];
        order[j] = i;
        p[i] = 0;
    }
    for (int i = 0; i < n; i++) sum += exp((double)logits[order[i]] / s.draw.temperature);
    for (int i = 0; i < n && (i == 0 || before < s.draw.top_p); i++) {
        p[order[i]] = exp((double)logits[order[i]] / s.draw.temperature) / sum;
        before += p[order[i]];
        kept++;
    }
    for (int i = 0; i < kept; i++) left += p[order[i]];
    for (int i = 0; i < kept; i++) p[order[i]] /= left;
}

static void test_frequencies(void) {
    static const struct { double temperature; int k; double top_p; } settings[] = {
        {1, 0, 1}, {0.8, 0, 1}, {2.5, 0, 1}, {1, 4, 1}, {0.7, 5, 1}, {1, 0, 0.6}, {1, 0, 0.95}, {1.3, 8, 0.85},
        {1, 0, 0}, {1, 50, 1}, {1, 3, 0.999},
    };
    static const float logits[DRAW_V] = {0.3f, -1, 2, 1.1f, 2, -3, 0.3f, 1.7f, -0.4f, 0, 1.1f, -6}; // some are equal
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        Sampling s = sampling_of(1, 1, settings[i].temperature, settings[i].k, settings[i].top_p, -1);
        double p[DRAW_V], worst = 0;
        int count[DRAW_V] = {0}, forbidden = 0, allowed = 0;
        Candidate room[DRAW_V];
        Rng rng = rng_make(9, RNG_SAMPLE, i);
        exact(logits, s, p);
        for (int n = 0; n < DRAWS; n++) count[sample_token(logits, DRAW_V, s, &rng, room)]++;
        for (int v = 0; v < DRAW_V; v++) {
            double sigma = sqrt(DRAWS * p[v] * (1 - p[v]));
            allowed += p[v] > 0;
            if (p[v] == 0) forbidden += count[v];
            else worst = worse(worst, fabs(count[v] - DRAWS * p[v]) / (sigma + 1e-9));
        }
        check(!forbidden && worst <= 5, "%d draws, temperature %g, top-k %d, top-p %g: %d tokens, worst %.2f sigma, "
              "tolerance 5; %d others", DRAWS, s.draw.temperature, s.draw.top_k, s.draw.top_p, allowed, worst,
              forbidden);
    }
}

// The k largest against a sort, where many are equal: the lower ids stay.
static void test_top_k(void) {
    enum { TRIALS = 3000, V = 40 };
    Rng g = rng_make(4, RNG_DEMO, 0);
    int wrong = 0, greedy = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        float logits[V];
        Candidate all[V], room[V];
        int k = rng_below(&g, V + 5);
        for (int v = 0; v < V; v++) logits[v] = (float)rng_below(&g, trial % 2 ? 6 : 1000);
        for (int v = 0; v < V; v++) all[v].logit = logits[v], all[v].id = v;
        qsort(all, V, sizeof *all, compare_candidates);
        int n = top_k_candidates(room, logits, V, k);
        qsort(room, (size_t)n, sizeof *room, compare_candidates);
        wrong += n != (k == 0 || k > V ? V : k);
        for (int i = 0; i < n; i++) wrong += room[i].id != all[i].id;
        for (int i = 1; i < V; i++) wrong += all[i].logit == all[i - 1].logit && all[i].id < all[i - 1].id;
        int first = sample_token(logits, V, sampling_of(1, 1, 0, 5, 0.5, -1), &g, room);
        int only = sample_token(logits, V, sampling_of(1, 1, 1.5, 1, 1, -1), &g, room);
        int narrow = sample_token(logits, V, sampling_of(1, 1, 1.5, 0, 0, -1), &g, room);
        greedy += first != all[0].id || only != all[0].id || narrow != all[0].id;
    }
    check(wrong == 0, "the k largest of %d, many equal: %d of %d trials wrong", V, wrong, TRIALS);
    check(greedy == 0, "temperature 0, top-k 1 and top-p 0 take the first of the largest: %d of %d wrong", greedy,
          TRIALS);
}

// ----------------------------------------------------------------------------
// What comes back

// Counts responses that break the rules: end-of-text last and only there, max_new tokens without it.
static int badly_ended(const Ranked *d, int q, int skip, int max_new, int eot) {
    int bad = 0;
    for (int r = d->first[q] + skip; r < d->first[q + 1]; r++) {
        int n = d->resp_len[r], at = -1;
        for (int t = 0; t < n && at < 0; t++) if (response(d, r)[t] == eot) at = t;
        bad += n < 1 || n > max_new || (at < 0 ? n != max_new : at != n - 1);
    }
    return bad;
}

static void test_result(int policy, int eot) {
    enum { V = 23, Q = 9 };
    static const int source[3] = {SOURCE_SAMPLE, SOURCE_BEAM, SOURCE_DIVERSE};
    GPT2 *m = small_model(V, 48, 6);
    Ranked d = small_queries(V, Q, 17), got = policy_run(m, &d, policy, eot);
    int bad = 0, kept = 0, order = 0, sources = 0, ended = 0;
    for (int q = 0; q < Q; q++) {
        int own = d.first[q + 1] - d.first[q];
        bad += got.first[q + 1] - got.first[q] != own + 4 || badly_ended(&got, q, own, 14, eot);
        for (int i = 0; i < own; i++) {
            int a = d.first[q] + i, b = got.first[q] + i;
            kept += got.resp_len[b] == d.resp_len[a] && got.score[b] == 0 && got.source[b] == SOURCE_DATA &&
                    !memcmp(response(&got, b), response(&d, a), 2 * (size_t)d.resp_len[a]);
        }
        for (int r = got.first[q] + own; r < got.first[q + 1]; r++) {
            sources += got.source[r] == source[policy];
            order += r > got.first[q] + own && got.score[r] > got.score[r - 1];
            ended += response(&got, r)[got.resp_len[r] - 1] == eot;
        }
    }
    check(!bad && kept == d.R && sources == 4 * Q && !order && got.V == V && (ended > 0) == (eot >= 0),
          "policy %d, end-of-text %d: %d of %d own kept, %d of %d new, %d ended, %d wrong, %d out of order",
          policy, eot, kept, d.R, sources, 4 * Q, ended, bad, order);
    ranked_free(&got);
    ranked_free(&d);
    gpt2_free(m);
}

// Same seed, same texts; another seed, others.
static void test_seed(void) {
    enum { V = 23 };
    GPT2 *m = small_model(V, 48, 4);
    Ranked d = small_queries(V, 6, 9), a, b, c;
    Sampling s = sampling_of(3, 12, 1, 0, 1, V - 1);
    a = sample(m, &d, s, 0, "");
    b = sample(m, &d, s, 0, "");
    s.seed++;
    c = sample(m, &d, s, 0, "");
    int same = 0;
    for (int q = 0; q < 6; q++)
        for (int r = a.first[q] + 1; r < a.first[q + 1]; r++)
            same += a.resp_len[r] == a.resp_len[r - 1] &&
                    !memcmp(response(&a, r), response(&a, r - 1), 2 * (size_t)a.resp_len[r]);
    check(ranked_differ(&a, &b) == 0 && ranked_differ(&a, &c) > a.R / 2 && same < 6,
          "same seed: %d of %d differ; another seed: %d; completions equal to their neighbour: %d",
          ranked_differ(&a, &b), a.R, ranked_differ(&a, &c), same);
    ranked_free(&a);
    ranked_free(&b);
    ranked_free(&c);
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// Refusals

typedef struct { GPT2 *m; const Ranked *d; int policy; Beaming b; } Attempt;

static void run_long(const void *arg) {
    const Attempt *a = (const Attempt *)arg;
    policy_run(a->m, a->d, a->policy, -1);
}

static int beaming_exit_code(Beaming b) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr);
        beaming_check(b);
        _exit(0);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_refusals(void) {
    enum { V = 23 };
    GPT2 *m = small_model(V, 20, 4);
    Ranked d = small_queries(V, 12, 9); // one of them has more than 20 - 14 tokens
    Attempt a = {m, &d, 0, beaming_of(4, 1, 0, 4, 14, -1)};
    check_dies("sample, query too long", run_long, &a, "--max-new-tokens 14");
    a.policy = 2;
    check_dies("beam search, query too long", run_long, &a, "--max-query-tokens");
    ranked_limit(&d, 6, 0);
    Ranked fits = policy_run(m, &d, 2, -1);
    check(fits.resp_len[fits.R - 1] == 14, "a text of exactly the model's 20 tokens is made");
    ranked_free(&fits);
    static const struct { int beams, groups; double diversity; int num_return, code; } tries[] = {
        {4, 3, 1, 4, 2}, {4, 1, 0, 5, 2}, {4, 2, 0, 4, 2}, {0, 1, 0, 0, 2}, {4, 1, 0, 0, 2}, {4, 4, 1, 4, 0},
    };
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        int k = tries[i].num_return;
        int code = beaming_exit_code(beaming_of(tries[i].beams, tries[i].groups, tries[i].diversity, k, 14, -1));
        check(code == tries[i].code, "%d beams, %d groups, diversity penalty %g, return %d: exit code %d, expected %d",
              tries[i].beams, tries[i].groups, tries[i].diversity, k, code, tries[i].code);
    }
    ranked_free(&d);
    gpt2_free(m);
}

// Where sums come out even: n equal tokens are a token for each n-th of u, and top-p keeps no more than it needs. A
// token without weight is never drawn, u = 0 or not.
static void test_even(void) {
    enum { N = 8 };
    int wrong = 0, tried = 0;
    Candidate room[N];
    for (int kept = 1; kept <= N; kept++)
        for (int i = 0; i < kept; i++, tried++) {
            Draw how = {1, (double)kept / N, 0};
            for (int v = 0; v < N; v++) room[v].logit = 0.5f, room[v].id = v;
            wrong += draw(room, N, how, (i + 0.5) / kept) != i; // of the first `kept`, the i-th
            for (int v = 0; v < N; v++) room[v].logit = 0.5f, room[v].id = v;
            if ((kept & (kept - 1)) == 0) wrong += draw(room, N, how, (double)i / kept) != i; // exact
        }
    Draw all = {1, 1, 0};
    for (int v = 0; v < N; v++) room[v].logit = v == 3 ? 0 : -200, room[v].id = v;
    check(wrong == 0 && draw(room, N, all, 0) == 3,
          "even draws: %d of %d wrong; u = 0 draws the only token with weight", wrong, tried);
}

// Of hypotheses with equal scores the oldest goes first when room is needed, and the latest comes back first; of
// continuations with equal sums that of the first beam, then of the lowest token.
static void test_equals(void) {
    Continuation even[6];
    int sorted = 1;
    for (int i = 0; i < 6; i++) even[i].sum = -1, even[i].beam = i % 2, even[i].token = (i + 1) % 3;
    qsort(even, 6, sizeof *even, compare_continuations);
    for (int i = 0; i < 6; i++) sorted = sorted && even[i].beam == i / 3 && even[i].token == i % 3;
    check(sorted, "equal continuations: by beam, then token; the first is token %d of beam %d", even[0].token,
          even[0].beam);
    uint16_t text[4] = {10, 11, 12, 13};
    Hypothesis hyp[4] = {{-1, 1, &text[0]}, {-2, 1, &text[1]}, {-2, 1, &text[2]}, {-1.5, 1, &text[3]}};
    Group g = {0};
    g.n = 4, g.hyp = hyp;
    check(group_worst(&g) == 1, "of equal hypotheses the oldest is the worst: %d, expected 1", group_worst(&g));
    check(!group_keep(&g, 4, -2, 1), "one that only equals the worst does not take its place");
    uint16_t *room = group_keep(&g, 4, -1, 1); // in place of the older -2
    check(room == &text[1] && hyp[1].text == &text[2] && hyp[2].text == &text[3] && hyp[3].text == room,
          "a better one does, and the others move up");
    *room = 14;
    static const uint16_t query[1] = {1};
    Beams s = {0};
    Ranked out = {0};
    s.b = beaming_of(4, 1, 0, 4, 4, -1);
    s.size = 4, s.group = &g;
    ranked_query(&out, query, 1);
    beams_take(&s, 0, &out);
    int best[4] = {0};
    for (int r = 0; r < out.R && r < 4; r++) best[r] = response(&out, r)[0];
    check(out.R == 4 && best[0] == 14 && best[1] == 10 && best[2] == 13 && best[3] == 12,
          "of equal scores the latest comes first: %d %d %d %d, expected 14 10 13 12", best[0], best[1], best[2],
          best[3]);
    ranked_free(&out);
}

int main(void) {
    backend_start(1);
    test_refusals(); // first: they fork, which goes best before there are threads
    test_reference();
    test_diversity();
    test_continuations();
    for (int i = 0; i < 4; i++) test_exhaustive(i % 2 ? 3 : -1, i < 2 ? 1 : 0.3);
    test_no_cache("greedy", sampling_of(1, 20, 0, 0, 1, 22));
    test_no_cache("all tokens", sampling_of(3, 20, 1, 0, 1, 22));
    test_no_cache("temperature 0.9, top-k 10, top-p 0.9", sampling_of(3, 20, 0.9, 10, 0.9, -1));
    test_cache_logp();
    test_greedy_is_one_beam();
    test_waves();
    test_cache_bound();
    test_frequencies();
    test_top_k();
    for (int policy = 0; policy < 3; policy++) {
        test_result(policy, -1);
        test_result(policy, 22);
    }
    test_seed();
    test_even();
    test_equals();
    return test_summary();
}
