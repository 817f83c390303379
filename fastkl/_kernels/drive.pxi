# The way a call takes through the rows. Work is cut into tiles of rows, and rows longer than CHUNK into chunks whose sums
# are merged in order; the cut depends on the shape alone, so neither the batch nor the number of threads changes a bit.

from cython.parallel cimport threadid
from libc.stdlib cimport free

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** pointer, size_t alignment, size_t size)


# ---- short rows: LANES at a time, a lane a row ----------------------------------------------------------------------------

cdef inlined prefetch_sides(const Plan* plan, const Operand* a, Py_ssize_t row, bint stores, real* like) noexcept nogil:
    """Where rows lie side by side, a class of a tile is two lines of floats or four of doubles, and memory is read badly in
    such pieces: while some tiles are at work, the next ones are prefetched together, with each tile an equal part of the
    classes; of more classes it does not pay. (Of a function that is not inlined gcc would find that it does nothing.)"""
    cdef Py_ssize_t size = BESIDE // sizeof(real), tiles = size // LANES, tile = row % size // LANES, c
    cdef Py_ssize_t next = row - row % size + size
    cdef char* start
    cdef bint sides = (plan.classes <= size and plan.n_outer == 1 and plan.n_inner == 1
                       and side_by_side(a, a.outer[0], like) and next + size <= plan.last_row)
    for c in range(tile * plan.classes // tiles, (tile + 1) * plan.classes // tiles if sides else 0):
        start = row_pointer(plan, a, next) + c * a.inner[0]
        if stores:
            fk_prefetch_write(start, 0, BESIDE)
        else:
            fk_prefetch_far(start, BESIDE)


cdef Py_ssize_t tile_across(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Up to TILE rows; of softmax and log_softmax any number. What the next rows hold is prefetched inside the loops that
    compute, and so are the lines that the result will fill: memory and arithmetic overlap."""
    cdef Sums a
    cdef Py_ssize_t classes = plan.classes, first = 0, n, j
    cdef real* x = scratch
    cdef const char* next
    cdef Outflow outflow
    cdef real absent = absent_element[real](plan, 0, NULL)
    cdef bint maps = plan.op == SOFTMAX or plan.op == LOG_SOFTMAX
    fk_open_flow(&outflow)
    while first < rows:
        n = LANES if first + LANES < rows else rows - first
        if is_pointwise(plan.op) and terms_in_order[real](plan, row + first, n, &a, first, scratch):
            first += LANES
            continue
        if n < LANES:
            for j in range(classes * LANES):
                x[j] = absent
        fetch[real](plan, &plan.operand[0], row + first, n, 0, classes, x, 1, LANES, absent)
        next = gapless(plan, &plan.operand[0], row + first + LANES, LANES, x)
        prefetch_sides(plan, &plan.operand[0], row + first, False, x)
        if maps:
            prefetch_sides(plan, &plan.out, row + first, True, x)
        if maps and not plan.stream:
            fk_start_ahead(&outflow, gapless(plan, &plan.out, row + first, n, x), n * classes * sizeof(real))
        if plan.op >= ENTROPY:
            pairs_across[real](plan, row, first, n, next, &a, scratch)
        elif plan.op == SOFTMAX:
            softmax_across[real](x, classes, next, &outflow)
        elif plan.op == LOG_SOFTMAX:
            logsumexp_across[real](x, classes, False, next, &outflow, &a, 0)
            log_softmax_across[real](x, classes, &a)
        else:
            if plan.has_labels:
                take_labels[real](plan, row + first, n, x, &a, first)
            logsumexp_across[real](x, classes, plan.op == ENTROPY_OF_LOGITS, next, NULL, &a, first)
        if maps:
            put_tile[real](plan, row + first, n, x, scratch + classes * LANES, &outflow)
        first += LANES
    if plan.stream:
        finish_flow(&outflow, x)
        fk_store_held(&outflow)
    return 0 if maps else finish_rows[real](plan, row, rows, &a, scratch)


cdef void put_tile(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* tile, real* turned, Outflow* outflow) noexcept nogil:
    """Store a tile of short rows. What is stored non-temporally is turned back first: whole lines, one after another, which go
    while the next tile is computed."""
    cdef Py_ssize_t classes = plan.classes
    cdef char* target = gapless(plan, &plan.out, row, rows, tile)
    if plan.has_mask and target == NULL:
        mask_out[real](plan, row, rows, 0, classes, tile, 1, LANES, 0)
    if plan.stream and target != NULL:
        finish_flow(outflow, tile)
        if real is float:
            fk_spread_f32(turned, classes, tile, LANES, classes, rows)
        else:
            fk_spread_f64(turned, classes, tile, LANES, classes, rows)
        if plan.has_mask:
            mask_out[real](plan, row, rows, 0, classes, turned, classes, 1, 0)
        if FK_STREAMS:
            start_flow(outflow, target, turned, rows * classes, <real>1, <real>1, FLOWS_SCALED)     # as they are
        else:
            fk_stream(target, <const char*>turned, rows * classes * sizeof(real))
        return
    put[real](plan, row, rows, 0, classes, tile, 1, LANES)
    if plan.has_mask and target != NULL:
        mask_out[real](plan, row, rows, 0, classes, <real*>target, classes, 1, 0)


cdef void pairs_across(Plan* plan, Py_ssize_t row, Py_ssize_t first, Py_ssize_t rows, const char* p_next, Sums* a,
                       real* scratch) noexcept nogil:
    """The divergences of rows first .. first + rows of a tile, whose p has been fetched."""
    cdef Py_ssize_t size = plan.classes * LANES, j
    cdef real* q = scratch + size
    cdef real absent
    cdef const char* q_next = NULL
    if plan.operands > 1:
        absent = absent_element[real](plan, 1, NULL)
        if rows < LANES:
            for j in range(size):
                q[j] = absent
        fetch[real](plan, &plan.operand[1], row + first, rows, 0, plan.classes, q, 1, LANES, absent)
        q_next = gapless(plan, &plan.operand[1], row + first + LANES, LANES, q)
        prefetch_sides(plan, &plan.operand[1], row + first, False, q)
    if is_pointwise(plan.op):
        terms_across[real](plan.op, scratch, q, plan.classes, rows, plan.normalize, plan.weight, p_next, q_next, a, first)
    else:
        divergence_across[real](plan.op, scratch, q, plan.classes, rows, p_next, q_next, a, first)


cdef inline real absent_element(const Plan* plan, int operand, real* like) noexcept nogil:
    """What a masked-out element is read as: one that adds nothing."""
    cdef real number = 0
    if plan.op < ENTROPY:
        return <real>-INFINITY if operand == 0 else <real>0
    if plan.op == KL_NORMALIZED or is_pointwise(plan.op):
        return 0     # smallest_q would count in the sums of p and q
    return absent_p(plan.op, number) if operand == 0 else absent_q(plan.op, number)


# ---- longer rows: block by block -----------------------------------------------------------------------------------------

cdef inline void start_state(State* st) noexcept nogil:
    st.top_at = -1
    st.m = -INFINITY
    st.c = st.s = st.s_lo = st.u = st.u_lo = st.v = st.v_lo = 0
    st.divides = False


cdef inline void start_chunk(const Plan* plan, bint totals, const State* row, State* st) noexcept nogil:
    """Start a chunk's state: with what its row is divided by, where its sums are known."""
    start_state(st)
    if plan.normalize and not totals:
        st.divides = True
        st.by_p = row.by_p
        st.by_p_lo = row.by_p_lo
        st.by_q = row.by_q
        st.by_q_lo = row.by_q_lo


cdef inline Py_ssize_t group_rows(const Plan* plan, size_t itemsize) noexcept nogil:
    """Rows scanned together: a tile, or up to FK_TOGETHER bytes, where they are read in place and are one block; else, where
    they are not read in place, as many as lie side by side in two cache lines."""
    cdef Py_ssize_t rows = TILE
    if not is_direct(plan):
        return side_rows(plan, itemsize)
    if FK_TOGETHER and plan.classes > 0:
        rows = FK_TOGETHER // (plan.classes * <Py_ssize_t>itemsize)
        rows = rows if rows < TILE else TILE
        if rows == 1 and plan.op != SOFTMAX:
            rows = 2     # up to twice as many bytes: one row's maximum alone would keep its sum waiting
    return rows if rows > 1 and plan.classes <= BLOCK else 1


cdef inline Py_ssize_t side_rows(const Plan* plan, size_t itemsize) noexcept nogil:
    """Two lines' worth, less of two operands: a block of each such row, in a thread's scratch, stays below 1 MiB. Contiguous
    rows of a half type share no lines: about a block of them, so that the first-level cache holds what they become."""
    cdef Py_ssize_t most = (4 * SIDE if plan.operands == 1 else 3 * SIDE) // itemsize, i
    cdef bint halves = plan.classes > ACROSS
    for i in range(plan.operands):
        halves = halves and half_rows(plan, &plan.operand[i])
    if halves and most > BLOCK // plan.classes:
        return BLOCK // plan.classes if plan.classes < BLOCK else 1
    return most


cdef inline bint half_rows(const Plan* plan, const Operand* a) noexcept nogil:
    return (a.storage == FK_F16 or a.storage == FK_BF16) and plan.n_inner == 1 and a.inner[0] == 2


cdef inline Py_ssize_t mapped_rows(const Plan* plan, size_t itemsize) noexcept nogil:
    """Rows whose results per element are made together: one where it is read and stored in place; of a softmax that is
    streamed from scratch as many as are scanned together, for their maxima and factors need not wait for one another
    (doubles gain nothing)."""
    cdef Py_ssize_t rows
    if not is_direct(plan) or not plan.out.direct:
        return side_rows(plan, itemsize)
    rows = group_rows(plan, itemsize) if plan.op == SOFTMAX and plan.stream else 1
    return rows if rows < SIDE else SIDE


cdef inline Py_ssize_t bytes_ahead(const Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t stop,
                                   Py_ssize_t n, size_t itemsize) noexcept nogil:
    """How far ahead of n classes, which end before `stop` and are read in place, lies what is read after them. Where all lies
    in one stretch, FK_AHEAD or a block, past the row's end as well; the row's next block or the next row's first; or, as a
    row of one block is read twice (for the maximum and the sum), the next tile's; 0 for nothing."""
    cdef bint stretch = (stop < plan.classes
                         or (plan.n_outer == 1 and a.outer[0] == plan.classes * <Py_ssize_t>itemsize))
    if FK_AHEAD and plan.op >= ENTROPY and stretch:
        return FK_AHEAD
    if plan.classes > BLOCK and stretch:
        return BLOCK * <Py_ssize_t>itemsize
    if plan.n_outer == 1 and plan.classes <= BLOCK and row + 2 * rows <= plan.last_row:
        return rows * a.outer[0]
    if plan.n_outer == 1 and plan.classes > BLOCK and row + 1 < plan.last_row:
        return a.outer[0] - (stop - n) * <Py_ssize_t>itemsize
    return 0


cdef inline bint streams_itself(const Plan* plan, size_t itemsize) noexcept nogil:
    """Whether rows of a divergence are read faster without being prefetched here: two operands in strips, which the hardware
    follows by itself unless FK_AHEAD is known to be better (measured: 1.05 to 1.4 times without it, 1.1 to 1.9 times with)."""
    return not FK_AHEAD and plan.op > ENTROPY and (itemsize == 8 or is_pointwise(plan.op))


cdef inline bint is_direct(const Plan* plan) noexcept nogil:
    return not plan.has_mask and plan.operand[0].direct and (plan.operands < 2 or plan.operand[1].direct)


cdef inline Py_ssize_t hole_in(const Plan* plan, Py_ssize_t index, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Where a label stands in the block of n classes from `first` on, or -1."""
    return index - first if plan.has_labels and first <= index < first + n else -1


cdef inline bint skipped(const Plan* plan, Py_ssize_t index) noexcept nogil:
    """Whether a row's label makes its logits irrelevant."""
    return plan.has_labels and (index == IGNORED or index == BAD_LABEL)


# Rows of log_softmax whose sums are known: what they are mapped with, and where they are. They go to memory, non-temporally,
# while the rows after them are scanned.
cdef struct Mapped:
    Py_ssize_t row, rows
    const double* m
    const double* k
    Outflow* outflow


cdef inline bint flows_out(const Plan* plan) noexcept nogil:
    """Whether rows are stored while the next are computed."""
    return FK_STREAMS and plan.stream and is_direct(plan) and plan.out.direct


cdef inline void map_outflow(Plan* plan, Py_ssize_t row, Py_ssize_t first, Py_ssize_t n, double m, double k, Outflow* outflow,
                             const real* like) noexcept nogil:
    """Let n results of such a row go, from class `first` on; for m and k see map_block."""
    cdef real* y = <real*>row_pointer(plan, &plan.out, row) + first
    cdef const real* x = <const real*>row_pointer(plan, &plan.operand[0], row) + first
    cdef Py_ssize_t i
    if k == k:
        start_flow(outflow, <char*>y, x, n, <real>m, <real>k, FLOWS_LESS)
        return
    for i in range(n):
        y[i] = NAN     # one NaN, see put_rows


cdef void scan_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop,
                    const Py_ssize_t* index, bint totals, State* states, const Mapped* before,
                    real* scratch) noexcept nogil:
    """Read classes start .. stop of some rows, at most TILE, into their states; index: the rows' labels. totals: only the
    sums that the rows are to be divided by. The same classes of the rows `before`, unless NULL, are stored meanwhile."""
    cdef const real* p[TILE]
    cdef const real* q[TILE]
    cdef Py_ssize_t holes[TILE]
    cdef Py_ssize_t first = start, n, i
    cdef bint direct = is_direct(plan)
    cdef Py_ssize_t group = group_rows(plan, sizeof(real))
    cdef real* spare = scratch + (0 if direct else plan.operands * group * SPAN)
    cdef Py_ssize_t ahead, q_ahead
    cdef const char* p_next
    cdef const char* q_next
    cdef Outflow ahead_of_stores
    cdef Outflow* outflow = before.outflow if before != NULL else &ahead_of_stores
    fk_open_flow(&ahead_of_stores)
    while first < stop:
        n = BLOCK if first + BLOCK < stop else stop - first
        if not direct:
            for i in range(plan.operands):
                fetch[real](plan, &plan.operand[i], row, rows, first, n, scratch + i * group * SPAN, SPAN, 1,
                            absent_element[real](plan, <int>i, NULL))
        for i in range(rows):
            if direct:
                p[i] = <const real*>row_pointer(plan, &plan.operand[0], row + i) + first
                q[i] = p[i]
                if plan.operands > 1:
                    q[i] = <const real*>row_pointer(plan, &plan.operand[1], row + i) + first
            else:
                p[i] = scratch + i * SPAN
                q[i] = scratch + (group + i) * SPAN
        ahead = q_ahead = 0
        if direct and not streams_itself(plan, sizeof(real)):
            ahead = bytes_ahead(plan, &plan.operand[0], row, rows, first + n, n, sizeof(real))
            if plan.operands > 1:
                q_ahead = bytes_ahead(plan, &plan.operand[1], row, rows, first + n, n, sizeof(real))
        if totals:
            for i in range(rows):
                total_block[real](p[i], q[i], n, &states[i])
        elif plan.op >= ENTROPY:
            for i in range(rows):
                p_next = <const char*>p[i] + ahead if ahead != 0 else NULL
                q_next = <const char*>q[i] + q_ahead if q_ahead != 0 else NULL
                if is_pointwise(plan.op):
                    term_block[real](plan.op, p[i], q[i], n, plan.weight, p_next, q_next, &states[i])
                else:
                    divergence_block[real](plan.op, p[i], q[i], n, p_next, q_next, &states[i])
        elif plan.op == WEIGHTED_LOGSUMEXP:
            for i in range(rows):
                weighted_block[real](p[i], q[i], n, spare, &states[i])
        else:
            if first == start:
                for i in range(rows):
                    holes[i] = SKIPPED if skipped(plan, index[i]) else hole_in(plan, index[i], first, n)
                open_first_blocks[real](p, rows, n, holes, states)
            for i in range(rows):
                if skipped(plan, index[i]):
                    continue
                p_next = <const char*>p[i] + ahead if ahead != 0 else NULL
                if before != NULL and i < before.rows:
                    map_outflow[real](plan, before.row + i, first, n, before.m[i], before.k[i], outflow, NULL)
                elif plan.op == LOG_SOFTMAX and plan.out.direct and not plan.stream:
                    fk_start_ahead(outflow, row_pointer(plan, &plan.out, row + i) + first * sizeof(real), n * sizeof(real))
                logsumexp_block[real](p[i], n, hole_in(plan, index[i], first, n), plan.op == ENTROPY_OF_LOGITS, p_next,
                                      outflow, &states[i])
                if before != NULL:
                    finish_flow(outflow, p[i])
        first += n


cdef void merge(const Plan* plan, State* st, State* other) noexcept nogil:
    if plan.op >= ENTROPY:
        merge_divergence(st, other)
    else:
        merge_logsumexp(st, other)


cdef inline void keep_state(const State* st, Py_ssize_t j, Sums* a) noexcept nogil:
    a.m[j] = st.m
    a.c[j] = st.c
    a.s[j] = st.s
    a.s_lo[j] = st.s_lo
    a.u[j] = st.u
    a.u_lo[j] = st.u_lo
    a.v[j] = st.v
    a.v_lo[j] = st.v_lo


cdef void read_labels(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Sums* a, real* like) noexcept nogil:
    """The labels of some rows and their logits, which are asked for all at once: each is far from the others."""
    cdef Py_ssize_t i
    cdef real x = 0
    for i in range(rows):
        a.index[i] = read_label(plan, row + i)
        a.label[i] = 0
        if a.index[i] >= 0 and plan.operand[0].direct:
            fk_prefetch(row_pointer(plan, &plan.operand[0], row + i), a.index[i] * sizeof(real), 1)
    for i in range(rows):
        if a.index[i] >= 0:
            fetch[real](plan, &plan.operand[0], row + i, 1, a.index[i], 1, &x, 1, 1, <real>-INFINITY)
            a.label[i] = x


cdef void scan_chunks(Plan* plan, Py_ssize_t row, Py_ssize_t rows, const Py_ssize_t* index, bint totals, State* states,
                      const Mapped* before, real* scratch) noexcept nogil:
    """Whole rows: scan_rows chunk by chunk."""
    cdef State chunk[TILE]
    cdef Py_ssize_t k, start = 0, stop
    while start < plan.classes:
        stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
        for k in range(rows):
            start_chunk(plan, totals, &states[k], &chunk[k])
        scan_rows[real](plan, row, rows, start, stop, index, totals, chunk, before, scratch)
        for k in range(rows):
            if start == 0:
                states[k] = chunk[k]
            else:
                merge(plan, &states[k], &chunk[k])
        start = stop


cdef Py_ssize_t tile_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Some rows, up to TILE, one after another or in groups."""
    cdef Sums a
    cdef State states[TILE]
    cdef double k[TILE]
    cdef Mapped before
    cdef Outflow outflow
    cdef Py_ssize_t i = 0, j, n
    cdef Py_ssize_t group = group_rows(plan, sizeof(real))
    cdef bint flows = plan.op == LOG_SOFTMAX and flows_out(plan)
    if plan.op == SOFTMAX and plan.classes <= CHUNK:
        softmax_of_rows[real](plan, row, rows, scratch)
        return 0
    before.row = row
    before.rows = 0
    before.m = a.m
    before.k = k
    before.outflow = &outflow
    fk_open_flow(&outflow)
    if plan.has_labels:
        read_labels[real](plan, row, rows, &a, NULL)
    while i < rows:
        n = group if i + group < rows else rows - i
        if plan.normalize:
            scan_chunks[real](plan, row + i, n, a.index + i, True, states, NULL, scratch)
            for j in range(n):
                divide_by_totals(&states[j])
        scan_chunks[real](plan, row + i, n, a.index + i, False, states, &before if flows else NULL, scratch)
        if flows:
            # of a group that is smaller: the rows that none after them were there for
            map_rows[real](plan, before.row + n, before.rows - n, 0, plan.classes, before.m + n, before.k + n, &outflow, scratch)
            for j in range(n):
                keep_state(&states[j], j, &a)
            map_factors(&a, n, True, real is float, k)
            before.row = row + i
            before.rows = n
        else:
            for j in range(n):
                keep_state(&states[j], i + j, &a)
        i += n
    if flows:
        map_rows[real](plan, before.row, before.rows, 0, plan.classes, before.m, before.k, &outflow, scratch)
        fk_store_held(&outflow)
        return 0
    return finish_tile[real](plan, row, rows, &a, scratch)


cdef Py_ssize_t finish_tile(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Sums* a, real* scratch) noexcept nogil:
    """From sums to results: numbers per row, or the second pass over the rows."""
    cdef double k[TILE]
    cdef Outflow outflow
    cdef Py_ssize_t i = 0, n, group = mapped_rows(plan, sizeof(real))
    if plan.op != SOFTMAX and plan.op != LOG_SOFTMAX:
        return finish_rows[real](plan, row, rows, a, scratch)
    map_factors(a, rows, plan.op == LOG_SOFTMAX, real is float, k)
    fk_open_flow(&outflow)
    while i < rows:
        n = group if i + group < rows else rows - i
        map_rows[real](plan, row + i, n, 0, plan.classes, a.m + i, k + i, &outflow, scratch)
        i += group
    fk_store_held(&outflow)
    return 0


cdef inline Py_ssize_t waiting_blocks(const Plan* plan, size_t itemsize) noexcept nogil:
    """How many blocks of a softmax's row are streamed: their exponentials wait in scratch until the row's sum is known. Those
    of the others are kept in the output, in the cache."""
    cdef Py_ssize_t blocks = (plan.classes + BLOCK - 1) // BLOCK, most = WAITING // (BLOCK * <Py_ssize_t>itemsize)
    if not plan.stream:
        return 0
    return blocks if blocks < most else most


cdef inline real* softmax_place(Plan* plan, Py_ssize_t row, Py_ssize_t i, Py_ssize_t b, real* scratch) noexcept nogil:
    """Where the exponentials of a block of the i-th row from `row` on are kept: in the output or, if they wait or that is not
    contiguous, in scratch."""
    if b < waiting_blocks(plan, sizeof(real)):
        return scratch + i * SPAN + b * BLOCK
    if plan.out.direct:
        return <real*>row_pointer(plan, &plan.out, row + i) + b * BLOCK
    return scratch + i * SPAN


cdef inline void stream_block(Plan* plan, Py_ssize_t row, Py_ssize_t b, const SoftmaxRow* r, real* e,
                              Outflow* outflow) noexcept nogil:
    """Let a block's results go, which are made of the exponentials e."""
    cdef Py_ssize_t last = (plan.classes - 1) // BLOCK
    softmax_outflow[real](e, BLOCK if b < last else plan.classes - last * BLOCK, r, b, last,
                          row_pointer(plan, &plan.out, row) + b * BLOCK * sizeof(real), outflow)


cdef void exps_of_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, SoftmaxRow* r, Py_ssize_t waiting_rows,
                       const SoftmaxRow* before, Outflow* outflow, real* scratch) noexcept nogil:
    """The exponentials of rows of at most CHUNK classes: of one where both are read and stored in place, else of as many as
    are scanned together. The results of the rows before them that wait go from scratch meanwhile."""
    cdef Py_ssize_t n = plan.classes, last = (n - 1) // BLOCK, waiting = waiting_blocks(plan, sizeof(real)), b, size, i
    cdef bint direct = is_direct(plan), kept = plan.out.direct, goes
    cdef bint stretch = (n > BLOCK and plan.n_outer == 1 and plan.operand[0].outer[0] == n * <Py_ssize_t>sizeof(real)
                         and plan.out.outer[0] == plan.operand[0].outer[0])
    cdef real* e
    cdef const real* x
    cdef const char* next
    cdef char* target
    for b in range(last + 1):
        size = BLOCK if b < last else n - last * BLOCK
        if not direct:
            fetch[real](plan, &plan.operand[0], row, rows, b * BLOCK, size, scratch, SPAN, 1, <real>-INFINITY)
        for i in range(rows):
            x = scratch + i * SPAN
            if direct:
                x = <const real*>row_pointer(plan, &plan.operand[0], row + i) + b * BLOCK
            open_softmax[real](x, size, b, &r[i])
        for i in range(rows):
            x = scratch + i * SPAN
            e = softmax_place[real](plan, row, i, b, scratch)
            next = target = NULL
            if direct:
                x = <const real*>row_pointer(plan, &plan.operand[0], row + i) + b * BLOCK
            if direct and kept and (b < last or stretch):
                next = <const char*>(x + BLOCK)     # past the row's end as well, see bytes_ahead
                target = <char*>(e + BLOCK)
            elif direct and kept and plan.n_outer == 1 and row + i + rows < plan.last_row:
                next = <const char*>(x - b * BLOCK) + rows * plan.operand[0].outer[0]
                target = <char*>(e - b * BLOCK) + rows * plan.out.outer[0]
            goes = i < waiting_rows and b < waiting
            if goes:
                stream_block[real](plan, row - waiting_rows + i, b, &before[i], e, outflow)
            elif waiting == 0 or waiting <= b < last:
                fk_start_ahead(outflow, target, size * sizeof(real))
            softmax_block[real](x, size, b, &r[i], e, next, outflow)
            if goes:
                finish_flow(outflow, x)


cdef void scale_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, const SoftmaxRow* r, real* scratch) noexcept nogil:
    """From exponentials to results, of the blocks that do not wait. Where the output is not contiguous, and they are more than
    one, exponentials are computed twice, to the same bits."""
    cdef Py_ssize_t n = plan.classes, last = (n - 1) // BLOCK, b, size, i
    cdef bint direct = is_direct(plan), kept = plan.out.direct
    cdef real* e
    cdef const real* x
    for b in range(waiting_blocks(plan, sizeof(real)), last + 1):
        size = BLOCK if b < last else n - last * BLOCK
        if not kept and last > 0:
            if not direct:
                fetch[real](plan, &plan.operand[0], row, rows, b * BLOCK, size, scratch, SPAN, 1, <real>-INFINITY)
            for i in range(rows):
                x = scratch + i * SPAN
                if direct:
                    x = <const real*>row_pointer(plan, &plan.operand[0], row + i) + b * BLOCK
                softmax_again[real](x, size, b, &r[i], scratch + i * SPAN)
        for i in range(rows):
            e = softmax_place[real](plan, row, i, b, scratch)
            softmax_scale[real](e, size, &r[i], b, last)
            if plan.has_mask:
                mask_out[real](plan, row + i, 1, b * BLOCK, size, e, SPAN, 1, 0)
        if not kept:
            put[real](plan, row, rows, b * BLOCK, size, scratch, SPAN, 1)


