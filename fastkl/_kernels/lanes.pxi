# The 32 lanes: what a sum, a maximum and a fold are, in an order that never changes.
#
# A block is read as vectors of 32 elements; lane j adds up elements j, j + 32, j + 64, ... RUN vectors are added in the
# data's own type, then the lanes go over into doubles: so few additions lose less than an eps in float32 even on constant
# rows, whose rounding errors all have one sign. Lanes are folded by a fixed tree, block totals are added in order by
# two-sum. gcc vectorises the loops over lanes because no addition has to change places. With 32 lanes the sums of a loop
# stay in registers, in double too; 64 spill.

cimport cython
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "vmath.h" nogil:
    float exp_up_f32(float x)
    double exp_up_f64(double x)
    float log_f32(float x)
    double log_f64(double x)
    double log_any_f64(double x)
    double exp_any_f64(double x)
    void log1p_split_f64(double y, double* hi, double* lo)
    double log1p_f64(double y)
    void exp_cut_f32(float x, float* r, float* scale)
    void exp_cut_f64(double x, double* r, double* scale)
    float exp_join_f32(float r, float scale)
    double exp_join_f64(double r, double scale)
    void log_cut_f64(double x, double* f, double* s, double* k)
    double log_join_f64(double f, double s, double k)
    float shannon_term_f32(float p)
    double shannon_term_f64(double p)
    void shannon_cut_f64(double p, double* s, double* k)
    double shannon_join_f64(double p, double s, double k)
    void log1p_sum_split_f64(double y, double* hi, double* lo)
    double log1p_sum_f32(double y)
    double split_sum_f64(double y, double* k)
    void log1p_sum_join_f64(double y, double f, double s, double k, double* hi, double* lo)
    double log1p_sum_join_f32(double y, double f, double k)
    float kl_term_f32(float p, float q)
    void kl_cut_f32(float p, float q, float* w, float* d, float* near, float* far)
    float kl_join_f32(float p, float w, float d, float near, float far)
    void kl_cut_f64(double p, double q, double* w, double* d, double* near)
    void kl_cut_by_f64(double p, double q, double p_less_q, double* w, double* d, double* near)
    double kl_join_f64(double p, double w, double d, double near)
    double kl_term_any_f64(double p, double q, double q_lo)
    double xlogy_any_f64(double x, double y)
    uint32_t bits_f32(float x)
    uint64_t bits_f64(double x)
    double double_from_u52(uint64_t u)
    const double LN2_HI_F64     # few bits: k LN2_HI_F64 is exact
    const double LN2_LO_F64

cdef extern from "math.h" nogil:
    double fma(double x, double y, double z)
    double frexp(double x, int* exponent)
    double ldexp(double x, int exponent)
    const double LN2 "M_LN2"

