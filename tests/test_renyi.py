"""Entropies and divergences of order alpha: every alpha, every input form, and what the mathematics promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import mp

import fastkl as fk
from fastkl import reference

INF = math.inf
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
ORDERS = (0.0, 1e-300, 1e-9, 0.25, 0.5, 0.75, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5, 2.0, 3.3, 10.0)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
sizes = pytest.mark.parametrize("size", [2, 40, 300])


# Every order ------------------------------------------------------------------------------------------------------


def exact_alpha(p: list[Any], q: list[Any], alpha: float) -> Any:
    """The alpha divergence, near 0 and 1 by the derivative there: 240 bits do not hold 1e-300 beside 1."""
    if alpha in (0.0, 1.0) or abs(alpha) > 1e-30:
        return oracle.alpha_divergence(p, q, alpha)
    assert abs(alpha) < 1e-30
    return oracle.alpha_divergence(p, q, 0) if all(p) else oracle.mp.mpf(0)


def near_rows(size: int, dtype: str, apart: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two rows so far apart; 0 for two that are drawn by themselves."""
    p = oracle.simplex(size, rng, 2.0).astype(dtype)
    q = p * (1 + apart * rng.normal(size=size).clip(-3, 3)) if apart else oracle.simplex(size, rng)
    return p, q.astype(dtype)


@pytest.mark.parametrize("apart", [0, 1e-2, 1e-6])
@sizes
@dtypes
def test_divergences_of_every_order(dtype: str, size: int, apart: float, tier: str, rng: np.random.Generator) -> None:
    """Within 8 eps of the result for two distributions, alpha / 8 eps more beyond 2; else of the difference's parts."""
    for alpha in (*ORDERS, -0.4, -3.0):
        p, q = near_rows(size, dtype, apart, rng)
        budget = EPS[dtype] * ((1 if dtype == "float32" else 8) + max(abs(alpha) - 2, 0) / 8)
        for normalize in (False, True):
            rows = [v.astype(float).tolist() for v in (p, q)]
            rows = [oracle.divided(v) for v in rows] if normalize else rows
            total, gap = mp.fsum(rows[0]), mp.fsum(rows[0]) - mp.fsum(rows[1])
            d = exact_alpha(*rows, alpha)
            floor = oracle.SMALLEST_DIVERGENCE[dtype]
            got = fk.alpha_divergence(p, q, alpha, normalize=normalize)
            assert abs(mp.mpf(float(got)) - d) <= budget * max(d, floor), alpha
            if alpha < 0:
                continue
            t = mp.mpf(alpha) * d + (0 if normalize else gap)
            c = mp.mpf(alpha) - 1
            r = mp.log1p(c * t / total) / c if c else t / total
            parts = min(mp.mpf(alpha) * d + (0 if normalize else abs(gap)), total / abs(c) if c else INF)
            tiny = float(np.finfo(dtype).tiny) / budget     # below, results are denormal
            unit = max(abs(t), parts, alpha * floor, tiny)
            got = fk.tsallis_divergence(p, q, alpha, normalize=normalize)
            assert abs(mp.mpf(float(got)) - t) <= budget * unit, alpha
            unit = max(abs(r), parts / total, alpha * floor, tiny)
            got = fk.renyi_divergence(p, q, alpha, normalize=normalize)
            assert abs(mp.mpf(float(got)) - r) <= budget * unit, alpha


@pytest.mark.parametrize("kind", ["Dirichlet", "nearly one-hot", "one-hot", "sums to less"])
@sizes
@dtypes
def test_entropies_of_every_order(dtype: str, size: int, kind: str, tier: str, rng: np.random.Generator) -> None:
    for alpha in ORDERS:
        p = oracle.simplex(size, rng)
        if "one-hot" in kind:
            p *= 1e-6 if kind[0] == "n" else 0
            p[0] = 1 - 1e-6 if kind[0] == "n" else 1
        p = (0.3 * p if kind == "sums to less" else p).astype(dtype)
        for normalize in (False, True):
            row = p.astype(float).tolist()
            row = oracle.divided(row) if normalize else row
            for name in ("tsallis_entropy", "renyi_entropy"):
                right = getattr(oracle, name)(row, alpha)
                got = getattr(fk, name)(p, alpha, normalize=normalize)
                budget = EPS[dtype] * (1 if dtype == "float32" else 8)
                assert abs(mp.mpf(float(got)) - right) <= budget * abs(right) + mp.mpf(2) ** -1074, (name, alpha)


