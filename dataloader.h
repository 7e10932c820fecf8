/*
dataloader.h: ranked responses. The file format, its checks, and shared-prefix packing into batches.

A data set is a list of queries x, each with k >= 1 responses y_1..y_k; a response has tokens, a score
(its reward) and a source (0 = provided by the data set, 1.. = a sampling policy).

  Ranked    ranked_read(path)            Ranked    stream_read(path, chunk)      void ranked_free(&d)
  void      ranked_write(path, &d)       void      ranked_query / ranked_response(&d, ...)   (append)
  void      ranked_limit(&d, max_query_tokens, max_response_tokens)
  void      ranked_check(&d, path, V, T)
  Batch     batch_make(N, U, P, R, Q)    void      batch_pack(&batch, &d, queries, n)

File, little-endian:
  int32[256]  [0]=20230411 [1]=1 [2]=queries [3]=responses [4]=tokens (queries and responses) [5]=V
  per query:  int32 length, int32 k, then k times {int32 length, float32 score, int32 source},
              then uint16 tokens: the query's, then each response's
Token stream (plain language modelling, the llm.c format): int32[256] [0]=20240520 [1]=1 [2]=tokens, then uint16.

Knows no mathematics: what a batch is for is said in model.h and rrhf.h.
*/
#ifndef DATALOADER_H
#define DATALOADER_H

#include "util.h"        // defines: die, In, Out, xalloc

enum { RANKED_MAGIC = 20230411, STREAM_MAGIC = 20240520 };
enum Source { SOURCE_DATA, SOURCE_SAMPLE, SOURCE_BEAM, SOURCE_DIVERSE }; // who made a response

// ----------------------------------------------------------------------------
// The data set in memory

// X(type, name, elements)
#define RANKED_ARRAYS(X)                                                                             \
    X(int, query_len, Q)                                                                             \
    X(int64_t, query_at, Q)       /* where its tokens start */                                       \
    X(int, first, Q + 1)          /* query q owns responses first[q] .. first[q+1]-1 */              \
    X(int, resp_len, R)                                                                              \
    X(int64_t, resp_at, R)        /* where its tokens start */                                       \
    X(float, score, R)                                                                               \
    X(int, source, R)             /* SOURCE_DATA or another */                                       \
    X(uint16_t, tokens, n_tokens)

typedef struct {
    int Q, R;              // queries, responses
    int64_t n_tokens;
    int V;                 // vocabulary the tokens come from; 0 = not known (a token stream)
#define X(type, name, n) type *name; size_t name##_cap; // its capacity, for appending
    RANKED_ARRAYS(X)
#undef X
} Ranked;

static inline void ranked_free(Ranked *d) {
#define X(type, name, n) free(d->name);
    RANKED_ARRAYS(X)
#undef X
    memset(d, 0, sizeof *d);
}

// Appends tokens; returns where they start.
static inline int64_t ranked_append(Ranked *d, const uint16_t *tokens, int n) {
    int64_t at = d->n_tokens;
    XGROW(d->tokens, d->tokens_cap, (size_t)(at + n));
    if (n) memcpy(d->tokens + at, tokens, (size_t)n * sizeof(uint16_t));
    d->n_tokens += n;
    return at;
}

// Appends a query; its responses follow with ranked_response.
static inline void ranked_query(Ranked *d, const uint16_t *tokens, int n) {
    size_t q = (size_t)d->Q;
    XGROW(d->query_len, d->query_len_cap, q + 1);
    XGROW(d->query_at, d->query_at_cap, q + 1);
    XGROW(d->first, d->first_cap, q + 2);
    d->query_len[q] = n;
    d->query_at[q] = ranked_append(d, tokens, n);
    d->first[q] = d->first[q + 1] = d->R;
    d->Q++;
}

