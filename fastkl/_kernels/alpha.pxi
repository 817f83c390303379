# Entropies and divergences of order alpha, from probabilities, their logarithms or logits.
#
# Everything is computed in double, by the terms of alpha.h, which are right for every number: there is no second form. A
# tile of rows is fetched into scratch, from whatever it is stored as, and its lanes (rows where they are short, else
# classes) keep their sums over the whole row. Where an operand is divided by its sum, the row is read for that first, and
# again, out of the cache if it fits, for the terms.

cdef extern from "alpha.h" nogil:
    double divergence_term(double p, double q, double pm, double pk, double x, double x_lo, double a, double b,
                           double* sm, double* sk)
    double entropy_term(double p, double pm, double pk, double x, double x_lo, double c, double* sm, double* sk)
    void add_scaled(double m, double k, double* sum, double* sum_lo, double* top)
    double gap_of_logs(double p, double q, double x)
    double mantissa(double x, double* k)
    double scaled(double m, double k)
    double number(double p, double unit, double* pm, double* pk)
    double multiple(double q, double r, double rk, double r_lo, double unit, double* qm, double* tail, double* qk,
                    double* lo)
    double log_ratio(double mp, double kp, double mq, double kq, double tail, double* lo)
    double quotient(double x, double t, double* lo)
    double shifted(double x, double x_lo, double m, double hi, double lo, double* tail)
    double exp_parts(double y, double y_lo, double* k, double* shape)
    double difference_tail(double a, double b, double difference)

cdef enum:
    RENYI
    TSALLIS
    AMARI            # the alpha divergence
    ALPHA_BLOCK = 1024
    ALPHA_SPAN = 1040
    ALPHA_GROUP = 8  # rows fetched together where a row's own elements lie apart: those of a cache line

cdef struct Alpha:
    Plan plan
    int measure
    double alpha
    double a                        # the first operand's order: at least 1/2, for below it the operands change places
    double b                        # 1 - a
    bint swapped
    bint tops                       # alpha is so large that exp((alpha - 1) x) is taken relative to its largest
    bint logs[2]                    # an operand holds logarithms
    bint divided[2]                 # and is divided by its sum
    double temperature[2]
    int lanes                       # in use: a multiple of FK_DOUBLES

# What turns an operand's numbers into a distribution's, a lane a row.
cdef struct Frame:
    double near[2][LANES]           # of logits over a temperature: taken off before, lest the quotient round the larger
    double m[2][LANES]              # of logarithms: the sum's is m + hi + lo
    double hi[2][LANES]
    double lo[2][LANES]
    double r[LANES]                 # of probabilities: what the second is multiplied by, 2^rk (r + r_lo)
    double rk[LANES]
    double r_lo[LANES]
    double unit[LANES]              # values are in units of 2^unit
    double top[LANES]               # what is taken off log(p/q): top + top_lo
    double top_lo[LANES]
    double bad[LANES]               # NaN where an operand is no distribution

# A lane's sums; p and q are the first and the second operand. Pairs (d, d_lo) are the two parts of a two-sum.
cdef struct AlphaLanes:
    double d[LANES]                 # the terms where neither is 0
    double d_lo[LANES]
    double gap[LANES]               # p - q, of the same
    double gap_lo[LANES]
    double p[LANES]
    double p_lo[LANES]
    double q[LANES]
    double q_lo[LANES]
    double p_alone[LANES]           # p where q is 0
    double q_alone[LANES]
    double s[LANES]                 # p^a q^b, in units of 2^k
    double s_lo[LANES]
    double k[LANES]
    double top[LANES]               # the largest log(p/q), of which top_lo is the rest
    double top_lo[LANES]


