# score(): many statistics of a row from one read of it. Block by block (64 rows at a time where they are short), each loop
# that the statistics asked for need runs over what is in the first-level cache by then; top_k and the divergences of two
# models go over the row once more, from the second. The sums are those of logspace.pxi, block for block and lane for
# lane: lse, loss and entropy are the bits of the functions of that name.

from libc.stdint cimport int64_t

cdef extern from "vmath.h" nogil:
    float kl_fall_f32(float t, float e)
    double kl_fall_f64(double t, double e)
    float kl_rise_f32(float t, float e, float fall, float rest)
    double kl_rise_f64(double t, double e, double fall, double rest)
    float js_shape_f32(float t, float e, float rest)
    double js_shape_f64(double t, double e, double rest)

cdef struct Score:
    Plan plan
    Py_ssize_t k                    # how many classes top_k gives; 0 where it is not asked for
    bint probs[2]                   # an operand holds probabilities: their logs are taken
    double temperature[2]
    bint single                     # results are float32
    bint order                      # a statistic needs the order of the logits,
    bint sums                       # the sum of their exponentials,
    bint moments                    # the entropy's sum,
    bint loss                       # the sum without the label's,
    bint divergence                 # both models' distributions
    char* lse
    char* label_loss
    char* entropy
    char* perplexity
    char* max_prob
    char* margin
    char* kl
    char* reverse_kl
    char* js
    char* top_k_log_prob
    int64_t* top_k
    int64_t* argmax
    int64_t* rank
    char* correct
    char* agree

# What is known of the order of up to TILE rows, a lane a row.
cdef struct Order:
    double top[TILE]
    double second[TILE]
    double above[TILE]              # logits greater than the label's
    int nan[TILE]
    Py_ssize_t argmax[TILE]

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


# ---- the order of the logits ---------------------------------------------------------------------------------------------

cdef loop order_lanes(const real* x, Py_ssize_t count, const real* patch, const Py_ssize_t* at, const real* labels,
                      bint counts, bint checks, real* tops, real* seconds, double* above, real* nans,
                      Py_ssize_t ahead) noexcept nogil:
    """Per lane: the two largest; with `counts` how many exceed the label's; with `checks` how many are NaN, which the
    others pass over. What lies `ahead` bytes further on is prefetched."""
    cdef real label[LANES]
    cdef real top[LANES]
    cdef real second[LANES]
    cdef real greater[LANES]
    cdef real odd[LANES]
    cdef real low
    cdef Py_ssize_t i
    cdef int j
    cdef const real* v
    for j in range(LANES):
        top[j] = second[j] = -INFINITY
        greater[j] = odd[j] = 0
    for i in range(count):
        v = vector_at(x, i, patch, at)
        if ahead != 0:
            fk_prefetch(<const char*>(x + i * LANES) + ahead, LANES * sizeof(real))
        for j in range(LANES):
            low = v[j] if v[j] < top[j] else top[j]
            second[j] = low if low > second[j] else second[j]
            top[j] = v[j] if v[j] > top[j] else top[j]
    if counts:
        for j in range(LANES):
            label[j] = labels[j]
        for i in range(count):
            v = vector_at(x, i, patch, at)
            for j in range(LANES):
                greater[j] += 1 if v[j] > label[j] else 0
    if checks:
        for i in range(count):
            v = vector_at(x, i, patch, at)
            for j in range(LANES):
                odd[j] += 1 if v[j] != v[j] else 0
    for j in range(LANES):
        tops[j] = top[j]
        seconds[j] = second[j]
        above[j] = greater[j]
        nans[j] = odd[j]


cdef loop argmax_lanes(const real* x, Py_ssize_t count, const real* tops, real* index) noexcept nogil:
    """Per lane: the first vector that holds the lane's maximum."""
    cdef real top[LANES]
    cdef real at[LANES]
    cdef Py_ssize_t i
    cdef int j
    cdef real number
    for j in range(LANES):
        top[j] = tops[j]
        at[j] = count
    for i in range(count - 1, -1, -1):
        number = <real>i
        for j in range(LANES):
            at[j] = number if x[i * LANES + j] == top[j] else at[j]
    for j in range(LANES):
        index[j] = at[j]


cdef inline void fold_two_largest(real* top, real* second) noexcept nogil:
    """Fold 64 lanes' two largest into top[0] and second[0]; both are overwritten."""
    cdef int j, w = 32
    cdef real low, high
    while w > 0:
        for j in range(w):
            low = top[j] if top[j] < top[j + w] else top[j + w]
            high = second[j] if second[j] > second[j + w] else second[j + w]
            second[j] = low if low > high else high
            top[j] = top[j] if top[j] > top[j + w] else top[j + w]
        w >>= 1


cdef inline Py_ssize_t find_first(const real* x, Py_ssize_t n, real value) noexcept nogil:
    """The first of n elements that equals a value, which is among them."""
    cdef Py_ssize_t i = 0
    cdef int j, hit = 0
    while i + LANES <= n:
        for j in range(LANES):
            hit |= x[i + j] == value
        if hit:
            break
        i += LANES
    while x[i] != value:
        i += 1
    return i


