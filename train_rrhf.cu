/*
train_rrhf.cu: RRHF (Yuan et al. 2023, arXiv 2304.05302) on an NVIDIA GPU, from scratch. The same story as
train_rrhf.c, in the same order and under the same names: GPT-2's layers as forward/backward pairs, the model,
AdamW; the paper itself is in rrhf.h, and main() is at the end.

  make train_rrhfcu                   bfloat16 with float32 sums, residual stream, logits, gradients and master weights
  make train_rrhfcu PRECISION=FP32    float32 throughout, to compare with the CPU
  ./train_rrhfcu --help               the same command line

Gradients: dX is dL/dX, the same shape as X. Every backward ADDS to the gradients of parameters and overwrites the
gradients of activations, unless it says otherwise. No float is added with atomics: every sum is split in an
order that depends on its sizes only, so that a run has the same bits each time.
Types: elem is what matrix products read and write (bfloat16, or float in the float32 build); all sums are float.
Shapes are row-major; dimensions have the letters of model.h. A kernel's comment says what a block and a thread own,
and what bounds it: bytes per element moved to or from memory (bfloat16 build), or operations.
Everything runs on one stream. The host waits for the device once per optimizer step, in gpt2_step_end: the losses are
computed on the device too, and while it works on a micro-batch the host packs and sends the next one (at a step's end,
the next step's first). Outside of steps it waits only where the contract hands numbers back or takes new room.
test/test_cuda.cu compares every kernel with the CPU, on a GPU, or without one on test/cuda_emulation.h.
*/
#include "util.h"        // defines: die, xalloc, threads_set
#include "model.h"       // defines: Config, Params, Batch, Decode, the backend contract
#include "rrhf.h"        // defines: the objective and the training loop
#include "verbs.h"       // defines: the command line and the six verbs
#ifdef CUDA_EMULATION
#include "test/cuda_emulation.h" // defines: all of the below, on the CPU
#else
#include <cuda_bf16.h>   // defines: __nv_bfloat16
#include <cuda_runtime.h>
#include <cublasLt.h>    // defines: cublasLtMatmul
#ifdef USE_MPI
#include <nccl.h>        // defines: ncclAllReduce
#endif
#define LAUNCH_(kernel, grid, block, shared, ...) (kernel<<<grid, block, shared, device.stream>>>(__VA_ARGS__))
#define WIDE(type, p) (*(type *)(p)) // one access of sizeof(type) bytes; p must be aligned: the emulation checks that
#define SHARED(type, name) \
    extern __shared__ __align__(128) unsigned char shared_room[]; type *name = (type *)(void *)shared_room

// Three instructions by their names in the PTX ISA; for ldmatrix and mma, a warp's tensor cores, it says which lane
// holds what. A register holds two bfloat16, the first one in its lower half.
// ldmatrix: four 8 x 8 matrices from shared memory. Row i of matrix j lies at the address that lane 8j + i gives, a
// multiple of 16. to[j] of lane l: columns 2 (l%4) and the next of row l/4 of matrix j, or, with TRANS, of its
// transpose.
template <bool TRANS> __device__ inline void ldmatrix(unsigned to[4], const __nv_bfloat16 *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// cp.async: sends 16 bytes to shared memory, of which the first `bytes` (0 or 16) come from global memory, the others
// are zeros; the thread goes on meanwhile. What it has asked for is there after copies_wait, for itself; for the block
// after a __syncthreads besides.
inline __device__ void copy_async(void *to, const void *from, int bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes) : "memory");
#else
    uint4 none = {0, 0, 0, 0};
    *(uint4 *)to = bytes ? *(const uint4 *)from : none;
#endif
}

inline __device__ void copies_wait(void) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// mma: c (16,8) += a (16,16) b (16,8). Lane l holds, with r = l/4 and i = 2 (l%4): of a, columns i, i+1 of row r, of
// row r+8, and columns i+8, i+9 of row r, of row r+8; of b, rows i, i+1 of column r, and rows i+8, i+9; of c, columns
// i, i+1 of row r, and of row r+8. volatile: the whole warp must come by, so it may not move into a branch.
inline __device__ void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#ifdef PRECISION_FP32
typedef float elem;
#define ELEM_TYPE CUDA_R_32F
enum { HALF = 0 };       // is elem narrower than float?
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "bfloat16 needs compute capability 8.0 or more: make train_rrhfcu PRECISION=FP32"
#endif
typedef __nv_bfloat16 elem;
#define ELEM_TYPE CUDA_R_16BF
enum { HALF = 1 };
#endif

// ----------------------------------------------------------------------------
// The device: errors, launches, memory

static struct {
    int ready;
    cudaStream_t stream;
    cublasLtHandle_t blas;
    void *workspace;           // cuBLASLt's
    cudaDeviceProp prop;
#ifdef USE_MPI
    ncclComm_t world;          // the processes' GPUs
#endif
} device;

enum { WORKSPACE = 32 << 20 }; // bytes; what cuBLAS recommends for Hopper

static void check_cuda(cudaError_t e, const char *call, const char *file, int line) {
    if (e != cudaSuccess) die("%s:%d: %s: %s", file, line, call, cudaGetErrorString(e));
}
#define CHECK_CUDA(call) check_cuda(call, #call, __FILE__, __LINE__)

static void check_blas(cublasStatus_t s, const char *call, const char *file, int line) {
    if (s != CUBLAS_STATUS_SUCCESS) die("%s:%d: %s: cuBLASLt status %d", file, line, call, (int)s);
}
#define CHECK_BLAS(call) check_blas(call, #call, __FILE__, __LINE__)

#ifdef USE_MPI
static void check_nccl(ncclResult_t r, const char *call, const char *file, int line) {
    if (r != ncclSuccess) die("%s:%d: %s: %s (%s)", file, line, call, ncclGetErrorString(r), ncclGetLastError(NULL));
}
#define CHECK_NCCL(call) check_nccl(call, #call, __FILE__, __LINE__)
#endif

#ifndef LAUNCHED
#define LAUNCHED(name)         // the tests note here which kernels ran
#endif
#ifndef MULTIPLIED
#define MULTIPLIED(transa, transb, M, N, K) LAUNCHED("gemm")
#endif
#define LAUNCH(kernel, grid, block, shared, ...)                   \
    do {                                                           \
        LAUNCHED(#kernel);                                         \
        LAUNCH_(kernel, grid, block, shared, __VA_ARGS__);         \
        CHECK_CUDA(cudaGetLastError());                            \
    } while (0)
// The kernel whose threads move W numbers at a time, or, where the sizes forbid that, one at a time.
#define LAUNCH_WIDE(wide, W, kernel, ...)                          \
    do {                                                           \
        if (wide) LAUNCH(kernel<W>, __VA_ARGS__);                  \
        else LAUNCH(kernel<1>, __VA_ARGS__);                       \
    } while (0)

// The kernel for heads of 64 channels, GPT-2's, whose loops are then of known lengths, or else that for any.
#define LAUNCH_HEAD(hs, kernel, ...)                               \
    do {                                                           \
        if ((hs) == 64) LAUNCH(kernel<64>, __VA_ARGS__);           \
        else LAUNCH(kernel<0>, __VA_ARGS__);                       \
    } while (0)

static void device_start(void) {
    if (device.ready) return;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n < 1)
        die("CUDA: no GPU found (%s); ./train_rrhf does the same on the CPU", cudaGetErrorString(e));
    int own = world_local() % n; // a process may see one GPU, its own, or all of the machine's
    CHECK_CUDA(cudaSetDevice(own));
    CHECK_CUDA(cudaGetDeviceProperties(&device.prop, own));
    CHECK_CUDA(cudaStreamCreateWithFlags(&device.stream, cudaStreamNonBlocking));
    if (!HALF) // float32 is float32, whatever the environment says of TF32 and of emulation
        setenv("NVIDIA_TF32_OVERRIDE", "0", 1), unsetenv("CUBLAS_EMULATE_SINGLE_PRECISION");
    CHECK_BLAS(cublasLtCreate(&device.blas));
    CHECK_CUDA(cudaMalloc(&device.workspace, WORKSPACE));
#ifdef USE_MPI
    ncclUniqueId id;
    if (world_size > 1) {
        setenv("NCCL_ALGO", "Ring", 0); // NVLS sums in no fixed order (github.com/NVIDIA/nccl/issues/1497)
        if (!world_rank) CHECK_NCCL(ncclGetUniqueId(&id));
        world_give(&id, sizeof id, 0);
        CHECK_NCCL(ncclCommInitRank(&device.world, world_size, id, world_rank));
    }
#endif
    device.ready = 1;
}

static void device_wait(void) { CHECK_CUDA(cudaStreamSynchronize(device.stream)); }

// Copies that the stream comes to in its turn; the host goes on where its memory is pinned.
static void to_device(void *to, const void *from, size_t bytes) {
    CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, device.stream));
}

static void to_host(void *to, const void *from, size_t bytes) {
    CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device.stream));
}

static double mib(size_t bytes) { return (double)bytes / 1048576; }

// Device memory; `what` and `remedy` are for the error when it does not fit.
static void *device_alloc(size_t bytes, const char *what, const char *remedy) {
    void *p = NULL;
    size_t left = 0, total = 0;
    if (!bytes) return NULL;
    CHECK_CUDA(cudaMemGetInfo(&left, &total));
    if (cudaMalloc(&p, bytes) != cudaSuccess)
        die("GPU memory: %s need %.1f MiB, but %.1f of %.1f MiB are free; %s", what, mib(bytes), mib(left), mib(total),
            remedy);
    return p;
}

// Host memory that the device copies to and from while the host goes on.
static void *pinned_alloc(size_t bytes, const char *what, const char *remedy) {
    void *p = NULL;
    if (bytes && cudaMallocHost(&p, bytes) != cudaSuccess)
        die("host memory: %s need %.1f MiB of pinned memory; %s", what, mib(bytes), remedy);
    return p;
}

// Says what is about to be taken; small amounts are not worth a line.
static void memory_note(size_t bytes, const char *what) {
    if (bytes >> 26)
        fprintf(stderr, "GPU memory: %.1f of %.1f MiB for %s\n", mib(bytes), mib(device.prop.totalGlobalMem), what);
}

static void device_free(void *p) { if (p) CHECK_CUDA(cudaFree(p)); }
static void pinned_free(void *p) { if (p) CHECK_CUDA(cudaFreeHost(p)); }

static inline int div_up(size_t a, size_t b) { return (int)((a + b - 1) / b); }

// ----------------------------------------------------------------------------
// Small device functions

inline __device__ float to_float(float x) { return x; }
inline __device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __device__ void put(float *to, float x) { *to = x; }
inline __device__ void put(__nv_bfloat16 *to, float x) { *to = __float2bfloat16_rn(x); }

// W neighbours as floats: one access of 16 bytes (4 floats or 8 bfloat16), two for 8 floats, a smaller one for fewer.
template <int W> __device__ void load(float *to, const float *from) {
    if (W == 1) to[0] = from[0];
    if (W == 2) {
        float2 v = WIDE(const float2, from);
        to[0] = v.x, to[1 % W] = v.y;
    }
    for (int i = 0; i + 4 <= W; i += 4) {
        float4 v = WIDE(const float4, from + i);
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
}

inline __device__ void unpack(float *to, unsigned two) { // a bfloat16 is the upper half of a float
    to[0] = __uint_as_float(two << 16);
    to[1] = __uint_as_float(two & 0xffff0000u);
}

template <int W> __device__ void load(float *to, const __nv_bfloat16 *from) {
    if (W == 1) to[0] = __bfloat162float(from[0]);
    if (W == 2) unpack(to, WIDE(const unsigned, from));
    if (W == 4) {
        uint2 v = WIDE(const uint2, from);
        unpack(to, v.x), unpack(to + 2 % W, v.y);
    }
    if (W == 8) {
        uint4 v = WIDE(const uint4, from);
        unpack(to, v.x), unpack(to + 2 % W, v.y), unpack(to + 4 % W, v.z), unpack(to + 6 % W, v.w);
    }
}

template <int W> __device__ void store(float *to, const float *from) {
    if (W == 1) to[0] = from[0];
    if (W == 2) {
        float2 v = {from[0], from[1 % W]};
        WIDE(float2, to) = v;
    }
    for (int i = 0; i + 4 <= W; i += 4) {
        float4 v = {from[i], from[i + 1], from[i + 2], from[i + 3]};
        WIDE(float4, to + i) = v;
    }
}

inline __device__ unsigned pack(const float *from) {
    unsigned low = __bfloat16_as_ushort(__float2bfloat16_rn(from[0]));
    unsigned high = __bfloat16_as_ushort(__float2bfloat16_rn(from[1]));
    return low | high << 16;
}

template <int W> __device__ void store(__nv_bfloat16 *to, const float *from) {
    if (W == 1) *to = __float2bfloat16_rn(from[0]);
    if (W == 2) WIDE(unsigned, to) = pack(from);
    if (W == 4) {
        uint2 v = {pack(from), pack(from + 2 % W)};
        WIDE(uint2, to) = v;
    }
    if (W == 8) {
        uint4 v = {pack(from), pack(from + 2 % W), pack(from + 4 % W), pack(from + 6 % W)};
        WIDE(uint4, to) = v;
    }
}

#define FULL 0xffffffffu

template <typename T> __device__ T warp_sum(T x) { // every lane gets the sum, formed in the same order
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(FULL, x, i);
    return x;
}

inline __device__ float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, i));
    return x;
}

// The same over four neighbouring lanes.
inline __device__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

inline __device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}

// The same over a block of 8 warps; room (8) in shared memory.
enum { BLOCK = 256, WARPS = BLOCK / 32 };

template <typename T> __device__ T block_sum(T x, T *room) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < WARPS; i++) x += room[i];
    __syncthreads();
    return x;
}

inline __device__ float block_max(float x, float *room) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = room[0];
    for (int i = 1; i < WARPS; i++) x = fmaxf(x, room[i]);
    __syncthreads();
    return x;
}

// Of whole numbers: the sum over the threads before this one; *total: over all.
inline __device__ uint64_t block_before(uint64_t x, uint64_t *total, uint64_t *room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t sum = x; // over the warp's lanes up to this one
    for (int i = 1; i < 32; i *= 2) {
        uint64_t lower = __shfl_sync(FULL, sum, lane - i);
        if (lane >= i) sum += lower;
    }
    if (lane == 31) room[warp] = sum;
    __syncthreads();
    *total = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) sum += room[w];
        *total += room[w];
    }
    __syncthreads();
    return sum - x;
}

// ----------------------------------------------------------------------------
// Matrix products: the one seam between the layers and cuBLASLt
//
// gemm: C (M,N) = beta C + op(A) op(B) (+ bias (N)), row-major; op(A) is (M,K), op(B) is (K,N); beta is 0 or 1.
// A and B are elem, C is elem or float, sums are float. cuBLASLt counts in columns: it is asked for the transposed
// product, C^T (N,M) = op(B)^T op(A)^T, whose operands are the same bytes.
// Which algorithm computes a shape is asked once and remembered. The number of tokens differs from batch to batch, so
// it is rounded up for the question: shapes that differ only a little share an answer, and the answer does not depend
// on what was asked before. That keeps runs equal to the bit. Where cuBLASLt has no algorithm (odd sizes that no tensor
// core reads), a plain kernel does it.

// Compared as bytes: all are int, so that there is no padding. align[A, B, C]: the pointers' alignment, on which an
// algorithm may rely; bias: is there one; unsplit: no algorithm that splits K (see drops_terms).
typedef struct { int transa, transb, m, n, k, lda, ldb, ldc, type, bias, align[3], unsplit; } GemmKey;
typedef struct { GemmKey key; int found; cublasLtMatmulAlgo_t algo; } GemmAlgo;

static struct { GemmAlgo *at; int n; size_t cap; } gemm_algos;
// The last shapes and which of gemm_algos they took: a decoding step asks for the same five in every layer, and
// checking that an algorithm fits takes the host longer than the product takes the device.
enum { RECENT_BITS = 8, RECENT = 1 << RECENT_BITS };
static struct { GemmKey key; int algo; } gemm_recent[RECENT];

typedef struct { cublasLtMatmulDesc_t desc; cublasLtMatrixLayout_t a, b, c; } GemmCall;

