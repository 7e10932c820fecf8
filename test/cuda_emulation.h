/*
cuda_emulation.h: runs the kernels of train_rrhf.cu where there is no GPU. Test-only, slow, exact.

  g++ -x c++ -std=c++17 -DCUDA_EMULATION ...     train_rrhf.cu then includes this file instead of the CUDA headers

Blocks run one after another. The threads of a block are fibers, stacks of their own on one CPU thread: a fiber runs
until __syncthreads, __syncwarp or a warp shuffle, where it waits for the others. Found and reported, with the kernel,
block and line: barriers that not every thread reaches, barriers reached on different lines, shuffles that not every
lane of a warp reaches, asynchronous copies that nobody waits for, wide accesses and ldmatrix's rows that are not
aligned. Under -fsanitize=address,undefined also: accesses outside device memory, which is the heap's, and outside
shared memory, whose dynamic part is a heap block of exactly the size asked for; without it, what a block reads of its
shared memory before it is written (an asynchronous copy writes when it is waited for), which are NaNs.
emulation_reverse = 1 runs blocks and threads in the opposite order: a kernel without races gives the same bits.
Under -fsanitize=thread each of a block's threads is a thread to ThreadSanitizer too, in step with others only where a
barrier or a shuffle says so: it finds races for shared and device memory within a block, as compute-sanitizer's
racecheck does on a device. Blocks follow each other; races between them are for emulation_reverse.

-DEMULATION_PTX='"kernels.h"': a launch runs not the kernel's source but what test/ptx.py made of its PTX, on the same
fibers, barriers and memory.

Also here, as far as train_rrhf.cu uses them: the runtime's memory calls, bfloat16, cp.async, a warp's tensor cores
(ldmatrix and mma, lane by lane), cuBLASLt, whose matrix product is the plain loop, and NCCL, by MPI.
*/
#ifndef CUDA_EMULATION_H
#define CUDA_EMULATION_H

#include <math.h>        // defines: expf
#include <stdint.h>      // defines: uint64_t
#include <stdio.h>       // defines: fprintf
#include <stdlib.h>      // defines: malloc, exit
#include <string.h>      // defines: memcpy
#include <sys/mman.h>    // defines: mmap
#ifdef EMULATION_PTX
#include <dlfcn.h>       // defines: dladdr
#include <tuple>         // defines: std::apply
#endif
#if defined(__x86_64__) && defined(__linux__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_SWITCH // a stack switch of our own: swapcontext asks the kernel each time
#else
#include <ucontext.h>    // defines: swapcontext
#endif
#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#ifdef __SANITIZE_THREAD__ // the emulation's own memory is none of its business
extern "C" void *__tsan_create_fiber(unsigned flags), *__tsan_get_current_fiber(void);
extern "C" void __tsan_switch_to_fiber(void *fiber, unsigned flags), __tsan_acquire(void *at), __tsan_release(void *at);
#define EMULATOR __attribute__((no_sanitize("thread")))
#else
#define EMULATOR
static inline void __tsan_acquire(void *) {}
static inline void __tsan_release(void *) {}
#endif

#ifdef EMULATION_PTX // kernels by name
#define __global__ __attribute__((visibility("default"), noinline))
#else
#define __global__ static // so that the __shared__ of templates may stand in a section
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#if defined(__SANITIZE_ADDRESS__) || defined(EMULATION_PTX) // which guards no array in a section; which needs none
#define __shared__ static                       // blocks run one after another, so one copy is enough
#else
#define __shared__ static __attribute__((section("emu_arrays")))
#endif
extern char __start_emu_arrays[] __attribute__((weak)), __stop_emu_arrays[] __attribute__((weak));
#define __restrict__

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };

static dim3 gridDim, blockDim;
static uint3 blockIdx, threadIdx;

// ----------------------------------------------------------------------------
// Fibers

#ifdef __SANITIZE_ADDRESS__
extern "C" void __sanitizer_start_switch_fiber(void **fake, const void *bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void *fake, const void **bottom, size_t *size);
#endif

enum { FIBER_MAX = 1024, FIBER_STACK = 256 << 10, WARP = 32 };
enum FiberState { FIBER_READY, FIBER_AT_BARRIER, FIBER_AT_WARP, FIBER_DONE };

struct Copy16 { void *to; const void *from; int bytes; };
enum { COPIES_MAX = 128 };   // on their way at once

