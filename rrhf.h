/*
rrhf.h: the paper. Response scores, ranking loss, fine-tuning loss, their gradient, and THE training loop.

For one query x with k responses y_i of n_i tokens and rewards r_i (Yuan et al. 2023, equations 1-5):

  p_i    = 1/n_i^alpha * sum_t log P(y_i,t | x, y_i,<t)                        (1)   alpha = 1
  L_rank = sum over r_i < r_j of max(0, p_i - p_j + lambda gap_ij)             (2)   lambda = 0; ties make no pair
  i*     = first index of the highest r                                        (3)
  L_ft   = -sum_t log P(y_i*,t | x, y_i*,<t)                                   (4)   --ft-reduction mean: / n_i*
  L      = w_rank L_rank + w_ft L_ft                                           (5)   both weights 1

All of it reaches the network through ONE number per response. A pair whose hinge is active, its max above 0, adds 1
to dL_rank/dp_i of the worse response and -1 to the better one's; and dp_i/dlog P(y_i,t) = 1/n_i^alpha for every t:

  c_i = dL/dlog P(y_i,t)
      = w_rank (#{j: r_j > r_i, hinge active} - #{j: r_j < r_i, hinge active}) / n_i^alpha  -  w_ft [i = i*]
        (the last term / n_i* with --ft-reduction mean)

Gradient descent makes a response with c_i > 0 less likely: one that outranks its better is pushed down, the better one
up, and the best is imitated. That is RRHF.
Without ties and margin the count in brackets is simply how many places response i stands too high by p.
With k = 1 only the last term remains: supervised fine-tuning is RRHF with one response.

By hand: two responses of n = 2, 4 tokens with log P = -6, -4 and rewards 1, 0. p = -3, -1: out of order by 2.
L = 2 + 6. c_0 = -1/2 - 1 (pushed up, and imitated), c_1 = +1/4 (pushed down).

The loop sees log-probabilities and scores, never a layer: the backend contract of model.h does the rest.

  train_loop                        epochs, log, checkpoints; OP-k's responses, drawn anew every k steps
    train_step                      one optimizer step
      gpt2_step, per micro-batch    micro_step: forward -> value -> rrhf_loss -> p, c; then the model's backward of c
      gpt2_step_end                 norm, clipping, AdamW
*/
#ifndef RRHF_H
#define RRHF_H

#include "util.h"        // defines: die, Out, Rng, Progress; first, for _GNU_SOURCE
#include <signal.h>      // defines: signal, SIGINT
#include "model.h"       // defines: GPT2 and its contract
#include "dataloader.h"  // defines: Ranked, Batch

// ----------------------------------------------------------------------------
// The objective
//
// BOTH: also compiled for the GPU (util.h).

typedef struct {
    double rank_weight, ft_weight; // of equation 5
    double length_penalty;         // alpha of equation 1
    double margin;                 // lambda of equation 2
    int ft_mean;                   // 1: divide L_ft by n_i*
} Objective;

typedef struct { double loss, rank, ft; } Loss; // rank and ft before weighting, loss after

// gap_ij: how many places apart two rewards are among the query's distinct rewards.
static inline BOTH int rrhf_gap(int k, const float *r, float low, float high) {
    int gap = 0;
    for (int i = 0; i < k; i++) {
        int seen = r[i] <= low || r[i] > high;
        for (int j = 0; j < i && !seen; j++) seen = r[j] == r[i];
        gap += !seen;
    }
    return gap;
}

static inline BOTH double rrhf_score(double logp, int n, double length_penalty) {             // (1)
    return logp / pow(n, length_penalty);
}

// How far a pair r_i < r_j is out of order: its loss is max(0, this), active where positive.          (2)
static inline BOTH double rrhf_violation(const Objective *o, int k, const double *p, const float *r, int i, int j) {
    return p[i] - p[j] + (o->margin != 0 ? o->margin * rrhf_gap(k, r, r[i], r[j]) : 0);
}

static inline BOTH int rrhf_best(int k, const float *r) {                                     // (3)
    int best = 0;
    for (int i = 1; i < k; i++) if (r[i] > r[best]) best = i;
    return best;
}

