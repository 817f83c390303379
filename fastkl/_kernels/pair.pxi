# The divergences of two models from their logits, p = softmax(a) and q = softmax(b).
#
# With x = log(p / q), t = abs(x) and e = exp(-t), each divergence is a sum of terms max(p, q) f(t), f >= 0: nothing
# cancels at any scale, however small. An error h that x has for all classes, from the logs of the sums, adds h^2 / 2 to
# a KL and a quarter of that to JS; it is taken off again: the sum of q - p is h.

cdef extern from "vmath.h" nogil:
    float kl_fall_f32(float t, float e)
    double kl_fall_f64(double t, double e)
    float kl_rise_f32(float t, float e, float fall, float rest)
    double kl_rise_f64(double t, double e, double fall, double rest)
    float js_shape_f32(float t, float e, float rest)
    double js_shape_f64(double t, double e, double rest)

# Of two rows of logits a and b, a lane each: what turns them into x = log(p / q), p = softmax(a), q = softmax(b).
cdef struct Normalisers:
    double shift[LANES]             # the difference of the references: shift + shift_lo exactly
    double shift_lo[LANES]
    double logs[LANES]              # the difference of the logs of the sums
    double ratio[LANES]             # about the ratio of the sums of probabilities
    double a[LANES]                 # references
    double b[LANES]
    double a_factor[LANES]          # what turns exp_up(a - reference) into p
    double b_factor[LANES]


cdef inline real kl_fall(real t, real e) noexcept nogil:
    if real is float:
        return kl_fall_f32(t, e)
    else:
        return kl_fall_f64(t, e)


cdef inline real kl_rise(real t, real e, real fall, real rest) noexcept nogil:
    if real is float:
        return kl_rise_f32(t, e, fall, rest)
    else:
        return kl_rise_f64(t, e, fall, rest)


cdef inline real js_shape(real t, real e, real rest) noexcept nogil:
    if real is float:
        return js_shape_f32(t, e, rest)
    else:
        return js_shape_f64(t, e, rest)


