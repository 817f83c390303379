/* How numbers get in and out of memory: storage types, tiles, transposes, streaming stores.
 *
 * Everything here is total: no pointer is read or written outside the elements named by the arguments. Elements are
 * loaded with memcpy, so that misaligned arrays are no undefined behaviour; gcc turns that into plain moves.
 */
#ifndef FASTKL_MEMORY_H
#define FASTKL_MEMORY_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define FK_INLINE static inline __attribute__((always_inline))
#define FK_LINE 64 /* bytes */

/* How memory is read ahead and written. All of it is measured, none of it changes a result: with AVX-512 on a Zen 5 (48 KiB of
 * first-level cache; a core reads 41 GB/s and writes 80 non-temporally), without on a Zen 3 (32 KiB; 17 and 45 GB/s).
 *
 * FK_PREFETCH   into the first-level cache, or the second.
 * FK_AHEAD      so many bytes ahead a divergence prefetches what it reads once; 0: a block or a tile ahead, or not at all.
 * FK_TOGETHER   rows of a block are scanned together up to so many bytes: they and the next ones stay in the first-level
 *               cache; 0: a tile of rows.
 * FK_STRIP      elements of the strips in which divergences are computed; what comes after them is prefetched strip by strip,
 *               and a long burst holds up the loads behind it.
 * FK_LANES_AHEAD  so many of the 32 lanes ahead the classes of columns are prefetched; 0: 128 classes ahead.
 * FK_STREAMS    whether every softmax and log_softmax that leaves the cache is stored non-temporally; else only where
 *               drive.pxi says that it pays. */
#if defined(__AVX512F__)
#define FK_PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define FK_AHEAD 8192
#define FK_TOGETHER 16384
#define FK_STRIP 128
#define FK_LANES_AHEAD 2
#define FK_STREAMS 1
#else
#define FK_PREFETCH(p) __builtin_prefetch((p), 0, 2)
#define FK_AHEAD 0
#define FK_TOGETHER 0
#define FK_STRIP 256
#define FK_LANES_AHEAD 0
#define FK_STREAMS 0
#endif

/* Storage types, in the order of fastkl._args.STORAGE. */
enum {
    FK_F32, FK_F64, FK_F16, FK_BF16, FK_BOOL,
    FK_I8, FK_U8, FK_I16, FK_U16, FK_I32, FK_U32, FK_I64, FK_U64
};

/* float16 to float32, exact: move the bits up and multiply by 2^112, which also makes denormals right; an exponent of
   all ones (inf, NaN) is put back by hand. */
FK_INLINE float fk_from_f16(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, bits;
    float f;
    memcpy(&f, &magnitude, 4);
    f *= 0x1p112f;
    memcpy(&bits, &f, 4);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, 4);
    return f;
}

FK_INLINE float fk_from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

FK_INLINE uint8_t fk_swap8(uint8_t v) { return v; }

/* LOAD reads one element of an unsigned word type, swaps its bytes if asked, and converts. */
#define FK_LOAD(WORD, SWAP, VALUE)                                                  \
    do {                                                                            \
        WORD w;                                                                     \
        memcpy(&w, s, sizeof w);                                                    \
        if (swap) w = SWAP(w);                                                      \
        *d = VALUE;                                                                 \
    } while (0)

/* Rows are the outer loop where a row's elements lie closer together than its neighbours do, else the inner one. */
#define FK_WALK(WORD, SWAP, VALUE)                                                  \
    do {                                                                            \
        ptrdiff_t i, j;                                                             \
        if (llabs(sr) < llabs(sc))                                                  \
            for (j = 0; j < nc; j++)                                                \
                for (i = 0; i < nr; i++) {                                          \
                    const char *s = src + i * sr + j * sc;                          \
                    __typeof__(dst) d = dst + i * dr + j * dc;                      \
                    FK_LOAD(WORD, SWAP, VALUE);                                     \
                }                                                                   \
        else                                                                        \
            for (i = 0; i < nr; i++)                                                \
                for (j = 0; j < nc; j++) {                                          \
                    const char *s = src + i * sr + j * sc;                          \
                    __typeof__(dst) d = dst + i * dr + j * dc;                      \
                    FK_LOAD(WORD, SWAP, VALUE);                                     \
                }                                                                   \
    } while (0)

FK_INLINE float fk_word_f32(uint32_t w) { float f; memcpy(&f, &w, 4); return f; }
FK_INLINE double fk_word_f64(uint64_t w) { double f; memcpy(&f, &w, 8); return f; }

/* Put `absent` where the mask (one byte an element, 0 for masked out) says so, without a branch, which would be foreseen as badly
   as the mask is irregular: a loop that becomes vectors. dst may be src, and is no part of either otherwise. */
#define FK_DEFINE_MASK_TILE(NAME, RUN, REAL)                                                         \
    static void RUN(REAL *dst, const REAL *src, const char *mask, ptrdiff_t n, REAL absent) {        \
        ptrdiff_t i;                                                                                 \
        _Pragma("GCC ivdep")                                                                         \
        for (i = 0; i < n; i++) dst[i] = mask[i] ? src[i] : absent;                                  \
    }                                                                                                \
    static void NAME(REAL *dst, ptrdiff_t dr, ptrdiff_t dc, const char *mask, ptrdiff_t sr,          \
                     ptrdiff_t sc, ptrdiff_t nr, ptrdiff_t nc, REAL absent) {                        \
        REAL of[2] = {absent, 0};                                                                    \
        ptrdiff_t i, j;                                                                              \
        if (dc == 1 && sc == 1 && dr == nc && sr == nc) RUN(dst, dst, mask, nr * nc, absent);        \
        else if (dc == 1 && sc == 1)                                                                 \
            for (i = 0; i < nr; i++) RUN(dst + i * dr, dst + i * dr, mask + i * sr, nc, absent);     \
        else if (dr == 1 && sr == 1)                                                                 \
            for (j = 0; j < nc; j++) RUN(dst + j * dc, dst + j * dc, mask + j * sc, nr, absent);     \
        else                                                                                         \
            for (i = 0; i < nr; i++)                                                                 \
                for (j = 0; j < nc; j++) {                                                           \
                    of[1] = dst[i * dr + j * dc];                                                    \
                    dst[i * dr + j * dc] = of[mask[i * sr + j * sc] != 0];                           \
                }                                                                                    \
    }

FK_DEFINE_MASK_TILE(fk_mask_tile_f32, fk_masked_run_f32, float)
FK_DEFINE_MASK_TILE(fk_mask_tile_f64, fk_masked_run_f64, double)

