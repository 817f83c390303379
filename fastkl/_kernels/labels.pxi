# Losses against integer labels. The label's logit is left out of the log-sum-exp: loss = softplus(lse of the rest - x_label)
# keeps every digit of a small loss, where lse - x_label returns 0.


cdef inline Py_ssize_t class_of(Plan* plan, Py_ssize_t row, uint64_t label) noexcept nogil:
    """The class that a row's label names, IGNORED, or BAD_LABEL, which is recorded."""
    if plan.has_ignored and label == plan.ignored:
        return IGNORED
    if label >= <uint64_t>plan.classes:
        fk_record_bad_label(&plan.bad_row, &plan.bad_label, &plan.lock, row, label)
        return BAD_LABEL
    return <Py_ssize_t>label


cdef inline Py_ssize_t read_label(Plan* plan, Py_ssize_t row) noexcept nogil:
    """The row's class, as class_of has it. The label is loaded once: another thread may write it."""
    return class_of(plan, row, fk_label(row_pointer(plan, &plan.labels, row), plan.labels.storage, plan.labels.swap))


cdef void load_labels(const Plan* plan, Py_ssize_t row, Py_ssize_t rows, uint64_t* labels) noexcept nogil:
    """The labels of some rows, each loaded once."""
    cdef Py_ssize_t j
    if plan.n_outer <= 1:
        fk_labels(row_pointer(plan, &plan.labels, row), last_stride(plan.n_outer, plan.labels.outer), rows,
                  plan.labels.storage, plan.labels.swap, labels)
    else:
        for j in range(rows):
            labels[j] = fk_label(row_pointer(plan, &plan.labels, row + j), plan.labels.storage, plan.labels.swap)


cdef void find_bad_label(Plan* plan, Py_ssize_t row, Py_ssize_t stop) noexcept nogil:
    """Record the first of some rows whose label is out of range, if there is one. All of a tile are compared before it is
    asked which, for it is seldom any."""
    cdef uint64_t labels[TILE]
    cdef uint64_t classes = <uint64_t>plan.classes, none_ignored = not plan.has_ignored, bad = 0
    cdef Py_ssize_t n, j
    while row < stop and not bad:
        n = TILE if row + TILE < stop else stop - row
        load_labels(plan, row, n, labels)
        for j in range(n):
            bad |= (labels[j] >= classes) & ((labels[j] != plan.ignored) | none_ignored)
        if bad:
            for j in range(n):
                class_of(plan, row + j, labels[j])
        row += n


cdef void find_bad_labels(Plan* plan, int threads) noexcept nogil:
    """find_bad_label of all rows, so many for each thread at a time that it notices no wait for the others."""
    cdef Py_ssize_t parts = (plan.rows + LABELS - 1) // LABELS, t
    if threads == 1 or parts == 1:
        find_bad_label(plan, 0, plan.rows)
        return
    for t in prange(parts, num_threads=threads, schedule="static"):
        find_bad_label(plan, t * LABELS, (t + 1) * LABELS if t + 1 < parts else plan.rows)


cdef void take_labels(Plan* plan, Py_ssize_t row, Py_ssize_t rows, real* tile, Sums* a,
                      Py_ssize_t first) noexcept nogil:
    """The labels of up to LANES short rows, to places first .. first + rows of the sums, and their logits, which are
    taken out of the tile. Each label is loaded once."""
    cdef uint64_t labels[LANES]
    cdef Py_ssize_t j, c
    cdef real* x
    load_labels(plan, row, rows, labels)
    for j in range(rows):
        c = class_of(plan, row + j, labels[j])
        a.index[first + j] = c
        a.label[first + j] = 0
        if c >= 0:
            x = tile + c * LANES + j
            a.label[first + j] = x[0]
            x[0] = -INFINITY


cdef inline double label_loss(double m, double y, double label, Py_ssize_t index, double loss) noexcept nogil:
    """The loss, which is right where the label's logit is -inf or any number, and what it is elsewhere."""
    cdef double nothing = NAN if label == -INFINITY else loss
    cdef double top = m if m > label else label
    loss = nothing if y == -1 else loss          # a row of -inf only has no loss,
    loss = NAN if top == INFINITY else loss      # nor has one with a +inf
    loss = 0 if index == IGNORED else loss
    return NAN if index == BAD_LABEL else loss


cdef inline double rest_of(double t, double y, double e) noexcept nogil:
    """What the loss is log1p of, but for t where that is positive: t is m - x_label, e is exp(-abs(t))."""
    cdef double rest = e * (1 + y)
    return y + e if t > 0 else rest


cdef void finish_label_loss(const Sums* a, Py_ssize_t rows, bint single, double* out) noexcept nogil:
    """loss = softplus(z), z = m + log(c + s) - x_label, without forming z where that would lose digits. single: for
    results in float, whose last digit bears the float's exponential of the rounded difference."""
    cdef double y[TILE]
    cdef double rest[TILE]
    cdef double hi[TILE]
    cdef double lo[TILE]
    cdef double r[TILE]
    cdef double scale[TILE]
    cdef float fall[TILE]
    cdef double t, e
    cdef Py_ssize_t j, whole = whole_groups(rows)
    excesses(a, whole, y)      # the others' sum, less 1
    if single:
        for j in range(whole):
            t = a.m[j] - a.label[j]
            fall[j] = exp_up_f32(<float>(-t if t > 0 else t))
        for j in range(whole):
            rest[j] = rest_of(a.m[j] - a.label[j], y[j], fall[j] * FK_DOWN)
        single_logs_of_sums(rest, whole, lo)
        for j in range(whole):
            hi[j] = 0
    else:
        for j in range(whole):
            t = a.m[j] - a.label[j]
            exp_cut_f64(-t if t > 0 else t, &r[j], &scale[j])
        for j in range(whole):
            e = exp_join_f64(r[j], scale[j]) * FK_DOWN
            rest[j] = rest_of(a.m[j] - a.label[j], y[j], e)
        logs_of_sums(rest, whole, hi, lo)
    for j in range(whole):
        t = a.m[j] - a.label[j]
        out[j] = label_loss(a.m[j], y[j], a.label[j], a.index[j], (hi[j] + lo[j]) + (t if t > 0 else 0))