cdef loop pair_lanes(const real* a, const real* b, const real* ratio, Py_ssize_t count, const real* a_patch,
                     const real* b_patch, const real* ratio_patch, const Py_ssize_t* at, const Normalisers* norm,
                     bint middle, double* with_a, double* with_b, double* js, double* gaps) noexcept nogil:
    """Per lane the sums of p log(p/q) - p + q, of q log(q/p) - q + p, if asked of the Jensen-Shannon terms, and of
    q - p. ratio: log of the unnormalised p/q where that is known better than by a - b, or NULL."""
    cdef real s[LANES]
    cdef real r[LANES]
    cdef real w[LANES]
    cdef real g[LANES]
    cdef real x[LANES]
    cdef real t[LANES]
    cdef real e[LANES]
    cdef real larger[LANES]
    cdef double difference[LANES]
    cdef double low[LANES]
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef real fa[LANES]
    cdef real fb[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* v
    cdef const real* y
    cdef const real* given
    cdef double part, z, none = 0
    cdef real d, factor, fall, rest, rise, zero = 0, half = 0.5, one = 1, most = -lowest(<real>0)
    cdef real infinity = INFINITY, down = FK_DOWN
    for j in range(LANES):
        ma[j] = <real>norm.a[j]
        mb[j] = <real>norm.b[j]
        fa[j] = <real>norm.a_factor[j]
        fb[j] = <real>norm.b_factor[j]
        with_a[j] = with_b[j] = js[j] = gaps[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = r[j] = w[j] = g[j] = 0
        while i < stop:
            v = vector_at(a, i, a_patch, at)
            y = vector_at(b, i, b_patch, at)
            for j in range(LANES):
                difference[j] = <double>v[j] - <double>y[j]
            if real is double:
                for j in range(LANES):
                    part = difference[j] - v[j]
                    z = (v[j] - (difference[j] - part)) - (y[j] + part)
                    low[j] = (z if z == z else none) - norm.shift_lo[j]
            if ratio != NULL:
                given = vector_at(ratio, i, ratio_patch, at)
                for j in range(LANES):
                    difference[j] = given[j]
                    low[j] = 0
            for j in range(LANES):
                z = difference[j] - norm.shift[j]
                if real is double:
                    z += low[j]
                z -= norm.logs[j]
                z = z if z == z else none      # both -inf: absent
                x[j] = <real>z
            for j in range(LANES):
                t[j] = x[j] if x[j] > zero else -x[j]
                d = t[j] if t[j] < most else most     # inf * 0 would be NaN
                e[j] = exp_up(-d) * down
                d = v[j] - ma[j]
                rest = y[j] - mb[j]
                d = d if x[j] > zero else rest
                factor = fa[j] if x[j] > zero else fb[j]
                larger[j] = exp_up(d) * factor
            if middle:
                for j in range(LANES):
                    d = t[j] if t[j] < most else most
                    rest = d - kl_fall(d, e[j])
                    fall = one - e[j]
                    rest = rest if d < half else fall
                    w[j] += larger[j] * js_shape(d, e[j], rest)
            for j in range(LANES):
                d = t[j] if t[j] < most else most
                fall = kl_fall(d, e[j])
                rest = d - fall
                rise = one - e[j]
                rest = rest if d < half else rise
                rise = kl_rise(d, e[j], fall, rest) * larger[j]
                fall *= larger[j]
                fall = infinity if t[j] > most else fall     # one of the two is 0
                rest *= larger[j]
                g[j] += -rest if x[j] > zero else rest
                s[j] += fall if x[j] > zero else rise
                r[j] += rise if x[j] > zero else fall
            i += 1
        for j in range(LANES):
            with_a[j] += s[j]
            with_b[j] += r[j]
            js[j] += w[j]
            gaps[j] += g[j]


cdef bint normalisers(const Sums* a, Py_ssize_t i, const Sums* b, Py_ssize_t j, Py_ssize_t lane,
                      Normalisers* norm) noexcept nogil:
    """What turns row i of a and row j of b into x; returns whether both hold a distribution."""
    cdef double hi, lo, a_log, b_log, shift, part
    cdef double y = excess(a, i), z = excess(b, j)
    log1p_split_f64(y, &hi, &lo)
    a_log = hi + lo
    log1p_split_f64(z, &hi, &lo)
    b_log = hi + lo
    shift = a.m[i] - b.m[j]
    part = shift - a.m[i]
    norm.shift[lane] = shift
    norm.shift_lo[lane] = (a.m[i] - (shift - part)) - (b.m[j] + part)
    norm.logs[lane] = a_log - b_log
    norm.a[lane] = a.m[i]
    norm.b[lane] = b.m[j]
    norm.a_factor[lane] = FK_DOWN / (1 + y)
    norm.b_factor[lane] = FK_DOWN / (1 + z)
    # A +inf or a NaN among the logits, or nothing above -inf.
    return a.m[i] < INFINITY and b.m[j] < INFINITY and y == y and z == z and y > -1 and z > -1


cdef struct Divergences:
    double kl[TILE]
    double reverse_kl[TILE]
    double js[TILE]


cdef inline void settle_divergences(double with_a, double with_b, double js, double gap, bint valid, Py_ssize_t i,
                                    Divergences* out) noexcept nogil:
    """a is the model, b the reference."""
    out.kl[i] = not_negative(with_b - 0.5 * gap * gap) if valid else NAN
    out.reverse_kl[i] = not_negative(with_a - 0.5 * gap * gap) if valid else NAN
    out.js[i] = not_negative(js - 0.125 * gap * gap) if valid else NAN


cdef void pair_block(const real* a, const real* b, const real* ratio, Py_ssize_t n, const Normalisers* norm,
                     bint middle, double* sums) noexcept nogil:
    """Add a block of two rows to sums: with_a, with_b, js and gap, a two-sum each."""
    cdef real a_patch[3 * LANES]
    cdef real b_patch[3 * LANES]
    cdef real ratio_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double with_a[LANES]
    cdef double with_b[LANES]
    cdef double js[LANES]
    cdef double gaps[LANES]
    cdef Py_ssize_t count = start_patches(a, n, <real>-INFINITY, a_patch, at)
    start_patches(b, n, <real>-INFINITY, b_patch, at)
    if ratio != NULL:
        start_patches(ratio, n, <real>0, ratio_patch, at)
    pair_lanes(a, b, ratio, count, a_patch, b_patch, ratio_patch, at, norm, middle, with_a, with_b, js, gaps)
    two_sum_add(&sums[0], &sums[1], fold_sum(with_a))
    two_sum_add(&sums[2], &sums[3], fold_sum(with_b))
    two_sum_add(&sums[4], &sums[5], fold_sum(js))
    two_sum_add(&sums[6], &sums[7], fold_sum(gaps))
