"""From the gate to a kernel and back: the two shapes of a call, a number per row and a number per element."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array, Forms
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
    exponential: bool = False,
    given: Forms | None = None,
    **told: Any,
) -> Any:
    """Run an operation that gives one number per row; with `signed` also return the sign of each.

    With `dtype` it is computed and given in that type, whatever the inputs' is. `weight` and `normalize` are for the
    operations of `divergences`. `given`: what the operands hold, see `_args.forms`; None for what the operation takes.
    What else the kernel is `told` are the keywords of its `run`.
    """
    if dtype is None and not signed and not told:
        value = _kernels.active.run_plain(
            op, operands, None, None, axis, where, keepdims, out, n_threads, scale, weight, normalize, exponential,
            given,
        )  # fmt: skip
        if value is not None:
            return value
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
        n_threads is not None, nbytes, weight, normalize, given, exponential, **told,
    )  # fmt: skip
    returned = result if out is not None or result.ndim else result[()]
    if sign is None:
        return returned
    return returned, sign if sign.ndim else sign[()]


def per_pair(
    op: int,
    p: ArrayLike,
    q: ArrayLike,
    given: Any,
    temperature: Any,
    axis: int | Sequence[int] | None,
    base: float | None,
    normalize: bool,
    where: Any,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
    settled: Callable[[int, Forms], tuple[int, bool, Forms | None]] | None = None,
    weight: float = 0.5,
    names: Sequence[str] = ("p", "q"),
) -> Any:
    """Run an operation of two distributions that gives one number per row, of arguments that nobody has looked at yet.

    Where they are not probabilities taken as they are, the kernel is told by `_args.forms` what they hold, or by what
    `settled` makes of the operation and these: another operation, whether it is to `normalize`, and forms or None.
    """
    known = _args.is_settled(given, temperature)
    operands: Any = (p, q)
    forms = None
    if not known:
        operands = _args.as_array(p, names[0]), _args.as_array(q, names[1])
        forms = _args.forms(given, temperature, normalize, operands, names)
    elif normalize or given != "probs":
        forms = _args.settled_forms(given, normalize, 2)
    normalize = False
    if forms is not None and settled is not None:
        op, normalize, forms = settled(op, forms)
    scale = 1.0 if base is None else _args.log_scale(base)
    if known:
        value = _kernels.active.run_plain(
            op, operands, None, None, axis, where, keepdims, out, n_threads, scale, weight, normalize, False, forms
        )
        if value is not None:
            return value
        operands = _args.as_array(p, names[0]), _args.as_array(q, names[1])
    return per_row(
        op, operands, names, axis, where, keepdims, out, n_threads, scale, False, None, weight, normalize, False, forms
    )


def per_element(
    op: int, x: Array, axis: int | Sequence[int] | None, where: Any, out: Array | None, n_threads: int | None
) -> Any:
    """Run an operation that gives one number per element."""
    value = _kernels.active.run_plain(
        op, (x,), None, None, axis, where, False, out, n_threads, 1.0, 0.5, False, False, None
    )
    if value is not None:
        return value
    dtype = _args.result_dtype(x)
    axes = _args.reduced_axes(axis, x.ndim)
    mask = _args.mask_for(where, x.shape)
    result = _args.output_for(out, x.shape, dtype, (x, mask), in_place=True)
    nbytes = 2 * result.nbytes
    threads = threads_for(n_threads, nbytes)
    stream = nbytes > LAST_LEVEL_CACHE and out is not x     # the output would have left the cache when it is complete
    _kernels.active.run(
        op, dtype is FLOAT64, (_args.axes_last(x, axes),), None if mask is None else _args.axes_last(mask, axes),
        None, _args.axes_last(result, axes), None, len(axes), 1.0, None, stream, 0, -1, False, threads,
        n_threads is not None, nbytes,
    )  # fmt: skip
    return result if out is not None or result.ndim else result[()]
