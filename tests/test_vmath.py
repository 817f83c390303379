"""The scalar functions of vmath.h, in every tier this CPU has, against the bounds in their contracts.

float32 exp and log step through the bit patterns of their whole domain, from a random start; everything else draws
random bit patterns (the seed is printed). `python tests/test_vmath.py --full` visits every float32 pattern and 10^8
float64 ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest

from fastkl import _kernels

FULL = os.environ.get("FASTKL_SWEEP") == "full"
#: A prime, so that a step visits every residue of the low bits; another start each run.
STRIDE = 1 if FULL else 61
SAMPLES = 10**8 if FULL else 10**6
CHUNK = 2**18

INF, NAN = float("inf"), float("nan")
TINY64, TINY32 = 5e-324, 2.0**-149
FMA_TIERS = {"avx512", "avx2"}

#: Allowed errors in ulps of the exact result: with fma, without. exp and log have the bar of 1.05 everywhere.
MAX_ULP = {
    "exp_up": (1.05, 1.05),
    "log": (1.05, 1.05),
    "log_any": (1.05, 1.05),
    "log1p": (1.0, 1.0),
    "log1p_unit": (1.6, 1.7),
    "log1m": (1.05, 1.05),
    "exp_any": (1.05, 1.1),
    "xlogy_any": (2.0, 2.0),
}
#: Allowed relative errors in units of eps, the same way: the sum of roundings of one term.
MAX_EPS = {
    "kl_term": (3.1, 3.3),
    "shannon_term": (2.0, 2.0),
    "kl_term_any": (2.8, 3.0),
    "exp_weight": (1.6, 3.0),
    "kl_excess": (14.0, 15.0),
    "log1p_gap": (2.6, 2.6),
    "kl_fall": (3.5, 3.5),
    "kl_rise": (7.5, 7.5),
    "js_shape": (7.0, 7.0),
    "binary_logits": (1.8, 1.9),
    "binary_probs": (2.2, 2.3),
}


@pytest.fixture
def vmath(tier):
    return _kernels.load(tier).vmath


def allowed(table: dict[str, tuple[float, float]], name: str, tier: str) -> float:
    with_fma, without = table[name]
    return with_fma if tier in FMA_TIERS else without


def ulps(got: np.ndarray, exact: np.ndarray, mantissa: int, smallest: int) -> np.ndarray:
    """Return the error in ulps of the exact value, for a type with this mantissa and 2^smallest its least number."""
    exponent = np.frexp(exact)[1]
    return np.ldexp(np.abs(got - exact), -np.maximum(exponent - mantissa, smallest))


def worst(name: str, error: np.ndarray, *arguments: np.ndarray) -> tuple[float, str]:
    """Return the largest error (NaN counts as infinite) and where it is."""
    error = np.where(np.isnan(error), INF, error)
    i = int(np.argmax(error))
    return float(error[i]), f"{name}({', '.join(float(a[i]).hex() for a in arguments)})"


# float32: bit patterns


def patterns(ranges: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the float32 numbers with bits in these ranges, at the stride, in chunks."""
    for low, high in ranges:
        start = low + int(rng.integers(STRIDE))
        for chunk in range(start, high, CHUNK * STRIDE):
            stop = min(high, chunk + CHUNK * STRIDE)
            yield np.arange(chunk, stop, STRIDE, dtype=np.uint64).astype(np.uint32).view(np.float32)


