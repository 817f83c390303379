"""Entropies and divergences of order alpha: Renyi's, Tsallis's and Amari's, with their limits at 0, 1 and infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array
from ._threads import threads_for

_RENYI, _TSALLIS, _AMARI = range(3)  # as alpha.pxi numbers them

Given = str | tuple[str, str]
Temperature = float | tuple[float, float]
Axis = int | Sequence[int] | None


def renyi_entropy(
    p: ArrayLike,
    alpha: float,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Renyi entropy of each row: ``log(sum(p**alpha) / sum(p)) / (1 - alpha)``.

    At alpha = 1 it is Shannon's, ``-sum(p * log(p)) / sum(p)``; at 0 the log of how many p are above 0, over sum(p); at
    infinity ``-log(max(p))``.

    Parameters
    ----------
    p : array_like
        Probabilities, or what `given` says; the rows lie along `axis`.
    alpha : float
        The order, from 0 to infinity.
    given : {"probs", "log_probs", "logits"}
        What `p` holds. The logs of probabilities are used as written, p = exp(x); logits are normalised, p =
        softmax(x).
    temperature : float
        What logits are divided by first.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p by its sum first.
    where : array_like of bool, optional
        False marks an element as absent; broadcast to `p`.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        One number per row; float32 for float32 and half precision, else float64.

    Raises
    ------
    TypeError
        For a type of array that is not taken (complex, object, longdouble, masked arrays), or an `alpha` that is no
        number.
    ValueError
        For shapes that do not fit, an `alpha` below 0 or NaN, another `given`, a `temperature` without logits, a base
        that is none, or an `out` that cannot take the result.

    Notes
    -----
    Domain: p >= 0, denormals included; p = 0 counts for nothing, at alpha = 0 too. A negative, infinite or NaN element
    gives NaN for its row, and so does a row whose sum is 0. Logits: a row of -inf only, or with +inf, gives NaN.

    Accuracy: below 8 eps of the result for rows that sum to 1, also nearly one-hot ones, at every alpha: nothing is
    lost near 1. For other rows log(sum(p)) is a part of it, and the error below 8 eps of the larger of the two.

    Cost: p is read once, twice with `normalize` or logits. All is computed in double, for float32 too: seven
    to eight times what `entropy` takes in float64, 12 to 17 times in float32 (AVX-512).

    References
    ----------
    A. Renyi, "On measures of entropy and information", Proc. 4th Berkeley Symposium (1961), with his form for
    incomplete distributions.

    Examples
    --------
    >>> import fastkl as fk
    >>> p = [0.5, 0.25, 0.25]
    >>> [float(fk.renyi_entropy(p, alpha, base=2).round(4)) for alpha in (0, 1, 2, float("inf"))]
    [1.585, 1.5, 1.415, 1.0]
    """
    order = _order(alpha, 0.0, math.inf)
    return _per_row(
        _RENYI, (p,), ("p",), order, given, temperature, axis, base, normalize, where, keepdims, out, n_threads
    )