struct Fiber {
    FiberState state;
    int line;                // of the barrier that it waits at
    uint3 thread;
    void *fake;              // AddressSanitizer's
    void *tsan;              // ThreadSanitizer's
    Copy16 copy[COPIES_MAX]; // asked for and not waited for
    int n_copies;
#ifdef EMULATION_SWITCH
    void *sp;
#else
    ucontext_t context;
#endif
};
struct WarpState { int arrived, line, generation; uint64_t value[2][WARP][3]; };

static struct {
    const char *kernel;
    void (*call)(void *);
    void *arg;
    Fiber fiber[FIBER_MAX], host;
    WarpState warp[FIBER_MAX / WARP];
    int n, now, done, arrived, line, generation;
    char begun, ended, barrier[2]; // where ThreadSanitizer is told of an order
    char *stacks, *shared;
    const void *host_bottom;
    size_t host_size;
} emu;
static int emulation_reverse;

#ifdef EMULATION_SWITCH // saves the callee-saved registers and the stack pointer, loads those of another fiber
extern "C" void emu_switch(void **save, void *load);
__asm__(".text\n.globl emu_switch\nemu_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#endif

EMULATOR static void emu_to(Fiber *from, Fiber *to, const void *bottom, size_t size) {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(to->tsan, 1); // 1: no order comes with it
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(from->state == FIBER_DONE ? NULL : &from->fake, bottom, size);
#else
    (void)bottom, (void)size;
#endif
#ifdef EMULATION_SWITCH
    emu_switch(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

EMULATOR static void emu_yield(FiberState state) {
    Fiber *f = &emu.fiber[emu.now];
    f->state = state;
    emu_to(f, &emu.host, emu.host_bottom, emu.host_size);
}

[[noreturn]] static void emu_fail(const char *what, int line, int other);

EMULATOR static void emu_fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, &emu.host_bottom, &emu.host_size);
#endif
    __tsan_acquire(&emu.begun);
    emu.call(emu.arg);
    if (emu.fiber[emu.now].n_copies) emu_fail("copies that nobody waits for", 0, emu.fiber[emu.now].n_copies);
    __tsan_release(&emu.ended);
    emu.done++;
    emu_yield(FIBER_DONE);
    abort(); // a finished fiber is never resumed
}

EMULATOR static void emu_fiber_start(int i) {
    char *stack = emu.stacks + (size_t)i * FIBER_STACK;
    Fiber *f = &emu.fiber[i];
#ifdef __SANITIZE_THREAD__
    if (!f->tsan) f->tsan = __tsan_create_fiber(0);
#endif
    f->state = FIBER_READY;
#ifdef EMULATION_SWITCH
    void **sp = (void **)(void *)(stack + FIBER_STACK - 64);
    *--sp = NULL;                        // so that the stack is aligned as after a call
    *--sp = (void *)emu_fiber_main;      // emu_switch returns to it
    for (int k = 0; k < 6; k++) *--sp = NULL;
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = FIBER_STACK;
    makecontext(&f->context, emu_fiber_main, 0);
#endif
}

[[noreturn]] static void emu_fail(const char *what, int line, int other) {
    fprintf(stderr, "emulation: %s, block (%u,%u,%u), thread %d, line %d: %s (%d)\n", emu.kernel, blockIdx.x,
            blockIdx.y, blockIdx.z, emu.now, line, what, other);
    _exit(1);
}

EMULATOR static void *emu_aligned(const void *p, size_t bytes, int line) {
    int rest = (int)((uintptr_t)p % bytes);
    if (rest) emu_fail("a wide access at an address that is no multiple of its size; remainder", line, rest);
    return (void *)p;
}
#define WIDE(type, p) (*(type *)emu_aligned(p, sizeof(type), __LINE__))

// ----------------------------------------------------------------------------
// Barriers and shuffles

EMULATOR static void emu_syncthreads(int line) {
    char *barrier = &emu.barrier[emu.generation & 1]; // nobody is two barriers ahead
    if (emu.arrived == 0) emu.line = line;
    if (emu.line != line) emu_fail("__syncthreads here, while other threads wait at that of another line", line,
                                   emu.line);
    __tsan_release(barrier);
    if (++emu.arrived < emu.n) emu_yield(FIBER_AT_BARRIER);
    else {
        for (int i = 0; i < emu.n; i++) if (emu.fiber[i].state == FIBER_AT_BARRIER) emu.fiber[i].state = FIBER_READY;
        emu.arrived = 0;
        emu.generation++;
    }
    __tsan_acquire(barrier);
}
#define __syncthreads() emu_syncthreads(__LINE__)

// Every lane deposits up to three words and waits for the others; returns all lanes' (WARP,3), until the next time.
EMULATOR static const uint64_t (*emu_gather(const uint64_t *words, int n, int line))[3] {
    WarpState *w = &emu.warp[emu.now / WARP];
    int g = w->generation & 1, first = emu.now / WARP * WARP;
    if (w->arrived == 0) w->line = line;
    if (w->line != line) emu_fail("warp operation here, while other lanes wait at that of another line", line, w->line);
    for (int i = 0; i < n; i++) w->value[g][emu.now - first][i] = words[i];
    emu.fiber[emu.now].line = line;
    __tsan_release(&w->value[g]);
    if (++w->arrived < WARP) emu_yield(FIBER_AT_WARP);
    else {
        for (int i = first; i < first + WARP; i++)
            if (emu.fiber[i].state == FIBER_AT_WARP) emu.fiber[i].state = FIBER_READY;
        w->arrived = 0;
        w->generation++;
    }
    __tsan_acquire(&w->value[g]);
    return w->value[g];
}
EMULATOR static uint64_t emu_exchange(uint64_t value, int from, int line) {
    return emu_gather(&value, 1, line)[from & (WARP - 1)][0];
}

template <typename T> EMULATOR static T emu_shuffle(unsigned mask, T v, int from, int line) {
    uint64_t bits = 0;
    static_assert(sizeof v <= sizeof bits, "a shuffle moves at most 8 bytes");
    if (mask != 0xffffffffu) emu_fail("a shuffle of a part of the warp: not emulated", line, (int)mask);
    memcpy(&bits, &v, sizeof v);
    bits = emu_exchange(bits, from, line);
    memcpy(&v, &bits, sizeof v);
    return v;
}
#define __shfl_sync(mask, v, lane) emu_shuffle(mask, v, lane, __LINE__)
#define __shfl_xor_sync(mask, v, other) emu_shuffle(mask, v, (int)(threadIdx.x % WARP) ^ (other), __LINE__)
#define __syncwarp() ((void)emu_exchange(0, 0, __LINE__))

// ----------------------------------------------------------------------------
// Launches

EMULATOR static void emu_block() {
    Fiber *host = &emu.host;
#ifdef __SANITIZE_THREAD__
    host->tsan = __tsan_get_current_fiber();
#endif
    emu.done = emu.arrived = 0;
    memset(emu.warp, 0, sizeof emu.warp);
    __tsan_release(&emu.begun);
    for (int i = 0; i < emu.n; i++) emu_fiber_start(i);
    for (int progress = 1; progress && emu.done < emu.n;) {
        progress = 0;
        for (int k = 0; k < emu.n; k++) {
            int i = emulation_reverse ? emu.n - 1 - k : k;
            if (emu.fiber[i].state != FIBER_READY) continue;
            emu.now = i;
            threadIdx = emu.fiber[i].thread;
            emu_to(host, &emu.fiber[i], emu.stacks + (size_t)i * FIBER_STACK, FIBER_STACK);
            progress = 1;
        }
    }
    __tsan_acquire(&emu.ended);
    if (emu.done == emu.n) return;
    for (emu.now = 0; emu.fiber[emu.now].state == FIBER_DONE; emu.now++) {}
    if (emu.arrived) emu_fail("__syncthreads that not every thread reaches; threads that do:", emu.line, emu.arrived);
    emu_fail("warp operation that not every lane reaches; lanes that do:", emu.fiber[emu.now].line,
             emu.warp[emu.now / WARP].arrived);
}

// NaNs in a block's shared memory: what is not written first is found.
EMULATOR static void emu_no_values(void *shared, size_t n) { if (shared) memset(shared, 0xff, n); }

template <typename F> static void emu_call(void *f) { (*(F *)f)(); }

static size_t *emu_shared_limit(const void *kernel) { // of dynamic shared memory: 48 KiB until cudaFuncSetAttribute
    static struct { const void *kernel; size_t bytes; } of[64];
    int i = 0;
    for (; i < 63 && of[i].kernel && of[i].kernel != kernel; i++) {}
    if (!of[i].kernel) of[i].kernel = kernel, of[i].bytes = 48 << 10;
    return &of[i].bytes;
}

#ifdef __SANITIZE_ADDRESS__ // an exact size, so that the byte behind it is out of bounds; alignment is 16 then
static char *emu_shared_room(size_t bytes) { return (char *)malloc(bytes ? bytes : 1); }
static void emu_shared_free(char *room) { free(room); }
#else // at an address of 32 bits, as PTX's ldmatrix takes it; less than 128 bytes behind it nobody may read or write
#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif
static char *emu_shared_room(size_t bytes) {
    enum { MOST = 256 << 10, GUARD = 64 << 10 }; // whole pages
    static char *room;
    if (!room) room = (char *)mmap(NULL, MOST + GUARD, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (room == MAP_FAILED || mprotect(room + MOST, GUARD, PROT_NONE) || bytes > MOST)
        emu_fail("no such dynamic shared memory", 0, (int)bytes);
    return room + MOST - (bytes + 127) / 128 * 128;
}
static void emu_shared_free(char *) {}
#endif

#ifdef EMULATION_PTX
static void (*ptx_kernel(const void *kernel))(void *const *param);
#endif

template <typename... P, typename... A>
static void emu_launch(const char *name, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), A... args) {
#ifdef EMULATION_PTX
    void (*run)(void *const *) = ptx_kernel((const void *)kernel);
    std::tuple<P...> given(args...);
    void *param[sizeof...(P)];
    std::apply([&](P &...p) { size_t i = 0; ((param[i++] = &p), ...); }, given);
    auto f = [=]() { run(param); };
#else
    auto f = [=]() { kernel(args...); };
#endif
    emu.kernel = name;
    emu.call = emu_call<decltype(f)>;
    emu.arg = &f;
    emu.n = (int)(block.x * block.y * block.z);
    if (emu.n < 1 || emu.n > FIBER_MAX || emu.n % WARP) emu_fail("threads per block: whole warps up to 1,024 expected",
                                                                 0, emu.n);
    if (shared > *emu_shared_limit((const void *)kernel))
        emu_fail("more dynamic shared memory than the kernel may have", 0, (int)shared);
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) emu_fail("grid out of bounds", 0,
                                                                                             (int)grid.x);
    if (!emu.stacks) emu.stacks = (char *)mmap(NULL, (size_t)FIBER_MAX * FIBER_STACK, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (emu.stacks == MAP_FAILED) emu_fail("no memory for the stacks", 0, 0);
    for (int i = 0; i < emu.n; i++) {
        unsigned t = (unsigned)i;
        emu.fiber[i].thread = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    gridDim = grid, blockDim = block;
    emu.shared = emu_shared_room(shared);
    size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t k = 0; k < blocks; k++) {
        unsigned b = (unsigned)(emulation_reverse ? blocks - 1 - k : k);
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        emu_no_values(emu.shared, shared);
        emu_no_values(__start_emu_arrays, (size_t)(__stop_emu_arrays - __start_emu_arrays));
        emu_block();
    }
    emu_shared_free(emu.shared);
}
#define LAUNCH_(kernel, grid, block, shared, ...) emu_launch(#kernel, grid, block, shared, kernel, __VA_ARGS__)
#define SHARED(type, name) type *name = (type *)(void *)emu.shared

// ----------------------------------------------------------------------------
// Arithmetic

#define __expf expf // glibc declares that name too
#define __fdividef(a, b) ((float)(a) / (float)(b))
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int atomicAdd(int *p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
struct __nv_bfloat16 { uint16_t bits; };
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float((unsigned)h.bits << 16); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { // to the nearest, ties to even
    unsigned u = __float_as_uint(f);
    if (f != f) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }

// ----------------------------------------------------------------------------
// Copies to shared memory that arrive late: when they are waited for
EMULATOR static void emu_copy_async(void *to, const void *from, int bytes, int line) {
    Fiber *f = &emu.fiber[emu.now];
    Copy16 c = {emu_aligned(to, 16, line), emu_aligned(from, 16, line), bytes};
    if (f->n_copies == COPIES_MAX || (bytes && bytes != 16))
        emu_fail("a copy of other than 16 bytes, or too many", line, bytes);
    f->copy[f->n_copies++] = c;
}
static void emu_copies_wait() {
    Fiber *f = &emu.fiber[emu.now];
    for (int i = 0; i < f->n_copies; i++)
        if (f->copy[i].bytes) memcpy(f->copy[i].to, f->copy[i].from, 16);
        else memset(f->copy[i].to, 0, 16);
    f->n_copies = 0;
}
#define copy_async(to, from, bytes) emu_copy_async(to, from, bytes, __LINE__)
#define copies_wait() emu_copies_wait()

// ----------------------------------------------------------------------------
// A warp's tensor cores, as the PTX ISA describes ldmatrix and mma.m16n8k16

EMULATOR static uint64_t emu_word(const uint64_t (*all)[3], int lane, int i) { return all[lane][i]; }

static void emu_ldmatrix(unsigned to[4], const void *row, bool trans, int line) {
    int lane = (int)threadIdx.x % WARP;
    uint64_t at = (uint64_t)(uintptr_t)emu_aligned(row, 16, line);
    const uint64_t (*all)[3] = emu_gather(&at, 1, line);
    for (int j = 0; j < 4; j++) {
        to[j] = 0;
        for (int x = 0; x < 2; x++) {
            int i = lane / 4, k = lane % 4 * 2 + x; // of what the lane gets: row i, column k
            const __nv_bfloat16 *from = (const __nv_bfloat16 *)(uintptr_t)emu_word(all, 8 * j + (trans ? k : i), 0);
            to[j] |= (unsigned)from[trans ? i : k].bits << 16 * x;
        }
    }
}
template <bool TRANS> static void ldmatrix(unsigned to[4], const __nv_bfloat16 *row) {
    emu_ldmatrix(to, row, TRANS, __LINE__);
}

static inline void emu_mma(float c[4], const unsigned a[4], const unsigned b[2], int line) {
    int lane = (int)threadIdx.x % WARP;
    uint64_t mine[3] = {a[0] | (uint64_t)a[1] << 32, a[2] | (uint64_t)a[3] << 32, b[0] | (uint64_t)b[1] << 32};
    const uint64_t (*all)[3] = emu_gather(mine, 3, line);
    for (int x = 0; x < 4; x++) {
        int row = lane / 4 + x / 2 * 8, col = lane % 4 * 2 + x % 2;
        for (int k = 0; k < 16; k++) { // the lane and the half of its words that hold a[row][k], and b[k][col]
            uint64_t wa = emu_word(all, row % 8 * 4 + k % 8 / 2, k / 8), wb = emu_word(all, col * 4 + k % 8 / 2, 2);
            __nv_bfloat16 va = {(uint16_t)(wa >> (row / 8 * 32 + k % 2 * 16))};
            __nv_bfloat16 vb = {(uint16_t)(wb >> (k / 8 * 32 + k % 2 * 16))};
            c[x] += __bfloat162float(va) * __bfloat162float(vb);
        }
    }
}
static inline void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) { emu_mma(c, a, b, __LINE__); }

// ----------------------------------------------------------------------------
// The runtime: device memory is the heap's, every call has finished when it returns

typedef int cudaError_t;
typedef void *cudaStream_t, *cudaEvent_t;
enum { cudaSuccess, cudaErrorMemoryAllocation = 2, cudaErrorInvalidDeviceFunction = 98,
       cudaErrorNoKernelImageForDevice = 209, cudaErrorUnsupportedPtxVersion = 222 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

static inline const char *cudaGetErrorString(cudaError_t e) { return e ? "out of memory" : "no error"; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaMalloc(void **p, size_t n) {
    return (*p = malloc(n)) ? memset(*p, 0xff, n), cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaMallocHost(void **p, size_t n) { return cudaMalloc(p, n); }
static inline cudaError_t cudaFree(void *p) { return free(p), cudaSuccess; }
static inline cudaError_t cudaFreeHost(void *p) { return free(p), cudaSuccess; }
static inline cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    return *left = *total = (size_t)1 << 40, cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n,
                                          cudaStream_t) { return memset(p, v, n), cudaSuccess; }
static inline cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind,
                                          cudaStream_t) { return memcpy(d, s, n), cudaSuccess; }
static inline cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                            cudaMemcpyKind, cudaStream_t) {
    for (size_t i = 0; i < h; i++) memcpy((char *)d + i * dp, (const char *)s + i * sp, w);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = malloc(8), cudaSuccess; }
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return free(e), cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
    return *ms = 1, cudaSuccess; // no clock here
}
enum { cudaStreamNonBlocking = 1 };
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return *s = NULL, cudaSuccess; }
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename F> static cudaError_t cudaFuncSetAttribute(F *f, cudaFuncAttribute, int bytes) {
    return *emu_shared_limit((const void *)f) = (size_t)bytes, cudaSuccess;
}
struct cudaFuncAttributes { int none; };
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, const void *) { return cudaSuccess; }
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount;
};
static inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
#ifdef EMULATION_PTX
    strcpy(p->name, "nvcc's PTX, emulated");
