/* How many threads a call is granted: what is left beside other calls, and one where waking a team costs more than it
 * gains. The numbers are measured in docs/threads.md. Included by cpu.pyx alone, for all tiers share this state.
 */
#ifndef FASTKL_THREADS_H
#define FASTKL_THREADS_H

#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif
#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

/* A call that reads less is done before a second thread has got hold of its share. */
#define FK_LARGE (1 << 20)
/* libgomp's workers spin for some milliseconds after a region, then sleep. A large call that begins within FK_GAP of the
   last one's end finds them awake, if that one was parallel. */
#define FK_GAP 2000000
/* A call that takes FK_WAKING gains more than it costs to wake a team that keeps off its caller's CPU; so do calls that follow
   on one another within FK_GAP, once they have taken FK_STREAM: they wake it but once. */
#define FK_WAKING 300000
#define FK_STREAM 1000000
/* A team that is new has to be made, and its workers may be woken where the caller runs. That is worth it, as it is done but
   once, where a call takes so long, with what large calls have taken on one thread before it. */
#define FK_NEW 5000000
/* Where the other cores are busy every region loses. After such a loss calls stay serial, until they have taken FK_PATIENCE
   times what was lost beyond it. */
#define FK_LOSS 20000000
#define FK_PATIENCE 8
/* Nanoseconds a byte before any was measured: few, so that a call is not thought longer than it is. */
#define FK_FASTEST 0.03

/* Calls that take about the same time a byte: an operation, a type and a length of rows. */
#define FK_KINDS 1024

static int fk_threads_in_use;
static int fk_in_forked_child;
static double fk_ns_per_byte[FK_KINDS]; /* on one thread, as last measured; 0 for not yet */

/* Of the calling thread, for libgomp keeps a team for each: the CPU that its team keeps off, -1 without a team; whether its
   last large call was parallel, when that ended and when this one began, by the clock and by processor time (a call that
   had to wait is not a long one); how much of that its large calls have taken on one thread since the last parallel one, and
   since the last pause; and what parallel calls took more than serial ones had. */
static __thread int fk_home = -1, fk_parallel;
static __thread int64_t fk_ended, fk_began, fk_began_cpu, fk_alone, fk_streamed, fk_lost;

static int64_t fk_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int fk_kind(int op, int is_double, ptrdiff_t classes) {
    int length = 0;
    while (length < 7 && classes >> 3 * (length + 1)) length++;
    return (op << 4 | is_double << 3 | length) % FK_KINDS;
}

#if defined(_OPENMP)
static int fk_max_threads(void) { return omp_get_max_threads(); }
static int fk_processors(void) { return omp_get_num_procs(); }

/* Calls of other threads are not under way in the child; nor is libgomp's team there, and a region would wait for it. */
static void fk_after_fork(void) {
    fk_in_forked_child = 1;
    fk_threads_in_use = 0;
}

static void fk_watch_forks(void) { pthread_atfork(NULL, NULL, fk_after_fork); }
#else
static int fk_max_threads(void) { return 1; }
static int fk_processors(void) { return 1; }
static void fk_watch_forks(void) {}
#endif

/* A worker that sleeps is often woken on the very CPU on which the caller runs: the caller does its own share, spins at the
 * barrier, and gets the worker to do the other share when its time slice is used up, milliseconds later. So the workers of a
 * team keep off the CPU from which they are called: before it wakes them, the caller sets their masks, to all CPUs that they
 * were given, by whom ever, but that one. */
#if defined(_OPENMP) && defined(__linux__)
static int fk_cpu(void) { return sched_getcpu(); }

/* A worker; the CPU that was taken out of its mask, -1 for none, and a mark of the mask that was left: another mask is what
   somebody else has given it since. */
typedef struct {
    pid_t id;
    int off;
    uint64_t left;
} fk_worker;

/* Of the calling thread's team; more workers than that are not kept off. */
#define FK_WORKERS 256
static __thread fk_worker fk_team[FK_WORKERS];
static __thread int fk_workers;

static uint64_t fk_mark(const cpu_set_t *mask) {
    const unsigned char *byte = (const unsigned char *)mask;
    uint64_t mark = 14695981039346656037u; /* FNV-1a */
    size_t i;
    for (i = 0; i < sizeof *mask; i++) mark = (mark ^ byte[i]) * 1099511628211u;
    return mark;
}

/* Returns 0 where the worker has ended: its number may be that of a thread of another process. */
static int fk_keep_off(fk_worker *worker, int cpu, int workers) {
    cpu_set_t mask;
    int off = -1;
    if (syscall(SYS_tgkill, getpid(), worker->id, 0)) return errno != ESRCH;
    if (sched_getaffinity(worker->id, sizeof mask, &mask)) return 1;
    if (worker->off >= 0 && worker->left == fk_mark(&mask)) CPU_SET(worker->off, &mask);
    if (CPU_ISSET(cpu, &mask) && CPU_COUNT(&mask) > workers) { /* else more threads than CPUs: the caller's must do, too */
        CPU_CLR(cpu, &mask);
        off = cpu;
    }
    worker->off = sched_setaffinity(worker->id, sizeof mask, &mask) ? -1 : off;
    worker->left = fk_mark(&mask);
    return 1;
}

