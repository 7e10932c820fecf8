/*
sampler.h: sampling policies over a key/value cache. Sees logits, or the largest of them, and the cache, nothing else.

  Ranked sample(GPT2 *m, const Ranked *queries, Sampling s, int keep_own, const char *label)
  Ranked beam_search(GPT2 *m, const Ranked *queries, Beaming b, int keep_own, const char *label)

Both return the same queries, each with its own responses (keep_own, scores 0) followed by num_return new ones. A
response ends with the end-of-text token, which it keeps, or after max_new_tokens. label: of the progress line, or "".

sample        temperature, top-k, top-p; scores 0. Each completion draws from a random stream of its own: that of the
              seed and its number in the result, counting new completions only.
beam_search   the num_beams most probable beginnings go on together; the best num_return come back, best first, with
              the score of the search. num_beam_groups > 1 is diverse beam search: groups choose one after another, and
              a token costs diversity_penalty for each time that earlier groups have just chosen it. No randomness.
              A query has fewer responses only where fewer than num_return texts exist.

The cache is a row of slots, one token's keys and values each, and a sequence is a list of slots (model.h, Decode).
The query is computed once and named by all its sequences; a beam that forks copies its list, never the cache.
Queries run in waves. How many run at once changes neither texts nor scores (a BLAS may round the scores differently).
The backend selects: beams see k candidates per row, sampling a token per sequence. What a random number means does not
depend on the backend: draws differ from another's only where the two round logits, or exp, differently.
*/
#ifndef SAMPLER_H
#define SAMPLER_H

#include "util.h"        // defines: die, die_usage, thread_count, Rng, Progress
#include "model.h"       // defines: GPT2, Decode
#include "dataloader.h"  // defines: Ranked

typedef struct {
    int num_return, max_new_tokens;
    Draw draw;
    int eot;                  // end-of-text id, -1 = none
    uint64_t seed;
} Sampling;

typedef struct {
    int num_beams;            // per query; 1 = greedy
    int num_beam_groups;      // divides num_beams; 1 = plain beam search
    double diversity_penalty; // >= 0; nothing to one group
    double length_penalty;    // a response's score is its log-probability / length^this; 1 but in tests (the program's
                              // --length-penalty is RRHF's alpha, rrhf.h)
    int num_return;           // 1 .. num_beams
    int max_new_tokens;
    int eot;                  // end-of-text id, -1 = none
} Beaming;

// ----------------------------------------------------------------------------
// The most probable tokens

static inline int compare_candidates(const void *a, const void *b) { // by logit, descending; then by id
    const Candidate *x = (const Candidate *)a, *y = (const Candidate *)b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

static inline int compare_ids(const void *a, const void *b) {
    return ((const Candidate *)a)->id - ((const Candidate *)b)->id;
}

// Restores the heap property (the candidate that comes last on top) below i.
static inline void heap_sink(Candidate *h, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && compare_candidates(&h[child + 1], &h[child]) > 0) child++;
        if (compare_candidates(&h[i], &h[child]) >= 0) return;
        Candidate t = h[i];
        h[i] = h[child];
        h[child] = t;
    }
}

// The k largest logits, of equal ones the lower ids, in the order of their ids; k = 0: all. room (k, or V)
// Few logits get past the least of the k so far: a span without one costs a comparison per logit, many at a time.
static inline int top_k_candidates(Candidate *room, const real *logits, int V, int k) {
    enum { SPAN = 32 };
    if (k <= 0 || k > V) k = V;
    for (int v = 0; v < k; v++) room[v].logit = (float)logits[v], room[v].id = v;
    if (k == V) return k;
    for (int i = k / 2 - 1; i >= 0; i--) heap_sink(room, k, i);
    for (int v0 = k; v0 < V; v0 += SPAN) {
        int v1 = v0 + SPAN < V ? v0 + SPAN : V, larger = 0;
        float least = room[0].logit;
        for (int v = v0; v < v1; v++) larger |= logits[v] > least;
        for (int v = v0; larger && v < v1; v++) {
            if (!(logits[v] > room[0].logit)) continue;
            room[0].logit = (float)logits[v];
            room[0].id = v;
            heap_sink(room, k, 0);
        }
    }
    qsort(room, (size_t)k, sizeof *room, compare_ids);
    return k;
}

