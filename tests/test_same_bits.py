"""The promise "same bits": a row's result depends on that row alone, and is the same on AVX2 and AVX-512.

Nothing is stored: a row alone, on one thread, is what every other way to the same row is compared with, as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import _kernels
from fastkl.registry import OPERATIONS, Operation

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)

# Lane, tile, block and chunk edges, and what lies between.
SHORT = [*range(1, 18), 23, 31, 32, 33, 47, 63, 64, 65, 79, 95, 96, 97, 100, 127, 128, 129, 160, 191, 192, 193, 200]
MIDDLE = [255, 256, 257, 500, 1000, 1023, 1024, 1025, 2047, 2049, 4095, 4096, 4097, 8191, 8193, 20_000]
LONG = [131_071, 131_072, 131_073, 300_000]
SIZES = SHORT + MIDDLE + LONG
FEW = [3, 10, 33, 100, 257, 4097, 131_073]


def draw(operation: Operation, rows: int, size: int, dtype: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw rows, a third of them with something unusual: zeros or -inf, a dominating entry, a NaN, a denormal."""
    if operation.domain == "logits":
        arrays = [3 * rng.normal(size=(rows, size))]
        odd: list[float] = [-np.inf, 60.0, np.nan, 1e-42, -90.0, np.inf]
    else:
        arrays = [rng.gamma(0.7, size=(rows, size)) / size + 1e-9 for _ in operation.operands]
        odd = [0.0, 0.9, np.nan, 1e-42, 1e-30, -0.5]
    arrays = [v.astype(dtype) for v in arrays]
    for v in arrays:
        chosen = rng.choice(rows, rows // 3, replace=False)
        v[chosen, rng.integers(size, size=chosen.size)] = rng.choice(odd, chosen.size)
    return [*arrays, rng.integers(size, size=rows)] if "labels" in operation.operands else arrays


def one_by_one(operation: Operation, arrays: Sequence[np.ndarray], **keywords: Any) -> list[bytes]:
    """Return each row's result from a call with that row alone, on one thread."""
    return [
        np.asarray(oracle.evaluate(fk, operation, [v[i].copy() for v in arrays], n_threads=1, **keywords)).tobytes()
        for i in range(len(arrays[0]))
    ]


def assert_rows_same(got: np.ndarray, right: Sequence[bytes], how: str) -> None:
    different = [i for i, (g, r) in enumerate(zip(got, right, strict=True)) if np.asarray(g).tobytes() != r]
    assert not different, f"{how}: rows {different} differ, e.g. {got[different[0]]!r}"


@pytest.mark.parametrize(
    ("operation", "size"),
    [(o, size) for o in OPERATIONS for size in (SIZES if oracle.takes_every_size(o) else FEW)],
    ids=lambda v: v.id if isinstance(v, Operation) else None,
)
@dtypes
def test_however_a_row_comes(
    operation: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator
) -> None:
    rows = 9 if size <= 200 else 4 if size <= 20_000 else 2
    arrays = draw(operation, rows, size, dtype, rng)
    right = one_by_one(operation, arrays)
    if "avx512" in _kernels.supported() and tier == "avx2":
        with _kernels.use("avx512"):
            assert one_by_one(operation, arrays) == right, "AVX-512 and AVX2 differ"

    # In batches, at another place each.
    n = {9: 1000, 4: 70, 2: 3}[rows]
    filler = draw(operation, n, size, dtype, rng)
    places = rng.choice(n, rows, replace=False)
    for v, row in zip(filler, arrays, strict=True):
        v[places] = row
    for n_threads in (1, 2, 3, 8):
        got = oracle.evaluate(fk, operation, filler, n_threads=n_threads)
        assert_rows_same(got[places], right, f"in a batch of {n}, {n_threads} threads")
    assert_rows_same(oracle.evaluate(fk, operation, arrays, n_threads=2), right, f"in a batch of {rows}")

    # Laid out otherwise.
    for how, views in layouts(arrays, rng):
        for n_threads in (1, 3):
            got = oracle.evaluate(fk, operation, views, n_threads=n_threads)
            assert_rows_same(got, right, f"{how}, {n_threads} threads")
    down = [np.ascontiguousarray(v.T) if v.ndim == 2 else v for v in arrays]
    for n_threads in (1, 3):
        got = oracle.evaluate(fk, operation, down, axis=0, n_threads=n_threads)
        assert_rows_same(got.T, right, f"along axis 0, {n_threads} threads")
    if size % 2 == 0:
        cubes = [v.reshape(rows, 2, size // 2) if v.ndim == 2 else v for v in arrays]
        if "labels" not in operation.operands:
            got = oracle.evaluate(fk, operation, cubes, axis=(1, 2))
            assert_rows_same(got, right, "along two axes")

    # A result in another place.
    out = np.zeros([2 * n for n in np.shape(oracle.evaluate(fk, operation, arrays))], dtype)
    out = out[tuple(slice(1, None, 2) for _ in out.shape)]
    oracle.evaluate(fk, operation, arrays, out=out)
    assert_rows_same(out, right, "into a strided out")


def layouts(arrays: Sequence[np.ndarray], rng: np.random.Generator) -> Any:
    """Yield ways to lay the same rows out; labels stay as they are."""

    def each(change: Any) -> list[np.ndarray]:
        return [change(v) if v.ndim == 2 else v for v in arrays]

    def at_offset(v: np.ndarray) -> np.ndarray:
        offset = int(rng.integers(1, 16))
        place = np.empty(v.size + offset, v.dtype)[offset:].reshape(v.shape)
        place[...] = v
        return place

    def padded(v: np.ndarray) -> np.ndarray:
        wide = np.full((v.shape[0], v.shape[1] + 3), np.nan, v.dtype)
        wide[:, 1:-2] = v
        return wide[:, 1:-2]

    yield "at an odd offset", each(at_offset)
    yield "rows apart", each(padded)
    yield "every second", each(lambda v: np.repeat(v, 2, 1)[:, ::2])
    yield "reversed", each(lambda v: v[:, ::-1].copy()[:, ::-1])
    yield "rows reversed", each(lambda v: v[::-1].copy()[::-1])
    yield "Fortran", each(np.asfortranarray)
    yield "byte-swapped", each(lambda v: v.astype(v.dtype.newbyteorder()))


#: The functions that have loops over columns of their own.
BY_COLUMNS = (
    *("logsumexp", "softmax", "log_softmax", "softmax_cross_entropy"),
    *("entropy", "cross_entropy", "kl_divergence", "generalized_kl"),
)


def unusual_columns(operation: Operation, size: int, columns: int, dtype: Any, rng: np.random.Generator) -> Any:
    """Draw rows, to be read as columns, with what their neighbours must not catch.

    Of logits blocks of -inf, an order that moves the reference, a label's logit that is infinite or NaN.
    """
    arrays = draw(operation, columns, size, dtype, rng)
    block = min(size, 4096)
    if operation.domain == "logits":
        x = arrays[0]
        x[::5] = np.sort(10 * x[::5], axis=1)
        x[1::5, :block] = -np.inf
        x[2::5] = np.round(x[2::5])
        x[3::10] = -np.inf
        if "labels" in operation.operands:
            every = np.arange(columns)
            x[every[4::10], arrays[1][4::10]] = rng.choice([np.inf, -np.inf, np.nan], len(every[4::10]))
            x[every[9::10], arrays[1][9::10]] = 50
    else:
        for v in arrays:
            v[1::5, ::2] = 0
            v[2::5, :block] *= dtype(1e-44) if dtype == np.float32 else dtype(1e-320)
            v[3::10, -1] = -1
            v[4::10, size // 2] = np.inf
    return arrays


# A tile's edges: a vector, a stretch of either type; those of a lane, a run, a block and a chunk; a few columns, whose
# classes are read several at a time.
@pytest.mark.parametrize(
    ("size", "columns"),
    [(size, columns) for size in (255, 256, 257) for columns in (15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257)]
    + [(size, columns) for size in (288, 352, 353, 384, 385, 4095, 4096, 4097, 4225) for columns in (17, 33, 100)]
    + [(size, columns) for size in (257, 287, 352, 417, 4129) for columns in (2, 3, 5, 8, 12, 63, 64, 65)]
    + [(9000, 257), (131_072, 16), (131_073, 17), (131_072, 32), (131_073, 33), (131_105, 4), (262_145, 100)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "operation", [o for o in OPERATIONS if o.function in BY_COLUMNS], ids=lambda operation: operation.id
)
def test_of_columns(
    operation: Operation, dtype: Any, size: int, columns: int, tier: str, rng: np.random.Generator
) -> None:
    arrays = unusual_columns(operation, size, columns, dtype, rng)
    where = rng.random((columns, size)) < 0.9
    for mask in (None, where):
        keywords = {} if mask is None else {"where": mask}
        right = oracle.evaluate(fk, operation, arrays, n_threads=1, **keywords)
        rows = [np.asarray(row).tobytes() for row in right]
        down = [np.ascontiguousarray(v.T) if v.ndim == 2 else v for v in arrays]
        keywords = {} if mask is None else {"where": np.ascontiguousarray(mask.T)}
        for n_threads in (1, 3):
            got = oracle.evaluate(fk, operation, down, axis=0, n_threads=n_threads, **keywords)
            assert_rows_same(got.T, rows, f"along axis 0, {n_threads} threads")
        # Between other columns, into a result between others.
        wide = [np.pad(v, ((0, 0), (3, 2)), constant_values=np.nan)[:, 3:-2] if v.ndim == 2 else v for v in down]
        out = np.zeros((*got.shape[:-1], columns + 5), dtype)[..., 1:-4]
        oracle.evaluate(fk, operation, wide, axis=0, out=out, n_threads=1, **keywords)
        assert_rows_same(out.T, rows, "between other columns")
        if columns % 2 == 0 and right.ndim == 2 and mask is None:
            middle = [v.reshape(2, columns // 2, size).swapaxes(1, 2).copy() for v in arrays if v.ndim == 2]
            for n_threads in (1, 3):
                got = oracle.evaluate(fk, operation, middle, axis=1, n_threads=n_threads)
                assert_rows_same(got.swapaxes(1, 2).reshape(columns, size), rows, f"middle axis, {n_threads} threads")
        if right.ndim == 2 and mask is None:
            oracle.evaluate(fk, operation, down, axis=0, out=down[0], n_threads=3)
            assert_rows_same(down[0].T, rows, "in place")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 10, 16])
@dtypes
@operations
def test_in_a_batch_of_100_000(
    operation: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator
) -> None:
    arrays = draw(operation, 100_000, size, dtype, rng)
    places = rng.choice(100_000, 40, replace=False)
    right = one_by_one(operation, [v[places] for v in arrays])
    first = None
    for n_threads in (1, 2, 3, 8):
        got = oracle.evaluate(fk, operation, arrays, n_threads=n_threads)
        assert_rows_same(got[places], right, f"{n_threads} threads")
        first = got.tobytes() if first is None else first
        assert got.tobytes() == first, f"{n_threads} threads"
    if "avx512" in _kernels.supported() and tier == "avx2":
        with _kernels.use("avx512"):
            assert oracle.evaluate(fk, operation, arrays).tobytes() == first, "AVX-512 and AVX2 differ"


@pytest.mark.parametrize("size", [3, 10, 64, 100, 1000, 4097, 140_000])
@dtypes
@operations
def test_under_a_mask(operation: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    rows = 300 if size <= 100 else 20 if size <= 1000 else 3
    arrays = draw(operation, rows, size, dtype, rng)
    where = rng.random((rows, size)) < 0.7
    alone = [oracle.evaluate(fk, operation, [v[i] for v in arrays], where=where[i]) for i in range(rows)]
    right = [np.asarray(one).tobytes() for one in alone]
    if "avx512" in _kernels.supported() and tier == "avx2":
        with _kernels.use("avx512"):
            assert_rows_same(oracle.evaluate(fk, operation, arrays, where=where), right, "AVX-512")
    for n_threads in (1, 3):
        got = oracle.evaluate(fk, operation, arrays, where=where, n_threads=n_threads)
        assert_rows_same(got, right, f"{n_threads} threads")
    for how, mask in {
        "in Fortran order": np.asfortranarray(where),
        "between others": np.pad(where, ((0, 0), (1, 2)), constant_values=True)[:, 1:-2],
        "of every other element": np.repeat(where, 2, axis=1)[:, ::2],
    }.items():
        assert_rows_same(oracle.evaluate(fk, operation, arrays, where=mask), right, f"mask {how}")
    if np.ndim(alone[0]) == 1:
        out = np.ones((rows, size + 3), got.dtype)
        oracle.evaluate(fk, operation, arrays, where=where, out=out[:, 1:-2])
        assert_rows_same(out[:, 1:-2], right, "into a result between others")
        assert np.all(out[:, [0, -2, -1]] == 1)
    everything = oracle.evaluate(fk, operation, arrays, where=np.ones((rows, size), bool))
    assert everything.tobytes() == oracle.evaluate(fk, operation, arrays).tobytes(), "a mask that masks nothing"


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int16", "bool"])
@pytest.mark.parametrize("size", [3, 10, 64, 100, 1000, 4097, 140_000])
@operations
def test_of_narrow_types(operation: Operation, size: int, storage: str, tier: str, rng: np.random.Generator) -> None:
    rows = 300 if size <= 100 else 20 if size <= 1000 else 3
    kind = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(storage, storage))
    arrays = [
        np.abs(np.nan_to_num(v, posinf=9, neginf=-9)).astype(kind) if v.ndim == 2 else v
        for v in draw(operation, rows, size, np.float32, rng)
    ]
    right = one_by_one(operation, arrays)
    if "avx512" in _kernels.supported() and tier == "avx2":
        with _kernels.use("avx512"):
            assert one_by_one(operation, arrays) == right, "AVX-512 and AVX2 differ"
    for n_threads in (1, 3):
        got = oracle.evaluate(fk, operation, arrays, n_threads=n_threads)
        assert_rows_same(got, right, f"{n_threads} threads")
    wide = [v.astype(np.float32 if "float" in storage else np.float64) if v.ndim == 2 else v for v in arrays]
    assert_rows_same(oracle.evaluate(fk, operation, wide), right, "widened before the call")


@pytest.mark.parametrize("size", [5, 100, 4097])
@dtypes
def test_weighted_logsumexp(size: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    x = (3 * rng.normal(size=(200, size))).astype(dtype)
    b = rng.choice([-1.0, 0.0, 0.5, 2.0], (200, size)).astype(dtype)
    both = [fk.logsumexp(row, b=weights, return_sign=True) for row, weights in zip(x, b, strict=True)]
    right = [(value.tobytes(), sign.tobytes()) for value, sign in both]
    for n_threads in (1, 2, 3):
        value, sign = fk.logsumexp(x, b=b, return_sign=True, n_threads=n_threads)
        assert [(v.tobytes(), s.tobytes()) for v, s in zip(value, sign, strict=True)] == right
    value, sign = fk.logsumexp(x.T.copy(), b=b.T.copy(), axis=0, return_sign=True)
    assert [(v.tobytes(), s.tobytes()) for v, s in zip(value, sign, strict=True)] == right


@pytest.mark.parametrize(("rows", "size"), [(200_000, 3), (3000, 100), (3, 140_000)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@dtypes
def test_reductions(reduction: str, rows: int, size: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    x = (3 * rng.normal(size=(rows, size))).astype(dtype)
    labels = rng.integers(size, size=rows)
    right = fk.softmax_cross_entropy(x, labels, reduction=reduction, n_threads=1).tobytes()
    for n_threads in (2, 3, 8, None):
        got = fk.softmax_cross_entropy(x, labels, reduction=reduction, n_threads=n_threads)
        assert got.tobytes() == right, f"{n_threads} threads"
    assert fk.softmax_cross_entropy(np.asfortranarray(x), labels, reduction=reduction).tobytes() == right


@pytest.mark.parametrize(
    "size", [2, 7, 8, 20, 33, 100, 256, 257, 300, 1000, 4099, 5000, 9000, 70_000, 100_000, 140_000]
)
@pytest.mark.parametrize("function", [fk.softmax, fk.log_softmax], ids=lambda function: function.__name__)
@dtypes
def test_past_the_cache(
    function: Any, size: int, dtype: str, tier: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results larger than the cache are stored non-temporally: the same bytes, and none beside them.

    A line that two rows share is stored when it is whole; where there is a gap between them, each in its part.
    """
    rows = 2003 if size < 1000 else 37 if size < 10_000 else 4
    x = (4 * rng.normal(size=(rows, size))).astype(dtype)
    x[0, 0], x[1, -1], x[2, 0], x[3] = np.nan, np.inf, -np.inf, -np.inf
    mask = rng.random(x.shape) < 0.7
    right, masked = function(x, n_threads=1), function(x, where=mask, n_threads=1)
    monkeypatch.setattr("fastkl._call.LAST_LEVEL_CACHE", 100)
    for gap in (0, 1, 3, 16):
        across = size + gap
        around = np.full(rows * across + 8, 7, dtype)
        for offset in (0, 1, 5):
            out = around[offset : offset + rows * across].reshape(rows, across)[:, :size]
            for n_threads in (1, 2, 3):
                out[:] = 7
                function(x, out=out, n_threads=n_threads)
                assert out.tobytes() == right.tobytes(), f"gap {gap}, offset {offset}, {n_threads} threads"
            function(x, where=mask, out=out, n_threads=1)
            assert out.tobytes() == masked.tobytes(), f"gap {gap}, offset {offset}, masked"
            out[:] = 7
            assert np.all(around == 7), f"gap {gap}, offset {offset}: stored beside"
