/*
test_rrhf.c: the paper's loss on cases worked by hand, its gradient, the mean over queries, the learning rate, a
reward model's losses, and what stops a training run. No case needs more than paper.

  cc -std=c11 -O2 -fopenmp-simd -DNO_MAIN test/test_rrhf.c -o test/test_rrhf -lm && test/test_rrhf
*/
#include "../train_rrhf.c" // defines: rrhf_loss, train_step, learning_rate, logistic_loss, ...
#include "test.h"          // defines: check, check_dies, test_params, test_ranked, test_summary

// ----------------------------------------------------------------------------
// Equations 1-5 by hand

enum { K = 4 };
typedef struct {
    const char *name;
    Objective o;           // weights (rank, ft), alpha, lambda, ft mean
    int k, n[K];           // lengths
    double logp[K];        // sum of log P
    float r[K];
    double p[K], rank, ft, loss, c[K];
} Hand;

static const Hand by_hand[] = {
    // p = -6/2, -4/4: p_0 - p_1 = -2, the hinge is idle; the best is 1.
    {"k = 2 in order", {1, 1, 1, 0, 0}, 2, {2, 4}, {-6, -4}, {0, 1}, {-3, -1}, 0, 4, 4, {0, -1}},
    // The same with the rewards exchanged: p_1 - p_0 = 2; 1 is pushed down by 1/4, 0 up by 1/2, and imitated.
    {"k = 2 out of order", {1, 1, 1, 0, 0}, 2, {2, 4}, {-6, -4}, {1, 0}, {-3, -1}, 2, 6, 8, {-1.5, 0.25}},
    // p = -2 -1 -2 -1. Hinges, worse-better: 1-0, 3-0, 1-2, 3-2 are 1 each; 2-0 and 3-1 are exactly 0: no gradient.
    // c: -2/4 - 1, +2/3, -2/5, +2/2
    {"k = 4, two hinges at their corner", {1, 1, 1, 0, 0}, 4, {4, 3, 5, 2}, {-8, -3, -10, -2}, {3, 1, 2, 0},
     {-2, -1, -2, -1}, 4, 8, 12, {-1.5, 2 / 3.0, -0.4, 1}},
    // Margin 1/2 per place: 2-0 0+.5, 1-0 1+1, 3-0 1+1.5, 1-2 1+.5, 3-2 1+1, 3-1 0+.5; sum 9, all active.
    // c: -3/4 - 1, (2 - 1)/3, (1 - 2)/5, 3/2
    {"k = 4, margin 0.5", {1, 1, 1, 0.5, 0}, 4, {4, 3, 5, 2}, {-8, -3, -10, -2}, {3, 1, 2, 0},
     {-2, -1, -2, -1}, 9, 8, 17, {-1.75, 1 / 3.0, -0.2, 1.5}},
    // A margin counts distinct rewards: 5 5 1 0 are three places, so 3-2 is 1 apart, 3-0 and 3-1 two.
    // p all -1: hinges 2-0, 2-1: .5; 3-2: .5; 3-0, 3-1: 1; sum 3.5.
    // c: -2/1 - 1, -2/1, (2 - 1)/1, 3/1
    {"k = 4, margin 0.5, equal rewards", {1, 1, 1, 0.5, 0}, 4, {1, 1, 1, 1}, {-1, -1, -1, -1}, {5, 5, 1, 0},
     {-1, -1, -1, -1}, 3.5, 1, 4.5, {-3, -2, 1, 3}},
    // 0 and 1 tie: no pair, though p_0 > p_1, and the first of them is imitated. 2-0: p equal, 0. 2-1: 1.
    {"a tie makes no pair, its first is imitated", {1, 1, 1, 0, 0}, 3, {2, 2, 2}, {-2, -4, -2}, {1, 1, 0},
     {-1, -2, -1}, 1, 2, 3, {-1, -0.5, 0.5}},
    {"all rewards equal: fine-tuning on the first", {1, 1, 1, 0, 0}, 3, {2, 2, 2}, {-2, -4, -8}, {1, 1, 1},
     {-1, -2, -4}, 0, 2, 2, {-1, 0, 0}},
    {"all p equal: no gradient from ranks", {1, 1, 1, 0, 0}, 3, {1, 2, 3}, {-2, -4, -6}, {-1, -3, -2},
     {-2, -2, -2}, 0, 2, 2, {-1, 0, 0}},
    {"k = 1 is fine-tuning", {1, 1, 1, 0, 0}, 1, {3}, {-5}, {-7}, {-5 / 3.0}, 0, 5, 5, {-1}},
    {"k = 1, ft mean", {1, 1, 1, 0, 1}, 1, {3}, {-5}, {-7}, {-5 / 3.0}, 0, 5 / 3.0, 5 / 3.0, {-1 / 3.0}},
    // 2 out of order again, L_ft and its part of c divided by n_0 = 2; p as ever
    {"k = 2, ft mean", {1, 1, 1, 0, 1}, 2, {2, 4}, {-6, -4}, {1, 0}, {-3, -1}, 2, 3, 5, {-1, 0.25}},
    {"k = 2, rank weight 100, ft weight 0", {100, 0, 1, 0, 0}, 2, {2, 4}, {-6, -4}, {1, 0}, {-3, -1}, 2, 6, 200,
     {-50, 25}},
    {"k = 2, rank weight 0, ft weight 0.5", {0, 0.5, 1, 0, 0}, 2, {2, 4}, {-6, -4}, {1, 0}, {-3, -1}, 2, 6, 3,
     {-0.5, 0}},
    {"k = 2, both weights 0", {0, 0, 1, 0, 0}, 2, {2, 4}, {-6, -4}, {1, 0}, {-3, -1}, 2, 6, 0, {0, 0}},
    // n = 4, 9; log P = -12, -18. alpha 0: p = log P, in order. 1/2: -12/2, -18/3, equal. 1: -3, -2, hinge 1.
    // 2: -12/16, -18/81, hinge 3/4 - 2/9 = 19/36.
    {"alpha 0", {1, 1, 0, 0, 0}, 2, {4, 9}, {-12, -18}, {1, 0}, {-12, -18}, 0, 12, 12, {-1, 0}},
    {"alpha 0.5", {1, 1, 0.5, 0, 0}, 2, {4, 9}, {-12, -18}, {1, 0}, {-6, -6}, 0, 12, 12, {-1, 0}},
    {"alpha 1", {1, 1, 1, 0, 0}, 2, {4, 9}, {-12, -18}, {1, 0}, {-3, -2}, 1, 12, 13, {-1.25, 1 / 9.0}},
    {"alpha 2", {1, 1, 2, 0, 0}, 2, {4, 9}, {-12, -18}, {1, 0}, {-0.75, -2 / 9.0}, 19 / 36.0, 12, 12 + 19 / 36.0,
     {-1 - 1 / 16.0, 1 / 81.0}},
};