/* The reverse of load_tile, in the type of the result, which the gate has made native and aligned. */
#define FK_DEFINE_STORE_TILE(NAME, REAL)                                                             \
    static void NAME(char *dst, ptrdiff_t sr, ptrdiff_t sc, const REAL *src, ptrdiff_t dr,           \
                     ptrdiff_t dc, ptrdiff_t nr, ptrdiff_t nc) {                                     \
        ptrdiff_t i, j;                                                                              \
        if (llabs(sr) < llabs(sc))                                                                   \
            for (j = 0; j < nc; j++)                                                                 \
                for (i = 0; i < nr; i++) *(REAL *)(dst + i * sr + j * sc) = src[i * dr + j * dc];    \
        else                                                                                         \
            for (i = 0; i < nr; i++)                                                                 \
                for (j = 0; j < nc; j++) *(REAL *)(dst + i * sr + j * sc) = src[i * dr + j * dc];    \
    }

FK_DEFINE_STORE_TILE(fk_store_tile_f32, float)
FK_DEFINE_STORE_TILE(fk_store_tile_f64, double)

/* ---- transposes in registers ------------------------------------------------------------------------------------
 * Short rows are worked on across rows: 32 rows of C classes become C vectors of 32 lanes. A 32-byte square (8 x 8
 * floats, 4 x 4 doubles) is transposed in registers, and where a row ends in or is less than half of one, 16 bytes of
 * each row; written with GNU vector shuffles, so one source serves every instruction set. Fewer rows or classes than
 * that take the scalar path.
 */
typedef float fk_v8f __attribute__((vector_size(32), aligned(4), may_alias));
typedef double fk_v4d __attribute__((vector_size(32), aligned(8), may_alias));
typedef int32_t fk_v8i __attribute__((vector_size(32)));
typedef int64_t fk_v4i __attribute__((vector_size(32)));

/* dst[j*dstride + i] = src[i*sstride + j] for an 8 x 8 square. */
FK_INLINE void fk_square_f32(float *dst, ptrdiff_t dstride, const float *src, ptrdiff_t sstride) {
    const fk_v8i lo32 = {0, 8, 1, 9, 4, 12, 5, 13}, hi32 = {2, 10, 3, 11, 6, 14, 7, 15};
    const fk_v8i lo64 = {0, 1, 8, 9, 4, 5, 12, 13}, hi64 = {2, 3, 10, 11, 6, 7, 14, 15};
    const fk_v8i lo128 = {0, 1, 2, 3, 8, 9, 10, 11}, hi128 = {4, 5, 6, 7, 12, 13, 14, 15};
    fk_v8f a[8], b[8];
    int i;
    for (i = 0; i < 8; i++) a[i] = *(const fk_v8f *)(src + i * sstride);
    for (i = 0; i < 4; i++) {
        b[2 * i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], lo32);
        b[2 * i + 1] = __builtin_shuffle(a[2 * i], a[2 * i + 1], hi32);
    }
    for (i = 0; i < 2; i++) {
        a[4 * i] = __builtin_shuffle(b[4 * i], b[4 * i + 2], lo64);
        a[4 * i + 1] = __builtin_shuffle(b[4 * i], b[4 * i + 2], hi64);
        a[4 * i + 2] = __builtin_shuffle(b[4 * i + 1], b[4 * i + 3], lo64);
        a[4 * i + 3] = __builtin_shuffle(b[4 * i + 1], b[4 * i + 3], hi64);
    }
    for (i = 0; i < 4; i++) {
        *(fk_v8f *)(dst + i * dstride) = __builtin_shuffle(a[i], a[i + 4], lo128);
        *(fk_v8f *)(dst + (i + 4) * dstride) = __builtin_shuffle(a[i], a[i + 4], hi128);
    }
}

FK_INLINE void fk_square_f64(double *dst, ptrdiff_t dstride, const double *src, ptrdiff_t sstride) {
    const fk_v4i lo64 = {0, 4, 2, 6}, hi64 = {1, 5, 3, 7}, lo128 = {0, 1, 4, 5}, hi128 = {2, 3, 6, 7};
    fk_v4d a[4], b[4];
    int i;
    for (i = 0; i < 4; i++) a[i] = *(const fk_v4d *)(src + i * sstride);
    b[0] = __builtin_shuffle(a[0], a[1], lo64);
    b[1] = __builtin_shuffle(a[0], a[1], hi64);
    b[2] = __builtin_shuffle(a[2], a[3], lo64);
    b[3] = __builtin_shuffle(a[2], a[3], hi64);
    *(fk_v4d *)(dst) = __builtin_shuffle(b[0], b[2], lo128);
    *(fk_v4d *)(dst + dstride) = __builtin_shuffle(b[1], b[3], lo128);
    *(fk_v4d *)(dst + 2 * dstride) = __builtin_shuffle(b[0], b[2], hi128);
    *(fk_v4d *)(dst + 3 * dstride) = __builtin_shuffle(b[1], b[3], hi128);
}

/* 16 bytes from each of two places, and 16 bytes to each. */
#if defined(__AVX__)
FK_INLINE fk_v8f fk_join_f32(const float *low, const float *high) {
    return (fk_v8f)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}
FK_INLINE fk_v4d fk_join_f64(const double *low, const double *high) {
    return (fk_v4d)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(low)), _mm_loadu_pd(high), 1);
}
FK_INLINE void fk_part_f32(float *low, float *high, fk_v8f a) {
    _mm_storeu_ps(low, _mm256_castps256_ps128((__m256)a));
    _mm_storeu_ps(high, _mm256_extractf128_ps((__m256)a, 1));
}
FK_INLINE void fk_part_f64(double *low, double *high, fk_v4d a) {
    _mm_storeu_pd(low, _mm256_castpd256_pd128((__m256d)a));
    _mm_storeu_pd(high, _mm256_extractf128_pd((__m256d)a, 1));
}
#else
#define FK_DEFINE_JOIN(JOIN, PART, REAL, VECTOR)                                                     \
    FK_INLINE VECTOR JOIN(const REAL *low, const REAL *high) {                                       \
        VECTOR a;                                                                                    \
        memcpy(&a, low, 16);                                                                         \
        memcpy((char *)&a + 16, high, 16);                                                           \
        return a;                                                                                    \
    }                                                                                                \
    FK_INLINE void PART(REAL *low, REAL *high, VECTOR a) {                                           \
        memcpy(low, &a, 16);                                                                         \
        memcpy(high, (const char *)&a + 16, 16);                                                     \
    }
FK_DEFINE_JOIN(fk_join_f32, fk_part_f32, float, fk_v8f)
FK_DEFINE_JOIN(fk_join_f64, fk_part_f64, double, fk_v4d)
#endif