def bits32(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


NANS32 = [(0x7F800001, 0x80000000), (0xFF800001, 2**32)]


@pytest.mark.sweep
def test_exp_up_float32_sweep(tier, vmath, rng):
    largest, where = 0.0, ""
    for x in patterns([(0, bits32(40.0) + 1), (0x80000000, 0xFF800001)], rng):
        got = vmath("exp_up", x)
        # float64 has 29 bits more: its own error is 1e-8 ulps.
        exact = np.exp(x.astype(np.float64))
        assert not np.any(np.signbit(got))
        assert np.all(got[x <= 0] <= 2.0**64)
        assert np.all(got[x < -130] == 0)
        error, at = worst("exp_up", ulps(got.astype(np.float64) * 2.0**-64, exact, 24, -149), x)
        largest, where = max((largest, where), (error, at))
    print(f"exp_up float32 {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, "exp_up", tier), where


@pytest.mark.sweep
def test_log_float32_sweep(tier, vmath, rng):
    largest, where = 0.0, ""
    for x in patterns([(1, bits32(2.0**103))], rng):
        got = vmath("log", x)
        exact = np.log(x.astype(np.float64))
        error, at = worst("log", ulps(got.astype(np.float64), exact, 24, -149), x)
        largest, where = max((largest, where), (error, at))
    print(f"log float32 {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, "log", tier), where


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["exp_up", "log"])
def test_float32_nan_patterns_stay_nan(name, vmath, rng):
    for x in patterns(NANS32, rng):
        assert np.all(np.isnan(vmath(name, x)))


# float64: random bit patterns against extended precision

long_double = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double here")


def from_bits(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    """Return numbers with uniform bit patterns between two positive ones."""
    low_bits, high_bits = (int(np.float64(v).view(np.int64)) for v in (low, high))
    return rng.integers(low_bits, high_bits, n).view(np.float64)


def near_zero(rng: np.random.Generator, n: int, octaves: int) -> np.ndarray:
    """Return numbers in (-1, 1) down to 2^-octaves."""
    return np.ldexp(rng.uniform(-1, 1, n), -rng.integers(0, octaves, n).astype(np.int32))


def arguments(name: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return n arguments of a function of one variable: where it bends, and over the whole domain."""
    half = n // 2
    if name == "exp_up":
        return np.concatenate([rng.uniform(-750, 600, half), -np.abs(near_zero(rng, half, 60)) * 40])
    if name in ("log", "log_any"):
        high = 2.0**968 if name == "log" else float(np.finfo(np.float64).max)
        near_one = [1 + near_zero(rng, half // 2, 52), rng.uniform(0.5, 2, half // 2)]
        return np.concatenate([from_bits(rng, TINY64, high, half), *near_one])
    assert name == "log1p"
    positive = from_bits(rng, TINY64, float(np.finfo(np.float64).max), half // 2)
    return np.concatenate([positive, -from_bits(rng, TINY64, 1.0, half // 2), near_zero(rng, half, 60)])


ORACLE = {"exp_up": np.exp, "log": np.log, "log_any": np.log, "log1p": np.log1p}


def chunks() -> Iterator[int]:
    for start in range(0, SAMPLES, CHUNK):
        yield min(CHUNK, SAMPLES - start)


@long_double
@pytest.mark.parametrize("name", list(ORACLE))
def test_float64_against_long_double(name, tier, vmath, rng):
    largest, where = 0.0, ""
    for n in chunks():
        x = arguments(name, rng, n)
        got = vmath(name, x).astype(np.longdouble)
        if name == "exp_up":
            got = np.ldexp(got, -64)
        error, at = worst(name, ulps(got, ORACLE[name](x.astype(np.longdouble)), 53, -1074), x)
        largest, where = max((largest, where), (error, at))
    print(f"{name} float64 {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, name, tier), where


@long_double
def test_xlogy_any_against_long_double(tier, vmath, rng):
    largest, where = 0.0, ""
    for n in chunks():
        x = np.concatenate([rng.uniform(0, 1, n // 2), from_bits(rng, 1e-290, 1e290, n // 2)])
        y = arguments("log_any", rng, n)[: x.size]
        exact = x.astype(np.longdouble) * np.log(y.astype(np.longdouble))
        error, at = worst("xlogy_any", ulps(vmath("xlogy_any", x, y).astype(np.longdouble), exact, 53, -1074), x, y)
        largest, where = max((largest, where), (error, at))
    print(f"xlogy_any {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, "xlogy_any", tier), where


# The KL term


def kl_oracle(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return p log(p/q) - p + q in extended precision: q ((1 + t) log1p(t) - t), a series for small t = p/q - 1."""
    t = (p - q) / q
    series = np.zeros_like(t)
    small = np.where(np.abs(t) < 0.25, t, 0)
    for n in range(40, 1, -1):
        series = 1 / np.longdouble(n * (n - 1)) - small * series
    ratio = np.where(np.abs(t) < 0.25, 1, p / q)
    return q * np.where(np.abs(t) < 0.25, t * t * series, ratio * np.log(ratio) - t)


def pairs(
    rng: np.random.Generator, n: int, q_low: float, q_high: float, p_low: float, p_high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return p and q: nearly equal at every distance, within a few octaves of each other, and far apart."""
    q = from_bits(rng, q_low, q_high, n)
    p = from_bits(rng, p_low, p_high, n)
    third = n // 3
    p[:third] = q[:third] * (1 + near_zero(rng, third, 53))
    ratio = np.ldexp(rng.uniform(1, 2, third), rng.integers(-6, 6, third).astype(np.int32))
    p[third : 2 * third] = q[third : 2 * third] * ratio
    return np.clip(p, p_low, p_high), q


def shapes_oracle(t: float) -> dict[str, mpmath.mpf]:
    """The terms of two distributions' divergences, p being 1 and t = log(p/q)."""
    with mpmath.workprec(1200):  # t^2 beside 1 may be 2^-800
        t = mpmath.mpf(t)
        e = mpmath.exp(-t)
        return {
            "kl_fall": e - 1 + t,
            "kl_rise": 1 - e - t * e,
            "js_shape": ((1 + e) * mpmath.log(2 / (1 + e)) - t * e) / 2,
        }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_of_log_ratios(dtype, tier, vmath, rng):
    eps = float(np.finfo(dtype).eps)
    smallest = -40 if dtype is np.float32 else -400  # their squares are normal numbers
    n = 1500
    t = np.concatenate([2.0 ** rng.uniform(smallest, 6.4, n), rng.uniform(0, 5, n), rng.uniform(0.45, 0.55, n)])
    t = t.astype(dtype)
    exact = [shapes_oracle(float(x)) for x in t]
    for name in ("kl_fall", "kl_rise", "js_shape"):
        got = vmath(name, t)
        assert np.all(got >= 0)
        with mpmath.workprec(100):
            error = np.array([float(abs(g - x[name]) / x[name]) for g, x in zip(got.tolist(), exact, strict=True)])
        largest, where = worst(name, error / eps, t)
        print(f"{name} {np.dtype(dtype)} {tier}: {largest:.4f} eps at {where}")
        assert largest <= allowed(MAX_EPS, name, tier), where
        ends = vmath(name, np.array([0, np.finfo(dtype).max], dtype))
        assert ends[0] == 0
        assert ends[1] == dtype({"kl_fall": np.finfo(dtype).max, "kl_rise": 1, "js_shape": np.log(2) / 2}[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_excess_of_log_ratios(dtype, tier, vmath, rng):
    """A term of nearly equal rows, and the digits that are left of it where exp(-z) - 1 + z is added up."""
    eps = float(np.finfo(dtype).eps)
    smallest = -40 if dtype is np.float32 else -400
    n = 1500
    z = np.concatenate([2.0 ** rng.uniform(smallest, 6.4, n), rng.uniform(0, 5, n), rng.uniform(0.34, 0.36, n)])
    z = np.concatenate([z, -np.minimum(z, 39)]).astype(dtype)
    got = vmath("kl_excess", z)
    with mpmath.workprec(1200):
        exact = [mpmath.exp(-mpmath.mpf(x)) - 1 + mpmath.mpf(x) for x in z.tolist()]
    with mpmath.workprec(100):
        error = np.array([float(abs(g - x) / x) for g, x in zip(got.tolist(), exact, strict=True)]) / eps
    inside = np.abs(z) < 0.34
    for name, least, chosen in (("kl_excess", 1.0, ~inside), ("kl_excess", 0.2, inside)):
        largest, where = worst(name, error[chosen], z[chosen])
        assert largest <= least * allowed(MAX_EPS, name, tier), where
    ends = vmath("kl_excess", np.array([0, np.inf, np.nan, 1e30], dtype))
    np.testing.assert_array_equal(ends, np.array([0, np.inf, np.nan, 1e30], dtype))


def test_weights(tier, vmath, rng):
    """Their error grows with the distance from 0, by less than that of the distance itself."""
    x = np.concatenate([-rng.uniform(0, 87, 100_000), -(2.0 ** rng.uniform(-40, 6, 100_000)), rng.uniform(0, 80, 1000)])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(vmath("exp_weight", x) - exact) / exact / 2.0**-23 / (1 + np.abs(x) / 40)
    largest, where = worst("exp_weight", error, x)
    assert largest <= allowed(MAX_EPS, "exp_weight", tier), where
    ends = vmath("exp_weight", np.array([0, -87.1, -1e30, -np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([1, 0, 0, 0, np.nan], np.float32))


@long_double
def test_log_of_a_sum(tier, vmath, rng):
    """log(1 + y) of a sum of exponentials less one of them; for results in float32 far beyond their digits."""
    y = np.concatenate([rng.uniform(0, 3, SAMPLES // 4), 2.0 ** rng.uniform(-1000, 60, SAMPLES // 4)])
    exact = np.log1p(y.astype(np.longdouble))
    largest, where = worst("log1p_sum", ulps(vmath("log1p_sum", y), exact, 52, -1074), y)
    assert largest <= 1.45, where
    error = np.abs(vmath("log1p_sum_single", y) - exact) / exact
    assert error.max() <= 2.0**-27
    for name in ("log1p_sum", "log1p_sum_single"):
        ends = vmath(name, np.array([0.0, TINY64, -1.0, NAN]))
        np.testing.assert_array_equal(ends, np.array([0.0, TINY64, -INF, NAN]))


def test_gap_of_log1p(tier, vmath, rng):
    n = 1000
    y = np.concatenate([rng.uniform(-0.29, 0.41, n), rng.choice([-0.3, 0.3], n) * 2.0 ** rng.uniform(-300, 0, n)])
    y = np.clip(y, -0.29, 0.41)
    with mpmath.workprec(1200):
        exact = [mpmath.mpf(v) - mpmath.log1p(mpmath.mpf(v)) for v in y.tolist()]
    with mpmath.workprec(100):
        got = vmath("log1p_gap", y).tolist()
        error = np.array([float(abs(g - x) / x) for g, x in zip(got, exact, strict=True)]) / 2.0**-52
    largest, where = worst("log1p_gap", error, y)
    assert largest <= allowed(MAX_EPS, "log1p_gap", tier), where
    assert vmath("log1p_gap", np.zeros(1))[0] == 0


@long_double
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shannon_term_against_long_double(dtype, tier, vmath, rng):
    limits = np.finfo(dtype)
    lowest, highest = (2.0**-118, 2.0**100) if dtype is np.float32 else (2.0**-1010, 2.0**960)
    for n in chunks():
        # Anywhere, in the thick of probabilities, and beside 1, where the log is small.
        p = np.exp(rng.uniform(np.log(lowest), np.log(highest), n))
        p[::3] = rng.random(len(p[::3]))
        p[1::3] = 1 - 2.0 ** rng.uniform(-50, -1, len(p[1::3]))
        p = p.astype(dtype)
        p = p[(p != 1) & (p >= lowest)]
        exact = -p.astype(np.longdouble) * np.log(p.astype(np.longdouble))
        got = vmath("shannon_term", p)
        error, at = worst("shannon_term", np.abs(got - exact) / np.abs(exact) / float(limits.eps), p)
        assert error <= allowed(MAX_EPS, "shannon_term", tier), at
    ends = np.array([0, 1, limits.smallest_subnormal, limits.tiny], dtype)
    got = vmath("shannon_term", ends)
    assert got[0] == got[1] == 0
    assert np.all(np.abs(got[2:]) <= 1100 * ends[2:].astype(np.float64))


@long_double
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_term_against_long_double(dtype, tier, vmath, rng):
    eps = float(np.finfo(dtype).eps)
    lowest_q, least_normal_result = (2.0**-96, 2.0**-100) if dtype is np.float32 else (2.0**-960, 2.0**-968)
    highest_q, lowest_p = (2.0**100, TINY32) if dtype is np.float32 else (2.0**960, TINY64)
    largest, where = 0.0, ""
    for n in chunks():
        # Results are in the thick of probabilities half of the time, anywhere in the domain otherwise.
        low, high = (2.0**-40, 2.0**4) if rng.random() < 0.5 else (lowest_q, highest_q)
        p, q = (a.astype(dtype) for a in pairs(rng, n, low, high, lowest_p, 2.0**99))
        got = vmath("kl_term", p, q)
        assert np.all(got >= 0)
        exact = kl_oracle(p.astype(np.longdouble), q.astype(np.longdouble))
        assert np.all(got[exact == 0] == 0)
        relative = np.where(exact >= least_normal_result, np.abs(got - exact) / np.where(exact > 0, exact, 1), 0)
        error, at = worst("kl_term", relative / eps, p, q)
        largest, where = max((largest, where), (error, at))
    print(f"kl_term {np.dtype(dtype)} {tier}: {largest:.4f} eps at {where}")
    assert largest <= allowed(MAX_EPS, "kl_term", tier), where


@long_double
def test_kl_term_any_against_long_double(tier, vmath, rng):
    eps = float(np.finfo(np.float64).eps)
    largest, where = 0.0, ""
    for n in chunks():
        huge = float(np.finfo(np.float64).max)
        low, high = (2.0**-40, 2.0**4) if rng.random() < 0.5 else (TINY64, 1e304)
        p, q = pairs(rng, n, low, high, TINY64, huge)
        # A tail of eleven bits: q + q_lo is then exact in extended precision. None below 2^-960.
        q_lo = np.where(q > 2.0**-960, np.ldexp(np.spacing(q), -11) * rng.integers(-1024, 1025, n), 0.0)
        q_lo[::2] = 0
        with np.errstate(over="ignore"):
            got = vmath("kl_term_any", p, q, q_lo)
        assert np.all(got >= 0)
        exact = kl_oracle(p.astype(np.longdouble), q.astype(np.longdouble) + q_lo)
        overflows = exact > huge * (1 + np.longdouble(2) ** -50)
        assert np.all(got[overflows] == INF)
        finite = ~overflows & (exact < huge * (1 - np.longdouble(2) ** -50))
        error = np.abs(np.where(finite, got, 0) - np.where(finite, exact, 0))
        normal = np.maximum(exact, np.longdouble(2.0**-1022))  # a denormal result is held to the spacing of denormals
        error, at = worst("kl_term_any", error / normal / eps, p, q, q_lo)
        largest, where = max((largest, where), (error, at))
    print(f"kl_term_any {tier}: {largest:.4f} eps at {where}")
    assert largest <= allowed(MAX_EPS, "kl_term_any", tier), where


@long_double
def test_the_kl_oracle_itself(rng):
    """Against 200 bits, for it cancels terms of its own."""
    p, q = pairs(rng, 600, 2.0**-40, 2.0**4, TINY64, 2.0**99)
    got = kl_oracle(p.astype(np.longdouble), q.astype(np.longdouble))
    with mpmath.workprec(200):
        for pi, qi, gi in zip(p.tolist(), q.tolist(), got, strict=True):
            exact = pi * mpmath.log(mpmath.mpf(pi) / qi) - pi + mpmath.mpf(qi)
            head = float(gi)
            difference = mpmath.mpf(head) + float(gi - np.longdouble(head)) - exact
            assert abs(difference) <= 2.0**-57 * abs(exact), (pi.hex(), qi.hex())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_term_is_exact_at_its_corners(dtype, vmath, rng):
    low, high = (2.0**-96, 2.0**100) if dtype is np.float32 else (2.0**-960, 2.0**960)
    q = from_bits(rng, low, high, 2**16).astype(dtype)
    q[:2] = low, high
    zero = vmath("kl_term", q, q)
    assert np.all(zero == 0)
    assert not np.any(np.signbit(zero))
    assert np.array_equal(vmath("kl_term", np.zeros_like(q), q), q)
    least = np.full_like(q, np.finfo(dtype).smallest_subnormal)
    assert np.array_equal(vmath("kl_term", least, q), q)
    nan = np.full_like(q, np.nan)
    for sign in (1, -1):
        assert np.all(np.isnan(vmath("kl_term", np.copysign(nan, dtype(sign)), q)))
        assert np.all(np.isnan(vmath("kl_term", q, np.copysign(nan, dtype(sign)))))


# Special values

SPECIAL = [
    ("exp_up", np.float32, 0.0, 2.0**64),
    ("exp_up", np.float32, -0.0, 2.0**64),
    ("exp_up", np.float32, TINY32, 2.0**64),
    ("exp_up", np.float32, -INF, 0.0),
    ("exp_up", np.float32, -133.0, 0.0),
    ("exp_up", np.float32, -3.4e38, 0.0),
    ("exp_up", np.float32, NAN, NAN),
    ("exp_up", np.float32, -NAN, NAN),
    ("exp_up", np.float64, 0.0, 2.0**64),
    ("exp_up", np.float64, -0.0, 2.0**64),
    ("exp_up", np.float64, -TINY64, 2.0**64),
    ("exp_up", np.float64, -INF, 0.0),
    ("exp_up", np.float64, -754.0, 0.0),
    ("exp_up", np.float64, -1.7e308, 0.0),
    ("exp_up", np.float64, NAN, NAN),
    ("log", np.float32, 1.0, 0.0),
    ("log", np.float32, NAN, NAN),
    ("log", np.float64, 1.0, 0.0),
    ("log", np.float64, NAN, NAN),
    ("log_any", np.float64, 1.0, 0.0),
    ("log_any", np.float64, 0.0, -INF),
    ("log_any", np.float64, -0.0, -INF),
    ("log_any", np.float64, INF, INF),
    ("log_any", np.float64, -TINY64, NAN),
    ("log_any", np.float64, -1.0, NAN),
    ("log_any", np.float64, -INF, NAN),
    ("log_any", np.float64, NAN, NAN),
    ("log1p", np.float64, 0.0, 0.0),
    ("log1p", np.float64, -0.0, -0.0),
    ("log1p", np.float64, TINY64, TINY64),
    ("log1p", np.float64, -TINY64, -TINY64),
    ("log1p", np.float64, 1e-300, 1e-300),
    ("log1p", np.float64, -1.0, -INF),
    ("log1p", np.float64, INF, INF),
    ("log1p", np.float64, -1.5, NAN),
    ("log1p", np.float64, -INF, NAN),
    ("log1p", np.float64, NAN, NAN),
    *[("log1p_unit", t, v, v) for t, least in ((np.float32, TINY32), (np.float64, TINY64)) for v in (0.0, least, NAN)],
    *[("log1m", t, v, -v) for t, least in ((np.float32, TINY32), (np.float64, TINY64)) for v in (least, NAN)],
]


@pytest.mark.parametrize(
    ("name", "dtype", "x", "expected"), SPECIAL, ids=[f"{n}-{np.dtype(t)}-{x!r}" for n, t, x, _ in SPECIAL]
)
def test_special_values(name, dtype, x, expected, vmath):
    got = vmath(name, np.array([x], dtype))[0]
    np.testing.assert_array_equal(got, dtype(expected))
    if not np.isnan(expected):
        assert np.signbit(got) == np.signbit(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_of_zero_is_finite(dtype, vmath):
    assert np.all(np.isfinite(vmath("log", np.array([0.0, -0.0], dtype))))


INVALID = [-TINY64, -1.0, -INF, INF, NAN]

SPECIAL_PAIRS = [
    ("kl_term_any", 0.0, 0.0, 0.0),
    ("kl_term_any", -0.0, 0.0, 0.0),
    ("kl_term_any", 0.0, -0.0, 0.0),
    ("kl_term_any", 0.0, 2.0, 2.0),
    ("kl_term_any", -0.0, TINY64, TINY64),
    ("kl_term_any", TINY64, 0.0, INF),
    ("kl_term_any", 1.0, -0.0, INF),
    ("kl_term_any", TINY64, TINY64, 0.0),
    ("kl_term_any", 1.7e308, 1.7e308, 0.0),
    ("kl_term_any", 1.7e308, TINY64, INF),
    ("kl_term_any", TINY64, 1.7e308, 1.7e308),
    *[("kl_term_any", bad, other, NAN) for bad in INVALID for other in (0.0, 1.0)],
    *[("kl_term_any", other, bad, NAN) for bad in INVALID for other in (0.0, 1.0)],
    ("kl_term_any", INF, INF, NAN),
    ("xlogy_any", 0.0, 0.0, 0.0),
    ("xlogy_any", -0.0, 2.0, 0.0),
    ("xlogy_any", 0.0, 2.0, 0.0),
    ("xlogy_any", 1.0, 0.0, -INF),
    ("xlogy_any", TINY64, -0.0, -INF),
    ("xlogy_any", 3.0, 1.0, 0.0),
    *[("xlogy_any", bad, other, NAN) for bad in INVALID for other in (0.0, 1.0, 2.0)],
    *[("xlogy_any", other, bad, NAN) for bad in INVALID for other in (0.0, 1.0, 2.0)],
]


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"), SPECIAL_PAIRS, ids=[f"{n}({x!r}, {y!r})" for n, x, y, _ in SPECIAL_PAIRS]
)
def test_special_pairs(name, x, y, expected, vmath):
    operands = [np.array([x]), np.array([y])]
    if name == "kl_term_any":
        operands.append(np.array([0.0]))
    got = vmath(name, *operands)[0]
    np.testing.assert_array_equal(got, expected)
    if not np.isnan(expected):
        assert np.signbit(got) == np.signbit(expected)


# Binary labels: logarithms near 1, and the losses made of them


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["log1p_unit", "log1m"])
def test_logs_near_1_float32_sweep(name, tier, vmath, rng):
    largest, where = 0.0, ""
    for y in patterns([(0, bits32(1.0) + (name == "log1p_unit"))], rng):
        got = vmath(name, y)
        exact = np.log1p(y.astype(np.float64) * (1 if name == "log1p_unit" else -1))
        error, at = worst(name, ulps(got.astype(np.float64), exact, 24, -149), y)
        largest, where = max((largest, where), (error, at))
    print(f"{name} float32 {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, name, tier), where


def unit_interval(dtype, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return numbers from 0 to 1: of every scale from either end, and where the forms change."""
    third = n // 3
    of_0 = from_bits(rng, TINY64, 1.0, third)
    y = np.concatenate([of_0, 1 - from_bits(rng, 1e-20, 1.0, third), rng.uniform(0.25, 0.55, third)])
    return np.clip(y.astype(dtype), 0, 1)


@long_double
@pytest.mark.parametrize("name", ["log1p_unit", "log1m", "exp_any"])
def test_logs_near_1_against_long_double(name, tier, vmath, rng):
    largest, where = 0.0, ""
    for n in chunks():
        y = unit_interval(np.float64, rng, n)
        if name == "log1m":
            y = y[y < 1]
        elif name == "exp_any":
            y = np.concatenate([rng.uniform(-750, 600, n), near_zero(rng, n, 60)])
        function = {"log1p_unit": np.log1p, "log1m": lambda v: np.log1p(-v), "exp_any": np.exp}[name]
        exact = function(y.astype(np.longdouble))
        error, at = worst(name, ulps(vmath(name, y).astype(np.longdouble), exact, 53, -1074), y)
        largest, where = max((largest, where), (error, at))
    print(f"{name} float64 {tier}: {largest:.4f} ulp at {where}")
    assert largest <= allowed(MAX_ULP, name, tier), where


@long_double
@pytest.mark.parametrize("name", ["binary_logits", "binary_probs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_losses_against_long_double(dtype, name, tier, vmath, rng):
    largest, where, finfo = 0.0, "", np.finfo(dtype)
    for n in chunks():
        labels = rng.permutation(unit_interval(dtype, rng, n))
        labels = np.where(rng.random(labels.size) < 0.3, np.rint(labels), labels)
        if name == "binary_logits":
            x = np.concatenate([rng.uniform(-80, 80, n), near_zero(rng, n, 60) * 1000])[: labels.size].astype(dtype)
            y, size = labels.astype(np.longdouble), np.abs(x.astype(np.longdouble))
            exact = np.log1p(np.exp(-size)) + size * np.where(x > 0, 1 - y, y)
        else:
            x = unit_interval(dtype, rng, n)
            x, labels = x[(x > 0) & (x < 1)], labels[(x > 0) & (x < 1)]
            y, p = labels.astype(np.longdouble), x.astype(np.longdouble)
            exact = -y * np.log(p) - (1 - y) * np.log1p(-p)
        got = vmath(name, x, labels.astype(dtype)).astype(np.longdouble)
        normal = exact >= finfo.tiny
        relative = np.where(normal, np.abs(got - exact) / np.where(normal, exact, 1), 0)
        error, at = worst(name, relative / float(finfo.eps), x, labels)
        largest, where = max((largest, where), (error, at))
    print(f"{name} {np.dtype(dtype)} {tier}: {largest:.4f} eps at {where}")
    assert largest <= allowed(MAX_EPS, name, tier), where


def test_exp_any_above_600(tier, vmath, rng):
    x = rng.uniform(600, 709.78, 20_000)
    with np.errstate(over="ignore"):
        error = np.abs(vmath("exp_any", x).astype(np.longdouble) / np.exp(x.astype(np.longdouble)) - 1)
    assert error.max() <= 2.7 * float(np.finfo(np.float64).eps)
    got = vmath("exp_any", np.array([710.0, 1e300, INF, -INF, -800.0, NAN, 0.0]))
    np.testing.assert_array_equal(got, [INF, INF, INF, 0, 0, NAN, 1])


# Same bits


def test_avx2_and_avx512_give_the_same_bits(rng):
    if not set(_kernels.supported()) >= FMA_TIERS:
        pytest.skip("this CPU does not have both avx2 and avx512")
    n = 2**16
    p, q = pairs(rng, n, 2.0**-40, 2.0**4, TINY32, 2.0**99)
    cases = [(name, (arguments(name, rng, n),)) for name in ORACLE]
    cases += [(name, tuple(a.astype(np.float32) for a in x)) for name, x in cases if name == "exp_up"]
    cases += [("log", (from_bits(rng, 1e-44, 1e30, n).astype(np.float32),)), ("xlogy_any", (p, q))]
    cases += [("kl_term", (p, q)), ("kl_term", (p.astype(np.float32), q.astype(np.float32)))]
    unit = unit_interval(np.float64, rng, n)
    pair = unit, rng.permutation(unit)
    cases += [(name, (unit,)) for name in ("log1p_unit", "log1m")] + [("exp_any", (700 * unit,))]
    cases += [("binary_logits", (90 * unit - 40, pair[1]))]
    cases += [("binary_probs", tuple(np.clip(v, 1e-9, 0.9) for v in pair))]
    cases += [(name, tuple(a.astype(np.float32) for a in x)) for name, x in cases[-5:] if name != "exp_any"]
    cases += [("kl_term_any", (p, q, np.spacing(q) * rng.uniform(-0.5, 0.5, n)))]
    cases = [(name, tuple(np.minimum(a, 40) for a in x) if name == "exp_up" else x) for name, x in cases]
    for name, operands in cases:
        wide, narrow = (_kernels.load(tier).vmath(name, *operands) for tier in ("avx512", "avx2"))
        assert np.all(np.isfinite(wide))
        assert wide.tobytes() == narrow.tobytes(), (name, operands[0].dtype)


if __name__ == "__main__":
    if sys.argv[1:] != ["--full"]:
        sys.exit("usage: python tests/test_vmath.py --full")
    os.environ["FASTKL_SWEEP"] = "full"
    # A new import, so that the test module reads the variable.
    sys.exit(pytest.main([__file__, "-s", "-v"]))
