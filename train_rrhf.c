/*
train_rrhf.c: RRHF (Yuan et al. 2023, arXiv 2304.05302) on the CPU, from scratch. GPT-2's layers as
forward/backward pairs, the model, AdamW; the paper itself is in rrhf.h, and main() is at the end.

  make train_rrhf && ./train_rrhf        the whole story on made-up reviews, under two minutes on two cores
  ./train_rrhf --help                    the six verbs and every option

RRHF itself is rrhf.h. To read the model begin at "Layers": what stands before is --profile and small helpers, and the
products' fast variants stand near the end.

Gradients: dX is dL/dX, the same shape as X. Every backward ADDS to the gradients of parameters (micro-batches
accumulate) and overwrites the gradients of activations, unless it says otherwise.
Every sum is split among threads by what is summed INTO, or in shares of a fixed size that are added in order: without a
BLAS or oneDNN a run has the same bits whatever the number of threads.
*/
#include "util.h"        // defines: die, xalloc, threads_set, thread_count, thread_index
#include "model.h"       // defines: Config, Params, Batch, Decode, the backend contract
#include "rrhf.h"        // defines: the objective and the training loop
#include "sampler.h"     // defines: draw, draw_width, top_k_candidates
#include "verbs.h"       // defines: the command line and the six verbs
#ifdef USE_CBLAS
#include <cblas.h>       // defines: cblas_sgemm, cblas_dgemm
#endif
#ifdef USE_ONEDNN
#include <dnnl.h>        // defines: dnnl_matmul_desc_init (version 2), dnnl_matmul_primitive_desc_create (version 3)
#endif

#ifdef _OPENMP
#define PARALLEL_FOR _Pragma("omp parallel for schedule(static)")
#define PARALLEL_FOR2 _Pragma("omp parallel for collapse(2) schedule(static)")
#define PARALLEL_TILES _Pragma("omp parallel for collapse(2) schedule(dynamic)")
#else
#define PARALLEL_FOR
#define PARALLEL_FOR2
#define PARALLEL_TILES
#endif
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) SIMD_OF(omp simd reduction(+ : __VA_ARGS__))
#ifdef __clang__ // leaves such a loop as it is, since a NaN might come by, and would warn
#define SIMD_MAX(x)
#else
#define SIMD_MAX(x) SIMD_OF(omp simd reduction(max : x))
#endif
#define SIMD_OF(x) _Pragma(#x)

// ----------------------------------------------------------------------------
// --profile 1: where a training run's time goes

// X(stage, name): the time from stage(STAGE_...) to the next call counts for that stage
#define STAGES(X)                                                                        \
    X(OTHER,      "everything else")                                                     \
    X(EMBEDDING,  "embedding, forward and backward")                                     \
    X(LAYERNORM,  "layernorm, forward and backward")                                     \
    X(QKV,        "qkv product, forward")                                                \
    X(ATTPROJ,    "attproj product, forward")                                            \
    X(FC,         "fc product, forward")                                                 \
    X(FCPROJ,     "fcproj product, forward")                                             \
    X(DQKV,       "qkv products, backward")                                              \
    X(DATTPROJ,   "attproj products, backward")                                          \
    X(DFC,        "fc products, backward")                                               \
    X(DFCPROJ,    "fcproj products, backward")                                           \
    X(ATTENTION,  "attention, forward")                                                  \
    X(DATTENTION, "attention, backward")                                                 \
    X(GELU,       "gelu, forward and backward")                                          \
    X(CLASSIFIER, "classifier, forward")                                                 \
    X(DCLASSIFIER, "classifier, backward")                                               \
    X(LOSS,       "losses of the queries")                                               \
    X(LIVE,       "responses without a gradient")                                       \
    X(ZERO,       "zeroing gradients")                                                   \
    X(NORM,       "norm of the gradient")                                                \
    X(ADAMW,      "AdamW")
#define X(stage, name) STAGE_##stage,
enum Stage { STAGES(X) N_STAGES };
#undef X
static struct { int on; enum Stage at; double since, seconds[N_STAGES], flop[N_STAGES], bytes[N_STAGES]; } profile;

static inline void stage(enum Stage s) {
    if (!profile.on) return;
    double now = now_s();
    profile.seconds[profile.at] += now - profile.since;
    profile.since = now;
    profile.at = s;
}

// ----------------------------------------------------------------------------
// Small mathematics

// exp(x). For float: 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2 and e^r by its Taylor series to degree 7
// (error 2e-7 relative): plain arithmetic, so that the compiler can run it on whole vectors, as it cannot run libm's.
static inline __attribute__((always_inline)) real exp_real(real x) {
    if (sizeof(real) == 8) return (real)exp((double)x);
    float y = (float)x;
    y = y < -87.0f ? -87.0f : y > 88.0f ? 88.0f : y;
    float shifted = y * 1.44269504f + 12582912.0f; // adding 1.5 * 2^23 rounds to an integer in the low bits
    float n = shifted - 12582912.0f;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 +
              r * (1.0f / 720 + r * (1.0f / 5040)))))));
    union { float f; uint32_t i; } two;
    two.f = shifted;                               // its low 9 bits are n's; 2^n has n + 127 for an exponent
    two.i = (two.i + 127) << 23;                   // unsigned: defined for a NaN too, which e carries on
    return (real)(e * two.f);
}

static inline real sqrt_real(real x) { return sizeof(real) == 4 ? (real)sqrtf((float)x) : (real)sqrt((double)x); }

// Where the compiler's own vectors are not good enough: its vector types, which map to whatever the machine has.
#ifndef VECTOR // bytes of a vector register; the tests also build widths that their machine lacks
#if defined(__AVX512F__)
#define VECTOR 64
#elif defined(__AVX__)
#define VECTOR 32
#else
#define VECTOR 16
#endif
#endif
enum { VL = VECTOR / sizeof(real) }; // numbers in a vector
typedef real vec __attribute__((vector_size(VECTOR), aligned(sizeof(real)), may_alias));

// Summed in halves first: all its numbers one after the other would take longer than dot's products.
static inline real vec_sum(vec v) {
    typedef real half_vec __attribute__((vector_size(VECTOR / 2)));
    union { vec all; half_vec half[2]; } u = {v};
    half_vec h = u.half[0] + u.half[1];
    real s = 0;
    for (int i = 0; i < VL / 2; i++) s += h[i];
    return s;
}

// sum_i a_i b_i
static inline real dot(const real *a, const real *b, int n) {
    vec sum = {0};
    int i = 0;
    for (; i + VL <= n; i += VL) sum += *(const vec *)(a + i) * *(const vec *)(b + i);
    real s = vec_sum(sum);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

// y += a x
static inline void axpy(real *restrict y, real a, const real *restrict x, int n) {
    SIMD
    for (int i = 0; i < n; i++) y[i] += a * x[i];
}

// ----------------------------------------------------------------------------
// Matrix products: the one seam between the layers and the machine
//
// gemm: C (M,N) = beta C + op(A) op(B), row-major; op(A) is (M,K), op(B) is (K,N); beta is 0 or 1.
// Four variants compute it: GEMM_NAIVE is the definition, GEMM_PACKED the built-in, GEMM_CBLAS a library; GEMM_ONEDNN
// (--dtype bf16) rounds A and B to bfloat16 and sums in float32. All but the definition stand near the end of the file.

enum { GEMM_NAIVE, GEMM_PACKED, GEMM_CBLAS, GEMM_ONEDNN };
#ifndef GEMM_DEFAULT // the Makefile takes the BLAS where the CPU has no AVX2
#define GEMM_DEFAULT GEMM_PACKED
#endif
static int gemm_kind = GEMM_DEFAULT;

// op(A)[m][k] is a[m * am + k * ak], op(B)[k][n] is b[k * bk + n * bn]: a transposition is a swap of strides.
static void gemm_naive(int M, int N, int K, const real *a, size_t am, size_t ak, const real *b, size_t bk, size_t bn,
                       real beta, real *c, size_t ldc) {
    PARALLEL_FOR
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double s = 0;
            for (int k = 0; k < K; k++) s += (double)a[m * am + k * ak] * (double)b[k * bk + n * bn];
            c[m * ldc + n] = (beta != 0 ? c[m * ldc + n] : 0) + (real)s;
        }
}

static void gemm(int transa, int transb, int M, int N, int K, const real *a, size_t lda, const real *b, size_t ldb,
                 real beta, real *c, size_t ldc);
// The same by one thread, for attention's small products, with strides as gemm_naive has them.
static void gemm_small(int M, int N, int K, const real *a, size_t am, size_t ak, const real *b, size_t bk, size_t bn,
                       real beta, real *c, size_t ldc);

// Working memory, grown once and kept
enum { ROOM_A, ROOM_B, ROOM_ATTENTION, ROOM_SUMS, N_ROOMS };
static real *room(int which, size_t n) {
    static real *buffer[N_ROOMS];
    static size_t size[N_ROOMS];
    if (n > size[which]) {
        free(buffer[which]);
        buffer[which] = (real *)aligned_alloc(64, (n * sizeof(real) + 63) / 64 * 64);
        if (!buffer[which])
            die("memory: no room for %zu bytes to work in; try a smaller --micro-batch", n * sizeof(real));
        size[which] = n;
    }
    return buffer[which];
}

// ----------------------------------------------------------------------------
// Layers, forward and backward. Arguments: outputs, inputs, what the forward saved, sizes.

// Embedding: out[n] = wte[token[n]] + wpe[pos[n]].   out (N,C), wte (Vp,C), of which V rows are used, wpe (T,C)
static void embedding_forward(real *out, const int *token, const int *pos, const real *wte, const real *wpe,
                              int N, int C) {
    stage(STAGE_EMBEDDING);
    PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        const real *t = wte + (size_t)token[n] * C, *p = wpe + (size_t)pos[n] * C;
        for (int i = 0; i < C; i++) out[(size_t)n * C + i] = t[i] + p[i];
    }
}

// dw[row[n] - from] += dout[n], where row[n] is one of from .. to-1. Rows repeat, so threads split the channels.
static void rows_backward(real *dw, const real *dout, const int *row, int from, int to, int N, int C) {
    enum { SPAN = 64 };
    stage(STAGE_EMBEDDING);
    PARALLEL_FOR
    for (int i = 0; i < C; i += SPAN)
        for (int n = 0; n < N; n++)
            if (row[n] >= from && row[n] < to)
                axpy(dw + (size_t)(row[n] - from) * C + i, 1, dout + (size_t)n * C + i, min_int(SPAN, C - i));
}

// dwte[token[n]] += dout[n], dwpe[pos[n]] += dout[n]
static void embedding_backward(real *dwte, real *dwpe, const real *dout, const int *token, const int *pos,
                               int N, int C) {
    rows_backward(dwte, dout, token, 0, INT32_MAX, N, C);
    rows_backward(dwpe, dout, pos, 0, INT32_MAX, N, C);
}

