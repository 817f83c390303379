"""The machine's limit: the time to read every input byte once and to write every output byte once.

The limit must not be a slow one, or every share of it would look good. So several ways to read are tried on an array
far larger than the caches, several ways to write, and the fastest of each is kept for the run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, process_time
from typing import Any

import numpy as np
from cases import aligned, last_level_cache

Pass = Callable[[np.ndarray], Any]


def ways() -> tuple[dict[str, Pass], dict[str, Pass]]:
    """Return the ways to read and to write a contiguous array: by our kernels of the tier in use, and by NumPy."""
    import fastkl
    from fastkl import _kernels

    kernels = _kernels.load(fastkl.build_info()["tier"])
    read = {"whole vectors": kernels.stream_read, "NumPy's max": lambda a: a.view(np.uint64).max()}
    write = {"non-temporal": kernels.stream_write, "NumPy's fill": lambda a: a.fill(0)}
    return read, write


class Stream:
    """Reads and writes arrays as fast as this machine does it, on a number of threads."""

    def __init__(self, threads: int, processor_time: bool = False) -> None:
        self.threads = threads
        self.clock = process_time if processor_time else perf_counter
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        array = aligned((max(256 << 20, 8 * last_level_cache()) // 8,), np.float64)
        array[:] = 0
        read, write = ways()
        self.read_rate, self.read_way, self._read = self._fastest(read, array)
        self.write_rate, self.write_way, self._write = self._fastest(write, array)

    def _fastest(self, candidates: dict[str, Pass], array: np.ndarray) -> tuple[float, str, Pass]:
        """Return GB/s, the name and the function of the fastest, by medians in rotation."""
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(7):
            for name, function in candidates.items():
                start = self.clock()
                self._each(function, array)
                seconds[name].append(self.clock() - start)
        best = min(candidates, key=lambda name: float(np.median(seconds[name])))
        return array.nbytes / float(np.median(seconds[best])) / 1e9, best, candidates[best]

    def _each(self, function: Pass, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        if self.pool is None or flat.nbytes < 1 << 20:
            function(flat)
        else:
            # Cut between whole words, so that every part can be read as 64-bit words.
            step = -(-flat.size // (2 * self.threads)) * 2
            list(self.pool.map(function, [flat[i : i + step] for i in range(0, flat.size, step)]))

    def read(self, array: np.ndarray) -> None:
        """Read every byte of ``array`` once."""
        self._each(self._read, array)

    def write(self, array: np.ndarray) -> None:
        """Write every byte of ``array`` once."""
        self._each(self._write, array)

    def text(self) -> str:
        """Return what was found, for the head of the tables."""
        return (
            f"out of cache, reads {self.read_rate:.1f} GB/s ({self.read_way}), "
            f"writes {self.write_rate:.1f} GB/s ({self.write_way})"
        )