static GemmCall gemm_call(const GemmKey *key, const elem *bias) {
    GemmCall g;
    cublasOperation_t ta = key->transb ? CUBLAS_OP_T : CUBLAS_OP_N, tb = key->transa ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = key->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    CHECK_BLAS(cublasLtMatmulDescCreate(&g.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CHECK_BLAS(cublasLtMatmulDescSetAttribute(g.desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta));
    CHECK_BLAS(cublasLtMatmulDescSetAttribute(g.desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb));
    CHECK_BLAS(cublasLtMatmulDescSetAttribute(g.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (key->bias)
        CHECK_BLAS(cublasLtMatmulDescSetAttribute(g.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    CHECK_BLAS(cublasLtMatrixLayoutCreate(&g.a, ELEM_TYPE, key->transb ? k : n, key->transb ? n : k, key->ldb));
    CHECK_BLAS(cublasLtMatrixLayoutCreate(&g.b, ELEM_TYPE, key->transa ? m : k, key->transa ? k : m, key->lda));
    CHECK_BLAS(cublasLtMatrixLayoutCreate(&g.c, (cudaDataType_t)key->type, n, m, key->ldc));
    return g;
}

static void gemm_call_free(GemmCall *g) {
    CHECK_BLAS(cublasLtMatmulDescDestroy(g->desc));
    CHECK_BLAS(cublasLtMatrixLayoutDestroy(g->a));
    CHECK_BLAS(cublasLtMatrixLayoutDestroy(g->b));
    CHECK_BLAS(cublasLtMatrixLayoutDestroy(g->c));
}

// In bytes, up to the widest access: what lies beyond must not choose another algorithm.
static int alignment(const void *p) {
    int a = 1;
    while (a < 16 && (uintptr_t)p % (uintptr_t)(2 * a) == 0) a *= 2;
    return a;
}

static int round_tokens(int n) { // up, keeping four leading bits
    int grain = 1;
    while (grain * 16 < n) grain *= 2;
    return div_up((size_t)n, (size_t)grain) * grain;
}

enum { BIAS_ALIGN = 16 }; // with less an algorithm may read beyond its word; then the plain kernel multiplies

static GemmAlgo gemm_ask(const GemmKey *key) {
    GemmAlgo a;
    cublasLtMatmulPreference_t want;
    cublasLtMatmulHeuristicResult_t best;
    uint64_t room = WORKSPACE;
    uint32_t ordered = key->unsplit ? CUBLASLT_REDUCTION_SCHEME_NONE // sums in a fixed order
                                    : CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    int found = 0;
    GemmCall g = gemm_call(key, (const elem *)BIAS_ALIGN); // the address itself stands for its alignment
    CHECK_BLAS(cublasLtMatmulPreferenceCreate(&want));
    uint32_t align[3] = {(uint32_t)key->align[0], (uint32_t)key->align[1], (uint32_t)key->align[2]};
    const struct { cublasLtMatmulPreferenceAttributes_t what; const void *value; size_t bytes; } ask[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &ordered, sizeof ordered},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align[0], sizeof *align}, // the operands change places
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align[1], sizeof *align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align[2], sizeof *align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align[2], sizeof *align}}; // D is C
    for (size_t i = 0; i < sizeof ask / sizeof *ask; i++)
        CHECK_BLAS(cublasLtMatmulPreferenceSetAttribute(want, ask[i].what, ask[i].value, ask[i].bytes));
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(device.blas, g.desc, g.a, g.b, g.c, g.c, want, 1, &best, &found);
    if (s != CUBLAS_STATUS_NOT_SUPPORTED) CHECK_BLAS(s);
    CHECK_BLAS(cublasLtMatmulPreferenceDestroy(want));
    gemm_call_free(&g);
    a.key = *key;
    a.found = s == CUBLAS_STATUS_SUCCESS && found > 0 && best.state == CUBLAS_STATUS_SUCCESS;
    if (a.found) a.algo = best.algo;
    else if ((double)key->m * key->n * key->k > 1e8)
        fprintf(stderr, "note: cuBLASLt has no algorithm for a %d x %d x %d product: a plain kernel computes it, "
                        "slowly; is the driver older than the toolkit?\n", key->m, key->n, key->k);
    return a;
}

static int gemm_algo(const GemmKey *key) { // its place in gemm_algos
    for (int i = 0; i < gemm_algos.n; i++)
        if (!memcmp(&gemm_algos.at[i].key, key, sizeof *key)) return i;
    XGROW(gemm_algos.at, gemm_algos.cap, (size_t)gemm_algos.n + 1);
    gemm_algos.at[gemm_algos.n] = gemm_ask(key);
    return gemm_algos.n++;
}

// Would this algorithm leave the last terms of a sum over K out? On Hopper cuBLASLt 12.8 and 13.1 do, silently, where
// K is split among s, each would get whole blocks of b terms, and less than a term for each is left over: measured for
// b = 64 in github.com/facebookexperimental/triton/pull/2767. K is the number of tokens in every weight's gradient.
static int drops_terms(const cublasLtMatmulAlgo_t *algo, int K) {
    int32_t s = 1;
    size_t written;
    CHECK_BLAS(cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &s, sizeof s, &written));
    for (int b = 16; b <= 256 && s > 1; b *= 2)
        if (K % s && K / s % b == 0) return 1;
    return 0;
}

// For a shape that no algorithm takes: an entry of its own, since similar shapes keep theirs.
static int gemm_none(GemmKey key) {
    key.unsplit = 2;
    int at = gemm_algo(&key);
    gemm_algos.at[at].found = 0;
    return at;
}

// The algorithm for key: that of similar shapes where it can take this one too; none where even an unsplit one would
// leave terms out.
static int gemm_choose(GemmKey key, GemmCall *g) {
    for (key.unsplit = 0; key.unsplit < 2; key.unsplit++) {
        cublasLtMatmulHeuristicResult_t ok;
        GemmKey similar = key;
        if (key.transa) similar.k = round_tokens(key.k);
        else similar.m = round_tokens(key.m);
        int at = gemm_algo(&similar);
        if (!gemm_algos.at[at].found ||
            cublasLtMatmulAlgoCheck(device.blas, g->desc, g->a, g->b, g->c, g->c, &gemm_algos.at[at].algo, &ok) !=
                CUBLAS_STATUS_SUCCESS || ok.workspaceSize > WORKSPACE)
            at = gemm_algo(&key);
        if (!gemm_algos.at[at].found || !drops_terms(&gemm_algos.at[at].algo, key.k)) return at;
    }
    return gemm_none(key);
}

// The definition. A thread owns an element of C; A and B are read as op() says. Bound by latency; for odd sizes only.
template <typename T> __global__ void gemm_plain_kernel(T *c, const elem *a, const elem *b, const elem *bias, int M,
                                                        int N, int K, size_t am, size_t ak, size_t bk, size_t bn,
                                                        size_t ldc, float beta) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x, m = i / N, n = i % N;
    float sum = 0;
    if (m >= (size_t)M) return;
    for (int k = 0; k < K; k++) sum += to_float(a[m * am + k * ak]) * to_float(b[k * bk + n * bn]);
    if (bias) sum += to_float(bias[n]);
    if (beta != 0) sum += beta * to_float(c[m * ldc + n]);
    put(c + m * ldc + n, sum);
}

static void gemm_plain(const GemmKey *key, const elem *a, const elem *b, float beta, void *c, const elem *bias) {
    int blocks = div_up((size_t)key->m * (size_t)key->n, BLOCK);
    size_t lda = (size_t)key->lda, ldb = (size_t)key->ldb, ldc = (size_t)key->ldc;
    size_t am = key->transa ? 1 : lda, ak = key->transa ? lda : 1;
    size_t bk = key->transb ? 1 : ldb, bn = key->transb ? ldb : 1;
    if (key->type == (int)CUDA_R_32F)
        LAUNCH(gemm_plain_kernel<float>, blocks, BLOCK, 0, (float *)c, a, b, bias, key->m, key->n, key->k,
               am, ak, bk, bn, ldc, beta);
    else
        LAUNCH(gemm_plain_kernel<elem>, blocks, BLOCK, 0, (elem *)c, a, b, bias, key->m, key->n, key->k,
               am, ak, bk, bn, ldc, beta);
}

static unsigned gemm_slot(const GemmKey *k) { // in gemm_recent: sizes are often multiples of 64, their lower bits equal
    unsigned shape = ((unsigned)k->m * 31u + (unsigned)k->n) * 31u + (unsigned)k->k;
    unsigned kind = (unsigned)(k->transa + 2 * k->transb + 4 * k->bias + 8 * (k->type == (int)CUDA_R_32F));
    return (shape * 16u + kind) * 2654435761u >> (32 - RECENT_BITS);
}

static void gemm(int transa, int transb, int M, int N, int K, const elem *a, int lda, const elem *b, int ldb,
                 float beta, void *c, cudaDataType_t type, int ldc, const elem *bias) {
    const float one = 1;
    GemmKey key = {transa, transb, M, N, K, lda, ldb, ldc, (int)type, bias != NULL,
                   {alignment(a), alignment(b), alignment(c)}, 0};
    unsigned recent = gemm_slot(&key);
    MULTIPLIED(transa, transb, M, N, K);
    if (bias && alignment(bias) < BIAS_ALIGN) {
        gemm_plain(&key, a, b, beta, c, bias);
        return;
    }
    GemmCall g = gemm_call(&key, bias);
    int at = gemm_recent[recent].algo;
    if (memcmp(&gemm_recent[recent].key, &key, sizeof key)) {
        at = gemm_choose(key, &g);
        gemm_recent[recent].key = key, gemm_recent[recent].algo = at;
    }
    GemmAlgo *algo = &gemm_algos.at[at];
    cublasStatus_t s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (algo->found) s = cublasLtMatmul(device.blas, g.desc, &one, b, g.a, a, g.b, &beta, c, g.c, c, g.c, &algo->algo,
                                        device.workspace, WORKSPACE, device.stream);
    if (s == CUBLAS_STATUS_NOT_SUPPORTED) { // a heuristic's answer is no promise
        gemm_recent[recent].algo = gemm_none(key);
        gemm_plain(&key, a, b, beta, c, bias);
    } else CHECK_BLAS(s);
    gemm_call_free(&g);
}

#ifndef GEMM_SPAN
#define GEMM_SPAN INT32_MAX // numbers that one operand may span: with more, some of cuBLASLt's algorithms have failed
#endif                      // (github.com/NVIDIA/raft/issues/3097). Only the logits come near

// Of n rows, ld apart, how many a product may have at once.
static int gemm_rows(int n, int ld) { return n < GEMM_SPAN / ld ? n : GEMM_SPAN / ld; }

// ----------------------------------------------------------------------------
// Layers, forward and backward. Arguments: outputs, inputs, what the forward saved, sizes.
// Sums over rows are formed in two stages: blocks write partial sums to part (PARTS, 6C at most), one kernel adds them.

enum { PARTS = 128 };

// dst[i] += sum over p of part[p][i]; columns from n1 on go to dst2, from n2 on to dst3 (NULL: nowhere).
// part (parts, n). A block owns 32 columns, a lane one of them, a warp every eighth part. Bytes: 4 per partial sum.
__global__ void add_partials_kernel(float *dst, float *dst2, float *dst3, const float *part, int parts, int n, int n1,
                                    int n2) {
    __shared__ float room[WARPS][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = blockIdx.x * 32 + lane;
    float sum = 0;
    for (int p = warp; i < n && p < parts; p += WARPS) sum += part[(size_t)p * n + i];
    room[warp][lane] = sum;
    __syncthreads();
    if (warp || i >= n) return;
    for (int w = 1; w < WARPS; w++) sum += room[w][lane];
    if (i < n1) dst[i] += sum;
    else if (i < n2) dst2[i - n1] += sum;
    else if (dst3) dst3[i - n2] += sum;
}

// Embedding: out[n] = wte[token[n]] + wpe[pos[n]].   out (N,C), wte (Vp,C), wpe (T,C), all float
// A block owns a row. Bytes: 12 per element.
template <int W> __global__ void embedding_forward_kernel(float *out, const int *token, const int *pos,
                                                          const float *wte, const float *wpe, int C) {
    size_t n = blockIdx.x;
    const float *t = wte + (size_t)token[n] * C, *p = wpe + (size_t)pos[n] * C;
    for (int i = threadIdx.x * W; i < C; i += blockDim.x * W) {
        float a[W], b[W];
        load<W>(a, t + i);
        load<W>(b, p + i);
        for (int k = 0; k < W; k++) a[k] += b[k];
        store<W>(out + n * C + i, a);
    }
}

static void embedding_forward(float *out, const int *token, const int *pos, const float *wte, const float *wpe, int N,
                              int C) {
    LAUNCH_WIDE(C % 4 == 0, 4, embedding_forward_kernel, N, 128, 0, out, token, pos, wte, wpe, C);
}

// dwte[token[n]] += dout[n], dwpe[pos[n]] += dout[n]. The host has sorted the rows by what they add to: rows
// order[start[e]] .. order[start[e+1]-1] add to row key[e] of the table. A block owns 32 W columns of one such row, a
// lane W of them, a warp every fourth row. Bytes: 4 per element of dout, 8 per element of a row that is added to.
template <int W> __global__ void embedding_backward_kernel(float *table, const float *dout, const int *order,
                                                           const int *start, const int *key, int C) {
    __shared__ float room[4][32 * W];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = (blockIdx.y * 32 + lane) * W;
    float sum[W], a[W];
    for (int k = 0; k < W; k++) sum[k] = 0;
    for (int e = start[blockIdx.x] + warp; i < C && e < start[blockIdx.x + 1]; e += 4) {
        load<W>(a, dout + (size_t)order[e] * C + i);
        for (int k = 0; k < W; k++) sum[k] += a[k];
    }
    for (int k = 0; k < W; k++) room[warp][lane * W + k] = sum[k];
    __syncthreads();
    if (warp || i >= C) return;
    float *to = table + (size_t)key[blockIdx.x] * C + i;
    load<W>(a, to);
    for (int k = 0; k < W; k++) {
        int at = lane * W + k;
        a[k] += (room[0][at] + room[1][at]) + (room[2][at] + room[3][at]);
    }
    store<W>(to, a);
}

typedef struct { const int *order, *start, *key; int n; } Sorted; // n different keys

static void embedding_backward(float *dwte, float *dwpe, const float *dout, Sorted token, Sorted pos, int C) {
    int wide = C % 4 == 0, spans = div_up((size_t)C, wide ? 128 : 32);
    LAUNCH_WIDE(wide, 4, embedding_backward_kernel, dim3(token.n, spans), 128, 0, dwte, dout, token.order, token.start,
                token.key, C);
    LAUNCH_WIDE(wide, 4, embedding_backward_kernel, dim3(pos.n, spans), 128, 0, dwpe, dout, pos.order, pos.start,
                pos.key, C);
}

// Residual and LayerNorm: sum = x + add, out = w * (sum - mean) * rstd + b, rstd = 1 / sqrt(var + eps), over the C
// channels of each row.
// out, add (N,C) elem; sum, x (N,C) float; w, b (C); mean, rstd (N) are saved for the backward.
// add NULL: none; sum, mean, rstd NULL: not wanted; sum may be x. row (N): output row n is input row row[n] (NULL: n).
// A warp owns a row, which it keeps in shared memory. Bytes: 4 (x) + 2 (add) + 4 (sum) + 2 (out) per element.
template <int W> __global__ void layernorm_forward_kernel(elem *out, float *mean, float *rstd, float *sum,
                                                          const float *x, const elem *add, const int *row,
                                                          const float *w, const float *b, int N, int C) {
    SHARED(float, rows);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + warp;
    if (n >= N) return;
    size_t from = (size_t)(row ? row[n] : n) * C, to = (size_t)n * C;
    float *s = rows + warp * C, total = 0, var = 0, a[W], r[W], bias[W];
    for (int i = lane * W; i < C; i += 32 * W) {
        load<W>(a, x + from + i);
        if (add) {
            load<W>(r, add + from + i);
            for (int k = 0; k < W; k++) a[k] += r[k];
        }
        for (int k = 0; k < W; k++) total += a[k];
        store<W>(s + i, a);
        if (sum) store<W>(sum + to + i, a);
    }
    float mu = warp_sum(total) / C;
    for (int i = lane * W; i < C; i += 32 * W)
        for (int k = 0; k < W; k++) var += (s[i + k] - mu) * (s[i + k] - mu);
    float rs = 1 / sqrtf(warp_sum(var) / C + (float)LAYERNORM_EPS);
    for (int i = lane * W; i < C; i += 32 * W) {
        load<W>(a, s + i);
        load<W>(r, w + i);
        load<W>(bias, b + i);
        for (int k = 0; k < W; k++) a[k] = r[k] * ((a[k] - mu) * rs) + bias[k];
        store<W>(out + to + i, a);
    }
    if (lane == 0 && mean) mean[n] = mu;
    if (lane == 0 && rstd) rstd[n] = rs;
}

enum { SHARED_MAX = 48 << 10 }; // bytes of shared memory that need no opting in

static void layernorm_forward(elem *out, float *mean, float *rstd, float *sum, const float *x, const elem *add,
                              const int *row, const float *w, const float *b, int N, int C) {
    int rows = min_int(4, SHARED_MAX / (C * (int)sizeof(float)));
    LAUNCH_WIDE(C % 4 == 0, 4, layernorm_forward_kernel, div_up((size_t)N, (size_t)rows), rows * 32,
                rows * C * sizeof(float), out, mean, rstd, sum, x, add, row, w, b, N, C);
}

// With xhat = (x - mean) rstd and g = dout * w:   dx += rstd (g - mean_C(g) - xhat mean_C(g xhat)),
// dw += sum_N dout xhat, db += sum_N dout. Adds to dx: the residual stream carries a gradient past the layer.
// half (N,C), if wanted, gets dx as elem, for the matrix products. row (N): rows n of x and dout belong to row row[n]
// of dx.
// dbias (C), if wanted: += sum_N dx as it leaves, the gradient of the bias of the product whose output was added to x.
// A block owns `span` rows, LN_ROWS at a time, a thread W channels, which it keeps in registers: all is read once.
// Bytes: 2 (dout) + 4 (x) + 8 (dx) + 2 (half) per element.
enum { LN_ROWS = 4, CHANNELS_MAX = 2048 };
template <int W> __global__ void __launch_bounds__(CHANNELS_MAX / 4) layernorm_backward_kernel(
        float *dx, elem *half, float *part, const elem *dout, const float *x, const int *row, const float *w,
        const float *mean, const float *rstd, int N, int C, int span) {
    const int ROWS = LN_ROWS;
    __shared__ float room[2][2 * ROWS][32]; // in turns: one barrier a round
    int warp = threadIdx.x / 32, warps = blockDim.x / 32, i = threadIdx.x * W, own = i < C, turn = 0;
    int end = min((int)(blockIdx.x + 1) * span, N);
    float weight[W] = {}, dw[W] = {}, db[W] = {}, bias[W] = {}, g[ROWS][W], a[ROWS][W], d[ROWS][W];
    if (own) load<W>(weight, w + i);
    for (int n0 = blockIdx.x * span; n0 < end; n0 += ROWS, turn ^= 1) {
        float s[2 * ROWS], rs[ROWS];
        size_t to[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) { // past the end: the last row once more
            size_t n = (size_t)min(n0 + r, end - 1);
            to[r] = (row ? (size_t)row[n] : n) * C + i;
            rs[r] = rstd[n];
            if (!own) continue;
            load<W>(g[r], dout + n * C + i);
            load<W>(a[r], x + n * C + i);
            load<W>(d[r], dx + to[r]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float mu = mean[min(n0 + r, end - 1)];
            s[2 * r] = s[2 * r + 1] = 0;
            for (int k = 0; own && k < W; k++) {
                a[r][k] = (a[r][k] - mu) * rs[r];
                s[2 * r] += g[r][k] * weight[k];
                s[2 * r + 1] += g[r][k] * weight[k] * a[r][k];
            }
        }
#pragma unroll
        for (int k = 0; k < 2 * ROWS; k++) {
            s[k] = warp_sum(s[k]);
            if (threadIdx.x % 32 == 0) room[turn][k][warp] = s[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 2 * ROWS; k++) {
            s[k] = 0;
            for (int j = 0; j < warps; j++) s[k] += room[turn][k][j];
            s[k] /= C;
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (!own || n0 + r >= end) continue;
            for (int k = 0; k < W; k++) {
                d[r][k] += rs[r] * (g[r][k] * weight[k] - s[2 * r] - a[r][k] * s[2 * r + 1]);
                dw[k] += g[r][k] * a[r][k];
                db[k] += g[r][k];
                bias[k] += d[r][k];
            }
            store<W>(dx + to[r], d[r]);
            if (half) store<W>(half + to[r], d[r]);
        }
    }
    if (!own) return;
    store<W>(part + (size_t)blockIdx.x * 3 * C + i, dw);
    store<W>(part + ((size_t)blockIdx.x * 3 + 1) * C + i, db);
    store<W>(part + ((size_t)blockIdx.x * 3 + 2) * C + i, bias);
}

static int layernorm_threads(int C) { return div_up((size_t)C, C % 4 == 0 ? 128 : 32) * 32; } // W channels each

static void layernorm_backward(float *dx, elem *half, float *dw, float *db, float *dbias, float *part,
                               const elem *dout, const float *x, const int *row, const float *w, const float *mean,
                               const float *rstd, int N, int C) {
    int span = div_up((size_t)N, 2 * PARTS * LN_ROWS) * LN_ROWS, blocks = div_up((size_t)N, (size_t)span);
    LAUNCH_WIDE(C % 4 == 0, 4, layernorm_backward_kernel, blocks, layernorm_threads(C), 0, dx, half, part, dout, x, row,
                w, mean, rstd, N, C, span);
    LAUNCH(add_partials_kernel, div_up(3 * (size_t)C, 32), BLOCK, 0, dw, db, dbias, part, blocks, 3 * C, C, 2 * C);
}

// Matmul with bias: out = x W^T + bias.   out (N,OC), x (N,C), W (OC,C), bias (OC), all elem
// The residual is added by the LayerNorm that follows.
static void matmul_forward(elem *out, const elem *x, const elem *w, const elem *bias, int N, int C, int OC) {
    gemm(0, 1, N, OC, C, x, C, w, C, 0, out, ELEM_TYPE, OC, bias);
}

inline __device__ float gelu_slope(float x); // see GELU

// dbias += sum_N dout. Where x is given, dout is first multiplied by GELU's slope at x, in place: the gradient of
// GELU's input is that of the output of the product before, whose bias this is.
// A block owns 32 W columns and `span` rows, a lane W columns, a warp every eighth row. Bytes: 2 per element; 6 with x.
template <int W> __global__ void bias_backward_kernel(float *part, elem *dout, const elem *x, int N, int OC, int span) {
    __shared__ float room[WARPS][32 * W];
    const int AHEAD = 2;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i = (blockIdx.x * 32 + lane) * W;
    int end = i < OC ? min((int)(blockIdx.y + 1) * span, N) : 0;
    float sum[W] = {}, a[AHEAD][W], b[AHEAD][W];
    for (int n0 = blockIdx.y * span + warp; n0 < end; n0 += AHEAD * WARPS) {
#pragma unroll
        for (int r = 0; r < AHEAD; r++) { // past the end: the first of these rows once more
            size_t n = n0 + r * WARPS < end ? n0 + r * WARPS : n0;
            load<W>(a[r], dout + n * OC + i);
            if (x) load<W>(b[r], x + n * OC + i);
        }
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            size_t n = n0 + r * WARPS;
            if (n >= (size_t)end) continue;
            for (int k = 0; x && k < W; k++) a[r][k] *= gelu_slope(b[r][k]);
            if (x) store<W>(dout + n * OC + i, a[r]);
            for (int k = 0; k < W; k++) sum[k] += a[r][k];
        }
    }
    for (int k = 0; k < W; k++) room[warp][lane * W + k] = sum[k];
    __syncthreads();
    for (int j = threadIdx.x; j < 32 * W && (int)blockIdx.x * 32 * W + j < OC; j += BLOCK) {
        float total = room[0][j];
        for (int k = 1; k < WARPS; k++) total += room[k][j];
        part[(size_t)blockIdx.y * OC + blockIdx.x * 32 * W + j] = total;
    }
}

static void bias_backward(float *dbias, float *part, elem *dout, const elem *x, int N, int OC) {
    int wide = OC % 8 == 0, span = div_up((size_t)N, PARTS * WARPS) * WARPS, spans = div_up((size_t)N, (size_t)span);
    LAUNCH_WIDE(wide, 8, bias_backward_kernel, dim3(div_up((size_t)OC, wide ? 256 : 32), spans), BLOCK, 0, part, dout,
                x, N, OC, span);
    LAUNCH(add_partials_kernel, div_up((size_t)OC, 32), BLOCK, 0, dbias, dbias, dbias, part, spans, OC, OC, OC);
}

// dx = dout W, dW += dout^T x, dbias += sum_N dout.   dx, dout elem; dW, dbias float. dbias NULL: gelu_backward or
// layernorm_backward does it.
// cuBLASLt's bias gradient epilogue overwrites dbias where micro-batches must add to it: hence a pass of 2 bytes per
// element of dout, beside the two products' 4 and their 4 C operations per element.
static void matmul_backward(elem *dx, float *dw, float *dbias, float *part, elem *dout, const elem *x, const elem *w,
                            int N, int C, int OC) {
    gemm(0, 0, N, C, OC, dout, OC, w, C, 0, dx, ELEM_TYPE, C, NULL);
    gemm(1, 0, OC, C, N, dout, OC, x, C, 1, dw, CUDA_R_32F, C, NULL);
    if (dbias) bias_backward(dbias, part, dout, NULL, N, OC);
}

// ----------------------------------------------------------------------------
// Attention over the two intervals of dataloader.h, in the manner of FlashAttention-2 (Dao 2023, arXiv 2307.08691)
//
// A tile of rows lies within one query, or within one response. All its rows see the keys [a0, a1), the query's if
// they are a response's, none otherwise; and, up to themselves, the keys from b0 on, where their own run starts.
// Read the other way round, the same tile taken as keys is seen by the rows from itself to `seen`: the end of its
// response, or, for a query's keys, the end of the last response, for the responses follow one another.
// A block owns a tile of one head, each of its four warps PIECE rows of it. The tiles that they meet pass by in shared
// memory and are multiplied PIECE rows at a time: scores, probabilities and sums stay in registers. (Not where heads
// have other than 64 channels: loops of unknown length keep them in local memory.)

// With PAD more numbers to a row of a tile, 16 bytes of eight bfloat16 rows lie in different banks of shared memory.
enum { PIECE = 16, TILE = 4 * PIECE, PAD = 8, ATTENTION_BLOCK = 4 * 32, HEAD_MAX = 256 };

typedef struct { int n0, n1, a0, a1, b0, seen; } Tile; // rows n0 .. n1-1

// A head's columns in a tile, then zeros
static __host__ __device__ int padded(int hs) { return (hs + PIECE - 1) / PIECE * PIECE; }
inline __device__ int key_tiles(Tile t) { return (t.a1 - t.a0 + TILE - 1) / TILE + (t.n1 - t.b0 + TILE - 1) / TILE; }

inline __device__ void key_tile(Tile t, int i, int *j0, int *j1) { // keys *j0 .. *j1-1: the query's, then the rows' own
    int prefix = (t.a1 - t.a0 + TILE - 1) / TILE;
    *j0 = i < prefix ? t.a0 + i * TILE : t.b0 + (i - prefix) * TILE;
    *j1 = min(*j0 + TILE, i < prefix ? t.a1 : t.n1);
}

// Rows n0 .. n1-1 of one head, `stride` apart, as a tile (TILE, padded(hs) + PAD), and back; what is missing is zero.
// tiles_wait ends the wait for what has been loaded.
inline __device__ void tile_load(elem *to, const elem *from, int stride, int n0, int n1, int hs) {
    const int V = 16 / sizeof(elem);
    int H = padded(hs), ld = H + PAD;
    if (hs % V == 0) // C is a multiple of hs: all is aligned
#pragma unroll 4
        for (int i0 = 0; i0 < TILE * H / V; i0 += ATTENTION_BLOCK) { // whole rounds: H is a multiple of 16
            int i = i0 + threadIdx.x, r = i / (H / V), c = i % (H / V) * V, there = n0 + r < n1 && c < hs;
            copy_async(to + r * ld + c, there ? from + (size_t)(n0 + r) * stride + c : from, there ? 16 : 0);
        }
    else
        for (int i = threadIdx.x; i < TILE * H; i += ATTENTION_BLOCK) {
            int r = i / H, c = i % H;
            put(to + r * ld + c, n0 + r < n1 && c < hs ? to_float(from[(size_t)(n0 + r) * stride + c]) : 0);
        }
}

inline __device__ void tiles_wait(void) {
    copies_wait();
    __syncthreads();
}

inline __device__ void tile_store(elem *to, const elem *from, int stride, int n0, int n1, int hs) {
    const int V = 16 / sizeof(elem);
    int ld = padded(hs) + PAD;
    if (hs % V == 0)
        for (int i = threadIdx.x; i < (n1 - n0) * (hs / V); i += ATTENTION_BLOCK) {
            int r = i / (hs / V), c = i % (hs / V) * V;
            WIDE(uint4, to + (size_t)(n0 + r) * stride + c) = WIDE(const uint4, from + r * ld + c);
        }
    else
        for (int i = threadIdx.x; i < (n1 - n0) * hs; i += ATTENTION_BLOCK)
            to[(size_t)(n0 + i / hs) * stride + i % hs] = from[i / hs * ld + i % hs];
}

// The left operand (16,16) of a product, as a warp holds it for mma: four words a lane, of two numbers each. float32,
// which the tensor cores would round, is held the same way and multiplied by the ordinary ones, lane asking lane.
#ifdef PRECISION_FP32
typedef struct { float word[4][2]; } Fragment;
#else
typedef struct { unsigned word[4]; } Fragment;
#endif

inline __device__ Fragment fragment(const elem *tile, int ld) { // (16,16) of a tile
    Fragment f;
    int lane = threadIdx.x % 32;
#ifdef PRECISION_FP32
    for (int x = 0; x < 8; x++)
        f.word[x / 2][x % 2] = tile[(lane / 4 + x / 2 % 2 * 8) * ld + lane % 4 * 2 + x % 2 + x / 4 * 8];
#else
    ldmatrix<false>(f.word, tile + lane % 16 * ld + lane / 16 * 8);
#endif
    return f;
}

// Sums c (16,16): c[0] has the left eight columns, c[1] the right ones, a lane's four numbers each as mma has them.
inline __device__ int c_row(int x) { return threadIdx.x % 32 / 4 + x / 2 % 2 * 8; } // of c[x / 4][x % 4]
inline __device__ int c_col(int x) { return threadIdx.x % 4 * 2 + x % 2 + x / 4 * 8; }

// They become a left operand, rounded to elem, without moving: a lane already has what it must hold.
inline __device__ Fragment fragment_of(const float c[2][4]) {
    Fragment f;
    for (int x = 0; x < 4; x++)
#ifdef PRECISION_FP32
        for (int i = 0; i < 2; i++) f.word[x][i] = c[x / 2][x % 2 * 2 + i];
#else
        f.word[x] = pack(c[x / 2] + x % 2 * 2);
#endif
    return f;
}

// c += a times (16,16) of a tile, or, with T, its transpose
template <bool T> __device__ void multiply(float c[2][4], Fragment a, const elem *tile, int ld) {
    int lane = threadIdx.x % 32;
#ifdef PRECISION_FP32
#pragma unroll
    for (int k = 0; k < 16; k++) {
        int from = lane / 4 * 4 + k % 8 / 2;
        float upper = __shfl_sync(FULL, a.word[k / 8 * 2][k % 2], from);
        float lower = __shfl_sync(FULL, a.word[k / 8 * 2 + 1][k % 2], from);
        for (int x = 0; x < 4; x++) {
            int col = c_col(x % 2 + x / 2 * 4);
            float b = T ? tile[col * ld + k] : tile[k * ld + col];
            c[x / 2][x % 2] += upper * b, c[x / 2][2 + x % 2] += lower * b;
        }
    }
#else
    unsigned b[4]; // of the left eight columns, and of the right ones; mma wants columns, so a transpose is as it lies
    if (T) ldmatrix<false>(b, tile + (lane / 16 * 8 + lane % 8) * ld + lane / 8 % 2 * 8);
    else ldmatrix<true>(b, tile + lane % 16 * ld + lane / 16 * 8);
    mma_16x8x16(c[0], a.word, b);
    mma_16x8x16(c[1], a.word, b + 2);
#endif
}

// A warp's rows (16,H) of a tile as left operands
inline __device__ void rows_left(Fragment *a, const elem *rows, int H) {
#pragma unroll
    for (int c = 0; c < H / PIECE; c++) a[c] = fragment(rows + c * PIECE, H + PAD);
}

// s (16,16) = a (16,H) times the transpose of 16 rows (16,H)
inline __device__ void products(float s[2][4], const Fragment *a, const elem *rows, int H) {
    for (int x = 0; x < 8; x++) s[x / 4][x % 4] = 0;
#pragma unroll
    for (int c = 0; c < H / PIECE; c++) multiply<true>(s, a[c], rows + c * PIECE, H + PAD);
}

// o (16,H) += s (16,16), rounded to elem, times 16 rows (16,H)
inline __device__ void add_rows(float (*o)[2][4], const float s[2][4], const elem *rows, int H) {
    Fragment p = fragment_of(s);
#pragma unroll
    for (int c = 0; c < H / PIECE; c++) multiply<false>(o[c], p, rows + c * PIECE, H + PAD);
}

// The block's sums, a warp's o (16,H) each, to rows n0 .. n1-1, through the tile `room`, which others may still read
inline __device__ void sums_store(elem *to, const float (*o)[2][4], elem *room, int stride, int n0, int n1, int hs) {
    int H = padded(hs), ld = H + PAD;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < H / PIECE; c++)
        for (int x = 0; x < 8; x++)
            put(room + (threadIdx.x / 32 * PIECE + c_row(x)) * ld + c * PIECE + c_col(x), o[c][x / 4][x % 4]);
    __syncthreads();
    tile_store(to, room, stride, n0, n1, hs);
}

// Shared memory in bytes: two tiles. First the block's own are there, at last its results.
static size_t attention_shared(int hs) { return 2 * TILE * (size_t)(padded(hs) + PAD) * sizeof(elem); }

// Per head: with s_j = q_n . k_j / sqrt(hs) for every j that n sees, out_n = sum_j softmax(s)_j v_j. The softmax is
// formed as the keys pass by: max and sum so far, and out scaled down when the max grows. Saves
// lse_n = log sum_j exp(s_j).
// out (N,C), lse (N,NH), qkv (N,3C). A lane has numbers of two rows, and four lanes share a row.
// Operations: 4 hs per row and key that it sees; bytes: 2 (3 hs + hs) per row, and keys again for each tile.
template <int HS> __global__ void __launch_bounds__(ATTENTION_BLOCK) attention_forward_kernel(
        elem *out, float *lse, const elem *qkv, const Tile *tiles, int C, int NH, int any_hs) {
    SHARED(elem, k); // q's tile at first
    const int STRIPS = (HS ? HS : HEAD_MAX) / PIECE;
    int hs = HS ? HS : any_hs, H = padded(hs), ldh = H + PAD, h = blockIdx.x % NH;
    elem *v = k + TILE * ldh;
    float o[STRIPS][2][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, scale = 1 / sqrtf((float)hs);
    Fragment q[STRIPS];
    Tile t = tiles[blockIdx.x / NH]; // the heads of a tile are neighbours, and so are their bytes
    const elem *head = qkv + h * hs;
    int own = threadIdx.x / 32 * PIECE, first = t.n0 + own; // the warp's first row, in the tile and among all
    tile_load(k, head, 3 * C, t.n0, t.n1, hs);
    tiles_wait();
    rows_left(q, k + own * ldh, H);
    for (int i = 0; i < key_tiles(t); i++) {
        int j0, j1;
        key_tile(t, i, &j0, &j1);
        __syncthreads();
        tile_load(k, head + C, 3 * C, j0, j1, hs);
        tile_load(v, head + 2 * C, 3 * C, j0, j1, hs);
        tiles_wait();
        for (int j = j0; j < j1 && j <= first && first < t.n1; j += PIECE) { // later keys are not seen
            float s[2][4], most[2] = {top[0], top[1]}, keep[2];
            products(s, q, k + (j - j0) * ldh, H);
            for (int x = 0; x < 8; x++) {
                float *z = &s[x / 4][x % 4], *m = &most[x / 2 % 2];
                int key = j + c_col(x);
                *z = key < j1 && key <= first + c_row(x) ? scale * *z : -INFINITY;
                *m = fmaxf(*m, *z);
            }
            for (int r = 0; r < 2; r++) {
                most[r] = quad_max(most[r]); // finite: every row sees the first key
                keep[r] = __expf(top[r] - most[r]);
                top[r] = most[r];
                sum[r] *= keep[r];
            }
            for (int x = 0; x < 8; x++) {
                float *z = &s[x / 4][x % 4];
                sum[x / 2 % 2] += *z = __expf(*z - top[x / 2 % 2]);
            }
#pragma unroll
            for (int c = 0; c < H / PIECE; c++)
                for (int x = 0; x < 8; x++) o[c][x / 4][x % 4] *= keep[x / 2 % 2];
            add_rows(o, s, v + (j - j0) * ldh, H);
        }
    }
    for (int r = 0; r < 2; r++) {
        int n = first + c_row(r * 2);
        sum[r] = quad_sum(sum[r]);
        if (threadIdx.x % 4 == 0 && n < t.n1) lse[(size_t)n * NH + h] = top[r] + logf(sum[r]);
        sum[r] = 1 / sum[r];
    }
#pragma unroll
    for (int c = 0; c < H / PIECE; c++)
        for (int x = 0; x < 8; x++) o[c][x / 4][x % 4] *= sum[x / 2 % 2];
    sums_store(out + h * hs, o, k, C, t.n0, t.n1, hs);
}

static void attention_forward(elem *out, float *lse, const elem *qkv, const Tile *tiles, int n_tiles, int C, int NH) {
    int hs = C / NH;
    LAUNCH_HEAD(hs, attention_forward_kernel, n_tiles * NH, ATTENTION_BLOCK, attention_shared(hs),
                out, lse, qkv, tiles, C, NH, hs);
}

// With p_j = exp(s_j - lse), dp_j = dout . v_j and D = dout . out = sum_j p_j dp_j:
// ds_j = p_j (dp_j - D) / sqrt(hs); dq = sum_j ds_j k_j, dk_j += ds_j q, dv_j += p_j dout. dqkv (N,3C) is overwritten;
// dout, out (N,C), qkv (N,3C), lse and delta (N,NH), where delta keeps D for the second kernel. g: rows of dout.
// Two kernels, so that every sum has one owner: the first owns rows and forms dq (and D), the second owns keys.
// Of a key that is not seen exp may overflow: zero takes its place, by a choice, not by a product or a branch.
// Operations: 6 hs per row and key for the first, 8 hs for the second.
template <int HS> __global__ void __launch_bounds__(ATTENTION_BLOCK) attention_backward_q_kernel(
        elem *dqkv, float *delta, const elem *dout, const elem *out, const float *lse, const elem *qkv,
        const Tile *tiles, int C, int NH, int any_hs) {
    SHARED(elem, k); // q's tile at first, and v g's
    const int STRIPS = (HS ? HS : HEAD_MAX) / PIECE;
    int hs = HS ? HS : any_hs, H = padded(hs), ldh = H + PAD, h = blockIdx.x % NH;
    elem *v = k + TILE * ldh;
    float dq[STRIPS][2][4] = {}, D[2] = {0, 0}, row_lse[2] = {0, 0}, scale = 1 / sqrtf((float)hs);
    Fragment q[STRIPS], g[STRIPS];
    Tile t = tiles[blockIdx.x / NH]; // the heads of a tile are neighbours, and so are their bytes
    const elem *head = qkv + h * hs;
    int own = threadIdx.x / 32 * PIECE, first = t.n0 + own;
    tile_load(k, head, 3 * C, t.n0, t.n1, hs);
    tile_load(v, dout + h * hs, C, t.n0, t.n1, hs);
    tiles_wait();
    rows_left(q, k + own * ldh, H);
    rows_left(g, v + own * ldh, H);
    int part = threadIdx.x % 4;
    for (int r = 0; r < 2; r++) { // of the lane's rows: D, a quarter first
        int n = first + c_row(r * 2);
        const elem *own_g = v + (own + c_row(r * 2)) * ldh, *own_out = out + (size_t)n * C + h * hs;
        float a[8], b[8];
        if (n < t.n1 && hs % 8 == 0)
            for (int c = part * 8; c < hs; c += 32) {
                load<8>(a, own_g + c);
                load<8>(b, own_out + c);
                for (int x = 0; x < 8; x++) D[r] += a[x] * b[x];
            }
        else if (n < t.n1)
            for (int c = part; c < hs; c += 4) D[r] += to_float(own_g[c]) * to_float(own_out[c]);
        if (n < t.n1) row_lse[r] = lse[(size_t)n * NH + h];
    }
    for (int r = 0; r < 2; r++) { // after both rows' loads
        int n = first + c_row(r * 2);
        D[r] = quad_sum(D[r]);
        if (n < t.n1 && part == 0) delta[(size_t)n * NH + h] = D[r];
    }
    for (int i = 0; i < key_tiles(t); i++) {
        int j0, j1;
        key_tile(t, i, &j0, &j1);
        __syncthreads();
        tile_load(k, head + C, 3 * C, j0, j1, hs);
        tile_load(v, head + 2 * C, 3 * C, j0, j1, hs);
        tiles_wait();
        for (int j = j0; j < j1 && j <= first && first < t.n1; j += PIECE) {
            float s[2][4], dp[2][4];
            products(s, q, k + (j - j0) * ldh, H);
            products(dp, g, v + (j - j0) * ldh, H);
            for (int x = 0; x < 8; x++) { // s becomes ds
                float *z = &s[x / 4][x % 4];
                int key = j + c_col(x), r = x / 2 % 2;
                float ds = scale * __expf(scale * *z - row_lse[r]) * (dp[x / 4][x % 4] - D[r]);
                *z = key < j1 && key <= first + c_row(x) ? ds : 0;
            }
            add_rows(dq, s, k + (j - j0) * ldh, H);
        }
    }
    sums_store(dqkv + h * hs, dq, k, 3 * C, t.n0, t.n1, hs);
}

template <int HS> __global__ void __launch_bounds__(ATTENTION_BLOCK) attention_backward_kv_kernel(
        elem *dqkv, const elem *dout, const float *lse, const float *delta, const elem *qkv, const Tile *tiles,
        int C, int NH, int any_hs) {
    SHARED(elem, q); // k's tile at first, and g v's
    __shared__ float row_lse[TILE], row_D[TILE];
    const int STRIPS = (HS ? HS : HEAD_MAX) / PIECE;
    int hs = HS ? HS : any_hs, H = padded(hs), ldh = H + PAD, h = blockIdx.x % NH;
    elem *g = q + TILE * ldh;
    float dk[STRIPS][2][4] = {}, dv[STRIPS][2][4] = {}, scale = 1 / sqrtf((float)hs);
    Fragment k[STRIPS], v[STRIPS];
    Tile t = tiles[blockIdx.x / NH]; // here the tile's rows are keys, and so are those of s
    const elem *head = qkv + h * hs;
    int own = threadIdx.x / 32 * PIECE, first = t.n0 + own;
    tile_load(q, head + C, 3 * C, t.n0, t.n1, hs);
    tile_load(g, head + 2 * C, 3 * C, t.n0, t.n1, hs);
    tiles_wait();
    rows_left(k, q + own * ldh, H);
    rows_left(v, g + own * ldh, H);
    for (int n0 = t.n0; n0 < t.seen; n0 += TILE) {
        int n1 = min(n0 + TILE, t.seen);
        __syncthreads();
        tile_load(q, head, 3 * C, n0, n1, hs);
        tile_load(g, dout + h * hs, C, n0, n1, hs);
        int r = threadIdx.x;
        if (r < n1 - n0) {
            row_lse[r] = lse[(size_t)(n0 + r) * NH + h];
            row_D[r] = delta[(size_t)(n0 + r) * NH + h];
        }
        tiles_wait();
        for (int n = n0 > first ? n0 : first; n < n1 && first < t.n1; n += PIECE) { // earlier rows do not see them
            float s[2][4], dp[2][4];
            products(s, k, q + (n - n0) * ldh, H);
            products(dp, v, g + (n - n0) * ldh, H);
            for (int x = 0; x < 8; x++) { // s becomes p, dp becomes ds
                float *p = &s[x / 4][x % 4], *ds = &dp[x / 4][x % 4];
                int row = n + c_col(x);
                bool seen = row < n1 && first + c_row(x) <= row;
                float e = __expf(scale * *p - row_lse[row - n0]), d = scale * e * (*ds - row_D[row - n0]);
                *p = seen ? e : 0, *ds = seen ? d : 0;
            }
            add_rows(dv, s, g + (n - n0) * ldh, H);
            add_rows(dk, dp, q + (n - n0) * ldh, H);
        }
    }
    sums_store(dqkv + C + h * hs, dk, q, 3 * C, t.n0, t.n1, hs);
    sums_store(dqkv + 2 * C + h * hs, dv, q, 3 * C, t.n0, t.n1, hs);
}

static void attention_backward(elem *dqkv, float *delta, const elem *dout, const elem *out, const float *lse,
                               const elem *qkv, const Tile *tiles, int n_tiles, int C, int NH) {
    int hs = C / NH, grid = n_tiles * NH;
    LAUNCH_HEAD(hs, attention_backward_q_kernel, grid, ATTENTION_BLOCK, attention_shared(hs),
                dqkv, delta, dout, out, lse, qkv, tiles, C, NH, hs);
    LAUNCH_HEAD(hs, attention_backward_kv_kernel, grid, ATTENTION_BLOCK, attention_shared(hs),
                dqkv, dout, lse, delta, qkv, tiles, C, NH, hs);
}

// The same attention for one new token each, over a list of cache slots.
// out (n,C), q in qkv (n,3C), cache (slots,2C): keys, then values. A warp owns one token's head: 32 slots at a time, a
// lane first owns a slot (its score), then channels (neighbours where HS is known, else every 32nd). Bytes: 4 hs per
// slot and head, mostly from the L2 cache.
template <int HS> __global__ void attention_decode_kernel(elem *out, const elem *qkv, const elem *cache,
                                                          const int *list, const int *at, const int *len, int n,
                                                          int C, int NH) {
    SHARED(float, rows);
    const int OWN = (HS ? HS : HEAD_MAX) / 32; // channels of a lane
    int hs = HS ? HS : C / NH, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int task = blockIdx.x * (blockDim.x / 32) + warp, i = task / NH, h = task % NH;
    if (i >= n) return;
    float *q = rows + warp * hs, o[OWN], top = 0, sum = 0, scale = 1 / sqrtf((float)hs);
    const int *slot = list + at[i];
    for (int c = lane; c < hs; c += 32) q[c] = scale * to_float(qkv[(size_t)i * 3 * C + h * hs + c]);
    for (int c = 0; c < OWN; c++) o[c] = 0;
    __syncwarp();
    for (int j0 = 0; j0 < len[i]; j0 += 32) {
        int keys = min(32, len[i] - j0), mine = lane < keys;
        int s = slot[mine ? j0 + lane : j0]; // others repeat the first slot
        const elem *k = cache + (size_t)s * 2 * C + h * hs;
        float z = 0, a[8];
        if (hs % 8 == 0)
            for (int c = 0; c < hs; c += 8) {
                load<8>(a, k + c);
                for (int x = 0; x < 8; x++) z += q[c + x] * a[x];
            }
        else
            for (int c = 0; c < hs; c++) z += q[c] * to_float(k[c]);
        float most = warp_max(z), now = j0 ? fmaxf(top, most) : most;
        float e = mine ? expf(z - now) : 0, keep = j0 ? expf(top - now) : 0;
        sum = sum * keep + warp_sum(e);
        top = now;
        for (int c = 0; c < OWN; c++) o[c] *= keep;
#pragma unroll 8 // so many loads are on their way at once
        for (int j = 0; j < keys; j++) {
            const elem *v = cache + (size_t)__shfl_sync(FULL, s, j) * 2 * C + C + h * hs;
            float p = __shfl_sync(FULL, e, j), b[OWN];
            if (HS) load<OWN>(b, v + lane * OWN);
            else for (int c = 0; c < OWN; c++) b[c] = c * 32 + lane < hs ? to_float(v[c * 32 + lane]) : 0;
            for (int c = 0; c < OWN; c++) o[c] += p * b[c];
        }
    }
    elem *to = out + (size_t)i * C + h * hs;
    for (int c = 0; c < OWN; c++) o[c] /= sum;
    if (HS) store<OWN>(to + lane * OWN, o);
    else for (int c = 0; c < OWN; c++) if (c * 32 + lane < hs) put(to + c * 32 + lane, o[c]);
}

static void attention_decode(elem *out, const elem *qkv, const elem *cache, const int *list, const int *at,
                             const int *len, int n, int C, int NH) {
    int hs = C / NH;
    LAUNCH_HEAD(hs, attention_decode_kernel, div_up((size_t)n * (size_t)NH, 4), 128, 4 * hs * sizeof(float),
                out, qkv, cache, list, at, len, n, C, NH);
}

// Keys and values of the new tokens into their slots: cache[slot[i]] = qkv[i][C..3C). A block owns a token.
__global__ void cache_write_kernel(elem *cache, const elem *qkv, const int *slot, int C) {
    size_t i = blockIdx.x;
    for (int c = threadIdx.x; c < 2 * C; c += blockDim.x) cache[(size_t)slot[i] * 2 * C + c] = qkv[i * 3 * C + C + c];
}

static void cache_write(elem *cache, const elem *qkv, const int *slot, int n, int C) {
    LAUNCH(cache_write_kernel, n, BLOCK, 0, cache, qkv, slot, C);
}

// ----------------------------------------------------------------------------
// GELU, classifier, scalar head

// GELU, tanh form: out = x/2 (1 + tanh(u)) = x s with s = 1 / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3). Where
// exp overflows, s is 0. A thread owns W elements.
// Bytes: 2 (x) + 2 (out) per element. cuBLASLt's GELU epilogues would save reading x here (not storing it, which the
// backward needs) and in the backward reading and writing dout: 5.0 GB of a step of 22,528 tokens of GPT-2 124M, which
// take an H200 1 ms. But they bind products to the few algorithms that have them, on leading dimensions that are
// multiples of 8. Until both are measured the passes are kept.
inline __device__ float gelu_s(float x) {
    return __fdividef(1, 1 + __expf(x * ((float)(-2 * GELU_S) + (float)(-2 * GELU_S * GELU_A) * (x * x))));
}

template <int W> __global__ void gelu_forward_kernel(elem *out, const elem *x, size_t n) {
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * W;
    if (i >= n) return;
    float a[W];
    load<W>(a, x + i);
    for (int k = 0; k < W; k++) a[k] *= gelu_s(a[k]);
    store<W>(out + i, a);
}

static void gelu_forward(elem *out, const elem *x, int N, int C) {
    size_t n = (size_t)N * (size_t)C;
    int wide = C % 8 == 0; // not n: a layer starts after a planned number of rows, which may be odd
    LAUNCH_WIDE(wide, 8, gelu_forward_kernel, div_up(n, BLOCK * (wide ? 8 : 1)), BLOCK, 0, out, x, n);
}

inline __device__ float gelu_slope(float x) { // s + 2 x du/dx s (1 - s)
    float s = gelu_s(x), t = x * ((float)(2 * GELU_S) + (float)(6 * GELU_S * GELU_A) * (x * x));
    return s + t * (s - s * s);
}

// dx = dout times the slope at x; in place: d is dout, then dx. dbias += sum_N dx: the bias that is part of x.
static void gelu_backward(elem *d, float *dbias, float *part, const elem *x, int N, int C) {
    bias_backward(dbias, part, d, x, N, C);
}

// Classifier: logits = x wte^T, log P(v) = logit_v - log sum exp(logits), for the U predicting rows.
// logits (U,Vp) float, lse (U), logp (P), x (U,C), wte (Vp,C). No probability is stored.
// A block owns a row; a thread keeps max and sum of the logits that it passes. Bytes: 4 per logit.
template <int W> __global__ void classifier_forward_kernel(float *logp, float *lse, const float *logits,
                                                           const int *pred, const int *target, int V, int Vp) {
    __shared__ float room[WARPS];
    const float *z = logits + (size_t)blockIdx.x * Vp;
    const int AHEAD = 4; // loads that a thread asks for before it needs the first
    float top = z[0], sum = 0, a[AHEAD][W];
    for (int v0 = threadIdx.x * W; v0 < V; v0 += AHEAD * BLOCK * W) {
        float now = top;
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            int v = v0 + r * BLOCK * W;
            for (int k = 0; k < W; k++) a[r][k] = -INFINITY; // beyond V: exp makes it 0
            if (v + W <= V) load<W>(a[r], z + v);
            else for (int k = 0; k < W; k++) if (v + k < V) a[r][k] = z[v + k];
        }
#pragma unroll
        for (int r = 0; r < AHEAD; r++) for (int k = 0; k < W; k++) now = fmaxf(now, a[r][k]);
        sum *= expf(top - now);
        top = now;
#pragma unroll
        for (int r = 0; r < AHEAD; r++) for (int k = 0; k < W; k++) sum += expf(a[r][k] - top);
    }
    float most = block_max(top, room);
    sum = block_sum(sum * expf(top - most), room);
    float l = most + logf(sum);
    if (threadIdx.x == 0) lse[blockIdx.x] = l;
    for (int i = pred[blockIdx.x] + threadIdx.x; i < pred[blockIdx.x + 1]; i += BLOCK) logp[i] = z[target[i]] - l;
}

static void classifier_forward(float *logp, float *logits, float *lse, const elem *x, const elem *wte, const int *pred,
                               const int *target, int U, int C, int V, int Vp) {
    for (int u = 0, n; u < U; u += n) {
        n = gemm_rows(U - u, Vp);
        gemm(0, 1, n, Vp, C, x + (size_t)u * C, C, wte, C, 0, logits + (size_t)u * Vp, CUDA_R_32F, Vp, NULL);
    }
    LAUNCH_WIDE(Vp % 4 == 0, 4, classifier_forward_kernel, U, BLOCK, 0, logp, lse, logits, pred, target, V, Vp);
}

// d logP(y)/d logit_v = [v = y] - P(v), so with c_i for each prediction i of the row:
// dlogit_v = sum_i c_i [v = y_i] - (sum_i c_i) P(v). In place over the logits, as elem: a bfloat16 row takes the first
// half of its float row, and a block that goes through the row from the left, reading before it writes, never
// overwrites what it has yet to read. Then dx = dlogits wte, dwte += dlogits^T x.
// c (R): one coefficient per response. A block owns a row. Bytes: 4 + 2 per logit.
template <int W> __global__ void classifier_backward_kernel(float *logits, const float *logp, const float *lse,
                                                            const float *c, const int *pred, const int *target,
                                                            const int *resp, int V, int Vp) {
    const int AHEAD = 4;
    float *z = logits + (size_t)blockIdx.x * Vp, l = lse[blockIdx.x], sum = 0, a[AHEAD][W] = {};
    elem *d = (elem *)z;
    int p0 = pred[blockIdx.x], p1 = pred[blockIdx.x + 1];
    for (int i = p0; i < p1; i++) sum += c[resp[i]];
    for (int v0 = 0; v0 < Vp; v0 += AHEAD * BLOCK * W) {
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            int v = v0 + (r * BLOCK + threadIdx.x) * W;
            if (v < Vp && sum != 0) load<W>(a[r], z + v); // of a response in its place nothing is needed
        }
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            int v = v0 + (r * BLOCK + threadIdx.x) * W;
            for (int k = 0; k < W; k++) a[r][k] = sum != 0 ? -sum * expf(a[r][k] - l) : 0;
            if (v + W > V) for (int k = 0; k < W; k++) if (v + k >= V) a[r][k] = 0;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            int v = v0 + (r * BLOCK + threadIdx.x) * W;
            if (v < Vp) store<W>(d + v, a[r]);
        }
    }
    __syncthreads();
    for (int i = p0 + threadIdx.x; i < p1; i += BLOCK) { // responses that begin with the same token share a target
        float g = -sum * expf(logp[i]);
        int first = 1;
        for (int j = p0; j < p1; j++)
            if (target[j] == target[i]) {
                g += c[resp[j]];
                first &= j >= i;
            }
        if (first) put(d + target[i], g);
    }
}