// LayerNorm: out = w * (x - mean) * rstd + b, rstd = 1 / sqrt(var + eps), over the C channels of each row.
// out, x (N,C); w, b (C); mean, rstd (N) are saved for the backward
static void layernorm_forward(real *out, real *mean, real *rstd, const real *x, const real *w, const real *b,
                              int N, int C) {
    stage(STAGE_LAYERNORM);
    PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        const real *row = x + (size_t)n * C;
        real sum = 0, var = 0;
        SIMD_SUM(sum)
        for (int i = 0; i < C; i++) sum += row[i];
        real mu = sum / C;
        SIMD_SUM(var)
        for (int i = 0; i < C; i++) var += (row[i] - mu) * (row[i] - mu);
        real rs = 1 / sqrt_real(var / C + (real)LAYERNORM_EPS);
        for (int i = 0; i < C; i++) out[(size_t)n * C + i] = w[i] * ((row[i] - mu) * rs) + b[i];
        mean[n] = mu;
        rstd[n] = rs;
    }
}

// With xhat = (x - mean) rstd and g = dout * w:   dx += rstd (g - mean_C(g) - xhat mean_C(g xhat)),
// dw += sum_N dout xhat, db += sum_N dout. Adds to dx: the residual stream carries a gradient past the layer.
static void layernorm_backward(real *dx, real *dw, real *db, const real *dout, const real *x, const real *w,
                               const real *mean, const real *rstd, int N, int C) {
    enum { SPAN = 64 };
    stage(STAGE_LAYERNORM);
    PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        const real *g = dout + (size_t)n * C, *row = x + (size_t)n * C;
        real mu = mean[n], rs = rstd[n], sum = 0, sumx = 0;
        SIMD_SUM(sum, sumx)
        for (int i = 0; i < C; i++) {
            sum += g[i] * w[i];
            sumx += g[i] * w[i] * (row[i] - mu);
        }
        sum /= C;
        sumx *= rs * rs / C;
        for (int i = 0; i < C; i++) dx[(size_t)n * C + i] += rs * (g[i] * w[i] - sum - (row[i] - mu) * sumx);
    }
    PARALLEL_FOR
    for (int i0 = 0; i0 < C; i0 += SPAN)
        for (int n = 0; n < N; n++)
            for (int i = i0; i < min_int(i0 + SPAN, C); i++) {
                real g = dout[(size_t)n * C + i];
                dw[i] += g * (x[(size_t)n * C + i] - mean[n]) * rstd[n];
                db[i] += g;
            }
}

// Matmul with bias and residual: out = residual + x W^T + bias; residual may be NULL, and may be out itself.
// out, residual (N,OC), x (N,C), W (OC,C), bias (OC)
static void matmul_forward(real *out, const real *x, const real *w, const real *bias, const real *residual,
                           int N, int C, int OC) {
    PARALLEL_FOR
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            out[(size_t)n * OC + o] = bias[o] + (residual ? residual[(size_t)n * OC + o] : 0);
    gemm(0, 1, N, OC, C, x, (size_t)C, w, (size_t)C, 1, out, (size_t)OC);
}

static real grad_beta = 1; // 0 in a step's first backward: products then overwrite gradients, which need no zeroing

// dx = dout W, dW += dout^T x, dbias += sum_N dout. (The residual's gradient is dout itself.) dx and dw may be NULL:
// then the caller forms them.
static void matmul_backward(real *dx, real *dw, real *dbias, const real *dout, const real *x, const real *w,
                            int N, int C, int OC) {
    enum { SPAN = 64 };
    if (dx) gemm(0, 0, N, C, OC, dout, (size_t)OC, w, (size_t)C, 0, dx, (size_t)C);
    if (dw) gemm(1, 0, OC, C, N, dout, (size_t)OC, x, (size_t)C, grad_beta, dw, (size_t)C);
    PARALLEL_FOR
    for (int o = 0; o < OC; o += SPAN)
        for (int n = 0; n < N; n++) axpy(dbias + o, 1, dout + (size_t)n * OC + o, min_int(SPAN, OC - o));
}

// Attention over the two intervals of dataloader.h, a block of rows of one head at a time. The rows of a block belong
// to one query or to one response, so they see the same m keys, but for the causal end:
//   S = Q K^T (rows,m),  P = softmax(S / sqrt(hs)) row by row,  out = P V
// Saves only lse_n = log sum_j exp(S_nj / sqrt(hs)), from which the backward computes P again.
typedef struct { int from, keys, at; } Keys; // the keys of rows from .. from+keys-1 are columns at .. of S
typedef struct {
    int n0, n1;  // rows n0 .. n1-1
    int m;       // keys that the last of them sees
    Keys run[2]; // the query's (none, where these are the query's rows) and the rows' own
} RowBlock;

enum { BLOCK_ROWS = 96 };

// Where the query or the response begins that row n belongs to. (b0[n] <= n says that n is a response's.)
static int own_start(const Batch *b, int n) { return b->b0[n] <= n ? b->b0[n] : b->a0[n]; }

// The block of rows from n on, of a query's rows that end at `end`.
static RowBlock attention_rows(const Batch *b, int n, int end) {
    int own = own_start(b, n), prefix = b->b0[n] <= n ? b->a1[n] - b->a0[n] : 0;
    RowBlock r = {n, n + 1, 0, {{b->a0[n], prefix, 0}, {own, 0, prefix}}};
    while (r.n1 < end && r.n1 - n < BLOCK_ROWS && own_start(b, r.n1) == own) r.n1++;
    r.run[1].keys = r.n1 - own;
    r.m = prefix + r.run[1].keys;
    return r;
}

// Room for two (rows,m) blocks of every thread.
static real *attention_room(const Batch *b, size_t *block) {
    int most = 0;
    for (int n = 0; n < b->N; n++) {
        int seen = b->a1[n] - b->a0[n] + n + 1 - b->b0[n];
        most = seen > most ? seen : most;
    }
    *block = (size_t)min_int(b->N, BLOCK_ROWS) * (size_t)most;
    return room(ROOM_ATTENTION, (size_t)thread_count() * *block * 2);
}

// out (N,C), lse (N,NH), qkv (N,3C)
static void attention_forward(real *out, real *lse, const real *qkv, const Batch *b, int C, int NH) {
    int hs = C / NH;
    size_t C3 = 3 * (size_t)C, size;
    real scale = 1 / sqrt_real((real)hs), *all;
    stage(STAGE_ATTENTION);
    all = attention_room(b, &size);
    PARALLEL_FOR2
    for (int g = 0; g < b->Q; g++)
        for (int h = 0; h < NH; h++) {
            real *S = all + thread_index() * size * 2;
            const real *q = qkv + h * hs, *k = q + C, *v = k + C;
            for (int n = b->group[g], end = b->group[g + 1]; n < end;) {
                RowBlock r = attention_rows(b, n, end);
                int rows = r.n1 - n, m = r.m;
                for (int i = 0; i < 2; i++)
                    gemm_small(rows, r.run[i].keys, hs, q + n * C3, C3, 1, k + r.run[i].from * C3, 1, C3, 0,
                               S + r.run[i].at, (size_t)m);
                for (int i = 0; i < rows; i++) {
                    real *s = S + (size_t)i * m, max = -INFINITY, sum = 0;
                    int seen = m - rows + i + 1;
                    SIMD_MAX(max)
                    for (int j = 0; j < seen; j++) max = s[j] > max ? s[j] : max;
                    SIMD_SUM(sum)
                    for (int j = 0; j < seen; j++) sum += s[j] = exp_real(scale * (s[j] - max));
                    real per = 1 / sum;
                    for (int j = 0; j < m; j++) s[j] = j < seen ? per * s[j] : 0;
                    lse[(size_t)(n + i) * NH + h] = scale * max + (real)log(sum);
                }
                for (int i = 0; i < 2; i++) // run 0 overwrites out, run 1 adds, but overwrites if it is alone
                    gemm_small(rows, hs, r.run[i].keys, S + r.run[i].at, (size_t)m, 1, v + r.run[i].from * C3, C3, 1,
                               r.run[i].at > 0, out + (size_t)n * C + h * hs, (size_t)C);
                n = r.n1;
            }
        }
}

// With P = exp(S / sqrt(hs) - lse), dP = dout V^T and D_n = sum_j P_nj dP_nj (which is dout_n . out_n):
//   dS = P (dP - D) / sqrt(hs),  dQ = dS K,  dK += dS^T Q,  dV += P^T dout
// dqkv (N,3C) is overwritten, and so is out (N,C): the forward's output, which is not kept, is P V once more. A task
// owns one head of one query's rows, so no two tasks add to the same place.
static void attention_backward(real *dqkv, real *out, const real *dout, const real *lse, const real *qkv,
                               const Batch *b, int C, int NH) {
    int hs = C / NH;
    size_t C1 = (size_t)C, C3 = 3 * C1, size;
    real scale = 1 / sqrt_real((real)hs), *all;
    stage(STAGE_DATTENTION);
    all = attention_room(b, &size);
    PARALLEL_FOR
    for (int n = 0; n < b->N; n++) memset(dqkv + (size_t)n * C3, 0, C3 * sizeof *dqkv);
    PARALLEL_FOR2
    for (int g = 0; g < b->Q; g++)
        for (int h = 0; h < NH; h++) {
            real *P = all + thread_index() * size * 2, *dS = P + size;
            const real *q = qkv + h * hs, *k = q + C, *v = k + C, *go = dout + h * hs;
            real *dq = dqkv + h * hs, *dk = dq + C, *dv = dk + C, *o = out + h * hs;
            for (int n = b->group[g], end = b->group[g + 1]; n < end;) {
                RowBlock r = attention_rows(b, n, end);
                int rows = r.n1 - n, m = r.m;
                size_t M = (size_t)m;
                for (int i = 0; i < 2; i++) {
                    int at = r.run[i].at, keys = r.run[i].keys;
                    gemm_small(rows, keys, hs, q + n * C3, C3, 1, k + r.run[i].from * C3, 1, C3, 0, P + at, M);
                    gemm_small(rows, keys, hs, go + n * C1, C1, 1, v + r.run[i].from * C3, 1, C3, 0, dS + at, M);
                }
                for (int i = 0; i < rows; i++) {
                    real *p = P + (size_t)i * M, *ds = dS + (size_t)i * M, l = lse[(size_t)(n + i) * NH + h], D = 0;
                    int seen = m - rows + i + 1;
                    SIMD_SUM(D)
                    for (int j = 0; j < seen; j++) {
                        p[j] = exp_real(scale * p[j] - l);
                        D += p[j] * ds[j];
                    }
                    SIMD
                    for (int j = 0; j < seen; j++) ds[j] = scale * p[j] * (ds[j] - D);
                    for (int j = seen; j < m; j++) p[j] = ds[j] = 0;
                }
                for (int i = 0; i < 2; i++) {
                    int at = r.run[i].at, keys = r.run[i].keys, from = r.run[i].from;
                    gemm_small(rows, hs, keys, P + at, M, 1, v + from * C3, C3, 1, at > 0, o + n * C1, C1);
                    gemm_small(rows, hs, keys, dS + at, M, 1, k + from * C3, C3, 1, 1, dq + n * C3, C3);
                    gemm_small(keys, hs, rows, dS + at, 1, M, q + n * C3, C3, 1, 1, dk + from * C3, C3);
                    gemm_small(keys, hs, rows, P + at, 1, M, go + n * C1, C1, 1, 1, dv + from * C3, C3);
                }
                n = r.n1;
            }
        }
}

