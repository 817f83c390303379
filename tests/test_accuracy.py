"""The promise "exact": every result within the registry's budget of a 240-bit oracle, on the very inputs given."""

from __future__ import annotations

import itertools
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

import fastkl as fk
from fastkl import _kernels
from fastkl.registry import DOMINANT_LOGSUMEXP, OPERATIONS, Operation

BY_ID = {operation.id: operation for operation in OPERATIONS}
DTYPES = ("float32", "float64")
SOME_SIZES = (10, 100, 300)
SIZES = (1, 2, 3, 10, 63, 64, 65, 100, 127, 128, 129, 300, 1000, 4095, 4096, 4097, 140_000)
UNITS = ("relative", "absolute-sum", "kl", "overlap", "order")
DIVERGENCES = ("generalized_kl", "kl_divergence[normalize]")

# A row that has been measured: the row, the right results, the errors allowed.
Case = tuple[oracle.Row, list[Any], list[Any]]


@lru_cache(maxsize=2)
def cases(id_: str, dtype: str, size: int) -> list[Case]:
    """Draw rows and find their right results, once for all tiers."""
    operation = BY_ID[id_]
    rng = generator(f"{id_}-{dtype}-{size}")
    rows = oracle.rows_for(operation, size, dtype, rng)
    # The oracle takes about 15 us per element, so of long rows only some kinds are drawn.
    kept = len(rows) if size <= 1000 else 3 if size < 10_000 else 1
    return [measured(operation, rows[i], dtype) for i in rng.permutation(len(rows))[:kept]]


def measured(operation: Operation, row: oracle.Row, dtype: str, pieces: int = 1) -> Case:
    """Return the row with its right results and the errors allowed."""
    right = oracle.exact(operation, row.arguments)
    return row, right, oracle.allowed(operation, row.arguments, right, dtype, pieces)


def assert_within_budget(got: np.ndarray, measured_rows: list[Case], dtype: str) -> None:
    """Compare a batch's results with what is allowed; name the worst row of each kind that fails."""
    assert got.dtype == dtype
    failures = {}
    for result, (row, right, bounds) in zip(got, measured_rows, strict=True):
        fractions = oracle.errors_over_budget(result, right, bounds)
        j = int(np.argmax(fractions))
        if not fractions[j] <= 1:
            failures[row.kind] = (
                f"{fractions[j]:.3g} of the budget: {np.ravel(result)[j]!r} instead of {float(right[j])!r}"
                + (f" at {j}" if len(right) > 1 else "")
                + (f" of {row.arguments!r}" if np.size(row.arguments[0]) <= 10 else "")
            )
    assert not failures, "\n".join(f"{kind}: {message}" for kind, message in failures.items())


def use(tier: str) -> Any:
    """Switch to the tier, or skip where this CPU lacks it."""
    if tier not in _kernels.supported():
        pytest.skip(f"this CPU has no {tier}")
    return _kernels.use(tier)


# The tier varies fastest, so that the oracle works once for all of them.
BUDGETS = [
    pytest.param(operation, dtype, tier, size, id=f"{operation.id}-{dtype}-{tier}-{size}")
    for operation, dtype, size, tier in itertools.product(OPERATIONS, DTYPES, SIZES, TIERS)
    if size in SOME_SIZES or oracle.takes_every_size(operation)
]


@pytest.mark.parametrize(("operation", "dtype", "tier", "size"), BUDGETS)
def test_budget(operation: Operation, dtype: str, tier: str, size: int) -> None:
    with use(tier):
        rows = cases(operation.id, dtype, size)
        got = oracle.evaluate(fk, operation, oracle.stacked([row for row, _, _ in rows]))
    assert_within_budget(got, rows, dtype)


def test_drawn_rows_vary() -> None:
    for operation in OPERATIONS:
        first, second = (oracle.rows_for(operation, 100, "float64", np.random.default_rng(i)) for i in (1, 2))
        assert len({row.kind for row in first}) == len(first) >= 10
        for a, b in zip(first, second, strict=True):
            if a.kind not in ("uniform", "constant"):
                assert any(not np.array_equal(u, v) for u, v in zip(a.arguments, b.arguments, strict=True)), a.kind