def tsallis_entropy(
    p: ArrayLike,
    alpha: float,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Tsallis entropy of each row: ``(sum(p) - sum(p**alpha)) / (alpha - 1)``.

    At alpha = 1 it is Shannon's, ``-sum(p * log(p))``; at 0 the number of p above 0 less sum(p); at 2 ``sum(p * (1 -
    p))``.

    Parameters
    ----------
    p : array_like
        Probabilities, or what `given` says; the rows lie along `axis`.
    alpha : float
        The order, finite and at least 0.
    given : {"probs", "log_probs", "logits"}
        What `p` holds. The logs of probabilities are used as written, p = exp(x); logits are normalised, p =
        softmax(x).
    temperature : float
        What logits are divided by first.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p by its sum first.
    where : array_like of bool, optional
        False marks an element as absent; broadcast to `p`.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        One number per row; float32 for float32 and half precision, else float64.

    Raises
    ------
    TypeError, ValueError
        As for `renyi_entropy`; an infinite `alpha` is refused too.

    Notes
    -----
    Domain: p >= 0. The formula is used as written: rows are not divided by their sum. A negative, infinite or NaN
    element gives NaN for its row. Logits: a row of -inf only, or with +inf, gives NaN.

    Accuracy: below 8 eps of the result where no p exceeds 1, at every alpha: each term is computed without
    cancellation. Where one does, below 8 eps of the sum of the terms' absolute values.

    Cost: as for `renyi_entropy`.

    References
    ----------
    C. Tsallis, "Possible generalization of Boltzmann-Gibbs statistics", Journal of Statistical Physics 52 (1988).

    Examples
    --------
    >>> import fastkl as fk
    >>> [float(fk.tsallis_entropy([0.5, 0.25, 0.25], alpha).round(4)) for alpha in (0, 1, 2)]
    [2.0, 1.0397, 0.625]
    """
    order = _order(alpha, 0.0, _LARGEST)
    return _per_row(
        _TSALLIS, (p,), ("p",), order, given, temperature, axis, None, normalize, where, keepdims, out, n_threads
    )


def renyi_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: Given = "probs",
    temperature: Temperature = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Renyi divergence of each pair of rows: ``log(sum(p**alpha * q**(1 - alpha)) / sum(p)) / (alpha - 1)``.

    At alpha = 1 it is ``sum(p * log(p / q)) / sum(p)``; at 0 ``-log(sum(q[p > 0]) / sum(p))``; at infinity
    ``log(max(p / q))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities, or what `given` says; broadcast against each other.
    alpha : float
        The order, from 0 to infinity.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold. The logs of probabilities are used as written, p = exp(x); logits are normalised,
        p = softmax(x).
    temperature : float or pair of float
        What logits are divided by first.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p and q by their sums first.
    where : array_like of bool, optional
        False marks a pair as absent.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        One number per row.

    Raises
    ------
    TypeError, ValueError
        As for `renyi_entropy`.

    Notes
    -----
    Domain: p, q >= 0. Where q = 0, p > 0 counts for nothing if alpha < 1, and gives +inf if alpha >= 1; rows without a
    class in common give +inf. A negative, infinite or NaN element gives NaN for its row, and so does a p whose sum is
    0. Of p and q divided by their sums, logits included, it is never negative, and 0 for equal rows; else it is
    negative where sum(p) falls short of sum(q) by more than the rows differ.

    Accuracy: with `normalize`, or from logits, below 8 eps of the result (32 from float64 logits) at every scale and at
    every alpha up to 2, and alpha / 8 eps more above: nothing is lost where alpha is near 0 or 1, or p near q, and
    nothing overflows where alpha is large. Else below 8 eps of the result or, if larger, of the smaller of ``(alpha * D
    + abs(sum(p - q))) / sum(p)``, D being `alpha_divergence`, and ``1 / abs(alpha - 1)``. From probabilities against
    logs or logits, the rounding of the logs counts: 8 eps of the largest abs(log(p)) besides.

    Cost: p and q are read once, twice with `normalize` or logits. All is computed in double, for float32 too: seven to
    nine times what `kl_divergence` takes in float64, 14 to 22 times in float32 (AVX-512).

    References
    ----------
    A. Renyi, "On measures of entropy and information", Proc. 4th Berkeley Symposium (1961); T. van Erven, P. Harremoes,
    "Renyi divergence and Kullback-Leibler divergence", IEEE Transactions on Information Theory 60 (2014).

    Examples
    --------
    >>> import fastkl as fk
    >>> p, q = [0.1, 0.9], [0.2, 0.8]
    >>> [float(fk.renyi_divergence(p, q, alpha).round(4)) for alpha in (0.5, 1, 2, float("inf"))]
    [0.0202, 0.0367, 0.0606, 0.1178]
    """
    order = _order(alpha, 0.0, math.inf)
    return _per_row(
        _RENYI, (p, q), ("p", "q"), order, given, temperature, axis, base, normalize, where, keepdims, out, n_threads
    )


