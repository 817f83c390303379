"""Log space: the log of a sum of exponentials, and the softmax made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import Array
from ._call import per_element, per_row


def logsumexp(
    x: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    return_sign: bool = False,
) -> Any:
    r"""Log of the sum of exponentials of each row: ``log(sum(b * exp(x)))``.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape; the rows lie along `axis`. float64, float32, float16, bfloat16, integers, bool.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    b : array_like, optional
        Weights, broadcast against `x`. An element of weight 0 is absent, also where it is infinite or NaN.
    where : array_like of bool, optional
        False marks an element as absent; broadcast to `x`.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.
    return_sign : bool
        Also return the sign of the sum; the first result is then the log of its absolute value.

    Returns
    -------
    ndarray or scalar
        In nats, one number per row; float32 for float32 and half precision, else float64. With `return_sign` a pair.

    Raises
    ------
    TypeError
        For a type of array that is not taken (complex, object, longdouble, masked arrays).
    ValueError
        For shapes that do not fit, or an `out` that cannot take the result.

    Notes
    -----
    Domain: all numbers. A row of -inf only, or of nothing, gives -inf; one with +inf gives +inf; one with NaN gives
    NaN. A negative sum gives NaN without `return_sign`.

    Accuracy: the error is below 1 eps (float64: 2 eps) times max(1, abs(result)); where the maximum is 0 and dominates,
    below 4 eps of the result. Each input is read once.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA Journal
    of Numerical Analysis 41 (2021).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.logsumexp([0.0, -40.0]))    # 4.2e-18, where the naive log(1 + exp(-40)) is 0
    4.248354255291589e-18
    >>> fk.logsumexp([[1.0, 1.0], [1000.0, 1000.0]]).round(4).tolist()
    [1.6931, 1000.6931]
    """
    array = _args.as_array(x, "x")
    if b is None:
        value = per_row(_kernels.LOGSUMEXP, (array,), ("x",), axis, where, keepdims, out, n_threads)
        if not return_sign:
            return value
        # A sum of exponentials is positive, or 0, or NaN.
        sign = np.where(value == -np.inf, value.dtype.type(0), value.dtype.type(1))
        return value, np.where(np.isnan(value), value, sign)[()]
    weights = _args.as_array(b, "b")
    return per_row(
        _kernels.WEIGHTED_LOGSUMEXP, (array, weights), ("x", "b"), axis, where, keepdims, out, n_threads,
        signed=bool(return_sign),
    )  # fmt: skip


def softmax(
    x: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Softmax of each row: ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    x : array_like
        Logits of any shape; the rows lie along `axis`.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    where : array_like of bool, optional
        False marks an element as absent: it is not read, and its result is 0.
    out : ndarray, optional
        Where to put the result; it may be `x` itself, exactly.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        Probabilities, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `logsumexp`.

    Notes
    -----
    Domain: all numbers. A row of -inf only, with +inf or with NaN gives NaN for that row; one masked out whole gives
    zeros.

    Accuracy: below (3 + d/2) eps of each result above the denormals, where d is the distance of the element from its
    row's maximum.

    References
    ----------
    Blanchard, Higham, Higham (2021), as for `logsumexp`.

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.softmax([0.0, 0.6931471805599453]).round(4).tolist()
    [0.3333, 0.6667]
    """
    return per_element(_kernels.SOFTMAX, _args.as_array(x, "x"), axis, where, out, n_threads)


def log_softmax(
    x: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Log of the softmax of each row: ``x - log(sum(exp(x)))``, in nats.

    Parameters
    ----------
    x : array_like
        Logits of any shape; the rows lie along `axis`.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    where : array_like of bool, optional
        False marks an element as absent: it is not read, and its result is 0.
    out : ndarray, optional
        Where to put the result; it may be `x` itself, exactly.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        Log-probabilities, of the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `logsumexp`.

    Notes
    -----
    Domain: all numbers. A row of -inf only, with +inf or with NaN gives NaN for that row.

    Accuracy: below (4 + d/2) eps of each result, where d is the distance between the element and the largest of the
    others; at a dominant element the result is -log1p of the others' share, right to its last digits.

    References
    ----------
    Blanchard, Higham, Higham (2021), as for `logsumexp`.

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.log_softmax([0.0, -40.0]).tolist()
    [-4.248354255291589e-18, -40.0]
    """
    return per_element(_kernels.LOG_SOFTMAX, _args.as_array(x, "x"), axis, where, out, n_threads)


def logcumsumexp(
    x: ArrayLike,
    *,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Cumulative log-sum-exp along each row: ``log(sum(exp(x[: i + 1])))`` at every element i.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape; the rows lie along `axis`.
    axis : int, tuple of ints or None
        The axes that make a row, which runs through them in C order; None for all.
    where : array_like of bool, optional
        False marks an element as absent: it adds nothing, and its result is 0.
    out : ndarray, optional
        Where to put the result; it may be `x` itself, exactly.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide. They share the rows: a single row has one.

    Returns
    -------
    ndarray or scalar
        In nats, of the shape of `x`; float32 for float32 and half precision, else float64.

    Raises
    ------
    TypeError, ValueError
        As for `logsumexp`.

    Notes
    -----
    Domain: all numbers. While there were only -inf it is -inf; from a +inf on +inf; from a NaN on NaN.

    Accuracy: at every element below 1 eps (float64: 2 eps) times max(1, abs(result)), also where a maximum comes late
    and after 10^7 elements: the sum is carried in twice the digits.

    Each element has a logarithm of its own and is computed in float64, so that it takes some ten times as long as
    `logsumexp`; a single row takes half as long again, for each element waits for the one before.

    References
    ----------
    Blanchard, Higham, Higham (2021), as for `logsumexp`; D. E. Knuth, "The Art of Computer Programming", volume 2,
    section 4.2.2, for the sum with its rounding error.

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.logcumsumexp([0.0, 0.0, 1000.0]).round(4).tolist()
    [0.0, 0.6931, 1000.0]
    """
    return per_element(_kernels.LOGCUMSUMEXP, _args.as_array(x, "x"), axis, where, out, n_threads)