// Equations 1 to 5 for one query. logp, n, r (k): each response's sum of log P, length and reward. Out: p (k), and
// c (k) = dL/dlog P of each of the response's tokens: the step makes a response with c > 0 less likely.
static inline BOTH Loss rrhf_loss(const Objective *o, int k, const double *logp, const int *n, const float *r,
                                  double *p, double *c) {
    Loss l = {0, 0, 0};
    int best = rrhf_best(k, r);
    for (int i = 0; i < k; i++) {
        p[i] = rrhf_score(logp[i], n[i], o->length_penalty);
        c[i] = 0;
    }
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) {
            if (!(r[i] < r[j])) continue;
            double violation = rrhf_violation(o, k, p, r, i, j);
            if (violation <= 0) continue;
            l.rank += violation;
            c[i] += 1;
            c[j] -= 1;
        }
    for (int i = 0; i < k; i++) c[i] *= o->rank_weight / pow(n[i], o->length_penalty);
    double per = o->ft_mean ? n[best] : 1;
    l.ft = -logp[best] / per;                                                                 // (4)
    c[best] -= o->ft_weight / per;
    l.loss = o->rank_weight * l.rank + o->ft_weight * l.ft;                                   // (5)
    return l;
}

// What the loop calls for each query: rrhf_loss, or a reward model's loss (reward.h), for which logp_i is the scalar
// head's output z_i, and p_i the same.
typedef Loss (*QueryLoss)(const Objective *o, int k, const double *logp, const int *n, const float *r,
                          double *p, double *c);

// value (R) from a forward's output: of a policy the sum of each response's log-probabilities, of a reward model what
// its scalar head gives.
static inline void batch_values(const Batch *b, int reward_model, const real *out, double *value) {
    for (int r = 0; r < b->R; r++) value[r] = reward_model ? (double)out[r] : 0;
    for (int i = 0; i < b->P && !reward_model; i++) value[b->resp[i]] += (double)out[i];
}

// ----------------------------------------------------------------------------
// How many queries at once

static inline int compare_int_down(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }

// Dies where a batch's tokens are more than its numbers can count.
static inline void tokens_check(int micro, int64_t tokens) {
    if (tokens > INT32_MAX / 4)
        die("--micro-batch %d: %" PRId64 " tokens at once; choose a smaller one", micro, tokens);
}

// Bounds on the tokens N, predicting rows U, predictions P and responses R (dataloader.h) of any batch of `micro`
// queries: of each, the sum of its `micro` largest.
static inline void batch_bounds(const Ranked *d, int micro, int bound[4]) {
    size_t Q = (size_t)d->Q;
    int *N = (int *)xalloc(Q * 4, sizeof(int)), *U = N + Q, *P = U + Q, *R = P + Q; // each query's
    int *size[4] = {N, U, P, R};
    for (int q = 0; q < d->Q; q++) batch_count(d, q, &N[q], &U[q], &P[q], &R[q]);
    for (int i = 0; i < 4; i++) {
        int64_t total = 0;
        qsort(size[i], Q, sizeof(int), compare_int_down);
        for (int q = 0; q < min_int(micro, d->Q); q++) total += size[i][q];
        tokens_check(micro, total);
        bound[i] = (int)total;
    }
    free(N);
}

// --micro-batch 0: as many queries as keep a micro-batch at about the tokens that suit the machine. more: tokens that
// each query will get besides (OP-k's responses).
static inline int micro_batch_auto(const GPT2 *m, const Ranked *d, int batch, int more) {
    int64_t tokens = (int64_t)more * d->Q;
    for (int q = 0; q < d->Q; q++) tokens += d->query_len[q];
    for (int r = 0; r < d->R; r++) tokens += d->resp_len[r];
    int64_t micro = gpt2_tokens(m) * (int64_t)d->Q / (tokens ? tokens : 1);
    return micro < 1 ? 1 : micro > batch ? batch : (int)micro;
}

static int evaluate_queries; // --micro-batch where there is no backward; 0: micro_batch_auto (set in verbs.h)

// Queries at once where a model is only evaluated.
static inline int evaluate_micro(const GPT2 *m, const Ranked *d) {
    return evaluate_queries ? min_int(evaluate_queries, d->Q) : micro_batch_auto(m, d, d->Q, 0);
}

// ----------------------------------------------------------------------------
// What a training run is told

enum Schedule { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT }; // in the order of --schedule's choices
static const char *const schedule_names[] = {"linear", "cosine", "constant"};

typedef struct {
    const char *label, *out, *resume;        // label for the progress line; resume may be NULL
    uint64_t seed;
    int batch, micro_batch, epochs, steps;   // steps: stop after this many, 0 = at the end of the epochs
    int shuffle, checkpoint_every, profile;
    enum Schedule schedule;
    double warmup, grad_clip;
    AdamW adam;
    Objective objective;
    QueryLoss loss;
    void *context;                           // of the two functions that follow
    void (*after)(void *context, int step);  // called before the first step and after every one; may be NULL
    // OP-k: before every `refresh`-th step the policy in training answers the queries of the next `refresh` steps.
    // answer returns the n queries of d, in the order of `queries`, answered and scored; the loop frees them. A query
    // that is visited twice comes twice. step: how many are done.
    int refresh;                             // k, 0 = the data's own responses
    Ranked (*answer)(void *context, const Ranked *d, const int *queries, int n, int step);
    int answer_tokens;                       // that it adds to a query, at most
    char responses[512];                     // how they are made: more of the settings
    char settings[2048];                     // what a resumed run must share, a setting a line (train_settings)
} Train;