static void classifier_backward(elem *dx, float *dwte, float *logits, const float *logp, const float *lse,
                                const float *c, const elem *x, const elem *wte, const int *pred, const int *target,
                                const int *resp, int U, int C, int V, int Vp) {
    const elem *d = (const elem *)logits;
    int ld = Vp * (int)(sizeof(float) / sizeof(elem));
    LAUNCH_WIDE(Vp % 4 == 0, 4, classifier_backward_kernel, U, BLOCK, 0, logits, logp, lse, c, pred, target, resp, V,
                Vp);
    for (int u = 0, n; u < U; u += n) {
        n = gemm_rows(U - u, ld);
        const elem *rows = d + (size_t)u * ld;
        gemm(0, 0, n, C, Vp, rows, ld, wte, C, 0, dx + (size_t)u * C, ELEM_TYPE, C, NULL);
        gemm(1, 0, Vp, C, n, rows, ld, x + (size_t)u * C, C, 1, dwte, CUDA_R_32F, C, NULL);
    }
}

// Scalar head of a reward model: out_r = x_r . w + b.   out (R), x (R,C) elem, w (C), b (1). A warp owns a response.
__global__ void head_forward_kernel(float *out, const elem *x, const float *w, const float *b, int R, int C) {
    int r = blockIdx.x * WARPS + threadIdx.x / 32;
    float sum = 0;
    if (r >= R) return;
    for (int i = threadIdx.x % 32; i < C; i += 32) sum += to_float(x[(size_t)r * C + i]) * w[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[r] = sum + b[0];
}

static void head_forward(float *out, const elem *x, const float *w, const float *b, int R, int C) {
    LAUNCH(head_forward_kernel, div_up((size_t)R, WARPS), BLOCK, 0, out, x, w, b, R, C);
}

// dx_r = c_r w, dw += sum_r c_r x_r, db += sum_r c_r. A thread owns a channel, the first one db too.
__global__ void head_backward_kernel(elem *dx, float *dw, float *db, const float *c, const elem *x, const float *w,
                                     int R, int C) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    float sum = 0, bias = 0;
    if (i >= C) return;
    for (int r = 0; r < R; r++) {
        put(dx + (size_t)r * C + i, c[r] * w[i]);
        sum += c[r] * to_float(x[(size_t)r * C + i]);
        bias += c[r];
    }
    dw[i] += sum;
    if (i == 0) db[0] += bias;
}

