# Log-sum-exp and what is made of it: softmax, log_softmax, the entropy of logits; the label's loss in labels.pxi.
#
# Lazy reference: m is the maximum of a row's first block. One loop over each block sums exp(x - m) and finds the block's
# maximum; where that exceeds m + 1 the sums are rescaled, m is set anew and the block is summed again out of L1. A larger
# threshold would cost accuracy. The element at m is left out of s and stands in c as an exact 1: log(c + s) is then
# log1p((c - 1) + s), right to the last digit also where that element dominates (LSE([0, -40]) is 4.2e-18).


cdef inlined raise_tops(const real* v, real* top) noexcept nogil:
    """Keep the larger of a vector's elements and the lanes' maxima; NaNs are passed over here and carried by the sum."""
    cdef int j
    for j in range(LANES):
        top[j] = larger(v[j], top[j])


cdef inlined raise_tops_by(const real* v, Py_ssize_t vectors, real* top) noexcept nogil:
    """raise_tops of vectors side by side. Of a row with a NaN, whose result is NaN in any case, elements may be missed."""
    cdef Py_ssize_t k = 0
    cdef int j
    while k + RUN <= vectors:
        for j in range(LANES):
            top[j] = larger(larger(larger(v[j], v[LANES + j]), larger(v[2 * LANES + j], v[3 * LANES + j])), top[j])
        v += RUN * LANES
        k += RUN
    while k < vectors:
        raise_tops(v, top)
        v += LANES
        k += 1


cdef loop max_lanes(const real* x, Py_ssize_t count, const real* patch, const Py_ssize_t* at, real* out) noexcept nogil:
    """Maximum of each lane of a block."""
    cdef const real* places[VECTORS]
    cdef real top[LANES]
    cdef Py_ssize_t i = 0, whole = count
    cdef int j
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    for j in range(LANES):
        top[j] = -INFINITY
    if at[1] < 0:     # at most one is patched, and that is the last unless a row without a tail has a label
        whole = next_patch(0, count, at)
        raise_tops_by(x, whole, top)
        if whole < count:
            raise_tops(patch, top)
            raise_tops_by(x + (whole + 1) * LANES, count - whole - 1, top)
    else:
        # Which is patched no processor foresees: where each lies is read from a table, without a branch.
        place_vectors(x, count, patch, at, places)
        while i + RUN <= count:
            v0, v1, v2, v3 = places[i], places[i + 1], places[i + 2], places[i + 3]
            for j in range(LANES):
                top[j] = larger(larger(larger(v0[j], v1[j]), larger(v2[j], v3[j])), top[j])
            i += RUN
        while i < count:
            raise_tops(places[i], top)
            i += 1
    for j in range(LANES):
        out[j] = top[j]


cdef loop max_across(const real* tile, Py_ssize_t classes, real* out) noexcept nogil:
    """Maximum of each row of a tile, or of each lane of whole vectors."""
    cdef real top[LANES]
    cdef int j
    for j in range(LANES):
        top[j] = -INFINITY
    raise_tops_by(tile, classes, top)
    for j in range(LANES):
        out[j] = top[j]


cdef inlined exp_vector(const real* v, const real* m, real* e) noexcept nogil:
    """e = 2^64 exp(v - m) of a vector, m a lane. Of two loops of 32 gcc makes code that takes the steps of the lanes in turns,
    so that few wait for the one before, and that keeps what is between the loops in registers; of one it would not."""
    cdef real r[LANES]
    cdef real scale[LANES]
    cdef int j
    for j in range(LANES):
        exp_cut(v[j] - m[j], &r[j], &scale[j])
    for j in range(LANES):
        e[j] = exp_join(r[j], scale[j])


cdef inlined exp_four(const real* v0, const real* v1, const real* v2, const real* v3, const real* m, real* e) noexcept nogil:
    """exp_vector of RUN vectors, for 32 registers, which hold them: so many chains are in flight together."""
    cdef int j
    for j in range(LANES):
        e[j] = exp_up(v0[j] - m[j])
        e[LANES + j] = exp_up(v1[j] - m[j])
        e[2 * LANES + j] = exp_up(v2[j] - m[j])
        e[3 * LANES + j] = exp_up(v3[j] - m[j])


cdef inline Py_ssize_t vectors_at_once(Py_ssize_t left) noexcept nogil:
    """Of how many of the vectors that are left the exponentials are made before they are summed."""
    return EXPS // LANES if left > EXPS // LANES else left


cdef inlined exp_run(const real* x, Py_ssize_t first, Py_ssize_t vectors, const real* m, real* e, const char* next,
                     Outflow* outflow) noexcept nogil:
    """e = 2^64 exp(x - m) of vectors first .. first + vectors, which lie side by side; e may be where they lie. What will be
    read `next`, unless NULL, is prefetched meanwhile, and `outflow`, unless NULL, goes on."""
    cdef real four[RUN * LANES]
    cdef Py_ssize_t k = 0
    cdef int j
    cdef const real* v
    if FK_REGISTERS >= 32 and real is float:     # a vector of doubles is as many chains as there are registers for
        while k + RUN <= vectors:
            fk_prefetch(next, (first + k) * LANES * sizeof(real), RUN * LANES * sizeof(real))
            flow(outflow, RUN, x)
            v = x + (first + k) * LANES
            exp_four(v, v + LANES, v + 2 * LANES, v + 3 * LANES, m, four)
            for j in range(RUN * LANES):
                e[k * LANES + j] = four[j]
            k += RUN
    while k < vectors:
        fk_prefetch(next, (first + k) * LANES * sizeof(real), LANES * sizeof(real))
        flow(outflow, 1, x)
        exp_vector(x + (first + k) * LANES, m, e + k * LANES)
        k += 1


