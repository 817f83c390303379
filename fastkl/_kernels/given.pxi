# Two distributions of which at least one is given by logs (log-probabilities, or logits, which are divided by the sum of
# their exponentials), or by probabilities that are divided by their sum. A row's numbers become probabilities and their
# logs vector by vector: nothing of the size of a row is kept.
#
# First the sums of those that are to be divided, then a second pass over the row, while it is in the cache:
#   KL as written and cross-entropy   sum of p times a log: the logs are not rounded to less than the data's digits
#   all others                        terms max(p, q) f(t) >= 0 of t = abs(log(p/q)), as in pair.pxi: nothing cancels
# All in double, also where the data is float32. An error that log(p/q) has for all classes, from the sums, leaves a sum
# of p - q; where that counts, it is taken off the logs and the second pass is done again.

cdef extern from "vmath.h" nogil:
    float exp_weight_f32(float x)
    float kl_excess_f32(float z)
    double kl_excess_f64(double z)
    double log1p_gap_f64(double y)

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
    cdef double lesser[LANES]
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
        t[j] = t_lo[j] = w[j] = w_lo[j] = c[j] = c_lo[j] = mark[j] = lesser[j] = 0
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
                if op == CHI2:
                    for j in range(LANES):
                        lesser[j] = other[j] if ratio[j] > 0 else larger[j]
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
                    # Of two probabilities that have all their digits the quotient is better: the log of a number has an
                    # error that grows with its size.
                    rise = u * down * (larger[j] / lesser[j])
                    near = rise if lesser[j] > 2.0 ** -900 else near
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
# In the data's own type, from sums over w = exp(a - ma), of
#   far rows    KL = sum(w z)/sum(w) - log(sum(w)/sum(v)), v = exp(b - mb) and z = (a - ma) - (b - mb): what a sum is
#               rounded by counts by how far the result is from those parts, but that a - ma and b - mb are rounded does
#               not, for the formula is exact of the rounded ones
#   near rows   KL = u - (y - log(1 + y)), u = sum(w (exp(-z) - 1 + z))/sum(w), y = u - sum(w z)/sum(w), with
#               z = a - b - c: terms >= 0, and the less is taken off the better c is a mean of a - b; the difference of
#               the maxima is a good guess
# Which of the two a row is told by depends on the row alone. Where neither tells all digits, or a row holds what makes it
# no distribution or its KL infinite, it goes the other way.

cdef enum:
    AHEAD = 65536                   # elements of the rows that a thread takes at a time, unless one alone is more

cdef enum:
    UNKNOWN
    FAR
    NEAR

cdef struct Pass:
    double m[2]                     # references: within 1 of the maxima so far
    double s[2]                     # the sums of exp(a - m[0]) and, of far rows, exp(b - m[1]), each a two-sum; of double
                                    # data all sums are 2^64 times as large
    double s_lo[2]
    double t                        # that of w z
    double t_lo
    double u                        # of near rows that of w (exp(-z) - 1 + z)
    double u_lo


cdef inline real kl_excess(real z) noexcept nogil:
    if real is float:
        return kl_excess_f32(z)
    else:
        return kl_excess_f64(z)


cdef inline real weight_of(real x) noexcept nogil:
    """exp(x), in double 2^64 times that."""
    if real is float:
        return exp_weight_f32(x)
    else:
        return exp_up_f64(x)


cdef inline real moment_of(real w, real x, real y) noexcept nogil:
    """w (x - y), 0 where x is -inf."""
    cdef real product = w * (x - y), none = 0
    return none if x == -INFINITY else product


cdef inline real centred(real a, real b, real c) noexcept nogil:
    """a - b - c, rounded as if a - b were not: the rounding error of that is put back. NaN where b is -inf, the lowest
    number where a is: its product with a probability of 0 is 0."""
    cdef real d = a - b, part = d - a, none = lowest(a), z
    z = (d - c) + ((a - (d - part)) - (b + part))
    return none if a == -INFINITY else z


cdef inline real largest_of(real a, real b, real c, real d) noexcept nogil:
    return larger(larger(a, b), larger(c, d))