// The cache holds each head's keys and values side by side, (NH,slots,2hs): the new tokens' go in.
static void cache_write(real *cache, int slots, const real *qkv, const Decode *d, int C, int NH) {
    int hs = C / NH;
    PARALLEL_FOR
    for (int n = 0; n < d->n; n++)
        for (int h = 0; h < NH; h++) {
            real *kv = cache + ((size_t)h * (size_t)slots + (size_t)d->slot[n]) * 2 * hs;
            memcpy(kv, qkv + ((size_t)n * 3 + 1) * C + h * hs, (size_t)hs * sizeof *kv);
            memcpy(kv + hs, qkv + ((size_t)n * 3 + 2) * C + h * hs, (size_t)hs * sizeof *kv);
        }
}

// One new token and one head, over its `len` slots; s (len) is room. Inlined with hs a constant for GPT-2's head sizes:
// then the inner loops are straight vector code. Channels are summed 4 vectors at a time, which stay in registers.
static inline __attribute__((always_inline)) void attention_decode_head(
        real *out, const real *q, const real *kv, const int *slot, int len, real *s, const int hs) {
    real scale = 1 / sqrt_real((real)hs), max = -INFINITY, sum = 0;
    for (int j = 0; j < len; j++) s[j] = scale * dot(q, kv + (size_t)slot[j] * 2 * hs, hs);
    SIMD_MAX(max)
    for (int j = 0; j < len; j++) max = s[j] > max ? s[j] : max;
    SIMD_SUM(sum)
    for (int j = 0; j < len; j++) sum += s[j] = exp_real(s[j] - max);
    for (int j = 0; j < len; j++) s[j] /= sum;
    int i = 0;
    for (; i + 4 * VL <= hs; i += 4 * VL) {
        vec o[4] = {{0}, {0}, {0}, {0}};
        for (int j = 0; j < len; j++) {
            const vec *v = (const vec *)(kv + (size_t)slot[j] * 2 * hs + hs + i);
            for (int b = 0; b < 4; b++) o[b] += s[j] * v[b];
        }
        for (int b = 0; b < 4; b++) ((vec *)(out + i))[b] = o[b];
    }
    for (int c = i; c < hs; c++) out[c] = 0;
    if (i < hs)
        for (int j = 0; j < len; j++) axpy(out + i, s[j], kv + (size_t)slot[j] * 2 * hs + hs + i, hs - i);
}

// The same attention for one new token each, over a list of cache slots.   out (n,C), q in qkv (n,3C)
static void attention_decode(real *out, const real *qkv, const real *cache, int slots, const Decode *d, int C, int NH) {
    int hs = C / NH, longest = 0;
    for (int n = 0; n < d->n; n++) longest = d->len[n] > longest ? d->len[n] : longest;
    real *all = room(ROOM_ATTENTION, (size_t)d->n * (size_t)NH * (size_t)longest);
    PARALLEL_FOR2
    for (int h = 0; h < NH; h++) // beams of one query, which share a cache's slots, one after the other
        for (int n = 0; n < d->n; n++) {
            const real *q = qkv + (size_t)n * 3 * C + h * hs, *kv = cache + (size_t)h * (size_t)slots * 2 * hs;
            real *o = out + (size_t)n * C + h * hs, *s = all + (size_t)(n * NH + h) * (size_t)longest;
            const int *slot = d->list + d->at[n];
            if (hs == 64) attention_decode_head(o, q, kv, slot, d->len[n], s, 64);
            else if (hs == 32) attention_decode_head(o, q, kv, slot, d->len[n], s, 32);
            else attention_decode_head(o, q, kv, slot, d->len[n], s, hs);
        }
}

// GELU, tanh form: out = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3); tanh(u) = 1 - 2/(exp(2u)+1).
// out, x (N,C)
static void gelu_forward(real *out, const real *x, int N, int C) {
    stage(STAGE_GELU);
    PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        real *o = out + (size_t)n * C;
        const real *row = x + (size_t)n * C;
        SIMD
        for (int i = 0; i < C; i++) {
            real u = (real)GELU_S * (row[i] + (real)GELU_A * row[i] * row[i] * row[i]);
            o[i] = row[i] * (1 - 1 / (exp_real(2 * u) + 1));
        }
    }
}

// dx = dout ((1 + t)/2 + x/2 (1 - t^2) du/dx), t = tanh(u); in place: d (N,C) is dout, then dx; x (N,C) becomes the
// forward's output, which the next product's dW needs.
static void gelu_backward(real *d, real *x, int N, int C) {
    stage(STAGE_GELU);
    PARALLEL_FOR
    for (int n = 0; n < N; n++) {
        real *o = d + (size_t)n * C, *row = x + (size_t)n * C;
        SIMD
        for (int i = 0; i < C; i++) {
            real a = row[i], u = (real)GELU_S * (a + (real)GELU_A * a * a * a), s = 1 / (exp_real(2 * u) + 1);
            real t = 1 - 2 * s;
            o[i] *= (real)0.5 * (1 + t) + (real)0.5 * a * (1 - t * t) * (real)GELU_S * (1 + 3 * (real)GELU_A * a * a);
            row[i] = a * (1 - s);
        }
    }
}

// log sum exp of a row's V logits: sums of 1024 terms in vectors, their total in double
static double row_lse(const real *z, int V) {
    real max = z[0];
    double total = 0;
    SIMD_MAX(max)
    for (int v = 1; v < V; v++) max = z[v] > max ? z[v] : max;
    for (int v0 = 0; v0 < V; v0 += 1024) {
        real sum = 0;
        int v1 = min_int(v0 + 1024, V);
        SIMD_SUM(sum)
        for (int v = v0; v < v1; v++) sum += exp_real(z[v] - max);
        total += (double)sum;
    }
    return (double)max + log(total);
}

// Classifier: logits = x wte^T, log P(v) = logit_v - log sum exp(logits), for the U predicting rows.
// logits (U,Vp), lse (U), logp (P), x (U,C), wte (Vp,C), of which V rows are used
static void classifier_forward(real *logp, real *logits, real *lse, const real *x, const real *wte, const Batch *b,
                               int C, int V, int Vp) {
    stage(STAGE_CLASSIFIER);
    gemm(0, 1, b->U, V, C, x, (size_t)C, wte, (size_t)C, 0, logits, (size_t)Vp);
    PARALLEL_FOR
    for (int u = 0; u < b->U; u++) {
        const real *z = logits + (size_t)u * Vp;
        lse[u] = (real)row_lse(z, V);
        for (int i = b->pred[u]; i < b->pred[u + 1]; i++) logp[i] = z[b->target[i]] - lse[u];
    }
}

// d logP(y)/d logit_v = [v = y] - P(v), so with c_i for each prediction i of the row:
// dlogit_v = sum_i c_i [v = y_i] - (sum_i c_i) P(v). In place over the logits; then dx = dlogits wte and
// dwte += dlogits^T x. c (R): one coefficient per response, the same for each of its tokens. dwte may be NULL: then the
// caller forms it (table_backward).
static void classifier_backward(real *dx, real *dwte, real *logits, const real *lse, const real *c, const real *x,
                                const real *wte, const Batch *b, int C, int V, int Vp) {
    stage(STAGE_DCLASSIFIER);
    PARALLEL_FOR
    for (int u = 0; u < b->U; u++) {
        real *z = logits + (size_t)u * Vp, sum = 0;
        for (int i = b->pred[u]; i < b->pred[u + 1]; i++) sum += c[b->resp[i]];
        SIMD
        for (int v = 0; v < V; v++) z[v] = -sum * exp_real(z[v] - lse[u]);
        for (int i = b->pred[u]; i < b->pred[u + 1]; i++) z[b->target[i]] += c[b->resp[i]];
    }
    gemm(0, 0, b->U, C, V, logits, (size_t)Vp, wte, (size_t)C, 0, dx, (size_t)C);
    if (dwte) gemm(1, 0, V, C, b->U, logits, (size_t)Vp, x, (size_t)C, grad_beta, dwte, (size_t)C);
}

// Scalar head of a reward model: out_r = x_r . w + b.   out (R), x (R,C), w (C), b (1)
static void head_forward(real *out, const real *x, const real *w, const real *b, int R, int C) {
    for (int r = 0; r < R; r++) out[r] = dot(x + (size_t)r * C, w, C) + b[0];
}

// dx_r = c_r w, dw += sum_r c_r x_r, db += sum_r c_r
static void head_backward(real *dx, real *dw, real *db, const real *c, const real *x, const real *w, int R, int C) {
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < C; i++) dx[(size_t)r * C + i] = c[r] * w[i];
        axpy(dw, c[r], x + (size_t)r * C, C);
        db[0] += c[r];
    }
}

// The rows that are read: out[u] = x[row[u]], and back, dx[row[u]] = dout[u] with zeros elsewhere.
static void gather_forward(real *out, const real *x, const int *row, int U, int C) {
    for (int u = 0; u < U; u++) memcpy(out + (size_t)u * C, x + (size_t)row[u] * C, (size_t)C * sizeof *out);
}

static void gather_backward(real *dx, const real *dout, const int *row, int U, int N, int C) {
    memset(dx, 0, (size_t)N * (size_t)C * sizeof *dx);
    for (int u = 0; u < U; u++) memcpy(dx + (size_t)row[u] * C, dout + (size_t)u * C, (size_t)C * sizeof *dx);
}

// ----------------------------------------------------------------------------
// GPT-2

// X(name, layers, rows, columns): what the forward saves for the backward. S = L slices where a backward will follow,
// else 1. Of every block:
#define SAVED(X)                                                                         \
    X(x,      S + 1, N, c.C)      /* residual stream before it, and at the end */        \
    X(mean1,  S, N, 1)                                                                   \
    X(rstd1,  S, N, 1)                                                                   \
    X(qkv,    S, N, 3 * c.C)                                                             \
    X(lse,    S, N, c.NH)                                                                \
    X(mid,    S, N, c.C)          /* residual stream after attention */                  \
    X(mean2,  S, N, 1)                                                                   \
    X(rstd2,  S, N, 1)                                                                   \
    X(fc,     S, N, 4 * c.C)
// and of the rows that are read:
#define SAVED_READ(X)                                                                    \
    X(lnf,    1, U, c.C)                                                                 \
    X(meanf,  1, U, 1)                                                                   \
    X(rstdf,  1, U, 1)                                                                   \
    X(logits, !c.reward, U, c.Vp) /* then their gradient */                              \
    X(lsef,   1, U, 1)
// One block's at a time: `wide` holds in turn ln, att and gelu, which are cheap to compute again, and gradients. (The
// backward has fc's room besides, once fc is used up; the residual stream's gradient takes x's last slice.)
#define BLOCK_ROOM(X)                                                                    \
    X(wide,   1, N, 4 * c.C)

