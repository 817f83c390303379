# Rows that lie side by side: the reduction of an axis that is not the last. A class's numbers of a few dozen such rows, here
# columns, are one stretch of memory; the loops take it as vectors over columns, and nothing is transposed.
#
# A row's bits do not depend on where it lies: every addition is that of the loop along the row that bears the same name
# with _lanes. A lane is the sum of every 32nd class there and a vector of such sums here, at sums[lane * across], one for
# each column; RUN classes that are LANES apart are added in the data's own type. A change to one of those loops is to be
# made here, too: tests/test_same_bits.py holds one against the other.
#
# Most numbers are read where they lie. The columns after the last whole GRAIN are copied, and padded with ones whose sums
# nobody reads; so is a run of classes with an element that is to be left out of a column (its label, its maximum, what is
# under the mask): there the copy holds -inf.

cdef enum:
    GRAIN = 16          # widths are multiples of it: whole vectors
    GRAINS = 16         # in a tile, at most
    WIDE = 256          # columns of a tile, at most: STRETCH // itemsize of the smaller type
    STRETCH = 1024      # bytes of a class that are read together: memory is not read well in shorter ones
    CACHED = 262144     # bytes of a block that is read twice, for the maxima and the sums: a copy of it stays in the cache
    LOOSE = 32          # bytes of columns that are copied together to take the form that is right for every double


# What is known of the columns of a tile while they are read; m and s as in SoftmaxRow.
cdef struct Columns:
    State states[WIDE]
    State chunk[WIDE]
    Py_ssize_t index[WIDE]
    double label[WIDE]
    double m[BLOCKS][WIDE]
    double s[WIDE]


cdef inline Py_ssize_t padded(Py_ssize_t columns) noexcept nogil:
    """The width of so many columns in a copy."""
    return (columns + GRAIN - 1) // GRAIN * GRAIN


cdef inline bint by_columns(const Plan* plan, size_t itemsize) noexcept nogil:
    """Whether the rows are taken as columns."""
    cdef int i, storage = FK_F32 if itemsize == sizeof(float) else FK_F64
    cdef const Operand* a
    cdef bint taken = (plan.op == LOGSUMEXP or plan.op == SOFTMAX or plan.op == LOG_SOFTMAX
                       or plan.op == SOFTMAX_CROSS_ENTROPY or plan.op == ENTROPY_OF_LOGITS or plan.op == ENTROPY
                       or plan.op == CROSS_ENTROPY or plan.op == KL or plan.op == KL_NORMALIZED
                       or plan.op == GENERALIZED_KL)
    if (not taken or plan.normalize or plan.classes <= ACROSS or plan.n_outer == 0
            or plan.outer_shape[plan.n_outer - 1] < GRAIN):
        return False
    for i in range(plan.operands):
        a = &plan.operand[i]
        if not a.plain or a.storage != storage or a.outer[plan.n_outer - 1] != <Py_ssize_t>itemsize:
            return False
    return True


cdef inline Py_ssize_t tile_size_of_columns(const Plan* plan, size_t itemsize, int threads) noexcept nogil:
    """Columns of a tile: as many as a stretch holds, but enough tiles for the threads, and no narrow one at the end."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, size = STRETCH // itemsize, tiles
    while size > GRAIN and (rows + size - 1) // size < threads:
        size //= 2
    tiles = (rows + size - 1) // size
    return padded((rows + tiles - 1) // tiles)


cdef inline Py_ssize_t near_columns(Py_ssize_t n, size_t itemsize) noexcept nogil:
    """Columns of n classes, at most BLOCK, whose block is copied at once."""
    cdef Py_ssize_t most = STRETCH // itemsize, fit = CACHED // (n * <Py_ssize_t>itemsize) // GRAIN * GRAIN
    return most if fit > most else (fit if fit > GRAIN else GRAIN)


cdef inline Py_ssize_t block_bytes(size_t itemsize) noexcept nogil:
    """Scratch for a copy of the block of near_columns, of a run of both operands, or of LOOSE bytes of columns of each."""
    cdef Py_ssize_t block = GRAIN * BLOCK * <Py_ssize_t>itemsize, loose = 2 * LOOSE * SPAN
    return block if block > loose else loose


cdef inline Py_ssize_t columns_scratch(size_t itemsize) noexcept nogil:
    """Bytes that the columns of a tile take: their block, the lanes' sums and maxima, and what is known of them."""
    return (block_bytes(itemsize) + LANES * (STRETCH // <Py_ssize_t>itemsize) * (5 * <Py_ssize_t>sizeof(double)
            + <Py_ssize_t>itemsize) + <Py_ssize_t>sizeof(Columns))


