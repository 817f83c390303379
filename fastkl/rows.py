"""Many statistics of a row from one read: `score` and the table that it gives."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import _args, _kernels
from ._args import FLOAT64, Array
from ._threads import threads_for

if TYPE_CHECKING:
    from .registry import Statistic

_GIVEN = ("logits", "probs", "log_probs")
_BOTH = "logits and reference"
_EXACT = {"argmax": np.int64, "rank": np.int64, "correct": np.bool_, "agree": np.bool_, "top_k": np.int64}


@cache
def _statistics() -> dict[str, Statistic]:
    """What there is, by name; read when first asked for, since dataclasses would be half of this package's import."""
    from .registry import STATISTICS

    return {statistic.name: statistic for statistic in STATISTICS}


class Scores(Mapping[str, Array]):
    """Columns by name, in the order asked for: one number (for top_k: k of them) for each row.

    A mapping that cannot be changed; ``len`` is the number of columns, `rows` that of rows. It prints as a table.
    """

    __slots__ = ("_columns", "_shape")

    def __init__(self, columns: Mapping[str, Array], shape: tuple[int, ...]) -> None:
        """Take columns whose leading axes are those of ``shape``."""
        self._columns = dict(columns)
        self._shape = shape

    def __getitem__(self, name: str) -> Array:
        """Return a column."""
        try:
            return self._columns[name]
        except KeyError:
            raise KeyError(f"{name!r} is not among the columns {', '.join(self._columns)}") from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._columns)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return math.prod(self._shape)

    def _flat(self) -> dict[str, Array]:
        """The columns with the rows along one axis, in C order."""
        ndim = len(self._shape)
        return {name: column.reshape(self.rows, *column.shape[ndim:]) for name, column in self._columns.items()}

    def __repr__(self) -> str:
        """Return the first and last rows as a table, with the columns' types and means."""
        columns = self._flat()
        shown = list(range(self.rows)) if self.rows <= 10 else [*range(5), *range(self.rows - 5, self.rows)]
        table = [["row", *map(str, shown), "dtype", "mean"]]
        for name, column in columns.items():
            cells = [_cell(column[row]) for row in shown]
            with np.errstate(all="ignore"):
                mean = _cell(column.mean(dtype=np.float64)) if self.rows and column.ndim == 1 else ""
            table.append([name, *cells, str(column.dtype), "" if name == "argmax" else mean])
        widths = [max(map(len, column)) for column in table]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in zip(*table, strict=True)]
        if len(shown) < self.rows:
            lines.insert(6, "...".rjust(widths[0]))
        return "\n".join([f"Scores of {self.rows} row{'s' * (self.rows != 1)}", *map(str.rstrip, lines)])

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`, a row for each row; top_k columns are fixed-size lists.

        Raises
        ------
        ImportError
            Where pyarrow is not installed.
        """
        try:
            import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            raise ImportError("to_arrow needs pyarrow: pip install fastkl[score]") from None
        arrays = {}
        for name, column in self._flat().items():
            values = pa.array(column.reshape(-1))
            arrays[name] = values if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, column.shape[1])
        return pa.table(arrays)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`, a row for each row; top_k columns hold an array of k in each cell.

        Raises
        ------
        ImportError
            Where pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            raise ImportError("to_pandas needs pandas: pip install fastkl[pandas]") from None
        return pd.DataFrame({n: c if c.ndim == 1 else list(c) for n, c in self._flat().items()})


def _cell(value: Any) -> str:
    """One number, truth value or short list as the table shows it."""
    if np.ndim(value):
        return "[" + " ".join(_cell(one) for one in value) + "]"
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    return str(int(value)) if isinstance(value, (int, np.integer)) else f"{float(value):.6g}"