cdef void stream_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, const SoftmaxRow* r, Py_ssize_t first, Outflow* outflow,
                      real* scratch) noexcept nogil:
    """Let the results of rows that wait go, from the first of them on: those whose place no other row took."""
    cdef Py_ssize_t b, i
    for b in range(waiting_blocks(plan, sizeof(real))):
        for i in range(first, rows):
            stream_block[real](plan, row + i, b, &r[i], softmax_place[real](plan, row, i, b, scratch), outflow)
            finish_flow(outflow, scratch)


cdef void softmax_of_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* scratch) noexcept nogil:
    """Some rows of at most CHUNK classes, from their array to their result."""
    cdef SoftmaxRow r[2 * SIDE]
    cdef SoftmaxRow* before
    cdef Py_ssize_t group = mapped_rows(plan, sizeof(real)), i = 0, n, waiting = 0
    cdef int half = 0
    cdef Outflow outflow
    fk_open_flow(&outflow)
    while i < rows:
        n = group if i + group < rows else rows - i
        before = r + (1 - half) * SIDE
        exps_of_rows[real](plan, row + i, n, r + half * SIDE, waiting, before, &outflow, scratch)
        scale_rows[real](plan, row + i, n, r + half * SIDE, scratch)
        stream_rows[real](plan, row + i - waiting, waiting, before, n, &outflow, scratch)     # of a last group that is smaller
        waiting = n
        half = 1 - half
        i += n
    stream_rows[real](plan, row + rows - waiting, waiting, r + (1 - half) * SIDE, 0, &outflow, scratch)
    fk_store_held(&outflow)


