/*
util.h: what every other file needs and no paper describes.

  die            one-line error on stderr, exit 1 (the work failed) or 2 (bad command line)
  thread_count   threads of the host
  xalloc         memory, zeroed, or an error that says how much was asked for
  In / Out       binary files: reads that check sizes, writes that appear under their name only when whole
  hash64         a hash, to tell whether data are the same
  Rng            seeded random numbers, the same on every machine
  progress       one updating line on a terminal, plain lines otherwise, with the time left

Used by the CPU build, the CUDA build, the tests and the tools in dev/: the common subset of C11 and C++17.
*/
#ifndef UTIL_H
#define UTIL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE      // fileno, fsync, clock_gettime under -std=c11
#endif
#include <errno.h>       // defines: errno
#include <fcntl.h>       // defines: open
#include <inttypes.h>    // defines: PRId64
#include <math.h>        // defines: sqrt, log, exp, isfinite
#include <signal.h>      // defines: signal, SIGXFSZ
#include <stdarg.h>      // defines: va_list
#include <stdint.h>      // defines: int32_t, uint16_t, SIZE_MAX
#include <stdio.h>       // defines: FILE, fprintf
#include <stdlib.h>      // defines: calloc, free, exit
#include <string.h>      // defines: memcpy, strcmp, strerror
#include <sys/file.h>    // defines: flock
#include <sys/ioctl.h>   // defines: ioctl, TIOCGWINSZ
#include <sys/mman.h>    // defines: madvise
#include <sys/stat.h>    // defines: stat, mkdir
#include <time.h>        // defines: clock_gettime
#include <unistd.h>      // defines: unlink, isatty, fsync
#ifdef _OPENMP
#include <omp.h>         // defines: omp_set_num_threads, omp_get_max_threads, omp_get_thread_num
#endif
#include "world.h"       // defines: world_rank, world_abort

#define RRHF_PATH_MAX 4096
#ifdef __CUDACC__
#define BOTH __host__ __device__ // a function that a GPU's kernels call too
#else
#define BOTH
#endif

enum { VOCABULARY_MAX = 65536 }; // tokens of the largest vocabulary: files hold them as uint16

static inline int min_int(int a, int b) { return a < b ? a : b; }

// ----------------------------------------------------------------------------
// Threads of the host: one without OpenMP

static inline void threads_set(int n) { // --threads; 0 = all
#ifdef _OPENMP
    if (n > 0) omp_set_num_threads(n);
#else
    (void)n;
#endif
}