cdef void order_block(const Score* sc, const real* x, Py_ssize_t n, Py_ssize_t first, Py_ssize_t row, double label,
                      Order* o, bint checks, Py_ssize_t ahead, State* opened) noexcept nogil:
    """Add a block that starts at class `first` to what is known of a row's order; its maximum opens a state, if given."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real labels[LANES]
    cdef real tops[LANES]
    cdef real top[LANES]
    cdef real second[LANES]
    cdef double above[LANES]
    cdef real nans[LANES]
    cdef int j, odd = 0
    cdef Py_ssize_t count = start_patches(x, n, <real>-INFINITY, patch, at)
    for j in range(LANES):
        labels[j] = <real>label
    order_lanes(x, count, patch, at, labels, sc.rank != NULL and label < INFINITY, checks, tops, second,
                above, nans, ahead)
    for j in range(LANES):
        top[j] = tops[j]
        odd |= nans[j] != 0
    fold_two_largest(top, second)
    if sc.rank != NULL:
        o.above[row] += fold_sum(above)
    o.nan[row] |= odd
    if opened != NULL:
        set_reference(x, count, patch, at, tops, top[0], opened)
    if top[0] > o.top[row]:
        o.second[row] = second[0] if second[0] > o.top[row] else o.top[row]
        o.top[row] = top[0]
        o.argmax[row] = first + find_first(x, n, top[0])
    elif top[0] > o.second[row]:
        o.second[row] = top[0]


cdef void order_across(const Score* sc, const real* tile, Py_ssize_t classes, const double* labels,
                       bint checks, Order* o) noexcept nogil:
    """The order of a tile of short rows, one lane a row."""
    cdef Py_ssize_t at[3]
    cdef real label[LANES]
    cdef real top[LANES]
    cdef real second[LANES]
    cdef real index[LANES]
    cdef real nans[LANES]
    cdef int j
    at[0] = at[1] = at[2] = -1
    for j in range(LANES):
        label[j] = <real>labels[j]
    order_lanes(tile, classes, tile, at, label, sc.rank != NULL, checks, top, second, o.above, nans, 0)
    argmax_lanes(tile, classes, top, index)
    for j in range(LANES):
        o.top[j] = top[j]
        o.second[j] = second[j]
        o.nan[j] = nans[j] != 0
        o.argmax[j] = <Py_ssize_t>index[j]


cdef inline void note_nans(const Sums* full, Order* o, Py_ssize_t rows) noexcept nogil:
    """A NaN shows in the sums: where there are some, the order has not looked for it."""
    cdef Py_ssize_t i
    for i in range(rows):
        o.nan[i] = excess(full, i) != excess(full, i)


cdef inline bint before(real x, int64_t i, real y, int64_t j) noexcept nogil:
    """Whether the class i of logit x comes before j of y: the larger logit, of equal ones the smaller class."""
    return x > y or (x == y and i < j)


cdef void sift_down(real* value, int64_t* index, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    """Restore a heap, whose root is the last in order, below a place."""
    cdef Py_ssize_t child = 2 * at + 1
    cdef real v = value[at]
    cdef int64_t i = index[at]
    while child < size:
        if child + 1 < size and before(value[child], index[child], value[child + 1], index[child + 1]):
            child += 1
        if not before(v, i, value[child], index[child]):
            break
        value[at] = value[child]
        index[at] = index[child]
        at = child
        child = 2 * at + 1
    value[at] = v
    index[at] = i


cdef void select_top(const real* x, Py_ssize_t n, Py_ssize_t first, Py_ssize_t k, real* value,
                     int64_t* index) noexcept nogil:
    """Go on selecting a row's k largest with n elements from class `first` on: the heap's root is the one to beat. An
    element that equals it is no better, for its class is larger."""
    cdef Py_ssize_t i = 0, c
    cdef int j, hit
    while i < n and first + i < k:
        value[first + i] = x[i]
        index[first + i] = first + i
        i += 1
        if first + i == k:
            for c in range(k // 2 - 1, -1, -1):
                sift_down(value, index, k, c)
    while i < n:
        c = i + LANES if i + LANES < n else n
        hit = c - i < LANES
        for j in range(LANES if c - i == LANES else 0):
            hit |= x[i + j] > value[0]
        while hit and i < c:
            if x[i] > value[0]:
                value[0] = x[i]
                index[0] = first + i
                sift_down(value, index, k, 0)
            i += 1
        i = c


cdef void sort_top(Py_ssize_t k, real* value, int64_t* index) noexcept nogil:
    """Bring the heap into order: again and again its root goes to its end."""
    cdef Py_ssize_t size = k - 1
    cdef real v
    cdef int64_t i
    while size > 0:
        v = value[0]
        i = index[0]
        value[0] = value[size]
        index[0] = index[size]
        value[size] = v
        index[size] = i
        sift_down(value, index, size, 0)
        size -= 1


cdef void select_across(const real* tile, Py_ssize_t classes, Py_ssize_t k, real* values, real* index) noexcept nogil:
    """The k largest of a tile of short rows, one lane a row, by insertion from the last place up: place t of lane j is at
    t * LANES + j. What is not there yet is a NaN, which nothing is behind."""
    cdef Py_ssize_t c, t
    cdef int j
    cdef real number
    cdef const real* v
    cdef real* w
    cdef real* u
    cdef bint behind
    for c in range(k * LANES):
        values[c] = NAN
    for c in range(classes):
        number = <real>c
        v = tile + c * LANES
        for t in range(k - 1, 0, -1):
            w = values + t * LANES
            u = index + t * LANES
            for j in range(LANES):
                # stays, or makes room for the class, or for the place before
                if not w[j] >= v[j]:
                    behind = w[j - LANES] >= v[j]
                    u[j] = number if behind else u[j - LANES]
                    w[j] = v[j] if behind else w[j - LANES]
        for j in range(LANES):
            if not values[j] >= v[j]:
                index[j] = number
                values[j] = v[j]


# ---- the sums ------------------------------------------------------------------------------------------------------------

cdef void sums_block(const real* x, Py_ssize_t n, Py_ssize_t hole, bint moments, Py_ssize_t ahead, State* full,
                     State* rest) noexcept nogil:
    """Add a block to the sums of a row and to those of the row without its label, in which `hole` is the label's place if
    it is in this block. While both have one reference, their exponentials are the same, and so are their lanes but for
    the label's, which is summed anew: 64 elements at most."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[LANES]
    cdef real m[LANES]
    cdef real column[LANES]
    cdef double sums[LANES]
    cdef double kept[LANES]
    cdef double moment[LANES]
    cdef Py_ssize_t count, i
    cdef int j, above = 0
    cdef real limit, run
    cdef double lane
    if full.m != rest.m or full.top_at != rest.top_at or full.m == INFINITY or full.top_at == hole >= 0:
        logsumexp_block(x, n, <Py_ssize_t>-1, moments, ahead, full)
        logsumexp_block(x, n, hole, False, <Py_ssize_t>0, rest)
        return
    count = lay_block(x, n, <Py_ssize_t>-1, patch, at)
    if full.top_at >= 0:
        open_patch(x, n, full.top_at // LANES, <real>-INFINITY, patch, at)[full.top_at % LANES] = -INFINITY
    limit = <real>(full.m + 1)
    for j in range(LANES):
        m[j] = <real>full.m
    if moments:
        exp_moment_lanes(x, count, patch, at, m, sums, moment, tops, ahead)
    else:
        exp_sum_lanes(x, count, patch, at, m, sums, tops, ahead)
    for j in range(LANES):
        above |= tops[j] > limit
    if above:     # a new reference: rare enough to begin again
        logsumexp_block(x, n, <Py_ssize_t>-1, moments, <Py_ssize_t>0, full)
        logsumexp_block(x, n, hole, False, <Py_ssize_t>0, rest)
        return
    for j in range(LANES):
        kept[j] = sums[j]
    if hole >= 0:
        for i in range(LANES):
            column[i] = vector_at(x, i, patch, at)[hole % LANES] if i < count and i != hole // LANES else <real>-INFINITY
        for j in range(LANES):
            column[j] = exp_up(column[j] - m[j])
        lane = 0
        i = 0
        while i < count:
            run = 0
            for j in range(RUN):
                run += column[i + j]     # past the end: 0
            lane += run
            i += RUN
        kept[hole % LANES] = lane
    if full.top_at >= 0:
        full.c = rest.c = 1
        full.top_at = rest.top_at = -1
    two_sum_add(&full.s, &full.s_lo, fold_sum(sums) * FK_DOWN)
    if moments:
        two_sum_add(&full.u, &full.u_lo, fold_sum(moment) * FK_DOWN)
    two_sum_add(&rest.s, &rest.s_lo, fold_sum(kept) * FK_DOWN)


# ---- two models ----------------------------------------------------------------------------------------------------------
# With x = log(p / q), t = abs(x) and e = exp(-t), each divergence is a sum of terms max(p, q) f(t), f >= 0: nothing cancels
# at any scale, however small. An error h that x has for all classes, from the logs of the sums, adds h^2 / 2 to a KL and a
# quarter of that to JS; it is taken off again: the sum of q - p is h.

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
    """Per lane the sums of p log(p/q) - p + q, of q log(q/p) - q + p, if asked of the Jensen-Shannon terms, and of q - p.
    ratio: log of the unnormalised p/q where that is known better than by a - b, or NULL."""
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


cdef void pair_block(const real* a, const real* b, const real* ratio, Py_ssize_t n, const Normalisers* norm, bint middle,
                     double* sums) noexcept nogil:
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


# ---- what the operands hold ----------------------------------------------------------------------------------------------

cdef inline bint as_given(const Score* sc, int which) noexcept nogil:
    """Whether the numbers of an operand are the logits themselves."""
    return not sc.probs[which] and sc.temperature[which] == 1


cdef inline real logit(const Score* sc, int which, real x) noexcept nogil:
    """The logit that a number of an operand stands for."""
    if sc.probs[which]:
        x = <real>log_any_f64(x)
    return x / <real>sc.temperature[which] if sc.temperature[which] != 1 else x


cdef inline double ordered_logit(const Score* sc, double x) noexcept nogil:
    """The logit of a number that order has found: logits are ordered, but probabilities rather than their logs, which may
    be equal where those are not."""
    return logit(sc, 0, x) if sc.probs[0] else x


cdef void make_logits(const Score* sc, int which, const real* x, Py_ssize_t n, real* out) noexcept nogil:
    """Turn what an operand holds into logits; out may be x."""
    cdef Py_ssize_t i
    cdef real t = <real>sc.temperature[which]
    if sc.probs[which]:
        for i in range(n):
            out[i] = <real>log_any_f64(x[i])
        x = out
    if t != 1:
        for i in range(n):
            out[i] = x[i] / t


cdef void make_ratios(const Score* sc, const real* p, const real* q, Py_ssize_t n, const Normalisers* norm,
                      real* out) noexcept nogil:
    """log(p / (r q)) of probabilities over the temperature, r being about P/Q: right also where p is near r q, whose
    rounding error counts then."""
    cdef Py_ssize_t i
    cdef double near, far, r, y
    for i in range(n):
        r = norm.ratio[i % LANES]
        y = r * q[i]
        near = ((p[i] - y) - fma(r, q[i], -y)) / y
        far = log_any_f64(p[i]) - log_any_f64(q[i]) - log_any_f64(r)
        if y > 1e-290 and -0.5 < near < 1:
            far = log1p_f64(near)
        out[i] = <real>(far / sc.temperature[0])


cdef inline void centre_ratios(const Score* sc, Py_ssize_t lane, Normalisers* norm) noexcept nogil:
    """Let r take over what the normalisers differ by, but for its rounding error."""
    cdef double d = norm.shift[lane] + norm.logs[lane], t = sc.temperature[0]
    norm.ratio[lane] = exp_up_f64(t * d) * FK_DOWN if -600 < t * d < 600 else 1
    norm.logs[lane] = d - log_any_f64(norm.ratio[lane]) / t
    norm.shift[lane] = norm.shift_lo[lane] = 0


cdef inline bint has_ratios(const Score* sc) noexcept nogil:
    return sc.probs[0] and sc.probs[1] and sc.temperature[0] == sc.temperature[1]


cdef inline bint in_place(const Score* sc, int which) noexcept nogil:
    """Whether a row's logits are read where they lie."""
    return sc.plan.operand[which].direct and as_given(sc, which)


cdef inline Py_ssize_t rows_together(const Score* sc, int which, size_t itemsize) noexcept nogil:
    """Rows scanned together: a tile where they are read in place and are one block; where a row's own elements lie apart,
    as many as have neighbours in half a cache line, which keeps the scratch below 1 MiB; else one."""
    if in_place(sc, which):
        return TILE if sc.plan.classes <= BLOCK else 1
    return 1 if sc.plan.operand[which].direct else 32 // itemsize


cdef void load_block(const Score* sc, int which, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t first, Py_ssize_t n,
                     real* logits, real* raw, const real** x, const real** given) noexcept nogil:
    """Point x[i] at n logits of each of some rows from class `first` on, and given[i] at the numbers as they were given
    (the probabilities; else the logits). logits and raw have room for BLOCK numbers a row."""
    cdef Py_ssize_t i
    if in_place(sc, which):
        for i in range(rows):
            x[i] = given[i] = <const real*>row_pointer(&sc.plan, &sc.plan.operand[which], row + i) + first
        return
    if not sc.probs[which]:
        raw = logits
    fetch[real](&sc.plan, &sc.plan.operand[which], row, rows, first, n, raw, BLOCK, 1, <real>-INFINITY)
    for i in range(rows):
        x[i] = logits + i * BLOCK
        given[i] = raw + i * BLOCK
        make_logits(sc, which, raw + i * BLOCK, n, logits + i * BLOCK)


# ---- longer rows: block by block -----------------------------------------------------------------------------------------

cdef void start_order(Order* o) noexcept nogil:
    cdef int j
    for j in range(TILE):
        o.top[j] = o.second[j] = -INFINITY
        o.above[j] = o.nan[j] = 0
        o.argmax[j] = 0


cdef void scan_operand(const Score* sc, int which, Py_ssize_t row, Py_ssize_t rows, const double* labels, Sums* full,
                       Sums* rest, Order* o, real* scratch) noexcept nogil:
    """Read some rows of an operand once: their sums, those without the label and their order, each unless NULL; labels:
    the labels' numbers as given."""
    cdef const Plan* plan = &sc.plan
    cdef State states[TILE]
    cdef State chunk[TILE]
    cdef State without[TILE]
    cdef State without_chunk[TILE]
    cdef const real* x[TILE]
    cdef const real* given[TILE]
    cdef Py_ssize_t group = rows_together(sc, which, sizeof(real)), i = 0, n, k, start, stop, first, size, hole, ahead
    cdef bint moments = sc.moments and which == 0
    cdef bint place = in_place(sc, which), opens
    if o != NULL:
        start_order(o)
    while i < rows:
        n = group if i + group < rows else rows - i
        start = 0
        while start < plan.classes:
            stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
            for k in range(n):
                start_state(&chunk[k])
                start_state(&without_chunk[k])
            first = start
            while first < stop:
                size = BLOCK if first + BLOCK < stop else stop - first
                load_block(sc, which, row + i, n, first, size, scratch, scratch + group * BLOCK, x, given)
                ahead = 0
                if place and first + size < plan.classes:
                    ahead = size * <Py_ssize_t>sizeof(real)
                elif place and plan.n_outer == 1 and plan.classes <= BLOCK and row + 2 * rows <= plan.last_row:
                    ahead = rows * plan.operand[which].outer[0]
                for k in range(n):
                    opens = first == start and full != NULL
                    if o != NULL:
                        order_block(sc, given[k], size, first, i + k, labels[i + k], o, full == NULL,
                                    ahead if full == NULL else 0, &chunk[k] if opens and given[k] == x[k] else NULL)
                    if opens:
                        if o == NULL or given[k] != x[k]:
                            open_row(x[k], size, <Py_ssize_t>-1, &chunk[k])
                        if rest != NULL:
                            hole = hole_in(plan, rest.index[i + k], first, size)
                            if hole >= 0 and rest.label[i + k] == chunk[k].m:
                                open_row(x[k], size, hole, &without_chunk[k])
                            else:
                                without_chunk[k].m = chunk[k].m
                                without_chunk[k].top_at = chunk[k].top_at
                for k in range(n if full != NULL else 0):
                    if rest == NULL:
                        logsumexp_block(x[k], size, <Py_ssize_t>-1, moments, ahead, &chunk[k])
                    else:
                        hole = hole_in(plan, rest.index[i + k], first, size)
                        sums_block(x[k], size, hole, moments, ahead, &chunk[k], &without_chunk[k])
                first += size
            for k in range(n):
                if start == 0:
                    states[k] = chunk[k]
                    without[k] = without_chunk[k]
                else:
                    merge_logsumexp(&states[k], &chunk[k])
                    merge_logsumexp(&without[k], &without_chunk[k])
            start = stop
        for k in range(n):
            if full != NULL:
                keep_state(&states[k], i + k, full)
            if rest != NULL:
                keep_state(&without[k], i + k, rest)
        i += n
    if o != NULL and full != NULL:
        note_nans(full, o, rows)


cdef void read_score_labels(Score* sc, Py_ssize_t row, Py_ssize_t rows, Sums* rest, double* given,
                            real* like) noexcept nogil:
    """The labels of some rows, and their numbers as given and as logits."""
    cdef Py_ssize_t i
    cdef real x
    for i in range(TILE):
        given[i] = INFINITY      # nothing exceeds it
        rest.index[i] = NO_LABEL
    for i in range(rows if sc.plan.has_labels else 0):
        rest.index[i] = read_label(&sc.plan, row + i)
        rest.label[i] = 0
        if rest.index[i] >= 0 and (sc.loss or sc.rank != NULL):
            fetch[real](&sc.plan, &sc.plan.operand[0], row + i, 1, rest.index[i], 1, &x, 1, 1, <real>-INFINITY)
            rest.label[i] = logit(sc, 0, x)
            given[i] = x if sc.probs[0] else rest.label[i]


cdef void score_rows(Score* sc, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Up to TILE rows of more than ACROSS classes."""
    cdef Sums full
    cdef Sums rest
    cdef Sums other
    cdef Order o
    cdef Order other_order
    cdef Divergences d
    cdef double labels[TILE]
    cdef double none[TILE]
    cdef double sums[8]
    cdef Normalisers norm
    cdef Py_ssize_t i, first, n, k = sc.k, size = 32 // sizeof(real) * BLOCK
    cdef int j
    cdef bint valid
    cdef const real* x
    cdef const real* given
    cdef const real* y
    cdef const real* other_given
    cdef real* value = scratch + 4 * size + BLOCK
    read_score_labels(sc, row, rows, &rest, labels, scratch)
    scan_operand(sc, 0, row, rows, labels, &full if sc.sums or sc.loss else NULL, &rest if sc.loss else NULL,
                 &o if sc.order else NULL, scratch)
    if k > 0:
        for i in range(rows):
            first = 0
            while first < sc.plan.classes:
                n = BLOCK if first + BLOCK < sc.plan.classes else sc.plan.classes - first
                load_block(sc, 0, row + i, 1, first, n, scratch, scratch + size, &x, &given)
                select_top(given, n, first, k, value, sc.top_k + (row + i) * k)
                first += n
            sort_top(k, value, sc.top_k + (row + i) * k)
            put_top(sc, row + i, i, &full, &o, value, 1)
    if sc.plan.operands > 1:
        for i in range(TILE):
            none[i] = INFINITY
        scan_operand(sc, 1, row, rows, none, &other if sc.divergence else NULL, NULL,
                     &other_order if sc.agree != NULL else NULL, scratch)
    for i in range(rows if sc.divergence else 0):
        valid = normalisers(&full, i, &other, i, 0, &norm)
        if has_ratios(sc):
            centre_ratios(sc, 0, &norm)
        for j in range(1, LANES):
            norm.ratio[j] = norm.ratio[0]
            norm.shift[j] = norm.shift[0]
            norm.shift_lo[j] = norm.shift_lo[0]
            norm.logs[j] = norm.logs[0]
            norm.a[j] = norm.a[0]
            norm.b[j] = norm.b[0]
            norm.a_factor[j] = norm.a_factor[0]
            norm.b_factor[j] = norm.b_factor[0]
        for j in range(8):
            sums[j] = 0
        first = 0
        while valid and first < sc.plan.classes:
            n = BLOCK if first + BLOCK < sc.plan.classes else sc.plan.classes - first
            load_block(sc, 0, row + i, 1, first, n, scratch, scratch + size, &x, &given)
            load_block(sc, 1, row + i, 1, first, n, scratch + 2 * size, scratch + 3 * size, &y, &other_given)
            if has_ratios(sc):
                make_ratios(sc, given, other_given, n, &norm, scratch + 4 * size)
            pair_block(x, y, scratch + 4 * size if has_ratios(sc) else NULL, n, &norm, sc.js != NULL, sums)
            first += n
        settle_divergences(closed(sums[0], sums[1]), closed(sums[2], sums[3]), closed(sums[4], sums[5]),
                           sums[6] + sums[7], valid, i, &d)
    put_scores(sc, row, rows, &full, &rest, &o, &other_order, &d)


# ---- short rows: 64 at a time, a lane a row ------------------------------------------------------------------------------

cdef void load_tile(const Score* sc, int which, Py_ssize_t row, Py_ssize_t rows, real* logits,
                    real* raw) noexcept nogil:
    """A tile of short rows: element (i, c) at c * LANES + i; and their numbers as given, where raw is not logits."""
    cdef Py_ssize_t j, size = sc.plan.classes * LANES
    if rows < LANES:
        for j in range(size):
            raw[j] = 0
    fetch[real](&sc.plan, &sc.plan.operand[which], row, rows, 0, sc.plan.classes, raw, 1, LANES, <real>-INFINITY)
    make_logits(sc, which, raw, size, logits)


cdef void score_across(Score* sc, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    cdef Sums full
    cdef Sums rest
    cdef Sums other
    cdef Order o
    cdef Order other_order
    cdef Divergences d
    cdef double labels[TILE]
    cdef Normalisers norm
    cdef bint valid[TILE]
    cdef double sums[4][TILE]
    cdef Py_ssize_t at[3]
    cdef Py_ssize_t classes = sc.plan.classes, size = sc.plan.classes * LANES, i, k = sc.k, c
    cdef real* x = scratch
    cdef real* given = scratch + size if sc.probs[0] else x
    cdef real* y = scratch + 2 * size
    cdef real* other_given = scratch + 3 * size if sc.probs[1] else y
    cdef real* ratio = scratch + 4 * size
    cdef real* value = scratch + 5 * size
    at[0] = at[1] = at[2] = -1
    load_tile(sc, 0, row, rows, x, given)
    for i in range(TILE):
        labels[i] = INFINITY
        rest.index[i] = NO_LABEL
        rest.label[i] = 0
    for i in range(rows if sc.plan.has_labels else 0):
        rest.index[i] = read_label(&sc.plan, row + i)
        if rest.index[i] >= 0:
            labels[i] = given[rest.index[i] * LANES + i]
            rest.label[i] = x[rest.index[i] * LANES + i]
    if sc.order:
        order_across(sc, given, classes, labels, not sc.sums, &o)
    if sc.sums:
        logsumexp_across(x, classes, sc.moments, &full)
        note_nans(&full, &o, LANES)
    if k > 0:
        select_across(given, classes, k, value, value + k * LANES)
        for i in range(rows):
            for c in range(k):
                sc.top_k[(row + i) * k + c] = <int64_t>value[(k + c) * LANES + i]
            put_top(sc, row + i, i, &full, &o, value + i, LANES)
    if sc.plan.operands > 1:
        load_tile(sc, 1, row, rows, y, other_given)
        if sc.agree != NULL:
            for i in range(TILE):
                labels[i] = INFINITY
            order_across(sc, other_given, classes, labels, not sc.divergence, &other_order)
    if sc.divergence:
        logsumexp_across(y, classes, False, &other)
        note_nans(&other, &other_order, LANES)
        for i in range(LANES):
            valid[i] = normalisers(&full, i, &other, i, i, &norm)
            if has_ratios(sc):
                centre_ratios(sc, i, &norm)
        if has_ratios(sc):
            make_ratios(sc, given, other_given, size, &norm, ratio)
        pair_lanes(x, y, ratio if has_ratios(sc) else NULL, classes, x, y, ratio, at, &norm, sc.js != NULL,
                   sums[0], sums[1], sums[2], sums[3])
        for i in range(rows):
            settle_divergences(sums[0][i], sums[1][i], sums[2][i], sums[3][i], valid[i], i, &d)
    if sc.loss:     # last: the labels' logits are taken out
        for i in range(rows):
            if rest.index[i] >= 0:
                x[rest.index[i] * LANES + i] = -INFINITY
        logsumexp_across(x, classes, False, &rest)
    put_scores(sc, row, rows, &full, &rest, &o, &other_order, &d)


# ---- from sums to columns ------------------------------------------------------------------------------------------------

cdef void put_column(char* column, bint single, Py_ssize_t row, Py_ssize_t rows, const double* values) noexcept nogil:
    """Round a tile's results into a column, if there is one; there is one NaN, see put_rows."""
    cdef Py_ssize_t i
    cdef float* narrow = <float*>column + row
    cdef double* wide = <double*>column + row
    if column == NULL:
        return
    if single:
        for i in range(rows):
            narrow[i] = <float>(values[i] if values[i] == values[i] else NAN)
    else:
        for i in range(rows):
            wide[i] = values[i] if values[i] == values[i] else NAN


cdef inline bint no_distribution(const Order* o, Py_ssize_t i) noexcept nogil:
    """Whether a row holds a NaN or +inf, or nothing above -inf."""
    return o.nan[i] or o.top[i] == INFINITY or o.top[i] == -INFINITY


cdef void put_top(Score* sc, Py_ssize_t row, Py_ssize_t i, const Sums* full, const Order* o, const real* value,
                  Py_ssize_t step) noexcept nogil:
    """The log-probabilities of the k largest of a row, whose numbers as ordered are in `value`; i: its place in the
    tile."""
    cdef Py_ssize_t c
    cdef double hi, lo, log_p
    log1p_split_f64(excess(full, i), &hi, &lo)
    for c in range(sc.k):
        log_p = (ordered_logit(sc, value[c * step]) - full.m[i]) - (hi + lo)
        if no_distribution(o, i):
            log_p = NAN
            sc.top_k[row * sc.k + c] = -1
        put_column(sc.top_k_log_prob, sc.single, row * sc.k + c, 1, &log_p)


cdef void put_order(Score* sc, Py_ssize_t row, Py_ssize_t rows, const Sums* full, const Sums* rest, const Order* o,
                    const Order* other) noexcept nogil:
    """The columns that the order of the logits tells."""
    cdef double result[TILE]
    cdef double top[TILE]
    cdef double second[TILE]
    cdef double nothing[TILE]       # NaN for a row that holds no distribution, else 0
    cdef Py_ssize_t i
    for i in range(rows):
        nothing[i] = NAN if no_distribution(o, i) else 0
        top[i] = o.top[i]
        second[i] = o.second[i]
    if sc.probs[0]:
        for i in range(rows):
            top[i] = logit(sc, 0, top[i])
            second[i] = logit(sc, 0, second[i])
    if sc.margin != NULL:
        for i in range(rows):
            result[i] = top[i] - second[i] + nothing[i]
        put_column(sc.margin, sc.single, row, rows, result)
    if sc.max_prob != NULL:
        for i in range(rows):
            result[i] = exp_up_f64(top[i] - full.m[i]) * FK_DOWN / (1 + excess(full, i)) + nothing[i]
        put_column(sc.max_prob, sc.single, row, rows, result)
    if sc.argmax != NULL:
        for i in range(rows):
            sc.argmax[row + i] = o.argmax[i] if nothing[i] == 0 else -1
    if sc.rank != NULL:
        for i in range(rows):
            sc.rank[row + i] = 1 + <int64_t>o.above[i] if nothing[i] == 0 else -1
    if sc.correct != NULL:
        for i in range(rows):
            sc.correct[row + i] = (nothing[i] == 0) & (o.argmax[i] == rest.index[i])
    if sc.agree != NULL:
        for i in range(rows):
            sc.agree[row + i] = (nothing[i] == 0) & (not no_distribution(other, i)) & (o.argmax[i] == other.argmax[i])


cdef void put_scores(Score* sc, Py_ssize_t row, Py_ssize_t rows, const Sums* full, const Sums* rest, const Order* o,
                     const Order* other, const Divergences* d) noexcept nogil:
    cdef double result[TILE]
    cdef double extra[TILE]
    cdef Py_ssize_t i
    if sc.lse != NULL:
        finish_logsumexp(full, rows, 1, result, extra)
        put_column(sc.lse, sc.single, row, rows, result)
    if sc.label_loss != NULL:
        finish_label_loss(rest, rows, result)
        put_column(sc.label_loss, sc.single, row, rows, result)
    if sc.moments:
        finish_entropy_of_logits(full, rows, 1, result)
        put_column(sc.entropy, sc.single, row, rows, result)
    if sc.perplexity != NULL:
        for i in range(rows):
            result[i] = exp_up_f64(result[i]) * FK_DOWN
        put_column(sc.perplexity, sc.single, row, rows, result)
    if sc.order:
        put_order(sc, row, rows, full, rest, o, other)
    put_column(sc.kl, sc.single, row, rows, d.kl)
    put_column(sc.reverse_kl, sc.single, row, rows, d.reverse_kl)
    put_column(sc.js, sc.single, row, rows, d.js)


# ---- tiles and threads ---------------------------------------------------------------------------------------------------

cdef void score_tile(Score* sc, Py_ssize_t t, Py_ssize_t size, real* scratch) noexcept nogil:
    cdef Py_ssize_t row = t * size
    cdef Py_ssize_t rows = size if row + size < sc.plan.rows else sc.plan.rows - row
    cdef unsigned int mode = fk_default_mode()
    if sc.plan.classes <= ACROSS:
        score_across[real](sc, row, rows, scratch)
    else:
        score_rows[real](sc, row, rows, scratch)
    fk_restore_mode(mode)


cdef int execute_score(Score* sc, int threads, real* like) noexcept nogil:
    """Fill the columns; returns -1 where memory for the threads' scratch is not to be had."""
    cdef Py_ssize_t classes = sc.plan.classes, size = TILE, stride, tiles, t
    cdef real* scratch = NULL
    if classes <= ACROSS:
        stride = (5 * classes + 2 * sc.k) * LANES
    else:
        size = 4 * BLOCK // classes
        size = 1 if size < 1 else size
        stride = 4 * (32 // sizeof(real)) * BLOCK + BLOCK
    stride += sc.k + 64 - sc.k % 64
    tiles = (sc.plan.rows + size - 1) // size
    threads = <int>tiles if threads > tiles else threads
    if tiles == 0:
        return 0
    if posix_memalign(<void**>&scratch, 64, threads * stride * sizeof(real)):
        return -1
    if threads == 1:
        for t in range(tiles):
            score_tile[real](sc, t, size, scratch)
    else:
        for t in prange(tiles, num_threads=threads, schedule="static"):
            score_tile[real](sc, t, size, scratch + threadid() * stride)
    free(scratch)
    return 0


cdef void* column_of(dict columns, str name) except? NULL:
    """Where the column of that name begins, NULL if it is not asked for."""
    return cnp.PyArray_DATA(<cnp.ndarray>columns[name]) if name in columns else NULL


def score(bint double_precision, bint single, tuple operands, labels, tuple probs, tuple temperature, Py_ssize_t k,
          dict columns, int threads):
    """Fill the columns (new arrays, contiguous, by name) from operands of one shape, the classes last; k is 0 without
    top_k. Returns the first row whose label is out of range (or -1) and that label as 64 bits."""
    cdef Score sc
    cdef Py_ssize_t* outer[3]
    cdef Py_ssize_t* inner[2]
    cdef int d, j, n_outer, outers = 0, failed
    cdef cnp.ndarray first = operands[0]
    cdef Plan* plan = &sc.plan
    n_outer = cnp.PyArray_NDIM(first) - 1
    plan.op = LOGSUMEXP
    plan.operands = <int>len(operands)
    plan.has_mask = plan.has_ignored = False
    plan.has_labels = labels is not None
    plan.bad_row = -1
    plan.bad_label = 0
    plan.lock = 0
    plan.rows = 1
    for d in range(n_outer):
        plan.outer_shape[d] = cnp.PyArray_DIM(first, d)
        plan.rows *= plan.outer_shape[d]
    plan.inner_shape[0] = plan.classes = cnp.PyArray_DIM(first, n_outer)
    for j in range(plan.operands):
        set_operand(&plan.operand[j], operands[j], n_outer, 1)
        outer[outers] = plan.operand[j].outer
        inner[j] = plan.operand[j].inner
        outers += 1
        sc.probs[j] = probs[j]
        sc.temperature[j] = temperature[j]
    if plan.has_labels:
        set_operand(&plan.labels, labels, n_outer, 0)
        outer[outers] = plan.labels.outer
        outers += 1
    plan.n_outer = merge_axes(n_outer, plan.outer_shape, outer, outers)
    plan.n_inner = merge_axes(1, plan.inner_shape, inner, plan.operands)
    for j in range(plan.operands):
        settle_direct(plan, &plan.operand[j], FK_F64 if double_precision else FK_F32, 8 if double_precision else 4)
    plan.first_row = 0
    plan.last_row = plan.rows
    sc.single = single
    sc.lse = <char*>column_of(columns, "lse")
    sc.label_loss = <char*>column_of(columns, "loss")
    sc.entropy = <char*>column_of(columns, "entropy")
    sc.perplexity = <char*>column_of(columns, "perplexity")
    sc.max_prob = <char*>column_of(columns, "max_prob")
    sc.margin = <char*>column_of(columns, "margin")
    sc.kl = <char*>column_of(columns, "kl")
    sc.reverse_kl = <char*>column_of(columns, "reverse_kl")
    sc.js = <char*>column_of(columns, "js")
    sc.top_k_log_prob = <char*>column_of(columns, "top_k_log_prob")
    sc.top_k = <int64_t*>column_of(columns, "top_k")
    sc.argmax = <int64_t*>column_of(columns, "argmax")
    sc.rank = <int64_t*>column_of(columns, "rank")
    sc.correct = <char*>column_of(columns, "correct")
    sc.agree = <char*>column_of(columns, "agree")
    sc.k = k
    sc.divergence = sc.kl != NULL or sc.reverse_kl != NULL or sc.js != NULL
    sc.loss = sc.label_loss != NULL
    sc.moments = sc.entropy != NULL or sc.perplexity != NULL
    sc.sums = (sc.moments or sc.divergence or sc.lse != NULL or sc.max_prob != NULL or sc.k > 0)
    sc.order = (sc.max_prob != NULL or sc.margin != NULL or sc.k > 0 or sc.argmax != NULL or sc.rank != NULL
                or sc.correct != NULL or sc.agree != NULL)
    with nogil:
        if double_precision:
            failed = execute_score[double](&sc, threads, NULL)
        else:
            failed = execute_score[float](&sc, threads, NULL)
    if failed:
        raise MemoryError("fastkl: no memory for the threads' scratch buffers")
    return plan.bad_row, plan.bad_label