cdef void map_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t stop, const double* m,
                   const double* k, Outflow* outflow, real* scratch) noexcept nogil:
    """The second pass over classes start .. stop of some rows, as many as are scanned together at most."""
    cdef bint log = plan.op == LOG_SOFTMAX, direct = is_direct(plan)
    cdef Py_ssize_t n, i
    cdef int half = 0
    cdef const real* x
    cdef real* y
    cdef const char* next
    if log and flows_out(plan):
        for i in range(rows):
            map_outflow[real](plan, row + i, start, stop - start, m[i], k[i], outflow, NULL)
            finish_flow(outflow, scratch)
        return
    while start < stop:
        n = BLOCK if start + BLOCK < stop else stop - start
        if not direct:
            fetch[real](plan, &plan.operand[0], row, rows, start, n, scratch, SPAN, 1, <real>-INFINITY)
        for i in range(rows):
            x = y = scratch + i * SPAN
            if direct:
                x = <const real*>row_pointer(plan, &plan.operand[0], row + i) + start
            if plan.out.direct and not plan.stream:
                y = <real*>row_pointer(plan, &plan.out, row + i) + start
            next = <const char*>(x + n) if FK_AHEAD and stop - start > n else NULL
            if flows_out(plan):
                # The results before go meanwhile; these take the other half of scratch.
                y = scratch + half * SPAN
                half = 1 - half
                map_block[real](x, n, <real>m[i], <real>k[i], log, y, next, outflow)
                finish_flow(outflow, x)
                start_flow(outflow, row_pointer(plan, &plan.out, row + i) + start * sizeof(real), y, n, <real>1, <real>1,
                           FLOWS_SCALED)
                continue
            map_block[real](x, n, <real>m[i], <real>k[i], log, y, next, NULL)
            if plan.has_mask:
                mask_out[real](plan, row + i, 1, start, n, y, SPAN, 1, 0)
            if plan.out.direct and plan.stream:
                fk_stream(row_pointer(plan, &plan.out, row + i) + start * sizeof(real), <const char*>y, n * sizeof(real))
        if not plan.out.direct:
            put[real](plan, row, rows, start, n, scratch, SPAN, 1)
        start += n
    if flows_out(plan):
        finish_flow(outflow, scratch)