#else
    strcpy(p->name, "emulated");
#endif
    p->sharedMemPerBlockOptin = 99 << 10; // the least of the architectures that train_rrhf.cu is built for
    p->totalGlobalMem = (size_t)1 << 40;
    return cudaSuccess;
}

// ----------------------------------------------------------------------------
// cuBLASLt: column-major D (m,n) = alpha op(A) op(B) + beta C + bias, then GELU

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };
enum cublasLtMatmulAlgoConfigAttributes_t { CUBLASLT_ALGO_CONFIG_SPLITK_NUM };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER };
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
typedef void *cublasLtHandle_t;
struct emu_desc { cublasOperation_t ta, tb; cublasLtEpilogue_t epilogue; const void *bias; };
struct emu_layout { cudaDataType_t type; uint64_t rows, cols; int64_t ld; };
struct emu_preference { uint64_t at_least[6]; };
typedef emu_desc *cublasLtMatmulDesc_t;
typedef emu_layout *cublasLtMatrixLayout_t;
typedef emu_preference *cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t { uint32_t align[4], bias; int32_t split; };
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; size_t workspaceSize; cublasStatus_t state; };

static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return *h = NULL, CUBLAS_STATUS_SUCCESS; }
static inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t) {
    *d = new emu_desc{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    return delete d, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                                            const void *v, size_t n) {
    void *to[] = {&d->ta, &d->tb, &d->epilogue, &d->bias};
    size_t size[] = {sizeof d->ta, sizeof d->tb, sizeof d->epilogue, sizeof d->bias};
    if (n != size[a]) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to[a], v, n);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows,
                                                        uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows || !rows || !cols) return CUBLAS_STATUS_INVALID_VALUE;
    *l = new emu_layout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return delete l, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p = new emu_preference(), CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                                  cublasLtMatmulPreferenceAttributes_t a,
                                                                  const void *v, size_t n) {
    if (n != (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8u : 4u)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&p->at_least[a], v, n);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
        cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t,
        cublasLtMatmulPreference_t p, int, cublasLtMatmulHeuristicResult_t *r, int *found) {
    *found = 0;
    if ((a->ld | b->ld | c->ld) % 2) return CUBLAS_STATUS_NOT_SUPPORTED; // as a library may refuse odd sizes
    for (int i = 0; i < 4; i++) r->algo.align[i] = (uint32_t)p->at_least[2 + i];
    r->algo.bias = 1; // its address is taken as a promise too
    while (d->bias && r->algo.bias < 16 && (uintptr_t)d->bias % (2 * r->algo.bias) == 0) r->algo.bias *= 2;
    uint64_t k = d->ta == CUBLAS_OP_N ? a->cols : a->rows;
    int may = p->at_least[CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK] || k / 48 == 8; // some in spite of the mask
    r->algo.split = k >= 128 && may ? 3 : 1;
    r->workspaceSize = 0;
    r->state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        const cublasLtMatmulAlgo_t *, cublasLtMatmulHeuristicResult_t *r) {
    r->workspaceSize = 0;
    r->state = CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_SUCCESS;
}

static inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                                  cublasLtMatmulAlgoConfigAttributes_t, void *to,
                                                                  size_t n, size_t *written) {
    return memcpy(to, &algo->split, *written = n),
           n == sizeof algo->split ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

static inline float emu_load(const void *p, const emu_layout *l, uint64_t row, uint64_t col) {
    size_t at = row + col * (size_t)l->ld;
    return l->type == CUDA_R_32F ? ((const float *)p)[at] : __bfloat162float(((const __nv_bfloat16 *)p)[at]);
}
static inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const float *alpha,
        const void *A, cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const float *beta,
        const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t dl,
        const cublasLtMatmulAlgo_t *algo, void *, size_t, cudaStream_t) {
    const void *p[4] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)p[i] % algo->align[i]) return CUBLAS_STATUS_INVALID_VALUE; // a promise not kept
    if ((uintptr_t)d->bias % algo->bias) return CUBLAS_STATUS_INVALID_VALUE;
    uint64_t m = dl->rows, n = dl->cols, k = d->ta == CUBLAS_OP_N ? a->cols : a->rows;
    if ((d->ta == CUBLAS_OP_N ? a->rows : a->cols) != m || (d->tb == CUBLAS_OP_N ? b->cols : b->rows) != n ||
        (d->tb == CUBLAS_OP_N ? b->rows : b->cols) != k || c->rows != m || c->cols != n || c->ld != dl->ld ||
        c->type != dl->type)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (k % 31 == 0) return CUBLAS_STATUS_NOT_SUPPORTED; // the heuristic's answer was no promise
    if (algo->split > 1 && k / 64 % algo->split == 0 && k % 64 < (uint64_t)algo->split)
        k -= k % 64; // the defect of drops_terms
    for (uint64_t j = 0; j < n; j++)
        for (uint64_t i = 0; i < m; i++) {
            double s = 0;
            for (uint64_t t = 0; t < k; t++)
                s += (double)emu_load(A, a, d->ta == CUBLAS_OP_N ? i : t, d->ta == CUBLAS_OP_N ? t : i) *
                     (double)emu_load(B, b, d->tb == CUBLAS_OP_N ? t : j, d->tb == CUBLAS_OP_N ? j : t);
            s = *alpha * s + (*beta != 0 ? *beta * emu_load(C, c, i, j) : 0);
            emu_layout bias = {dl->type, m, 1, (int64_t)m};
            if (d->epilogue == CUBLASLT_EPILOGUE_BIAS) s += emu_load(d->bias, &bias, i, 0);
            size_t at = i + j * (size_t)dl->ld;
            if (dl->type == CUDA_R_32F) ((float *)D)[at] = (float)s;
            else ((__nv_bfloat16 *)D)[at] = __float2bfloat16_rn((float)s);
        }
    return CUBLAS_STATUS_SUCCESS;
}