struct GPT2 {
    Config c;
    size_t n_params;
    Params w, dw;                     // parameters and gradients
    real *params, *m, *v;             // each (n_params), the moments only for training
    real *grads, *pieces;             // the gradient, whole (n_params) or in pieces: see gradient_room
#define X(name, layers, rows, cols) real *name;
    SAVED(X)
    SAVED_READ(X)
    BLOCK_ROOM(X)
#undef X
    int training;
    real *state, *kept, *activations; // where params, m and v lie, the gradient, and all of the above
    int N, U;                         // planned for
    int fresh;                        // the gradients count as zero, whatever they hold
    double norm;                      // of the gradient that the last backward used up
    real *cache;                      // (L, NH, slots, 2hs)
    real *dec;                        // decoding's activations
    real *dec_logits;                 // (n_rows, V)
    Candidate *top;                   // (n_rows, k)
    double *top_lse;                  // (n_rows)
    Candidate *draw_room;             // (threads, k)
    int *drawn;                       // (n)
    size_t top_cap, lse_cap, draw_cap, drawn_cap;
    int dec_n, dec_rows, dec_slots;
};

// Arrays begin on a cache line: a vector that straddles two costs twice.
enum { LINE = 64 / sizeof(real) };
static size_t line_up(size_t n) { return (n + LINE - 1) / LINE * LINE; }
static real *line_start(real *p) { return (real *)(void *)(((uintptr_t)p + 63) / 64 * 64); }

static size_t activation_count(Config c, int training, int N, int U) {
    int S = training ? c.L : 1;
    size_t n = LINE;
#define X(name, layers, rows, cols) n += line_up((size_t)(layers) * (size_t)(rows) * (size_t)(cols));
    SAVED(X)
    SAVED_READ(X)
    BLOCK_ROOM(X)
#undef X
    return n;
}

static size_t state_count(Config c, int training) { return LINE + line_up(gpt2_count(c)) * (training ? 3 : 1); }

// The gradient, whole or in pieces. Where a step is one micro-batch and nothing clips, AdamW can take some rows of a
// matrix's gradient as soon as they are complete: then all matrices and embeddings (the tensors that decay) share one
// room, only biases and LayerNorms keep theirs to the end of the backward, and the state needs a quarter less memory.
// The room fits in a cache, so such a gradient is never written to memory.
static size_t update_room(Config c) {
    size_t rows = (size_t)c.C * (size_t)c.C; // C rows of C channels
    return rows < 1 << 16 ? 1 << 16 : rows;
}

static size_t piece_at(Config c, const Tensor t[N_TENSORS], int tensor) {
    size_t at = line_up(update_room(c));
    for (int i = 0; i < tensor; i++) at += t[i].decay ? 0 : t[i].size;
    return t[tensor].decay ? 0 : at;
}

static size_t gradient_count(Config c, int whole) {
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(c, t);
    return LINE + (whole ? n : piece_at(c, t, TENSOR_rewardb) + t[TENSOR_rewardb].size);
}

// Makes that room where there is none. What is whole stays so.
static void gradient_room(GPT2 *m, int whole) {
    Tensor t[N_TENSORS];
    int i = 0;
    if (m->grads || (m->pieces && !whole)) return;
    free(m->kept);
    m->kept = (real *)xalloc(gradient_count(m->c, whole), sizeof(real));
    m->grads = whole ? line_start(m->kept) : NULL;
    m->pieces = whole ? NULL : line_start(m->kept);
    gpt2_tensors(m->c, t);
#define X(name, layers, rows, cols, kind) \
    m->dw.name = whole ? m->grads + t[i].at : m->pieces + piece_at(m->c, t, i); i++;
    GPT2_PARAMS(X)
#undef X
}

size_t gpt2_bytes(Config c, int training, int N, int U) {
    size_t gradient = training ? gradient_count(c, training == 2) : 0;
    return sizeof(real) * (state_count(c, training) + gradient + activation_count(c, training, N, U));
}

size_t gpt2_slot_bytes(Config c) { return 2 * sizeof(real) * (size_t)c.L * (size_t)c.C; }

int gpt2_tokens(const GPT2 *m) { (void)m; return TOKENS_LEAST; } // enough to fill the matrix products

GPT2 *gpt2_build(Config c, const float *params, int training) {
    GPT2 *m = (GPT2 *)xalloc(1, sizeof *m);
    m->c = c;
    m->training = training;
    m->n_params = gpt2_count(c);
    m->state = (real *)xalloc(state_count(c, training), sizeof(real));
    m->params = line_start(m->state);
    m->w = gpt2_params(c, m->params);
    PARALLEL_FOR // fresh memory may come more slowly than a checkpoint is read: let all threads ask for it
    for (size_t i = 0; i < m->n_params; i += 4096 / sizeof(real)) m->params[i] = 0;
    if (training) {
        size_t n = line_up(m->n_params);
        m->m = m->params + n, m->v = m->m + n;
    }
    if (params) gpt2_set(m, COPY_PARAMS, params);
    return m;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    free(m->state); free(m->kept); free(m->activations);
    free(m->cache); free(m->dec); free(m->dec_logits); free(m->top); free(m->top_lse);
    free(m->draw_room); free(m->drawn);
    free(m);
}

Config gpt2_config(const GPT2 *m) { return m->c; }

// Sets the gradient to zero, which gpt2_zero_grad only notes. skip_products: but not what the next backward's products
// overwrite, the matrices and the first V of wte's Vp rows.
static void grads_zero(GPT2 *m, int skip_products) {
    Tensor t[N_TENSORS];
    stage(STAGE_ZERO);
    gpt2_tensors(m->c, t);
    for (int i = 0; i < N_TENSORS; i++) {
        int wte = i == TENSOR_wte, product = t[i].decay && i != TENSOR_wpe && !(wte && m->c.reward);
        size_t from = !skip_products || !product ? 0 : wte ? (size_t)m->c.V * (size_t)m->c.C : t[i].size;
        if (m->grads) memset(m->grads + t[i].at + from, 0, (t[i].size - from) * sizeof(real));
        else if (!t[i].decay) memset(m->pieces + piece_at(m->c, t, i), 0, t[i].size * sizeof(real));
    }
    m->fresh = 0;
}

void gpt2_zero_grad(GPT2 *m) { m->fresh = 1; }

// The whole gradient, made and zeroed if it has not been.
static real *gradient(GPT2 *m) {
    gradient_room(m, 1);
    if (m->fresh) grads_zero(m, 0);
    return m->grads;
}

static real *copy_which(GPT2 *m, enum Copy what) {
    return what == COPY_PARAMS ? m->params : what == COPY_GRADS ? gradient(m) : what == COPY_M ? m->m : m->v;
}

void gpt2_get_part(GPT2 *m, enum Copy what, size_t at, size_t n, float *host) {
    const real *from = copy_which(m, what) + at;
    for (size_t i = 0; i < n; i++) host[i] = (float)from[i];
}

void gpt2_set_part(GPT2 *m, enum Copy what, size_t at, size_t n, const float *host) {
    real *to = copy_which(m, what) + at;
    for (size_t i = 0; i < n; i++) to[i] = (real)host[i];
}

void gpt2_unplan(GPT2 *m) {
    free(m->activations);
    m->activations = NULL;
    m->N = m->U = 0;
}

void gpt2_plan(GPT2 *m, int N, int U) {
    if (N <= m->N && U <= m->U) return;
    Config c = m->c;
    int training = m->training, S = training ? c.L : 1;
    N = N > m->N ? N : m->N;
    U = U > m->U ? U : m->U;
    gpt2_unplan(m);
    m->N = N, m->U = U;
    m->activations = (real *)xalloc(activation_count(c, training, N, U), sizeof(real));
    real *p = line_start(m->activations);
#define X(name, layers, rows, cols) m->name = p; p += line_up((size_t)(layers) * (size_t)(rows) * (size_t)(cols));
    SAVED(X)
    SAVED_READ(X)
    BLOCK_ROOM(X)
#undef X
}

// The residual stream before block l, or with l = L at the end. Without a backward to follow, two slices take turns.
static real *residual(const GPT2 *m, int l) {
    return m->x + (size_t)(m->training ? l : l & 1) * (size_t)m->N * (size_t)m->c.C;
}

// Block l's slices of what is saved; next: the residual stream after it.
#define X(name, layers, rows, cols) real *name;
typedef struct { SAVED(X) real *next; } Block;
#undef X
static Block block_saved(const GPT2 *m, int l) {
    Config c = m->c;
    size_t N = (size_t)m->N, slice = m->training ? (size_t)l : 0;
    Block s;
#define X(name, layers, rows, cols) s.name = m->name + slice * (rows) * (size_t)(cols);
    SAVED(X)
#undef X
    s.x = residual(m, l), s.next = residual(m, l + 1);
    return s;
}

// ----------------------------------------------------------------------------
// GPT-2's blocks, forward and backward

// An AdamW update in progress, of the gradient times grad_scale. square: the unscaled gradient's sum of squares so far.
typedef struct { AdamW o; double grad_scale; int step; double square; } Update;
static void adamw(GPT2 *m, Update *u, size_t at, size_t n, int decays, const real *restrict g); // see "The optimizer"

// One block of the transformer, forward: x -> x + attention(ln1(x)) -> that + mlp(ln2(that)).
static void block_forward(GPT2 *m, const Batch *b, int l) {
    Params w = block_params(m->c, m->w, l, 1);
    Block s = block_saved(m, l);
    int N = b->N, C = m->c.C, NH = m->c.NH;
    real *ln = m->wide, *att = m->wide, *gelu = m->wide; // each is used before the next is written
    layernorm_forward(ln, s.mean1, s.rstd1, s.x, w.ln1w, w.ln1b, N, C);
    stage(STAGE_QKV);
    matmul_forward(s.qkv, ln, w.qkvw, w.qkvb, NULL, N, C, 3 * C);
    attention_forward(att, s.lse, s.qkv, b, C, NH);
    stage(STAGE_ATTPROJ);
    matmul_forward(s.mid, att, w.attprojw, w.attprojb, s.x, N, C, C);
    layernorm_forward(ln, s.mean2, s.rstd2, s.mid, w.ln2w, w.ln2b, N, C);
    stage(STAGE_FC);
    matmul_forward(s.fc, ln, w.fcw, w.fcb, NULL, N, C, 4 * C);
    gelu_forward(gelu, s.fc, N, 4 * C);
    stage(STAGE_FCPROJ);
    matmul_forward(s.next, gelu, w.fcprojw, w.fcprojb, s.mid, N, 4 * C, C);
}

// matmul_backward, and where u is not NULL the update of W besides, as many rows at a time as there is room for. dx
// comes first, since it needs W as it was (dx NULL: the caller has formed it).
// dx, x (N,C), dout (N,OC), w, dw (OC,C; in pieces: room for some rows), dbias (OC)
static void linear_backward(GPT2 *m, Update *u, real *dx, real *dw, real *dbias, const real *dout, const real *x,
                            const real *w, int N, int C, int OC) {
    enum Stage here = profile.at;
    int some = (int)(update_room(m->c) / (size_t)C);
    matmul_backward(dx, u ? NULL : dw, dbias, dout, x, w, N, C, OC);
    for (int o = 0, rows; u && o < OC; o += rows) {
        rows = min_int(some, OC - o);
        size_t at = (size_t)o * (size_t)C;
        real *part = dw + (m->grads ? at : 0);
        stage(here);
        gemm(1, 0, rows, C, N, dout + o, (size_t)OC, x, (size_t)C, 0, part, (size_t)C);
        adamw(m, u, (size_t)(w - m->params) + at, (size_t)rows * (size_t)C, 1, part);
    }
}

