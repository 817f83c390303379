# Two distributions of which at least one is given by logs (log-probabilities, or logits, which are divided by the sum of
# their exponentials), or by probabilities that are divided by their sum. A row's numbers become probabilities and their
# logs vector by vector: nothing of the size of a row is kept.
#
# First the sums of those that are to be divided, then a second pass over the row, while it is in the cache:
#   KL as written and cross-entropy   sum of p times a log: the logs are not rounded to less than the data's digits
#   all others                        terms max(p, q) f(t) >= 0 of t = abs(log(p/q)), as in pair.pxi: nothing cancels
# All in double, also where the data is float32. An error that log(p/q) has for all classes, from the sums, leaves a sum
# of p - q; where that counts, it is taken off the logs and the second pass is done again.

cdef struct Scale:                  # what turns a row's numbers into probabilities
    double m                        # logs: p = exp(x - m) factor and log p = (x - m) - log_total
    double log_total
    double log_total_lo             # what is known of it beyond its digits
    double factor                   # probabilities: p = x up factor
    double up                       # a power of two that keeps total normal
    double total                    # the sum of x up, 1 / factor, with
    double total_lo                 # its rounding error;
    double log_sum                  # the log of the sum of x
    bint valid

cdef struct Scales:                 # of two rows, a lane each
    double m[2][LANES]
    double factor[2][LANES]
    double up[2][LANES]
    double total[2][LANES]
    double total_lo[2][LANES]
    double log_sum[2][LANES]
    double log_total[LANES]         # of the second row
    double shift[LANES]             # log(p/q) = (x - y) - (shift + shift_lo) - logs
    double shift_lo[LANES]
    double logs[LANES]

cdef struct Part:                   # of a row: sums of its terms and of p - q (BHATTACHARYYA as written: p + q), two-sums
    double s
    double s_lo
    double gap
    double gap_lo
    double overlap                  # BHATTACHARYYA: 2^64 times that of sqrt(p q)


cdef inline bint in_logs(const Plan* plan, int which) noexcept nogil:
    return plan.operand[which].logs


cdef inline real absent_number(const Plan* plan, int which, real* like) noexcept nogil:
    """What stands for a number where there is none: probability 0."""
    return <real>-INFINITY if plan.operand[which].logs else <real>0


cdef inline real largest_number(const Plan* plan, int which, real* like) noexcept nogil:
    """Above it a number counts as infinite: as written, exp(600) = 4e260 and products with it are within range."""
    if plan.operand[which].scaled:
        return -lowest(<real>0)
    if plan.operand[which].logs:
        return 600
    return -lowest(<real>0) if real is float else <real>1e260


# ---- sums ------------------------------------------------------------------------------------------------------------

cdef loop mass_lanes(const real* p, Py_ssize_t count, const real* patch, const Py_ssize_t* at, double* low,
                     double* low_lo, double* high, double* high_lo) noexcept nogil:
    """Per lane 2^-64 and 2^64 times the sum of p: one of them is in range whatever p is."""
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef const real* v
    cdef double down = FK_DOWN, up = FK_UP
    for j in range(LANES):
        s[j] = s_lo[j] = u[j] = u_lo[j] = 0
    for i in range(count):
        v = vector_at(p, i, patch, at)
        for j in range(LANES):
            two_sum_add(&s[j], &s_lo[j], v[j] * down)
        for j in range(LANES):
            two_sum_add(&u[j], &u_lo[j], v[j] * up)
    for j in range(LANES):
        low[j] = s[j]
        low_lo[j] = s_lo[j]
        high[j] = u[j]
        high_lo[j] = u_lo[j]


