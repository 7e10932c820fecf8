/*
sampler.h: sampling policies over a key/value cache. Sees logits and the cache, nothing else.

  Ranked sample(GPT2 *m, const Ranked *queries, Sampling s, int keep_own, const char *label)

returns the same queries, each with its own responses (keep_own) followed by s.num_return sampled ones, scores 0.
A completion ends with the end-of-text token, which it keeps, or after max_new_tokens.

The cache is a row of slots, one token's keys and values each, and a sequence is a list of slots (model.h, Decode).
The query is computed once and named by all its completions. Completion c of query q draws from its own random
stream (seed, q, c): the texts do not depend on how many run at once.
*/
#ifndef SAMPLER_H
#define SAMPLER_H

#include "util.h"        // defines: die, Rng, Progress
#include "model.h"       // defines: GPT2, Decode
#include "dataloader.h"  // defines: Ranked

enum Source { SOURCE_DATA, SOURCE_SAMPLE }; // the `source` of a response in a ranked file

typedef struct {
    int num_return, max_new_tokens;
    int top_k;              // 0 = all
    double top_p;           // 1 = all
    double temperature;     // 0 = greedy
    int eot;                // end-of-text id, -1 = none
    uint64_t seed;
} Sampling;

// ----------------------------------------------------------------------------
// Choosing one token

typedef struct { float logit; int id; } Candidate;

static inline int compare_candidates(const void *a, const void *b) { // by logit, descending; then by id
    const Candidate *x = (const Candidate *)a, *y = (const Candidate *)b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

// Restores the heap property (smallest logit on top) below i.
static inline void heap_sink(Candidate *h, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1].logit < h[child].logit) child++;
        if (h[i].logit <= h[child].logit) return;
        Candidate t = h[i];
        h[i] = h[child];
        h[child] = t;
    }
}

// The k largest logits, in no order; room (k).
static inline int top_k_candidates(Candidate *room, const float *logits, int V, int k) {
    if (k <= 0 || k > V) k = V;
    for (int v = 0; v < k; v++) room[v].logit = logits[v], room[v].id = v;
    if (k == V) return k;
    for (int i = k / 2 - 1; i >= 0; i--) heap_sink(room, k, i);
    for (int v = k; v < V; v++) {
        if (logits[v] <= room[0].logit) continue;
        room[0].logit = logits[v];
        room[0].id = v;
        heap_sink(room, k, 0);
    }
    return k;
}

// Draws from softmax(logits / temperature) cut to the top k, then to the smallest set of the most probable tokens
// whose probability reaches top_p (Hugging Face's order). room (top_k, or V)
static inline int sample_token(const float *logits, int V, Sampling s, Rng *rng, Candidate *room) {
    int n = top_k_candidates(room, logits, V, s.temperature > 0 ? s.top_k : 1);
    if (n == 1) return room[0].id;
    float max = room[0].logit;
    double total = 0, cut;
    if (s.top_p < 1) qsort(room, (size_t)n, sizeof *room, compare_candidates);
    for (int i = 0; i < n; i++) max = room[i].logit > max ? room[i].logit : max;
    for (int i = 0; i < n; i++) total += room[i].logit = (float)exp((room[i].logit - max) / s.temperature);
    cut = s.top_p * total;
    if (s.top_p < 1) {
        int kept = 0;
        for (total = 0; kept < n && total < cut;) total += room[kept++].logit;
        n = kept ? kept : 1;
        if (!kept) total = room[0].logit;
    }
    double u = rng_uniform(rng) * total;
    for (int i = 0; i < n - 1; i++)
        if ((u -= room[i].logit) < 0) return room[i].id;
    return room[n - 1].id;
}

// ----------------------------------------------------------------------------
// A wave: some queries with all their completions, advanced together

typedef struct {
    Decode d;
    int S, stride, slots;   // sequences, room for a sequence's list, slots in use
    int *list_len;          // (S)  tokens so far
    int *new_len, *done;    // (S)  tokens sampled; 1 = ended
    uint16_t *text;         // (S, max_new)
    int *alive, *from;      // (S)  the sequences that go on, and the logits row of each
    Rng *rng;               // (S)
    Candidate *room;        // (S, room_size)
    int room_size;          // top_k, or V
} Wave;

static inline Wave wave_make(GPT2 *m, int S, int tokens, int query_tokens, Sampling s) {
    Wave w;
    int V = gpt2_config(m).V;
    memset(&w, 0, sizeof w);
    w.S = S;
    w.stride = gpt2_config(m).T;
    w.d.list = (int *)xalloc((size_t)S * (size_t)w.stride, sizeof(int));
    int **arrays[] = {&w.d.token, &w.d.pos, &w.d.slot, &w.d.at, &w.d.len, &w.d.row};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) *arrays[i] = (int *)xalloc((size_t)tokens, sizeof(int));
    w.list_len = (int *)xalloc((size_t)S, sizeof(int));
    w.new_len = (int *)xalloc((size_t)S, sizeof(int));
    w.done = (int *)xalloc((size_t)S, sizeof(int));
    w.alive = (int *)xalloc((size_t)S, sizeof(int));
    w.rng = (Rng *)xalloc((size_t)S, sizeof(Rng));
    w.text = (uint16_t *)xalloc((size_t)S * (size_t)s.max_new_tokens, sizeof(uint16_t));
    w.from = (int *)xalloc((size_t)S, sizeof(int));
    w.room_size = s.top_k > 0 && s.top_k < V ? s.top_k : V;
    w.room = (Candidate *)xalloc((size_t)S * (size_t)w.room_size, sizeof(Candidate));
    gpt2_decode_plan(m, tokens, S, query_tokens + S * s.max_new_tokens);
    return w;
}