cdef extern from "memory.h" nogil:
    void fk_load_tile_f32(float* dst, Py_ssize_t dr, Py_ssize_t dc, const char* src, Py_ssize_t sr, Py_ssize_t sc,
                          Py_ssize_t nr, Py_ssize_t nc, int storage, int swap)
    void fk_load_tile_f64(double* dst, Py_ssize_t dr, Py_ssize_t dc, const char* src, Py_ssize_t sr, Py_ssize_t sc,
                          Py_ssize_t nr, Py_ssize_t nc, int storage, int swap)
    void fk_mask_tile_f32(float* dst, Py_ssize_t dr, Py_ssize_t dc, const char* mask, Py_ssize_t sr, Py_ssize_t sc,
                          Py_ssize_t nr, Py_ssize_t nc, float absent)
    void fk_mask_tile_f64(double* dst, Py_ssize_t dr, Py_ssize_t dc, const char* mask, Py_ssize_t sr, Py_ssize_t sc,
                          Py_ssize_t nr, Py_ssize_t nc, double absent)
    const int FK_MASKED_CLASSES
    void fk_load_masked_f32(float* dst, Py_ssize_t dr, Py_ssize_t dc, const char* src, Py_ssize_t sr, const char* mask,
                            Py_ssize_t mr, Py_ssize_t nr, Py_ssize_t nc, float absent)
    void fk_load_masked_f64(double* dst, Py_ssize_t dr, Py_ssize_t dc, const char* src, Py_ssize_t sr, const char* mask,
                            Py_ssize_t mr, Py_ssize_t nr, Py_ssize_t nc, double absent)
    void fk_store_tile_f32(char* dst, Py_ssize_t sr, Py_ssize_t sc, const float* src, Py_ssize_t dr, Py_ssize_t dc,
                           Py_ssize_t nr, Py_ssize_t nc)
    void fk_store_tile_f64(char* dst, Py_ssize_t sr, Py_ssize_t sc, const double* src, Py_ssize_t dr, Py_ssize_t dc,
                           Py_ssize_t nr, Py_ssize_t nc)
    void fk_transpose_f32(float* dst, Py_ssize_t dstride, const float* src, Py_ssize_t sstride, Py_ssize_t ni,
                          Py_ssize_t nj)
    void fk_transpose_f64(double* dst, Py_ssize_t dstride, const double* src, Py_ssize_t sstride, Py_ssize_t ni,
                          Py_ssize_t nj)
    void fk_sum_fours_f32(float* dst, Py_ssize_t dstride, const float* src, Py_ssize_t sstride, Py_ssize_t ni,
                          Py_ssize_t nj)
    void fk_sum_fours_f64(double* dst, Py_ssize_t dstride, const double* src, Py_ssize_t sstride, Py_ssize_t ni,
                          Py_ssize_t nj)
    void fk_spread_f32(float* dst, Py_ssize_t dstride, const float* src, Py_ssize_t sstride, Py_ssize_t ni,
                       Py_ssize_t nj)
    void fk_spread_f64(double* dst, Py_ssize_t dstride, const double* src, Py_ssize_t sstride, Py_ssize_t ni,
                       Py_ssize_t nj)
    void fk_copy_lanes_f32(float* dst, Py_ssize_t dstride, const float* src, Py_ssize_t sstride, Py_ssize_t ni,
                           Py_ssize_t nj)
    void fk_copy_lanes_f64(double* dst, Py_ssize_t dstride, const double* src, Py_ssize_t sstride, Py_ssize_t ni,
                           Py_ssize_t nj)
    uint32_t fk_outside_f32(float p, float q, float low, float high)
    uint64_t fk_outside_f64(double p, double q, double low, double high)
    uint64_t fk_outside_words_f64(double p, double q, double low, double high)
    uint64_t fk_beyond_words_f64(double p, double q, double high)
    uint32_t fk_half_word(const void* x, Py_ssize_t i)
    Py_ssize_t fk_top_word(Py_ssize_t j, Py_ssize_t itemsize)
    void fk_stream(char* dst, const char* src, size_t n)
    ctypedef struct Outflow "fk_outflow":
        Py_ssize_t lines
    enum: FLOWS_LESS "FK_LESS"
    enum: FLOWS_SCALED "FK_SCALED"
    void fk_open_flow(Outflow* out)
    void fk_store_held(Outflow* out)
    void fk_start_ahead(Outflow* out, char* to, Py_ssize_t nbytes)
    void fk_start_flow_f32(Outflow* out, char* to, const float* x, Py_ssize_t n, float a, float b, int step)
    void fk_start_flow_f64(Outflow* out, char* to, const double* x, Py_ssize_t n, double a, double b, int step)
    void fk_flow_f32(Outflow* out, Py_ssize_t lines)
    void fk_flow_f64(Outflow* out, Py_ssize_t lines)
    void fk_stream_end()
    const Py_ssize_t FK_AHEAD, FK_TOGETHER
    enum: LANES_AHEAD "FK_LANES_AHEAD"
    enum: STRIP "FK_STRIP"     # elements that go through one step of a loop before the next
    const bint FK_STREAMS
    void fk_prefetch(const char* start, Py_ssize_t at, Py_ssize_t nbytes)
    void fk_prefetch_far(const char* start, Py_ssize_t nbytes)
    void fk_prefetch_write(char* start, Py_ssize_t at, Py_ssize_t nbytes)
    unsigned int fk_default_mode()
    void fk_restore_mode(unsigned int found)
    uint64_t fk_label(const char* p, int storage, int swap)
    void fk_labels(const char* p, Py_ssize_t stride, Py_ssize_t n, int storage, int swap, uint64_t* labels)
    void fk_record_bad_label(Py_ssize_t* bad_row, uint64_t* bad_label, char* lock, Py_ssize_t row, uint64_t label)