cdef inlined exp_vectors(const real* x, Py_ssize_t first, Py_ssize_t vectors, const real* patch, const Py_ssize_t* at,
                         const real* m, real* top, real* e, const char* next, Outflow* outflow) noexcept nogil:
    """exp_run where some vectors are patched; top: the lanes' maxima so far, or NULL."""
    cdef Py_ssize_t i = first, stop = first + vectors, whole
    while i < stop:
        # Up to the next vector that is patched all lie side by side: the loops have no question to ask.
        whole = next_patch(i, stop, at)
        exp_run(x, i, whole - i, m, e + (i - first) * LANES, next, outflow)
        if top != NULL:
            raise_tops_by(x + i * LANES, whole - i, top)
        i = whole
        if i < stop:
            fk_prefetch(next, i * LANES * sizeof(real), LANES * sizeof(real))
            flow(outflow, 1, x)
            exp_vector(vector_at(x, i, patch, at), m, e + (i - first) * LANES)
            if top != NULL:
                raise_tops(vector_at(x, i, patch, at), top)
            i += 1


cdef inlined add_exps(const real* e, Py_ssize_t vectors, double* t) noexcept nogil:
    """Add the exponentials of such vectors to the lanes' sums."""
    cdef Py_ssize_t k = 0
    cdef int j
    while k + RUN <= vectors:
        for j in range(LANES):
            t[j] += (e[j] + e[LANES + j]) + (e[2 * LANES + j] + e[3 * LANES + j])
        e += RUN * LANES
        k += RUN
    while k < vectors:
        for j in range(LANES):
            t[j] += e[j]
        e += LANES
        k += 1


