# Sums of a pointwise term over probabilities: entropy, cross-entropy and the KL family.
#
# A fast loop is right for ordinary numbers and marks what lies outside its domain; where it finds that a block holds
# something else (a negative number, a zero under a positive one, a denormal, an infinity), or where its sum is not
# finite, that block is summed again out of L1 by the form that is right for every double. So the common case pays a few
# cheap instructions, and no input gets a plausible wrong number. Which form a block takes depends on that row alone.


cdef inline real smallest_q(real like) noexcept nogil:
    """Below this q (and above `largest` for p) the fast KL term is out of its domain, and below it a sum of terms is not
    trusted."""
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


# Terms of cross-entropy are made of p times this, and their sums divided by it: with q just below 1 the product of a small
# p and log q would be denormal, or 0 without a trace. A p so large that it overflows makes the sum infinite, see
# mark_odd_sums.
cdef inline real raised(real like) noexcept nogil:
    if real is float:
        return 2.0 ** 64
    else:
        return 2.0 ** 120


cdef inline void add_run(double* t, double* t_lo, real s) noexcept nogil:
    """Add the sum of a run of vectors to a lane's. Where the data is float64 so many additions of equal terms, each rounded
    the same way, would lose some eps."""
    if real is float:
        t[0] += s
    else:
        two_sum_add(t, t_lo, s)


# The fast loops. Each gives a lane's sum of terms, and 1 in odd where one of its numbers was outside the domain.

cdef inlined add_strip(const real* e, Py_ssize_t vectors, double* t, double* t_lo) noexcept nogil:
    """Add a strip's terms to the lanes' sums, RUN vectors at a time."""
    cdef Py_ssize_t k = 0
    cdef int j
    while k + RUN <= vectors:
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], (e[j] + e[LANES + j]) + (e[2 * LANES + j] + e[3 * LANES + j]))
        e += RUN * LANES
        k += RUN
    while k < vectors:
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], e[j])
        e += LANES
        k += 1


cdef inline Py_ssize_t strip_size(Py_ssize_t count) noexcept nogil:
    """Vectors of the next strip, where count are left."""
    return STRIP // LANES if count > STRIP // LANES else count


cdef inlined add_runs(bint differs, const float* e, const float* x, const float* y, Py_ssize_t vectors, double* t,
                      double* d) noexcept nogil:
    """Add a strip's float terms to the lanes' sums, those of RUN vectors one after another, and if asked each p - q to d."""
    cdef Py_ssize_t k = 0
    cdef float s[LANES]
    cdef int j
    cdef double sum
    while k + RUN <= vectors:
        for j in range(LANES):
            t[j] += ((e[j] + e[LANES + j]) + e[2 * LANES + j]) + e[3 * LANES + j]
        if differs:
            for j in range(LANES):
                sum = d[j] + <double>(x[j] - y[j])
                sum += <double>(x[LANES + j] - y[LANES + j])
                sum += <double>(x[2 * LANES + j] - y[2 * LANES + j])
                d[j] = sum + <double>(x[3 * LANES + j] - y[3 * LANES + j])
        e += RUN * LANES
        x += RUN * LANES
        y += RUN * LANES
        k += RUN
    if k == vectors:
        return
    for j in range(LANES):
        s[j] = 0
    while k < vectors:
        for j in range(LANES):
            s[j] += e[j]
        if differs:
            for j in range(LANES):
                d[j] += <double>(x[j] - y[j])
        e += LANES
        x += LANES
        y += LANES
        k += 1
    for j in range(LANES):
        t[j] += s[j]