cdef loop far_lanes(const real* a, const real* b, Py_ssize_t count, const real* a_patch, const real* b_patch,
                    const Py_ssize_t* at, const real* a_references, const real* b_references, double* a_sums,
                    double* b_sums, double* moments, real* a_tops, real* b_tops, const char* a_next,
                    const char* b_next) noexcept nogil:
    """Per lane the sums of a Pass of far rows, and the maxima. What will be read next, unless NULL, is prefetched."""
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef real a_top[LANES]
    cdef real b_top[LANES]
    cdef real s[LANES]
    cdef real r[LANES]
    cdef real w[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef double m[LANES]
    cdef double m_lo[LANES]
    cdef Py_ssize_t i = 0, whole = count - (at[0] >= 0)     # the tail is the only vector that is patched
    cdef int j, step
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    cdef const real* y0
    cdef const real* y1
    cdef const real* y2
    cdef const real* y3
    cdef real x0, x1, x2, x3, e0, e1, e2, e3
    for j in range(LANES):
        ma[j] = a_references[j]
        mb[j] = b_references[j]
        a_top[j] = b_top[j] = -INFINITY
        t[j] = t_lo[j] = u[j] = u_lo[j] = m[j] = m_lo[j] = 0
    while i < count:
        v0 = a + i * LANES if i < whole else a_patch
        y0 = b + i * LANES if i < whole else b_patch
        step = RUN if i + RUN <= whole else 1
        fk_prefetch(a_next, i * LANES * sizeof(real), step * LANES * sizeof(real))
        fk_prefetch(b_next, i * LANES * sizeof(real), step * LANES * sizeof(real))
        if step == RUN:
            v1 = v0 + LANES
            v2 = v0 + 2 * LANES
            v3 = v0 + 3 * LANES
            y1 = y0 + LANES
            y2 = y0 + 2 * LANES
            y3 = y0 + 3 * LANES
            for j in range(LANES):
                x0 = v0[j] - ma[j]
                x1 = v1[j] - ma[j]
                x2 = v2[j] - ma[j]
                x3 = v3[j] - ma[j]
                e0 = weight_of(x0)
                e1 = weight_of(x1)
                e2 = weight_of(x2)
                e3 = weight_of(x3)
                s[j] = (e0 + e1) + (e2 + e3)
                w[j] = ((moment_of(e0, x0, y0[j] - mb[j]) + moment_of(e1, x1, y1[j] - mb[j]))
                        + (moment_of(e2, x2, y2[j] - mb[j]) + moment_of(e3, x3, y3[j] - mb[j])))
                r[j] = ((weight_of(y0[j] - mb[j]) + weight_of(y1[j] - mb[j]))
                        + (weight_of(y2[j] - mb[j]) + weight_of(y3[j] - mb[j])))
                a_top[j] = larger(largest_of(v0[j], v1[j], v2[j], v3[j]), a_top[j])
                b_top[j] = larger(largest_of(y0[j], y1[j], y2[j], y3[j]), b_top[j])
        else:
            for j in range(LANES):
                x0 = v0[j] - ma[j]
                e0 = weight_of(x0)
                s[j] = e0
                w[j] = moment_of(e0, x0, y0[j] - mb[j])
                r[j] = weight_of(y0[j] - mb[j])
                a_top[j] = larger(v0[j], a_top[j])
                b_top[j] = larger(y0[j], b_top[j])
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], s[j])
        for j in range(LANES):
            add_run(&u[j], &u_lo[j], r[j])
        for j in range(LANES):
            add_run(&m[j], &m_lo[j], w[j])
        i += step
    for j in range(LANES):
        a_sums[j] = t[j] + t_lo[j]
        b_sums[j] = u[j] + u_lo[j]
        moments[j] = m[j] + m_lo[j]
        a_tops[j] = a_top[j]
        b_tops[j] = b_top[j]


cdef inline real near_term(real a, real b, real m, real c) noexcept nogil:
    """w (exp(-z) - 1 + z) of any z: where p is as good as 0, what is left is q, whose exponential is of b then."""
    cdef real z = centred(a, b, c), x = -centred(m, b, c), most = 40, infinity = INFINITY, least = -40, none = 0
    cdef real near = weight_of(a - m) * kl_excess(z), far = weight_of(x)
    far = infinity if x > most else far
    far = none if b == -INFINITY else far
    return far if z < least else near


