# cython: language_level=3
"""What this processor and this build have."""

cdef extern from *:
    """
    #if defined(_OPENMP)
    #include <omp.h>
    #define FK_OPENMP 1
    static int fk_max_threads(void) { return omp_get_max_threads(); }
    #else
    #define FK_OPENMP 0
    static int fk_max_threads(void) { return 1; }
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
    int fk_max_threads() nogil
    bint fk_has_avx2()
    bint fk_has_avx512()

compiler = FK_COMPILER.decode()
openmp = bool(FK_OPENMP)
avx2 = bool(fk_has_avx2())
avx512 = bool(fk_has_avx512())


def max_threads():
    """OpenMP's limit for this thread, which OMP_NUM_THREADS and threadpoolctl set; 1 without OpenMP."""
    return fk_max_threads()