# Every scale ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 10, 100, 1000])
def test_logsumexp_where_the_maximum_dominates(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    depths = np.linspace(1, 80 if dtype == "float32" else 640, 12)
    x = rng.uniform(-1, 0, (depths.size, size)) - depths[:, None]
    x[np.arange(depths.size), rng.integers(size, size=depths.size)] = 0.0
    x = x.astype(dtype)
    right = [oracle.logsumexp(row.tolist()) for row in x]
    assert float(right[-1]) < 1e-30
    assert max(oracle.relative_errors(fk.logsumexp(x), right, DOMINANT_LOGSUMEXP, dtype)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 10, 100, 1000])
def test_losses_down_to_the_smallest(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    operation = BY_ID["softmax_cross_entropy"]
    depths = np.linspace(0, -np.log(oracle.SMALLEST_LOSS[dtype]) - 1, 12)
    x = rng.uniform(-1, 1, (depths.size, size))
    labels = rng.integers(size, size=depths.size)
    x[np.arange(depths.size), labels] += depths + np.log(size)
    x = (x + rng.normal(size=(depths.size, 1))).astype(dtype)
    drawn = zip(depths, x, labels, strict=True)
    rows = [measured(operation, oracle.Row(f"{d:.0f} ahead", (row, int(k))), dtype) for d, row, k in drawn]
    assert rows[-1][1][0] < 100 * oracle.SMALLEST_LOSS[dtype]
    assert_within_budget(fk.softmax_cross_entropy(x, labels), rows, dtype)


@pytest.mark.parametrize("id_", DIVERGENCES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 10, 100, 1000])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.1, 7e5), (3e4, 2e-3)], ids=lambda s: f"sums {s[0]:g} and {s[1]:g}")
def test_divergences_of_every_scale(
    id_: str, dtype: str, size: int, scales: tuple[float, float], tier: str, rng: np.random.Generator
) -> None:
    """From 10 down to the smallest; scaling p and q must cost a normalised divergence no digits."""
    operation = BY_ID[id_]
    smallest = oracle.SMALLEST_DIVERGENCE[dtype]
    near = np.geomspace(0.5, np.sqrt(smallest) * (3 if dtype == "float64" else 2), 10)
    rows = []
    for distance in near:
        p = rng.uniform(0.5, 1, size)
        p /= p.sum()
        # Alternating signs, so that the distance is not a common factor that normalising would take out.
        q = p * (1 + distance * np.resize([1.0, -1.0], size) * rng.uniform(0.9, 1, size))
        rows.append(oracle.Row(f"{distance:.0e} apart", (p * scales[0], q * scales[1])))
    p = 0.5 * oracle.simplex(size, rng)
    q = 2 * p
    p[0] += 0.5
    q[0] = 1e-8
    rows.append(oracle.Row("far apart", (p * scales[0], q * scales[1])))
    rows = [oracle.Row(row.kind, tuple(v.astype(dtype) for v in row.arguments)) for row in rows]
    cases = [measured(operation, row, dtype) for row in rows]
    if operation.keywords or scales == (1.0, 1.0):
        assert smallest < cases[-2][1][0] < 1e3 * smallest
        assert cases[-1][1][0] > 0.5
    assert_within_budget(oracle.evaluate(fk, operation, oracle.stacked(rows)), cases, dtype)


# Short rows of any numbers ----------------------------------------------------------------------------------------