@dtypes
@pytest.mark.parametrize("size", [3, 300])
def test_limits_are_continuous(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """At 1 +- 1e-9 and 1e-9 against 1 and 0; at 1e3 .. 1e300 against infinity, where the last term counts for all."""
    p, q = near_rows(size, dtype, 0, rng)
    p /= p.sum()
    slack = 4 * EPS[dtype]
    near = max(1e-7, slack)    # two results a rounding apart are 1.2e-7 apart in float32
    for function in (fk.renyi_entropy, fk.tsallis_entropy):
        at = [float(function(p, alpha)) for alpha in (1, 1 - 1e-9, 1 + 1e-9)]
        assert at == pytest.approx([at[0]] * 3, rel=near)
    for function in (fk.renyi_divergence, fk.tsallis_divergence, fk.alpha_divergence):
        for limit in (0.0, 1.0):
            at = [float(function(p, q, abs(limit + step))) for step in (0, -1e-9, 1e-9)]
            assert at == pytest.approx([at[0]] * 3, rel=near, abs=1e-8 if limit == 0 else 0)
    most = float(fk.renyi_divergence(p, q, INF))
    assert most == pytest.approx(float(np.log((p / q).max())), rel=8 * EPS[dtype])
    least = float(fk.renyi_entropy(p, INF))
    assert least == pytest.approx(-math.log(p.max()), rel=8 * EPS[dtype])
    before = 0.0
    for alpha in (1e3, 1e4, 1e6, 2.0**20, 2.0**20 + 1, 1e7, 1e12, 1e100, 1e300):
        r, h = float(fk.renyi_divergence(p, q, alpha)), float(fk.renyi_entropy(p, alpha))
        assert most * (1 + slack) >= r >= most - 200 / alpha - most * slack
        assert least * (1 - slack) <= h <= least + 200 / alpha + least * slack
        assert r >= before * (1 - slack)
        before = r


@pytest.mark.parametrize("alpha", [1e3, 1e6, 1e7, 1e12])
def test_orders_that_overflow(alpha: float, tier: str, rng: np.random.Generator) -> None:
    """The sum has no double, its logarithm has."""
    context = oracle.mpmath.MPContext()
    context.prec = 400
    for size in (3, 300):
        p, q = (oracle.simplex(size, rng) for _ in range(2))
        powers = [alpha * context.log(u) + (1 - context.mpf(alpha)) * context.log(v) for u, v in zip(p, q, strict=True)]
        top = max(powers)
        total = context.fsum(context.mpf(v) for v in p)
        right = (top + context.log(context.fsum(context.exp(v - top) for v in powers) / total)) / (alpha - 1)
        assert float(fk.renyi_divergence(p, q, alpha)) == pytest.approx(float(right), rel=8 * EPS["float64"])


# Other forms ------------------------------------------------------------------------------------------------------


def stored(probabilities: np.ndarray, form: str, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """What holds a distribution in some form; logits are shifted by some number."""
    with np.errstate(divide="ignore"):
        x = probabilities if form == "probs" else np.log(probabilities)
    return (x + (rng.uniform(-20, 20) if form == "logits" else 0)).astype(dtype)


def exact_distribution(x: np.ndarray, form: str, temperature: float) -> list[Any]:
    """The probabilities that a row stands for."""
    numbers = [mp.mpf(v) for v in x.astype(float).tolist()]
    if form == "probs":
        return numbers
    exps = [mp.exp(v / mp.mpf(temperature)) for v in numbers]
    total = mp.fsum(exps) if form == "logits" else 1
    return [e / total for e in exps]


@pytest.mark.parametrize("form", ["log_probs", "logits"])
@pytest.mark.parametrize("size", [5, 300])
@dtypes
def test_entropies_of_logs(dtype: str, size: int, form: str, tier: str, rng: np.random.Generator) -> None:
    for alpha in (0.0, 0.3, 1 - 1e-9, 1.0, 2.0, 7.0):
        for temperature in (1.0, 0.7) if form == "logits" else (1.0,):
            p = oracle.simplex(size, rng)
            p[: size // 4] = 0
            x = stored(p, form, dtype, rng)
            row = exact_distribution(x, form, temperature)
            for name in ("tsallis_entropy", "renyi_entropy"):
                right = getattr(oracle, name)(row, alpha)
                got = getattr(fk, name)(x, alpha, given=form, temperature=temperature)
                budget = EPS[dtype] * (2 if dtype == "float32" else 32)
                assert abs(mp.mpf(float(got)) - right) <= budget * abs(right), (name, alpha, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("apart", [0, 1e-2, 1e-6, "smallest"])
@pytest.mark.parametrize("size", [5, 300])
@dtypes
def test_divergences_of_logits(
    dtype: str, size: int, apart: Any, temperature: float, tier: str, rng: np.random.Generator
) -> None:
    """Of every scale; the rounding of the logs of the sums, the same for all classes, is taken off again."""
    if apart == "smallest":
        apart = 2e-6 if dtype == "float32" else 3e-12
    for alpha in (0.0, 0.3, 1 - 1e-9, 1.0, 2.0, 7.0):
        x = (2 * rng.normal(size=size)).astype(dtype)
        y = (x + apart * rng.normal(size=size) + 3 if apart else 2 * rng.normal(size=size)).astype(dtype)
        p, q = (exact_distribution(v, "logits", temperature) for v in (x, y))
        d = oracle.alpha_divergence(p, q, alpha)
        t = mp.mpf(alpha) * d
        c = mp.mpf(alpha) - 1
        right = {"alpha": d, "tsallis": t, "renyi": mp.log1p(c * t) / c if c else t}
        for name, exact in right.items():
            got = getattr(fk, f"{name}_divergence")(x, y, alpha, given="logits", temperature=temperature)
            if exact > float(np.finfo(dtype).max):
                assert got == INF
                continue
            budget = EPS[dtype] * (1 if dtype == "float32" else 32)
            assert abs(mp.mpf(float(got)) - exact) <= budget * max(abs(exact), oracle.SMALLEST_DIVERGENCE[dtype]), (
                name, alpha
            )


PAIRS = [("probs", "logits"), ("logits", "probs"), ("probs", "log_probs")]
PAIRS += [("log_probs", "logits"), ("log_probs", "log_probs")]


@pytest.mark.parametrize("forms", PAIRS, ids="-".join)
@pytest.mark.parametrize("size", [5, 300])
@dtypes
def test_divergences_of_mixed_pairs(
    dtype: str, size: int, forms: tuple[str, str], tier: str, rng: np.random.Generator
) -> None:
    """Within 8 eps of the result and of its parts, and of the logs where these are rounded."""
    for alpha in (0.0, 0.3, 1.0, 2.0):
        p, q = oracle.simplex(size, rng), oracle.simplex(size, rng)
        x, y = stored(p, forms[0], dtype, rng), stored(q, forms[1], dtype, rng)
        rows = exact_distribution(x, forms[0], 1), exact_distribution(y, forms[1], 1)
        total, gap = mp.fsum(rows[0]), mp.fsum(rows[0]) - mp.fsum(rows[1])
        d = oracle.alpha_divergence(*rows, alpha)
        t = mp.mpf(alpha) * d + gap
        c = mp.mpf(alpha) - 1
        right = {"alpha": d, "tsallis": t, "renyi": mp.log1p(c * t / total) / c if c else t / total}
        rounding = 2.0**-52 * 8 * max(abs(math.log(float(v))) for row in rows for v in row)
        for name, exact in right.items():
            got = getattr(fk, f"{name}_divergence")(x, y, alpha, given=forms)
            parts = abs(exact) + abs(gap) + mp.mpf(alpha) * d
            budget = EPS[dtype] * (1 if dtype == "float32" else 8) * parts + rounding
            assert abs(mp.mpf(float(got)) - exact) <= budget, (name, alpha)


@pytest.mark.parametrize("function", ["renyi_divergence", "tsallis_divergence", "alpha_divergence"])
def test_forms_and_keywords_agree_with_the_reference(function: str, rng: np.random.Generator) -> None:
    """Masks, axes, broadcasting and temperatures, in every form."""
    ours, theirs = getattr(fk, function), getattr(reference, function)
    for forms in [(a, b) for a in ("probs", "log_probs", "logits") for b in ("probs", "log_probs", "logits")]:
        for shape, other in [((6, 5), (6, 5)), ((4, 1, 300), (300,)), ((3, 40), (1, 40))]:
            arrays = []
            for form, size in zip(forms, (shape, other), strict=True):
                v = rng.gamma(0.7, size=size)
                v[rng.random(size) < 0.2] = 0
                arrays.append(stored(v / v.sum(), form, "float64", rng))
            options: dict[str, Any] = {"given": forms, "normalize": bool(rng.integers(2))}
            options["temperature"] = tuple(1.7 if form == "logits" else 1.0 for form in forms)
            options["where"] = rng.random(shape[-1]) < 0.8
            options["axis"] = [-1, 0, None][rng.integers(3)]
            for alpha in (0.0, 0.4, 1.0, 2.5):
                got, right = ours(*arrays, alpha, **options), theirs(*arrays, alpha, **options)
                np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-12, err_msg=str((options, alpha)))


# What the mathematics promises ------------------------------------------------------------------------------------


def drawn_pairs(dtype: str) -> Any:
    """Two rows of one length, zeros and denormals among them, with a sum above 0."""
    width = {"float32": 32, "float64": 64}[dtype]
    elements = st.floats(0, 1, width=width) | st.sampled_from([0.0, 1.0, float(np.finfo(dtype).smallest_subnormal)])
    rows = st.integers(1, 20).flatmap(lambda size: hnp.arrays(dtype, (2, size), elements=elements))
    return rows.filter(lambda v: bool(v.any(axis=1).all()))


@settings(max_examples=60)
@given(drawn_pairs("float64"), st.floats(0, 50), st.floats(0, 50))
def test_monotone_in_alpha(rows: np.ndarray, one: float, other: float) -> None:
    """Renyi's divergence does not fall, his entropy does not rise; none is negative; a mirror image of alpha's."""
    low, high = sorted((one, other))
    p, q = rows
    slack = 1 + 64 * EPS["float64"]
    first, second = (fk.renyi_divergence(p, q, alpha, normalize=True) for alpha in (low, high))
    tiny = 1e-30    # of rows that differ by a factor, which the sums round
    assert 0 <= first <= second * slack + tiny
    assert second <= fk.renyi_divergence(p, q, INF, normalize=True) * slack + tiny
    assert fk.renyi_entropy(p, low, normalize=True) * slack >= fk.renyi_entropy(p, high, normalize=True) >= 0
    assert fk.tsallis_divergence(p, q, high, normalize=True) >= 0
    assert fk.tsallis_entropy(p, high, normalize=True) >= 0
    for alpha in (low, high):
        left, right = fk.alpha_divergence(p, q, alpha), fk.alpha_divergence(q, p, 1 - alpha)
        assert left >= 0
        # 1 - alpha is rounded: where q is 0, a term is q / alpha
        assert left == right or left == pytest.approx(right, rel=1e-9 + 1e-15 / max(alpha, 1e-16) + 1e-14 * alpha)


@settings(max_examples=40)
@given(drawn_pairs("float32"), st.floats(0, 5))
def test_equal_rows(rows: np.ndarray, alpha: float) -> None:
    p = rows[0]
    for normalize in (False, True):
        assert fk.renyi_divergence(p, p, alpha, normalize=normalize) == 0
        assert fk.tsallis_divergence(p, p, alpha, normalize=normalize) == 0
        assert fk.alpha_divergence(p, p, alpha, normalize=normalize) == 0
    q = (p * 2).astype("float32")
    assert fk.tsallis_divergence(p, q, alpha, normalize=True) == 0 or (p > 1e38).any()
    x = np.log(p[p > 0])
    assert fk.renyi_divergence(x, x, alpha, given="logits") == 0


@sizes
def test_against_other_divergences(size: int, tier: str, rng: np.random.Generator) -> None:
    """By the oracle: at 1/2 twice Bhattacharyya's distance, at 2 the log of 1 + chi-square, at 1 KL."""
    p, q = (oracle.simplex(size, rng) for _ in range(2))
    u, v = oracle.divided(p.tolist()), oracle.divided(q.tolist())
    bhattacharyya = -mp.log(mp.fsum(mp.sqrt(a * b) for a, b in zip(u, v, strict=True)))
    chi2 = mp.fsum((a - b) ** 2 / b for a, b in zip(u, v, strict=True))
    for got, right in [
        (fk.renyi_divergence(p, q, 0.5, normalize=True), 2 * bhattacharyya),
        (fk.renyi_divergence(p, q, 2, normalize=True), mp.log1p(chi2)),
        (fk.tsallis_divergence(p, q, 2, normalize=True), chi2),
        (fk.alpha_divergence(p, q, 2, normalize=True), chi2 / 2),
        (fk.renyi_divergence(p, q, 1, normalize=True), oracle.kl_divergence(u, v)),
    ]:
        assert abs(mp.mpf(float(got)) - right) <= 8 * EPS["float64"] * right
    for alpha, right in ((1, fk.generalized_kl(p, q)), (0, fk.generalized_kl(q, p))):
        assert fk.alpha_divergence(p, q, alpha) == pytest.approx(float(right), rel=16 * EPS["float64"])
    assert fk.tsallis_entropy(p, 1) == pytest.approx(float(fk.entropy(p)), rel=16 * EPS["float64"])


# Arguments --------------------------------------------------------------------------------------------------------


def test_orders_that_are_none() -> None:
    p = [0.5, 0.5]
    for alpha in ("1", None, 1j, [1.0], True):
        with pytest.raises(TypeError, match="alpha takes a number"):
            fk.renyi_entropy(p, alpha)  # type: ignore[arg-type]
    for alpha in (-0.1, math.nan, -INF):
        for function in (fk.renyi_entropy, fk.tsallis_entropy):
            with pytest.raises(ValueError, match=r"alpha takes .*>= 0"):
                function(p, alpha)
        for pair in (fk.renyi_divergence, fk.tsallis_divergence):
            with pytest.raises(ValueError, match=r"alpha takes .*>= 0"):
                pair(p, p, alpha)
    for alpha in (INF, -INF, math.nan):
        with pytest.raises(ValueError, match="alpha takes a finite number"):
            fk.alpha_divergence(p, p, alpha)
    for refused in (fk.tsallis_entropy,):
        with pytest.raises(ValueError, match="alpha takes a finite number >= 0, not inf"):
            refused(p, INF)
    with pytest.raises(ValueError, match="alpha takes a finite number >= 0, not inf"):
        fk.tsallis_divergence(p, p, INF)
    assert fk.renyi_entropy(p, np.float32(2)) == fk.renyi_entropy(p, 2)


def test_forms_that_are_none() -> None:
    p = [0.5, 0.5]
    with pytest.raises(ValueError, match="given takes 'probs', 'log_probs', 'logits', not 'logs'"):
        fk.renyi_entropy(p, 2, given="logs")
    for forms in (("probs",), ("probs", "probs", "probs"), ("probs", "logs")):
        with pytest.raises(ValueError, match="given takes"):
            fk.renyi_divergence(p, p, 2, given=forms)  # type: ignore[arg-type]
    for temperature in (0, -1, math.nan, INF):
        with pytest.raises(ValueError, match="temperature takes a positive finite number"):
            fk.renyi_entropy(p, 2, given="logits", temperature=temperature)
    with pytest.raises(TypeError, match="temperature takes a positive number"):
        fk.renyi_entropy(p, 2, given="logits", temperature="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature=2 for p, which holds probs: only logits have one"):
        fk.renyi_entropy(p, 2, temperature=2)
    with pytest.raises(ValueError, match="temperature=2 for q, which holds log_probs: only logits have one"):
        fk.alpha_divergence(p, p, 2, given=("logits", "log_probs"), temperature=(2, 2))
    assert fk.alpha_divergence(p, p, 2, given=("logits", "log_probs"), temperature=(2, 1)) >= 0