/* The CPU that the calling thread is on, from now on its team's home. */
static void fk_go_home(int cpu) {
    int i;
    for (i = 0; i < fk_workers; i++)
        if (!fk_keep_off(&fk_team[i], cpu, fk_workers)) { /* not the team it was: as good as none */
            fk_workers = 0;
            fk_home = -1;
            return;
        }
    fk_home = cpu;
}

/* Where workers do not spin, by the user's word, neither does the caller: they wake it, often to where they are. */
static int fk_spins(void) {
    const char *policy = getenv("OMP_WAIT_POLICY");
    return getenv("GOMP_SPINCOUNT") == NULL && (policy == NULL || strcasecmp(policy, "passive") != 0);
}

/* Before a region: the caller may have moved. */
static void fk_follow_caller(void) {
    int cpu = fk_cpu();
    if (fk_workers && cpu != fk_home) fk_go_home(cpu);
}

/* After the first region of a team: a second one, short while the workers are awake, in which they say who they are. */
static void fk_place_team(int threads) {
    fk_worker *team = fk_team;
    int cpu = fk_cpu(), workers = threads <= FK_WORKERS ? threads - 1 : FK_WORKERS;
    if ((workers == fk_workers && cpu == fk_home) || cpu < 0 || !fk_spins()) return;
    if (omp_get_proc_bind() != omp_proc_bind_false) { /* OMP_PROC_BIND has placed them */
        fk_home = cpu;
        return;
    }
    if (workers != fk_workers) {
#pragma omp parallel num_threads(threads)
        {
            int i = omp_get_thread_num() - 1;
            pid_t id = (pid_t)syscall(SYS_gettid);
            if (i >= 0 && i < workers && team[i].id != id) {
                team[i].id = id;
                team[i].off = -1;
            }
        }
        fk_workers = workers;
    }
    fk_go_home(cpu);
}
#else
static void fk_place_team(int threads) { (void)threads; }
static void fk_follow_caller(void) {}
#endif

/* Whether a call might be granted more than one thread: asking the system how many there are takes 25 us where its code has
   left the cache. */
static int fk_may_pay(double bytes) {
    return bytes >= 2 * FK_LARGE || (bytes >= FK_LARGE && fk_clock(CLOCK_MONOTONIC) - fk_ended <= FK_GAP);
}

static int fk_pays(int kind, double bytes) {
    double rate;
    int64_t takes;
    int follows = fk_began - fk_ended <= FK_GAP;
    if (!follows) fk_streamed = 0;
    if (fk_lost >= FK_LOSS) return 0;
    if (follows && fk_parallel) return 1; /* the team is awake */
    __atomic_load(&fk_ns_per_byte[kind], &rate, __ATOMIC_RELAXED);
    takes = (int64_t)(bytes * (rate > 0 ? rate : FK_FASTEST));
    if (fk_streamed < FK_STREAM && takes < FK_WAKING) return 0;
    return fk_home >= 0 || fk_alone + takes >= FK_NEW;
}

/* The threads for a call that may have `most`, by its caller's word (asked) or by the policy, and reads so many bytes.
   What is granted is in use until fk_leave. */
static int fk_enter(int kind, int most, int asked, double bytes) {
    int in_use, room, granted;
    if (fk_in_forked_child) return 1;
    if (bytes >= FK_LARGE) {
        fk_began = fk_clock(CLOCK_MONOTONIC);
        if (!asked && !fk_pays(kind, bytes)) most = 1;
        fk_began_cpu = fk_clock(CLOCK_THREAD_CPUTIME_ID);
    }
    in_use = __atomic_load_n(&fk_threads_in_use, __ATOMIC_RELAXED);
    do {
        room = most;
        if (asked && in_use > 0 && room > 1 && room < fk_processors()) room = fk_processors();
        room -= in_use;
        granted = room < 1 ? 1 : room < most ? room : most;
    } while (!__atomic_compare_exchange_n(&fk_threads_in_use, &in_use, in_use + granted, 0, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    if (granted > 1 && bytes >= FK_LARGE) fk_follow_caller();
    return granted;
}

static void fk_leave(int kind, int granted, double bytes) {
    double rate, last;
    int64_t spent;
    if (fk_in_forked_child) return;
    __atomic_fetch_sub(&fk_threads_in_use, granted, __ATOMIC_RELAXED);
    if (bytes < FK_LARGE) return;
    fk_ended = fk_clock(CLOCK_MONOTONIC);
    __atomic_load(&fk_ns_per_byte[kind], &last, __ATOMIC_RELAXED);
    fk_parallel = granted > 1;
    if (granted > 1) {
        fk_alone = fk_streamed = 0;
        fk_place_team(granted);
        if (last > 0) fk_lost += (fk_ended - fk_began) - (int64_t)(last * bytes);
        fk_lost = fk_lost < 0 ? 0 : fk_lost < 2 * FK_LOSS ? fk_lost : 2 * FK_LOSS;
        return;
    }
    spent = fk_clock(CLOCK_THREAD_CPUTIME_ID) - fk_began_cpu;
    fk_alone += spent;
    fk_streamed += spent;
    fk_lost -= fk_lost < spent / FK_PATIENCE ? fk_lost : spent / FK_PATIENCE;
    rate = (double)spent / bytes;
    if (last > 0 && rate > last) rate = last + (rate - last) / 8; /* a neighbour may have slowed it down */
    __atomic_store(&fk_ns_per_byte[kind], &rate, __ATOMIC_RELAXED);
}

#endif