/* In each half of four vectors, the transpose of its 4 x 4 floats. */
FK_INLINE void fk_turn_f32(fk_v8f *a) {
    const fk_v8i lo32 = {0, 8, 1, 9, 4, 12, 5, 13}, hi32 = {2, 10, 3, 11, 6, 14, 7, 15};
    const fk_v8i lo64 = {0, 1, 8, 9, 4, 5, 12, 13}, hi64 = {2, 3, 10, 11, 6, 7, 14, 15};
    const fk_v8f b0 = __builtin_shuffle(a[0], a[1], lo32), b1 = __builtin_shuffle(a[0], a[1], hi32);
    const fk_v8f b2 = __builtin_shuffle(a[2], a[3], lo32), b3 = __builtin_shuffle(a[2], a[3], hi32);
    a[0] = __builtin_shuffle(b0, b2, lo64);
    a[1] = __builtin_shuffle(b0, b2, hi64);
    a[2] = __builtin_shuffle(b1, b3, lo64);
    a[3] = __builtin_shuffle(b1, b3, hi64);
}

/* dst[j*dstride + i] = src[i*sstride + j], i < 8, j < 4. */
FK_INLINE void fk_gather_f32(float *dst, ptrdiff_t dstride, const float *src, ptrdiff_t sstride) {
    fk_v8f a[4];
    int i;
    for (i = 0; i < 4; i++) a[i] = fk_join_f32(src + i * sstride, src + (i + 4) * sstride);
    fk_turn_f32(a);
    for (i = 0; i < 4; i++) *(fk_v8f *)(dst + i * dstride) = a[i];
}

/* The reverse: dst[j*dstride + i] = src[i*sstride + j], i < 4, j < 8. */
FK_INLINE void fk_scatter_f32(float *dst, ptrdiff_t dstride, const float *src, ptrdiff_t sstride) {
    fk_v8f a[4];
    int i;
    for (i = 0; i < 4; i++) a[i] = *(const fk_v8f *)(src + i * sstride);
    fk_turn_f32(a);
    for (i = 0; i < 4; i++) fk_part_f32(dst + i * dstride, dst + (i + 4) * dstride, a[i]);
}

/* The same for doubles: i < 4, j < 2, and i < 2, j < 4. */
FK_INLINE void fk_gather_f64(double *dst, ptrdiff_t dstride, const double *src, ptrdiff_t sstride) {
    const fk_v4i lo64 = {0, 4, 2, 6}, hi64 = {1, 5, 3, 7};
    const fk_v4d a = fk_join_f64(src, src + 2 * sstride), b = fk_join_f64(src + sstride, src + 3 * sstride);
    *(fk_v4d *)dst = __builtin_shuffle(a, b, lo64);
    *(fk_v4d *)(dst + dstride) = __builtin_shuffle(a, b, hi64);
}

FK_INLINE void fk_scatter_f64(double *dst, ptrdiff_t dstride, const double *src, ptrdiff_t sstride) {
    const fk_v4i lo64 = {0, 4, 2, 6}, hi64 = {1, 5, 3, 7};
    const fk_v4d a = *(const fk_v4d *)src, b = *(const fk_v4d *)(src + sstride);
    fk_part_f64(dst, dst + 2 * dstride, __builtin_shuffle(a, b, lo64));
    fk_part_f64(dst + dstride, dst + 3 * dstride, __builtin_shuffle(a, b, hi64));
}

/* The same of eight rows at once, i < 8, j < 2, for a whole tile of rows; false, and nothing done, where that is no faster:
   rows of a few lines read whole lines, in squares. */
FK_INLINE int fk_wide_transpose_f64(double *dst, ptrdiff_t dstride, const double *src, ptrdiff_t sstride, ptrdiff_t ni,
                                    ptrdiff_t nj) {
#if defined(__AVX512F__)
    ptrdiff_t i, j, step;
    int k;
    if (ni % 8 || nj < 2 || (nj > 16 && nj <= 128)) return 0;
    for (i = 0; i < ni; i += 8)
        for (j = 0; j < nj; j += step) {
            const double *s = src + i * sstride + j;
            double *d = dst + j * dstride + i;
            __m512d a[2];
            for (k = 0; k < 2; k++, s += sstride) {
                a[k] = _mm512_castpd128_pd512(_mm_loadu_pd(s));
                a[k] = _mm512_mask_broadcast_f64x2(a[k], 0x0c, _mm_loadu_pd(s + 2 * sstride));
                a[k] = _mm512_mask_broadcast_f64x2(a[k], 0x30, _mm_loadu_pd(s + 4 * sstride));
                a[k] = _mm512_mask_broadcast_f64x2(a[k], 0xc0, _mm_loadu_pd(s + 6 * sstride));
            }
            _mm512_storeu_pd(d, _mm512_unpacklo_pd(a[0], a[1]));
            _mm512_storeu_pd(d + dstride, _mm512_unpackhi_pd(a[0], a[1]));
            step = j + 3 == nj ? 1 : 2;
        }
    return 1;
#else
    (void)dst, (void)dstride, (void)src, (void)sstride, (void)ni, (void)nj;
    return 0;
#endif
}

FK_INLINE int fk_wide_transpose_f32(float *dst, ptrdiff_t dstride, const float *src, ptrdiff_t sstride, ptrdiff_t ni,
                                    ptrdiff_t nj) {
    (void)dst, (void)dstride, (void)src, (void)sstride, (void)ni, (void)nj;
    return 0;
}

/* dst[j*dstride + i] = src[i*sstride + j], i < ni, j < nj. Where a side is no multiple of the square's, the last square
   or patch overlaps its neighbour and writes the same numbers again. transpose reads one stretch of the source (a row)
   after the other, spread writes one stretch of the target after the other; where there are gaps between those, the
   ones a few squares further on are prefetched, every line of them: the hardware does not see that pattern. A tile of a few
   classes without gaps goes patch by patch, for in squares its odd classes would be done twice (doubles are not spread so:
   their patches are two wide, a quarter of a line). */
