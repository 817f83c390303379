"""binary_cross_entropy: the promises that the other tests hold the rows' operations to, of elements."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import _kernels, reference
from fastkl.registry import ELEMENTWISE, Operation

INF, NAN, LN2 = math.inf, math.nan, math.log(2)

both = pytest.mark.parametrize("module", [fk, reference], ids=["kernels", "reference"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
operations = pytest.mark.parametrize("operation", ELEMENTWISE, ids=lambda operation: operation.id)


def predictions(operation: Operation, n: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Draw logits or probabilities of every scale."""
    if operation.domain == "logits":
        deepest = 69.0 if dtype == "float32" else 644.0
        kinds = [3 * rng.normal(size=n), rng.uniform(-deepest, deepest, n), 1e-3 * rng.normal(size=n)]
        kinds += [rng.normal(size=n) * 10.0 ** rng.integers(-20, 20)]
    else:
        near_0 = np.exp(rng.uniform(math.log(np.finfo(dtype).tiny), 0, n))
        ends = rng.choice([0.0, 1.0, 0.5, float(np.finfo(dtype).smallest_subnormal), 0.2928932188134524], n)
        kinds = [rng.uniform(0, 1, n), near_0, 1 - near_0, ends, rng.uniform(0.28, 0.51, n)]
    x = np.choose(rng.integers(len(kinds), size=n), kinds)
    return np.clip(x, 0, 1).astype(dtype) if operation.domain == "probabilities" else x.astype(dtype)