cdef inlined kl_vectors(int op, const float* p, const float* q, Py_ssize_t count, const float* p_patch, const float* q_patch,
                        const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                        int* odd, const char* p_next, const char* q_next) noexcept nogil:
    """kl_lanes of float32, in strips for the sums' sake. A vector's terms are made in steps whose arrays stay in registers."""
    cdef float p_spare[LONG_STRIP]
    cdef float q_spare[LONG_STRIP]
    cdef float s[LONG_STRIP]
    cdef float w[LANES]
    cdef float gap[LANES]
    cdef float near[LANES]
    cdef float far[LANES]
    cdef uint32_t highest[LANES]
    cdef int32_t lowest_word[LANES]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double m[LANES]
    cdef Py_ssize_t i = 0, vectors, k
    cdef int j
    cdef const float* x
    cdef const float* y
    cdef const float* a
    cdef const float* b
    cdef float* terms
    for j in range(LANES):
        t[j] = d[j] = m[j] = 0
        odd[j] = highest[j] = 0
        lowest_word[j] = 0x7fffffff
    while i < count:
        vectors = LONG_STRIP // LANES if count - i > LONG_STRIP // LANES else count - i
        x = a = strip_at(p, i, vectors, p_patch, at, p_spare)
        y = b = strip_at(q, i, vectors, q_patch, at, q_spare)
        terms = s
        for k in range(i, i + vectors):
            fk_prefetch(p_next, k * LANES * sizeof(float), LANES * sizeof(float))
            fk_prefetch(q_next, k * LANES * sizeof(float), LANES * sizeof(float))
            for j in range(LANES):
                kl_cut_f32(a[j], b[j], &w[j], &gap[j], &near[j], &far[j])
            for j in range(LANES):
                terms[j] = kl_join_f32(a[j], w[j], gap[j], near[j], far[j])
            raise_words(a, 1, highest)
            lower_words(b, 1, lowest_word)
            a += LANES
            b += LANES
            terms += LANES
        add_runs(op != GENERALIZED_KL, s, x, y, vectors, t, d)
        if op == KL_NORMALIZED:
            for k in range(vectors):
                for j in range(LANES):
                    m[j] += <double>x[k * LANES + j]
        i += vectors
    for j in range(LANES):
        sums[j] = t[j]
        differences[j] = d[j]
        differences_lo[j] = 0
        masses[j] = m[j]
    mark_above(highest, largest(<float>0), odd)
    mark_below(lowest_word, smallest_q(<float>0), odd)


cdef inlined mark_outside(const double* p, const double* q, Py_ssize_t count, const double* p_patch, const double* q_patch,
                          const Py_ssize_t* at, double low, double high, int* odd) noexcept nogil:
    """1 in odd for each lane that held a number outside the domain."""
    cdef uint64_t words[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef const double* x
    cdef const double* y
    for j in range(LANES):
        words[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        y = vector_at(q, i, q_patch, at)
        for j in range(LANES):
            words[j] |= fk_outside_words_f64(x[j], y[j], low, high)
    for j in range(LANES):
        odd[j] = words[j] >> 63


cdef inlined join_strip(bint differs, const double* x, const double* y, const double* w, const double* gap, const double* near,
                        Py_ssize_t vectors, double* t, double* t_lo, double* d, double* e) noexcept nogil:
    """Add a strip's terms, RUN vectors at a time, to the lanes' sums t, and if asked each p - q to d: a two-sum, for
    near-equal rows leave far less than the rounding of a sum. It adds while the units that multiply have the terms."""
    cdef Py_ssize_t k = 0
    cdef int j
    cdef double a, b, c, hi, lo
    while k + RUN <= vectors:
        for j in range(LANES):
            a = kl_join_f64(x[j], w[j], gap[j], near[j])
            b = kl_join_f64(x[LANES + j], w[LANES + j], gap[LANES + j], near[LANES + j])
            c = kl_join_f64(x[2 * LANES + j], w[2 * LANES + j], gap[2 * LANES + j], near[2 * LANES + j])
            c += kl_join_f64(x[3 * LANES + j], w[3 * LANES + j], gap[3 * LANES + j], near[3 * LANES + j])
            two_sum_add(&t[j], &t_lo[j], (a + b) + c)
            if differs:
                hi = d[j]
                lo = e[j]
                two_sum_add(&hi, &lo, x[j] - y[j])
                two_sum_add(&hi, &lo, x[LANES + j] - y[LANES + j])
                two_sum_add(&hi, &lo, x[2 * LANES + j] - y[2 * LANES + j])
                two_sum_add(&hi, &lo, x[3 * LANES + j] - y[3 * LANES + j])
                d[j] = hi
                e[j] = lo
        x += RUN * LANES
        y += RUN * LANES
        w += RUN * LANES
        gap += RUN * LANES
        near += RUN * LANES
        k += RUN
    while k < vectors:
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], kl_join_f64(x[j], w[j], gap[j], near[j]))
            if differs:
                two_sum_add(&d[j], &e[j], x[j] - y[j])
        x += LANES
        y += LANES
        w += LANES
        gap += LANES
        near += LANES
        k += 1