// Appends a response to the last query.
static inline void ranked_response(Ranked *d, const uint16_t *tokens, int n, float score, int source) {
    size_t r = (size_t)d->R;
    XGROW(d->resp_len, d->resp_len_cap, r + 1);
    XGROW(d->resp_at, d->resp_at_cap, r + 1);
    XGROW(d->score, d->score_cap, r + 1);
    XGROW(d->source, d->source_cap, r + 1);
    d->resp_len[r] = n;
    d->resp_at[r] = ranked_append(d, tokens, n);
    d->score[r] = score;
    d->source[r] = source;
    d->R++;
    d->first[d->Q] = d->R;
}

// Each process has answered its part of the queries (world_part); now all have all of them, in order.
static inline void ranked_gather(Ranked *d) {
    Ranked all = {0};
    if (world_size == 1) return;
    all.V = d->V;
    for (int from = 0; from < world_size; from++) {
        Ranked part = *d;
        world_give(&part, sizeof part, from); // of another process the pointers mean nothing
        size_t Q = (size_t)part.Q, R = (size_t)part.R, n_tokens = (size_t)part.n_tokens;
        if (!Q) continue;
        if (from == world_rank) part = *d;
#define X(type, name, n)                                                                    \
        if (from != world_rank) part.name = (type *)xalloc(n, sizeof(type));                \
        world_give(part.name, (n) * sizeof(type), from);
        RANKED_ARRAYS(X)
#undef X
        for (int q = 0; q < part.Q; q++) {
            ranked_query(&all, part.tokens + part.query_at[q], part.query_len[q]);
            for (int r = part.first[q]; r < part.first[q + 1]; r++)
                ranked_response(&all, part.tokens + part.resp_at[r], part.resp_len[r], part.score[r], part.source[r]);
        }
        if (from != world_rank) ranked_free(&part);
    }
    ranked_free(d);
    *d = all;
}

// ----------------------------------------------------------------------------
// Files

// Reads and checks a ranked file, all that is left of `in`; dies with one line that names what is wrong.
static inline Ranked ranked_get(In *in) {
    Ranked d = {0};
    const char *path = in->path;
    int32_t h[256];
    in_header(in, h, RANKED_MAGIC, 1, "ranked-responses file");
    int64_t need = 8 * (int64_t)h[2] + 12 * (int64_t)h[3] + 2 * (int64_t)h[4]; // bytes after the header
    if (h[2] < 1 || h[3] < h[2] || h[4] < h[3] + (int64_t)h[2])
        die("%s: header says %d queries, %d responses, %d tokens; expected at least one query, with at least one "
            "response, and a token in each; make it again", path, h[2], h[3], h[4]);
    if (need != in_left(in))
        die("%s: header says %d queries, %d responses, %d tokens (%" PRId64 " bytes), the file has %" PRId64
            "; truncated or damaged: make it again", path, h[2], h[3], h[4], need, in_left(in));
    if (h[5] < 1 || h[5] > VOCABULARY_MAX)
        die("%s: vocabulary %d, expected 1..%d; is the file damaged?", path, h[5], VOCABULARY_MAX);
    d.V = h[5];
    uint16_t *tok = (uint16_t *)xalloc((size_t)h[4], sizeof *tok);
    int32_t *meta = (int32_t *)xalloc((size_t)h[3] * 3, sizeof *meta);
    for (int q = 0; q < h[2]; q++) {
        int32_t n = in_i32(in, "a query's length"), k = in_i32(in, "a query's k");
        if (n < 1 || k < 1 || k > h[3] - d.R || n > h[4] - d.n_tokens)
            die("%s: query %d: length %d and k %d, expected at least 1 and no more than the header announces",
                path, q, n, k);
        in_read(in, meta, 12 * (int64_t)k, "a query's response table");
        int64_t total = n;
        for (int i = 0; i < k; i++) {
            if (meta[3 * i] < 1)
                die("%s: query %d, response %d: length %d, expected at least 1", path, q, i, meta[3 * i]);
            total += meta[3 * i];
        }
        if (total > h[4] - d.n_tokens)
            die("%s: query %d: %" PRId64 " tokens, more than the header announces", path, q, total);
        in_read(in, tok, 2 * total, "a query's tokens");
        for (int64_t t = 0; t < total; t++)
            if (tok[t] >= d.V)
                die("%s: query %d: token %d, but the header says a vocabulary of %d; make it again", path, q, tok[t],
                    d.V);
        ranked_query(&d, tok, n);
        for (int64_t i = 0, at = n; i < k; at += meta[3 * i++]) {
            float s;
            memcpy(&s, &meta[3 * i + 1], 4);
            if (meta[3 * i + 2] < 0) die("%s: query %d, response %d: source %d, expected 0 (the data set) or more",
                                         path, q, (int)i, meta[3 * i + 2]);
            if (!isfinite(s)) die("%s: query %d, response %d: score %g, expected a finite number; score the file again",
                                  path, q, (int)i, s);
            ranked_response(&d, tok + at, meta[3 * i], s, meta[3 * i + 2]);
        }
    }
    if (d.R != h[3] || d.n_tokens != h[4]) die("%s: header announces %d responses and %d tokens, found %d and %" PRId64,
                                               path, h[3], h[4], d.R, d.n_tokens);
    free(tok);
    free(meta);
    return d;
}

