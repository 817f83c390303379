/* The terms of entropies and divergences of order alpha, in double for both types of data: one branch-free function each,
 * as in vmath.h. A number is a mantissa in [1, 2) and an exponent here: p^alpha leaves the range of a double long before its
 * logarithm does. Logarithms are sums of two doubles: an error of an eps in x = log(p/q) costs alpha x eps in p (p/q)^alpha.
 *
 * With x = log(p/q), b = 1 - a and psi(y) = exp(y) - 1 - y, a pair's term of the alpha divergence is
 *     (a p + b q - p^a q^b) / (a b)  =  p (psi(-x) - psi(-b x) / b) / a,
 * both >= 0. For a >= 1/2 the right-hand side loses no digits unless b x > 1, where the left-hand side loses none; a < 1/2
 * is the same divergence with p and q exchanged, and b for a.
 */
#ifndef FASTKL_ALPHA_H
#define FASTKL_ALPHA_H

#include "vmath.h"

/* a b - ab exactly, where ab is a b rounded (but for underflow, and a rounding of its last digits without fma). */
VMATH double product_tail(double a, double b, double ab) {
#if HAS_FMA
    return __builtin_fma(a, b, -ab);
#else
    const double a_head = double_of(bits_f64(a) & 0xfffffffff8000000u), a_tail = a - a_head;
    const double b_head = double_of(bits_f64(b) & 0xfffffffff8000000u), b_tail = b - b_head;
    return ((a_head * b_head - ab) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail;
#endif
}

/* The rounding error of a - b = difference (Knuth); 0 where they are infinite. */
VMATH double difference_tail(double a, double b, double difference) {
    const double part = difference - a;
    const double tail = (a - (difference - part)) - (b + part);
    return tail == tail ? tail : 0.0;
}

/* x = m 2^k, m in [1, 2), denormals included; 0: some numbers. */
VMATH double mantissa(double x, double *k) {
    const double scale = x < 0x1p-960 ? 0x1p54 : 1.0, shift = x < 0x1p-960 ? 1023.0 + 54.0 : 1023.0;
    const uint64_t bits = bits_f64(x * scale);
    *k = double_from_u52(bits >> 52) - shift;
    return double_of((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
}

/* m 2^k for any integer k, rounded once; 0.5 <= m <= 4. */
VMATH double scaled(double m, double k) {
    k = k < -2040.0 ? -2040.0 : k;
    k = k > 2040.0 ? 2040.0 : k;
    const double half = (0x1.8p52 + 0.5 * k) - 0x1.8p52;
    return (m * pow2_f64(half)) * pow2_f64(k - half);
}

/* log(mp 2^kp / (2^kq (mq + tail))) = the result + lo; mantissas in [1, 2), abs(tail) at most half an ulp of mq.
 *
 * Error of the sum: 2^-58, and 2^-58 of it where it is small. */
VMATH double log_ratio(double mp, double kp, double mq, double kq, double tail, double *lo) {
    /* m = mq 2^step within a factor of sqrt(2) of mp. */
    const double factor = mq < mp * 0x1.6a09e667f3bcdp-1 ? 2.0 : (mq > mp * 0x1.6a09e667f3bcdp+0 ? 0.5 : 1.0);
    const double step = factor > 1.0 ? 1.0 : (factor < 1.0 ? -1.0 : 0.0);
    const double m = mq * factor, m_tail = tail * factor;
    const double k = kp - (kq - step);
    const double d = mp - m; /* exact */
    const double s = mp + m;
    const double larger = mp > m ? mp : m, smaller = mp > m ? m : mp;
    const double s_tail = (smaller - (s - larger)) + m_tail;
    const double r = 1.0 / s;
    const double w = d * r;
    /* The rounding error of w: (d - m_tail - w (s + s_tail)) / s. */
    const double ws = w * s;
    const double w_tail = (((d - ws) - product_tail(w, s, ws)) - (m_tail + w * s_tail)) * r;
    const double z = w * w;
    double c = KL_F64[7];
    c = FMA_F64(c, z, KL_F64[6]);
    c = FMA_F64(c, z, KL_F64[5]);
    c = FMA_F64(c, z, KL_F64[4]);
    c = FMA_F64(c, z, KL_F64[3]);
    c = FMA_F64(c, z, KL_F64[2]);
    c = FMA_F64(c, z, KL_F64[1]);
    c = FMA_F64(c, z, KL_F64[0]);
    /* k LN2_HI is exact, and the larger part where k is not 0. */
    const double high = k * LN2_HI_F64, near = 2.0 * w;
    const double sum = high + near;
    const double sum_tail = high == 0.0 ? 0.0 : near - (sum - high);
    const double low = sum_tail + FMA_F64(w * z, c, FMA_F64(k, LN2_LO_F64, 2.0 * w_tail));
    const double x = sum + low;
    *lo = low - (x - sum);
    return x;
}

/* (exp(r) - 1 - r) / r^2 for abs(r) < 0.75: Taylor's series, to 0.1 eps. */
VMATH double exp_shape(double r) {
    double q = 1.0 / 355687428096000.0;
    q = FMA_F64(q, r, 1.0 / 20922789888000.0);
    q = FMA_F64(q, r, 1.0 / 1307674368000.0);
    q = FMA_F64(q, r, 1.0 / 87178291200.0);
    q = FMA_F64(q, r, 1.0 / 6227020800.0);
    q = FMA_F64(q, r, 1.0 / 479001600.0);
    q = FMA_F64(q, r, 1.0 / 39916800.0);
    q = FMA_F64(q, r, 1.0 / 3628800.0);
    q = FMA_F64(q, r, 1.0 / 362880.0);
    q = FMA_F64(q, r, 1.0 / 40320.0);
    q = FMA_F64(q, r, 1.0 / 5040.0);
    q = FMA_F64(q, r, 1.0 / 720.0);
    q = FMA_F64(q, r, 1.0 / 120.0);
    q = FMA_F64(q, r, 1.0 / 24.0);
    q = FMA_F64(q, r, 1.0 / 6.0);
    return FMA_F64(q, r, 0.5);
}

#define NEAR 0.7 /* below it exp(y) is not reduced, so that its series also gives exp(y) - 1 - y */

/* exp(y + y_lo) = the result times 2^k; shape: that of exp_shape for abs(y) < NEAR, where k is 0. */
VMATH double exp_parts(double y, double y_lo, double *k, double *shape) {
    /* Beyond, k would not be an integer; nothing that is not 0 or infinite comes of it. */
    y_lo = y < 0x1p50 ? y_lo : 0.0;
    y_lo = y > -0x1p50 ? y_lo : 0.0;
    y = y > 0x1p50 ? 0x1p50 : y;
    y = y < -0x1p50 ? -0x1p50 : y;
    const double nearest = FMA_F64(y, LOG2E_F64, 0x1.8p52) - 0x1.8p52;
    const double n = __builtin_fabs(y) < NEAR ? 0.0 : nearest;
    const double r = FMA_F64(n, -LN2_LO_F64, FMA_F64(n, -LN2_HI_F64, y)) + y_lo;
    const double q = exp_shape(r);
    *k = n;
    *shape = q;
    return exp_sum_f64(r, q);
}

/* A pair's terms, from p = pm 2^pk, its value and q's, and x + x_lo = log(p/q): the result is its term of the alpha divergence
 * of order a >= 1/2, b = 1 - a; sm 2^sk is p^a q^b.
 *
 * Error: 6 eps of the term, an eps and abs(b) eps / 60 of sm. */
VMATH double divergence_term(double p, double q, double pm, double pk, double x, double x_lo, double a, double b,
                             double *sm, double *sk) {
    const double y = -b * x;
    const double y_lo = -(product_tail(b, x, -y) + b * x_lo);
    double n, shape;
    const double e = pm * exp_parts(y, y_lo, &n, &shape);
    const double power = scaled(e, pk + n);
    *sm = e;
    *sk = pk + n;
    /* p psi(-x) and p psi(y) / b */
    const double square = x * x;
    const double with_x = __builtin_fabs(x) < NEAR ? p * square * exp_shape(-x) : FMA_F64(p, x, q - p);
    const double with_y = __builtin_fabs(y) < NEAR ? p * (b * square) * shape : ((power - p) - p * y) / b;
    const double direct = (FMA_F64(a, p, b * q) - power) / (a * b);
    const double from = b > 0.0 ? 1.0 : __builtin_inf();
    return b * x > from ? direct : (with_x - with_y) / a;
}

/* The same of p alone, x + x_lo = log p: the result is (p - p^alpha) / c, c = alpha - 1, sm 2^sk is p^alpha.
 *
 * Error: 3 eps of the term, an eps and abs(c) eps / 60 of sm. */
VMATH double entropy_term(double p, double pm, double pk, double x, double x_lo, double c, double *sm, double *sk) {
    const double y = c * x;
    const double y_lo = product_tail(c, x, y) + c * x_lo;
    double n, shape;
    const double m = exp_parts(y, y_lo, &n, &shape);
    const double e = pm * m;
    *sm = e;
    *sk = pk + n;
    const double near = -p * FMA_F64(c * x * x, shape, x);
    const double far = (p - scaled(e, pk + n)) / c;
    return __builtin_fabs(y) < NEAR ? near : far;
}

/* Add m 2^k to (sum + sum_lo) 2^top, whose exponent grows as it must: exact scaling, and a two-sum. */
VMATH void add_scaled(double m, double k, double *sum, double *sum_lo, double *top) {
    const double new_top = k > *top ? k : *top;
    const double old = *top - new_top, own = k - new_top;
    const double old_scale = old < -1000.0 ? 0.0 : pow2_f64(old < -1000.0 ? 0.0 : old);
    const double own_scale = own < -1000.0 ? 0.0 : pow2_f64(own < -1000.0 ? 0.0 : own);
    const double before = *sum * old_scale, x = m * own_scale;
    const double s = before + x;
    const double part = s - before;
    *sum_lo = *sum_lo * old_scale + ((before - (s - part)) + (x - part));
    *sum = s;
    *top = new_top;
}

/* q - p of a pair's terms from logarithms: what it is to the digits of x. */
VMATH double gap_of_logs(double p, double q, double x) {
    return __builtin_fabs(x) < NEAR ? p * x * FMA_F64(x, exp_shape(-x), -1.0) : q - p;
}

#undef NEAR

/* ---- from what an operand holds to mantissas, exponents and logarithms --------------------------------------------- */

/* p / 2^unit = pm 2^pk. */
VMATH double number(double p, double unit, double *pm, double *pk) {
    double k;
    *pm = mantissa(p, &k);
    *pk = k - unit;
    return *pm * scaled(1.0, *pk);
}

/* q times 2^rk (r + r_lo), over 2^unit: mantissa, its tail and exponent. The result is its value, lo what it was rounded by. */
VMATH double multiple(double q, double r, double rk, double r_lo, double unit, double *qm, double *tail, double *qk,
                      double *lo) {
    double k;
    const double m = mantissa(q, &k);
    const double product = m * r;
    const double t = product_tail(m, r, product) + m * r_lo;
    const double half = product < 2.0 ? 1.0 : 0.5;
    *qm = product * half;
    *tail = t * half;
    *qk = (product < 2.0 ? k : k + 1.0) + (rk - unit);
    const double scale = scaled(1.0, *qk);
    *lo = *tail * scale;
    return *qm * scale;
}

/* x / t = the result + lo. */
VMATH double quotient(double x, double t, double *lo) {
    const double y = x / t;
    const double back = y * t;
    const double rest = ((x - back) - product_tail(y, t, back)) / t;
    *lo = (x - x) + rest == rest ? rest : 0.0;
    return y;
}

/* (x + x_lo) - m - (hi + lo) = the result + tail: what two rows share cancels in the difference of their results. */
VMATH double shifted(double x, double x_lo, double m, double hi, double lo, double *tail) {
    const double y = x - m;
    const double z = y - hi;
    const double w = z - lo;
    const double low = (difference_tail(x, m, y) + difference_tail(y, hi, z)) + (difference_tail(z, lo, w) + x_lo);
    const double sum = w + low;
    *tail = sum - sum == 0.0 ? low - (sum - w) : 0.0;
    return sum;
}

#endif