static void test_by_hand(void) {
    for (size_t i = 0; i < sizeof by_hand / sizeof *by_hand; i++) {
        const Hand *h = &by_hand[i];
        double p[K], c[K], e;
        Loss l = rrhf_loss(&h->o, h->k, h->logp, h->n, h->r, p, c);
        e = worse(worse(fabs(l.rank - h->rank), fabs(l.ft - h->ft)), fabs(l.loss - h->loss));
        for (int j = 0; j < h->k; j++) e = worse(e, worse(fabs(p[j] - h->p[j]), fabs(c[j] - h->c[j])));
        check(e <= 1e-13, "%s: L_rank %g, L_ft %g, L %g, error %.1e, tolerance 1e-13", h->name, l.rank, l.ft, l.loss,
              e);
    }
}

static void test_gap(void) {
    static const float r[6] = {0.5f, 2, 0.5f, -1, 2, 7}; // distinct: -1, .5, 2, 7
    static const struct { float low, high; int gap; } want[5] = {
        {-1, 7, 3}, {-1, 0.5f, 1}, {0.5f, 2, 1}, {0.5f, 7, 2}, {-1, 2, 2}
    };
    int wrong = 0;
    for (int i = 0; i < 5; i++) wrong += rrhf_gap(6, r, want[i].low, want[i].high) != want[i].gap;
    check(wrong == 0, "gap between distinct rewards: %d of 5 wrong", wrong);
}