cdef inlined kl_strips(int op, const double* p, const double* q, Py_ssize_t count, const double* p_patch, const double* q_patch,
                       const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                       int* odd, const char* p_next, const char* q_next) noexcept nogil:
    """kl_lanes of float64, in strips: a loop of divisions and integers, one of products and sums. Whether any number was
    outside the domain is told by the first; which lanes, if so, by a read of its own."""
    cdef double p_spare[STRIP]
    cdef double q_spare[STRIP]
    cdef double w[STRIP]
    cdef double gap[STRIP]
    cdef double near[STRIP]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double m[LANES]
    cdef double low = smallest_q(<double>0), high = largest(<double>0)
    cdef uint64_t outside = 0
    cdef Py_ssize_t i = 0, vectors, n, j, k
    cdef const double* x
    cdef const double* y
    for j in range(LANES):
        t[j] = t_lo[j] = d[j] = e[j] = m[j] = 0
        odd[j] = 0
    while i < count:
        vectors = strip_size(count - i)
        n = vectors * LANES
        x = strip_at(p, i, vectors, p_patch, at, p_spare)
        y = strip_at(q, i, vectors, q_patch, at, q_spare)
        fk_prefetch(p_next, i * LANES * sizeof(double), n * sizeof(double))
        for j in range(n):
            kl_cut_f64(x[j], y[j], &w[j], &gap[j], &near[j])
            outside |= fk_outside_words_f64(x[j], y[j], low, high)
        fk_prefetch(q_next, i * LANES * sizeof(double), n * sizeof(double))
        if op == GENERALIZED_KL:
            join_strip(False, x, y, w, gap, near, vectors, t, t_lo, d, e)
        else:
            join_strip(True, x, y, w, gap, near, vectors, t, t_lo, d, e)
        if op == KL_NORMALIZED:
            for k in range(vectors):
                for j in range(LANES):
                    m[j] += <double>x[k * LANES + j]
        i += vectors
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
        differences[j] = d[j]
        differences_lo[j] = e[j]
        masses[j] = m[j]
    if outside >> 63:
        mark_outside(p, q, count, p_patch, q_patch, at, low, high, odd)


cdef loop kl_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                   const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                   int* odd, const char* p_next, const char* q_next) noexcept nogil:
    """The KL terms; for KL and KL_NORMALIZED also the sum of p - q, for KL_NORMALIZED that of p."""
    if real is float:
        kl_vectors(op, p, q, count, p_patch, q_patch, at, sums, differences, differences_lo, masses, odd, p_next,
                   q_next)
    else:
        kl_strips(op, p, q, count, p_patch, q_patch, at, sums, differences, differences_lo, masses, odd, p_next, q_next)


cdef inlined entropy_vectors(const float* p, Py_ssize_t count, const float* patch, const Py_ssize_t* at, double* sums,
                             int* odd, const char* p_next) noexcept nogil:
    """entropy_lanes of float32."""
    cdef float s[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef uint32_t most[LANES]
    cdef uint32_t high = bits_f32(largest(<float>0)), word
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const float* x
    for j in range(LANES):
        t[j] = t_lo[j] = 0
        most[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            x = vector_at(p, i, patch, at)
            fk_prefetch(p_next, i * LANES * sizeof(float), LANES * sizeof(float))
            for j in range(LANES):
                s[j] += shannon_term_f32(x[j])
                word = bits_f32(x[j])
                most[j] = word if word > most[j] else most[j]
            i += 1
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], s[j])
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
        odd[j] = most[j] > high


cdef inlined join_entropy_strip(const double* x, const double* s, const double* e, Py_ssize_t vectors, double* t,
                                double* t_lo) noexcept nogil:
    """Add a strip's terms to the lanes' sums, as add_strip would."""
    cdef Py_ssize_t k = 0
    cdef int j
    cdef double a, b, c
    while k + RUN <= vectors:
        for j in range(LANES):
            a = shannon_join_f64(x[j], s[j], e[j])
            b = shannon_join_f64(x[LANES + j], s[LANES + j], e[LANES + j])
            c = shannon_join_f64(x[2 * LANES + j], s[2 * LANES + j], e[2 * LANES + j])
            c += shannon_join_f64(x[3 * LANES + j], s[3 * LANES + j], e[3 * LANES + j])
            two_sum_add(&t[j], &t_lo[j], (a + b) + c)
        x += RUN * LANES
        s += RUN * LANES
        e += RUN * LANES
        k += RUN
    while k < vectors:
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], shannon_join_f64(x[j], s[j], e[j]))
        x += LANES
        s += LANES
        e += LANES
        k += 1