cdef extern from *:
    """
    #define loop __attribute__((noinline)) void /* a hot loop, found by its name in the disassembly by .ci/vectorised.py */
    #define inlined inline __attribute__((always_inline)) void /* a part of one */
    #define FK_UP 0x1p64    /* the factor of exp_up */
    #define FK_DOWN 0x1p-64 /* undoes it */
    #if defined(__AVX512F__)
    #define FK_DOUBLES 8 /* in a vector of the machine: of so many lanes at least a loop needs no remainder */
    #define FK_REGISTERS 32 /* of that size: enough for the exponentials of four vectors of lanes and for their sums */
    #else
    #define FK_DOUBLES 4
    #define FK_REGISTERS 16
    #endif
    """
    ctypedef void loop
    ctypedef void inlined
    const double FK_UP, FK_DOWN
    const int FK_DOUBLES, FK_REGISTERS

ctypedef fused real:
    float
    double

cdef enum:
    LANES = 32
    RUN = 4          # vectors added in the data's own type
    FEW_LANES = 4    # lanes of a strip's vectors that, side by side, make one vector
    BLOCK = 4096     # elements between two folds
    VECTORS = 128    # in a block
    LONG_STRIP = 256 # of float KL
    EXPS = 1024      # exponentials of a row that are made before they are summed
    WORDS = 64       # of 32 bits in a vector of doubles
    SPAN = 4112      # from one row of a block to the next in scratch: 4096 would put all of them into one set of the cache
    BLOCKS = 32      # in a chunk
    CHUNK = 131072   # = BLOCKS * BLOCK: elements of a row that one thread takes at a time; chunks are merged in order
    STREAMED = 65536 # bytes of short rows' results stored before a fence, which costs as much as storing some of them
    KEPT = 1048576   # bytes of a row that the second-level cache keeps
    WAITING = 917504 # bytes of a row's exponentials that wait in scratch to be scaled: in all a thread takes less than 1 MiB
    TILE = 64        # rows finished together
    BESIDE = 512     # bytes of a class of rows side by side that are prefetched together
    OPENED = 8       # rows whose maxima are found in turns
    SKIPPED = -2     # instead of a place in a row
    SIDE = 32        # rows at most that are scanned side by side: two lines of the smallest numbers
    ACROSS = 256     # rows of at most so many classes are worked on across rows: the transpose costs less than the folds
    LABELS = 16384   # checked at a time
    MAXDIM = 64      # NumPy's own limit


cdef inline real exp_up(real x) noexcept nogil:
    if real is float:
        return exp_up_f32(x)
    else:
        return exp_up_f64(x)


cdef inline real log_of(real x) noexcept nogil:
    if real is float:
        return log_f32(x)
    else:
        return log_f64(x)


cdef inline real shannon_term(real p) noexcept nogil:
    if real is float:
        return shannon_term_f32(p)
    else:
        return shannon_term_f64(p)


# In steps, see vmath.h.

cdef inline void exp_cut(real x, real* r, real* scale) noexcept nogil:
    if real is float:
        exp_cut_f32(x, r, scale)
    else:
        exp_cut_f64(x, r, scale)


cdef inline real exp_join(real r, real scale) noexcept nogil:
    if real is float:
        return exp_join_f32(r, scale)
    else:
        return exp_join_f64(r, scale)


cdef inline real lowest(real like) noexcept nogil:
    """The most negative finite number of the type."""
    if real is float:
        return -3.4028234663852886e38
    else:
        return -1.7976931348623157e308


cdef inline real larger(real a, real b) noexcept nogil:
    """The maximum of two numbers; b where one is NaN."""
    return a if a > b else b


cdef inline double fold_sum(double* t) noexcept nogil:
    """Add the lanes by a tree of fixed shape; t is overwritten."""
    cdef int j
    for j in range(16):
        t[j] += t[j + 16]
    for j in range(8):
        t[j] += t[j + 8]
    for j in range(4):
        t[j] += t[j + 4]
    return (t[0] + t[2]) + (t[1] + t[3])