// ----------------------------------------------------------------------------
// Choosing one token at random
//
// A token's weight is exp((logit - max) / temperature), counted in whole units of 2^-40. Sums of whole numbers are
// exact in any order, so every backend draws the same token: the first, by id, whose weight and those before it exceed
// u of the total.

static inline BOTH float draw_weight(float logit, float max, double temperature) {
    return expf((logit - max) * (float)(1 / (temperature > 1e-30 ? temperature : 1e-30))); // 0 times infinity is a NaN
}

static inline BOTH uint64_t draw_units(float weight) { return weight > 0 ? (uint64_t)(weight * 0x1p40f) : 0; }

// The least number of units that the kept tokens must have. Top-k comes before top-p, as in transformers.
static inline BOTH uint64_t draw_enough(uint64_t total, double top_p) {
    uint64_t enough = (uint64_t)ceil(top_p * (double)total);
    if (enough < 1) enough = 1;
    return enough < total ? enough : total;
}

// How many of the kept units come before the one that u draws.
static inline BOTH uint64_t draw_before(uint64_t total, double u) {
    uint64_t before = (uint64_t)(u * (double)total);
    return before < total ? before : total - 1;
}

// How many candidates of a row a draw needs.
static inline int draw_width(Draw how, int V) {
    int k = how.temperature > 0 ? how.top_k : 1;
    return k > 0 && k < V ? k : V;
}

// Of n candidates whose `logit` is by now a weight, the smallest set that holds top_p of the total: the heaviest, of
// equal ones the lower ids, at least one. Returns how many, and their total; they stay in the order of their ids.
static inline int draw_top_p(Candidate *room, int n, double top_p, uint64_t *total) {
    // At most total - enough units may be left out. Tokens below `least`, a share of 1/n of that, hold less than that
    // together: none is in the set, and only the others are sorted.
    uint64_t enough = draw_enough(*total, top_p), least = (*total - enough) / (uint64_t)n;
    int heavy = 0, kept = 0;
    for (int i = 0; i < n; i++) if (draw_units(room[i].logit) >= least) room[heavy++] = room[i];
    qsort(room, (size_t)heavy, sizeof *room, compare_candidates);
    *total = 0;
    do *total += draw_units(room[kept++].logit);
    while (kept < heavy && *total < enough);
    qsort(room, (size_t)kept, sizeof *room, compare_ids);
    return kept;
}

// Draws one of n candidates, which are in the order of their ids; -1: no weight is a number. room (n) is spent
static inline int draw(Candidate *room, int n, Draw how, double u) {
    float max = room[0].logit;
    uint64_t total = 0;
    for (int i = 1; i < n; i++) max = fmaxf(max, room[i].logit);
    for (int i = 0; i < n; i++) total += draw_units(room[i].logit = draw_weight(room[i].logit, max, how.temperature));
    if (!total) return -1;
    if (how.top_p < 1) n = draw_top_p(room, n, how.top_p, &total);
    uint64_t before = draw_before(total, u);
    for (int i = 0; i < n - 1; i++) {
        uint64_t units = draw_units(room[i].logit);
        if (before < units) return room[i].id;
        before -= units;
    }
    return room[n - 1].id;
}

// ----------------------------------------------------------------------------
// Beam search: one group's step
//
// The semantics are those of Hugging Face generate (transformers 4.46, early_stopping = False; test/test_sampler.c
// compares). A group of g beams looks at its 2g best continuations. Of these, end-of-text makes a finished response, a
// hypothesis, if it is among the g best; the first g others are the next beams. The group keeps its g best hypotheses
// and is done when it has g and none of its beams, if ended now, would beat the worst of them. Beams still open after
// max_new_tokens are hypotheses too. In short:
//   - a score is sum log P / n^length_penalty, n = tokens of the response, its end-of-text included;
//   - the diversity penalty is part of log P: it stays in the beam's sum and in the final score;
//   - a group that is done counts as choosing end-of-text with each of its beams (generate pads with it, given a
//     vocabulary like GPT-2's without a padding token).
// Temperature, top-k and top-p have no part in it: generate warps logits only where it samples (do_sample), and it
// refuses to sample with groups. The authors do not sample: the paper's temperature of 0.8 for diverse beams changes
// nothing.

typedef struct { double sum; int beam, token; } Continuation; // sum: of log P, penalties included

