"""The gate: whatever is passed either means what NumPy would mean by it, or is refused by name."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl.registry import OPERATIONS, Operation

operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
MAPS = [operation for operation in OPERATIONS if operation.returns == "element"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def draw(operation: Operation, shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the operands of an operation, contiguous; labels for the last axis."""
    if operation.domain == "logits":
        arrays = [(3 * rng.normal(size=shape)).astype(dtype)]
    else:
        arrays = [rng.uniform(0.01, 1, shape).astype(dtype) for _ in operation.operands]
    return [*arrays, rng.integers(shape[-1], size=shape[:-1])] if "labels" in operation.operands else arrays


def assert_same(got: Any, right: Any) -> None:
    """Equal as bytes, in shape and in type."""
    assert (np.shape(got), np.asarray(got).dtype) == (np.shape(right), np.asarray(right).dtype)
    assert np.asarray(got).tobytes() == np.asarray(right).tobytes()


# Layouts ----------------------------------------------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    """Return the same numbers one byte off."""
    view = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned or x.itemsize == 1
    return view


def layouts(x: np.ndarray, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the same numbers in every layout that NumPy knows."""
    yield "Fortran", np.asfortranarray(x)
    yield "middle axis first in memory", np.ascontiguousarray(np.moveaxis(x, 1, 0)).swapaxes(0, 1)
    for axis in range(x.ndim):
        yield f"negative stride of axis {axis}", np.flip(np.ascontiguousarray(np.flip(x, axis)), axis)
        for step in (2, 3):
            apart = np.repeat(x, step, axis)
            apart[tuple(slice(1, None, step) if a == axis else slice(None) for a in range(x.ndim))] = 77
            yield f"step {step} of axis {axis}", apart[
                tuple(slice(None, None, step) if a == axis else slice(None) for a in range(x.ndim))
            ]
    yield "all strides negative", np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    inside = np.full([n + 2 for n in x.shape], 77, x.dtype)
    inside[1:-1, 1:-1, 1:-1] = x
    yield "inside a larger array", inside[1:-1, 1:-1, 1:-1]
    yield "misaligned", misaligned(x)
    yield "byte-swapped", x.astype(x.dtype.newbyteorder())
    yield "misaligned and byte-swapped", misaligned(x.astype(x.dtype.newbyteorder()))
    yield "byte-swapped, reversed", x.astype(x.dtype.newbyteorder())[..., ::-1].copy()[..., ::-1]
    read_only = x.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    mapped = np.memmap(folder / "mapped", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    yield "memory map", mapped
    yield "field of records", np.rec.fromarrays([np.zeros(x.shape, np.int8), x], names="a,x")["x"]
    if x.dtype == np.float64:
        yield "nested lists", x.tolist()
        yield "tuple of arrays", tuple(x)


@dtypes
@operations
def test_layouts_of_the_operands(operation: Operation, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4, 5), dtype, rng)
    right = oracle.evaluate(fk, operation, arrays)
    for i, array in enumerate(arrays):
        if array.ndim != 3:
            continue
        for name, view in layouts(array, tmp_path):
            np.testing.assert_array_equal(np.asarray(view), array, err_msg=name)
            got = oracle.evaluate(fk, operation, [view if j == i else v for j, v in enumerate(arrays)])
            assert np.asarray(got).tobytes() == right.tobytes(), name
            assert got.dtype == dtype


@pytest.mark.parametrize("storage", [BFLOAT16, *map(np.dtype, ["f2", "i1", "u8", "i4", "bool"])], ids=str)
@operations
def test_layouts_of_narrow_types(
    operation: Operation, storage: np.dtype, tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays = draw(operation, (3, 4, 5), np.float64, rng)
    arrays = [np.abs(v * 3).astype(storage) if v.ndim == 3 else v for v in arrays]
    wide = np.float32 if storage.name.endswith("float16") else np.float64
    right = oracle.evaluate(fk, operation, [v.astype(wide) if v.ndim == 3 else v for v in arrays])
    assert_same(oracle.evaluate(fk, operation, arrays), right)
    for name, view in layouts(arrays[0], tmp_path):
        if storage == BFLOAT16 and "byte-swapped" in name:
            continue  # ml_dtypes has no other byte order
        got = oracle.evaluate(fk, operation, [view, *arrays[1:]])
        assert np.asarray(got).tobytes() == right.tobytes(), name


@dtypes
@operations
def test_zero_strides(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    few, many = (4, 5), (90, 300)
    for shape, full in [((1, 5), few), ((4, 1), few), ((1, 1), few), ((1, 300), many), ((90, 1), many)]:
        arrays = draw(operation, full, dtype, rng)
        arrays[0] = np.broadcast_to(arrays[0][: shape[0], : shape[1]], full)
        assert 0 in arrays[0].strides
        right = oracle.evaluate(fk, operation, [v.copy() for v in arrays])
        assert_same(oracle.evaluate(fk, operation, arrays), right)


@dtypes
@operations
def test_inputs_are_left_as_they_were(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    arrays = draw(operation, (40, 70), dtype, rng)
    copies = [v.copy() for v in arrays]
    oracle.evaluate(fk, operation, arrays, where=rng.random((40, 70)) < 0.5)
    for array, copy in zip(arrays, copies, strict=True):
        assert_same(array, copy)


# Axes -------------------------------------------------------------------------------------------------------------


def rows_last(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return x with the given axes joined to one, the last."""
    axes = tuple(a % x.ndim for a in axes)
    moved = np.moveaxis(x, sorted(axes), range(-len(axes), 0))
    kept = moved.shape[: x.ndim - len(axes)]
    return np.ascontiguousarray(moved.reshape(*kept, math.prod(x.shape) // max(1, math.prod(kept))))


AXES = [0, 1, 2, 3, -1, -2, -3, -4, (0,), (3,), (0, 1), (1, 0), (-1, 0), (1, 3), (3, 1, 2), (0, 1, 2, 3), None]


@pytest.mark.parametrize("axis", AXES, ids=str)
@dtypes
@operations
def test_axes(operation: Operation, dtype: str, axis: Any, rng: np.random.Generator) -> None:
    shape = (2, 3, 4, 5)
    axes = tuple(range(4)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if "labels" in operation.operands and not isinstance(axis, int):
        pytest.skip("a label names a class along one axis")
    arrays = draw(operation, shape, dtype, rng)
    if "labels" in operation.operands:
        arrays[1] = rng.integers(shape[axis], size=np.delete(shape, axis))
    rows = [rows_last(v, axes) if v.ndim == 4 else v for v in arrays]
    right = oracle.evaluate(fk, operation, rows)
    got = oracle.evaluate(fk, operation, arrays, axis=axis)
    if operation.returns == "element":
        assert got.shape == shape
        assert_same(rows_last(got, axes), right)
        return
    assert_same(got, right)
    kept = oracle.evaluate(fk, operation, arrays, axis=axis, keepdims=True)
    assert kept.shape == tuple(1 if a in {v % 4 for v in axes} else n for a, n in enumerate(shape))
    assert kept.tobytes() == right.tobytes()


@operations
def test_zero_dimensions(operation: Operation) -> None:
    if "labels" in operation.operands:
        return
    x = np.float32(0.25)
    got = oracle.evaluate(fk, operation, [x for _ in operation.operands], axis=None)
    assert isinstance(got, np.float32)
    assert_same(got, oracle.evaluate(fk, operation, [np.array([x]) for _ in operation.operands], axis=None).reshape(()))


@operations
def test_axis_errors(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), np.float64, rng)
    for axis in (2, -3, 10**30):
        with pytest.raises((np.exceptions.AxisError, OverflowError) if axis > 9 else np.exceptions.AxisError):
            oracle.evaluate(fk, operation, arrays, axis=axis)
    for axis in (1.0, "0"):
        with pytest.raises(TypeError):
            oracle.evaluate(fk, operation, arrays, axis=axis)
    if "labels" not in operation.operands:
        with pytest.raises(ValueError, match="axis"):
            oracle.evaluate(fk, operation, arrays, axis=(0, 0))
        with pytest.raises(ValueError, match="axis"):
            oracle.evaluate(fk, operation, arrays, axis=(1, -1))
        with pytest.raises(np.exceptions.AxisError):
            oracle.evaluate(fk, operation, arrays, axis=(0, 2))


# Types ------------------------------------------------------------------------------------------------------------

PROMOTIONS = [
    ("float32", "float32", "float32"),
    ("float32", "float64", "float64"),
    ("float16", "float16", "float32"),
    ("bfloat16", "bfloat16", "float32"),
    ("float16", "bfloat16", "float32"),
    ("float16", "float64", "float64"),
    ("bfloat16", "float32", "float32"),
    ("int8", "int8", "float64"),
    ("bool", "uint64", "float64"),
    ("int64", "float32", "float64"),
    ("float64", "int16", "float64"),
]


@pytest.mark.parametrize(("first", "second", "result"), PROMOTIONS, ids=lambda v: v)
def test_promotion(first: str, second: str, result: str, rng: np.random.Generator) -> None:
    named = {"bfloat16": BFLOAT16}
    p = np.ceil(rng.uniform(1, 5, (3, 4))).astype(named.get(first, first))
    q = np.ceil(rng.uniform(1, 5, (3, 4))).astype(named.get(second, second))
    for function in (fk.cross_entropy, fk.kl_divergence, fk.generalized_kl):
        for a, b in ((p, q), (q, p)):
            assert_same(function(a, b), function(a.astype(result), b.astype(result)))
    assert_same(fk.logsumexp(p, b=q), fk.logsumexp(p.astype(result), b=q.astype(result)))


REFUSED = {
    "object": np.array([[1.0, 2.0]], object),
    "complex128": np.ones((1, 2), complex),
    "complex64": np.ones((1, 2), np.complex64),
    "longdouble": np.ones((1, 2), np.longdouble),
    "str": np.array([["1", "2"]]),
    "bytes": np.array([[b"1", b"2"]]),
    "datetime64": np.array([["2020-01-01", "2020-01-02"]], "M8[D]"),
    "timedelta64": np.ones((1, 2), "m8[s]"),
    "void": np.zeros((1, 2), "V4"),
    "record": np.zeros((1, 2), [("a", "f4")]),
}


@pytest.mark.parametrize("given", REFUSED)
@operations
def test_refused_types(operation: Operation, given: str) -> None:
    bad = REFUSED[given]
    names = {"str": "str|<U1", "bytes": r"bytes|\|S1", "record": "void|V4|a", "void": "void|V4"}
    named = names.get(given, re.escape(bad.dtype.name))
    for i, operand in enumerate(operation.operands):
        arrays: list[Any] = [np.ones((1, 2)), np.zeros(1, int) if "labels" in operation.operands else np.ones((1, 2))]
        arrays[i] = bad[0] if operand == "labels" else bad
        with pytest.raises(TypeError, match=named):
            oracle.evaluate(fk, operation, arrays[: len(operation.operands)])
    if operation.id == "logsumexp":
        with pytest.raises(TypeError, match=named):
            fk.logsumexp(np.ones((1, 2)), b=bad)


@operations
def test_masked_arrays_are_refused(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), np.float64, rng)
    for i in range(len(arrays)):
        masked = [np.ma.masked_array(v, v > 1) if j == i else v for j, v in enumerate(arrays)]
        with pytest.raises(TypeError, match="where" if arrays[i].ndim == 2 else "mask"):
            oracle.evaluate(fk, operation, masked)


@operations
def test_other_things_are_refused(operation: Operation) -> None:
    for nothing in (None, "abc", {}, {1.0}, object()):
        with pytest.raises(TypeError):
            oracle.evaluate(fk, operation, [nothing for _ in operation.operands])
    with pytest.raises((TypeError, ValueError)):
        oracle.evaluate(fk, operation, [[[1.0, 2.0], [3.0]] for _ in operation.operands])


class HasArray:
    """An object of another library, that NumPy can look into."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert not copy, "a copy was asked for"
        return self.x if dtype is None else self.x.astype(dtype)


class HasDLPack:
    """An object of another library, that exports its memory."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.x.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()


@pytest.mark.parametrize("wrapper", [HasArray, HasDLPack])
@dtypes
@operations
def test_arrays_of_other_libraries(operation: Operation, dtype: str, wrapper: Any, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), dtype, rng)
    got = oracle.evaluate(fk, operation, [wrapper(v) for v in arrays])
    assert_same(got, oracle.evaluate(fk, operation, arrays))


def test_torch_tensors() -> None:
    """In a process of its own: PyTorch brings its own OpenMP and takes seconds to load."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    program = """
import numpy as np, torch, fastkl as fk
for dtype in (torch.float32, torch.float64, torch.float16):
    x = torch.randn(20, 30).to(dtype)
    assert fk.logsumexp(x).tobytes() == fk.logsumexp(x.numpy()).tobytes()
    assert fk.logsumexp(x.T, axis=0).tobytes() == fk.logsumexp(x.numpy()).tobytes()
    labels = torch.randint(30, (20,))
    losses = fk.softmax_cross_entropy(x.numpy(), labels.numpy())
    assert fk.softmax_cross_entropy(x, labels).tobytes() == losses.tobytes()
print("same")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "same\n", done.stderr


# Shapes and options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fk.cross_entropy, fk.kl_divergence, fk.generalized_kl])
@dtypes
def test_broadcasting_of_two_distributions(function: Any, dtype: str, rng: np.random.Generator) -> None:
    shapes = [((6, 5), (5,)), ((6, 5), (1, 5)), ((5,), (6, 5)), ((6, 1), (5,)), ((2, 3, 5), (3, 1))]
    shapes += [((2, 1, 5), (3, 5)), ((300, 100), (100,)), ((70, 7), (7,)), ((0, 5), (5,)), ((0, 5), (1, 5))]
    for first, second in shapes:
        p, q = (rng.uniform(0.01, 1, shape).astype(dtype) for shape in (first, second))
        full_p, full_q = (v.copy() for v in np.broadcast_arrays(p, q))
        assert_same(function(p, q), function(full_p, full_q))
        assert_same(function(p, q, axis=0), function(full_p, full_q, axis=0))
    for first, second in [((6, 5), (4,)), ((6, 5), (5, 5)), ((2, 3, 5), (2, 5))]:
        with pytest.raises(ValueError, match=r"\(6, 5\)|\(2, 3, 5\)") as raised:
            function(np.ones(first), np.ones(second))
        assert str(second) in str(raised.value)


@dtypes
def test_broadcasting_of_weights(dtype: str, rng: np.random.Generator) -> None:
    shapes = [((6, 5), (5,)), ((6, 5), (6, 1)), ((5,), (6, 5)), ((1, 5), (6, 1)), ((6, 5), ())]
    shapes += [((2, 3), (4, 1, 1))]
    for first, second in shapes:
        x, b = rng.normal(size=first).astype(dtype), rng.uniform(-1, 2, second).astype(dtype)
        full_x, full_b = (v.copy() for v in np.broadcast_arrays(x, b))
        for got, right in zip(
            fk.logsumexp(x, b=b, return_sign=True), fk.logsumexp(full_x, b=full_b, return_sign=True), strict=True
        ):
            assert_same(got, right)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        fk.logsumexp(np.ones((6, 5)), b=np.ones(4))
    assert fk.logsumexp([0.0, 0.0], b=3.0) == pytest.approx(math.log(6))
    assert_same(fk.logsumexp([0.0, 1.0], b=[True, False]), np.float64(0.0))


@dtypes
@operations
def test_broadcasting_of_masks(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    arrays = draw(operation, (6, 5), dtype, rng)
    for shape in ((5,), (1, 5), (6, 1), (), (1, 1)):
        where = rng.random(shape) < 0.7
        right = oracle.evaluate(fk, operation, arrays, where=np.broadcast_to(where, (6, 5)).copy())
        assert_same(oracle.evaluate(fk, operation, arrays, where=where), right)
    assert_same(oracle.evaluate(fk, operation, arrays, where=True), oracle.evaluate(fk, operation, arrays))
    strided = np.zeros((12, 10), bool)[::-2, ::2]
    strided[...] = rng.random((6, 5)) < 0.7
    right = oracle.evaluate(fk, operation, arrays, where=strided.copy())
    assert_same(oracle.evaluate(fk, operation, arrays, where=strided), right)
    for shape in ((4,), (5, 1), (2, 6, 5)):
        with pytest.raises(ValueError, match=r"\(6, 5\)") as raised:
            oracle.evaluate(fk, operation, arrays, where=np.ones(shape, bool))
        assert str(shape) in str(raised.value)
    for given in (np.ones((6, 5), int), np.ones((6, 5)), "yes"):
        with pytest.raises(TypeError, match="where"):
            oracle.evaluate(fk, operation, arrays, where=given)


@operations
def test_options_are_keywords(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), np.float64, rng)
    with pytest.raises(TypeError):
        oracle.evaluate(fk, operation, [*arrays, -1])
    with pytest.raises(TypeError):
        oracle.evaluate(fk, operation, arrays, dim=1)


@operations
def test_n_threads(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), np.float64, rng)
    right = oracle.evaluate(fk, operation, arrays)
    for n in (None, 1, 2, 7, np.int64(3), 10_000):
        assert_same(oracle.evaluate(fk, operation, arrays, n_threads=n), right)
    for n in (0, -1, -(2**40)):
        with pytest.raises(ValueError, match=rf"n_threads.*{n}"):
            oracle.evaluate(fk, operation, arrays, n_threads=n)
    for given in (1.5, "2", [1]):
        with pytest.raises(TypeError, match="n_threads"):
            oracle.evaluate(fk, operation, arrays, n_threads=given)