cdef void mass_block(const real* p, Py_ssize_t n, State* st) noexcept nogil:
    """Add a block of probabilities to a row's sums: s and u."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef Py_ssize_t count = start_patches(p, n, <real>0, patch, at)
    mass_lanes(p, count, patch, at, s, s_lo, u, u_lo)
    fold_two_sum(s, s_lo)
    fold_two_sum(u, u_lo)
    two_sum_add(&st.s, &st.s_lo, s[0])
    two_sum_add(&st.u, &st.u_lo, u[0])
    st.s_lo += s_lo[0]
    st.u_lo += u_lo[0]


cdef void scale_of(const Plan* plan, int which, const Sums* a, Py_ssize_t i, Scale* out) noexcept nogil:
    """What the sums of row i of an operand tell."""
    cdef double y, hi, lo
    out.m = out.log_total = out.log_total_lo = out.total_lo = out.log_sum = 0
    out.factor = out.up = out.total = 1
    out.valid = True
    if not plan.operand[which].scaled:
        return
    if plan.operand[which].logs:
        y = excess(a, i)
        log1p_split_f64(y, &hi, &lo)
        out.m = a.m[i]
        out.log_total = hi + lo
        out.factor = 1 / (1 + y)
        # A +inf or a NaN among the logits, or nothing above -inf.
        out.valid = a.m[i] < INFINITY and y == y and y > -1
        return
    out.up = FK_DOWN
    out.total = a.s[i]
    out.total_lo = a.s_lo[i]
    if not out.total > 2.0 ** -700:
        out.up = FK_UP
        out.total = a.u[i]
        out.total_lo = a.u_lo[i]
    settle(&out.total, &out.total_lo)
    out.log_sum = log_any_f64(out.total) + (64 * LN2 if out.up < 1 else -64 * LN2)
    out.factor = 1 / out.total
    out.valid = 0 < out.total < INFINITY


cdef inline void set_lane(const Scale* p, const Scale* q, Py_ssize_t lane, Scales* z) noexcept nogil:
    cdef double shift = p.m - q.m, part = shift - p.m
    z.m[0][lane] = p.m
    z.m[1][lane] = q.m
    z.factor[0][lane] = p.factor
    z.factor[1][lane] = q.factor
    z.up[0][lane] = p.up
    z.up[1][lane] = q.up
    z.total[0][lane] = p.total
    z.total[1][lane] = q.total
    z.total_lo[0][lane] = p.total_lo
    z.total_lo[1][lane] = q.total_lo
    z.log_sum[0][lane] = p.log_sum
    z.log_sum[1][lane] = q.log_sum
    z.log_total[lane] = q.log_total
    z.shift[lane] = shift
    z.shift_lo[lane] = (p.m - (shift - part)) - (q.m + part) + (p.log_total_lo - q.log_total_lo)
    z.logs[lane] = p.log_total - q.log_total


# ---- vectors of numbers ----------------------------------------------------------------------------------------------

cdef inline void log_vector(const Plan* plan, int which, const real* v, const Scales* z, double* out) noexcept nogil:
    """The logs of a vector of numbers: of probabilities as divided by their sum, of logs themselves."""
    cdef double near[LANES]
    cdef int j
    cdef double u, far, up = FK_UP, down = FK_DOWN, none = 0
    if plan.operand[which].logs:
        for j in range(LANES):
            out[j] = v[j]
    elif not plan.operand[which].scaled:
        for j in range(LANES):
            out[j] = log_any_f64(v[j])
    else:
        for j in range(LANES):
            # Where nearly all of the sum is this one, what is left of it has the digits of the log.
            near[j] = log1p_f64(-((z.total[which][j] - v[j] * z.up[which][j]) + z.total_lo[which][j]) * z.factor[which][j])
        for j in range(LANES):
            u = v[j] * (z.up[which][j] * up) * z.factor[which][j]
            # A quotient that may have lost digits to denormals is not used.
            far = log_any_f64(u * down if u > 2.0 ** -900 else v[j]) - (none if u > 2.0 ** -900 else z.log_sum[which][j])
            out[j] = near[j] if u > 0.5 * up else far


cdef inline void log_ratio_vector(const double* x, const double* y, const Scales* z, double* out) noexcept nogil:
    """log(p/q) from the logs; 0 where both are -inf. The subtraction's rounding error is put back: it counts where the
    rows are far from 0 and near each other."""
    cdef int j
    cdef double difference, part, low, none = 0
    for j in range(LANES):
        difference = x[j] - y[j]
        part = difference - x[j]
        low = (x[j] - (difference - part)) - (y[j] + part)
        low = low if low == low else none
        low = (difference - z.shift[j]) + (low - z.shift_lo[j]) - z.logs[j]
        out[j] = low if low == low else none


cdef inline void ratio_error_vector(const double* x, const double* y, const Scales* z, const double* ratio,
                                    double* out) noexcept nogil:
    """What log_ratio_vector has rounded: the sums of x, -y, -shift and -logs, and their errors, once more."""
    cdef int j
    cdef double s, b, lo, none = 0
    for j in range(LANES):
        s = x[j]
        lo = -z.shift_lo[j]
        two_sum_add(&s, &lo, -y[j])
        two_sum_add(&s, &lo, -z.shift[j])
        two_sum_add(&s, &lo, -z.logs[j])
        b = (s - ratio[j]) + lo
        out[j] = b if b - b == 0 else none


cdef inline double exp_of_difference(double x, double m) noexcept nogil:
    """2^64 exp(x - m), also where x - m is rounded."""
    cdef double d = x - m, part = d - x, low = (x - (d - part)) - (m + part), e = exp_up_f64(d)
    low = low if low == low else 0.0
    return e + e * low


# ---- expectations ----------------------------------------------------------------------------------------------------

cdef loop expectation_lanes(const Plan* plan, const real* a, const real* b, Py_ssize_t count, const real* a_patch,
                            const real* b_patch, const Py_ssize_t* at, const Scales* z, double* sums,
                            double* sums_lo) noexcept nogil:
    """Per lane the sum of -p log q, or for KL of p log(p/q); NaN where a number is outside the domain."""
    cdef double s[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double p[LANES]
    cdef double w[LANES]
    cdef double x[LANES]
    cdef double y[LANES]
    cdef real mark[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef bint a_logs = in_logs(plan, 0), b_logs = in_logs(plan, 1)
    cdef real a_none = absent_number(plan, 0, a), b_none = absent_number(plan, 1, a)
    cdef real a_most = largest_number(plan, 0, a), b_most = largest_number(plan, 1, a), nan = NAN
    cdef double u, up = FK_UP, infinity = INFINITY, none = 0
    cdef const real* v
    cdef const real* r
    for j in range(LANES):
        t[j] = t_lo[j] = mark[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            v = vector_at(a, i, a_patch, at)
            r = vector_at(b, i, b_patch, at)
            for j in range(LANES):
                mark[j] = mark[j] if (v[j] >= a_none) & (v[j] <= a_most) & (r[j] >= b_none) & (r[j] <= b_most) else nan
            if a_logs:
                for j in range(LANES):
                    p[j] = exp_of_difference(v[j], z.m[0][j]) * z.factor[0][j]
            else:
                for j in range(LANES):
                    p[j] = v[j] * (z.up[0][j] * up) * z.factor[0][j]
            if plan.op == KL or not b_logs:
                log_vector(plan, 1, r, z, y)
            if plan.op == KL:
                log_vector(plan, 0, v, z, x)
                log_ratio_vector(x, y, z, w)
            elif b_logs:
                for j in range(LANES):
                    w[j] = (z.m[1][j] - r[j]) + z.log_total[j]
            else:
                for j in range(LANES):
                    w[j] = -y[j]
            for j in range(LANES):
                u = p[j] * w[j]
                u = infinity if r[j] == b_none else u
                s[j] += none if v[j] == a_none else u
            i += 1
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], s[j])
    for j in range(LANES):
        sums[j] = t[j] + mark[j]
        sums_lo[j] = t_lo[j]


# ---- terms ------------------------------------------------------------------------------------------------------------

cdef inlined sum_by_ratios(int op, const Plan* plan, const real* a, const real* b, Py_ssize_t count, const real* a_patch,
                     const real* b_patch, const Py_ssize_t* at, const Scales* z, double* sums, double* sums_lo,
                     double* gaps, double* gaps_lo, double* overlaps) noexcept nogil:
    """Per lane the sums of an operation's terms and of p - q; NaN where a number is outside the domain. For
    BHATTACHARYYA the terms are Hellinger's, and overlaps the sums of sqrt(p q)."""
    cdef double s[LANES]
    cdef double g[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double w[LANES]
    cdef double w_lo[LANES]
    cdef double o[LANES]
    cdef double c[LANES]
    cdef double c_lo[LANES]
    cdef double d[LANES]
    cdef double x[LANES]
    cdef double y[LANES]
    cdef double ratio[LANES]
    cdef double larger[LANES]
    cdef double other[LANES]
    cdef double size[LANES]
    cdef double small[LANES]
    cdef double less[LANES]
    cdef double falls[LANES]
    cdef real mark[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef bint a_logs = in_logs(plan, 0), b_logs = in_logs(plan, 1)
    cdef real a_none = absent_number(plan, 0, a), b_none = absent_number(plan, 1, a)
    cdef real a_most = largest_number(plan, 0, a), b_most = largest_number(plan, 1, a), nan = NAN
    cdef double u, e, fall, rest, rise, near, up = FK_UP, down = FK_DOWN, infinity = INFINITY, most = -lowest(<double>0)
    cdef double none = 0
    cdef const real* v
    cdef const real* r
    for j in range(LANES):
        t[j] = t_lo[j] = w[j] = w_lo[j] = c[j] = c_lo[j] = mark[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = g[j] = o[j] = 0
        while i < stop:
            v = vector_at(a, i, a_patch, at)
            r = vector_at(b, i, b_patch, at)
            for j in range(LANES):
                mark[j] = mark[j] if (v[j] >= a_none) & (v[j] <= a_most) & (r[j] >= b_none) & (r[j] <= b_most) else nan
            log_vector(plan, 0, v, z, x)
            log_vector(plan, 1, r, z, y)
            log_ratio_vector(x, y, z, ratio)
            if a_logs and b_logs:     # one exponential for both
                for j in range(LANES):
                    u = x[j] if ratio[j] > 0 else y[j]
                    e = z.m[0][j] if ratio[j] > 0 else z.m[1][j]
                    near = z.factor[0][j] if ratio[j] > 0 else z.factor[1][j]
                    larger[j] = exp_of_difference(u, e) * near
            else:
                if a_logs:
                    for j in range(LANES):
                        larger[j] = exp_of_difference(v[j], z.m[0][j]) * z.factor[0][j]
                else:
                    for j in range(LANES):
                        larger[j] = v[j] * (z.up[0][j] * up) * z.factor[0][j]
                if b_logs:
                    for j in range(LANES):
                        other[j] = exp_of_difference(r[j], z.m[1][j]) * z.factor[1][j]
                else:
                    for j in range(LANES):
                        other[j] = r[j] * (z.up[1][j] * up) * z.factor[1][j]
                for j in range(LANES):
                    larger[j] = larger[j] if ratio[j] > 0 else other[j]
            for j in range(LANES):
                u = ratio[j] if ratio[j] > 0 else -ratio[j]
                size[j] = u if u < most else most     # inf * 0 would be NaN
                e = exp_up_f64(-size[j]) * down
                fall = kl_fall_f64(size[j], e)
                near = size[j] - fall
                rest = 1 - e
                rest = near if size[j] < 0.5 else rest
                less[j] = rest
                small[j] = e
                falls[j] = fall
                rest *= larger[j]
                d[j] = rest if ratio[j] > 0 else -rest
                g[j] += d[j]
            if op == GENERALIZED_KL:
                for j in range(LANES):
                    rise = kl_rise_f64(size[j], small[j], falls[j], less[j]) * larger[j]
                    fall = falls[j] * larger[j]
                    fall = fall if size[j] < most else infinity     # q = 0
                    s[j] += fall if ratio[j] > 0 else rise
            elif op == TOTAL_VARIATION:
                for j in range(LANES):
                    s[j] += 0.5 * larger[j] * less[j]
            elif op == JEFFREYS:
                for j in range(LANES):
                    u = larger[j] * less[j] * size[j]
                    s[j] += u if size[j] < most else infinity
            elif op == TRIANGULAR:
                for j in range(LANES):
                    s[j] += larger[j] * less[j] * less[j] / (1 + small[j])
            elif op == JS or op == JS_DISTANCE:
                for j in range(LANES):
                    # What is below 2^-950 of 2^64 adds nothing, and is outside the term's domain.
                    e = larger[j] * small[j]
                    e = e if e > 2.0 ** -950 else none
                    u = larger[j] if larger[j] > 2.0 ** -950 else none
                    near = d[j] if larger[j] > 2.0 ** -950 else none
                    s[j] += js_term_f64(u if ratio[j] > 0 else e, e if ratio[j] > 0 else u, near, plan.weight)
            elif op == CHI2:
                ratio_error_vector(x, y, z, ratio, x)
                for j in range(LANES):
                    # p/q in two halves: it may overflow where the term does not.
                    u = 0.5 * size[j] if size[j] < 1200 else 600
                    e = exp_up_f64(u) * down
                    e += 0.5 * e * x[j]
                    u = larger[j] * less[j] * less[j]
                    near = u * e * down * e
                    near = near if size[j] < 1200 else infinity
                    near = near if larger[j] > 0 else none
                    u *= down     # here and not in the end: the sum may be near the largest number
                    s[j] += near if ratio[j] > 0 else u
            else:
                for j in range(LANES):
                    e = exp_up_f64(-0.5 * size[j]) * down     # not the root of e^-t, which is 0 sooner
                    u = less[j] / (1 + e)
                    s[j] += 0.5 * larger[j] * u * u
                    o[j] += larger[j] * e
                if op == BHATTACHARYYA and not both_scaled(plan):
                    for j in range(LANES):
                        g[j] += larger[j] + larger[j] * small[j] - d[j]     # p + q in place of p - q
            i += 1
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], s[j])
        for j in range(LANES):
            two_sum_add(&w[j], &w_lo[j], g[j])
        if op == BHATTACHARYYA:
            for j in range(LANES):
                two_sum_add(&c[j], &c_lo[j], o[j])
    for j in range(LANES):
        sums[j] = t[j] + mark[j]
        sums_lo[j] = t_lo[j]
        gaps[j] = w[j]
        gaps_lo[j] = w_lo[j]
        overlaps[j] = c[j] + c_lo[j]


cdef loop log_ratio_lanes(const Plan* plan, const real* a, const real* b, Py_ssize_t count, const real* a_patch,
                          const real* b_patch, const Py_ssize_t* at, const Scales* z, double* sums, double* sums_lo,
                          double* gaps, double* gaps_lo, double* overlaps) noexcept nogil:
    """sum_by_ratios, compiled for each operation."""
    if plan.op == GENERALIZED_KL:
        sum_by_ratios(GENERALIZED_KL, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == JS or plan.op == JS_DISTANCE:
        sum_by_ratios(JS, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == JEFFREYS:
        sum_by_ratios(JEFFREYS, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == HELLINGER:
        sum_by_ratios(HELLINGER, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == BHATTACHARYYA:
        sum_by_ratios(BHATTACHARYYA, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == TOTAL_VARIATION:
        sum_by_ratios(TOTAL_VARIATION, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    elif plan.op == CHI2:
        sum_by_ratios(CHI2, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    else:
        sum_by_ratios(TRIANGULAR, plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)


cdef inline bint both_scaled(const Plan* plan) noexcept nogil:
    return plan.operand[0].scaled and plan.operand[1].scaled


cdef inline bint is_expectation(const Plan* plan) noexcept nogil:
    return plan.op == KL or plan.op == CROSS_ENTROPY


cdef void given_lanes(const Plan* plan, const real* a, const real* b, Py_ssize_t count, const real* a_patch,
                      const real* b_patch, const Py_ssize_t* at, const Scales* z, double* sums, double* sums_lo,
                      double* gaps, double* gaps_lo, double* overlaps) noexcept nogil:
    """The loop that the operation takes; its sums without the factor 2^64, but for the overlaps."""
    cdef int j
    cdef double down = 1 if plan.op == CHI2 else FK_DOWN
    for j in range(LANES):
        gaps[j] = gaps_lo[j] = overlaps[j] = 0
    if is_expectation(plan):
        expectation_lanes(plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo)
    else:
        log_ratio_lanes(plan, a, b, count, a_patch, b_patch, at, z, sums, sums_lo, gaps, gaps_lo, overlaps)
    for j in range(LANES):
        sums[j] *= down
        sums_lo[j] *= down
        gaps[j] *= FK_DOWN
        gaps_lo[j] *= FK_DOWN


cdef inline void add_part(Part* to, const Part* part) noexcept nogil:
    two_sum_add(&to.s, &to.s_lo, part.s)
    to.s_lo += part.s_lo
    two_sum_add(&to.gap, &to.gap_lo, part.gap)
    to.gap_lo += part.gap_lo
    to.overlap += part.overlap


cdef void given_block(const Plan* plan, const real* a, const real* b, Py_ssize_t n, const Scales* z,
                      Part* part) noexcept nogil:
    cdef real a_patch[3 * LANES]
    cdef real b_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double g[LANES]
    cdef double g_lo[LANES]
    cdef double o[LANES]
    cdef Part block
    cdef Py_ssize_t count = start_patches(a, n, absent_number[real](plan, 0, NULL), a_patch, at)
    start_patches(b, n, absent_number[real](plan, 1, NULL), b_patch, at)
    given_lanes(plan, a, b, count, a_patch, b_patch, at, z, s, s_lo, g, g_lo, o)
    fold_two_sum(s, s_lo)
    fold_two_sum(g, g_lo)
    block.s = s[0]
    block.s_lo = s_lo[0]
    block.gap = g[0]
    block.gap_lo = g_lo[0]
    block.overlap = fold_sum(o)
    add_part(part, &block)


# ---- KL from logits in one read --------------------------------------------------------------------------------------
# KL(p || q) = sum(p (a - b)) - (lse(a) - lse(b)), from running sums of both. What a sum is rounded by counts there by how
# far the result is from those parts: a row whose KL is small beside them goes the other way, out of the cache.

cdef struct Pass:
    double m[2]                     # references: the maxima so far
    double s[2]                     # 2^64 times the sums of exp(a - m[0]) and of exp(b - m[1]), each a two-sum
    double s_lo[2]
    double centre
    double t                        # that of (a - b - centre) exp(a - m[0])
    double t_lo


cdef loop kl_pass_lanes(const real* a, const real* b, Py_ssize_t count, const real* a_patch, const real* b_patch,
                        const Py_ssize_t* at, const real* a_tops, const real* b_tops, const double* centres,
                        double* a_sums, double* b_sums, double* moments) noexcept nogil:
    """Per lane the sums of a Pass."""
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef real s[LANES]
    cdef real r[LANES]
    cdef real e[LANES]
    cdef double w[LANES]
    cdef double c[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef double m[LANES]
    cdef double m_lo[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* v
    cdef const real* y
    cdef double z, part, none = 0
    for j in range(LANES):
        ma[j] = a_tops[j]
        mb[j] = b_tops[j]
        c[j] = centres[j]
        t[j] = t_lo[j] = u[j] = u_lo[j] = m[j] = m_lo[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = r[j] = w[j] = 0
        while i < stop:
            v = vector_at(a, i, a_patch, at)
            y = vector_at(b, i, b_patch, at)
            for j in range(LANES):
                e[j] = exp_up(v[j] - ma[j])
                s[j] += e[j]
                r[j] += exp_up(y[j] - mb[j])
            for j in range(LANES):
                z = <double>v[j] - <double>y[j]
                if real is double:
                    part = z - v[j]
                    z = (z - c[j]) + ((v[j] - (z - part)) - (y[j] + part))
                else:
                    z -= c[j]
                z = e[j] * z
                w[j] += none if v[j] == -INFINITY else z
            i += 1
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], s[j])
            add_run(&u[j], &u_lo[j], r[j])
        for j in range(LANES):
            if real is double:
                two_sum_add(&m[j], &m_lo[j], w[j])
            else:
                m[j] += w[j]
    for j in range(LANES):
        a_sums[j] = t[j] + t_lo[j]
        b_sums[j] = u[j] + u_lo[j]
        moments[j] = m[j] + m_lo[j]


cdef inline void lower(Pass* st, int which, double m) noexcept nogil:
    """Move one side's sums to the reference m > st.m[which]."""
    cdef double f = exp_up_f64(st.m[which] - m) * FK_DOWN
    st.s[which] *= f
    st.s_lo[which] *= f
    if which == 0:
        st.t *= f
        st.t_lo *= f
    st.m[which] = m


cdef void pass_block(const real* a, const real* b, Py_ssize_t n, bint first, Pass* st) noexcept nogil:
    """Add a block, the first or another, to a row's sums."""
    cdef real a_patch[3 * LANES]
    cdef real b_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef double c[LANES]
    cdef double s[LANES]
    cdef double r[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t count = start_patches(a, n, <real>-INFINITY, a_patch, at)
    cdef real top, other
    cdef int j
    start_patches(b, n, <real>-INFINITY, b_patch, at)
    max_lanes(a, count, a_patch, at, ma)
    max_lanes(b, count, b_patch, at, mb)
    top = fold_max(ma)
    other = fold_max(mb)
    top = lowest(top) if top == -INFINITY else top
    other = lowest(top) if other == -INFINITY else other
    if first:
        st.m[0] = top
        st.m[1] = other
        st.centre = <double>top - <double>other
        st.t = st.t_lo = 0
        st.s[0] = st.s_lo[0] = st.s[1] = st.s_lo[1] = 0
    if top > st.m[0]:
        lower(st, 0, top)
    if other > st.m[1]:
        lower(st, 1, other)
    for j in range(LANES):
        ma[j] = <real>st.m[0]
        mb[j] = <real>st.m[1]
        c[j] = st.centre
    kl_pass_lanes(a, b, count, a_patch, b_patch, at, ma, mb, c, s, r, w)
    two_sum_add(&st.s[0], &st.s_lo[0], fold_sum(s))
    two_sum_add(&st.s[1], &st.s_lo[1], fold_sum(r))
    two_sum_add(&st.t, &st.t_lo, fold_sum(w))


cdef void merge_pass(Pass* st, Pass* other) noexcept nogil:
    """Add a later chunk's sums to a row's; other is changed."""
    cdef int which
    two_sum_add(&other.t, &other.t_lo, (other.s[0] + other.s_lo[0]) * (other.centre - st.centre))
    for which in range(2):
        if other.m[which] > st.m[which]:
            lower(st, which, other.m[which])
        elif other.m[which] < st.m[which]:
            lower(other, which, st.m[which])
        two_sum_add(&st.s[which], &st.s_lo[which], other.s[which])
        st.s_lo[which] += other.s_lo[which]
    two_sum_add(&st.t, &st.t_lo, other.t)
    st.t_lo += other.t_lo


cdef inline bint settled_by_pass(const Plan* plan, const Pass* st, double* result) noexcept nogil:
    """The KL divergence if the sums tell all its digits; whether they do."""
    cdef double total = st.s[0] + st.s_lo[0]
    cdef double mean = (st.t + st.t_lo) / total
    cdef double difference = st.m[0] - st.m[1], part = difference - st.m[0]
    cdef double low = (st.m[0] - (difference - part)) - (st.m[1] + part)
    cdef double shift = (st.centre - difference) - low, logs = log_any_f64(total / (st.s[1] + st.s_lo[1]))
    cdef double kl = (mean + shift) - logs, parts = 1
    parts += mean if mean > 0 else -mean
    parts += shift if shift > 0 else -shift
    parts += logs if logs > 0 else -logs
    result[0] = kl * plan.scale + 0.0
    return kl > parts / 16 and kl < INFINITY


cdef inline bint one_pass(const Plan* plan) noexcept nogil:
    return plan.op == GENERALIZED_KL and both_scaled(plan) and plan.operand[0].logs and plan.operand[1].logs


cdef bint pass_across(const Plan* plan, const real* a, const real* b, Py_ssize_t rows, double* result,
                      bint* settled) noexcept nogil:
    """Up to LANES short rows; returns whether all are settled."""
    cdef Pass st
    cdef Py_ssize_t at[3]
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef double c[LANES]
    cdef double s[LANES]
    cdef double r[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef bint all_settled = True
    at[0] = at[1] = at[2] = -1
    max_lanes(a, plan.classes, a, at, ma)
    max_lanes(b, plan.classes, b, at, mb)
    for j in range(LANES):
        ma[j] = lowest(ma[j]) if ma[j] == -INFINITY else ma[j]
        mb[j] = lowest(mb[j]) if mb[j] == -INFINITY else mb[j]
        c[j] = <double>ma[j] - <double>mb[j]
    kl_pass_lanes(a, b, plan.classes, a, b, at, ma, mb, c, s, r, w)
    st.s_lo[0] = st.s_lo[1] = st.t_lo = 0
    for i in range(rows):
        st.m[0] = ma[i]
        st.m[1] = mb[i]
        st.centre = c[i]
        st.s[0] = s[i]
        st.s[1] = r[i]
        st.t = w[i]
        settled[i] = settled_by_pass(plan, &st, &result[i])
        all_settled = all_settled and settled[i]
    return all_settled


# ---- from sums to results --------------------------------------------------------------------------------------------

cdef bint correct_scales(const Plan* plan, const Part* part, Scale* q, real* like) noexcept nogil:
    """Whether p and q, both divided by their sums, differ in what those leave of 1 by more than the result bears; q is
    corrected by that then."""
    cdef double gap = closed(part.gap, part.gap_lo), s = closed(part.s, part.s_lo), most
    most = 2.0 ** -22 if real is float else 2.0 ** -51
    if is_expectation(plan) or not both_scaled(plan):
        return False
    # All but the total variation change with its square.
    if plan.op == TOTAL_VARIATION and gap < 0:
        gap = -gap
    if not ((gap if plan.op == TOTAL_VARIATION else gap * gap) > most * s and -0.5 < gap < 0.5):
        return False
    gap = closed(part.gap, part.gap_lo)
    q.log_total_lo = log1p_f64(-gap)
    q.factor /= 1 - gap
    return True


cdef double given_result(const Plan* plan, const Part* part, bint valid) noexcept nogil:
    cdef double s = closed(part.s, part.s_lo)
    if not valid:
        return NAN
    if is_expectation(plan):
        return s * plan.scale + 0.0
    if plan.op == BHATTACHARYYA and s == s:
        if part.overlap < 2.0 ** -800:
            s = 64 * LN2 - log_any_f64(part.overlap)     # the sum itself may be denormal
        elif both_scaled(plan):
            s = not_negative(distance_of(s, part.overlap * FK_DOWN, 0))
        else:
            s = distance_of(s, part.overlap * FK_DOWN, ((part.gap - 2) + part.gap_lo) / 2)
    else:
        s = not_negative(s)
    s = s * plan.scale + 0.0
    return sqrt(s) if plan.op == JS_DISTANCE or plan.op == HELLINGER else s


# ---- short rows ------------------------------------------------------------------------------------------------------

cdef void sums_across(const Plan* plan, int which, const real* x, Sums* a) noexcept nogil:
    """The sums of up to LANES short rows of an operand, if it is to be divided by them."""
    cdef Py_ssize_t at[3]
    cdef int j
    at[0] = at[1] = at[2] = -1
    if not plan.operand[which].scaled:
        return
    if in_logs(plan, which):
        logsumexp_across(x, plan.classes, False, NULL, NULL, a, 0)
    else:
        mass_lanes(x, plan.classes, x, at, a.s, a.s_lo, a.u, a.u_lo)


cdef void given_across(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Up to TILE rows, LANES at a time, a lane a row."""
    cdef Sums p_sums
    cdef Sums q_sums
    cdef Scale p[LANES]
    cdef Scale q[LANES]
    cdef Scales z
    cdef Part part
    cdef double result[TILE]
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double g[LANES]
    cdef double g_lo[LANES]
    cdef double o[LANES]
    cdef Py_ssize_t at[3]
    cdef Py_ssize_t size = plan.classes * LANES, first = 0, n, i
    cdef real* a = scratch
    cdef real* b = scratch + size
    cdef bint settled[LANES]
    cdef int turn
    cdef bint again
    at[0] = at[1] = at[2] = -1
    while first < rows:
        n = LANES if first + LANES < rows else rows - first
        for i in range(size if n < LANES else 0):
            a[i] = absent_number[real](plan, 0, NULL)
            b[i] = absent_number[real](plan, 1, NULL)
        fetch[real](plan, &plan.operand[0], row + first, n, 0, plan.classes, a, 1, LANES,
                    absent_number[real](plan, 0, NULL))
        fetch[real](plan, &plan.operand[1], row + first, n, 0, plan.classes, b, 1, LANES,
                    absent_number[real](plan, 1, NULL))
        if one_pass(plan) and pass_across(plan, a, b, n, result + first, settled):
            first += LANES
            continue
        sums_across(plan, 0, a, &p_sums)
        sums_across(plan, 1, b, &q_sums)
        for i in range(LANES):
            scale_of(plan, 0, &p_sums, i, &p[i])
            scale_of(plan, 1, &q_sums, i, &q[i])
            set_lane(&p[i], &q[i], i, &z)
        for turn in range(2):
            again = False
            given_lanes(plan, a, b, plan.classes, a, b, at, &z, s, s_lo, g, g_lo, o)
            for i in range(n):
                part.s = s[i]
                part.s_lo = s_lo[i]
                part.gap = g[i]
                part.gap_lo = g_lo[i]
                part.overlap = o[i]
                if not (one_pass(plan) and settled[i]):
                    result[first + i] = given_result(plan, &part, p[i].valid and q[i].valid)
                if turn == 0 and correct_scales[real](plan, &part, &q[i], NULL):
                    set_lane(&p[i], &q[i], i, &z)
                    again = True
            if not again:
                break
        first += LANES
    put_rows[real](plan, &plan.out, row, rows, result, a)


# ---- longer rows -----------------------------------------------------------------------------------------------------

cdef inline bint read_in_place(const Plan* plan, int which) noexcept nogil:
    return plan.operand[which].direct and not plan.has_mask


cdef inline Py_ssize_t given_together(const Plan* plan, size_t itemsize) noexcept nogil:
    """Rows fetched together: as many as have neighbouring elements in a cache line, where those of a row have not."""
    return 1 if read_in_place(plan, 0) and read_in_place(plan, 1) else 64 // <Py_ssize_t>itemsize


cdef void load_given(const Plan* plan, int which, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t first, Py_ssize_t n,
                     real* scratch, const real** x) noexcept nogil:
    """Point x[i] at n numbers of each of some rows from class `first` on."""
    cdef Py_ssize_t i
    if read_in_place(plan, which):
        for i in range(rows):
            x[i] = <const real*>row_pointer(plan, &plan.operand[which], row + i) + first
        return
    fetch[real](plan, &plan.operand[which], row, rows, first, n, scratch, SPAN, 1, absent_number[real](plan, which, NULL))
    for i in range(rows):
        x[i] = scratch + i * SPAN


cdef void scan_given(const Plan* plan, int which, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop,
                     State* states, real* scratch) noexcept nogil:
    """Read a chunk of some rows of an operand, at most 16, into their states."""
    cdef const real* x[16]
    cdef Py_ssize_t first = start, n, i
    for i in range(rows):
        start_state(&states[i])
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        load_given(plan, which, row, rows, first, n, scratch, x)
        for i in range(rows):
            if not in_logs(plan, which):
                mass_block(x[i], n, &states[i])
                continue
            if first == start:
                open_row(x[i], n, <Py_ssize_t>-1, &states[i])
            logsumexp_block(x[i], n, <Py_ssize_t>-1, False, NULL, NULL, &states[i])
        first += n


cdef inline void merge_given(const Plan* plan, int which, State* st, State* other) noexcept nogil:
    """Add a later chunk's sums to a row's."""
    if in_logs(plan, which):
        merge_logsumexp(st, other)
    else:
        merge_divergence(st, other)


cdef void second_pass(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop,
                      const Scale* p, const Scale* q, Part* parts, real* scratch) noexcept nogil:
    """The sums over a chunk of some rows, at most 16."""
    cdef const real* a[16]
    cdef const real* b[16]
    cdef Scales z
    cdef Py_ssize_t first = start, n, i, j, size = given_together(plan, sizeof(real)) * SPAN
    for i in range(rows):
        parts[i].s = parts[i].s_lo = parts[i].gap = parts[i].gap_lo = parts[i].overlap = 0
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        load_given(plan, 0, row, rows, first, n, scratch, a)
        load_given(plan, 1, row, rows, first, n, scratch + size, b)
        for i in range(rows):
            for j in range(LANES if i == 0 or rows > 1 else 0):
                set_lane(&p[i], &q[i], j, &z)
            given_block(plan, a[i], b[i], n, &z, &parts[i])
        first += n


cdef void pass_chunk(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop, Pass* passes,
                     real* scratch) noexcept nogil:
    """A chunk of some rows, at most 16, in one read."""
    cdef const real* a[16]
    cdef const real* b[16]
    cdef Py_ssize_t first = start, n, i, size = given_together(plan, sizeof(real)) * SPAN
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        load_given(plan, 0, row, rows, first, n, scratch, a)
        load_given(plan, 1, row, rows, first, n, scratch + size, b)
        for i in range(rows):
            pass_block(a[i], b[i], n, first == start, &passes[i])
        first += n


cdef bint pass_rows(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, double* result, bint* settled,
                    real* scratch) noexcept nogil:
    """Some rows, at most 16; returns whether all are settled."""
    cdef Pass passes[16]
    cdef Pass chunk[16]
    cdef Py_ssize_t start = 0, stop, i
    cdef bint all_settled = True
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        pass_chunk[real](plan, row, rows, start, stop, chunk, scratch)
        for i in range(rows):
            if start == 0:
                passes[i] = chunk[i]
            else:
                merge_pass(&passes[i], &chunk[i])
        start = stop
    for i in range(rows):
        settled[i] = settled_by_pass(plan, &passes[i], &result[i])
        all_settled = all_settled and settled[i]
    return all_settled


cdef void given_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Up to TILE rows of more than ACROSS classes."""
    cdef Sums sums[2]
    cdef State states[16]
    cdef State chunk[16]
    cdef Scale p[16]
    cdef Scale q[16]
    cdef Part parts[16]
    cdef Part chunk_parts[16]
    cdef double result[TILE]
    cdef bint settled[16]
    cdef Py_ssize_t group = given_together(plan, sizeof(real)), i = 0, n, k, start, stop
    cdef int which
    while i < rows:
        n = group if i + group < rows else rows - i
        if one_pass(plan) and pass_rows[real](plan, row + i, n, result + i, settled, scratch):
            i += n
            continue
        for which in range(2):
            start = 0
            while start < plan.classes and plan.operand[which].scaled:
                stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
                scan_given[real](plan, which, row + i, n, start, stop, chunk, scratch)
                for k in range(n):
                    if start == 0:
                        states[k] = chunk[k]
                    else:
                        merge_given(plan, which, &states[k], &chunk[k])
                start = stop
            for k in range(n if plan.operand[which].scaled else 0):
                keep_state(&states[k], k, &sums[which])
        for k in range(n):
            scale_of(plan, 0, &sums[0], k, &p[k])
            scale_of(plan, 1, &sums[1], k, &q[k])
        given_parts[real](plan, row + i, n, p, q, parts, chunk_parts, scratch)
        for k in range(n):
            if one_pass(plan) and settled[k]:
                continue
            if correct_scales[real](plan, &parts[k], &q[k], NULL):
                given_parts[real](plan, row + i + k, 1, p + k, q + k, parts + k, chunk_parts, scratch)
            result[i + k] = given_result(plan, &parts[k], p[k].valid and q[k].valid)
        i += n
    put_rows[real](plan, &plan.out, row, rows, result, scratch)


cdef void given_parts(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, const Scale* p, const Scale* q, Part* parts,
                      Part* chunk, real* scratch) noexcept nogil:
    """The second pass over whole rows, chunk by chunk."""
    cdef Py_ssize_t start = 0, stop, k
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        second_pass[real](plan, row, rows, start, stop, p, q, chunk, scratch)
        for k in range(rows):
            if start == 0:
                parts[k] = chunk[k]
            else:
                add_part(&parts[k], &chunk[k])
        start = stop


cdef void one_given_tile(Plan* plan, Py_ssize_t t, Py_ssize_t size, real* scratch) noexcept nogil:
    cdef Py_ssize_t row = plan.first_row + t * size
    cdef Py_ssize_t rows = size if row + size < plan.last_row else plan.last_row - row
    cdef unsigned int mode = fk_default_mode()
    if plan.classes <= ACROSS:
        given_across[real](plan, row, rows, scratch)
    else:
        given_rows[real](plan, row, rows, scratch)
    fk_restore_mode(mode)


cdef void one_given_chunk(const Plan* plan, int which, Py_ssize_t t, Py_ssize_t chunks, State* states, const Scale* p,
                          const Scale* q, Part* parts, Pass* passes, real* scratch) noexcept nogil:
    """Chunk t % chunks of row t // chunks: the sums of an operand, or if which is 2 the second pass, if 3 the one pass."""
    cdef Py_ssize_t i = t // chunks, start = t % chunks * CHUNK
    cdef Py_ssize_t stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
    cdef unsigned int mode = fk_default_mode()
    if which < 2:
        scan_given[real](plan, which, plan.first_row + i, 1, start, stop, &states[t], scratch)
    elif which == 3:
        pass_chunk[real](plan, plan.first_row + i, 1, start, stop, &passes[t], scratch)
    else:
        second_pass[real](plan, plan.first_row + i, 1, start, stop, &p[i], &q[i], &parts[t], scratch)
    fk_restore_mode(mode)


cdef void given_split(Plan* plan, Py_ssize_t chunks, State* states, Part* parts, Pass* passes, real* scratch,
                      Py_ssize_t stride, int threads) noexcept nogil:
    """A few very long rows (at most TILE): threads share each row's chunks, which are then merged in order."""
    cdef Sums sums[2]
    cdef Scale p[TILE]
    cdef Scale q[TILE]
    cdef double result[TILE]
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, t, i
    cdef bint settled[TILE]
    cdef int which, turn
    cdef bint again = False
    if one_pass(plan):
        for t in prange(rows * chunks, num_threads=threads, schedule="static"):
            one_given_chunk[real](plan, 3, t, chunks, states, p, q, parts, passes, scratch + threadid() * stride)
        for i in range(rows):
            for t in range(1, chunks):
                merge_pass(&passes[i * chunks], &passes[i * chunks + t])
            settled[i] = settled_by_pass(plan, &passes[i * chunks], &result[i])
            again = again or not settled[i]
        if not again:
            put_rows[real](plan, &plan.out, plan.first_row, rows, result, scratch)
            return
    for which in range(2):
        if not plan.operand[which].scaled:
            continue
        for t in prange(rows * chunks, num_threads=threads, schedule="static"):
            one_given_chunk[real](plan, which, t, chunks, states, p, q, parts, passes,
                                  scratch + threadid() * stride)
        for i in range(rows):
            for t in range(1, chunks):
                merge_given(plan, which, &states[i * chunks], &states[i * chunks + t])
            keep_state(&states[i * chunks], i, &sums[which])
    for i in range(rows):
        scale_of(plan, 0, &sums[0], i, &p[i])
        scale_of(plan, 1, &sums[1], i, &q[i])
    for turn in range(2):
        for t in prange(rows * chunks, num_threads=threads, schedule="static"):
            one_given_chunk[real](plan, 2, t, chunks, states, p, q, parts, passes, scratch + threadid() * stride)
        again = False
        for i in range(rows):
            for t in range(1, chunks):
                add_part(&parts[i * chunks], &parts[i * chunks + t])
            if one_pass(plan) and settled[i]:
                continue
            result[i] = given_result(plan, &parts[i * chunks], p[i].valid and q[i].valid)
            if turn == 0 and correct_scales[real](plan, &parts[i * chunks], &q[i], NULL):
                again = True
        if not again:
            break
    put_rows[real](plan, &plan.out, plan.first_row, rows, result, scratch)


cdef int execute_given(Plan* plan, int threads, real* like) noexcept nogil:
    """Run a plan; returns -1 where memory for the threads' scratch is not to be had."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, size = TILE, stride, tiles, t
    cdef Py_ssize_t chunks = (plan.classes + CHUNK - 1) // CHUNK
    cdef real* scratch = NULL
    cdef State* states = NULL
    cdef Part* parts = NULL
    cdef Pass* passes = NULL
    cdef int failed = 0
    if rows <= 0:
        return 0
    if plan.classes <= ACROSS:
        stride = 2 * plan.classes * LANES
    else:
        size = 4 * BLOCK // plan.classes
        size = given_together(plan, sizeof(real)) if size < given_together(plan, sizeof(real)) else size
        stride = 2 * given_together(plan, sizeof(real)) * SPAN
    stride += 64 - stride % 64
    tiles = (rows + size - 1) // size
    if threads > tiles * (chunks if chunks > 1 else 1):
        threads = <int>(tiles * (chunks if chunks > 1 else 1))
    if posix_memalign(<void**>&scratch, 64, threads * stride * sizeof(real)):
        return -1
    if chunks > 1 and threads > 1 and rows < 2 * threads and rows <= TILE:
        failed = posix_memalign(<void**>&states, 64, rows * chunks * sizeof(State))
        failed |= posix_memalign(<void**>&parts, 64, rows * chunks * sizeof(Part))
        failed |= posix_memalign(<void**>&passes, 64, rows * chunks * sizeof(Pass))
        if not failed:
            given_split[real](plan, chunks, states, parts, passes, scratch, stride, threads)
    elif threads == 1:
        for t in range(tiles):
            one_given_tile[real](plan, t, size, scratch)
    else:
        for t in prange(tiles, num_threads=threads, schedule="static"):
            one_given_tile[real](plan, t, size, scratch + threadid() * stride)
    free(passes)
    free(parts)
    free(states)
    free(scratch)
    return -1 if failed else 0
