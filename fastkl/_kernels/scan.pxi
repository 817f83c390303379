# What runs along a row: cumulative log-sum-exps, and the transport between two rows, which is a sum over the running
# difference of their sums. LANES rows at a time, a lane a row; few rows one by one, by the same operations on each element
# and so to the same bits. A row belongs to one thread: its elements wait for one another. And the losses of binary labels,
# whose rows are single elements. Everything here is computed in double but those losses.

cdef extern from "vmath.h" nogil:
    float binary_logits_f32(float x, float y)
    double binary_logits_f64(double x, double y)
    float binary_probs_f32(float p, float y)
    double binary_probs_f64(double p, double y)

cdef enum:
    STEPS = 128      # columns of a tile; STEPS * LANES elements are a BLOCK
    FEW = 8          # fewer rows than this go one by one


# ---- cumulative log-sum-exp ------------------------------------------------------------------------------------------------
# The sum of exp(x - m) is carried as hi + lo. m becomes the element that exceeds it by more than 1: it then counts as an
# exact 1, so that hi - 1 + lo keeps the digits of a rest that is dominated by it, however many elements there are.

cdef inline double fallen(double before, double m) noexcept nogil:
    """exp(before - m), what the sum is multiplied by where m takes the place of the reference before; 1 for the same."""
    cdef double f = exp_up_f64(before - m) * FK_DOWN
    return 1 if before == m else f


cdef inline double risen(double x, double m) noexcept nogil:
    """exp(x - m), x <= m + 1, with the rounding error of x - m put back; 1 where both are the same infinity."""
    cdef double d = x - m, part = d - x, e
    cdef double lost = (x - (d - part)) - (m + part)
    d = 0 if x == m else d
    e = exp_up_f64(d) * FK_DOWN
    lost = lost if lost - lost == 0 else 0
    return e + e * lost


cdef inline double log_total(double m, double hi, double lo) noexcept nogil:
    """m + log(hi + lo), as in finish_logsumexp; there is one NaN, see put_rows."""
    cdef double log_hi, log_lo, sum, part, tail
    log1p_split_f64((hi - 1) + lo, &log_hi, &log_lo)
    sum = m + log_hi
    part = sum - m
    tail = (m - (sum - part)) + (log_hi - part)
    tail = tail if tail == tail else 0       # m infinite
    sum += tail + log_lo
    return sum if sum == sum else NAN


cdef loop cumulate_lanes(real* tile, Py_ssize_t count, double* reference, double* high, double* low) noexcept nogil:
    """A tile of LANES rows, in place; the three arrays carry each lane's m, hi and lo from one tile to the next."""
    cdef double m[LANES]
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef double e[LANES]
    cdef uint64_t above
    cdef double next, f
    cdef Py_ssize_t i
    cdef int j
    cdef real* v
    for j in range(LANES):
        m[j] = reference[j]
        hi[j] = high[j]
        lo[j] = low[j]
    for i in range(count):
        v = tile + i * LANES
        above = 0
        for j in range(LANES):
            above |= <uint64_t>(<double>v[j] > m[j] + 1)
        if above:
            for j in range(LANES):
                next = <double>v[j] if <double>v[j] > m[j] + 1 else m[j]
                f = fallen(m[j], next)
                hi[j] *= f
                lo[j] *= f
                m[j] = next
        for j in range(LANES):
            e[j] = risen(v[j], m[j])
        for j in range(LANES):
            two_sum_add(&hi[j], &lo[j], e[j])
        for j in range(LANES):
            v[j] = <real>log_total(m[j], hi[j], lo[j])
    for j in range(LANES):
        reference[j] = m[j]
        high[j] = hi[j]
        low[j] = lo[j]


