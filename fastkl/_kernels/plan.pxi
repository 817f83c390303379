# A call as the kernels see it: every array becomes rows x classes with strides, and a row is fetched or put back by its
# number. The gate has broadcast the arrays against each other and moved the reduced axes last; here their axes are
# merged where all arrays allow it. Nothing below can fail.

from libc.string cimport memcpy

cdef enum Op:
    LOGSUMEXP
    WEIGHTED_LOGSUMEXP
    SOFTMAX
    LOG_SOFTMAX
    SOFTMAX_CROSS_ENTROPY
    ENTROPY_OF_LOGITS
    ENTROPY
    CROSS_ENTROPY
    KL
    KL_NORMALIZED
    GENERALIZED_KL
    JS                              # pointwise.pxi
    JS_DISTANCE
    JEFFREYS
    HELLINGER
    BHATTACHARYYA
    TOTAL_VARIATION
    CHI2
    TRIANGULAR
    LOGCUMSUMEXP                    # scan.pxi
    WASSERSTEIN
    BINARY_LOGITS
    BINARY_PROBS
    SCORE                           # score.pxi, of one operand
    SCORE_OF_TWO
    ALPHA_OF_ONE                     # alpha.pxi, of one operand
    ALPHA_OF_TWO

cdef struct Operand:
    char* data
    int storage
    bint swap
    bint plain                      # aligned and in the machine's byte order
    bint direct                     # and a row is contiguous in the compute type: read where it lies
    double divisor                  # what its numbers are divided by, in the compute type; 1 where it is direct
    bint logs                       # given.pxi: it holds logs of probabilities, not probabilities,
    bint scaled                     # and they are divided by their sum
    Py_ssize_t outer[MAXDIM]        # strides in bytes, by outer axis
    Py_ssize_t inner[MAXDIM]        # and by reduced axis

cdef struct Plan:
    int op
    int operands
    int n_outer
    int n_inner
    Py_ssize_t outer_shape[MAXDIM]
    Py_ssize_t inner_shape[MAXDIM]
    Py_ssize_t rows
    Py_ssize_t classes
    Operand operand[2]
    Operand mask
    Operand labels
    Operand out
    Operand sign
    bint given                      # takes given.pxi's way
    bint has_mask
    bint has_labels
    bint has_sign
    Py_ssize_t unit                 # columns.pxi: how many classes are taken as one
    bint stream                     # the output leaves the last-level cache: store it non-temporally
    bint has_ignored
    bint checked                    # all labels, before anything is written
    uint64_t ignored
    double scale                    # 1 / ln(base)
    double weight                   # of p in the mixture of JS
    bint normalize                  # p and q are divided by their sums: pointwise.pxi, scan.pxi
    bint exponential                # the result is the exponential of the entropy
    Py_ssize_t points               # of transport: how many, and, unless NULL,
    const int64_t* order            # which classes have them from left to right, from `split` (unless 0) on those of q,
    const double* gaps              # and the distance from each to the next
    Py_ssize_t split
    Py_ssize_t first_row            # rows first_row .. last_row are asked for;
    Py_ssize_t last_row             # out holds those only where flat_out
    bint flat_out
    Py_ssize_t kept                 # rows whose label is not ignored
    Py_ssize_t bad_row              # first row with a label out of range, or -1
    uint64_t bad_label
    char lock

# The sums of up to TILE rows, a lane a row. What they hold depends on the operation:
#   log space     reference m, weight c of what is left out of s (1 for an element at m, or the number of those, or the
#                 element's weight; 0 where there is none), s = sum of the other exp(x - m), u = sum of
#                 (m - x) exp(x - m), v = sum of all exp(2 (x - m)), the left out included
#   divergences   s = sum of terms, u = sum of p - q, v = sum of p
#   pointwise     s = sum of terms, u = sum of sqrt(p q), v = sum of p + q; before they are divided by, u and v the sums
#                 of p and q
# Pairs (s, s_lo), (u, u_lo) and (v, v_lo) are the two parts of a two-sum.
cdef struct Sums:
    double m[TILE]
    double c[TILE]
    double s[TILE]
    double s_lo[TILE]
    double u[TILE]
    double u_lo[TILE]
    double v[TILE]
    double v_lo[TILE]
    double label[TILE]              # the label's logit
    Py_ssize_t index[TILE]          # the label; NO_LABEL, IGNORED or BAD_LABEL