cdef inline real fold_max(const real* lanes) noexcept nogil:
    cdef real t[16]
    cdef int j
    for j in range(16):
        t[j] = lanes[j] if lanes[j] > lanes[j + 16] else lanes[j + 16]
    for j in range(8):
        t[j] = t[j] if t[j] > t[j + 8] else t[j + 8]
    for j in range(4):
        t[j] = t[j] if t[j] > t[j + 4] else t[j + 4]
    for j in range(2):
        t[j] = t[j] if t[j] > t[j + 2] else t[j + 2]
    return t[0] if t[0] > t[1] else t[1]


cdef inline void two_sum_add(double* hi, double* lo, double x) noexcept nogil:
    """hi + lo += x, the rounding error of hi kept in lo (Knuth)."""
    cdef double s = hi[0] + x
    cdef double b = s - hi[0]
    lo[0] += (hi[0] - (s - b)) + (x - b)
    hi[0] = s


cdef inline void settle(double* hi, double* lo) noexcept nogil:
    """Bring what is left of two_sum_add's sum into hi, and its rounding error into lo."""
    cdef double s = hi[0] + lo[0]
    lo[0] = (hi[0] - s) + lo[0]
    hi[0] = s


cdef inline double closed(double hi, double lo) noexcept nogil:
    """hi + lo, where lo is NaN because hi became infinite."""
    return hi + lo if lo == lo else hi


cdef inline void fold_two_sum(double* hi, double* lo) noexcept nogil:
    """Fold the lanes' pairs hi + lo into hi[0] + lo[0] by the same tree."""
    cdef int j, w = LANES // 2
    cdef double s, b
    while w > 0:
        for j in range(w):
            s = hi[j] + hi[j + w]
            b = s - hi[j]
            lo[j] = (lo[j] + lo[j + w]) + ((hi[j] - (s - b)) + (hi[j + w] - b))
            hi[j] = s
        w >>= 1


cdef inline void start_flow(Outflow* out, char* to, const real* x, Py_ssize_t n, real a, real b, int step) noexcept nogil:
    if real is float:
        fk_start_flow_f32(out, to, x, n, a, b, step)
    else:
        fk_start_flow_f64(out, to, x, n, a, b, step)


