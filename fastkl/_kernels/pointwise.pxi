# Divergences that are sums of one term of p, q and their difference d: every term is >= 0 and is made of d, so that nothing
# cancels. d is handed in, for it may be known better than by p - q: here from rows over their sums (normalize). The
# loops are those of divergence.pxi: fast in the data's type, and again by a form that is right for every double where a
# lane holds something odd.

cdef extern from "vmath.h" nogil:
    float kl_term_by_f32(float p, float q, float d)
    float js_term_f32(float p, float q, float d, float weight)
    double js_term_f64(double p, double q, double d, double weight)
    float jeffreys_term_f32(float p, float q, float d)
    double jeffreys_term_f64(double p, double q, double d)
    double product_error_f64(double a, double b, double ab)

cdef extern from "math.h" nogil:
    float sqrtf(float x)
    double sqrt(double x)
    float fabsf(float x)
    double fabs(double x)

cdef inline bint is_pointwise(int op) noexcept nogil:
    return JS <= op <= TRIANGULAR


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real magnitude(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


# Hellinger's term takes the root of (p 2^40) (q 2^40), in double of (p 2^300) (q 2^300). The product is finite for p and q up
# to 2^23 (2^200). Where it is denormal one of them is below 2^-103 (2^-811); unless the other is far larger, so that the
# root does not count, the term is below 2^-102 (2^-810) then, and all 256 of a lane are no eps of a sum of 2^-68 (2^-700).

cdef inline bint has_roots(int op) noexcept nogil:
    return op == HELLINGER or op == BHATTACHARYYA


cdef inline real domain_end(int op, real like) noexcept nogil:
    """Above this p or q a term is out of its domain."""
    if not has_roots(op):
        return largest(like)
    if real is float:
        return 2.0 ** 23
    else:
        return 2.0 ** 200


cdef inline double least_sum(int op, real like) noexcept nogil:
    """Below this a lane's sum of terms is not trusted: they may have lost digits to denormals, or to roots of those."""
    if not has_roots(op):
        return smallest_q(like)
    if real is float:
        return 2.0 ** -68
    else:
        return 2.0 ** -700


cdef inline double least_overlap(real like) noexcept nogil:
    """The same of a sum of sqrt(p q), whose p or q may be denormal because it has been divided: one below 2^-126 (2^-1022)
    beside one up to 1."""
    if real is float:
        return 2.0 ** -30
    else:
        return 2.0 ** -400


cdef inline real root_of_product(real p, real q) noexcept nogil:
    """sqrt(p q), for p and q in the domain of Hellinger's term; the product is scaled up lest it be denormal."""
    cdef real up = 2.0 ** 40 if real is float else 2.0 ** 300, down = 2.0 ** -40 if real is float else 2.0 ** -300
    return root((p * up) * (q * up)) * down


cdef inline real term(int op, real p, real q, real d, real weight, real* overlap) noexcept nogil:
    """What a pair of probabilities adds to the sum of a divergence; d = p - q. weight is that of p in the mixture of JS and
    JS_DISTANCE, at most 1/2 and of no meaning elsewhere. For BHATTACHARYYA the term of Hellinger, the sum of which is what
    the overlap lacks, and the pair's part of that; it is d^2 / (2 (p + q + 2 sqrt(p q))), one root where sqrt(p) + sqrt(q)
    takes two.

    Domain: 0 <= p, q <= domain_end, denormals included. JEFFREYS: both 0 or both at least smallest_q. A NaN in p, q or
    d: NaN. Never negative; p = q = d = 0: 0; d = 0: 0; CHI2 of q = 0 under p: infinity. p and q exchanged, d negated: the
    same bits (JS: for weight 1/2; CHI2: no)."""
    cdef real size = magnitude(d), sum, zero = 0
    if op == TOTAL_VARIATION:
        return size / 2
    if op == JS or op == JS_DISTANCE:
        if real is float:
            return js_term_f32(p, q, d, weight)
        else:
            return js_term_f64(p, q, d, weight)
    if op == JEFFREYS:
        if real is float:
            return jeffreys_term_f32(p, q, d)
        else:
            return jeffreys_term_f64(p, q, d)
    if op == CHI2:
        sum = q
    elif op == TRIANGULAR:
        sum = p + q
    else:
        overlap[0] = root_of_product(p, q)
        sum = (p + q) + (overlap[0] + overlap[0])
        sum += sum
    return zero if d == zero else size * (size / sum)     # 0 / 0 is 0


cdef inline double term_any(int op, double p, double q, double d, double weight) noexcept nogil:
    """The same for every pair of doubles; NaN where one is negative, infinite or NaN. CHI2, JEFFREYS: inf beside a 0."""
    cdef double size = d if d > 0 else -d, half, rest, m, gap, a, b, result, none = NAN, infinity = INFINITY
    if op == TOTAL_VARIATION:
        result = size / 2
    elif op == JS or op == JS_DISTANCE:
        rest = 1 - weight
        m = weight * p + rest * q
        # What m was rounded by, told by d; farther away it does not matter.
        gap = (p - m) - rest * d
        gap = gap if (m <= 2 * p) & (p <= 2 * m) else 0
        a = kl_term_any_f64(p, m, gap)
        gap = (q - m) + weight * d
        gap = gap if (m <= 2 * q) & (q <= 2 * m) else 0
        b = kl_term_any_f64(q, m, gap)
        # m = 0 under p: its weight is 0, or adds less than a denormal.
        a = a if a != infinity else 0
        b = b if b != infinity else 0
        result = weight * a + rest * b
    elif op == JEFFREYS:
        gap = (p - q) - d
        gap = gap if (p <= 2 * q) & (q <= 2 * p) else 0
        result = kl_term_any_f64(p, q, gap) + kl_term_any_f64(q, p, -gap)
    elif op == CHI2:
        # d / q may overflow where d^2 / q does not, and d^2 be denormal where q is not.
        a = d * d / q
        b = d * (d / q)
        result = a if (q < 2.0 ** -500) & (size > 2.0 ** -500) else b
        result = result if d != 0 else 0
        result = result if (q != 0) | (p == 0) else infinity
    elif op == TRIANGULAR:
        half = 0.5 if (p > 1e300) | (q > 1e300) else 1     # p + q may overflow
        result = size * ((half * size) / (half * p + half * q))
        result = result if d != 0 else 0
    else:
        a = sqrt(p) + sqrt(q)
        result = size / a * (size / a) / 2
        result = result if a != 0 else 0
    result = result if (p >= 0) & (q >= 0) else none
    return result if (p < infinity) & (q < infinity) else none


# The rows' sums as what to multiply by: 1 / sum in two parts, a lane each.
cdef struct Reciprocals:
    double p[LANES]
    double p_lo[LANES]
    double q[LANES]
    double q_lo[LANES]


cdef inline real divided(real p, real q, double by_p, double by_p_lo, double by_q, double by_q_lo, real* x,
                         real* y) noexcept nogil:
    """x = p / sum(p), y = q / sum(q); returns x - y with the rounding errors of x and y taken back. In float the products
    are doubles, which have digits to spare."""
    cdef double a = p * by_p, b = q * by_q, a_lo, b_lo
    x[0] = <real>a
    y[0] = <real>b
    if real is float:
        return <real>(a - b)
    else:
        a_lo = product_error_f64(p, by_p, a) + p * by_p_lo
        b_lo = product_error_f64(q, by_q, b) + q * by_q_lo
        return (a - b) + (a_lo - b_lo)


cdef inline real gap_of(const real* p, const real* q, const real* d, Py_ssize_t j) noexcept nogil:
    """p - q: d, where it is known better."""
    return p[j] - q[j] if d == NULL else d[j]


cdef inlined js_strip(const real* p, const real* q, const real* d, real weight, Py_ssize_t n, real* s) noexcept nogil:
    """s = the JS terms of a strip, to the bits of js_term; d as in gap_of."""
    cdef real w[STRIP]
    cdef real gap[STRIP]
    cdef real near[STRIP]
    cdef real q_w[STRIP]
    cdef real q_gap[STRIP]
    cdef real q_near[STRIP]
    cdef Py_ssize_t j
    cdef real rest = 1 - weight, half = 0.5, quarter = 0.25, m, e
    if real is float:
        # Short chains: two steps would cost more than they save.
        if weight == half:
            # Of 2 p, 2 q and p + q: the same bits with fewer products.
            for j in range(n):
                m = p[j] + q[j]
                e = gap_of(p, q, d, j)
                s[j] = quarter * (kl_term_by_f32(p[j] + p[j], m, e) + kl_term_by_f32(q[j] + q[j], m, -e))
        else:
            for j in range(n):
                s[j] = js_term_f32(p[j], q[j], gap_of(p, q, d, j), weight)
    elif weight == half:
        for j in range(n):
            m = p[j] + q[j]
            e = gap_of(p, q, d, j)
            kl_cut_by_f64(p[j] + p[j], m, e, &w[j], &gap[j], &near[j])
            kl_cut_by_f64(q[j] + q[j], m, -e, &q_w[j], &q_gap[j], &q_near[j])
        for j in range(n):
            s[j] = quarter * (kl_join_f64(p[j] + p[j], w[j], gap[j], near[j])
                              + kl_join_f64(q[j] + q[j], q_w[j], q_gap[j], q_near[j]))
    else:
        for j in range(n):
            m = weight * p[j] + rest * q[j]
            e = gap_of(p, q, d, j)
            kl_cut_by_f64(p[j], m, rest * e, &w[j], &gap[j], &near[j])
            kl_cut_by_f64(q[j], m, -(weight * e), &q_w[j], &q_gap[j], &q_near[j])
        for j in range(n):
            s[j] = (weight * kl_join_f64(p[j], w[j], gap[j], near[j])
                    + rest * kl_join_f64(q[j], q_w[j], q_gap[j], q_near[j]))


cdef inline uint32_t higher_word(uint32_t a, uint32_t b) noexcept nogil:
    return a if a > b else b


cdef inlined terms_of_strip(int op, const real* p, const real* q, const real* d, real weight, Py_ssize_t vectors, real* s,
                            real* overlaps, bint* beyond) noexcept nogil:
    """s = the terms of a strip; d as in gap_of. beyond is set if a p or q is out of the terms' domain."""
    # vectors * LANES, said so that gcc sees that it is a multiple of LANES above 0, and adds no scalar loops for a rest
    cdef Py_ssize_t j, n = ((vectors - 1 & STRIP // LANES - 1) + 1) * LANES
    cdef real high = domain_end(op, weight)
    cdef uint32_t word = 0
    cdef uint64_t wide_word = 0
    if op == JS:
        js_strip(p, q, d, weight, n, s)
    elif op == JEFFREYS:     # apart from the words, for which its loop has no registers left
        for j in range(n):
            s[j] = term(op, p[j], q[j], gap_of(p, q, d, j), weight, overlaps)
    for j in range(n):
        if op != JS and op != JEFFREYS:
            s[j] = term(op, p[j], q[j], gap_of(p, q, d, j), weight, &overlaps[j])
        if real is float:
            word = higher_word(word, higher_word(bits_f32(p[j]), bits_f32(q[j])))
        else:
            wide_word |= fk_beyond_words_f64(p[j], q[j], high)
    if real is float:
        beyond[0] |= word > bits_f32(high)
    else:
        beyond[0] |= wide_word >> 63


cdef inlined terms_of_few(int op, const real* p, const real* q, const real* d, real weight, Py_ssize_t vectors, real* s,
                          real* overlaps, bint* beyond) noexcept nogil:
    """terms_of_strip where no lane but the first FEW_LANES is in use: a small call would spend most of its time on the others."""
    cdef real x[LANES]
    cdef real y[LANES]
    cdef real gap[LANES]
    cdef real e[LANES]
    cdef real r[LANES]
    cdef Py_ssize_t k
    cdef int j
    for j in range(LANES):
        x[j] = y[j] = gap[j] = 0
    for k in range(vectors):
        for j in range(FEW_LANES):
            x[k * FEW_LANES + j] = p[k * LANES + j]
            y[k * FEW_LANES + j] = q[k * LANES + j]
            gap[k * FEW_LANES + j] = gap_of(p, q, d, k * LANES + j)
    terms_of_strip(op, x, y, gap, weight, 1, e, r, beyond)
    for k in range(vectors):
        for j in range(LANES):
            s[k * LANES + j] = 0
            overlaps[k * LANES + j] = 0
        for j in range(FEW_LANES):
            s[k * LANES + j] = e[k * FEW_LANES + j]
            overlaps[k * LANES + j] = r[k * FEW_LANES + j]


cdef inlined add_masses(const real* p, const real* q, double* m, double* m_lo) noexcept nogil:
    """Add a vector's p + q to the lanes' sums, a two-sum."""
    cdef int j
    cdef double both, part
    for j in range(LANES):
        if real is float:
            m[j] += <double>p[j] + <double>q[j]
        else:
            both = p[j] + q[j]
            part = both - p[j]
            m_lo[j] += (p[j] - (both - part)) + (q[j] - part)
            two_sum_add(&m[j], &m_lo[j], both)


cdef inlined mark_denormal(int op, const real* x, const real* y, const real* a, const real* b, Py_ssize_t vectors,
                           int* odd) noexcept nogil:
    """Mark lanes in which a number of a strip that a term divides by is too small, or has become so by the division of x and
    y to a and b; but not 0 of 0."""
    cdef real s[LANES]
    cdef real low = smallest_q(<real>0), zero = 0, least
    cdef Py_ssize_t k
    cdef int j
    for k in range(vectors):
        for j in range(LANES):
            least = b[j] if op == CHI2 or b[j] < a[j] else a[j]
            s[j] = 1 if least < low and x[j] + y[j] > zero else 0
        for j in range(LANES):
            odd[j] |= s[j] != zero
        x += LANES
        y += LANES
        a += LANES
        b += LANES


cdef inlined make_terms(int op, const real* p, const real* q, Py_ssize_t first, Py_ssize_t vectors, const real* p_patch,
                        const real* q_patch, const Py_ssize_t* at, real weight, real* s, real* overlaps, int* odd,
                        bint* beyond) noexcept nogil:
    """s = the terms of vectors first .. first + vectors, at most a strip, of which those that are patched go by themselves;
    odd as mark_denormal has it."""
    cdef Py_ssize_t i = first, n
    cdef const real* x
    cdef const real* y
    while i < first + vectors:
        n = next_patch(i, first + vectors, at) - i
        n = n if n > 0 else 1
        x = vector_at(p, i, p_patch, at)
        y = vector_at(q, i, q_patch, at)
        terms_of_strip(op, x, y, NULL, weight, n, s + (i - first) * LANES, overlaps + (i - first) * LANES, beyond)
        if op == JEFFREYS:
            mark_denormal(op, x, y, x, y, n, odd)
        i += n


cdef inlined divide_strip(const Reciprocals* by, const real* x, const real* y, Py_ssize_t vectors, real* a, real* b,
                          real* d) noexcept nogil:
    """A strip over the rows' sums: a, b and d = a - b."""
    cdef Py_ssize_t k
    cdef int j
    for k in range(vectors):
        for j in range(LANES):
            d[k * LANES + j] = divided(x[k * LANES + j], y[k * LANES + j], by.p[j], by.p_lo[j], by.q[j], by.q_lo[j],
                                       &a[k * LANES + j], &b[k * LANES + j])


cdef inlined mark_beyond(const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                         const Py_ssize_t* at, const Reciprocals* by, real high, int* odd) noexcept nogil:
    """1 in odd for each lane that held a p or q that is out of the domain; both divided by the rows' sums, unless NULL."""
    cdef real a[LANES]
    cdef real b[LANES]
    cdef real d[LANES]
    cdef uint32_t highest[WORDS]
    cdef Py_ssize_t i
    cdef int j
    cdef const real* x
    cdef const real* y
    for j in range(WORDS):
        highest[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        y = vector_at(q, i, q_patch, at)
        if by != NULL:
            divide_strip(by, x, y, 1, a, b, d)
            x = a
            y = b
        raise_words(x, 1, highest)
        raise_words(y, 1, highest)
    mark_above(highest, high, odd)


cdef inlined sum_terms(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                       const Py_ssize_t* at, Py_ssize_t in_use, const Reciprocals* by, real weight, double* sums,
                       double* overlaps, double* masses, double* masses_lo, int* odd, const char* p_next,
                       const char* q_next) noexcept nogil:
    """A lane's sum of terms, and 1 in odd where one of its pairs was out of the terms' domain; for BHATTACHARYYA also the
    sums of sqrt(p q) and, unless there are rows' sums to divide by, that of p + q (a two-sum). in_use: how many lanes, from
    the first on, count."""
    cdef real p_spare[STRIP]
    cdef real q_spare[STRIP]
    cdef real p_divided[STRIP]
    cdef real q_divided[STRIP]
    cdef real s[STRIP]
    cdef real r[STRIP]
    cdef real d[STRIP]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef double m[LANES]
    cdef double m_lo[LANES]
    cdef bint few = False, beyond = False
    cdef Py_ssize_t i = 0, j, k, vectors, n
    cdef const real* x
    cdef const real* y
    if real is double:     # floats' lanes cost half as much
        few = in_use <= FEW_LANES
    for j in range(LANES):
        t[j] = t_lo[j] = u[j] = u_lo[j] = m[j] = m_lo[j] = 0
        odd[j] = 0
    while i < count:
        vectors = strip_size(count - i)
        n = vectors * LANES
        fk_prefetch(p_next, i * LANES * sizeof(real), n * sizeof(real))
        fk_prefetch(q_next, i * LANES * sizeof(real), n * sizeof(real))
        if by == NULL and not few:
            make_terms(op, p, q, i, vectors, p_patch, q_patch, at, weight, s, r, odd, &beyond)
        else:
            x = strip_at(p, i, vectors, p_patch, at, p_spare)
            y = strip_at(q, i, vectors, q_patch, at, q_spare)
            if by != NULL:
                divide_strip(by, x, y, vectors, p_divided, q_divided, d)
            if few:
                terms_of_few(op, x if by == NULL else p_divided, y if by == NULL else q_divided, NULL if by == NULL else d,
                             weight, vectors, s, r, &beyond)
            else:
                terms_of_strip(op, p_divided, q_divided, d, weight, vectors, s, r, &beyond)
            if op == JEFFREYS or (op == CHI2 and by != NULL):
                mark_denormal(op, x, y, x if by == NULL else p_divided, y if by == NULL else q_divided, vectors, odd)
        add_strip(s, vectors, t, t_lo)
        if op == BHATTACHARYYA:
            add_strip(r, vectors, u, u_lo)
        for k in range(i, i + vectors if op == BHATTACHARYYA and by == NULL else i):
            add_masses(vector_at(p, k, p_patch, at), vector_at(q, k, q_patch, at), m, m_lo)
        i += vectors
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
        overlaps[j] = closed(u[j], u_lo[j])
        masses[j] = m[j]
        masses_lo[j] = m_lo[j]
    if beyond:
        mark_beyond(p, q, count, p_patch, q_patch, at, by, domain_end(op, weight), odd)


cdef loop term_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                     const Py_ssize_t* at, Py_ssize_t in_use, const Reciprocals* by, real weight, double* sums,
                     double* overlaps, double* masses, double* masses_lo, int* odd, const char* p_next,
                     const char* q_next) noexcept nogil:
    """sum_terms, compiled for each operation."""
    if op == JS or op == JS_DISTANCE:
        sum_terms[real](JS, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    elif op == JEFFREYS:
        sum_terms[real](JEFFREYS, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    elif op == HELLINGER:
        sum_terms[real](HELLINGER, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    elif op == BHATTACHARYYA:
        sum_terms[real](BHATTACHARYYA, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    elif op == TOTAL_VARIATION:
        sum_terms[real](TOTAL_VARIATION, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    elif op == CHI2:
        sum_terms[real](CHI2, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)
    else:
        sum_terms[real](TRIANGULAR, p, q, count, p_patch, q_patch, at, in_use, by, weight, sums, overlaps, masses,
                        masses_lo, odd, p_next, q_next)


cdef inlined sum_any_terms(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch,
                           const real* q_patch, const Py_ssize_t* at, const Reciprocals* by, double weight, double* sums,
                           double* overlaps, double* masses, double* masses_lo) noexcept nogil:
    """The same sums, in double, by the terms that are right for every pair of numbers."""
    cdef double a[LANES]
    cdef double b[LANES]
    cdef double d[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef double w[LANES]
    cdef double w_lo[LANES]
    cdef double both, part, none = NAN
    cdef Py_ssize_t i
    cdef int j
    cdef const real* x
    cdef const real* y
    for j in range(LANES):
        t[j] = t_lo[j] = u[j] = u_lo[j] = w[j] = w_lo[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        y = vector_at(q, i, q_patch, at)
        for j in range(LANES):
            a[j] = x[j]
            b[j] = y[j]
            d[j] = a[j] - b[j]
        if by != NULL:
            for j in range(LANES):
                d[j] = divided[double](x[j], y[j], by.p[j], by.p_lo[j], by.q[j], by.q_lo[j], &a[j], &b[j])
            if op == CHI2 or op == JEFFREYS:
                # A quotient that is denormal, or 0 where p is not, makes the row NaN: it is left to far_row.
                for j in range(LANES):
                    a[j] = a[j] if (a[j] > 2.0 ** -960) | (x[j] == 0) else none
                    b[j] = b[j] if (b[j] > 2.0 ** -960) | (y[j] == 0) else none
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], term_any(op, a[j], b[j], d[j], weight))
        if op == BHATTACHARYYA:
            for j in range(LANES):
                two_sum_add(&u[j], &u_lo[j], sqrt(a[j]) * sqrt(b[j]))
                both = a[j] + b[j]
                part = both - a[j]
                w_lo[j] += (a[j] - (both - part)) + (b[j] - part)
                two_sum_add(&w[j], &w_lo[j], both)
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
        overlaps[j] = closed(u[j], u_lo[j])
        masses[j] = w[j]
        masses_lo[j] = w_lo[j]


cdef loop any_term_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch,
                         const real* q_patch, const Py_ssize_t* at, const Reciprocals* by, double weight, double* sums,
                         double* overlaps, double* masses, double* masses_lo) noexcept nogil:
    """sum_any_terms, compiled for each operation."""
    if op == JS or op == JS_DISTANCE:
        sum_any_terms[real](JS, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    elif op == JEFFREYS:
        sum_any_terms[real](JEFFREYS, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    elif op == HELLINGER:
        sum_any_terms[real](HELLINGER, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    elif op == BHATTACHARYYA:
        sum_any_terms[real](BHATTACHARYYA, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    elif op == TOTAL_VARIATION:
        sum_any_terms[real](TOTAL_VARIATION, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    elif op == CHI2:
        sum_any_terms[real](CHI2, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)
    else:
        sum_any_terms[real](TRIANGULAR, p, q, count, p_patch, q_patch, at, by, weight, sums, overlaps, masses, masses_lo)


cdef loop total_lanes(const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                      const Py_ssize_t* at, double* p_sums, double* p_lo, double* q_sums, double* q_lo) noexcept nogil:
    """The sums of p and of q, by two-sum where the data is float64."""
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef const real* x
    cdef const real* y
    for j in range(LANES):
        s[j] = s_lo[j] = t[j] = t_lo[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        y = vector_at(q, i, q_patch, at)
        for j in range(LANES):
            add_run(&s[j], &s_lo[j], x[j])
            add_run(&t[j], &t_lo[j], y[j])
    for j in range(LANES):
        p_sums[j] = s[j]
        p_lo[j] = s_lo[j]
        q_sums[j] = t[j]
        q_lo[j] = t_lo[j]


cdef inlined make_flat_terms(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch,
                             const real* q_patch, const Py_ssize_t* at, real weight, real* terms, bint* beyond) noexcept nogil:
    """flat_terms of an operation."""
    cdef real s[STRIP]     # known to be no part of p and q
    cdef real overlaps[STRIP]
    cdef int odd[LANES]
    cdef Py_ssize_t i = 0, j, vectors
    cdef const char* p_next = <const char*>p + FK_AHEAD if FK_AHEAD else NULL
    cdef const char* q_next = <const char*>q + FK_AHEAD if FK_AHEAD else NULL
    for j in range(LANES):
        odd[j] = 0
    while i < count:
        vectors = strip_size(count - i)
        fk_prefetch(p_next, i * LANES * sizeof(real), vectors * LANES * sizeof(real))
        fk_prefetch(q_next, i * LANES * sizeof(real), vectors * LANES * sizeof(real))
        make_terms(op, p, q, i, vectors, p_patch, q_patch, at, weight, s, overlaps, odd, beyond)
        for j in range(vectors * LANES):
            terms[i * LANES + j] = s[j]
        i += vectors
    for j in range(LANES):
        beyond[0] |= odd[j]


cdef loop flat_terms(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                     const Py_ssize_t* at, real weight, real* s, bint* beyond) noexcept nogil:
    """s = the terms of rows that lie one after another, as they lie, in vectors; beyond is set unless all pairs are in the
    terms' domain. Compiled for each operation."""
    if op == JS or op == JS_DISTANCE:
        make_flat_terms(JS, p, q, count, p_patch, q_patch, at, weight, s, beyond)
    elif op == JEFFREYS:
        make_flat_terms(JEFFREYS, p, q, count, p_patch, q_patch, at, weight, s, beyond)
    elif op == HELLINGER:
        make_flat_terms(HELLINGER, p, q, count, p_patch, q_patch, at, weight, s, beyond)
    elif op == TOTAL_VARIATION:
        make_flat_terms(TOTAL_VARIATION, p, q, count, p_patch, q_patch, at, weight, s, beyond)
    elif op == CHI2:
        make_flat_terms(CHI2, p, q, count, p_patch, q_patch, at, weight, s, beyond)
    else:
        make_flat_terms(TRIANGULAR, p, q, count, p_patch, q_patch, at, weight, s, beyond)


cdef loop sum_across(const real* tile, Py_ssize_t count, double* sums) noexcept nogil:
    """A lane's sum over a tile, number by number: add_strip of sums of four and what is left."""
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef Py_ssize_t i
    cdef int j
    for j in range(LANES):
        t[j] = t_lo[j] = 0
    for i in range(count):
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], tile[j])
        tile += LANES
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])


cdef void sum_rows(real* s, Py_ssize_t rows, Py_ssize_t classes, real* tile, double* sums) noexcept nogil:
    """Add up the terms of at most LANES rows, a lane each, as add_strip would those of a tile. s: one row after another,
    with room for whole groups of rows; only the sums of four are transposed."""
    cdef Py_ssize_t fours = classes // RUN, rest = classes % RUN, whole = whole_groups(rows), j
    if rows < LANES:      # lanes without a row add up zeros
        for j in range(rows * classes, whole * classes):
            s[j] = 0
        for j in range((fours + rest) * LANES):
            tile[j] = 0
    if real is float:
        fk_sum_fours_f32(tile, LANES, s, classes, whole, classes)
        fk_transpose_f32(tile + fours * LANES, LANES, s + fours * RUN, classes, whole, rest)
    else:
        fk_sum_fours_f64(tile, LANES, s, classes, whole, classes)
        fk_transpose_f64(tile + fours * LANES, LANES, s + fours * RUN, classes, whole, rest)
    sum_across(tile, fours + rest, sums)


cdef bint terms_in_order(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Sums* a, Py_ssize_t first,
                         real* scratch) noexcept nogil:
    """terms_across, to the same bits, of rows that lie one after another: their terms are made in that order, and what is
    transposed is the sum of each four. False, and nothing done, where a row does not lie so, or a pair is out of the
    terms' domain."""
    cdef real p_patch[3 * LANES]
    cdef real q_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef int odd[LANES]
    cdef Py_ssize_t count, j
    cdef const real* p = <const real*>gapless(plan, &plan.operand[0], row, rows, scratch)
    cdef const real* q = <const real*>gapless(plan, &plan.operand[1], row, rows, scratch)
    cdef bint beyond = False
    if plan.normalize or plan.op == BHATTACHARYYA or plan.has_mask or p == NULL or q == NULL:
        return False
    count = start_patches(p, rows * plan.classes, <real>0, p_patch, at)
    start_patches(q, rows * plan.classes, <real>0, q_patch, at)
    flat_terms(plan.op, p, q, count, p_patch, q_patch, at, <real>plan.weight, scratch, &beyond)
    if beyond:
        return False
    sum_rows(scratch, rows, plan.classes, scratch + plan.classes * LANES, a.s + first)
    for j in range(LANES):
        a.s_lo[first + j] = odd[j] = 0
    return not mark_odd(plan.op, a.s + first, NULL, odd, scratch[0])


cdef inline void take_reciprocal(double total, double total_lo, double* by, double* by_lo) noexcept nogil:
    """1 / (total + total_lo) in two parts; NaN unless total is positive, finite and so far from the ends of the range that
    nothing in `divided` leaves it: such a row is NaN, or is computed once more (far_row)."""
    cdef double r
    settle(&total, &total_lo)
    r = 1 / total
    r = r if 1e-250 < total < 1e250 else NAN
    by[0] = r
    by_lo[0] = (fma(-r, total, 1) - r * total_lo) * r


cdef inline int mark_odd(int op, const double* sums, const double* overlaps, int* odd, real like) noexcept nogil:
    """Also mark lanes whose sum is not finite, or so small that it may have lost digits; returns whether any is marked."""
    cdef int j, some = 0
    cdef double least = least_sum(op, like), least_of_overlaps = least_overlap(like)
    for j in range(LANES):
        odd[j] |= (sums[j] - sums[j] != 0) | ((sums[j] != 0) & (sums[j] < least))
        if op == BHATTACHARYYA:
            odd[j] |= (overlaps[j] != 0) & (overlaps[j] < least_of_overlaps)
        some |= odd[j]
    return some


cdef void total_block(const real* p, const real* q, Py_ssize_t n, State* st) noexcept nogil:
    """Add a block's sums of p and q to a row's state: u and v."""
    cdef real p_patch[3 * LANES]
    cdef real q_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef Py_ssize_t count = start_patches(p, n, <real>0, p_patch, at)
    start_patches(q, n, <real>0, q_patch, at)
    total_lanes(p, q, count, p_patch, q_patch, at, s, s_lo, t, t_lo)
    fold_two_sum(s, s_lo)
    fold_two_sum(t, t_lo)
    two_sum_add(&st.u, &st.u_lo, s[0])
    st.u_lo += s_lo[0]
    two_sum_add(&st.v, &st.v_lo, t[0])
    st.v_lo += t_lo[0]


cdef void divide_by_totals(State* st) noexcept nogil:
    """From a row's sums to what its elements are multiplied by; its other sums start at 0."""
    take_reciprocal(st.u, st.u_lo, &st.by_p, &st.by_p_lo)
    take_reciprocal(st.v, st.v_lo, &st.by_q, &st.by_q_lo)
    st.divides = True
    st.u = st.u_lo = st.v = st.v_lo = 0


cdef void term_block(int op, const real* p, const real* q, Py_ssize_t n, double weight, const char* p_next,
                     const char* q_next, State* st) noexcept nogil:
    """Add a block to a row's state: s the terms, u the sum of sqrt(p q), v that of p + q."""
    cdef real p_patch[3 * LANES]
    cdef real q_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double s[LANES]
    cdef double u[LANES]
    cdef double w[LANES]
    cdef double w_lo[LANES]
    cdef int odd[LANES]
    cdef Reciprocals each
    cdef const Reciprocals* by = NULL
    cdef Py_ssize_t count = start_patches(p, n, <real>0, p_patch, at)
    cdef int j
    start_patches(q, n, <real>0, q_patch, at)
    if st.divides:
        by = &each
        for j in range(LANES):
            each.p[j] = st.by_p
            each.p_lo[j] = st.by_p_lo
            each.q[j] = st.by_q
            each.q_lo[j] = st.by_q_lo
    term_lanes(op, p, q, count, p_patch, q_patch, at, LANES, by, <real>weight, s, u, w, w_lo, odd, p_next,
               q_next)
    if mark_odd(op, s, u, odd, p[0]):
        any_term_lanes(op, p, q, count, p_patch, q_patch, at, by, weight, s, u, w, w_lo)
    two_sum_add(&st.s, &st.s_lo, fold_sum(s))
    if op == BHATTACHARYYA:
        two_sum_add(&st.u, &st.u_lo, fold_sum(u))
        fold_two_sum(w, w_lo)
        two_sum_add(&st.v, &st.v_lo, w[0])
        st.v_lo += w_lo[0]


cdef void terms_across(int op, const real* p, const real* q, Py_ssize_t classes, Py_ssize_t rows, bint normalize,
                       double weight, const char* p_next, const char* q_next, Sums* a, Py_ssize_t first) noexcept nogil:
    """Up to LANES short rows, one lane a row, rows first .. first + LANES of the sums; a row outside the terms' domain takes
    the other form without its neighbours."""
    cdef Py_ssize_t at[3]
    cdef double s[LANES]
    cdef double s_lo[LANES]
    cdef double u[LANES]
    cdef double u_lo[LANES]
    cdef int odd[LANES]
    cdef Reciprocals each
    cdef const Reciprocals* by = NULL
    cdef Py_ssize_t j
    at[0] = at[1] = at[2] = -1
    if normalize:
        by = &each
        total_lanes(p, q, classes, p, q, at, s, s_lo, u, u_lo)
        for j in range(rows, LANES):     # no row, but zeros, which shall not become NaN
            s[j] = u[j] = 1
        for j in range(LANES):
            take_reciprocal(s[j], s_lo[j], &each.p[j], &each.p_lo[j])
            take_reciprocal(u[j], u_lo[j], &each.q[j], &each.q_lo[j])
    for j in range(LANES):
        a.s_lo[first + j] = a.u_lo[first + j] = 0
    term_lanes(op, p, q, classes, p, q, at, rows, by, <real>weight, a.s + first, a.u + first, a.v + first, a.v_lo + first,
               odd, p_next, q_next)
    if mark_odd(op, a.s + first, a.u + first, odd, p[0]):
        any_term_lanes(op, p, q, classes, p, q, at, by, weight, s, s_lo, u, u_lo)
        for j in range(LANES):
            if odd[j]:
                a.s[first + j] = s[j]
                a.u[first + j] = s_lo[j]
                a.v[first + j] = u[j]
                a.v_lo[first + j] = u_lo[j]


cdef inline double distance_of(double h, double overlap, double gap) noexcept nogil:
    """-log(overlap), where overlap is 1 + gap - h: from these while they are small, for overlap has lost their digits then.
    """
    if h != h:
        return h
    if overlap > 0.5 and h < 0.5 and -0.5 < gap < 0.5:
        return -log1p_f64(gap - h)
    return -log_any_f64(overlap)


cdef void finish_terms(const Plan* plan, const Sums* a, Py_ssize_t row, Py_ssize_t rows, double* out) noexcept nogil:
    """From sums to results. Rows that `divided` may have led out of its range are read again."""
    cdef double s[TILE]
    cdef double overlap
    cdef Py_ssize_t j, whole = whole_groups(rows)
    for j in range(whole):
        s[j] = closed(a.s[j], a.s_lo[j])
    if plan.op == BHATTACHARYYA:
        for j in range(rows):
            overlap = closed(a.u[j], a.u_lo[j])
            s[j] = distance_of(s[j], overlap, 0 if plan.normalize else ((a.v[j] - 2) + a.v_lo[j]) / 2)
            if overlap < least_overlap(overlap):
                s[j] = NAN
    if plan.normalize or plan.op == BHATTACHARYYA:
        for j in range(rows):
            if s[j] != s[j] or plan.classes == 0:
                s[j] = far_row(plan, row + j)
    if plan.op == JS_DISTANCE or plan.op == HELLINGER:
        for j in range(whole):
            out[j] = sqrt(s[j] * plan.scale) + 0.0
    else:
        for j in range(whole):
            out[j] = s[j] * plan.scale + 0.0


cdef double far_row(const Plan* plan, Py_ssize_t row) noexcept nogil:
    """A divergence of p and q over their sums, at any scale: they are brought near 1 by powers of two, and each pair by one
    more, which its term is multiplied by, for terms are homogeneous. Three reads of the row: for the largest, the sums
    and the terms. A BHATTACHARYYA whose overlap is tiny also without sums; that is added up times 2^1000."""
    cdef double p[RUN * LANES]
    cdef double q[RUN * LANES]
    cdef double p_top = 0, q_top = 0, p_sum = 0, p_lo = 0, q_sum = 0, q_lo = 0, s = 0, s_lo = 0, u = 0, x, y, d
    cdef double by_p = 1, by_p_lo = 0, by_q = 1, by_q_lo = 0
    cdef Py_ssize_t i, n, start
    cdef int step, p_shift = 0, q_shift = 0, p_up = 0, q_up = 0, up
    cdef bint zeros = False, common = False
    for step in range(3):
        start = 0
        while start < plan.classes:
            n = plan.classes - start if plan.classes - start < RUN * LANES else RUN * LANES
            fetch[double](plan, &plan.operand[0], row, 1, start, n, p, RUN * LANES, 1, 0)
            fetch[double](plan, &plan.operand[1], row, 1, start, n, q, RUN * LANES, 1, 0)
            for i in range(n):
                if step == 0:
                    if not (0 <= p[i] < INFINITY and 0 <= q[i] < INFINITY):
                        return NAN
                    zeros |= (q[i] == 0 and p[i] > 0) or (plan.op == JEFFREYS and p[i] == 0 and q[i] > 0)
                    common |= p[i] > 0 and q[i] > 0
                    p_top = p[i] if p[i] > p_top else p_top
                    q_top = q[i] if q[i] > q_top else q_top
                elif step == 1:
                    two_sum_add(&p_sum, &p_lo, ldexp(p[i], -p_shift))
                    two_sum_add(&q_sum, &q_lo, ldexp(q[i], -q_shift))
                elif p[i] > 0 or q[i] > 0:
                    x = frexp(p[i], &p_up)
                    y = frexp(q[i], &q_up)
                    p_up -= p_shift
                    q_up -= q_shift
                    if p[i] > 0 and q[i] > 0:
                        up = (p_up + q_up) >> 1
                        u += ldexp(sqrt((x * by_p) * (y * by_q) * (1 + (p_up + q_up - 2 * up))), up + 1000)
                        if not -900 < p_up - q_up < 900:
                            two_sum_add(&s, &s_lo, apart_term(plan.op, x * by_p, p_up, y * by_q, q_up, plan.weight))
                            continue
                    up = q_up if p[i] == 0 or (q[i] > 0 and q_up > p_up) else p_up
                    d = divided[double](ldexp(x, p_up - up), ldexp(y, q_up - up), by_p, by_p_lo, by_q, by_q_lo, &x, &y)
                    two_sum_add(&s, &s_lo, ldexp(term_any(plan.op, x, y, d, plan.weight), up))
            start += n
        if step == 0:
            if plan.normalize and (p_top == 0 or q_top == 0):
                return NAN
            if (zeros and (plan.op == JEFFREYS or plan.op == CHI2)) or (not common and plan.op == BHATTACHARYYA):
                return INFINITY
            if plan.normalize:
                frexp(p_top, &p_shift)
                frexp(q_top, &q_shift)
        elif step == 1 and plan.normalize:
            take_reciprocal(p_sum, p_lo, &by_p, &by_p_lo)
            take_reciprocal(q_sum, q_lo, &by_q, &by_q_lo)
    s = closed(s, s_lo)
    if plan.op == BHATTACHARYYA:
        return distance_of(s, ldexp(u, -1000), 0) if u > 2.0 ** 100 else 1000 * LN2 - log_any_f64(u)
    return s


cdef inline double apart_term(int op, double p, int p_up, double q, int q_up, double weight) noexcept nogil:
    """The term of 2^p_up p and 2^q_up q, which are so far apart that beside the larger the smaller is only seen by what
    divides by it, or by its logarithm."""
    if op == JEFFREYS:
        return (ldexp(p, p_up) if p_up > q_up else -ldexp(q, q_up)) * ((p_up - q_up) * LN2 + log_any_f64(p / q))
    if op == CHI2 and p_up > q_up:
        return ldexp(p * p / q, 2 * p_up - q_up)
    p = ldexp(p, p_up)
    q = ldexp(q, q_up)
    return term_any(op, p, q, p - q, weight)