# One row's, while it is read block by block. top_at: where the maximum stands in the block about to be summed, if that
# block's maximum is st.m and has been found already; else -1.
cdef struct State:
    Py_ssize_t top_at
    double m
    double c
    double s
    double s_lo
    double u
    double u_lo
    double v
    double v_lo
    bint divides                    # pointwise.pxi: by what p and q are multiplied
    double by_p
    double by_p_lo
    double by_q
    double by_q_lo

cdef enum:
    NO_LABEL = -1
    IGNORED = -2
    BAD_LABEL = -3


cdef inline Py_ssize_t offset_of(int ndim, const Py_ssize_t* shape, const Py_ssize_t* strides,
                                 Py_ssize_t index) noexcept nogil:
    """Byte offset of element `index` in C order."""
    cdef Py_ssize_t offset = 0
    cdef int d = ndim - 1
    if ndim == 1:
        return index * strides[0]
    while d >= 0:
        offset += (index % shape[d]) * strides[d]
        index //= shape[d]
        d -= 1
    return offset


cdef inline char* row_pointer(const Plan* plan, const Operand* a, Py_ssize_t row) noexcept nogil:
    return a.data + offset_of(plan.n_outer, plan.outer_shape, a.outer, row)


cdef inline char* gapless(const Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t rows, real* like) noexcept nogil:
    """Where so many rows from `row` on lie, if the array has them and they follow on one another without gaps; else NULL."""
    if (a.direct and plan.n_outer == 1 and a.outer[0] == plan.classes * <Py_ssize_t>sizeof(real)
            and row + rows <= plan.last_row):
        return a.data + row * a.outer[0]
    return NULL


cdef inline Py_ssize_t run_length(int ndim, const Py_ssize_t* shape, Py_ssize_t index, Py_ssize_t most) noexcept nogil:
    """How many elements from `index` on have one common stride: those to the end of the last axis."""
    cdef Py_ssize_t left
    if ndim <= 1:
        return most
    left = shape[ndim - 1] - index % shape[ndim - 1]
    return left if left < most else most


