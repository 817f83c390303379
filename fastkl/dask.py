"""The functions of fastkl over Dask arrays: lazy, chunk by chunk, on as many machines as the scheduler has.

Where the class axis is one chunk, each chunk goes to the function of NumPy arrays as it is, and each row's result has
the same bits. Where it is cut, so that no task holds a whole row, each piece of a row becomes a state of a few float64
numbers; states merge in a tree, and what merged last is the result. It is within the same budgets, but its last bits
may depend on where the class axis is cut: never on how the rows are.

What a state is decides what survives a merge. Exponentials are (max, sum of the others), not a log-sum-exp, so that a
small loss keeps its digits; divergences of pieces are merged by the chain rule or with their sums as pairs of doubles,
so that nothing cancels.

A task uses one thread unless ``n_threads`` says otherwise: it is the scheduler who shares out the cores.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import fastkl as fk

from . import _args, _kernels, rows
from ._args import FLOAT64, Array
from ._threads import threads_for

try:
    da: Any = importlib.import_module("dask.array")
except ImportError:
    raise ImportError("fastkl.dask needs Dask: pip install fastkl[dask]") from None

__all__ = [
    "alpha_divergence",
    "bhattacharyya_distance",
    "binary_cross_entropy",
    "chi2_divergence",
    "cross_entropy",
    "entropy",
    "f_divergence",
    "generalized_kl",
    "hellinger_distance",
    "jeffreys_divergence",
    "js_distance",
    "js_divergence",
    "kl_divergence",
    "log_softmax",
    "logcumsumexp",
    "logsumexp",
    "perplexity",
    "renyi_divergence",
    "renyi_entropy",
    "score",
    "softmax",
    "softmax_cross_entropy",
    "total_variation",
    "triangular_discrimination",
    "tsallis_divergence",
    "tsallis_entropy",
    "wasserstein_1d",
]

Axis = int | Sequence[int] | None

#: Options that are arrays with a number for each class.
POINTS = ("x",)


# The public functions ---------------------------------------------------------------------------------------------


def logsumexp(
    x: Any,
    *,
    axis: Axis = -1,
    b: Any = None,
    where: Any = None,
    keepdims: bool = False,
    n_threads: int | None = 1,
    return_sign: bool = False,
) -> Any:
    r"""Log of the sum of exponentials of each row, ``log(sum(b * exp(x)))``: `fastkl.logsumexp` over Dask arrays.

    Parameters
    ----------
    x : dask.array.Array or array_like
        Real numbers of any shape and chunks; the rows lie along `axis`.
    axis : int, tuple of ints or None
        The axes that make a row; None for all.
    b : dask.array.Array or array_like, optional
        Weights, broadcast against `x`. An element of weight 0 is absent.
    where : dask.array.Array or array_like of bool, optional
        False marks an element as absent; broadcast to `x`.
    keepdims : bool
        Keep the reduced axes with length 1.
    n_threads : int, optional
        Threads of each task; None lets the size of its chunk decide.
    return_sign : bool
        Also return the sign of the sum; the first result is then the log of its absolute value.

    Returns
    -------
    dask.array.Array
        In nats, one number per row; with `return_sign` a pair.

    Raises
    ------
    TypeError, ValueError
        As `fastkl.logsumexp`, at the call.

    Notes
    -----
    Domain and accuracy: those of `fastkl.logsumexp`. The bits are the same if the reduced axes are one chunk each; else
    the last ones may depend on their chunks.

    References
    ----------
    M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867 (2018).

    Examples
    --------
    >>> import dask.array as da
    >>> import fastkl.dask
    >>> fastkl.dask.logsumexp(da.zeros((2, 8), chunks=(1, 4))).compute().round(4).tolist()
    [2.0794, 2.0794]
    """
    call = _Call({"x": x} if b is None else {"x": x, "b": b}, axis, where, n_threads)
    if call.whole:
        if not return_sign:
            return call.per_row(_logsumexp_of_rows, keepdims)
        pair = np.dtype([("value", call.dtype), ("sign", call.dtype)])
        both = call.per_row(partial(_logsumexp_of_rows, signs=pair), keepdims, pair)
        return both["value"], both["sign"]
    if b is None:
        merged = call.merged(_exponentials, _merge_exponentials, 2)
        value = call.finished(_logsumexp_of_state, merged, keepdims)
        return (value, call.finished(_sign_of_exponentials, merged, keepdims)) if return_sign else value
    merged = call.merged(_weighted, _merge_weighted, 2)
    value = call.finished(partial(_log_of_weighted, signed=return_sign), merged, keepdims)
    return (value, call.finished(_sign_of_weighted, merged, keepdims)) if return_sign else value


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    reduction: str = "none",
    empty_mean: float = math.nan,
    where: Any = None,
    keepdims: bool = False,
    n_threads: int | None = 1,
) -> Any:
    r"""Cross-entropy of the softmax of each row against its label: `fastkl.softmax_cross_entropy` over Dask arrays.

    Parameters
    ----------
    logits : dask.array.Array or array_like
        Real numbers of any shape and chunks; the classes lie along `axis`.
    labels : dask.array.Array or array_like of int
        Class numbers from 0, of the shape of `logits` without `axis`.
    axis : int
        The axis of the classes.
    ignore_index : int, optional
        A row with this label has loss 0, whatever its logits, and does not count in the mean.
    reduction : {"none", "mean", "sum"}
        One loss per row, or their mean over the rows kept, or their sum.
    empty_mean : float
        The mean over no rows.
    where : dask.array.Array or array_like of bool, optional
        False marks a class as absent; broadcast to `logits`. An absent label has loss +inf.
    keepdims : bool
        Keep the reduced axis with length 1.
    n_threads : int, optional
        Threads of each task; None lets the size of its chunk decide.

    Returns
    -------
    dask.array.Array
        In nats, ``log(sum(exp(x))) - x[label]``.

    Raises
    ------
    IndexError
        When it is computed, for a label that is out of range: it names the first such row of some chunk.
    TypeError, ValueError
        As `fastkl.softmax_cross_entropy`, at the call; and for logits of unknown chunk sizes.

    Notes
    -----
    Domain and accuracy: those of `fastkl.softmax_cross_entropy`. The bits are the same if the class axis is one chunk;
    else the last ones may depend on its chunks. A reduction adds the rounded losses in float64: it is within 1 eps of
    the exact sum of those, and its last bits may depend on the chunks of the rows.

    References
    ----------
    Milakov, Gimelshein (2018), as for `logsumexp`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastkl.dask
    >>> logits = da.from_array([[2.0, 0.0], [0.0, 30.0]], chunks=1)
    >>> [f"{loss:.6g}" for loss in fastkl.dask.softmax_cross_entropy(logits, [0, 1]).compute()]
    ['0.126928', '9.35762e-14']
    """
    reduction = _args.choice(reduction, "reduction", ("none", "mean", "sum"))
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f"axis takes an int here, not {axis!r}")
    call = _Call({"logits": logits}, axis, where, n_threads)
    if not call.axes:
        raise ValueError("logits has no axis of classes: it is 0-d")
    if any(math.isnan(n) for n in call.shape):
        raise ValueError("logits has chunks of unknown size: call its compute_chunk_sizes() first")
    classes_of = _dask_array(labels if hasattr(labels, "dtype") else _args.as_labels(labels, np.shape(labels)))
    _args.as_labels(_like(classes_of), tuple(n for i, n in enumerate(call.shape) if i not in call.axes))
    _args.ignored_label(ignore_index, _like(classes_of))
    call.add(da.expand_dims(classes_of, call.axes[0]))
    classes = call.shape[call.axes[0]]
    if call.whole:
        losses = call.per_row(partial(_losses_of_rows, ignore_index=ignore_index), keepdims)
    else:
        states = partial(_all_but_the_label, classes=classes, ignore_index=ignore_index)
        merged = call.merged(states, _merge_around_label, 3)
        losses = call.finished(partial(_loss_of_state, ignore_index=ignore_index), merged, keepdims, call.arrays[-1])
    if reduction == "none":
        return losses
    kept = classes_of.size if ignore_index is None else (classes_of != ignore_index).sum()
    result = _reduction(losses, kept, reduction, empty_mean, call.dtype)
    return result.reshape((1,) * len(call.shape)) if keepdims else result


def binary_cross_entropy(
    p: Any,
    y: Any,
    *,
    given: str = "probs",
    reduction: str = "none",
    empty_mean: float = math.nan,
    where: Any = None,
    n_threads: int | None = 1,
) -> Any:
    r"""Cross-entropy of each yes-or-no prediction against its label: `fastkl.binary_cross_entropy` over Dask arrays.

    Parameters
    ----------
    p : dask.array.Array or array_like
        Probabilities of yes (or logits), of any shape and chunks.
    y : dask.array.Array or array_like
        Labels: 0 or 1, of any type, or shares between them; broadcast against `p`.
    given : {"probs", "logits"}
        What `p` holds.
    reduction : {"none", "mean", "sum"}
        One loss per element, or their mean over the elements not masked out, or their sum.
    empty_mean : float
        The mean over no elements.
    where : dask.array.Array or array_like of bool, optional
        False marks an element as absent: its loss is 0, and it does not count in the mean.
    n_threads : int, optional
        Threads of each task; None lets the size of its chunk decide.

    Returns
    -------
    dask.array.Array
        In nats.

    Raises
    ------
    TypeError, ValueError
        As `fastkl.binary_cross_entropy`, at the call.

    Notes
    -----
    Domain and accuracy: those of `fastkl.binary_cross_entropy`. Elements stand alone: their bits are the same in any
    chunks. A reduction adds the rounded losses in float64, and its last bits may depend on the chunks.

    References
    ----------
    C. M. Bishop, "Pattern Recognition and Machine Learning" (2006), section 4.3.2.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastkl.dask
    >>> x = da.from_array([40.0, -40.0, 0.0], chunks=2)
    >>> [f"{loss:.6g}" for loss in fastkl.dask.binary_cross_entropy(x, [1, 1, 0], given="logits").compute()]
    ['4.24835e-18', '40', '0.693147']
    """
    reduction = _args.choice(reduction, "reduction", ("none", "mean", "sum"))
    call = _Call({"p": p, "y": y}, (), where, n_threads)
    call.try_on(fk.binary_cross_entropy, {"given": given})
    losses = call.per_element(partial(_of_elements, function=partial(fk.binary_cross_entropy, given=given)))
    if reduction == "none":
        return losses
    kept = da.broadcast_to(call.arrays[-1], losses.shape).sum() if call.masked else losses.size
    return _reduction(losses, kept, reduction, empty_mean, call.dtype)


def score(
    logits: Any,
    labels: Any = None,
    reference: Any = None,
    *,
    stats: Sequence[str] | None = None,
    given: str | tuple[str, str] = "logits",
    temperature: float | tuple[float, float] = 1.0,
    k: int = 5,
    n_threads: int | None = 1,
) -> dict[str, Any]:
    r"""Many statistics of each row from one read, with p = ``softmax(x / temperature)``: `fastkl.score` over Dask.

    Parameters
    ----------
    logits : dask.array.Array or array_like
        Real numbers; the classes lie along the last axis, which is one chunk.
    labels : dask.array.Array or array_like of int, optional
        Class numbers from 0, of the shape of `logits` without its last axis.
    reference : dask.array.Array or array_like, optional
        The logits of another model, of the shape of `logits` or broadcast to it.
    stats, given, temperature, k
        As `fastkl.score` takes them.
    n_threads : int, optional
        Threads of each task; None lets the size of its chunk decide.

    Returns
    -------
    dict
        A `dask.array.Array` by name. Computed together, with ``dask.compute``, they cost one read.

    Raises
    ------
    IndexError
        When it is computed, for a label that is out of range: it names the first such row of some chunk.
    TypeError, ValueError
        As `fastkl.score`, at the call; and for a class axis of several chunks: ranks and the largest few are statistics
        of a whole row.

    Notes
    -----
    Domain, accuracy and bits: those of `fastkl.score`.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991).

    Examples
    --------
    >>> import dask.array as da
    >>> import fastkl.dask
    >>> scores = fastkl.dask.score(da.from_array([[1.0, 3.0, 2.0], [0.5, 0.0, 0.5]], chunks=(1, 3)), [1, 2])
    >>> scores["argmax"].compute().tolist(), scores["rank"].compute().tolist()
    ([1, 0], [1, 1])
    """
    x = _dask_array(logits)
    if x.ndim == 0:
        raise ValueError("logits has no axis of classes: it is 0-d")
    y = None if reference is None else _dask_array(reference)
    classes_of = None if labels is None else _dask_array(
        labels if hasattr(labels, "dtype") else _args.as_labels(labels, np.shape(labels))
    )  # fmt: skip
    if any(len(array.chunks[-1]) > 1 for array in (x, y) if array is not None and array.ndim):
        raise ValueError("score needs whole rows, but the class axis has several chunks: call logits.rechunk({-1: -1})")
    if classes_of is not None:
        _args.as_labels(_like(classes_of), x.shape[:-1])
    if y is not None:
        rows._fitted(_like(y), x.shape)
    if any(math.isnan(n) for n in x.shape):
        raise ValueError("logits has chunks of unknown size: call its compute_chunk_sizes() first")
    keywords: dict[str, Any] = {"stats": stats, "given": given, "temperature": temperature, "k": k}
    # What the arguments are and give is what they give of one row.
    sample = fk.score(
        np.zeros((1, x.shape[-1]), x.dtype), None if classes_of is None else np.zeros(1, classes_of.dtype),
        None if y is None else np.zeros((1, x.shape[-1]), y.dtype), **keywords,
    )  # fmt: skip
    record = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in sample.items()])
    arrays = [x]
    arrays += [] if classes_of is None else [classes_of[..., None]]
    arrays += [] if y is None else [y]
    arrays, chunks = _aligned(arrays, x.ndim)
    function = partial(
        _scores_of_rows, labelled=classes_of is not None, record=record, keywords=keywords, n_threads=n_threads
    )
    table = da.map_blocks(
        function, *arrays, chunks=chunks[:-1], drop_axis=x.ndim - 1, dtype=record,
        meta=np.empty((0,) * (x.ndim - 1), record),
    )  # fmt: skip
    return {name: table[name] for name in sample}


# A call -----------------------------------------------------------------------------------------------------------


def _dask_array(array: Any) -> Any:
    """A Dask array as it is; anything else as one of a single chunk, which is cut as its neighbours are."""
    return array if isinstance(array, da.Array) else da.from_array(_args._as_ndarray(array, "x", "where=~mask"), -1)


def _like(array: Any) -> Array:
    """An array of a Dask array's shape and type, of one number: what the gate looks at without computing anything."""
    shape = tuple(0 if math.isnan(n) else n for n in array.shape)
    return np.broadcast_to(np.zeros((), array.dtype), shape)


