# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
cdef extern from *:
    '#pragma GCC target("arch=x86-64-v3")'
include "kernels.pxi"
