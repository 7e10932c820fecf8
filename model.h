/*
model.h: GPT-2 as data. Its sizes, its table of parameters, its checkpoint file, and the backend contract
that train_rrhf.c (CPU) and train_rrhf.cu (CUDA) both fill. Knows no RRHF.

Checkpoint, little-endian, the llm.c format: int32[256] header, then the parameters of GPT2_PARAMS in order.
  [0]=20240326  [1]=3 (float32) or 5 (bfloat16)  [2]=T  [3]=V  [4]=L  [5]=NH  [6]=C  [7]=Vp >= V
  [8]=1: a reward model, with rewardw (C) and rewardb (1) at the end   [9]=1: its reward is sigmoid(head)

Dimensions, the same letters everywhere:
  Q queries   N tokens of a batch   T longest sequence   V vocabulary (Vp: padded)   L layers
  C channels  NH heads   hs = C/NH head size   U predicting rows   P predictions   R responses
*/
#ifndef MODEL_H
#define MODEL_H

#include "util.h"        // defines: die, In, Out, xalloc, Rng
#include "dataloader.h"  // defines: Batch

#ifndef REAL
#define REAL float       // -DREAL=double compiles the CPU path for exact gradient checks
#endif
typedef REAL real;

// ----------------------------------------------------------------------------
// Sizes and parameters

typedef struct {
    int T, V, Vp, L, NH, C;
    int reward;          // 1: has the scalar head
    int logistic;        // 1: the reward is sigmoid(head), a probability
} Config;

// X(name, layers, rows, columns, kind): every tensor, in the order of the file. A tensor with layers = c.L has one
// slice per block. Its kind says how GPT-2 initialises it: MATRIX normal(0, 0.02); RESIDUAL that / sqrt(2L), since it
// adds to the residual stream; ONES 1; ZEROS 0. Weight decay acts on matrices and embeddings only.
// ln1, ln2: the LayerNorms before attention and before the MLP; lnf: the last; attproj: attention's output; fc, fcproj:
// the MLP.
enum { MATRIX, RESIDUAL, ONES, ZEROS };
#define GPT2_PARAMS(X)                                                                            \
    X(wte,      1,   c.Vp,    c.C,     MATRIX)   /* token embedding, and the tied classifier */   \
    X(wpe,      1,   c.T,     c.C,     MATRIX)   /* position embedding */                         \
    X(ln1w,     c.L, 1,       c.C,     ONES)                                                      \
    X(ln1b,     c.L, 1,       c.C,     ZEROS)                                                     \
    X(qkvw,     c.L, 3 * c.C, c.C,     MATRIX)   /* rows: queries, keys, values */                \
    X(qkvb,     c.L, 1,       3 * c.C, ZEROS)                                                     \
    X(attprojw, c.L, c.C,     c.C,     RESIDUAL)                                                  \
    X(attprojb, c.L, 1,       c.C,     ZEROS)                                                     \
    X(ln2w,     c.L, 1,       c.C,     ONES)                                                      \
    X(ln2b,     c.L, 1,       c.C,     ZEROS)                                                     \
    X(fcw,      c.L, 4 * c.C, c.C,     MATRIX)                                                    \
    X(fcb,      c.L, 1,       4 * c.C, ZEROS)                                                     \
    X(fcprojw,  c.L, c.C,     4 * c.C, RESIDUAL)                                                  \
    X(fcprojb,  c.L, 1,       c.C,     ZEROS)                                                     \
    X(lnfw,     1,   1,       c.C,     ONES)                                                      \
    X(lnfb,     1,   1,       c.C,     ZEROS)                                                     \
    X(rewardw,  c.reward, 1,  c.C,     ZEROS)    /* scalar head of a reward model */              \
    X(rewardb,  c.reward, 1,  1,       ZEROS)

#define X(name, layers, rows, cols, kind) real *name;
typedef struct { GPT2_PARAMS(X) } Params; // pointers into one allocation; gradients use the same struct
#undef X

typedef struct { const char *name; size_t at, size; int layers, rows, cols, kind, decay; } Tensor; // at, size: elements

#define X(name, layers, rows, cols, kind) TENSOR_##name,
enum { GPT2_PARAMS(X) N_TENSORS };
#undef X