def any_row(dtype: str, low: float, high: float, *also: float) -> Any:
    """Rows of up to 40 numbers from low to high, and some others."""
    width = {"float32": 32, "float64": 64}[dtype]
    low, high = (float(np.array(v, dtype)) for v in (low, high))
    elements = st.floats(low, high, width=width) | st.sampled_from([0.0, low, high, *also])
    return st.integers(1, 40).flatmap(lambda size: st.tuples(*[hnp.arrays(dtype, size, elements=elements)] * 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_any_short_row(operation: Operation, dtype: str) -> None:
    if operation.domain == "logits":
        rows = any_row(dtype, -1e4, 1e4, 1e4 - 1, -np.inf) | any_row(dtype, -30, 30) | any_row(dtype, -1e30, 1e30)
    else:
        largest = 1.0 if operation.operands == ("p",) else 1e30 if dtype == "float32" else 1e300
        rows = any_row(dtype, 0, 1, float(np.finfo(dtype).smallest_subnormal)) | any_row(dtype, 0, largest)

    @given(rows, st.integers(0, 39))
    def check(pair: tuple[np.ndarray, np.ndarray], label: int) -> None:
        x, q = pair
        if operation.domain == "logits" and np.isneginf(x).all():
            return  # an edge, not a matter of digits
        label %= x.size
        if "labels" in operation.operands and np.isneginf(x[label]):
            return
        arguments = {1: (x,), 2: (x, label if "labels" in operation.operands else q)}[len(operation.operands)]
        if oracle.divides_by_zero(operation, arguments):
            return
        case = measured(operation, oracle.Row("drawn", arguments), dtype)
        got = np.asarray(oracle.evaluate(fk, operation, arguments))
        assert_within_budget(got[None], [case], dtype)

    check()


# The same digits through masks, layouts and narrow types ----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SOME_SIZES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_masked(operation: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """A masked row is as exact as the row of its kept entries alone, whatever lies under the mask."""
    whole = [row for row in oracle.rows_for(operation, size, dtype, rng) if row.kind != "p where q is 0"]
    batch = oracle.stacked(whole)
    where = rng.random((len(whole), size)) < 0.6
    where[:, 0] = True
    for row, kept, i in zip(whole, where, range(len(whole)), strict=True):
        if "labels" in operation.operands:
            batch[1][i] = rng.choice(np.flatnonzero(kept & np.isfinite(row.arguments[0])) if size > 10 else [0])
        if oracle.divides_by_zero(operation, [v[kept] if np.ndim(v) else v for v in row.arguments]):
            kept[:] = True
    if operation.domain == "logits":
        batch[0][:, 0] = 0.5
    rows = []
    for i, (row, kept) in enumerate(zip(whole, where, strict=True)):
        if operation.function == "wasserstein_1d":      # an absent class keeps its place on the line
            arguments = [np.where(kept, v[i], 0) for v in batch]
            rows.append(measured(operation, oracle.Row(row.kind, tuple(arguments)), dtype))
            continue
        arguments = [v[i][kept] if v.ndim == 2 else int(np.flatnonzero(kept).tolist().index(v[i])) for v in batch]
        rows.append(measured(operation, oracle.Row(row.kind, tuple(arguments)), dtype))
    for v in batch:
        if v.ndim == 2:
            v[~where] = rng.choice([np.nan, np.inf, -np.inf, -1.0], (~where).sum())
    got = oracle.evaluate(fk, operation, batch, where=where)
    if operation.returns == "element":
        assert not got[~where].any()
        got = [v[kept] for v, kept in zip(got, where, strict=True)]
    assert_within_budget_each(got, rows, dtype)


def assert_within_budget_each(got: Any, rows: list[Case], dtype: str) -> None:
    """The same for results of unequal lengths."""
    for result, row in zip(got, rows, strict=True):
        assert_within_budget(np.asarray(result)[None], [row], dtype)


@pytest.mark.parametrize("layout", ["axis 0", "strided", "reversed", "transposed view"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SOME_SIZES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_layouts(operation: Operation, size: int, dtype: str, layout: str, rng: np.random.Generator) -> None:
    rows = [measured(operation, row, dtype) for row in oracle.rows_for(operation, size, dtype, rng)]
    batch = oracle.stacked([row for row, _, _ in rows])
    axis = 0 if layout == "axis 0" else -1
    batch = [laid_out(v, layout) if v.ndim == 2 else v for v in batch]
    got = oracle.evaluate(fk, operation, batch, axis=axis)
    if operation.returns == "element" and axis == 0:
        got = got.T
    assert_within_budget(got, rows, dtype)


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """Return the same numbers in another layout."""
    match layout:
        case "axis 0":
            return np.ascontiguousarray(x.T)
        case "transposed view":
            return np.asfortranarray(x)
        case "strided":
            wide = np.full((x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
            wide[:, 1::3] = x
            return wide[:, 1::3]
        case "reversed":
            return np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    raise ValueError(layout)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "int8", "uint8", "bool", "int64"])
@pytest.mark.parametrize("size", SOME_SIZES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_narrow_types(operation: Operation, size: int, narrow: str, tier: str, rng: np.random.Generator) -> None:
    """Halves are float32 rows whose digits happen to be few; integers are float64 rows."""
    half = narrow.endswith("float16")
    dtype = "float32" if half else "float64"
    storage = np.dtype(ml_dtypes.bfloat16 if narrow == "bfloat16" else narrow)
    if half:
        rows = [row for row in oracle.rows_for(operation, size, dtype, rng) if row.kind != "every scale"]
    else:
        low, high = (0, 2) if narrow == "bool" or operation.operands == ("p",) else (-90, 90)
        low = 0 if operation.domain == "probabilities" or narrow == "uint8" else low
        rows = [oracle.Row(str(i), tuple(rng.integers(low, high, (2, size)))) for i in range(5)]
        rows = [oracle.Row(row.kind, row.arguments[: len(operation.operands)]) for row in rows]
        if "labels" in operation.operands:
            rows = [oracle.Row(row.kind, (row.arguments[0], int(rng.integers(size)))) for row in rows]
    narrowed = []
    for row in rows:
        # Values too large for float16 become infinite, which no row of digits may hold.
        arguments = tuple(np.clip(v, -6e4, 6e4) if half and isinstance(v, np.ndarray) else v for v in row.arguments)
        arguments = tuple(v.astype(storage) if isinstance(v, np.ndarray) else v for v in arguments)
        if half and operation.domain == "logits":
            arguments = (np.where(np.isneginf(row.arguments[0]), storage.type(-np.inf), arguments[0]), *arguments[1:])
        if oracle.divides_by_zero(operation, arguments):
            continue
        narrowed.append(oracle.Row(row.kind, arguments))
    assert len(narrowed) >= 4
    got = oracle.evaluate(fk, operation, oracle.stacked(narrowed))
    assert_within_budget(got, [measured(operation, row, dtype) for row in narrowed], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SOME_SIZES)
@pytest.mark.parametrize("signs", ["positive", "either"])
def test_weighted_logsumexp(signs: str, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """The budget of logsumexp, times how much larger the sum of absolute terms is than the sum."""
    operation = BY_ID["logsumexp"]
    rows = [row.arguments[0] for row in oracle.rows_for(operation, size, dtype, rng)]
    b = rng.uniform(0.1, 3, (len(rows), size)).astype(dtype)
    b[rng.random(b.shape) < 0.1] = 0.0
    if signs == "either":
        b[rng.random(b.shape) < 0.3] *= -1
    b[:, 0] = 1.5
    x = np.stack(rows)
    x[:, 0] = np.where(np.isfinite(x[:, 0]), x[:, 0], 0.0)
    got, sign = fk.logsumexp(x, b=b, return_sign=True)
    for value, s, row, weights in zip(got, sign, x, b, strict=True):
        terms, _ = oracle.signed_logsumexp(row.tolist(), np.abs(weights).tolist())
        right, right_sign = oracle.signed_logsumexp(row.tolist(), weights.tolist())
        condition = oracle.mp.exp(terms - right)
        bound = operation.budget.multiple(dtype) * float(np.finfo(dtype).eps) * max(1, abs(right)) * condition
        assert oracle.errors_over_budget(value, [right], [bound])[0] <= 1, (row, weights)
        assert s == right_sign


#: Of js_distance the base is under the root.
WITH_BASE = [o for o in OPERATIONS if o.budget.scale in UNITS and oracle.takes(o, "base")]
WITH_BASE = [o for o in WITH_BASE if o.function != "js_distance"]


@pytest.mark.parametrize("base", [2, 10, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", WITH_BASE, ids=lambda o: o.id)
def test_base(operation: Operation, dtype: str, base: float, rng: np.random.Generator) -> None:
    """Another base costs one division: its rounding, and that of the base's logarithm."""
    rows = [measured(operation, row, dtype) for row in oracle.rows_for(operation, 50, dtype, rng)]
    got = oracle.evaluate(fk, operation, oracle.stacked([row for row, _, _ in rows]), base=base)
    log_base = oracle.mp.log(base)
    eps = float(np.finfo(dtype).eps)
    in_base = []
    for row, right, bounds in rows:
        value = right[0] / log_base
        bound = bounds[0] / abs(log_base) + eps * abs(value) if oracle.mp.isfinite(value) else 0
        in_base.append((row, [value], [bound]))
    assert_within_budget(got, in_base, dtype)
