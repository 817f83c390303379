# score(): many statistics of a row from one read of it. Block by block (LANES rows at a time where they are short), each
# loop that the statistics asked for need runs over what is in the first-level cache by then; top_k of long rows and the
# divergences of two models go over the row once more, from the second. The sums are those of logspace.pxi, block for
# block and lane for lane: lse, loss and entropy are the bits of the functions of that name.

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
    char* brier
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


# ---- the sums --------------------------------------------------------------------------------------------------------

cdef void sums_block(const real* x, Py_ssize_t n, Py_ssize_t hole, bint moments, const char* next, State* full,
                     State* rest) noexcept nogil:
    """Add a block to the sums of a row and to those of the row without its label, in which `hole` is the label's place
    if it is in this block. While both have one reference, their exponentials are the same, and so are their lanes but
    for the label's, which is summed anew."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real tops[LANES]
    cdef real column[VECTORS]
    cdef double sums[LANES]
    cdef double kept[LANES]
    cdef double moment[LANES]
    cdef Py_ssize_t count, i
    cdef int j, above = 0
    cdef real limit, m = <real>full.m
    cdef double lane
    if full.m != rest.m or full.top_at != rest.top_at or full.m == INFINITY or full.top_at == hole >= 0:
        logsumexp_block(x, n, <Py_ssize_t>-1, moments, next, NULL, full)
        logsumexp_block(x, n, hole, False, NULL, NULL, rest)
        return
    count = lay_block(x, n, <Py_ssize_t>-1, patch, at)
    limit = <real>(full.m + 1)
    if moments:
        exp_moment_lanes(x, count, full.top_at, patch, at, m, sums, moment, tops, next)
    else:
        exp_sum_lanes(x, count, full.top_at, patch, at, m, sums, tops, next, NULL)
    for j in range(LANES):
        above |= tops[j] > limit
    if above:     # a new reference: rare enough to begin again
        logsumexp_block(x, n, <Py_ssize_t>-1, moments, NULL, NULL, full)
        logsumexp_block(x, n, hole, False, NULL, NULL, rest)
        return
    for j in range(LANES):
        kept[j] = sums[j]
    if hole >= 0:
        for i in range(count):
            column[i] = vector_at(x, i, patch, at)[hole % LANES]
        column[hole // LANES] = -INFINITY
        if full.top_at >= 0 and full.top_at % LANES == hole % LANES:
            column[full.top_at // LANES] = -INFINITY
        for i in range(count):
            column[i] = exp_up(column[i] - m)
        lane = 0
        i = 0
        while i + RUN <= count:     # in the order of exp_sum_lanes
            lane += (column[i] + column[i + 1]) + (column[i + 2] + column[i + 3])
            i += RUN
        while i < count:
            lane += column[i]
            i += 1
        kept[hole % LANES] = lane
    if full.top_at >= 0:
        full.c = rest.c = 1
        full.top_at = rest.top_at = -1
    two_sum_add(&full.s, &full.s_lo, fold_sum(sums) * FK_DOWN)
    if moments:
        two_sum_add(&full.u, &full.u_lo, fold_sum(moment) * FK_DOWN)
    two_sum_add(&rest.s, &rest.s_lo, fold_sum(kept) * FK_DOWN)


cdef loop square_sum_lanes(const real* x, Py_ssize_t count, const real* patch, const Py_ssize_t* at,
                           const real* reference, double* sums) noexcept nogil:
    """Per lane: 2^64 times the sum of exp(2 (x - reference)), RUN vectors at a time. Not squares of exp_up: they would
    overflow."""
    cdef real m[LANES]
    cdef real s[LANES]
    cdef double t[LANES]
    cdef Py_ssize_t i = 0
    cdef int j
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    cdef real two = 2
    for j in range(LANES):
        m[j] = reference[j]
        t[j] = 0
    while i + RUN <= count:
        v0 = vector_at(x, i, patch, at)
        v1 = vector_at(x, i + 1, patch, at)
        v2 = vector_at(x, i + 2, patch, at)
        v3 = vector_at(x, i + 3, patch, at)
        for j in range(LANES):
            s[j] = ((exp_up(two * (v0[j] - m[j])) + exp_up(two * (v1[j] - m[j])))
                    + (exp_up(two * (v2[j] - m[j])) + exp_up(two * (v3[j] - m[j]))))
        for j in range(LANES):
            t[j] += s[j]
        i += RUN
    while i < count:
        v0 = vector_at(x, i, patch, at)
        for j in range(LANES):
            t[j] += exp_up(two * (v0[j] - m[j]))
        i += 1
    for j in range(LANES):
        sums[j] = t[j]


cdef void squares_block(const real* x, Py_ssize_t n, Py_ssize_t hole, State* rest) noexcept nogil:
    """Add a block's squares to those of a row without its label; after its sums, whose reference is the block's then."""
    cdef real patch[3 * LANES]
    cdef Py_ssize_t at[3]
    cdef real m[LANES]
    cdef double sums[LANES]
    cdef Py_ssize_t count = lay_block(x, n, hole, patch, at)
    cdef int j
    for j in range(LANES):
        m[j] = <real>rest.m
    square_sum_lanes(x, count, patch, at, m, sums)
    two_sum_add(&rest.v, &rest.v_lo, fold_sum(sums) * FK_DOWN)


cdef void finish_brier(const Sums* a, Py_ssize_t rows, double* out) noexcept nogil:
    """(1 - p)^2 + sum of the others' squares, p being the label's: (r^2 + v) / (r + e)^2 with r = c + s of the others and
    e = exp(x_label - m). All are >= 0: nothing cancels."""
    cdef double t, e, y, factor, rest
    cdef Py_ssize_t j
    for j in range(rows):
        t = a.m[j] - a.label[j]
        y = excess(a, j)
        e = exp_up_f64(-t if t > 0 else t) * FK_DOWN
        # 1 / (r + e); where e is the larger of the two, 1 / e has taken its place and may be 0
        factor = 1 / ((1 + y) + e) if t > 0 else e / (1 + e * (1 + y))
        rest = (1 + y) * factor
        # not v times the square of the factor, which is denormal before the result is
        rest = rest * rest + (a.v[j] + a.v_lo[j]) * factor * factor
        rest = NAN if a.label[j] == INFINITY or a.m[j] == INFINITY else rest
        out[j] = NAN if y == -1 and a.label[j] == -INFINITY else rest


# ---- what the operands hold ------------------------------------------------------------------------------------------

cdef inline bint as_given(const Score* sc, int which) noexcept nogil:
    """Whether the numbers of an operand are the logits themselves."""
    return not sc.probs[which] and sc.temperature[which] == 1


cdef inline real logit(const Score* sc, int which, real x) noexcept nogil:
    """The logit that a number of an operand stands for."""
    if sc.probs[which]:
        x = <real>log_any_f64(x)
    return x / <real>sc.temperature[which] if sc.temperature[which] != 1 else x


cdef inline double ordered_logit(const Score* sc, double x) noexcept nogil:
    """The logit of a number that order has found: logits are ordered, but probabilities rather than their logs, which
    may be equal where those are not."""
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
    """Rows scanned together: a tile where they are read in place and are one block; where a row's own elements lie
    apart, as many as have neighbours in half a cache line, which keeps the scratch below 1 MiB; else one."""
    if in_place(sc, which):
        return TILE if sc.plan.classes <= BLOCK else 1
    return 1 if sc.plan.operand[which].direct else 32 // itemsize


cdef void load_block(const Score* sc, int which, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t first, Py_ssize_t n,
                     real* logits, real* raw, const real** x, const real** given) noexcept nogil:
    """Point x[i] at n logits of each of some rows from class `first` on, and given[i] at the numbers as they were given
    (the probabilities; else the logits). logits and raw have room for SPAN numbers a row."""
    cdef Py_ssize_t i
    if in_place(sc, which):
        for i in range(rows):
            x[i] = given[i] = <const real*>row_pointer(&sc.plan, &sc.plan.operand[which], row + i) + first
        return
    if not sc.probs[which]:
        raw = logits
    fetch[real](&sc.plan, &sc.plan.operand[which], row, rows, first, n, raw, SPAN, 1, <real>-INFINITY)
    for i in range(rows):
        x[i] = logits + i * SPAN
        given[i] = raw + i * SPAN
        make_logits(sc, which, raw + i * SPAN, n, logits + i * SPAN)


# ---- longer rows: block by block -------------------------------------------------------------------------------------

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
    cdef const char* next
    cdef Py_ssize_t group = rows_together(sc, which, sizeof(real)), i = 0, n, k, start, stop, first, size, hole, ahead
    cdef bint moments = sc.moments and which == 0
    cdef bint place = in_place(sc, which), counts = sc.rank != NULL and which == 0, opens
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
                load_block(sc, which, row + i, n, first, size, scratch, scratch + group * SPAN, x, given)
                ahead = 0
                if place:
                    ahead = bytes_ahead(plan, &plan.operand[which], row, rows, first + size, size, sizeof(real))
                for k in range(n):
                    opens = first == start and full != NULL
                    hole = hole_in(plan, rest.index[i + k], first, size) if rest != NULL else -1
                    if o != NULL:
                        order_block(given[k], size, first, i + k, labels[i + k], counts, full == NULL,
                                    <const char*>x[k] + ahead if full == NULL and ahead != 0 else NULL, o,
                                    &chunk[k] if opens and given[k] == x[k] else NULL)
                    if opens:
                        if o == NULL or given[k] != x[k]:
                            open_row(x[k], size, <Py_ssize_t>-1, &chunk[k])
                        if rest != NULL:
                            if hole >= 0 and rest.label[i + k] == chunk[k].m:
                                open_row(x[k], size, hole, &without_chunk[k])
                            else:
                                without_chunk[k].m = chunk[k].m
                                without_chunk[k].top_at = chunk[k].top_at
                    elif first == start and rest != NULL:
                        open_row(x[k], size, hole, &without_chunk[k])
                for k in range(n if full != NULL or rest != NULL else 0):
                    next = <const char*>x[k] + ahead if ahead != 0 else NULL
                    hole = hole_in(plan, rest.index[i + k], first, size) if rest != NULL else -1
                    if rest == NULL:
                        logsumexp_block(x[k], size, hole, moments, next, NULL, &chunk[k])
                    elif full == NULL:
                        logsumexp_block(x[k], size, hole, False, next, NULL, &without_chunk[k])
                    else:
                        sums_block(x[k], size, hole, moments, next, &chunk[k], &without_chunk[k])
                    if rest != NULL and sc.brier != NULL:
                        squares_block(x[k], size, hole, &without_chunk[k])
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
    cdef const char* place
    for i in range(TILE):
        given[i] = INFINITY      # nothing exceeds it
        rest.index[i] = NO_LABEL
    for i in range(rows if sc.plan.has_labels else 0):
        rest.index[i] = read_label(&sc.plan, row + i)
        rest.label[i] = 0
        if rest.index[i] >= 0 and in_place(sc, 0):
            # All at once: each is far from the others, and in the small pages of a mapped file its address is, too.
            place = <const char*>row_pointer(&sc.plan, &sc.plan.operand[0], row + i)
            fk_prefetch(place, rest.index[i] * sizeof(real), 1)
    for i in range(rows if sc.plan.has_labels else 0):
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
    cdef Py_ssize_t i, first, n, k = sc.k, size = 32 // sizeof(real) * SPAN
    cdef int j
    cdef bint valid
    cdef const real* x
    cdef const real* given
    cdef const real* y
    cdef const real* other_given
    cdef real* value = scratch + 4 * size + SPAN
    read_score_labels(sc, row, rows, &rest, labels, scratch)
    # The sums with the label's are next to nothing beside those without, and spare the order its search for NaNs; the loss
    # alone is quicker on its own.
    scan_operand(sc, 0, row, rows, labels, &full if sc.sums or (sc.loss and sc.order) else NULL,
                 &rest if sc.loss else NULL, &o if sc.order else NULL, scratch)
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


# ---- short rows: LANES at a time, a lane a row -----------------------------------------------------------------------

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
    cdef real tops[LANES]
    cdef Py_ssize_t at[3]
    cdef Py_ssize_t classes = sc.plan.classes, size = sc.plan.classes * LANES, i, k = sc.k, c
    cdef const char* next
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
        order_across(given, classes, labels, sc.rank != NULL, not sc.sums, &o)
    if sc.sums:
        next = gapless(&sc.plan, &sc.plan.operand[0], row + LANES, LANES, x)
        logsumexp_across(x, classes, sc.moments, next, NULL, &full, 0)
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
            order_across(other_given, classes, labels, False, not sc.divergence, &other_order)
    if sc.divergence:
        next = gapless(&sc.plan, &sc.plan.operand[1], row + LANES, LANES, y)
        logsumexp_across(y, classes, False, next, NULL, &other, 0)
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
        logsumexp_across(x, classes, False, NULL, NULL, &rest, 0)
        if sc.brier != NULL:
            for i in range(LANES):
                tops[i] = <real>rest.m[i]
            square_sum_lanes(x, classes, x, at, tops, rest.v)
            for i in range(LANES):
                rest.v[i] *= FK_DOWN
                rest.v_lo[i] = 0
    put_scores(sc, row, rows, &full, &rest, &o, &other_order, &d)


# ---- from sums to columns --------------------------------------------------------------------------------------------

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
    cdef Py_ssize_t i
    if sc.lse != NULL:
        finish_logsumexp(full, rows, sc.single, result)
        put_column(sc.lse, sc.single, row, rows, result)
    if sc.label_loss != NULL:
        finish_label_loss(rest, rows, sc.single, result)
        put_column(sc.label_loss, sc.single, row, rows, result)
    if sc.brier != NULL:
        finish_brier(rest, rows, result)
        put_column(sc.brier, sc.single, row, rows, result)
    if sc.moments:
        finish_entropy_of_logits(full, rows, 1, sc.single, result)
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


# ---- tiles and threads -----------------------------------------------------------------------------------------------

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
        size = LANES
        stride = (5 * classes + 2 * sc.k) * LANES
    else:
        size = 4 * BLOCK // classes
        size = 1 if size < 1 else size
        stride = 4 * (32 // sizeof(real)) * SPAN + SPAN
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
          dict columns, int threads, bint asked, double nbytes):
    """Fill the columns (new arrays, contiguous, by name) from operands of one shape, the classes last; k is 0 without
    top_k; for the threads see run. Returns the first row whose label is out of range (or -1) and that label as 64 bits."""
    cdef Score sc
    cdef Py_ssize_t* outer[3]
    cdef Py_ssize_t* inner[2]
    cdef int d, j, n_outer, outers = 0, failed, kind
    cdef cnp.ndarray first = operands[0]
    cdef Plan* plan = &sc.plan
    n_outer = cnp.PyArray_NDIM(first) - 1
    start_plan(plan, LOGSUMEXP, first, 1)
    plan.operands = <int>len(operands)
    plan.has_labels = labels is not None
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
    sc.single = single
    sc.lse = <char*>column_of(columns, "lse")
    sc.label_loss = <char*>column_of(columns, "loss")
    sc.brier = <char*>column_of(columns, "brier")
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
    sc.loss = sc.label_loss != NULL or sc.brier != NULL
    sc.moments = sc.entropy != NULL or sc.perplexity != NULL
    sc.sums = (sc.moments or sc.divergence or sc.lse != NULL or sc.max_prob != NULL or sc.k > 0)
    sc.order = (sc.max_prob != NULL or sc.margin != NULL or sc.k > 0 or sc.argmax != NULL or sc.rank != NULL
                or sc.correct != NULL or sc.agree != NULL)
    with nogil:
        kind = cpu.kind_of(SCORE if plan.operands == 1 else SCORE_OF_TWO, double_precision, plan.classes)
        threads = cpu.enter(kind, threads, asked, nbytes)
        if double_precision:
            failed = execute_score[double](&sc, threads, NULL)
        else:
            failed = execute_score[float](&sc, threads, NULL)
        cpu.leave(kind, threads, nbytes)
    if failed:
        raise MemoryError("fastkl: no memory for the threads' scratch buffers")
    return plan.bad_row, plan.bad_label