static inline Ranked ranked_read(const char *path) {
    In in = in_open(path);
    Ranked d = ranked_get(&in);
    in_close(&in);
    return d;
}

// Appends the whole file to another.
static inline void ranked_put(Out *out, const Ranked *d) {
    int64_t tokens = 0; // those in use: after ranked_limit this is less than n_tokens
    for (int q = 0; q < d->Q; q++) tokens += d->query_len[q];
    for (int r = 0; r < d->R; r++) tokens += d->resp_len[r];
    if (tokens > INT32_MAX)
        die("%s: %" PRId64 " tokens are more than the format's int32 holds; write several files", out->path, tokens);
    int32_t h[256] = {RANKED_MAGIC, 1, d->Q, d->R, (int32_t)tokens, d->V};
    out_write(out, h, sizeof h);
    for (int q = 0; q < d->Q; q++) {
        int32_t head[2] = {d->query_len[q], d->first[q + 1] - d->first[q]};
        out_write(out, head, sizeof head);
        for (int r = d->first[q]; r < d->first[q + 1]; r++) {
            int32_t meta[3] = {d->resp_len[r], 0, d->source[r]};
            memcpy(&meta[1], &d->score[r], 4);
            out_write(out, meta, sizeof meta);
        }
        out_write(out, d->tokens + d->query_at[q], 2 * (size_t)d->query_len[q]);
        for (int r = d->first[q]; r < d->first[q + 1]; r++)
            out_write(out, d->tokens + d->resp_at[r], 2 * (size_t)d->resp_len[r]);
    }
}

static inline void ranked_write(const char *path, const Ranked *d) {
    Out out = out_open(path);
    ranked_put(&out, d);
    out_close(&out);
}

// Reads a token stream as chunks of up to `chunk` tokens (chunk >= 2): a chunk's first token is the query,
// the rest its one response, so that a language-model batch is an RRHF batch with k = 1.
static inline Ranked stream_read(const char *path, int chunk) {
    Ranked d = {0};
    In in = in_open(path);
    int32_t h[256];
    in_header(&in, h, STREAM_MAGIC, 1, "token stream");
    if (h[2] < 2 || 2 * (int64_t)h[2] != in_left(&in))
        die("%s: header says %d tokens (at least 2 expected), the file has room for %" PRId64
            "; truncated or damaged: make it again", path, h[2], in_left(&in) / 2);
    uint16_t *tok = (uint16_t *)xalloc((size_t)h[2], sizeof *tok);
    in_read(&in, tok, 2 * (int64_t)h[2], "the tokens");
    in_close(&in);
    for (int64_t at = 0; at + 1 < h[2]; at += chunk) {
        int n = h[2] - at < chunk ? (int)(h[2] - at) : chunk;
        ranked_query(&d, tok + at, 1);
        ranked_response(&d, tok + at + 1, n - 1, 0, SOURCE_DATA);
    }
    free(tok);
    return d;
}

