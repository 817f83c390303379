/* The scalar mathematics of the kernels: exp, log, log1p and the KL term, one branch-free function each.
 *
 * Every function is inlined into a loop over 32 lanes, which the compiler vectorises. There are no calls, no tables and
 * no branches, only arithmetic, bit moves and selects on computed values. A function of many steps is also there as
 * two, NAME_cut and NAME_join, for loops that do the first for 32 elements or some hundred before the second: a
 * processor keeps so few long chains of instructions in flight that it waits for their latency, and of short ones
 * enough. The same source serves every instruction set. Where one has fused multiply-add the results are the same
 * bits; without it the digits may differ, the bounds do not. It relies on -ffp-contract=off (fma only where it is
 * written), on round to nearest and on denormals being kept. -ffast-math would break it.
 *
 * Errors are the largest seen, those without fma in parentheses: in ulps of the exact result, or relative to it in
 * eps (2^-23, 2^-52). float exp and log were run on every bit pattern, the others on 10^7 to 10^8 random ones;
 * tests/test_vmath.py repeats it.
 */
#ifndef FASTKL_VMATH_H
#define FASTKL_VMATH_H

#include <stdint.h>

#define VMATH static inline __attribute__((always_inline))

/* Constants: begin (bench/derive_coefficients.py) */
static const float LOG2E_F32 = 0x1.715476p+0f;
static const float LN2_HI_F32 = 0x1.62e400p-1f;
static const float LN2_LO_F32 = 0x1.7f7d1cp-20f;
static const double LOG2E_F64 = 0x1.71547652b82fep+0;
static const double LN2_HI_F64 = 0x1.62e42ff000000p-1;
static const double LN2_LO_F64 = -0x1.718432a1b0e26p-35;
static const float LN2_F32 = 0x1.62e430p-1f;
static const float LN2_4BIT_F32 = 0x1.600000p-1f;
static const float LN2_REST_F32 = 0x1.7217f8p-8f;
static const double LN2_14BIT_F64 = 0x1.62e800p-1;
static const double LN2_REST_F64 = -0x1.e8082e3086543p-16;
static const float EXP_F32[5] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2464p-10f};
static const double EXP_F64[10] = {0x1.000000000000ap-1, 0x1.55555555554fap-3, 0x1.555555555087cp-5,
    0x1.1111111127bc1p-7, 0x1.6c16c1842a2ddp-10, 0x1.a01a012a61a12p-13, 0x1.a0199a0c19ccfp-16, 0x1.71df253f8af97p-19,
    0x1.28ad731740566p-22, 0x1.ad7f88b9dd914p-26};
static const float EXCESS_F32[5] = {0x1.000000p-1f, 0x1.5554dep-3f, 0x1.5555bap-5f, 0x1.120b28p-7f, 0x1.6c6a06p-10f};
static const double EXCESS_F64[10] = {0x1.0000000000001p-1, 0x1.555555555554dp-3, 0x1.5555555553d7dp-5,
    0x1.111111111448dp-7, 0x1.6c16c1788346ep-10, 0x1.a01a018c303a5p-13, 0x1.a019b929c397fp-16, 0x1.71de5a3e92986p-19,
    0x1.28916799edafcp-22, 0x1.aeaaf9f2256edp-26};
static const float LOG_F32[8] = {0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a00ap-3f, -0x1.547246p-3f, 0x1.22d9f0p-3f,
    -0x1.0d8508p-3f, 0x1.055c72p-3f, -0x1.38b91ap-4f};
static const double LOG_F64[7] = {0x1.5555555555592p-1, 0x1.999999997fdbbp-2, 0x1.24924941f0fc1p-2,
    0x1.c71c520973e6dp-3, 0x1.74663ee59fe86p-3, 0x1.39a1bad3ac717p-3, 0x1.2f0563fa812a7p-3};
static const float KL_F32[3] = {0x1.555592p-1f, 0x1.993d50p-2f, 0x1.35c396p-2f};
static const double KL_F64[8] = {0x1.5555555555553p-1, 0x1.999999999afe9p-2, 0x1.24924922bb620p-2,
    0x1.c71c73f474751p-3, 0x1.745c68a45fd4ap-3, 0x1.3b32a3bcdf472p-3, 0x1.0df653c2c3091p-3, 0x1.1a96f2c226601p-3};
/* Constants: end */

/* Lower bounds that the compiler must not know (used: they might be written to): of BOUND > x ? BOUND : x it makes a maximum,
 * one instruction, but where BOUND is a constant a comparison and a blend. */
#define VMATH_BOUND static __attribute__((used))
VMATH_BOUND float EXP_LEAST_F32 = -130.3f; /* about -188 ln2 */
VMATH_BOUND double EXP_LEAST_F64 = -753.5; /* about -1087 ln2 */
VMATH_BOUND double KL_LEAST_F64 = 0x1p-1021;

/* a b + c, rounded once where the machine can. Used where a second rounding is harmless: in polynomials, and where the
 * product is exact because one factor has few bits. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA 1
#define FMA_F32(a, b, c) __builtin_fmaf(a, b, c)
#define FMA_F64(a, b, c) __builtin_fma(a, b, c)
#else
#define HAS_FMA 0
#define FMA_F32(a, b, c) ((a) * (b) + (c))
#define FMA_F64(a, b, c) ((a) * (b) + (c))
#endif

VMATH uint32_t bits_f32(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u; }
VMATH uint64_t bits_f64(double x) { uint64_t u; __builtin_memcpy(&u, &x, 8); return u; }
VMATH float float_of(uint32_t u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
VMATH double double_of(uint64_t u) { double x; __builtin_memcpy(&x, &u, 8); return x; }

/* An unsigned integer below 2^52 as a double: it becomes the mantissa of 2^52 + u. AVX2 has no conversion for it. */
VMATH double double_from_u52(uint64_t u) { return double_of(u | bits_f64(0x1p52)) - 0x1p52; }

/* a b + c for b of at most 12 bits (double: 26): rounded as if the product were exact. Without fma, a is cut in two
 * halves whose products with b are exact. */
VMATH float fma_short_f32(float a, float b, float c) {
#if HAS_FMA
    return __builtin_fmaf(a, b, c);
#else
    const float head = float_of(bits_f32(a) & 0xfffff000u);
    return (head * b + c) + (a - head) * b;
#endif
}

VMATH double fma_short_f64(double a, double b, double c) {
#if HAS_FMA
    return __builtin_fma(a, b, c);
#else
    const double head = double_of(bits_f64(a) & 0xfffffffff8000000u);
    return (head * b + c) + (a - head) * b;
#endif
}

/* 1 + r + r^2 q. Without fma, r (1 + r q) would be rounded twice more: r is added as it is instead. */
VMATH float exp_sum_f32(float r, float q) {
#if HAS_FMA
    return FMA_F32(FMA_F32(q, r, 1.0f), r, 1.0f);
#else
    return 1.0f + (r + r * r * q);
#endif
}

VMATH double exp_sum_f64(double r, double q) {
#if HAS_FMA
    return FMA_F64(FMA_F64(q, r, 1.0), r, 1.0);
#else
    return 1.0 + (r + r * r * q);
#endif
}

