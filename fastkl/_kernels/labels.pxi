# Losses against integer labels. The label's logit is left out of the log-sum-exp: loss = softplus(lse of the rest - x_label)
# keeps every digit of a small loss, where lse - x_label returns 0.


cdef inline Py_ssize_t read_label(Plan* plan, Py_ssize_t row) noexcept nogil:
    """The row's class, IGNORED, or BAD_LABEL, which is recorded. The label is loaded once: another thread may write it."""
    cdef uint64_t label = fk_label(row_pointer(plan, &plan.labels, row), plan.labels.storage, plan.labels.swap)
    if plan.has_ignored and label == plan.ignored:
        return IGNORED
    if label >= <uint64_t>plan.classes:
        fk_record_bad_label(&plan.bad_row, &plan.bad_label, &plan.lock, row, label)
        return BAD_LABEL
    return <Py_ssize_t>label


cdef void finish_label_loss(const Sums* a, Py_ssize_t rows, double* out) noexcept nogil:
    """loss = softplus(z), z = m + log(c + s) - x_label, without forming z where that would lose digits."""
    cdef double t, e, y, rest, loss, nothing
    cdef Py_ssize_t g, j
    cdef int i
    for g in range(0, rows, 8):
        for i in range(8):
            j = g + i
            t = a.m[j] - a.label[j]
            y = excess(a, j)                 # the others' sum, less 1
            e = exp_up_f64(-t if t > 0 else t) * FK_DOWN
            rest = e * (1 + y)
            rest = y + e if t > 0 else rest
            loss = log1p_f64(rest)
            loss = t + loss if t > 0 else loss
            # A label at -inf has an infinite loss; a row of +inf, or of -inf only, has none.
            loss = INFINITY if a.label[j] == -INFINITY else loss
            loss = NAN if a.label[j] == INFINITY else loss
            loss = NAN if a.m[j] == INFINITY else loss
            nothing = NAN if a.label[j] == -INFINITY else loss
            loss = nothing if y == -1 else loss
            loss = loss if y == y else y
            loss = 0 if a.index[j] == IGNORED else loss
            out[j] = NAN if a.index[j] == BAD_LABEL else loss