// Fills the table and returns the number of parameters.
static inline size_t gpt2_tensors(Config c, Tensor t[N_TENSORS]) {
    size_t at = 0;
    int i = 0;
#define X(name_, layers_, rows_, cols_, kind_)                                                   \
    t[i].name = #name_; t[i].layers = layers_; t[i].rows = rows_; t[i].cols = cols_;             \
    t[i].kind = kind_; t[i].decay = kind_ == MATRIX || kind_ == RESIDUAL; t[i].at = at;          \
    t[i].size = (size_t)(layers_) * (size_t)(rows_) * (size_t)(cols_); at += t[i++].size;
    GPT2_PARAMS(X)
#undef X
    return at;
}

static inline size_t gpt2_count(Config c) {
    Tensor t[N_TENSORS];
    return gpt2_tensors(c, t);
}

// Points every tensor into `base`, which holds gpt2_count(c) elements.
static inline Params gpt2_params(Config c, real *base) {
    Params p;
    Tensor t[N_TENSORS];
    int i = 0;
    gpt2_tensors(c, t);
#define X(name, layers, rows, cols, kind) p.name = base + t[i++].at;
    GPT2_PARAMS(X)
#undef X
    return p;
}

// Block l's slices of the tensors that have one for each block. matrices 0: the matrices stay where they are (they all
// share one small room: train_rrhf.c, gradient_room).
static inline Params block_params(Config c, Params p, int l, int matrices) {
#define X(name, layers, rows, cols, kind)                                  \
    if ((layers) > 1 && (matrices || kind == ONES || kind == ZEROS))       \
        p.name += (size_t)l * (size_t)(rows) * (size_t)(cols);
    GPT2_PARAMS(X)
#undef X
    return p;
}

// GPT-2's initialisation.
static inline void gpt2_random(Config c, uint64_t seed, float *params) {
    Tensor t[N_TENSORS];
    gpt2_tensors(c, t);
    for (int i = 0; i < N_TENSORS; i++) {
        Rng r = rng_make(seed, RNG_WEIGHTS, (uint64_t)i);
        float std = t[i].kind == RESIDUAL ? 0.02f / sqrtf(2.0f * (float)c.L) : 0.02f;
        for (size_t j = 0; j < t[i].size; j++)
            params[t[i].at + j] = t[i].kind == ONES ? 1.0f : t[i].kind == ZEROS ? 0.0f : std * (float)rng_normal(&r);
    }
}

// ----------------------------------------------------------------------------
// Checkpoints

enum { CHECKPOINT_MAGIC = 20240326, CHECKPOINT_FP32 = 3, CHECKPOINT_BF16 = 5 };

static inline Config checkpoint_config(const char *path, const int32_t h[256]) {
    Config c = {0};
    c.T = h[2], c.V = h[3], c.L = h[4], c.NH = h[5], c.C = h[6], c.Vp = h[7], c.reward = h[8], c.logistic = h[9];
    if (h[1] != CHECKPOINT_FP32 && h[1] != CHECKPOINT_BF16)
        die("%s: version %d, expected %d (float32) or %d (bfloat16); convert it again", path, h[1], CHECKPOINT_FP32,
            CHECKPOINT_BF16);
    if (c.T < 1 || c.T > 1 << 20 || c.V < 1 || c.V > VOCABULARY_MAX || c.Vp < c.V || c.Vp > 1 << 17 || c.L < 1 ||
        c.L > 1024 || c.C < 1 || c.C > 1 << 16 || c.NH < 1 || c.C % c.NH || (c.reward & ~1) || (c.logistic & ~1))
        die("%s: sizes T %d, V %d, Vp %d, L %d, heads %d, C %d, reward %d are no GPT-2 (heads divide C, V <= Vp, "
            "V <= %d); is the file damaged?", path, c.T, c.V, c.Vp, c.L, c.NH, c.C, h[8], VOCABULARY_MAX);
    return c;
}

// A checkpoint of either precision, open behind its header: n parameters of `bytes` bytes follow.
typedef struct { In in; Config c; size_t n, bytes; } Checkpoint;

static inline Checkpoint checkpoint_open(const char *path) {
    Checkpoint f;
    int32_t h[256];
    f.in = in_open(path);
    in_header(&f.in, h, CHECKPOINT_MAGIC, 0, "checkpoint");
    f.c = checkpoint_config(path, h);
    f.n = gpt2_count(f.c), f.bytes = h[1] == CHECKPOINT_BF16 ? 2 : 4;
    if ((int64_t)(f.n * f.bytes) != in_left(&f.in))
        die("%s: its header announces %zu parameters (%zu bytes), the file has %" PRId64 "; truncated or damaged, "
            "fetch it again", path, f.n, f.n * f.bytes, in_left(&f.in));
    return f;
}