def score(
    logits: ArrayLike,
    labels: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    *,
    stats: Sequence[str] | None = None,
    given: str | tuple[str, str] = "logits",
    temperature: float | tuple[float, float] = 1.0,
    k: int = 5,
    n_threads: int | None = None,
) -> Scores:
    r"""Many statistics of each row from one read of it, with p = ``softmax(x / temperature)``.

    ==============  ==========================================================================================
    statistic       what it is, in nats where it is an information
    ==============  ==========================================================================================
    ``lse``         log(sum(exp(x)))
    ``loss``        lse - x[label]: needs labels
    ``entropy``     -sum(p log p)
    ``perplexity``  exp(entropy)
    ``max_prob``    the largest p
    ``argmax``      the class of the largest logit, the first of equals (int64)
    ``correct``     whether that is the label (bool): needs labels
    ``rank``        1 + the number of logits greater than the label's (int64): needs labels. Ties count in the
                    label's favour: equal logits share the best rank among them
    ``brier``       sum((p - one_hot(label))**2), the row's Brier score, from 0 to 2: needs labels
    ``margin``      the difference of the two largest logits; inf for one class
    ``top_k``       two columns of k numbers a row: ``top_k``, the classes of the k largest logits in falling
                    order, equal ones by class (int64), and ``top_k_log_prob``, their log p
    ``kl``          sum(r log(r / p)), r being the reference's p: KL(reference || model): needs a reference
    ``reverse_kl``  KL(model || reference), sum(p log(p / r)): needs a reference
    ``js``          Jensen-Shannon divergence, the mean of the KLs of r and p from (r + p) / 2: needs a reference
    ``agree``       whether the argmaxes are the same (bool): needs a reference
    ==============  ==========================================================================================

    Parameters
    ----------
    logits : array_like
        Real numbers; the classes lie along the last axis, the other axes are rows.
    labels : array_like of int, optional
        Class numbers from 0, of the shape of `logits` without its last axis; any integer type.
    reference : array_like, optional
        The logits of another model, of the shape of `logits` or broadcast to it.
    stats : sequence of str, optional
        Which statistics, in this order; None for every one but brier and top_k that the inputs allow.
    given : {"logits", "probs", "log_probs"} or pair of them
        What `logits` and `reference` hold, one word for both or one for each. Probabilities count as their logs:
        everything is of p / sum(p), and lse = log(sum(p)) tells how far they are from summing to 1.
    temperature : float or pair of float
        Positive numbers that the logits and the reference's are divided by, before everything else; one for both or one
        for each. The quotient is rounded to the type of the computation.
    k : int
        How many classes top_k gives.
    n_threads : int, optional
        Threads to use; None lets the size of the work decide.

    Returns
    -------
    Scores
        A mapping from names to arrays. float32 for float32 and half precision, else float64. Those of this type share
        their memory: copy the one to keep if the others are to go.

    Raises
    ------
    IndexError
        For a label that is out of range; it names the first such row.
    TypeError
        For a type of array that is not taken, labels that are no integers, masked arrays.
    ValueError
        For a statistic that is unknown or lacks its input, shapes that do not fit, another `given`, a temperature that
        is not positive, a k above the number of classes.

    Notes
    -----
    Domain: all numbers; probabilities >= 0. A row with a NaN, with +inf, of -inf only (or, of probabilities, with a
    negative or infinite one, or of zeros only) holds no distribution: it gives NaN, -1 for argmax, rank and the classes
    of top_k, and False; lse follows `logsumexp`. A label whose logit is -inf has loss +inf, and a Brier score from 1 to
    2. A class at -inf in both distributions contributes 0 to their divergences; one at -inf in the second only makes KL
    +inf.

    Accuracy: lse, loss and entropy are to the bit those of `logsumexp`, `softmax_cross_entropy` and `entropy`. max_prob
    and top_k_log_prob are within 4 eps and (4 + d/2) eps as `log_softmax`, margin within 1 eps, perplexity within
    (5 + d/2) eps times max(1, entropy), d being the distance between the two largest logits; brier within (8 + d) eps,
    here with the distance between the label's logit and the largest of the others, also where it is near 0. Divergences
    are within 32 eps at every scale, never negative, and 0 for equal rows.

    References
    ----------
    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).

    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991).

    Examples
    --------
    >>> import fastkl as fk
    >>> scores = fk.score([[1.0, 3.0, 2.0], [0.5, 0.0, 0.5]], [1, 2])
    >>> scores["argmax"].tolist(), scores["correct"].tolist(), scores["rank"].tolist()
    ([1, 0], [True, False], [1, 1])
    >>> fk.score([[1.0, 3.0, 2.0], [0.5, 0.0, 0.5]], stats=["margin", "max_prob"])
    Scores of 2 rows
      row   margin  max_prob
        0        1  0.665241
        1        0  0.383652
    dtype  float64   float64
     mean      0.5  0.524446
    """
    x = _args.as_array(logits, "logits")
    if x.ndim == 0:
        raise ValueError("logits has no axis of classes: it is 0-d")
    shape, classes = x.shape[:-1], x.shape[-1]
    y = None if reference is None else _fitted(_args.as_array(reference, "reference"), x.shape)
    classes_of = None if labels is None else _args.as_labels(labels, shape)
    asked = _asked(stats, {"labels": labels is not None, "reference": reference is not None})
    holds = tuple(_args.choice(one, "given", _GIVEN) for one in _args.one_or_pair(given, "given", _BOTH))
    divisors = tuple(
        _args.divisor(t, _args.result_dtype(d))
        for t, d in zip(_args.one_or_pair(temperature, "temperature", _BOTH), (x, x if y is None else y), strict=True)
    )
    known = _statistics()
    names = [column for name in asked for column in known[name].columns or (name,)]
    k = _top(k, classes) if "top_k" in asked else 0
    if classes_of is not None and not any("labels" in known[name].needs for name in asked):
        # No kernel will read them: a label out of range is refused all the same.
        bad, bits = _kernels.active.check_labels(classes_of, classes, None)
        if bad >= 0:
            _args.raise_bad_label(bad, bits, classes_of, classes)
        classes_of = None

    probs = tuple(one == "probs" for one in holds)
    both = [name for name in asked if "reference" in known[name].needs]
    own = [name for name in names if name not in both]
    columns = {}
    dtype, probs_of = _args.result_dtype(x), probs[:1]
    operands = [x]
    if y is not None and both:
        pair = _args.result_dtype(x, y)
        if own and (pair is not dtype or probs[1] > probs[0]):
            # The statistics of the logits alone are computed in their own type: a read of their own.
            columns = _run([x], classes_of, own, dtype, probs[:1], divisors, k, n_threads)
            own, k = [], 0  # top_k has been among them: the kernel must not look for its columns again
        operands, dtype, probs_of = [x, y], pair, probs
    if own or both:
        columns |= _run(operands, classes_of, own + both, dtype, probs_of, divisors, k, n_threads)
    return Scores({name: columns[name] for name in names}, shape)


