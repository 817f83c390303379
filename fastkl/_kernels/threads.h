/* How many threads a call is granted: what is left beside other calls, and one where waking a team costs more than it
 * gains. The numbers are measured in docs/threads.md. Included by cpu.pyx alone, for all tiers share this state.
 */
#ifndef FASTKL_THREADS_H
#define FASTKL_THREADS_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>
#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif

/* A call that reads less is done before a second thread has got hold of its share. As large are the calls that count as a
   stream. */
#define FK_LARGE (1 << 20)
/* libgomp's workers spin for some milliseconds after a region, then sleep. A large call that begins within FK_GAP of the
   last one's end finds them awake, if that one was parallel. */
#define FK_GAP 2000000
/* A woken worker may come to lie on the caller's own core, and run only when the caller has spun out its time slice at the
   barrier: one or two slices of 4 ms are lost. A single call of FK_LONG gains more than it loses; so do calls that follow
   on one another, once they have taken FK_STREAM: they lose it but once. */
#define FK_LONG 12000000
#define FK_STREAM 5000000
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

/* Of the calling thread, for libgomp keeps a team for each: when its last large call ended and when this one began, by
   the clock and by processor time (a call that had to wait is not a long one); how much of that its stream of large calls
   has taken on one thread, FK_STREAM once they are parallel; and what parallel calls took more than serial ones had. */
static __thread int64_t fk_ended, fk_began, fk_began_cpu, fk_streamed, fk_lost;

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

/* Whether a call might be granted more than one thread: asking the system how many there are takes 25 us where its code has
   left the cache. No byte takes a nanosecond. */
static int fk_may_pay(double bytes) {
    return bytes >= FK_LONG || (bytes >= FK_LARGE && fk_clock(CLOCK_MONOTONIC) - fk_ended <= FK_GAP);
}

static int fk_pays(int kind, double bytes) {
    double rate;
    if (fk_began - fk_ended > FK_GAP) fk_streamed = 0;
    __atomic_load(&fk_ns_per_byte[kind], &rate, __ATOMIC_RELAXED);
    return fk_lost < FK_LOSS && (fk_streamed >= FK_STREAM || bytes * (rate > 0 ? rate : FK_FASTEST) >= FK_LONG);
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
    if (granted > 1) {
        fk_streamed = FK_STREAM;
        if (last > 0) fk_lost += (fk_ended - fk_began) - (int64_t)(last * bytes);
        fk_lost = fk_lost < 0 ? 0 : fk_lost < 2 * FK_LOSS ? fk_lost : 2 * FK_LOSS;
        return;
    }
    spent = fk_clock(CLOCK_THREAD_CPUTIME_ID) - fk_began_cpu;
    fk_streamed += spent;
    fk_lost -= fk_lost < spent / FK_PATIENCE ? fk_lost : spent / FK_PATIENCE;
    rate = (double)spent / bytes;
    if (last > 0 && rate > last) rate = last + (rate - last) / 8; /* a neighbour may have slowed it down */
    __atomic_store(&fk_ns_per_byte[kind], &rate, __ATOMIC_RELAXED);
}

#endif