typedef struct { double step, epoch, loss, rank_loss, ft_loss, lr, grad_norm, ms, tokens_per_s; } LogRow;

typedef struct { LogRow *row; int n; size_t cap; } Log;

static volatile sig_atomic_t interrupted;
static inline void on_interrupt(int sig) {
    static const char said[] = "\nfinishing this step, then saving; Ctrl-C again stops at once and saves nothing\n";
    interrupted = 1;
    signal(sig, SIG_DFL);
    if (write(2, said, sizeof said - 1) < 0) return; // what a handler may call
}

static inline int stop_asked(void) { // by Ctrl-C, of any process: they stop together
    double n = interrupted;
    world_sum(&n, 1, sizeof n);
    return n > 0;
}

// Learning rate of step 1..total: up over the first warmup fraction, reaching lr, then down, to reach 0 a step after
// the last. SCHEDULE_CONSTANT stays at lr.
static inline double learning_rate(const Train *t, int step, int total) {
    int up = (int)ceil(t->warmup * total - 1e-9); // 0.07 * 100 is 7.000000000000001 in double: 7 steps, not 8
    if (step <= up) return t->adam.lr * step / up;
    double left = (double)(total - step + 1) / (total - up); // 1 at the first step after the warm-up
    if (t->schedule == SCHEDULE_LINEAR) return t->adam.lr * left;
    if (t->schedule == SCHEDULE_COSINE) return t->adam.lr * 0.5 * (1 - cos(3.141592653589793 * left));
    return t->adam.lr;
}

// ----------------------------------------------------------------------------
// One step, and a model's values of a whole data set

// A step's arrays, with room for its largest micro-batch, and how far the step is.
typedef struct {
    Batch b;
    real *out;            // (P) log P of each target; of a reward model (R), z_i
    double *value, *p;    // (R) the loss's input, a response's sum of log P, and p_i; of a reward model, both z_i
    double *c;            // (R) dL/dvalue, L being the loss of the response's own query
    real *coef;           // (R) c over the step's number of queries: the mean loss's gradient, for the backward
    AdamW adam;           // with this step's learning rate
    int queries, step;    // queries of the whole step; its number, from 1
    Loss sum;             // so far, a mean over those queries
    int following;        // so many queries right after this step's are the next step's; 0: not known
    const int *next;      // the next micro-batch's queries, and how many they are; 0: not known
    int n_next;
    int ahead;            // the backend's own: b holds the next micro-batch already
} StepRoom;

static inline StepRoom step_room(GPT2 *m, const Ranked *d, int micro) {
    int bound[4];
    StepRoom s = {0};
    batch_bounds(d, micro, bound);
    s.b = batch_make(bound[0], bound[1], bound[2], bound[3], micro);
    s.out = (real *)xalloc((size_t)bound[2], sizeof(real));
    s.coef = (real *)xalloc((size_t)bound[3], sizeof(real));
    s.value = (double *)xalloc((size_t)bound[3], sizeof(double));
    s.p = (double *)xalloc((size_t)bound[3], sizeof(double));
    s.c = (double *)xalloc((size_t)bound[3], sizeof(double));
    gpt2_plan(m, bound[0], gpt2_config(m).reward ? bound[3] : bound[1]);
    return s;
}

static inline void step_room_free(StepRoom *s) {
    batch_free(&s->b);
    free(s->out); free(s->coef); free(s->value); free(s->p); free(s->c);
}

// Forward of the n queries queries[0..n-1] of d: s->value of each of their responses, s->b being their batch.
static inline void forward_values(GPT2 *m, StepRoom *s, const Ranked *d, const int *queries, int n) {
    batch_pack(&s->b, d, queries, n);
    gpt2_forward(m, &s->b, s->out);
    batch_values(&s->b, gpt2_config(m).reward, s->out, s->value);
}