#define FK_LANES 32 /* of a tile of short rows: that stride is known to the compiler */
#define FK_STEP(i, n, SIDE) ((i) + 2 * (SIDE) <= (n) || (i) + (SIDE) == (n) ? (i) + (SIDE) : (n) - (SIDE))
#define FK_DEFINE_TRANSPOSE(TRANSPOSE, SPREAD, REAL, SIDE, PATCH, SQUARE, GATHER, SCATTER, WIDE)                  \
    /* SIDE rows of nj >= PATCH classes, to SIDE lanes; and back */                                               \
    FK_INLINE void GATHER##_rows(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t nj) { \
        ptrdiff_t j = 0;                                                                                          \
        for (; j + SIDE <= nj; j += SIDE) SQUARE(dst + j * dstride, dstride, src + j, sstride);                   \
        if (j == nj) return;                                                                                      \
        if (nj > SIDE && nj - j > PATCH) {                                                                        \
            SQUARE(dst + (nj - SIDE) * dstride, dstride, src + nj - SIDE, sstride);                               \
            return;                                                                                               \
        }                                                                                                         \
        for (; j + PATCH < nj; j += PATCH) GATHER(dst + j * dstride, dstride, src + j, sstride);                  \
        GATHER(dst + (nj - PATCH) * dstride, dstride, src + nj - PATCH, sstride);                                 \
    }                                                                                                             \
    FK_INLINE void SCATTER##_rows(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni) { \
        ptrdiff_t i = 0;                                                                                          \
        for (; i + SIDE <= ni; i += SIDE) SQUARE(dst + i, dstride, src + i * sstride, sstride);                   \
        if (i == ni) return;                                                                                      \
        if (ni > SIDE && ni - i > PATCH) {                                                                        \
            SQUARE(dst + ni - SIDE, dstride, src + (ni - SIDE) * sstride, sstride);                               \
            return;                                                                                               \
        }                                                                                                         \
        for (; i + PATCH < ni; i += PATCH) SCATTER(dst + i, dstride, src + i * sstride, sstride);                 \
        SCATTER(dst + ni - PATCH, dstride, src + (ni - PATCH) * sstride, sstride);                                \
    }                                                                                                             \
    static int SQUARE##_fits(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni,      \
                             ptrdiff_t nj, int fits) {                                                            \
        ptrdiff_t i, j;                                                                                           \
        for (j = 0; !fits && j < nj; j++)                                                                         \
            for (i = 0; i < ni; i++) dst[j * dstride + i] = src[i * sstride + j];                                 \
        return fits;                                                                                              \
    }                                                                                                             \
    static void TRANSPOSE(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni,         \
                          ptrdiff_t nj) {                                                                         \
        ptrdiff_t i, j, k;                                                                                        \
        if (!SQUARE##_fits(dst, dstride, src, sstride, ni, nj, ni >= SIDE && nj >= PATCH)) return;                \
        if (dstride == FK_LANES && sstride == nj && WIDE(dst, FK_LANES, src, sstride, ni, nj)) return;            \
        if (dstride == FK_LANES && sstride == nj && nj <= 4 * SIDE) {                                             \
            for (j = 0; j < nj; j = FK_STEP(j, nj, PATCH))                                                        \
                for (i = 0; i < ni; i = FK_STEP(i, ni, SIDE))                                                     \
                    GATHER(dst + j * FK_LANES + i, FK_LANES, src + i * sstride + j, sstride);                     \
            return;                                                                                               \
        }                                                                                                         \
        for (i = 0; i < ni; i = FK_STEP(i, ni, SIDE)) {                                                           \
            for (k = i; sstride > nj && k < i + SIDE; k++)                                                        \
                for (j = 0; j < nj + FK_LINE / (ptrdiff_t)sizeof(REAL) - 1; j += FK_LINE / sizeof(REAL))          \
                    FK_PREFETCH(src + (k + 6 * SIDE) * sstride + j);                                           \
            if (dstride == FK_LANES) GATHER##_rows(dst + i, FK_LANES, src + i * sstride, sstride, nj);            \
            else GATHER##_rows(dst + i, dstride, src + i * sstride, sstride, nj);                                 \
        }                                                                                                         \
    }                                                                                                             \
    static void SPREAD(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni,            \
                       ptrdiff_t nj) {                                                                            \
        ptrdiff_t i, j, k;                                                                                        \
        if (!SQUARE##_fits(dst, dstride, src, sstride, ni, nj, ni >= PATCH && nj >= SIDE)) return;                \
        if (sizeof(REAL) == 4 && sstride == FK_LANES && dstride == ni && ni <= 4 * SIDE) {                        \
            for (j = 0; j < nj; j = FK_STEP(j, nj, SIDE))                                                         \
                for (i = 0; i < ni; i = FK_STEP(i, ni, PATCH))                                                    \
                    SCATTER(dst + j * dstride + i, dstride, src + i * FK_LANES + j, FK_LANES);                    \
            return;                                                                                               \
        }                                                                                                         \
        for (j = 0; j < nj; j = FK_STEP(j, nj, SIDE)) {                                                           \
            for (k = j; dstride > ni && k < j + SIDE; k++)                                                        \
                for (i = 0; i < ni + FK_LINE / (ptrdiff_t)sizeof(REAL) - 1; i += FK_LINE / sizeof(REAL))          \
                    __builtin_prefetch(dst + (k + 6 * SIDE) * dstride + i, 1, 2);                                 \
            if (sstride == FK_LANES) SCATTER##_rows(dst + j * dstride, dstride, src + j, FK_LANES, ni);           \
            else SCATTER##_rows(dst + j * dstride, dstride, src + j, sstride, ni);                                \
        }                                                                                                         \
    }

FK_DEFINE_TRANSPOSE(fk_transpose_f32, fk_spread_f32, float, 8, 4, fk_square_f32, fk_gather_f32, fk_scatter_f32,
                    fk_wide_transpose_f32)
FK_DEFINE_TRANSPOSE(fk_transpose_f64, fk_spread_f64, double, 4, 2, fk_square_f64, fk_gather_f64, fk_scatter_f64,
                    fk_wide_transpose_f64)

/* dst[j*dstride + i] = (a[0] + a[1]) + (a[2] + a[3]), a = src + i*sstride + 4*j, i < ni, a multiple of 8, 4*j + 4 <= nj. */
FK_INLINE void fk_fours_f32(float *dst, const float *src, ptrdiff_t sstride) {
    const fk_v8i even = {0, 2, 8, 10, 4, 6, 12, 14}, odd = {1, 3, 9, 11, 5, 7, 13, 15};
    fk_v8f a[4], b, c;
    int i;
    for (i = 0; i < 4; i++) a[i] = fk_join_f32(src + i * sstride, src + (i + 4) * sstride);
    b = __builtin_shuffle(a[0], a[1], even) + __builtin_shuffle(a[0], a[1], odd);
    c = __builtin_shuffle(a[2], a[3], even) + __builtin_shuffle(a[2], a[3], odd);
    *(fk_v8f *)dst = __builtin_shuffle(b, c, even) + __builtin_shuffle(b, c, odd);
}

FK_INLINE void fk_fours_f64(double *dst, const double *src, ptrdiff_t sstride) {
    const fk_v4i even = {0, 4, 2, 6}, odd = {1, 5, 3, 7}, low = {0, 1, 4, 5}, high = {2, 3, 6, 7};
    fk_v4d a[4], b, c;
    int i;
    for (i = 0; i < 4; i++) a[i] = *(const fk_v4d *)(src + i * sstride);
    b = __builtin_shuffle(a[0], a[1], even) + __builtin_shuffle(a[0], a[1], odd);
    c = __builtin_shuffle(a[2], a[3], even) + __builtin_shuffle(a[2], a[3], odd);
    *(fk_v4d *)dst = __builtin_shuffle(b, c, low) + __builtin_shuffle(b, c, high);
}

#define FK_DEFINE_SUM_FOURS(NAME, REAL, SIDE, FOURS)                                                                  \
    static void NAME(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni, ptrdiff_t nj) { \
        ptrdiff_t i, j;                                                                                              \
        for (i = 0; i < ni; i += SIDE)                                                                               \
            for (j = 0; j + 4 <= nj; j += 4) FOURS(dst + j / 4 * dstride + i, src + i * sstride + j, sstride);       \
    }

FK_DEFINE_SUM_FOURS(fk_sum_fours_f32, float, 8, fk_fours_f32)
FK_DEFINE_SUM_FOURS(fk_sum_fours_f64, double, 4, fk_fours_f64)

/* dst[j*dstride + i] = src[j*sstride + i], i < ni, j < nj: the rows lie side by side already. What follows on each stretch
   is prefetched: the next tile's. Of a length that is known a copy becomes a few instructions instead of a call. */
#define FK_DEFINE_COPY_LANES(NAME, REAL)                                                                 \
    static void NAME(REAL *dst, ptrdiff_t dstride, const REAL *src, ptrdiff_t sstride, ptrdiff_t ni,     \
                     ptrdiff_t nj) {                                                                     \
        ptrdiff_t j, k;                                                                                  \
        for (j = 0; j < nj; j++) {                                                                       \
            for (k = 0; k < ni; k += 64 / sizeof(REAL)) FK_PREFETCH(src + j * sstride + ni + k);      \
            if (ni == FK_LANES) memcpy(dst + j * dstride, src + j * sstride, FK_LANES * sizeof(REAL));   \
            else memcpy(dst + j * dstride, src + j * sstride, ni * sizeof(REAL));                        \
        }                                                                                                \
    }

FK_DEFINE_COPY_LANES(fk_copy_lanes_f32, float)
FK_DEFINE_COPY_LANES(fk_copy_lanes_f64, double)

/* A masked tile of rows that are contiguous, as are those of its mask, as it lies (dc = 1) or transposed (dr = 1), by way of some
   rows in the first-level cache: of at most FK_MASKED_CLASSES. */
#define FK_MASKED_CLASSES 256
#define FK_DEFINE_LOAD_MASKED(NAME, REAL, RUN, TRANSPOSE)                                                \
    static void NAME(REAL *dst, ptrdiff_t dr, ptrdiff_t dc, const char *src, ptrdiff_t sr,               \
                     const char *mask, ptrdiff_t mr, ptrdiff_t nr, ptrdiff_t nc, REAL absent) {          \
        REAL rows[8 * FK_MASKED_CLASSES];                                                                \
        ptrdiff_t i, k, ni, step = 8 * FK_MASKED_CLASSES / (nc > 0 ? nc : 1);                            \
        if (dc == 1) {                                                                                   \
            for (i = 0; i < nr; i++) RUN(dst + i * dr, (const REAL *)(src + i * sr), mask + i * mr, nc, absent); \
            return;                                                                                      \
        }                                                                                                \
        for (i = 0; i < nr; i += step) {                                                                 \
            ni = nr - i < step ? nr - i : step;                                                          \
            if (sr == nc * (ptrdiff_t)sizeof(REAL) && mr == nc)                                          \
                RUN(rows, (const REAL *)(src + i * sr), mask + i * mr, ni * nc, absent);                 \
            else                                                                                         \
                for (k = 0; k < ni; k++)                                                                 \
                    RUN(rows + k * nc, (const REAL *)(src + (i + k) * sr), mask + (i + k) * mr, nc, absent); \
            TRANSPOSE(dst + i, dc, rows, nc, ni, nc);                                                    \
        }                                                                                                \
    }

FK_DEFINE_LOAD_MASKED(fk_load_masked_f32, float, fk_masked_run_f32, fk_transpose_f32)
FK_DEFINE_LOAD_MASKED(fk_load_masked_f64, double, fk_masked_run_f64, fk_transpose_f64)

/* ---- half types whose rows are contiguous ------------------------------------------------------------------------ */

#define FK_HALF_AHEAD 8192 /* bytes: what is converted next, one block on, comes into the cache while this one is summed */

static void fk_row_from_bf16(float *dst, const char *src, ptrdiff_t n) {
    ptrdiff_t i = 0, j;
    uint16_t w;
    for (; i + 32 <= n; i += 32) {
        FK_PREFETCH(src + 2 * i + FK_HALF_AHEAD);
        for (j = i; j < i + 32; j++) memcpy(&w, src + 2 * j, 2), dst[j] = fk_from_bf16(w);
    }
    for (; i < n; i++) memcpy(&w, src + 2 * i, 2), dst[i] = fk_from_bf16(w);
}

static void fk_row_from_f16(float *dst, const char *src, ptrdiff_t n) {
    ptrdiff_t i = 0, j;
    uint16_t w;
    for (; i + 32 <= n; i += 32) {
        FK_PREFETCH(src + 2 * i + FK_HALF_AHEAD);
#if defined(__F16C__)
        for (j = i; j < i + 32; j += 8)
            _mm256_storeu_ps(dst + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + 2 * j))));
#else
        for (j = i; j < i + 32; j++) memcpy(&w, src + 2 * j, 2), dst[j] = fk_from_f16(w);
#endif
    }
    for (; i < n; i++) memcpy(&w, src + 2 * i, 2), dst[i] = fk_from_f16(w);
}