// The same block backward; dx is the gradient of its output, then of its input. What was not saved (gelu, ln, att) is
// computed again. Two rooms of 4C per token do for all, each array used up before the next is written:
//   wide: dfc, then dqkv      fc: itself, then gelu | ln, dln | att, datt | ln, dln
static void block_backward(GPT2 *m, real *dx, const Batch *b, int l, Update *u) {
    Params w = block_params(m->c, m->w, l, 1), d = block_params(m->c, m->dw, l, m->grads != NULL);
    Block s = block_saved(m, l);
    int N = b->N, C = m->c.C, NH = m->c.NH;
    size_t C1 = (size_t)C;
    real *dfc = m->wide, *dqkv = m->wide, *gelu = s.fc, *ln = s.fc, *att = s.fc, *dln = s.fc + (size_t)N * C1;
    real *datt = dln;
    stage(STAGE_DFCPROJ);
    gemm(0, 0, N, 4 * C, C, dx, C1, w.fcprojw, 4 * C1, 0, dfc, 4 * C1); // of gelu's output
    gelu_backward(dfc, s.fc, N, 4 * C);
    stage(STAGE_DFCPROJ);
    linear_backward(m, u, NULL, d.fcprojw, d.fcprojb, dx, gelu, w.fcprojw, N, 4 * C, C);
    layernorm_forward(ln, s.mean2, s.rstd2, s.mid, w.ln2w, w.ln2b, N, C);
    stage(STAGE_DFC);
    linear_backward(m, u, dln, d.fcw, d.fcb, dfc, ln, w.fcw, N, C, 4 * C);
    layernorm_backward(dx, d.ln2w, d.ln2b, dln, s.mid, w.ln2w, s.mean2, s.rstd2, N, C);
    stage(STAGE_DATTPROJ);
    gemm(0, 0, N, C, C, dx, C1, w.attprojw, C1, 0, datt, C1);
    attention_backward(dqkv, att, datt, s.lse, s.qkv, b, C, NH);
    stage(STAGE_DATTPROJ);
    linear_backward(m, u, NULL, d.attprojw, d.attprojb, dx, att, w.attprojw, N, C, C);
    layernorm_forward(ln, s.mean1, s.rstd1, s.x, w.ln1w, w.ln1b, N, C);
    stage(STAGE_DQKV);
    linear_backward(m, u, dln, d.qkvw, d.qkvb, dqkv, ln, w.qkvw, N, C, 3 * C);
    layernorm_backward(dx, d.ln1w, d.ln1b, dln, s.x, w.ln1w, s.mean1, s.rstd1, N, C);
}

void gpt2_forward(GPT2 *m, const Batch *b, real *out) {
    Config c = m->c;
    const int *rows = c.reward ? b->last : b->row;
    int U = c.reward ? b->R : b->U;
    gpt2_plan(m, b->N, U);
    embedding_forward(m->x, b->token, b->pos, m->w.wte, m->w.wpe, b->N, c.C);
    for (int l = 0; l < c.L; l++) block_forward(m, b, l);
    gather_forward(m->wide, residual(m, c.L), rows, U, c.C);
    layernorm_forward(m->lnf, m->meanf, m->rstdf, m->wide, m->w.lnfw, m->w.lnfb, U, c.C);
    if (c.reward) head_forward(out, m->lnf, m->w.rewardw, m->w.rewardb, U, c.C);
    else classifier_forward(out, m->logits, m->lsef, m->lnf, m->w.wte, b, c.C, c.V, c.Vp);
    stage(STAGE_LOSS);
}

// Moves the rows from[0..n-1], ascending, to the front of each of `layers` arrays (rows, cols).
static void rows_keep(real *x, int layers, int rows, size_t cols, const int *from, int n) {
    PARALLEL_FOR
    for (int l = 0; l < layers; l++) {
        real *slice = x + (size_t)l * (size_t)rows * cols;
        for (int i = 0; i < n; i++)
            if (from[i] != i) memcpy(slice + i * cols, slice + from[i] * cols, cols * sizeof *x);
    }
}

// Appends rows start .. end-1 of b to `to`; their query begins at row x of b and at row x0 of `to`. from_N remembers
// where each of its rows stood in b.
static void live_rows(Batch *to, const Batch *b, int start, int end, int x, int x0, int *from_N) {
    int shift = start - to->N;
    for (int n = start; n < end; n++) {
        int k = to->N++;
        from_N[k] = n;
        to->token[k] = b->token[n], to->pos[k] = b->pos[n];
        to->a0[k] = x0, to->a1[k] = b->a1[n] - x + x0, to->b0[k] = b->b0[n] - shift;
    }
}

// Appends b's predicting rows from *u on that lie before row `end` to `to`, where their rows stand `shift` earlier,
// with the predictions whose coefficient is not 0; from_U remembers where each stood in b.
static void live_predictions(Batch *to, const Batch *b, const real *coef, int *u, int end, int shift, int *from_U) {
    for (; *u < b->U && b->row[*u] < end; ++*u) {
        from_U[to->U] = *u;
        to->row[to->U] = b->row[*u] - shift;
        to->pred[to->U++] = to->P;
        for (int j = b->pred[*u]; j < b->pred[*u + 1]; j++)
            if (coef[b->resp[j]] != 0) to->target[to->P] = b->target[j], to->resp[to->P++] = b->resp[j];
    }
}

// A response with c_i = 0 has no gradient, and nobody else sees its tokens: backward, the batch is one without it. RRHF
// has many such, those that stand in their place (rrhf.h). Returns that batch, to be freed, and moves what the forward
// saved to its rows; its resp still counts b's responses.
static Batch batch_live(GPT2 *m, const Batch *b, const real *coef) {
    Config c = m->c;
    Batch to = batch_make(b->N, b->U, b->P, b->R, b->Q);
    int N = m->N, U = m->U, S = c.L, u = 0;
    int *from_N = (int *)xalloc((size_t)b->N, sizeof(int)), *from_U = (int *)xalloc((size_t)b->U, sizeof(int));
    stage(STAGE_LIVE);
    to.N = to.U = to.P = 0;
    for (int g = 0; g < b->Q; g++) {
        int x = b->group[g], x0 = to.group[g] = to.N, end = b->b0[b->last[b->first[g]]]; // of the query's own rows
        live_rows(&to, b, x, end, x, x0, from_N);
        live_predictions(&to, b, coef, &u, end, x - x0, from_U);
        for (int r = b->first[g]; r < b->first[g + 1]; r++) {
            int start = b->b0[b->last[r]], shift = start - to.N;
            end = b->last[r] + 1;
            if (coef[r] != 0) {
                live_rows(&to, b, start, end, x, x0, from_N);
                live_predictions(&to, b, coef, &u, end, shift, from_U);
            } else
                while (u < b->U && b->row[u] < end) u++;
        }
    }
    to.group[b->Q] = to.N;
    to.pred[to.U] = to.P;
#define X(name, layers, rows, cols) rows_keep(m->name, layers, N, (size_t)(cols), from_N, to.N);
    SAVED(X)
#undef X
#define X(name, layers, rows, cols) rows_keep(m->name, layers, U, (size_t)(cols), from_U, to.U);
    SAVED_READ(X)
#undef X
    free(from_N);
    free(from_U);
    return to;
}

// An embedding's gradient and update, as many rows at a time as there is room for: dw[row[n]] += dx[n], and in the
// first V rows the classifier's dlogits^T x (V is 0 where the table is no classifier).
// dw (t->rows,C; or some), dx (N,C), row (N)
static void table_backward(GPT2 *m, const Tensor *t, real *dw, const real *dx, const Batch *b, const int *row, int V,
                           Update *u) {
    int C = m->c.C, some = (int)(update_room(m->c) / (size_t)C);
    for (int v = 0, rows; v < t->rows; v += rows) {
        rows = min_int(some, t->rows - v);
        int used = v < V ? min_int(rows, V - v) : 0;
        size_t at = (size_t)v * (size_t)C, end = (size_t)used * (size_t)C, n = (size_t)rows * (size_t)C;
        real *part = dw + (m->grads ? at : 0);
        stage(STAGE_DCLASSIFIER);
        if (used) gemm(1, 0, used, C, b->U, m->logits + v, (size_t)m->c.Vp, m->lnf, (size_t)C, 0, part, (size_t)C);
        memset(part + end, 0, (n - end) * sizeof(real));
        rows_backward(part, dx, row, v, v + rows, b->N, C);
        adamw(m, u, t->at + at, n, t->decay, part);
    }
}

// coef (R): c_i over the step's number of queries. u: NULL, or the update to make on the way, where this backward is
// the step's only one.
static void backward(GPT2 *m, const Batch *batch, const real *coef, Update *u) {
    Config c = m->c;
    Batch live;
    const Batch *b = batch;
    if (!c.reward) live = batch_live(m, batch, coef), b = &live;
    const int *rows = c.reward ? b->last : b->row;
    int U = c.reward ? b->R : b->U;
    gradient_room(m, !u);
    grad_beta = !m->fresh;
    if (m->fresh) grads_zero(m, 1);
    size_t UC = (size_t)U * (size_t)c.C; // U <= N
    real *dx = residual(m, c.L), *read = m->wide, *dread = read + UC, *dlnf = dread + UC;
    if (c.reward) head_backward(dlnf, m->dw.rewardw, m->dw.rewardb, coef, m->lnf, m->w.rewardw, U, c.C);
    else classifier_backward(dlnf, u ? NULL : m->dw.wte, m->logits, m->lsef, coef, m->lnf, m->w.wte, b, c.C, c.V, c.Vp);
    gather_forward(read, residual(m, c.L), rows, U, c.C); // again
    memset(dread, 0, UC * sizeof(real));
    layernorm_backward(dread, m->dw.lnfw, m->dw.lnfb, dlnf, read, m->w.lnfw, m->meanf, m->rstdf, U, c.C);
    gather_backward(dx, dread, rows, U, b->N, c.C);
    for (int l = c.L - 1; l >= 0; l--) block_backward(m, dx, b, l, u);
    if (u) {
        Tensor t[N_TENSORS];
        gpt2_tensors(c, t);
        table_backward(m, &t[TENSOR_wte], m->dw.wte, dx, b, b->token, c.reward ? 0 : c.V, u);
        table_backward(m, &t[TENSOR_wpe], m->dw.wpe, dx, b, b->pos, 0, u);
        for (int i = 0; i < N_TENSORS; i++)
            if (!t[i].decay)
                adamw(m, u, t[i].at, t[i].size, 0, m->grads ? m->grads + t[i].at : m->pieces + piece_at(c, t, i));
        m->fresh = 1; // used up
    } else
        embedding_backward(m->dw.wte, m->dw.wpe, dx, b->token, b->pos, b->N, c.C);
    if (!c.reward) batch_free(&live);
    stage(STAGE_OTHER);
}

