# cython: language_level=3
"""What this processor and this build have."""

cdef extern from *:
    """
    #if defined(_OPENMP)
    #define FK_OPENMP 1
    #else
    #define FK_OPENMP 0
    #endif

    #if defined(__x86_64__) && defined(__GNUC__)
    static int fk_has_avx2(void) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
            && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    }
    static int fk_has_avx512(void) {
        return fk_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int fk_has_avx2(void) { return 0; }
    static int fk_has_avx512(void) { return 0; }
    #endif

    #if defined(__clang__)
    #define FK_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FK_COMPILER "gcc " __VERSION__
    #else
    #define FK_COMPILER "unknown"
    #endif
    """
    const char* FK_COMPILER
    bint FK_OPENMP
    bint fk_has_avx2()
    bint fk_has_avx512()

cdef extern from "threads.h" nogil:
    const int FK_LARGE
    int fk_max_threads()
    int fk_in_forked_child
    int fk_threads_in_use
    void fk_watch_forks()
    int fk_may_pay(double bytes)
    int fk_kind(int op, int is_double, Py_ssize_t classes)
    int fk_enter(int kind, int most, int asked, double bytes)
    void fk_leave(int kind, int granted, double bytes)

compiler = FK_COMPILER.decode()
openmp = bool(FK_OPENMP)
avx2 = bool(fk_has_avx2())
avx512 = bool(fk_has_avx512())


def max_threads():
    """OpenMP's limit for this thread, which OMP_NUM_THREADS and threadpoolctl set; 1 without OpenMP."""
    return fk_max_threads()


def in_forked_child():
    """Whether this process was forked off after fastkl was imported: it then has no team of threads."""
    return bool(fk_in_forked_child)


def may_pay(double nbytes):
    """Whether a call of this thread that reads so many bytes might be granted more than one thread."""
    return bool(fk_may_pay(nbytes))


def threads_in_use():
    """How many threads the calls under way were granted, in the whole process."""
    return fk_threads_in_use


cdef bint on_one_thread(double nbytes) noexcept nogil:
    """Whether a call that reads so many bytes is granted no second thread unless it asks for it."""
    return nbytes < FK_LARGE


cdef int kind_of(int op, bint is_double, Py_ssize_t classes) noexcept nogil:
    return fk_kind(op, is_double, classes)


cdef int enter(int kind, int most, bint asked, double nbytes) noexcept nogil:
    return fk_enter(kind, most, asked, nbytes)


cdef void leave(int kind, int granted, double nbytes) noexcept nogil:
    fk_leave(kind, granted, nbytes)


# Not os.register_at_fork: a fork by a C library counts as well.
fk_watch_forks()