static inline int compare_continuations(const void *a, const void *b) { // by sum, descending; then by beam, token
    const Continuation *x = (const Continuation *)a, *y = (const Continuation *)b;
    if (x->sum != y->sum) return x->sum < y->sum ? 1 : -1;
    return x->beam != y->beam ? x->beam - y->beam : x->token - y->token;
}

// What a decode gave of each row: its k largest logits and its log sum exp.
typedef struct { const Candidate *top; const double *lse; int k; } Rows;

// The `want` best continuations of n beams, best first, at the front of all (n rows.k); returns how many there are.
// beam (n): each beam so far; row (n): its row of logits. A token costs `penalty` for each time it stands in chosen.
// That lowers at most n_chosen tokens of a row, so rows.k = want + n_chosen candidates of it (or V) are enough.
static inline int beam_continuations(Continuation *all, int want, Rows rows, const Continuation *beam, const int *row,
                                     int n, const int *chosen, int n_chosen, double penalty) {
    int found = 0;
    for (int b = 0; b < n; b++) {
        const Candidate *top = rows.top + (size_t)row[b] * (size_t)rows.k;
        double base = beam[b].sum - rows.lse[row[b]];
        for (int i = 0; i < rows.k; i++) {
            Continuation *c = &all[found++];
            c->sum = base + top[i].logit;
            c->beam = b;
            c->token = top[i].id;
            for (int j = 0; j < n_chosen; j++) if (chosen[j] == c->token) c->sum -= penalty;
        }
    }
    qsort(all, (size_t)found, sizeof *all, compare_continuations);
    return found < want ? found : want;
}

typedef struct { double score; int len; uint16_t *text; } Hypothesis; // text (max_new_tokens)

typedef struct {
    int live, done;          // beams now, at most size: 1 at the start; done = 1: its hypotheses are final
    Continuation *beam;      // (size) each beam: the continuation that made it
    int n;                   // hypotheses
    Hypothesis *hyp;         // (size), oldest first
} Group;

static inline int group_worst(const Group *g) { // the oldest of equals
    int worst = 0;
    for (int i = 1; i < g->n; i++) if (g->hyp[i].score < g->hyp[worst].score) worst = i;
    return worst;
}

// Makes room for a hypothesis; returns where its text goes, NULL if the group has g that are as good.
static inline uint16_t *group_keep(Group *g, int size, double score, int len) {
    Hypothesis *h = &g->hyp[g->n];
    if (g->n == size) {
        int worst = group_worst(g);
        if (!(score > g->hyp[worst].score)) return NULL;
        uint16_t *text = g->hyp[worst].text;
        h = &g->hyp[size - 1];
        memmove(g->hyp + worst, g->hyp + worst + 1, (size_t)(size - 1 - worst) * sizeof *h);
        h->text = text;
    } else g->n++;
    h->score = score;
    h->len = len;
    return h->text;
}

static inline double beam_score(double sum, int len, double length_penalty) { return sum / pow(len, length_penalty); }

// ----------------------------------------------------------------------------
// A wave: some queries with all their sequences, advanced together

static int wave_sequences = 256; // at once, roughly, on a machine that 2,048 tokens fill (a test changes it)

typedef struct {
    Decode d;               // its list is (S, stride)
    int *spare;             // (S, stride) the lists of forked beams
    int S, stride, slots;   // sequences, room for a sequence's list, slots in use
    uint16_t *token;        // (slots) what each slot holds: a sequence's text is its list
    int *list_len;          // (S)  tokens so far, the query's included
    int *from;              // (S)  the row of logits that a sequence goes on from
} Wave;

static inline int longest_query(const Ranked *d) {
    int longest = 1;
    for (int q = 0; q < d->Q; q++) longest = d->query_len[q] > longest ? d->query_len[q] : longest;
    return longest;
}

// How many queries go at once, each with k sequences? Bounded by sequences, by query tokens and by the cache's memory,
// each up to eight times as much on a larger machine.
static inline int wave_queries(const GPT2 *m, const Ranked *d, int k, int max_new_tokens) {
    enum { TOKENS = 4096, CACHE_MIB = 1024 };
    Config c = gpt2_config(m);
    int scale = min_int(gpt2_tokens(m) / TOKENS_LEAST, 8), longest = longest_query(d);
    if (max_new_tokens < 1 || longest > c.T - max_new_tokens)
        die("--max-new-tokens %d: with queries of up to %d tokens this exceeds the model's %d; "
            "try --max-new-tokens %d, or cut with --max-query-tokens", max_new_tokens, longest, c.T, c.T - longest);
    double slots = scale * CACHE_MIB * 1048576.0 / (double)gpt2_slot_bytes(c);
    double fit = slots / (longest + (double)k * max_new_tokens);
    int n = min_int(d->Q, min_int(scale * wave_sequences / k, scale * TOKENS / longest));
    if (n > fit) n = (int)fit;
    return n > 1 ? n : 1;
}

