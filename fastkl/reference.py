"""Every public function again, in plain NumPy float64: what a call means, edges included.

Short enough to be read as the definition. The tests hold the compiled kernels to it for behaviour, and to a 200-bit
oracle for digits. Names and keywords are those of the public functions, without ``out`` and ``n_threads``.

Inputs are read as float64 and the result is cast once, at the end, to the type that the contract gives it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Axis = int | tuple[int, ...] | None
LN2 = math.log(2.0)


@np.errstate(all="ignore")
def logsumexp(
    x: ArrayLike,
    *,
    axis: Axis = -1,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Any:
    """log(sum(b * exp(x))).

    All -inf, or no entries: -inf. A NaN: NaN; else a +inf: +inf. An entry with zero weight is absent. A negative total:
    NaN, or with ``return_sign`` the log of its absolute value, and -1 (0 for a total of 0).

    >>> round(float(logsumexp([0.0, 0.0])), 6)
    0.693147
    """
    if b is None:
        (x64,), dtype = _read(x)
        b64 = np.ones_like(x64)
    else:
        (x64, b64), dtype = _read(x, b)
        x64, b64 = np.broadcast_arrays(x64, b64)
    x64 = np.where(b64 == 0, -np.inf, _masked(x64, where, -np.inf))
    b64 = _masked(b64, where, 0.0)
    m, less1 = _total_less_one(x64, b64, axis)
    total = less1 + 1
    value = m + np.where(np.abs(less1) < 0.5, np.log1p(less1), np.log(np.abs(total)))
    if return_sign:
        return _finish(value, axis, keepdims, dtype), _finish(np.sign(total), axis, keepdims, dtype)
    return _finish(np.where(total < 0, np.nan, value), axis, keepdims, dtype)


@np.errstate(all="ignore")
def softmax(x: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None) -> Any:
    """exp(x) / sum(exp(x)).

    A row of all -inf, or with a +inf or a NaN: NaN. Masked-out entries: 0, so a row masked out whole is all zeros.

    >>> softmax([0.0, 0.0]).tolist()
    [0.5, 0.5]
    """
    (x64,), dtype = _read(x)
    x64 = _masked(x64, where, -np.inf)
    # A maximum of +-inf makes x - max NaN somewhere, hence the sum, hence the row.
    e = np.exp(x64 - x64.max(axis=axis, keepdims=True, initial=-np.inf))
    p = e / e.sum(axis=axis, keepdims=True)
    return _masked(p, where, 0.0).astype(dtype)[()]


@np.errstate(all="ignore")
def log_softmax(x: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None) -> Any:
    """The log of softmax, x - log(sum(exp(x))).

    A row of all -inf, or with a +inf or a NaN: NaN. Masked-out entries: 0.

    >>> log_softmax([0.0, -np.inf]).tolist()
    [0.0, -inf]
    """
    (x64,), dtype = _read(x)
    x64 = _masked(x64, where, -np.inf)
    m, less1 = _total_less_one(x64, np.ones_like(x64), axis)
    log_p = (x64 - m) - np.log1p(less1)
    top = x64.max(axis=axis, keepdims=True, initial=-np.inf)
    log_p = np.where(np.isfinite(top), log_p, np.nan) + 0.0
    return _masked(log_p, where, 0.0).astype(dtype)[()]


@np.errstate(all="ignore")
def entropy(
    p: ArrayLike,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """-sum(p * log(p)), with 0 log 0 = 0; with ``normalize`` and ``given="logits"`` of p / sum(p).

    From probabilities: a negative, infinite or NaN one makes the row NaN; no entries: 0. From logits, and normalized:
    an empty or all -inf row, or one with a +inf or a NaN: NaN.

    >>> float(entropy([0.5, 0.5], base=2))
    1.0
    """
    (p64,), dtype = _read(p)
    if given == "probs" and not normalize and temperature == 1:
        p64 = _masked(p64, where, 0.0)
        value = _invalid(p64, axis) + np.sum(-_x_times(p64, _log(p64)), axis=axis, keepdims=True)
    else:
        log_p, invalid = _log_probs(p64, given, temperature, normalize, axis, where, dtype)
        value = np.sum(-_x_times(np.exp(log_p), log_p), axis=axis, keepdims=True) + invalid
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """-sum(p * log(q)); with ``normalize``, of p / sum(p) and q / sum(q).

    p = 0 contributes 0, whatever q; p > 0 where q = 0: +inf. A negative, infinite or NaN p or q: NaN. No entries: 0.

    >>> round(float(cross_entropy([0.0, 1.0], [0.5, 0.5], base=2)), 12)
    1.0
    """
    if given != "probs" or temperature != 1 or normalize:
        log_p, log_q, invalid, dtype = _log_pair(p, q, given, temperature, normalize, axis, where)
        terms = np.where(log_p == -np.inf, 0.0, np.where(log_q == -np.inf, np.inf, -np.exp(log_p) * log_q))
        value = np.sum(terms, axis=axis, keepdims=True) + invalid
        return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)
    p64, q64, dtype = _pair(p, q, where)
    value = _invalid(p64, axis) + _invalid(q64, axis) + np.sum(-_x_times(p64, _log(q64)), axis=axis, keepdims=True)
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(p * log(p / q)); with ``normalize``, of p / sum(p) and q / sum(q).

    p = 0 contributes 0; p > 0 where q = 0: +inf. A negative, infinite or NaN p or q: NaN. With ``normalize``, never
    negative, and NaN where either sum is 0. No entries: 0.

    >>> round(float(kl_divergence([0.1, 0.9], [0.2, 0.8])), 4)
    0.0367
    """
    if given != "probs" or temperature != 1:
        log_p, log_q, invalid, dtype = _log_pair(p, q, given, temperature, normalize, axis, where)
        value = np.sum(_x_log_ratio(log_p, log_q), axis=axis, keepdims=True)
        if normalize or given in ("logits", ("logits", "logits")):
            value = np.maximum(value, 0.0)
        return _finish((value + invalid) / _log_base(base) + 0.0, axis, keepdims, dtype)
    p64, q64, dtype = _pair(p, q, where)
    invalid = _invalid(p64, axis) + _invalid(q64, axis)
    if normalize:
        # First to a maximum near 2^960, exactly: no sum overflows, and what is small beside it stays normal.
        p64, q64 = (
            np.ldexp(v, 960 - np.frexp(v.max(axis=axis, keepdims=True, initial=0.0))[1]) for v in (p64, q64)
        )
        total_p, total_q = (v.sum(axis=axis, keepdims=True) for v in (p64, q64))
        terms = _kl_terms(p64, q64 * (total_p / total_q))
        value = np.sum(terms, axis=axis, keepdims=True) / total_p
        value = np.where((total_p == 0) | (total_q == 0), np.nan, value)
    else:
        value = np.sum(_kl_terms(p64, q64), axis=axis, keepdims=True) + np.sum(p64 - q64, axis=axis, keepdims=True)
    return _finish((value + invalid) / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def generalized_kl(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(p * log(p / q) - p + q): never negative, 0 for equal rows.

    p = 0 contributes q; p > 0 where q = 0: +inf. A negative, infinite or NaN p or q: NaN. No entries: 0.

    >>> float(generalized_kl([0.0, 0.5], [0.25, 0.5]))
    0.25
    """
    if given != "probs" or temperature != 1:
        log_p, log_q, invalid, dtype = _log_pair(p, q, given, temperature, False, axis, where)
        terms = _x_log_ratio(log_p, log_q) - np.exp(log_p) + np.exp(log_q)
        value = np.maximum(np.sum(terms, axis=axis, keepdims=True), 0.0) + invalid
        return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)
    p64, q64, dtype = _pair(p, q, where)
    value = _invalid(p64, axis) + _invalid(q64, axis) + np.sum(_kl_terms(p64, q64), axis=axis, keepdims=True)
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


# pointwise


@np.errstate(all="ignore")
def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """With m = w p + (1 - w) q, w the weight: w sum(p log(p / m)) + (1 - w) sum(q log(q / m)).

    A negative, infinite or NaN p or q: NaN. With ``normalize``, of p / sum(p) and q / sum(q), and NaN where a sum is 0.
    No entries: 0.

    >>> float(js_divergence([1.0, 0.0], [0.0, 1.0], base=2))
    1.0
    """
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    value = np.sum(_js_terms(p64, q64, d, weight), axis=axis, keepdims=True)
    return _finish((value + invalid) / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def js_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """The square root of js_divergence.

    >>> float(js_distance([1.0, 0.0], [0.0, 1.0], base=2))
    1.0
    """
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    value = np.sum(_js_terms(p64, q64, d, 0.5), axis=axis, keepdims=True)
    return _finish(np.sqrt((value + invalid) / _log_base(base) + 0.0), axis, keepdims, dtype)


@np.errstate(all="ignore")
def jeffreys_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum((p - q) * log(p / q)).

    Exactly one of p and q being 0: +inf. Else as js_divergence.

    >>> round(float(jeffreys_divergence([0.1, 0.9], [0.2, 0.8])), 4)
    0.0811
    """
    if given != "probs" or temperature != 1:
        log_p, log_q, invalid, dtype = _log_pair(p, q, given, temperature, normalize, axis, where)
        terms = np.where(log_p == log_q, 0.0, (np.exp(log_p) - np.exp(log_q)) * (log_p - log_q))
        terms = np.where(np.isneginf(log_p) != np.isneginf(log_q), np.inf, terms)
        value = np.sum(terms, axis=axis, keepdims=True) + invalid
        return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    terms = _kl_terms(p64, q64, d) + _kl_terms(q64, p64, -d)
    value = np.sum(terms, axis=axis, keepdims=True) + invalid
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def hellinger_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sqrt(sum((sqrt(p) - sqrt(q))**2) / 2). Edges as js_divergence.

    >>> float(hellinger_distance([1.0, 0.0], [0.0, 1.0]))
    1.0
    """
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    value = np.sum(_hellinger_terms(p64, q64, d), axis=axis, keepdims=True) + invalid
    return _finish(np.sqrt(value), axis, keepdims, dtype)


@np.errstate(all="ignore")
def bhattacharyya_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """-log(sum(sqrt(p * q))).

    No class where both are above 0: +inf. Else as js_divergence. While the sum is near 1 from what it lacks:
    the square of Hellinger's distance, and half of what the sums of p and q differ from 1 by.

    >>> round(float(bhattacharyya_distance([1.0, 0.0], [0.5, 0.5])), 4)
    0.3466
    """
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    lost = np.sum(_hellinger_terms(p64, q64, d), axis=axis, keepdims=True)
    gap = np.zeros_like(lost) if normalize else (np.sum(p64 + q64, axis=axis, keepdims=True) - 2) / 2
    overlap = np.sum(np.sqrt(p64) * np.sqrt(q64), axis=axis, keepdims=True)
    value = -np.where((lost < 0.5) & (np.abs(gap) < 0.5), np.log1p(gap - lost), np.log(overlap)) + invalid
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def total_variation(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(abs(p - q)) / 2. Edges as js_divergence.

    >>> float(total_variation([0.5, 0.5], [0.75, 0.25]))
    0.25
    """
    _, _, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    return _finish(np.sum(np.abs(d) / 2, axis=axis, keepdims=True) + invalid, axis, keepdims, dtype)


@np.errstate(all="ignore")
def chi2_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    kind: str = "pearson",
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum((p - q)**2 / q), or with ``kind="neyman"`` over p.

    p > 0 where q = 0 (Neyman: q > 0 where p = 0): +inf. Else as js_divergence.

    >>> float(chi2_divergence([0.5, 0.5], [0.75, 0.25], kind="neyman"))
    0.25
    """
    if kind not in ("pearson", "neyman"):
        raise ValueError(f"kind must be 'pearson' or 'neyman', got {kind!r}")
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    size, over = np.abs(d), q64 if kind == "pearson" else p64
    # d / q may overflow where d^2 / q does not, and d^2 be denormal where q is not.
    terms = np.where((over < 2.0**-500) & (size > 2.0**-500), size * size / over, size * (size / over))
    terms = np.where(size == 0, 0.0, np.where(over == 0, np.inf, terms))
    return _finish(np.sum(terms, axis=axis, keepdims=True) + invalid, axis, keepdims, dtype)


@np.errstate(all="ignore")
def triangular_discrimination(
    p: ArrayLike,
    q: ArrayLike,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum((p - q)**2 / (p + q)). Edges as js_divergence.

    >>> float(triangular_discrimination([1.0, 0.0], [0.0, 1.0]))
    2.0
    """
    p64, q64, d, invalid, dtype = _distributions(p, q, given, temperature, axis, where, normalize)
    half = np.where(np.maximum(p64, q64) > 1e300, 0.5, 1.0)     # p + q may overflow
    terms = np.where(d == 0, 0.0, np.abs(d) * (half * np.abs(d) / (half * p64 + half * q64)))
    return _finish(np.sum(terms, axis=axis, keepdims=True) + invalid, axis, keepdims, dtype)


# Order alpha (renyi) -----------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
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
) -> Any:
    """log(sum(p**alpha) / sum(p)) / (1 - alpha); at 1 -sum(p * log(p)) / sum(p), at infinity -log(max(p)).

    p = 0 counts for nothing. A negative, infinite or NaN p, or a sum of 0: NaN.

    >>> [round(float(renyi_entropy([0.5, 0.25, 0.25], alpha, base=2)), 4) for alpha in (0, 1, 2, math.inf)]
    [1.585, 1.5, 1.415, 1.0]
    """
    log_p, invalid, dtype = _log_probabilities(p, given, temperature, normalize, where, axis)
    value = invalid - _log_mean_power(log_p, log_p, alpha - 1, axis)
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
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
) -> Any:
    """(sum(p) - sum(p**alpha)) / (alpha - 1), at 1 -sum(p * log(p)).

    p = 0 counts for nothing. A negative, infinite or NaN p: NaN. No entries: 0.

    >>> [round(float(tsallis_entropy([0.5, 0.25, 0.25], alpha)), 4) for alpha in (0, 1, 2)]
    [2.0, 1.0397, 0.625]
    """
    log_p, invalid, dtype = _log_probabilities(p, given, temperature, normalize, where, axis)
    terms = -_power_terms(log_p, log_p, alpha - 1)
    return _finish(invalid + np.sum(terms, axis=axis, keepdims=True) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def renyi_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    base: float | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """log(sum(p**alpha * q**(1 - alpha)) / sum(p)) / (alpha - 1), and its limits: sum(p * log(p / q)) / sum(p) at 1,
    log(max(p / q)) at infinity.

    p = 0 counts for nothing; p > 0 where q = 0: +inf if alpha >= 1, nothing if not. A negative, infinite or NaN p or q,
    or a sum(p) of 0: NaN. Of two distributions, never negative.

    >>> [round(float(renyi_divergence([0.1, 0.9], [0.2, 0.8], alpha)), 4) for alpha in (0.5, 1, 2, math.inf)]
    [0.0202, 0.0367, 0.0606, 0.1178]
    """
    log_p, log_q, invalid, both, dtype = _logs_of_two(p, q, given, temperature, normalize, where, axis)
    value = _log_mean_power(log_p, _log_ratio(log_p, log_q), alpha - 1, axis)
    value = (np.maximum(value, 0.0) if both else value) + invalid
    return _finish(value / _log_base(base) + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def tsallis_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """(sum(p**alpha * q**(1 - alpha)) - sum(p)) / (alpha - 1), at 1 sum(p * log(p / q)).

    p = 0 counts for nothing; p > 0 where q = 0: +inf if alpha >= 1. A negative, infinite or NaN p or q: NaN. No
    entries: 0. Of two distributions, never negative.

    >>> [round(float(tsallis_divergence([0.1, 0.9], [0.2, 0.8], alpha)), 4) for alpha in (0.5, 1, 2)]
    [0.0201, 0.0367, 0.0625]
    """
    log_p, log_q, invalid, both, dtype = _logs_of_two(p, q, given, temperature, normalize, where, axis)
    terms = _power_terms(log_p, _log_ratio(log_p, log_q), alpha - 1)
    value = np.sum(terms, axis=axis, keepdims=True)
    value = (np.maximum(value, 0.0) if both else value) + invalid
    return _finish(value + 0.0, axis, keepdims, dtype)


@np.errstate(all="ignore")
def alpha_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    given: str | tuple[str, str] = "probs",
    temperature: float | tuple[float, float] = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(alpha * p + (1 - alpha) * q - p**alpha * q**(1 - alpha)) / (alpha * (1 - alpha)), at 1 and 0
    generalized_kl(p, q) and generalized_kl(q, p).

    p > 0 where q = 0: +inf if alpha >= 1; q > 0 where p = 0: +inf if alpha <= 0. A negative, infinite or NaN p or q:
    NaN. No entries: 0. Never negative.

    >>> [round(float(alpha_divergence([0.1, 0.9], [0.2, 0.8], alpha)), 4) for alpha in (-1, 0, 0.5, 1, 2)]
    [0.0556, 0.0444, 0.0402, 0.0367, 0.0312]
    """
    log_p, log_q, invalid, _, dtype = _logs_of_two(p, q, given, temperature, normalize, where, axis)
    c = alpha - 1
    if alpha < 0.5:
        log_p, log_q, alpha, c = log_q, log_p, 1 - alpha, -alpha
    terms, p64, q64 = _power_terms(log_p, _log_ratio(log_p, log_q), c), np.exp(log_p), np.exp(log_q)
    # (p^alpha q^(1 - alpha) - p) / (alpha - 1) is alpha times the term, and p - q.
    x = log_p - log_q
    terms = np.where(np.abs(x) < 1e-4, p64 * x**2 / 2 * (1 + (alpha - 2) * x / 3), (terms - (p64 - q64)) / alpha)
    terms = np.where(p64 == 0, q64 / alpha, terms)
    value = np.maximum(np.sum(terms, axis=axis, keepdims=True), 0.0) + invalid
    return _finish(value + 0.0, axis, keepdims, dtype)


def _log_probabilities(
    p: ArrayLike, given: str, temperature: float, normalize: bool, where: ArrayLike | None, axis: Axis
) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Return the logs of a distribution's probabilities, NaN for rows without any (else 0), and the result's type."""
    (x,), dtype = _read(p)
    if given not in ("probs", "log_probs", "logits"):
        raise ValueError(f"given must be 'probs', 'log_probs' or 'logits', got {given!r}")
    if temperature != 1 and given != "logits":
        raise ValueError(f"only logits have a temperature, got {temperature!r} for {given}")
    x = _masked(x, where, 0.0 if given == "probs" else -np.inf)
    invalid = _invalid(x if given == "probs" else np.where(x < np.inf, 0.0, x), axis)
    log_p = _log(x) if given == "probs" else x / temperature
    if normalize or given == "logits":
        m, less1 = _total_less_one(log_p, np.ones_like(log_p), axis)
        log_p = (log_p - m) - np.log1p(less1)
        invalid = invalid + np.where(np.isneginf(log_p).all(axis=axis, keepdims=True) | (less1 == -1), np.nan, 0.0)
    return log_p, invalid, dtype


def _logs_of_two(
    p: ArrayLike, q: ArrayLike, given: str | tuple[str, str], temperature: float | tuple[float, float],
    normalize: bool, where: ArrayLike | None, axis: Axis,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool, np.dtype]:  # fmt: skip
    """Return the same of two, broadcast together, and whether both have been divided by their sums."""
    forms = (given, given) if isinstance(given, str) else given
    divisors = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    arrays = np.broadcast_arrays(np.asarray(p), np.asarray(q))
    logs = [
        _log_probabilities(v, form, t, normalize, where, axis)
        for v, form, t in zip(arrays, forms, divisors, strict=True)
    ]
    (log_p, p_invalid, p_type), (log_q, q_invalid, q_type) = logs
    both = normalize or forms == ("logits", "logits")
    return log_p, log_q, p_invalid + q_invalid, both, np.result_type(p_type, q_type)


def _log_ratio(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return log(p / q), +inf where only q is 0 and -inf where p is."""
    return np.where(np.isneginf(log_p), -np.inf, log_p - log_q)


def _power_terms(log_p: np.ndarray, x: np.ndarray, c: float) -> np.ndarray:
    """Return p * (exp(c * x) - 1) / c, its limit p * x at c = 0, and 0 where p is 0."""
    p = np.exp(log_p)
    if c == 0:
        terms = p * x
    else:
        far = (np.exp(log_p + c * x) - p) / c     # where exp(c * x) may overflow although p times it does not
        terms = np.where(np.abs(c * x) < 1, p * np.expm1(c * x) / c if abs(c) > 1e-290 else p * x, far)
    return np.where(np.isneginf(log_p), 0.0, terms)


def _log_mean_power(log_p: np.ndarray, x: np.ndarray, c: float, axis: Axis) -> np.ndarray:
    """Return log(sum(p * exp(c * x)) / sum(p)) / c; at c = 0 sum(p * x) / sum(p), at infinity the largest x."""
    present = ~np.isneginf(log_p)
    top, less1 = _total_less_one(log_p, np.ones_like(log_p), axis)
    if c == np.inf:
        value = np.where(present, x, -np.inf).max(axis=axis, keepdims=True, initial=-np.inf)
    else:
        share = (log_p - top) - np.log1p(less1)
        mean = np.sum(_power_terms(share, x, c), axis=axis, keepdims=True)
        value = np.log1p(c * mean) / c if abs(c) > 1e-290 else mean
        exponent = np.where(present, (log_p - top) + c * np.where(present, x, 0.0), -np.inf)
        m, total = _total_less_one(exponent, np.ones_like(log_p), axis)
        direct = ((m - np.log1p(less1)) + np.log1p(total)) / c if c else mean
        value = np.where(np.abs(c * mean) < 0.5, value, direct)
        value = np.where((present & np.isposinf(x)).any(axis=axis, keepdims=True) & (c >= 0), np.inf, value)
    return np.where(present.any(axis=axis, keepdims=True), value, np.nan)


@np.errstate(all="ignore")
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
) -> Any:
    """log(sum(exp(x))) - x[label], as log(1 + exp(logsumexp of the others - x[label])).

    A row with a NaN or a +inf, or of all -inf (what is masked out counts as -inf): NaN; otherwise a label whose logit
    is -inf or masked out: +inf. One class: 0. A label equal to ``ignore_index``: 0, whatever the row holds. Any other
    label outside 0 .. classes - 1: IndexError. ``reduction="mean"`` is over the rows not ignored.

    >>> round(float(softmax_cross_entropy([0.0, -100.0], 0)) * 1e44, 4)
    3.7201
    """
    (x64,), dtype = _read(logits)
    x64 = np.moveaxis(_masked(x64, where, -np.inf), axis, -1)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != x64.shape[:-1]:
        raise ValueError(f"labels of shape {labels.shape} do not fit logits whose rows are of shape {x64.shape[:-1]}")
    classes = x64.shape[-1]
    kept = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    wrong = kept & ((labels < 0) | (labels >= classes))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise IndexError(f"label {labels.reshape(-1)[row]} in row {row} is out of range for {classes} classes")

    chosen = np.where(kept, labels, 0).astype(np.intp)[..., None] == np.arange(classes)
    others = np.where(chosen, -np.inf, x64)
    m, less1 = _total_less_one(others, np.ones_like(others), -1)
    ahead = m[..., 0] - np.where(chosen, x64, 0.0).sum(axis=-1)
    loss = np.logaddexp(0.0, ahead + np.log1p(less1)[..., 0])
    top = x64.max(axis=-1, initial=-np.inf)
    loss = np.where(kept, np.where(np.isfinite(top), loss, np.nan), 0.0)
    if reduction == "none":
        return (np.expand_dims(loss, axis) if keepdims else loss).astype(dtype)[()]
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    total = loss.sum()
    if reduction == "mean":
        total = total / kept.sum() if kept.any() else np.float64(empty_mean)
    return (total.reshape((1,) * x64.ndim) if keepdims else total).astype(dtype)[()]


# scan


@np.errstate(all="ignore")
def logcumsumexp(x: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None) -> Any:
    """log(sum(exp(x[: i + 1]))) at every element i of a row.

    While there were only -inf: -inf; from a +inf on +inf; from a NaN on NaN. Masked-out entries add nothing: 0 there.

    >>> logcumsumexp([0.0, -np.inf, 1000.0]).tolist()
    [0.0, 0.0, 1000.0]
    """
    (x64,), dtype = _read(x)
    rows = _rows_last(_masked(x64, where, -np.inf), axis)
    sums = np.logaddexp.accumulate(rows, axis=-1) if rows.size else rows
    # Back to where they were, by the places of the elements.
    result = np.empty(x64.size)
    result[_rows_last(np.arange(x64.size).reshape(x64.shape), axis)] = sums
    return _masked(result.reshape(x64.shape), where, 0.0).astype(dtype)[()]


@np.errstate(all="ignore")
def perplexity(
    p: ArrayLike,
    *,
    given: str = "probs",
    temperature: float = 1.0,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """exp(entropy): of no entries 1, otherwise NaN where the entropy is.

    >>> float(perplexity([0.5, 0.5]))
    2.0
    """
    (p64,), dtype = _read(p)
    if temperature != 1:
        p64 = (p64.astype(dtype) / dtype.type(temperature)).astype(np.float64)
    value = entropy(p64, given=given, axis=axis, normalize=normalize, where=where, keepdims=keepdims)
    return np.exp(value).astype(dtype)[()]


@np.errstate(all="ignore")
def wasserstein_1d(
    p: ArrayLike,
    q: ArrayLike,
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(abs(cumsum(p - q)[:-1]) * diff(x)), the points x in ascending order; 0, 1, 2, ... by default.

    With ``y``, the points of q: of both laid out over all points. A negative, infinite or NaN p or q: NaN. With
    ``normalize``, of p / sum(p) and q / sum(q), and NaN where either sum is 0. No entries: 0.

    >>> float(wasserstein_1d([1.0, 0.0], [0.0, 1.0], x=[5.0, 2.0]))
    3.0
    """
    if y is not None:
        (p64, q64), dtype = _read(p, q)
        p64, q64 = (np.moveaxis(np.atleast_1d(v), -1 if axis is None else axis, -1) for v in (p64, q64))
        n, points = p64.shape[-1], np.concatenate([np.asarray(x, np.float64), np.asarray(y, np.float64)])
        outer = np.broadcast_shapes(p64.shape[:-1], q64.shape[:-1])
        p64, q64 = (np.broadcast_to(v, (*outer, v.shape[-1])) for v in (p64, q64))
        p64, q64 = np.insert(p64, [n] * q64.shape[-1], 0.0, axis=-1), np.insert(q64, [0] * n, 0.0, axis=-1)
        value = np.asarray(wasserstein_1d(p64, q64, x=points, normalize=normalize)).astype(dtype)
        return np.expand_dims(value, -1 if axis is None else axis) if keepdims else value[()]
    p64, q64, dtype = _pair(p, q, where)
    invalid = _invalid(p64, axis) + _invalid(q64, axis)
    rows = [_rows_last(v, axis) for v in (p64, q64)]
    if normalize:
        # First to a maximum near 1, exactly.
        rows = [np.ldexp(v, -np.frexp(v.max(axis=-1, keepdims=True, initial=0.0))[1]) for v in rows]
        rows = [v / v.sum(axis=-1, keepdims=True) for v in rows]
    points = np.arange(rows[0].shape[-1]) if x is None else np.asarray(x, np.float64)
    order = np.argsort(points, kind="stable")
    moved = np.cumsum((rows[0] - rows[1])[..., order], axis=-1)[..., :-1]
    value = np.sum(np.abs(moved) * np.diff(points[order]), axis=-1).reshape(invalid.shape)
    if normalize:
        value = np.where(np.isnan(rows[0] + rows[1]).any(axis=-1).reshape(invalid.shape), np.nan, value)
        value = np.where(points.size == 0, np.nan, value)
    return _finish(value + invalid, axis, keepdims, dtype)


@np.errstate(all="ignore")
def binary_cross_entropy(
    p: ArrayLike,
    y: ArrayLike,
    *,
    given: str = "probs",
    reduction: str = "none",
    empty_mean: float = math.nan,
    where: ArrayLike | None = None,
) -> Any:
    """-y log(p) - (1 - y) log(1 - p); ``given="logits"``: y softplus(-p) + (1 - y) softplus(p).

    0 log 0 = 0, p = 0 < y and p = 1 > y: +inf. p or y outside 0 .. 1, or NaN: NaN. Logits of +-inf: 0 where y agrees
    wholly, otherwise +inf. Masked-out entries: 0, and they do not count in the mean.

    >>> binary_cross_entropy([0.0, 0.0], [0, 1]).tolist()
    [0.0, inf]
    """
    (p64,), dtype = _read(p)
    (y64,), of_y = _read(y)
    if np.asarray(y).dtype.kind not in "biu":
        dtype = np.result_type(dtype, of_y)
    p64, y64 = np.broadcast_arrays(p64, y64)
    if given == "probs":
        p64 = np.where((p64 >= 0) & (p64 <= 1), p64, np.nan)
        loss = -_x_times(y64, np.log(np.abs(p64))) - _x_times(1 - y64, np.log1p(-p64))
        loss = np.where(np.isnan(p64), np.nan, loss)
    elif given == "logits":
        loss = _x_times(y64, np.logaddexp(0, -p64)) + _x_times(1 - y64, np.logaddexp(0, p64))
        loss = np.where(np.isnan(p64), np.nan, loss)
    else:
        raise ValueError(f"given must be 'probs' or 'logits', got {given!r}")
    loss = _masked(np.where((y64 >= 0) & (y64 <= 1), loss, np.nan) + 0.0, where, 0.0)
    if reduction == "none":
        return loss.astype(dtype)[()]
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    kept = loss.size if where is None else np.count_nonzero(np.broadcast_to(where, loss.shape))
    total = loss.sum()
    if reduction == "mean":
        total = total / kept if kept else np.float64(empty_mean)
    return total.astype(dtype)[()]


@np.errstate(all="ignore")
def f_divergence(
    p: ArrayLike,
    q: ArrayLike,
    f: Any,
    *,
    f_at_0: float | None = None,
    slope_at_inf: float | None = None,
    axis: Axis = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> Any:
    """sum(q f(p/q)) of a callable or named f; p = 0 < q gives q ``f_at_0``, q = 0 < p gives p ``slope_at_inf``.

    Both 0: 0. A negative, infinite or NaN p or q: NaN. With ``normalize``, of p / sum(p) and q / sum(q).

    >>> float(f_divergence([1.0, 0.0], [0.5, 0.5], "tv"))
    0.5
    """
    p64, q64, dtype = _pair(p, q, where)
    invalid = _invalid(p64, axis) + _invalid(q64, axis)
    if normalize:
        p64, q64 = (v / v.sum(axis=axis, keepdims=True) for v in (p64, q64))
        invalid = invalid + (p64 + q64).sum(axis=axis, keepdims=True) * 0
    if isinstance(f, str):
        f, f_at_0, slope_at_inf = _GENERATORS[f]
    inside = (p64 > 0) & (q64 > 0)
    terms = np.where(inside, q64 * f(np.where(inside, p64 / q64, 1.0)), 0.0)
    for zero, other, limit in ((p64, q64, f_at_0), (q64, p64, slope_at_inf)):
        here = (zero == 0) & (other > 0) & ~np.isnan(invalid)
        if limit is None and here.any():
            raise ValueError("a zero needs the limit of f there: f_at_0 or slope_at_inf")
        terms = np.where(here, other * (math.nan if limit is None else limit), terms)
    return _finish(terms.sum(axis=axis, keepdims=True) + invalid, axis, keepdims, dtype)


#: Generators of the named divergences, f(0) and the limit of f(t) / t.
_GENERATORS: dict[str, Any] = {
    "kl": (lambda t: t * np.log(t), 0.0, math.inf),
    "reverse_kl": (lambda t: -np.log(t), math.inf, 0.0),
    "jeffreys": (lambda t: (t - 1) * np.log(t), math.inf, math.inf),
    "js": (lambda t: (t * np.log(t) - (1 + t) * np.log((1 + t) / 2)) / 2, LN2 / 2, LN2 / 2),
    "hellinger": (lambda t: (np.sqrt(t) - 1) ** 2 / 2, 0.5, 0.5),
    "tv": (lambda t: np.abs(t - 1) / 2, 0.5, 0.5),
    "chi2": (lambda t: (t - 1) ** 2, 1.0, math.inf),
    "neyman": (lambda t: (t - 1) ** 2 / t, math.inf, 1.0),
    "triangular": (lambda t: (t - 1) ** 2 / (t + 1), 1.0, 1.0),
}


@np.errstate(all="ignore")
def variational_bound(
    t_p: ArrayLike, t_q: ArrayLike | None = None, f: str = "kl", *, bound: str = "f-gan", axis: int = -1
) -> Any:
    """mean(t_p) - mean(f*(t_q)), f*(t) the largest u t - f(u), u >= 0; "nwj" is that with f = "kl".

    "dv": mean(t_p) - log(mean(exp(t_q))). "infonce": the mean of the diagonal of log_softmax(t_p), plus log N.

    >>> float(variational_bound([0.0], [0.0], bound="dv"))
    0.0
    """
    (of_p,), dtype = _read(t_p)
    if bound == "infonce":
        diagonal = np.diagonal(log_softmax(of_p), axis1=-2, axis2=-1)
        return (diagonal.mean(axis=-1) + np.log(of_p.shape[-1])).astype(dtype)[()]
    if t_q is None:
        raise ValueError("t_q is missing")
    (of_p, of_q), dtype = _read(t_p, t_q)
    of_p, of_q = np.atleast_1d(of_p, of_q)
    log_mean = logsumexp(of_q, axis=axis) - np.log(of_q.shape[axis])
    if bound == "dv":
        value = of_p.mean(axis=axis) - log_mean
    else:
        value = of_p.mean(axis=axis) - (np.exp(log_mean - 1) if f == "kl" else _CONJUGATES[f](of_q).mean(axis=axis))
    return value.astype(dtype)[()]


def _below(t: np.ndarray, most: float, value: np.ndarray) -> np.ndarray:
    """Return the value where t < most, else inf; a NaN stays."""
    return np.where(t < most, value, np.where(np.isnan(t), np.nan, np.inf))


_CONJUGATES: dict[str, Any] = {
    "reverse_kl": lambda t: _below(t, 0.0, -1 - np.log(-t)),
    "js": lambda t: _below(t, LN2 / 2, -np.log(2 - np.exp(2 * t)) / 2),
    "hellinger": lambda t: _below(t, 0.5, np.where(t == -np.inf, -0.5, t / (1 - 2 * t))),
    "tv": lambda t: _below(t, np.nextafter(0.5, 1), np.maximum(t, -0.5)),
    "chi2": lambda t: np.where(t < -2, -1.0, t + t * t / 4),
    "neyman": lambda t: _below(t, np.nextafter(1.0, 2), 2 - 2 * np.sqrt(1 - t)),
    "triangular": lambda t: _below(t, np.nextafter(1.0, 2), np.where(t < -3, -1.0, 4 - t - 4 * np.sqrt(1 - t))),
}


@np.errstate(all="ignore")
def score(
    logits: ArrayLike,
    labels: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    *,
    stats: Sequence[str] | None = None,
    given: str | tuple[str, str] = "logits",
    temperature: float | tuple[float, float] = 1.0,
    k: int = 5,
) -> dict[str, np.ndarray]:
    """Statistics of each row of x (the logits, or the log of the probabilities, over the temperature), by their names.

    With p = softmax(x) and r the reference's: KL(r || p), KL(p || r) and the Jensen-Shannon divergence of both. Rank: 1
    and the number of logits larger than the label's. Argmax: the first of equals. A row with a NaN or a +inf, or of all
    -inf, gives NaN (but for its lse), -1 and False.

    >>> {name: column.tolist() for name, column in score([[1.0, 3.0, 2.0]], [2], stats=["rank", "margin"]).items()}
    {'rank': [2], 'margin': [1.0]}
    """
    x_given, r_given = (given,) * 2 if isinstance(given, str) else given
    x_t, r_t = temperature if isinstance(temperature, tuple) else (temperature,) * 2
    (order,), dtype = _read(logits)
    x = _logits_of(logits, x_given, x_t, dtype)
    if x_given != "probs":
        order = x     # the logs of unequal probabilities may be equal when rounded
    top = x.max(axis=-1, initial=-np.inf)
    holds = np.isfinite(top)     # a NaN is its row's maximum
    by_rank = np.argsort(-order, axis=-1, kind="stable")
    _, less1 = _total_less_one(x, np.ones_like(x), -1)
    log_total = np.log1p(less1)[..., 0]
    columns: dict[str, np.ndarray] = {
        "lse": np.asarray(logsumexp(x)),
        "entropy": np.asarray(entropy(x, given="logits")),
        "max_prob": np.where(holds, np.exp(-log_total), np.nan),
        "argmax": np.where(holds, by_rank[..., 0] if x.shape[-1] else -1, -1),
        "margin": np.where(holds, top - np.sort(x, axis=-1)[..., -2] if x.shape[-1] > 1 else np.inf, np.nan),
    }
    columns["perplexity"] = np.exp(columns["entropy"])
    if labels is not None:
        columns["loss"] = np.asarray(softmax_cross_entropy(x, labels))
        labels = np.asarray(labels).astype(np.intp)
        above = (order > np.take_along_axis(order, labels[..., None], -1)).sum(axis=-1)
        columns["rank"] = np.where(holds, 1 + above, -1)
        columns["correct"] = holds & (columns["argmax"] == labels)
        others = np.where(labels[..., None] == np.arange(x.shape[-1]), 0.0, np.exp(np.asarray(log_softmax(x))))
        brier = np.expm1(-columns["loss"]) ** 2 + (others**2).sum(axis=-1)
        columns["brier"] = np.where(holds, brier, np.nan)
    if stats is not None and "top_k" in stats:
        best = by_rank[..., :k]
        columns["top_k"] = np.where(holds[..., None], best, -1)
        columns["top_k_log_prob"] = np.take_along_axis(np.asarray(log_softmax(x)), best, -1)
    pair = dtype
    if reference is not None:
        pair = np.result_type(dtype, _read(reference)[1])
        x, y = _logits_of(logits, x_given, x_t, pair), _logits_of(reference, r_given, r_t, pair)
        x, y = np.broadcast_arrays(x, y)
        both = holds & np.isfinite(y.max(axis=-1, initial=-np.inf))
        columns["kl"], columns["reverse_kl"], columns["js"] = (np.where(both, v, np.nan) for v in _divergences(y, x))
        columns["agree"] = both & (columns["argmax"] == np.argmax(y, axis=-1) if y.shape[-1] else False)
    names = [name for name in _STATISTICS if name in columns] if stats is None else []
    for name in stats or []:
        names += [name, "top_k_log_prob"] if name == "top_k" else [name]
    types = {name: pair if name in ("kl", "reverse_kl", "js") else dtype for name in names}
    return {n: columns[n].astype(types[n]) if columns[n].dtype.kind == "f" else columns[n] for n in names}


_STATISTICS = (
    "lse", "loss", "entropy", "perplexity", "max_prob", "argmax", "correct", "rank", "margin",
    "kl", "reverse_kl", "js", "agree",
)  # fmt: skip


def _logits_of(array: ArrayLike, given: str, temperature: float, dtype: np.dtype) -> np.ndarray:
    """Return the logits over the temperature; the quotient is rounded to the type, logs of probabilities are not."""
    (x,), _ = _read(array)
    if given == "probs":
        log_p: np.ndarray = np.log(np.where(x == 0, 0.0, x)) / temperature
        return log_p
    quotient: np.ndarray = (x.astype(dtype) / dtype.type(temperature)).astype(np.float64)
    return quotient


def _divergences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return KL(p || q), KL(q || p) and JS, p = softmax(a), q = softmax(b).

    With x = log(p / q), t = abs(x) and e = exp(-t), each is a sum of terms max(p, q) f(t), f >= 0: the smaller of p and
    q is the larger one times e. An error h of x, the same for all classes, costs h^2 / 2 in the first two and a quarter
    of that in the third; the sum of q - p is h.
    """
    (ma, less_a), (mb, less_b) = (_total_less_one(v, np.ones_like(v), -1) for v in (a, b))
    log_p, log_q = (a - ma) - np.log1p(less_a), (b - mb) - np.log1p(less_b)
    (difference, rest), (shift, shift_rest) = _minus(a, b), _minus(ma, mb)
    x = ((difference - shift) + (rest - shift_rest)) - (np.log1p(less_a) - np.log1p(less_b))
    x = np.where(np.isfinite(difference), x, np.where(a == b, 0.0, difference))     # both -inf: absent
    t, larger = np.abs(x), np.exp(np.maximum(log_p, log_q))
    e, te = np.exp(-t), np.where(t < 800, t, 0.0) * np.exp(-t)
    u, small = np.tanh(t / 2), t < 0.25
    s = np.where(small, t, 0.0)
    falling = np.where(small, sum((-s) ** n / math.factorial(n) for n in range(2, 16)), np.expm1(-t) + t)
    rising = np.where(small, sum((-s) ** n * (n - 1) / math.factorial(n) for n in range(2, 16)), (1 - e) - te)
    even = sum((np.where(small, u, 0.0) ** (2 * n) / (2 * n * (2 * n - 1)) for n in range(1, 10)), np.zeros_like(u))
    middle = np.where(small, (1 + e) * even, (1 + e) * (np.log(2.0) - np.log1p(e)) - te) / 2
    with_p = np.where(t == np.inf, np.inf, larger * np.where(x > 0, falling, rising))
    with_q = np.where(t == np.inf, np.inf, larger * np.where(x > 0, rising, falling))
    with_p = np.where(x == -np.inf, larger, with_p)
    with_q = np.where(x == np.inf, larger, with_q)
    c = np.sum(larger * np.sign(x) * np.expm1(-t), axis=-1)
    sums = (np.sum(terms, axis=-1) for terms in (with_p, with_q, larger * middle))
    return tuple(np.maximum(v - lost, 0.0) for v, lost in zip(sums, (c * c / 2, c * c / 2, c * c / 8), strict=True))


def _minus(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a - b and its rounding error (Knuth)."""
    difference = a - b
    part = difference - a
    return difference, (a - (difference - part)) - (b + part)


def _read(*arrays: ArrayLike) -> tuple[list[np.ndarray], np.dtype]:
    """Return the arrays in float64, and the type of the result: halves count as float32, integers as float64."""
    given = []
    for array in map(np.asarray, arrays):
        if array.dtype.kind not in "biu" and array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise TypeError(f"an array of {array.dtype} was given; real numbers up to float64 are taken")
        given.append(array)
    single = ("float16", "bfloat16", "float32")
    dtype = np.dtype(np.float32 if all(a.dtype.name in single for a in given) else np.float64)
    return [a.astype(np.float64) for a in given], dtype


def _masked(x: np.ndarray, where: ArrayLike | None, absent: float) -> np.ndarray:
    """Return x with ``absent`` for the entries that are masked out."""
    return x if where is None else np.where(np.broadcast_to(np.asarray(where), x.shape), x, absent)


def _pair(p: ArrayLike, q: ArrayLike, where: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Return p and q broadcast together, 0 where masked out, and the type of the result."""
    (p64, q64), dtype = _read(p, q)
    p64, q64 = np.broadcast_arrays(p64, q64)
    return _masked(p64, where, 0.0), _masked(q64, where, 0.0), dtype


def _log_probs(
    x: np.ndarray, given: str, temperature: float, normalize: bool, axis: Axis, where: ArrayLike | None, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return log p of what a row holds, and NaN for the rows that hold no distribution (0 for the others).

    Log-probabilities above 600 count as infinite.
    """
    if given not in ("probs", "log_probs", "logits"):
        raise ValueError(f"given must be 'probs', 'log_probs' or 'logits', got {given!r}")
    if temperature != 1:
        if given != "logits":
            raise ValueError(f"only logits have a temperature, not {given}")
        x = (x.astype(dtype) / dtype.type(temperature)).astype(np.float64)
    x = _masked(x, where, 0.0 if given == "probs" else -np.inf)
    if given == "probs":
        invalid, x = _invalid(x, axis), _log(x)
    else:
        most = np.inf if normalize or given == "logits" else np.nextafter(600, 601)
        invalid = np.where(np.all(x < most, axis=axis, keepdims=True), 0.0, np.nan)
    if normalize or given == "logits":
        m, less1 = _total_less_one(x, np.ones_like(x), axis)
        x = (x - m) - np.log1p(less1)
        invalid = np.where(less1 == -1, np.nan, invalid)
    return x, invalid


def _log_pair(
    p: ArrayLike, q: ArrayLike, given: Any, temperature: Any, normalize: bool, axis: Axis, where: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    """Return log p and log q broadcast together, NaN for the rows that hold no distributions, and the result's type."""
    (p64, q64), dtype = _read(p, q)
    p64, q64 = np.broadcast_arrays(p64, q64)
    words = (given, given) if isinstance(given, str) else given
    divisors = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    log_p, of_p = _log_probs(p64, words[0], divisors[0], normalize, axis, where, dtype)
    log_q, of_q = _log_probs(q64, words[1], divisors[1], normalize, axis, where, dtype)
    return log_p, log_q, of_p + of_q, dtype


def _x_log_ratio(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return p log(p/q): 0 where p is 0, inf where only q is."""
    terms = np.where(log_q == -np.inf, np.inf, np.exp(log_p) * (log_p - log_q))
    return np.where(log_p == -np.inf, 0.0, terms)


def _total_less_one(x: np.ndarray, b: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return m, the maximum of x (0 where that is infinite or NaN), and sum(b * exp(x - m)) - 1.

    One less, because where the maximum dominates the total is 1 + a rest whose digits the 1 would swallow.
    """
    m = x.max(axis=axis, keepdims=True, initial=-np.inf)
    # Beside a +inf every finite entry counts for nothing, also one whose exp overflows.
    x = np.where((m == np.inf) & (x < np.inf), -np.inf, x)
    m = np.where(np.isfinite(m), m, 0.0)
    at_top = x == m
    rest = np.where(at_top, 0.0, b * np.exp(x - m)).sum(axis=axis, keepdims=True)
    return m, (np.where(at_top, b, 0.0).sum(axis=axis, keepdims=True) - 1) + rest


def _invalid(p: np.ndarray, axis: Axis) -> np.ndarray:
    """Return NaN for the rows with an entry that no distribution has, and 0 for the others."""
    valid = np.all((p >= 0) & (p < np.inf), axis=axis, keepdims=True)
    return np.where(valid, 0.0, np.nan)


def _log(p: np.ndarray) -> np.ndarray:
    """Return log(p), with -0.0 counted as 0."""
    log_p: np.ndarray = np.log(np.abs(p))
    return log_p


def _x_times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x * y, 0 where x is 0 whatever y: 0 log 0 = 0."""
    return np.where(x == 0, 0.0, x * y)


def _kl_terms(p: np.ndarray, q: np.ndarray, d: np.ndarray | None = None) -> np.ndarray:
    """Return p log(p/q) - p + q, each >= 0; d is p - q where that is known better than p and q tell.

    Near p = q as d w + 2 p (atanh(w) - w), d = p - q and w = d / (p + q), by the series of atanh: nothing cancels.
    """
    d = p - q if d is None else d
    # Halved where p + q could overflow; only there, because halving rounds denormals.
    half = np.where(np.maximum(p, q) > 1e300, 0.5, 1.0)
    w = (half * d) / (half * p + half * q)
    series = sum((w ** (2 * n) / (2 * n + 3) for n in range(12)), np.zeros_like(w))
    near = d * w + 2 * p * w**3 * series
    # Mantissas and exponents apart, because p / q may overflow or underflow.
    (p_mantissa, p_exponent), (q_mantissa, q_exponent) = np.frexp(p), np.frexp(q)
    far = p * (np.log(p_mantissa / q_mantissa) + (p_exponent - q_exponent) * LN2) - p + q
    terms = np.where(np.abs(w) < 0.2, near, far)
    terms = np.where(q == 0, np.inf, terms)
    return np.where(p == 0, q, terms)


def _distributions(
    p: ArrayLike, q: ArrayLike, given: Any, temperature: Any, axis: Axis, where: ArrayLike | None, normalize: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    """Return p and q, over their sums if asked, p - q, NaN for the rows that are none, and the type of the result."""
    if given != "probs" or temperature != 1:
        log_p, log_q, invalid, dtype = _log_pair(p, q, given, temperature, normalize, axis, where)
        p64, q64 = np.exp(log_p), np.exp(log_q)
        # p - q by the larger of them and the difference of the logs.
        ratio = np.where(log_p == log_q, 0.0, log_p - log_q)
        return p64, q64, np.sign(ratio) * -np.expm1(-np.abs(ratio)) * np.maximum(p64, q64), invalid, dtype
    p64, q64, dtype = _pair(p, q, where)
    invalid = _invalid(p64, axis) + _invalid(q64, axis)
    d = p64 - q64
    if normalize:
        p64, q64 = (np.ldexp(v, -np.frexp(v.max(axis=axis, keepdims=True, initial=0.0))[1]) for v in (p64, q64))
        total_p, total_q = (v.sum(axis=axis, keepdims=True) for v in (p64, q64))
        invalid = np.where((total_p == 0) | (total_q == 0), np.nan, invalid)
        p64, q64 = p64 / total_p, q64 / total_q
        d = p64 - q64
    return p64, q64, d, invalid, dtype


def _hellinger_terms(p: np.ndarray, q: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return (sqrt(p) - sqrt(q))^2 / 2."""
    return np.where(d == 0, 0.0, (d / (np.sqrt(p) + np.sqrt(q))) ** 2 / 2)


def _js_terms(p: np.ndarray, q: np.ndarray, d: np.ndarray, weight: float) -> np.ndarray:
    """Return w p log(p/m) + (1 - w) q log(q/m) as KL terms, whose differences from m are parts of d."""
    m = weight * p + (1 - weight) * q
    with_p, with_q = _kl_terms(p, m, (1 - weight) * d), _kl_terms(q, m, -weight * d)
    # m = 0 under p or q: its weight is 0, or times it is a denormal.
    with_p, with_q = (np.where(v == np.inf, 0.0, v) for v in (with_p, with_q))
    return weight * with_p + (1 - weight) * with_q


def _rows_last(x: np.ndarray, axis: Axis) -> np.ndarray:
    """Return x with the given axes joined to one, the last."""
    axes = tuple(range(x.ndim)) if axis is None else np.unique(np.arange(max(x.ndim, 1))[np.ravel(axis)])
    moved = np.moveaxis(np.atleast_1d(x), axes, range(-len(axes), 0)) if x.ndim else np.atleast_1d(x)
    kept = moved.shape[: moved.ndim - max(len(axes), 1)]
    return moved.reshape(*kept, math.prod(moved.shape[len(kept) :]))


def _log_base(base: float | None) -> float:
    """Return the log of the base that results are wanted in; 1 for nats."""
    if base is None:
        return 1.0
    if not (0 < base < math.inf and base != 1):
        raise ValueError(f"base must be positive, finite and not 1, got {base!r}")
    return math.log(base)


def _finish(value: np.ndarray, axis: Axis, keepdims: bool, dtype: np.dtype) -> Any:
    """Drop the reduced axes unless they are to be kept; give the result its type, and a scalar where it is 0-d."""
    return (value if keepdims else value.squeeze(axis=axis)).astype(dtype)[()]