#define FK_HALF_ROWS 8
#define FK_HALF_CLASSES 256

/* A tile of such rows as it lies (dc = 1) or transposed (dr = 1), by way of a few rows in the first-level cache. */
static void fk_load_half_rows(float *dst, ptrdiff_t dr, ptrdiff_t dc, const char *src, ptrdiff_t sr, ptrdiff_t nr,
                              ptrdiff_t nc, void (*convert)(float *, const char *, ptrdiff_t)) {
    float rows[FK_HALF_ROWS * (FK_HALF_CLASSES + 8)];
    ptrdiff_t i, j, k, ni, nj;
    if (dc == 1) {
        for (i = 0; i < nr; i++) convert(dst + i * dr, src + i * sr, nc);
        return;
    }
    for (j = 0; j < nc; j += FK_HALF_CLASSES)
        for (i = 0; i < nr; i += FK_HALF_ROWS) {
            ni = nr - i < FK_HALF_ROWS ? nr - i : FK_HALF_ROWS;
            nj = nc - j < FK_HALF_CLASSES ? nc - j : FK_HALF_CLASSES;
            for (k = 0; k < ni; k++) convert(rows + k * (FK_HALF_CLASSES + 8), src + (i + k) * sr + 2 * j, nj);
            fk_transpose_f32(dst + i + j * dc, dc, rows, FK_HALF_CLASSES + 8, ni, nj);
        }
}

