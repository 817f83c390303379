# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# Whatever the compiler takes the machine to have without being told: SSE2 on x86-64, NEON on aarch64.
include "kernels.pxi"