WITH_BASE = [operation for operation in OPERATIONS if oracle.takes(operation, "base")]


@pytest.mark.parametrize("operation", WITH_BASE, ids=lambda o: o.id)
def test_base(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (3, 4), np.float64, rng)
    nats = oracle.evaluate(fk, operation, arrays)
    for base in (2, 10, math.e, 0.5, np.float32(2), 1e300):
        got = oracle.evaluate(fk, operation, arrays, base=base)
        power = 0.5 if operation.function == "js_distance" else 1     # the base is that of what is under the root
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(got, nats / np.float64(math.log(base)) ** power, rtol=1e-14)
    for base in (0, 1, 1.0, -2, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"base.*{base}"):
            oracle.evaluate(fk, operation, arrays, base=base)
    for given in ("2", [2], 2j):
        with pytest.raises(TypeError, match="base"):
            oracle.evaluate(fk, operation, arrays, base=given)


def test_given() -> None:
    p = np.array([0.25, 0.75])
    assert_same(fk.entropy(p, given="probs"), fk.entropy(p))
    assert fk.entropy(np.log(p), given="logits") == pytest.approx(fk.entropy(p), rel=1e-14)
    for given in ("log_prob", "prob", "", None, 1):
        with pytest.raises((ValueError, TypeError), match="given"):
            fk.entropy(p, given=given)


