"""Losses against labels: of one class out of many, and of yes or no."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array
from ._threads import threads_for

# Rows whose losses are held at a time where only their sum is asked for: 512 KiB of float64.
_SLAB = 65536


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    reduction: str = "none",
    empty_mean: float = math.nan,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Cross-entropy of the softmax of each row against its label: ``log(sum(exp(x))) - x[label]``.

    Parameters
    ----------
    logits : array_like
        Real numbers of any shape; the classes lie along `axis`.
    labels : array_like of int
        Class numbers from 0, of the shape of `logits` without `axis`; any integer type.
    axis : int
        The axis of the classes.
    ignore_index : int, optional
        A row with this label has loss 0, whatever its logits, and does not count in the mean.
    reduction : {"none", "mean", "sum"}
        One loss per row, or their mean over the rows kept, or their sum.
    empty_mean : float
        The mean over no rows.
    where : array_like of bool, optional
        False marks a class as absent; broadcast to `logits`. An absent label has loss +inf.
    keepdims : bool
        Keep the reduced axis with length 1.
    out : ndarray, optional
        Where to put the losses: right shape and dtype, writeable, aligned, apart from the inputs. Not with a reduction.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        In nats; float32 for float32 and half precision, else float64.

    Raises
    ------
    IndexError
        For a label that is out of range; it names the first such row. A given `out` is then left as it was, unless
        another thread writes labels during the call.
    TypeError
        For a type of array that is not taken, labels that are no integers, masked arrays.
    ValueError
        For shapes that do not fit, another `reduction`, or an `out` that cannot take the result.

    Notes
    -----
    Domain: all numbers. A label whose logit is -inf gives +inf. A row with +inf, of -inf only, or with NaN gives NaN.

    Accuracy: the loss is log1p(exp(m - x[label]) * sum over the other classes of exp(x - m)), which keeps every digit
    of a small loss: below (4 + d/2) eps of the result, where d is the distance between the label's logit and the
    largest of the others, down to 1e-30 (float64: 1e-280).

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning" (2016), section 6.2.2.

    Examples
    --------
    >>> import fastkl as fk
    >>> [f"{loss:.6g}" for loss in fk.softmax_cross_entropy([[2.0, 0.0], [0.0, 30.0]], [0, 1])]
    ['0.126928', '9.35762e-14']
    >>> logits = [[2.0, 0.0], [0.0, 30.0]]
    >>> float(fk.softmax_cross_entropy(logits, [0, -100], ignore_index=-100, reduction="mean").round(4))
    0.1269
    """
    if reduction != "none":
        reduction = _args.choice(reduction, "reduction", ("none", "mean", "sum"))
    x = _args.as_array(logits, "logits")
    if type(axis) is not int and (isinstance(axis, bool) or not hasattr(axis, "__index__")):
        raise TypeError(f"axis takes an int here, not {axis!r}")
    axes = _args.reduced_axes(axis, x.ndim)
    whole = x.shape
    rows_shape = whole[:-1] if axis == -1 else tuple([n for i, n in enumerate(whole) if i not in axes])
    classes = whole[axes[0]] if axes else 1
    classes_of = _args.as_labels(labels, rows_shape)
    ignored = None if ignore_index is None else _args.ignored_label(ignore_index, classes_of)
    if reduction == "none":
        value = _kernels.active.run_plain(
            _kernels.SOFTMAX_CROSS_ENTROPY, (x,), classes_of, ignored, axis, where, keepdims, out, n_threads, 1.0, 0.5,
            False, False, None,
        )  # fmt: skip
        if value is not None:
            return value
    dtype = _args.result_dtype(x)
    mask = None if where is None else _args.mask_for(where, whole)
    operands = (x if axis == -1 else _args.axes_last(x, axes),)
    mask_last = None if mask is None else _args.axes_last(mask, axes)
    nbytes, asked = x.nbytes, n_threads is not None
    threads = threads_for(n_threads, nbytes)
    run = _kernels.active.run
    if reduction != "none":
        if out is not None:
            raise ValueError(f"out is for one loss per row; reduction={reduction!r} gives a single number")
        from ._exact import ExactSum  # here: import fastkl need not wait for it

        total, kept = ExactSum(), 0
        losses = np.empty(min(_SLAB, classes_of.size), FLOAT64)
        for first in range(0, classes_of.size, _SLAB):
            last = min(first + _SLAB, classes_of.size)
            slab = losses[: last - first]
            bad, bits, kept_here = run(
                _kernels.SOFTMAX_CROSS_ENTROPY, dtype is FLOAT64, operands, mask_last, classes_of, slab, None,
                len(axes), 1.0, ignored, False, first, last, True, threads, asked,
                nbytes * (last - first) / classes_of.size,
            )  # fmt: skip
            if bad >= 0:
                _args.raise_bad_label(bad, bits, classes_of, classes)
            total.add(slab)
            kept += kept_here
        if total.finite + total.infinite < classes_of.size:
            value = math.nan
        elif reduction == "mean":
            value = total.over(kept) if kept else float(empty_mean)
        else:
            value = total.over(1)
        result = np.asarray(value, dtype)
        return result.reshape((1,) * x.ndim) if keepdims else result[()]
    shape = tuple([1 if i in axes else n for i, n in enumerate(whole)]) if keepdims else rows_shape
    if out is None:
        losses = np.empty(shape, dtype)
    else:
        losses = _args.output_for(out, shape, dtype, (x, mask, classes_of), in_place=False)
    bad, bits, _ = run(
        _kernels.SOFTMAX_CROSS_ENTROPY, dtype is FLOAT64, operands, mask_last, classes_of,
        _args.without(losses, axes) if keepdims else losses, None, len(axes), 1.0, ignored, False, 0, -1, False,
        threads, asked, nbytes, checked=out is not None,
    )  # fmt: skip
    if bad >= 0:
        _args.raise_bad_label(bad, bits, classes_of, classes)
    return losses if out is not None or losses.ndim else losses[()]