// ----------------------------------------------------------------------------
// NCCL, by MPI: as far as a run in several processes uses it

#ifdef USE_MPI
enum ncclResult_t { ncclSuccess, ncclInvalidArgument };
enum ncclDataType_t { ncclFloat };
enum ncclRedOp_t { ncclSum };
struct ncclUniqueId { int pid, none; };
typedef int ncclComm_t;

static inline const char *ncclGetLastError(ncclComm_t *) { return ""; }
static inline const char *ncclGetErrorString(ncclResult_t) { return "an argument is not as it must be"; }
static inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) { return id->pid = (int)getpid(), ncclSuccess; }
static inline ncclResult_t ncclCommInitRank(ncclComm_t *c, int n, ncclUniqueId id, int rank) {
    int made_by = (int)getpid(), size, own; // the id must be process 0's
    MPI_Bcast(&made_by, 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &own);
    *c = made_by;
    return made_by == id.pid && n == size && rank == own ? ncclSuccess : ncclInvalidArgument;
}
static inline ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t, ncclRedOp_t,
                                         ncclComm_t c, cudaStream_t) {
    if (from != to || !c) return ncclInvalidArgument;
    MPI_Allreduce(MPI_IN_PLACE, to, (int)n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    return ncclSuccess;
}
#endif

// ----------------------------------------------------------------------------
// EMULATION_PTX: kernels as nvcc compiled them (test/ptx.py), found by the name of the function that is launched

#ifdef EMULATION_PTX
#include EMULATION_PTX
#ifdef PTX_NONE // why; nothing is launched then
static const struct { const char *name; void (*run)(void *const *param); } ptx_kernels[] = {{"", NULL}};
#endif
static void (*ptx_kernel(const void *kernel))(void *const *param) {
    Dl_info info;
    if (!dladdr(kernel, &info) || info.dli_saddr != kernel) emu_fail("a kernel without a name (-rdynamic)", 0, 0);
    for (const auto &k : ptx_kernels)
        if (!strcmp(k.name, info.dli_sname)) return k.run;
    emu_fail("a kernel that the PTX lacks", 0, 0);
}
#endif

#endif