void gpt2_backward(GPT2 *m, const Batch *b, const real *c) { backward(m, b, c, NULL); }

// ----------------------------------------------------------------------------
// Decoding over the key/value cache

enum { DECODE_WIDTH = 3 + 3 + 4 }; // x, norm and att (C each), qkv (3C), fc (4C) per token

void gpt2_decode_plan(GPT2 *m, int n, int n_rows, int slots) {
    Config c = m->c;
    if (n > m->dec_n) {
        free(m->dec);
        m->dec = (real *)xalloc((size_t)n * ((size_t)c.C * DECODE_WIDTH + 2), sizeof(real));
        m->dec_n = n;
    }
    if (n_rows > m->dec_rows) {
        free(m->dec_logits);
        m->dec_logits = (real *)xalloc((size_t)n_rows * (size_t)c.V, sizeof(real));
        m->dec_rows = n_rows;
    }
    if (slots > m->dec_slots) {
        free(m->cache);
        m->cache = (real *)xalloc((size_t)c.L * (size_t)slots, (size_t)c.C * 2 * sizeof(real));
        m->dec_slots = slots;
    }
}

// The logits (n_rows,V) of the rows that are wanted.
static const real *decode_logits(GPT2 *m, const Decode *d) {
    Config c = m->c;
    Params w = m->w;
    int n = d->n, C = c.C;
    size_t nC = (size_t)m->dec_n * (size_t)C;
    real *x = m->dec, *norm = x + nC, *att = norm + nC, *qkv = att + nC, *fc = qkv + 3 * nC, *mean = fc + 4 * nC;
    embedding_forward(x, d->token, d->pos, w.wte, w.wpe, n, C);
    for (int l = 0; l < c.L; l++) {
        Params b = block_params(c, w, l, 1);
        real *cache = m->cache + (size_t)l * (size_t)m->dec_slots * 2 * (size_t)C;
        layernorm_forward(norm, mean, mean + m->dec_n, x, b.ln1w, b.ln1b, n, C);
        matmul_forward(qkv, norm, b.qkvw, b.qkvb, NULL, n, C, 3 * C);
        cache_write(cache, m->dec_slots, qkv, d, C, c.NH);
        attention_decode(att, qkv, cache, m->dec_slots, d, C, c.NH);
        matmul_forward(x, att, b.attprojw, b.attprojb, x, n, C, C);
        layernorm_forward(norm, mean, mean + m->dec_n, x, b.ln2w, b.ln2b, n, C);
        matmul_forward(fc, norm, b.fcw, b.fcb, NULL, n, C, 4 * C);
        gelu_forward(fc, fc, n, 4 * C);
        matmul_forward(x, fc, b.fcprojw, b.fcprojb, x, n, 4 * C, C);
    }
    gather_forward(att, x, d->row, d->n_rows, C);
    layernorm_forward(norm, mean, mean + m->dec_n, att, w.lnfw, w.lnfb, d->n_rows, C);
    gemm(0, 1, d->n_rows, c.V, C, norm, (size_t)C, w.wte, (size_t)C, 0, m->dec_logits, (size_t)c.V);
    return m->dec_logits;
}

const Candidate *gpt2_decode_top(GPT2 *m, const Decode *d, int k, const double **lse) {
    const real *logits = decode_logits(m, d);
    int V = m->c.V;
    XGROW(m->top, m->top_cap, (size_t)d->n_rows * (size_t)k);
    XGROW(m->top_lse, m->lse_cap, (size_t)d->n_rows);
    PARALLEL_FOR
    for (int r = 0; r < d->n_rows; r++) {
        const real *row = logits + (size_t)r * (size_t)V;
        top_k_candidates(m->top + (size_t)r * (size_t)k, row, V, k);
        if (lse) m->top_lse[r] = row_lse(row, V);
    }
    if (lse) *lse = m->top_lse;
    return m->top;
}

const int *gpt2_decode_draw(GPT2 *m, const Decode *d, Draw how, int n, const int *row, const double *u) {
    int V = m->c.V;
    size_t k = (size_t)draw_width(how, V);
    const Candidate *top = (int)k < V ? gpt2_decode_top(m, d, (int)k, NULL) : NULL;
    const real *logits = top ? NULL : decode_logits(m, d);
    XGROW(m->draw_room, m->draw_cap, (size_t)thread_count() * k);
    XGROW(m->drawn, m->drawn_cap, (size_t)n);
    PARALLEL_FOR
    for (int i = 0; i < n; i++) {
        Candidate *room = m->draw_room + thread_index() * k;
        if (top) memcpy(room, top + (size_t)row[i] * k, k * sizeof *room);
        else top_k_candidates(room, logits + (size_t)row[i] * k, V, 0);
        m->drawn[i] = draw(room, (int)k, how, u[i]);
    }
    return m->drawn;
}

// ----------------------------------------------------------------------------
// The optimizer

enum { SHARE = 4096 };              // parameters that a thread takes at a time
enum { FETCH = 128, AHEAD = 512 };  // parameters that are fetched from memory at a time, and how early

// AdamW (Loshchilov & Hutter 2019): m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, with bias correction
// w -= lr (mhat / (sqrt(vhat) + eps) + weight_decay w), the decay on matrices and embeddings only.
// For the n parameters from `at` on, whose gradient is g. Sums g^2 too, which spares another pass over the gradient.
// Memory bounds it: w, m and v are asked for early (past an array's end this does nothing).
static void adamw(GPT2 *m, Update *u, size_t at, size_t n, int decays, const real *restrict g) {
    AdamW o = u->o;
    real b1 = (real)o.beta1, b2 = (real)o.beta2, gs = (real)u->grad_scale, eps = (real)o.eps;
    real a1 = (real)(1 - o.beta1), a2 = (real)(1 - o.beta2); // before rounding: 1 - 0.999f is off by 1e-5
    real lr = (real)(o.lr / (1 - pow(o.beta1, u->step))), vs = (real)(1 / (1 - pow(o.beta2, u->step)));
    real decay = decays ? (real)(o.lr * o.weight_decay) : 0;
    real *restrict w = m->params + at, *restrict mm = m->m + at, *restrict vv = m->v + at;
    double *part = (double *)(void *)room(ROOM_SUMS, (n / SHARE + 1) * sizeof *part / sizeof(real));
    stage(STAGE_ADAMW);
    profile.bytes[STAGE_ADAMW] += 7.0 * (double)n * sizeof(real); // reads four arrays, writes three
    PARALLEL_FOR
    for (size_t i0 = 0; i0 < n; i0 += SHARE) {
        size_t i1 = i0 + SHARE < n ? i0 + SHARE : n;
        double sum = 0;
        for (size_t from = i0, to; from < i1; from = to) {
            to = from + FETCH < i1 ? from + FETCH : i1;
            for (size_t i = from + AHEAD; i < from + AHEAD + FETCH; i += LINE) {
                __builtin_prefetch(w + i, 1);
                __builtin_prefetch(mm + i, 1);
                __builtin_prefetch(vv + i, 1);
            }
            SIMD_SUM(sum)
            for (size_t i = from; i < to; i++) {
                real gi = gs * g[i];
                mm[i] = b1 * mm[i] + a1 * gi;
                vv[i] = b2 * vv[i] + a2 * gi * gi;
                w[i] -= lr * mm[i] / (sqrt_real(vv[i] * vs) + eps) + decay * w[i];
                sum += (double)g[i] * (double)g[i];
            }
        }
        part[i0 / SHARE] = sum;
    }
    for (size_t i = 0; i < (n + SHARE - 1) / SHARE; i++) u->square += part[i]; // in order, whatever the threads
}

void gpt2_grad_sum(GPT2 *m) { world_sum(gradient(m), m->n_params, sizeof(real)); }

double gpt2_grad_norm(GPT2 *m) {
    const real *g = gradient(m);
    size_t spans = (m->n_params + SHARE - 1) / SHARE;
    double *part = (double *)(void *)room(ROOM_SUMS, spans * sizeof *part / sizeof(real));
    stage(STAGE_NORM);
    profile.bytes[STAGE_NORM] += (double)m->n_params * sizeof(real);
    PARALLEL_FOR
    for (size_t s = 0; s < spans; s++) {
        size_t end = (s + 1) * SHARE < m->n_params ? (s + 1) * SHARE : m->n_params;
        double sum = 0;
        SIMD_SUM(sum)
        for (size_t i = s * SHARE; i < end; i++) sum += (double)g[i] * (double)g[i];
        part[s] = sum;
    }
    double total = 0;
    for (size_t s = 0; s < spans; s++) total += part[s]; // in order, whatever the threads
    return sqrt(total);
}

static double update(GPT2 *m, AdamW o, double grad_scale, int step) {
    Update u = {o, grad_scale, step, 0};
    Tensor t[N_TENSORS];
    const real *g = gradient(m);
    gpt2_tensors(m->c, t);
    for (int i = 0; i < N_TENSORS; i++) adamw(m, &u, t[i].at, t[i].size, t[i].decay, g + t[i].at);
    return sqrt(u.square);
}

void gpt2_update(GPT2 *m, AdamW o, double grad_scale, int step) { update(m, o, grad_scale, step); }

void gpt2_step(GPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n) {
    Update u = {s->adam, 1, s->step, 0};
    micro_step(m, t, s, d, queries, n);
    backward(m, &s->b, s->coef, step_at_once(t, s->queries) ? &u : NULL);
    m->norm = sqrt(u.square);
}

Loss gpt2_step_end(GPT2 *m, const Train *t, StepRoom *s, double *grad_norm) {
    int clips = t->grad_clip > 0; // which needs the norm first
    *grad_norm = clips ? gpt2_grad_norm(m) : step_at_once(t, s->queries) ? m->norm : update(m, s->adam, 1, s->step);
    check_norm(s->step, *grad_norm, s->sum.loss);
    if (clips) update(m, s->adam, clip_scale(*grad_norm, t->grad_clip), s->step);
    return s->sum;
}

// ----------------------------------------------------------------------------
// Fast matrix products: gemm, behind the seam

// The packed product. A register tile of C, MR rows by NR columns, is summed over KC terms. B is first copied
// ("packed") in panels of NR columns, so that the inner loop reads it from one end to the other; A is read in strips of
// MR rows, and packed too where the terms of a row lie apart. NR is a few vector registers wide: NV. Reuse: a panel
// (KC,NR) stays in the first-level cache (AVX-512's, 196 KB, in the second) while TILE_M rows of strips pass by; those
// strips stay in the second while the panels of TILE_N columns pass by. Each thread packs its own panels just before it
// needs them; packed strips, at most MC rows, are shared. (The forward's product, gemm_forward, packs tokens alone, KT
// terms at a time.)
enum { MR = 6, WIDEST = 4, NV = VECTOR == 64 ? WIDEST : 2 }; // AVX-512 has 32 registers, the others 16
enum { NR = NV * VL, KC = VECTOR == 64 ? 768 : 384, KT = 768 };
enum { TILE_M = 16 * MR, TILE_N = 64, MC = 10 * TILE_M };
_Static_assert(MC % NR == 0, "MC rows are whole panels of tokens");
#if defined(__clang__) && VECTOR == 64
#define WHOLE_VECTORS min_vector_width(8 * VECTOR) // else clang halves them, and they are too many for the registers
#else
#define WHOLE_VECTORS
#endif