def tsallis_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: Given = "probs",
    temperature: Temperature = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Tsallis divergence of each pair of rows: ``(sum(p**alpha * q**(1 - alpha)) - sum(p)) / (alpha - 1)``.

    At alpha = 1 it is ``sum(p * log(p / q))``; at 0 ``sum(p) - sum(q[p > 0])``.

    Parameters
    ----------
    p, q : array_like
        Probabilities, or what `given` says; broadcast against each other.
    alpha : float
        The order, finite and at least 0.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold. The logs of probabilities are used as written, p = exp(x); logits are normalised,
        p = softmax(x).
    temperature : float or pair of float
        What logits are divided by first.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first.
    where : array_like of bool, optional
        False marks a pair as absent.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        One number per row.

    Raises
    ------
    TypeError, ValueError
        As for `renyi_entropy`; an infinite `alpha` is refused too.

    Notes
    -----
    Domain: p, q >= 0. Where q = 0, p > 0 adds p / (1 - alpha) if alpha < 1, and gives +inf if alpha >= 1. A negative,
    infinite or NaN element gives NaN for its row. Of p and q divided by their sums, logits included, it is never
    negative, and 0 for equal rows.

    Accuracy: with `normalize`, or from logits, below 8 eps of the result (32 from float64 logits) at every scale and at
    every alpha up to 2, and alpha / 8 eps more above. Else below 8 eps of the result or, if larger, of the smaller of
    ``alpha * D + abs(sum(p - q))``, D being `alpha_divergence`, and ``sum(p) / abs(alpha - 1)``. From probabilities
    against logs or logits, the rounding of the logs counts: 8 eps of the largest abs(log(p)) besides.

    Cost: as for `renyi_divergence`.

    References
    ----------
    C. Tsallis, "Generalized entropy-based criterion for consistent testing", Physical Review E 58 (1998).

    Examples
    --------
    >>> import fastkl as fk
    >>> p, q = [0.1, 0.9], [0.2, 0.8]
    >>> [float(fk.tsallis_divergence(p, q, alpha).round(4)) for alpha in (0.5, 1, 2)]
    [0.0201, 0.0367, 0.0625]
    """
    order = _order(alpha, 0.0, _LARGEST)
    return _per_row(
        _TSALLIS, (p, q), ("p", "q"), order, given, temperature, axis, None, normalize, where, keepdims, out, n_threads
    )


def alpha_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: Given = "probs",
    temperature: Temperature = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Alpha divergence: ``sum(alpha * p + (1 - alpha) * q - p**alpha * q**(1 - alpha)) / (alpha * (1 - alpha))``.

    At alpha = 1 it is ``generalized_kl(p, q)``, at 0 ``generalized_kl(q, p)``, at 1/2 four times the squared Hellinger
    distance, at 2 and -1 half of Pearson's and of Neyman's chi-square.

    Parameters
    ----------
    p, q : array_like
        Non-negative numbers, which need not sum to 1, or what `given` says; broadcast against each other.
    alpha : float
        The order, any finite number.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold. The logs of probabilities are used as written, p = exp(x); logits are normalised,
        p = softmax(x).
    temperature : float or pair of float
        What logits are divided by first.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first.
    where : array_like of bool, optional
        False marks a pair as absent.
    keepdims : bool
        Keep the reduced axes with length 1.
    out : ndarray, optional
        Where to put the result: right shape and dtype, writeable, aligned, apart from the inputs.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        One number per row: never negative, and 0 for equal rows.

    Raises
    ------
    TypeError, ValueError
        As for `renyi_entropy`; `alpha` may be negative, but not infinite.

    Notes
    -----
    Domain: p, q >= 0. p > 0 where q = 0 adds p / (1 - alpha) if alpha < 1, and gives +inf if alpha >= 1; q > 0 where p
    = 0 adds q / alpha if alpha > 0, and gives +inf if alpha <= 0. A negative, infinite or NaN element gives NaN for its
    row. Exchanging p and q and taking 1 - alpha for alpha changes nothing.

    Accuracy: below 8 eps of the result at every scale and at every alpha from -1 to 2, and alpha / 8 eps more beyond:
    every term is >= 0 and computed without cancellation, near alpha = 0 and 1 and near p = q too. From probabilities
    against logs or logits, the rounding of the log counts: 8 eps of the largest abs(log(p)) besides.

    Cost: as for `renyi_divergence`.

    References
    ----------
    A. Cichocki, S. Amari, "Families of alpha- beta- and gamma-divergences", Entropy 12 (2010); N. Cressie, T. Read,
    "Multinomial goodness-of-fit tests", Journal of the Royal Statistical Society B 46 (1984).

    Examples
    --------
    >>> import fastkl as fk
    >>> p, q = [0.1, 0.9], [0.2, 0.8]
    >>> [float(fk.alpha_divergence(p, q, alpha).round(4)) for alpha in (-1, 0, 0.5, 1, 2)]
    [0.0556, 0.0444, 0.0402, 0.0367, 0.0312]
    """
    order = _order(alpha, -_LARGEST, _LARGEST)
    return _per_row(
        _AMARI, (p, q), ("p", "q"), order, given, temperature, axis, None, normalize, where, keepdims, out, n_threads
    )