static inline Wave wave_make(GPT2 *m, const Ranked *d, int n, int k, int max_new_tokens) {
    Wave w = {0};
    int longest = longest_query(d), tokens = n * (longest > k ? longest : k);
    w.S = n * k;
    w.stride = longest + max_new_tokens;
    size_t S = (size_t)w.S, slots = (size_t)n * (size_t)longest + S * (size_t)max_new_tokens;
    if (slots > INT32_MAX || S * (size_t)w.stride > INT32_MAX)
        die("%d responses of %d tokens to a query are too many at once; ask for fewer", k, max_new_tokens);
    w.d.list = (int *)xalloc(S * (size_t)w.stride, sizeof(int));
    w.spare = (int *)xalloc(S * (size_t)w.stride, sizeof(int));
    int **arrays[] = {&w.d.token, &w.d.pos, &w.d.slot, &w.d.at, &w.d.len, &w.d.row};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) *arrays[i] = (int *)xalloc((size_t)tokens, sizeof(int));
    w.token = (uint16_t *)xalloc(slots, sizeof(uint16_t));
    w.list_len = (int *)xalloc(S, sizeof(int));
    w.from = (int *)xalloc(S, sizeof(int));
    gpt2_decode_plan(m, tokens, w.S, (int)slots);
    return w;
}

static inline void wave_free(Wave *w) {
    free(w->d.list); free(w->d.token); free(w->d.pos); free(w->d.slot); free(w->d.at); free(w->d.len); free(w->d.row);
    free(w->spare); free(w->token); free(w->list_len); free(w->from);
}

// Adds one token at the end of sequence s.
static inline void wave_append(Wave *w, int s, int token) {
    w->token[w->slots] = (uint16_t)token;
    w->d.list[s * w->stride + w->list_len[s]++] = w->slots++;
}

// Puts the last token of sequence s into the next decode; wanted: and goes on from its logits.
static inline void wave_feed(Wave *w, int s, int wanted) {
    int i = w->d.n++, len = w->list_len[s], slot = w->d.list[s * w->stride + len - 1];
    w->d.token[i] = w->token[slot];
    w->d.pos[i] = len - 1;
    w->d.slot[i] = slot;
    w->d.at[i] = s * w->stride;
    w->d.len[i] = len;
    if (!wanted) return;
    w->from[s] = w->d.n_rows;
    w->d.row[w->d.n_rows++] = i;
}

// Queries q0 .. q0+n-1 go in once each; the k sequences of query j, j k .. j k + k-1, share its slots.
static inline void wave_prefill(Wave *w, const Ranked *d, int q0, int n, int k) {
    w->slots = w->d.n = w->d.n_rows = 0;
    memset(w->list_len, 0, (size_t)w->S * sizeof(int));
    for (int j = 0; j < n; j++) {
        int s = j * k, len = d->query_len[q0 + j];
        for (int t = 0; t < len; t++) {
            wave_append(w, s, d->tokens[d->query_at[q0 + j] + t]);
            wave_feed(w, s, t + 1 == len);
        }
        for (int c = s + 1; c < s + k; c++) {
            memcpy(w->d.list + c * w->stride, w->d.list + s * w->stride, (size_t)len * sizeof(int));
            w->list_len[c] = len;
            w->from[c] = w->from[s];
        }
    }
}

static inline void wave_check(int numbers, int query) {
    if (!numbers) die("NaN: query %d: the model's logits are no numbers; its checkpoint is damaged or diverged", query);
}

// The tokens of sequence s from place `start` on; returns their number.
static inline int wave_text(const Wave *w, int s, int start, uint16_t *text) {
    int n = w->list_len[s] - start;
    for (int t = 0; t < n; t++) text[t] = w->token[w->d.list[s * w->stride + start + t]];
    return n;
}

