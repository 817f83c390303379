/* Memory-mapped files that are cut short while they are read.
 *
 * Touching a mapped page which the file no longer has raises SIGBUS, and that kills the process. The handler here puts
 * zeros where the page was, notes that it did, and lets the load run again; the reader asks for the note before it
 * believes what it computed (Wayland's compositors keep their clients' pools from killing them in the same way). A
 * reader thus pays nothing for its safety, where reading into a buffer costs a copy of the whole file.
 *
 * sigaction and mmap are plain system calls on Linux and touch nothing but atomics here, so they may stand in a handler.
 */
#ifndef FASTKL_MAPPED_H
#define FASTKL_MAPPED_H

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FK_MAPPINGS 1024

static struct {
    atomic_uintptr_t first, last; /* first is 0 where the place is free, 1 while it is being filled */
    atomic_int lost;
} fk_mappings[FK_MAPPINGS];

static struct sigaction fk_before;
static long fk_page;

static void fk_on_sigbus(int number, siginfo_t *info, void *context) {
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    (void)context;
    if (info->si_code > 0) /* raised by a load, not sent by another process */
        for (int i = 0; i < FK_MAPPINGS; ++i) {
            uintptr_t first = atomic_load(&fk_mappings[i].first), last = atomic_load(&fk_mappings[i].last);
            if (first < 2 || at < first || at >= last) continue;
            /* All that follows is lost too: one fault, not one for each page. */
            uintptr_t page = at & ~(uintptr_t)(fk_page - 1);
            if (mmap((void *)page, last - page, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0) == MAP_FAILED) break;
            atomic_store(&fk_mappings[i].lost, 1);
            errno = saved;
            return;
        }
    /* Not ours: whoever handled it before does so when the load is repeated or the signal is sent once more. */
    sigaction(number, &fk_before, NULL);
    if (info->si_code <= 0) raise(number);
    errno = saved;
}

/* Watch over [address, address + size); a number to ask by, or -1 if too many are watched. The caller holds the GIL. */
static int fk_watch(const void *address, size_t size) {
    struct sigaction now;
    fk_page = sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, NULL, &now)) return -1;
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != fk_on_sigbus) {
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = fk_on_sigbus;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&ours.sa_mask);
        if (sigaction(SIGBUS, &ours, &fk_before)) return -1;
    }
    for (int i = 0; i < FK_MAPPINGS; ++i) {
        uintptr_t place = 0;
        if (!atomic_compare_exchange_strong(&fk_mappings[i].first, &place, 1)) continue;
        atomic_store(&fk_mappings[i].last, ((uintptr_t)address + size + fk_page - 1) & ~(uintptr_t)(fk_page - 1));
        atomic_store(&fk_mappings[i].lost, 0);
        atomic_store(&fk_mappings[i].first, (uintptr_t)address);
        return i;
    }
    return -1;
}

/* Stop watching; with the last one the handler of before is put back, if nobody has set another meanwhile. */
static void fk_unwatch(int place) {
    struct sigaction now;
    atomic_store(&fk_mappings[place].first, 0);
    for (int i = 0; i < FK_MAPPINGS; ++i)
        if (atomic_load(&fk_mappings[i].first)) return;
    if (!sigaction(SIGBUS, NULL, &now) && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == fk_on_sigbus)
        sigaction(SIGBUS, &fk_before, NULL);
}

#if !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 /* Linux 5.14; older ones refuse, and the pages come one by one */
#endif

/* Advice on the pages that [address, address + size) touches. What it cannot do is told when they are read. */
static void fk_advise(const char *address, size_t size, int advice) {
    uintptr_t first = (uintptr_t)address & ~(uintptr_t)(fk_page - 1);
    madvise((void *)first, (uintptr_t)address + size - first, advice);
}

static int fk_lost(int place) { return atomic_load(&fk_mappings[place].lost); }

#endif