cdef inlined entropy_strips(const double* p, Py_ssize_t count, const double* patch, const Py_ssize_t* at, double* sums,
                            int* odd, const char* p_next) noexcept nogil:
    """entropy_lanes of float64."""
    cdef double spare[STRIP]
    cdef double s[STRIP]
    cdef double e[STRIP]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef uint32_t highest[WORDS]
    cdef Py_ssize_t i = 0, vectors, n, j
    cdef const double* x
    for j in range(LANES):
        t[j] = t_lo[j] = 0
        odd[j] = 0
    for j in range(WORDS):
        highest[j] = 0
    while i < count:
        vectors = strip_size(count - i)
        n = vectors * LANES
        x = strip_at(p, i, vectors, patch, at, spare)
        fk_prefetch(p_next, i * LANES * sizeof(double), n * sizeof(double))
        for j in range(n):
            shannon_cut_f64(x[j], &s[j], &e[j])
        join_entropy_strip(x, s, e, vectors, t, t_lo)
        raise_words(x, vectors, highest)
        i += vectors
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
    mark_above(highest, largest(p[0]), odd)


cdef loop entropy_lanes(const real* p, Py_ssize_t count, const real* patch, const Py_ssize_t* at, double* sums,
                        int* odd, const char* p_next) noexcept nogil:
    """-p log p."""
    if real is float:
        entropy_vectors(p, count, patch, at, sums, odd, p_next)
    else:
        entropy_strips(p, count, patch, at, sums, odd, p_next)


cdef inlined cross_entropy_vectors(const float* p, const float* q, Py_ssize_t count, const float* p_patch, const float* q_patch,
                                   const Py_ssize_t* at, double* sums, int* odd, const char* p_next,
                                   const char* q_next) noexcept nogil:
    """cross_entropy_lanes of float32."""
    cdef float s[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef uint32_t p_highest[LANES]
    cdef uint32_t q_highest[LANES]
    cdef int32_t lowest_word[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const float* x
    cdef const float* y
    cdef float up = raised(<float>0)
    for j in range(LANES):
        t[j] = t_lo[j] = 0
        odd[j] = p_highest[j] = q_highest[j] = 0
        lowest_word[j] = 0x7fffffff
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            x = vector_at(p, i, p_patch, at)
            y = vector_at(q, i, q_patch, at)
            fk_prefetch(p_next, i * LANES * sizeof(float), LANES * sizeof(float))
            fk_prefetch(q_next, i * LANES * sizeof(float), LANES * sizeof(float))
            for j in range(LANES):
                s[j] -= (x[j] * up) * log_of(y[j])
            raise_words(x, 1, p_highest)
            raise_words(y, 1, q_highest)
            lower_words(y, 1, lowest_word)
            i += 1
        for j in range(LANES):
            add_run(&t[j], &t_lo[j], s[j])
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j]) / up
    # p >= 0 and 0 < q <= largest
    mark_above(p_highest, <float>INFINITY, odd)
    mark_above(q_highest, largest(<float>0), odd)
    mark_below(lowest_word, <float>(2.0 ** -149), odd)


cdef inlined cross_entropy_strips(const double* p, const double* q, Py_ssize_t count, const double* p_patch, const double* q_patch,
                                  const Py_ssize_t* at, double* sums, int* odd, const char* p_next,
                                  const char* q_next) noexcept nogil:
    """cross_entropy_lanes of float64; a denormal q is left to the other form."""
    cdef double p_spare[STRIP]
    cdef double q_spare[STRIP]
    cdef double f[STRIP]
    cdef double s[STRIP]
    cdef double k[STRIP]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef uint32_t p_highest[WORDS]
    cdef uint32_t q_highest[WORDS]
    cdef int32_t lowest_word[WORDS]
    cdef Py_ssize_t i = 0, vectors, n, j
    cdef const double* x
    cdef const double* y
    cdef double up = raised(<double>0)
    for j in range(LANES):
        t[j] = t_lo[j] = 0
        odd[j] = 0
    for j in range(WORDS):
        p_highest[j] = q_highest[j] = 0
        lowest_word[j] = 0x7fffffff
    while i < count:
        vectors = strip_size(count - i)
        n = vectors * LANES
        x = strip_at(p, i, vectors, p_patch, at, p_spare)
        y = strip_at(q, i, vectors, q_patch, at, q_spare)
        fk_prefetch(p_next, i * LANES * sizeof(double), n * sizeof(double))
        for j in range(n):
            log_cut_f64(y[j], &f[j], &s[j], &k[j])
        fk_prefetch(q_next, i * LANES * sizeof(double), n * sizeof(double))
        for j in range(n):
            f[j] = -(x[j] * up) * log_join_f64(f[j], s[j], k[j])
        add_strip(f, vectors, t, t_lo)
        raise_words(x, vectors, p_highest)
        raise_words(y, vectors, q_highest)
        lower_words(y, vectors, lowest_word)
        i += vectors
    for j in range(LANES):
        t[j] = closed(t[j], t_lo[j])
        sums[j] = t[j] / up
    mark_above(p_highest, <double>INFINITY, odd)
    mark_above(q_highest, largest(p[0]), odd)
    mark_below(lowest_word, <double>(2.0 ** -1022), odd)
    mark_odd_sums(t, smallest_q(<double>0) * up, odd)     # before they become denormal, or 0


