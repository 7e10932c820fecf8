/*
cpu_layers.h: the functions of train_rrhf.c, in a table, so that a test can hold them next to those of train_rrhf.cu,
which have the same names. cpu_layers.c compiles train_rrhf.c with its contract renamed and fills the table.
*/
#ifndef CPU_LAYERS_H
#define CPU_LAYERS_H

#include "../model.h"    // defines: Config, Batch, Decode, AdamW, Copy
#include "../rrhf.h"     // defines: Train, StepRoom, Loss
#include "../sampler.h"  // defines: Sampling, Beaming

typedef struct CpuGPT2 CpuGPT2;

typedef struct {
    void (*embedding_forward)(float *out, const int *token, const int *pos, const float *wte, const float *wpe,
                              int N, int C);
    void (*embedding_backward)(float *dwte, float *dwpe, const float *dout, const int *token, const int *pos,
                               int N, int C);
    void (*layernorm_forward)(float *out, float *mean, float *rstd, const float *x, const float *w, const float *b,
                              int N, int C);
    void (*layernorm_backward)(float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                               const float *mean, const float *rstd, int N, int C);
    void (*matmul_forward)(float *out, const float *x, const float *w, const float *bias, const float *residual,
                           int N, int C, int OC);
    void (*matmul_backward)(float *dx, float *dw, float *dbias, const float *dout, const float *x, const float *w,
                            int N, int C, int OC);
    void (*attention_forward)(float *out, float *lse, const float *qkv, const Batch *b, int C, int NH);
    void (*attention_backward)(float *dqkv, float *out, const float *dout, const float *lse, const float *qkv,
                               const Batch *b, int C, int NH);
    void (*cache_write)(float *cache, int slots, const float *qkv, const Decode *d, int C, int NH);
    void (*attention_decode)(float *out, const float *qkv, const float *cache, int slots, const Decode *d,
                             int C, int NH);
    void (*gelu_forward)(float *out, const float *x, int N, int C);
    void (*gelu_backward)(float *d, float *x, int N, int C);
    void (*classifier_forward)(float *logp, float *logits, float *lse, const float *x, const float *wte,
                               const Batch *b, int C, int V, int Vp);
    void (*classifier_backward)(float *dx, float *dwte, float *logits, const float *lse, const float *c, const float *x,
                                const float *wte, const Batch *b, int C, int V, int Vp);
    void (*head_forward)(float *out, const float *x, const float *w, const float *b, int R, int C);
    void (*head_backward)(float *dx, float *dw, float *db, const float *c, const float *x, const float *w,
                          int R, int C);
    void (*gather_forward)(float *out, const float *x, const int *row, int U, int C);
    void (*gather_backward)(float *dx, const float *dout, const int *row, int U, int N, int C);
    CpuGPT2 *(*build)(Config c, const float *params, int training);
    void (*free)(CpuGPT2 *m);
    void (*get)(CpuGPT2 *m, enum Copy what, float *host);
    void (*set)(CpuGPT2 *m, enum Copy what, const float *host);
    void (*forward)(CpuGPT2 *m, const Batch *b, real *out);
    void (*backward)(CpuGPT2 *m, const Batch *b, const real *c);
    void (*zero_grad)(CpuGPT2 *m);
    double (*grad_norm)(CpuGPT2 *m);
    void (*update)(CpuGPT2 *m, AdamW o, double grad_scale, int step);
    void (*decode_plan)(CpuGPT2 *m, int n, int n_rows, int slots);
    const float *(*decode_logits)(CpuGPT2 *m, const Decode *d);
    StepRoom (*step_room)(CpuGPT2 *m, const Ranked *d, int micro);
    Loss (*train_step)(CpuGPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n, double lr,
                       int step, double *grad_norm, int64_t *tokens);
    Ranked (*sample)(CpuGPT2 *m, const Ranked *d, Sampling s, int keep_own, const char *label);
    Ranked (*beam_search)(CpuGPT2 *m, const Ranked *d, Beaming b, int keep_own, const char *label);
} CpuLayers;

#ifdef __cplusplus
extern "C"
#else
extern
#endif
const CpuLayers cpu;

#endif