cdef inline double* lane_sums(real* scratch, int which) noexcept nogil:
    """The which-th of five arrays of a sum for each lane and column, behind the block in scratch."""
    return <double*>(<char*>scratch + block_bytes(sizeof(real))) + which * LANES * (STRETCH // <Py_ssize_t>sizeof(real))


cdef inline real* lane_tops(real* scratch) noexcept nogil:
    return <real*>lane_sums(scratch, 5)


cdef inline Columns* columns_of(real* scratch) noexcept nogil:
    return <Columns*>(lane_tops(scratch) + LANES * (STRETCH // <Py_ssize_t>sizeof(real)))


# ---- loops ------------------------------------------------------------------------------------------------------------------

# Loops get a width, in whole strips, and how far apart in the sums two lanes are: the columns of a tile may be read in parts.

cdef inline Py_ssize_t whole_grains(Py_ssize_t width) noexcept nogil:
    """The width as the compiler is to know it: there is no rest of a vector."""
    return width & -16


cdef loop max_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide, real* tops) noexcept nogil:
    """Maxima of each lane, of n classes from lane 0 on, at most LANES."""
    cdef real top[WIDE]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w
    cdef const real* v
    cdef real* t
    for i in range(n):
        v = x + i * stride
        t = tops + i * width
        for w in range(width):
            top[w] = v[w] if v[w] > t[w] else t[w]
        for w in range(width):
            t[w] = top[w]


cdef loop exp_sum_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide,
                          Py_ssize_t across, const real* reference,
                          bint moments, double* sums, double* moment, real* tops, const char* next,
                          Py_ssize_t next_stride) noexcept nogil:
    """Add n classes, at most a run, to what exp_sum_lanes gives for each lane, or, if asked for moments,
    exp_moment_lanes; tops are those of columns."""
    cdef real m[WIDE]
    cdef real top[WIDE]
    cdef real s[WIDE]
    cdef real u[WIDE]
    cdef real absent[WIDE]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, apart = LANES * stride
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    cdef double* t
    cdef real e0, e1, e2, e3
    for w in range(width):
        m[w] = reference[w]
        top[w] = tops[w]
        absent[w] = -INFINITY
    if n > (RUN - 1) * LANES:
        for i in range(LANES):
            v0 = x + i * stride
            v1 = v0 + apart
            v2 = v1 + apart
            v3 = v2 + apart if i + (RUN - 1) * LANES < n else absent
            fetch_next(next, i, next_stride, width * sizeof(real))
            if moments:
                for w in range(width):
                    e0 = exp_up(v0[w] - m[w])
                    e1 = exp_up(v1[w] - m[w])
                    e2 = exp_up(v2[w] - m[w])
                    e3 = exp_up(v3[w] - m[w])
                    s[w] = (e0 + e1) + (e2 + e3)
                    u[w] = ((fall(m[w], v0[w]) * e0 + fall(m[w], v1[w]) * e1)
                            + (fall(m[w], v2[w]) * e2 + fall(m[w], v3[w]) * e3))
                    top[w] = larger(larger(larger(v0[w], v1[w]), larger(v2[w], v3[w])), top[w])
                t = moment + i * across
                for w in range(width):
                    t[w] += u[w]
            else:
                for w in range(width):
                    s[w] = ((exp_up(v0[w] - m[w]) + exp_up(v1[w] - m[w]))
                            + (exp_up(v2[w] - m[w]) + exp_up(v3[w] - m[w])))
                    top[w] = larger(larger(larger(v0[w], v1[w]), larger(v2[w], v3[w])), top[w])
            t = sums + i * across
            for w in range(width):
                t[w] += s[w]
    else:
        for i in range(n):
            v0 = x + i * stride
            for w in range(width):
                s[w] = exp_up(v0[w] - m[w])
                top[w] = larger(v0[w], top[w])
            t = sums + i % LANES * across
            for w in range(width):
                t[w] += s[w]
            if moments:
                for w in range(width):
                    u[w] = fall(m[w], v0[w]) * s[w]
                t = moment + i % LANES * across
                for w in range(width):
                    t[w] += u[w]
    for w in range(width):
        tops[w] = top[w]


cdef inline void fetch_next(const char* next, Py_ssize_t i, Py_ssize_t stride, Py_ssize_t nbytes) noexcept nogil:
    """Prefetch a lane's part of the run that is read next."""
    if next != NULL:
        fk_prefetch(next, i * stride, nbytes)
        fk_prefetch(next, (i + LANES) * stride, nbytes)
        fk_prefetch(next, (i + 2 * LANES) * stride, nbytes)
        fk_prefetch(next, (i + 3 * LANES) * stride, nbytes)


cdef loop exp_store_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide,
                            Py_ssize_t across, const real* maxima, real* out,
                            double* sums, double* sums_lo, real* tops, const char* next,
                            Py_ssize_t next_stride) noexcept nogil:
    """Add n classes, at most a run, to what exp_store_lanes gives for each lane; out is as wide as the columns and may be x,
    or is NULL: then the columns' maxima are found."""
    cdef real m[WIDE]
    cdef real top[WIDE]
    cdef real a[WIDE]
    cdef real b[WIDE]
    cdef real e0[WIDE]
    cdef real e1[WIDE]
    cdef real e2[WIDE]
    cdef real e3[WIDE]
    cdef real absent[WIDE]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, apart = LANES * stride
    cdef const real* v0
    cdef const real* v1
    cdef const real* v2
    cdef const real* v3
    cdef double* t
    cdef double* t_lo
    cdef real* y
    for w in range(width):
        m[w] = maxima[w]
        top[w] = tops[w]
        absent[w] = -INFINITY
    if n > (RUN - 1) * LANES:
        for i in range(LANES):
            v0 = x + i * stride
            v1 = v0 + apart
            v2 = v1 + apart
            v3 = v2 + apart if i + (RUN - 1) * LANES < n else absent
            fetch_next(next, i, next_stride, width * sizeof(real))
            t = sums + i * across
            t_lo = sums_lo + i * across
            if out == NULL:
                for w in range(width):
                    a[w] = exp_up(v0[w] - m[w]) + exp_up(v1[w] - m[w])
                    b[w] = exp_up(v2[w] - m[w]) + exp_up(v3[w] - m[w])
                    top[w] = larger(larger(larger(v0[w], v1[w]), larger(v2[w], v3[w])), top[w])
            else:
                for w in range(width):
                    e0[w] = exp_up(v0[w] - m[w])
                    e1[w] = exp_up(v1[w] - m[w])
                    e2[w] = exp_up(v2[w] - m[w])
                    e3[w] = exp_up(v3[w] - m[w])
                    a[w] = e0[w] + e1[w]
                    b[w] = e2[w] + e3[w]
                y = out + i * width
                for w in range(width):
                    y[w] = e0[w]
                y += LANES * width
                for w in range(width):
                    y[w] = e1[w]
                y += LANES * width
                for w in range(width):
                    y[w] = e2[w]
                y += LANES * width
                if v3 != absent:
                    for w in range(width):
                        y[w] = e3[w]
            if real is float:
                for w in range(width):
                    t[w] += <double>a[w] + <double>b[w]
            else:
                for w in range(width):
                    two_sum_add(&t[w], &t_lo[w], a[w] + b[w])
    else:
        for i in range(n):
            v0 = x + i * stride
            for w in range(width):
                a[w] = exp_up(v0[w] - m[w])
                top[w] = larger(v0[w], top[w])
            if out != NULL:
                y = out + i * width
                for w in range(width):
                    y[w] = a[w]
            t = sums + i % LANES * across
            t_lo = sums_lo + i % LANES * across
            for w in range(width):
                if real is float:
                    t[w] += a[w]
                else:
                    two_sum_add(&t[w], &t_lo[w], a[w])
    for w in range(width):
        tops[w] = top[w]