// Its next n parameters as float32.
static inline void checkpoint_part(Checkpoint *f, float *to, size_t n) {
    size_t first = f->n - (size_t)in_left(&f->in) / f->bytes;
    if (f->bytes == 4) in_read(&f->in, to, (int64_t)(n * 4), "the parameters");
    else {
        uint16_t *half = (uint16_t *)xalloc(n, sizeof *half);
        in_read(&f->in, half, (int64_t)(n * 2), "the parameters");
        for (size_t i = 0; i < n; i++) { // bfloat16 is the upper half of a float32
            uint32_t bits = (uint32_t)half[i] << 16;
            memcpy(&to[i], &bits, 4);
        }
        free(half);
    }
    for (size_t i = 0; i < n; i++)
        if (!isfinite(to[i])) die("%s: parameter %zu is %g; the checkpoint is damaged", f->in.path, first + i, to[i]);
}

// All of them (caller frees).
static inline float *checkpoint_read(const char *path, Config *config) {
    Checkpoint f = checkpoint_open(path);
    float *params = (float *)xalloc(f.n, sizeof *params);
    *config = f.c;
    checkpoint_part(&f, params, f.n);
    in_close(&f.in);
    return params;
}

static inline void checkpoint_header(Out *out, Config c) {
    int32_t h[256] = {CHECKPOINT_MAGIC, CHECKPOINT_FP32, c.T, c.V, c.L, c.NH, c.C, c.Vp, c.reward, c.logistic};
    out_write(out, h, sizeof h);
}

static inline void checkpoint_write(const char *path, Config c, const float *params) {
    Out out = out_open(path);
    checkpoint_header(&out, c);
    out_write(&out, params, gpt2_count(c) * sizeof *params);
    out_close(&out);
}

// A new checkpoint's Vp: rows of wte up to a multiple that matrix products like.
static inline int vocabulary_padded(int V) { return (V + 127) / 128 * 128; }

// ----------------------------------------------------------------------------
// The backend contract: what a device must be able to do (rrhf.h adds gpt2_step and gpt2_step_end). All else is shared.

typedef struct GPT2 GPT2;

// One decoding step: n new tokens. The key/value cache is an array of slots, each with one token's keys and values.
// Token i is written to slot[i] and attends to the slots list[at[i]] .. list[at[i]+len[i]-1], its own included. A list
// is a sequence's history: completions of one query name the query's slots in common, and a beam that forks copies the
// list, never the cache.
typedef struct {
    int n, n_rows;
    int *token, *pos, *slot; // (n)
    int *at, *len;           // (n)
    int *list;               // slots
    int *row;                // (n_rows) the tokens whose next-token logits are wanted
} Decode;

typedef struct { float logit; int id; } Candidate; // a token that may come next

// How one token is drawn: from softmax(logit / temperature) of the top_k largest logits (0: of all), cut to the
// smallest set of the most probable that holds top_p (1: all). temperature 0: the most probable. sampler.h says what
// that means to the bit.
typedef struct { double temperature, top_p; int top_k; } Draw;

// GELU's tanh form: x/2 (1 + tanh(GELU_S (x + GELU_A x^3)))
#define GELU_S 0.7978845608028654 // sqrt(2/pi)
#define GELU_A 0.044715
#define LAYERNORM_EPS 1e-5

typedef struct { double lr, beta1, beta2, eps, weight_decay; } AdamW;

enum Copy { COPY_PARAMS, COPY_GRADS, COPY_M, COPY_V }; // what gpt2_get and gpt2_set move (float32, file order)