cdef loop near_lanes(const real* a, const real* b, Py_ssize_t count, const real* a_patch, const real* b_patch,
                     const Py_ssize_t* at, const real* a_references, const real* centres, double* a_sums,
                     double* moments, double* excesses, real* a_tops, const char* a_next,
                     const char* b_next) noexcept nogil:
    """Per lane the sums of a Pass of near rows, and the maxima of a."""
    cdef real ma[LANES]
    cdef real c[LANES]
    cdef real a_top[LANES]
    cdef real s[LANES]
    cdef real r[LANES]
    cdef real w[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef double m[LANES]
    cdef double m_lo[LANES]
    cdef Py_ssize_t i = 0, whole = count - (at[0] >= 0)     # the tail is the only vector that is patched
    cdef real farthest[LANES]
    cdef int j, step, far
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    cdef const real* y0
    cdef const real* y1
    cdef const real* y2
    cdef const real* y3
    cdef real z0, z1, z2, z3, e0, e1, e2, e3, most = 40
    for j in range(LANES):
        ma[j] = a_references[j]
        c[j] = centres[j]
        a_top[j] = -INFINITY
        t[j] = t_lo[j] = u[j] = u_lo[j] = m[j] = m_lo[j] = 0
    while i < count:
        v0 = a + i * LANES if i < whole else a_patch
        y0 = b + i * LANES if i < whole else b_patch
        step = RUN if i + RUN <= whole else 1
        fk_prefetch(a_next, i * LANES * sizeof(real), step * LANES * sizeof(real))
        fk_prefetch(b_next, i * LANES * sizeof(real), step * LANES * sizeof(real))
        if step == RUN:
            v1 = v0 + LANES
            v2 = v0 + 2 * LANES
            v3 = v0 + 3 * LANES
            y1 = y0 + LANES
            y2 = y0 + 2 * LANES
            y3 = y0 + 3 * LANES
            for j in range(LANES):
                e0 = weight_of(v0[j] - ma[j])
                e1 = weight_of(v1[j] - ma[j])
                e2 = weight_of(v2[j] - ma[j])
                e3 = weight_of(v3[j] - ma[j])
                z0 = centred(v0[j], y0[j], c[j])
                z1 = centred(v1[j], y1[j], c[j])
                z2 = centred(v2[j], y2[j], c[j])
                z3 = centred(v3[j], y3[j], c[j])
                s[j] = (e0 + e1) + (e2 + e3)
                w[j] = (e0 * z0 + e1 * z1) + (e2 * z2 + e3 * z3)
                r[j] = (e0 * kl_excess(z0) + e1 * kl_excess(z1)) + (e2 * kl_excess(z2) + e3 * kl_excess(z3))
                a_top[j] = larger(largest_of(v0[j], v1[j], v2[j], v3[j]), a_top[j])
                farthest[j] = largest_of(-z0, -z1, -z2, -z3)
        else:
            v1 = v2 = v3 = v0
            y1 = y2 = y3 = y0
            for j in range(LANES):
                e0 = weight_of(v0[j] - ma[j])
                z0 = centred(v0[j], y0[j], c[j])
                s[j] = e0
                w[j] = e0 * z0
                r[j] = e0 * kl_excess(z0)
                a_top[j] = larger(v0[j], a_top[j])
                farthest[j] = -z0
        far = 0
        for j in range(LANES):
            far |= farthest[j] > most
        if far:
            for j in range(LANES):
                z0 = near_term(v0[j], y0[j], ma[j], c[j])
                z1 = near_term(v1[j], y1[j], ma[j], c[j])
                z2 = near_term(v2[j], y2[j], ma[j], c[j])
                z3 = near_term(v3[j], y3[j], ma[j], c[j])
                r[j] = (z0 + z1) + (z2 + z3) if step == RUN else z0
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], s[j])
        for j in range(LANES):
            add_run(&u[j], &u_lo[j], r[j])
        for j in range(LANES):
            add_run(&m[j], &m_lo[j], w[j])
        i += step
    for j in range(LANES):
        a_sums[j] = t[j] + t_lo[j]
        excesses[j] = u[j] + u_lo[j]
        moments[j] = m[j] + m_lo[j]
        a_tops[j] = a_top[j]


cdef inline void lower(Pass* st, int kind, int which, double m) noexcept nogil:
    """Move one side's sums to the reference m > st.m[which]."""
    cdef double change = m - st.m[which], f = exp_up_f64(-change) * FK_DOWN, s = st.s[0] + st.s_lo[0]
    if kind == FAR and s != 0:
        two_sum_add(&st.t, &st.t_lo, change * s if which == 1 else -change * s)
    st.s[which] *= f
    st.s_lo[which] *= f
    if which == 0:
        st.t *= f
        st.t_lo *= f
        st.u *= f
        st.u_lo *= f
    st.m[which] = m


