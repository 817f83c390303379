"""Divergences of two distributions that are sums of one term a class, or a function of such a sum.

From probabilities, their logs or logits; each function states its formula, and takes rows that need not sum to 1.
Results are in nats where they have a unit.

Where one of the two is given by logs, terms are functions of the larger of p and q and of abs(log(p/q)), in double: no
term cancels, and nothing of the size of a row is kept. What is divided by its sum is read twice, and once more where
the rounding of that sum would count (in total_variation of nearly equal rows mostly); out of the cache, unless a row is
longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import Array, Forms
from ._call import per_pair


def _settled(op: int, forms: Forms) -> tuple[int, bool, Forms | None]:
    """Pointwise operations divide probabilities by their sums themselves."""
    if forms[0][0] or forms[1][0]:
        return op, False, forms
    return op, True, None


def _swapped(pair: Any) -> Any:
    """What is given for p and q, for q and p."""
    return pair[::-1] if isinstance(pair, (tuple, list)) else pair


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Jensen-Shannon divergence of each pair of rows: ``w * sum(p * log(p / m)) + (1 - w) * sum(q * log(q / m))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    weight : float
        That of p in the mixture, from 0 to 1; q has the rest. At 0 and 1 the result is 0.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`; ValueError also for another `weight`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    m = w p + (1 - w) q is the mixture, w the `weight`. With w = 1/2 the divergence is symmetric, to the bit, and that
    of distributions is at most log(2). With `normalize` a row is read twice, for the sums and for the terms: the
    second time out of cache, unless it is longer than that. A row whose sum is 0 gives NaN.

    Accuracy: below 8 eps of the result at every scale. Each term is the sum of two of `generalized_kl`, which are not
    negative, and depends on p - q where p and q are nearly equal: nothing cancels. About twice the arithmetic of
    `kl_divergence`.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.js_divergence([1.0, 0.0], [0.0, 1.0], base=2))
    1.0
    >>> float(fk.js_divergence([0.5, 0.5], [0.9, 0.1], weight=0.2).round(4))
    0.0727
    """
    weight = _args.fraction(weight, "weight")
    if weight <= 0.5:
        return per_pair(
            _kernels.JS, p, q, given, temperature, axis, base, normalize, where, keepdims, out,
            n_threads, _settled, weight,
        )  # fmt: skip
    # 1 - weight is exact; of a weight near 1 in float32 it would not be.
    return per_pair(
        _kernels.JS, q, p, _swapped(given), _swapped(temperature), axis, base, normalize, where, keepdims, out,
        n_threads, _settled, 1 - weight, ("q", "p"),
    )  # fmt: skip


def js_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Jensen-Shannon distance of each pair of rows: ``sqrt(js_divergence(p, q))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    A metric: symmetric, to the bit, and within its accuracy it satisfies the triangle inequality. `base`, above 1, is
    that of the divergence under the root, as in SciPy's ``jensenshannon`` (which always divides rows by their sums).
    With `normalize` a row is read twice, for the sums and for the terms: the second time out of cache, unless it is
    longer than that. A row whose sum is 0 gives NaN.

    Accuracy: below 4 eps of the result at every scale.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    D. M. Endres, J. E. Schindelin, "A new metric for probability distributions", IEEE Transactions on Information
    Theory 49 (2003).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.js_distance([1.0, 0.0], [0.0, 1.0], base=2))
    1.0
    """
    return per_pair(
        _kernels.JS_DISTANCE, p, q, given, temperature, axis, base, normalize, where, keepdims, out, n_threads, _settled
    )


def jeffreys_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Jeffreys divergence of each pair of rows: ``sum((p - q) * log(p / q))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. Exactly one of p and q being 0 gives
    +inf. A negative, infinite or NaN element gives NaN for its row.

    It is KL(p, q) + KL(q, p), symmetric to the bit. With `normalize` a row is read twice, for the sums and for the
    terms: the second time out of cache, unless it is longer than that. A row whose sum is 0 gives NaN.

    Accuracy: below 8 eps of the result at every scale: every term is >= 0 and a product.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    H. Jeffreys, "An invariant form for the prior probability in estimation problems", Proceedings of the Royal Society
    A 186 (1946).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.jeffreys_divergence([0.1, 0.9], [0.2, 0.8]).round(4))
    0.0811
    """
    return per_pair(
        _kernels.JEFFREYS, p, q, given, temperature, axis, base, normalize, where, keepdims, out, n_threads, _settled
    )


