"""What a reduction along the first axis costs over one along the last: ``python bench/axes.py``.

Both take turns on the same numbers, laid out either way in C order, on one thread; softmax and log_softmax fill an
output of their input's layout. A ratio of 1 says that the axis does not matter. ``--middle`` splits the columns in two,
so that the axis that is reduced is the middle one of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

import fastkl as fk

#: Classes and rows, here columns.
SHAPES = (
    *((10, 500_000), (100, 50_000), (100, 65_536), (257, 20_000), (1000, 5_000), (1000, 4_096), (4096, 2_000)),
    *((1_000_000, 10), (100_000, 50), (100_000, 200)),
)
OPERATIONS = ("logsumexp", "softmax_cross_entropy", "softmax", "log_softmax", "entropy", "kl_divergence")


def call(op: str, arrays: list[np.ndarray], labels: np.ndarray, axis: int) -> Callable[[], object]:
    """Return a call on arrays that are reduced along an axis; what maps fills the same output again and again."""
    if op in ("softmax", "log_softmax"):
        out = np.ones_like(arrays[0])
        return lambda: getattr(fk, op)(arrays[0], axis=axis, out=out, n_threads=1)
    if op == "softmax_cross_entropy":
        return lambda: fk.softmax_cross_entropy(arrays[0], labels, axis=axis, n_threads=1)
    operands = arrays if op == "kl_divergence" else arrays[:1]
    return lambda: getattr(fk, op)(*operands, axis=axis, n_threads=1)


def compare(op: str, classes: int, columns: int, dtype: str, middle: bool, seconds: float) -> tuple[float, float]:
    """Return nanoseconds per element along the last axis, and the other axis's over those."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, 2, (min(columns, max(1, 10**6 // classes)), classes)).astype(dtype)
    x = np.resize(block, (columns, classes))
    arrays = [x]
    if op in ("entropy", "kl_divergence"):
        p = fk.softmax(x, axis=1, out=x)
        arrays = [p, np.roll(p, 1, axis=0) if columns > 1 else p]
    labels = rng.integers(classes, size=columns)
    last = call(op, arrays, labels, 1)
    if middle:
        down = [np.ascontiguousarray(v.reshape(2, columns // 2, classes).swapaxes(1, 2)) for v in arrays]
        other = call(op, down, labels.reshape(2, columns // 2), 1)
    else:
        other = call(op, [np.ascontiguousarray(v.T) for v in arrays], labels, 0)
    turns: list[tuple[float, float]] = []
    last(), other()
    began = time.perf_counter()
    while len(turns) < 5 or time.perf_counter() < began + seconds:
        times = []
        for run in (last, other):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        turns.append((times[0], times[1]))
    along, across = (median(t) for t in zip(*turns, strict=True))
    return along / x.size * 1e9, across / along


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=("float32", "float64"))
    parser.add_argument("--shapes", nargs="+", metavar="CLASSESxCOLUMNS", default=[f"{c}x{n}" for c, n in SHAPES])
    parser.add_argument("--middle", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.3, help="per figure")
    options = parser.parse_args()
    shapes = [tuple(int(n) for n in shape.split("x")) for shape in options.shapes]
    print(f"{fk.build_info()['tier']}, one thread: ns per element along the last axis, and the other axis over it")
    print(f"{'':30}" + "".join(f"{shape:>16}" for shape in options.shapes))
    for dtype in options.dtypes:
        for op in options.ops:
            print(f"{op:22}{dtype:8}", end="", flush=True)
            for classes, columns in shapes:
                ns, ratio = compare(op, classes, columns, dtype, options.middle, options.seconds)
                print(f"{ns:9.3f} {ratio:6.2f}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
