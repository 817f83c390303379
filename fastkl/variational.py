"""Divergences of any convex generator, and lower bounds of divergences from a critic's scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array
from ._call import per_row
from ._threads import threads_for

# Ratios, or scores, that are handed to a function at a time.
_BLOCK = 65536

# Ratios below and above these are taken as these.
_LEAST, _MOST = float(np.finfo(FLOAT64).tiny), float(np.finfo(FLOAT64).max)

Generator = Callable[[Array], Any]


def f_divergence(
    p: ArrayLike,
    q: ArrayLike,
    f: str | Generator,
    *,
    f_at_0: float | None = None,
    slope_at_inf: float | None = None,
    axis: int | Sequence[int] | None = -1,
    normalize: bool = False,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    r"""f-divergence of each pair of rows: ``sum(q * f(p / q))`` of a convex f with f(1) = 0.

    Parameters
    ----------
    p, q : array_like
        Probabilities; broadcast against each other.
    f : callable or str
        A function of float64 arrays, element by element: it is given blocks of some 64k ratios, all finite and above 0.
        Or the name of a generator, which calls the function made for it:

        ==============  ====================================  ============================================
        name            f(t)                                  the same as
        ==============  ====================================  ============================================
        "kl"            t log t                               ``kl_divergence(p, q)``
        "reverse_kl"    -log t                                ``kl_divergence(q, p)``
        "jeffreys"      (t - 1) log t                         ``jeffreys_divergence(p, q)``
        "js"            (t log t - (1 + t) log((1 + t)/2))/2  ``js_divergence(p, q)``
        "hellinger"     (sqrt(t) - 1)^2 / 2                   ``hellinger_distance(p, q)**2``
        "tv"            abs(t - 1) / 2                        ``total_variation(p, q)``
        "chi2"          (t - 1)^2                             ``chi2_divergence(p, q)``
        "neyman"        (t - 1)^2 / t                         ``chi2_divergence(q, p)``
        "triangular"    (t - 1)^2 / (t + 1)                   ``triangular_discrimination(p, q)``
        ==============  ====================================  ============================================

    f_at_0 : float, optional
        The limit of f(t) for t -> 0, which may be inf: needed where a p is 0 and its q is not.
    slope_at_inf : float, optional
        The limit of f(t) / t for t -> inf, which may be inf: needed where a q is 0 and its p is not.
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
        Threads for a named generator; a callable runs on the thread that calls.

    Returns
    -------
    ndarray or scalar
        One number per row; float32 for float32 and half precision, else float64. f is given float64 in any case.

    Raises
    ------
    TypeError
        For a type of array that is not taken, or an f that is neither callable nor a string.
    ValueError
        For shapes that do not fit, another name, an f that gives another shape than it was given, or a zero whose
        limit was not passed: it names the first such row. Nothing has then been written to `out`.

    Notes
    -----
    Domain: p, q >= 0. Both 0: 0. A negative, infinite or NaN element gives NaN for its row; ``normalize=True`` and a
    zero sum too.

    Accuracy: of a named generator that of its function. Of a callable a few eps (float64) of sum(abs(q f(p/q))) beside
    f's own error and that of p / q, which f(t) near t = 1 may multiply: a small divergence wants its named function.
    Ratios beyond the largest and the least normal float64 are taken as these.

    References
    ----------
    I. Csiszar, "Information-type measures of difference of probability distributions and indirect observations",
    Studia Scientiarum Mathematicarum Hungarica 2 (1967).

    Examples
    --------
    >>> import fastkl as fk
    >>> p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    >>> float(fk.f_divergence(p, q, lambda t: (t - 1) ** 2, f_at_0=1.0))
    0.5
    >>> float(fk.f_divergence(p, q, "kl").round(4))
    0.3466
    """
    if isinstance(f, str):
        for name, limit in (("f_at_0", f_at_0), ("slope_at_inf", slope_at_inf)):
            if limit is not None:
                raise ValueError(f"{name} is for a callable; the generator {f!r} has its own")
        return _named(f, p, q, axis, normalize, where, keepdims, out, n_threads)
    if not callable(f):
        raise TypeError(f"f takes a callable or a name, not {type(f).__name__}")
    operands = _args.as_array(p, "p"), _args.as_array(q, "q")
    threads_for(n_threads, 0)    # refused where it is none, though not used
    dtype = _args.result_dtype(*operands)
    arrays = _args.broadcast(operands, ("p", "q"))
    axes = _args.reduced_axes(axis, arrays[0].ndim)
    mask = _args.mask_for(where, arrays[0].shape)
    shape = tuple([1 if i in axes else n for i, n in enumerate(arrays[0].shape) if keepdims or i not in axes])
    result = _args.output_for(out, shape, dtype, [*operands, mask], in_place=False)
    read = [*arrays] if mask is None else [*arrays, mask]
    read = [_args.axes_last(a, axes) for a in read]
    outer = read[0].shape[: read[0].ndim - len(axes)]
    rows = math.prod(outer)
    p_sums, q_sums = _sums(read, outer) if normalize else (np.ones(rows), np.ones(rows))
    totals = _RowSums(rows)
    with np.errstate(all="ignore"):
        for at, block in _blocks(read, outer):
            p_block, q_block = _kept(block)
            p_block, q_block = p_block / p_sums[at, None], q_block / q_sums[at, None]
            totals.add(at, _terms(p_block, q_block, f, f_at_0, slope_at_inf, outer, at))
    result[...] = totals.rounded().reshape(shape)
    return result if out is not None or result.ndim else result[()]


def _named(
    name: str, p: ArrayLike, q: ArrayLike, axis: Any, normalize: bool, where: Any, keepdims: bool, out: Any,
    n_threads: Any,
) -> Any:  # fmt: skip
    """The function that was made for a generator."""
    from . import divergences, information

    function, swapped = {
        "kl": (information.kl_divergence, False),
        "reverse_kl": (information.kl_divergence, True),
        "jeffreys": (divergences.jeffreys_divergence, False),
        "js": (divergences.js_divergence, False),
        "hellinger": (divergences.hellinger_distance, False),
        "tv": (divergences.total_variation, False),
        "chi2": (divergences.chi2_divergence, False),
        "neyman": (divergences.chi2_divergence, True),
        "triangular": (divergences.triangular_discrimination, False),
    }[_args.choice(name, "f", GENERATORS)]
    value = function(
        *((q, p) if swapped else (p, q)), axis=axis, normalize=normalize, where=where, keepdims=keepdims, out=out,
        n_threads=n_threads,
    )  # fmt: skip
    if name != "hellinger":
        return value
    if isinstance(value, np.ndarray):
        return np.multiply(value, value, out=value)
    return value * value


GENERATORS = ("kl", "reverse_kl", "jeffreys", "js", "hellinger", "tv", "chi2", "neyman", "triangular")


class _RowSums:
    """Sums of rows that come whole or in pieces, each added in an order that its row alone decides."""

    def __init__(self, rows: int) -> None:
        self._sums = np.zeros(rows)
        self._pieces: dict[int, list[float]] = {}

    def add(self, at: slice, terms: Array) -> None:
        """Add terms of the rows `at`, one row of them for each."""
        sums = np.ascontiguousarray(terms).sum(axis=-1)
        if terms.shape[-1] < _BLOCK:
            self._sums[at] += sums
        else:
            self._pieces.setdefault(at.start, []).append(float(sums[0]))

    def rounded(self) -> Array:
        """The sums."""
        for row, pieces in self._pieces.items():
            self._sums[row] += _fsum(pieces)
        return self._sums


def _fsum(values: Sequence[float]) -> float:
    """The sum rounded once; infinite or NaN as plain addition has it."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def _blocks(arrays: Sequence[Array], outer: tuple[int, ...]) -> Iterator[tuple[slice, list[Array]]]:
    """Copies of some rows at a time, or of a piece of one that is longer than a block, each as (rows, classes)."""
    if not outer:
        arrays, outer = [a[None] for a in arrays], (1,)
    rows, classes = math.prod(outer), math.prod(arrays[0].shape[len(outer) :])
    together = max(1, _BLOCK // max(classes, 1))
    for row in range(0, rows, together):
        stop = min(row + together, rows)
        if classes <= _BLOCK:
            chosen = np.unravel_index(np.arange(row, stop), outer)
            yield slice(row, stop), [a[chosen].reshape(stop - row, classes) for a in arrays]
            continue
        lying = [a[np.unravel_index(row, outer)] for a in arrays]
        for first in range(0, classes, _BLOCK):
            yield slice(row, stop), [a.flat[first : first + _BLOCK].reshape(1, -1) for a in lying]


def _kept(block: Sequence[Array]) -> tuple[Array, Array]:
    """P and q in float64, 0 where the mask, if there is one, is False."""
    p, q = (v.astype(FLOAT64) for v in block[:2])
    if len(block) > 2:
        p[~block[2]] = q[~block[2]] = 0
    return p, q


def _sums(arrays: Sequence[Array], outer: tuple[int, ...]) -> tuple[Array, Array]:
    """The sums of the rows of p and of q."""
    totals = _RowSums(math.prod(outer)), _RowSums(math.prod(outer))
    with np.errstate(all="ignore"):
        for at, block in _blocks(arrays, outer):
            for total, values in zip(totals, _kept(block), strict=True):
                total.add(at, values)
    sums = [total.rounded() for total in totals]
    return np.where(sums[0] > 0, sums[0], np.nan), np.where(sums[1] > 0, sums[1], np.nan)


def _terms(
    p: Array, q: Array, f: Generator, f_at_0: float | None, slope_at_inf: float | None, outer: tuple[int, ...],
    at: slice,
) -> Array:  # fmt: skip
    """The terms q f(p / q) of a block; NaN for the whole row beside what is no probability."""
    inside = (p > 0) & (q > 0)
    t = np.clip(np.divide(p, q, out=np.ones_like(p), where=inside), _LEAST, _MOST)
    with np.errstate(all="warn"):
        values = np.asarray(f(t))
    if values.shape != t.shape:
        raise ValueError(f"f was given an array of shape {t.shape} and gave one of shape {values.shape}")
    terms: Array = np.where(inside, q * values, 0.0)
    invalid = ~((p >= 0) & (p < np.inf) & (q >= 0) & (q < np.inf))
    valid_rows = ~invalid.any(axis=-1, keepdims=True)
    for zero, other, limit, name, said in (
        (p, q, f_at_0, "f_at_0", "p = 0 where q > 0"),
        (q, p, slope_at_inf, "slope_at_inf", "q = 0 where p > 0"),
    ):
        here = (zero == 0) & (other > 0) & valid_rows
        if not here.any():
            continue
        if limit is None:
            row = at.start + int(np.flatnonzero(here.any(axis=-1))[0])
            place = tuple(int(i) for i in np.unravel_index(row, outer)) if outer else ()
            named = f"row {place[0] if len(place) == 1 else place}" if place else "the only row"
            raise ValueError(f"{named} has {said}: f needs {name}=, its limit there")
        terms = np.where(here, other * float(limit), terms)
    return np.where(valid_rows, terms, np.nan)


# ---- bounds from a critic's scores -------------------------------------------------------------------------------

BOUNDS = ("f-gan", "nwj", "dv", "infonce")


def _inside(domain: Array, value: Array, t: Array) -> Array:
    """The value in the domain of f*, elsewhere +inf; NaN for NaN."""
    return np.where(domain, value, np.where(t == t, np.inf, np.nan))


def _conjugate_reverse_kl(t: Array) -> Array:
    return _inside(t < 0, -1 - np.log(-t), t)


def _conjugate_js(t: Array) -> Array:
    # -log(2 - exp(2 t)) / 2 = -log1p(1 - exp(2 t)) / 2: no digits are lost near t = 0.
    return _inside(2 * t < math.log(2), -np.log1p(-np.expm1(np.minimum(2 * t, 0.7))) / 2, t)


def _conjugate_hellinger(t: Array) -> Array:
    return _inside(t < 0.5, np.where(t > -np.inf, t / (1 - 2 * t), -0.5), t)


def _conjugate_tv(t: Array) -> Array:
    return _inside(t <= 0.5, np.maximum(t, -0.5), t)


def _conjugate_chi2(t: Array) -> Array:
    return np.where(t < -2, -1.0, t + t * t / 4)


def _conjugate_neyman(t: Array) -> Array:
    root = np.sqrt(1 - np.minimum(t, 1.0))
    # 2 - 2 sqrt(1 - t), without its cancellation near t = 0.
    return _inside(t <= 1, np.where(t > -1, 2 * t / (1 + root), 2 - 2 * root), t)


def _conjugate_triangular(t: Array) -> Array:
    root = np.sqrt(1 - np.minimum(t, 1.0))
    # 4 - t - 4 sqrt(1 - t), t being (1 - root) (1 + root).
    return _inside(t <= 1, np.where(t < -3, -1.0, (t / (1 + root)) * (3 - root)), t)


# Of KL it is exp(t - 1), whose mean logsumexp takes.
_CONJUGATES: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": _conjugate_reverse_kl,
    "js": _conjugate_js,
    "hellinger": _conjugate_hellinger,
    "tv": _conjugate_tv,
    "chi2": _conjugate_chi2,
    "neyman": _conjugate_neyman,
    "triangular": _conjugate_triangular,
}


