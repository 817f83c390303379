# Rows that lie side by side: the reduction of an axis that is not the last. A class's numbers of a few dozen such rows, here
# columns, are one stretch of memory; the loops take it as vectors over columns, and nothing is transposed.
#
# A row's bits do not depend on where it lies: every addition is that of the loop along the row that bears the same name
# with _lanes. A lane is the sum of every 32nd class there and a vector of such sums here, at sums[lane * across], one for
# each column; RUN classes that are LANES apart are added in the data's own type. A change to one of those loops is to be
# made here, too: tests/test_same_bits.py holds one against the other.
#
# Most numbers are read where they lie. What is masked is copied, and so are the columns after the last whole GRAIN where the
# array does not go on behind them; sums of columns that only fill a GRAIN are not read. Of a class with elements that are to
# be left out of their columns (the label, the maximum) the stretch is copied, with -inf there.
#
# A few columns without gaps between their classes are not a stretch. There the loops take several classes, of neighbouring
# lanes, as one of several times as many columns: what is at sums[lane * across + column] otherwise is at the same place. The
# unit is how many classes are taken as one: a power of two up to LANES, so that a unit is in whole strips, or 1.

from libc.stdint cimport int16_t

cdef enum:
    GRAIN = 32          # widths are multiples of it: what exp_vector takes
    GRAINS = 8          # in a tile, at most
    WIDE = 256          # columns of a tile, at most: STRETCH // itemsize of the smaller type
    STRETCH = 1024      # bytes of a class that are read together: memory is not read well in much shorter ones
    LOOSE = 32          # bytes of columns that are copied together to take the form that is right for every double
    NARROW = 128        # fewer columns are a few
    FLAT = 4096         # = LANES * NARROW


# What is known of the columns of a tile while they are read; m and s as in SoftmaxRow.
cdef struct Columns:
    State states[WIDE]
    State chunk[WIDE]
    Py_ssize_t index[WIDE]
    double label[WIDE]
    double m[BLOCKS][WIDE]
    double s[WIDE]
    int16_t absent[BLOCK]       # of each unit of a block an element that is left out, or -1: w is column w's label,
    int16_t others[2 * WIDE]    # WIDE + w its maximum; and of each such element another one of the same unit, or -1,
    int16_t places[2 * WIDE]    # and where it stands in the unit


cdef inline Py_ssize_t padded(Py_ssize_t columns) noexcept nogil:
    """The width of so many columns in a copy."""
    return (columns + GRAIN - 1) // GRAIN * GRAIN


cdef inline bint without_gaps(const Plan* plan, const Operand* a, size_t itemsize) noexcept nogil:
    """Whether the classes of an array's columns follow on one another."""
    return (a.plain and plan.n_inner == 1 and a.outer[plan.n_outer - 1] == <Py_ssize_t>itemsize
            and a.inner[0] == plan.outer_shape[plan.n_outer - 1] * <Py_ssize_t>itemsize)


cdef inline bint chunks_suffice(const Plan* plan, int threads) noexcept nogil:
    """Whether threads that share the chunks of the same columns have about as much to do each."""
    return threads == 1 or plan.classes >= 4 * threads * <Py_ssize_t>CHUNK


cdef inline Py_ssize_t unit_of(const Plan* plan, size_t itemsize, int threads) noexcept nogil:
    """How many classes the loops take as one: all columns go to one thread then, or chunk by chunk to several."""
    cdef Py_ssize_t columns = plan.outer_shape[plan.n_outer - 1] if plan.n_outer > 0 else NARROW, unit = LANES
    cdef int i
    if (columns >= NARROW or plan.has_mask or plan.first_row % columns or plan.last_row % columns
            or (columns > 2 * GRAIN and not chunks_suffice(plan, threads))):
        return 1
    for i in range(plan.operands):
        if plan.operand[i].divisor != 1 or not without_gaps(plan, &plan.operand[i], itemsize):
            return 1
    while unit * columns > WIDE and unit // 2 * columns % GRAIN == 0:
        unit //= 2
    return unit


cdef inline bint by_columns(const Plan* plan, size_t itemsize) noexcept nogil:
    """Whether the rows are taken as columns."""
    cdef int i, storage = FK_F32 if itemsize == sizeof(float) else FK_F64
    cdef const Operand* a
    cdef bint taken = (plan.op == LOGSUMEXP or plan.op == SOFTMAX or plan.op == LOG_SOFTMAX
                       or plan.op == SOFTMAX_CROSS_ENTROPY or plan.op == ENTROPY_OF_LOGITS or plan.op == ENTROPY
                       or plan.op == CROSS_ENTROPY or plan.op == KL or plan.op == KL_NORMALIZED
                       or plan.op == GENERALIZED_KL)
    if (not taken or plan.normalize or plan.classes <= ACROSS or plan.n_outer == 0
            or (plan.outer_shape[plan.n_outer - 1] < GRAIN and plan.unit == 1)):
        return False
    for i in range(plan.operands):
        a = &plan.operand[i]
        if not a.plain or a.storage != storage or a.outer[plan.n_outer - 1] != <Py_ssize_t>itemsize:
            return False
    return True


cdef inline Py_ssize_t tile_size_of_columns(const Plan* plan, size_t itemsize, int threads) noexcept nogil:
    """Columns of a tile: all of a few; else as many as a stretch holds, but enough tiles for the threads, unless a tile's
    chunks are, and no narrow one at the end."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, size = STRETCH // itemsize, tiles
    if plan.unit > 1:
        return plan.outer_shape[plan.n_outer - 1]
    while not chunks_suffice(plan, threads) and size > GRAIN and (rows + size - 1) // size < threads:
        size //= 2
    tiles = (rows + size - 1) // size
    return padded((rows + tiles - 1) // tiles)


cdef inline Py_ssize_t copy_bytes() noexcept nogil:
    """Scratch for a copy of a run of both operands, or of LOOSE bytes of columns of each."""
    cdef Py_ssize_t run = 2 * RUN * LANES * STRETCH, loose = 2 * LOOSE * SPAN
    return run if run > loose else loose


cdef inline Py_ssize_t columns_scratch(size_t itemsize) noexcept nogil:
    """Bytes that the columns of a tile take: their copies, the lanes' sums and maxima, and what is known of them."""
    return (copy_bytes() + LANES * (STRETCH // <Py_ssize_t>itemsize) * (5 * <Py_ssize_t>sizeof(double)
            + 2 * <Py_ssize_t>itemsize) + <Py_ssize_t>sizeof(Columns))