cdef loop map_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide, const real* m, const real* k,
                      bint log, real down, real* out, Py_ssize_t out_stride, const char* next, Py_ssize_t next_stride,
                      char* target, Py_ssize_t target_stride) noexcept nogil:
    """n classes of map_block, with 2^-64 taken as a factor of its own, `down`, where it is not in k; out may be x."""
    cdef real y[WIDE]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w
    cdef const real* v
    cdef real* place
    for i in range(n):
        v = x + i * stride
        fk_prefetch(next, i * next_stride, width * sizeof(real))
        fk_prefetch_write(target, i * target_stride, width * sizeof(real))
        if log:
            for w in range(width):
                y[w] = (v[w] - m[w]) - k[w]
        else:
            for w in range(width):
                y[w] = exp_up(v[w] - m[w]) * k[w] * down
        place = out + i * out_stride
        for w in range(width):
            place[w] = y[w]


cdef loop scale_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide, const real* k, real* out,
                        Py_ssize_t out_stride) noexcept nogil:
    """softmax_scale of n classes."""
    cdef real y[WIDE]
    cdef real down = FK_DOWN
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w
    cdef const real* v
    cdef real* place
    for i in range(n):
        v = x + i * stride
        for w in range(width):
            y[w] = v[w] * k[w] * down
        place = out + i * out_stride
        for w in range(width):
            place[w] = y[w]


cdef void fold_columns(double* t, Py_ssize_t width) noexcept nogil:
    """fold_sum of each column, into the first lane."""
    cdef Py_ssize_t i, half = LANES // 2 * width
    while half >= width:
        for i in range(half):
            t[i] += t[half + i]
        half //= 2


cdef void fold_two_sum_columns(double* hi, double* lo, Py_ssize_t width) noexcept nogil:
    """fold_two_sum of each column."""
    cdef Py_ssize_t i, half = LANES // 2 * width
    cdef double s, b
    while half >= width:
        for i in range(half):
            s = hi[i] + hi[half + i]
            b = s - hi[i]
            lo[i] = (lo[i] + lo[half + i]) + ((hi[i] - (s - b)) + (hi[half + i] - b))
            hi[i] = s
        half //= 2


# ---- where the columns' numbers are --------------------------------------------------------------------------------------

cdef inline Py_ssize_t columns_in_place(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                                        real* like) noexcept nogil:
    """How many of some columns the loops may read where they lie: whole strips, one stride from class to class."""
    cdef int i
    if (plan.has_mask or run_length(plan.n_outer, plan.outer_shape, row, rows) < rows
            or run_length(plan.n_inner, plan.inner_shape, start, n) < n):
        return 0
    for i in range(plan.operands):
        if plan.operand[i].divisor != 1:
            return 0
    return rows // GRAIN * GRAIN


cdef inline char* place_of(const Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t start) noexcept nogil:
    return row_pointer(plan, a, row) + offset_of(plan.n_inner, plan.inner_shape, a.inner, start)


cdef void copy_columns(const Plan* plan, int operand, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                       real* x) noexcept nogil:
    """n classes of some rows, each class as wide as the padded columns."""
    cdef Py_ssize_t width = padded(rows), c, w
    cdef real absent = absent_element[real](plan, operand, NULL)
    fetch[real](plan, &plan.operand[operand], row, rows, start, n, x, 1, width, absent)
    if rows < width:
        for c in range(n):
            for w in range(rows, width):
                x[c * width + w] = absent


cdef void leave_out_labels(const Plan* plan, const Py_ssize_t* index, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                           real* x) noexcept nogil:
    """Put -inf for the labels among n classes of a copy."""
    cdef Py_ssize_t w, hole
    for w in range(rows if plan.has_labels else 0):
        hole = hole_in(plan, index[w], start, n)
        if hole >= 0:
            x[hole * padded(rows) + w] = -INFINITY