// Starts a query of the result: its tokens, and its own responses if they are to stay.
static inline void policy_query(Ranked *out, const Ranked *d, int q, int keep_own) {
    ranked_query(out, d->tokens + d->query_at[q], d->query_len[q]);
    for (int r = d->first[q]; keep_own && r < d->first[q + 1]; r++)
        ranked_response(out, d->tokens + d->resp_at[r], d->resp_len[r], 0, SOURCE_DATA);
}

// ----------------------------------------------------------------------------
// The sampling policy

typedef struct {
    Rng *rng;               // (S)
    int *done;              // (S) 1 = ended
    int *row;               // (S) what the next draws of those that go on need: the row of logits
    double *u;              // (S) and the random number
    uint16_t *text;         // (max_new_tokens)
} Draws;

static inline Draws draws_make(int S, int max_new_tokens) {
    Draws a;
    a.rng = (Rng *)xalloc((size_t)S, sizeof(Rng));
    a.done = (int *)xalloc((size_t)S, sizeof(int));
    a.row = (int *)xalloc((size_t)S, sizeof(int));
    a.u = (double *)xalloc((size_t)S, sizeof(double));
    a.text = (uint16_t *)xalloc((size_t)max_new_tokens, sizeof(uint16_t));
    return a;
}

static inline void draws_free(Draws *a) { free(a->rng); free(a->done); free(a->row); free(a->u); free(a->text); }

// Completes queries q0 .. q0+n-1 of d, k completions each.
static inline void sample_wave(Draws *a, Wave *w, GPT2 *m, const Ranked *d, int q0, int n, Sampling s) {
    int k = s.num_return, S = n * k;
    wave_prefill(w, d, q0, n, k);
    for (int i = 0; i < S; i++) {
        a->done[i] = 0;
        a->rng[i] = rng_make(s.seed, RNG_SAMPLE, (uint64_t)q0 * (uint64_t)k + (uint64_t)i);
    }
    for (int len = 1;; len++) {
        int draws = 0;
        for (int i = 0; i < S; i++)
            if (!a->done[i]) a->row[draws] = w->from[i], a->u[draws++] = rng_uniform(&a->rng[i]);
        const int *token = gpt2_decode_draw(m, &w->d, s.draw, draws, a->row, a->u);
        w->d.n = w->d.n_rows = 0;
        for (int i = 0; i < S; i++) {
            if (a->done[i]) continue;
            wave_check(*token >= 0, q0 + i / k);
            wave_append(w, i, *token);
            a->done[i] = *token++ == s.eot || len == s.max_new_tokens;
            if (!a->done[i]) wave_feed(w, i, 1);
        }
        if (!w->d.n) return;
    }
}

static inline Ranked sample(GPT2 *m, const Ranked *d, Sampling s, int keep_own, const char *label) {
    Config c = gpt2_config(m);
    Ranked out = {0};
    out.V = c.V;
    int k = s.num_return, n = wave_queries(m, d, k, s.max_new_tokens);
    Wave w = wave_make(m, d, n, k, s.max_new_tokens);
    Draws a = draws_make(w.S, s.max_new_tokens);
    Progress bar = progress_start(label, 0);
    int begin, end;
    world_part(d->Q, &begin, &end);
    for (int q0 = begin; q0 < end; q0 += n) {
        int now = min_int(n, end - q0);
        sample_wave(&a, &w, m, d, q0, now, s);
        for (int j = 0; j < now; j++) {
            policy_query(&out, d, q0 + j, keep_own);
            for (int i = j * k; i < (j + 1) * k; i++) {
                int len = wave_text(&w, i, d->query_len[q0 + j], a.text);
                ranked_response(&out, a.text, len, 0, SOURCE_SAMPLE);
            }
        }
        progress(&bar, q0 + now - begin, end - begin, "queries");
    }
    draws_free(&a);
    wave_free(&w);
    ranked_gather(&out);
    return out;
}

// ----------------------------------------------------------------------------
// The beam search policy. Beam i of group g of query j is sequence j num_beams + g size + i.

typedef struct {
    Beaming b;
    int size;               // beams of a group
    Group *group;           // (queries, num_beam_groups)
    Continuation *beam;     // (S) the groups' arrays
    Hypothesis *hyp;
    uint16_t *text;         // (S, max_new_tokens) the hypotheses' texts
    int want, k;            // continuations that a group looks at; tokens of a row that can be among them
    size_t all_size;
    Continuation *all;      // (threads, all_size)
    int *chosen;            // (threads, num_beams)
} Beams;