def hellinger_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Hellinger distance of each pair of rows: ``sqrt(sum((sqrt(p) - sqrt(q))**2) / 2)``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    A metric: symmetric, to the bit; that of distributions is at most 1. With `normalize` a row is read twice, for the
    sums and for the terms: the second time out of cache, unless it is longer than that. A row whose sum is 0 gives
    NaN.

    Accuracy: below 4 eps of the result at every scale: sqrt(p) - sqrt(q) is (p - q) / (sqrt(p) + sqrt(q)). In float64
    its two square roots and division take the time, not the memory.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    E. Hellinger, "Neue Begründung der Theorie quadratischer Formen von unendlichvielen Veränderlichen", Journal für
    die reine und angewandte Mathematik 136 (1909).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.hellinger_distance([1.0, 0.0], [0.5, 0.5]).round(4))
    0.5412
    """
    return per_pair(
        _kernels.HELLINGER, p, q, given, temperature, axis, None, normalize, where, keepdims, out, n_threads, _settled
    )


def bhattacharyya_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Bhattacharyya distance of each pair of rows: ``-log(sum(sqrt(p * q)))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        One number per row: with `normalize` never negative, and 0 for equal rows.

    Raises
    ------
    TypeError, ValueError
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    Symmetric, to the bit. Rows without a common class give +inf. The sum is 1 + (sum(p) - 1 + sum(q) - 1) / 2 - H, H
    the square of `hellinger_distance`; while that is near 1 the result is the log1p of these small parts. Rows that
    sum to more than 1 may give a negative result, as the formula does. With `normalize` a row is read twice, for the
    sums and for the terms: the second time out of cache, unless it is longer than that. A row whose sum is 0 gives
    NaN.

    Accuracy: with `normalize` below 8 eps of the result at every scale. Without, the rows' sums may differ from 1 by
    more than the rows from each other: the parts H and (sum(p) + sum(q)) / 2 - 1 are each right to 8 eps, the latter
    down to 2**-52.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and of log-probabilities with `normalize`: below 32 eps of the result at every scale;
    of log-probabilities as written, whose sum is not 1, below 8 eps of max(1, result). Mixed pairs: as of probabilities
    each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in double, also
    where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    A. Bhattacharyya, "On a measure of divergence between two statistical populations defined by their probability
    distributions", Bulletin of the Calcutta Mathematical Society 35 (1943).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.bhattacharyya_distance([1.0, 0.0], [0.5, 0.5]).round(4))
    0.3466
    """
    return per_pair(
        _kernels.BHATTACHARYYA, p, q, given, temperature, axis, base, normalize, where, keepdims, out,
        n_threads, _settled,
    )  # fmt: skip


def total_variation(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Total variation distance of each pair of rows: ``sum(abs(p - q)) / 2``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    A metric: symmetric, to the bit; that of distributions is at most 1. With `normalize` a row is read twice, for the
    sums and for the terms: the second time out of cache, unless it is longer than that. A row whose sum is 0 gives
    NaN.

    Accuracy: below 4 eps of the result; with `normalize` not below 4 eps of 2**-100, where the rows are proportional
    but for their rounding.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    A. L. Gibbs, F. E. Su, "On choosing and bounding probability metrics", International Statistical Review 70 (2002).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.total_variation([0.5, 0.5], [0.75, 0.25]))
    0.25
    """
    return per_pair(
        _kernels.TOTAL_VARIATION, p, q, given, temperature, axis, None, normalize, where, keepdims, out,
        n_threads, _settled,
    )  # fmt: skip


def chi2_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    kind: str = "pearson",
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Chi-square divergence of each pair of rows: ``sum((p - q)**2 / q)``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    kind : {"pearson", "neyman"}
        What the squares are divided by: q (Pearson), or p (Neyman): ``chi2_divergence(q, p)``.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`; ValueError also for another `kind`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. p > 0 where q = 0 gives +inf (Neyman: q
    > 0 where p = 0). A negative, infinite or NaN element gives NaN for its row.

    With `normalize` a row is read twice, for the sums and for the terms: the second time out of cache, unless it is
    longer than that. A row whose sum is 0 gives NaN.

    Accuracy: below 8 eps of the result at every scale, also where (p - q)**2 is out of the type's range.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    K. Pearson, "On the criterion that a given system of deviations ... can be reasonably supposed to have arisen from
    random sampling", Philosophical Magazine 50 (1900).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.chi2_divergence([0.5, 0.5], [0.75, 0.25]).round(4))
    0.3333
    >>> float(fk.chi2_divergence([0.5, 0.5], [0.75, 0.25], kind="neyman"))
    0.25
    """
    if _args.choice(kind, "kind", ("pearson", "neyman")) == "pearson":
        return per_pair(
            _kernels.CHI2, p, q, given, temperature, axis, None, normalize, where, keepdims, out, n_threads, _settled
        )
    given, temperature = _swapped(given), _swapped(temperature)
    return per_pair(
        _kernels.CHI2, q, p, given, temperature, axis, None, normalize, where, keepdims, out, n_threads, _settled,
        names=("q", "p"),
    )  # fmt: skip


def triangular_discrimination(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Triangular discrimination of each pair of rows: ``sum((p - q)**2 / (p + q))``.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    given : {"probs", "log_probs", "logits"} or pair of them
        What `p` and `q` hold, one word for both or one for each. Log-probabilities are used as written, p = exp(x), and
        not divided by their sum; of logits the softmax is meant. -inf is the log of a class that is absent.
    temperature : float or pair of float
        Positive numbers that logits are divided by first, one for both or one for each; probabilities and their logs
        take none but 1. The quotient is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p and q by their sums first, exactly, at every scale.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0, which need not sum to 1: the formula is used as written. A negative, infinite or NaN element
    gives NaN for its row.

    Symmetric, to the bit; that of distributions is at most 2, and its half lies between JS / log(2) and 2 JS. With
    `normalize` a row is read twice, for the sums and for the terms: the second time out of cache, unless it is longer
    than that. A row whose sum is 0 gives NaN.

    Accuracy: below 8 eps of the result at every scale, also where (p - q)**2 is out of the type's range.

    Log-probabilities are used as written up to 600, and probabilities beside logs up to 1e260; above, they count as
    infinite. Accuracy from logits and log-probabilities: below 32 eps of the result at every scale. Mixed pairs: as of
    probabilities each changed by up to 8 eps (1 + abs(log p)) of itself, for the log of a probability is rounded; in
    double, also where the data is float32. A row of logits with nothing above -inf gives NaN.

    References
    ----------
    F. Topsøe, "Some inequalities for information divergence and related measures of discrimination", IEEE Transactions
    on Information Theory 46 (2000).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.triangular_discrimination([0.5, 0.5], [0.75, 0.25]).round(4))
    0.1333
    """
    return per_pair(
        _kernels.TRIANGULAR, p, q, given, temperature, axis, None, normalize, where, keepdims, out, n_threads, _settled
    )
