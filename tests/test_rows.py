"""score: every column against the oracle, its edges, its arguments, and the same bits however a row comes."""

from __future__ import annotations

import builtins
import itertools
import math
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from conftest import TIERS, generator
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import mp

import fastkl as fk
from fastkl import reference
from fastkl.registry import STATISTICS

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
BUDGETS = {statistic.name: statistic.budget for statistic in STATISTICS if statistic.budget is not None}
EVERY = [statistic.name for statistic in STATISTICS]
OF_ONE = [statistic.name for statistic in STATISTICS if "reference" not in statistic.needs]
EXACT = ("argmax", "correct", "rank", "agree", "top_k")


# The digits -------------------------------------------------------------------------------------------------------


def exact_of_one(x: list[float], label: int, k: int) -> dict[str, Any]:
    """Each statistic of one row by definition; the order is that of Python's stable sort."""
    order = sorted(range(len(x)), key=lambda j: -x[j])
    log_p = oracle.log_softmax(x)
    entropy = oracle.entropy_of_logits(x)
    return {
        "lse": oracle.logsumexp(x),
        "loss": oracle.softmax_cross_entropy(x, label) if math.isfinite(x[label]) else mp.inf,
        "entropy": entropy,
        "perplexity": mp.exp(entropy),
        "max_prob": mp.exp(log_p[order[0]]),
        "argmax": order[0],
        "correct": order[0] == label,
        "rank": 1 + sum(v > x[label] for v in x),
        "margin": mp.mpf(x[order[0]]) - mp.mpf(x[order[1]]) if len(x) > 1 else mp.inf,
        "top_k": order[:k],
        "top_k_log_prob": [log_p[j] for j in order[:k]],
    }


def exact_of_two(a: list[float], b: list[float]) -> dict[str, Any]:
    """The divergences of softmax(b), the reference, and softmax(a)."""
    log_p, log_r = oracle.log_softmax(a), oracle.log_softmax(b)
    kl = reverse = js = mp.mpf(0)
    for u, v in zip(log_p, log_r, strict=True):
        p, r = mp.exp(u), mp.exp(v)
        log_mean = mp.log((p + r) / 2) if p or r else mp.mpf(0)
        if r:
            kl += r * (v - u)
            js += r * (v - log_mean) / 2
        if p:
            reverse += p * (u - v)
            js += p * (u - log_mean) / 2
    return {"kl": kl, "reverse_kl": reverse, "js": js, "agree": a.index(max(a)) == b.index(max(b))}


def bound(name: str, right: Any, x: list[float], label: int, dtype: str) -> Any:
    """The error that the registry allows."""
    budget = BUDGETS["top_k" if name == "top_k_log_prob" else name]
    eps, multiple = float(np.finfo(dtype).eps), budget.multiple(dtype)
    if not mp.isfinite(right):
        return 0
    match budget.scale:
        case "max1":
            unit = multiple * max(1, abs(right))
        case "relative":
            least = oracle.SMALLEST_DIVERGENCE[dtype] if name in ("kl", "reverse_kl", "js") else 0
            unit = multiple * max(abs(right), least)
        case "relative+d/2":
            gap = oracle.gap(x, label if name == "loss" else x.index(max(x)))
            unit = (multiple + gap / 2) * max(abs(right), oracle.SMALLEST_LOSS[dtype])
        case "exp":
            unit = (multiple + oracle.gap(x, x.index(max(x))) / 2) * right * max(1, mp.log(right))
        case other:
            raise AssertionError(other)
    return eps * unit + float(np.finfo(dtype).smallest_subnormal) / 2


def exact(x: np.ndarray, labels: np.ndarray, y: np.ndarray | None, k: int) -> list[dict[str, Any]]:
    """Each row's statistics."""
    rows = []
    for i, row in enumerate(x):
        values = row.astype(np.float64).tolist()
        rows.append(exact_of_one(values, int(labels[i]), k))
        if y is not None:
            rows[-1] |= exact_of_two(values, y[i].astype(np.float64).tolist())
    return rows