// params may be NULL: zeros, to be set later. training: also gradients and AdamW's moments
GPT2  *gpt2_build(Config c, const float *params, int training);
void   gpt2_free(GPT2 *m);
Config gpt2_config(const GPT2 *m);
void   gpt2_get_part(GPT2 *m, enum Copy what, size_t at, size_t n, float *host); // elements at .. at+n-1
void   gpt2_set_part(GPT2 *m, enum Copy what, size_t at, size_t n, const float *host);
// Memory that build, plan and training will take. training: 0 none; 1 steps whose gradient may be used up as it comes
// (step_at_once, rrhf.h); 2 any other, where it is kept
size_t gpt2_bytes(Config c, int training, int N, int U);
size_t gpt2_slot_bytes(Config c);                // of the key/value cache, for one token
enum { TOKENS_LEAST = 2048 };
int    gpt2_tokens(const GPT2 *m);               // how many tokens at once suit the machine: TOKENS_LEAST or more
void   gpt2_plan(GPT2 *m, int N, int U);         // room for batches up to N tokens and U rows that are read
void   gpt2_unplan(GPT2 *m);                     // gives it back, until the next plan or batch
// Policy: out (P) = log P(target). Reward model: out (R) = the head at each response's last token.
void   gpt2_forward(GPT2 *m, const Batch *b, real *out);
// c (R): dL/dlogP of every token of response i, or dL/dreward. Adds to the gradients; call after gpt2_forward(b).
// gpt2_backward, _grad_norm and _update do one by one, for the tests, what gpt2_step and gpt2_step_end (rrhf.h) do
// together.
void   gpt2_backward(GPT2 *m, const Batch *b, const real *c);
void   gpt2_zero_grad(GPT2 *m);
void   gpt2_grad_sum(GPT2 *m);                   // adds up the gradients of all processes (world.h)
double gpt2_grad_norm(GPT2 *m);                  // L2 norm of the whole gradient
void   gpt2_update(GPT2 *m, AdamW o, double grad_scale, int step); // grad_scale: clipping's; step counts from 1
void   gpt2_decode_plan(GPT2 *m, int n, int n_rows, int slots);
// What a decode hands back is owned by the model and valid until the next one. A device selects: it hands back k
// numbers of a row, or a token, not V logits.
// The k <= V largest logits of each row, (n_rows, k) in the order of their ids, of equal ones the lower ids; lse, where
// not NULL, (n_rows): the row's log sum exp.
const Candidate *gpt2_decode_top(GPT2 *m, const Decode *d, int k, const double **lse);
// A token for each of n sequences, (n), at most the rows planned: sequence i draws from row row[i], with u[i] in [0,1);
// -1 where none of that row's logits is a number.
const int *gpt2_decode_draw(GPT2 *m, const Decode *d, Draw how, int n, const int *row, const double *u);
const char *backend_start(int threads);          // 0 = all; returns a line for the banner
void   backend_profile(int steps);               // --profile 1: 0 = begin; else print where so many steps' time went
void   backend_dtype_set(const char *dtype);     // --dtype: "fp32" or "bf16"; before backend_start
const char *backend_dtype(void);                 // what is computed in: "fp32" or "bf16"

static inline void gpt2_get(GPT2 *m, enum Copy what, float *host) {
    gpt2_get_part(m, what, 0, gpt2_count(gpt2_config(m)), host);
}
static inline void gpt2_set(GPT2 *m, enum Copy what, const float *host) {
    gpt2_set_part(m, what, 0, gpt2_count(gpt2_config(m)), host);
}

// Between a model and a file, a part at a time: a second copy of a large model may be more than the machine holds.
enum { GPT2_PART = 1 << 16 };
static inline size_t gpt2_part(size_t at, size_t n) { return n - at < (size_t)GPT2_PART ? n - at : (size_t)GPT2_PART; }

// The model, and its file closed. c may have parameters beyond the file's (a scalar head): zeros.
static inline GPT2 *checkpoint_model(Checkpoint *f, Config c, int training) {
    GPT2 *m = gpt2_build(c, NULL, training);
    float *part = (float *)xalloc(GPT2_PART, sizeof *part);
    for (size_t at = 0, n; at < f->n; at += n) {
        n = gpt2_part(at, f->n);
        checkpoint_part(f, part, n);
        gpt2_set_part(m, COPY_PARAMS, at, n, part);
    }
    in_close(&f->in);
    free(part);
    return m;
}

#define ON_NAN "no file was overwritten: go back to the last checkpoint with a smaller --lr or with --grad-clip 1"

// Appends parameters or moments to a file. Dies before the file gets its name if a parameter is not finite.
static inline void gpt2_write(GPT2 *m, enum Copy what, Out *out) {
    float *part = (float *)xalloc(GPT2_PART, sizeof *part);
    size_t total = gpt2_count(gpt2_config(m));
    for (size_t at = 0, n; at < total; at += n) {
        n = gpt2_part(at, total);
        gpt2_get_part(m, what, at, n, part);
        for (size_t i = 0; what == COPY_PARAMS && i < n; i++)
            if (!isfinite(part[i]))
                die("NaN: %s: parameter %zu is %g; " ON_NAN, out->path, at + i, part[i]);
        out_write(out, part, n * sizeof *part);
    }
    free(part);
}

static inline void gpt2_save(GPT2 *m, const char *path) {
    Out out = out_open(path);
    checkpoint_header(&out, gpt2_config(m));
    gpt2_write(m, COPY_PARAMS, &out);
    out_close(&out);
}

#endif
