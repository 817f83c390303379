"""How many threads a call gets, and what a forked child does."""

from __future__ import annotations

import operator
import os

from ._kernels import cpu

# Below so many bytes read a call stays on its own thread: it is done within half a millisecond, about what waking a
# sleeping team costs (libgomp's workers sleep a few milliseconds after a region; the woken one may land on the caller's
# core). Above, the gain outweighs that.
PARALLEL_BYTES = 12 << 20

_forked = False


def _after_fork() -> None:
    # libgomp's team does not survive a fork: a child that opens a parallel region waits for workers it does not have.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def available() -> int:
    """The most threads a call gets by itself: OpenMP's limit and the CPUs this process may run on."""
    if _forked:
        return 1
    limit: int = cpu.max_threads()
    if hasattr(os, "sched_getaffinity"):
        limit = min(limit, len(os.sched_getaffinity(0)))
    return limit


def threads_for(n_threads: int | None, nbytes: int) -> int:
    """The number of threads for a call that reads so many bytes; asked anew at every call."""
    if n_threads is None:
        return 1 if nbytes < PARALLEL_BYTES else available()
    if isinstance(n_threads, bool):
        raise TypeError("n_threads takes None or a positive int, not a bool")
    try:
        count = operator.index(n_threads)
    except TypeError:
        raise TypeError(f"n_threads takes None or a positive int, not {type(n_threads).__name__}") from None
    if count < 1:
        raise ValueError(f"n_threads takes None or a positive int, not {count}")
    return 1 if _forked or not cpu.openmp else min(count, 1024)