static inline Beams beams_make(int n, int V, Beaming b) {
    Beams s;
    size_t S = (size_t)n * (size_t)b.num_beams, threads = (size_t)thread_count();
    int G = b.num_beam_groups;
    s.b = b;
    s.size = b.num_beams / G;
    s.want = 2 * s.size; // each beam ends at most once: at least `size` of them go on
    s.group = (Group *)xalloc((size_t)n * (size_t)G, sizeof(Group));
    s.beam = (Continuation *)xalloc(S, sizeof(Continuation));
    s.hyp = (Hypothesis *)xalloc(S, sizeof(Hypothesis));
    s.text = (uint16_t *)xalloc(S * (size_t)b.max_new_tokens, sizeof(uint16_t));
    s.k = s.want + b.num_beams - s.size; // earlier groups have chosen as many as the other groups have beams
    if (s.k > V) s.k = V;
    s.all_size = (size_t)s.k * (size_t)s.size;
    s.all = (Continuation *)xalloc(threads * s.all_size, sizeof(Continuation));
    s.chosen = (int *)xalloc(threads * (size_t)b.num_beams, sizeof(int));
    for (int i = 0; i < n * G; i++) {
        s.group[i].beam = s.beam + i * s.size;
        s.group[i].hyp = s.hyp + i * s.size;
    }
    for (size_t i = 0; i < S; i++) s.hyp[i].text = s.text + i * (size_t)b.max_new_tokens;
    return s;
}

static inline void beams_free(Beams *s) {
    free(s->group); free(s->beam); free(s->hyp); free(s->text); free(s->all); free(s->chosen);
}

// One group's step. s0: its first sequence; start: where responses start in the list; len: a response's length now.
static inline void group_step(const Beams *s, Group *g, const Wave *w, Rows rows, int s0, int start, int len,
                              const int *chosen, int n_chosen) {
    Continuation *all = s->all + thread_index() * s->all_size;
    int next = 0, n = beam_continuations(all, s->want, rows, g->beam, w->from + s0, g->live, chosen, n_chosen,
                                         s->b.diversity_penalty);
    for (int rank = 0; rank < n && next < s->size; rank++) {
        Continuation c = all[rank];
        if (c.token != s->b.eot) g->beam[next++] = c;
        else if (rank < s->size) {
            uint16_t *text = group_keep(g, s->size, beam_score(c.sum, len, s->b.length_penalty), len);
            if (text) text[wave_text(w, s0 + c.beam, start, text)] = (uint16_t)c.token;
        }
    }
    g->live = next;
    g->done = !next || (g->n == s->size &&
                        g->hyp[group_worst(g)].score >= beam_score(all[0].sum, len, s->b.length_penalty));
}

// The groups of query j choose one after another.
static inline void query_step(const Beams *s, const Wave *w, Rows rows, int j, int start, int len) {
    int K = s->b.num_beams, G = s->b.num_beam_groups, n_chosen = 0;
    int *chosen = s->chosen + thread_index() * (size_t)K;
    for (int i = 0; i < G; i++) {
        Group *g = &s->group[j * G + i];
        int idle = g->done;
        if (!idle) group_step(s, g, w, rows, j * K + i * s->size, start, len, chosen, n_chosen);
        for (int b = 0; b < (idle ? s->size : g->live); b++) chosen[n_chosen++] = idle ? s->b.eot : g->beam[b].token;
    }
}

// Every beam of the n queries takes its parent's list and its own token. The last time the open beams are hypotheses.
static inline void beams_fork(Beams *s, Wave *w, const Ranked *d, int q0, int n, int len) {
    int G = s->b.num_beam_groups, last = len == s->b.max_new_tokens;
    for (int i = 0; i < n * G; i++)
        for (int b = 0; !s->group[i].done && b < s->group[i].live; b++) {
            int child = i * s->size + b, parent = i * s->size + s->group[i].beam[b].beam;
            size_t had = (size_t)(d->query_len[q0 + i / G] + len - 1);
            memcpy(w->spare + child * w->stride, w->d.list + parent * w->stride, had * sizeof(int));
        }
    int *forked = w->spare;
    w->spare = w->d.list;
    w->d.list = forked;
    w->d.n = w->d.n_rows = 0;
    for (int i = 0; i < n * G; i++) {
        Group *g = &s->group[i];
        for (int b = 0; !g->done && b < g->live; b++) {
            int child = i * s->size + b, start = d->query_len[q0 + i / G];
            Continuation c = g->beam[b];
            w->list_len[child] = start + len - 1;
            wave_append(w, child, c.token);
            if (!last) wave_feed(w, child, 1);
            uint16_t *text = last ? group_keep(g, s->size, beam_score(c.sum, len, s->b.length_penalty), len) : NULL;
            if (text) wave_text(w, child, start, text);
        }
    }
}

