/*
fma_peak.c: the two ceilings of a training step on this machine, measured with all threads:

  fma_peak G GFLOP/s      independent chains of float32 fused multiply-adds, operands in registers
  stream B GB/s           AdamW's traffic: four arrays of 256 MB read, three of them written; bytes read and written

  cc -O3 -march=native -fno-math-errno -fopenmp -o fma_peak dev/bench/fma_peak.c -lm && ./fma_peak [THREADS]

Each figure is the best of many short tries: a ceiling, not a mean. (No -std=c11 here: GNU C then forms no fused
operations from a * b + c.)
*/
#include <math.h>        // defines: sqrtf
#include <omp.h>         // defines: omp_get_wtime
#include <stdio.h>       // defines: printf
#include <stdlib.h>      // defines: atoi, aligned_alloc

#if defined(__AVX512F__)
enum { VECTOR = 64 };
#elif defined(__AVX__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif
typedef float vec __attribute__((vector_size(VECTOR)));
enum { CHAINS = 12, TURNS = 1 << 20, TRIES = 300 }; // 12 chains cover a latency of 4 to 6 cycles on two units
enum { FLOATS = 1 << 26, PASSES = 20, FETCH = 128, AHEAD = 512 };

// The loop over the chains is unrolled, so that all twelve stay in registers.
static float fma_chains(float start) {
    vec sum[CHAINS], scale, add;
    float all = 0;
    for (int j = 0; j < (int)(VECTOR / sizeof(float)); j++) scale[j] = 0.999f, add[j] = start + (float)j;
    for (int i = 0; i < CHAINS; i++) sum[i] = add * (float)i;
    for (int t = 0; t < TURNS; t++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * scale + add;
    for (int i = 0; i < CHAINS; i++) all += sum[i][0];
    return all;
}

int main(int argc, char **argv) {
    if (argc > 1) omp_set_num_threads(atoi(argv[1]));
    int threads = omp_get_max_threads();
    float used = 0;
    double least = 1e9;
    for (int try = 0; try < TRIES; try++) {
        double start = omp_get_wtime();
#pragma omp parallel reduction(+ : used)
        used += fma_chains((float)try);
        double s = omp_get_wtime() - start;
        least = s < least ? s : least;
    }
    printf("fma_peak %.1f GFLOP/s, %d threads, vectors of %d bytes\n",
           2.0 * CHAINS * TURNS * (VECTOR / sizeof(float)) * threads / least * 1e-9, threads, VECTOR);

    float *a[4]; // w, m, v and g
    for (int i = 0; i < 4; i++) {
        a[i] = (float *)aligned_alloc(64, FLOATS * sizeof(float));
        if (!a[i]) return fprintf(stderr, "fma_peak: no room for 1 GiB\n"), 1;
#pragma omp parallel for schedule(static) // each page is first touched by the thread that will use it
        for (int j = 0; j < FLOATS; j++) a[i][j] = 1e-3f;
    }
    least = 1e9;
    for (int try = 0; try < PASSES; try++) {
        float *restrict w = a[0], *restrict m = a[1], *restrict v = a[2];
        const float *restrict g = a[3];
        double start = omp_get_wtime();
#pragma omp parallel for schedule(static)
        for (int from = 0; from < FLOATS; from += FETCH) { // as adamw does it, train_rrhf.c
            for (int j = from + AHEAD; j < from + AHEAD + FETCH; j += 64 / sizeof *w)
                for (int i = 0; i < 3; i++) __builtin_prefetch(a[i] + j, 1);
            for (int j = from; j < from + FETCH; j++) {
                m[j] = 0.9f * m[j] + 0.1f * g[j];
                v[j] = 0.999f * v[j] + 0.001f * g[j] * g[j];
                w[j] -= 1e-5f * m[j] / (sqrtf(v[j]) + 1e-8f);
            }
        }
        double s = omp_get_wtime() - start;
        least = s < least ? s : least;
    }
    printf("stream %.1f GB/s\n", 7.0 * FLOATS * sizeof(float) / least * 1e-9);
    return used == 0.5f; // used, so that nothing is left out
}