def _fitted(array: Array, shape: tuple[int, ...]) -> Array:
    """The reference, broadcast to the logits' shape."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"reference of shape {array.shape} does not broadcast to the logits' shape {shape}") from None


def _asked(stats: Sequence[str] | None, there: Mapping[str, bool]) -> list[str]:
    """The names of the statistics asked for; each is known, and its inputs are there."""
    known = _statistics()

    def lacks(statistic: Statistic) -> list[str]:
        return [need for need in statistic.needs if not there[need]]

    if stats is None:
        return [name for name, statistic in known.items() if statistic.by_default and not lacks(statistic)]
    if isinstance(stats, str):
        raise TypeError(f"stats takes a sequence of names, such as [{stats!r}], not a str")
    names = list(stats)
    for name in names:
        if name not in known:
            raise ValueError(f"stats has {name!r}; there are {', '.join(known)}")
        if missing := lacks(known[name]):
            raise ValueError(f"the statistic {name!r} needs {' and '.join(missing)}")
        if names.count(name) > 1:
            raise ValueError(f"stats has {name!r} twice")
    return names


def _top(k: Any, classes: int) -> int:
    """The number of classes that top_k gives."""
    if isinstance(k, (bool, np.bool_)) or not hasattr(k, "__index__"):
        raise TypeError(f"k takes a positive int, not {k!r}")
    count = operator.index(k)
    if not 1 <= count <= classes:
        raise ValueError(f"k={count} is not within 1 and the number of classes, {classes}")
    return count


def _run(
    operands: Sequence[Array], labels: Array | None, names: list[str], dtype: np.dtype[Any], probs: tuple[bool, ...],
    temperature: tuple[float, ...], k: int, n_threads: int | None,
) -> dict[str, Array]:  # fmt: skip
    """Fill columns of one float type, in one read."""
    shape = operands[0].shape[:-1]
    # The numbers lie in one array: that is large enough for huge pages where a column of a million is not, and faults
    # for pages of 4 KiB would be a quarter of the time of short rows.
    plain = [name for name in names if name not in _EXACT and name != "top_k_log_prob"]
    block = np.empty((len(plain), *shape), dtype)
    columns = {name: block[i, ...] for i, name in enumerate(plain)}
    for name in names:
        if name not in columns:
            columns[name] = np.empty((*shape, k) if name.startswith("top_k") else shape, _EXACT.get(name, dtype))
    # The logs of probabilities are taken, and kept, in float64.
    double = dtype is FLOAT64 or any(probs)
    nbytes = sum(operand.size for operand in operands) * (8 if double else 4)
    bad, bits = _kernels.active.score(
        double, dtype is not FLOAT64, tuple(operands), labels, probs, temperature, k, columns,
        threads_for(n_threads, nbytes), n_threads is not None, nbytes,
    )  # fmt: skip
    if bad >= 0:
        assert labels is not None
        _args.raise_bad_label(bad, bits, labels, operands[0].shape[-1])
    return columns
