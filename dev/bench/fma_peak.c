/*
fma_peak.c: what the machine's cores can do at best, in float32: independent fused multiply-adds on vector registers,
nothing read and nothing written. Prints GFLOP/s of THREADS threads together, the best of 300 short rounds: the ceiling of
every matrix product.

  cc -O3 -march=native -fopenmp -o dev/bench/fma_peak dev/bench/fma_peak.c && dev/bench/fma_peak [THREADS]
*/
#include <omp.h>         // defines: omp_set_num_threads, omp_get_wtime
#include <stdio.h>       // defines: printf
#include <stdlib.h>      // defines: atoi

#if defined(__AVX512F__)
enum { VECTOR = 64 };
#elif defined(__AVX__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif
enum { VL = VECTOR / sizeof(float), CHAINS = 12, STEPS = 1000000 }; // 12 sums hide the latency of 4 cycles x 2 units
typedef float vec __attribute__((vector_size(VECTOR)));

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    double best = 0, flops = 0;
    float use = 0;
    if (threads > 0) omp_set_num_threads(threads);
    threads = omp_get_max_threads();
    flops = 2.0 * VL * CHAINS * STEPS * threads;
    for (int round = 0; round < 300; round++) {
        double start = omp_get_wtime();
#pragma omp parallel reduction(+ : use)
        {
            vec sum[CHAINS], a, b;
            for (int j = 0; j < VL; j++) a[j] = 0.999f, b[j] = 1e-3f * (float)(j + round);
            for (int i = 0; i < CHAINS; i++) sum[i] = b + (float)i;
            for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 12
                for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * a + b;
            }
            for (int i = 0; i < CHAINS; i++) use += sum[i][0];
        }
        double rate = flops / (omp_get_wtime() - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    printf("%d threads, vectors of %d floats: %.0f GFLOP/s (check %g)\n", threads, VL, best, (double)use);
    return 0;
}