static void head_backward(elem *dx, float *dw, float *db, const float *c, const elem *x, const float *w, int R, int C) {
    LAUNCH(head_backward_kernel, div_up((size_t)C, BLOCK), BLOCK, 0, dx, dw, db, c, x, w, R, C);
}

// ----------------------------------------------------------------------------
// The objective, on the device: rrhf.h and reward.h say what it is

enum { LOSS_RRHF, LOSS_LOGISTIC, LOSS_PAIRWISE };
// bad, query: a response whose value is not finite, and its query; both counted from 1, 0 = none
typedef struct { Loss loss; int bad; double value; } QueryEnd;
typedef struct { Loss loss; int bad, query; double value, norm; float scale; } StepEnd;

// A batch's queries and rewards on the device. pred: where a query's predictions start
typedef struct { const int *query, *first, *pred, *resp, *resp_len; const float *score; } Queries;

// values (R,3): what the loss sees of each response, p_i, dL/dvalue; coef (R) the last, times scale; end (Q).
// A block, one warp, owns a query; a lane a response (its sum of log P), the first lane the loss. Bound by latency.
__global__ void query_loss_kernel(float *coef, QueryEnd *end, double *value, double *p, double *c, const float *out,
                                  Queries b, int kind, int reward, Objective o, double scale) {
    int g = blockIdx.x, r0 = b.first[g], k = b.first[g + 1] - r0;
    for (int r = r0 + threadIdx.x; r < r0 + k; r += 32) {
        double sum = reward ? (double)out[r] : 0;
        for (int i = b.pred[g]; !reward && i < b.pred[g + 1]; i++) if (b.resp[i] == r) sum += (double)out[i];
        value[r] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        QueryEnd e;
        const int *n = b.resp_len + r0;
        const float *score = b.score + r0;
        e.loss = kind == LOSS_RRHF ? rrhf_loss(&o, k, value + r0, n, score, p + r0, c + r0)
               : kind == LOSS_LOGISTIC ? logistic_loss(&o, k, value + r0, n, score, p + r0, c + r0)
                                       : pairwise_loss(&o, k, value + r0, n, score, p + r0, c + r0);
        e.bad = 0, e.value = 0;
        for (int i = k; i > 0; i--) if (!isfinite(value[r0 + i - 1])) e.bad = i, e.value = value[r0 + i - 1];
        end[g] = e;
    }
    __syncthreads();
    for (int r = r0 + threadIdx.x; r < r0 + k; r += 32) coef[r] = (float)(c[r] * scale);
}