cdef inline Py_ssize_t share(Py_ssize_t n, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    """Where a thread's share of n chunks begins. The last thread's, which is the last chunk with it, that may be a short one,
    is none of the smaller shares, as it would be by OpenMP's static schedule."""
    return n * thread // threads


cdef inline Py_ssize_t last_stride(int ndim, const Py_ssize_t* strides) noexcept nogil:
    return strides[ndim - 1] if ndim > 0 else 0


cdef inline bint side_by_side(const Operand* a, Py_ssize_t stride, const real* like) noexcept nogil:
    """Whether rows so many bytes apart, in the type of `like`, are neighbours in memory."""
    if real is float:
        return a.plain and a.storage == FK_F32 and stride == 4
    else:
        return a.plain and a.storage == FK_F64 and stride == 8


cdef void fetch(const Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t nr, Py_ssize_t start, Py_ssize_t nc,
                real* dst, Py_ssize_t dr, Py_ssize_t dc, real absent) noexcept nogil:
    """Load classes start .. start + nc of nr rows: element (i, j) goes to dst[i*dr + j*dc], `absent` where masked out."""
    cdef Py_ssize_t i = 0, j, ni, nj, k, sm
    cdef char* source
    cdef char* mask
    cdef Py_ssize_t sr = last_stride(plan.n_outer, a.outer), sc = last_stride(plan.n_inner, a.inner)
    if dr == 1 and dc > 1 and a.direct and plan.n_outer <= 1 and not plan.has_mask:     # most short rows
        source = a.data + row * sr + start * sc
        if real is float:
            fk_transpose_f32(dst, dc, <const float*>source, sr // 4, nr, nc)
        else:
            fk_transpose_f64(dst, dc, <const double*>source, sr // 8, nr, nc)
        return
    if nr == 1 and dc == 1 and a.direct and side_by_side(a, sc, dst) and not plan.has_mask:     # of the type asked for, too
        memcpy(dst, row_pointer(plan, a, row) + start * <Py_ssize_t>sizeof(real), nc * sizeof(real))
        return
    if (plan.has_mask and plan.n_inner == 1 and a.direct and side_by_side(a, sc, dst) and plan.mask.inner[0] == 1
            and (dc == 1 or (dr == 1 and nc <= FK_MASKED_CLASSES))):
        while i < nr:
            ni = run_length(plan.n_outer, plan.outer_shape, row + i, nr - i)
            source = row_pointer(plan, a, row + i) + start * sc
            mask = row_pointer(plan, &plan.mask, row + i) + start
            sm = last_stride(plan.n_outer, plan.mask.outer)
            if real is float:
                fk_load_masked_f32(dst + i * dr, dr, dc, source, sr, mask, sm, ni, nc, absent)
            else:
                fk_load_masked_f64(dst + i * dr, dr, dc, source, sr, mask, sm, ni, nc, absent)
            i += ni
        return
    while i < nr:
        ni = run_length(plan.n_outer, plan.outer_shape, row + i, nr - i)
        j = 0
        while j < nc:
            nj = run_length(plan.n_inner, plan.inner_shape, start + j, nc - j)
            source = (row_pointer(plan, a, row + i)
                      + offset_of(plan.n_inner, plan.inner_shape, a.inner, start + j))
            if real is float:
                if a.direct and dr == 1 and dc > 1:
                    fk_transpose_f32(dst + i + j * dc, dc, <const float*>source, sr // 4, ni, nj)
                elif side_by_side(a, sr, dst) and dr == 1:
                    fk_copy_lanes_f32(dst + i + j * dc, dc, <const float*>source, sc // 4, ni, nj)
                elif side_by_side(a, sr, dst) and dc == 1:
                    fk_transpose_f32(dst + i * dr + j, dr, <const float*>source, sc // 4, nj, ni)
                else:
                    fk_load_tile_f32(dst + i * dr + j * dc, dr, dc, source, sr, sc, ni, nj, a.storage, a.swap)
            else:
                if a.direct and dr == 1 and dc > 1:
                    fk_transpose_f64(dst + i + j * dc, dc, <const double*>source, sr // 8, ni, nj)
                elif side_by_side(a, sr, dst) and dr == 1:
                    fk_copy_lanes_f64(dst + i + j * dc, dc, <const double*>source, sc // 8, ni, nj)
                elif side_by_side(a, sr, dst) and dc == 1:
                    fk_transpose_f64(dst + i * dr + j, dr, <const double*>source, sc // 8, nj, ni)
                else:
                    fk_load_tile_f64(dst + i * dr + j * dc, dr, dc, source, sr, sc, ni, nj, a.storage, a.swap)
            j += nj
        i += ni
    if a.divisor != 1:
        for i in range(nr):
            for j in range(nc):
                dst[i * dr + j * dc] /= <real>a.divisor
    if plan.has_mask:
        mask_out[real](plan, row, nr, start, nc, dst, dr, dc, absent)


cdef void mask_out(const Plan* plan, Py_ssize_t row, Py_ssize_t nr, Py_ssize_t start, Py_ssize_t nc,
                   real* dst, Py_ssize_t dr, Py_ssize_t dc, real absent) noexcept nogil:
    """Put `absent` where the mask is false; the tile is laid out as in fetch."""
    cdef Py_ssize_t i = 0, j, ni, nj
    cdef char* source
    cdef const Operand* a = &plan.mask
    cdef Py_ssize_t sr = last_stride(plan.n_outer, a.outer), sc = last_stride(plan.n_inner, a.inner)
    while i < nr:
        ni = run_length(plan.n_outer, plan.outer_shape, row + i, nr - i)
        j = 0
        while j < nc:
            nj = run_length(plan.n_inner, plan.inner_shape, start + j, nc - j)
            source = (row_pointer(plan, a, row + i)
                      + offset_of(plan.n_inner, plan.inner_shape, a.inner, start + j))
            if real is float:
                fk_mask_tile_f32(dst + i * dr + j * dc, dr, dc, source, sr, sc, ni, nj, absent)
            else:
                fk_mask_tile_f64(dst + i * dr + j * dc, dr, dc, source, sr, sc, ni, nj, absent)
            j += nj
        i += ni


cdef void put(const Plan* plan, Py_ssize_t row, Py_ssize_t nr, Py_ssize_t start, Py_ssize_t nc,
              const real* src, Py_ssize_t dr, Py_ssize_t dc) noexcept nogil:
    """Store a tile of an N x C result; the reverse of fetch."""
    cdef Py_ssize_t i = 0, j, ni, nj
    cdef char* target
    cdef const Operand* a = &plan.out
    cdef Py_ssize_t sr = last_stride(plan.n_outer, a.outer), sc = last_stride(plan.n_inner, a.inner)
    while i < nr:
        ni = run_length(plan.n_outer, plan.outer_shape, row + i, nr - i)
        j = 0
        while j < nc:
            nj = run_length(plan.n_inner, plan.inner_shape, start + j, nc - j)
            target = (row_pointer(plan, a, row + i)
                      + offset_of(plan.n_inner, plan.inner_shape, a.inner, start + j))
            if real is float:
                if a.direct and dr == 1 and dc > 1:
                    fk_spread_f32(<float*>target, sr // 4, src + i + j * dc, dc, nj, ni)
                elif side_by_side(a, sr, src) and dr == 1:
                    fk_copy_lanes_f32(<float*>target, sc // 4, src + i + j * dc, dc, ni, nj)
                elif side_by_side(a, sr, src) and dc == 1:
                    fk_spread_f32(<float*>target, sc // 4, src + i * dr + j, dr, ni, nj)
                else:
                    fk_store_tile_f32(target, sr, sc, src + i * dr + j * dc, dr, dc, ni, nj)
            else:
                if a.direct and dr == 1 and dc > 1:
                    fk_spread_f64(<double*>target, sr // 8, src + i + j * dc, dc, nj, ni)
                elif side_by_side(a, sr, src) and dr == 1:
                    fk_copy_lanes_f64(<double*>target, sc // 8, src + i + j * dc, dc, ni, nj)
                elif side_by_side(a, sr, src) and dc == 1:
                    fk_spread_f64(<double*>target, sc // 8, src + i * dr + j, dr, ni, nj)
                else:
                    fk_store_tile_f64(target, sr, sc, src + i * dr + j * dc, dr, dc, ni, nj)
            j += nj
        i += ni


cdef void put_rows(const Plan* plan, const Operand* a, Py_ssize_t row, Py_ssize_t nr, double* values,
                   real* like) noexcept nogil:
    """Store one number per row, rounded to the result's type. There is one NaN: the sign of what arithmetic leaves depends
    on the order of operands, which is the compiler's to choose."""
    cdef Py_ssize_t i
    cdef real* target
    cdef double* sums
    if plan.exponential:
        for i in range(nr):
            values[i] = exp_any_f64(values[i])
    for i in range(nr):
        values[i] = values[i] if values[i] == values[i] else NAN
    if plan.flat_out:
        sums = <double*>a.data + (row - plan.first_row)     # on their way to a sum: not rounded yet
        for i in range(nr):
            sums[i] = values[i]
    elif plan.n_outer == 1 and a.outer[0] == <Py_ssize_t>sizeof(real):
        target = <real*>row_pointer(plan, a, row)
        for i in range(nr):
            target[i] = <real>values[i]
    else:
        for i in range(nr):
            target = <real*>row_pointer(plan, a, row + i)
            target[0] = <real>values[i]