cdef inline double* lane_sums(real* scratch, int which) noexcept nogil:
    """The which-th of five arrays of a sum for each lane and column, behind the copies in scratch."""
    return <double*>(<char*>scratch + copy_bytes()) + which * LANES * (STRETCH // <Py_ssize_t>sizeof(real))


cdef inline real* lane_tops(real* scratch, int which) noexcept nogil:
    """Two arrays more: each lane's and column's maximum, and the number of the vector that it was in."""
    return <real*>lane_sums(scratch, 5) + which * LANES * (STRETCH // <Py_ssize_t>sizeof(real))


cdef inline Columns* columns_of(real* scratch) noexcept nogil:
    return <Columns*>lane_tops(scratch, 2)


# ---- loops ------------------------------------------------------------------------------------------------------------------

# Loops get a width, in whole strips, and how far apart in the sums two lanes are: the columns of a tile may be read in parts.
# Classes, lanes and columns are to them those of units.

cdef inline Py_ssize_t whole_grains(Py_ssize_t width) noexcept nogil:
    """The width as the compiler is to know it: there is no rest of a vector."""
    return width & -GRAIN


cdef inline const char* class_ahead(const real* x, Py_ssize_t stride, Py_ssize_t lanes, Py_ssize_t lane, Py_ssize_t c,
                                    const char* next, Py_ssize_t next_stride) noexcept nogil:
    """What is to be prefetched while a run's class c is at work, which belongs to one of some lanes: the class of the lane
    LANES_AHEAD on, in this run or the next one; if that is 0, the class of the same number in the next run. NULL for none."""
    if LANES_AHEAD and lane + LANES_AHEAD < lanes:
        return <const char*>(x + (c + LANES_AHEAD) * stride)
    if next == NULL:
        return NULL
    return next + (c - (lanes - LANES_AHEAD if LANES_AHEAD else 0)) * next_stride


cdef inline const real* without_absent(const real* v, Py_ssize_t wide, const Columns* r, Py_ssize_t c, Py_ssize_t at,
                                       real* spare) noexcept nogil:
    """Class c of a block, of the at-th column and after: where it lies at v or, less what is left out, a copy in spare."""
    cdef Py_ssize_t w, k = r.absent[c]
    if k < 0:
        return v
    for w in range(wide):
        spare[w] = v[w]
    while k >= 0:
        w = r.places[k] - at
        if 0 <= w < wide:
            spare[w] = -INFINITY
        k = r.others[k]
    return spare


cdef inlined raise_tops_of_lane(const real** v, Py_ssize_t w, const real* number, real* tops, real* numbers) noexcept nogil:
    """Keep the larger ones of a lane's maxima and those of RUN vectors, from column w on, and, unless numbers is NULL, the
    number of the vector of each."""
    cdef const real* v0 = v[0] + w
    cdef const real* v1 = v[1] + w
    cdef const real* v2 = v[2] + w
    cdef const real* v3 = v[3] + w
    cdef real t[LANES]
    cdef real u[LANES]
    cdef real top, of
    cdef int j
    if numbers == NULL:
        for j in range(LANES):
            t[j] = tops[w + j]
        raise_tops(v0, t)
        raise_tops(v1, t)
        raise_tops(v2, t)
        raise_tops(v3, t)
        for j in range(LANES):
            tops[w + j] = t[j]
        return
    for j in range(LANES):
        top = tops[w + j]
        of = numbers[w + j]
        of = number[0] if v0[j] > top else of
        top = larger(v0[j], top)
        of = number[1] if v1[j] > top else of
        top = larger(v1[j], top)
        of = number[2] if v2[j] > top else of
        top = larger(v2[j], top)
        of = number[3] if v3[j] > top else of
        top = larger(v3[j], top)
        t[j] = top
        u[j] = of
    for j in range(LANES):
        tops[w + j] = t[j]
    for j in range(LANES):
        numbers[w + j] = u[j]


cdef loop top_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t lanes, Py_ssize_t wide, Py_ssize_t across,
                      const Columns* r, Py_ssize_t c, Py_ssize_t at, real* tops, real* numbers, const char* next,
                      Py_ssize_t next_stride) noexcept nogil:
    """Maxima of each lane, and unless numbers is NULL the numbers of the first vectors with them, of n classes, at most a run,
    from the c-th of a block on."""
    cdef real spare[RUN * WIDE]
    cdef real absent[WIDE]
    cdef real number[RUN]
    cdef const real* v[RUN]
    cdef const char* ahead[RUN]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, j, k, w
    for w in range(width):
        absent[w] = -INFINITY
    for k in range(RUN):
        number[k] = <real>(c // lanes + k)
    for i in range(lanes if n > lanes else n):
        for k in range(RUN):
            j = i + k * lanes
            v[k] = absent
            ahead[k] = class_ahead(x, stride, lanes, i, j, next, next_stride)
            if j < n:
                v[k] = without_absent(x + j * stride, width, r, c + j, at, spare + k * WIDE)
        for w from 0 <= w < width by LANES:
            for k in range(RUN):
                fk_prefetch(ahead[k], w * sizeof(real), LANES * sizeof(real))
            if numbers == NULL:     # known to the compiler: either becomes a loop without the question
                raise_tops_of_lane(v, w, number, tops + i * across, NULL)
            else:
                raise_tops_of_lane(v, w, number, tops + i * across, numbers + i * across)


cdef inlined add_exps_of_lane(int op, const real* e, Py_ssize_t vectors, Py_ssize_t width, double* t,
                              double* t_lo) noexcept nogil:
    """Add the exponentials of some vectors to the sums of a lane, as add_exps or, for SOFTMAX, exp_store_lanes."""
    cdef real s[WIDE]
    cdef Py_ssize_t k, w
    if op == SOFTMAX and vectors == RUN and real is float:
        for w in range(width):
            t[w] += <double>(e[w] + e[WIDE + w]) + <double>(e[2 * WIDE + w] + e[3 * WIDE + w])
        return
    if vectors == RUN:
        for w in range(width):
            s[w] = (e[w] + e[WIDE + w]) + (e[2 * WIDE + w] + e[3 * WIDE + w])
        e = s
        vectors = 1
    for k in range(vectors):
        if op == SOFTMAX:
            add_to_lane(e + k * WIDE, width, t, t_lo)
        else:
            for w in range(width):
                t[w] += e[k * WIDE + w]


cdef inlined add_moments_of_lane(const real** v, const real* e, Py_ssize_t vectors, Py_ssize_t width, const real* m,
                                 double* t) noexcept nogil:
    """The same of (m - v) e."""
    cdef const real* v0 = v[0]
    cdef const real* v1 = v[1]
    cdef const real* v2 = v[2]
    cdef const real* v3 = v[3]
    cdef real s[WIDE]
    cdef Py_ssize_t k, w
    if vectors == RUN:
        for w in range(width):
            s[w] = ((fall(m[w], v0[w]) * e[w] + fall(m[w], v1[w]) * e[WIDE + w])
                    + (fall(m[w], v2[w]) * e[2 * WIDE + w] + fall(m[w], v3[w]) * e[3 * WIDE + w]))
        for w in range(width):
            t[w] += s[w]
        return
    for k in range(vectors):
        v0 = v[k]
        for w in range(width):
            s[w] = fall(m[w], v0[w]) * e[k * WIDE + w]
        for w in range(width):
            t[w] += s[w]


cdef loop exp_sum_columns(int op, const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t lanes, Py_ssize_t wide,
                          Py_ssize_t across, const Columns* r, Py_ssize_t c, Py_ssize_t at, const real* reference,
                          double* sums, double* more, const char* next, const char* later, Py_ssize_t next_stride) noexcept nogil:
    """Add n classes, at most a run, from the c-th of a block on, to what exp_sum_lanes gives for each lane; for
    ENTROPY_OF_LOGITS exp_moment_lanes, the moments being `more`; for SOFTMAX exp_store_lanes, `more` being the sums' lower
    parts."""
    cdef real m[WIDE]
    cdef real exps[RUN * WIDE]
    cdef real spare[RUN * WIDE]
    cdef const real* v[RUN]
    cdef const char* ahead
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, k, w, j, vectors = (n + lanes - 1) // lanes, some
    for w in range(width):
        m[w] = reference[w]
    for i in range(lanes if n > lanes else n):
        some = vectors if i + (vectors - 1) * lanes < n else vectors - 1
        for k in range(some):
            j = i + k * lanes
            v[k] = without_absent(x + j * stride, width, r, c + j, at, spare + k * WIDE)
            ahead = class_ahead(x, stride, lanes, i, j, next, next_stride)
            for w from 0 <= w < width by LANES:
                fk_prefetch(ahead, w * sizeof(real), LANES * sizeof(real))
                fk_prefetch(later, j * next_stride + w * sizeof(real), LANES * sizeof(real))
                exp_vector(v[k] + w, m + w, exps + k * WIDE + w)
        if some < vectors and vectors == RUN:
            # The run is added as one that ends in a vector of -inf, whose exponentials are 0.
            v[some] = v[0]
            for w in range(width):
                exps[some * WIDE + w] = 0
            some = RUN
        add_exps_of_lane(op, exps, some, width, sums + i * across, more + i * across)
        if op == ENTROPY_OF_LOGITS:
            add_moments_of_lane(v, exps, some, width, m, more + i * across)


cdef loop map_columns(const real* x, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t wide, const real* m, const real* k,
                      bint log, real down, real* out, Py_ssize_t out_stride, const char* next, Py_ssize_t next_stride,
                      char* target, Py_ssize_t target_stride) noexcept nogil:
    """n classes of map_block, with 2^-64 taken as a factor of its own, `down`, where it is not in k; out may be x."""
    cdef real y[LANES]
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w
    cdef int j
    cdef const real* v
    cdef const real* l
    cdef const real* f
    cdef real* place
    for i in range(n):
        for w from 0 <= w < width by LANES:
            fk_prefetch(next, i * next_stride + w * sizeof(real), LANES * sizeof(real))
            fk_prefetch_write(target, i * target_stride + w * sizeof(real), LANES * sizeof(real))
            v = x + i * stride + w
            l = m + w
            f = k + w
            place = out + i * out_stride + w
            if log:
                for j in range(LANES):
                    y[j] = (v[j] - l[j]) - f[j]
            else:
                exp_vector(v, l, y)
                for j in range(LANES):
                    y[j] = y[j] * f[j] * down
            for j in range(LANES):
                place[j] = y[j]


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
    """How many of some columns the loops may read where they lie: whole strips, one stride from class to class. A strip may
    go on into the next class, if the array is contiguous: what is read there too is not used. Of a few whole units."""
    cdef int i
    cdef bint contiguous = plan.n_inner == 1
    cdef Py_ssize_t width = padded(rows), unit = plan.unit
    if unit > 1:
        return unit * rows if n % unit == 0 else 0
    if (plan.has_mask or run_length(plan.n_outer, plan.outer_shape, row, rows) < rows
            or run_length(plan.n_inner, plan.inner_shape, start, n) < n):
        return 0
    for i in range(plan.operands):
        if plan.operand[i].divisor != 1:
            return 0
        contiguous = contiguous and plan.operand[i].inner[0] == plan.outer_shape[plan.n_outer - 1] * <Py_ssize_t>sizeof(real)
    if contiguous and (plan.classes - start - n) * plan.outer_shape[plan.n_outer - 1] >= width - rows:
        return width
    return rows // GRAIN * GRAIN


cdef inline Py_ssize_t units(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    """In how many units n classes are."""
    return (n + unit - 1) // unit


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


cdef inline Py_ssize_t width_of(const Plan* plan, Py_ssize_t rows) noexcept nogil:
    """How far apart in the sums two lanes of some columns are."""
    return rows if plan.unit > 1 else padded(rows)


cdef inline void of_all_classes(real* m, Py_ssize_t rows, Py_ssize_t unit) noexcept nogil:
    """A number for each column, given to it in each class of a unit."""
    cdef Py_ssize_t w
    for w in range(rows, unit * rows):
        m[w] = m[w - rows]


cdef inline void leave_out(Columns* r, Py_ssize_t c, Py_ssize_t w, Py_ssize_t element, Py_ssize_t rows,
                           Py_ssize_t unit) noexcept nogil:
    """Leave out an element, class c of column w."""
    r.places[element] = c % unit * rows + w
    r.others[element] = r.absent[c // unit]
    r.absent[c // unit] = element


cdef void leave_out_labels(const Plan* plan, const Py_ssize_t* index, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                           Columns* r) noexcept nogil:
    """Of a block the labels, and nothing else, are left out."""
    cdef Py_ssize_t w, hole, unit = plan.unit
    for w in range(n):
        r.absent[w] = -1
    for w in range(rows if plan.has_labels else 0):
        hole = hole_in(plan, index[w], start, n)
        if hole >= 0:
            leave_out(r, hole, w, w, rows, unit)


cdef void tops_of_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                          const Columns* r, real* tops, Py_ssize_t* top_at, real* scratch) noexcept nogil:
    """Each column's maximum in a block, and, unless top_at is NULL, which class find_top would name."""
    cdef Py_ssize_t unit = plan.unit, width = width_of(plan, rows)
    cdef Py_ssize_t c, size, i, w, whole, at, stride, wide
    cdef real* of_lanes = lane_tops(scratch, 0)
    cdef real* numbers = lane_tops(scratch, 1)
    cdef real first[WIDE]
    cdef const real* x
    cdef const char* next
    for i in range(LANES * width):
        of_lanes[i] = -INFINITY
        numbers[i] = 0
    for c from 0 <= c < n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < n else n - c
        whole = columns_in_place[real](plan, row, rows, start + c, size, NULL)
        at = 0
        while at < unit * rows:
            x = part_of_run[real](plan, 0, row, rows, start + c, size, whole, at, scratch, &stride, &wide, &next)
            top_columns(x, stride, units(size, unit), LANES // unit, wide, unit * width, r, c // unit, at, of_lanes + at,
                        numbers + at if top_at != NULL else NULL, next,
                        unit * last_stride(plan.n_inner, plan.operand[0].inner))
            at += wide
    for w in range(width):
        tops[w] = of_lanes[w]
        first[w] = 0
    for i in range(LANES):
        for w in range(width):
            tops[w] = larger(of_lanes[i * width + w], tops[w])
    if top_at == NULL:
        return
    i = LANES
    while i > 0:
        i -= 1
        for w in range(width):
            first[w] = numbers[i * width + w] * LANES + i if of_lanes[i * width + w] == tops[w] else first[w]
    for w in range(rows):
        top_at[w] = <Py_ssize_t>first[w]


cdef void sums_of_columns(int op, const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                          const Columns* r, const real* m, real* scratch) noexcept nogil:
    """Sums of a block's exponentials, in the two arrays of lane_sums, added as exp_sum_columns has it for op: a softmax of
    more than CHUNK classes is made of the sums of LOGSUMEXP."""
    cdef Py_ssize_t unit = plan.unit, width = width_of(plan, rows)
    cdef Py_ssize_t c, size, i, stride, whole, at, wide
    cdef Py_ssize_t next_stride = unit * last_stride(plan.n_inner, plan.operand[0].inner)
    cdef double* sums = lane_sums(scratch, 0)
    cdef double* more = lane_sums(scratch, 1)
    cdef const real* x
    cdef const char* next
    cdef const char* later = later_block[real](plan, row, rows, start, n, NULL)
    for i in range(LANES * width):
        sums[i] = more[i] = 0
    for c from 0 <= c < n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < n else n - c
        whole = columns_in_place[real](plan, row, rows, start + c, size, NULL)
        at = 0
        while at < unit * rows:
            x = part_of_run[real](plan, 0, row, rows, start + c, size, whole, at, scratch, &stride, &wide, &next)
            exp_sum_columns(op, x, stride, units(size, unit), LANES // unit, wide, unit * width, r, c // unit, at, m + at,
                            sums + at, more + at, next,
                            later + at * sizeof(real) + c // unit * next_stride if later != NULL else NULL, next_stride)
            at += wide
    if op == SOFTMAX:
        for i in range(LANES * width):
            sums[i] += more[i]
    fold_columns(sums, width)
    if op == ENTROPY_OF_LOGITS:
        fold_columns(more, width)


# ---- log-sum-exp -----------------------------------------------------------------------------------------------------------

cdef bint has_nan(const Plan* plan, Py_ssize_t row, Py_ssize_t start, Py_ssize_t n, Py_ssize_t label,
                  real* scratch) noexcept nogil:
    """Whether a block of a column holds a NaN besides its label."""
    cdef Py_ssize_t c
    fetch[real](plan, &plan.operand[0], row, 1, start, n, scratch, BLOCK, 1, <real>-INFINITY)
    for c in range(n):
        if scratch[c] != scratch[c] and c != label:
            return True
    return False


cdef void logsumexp_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n, bint opening,
                            Columns* r, State* states, real* scratch) noexcept nogil:
    """Add a block to the states of some columns: open_row, if it is the first, and logsumexp_block. The maxima are found
    first, of later blocks too: among so many columns there nearly always is one whose sums would have to be made again."""
    cdef real tops[WIDE]
    cdef real m[FLAT]
    cdef Py_ssize_t top_at[WIDE]
    cdef Py_ssize_t w, unit = plan.unit
    cdef bint moments = plan.op == ENTROPY_OF_LOGITS
    cdef State* st
    leave_out_labels(plan, r.index, rows, start, n, r)
    tops_of_columns[real](plan, row, rows, start, n, r, tops, top_at, scratch)
    for w in range(padded(rows)):
        m[w] = 0
    for w in range(rows):
        if skipped(plan, r.index[w]):
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
                leave_out(r, top_at[w], w, WIDE + w, rows, unit)
        m[w] = <real>st.m if st.m < INFINITY else <real>0
    of_all_classes(m, rows, unit)
    sums_of_columns[real](ENTROPY_OF_LOGITS if moments else LOGSUMEXP, plan, row, rows, start, n, r, m, scratch)
    for w in range(rows):
        st = &states[w]
        if skipped(plan, r.index[w]):
            continue
        if st.m == INFINITY:
            # The sum is infinite, unless there is a NaN.
            if has_nan[real](plan, row + w, start, n, hole_in(plan, r.index[w], start, n), scratch):
                st.s = NAN
            continue
        two_sum_add(&st.s, &st.s_lo, lane_sums(scratch, 0)[w] * FK_DOWN)
        if moments:
            two_sum_add(&st.u, &st.u_lo, lane_sums(scratch, 1)[w] * FK_DOWN)


cdef const real* part_of_run(const Plan* plan, int operand, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                             Py_ssize_t n, Py_ssize_t whole, Py_ssize_t at, real* copy, Py_ssize_t* stride,
                             Py_ssize_t* wide, const char** next) noexcept nogil:
    """Where n classes, at most a run, of the columns from the at-th on are read: of the `whole` first ones in place, of the
    others from a copy. wide: how many columns that gives; next: where the run after them lies, or NULL. A unit's columns are
    read in parts of up to WIDE."""
    cdef const Operand* a = &plan.operand[operand]
    cdef Py_ssize_t unit = plan.unit, parts, w
    cdef real absent
    next[0] = NULL
    if unit > 1:
        stride[0] = unit * rows
        parts = (unit * rows + WIDE - 1) // WIDE
        wide[0] = padded((unit * rows + parts - 1) // parts)
        wide[0] = wide[0] if at + wide[0] < unit * rows else unit * rows - at
        if start + 2 * n <= plan.classes:
            next[0] = place_of(plan, a, row, start + n) + at * sizeof(real)
        if at < whole:
            return <const real*>place_of(plan, a, row, start) + at
        if at == 0:
            absent = absent_element[real](plan, operand, NULL)
            memcpy(copy, place_of(plan, a, row, start), n * rows * sizeof(real))
            for w in range(n * rows, units(n, unit) * unit * rows):
                copy[w] = absent
        return copy + at
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
                       State* states, Columns* r, real* scratch) noexcept nogil:
    """scan_rows of columns, at most a stretch."""
    cdef Py_ssize_t first = start, n
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        if plan.op >= ENTROPY:
            divergence_columns[real](plan, row, rows, first, n, states, scratch)
        else:
            logsumexp_columns[real](plan, row, rows, first, n, first == start, r, states, scratch)
        first += n


cdef inline const char* later_block(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                                    real* like) noexcept nogil:
    """Where the block lies that is read after n classes from `start` on, of the same columns or the next; NULL where there is
    none as large, or the classes are not all at one distance."""
    cdef const Operand* a = &plan.operand[0]
    if plan.n_inner != 1:
        return NULL
    if start + n < plan.classes:
        return place_of(plan, a, row, start + n) if start + 2 * n <= plan.classes else NULL
    if (n == plan.classes and row + 2 * rows <= plan.last_row
            and run_length(plan.n_outer, plan.outer_shape, row, 2 * rows) == 2 * rows):
        return row_pointer(plan, a, row) + rows * sizeof(real)
    return NULL


# ---- divergences -------------------------------------------------------------------------------------------------------------

cdef inline void add_to_lane(const real* s, Py_ssize_t width, double* t, double* t_lo) noexcept nogil:
    """add_run of a lane, the sums of a run's terms being s."""
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef Py_ssize_t w
    cdef int j
    if real is float:
        for w in range(width):
            t[w] += s[w]
        return
    for w from 0 <= w < width by LANES:
        for j in range(LANES):
            hi[j] = t[w + j]
            lo[j] = t_lo[w + j]
        for j in range(LANES):
            two_sum_add(&hi[j], &lo[j], s[w + j])
        for j in range(LANES):
            t[w + j] = hi[j]
        for j in range(LANES):
            t_lo[w + j] = lo[j]


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


cdef inlined add_kl_of_lane(const float** x, const float** y, Py_ssize_t w, double* t, uint32_t* outside) noexcept nogil:
    """Add the KL terms of RUN vectors, from column w on, to a lane's sums, for 32 registers, which hold what is between.
    (Doubles gain nothing.)"""
    cdef const float* x0 = x[0] + w
    cdef const float* x1 = x[1] + w
    cdef const float* x2 = x[2] + w
    cdef const float* x3 = x[3] + w
    cdef const float* y0 = y[0] + w
    cdef const float* y1 = y[1] + w
    cdef const float* y2 = y[2] + w
    cdef const float* y3 = y[3] + w
    cdef float low = smallest_q(<float>0), high = largest(<float>0), sum
    cdef float s[LANES]     # arrays that are known to be no part of the others
    cdef uint32_t out[LANES]
    cdef int j
    for j in range(LANES):
        sum = kl_term_f32(x0[j], y0[j])
        sum += kl_term_f32(x1[j], y1[j])
        sum += kl_term_f32(x2[j], y2[j])
        s[j] = sum + kl_term_f32(x3[j], y3[j])
        out[j] = ((fk_outside_f32(x0[j], y0[j], low, high) | fk_outside_f32(x1[j], y1[j], low, high))
                  | (fk_outside_f32(x2[j], y2[j], low, high) | fk_outside_f32(x3[j], y3[j], low, high)))
    for j in range(LANES):
        t[w + j] += s[j]
        outside[w + j] |= out[j]


cdef inlined add_differences_of_lane(const real** x, const real** y, Py_ssize_t vectors, Py_ssize_t w, double* d,
                                     double* d_lo) noexcept nogil:
    """Add the p - q of some vectors, from column w on, to a lane's sums; of doubles a two-sum."""
    cdef double hi[LANES]
    cdef double lo[LANES]
    cdef Py_ssize_t k
    cdef int j
    cdef const real* v
    cdef const real* u
    for j in range(LANES):
        hi[j] = d[w + j]
        lo[j] = d_lo[w + j]
    for k in range(vectors):
        v = x[k] + w
        u = y[k] + w
        for j in range(LANES):
            if real is float:
                hi[j] += <double>(v[j] - u[j])
            else:
                two_sum_add(&hi[j], &lo[j], v[j] - u[j])
    for j in range(LANES):
        d[w + j] = hi[j]
    if real is double:
        for j in range(LANES):
            d_lo[w + j] = lo[j]


cdef loop kl_columns(int op, const real* p, Py_ssize_t p_stride, const real* q, Py_ssize_t q_stride, Py_ssize_t n,
                     Py_ssize_t lanes, Py_ssize_t wide, Py_ssize_t across, double* sums, double* sums_lo, double* differences,
                     double* differences_lo,
                     double* masses, uint32_t* odd32, uint64_t* odd64, const char* p_next, Py_ssize_t p_next_stride,
                     const char* q_next, Py_ssize_t q_next_stride) noexcept nogil:
    """Add n classes, at most a run, to what kl_lanes gives for each lane; odd are those of columns."""
    cdef real terms[RUN * WIDE]
    cdef double hi[WIDE]
    cdef uint32_t word32[WIDE]
    cdef uint64_t word64[WIDE]
    cdef real absent[WIDE]
    cdef real low = smallest_q(<real>0), high = largest(<real>0)
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, c, vectors = (n + lanes - 1) // lanes, k
    cdef int j
    cdef real e[LANES]
    cdef const real* x[RUN]
    cdef const real* y[RUN]
    cdef const real* v
    cdef const real* u
    cdef const char* p_ahead
    cdef const char* q_ahead
    cdef const char* p_places[RUN]
    cdef const char* q_places[RUN]
    cdef double quotient[WIDE]     # of doubles' terms: two loops as in kl_strips
    cdef double gap[WIDE]
    cdef double near[WIDE]
    cdef double* t
    for w in range(width):
        absent[w] = low
        word32[w] = odd32[w]
        word64[w] = odd64[w]
    for i in range(lanes):
        for k in range(vectors):
            c = k * lanes + i
            x[k] = p + c * p_stride if c < n else absent
            y[k] = q + c * q_stride if c < n else absent
        if FK_REGISTERS >= 32 and real is float and vectors == RUN:
            for k in range(RUN):
                c = k * lanes + i
                p_places[k] = class_ahead(p, p_stride, lanes, i, c, p_next, p_next_stride)
                q_places[k] = class_ahead(q, q_stride, lanes, i, c, q_next, q_next_stride)
            for w from 0 <= w < width by LANES:
                for k in range(RUN):
                    fk_prefetch(p_places[k], w * sizeof(real), LANES * sizeof(real))
                    fk_prefetch(q_places[k], w * sizeof(real), LANES * sizeof(real))
                if real is float:
                    add_kl_of_lane(x, y, w, sums + i * across, word32)
                if op != GENERALIZED_KL:
                    add_differences_of_lane(x, y, RUN, w, differences + i * across, differences_lo + i * across)
        else:
            for k in range(vectors):
                c = k * lanes + i
                v = x[k]
                u = y[k]
                p_ahead = class_ahead(p, p_stride, lanes, i, c, p_next, p_next_stride)
                q_ahead = class_ahead(q, q_stride, lanes, i, c, q_next, q_next_stride)
                for w from 0 <= w < width by LANES:
                    fk_prefetch(p_ahead, w * sizeof(real), LANES * sizeof(real))
                    fk_prefetch(q_ahead, w * sizeof(real), LANES * sizeof(real))
                    if real is float:
                        for j in range(LANES):
                            e[j] = kl_term_f32(v[w + j], u[w + j])
                        for j in range(LANES):
                            terms[k * WIDE + w + j] = e[j]
                            word32[w + j] |= fk_outside_f32(v[w + j], u[w + j], low, high)
                    else:
                        for j in range(LANES):
                            kl_cut_f64(v[w + j], u[w + j], &quotient[w + j], &gap[w + j], &near[w + j])
                            word64[w + j] |= fk_outside_words_f64(v[w + j], u[w + j], low, high)
                if real is double:
                    for w in range(width):
                        terms[k * WIDE + w] = kl_join_f64(v[w], quotient[w], gap[w], near[w])
            add_terms(terms, vectors, width, sums + i * across, sums_lo + i * across)
            for w from 0 <= w < (width if op != GENERALIZED_KL else 0) by LANES:
                if vectors == RUN:     # known to the compiler, which then has no loop
                    add_differences_of_lane(x, y, RUN, w, differences + i * across, differences_lo + i * across)
                else:
                    add_differences_of_lane(x, y, vectors, w, differences + i * across, differences_lo + i * across)
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
                          Py_ssize_t lanes, Py_ssize_t wide, Py_ssize_t across, double* sums, double* sums_lo,
                          uint32_t* odd32, uint64_t* odd64, const char* p_next, Py_ssize_t p_next_stride,
                          const char* q_next, Py_ssize_t q_next_stride) noexcept nogil:
    """The same of entropy_lanes or, where there is a q, cross_entropy_lanes."""
    cdef real terms[RUN * WIDE]
    cdef uint32_t word32[WIDE]
    cdef uint64_t word64[WIDE]
    cdef real low = 2.0 ** -149 if real is float else 2.0 ** -1022
    cdef real high = largest(<real>0), zero = 0, infinity = INFINITY, up = raised(<real>0)
    cdef Py_ssize_t width = whole_grains(wide)
    cdef Py_ssize_t i, w, c, k, vectors = (n + lanes - 1) // lanes
    cdef int j
    cdef const real* v
    cdef const real* u
    cdef const char* p_ahead
    cdef const char* q_ahead
    for w in range(width):
        word32[w] = odd32[w]
        word64[w] = odd64[w]
    for i in range(lanes if n > lanes else n):
        for k in range(vectors):
            c = k * lanes + i
            if c >= n:
                for w in range(width):
                    terms[k * WIDE + w] = 0
                continue
            v = p + c * p_stride
            u = q + c * q_stride
            p_ahead = class_ahead(p, p_stride, lanes, i, c, p_next, p_next_stride)
            q_ahead = NULL if op == ENTROPY else class_ahead(q, q_stride, lanes, i, c, q_next, q_next_stride)
            for w from 0 <= w < width by LANES:
                fk_prefetch(p_ahead, w * sizeof(real), LANES * sizeof(real))
                fk_prefetch(q_ahead, w * sizeof(real), LANES * sizeof(real))
                if op == ENTROPY:
                    for j in range(LANES):
                        terms[k * WIDE + w + j] = shannon_term(v[w + j])
                        if real is float:
                            word32[w + j] |= fk_outside_f32(v[w + j], v[w + j], zero, high)
                        else:
                            word64[w + j] |= fk_outside_f64(v[w + j], v[w + j], zero, high)
                else:
                    for j in range(LANES):
                        terms[k * WIDE + w + j] = -(v[w + j] * up) * log_of(u[w + j])
                        if real is float:
                            word32[w + j] |= (fk_outside_f32(u[w + j], u[w + j], low, high)
                                              | fk_outside_f32(v[w + j], v[w + j], zero, infinity))
                        else:
                            word64[w + j] |= (fk_outside_f64(u[w + j], u[w + j], low, high)
                                              | fk_outside_f64(v[w + j], v[w + j], zero, infinity))
        add_terms(terms, vectors, width, sums + i * across, sums_lo + i * across)
    for w in range(width):
        odd32[w] = word32[w]
        odd64[w] = word64[w]


cdef void divergence_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
                             State* states, real* scratch) noexcept nogil:
    """divergence_block of columns. A column outside the fast domain, or about to be, goes through divergence_block itself,
    which decides: what counts as odd here must hold all that does there, and may hold more."""
    cdef uint32_t odd32[FLAT]
    cdef uint64_t odd64[FLAT]
    cdef bint odd[WIDE]
    cdef double* t = lane_sums(scratch, 0)
    cdef double* t_lo = lane_sums(scratch, 1)
    cdef double* d = lane_sums(scratch, 2)
    cdef double* e = lane_sums(scratch, 3)
    cdef double* mass = lane_sums(scratch, 4)
    cdef real* q_copy = scratch + RUN * LANES * (STRETCH // <Py_ssize_t>sizeof(real))
    cdef Py_ssize_t unit = plan.unit, width = width_of(plan, rows), lanes = LANES * width
    cdef Py_ssize_t w, c, i, size, p_stride, q_stride = 0, some, first, whole, at, wide
    cdef Py_ssize_t count = (n + LANES - 1) // LANES
    cdef int op = plan.op
    cdef const real* p
    cdef const real* q = NULL
    cdef const char* p_next
    cdef const char* q_next = NULL
    cdef double up = raised(<real>0) if plan.op == CROSS_ENTROPY else 1
    cdef double size_of, least = smallest_q(<real>0), rest = -(count * LANES - n) * <double>absent_p(op, <real>0)
    cdef State* st
    cdef bint loose
    for i in range(lanes):
        t[i] = t_lo[i] = d[i] = e[i] = mass[i] = 0
    for w in range(unit * width):
        odd32[w] = odd64[w] = 0
    for w in range(width):
        odd[w] = False
    for c from start <= c < start + n by RUN * LANES:
        size = RUN * LANES if c + RUN * LANES < start + n else start + n - c
        whole = columns_in_place[real](plan, row, rows, c, size, NULL)
        at = 0
        while at < unit * rows:
            p = part_of_run[real](plan, 0, row, rows, c, size, whole, at, scratch, &p_stride, &wide, &p_next)
            if plan.operands > 1:
                q = part_of_run[real](plan, 1, row, rows, c, size, whole, at, q_copy, &q_stride, &wide, &q_next)
            if op == ENTROPY or op == CROSS_ENTROPY:
                entropy_columns(op, p, p_stride, q, q_stride, units(size, unit), LANES // unit, wide, unit * width,
                                t + at, t_lo + at, odd32 + at, odd64 + at,
                                p_next, unit * last_stride(plan.n_inner, plan.operand[0].inner),
                                q_next, unit * last_stride(plan.n_inner, plan.operand[1].inner))
            else:
                kl_columns(op, p, p_stride, q, q_stride, units(size, unit), LANES // unit, wide, unit * width,
                           t + at, t_lo + at, d + at, e + at, mass + at, odd32 + at, odd64 + at,
                           p_next, unit * last_stride(plan.n_inner, plan.operand[0].inner),
                           q_next, unit * last_stride(plan.n_inner, plan.operand[1].inner))
            at += wide
    for i in range(LANES):
        for w in range(width):
            t[i * width + w] = closed(t[i * width + w], t_lo[i * width + w])
            size_of = t[i * width + w] if t[i * width + w] > 0 else -t[i * width + w]
            odd[w] |= (size_of - size_of != 0) | ((size_of > 0) & (size_of < least * up))
            t[i * width + w] /= up
    for i in range(unit):
        for w in range(width):
            odd[w] |= odd32[i * width + w] >> 31 if real is float else odd64[i * width + w] >> 63
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


cdef void map_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop, real* m,
                         real* k, bint log, real down, real* scratch) noexcept nogil:
    """The second pass over classes start .. stop of some columns, run by run. m and k have room for a number for each
    class of a unit."""
    cdef Py_ssize_t unit = plan.unit, n, stride, out_stride, at, wide, some, whole
    cdef Py_ssize_t next_stride = unit * last_stride(plan.n_inner, plan.operand[0].inner)
    cdef Py_ssize_t target_stride = unit * last_stride(plan.n_inner, plan.out.inner)
    cdef bint placed = False, gapless_out = unit > 1 and without_gaps(plan, &plan.out, sizeof(real))
    cdef const real* x
    cdef const char* next
    cdef char* target
    cdef real* y
    of_all_classes(m, rows, unit)
    of_all_classes(k, rows, unit)
    while start < stop:
        n = RUN * LANES if start + RUN * LANES < stop else stop - start
        whole = columns_in_place[real](plan, row, rows, start, n, NULL)
        at = 0
        while at < unit * rows:
            x = part_of_run[real](plan, 0, row, rows, start, n, whole, at, scratch, &stride, &wide, &next)
            target = NULL
            if unit > 1:
                some = wide
                placed = gapless_out and at < whole
                y = (<real*>place_of(plan, &plan.out, row, start) if placed else scratch) + at
                out_stride = stride
                if placed and next != NULL:
                    target = place_of(plan, &plan.out, row, start + n) + at * sizeof(real)
            else:
                some = wide if at + wide < rows else rows - at
                placed = placed_columns[real](plan, row + at, some, start, n, NULL)
                y = scratch
                out_stride = wide
                if placed:
                    y = <real*>place_of(plan, &plan.out, row + at, start)
                    out_stride = target_stride // <Py_ssize_t>sizeof(real)
                    if next != NULL:
                        target = place_of(plan, &plan.out, row + at, start + n)
            map_columns(x, stride, units(n, unit), wide, m + at, k + at, log, down, y, out_stride, next, next_stride, target,
                        target_stride)
            store_columns[real](plan, row + at, some, start, units(n, unit), k + at, y, out_stride, placed or unit > 1)
            at += wide
        if unit > 1 and not placed:
            put[real](plan, row, rows, start, n, scratch, 1, rows)
        start += n


cdef void softmax_block_columns(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t b, Py_ssize_t n, Columns* r,
                                real* scratch) noexcept nogil:
    """softmax_block of some columns, without the exponentials."""
    cdef real tops[WIDE]
    cdef real m[FLAT]
    cdef Py_ssize_t w
    cdef double top
    tops_of_columns[real](plan, row, rows, b * BLOCK, n, r, tops, NULL, scratch)
    for w in range(padded(rows)):
        m[w] = 0
    for w in range(rows):
        top = tops[w]
        if b == 0:
            r.m[0][w] = lowest(tops[w]) if top == -INFINITY else top
            r.s[w] = 0
        elif top > r.m[b - 1][w] + 1:
            r.m[b][w] = top
            r.s[w] *= exp_up_f64(r.m[b - 1][w] - top) * FK_DOWN
        else:
            r.m[b][w] = r.m[b - 1][w]
        m[w] = <real>r.m[b][w]
    of_all_classes(m, rows, plan.unit)
    sums_of_columns[real](SOFTMAX, plan, row, rows, b * BLOCK, n, r, m, scratch)
    for w in range(rows):
        r.s[w] += lane_sums(scratch, 0)[w]


cdef void softmax_factors(const Columns* r, Py_ssize_t rows, Py_ssize_t b, Py_ssize_t last, real* m, real* k) noexcept nogil:
    """A block's references, and its factors as in softmax_scale."""
    cdef Py_ssize_t w
    for w in range(padded(rows)):
        m[w] = k[w] = 0
    for w in range(rows):
        m[w] = <real>r.m[b][w]
        k[w] = <real>(softmax_factor(r.m[last][w], r.s[w] * FK_DOWN)
                      * (exp_up_f64(r.m[b][w] - r.m[last][w]) * FK_DOWN))


cdef void softmax_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """softmax_of_rows of columns, at most a stretch. The exponentials are computed twice, to the same bits."""
    cdef Columns* r = columns_of(scratch)
    cdef real m[FLAT]
    cdef real k[FLAT]
    cdef Py_ssize_t no_label = NO_LABEL, last = (plan.classes - 1) // BLOCK, b, n
    leave_out_labels(plan, &no_label, 0, 0, BLOCK, r)
    for b in range(last + 1):
        n = BLOCK if b < last else plan.classes - last * BLOCK
        softmax_block_columns[real](plan, row, rows, b, n, r, scratch)
    for b in range(last + 1):
        softmax_factors[real](r, rows, b, last, m, k)
        map_of_columns[real](plan, row, rows, b * BLOCK, (b + 1) * BLOCK if b < last else plan.classes, m, k, False,
                             <real>FK_DOWN, scratch)


# ---- tiles ---------------------------------------------------------------------------------------------------------------

cdef void scan_chunks_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Columns* r, real* scratch) noexcept nogil:
    """scan_chunks of columns."""
    cdef Py_ssize_t w, start = 0, stop
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        for w in range(rows):
            start_state(&r.chunk[w])
        scan_columns[real](plan, row, rows, start, stop, r.chunk, r, scratch)
        for w in range(rows):
            if start == 0:
                r.states[w] = r.chunk[w]
            else:
                merge(plan, &r.states[w], &r.chunk[w])
        start = stop


cdef void labels_of_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Columns* r, real* like) noexcept nogil:
    """The columns' labels and their logits, if they have some."""
    cdef Sums a
    cdef Py_ssize_t first = 0, w, n
    while first < rows and plan.has_labels:
        n = TILE if first + TILE < rows else rows - first
        read_labels[real](plan, row + first, n, &a, NULL)
        for w in range(n):
            r.index[first + w] = a.index[w]
            r.label[first + w] = a.label[w]
        first += n