cdef inline bint has_label(const Plan* plan, const Py_ssize_t* index, Py_ssize_t rows, Py_ssize_t start,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t w
    for w in range(rows if plan.has_labels else 0):
        if hole_in(plan, index[w], start, n) >= 0:
            return True
    return False


cdef void copy_block(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                     const Py_ssize_t* index, real* scratch, real* tops, real* lanes) noexcept nogil:
    """A copy of a block without its labels; each column's maximum, and the first lane that holds it."""
    cdef Py_ssize_t width = padded(rows), c, size, i, w
    cdef real* of_lanes = lane_tops(scratch)
    cdef real* x
    for i in range(LANES * width):
        of_lanes[i] = -INFINITY
    for c from 0 <= c < n by LANES:
        size = LANES if c + LANES < n else n - c
        x = scratch + c * width
        copy_columns[real](plan, 0, row, rows, start + c, size, x)
        leave_out_labels[real](plan, index, rows, start + c, size, x)
        max_columns(x, width, size, width, of_lanes)
    for w in range(width):
        tops[w] = of_lanes[w]
    for i in range(LANES):
        for w in range(width):
            tops[w] = of_lanes[i * width + w] if of_lanes[i * width + w] > tops[w] else tops[w]
    i = LANES
    while i > 0:
        i -= 1
        for w in range(width):
            lanes[w] = i if of_lanes[i * width + w] == tops[w] else lanes[w]


cdef inline Py_ssize_t find_in_lane(const real* x, Py_ssize_t width, Py_ssize_t n, Py_ssize_t lane, real top) noexcept nogil:
    """find_top of a column, which starts at x, whose first lane with the maximum is known."""
    cdef Py_ssize_t c = lane
    while c < n:
        if x[c * width] == top:
            return c
        c += LANES
    return -1


# ---- log-sum-exp -----------------------------------------------------------------------------------------------------------

cdef void open_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n, bint opening,
                       const Py_ssize_t* index, State* states, const char* next, Py_ssize_t next_stride,
                       real* scratch) noexcept nogil:
    """Add a block, whose maxima are not known yet, to the states of some columns: open_row, if it is the first, and
    logsumexp_block."""
    cdef real tops[WIDE]
    cdef real lanes[WIDE]
    cdef real m[WIDE]
    cdef real spare[WIDE]
    cdef double* sums = lane_sums(scratch, 0)
    cdef double* moment = lane_sums(scratch, 1)
    cdef Py_ssize_t width = padded(rows), w, c, i, size
    cdef bint moments = plan.op == ENTROPY_OF_LOGITS
    cdef State* st
    copy_block[real](plan, row, rows, start, n, index, scratch, tops, lanes)
    for w in range(width):
        m[w] = 0
        spare[w] = -INFINITY
    for w in range(rows):
        if skipped(plan, index[w]):
            continue
        st = &states[w]
        if opening or tops[w] > <real>(st.m + 1):
            if not opening:
                rescale(st, tops[w])
            if tops[w] == -INFINITY:
                st.m = lowest(tops[w])     # as set_reference
            else:
                st.m = tops[w]
                st.c = 1
                scratch[find_in_lane(scratch + w, width, n, <Py_ssize_t>lanes[w], tops[w]) * width + w] = -INFINITY
        m[w] = <real>st.m if st.m < INFINITY else <real>0
    for i in range(LANES * width):
        sums[i] = 0
    if moments:
        for i in range(LANES * width):
            moment[i] = 0
    for c from 0 <= c < n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < n else n - c
        exp_sum_columns(scratch + c * width, width, size, width, width, m, moments, sums, moment, spare,
                        next + c * next_stride if next != NULL else NULL, next_stride)
    fold_columns(sums, width)
    if moments:
        fold_columns(moment, width)
    for w in range(rows):
        st = &states[w]
        if skipped(plan, index[w]):
            continue
        if st.m == INFINITY:
            for c in range(n):
                if scratch[c * width + w] != scratch[c * width + w]:
                    st.s = NAN
            continue
        two_sum_add(&st.s, &st.s_lo, sums[w] * FK_DOWN)
        if moments:
            two_sum_add(&st.u, &st.u_lo, moment[w] * FK_DOWN)