# out --------------------------------------------------------------------------------------------------------------


def outs(shape: tuple[int, ...], dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places to write a result of this shape, each with the whole array that it lies in."""
    whole = np.full(shape, 77, dtype)
    yield whole, whole
    whole = np.full(shape, 77, dtype, order="F")
    yield whole, whole
    whole = np.full([2 * n for n in shape], 77, dtype)
    yield whole[tuple(slice(1, None, 2) for _ in shape)], whole
    whole = np.full(shape, 77, dtype)
    yield whole[tuple(slice(None, None, -1) for _ in shape)], whole


@dtypes
@operations
def test_out(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    for size in (5, 64, 200):
        arrays = draw(operation, (3, 7, size), dtype, rng)
        for axis in (-1, 1):
            if axis == 1 and "labels" in operation.operands:
                arrays[1] = rng.integers(7, size=(3, size))
            right = oracle.evaluate(fk, operation, arrays, axis=axis)
            for out, whole in outs(right.shape, dtype):
                got = oracle.evaluate(fk, operation, arrays, axis=axis, out=out)
                assert got is out
                assert_same(np.ascontiguousarray(out), right)
                assert (whole == 77).sum() == whole.size - out.size, "wrote beside out"
    if operation.returns == "row":
        rows = [v[0, 0] for v in arrays] if "labels" not in operation.operands else [arrays[0][0, 0], np.int64(3)]
        out = np.full((), 77, dtype)
        assert oracle.evaluate(fk, operation, rows, out=out) is out
        assert out == oracle.evaluate(fk, operation, rows)
        arrays = draw(operation, (3, 7), dtype, rng)
        out = np.full((3, 1), 77, dtype)
        assert oracle.evaluate(fk, operation, arrays, keepdims=True, out=out) is out
        assert_same(out[:, 0].copy(), oracle.evaluate(fk, operation, arrays))


@dtypes
@operations
def test_out_refused(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    arrays = draw(operation, (6, 6), dtype, rng)
    right = oracle.evaluate(fk, operation, arrays)
    shape = right.shape
    for wrong in ((5,), (6, 5), (6, 6, 1), (1, 6), ()):
        with pytest.raises(ValueError, match="out") as raised:
            oracle.evaluate(fk, operation, arrays, out=np.empty(wrong, dtype))
        assert str(wrong) in str(raised.value)
        assert str(shape) in str(raised.value)
    other = {"float32": "float64", "float64": "float32"}[dtype]
    for wrong_type in (other, "float16", "int64", "complex128", "object"):
        with pytest.raises((TypeError, ValueError), match=f"out.*{wrong_type}|{wrong_type}.*out"):
            oracle.evaluate(fk, operation, arrays, out=np.empty(shape, wrong_type))
    with pytest.raises((TypeError, ValueError), match="out"):
        oracle.evaluate(fk, operation, arrays, out=np.empty(shape, np.dtype(dtype).newbyteorder()))
    read_only = np.empty(shape, dtype)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|writeable"):
        oracle.evaluate(fk, operation, arrays, out=read_only)
    with pytest.raises(ValueError, match="aligned"):
        oracle.evaluate(fk, operation, arrays, out=misaligned(np.ones(shape, dtype)))
    with pytest.raises(TypeError, match="out"):
        oracle.evaluate(fk, operation, arrays, out=[0.0] * 6)
    with pytest.raises((TypeError, ValueError), match="out"):
        oracle.evaluate(fk, operation, arrays, out=np.ma.masked_array(np.empty(shape, dtype)))
    one_place = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, (0,) * len(shape))
    with pytest.raises(ValueError, match=r"overlap|stride"):
        oracle.evaluate(fk, operation, arrays, out=one_place)


@dtypes
@operations
def test_out_overlapping(operation: Operation, dtype: str, rng: np.random.Generator) -> None:
    """Writing over what is still to be read; masks, weights and labels are read as well."""
    memory = rng.uniform(0.1, 1, 200).astype(dtype)
    x = memory[:36].reshape(6, 6)
    if operation.returns == "element":
        overlaps = [memory[1:37].reshape(6, 6), memory[6:42].reshape(6, 6), x[::-1], x[:, ::-1], x.T]
    else:
        overlaps = [memory[:6], memory[30:36], memory[35:41], memory[2:26:4], memory[:6][::-1]]
    others = draw(operation, (6, 6), dtype, rng)[1:]
    for i in range(len(operation.operands) - ("labels" in operation.operands)):
        arrays = [x, *others] if i == 0 else [others[0], x]
        before = memory.copy()
        for out in overlaps:
            with pytest.raises(ValueError, match="overlap"):
                oracle.evaluate(fk, operation, arrays, out=out)
        assert_same(memory, before)
    if "labels" in operation.operands:
        labels = memory.view(np.int32 if dtype == "float32" else np.int64)[:6]
        labels[...] = 0
        with pytest.raises(ValueError, match="overlap"):
            oracle.evaluate(fk, operation, [np.ones((6, 6), dtype), labels], out=memory[:6])
    mask = memory.view(bool)[:36].reshape(6, 6)
    shape = (6, 6) if operation.returns == "element" else (6,)
    with pytest.raises(ValueError, match="overlap"):
        oracle.evaluate(
            fk, operation, [np.ones((6, 6), dtype), *others], where=mask, out=memory[: math.prod(shape)].reshape(shape)
        )
    apart = memory[100 : 100 + math.prod(shape)].reshape(shape)
    assert oracle.evaluate(fk, operation, [x, *others], out=apart) is apart


@pytest.mark.parametrize("size", [1, 2, 5, 63, 64, 65, 200, 4097, 9000])
@pytest.mark.parametrize("operation", MAPS, ids=lambda operation: operation.id)
@dtypes
def test_in_place(operation: Operation, dtype: str, size: int, rng: np.random.Generator) -> None:
    (x,) = draw(operation, (70 if size < 200 else 3, size), dtype, rng)
    for view in (x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x.copy()[::-1]):
        for axis in (-1, 0):
            where = rng.random(x.shape) < 0.8
            for keywords in ({}, {"where": where}):
                right = oracle.evaluate(fk, operation, [view.copy()], axis=axis, **keywords)
                inside = np.repeat(view, 2, 1)[:, ::2] if not view.flags.c_contiguous else view.copy()
                assert oracle.evaluate(fk, operation, [inside], axis=axis, out=inside, **keywords) is inside
                assert_same(np.ascontiguousarray(inside), np.ascontiguousarray(right))


# Labels -----------------------------------------------------------------------------------------------------------

LABEL_TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("label_type", LABEL_TYPES)
@dtypes
def test_label_types(label_type: str, dtype: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 120)).astype(dtype)
    labels = rng.integers(120, size=40)
    right = fk.softmax_cross_entropy(x, labels)
    narrow = labels.astype(label_type)
    for given in (
        narrow,
        narrow.astype(narrow.dtype.newbyteorder()),
        misaligned(narrow),
        np.repeat(narrow, 3)[::3],
        narrow[::-1].copy()[::-1],
    ):
        assert_same(fk.softmax_cross_entropy(x, given), right)
    assert_same(fk.softmax_cross_entropy(x, labels.tolist()), right)
    assert_same(fk.softmax_cross_entropy(x.T, narrow, axis=0), right)
    assert_same(fk.softmax_cross_entropy(x.reshape(5, 8, 120), narrow.reshape(5, 8)), right.reshape(5, 8))
    one = fk.softmax_cross_entropy(x[0], narrow[0])
    assert_same(one, right[0])
    same_for_all = np.broadcast_to(narrow[:1], (40,))
    assert_same(fk.softmax_cross_entropy(x, same_for_all), fk.softmax_cross_entropy(x, same_for_all.copy()))


def test_labels_refused() -> None:
    x = np.zeros((3, 4))
    for labels in (np.zeros(3), np.zeros(3, bool), np.zeros(3, np.float16), np.array(["a"] * 3), [0.0, 1.0, 2.0]):
        with pytest.raises(TypeError, match="label"):
            fk.softmax_cross_entropy(x, labels)
    for shape in ((4,), (3, 1), (3, 4), (), (1,), (2, 3)):
        with pytest.raises(ValueError, match="label") as raised:
            fk.softmax_cross_entropy(x, np.zeros(shape, int))
        assert str(shape) in str(raised.value)
        assert "(3,)" in str(raised.value) or "(3, 4)" in str(raised.value)
    for given in (1.5, "1"):
        with pytest.raises(TypeError, match="ignore_index"):
            fk.softmax_cross_entropy(x, [0, 1, 2], ignore_index=given)
    for reduction in ("avg", "", "Mean"):
        with pytest.raises(ValueError, match=rf"reduction.*'{reduction}'"):
            fk.softmax_cross_entropy(x, [0, 1, 2], reduction=reduction)


@pytest.mark.parametrize(("rows", "classes"), [(6, 5), (3000, 10), (50, 300), (3, 20_000)])
@dtypes
def test_a_bad_label_leaves_no_garbage(dtype: str, rows: int, classes: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(rows, classes)).astype(dtype)
    labels = rng.integers(classes, size=rows)
    right = fk.softmax_cross_entropy(x, labels)
    first, later = rows // 2, rows - 1
    for bad in (classes, -1, 2**62, -(2**62)):
        wrong = labels.copy()
        wrong[[first, later]] = bad
        for n_threads in (1, 2):
            out = np.full(rows, 77, dtype)
            with pytest.raises(IndexError, match=f"label {bad} in row {first} is out of range for {classes} classes"):
                fk.softmax_cross_entropy(x, wrong, out=out, n_threads=n_threads)
            assert ((out == 77) | (out == right)).all()


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 200])
def test_a_bad_label_leaves_out_as_it_was(rows: int, rng: np.random.Generator) -> None:
    classes = 7
    x = rng.normal(size=(rows, classes))
    out = np.full(rows, 77.0)
    for first in {0, rows // 2, rows - 1}:
        for kind in (np.int64, np.int8, np.dtype(">i4")):
            labels = rng.integers(classes, size=rows).astype(kind)
            labels[:first] = np.where(rng.random(first) < 0.5, -100, labels[:first])
            labels[[first, -1]] = classes, -1
            bad = int(labels[first])
            for given in (labels, np.repeat(labels, 3)[::3], labels[:, None][:, 0]):
                with pytest.raises(IndexError, match=rf"label {bad} in row {first} is out of range for 7 classes"):
                    fk.softmax_cross_entropy(x, given, ignore_index=-100, out=out)
            grid = np.stack([labels, labels])[:, ::-1].T      # two axes that no stride steps through
            with pytest.raises(IndexError, match="out of range for 7 classes"):
                fk.softmax_cross_entropy(
                    np.stack([x, x], axis=1), grid, ignore_index=-100, out=np.full((rows, 2), 77.0)
                )
            assert (out == 77).all()
    with pytest.raises(IndexError, match="label 0 in row 0 is out of range for 0 classes"):
        fk.softmax_cross_entropy(x[:, :0], np.zeros(rows, int), out=out)
    assert (out == 77).all()


@pytest.mark.parametrize("ignore_index", [-100, 3, 255, 2**31, 2**63 - 1, -(2**63)])
def test_ignore_index(ignore_index: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 5))
    labels = rng.choice([0, 1, 2, 4], 50)
    right = fk.softmax_cross_entropy(x, labels)
    ignored = rng.random(50) < 0.3
    labels = np.where(ignored, ignore_index, labels)
    x[ignored] = rng.choice([np.nan, np.inf, -np.inf], (ignored.sum(), 5))
    right[ignored] = 0
    for n_threads in (1, 2):
        keywords = {"ignore_index": ignore_index, "n_threads": n_threads}
        assert_same(fk.softmax_cross_entropy(x, labels, **keywords), right)
        total = fk.softmax_cross_entropy(x, labels, reduction="sum", **keywords)
        assert total == pytest.approx(math.fsum(right), rel=1e-14)
        mean = fk.softmax_cross_entropy(x, labels, reduction="mean", **keywords)
        assert mean == pytest.approx(math.fsum(right) / (~ignored).sum(), rel=1e-14)
    with pytest.raises(IndexError):
        fk.softmax_cross_entropy(x, np.where(ignored, 5, labels), ignore_index=ignore_index)


def test_ignore_index_of_unsigned_labels() -> None:
    """-1 as an uint64 label is 2^64 - 1, not -1."""
    x, labels = np.zeros((2, 5)), np.array([0, 2**64 - 1], np.uint64)
    with pytest.raises(IndexError, match=f"label {2**64 - 1} in row 1"):
        fk.softmax_cross_entropy(x, labels, ignore_index=-1)
    assert fk.softmax_cross_entropy(x, labels, ignore_index=2**64 - 1)[1] == 0
    with pytest.raises(IndexError, match="label 255 in row 1"):
        fk.softmax_cross_entropy(x, labels.astype(np.uint8), ignore_index=-1)


@pytest.mark.parametrize("shape", [(7, 5), (4000, 10), (200, 300), (5, 70_000), (3, 4, 6)])
@dtypes
def test_reductions(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = (5 * rng.normal(size=shape)).astype(dtype)
    labels = rng.integers(shape[-1], size=shape[:-1])
    losses = fk.softmax_cross_entropy(x, labels).astype(np.float64).ravel()
    for n_threads in (1, 2, None):
        total = fk.softmax_cross_entropy(x, labels, reduction="sum", n_threads=n_threads)
        mean = fk.softmax_cross_entropy(x, labels, reduction="mean", n_threads=n_threads)
        assert isinstance(total, np.dtype(dtype).type)
        assert isinstance(mean, np.dtype(dtype).type)
        tolerance = 2 * float(np.finfo(dtype).eps)
        assert total == pytest.approx(math.fsum(losses), rel=tolerance)
        assert mean == pytest.approx(math.fsum(losses) / losses.size, rel=tolerance)
    x[(0,) * len(shape)] = np.nan
    assert math.isnan(fk.softmax_cross_entropy(x, labels, reduction="mean"))


@pytest.mark.parametrize(("rows", "classes"), [(30_000, 5), (3000, 100), (20, 20_000)])
@pytest.mark.parametrize("label_type", ["int64", "uint8"])
def test_labels_that_change_meanwhile(label_type: str, rows: int, classes: int, rng: np.random.Generator) -> None:
    """Another thread turns labels into wild ones and back: a right loss or an IndexError, never a crash."""
    x = rng.normal(size=(rows, classes)).astype(np.float32)
    good = rng.integers(min(classes, 200), size=rows).astype(label_type)
    wild = np.full(rows, np.iinfo(label_type).max, label_type)
    if classes > wild[0]:
        x = x[:, :100]
    if label_type == "int64":
        wild[::2] = -(2**61)
    good %= x.shape[1]
    right = fk.softmax_cross_entropy(x, good)
    labels, stop = good.copy(), threading.Event()
    change = (good ^ wild)[rows // 3 :]

    def flip() -> None:
        # Not a copy: AddressSanitizer's goes byte by byte, and half a wild label may be a class.
        while not stop.is_set():
            labels[rows // 3 :] ^= change

    other = threading.Thread(target=flip)
    other.start()
    outcomes = set()
    try:
        for call in range(150):
            try:
                got = fk.softmax_cross_entropy(x, labels, n_threads=1 + call % 2)
            except IndexError as error:
                outcomes.add(str(error).split()[0])
            else:
                outcomes.add("right")
                assert got.tobytes() == right.tobytes()
    finally:
        stop.set()
        other.join()
    assert outcomes in ({"right"}, {"label"}, {"right", "label"})


# Signs ------------------------------------------------------------------------------------------------------------


@dtypes
def test_return_sign(dtype: str, rng: np.random.Generator) -> None:
    x, b = rng.normal(size=(90, 7)).astype(dtype), rng.normal(size=(90, 7)).astype(dtype)
    value, sign = fk.logsumexp(x, b=b, return_sign=True)
    assert value.dtype == sign.dtype == dtype
    assert set(sign.tolist()) == {-1.0, 1.0}
    total = (b.astype(float) * np.exp(x.astype(float))).sum(-1)
    np.testing.assert_array_equal(sign, np.sign(total))
    np.testing.assert_array_equal(np.isnan(fk.logsumexp(x, b=b)), total < 0)
    kept, kept_sign = fk.logsumexp(x, b=b, return_sign=True, keepdims=True, axis=0)
    assert kept.shape == kept_sign.shape == (1, 7)
    plain, ones = fk.logsumexp(x, return_sign=True)
    assert_same(plain, fk.logsumexp(x))
    assert (ones == 1).all()
    out = np.empty(90, dtype)
    got, _ = fk.logsumexp(x, b=b, return_sign=True, out=out)
    assert got is out
    assert_same(out, value)
    one, its_sign = fk.logsumexp(x[0], b=b[0], return_sign=True)
    assert isinstance(one, np.dtype(dtype).type)
    assert isinstance(its_sign, np.dtype(dtype).type)