cdef loop risen_run(const double* x, const double* m, double* e) noexcept nogil:
    cdef double w[LANES]     # not e itself, which might be x for all that gcc knows
    cdef int i, j
    for i in range(STEPS // LANES):
        for j in range(LANES):
            w[j] = risen(x[i * LANES + j], m[i * LANES + j])
        for j in range(LANES):
            e[i * LANES + j] = w[j]


cdef loop log_total_run(const double* m, const double* hi, const double* lo, double* out) noexcept nogil:
    cdef double w[LANES]
    cdef int i, j
    for i in range(STEPS // LANES):
        for j in range(LANES):
            w[j] = log_total(m[i * LANES + j], hi[i * LANES + j], lo[i * LANES + j])
        for j in range(LANES):
            out[i * LANES + j] = w[j]


cdef void cumulate_row(real* x, Py_ssize_t n, double* reference, double* high, double* low) noexcept nogil:
    """At most STEPS elements of one row, in place."""
    cdef double v[STEPS]
    cdef double m[STEPS]
    cdef double e[STEPS]
    cdef double hi[STEPS]
    cdef double lo[STEPS]
    cdef double top = reference[0], h = high[0], l = low[0], f
    cdef Py_ssize_t i
    for i in range(STEPS):
        v[i] = x[i] if i < n else -INFINITY
    for i in range(STEPS):
        if v[i] > top + 1:
            top = v[i]
        m[i] = top
    risen_run(v, m, e)
    top = reference[0]
    for i in range(STEPS):
        if m[i] != top:
            f = fallen(top, m[i])
            h *= f
            l *= f
            top = m[i]
        two_sum_add(&h, &l, e[i])
        hi[i] = h
        lo[i] = l
    log_total_run(m, hi, lo, v)
    for i in range(n):
        x[i] = <real>v[i]
    reference[0] = top
    high[0] = h
    low[0] = l


cdef void cumulate_across(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* like) noexcept nogil:
    """The cumulative log-sum-exps of at most LANES rows. What is masked out adds nothing, and its result is 0."""
    cdef real tile[STEPS * LANES]
    cdef double m[LANES]
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef Py_ssize_t start = 0, n, i
    for i in range(LANES):
        m[i] = lowest(<double>0)     # finite, so that x - m is -inf and not NaN
        hi[i] = lo[i] = 0
    for i in range(STEPS * LANES):
        tile[i] = 0     # the lanes without a row
    while start < plan.classes:
        n = STEPS if start + STEPS < plan.classes else plan.classes - start
        fetch[real](plan, &plan.operand[0], row, rows, start, n, tile, 1, LANES, <real>-INFINITY)
        cumulate_lanes(tile, n, m, hi, lo)
        if plan.has_mask:
            mask_out[real](plan, row, rows, start, n, tile, 1, LANES, 0)
        put[real](plan, row, rows, start, n, tile, 1, LANES)
        start += n


cdef void cumulate_along(Plan* plan, Py_ssize_t row, real* like) noexcept nogil:
    """The same of one row."""
    cdef real x[BLOCK]
    cdef double m = lowest(<double>0), hi = 0, lo = 0
    cdef Py_ssize_t start = 0, n, i
    while start < plan.classes:
        n = BLOCK if start + BLOCK < plan.classes else plan.classes - start
        fetch[real](plan, &plan.operand[0], row, 1, start, n, x, BLOCK, 1, <real>-INFINITY)
        i = 0
        while i < n:
            cumulate_row(x + i, STEPS if i + STEPS < n else n - i, &m, &hi, &lo)
            i += STEPS
        if plan.has_mask:
            mask_out[real](plan, row, 1, start, n, x, BLOCK, 1, 0)
        put[real](plan, row, 1, start, n, x, BLOCK, 1)
        start += n


# ---- transport -------------------------------------------------------------------------------------------------------------
# The sum of abs(F) times the gap to the next point, F being the running sum of p - q: exact differences added by two-sum, so
# that rows which are nearly equal keep their digits. Normalised it is that of (Q p - P q) / (P Q), the products with their
# rounding errors, after p and q have been brought near 1 by powers of two: nothing overflows.

cdef struct Transport:
    double p_top[LANES]             # the largest elements
    double q_top[LANES]
    double p_up[LANES]              # powers of two that bring them near 1, twice
    double q_up[LANES]
    double p_sum[LANES]             # the sums after that; 1 unless normalised
    double p_low[LANES]
    double q_sum[LANES]
    double q_low[LANES]
    double p_least[LANES]           # while they are added, the sums have a third part
    double q_least[LANES]
    double hi[LANES]                # F
    double lo[LANES]
    double t[LANES]                 # the sum over it
    double t_lo[LANES]
    double bad[LANES]               # elements that no distribution has


cdef inline double outside(double x, double y) noexcept nogil:
    """1 where one of two numbers is negative, infinite or NaN."""
    cdef double b = 0 if x >= 0 else 1
    b = b if y >= 0 else 1
    b = b if x < INFINITY else 1
    return b if y < INFINITY else 1


cdef inline double exact_difference(double a, double b, double* rest) noexcept nogil:
    """a - b, and its rounding error."""
    cdef double d = a - b, part = d - a
    rest[0] = (a - (d - part)) - (b + part)
    return d


cdef inline double difference(double x, double y, double p_sum, double p_low, double q_sum, double q_low,
                              double* rest) noexcept nogil:
    """x q_sum - y p_sum, and its rounding error."""
    cdef double a = x * q_sum, b = y * p_sum
    cdef double a_rest = product_error_f64(x, q_sum, a) + x * q_low, b_rest = product_error_f64(y, p_sum, b) + y * p_low
    cdef double d = exact_difference(a, b, rest)
    rest[0] += a_rest - b_rest
    return d


cdef inline void transport_step(double d, double rest, double gap, double* hi, double* lo, double* t,
                                double* t_lo) noexcept nogil:
    """Add a difference and its rounding error to F, then what is moved to the next point."""
    cdef double sum = hi[0] + d, part = sum - hi[0]
    lo[0] += ((hi[0] - (sum - part)) + (d - part)) + rest
    hi[0] = sum
    two_sum_add(t, t_lo, fabs(hi[0] + lo[0]) * gap)


cdef loop top_lanes(const real* p, const real* q, Py_ssize_t count, Transport* s) noexcept nogil:
    cdef real x[LANES]
    cdef real y[LANES]
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        x[j] = <real>s.p_top[j]
        y[j] = <real>s.q_top[j]
    for i in range(count):
        for j in range(LANES):
            x[j] = larger(p[i * LANES + j], x[j])
            y[j] = larger(q[i * LANES + j], y[j])
    for j in range(LANES):
        s.p_top[j] = x[j]
        s.q_top[j] = y[j]


cdef inline void three_sum_add(double* hi, double* lo, double* least, double x) noexcept nogil:
    """hi + lo + least += x: of rows that are proportional but for their rounding, P and Q decide what is left of F."""
    cdef double s = hi[0] + x
    cdef double b = s - hi[0]
    two_sum_add(lo, least, (hi[0] - (s - b)) + (x - b))
    hi[0] = s


cdef loop transport_mass_lanes(const real* p, Py_ssize_t count, const double* ups, double* sums, double* lows,
                     double* leasts) noexcept nogil:
    cdef double up[LANES]
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef double least[LANES]
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        up[j] = ups[j]
        hi[j] = sums[j]
        lo[j] = lows[j]
        least[j] = leasts[j]
    for i in range(count):
        for j in range(LANES):
            three_sum_add(&hi[j], &lo[j], &least[j], <double>p[i * LANES + j] * up[j] * up[j])
    for j in range(LANES):
        sums[j] = hi[j]
        lows[j] = lo[j]
        leasts[j] = least[j]


cdef inlined transport_points(bint scaled, const real* p, const real* q, Py_ssize_t count, const double* gaps,
                              const char* p_next, const char* q_next, Transport* s) noexcept nogil:
    """transport_lanes; unless scaled, the sums and scales are 1, and a difference is x - y."""
    cdef double p_up[LANES]
    cdef double q_up[LANES]
    cdef double p_sum[LANES]
    cdef double p_low[LANES]
    cdef double q_sum[LANES]
    cdef double q_low[LANES]
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef uint64_t bad[LANES]
    cdef double x, y, d, rest
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        p_up[j] = s.p_up[j]
        q_up[j] = s.q_up[j]
        p_sum[j] = s.p_sum[j]
        p_low[j] = s.p_low[j]
        q_sum[j] = s.q_sum[j]
        q_low[j] = s.q_low[j]
        hi[j] = s.hi[j]
        lo[j] = s.lo[j]
        t[j] = s.t[j]
        t_lo[j] = s.t_lo[j]
        bad[j] = 0
    for i in range(count):
        fk_prefetch(p_next, i * LANES * sizeof(real), LANES * sizeof(real))
        fk_prefetch(q_next, i * LANES * sizeof(real), LANES * sizeof(real))
        for j in range(LANES):
            x = p[i * LANES + j]
            y = q[i * LANES + j]
            bad[j] |= fk_beyond_words_f64(x + 0.0, y + 0.0, -lowest(x))     # + 0: -0 is none
            if scaled:
                d = difference(x * p_up[j] * p_up[j], y * q_up[j] * q_up[j], p_sum[j], p_low[j], q_sum[j], q_low[j], &rest)
            else:
                d = exact_difference(x, y, &rest)
            transport_step(d, rest, gaps[i], &hi[j], &lo[j], &t[j], &t_lo[j])
    for j in range(LANES):
        s.hi[j] = hi[j]
        s.lo[j] = lo[j]
        s.t[j] = t[j]
        s.t_lo[j] = t_lo[j]
        s.bad[j] += <double>(<int>(bad[j] >> 63))


cdef loop transport_lanes(bint scaled, const real* p, const real* q, Py_ssize_t count, const double* gaps,
                          const char* p_next, const char* q_next, Transport* s) noexcept nogil:
    """Add count points of LANES rows to their sums. What will be read next, unless NULL, is prefetched."""
    if scaled:
        transport_points(True, p, q, count, gaps, p_next, q_next, s)
    else:
        transport_points(False, p, q, count, gaps, p_next, q_next, s)


cdef loop difference_run(const double* p, const double* q, const Transport* s, double* d, double* rest,
                         double* bad) noexcept nogil:
    cdef double p_up = s.p_up[0], q_up = s.q_up[0], p_sum = s.p_sum[0], p_low = s.p_low[0], q_sum = s.q_sum[0]
    cdef double q_low = s.q_low[0], r
    cdef double u[LANES]
    cdef double v[LANES]
    cdef double w[LANES]
    cdef const double* x
    cdef const double* y
    cdef int i, j
    for i in range(STEPS // LANES):
        x, y = p + i * LANES, q + i * LANES
        for j in range(LANES):
            w[j] = outside(x[j], y[j])
            u[j] = difference(x[j] * p_up * p_up, y[j] * q_up * q_up, p_sum, p_low, q_sum, q_low, &r)
            v[j] = r
        for j in range(LANES):
            d[i * LANES + j] = u[j]
            rest[i * LANES + j] = v[j]
            bad[i * LANES + j] = w[j]


cdef void transport_row(const real* p, const real* q, Py_ssize_t n, int phase, const double* gaps,
                        Transport* s) noexcept nogil:
    """What the three loops over lanes do, for at most STEPS points of one row: lane 0."""
    cdef double x[STEPS]
    cdef double y[STEPS]
    cdef double d[STEPS]
    cdef double rest[STEPS]
    cdef double bad[STEPS]
    cdef double hi = s.hi[0], lo = s.lo[0], t = s.t[0], t_lo = s.t_lo[0], up
    cdef Py_ssize_t i
    for i in range(STEPS):
        x[i] = p[i] if i < n else 0
        y[i] = q[i] if i < n else 0
    if phase == 0:
        for i in range(n):
            s.p_top[0] = larger(x[i], s.p_top[0])
            s.q_top[0] = larger(y[i], s.q_top[0])
    elif phase == 1:
        for i in range(n):
            up = s.p_up[0]
            three_sum_add(&s.p_sum[0], &s.p_low[0], &s.p_least[0], x[i] * up * up)
            up = s.q_up[0]
            three_sum_add(&s.q_sum[0], &s.q_low[0], &s.q_least[0], y[i] * up * up)
    else:
        difference_run(x, y, s, d, rest, bad)
        for i in range(n):
            s.bad[0] += bad[i]
            transport_step(d[i], rest[i], gaps[i], &hi, &lo, &t, &t_lo)
        s.hi[0] = hi
        s.lo[0] = lo
        s.t[0] = t
        s.t_lo[0] = t_lo


cdef void points_at(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n, real* p, real* q,
                    Py_ssize_t dr, Py_ssize_t dc) noexcept nogil:
    """What p and q hold at points start .. start + n: laid out as in fetch; 0 where a point is the other's alone."""
    cdef Py_ssize_t i, j, k
    if plan.order == NULL:
        fetch[real](plan, &plan.operand[0], row, rows, start, n, p, dr, dc, 0)
        fetch[real](plan, &plan.operand[1], row, rows, start, n, q, dr, dc, 0)
        return
    for i in range(n):
        k = plan.order[start + i]
        if plan.split == 0 or k < plan.split:
            fetch[real](plan, &plan.operand[0], row, rows, k, 1, p + i * dc, dr, 1, 0)
        else:
            for j in range(rows):
                p[i * dc + j * dr] = 0
        if plan.split == 0 or k >= plan.split:
            fetch[real](plan, &plan.operand[1], row, rows, k - plan.split, 1, q + i * dc, dr, 1, 0)
        else:
            for j in range(rows):
                q[i * dc + j * dr] = 0


cdef inline double near_one(double top) noexcept nogil:
    """A power of two whose square brings a number near 1."""
    cdef int exponent = 0
    if 0 < top < INFINITY:
        frexp(top, &exponent)
    return ldexp(1, -(exponent // 2))


cdef void transport_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* like) noexcept nogil:
    """One number for each of at most LANES rows, or for one; it reads them three times if they are to be normalised."""
    cdef real p[STEPS * LANES]
    cdef real q[STEPS * LANES]
    cdef double gaps[STEPS * LANES]
    cdef double result[LANES]
    cdef Transport s
    cdef Py_ssize_t start, n, i, step = STEPS if rows > 1 else STEPS * LANES
    cdef int phase
    cdef const char* p_next = NULL
    cdef const char* q_next = NULL
    if plan.points <= STEPS and plan.order == NULL:     # of longer rows the transpose prefetches
        p_next = gapless(plan, &plan.operand[0], row + LANES, LANES, p)
        q_next = gapless(plan, &plan.operand[1], row + LANES, LANES, q)
    for i in range(LANES):
        s.p_top[i] = s.q_top[i] = s.p_low[i] = s.q_low[i] = s.hi[i] = s.lo[i] = s.t[i] = s.t_lo[i] = s.bad[i] = 0
        s.p_least[i] = s.q_least[i] = 0
        s.p_up[i] = s.q_up[i] = s.p_sum[i] = s.q_sum[i] = 1
    for i in range(STEPS * LANES if 1 < rows < LANES else 0):
        p[i] = q[i] = 0     # the lanes without a row
    for phase in range(3):
        if phase < 2 and not plan.normalize:
            continue
        if phase == 1:
            for i in range(LANES):
                s.p_up[i] = near_one(s.p_top[i])
                s.q_up[i] = near_one(s.q_top[i])
                s.p_sum[i] = s.q_sum[i] = 0
        elif phase == 2:
            for i in range(LANES):
                s.p_low[i] += s.p_least[i]
                s.q_low[i] += s.q_least[i]
                settle(&s.p_sum[i], &s.p_low[i])
                settle(&s.q_sum[i], &s.q_low[i])
        start = 0
        while start < plan.points:
            n = step if start + step < plan.points else plan.points - start
            for i in range(n):
                gaps[i] = 1 if plan.gaps == NULL else plan.gaps[start + i]
            if start + n == plan.points:
                gaps[n - 1] = 0
            if rows == 1:
                points_at[real](plan, row, 1, start, n, p, q, n, 1)
                i = 0
                while i < n:
                    transport_row(p + i, q + i, STEPS if i + STEPS < n else n - i, phase, gaps + i, &s)
                    i += STEPS
            else:
                points_at[real](plan, row, rows, start, n, p, q, 1, LANES)
                if phase == 0:
                    top_lanes(p, q, n, &s)
                elif phase == 1:
                    transport_mass_lanes(p, n, s.p_up, s.p_sum, s.p_low, s.p_least)
                    transport_mass_lanes(q, n, s.q_up, s.q_sum, s.q_low, s.q_least)
                else:
                    transport_lanes(plan.normalize, p, q, n, gaps, p_next, q_next, &s)
            start += n
    for i in range(rows):
        result[i] = NAN if s.bad[i] > 0 else closed(s.t[i], s.t_lo[i]) / (s.p_sum[i] * s.q_sum[i])
    put_rows[real](plan, &plan.out, row, rows, result, like)


# ---- binary labels ---------------------------------------------------------------------------------------------------------

cdef inline real binary_logits(real x, real y) noexcept nogil:
    if real is float:
        return binary_logits_f32(x, y)
    else:
        return binary_logits_f64(x, y)


cdef inline real binary_probs(real p, real y) noexcept nogil:
    if real is float:
        return binary_probs_f32(p, y)
    else:
        return binary_probs_f64(p, y)


cdef loop binary_block(int op, const real* x, const real* y, Py_ssize_t n, real* out) noexcept nogil:
    """n losses; out may be x. Each vector is computed whole before any of it is stored."""
    cdef real u[LANES]
    cdef real v[LANES]
    cdef real w[LANES]
    cdef const real* a
    cdef const real* b
    cdef Py_ssize_t i = 0
    cdef int j
    while i < n:
        a, b = x + i, y + i
        if i + LANES > n:
            for j in range(LANES):
                u[j] = a[j] if j < n - i else <real>0
                v[j] = b[j] if j < n - i else <real>0
            a, b = u, v
        if op == BINARY_LOGITS:
            for j in range(LANES):
                w[j] = binary_logits(a[j], b[j])
        else:
            for j in range(LANES):
                w[j] = binary_probs(a[j], b[j])
        for j in range(LANES):
            w[j] = w[j] if w[j] == w[j] else <real>NAN     # one NaN, see put_rows
        if i + LANES <= n:
            for j in range(LANES):
                out[i + j] = w[j]
        else:
            for j in range(<int>(n - i)):
                out[i + j] = w[j]
        i += LANES


cdef inline const real* elements(Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t n, real* spare) noexcept nogil:
    """n rows of one element each: where they lie, if side by side in the type of the computation, or a copy in spare."""
    if plan.n_outer <= 1 and side_by_side(a, last_stride(plan.n_outer, a.outer), spare):
        return <const real*>row_pointer(plan, a, row)
    fetch[real](plan, a, row, n, 0, 1, spare, 1, 1, 0)
    return spare


cdef void binary_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* like) noexcept nogil:
    """At most BLOCK losses: each row is an element. What is masked out has loss 0."""
    cdef real x_spare[BLOCK]
    cdef real y_spare[BLOCK]
    cdef const real* x = elements(plan, &plan.operand[0], row, rows, x_spare)
    cdef const real* y = elements(plan, &plan.operand[1], row, rows, y_spare)
    cdef real* out = x_spare
    cdef double* losses
    cdef Py_ssize_t i
    cdef bint in_place = (not plan.has_mask and not plan.flat_out
                          and plan.n_outer <= 1 and side_by_side(&plan.out, last_stride(plan.n_outer, plan.out.outer), like))
    if in_place:
        out = <real*>row_pointer(plan, &plan.out, row)
    binary_block(plan.op, x, y, rows, out)
    if in_place:
        return
    if plan.has_mask:
        mask_out[real](plan, row, rows, 0, 1, out, 1, 1, 0)
    if plan.flat_out:
        losses = <double*>plan.out.data + (row - plan.first_row)
        for i in range(rows):
            losses[i] = out[i]
    else:
        put[real](plan, row, rows, 0, 1, out, 1, 1)


# ---- tasks and threads -----------------------------------------------------------------------------------------------------

cdef void scan_task(Plan* plan, Py_ssize_t t, Py_ssize_t size, real* like) noexcept nogil:
    cdef Py_ssize_t row = plan.first_row + t * size, i
    cdef Py_ssize_t rows = size if row + size < plan.last_row else plan.last_row - row
    cdef unsigned int mode = fk_default_mode()
    if plan.op == BINARY_LOGITS or plan.op == BINARY_PROBS:
        binary_rows[real](plan, row, rows, like)
    elif rows >= FEW:
        if plan.op == LOGCUMSUMEXP:
            cumulate_across[real](plan, row, rows, like)
        else:
            transport_rows[real](plan, row, rows, like)
    else:
        for i in range(row, row + rows):
            if plan.op == LOGCUMSUMEXP:
                cumulate_along[real](plan, i, like)
            else:
                transport_rows[real](plan, i, 1, like)
    fk_restore_mode(mode)


cdef void execute_scan(Plan* plan, int threads, real* like) noexcept nogil:
    """Run one of this file's operations. How rows are cut into tasks depends on the threads here, for no bit does."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, size = LANES, tasks, t
    if rows <= 0:
        return
    if plan.op == BINARY_LOGITS or plan.op == BINARY_PROBS:
        size = BLOCK
    elif rows < LANES * threads:
        size = (rows + threads - 1) // threads
    tasks = (rows + size - 1) // size
    threads = <int>tasks if threads > tasks else threads
    if threads == 1:
        # No parallel region: a forked child of a process that had one would hang in it.
        for t in range(tasks):
            scan_task[real](plan, t, size, like)
    else:
        for t in prange(tasks, num_threads=threads, schedule="static"):
            scan_task[real](plan, t, size, like)