cdef void logsumexp_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                            const Py_ssize_t* index, State* states, real* scratch) noexcept nogil:
    """Add a later block to the states of some columns. Where a maximum exceeds the reference by more than 1, the whole strip
    is opened again."""
    cdef real tops[WIDE]
    cdef real m[WIDE]
    cdef bint again[GRAINS]
    cdef double* sums = lane_sums(scratch, 0)
    cdef double* moment = lane_sums(scratch, 1)
    cdef Py_ssize_t width = padded(rows), w, c, i, size, stride, strip, whole, at, wide
    cdef bint moments = plan.op == ENTROPY_OF_LOGITS
    cdef const real* x
    cdef const char* next
    cdef State* st
    for w in range(width):
        m[w] = <real>states[w].m if w < rows and not skipped(plan, index[w]) and states[w].m < INFINITY else <real>0
        tops[w] = -INFINITY
    for i in range(LANES * width):
        sums[i] = 0
    if moments:
        for i in range(LANES * width):
            moment[i] = 0
    for c from start <= c < start + n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < start + n else start + n - c
        whole = 0 if has_label(plan, index, rows, c, size) else columns_in_place[real](plan, row, rows, c, size, NULL)
        at = 0
        while at < rows:
            x = part_of_run[real](plan, 0, row, rows, c, size, whole, at, scratch, &stride, &wide, &next)
            if x == scratch:
                leave_out_labels[real](plan, index + at, rows - at, c, size, scratch)
            exp_sum_columns(x, stride, size, wide, width, m + at, moments, sums + at, moment + at, tops + at, next,
                            last_stride(plan.n_inner, plan.operand[0].inner))
            at += wide
    fold_columns(sums, width)
    if moments:
        fold_columns(moment, width)
    for strip in range(GRAINS):
        again[strip] = False
    for w in range(rows):
        if not skipped(plan, index[w]) and (states[w].m == INFINITY or tops[w] > <real>(states[w].m + 1)):
            again[w // GRAIN] = True
    for w in range(rows):
        st = &states[w]
        if skipped(plan, index[w]) or again[w // GRAIN]:
            continue
        two_sum_add(&st.s, &st.s_lo, sums[w] * FK_DOWN)
        if moments:
            two_sum_add(&st.u, &st.u_lo, moment[w] * FK_DOWN)
    for strip in range((rows + GRAIN - 1) // GRAIN):
        if again[strip]:
            w = strip * GRAIN
            open_columns[real](plan, row + w, GRAIN if w + GRAIN < rows else rows - w, start, n, False, index + w,
                               states + w, NULL, 0, scratch)


cdef const real* part_of_run(const Plan* plan, int operand, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                             Py_ssize_t n, Py_ssize_t whole, Py_ssize_t at, real* copy, Py_ssize_t* stride,
                             Py_ssize_t* wide, const char** next) noexcept nogil:
    """Where n classes, at most a run, of the columns from the at-th on are read: of the `whole` first ones in place, of the
    others from a copy. wide: how many columns that gives; next: where the run after them lies, or NULL."""
    cdef const Operand* a = &plan.operand[operand]
    next[0] = NULL
    if start + n < plan.classes and run_length(plan.n_inner, plan.inner_shape, start, 2 * n) >= 2 * n:
        next[0] = place_of(plan, a, row + at, start + n)
    if at < whole:
        wide[0] = whole
        stride[0] = last_stride(plan.n_inner, a.inner) // <Py_ssize_t>sizeof(real)
        return <const real*>place_of(plan, a, row, start)
    copy_columns[real](plan, operand, row + at, rows - at, start, n, copy)
    wide[0] = stride[0] = padded(rows - at)
    return copy


cdef void scan_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop,
                       const Py_ssize_t* index, State* states, real* scratch) noexcept nogil:
    """scan_rows of columns, at most a stretch."""
    cdef Py_ssize_t first = start, n, i, size, some
    cdef const char* next
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        if plan.op >= ENTROPY:
            divergence_columns[real](plan, row, rows, first, n, states, scratch)
        elif first == start:
            some = near_columns(n, sizeof(real))
            for i from 0 <= i < rows by some:
                size = some if i + some < rows else rows - i
                next = next_columns[real](plan, row + i, size, i + size < rows, NULL)
                open_columns[real](plan, row + i, size, first, n, True, index + i, states + i, next,
                                   last_stride(plan.n_inner, plan.operand[0].inner), scratch)
        else:
            logsumexp_columns[real](plan, row, rows, first, n, index, states, scratch)
        first += n


cdef inline const char* next_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, bint of_tile,
                                     real* like) noexcept nogil:
    """Where the columns after some lie, if they are what is read next, else NULL. of_tile: they belong to the same tile."""
    if ((of_tile or plan.classes <= BLOCK) and row + 2 * rows <= plan.last_row
            and run_length(plan.n_outer, plan.outer_shape, row, 2 * rows) == 2 * rows and plan.n_inner == 1):
        return row_pointer(plan, &plan.operand[0], row) + rows * sizeof(real)
    return NULL


# ---- divergences -------------------------------------------------------------------------------------------------------------

cdef inline void add_to_lane(const real* s, Py_ssize_t width, double* t, double* t_lo) noexcept nogil:
    """add_run of a lane, the sums of a run's terms being s."""
    cdef double hi[WIDE]
    cdef double lo[WIDE]
    cdef Py_ssize_t w
    if real is float:
        for w in range(width):
            t[w] += s[w]
    else:
        for w in range(width):
            hi[w] = t[w]
            lo[w] = t_lo[w]
        for w in range(width):
            two_sum_add(&hi[w], &lo[w], s[w])
        for w in range(width):
            t[w] = hi[w]
        for w in range(width):
            t_lo[w] = lo[w]


cdef inline void add_terms(real* terms, Py_ssize_t vectors, Py_ssize_t width, double* t, double* t_lo) noexcept nogil:
    """What the loops of divergence.pxi do with a run of a lane: in float its terms are added one after another, in double as
    add_strip has it, in pairs where there are RUN and else one by one."""
    cdef Py_ssize_t k, w
    if real is float:
        for k in range(1, vectors):
            for w in range(width):
                terms[w] += terms[k * WIDE + w]
        vectors = 1
    elif vectors == RUN:
        for w in range(width):
            terms[w] = (terms[w] + terms[WIDE + w]) + (terms[2 * WIDE + w] + terms[3 * WIDE + w])
        vectors = 1
    for k in range(vectors):
        add_to_lane(terms + k * WIDE, width, t, t_lo)


cdef loop kl_columns(int op, const real* p, Py_ssize_t p_stride, const real* q, Py_ssize_t q_stride, Py_ssize_t n,
                     Py_ssize_t wide, Py_ssize_t across, double* sums, double* sums_lo, double* differences,
                     double* differences_lo,
                     double* masses, uint32_t* odd32, uint64_t* odd64, const char* p_next, Py_ssize_t p_next_stride,
                     const char* q_next, Py_ssize_t q_next_stride) noexcept nogil:
    """Add n classes, at most a run, to what kl_lanes gives for each lane; odd are those of columns."""
    cdef real terms[RUN * WIDE]
    cdef double hi[WIDE]
    cdef double lo[WIDE]
    cdef uint32_t word32[WIDE]
    cdef uint64_t word64[WIDE]
    cdef real absent[WIDE]
    cdef real low = smallest_q(<real>0), high = largest(<real>0)
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, c, vectors = (n + LANES - 1) // LANES, k
    cdef const real* x[RUN]
    cdef const real* y[RUN]
    cdef const real* v
    cdef const real* u
    cdef double* t
    cdef double* t_lo
    for w in range(width):
        absent[w] = low
        word32[w] = odd32[w]
        word64[w] = odd64[w]
    for i in range(LANES):
        for k in range(vectors):
            c = k * LANES + i
            x[k] = p + c * p_stride if c < n else absent
            y[k] = q + c * q_stride if c < n else absent
            fk_prefetch(p_next, c * p_next_stride, width * sizeof(real))
            fk_prefetch(q_next, c * q_next_stride, width * sizeof(real))
        for k in range(vectors):
            v = x[k]
            u = y[k]
            for w in range(width):
                terms[k * WIDE + w] = kl_term(v[w], u[w])
                if real is float:
                    word32[w] |= fk_outside_f32(v[w], u[w], low, high)
                else:
                    word64[w] |= fk_outside_f64(v[w], u[w], low, high)
        add_terms(terms, vectors, width, sums + i * across, sums_lo + i * across)
        if op != GENERALIZED_KL:
            t = differences + i * across
            t_lo = differences_lo + i * across
            for w in range(width):
                hi[w] = t[w]
                lo[w] = t_lo[w]
            for k in range(vectors):
                v = x[k]
                u = y[k]
                for w in range(width):
                    if real is float:
                        hi[w] += <double>(v[w] - u[w])
                    else:
                        two_sum_add(&hi[w], &lo[w], v[w] - u[w])
            for w in range(width):
                t[w] = hi[w]
            if real is double:
                for w in range(width):
                    t_lo[w] = lo[w]
        if op == KL_NORMALIZED:
            t = masses + i * across
            for w in range(width):
                hi[w] = t[w]
            for k in range(vectors):
                v = x[k]
                for w in range(width):
                    hi[w] += <double>v[w]
            for w in range(width):
                t[w] = hi[w]
    for w in range(width):
        odd32[w] = word32[w]
        odd64[w] = word64[w]


cdef loop entropy_columns(int op, const real* p, Py_ssize_t p_stride, const real* q, Py_ssize_t q_stride, Py_ssize_t n,
                          Py_ssize_t wide, Py_ssize_t across, double* sums, double* sums_lo, uint32_t* odd32, uint64_t* odd64,
                          const char* p_next, Py_ssize_t p_next_stride, const char* q_next,
                          Py_ssize_t q_next_stride) noexcept nogil:
    """The same of entropy_lanes or, where there is a q, cross_entropy_lanes."""
    cdef real terms[RUN * WIDE]
    cdef uint32_t word32[WIDE]
    cdef uint64_t word64[WIDE]
    cdef real low = 2.0 ** -149 if real is float else 2.0 ** -1022
    cdef real high = largest(<real>0), zero = 0, infinity = INFINITY
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, c, k
    cdef const real* v
    cdef const real* u
    for w in range(width):
        word32[w] = odd32[w]
        word64[w] = odd64[w]
    for i in range(LANES if n > LANES else n):
        for w in range(RUN * WIDE):
            terms[w] = 0
        c = i
        k = 0
        while c < n:
            v = p + c * p_stride
            u = q + c * q_stride
            fk_prefetch(p_next, c * p_next_stride, width * sizeof(real))
            fk_prefetch(q_next, c * q_next_stride, width * sizeof(real))
            if op == ENTROPY:
                for w in range(width):
                    terms[k + w] = shannon_term(v[w])
                    if real is float:
                        word32[w] |= fk_outside_f32(v[w], v[w], zero, high)
                    else:
                        word64[w] |= fk_outside_f64(v[w], v[w], zero, high)
            else:
                for w in range(width):
                    terms[k + w] = -v[w] * log_of(u[w])
                    if real is float:
                        word32[w] |= fk_outside_f32(u[w], u[w], low, high) | fk_outside_f32(v[w], v[w], zero, infinity)
                    else:
                        word64[w] |= fk_outside_f64(u[w], u[w], low, high) | fk_outside_f64(v[w], v[w], zero, infinity)
            c += LANES
            k += WIDE
        add_terms(terms, (n + LANES - 1) // LANES, width, sums + i * across, sums_lo + i * across)
    for w in range(width):
        odd32[w] = word32[w]
        odd64[w] = word64[w]


cdef void divergence_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                             State* states, real* scratch) noexcept nogil:
    """divergence_block of columns. A column outside the fast domain, or about to be, goes through divergence_block itself,
    which decides: what counts as odd here must hold all that does there, and may hold more."""
    cdef uint32_t odd32[WIDE]
    cdef uint64_t odd64[WIDE]
    cdef bint odd[WIDE]
    cdef double* t = lane_sums(scratch, 0)
    cdef double* t_lo = lane_sums(scratch, 1)
    cdef double* d = lane_sums(scratch, 2)
    cdef double* e = lane_sums(scratch, 3)
    cdef double* mass = lane_sums(scratch, 4)
    cdef real* q_copy = scratch + RUN * LANES * (STRETCH // <Py_ssize_t>sizeof(real))
    cdef Py_ssize_t width = padded(rows), lanes = LANES * width, w, c, i, size, p_stride, q_stride = 0, some, first
    cdef Py_ssize_t whole, at, wide
    cdef Py_ssize_t count = (n + LANES - 1) // LANES
    cdef int op = plan.op
    cdef const real* p
    cdef const real* q = NULL
    cdef const char* p_next
    cdef const char* q_next = NULL
    cdef double size_of, least = smallest_q(<real>0), rest = -(count * LANES - n) * <double>absent_p(op, <real>0)
    cdef State* st
    cdef bint loose
    for i in range(lanes):
        t[i] = t_lo[i] = d[i] = e[i] = mass[i] = 0
    for w in range(width):
        odd32[w] = odd64[w] = 0
        odd[w] = False
    for c from start <= c < start + n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < start + n else start + n - c
        whole = columns_in_place[real](plan, row, rows, c, size, NULL)
        at = 0
        while at < rows:
            p = part_of_run[real](plan, 0, row, rows, c, size, whole, at, scratch, &p_stride, &wide, &p_next)
            if plan.operands > 1:
                q = part_of_run[real](plan, 1, row, rows, c, size, whole, at, q_copy, &q_stride, &wide, &q_next)
            if op == ENTROPY or op == CROSS_ENTROPY:
                entropy_columns(op, p, p_stride, q, q_stride, size, wide, width, t + at, t_lo + at, odd32 + at, odd64 + at,
                                p_next, last_stride(plan.n_inner, plan.operand[0].inner),
                                q_next, last_stride(plan.n_inner, plan.operand[1].inner))
            else:
                kl_columns(op, p, p_stride, q, q_stride, size, wide, width, t + at, t_lo + at, d + at, e + at, mass + at,
                           odd32 + at, odd64 + at, p_next, last_stride(plan.n_inner, plan.operand[0].inner),
                           q_next, last_stride(plan.n_inner, plan.operand[1].inner))
            at += wide
    for i in range(LANES):
        for w in range(width):
            t[i * width + w] = closed(t[i * width + w], t_lo[i * width + w])
            size_of = t[i * width + w] if t[i * width + w] > 0 else -t[i * width + w]
            odd[w] |= (size_of - size_of != 0) | ((size_of > 0) & (size_of < least))
    for w in range(width):
        odd[w] |= odd32[w] >> 31 if real is float else odd64[w] >> 63
    fold_columns(t, width)
    if op == KL or op == KL_NORMALIZED:
        if real is float:
            fold_columns(d, width)
        else:
            fold_two_sum_columns(d, e, width)
    if op == KL_NORMALIZED:
        fold_columns(mass, width)
    for w in range(rows):
        if odd[w]:
            continue
        st = &states[w]
        two_sum_add(&st.s, &st.s_lo, t[w])
        if op == KL or op == KL_NORMALIZED:
            two_sum_add(&st.u, &st.u_lo, d[w])
            if real is double:
                st.u_lo += e[w]
        if op == KL_NORMALIZED:
            two_sum_add(&st.v, &st.v_lo, mass[w])
            two_sum_add(&st.v, &st.v_lo, rest)
    some = LOOSE // sizeof(real)
    for first from 0 <= first < rows by some:
        size = some if first + some < rows else rows - first
        loose = False
        for w in range(first, first + size):
            loose |= odd[w]
        if not loose:
            continue
        for i in range(plan.operands):
            fetch[real](plan, &plan.operand[i], row + first, size, start, n, scratch + i * some * SPAN, SPAN, 1,
                        absent_element[real](plan, <int>i, NULL))
        for w in range(size):
            if odd[first + w]:
                divergence_block[real](op, scratch + w * SPAN, scratch + (some + w) * SPAN, n, NULL, NULL,
                                       &states[first + w])


# ---- softmax and log_softmax -------------------------------------------------------------------------------------------

cdef void store_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n, const real* k, real* y,
                        Py_ssize_t stride, bint placed) noexcept nogil:
    """Results of n classes: give those without a softmax one NaN, mask, and store unless they are in their place."""
    cdef Py_ssize_t w, c
    for w in range(rows):
        if k[w] != k[w]:
            for c in range(n):
                y[c * stride + w] = NAN
    if plan.has_mask:
        mask_out[real](plan, row, rows, start, n, y, 1, stride, 0)
    if not placed:
        put[real](plan, row, rows, start, n, y, 1, stride)


cdef inline bint placed_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                                real* like) noexcept nogil:
    """Whether the loops may store n classes of some rows where they belong."""
    return (rows % GRAIN == 0 and side_by_side(&plan.out, last_stride(plan.n_outer, plan.out.outer), like)
            and run_length(plan.n_outer, plan.outer_shape, row, rows) == rows
            and run_length(plan.n_inner, plan.inner_shape, start, n) == n)