static inline void wave_free(Wave *w) {
    free(w->d.list); free(w->d.token); free(w->d.pos); free(w->d.slot); free(w->d.at); free(w->d.len); free(w->d.row);
    free(w->list_len); free(w->new_len); free(w->done); free(w->alive); free(w->from); free(w->rng); free(w->text); free(w->room);
}

// Adds one token at the end of sequence s; returns its index in the decode batch.
static inline int wave_feed(Wave *w, int s, int token) {
    int i = w->d.n++;
    w->d.token[i] = token;
    w->d.pos[i] = w->list_len[s];
    w->d.slot[i] = w->d.list[s * w->stride + w->list_len[s]++] = w->slots++;
    w->d.at[i] = s * w->stride;
    w->d.len[i] = w->list_len[s];
    return i;
}

// The queries go in once each; their completions share the slots. Logits row j belongs to query j of the wave.
static inline const float *wave_prefill(Wave *w, GPT2 *m, const Ranked *d, int q0, int n, int k) {
    w->slots = w->d.n = w->d.n_rows = 0;
    memset(w->list_len, 0, (size_t)w->S * sizeof(int));
    for (int j = 0; j < n; j++) {
        int s = j * k, len = d->query_len[q0 + j];
        for (int t = 0; t < len; t++) wave_feed(w, s, d->tokens[d->query_at[q0 + j] + t]);
        w->d.row[w->d.n_rows++] = w->d.n - 1;
        for (int c = 1; c < k; c++) {
            memcpy(w->d.list + (s + c) * w->stride, w->d.list + s * w->stride, (size_t)len * sizeof(int));
            w->list_len[s + c] = len;
        }
    }
    return gpt2_decode(m, &w->d);
}

// Draws the next token of each sequence alive[i] from logits row from[i].
static inline void wave_draw(Wave *w, const float *logits, int V, int n, Sampling s) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int i = 0; i < n; i++) {
        int q = w->alive[i];
        int t = sample_token(logits + (size_t)w->from[i] * (size_t)V, V, s, &w->rng[q], w->room + (size_t)q * (size_t)w->room_size);
        w->text[q * s.max_new_tokens + w->new_len[q]++] = (uint16_t)t;
        w->done[q] = t == s.eot || w->new_len[q] == s.max_new_tokens;
    }
}

// Completes queries q0 .. q0+n-1 of d, k completions each.
static inline void wave_run(Wave *w, GPT2 *m, const Ranked *d, int q0, int n, Sampling s) {
    int k = s.num_return, V = gpt2_config(m).V;
    const float *logits = wave_prefill(w, m, d, q0, n, k);
    for (int i = 0; i < n * k; i++) {
        w->alive[i] = i;
        w->new_len[i] = 0;
        w->rng[i] = rng_make(s.seed, RNG_SAMPLE, (uint64_t)q0 * (uint64_t)k + (uint64_t)i);
    }
    for (int i = 0; i < n * k; i++) w->from[i] = i / k; // all completions of a query start from its one row
    wave_draw(w, logits, V, n * k, s);
    for (;;) {
        int alive = 0;
        w->d.n = 0;
        for (int i = 0; i < n * k; i++) {
            if (w->done[i]) continue;
            w->d.row[alive] = wave_feed(w, i, w->text[i * s.max_new_tokens + w->new_len[i] - 1]);
            w->alive[alive] = i;
            w->from[alive] = alive;
            alive++;
        }
        if (!alive) break;
        w->d.n_rows = alive;
        logits = gpt2_decode(m, &w->d);
        wave_draw(w, logits, V, alive, s);
    }
}

// ----------------------------------------------------------------------------
// The policy

static inline Ranked sample(GPT2 *m, const Ranked *d, Sampling s, int keep_own, const char *label) {
    enum { SEQUENCES = 256, TOKENS = 4096 }; // at once, roughly: enough to fill the matrix products
    Config c = gpt2_config(m);
    Ranked out;
    memset(&out, 0, sizeof out);
    out.V = c.V;
    int k = s.num_return, longest = 1;
    for (int q = 0; q < d->Q; q++) longest = d->query_len[q] > longest ? d->query_len[q] : longest;
    if (s.max_new_tokens < 1 || longest + s.max_new_tokens > c.T)
        die("--max-new-tokens %d: with queries of up to %d tokens this exceeds the model's %d; cut with --max-query-tokens",
            s.max_new_tokens, longest, c.T);
    int n = SEQUENCES / k < TOKENS / longest ? SEQUENCES / k : TOKENS / longest;
    n = n < 1 ? 1 : n > d->Q ? d->Q : n;
    int most = n * (longest > k ? longest : k);
    Wave w = wave_make(m, n * k, most, n * longest, s);
    Progress bar = progress_start(label, 0);
    for (int q0 = 0; q0 < d->Q; q0 += n) {
        int now = d->Q - q0 < n ? d->Q - q0 : n;
        wave_run(&w, m, d, q0, now, s);
        for (int j = 0; j < now; j++) {
            int q = q0 + j;
            ranked_query(&out, d->tokens + d->query_at[q], d->query_len[q]);
            for (int r = d->first[q]; keep_own && r < d->first[q + 1]; r++)
                ranked_response(&out, d->tokens + d->resp_at[r], d->resp_len[r], 0, d->source[r]);
            for (int i = j * k; i < (j + 1) * k; i++)
                ranked_response(&out, w.text + i * s.max_new_tokens, w.new_len[i], 0, SOURCE_SAMPLE);
        }
        if (*label) progress(&bar, q0 + now, d->Q, "queries");
    }
    wave_free(&w);
    return out;
}

#endif