def binary_cross_entropy(
    p: ArrayLike,
    y: ArrayLike,
    *,
    given: str = "probs",
    reduction: str = "none",
    empty_mean: float = math.nan,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Cross-entropy of each yes-or-no prediction against its label: ``-y * log(p) - (1 - y) * log(1 - p)``.

    Parameters
    ----------
    p : array_like
        Probabilities of yes, of any shape (or, with ``given="logits"``, real numbers x with p = 1 / (1 + exp(-x))).
    y : array_like
        Labels: 0 or 1, of any type, or shares between them; broadcast against `p`.
    given : {"probs", "logits"}
        What `p` holds. From logits the loss is y softplus(-x) + (1 - y) softplus(x).
    reduction : {"none", "mean", "sum"}
        One loss per element, or their mean over the elements not masked out, or their sum.
    empty_mean : float
        The mean over no elements.
    where : array_like of bool, optional
        False marks an element as absent: its loss is 0, and it does not count in the mean.
    out : ndarray, optional
        Where to put the losses: right shape and dtype, writeable, aligned; it may be `p` itself, exactly. Not with a
        reduction.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        In nats; float32 for float32 and half precision, else float64. Integer and bool labels leave it to `p`.

    Raises
    ------
    TypeError
        For a type of array that is not taken (complex, object, longdouble, masked arrays).
    ValueError
        For shapes that do not fit, another `given` or `reduction`, or an `out` that cannot take the result.

    Notes
    -----
    Domain: 0 <= p <= 1 and 0 <= y <= 1; outside, and for NaN, the loss is NaN there. Nothing is clipped: p = 0 has loss
    0 if y = 0, else +inf. All logits: +-inf has loss 0 where the label agrees wholly, else +inf.

    Accuracy: below 4 eps of each loss, also where it is 1e-30 (float64: 1e-280): no part cancels. A sum or mean is that
    of the losses, rounded once.

    References
    ----------
    C. M. Bishop, "Pattern Recognition and Machine Learning" (2006), section 4.3.2.

    Examples
    --------
    >>> import fastkl as fk
    >>> [f"{loss:.6g}" for loss in fk.binary_cross_entropy([40.0, -40.0, 0.0], [1, 1, 0], given="logits")]
    ['4.24835e-18', '40', '0.693147']
    >>> fk.binary_cross_entropy([0.0, 1.0, 0.0], [0, 1, 1]).tolist()
    [0.0, 0.0, inf]
    """
    given = _args.choice(given, "given", ("probs", "logits"))
    reduction = _args.choice(reduction, "reduction", ("none", "mean", "sum"))
    op = _kernels.BINARY_LOGITS if given == "logits" else _kernels.BINARY_PROBS
    predicted, labels = _args.as_array(p, "p"), _args.as_array(y, "y")
    # A label of a class is no number to compute with: it widens nothing.
    dtype = _args.result_dtype(*([predicted] if labels.dtype.kind in "iub" else [predicted, labels]))
    arrays = _args.broadcast((predicted, labels), ("p", "y"))
    shape, size = arrays[0].shape, arrays[0].size
    mask = _args.mask_for(where, shape)
    nbytes = 2 * size * dtype.itemsize
    threads, asked = threads_for(n_threads, nbytes), n_threads is not None
    # Elements stand alone, so they are taken in the order in which the first array has them in memory.
    strides = arrays[0].strides
    axes = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    operands = tuple([a.transpose(axes) for a in arrays])
    mask_there = None if mask is None else mask.transpose(axes)
    run = _kernels.active.run
    if reduction == "none":
        losses = _args.output_for(out, shape, dtype, (predicted, labels, mask), in_place=predicted.shape == shape)
        run(
            op, dtype is FLOAT64, operands, mask_there, None, losses.transpose(axes), None, 0, 1.0, None, False, 0, -1,
            False, threads, asked, nbytes,
        )  # fmt: skip
        return losses if out is not None or losses.ndim else losses[()]
    if out is not None:
        raise ValueError(f"out is for one loss per element; reduction={reduction!r} gives a single number")
    from ._exact import ExactSum  # here: import fastkl need not wait for it

    total, slab = ExactSum(), np.empty(min(_SLAB, size), FLOAT64)
    for first in range(0, size, _SLAB):
        last = min(first + _SLAB, size)
        run(
            op, dtype is FLOAT64, operands, mask_there, None, slab, None, 0, 1.0, None, False, first, last, True,
            threads, asked, nbytes * (last - first) / size,
        )  # fmt: skip
        total.add(slab[: last - first])
    kept = size if mask is None else int(np.count_nonzero(mask))
    if total.finite + total.infinite < size:
        value = math.nan
    elif reduction == "mean":
        value = total.over(kept) if kept else float(empty_mean)
    else:
        value = total.over(1)
    return dtype.type(value)