cdef loop cross_entropy_lanes(const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                              const Py_ssize_t* at, double* sums, int* odd, const char* p_next,
                              const char* q_next) noexcept nogil:
    """-p log q."""
    if real is float:
        cross_entropy_vectors(p, q, count, p_patch, q_patch, at, sums, odd, p_next, q_next)
    else:
        cross_entropy_strips(p, q, count, p_patch, q_patch, at, sums, odd, p_next, q_next)


cdef loop any_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                    const Py_ssize_t* at, double* sums, double* differences, double* differences_lo,
                    double* masses, double* times) noexcept nogil:
    """The same sums, in double, by the terms that are right for every pair of numbers. Unless p is huge those of entropies are
    2^100 times as large, which is left in times: once they are added up their sum is rounded once, if it is denormal."""
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef const real* x
    cdef const real* y
    cdef double up = 2.0 ** 100 if op == ENTROPY or op == CROSS_ENTROPY else 1
    for j in range(LANES):
        t[j] = t_lo[j] = d[j] = e[j] = w[j] = 0
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        for j in range(LANES):
            if not x[j] < 1e240:
                up = 1
    for i in range(count):
        x = vector_at(p, i, p_patch, at)
        if op == ENTROPY:
            for j in range(LANES):
                two_sum_add(&t[j], &t_lo[j], -xlogy_any_f64(x[j] * up, x[j]))
            continue
        y = vector_at(q, i, q_patch, at)
        if op == CROSS_ENTROPY:
            for j in range(LANES):
                two_sum_add(&t[j], &t_lo[j], -xlogy_any_f64(x[j] * up, y[j]))
            continue
        for j in range(LANES):
            two_sum_add(&t[j], &t_lo[j], kl_term_any_f64(x[j], y[j], 0))
        for j in range(LANES):
            w[j] += <double>x[j]
            two_sum_add(&d[j], &e[j], <double>x[j] - <double>y[j])
    times[0] = up
    for j in range(LANES):
        sums[j] = closed(t[j], t_lo[j])
        differences[j] = d[j]
        differences_lo[j] = e[j]
        masses[j] = w[j]


cdef void fast_lanes(int op, const real* p, const real* q, Py_ssize_t count, const real* p_patch, const real* q_patch,
                     const Py_ssize_t* at, double* sums, double* differences, double* differences_lo, double* masses,
                     int* odd, const char* p_next, const char* q_next) noexcept nogil:
    """The operation's fast loop, while what will be read next, unless NULL, is prefetched. odd also marks lanes whose sum
    is not finite, or so small that its terms may have lost digits to denormals."""
    cdef double least = smallest_q(p[0])
    if op == ENTROPY:
        entropy_lanes(p, count, p_patch, at, sums, odd, p_next)
    elif op == CROSS_ENTROPY:
        cross_entropy_lanes(p, q, count, p_patch, q_patch, at, sums, odd, p_next, q_next)
    else:
        kl_lanes(op, p, q, count, p_patch, q_patch, at, sums, differences, differences_lo, masses, odd, p_next, q_next)
    mark_odd_sums(sums, least, odd)


cdef inline void mark_odd_sums(const double* sums, double least, int* odd) noexcept nogil:
    cdef double size
    cdef int j
    for j in range(LANES):
        size = sums[j] if sums[j] > 0 else -sums[j]
        odd[j] |= (size - size != 0) | ((size > 0) & (size < least))


