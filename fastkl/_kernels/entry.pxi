# What Python calls: the arrays of a call become a Plan.

cimport numpy as cnp
from . cimport cpu

cnp.import_array()

cdef extern from "memory.h":
    int FK_F32, FK_F64, FK_F16, FK_BF16, FK_BOOL, FK_I8, FK_U8, FK_I16, FK_U16, FK_I32, FK_U32, FK_I64, FK_U64


cdef int storage_of(cnp.ndarray a) noexcept:
    """The storage type of an array that the gate has let in."""
    cdef int size = <int>cnp.PyArray_ITEMSIZE(a)
    cdef char kind = a.descr.kind
    if kind == c"f":
        return FK_F64 if size == 8 else (FK_F32 if size == 4 else FK_F16)
    if kind == c"i":
        return FK_I8 if size == 1 else (FK_I16 if size == 2 else (FK_I32 if size == 4 else FK_I64))
    if kind == c"u":
        return FK_U8 if size == 1 else (FK_U16 if size == 2 else (FK_U32 if size == 4 else FK_U64))
    return FK_BOOL if kind == c"b" else FK_BF16


cdef void set_operand(Operand* a, cnp.ndarray array, int n_outer, int n_inner) noexcept:
    cdef int d
    cdef Py_ssize_t* strides = <Py_ssize_t*>cnp.PyArray_STRIDES(array)
    a.data = cnp.PyArray_BYTES(array)
    a.storage = storage_of(array)
    a.swap = cnp.PyArray_ISBYTESWAPPED(array)
    a.plain = not a.swap and cnp.PyArray_ISALIGNED(array)
    a.divisor = 1
    a.logs = a.scaled = False
    for d in range(n_outer):
        a.outer[d] = strides[d]
    for d in range(n_inner):
        a.inner[d] = strides[n_outer + d]


cdef int merge_axes(int ndim, Py_ssize_t* shape, Py_ssize_t** strides, int arrays) noexcept:
    """Drop axes of length 1 and join neighbours that every array steps through as one; returns how many are left."""
    cdef int d, k, left = 0
    cdef bint join
    for d in range(ndim):
        if shape[d] == 1:
            continue
        join = left > 0
        for k in range(arrays):
            if join and strides[k][left - 1] != strides[k][d] * shape[d]:
                join = False
        if join:
            shape[left - 1] *= shape[d]
            for k in range(arrays):
                strides[k][left - 1] = strides[k][d]
        else:
            shape[left] = shape[d]
            for k in range(arrays):
                strides[k][left] = strides[k][d]
            left += 1
    return left


cdef inline void settle_direct(Plan* plan, Operand* a, int storage, Py_ssize_t itemsize) noexcept:
    a.direct = (a.plain and a.storage == storage and a.divisor == 1
                and (plan.n_inner == 0 or (plan.n_inner == 1 and a.inner[0] == itemsize)))


cdef void start_plan(Plan* plan, int op, cnp.ndarray like, int n_inner) noexcept:
    """A plan of one operation over arrays of the shape of `like`, the n_inner reduced axes last, that asks for nothing else
    yet: what is not set after this is off."""
    cdef int d, n_outer = cnp.PyArray_NDIM(like) - n_inner
    plan.op = op
    plan.given = plan.has_mask = plan.has_labels = plan.has_sign = plan.has_ignored = False
    plan.stream = plan.normalize = plan.exponential = plan.flat_out = plan.checked = False
    plan.ignored = 0
    plan.scale = 1
    plan.weight = 0.5
    plan.points = plan.split = 0
    plan.order = NULL
    plan.gaps = NULL
    plan.kept = 0
    plan.bad_row = -1
    plan.bad_label = 0
    plan.lock = 0
    plan.rows = plan.classes = 1
    for d in range(n_outer):
        plan.outer_shape[d] = cnp.PyArray_DIM(like, d)
        plan.rows *= plan.outer_shape[d]
    for d in range(n_inner):
        plan.inner_shape[d] = cnp.PyArray_DIM(like, n_outer + d)
        plan.classes *= plan.inner_shape[d]
    plan.first_row = 0
    plan.last_row = plan.rows