// value (R) of every response of the data set under a model: sum of log P, or the head's output. Processes share the
// queries.
static inline void evaluate_all(GPT2 *m, const Ranked *d, const char *label, double *value) {
    int micro = evaluate_micro(m, d), begin, end;
    StepRoom s = step_room(m, d, micro);
    int *order = (int *)xalloc((size_t)d->Q, sizeof(int));
    Progress bar = progress_start(label, 0);
    for (int q = 0; q < d->Q; q++) order[q] = q;
    memset(value, 0, (size_t)d->R * sizeof *value);
    world_part(d->Q, &begin, &end);
    for (int q = begin, n; q < end; q += n) {
        n = min_int(micro, end - q);
        forward_values(m, &s, d, order + q, n);
        for (int i = 0, r = d->first[q]; i < s.b.R; i++, r++) {
            value[r] = s.value[i];
            if (!isfinite(value[r])) die("NaN: the model gives response %d of the data set a value of %g; "
                                         "its checkpoint is damaged or diverged", r, value[r]);
        }
        progress(&bar, q + n - begin, end - begin, "queries");
    }
    world_sum(value, (size_t)d->R, sizeof *value);
    step_room_free(&s);
    free(order);
}

static inline void check_value(int step, int query, int response, double value) {
    if (!isfinite(value))
        die("NaN: step %d, query %d, response %d: value %g; " ON_NAN, step, query, response, value);
}

static inline void check_norm(int step, double norm, double loss) {
    if (!isfinite(norm))
        die("NaN: step %d: the gradient's norm is %g (loss %g); " ON_NAN, step, norm, loss);
}

// One micro-batch up to its gradient: forward -> values -> losses -> coefficients, in s->coef.
static inline void micro_step(GPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n) {
    double scale = 1.0 / s->queries;
    Batch *b = &s->b;
    forward_values(m, s, d, queries, n);
    for (int g = 0; g < n; g++) {
        int i = b->first[g], k = b->first[g + 1] - i;
        Loss l = t->loss(&t->objective, k, s->value + i, b->resp_len + i, b->score + i, s->p + i, s->c + i);
        for (int j = i; j < i + k; j++) {
            check_value(s->step, b->query[g], j - i, s->value[j]);
            s->coef[j] = (real)(s->c[j] * scale);
        }
        s->sum.loss += l.loss * scale;
        s->sum.rank += l.rank * scale;
        s->sum.ft += l.ft * scale;
    }
}

// What clipping multiplies the gradient by.
static inline BOTH double clip_scale(double norm, double clip) { return clip > 0 && norm > clip ? clip / norm : 1; }

// Is a step of so many queries one micro-batch of one process, without clipping? Its update need not wait for the rest.
static inline int step_at_once(const Train *t, int queries) {
    return queries <= t->micro_batch && !(t->grad_clip > 0) && world_size == 1;
}

// What the loop asks of the backend beyond model.h. gpt2_step: micro_step, then the backward of its coefficients.
// gpt2_step_end: the gradient's norm, clipping, the update; returns the losses, means over the step's queries. Each
// backend takes its own way there:
//   CPU  Where nothing clips, the norm is taken during the update; where step_at_once, the update is part of the
//        backward. A norm that is not finite then ends the run after the update, with nothing saved.
//   GPU  It computes the losses itself and hands nothing back before gpt2_step_end, so that it never waits for the
//        host, which packs the next micro-batch, s->next, while the device works. Where a value or the norm is not
//        finite it leaves the weights alone, and gpt2_step_end dies.
void gpt2_step(GPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n);
Loss gpt2_step_end(GPT2 *m, const Train *t, StepRoom *s, double *grad_norm);

// One optimizer step over the n queries, which processes share. Returns the losses before the update; adds the tokens
// computed to *tokens.
static inline Loss train_step(GPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n,
                              double lr, int step, double *grad_norm, int64_t *tokens) {
    s->adam = t->adam;
    s->adam.lr = lr;
    s->queries = n;
    s->step = step;
    int begin, end, next, next_end, N = 0, U = 0, P = 0, R = 0;
    memset(&s->sum, 0, sizeof s->sum);
    gpt2_zero_grad(m);
    world_part(n, &begin, &end);
    world_part(s->following, &next, &next_end); // this process's part of the next step
    for (int i = begin, now; i < end; i += now) {
        now = min_int(t->micro_batch, end - i);
        int last = i + now == end;
        s->next = last ? queries + n + next : queries + i + now;
        s->n_next = min_int(t->micro_batch, last ? next_end - next : end - i - now);
        gpt2_step(m, t, s, d, queries + i, now);
    }
    for (int i = begin; i < end; i++) batch_count(d, queries[i], &N, &U, &P, &R);
    if (world_size > 1) gpt2_grad_sum(m);
    Loss l = gpt2_step_end(m, t, s, grad_norm);
    double all[4] = {l.loss, l.rank, l.ft, (double)N};
    world_sum(all, 4, sizeof *all);
    l.loss = all[0], l.rank = all[1], l.ft = all[2], *tokens += (int64_t)all[3];
    return l;
}

// ----------------------------------------------------------------------------
// Which queries, and OP-k's responses to them

static inline int epoch_steps(const Train *t, const Ranked *d) { return (d->Q + t->batch - 1) / t->batch; }

