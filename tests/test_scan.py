"""Running sums: cumulative log-sum-exps, and the transport between distributions over points."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import reference
from fastkl.registry import OPERATIONS

INF, NAN, LN2 = math.inf, math.nan, math.log(2)
BY_ID = {operation.id: operation for operation in OPERATIONS}

both = pytest.mark.parametrize("module", [fk, reference], ids=["kernels", "reference"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

# ---- logcumsumexp ------------------------------------------------------------------------------------------------

EDGES = [
    ([-INF, -INF, 0.0, -INF], [-INF, -INF, 0.0, 0.0]),
    ([0.0, INF, 0.0, INF], [0.0, INF, INF, INF]),
    ([INF, NAN, 0.0, INF], [INF, NAN, NAN, NAN]),
    ([0.0, NAN, INF, -INF], [0.0, NAN, NAN, NAN]),
    ([-INF, INF, -INF], [-INF, INF, INF]),
    ([-INF, NAN], [-INF, NAN]),
    ([0.0, 0.0, 0.0], [0.0, LN2, math.log(3)]),
    ([0.0, 1000.0, -1000.0], [0.0, 1000.0, 1000.0]),
    ([3e38, 3e38], [3e38, 3e38]),
    ([-3e38, 3e38], [-3e38, 3e38]),
    ([3e38, -3e38, INF], [3e38, 3e38, INF]),
    ([0.0, -40.0], [0.0, 4.248354255291589e-18]),
    ([-40.0, 0.0], [-40.0, 4.248354255291589e-18]),
    ([-1e30, -40.0, 0.0, -1e30], [-1e30, -40.0, 4.248354255291589e-18, 4.248354255291589e-18]),
]


@dtypes
@pytest.mark.parametrize("before", [0, 1, 130, 5000])
@pytest.mark.parametrize("rows", [1, 7, 8, 40])
@pytest.mark.parametrize(("x", "expected"), EDGES)
def test_edge(x: list[float], expected: list[float], rows: int, before: int, dtype: str) -> None:
    """Alone and among rows that have nothing odd, after -inf that add nothing."""
    row = np.concatenate([np.full(before, -INF), x]).astype(dtype)
    batch = np.tile(np.linspace(-1, 1, row.size, dtype=dtype), (rows, 1))
    batch[rows // 2] = row
    with np.errstate(all="raise"):
        got = fk.logcumsumexp(batch)
    assert got.dtype == dtype
    np.testing.assert_allclose(got[rows // 2, before:], np.array(expected, dtype), rtol=1e-6)
    assert (got[rows // 2, :before] == -INF).all()
    others = np.delete(got, rows // 2, axis=0)
    assert np.isfinite(others).all()
    assert (others == others[:1]).all()


@pytest.mark.parametrize(("x", "expected"), [edge for edge in EDGES if 4.248354255291589e-18 not in edge[1]])
def test_edge_of_the_reference(x: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(reference.logcumsumexp(x), expected, rtol=1e-6)


@both
@dtypes
def test_masked(dtype: str, module: ModuleType) -> None:
    got = module.logcumsumexp(np.array([NAN, 1.0, INF, 1.0], dtype), where=[False, True, False, True])
    np.testing.assert_allclose(got, np.array([0.0, 1.0, 0.0, 1 + LN2], dtype), rtol=1e-6)
    assert module.logcumsumexp(np.zeros((3, 0), dtype)).shape == (3, 0)
    assert module.logcumsumexp(np.array(2.0, dtype), axis=None) == 2


@dtypes
@pytest.mark.parametrize("kind", ["ascending", "late maximum", "sawtooth", "slow rise", "equal", "below a first"])
@pytest.mark.parametrize("rows", [1, 9])
def test_budget_at_every_element(kind: str, rows: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    n = 3000
    x = {
        "ascending": np.sort(rng.uniform(-300, 300, n)),
        "late maximum": np.append(rng.normal(size=n - 100), rng.normal(size=100) + 500),
        "sawtooth": rng.normal(size=n) + np.resize(np.arange(50) * 3.0, n),
        "slow rise": np.linspace(0.3, 9.7, n),
        "equal": np.full(n, rng.uniform(-1, 1)),
        "below a first": np.append(rng.uniform(0, 1), rng.uniform(-9, -8, n - 1)),
    }[kind].astype(dtype)
    right = oracle.logcumsumexp(x.tolist())
    bounds = oracle.allowed(BY_ID["logcumsumexp"], (x,), right, dtype)
    got = fk.logcumsumexp(np.tile(x, (rows, 1)))
    assert (got == got[:1]).all()
    fractions = oracle.errors_over_budget(got[0], right, bounds)
    i = int(np.argmax(fractions))
    assert fractions[i] <= 1, (fractions[i], i)


@dtypes
def test_ten_million(dtype: str, rng: np.random.Generator) -> None:
    """At places along a row, against float64 sums of 4096 exponentials, which are added without rounding."""
    n = 10_000_000
    x = rng.normal(size=n).astype(dtype) * 2 + np.linspace(0, 3, n, dtype=dtype)
    got = fk.logcumsumexp(x)
    places = np.sort(rng.integers(0, n, 12))
    exps = np.exp(x.astype(np.float64))
    parts = np.add.reduceat(exps, np.arange(0, n, 4096))
    for i in [*places.tolist(), n - 1]:
        right = math.log(math.fsum(parts[: i // 4096]) + math.fsum(exps[i // 4096 * 4096 : i + 1]))
        error = abs(float(got[i]) - right) / max(1, abs(right))
        assert error <= BY_ID["logcumsumexp"].budget.multiple(dtype) * float(np.finfo(dtype).eps), i
    assert fk.logsumexp(x) == pytest.approx(got[-1], rel=4 * float(np.finfo(dtype).eps))


# ---- wasserstein_1d ----------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("size", [1, 2, 31, 300, 5000])
@pytest.mark.parametrize("kind", ["sorted", "shuffled", "ties"])
def test_points(kind: str, size: int, rows: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    p, q = (rng.gamma(0.5, size=(rows, size)).astype(dtype) for _ in range(2))
    x = {
        "sorted": np.sort(rng.normal(size=size)),
        "shuffled": rng.permutation(rng.normal(size=size)),
        "ties": rng.integers(0, 5, size).astype(float),
    }[kind]
    got = fk.wasserstein_1d(p, q, x=x)
    right = reference.wasserstein_1d(p, q, x=x)
    assert (got.shape, got.dtype) == (right.shape, right.dtype)
    np.testing.assert_allclose(got, right, rtol=2e-6 if dtype == "float32" else 1e-11)
    exact = oracle.wasserstein_1d(p[0].tolist(), q[0].tolist(), x.tolist())
    eps = float(np.finfo(dtype).eps)
    assert abs(got[0] - exact) <= 5 * eps * exact     # the budget, and the rounding of the distances in float64
    for i in range(rows):
        assert fk.wasserstein_1d(p[i], q[i], x=x).tobytes() == got[i].tobytes()
    assert fk.wasserstein_1d(p.T, q.T, x=x, axis=0, n_threads=3).tobytes() == got.tobytes()
    assert fk.wasserstein_1d(q, p, x=x).tobytes() == got.tobytes(), "not symmetric"
    few = q[0] if size > 1 else q[:1]     # of fewer axes, and along another one
    right = fk.wasserstein_1d(p, np.broadcast_to(few, p.shape).copy(), x=x)
    assert fk.wasserstein_1d(p, few, x=x).tobytes() == right.tobytes()
    assert fk.wasserstein_1d(p.T, q[:1].T, x=x, axis=0).tobytes() == fk.wasserstein_1d(p, q[:1], x=x).tobytes()
    mirrored = fk.wasserstein_1d(p, q, x=-x, normalize=True)
    assert mirrored == pytest.approx(fk.wasserstein_1d(p, q, x=x, normalize=True), rel=1e-5)
    same = np.arange(size) * 1.0
    assert fk.wasserstein_1d(p, q, x=same).tobytes() == fk.wasserstein_1d(p, q).tobytes()
    where = rng.random((rows, size)) < 0.5
    kept = fk.wasserstein_1d(np.where(where, p, 0), np.where(where, q, 0), x=x)
    p[~where] = NAN
    assert fk.wasserstein_1d(p, q, x=x, where=where).tobytes() == kept.tobytes()


def test_as_scipy(tier: str, rng: np.random.Generator) -> None:
    stats = pytest.importorskip("scipy.stats")
    for _ in range(20):
        n, m = (int(v) for v in rng.integers(1, 60, 2))
        u, v, a, b = rng.normal(size=n), rng.normal(size=m), rng.random((11, n)), rng.random((11, m))
        right = [stats.wasserstein_distance(u, v, *weights) for weights in zip(a, b, strict=True)]
        got = fk.wasserstein_1d(a, b, x=u, y=v, normalize=True)
        np.testing.assert_allclose(got, right, rtol=1e-12)
        np.testing.assert_allclose(reference.wasserstein_1d(a, b, x=u, y=v, normalize=True), right, rtol=1e-12)
        assert fk.wasserstein_1d(b, a, x=v, y=u, normalize=True).tobytes() == got.tobytes()
        for i in range(11):
            assert fk.wasserstein_1d(a[i], b[i], x=u, y=v, normalize=True).tobytes() == got[i].tobytes()
        kept = fk.wasserstein_1d(a.T, b.T, x=u, y=v, normalize=True, axis=0, keepdims=True)
        assert kept.shape == (1, 11)
        assert kept.tobytes() == got.tobytes()
        cubes = [np.stack([w, 2 * w, w[::-1]]) for w in (a, b)]
        whole = fk.wasserstein_1d(*cubes, x=u, y=v, normalize=True)
        assert whole[0].tobytes() == got.tobytes()
        for axis in (0, 1, 2, -1, -2, -3):
            moved = [np.moveaxis(w, -1, axis) for w in cubes]
            kept = fk.wasserstein_1d(*moved, x=u, y=v, normalize=True, axis=axis, keepdims=True)
            assert kept.shape == np.expand_dims(whole, axis).shape
            assert kept.tobytes() == whole.tobytes()
        out = np.empty((11, 2))[:, 1]
        assert fk.wasserstein_1d(a, b, x=u, y=v, normalize=True, out=out) is out
        assert out.tobytes() == got.tobytes()
        one = fk.wasserstein_1d(a, b[0], x=u, y=v, normalize=True)
        assert one[0] == got[0]
        right = stats.wasserstein_distance(u, v)
        equal = fk.wasserstein_1d(np.ones(n), np.ones(m), x=u, y=v, normalize=True)
        np.testing.assert_allclose(equal, right, rtol=1e-12)
        # Over all points, which is what it means.
        padded = [np.append(a[0], np.zeros(m)), np.append(np.zeros(n), b[0])]
        assert fk.wasserstein_1d(*padded, x=np.append(u, v), normalize=True) == got[0]


@dtypes
@pytest.mark.parametrize("normalize", [False, True])
def test_near_rows_keep_their_digits(normalize: bool, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """Down to one step of the type in two classes; scipy's difference of two sums has nothing left there."""
    operation = BY_ID["wasserstein_1d[normalize]" if normalize else "wasserstein_1d"]
    for size in (2, 10, 1000):
        p = rng.uniform(0.5, 1, size).astype(dtype)
        q = p.copy()
        i, j = rng.choice(size, 2, replace=False)
        q[i], q[j] = np.nextafter(q[i], np.array(2, dtype)), np.nextafter(q[j], np.array(0, dtype))
        right = oracle.exact(operation, (p, q))
        got = fk.wasserstein_1d(p, q, normalize=normalize)
        assert 0 < right[0] < size * 1e-6
        assert max(oracle.errors_over_budget(got, right, oracle.allowed(operation, (p, q), right, dtype))) <= 1