cdef Py_ssize_t finish_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, const State* states, const Columns* r,
                               real* scratch) noexcept nogil:
    """finish_rows of columns."""
    cdef Sums a
    cdef Py_ssize_t first = 0, kept = 0, w, n
    while first < rows:
        n = TILE if first + TILE < rows else rows - first
        for w in range(n):
            keep_state(&states[first + w], w, &a)
            a.index[w] = r.index[first + w]
            a.label[w] = r.label[first + w]
        kept += finish_rows[real](plan, row + first, n, &a, scratch)
        first += n
    return kept


cdef void map_by_states(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop, const State* states,
                        real* scratch) noexcept nogil:
    """map_of_columns of what has been found of the whole columns."""
    cdef Sums a
    cdef double factors[TILE]
    cdef real m[FLAT]
    cdef real k[FLAT]
    cdef Py_ssize_t first = 0, w, n
    cdef bint log = plan.op == LOG_SOFTMAX
    for w in range(rows, padded(rows)):
        m[w] = k[w] = 0
    while first < rows:
        n = TILE if first + TILE < rows else rows - first
        for w in range(n):
            keep_state(&states[first + w], w, &a)
        map_factors(&a, n, log, real is float, factors)
        for w in range(n):
            m[first + w] = <real>a.m[w]
            k[first + w] = <real>factors[w]
        first += n
    map_of_columns[real](plan, row, rows, start, stop, m, k, log, 1, scratch)