cdef inlined exp_sum_runs(const real* x, Py_ssize_t count, Py_ssize_t hole, const real* patch, const Py_ssize_t* at, real m,
                          bint weighs, double* sums, double* moments, real* tops, const char* next,
                          Outflow* outflow) noexcept nogil:
    """exp_sum_lanes or, where it weighs, exp_moment_lanes, for 32 registers, which RUN vectors' exponentials and their sums
    fit: nothing is stored between. For the table see max_lanes. The maxima are those of the other elements."""
    cdef const real* places[VECTORS + RUN]
    cdef real without[LANES]
    cdef real top[LANES]
    cdef double t[LANES]
    cdef double w[LANES]
    cdef real e0, e1, e2, e3
    cdef real r[RUN * LANES]
    cdef real scale[RUN * LANES]
    cdef Py_ssize_t i = 0
    cdef int j, lane = hole % LANES
    cdef real absent = -INFINITY
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    for j in range(LANES):
        top[j] = absent
        t[j] = w[j] = 0
    place_vectors(x, count, patch, at, places)
    if hole >= 0:
        v0 = places[hole // LANES]
        for j in range(LANES):     # whole vectors, which are soon read as such
            without[j] = absent if j == lane else v0[j]
        places[hole // LANES] = without
    # Read a run ahead: an address that is only just being read would keep its vector waiting, and that what is made of it.
    for j in range(RUN):
        places[count + j] = x
    v0, v1, v2, v3 = places[0], places[1], places[2], places[3]
    while i + RUN <= count:
        fk_prefetch(next, i * LANES * sizeof(real), RUN * LANES * sizeof(real))
        flow(outflow, RUN, x)
        if real is float:
            for j in range(LANES):
                exp_cut(v0[j] - m, &r[j], &scale[j])
                exp_cut(v1[j] - m, &r[LANES + j], &scale[LANES + j])
                exp_cut(v2[j] - m, &r[2 * LANES + j], &scale[2 * LANES + j])
                exp_cut(v3[j] - m, &r[3 * LANES + j], &scale[3 * LANES + j])
        for j in range(LANES):
            top[j] = larger(larger(larger(v0[j], v1[j]), larger(v2[j], v3[j])), top[j])
            if real is float:
                e0 = exp_join(r[j], scale[j])
                e1 = exp_join(r[LANES + j], scale[LANES + j])
                e2 = exp_join(r[2 * LANES + j], scale[2 * LANES + j])
                e3 = exp_join(r[3 * LANES + j], scale[3 * LANES + j])
            else:
                e0 = exp_up(v0[j] - m)
                e1 = exp_up(v1[j] - m)
                e2 = exp_up(v2[j] - m)
                e3 = exp_up(v3[j] - m)
            t[j] += (e0 + e1) + (e2 + e3)
            if weighs:
                w[j] += (fall(m, v0[j]) * e0 + fall(m, v1[j]) * e1) + (fall(m, v2[j]) * e2 + fall(m, v3[j]) * e3)
        i += RUN
        v0, v1, v2, v3 = places[i], places[i + 1], places[i + 2], places[i + 3]
    while i < count:
        fk_prefetch(next, i * LANES * sizeof(real), LANES * sizeof(real))
        flow(outflow, 1, x)
        v0 = places[i]
        for j in range(LANES):
            top[j] = larger(v0[j], top[j])
            e0 = exp_up(v0[j] - m)
            t[j] += e0
            if weighs:
                w[j] += fall(m, v0[j]) * e0
        i += 1
    for j in range(LANES):
        sums[j] = t[j]
        tops[j] = top[j]
        if weighs:
            moments[j] = w[j]


cdef loop exp_sum_lanes(const real* x, Py_ssize_t count, Py_ssize_t hole, const real* patch, const Py_ssize_t* at, real m,
                        double* sums, real* tops, const char* next, Outflow* outflow) noexcept nogil:
    """Per lane: 2^64 times the sum of exp(x - m), but for the element `hole`, and the maximum, of that element too unless it
    is m. For `next` and `outflow` see exp_run."""
    cdef real exps[EXPS]
    cdef real reference[LANES]
    cdef real top[LANES]
    cdef double t[LANES]
    cdef Py_ssize_t i = 0, vectors
    cdef int j
    if FK_REGISTERS >= 32:
        exp_sum_runs(x, count, hole, patch, at, m, False, sums, NULL, tops, next, outflow)
        return
    for j in range(LANES):
        reference[j] = m
        top[j] = -INFINITY
        t[j] = 0
    while i < count:
        vectors = vectors_at_once(count - i)
        exp_vectors(x, i, vectors, patch, at, reference, top, exps, next, outflow)
        if i * LANES <= hole < (i + vectors) * LANES:
            exps[hole - i * LANES] = 0
        add_exps(exps, vectors, t)
        i += vectors
    for j in range(LANES):
        sums[j] = t[j]
        tops[j] = top[j]


cdef inline real fall(real m, real x) noexcept nogil:
    """m - x, but at most 1000: exp_up(x - m) is 0 long before, and inf * 0 would be NaN."""
    cdef real d = m - x
    return 1000 if d > 1000 else d


cdef loop exp_moment_lanes(const real* x, Py_ssize_t count, Py_ssize_t hole, const real* patch, const Py_ssize_t* at, real m,
                           double* sums, double* moments, real* tops, const char* next) noexcept nogil:
    """exp_sum_lanes, the sums to the same bits, and per lane 2^64 times the sum of (m - x) exp(x - m)."""
    cdef real exps[EXPS]
    cdef real reference[LANES]
    cdef real top[LANES]
    cdef double t[LANES]
    cdef double w[LANES]
    cdef Py_ssize_t i = 0, k, vectors
    cdef int j
    cdef const real* e
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    if FK_REGISTERS >= 32:
        exp_sum_runs(x, count, hole, patch, at, m, True, sums, moments, tops, next, NULL)
        return
    for j in range(LANES):
        reference[j] = m
        top[j] = -INFINITY
        t[j] = w[j] = 0
    while i < count:
        vectors = vectors_at_once(count - i)
        exp_vectors(x, i, vectors, patch, at, reference, top, exps, next, NULL)
        if i * LANES <= hole < (i + vectors) * LANES:
            exps[hole - i * LANES] = 0
        add_exps(exps, vectors, t)
        e = exps
        k = 0
        while k + RUN <= vectors:
            v0 = vector_at(x, i + k, patch, at)
            v1 = vector_at(x, i + k + 1, patch, at)
            v2 = vector_at(x, i + k + 2, patch, at)
            v3 = vector_at(x, i + k + 3, patch, at)
            for j in range(LANES):
                w[j] += ((fall(m, v0[j]) * e[j] + fall(m, v1[j]) * e[LANES + j])
                         + (fall(m, v2[j]) * e[2 * LANES + j] + fall(m, v3[j]) * e[3 * LANES + j]))
            e += RUN * LANES
            k += RUN
        while k < vectors:
            v0 = vector_at(x, i + k, patch, at)
            for j in range(LANES):
                w[j] += fall(m, v0[j]) * e[j]
            e += LANES
            k += 1
        i += vectors
    for j in range(LANES):
        sums[j] = t[j]
        moments[j] = w[j]
        tops[j] = top[j]


cdef inline real untied(real e, real x, real m, uint32_t* ties) noexcept nogil:
    """e, or 0 where x equals m; floats that do are counted."""
    if real is float:
        ties[0] += x == m
    return 0 if x == m else e     # e has been read in any case: of a read in here gcc would make a masked load, or a branch


cdef inlined add_untied(const real* v, const real* e, int run, const real* m, bint moments, double* t, double* w,
                        uint32_t* ties32, uint64_t* ties64) noexcept nogil:
    """Add the exponentials e of `run` vectors v, at most RUN, to the lanes' sums t, but for elements at the maximum m, which
    are counted in ties, of the data's size; and if asked (m - v) e to w."""
    cdef real s, u
    cdef uint32_t hits32
    cdef uint64_t hits64
    cdef int j
    for j in range(LANES):
        hits32 = 0
        s = untied(e[j], v[j], m[j], &hits32)
        if run > 1:
            s += untied(e[LANES + j], v[LANES + j], m[j], &hits32)
        if run > 2:
            s += untied(e[2 * LANES + j], v[2 * LANES + j], m[j], &hits32)
        if run > 3:
            s += untied(e[3 * LANES + j], v[3 * LANES + j], m[j], &hits32)
        t[j] += s
        if real is float:
            ties32[j] += hits32
        if moments:
            u = fall(m[j], v[j]) * e[j]
            if run > 1:
                u += fall(m[j], v[LANES + j]) * e[LANES + j]
            if run > 2:
                u += fall(m[j], v[2 * LANES + j]) * e[2 * LANES + j]
            if run > 3:
                u += fall(m[j], v[3 * LANES + j]) * e[3 * LANES + j]
            w[j] += u
    if real is double:
        # In a loop of its own: without AVX gcc would make scalar code of both.
        for j in range(LANES):
            hits64 = v[j] == m[j]
            if run > 1:
                hits64 += v[LANES + j] == m[j]
            if run > 2:
                hits64 += v[2 * LANES + j] == m[j]
            if run > 3:
                hits64 += v[3 * LANES + j] == m[j]
            ties64[j] += hits64


cdef inlined tied_sums(const real* x, Py_ssize_t count, const real* maxima, bint moments, double* sums, double* moment,
                       double* ties, const char* next, Outflow* outflow) noexcept nogil:
    """tied_sum_lanes and tied_moment_lanes."""
    cdef real exps[EXPS]
    cdef real m[LANES]
    cdef double t[LANES]
    cdef double w[LANES]
    cdef uint32_t hits32[LANES]
    cdef uint64_t hits64[LANES]
    cdef Py_ssize_t i = 0, k, vectors
    cdef int j
    cdef const real* v
    cdef const real* e
    for j in range(LANES):
        m[j] = maxima[j]
        t[j] = w[j] = 0
        hits32[j] = hits64[j] = 0
    while i < count:
        vectors = vectors_at_once(count - i)
        exp_run(x, i, vectors, m, exps, next, outflow)
        v = x + i * LANES
        e = exps
        for k in range(vectors // RUN):
            add_untied(v, e, RUN, m, moments, t, w, hits32, hits64)
            v += RUN * LANES
            e += RUN * LANES
        # Of a number that is known to the compiler each becomes a loop over the lanes.
        if vectors % RUN == 1:
            add_untied(v, e, 1, m, moments, t, w, hits32, hits64)
        elif vectors % RUN == 2:
            add_untied(v, e, 2, m, moments, t, w, hits32, hits64)
        elif vectors % RUN == 3:
            add_untied(v, e, 3, m, moments, t, w, hits32, hits64)
        i += vectors
    for j in range(LANES):
        sums[j] = t[j] * FK_DOWN
        ties[j] = <double>hits32[j] if real is float else double_from_u52(hits64[j])
        if moments:
            moment[j] = w[j] * FK_DOWN


cdef loop tied_sum_lanes(const real* x, Py_ssize_t count, const real* maxima, double* sums, double* ties, const char* next,
                         Outflow* outflow) noexcept nogil:
    """Per lane, where the maximum is known: the sum of exp(x - maximum) over the elements below it and the number of those
    that equal it. For `next` and `outflow` see exp_run."""
    tied_sums(x, count, maxima, False, sums, NULL, ties, next, outflow)


cdef loop tied_moment_lanes(const real* x, Py_ssize_t count, const real* maxima, double* sums, double* moment, double* ties,
                            const char* next) noexcept nogil:
    """tied_sum_lanes, and the sum of (maximum - x) exp(x - maximum)."""
    tied_sums(x, count, maxima, True, sums, moment, ties, next, NULL)


cdef loop weighted_lanes(const real* x, const real* b, Py_ssize_t count, const real* patch, const Py_ssize_t* at,
                         const real* b_patch, const real* reference, double* sums) noexcept nogil:
    """Per lane: 2^64 times the sum of b exp(x - reference) over the elements with b != 0."""
    cdef real m[LANES]
    cdef real s[LANES]
    cdef real e[LANES]
    cdef double t[LANES]
    cdef Py_ssize_t i = 0, stop
    cdef int j
    cdef const real* v
    cdef const real* w
    for j in range(LANES):
        m[j] = reference[j]
        t[j] = 0
    while i < count:
        stop = i + RUN if i + RUN < count else count
        for j in range(LANES):
            s[j] = 0
        while i < stop:
            v = vector_at(x, i, patch, at)
            w = vector_at(b, i, b_patch, at)
            exp_vector(v, m, e)
            for j in range(LANES):
                e[j] *= w[j]
                s[j] += 0 if w[j] == 0 else e[j]
            i += 1
        for j in range(LANES):
            t[j] += s[j]
    for j in range(LANES):
        sums[j] = t[j]


cdef inline int lane_of(const real* tops, real top) noexcept nogil:
    """The first lane that holds the maximum."""
    cdef int numbers[LANES]
    cdef int j, lane = LANES - 1
    for j in range(LANES):
        numbers[j] = j if tops[j] == top else LANES - 1
    for j in range(LANES):
        lane = numbers[j] if numbers[j] < lane else lane
    return lane


cdef inline Py_ssize_t first_in_lane(const real* x, Py_ssize_t i, Py_ssize_t count, real top) noexcept nogil:
    """The first vector from i on, before count, whose lane is top: sought from the end, without a branch, for which it is no
    processor foresees, and by bits, which are compared faster (a zero has two)."""
    cdef Py_ssize_t k, found = count
    if top == 0:
        for k from count > k >= i by 1:
            found = k if x[k * LANES] == top else found
    elif real is float:
        for k from count > k >= i by 1:
            found = k if bits_f32(x[k * LANES]) == bits_f32(top) else found
    else:
        for k from count > k >= i by 1:
            found = k if bits_f64(x[k * LANES]) == bits_f64(top) else found
    return found


cdef inline Py_ssize_t find_top(const real* x, Py_ssize_t n, Py_ssize_t hole, int lane, real top) noexcept nogil:
    """Index of an element equal to the maximum of a block without its element `hole`: the first in the lane."""
    cdef Py_ssize_t count = n // LANES + (lane < n % LANES)
    cdef Py_ssize_t found = first_in_lane(x + lane, 0, count, top)
    if found * LANES + lane == hole:
        found = first_in_lane(x + lane, found + 1, count, top)
    return found * LANES + lane if found < count else -1     # not reached: the maximum is one of these


cdef inline void rescale(State* st, double m) noexcept nogil:
    """Move the sums to the reference m > st.m: the old top is one element among others now."""
    cdef double f = exp_up_f64(st.m - m) * FK_DOWN
    two_sum_add(&st.s, &st.s_lo, st.c)
    if st.s == 0:
        st.u = st.u_lo = 0     # nothing above -inf yet, and m - st.m may overflow
    else:
        st.u = (st.u + (m - st.m) * st.s) * f
        st.u_lo *= f
    st.s *= f
    st.s_lo *= f
    st.v *= f * f
    st.v_lo *= f * f
    st.c = 0
    st.m = m


cdef inline Py_ssize_t lay_block(const real* x, Py_ssize_t n, Py_ssize_t hole, real* patch,
                                 Py_ssize_t* at) noexcept nogil:
    """The vectors of a block whose element `hole` (the label's), if not -1, is absent."""
    cdef Py_ssize_t count = start_patches(x, n, <real>-INFINITY, patch, at)
    if hole >= 0:
        open_patch(x, n, hole // LANES, <real>-INFINITY, patch, at)[hole % LANES] = -INFINITY
    return count


cdef inline void set_reference(const real* x, Py_ssize_t n, Py_ssize_t hole, int lane, real top,
                               State* st) noexcept nogil:
    """Take a block's maximum, which stands in that lane, as the reference, and note where."""
    if top == -INFINITY:
        st.m = lowest(top)     # finite, so that x - m is -inf and not NaN; any other element exceeds it
        st.top_at = -1
    else:
        st.m = top
        st.top_at = find_top(x, n, hole, lane, top)


cdef void open_first_blocks(const real** x, Py_ssize_t rows, Py_ssize_t n, const Py_ssize_t* holes, State* states) noexcept nogil:
    """Find the first blocks' maxima, but for rows whose hole is SKIPPED. In steps, each for some rows at once: those from a
    row's elements to its maximum, where that stands, and its sum wait for one another, those of different rows do not."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[OPENED * LANES]
    cdef real top[OPENED]
    cdef int lanes[OPENED]
    cdef Py_ssize_t first, size, i, count
    for first from 0 <= first < rows by OPENED:
        size = OPENED if first + OPENED < rows else rows - first
        for i in range(size):
            if holes[first + i] != SKIPPED:
                count = lay_block(x[first + i], n, holes[first + i], patch, at)
                max_lanes(x[first + i], count, patch, at, tops + i * LANES)
        for i in range(size):
            if holes[first + i] != SKIPPED:
                top[i] = fold_max(tops + i * LANES)
                lanes[i] = lane_of(tops + i * LANES, top[i])
        for i in range(size):
            if holes[first + i] != SKIPPED:
                set_reference(x[first + i], n, holes[first + i], lanes[i], top[i], &states[first + i])


cdef inline void open_row(const real* x, Py_ssize_t n, Py_ssize_t hole, State* st) noexcept nogil:
    open_first_blocks(&x, 1, n, &hole, st)


cdef void logsumexp_block(const real* x, Py_ssize_t n, Py_ssize_t hole, bint moments, const char* next, Outflow* outflow,
                          State* st) noexcept nogil:
    """Add a block to the state of a row that has been opened."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[LANES]
    cdef double sums[LANES]
    cdef double moment[LANES]
    cdef Py_ssize_t count = lay_block(x, n, hole, patch, at), i, top_at
    cdef int j, above
    cdef real top, limit
    while True:
        top_at = st.top_at
        if top_at >= 0:
            st.c = 1
            st.top_at = -1
        if st.m == INFINITY:
            # The row's sum is infinite: all that is left to find is a NaN, which wins.
            for i in range(count * LANES):
                top = vector_at(x, i // LANES, patch, at)[i % LANES]
                if top != top:
                    st.s = NAN
            return
        limit = <real>(st.m + 1)
        if moments:
            exp_moment_lanes(x, count, top_at, patch, at, <real>st.m, sums, moment, tops, next)
        else:
            exp_sum_lanes(x, count, top_at, patch, at, <real>st.m, sums, tops, next, outflow)
        above = 0
        for j in range(LANES):
            above |= tops[j] > limit
        if not above:
            break
        top = fold_max(tops)
        rescale(st, top)
        set_reference(x, n, hole, lane_of(tops, top), top, st)
    two_sum_add(&st.s, &st.s_lo, fold_sum(sums) * FK_DOWN)
    if moments:
        two_sum_add(&st.u, &st.u_lo, fold_sum(moment) * FK_DOWN)


cdef void weighted_block(const real* x, const real* b, Py_ssize_t n, real* scratch, State* st) noexcept nogil:
    """logsumexp with weights: an element of weight 0 is absent, whatever it holds. scratch: BLOCK elements."""
    cdef real patch[3 * LANES]
    cdef real b_patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef Py_ssize_t b_at[3]
    cdef real tops[LANES]
    cdef real m[LANES]
    cdef double sums[LANES]
    cdef Py_ssize_t i, count, top_at
    cdef int j
    cdef real top
    cdef bint nan = False
    for i in range(n):
        scratch[i] = x[i] if b[i] != 0 else <real>-INFINITY
    count = start_patches(scratch, n, <real>-INFINITY, patch, at)
    start_patches(b, n, <real>0, b_patch, b_at)
    max_lanes(scratch, count, patch, at, tops)
    top = fold_max(tops)
    if top > st.m:
        if st.m == -INFINITY:
            st.m = top
        else:
            rescale(st, top)
        if top < INFINITY:
            top_at = find_top(scratch, n, <Py_ssize_t>-1, lane_of(tops, top), top)
            st.c = b[top_at]
            open_patch(scratch, n, top_at // LANES, <real>-INFINITY, patch, at)[top_at % LANES] = -INFINITY
            open_patch(b, n, top_at // LANES, <real>0, b_patch, b_at)[top_at % LANES] = 0
    elif st.m == -INFINITY:
        st.m = lowest(top)
    if st.m == INFINITY:
        # Infinite elements: their weights say which infinity it is, or that there is none (inf - inf).
        for i in range(n):
            if scratch[i] == INFINITY:
                two_sum_add(&st.s, &st.s_lo, b[i] * INFINITY)
            elif scratch[i] != scratch[i] or b[i] != b[i]:
                st.s = NAN
        return
    for j in range(LANES):
        m[j] = <real>st.m
    weighted_lanes(scratch, b, count, patch, at, b_patch, m, sums)
    two_sum_add(&st.s, &st.s_lo, fold_sum(sums) * FK_DOWN)


cdef void logsumexp_across(const real* tile, Py_ssize_t classes, bint moments, const char* next, Outflow* outflow, Sums* a,
                           Py_ssize_t first) noexcept nogil:
    """LANES short rows, one lane a row, rows first .. first + LANES of the sums: tile[c*LANES + j] is class c of the j-th;
    c counts the elements at the maximum."""
    cdef real top[LANES]
    cdef int j
    max_across(tile, classes, top)
    for j in range(LANES):
        top[j] = lowest(top[j]) if top[j] == -INFINITY else top[j]
        a.m[first + j] = top[j]
        a.s_lo[first + j] = a.u_lo[first + j] = 0
    if moments:
        tied_moment_lanes(tile, classes, top, a.s + first, a.u + first, a.c + first, next)
    else:
        tied_sum_lanes(tile, classes, top, a.s + first, a.c + first, next, outflow)


cdef void merge_logsumexp(State* st, State* other) noexcept nogil:
    """Add a later chunk's sums to a row's. The larger reference stays, the earlier one where they are equal."""
    cdef State swapped
    if other.m > st.m:
        swapped = st[0]
        st[0] = other[0]
        other[0] = swapped
    if other.m < st.m:
        rescale(other, st.m)
    two_sum_add(&st.s, &st.s_lo, other.c)
    two_sum_add(&st.s, &st.s_lo, other.s)
    st.s_lo += other.s_lo
    two_sum_add(&st.u, &st.u_lo, other.u)
    st.u_lo += other.u_lo
    two_sum_add(&st.v, &st.v_lo, other.v)
    st.v_lo += other.v_lo


cdef inline double excess(const Sums* a, Py_ssize_t j) noexcept nogil:
    """c + s - 1, c being 1 or near it: exact where s is small."""
    return ((a.c[j] - 1) + a.s[j]) + a.s_lo[j]


cdef inline Py_ssize_t whole_groups(Py_ssize_t rows) noexcept nogil:
    """Rows as whole vectors of 8: what the lanes past the last row hold is computed, too, and not looked at."""
    return (rows + 7) // 8 * 8


# The logarithms are made in steps, each for all rows of a tile: a row's steps wait for one another, those of others do not.

cdef void logs_of_sums(const double* y, Py_ssize_t whole, double* hi, double* lo) noexcept nogil:
    """log(1 + y) = hi + lo of whole groups of rows, hi a multiple of ln 2."""
    cdef double f[TILE]
    cdef double s[TILE]
    cdef double k[TILE]
    cdef Py_ssize_t j
    for j in range(whole):
        f[j] = split_sum_f64(y[j], &k[j])
        s[j] = f[j] / (2 + f[j])
    for j in range(whole):
        log1p_sum_join_f64(y[j], f[j], s[j], k[j], &hi[j], &lo[j])


cdef void single_logs_of_sums(const double* y, Py_ssize_t whole, double* log_sum) noexcept nogil:
    """The same as one number, for results in float, which a double has digits enough for."""
    cdef double f[TILE]
    cdef double k[TILE]
    cdef Py_ssize_t j
    for j in range(whole):
        f[j] = split_sum_f64(y[j], &k[j])
    for j in range(whole):
        log_sum[j] = log1p_sum_join_f32(y[j], f[j], k[j])


cdef inline void excesses(const Sums* a, Py_ssize_t whole, double* y) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(whole):
        y[j] = excess(a, j)


cdef void finish_logsumexp(const Sums* a, Py_ssize_t rows, bint single, double* out) noexcept nogil:
    """m + log(c + s). The log comes as k ln 2 + rest: m + k ln 2 is added exactly first, so that nothing is lost where m is
    near -log(c + s). single: for results in float."""
    cdef double y[TILE]
    cdef double hi[TILE]
    cdef double lo[TILE]
    cdef double sum, b, tail
    cdef Py_ssize_t j, whole = whole_groups(rows)
    excesses(a, whole, y)
    if single:
        single_logs_of_sums(y, whole, lo)
        for j in range(whole):
            out[j] = a.m[j] + lo[j]
        return
    logs_of_sums(y, whole, hi, lo)
    for j in range(whole):
        sum = a.m[j] + hi[j]
        b = sum - a.m[j]
        tail = (a.m[j] - (sum - b)) + (hi[j] - b)
        tail = tail if tail == tail else 0       # m infinite
        out[j] = sum + (tail + lo[j])


cdef void finish_weighted(const Sums* a, Py_ssize_t rows, bint signed, double* out, double* sign) noexcept nogil:
    """m + log abs(c + s), and the sign of c + s; without signed a negative total is NaN."""
    cdef double total, flip, y, hi, lo, sum, b, tail
    cdef Py_ssize_t j
    cdef int k
    for j in range(rows):
        total = a.c[j] + closed(a.s[j], a.s_lo[j])
        sign[j] = 1 if total > 0 else (-1 if total < 0 else total)    # 0 and NaN stay
        if total != total or (total < 0 and not signed):
            out[j] = NAN
        elif total == 0:
            out[j] = -INFINITY
        elif total - total != 0:
            out[j] = INFINITY
        else:
            flip = 1 if total > 0 else -1
            total *= flip
            k = 0
            if 0.5 < total < 2:
                y = ((flip * a.c[j] - 1) + flip * a.s[j]) + flip * a.s_lo[j]
            else:
                y = 2 * frexp(total, &k) - 1     # exact; total = 2^(k-1) (1 + y)
                k -= 1
            log1p_split_f64(y, &hi, &lo)
            hi += k * LN2_HI_F64
            sum = a.m[j] + hi
            b = sum - a.m[j]
            tail = (a.m[j] - (sum - b)) + (hi - b)
            out[j] = sum + (tail + (lo + k * LN2_LO_F64))


cdef inline double entropy_of(const Sums* a, Py_ssize_t j, double log_sum, double scale) noexcept nogil:
    cdef double y = (log_sum + (a.u[j] + a.u_lo[j]) / (1 + excess(a, j))) * scale
    # no distribution: an infinite logit, or none above -inf
    y = NAN if a.m[j] == INFINITY else y
    return NAN if a.c[j] + a.s[j] == 0 else y


cdef void finish_entropy_of_logits(const Sums* a, Py_ssize_t rows, double scale, bint single,
                                   double* out) noexcept nogil:
    """H = log(c + s) + u / (c + s): both parts are >= 0 up to the rounding of m, so nothing cancels. single: as in
    finish_logsumexp."""
    cdef double y[TILE]
    cdef double hi[TILE]
    cdef double lo[TILE]
    cdef Py_ssize_t j, whole = whole_groups(rows)
    excesses(a, whole, y)
    if single:
        single_logs_of_sums(y, whole, lo)
        for j in range(whole):
            out[j] = entropy_of(a, j, lo[j], scale)
        return
    logs_of_sums(y, whole, hi, lo)
    for j in range(whole):
        out[j] = entropy_of(a, j, hi[j] + lo[j], scale)


# ---- softmax and log_softmax ----------------------------------------------------------------------------------------------
# A softmax of at most CHUNK classes keeps its exponentials in the output and scales them there, each block by a factor of
# its own. Longer rows, whose output would have left the cache, and log_softmax read the row a second time.

cdef inlined exp_store_run(const real* x, const real* m, real* out, double* t, double* t_lo, const char* next,
                           Outflow* outflow) noexcept nogil:
    """exp_store_lanes of RUN vectors, for 32 registers, which hold them."""
    cdef real e[RUN * LANES]
    cdef int j
    fk_prefetch(next, 0, RUN * LANES * sizeof(real))
    flow(outflow, RUN, x)
    for j in range(LANES):
        e[j] = exp_up(x[j] - m[j])
        e[LANES + j] = exp_up(x[LANES + j] - m[j])
        e[2 * LANES + j] = exp_up(x[2 * LANES + j] - m[j])
        e[3 * LANES + j] = exp_up(x[3 * LANES + j] - m[j])
        if real is float:
            t[j] += <double>(e[j] + e[LANES + j]) + <double>(e[2 * LANES + j] + e[3 * LANES + j])
        else:
            two_sum_add(&t[j], &t_lo[j], (e[j] + e[LANES + j]) + (e[2 * LANES + j] + e[3 * LANES + j]))
    for j in range(RUN * LANES):
        out[j] = e[j]


cdef loop exp_store_lanes(const real* x, Py_ssize_t n, const real* patch, const Py_ssize_t* at, real m, real* out,
                          double* sums, const char* next, Outflow* outflow) noexcept nogil:
    """out = 2^64 exp(x - m) of n elements, out may be x; and its sum per lane, as if it were of more digits than the data:
    small ones added to a 1 one after another would all be rounded the same way. For `next` and `outflow` see exp_run."""
    cdef real exps[EXPS]
    cdef real reference[LANES]
    cdef real absent[LANES]
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef Py_ssize_t i = 0, j, k, size, vectors, count = (n + LANES - 1) // LANES
    cdef const real* e
    cdef real* y
    for j in range(LANES):
        reference[j] = m
        t[j] = t_lo[j] = 0
    if FK_REGISTERS >= 32:
        while (i + RUN) * LANES <= n:     # no tail, the only vector that is patched
            exp_store_run(x + i * LANES, reference, out + i * LANES, t, t_lo,
                          next + i * LANES * sizeof(real) if next != NULL else NULL, outflow)
            i += RUN
    while i < count:
        vectors = vectors_at_once(count - i)
        if FK_REGISTERS >= 32 and real is float:
            # Less than another whole run, and none of its vectors waits for another.
            fk_prefetch(next, i * LANES * sizeof(real), vectors * LANES * sizeof(real))
            flow(outflow, vectors, x)
            for j in range(LANES):
                absent[j] = -INFINITY
            exp_four(vector_at(x, i, patch, at), vector_at(x, i + 1, patch, at) if vectors > 1 else absent,
                     vector_at(x, i + 2, patch, at) if vectors > 2 else absent,
                     vector_at(x, i + 3, patch, at) if vectors > 3 else absent, reference, exps)
        else:
            exp_vectors(x, i, vectors, patch, at, reference, NULL, exps, next, outflow)
        e = exps
        k = 0
        while k + RUN <= vectors:
            for j in range(LANES):
                if real is float:
                    t[j] += <double>(e[j] + e[LANES + j]) + <double>(e[2 * LANES + j] + e[3 * LANES + j])
                else:
                    two_sum_add(&t[j], &t_lo[j], (e[j] + e[LANES + j]) + (e[2 * LANES + j] + e[3 * LANES + j]))
            e += RUN * LANES
            k += RUN
        while k < vectors:
            for j in range(LANES):
                if real is float:
                    t[j] += e[j]
                else:
                    two_sum_add(&t[j], &t_lo[j], e[j])
            e += LANES
            k += 1
        y = out + i * LANES
        size = vectors * LANES if (i + vectors) * LANES <= n else n - i * LANES
        if size < vectors * LANES:
            for j in range(size):
                y[j] = exps[j]
        else:
            for k in range(vectors):
                for j in range(LANES):
                    y[k * LANES + j] = exps[k * LANES + j]
        i += vectors
    for j in range(LANES):
        sums[j] = t[j] + t_lo[j]


cdef void settle_nans(real* tile, Py_ssize_t classes, const real* k) noexcept nogil:
    """Give the rows without a softmax, whose factor is NaN, one NaN; see put_rows."""
    cdef Py_ssize_t c
    cdef int j
    for j in range(LANES):
        if k[j] != k[j]:
            for c in range(classes):
                tile[c * LANES + j] = NAN


cdef inline double softmax_factor(double m, double sum) noexcept nogil:
    """What turns 2^64 exp(x - m) into a probability, sum being 2^64 times that of exp(x - m)."""
    cdef double k = 1 / sum
    k = NAN if m == INFINITY else k
    return NAN if sum == 0 else k


# A row's softmax while it is made: m[b], the reference of its b-th block, and s, the sum so far relative to 2^64 exp(m of
# the last block).
cdef struct SoftmaxRow:
    double m[BLOCKS]
    double s


cdef void softmax_again(const real* x, Py_ssize_t n, Py_ssize_t b, const SoftmaxRow* row, real* y) noexcept nogil:
    """y = 2^64 exp(x - m[b]), the same bits as softmax_block's."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double sums[LANES]
    start_patches(x, n, <real>-INFINITY, patch, at)
    exp_store_lanes(x, n, patch, at, <real>row.m[b], y, sums, NULL, NULL)


cdef void open_softmax(const real* x, Py_ssize_t n, Py_ssize_t b, SoftmaxRow* row) noexcept nogil:
    """Choose m[b], b being the block's number, and start or rescale the sum."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[LANES]
    cdef Py_ssize_t count = start_patches(x, n, <real>-INFINITY, patch, at)
    cdef real top
    max_lanes(x, count, patch, at, tops)
    top = fold_max(tops)
    if b == 0:
        row.m[0] = lowest(top) if top == -INFINITY else top
        row.s = 0
    elif top > row.m[b - 1] + 1:
        row.m[b] = top
        row.s *= exp_up_f64(row.m[b - 1] - top) * FK_DOWN
    else:
        row.m[b] = row.m[b - 1]


cdef void softmax_block(const real* x, Py_ssize_t n, Py_ssize_t b, SoftmaxRow* row, real* y, const char* next,
                        Outflow* outflow) noexcept nogil:
    """y = 2^64 exp(x - m[b]); y may be x."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef double sums[LANES]
    start_patches(x, n, <real>-INFINITY, patch, at)
    exp_store_lanes(x, n, patch, at, <real>row.m[b], y, sums, next, outflow)
    row.s += fold_sum(sums)


cdef inline real block_factor(const SoftmaxRow* row, Py_ssize_t b, Py_ssize_t last, const real* like) noexcept nogil:
    """What a block's exponentials are to be multiplied by and then by 2^-64, with which the factor might be denormal; last: the
    number of the row's last block."""
    return <real>(softmax_factor(row.m[last], row.s * FK_DOWN) * (exp_up_f64(row.m[b] - row.m[last]) * FK_DOWN))


cdef void softmax_scale(real* y, Py_ssize_t n, const SoftmaxRow* row, Py_ssize_t b, Py_ssize_t last) noexcept nogil:
    """Turn a block's exponentials into probabilities."""
    cdef Py_ssize_t i = 0, whole = n & -LANES
    cdef int j
    cdef real k = block_factor(row, b, last, y)
    cdef real down = FK_DOWN
    if k != k:
        for i in range(n):
            y[i] = NAN     # one NaN, see put_rows
        return
    while i < whole:
        for j in range(LANES):
            y[i + j] = y[i + j] * k * down
        i += LANES
    for i in range(whole, n):
        y[i] = y[i] * k * down


cdef void softmax_outflow(real* e, Py_ssize_t n, const SoftmaxRow* row, Py_ssize_t b, Py_ssize_t last, char* to,
                          Outflow* outflow) noexcept nogil:
    """softmax_scale of exponentials that go `to` memory while others take their place: each line is read before."""
    cdef Py_ssize_t i
    cdef real k = block_factor(row, b, last, e)
    cdef real down = FK_DOWN
    if k != k:
        for i in range(n):
            e[i] = NAN
        k = down = 1
    start_flow(outflow, to, e, n, k, down, FLOWS_SCALED)


cdef loop exp_across_lanes(real* tile, Py_ssize_t classes, const real* maxima, double* sums, const char* next,
                           Outflow* outflow) noexcept nogil:
    """exp_store_lanes of a tile of short rows, in place: the exponentials and then their sums, two of them added in the
    data's own type."""
    cdef double t[LANES]
    cdef double t_lo[LANES]
    cdef Py_ssize_t c
    cdef int j
    cdef const real* v
    cdef const real* w
    exp_run(tile, 0, classes, maxima, tile, next, outflow)
    for j in range(LANES):
        t[j] = t_lo[j] = 0
    for c in range(classes // 2):
        v = tile + 2 * c * LANES
        w = v + LANES
        for j in range(LANES):
            if real is float:
                t[j] += v[j] + w[j]
            else:
                two_sum_add(&t[j], &t_lo[j], v[j] + w[j])
    if classes % 2:
        v = tile + (classes - 1) * LANES
        for j in range(LANES):
            if real is float:
                t[j] += v[j]
            else:
                two_sum_add(&t[j], &t_lo[j], v[j])
    for j in range(LANES):
        sums[j] = t[j] + t_lo[j]


cdef void softmax_across(real* tile, Py_ssize_t classes, const char* next, Outflow* outflow) noexcept nogil:
    """A tile of short rows, in place."""
    cdef real m[LANES]
    cdef real k[LANES]
    cdef double sums[LANES]
    cdef Py_ssize_t c
    cdef int j
    cdef real* v
    max_across(tile, classes, m)
    for j in range(LANES):
        m[j] = lowest(m[j]) if m[j] == -INFINITY else m[j]
    exp_across_lanes(tile, classes, m, sums, next, outflow)
    for j in range(LANES):
        k[j] = <real>softmax_factor(m[j], sums[j])
    for c in range(classes):
        v = tile + c * LANES
        for j in range(LANES):
            v[j] *= k[j]
    settle_nans(tile, classes, k)


cdef inlined map_vector(const real* v, const real* m, real k, bint log, real* w) noexcept nogil:
    """The results of a vector: exp(x - m) * k, with k = 2^-64 / sum, or (x - m) - k, with k = log(sum)."""
    cdef int j
    if log:
        for j in range(LANES):
            w[j] = (v[j] - m[j]) - k
    else:
        exp_vector(v, m, w)
        for j in range(LANES):
            w[j] *= k


cdef loop map_block(const real* x, Py_ssize_t n, real m, real k, bint log, real* y, const char* next,
                    Outflow* outflow) noexcept nogil:
    """One row's block; y may be x. Each vector is computed whole before any of it is stored. For `next` and `outflow` see
    exp_run."""
    cdef real reference[LANES]
    cdef real w[LANES]
    cdef Py_ssize_t i = 0, whole = n - n % LANES
    cdef int j
    if k != k:
        for i in range(n):
            y[i] = NAN     # one NaN, see put_rows
        return
    for j in range(LANES):
        reference[j] = m
    while i < whole:
        fk_prefetch(next, i * sizeof(real), LANES * sizeof(real))
        flow(outflow, 1, x)
        map_vector(x + i, reference, k, log, w)
        for j in range(LANES):
            y[i + j] = w[j]
        i += LANES
    if whole < n:
        for j in range(LANES):
            w[j] = x[whole + j] if j < n - whole else <real>0
        map_vector(w, reference, k, log, w)
        for j in range(n - whole):
            y[whole + j] = w[j]


cdef void log_softmax_across(real* tile, Py_ssize_t classes, const Sums* a) noexcept nogil:
    """A tile of short rows, in place."""
    cdef double extra[TILE]
    cdef real m[LANES]
    cdef real k[LANES]
    cdef Py_ssize_t c
    cdef int j
    cdef real* v
    map_factors(a, LANES, True, real is float, extra)
    for j in range(LANES):
        m[j] = <real>a.m[j]
        k[j] = <real>extra[j]
    for c in range(classes):
        v = tile + c * LANES
        for j in range(LANES):
            v[j] = (v[j] - m[j]) - k[j]
    settle_nans(tile, classes, k)


cdef void map_factors(const Sums* a, Py_ssize_t rows, bint log, bint single, double* k) noexcept nogil:
    """What map_block calls k; NaN where the row has no softmax (a +inf, or nothing above -inf). single: as in
    finish_logsumexp."""
    cdef double y[TILE]
    cdef double lo[TILE]
    cdef Py_ssize_t j, whole = whole_groups(rows)
    excesses(a, whole, y)
    if log and single:
        single_logs_of_sums(y, whole, k)
    elif log:
        logs_of_sums(y, whole, k, lo)
        for j in range(whole):
            k[j] += lo[j]
    else:
        for j in range(whole):
            k[j] = FK_DOWN / (1 + y[j])
    for j in range(whole):
        k[j] = NAN if a.m[j] == INFINITY else k[j]
        k[j] = NAN if a.c[j] + a.s[j] == 0 else k[j]