def assert_right(
    scores: fk.Scores, x: np.ndarray, labels: np.ndarray, right: list[dict[str, Any]], dtype: str, kinds: Any = None
) -> None:
    """Compare every column with the oracle's."""
    failures = []
    for i, row in enumerate(x):
        values = row.astype(np.float64).tolist()
        for name, column in scores.items():
            where = f"{name} of row {i} ({kinds[i] if kinds else values[:10]})"
            if name in EXACT:
                if column[i].tolist() != right[i][name]:
                    failures.append(f"{where}: {column[i]!r}, not {right[i][name]!r}")
                continue
            assert column.dtype == dtype
            truth = right[i][name] if isinstance(right[i][name], list) else [right[i][name]]
            bounds = [bound(name, one, values, int(labels[i]), dtype) for one in truth]
            worst = max(oracle.errors_over_budget(column[i], truth, bounds))
            if not worst <= 1:
                failures.append(f"{where}: {worst:.3g} of the budget: {column[i]!r}, not {[float(v) for v in truth]}")
    assert not failures, "\n".join(failures)


SIZES = (1, 2, 3, 10, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097)
# The oracle takes 10 s for one of these, and 30 s for a pair: one of each.
LONG = [("float32", 131_073), ("float64", 131_071)]


def near(x: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Logits so far from x, and shifted."""
    return x + distance * rng.normal(size=x.shape) + rng.choice([0.0, 3.0, -100.0])


@lru_cache(maxsize=2)
def drawn(dtype: str, size: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray | None, list[dict[str, Any]]]:
    """Kinds of rows, logits, labels, a reference's logits and their statistics, once for all tiers."""
    rng = generator(f"score-{dtype}-{size}")
    rows = list(oracle.logits(size, dtype, rng))
    kept = len(rows) if size <= 1000 else 2 if size < 10_000 else 1
    rows = [rows[i] for i in rng.permutation(len(rows))[:kept]]
    x = np.stack([row.astype(dtype) for _, row in rows])
    labels = np.array([oracle.label_for(row, rng) for row in x])
    scales = [3.0, 0.3, 1e-2, 1e-3, 1e-4, *([1e-6, 1e-8, 1e-10] if dtype == "float64" else [])]
    y = np.stack([near(row, rng.choice(scales), rng) for row in x]).astype(dtype)
    y[rng.random(y.shape) < 0.02] = -np.inf
    y[:, 0] = 1.0
    if size == 131_071:
        y = None
    return [kind for kind, _ in rows], x, labels, y, exact(x, labels, y, min(size, 5))


@pytest.mark.parametrize(
    ("dtype", "size", "tier"),
    [(d, s, t) for d, s in [*itertools.product(["float32", "float64"], SIZES), *LONG] for t in TIERS],
    indirect=["tier"],
)
def test_budget(dtype: str, size: int, tier: str) -> None:
    kinds, x, labels, y, right = drawn(dtype, size)
    stats = OF_ONE if y is None else EVERY
    scores = fk.score(x, labels, y, stats=stats, k=min(size, 5))
    assert list(scores) == [name for s in STATISTICS if s.name in stats for name in s.columns or (s.name,)]
    assert_right(scores, x, labels, right, dtype, kinds)


@lru_cache(maxsize=2)
def at_every_scale(dtype: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Distances, and pairs of rows that far apart: from 10 down to the smallest, with shifts between them."""
    rng = generator(f"scale-{dtype}-{size}")
    smallest = math.sqrt(oracle.SMALLEST_DIVERGENCE[dtype])
    distances = np.geomspace(10, 3 * smallest, 15)
    x = rng.normal(size=(15, size))
    y = x + distances[:, None] * rng.normal(size=(15, size)) + np.resize([0.0, 1.0, -2.0], 15)[:, None]
    x, y = x.astype(dtype), y.astype(dtype)
    return distances, x, y, exact(x, np.zeros(15, int), y, 1)


@pytest.mark.parametrize(
    ("dtype", "size", "tier"),
    [(d, s, t) for d in ("float32", "float64") for s in (2, 10, 100, 300, 1000) for t in TIERS],
    indirect=["tier"],
)
def test_divergences_at_every_scale(dtype: str, size: int, tier: str) -> None:
    distances, x, y, right = at_every_scale(dtype, size)
    scores = fk.score(x, None, y, stats=["kl", "reverse_kl", "js"])
    assert_right(scores, x, np.zeros(15, int), right, dtype, [f"{d:.1e}" for d in distances])
    assert scores["kl"][0] > 0.1
    assert scores["kl"].min() < 1e4 * oracle.SMALLEST_DIVERGENCE[dtype] or dtype == "float32"


@dtypes
def test_any_short_row(dtype: str) -> None:
    width = {"float32": 32, "float64": 64}[dtype]
    tiny = float(np.finfo(dtype).smallest_subnormal)
    elements = st.floats(-30, 30, width=width) | st.sampled_from([0.0, -0.0, 1.0, tiny, -tiny, -np.inf, 30.0])

    @given(
        st.integers(1, 40).flatmap(lambda n: st.tuples(*[hnp.arrays(dtype, n, elements=elements)] * 2)),
        st.integers(0, 39),
        st.sampled_from([0.0, 1e-2, 1e-6]),
        st.booleans(),
    )
    def check(pair: tuple[np.ndarray, np.ndarray], label: int, step: float, close: bool) -> None:
        x, other = pair
        if np.isneginf(x).all():
            return
        y = other
        if close or np.isneginf(y).all():
            with np.errstate(invalid="ignore", under="ignore"):
                y = x + np.asarray(step * np.where(np.isfinite(other), other, 0), dtype)
        label, k = label % x.size, min(x.size, 5)
        scores = fk.score(x[None], [label], y[None], stats=EVERY, k=k)
        labels = np.array([label])
        assert_right(scores, x[None], labels, exact(x[None], labels, y[None], k), dtype)

    check()


@pytest.mark.parametrize("size", [1, 2, 10, 64, 100, 256, 257, 1000, 5000])
@dtypes
def test_equal_rows(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    x = (10 * rng.normal(size=(20, size))).astype(dtype)
    x[rng.random(x.shape) < 0.1] = -np.inf
    x[:, 0] = 2.0
    scores = fk.score(x, None, x, stats=["kl", "reverse_kl", "js", "agree"])
    assert scores["agree"].all()
    for name in ("kl", "reverse_kl", "js"):
        assert not scores[name].any(), name
    scores = fk.score(x, None, np.nextafter(x, np.array(100, dtype)), stats=["kl", "reverse_kl", "js"])
    assert all((column >= 0).all() for column in scores.values())


@pytest.mark.parametrize("size", [1, 2, 10, 100, 256, 257, 1000, 4097, 131_071, 131_072, 131_073])
@dtypes
def test_the_functions_own_bits(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    rows = 300 if size <= 1000 else 20 if size < 10_000 else 3
    x = (3 * rng.normal(size=(rows, size))).astype(dtype)
    labels = np.where(rng.random(rows) < 0.5, x.argmax(axis=1), rng.integers(size, size=rows))
    x[0, rng.integers(size)], x[1, rng.integers(size)], x[2] = np.nan, np.inf, -np.inf
    scores = fk.score(x, labels)
    assert scores["lse"].tobytes() == fk.logsumexp(x).tobytes()
    assert scores["loss"].tobytes() == fk.softmax_cross_entropy(x, labels).tobytes()
    assert scores["entropy"].tobytes() == fk.entropy(x, given="logits").tobytes()


@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
@dtypes
def test_given(kind: str, dtype: str, rng: np.random.Generator) -> None:
    """Probabilities count as their logs, whatever they sum to."""
    p, q = (scale * rng.dirichlet(np.full(30, 0.5), 40) for scale in (1.0, 3.0))
    p[0, 1:], q[:, 3] = 0.0, 0.0
    a, b = (v.astype(dtype) for v in (p, q))
    if kind != "probs":
        with np.errstate(divide="ignore"):
            a, b = np.log(a), np.log(b)
    labels = rng.integers(30, size=40)
    got = fk.score(a, labels, b, given=kind)
    assert_same(got, reference.score(a, labels, b, given=kind), dtype, 60)
    mixed = fk.score(a, labels, np.log(np.where(q > 0, q, 1)).astype(dtype), given=(kind, "logits"))
    assert set(mixed) == set(got)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4, 1e-6])
@dtypes
def test_divergences_of_probabilities(dtype: str, distance: float, rng: np.random.Generator) -> None:
    p = rng.dirichlet(np.full(50, 2.0), 20)
    q = p * (1 + distance * rng.uniform(-0.9, 0.9, p.shape))
    p, q = p.astype(dtype), (2 * q).astype(dtype)
    got = fk.score(p, None, q, stats=["kl", "reverse_kl", "js"], given="probs")
    eps = float(np.finfo(dtype).eps)
    for i in range(20):
        rows = [[mp.log(mp.mpf(v)) for v in row.astype(np.float64).tolist()] for row in (p[i], q[i])]
        right = exact_of_two(*rows)
        for name, column in got.items():
            assert abs(column[i] - right[name]) <= 32 * eps * right[name], (name, column[i], float(right[name]))


def assert_same(got: Any, right: dict[str, np.ndarray], dtype: str, multiple: float) -> None:
    assert list(got) == list(right)
    for name, column in got.items():
        assert column.dtype == right[name].dtype, name
        assert column.shape == right[name].shape, name
        if column.dtype.kind == "f":
            eps = multiple * np.finfo(dtype).eps
            np.testing.assert_allclose(column, right[name], rtol=eps, atol=eps, err_msg=name)
        else:
            np.testing.assert_array_equal(column, right[name], err_msg=name)


@pytest.mark.parametrize("temperature", [2.0, 0.3, (0.7, 5), np.float32(1.5)])
@dtypes
def test_temperature(dtype: str, temperature: Any, rng: np.random.Generator) -> None:
    """The same bits as of logits divided before the call."""
    x, y = (4 * rng.normal(size=(2, 50, 30))).astype(dtype)
    labels = rng.integers(30, size=50)
    t, u = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    got = fk.score(x, labels, y, stats=EVERY, temperature=temperature)
    kind = np.dtype(dtype).type
    right = fk.score(x / kind(t), labels, y / kind(u), stats=EVERY)
    assert {name: c.tobytes() for name, c in got.items()} == {name: c.tobytes() for name, c in right.items()}


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8", "uint64", "bool"])
def test_narrow_types(storage: str, rng: np.random.Generator) -> None:
    kind = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(storage, storage))
    wide = np.float32 if "float" in storage else np.float64
    x, y = np.abs(5 * rng.normal(size=(2, 20, 40))).astype(kind)
    labels = rng.integers(40, size=20).astype(np.uint8)
    got = fk.score(x, labels, y, stats=EVERY)
    right = fk.score(x.astype(wide), labels, y.astype(wide), stats=EVERY)
    for name, column in got.items():
        assert column.dtype == right[name].dtype
        assert column.tobytes() == right[name].tobytes(), name


def test_mixed_types(rng: np.random.Generator) -> None:
    """The statistics of one row are of its own type, those of two of the wider one."""
    x, y = rng.normal(size=(7, 9)).astype(np.float32), rng.normal(size=(7, 9))
    scores = fk.score(x, np.arange(7), y)
    assert {name for name, c in scores.items() if c.dtype == np.float64} == {"kl", "reverse_kl", "js"}
    assert scores["entropy"].tobytes() == fk.entropy(x, given="logits").tobytes()
    wide = fk.score(x.astype(np.float64), None, y, stats=["kl", "js"])
    assert scores["kl"].tobytes() == wide["kl"].tobytes()
    assert scores["js"].tobytes() == wide["js"].tobytes()


# The same bits ----------------------------------------------------------------------------------------------------


def bits(scores: fk.Scores, rows: Any = slice(None)) -> dict[str, bytes]:
    return {name: column[rows].tobytes() for name, column in scores.items()}


@pytest.mark.parametrize("size", [1, 3, 10, 63, 64, 65, 255, 256, 257, 1000, 4097, 131_073])
@dtypes
def test_however_a_row_comes(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    n = 200 if size <= 300 else 20 if size < 10_000 else 3
    x, y = (3 * rng.normal(size=(2, n, size))).astype(dtype)
    y[n // 2 :] = near(x[n // 2 :], 1e-3, rng)
    odd = rng.choice(n, n // 3, replace=False)
    x[odd, rng.integers(size, size=odd.size)] = rng.choice([-np.inf, np.nan, np.inf, 60.0], odd.size)
    x[0], y[-1, 0] = -np.inf, np.nan
    labels = rng.integers(size, size=n)
    k = min(size, 5)

    def score(a: Any, b: Any, c: Any, **keywords: Any) -> fk.Scores:
        return fk.score(a, b, c, stats=EVERY, k=k, **keywords)

    whole = score(x, labels, y, n_threads=1)
    for i in range(n):
        alone = score(x[i].copy(), labels[i], y[i].copy())
        assert bits(alone, ()) == bits(whole, i), f"row {i} alone"
    for n_threads in (2, 3, 8):
        assert bits(score(x, labels, y, n_threads=n_threads)) == bits(whole), f"{n_threads} threads"
    wide = np.full((n, 2 * size + 1), np.nan, dtype)
    wide[:, 1::2] = x
    assert bits(score(wide[:, 1::2], labels, y)) == bits(whole), "every second"
    assert bits(score(np.asfortranarray(x), labels, np.asfortranarray(y))) == bits(whole), "Fortran"
    swapped = [v.astype(v.dtype.newbyteorder()) for v in (x, labels, y)]
    assert bits(score(*swapped)) == bits(whole), "byte-swapped"
    assert bits(score(x[::-1], labels[::-1], y[::-1]), slice(None, None, -1)) == bits(whole), "rows reversed"
    for name in EVERY:    # asked for alone
        alone = fk.score(x, labels, y, stats=[name], k=k)
        assert all(c.tobytes() == whole[column].tobytes() for column, c in alone.items()), name
    one = score(x, labels, y[0])
    assert bits(one) == bits(score(x, labels, np.tile(y[0], (n, 1)))), "one reference row"
    if tier == "avx2" and "avx512" in fk._kernels.supported():
        with fk._kernels.use("avx512"):
            assert bits(score(x, labels, y)) == bits(whole), "AVX-512 and AVX2 differ"


# Edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 64, 300, 5000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@dtypes
def test_rows_that_hold_no_distribution(dtype: str, bad: float, size: int, tier: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, size)).astype(dtype)
    y = x + 0.5
    if bad == -np.inf:
        x[1] = bad
    else:
        x[1, rng.integers(size)] = bad
    labels = [0, size - 1, size // 2]
    for k, stats in ((1, EVERY), (min(3, size), EVERY)):
        scores = fk.score(x, labels, y, stats=stats, k=k)
        assert scores["lse"][1] == bad or np.isnan(bad)
        for name, column in scores.items():
            if column.dtype == bool:
                assert not column[1]
            elif column.dtype == np.int64:
                assert (column[1] == -1).all(), name
            elif name != "lse":
                assert np.isnan(column[1]).all(), name
            assert np.isfinite(column[[0, 2]]).all() or (name == "margin" and size == 1), name
        swapped = fk.score(y, labels, x)
        for name in ("kl", "reverse_kl", "js"):
            assert np.isnan(swapped[name]).tolist() == [False, True, False]
        assert swapped["agree"].tolist() == [True, False, True]
    for name in EVERY:
        for column, values in fk.score(x, labels, y, stats=[name], k=1).items():
            np.testing.assert_array_equal(values, fk.score(x, labels, y, stats=EVERY, k=1)[column])


@pytest.mark.parametrize("size", [4, 300, 5000])
@dtypes
def test_infinite_divergences(dtype: str, size: int, tier: str) -> None:
    x, y = np.zeros((2, 4, size), dtype)
    x[0, 2] = y[1, 2] = x[2, 3] = y[2, 3] = -np.inf    # in the model, in the reference, in both
    x[3, 1:] = y[3, :-1] = -np.inf                     # nothing in common
    scores = fk.score(x, None, y)
    assert scores["kl"].tolist() == [np.inf, pytest.approx(math.log(size / (size - 1))), 0, np.inf]
    assert scores["reverse_kl"].tolist() == [pytest.approx(math.log(size / (size - 1))), np.inf, 0, np.inf]
    assert np.isfinite(scores["js"]).all()
    assert scores["js"][3] == pytest.approx(math.log(2), rel=1e-6)
    x[0], x[0, 0] = -2000, 0
    y[0], y[0, 0] = -2000, 0
    y[0, 1] = -np.inf
    assert fk.score(y[:1], None, x[:1])["kl"].tolist() == [np.inf], "exp(-2000) is still a probability"


@pytest.mark.parametrize("size", [6, 300, 5000])
@dtypes
def test_ties(dtype: str, size: int, tier: str) -> None:
    x = np.zeros((2, size), dtype)
    x[0, [2, 5]] = 1.0
    x[0, 1], x[1, 0] = -0.0, -0.0
    scores = fk.score(x, [5, size - 1], stats=EVERY[:10], k=4)
    assert scores["argmax"].tolist() == [2, 0]
    assert scores["correct"].tolist() == [False, False]
    assert scores["rank"].tolist() == [1, 1]
    assert scores["margin"].tolist() == [0, 0]
    assert scores["top_k"].tolist() == [[2, 5, 0, 1], [0, 1, 2, 3]]
    assert fk.score(x, [0, 0], stats=["rank"])["rank"].tolist() == [3, 1]


@pytest.mark.parametrize("size", [10, 300, 5000, 140_000])
@pytest.mark.parametrize("how", ["random", "ascending", "descending", "few values"])
@dtypes
def test_top_k(dtype: str, how: str, size: int, tier: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, size))
    x = {"random": x, "ascending": np.sort(x), "descending": -np.sort(x), "few values": np.round(x)}[how].astype(dtype)
    right = np.argsort(-x, axis=1, kind="stable")
    log_p = fk.log_softmax(x)
    for k in sorted({1, 2, 5, 10, min(size, 70), min(size, 5000)}):
        scores = fk.score(x, stats=["top_k"], k=k)
        np.testing.assert_array_equal(scores["top_k"], right[:, :k])
        np.testing.assert_allclose(
            scores["top_k_log_prob"], np.take_along_axis(log_p, right[:, :k], 1), rtol=20 * np.finfo(dtype).eps
        )


def test_shapes() -> None:
    x = np.zeros((2, 3, 4))
    scores = fk.score(x, np.zeros((2, 3), int), x[0], stats=EVERY, k=2)
    assert {c.shape for n, c in scores.items() if not n.startswith("top_k")} == {(2, 3)}
    assert scores["top_k"].shape == scores["top_k_log_prob"].shape == (2, 3, 2)
    assert (len(scores), scores.rows) == (len(EVERY) + 1, 6)
    assert fk.score(x[0, 0])["entropy"].shape == ()
    assert float(fk.score(x[0, 0], 1)["loss"]) == pytest.approx(math.log(4))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 5)])
def test_nothing(shape: tuple[int, ...]) -> None:
    scores = fk.score(np.zeros(shape), None, np.zeros(shape))
    right = reference.score(np.zeros(shape), None, np.zeros(shape))
    assert {n: (c.shape, c.dtype) for n, c in scores.items()} == {n: (c.shape, c.dtype) for n, c in right.items()}
    for name, column in scores.items():
        np.testing.assert_array_equal(column, right[name])
    assert "Scores of" in repr(scores)


@dtypes
def test_reference_twin(dtype: str, rng: np.random.Generator) -> None:
    x, y = (3 * rng.normal(size=(2, 4, 5, 30))).astype(dtype)
    x[0, 0, 0], x[0, 1, 1], x[0, 2], y[1, 1, 1] = np.nan, np.inf, -np.inf, np.nan
    labels = rng.integers(30, size=(4, 5))
    for keywords in ({}, {"stats": EVERY, "k": 3}, {"temperature": (2.0, 3.0)}):
        assert_same(fk.score(x, labels, y, **keywords), reference.score(x, labels, y, **keywords), dtype, 100)


# Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"stats": ["los"]}, ValueError, "'los'; there are lse, loss"),
        ({"stats": "loss"}, TypeError, "sequence of names"),
        ({"stats": ["kl"]}, ValueError, "'kl' needs reference"),
        ({"labels": None, "stats": ["rank"]}, ValueError, "'rank' needs labels"),
        ({"stats": ["lse", "lse"]}, ValueError, "'lse' twice"),
        ({"given": "prob"}, ValueError, "given takes 'logits', 'probs', 'log_probs', not 'prob'"),
        ({"given": ("probs",)}, ValueError, "given takes one for both or a pair"),
        ({"temperature": 0}, ValueError, "positive finite number, not 0"),
        ({"temperature": -1.0}, ValueError, "positive"),
        ({"temperature": math.nan}, ValueError, "positive"),
        ({"temperature": (1.0, math.inf)}, ValueError, "positive finite"),
        ({"temperature": "2"}, TypeError, "positive number, not '2'"),
        ({"stats": ["top_k"], "k": 4}, ValueError, "k=4 .* number of classes, 3"),
        ({"stats": ["top_k"], "k": 0}, ValueError, "k=0"),
        ({"stats": ["top_k"], "k": 1.5}, TypeError, "k takes a positive int"),
        ({"reference": np.zeros((3, 3))}, ValueError, r"reference of shape \(3, 3\) .* \(2, 3\)"),
        ({"reference": np.zeros((2, 3), complex)}, TypeError, "reference has dtype complex128"),
        ({"logits": np.zeros((2, 3), object)}, TypeError, "logits has dtype object"),
        ({"logits": 1.0, "labels": None}, ValueError, "0-d"),
        ({"labels": [0]}, ValueError, r"labels has shape \(1,\)"),
        ({"labels": [0.0, 1.0]}, TypeError, "labels has dtype float64"),
        ({"labels": [0, 3]}, IndexError, "label 3 in row 1 is out of range for 3 classes"),
        ({"labels": [0, -1], "stats": ["lse"]}, IndexError, "label -1 in row 1"),
        ({"labels": np.array([2**64 - 1, 0], np.uint64)}, IndexError, "label 18446744073709551615 in row 0"),
        ({"n_threads": 0}, ValueError, "n_threads"),
    ],
)
def test_refused(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": np.zeros((2, 3)), "labels": [0, 1], **keywords}
    with pytest.raises(error, match=message):
        fk.score(**arguments)


def test_temperature_in_the_logits_type() -> None:
    with pytest.raises(ValueError, match="positive finite number, not 1e-60"):
        fk.score(np.zeros(3, np.float32), temperature=1e-60)
    assert fk.score(np.zeros(3), temperature=1e-60)["entropy"] == pytest.approx(math.log(3))


def test_order_of_columns() -> None:
    assert list(fk.score(np.zeros((2, 3)), stats=["margin", "top_k", "lse"], k=1)) == [
        "margin", "top_k", "top_k_log_prob", "lse"
    ]  # fmt: skip
    everything = [s.name for s in STATISTICS if s.by_default]
    assert list(fk.score(np.zeros((2, 3)), [0, 1], np.zeros(3))) == everything
    assert list(fk.score(np.zeros((2, 3)), stats=[])) == []


# The table --------------------------------------------------------------------------------------------------------


def scores_of(rows: int) -> fk.Scores:
    x = np.arange(4.0 * rows).reshape(rows, 4) % 7
    return fk.score(x, np.arange(rows) % 4, stats=["loss", "correct", "argmax", "top_k"], k=2)


def test_mapping() -> None:
    scores = scores_of(3)
    assert list(scores.keys()) == ["loss", "correct", "argmax", "top_k", "top_k_log_prob"]
    assert dict(scores)["loss"] is scores["loss"]
    assert "lse" not in scores
    with pytest.raises(KeyError, match="'lse' is not among the columns loss, correct"):
        scores["lse"]
    with pytest.raises(TypeError):
        scores["loss"] = 1  # type: ignore[index]


def test_prints_as_a_table() -> None:
    lines = repr(scores_of(100)).splitlines()
    assert lines[0] == "Scores of 100 rows"
    assert lines[1].split() == ["row", "loss", "correct", "argmax", "top_k", "top_k_log_prob"]
    assert [line.split()[0] for line in lines[2:]] == [
        "0", "1", "2", "3", "4", "...", "95", "96", "97", "98", "99", "dtype", "mean"
    ]  # fmt: skip
    assert lines[-2].split()[1:] == ["float64", "bool", "int64", "int64", "float64"]
    assert len({line.index("e") if line.startswith("dtype") else 0 for line in lines}) == 2
    assert len(repr(scores_of(10)).splitlines()) == 14
    assert repr(fk.score(np.zeros(3), stats=["margin"])).splitlines()[2].split() == ["0", "0"]


def test_to_pandas_and_arrow() -> None:
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    scores = fk.score(np.arange(24.0).reshape(2, 3, 4), np.zeros((2, 3), int), stats=["loss", "correct", "top_k"], k=2)
    table, frame = scores.to_arrow(), scores.to_pandas()
    assert table.column_names == list(frame.columns) == list(scores)
    assert table.schema.field("top_k").type == pa.list_(pa.int64(), 2)
    assert table.column("loss").to_pylist() == frame["loss"].tolist() == scores["loss"].reshape(-1).tolist()
    assert table.column("top_k").to_pylist() == scores["top_k"].reshape(-1, 2).tolist()
    assert frame["top_k"][5].tolist() == [3, 2]
    assert isinstance(frame, pd.DataFrame)
    assert frame["correct"].dtype == bool
    assert fk.score(np.zeros((0, 3)), stats=["lse", "top_k"], k=2).to_arrow().num_rows == 0


@pytest.mark.parametrize(("library", "extra"), [("pandas", "pandas"), ("pyarrow", "score")])
def test_without_the_library(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == library:
            raise ImportError(name)
        return there(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    scores = scores_of(3)
    with pytest.raises(ImportError, match=rf"pip install fastkl\[{extra}\]"):
        scores.to_pandas() if library == "pandas" else scores.to_arrow()