cdef Py_ssize_t tile_columns(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """tile_rows of columns, at most a stretch."""
    cdef Columns* r = columns_of(scratch)
    if plan.op == SOFTMAX and plan.classes <= CHUNK:
        softmax_of_columns[real](plan, row, rows, scratch)
        return 0
    labels_of_columns[real](plan, row, rows, r, scratch)
    scan_chunks_of_columns[real](plan, row, rows, r, scratch)
    if plan.op == SOFTMAX or plan.op == LOG_SOFTMAX:
        map_by_states[real](plan, row, rows, 0, plan.classes, r.states, scratch)
        return 0
    return finish_columns[real](plan, row, rows, r.states, r, scratch)


# ---- few tiles of many classes: threads share a tile's chunks, as those of a row in run_split --------------------------------

cdef void chunk_of_columns(Plan* plan, Py_ssize_t t, Py_ssize_t size, Py_ssize_t chunks, bint maps, State* states,
                           real* scratch) noexcept nogil:
    """Chunk t % chunks of tile t // chunks: read it, or map it by the states of the tile, which are those of its first."""
    cdef Py_ssize_t row = plan.first_row + t // chunks * size, start = t % chunks * CHUNK, w
    cdef Py_ssize_t rows = size if row + size < plan.last_row else plan.last_row - row
    cdef Py_ssize_t stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
    cdef unsigned int mode = fk_default_mode()
    cdef Columns* r = columns_of(scratch)
    if maps:
        map_by_states[real](plan, row, rows, start, stop, states + t // chunks * chunks * size, scratch)
    else:
        labels_of_columns[real](plan, row, rows, r, scratch)
        for w in range(rows):
            start_state(&states[t * size + w])
        scan_columns[real](plan, row, rows, start, stop, states + t * size, r, scratch)
    fk_restore_mode(mode)


cdef void split_columns(Plan* plan, Py_ssize_t size, Py_ssize_t chunks, State* states, real* scratch, Py_ssize_t stride,
                        int threads) noexcept nogil:
    """Tiles of `size` columns, whose states of all chunks there is room for."""
    cdef Py_ssize_t tiles = (plan.last_row - plan.first_row + size - 1) // size, t, c, w, j, row, rows
    cdef State* tile
    cdef Columns* r = columns_of(scratch)
    cdef bint maps = plan.op == SOFTMAX or plan.op == LOG_SOFTMAX
    cdef unsigned int mode
    for j in prange(threads, num_threads=threads, schedule="static"):
        for t in range(share(tiles * chunks, j, threads), share(tiles * chunks, j + 1, threads)):
            chunk_of_columns[real](plan, t, size, chunks, False, states, scratch + threadid() * stride)
    mode = fk_default_mode()
    for t in range(tiles):
        row = plan.first_row + t * size
        rows = size if row + size < plan.last_row else plan.last_row - row
        tile = states + t * chunks * size
        for c in range(1, chunks):
            for w in range(rows):
                merge(plan, &tile[w], &tile[c * size + w])
        if not maps:
            labels_of_columns[real](plan, row, rows, r, scratch)
            plan.kept += finish_columns[real](plan, row, rows, tile, r, scratch)
    fk_restore_mode(mode)
    if maps:
        for j in prange(threads, num_threads=threads, schedule="static"):
            for t in range(share(tiles * chunks, j, threads), share(tiles * chunks, j + 1, threads)):
                chunk_of_columns[real](plan, t, size, chunks, True, states, scratch + threadid() * stride)