// Each active pair takes 1/n_i^a from one side and gives 1/n_j^a to the other, so sum_i c_i n_i^a = -w_ft n_best^a.
// And c is the derivative of L by log P, which is piecewise linear: differences are exact away from a corner.
static void test_coefficients(void) {
    enum { TRIALS = 400 };
    Rng g = rng_make(1, RNG_DEMO, 0);
    double sum_error = 0, slope_error = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        Objective o = {rng_uniform(&g) * 3, rng_uniform(&g), rng_uniform(&g) * 2, trial % 2 * rng_uniform(&g), 0};
        int k = 1 + rng_below(&g, K), n[K] = {0}, best = 0;
        double logp[K], p[K], c[K], other[K], sum = 0;
        float r[K];
        for (int i = 0; i < k; i++) {
            n[i] = 1 + rng_below(&g, 9);
            logp[i] = -3 * n[i] * (0.2 + rng_uniform(&g));
            r[i] = (float)rng_below(&g, 3);
            if (r[i] > r[best]) best = i;
        }
        rrhf_loss(&o, k, logp, n, r, p, c);
        for (int i = 0; i < k; i++) sum += c[i] * pow(n[i], o.length_penalty);
        sum_error = worse(sum_error, fabs(sum + o.ft_weight * pow(n[best], o.length_penalty)));
        for (int i = 0; i < k; i++) {
            const double h = 1e-6, keep = logp[i];
            logp[i] = keep + h;
            double up = rrhf_loss(&o, k, logp, n, r, p, other).loss;
            logp[i] = keep - h;
            double down = rrhf_loss(&o, k, logp, n, r, p, other).loss;
            logp[i] = keep;
            slope_error = worse(slope_error, fabs((up - down) / (2 * h) - c[i]));
        }
    }
    check(sum_error < 1e-11, "sum of c_i n_i^alpha: error %.1e, tolerance 1e-11, %d random queries", sum_error, TRIALS);
    check(slope_error < 1e-7, "c_i against the slope of L: error %.1e, tolerance 1e-7 (log P near 80, h 1e-6)",
          slope_error);
}

// Without ties, margin and L_ft, c_i n_i is how many places response i stands too high: an exact integer.
static void test_places(void) {
    enum { TRIALS = 400 };
    Rng g = rng_make(2, RNG_DEMO, 0);
    Objective o = {1, 0, 1, 0, 0};
    int wrong = 0, settled = 0, all = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        int k = 1 + rng_below(&g, K), n[K];
        double logp[K], p[K], c[K];
        float r[K];
        for (int i = 0; i < k; i++)
            n[i] = 1 << rng_below(&g, 4), logp[i] = -n[i] * rng_uniform(&g), r[i] = (float)rng_uniform(&g);
        rrhf_loss(&o, k, logp, n, r, p, c);
        for (int i = 0; i < k; i++, all++) {
            int places = 0;
            for (int j = 0; j < k; j++) places += (p[j] < p[i]) - (r[j] < r[i]);
            wrong += c[i] * n[i] != places;
            settled += c[i] == 0;
        }
    }
    check(!wrong && settled > 0, "c_i n_i is the number of places too high: %d of %d wrong, %d of them exactly 0",
          wrong, all, settled);
}

// ----------------------------------------------------------------------------
// A step over several queries

static const Config small = {16, 31, 32, 1, 2, 16, 0, 0};

static GPT2 *model_make(Config c) {
    float *params = test_params(c, 3);
    GPT2 *m = gpt2_build(c, params, 1);
    free(params);
    return m;
}

static Loss one_step(const Ranked *d, const int *queries, int n, int micro, double *norm, int64_t *tokens) {
    GPT2 *m = model_make(small);
    Train t = test_train(micro);
    StepRoom s = step_room(m, d, micro);
    *tokens = 0;
    Loss l = train_step(m, &t, &s, d, queries, n, 1e-3, 1, norm, tokens);
    step_room_free(&s);
    gpt2_free(m);
    return l;
}