cdef void map_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop, const real* m,
                         const real* k, bint log, real down, real* scratch) noexcept nogil:
    """The second pass over classes start .. stop of some columns, run by run."""
    cdef Py_ssize_t n, stride, out_stride, next_stride = last_stride(plan.n_inner, plan.operand[0].inner), at, wide, some
    cdef Py_ssize_t target_stride = last_stride(plan.n_inner, plan.out.inner), whole
    cdef bint placed
    cdef const real* x
    cdef const char* next
    cdef char* target
    cdef real* y
    while start < stop:
        n = RUN * LANES if start + RUN * LANES < stop else stop - start
        whole = columns_in_place[real](plan, row, rows, start, n, NULL)
        at = 0
        while at < rows:
            x = part_of_run[real](plan, 0, row, rows, start, n, whole, at, scratch, &stride, &wide, &next)
            some = wide if at + wide < rows else rows - at
            placed = placed_columns[real](plan, row + at, some, start, n, NULL)
            y = scratch
            out_stride = wide
            target = NULL
            if placed:
                y = <real*>place_of(plan, &plan.out, row + at, start)
                out_stride = target_stride // <Py_ssize_t>sizeof(real)
                if next != NULL:
                    target = <char*>place_of(plan, &plan.out, row + at, start + n)
            map_columns(x, stride, n, wide, m + at, k + at, log, down, y, out_stride, next, next_stride, target,
                        target_stride)
            store_columns[real](plan, row + at, some, start, n, k + at, y, out_stride, placed)
            at += wide
        start += n