static inline int thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline size_t thread_index(void) { // within a parallel loop
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

// ----------------------------------------------------------------------------
// Errors

enum { EXIT_WORK = 1, EXIT_USAGE = 2 };

// The temporary file that is open for writing, if one is: removed if the program dies before it is renamed.
static char out_tmp[RRHF_PATH_MAX];

__attribute__((noreturn))
static inline void die_with(int code, const char *fmt, va_list ap) {
    char said[2 * RRHF_PATH_MAX];
    vsnprintf(said, sizeof said, fmt, ap);
    for (char *s = said; *s; s++) if ((unsigned char)*s < 32 || *s == 127) *s = ' '; // one line, whatever it quotes
    if (*out_tmp) unlink(out_tmp);
    fflush(stdout);
    // An error that all processes share is reported by process 0, which ends us within these seconds.
    if (world_rank) sleep(4), dup2(world_stderr, 2);
    if (isatty(2)) fprintf(stderr, "\r\033[K"); // wipe a progress line
    fprintf(stderr, "error: ");
    if (world_rank) fprintf(stderr, "process %d: ", world_rank);
    fprintf(stderr, "%s\n", said);
    world_abort(code);
    exit(code);
}

// The work failed: name the file or option, what was found, what was expected, what to try.
__attribute__((format(printf, 1, 2), noreturn, unused))
static void die(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    die_with(EXIT_WORK, fmt, ap);
}

// The command line is wrong.
__attribute__((format(printf, 1, 2), noreturn, unused))
static void die_usage(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    die_with(EXIT_USAGE, fmt, ap);
}

// ----------------------------------------------------------------------------
// Memory

// count * size zeroed bytes; dies when they overflow or cannot be had. Free with free().
static inline void *xalloc(size_t count, size_t size) {
    if (size && count > SIZE_MAX / size)
        die("memory: %zu x %zu bytes overflow; is a file's header damaged?", count, size);
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) die("memory: no room for %.1f MiB; try a smaller --batch, --micro-batch or model",
                (double)count * (double)size / 1048576.0);
#ifdef MADV_HUGEPAGE // large arrays in 2 MiB pages: a page fault costs as much as reading what it brings
    enum { HUGE_PAGE = 1 << 21 };
    if (count * size >= 2 * HUGE_PAGE) {
        char *at = (char *)(((uintptr_t)p + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        madvise(at, count * size - (size_t)(at - (char *)p), MADV_HUGEPAGE);
    }
#endif
    return p;
}

// Grows the array p to hold at least `need` elements, by doubling; cap, a size_t, is its capacity.
#define XGROW(p, cap, need) ((p) = (__typeof__(p))xgrow(p, &(cap), need, sizeof *(p)))

static inline void *xgrow(void *p, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return p;
    size_t n = *cap ? *cap : 64;
    while (n < need) n *= 2;
    if (n > SIZE_MAX / size) die("memory: %zu x %zu bytes overflow", n, size);
    p = realloc(p, n * size);
    if (!p)
        die("memory: no room for %.1f MiB; use less data, or free some memory", (double)n * (double)size / 1048576.0);
    *cap = n;
    return p;
}

// ----------------------------------------------------------------------------
// Reading files: every size is checked against what the file holds before it is used

typedef struct { FILE *f; const char *path; int64_t size, at; } In; // size, at: bytes

static inline In in_open(const char *path) {
    In in = {0};
    in.path = path;
    struct stat st;
    if (stat(path, &st) != 0) die("%s: %s; check the path", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) die("%s: not a regular file; a file is expected here", path);
    in.f = fopen(path, "rb");
    if (!in.f) die("%s: %s; check the permissions", path, strerror(errno));
    in.size = (int64_t)st.st_size;
    return in;
}

static inline int64_t in_left(const In *in) { return in->size - in->at; }

// Reads exactly `bytes`; `what` names them in the error.
static inline void in_read(In *in, void *dst, int64_t bytes, const char *what) {
    if (bytes < 0 || bytes > in_left(in))
        die("%s: truncated: %s needs %" PRId64 " bytes at offset %" PRId64 ", the file ends %" PRId64
            " bytes after it; fetch or make the file again", in->path, what, bytes, in->at, in_left(in));
    if (bytes && fread(dst, 1, (size_t)bytes, in->f) != (size_t)bytes)
        die("%s: cannot read %s: %s", in->path, what, ferror(in->f) ? strerror(errno) : "unexpected end of file");
    in->at += bytes;
}

static inline int32_t in_i32(In *in, const char *what) {
    int32_t v;
    in_read(in, &v, 4, what);
    return v;
}

// The 256-int header that every format here starts with; checks its magic number and version (0: the caller does).
static inline void in_header(In *in, int32_t header[256], int32_t magic, int32_t version, const char *kind) {
    if (in_left(in) < 1024)
        die("%s: %" PRId64 " bytes, but a %s starts with a header of 1024", in->path, in_left(in), kind);
    in_read(in, header, 1024, "the header");
    if (header[0] != magic)
        die("%s: magic number %d, but a %s has %d; is this the right file?", in->path, header[0], kind, magic);
    if (version && header[1] != version)
        die("%s: version %d, but a %s here has %d; make it again", in->path, header[1], kind, version);
}

// Closes; dies if bytes are left over.
static inline void in_close(In *in) {
    if (in_left(in) != 0) die("%s: %" PRId64 " bytes too many after what its header announces; "
                              "the file is damaged or of another kind", in->path, in_left(in));
    fclose(in->f);
}

// ----------------------------------------------------------------------------
// Writing files, one at a time: to NAME.tmp, renamed to NAME when complete, removed when anything fails. Only process 0
// writes; what the others write goes nowhere (f = NULL).

typedef struct { FILE *f; char path[RRHF_PATH_MAX]; } Out;

// Renaming would replace a device or a pipe, /dev/stdout even, and cannot replace a folder.
static inline void out_check(const char *path) {
    struct stat st;
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        die("%s: exists and is not a regular file; choose another name", path);
}

static inline Out out_open(const char *path) {
    Out out = {0};
    if (strlen(path) + 5 > RRHF_PATH_MAX) die("%.60s...: the path is longer than %d bytes", path, RRHF_PATH_MAX - 5);
    strcpy(out.path, path);
    if (world_rank) return out;
    out_check(path);
    if (*out_tmp) die("%s: %s is still being written", path, out_tmp);
    signal(SIGXFSZ, SIG_IGN); // a limit on file sizes is then an error of write, like a full disk
    strcpy(out_tmp, path);
    strcat(out_tmp, ".tmp");
    // Locked before it is emptied. One that was renamed between open and flock is somebody's result by now.
    struct stat opened, named;
    int fd = open(out_tmp, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    int locked = fd >= 0 && (!flock(fd, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK); // or a file system without locks
    int ours = locked && !fstat(fd, &opened) && !stat(out_tmp, &named) && opened.st_ino == named.st_ino;
    if (ours && !ftruncate(fd, 0)) out.f = fdopen(fd, "wb");
    if (out.f) return out;
    *out_tmp = 0; // not ours to remove
    if (fd >= 0 && !ours) die("%s: another run is writing here; write elsewhere", path);
    die("%s: cannot write: %s; check the folder and its permissions", path, strerror(errno));
}

static inline void out_write(Out *out, const void *src, size_t bytes) {
    if (bytes && out->f && fwrite(src, 1, bytes, out->f) != bytes)
        die("%s: cannot write: %s; the file was not replaced", out->path, strerror(errno));
}

__attribute__((format(printf, 2, 3)))
static inline void out_printf(Out *out, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = out->f ? vfprintf(out->f, fmt, ap) : 0;
    va_end(ap);
    if (n < 0) die("%s: cannot write: %s; the file was not replaced", out->path, strerror(errno));
}

// Flushes to the disk and gives the file its final name, before the lock goes with fclose.
static inline void out_close(Out *out) {
    if (!out->f) return;
    if (fflush(out->f) || fsync(fileno(out->f)) || ferror(out->f))
        die("%s: cannot write: %s; the file was not replaced", out->path, strerror(errno));
    if (rename(out_tmp, out->path)) die("%s: cannot rename: %s", out->path, strerror(errno));
    *out_tmp = 0;
    fclose(out->f);
}

// Joins DIR/NAME into dst (RRHF_PATH_MAX bytes).
static inline char *path_join(char *dst, const char *dir, const char *name) {
    if (snprintf(dst, RRHF_PATH_MAX, "%s/%s", dir, name) >= RRHF_PATH_MAX) die("%.60s...: the path is too long", dir);
    return dst;
}

static inline int exists_in(const char *dir, const char *name) {
    char path[RRHF_PATH_MAX];
    return access(path_join(path, dir, name), F_OK) == 0;
}

static inline int same_path(const char *a, const char *b) { // by whatever names
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

// Makes a directory and its parents; an existing one is fine if files can be made in it: checked before the work,
// not after hours of it.
static inline void make_dir(const char *dir) {
    char p[RRHF_PATH_MAX];
    if (!*dir || strlen(dir) >= sizeof p) die("--out '%.60s': not a usable directory name", dir);
    strcpy(p, dir);
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/') continue;
        char c = *s;
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            die("%s: cannot make the directory: %s; write elsewhere", p, strerror(errno));
        *s = c;
        if (!c) break;
    }
    struct stat st;
    if (stat(dir, &st) || !S_ISDIR(st.st_mode)) die("%s: exists and is not a directory; write elsewhere", dir);
    if (access(dir, W_OK | X_OK)) die("%s: cannot write there: %s; write elsewhere", dir, strerror(errno));
}

// ----------------------------------------------------------------------------
// A hash: FNV-1a, but eight bytes at a time. Begins with HASH64; of several things, each goes on from the one before.

#define HASH64 14695981039346656037ull

static inline uint64_t hash64_mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 1099511628211ull;
    return h ^ h >> 32; // a product's high bits never reach its low ones
}

static inline uint64_t hash64(uint64_t h, const void *data, size_t bytes) {
    const char *p = (const char *)data;
    uint64_t x;
    for (; bytes >= sizeof x; p += sizeof x, bytes -= sizeof x) {
        memcpy(&x, p, sizeof x);
        h = hash64_mix(h, x);
    }
    for (; bytes; bytes--) h = hash64_mix(h, (unsigned char)*p++);
    return h;
}

// ----------------------------------------------------------------------------
// Random numbers: splitmix64 (Steele, Lea, Flood 2014), one 64-bit state

typedef struct { uint64_t s; } Rng;

static inline uint64_t rng_u64(Rng *r) {
    uint64_t z = (r->s += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// An independent stream for (seed, what, index).
static inline Rng rng_make(uint64_t seed, uint64_t what, uint64_t index) {
    Rng r = {seed};
    r.s = rng_u64(&r) ^ (what * 0xD1342543DE82EF95ull);
    r.s = rng_u64(&r) ^ (index * 0xAF251AF3B0F025B5ull);
    rng_u64(&r);
    return r;
}

enum { RNG_WEIGHTS = 1, RNG_SHUFFLE, RNG_SAMPLE, RNG_DEMO }; // the `what` of each stream

static inline double rng_uniform(Rng *r) { return (double)(rng_u64(r) >> 11) * 0x1p-53; } // in [0, 1)
static inline int rng_below(Rng *r, int n) { return (int)(rng_uniform(r) * n); }          // in 0..n-1

static inline double rng_normal(Rng *r) { // Box-Muller, one of the two
    double u = 1.0 - rng_uniform(r), v = rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

// A permutation of 0..n-1 (Fisher-Yates).
static inline void rng_shuffle(Rng *r, int *a, int n) {
    for (int i = 0; i < n; i++) a[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = rng_below(r, i + 1), t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
}

// ----------------------------------------------------------------------------
// Time and progress

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct { const char *label; double start, shown; int64_t first; } Progress;

static inline Progress progress_start(const char *label, int64_t first) {
    Progress p = {label, now_s(), 0, first};
    return p;
}

// Call after each unit of work: `done` of `total`, and anything worth seeing beside it. Without a label it is silent.
__attribute__((format(printf, 4, 5)))
static inline void progress(Progress *p, int64_t done, int64_t total, const char *fmt, ...) {
    if (!*p->label) return;
    int tty = isatty(2), last = done >= total;
    double t = now_s();
    if (!last && t - p->shown < (tty ? 0.2 : 10.0)) return;
    p->shown = t;
    double left = done > p->first ? (t - p->start) / (double)(done - p->first) * (double)(total - done) : 0;
    char line[512];
    int n = snprintf(line, sizeof line, "%-8s %*" PRId64 "/%" PRId64 "  ", p->label, total > 9999 ? 6 : 4, done, total);
    n += snprintf(line + n, sizeof line - (size_t)n,
                  last ? "(%.1f s)  " : left < 90 ? "%.0f s left  " : "%.0f min left  ",
                  last ? t - p->start : left < 90 ? left : left / 60);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    va_end(ap);
    struct winsize window; // a line that wraps could not be taken back
    if (tty && !ioctl(2, TIOCGWINSZ, &window) && window.ws_col > 1 && window.ws_col < sizeof line)
        line[window.ws_col - 1] = 0;
    fprintf(stderr, "%s%s%s", tty ? "\r\033[K" : "", line, tty && !last ? "" : "\n");
    fflush(stderr);
}

#endif