cdef bint maps(int op) noexcept:
    """Whether an operation over rows gives one number per element."""
    return op == SOFTMAX or op == LOG_SOFTMAX or op == LOGCUMSUMEXP


cdef void set_operands(Plan* plan, tuple operands, tuple given, int n_outer, int n_inner):
    cdef int k
    plan.operands = <int>len(operands)
    plan.given = given is not None and plan.op >= ENTROPY
    for k in range(plan.operands):
        set_operand(&plan.operand[k], operands[k], n_outer, n_inner)
        if given is not None:
            plan.operand[k].logs, plan.operand[k].scaled, plan.operand[k].divisor = given[k]


cdef void arrange(Plan* plan, int n_outer, int n_inner, int storage) noexcept:
    """Merge the axes of a plan whose arrays are set, and find which of them are read or written where they lie."""
    cdef Py_ssize_t* outer[6]
    cdef Py_ssize_t* inner[6]
    cdef int k, outers = 0, inners = 0
    cdef Py_ssize_t itemsize = 8 if storage == FK_F64 else 4
    for k in range(plan.operands):
        outer[outers] = plan.operand[k].outer
        inner[inners] = plan.operand[k].inner
        outers += 1
        inners += 1
    if plan.has_mask:
        outer[outers] = plan.mask.outer
        inner[inners] = plan.mask.inner
        outers += 1
        inners += 1
    if plan.has_labels:
        outer[outers] = plan.labels.outer
        outers += 1
    if not plan.flat_out:
        outer[outers] = plan.out.outer
        outers += 1
    if maps(plan.op):
        inner[inners] = plan.out.inner
        inners += 1
    if plan.has_sign:
        outer[outers] = plan.sign.outer
        outers += 1
    plan.n_outer = merge_axes(n_outer, plan.outer_shape, outer, outers)
    plan.n_inner = merge_axes(n_inner, plan.inner_shape, inner, inners)
    for k in range(plan.operands):
        settle_direct(plan, &plan.operand[k], storage, itemsize)
    settle_direct(plan, &plan.out, storage, itemsize)


cdef int carry_out(Plan* plan, int storage, int threads, bint asked, double nbytes) except -1:
    """Run a plan, on so many threads at most, by the caller's word (asked) or where that pays for the bytes it reads."""
    cdef int failed = 0, kind
    cdef bint double_precision = storage == FK_F64
    with nogil:
        kind = cpu.kind_of(plan.op, double_precision, plan.classes)
        threads = cpu.enter(kind, threads, asked, nbytes)
        if plan.checked:
            find_bad_labels(plan, threads)
        if plan.bad_row >= 0:
            pass
        elif plan.op >= LOGCUMSUMEXP:
            if double_precision:
                execute_scan[double](plan, threads, NULL)
            else:
                execute_scan[float](plan, threads, NULL)
        elif plan.given and double_precision:
            failed = execute_given[double](plan, threads, NULL)
        elif plan.given:
            failed = execute_given[float](plan, threads, NULL)
        elif double_precision:
            failed = execute[double](plan, threads, NULL)
        else:
            failed = execute[float](plan, threads, NULL)
        cpu.leave(kind, threads, nbytes)
    if failed:
        raise MemoryError("fastkl: no memory for the threads' scratch buffers")
    return 0