cdef loop alpha_mass_lanes(const double* x, Py_ssize_t count, Py_ssize_t in_use, double* s, double* s_lo,
                           double* k) noexcept nogil:
    """Add vectors of numbers to the lanes' sums (s + s_lo) 2^k."""
    cdef double m[LANES]
    cdef double e[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double t_k[LANES]
    cdef Py_ssize_t i
    cdef int j, lanes = in_use & -FK_DOUBLES
    cdef const double* v
    for j in range(lanes):
        t[j] = s[j]
        t_lo[j] = s_lo[j]
        t_k[j] = k[j]
    for i in range(count):
        v = x + i * LANES
        for j in range(lanes):
            m[j] = mantissa(v[j], &e[j])
            m[j] = m[j] if v[j] > 0 else v[j]
            e[j] = e[j] if v[j] > 0 else <double>-1e18
        for j in range(lanes):
            add_scaled(m[j], e[j], &t[j], &t_lo[j], &t_k[j])
    for j in range(lanes):
        s[j] = t[j]
        s_lo[j] = t_lo[j]
        k[j] = t_k[j]


cdef inline void logs_of(const double* v, bint logs, double temperature, const double* near, const double* m,
                         const double* hi, const double* lo, int in_use, double* x, double* x_lo,
                         double* present, double* bad) noexcept nogil:
    """The logarithms of a vector of an operand; whether each is a probability above 0, and NaN where it is none."""
    cdef int j, lanes = in_use & -FK_DOUBLES
    cdef double y[LANES]
    cdef double y_lo[LANES]
    cdef double k, n
    cdef double zero = 0, one = 1, nan = NAN, infinity = INFINITY
    if logs:
        for j in range(lanes):
            k = v[j] - near[j]
            n = difference_tail(v[j], near[j], k) / temperature
            y[j] = quotient(k, temperature, &y_lo[j])
            y_lo[j] += n
            present[j] = one if v[j] > -infinity else zero
            bad[j] += zero if v[j] < infinity else nan
    else:
        for j in range(lanes):
            n = mantissa(v[j], &k)
            y[j] = log_ratio(n, k, one, zero, zero, &y_lo[j])
            present[j] = one if v[j] > zero else zero
            k = v[j] if v[j] < infinity else nan
            bad[j] += zero if k >= zero else nan
    for j in range(lanes):
        x[j] = shifted(y[j], y_lo[j], m[j], hi[j], lo[j], &x_lo[j])


cdef loop alpha_pair_lanes(const Alpha* o, const double* p, const double* q, Py_ssize_t count, Frame* f,
                           AlphaLanes* st) noexcept nogil:
    """Add vectors of two operands to the lanes' sums."""
    cdef double pm[LANES]
    cdef double pk[LANES]
    cdef double pv[LANES]
    cdef double qv[LANES]
    cdef double q_lo[LANES]
    cdef double x[LANES]
    cdef double x_lo[LANES]
    cdef double y[LANES]
    cdef double y_lo[LANES]
    cdef double p_here[LANES]
    cdef double q_here[LANES]
    cdef double gap[LANES]
    cdef double gap_lo[LANES]
    cdef double term[LANES]
    cdef double m[LANES]
    cdef double k[LANES]
    cdef double bad[LANES]
    cdef double a = o.a, b = o.b
    cdef double zero = 0, one = 1, nan = NAN, infinity = INFINITY, none = -1e18, least = 5e-324
    cdef double qm, tail, qk, z, rest, both
    cdef Py_ssize_t i
    cdef int j, lanes = o.lanes & -FK_DOUBLES    # gcc sees that no remainder is left
    cdef const double* v
    cdef const double* w
    for j in range(lanes):
        bad[j] = f.bad[j]     # not in place, which might be the operands'
    for i in range(count):
        v = p + i * LANES
        w = q + i * LANES
        if o.logs[0] or o.logs[1]:
            logs_of(v, o.logs[0], o.temperature[0], f.near[0], f.m[0], f.hi[0], f.lo[0], lanes, x, x_lo, p_here, bad)
            logs_of(w, o.logs[1], o.temperature[1], f.near[1], f.m[1], f.hi[1], f.lo[1], lanes, y, y_lo, q_here, bad)
            for j in range(lanes):
                pm[j] = exp_parts(x[j], x_lo[j], &pk[j], &z)
                pk[j] -= f.unit[j]
                pv[j] = scaled(pm[j], pk[j])
            for j in range(lanes):
                qm = exp_parts(y[j], y_lo[j], &qk, &z)
                qv[j] = scaled(qm, qk - f.unit[j])
            for j in range(lanes):
                z = x[j] - y[j]
                tail = difference_tail(x[j], y[j], z) + (x_lo[j] - y_lo[j])
                x[j] = z + tail
                x_lo[j] = tail - (x[j] - z)
            for j in range(lanes):
                gap[j] = -gap_of_logs(pv[j], qv[j], x[j])
                gap_lo[j] = 0
        else:
            for j in range(lanes):
                pv[j] = number(v[j], f.unit[j], &pm[j], &pk[j])
                qv[j] = multiple(w[j], f.r[j], f.rk[j], f.r_lo[j], f.unit[j], &qm, &tail, &qk, &q_lo[j])
                x[j] = log_ratio(pm[j], pk[j], qm, qk, tail, &x_lo[j])
            for j in range(lanes):
                p_here[j] = one if v[j] > zero else zero
                q_here[j] = one if w[j] > zero else zero
                z = v[j] if v[j] < infinity else nan
                bad[j] += zero if z >= zero else nan
                z = w[j] if w[j] < infinity else nan
                bad[j] += zero if z >= zero else nan
            for j in range(lanes):
                gap[j] = pv[j] - qv[j]
                gap_lo[j] = difference_tail(pv[j], qv[j], gap[j]) - q_lo[j]
        if o.tops:
            for j in range(lanes):
                z = x[j] - f.top[j]
                rest = difference_tail(x[j], f.top[j], z) + (x_lo[j] - f.top_lo[j])
                x[j] = z + rest
                x_lo[j] = rest - (x[j] - z)
        for j in range(lanes):
            term[j] = divergence_term(pv[j], qv[j], pm[j], pk[j], x[j], x_lo[j], a, b, &m[j], &k[j])
        for j in range(lanes):
            both = p_here[j] * q_here[j]
            m[j] = m[j] if both > zero else zero
            k[j] = k[j] if both > zero else none
            term[j] = term[j] if both > zero else zero
            gap[j] = gap[j] if both > zero else zero
            gap_lo[j] = gap_lo[j] if both > zero else zero
            pv[j] = pv[j] if p_here[j] > zero else zero
            qv[j] = qv[j] if q_here[j] > zero else zero
            # Present is more than 0, also where its value in units of 2^unit is not.
            z = (pv[j] if pv[j] > zero else least) if p_here[j] > zero else zero
            st.p_alone[j] += zero if q_here[j] > zero else z
            st.q_alone[j] += zero if p_here[j] > zero else qv[j]
            z = x[j] if both > zero else -infinity
            st.top_lo[j] = x_lo[j] if z > st.top[j] else st.top_lo[j]
            st.top[j] = z if z > st.top[j] else st.top[j]
        for j in range(lanes):
            add_scaled(m[j], k[j], &st.s[j], &st.s_lo[j], &st.k[j])
        for j in range(lanes):
            two_sum_add(&st.d[j], &st.d_lo[j], term[j])
            two_sum_add(&st.gap[j], &st.gap_lo[j], gap[j])
            st.gap_lo[j] += gap_lo[j]
            two_sum_add(&st.p[j], &st.p_lo[j], pv[j])
            two_sum_add(&st.q[j], &st.q_lo[j], qv[j])
    for j in range(lanes):
        f.bad[j] = bad[j]


cdef loop alpha_one_lanes(const Alpha* o, const double* p, Py_ssize_t count, Frame* f,
                          AlphaLanes* st) noexcept nogil:
    """Add vectors of one operand to the lanes' sums."""
    cdef double pm[LANES]
    cdef double pk[LANES]
    cdef double pv[LANES]
    cdef double x[LANES]
    cdef double x_lo[LANES]
    cdef double here[LANES]
    cdef double term[LANES]
    cdef double m[LANES]
    cdef double k[LANES]
    cdef double bad[LANES]
    cdef double c = -o.b
    cdef double zero = 0, one = 1, nan = NAN, infinity = INFINITY, none = -1e18
    cdef double z, rest
    cdef Py_ssize_t i
    cdef int j, lanes = o.lanes & -FK_DOUBLES
    cdef const double* v
    for j in range(lanes):
        bad[j] = f.bad[j]     # not in place, which might be the operands'
    for i in range(count):
        v = p + i * LANES
        if o.logs[0]:
            logs_of(v, True, o.temperature[0], f.near[0], f.m[0], f.hi[0], f.lo[0], lanes, x, x_lo, here, bad)
            for j in range(lanes):
                pm[j] = exp_parts(x[j], x_lo[j], &pk[j], &z)
                pk[j] -= f.unit[j]
                pv[j] = scaled(pm[j], pk[j])
        else:
            for j in range(lanes):
                pv[j] = number(v[j], f.unit[j], &pm[j], &pk[j])
                x[j] = log_ratio(pm[j], pk[j], f.r[j], f.rk[j] - f.unit[j], f.r_lo[j], &x_lo[j])
                here[j] = one if v[j] > zero else zero
                z = v[j] if v[j] < infinity else nan
                bad[j] += zero if z >= zero else nan
        if o.tops:
            for j in range(lanes):
                z = x[j] - f.top[j]
                rest = difference_tail(x[j], f.top[j], z) + (x_lo[j] - f.top_lo[j])
                x[j] = z + rest
                x_lo[j] = rest - (x[j] - z)
        for j in range(lanes):
            term[j] = entropy_term(pv[j], pm[j], pk[j], x[j], x_lo[j], c, &m[j], &k[j])
        for j in range(lanes):
            m[j] = m[j] if here[j] > zero else zero
            k[j] = k[j] if here[j] > zero else none
            term[j] = term[j] if here[j] > zero else zero
            pv[j] = pv[j] if here[j] > zero else zero
            z = x[j] if here[j] > zero else -infinity
            st.top_lo[j] = x_lo[j] if z > st.top[j] else st.top_lo[j]
            st.top[j] = z if z > st.top[j] else st.top[j]
        for j in range(lanes):
            add_scaled(m[j], k[j], &st.s[j], &st.s_lo[j], &st.k[j])
        for j in range(lanes):
            two_sum_add(&st.d[j], &st.d_lo[j], term[j])
            two_sum_add(&st.p[j], &st.p_lo[j], pv[j])
    for j in range(lanes):
        f.bad[j] = bad[j]


cdef inline void start_alpha_lanes(AlphaLanes* st) noexcept nogil:
    cdef int j
    for j in range(LANES):
        st.d[j] = st.d_lo[j] = st.gap[j] = st.gap_lo[j] = st.p[j] = st.p_lo[j] = st.q[j] = st.q_lo[j] = 0
        st.p_alone[j] = st.q_alone[j] = st.s[j] = st.s_lo[j] = 0
        st.k[j] = -1e18
        st.top[j] = -INFINITY
        st.top_lo[j] = 0


cdef void fold_scaled(double* s, double* s_lo, double* k) noexcept nogil:
    """Fold the lanes' (s + s_lo) 2^k into the first."""
    cdef double top = fold_max(k)
    cdef int j
    for j in range(LANES):
        s[j] = scaled(s[j], k[j] - top)
        s_lo[j] = scaled(s_lo[j], k[j] - top)
    k[0] = top
    fold_two_sum(s, s_lo)


cdef void fold_alpha_lanes(AlphaLanes* st, double* bad) noexcept nogil:
    """Fold the lanes of one row into the first."""
    cdef int j
    fold_scaled(st.s, st.s_lo, st.k)
    fold_two_sum(st.d, st.d_lo)
    fold_two_sum(st.gap, st.gap_lo)
    fold_two_sum(st.p, st.p_lo)
    fold_two_sum(st.q, st.q_lo)
    st.p_alone[0] = fold_sum(st.p_alone)
    st.q_alone[0] = fold_sum(st.q_alone)
    for j in range(1, LANES):
        if st.top[j] > st.top[0]:
            st.top[0] = st.top[j]
            st.top_lo[0] = st.top_lo[j]
    bad[0] = fold_sum(bad)


# ---- what an operand is divided by -----------------------------------------------------------------------------------

cdef inline void start_frame(const Alpha* o, Frame* f) noexcept nogil:
    """Of operands that are used as they are. The unit keeps terms of denormal numbers normal until they are added up."""
    cdef int i, j
    for j in range(LANES):
        for i in range(2):
            f.near[i][j] = f.m[i][j] = f.hi[i][j] = f.lo[i][j] = 0
        f.r[j] = 1
        f.rk[j] = f.r_lo[j] = f.top[j] = f.top_lo[j] = f.bad[j] = 0
        f.unit[j] = -100


cdef inline void divide_by_logs(int which, double m, double y, bint nothing, int j, Frame* f) noexcept nogil:
    """The operand's sum is exp(m) (1 + y)."""
    cdef double hi, lo
    log1p_split_f64(y, &hi, &lo)
    f.m[which][j] = m
    f.hi[which][j] = hi
    f.lo[which][j] = lo
    if nothing:
        f.bad[j] = NAN


cdef void divide(const Alpha* o, double s0, double lo0, double k0, double s1, double lo1, double k1, int j,
                 Frame* f) noexcept nogil:
    """Probabilities are divided by their sums (s + lo) 2^k. Two operands of probabilities: the second is multiplied by P/Q, and
    the unit takes P's place."""
    cdef double m, k, tail
    cdef int i
    cdef double s, lo, e
    for i in range(o.plan.operands):
        s = s0 if i == 0 else s1
        lo = lo0 if i == 0 else lo1
        e = k0 if i == 0 else k1
        settle(&s, &lo)
        if o.divided[i] and not o.logs[i]:
            m = mantissa(s, &k)
            f.m[i][j] = log_ratio(m, k + e, 1, 0, 0, &tail)
            f.lo[i][j] = tail + lo / s
            if not s > 0:
                f.bad[j] = NAN
    if o.logs[0] or not o.divided[0] or (o.plan.operands > 1 and (o.logs[1] or not o.divided[1])):
        if (o.logs[0] and o.divided[0]) or (o.plan.operands > 1 and o.logs[1] and o.divided[1]):
            f.unit[j] = 0
        return
    settle(&s0, &lo0)
    settle(&s1, &lo1)
    f.r[j] = mantissa(s0, &k)
    f.unit[j] = f.rk[j] = k + k0
    f.r_lo[j] = ldexp(lo0, -<int>k)
    if o.plan.operands > 1:
        f.r[j] = mantissa(s0 / s1, &k)
        f.rk[j] = k + k0 - k1
        f.r_lo[j] = 0


# ---- from sums to results --------------------------------------------------------------------------------------------

cdef inline double log_of_share(double s, double k, double total) noexcept nogil:
    """log(s 2^k / total)."""
    cdef double e, m = s / mantissa(total, &e)
    e = k - e
    return log_any_f64(scaled(m, e)) if -900 < e < 900 else log_any_f64(m) + (e * LN2_HI_F64 + e * LN2_LO_F64)


cdef inline double log_near_one(double c, double t) noexcept nogil:
    """log(1 + c t) / c, t where c t is nothing beside 1."""
    cdef double y = c * t
    return log1p_f64(y) / c if y > 1e-290 or y < -1e-290 else t


cdef double entropy_of_order(const Alpha* o, const Frame* f, const AlphaLanes* st, int j) noexcept nogil:
    cdef double total = st.p[j] + st.p_lo[j], t = st.d[j] + st.d_lo[j], c = -o.b, y
    if st.d_lo[j] != st.d_lo[j]:
        t = st.d[j]
    if f.bad[j] != 0:
        return NAN
    if o.measure == TSALLIS:
        return t / total if o.divided[0] else scaled(1.0, f.unit[j]) * t
    if total == 0:
        return NAN
    if o.alpha == INFINITY:
        return -st.top[j]
    y = -c * t / total
    if -0.5 <= y <= 0.5:
        return -log_near_one(c, -t / total)
    y = log_of_share(st.s[j] + st.s_lo[j], st.k[j], total)
    return -f.top[j] - y / c


cdef double divergence_of_order(const Alpha* o, const Frame* f, const AlphaLanes* st, int j) noexcept nogil:
    """With P and Q the sums, S that of p^alpha q^(1 - alpha) and D the alpha divergence: (S - P) / (alpha - 1) is
    alpha D + P - Q, where S is near P and these parts are no larger than it; else it is computed as it stands."""
    cdef double p = st.p[j] + st.p_lo[j], q = st.q[j] + st.q_lo[j], d = closed(st.d[j], st.d_lo[j])
    cdef double gap = closed(st.gap[j], st.gap_lo[j]), of_p = st.p_alone[j], of_q = st.q_alone[j]
    cdef double c = o.alpha - 1, unit = scaled(1.0, f.unit[j]), shift = 0, share = 0, total, t, y, parts
    cdef bint divided = o.divided[0] and o.divided[1]
    if f.bad[j] != 0:
        return NAN
    if o.plan.classes == 0 and divided:
        return NAN
    if divided:
        # What was multiplied by P/Q, or divided by a sum, is off by a rounding error, the same for all classes.
        shift = (of_q - of_p - gap) / p
        share = 0.5 * shift * shift
        d = not_negative(d / p * (1 - o.b * shift) - share)
        of_p /= p
        of_q /= p
        unit = 1
    # Where one of the two is 0 the term is p / b or q / a.
    t = INFINITY if of_p > 0 and o.a >= 1 else (of_p / o.b if of_p > 0 else 0)
    if o.measure == AMARI:
        return (d + t + of_q / o.a) * unit
    if o.swapped:
        total = 1 if divided else q
        t = o.b * d + of_p + o.b * (of_q / o.a) if divided else o.b * d - gap + of_q / o.a
        parts = o.b * d
    else:
        total = 1 if divided else p
        t = o.a * (d + t) + of_q if divided else o.a * d + gap + t
        parts = o.a * d
        if of_p > 0 and o.a >= 1:
            return INFINITY if f.bad[j] == 0 else NAN
    if o.measure == RENYI and total == 0:
        return NAN
    if o.alpha == INFINITY:
        y = INFINITY if of_p > 0 else st.top[j] + shift
        return not_negative(y) if divided else y
    y = c * (t / total)
    parts = 0 if divided else (c if c > 0 else -c) * (parts + (gap if gap > 0 else -gap))
    if c == 0 or (-0.5 <= y <= 0.5 and parts <= total) or (o.measure == TSALLIS and total == 0):
        return t * unit if o.measure == TSALLIS else log_near_one(c, t / total)
    # S / P, where P is that of p / sum(p) if both are divided
    p = p if divided else total
    if o.measure == RENYI:
        y = log_of_share(st.s[j] + st.s_lo[j], st.k[j], p)
        if divided:
            y -= o.b * log1p_f64(shift)
        return f.top[j] + y / c
    y = scaled(st.s[j] + st.s_lo[j], st.k[j])
    return (y / p * (1 - o.b * shift) - 1) / c if divided else (y - p) / c * unit


# ---- tiles -----------------------------------------------------------------------------------------------------------

cdef inline double finite(double x) noexcept nogil:
    return x if x - x == 0 else 0


cdef inline double absent_in_alpha(const Alpha* o, int which) noexcept nogil:
    return -INFINITY if o.logs[which] else 0


cdef inline bint overflowed(const Alpha* o, const Frame* f, const AlphaLanes* st, int j) noexcept nogil:
    """Whether a lane's sums are too large for its unit, which may then be taken larger."""
    cdef double sum = (st.d[j] + st.p[j]) + st.q[j]
    return f.unit[j] == -100 and f.bad[j] == 0 and sum - sum != 0


cdef inline void alpha_lanes(const Alpha* o, const double* p, const double* q, Py_ssize_t count, Frame* f,
                             AlphaLanes* st) noexcept nogil:
    if o.plan.operands > 1:
        alpha_pair_lanes(o, p, q, count, f, st)
    else:
        alpha_one_lanes(o, p, count, f, st)


cdef inline void take_powers(const AlphaLanes* of, AlphaLanes* st) noexcept nogil:
    cdef int j
    for j in range(LANES):
        st.s[j] = of.s[j]
        st.s_lo[j] = of.s_lo[j]
        st.k[j] = of.k[j]


cdef inline void shift_by_tops(const AlphaLanes* st, Frame* f) noexcept nogil:
    cdef int j
    for j in range(LANES):
        f.top[j] = finite(st.top[j])
        f.top_lo[j] = st.top_lo[j]


cdef void alpha_across(Alpha* o, Py_ssize_t row, Py_ssize_t rows, double* scratch, double* out) noexcept nogil:
    """Up to LANES short rows, a lane a row."""
    cdef Frame f
    cdef AlphaLanes st
    cdef AlphaLanes again
    cdef Sums sums
    cdef double mass[2][LANES]
    cdef double mass_lo[2][LANES]
    cdef double mass_k[2][LANES]
    cdef Py_ssize_t classes = o.plan.classes, size = classes * LANES, i
    cdef int which, j
    cdef bint retry = False
    cdef double* x
    cdef double* quotients = scratch + 2 * size
    start_frame(o, &f)
    for which in range(o.plan.operands):
        x = scratch + which * size
        if rows < LANES:
            for i in range(size):
                x[i] = absent_in_alpha(o, which)
        fetch[double](&o.plan, &o.plan.operand[which], row, rows, 0, classes, x, 1, LANES, absent_in_alpha(o, which))
        for j in range(LANES):
            mass[which][j] = mass_lo[which][j] = 0
            mass_k[which][j] = -1e18
        if o.divided[which] and not o.logs[which]:
            alpha_mass_lanes(x, classes, o.lanes, mass[which], mass_lo[which], mass_k[which])
        elif o.divided[which]:
            if o.temperature[which] != 1:
                max_across[double](x, classes, f.near[which])
                for j in range(LANES):
                    f.near[which][j] = finite(f.near[which][j])
            for i in range(size):
                quotients[i] = (x[i] - f.near[which][i % LANES]) / o.temperature[which]
            logsumexp_across[double](quotients, classes, False, NULL, NULL, &sums, 0)
            for j in range(rows):
                divide_by_logs(which, sums.m[j], excess(&sums, j), sums.c[j] + sums.s[j] == 0, j, &f)
    for j in range(rows):
        divide(o, mass[0][j], mass_lo[0][j], mass_k[0][j], mass[1][j], mass_lo[1][j], mass_k[1][j], j, &f)
    start_alpha_lanes(&st)
    alpha_lanes(o, scratch, scratch + size, classes, &f, &st)
    for j in range(LANES):
        if overflowed(o, &f, &st, j):
            f.unit[j] = 0
            retry = True
    if retry:
        start_alpha_lanes(&st)
        alpha_lanes(o, scratch, scratch + size, classes, &f, &st)
    if o.tops:
        shift_by_tops(&st, &f)
        start_alpha_lanes(&again)
        alpha_lanes(o, scratch, scratch + size, classes, &f, &again)
        take_powers(&again, &st)
    for j in range(rows):
        out[j] = (entropy_of_order(o, &f, &st, j) if o.plan.operands == 1 else divergence_of_order(o, &f, &st, j))


cdef Py_ssize_t alpha_block(const Alpha* o, int which, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t first,
                            double* scratch) noexcept nogil:
    """Fetch a block of some rows, filled up to whole vectors; returns their number."""
    cdef Py_ssize_t n = ALPHA_BLOCK, whole, i, j
    if first + n > o.plan.classes:
        n = o.plan.classes - first
    whole = (n + LANES - 1) // LANES
    fetch[double](&o.plan, &o.plan.operand[which], row, rows, first, n, scratch, ALPHA_SPAN, 1,
                  absent_in_alpha(o, which))
    for i in range(rows):
        for j in range(n, whole * LANES):
            scratch[i * ALPHA_SPAN + j] = absent_in_alpha(o, which)
    return whole


cdef void scan_alpha(const Alpha* o, Py_ssize_t row, Py_ssize_t rows, Frame* f, AlphaLanes* st,
                      double* scratch) noexcept nogil:
    """Read some rows once, for their lanes' sums, which are folded."""
    cdef Py_ssize_t first = 0, whole, i
    cdef double* other = scratch + ALPHA_GROUP * ALPHA_SPAN
    for i in range(rows):
        start_alpha_lanes(&st[i])
    while first < o.plan.classes:
        whole = alpha_block(o, 0, row, rows, first, scratch)
        if o.plan.operands > 1:
            alpha_block(o, 1, row, rows, first, other)
        for i in range(rows):
            alpha_lanes(o, scratch + i * ALPHA_SPAN, other + i * ALPHA_SPAN, whole, &f[i], &st[i])
        first += ALPHA_BLOCK
    for i in range(rows):
        fold_alpha_lanes(&st[i], f[i].bad)


cdef inline void spread_frame(Frame* f) noexcept nogil:
    """Give all lanes, which are classes of one row, the first one's."""
    cdef int i, j
    for j in range(1, LANES):
        for i in range(2):
            f.near[i][j] = f.near[i][0]
            f.m[i][j] = f.m[i][0]
            f.hi[i][j] = f.hi[i][0]
            f.lo[i][j] = f.lo[i][0]
        f.r[j] = f.r[0]
        f.rk[j] = f.rk[0]
        f.r_lo[j] = f.r_lo[0]
        f.unit[j] = f.unit[0]
        f.top[j] = f.top[0]
        f.top_lo[j] = f.top_lo[0]
        f.bad[j] = f.bad[0]


cdef void alpha_along(Alpha* o, Py_ssize_t row, Py_ssize_t rows, double* scratch, double* out) noexcept nogil:
    """Up to ALPHA_GROUP longer rows, whose lanes are classes."""
    cdef Frame f[ALPHA_GROUP]
    cdef AlphaLanes st[ALPHA_GROUP]
    cdef AlphaLanes again[ALPHA_GROUP]
    cdef State states[ALPHA_GROUP]
    cdef Sums sums
    cdef double tops[LANES]
    cdef double mass[2][ALPHA_GROUP][LANES]
    cdef double mass_lo[2][ALPHA_GROUP][LANES]
    cdef double mass_k[2][ALPHA_GROUP][LANES]
    cdef Py_ssize_t first, whole, i, n, t
    cdef int which, j
    cdef bint retry = False
    cdef double* x
    for i in range(rows):
        start_frame(o, &f[i])
    for which in range(o.plan.operands):
        for i in range(rows):
            start_state(&states[i])
            for j in range(LANES):
                mass[which][i][j] = mass_lo[which][i][j] = 0
                mass_k[which][i][j] = -1e18
        first = 0 if o.divided[which] else o.plan.classes
        while first < o.plan.classes:
            whole = alpha_block(o, which, row, rows, first, scratch)
            n = ALPHA_BLOCK if first + ALPHA_BLOCK < o.plan.classes else o.plan.classes - first
            for i in range(rows):
                x = scratch + i * ALPHA_SPAN
                if o.logs[which]:
                    if first == 0 and o.temperature[which] != 1:
                        max_across[double](x, whole, tops)
                        f[i].near[which][0] = finite(fold_max(tops))
                    for t in range(n):
                        x[t] = (x[t] - f[i].near[which][0]) / o.temperature[which]
                    if first == 0:
                        open_row[double](x, n, <Py_ssize_t>-1, &states[i])
                    logsumexp_block[double](x, n, <Py_ssize_t>-1, False, NULL, NULL, &states[i])
                else:
                    alpha_mass_lanes(x, whole, LANES, mass[which][i], mass_lo[which][i], mass_k[which][i])
            first += ALPHA_BLOCK
        for i in range(rows):
            if o.logs[which] and o.divided[which]:
                keep_state(&states[i], 0, &sums)
                divide_by_logs(which, sums.m[0], excess(&sums, 0), sums.c[0] + sums.s[0] == 0, 0, &f[i])
            else:
                fold_scaled(mass[which][i], mass_lo[which][i], mass_k[which][i])
    for i in range(rows):
        divide(o, mass[0][i][0], mass_lo[0][i][0], mass_k[0][i][0], mass[1][i][0], mass_lo[1][i][0],
               mass_k[1][i][0], 0, &f[i])
        spread_frame(&f[i])
    scan_alpha(o, row, rows, f, st, scratch)
    for i in range(rows):
        if overflowed(o, &f[i], &st[i], 0):
            f[i].unit[0] = 0
            spread_frame(&f[i])
            retry = True
    if retry:
        scan_alpha(o, row, rows, f, st, scratch)
    if o.tops:
        for i in range(rows):
            shift_by_tops(&st[i], &f[i])
            spread_frame(&f[i])
        scan_alpha(o, row, rows, f, again, scratch)
        for i in range(rows):
            take_powers(&again[i], &st[i])
    for i in range(rows):
        out[i] = (entropy_of_order(o, &f[i], &st[i], 0) if o.plan.operands == 1
                  else divergence_of_order(o, &f[i], &st[i], 0))


cdef void alpha_tile(Alpha* o, Py_ssize_t t, Py_ssize_t size, double* scratch, real* like) noexcept nogil:
    """One tile of `size` rows."""
    cdef double out[LANES]
    cdef Py_ssize_t row = t * size, i
    cdef Py_ssize_t rows = size if row + size < o.plan.rows else o.plan.rows - row
    cdef unsigned int mode = fk_default_mode()
    if o.plan.classes <= ACROSS:
        alpha_across(o, row, rows, scratch, out)
    else:
        alpha_along(o, row, rows, scratch, out)
    for i in range(rows):
        out[i] = out[i] * o.plan.scale + 0.0     # + 0.0: an entropy of 0 is +0, not -0
    put_rows[real](&o.plan, &o.plan.out, row, rows, out, like)
    fk_restore_mode(mode)


cdef int execute_alpha(Alpha* o, int threads, real* like) noexcept nogil:
    """Fill the output; returns -1 where memory for the threads' scratch is not to be had."""
    cdef Py_ssize_t size, stride, tiles, t, step
    cdef double* scratch = NULL
    o.lanes = LANES
    if o.plan.classes <= ACROSS and o.plan.rows < LANES:
        o.lanes = <int>((o.plan.rows + FK_DOUBLES - 1) & -FK_DOUBLES)
    if o.plan.classes <= ACROSS:
        size = LANES
        stride = 3 * o.plan.classes * LANES
    else:
        step = o.plan.operand[0].inner[o.plan.n_inner - 1]
        size = 1 if -8 <= step <= 8 else ALPHA_GROUP
        stride = 2 * ALPHA_GROUP * ALPHA_SPAN
    stride += 64 - stride % 64
    tiles = (o.plan.rows + size - 1) // size
    threads = <int>tiles if threads > tiles else threads
    if tiles == 0:
        return 0
    if posix_memalign(<void**>&scratch, 64, threads * stride * sizeof(double)):
        return -1
    if threads == 1:
        for t in range(tiles):
            alpha_tile[real](o, t, size, scratch, like)
    else:
        for t in prange(tiles, num_threads=threads, schedule="static"):
            alpha_tile[real](o, t, size, scratch + threadid() * stride, like)
    free(scratch)
    return 0


cdef void start_alpha(Alpha* o, int measure, tuple operands, tuple given, int n_outer, int n_inner, double alpha,
                      double scale):
    """What is the same for all rows; given: for each operand whether it holds logs, is divided by its sum, and the
    temperature, or None for probabilities as they are."""
    cdef Plan* plan = &o.plan
    cdef int k, d
    o.measure = measure
    o.alpha = alpha
    o.swapped = len(operands) > 1 and alpha < 0.5
    o.a = 1 - alpha if o.swapped else alpha
    o.b = alpha if o.swapped else 1 - alpha
    if alpha == INFINITY:
        o.a = 1
        o.b = 0
    # Beyond, exp((alpha - 1) x) would lose digits that the result has.
    o.tops = measure == RENYI and 2.0 ** 20 < alpha < INFINITY
    start_plan(plan, ALPHA_OF_ONE if len(operands) == 1 else ALPHA_OF_TWO, operands[0], n_inner)
    plan.operands = <int>len(operands)
    plan.scale = scale
    for k in range(plan.operands):
        d = plan.operands - 1 - k if o.swapped else k
        set_operand(&plan.operand[k], operands[d], n_outer, n_inner)
        o.logs[k] = o.divided[k] = False
        o.temperature[k] = 1
        if given is not None:
            o.logs[k], o.divided[k], o.temperature[k] = given[d]


cdef int carry_out_alpha(Alpha* o, int n_outer, int n_inner, bint double_precision, int threads, bint asked,
                         double nbytes) except -1:
    cdef int failed, kind
    arrange(&o.plan, n_outer, n_inner, FK_F64)
    with nogil:
        kind = cpu.kind_of(o.plan.op, double_precision, o.plan.classes)
        threads = cpu.enter(kind, threads, asked, nbytes)
        if double_precision:
            failed = execute_alpha[double](o, threads, NULL)
        else:
            failed = execute_alpha[float](o, threads, NULL)
        cpu.leave(kind, threads, nbytes)
    if failed:
        raise MemoryError("fastkl: no memory for the threads' scratch buffers")
    return 0


def of_order(int measure, bint double_precision, tuple operands, mask, out, int n_inner, double alpha, tuple given,
             double scale, int threads, bint asked, double nbytes):
    """Fill `out`, a number per row, from operands (and a mask, or None) of one shape with the n_inner reduced axes last;
    measure: 0 Renyi, 1 Tsallis, 2 the alpha divergence; for what is given see start_alpha, for the threads run."""
    cdef Alpha o
    cdef int n_outer = cnp.PyArray_NDIM(<cnp.ndarray>operands[0]) - n_inner
    start_alpha(&o, measure, operands, given, n_outer, n_inner, alpha, scale)
    o.plan.has_mask = mask is not None
    if o.plan.has_mask:
        set_operand(&o.plan.mask, mask, n_outer, n_inner)
    set_operand(&o.plan.out, out, n_outer, 0)
    carry_out_alpha(&o, n_outer, n_inner, double_precision, threads, asked, nbytes)


def of_order_plain(int measure, tuple operands, axis, where, keepdims, out, n_threads, double alpha, tuple given,
                   double scale):
    """The result of a small call as run_plain takes it, or None."""
    cdef Alpha o
    cdef cnp.ndarray like
    cdef int n_outer
    cdef double number
    if not is_plain(operands, None, False, axis, where, keepdims, out, n_threads):
        return None
    like = operands[0]
    n_outer = cnp.PyArray_NDIM(like) - 1
    start_alpha(&o, measure, operands, given, n_outer, 1, alpha, scale)
    result = start_result(&o.plan, like, False, out, &number)
    carry_out_alpha(&o, n_outer, 1, cnp.PyArray_TYPE(like) == cnp.NPY_DOUBLE, 1, n_threads is not None,
                    bytes_of(operands, False))
    return result if result is not None else cnp.PyArray_ToScalar(&number, like)