// Pairs are made within a query only, and a batch's loss is the mean over its queries however it is split.
static void test_mean(void) {
    static const int k[5] = {3, 1, 4, 2, 5}, order[5] = {4, 0, 3, 1, 2};
    const double tolerance = sizeof(real) == 4 ? 1e-5 : 1e-12;
    Ranked d = test_ranked(23, small.V, 5, k, 6, 7);
    Loss mean = {0, 0, 0};
    double norm, first = 0;
    int64_t tokens, all = 0;
    for (int q = 0; q < 5; q++) {
        Loss l = one_step(&d, &order[q], 1, 1, &norm, &tokens);
        mean.loss += l.loss / 5, mean.rank += l.rank / 5, mean.ft += l.ft / 5;
        all += d.query_len[q];
    }
    for (int r = 0; r < d.R; r++) all += d.resp_len[r];
    for (int micro = 1; micro <= 5; micro++) {
        Loss l = one_step(&d, order, 5, micro, &norm, &tokens);
        if (micro == 1) first = norm;
        double e = worse(fabs(l.loss / mean.loss - 1), fabs(l.ft / mean.ft - 1));
        e = worse(worse(e, fabs(l.rank - mean.rank) / mean.loss), fabs(norm / first - 1));
        check(e <= tolerance && tokens == all && mean.rank > 0,
              "5 queries, micro-batch %d: loss %.6f (rank %.6f, ft %.6f), the mean of its queries: error %.1e, "
              "tolerance %.0e; %" PRId64 " tokens, expected %" PRId64, micro, l.loss, l.rank, l.ft, e, tolerance,
              tokens, all);
    }
    ranked_free(&d);
}

typedef struct { int position; double rank_weight; } Broken;