cdef void divergence_block(int op, const real* p, const real* q, Py_ssize_t n, const char* p_next, const char* q_next,
                           State* st) noexcept nogil:
    """Add a block to a row's state: s the terms, u (KL, KL_NORMALIZED) the sum of p - q, v (KL_NORMALIZED) that of p."""
    cdef real p_patch[3 * LANES]
    cdef real q_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef int odd_lanes[LANES]
    cdef Py_ssize_t count = start_patches(p, n, absent_p(op, p[0]), p_patch, at)
    cdef double times = 1
    cdef int j, odd = 0
    if op != ENTROPY:
        start_patches(q, n, absent_q(op, p[0]), q_patch, at)
    fast_lanes(op, p, q, count, p_patch, q_patch, at, t, d, e, w, odd_lanes, p_next, q_next)
    for j in range(LANES):
        odd |= odd_lanes[j]
    if odd:
        # The pair past the row's end is 0, 0 here, lest it count beside denormals.
        count = start_patches(p, n, <real>0, p_patch, at)
        if op != ENTROPY:
            start_patches(q, n, <real>0, q_patch, at)
        any_lanes(op, p, q, count, p_patch, q_patch, at, t, d, e, w, &times)
    two_sum_add(&st.s, &st.s_lo, fold_sum(t) / times)
    if op == KL or op == KL_NORMALIZED:
        if real is float:
            two_sum_add(&st.u, &st.u_lo, fold_sum(d))     # exact enough: the data has half the digits
        else:
            fold_two_sum(d, e)
            two_sum_add(&st.u, &st.u_lo, d[0])
            st.u_lo += e[0]
    if op == KL_NORMALIZED:
        two_sum_add(&st.v, &st.v_lo, fold_sum(w))
        if not odd:
            two_sum_add(&st.v, &st.v_lo, -(count * LANES - n) * <double>absent_p(op, p[0]))


cdef void divergence_across(int op, const real* p, const real* q, Py_ssize_t classes, Py_ssize_t rows,
                            const char* p_next, const char* q_next, Sums* a, Py_ssize_t first) noexcept nogil:
    """Up to LANES short rows, one lane a row, rows first .. first + LANES of the sums; a row outside the fast domain takes
    the other form without its neighbours."""
    cdef Py_ssize_t at[3]
    cdef double t[LANES]
    cdef double d[LANES]
    cdef double e[LANES]
    cdef double w[LANES]
    cdef double times = 1
    cdef int odd[LANES]
    cdef int j, any_odd = 0
    at[0] = at[1] = at[2] = -1
    for j in range(LANES):
        a.s_lo[first + j] = a.v_lo[first + j] = 0
    fast_lanes(op, p, q, classes, p, q, at, a.s + first, a.u + first, a.u_lo + first, a.v + first, odd, p_next, q_next)
    for j in range(rows):
        any_odd |= odd[j]
    if any_odd:
        any_lanes(op, p, q, classes, p, q, at, t, d, e, w, &times)
        for j in range(LANES):
            if odd[j]:
                a.s[first + j] = t[j] / times
                a.u[first + j] = d[j]
                a.u_lo[first + j] = e[j]
                a.v[first + j] = w[j]


cdef void merge_divergence(State* st, const State* other) noexcept nogil:
    """Add a later chunk's sums to a row's."""
    two_sum_add(&st.s, &st.s_lo, other.s)
    st.s_lo += other.s_lo
    two_sum_add(&st.u, &st.u_lo, other.u)
    st.u_lo += other.u_lo
    two_sum_add(&st.v, &st.v_lo, other.v)
    st.v_lo += other.v_lo


cdef inline double log1p_gap(double t) noexcept nogil:
    """t - log1p(t) without cancellation: it is the KL term of 1 and 1 + t."""
    cdef double u = 1 + t
    return kl_term_any_f64(1, u, t - (u - 1))


cdef inline double not_negative(double x) noexcept nogil:
    """x, or 0 where rounding made it negative; NaN stays."""
    return 0 if x < 0 else x