// Adds a micro-batch's losses to the step's, in the order of its queries. One thread.
__global__ void add_losses_kernel(StepEnd *end, const QueryEnd *query, Queries b, int Q, double scale) {
    StepEnd e = *end;
    if (threadIdx.x) return;
    for (int g = 0; g < Q; g++) {
        e.loss.loss += query[g].loss.loss * scale;
        e.loss.rank += query[g].loss.rank * scale;
        e.loss.ft += query[g].loss.ft * scale;
        if (query[g].bad && !e.bad) e.query = b.query[g] + 1, e.bad = query[g].bad, e.value = query[g].value;
    }
    *end = e;
}

// The gradient's norm from its partial sums, and what the update multiplies it by: 0 = leave everything alone. One
// warp.
__global__ void step_end_kernel(StepEnd *end, const double *part, int parts, double clip) {
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += 32) sum += part[i];
    sum = warp_sum(sum);
    if (threadIdx.x) return;
    end->norm = sqrt(sum);
    end->scale = !isfinite(end->norm) || end->bad ? 0 : (float)clip_scale(end->norm, clip);
}

// ----------------------------------------------------------------------------
// Choosing tokens

// top (n, k): the k largest of each row's V logits, in the order of their ids, of equal ones the lower ids; lse (n), if
// wanted, the row's log sum exp. So sampling and beams read back k candidates per row, not V logits.
// A key is a logit's bits, turned so that they sort as unsigned numbers do, and below them the complement of its id: no
// two are equal. The k-th largest is found byte by byte from the top, by counting, among the keys that agree with it so
// far, how often each value comes next. Most logits agree in their upper bits and would all meet in a few counters:
// only keys from `bound` on are counted, the k-th largest of each thread's own largest, which at least k keys reach,
// and mostly few more: these are listed in shared memory, if it holds them. Counts are whole numbers, so that their
// order does not matter.
// A block owns a row. Bytes: 8 per logit; up to 9 times 4 more where the list does not hold them.
inline __device__ uint64_t top_key(float z, int id) {
    unsigned u = __float_as_uint(z + 0.0f); // -0 is 0
    u = u >> 31 ? ~u : u | 0x80000000u;
    return (uint64_t)u << 32 | (0xffffffffu - (unsigned)id);
}

enum { LISTED = 1024 };

inline __device__ uint64_t listed_key(const uint64_t *list, const float *z, int i) {
    return list ? list[i] : top_key(z[i], i);
}

template <int W> __global__ void top_k_kernel(Candidate *top, double *lse, const float *logits, int V, int Vp, int k) {
    __shared__ uint64_t largest[BLOCK], bound, near[LISTED];
    __shared__ float room[WARPS];
    __shared__ int count[256], chosen[2];
    __shared__ uint64_t counts[WARPS];
    const float *z = logits + (size_t)blockIdx.x * Vp;
    int need = k, rank = 0;
    uint64_t prefix = 0, mask = 0, own = 0, found = 0;
    float most = z[0], sum = 0, a[W] = {0};
    for (int v = threadIdx.x * W; v < V; v += BLOCK * W) {
        float now = most;
        load<W>(a, z + v);
        for (int i = 0; i < W; i++) {
            if (v + i >= V) continue;
            uint64_t key = top_key(a[i], v + i);
            now = fmaxf(now, a[i]);
            own = key > own ? key : own;
        }
        if (now > most) sum *= expf(most - now);
        most = now;
        for (int i = 0; i < W; i++) if (v + i < V) sum += expf(a[i] - most);
    }
    if (threadIdx.x == 0) bound = 0;
    largest[threadIdx.x] = own;
    float row_most = block_max(most, room), row_sum = block_sum(sum * expf(most - row_most), room);
    if (lse && threadIdx.x == 0) lse[blockIdx.x] = row_most + log((double)row_sum);
    for (int i = 0; i < BLOCK; i++) rank += largest[i] > own;
    if (own && rank == k - 1) bound = own; // else k is larger than the number of threads: all count
    __syncthreads();
    for (int v0 = 0; v0 < V; v0 += BLOCK * W) { // into the list, in the order of ids
        int v = v0 + threadIdx.x * W, mine = 0;
        if (v < V) load<W>(a, z + v);
        for (int i = 0; i < W; i++) mine += v + i < V && top_key(a[i], v + i) >= bound;
        uint64_t strip, at = found + block_before(mine, &strip, counts);
        found += strip;
        for (int i = 0; i < W; i++) {
            uint64_t key = top_key(a[i], v + i);
            if (v + i >= V || key < bound) continue;
            if (at < LISTED) near[at] = key;
            at++;
        }
    }
    const uint64_t *list = found <= LISTED ? near : NULL;
    int n = list ? (int)found : V;
    for (int shift = 56; shift >= 0; shift -= 8) {
        count[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += BLOCK) {
            uint64_t key = listed_key(list, z, i);
            if (key >= bound && (key & mask) == prefix) atomicAdd(&count[key >> shift & 255], 1);
        }
        __syncthreads();
        int above = 0; // keys whose next byte is larger than threadIdx.x
        for (int i = 255; i > 0; i--) above += i > (int)threadIdx.x ? count[i] : 0;
        if (above < need && above + count[threadIdx.x] >= need) chosen[0] = threadIdx.x, chosen[1] = need - above;
        __syncthreads();
        need = chosen[1];
        prefix |= (uint64_t)chosen[0] << shift;
        mask |= (uint64_t)255 << shift;
        if (count[chosen[0]] == need) break; // all keys that begin like this
        __syncthreads();
    }
    found = 0;
    for (int i0 = 0; i0 < n; i0 += BLOCK) {
        int i = i0 + threadIdx.x;
        uint64_t key = i < n ? listed_key(list, z, i) : 0, strip;
        int taken = i < n && key >= bound && (key & mask) >= prefix;
        uint64_t at = found + block_before(taken, &strip, counts);
        found += strip;
        if (!taken) continue;
        int id = (int)(0xffffffffu - (unsigned)key);
        Candidate c = {z[id], id};
        top[(size_t)blockIdx.x * k + at] = c;
    }
}