cdef void open_softmax_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t b, Py_ssize_t n, Py_ssize_t at,
                               Columns* r, bint store, const char* next, Py_ssize_t next_stride,
                               real* scratch) noexcept nogil:
    """softmax_block of some columns, the at-th of r and after: the exponentials are left in scratch if asked for."""
    cdef real tops[WIDE]
    cdef real lanes[WIDE]
    cdef real m[WIDE]
    cdef Py_ssize_t no_label = NO_LABEL, width = padded(rows), w, c, i, size
    cdef double* sums = lane_sums(scratch, 0)
    cdef double* sums_lo = lane_sums(scratch, 1)
    cdef double top
    copy_block[real](plan, row, rows, b * BLOCK, n, &no_label, scratch, tops, lanes)
    for w in range(width):
        m[w] = 0
    for w in range(rows):
        top = tops[w]
        if b == 0:
            r.m[0][at + w] = lowest(tops[w]) if top == -INFINITY else top
            r.s[at + w] = 0
        elif top > r.m[b - 1][at + w] + 1:
            r.m[b][at + w] = top
            r.s[at + w] *= exp_up_f64(r.m[b - 1][at + w] - top) * FK_DOWN
        else:
            r.m[b][at + w] = r.m[b - 1][at + w]
        m[w] = <real>r.m[b][at + w]
    for i in range(LANES * width):
        sums[i] = sums_lo[i] = 0
    for c from 0 <= c < n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < n else n - c
        exp_store_columns(scratch + c * width, width, size, width, width, m, scratch + c * width if store else NULL,
                          sums, sums_lo, tops, next + c * next_stride if next != NULL else NULL, next_stride)
    for i in range(LANES * width):
        sums[i] += sums_lo[i]
    fold_columns(sums, width)
    for w in range(rows):
        r.s[at + w] += sums[w]