/* 2^64 e^x.
 *
 * Domain: x <= 40, NaN. The factor 2^64 keeps the result normal where e^x is denormal; callers multiply their sum by
 * 2^-64, which is exact, so underflow is gradual.
 * Error: 0.91 ulp (0.98) of e^x, down to the smallest denormal.
 * exp_up(0) = 2^64 exactly; -inf and x below -130: +0; NaN: NaN; denormals: 2^64. Never above 2^64 for x <= 0. */
VMATH void exp_cut_f32(float x, float *r, float *scale) {
    /* There the exponent bits below become 0. The order of the operands lets NaN through. */
    x = EXP_LEAST_F32 > x ? EXP_LEAST_F32 : x;
    /* Adding 1.5 2^23 rounds to an integer n and leaves n + 61 + 127 in the low bits: the exponent of 2^(n + 61). */
    const float magic = 0x1.8p23f + 188.0f;
    const float t = FMA_F32(x, LOG2E_F32, magic);
    const float n = t - magic;
    const float a = FMA_F32(n, -LN2_HI_F32, x); /* exact */
    *r = FMA_F32(n, -LN2_LO_F32, a);
    *scale = float_of(bits_f32(t) << 23);
}

/* 8 e^r scale: the 8 keeps the smallest product normal, and the scale a number. */
VMATH float exp_join_f32(float r, float scale) {
    float q = 8.0f * EXP_F32[4];
    q = FMA_F32(q, r, 8.0f * EXP_F32[3]);
    q = FMA_F32(q, r, 8.0f * EXP_F32[2]);
    q = FMA_F32(q, r, 8.0f * EXP_F32[1]);
    q = FMA_F32(q, r, 8.0f * EXP_F32[0]);
#if HAS_FMA
    return FMA_F32(FMA_F32(q, r, 8.0f), r, 8.0f) * scale;
#else
    /* r (8 + r q) would be rounded twice more: 8 r is added as it is instead. */
    return (8.0f + (8.0f * r + r * r * q)) * scale;
#endif
}

VMATH float exp_up_f32(float x) {
    float r, scale;
    exp_cut_f32(x, &r, &scale);
    return exp_join_f32(r, scale);
}

/* 2^64 e^x.
 *
 * Domain: x <= 600, NaN. See exp_up_f32.
 * Error: 0.92 ulp (1.02) of e^x, down to the smallest denormal.
 * exp_up(0) = 2^64 exactly; -inf and x below -753.2: +0; NaN: NaN; denormals: 2^64. Never above 2^64 for x <= 0. */
VMATH void exp_cut_f64(double x, double *r, double *scale) {
    /* There the exponent bits below become 0. The order of the operands lets NaN through. */
    x = EXP_LEAST_F64 > x ? EXP_LEAST_F64 : x;
    /* Adding 1.5 2^52 rounds to an integer n and leaves n + 64 + 1023 in the low bits: the exponent of 2^(n + 64). */
    const double magic = 0x1.8p52 + 1087.0;
    const double t = FMA_F64(x, LOG2E_F64, magic);
    const double n = t - magic;
    const double a = FMA_F64(n, -LN2_HI_F64, x); /* exact */
    *r = FMA_F64(n, -LN2_LO_F64, a);
    *scale = double_of(bits_f64(t) << 52);
}

/* e^r scale. */
VMATH double exp_join_f64(double r, double scale) {
    double q = EXP_F64[9];
    q = FMA_F64(q, r, EXP_F64[8]);
    q = FMA_F64(q, r, EXP_F64[7]);
    q = FMA_F64(q, r, EXP_F64[6]);
    q = FMA_F64(q, r, EXP_F64[5]);
    q = FMA_F64(q, r, EXP_F64[4]);
    q = FMA_F64(q, r, EXP_F64[3]);
    q = FMA_F64(q, r, EXP_F64[2]);
    q = FMA_F64(q, r, EXP_F64[1]);
    q = FMA_F64(q, r, EXP_F64[0]);
    return exp_sum_f64(r, q) * scale;
}

VMATH double exp_up_f64(double x) {
    double r, scale;
    exp_cut_f64(x, &r, &scale);
    return exp_join_f64(r, scale);
}

/* e^x for every double.
 *
 * Error: 0.92 ulp (1.02), above e^600 2.4 ulp (2.6).
 * -inf: +0; inf and above 709.79: inf; NaN: NaN. */
VMATH double exp_any_f64(double x) {
    /* Above 600 as the square of a root. */
    double part = x > 600.0 ? 0.5 * x : x;
    part = part > 600.0 ? 600.0 : part;
    const double y = exp_up_f64(part) * 0x1p-64;
    return x > 600.0 ? y * y : y;
}

/* (log(1 + f) - f + f^2/2) / f^3, for 1 + f in [sqrt(1/2), sqrt(2)]. */
VMATH float log_tail_f32(float f) {
    float p = LOG_F32[7];
    p = FMA_F32(p, f, LOG_F32[6]);
    p = FMA_F32(p, f, LOG_F32[5]);
    p = FMA_F32(p, f, LOG_F32[4]);
    p = FMA_F32(p, f, LOG_F32[3]);
    p = FMA_F32(p, f, LOG_F32[2]);
    p = FMA_F32(p, f, LOG_F32[1]);
    p = FMA_F32(p, f, LOG_F32[0]);
    return p;
}

/* kf ln2 + log(1 + f), for the same. */
VMATH float log_parts_f32(float f, float kf) {
    const float tail = FMA_F32(f * f, FMA_F32(log_tail_f32(f), f, -0.5f), kf * LN2_LO_F32);
    return FMA_F32(kf, LN2_HI_F32, f + tail); /* kf LN2_HI is exact */
}

/* log(x).
 *
 * Domain: 0 <= x < 2^103, denormals included, NaN.
 * Error: 0.88 ulp (0.93), relative also near 1.
 * log(1) = +0; 0: a finite number, so that 0 log 0 = 0; NaN: NaN; infinite, negative or larger x: unspecified. */
VMATH void log_cut_f32(float x, float *f, float *kf) {
    /* The smallest denormal becomes the smallest normal number. */
    const float y = x * 0x1p23f;
    /* y = 2^k m with m in [sqrt(1/2), sqrt(2)). */
    const int32_t k = (int32_t)(bits_f32(y) - 0x3f3504f3u) >> 23;
    /* m - 1, exact. A product, not a change of exponent bits: NaN stays NaN. */
    *f = FMA_F32(y, float_of((uint32_t)(127 - k) << 23), -1.0f);
    *kf = (float)(k - 23);
}

VMATH float log_f32(float x) {
    float f, kf;
    log_cut_f32(x, &f, &kf);
    return log_parts_f32(f, kf);
}

/* s (f^2/2 + R), s = f / (2 + f): log(1 + f) = f - (f^2/2 - this), for 1 + f in [sqrt(1/2), sqrt(2)]. */
VMATH double log_mantissa_f64(double s, double half_square) {
    const double z = s * s;
    double c = LOG_F64[6];
    c = FMA_F64(c, z, LOG_F64[5]);
    c = FMA_F64(c, z, LOG_F64[4]);
    c = FMA_F64(c, z, LOG_F64[3]);
    c = FMA_F64(c, z, LOG_F64[2]);
    c = FMA_F64(c, z, LOG_F64[1]);
    c = FMA_F64(c, z, LOG_F64[0]);
    return s * FMA_F64(z, c, half_square);
}