/* Load an nr x nc tile: element (i, j) is at src + i*sr + j*sc (bytes), and goes to dst[i*dr + j*dc]. */
#define FK_DEFINE_LOAD_TILE(NAME, REAL)                                                      \
    static void NAME(REAL *dst, ptrdiff_t dr, ptrdiff_t dc, const char *src, ptrdiff_t sr,           \
                     ptrdiff_t sc, ptrdiff_t nr, ptrdiff_t nc, int storage, int swap) {              \
        switch (storage) {                                                                           \
        case FK_F32: FK_WALK(uint32_t, __builtin_bswap32, (REAL)fk_word_f32(w)); break;              \
        case FK_F64: FK_WALK(uint64_t, __builtin_bswap64, (REAL)fk_word_f64(w)); break;              \
        case FK_F16: FK_WALK(uint16_t, __builtin_bswap16, (REAL)fk_from_f16(w)); break;              \
        case FK_BF16: FK_WALK(uint16_t, __builtin_bswap16, (REAL)fk_from_bf16(w)); break;            \
        case FK_BOOL: FK_WALK(uint8_t, fk_swap8, (REAL)(w != 0)); break;                             \
        case FK_I8: FK_WALK(uint8_t, fk_swap8, (REAL)(int8_t)w); break;                              \
        case FK_U8: FK_WALK(uint8_t, fk_swap8, (REAL)w); break;                                      \
        case FK_I16: FK_WALK(uint16_t, __builtin_bswap16, (REAL)(int16_t)w); break;                  \
        case FK_U16: FK_WALK(uint16_t, __builtin_bswap16, (REAL)w); break;                           \
        case FK_I32: FK_WALK(uint32_t, __builtin_bswap32, (REAL)(int32_t)w); break;                  \
        case FK_U32: FK_WALK(uint32_t, __builtin_bswap32, (REAL)w); break;                           \
        case FK_I64: FK_WALK(uint64_t, __builtin_bswap64, (REAL)(int64_t)w); break;                  \
        default: FK_WALK(uint64_t, __builtin_bswap64, (REAL)w); break;                               \
        }                                                                                            \
    }

FK_DEFINE_LOAD_TILE(fk_load_any_tile_f32, float)
FK_DEFINE_LOAD_TILE(fk_load_tile_f64, double)

static void fk_load_tile_f32(float *dst, ptrdiff_t dr, ptrdiff_t dc, const char *src, ptrdiff_t sr, ptrdiff_t sc,
                             ptrdiff_t nr, ptrdiff_t nc, int storage, int swap) {
    if ((storage != FK_F16 && storage != FK_BF16) || swap || sc != 2 || (dr != 1 && dc != 1))
        fk_load_any_tile_f32(dst, dr, dc, src, sr, sc, nr, nc, storage, swap);
    else
        fk_load_half_rows(dst, dr, dc, src, sr, nr, nc, storage == FK_F16 ? fk_row_from_f16 : fk_row_from_bf16);
}

/* ---- the domain of a fast loop -------------------------------------------------------------------------------------
 * The sign bit of the result is set where p < 0, q < low or p > high, and perhaps where one of them is NaN. A loop ors
 * these words: three minima and maxima would take the very units that its multiplications wait for.
 */
#define FK_DEFINE_OUTSIDE(NAME, REAL, WORD)                                                          \
    FK_INLINE WORD NAME(REAL p, REAL q, REAL low, REAL high) {                                       \
        REAL above = q - low, below = high - p;                                                      \
        WORD a, b, c;                                                                                \
        memcpy(&a, &p, sizeof a);                                                                    \
        memcpy(&b, &above, sizeof b);                                                                \
        memcpy(&c, &below, sizeof c);                                                                \
        return a | b | c;                                                                            \
    }

FK_DEFINE_OUTSIDE(fk_outside_f32, float, uint32_t)
FK_DEFINE_OUTSIDE(fk_outside_f64, double, uint64_t)

/* The same of bounds above 0, by integers, which need no unit that adds: as numbers of 64 bits a NaN exceeds high unless
 * its sign is set, and so do -0 and what lies below. */
FK_INLINE uint64_t fk_outside_words_f64(double p, double q, double low, double high) {
    uint64_t a, b, below, above;
    memcpy(&a, &p, sizeof a);
    memcpy(&b, &q, sizeof b);
    memcpy(&below, &low, sizeof below);
    memcpy(&above, &high, sizeof above);
    return a | b | (b - below) | (above - a);
}

/* Not below 2^63 if one of two numbers is negative, -0, a NaN or above high, a bound above 0. */
FK_INLINE uint64_t fk_beyond_words_f64(double p, double q, double high) {
    uint64_t a, b, above;
    memcpy(&a, &p, sizeof a);
    memcpy(&b, &q, sizeof b);
    memcpy(&above, &high, sizeof above);
    return a | b | (above - a) | (above - b);
}

/* Half of a double or the whole of a float, the i-th such word from x on; and which one holds the exponent of the j-th
   number. */
FK_INLINE uint32_t fk_half_word(const void *x, ptrdiff_t i) {
    uint32_t word;
    memcpy(&word, (const char *)x + 4 * i, 4);
    return word;
}

FK_INLINE ptrdiff_t fk_top_word(ptrdiff_t j, ptrdiff_t itemsize) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return itemsize == 4 ? j : 2 * j;
#else
    return itemsize == 4 ? j : 2 * j + 1;
#endif
}

/* ---- streaming ---------------------------------------------------------------------------------------------------
 * A non-temporal store spares the read that a plain store makes of the line it is about to overwrite. It pays only
 * where the output leaves the last-level cache anyway. Head and tail up to a 64-byte boundary are stored plainly.
 */