cdef inlined flow(Outflow* out, Py_ssize_t vectors, const real* like) noexcept nogil:
    """Let as many lines go as so many vectors of LANES are."""
    if real is float:
        fk_flow_f32(out, vectors * (LANES * sizeof(float) // 64))
    else:
        fk_flow_f64(out, vectors * (LANES * sizeof(double) // 64))


cdef inline void finish_flow(Outflow* out, const real* like) noexcept nogil:
    """Let all go that is left."""
    if real is float:
        fk_flow_f32(out, out.lines)
    else:
        fk_flow_f64(out, out.lines)


# ---- vectors of a row -------------------------------------------------------------------------------------------------
# Vector i of a block is its elements 32*i to 32*i + 31. A few vectors are not what lies in memory: the last one, where
# the row ends inside it, and those that hold an element to be left out (the label's, the maximum's). They are copied
# to `patch` and changed there; at[k] is the number of the vector that slot k stands for, or -1.

cdef inline const real* vector_at(const real* x, Py_ssize_t i, const real* patch, const Py_ssize_t* at) noexcept nogil:
    if i == at[0]:
        return patch
    if i == at[1]:
        return patch + LANES
    if i == at[2]:
        return patch + 2 * LANES
    return x + i * LANES


cdef inline void place_vectors(const real* x, Py_ssize_t count, const real* patch, const Py_ssize_t* at,
                               const real** places) noexcept nogil:
    """vector_at of all vectors of a block."""
    cdef Py_ssize_t i
    cdef int k
    for i in range(count):
        places[i] = x + i * LANES
    for k in range(3):
        if at[k] >= 0:
            places[at[k]] = patch + k * LANES


cdef inline Py_ssize_t next_patch(Py_ssize_t i, Py_ssize_t count, const Py_ssize_t* at) noexcept nogil:
    """The first vector from i on that is patched, or count."""
    cdef int k
    for k in range(3):
        count = at[k] if i <= at[k] < count else count
    return count


cdef inline real* open_patch(const real* x, Py_ssize_t n, Py_ssize_t i, real absent, real* patch,
                             Py_ssize_t* at) noexcept nogil:
    """Return the patch of vector i, made from memory (absent past the row's end) unless it is there already."""
    cdef Py_ssize_t k = 0, rest = n - i * LANES
    cdef const real* v = x + i * LANES
    cdef real* w
    cdef int j
    while at[k] >= 0 and at[k] != i:
        k += 1
    w = patch + k * LANES
    if at[k] < 0:
        at[k] = i
        for j in range(LANES):
            w[j] = absent
        # No select over all lanes: of that gcc makes a masked load, which waits for what lies past the row, too.
        for j in range(rest if rest < LANES else LANES):
            w[j] = v[j]
    return w


cdef inline Py_ssize_t start_patches(const real* x, Py_ssize_t n, real absent, real* patch,
                                     Py_ssize_t* at) noexcept nogil:
    """Forget all patches, patch the tail if there is one, and return the number of vectors."""
    cdef Py_ssize_t count = (n + LANES - 1) // LANES
    at[0] = at[1] = at[2] = -1
    if n % LANES:
        open_patch(x, n, count - 1, absent, patch, at)
    return count


cdef inline const real* strip_at(const real* x, Py_ssize_t i, Py_ssize_t vectors, const real* patch, const Py_ssize_t* at,
                                 real* spare) noexcept nogil:
    """Vectors i .. i + vectors of a block side by side: where they lie, or, if one is patched, in spare (STRIP elements)."""
    cdef Py_ssize_t k, n = vectors * LANES
    cdef int j, patched = 0
    cdef const real* v = x + i * LANES
    for k in range(3):
        patched |= (at[k] >= i) & (at[k] < i + vectors)
    if not patched:
        return v
    for k in range(vectors):
        v = vector_at(x, i + k, patch, at)
        for j in range(LANES):
            spare[k * LANES + j] = v[j]
    return spare


# ---- the domain of a fast loop ------------------------------------------------------------------------------------------
# Numbers are compared by the 32 bits that hold their sign and exponent, the bounds being powers of two: as unsigned words the
# negative ones and NaN exceed all others, as signed ones the negative ones lie below. A maximum of words is the
# cheapest of instructions, where one of numbers takes a unit that multiplies.

cdef inlined raise_words(const real* x, Py_ssize_t vectors, uint32_t* highest) noexcept nogil:
    """Keep the largest word, as unsigned, of each place in a vector."""
    cdef Py_ssize_t k
    cdef int j, words = LANES * sizeof(real) // 4
    cdef uint32_t word
    for k in range(vectors):
        for j in range(words):
            word = fk_half_word(x + k * LANES, j)
            highest[j] = word if word > highest[j] else highest[j]


cdef inlined lower_words(const real* x, Py_ssize_t vectors, int32_t* lowest_word) noexcept nogil:
    """Keep the smallest word, as signed, of each place in a vector."""
    cdef Py_ssize_t k
    cdef int j, words = LANES * sizeof(real) // 4
    cdef int32_t word
    for k in range(vectors):
        for j in range(words):
            word = <int32_t>fk_half_word(x + k * LANES, j)
            lowest_word[j] = word if word < lowest_word[j] else lowest_word[j]


cdef inline void mark_above(const uint32_t* highest, real high, int* odd) noexcept nogil:
    """1 in odd for each lane that held a number above high, a negative one or a NaN."""
    cdef int j
    cdef uint32_t limit = fk_half_word(&high, fk_top_word(0, sizeof(real)))
    for j in range(LANES):
        odd[j] |= highest[fk_top_word(j, sizeof(real))] > limit


cdef inline void mark_below(const int32_t* lowest_word, real low, int* odd) noexcept nogil:
    """1 in odd for each lane that held a number below low, or a negative one."""
    cdef int j
    cdef int32_t limit = <int32_t>fk_half_word(&low, fk_top_word(0, sizeof(real)))
    for j in range(LANES):
        odd[j] |= lowest_word[fk_top_word(j, sizeof(real))] < limit