def labels(n: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Draw hard and soft labels, and some that are nearly hard."""
    soft = np.choose(rng.integers(3, size=n), [rng.uniform(0, 1, n), 10.0 ** -rng.uniform(0, 30, n), 1 - 1e-6])
    return np.where(rng.random(n) < 0.5, rng.integers(0, 2, n), soft).astype(dtype)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 4097])
@dtypes
@operations
def test_budget(operation: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    x, y = predictions(operation, size, dtype, rng), labels(size, dtype, rng)
    right = oracle.exact(operation, (x, y))
    bounds = oracle.allowed(operation, (x, y), right, dtype)
    got = oracle.evaluate(fk, operation, (x, y))
    fractions = oracle.errors_over_budget(got, right, bounds)
    i = int(np.argmax(fractions))
    assert fractions[i] <= 1, (fractions[i], x[i], y[i], got[i], float(right[i]))


@pytest.mark.parametrize("share", [0.0, 1.0])
@dtypes
def test_losses_down_to_the_smallest(dtype: str, share: float, tier: str) -> None:
    operation = next(o for o in ELEMENTWISE if o.domain == "logits")
    smallest = oracle.SMALLEST_LOSS[dtype]
    depths = np.linspace(1, -math.log(smallest), 200)
    x = (depths if share else -depths).astype(dtype)
    y = np.full(x.size, share, dtype)
    right = oracle.exact(operation, (x, y))
    assert right[-1] < 2 * smallest
    got = oracle.evaluate(fk, operation, (x, y))
    assert max(oracle.errors_over_budget(got, right, oracle.allowed(operation, (x, y), right, dtype))) <= 1


EDGES = [
    ("logits", INF, 1.0, 0.0),
    ("logits", INF, 0.0, INF),
    ("logits", INF, 0.5, INF),
    ("logits", -INF, 0.0, 0.0),
    ("logits", -INF, 1.0, INF),
    ("logits", -INF, 1e-30, INF),
    ("logits", 0.0, 0.3, LN2),
    ("logits", 3e38, 1.0, 0.0),
    ("logits", 3e38, 0.0, 3e38),
    ("logits", -1e30, 0.25, 0.25e30),
    ("logits", NAN, 1.0, NAN),
    ("logits", 0.0, NAN, NAN),
    ("logits", INF, NAN, NAN),
    ("logits", 0.0, -0.1, NAN),
    ("logits", 0.0, 1.1, NAN),
    ("logits", INF, 1.1, NAN),
    ("logits", 0.0, INF, NAN),
    ("logits", 0.0, -1e-45, NAN),
    ("probs", 0.0, 0.0, 0.0),
    ("probs", 0.0, 1.0, INF),
    ("probs", 0.0, 1e-30, INF),
    ("probs", -0.0, 0.0, 0.0),
    ("probs", 1.0, 1.0, 0.0),
    ("probs", 1.0, 0.0, INF),
    ("probs", 1.0, 0.5, INF),
    ("probs", 0.5, 0.7, LN2),
    ("probs", 1e-45, 0.0, 1e-45),
    ("probs", 1e-30, 0.0, 1e-30),
    ("probs", -1e-45, 0.0, NAN),
    ("probs", 1.001, 1.0, NAN),
    ("probs", NAN, 0.0, NAN),
    ("probs", 0.5, NAN, NAN),
    ("probs", 0.0, NAN, NAN),
    ("probs", 0.5, 1.5, NAN),
    ("probs", 0.0, -0.5, NAN),
    ("probs", INF, 1.0, NAN),
    ("probs", 0.5, INF, NAN),
]


@both
@dtypes
@pytest.mark.parametrize(("given", "p", "y", "expected"), EDGES)
def test_edge(given: str, p: float, y: float, expected: float, dtype: str, module: ModuleType) -> None:
    got = module.binary_cross_entropy(np.array(p, dtype), np.array(y, dtype), given=given)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.array(expected, dtype), rtol=1e-6)
    assert expected != 0 or math.copysign(1, got) == 1, "-0.0"
    among = module.binary_cross_entropy(np.full(70, p, dtype), np.full(70, y, dtype), given=given)
    assert among.tobytes() == np.full(70, got).tobytes()
    absent = module.binary_cross_entropy(np.full(3, p, dtype), np.full(3, y, dtype), given=given, where=[False] * 3)
    assert absent.tobytes() == bytes(absent.nbytes)


@dtypes
@operations
def test_behaves_as_the_reference(operation: Operation, dtype: str, tier: str, rng: np.random.Generator) -> None:
    oddities = [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, 1e30]
    for _ in range(60):
        shape = tuple(int(v) for v in rng.choice([0, 1, 2, 5, 17, 70], size=rng.integers(0, 4)))
        x, y = (draw(operation, shape, dtype, rng) for draw in (of_predictions, of_labels))
        for v in (x, y):
            strewn = rng.random(shape) < 0.1
            v[strewn] = rng.choice(oddities, strewn.sum())
        if shape and rng.random() < 0.3:
            y = y[..., :1]
        keywords: dict[str, Any] = {"reduction": str(rng.choice(["none", "none", "mean", "sum"]))}
        if rng.random() < 0.5:
            keywords["where"] = rng.random(shape) < rng.choice([0.0, 0.5, 0.95])
        got, right = (np.asarray(oracle.evaluate(m, operation, (x, y), **keywords)) for m in (fk, reference))
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        rtol = 1e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(got, right, rtol=rtol, err_msg=str(keywords))


def of_predictions(operation: Operation, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    x = 3 * rng.normal(size=shape) if operation.domain == "logits" else rng.uniform(0, 1, shape)
    return np.asarray(x, dtype)


def of_labels(operation: Operation, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(np.where(rng.random(shape) < 0.5, rng.uniform(0, 1, shape), 1), dtype)


@dtypes
@operations
def test_same_bits(operation: Operation, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """An element alone, at any place, in any layout, under a mask, on any number of threads, and on both tiers."""
    n = 20_000
    x, y = predictions(operation, n, dtype, rng), labels(n, dtype, rng)
    x[::100], y[::77] = np.nan, -np.nan
    right = oracle.evaluate(fk, operation, (x, y), n_threads=1)
    if "avx512" in _kernels.supported() and tier == "avx2":
        with _kernels.use("avx512"):
            assert oracle.evaluate(fk, operation, (x, y)).tobytes() == right.tobytes(), "AVX-512 and AVX2 differ"
    for i in rng.choice(n, 50):
        assert oracle.evaluate(fk, operation, (x[i], y[i])).tobytes() == right[i].tobytes()
    for n_threads in (2, 3, 8):
        assert oracle.evaluate(fk, operation, (x, y), n_threads=n_threads).tobytes() == right.tobytes()
    assert oracle.evaluate(fk, operation, (x[1:], y[1:])).tobytes() == right[1:].tobytes()
    assert oracle.evaluate(fk, operation, (x[::-3], y[::-3])).tobytes() == right[::-3].tobytes()
    square = [v.reshape(100, 200) for v in (x, y)]
    for a in (square[0], np.asfortranarray(square[0]), square[0].astype(square[0].dtype.newbyteorder())):
        for b in (square[1], np.asfortranarray(square[1])):
            assert oracle.evaluate(fk, operation, (a, b)).tobytes() == right.tobytes()
            assert oracle.evaluate(fk, operation, (a.T, b.T)).tobytes() == right.reshape(100, 200).T.tobytes()
    where = rng.random(n) < 0.5
    masked = oracle.evaluate(fk, operation, (x, y), where=where, n_threads=3)
    assert masked.tobytes() == np.where(where, right, np.array(0, dtype)).tobytes()
    for out in (np.empty(n, dtype), np.empty(2 * n, dtype)[::2]):
        assert oracle.evaluate(fk, operation, (x, y), out=out) is out
        assert out.tobytes() == right.tobytes()
    inside = x.copy()
    assert oracle.evaluate(fk, operation, (inside, y), out=inside) is inside
    assert inside.tobytes() == right.tobytes()


@dtypes
@operations
def test_reductions(operation: Operation, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """The sum of the losses, rounded once, whatever the threads and the layout."""
    n = 150_000
    x, y = of_predictions(operation, (n,), dtype, rng), of_labels(operation, (n,), dtype, rng)
    losses = oracle.evaluate(fk, operation, (x, y)).astype(np.float64)
    where = rng.random(n) < 0.5
    for n_threads in (1, 3, None):
        total = oracle.evaluate(fk, operation, (x, y), reduction="sum", n_threads=n_threads)
        assert total.dtype == dtype
        assert total == np.dtype(dtype).type(math.fsum(losses))
        mean = oracle.evaluate(fk, operation, (x, y), reduction="mean", where=where, n_threads=n_threads)
        assert mean == pytest.approx(math.fsum(losses[where]) / where.sum(), rel=float(np.finfo(dtype).eps))
    table = oracle.evaluate(fk, operation, [np.asfortranarray(v.reshape(300, 500)) for v in (x, y)], reduction="sum")
    assert table == total
    assert oracle.evaluate(fk, operation, (x, y), reduction="sum", where=np.zeros(n, bool)) == 0
    assert math.isnan(oracle.evaluate(fk, operation, (x, y), reduction="mean", where=False))
    assert oracle.evaluate(fk, operation, (x[:0], y[:0]), reduction="mean", empty_mean=7.0) == 7
    x[3] = np.nan
    assert math.isnan(oracle.evaluate(fk, operation, (x, y), reduction="sum"))


@both
@operations
def test_types(operation: Operation, module: ModuleType, rng: np.random.Generator) -> None:
    """Labels of integers and bool do not widen; those of another float type do."""
    x, y = of_predictions(operation, (50,), "float32", rng), rng.integers(0, 2, 50)
    right = oracle.evaluate(module, operation, (x, y.astype("float32")))
    assert right.dtype == np.float32
    for label_type in ("int8", "uint64", "int64", "bool", "float16"):
        got = oracle.evaluate(module, operation, (x, y.astype(label_type)))
        assert got.dtype == np.float32
        assert got.tobytes() == right.tobytes()
    assert oracle.evaluate(module, operation, (x, y.astype("float64"))).dtype == np.float64
    assert oracle.evaluate(module, operation, (x > 0, y)).dtype == np.float64
    assert math.isnan(oracle.evaluate(module, operation, (x[0], np.int64(2))))
    assert oracle.evaluate(module, operation, ([], [])).shape == (0,)


@dtypes
def test_refused(dtype: str) -> None:
    x, y = np.full((3, 4), 0.5, dtype), np.zeros((3, 4), dtype)
    for bad in (np.ones((3, 4), complex), np.ones((3, 4), object), np.ma.masked_array(x, x > 1), "abc", None):
        with pytest.raises(TypeError):
            fk.binary_cross_entropy(bad, y)
        with pytest.raises(TypeError):
            fk.binary_cross_entropy(x, bad)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(5,\)"):
        fk.binary_cross_entropy(x, y[0, [0, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="given"):
        fk.binary_cross_entropy(x, y, given="log_probs")
    with pytest.raises(ValueError, match="reduction"):
        fk.binary_cross_entropy(x, y, reduction="avg")
    with pytest.raises(ValueError, match="where"):
        fk.binary_cross_entropy(x, y, where=np.ones(5, bool))
    for n_threads in (0, -1):
        with pytest.raises(ValueError, match="n_threads"):
            fk.binary_cross_entropy(x, y, n_threads=n_threads)
    with pytest.raises(ValueError, match="out is for"):
        fk.binary_cross_entropy(x, y, reduction="sum", out=np.empty((), dtype))
    for out in (np.empty(4, dtype), np.empty((3, 4), "float16"), y, x[::-1]):
        with pytest.raises(ValueError, match="out"):
            fk.binary_cross_entropy(x, y, out=out)
    wide = np.full((2, 4), 0.5, dtype)
    with pytest.raises(ValueError, match="overlaps"):
        fk.binary_cross_entropy(wide[:1], y[:2], out=wide)