// Where a step's queries (step from 0) begin in their epoch's order, and how many they are.
static inline int step_at(const Train *t, const Ranked *d, int step) { return step % epoch_steps(t, d) * t->batch; }
static inline int step_size(const Train *t, const Ranked *d, int step) {
    return min_int(t->batch, d->Q - step_at(t, d, step));
}

// The optimizer steps of all epochs.
static inline int train_steps(const Train *t, const Ranked *d) {
    int64_t n = (int64_t)t->epochs * epoch_steps(t, d);
    if (n > INT32_MAX)
        die_usage("--epochs %d: %" PRId64 " optimizer steps of --batch %d are more than %d; choose fewer epochs",
                  t->epochs, n, t->batch, INT32_MAX);
    return (int)n;
}

// Points *queries at those that step (from 0) visits and returns how many. They lie in order (Q), which is shuffled
// anew for each epoch; *epoch: the one that it is shuffled for, -1 = none yet.
static inline int step_queries(const Train *t, const Ranked *d, int step, int *order, int *epoch, const int **queries) {
    if (*epoch != step / epoch_steps(t, d)) {
        *epoch = step / epoch_steps(t, d);
        Rng r = rng_make(t->seed, RNG_SHUFFLE, (uint64_t)*epoch); // from the seed alone: a resumed run shuffles alike
        if (t->shuffle) rng_shuffle(&r, order, d->Q);
        else for (int q = 0; q < d->Q; q++) order[q] = q;
    }
    *queries = order + step_at(t, d, step);
    return step_size(t, d, step);
}

// Of the queries that follow a step's in its order, how many are the next step's; 0 where the next step is the first of
// an epoch or of a window, or is none.
static inline int step_following(const Train *t, const Ranked *d, int step, int end) {
    int next = step + 1, anew = step_at(t, d, next) == 0 || (t->refresh && next % t->refresh == 0);
    return next < end && !anew ? step_size(t, d, next) : 0;
}

// OP-k's window of data: fresh responses to the queries of the steps from one refresh to the next, in the order of
// their visits. A state.bin saved within a window contains it.
typedef struct {
    Ranked d;      // Q = 0: no window
    int visits;    // its queries that steps have taken so far
    int *index;    // 0, 1, .. Q-1: its queries in order; train_loop frees d and index
} Window;

// Makes the window that `step` of `total` needs. A run resumed within it keeps the responses that its state.bin held.
static inline void window_refresh(Window *w, const Train *t, const Ranked *d, int step, int total) {
    int first = step / t->refresh * t->refresh, steps = min_int(t->refresh, total - first), epoch = -1, n = 0;
    int *order = (int *)xalloc((size_t)d->Q, sizeof(int));
    int *visit = (int *)xalloc((size_t)steps * (size_t)min_int(t->batch, d->Q), sizeof(int));
    w->visits = 0;
    for (int s = first; s < first + steps; s++) {
        const int *queries;
        int m = step_queries(t, d, s, order, &epoch, &queries);
        memcpy(visit + n, queries, (size_t)m * sizeof(int));
        n += m;
        if (s < step) w->visits = n; // where a resumed run stands in it
    }
    if (step == first) {
        ranked_free(&w->d);
        w->d = t->answer(t->context, d, visit, n, step);
    }
    if (w->d.Q != n)
        die("OP-k: the state holds responses to %d queries, expected the %d of steps %d to %d; start without --resume",
            w->d.Q, n, first, first + steps - 1);
    free(w->index);
    w->index = (int *)xalloc((size_t)n, sizeof(int));
    for (int i = 0; i < n; i++) w->index[i] = i;
    free(order);
    free(visit);
}

// ----------------------------------------------------------------------------
// Settings: everything that decides a step's bits, so that a resumed run can be refused with a reason

static inline uint64_t ranked_hash(const Ranked *d) { // of the tokens in use and the scores
    size_t Q = (size_t)d->Q, R = (size_t)d->R;
    uint64_t h = hash64(HASH64, d->first, (Q + 1) * sizeof *d->first);
    h = hash64(h, d->query_len, Q * sizeof *d->query_len);
    h = hash64(h, d->resp_len, R * sizeof *d->resp_len);
    h = hash64(h, d->score, R * sizeof *d->score);
    for (int q = 0; q < d->Q; q++) h = hash64(h, d->tokens + d->query_at[q], 2 * (size_t)d->query_len[q]);
    for (int r = 0; r < d->R; r++) h = hash64(h, d->tokens + d->resp_at[r], 2 * (size_t)d->resp_len[r]);
    return h;
}