def _aligned(arrays: Sequence[Any], ndim: int) -> tuple[list[Any], tuple[tuple[int, ...], ...]]:
    """The arrays, cut alike along the axes that they share, and the chunks of what they broadcast to."""
    pairs = [part for array in arrays for part in (array, tuple(range(ndim - array.ndim, ndim)))]
    chunks, arrays = da.core.unify_chunks(*pairs, warn=False)
    return list(arrays), tuple(chunks[i] for i in range(ndim))


class _Call:
    """The arguments of a function of rows, checked as those of NumPy arrays are, and cut alike.

    Functions of a block take the blocks of `arrays`, in their order: the operands, a mask if there is one (``masked``),
    labels with an axis of length 1 for the classes.
    """

    def __init__(self, operands: dict[str, Any], axis: Axis, where: Any, n_threads: int | None) -> None:
        self.arrays = [_dask_array(operand) for operand in operands.values()]
        likes = [_args.as_array(_like(a), name) for a, name in zip(self.arrays, operands, strict=True)]
        self.dtype = _args.result_dtype(*likes)
        shape = _args.broadcast(likes, list(operands))[0].shape
        self.axes = _args.reduced_axes(axis, len(shape))
        self.operands = len(self.arrays)
        self.masked = where is not None and where is not True
        if self.masked:
            mask = where if isinstance(where, da.Array) else da.from_array(np.asarray(where), -1)
            _args.mask_for(_like(mask), shape)
            self.arrays.append(mask)
        threads_for(n_threads, 0)
        self.n_threads = n_threads
        self.ndim = len(shape)
        self._align()

    def _align(self) -> None:
        self.arrays, self.chunks = _aligned(self.arrays, self.ndim)
        self.shape = tuple(sum(sizes) for sizes in self.chunks)
        self.whole = all(len(self.chunks[i]) == 1 for i in self.axes)

    def add(self, array: Any) -> None:
        """Take one more array, cut like the others."""
        self.arrays.append(array)
        self._align()

    def _map(self, function: Callable[..., Any], arrays: Sequence[Any], chunks: Any, dtype: Any, **how: Any) -> Any:
        """What the function makes of each block."""
        function = partial(function, axes=self.axes, n_threads=self.n_threads)
        meta = np.empty((0,) * len(chunks), dtype)
        return da.map_blocks(function, *arrays, chunks=chunks, dtype=dtype, meta=meta, **how)

    def _kept(self, keepdims: bool) -> tuple[Any, list[int]]:
        """The chunks of a result per row, and the axes that it lacks."""
        if keepdims:
            return tuple((1,) if i in self.axes else n for i, n in enumerate(self.chunks)), []
        return tuple(n for i, n in enumerate(self.chunks) if i not in self.axes), list(self.axes)

    def per_row(self, function: Callable[..., Any], keepdims: bool, dtype: Any = None) -> Any:
        """A result per row of rows that are whole."""
        chunks, dropped = self._kept(keepdims)
        function = partial(function, masked=self.masked, keepdims=keepdims)
        return self._map(function, self.arrays, chunks, dtype or self.dtype, drop_axis=dropped)

    def merged(self, state: Callable[..., Any], merge: Callable[..., Any], fields: int) -> Any:
        """The merged states of rows in pieces: so many float64 numbers along a last axis."""
        chunks = tuple((1,) * len(n) if i in self.axes else n for i, n in enumerate(self.chunks))
        state = partial(_state_of_piece, state=state, masked=self.masked)
        states = self._map(state, self.arrays, (*chunks, (fields,)), FLOAT64, new_axis=self.ndim)
        merge = partial(_merge_states, merge=merge)
        return da.reduction(
            states, _as_they_are, merge, axis=self.axes, keepdims=True, combine=merge, dtype=FLOAT64, split_every=8,
            meta=np.empty((0,) * (self.ndim + 1)),
        )  # fmt: skip

    def finished(self, function: Callable[..., Any], merged: Any, keepdims: bool, *more: Any) -> Any:
        """A result per row of merged states, which the function takes with their numbers first."""
        chunks, dropped = self._kept(keepdims)
        function = partial(_finish, finish=function, dtype=self.dtype, keepdims=keepdims)
        more = tuple(array[..., None] for array in more)
        return self._map(function, (merged, *more), chunks, self.dtype, drop_axis=[*dropped, self.ndim])

    def per_element(self, function: Callable[..., Any], *states: Any) -> Any:
        """A result per element, which the function takes after the numbers of the states of its row."""
        function = partial(function, masked=self.masked)
        return self._map(function, (*states, *self.arrays), self.chunks, self.dtype)

    def try_on(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        """Call the function of NumPy arrays on no rows: what is wrong with its options is told, and its type."""

        def nothing(array: Any) -> Array:
            """As many classes as there are where rows are whole, which costs no memory; else one."""
            places = zip(range(self.ndim - array.ndim, self.ndim), _like(array).shape, strict=True)
            shape = [n if n == 1 or (i in self.axes and self.whole) else int(i in self.axes) for i, n in places]
            return np.broadcast_to(np.zeros((), array.dtype), shape)

        options = options if self.whole else {name: value for name, value in options.items() if name not in POINTS}
        how = {} if function is fk.binary_cross_entropy else {"axis": _axis(self.axes)}
        self.dtype = np.asarray(function(*map(nothing, self.arrays[: self.operands]), **how, **options)).dtype


def _split(blocks: Sequence[Array], masked: bool) -> tuple[Sequence[Array], Array | None]:
    """The operands and the mask of a block."""
    return (blocks[:-1], blocks[-1]) if masked else (blocks, None)


# Blocks of whole rows ---------------------------------------------------------------------------------------------


def _of_rows(
    *blocks: Array, function: Callable[..., Any], keywords: dict[str, Any], masked: bool, keepdims: bool,
    axes: tuple[int, ...], n_threads: int | None,
) -> Any:  # fmt: skip
    operands, mask = _split(blocks, masked)
    return function(*operands, axis=_axis(axes), where=mask, keepdims=keepdims, n_threads=n_threads, **keywords)


def _axis(axes: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return axes as they are passed on: a function may take one only."""
    return axes[0] if len(axes) == 1 else axes


def _logsumexp_of_rows(
    *blocks: Array, masked: bool, keepdims: bool, axes: tuple[int, ...], n_threads: int | None, signs: Any = None
) -> Any:
    (x, *weights), mask = _split(blocks, masked)
    b = weights[0] if weights else None
    value = fk.logsumexp(
        x, axis=axes, b=b, where=mask, keepdims=keepdims, n_threads=n_threads, return_sign=signs is not None
    )
    if signs is None:
        return value
    both = np.empty(np.shape(value[0]), signs)
    both["value"], both["sign"] = value
    return both


def _of_elements(
    *blocks: Array, function: Callable[..., Any], masked: bool, axes: tuple[int, ...], n_threads: int | None
) -> Any:
    operands, mask = _split(blocks, masked)
    return function(*operands, where=mask, n_threads=n_threads, **({"axis": axes} if axes else {}))


def _losses_of_rows(
    *blocks: Array, masked: bool, keepdims: bool, axes: tuple[int, ...], n_threads: int | None,
    ignore_index: int | None, block_info: Any = None,
) -> Any:  # fmt: skip
    (x, *mask), labels = blocks[:-1], np.squeeze(blocks[-1], axes)
    _check_labels(labels, x.shape[axes[0]], ignore_index, axes, block_info)
    return fk.softmax_cross_entropy(
        x, labels, axis=axes[0], ignore_index=ignore_index, where=mask[0] if masked else None, keepdims=keepdims,
        n_threads=n_threads,
    )  # fmt: skip


def _check_labels(
    labels: Array, classes: int, ignore_index: int | None, axes: tuple[int, ...], block_info: Any
) -> None:
    """Raise for a label that is out of range, naming its row in the whole array, not in the block."""
    bad, bits = _kernels.active.check_labels(labels, classes, _args.ignored_label(ignore_index, labels))
    if bad >= 0:
        places = block_info[0]["array-location"] if block_info else ()
        origin = [start for i, (start, _) in enumerate(places) if i not in axes]
        _args.raise_bad_label(bad, bits, labels, classes, origin)


def _scores_of_rows(
    x: Array, *others: Array, labelled: bool, record: Any, keywords: dict[str, Any], n_threads: int | None,
    block_info: Any = None,
) -> Any:  # fmt: skip
    labels = others[0][..., 0] if labelled else None
    reference = others[-1] if len(others) > labelled else None
    if labels is not None:
        _check_labels(labels, x.shape[-1], None, (x.ndim - 1,), block_info)
    table = np.empty(x.shape[:-1], record)
    for name, column in fk.score(x, labels, reference, n_threads=n_threads, **keywords).items():
        table[name] = column
    return table


def _reduction(losses: Any, kept: Any, reduction: str, empty_mean: float, dtype: Any) -> Any:
    """The mean or the sum of losses, of which so many count."""
    return da.asarray(losses.sum(dtype=FLOAT64)).map_blocks(
        _reduced, da.asarray(kept), mean=reduction == "mean", empty_mean=float(empty_mean), to=dtype, dtype=dtype,
        meta=np.empty((), dtype),
    )  # fmt: skip


def _reduced(total: Array, kept: Array, *, mean: bool, empty_mean: float, to: Any) -> Array:
    with np.errstate(all="ignore"):
        value = total / kept if mean and kept else empty_mean if mean else total
        return np.asarray(value, to)


# Pieces of rows ---------------------------------------------------------------------------------------------------
#
# A state is float64 numbers along a last axis. A function that makes one takes blocks with the classes last; one that
# merges takes each number of the states as an array with the pieces last, and returns each without that axis.


def _state_of_piece(
    *blocks: Array, state: Callable[..., Any], masked: bool, axes: tuple[int, ...], n_threads: int | None,
    block_info: Any = None,
) -> Array:  # fmt: skip
    """The state of each row of a block, with the reduced axes of length 1."""
    ndim = max(block.ndim for block in blocks)
    shape = np.broadcast_shapes(*(block.shape for block in blocks))
    lasts = [_classes_last(block, shape, axes) for block in blocks]
    with np.errstate(all="ignore"):
        fields = state(*lasts, masked=masked, n_threads=n_threads, place=(block_info, axes))
    kept = [1 if i in axes else n for i, n in enumerate(shape)]
    return np.stack([np.reshape(field, kept) for field in fields], axis=ndim)


def _classes_last(block: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The block broadcast, its reduced axes last and as one; labels keep theirs of length 1."""
    block = block.reshape((1,) * (len(shape) - block.ndim) + block.shape)
    target = [1 if i in axes and block.shape[i] == 1 else n for i, n in enumerate(shape)]
    last = _args.axes_last(np.broadcast_to(block, target), axes)
    rows_shape = last.shape[: last.ndim - len(axes)]
    if any(target[i] != shape[i] for i in axes) and math.prod(target[i] for i in axes) > 1:
        last = np.broadcast_to(last, (*rows_shape, *(shape[i] for i in axes)))
    return last.reshape(*rows_shape, math.prod(last.shape[last.ndim - len(axes) :]))


def _as_they_are(states: Array, axis: Any, keepdims: bool) -> Array:
    return states


def _merge_states(states: Array, axis: tuple[int, ...], keepdims: bool, merge: Callable[..., Any]) -> Array:
    """Merge the states along the reduced axes, which then have length 1."""
    axes = tuple(sorted(axis))
    fields = [_classes_last(states[..., i], states.shape[:-1], axes) for i in range(states.shape[-1])]
    kept = [1 if i in axes else n for i, n in enumerate(states.shape[:-1])]
    with np.errstate(all="ignore"):
        return np.stack([np.reshape(field, kept) for field in merge(*fields)], axis=-1)


def _finish(
    merged: Array, *more: Array, finish: Callable[..., Any], dtype: Any, keepdims: bool, axes: tuple[int, ...],
    n_threads: int | None,
) -> Any:  # fmt: skip
    with np.errstate(all="ignore"):
        fields = [merged[..., i] for i in range(merged.shape[-1])]
        # + 0.0: no result is -0.
        value = np.asarray(finish(*fields, *(array[..., 0] for array in more)) + 0.0).astype(dtype)
    return value if keepdims else np.squeeze(value, axes)


def _as_it_is(value: Any) -> Any:
    return value


def _of_wide(
    function: Callable[..., Any], lasts: Sequence[Array], masked: bool, n_threads: int | None, **keywords: Any
) -> Any:
    """What a function gives of a block in float64, whatever its type."""
    operands, mask = _split(lasts, masked)
    wide = [operand.astype(FLOAT64, copy=False) for operand in operands]
    return function(*wide, where=mask, n_threads=n_threads, **keywords)


# Sums of terms, or functions of such a sum


def _sums(
    *lasts: Array, function: Callable[..., Any], keywords: Mapping[str, Any], into: Callable[..., Any], masked: bool,
    n_threads: int | None, place: Any,
) -> Any:  # fmt: skip
    return (into(_of_wide(function, lasts, masked, n_threads, **keywords)),)


def _merge_sums(value: Array) -> Any:
    return (value.sum(-1),)


# Exponentials: m, the largest, and r, the sum of exp(x - m) over all others. (A row that holds no distribution has its
# log-sum-exp for m.) Not 1 + r, which would forget a small r; not the log-sum-exp, which would round m.


def _without(x: Array, mask: Array) -> Array:
    """Logits, -inf where the mask is false; integers become float64."""
    return np.where(mask, x, x.dtype.type(-np.inf) if x.dtype.kind not in "iub" else -np.inf)


def _exponentials(
    *lasts: Array, masked: bool, n_threads: int | None, place: Any, entropies: bool = False
) -> Sequence[Array]:
    (x,), mask = _split(lasts, masked)
    x = x if mask is None else _without(x, mask)
    shape = x.shape[:-1]
    if not x.shape[-1]:
        return [np.full(shape, -np.inf), *[np.zeros(shape)] * (1 + entropies)]
    names = ["lse", "top_k", "top_k_log_prob", *["entropy"] * entropies]
    columns = rows._run([x], None, names, FLOAT64, (False,), (1.0, 1.0), 1, n_threads)
    top = columns["top_k"]
    valid = top[..., 0] >= 0
    m = np.take_along_axis(x, np.maximum(top, 0), axis=-1)[..., 0].astype(FLOAT64)
    # The log-probability of the largest is -log1p(r), right to its last digits.
    r = np.where(valid, np.expm1(-columns["top_k_log_prob"][..., 0]), 0.0)
    fields = [np.where(valid, m, columns["lse"]), r]
    return [*fields, np.where(valid, columns["entropy"], 0.0)] if entropies else fields


def _merge_exponentials(m: Array, r: Array) -> Sequence[Array]:
    top = np.argmax(m, axis=-1)[..., None]    # of a NaN, if there is one
    largest = np.take_along_axis(m, top, axis=-1)
    others = np.where(m == largest, 1 + r, (1 + r) * np.exp(m - largest))
    np.put_along_axis(others, top, np.take_along_axis(r, top, axis=-1), axis=-1)
    return largest[..., 0], others.sum(-1)


def _logsumexp_of_state(m: Array, r: Array) -> Array:
    return m + np.log1p(r)


def _sign_of_exponentials(m: Array, r: Array) -> Array:
    return np.where(np.isnan(m), m, np.where(m == -np.inf, 0.0, 1.0))


def _merge_entropies(m: Array, r: Array, h: Array) -> Sequence[Array]:
    """The chain rule: the entropy of the pieces' shares, and the mean of the pieces' own."""
    largest, others = _merge_exponentials(m, r)
    u = np.where(np.isfinite(largest)[..., None], m - largest[..., None] + np.log1p(r), 0.0)
    return largest, others, fk.entropy(u, given="logits", n_threads=1) + (fk.softmax(u, n_threads=1) * h).sum(-1)


def _entropy_of_state(m: Array, r: Array, h: Array, scale: float, back: Callable[..., Any]) -> Array:
    return np.where(np.isfinite(m), back(h * scale), np.nan)


def _finish_elements(
    m: Array, r: Array, *blocks: Array, finish: Callable[..., Any], masked: bool, dtype: Any, axes: tuple[int, ...],
    n_threads: int | None,
) -> Any:  # fmt: skip
    (x,), mask = _split(blocks, masked)
    with np.errstate(all="ignore"):
        value = finish(x.astype(FLOAT64), np.where(np.isfinite(m), m, np.nan), r).astype(dtype)
    return value if mask is None else np.where(mask, value, dtype.type(0))


def _softmax_of_state(x: Array, m: Array, r: Array) -> Any:
    return np.exp(x - m) / (1 + r)


def _log_softmax_of_state(x: Array, m: Array, r: Array) -> Any:
    # Both parts are <= 0: nothing cancels. At the largest the first is 0.
    return (x - m) - np.log1p(r)


# Losses: the exponentials of all classes but the label, and the label's logit


def _all_but_the_label(
    x: Array, *others: Array, masked: bool, n_threads: int | None, place: Any, classes: int, ignore_index: int | None
) -> Sequence[Array]:
    labels = others[-1][..., 0]
    block_info, axes = place
    _check_labels(labels, classes, ignore_index, axes, block_info)
    x = _without(x, others[0]) if masked else x
    first = block_info[0]["array-location"][axes[0]][0] if block_info else 0
    m, r = _exponentials(x, masked=False, n_threads=n_threads, place=place)
    at = labels.astype(np.int64) - first
    inside = (at >= 0) & (at < x.shape[-1]) & (labels >= 0)
    own = np.full(x.shape[:-1], -np.inf)
    if inside.any():
        # Those rows once more, without the label: taking its share off r would leave no digits where it dominates.
        rest, at = x[inside], at[inside][:, None]
        rest = rest if rest.dtype.kind not in "iub" else rest.astype(FLOAT64)
        own[inside] = np.take_along_axis(rest, at, axis=-1)[:, 0]
        np.put_along_axis(rest, at, rest.dtype.type(-np.inf), axis=-1)
        m[inside], r[inside] = _exponentials(rest, masked=False, n_threads=n_threads, place=place)
    return m, r, own


def _merge_around_label(m: Array, r: Array, own: Array) -> Sequence[Array]:
    return (*_merge_exponentials(m, r), own.max(-1))


def _loss_of_state(m: Array, r: Array, own: Array, labels: Array, ignore_index: int | None) -> Array:
    ahead = np.log1p((1 + r) * np.exp(m - own))
    behind = (m - own) + np.log1p(r + np.exp(own - m))
    loss = np.where(own >= m, ahead, behind)
    loss = np.where(np.isfinite(np.maximum(m, own)), loss, np.nan)
    return loss if ignore_index is None else np.where(labels == ignore_index, 0.0, loss)


# Weighted sums of exponentials: the log of the absolute value, and the sign


def _weighted(*lasts: Array, masked: bool, n_threads: int | None, place: Any) -> Sequence[Array]:
    x, b, *mask = lasts
    state: Sequence[Array] = _of_wide(fk.logsumexp, (x, *mask), masked, n_threads, b=b, return_sign=True)
    return state


def _merge_weighted(value: Array, sign: Array) -> Sequence[Array]:
    merged: Sequence[Array] = fk.logsumexp(value, b=sign, return_sign=True, n_threads=1)
    return merged


def _log_of_weighted(value: Array, sign: Array, signed: bool) -> Array:
    return value if signed else np.where(sign < 0, np.nan, value)


def _sign_of_weighted(value: Array, sign: Array) -> Array:
    return sign


# Plain KL: the sum of the terms p log(p/q) - p + q, and that of p - q as a pair of doubles: where rows are nearly
# equal, what the pieces lose to each other cancels


def _terms_and_difference(*lasts: Array, masked: bool, n_threads: int | None, place: Any) -> Sequence[Array]:
    terms = _of_wide(fk.generalized_kl, lasts, masked, n_threads)
    (p, q), mask = _split(lasts, masked)
    difference = np.subtract(p, q, dtype=FLOAT64)
    return (terms, *_sum_in_pairs(difference if mask is None else np.where(mask, difference, 0.0)))


def _merge_terms_and_difference(terms: Array, high: Array, low: Array) -> Sequence[Array]:
    return (terms.sum(-1), *_sum_in_pairs(high, low))


def _kl_of_state(terms: Array, high: Array, low: Array, scale: float) -> Any:
    return (terms + high + low) * scale


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and what the rounding left out (Knuth)."""
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def _sum_in_pairs(high: Array, low: Array | None = None) -> tuple[Array, Array]:
    """Sum along the last axis in twice the precision, halving it; high + low are what is added."""
    lows = np.zeros(high.shape[:-1]) if low is None else low.sum(-1)
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        folded, lost = _two_sum(high[..., :half], high[..., half : 2 * half])
        lows = lows + lost.sum(-1)
        high = np.concatenate([folded, high[..., 2 * half :]], axis=-1)
    total, lost = _two_sum(high.sum(-1), lows)
    # An overflow has no low part.
    return total, np.where(np.isfinite(total), lost, 0.0)


# Normalised KL: that of the piece by itself, and the sums of p and q as pairs of doubles. KL is the divergence of the
# pieces' shares plus the mean of the pieces' own: both >= 0


def _normalized(*lasts: Array, masked: bool, n_threads: int | None, place: Any) -> Sequence[Array]:
    operands, mask = _split(lasts, masked)
    p, q = np.broadcast_arrays(*operands)
    mask = np.broadcast_to(True if mask is None else mask, p.shape)
    own = _of_wide(fk.kl_divergence, (p, q, mask), True, n_threads, normalize=True)
    sums: list[Array] = []
    for operand in (p, q):
        sums += _sum_in_pairs(np.where(mask, operand.astype(FLOAT64), 0.0))
    # A piece that has no p or no q has no divergence of its own, but may hold what is no probability.
    empty = (sums[0] == 0) | (sums[2] == 0)
    if empty.any():
        own = np.array(own)
        terms = _of_wide(fk.generalized_kl, (p[empty], q[empty], mask[empty]), True, n_threads)
        own[empty] = np.where(np.isnan(terms), np.nan, 0.0)
    return (own, *sums)


def _merge_normalized(own: Array, p: Array, p_low: Array, q: Array, q_low: Array) -> Sequence[Array]:
    p_sum, q_sum = _sum_in_pairs(p, p_low), _sum_in_pairs(q, q_low)
    p_all, q_all = p_sum[0][..., None], q_sum[0][..., None]
    far = (np.log(q) - np.log(q_all)) - (np.log(p) - np.log(p_all))
    none = p == 0
    # In units of powers of two, so that no product overflows.
    p_shift, q_shift = -np.frexp(p_all)[1], -np.frexp(q_all)[1]
    p, p_low, p_all, p_all_low = (np.ldexp(a, p_shift) for a in (p, p_low, p_all, p_sum[1][..., None]))
    q, q_low, q_all, q_all_low = (np.ldexp(a, q_shift) for a in (q, q_low, q_all, q_sum[1][..., None]))
    # u = (q / Q) / (p / P) - 1 = (q P - p Q) / (p Q), in twice the precision: the shares may be nearly equal.
    a, a_low = _product(q, q_low, p_all, p_all_low)
    b, b_low = _product(p, p_low, q_all, q_all_low)
    difference, lost = _two_sum(a, -b)
    u = (difference + (lost + (a_low - b_low))) / (p * q_all)
    share, other = p / p_all, q / q_all
    # A share may be out of range, but its log is not; so far from 1 nothing cancels.
    logs = np.where(np.minimum(share, other) > 1e-290, np.log(other / share), far)
    far = np.where(np.isneginf(logs), np.inf, other - share - share * logs)
    between = np.where(none, other, np.where(np.abs(u) < 0.5, share * _gap(u), far))
    within = np.where(own == 0, 0.0, share * own)
    # Pieces that together have no p or no q still have no divergence, unless some number of theirs is none.
    nothing = np.where(np.isnan(own).any(-1), np.nan, 0.0)
    value = np.where((p_sum[0] == 0) | (q_sum[0] == 0), nothing, (between + within).sum(-1))
    return (value, *p_sum, *q_sum)


def _kl_of_shares(own: Array, p: Array, p_low: Array, q: Array, q_low: Array, scale: float) -> Array:
    return np.where((p == 0) | (q == 0), np.nan, own * scale)


def _product(a: Array, a_low: Array, b: Array, b_low: Array) -> tuple[Array, Array]:
    """The product of two pairs of doubles as a pair (Dekker): no number here is large enough to overflow."""
    split = 134217729.0    # 2^27 + 1
    a_top = split * a - (split * a - a)
    b_top = split * b - (split * b - b)
    a_rest, b_rest = a - a_top, b - b_top
    product = a * b
    lost = ((a_top * b_top - product) + a_top * b_rest + a_rest * b_top) + a_rest * b_rest
    return product, lost + (a * b_low + a_low * b)


def _gap(u: Array) -> Any:
    """Return u - log(1 + u) for abs(u) < 0.5, without cancellation."""
    w = u / (2 + u)    # log(1 + u) = 2 (w + w^3/3 + w^5/5 + ...)
    square = w * w
    series = np.zeros_like(square)
    for power in range(37, 1, -2):    # to 1e-18 of the whole
        series = (series + 1 / power) * square
    return u * w - 2 * w * series    # u - 2 w = u w


# The functions that are made of those of NumPy arrays -------------------------------------------------------------
#
# Each maps blocks of whole rows. One that can do more is told what it does with rows in pieces.


class _Pieces(NamedTuple):
    """What is done with rows in pieces: by a function, which gives None where the options need whole rows; in words."""

    made: Callable[..., Any]
    note: str


def _added(
    call: _Call, function: Callable[..., Any], options: Mapping[str, Any], keepdims: bool,
    into: Callable[..., Any] = _as_it_is, back: Callable[..., Any] = _as_it_is,
) -> Any:  # fmt: skip
    """Pieces of rows whose terms add up, once `into` makes terms of what the function gives of a piece."""
    given = options.get("given", "probs")
    if options.get("normalize") or "logits" in ([given] if isinstance(given, str) else given):
        return None
    state = partial(_sums, function=function, keywords=dict(options), into=into)
    return call.finished(back, call.merged(state, _merge_sums, 1), keepdims)


def _entropies(
    call: _Call, function: Callable[..., Any], options: Mapping[str, Any], keepdims: bool,
    back: Callable[..., Any] = _as_it_is,
) -> Any:  # fmt: skip
    if options["given"] != "logits":
        return _added(call, fk.entropy, options, keepdims, back=back)
    if options["temperature"] != 1:
        return None
    finish = partial(_entropy_of_state, scale=_args.log_scale(options.get("base")), back=back)
    return call.finished(finish, call.merged(partial(_exponentials, entropies=True), _merge_entropies, 3), keepdims)


def _divergences(call: _Call, function: Callable[..., Any], options: Mapping[str, Any], keepdims: bool) -> Any:
    if options["given"] not in ("probs", ("probs", "probs"), ["probs", "probs"]):
        return None
    scale = _args.log_scale(options["base"])
    if options["normalize"]:
        merged = call.merged(_normalized, _merge_normalized, 5)
        return call.finished(partial(_kl_of_shares, scale=scale), merged, keepdims)
    merged = call.merged(_terms_and_difference, _merge_terms_and_difference, 3)
    return call.finished(partial(_kl_of_state, scale=scale), merged, keepdims)


def _elements(
    call: _Call, function: Callable[..., Any], options: Mapping[str, Any], keepdims: Any, finish: Callable[..., Any]
) -> Any:
    merged = call.merged(_exponentials, _merge_exponentials, 2)
    return call.per_element(
        partial(_finish_elements, finish=finish, dtype=call.dtype), merged[..., 0], merged[..., 1]
    )


def _over_dask(
    function: Callable[..., Any], example: str, right: str, pieces: _Pieces | None = None, *,
    without: Sequence[str] = ("out",),
) -> Callable[..., Any]:  # fmt: skip
    """The function over Dask arrays: the same parameters but `without`, and what it says of itself by its docstring."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in without]
    parameters = [p.replace(default=1) if p.name == "n_threads" else p for p in parameters]
    signature = inspect.Signature(parameters)
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in ("p", "q", "x", "y")]

    def over_dask(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        options = dict(bound.arguments)
        operands = {name: options.pop(name) for name in names}
        axis, where, keepdims = options.pop("axis"), options.pop("where"), options.pop("keepdims", None)
        call = _Call(operands, axis, where, options.pop("n_threads"))
        call.try_on(function, options)
        if call.whole and keepdims is None:
            return call.per_element(partial(_of_elements, function=function))
        if call.whole:
            return call.per_row(partial(_of_rows, function=function, keywords=options), keepdims)
        result = None if pieces is None else pieces.made(call, function, options, keepdims)
        if result is None:
            which = "" if pieces is None else " with these options"
            raise ValueError(
                f"{function.__name__}{which} needs whole rows, but an axis that makes them has several chunks: call "
                f"{names[0]}.rechunk({{-1: -1}})"
            )
        return result

    over_dask.__name__ = over_dask.__qualname__ = function.__name__
    note = "Rows in pieces are refused." if pieces is None else pieces.note
    over_dask.__doc__ = _documented(function, without, example, right, note)
    over_dask.__signature__ = signature  # type: ignore[attr-defined]
    return over_dask


def _documented(function: Callable[..., Any], without: Sequence[str], example: str, right: str, note: str) -> str:
    """The docstring of a function of NumPy arrays, told of Dask's."""
    if function.__doc__ is None:    # python -OO
        return ""
    name = function.__name__
    head, *rest = re.split(r"\n\n(?=[A-Z]\w+\n-{3,}\n)", inspect.cleandoc(function.__doc__))
    sections = {section.split("\n", 1)[0]: section for section in rest}
    items = re.split(r"\n(?=\w[\w, ]* : )", sections["Parameters"])
    items = [item for item in items if item.split(" : ")[0] not in (*without, "n_threads")]
    items.append("n_threads : int, optional\n    Threads of each task; None lets the size of its chunk decide.")
    made, shown = {
        "x": ("x = da.from_array([0.0, 0.0, -40.0])", "[-1]"),
        "p": ("p = da.from_array([0.5, 0.25, 0.25])", ""),
        "p, q": ("p, q = da.from_array([0.5, 0.5, 0.0]), da.from_array([0.25, 0.25, 0.5])", ""),
    }[", ".join(n for n in example.split(", ") if len(n) == 1)]
    raised = f"As `fastkl.{name}`, at the call; ValueError also for rows in pieces where they are refused."
    parts = (
        head.split("\n\n")[0],
        f"`fastkl.{name}` over Dask arrays: lazy, a task for each block of rows.",
        "\n".join(items).replace(" : array_like", " : dask.array.Array or array_like"),
        f"Returns\n-------\ndask.array.Array\n    As `fastkl.{name}` gives it.",
        f"Raises\n------\nTypeError, ValueError\n    {raised}",
        f"Notes\n-----\nDomain and accuracy: those of `fastkl.{name}`; where rows are whole, the bits too.\n{note}",
        sections["References"],
        f"Examples\n--------\n>>> import dask.array as da\n>>> import fastkl.dask\n>>> {made}\n"
        f">>> f\"{{fastkl.dask.{name}({example}).compute(){shown}:.6g}}\"\n'{right}'",
    )
    return "\n\n".join(parts)


_SUM = """\
Rows in pieces are the sums of their pieces, taken in float64 (with a copy of a chunk of another type). Those that are
divided by their sums, as of logits, are refused. The last bits may depend on the pieces."""
_sum = _Pieces(_added, _SUM)
_root_of_sum = _Pieces(partial(_added, into=np.square, back=np.sqrt), _SUM)
_CHAIN = f"""\
{_SUM} But logits at temperature 1 are
taken, by the chain rule: H = H(w) + sum(w * H(piece)), w being the shares of the pieces."""
_chain = _Pieces(_entropies, _CHAIN)
_exp_of_chain = _Pieces(partial(_entropies, back=np.exp), _CHAIN)
_pairs = _Pieces(_divergences, """\
Rows of probabilities may be in pieces: plain it is the sum of the terms p log(p/q) - p + q, all >= 0, and of p - q;
with `normalize` the divergence of the pieces' shares and the mean of the pieces' own. Those sums are pairs of doubles,
which needs copies of a chunk. The last bits may depend on the pieces.""")
_TWICE = """\
Rows in pieces are read twice, with a float64 copy of each chunk in memory. The last bits may depend on the pieces."""

softmax = _over_dask(fk.softmax, "x", "2.12418e-18", _Pieces(partial(_elements, finish=_softmax_of_state), _TWICE))
log_softmax = _over_dask(
    fk.log_softmax, "x", "-40.6931", _Pieces(partial(_elements, finish=_log_softmax_of_state), _TWICE)
)
logcumsumexp = _over_dask(fk.logcumsumexp, "x", "0.693147")
entropy = _over_dask(fk.entropy, "p, base=2", "1.5", _chain)
perplexity = _over_dask(fk.perplexity, "p", "2.82843", _exp_of_chain)
renyi_entropy = _over_dask(fk.renyi_entropy, "p, 2.0", "0.980829")
tsallis_entropy = _over_dask(fk.tsallis_entropy, "p, 2.0", "0.625", _sum)
cross_entropy = _over_dask(fk.cross_entropy, "p, q", "1.38629", _sum)
kl_divergence = _over_dask(fk.kl_divergence, "p, q, base=2", "1", _pairs)
generalized_kl = _over_dask(fk.generalized_kl, "p, q", "0.693147", _sum)
js_divergence = _over_dask(fk.js_divergence, "p, q, base=2", "0.311278", _sum)
js_distance = _over_dask(fk.js_distance, "p, q", "0.464501", _root_of_sum)
jeffreys_divergence = _over_dask(fk.jeffreys_divergence, "p, q, where=[True, True, False]", "0.346574", _sum)
hellinger_distance = _over_dask(fk.hellinger_distance, "p, q", "0.541196", _root_of_sum)
bhattacharyya_distance = _over_dask(fk.bhattacharyya_distance, "p, q", "0.346574")
total_variation = _over_dask(fk.total_variation, "p, q", "0.5", _sum)
chi2_divergence = _over_dask(fk.chi2_divergence, "p, q", "1", _sum)
triangular_discrimination = _over_dask(fk.triangular_discrimination, "p, q", "0.666667", _sum)
renyi_divergence = _over_dask(fk.renyi_divergence, "p, q, 2.0", "0.693147")
tsallis_divergence = _over_dask(fk.tsallis_divergence, "p, q, 2.0", "1")
alpha_divergence = _over_dask(fk.alpha_divergence, "p, q, 0.5", "1.17157", _sum)
f_divergence = _over_dask(fk.f_divergence, "p, q, 'kl'", "0.693147")
wasserstein_1d = _over_dask(fk.wasserstein_1d, "p, q", "0.75", without=("out", "y"))