// Queries 0 and 2 of the data, two at once. Only query 2's response 1 is long enough to reach position 14.
static void broken_step(const void *arg) {
    const Broken *broken = (const Broken *)arg;
    Ranked d = {0};
    static const uint16_t tok[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    static const int queries[2] = {0, 2};
    d.V = small.V;
    for (int q = 0; q < 3; q++) {
        ranked_query(&d, tok, 4);
        for (int i = 0; i < 3; i++) ranked_response(&d, tok + 4, q == 2 && i == 1 ? 12 : 5, (float)i, 0);
    }
    GPT2 *m = model_make(small);
    Train t = test_train(2);
    StepRoom s = step_room(m, &d, 2);
    double norm;
    int64_t tokens = 0;
    t.objective.rank_weight = broken->rank_weight;
    if (broken->position >= 0) m->w.wpe[broken->position * small.C] = (real)NAN;
    train_step(m, &t, &s, &d, queries, 2, 1e-3, 7, &norm, &tokens);
}

static void test_nan(void) {
    static const Broken at_14 = {14, 1}, weight = {-1, INFINITY};
    check_dies("NaN in one response", broken_step, &at_14, "step 7, query 2, response 1: value nan");
    check_dies("NaN in the gradient", broken_step, &weight, "step 7: the gradient's norm is");
}

// ----------------------------------------------------------------------------
// The learning rate

static void test_schedule(void) {
    static const struct { const char *name; enum Schedule s; double warmup; int step, total; double want; } cases[] = {
        {"first of 2 warm-up steps", SCHEDULE_LINEAR, 0.2, 1, 10, 0.5}, {"second", SCHEDULE_LINEAR, 0.2, 2, 10, 1},
        {"first linear step", SCHEDULE_LINEAR, 0.2, 3, 10, 1}, {"second", SCHEDULE_LINEAR, 0.2, 4, 10, 7 / 8.0},
        {"last linear step", SCHEDULE_LINEAR, 0.2, 10, 10, 1 / 8.0},
        {"first cosine step", SCHEDULE_COSINE, 0.2, 3, 10, 1}, {"cosine, half way", SCHEDULE_COSINE, 0.2, 7, 10, 0.5},
        {"last cosine step", SCHEDULE_COSINE, 0.2, 10, 10, 0.03806023374435663}, // (1 - cos(pi/8)) / 2
        {"constant, warming up", SCHEDULE_CONSTANT, 0.2, 1, 10, 0.5},
        {"last constant step", SCHEDULE_CONSTANT, 0.2, 10, 10, 1},
        {"no warm-up, first", SCHEDULE_LINEAR, 0, 1, 10, 1}, {"no warm-up, last", SCHEDULE_LINEAR, 0, 10, 10, 0.1},
        {"warm-up only, first", SCHEDULE_LINEAR, 1, 1, 10, 0.1}, {"warm-up only, last", SCHEDULE_COSINE, 1, 10, 10, 1},
        {"0.03 of 3 steps is one", SCHEDULE_LINEAR, 0.03, 1, 3, 1}, {"then down", SCHEDULE_LINEAR, 0.03, 3, 3, 0.5},
        {"0.1 of 10 steps is one, not two", SCHEDULE_LINEAR, 0.1, 2, 10, 1},
        {"0.07 of 100 steps is seven", SCHEDULE_LINEAR, 0.07, 7, 100, 1}, // not eight, as 0.07 * 100 rounds
        {"one step in all", SCHEDULE_COSINE, 0, 1, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Train t = test_train(1);
        t.schedule = cases[i].s;
        t.warmup = cases[i].warmup;
        t.adam.lr = 2e-5;
        double e = fabs(learning_rate(&t, cases[i].step, cases[i].total) / 2e-5 - cases[i].want);
        check(e < 1e-14, "learning rate, %s (step %d of %d): %.4f of --lr, error %.1e, tolerance 1e-14", cases[i].name,
              cases[i].step, cases[i].total, cases[i].want, e);
    }
}

// Every epoch visits each query once: in the data's order, or shuffled, when one of them stays in its place on average.
static void test_order(void) {
    enum { Q = 11, EPOCHS = 20000 };
    Ranked d = {0};
    d.Q = Q;
    for (int shuffle = 0; shuffle <= 1; shuffle++) {
        Train t = test_train(1);
        t.batch = 4, t.epochs = EPOCHS, t.shuffle = shuffle, t.seed = 5;
        int order[Q], visits[Q] = {0}, epoch = -1, stay = 0, at = 0, wrong = 0;
        for (int step = 0; step < train_steps(&t, &d); step++) {
            const int *queries;
            int n = step_queries(&t, &d, step, order, &epoch, &queries);
            for (int i = 0; i < n; i++, at++) stay += queries[i] == at % Q, wrong += visits[queries[i]]++ != at / Q;
        }
        double mean = stay / (double)EPOCHS, want = shuffle ? 1 : Q; // the variance is 1, too: 0.03 is 4.2 sigma
        check(!wrong && at == Q * EPOCHS && fabs(mean - want) <= (shuffle ? 0.03 : 0),
              "shuffle %d: of %d queries %.3f stay in their place on average, expected %g, tolerance %g; "
              "%d visits wrong", shuffle, Q, mean, want, shuffle ? 0.03 : 0, wrong);
    }
}

// What step_following promises to a backend that packs ahead is what the next step brings.
static void test_following(void) {
    int wrong = 0, promised = 0, none = 0;
    for (int i = 0; i < 300; i++) {
        Ranked d = {0};
        Train t = test_train(1);
        d.Q = 1 + i % 23, t.batch = 1 + i % 7, t.micro_batch = 1 + i % t.batch, t.refresh = i % 5, t.shuffle = i % 2;
        t.epochs = 3, t.seed = 5;
        int order[23], seen[23], epoch = -1, end = train_steps(&t, &d), ahead = 0;
        for (int step = 0; step < end; step++) {
            const int *queries;
            int n = step_queries(&t, &d, step, order, &epoch, &queries);
            wrong += ahead && (ahead != n || memcmp(seen, queries, (size_t)n * sizeof(int)));
            ahead = step_following(&t, &d, step, end);
            memcpy(seen, queries + n, (size_t)ahead * sizeof(int));
            promised += ahead > 0, none += !ahead;
            wrong += ahead && t.refresh && (step + 1) % t.refresh == 0; // another window's
        }
        wrong += ahead > 0;
    }
    check(!wrong && promised > 1000 && none > 1000,
          "the next step's queries are known %d times, not known %d, wrong %d", promised, none, wrong);
}

// ----------------------------------------------------------------------------
// A reward model's losses

typedef struct { double z[2]; float r[2]; double loss, c[2]; } Reward2;

static void check_reward(const char *name, QueryLoss f, const Reward2 *w, int k) {
    Objective o = test_objective();
    int n[2] = {3, 4};
    double p[2] = {0, 0}, c[2] = {0, 0}, e;
    Loss l = f(&o, k, w->z, n, w->r, p, c);
    e = fabs(l.loss - w->loss);
    for (int i = 0; i < k; i++) e = worse(e, worse(fabs(c[i] - w->c[i]), fabs(p[i] - w->z[i])));
    check(isfinite(l.loss) && e < 1e-13, "%s, z %g %g: L %g, error %.1e, tolerance 1e-13", name, w->z[0], w->z[1],
          l.loss, e);
}

static void test_reward_losses(void) {
    const double log2 = 0.6931471805599453;
    const Reward2 labels[] = { // L = log(1 + exp z) - r z, c = sigmoid(z) - r
        {{0, 0}, {1, 0}, log2, {-0.5, 0}}, {{0, 0}, {0, 0}, log2, {0.5, 0}}, {{800, 0}, {1, 0}, 0, {0, 0}},
        {{800, 0}, {0, 0}, 800, {1, 0}}, {{-800, 0}, {0, 0}, 0, {0, 0}}, {{-800, 0}, {1, 0}, 800, {-1, 0}},
        {{0, 0}, {0.25f, 0}, log2, {0.25, 0}}
    }, pairs[] = { // L = log(1 + exp(z_worse - z_better))
        {{0, 0}, {0, 1}, log2, {0.5, -0.5}}, {{800, 0}, {0, 1}, 800, {1, -1}}, {{-800, 0}, {0, 1}, 0, {0, 0}},
        {{800, -800}, {1, 0}, 0, {0, 0}}, {{-800, 800}, {1, 0}, 1600, {-1, 1}}, {{3, 1}, {2, 2}, 0, {0, 0}}
    };
    for (int i = 0; i < 7; i++) check_reward("labels", logistic_loss, &labels[i], 1);
    for (int i = 0; i < 6; i++) check_reward("preferences", pairwise_loss, &pairs[i], 2);
    // Three responses, two pairs (0 and 1 tie), z equal: the mean over pairs, c = (-1/2, -1/2, 1/2 + 1/2) / 2
    Objective o = test_objective();
    static const double z[3] = {1, 1, 1};
    static const int n[3] = {1, 2, 3};
    static const float r[3] = {5, 5, -5};
    double p[3], c[3];
    Loss l = pairwise_loss(&o, 3, z, n, r, p, c);
    double e = worse(fabs(l.loss - log2), worse(fabs(c[0] + 0.25), worse(fabs(c[1] + 0.25), fabs(c[2] - 0.5))));
    check(e < 1e-15, "preferences, k = 3 with a tie: the mean over its two pairs, error %.1e, tolerance 1e-15", e);
}

typedef struct { int k; float r[4]; } Labels; // two queries of k responses

static Ranked labels_make(const Labels *l) {
    Ranked d = {0};
    static const uint16_t tok[2] = {1, 2};
    d.V = 3;
    for (int q = 0; q < 2; q++) {
        ranked_query(&d, tok, 2);
        for (int i = 0; i < l->k; i++) ranked_response(&d, tok, 1, l->r[q * l->k + i], 0);
    }
    return d;
}

static void labels_or_not(const void *arg) {
    Ranked d = labels_make((const Labels *)arg);
    reward_data_is_labels(&d, "some.bin");
}

static void test_labels(void) {
    static const Labels labels = {1, {0, 1}}, soft = {1, {0.3f, 0.9f}}, pairs = {2, {1, 1, -3, 8}};
    static const Labels high = {1, {0, 1.5f}}, low = {1, {-0.5f, 1}}, equal = {2, {1, 1, 2, 2}};
    static const Labels *const fine[3] = {&labels, &soft, &pairs};
    for (int i = 0; i < 3; i++) {
        Ranked d = labels_make(fine[i]);
        int is = reward_data_is_labels(&d, "some.bin");
        check(is == (i < 2), "k = %d with scores %g, %g, ...: %s", fine[i]->k, fine[i]->r[0], fine[i]->r[1],
              is ? "labels" : "preferences");
        ranked_free(&d);
    }
    check_dies("a label of 1.5", labels_or_not, &high,
               "some.bin: one response per query means labels, and response 1 has");
    check_dies("a label of -0.5", labels_or_not, &low, "response 0 has the label -0.5");
    check_dies("no preference anywhere", labels_or_not, &equal, "equal scores");
}

// ----------------------------------------------------------------------------
// Figures, hashes, files

static void test_figures(void) {
    static const struct { Figure f; const char *want; } cases[] = {
        {{0.5, 0.25, 0}, "-"}, {{0.559, 0, 1}, "0.559"}, {{0.5, 0.25, 2}, "0.500 +- 0.250"}};
    char cell[64];
    for (int i = 0; i < 3; i++) {
        figure_text(cell, cases[i].f, 3);
        check(!strcmp(cell, cases[i].want), "a figure of %d queries: '%s', expected '%s'",
              cases[i].f.n, cell, cases[i].want);
    }
}

static void test_hash(void) {
    enum { N = 37 };
    unsigned char a[N] = {0};
    uint64_t seen[N * 8 + 1];
    int n = 0, equal = 0;
    seen[n++] = hash64(HASH64, a, N);
    for (int bit = 0; bit < N * 8; bit++) {
        a[bit / 8] ^= (unsigned char)(1 << bit % 8);
        seen[n++] = hash64(HASH64, a, N);
        a[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    for (int i = 0; i < n; i++) for (int j = 0; j < i; j++) equal += seen[i] == seen[j];
    check(equal == 0, "hash64: of %d texts that differ in a bit or two, %d pairs are equal", n, equal);
    a[7] = a[15] = 128; // both high bits: their changes must not cancel
    check(hash64(HASH64, a, N) != seen[0], "hash64: two sign bits");
}

// Resumed at 90, five steps in 20000 seconds: as long for the five that are left.
static void test_progress(void) {
    char said[256] = "";
    int to[2], keep = dup(2);
    if (keep < 0 || pipe(to) || dup2(to[1], 2) < 0) die("no pipe");
    Progress bar = {"label", now_s() - 20000, 0, 90};
    progress(&bar, 95, 100, "and more");
    dup2(keep, 2);
    close(keep);
    close(to[1]);
    if (read(to[0], said, sizeof said - 1) < 0) die("cannot read");
    close(to[0]);
    const char *want = "label      95/100  333 min left  and more\n";
    check(!strcmp(said, want), "the time left after a resume: \"%.*s\"", (int)strcspn(said, "\n"), said);
}

static void write_there(const void *path) {
    memset(out_tmp, 0, sizeof out_tmp); // a process of its own has none of ours
    Out out = out_open((const char *)path);
    out_close(&out);
}

static void test_lock(void) {
    char dir[] = "/tmp/rrhf_lock_XXXXXX", path[64], tmp[64];
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    snprintf(path, sizeof path, "%s/file", dir);
    snprintf(tmp, sizeof tmp, "%s/file.tmp", dir);
    Out out = out_open(path);
    out_printf(&out, "whole\n");
    fflush(out.f);
    check_dies("a file that another run is writing", write_there, path,
               "file: another run is writing here; write elsewhere");
    check(!access(tmp, F_OK), "and the other's .tmp stays");
    out_close(&out);
    struct stat st;
    check(!stat(path, &st) && st.st_size == 6 && access(tmp, F_OK), "it is whole in the end");
    write_there(path);
    check(!stat(path, &st) && st.st_size == 0, "and can be written again");
    unlink(path);
    rmdir(dir);
}

// --max-query-tokens cuts queries on the left, --max-response-tokens responses on the right. The texts are 0 1 2 ...,
// so that a token says where it stood.
static void test_limit(void) {
    enum { QUERY = 5, RESPONSE = 4 };
    uint16_t tok[12];
    int wrong = 0, cut = 0;
    Ranked d = {0};
    for (int t = 0; t < 12; t++) tok[t] = (uint16_t)t;
    for (int n = 3; n <= 7; n++) {
        ranked_query(&d, tok, n);
        ranked_response(&d, tok, n, 0, 0);
    }
    ranked_limit(&d, 0, 0);
    for (int q = 0; q < d.Q; q++) wrong += d.query_len[q] != q + 3 || d.resp_len[q] != q + 3;
    ranked_limit(&d, QUERY, RESPONSE);
    for (int q = 0; q < d.Q; q++) {
        int had = q + 3, n = d.query_len[q], m = d.resp_len[q];
        wrong += n != (had < QUERY ? had : QUERY) || m != (had < RESPONSE ? had : RESPONSE);
        for (int t = 0; t < n; t++) wrong += d.tokens[d.query_at[q] + t] != had - n + t; // its end
        for (int t = 0; t < m; t++) wrong += d.tokens[d.resp_at[q] + t] != t;            // its beginning
        cut += (n < had) + (m < had);
    }
    check(wrong == 0 && cut == 5,
          "limits of %d and %d tokens: %d texts are cut, queries on the left, responses on the right, %d faults",
          QUERY, RESPONSE, cut, wrong);
    ranked_free(&d);
}

// A token stream in chunks: every token once, in order; the first of each is its query. A single last token predicts
// nothing and is left out.
static void test_stream(void) {
    char path[] = "/tmp/rrhf_stream_XXXXXX";
    int fd = mkstemp(path), wrong = 0;
    uint16_t tok[12];
    if (fd < 0) die("%s: cannot make it", path);
    close(fd);
    for (int t = 0; t < 12; t++) tok[t] = (uint16_t)(100 + t);
    for (int n = 2; n <= 12; n++)
        for (int chunk = 2; chunk <= 5; chunk++) {
            stream_write(path, tok, n);
            Ranked d = stream_read(path, chunk);
            int at = 0;
            for (int q = 0; q < d.Q; q++) {
                wrong += d.query_len[q] != 1 || d.first[q + 1] - d.first[q] != 1 || 1 + d.resp_len[q] > chunk;
                wrong += d.tokens[d.query_at[q]] != 100 + at++;
                for (int t = 0; t < d.resp_len[q]; t++) wrong += d.tokens[d.resp_at[q] + t] != 100 + at++;
            }
            wrong += at != (n % chunk == 1 ? n - 1 : n) || d.Q != (at + chunk - 1) / chunk;
            ranked_free(&d);
        }
    check(wrong == 0, "streams of 2 to 12 tokens in chunks of 2 to 5: %d faults", wrong);
    unlink(path);
}

static void read_ranked(const void *path) {
    Ranked d = ranked_read((const char *)path);
    ranked_free(&d);
}

// The first token that is none: a file whose tokens are beyond its own vocabulary is refused whoever reads it.
static void test_beyond(void) {
    char path[] = "/tmp/rrhf_beyond_XXXXXX";
    static const uint16_t tok[2] = {8, 9};
    int fd = mkstemp(path);
    Ranked d = {0};
    if (fd < 0) die("%s: cannot make it", path);
    close(fd);
    ranked_query(&d, tok, 1);
    ranked_response(&d, tok, 2, 0, 0);
    d.V = 10;
    ranked_write(path, &d);
    Ranked fits = ranked_read(path);
    check(fits.V == 10 && fits.tokens[2] == 9, "token %d of a vocabulary of 10 is read", fits.tokens[2]);
    d.V = 9;
    ranked_write(path, &d);
    check_dies("token 9 of a vocabulary of 9", read_ranked, path,
               "query 0: token 9, but the header says a vocabulary of 9; make it again");
    unlink(path);
    ranked_free(&d);
    ranked_free(&fits);
}

int main(void) {
    backend_start(1);
    test_by_hand();
    test_gap();
    test_coefficients();
    test_places();
    test_mean();
    test_nan();
    test_schedule();
    test_order();
    test_following();
    test_reward_losses();
    test_labels();
    test_figures();
    test_hash();
    test_progress();
    test_lock();
    test_limit();
    test_stream();
    test_beyond();
    return test_summary();
}
