# Sums of a pointwise term over probabilities: entropy, cross-entropy and the KL family.
#
# A fast loop is right for ordinary numbers and finds the extremes of what it read; where they say that a block holds
# something else (a negative number, a zero under a positive one, a denormal, an infinity), or where its sum is not
# finite, that block is summed again out of L1 by the form that is right for every double. So the common case pays three
# minima and maxima, and no input gets a plausible wrong number. Which form a block takes depends on that row alone.


cdef extern from "math.h" nogil:
    double fma(double x, double y, double z)


cdef inline real smallest_q(real like) noexcept nogil:
    """Below this q (and above `largest` for p) the fast KL term is out of its domain."""
    if real is float:
        return 2.0 ** -96
    else:
        return 2.0 ** -960


cdef inline real largest(real like) noexcept nogil:
    if real is float:
        return 2.0 ** 100
    else:
        return 2.0 ** 960


cdef inline real absent_p(int op, real like) noexcept nogil:
    """What stands for p where there is no element: with absent_q it adds exactly nothing to the terms and to p - q and
    stays within the fast loops' domain. KL's adds smallest_q to the sum of p, which divergence_block takes off again."""
    return <real>0 if op == ENTROPY or op == CROSS_ENTROPY else smallest_q(like)


cdef inline real absent_q(int op, real like) noexcept nogil:
    return <real>1 if op == CROSS_ENTROPY else smallest_q(like)