_LARGEST = float(np.finfo(FLOAT64).max)


def _order(alpha: Any, least: float, most: float) -> float:
    """The order, found to be a number for which the function is defined."""
    if type(alpha) is float and least <= alpha <= most:
        return alpha
    if isinstance(alpha, (bool, np.bool_)) or not isinstance(alpha, (int, float, np.integer, np.floating)):
        raise TypeError(f"alpha takes a number, not {alpha!r}")
    order = float(alpha)
    if not least <= order <= most:
        finite = "" if most == math.inf else "finite "
        taken = f"a {finite}number >= 0" if least == 0 else "a finite number"
        raise ValueError(f"alpha takes {taken}, not {alpha!r}")
    return order


def _arrays(operands: Sequence[ArrayLike], names: Sequence[str]) -> tuple[Array, ...]:
    return tuple([_args.as_array(a, name) for a, name in zip(operands, names, strict=True)])


def _per_row(
    measure: int, operands: Sequence[ArrayLike], names: Sequence[str], alpha: float, given: Any, temperature: Any,
    axis: Axis, base: float | None, normalize: bool, where: ArrayLike | None, keepdims: bool, out: Array | None,
    n_threads: int | None,
) -> Any:  # fmt: skip
    """Run one of them, from the arguments as they are given."""
    scale = 1.0 if base is None else _args.log_scale(base)
    known = _args.is_settled(given, temperature)    # as in per_pair
    inputs: Any = operands
    forms = None
    if not known:
        inputs = _arrays(operands, names)
        forms = _args.forms(given, temperature, normalize, inputs, names)
    elif normalize or given != "probs":
        forms = _args.settled_forms(given, normalize, len(operands))
    value = _kernels.active.of_order_plain(measure, inputs, axis, where, keepdims, out, n_threads, alpha, forms, scale)
    if value is not None:
        return value
    inputs = _arrays(operands, names)
    dtype = _args.result_dtype(*inputs)
    arrays = _args.broadcast(inputs, names)
    first = arrays[0]
    axes = _args.reduced_axes(axis, first.ndim)
    mask = _args.mask_for(where, first.shape)
    kept = tuple([n for i, n in enumerate(first.shape) if i not in axes])
    shape = tuple([1 if i in axes else n for i, n in enumerate(first.shape)]) if keepdims else kept
    result = _args.output_for(out, shape, dtype, [*inputs, mask], in_place=False)
    nbytes = len(arrays) * first.size * dtype.itemsize
    _kernels.active.of_order(
        measure, dtype is FLOAT64, tuple([_args.axes_last(a, axes) for a in arrays]),
        None if mask is None else _args.axes_last(mask, axes), _args.without(result, axes if keepdims else ()),
        len(axes), alpha, forms, scale, threads_for(n_threads, nbytes), n_threads is not None, nbytes,
    )  # fmt: skip
    return result if out is not None or result.ndim else result[()]