cdef Py_ssize_t finish_rows(Plan* plan, Py_ssize_t row, Py_ssize_t rows, Sums* a, real* like) noexcept nogil:
    """One number per row, and the sign where it is asked for. Returns how many rows have a label that is not ignored: counted
    in the plan, they would take its cache line from the other threads at every tile."""
    cdef double result[TILE]
    cdef double extra[TILE]
    cdef Py_ssize_t j, kept = 0
    if plan.op == LOGSUMEXP:
        finish_logsumexp(a, rows, real is float, result)
    elif plan.op == WEIGHTED_LOGSUMEXP:
        finish_weighted(a, rows, plan.has_sign, result, extra)
    elif plan.op == SOFTMAX_CROSS_ENTROPY:
        finish_label_loss(a, rows, real is float, result)
        for j in range(rows):
            kept += a.index[j] != IGNORED
    elif plan.op == ENTROPY_OF_LOGITS:
        finish_entropy_of_logits(a, rows, plan.scale, real is float, result)
    elif is_pointwise(plan.op):
        finish_terms(plan, a, row, rows, result)
    else:
        finish_divergence(plan.op, a, rows, plan.scale, result)
        if plan.op == KL_NORMALIZED:
            for j in range(rows):
                if needs_rescaling(a, j):
                    result[j] = plan.scale * rescaled_kl(plan, row + j)
    put_rows[real](plan, &plan.out, row, rows, result, like)
    if plan.has_sign:
        put_rows[real](plan, &plan.sign, row, rows, extra, like)
    return kept


