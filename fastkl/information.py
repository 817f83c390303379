"""Entropy, cross-entropy and the KL divergence of rows of probabilities, of their logs or of logits.

Results are in nats unless `base` is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import Array, Forms
from ._call import per_pair, per_row


def entropy(
    p: ArrayLike,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Entropy of each row: ``-sum(p * log(p))``, with 0 log 0 = 0.

    Parameters
    ----------
    p : array_like
        Probabilities (or, with ``given="logits"``, real numbers whose softmax they are); the rows lie along `axis`.
    given : {"probs", "log_probs", "logits"}
        What `p` holds. Log-probabilities are used as written, p = exp(x), and not divided by their sum; of logits the
        softmax is meant. -inf is the log of a class that is absent. No buffer of probabilities is made.
    temperature : float
        A positive number that logits are divided by first; probabilities and their logs take none but 1. The quotient
        is rounded to the type of the computation.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    base : float, optional
        Unit of the result: 2 for bits; None for nats.
    normalize : bool
        Divide p by its sum first, whatever it is given by; logits always are.
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
        For a type of array that is not taken (complex, object, longdouble, masked arrays).
    ValueError
        For shapes that do not fit, another `given`, a base that is none, or an `out` that cannot take the result.

    Notes
    -----
    Domain: p >= 0, denormals included. The formula is used as written: rows are not divided by their sum. A
    negative, infinite or NaN element gives NaN for its row. Logits: a row of -inf only, or with +inf, gives NaN.
    Log-probabilities as written go up to 600: above, they count as infinite.

    Accuracy: below 4 eps of the result, also for nearly one-hot rows (p <= 1); from logits below (4 + d/2) eps, where
    d is the distance between the two largest; from log-probabilities below 4 eps of the sum of abs(p log p); from
    probabilities with `normalize` below 8 eps. These two read each row twice, the second time out of the cache.

    References
    ----------
    C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27 (1948).

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.entropy([[0.5, 0.5], [0.99, 0.01]], base=2).round(4).tolist()
    [1.0, 0.0808]
    """
    scale = _args.log_scale(base)
    return _entropy(p, given, temperature, normalize, axis, where, keepdims, out, n_threads, scale, False)


def _entropy(
    p: ArrayLike, given: str, temperature: float, normalize: bool, axis: int | Sequence[int] | None, where: Any,
    keepdims: bool, out: Array | None, n_threads: int | None, scale: float, exponential: bool,
) -> Any:  # fmt: skip
    """Entropy, or its exponential, by what p is given by."""
    array = _args.as_array(p, "p")
    forms = _args.forms(given, temperature, normalize, (array,), ("p",))
    op = _kernels.ENTROPY
    operands: tuple[Array, ...] = (array,)
    if forms is not None:
        logs, scaled, divisor = forms[0]
        if logs and scaled:
            op, forms = _kernels.ENTROPY_OF_LOGITS, None if divisor == 1 else forms
        else:
            # The cross-entropy of a row with itself: both are one read.
            op, operands, forms = _kernels.CROSS_ENTROPY, (array, array), forms * 2
    return per_row(
        op, operands, ("p", "p"), axis, where, keepdims, out, n_threads, scale, given=forms, exponential=exponential
    )