cdef inline double centre_of(real top, real other) noexcept nogil:
    """A guess of what a and b differ by, from their maxima."""
    return <double>top - <double>other if top > lowest(top) and other > lowest(top) else 0.0


cdef inline real known_top(real top) noexcept nogil:
    """A finite number in place of a maximum of none."""
    return lowest(top) if top == -INFINITY else top


cdef void open_pass(const real* a, const real* b, Py_ssize_t n, Pass* st) noexcept nogil:
    """Start from a first block's maxima."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[LANES]
    cdef Py_ssize_t count = start_patches(a, n, <real>-INFINITY, patch, at)
    max_lanes(a, count, patch, at, tops)
    st.m[0] = known_top(fold_max(tops))
    start_patches(b, n, <real>-INFINITY, patch, at)
    max_lanes(b, count, patch, at, tops)
    st.m[1] = known_top(fold_max(tops))
    st.s[0] = st.s_lo[0] = st.s[1] = st.s_lo[1] = st.t = st.t_lo = st.u = st.u_lo = 0


cdef void pass_block(int kind, const real* a, const real* b, Py_ssize_t n, double centre, const char* a_next,
                     const char* b_next, Pass* st) noexcept nogil:
    """Add a block to a row's sums; the references are lazy, see logspace.pxi."""
    cdef real a_patch[3 * LANES]
    cdef real b_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef real c[LANES]
    cdef real a_tops[LANES]
    cdef real b_tops[LANES]
    cdef double s[LANES]
    cdef double r[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t count = start_patches(a, n, <real>-INFINITY, a_patch, at)
    cdef real a_limit, b_limit
    cdef int j, above, b_above
    start_patches(b, n, <real>-INFINITY, b_patch, at)
    while True:
        a_limit = <real>(st.m[0] + 1)
        b_limit = <real>(st.m[1] + 1)
        for j in range(LANES):
            ma[j] = <real>st.m[0]
            mb[j] = <real>st.m[1]
            c[j] = <real>centre
            b_tops[j] = -INFINITY
        if kind == NEAR:
            near_lanes(a, b, count, a_patch, b_patch, at, ma, c, s, w, r, a_tops, a_next, b_next)
        else:
            far_lanes(a, b, count, a_patch, b_patch, at, ma, mb, s, r, w, a_tops, b_tops, a_next, b_next)
        above = b_above = 0
        for j in range(LANES):
            above |= a_tops[j] > a_limit
            b_above |= b_tops[j] > b_limit
        if above:
            lower(st, kind, 0, fold_max(a_tops))
        if b_above:
            lower(st, kind, 1, fold_max(b_tops))
        if not above and not b_above:
            break
    two_sum_add(&st.s[0], &st.s_lo[0], fold_sum(s))
    two_sum_add(&st.t, &st.t_lo, fold_sum(w))
    if kind == NEAR:
        two_sum_add(&st.u, &st.u_lo, fold_sum(r))
    else:
        two_sum_add(&st.s[1], &st.s_lo[1], fold_sum(r))


cdef void merge_pass(int kind, Pass* st, Pass* other) noexcept nogil:
    """Add a later chunk's sums to a row's; other is changed."""
    cdef int which
    for which in range(2):
        if other.m[which] > st.m[which]:
            lower(st, kind, which, other.m[which])
        elif other.m[which] < st.m[which]:
            lower(other, kind, which, st.m[which])
    for which in range(2):
        two_sum_add(&st.s[which], &st.s_lo[which], other.s[which])
        st.s_lo[which] += other.s_lo[which]
    two_sum_add(&st.t, &st.t_lo, other.t)
    st.t_lo += other.t_lo
    two_sum_add(&st.u, &st.u_lo, other.u)
    st.u_lo += other.u_lo


cdef inline double kl_of_far(double s, double r, double t) noexcept nogil:
    """The KL divergence from a far row's sums; NaN where they do not tell all its digits."""
    cdef double mean = t / s, logs = log_any_f64(s / r), kl = mean - logs, parts = 1, nan = NAN
    parts += mean if mean > 0 else -mean
    parts += logs if logs > 0 else -logs
    return kl if (kl > 0.125 * parts) & (kl < INFINITY) else nan


cdef inline double kl_of_near(double s, double t, double u) noexcept nogil:
    """The same from a near row's sums."""
    cdef double excess = u / s, y = excess - t / s, kl = excess - log1p_gap_f64(y), nan = NAN
    return kl if (excess <= 8 * kl) & (y > -0.29) & (y < 0.41) else nan


cdef inline double better_centre(double c, double s, double t, double u) noexcept nogil:
    """What a near row's sums say that a and b differ by, in place of c; c itself where there is no such number."""
    cdef double y = (u - t) / s
    return c - log1p_f64(y) if -1 < y < INFINITY else c


cdef inline bint one_pass(const Plan* plan) noexcept nogil:
    return plan.op == GENERALIZED_KL and both_scaled(plan) and plan.operand[0].logs and plan.operand[1].logs


cdef void close_far(const double* s, const double* r, const double* t, double* kl) noexcept nogil:
    """kl_of_far of LANES rows."""
    cdef int j
    for j in range(LANES):
        kl[j] = kl_of_far(s[j], r[j], t[j])


cdef void close_near(const double* s, const double* t, const double* u, double* kl) noexcept nogil:
    """kl_of_near of LANES rows."""
    cdef int j
    for j in range(LANES):
        kl[j] = kl_of_near(s[j], t[j], u[j])


cdef inline bint all_near(const double* near, Py_ssize_t rows) noexcept nogil:
    """Whether no row is far, as a far one's KL divergence is above an eighth."""
    cdef Py_ssize_t i
    cdef bint result = True
    for i in range(rows):
        result = result and near[i] <= 0.03125
    return result


cdef inline bint all_known(const double* kl, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint result = True
    for i in range(rows):
        result = result and kl[i] == kl[i]
    return result


cdef inline bint move_centres(const double* far, const double* near, const double* s, const double* t, const double* u,
                              real* c) noexcept nogil:
    """Better centres for the lanes of which nothing is known; whether there are any."""
    cdef int j
    cdef real better
    cdef bint moved = False
    for j in range(LANES):
        if far[j] != far[j] and near[j] != near[j]:
            better = <real>better_centre(c[j], s[j], t[j], u[j])
            moved = moved or better != c[j]
            c[j] = better
    return moved


cdef bint pass_across(const Plan* plan, const real* a, const real* b, Py_ssize_t rows, const char* a_next,
                      const char* b_next, int* kind, double* result, bint* settled) noexcept nogil:
    """Up to LANES short rows; returns whether all are settled. kind: what the rows before were, and then what these are;
    it tells no more than where to begin."""
    cdef Py_ssize_t at[3]
    cdef real ma[LANES]
    cdef real mb[LANES]
    cdef real tops[LANES]
    cdef real others[LANES]
    cdef real c[LANES]
    cdef double s[LANES]
    cdef double r[LANES]
    cdef double t[LANES]
    cdef double u[LANES]
    cdef double w[LANES]
    cdef double far[LANES]
    cdef double near[LANES]
    cdef double again[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef bint known = kind[0] == NEAR, all_settled = True
    at[0] = at[1] = at[2] = -1
    max_across(a, plan.classes, ma)
    max_across(b, plan.classes, mb)
    for j in range(LANES):
        ma[j] = known_top(ma[j])
        mb[j] = known_top(mb[j])
        c[j] = <real>centre_of(ma[j], mb[j])
        far[j] = NAN
    if known:
        near_lanes(a, b, plan.classes, a, b, at, ma, c, s, t, u, tops, a_next, b_next)
        close_near(s, t, u, near)
        kind[0] = NEAR if all_near(near, rows) else FAR
    if not known or kind[0] == FAR:
        far_lanes(a, b, plan.classes, a, b, at, ma, mb, s, r, w, tops, others, NULL if known else a_next,
                  NULL if known else b_next)
        close_far(s, r, w, far)
        if not all_known(far, rows):
            if not known:
                near_lanes(a, b, plan.classes, a, b, at, ma, c, s, t, u, tops, NULL, NULL)
                close_near(s, t, u, near)
                known = True
                kind[0] = NEAR if all_near(near, rows) else FAR
            if move_centres(far, near, s, t, u, c):
                near_lanes(a, b, plan.classes, a, b, at, ma, c, s, t, u, tops, NULL, NULL)
                close_near(s, t, u, again)
                for i in range(rows):
                    near[i] = near[i] if near[i] == near[i] else again[i]
    for i in range(rows):
        result[i] = far[i] if far[i] == far[i] or not known else near[i]
        settled[i] = result[i] == result[i]
        result[i] = result[i] * plan.scale + 0.0
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


cdef void given_across(Plan* plan, Py_ssize_t row, Py_ssize_t rows, int* kind, real* scratch) noexcept nogil:
    """Up to TILE rows, LANES at a time, a lane a row; kind as in pass_across."""
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
        if one_pass(plan) and pass_across(plan, a, b, n, gapless(plan, &plan.operand[0], row + first + LANES, LANES, a),
                                          gapless(plan, &plan.operand[1], row + first + LANES, LANES, b), kind,
                                          result + first, settled):
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


cdef inline double kl_of_pass(int kind, const Pass* st) noexcept nogil:
    """What a row's sums tell of its KL divergence."""
    cdef double s = st.s[0] + st.s_lo[0]
    if kind == NEAR:
        return kl_of_near(s, st.t + st.t_lo, st.u + st.u_lo)
    return kl_of_far(s, st.s[1] + st.s_lo[1], st.t + st.t_lo)


cdef int open_rows(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, int kind, double* centres, Pass* passes,
                   real* scratch) noexcept nogil:
    """Start with the first block of some rows, at most 16; returns what kind of rows they seem to be: that of the rows
    before unless the block is no more than a part of them."""
    cdef const real* a[16]
    cdef const real* b[16]
    cdef Pass st
    cdef Py_ssize_t n = BLOCK if BLOCK < plan.classes else plan.classes, i
    cdef double kl
    cdef int guess = NEAR
    load_given(plan, 0, row, rows, 0, n, scratch, a)
    load_given(plan, 1, row, rows, 0, n, scratch + given_together(plan, sizeof(real)) * SPAN, b)
    for i in range(rows):
        open_pass(a[i], b[i], n, &passes[i])
        centres[i] = centre_of(<real>passes[i].m[0], <real>passes[i].m[1])
        if n < plan.classes:
            st = passes[i]
            pass_block(FAR, a[i], b[i], n, centres[i], NULL, NULL, &st)
            kl = kl_of_pass(FAR, &st)
            guess = guess if kl != kl else FAR
    return guess if n < plan.classes else kind


cdef void pass_chunk(const Plan* plan, int kind, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop,
                     const double* centres, Pass* passes, real* scratch) noexcept nogil:
    """A chunk of some rows, at most 16; the first one's passes have been opened."""
    cdef const real* a[16]
    cdef const real* b[16]
    cdef Py_ssize_t first = start, n, i, size = given_together(plan, sizeof(real)) * SPAN, a_ahead = 0, b_ahead = 0
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        load_given(plan, 0, row, rows, first, n, scratch, a)
        load_given(plan, 1, row, rows, first, n, scratch + size, b)
        if read_in_place(plan, 0) and read_in_place(plan, 1):
            a_ahead = bytes_ahead(plan, &plan.operand[0], row, rows, first + n, n, sizeof(real))
            b_ahead = bytes_ahead(plan, &plan.operand[1], row, rows, first + n, n, sizeof(real))
        for i in range(rows):
            if first == start and start > 0:
                open_pass(a[i], b[i], n, &passes[i])
            pass_block(kind, a[i], b[i], n, centres[i], <const char*>a[i] + a_ahead if a_ahead != 0 else NULL,
                       <const char*>b[i] + b_ahead if b_ahead != 0 else NULL, &passes[i])
        first += n


cdef void pass_whole(const Plan* plan, int kind, Py_ssize_t row, Py_ssize_t rows, const double* centres,
                     const Pass* opened, double* kl, Pass* passes, real* scratch) noexcept nogil:
    """Some rows, at most 16, chunk by chunk, and what their sums tell."""
    cdef Pass chunk[16]
    cdef Py_ssize_t start = 0, stop, i
    for i in range(rows):
        passes[i] = opened[i]
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        if start == 0:
            pass_chunk[real](plan, kind, row, rows, 0, stop, centres, passes, scratch)
        else:
            pass_chunk[real](plan, kind, row, rows, start, stop, centres, chunk, scratch)
            for i in range(rows):
                merge_pass(kind, &passes[i], &chunk[i])
        start = stop
    for i in range(rows):
        kl[i] = kl_of_pass(kind, &passes[i])


cdef inline double better_pass(real c, const Pass* st) noexcept nogil:
    return better_centre(c, st.s[0] + st.s_lo[0], st.t + st.t_lo, st.u + st.u_lo)


cdef bint pass_rows(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, int* kind, double* result, bint* settled,
                    real* scratch) noexcept nogil:
    """Some rows, at most 16; returns whether all are settled. kind as in pass_across."""
    cdef Pass opened[16]
    cdef Pass passes[16]
    cdef Pass near_passes[16]
    cdef double c[16]
    cdef double far[16]
    cdef double near[16]
    cdef double again[16]
    cdef double better
    cdef Py_ssize_t i
    cdef bint known, moved = False, all_settled = True
    known = open_rows[real](plan, row, rows, kind[0], c, opened, scratch) == NEAR
    for i in range(rows):
        far[i] = near[i] = NAN
    if known:
        pass_whole[real](plan, NEAR, row, rows, c, opened, near, near_passes, scratch)
    if not all_near(near, rows):
        pass_whole[real](plan, FAR, row, rows, c, opened, far, passes, scratch)
        if not all_known(far, rows):
            if not known:
                pass_whole[real](plan, NEAR, row, rows, c, opened, near, near_passes, scratch)
            for i in range(rows):
                if far[i] != far[i] and near[i] != near[i]:
                    better = better_pass(<real>c[i], &near_passes[i])
                    moved = moved or <real>better != <real>c[i]
                    c[i] = better
            if moved:
                pass_whole[real](plan, NEAR, row, rows, c, opened, again, near_passes, scratch)
                for i in range(rows):
                    near[i] = near[i] if near[i] == near[i] else again[i]
    kind[0] = NEAR if all_near(near, rows) else FAR
    for i in range(rows):
        result[i] = far[i] if far[i] == far[i] else near[i]
        settled[i] = result[i] == result[i]
        result[i] = result[i] * plan.scale + 0.0
        all_settled = all_settled and settled[i]
    return all_settled


cdef void given_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, int* kind, real* scratch) noexcept nogil:
    """Up to TILE rows of more than ACROSS classes; kind as in pass_across."""
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
        if one_pass(plan) and pass_rows[real](plan, row + i, n, kind, result + i, settled, scratch):
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
    cdef Py_ssize_t row = plan.first_row + t * size, stop = row + size if row + size < plan.last_row else plan.last_row
    cdef Py_ssize_t rows
    cdef unsigned int mode = fk_default_mode()
    cdef int kind = UNKNOWN
    while row < stop:
        rows = TILE if row + TILE < stop else stop - row
        if plan.classes <= ACROSS:
            given_across[real](plan, row, rows, &kind, scratch)
        else:
            given_rows[real](plan, row, rows, &kind, scratch)
        row += rows
    fk_restore_mode(mode)


cdef void one_given_chunk(const Plan* plan, int which, Py_ssize_t t, Py_ssize_t chunks, State* states, const Scale* p,
                          const Scale* q, Part* parts, const double* centres, const Pass* opened, Pass* passes,
                          real* scratch) noexcept nogil:
    """Chunk t % chunks of row t // chunks: the sums of an operand, or if which is 2 the second pass, if 3 and 4 those of
    a far and a near row."""
    cdef Py_ssize_t i = t // chunks, start = t % chunks * CHUNK
    cdef Py_ssize_t stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
    cdef unsigned int mode = fk_default_mode()
    if which < 2:
        scan_given[real](plan, which, plan.first_row + i, 1, start, stop, &states[t], scratch)
    elif which == 2:
        second_pass[real](plan, plan.first_row + i, 1, start, stop, &p[i], &q[i], &parts[t], scratch)
    else:
        passes[t] = opened[i]
        pass_chunk[real](plan, FAR if which == 3 else NEAR, plan.first_row + i, 1, start, stop, centres + i, &passes[t],
                         scratch)
    fk_restore_mode(mode)


cdef void split_passes(Plan* plan, int kind, Py_ssize_t chunks, const double* centres, const Pass* opened, Pass* passes,
                       double* kl, real* scratch, Py_ssize_t stride, int threads) noexcept nogil:
    """pass_whole of a few very long rows. What a row's sums are is left in its first chunk's."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, t, i, j
    for j in prange(threads, num_threads=threads, schedule="static"):
        for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
            one_given_chunk[real](plan, 3 if kind == FAR else 4, t, chunks, NULL, NULL, NULL, NULL, centres, opened, passes,
                                  scratch + threadid() * stride)
    for i in range(rows):
        for t in range(1, chunks):
            merge_pass(kind, &passes[i * chunks], &passes[i * chunks + t])
        kl[i] = kl_of_pass(kind, &passes[i * chunks])


cdef bint pass_split(Plan* plan, Py_ssize_t chunks, Pass* passes, double* result, bint* settled, real* scratch,
                     Py_ssize_t stride, int threads) noexcept nogil:
    """pass_rows of a few very long rows."""
    cdef Pass opened[TILE]
    cdef double c[TILE]
    cdef double far[TILE]
    cdef double near[TILE]
    cdef double again[TILE]
    cdef double moved_to[TILE]
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, i
    cdef bint known = True, moved = False, all_settled = True
    for i in range(rows):
        known = open_rows[real](plan, plan.first_row + i, 1, FAR, &c[i], &opened[i], scratch) == NEAR and known
        far[i] = near[i] = NAN
    if known:
        split_passes[real](plan, NEAR, chunks, c, opened, passes, near, scratch, stride, threads)
    if not all_near(near, rows):
        for i in range(rows):
            moved_to[i] = better_pass(<real>c[i], &passes[i * chunks]) if known else c[i]
        split_passes[real](plan, FAR, chunks, c, opened, passes, far, scratch, stride, threads)
    if not all_near(near, rows) and not all_known(far, rows):
        if not known:
            split_passes[real](plan, NEAR, chunks, c, opened, passes, near, scratch, stride, threads)
            for i in range(rows):
                moved_to[i] = better_pass(<real>c[i], &passes[i * chunks])
        for i in range(rows):
            if far[i] != far[i] and near[i] != near[i]:
                moved = moved or <real>moved_to[i] != <real>c[i]
                c[i] = moved_to[i]
        if moved:
            split_passes[real](plan, NEAR, chunks, c, opened, passes, again, scratch, stride, threads)
            for i in range(rows):
                near[i] = near[i] if near[i] == near[i] else again[i]
    for i in range(rows):
        result[i] = far[i] if far[i] == far[i] else near[i]
        settled[i] = result[i] == result[i]
        result[i] = result[i] * plan.scale + 0.0
        all_settled = all_settled and settled[i]
    return all_settled


cdef void given_split(Plan* plan, Py_ssize_t chunks, State* states, Part* parts, Pass* passes, real* scratch,
                      Py_ssize_t stride, int threads) noexcept nogil:
    """A few very long rows (at most TILE): threads share each row's chunks, which are then merged in order."""
    cdef Sums sums[2]
    cdef Scale p[TILE]
    cdef Scale q[TILE]
    cdef double result[TILE]
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, t, i, j
    cdef bint settled[TILE]
    cdef int which, turn
    cdef bint again = False
    if one_pass(plan) and pass_split[real](plan, chunks, passes, result, settled, scratch, stride, threads):
        put_rows[real](plan, &plan.out, plan.first_row, rows, result, scratch)
        return
    for which in range(2):
        if not plan.operand[which].scaled:
            continue
        for j in prange(threads, num_threads=threads, schedule="static"):
            for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
                one_given_chunk[real](plan, which, t, chunks, states, p, q, parts, NULL, NULL, NULL,
                                      scratch + threadid() * stride)
        for i in range(rows):
            for t in range(1, chunks):
                merge_given(plan, which, &states[i * chunks], &states[i * chunks + t])
            keep_state(&states[i * chunks], i, &sums[which])
    for i in range(rows):
        scale_of(plan, 0, &sums[0], i, &p[i])
        scale_of(plan, 1, &sums[1], i, &q[i])
    for turn in range(2):
        for j in prange(threads, num_threads=threads, schedule="static"):
            for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
                one_given_chunk[real](plan, 2, t, chunks, states, p, q, parts, NULL, NULL, NULL,
                                      scratch + threadid() * stride)
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
        size = AHEAD // plan.classes if plan.classes > 0 else TILE
        size = TILE if size < TILE else size - size % TILE
    else:
        size = AHEAD // plan.classes
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