// One register tile of nv vectors' width:  c[i cm + j cn] (+)= sum_k strip[i sm + k sk] panel[k NR + j]
// for i < rows <= MR, j < cols <= nv VL. panel (K,NR). ahead: 0, or how far ahead of strip's numbers lie those that are
// needed next, and are to be fetched (past the end of an array this does nothing).
static inline __attribute__((always_inline, WHOLE_VECTORS)) void gemm_tile_of(
        const int nv, int K, const real *restrict strip, size_t sm, size_t sk, const real *restrict panel,
        real *restrict c, size_t cm, size_t cn, int rows, int cols, int add, size_t ahead) {
    const real *line[MR];
    vec sum[MR][WIDEST];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < nv; j++) sum[i][j] = (vec){0}; // a memset would keep them in memory
    for (int i = 0; i < MR; i++) line[i] = strip + (size_t)min_int(i, rows - 1) * sm; // no row: the last, unused
    for (int i = 0; i < rows && cn == 1; i++) __builtin_prefetch(c + i * cm, 1); // there by the time it is added to
    for (int k0 = 0, some = ahead ? LINE : K; k0 < K; k0 += some) {
        for (int i = 0; i < MR && ahead; i++) __builtin_prefetch(line[i] + k0 * sk + ahead, 0, 2);
        for (int k = k0; k < min_int(k0 + some, K); k++, panel += NR) {
            vec b[WIDEST];
            for (int j = 0; j < nv; j++) b[j] = ((const vec *)panel)[j];
            for (int i = 0; i < MR; i++)
                for (int j = 0; j < nv; j++) sum[i][j] += line[i][k * sk] * b[j];
        }
    }
    if (cn == 1 && rows == MR && cols == nv * VL) {
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < nv; j++) {
                vec *to = (vec *)(c + i * cm) + j;
                if (add) sum[i][j] += *to;
                *to = sum[i][j];
            }
    } else {
        const real *s = (const real *)sum;
        for (int j = 0; j < cols; j++)
            for (int i = 0; i < rows; i++) c[i * cm + j * cn] = (add ? c[i * cm + j * cn] : 0) + s[i * WIDEST * VL + j];
    }
}

// The same, no wider than cols need: nv is known to the compiler in each case.
static inline __attribute__((always_inline)) void gemm_tile(int K, const real *strip, size_t sm, size_t sk,
                                                            const real *panel, real *c, size_t cm, size_t cn, int rows,
                                                            int cols, int add, size_t ahead) {
    switch ((cols + VL - 1) / VL) {
    case 1: gemm_tile_of(1, K, strip, sm, sk, panel, c, cm, cn, rows, cols, add, ahead); break;
    case 2: gemm_tile_of(2, K, strip, sm, sk, panel, c, cm, cn, rows, cols, add, ahead); break;
    case 3: gemm_tile_of(3, K, strip, sm, sk, panel, c, cm, cn, rows, cols, add, ahead); break;
    default: gemm_tile_of(4, K, strip, sm, sk, panel, c, cm, cn, rows, cols, add, ahead);
    }
}

// Copies `lines` lines (stride `line`) of K terms (stride `term`) into panels (K, width), the last zero-padded.
static inline __attribute__((always_inline)) void gemm_pack(real *restrict dst, const real *restrict src, size_t line,
                                                            size_t term, int lines, const int width, int K) {
    int whole = lines / width * width;
    if (line == 1)
        for (int k = 0; k < K; k++)
            for (int p = 0; p < whole; p += width)
                memcpy(dst + (size_t)p * K + k * width, src + k * term + p, width * sizeof *dst);
    else
        for (int p = 0; p < whole; p += width)
            for (int k = 0; k < K; k++)
                for (int i = 0; i < width; i++) dst[(size_t)p * K + k * width + i] = src[(p + i) * line + k * term];
    for (int k = 0; k < K && whole < lines; k++)
        for (int i = 0; i < width; i++)
            dst[(size_t)whole * K + k * width + i] = whole + i < lines ? src[(whole + i) * line + k * term] : 0;
}

// c (M,N) (+)= strips times packed panels. Strip i's numbers are a[i si + row sm + k sk].
static void gemm_block(int M, int N, int K, const real *a, size_t si, size_t sm, size_t sk, const real *pb, real *c,
                       size_t ldc, int add) {
    for (int i0 = 0; i0 < M; i0 += TILE_M)
        for (int j = 0; j < N; j += NR)
            for (int i = i0; i < min_int(i0 + TILE_M, M); i += MR)
                gemm_tile(K, a + i * si, sm, sk, pb + (size_t)j * K, c + (size_t)i * ldc + j, ldc, 1,
                          min_int(MR, M - i), min_int(NR, N - j), add, 0);
}

// gemm by packed tiles. Rows of a whose terms follow one another are read as they lie; others are packed first, into
// all: the strips of rows m0 .. m0+mc-1, one (full,kc) array for each KC terms. A task is TILE_N columns (t) of some of
// those rows (part). The first KC terms overwrite c or not, as beta says; the others add.
static void gemm_packed(int M, int N, int K, const real *a, size_t am, size_t ak, const real *b, size_t bk, size_t bn,
                        real beta, real *c, size_t ldc) {
    int tiles = (N + TILE_N - 1) / TILE_N, pack_K = ak == 1 ? 0 : K;
    real *all = room(ROOM_A, (size_t)min_int(MC, (M + MR - 1) / MR * MR) * (size_t)pack_K);
    for (int m0 = 0; m0 < M; m0 += MC) {
        int mc = min_int(MC, M - m0), full = (mc + MR - 1) / MR * MR, blocks = (mc + TILE_M - 1) / TILE_M;
        int parts = min_int(blocks, (2 * thread_count() + tiles - 1) / tiles); // few tiles: share the rows out as well
        PARALLEL_FOR2
        for (int k0 = 0; k0 < pack_K; k0 += KC)
            for (int i = 0; i < mc; i += TILE_M) {
                int kc = min_int(KC, K - k0);
                gemm_pack(all + (size_t)full * k0 + (size_t)i * kc, a + (size_t)(m0 + i) * am + k0 * ak, am, ak,
                          min_int(TILE_M, mc - i), MR, kc);
            }
        PARALLEL_TILES
        for (int t = 0; t < tiles; t++)
            for (int part = 0; part < parts; part++) {
                real pb[TILE_N * KC] __attribute__((aligned(VECTOR)));
                int n0 = t * TILE_N, nc = min_int(TILE_N, N - n0);
                int i0 = blocks * part / parts * TILE_M, i1 = min_int(blocks * (part + 1) / parts * TILE_M, mc);
                for (int k0 = 0; k0 < K; k0 += KC) {
                    int kc = min_int(KC, K - k0), add = beta != 0 || k0 > 0;
                    real *to = c + (size_t)(m0 + i0) * ldc + n0;
                    gemm_pack(pb, b + k0 * bk + (size_t)n0 * bn, bn, bk, nc, NR, kc);
                    if (pack_K)
                        gemm_block(i1 - i0, nc, kc, all + (size_t)full * k0 + (size_t)i0 * kc, kc, 1, MR, pb, to, ldc,
                                   add);
                    else gemm_block(i1 - i0, nc, kc, a + (size_t)(m0 + i0) * am + k0, am, am, 1, pb, to, ldc, add);
                }
            }
    }
}

// The forward's product, c (M,N) = beta c + a (M,K) b^T with tokens a and weights b (N,K). There are many weights, and
// few tokens to use each (64 in a beam search), so packing b would cost as much as its use: MR rows of it are read as
// they lie, in the place of a strip, against panels of tokens. They come from memory for a task's first panel: while MR
// rows are multiplied, the next are fetched. A task is TILE_M weights (t) and some panels (part).
static void gemm_forward(int M, int N, int K, const real *a, size_t lda, const real *b, size_t ldb, real beta, real *c,
                         size_t ldc) {
    int tiles = (N + TILE_M - 1) / TILE_M;
    real *all = room(ROOM_A, (size_t)min_int(MC, (M + NR - 1) / NR * NR) * (size_t)min_int(K, KT));
    for (int m0 = 0; m0 < M; m0 += MC)
        for (int k0 = 0; k0 < K; k0 += KT) {
            int mc = min_int(MC, M - m0), kt = min_int(KT, K - k0), panels = (mc + NR - 1) / NR;
            int parts = min_int(panels, (8 * thread_count() + tiles - 1) / tiles); // few tiles: share the panels, too
            PARALLEL_FOR
            for (int p = 0; p < panels; p++)
                gemm_pack(all + (size_t)p * NR * kt, a + (size_t)(m0 + p * NR) * lda + k0, lda, 1,
                          min_int(NR, mc - p * NR), NR, kt);
            PARALLEL_TILES
            for (int t = 0; t < tiles; t++)
                for (int part = 0; part < parts; part++)
                    for (int first = panels * part / parts, p = first; p < panels * (part + 1) / parts; p++)
                        for (int n = t * TILE_M; n < min_int((t + 1) * TILE_M, N); n += MR)
                            gemm_tile(kt, b + n * ldb + k0, ldb, 1, all + (size_t)p * NR * kt,
                                      c + (size_t)(m0 + p * NR) * ldc + n, 1, ldc, min_int(MR, N - n),
                                      min_int(NR, mc - p * NR), beta != 0 || k0 > 0, p == first ? MR * ldb : 0);
        }
}

static void gemm_small(int M, int N, int K, const real *a, size_t am, size_t ak, const real *b, size_t bk, size_t bn,
                       real beta, real *c, size_t ldc) {
    real pb[TILE_N * KC] __attribute__((aligned(VECTOR)));
    for (int k0 = 0; k0 < K; k0 += KC)
        for (int n0 = 0; n0 < N; n0 += TILE_N) {
            int kc = min_int(KC, K - k0), nc = min_int(TILE_N, N - n0);
            gemm_pack(pb, b + k0 * bk + (size_t)n0 * bn, bn, bk, nc, NR, kc);
            gemm_block(M, nc, kc, a + k0 * ak, am, am, ak, pb, c + n0, ldc, beta != 0 || k0 > 0);
        }
}

#ifdef USE_ONEDNN
static int onednn_bf16; // the CPU multiplies bfloat16 itself; if not, rounded operands go through oneDNN as float32

static void onednn_check(dnnl_status_t status, const char *what) {
    if (status != dnnl_success) die("--dtype bf16: oneDNN cannot %s (status %d); use --dtype fp32", what, (int)status);
}

// To the nearest bfloat16, ties to even; a NaN stays one. The result's lower half is zero.
static inline uint32_t bf16_round(float x) {
    union { float f; uint32_t i; } u;
    u.f = x;
    uint32_t nearest = u.i + 0x7fff + (u.i >> 16 & 1), nan = u.i | 0x400000;
    return ((u.i & 0x7fffffff) > 0x7f800000 ? nan : nearest) & 0xffff0000;
}