def perplexity(
    p: ArrayLike,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Perplexity of each row: ``exp(-sum(p * log(p)))``, the exponential of its entropy.

    Parameters
    ----------
    p : array_like
        Probabilities (or what `given` says); the rows lie along `axis`.
    given : {"probs", "log_probs", "logits"}
        What `p` holds, as for `entropy`.
    temperature : float
        What logits are divided by, a positive number.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    normalize : bool
        Divide p by its sum first, whatever it is given by; logits always are.
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
        One number per row, whatever the base: a number of equally likely classes that would be as uncertain.

    Raises
    ------
    TypeError, ValueError
        As for `entropy`.

    Notes
    -----
    Domain: as for `entropy`. A one-hot row gives 1, and so does one of no class.

    Accuracy: below 5 eps times max(1, log(result)) of the result; from logits d/2 eps more, d as for `entropy`. The
    entropy is not rounded before.

    References
    ----------
    F. Jelinek, R. L. Mercer, L. R. Bahl, J. K. Baker, "Perplexity - a measure of the difficulty of speech recognition
    tasks", Journal of the Acoustical Society of America 62 (1977).

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.perplexity([[0.5, 0.5], [0.0, 1.0]]).round(12).tolist()
    [2.0, 1.0]
    """
    return _entropy(p, given, temperature, normalize, axis, where, keepdims, out, n_threads, 1.0, True)


def cross_entropy(
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
    r"""Cross-entropy of each pair of rows: ``-sum(p * log(q))``, with 0 log 0 = 0.

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
        Divide p and q by their sums first, whatever they are given by; logits always are.
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0. p > 0 where q = 0 gives +inf; a negative, infinite or NaN element gives NaN for its
    row, and so does a row of logits that holds nothing above -inf. Log-probabilities as written go up to 600, and
    probabilities beside logs up to 1e260: above, they count as infinite.

    Accuracy: below 4 eps of the sum of abs(p log q), which is the result where q <= 1. Of logits, and with `normalize`,
    below 8 eps of the result: with m the largest of q's logits y, sum(p (m - y)) and log(sum(exp(y - m))) are both
    >= 0, and the second is right also where one class has nearly all of q. What is divided by its sum is read twice,
    the second time out of the cache, unless a row is longer than that.

    References
    ----------
    T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd ed. (2006).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.cross_entropy([0.0, 1.0], [0.2, 0.8]).round(4))
    0.2231
    """
    return per_pair(
        _kernels.CROSS_ENTROPY, p, q, given, temperature, axis, base, normalize, where, keepdims, out, n_threads
    )


def kl_divergence(
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
    r"""Kullback-Leibler divergence of each pair of rows: ``sum(p * log(p / q))``, with 0 log 0 = 0.

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
        Divide p and q by their sums first: the divergence of p/sum(p) from q/sum(q).
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
        As for `entropy`.

    Notes
    -----
    Domain: p, q >= 0. p > 0 where q = 0 gives +inf; a negative, infinite or NaN element gives NaN for its
    row. Without `normalize` the formula is used as written, and is negative where sum(p) falls short of sum(q) by more
    than the rows differ; with it, and of two rows of logits, the result is never negative, 0 for equal rows (of one
    form), and NaN where a sum is 0. Log-probabilities as written go up to 600, and probabilities beside logs up to
    1e260: above, they count as infinite.

    Accuracy: of probabilities the sum is that of p log(p/q) - p + q, whose terms are all >= 0, and of p - q. Each part
    is right to 8 eps; with `normalize` the error is below 8 eps of the result at every scale. Of logits, and of
    log-probabilities with `normalize`, it is below 32 eps of the result at every scale. Of log-probabilities as written
    and of mixed pairs it is below 4 eps of sum(p (abs(log p) + abs(log q))) and of the result: log(p/q) is a difference
    of logs, and where both rows are float64 nearly equal mixed rows have no more digits than those. Such logs are taken
    in double: of float32 with `normalize` the error is below 32 eps of the result, too.

    Two rows of logits are read once where the rows before them, or in long rows the first 4096 classes, told whether
    their divergence is below 1/32 or above about an eighth; else once more, out of the cache unless they are longer.
    Other forms are read once for each sum that they are divided by, and once for the terms.

    References
    ----------
    S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.kl_divergence([0.1, 0.9], [0.2, 0.8]).round(4))
    0.0367
    >>> float(fk.kl_divergence([1, 9], [3, 12], normalize=True).round(4))
    0.0367
    """
    return per_pair(
        _kernels.KL, p, q, given, temperature, axis, base, normalize, where, keepdims, out, n_threads, _settled_kl
    )


def _settled_kl(op: int, forms: Forms) -> tuple[int, bool, Forms | None]:
    """Of what sums to 1, the sums of p - q are 0: all terms are >= 0."""
    if not (forms[0][1] and forms[1][1]):
        return op, False, forms
    if forms[0][0] or forms[1][0]:
        return _kernels.GENERALIZED_KL, False, forms
    return _kernels.KL_NORMALIZED, False, None


def generalized_kl(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: int | Sequence[int] | None = -1,
    base: float | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""Generalized KL divergence (I-divergence) of each pair of rows: ``sum(p * log(p / q) - p + q)``.

    Parameters
    ----------
    p, q : array_like
        Non-negative numbers, which need not sum to 1; broadcast against each other.
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
    Domain: p, q >= 0. p > 0 where q = 0 gives +inf; a negative, infinite or NaN element gives NaN for its
    row. Of two rows of logits it is their KL divergence. Log-probabilities as written go up to 600, and probabilities
    beside logs up to 1e260: above, they count as infinite.

    Accuracy: below 8 eps of the result at every scale: every term is >= 0 and computed without cancellation. Of logits
    and of log-probabilities below 32 eps of the result at every scale; of mixed pairs below 8 eps of the result and of
    sum(p (abs(log p) + abs(log q))), for a log of a probability is rounded.

    References
    ----------
    I. Csiszar, "Why least squares and maximum entropy?", Annals of Statistics 19 (1991).

    Examples
    --------
    >>> import fastkl as fk
    >>> float(fk.generalized_kl([1.0, 2.0], [2.0, 2.0]).round(4))
    0.3069
    """
    return per_pair(
        _kernels.GENERALIZED_KL, p, q, given, temperature, axis, base, False, where, keepdims, out, n_threads
    )