// Hashes SAMPLE of every GPT2_PART parameters: all of a large model would take as long as loading it, and models that
// were trained differently differ everywhere.
static inline uint64_t gpt2_hash(GPT2 *m) {
    enum { SAMPLE = 1024 };
    float part[SAMPLE];
    size_t n = gpt2_count(gpt2_config(m));
    uint64_t h = HASH64;
    for (size_t at = 0; at < n; at += GPT2_PART) {
        size_t k = n - at < SAMPLE ? n - at : SAMPLE;
        gpt2_get_part(m, COPY_PARAMS, at, k, part);
        h = hash64(h, part, k * sizeof *part);
    }
    return h;
}

// Writes t->settings; m must still be the start, which is hashed. Also chooses --micro-batch, which decides how sums
// round.
static inline void train_settings(Train *t, GPT2 *m, const Ranked *d) {
    Config c = gpt2_config(m);
    const Objective *o = &t->objective;
    if (t->micro_batch < 1) t->micro_batch = micro_batch_auto(m, d, t->batch, t->answer_tokens);
    if (t->micro_batch > t->batch) t->micro_batch = t->batch;
    snprintf(t->settings, sizeof t->settings,
             "model T%d V%d L%d NH%d C%d reward%d\nstart #%016" PRIx64 "\ndtype %s\n"
             "data %d queries %d responses #%016" PRIx64 "\n"
             "seed %" PRIu64 "\nbatch %d\nmicro-batch %d\nepochs %d\nshuffle %d\n"
             "lr %.9g\nschedule %s\nwarmup %.9g\nbeta1 %.9g\nbeta2 %.9g\neps %.9g\nweight-decay %.9g\ngrad-clip %.9g\n"
             "rank-weight %.9g\nft-weight %.9g\nft-reduction %s\nlength-penalty %.9g\nmargin %.9g\n"
             "refresh %d\nprocesses %d\n%s",
             c.T, c.V, c.L, c.NH, c.C, c.reward, gpt2_hash(m), backend_dtype(),
             d->Q, d->R, ranked_hash(d), t->seed, t->batch, t->micro_batch, t->epochs, t->shuffle,
             t->adam.lr, schedule_names[t->schedule], t->warmup, t->adam.beta1, t->adam.beta2, t->adam.eps,
             t->adam.weight_decay, t->grad_clip, o->rank_weight, o->ft_weight, o->ft_mean ? "mean" : "sum",
             o->length_penalty, o->margin, t->refresh, world_size, t->responses);
}

// Dies where the run in t->resume was begun with other settings, and names the first that differs.
static inline void settings_check(const Train *t, const char *settings) {
    const char *there = settings, *here = t->settings; // the setting that is being compared
    for (size_t i = 0; settings[i] == t->settings[i]; i++) {
        if (!settings[i]) return;
        if (settings[i] == '\n') there = settings + i + 1, here = t->settings + i + 1;
    }
    if (!*there) there = "fewer settings";
    if (!*here) here = "with fewer settings";
    die("--resume %s: it was begun with %.*s, this is %.*s; give the same options, or start without --resume",
        t->resume, (int)strcspn(there, "\n"), there, (int)strcspn(here, "\n"), here);
}

// ----------------------------------------------------------------------------
// State: log.csv, and state.bin to resume from

static inline void log_write(const Train *t, const Log *log) {
    char path[RRHF_PATH_MAX];
    Out out = out_open(path_join(path, t->out, "log.csv"));
    out_printf(&out, "step,epoch,loss,rank_loss,ft_loss,lr,grad_norm,ms,tokens_per_s\n");
    for (int i = 0; i < log->n; i++) {
        const LogRow *r = &log->row[i];
        out_printf(&out, "%.0f,%.0f,%.9g,%.9g,%.9g,%.9g,%.9g,%.2f,%.0f\n", r->step, r->epoch, r->loss, r->rank_loss,
                   r->ft_loss, r->lr, r->grad_norm, r->ms, r->tokens_per_s);
    }
    out_close(&out);
}

// state.bin: int32[256] {20230412, 1, settings' length, log rows}, the settings, the log (9 doubles a
// row), the parameters and both moments (float32); then, within one of OP-k's windows, a ranked file: the window.
enum { STATE_MAGIC = 20230412, STATE_VERSION = 1 };

static inline void state_write(GPT2 *m, const Train *t, const Log *log, const Window *w) {
    char path[RRHF_PATH_MAX];
    int32_t h[256] = {STATE_MAGIC, STATE_VERSION, (int32_t)strlen(t->settings), log->n};
    Out out = out_open(path_join(path, t->out, "state.bin"));
    out_write(&out, h, sizeof h);
    out_write(&out, t->settings, strlen(t->settings));
    out_write(&out, log->row, (size_t)log->n * sizeof *log->row);
    enum Copy parts[3] = {COPY_PARAMS, COPY_M, COPY_V};
    for (int i = 0; i < 3; i++) gpt2_write(m, parts[i], &out);
    if (w->visits < w->d.Q) ranked_put(&out, &w->d);
    out_close(&out);
}