cdef void finish_divergence(int op, const Sums* a, Py_ssize_t rows, double scale, double* out) noexcept nogil:
    cdef double t, p_sum
    cdef Py_ssize_t j, whole = whole_groups(rows)
    if op == KL_NORMALIZED:
        # KL(p/P || q/Q) = G/P - (t - log1p(t)), t = Q/P - 1
        for j in range(whole):
            p_sum = closed(a.v[j], a.v_lo[j])
            t = -closed(a.u[j], a.u_lo[j]) / p_sum
            out[j] = not_negative(closed(a.s[j], a.s_lo[j]) / p_sum - log1p_gap(t)) * scale
        return
    # + 0.0: a one-hot row's entropy is +0, not -0
    if op == KL:
        for j in range(whole):
            # The two parts may cancel; each is right by itself.
            out[j] = closed(a.s[j] + a.u[j], a.s_lo[j] + a.u_lo[j]) * scale + 0.0
    else:
        for j in range(whole):
            out[j] = closed(a.s[j], a.s_lo[j]) * scale + 0.0


cdef inline bint needs_rescaling(const Sums* a, Py_ssize_t j) noexcept nogil:
    """Whether P and Q differ so much, or are so large or small, that G/P - (t - log1p(t)) would lose digits."""
    cdef double g = closed(a.s[j], a.s_lo[j]), p_sum = closed(a.v[j], a.v_lo[j])
    cdef double t = -closed(a.u[j], a.u_lo[j]) / p_sum
    if g != g:
        return False
    if not (1e-250 < p_sum < 1e250 and -0.5 < t < 1):
        return True
    return g < INFINITY and t * t * p_sum * 8 > g     # t^2 exceeds t - log1p(t) there


cdef inline double far_term(double p, double q, int q_shift, double r) noexcept nogil:
    """The KL term of p and r 2^-q_shift q, where that is 0 in a double but q is not: nothing cancels so far apart."""
    return 0 if p == 0 else p * (log_any_f64(p) - log_any_f64(q) + q_shift * LN2 - log_any_f64(r)) - p


cdef double rescaled_kl(const Plan* plan, Py_ssize_t row) noexcept nogil:
    """KL(p/P || q/Q) as G(p, r q)/P - (t - log1p(t)) with r = P/Q rounded and t = r Q/P - 1 its error: r q is kept as a
    double and its rounding error, so that nothing is lost where p and q are nearly proportional. p and q are first
    brought near 1 by powers of two, for their sums or their ratio may be out of range. Three reads of the row: for the
    largest, the sums (by two-sum, for t) and the terms."""
    cdef double p[RUN * LANES]
    cdef double q[RUN * LANES]
    cdef double p_top = 0, q_top = 0, p_sum = 0, p_lo = 0, q_sum = 0, q_lo = 0, g = 0, g_lo = 0, r = 1, x, y
    cdef Py_ssize_t i, n, start
    cdef int step, p_shift = 0, q_shift = 0
    for step in range(3):
        start = 0
        while start < plan.classes:
            n = plan.classes - start if plan.classes - start < RUN * LANES else RUN * LANES
            fetch[double](plan, &plan.operand[0], row, 1, start, n, p, RUN * LANES, 1, 0)
            fetch[double](plan, &plan.operand[1], row, 1, start, n, q, RUN * LANES, 1, 0)
            for i in range(n):
                if step == 0:
                    p_top = p[i] if p[i] > p_top else p_top
                    q_top = q[i] if q[i] > q_top else q_top
                    continue
                x = ldexp(p[i], -p_shift)
                y = ldexp(q[i], -q_shift)
                if step == 1:
                    two_sum_add(&p_sum, &p_lo, x)
                    two_sum_add(&q_sum, &q_lo, y)
                elif q[i] == 0 and p[i] > 0:
                    return INFINITY      # also where p is a denormal that x has lost
                elif y < 1e-290 and q[i] > 0:
                    two_sum_add(&g, &g_lo, far_term(x, q[i], q_shift, r))
                else:
                    two_sum_add(&g, &g_lo, kl_term_any_f64(x, r * y, fma(r, y, -(r * y))))
            start += n
        if step == 0:
            frexp(p_top, &p_shift)
            frexp(q_top, &q_shift)
        elif step == 1:
            settle(&p_sum, &p_lo)
            settle(&q_sum, &q_lo)
            if p_sum == 0 or q_sum == 0:
                return NAN
            r = p_sum / q_sum
    x = (fma(r, q_sum, -p_sum) + (r * q_lo - p_lo)) / p_sum
    return not_negative(closed(g, g_lo) / p_sum - log1p_gap(x))