def test_points_refused() -> None:
    p = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"x has shape \(5,\); p and q have 4 classes"):
        fk.wasserstein_1d(p, p, x=np.arange(5.0))
    for one, shape, axis in ((p[:, :1], (3, 1), -1), (p[0, 0], (), -1), (np.ones((1, 3)), (4, 1, 3), 1)):
        with pytest.raises(ValueError, match=r"x has shape \(3,\); p and q have 1 classes"):
            fk.wasserstein_1d(one, np.ones(shape), x=np.arange(3.0), axis=axis)
    with pytest.raises(np.exceptions.AxisError):
        fk.wasserstein_1d(p, p, x=np.arange(4.0), axis=2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\)"):
        fk.wasserstein_1d(p, p, x=np.ones((1, 4)))
    for bad in (NAN, INF):
        with pytest.raises(ValueError, match=r"finite points.*class 2"):
            fk.wasserstein_1d(p, p, x=[0, 1, bad, 3])
    with pytest.raises(ValueError, match="further apart"):
        fk.wasserstein_1d(p, p, x=[-1e308, 0, 1, 1e308])
    with pytest.raises(TypeError, match="complex"):
        fk.wasserstein_1d(p, p, x=np.ones(4, complex))
    with pytest.raises(ValueError, match="one axis"):
        fk.wasserstein_1d(p, p, x=np.arange(12.0), axis=None)
    with pytest.raises(ValueError, match="needs x"):
        fk.wasserstein_1d(p, p, y=np.arange(4.0))
    with pytest.raises(ValueError, match="y has shape"):
        fk.wasserstein_1d(p, p, x=np.arange(4.0), y=np.arange(3.0))
    with pytest.raises(ValueError, match="where"):
        fk.wasserstein_1d(p, p, x=np.arange(4.0), y=np.arange(4.0), where=p > 0)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        fk.wasserstein_1d(p, p[:2], x=np.arange(4.0), y=np.arange(4.0))
    out = np.empty(3)
    with pytest.raises(ValueError, match="overlaps"):
        fk.wasserstein_1d(p, p, x=np.arange(4.0), y=np.arange(4.0), out=p[:, 0])
    with pytest.raises(ValueError, match="shape"):
        fk.wasserstein_1d(p, p[:, :2], x=np.arange(4.0), y=np.arange(2.0), out=out[:2])


@both
def test_samples_of_nothing(module: ModuleType) -> None:
    for p, q in (([], [1.0, 2.0]), ([3.0], []), ([], [])):
        x, y = np.arange(len(p)) * 1.0, np.arange(len(q)) * 1.0
        plain = module.wasserstein_1d(np.array(p), np.array(q), x=x, y=y)
        assert plain == (1.0 if len(q) == 2 else 0.0)
        assert math.isnan(module.wasserstein_1d(np.array(p), np.array(q), x=x, y=y, normalize=True))
    got = module.wasserstein_1d(np.array([1.0, NAN]), np.array([1.0]), x=[0, 1], y=[0])
    assert math.isnan(got)