cdef void softmax_block_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t b, Py_ssize_t n,
                                Columns* r, real* scratch) noexcept nogil:
    """The sums of a later block, as logsumexp_columns."""
    cdef real tops[WIDE]
    cdef real m[WIDE]
    cdef Py_ssize_t width = padded(rows), w, c, i, size, stride, start = b * BLOCK, strip, whole, at, wide
    cdef double* sums = lane_sums(scratch, 0)
    cdef double* sums_lo = lane_sums(scratch, 1)
    cdef bint again[GRAINS]
    cdef const real* x
    cdef const char* next
    for w in range(width):
        m[w] = <real>r.m[b - 1][w] if w < rows else <real>0
        tops[w] = -INFINITY
    for i in range(LANES * width):
        sums[i] = sums_lo[i] = 0
    for c from start <= c < start + n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < start + n else start + n - c
        whole = columns_in_place[real](plan, row, rows, c, size, NULL)
        at = 0
        while at < rows:
            x = part_of_run[real](plan, 0, row, rows, c, size, whole, at, scratch, &stride, &wide, &next)
            exp_store_columns(x, stride, size, wide, width, m + at, NULL, sums + at, sums_lo + at, tops + at, next,
                              last_stride(plan.n_inner, plan.operand[0].inner))
            at += wide
    for i in range(LANES * width):
        sums[i] += sums_lo[i]
    fold_columns(sums, width)
    for strip in range(GRAINS):
        again[strip] = False
    for w in range(rows):
        again[w // GRAIN] |= tops[w] > r.m[b - 1][w] + 1
    for w in range(rows):
        if not again[w // GRAIN]:
            r.m[b][w] = r.m[b - 1][w]
            r.s[w] += sums[w]
    for strip in range((rows + GRAIN - 1) // GRAIN):
        if again[strip]:
            w = strip * GRAIN
            open_softmax_columns[real](plan, row + w, GRAIN if w + GRAIN < rows else rows - w, b, n, w, r, False, NULL, 0,
                                       scratch)


cdef void softmax_factors(const Columns* r, Py_ssize_t at, Py_ssize_t rows, Py_ssize_t b, Py_ssize_t last, real* m,
                          real* k) noexcept nogil:
    """A block's references, and its factors as in softmax_scale, of the at-th column and after."""
    cdef Py_ssize_t w
    for w in range(padded(rows)):
        m[w] = k[w] = 0
    for w in range(rows):
        m[w] = <real>r.m[b][at + w]
        k[w] = <real>(softmax_factor(r.m[last][at + w], r.s[at + w] * FK_DOWN)
                      * (exp_up_f64(r.m[b][at + w] - r.m[last][at + w]) * FK_DOWN))


cdef void softmax_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """softmax_of_rows of columns, at most a stretch. Exponentials of one block are kept in scratch; of more, they are
    computed twice, to the same bits."""
    cdef Columns* r = columns_of(scratch)
    cdef real m[WIDE]
    cdef real k[WIDE]
    cdef Py_ssize_t n = plan.classes, last = (n - 1) // BLOCK, b, i, size, some, stride
    cdef bint placed
    cdef real* y
    some = near_columns(n if n < BLOCK else BLOCK, sizeof(real))
    for i from 0 <= i < rows by some:
        size = some if i + some < rows else rows - i
        open_softmax_columns[real](plan, row + i, size, 0, n if last == 0 else BLOCK, i, r, last == 0,
                                   next_columns[real](plan, row + i, size, i + size < rows, NULL),
                                   last_stride(plan.n_inner, plan.operand[0].inner), scratch)
        if last > 0:
            continue
        softmax_factors[real](r, i, size, 0, 0, m, k)
        placed = placed_columns[real](plan, row + i, size, 0, n, NULL)
        y = <real*>place_of(plan, &plan.out, row + i, 0) if placed else scratch
        stride = last_stride(plan.n_inner, plan.out.inner) // <Py_ssize_t>sizeof(real) if placed else padded(size)
        scale_columns(scratch, padded(size), n, padded(size), k, y, stride)
        store_columns[real](plan, row + i, size, 0, n, k, y, stride, placed)
    for b in range(1, last + 1):
        softmax_block_columns[real](plan, row, rows, b, BLOCK if b < last else n - last * BLOCK, r, scratch)
    for b in range(last + 1 if last > 0 else 0):
        softmax_factors[real](r, 0, rows, b, last, m, k)
        map_of_columns[real](plan, row, rows, b * BLOCK, (b + 1) * BLOCK if b < last else n, m, k, False, <real>FK_DOWN,
                             scratch)


# ---- tiles ---------------------------------------------------------------------------------------------------------------

cdef void scan_chunks_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Columns* r, real* scratch) noexcept nogil:
    """scan_chunks of columns."""
    cdef Py_ssize_t w, start = 0, stop
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        for w in range(rows):
            start_state(&r.chunk[w])
        scan_columns[real](plan, row, rows, start, stop, r.index, r.chunk, scratch)
        for w in range(rows):
            if start == 0:
                r.states[w] = r.chunk[w]
            else:
                merge(plan, &r.states[w], &r.chunk[w])
        start = stop


cdef void tile_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """tile_rows of columns, at most a stretch."""
    cdef Sums a
    cdef Columns* r = columns_of(scratch)
    cdef double factors[TILE]
    cdef real m[WIDE]
    cdef real k[WIDE]
    cdef Py_ssize_t first = 0, w, n
    cdef bint maps = plan.op == SOFTMAX or plan.op == LOG_SOFTMAX
    if plan.op == SOFTMAX and plan.classes <= CHUNK:
        softmax_of_columns[real](plan, row, rows, scratch)
        return
    while first < rows and plan.has_labels:
        n = TILE if first + TILE < rows else rows - first
        read_labels[real](plan, row + first, n, &a, NULL)
        for w in range(n):
            r.index[first + w] = a.index[w]
            r.label[first + w] = a.label[w]
        first += n
    scan_chunks_of_columns[real](plan, row, rows, r, scratch)
    first = 0
    while first < rows:
        n = TILE if first + TILE < rows else rows - first
        for w in range(n):
            keep_state(&r.states[first + w], w, &a)
            a.index[w] = r.index[first + w]
            a.label[w] = r.label[first + w]
        if maps:
            map_factors(&a, n, plan.op == LOG_SOFTMAX, real is float, factors)
            for w in range(n):
                m[first + w] = <real>a.m[w]
                k[first + w] = <real>factors[w]
        else:
            finish_rows[real](plan, row + first, n, &a, scratch)
        first += n
    if maps:
        for w in range(rows, padded(rows)):
            m[w] = k[w] = 0
        map_of_columns[real](plan, row, rows, 0, plan.classes, m, k, plan.op == LOG_SOFTMAX, 1, scratch)