static void fk_stream(char *dst, const char *src, size_t bytes) {
#if defined(__SSE2__)
    size_t head = (size_t)(-(uintptr_t)dst & 63);
    if (head > bytes) head = bytes;
    memcpy(dst, src, head);
    dst += head, src += head, bytes -= head;
    for (; bytes >= 64; dst += 64, src += 64, bytes -= 64) {
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i *)dst, _mm512_loadu_si512((const void *)src));
#elif defined(__AVX__)
        _mm256_stream_si256((__m256i *)dst, _mm256_loadu_si256((const __m256i *)src));
        _mm256_stream_si256((__m256i *)(dst + 32), _mm256_loadu_si256((const __m256i *)(src + 32)));
#else
        int i;
        for (i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(dst + i), _mm_loadu_si128((const __m128i *)(src + i)));
#endif
    }
#endif
    memcpy(dst, src, bytes);
}

/* What flows out to memory while the next numbers are computed. A burst of non-temporal stores fills the few buffers that they
 * wait in, and then holds up everything; some lines at a time between the steps of a loop, they cost next to nothing. `to`
 * is where the next of so many whole lines goes, made of what lies at `of`: (x STEP a) STEP b, each step rounded; or
 * lines that will soon be stored to are prefetched.
 *
 * A line that one row ends in and the next one begins in is held, bytes held_from .. held_to of it, until it is whole: stored
 * plainly, in two parts, it would first have to be read, and all stores behind it would wait. */
enum { FK_AHEAD_OF_STORES, FK_LESS, FK_SCALED };
typedef struct {
    char *to;
    const char *of;
    ptrdiff_t lines;
    int step;
    float a32, b32;
    double a64, b64;
    char *held_at;
    ptrdiff_t held_from, held_to;
    char held[128]; /* a line, and room for a whole vector from any place in it */
} fk_outflow;

FK_INLINE void fk_open_flow(fk_outflow *out) {
    out->to = NULL;
    out->lines = 0;
    out->held_at = NULL;
    out->held_from = out->held_to = 0;
}

FK_INLINE void fk_start_ahead(fk_outflow *out, char *to, ptrdiff_t bytes) {
    out->to = to, out->step = FK_AHEAD_OF_STORES;
    out->lines = to ? (bytes + 63) / 64 : 0;
}

/* Store what is held: at the end, or before what is not next to it. */
FK_INLINE void fk_store_held(fk_outflow *out) {
    if (out->held_to > out->held_from)
        memcpy(out->held_at + out->held_from, out->held + out->held_from, (size_t)(out->held_to - out->held_from));
    out->held_from = out->held_to = 0;
}

/* NAME: let some lines go. START: begin with n numbers. HOLD: n of them, less than a line, that go with what is held.
 * Only AVX-512, where FK_STREAMS is set, has anything but prefetches to let go: elsewhere the caller stores. */
#if defined(__AVX512F__)
#define FK_FLOWED(OP, STEP, X, A, B) OP(STEP)(OP(STEP)(X, OP(set1)(out->A)), OP(set1)(out->B))
#define FK_FLOW_LINES(REAL, OP, STEP, A, B)                                                          \
    for (i = 0; i < lines; i++)                                                                      \
        OP(stream)((REAL *)(to + 64 * i), FK_FLOWED(OP, STEP, OP(loadu)((const REAL *)(of + 64 * i)), A, B));
#define FK_DEFINE_START(START, HOLD, REAL, VECTOR, OP, A, B)                                         \
    static void HOLD(fk_outflow *out, char *to, const REAL *x, ptrdiff_t n) {                        \
        const unsigned mask = (1u << n) - 1;                                                         \
        VECTOR v = OP(maskz_loadu)(mask, x);                                                         \
        v = out->step == FK_LESS ? FK_FLOWED(OP, sub, v, A, B) : FK_FLOWED(OP, mul, v, A, B);        \
        if (out->held_to == out->held_from) {                                                        \
            out->held_from = out->held_to = (ptrdiff_t)((uintptr_t)to & 63);                         \
            out->held_at = to - out->held_from;                                                      \
        }                                                                                            \
        OP(mask_storeu)((REAL *)(out->held + out->held_to), mask, v);                                \
        out->held_to += n * (ptrdiff_t)sizeof(REAL);                                                 \
        if (out->held_to < 64) return;                                                               \
        if (out->held_from == 0) {                                                                   \
            OP(stream)((REAL *)out->held_at, OP(loadu)((const REAL *)out->held));                    \
            out->held_to = 0;                                                                        \
        } else {                                                                                     \
            fk_store_held(out);                                                                      \
        }                                                                                            \
    }                                                                                                \
    static void START(fk_outflow *out, char *to, const REAL *x, ptrdiff_t n, REAL a, REAL b, int step) { \
        const ptrdiff_t width = 64 / sizeof(REAL);                                                   \
        ptrdiff_t head = (ptrdiff_t)((-(uintptr_t)to & 63) / sizeof(REAL)), lines;                   \
        if (head > n) head = n;                                                                      \
        lines = (n - head) / width;                                                                  \
        out->step = step, out->A = a, out->B = b;                                                    \
        if (out->held_at && out->held_at + out->held_to != to) fk_store_held(out);                   \
        if (head) HOLD(out, to, x, head);                                                            \
        out->to = to + head * (ptrdiff_t)sizeof(REAL), out->of = (const char *)(x + head), out->lines = lines; \
        head += lines * width;                                                                       \
        if (head < n) HOLD(out, to + head * (ptrdiff_t)sizeof(REAL), x + head, n - head);            \
    }
#define FK_DEFINE_FLOW(NAME, REAL, OP, A, B)                                                         \
    FK_INLINE void NAME(fk_outflow *out, ptrdiff_t lines) {                                          \
        ptrdiff_t i;                                                                                 \
        char *to;                                                                                    \
        const char *of;                                                                              \
        if (!out || !out->lines) return;                                                             \
        to = out->to, of = out->of;                                                                  \
        if (lines > out->lines) lines = out->lines;                                                  \
        out->to = to + 64 * lines, out->lines -= lines;                                              \
        if (out->step == FK_AHEAD_OF_STORES) {                                                       \
            for (i = 0; i < lines; i++) __builtin_prefetch(to + 64 * i, 1, 2);                       \
            return;                                                                                  \
        }                                                                                            \
        out->of = of + 64 * lines;                                                                   \
        if (out->step == FK_LESS) {                                                                  \
            FK_FLOW_LINES(REAL, OP, sub, A, B)                                                       \
        } else {                                                                                     \
            FK_FLOW_LINES(REAL, OP, mul, A, B)                                                       \
        }                                                                                            \
    }
