"""The shapes of the benchmarks and the arrays that every contender reads.

One set of inputs holds everything that any operation can ask for, so that all operations of one shape and type, and
all contenders, read the same memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastkl.registry import ELEMENTWISE, OPERATIONS, Operation

SHAPES = ((1_000_000, 10), (100_000, 100), (10_000, 1_000), (64, 128_256), (1, 10_000_000))
DTYPES = ("float32", "float64")

#: Whatever is timed and counted.
BENCHED = OPERATIONS + ELEMENTWISE

#: One cache line: JAX takes an array without a copy only where it starts on one.
ALIGNMENT = 64


def shape_name(shape: tuple[int, int]) -> str:
    """Return the name of a shape in tables and test ids."""
    return f"{shape[0]}x{shape[1]}"


def operation(name: str) -> Operation:
    """Return the registry's row with this id."""
    return {op.id: op for op in BENCHED}[name]


def last_level_cache() -> int:
    """Bytes of the largest cache, 32 MiB where the system does not say."""
    sizes = [32 << 20] if not Path("/sys/devices/system/cpu/cpu0/cache").is_dir() else []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        sizes.append(int(file.read_text().strip().removesuffix("K")) << 10)
    if hasattr(os, "sysconf") and "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names:
        sizes.append(os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    return max(sizes, default=0) or 32 << 20


def aligned(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return an uninitialised array that starts on a cache line."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    store = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -store.ctypes.data % ALIGNMENT
    return store[start : start + nbytes].view(dtype).reshape(shape)


@dataclass
class Inputs:
    """One copy of the arrays of a shape and type: two kinds of rows, labels, and an output of each kind."""

    x: np.ndarray
    p: np.ndarray
    q: np.ndarray
    labels: np.ndarray
    out_element: np.ndarray
    out_row: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Labels from 0 to 1, of the shape of the rows."""
        return self.q

    def operands(self, op: Operation) -> tuple[np.ndarray, ...]:
        """Return what ``op`` takes by position."""
        return tuple(getattr(self, name) for name in op.operands)

    def out(self, op: Operation) -> np.ndarray:
        """Return the output that ``op`` is given."""
        return self.out_element if op.returns == "element" else self.out_row


def make_inputs(shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> Inputs:
    """Draw logits of standard deviation 2 and two softmax distributions of such logits."""
    rows, classes = shape
    x, p, q = (aligned(shape, dtype) for _ in range(3))
    for array in (x, p, q):
        array[:] = rng.standard_normal(shape, dtype=np.float32)
        array *= 2
    for array in (p, q):
        np.exp(array, out=array)
        array /= array.sum(axis=1, dtype=np.float64, keepdims=True).astype(dtype)
    out_element, out_row = aligned(shape, dtype), aligned((rows,), dtype)
    # Touched now: the first write to a fresh page would otherwise be timed.
    out_element[:], out_row[:] = 0, 0
    return Inputs(x, p, q, rng.integers(0, classes, rows), out_element, out_row)


def copies_needed(shape: tuple[int, int], dtype: str) -> int:
    """How many copies of the inputs to walk through, so that none is still in cache when its turn comes again."""
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    return min(16, max(4, -(-4 * last_level_cache() // max(nbytes, 1 << 20))))
