"""From the gate to a kernel and back: the two shapes of a call, a number per row and a number per element."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _args, _kernels
from ._args import FLOAT32, FLOAT64, Array
from ._threads import threads_for


def _last_level_cache() -> int:
    """Bytes of the last-level cache, as the system tells; without its word, what servers have at least."""
    for name in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (ValueError, OSError):
            continue
        if size > 0:
            return size
    return 32 << 20


LAST_LEVEL_CACHE = _last_level_cache()


def per_row(
    op: int,
    operands: Sequence[Array],
    names: Sequence[str],
    axis: int | Sequence[int] | None,
    where: Any = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    scale: float = 1.0,
    signed: bool = False,
    dtype: np.dtype[Any] | None = None,
    weight: float = 0.5,
    normalize: bool = False,
    **told: Any,
) -> Any:
    """Run an operation that gives one number per row; with `signed` also return the sign of each.

    With `dtype` it is computed and given in that type, whatever the inputs' is. `weight` and `normalize` are for the
    operations of `divergences`; what else the kernel is `told` are the keywords of its `run`.
    """
    first = operands[0]
    shape, own, nbytes = first.shape, first.dtype, len(operands) * first.nbytes
    if (
        (own is FLOAT64 or own is FLOAT32) and dtype is None and type(axis) is int and axis == -1 and shape
        and where is None and out is None and not keepdims and not signed
        and (len(operands) == 1 or (operands[1].shape == shape and operands[1].dtype is own))
    ):  # fmt: skip
        # What is below would find nothing to do: on ten numbers it takes longer than the kernel.
        result = np.empty(shape[:-1], own)
        _kernels.active.run(
            op, own is FLOAT64, operands, None, None, result, None, 1, scale, None, False, 0, -1, False,
            threads_for(n_threads, nbytes), n_threads is not None, nbytes, weight, normalize, **told,
        )  # fmt: skip
        return result if result.ndim else result[()]
    dtype = _args.result_dtype(*operands) if dtype is None else dtype
    arrays = _args.broadcast(operands, names)
    first = arrays[0]
    axes = _args.reduced_axes(axis, first.ndim)
    mask = _args.mask_for(where, first.shape)
    kept = tuple([n for i, n in enumerate(first.shape) if i not in axes])
    shape = tuple([1 if i in axes else n for i, n in enumerate(first.shape)]) if keepdims else kept
    result = _args.output_for(out, shape, dtype, [*operands, mask], in_place=False)
    sign = _args.output_for(None, shape, dtype, (), in_place=False) if signed else None
    nbytes = len(arrays) * first.size * dtype.itemsize
    threads = threads_for(n_threads, nbytes)
    dropped = axes if keepdims else ()
    _kernels.active.run(
        op, dtype is FLOAT64, tuple([_args.axes_last(a, axes) for a in arrays]),
        None if mask is None else _args.axes_last(mask, axes), None, _args.without(result, dropped),
        None if sign is None else _args.without(sign, dropped), len(axes), scale, None, False, 0, -1, False, threads,
        n_threads is not None, nbytes, weight, normalize, **told,
    )  # fmt: skip
    returned = result if out is not None or result.ndim else result[()]
    if sign is None:
        return returned
    return returned, sign if sign.ndim else sign[()]


def per_element(
    op: int, x: Array, axis: int | Sequence[int] | None, where: Any, out: Array | None, n_threads: int | None
) -> Any:
    """Run an operation that gives one number per element."""
    dtype, nbytes = x.dtype, 2 * x.nbytes
    if (
        (dtype is FLOAT64 or dtype is FLOAT32) and type(axis) is int and axis == -1 and x.ndim
        and where is None and out is None
    ):  # fmt: skip
        result = np.empty(x.shape, dtype)    # nothing to find below, as in per_row
        _kernels.active.run(
            op, dtype is FLOAT64, (x,), None, None, result, None, 1, 1.0, None, nbytes > 2 * LAST_LEVEL_CACHE, 0, -1,
            False, threads_for(n_threads, nbytes), n_threads is not None, nbytes,
        )  # fmt: skip
        return result
    dtype = _args.result_dtype(x)
    axes = _args.reduced_axes(axis, x.ndim)
    mask = _args.mask_for(where, x.shape)
    result = _args.output_for(out, x.shape, dtype, (x, mask), in_place=True)
    nbytes = 2 * result.nbytes
    threads = threads_for(n_threads, nbytes)
    stream = result.nbytes > LAST_LEVEL_CACHE and out is not x
    _kernels.active.run(
        op, dtype is FLOAT64, (_args.axes_last(x, axes),), None if mask is None else _args.axes_last(mask, axes),
        None, _args.axes_last(result, axes), None, len(axes), 1.0, None, stream, 0, -1, False, threads,
        n_threads is not None, nbytes,
    )  # fmt: skip
    return result if out is not None or result.ndim else result[()]