# ---- tasks and threads -----------------------------------------------------------------------------------------------------

cdef Py_ssize_t one_tile(Plan* plan, Py_ssize_t t, Py_ssize_t size, bint across, bint side, real* scratch) noexcept nogil:
    """Tile t, and how many of its rows are kept."""
    cdef Py_ssize_t row = plan.first_row + t * size
    cdef Py_ssize_t rows = size if row + size < plan.last_row else plan.last_row - row, kept
    cdef unsigned int mode = fk_default_mode()
    if across:
        kept = tile_across[real](plan, row, rows, scratch)
    elif side:
        kept = tile_columns[real](plan, row, rows, scratch)
    else:
        kept = tile_rows[real](plan, row, rows, scratch)
    if plan.stream:
        fk_stream_end()
    fk_restore_mode(mode)
    return kept


cdef void one_chunk(Plan* plan, Py_ssize_t t, Py_ssize_t chunks, const Sums* labels, bint totals, const State* rows,
                    State* states, real* scratch) noexcept nogil:
    """Chunk t % chunks of row t // chunks."""
    cdef Py_ssize_t row = plan.first_row + t // chunks, start = t % chunks * CHUNK
    cdef Py_ssize_t stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
    cdef unsigned int mode = fk_default_mode()
    start_chunk(plan, totals, &rows[t // chunks], &states[t])
    scan_rows[real](plan, row, 1, start, stop, labels.index + t // chunks, totals, &states[t], NULL, scratch)
    fk_restore_mode(mode)


cdef void map_chunk(Plan* plan, Py_ssize_t t, Py_ssize_t chunks, const Sums* a, const double* k,
                    real* scratch) noexcept nogil:
    cdef Py_ssize_t i = t // chunks, start = t % chunks * CHUNK
    cdef Py_ssize_t stop = start + CHUNK if start + CHUNK < plan.classes else plan.classes
    cdef unsigned int mode = fk_default_mode()
    cdef Outflow outflow
    fk_open_flow(&outflow)
    map_rows[real](plan, plan.first_row + i, 1, start, stop, a.m + i, k + i, &outflow, scratch)
    fk_store_held(&outflow)
    if plan.stream:
        fk_stream_end()
    fk_restore_mode(mode)


cdef void run_split(Plan* plan, Py_ssize_t chunks, State* states, real* scratch, Py_ssize_t stride,
                    int threads) noexcept nogil:
    """A few very long rows (at most TILE): threads share each row's chunks, which are then merged in order."""
    cdef Sums a
    cdef double k[TILE]
    cdef State divided_by[TILE]
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, t, i, j
    cdef unsigned int mode
    if plan.has_labels:
        read_labels[real](plan, plan.first_row, rows, &a, NULL)
    if plan.normalize:
        for j in prange(threads, num_threads=threads, schedule="static"):
            for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
                one_chunk[real](plan, t, chunks, &a, True, divided_by, states, scratch + threadid() * stride)
        mode = fk_default_mode()
        for i in range(rows):
            for t in range(1, chunks):
                merge(plan, &states[i * chunks], &states[i * chunks + t])
            divided_by[i] = states[i * chunks]
            divide_by_totals(&divided_by[i])
        fk_restore_mode(mode)
    for j in prange(threads, num_threads=threads, schedule="static"):
        for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
            one_chunk[real](plan, t, chunks, &a, False, divided_by, states, scratch + threadid() * stride)
    mode = fk_default_mode()
    for i in range(rows):
        for t in range(1, chunks):
            merge(plan, &states[i * chunks], &states[i * chunks + t])
        keep_state(&states[i * chunks], i, &a)
    if plan.op != SOFTMAX and plan.op != LOG_SOFTMAX:
        plan.kept = finish_rows[real](plan, plan.first_row, rows, &a, scratch)
        fk_restore_mode(mode)
        return
    map_factors(&a, rows, plan.op == LOG_SOFTMAX, real is float, k)
    fk_restore_mode(mode)
    for j in prange(threads, num_threads=threads, schedule="static"):
        for t in range(share(rows * chunks, j, threads), share(rows * chunks, j + 1, threads)):
            map_chunk[real](plan, t, chunks, &a, k, scratch + threadid() * stride)


cdef int execute(Plan* plan, int threads, real* like) noexcept nogil:
    """Run a plan; returns -1 where memory for the threads' scratch is not to be had."""
    cdef Py_ssize_t rows = plan.last_row - plan.first_row, chunks, size, tiles, t, stride, kept = 0
    cdef bint across = plan.classes <= ACROSS and plan.op != WEIGHTED_LOGSUMEXP
    cdef bint maps = plan.op == SOFTMAX or plan.op == LOG_SOFTMAX, side
    cdef real* scratch = NULL
    cdef State* states = NULL
    if rows <= 0 or (maps and plan.classes == 0):
        return 0
    chunks = (plan.classes + CHUNK - 1) // CHUNK
    plan.unit = unit_of(plan, sizeof(real), threads)
    side = by_columns(plan, sizeof(real))
    if across:
        # Without FK_STREAMS only a softmax of floats waits for memory more than the detour costs that streaming takes here.
        plan.stream = plan.stream and (FK_STREAMS or (plan.op == SOFTMAX and real is float))
        size = LANES if maps else TILE
        stride = plan.operands * plan.classes * LANES
        if plan.stream:
            size *= 1 + STREAMED // (LANES * plan.classes * <Py_ssize_t>sizeof(real))
            stride *= 2
    else:
        # A row that is still in the second-level cache when its results are stored had their lines prefetched meanwhile, which
        # without FK_STREAMS costs less than streaming them.
        if plan.op == SOFTMAX and plan.classes <= CHUNK:
            plan.stream = flows_out(plan)
        elif not FK_STREAMS and (plan.op == SOFTMAX or plan.classes * <Py_ssize_t>sizeof(real) <= KEPT):
            plan.stream = False
        size = 4 * BLOCK // plan.classes if plan.classes > 0 else TILE
        size = 1 if size < 1 else (TILE if size > TILE else size)
        if maps and plan.stream and size < rows // (4 * threads):
            size = rows // (4 * threads) if rows // (4 * threads) < TILE else TILE     # rows are stored while the next are read
        stride = 0
        if not is_direct(plan):
            size = size if size > side_rows(plan, sizeof(real)) else side_rows(plan, sizeof(real))
            stride = plan.operands * side_rows(plan, sizeof(real)) * SPAN     # as scan_rows lays it
        if maps and not plan.out.direct:
            stride = side_rows(plan, sizeof(real)) * SPAN
        elif maps or plan.op == WEIGHTED_LOGSUMEXP:
            stride += 2 * SPAN if flows_out(plan) else SPAN
        if plan.op == SOFTMAX and plan.stream and plan.classes <= CHUNK:
            if plan.classes <= BLOCK:
                stride = mapped_rows(plan, sizeof(real)) * SPAN
            else:
                stride = waiting_blocks(plan, sizeof(real)) * BLOCK
    if side:
        size = tile_size_of_columns(plan, sizeof(real), threads)
        stride = columns_scratch(sizeof(real)) // sizeof(real)
    stride += 64 - stride % 64
    tiles = (rows + size - 1) // size
    if threads > tiles * (chunks if chunks > 1 else 1):
        threads = <int>(tiles * (chunks if chunks > 1 else 1))
    if posix_memalign(<void**>&scratch, 64, threads * stride * sizeof(real)):
        return -1
    if side and chunks > 1 and threads > 1 and tiles < 4 * threads:
        if posix_memalign(<void**>&states, 64, tiles * size * chunks * sizeof(State)):
            free(scratch)
            return -1
        split_columns[real](plan, size, chunks, states, scratch, stride, threads)
    elif not side and chunks > 1 and threads > 1 and rows < 2 * threads and rows <= TILE:
        if posix_memalign(<void**>&states, 64, rows * chunks * sizeof(State)):
            free(scratch)
            return -1
        run_split[real](plan, chunks, states, scratch, stride, threads)
    elif threads == 1:
        # No parallel region: a forked child of a process that had one would hang in it.
        for t in range(tiles):
            kept += one_tile[real](plan, t, size, across, side, scratch)
    else:
        for t in prange(tiles, num_threads=threads, schedule="static"):
            kept += one_tile[real](plan, t, size, across, side, scratch + threadid() * stride)
    plan.kept += kept
    free(states)
    free(scratch)
    return 0
