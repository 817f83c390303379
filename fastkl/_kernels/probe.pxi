# What the tests and the benchmarks ask of a tier and no operation needs: the maths functions by name, and the machine's
# speed of light.

import numpy as np


cdef extern from "vmath.h" nogil:
    float log1p_unit_f32(float y)
    double log1p_unit_f64(double y)
    float log1m_f32(float y)
    double log1m_f64(double y)
    double kl_term_f64(double p, double q)

cdef enum:
    SHAPES = 7
    UNITS = 10


cdef inline real shape_of(int which, real t) noexcept nogil:
    """kl_fall, kl_rise or js_shape of t, called as pair_lanes calls them."""
    cdef real e = exp_up(-t) * <real>FK_DOWN, fall = kl_fall(t, e), half = 0.5, rest = 1 - e
    rest = t - fall if t < half else rest
    if which == 0:
        return fall
    return kl_rise(t, e, fall, rest) if which == 1 else js_shape(t, e, rest)


cdef void apply_vmath(int which, const real* x, const real* y, const real* z, real* out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef double hi, lo
    if which == 0:
        for i in range(n):
            out[i] = exp_up(x[i])
    elif which == 1:
        for i in range(n):
            out[i] = log_of(x[i])
    elif which == 2:
        for i in range(n):
            if real is float:
                out[i] = kl_term_f32(x[i], y[i])
            else:
                out[i] = kl_term_f64(x[i], y[i])
    elif which == UNITS:
        for i in range(n):
            if real is float:
                out[i] = log1p_unit_f32(x[i])
            else:
                out[i] = log1p_unit_f64(x[i])
    elif which == UNITS + 1:
        for i in range(n):
            if real is float:
                out[i] = log1m_f32(x[i])
            else:
                out[i] = log1m_f64(x[i])
    elif which == UNITS + 2:
        for i in range(n):
            if real is float:
                out[i] = binary_logits_f32(x[i], y[i])
            else:
                out[i] = binary_logits_f64(x[i], y[i])
    elif which == UNITS + 3:
        for i in range(n):
            if real is float:
                out[i] = binary_probs_f32(x[i], y[i])
            else:
                out[i] = binary_probs_f64(x[i], y[i])
    elif SHAPES <= which < UNITS:
        for i in range(n):
            out[i] = shape_of(which - SHAPES, x[i])
    elif which == UNITS + 5:
        for i in range(n):
            out[i] = weight_of(x[i])
    elif which == UNITS + 6:
        for i in range(n):
            out[i] = kl_excess(x[i])
    elif which == UNITS + 10:
        for i in range(n):
            out[i] = shannon_term(x[i])
    if real is double:
        if which == 3:
            for i in range(n):
                out[i] = log_any_f64(x[i])
        elif which == 4:
            for i in range(n):
                out[i] = log1p_f64(x[i])
        elif which == 5:
            for i in range(n):
                out[i] = kl_term_any_f64(x[i], y[i], z[i])
        elif which == 6:
            for i in range(n):
                out[i] = xlogy_any_f64(x[i], y[i])
        elif which == UNITS + 4:
            for i in range(n):
                out[i] = exp_any_f64(x[i])
        elif which == UNITS + 7:
            for i in range(n):
                out[i] = log1p_gap_f64(x[i])
        elif which == UNITS + 8:
            for i in range(n):
                log1p_sum_split_f64(x[i], &hi, &lo)
                out[i] = hi + lo
        elif which == UNITS + 9:
            for i in range(n):
                out[i] = log1p_sum_f32(x[i])


# Those of vmath's names that have no form for floats.
DOUBLE_ONLY = (3, 4, 5, 6, UNITS + 4, UNITS + 7, UNITS + 8, UNITS + 9)


def vmath(str name, *arrays):
    """Apply a function of vmath.h to contiguous arrays of one length and type, element by element."""
    names = ("exp_up", "log", "kl_term", "log_any", "log1p", "kl_term_any", "xlogy_any", "kl_fall", "kl_rise", "js_shape",
             "log1p_unit", "log1m", "binary_logits", "binary_probs", "exp_any", "exp_weight", "kl_excess", "log1p_gap",
             "log1p_sum", "log1p_sum_single", "shannon_term")
    arity = (1, 1, 2, 1, 1, 3, 2, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1)
    cdef int which = names.index(name)
    cdef double[::1] x64, y64, z64, out64
    cdef float[::1] x32, y32, out32
    if len(arrays) != arity[which] or any(a.dtype != arrays[0].dtype or a.shape != arrays[0].shape for a in arrays):
        raise ValueError(f"{name} takes {arity[which]} arrays of one shape and type")
    out = np.empty_like(arrays[0])
    if out.size == 0:
        return out
    if out.dtype == np.float32 and which not in DOUBLE_ONLY:
        x32, y32, out32 = arrays[0], arrays[arity[which] - 1], out
        apply_vmath[float](which, &x32[0], &y32[0], NULL, &out32[0], x32.shape[0])
    elif out.dtype == np.float64:
        x64, y64, z64, out64 = arrays[0], arrays[arity[which] // 2], arrays[arity[which] - 1], out
        apply_vmath[double](which, &x64[0], &y64[0], &z64[0], &out64[0], x64.shape[0])
    else:
        raise ValueError(f"{name} has no form for {out.dtype}")
    return out


cdef uint64_t read_all(const uint64_t* x, Py_ssize_t n) noexcept nogil:
    """Read n words, a vector of lanes at a time, and do nothing with them that takes time."""
    cdef uint64_t t[LANES]
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        t[j] = 0
    for i in range(n // LANES):
        for j in range(LANES):
            t[j] |= x[i * LANES + j]
    for j in range(LANES):
        total |= t[j]
    return total


def stream_read(cnp.ndarray array, int threads=1):
    """Read a contiguous array from end to end, as fast as the machine can; returns a number that depends on all of it."""
    cdef const uint64_t* x = <const uint64_t*>cnp.PyArray_DATA(array)
    cdef Py_ssize_t n = cnp.PyArray_NBYTES(array) // 8, step = 8192, t
    cdef uint64_t total = 0
    with nogil:
        if threads == 1:
            total = read_all(x, n)
        else:
            for t in prange(n // step, num_threads=threads, schedule="static"):
                total |= read_all(x + t * step, step)
    return total


def stream_write(cnp.ndarray array, int threads=1):
    """Fill a contiguous array with zeros by non-temporal stores."""
    cdef char* out = cnp.PyArray_BYTES(array)
    cdef char zeros[4096]
    cdef Py_ssize_t n = cnp.PyArray_NBYTES(array) // 4096, t
    for t in range(4096):
        zeros[t] = 0
    with nogil:
        for t in prange(n, num_threads=threads, schedule="static"):
            fk_stream(out + t * 4096, zeros, 4096)
        fk_stream_end()