// Searches for queries q0 .. q0+n-1 of d.
static inline void beam_wave(Beams *s, Wave *w, GPT2 *m, const Ranked *d, int q0, int n) {
    wave_prefill(w, d, q0, n, s->b.num_beams);
    for (int i = 0; i < n * s->b.num_beam_groups; i++) {
        s->group[i].live = 1; // all beams of a group would start the same
        s->group[i].done = s->group[i].n = 0;
        s->group[i].beam[0].sum = 0;
    }
    for (int len = 1;; len++) {
        Rows rows = {NULL, NULL, s->k};
        rows.top = gpt2_decode_top(m, &w->d, s->k, &rows.lse);
        for (int i = 0; i < n * s->b.num_beam_groups; i++)
            for (int b = 0; !s->group[i].done && b < s->group[i].live; b++)
                wave_check(isfinite(rows.lse[w->from[i * s->size + b]]), q0 + i / s->b.num_beam_groups);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1)
#endif
        for (int j = 0; j < n; j++) query_step(s, w, rows, j, d->query_len[q0 + j], len);
        beams_fork(s, w, d, q0, n, len);
        if (!w->d.n) return;
    }
}

// The num_return best hypotheses of query j, best first, of equals the latest.
static inline void beams_take(const Beams *s, int j, Ranked *out) {
    int G = s->b.num_beam_groups;
    for (int r = 0; r < s->b.num_return; r++) {
        Hypothesis *best = NULL;
        for (int i = j * G; i < (j + 1) * G; i++)
            for (int h = 0; h < s->group[i].n; h++) {
                Hypothesis *x = &s->group[i].hyp[h];
                if (x->len && (!best || x->score >= best->score)) best = x;
            }
        if (!best) return;
        ranked_response(out, best->text, best->len, (float)best->score, G > 1 ? SOURCE_DIVERSE : SOURCE_BEAM);
        best->len = 0; // taken
    }
}

static inline void beaming_check(Beaming b) {
    if (b.num_beams < 1 || b.num_beam_groups < 1 || b.num_beams % b.num_beam_groups)
        die_usage("--num-beam-groups %d: must divide --num-beams %d", b.num_beam_groups, b.num_beams);
    if (b.num_return < 1 || b.num_return > b.num_beams)
        die_usage("--num-return %d: a search with %d beams returns 1 to %d; raise --num-beams",
                  b.num_return, b.num_beams, b.num_beams);
    if (b.num_beam_groups > 1 && !(b.diversity_penalty > 0))
        die_usage("--diversity-penalty %g: with %d groups it must be above 0, or all of them find the same",
                  b.diversity_penalty, b.num_beam_groups);
}

static inline Ranked beam_search(GPT2 *m, const Ranked *d, Beaming b, int keep_own, const char *label) {
    beaming_check(b);
    Config c = gpt2_config(m);
    Ranked out = {0};
    out.V = c.V;
    int n = wave_queries(m, d, b.num_beams, b.max_new_tokens);
    Wave w = wave_make(m, d, n, b.num_beams, b.max_new_tokens);
    Beams s = beams_make(n, c.V, b);
    Progress bar = progress_start(label, 0);
    int begin, end;
    world_part(d->Q, &begin, &end);
    for (int q0 = begin; q0 < end; q0 += n) {
        int now = min_int(n, end - q0);
        beam_wave(&s, &w, m, d, q0, now);
        for (int j = 0; j < now; j++) {
            policy_query(&out, d, q0 + j, keep_own);
            beams_take(&s, j, &out);
        }
        progress(&bar, q0 + now - begin, end - begin, "queries");
    }
    beams_free(&s);
    wave_free(&w);
    ranked_gather(&out);
    return out;
}

#endif