static void top_k(Candidate *top, double *lse, const float *logits, int n, int V, int Vp, int k) {
    LAUNCH_WIDE(Vp % 4 == 0, 4, top_k_kernel, n, BLOCK, 0, top, lse, logits, V, Vp, k);
}

// Draws, as sampler.h defines them. A row is n numbers, STEP floats apart: all logits (1), or the logits of candidates
// (2), which are in the order of their ids, too.

// First, once a row: logits become weights, in place, and weights outside of the top_p set become 0. total (rows): the
// units of those that stay. The least weight that stays is found two bits at a time from the top: weights are not
// negative, so their bits sort as they do. Of those that equal it the last ones may have to go.
// A block owns a row. Bytes: 12 per number; with top_p < 1 16 times 4 more.
template <int STEP> __global__ void draw_weights_kernel(float *rows, uint64_t *total, int n, size_t ld,
                                                        double temperature, double top_p) {
    __shared__ float room[WARPS];
    __shared__ uint64_t counts[WARPS];
    float *z = rows + blockIdx.x * ld, most = z[0];
    uint64_t units = 0;
    for (int i = threadIdx.x; i < n; i += BLOCK) most = fmaxf(most, z[i * STEP]);
    most = block_max(most, room);
    for (int i = threadIdx.x; i < n; i += BLOCK) {
        z[i * STEP] = draw_weight(z[i * STEP], most, temperature);
        units += draw_units(z[i * STEP]);
    }
    uint64_t kept = block_sum(units, counts), enough = draw_enough(kept, top_p), seen = 0;
    unsigned bits = 0;
    for (int shift = 28; top_p < 1 && shift >= 0; shift -= 2) { // no weight is larger than 1, whose first bits are 00
        uint64_t from[4] = {0, 0, 0, 0}; // units of the weights from bits | x << shift on
        for (int i = threadIdx.x; i < n; i += BLOCK) {
            uint64_t own = draw_units(z[i * STEP]);
            for (unsigned x = 1; x < 4; x++) from[x] += z[i * STEP] >= __uint_as_float(bits | x << shift) ? own : 0;
        }
        for (unsigned x = 1; x < 4; x++) from[x] = block_sum(from[x], counts);
        for (unsigned x = 3; x > 0; x--) {
            if (from[x] < enough) continue;
            bits |= x << shift, kept = from[x];
            break;
        }
    }
    float least = __uint_as_float(bits);
    uint64_t equal = 0, spare = 0; // of those that equal it: how many there are, how many may go
    if (top_p < 1 && kept > enough) spare = (kept - enough) / draw_units(least);
    for (int i = threadIdx.x; spare && i < n; i += BLOCK) equal += z[i * STEP] == least;
    if (spare) equal = block_sum(equal, counts);
    for (int i0 = 0; top_p < 1 && i0 < n; i0 += BLOCK) {
        int i = i0 + threadIdx.x, same = i < n && z[i * STEP] == least;
        uint64_t before = 0, strip = 0;
        if (spare) before = seen + block_before(same, &strip, counts);
        seen += strip;
        if (i < n && (z[i * STEP] < least || (same && spare && before >= equal - spare))) z[i * STEP] = 0;
    }
    if (threadIdx.x == 0) total[blockIdx.x] = kept - spare * draw_units(least);
}

typedef struct { double u; int row; } DrawFrom;

template <int STEP> __device__ int draw_id(const float *z, int i) {
    return STEP == 1 ? i : ((const Candidate *)z)[i].id;
}

// Then, once a sequence: token[i] is where u falls in its row's weights. A block owns a sequence and goes through the
// row from the left, a thread with PER neighbours at a time. Bytes: 4 per number, up to where it falls.
template <int STEP> __global__ void draw_kernel(int *token, const float *rows, const uint64_t *total,
                                                const DrawFrom *from, int n, size_t ld) {
    __shared__ uint64_t counts[WARPS];
    const int PER = 4;
    DrawFrom own = from[blockIdx.x];
    const float *z = rows + own.row * ld;
    uint64_t all = total[own.row], wanted = draw_before(all, own.u), passed = 0;
    for (int i0 = 0; i0 < n; i0 += BLOCK * PER) {
        uint64_t units[PER], mine = 0, strip;
        int i = i0 + threadIdx.x * PER;
        for (int k = 0; k < PER; k++) mine += units[k] = i + k < n ? draw_units(z[(i + k) * STEP]) : 0;
        uint64_t before = passed + block_before(mine, &strip, counts);
        for (int k = 0; k < PER; k++) {
            if (before <= wanted && wanted < before + units[k]) token[blockIdx.x] = draw_id<STEP>(z, i + k);
            before += units[k];
        }
        passed += strip;
        if (passed > wanted) return;
    }
    if (threadIdx.x == 0) token[blockIdx.x] = all ? draw_id<STEP>(z, n - 1) : -1; // -1: no weight is a number
}

// token (n): from `rows` rows of `width` numbers, ld floats apart, which are spent.
template <int STEP> static void draw_tokens(int *token, float *z, uint64_t *total, const DrawFrom *from, int n,
                                            int rows, int width, size_t ld, Draw how) {
    double temperature = how.temperature > 0 ? how.temperature : 1; // 0 chooses among one
    LAUNCH(draw_weights_kernel<STEP>, rows, BLOCK, 0, z, total, width, ld, temperature, how.top_p);
    LAUNCH(draw_kernel<STEP>, n, BLOCK, 0, token, z, total, from, width, ld);
}

// ----------------------------------------------------------------------------
// GPT-2

// X(type, name, layers, rows, columns): what the forward saves for the backward. S = c.L slices when training; a model
// that only runs forward keeps one. Of every block:
#define SAVED(X)                                                                                \
    X(float, x,      S, N, c.C)        /* residual stream before each block */                  \
    X(elem,  ln1,    S, N, c.C)                                                                 \
    X(float, mean1,  S, N, 1)                                                                   \
    X(float, rstd1,  S, N, 1)                                                                   \
    X(elem,  qkv,    S, N, 3 * c.C)                                                             \
    X(elem,  att,    S, N, c.C)                                                                 \
    X(float, lse,    S, N, c.NH)                                                                \
    X(float, mid,    S, N, c.C)        /* residual stream after attention */                    \
    X(elem,  ln2,    S, N, c.C)                                                                 \
    X(float, mean2,  S, N, 1)                                                                   \
    X(float, rstd2,  S, N, 1)                                                                   \
    X(elem,  fc,     S, N, 4 * c.C)                                                             \
    X(elem,  gelu,   S, N, 4 * c.C)
// and once:
#define SAVED_READ(X)                                                                           \
    X(elem,  branch, 1, N, c.C)        /* what half a block adds to the residual stream */      \
    X(float, read,   1, U, c.C)        /* the rows that are read */                             \
    X(elem,  lnf,    1, U, c.C)                                                                 \
    X(float, meanf,  1, U, 1)                                                                   \
    X(float, rstdf,  1, U, 1)                                                                   \
    X(float, logits, !c.reward, U, c.Vp) /* then their gradient */                              \
    X(float, lsef,   1, U, 1)                                                                   \
    X(float, out,    1, N, 1)          /* log P of each prediction, or each response's reward */
// What the backward needs besides.
#define GRADIENT_ROOM(X)                                                                        \
    X(float, dx,     1, N, c.C)        /* of the residual stream */                             \
    X(elem,  half,   HALF, N, c.C)     /* the same, as elem */                                  \
    X(elem,  dc,     1, N, c.C)        /* gradients with C, 3C and 4C columns */                \
    X(elem,  d3c,    1, N, 3 * c.C)                                                             \
    X(elem,  d4c,    1, N, 4 * c.C)                                                             \
    X(elem,  dlnf,   1, U, c.C)                                                                 \
    X(float, delta,  1, N, c.NH)                                                                \
    X(float, coef,   1, N, 1)          /* c_i */                                                \
    X(double, values, 3, N, 1)         /* what the loss sees of each response, p_i, dL/dvalue */ \
    X(QueryEnd, ends, 1, N, 1)         /* each query's losses */                                \
    X(float, part,   1, PARTS, 6 * c.C)

#define X(name, layers, rows, cols, kind) elem *name;
typedef struct { GPT2_PARAMS(X) } Weights; // the parameters as elem, for the matrix products
#undef X

enum { NORM_BLOCKS = 1024 };

struct GPT2 {
    Config c;
    size_t n_params;
    Params w, dw;                     // float32 parameters and gradients
    Weights h;                        // the same parameters as elem
    float *params, *grads, *m, *v;    // each (n_params); the last three only for training
    elem *copies;                     // (n_params); params themselves in the float32 build
    double *norm, *norm_host;         // (NORM_BLOCKS)
#define X(type, name, layers, rows, cols) type *name;
    SAVED(X)
    SAVED_READ(X)
    GRADIENT_ROOM(X)
#undef X
    char *activations;                // one allocation for all of the above
    int N, U;                         // planned for
    float *out_host, *coef_host;      // (N) pinned
    int *stage_both[2], *stage_host;  // a batch's integers, pinned: one batch is filled while the other travels
    int *stage, *count, turn;         // the same on the device; room for sorting; which of the two
    cudaEvent_t sent[2];              // when each had left
    StepEnd *end, *end_host;          // the step so far, and pinned
    Queries queries;                  // the batch's, on the device
    size_t stage_size, staged;        // integers
    const Batch *sent_for;            // the batch that the stage holds
    const int *token, *pos, *rows, *pred, *target, *resp; // the batch, on the device
    const Tile *tiles;
    int n_tiles;
    Sorted by_token, by_pos;
    elem *cache;                      // (L, slots, 2C)
    char *dec;                        // decoding's activations
    float *dec_logits;                // (n_rows,Vp)
    DrawFrom *draws, *draws_host;     // (dec_rows), pinned
    uint64_t *draw_total;             // (dec_rows)
    int *drawn, *drawn_host;          // (dec_rows), pinned
    Candidate *top, *top_host;        // (n_rows, k), pinned
    double *top_lse, *top_lse_host;   // (dec_rows), pinned
    size_t top_size;                  // candidates
    int *dec_ints, *dec_ints_host;    // (dec_n, T + 8)
    int dec_n, dec_rows, dec_slots;
};

static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; } // tensors start where the widest access may

static size_t activation_bytes(Config c, int training, int N, int U) {
    size_t n = 0;
    int S = training ? c.L : 1;
#define X(type, name, layers, rows, cols) \
    n += rounded(sizeof(type) * (size_t)(layers) * (size_t)(rows) * (size_t)(cols));
    SAVED(X)
    SAVED_READ(X)
    if (training) { GRADIENT_ROOM(X) }
#undef X
    return n;
}

static size_t parameter_bytes(Config c, int training) {
    return gpt2_count(c) * (sizeof(float) * (training ? 4 : 1) + (HALF ? sizeof(elem) : 0));
}

size_t gpt2_bytes(Config c, int training, int N, int U) {
    return parameter_bytes(c, training) + activation_bytes(c, training, N, U) + WORKSPACE;
}

size_t gpt2_slot_bytes(Config c) { return 2 * sizeof(elem) * (size_t)c.L * (size_t)c.C; }

// Enough to fill a data-centre GPU, and no more than a third of this one's memory: all of it, not what is free now, so
// that a resumed run chooses the same.
int gpt2_tokens(const GPT2 *m) {
    enum { MOST = 32768 };
    size_t token = activation_bytes(m->c, m->grads != NULL, TOKENS_LEAST, TOKENS_LEAST) / TOKENS_LEAST;
    size_t fit = device.prop.totalGlobalMem / 3 / token;
    return fit < TOKENS_LEAST ? TOKENS_LEAST : fit > MOST ? MOST : (int)fit;
}

// Dies where the program has no code for this GPU.
static void code_check(void) {
    cudaFuncAttributes any;
    cudaError_t e = cudaFuncGetAttributes(&any, (const void *)add_partials_kernel);
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction ||
        e == cudaErrorUnsupportedPtxVersion)
        die("GPU: this program was not built for %s, compute capability %d.%d (%s); make -B train_rrhfcu on a machine "
            "that has one", device.prop.name, device.prop.major, device.prop.minor, cudaGetErrorString(e));
    CHECK_CUDA(e);
}

enum { STATIC_SHARED = 1024 }; // bytes, more than the attention kernels declare

// Kernels that need more shared memory than a block gets unasked. Sizes that this path cannot hold are refused here.
static void shared_memory(Config c) {
    int hs = c.C / c.NH, limit = (int)device.prop.sharedMemPerBlockOptin;
    int most = c.C % 4 ? CHANNELS_MAX / 4 : CHANNELS_MAX; // layernorm_threads are CHANNELS_MAX / 4 at most
    size_t room = attention_shared(hs);
    if (c.C > most || hs > HEAD_MAX || room + STATIC_SHARED > (size_t)limit)
        die("GPU: %d channels in heads of %d: up to %d, in heads up to %d and as %s's shared memory allows (%zu of %d "
            "bytes); ./train_rrhf does it on the CPU", c.C, hs, most, HEAD_MAX, device.prop.name, room, limit);
    // For all models: one with smaller heads, built later, must not take away what this one needs.
#define MORE_(kernel) \
    CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit - STATIC_SHARED));
#define MORE_SHARED(kernel) MORE_(kernel<0>) MORE_(kernel<64>)
    MORE_SHARED(attention_forward_kernel)
    MORE_SHARED(attention_backward_q_kernel)
    MORE_SHARED(attention_backward_kv_kernel)
#undef MORE_SHARED
#undef MORE_
}

static float *param_alloc(size_t n) {
    return (float *)device_alloc(n * sizeof(float), "parameters, gradients and AdamW's moments",
                                 "use a smaller model, or a GPU with more memory");
}

GPT2 *gpt2_build(Config c, const float *params, int training) {
    device_start();
    code_check();
    shared_memory(c);
    GPT2 *m = (GPT2 *)xalloc(1, sizeof *m);
    size_t n = gpt2_count(c);
    m->c = c;
    m->n_params = n;
    memory_note(parameter_bytes(c, training), training ? "parameters, gradients and AdamW's moments" : "parameters");
    m->params = param_alloc(n);
    m->w = gpt2_params(c, m->params);
    m->copies = (elem *)(void *)m->params;
    if (HALF) m->copies = (elem *)device_alloc(n * sizeof(elem), "parameters", "use a smaller model");
    Tensor t[N_TENSORS];
    int i = 0;
    gpt2_tensors(c, t);
#define X(name, layers, rows, cols, kind) m->h.name = m->copies + t[i++].at;
    GPT2_PARAMS(X)
#undef X
    if (training) {
        float **all[3] = {&m->grads, &m->m, &m->v};
        for (int k = 0; k < 3; k++) {
            *all[k] = param_alloc(n);
            CHECK_CUDA(cudaMemsetAsync(*all[k], 0, n * sizeof(float), device.stream));
        }
        m->dw = gpt2_params(c, m->grads);
        m->norm = (double *)device_alloc(NORM_BLOCKS * sizeof(double), "sums", "use a smaller model");
        m->norm_host = (double *)pinned_alloc(NORM_BLOCKS * sizeof(double), "sums", "use a smaller model");
        m->end = (StepEnd *)device_alloc(sizeof *m->end, "sums", "use a smaller model");
        m->end_host = (StepEnd *)pinned_alloc(sizeof *m->end_host, "sums", "use a smaller model");
    }
    for (int k = 0; k < 2; k++) CHECK_CUDA(cudaEventCreate(&m->sent[k]));
    if (params) gpt2_set(m, COPY_PARAMS, params);
    else {
        CHECK_CUDA(cudaMemsetAsync(m->params, 0, n * sizeof(float), device.stream));
        CHECK_CUDA(cudaMemsetAsync(m->copies, 0, n * sizeof(elem), device.stream));
    }
    return m;
}