cdef void kl_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                   const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                   real* p_low, real* p_high, real* q_low) noexcept nogil:
    """Per lane: sum of the KL terms; for KL the sum of p - q, for KL_NORMALIZED the sum of p too. Where the data is
    float64 that difference is a two-sum: near-equal rows leave far less than its rounding."""
    cdef real s[LANES]
    cdef real a[LANES]
    cdef real b[LANES]
    cdef real c[LANES]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* x
    cdef const real* y
    cdef double z, sum, z_part
    for j in range(LANES):
        t[j] = d[j] = e[j] = w[j] = 0
        a[j] = c[j] = 1
        b[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            x = vector_at(p, i, p_patch, at)
            y = vector_at(q, i, q_patch, at)
            for j in range(LANES):
                s[j] += kl_term(x[j], y[j])
                a[j] = x[j] if x[j] < a[j] else a[j]
                b[j] = x[j] if x[j] > b[j] else b[j]
                c[j] = y[j] if y[j] < c[j] else c[j]
            if op != GENERALIZED_KL:
                if real is float:
                    for j in range(LANES):
                        d[j] += <double>(x[j] - y[j])
                else:
                    for j in range(LANES):
                        z = x[j] - y[j]
                        sum = d[j] + z
                        z_part = sum - d[j]
                        e[j] += (d[j] - (sum - z_part)) + (z - z_part)
                        d[j] = sum
            if op == KL_NORMALIZED:
                for j in range(LANES):
                    w[j] += <double>x[j]
            i += 1
        for j in range(LANES):
            t[j] += s[j]
    for j in range(LANES):
        sums[j] = t[j]
        differences[j] = d[j]
        differences_lo[j] = e[j]
        masses[j] = w[j]
        p_low[j] = a[j]
        p_high[j] = b[j]
        q_low[j] = c[j]


cdef void entropy_lanes(const real* p, Py_ssize_t count, const real* patch, const Py_ssize_t* at, double* sums,
                        real* p_low, real* p_high) noexcept nogil:
    """Per lane: sum of -p log p."""
    cdef real s[LANES]
    cdef real a[LANES]
    cdef real b[LANES]
    cdef double t[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* x
    for j in range(LANES):
        t[j] = 0
        a[j] = 1
        b[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            x = vector_at(p, i, patch, at)
            for j in range(LANES):
                s[j] -= x[j] * log_of(x[j])
                a[j] = x[j] if x[j] < a[j] else a[j]
                b[j] = x[j] if x[j] > b[j] else b[j]
            i += 1
        for j in range(LANES):
            t[j] += s[j]
    for j in range(LANES):
        sums[j] = t[j]
        p_low[j] = a[j]
        p_high[j] = b[j]


cdef void cross_entropy_lanes(const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                              const Py_ssize_t* at, double* sums, real* p_low, real* q_low, real* q_high) noexcept nogil:
    """Per lane: sum of -p log q."""
    cdef real s[LANES]
    cdef real a[LANES]
    cdef real b[LANES]
    cdef real c[LANES]
    cdef double t[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* x
    cdef const real* y
    for j in range(LANES):
        t[j] = 0
        a[j] = b[j] = 1
        c[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            x = vector_at(p, i, p_patch, at)
            y = vector_at(q, i, q_patch, at)
            for j in range(LANES):
                s[j] -= x[j] * log_of(y[j])
                a[j] = x[j] if x[j] < a[j] else a[j]
                b[j] = y[j] if y[j] < b[j] else b[j]
                c[j] = y[j] if y[j] > c[j] else c[j]
            i += 1
        for j in range(LANES):
            t[j] += s[j]
    for j in range(LANES):
        sums[j] = t[j]
        p_low[j] = a[j]
        q_low[j] = b[j]
        q_high[j] = c[j]


cdef void any_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                    const Py_ssize_t* at, double* sums, double* differences, double* differences_lo,
                    double* masses) noexcept nogil:
    """The same sums, in double, by the terms that are right for every pair of numbers."""
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef const real* x
    cdef const real* y
    cdef double z, sum, z_part
    for j in range(LANES):
        t[j] = d[j] = e[j] = w[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        if op == ENTROPY:
            for j in range(LANES):
                t[j] -= xlogy_any_f64(x[j], x[j])
            continue
        y = vector_at(q, i, q_patch, at)
        if op == CROSS_ENTROPY:
            for j in range(LANES):
                t[j] -= xlogy_any_f64(x[j], y[j])
            continue
        for j in range(LANES):
            t[j] += kl_term_any_f64(x[j], y[j], 0)
        for j in range(LANES):
            w[j] += <double>x[j]
            z = <double>x[j] - <double>y[j]
            sum = d[j] + z
            z_part = sum - d[j]
            e[j] += (d[j] - (sum - z_part)) + (z - z_part)
            d[j] = sum
    for j in range(LANES):
        sums[j] = t[j]
        differences[j] = d[j]
        differences_lo[j] = e[j]
        masses[j] = w[j]


cdef inline bint ordinary(int op, double total, real p_low, real p_high, real q_low, real q_high) noexcept nogil:
    """Whether a fast loop was within its domain, judged by the extremes of what it read; NaN shows in the total."""
    if not (total - total == 0 and p_low >= 0):
        return False
    if op == ENTROPY:
        return p_high < largest(p_high)
    if op == CROSS_ENTROPY:
        return q_low > 0 and q_high < largest(q_high)
    return p_high < largest(p_high) and q_low >= smallest_q(q_low)


cdef void fast_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                     const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                     real* p_low, real* p_high, real* q_low, real* q_high) noexcept nogil:
    """The operation's fast loop; the extremes that it does not need are left alone."""
    if op == ENTROPY:
        entropy_lanes(p, count, p_patch, at, sums, p_low, p_high)
    elif op == CROSS_ENTROPY:
        cross_entropy_lanes(p, q, count, p_patch, q_patch, at, sums, p_low, q_low, q_high)
    else:
        kl_lanes(op, p, q, count, p_patch, q_patch, at, sums, differences, differences_lo, masses, p_low, p_high, q_low)


cdef void divergence_block(int op, const real* p, const real* q, Py_ssize_t n, State* st) noexcept nogil:
    """Add a block to a row's state: s the terms, u (KL, KL_NORMALIZED) the sum of p - q, v (KL_NORMALIZED) that of p."""
    cdef real p_patch[3 * LANES]
    cdef real q_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef real a[LANES]
    cdef real b[LANES]
    cdef real c[LANES]
    cdef real f[LANES]
    cdef double total
    cdef Py_ssize_t count = start_patches(p, n, absent_p(op, p[0]), p_patch, at)
    cdef int j
    if op != ENTROPY:
        start_patches(q, n, absent_q(op, p[0]), q_patch, at)
    for j in range(LANES):
        c[j] = f[j] = 1
    fast_lanes(op, p, q, count, p_patch, q_patch, at, t, d, e, w, a, b, c, f)
    total = fold_sum(t)
    if not ordinary(op, total, fold_min(a), fold_max(b), fold_min(c), fold_max(f)):
        any_lanes(op, p, q, count, p_patch, q_patch, at, t, d, e, w)
        total = fold_sum(t)
    two_sum_add(&st.s, &st.s_lo, total)
    if op == KL or op == KL_NORMALIZED:
        fold_two_sum(d, e)
        two_sum_add(&st.u, &st.u_lo, d[0])
        st.u_lo += e[0]
    if op == KL_NORMALIZED:
        st.v += fold_sum(w) - (count * LANES - n) * <double>absent_p(op, p[0])


cdef void divergence_across(int op, const real* p, const real* q, Py_ssize_t classes, Sums* a) noexcept nogil:
    """A tile of short rows, one lane a row; a row outside the fast domain takes the other form without its neighbours."""
    cdef Py_ssize_t at[3]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef real p_low[LANES]
    cdef real p_high[LANES]
    cdef real q_low[LANES]
    cdef real q_high[LANES]
    cdef bint odd[LANES]
    cdef bint any_odd = False
    cdef int j
    at[0] = at[1] = at[2] = -1
    for j in range(LANES):
        q_low[j] = q_high[j] = 1
        t[j] = d[j] = e[j] = w[j] = 0
        a.s_lo[j] = 0
    fast_lanes(op, p, q, classes, p, q, at, a.s, a.u, a.u_lo, a.v, p_low, p_high, q_low, q_high)
    for j in range(LANES):
        odd[j] = not ordinary(op, a.s[j], p_low[j], p_high[j], q_low[j], q_high[j])
        any_odd |= odd[j]
    if any_odd:
        any_lanes(op, p, q, classes, p, q, at, t, d, e, w)
        for j in range(LANES):
            if odd[j]:
                a.s[j] = t[j]
                a.u[j] = d[j]
                a.u_lo[j] = e[j]
                a.v[j] = w[j]


cdef void merge_divergence(State* st, const State* other) noexcept nogil:
    """Add a later chunk's sums to a row's."""
    two_sum_add(&st.s, &st.s_lo, other.s)
    st.s_lo += other.s_lo
    two_sum_add(&st.u, &st.u_lo, other.u)
    st.u_lo += other.u_lo
    st.v += other.v


cdef void finish_divergence(int op, const Sums* a, Py_ssize_t rows, double scale, double* out) noexcept nogil:
    cdef double total, t, excess_mass
    cdef Py_ssize_t j
    for j in range(rows):
        if op == KL:
            # the two parts may cancel; each is right by itself
            total = closed(a.s[j] + a.u[j], a.s_lo[j] + a.u_lo[j])
        elif op == KL_NORMALIZED:
            # KL(p/P || q/Q) = G/P - (t - log1p(t)), t = Q/P - 1
            t = -closed(a.u[j], a.u_lo[j]) / a.v[j]
            total = closed(a.s[j], a.s_lo[j]) / a.v[j] - (t - log1p_f64(t))
        else:
            total = closed(a.s[j], a.s_lo[j])
        out[j] = total * scale + 0.0     # + 0.0: a one-hot row's entropy is +0, not -0


cdef inline bint needs_rescaling(const Sums* a, Py_ssize_t j) noexcept nogil:
    """Whether P and Q differ so much that G/P - (t - log1p(t)) would lose digits, and the row is worth a second read."""
    cdef double t = -closed(a.u[j], a.u_lo[j]) / a.v[j]
    cdef double g = closed(a.s[j], a.s_lo[j])
    return 0 < a.v[j] < INFINITY and -1 < t < INFINITY and g < INFINITY and (t - log1p_f64(t)) * a.v[j] * 8 > g


cdef double rescaled_kl(const Plan* plan, Py_ssize_t row, double p_sum, double q_sum) noexcept nogil:
    """KL(p/P || q/Q) as G(p, r q)/P with r = P/Q: r q is kept as a double and its rounding error, so that nothing is lost
    where p and q are nearly proportional. An error of r itself enters squared."""
    cdef double p[RUN * LANES]
    cdef double q[RUN * LANES]
    cdef double t[LANES]
    cdef double hi = 0, lo = 0, r = p_sum / q_sum, x
    cdef Py_ssize_t i, n, start = 0
    cdef int j
    while start < plan.classes:
        n = plan.classes - start if plan.classes - start < RUN * LANES else RUN * LANES
        for i in range(RUN * LANES):
            p[i] = q[i] = 0
        fetch[double](plan, &plan.operand[0], row, 1, start, n, p, RUN * LANES, 1, 0)
        fetch[double](plan, &plan.operand[1], row, 1, start, n, q, RUN * LANES, 1, 0)
        for j in range(LANES):
            t[j] = 0
        for i in range(RUN):
            for j in range(LANES):
                x = r * q[i * LANES + j]
                t[j] += kl_term_any_f64(p[i * LANES + j], x, fma(r, q[i * LANES + j], -x))
        two_sum_add(&hi, &lo, fold_sum(t))
        start += n
    return closed(hi, lo) / p_sum
