# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
cdef extern from *:
    '#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")'
include "kernels.pxi"