void gpt2_free(GPT2 *m) {
    if (!m) return;
    gpt2_unplan(m);
    void *on_device[] = {m->params, HALF ? m->copies : NULL, m->grads, m->m, m->v, m->norm, m->end, m->cache,
                         m->dec, m->dec_logits, m->dec_ints, m->top, m->top_lse, m->draws, m->draw_total, m->drawn};
    void *pinned[] = {m->norm_host, m->end_host, m->dec_ints_host, m->top_host, m->top_lse_host, m->draws_host,
                      m->drawn_host};
    for (size_t i = 0; i < sizeof on_device / sizeof *on_device; i++) device_free(on_device[i]);
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++) pinned_free(pinned[i]);
    for (int i = 0; i < 2; i++) CHECK_CUDA(cudaEventDestroy(m->sent[i]));
    free(m->count);
    free(m);
}

Config gpt2_config(const GPT2 *m) { return m->c; }

static float *copy_which(GPT2 *m, enum Copy what) {
    float *all[] = {m->params, m->grads, m->m, m->v};
    return all[what];
}

void gpt2_get_part(GPT2 *m, enum Copy what, size_t at, size_t n, float *host) {
    to_host(host, copy_which(m, what) + at, n * sizeof *host);
    device_wait();
}

// to[i] = from[i], rounded. A thread owns an element.
__global__ void copy_params_kernel(elem *to, const float *from, size_t n) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) put(to + i, from[i]);
}

void gpt2_set_part(GPT2 *m, enum Copy what, size_t at, size_t n, const float *host) {
    to_device(copy_which(m, what) + at, host, n * sizeof *host);
    if (HALF && what == COPY_PARAMS)
        LAUNCH(copy_params_kernel, div_up(n, BLOCK), BLOCK, 0, m->copies + at, m->params + at, n);
    device_wait(); // host may go away
}

void gpt2_unplan(GPT2 *m) {
    device_wait();
    device_free(m->activations), device_free(m->stage);
    pinned_free(m->stage_both[0]), pinned_free(m->stage_both[1]), pinned_free(m->out_host), pinned_free(m->coef_host);
    m->activations = NULL;
    m->stage = m->stage_both[0] = m->stage_both[1] = NULL;
    m->out_host = m->coef_host = NULL;
    m->sent_for = NULL; // the stage is made anew
    m->N = m->U = 0;
}

// Everything that batches up to N tokens and U read rows need, so that no step allocates.
void gpt2_plan(GPT2 *m, int N, int U) {
    if (N <= m->N && U <= m->U) return;
    Config c = m->c;
    const char *remedy = "lower --micro-batch";
    char what[64];
    int training = m->grads != NULL, S = training ? c.L : 1;
    N = N > m->N ? N : m->N;
    U = U > m->U ? U : m->U;
    gpt2_unplan(m);
    m->N = N, m->U = U;
    size_t bytes = activation_bytes(c, training, N, U);
    snprintf(what, sizeof what, "the activations of %d tokens at once", N);
    memory_note(bytes, what);
    char *p = m->activations = (char *)device_alloc(bytes, what, remedy);
#define X(type, name, layers, rows, cols)                                           \
    m->name = (type *)(void *)p;                                                    \
    p += rounded(sizeof(type) * (size_t)(layers) * (size_t)(rows) * (size_t)(cols));
    SAVED(X)
    SAVED_READ(X)
    if (training) { GRADIENT_ROOM(X) }
#undef X
    if (!HALF) m->half = (elem *)(void *)m->dx;
    // N each, at most: token, pos, rows, pred, target, resp; order, start and key of tokens and of positions; query,
    // first, the queries' pred, resp_len, score; a tile. And the one element more that lists of beginnings end with
    m->stage_size = (size_t)N * (6 + 2 * 3 + 5 + sizeof(Tile) / sizeof(int)) + 16;
    for (int i = 0; i < 2; i++)
        m->stage_both[i] = (int *)pinned_alloc(m->stage_size * sizeof(int), "a batch's numbers", remedy);
    m->stage = (int *)device_alloc(m->stage_size * sizeof(int), "a batch's numbers", remedy);
    m->out_host = (float *)pinned_alloc((size_t)N * sizeof(float), "log-probabilities", remedy);
    m->coef_host = (float *)pinned_alloc((size_t)N * sizeof(float), "coefficients", remedy);
    if (!m->count) m->count = (int *)xalloc((size_t)(c.V > c.T ? c.V : c.T), sizeof(int));
}

// ----------------------------------------------------------------------------
// A batch on its way to the device: packed in pinned memory, sent in one copy

// Room for n integers in the stage: returns where to write them, and in *at where they will be on the device.
static int *stage_room(GPT2 *m, const int **at, size_t n) {
    int *host = m->stage_host + m->staged;
    *at = m->stage + m->staged;
    m->staged += n;
    if (m->staged > m->stage_size)
        die("batch: %zu integers, planned for %zu; a bug: please report it", m->staged, m->stage_size);
    return host;
}

static const int *stage_copy(GPT2 *m, const int *from, int n) {
    const int *at;
    memcpy(stage_room(m, &at, (size_t)n), from, (size_t)n * sizeof(int));
    return at;
}

// Rows 0 .. n-1 sorted by of[row] (< n_keys), equal ones in their order: embedding_backward's lists.
static Sorted stage_sorted(GPT2 *m, const int *of, int n, int n_keys) {
    Sorted s;
    int *order = stage_room(m, &s.order, (size_t)n), *count = m->count, at = 0;
    memset(count, 0, (size_t)n_keys * sizeof(int));
    s.n = 0;
    for (int i = 0; i < n; i++) s.n += count[of[i]]++ == 0;
    int *start = stage_room(m, &s.start, (size_t)s.n + 1), *key = stage_room(m, &s.key, (size_t)s.n);
    for (int k = 0, e = 0; k < n_keys; k++) {
        if (!count[k]) continue;
        key[e] = k;
        start[e++] = at;
        at += count[k];
        count[k] = at - count[k]; // now: where the key's next row goes
    }
    start[s.n] = n;
    for (int i = 0; i < n; i++) order[count[of[i]]++] = i;
    return s;
}

// Attention's tiles over the rows [n0, n1) of a query or a response, which see [a0, a1) and themselves.
static void stage_run(GPT2 *m, int n0, int n1, int a0, int a1, int seen) {
    for (int n = n0; n < n1; n += TILE) {
        const int *at;
        Tile t = {n, min_int(n + TILE, n1), a0, a1, n0, seen};
        memcpy(stage_room(m, &at, sizeof t / sizeof(int)), &t, sizeof t);
        m->n_tiles++;
    }
}

static void batch_send(GPT2 *m, const Batch *b) {
    const int *tiles;
    gpt2_plan(m, b->N, m->c.reward ? b->R : b->U);
    m->sent_for = b;
    m->turn ^= 1;
    m->stage_host = m->stage_both[m->turn];
    CHECK_CUDA(cudaEventSynchronize(m->sent[m->turn])); // the batch before the last has left: no wait in practice
    m->staged = 0;
    m->n_tiles = 0;
    stage_room(m, &tiles, 0);
    m->tiles = (const Tile *)(const void *)tiles;
    for (int g = 0; g < b->Q; g++) {
        int x0 = b->group[g], r0 = b->first[g], x1 = b->last[r0] - b->resp_len[r0] + 1;
        stage_run(m, x0, x1, x0, x0, b->group[g + 1]);
        for (int r = r0; r < b->first[g + 1]; r++) {
            int end = b->last[r] + 1;
            stage_run(m, end - b->resp_len[r], end, x0, x1, end);
        }
    }
    m->token = stage_copy(m, b->token, b->N);
    m->pos = stage_copy(m, b->pos, b->N);
    m->rows = m->c.reward ? stage_copy(m, b->last, b->R) : stage_copy(m, b->row, b->U);
    m->pred = stage_copy(m, b->pred, b->U + 1);
    m->target = stage_copy(m, b->target, b->P);
    m->resp = stage_copy(m, b->resp, b->P);
    if (m->grads) {
        m->by_token = stage_sorted(m, b->token, b->N, m->c.V);
        m->by_pos = stage_sorted(m, b->pos, b->N, m->c.T);
        int *at = stage_room(m, &m->queries.pred, (size_t)b->Q + 1); // a response has as many predictions as tokens
        at[0] = 0;
        for (int g = 0; g < b->Q; g++) {
            at[g + 1] = at[g];
            for (int r = b->first[g]; r < b->first[g + 1]; r++) at[g + 1] += b->resp_len[r];
        }
        m->queries.query = stage_copy(m, b->query, b->Q);
        m->queries.first = stage_copy(m, b->first, b->Q + 1);
        m->queries.resp_len = stage_copy(m, b->resp_len, b->R);
        m->queries.score = (const float *)(const void *)stage_copy(m, (const int *)(const void *)b->score, b->R);
        m->queries.resp = m->resp;
    }
    to_device(m->stage, m->stage_host, m->staged * sizeof(int));
    CHECK_CUDA(cudaEventRecord(m->sent[m->turn], device.stream));
}

// ----------------------------------------------------------------------------
// Forward and backward

// Block l's slices of what is saved, and of the parameters as elem (block_params in model.h has them as float).
#define X(type, name, layers, rows, cols) type *name;
typedef struct { SAVED(X) } Block;
#undef X
static Block block_saved(const GPT2 *m, int l) {
    Config c = m->c;
    size_t slice = m->grads ? (size_t)l : 0, N = (size_t)m->N;
    Block s;
#define X(type, name, layers, rows, cols) s.name = m->name + slice * (rows) * (size_t)(cols);
    SAVED(X)
#undef X
    return s;
}

static Weights block_weights(Config c, Weights h, int l) {
#define X(name, layers, rows, cols, kind) if ((layers) > 1) h.name += (size_t)l * (size_t)(rows) * (size_t)(cols);
    GPT2_PARAMS(X)
#undef X
    return h;
}

// One block of the transformer, forward: x -> x + attention(ln1(x)) -> that + mlp(ln2(that)). A block's last product is
// added by the LayerNorm that follows: `from` is the residual stream without the block before's, `branch` that block's
// (NULL for the first block), and this block's own is left in m->branch.
static void block_forward(GPT2 *m, int N, int l, const float *from, const elem *branch) {
    Params w = block_params(m->c, m->w, l, 1);
    Weights h = block_weights(m->c, m->h, l);
    Block s = block_saved(m, l);
    int C = m->c.C, NH = m->c.NH;
    layernorm_forward(s.ln1, s.mean1, s.rstd1, branch ? s.x : NULL, from, branch, NULL, w.ln1w, w.ln1b, N, C);
    matmul_forward(s.qkv, s.ln1, h.qkvw, h.qkvb, N, C, 3 * C);
    attention_forward(s.att, s.lse, s.qkv, m->tiles, m->n_tiles, C, NH);
    matmul_forward(m->branch, s.att, h.attprojw, h.attprojb, N, C, C);
    layernorm_forward(s.ln2, s.mean2, s.rstd2, s.mid, s.x, m->branch, NULL, w.ln2w, w.ln2b, N, C);
    matmul_forward(s.fc, s.ln2, h.fcw, h.fcb, N, C, 4 * C);
    gelu_forward(s.gelu, s.fc, N, 4 * C);
    matmul_forward(m->branch, s.gelu, h.fcprojw, h.fcprojb, N, 4 * C, C);
}

// The same block backward; m->dx (and m->half) is the gradient of its output, then of its input.
static void block_backward(GPT2 *m, int N, int l) {
    Params w = block_params(m->c, m->w, l, 1), d = block_params(m->c, m->dw, l, 1);
    Weights h = block_weights(m->c, m->h, l);
    Block s = block_saved(m, l);
    int C = m->c.C, NH = m->c.NH;
    float *dx = m->dx, *part = m->part;
    elem *half = HALF ? m->half : NULL, *dc = m->dc, *dqkv = m->d3c, *dfc = m->d4c;
    matmul_backward(dfc, d.fcprojw, NULL, part, m->half, s.gelu, h.fcprojw, N, 4 * C, C);
    gelu_backward(dfc, d.fcb, part, s.fc, N, 4 * C);
    matmul_backward(dc, d.fcw, NULL, part, dfc, s.ln2, h.fcw, N, C, 4 * C);
    layernorm_backward(dx, half, d.ln2w, d.ln2b, d.attprojb, part, dc, s.mid, NULL, w.ln2w, s.mean2, s.rstd2, N, C);
    matmul_backward(dc, d.attprojw, NULL, part, m->half, s.att, h.attprojw, N, C, C);
    attention_backward(dqkv, m->delta, dc, s.att, s.lse, s.qkv, m->tiles, m->n_tiles, C, NH);
    matmul_backward(dc, d.qkvw, d.qkvb, part, dqkv, s.ln1, h.qkvw, N, C, 3 * C);
    float *before = l ? block_params(m->c, m->dw, l - 1, 1).fcprojb : NULL;
    layernorm_backward(dx, half, d.ln1w, d.ln1b, before, part, dc, s.x, NULL, w.ln1w, s.mean1, s.rstd1, N, C);
}

// Of the batch that was sent; leaves the outputs in m->out.
static void forward(GPT2 *m, const Batch *b) {
    Config c = m->c;
    int U = c.reward ? b->R : b->U;
    embedding_forward(m->x, m->token, m->pos, m->w.wte, m->w.wpe, b->N, c.C);
    for (int l = 0; l < c.L; l++) block_forward(m, b->N, l, l ? block_saved(m, l - 1).mid : m->x, l ? m->branch : NULL);
    layernorm_forward(m->lnf, m->meanf, m->rstdf, m->read, block_saved(m, c.L - 1).mid, m->branch, m->rows,
                      m->w.lnfw, m->w.lnfb, U, c.C);
    if (c.reward) head_forward(m->out, m->lnf, m->w.rewardw, m->w.rewardb, U, c.C);
    else classifier_forward(m->out, m->logits, m->lsef, m->lnf, m->h.wte, m->pred, m->target, U, c.C, c.V, c.Vp);
}

void gpt2_forward(GPT2 *m, const Batch *b, real *out) {
    int n_out = m->c.reward ? b->R : b->P;
    batch_send(m, b);
    forward(m, b);
    to_host(m->out_host, m->out, (size_t)n_out * sizeof(float));
    device_wait();
    for (int i = 0; i < n_out; i++) out[i] = (real)m->out_host[i];
}

// With the coefficients in m->coef.
static void backward(GPT2 *m, const Batch *b) {
    Config c = m->c;
    int U = c.reward ? b->R : b->U;
    size_t NC = (size_t)b->N * (size_t)c.C;
    if (c.reward) head_backward(m->dlnf, m->dw.rewardw, m->dw.rewardb, m->coef, m->lnf, m->w.rewardw, U, c.C);
    else classifier_backward(m->dlnf, m->dw.wte, m->logits, m->out, m->lsef, m->coef, m->lnf, m->h.wte, m->pred,
                             m->target, m->resp, U, c.C, c.V, c.Vp);
    // Rows that are not read have no gradient.
    CHECK_CUDA(cudaMemsetAsync(m->dx, 0, NC * sizeof(float), device.stream));
    if (HALF) CHECK_CUDA(cudaMemsetAsync(m->half, 0, NC * sizeof(elem), device.stream));
    layernorm_backward(m->dx, HALF ? m->half : NULL, m->dw.lnfw, m->dw.lnfb,
                       block_params(c, m->dw, c.L - 1, 1).fcprojb, m->part, m->dlnf, m->read, m->rows,
                       m->w.lnfw, m->meanf, m->rstdf, U, c.C);
    for (int l = c.L - 1; l >= 0; l--) block_backward(m, b->N, l);
    embedding_backward(m->dw.wte, m->dw.wpe, m->dx, m->by_token, m->by_pos, c.C);
}

void gpt2_backward(GPT2 *m, const Batch *b, const real *coef) {
    for (int i = 0; i < b->R; i++) m->coef_host[i] = (float)coef[i];
    to_device(m->coef, m->coef_host, (size_t)b->R * sizeof(float));
    backward(m, b);
}

