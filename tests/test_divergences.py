"""The divergences of fastkl.divergences: digits at every scale, symmetry to the bit, and what the theorems say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_accuracy import BY_ID, assert_within_budget, measured

import fastkl as fk

LN2 = math.log(2)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
SYMMETRIC = {
    "js_divergence": fk.js_divergence,
    "js_distance": fk.js_distance,
    "jeffreys_divergence": fk.jeffreys_divergence,
    "hellinger_distance": fk.hellinger_distance,
    "bhattacharyya_distance": fk.bhattacharyya_distance,
    "total_variation": fk.total_variation,
    "triangular_discrimination": fk.triangular_discrimination,
}
ALL = {**SYMMETRIC, "chi2_divergence": fk.chi2_divergence}
symmetric = pytest.mark.parametrize("function", SYMMETRIC)
functions = pytest.mark.parametrize("function", ALL)


def simplices(rows: int, size: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Draw distributions, some nearly uniform, some peaked, some with zeros; sums are as near 1 as the type can."""
    p = rng.gamma(rng.choice([0.2, 1.0, 30.0], (rows, 1)), size=(rows, size)) + 1e-6
    p[(rng.random((rows, size)) < 0.2) & (rng.random((rows, 1)) < 0.3)] = 0.0
    p[:, 0] += 1e-3
    return (p / p.sum(axis=1, keepdims=True)).astype(dtype)


# Digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", oracle.POINTWISE)
@dtypes
def test_every_scale(id_: str, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """From far apart down to the least that the type tells from equal."""
    operation = BY_ID[id_]
    for size, scales in [(2, (1.0, 1.0)), (10, (0.1, 7e5)), (70, (1.0, 1.0)), (300, (3e4, 2e-3))]:
        rows = []
        for distance in np.geomspace(0.7, 1e-12 if dtype == "float64" else 1e-6, 8):
            p = rng.uniform(0.5, 1, size)
            p /= p.sum()
            q = p * (1 + distance * np.resize([1.0, -1.0], size) * rng.uniform(0.9, 1, size))
            rows.append(oracle.Row(f"{distance:.0e} apart", (p, q)))
        p, q = rng.uniform(0.5, 1, (2, size))
        q[0] = 1e-9
        rows.append(oracle.Row("far apart", (p / p.sum(), q / q.sum())))
        rows = [
            oracle.Row(row.kind, tuple((v * s).astype(dtype) for v, s in zip(row.arguments, scales, strict=True)))
            for row in rows
        ]
        cases = [measured(operation, row, dtype) for row in rows]
        assert_within_budget(oracle.evaluate(fk, operation, oracle.stacked(rows)), cases, dtype)


@pytest.mark.parametrize("id_", [id_ for id_ in oracle.POINTWISE if "normalize" in id_])
def test_normalized_rows_at_the_ends_of_the_range(id_: str, tier: str) -> None:
    """Sums that overflow, elements that are denormal beside them, quotients that are no doubles."""
    rows = [
        oracle.Row("sums above the largest", ([1.5e308, 1.7e308, 1e308], [1.7e308, 1e300, 1.2e308])),
        oracle.Row("all denormal", ([5e-324, 2e-322, 3e-320], [1e-322, 3e-323, 5e-324])),
        oracle.Row("the ends side by side", ([1e308, 1e-320, 3e10], [2e-310, 1e-323, 1e-315])),
        oracle.Row("400 orders of magnitude in a row", ([1e200, 1e-200, 3e199], [1.0, 1e-308, 0.25])),
        oracle.Row("quotients below the least", ([1e300, 1e-100, 1e290], [1e-3, 1e305, 1e304])),
        oracle.Row("squares below the least", ([1.0, 1e-180, 1e-190], [1.0, 1e-170, 1e-200])),
    ]
    operation = BY_ID[id_]
    rows = [oracle.Row(row.kind, tuple(np.array(v) for v in row.arguments)) for row in rows]
    cases = [measured(operation, row, "float64") for row in rows]
    assert_within_budget(oracle.evaluate(fk, operation, oracle.stacked(rows)), cases, "float64")
    # As part of a long row, too, whose sums are merged.
    long = [np.concatenate([v, np.zeros((len(rows), 140_000))], axis=1) for v in oracle.stacked(rows)]
    assert_within_budget(oracle.evaluate(fk, operation, long), cases, "float64")


@functions
@dtypes
def test_proportional_rows_are_no_distance_apart(function: str, dtype: str, tier: str) -> None:
    one = np.array([1.0, 3.0, 0.0, 0.5], dtype)
    # Powers of two, so that scaling is exact.
    for of_p in [2.0**k for k in ((-148, -100, 0, 20, 126) if dtype == "float32" else (-1073, -600, 0, 20, 1022))]:
        for of_q in (1.0, of_p):
            assert ALL[function](np.multiply(one, of_p), np.multiply(one, of_q), normalize=True) == 0, (of_p, of_q)


@dtypes
@pytest.mark.parametrize("size", [2, 40, 1000, 5000])
@pytest.mark.parametrize("q", [0.75, 1 - 2.0**-24])
def test_cross_entropy_of_denormals(size: int, q: float, dtype: str, tier: str) -> None:
    """Products of a denormal p and the log of a q near 1 are no number of the type, but their sum may be."""
    least = np.finfo(dtype).smallest_subnormal
    for count in (size, size // 2):
        row = np.zeros(size, dtype)
        row[:count] = least
        right = np.dtype(dtype).type(least * round(count * -math.log(q)))
        for p, axis in ((np.tile(row, (70, 1)), -1), (np.tile(row[:, None], (1, 70)), 0)):
            got = fk.cross_entropy(p, np.full_like(p, q), axis=axis)
            assert got.dtype == dtype
            assert np.all(np.abs(got / least - right / least) <= 1), (got[0], right)
            assert np.all(got == got[0])


@pytest.mark.parametrize("weight", [1e-30, 1e-3, 0.3, 0.5, 0.9, 1 - 2**-40])
@dtypes
def test_weights_of_js(weight: float, dtype: str, tier: str, rng: np.random.Generator) -> None:
    operation = BY_ID["js_divergence"]
    eps = 8 * float(np.finfo(dtype).eps)
    kinds = oracle.rows_for(operation, 10, dtype, rng)
    got = fk.js_divergence(*oracle.stacked(kinds), weight=weight)
    for value, row in zip(got, kinds, strict=True):
        right = oracle.js_divergence(*oracle.plain(row.arguments), weight)
        floor = oracle.SMALLEST_DIVERGENCE[dtype] * min(weight, 1 - weight)
        rounding = float(np.finfo(dtype).smallest_subnormal) / 2 if right < float(np.finfo(dtype).tiny) else 0.0
        assert oracle.errors_over_budget(value, [right], [eps * max(right, floor) + rounding])[0] <= 1, row


# Symmetry and bounds ----------------------------------------------------------------------------------------------


@symmetric
@dtypes
@pytest.mark.parametrize("normalize", [False, True])
def test_symmetric_to_the_bit(
    function: str, dtype: str, normalize: bool, tier: str, rng: np.random.Generator
) -> None:
    for size in (1, 2, 7, 40, 150, 300, 5000):
        p, q = (simplices(60 if size < 5000 else 4, size, dtype, rng) * rng.choice([1, 2, 0.3]) for _ in range(2))
        p[0, 0], q[1, -1], p[2, 0] = np.nan, 1e-42, -1.0
        q[3:6] = p[3:6] * (1 + 4 * np.finfo(dtype).eps)
        one, other = (SYMMETRIC[function](*pair, normalize=normalize) for pair in ((p, q), (q, p)))
        assert one.tobytes() == other.tobytes(), size


def any_pair(dtype: str) -> Any:
    """Rows of up to 40 numbers, near 1 or anywhere."""
    least, largest = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    width = {"float32": 32, "float64": 64}[dtype]
    elements = st.one_of(
        st.floats(0, 1, width=width), st.floats(0, largest / 64, width=width), st.sampled_from([0.0, least, 1.0])
    )
    return st.integers(1, 40).flatmap(lambda size: st.tuples(*[hnp.arrays(dtype, size, elements=elements)] * 2))


@functions
@dtypes
@pytest.mark.parametrize("normalize", [False, True])
def test_never_negative_and_0_for_equal_rows(function: str, dtype: str, normalize: bool) -> None:
    @given(any_pair(dtype))
    def check(pair: tuple[np.ndarray, np.ndarray]) -> None:
        p, q = pair
        if normalize and not (p.any() and q.any()):
            return
        for a, b in ((p, q), (q, p)):
            got = ALL[function](a, b, normalize=normalize)
            assert got >= 0 or (function == "bhattacharyya_distance" and not normalize)
        if function in SYMMETRIC:
            assert ALL[function](p, q, normalize=normalize).tobytes() == got.tobytes()
        if function != "bhattacharyya_distance" or normalize:
            same = ALL[function](p, p.copy(), normalize=normalize)
            assert same == 0
            assert math.copysign(1, same) == 1

    check()


@functions
@dtypes
def test_the_order_of_classes_does_not_matter(function: str, dtype: str, rng: np.random.Generator) -> None:
    budget = BY_ID[f"{function}[normalize]"].budget.multiple(dtype) * float(np.finfo(dtype).eps)
    for size in (10, 300, 6000):
        p, q = (simplices(20, size, dtype, rng) for _ in range(2))
        order = rng.permutation(size)
        one, other = (
            ALL[function](*pair, normalize=True).astype(np.float64) for pair in ((p, q), (p[:, order], q[:, order]))
        )
        np.testing.assert_allclose(one, other, rtol=2 * budget)


@dtypes
@pytest.mark.parametrize("size", [3, 10, 100, 300])
def test_roots_at_every_scale(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """Both divergences of roots take one root of a product, which is out of range long before p and q are.

    Rows near 1 and the same rows times a power of two, rows of one scale beside rows of another.
    """
    eps = float(np.finfo(dtype).eps)
    p = simplices(40, size, dtype, rng)
    q = np.concatenate([simplices(20, size, dtype, rng), p[20:] * (1 + 64 * eps * rng.normal(size=(20, size)))])
    p, q = np.maximum(p, 2.0**-20).astype(dtype), np.maximum(q, 2.0**-20).astype(dtype)
    h, b = (np.asarray(f(p, q), np.float64) for f in (fk.hellinger_distance, fk.bhattacharyya_distance))
    most = 120 if dtype == "float32" else 860  # farther down the square of a distance of some eps is denormal
    exponents = np.r_[rng.integers(-most + 20, most, 80) // 2 * 2, -most + 20, -82, -80, 0, 22, 24, 198, 200, 202, most]
    for scale in exponents[exponents <= most]:
        up = np.where(rng.random((40, 1)) < 0.7, 2.0**scale, 1.0)
        far = (np.array(up, dtype) * p, np.array(up, dtype) * q)
        got = fk.hellinger_distance(*far).astype(np.float64)
        np.testing.assert_allclose(got, h * np.sqrt(up[:, 0]), rtol=8 * eps, err_msg=f"2^{scale}")
        got = fk.bhattacharyya_distance(*far).astype(np.float64)
        right = b - np.log(up[:, 0])
        apart = np.abs(b) + np.abs(np.log(up[:, 0])) + 1
        assert (np.abs(got - right) <= 16 * eps * apart).all(), scale


@dtypes
def test_inequalities(dtype: str, tier: str, rng: np.random.Generator) -> None:
    """Between divergences of the same distributions; each side may be off by its budget."""
    p, q = (simplices(20_000, 6, dtype, rng) for _ in range(2))
    near = slice(0, 5000)
    q[near] = p[near] * (1 + 1e-3 * rng.normal(size=(5000, 6))).astype(dtype)
    # Pairs of the same one class are at distance 0, of which a budget is no multiple.
    apart = (p[:, 1:] + q[:, 1:]).any(axis=1)
    p, q = p[apart], q[apart]
    kl = fk.kl_divergence(p, q, normalize=True).astype(np.float64)
    js, js_d, jeffreys, h, bhattacharyya, tv, chi2, triangle = (
        ALL[name](p, q, normalize=True).astype(np.float64)
        for name in (
            "js_divergence", "js_distance", "jeffreys_divergence", "hellinger_distance", "bhattacharyya_distance",
            "total_variation", "chi2_divergence", "triangular_discrimination",
        )
    )  # fmt: skip
    up = 1 + 20 * float(np.finfo(dtype).eps)
    assert np.isfinite(js).all()
    assert (js <= LN2 * up).all()
    assert (tv <= up).all()
    assert (h <= up).all()
    assert (triangle <= 2 * up).all()
    assert (2 * tv**2 <= kl * up).all(), "Pinsker"
    assert (tv**2 <= 2 * js * up).all(), "Pinsker for JS"
    assert (js <= LN2 * tv * up).all(), "Lin"
    assert (h**2 <= tv * up).all()
    assert (tv <= math.sqrt(2) * h * up).all()
    assert (triangle / 4 <= js * up).all(), "Topsøe"
    assert (js <= LN2 / 2 * triangle * up).all(), "Topsøe"
    assert (js <= jeffreys / 4 * up).all(), "Lin"
    with np.errstate(over="ignore"):
        assert (kl <= np.log1p(chi2) * up).all()
    assert (2 * h**2 <= kl * up).all()
    assert (2 * bhattacharyya <= kl * up).all(), "Rényi of order 1/2 is below that of order 1"
    np.testing.assert_allclose(js_d**2, js, rtol=up - 1)
    both = kl + fk.kl_divergence(q, p, normalize=True)
    np.testing.assert_allclose(jeffreys, both, rtol=up - 1)
    middle = (h > 0.1) & (h < 0.9)
    np.testing.assert_allclose(bhattacharyya[middle], -np.log1p(-(h[middle] ** 2)), rtol=10 * (up - 1))


@dtypes
def test_triangle_inequality(dtype: str, rng: np.random.Generator) -> None:
    """A million triples; each distance may be off by its budget."""
    slack = 4 * float(np.finfo(dtype).eps)
    for _ in range(5):
        a, b, c = (simplices(200_000, 3, dtype, rng) for _ in range(3))
        # Half of them nearly in line: c between a and b.
        c[::2] = ((a[::2].astype(np.float64) + b[::2]) / 2).astype(dtype)
        for distance in (fk.js_distance, fk.hellinger_distance, fk.total_variation):
            ab, bc, ac = (distance(x, y).astype(np.float64) for x, y in ((a, b), (b, c), (a, c)))
            assert (ab <= (bc + ac) * (1 + 2 * slack)).all()


def test_js_against_its_entropies(rng: np.random.Generator) -> None:
    """JS is the entropy of the mixture less that of its parts."""
    p, q = (simplices(1000, 20, "float64", rng) for _ in range(2))
    for w in (0.1, 0.5, 0.8):
        right = fk.entropy(w * p + (1 - w) * q) - w * fk.entropy(p) - (1 - w) * fk.entropy(q)
        np.testing.assert_allclose(fk.js_divergence(p, q, weight=w), right, atol=3e-15)
        np.testing.assert_allclose(fk.js_divergence(q, p, weight=1 - w), right, atol=3e-15)


# What is refused --------------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    p = np.array([0.5, 0.5])
    for weight in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight takes a number from 0 to 1, not"):
            fk.js_divergence(p, p, weight=weight)
    for weight in ("0.5", None, [0.5], True, 0.5j):
        with pytest.raises(TypeError, match="weight takes a number from 0 to 1, not"):
            fk.js_divergence(p, p, weight=weight)
    for kind in ("Pearson", "", None):
        with pytest.raises(ValueError, match="kind takes 'pearson', 'neyman', not"):
            fk.chi2_divergence(p, p, kind=kind)
    with pytest.raises(ValueError, match=r"p of shape \(3,\).*do not broadcast"):
        fk.chi2_divergence(np.ones(3), np.ones(2), kind="neyman")


@pytest.mark.parametrize("width", [3, 300])
def test_a_denormal_that_its_sum_makes_0_still_counts(width: int, tier: str) -> None:
    """Over the sum q is below the least number, but it is no 0."""
    p, q = np.ones((2, width))
    p[0], q[0] = 0.0, 5e-324
    assert fk.jeffreys_divergence(p, q, normalize=True) == np.inf
    assert fk.jeffreys_divergence(q, p, normalize=True) == np.inf
    assert fk.chi2_divergence(q, p, normalize=True) == np.inf
    assert fk.chi2_divergence(p, q, normalize=True) < 1e-300
