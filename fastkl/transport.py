"""Distances between distributions over points of a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array
from ._call import per_row
from ._threads import threads_for


def wasserstein_1d(
    p: ArrayLike,
    q: ArrayLike,
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Wasserstein-1 (earth mover's) distance of each pair of rows: ``sum(abs(cumsum(p - q)[:-1]) * diff(x))``.

    Parameters
    ----------
    p, q : array_like
        Non-negative weights of the points, the same sum for both; broadcast against each other.
    x : array_like, optional
        The points of the classes, one for each, in any order; by default 0, 1, 2, ... They lie along a single `axis`.
    y : array_like, optional
        The points of q's classes where they are others than p's; q may then have another number of classes.
    axis : int, tuple of ints or None
        The axes that make a row, which runs through them in C order; None for all.
    normalize : bool
        Divide p and q by their sums first.
    where : array_like of bool, optional
        False marks a class as absent: its weights are 0. Not with `y`.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide. They share the rows: a single row has one.

    Returns
    -------
    ndarray or scalar
        One number per row, in the unit of the points; float32 for float32 and half precision, else float64.

    Raises
    ------
    TypeError
        For a type of array that is not taken (complex, object, longdouble, masked arrays).
    ValueError
        For shapes that do not fit, points that are not finite, or an `out` that cannot take the result.

    Notes
    -----
    Domain: p, q >= 0; a negative, infinite or NaN weight gives NaN for its row. Where the sums differ the formula is
    used as written: it is a distance of distributions with ``normalize=True``, which gives NaN where a sum is 0.

    ``scipy.stats.wasserstein_distance(u, v, u_weights, v_weights)`` divides by the sums and is
    ``wasserstein_1d(u_weights, v_weights, x=u, y=v, normalize=True)``, for many rows of weights at once; samples that
    count the same have weights of 1.

    Accuracy: below 4 eps of the result, however near p and q are: their differences are added exactly. With `normalize`
    not below 4 eps of eps times the distance from the first point to the last, where p and q are proportional but for
    their rounding. Points that lie more than 1e12 times as far apart as others may cost more. Sorting takes 16 bytes a
    class.

    Each row is a sum that runs on from class to class, which takes two to four times as long as `kl_divergence`, with
    `normalize` up to twice that. Rows are taken many at a time; in a single long row each step waits for the one
    before, which takes three times as long again.

    References
    ----------
    S. S. Vallender, "Calculation of the Wasserstein distance between probability distributions on the line", Theory of
    Probability and its Applications 18 (1974).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.wasserstein_1d([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]))
    1.5
    >>> samples = [0.0, 1.0, 3.0], [5.0, 6.0, 8.0]
    >>> float(fk.wasserstein_1d([1, 1, 1], [1, 1, 1], x=samples[0], y=samples[1], normalize=True))
    5.0
    """
    operands = _args.as_array(p, "p"), _args.as_array(q, "q")
    op, normalize = _kernels.WASSERSTEIN, bool(normalize)
    if x is None:
        if y is not None:
            raise ValueError("y, the points of q, needs x, the points of p")
        return per_row(op, operands, ("p", "q"), axis, where, keepdims, out, n_threads, normalize=normalize)
    if axis is None or isinstance(axis, (tuple, list)):
        if max(a.ndim for a in operands) > 1:
            raise ValueError(f"with points the classes lie along one axis, not {axis}")
        axis = -1
    if y is None:
        shape = _args.broadcast(operands, ("p", "q"))[0].shape
        classes = math.prod([shape[i] for i in _args.reduced_axes(axis, len(shape))])
        order, gaps = _in_order(_points(x, "x", classes, "p and q have"))
        return per_row(
            op, operands, ("p", "q"), axis, where, keepdims, out, n_threads, normalize=normalize, order=order, gaps=gaps
        )
    if where is not None:
        raise ValueError("where is for classes that p and q share, not for points of their own in y")
    return _of_two_samples(normalize, operands, x, y, axis, keepdims, out, n_threads)


def _points(x: ArrayLike, name: str, classes: int, whose: str) -> Array:
    """Finite float64 numbers in a row, one for each class."""
    points = _args.as_array(x, name).astype(FLOAT64)
    if points.shape != (classes,):
        raise ValueError(f"{name} has shape {points.shape}; {whose} {classes} classes")
    bad = np.flatnonzero(~np.isfinite(points))
    if bad.size:
        raise ValueError(f"{name} takes finite points, not {points[bad[0]]} for class {bad[0]}")
    return points


def _in_order(points: Array) -> tuple[Array | None, Array]:
    """The classes from left to right, None where they are in order, and the distance from each to the next."""
    with np.errstate(over="ignore"):
        gaps = np.diff(points, append=points[-1:])
        order = None
        if (gaps < 0).any():
            order = np.argsort(points, kind="stable")
            points = points[order]
            gaps = np.diff(points, append=points[-1:])
        if points.size and not np.isfinite(points[-1] - points[0]):
            raise ValueError(f"the points from {points[0]} to {points[-1]} are further apart than float64 can tell")
    return order, gaps


def _of_two_samples(
    normalize: bool,
    operands: tuple[Array, Array],
    x: ArrayLike,
    y: ArrayLike,
    axis: Any,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
) -> Any:
    """The same where each distribution has points of its own: both are laid out over all of them, as they are read."""
    rows, points = [], []
    for array, given, name, whose in zip(operands, (x, y), "xy", "pq", strict=True):
        a = array.reshape(1) if array.ndim == 0 else array
        (last,) = _args.reduced_axes(axis, a.ndim)
        rows.append(_args.axes_last(a, (last,)))
        points.append(_points(given, name, a.shape[last], f"{whose} has"))
    dtype = _args.result_dtype(*operands)
    p, q = rows
    try:
        shape = np.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    except ValueError:
        raise ValueError(
            f"the rows of p, of shape {p.shape[:-1]}, and of q, of shape {q.shape[:-1]}, do not broadcast"
        ) from None
    place = axis % (len(shape) + 1)
    kept = (*shape[:place], 1, *shape[place:]) if keepdims else shape
    result = _args.output_for(out, kept, dtype, operands, in_place=False)
    if p.shape[-1] < q.shape[-1]:    # the kernel takes strides of no class or one for none: not those of the longer
        p, q, points = q, p, points[::-1]
    order, gaps = _in_order(np.concatenate(points))
    if order is None:
        order = np.arange(gaps.size)
    p, q = (np.broadcast_to(a, (*shape, a.shape[-1])) for a in (p, q))
    nbytes = (p.size + q.size) * dtype.itemsize
    _kernels.active.run(
        _kernels.WASSERSTEIN, dtype is FLOAT64, (p, q), None, None, result.squeeze(place) if keepdims else result, None,
        1, 1.0, None, False, 0, -1, False, threads_for(n_threads, nbytes), n_threads is not None, nbytes,
        normalize=normalize, order=order, gaps=gaps, split=p.shape[-1],
    )  # fmt: skip
    return result if out is not None or result.ndim else result[()]