def variational_bound(
    t_p: ArrayLike,
    t_q: ArrayLike | None = None,
    f: str = "kl",
    *,
    bound: str = "f-gan",
    axis: int = -1,
    n_threads: int | None = None,
) -> Any:
    r"""Lower bound of a divergence of P from Q by a critic T: ``mean(t_p) - mean(f*(t_q))``, or another.

    Parameters
    ----------
    t_p : array_like
        The critic's scores T of samples of P, along `axis`. For "infonce" the scores of all pairs: the last two axes
        are the N samples x and the N samples y, and the diagonal has the pairs that were drawn together.
    t_q : array_like, optional
        The scores of samples of Q, any number of them, along `axis`. Not for "infonce".
    f : str
        The divergence that "f-gan" bounds; its generator is that of `f_divergence`, constant factors included: "kl",
        "reverse_kl", "js", "hellinger", "tv", "chi2", "neyman" or "triangular" ("jeffreys" has no closed conjugate).
    bound : {"f-gan", "nwj", "dv", "infonce"}
        ==========  ==========================================================  =======================
        bound       formula                                                     of
        ==========  ==========================================================  =======================
        "f-gan"     mean(t_p) - mean(f*(t_q))                                   the f-divergence
        "nwj"       mean(t_p) - mean(exp(t_q)) / e                              KL: "f-gan" with "kl"
        "dv"        mean(t_p) - log(mean(exp(t_q)))                             KL, never below "nwj"
        "infonce"   mean over i of log_softmax(t_p[i])[i], plus log N           mutual information
        ==========  ==========================================================  =======================
    axis : int
        The axis of the samples, in both; the other axes broadcast.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    ndarray or scalar
        In nats, one number for each batch of samples; float32 for float32 and half precision, else float64.

    Raises
    ------
    TypeError
        For a type of array that is not taken.
    ValueError
        For another `f` or `bound`, scores that are missing or not asked for, or shapes that do not fit.

    Notes
    -----
    Domain: all numbers. f* is +inf where no ratio has such a score, and the bound then -inf: a critic has to keep to
    t < 0 for "reverse_kl", t < log(2)/2 for "js", t < 1/2 for "hellinger", t <= 1/2 for "tv", t <= 1 for "neyman" and
    "triangular". The mean over no samples is NaN.

    Accuracy: means of exponentials are taken by `logsumexp`, so that none overflows unless the result does; a few eps
    of the means, whose difference the bound is.

    References
    ----------
    X. Nguyen, M. J. Wainwright, M. I. Jordan, "Estimating divergence functionals and the likelihood ratio by convex
    risk minimization", IEEE Transactions on Information Theory 56 (2010). S. Nowozin, B. Cseke, R. Tomioka, "f-GAN",
    NeurIPS (2016). M. D. Donsker, S. R. S. Varadhan, "Asymptotic evaluation of certain Markov process expectations for
    large time IV", Communications on Pure and Applied Mathematics 36 (1983). A. van den Oord, Y. Li, O. Vinyals,
    "Representation learning with contrastive predictive coding" (2018). B. Poole, S. Ozair, A. van den Oord,
    A. Alemi, G. Tucker, "On variational bounds of mutual information", ICML (2019).

    Examples
    --------
    >>> import fastkl as fk
    >>> t_p, t_q = [1000.0, 1001.0], [999.0, 998.0]
    >>> float(fk.variational_bound(t_p, t_q, bound="dv").round(4))    # exp(999) would be inf
    1.8799
    >>> float(fk.variational_bound([[5.0, 0.0], [0.0, 5.0]], bound="infonce").round(4))    # at most log 2
    0.6864
    """
    bound = _args.choice(bound, "bound", BOUNDS)
    if bound != "f-gan" and f != "kl":
        raise ValueError(f"bound={bound!r} is of KL; f={f!r} goes with bound='f-gan'")
    f = _args.choice(f, "f", ("kl", *_CONJUGATES))
    scores = _args.as_array(t_p, "t_p")
    if bound == "infonce":
        if t_q is not None:
            raise ValueError("bound='infonce' takes one matrix of scores, t_p, and no t_q")
        return _infonce(scores, n_threads)
    if t_q is None:
        raise ValueError(f"bound={bound!r} needs t_q, the scores of samples of Q")
    others = _args.as_array(t_q, "t_q")
    dtype = _args.result_dtype(scores, others)
    scores, others = (a.reshape(1) if a.ndim == 0 else a for a in (scores, others))
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f"axis takes an int here, not {axis!r}")
    scores, others = (_args.axes_last(a, _args.reduced_axes(axis, a.ndim)) for a in (scores, others))
    batches = scores.shape[:-1], others.shape[:-1]
    try:
        np.broadcast_shapes(*batches)
    except ValueError:
        raise ValueError(f"the batches of t_p, {batches[0]}, and of t_q, {batches[1]}, do not broadcast") from None
    with np.errstate(all="ignore"):
        of_p = _mean(scores, lambda t: t)
        if bound == "dv" or f == "kl":
            log_mean = per_row(_kernels.LOGSUMEXP, (others,), ("t_q",), -1, n_threads=n_threads, dtype=FLOAT64)
            log_mean = log_mean - np.log(float(others.shape[-1]))
            of_q = log_mean if bound == "dv" else np.exp(log_mean - 1)
        else:
            threads_for(n_threads, 0)    # refused where it is none, though not used
            of_q = _mean(others, _CONJUGATES[f])
        return np.asarray(of_p - of_q).astype(dtype)[()]


def _mean(scores: Array, function: Callable[[Array], Array]) -> Array:
    """The mean of a function of the scores, over the last axis."""
    outer = scores.shape[:-1]
    totals = _RowSums(math.prod(outer))
    for at, (block,) in _blocks([scores], outer):
        totals.add(at, function(block.astype(FLOAT64)))
    mean: Array = totals.rounded().reshape(outer) / float(scores.shape[-1])
    return mean


def _infonce(scores: Array, n_threads: int | None) -> Any:
    """The mean of the diagonal of log_softmax, and log N: at each i the loss of the label i."""
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"t_p has shape {scores.shape}; bound='infonce' takes N x N scores, on the last two axes")
    from .labels import softmax_cross_entropy

    n = scores.shape[-1]
    labels = np.broadcast_to(np.arange(n), scores.shape[:-1])
    losses = np.asarray(softmax_cross_entropy(scores, labels, n_threads=n_threads))
    bound = np.log(float(n)) - _mean(losses, lambda loss: loss)
    return np.asarray(bound).astype(losses.dtype)[()]