def run(int op, bint double_precision, tuple operands, mask, labels, out, sign, int n_inner, double scale, ignored,
        bint stream, Py_ssize_t first_row, Py_ssize_t last_row, bint flat_out, int threads, bint asked, double nbytes,
        double weight=0.5, bint normalize=False, tuple given=None, bint exponential=False, order=None, gaps=None,
        Py_ssize_t split=0, bint checked=False):
    """Run one operation over rows first_row .. last_row (to the end if -1).

    The operands and the mask have one shape, with the n_inner reduced axes last; labels, a result per row and the sign
    have the others; a result per element has all. The gate has checked every type. The call may have so many threads, by
    its caller's word (asked) or where that pays for the bytes it reads. given: for each operand, where not all are as the
    operation takes them, whether it holds logs, is divided by its sum, and the temperature. order (int64) and gaps (float64)
    are transport's; with a split the second operand has another number of classes. Where all labels are to be checked before
    anything is written, nothing is if one is out of range. Returns the first row whose label is
    out of range (or -1), that label as 64 bits, and the number of rows whose label is not ignored.
    """
    cdef Plan plan
    cdef cnp.ndarray first = operands[0]
    cdef int n_outer = cnp.PyArray_NDIM(first) - n_inner, storage = FK_F64 if double_precision else FK_F32
    cdef const int64_t[::1] places
    cdef const double[::1] distances
    start_plan(&plan, op, first, n_inner)
    plan.has_mask = mask is not None
    plan.has_labels = labels is not None
    plan.has_sign = sign is not None
    plan.has_ignored = ignored is not None
    plan.ignored = 0 if ignored is None else ignored
    plan.scale = scale
    plan.weight = weight
    plan.normalize = normalize
    plan.exponential = exponential
    plan.split = split
    plan.stream = stream
    plan.flat_out = flat_out
    plan.checked = checked
    set_operands(&plan, operands, given, n_outer, n_inner)
    if plan.has_mask:
        set_operand(&plan.mask, mask, n_outer, n_inner)
    if plan.has_labels:
        set_operand(&plan.labels, labels, n_outer, 0)
    set_operand(&plan.out, out, 0 if flat_out else n_outer, n_inner if maps(op) else 0)
    if plan.has_sign:
        set_operand(&plan.sign, sign, n_outer, 0)
    arrange(&plan, n_outer, n_inner, storage)
    plan.points = plan.classes
    if gaps is not None and len(gaps) > 0:
        distances = gaps
        plan.gaps, plan.points = &distances[0], distances.shape[0]
        if order is not None:
            places = order
            plan.order = &places[0]
    plan.first_row = first_row
    if last_row >= 0:
        plan.last_row = last_row
    carry_out(&plan, storage, threads, asked, nbytes)
    return plan.bad_row, plan.bad_label, plan.kept


# ---- small calls -----------------------------------------------------------------------------------------------------------
# On ten numbers the gate, which is for calls of all kinds, takes longer than the kernel. What most calls are passes it by.

cdef double bytes_of(tuple operands, bint per_element):
    """The bytes that a plain call reads and, if it gives a number per element, writes."""
    return (len(operands) + per_element) * cnp.PyArray_NBYTES(<cnp.ndarray>operands[0])