static inline void stream_write(const char *path, const uint16_t *tokens, int n) {
    int32_t h[256] = {STREAM_MAGIC, 1, n};
    Out out = out_open(path);
    out_write(&out, h, sizeof h);
    out_write(&out, tokens, 2 * (size_t)n);
    out_close(&out);
}

// What kind of data file is it? Its magic number, 0 if it has none.
static inline int32_t data_magic(const char *path) {
    In in = in_open(path);
    int32_t magic = in.size >= 4 ? in_i32(&in, "the magic number") : 0;
    fclose(in.f);
    return magic;
}

// Cuts queries on the left and responses on the right; 0 = no limit.
static inline void ranked_limit(Ranked *d, int max_query_tokens, int max_response_tokens) {
    for (int q = 0; q < d->Q; q++)
        if (max_query_tokens && d->query_len[q] > max_query_tokens) {
            d->query_at[q] += d->query_len[q] - max_query_tokens;
            d->query_len[q] = max_query_tokens;
        }
    for (int r = 0; r < d->R; r++)
        if (max_response_tokens && d->resp_len[r] > max_response_tokens) d->resp_len[r] = max_response_tokens;
}

// Does every sequence suit a model with vocabulary V and context T? Dies where not.
static inline void ranked_check(const Ranked *d, const char *path, int V, int T) {
    if (d->V && d->V != V)
        die("%s: made for a vocabulary of %d, but the model has %d; use the model's own tokenizer", path, d->V, V);
    for (int64_t t = 0; t < d->n_tokens; t++)
        if (d->tokens[t] >= V)
            die("%s: token %d, but the model's vocabulary has %d; use the model's own tokenizer",
                path, d->tokens[t], V);
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++)
            if (d->query_len[q] > T - d->resp_len[r])
                die("%s: query %d (%d tokens) with response %d (%d tokens) exceeds the model's %d; "
                    "cut with --max-query-tokens and --max-response-tokens", path, q, d->query_len[q],
                    r - d->first[q], d->resp_len[r], T);
}

// ----------------------------------------------------------------------------
// Shared-prefix packing
//
// A batch is one flat run of N tokens, no padding: [x | y_1 | ... | y_k] per query, queries one after another.
// The query is computed once however many responses follow it. Token n sees two intervals of the run:
//     [a0, a1)      the query's tokens: up to itself if it is one of them, all of them otherwise
//     [b0, n+1)     its own response's tokens up to itself; empty (b0 = n+1) for a query token
// and its position is its place in its own sequence x y_i. That is all a transformer needs to know: the rest
// is per token. The result is that of k separate sequences (test/test_model.c checks it, gradients included).
//
// Predictions are (row, target, response) triples, sorted by row: the query's last row predicts the first token
// of all k responses, a response's row its next token; its last row and the query's other rows predict nothing. Logits
// are computed for the U predicting rows only.
//
// Example: x = "a b", y_1 = "c d", y_2 = "e". N 5, U 2, P 3, R 2.
//     row            0      1      2      3      4
//     token          a      b      c      d      e
//     position       0      1      2      3      2
//     [a0, a1)     [0,1)  [0,2)  [0,2)  [0,2)  [0,2)
//     [b0, n+1)      -      -    [2,3)  [2,4)  [4,5)
//     predicts       -     c, e    d      -      -

