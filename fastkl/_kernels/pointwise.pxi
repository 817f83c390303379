# Divergences that are sums of one term of p, q and their difference d: every term is >= 0 and is made of d, so that nothing
# cancels. d is handed in, for it may be known better than by p - q: here from rows over their sums (normalize). The
# loops are those of divergence.pxi: fast in the data's type, and again by a form that is right for every double where a
# lane holds something odd.

cdef extern from "vmath.h" nogil:
    float js_term_f32(float p, float q, float d, float weight)
    double js_term_f64(double p, double q, double d, double weight)
    float jeffreys_term_f32(float p, float q, float d)
    double jeffreys_term_f64(double p, double q, double d)
    double product_error_f64(double a, double b, double ab)

cdef extern from "math.h" nogil:
    float sqrtf(float x)
    double sqrt(double x)

cdef extern from *:
    """
    #define inlined static inline __attribute__((always_inline)) void /* so that what depends on op is known */
    """
    ctypedef void inlined


cdef inline bint is_pointwise(int op) noexcept nogil:
    return JS <= op <= TRIANGULAR


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real smallest_normal(real like) noexcept nogil:
    if real is float:
        return 2.0 ** -126
    else:
        return 2.0 ** -1022


cdef inline real term(int op, real p, real q, real d, real weight) noexcept nogil:
    """What a pair of probabilities adds to the sum of a divergence; d = p - q. weight is that of p in the mixture of JS and
    JS_DISTANCE, of no meaning elsewhere. For BHATTACHARYYA the term of Hellinger, sum of which is what the overlap lacks.

    Domain: 0 <= p, q <= largest, denormals included. JEFFREYS: both 0 or both at least smallest_q; CHI2: q at least
    smallest_q where p > 0. A NaN in p, q or d: NaN.
    Never negative; p = q = d = 0: 0; d = 0: 0. p and q exchanged, d negated: the same bits (JS: for weight 1/2)."""
    cdef real size = d if d > 0 else -d, least = smallest_normal(p), sum
    if op == TOTAL_VARIATION:
        return size / 2
    if op == JS or op == JS_DISTANCE:
        if real is float:
            return js_term_f32(p, q, d, weight)
        else:
            return js_term_f64(p, q, d, weight)
    if op == JEFFREYS:
        if real is float:
            return jeffreys_term_f32(p, q, d)
        else:
            return jeffreys_term_f64(p, q, d)
    if op == CHI2:
        sum = q
    elif op == TRIANGULAR:
        sum = p + q
    else:
        sum = root(p) + root(q)
    size = size / (sum if sum > least else least)    # 0 / 0 is 0
    if op == CHI2 or op == TRIANGULAR:
        return (d if d > 0 else -d) * size
    return size * size / 2


cdef inline double term_any(int op, double p, double q, double d, double weight) noexcept nogil:
    """The same for every pair of doubles; NaN where one is negative, infinite or NaN. CHI2, JEFFREYS: inf beside a 0."""
    cdef double size = d if d > 0 else -d, half, rest, m, gap, a, b, result, none = NAN, infinity = INFINITY
    if op == TOTAL_VARIATION:
        result = size / 2
    elif op == JS or op == JS_DISTANCE:
        rest = 1 - weight
        m = weight * p + rest * q
        # What m was rounded by, told by d; farther away it does not matter.
        gap = (p - m) - rest * d
        gap = gap if m <= 2 * p and p <= 2 * m else 0
        a = kl_term_any_f64(p, m, gap)
        gap = (q - m) + weight * d
        gap = gap if m <= 2 * q and q <= 2 * m else 0
        b = kl_term_any_f64(q, m, gap)
        # m = 0 under p: its weight is 0, or adds less than a denormal.
        a = a if a != infinity else 0
        b = b if b != infinity else 0
        result = weight * a + rest * b
    elif op == JEFFREYS:
        gap = (p - q) - d
        result = kl_term_any_f64(p, q, gap) + kl_term_any_f64(q, p, -gap)
    elif op == CHI2:
        # d / q may overflow where d^2 / q does not, and d^2 be denormal where q is not.
        a = d * d / q
        b = d * (d / q)
        result = a if q < 2.0 ** -500 and size > 2.0 ** -500 else b
        result = result if d != 0 else 0
        result = result if q != 0 or p == 0 else infinity
    elif op == TRIANGULAR:
        half = 0.5 if p > 1e300 or q > 1e300 else 1     # p + q may overflow
        result = size * ((half * size) / (half * p + half * q))
        result = result if d != 0 else 0
    else:
        a = sqrt(p) + sqrt(q)
        result = size / a * (size / a) / 2
        result = result if a != 0 else 0
    result = result if p >= 0 and q >= 0 else none
    return result if p < infinity and q < infinity else none