/* k ln2 + log(1 + f), for 1 + f in [sqrt(1/2), sqrt(2)] and s = f / (2 + f). */
VMATH double log_join_f64(double f, double s, double k) {
    const double half_square = 0.5 * f * f;
    const double tail = FMA_F64(k, LN2_LO_F64, log_mantissa_f64(s, half_square));
    return FMA_F64(k, LN2_HI_F64, f - (half_square - tail)); /* k LN2_HI is exact */
}

VMATH double log_parts_f64(double f, double k) { return log_join_f64(f, f / (2.0 + f), k); }

/* y = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)], k less shift - 1023, for 2^-1022 <= y < 2^1022 and 0. */
VMATH void log_scaled_cut_f64(double y, double shift, double *f, double *k) {
    /* 0x3fe6a09e... are the bits of sqrt(1/2): y = 2^k m as in log_f32, with kb = k + 1023. */
    const uint64_t kb = (bits_f64(y) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    *f = FMA_F64(y, double_of((2046u - kb) << 52), -1.0);
    *k = double_of(kb | bits_f64(0x1p52)) - (0x1p52 + shift); /* as in double_from_u52 */
}

/* log(y) - (shift - 1023) ln2: shift is the exponent's bias and y's own scale. */
VMATH double log_scaled_f64(double y, double shift) {
    double f, k;
    log_scaled_cut_f64(y, shift, &f, &k);
    return log_parts_f64(f, k);
}

/* log(x).
 *
 * Domain: 0 <= x < 2^968, denormals included, NaN.
 * Error: 0.87 ulp (0.87), relative also near 1.
 * log(1) = +0; 0: a finite number; NaN: NaN; infinite, negative or larger x: unspecified. */
VMATH void log_cut_f64(double x, double *f, double *s, double *k) {
    log_scaled_cut_f64(x * 0x1p54, 1023.0 + 54.0, f, k);
    *s = *f / (2.0 + *f);
}

VMATH double log_f64(double x) {
    double f, s, k;
    log_cut_f64(x, &f, &s, &k);
    return log_join_f64(f, s, k);
}

/* -p log(p): what a probability adds to an entropy. log(p) is k ln2 + log(m), m in [sqrt(1/2), sqrt(2)), as in log_f32 and
 * log_f64, but the constants are in one piece and, in double, log(m) is 2 atanh(s / 2) = s + s z C(z), s = 2 (m - 1) / (m + 1),
 * z = s^2: that is where a rounding more than log_f64 has saves a quarter of the steps.
 *
 * Domain: 0 <= p < 2^100 (double: 2^960). Outside, NaN too: unspecified. Denormals give a finite number of about their size.
 * Error: 1.06 eps (1.41), double 1.81 eps (1.81), where the result is normal.
 * 0: +0; 1: -0. */
VMATH float shannon_term_f32(float p) {
    const uint32_t above = bits_f32(p) - 0x3f3504f3u;
    const float f = float_of((above & 0x007fffffu) + 0x3f3504f3u) - 1.0f, k = (float)((int32_t)above >> 23);
    return -p * FMA_F32(k, LN2_F32, FMA_F32(f * f, FMA_F32(log_tail_f32(f), f, -0.5f), f));
}

VMATH void shannon_cut_f64(double p, double *s, double *k) {
    const uint64_t above = bits_f64(p) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    const double m = double_of((above & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    *s = (m - 1.0) / FMA_F64(m, 0.5, 0.5);
    *k = double_of((above >> 52) | bits_f64(0x1p52)) - (0x1p52 + 1023.0); /* as in double_from_u52 */
}

VMATH double shannon_join_f64(double p, double s, double k) {
    const double z = s * s;
    double c = 0x1p-15 * LOG_F64[6];
    c = FMA_F64(c, z, 0x1p-13 * LOG_F64[5]);
    c = FMA_F64(c, z, 0x1p-11 * LOG_F64[4]);
    c = FMA_F64(c, z, 0x1p-9 * LOG_F64[3]);
    c = FMA_F64(c, z, 0x1p-7 * LOG_F64[2]);
    c = FMA_F64(c, z, 0x1p-5 * LOG_F64[1]);
    c = FMA_F64(c, z, 0x1p-3 * LOG_F64[0]);
    return -p * FMA_F64(k, LN2_HI_F64 + LN2_LO_F64, FMA_F64(s * z, c, s));
}

VMATH double shannon_term_f64(double p) {
    double s, k;
    shannon_cut_f64(p, &s, &k);
    return shannon_join_f64(p, s, k);
}

/* log(x) for every double.
 *
 * Error: 0.87 ulp (0.87).
 * +0 and -0: -inf; inf: inf; negative: NaN; NaN: NaN; denormals as any other. */
VMATH double log_any_f64(double x) {
    /* Small numbers are scaled up because of the denormals, all others down because of 2^1023. */
    const double scale = x < 1.0 ? 0x1p54 : 0x1p-54;
    const double shift = x < 1.0 ? 1023.0 + 54.0 : 1023.0 - 54.0;
    double y = log_scaled_f64(x * scale, shift);
    y = x == __builtin_inf() ? x : y;
    y = x == 0.0 ? -__builtin_inf() : y;
    return x < 0.0 ? __builtin_nan("") : y;
}

/* log(1 + y) = hi + lo, hi a multiple of LN2_HI (43 bits, exact), lo the rest.
 *
 * Domain: y >= -1 (below: NaN).
 * Error of hi + lo: 0.85 ulp (0.85); of lo, where hi is not 0: 0.25 2^-52.
 * +-0: lo = +-0; denormals: lo = y; -1: lo = -inf; inf: lo = inf; NaN: lo = NaN (hi is finite in all these). */
VMATH void log1p_split_f64(double y, double *hi, double *lo) {
    const double u = 1.0 + y;
    /* u + u_tail = 1 + y exactly: Knuth's two-sum, for either may be the larger. */
    const double y_part = u - 1.0;
    const double u_tail = (1.0 - (u - y_part)) + (y - y_part);
    const uint64_t kb = (bits_f64(u) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    const double k = double_from_u52(kb) - 1023.0;
    /* u = 2^k m by exponent bits, for 2^-k would be denormal for the largest u. NaN is put back at the end. */
    const double f_of_u = double_of(bits_f64(u) - ((kb - 1023u) << 52)) - 1.0;
    /* k = 0: y itself, so that no digit of a small y is lost in 1 + y. */
    const double f = k == 0.0 ? y : f_of_u;
    /* From 2^60 on the tail is below one part in 2^60, and its scale may not be a number. */
    const double scaled_tail = u_tail * double_of((2046u - kb) << 52);
    const double tail_of_u = y < 0x1p60 ? scaled_tail : 0.0;
    const double f_tail = k == 0.0 ? 0.0 : tail_of_u;
    const double half_square = 0.5 * f * f;
    /* log(1 + f + f_tail) = log(1 + f) + f_tail / (1 + f); 1 / (1 + f) is 1 - f + f^2 to a tenth, enough for a tail. */
    const double correction = f_tail * (1.0 - (f - 2.0 * half_square));
    const double tail = FMA_F64(k, LN2_LO_F64, log_mantissa_f64(f / (2.0 + f), half_square)) + correction;
    double result = f - (half_square - tail);
    result = y == __builtin_inf() ? y : result;
    result = y == -1.0 ? -__builtin_inf() : result;
    *lo = y >= -1.0 ? result : __builtin_nan("");
    *hi = k * LN2_HI_F64;
}

/* log(1 + y).
 *
 * Domain: y >= -1 (below: NaN).
 * Error: 0.85 ulp (0.85), relative also near 0.
 * +-0: itself; denormals: y; -1: -inf; inf: inf; NaN: NaN. */
VMATH double log1p_f64(double y) {
    double hi, lo;
    log1p_split_f64(y, &hi, &lo);
    return hi == 0.0 ? lo : hi + lo; /* +0 + -0 would be +0 */
}

/* 1 + y = 2^k (1 + f), with 1 + f in [sqrt(1/2), sqrt(2)], for a sum of exponentials less one of them: y = -1
 * (the sum is 0), 0 <= y < 2^1000 or NaN. Of y no digit is lost: f is rounded once, and is y where k is 0. */
VMATH double split_sum_f64(double y, double *k) {
    const double u = 1.0 + y;
    const uint64_t kb = (bits_f64(u) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    const double scale = double_of((2046u - kb) << 52); /* 2^-k */
    *k = double_of(kb | bits_f64(0x1p52)) - (0x1p52 + 1023.0);
    return FMA_F64(y, scale, scale - 1.0);
}

/* log(1 + y) = hi + lo as log1p_split_f64 has it, in fewer steps; to be cut by split_sum_f64, or whole.
 *
 * Domain: that of split_sum_f64.
 * Error of hi + lo: 1.4 ulp (1.4); of lo, where hi is not 0: 0.35 2^-52.
 * 0: lo = 0; denormals: lo = y; -1: lo = -inf; NaN: lo = NaN. */
VMATH void log1p_sum_join_f64(double y, double f, double s, double k, double *hi, double *lo) {
    const double half_square = 0.5 * f * f;
    const double tail = FMA_F64(k, LN2_LO_F64, log_mantissa_f64(s, half_square));
    const double result = f - (half_square - tail);
    *lo = y == -1.0 ? -__builtin_inf() : result;
    *hi = k * LN2_HI_F64;
}

VMATH void log1p_sum_split_f64(double y, double *hi, double *lo) {
    double k;
    const double f = split_sum_f64(y, &k);
    log1p_sum_join_f64(y, f, f / (2.0 + f), k, hi, lo);
}

/* log(1 + y), for a result that is rounded to float: by the float's polynomial, in double.
 *
 * Domain: that of split_sum_f64.
 * Error: 2^-27 of the result. 0: 0; denormals: y; -1: -inf; NaN: NaN. */
VMATH double log1p_sum_join_f32(double y, double f, double k) {
    double p = LOG_F32[7];
    p = FMA_F64(p, f, (double)LOG_F32[6]);
    p = FMA_F64(p, f, (double)LOG_F32[5]);
    p = FMA_F64(p, f, (double)LOG_F32[4]);
    p = FMA_F64(p, f, (double)LOG_F32[3]);
    p = FMA_F64(p, f, (double)LOG_F32[2]);
    p = FMA_F64(p, f, (double)LOG_F32[1]);
    p = FMA_F64(p, f, (double)LOG_F32[0]);
    const double result = FMA_F64(k, LN2_HI_F64 + LN2_LO_F64, FMA_F64(f * f, FMA_F64(p, f, -0.5), f));
    return y == -1.0 ? -__builtin_inf() : result;
}

VMATH double log1p_sum_f32(double y) {
    double k;
    const double f = split_sum_f64(y, &k);
    return log1p_sum_join_f32(y, f, k);
}

/* k such that 2^k q is near p. Only to choose it: p below 2^-125, 0 too, adds less than 2^-29 q to a KL term. The
 * difference of the bits is about log2(p/q) 2^23 (linear between powers of two). Rounding it up from 261/512 loses fewest
 * digits of the KL term where k changes; p / (2^k q) is then in [0.67, 1.51]. */
VMATH int32_t octaves_f32(float p, float q) {
    const int32_t p_bits = (int32_t)bits_f32(p), p_normal = p_bits > 0x01000000 ? p_bits : 0x01000000;
    return (int32_t)((uint32_t)p_normal - bits_f32(q) + (251u << 14)) >> 23;
}

/* 2 (atanh(w) - w) / w^3, z = w^2, for what octaves_f32 leaves. */
VMATH float atanh_tail_f32(float z) { return FMA_F32(FMA_F32(KL_F32[2], z, KL_F32[1]), z, KL_F32[0]); }

/* The KL term of p and q from q' = 2^k q and d = p - q': w = d / (p + q'), and near + p far is p k ln2 + q - q'. */
VMATH void kl_cut_near_f32(float p, float q, float q_near, float kf, float d, float *w, float *near, float *far) {
    *w = d / (p + q_near);
#if HAS_FMA
    /* kf LN2 is rounded where kf is no power of two; there the result is so large that this is less than an eps of it. */
    *near = FMA_F32(p, kf * LN2_F32, q - q_near);
    *far = 0.0f;
#else
    /* kf LN2_4BIT has 12 bits. */
    *near = fma_short_f32(p, kf * LN2_4BIT_F32, q - q_near);
    *far = kf * LN2_REST_F32;
#endif
}

VMATH float kl_join_f32(float p, float w, float d, float near, float far) {
    const float z = w * w;
    /* d + p w^2 R; its product with w, the largest term, is added last. */
    const float slope = FMA_F32(p * z, atanh_tail_f32(z), d);
#if HAS_FMA
    (void)far;
    return FMA_F32(w, slope, near);
#else
    return near + (w * slope + p * far);
#endif
}

/* p log(p/q) - p + q, without cancellation.
 *
 * With q' = 2^k q near p, d = p - q', w = d / (p + q') and C(z) = 2 (atanh(sqrt z) - sqrt z) / sqrt z^3 it is
 *     w d + p w^3 C(w^2)  +  p k ln2 + q - q'.
 * d is exact, the first half is never negative, and the second is 0 for k = 0: small divergences keep all their
 * digits. Where k changes the second half may be negative, but is below six tenths of the first.
 *
 * Domain: 0 <= p < 2^100, denormals included; 2^-96 <= q <= 2^100; NaN in either. Outside: unspecified.
 * Error: 3.0 eps (3.2), where the result exceeds 2^-100 (below, its parts are denormal).
 * p = 0: q exactly; p = q: +0 exactly; NaN in either: NaN. Never negative. */
VMATH void kl_cut_f32(float p, float q, float *w, float *d, float *near, float *far) {
    const int32_t k = octaves_f32(p, q);
    const float q_near = float_of(bits_f32(q) + ((uint32_t)k << 23));
    *d = p - q_near; /* exact */
    kl_cut_near_f32(p, q, q_near, (float)k, *d, w, near, far);
}

VMATH float kl_term_f32(float p, float q) {
    float w, d, near, far;
    kl_cut_f32(p, q, &w, &d, &near, &far);
    return kl_join_f32(p, w, d, near, far);
}

/* k as octaves_f32 has it, in the place of an exponent: to add it to a number's bits multiplies by 2^k. */
VMATH uint64_t octaves_f64(double p, double q) {
    const double p_normal = KL_LEAST_F64 > p ? KL_LEAST_F64 : p;
    return (bits_f64(p_normal) - bits_f64(q) + (251ull << 43)) & (0xfffull << 52);
}

/* Such a k plus 6144 = 3 2^11: k becomes the upper mantissa of 2^12, its sign taken for 2^11. */
VMATH double shifted_octaves(uint64_t octaves) { return double_of((octaves >> 12) ^ bits_f64(6144.0)); }

VMATH double atanh_tail_f64(double z) {
    double r = KL_F64[7];
    r = FMA_F64(r, z, KL_F64[6]);
    r = FMA_F64(r, z, KL_F64[5]);
    r = FMA_F64(r, z, KL_F64[4]);
    r = FMA_F64(r, z, KL_F64[3]);
    r = FMA_F64(r, z, KL_F64[2]);
    r = FMA_F64(r, z, KL_F64[1]);
    return FMA_F64(r, z, KL_F64[0]);
}

/* Here near holds all of p k ln2 + q - q': its last part is so small that where it is added matters little, and its product
 * goes to the loop that waits for the division instead of to the one that waits for products. */
VMATH void kl_cut_near_f64(double p, double q, double q_near, uint64_t octaves, double d, double *w, double *near) {
    const double k = shifted_octaves(octaves);
    *w = d / (p + q_near);
#if HAS_FMA
    /* k ln2 in two parts: in one piece it would cost 2 eps where k is 1 and the parts of the result cancel. Of the low part 24
     * bits are enough, and all products here are exact: k = 0 gives 0. */
    const double ln2_low = (float)LN2_LO_F64;
    const double high = FMA_F64(k, LN2_HI_F64, -6144.0 * LN2_HI_F64), low = FMA_F64(k, ln2_low, -6144.0 * ln2_low);
    *near = FMA_F64(p, low, FMA_F64(p, high, q - q_near));
#else
    /* k LN2_14BIT has 25 bits. */
    *near = fma_short_f64(p, (k - 6144.0) * LN2_14BIT_F64, q - q_near) + p * ((k - 6144.0) * LN2_REST_F64);
#endif
}

VMATH double kl_join_f64(double p, double w, double d, double near) {
    const double z = w * w;
    return FMA_F64(w, FMA_F64(p * z, atanh_tail_f64(z), d), near);
}

/* p log(p/q) - p + q, without cancellation. See kl_term_f32.
 *
 * Domain: 0 <= p <= 2^1021, denormals included; 2^-960 <= q; NaN in either. Outside: unspecified.
 * Error: 2.6 eps (2.7), where the result exceeds 2^-968.
 * p = 0: q exactly; p = q: +0 exactly; NaN in either: NaN. Never negative. */
VMATH void kl_cut_f64(double p, double q, double *w, double *d, double *near) {
    const uint64_t octaves = octaves_f64(p, q);
    const double q_near = double_of(bits_f64(q) + octaves);
    *d = p - q_near; /* exact */
    kl_cut_near_f64(p, q, q_near, octaves, *d, w, near);
}

VMATH double kl_term_f64(double p, double q) {
    double w, d, near;
    kl_cut_f64(p, q, &w, &d, &near);
    return kl_join_f64(p, w, d, near);
}

/* 2^n for an integer n in [-1022, 1023]. */
VMATH double pow2_f64(double n) { return double_of(bits_f64(n + (0x1.8p52 + 1023.0)) << 52); }

/* p log(p/Q) - p + Q with Q = q + q_lo, for every pair of doubles; abs(q_lo) at most half an ulp of q.
 *
 * Error: 2.7 eps (2.7) of the result; of a denormal one 1.2 times the smallest denormal.
 * p = 0: q; q = 0 < p: inf; both 0: 0 (-0 counts as 0); negative or infinite p or q: NaN; NaN: NaN. Never negative. */
VMATH double kl_term_any_f64(double p, double q, double q_lo) {
    /* p = 2^kp mp, q = 2^kq mq with mantissas in [1, 2); adding +0 turns -0 into +0. */
    const double infinity = __builtin_inf();
    const double p_scale = p < 0x1p-960 ? 0x1p54 : 1.0, p_shift = p < 0x1p-960 ? 1023.0 + 54.0 : 1023.0;
    const double q_scale = q < 0x1p-960 ? 0x1p54 : 1.0, q_shift = q < 0x1p-960 ? 1023.0 + 54.0 : 1023.0;
    const uint64_t p_bits = bits_f64((p + 0.0) * p_scale), q_bits = bits_f64((q + 0.0) * q_scale);
    const double kp = double_from_u52(p_bits >> 52) - p_shift;
    const double kq_floor = double_from_u52(q_bits >> 52) - q_shift;
    const double mp = double_of((p_bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
    const double mq = double_of((q_bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
    /* Bring mq within [ln2, 2 ln2] of mp: there p k ln2 + q - q' >= 0, too, so that nothing cancels. */
    const double step = mq < mp * 0x1.62e42fefa39efp-1 ? 1.0 : (mq > mp * 0x1.62e42fefa39efp+0 ? -1.0 : 0.0);
    const double factor = 1.0 + step * (step > 0.0 ? 1.0 : 0.5); /* 2^step */
    const double m = mq * factor;
    const double kq = kq_floor - step;
    const double k = kp - kq;
    /* q_lo in units of 2^kq. Two factors, for 2^-kq can be 2^1074. */
    const double minus_half = (0x1.8p52 - 0.5 * kq) - 0x1.8p52;
    const double tail = (q_lo * pow2_f64(minus_half)) * pow2_f64(-kq - minus_half);
    /* The larger of p and q is the unit, the other is scaled by 2^-abs(k), or dropped where that is below 2^-1000. */
    const double distance = k > 0.0 ? k : -k;
    const double small = distance < 1000.0 ? pow2_f64(distance < 1000.0 ? -distance : 0.0) : 0.0;
    const double p_unit = k > 0.0 ? 1.0 : small, q_unit = k > 0.0 ? small : 1.0;
    const double unit = k > 0.0 ? kp : kq;
    const double d = (mp - m) - tail;
    const double w = d / (mp + m);
    const double z = w * w;
    const double near_part = FMA_F64(w, d, mp * (w * z) * atanh_tail_f64(z));
    /* q - q' with its rounding error (two-sum), and the tail's share in it. */
    const double ps = mp * p_unit, qs = m * q_unit, minus_q_near = -(m * p_unit);
    const double gap = qs + minus_q_near;
    const double part = gap - qs;
    const double gap_lo = ((qs - (gap - part)) + (minus_q_near - part)) + tail * (q_unit - p_unit);
    const double far_part = fma_short_f64(ps, k * LN2_14BIT_F64, gap);
    const double sum = far_part + (FMA_F64(near_part, p_unit, ps * (k * LN2_REST_F64)) + gap_lo);
    /* 2^unit in two factors: the first keeps the sum normal, so that a denormal result is rounded once. */
    const double half_unit = (0x1.8p52 + 0.5 * unit) - 0x1.8p52;
    double result = (sum * pow2_f64(half_unit)) * pow2_f64(unit - half_unit);
    result = q == 0.0 ? infinity : result;
    result = p == 0.0 ? q + 0.0 : result;
    /* Comparisons with NaN are false. */
    result = p >= 0.0 ? result : __builtin_nan("");
    result = q >= 0.0 ? result : __builtin_nan("");
    result = p < infinity ? result : __builtin_nan("");
    return q < infinity ? result : __builtin_nan("");
}

/* x log(y) for every pair of doubles.
 *
 * Error: 1.8 ulp (1.8).
 * x = 0: 0, also for y = 0 (-0 counts as 0); y = 0 < x: -inf; negative or infinite x or y: NaN; NaN: NaN. */
VMATH double xlogy_any_f64(double x, double y) {
    const double infinity = __builtin_inf();
    double result = x * log_any_f64(y);
    result = x == 0.0 ? 0.0 : result;
    result = x >= 0.0 ? result : __builtin_nan("");
    result = y >= 0.0 ? result : __builtin_nan("");
    result = x < infinity ? result : __builtin_nan("");
    return y < infinity ? result : __builtin_nan("");
}

/* ---- terms of other divergences --------------------------------------------------------------------------------------
 * d is p - q, which the caller may know better than p and q tell: all that nearly equal p and q differ by is taken from it.
 * Symmetric functions are so to the bit, with d changing its sign. */

/* The KL term of p and q where p - q is known as d. See kl_term_f32. */
VMATH void kl_cut_by_f32(float p, float q, float p_less_q, float *w, float *d, float *near, float *far) {
    const int32_t k = octaves_f32(p, q);
    const float q_near = float_of(bits_f32(q) + ((uint32_t)k << 23));
    *d = k == 0 ? p_less_q : p - q_near;
    kl_cut_near_f32(p, q, q_near, (float)k, *d, w, near, far);
}

VMATH void kl_cut_by_f64(double p, double q, double p_less_q, double *w, double *d, double *near) {
    const uint64_t octaves = octaves_f64(p, q);
    const double q_near = double_of(bits_f64(q) + octaves);
    *d = q_near == q ? p_less_q : p - q_near; /* octaves == 0, which SSE2 cannot compare: 64 bits */
    kl_cut_near_f64(p, q, q_near, octaves, *d, w, near);
}

VMATH float kl_term_by_f32(float p, float q, float p_less_q) {
    float w, d, near, far;
    kl_cut_by_f32(p, q, p_less_q, &w, &d, &near, &far);
    return kl_join_f32(p, w, d, near, far);
}

VMATH double kl_term_by_f64(double p, double q, double p_less_q) {
    double w, d, near;
    kl_cut_by_f64(p, q, p_less_q, &w, &d, &near);
    return kl_join_f64(p, w, d, near);
}

/* weight p log(p/m) + (1 - weight) q log(q/m), m = weight p + (1 - weight) q: the Jensen-Shannon term.
 *
 * As two KL terms, which are not negative; their distances from m are parts of d, for m is rounded.
 * Domain: 0 <= p, q < 2^100, denormals included, NaN; 0 <= weight <= 1/2. double: 2^960.
 * Error (float, weight 1/2, 10^7 pairs): 3.7 eps.
 * p = q = 0: +0; d = 0: +0. Never negative, symmetric for weight 1/2. */
VMATH float js_term_f32(float p, float q, float d, float weight) {
    const float rest = 1.0f - weight, m = weight * p + rest * q;
    return weight * kl_term_by_f32(p, m, rest * d) + rest * kl_term_by_f32(q, m, -(weight * d));
}

VMATH double js_term_f64(double p, double q, double d, double weight) {
    const double rest = 1.0 - weight, m = weight * p + rest * q;
    return weight * kl_term_by_f64(p, m, rest * d) + rest * kl_term_by_f64(q, m, -(weight * d));
}

/* (p - q) log(p/q): Jeffreys' term.
 *
 * Domain: p and q both 0, or 2^-96 <= p, q < 2^100 (double: 2^-960, 2^960), NaN.
 * Error (float, 10^7 pairs): 1.9 eps.
 * p = q = 0: +0; d = 0: +0. Never negative, symmetric. */
VMATH float jeffreys_term_f32(float p, float q, float d) {
    const float large = p > q ? p : q, least = p > q ? q : p, gap = d < 0.0f ? -d : d;
    const float small = least > 0x1p-126f ? least : 0x1p-126f;
    const int32_t k = octaves_f32(large, small);
    const float near = float_of(bits_f32(small) + ((uint32_t)k << 23)), kf = (float)k;
    const float w = (k == 0 ? gap : large - near) / (large + near);
    const float z = w * w;
    const float tail = FMA_F32(w * z, atanh_tail_f32(z), kf * LN2_LO_F32);
    return gap * FMA_F32(kf, LN2_HI_F32, w + w + tail);
}

VMATH double jeffreys_term_f64(double p, double q, double d) {
    const double large = p > q ? p : q, least = p > q ? q : p, gap = d < 0.0 ? -d : d;
    const double small = least > 0x1p-1022 ? least : 0x1p-1022;
    const uint64_t octaves = octaves_f64(large, small);
    const double near = double_of(bits_f64(small) + octaves), k = shifted_octaves(octaves) - 6144.0;
    const double w = (k == 0.0 ? gap : large - near) / (large + near);
    const double z = w * w;
    const double tail = FMA_F64(w * z, atanh_tail_f64(z), k * LN2_LO_F64);
    return gap * FMA_F64(k, LN2_HI_F64, w + w + tail);
}

/* a b - ab, exactly, where ab is a b rounded and neither overflows nor falls below 2^-960. */
VMATH double product_error_f64(double a, double b, double ab) {
#if HAS_FMA
    return __builtin_fma(a, b, -ab);
#else
    const double a_head = double_of(bits_f64(a) & 0xfffffffff8000000u), a_tail = a - a_head;
    const double b_head = double_of(bits_f64(b) & 0xfffffffff8000000u), b_tail = b - b_head;
    return (((a_head * b_head - ab) + a_head * b_tail) + a_tail * b_head) + a_tail * b_tail; /* exact in this order */
#endif
}

/* ---- two distributions from their logits ------------------------------------------------------------------------
 * Where p >= q, t = log(p/q) >= 0 and e = exp(-t), the terms of the divergences are p times functions of t alone:
 *     p log(p/q) - p + q = p (e - 1 + t),   q log(q/p) - q + p = p (1 - e - t e),
 *     p log(2p/(p+q)) / 2 + q log(2q/(p+q)) / 2 = p ((1 + e) log(2 / (1 + e)) - t e) / 2,
 * and near t = 0, where these cancel, they are series: Taylor's for the first two, for the third that of
 * ((1 + u) log(1 + u) + (1 - u) log(1 - u)) / 2 in u = (1 - e) / (1 + e). */

/* e - 1 + t, for t >= 0 and e = exp(-t).
 *
 * Error: 2.9 eps, just above 1/2. 0: +0; the largest number: itself; never negative. */
VMATH float kl_fall_f32(float t, float e) {
    float q = -1.0f / 362880.0f;
    q = FMA_F32(q, t, 1.0f / 40320.0f);
    q = FMA_F32(q, t, -1.0f / 5040.0f);
    q = FMA_F32(q, t, 1.0f / 720.0f);
    q = FMA_F32(q, t, -1.0f / 120.0f);
    q = FMA_F32(q, t, 1.0f / 24.0f);
    q = FMA_F32(q, t, -1.0f / 6.0f);
    q = FMA_F32(q, t, 1.0f / 2.0f);
    return t < 0.5f ? q * t * t : (e - 1.0f) + t;
}

VMATH double kl_fall_f64(double t, double e) {
    double q = 1.0 / 20922789888000.0;
    q = FMA_F64(q, t, -1.0 / 1307674368000.0);
    q = FMA_F64(q, t, 1.0 / 87178291200.0);
    q = FMA_F64(q, t, -1.0 / 6227020800.0);
    q = FMA_F64(q, t, 1.0 / 479001600.0);
    q = FMA_F64(q, t, -1.0 / 39916800.0);
    q = FMA_F64(q, t, 1.0 / 3628800.0);
    q = FMA_F64(q, t, -1.0 / 362880.0);
    q = FMA_F64(q, t, 1.0 / 40320.0);
    q = FMA_F64(q, t, -1.0 / 5040.0);
    q = FMA_F64(q, t, 1.0 / 720.0);
    q = FMA_F64(q, t, -1.0 / 120.0);
    q = FMA_F64(q, t, 1.0 / 24.0);
    q = FMA_F64(q, t, -1.0 / 6.0);
    q = FMA_F64(q, t, 1.0 / 2.0);
    return t < 0.5 ? q * t * t : (e - 1.0) + t;
}

/* x - n ln2, for an integer n below 2^8, to within a rounding of x. */
VMATH float less_octaves_f32(float x, float n) {
#if HAS_FMA
    return FMA_F32(n, -LN2_F32, x);
#else
    return (n * -LN2_HI_F32 + x) + n * -LN2_LO_F32; /* n LN2_HI is exact */
#endif
}

/* e^x, for weights that are divided by their sum.
 *
 * Domain: x <= 88, NaN.
 * Error: 1.0 ulp (1.5) near 0, of smaller ones 0.03 (0.7) for each unit of -x more.
 * exp_weight(0) = 1 exactly; below -87: +0; NaN: NaN. */
VMATH float exp_weight_f32(float x) {
    const float magic = 0x1.8p23f + 127.0f;
    const float t = FMA_F32(x, LOG2E_F32, magic);
    const float n = t - magic;
    const float r = less_octaves_f32(x, n);
    float q = EXP_F32[4];
    q = FMA_F32(q, r, EXP_F32[3]);
    q = FMA_F32(q, r, EXP_F32[2]);
    q = FMA_F32(q, r, EXP_F32[1]);
    q = FMA_F32(q, r, EXP_F32[0]);
    const float y = exp_sum_f32(r, q) * float_of(bits_f32(t) << 23);
    return x < -87.0f ? 0.0f : y;
}

/* exp(-z) - 1 + z: what a unit of p adds to the KL divergence, z = log(p/q).
 *
 * Domain: z >= -40, NaN (double: z >= -600); below, unspecified.
 * Error: 11.3 eps (12.6), just outside log(2)/2; 2.4 eps (2.4) inside. 0: +0; inf: inf; NaN: NaN. */
VMATH float kl_excess_f32(float z) {
    /* As in exp_weight_f32. Where n is 0, r^2 q is the result: what would cancel is not added. */
    const float x = z < 80.0f ? z : 80.0f;
    const float magic = 0x1.8p23f + 127.0f;
    const float t = FMA_F32(x, -LOG2E_F32, magic);
    const float n = t - magic;
    const float r = less_octaves_f32(-x, n);
    float q = EXCESS_F32[4];
    q = FMA_F32(q, r, EXCESS_F32[3]);
    q = FMA_F32(q, r, EXCESS_F32[2]);
    q = FMA_F32(q, r, EXCESS_F32[1]);
    q = FMA_F32(q, r, EXCESS_F32[0]);
    const float e = exp_sum_f32(r, q) * float_of(bits_f32(t) << 23);
    const float near = r * r * q, far = (e - 1.0f) + z;
    return n == 0.0f ? near : far;
}

VMATH double kl_excess_f64(double z) {
    const double x = z < 600.0 ? z : 600.0;
    const double magic = 0x1.8p52 + 1023.0;
    const double t = FMA_F64(x, -LOG2E_F64, magic);
    const double n = t - magic;
    const double a = FMA_F64(n, -LN2_HI_F64, -x); /* exact */
    const double r = FMA_F64(n, -LN2_LO_F64, a);
    double q = EXCESS_F64[9];
    q = FMA_F64(q, r, EXCESS_F64[8]);
    q = FMA_F64(q, r, EXCESS_F64[7]);
    q = FMA_F64(q, r, EXCESS_F64[6]);
    q = FMA_F64(q, r, EXCESS_F64[5]);
    q = FMA_F64(q, r, EXCESS_F64[4]);
    q = FMA_F64(q, r, EXCESS_F64[3]);
    q = FMA_F64(q, r, EXCESS_F64[2]);
    q = FMA_F64(q, r, EXCESS_F64[1]);
    q = FMA_F64(q, r, EXCESS_F64[0]);
    const double e = exp_sum_f64(r, q) * double_of(bits_f64(t) << 52);
    const double near = r * r * q, far = (e - 1.0) + z;
    return n == 0.0 ? near : far;
}

/* y - log(1 + y), for 1 + y in [sqrt(1/2), sqrt(2)], NaN.
 *
 * Error: 2.5 eps. 0: +0; never negative. */
VMATH double log1p_gap_f64(double y) {
    const double half_square = 0.5 * y * y;
    return half_square - log_mantissa_f64(y / (2.0 + y), half_square);
}

/* 1 - e - t e, for t >= 0, e = exp(-t), fall = e - 1 + t, rest = 1 - e.
 *
 * Error: 6.3 eps, just above 1/2. 0: +0; the largest number: 1. */
VMATH float kl_rise_f32(float t, float e, float fall, float rest) { return t < 0.5f ? t * rest - fall : rest - t * e; }
VMATH double kl_rise_f64(double t, double e, double fall, double rest) { return t < 0.5 ? t * rest - fall : rest - t * e; }

/* ((1 + e) log(2 / (1 + e)) - t e) / 2, for t >= 0, e = exp(-t), rest = 1 - e.
 *
 * Error: 5.5 eps. 0: +0; the largest number: log(2) / 2; never negative. */
VMATH float js_shape_f32(float t, float e, float rest) {
    const float sum = 2.0f - rest; /* 1 + e */
    const float u = rest / sum, z = u * u;
    float q = 1.0f / 240.0f;
    q = FMA_F32(q, z, 1.0f / 182.0f);
    q = FMA_F32(q, z, 1.0f / 132.0f);
    q = FMA_F32(q, z, 1.0f / 90.0f);
    q = FMA_F32(q, z, 1.0f / 56.0f);
    q = FMA_F32(q, z, 1.0f / 30.0f);
    q = FMA_F32(q, z, 1.0f / 12.0f);
    q = FMA_F32(q, z, 1.0f / 2.0f);
    const float near = sum * z * q;
    const float far = -sum * log_f32(0.5f * sum) - t * e;
    return 0.5f * (t < 1.0f ? near : far);
}

VMATH double js_shape_f64(double t, double e, double rest) {
    const double sum = 2.0 - rest; /* 1 + e */
    const double u = rest / sum, z = u * u;
    double q = 1.0 / 1722.0;
    q = FMA_F64(q, z, 1.0 / 1560.0);
    q = FMA_F64(q, z, 1.0 / 1406.0);
    q = FMA_F64(q, z, 1.0 / 1260.0);
    q = FMA_F64(q, z, 1.0 / 1122.0);
    q = FMA_F64(q, z, 1.0 / 992.0);
    q = FMA_F64(q, z, 1.0 / 870.0);
    q = FMA_F64(q, z, 1.0 / 756.0);
    q = FMA_F64(q, z, 1.0 / 650.0);
    q = FMA_F64(q, z, 1.0 / 552.0);
    q = FMA_F64(q, z, 1.0 / 462.0);
    q = FMA_F64(q, z, 1.0 / 380.0);
    q = FMA_F64(q, z, 1.0 / 306.0);
    q = FMA_F64(q, z, 1.0 / 240.0);
    q = FMA_F64(q, z, 1.0 / 182.0);
    q = FMA_F64(q, z, 1.0 / 132.0);
    q = FMA_F64(q, z, 1.0 / 90.0);
    q = FMA_F64(q, z, 1.0 / 56.0);
    q = FMA_F64(q, z, 1.0 / 30.0);
    q = FMA_F64(q, z, 1.0 / 12.0);
    q = FMA_F64(q, z, 1.0 / 2.0);
    const double near = sum * z * q;
    const double far = -sum * log_f64(0.5 * sum) - t * e;
    return 0.5 * (t < 1.0 ? near : far);
}

/* ---- binary labels ------------------------------------------------------------------------------------------- */

/* log(1 + y) and log(1 - y) of a y in [0, 1]. 1 +- y is never formed where it would be rounded by more than a tie: it is
 * 2^k (1 + f), with f a difference of y and a power of two.
 *
 * Domain: 0 <= y <= 1, denormals included, NaN; outside: unspecified.
 * Error: log1p_unit 1.5 ulp (1.5), log1m 0.86 ulp (0.86); relative also near 0.
 * 0: +0 and -0; denormals: y and -y; log1m(1): a finite number; NaN: NaN. */
VMATH float log1p_unit_f32(float y) {
    const float half = 0.5f * (y - 1.0f); /* (1 + y) / 2 - 1 */
    const float f = y > 0x1.a8279ap-2f ? half : y, kf = y > 0x1.a8279ap-2f ? 1.0f : 0.0f; /* sqrt(2) - 1 */
    return log_parts_f32(f, kf);
}

VMATH double log1p_unit_f64(double y) {
    const double half = 0.5 * (y - 1.0);
    const double f = y > 0x1.a827999fcef34p-2 ? half : y, k = y > 0x1.a827999fcef34p-2 ? 1.0 : 0.0;
    return log_parts_f64(f, k);
}

VMATH float log1m_f32(float y) {
    /* From 1/2 on 1 - y is exact: 2^k m as in log_f32, but for 0. */
    const float u = 1.0f - y;
    const int32_t k = (int32_t)(bits_f32(u) - 0x3f3504f3u) >> 23;
    const float of_u = FMA_F32(u, float_of((uint32_t)(127 - k) << 23), -1.0f);
    const float doubled = 1.0f - 2.0f * y; /* 2 (1 - y) - 1 */
    const float near = y > 0x1.2bec34p-2f ? doubled : -y, near_k = y > 0x1.2bec34p-2f ? -1.0f : 0.0f; /* 1 - sqrt(1/2) */
    const float f = y < 0.5f ? near : of_u, kf = y < 0.5f ? near_k : (float)k;
    return log_parts_f32(f, kf);
}

VMATH double log1m_f64(double y) {
    const double u = 1.0 - y;
    const uint64_t kb = (bits_f64(u) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    const double of_u = FMA_F64(u, double_of((2046u - kb) << 52), -1.0);
    const double k_of_u = double_from_u52(kb) - 1023.0;
    const double doubled = 1.0 - 2.0 * y;
    const double near = y > 0x1.2bec333018866p-2 ? doubled : -y, near_k = y > 0x1.2bec333018866p-2 ? -1.0 : 0.0;
    const double f = y < 0.5 ? near : of_u, k = y < 0.5 ? near_k : k_of_u;
    return log_parts_f64(f, k);
}

/* The loss of a label y in [0, 1] under the logit x: y softplus(-x) + (1 - y) softplus(x), as
 * log(1 + exp(-|x|)) + |x| w, where w is the label's share against the sign of x. Neither part is negative.
 *
 * Error: 1.5 eps (1.5), where the result is normal.
 * x infinite: 0 where w is 0, else inf; y outside [0, 1]: NaN; NaN: NaN. */
#define DEFINE_BINARY_LOGITS(NAME, REAL, EXP_UP, LOG1P, DOWN)                         \
    VMATH REAL NAME(REAL x, REAL y) {                                                 \
        const REAL size = x < 0 ? -x : x;                                             \
        const REAL rest = 1 - y, w = x > 0 ? rest : y;                                \
        const REAL linear = w == 0 ? 0 : size * w;                                    \
        const REAL loss = linear + LOG1P(EXP_UP(-size) * DOWN);                       \
        const REAL over = y <= 1 ? loss : (REAL)__builtin_nan("");                    \
        return y >= 0 ? over : (REAL)__builtin_nan("");                               \
    }

DEFINE_BINARY_LOGITS(binary_logits_f32, float, exp_up_f32, log1p_unit_f32, 0x1p-64f)
DEFINE_BINARY_LOGITS(binary_logits_f64, double, exp_up_f64, log1p_unit_f64, 0x1p-64)

/* The loss of a label y in [0, 1] under the probability p: -y log(p) - (1 - y) log(1 - p), 0 log 0 being 0.
 *
 * Error: 1.8 eps (1.8), where the result is normal.
 * p = 0 < y and p = 1 > y: inf; p or y outside [0, 1]: NaN; NaN: NaN. */
#define DEFINE_BINARY_PROBS(NAME, REAL, LOG, LOG1M)                                   \
    VMATH REAL NAME(REAL p, REAL y) {                                                 \
        const REAL infinity = (REAL)__builtin_inf(), rest = 1 - y;                    \
        REAL ones = -y * LOG(p), zeros = -rest * LOG1M(p);                            \
        ones = p == 0 ? infinity : ones;                                              \
        ones = y == 0 ? 0 : ones;                                                     \
        zeros = p == 1 ? infinity : zeros;                                            \
        zeros = rest == 0 ? 0 : zeros;                                                \
        REAL loss = ones + zeros + 0; /* never -0 */                                  \
        loss = y >= 0 ? loss : (REAL)__builtin_nan("");                               \
        loss = y <= 1 ? loss : (REAL)__builtin_nan("");                               \
        loss = p >= 0 ? loss : (REAL)__builtin_nan("");                               \
        return p <= 1 ? loss : (REAL)__builtin_nan("");                               \
    }

DEFINE_BINARY_PROBS(binary_probs_f32, float, log_f32, log1m_f32)
DEFINE_BINARY_PROBS(binary_probs_f64, double, log_f64, log1m_f64)

#endif