#else
#define FK_DEFINE_START(START, HOLD, REAL, VECTOR, OP, A, B)                                         \
    FK_INLINE void START(fk_outflow *out, char *to, const REAL *x, ptrdiff_t n, REAL a, REAL b, int step) { \
        (void)to, (void)x, (void)n, (void)a, (void)b, (void)step;                                    \
        fk_open_flow(out);                                                                           \
    }
#define FK_DEFINE_FLOW(NAME, REAL, OP, A, B)                                                         \
    FK_INLINE void NAME(fk_outflow *out, ptrdiff_t lines) {                                          \
        char *to = out ? out->to : NULL;                                                             \
        ptrdiff_t i;                                                                                 \
        if (!to) return; /* less is counted than for lines that are stored: some too many are prefetched */ \
        for (i = 0; i < lines; i++) __builtin_prefetch(to + 64 * i, 1, 2);                           \
        out->to = to + 64 * lines;                                                                   \
    }
#endif
#define FK_PS(name) _mm512_##name##_ps
#define FK_PD(name) _mm512_##name##_pd

FK_DEFINE_START(fk_start_flow_f32, fk_hold_f32, float, __m512, FK_PS, a32, b32)
FK_DEFINE_START(fk_start_flow_f64, fk_hold_f64, double, __m512d, FK_PD, a64, b64)
FK_DEFINE_FLOW(fk_flow_f32, float, FK_PS, a32, b32)
FK_DEFINE_FLOW(fk_flow_f64, double, FK_PD, a64, b64)

/* Streamed stores become visible to other threads in order only after this. */
FK_INLINE void fk_stream_end(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Bring the lines of some bytes, `at` bytes from a start, into a cache; nothing where the start is NULL. A few at a time: a
   burst would hold up the loads behind it. */
FK_INLINE void fk_prefetch(const char *start, ptrdiff_t at, ptrdiff_t bytes) {
    ptrdiff_t i;
    for (i = 0; start && i < bytes; i += 64) FK_PREFETCH(start + at + i);
}

/* The same for what is not needed soon: the first-level cache has no room for it. */
FK_INLINE void fk_prefetch_far(const char *start, ptrdiff_t bytes) {
    ptrdiff_t i;
    for (i = 0; i < bytes; i += 64) __builtin_prefetch(start + i, 0, 2);
}

/* The same for lines that are about to be stored to. */
FK_INLINE void fk_prefetch_write(char *start, ptrdiff_t at, ptrdiff_t bytes) {
    ptrdiff_t i;
    for (i = 0; start && i < bytes; i += 64) __builtin_prefetch(start + at + i, 1, 2);
}

/* ---- the process's floating-point state --------------------------------------------------------------------------
 * Another library may have set flush-to-zero or denormals-are-zero, or a rounding mode, in this thread: the kernels
 * run in the default mode and put back what they found.
 */
FK_INLINE unsigned fk_default_mode(void) {
#if defined(__SSE2__)
    unsigned found = _mm_getcsr();
    _mm_setcsr((found & 0x3f) | 0x1f80); /* sticky flags kept; all masked, round to nearest, no FTZ, no DAZ */
    return found;
#else
    return 0;
#endif
}

FK_INLINE void fk_restore_mode(unsigned found) {
#if defined(__SSE2__)
    _mm_setcsr(found);
#else
    (void)found;
#endif
}

/* ---- labels ------------------------------------------------------------------------------------------------------
 * One volatile load: what is compared with the number of classes is what is used, even if another thread writes the
 * label meanwhile. Signed labels are extended, so that a negative one is a huge unsigned number.
 */
#define FK_LABEL(WORD, SWAP, SIGNED)                                                                 \
    do {                                                                                             \
        WORD w;                                                                                      \
        if (((uintptr_t)p & (sizeof(WORD) - 1)) == 0) w = *(const volatile WORD *)p;                 \
        else memcpy(&w, (const void *)p, sizeof w);                                                  \
        if (swap) w = SWAP(w);                                                                       \
        return (uint64_t)(int64_t)(SIGNED)w;                                                         \
    } while (0)

FK_INLINE uint64_t fk_label(const char *p, int storage, int swap) {
    switch (storage) {
    case FK_I8: FK_LABEL(uint8_t, fk_swap8, int8_t);
    case FK_U8: FK_LABEL(uint8_t, fk_swap8, uint8_t);
    case FK_I16: FK_LABEL(uint16_t, __builtin_bswap16, int16_t);
    case FK_U16: FK_LABEL(uint16_t, __builtin_bswap16, uint16_t);
    case FK_I32: FK_LABEL(uint32_t, __builtin_bswap32, int32_t);
    case FK_U32: FK_LABEL(uint32_t, __builtin_bswap32, uint32_t);
    default: FK_LABEL(uint64_t, __builtin_bswap64, int64_t); /* int64 and uint64: the same 64 bits */
    }
}

/* The labels of n rows, which lie `stride` bytes apart. */
#define FK_LABEL_RUN(WORD, SIGNED)                                                                   \
    do {                                                                                             \
        for (i = 0; i < n; i++)                                                                      \
            labels[i] = (uint64_t)(int64_t)(SIGNED)*(const volatile WORD *)(p + i * stride);         \
        return;                                                                                      \
    } while (0)

static void fk_labels(const char *p, ptrdiff_t stride, ptrdiff_t n, int storage, int swap, uint64_t *labels) {
    ptrdiff_t i;
    if (!swap && (((uintptr_t)p | (uintptr_t)stride) & 7) == 0) {
        if (storage == FK_I64 || storage == FK_U64) FK_LABEL_RUN(uint64_t, int64_t);
    }
    if (!swap && (((uintptr_t)p | (uintptr_t)stride) & 3) == 0) {
        if (storage == FK_I32) FK_LABEL_RUN(uint32_t, int32_t);
    }
    for (i = 0; i < n; i++) labels[i] = fk_label(p + i * stride, storage, swap);
}

/* Keep the smallest row seen, with its label: called only where a label is out of range. */
static void fk_record_bad_label(ptrdiff_t *bad_row, uint64_t *bad_label, char *lock, ptrdiff_t row, uint64_t label) {
    while (__atomic_test_and_set(lock, __ATOMIC_ACQUIRE)) {
    }
    if (*bad_row < 0 || row < *bad_row) *bad_row = row, *bad_label = label;
    __atomic_clear(lock, __ATOMIC_RELEASE);
}

#endif
