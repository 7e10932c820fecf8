/*
world.h: one run in several processes, one for each GPU, on one machine or many: mpirun -np 8 ./train_rrhfcu train ...

Every process holds the whole model and reads all files, so several machines have to share their folders. What the
processes divide among them is queries: those of an optimizer step, whose gradients are then added up, so that all take
the same step; and those of a data set that a model scores or answers. Process 0 alone writes files and speaks. Without
mpirun, or without MPI (-DUSE_MPI), there is one process, and all of this does nothing.

  world_rank, world_size   this process's number, and how many there are
  world_part               which of n queries are this process's
  world_sum, world_give    numbers added up over all processes; bytes that one of them has, given to all
  world_wait               until all have come here

world_sum, world_give and world_wait must be called by all processes, in the same order.
*/
#ifndef WORLD_H
#define WORLD_H

#include <fcntl.h>       // defines: open
#include <stddef.h>      // defines: size_t
#include <stdlib.h>      // defines: getenv, atexit
#include <string.h>      // defines: strncmp
#include <unistd.h>      // defines: dup, dup2
#ifdef USE_MPI
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>         // defines: MPI_Allreduce, MPI_Bcast
#endif

extern char **environ;           // POSIX has no header declare it; glibc's does, macOS's do not

static int world_rank, world_size = 1;
static int world_stderr = 2;     // where it speaks if it must

// How many processes mpirun has started; 0: none, as far as the environment tells. Under Slurm's srun it says 1,
// whatever their number.
static inline int world_started(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (int i = 0; i < 2; i++) if (getenv(names[i])) return atoi(getenv(names[i]));
    return getenv("PMIX_RANK") ? 1 : 0;
}

// Before exec: takes MPI's variables out of the environment, so that the new program does not count itself in.
static inline void world_leave(void) {
    static const char *const ours[] = {"OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_", "MPI_LOCAL"};
    char **to = environ;
    for (char **e = environ; *e; e++) {
        int i = 0; // which of ours
        while (i < 6 && strncmp(*e, ours[i], strlen(ours[i]))) i++;
        if (i == 6) *to++ = *e;
    }
    *to = NULL;
}

// Queries *begin .. *end-1 of n are this process's.
static inline void world_part(int n, int *begin, int *end) {
    *begin = (int)((long long)n * world_rank / world_size);
    *end = (int)((long long)n * (world_rank + 1) / world_size);
}

#ifdef USE_MPI
enum { WORLD_MOST = 1 << 28 };   // numbers at once: MPI counts in int

static inline void world_end(void) { MPI_Finalize(); }

// Call first. Process 0 speaks for all; the others keep a way to say why they end.
static inline void world_start(void) {
    int funneled;
    if (!world_started()) return; // MPI_Init takes a tenth of a second
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &funneled);
    atexit(world_end);
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world_size);
    if (!world_rank) return;
    int nowhere = open("/dev/null", O_WRONLY);
    world_stderr = dup(2);
    dup2(nowhere, 1), dup2(nowhere, 2);
    close(nowhere);
}

// This process's number among those on its machine.
static inline int world_local(void) {
    MPI_Comm local;
    int rank = 0;
    if (world_size == 1) return 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &rank);
    MPI_Comm_free(&local);
    return rank;
}

// Adds up n numbers, float or double by their size, in place. All processes get the same bits.
static inline void world_sum(void *v, size_t n, size_t size) {
    for (size_t at = 0, now; world_size > 1 && at < n; at += now) {
        now = n - at < WORLD_MOST ? n - at : WORLD_MOST;
        MPI_Allreduce(MPI_IN_PLACE, (char *)v + at * size, (int)now, size == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE,
                      MPI_SUM, MPI_COMM_WORLD);
    }
}

static inline void world_give(void *data, size_t bytes, int from) {
    for (size_t at = 0, now; world_size > 1 && at < bytes; at += now) {
        now = bytes - at < WORLD_MOST ? bytes - at : WORLD_MOST;
        MPI_Bcast((char *)data + at, (int)now, MPI_BYTE, from, MPI_COMM_WORLD);
    }
}

static inline void world_wait(void) { if (world_size > 1) MPI_Barrier(MPI_COMM_WORLD); }

// Ends all processes; returns where there is but one.
static inline void world_abort(int code) { if (world_size > 1) MPI_Abort(MPI_COMM_WORLD, code); }
#else
static inline void world_start(void) {}
static inline int world_local(void) { return 0; }
static inline void world_sum(void *v, size_t n, size_t size) { (void)v, (void)n, (void)size; }
static inline void world_give(void *data, size_t bytes, int from) { (void)data, (void)bytes, (void)from; }
static inline void world_wait(void) {}
static inline void world_abort(int code) { (void)code; }
#endif

#endif