// Reads state.bin of t->resume into m, log and w.
static inline void state_read(GPT2 *m, const Train *t, Log *log, Window *w) {
    char path[RRHF_PATH_MAX], settings[sizeof t->settings];
    int32_t h[256];
    size_t n = gpt2_count(gpt2_config(m));
    In in = in_open(path_join(path, t->resume, "state.bin"));
    in_header(&in, h, STATE_MAGIC, STATE_VERSION, "training state");
    if (h[2] < 0 || h[2] >= (int)sizeof settings || h[3] < 0)
        die("%s: damaged header; start without --resume", path);
    memset(settings, 0, sizeof settings);
    in_read(&in, settings, h[2], "the settings");
    settings_check(t, settings);
    if ((int64_t)h[3] * (int64_t)sizeof(LogRow) > in_left(&in)) die("%s: truncated: its log has %d rows", path, h[3]);
    XGROW(log->row, log->cap, (size_t)h[3]);
    in_read(&in, log->row, (int64_t)h[3] * (int64_t)sizeof *log->row, "the log");
    log->n = h[3];
    for (int i = 0; i < log->n; i++) {
        const double *v = &log->row[i].step;
        if (*v != i + 1) die("%s: row %d of its log is step %g; damaged: start without --resume", path, i + 1, *v);
        for (size_t k = 0; k < sizeof *log->row / sizeof *v; k++)
            if (!isfinite(v[k]))
                die("%s: row %d of its log has a %g; damaged: start without --resume", path, i + 1, v[k]);
    }
    if ((int64_t)(3 * n * sizeof(float)) > in_left(&in))
        die("%s: %" PRId64 " bytes of parameters and moments, expected %zu; truncated, or of another model",
            path, in_left(&in), 3 * n * sizeof(float));
    float *part = (float *)xalloc(GPT2_PART, sizeof *part);
    enum Copy parts[3] = {COPY_PARAMS, COPY_M, COPY_V};
    for (int i = 0; i < 3; i++)
        for (size_t at = 0, k; at < n; at += k) {
            k = gpt2_part(at, n);
            in_read(&in, part, (int64_t)(k * sizeof *part), "the optimizer's state");
            for (size_t j = 0; j < k; j++)
                if (!isfinite(part[j]) || (parts[i] == COPY_V && part[j] < 0))
                    die("%s: number %zu of part %d is %g; damaged: start without --resume", path, at + j, i, part[j]);
            gpt2_set_part(m, parts[i], at, k, part);
        }
    if (t->refresh && in_left(&in)) {
        w->d = ranked_get(&in);
        ranked_check(&w->d, path, gpt2_config(m).V, gpt2_config(m).T);
    }
    in_close(&in);
    free(part);
}

// ----------------------------------------------------------------------------
// The loop

// Call when all that a run leaves is there, its plots and samples too: a finished one leaves settings.txt, which says
// that it is, and no state.
static inline void train_done(const Train *t, const Ranked *d, const Log *log) {
    char path[RRHF_PATH_MAX];
    if (log->n < train_steps(t, d)) return;
    Out out = out_open(path_join(path, t->out, "settings.txt"));
    out_write(&out, t->settings, strlen(t->settings));
    out_close(&out);
    if (!world_rank) unlink(path_join(path, t->out, "state.bin"));
    world_wait();
}

// All processes took the same steps, from the same start and with the same gradients.
static inline void weights_check(GPT2 *m) {
    uint64_t own = gpt2_hash(m), first = own;
    world_give(&first, sizeof first, 0);
    double others = own != first;
    world_sum(&others, 1, sizeof others);
    if (others > 0)
        die("%.0f of %d processes have come to other weights than process 0; no file was overwritten: use machines of "
            "one kind", others, world_size);
}

// policy.bin and log.csv come first: where the disk is full, the result is there and only the state, three times as
// large, is not. A run killed in between resumes from the previous state.bin and writes both again.
static inline void train_save(GPT2 *m, const Train *t, const Log *log, const Window *w) {
    char path[RRHF_PATH_MAX];
    if (world_size > 1) weights_check(m);
    if (!world_rank) {
        gpt2_save(m, path_join(path, t->out, "policy.bin"));
        log_write(t, log);
        state_write(m, t, log, w);
    }
    world_wait(); // until the files are there
}