cdef bint lie_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays are seen at a glance to share no memory."""
    cdef char* start = <char*>cnp.PyArray_DATA(a)
    cdef char* other = <char*>cnp.PyArray_DATA(b)
    return (cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_IS_C_CONTIGUOUS(b)
            and (start + cnp.PyArray_NBYTES(a) <= other or other + cnp.PyArray_NBYTES(b) <= start))


cdef bint fits(out, tuple operands, labels, bint per_element) except -1:
    """Whether out is a contiguous array for the result of a plain call, apart from all that is read or, where there is a
    number per element, the first operand itself."""
    cdef cnp.ndarray first = operands[0], result
    cdef int n = cnp.PyArray_NDIM(first) - (not per_element), d
    if not cnp.PyArray_CheckExact(out):
        return False
    result = out
    if cnp.PyArray_TYPE(result) != cnp.PyArray_TYPE(first) or cnp.PyArray_NDIM(result) != n or not cnp.PyArray_ISCARRAY(result):
        return False
    for d in range(n):
        if cnp.PyArray_DIM(result, d) != cnp.PyArray_DIM(first, d):
            return False
    if len(operands) > 1 and not lie_apart(result, operands[1]):
        return False
    if labels is not None and not lie_apart(result, labels):
        return False
    return (per_element and out is operands[0]) or lie_apart(result, first)


cdef bint is_plain(tuple operands, labels, bint per_element, axis, where, keepdims, out, n_threads) except -1:
    """Whether a call is small and asks for nothing else than most do: of arrays of one shape in a type that is computed in,
    for an array of it, with rows along the last axis, on one thread. Nobody need have looked at these arguments, but for the
    labels."""
    cdef cnp.ndarray first, second
    cdef int number
    if where is not None or keepdims is not False or not cnp.PyArray_CheckExact(operands[0]):
        return False
    if n_threads is not None and (type(n_threads) is not int or n_threads != 1):
        return False
    first = operands[0]
    number = cnp.PyArray_TYPE(first)
    if not (number == cnp.NPY_DOUBLE or number == cnp.NPY_FLOAT) or cnp.PyArray_ISBYTESWAPPED(first):
        return False
    if type(axis) is not int or cnp.PyArray_NDIM(first) == 0 or not (axis == -1 or axis == cnp.PyArray_NDIM(first) - 1):
        return False
    if len(operands) > 1:
        if not cnp.PyArray_CheckExact(operands[1]):
            return False
        second = operands[1]
        if cnp.PyArray_TYPE(second) != number or not cnp.PyArray_SAMESHAPE(first, second):
            return False
    if not cpu.on_one_thread(bytes_of(operands, per_element)):
        return False
    return out is None or fits(out, operands, labels, per_element)


cdef object start_result(Plan* plan, cnp.ndarray like, bint per_element, out, double* number):
    """Let a plan for operands like this one write to out or to a new array, which is returned, or to a number, if that is
    all."""
    cdef int n_outer = cnp.PyArray_NDIM(like) - 1
    cdef cnp.ndarray result
    if out is not None or n_outer > 0 or per_element:
        if out is not None:
            result = out
        else:
            result = cnp.PyArray_SimpleNew(n_outer + per_element, cnp.PyArray_DIMS(like), cnp.PyArray_TYPE(like))
        set_operand(&plan.out, result, n_outer, per_element)
        return result
    plan.out.data, plan.out.storage, plan.out.divisor = <char*>number, storage_of(like), 1
    plan.out.swap, plan.out.plain, plan.out.logs, plan.out.scaled = False, True, False, False
    return None


def run_plain(int op, tuple operands, labels, ignored, axis, where, keepdims, out, n_threads, double scale, double weight,
              bint normalize, bint exponential, tuple given):
    """The result of a small, plain call, see is_plain; None, and nothing is done, for any other, and for a label out of range.

    Labels, the one ignored and all numbers have passed the gate; for these and for what is given see run.
    """
    cdef Plan plan
    cdef cnp.ndarray like
    cdef int n_outer
    cdef double number
    if not is_plain(operands, labels, maps(op), axis, where, keepdims, out, n_threads):
        return None
    like = operands[0]
    n_outer = cnp.PyArray_NDIM(like) - 1
    start_plan(&plan, op, like, 1)
    plan.has_labels = labels is not None
    plan.has_ignored = ignored is not None
    plan.ignored = 0 if ignored is None else ignored
    plan.scale = scale
    plan.weight = weight
    plan.normalize = normalize
    plan.exponential = exponential
    plan.points = plan.classes
    set_operands(&plan, operands, given, n_outer, 1)
    if plan.has_labels:
        set_operand(&plan.labels, labels, n_outer, 0)
    plan.checked = plan.has_labels and out is not None
    result = start_result(&plan, like, maps(op), out, &number)
    arrange(&plan, n_outer, 1, storage_of(like))
    carry_out(&plan, storage_of(like), 1, n_threads is not None, bytes_of(operands, maps(op)))
    if plan.bad_row >= 0:
        return None
    return result if result is not None else cnp.PyArray_ToScalar(&number, like)


def check_labels(cnp.ndarray labels, Py_ssize_t classes, ignored):
    """The first row whose label is out of range, and that label as 64 bits, or (-1, 0); rows in C order."""
    cdef Plan plan
    cdef Py_ssize_t* strides = plan.labels.outer
    cdef int n_outer = cnp.PyArray_NDIM(labels)
    start_plan(&plan, SOFTMAX_CROSS_ENTROPY, labels, 0)
    set_operand(&plan.labels, labels, n_outer, 0)
    plan.classes = classes
    plan.has_ignored = ignored is not None
    plan.ignored = 0 if ignored is None else ignored
    plan.n_outer = merge_axes(n_outer, plan.outer_shape, &strides, 1)
    with nogil:
        find_bad_label(&plan, 0, plan.rows)
    return plan.bad_row, plan.bad_label