// X(type, name, elements)
#define BATCH_ARRAYS(X)                                                                                      \
    X(int, token, N)                                                                                         \
    X(int, pos, N)                                                                                           \
    X(int, a0, N)         /* the two intervals */                                                            \
    X(int, a1, N)                                                                                            \
    X(int, b0, N)                                                                                            \
    X(int, group, Q + 1)  /* query g's rows, its responses' included: group[g] .. group[g+1]-1 */            \
    X(int, row, U)        /* the predicting rows, ascending */                                               \
    X(int, pred, U + 1)   /* row u makes predictions pred[u] .. pred[u+1]-1 */                               \
    X(int, target, P)     /* the token that is predicted, */                                                 \
    X(int, resp, P)       /* and the response it belongs to */                                               \
    X(int, last, R)       /* row of each response's last token: where a reward model reads */                \
    X(int, first, Q + 1)  /* query g's responses in this batch: first[g] .. first[g+1]-1 */                  \
    X(int, resp_len, R)   /* n_i */                                                                          \
    X(float, score, R)    /* r_i */                                                                          \
    X(int, query, Q)      /* index in the data set */

typedef struct {
    int N, U, P, R, Q; // tokens, predicting rows, predictions, responses, queries
#define X(type, name, n) type *name;
    BATCH_ARRAYS(X)
#undef X
} Batch;

// What query q brings to a batch: added to *N, *U, *P and *R.
static inline void batch_count(const Ranked *d, int q, int *N, int *U, int *P, int *R) {
    *N += d->query_len[q];
    *U += 1;
    for (int r = d->first[q]; r < d->first[q + 1]; r++) {
        *N += d->resp_len[r];
        *U += d->resp_len[r] - 1;
        *P += d->resp_len[r];
        *R += 1;
    }
}

// Room for batches up to these sizes; the fields N..Q then hold the capacity until the first batch_pack.
static inline Batch batch_make(int N, int U, int P, int R, int Q) {
    Batch b = {0};
    b.N = N, b.U = U, b.P = P, b.R = R, b.Q = Q;
#define X(type, name, n) b.name = (type *)xalloc((size_t)(n), sizeof(type));
    BATCH_ARRAYS(X)
#undef X
    return b;
}

static inline void batch_free(Batch *b) {
#define X(type, name, n) free(b->name);
    BATCH_ARRAYS(X)
#undef X
    memset(b, 0, sizeof *b);
}

// Lays out the n data-set queries queries[0..n-1]; the caller's batch has room (batch_count).
static inline void batch_pack(Batch *b, const Ranked *d, const int *queries, int n) {
    b->N = b->U = b->P = b->R = 0;
    b->Q = n;
    for (int g = 0; g < n; g++) {
        int q = queries[g], x0 = b->N, len = d->query_len[q], last_row;
        b->query[g] = q;
        b->group[g] = x0;
        b->first[g] = b->R;
        for (int t = 0; t < len; t++) {
            int i = b->N++;
            b->token[i] = d->tokens[d->query_at[q] + t];
            b->pos[i] = t;
            b->a0[i] = x0;
            b->a1[i] = b->b0[i] = i + 1;
        }
        last_row = b->U++; // the query's last token predicts every response's first
        b->row[last_row] = b->N - 1;
        b->pred[last_row] = b->P;
        for (int r = d->first[q]; r < d->first[q + 1]; r++) {
            b->target[b->P] = d->tokens[d->resp_at[r]];
            b->resp[b->P++] = b->R + r - d->first[q];
        }
        for (int r = d->first[q]; r < d->first[q + 1]; r++) {
            const uint16_t *y = d->tokens + d->resp_at[r];
            int y0 = b->N, m = d->resp_len[r];
            for (int t = 0; t < m; t++) {
                int i = b->N++;
                b->token[i] = y[t];
                b->pos[i] = len + t;
                b->a0[i] = x0;
                b->a1[i] = x0 + len;
                b->b0[i] = y0;
                if (t + 1 == m) break;
                b->row[b->U] = i;
                b->pred[b->U++] = b->P;
                b->target[b->P] = y[t + 1];
                b->resp[b->P++] = b->R;
            }
            b->last[b->R] = b->N - 1;
            b->resp_len[b->R] = m;
            b->score[b->R++] = d->score[r];
        }
    }
    b->group[n] = b->N;
    b->first[n] = b->R;
    b->pred[b->U] = b->P;
}

#endif
