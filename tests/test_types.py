"""Every operation on every type and from every library: what the wide copy gives, to the bit, and without that copy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl.registry import ELEMENTWISE, OPERATIONS, Operation

REGISTERED = OPERATIONS + ELEMENTWISE
operations = pytest.mark.parametrize("operation", REGISTERED, ids=lambda operation: operation.id)
STORED = [np.dtype(v) for v in ("float16", ml_dtypes.bfloat16, "int8", "uint8", "int32", "int64", "uint64", "bool")]
storages = pytest.mark.parametrize("storage", STORED, ids=str)
halves = pytest.mark.parametrize("storage", STORED[:2], ids=str)


def compute_type(storage: np.dtype[Any]) -> type:
    return np.float32 if storage.name.endswith("float16") else np.float64


def draw(operation: Operation, shape: tuple[int, ...], storage: np.dtype[Any], rng: np.random.Generator) -> list[Any]:
    """Draw the operands in a storage type, all of them numbers that it holds; labels of classes stay integers."""
    arrays: list[Any] = []
    for operand in operation.operands:
        if operand == "labels":
            arrays.append(rng.integers(shape[-1], size=shape[:-1]))
        elif operand == "x":
            signed = storage.kind not in "bu"
            arrays.append((4 * rng.normal(size=shape) if signed else rng.integers(0, 9, shape)).astype(storage))
        else:
            numbers = rng.uniform(0, 1, shape) if storage.name.endswith("float16") else rng.integers(0, 2, shape)
            if operation in OPERATIONS:
                numbers[..., 0] = 1     # no sum is 0
            arrays.append(numbers.astype(storage))
    return arrays


def widened(arrays: list[Any], wide: Any, names: tuple[str, ...]) -> list[Any]:
    return [v if name == "labels" else v.astype(wide) for v, name in zip(arrays, names, strict=True)]


@storages
@operations
def test_as_the_wide_copy(operation: Operation, storage: np.dtype[Any], tier: str, rng: np.random.Generator) -> None:
    for shape in ((50, 7), (9, 300), (2, 9000)):
        arrays = draw(operation, shape, storage, rng)
        right = oracle.evaluate(fk, operation, widened(arrays, compute_type(storage), operation.operands))
        got = oracle.evaluate(fk, operation, arrays)
        assert (got.shape, got.dtype) == (right.shape, np.dtype(compute_type(storage)))
        assert got.tobytes() == right.tobytes()
        where = rng.random(shape) < 0.5
        masked = oracle.evaluate(fk, operation, arrays, where=where)
        wide = widened(arrays, compute_type(storage), operation.operands)
        right = oracle.evaluate(fk, operation, wide, where=where)
        assert masked.tobytes() == right.tobytes()


@halves
@operations
def test_a_row_of_70_000(operation: Operation, storage: np.dtype[Any], rng: np.random.Generator) -> None:
    """No sum is held in half precision: that of 70 000 ones would be infinite, or 2048, in float16."""
    arrays = draw(operation, (70_000,), storage, rng)
    pairs = zip(arrays, operation.operands, strict=True)
    arrays = [np.ones_like(v) if operand in ("p", "q", "targets") else v for v, operand in pairs]
    if "q" in operation.operands:
        arrays[1][::2] = 0.5
    got = oracle.evaluate(fk, operation, arrays)
    right = oracle.evaluate(fk, operation, widened(arrays, np.float64, operation.operands))
    assert got.dtype == np.float32
    largest = float(np.finfo(np.float32).max)
    np.testing.assert_allclose(got, np.where(right > largest, np.inf, right), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", [STORED[0], STORED[1], STORED[2], STORED[6]], ids=str)
@operations
def test_no_converted_copy(operation: Operation, storage: np.dtype[Any], rng: np.random.Generator) -> None:
    """Beyond the result a call takes less than 1 MiB, where a float32 copy of one input would take 8."""
    arrays = draw(operation, (200, 10_000), storage, rng)
    out = np.empty_like(oracle.evaluate(fk, operation, arrays))
    tracemalloc.start()
    try:
        oracle.evaluate(fk, operation, arrays, out=out, n_threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@storages
@operations
def test_memory_maps(operation: Operation, storage: np.dtype[Any], tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = draw(operation, (40, 30), storage, rng)
    mapped = []
    for i, v in enumerate(arrays):
        mapped.append(np.memmap(tmp_path / str(i), v.dtype, "w+", shape=v.shape))
        mapped[-1][...] = v
    right = oracle.evaluate(fk, operation, arrays)
    assert oracle.evaluate(fk, operation, mapped).tobytes() == right.tobytes()


class HasDLPack:
    """An array of another library, that exports its memory and has no __array__."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.x.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()


@pytest.mark.parametrize("storage", [v for v in STORED if v.name != "bfloat16"], ids=str)
@operations
def test_dlpack(operation: Operation, storage: np.dtype[Any], rng: np.random.Generator) -> None:
    arrays = draw(operation, (40, 30), storage, rng)
    right = oracle.evaluate(fk, operation, arrays)
    assert oracle.evaluate(fk, operation, [HasDLPack(v) for v in arrays]).tobytes() == right.tobytes()


def test_torch_tensors() -> None:
    """Of every operation, in a process of its own: PyTorch brings its own OpenMP and takes seconds to load."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    program = """
import numpy as np, torch, fastkl as fk
from fastkl.registry import ELEMENTWISE, OPERATIONS
torch.manual_seed(0)
for operation in OPERATIONS + ELEMENTWISE:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.int64, torch.bool):
        drawn = {name: torch.rand(20, 30).to(dtype) for name in ("p", "q", "x", "targets")}
        drawn["labels"] = torch.randint(30, (20,))
        tensors = [drawn[name] for name in operation.operands]
        function = getattr(fk, operation.function)
        got = function(*tensors, **operation.keywords)
        right = function(*[v.numpy() for v in tensors], **operation.keywords)
        assert got.tobytes() == right.tobytes(), (operation.id, dtype)
        assert isinstance(got, np.ndarray) and got.dtype == right.dtype
print("same")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "same\n", done.stderr
