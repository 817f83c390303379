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
    cdef double t, e, y, rest
    cdef Py_ssize_t g, j
    cdef int i
    for g in range(0, rows, 8):
        for i in range(8):
            j = g + i
            t = a.m[j] - a.label[j]
            y = excess(a, j)                 # the others' sum, less 1
            e = exp_up_f64(-t if t > 0 else t) * FK_DOWN
            rest = y + e if t > 0 else e * (1 + y)
            y = (t if t > 0 else 0) + log1p_f64(rest)
            # A row of +inf, of -inf only, or with a NaN label's logit has no loss.
            y = NAN if a.m[j] == INFINITY or a.label[j] == INFINITY else y
            y = INFINITY if a.label[j] == -INFINITY and a.m[j] < INFINITY and a.c[j] + a.s[j] > 0 else y
            y = NAN if a.label[j] == -INFINITY and not a.c[j] + a.s[j] > 0 else y
            y = 0 if a.index[j] == IGNORED else y
            out[j] = NAN if a.index[j] == BAD_LABEL else y
