# The order of a row's logits: the two largest, the first of the largest, how many exceed the label's, the k largest.

from libc.stdint cimport int64_t

# What is known of the order of up to TILE rows, a lane a row.
cdef struct Order:
    double top[TILE]
    double second[TILE]
    double above[TILE]              # logits greater than the label's
    int nan[TILE]
    Py_ssize_t argmax[TILE]


cdef loop order_lanes(const real* x, Py_ssize_t count, const real* patch, const Py_ssize_t* at, const real* labels,
                      bint counts, bint checks, real* tops, real* seconds, double* above, real* nans,
                      const char* next) noexcept nogil:
    """Per lane: the two largest; with `counts` how many exceed the label's; with `checks` how many are NaN, which the
    others pass over. What will be read `next`, unless NULL, is prefetched."""
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
        fk_prefetch(next, i * LANES * sizeof(real), LANES * sizeof(real))
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
    """Fold the lanes' two largest into top[0] and second[0]; both are overwritten."""
    cdef int j, w = LANES // 2
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


cdef void order_block(const real* x, Py_ssize_t n, Py_ssize_t first, Py_ssize_t row, double label, bint counts,
                      bint checks, const char* next, Order* o, State* opened) noexcept nogil:
    """Add the block from class `first` on to what is known of a row's order. Its maximum opens a state, if given."""
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
    order_lanes(x, count, patch, at, labels, counts, checks, tops, second, above, nans, next)
    for j in range(LANES):
        top[j] = tops[j]
        odd |= nans[j] != 0
    fold_two_largest(top, second)
    if counts:
        o.above[row] += fold_sum(above)
    o.nan[row] |= odd
    if opened != NULL:
        set_reference(x, n, <Py_ssize_t>-1, lane_of(tops, top[0]), top[0], opened)
    if top[0] > o.top[row]:
        o.second[row] = second[0] if second[0] > o.top[row] else o.top[row]
        o.top[row] = top[0]
        o.argmax[row] = first + find_first(x, n, top[0])
    elif top[0] > o.second[row]:
        o.second[row] = top[0]


cdef void order_across(const real* tile, Py_ssize_t classes, const double* labels, bint counts, bint checks,
                       Order* o) noexcept nogil:
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
    order_lanes(tile, classes, tile, at, label, counts, checks, top, second, o.above, nans, NULL)
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
    """The k largest of a tile of short rows, one lane a row, by insertion from the last place up. Place t of lane j is
    at t * LANES + j. What is not there yet is a NaN, which nothing is behind."""
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