// Has the run in t->resume finished? Then the loop has nothing to do. After train_settings.
static inline int train_finished(const Train *t, const Ranked *d) {
    char path[RRHF_PATH_MAX], settings[sizeof t->settings];
    int total = train_steps(t, d);
    if (!t->resume || !exists_in(t->resume, "settings.txt")) return 0;
    In in = in_open(path_join(path, t->resume, "settings.txt"));
    if (in.size >= (int64_t)sizeof settings)
        die("%s: %" PRId64 " bytes, but settings take less than %zu; damaged: start without --resume",
            path, in.size, sizeof settings);
    memset(settings, 0, sizeof settings);
    in_read(&in, settings, in.size, "the settings");
    in_close(&in);
    settings_check(t, settings);
    if (!exists_in(t->resume, "policy.bin"))
        die("--resume %s: that run has finished, but its policy.bin is gone; start without --resume", t->resume);
    if (!same_path(t->resume, t->out))
        die("--resume %s: that run has finished and its policy.bin is the result; nothing is left to do in --out %s",
            t->resume, t->out);
    fprintf(stderr, "%-8s nothing to do: %s stands at step %d of %d\n", t->label, t->resume, total, total);
    return 1;
}

// Trains m on d and leaves policy.bin, log.csv and state.bin in t->out; train_settings and train_finished come before,
// train_done later. Returns 0, or 1 when Ctrl-C stopped it.
static inline int train_loop(GPT2 *m, const Ranked *d, const Train *t, Log *log) {
    int total = train_steps(t, d), step = 0, epoch = -1, stop = 0;
    int end = t->steps ? min_int(t->steps, total) : total;
    char path[RRHF_PATH_MAX];
    Window w = {0};
    if (t->resume) {
        state_read(m, t, log, &w);
        step = log->n;
        if (step > total)
            die("%s/state.bin: %d steps are done of %d; damaged: start without --resume", t->resume, step, total);
        if (step < end) fprintf(stderr, "%-8s going on from step %d of %d\n", t->label, step, total);
        else fprintf(stderr, "%-8s nothing to do: %s stands at step %d of %d\n", t->label, t->resume, step, total);
        if (t->refresh && step % t->refresh && step < total) window_refresh(&w, t, d, step, total);
    }
    if (!world_rank) unlink(path_join(path, t->out, "settings.txt")); // an earlier run's
    StepRoom s = step_room(m, w.d.Q ? &w.d : d, t->micro_batch);
    int *order = (int *)xalloc((size_t)d->Q, sizeof(int));
    int begun = step;
    interrupted = 0;
    signal(SIGINT, on_interrupt);
    Progress bar = progress_start(t->label, step);
    double saved = now_s();
    if (t->after && !step) t->after(t->context, 0);
    while (step < end && !(stop = stop_asked())) {
        const int *queries;
        int n = step_queries(t, d, step, order, &epoch, &queries);
        if (t->profile && step <= begun + 1) backend_profile(0); // anew after the first, which also brings memory in
        if (t->refresh && step % t->refresh == 0) {
            window_refresh(&w, t, d, step, total);
            step_room_free(&s);
            s = step_room(m, &w.d, t->micro_batch);
        }
        if (t->refresh) queries = w.index + w.visits, w.visits += n;
        double start = now_s(), grad_norm = 0, lr = learning_rate(t, step + 1, total);
        int64_t tokens = 0;
        s.following = step_following(t, d, step, end);
        Loss l = train_step(m, t, &s, t->refresh ? &w.d : d, queries, n, lr, step + 1, &grad_norm, &tokens);
        double seconds = now_s() - start;
        LogRow row = {(double)++step, (double)epoch + 1, l.loss, l.rank, l.ft, lr, grad_norm,
                      seconds * 1e3, (double)tokens / seconds};
        XGROW(log->row, log->cap, (size_t)log->n + 1);
        log->row[log->n++] = row;
        progress(&bar, step, end, "loss %.4g  rank %.4g  ft %.4g  %.0f tok/s", l.loss, l.rank, l.ft, row.tokens_per_s);
        if (t->after) t->after(t->context, step);
        if (t->checkpoint_every && step % t->checkpoint_every == 0 && step < end) train_save(m, t, log, &w);
        else if (now_s() - saved > 20) log_write(t, log), saved = now_s(); // the log can be watched
    }
    if (t->profile && step > begun) backend_profile(step > begun + 1 ? step - begun - 1 : 1);
    train_save(m, t, log, &w);
    signal(SIGINT, SIG_DFL); // not before: a first Ctrl-C must not interrupt the saving
    if (!stop) stop = stop_asked(); // during the last step or the saving: what comes after is stopped
    free(order);
    free(w.index);
    ranked_free(&w.d);
    step_room_free(&s);
    gpt2_unplan(m); // what follows, samples and a picture, needs the memory more
    interrupted = 0; // it has been heard
    return stop;
}

#endif