// Rounds src (rows, cols) into to, without gaps: as bfloat16, or as float32 with the same values.
static void *onednn_operand(int which, const real *src, int rows, int cols, size_t lead) {
    real *to = room(which, (size_t)rows * (size_t)cols);
    PARALLEL_FOR
    for (int r = 0; r < rows; r++) {
        const real *from = src + (size_t)r * lead;
        size_t at = (size_t)r * (size_t)cols;
        uint16_t *half = (uint16_t *)(void *)to + at;
        uint32_t *bits = (uint32_t *)(void *)to + at;
        if (onednn_bf16) for (int i = 0; i < cols; i++) half[i] = (uint16_t)(bf16_round((float)from[i]) >> 16);
        else for (int i = 0; i < cols; i++) bits[i] = bf16_round((float)from[i]);
    }
    return to;
}

// oneDNN keeps the code it makes for each shape by itself, so nothing is cached here.
static void gemm_onednn(int transa, int transb, int M, int N, int K, const real *a, size_t lda, const real *b,
                        size_t ldb, real beta, real *c, size_t ldc) {
    static dnnl_engine_t engine;
    static dnnl_stream_t stream;
    if (!engine) {
        onednn_check(dnnl_engine_create(&engine, dnnl_cpu, 0), "start");
        onednn_check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "start");
    }
    void *data[3] = {onednn_operand(ROOM_A, a, transa ? K : M, transa ? M : K, lda),
                     onednn_operand(ROOM_B, b, transb ? N : K, transb ? K : N, ldb), c};
    dnnl_data_type_t type = onednn_bf16 ? dnnl_bf16 : dnnl_f32, types[3] = {type, type, dnnl_f32};
    dnnl_dims_t dims[3] = {{M, K}, {K, N}, {M, N}};
    dnnl_dims_t strides[3] = {{transa ? 1 : K, transa ? M : 1}, {transb ? 1 : N, transb ? K : 1}, {(dnnl_dim_t)ldc, 1}};
    static const int names[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t ops;
    dnnl_primitive_desc_t made;
    dnnl_primitive_t product;
    dnnl_exec_arg_t arg[3];
    onednn_check(dnnl_primitive_attr_create(&attr), "prepare a product");
    onednn_check(dnnl_post_ops_create(&ops), "prepare a product");
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_t desc[3];
    for (int i = 0; i < 3; i++)
        onednn_check(dnnl_memory_desc_create_with_strides(&desc[i], 2, dims[i], types[i], strides[i]),
                     "describe a matrix");
    if (beta != 0) onednn_check(dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef), "add to a matrix");
    onednn_check(dnnl_primitive_attr_set_post_ops(attr, ops), "add to a matrix");
    onednn_check(dnnl_matmul_primitive_desc_create(&made, engine, desc[0], desc[1], NULL, desc[2], attr),
                 "multiply these matrices");
#else
    dnnl_memory_desc_t made_of[3], *desc[3];
    dnnl_matmul_desc_t matmul;
    for (int i = 0; i < 3; i++) {
        onednn_check(dnnl_memory_desc_init_by_strides(&made_of[i], 2, dims[i], types[i], strides[i]),
                     "describe a matrix");
        desc[i] = &made_of[i];
    }
    if (beta != 0) onednn_check(dnnl_post_ops_append_sum(ops, 1), "add to a matrix");
    onednn_check(dnnl_primitive_attr_set_post_ops(attr, ops), "add to a matrix");
    onednn_check(dnnl_matmul_desc_init(&matmul, desc[0], desc[1], NULL, desc[2]), "multiply these matrices");
    onednn_check(dnnl_primitive_desc_create(&made, &matmul, attr, engine, NULL), "multiply these matrices");
#endif
    onednn_check(dnnl_primitive_create(&product, made), "make code for a product");
    for (int i = 0; i < 3; i++) {
        arg[i].arg = names[i];
        onednn_check(dnnl_memory_create(&arg[i].memory, desc[i], engine, data[i]), "take a matrix");
    }
    onednn_check(dnnl_primitive_execute(product, stream, 3, arg), "multiply");
    onednn_check(dnnl_stream_wait(stream), "multiply");
    for (int i = 0; i < 3; i++) dnnl_memory_destroy(arg[i].memory);
#if DNNL_VERSION_MAJOR >= 3
    for (int i = 0; i < 3; i++) dnnl_memory_desc_destroy(desc[i]);
#endif
    dnnl_primitive_destroy(product);
    dnnl_primitive_desc_destroy(made);
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
}
#endif

#ifdef USE_CBLAS
static void gemm_blas(int transa, int transb, int M, int N, int K, const real *a, size_t lda, const real *b,
                      size_t ldb, real beta, real *c, size_t ldc) {
    enum CBLAS_TRANSPOSE ta = transa ? CblasTrans : CblasNoTrans, tb = transb ? CblasTrans : CblasNoTrans;
    if (sizeof(real) == 4)
        cblas_sgemm(CblasRowMajor, ta, tb, M, N, K, 1.0f, (const float *)a, (int)lda, (const float *)b, (int)ldb,
                    (float)beta, (float *)c, (int)ldc);
    else
        cblas_dgemm(CblasRowMajor, ta, tb, M, N, K, 1.0, (const double *)a, (int)lda, (const double *)b, (int)ldb,
                    (double)beta, (double *)c, (int)ldc);
}

// Each of our threads gives OpenBLAS a share of C. Built with threads of its own, as Debian's default is, it is told to
// use one (backend_start): else those and OpenMP's would wait for work on the same cores, and a step would take twice
// as long. Other libraries are left to share the work out themselves.
static void gemm_cblas(int transa, int transb, int M, int N, int K, const real *a, size_t lda, const real *b,
                       size_t ldb, real beta, real *c, size_t ldc) {
#ifdef OPENBLAS_VERSION
    enum { GRAIN = 16 }; // columns or rows
    int columns = N > M, all = ((columns ? N : M) + GRAIN - 1) / GRAIN, parts = min_int(thread_count(), all);
    PARALLEL_FOR
    for (int p = 0; p < parts; p++) {
        int from = all * p / parts * GRAIN, to = min_int(all * (p + 1) / parts * GRAIN, columns ? N : M);
        const real *pa = columns ? a : a + (size_t)from * (transa ? 1 : lda);
        const real *pb = columns ? b + (size_t)from * (transb ? ldb : 1) : b;
        real *pc = c + (size_t)from * (columns ? 1 : ldc);
        gemm_blas(transa, transb, columns ? M : to - from, columns ? to - from : N, K, pa, lda, pb, ldb, beta, pc, ldc);
    }
#else
    gemm_blas(transa, transb, M, N, K, a, lda, b, ldb, beta, c, ldc);
#endif
}
#endif

static void gemm(int transa, int transb, int M, int N, int K, const real *a, size_t lda, const real *b, size_t ldb,
                 real beta, real *c, size_t ldc) {
    size_t am = transa ? 1 : lda, ak = transa ? lda : 1, bk = transb ? 1 : ldb, bn = transb ? ldb : 1;
    profile.flop[profile.at] += 2.0 * M * N * K;
    if (gemm_kind == GEMM_NAIVE) gemm_naive(M, N, K, a, am, ak, b, bk, bn, beta, c, ldc);
    else if (gemm_kind == GEMM_PACKED && !transa && transb) gemm_forward(M, N, K, a, lda, b, ldb, beta, c, ldc);
    else if (gemm_kind == GEMM_PACKED) gemm_packed(M, N, K, a, am, ak, b, bk, bn, beta, c, ldc);
#ifdef USE_ONEDNN
    else if (gemm_kind == GEMM_ONEDNN) gemm_onednn(transa, transb, M, N, K, a, lda, b, ldb, beta, c, ldc);
#endif
#ifdef USE_CBLAS
    else gemm_cblas(transa, transb, M, N, K, a, lda, b, ldb, beta, c, ldc);
#endif
}

// ----------------------------------------------------------------------------
// The machine

const char *backend_start(int threads) {
    static char line[128];
    threads_set(threads);
    int n = thread_count();
#if defined(_OPENMP) && defined(USE_CBLAS) && defined(OPENBLAS_VERSION)
    if (openblas_get_parallel() == OPENBLAS_THREAD) openblas_set_num_threads(1); // see gemm_cblas
#endif
    const char *products = gemm_kind == GEMM_CBLAS ? "CBLAS" : gemm_kind == GEMM_PACKED ? "built in"
                         : "rounded to bfloat16, by oneDNN, summed in float32";
    snprintf(line, sizeof line, "CPU, %d thread%s, %s, matrix products: %s", n, n == 1 ? "" : "s",
             sizeof(real) == 4 ? "float32" : "float64", products);
    return line;
}

// --dtype. Weights, sums, softmax, norms and the optimizer are float32 all the same.
void backend_dtype_set(const char *dtype) {
    if (!strcmp(dtype, "fp32") || gemm_kind == GEMM_ONEDNN) return; // the demo says it with each verb
#ifdef USE_ONEDNN
    onednn_bf16 = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
    if (!onednn_bf16) fprintf(stderr, "note: --dtype bf16: this CPU has neither AMX nor AVX512-BF16; "
                                      "the same rounding, but float32 products: slower than --dtype fp32\n");
    gemm_kind = GEMM_ONEDNN;
#else
    die_usage("--dtype bf16: this build has no oneDNN; install it (Debian: libdnnl-dev) and make again, "
              "or make train_rrhfcu for a GPU");
#endif
}

// steps 0: begin; else the table, a line per stage.
void backend_profile(int steps) {
#define X(stage, name) name,
    static const char *const names[] = {STAGES(X)};
#undef X
    double total = 0, flop = 0;
    stage(STAGE_OTHER);
    for (int i = 0; i < N_STAGES; i++) total += profile.seconds[i], flop += profile.flop[i];
    if (steps) fprintf(stderr, "%-34s %10s  %6s  %s\n", "profile", "ms/step", "share", "rate");
    for (int i = 0; i < N_STAGES && steps; i++) {
        double s = profile.seconds[i] ? profile.seconds[i] : 1e-9;
        fprintf(stderr, "  %-32s %10.2f  %5.1f%%", names[i], 1e3 * s / steps, 100 * s / total);
        if (profile.flop[i] > 0) fprintf(stderr, "  %.1f GFLOP/s", 1e-9 * profile.flop[i] / s);
        if (profile.bytes[i] > 0) fprintf(stderr, "  %.1f GB/s", 1e-9 * profile.bytes[i] / s);
        fprintf(stderr, "\n");
    }
    if (steps) fprintf(stderr, "  %-32s %10.2f  100.0%%  %.1f GFLOP/s in products, over everything\n", "all",
                       1e3 * total / steps, 1e-9 * flop / total);
    memset(&profile, 0, sizeof profile);
    profile.on = !steps;
    profile.since = now_s();
}

const char *backend_dtype(void) { return gemm_kind == GEMM_ONEDNN ? "bf16" : "fp32"; }

#ifndef NO_MAIN // the tests include this file
int main(int argc, char **argv) { return run_verb(argc, argv); }
#endif