// The losses of a batch and its coefficients, from m->out into m->coef and m->ends.
static void batch_loss(GPT2 *m, int Q, QueryLoss loss, Objective o, double scale) {
    int kind = loss == rrhf_loss ? LOSS_RRHF : loss == logistic_loss ? LOSS_LOGISTIC : LOSS_PAIRWISE;
    LAUNCH(query_loss_kernel, Q, 32, 0, m->coef, m->ends, m->values, m->values + m->N, m->values + 2 * (size_t)m->N,
           m->out, m->queries, kind, m->c.reward, o, scale);
}

void gpt2_step(GPT2 *m, const Train *t, StepRoom *s, const Ranked *d, const int *queries, int n) {
    double scale = 1.0 / s->queries;
    if (!s->ahead || m->sent_for != &s->b) { // not ahead, or another batch has come between
        batch_pack(&s->b, d, queries, n);
        batch_send(m, &s->b);
    }
    forward(m, &s->b);
    batch_loss(m, n, t->loss, t->objective, scale);
    LAUNCH(add_losses_kernel, 1, 32, 0, m->end, m->ends, m->queries, n, scale);
    backward(m, &s->b);
    s->ahead = s->n_next > 0;
    if (!s->ahead) return;
    batch_pack(&s->b, d, s->next, s->n_next); // all of the above is only asked for: the device is far behind
    batch_send(m, &s->b);
}

// ----------------------------------------------------------------------------
// Decoding over the key/value cache

// X(type, name, columns): per token
#define DECODE_ROOM(X)                                                                         \
    X(float, x, c.C) X(elem, norm, c.C) X(elem, att, c.C) X(elem, branch, c.C) X(elem, qkv, 3 * c.C)  \
    X(elem, fc, 4 * c.C)

void gpt2_decode_plan(GPT2 *m, int n, int n_rows, int slots) {
    Config c = m->c;
    const char *remedy = "lower --num-return or --max-new-tokens";
    size_t bytes = 0, ints = (size_t)n * ((size_t)c.T + 8), logits = (size_t)n_rows * (size_t)c.Vp * sizeof(float);
    size_t cache = (size_t)c.L * (size_t)slots * 2 * (size_t)c.C * sizeof(elem);
    device_wait();
#define X(type, name, cols) bytes += rounded(sizeof(type) * (size_t)n * (size_t)(cols));
    DECODE_ROOM(X)
#undef X
    memory_note((n > m->dec_n ? bytes + ints * sizeof(int) : 0) + (n_rows > m->dec_rows ? logits : 0) +
                (slots > m->dec_slots ? cache : 0), "decoding: activations, logits and the key/value cache");
    if (n > m->dec_n) {
        device_free(m->dec), device_free(m->dec_ints), pinned_free(m->dec_ints_host);
        m->dec = (char *)device_alloc(bytes, "decoding's activations", remedy);
        m->dec_ints = (int *)device_alloc(ints * sizeof(int), "decoding's lists", remedy);
        m->dec_ints_host = (int *)pinned_alloc(ints * sizeof(int), "decoding's lists", remedy);
        m->dec_n = n;
    }
    if (n_rows > m->dec_rows) {
        size_t rows = (size_t)n_rows;
        device_free(m->dec_logits), device_free(m->top_lse), device_free(m->draws), device_free(m->draw_total);
        device_free(m->drawn);
        pinned_free(m->top_lse_host), pinned_free(m->draws_host), pinned_free(m->drawn_host);
        m->top_lse = (double *)device_alloc(rows * sizeof(double), "decoding's sums", remedy);
        m->top_lse_host = (double *)pinned_alloc(rows * sizeof(double), "decoding's sums", remedy);
        m->draws = (DrawFrom *)device_alloc(rows * sizeof(DrawFrom), "draws", remedy);
        m->draws_host = (DrawFrom *)pinned_alloc(rows * sizeof(DrawFrom), "draws", remedy);
        m->draw_total = (uint64_t *)device_alloc(rows * sizeof(uint64_t), "draws", remedy);
        m->drawn = (int *)device_alloc(rows * sizeof(int), "draws", remedy);
        m->drawn_host = (int *)pinned_alloc(rows * sizeof(int), "draws", remedy);
        m->dec_logits = (float *)device_alloc(logits, "decoding's logits", remedy);
        m->dec_rows = n_rows;
    }
    if (slots > m->dec_slots) {
        device_free(m->cache);
        m->cache = (elem *)device_alloc(cache, "the key/value cache", remedy);
        m->dec_slots = slots;
    }
}

// The integers of d on the device, in arrays[0..6]: token, pos, slot, at, len, row, list. Only the parts of d->list
// that are named are sent: consecutive tokens of one sequence name the same list, each a little more of it.
static void decode_send(GPT2 *m, const Decode *d, const int *arrays[7]) {
    size_t n = (size_t)d->n, n_list = 0;
    int *host = m->dec_ints_host, *at = host + 3 * n, *list = host + 5 * n + (size_t)d->n_rows;
    const int *from[6] = {d->token, d->pos, d->slot, d->at, d->len, d->row};
    for (int i = 0; i < 6; i++) {
        arrays[i] = m->dec_ints + (size_t)i * n;
        memcpy(host + (size_t)i * n, from[i], (i < 5 ? n : (size_t)d->n_rows) * sizeof(int));
    }
    arrays[6] = m->dec_ints + 5 * n + (size_t)d->n_rows;
    for (int i = 0; i < d->n; i++) {
        int again = i && d->at[i] == d->at[i - 1] && d->len[i] >= d->len[i - 1];
        int had = again ? d->len[i - 1] : 0;
        at[i] = again ? at[i - 1] : (int)n_list;
        memcpy(list + n_list, d->list + d->at[i] + had, (size_t)(d->len[i] - had) * sizeof(int));
        n_list += (size_t)(d->len[i] - had);
    }
    to_device(m->dec_ints, host, (5 * n + (size_t)d->n_rows + n_list) * sizeof(int));
}

// Leaves the logits of the rows that are wanted on the device.
static void decode_logits(GPT2 *m, const Decode *d) {
    Config c = m->c;
    Params w = m->w;
    int n = d->n, C = c.C;
    const int *in[7]; // token, pos, slot, at, len, row, list
    char *p = m->dec;
#define X(type, name, cols) \
    type *name = (type *)(void *)p; p += rounded(sizeof(type) * (size_t)m->dec_n * (size_t)(cols));
    DECODE_ROOM(X)
#undef X
    decode_send(m, d, in);
    embedding_forward(x, in[0], in[1], w.wte, w.wpe, n, C);
    for (int l = 0; l < c.L; l++) {
        Params b = block_params(c, w, l, 1);
        Weights h = block_weights(c, m->h, l);
        elem *cache = m->cache + (size_t)l * (size_t)m->dec_slots * 2 * (size_t)C;
        layernorm_forward(norm, NULL, NULL, l ? x : NULL, x, l ? branch : NULL, NULL, b.ln1w, b.ln1b, n, C);
        matmul_forward(qkv, norm, h.qkvw, h.qkvb, n, C, 3 * C);
        cache_write(cache, qkv, in[2], n, C);
        attention_decode(att, qkv, cache, in[6], in[3], in[4], n, C, c.NH);
        matmul_forward(branch, att, h.attprojw, h.attprojb, n, C, C);
        layernorm_forward(norm, NULL, NULL, x, x, branch, NULL, b.ln2w, b.ln2b, n, C);
        matmul_forward(fc, norm, h.fcw, h.fcb, n, C, 4 * C);
        gelu_forward(fc, fc, n, 4 * C);
        matmul_forward(branch, fc, h.fcprojw, h.fcprojb, n, 4 * C, C);
    }
    if (!d->n_rows) return;
    layernorm_forward(norm, NULL, NULL, NULL, x, branch, in[5], w.lnfw, w.lnfb, d->n_rows, C);
    gemm(0, 1, d->n_rows, c.Vp, C, norm, C, m->h.wte, C, 0, m->dec_logits, CUDA_R_32F, (size_t)c.Vp, NULL);
}

// Of the logits on the device, each row's k candidates, which stay there.
static void candidates(GPT2 *m, int n_rows, int k, double *lse) {
    size_t size = (size_t)m->dec_rows * (size_t)k;
    if (size > m->top_size) {
        device_free(m->top), pinned_free(m->top_host);
        m->top = (Candidate *)device_alloc(size * sizeof(Candidate), "decoding's candidates", "lower --top-k");
        m->top_host = (Candidate *)pinned_alloc(size * sizeof(Candidate), "decoding's candidates", "lower --top-k");
        m->top_size = size;
    }
    if (n_rows) top_k(m->top, lse, m->dec_logits, n_rows, m->c.V, m->c.Vp, k);
}

const Candidate *gpt2_decode_top(GPT2 *m, const Decode *d, int k, const double **lse) {
    size_t n = (size_t)d->n_rows;
    decode_logits(m, d);
    candidates(m, d->n_rows, k, lse ? m->top_lse : NULL);
    if (n) to_host(m->top_host, m->top, n * (size_t)k * sizeof(Candidate));
    if (n && lse) to_host(m->top_lse_host, m->top_lse, n * sizeof(double));
    device_wait();
    if (lse) *lse = m->top_lse_host;
    return m->top_host;
}

const int *gpt2_decode_draw(GPT2 *m, const Decode *d, Draw how, int n, const int *row, const double *u) {
    int V = m->c.V, k = draw_width(how, V);
    for (int i = 0; i < n; i++) m->draws_host[i].u = u[i], m->draws_host[i].row = row[i];
    to_device(m->draws, m->draws_host, (size_t)n * sizeof(DrawFrom));
    decode_logits(m, d);
    if (k < V) {
        candidates(m, d->n_rows, k, NULL);
        draw_tokens<2>(m->drawn, &m->top->logit, m->draw_total, m->draws, n, d->n_rows, k, 2 * (size_t)k, how);
    } else
        draw_tokens<1>(m->drawn, m->dec_logits, m->draw_total, m->draws, n, d->n_rows, V, (size_t)m->c.Vp, how);
    to_host(m->drawn_host, m->drawn, (size_t)n * sizeof(int));
    device_wait();
    return m->drawn_host;
}

// ----------------------------------------------------------------------------
// The optimizer

void gpt2_zero_grad(GPT2 *m) { // and the step's losses
    CHECK_CUDA(cudaMemsetAsync(m->grads, 0, m->n_params * sizeof(float), device.stream));
    CHECK_CUDA(cudaMemsetAsync(m->end, 0, sizeof *m->end, device.stream));
}

// From GPU to GPU, in the stream's turn: the host does not wait. Bytes: 8 per element between GPUs.
void gpt2_grad_sum(GPT2 *m) {
#ifdef USE_MPI
    CHECK_NCCL(ncclAllReduce(m->grads, m->grads, m->n_params, ncclFloat, ncclSum, device.world, device.stream));
#else
    (void)m;
#endif
}

// part[block] = sum of squares of the block's share of g. Threads step through g together. Bytes: 4 per element.
__global__ void grad_norm_kernel(double *part, const float *g, size_t n) {
    __shared__ double room[WARPS];
    double sum = 0;
    if (blockIdx.x && (size_t)blockIdx.x * BLOCK >= n / 4) { // nothing left for this block
        if (threadIdx.x == 0) part[blockIdx.x] = 0;
        return;
    }
    for (size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x; i < n / 4; i += (size_t)NORM_BLOCKS * BLOCK) {
        float a[4];
        load<4>(a, g + 4 * i);
        sum += (double)(a[0] * a[0] + a[1] * a[1]) + (double)(a[2] * a[2] + a[3] * a[3]);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 4) {
        double last = g[n / 4 * 4 + threadIdx.x];
        sum += last * last;
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

double gpt2_grad_norm(GPT2 *m) {
    double total = 0;
    LAUNCH(grad_norm_kernel, NORM_BLOCKS, BLOCK, 0, m->norm, m->grads, m->n_params);
    to_host(m->norm_host, m->norm, NORM_BLOCKS * sizeof(double));
    device_wait();
    for (int i = 0; i < NORM_BLOCKS; i++) total += m->norm_host[i];
    return sqrt(total);
}

// AdamW (Loshchilov & Hutter 2019): m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, with bias correction
// w -= lr (mhat / (sqrt(vhat) + eps) + weight_decay w), on the float32 weights; half (n), if wanted, gets them as elem.
// gs scales the gradient; where `end` is given it says by how much, and whether at all.
// a1, a2: 1-b1 and 1-b2, formed before rounding: 1 - 0.999f is off by 1e-5.
// A thread owns W elements. Bytes: 4 (g) + 8 (m) + 8 (v) + 8 (w) + 2 (half) per element.
template <int W> __global__ void adamw_kernel(float *w, elem *half, float *m, float *v, const float *g, size_t n,
                                              float lr, float b1, float b2, float a1, float a2, float vs, float eps,
                                              float decay, float gs, const StepEnd *end) {
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * W;
    if (end) gs = end->scale;
    if (i >= n || (end && gs == 0)) return;
    float wi[W], mi[W], vi[W], gi[W];
    load<W>(wi, w + i);
    load<W>(mi, m + i);
    load<W>(vi, v + i);
    load<W>(gi, g + i);
    for (int k = 0; k < W; k++) {
        float x = gs * gi[k];
        mi[k] = b1 * mi[k] + a1 * x;
        vi[k] = b2 * vi[k] + a2 * x * x;
        wi[k] -= lr * mi[k] / (sqrtf(vi[k] * vs) + eps) + decay * wi[k];
    }
    store<W>(m + i, mi);
    store<W>(v + i, vi);
    store<W>(w + i, wi);
    if (half) store<W>(half + i, wi);
}

static void update(GPT2 *m, AdamW o, double grad_scale, const StepEnd *end, int step) {
    float lr = (float)(o.lr / (1 - pow(o.beta1, step))), vs = (float)(1 / (1 - pow(o.beta2, step)));
    Tensor t[N_TENSORS];
    gpt2_tensors(m->c, t);
    for (int k = 0; k < N_TENSORS; k++) {
        size_t at = t[k].at, n = t[k].size;
        int wide = at % 4 == 0 && n % 4 == 0;
        if (!n) continue;
        LAUNCH_WIDE(wide, 4, adamw_kernel, div_up(n, BLOCK * (wide ? 4 : 1)), BLOCK, 0, m->params + at,
                    HALF ? m->copies + at : NULL, m->m + at, m->v + at, m->grads + at, n, lr, (float)o.beta1,
                    (float)o.beta2, (float)(1 - o.beta1), (float)(1 - o.beta2), vs, (float)o.eps,
                    t[k].decay ? (float)(o.lr * o.weight_decay) : 0.0f, (float)grad_scale, end);
    }
}

void gpt2_update(GPT2 *m, AdamW o, double grad_scale, int step) { update(m, o, grad_scale, NULL, step); }

Loss gpt2_step_end(GPT2 *m, const Train *t, StepRoom *s, double *grad_norm) {
    const StepEnd *e = m->end_host;
    LAUNCH(grad_norm_kernel, NORM_BLOCKS, BLOCK, 0, m->norm, m->grads, m->n_params);
    LAUNCH(step_end_kernel, 1, 32, 0, m->end, m->norm, NORM_BLOCKS, t->grad_clip);
    update(m, s->adam, 1, m->end, s->step);
    to_host(m->end_host, m->end, sizeof *m->end);
    device_wait(); // the one of this step
    if (e->bad) check_value(s->step, e->query - 1, e->bad - 1, e->value);
    check_norm(s->step, *grad_norm = e->norm, e->loss.loss);
    return s->sum = e->loss;
}

// ----------------------------------------------------------------------------
// The machine

const char *backend_start(int threads) {
    static char line[512];
    threads_set(threads); // of the host's loops: choosing tokens
    device_start();
    snprintf(line, sizeof line, "GPU, %s, %.0f GiB, %s, matrix products: cuBLASLt", device.prop.name,
             (double)device.prop.totalGlobalMem / 1073741824, HALF ? "bfloat16" : "float32");
    return line;
}

void backend_profile(int steps) {
    if (!steps)
        fprintf(stderr, "note: --profile 1: the GPU build has no profile of its own; run it under nsys profile\n");
}

void backend_dtype_set(const char *dtype) {
    if (strcmp(dtype, backend_dtype()))
        die_usage("--dtype %s: this build computes in %s; make train_rrhfcu PRECISION=%s", dtype, backend_dtype(),
                  HALF ? "FP32, or use ./train_rrhf" : "BF16");
}

const char *backend_dtype(void) { return HALF ? "bf16" : "fp32"; }

#ifndef NO_MAIN // the tests include this file
int main(int argc, char **argv) { return run_verb(argc, argv); }
#endif
