"""Totals: what the columns of ``fastkl.score`` amount to, whatever chunks, order and processes they came through.

Every part of a total is exactly associative and commutative. Counts are integers; sums are exact, as integers of the
smallest unit that float64 has; bins have edges fixed in advance; lists of extreme rows are ordered without ties. So the
same rows give the same bytes of `Totals.to_json`, and one division at the end rounds each mean correctly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkl._exact import ExactSum, Values
from fastkl._kernels import count

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Rows that are counted at a time: what is computed for them stays in the cache.
BLOCK_ROWS = 2**14

#: The columns that are read, in the order of ``fastkl.score``; which are there depends on what it was given.
OF_LOGITS = ("entropy", "max_prob", "argmax")
OF_LABELS = ("loss", "correct", "rank")
OF_REFERENCE = ("kl", "reverse_kl", "js", "agree")
#: Read when it is named; needs labels.
ON_REQUEST = ("brier",)

#: The columns that tell a row which holds no distribution (NaN there, or -1), the first of them that is present.
TELLS_INVALID = ("entropy", "max_prob", "argmax", "loss", "rank")


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: ``counts[i]`` values lie in ``[edges[i], edges[i + 1])``, the last edge included."""

    edges: Floats
    counts: Ints

    def quantile(self, q: float) -> float:
        """Return a value that a share `q` of the counted values does not exceed: right to the width of its bin."""
        if not self.counts.any():
            return math.nan
        upto = np.cumsum(self.counts)
        bin_ = int(np.searchsorted(upto, q * upto[-1]))
        lower, upper = float(self.edges[bin_]), float(self.edges[bin_ + 1])
        if math.isinf(upper):
            return lower
        share = (q * float(upto[-1]) - float(upto[bin_] - self.counts[bin_])) / float(self.counts[bin_])
        return lower + share * (upper - lower)


class EvenBins:
    """50 bins of equal width for probabilities."""

    COUNT = 50

    def __init__(self) -> None:
        self.counts = np.zeros(self.COUNT, np.int64)

    def add(self, values: Values) -> None:
        """Count values; a NaN is none."""
        count.evenly(values, self.counts)

    def histogram(self) -> Histogram:
        """Return the counts with their edges."""
        return Histogram(np.arange(self.COUNT + 1) / self.COUNT, self.counts.copy())


class OctaveBins:
    """Bins for values >= 0 over many orders of magnitude: 32 of equal width in each octave that float32 has.

    A bin is at most 1/32 of its values wide. The first takes what is below 2**-149, which of float32 is 0 alone; the
    last what is 2**128 or more, which is +inf alone.
    """

    LOWEST, HIGHEST, BITS = -149, 128, 5

    def __init__(self) -> None:
        self.counts = np.zeros(((self.HIGHEST - self.LOWEST) << self.BITS) + 2, np.int64)

    def add(self, values: Values) -> None:
        """Count values; a NaN is none."""
        count.octaves(values, self.LOWEST, self.BITS, self.counts)

    def histogram(self) -> Histogram:
        """Return the counts with their edges."""
        return Histogram(octave_edges(self.LOWEST, self.BITS, len(self.counts)), self.counts.copy())


def octave_edges(lowest: int, bits: int, bins: int) -> Floats:
    """Return the edges of bins of which the first ends at 2**lowest, and then ``2**bits`` make an octave."""
    inner = (np.arange(bins - 1, dtype=np.int64) + ((1023 + lowest) << bits)) << (52 - bits)
    return np.concatenate(([0.0], inner.view(np.float64), [np.inf]))


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose confidence lies in a bin, their mean confidence and the share of them that is right."""

    rows: int
    confidence: float
    accuracy: float


class Calibration:
    """How often rows of a confidence are right, in bins of equal width and in bins of (nearly) equal mass.

    Confidence is the largest probability. Bins of equal width are ((i - 1) / M, i / M], as in Guo et al. (2017); each
    sums its confidences rounded to 2**-28, for up to 2**35 rows.

    Bins of equal mass need the order of all rows, which no total can keep. So confidences are counted in 2**9 bins for
    each octave of 1 - confidence, down to 2**-32, and these are dealt whole: the one with r rows before it goes to mass
    bin floor(M r / rows). Rows are misplaced only among confidences that differ by less than 2**-9 (1 - confidence).
    """

    LOWEST, BITS, OFFSET_BITS = -32, 9, 20

    def __init__(self, bins: int) -> None:
        # In each bin: rows that are wrong, rows that are right, and the sum of the confidences (wide) or of how far
        # into the bin the doubts lie (fine).
        self.wide = np.zeros((bins, 3), np.int64)
        self.fine = np.zeros(((-self.LOWEST << self.BITS) + 1, 3), np.int64)

    def add(self, confidence: Values, correct: npt.NDArray[np.bool_]) -> None:
        """Count rows; one whose confidence is NaN is none."""
        flags = correct.view(np.uint8)
        count.calibration(confidence, flags, self.wide, self.LOWEST, self.BITS, self.OFFSET_BITS, self.fine)

    def merge(self, other: Calibration) -> None:
        """Add what another calibration holds."""
        self.wide += other.wide
        self.fine += other.fine

    def equal_width(self) -> tuple[CalibrationBin, ...]:
        """Return the bins of equal width, empty ones too, by rising confidence."""
        bins = []
        for wrong, right, units in self.wide.tolist():
            rows = wrong + right
            mean = float(Fraction(units, rows << 28)) if rows else math.nan
            bins.append(CalibrationBin(rows, mean, right / rows if rows else math.nan))
        return tuple(bins)

    def equal_mass(self) -> tuple[CalibrationBin, ...]:
        """Return the bins of equal mass that hold any row, by rising confidence."""
        rows, right, offset = self.fine[:, :2].sum(axis=1), self.fine[:, 1], self.fine[:, 2]
        edges = octave_edges(self.LOWEST, self.BITS, len(rows) + 1)[:-1]
        width = np.diff(edges, append=1.0)
        doubt = edges[:-1] * rows + width[:-1] * (offset / 2**self.OFFSET_BITS)
        doubt[0] = 0  # below 2**-32
        # By rising confidence is by falling doubt.
        rows, right, doubt = rows[::-1], right[::-1], doubt[::-1]
        before = np.cumsum(rows) - rows
        group = before * len(self.wide) // max(1, int(rows.sum()))
        bins = []
        for number in range(len(self.wide)):
            own = (group == number) & (rows > 0)
            if own.any():
                held = int(rows[own].sum())
                mean = 1 - math.fsum(doubt[own].tolist()) / held
                bins.append(CalibrationBin(held, mean, int(right[own].sum()) / held))
        return tuple(bins)


def calibration_error(bins: Iterable[CalibrationBin]) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence| over rows, taken by bin."""
    kept = [bin_ for bin_ in bins if bin_.rows]
    rows = sum(bin_.rows for bin_ in kept)
    return math.fsum(bin_.rows / rows * abs(bin_.accuracy - bin_.confidence) for bin_ in kept) if rows else math.nan


@dataclass(frozen=True)
class Row:
    """A row that stands out, by `value`; None is what its columns did not tell."""

    value: float
    source: str
    row: int
    true: int | None = None
    predicted: int | None = None
    loss: float | None = None
    entropy: float | None = None
    confidence: float | None = None

    def order(self) -> tuple[float, str, int]:
        """Return what rows are sorted by: falling value, then source and row, so that no two are equal."""
        return -self.value, self.source, self.row


class TopRows:
    """The rows of largest value, as many as `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[Row] = []

    def add(self, values: Values, columns: Mapping[str, npt.NDArray[Any]], first_row: int, source: str) -> None:
        """Take rows numbered from `first_row`; a NaN is no value."""
        if len(self.rows) < self.size:
            entering = ~np.isnan(values)
        else:
            last = self.rows[-1]
            entering = values > last.value
            if source < last.source:
                entering = values >= last.value
            elif source == last.source and first_row < last.row:
                entering[: last.row - first_row] |= values[: last.row - first_row] == last.value
        if not entering.any():
            return
        candidates = np.flatnonzero(entering)
        if len(candidates) > self.size:
            candidates = candidates[np.argsort(-values[candidates], kind="stable")[: self.size]]
        self.take(
            Row(float(values[at]), source, first_row + at, **facts(columns, at)) for at in candidates.tolist()
        )

    def take(self, rows: Iterable[Row]) -> None:
        """Take rows from anywhere."""
        self.rows = sorted([*self.rows, *rows], key=Row.order)[: self.size]


def facts(columns: Mapping[str, npt.NDArray[Any]], at: int) -> dict[str, Any]:
    """Return what the columns tell of one row beside its value."""
    known = {"true": "label", "predicted": "argmax", "loss": "loss", "entropy": "entropy", "confidence": "max_prob"}
    return {name: columns[column][at].item() for name, column in known.items() if column in columns}


@dataclass(frozen=True)
class Summary:
    """What the scored rows amount to. Nats throughout; None is what the columns did not tell.

    Rows that hold no distribution are `invalid`: they are left out of means, histograms and calibration, and count as
    wrong in the accuracies.

    Attributes
    ----------
    rows, invalid, classes
        Rows in all, those without a distribution, classes.
    mean_entropy
        Mean over valid rows of the entropy.
    mean_loss, infinite_losses, perplexity
        Mean over valid rows of the label's loss, with weights ``sum(w * loss) / sum(w)``; rows whose label had
        probability 0, one of which makes the mean infinite; exp(mean loss).
    weight
        The sum of the weights of the rows in the mean loss, if they have weights.
    right, accuracy, top_k
        Rows predicted right, their share, and for each k the share of rows whose label has rank k or better.
    brier, confidence_brier
        Mean over valid rows of ``sum((p - one_hot(label))**2)``, and of ``(max(p) - correct)**2``, which looks at the
        predicted class alone. With more than two classes the first needs the column ``brier``.
    ece, ece_equal_mass, calibration, calibration_equal_mass
        Expected calibration errors of the predicted class, and the bins that they were taken over.
    confusion
        ``confusion[i, j]`` valid rows of class i were predicted as j.
    mean_kl, mean_reverse_kl, mean_js, infinite_kl, agreement, no_divergence
        Means of KL(reference || model), KL(model || reference) and JS over rows where both hold a distribution; rows
        of infinite KL; the share of rows where both predict the same class; valid rows whose reference is none.
    histograms
        By name: ``loss``, ``entropy``, ``confidence``, ``kl``, ``reverse_kl``, ``js``.
    worst, surprising, furthest
        The rows of largest loss, of largest loss - entropy, and of largest KL(reference || model).
    """

    rows: int
    classes: int
    invalid: int
    mean_entropy: float | None = None
    mean_loss: float | None = None
    infinite_losses: int | None = None
    perplexity: float | None = None
    weight: float | None = None
    right: int | None = None
    accuracy: float | None = None
    top_k: dict[int, float] = field(default_factory=dict)
    brier: float | None = None
    confidence_brier: float | None = None
    ece: float | None = None
    ece_equal_mass: float | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    calibration_equal_mass: tuple[CalibrationBin, ...] = ()
    confusion: Ints | None = None
    mean_kl: float | None = None
    mean_reverse_kl: float | None = None
    mean_js: float | None = None
    infinite_kl: int | None = None
    agreement: float | None = None
    no_divergence: int | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)
    worst: tuple[Row, ...] = ()
    surprising: tuple[Row, ...] = ()
    furthest: tuple[Row, ...] = ()


class Totals:
    """Totals of the rows of ``fastkl.score``, grown by `add`, joined by `merge`.

    Parameters
    ----------
    classes : int
        Classes of a row.
    has_labels, has_reference, has_weights : bool
        What `add` will be given.
    stats : sequence of str, optional
        The columns that `add` will be given; by default every one that labels and reference allow, without ``brier``.
        What is not told is None in the summary. One of entropy, max_prob, argmax, loss and rank must be there, to tell
        a row that holds no distribution.
    top_k : sequence of int
        For which k to count labels of rank k or better. A k that is not below `classes` is dropped, unless it is 1.
    bins : int
        Bins of the calibration.
    worst : int
        Length of the lists of worst, most surprising and furthest rows.
    confusion_limit : int
        The most classes for which confusions are counted.
    source : str
        The file that the row numbers count in, for the lists.

    Raises
    ------
    ValueError
        For a column that is none, or that `classes`, labels and reference do not allow, or a number below 1.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from fastkl.batch.totals import Totals
    >>> first, second = (Totals(2, has_labels=True, has_reference=False, stats=["loss"]) for _ in range(2))
    >>> first.add({"loss": np.array([0.5, 1.0])}, 0, labels=np.array([0, 1]))
    >>> second.add({"loss": np.array([3.0])}, 2, labels=np.array([1]))
    >>> first.merge(second)
    >>> first.summary().mean_loss
    1.5
    """

    def __init__(
        self,
        classes: int,
        *,
        has_labels: bool,
        has_reference: bool,
        has_weights: bool = False,
        stats: Sequence[str] | None = None,
        top_k: Sequence[int] = (1, 5),
        bins: int = 15,
        worst: int = 20,
        confusion_limit: int = 100,
        source: str = "",
    ) -> None:
        for name, number in (("classes", classes), ("bins", bins), ("worst", worst), *(("top_k", k) for k in top_k)):
            if number < 1:
                raise ValueError(f"{name} is a positive number, not {number}")
        allowed = (*OF_LOGITS, *(OF_LABELS if has_labels else ()), *(OF_REFERENCE if has_reference else ()))
        possible = allowed if not has_labels else (*allowed, *ON_REQUEST)
        for name in stats or ():
            if name not in possible:
                raise ValueError(f"no total reads {name!r} here; it reads {', '.join(possible)}")
        if has_weights and not has_labels:
            raise ValueError("weights weigh losses, and without labels there are none")
        self.columns = tuple(name for name in possible if name in (allowed if stats is None else stats))
        if not set(self.columns) & set(TELLS_INVALID):
            raise ValueError(f"one of {', '.join(TELLS_INVALID)} is needed, to tell rows that hold no distribution")
        self.classes = classes
        self.source = source
        self._has_labels, self._has_reference, self._has_weights = has_labels, has_reference, has_weights
        self._top_k = sorted({k for k in top_k if k == 1 or k < classes})
        self._bins, self._worst, self._confusion_limit = bins, worst, confusion_limit

        has = set(self.columns).issuperset
        self._counts = {"rows": 0, "valid": 0}
        means = ("entropy", "loss", "brier", "kl", "reverse_kl", "js")
        self._sums = {name: ExactSum() for name in means if has({name})}
        if has_weights and has({"loss"}):
            self._sums |= {"weights": ExactSum(), "weighted_loss": ExactSum()}
        if has({"correct"}):
            self._counts["right"] = 0
        if has({"rank"}):
            self._counts |= {f"top_{k}": 0 for k in self._top_k}
        if has({"agree"}):
            self._counts["agree"] = 0
        self._histograms: dict[str, EvenBins | OctaveBins] = {
            name: OctaveBins() for name in ("loss", "entropy", "kl", "reverse_kl", "js") if has({name})
        }
        if has({"max_prob"}):
            self._histograms["confidence"] = EvenBins()
        self._calibration = Calibration(bins) if has({"max_prob", "correct"}) else None
        if self._calibration:
            self._sums["confidence_brier"] = ExactSum()
        confused = has_labels and has({"argmax"}) and classes <= confusion_limit
        self._confusion = np.zeros((classes, classes), np.int64) if confused else None
        lists = {"worst": {"loss"}, "surprising": {"loss", "entropy"}, "furthest": {"kl"}}
        self._top = {name: TopRows(worst) for name, needed in lists.items() if has(needed)}

    def add(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        first_row: int,
        labels: npt.NDArray[Any] | None = None,
        weights: npt.NDArray[Any] | None = None,
    ) -> None:
        """Take the scores of some rows, numbered from `first_row`: at least the columns named by `columns`, all 1-d.

        Nothing is taken when an error is raised.

        Raises
        ------
        ValueError
            For a column that is missing, of another length or of a type that it cannot have; for labels or weights that
            are missing or were not announced; for a weight that is negative or not finite, with its row.
        IndexError
            For a label out of range, with its row.
        """
        given = self._checked(columns, first_row, labels, weights)
        for start in range(0, len(given[self.columns[0]]), BLOCK_ROWS):
            block = {name: values[start : start + BLOCK_ROWS] for name, values in given.items()}
            self._count(block, first_row + start)

    def _count(self, given: Mapping[str, npt.NDArray[Any]], first_row: int) -> None:
        """Count rows that have been checked."""
        rows = len(given[self.columns[0]])
        self._counts["rows"] += rows
        # A row that holds no distribution is not counted below: it comes as NaN, as class or rank -1, and as False.
        told = given[next(name for name in TELLS_INVALID if name in given)]
        self._counts["valid"] += rows - int(np.count_nonzero(np.isnan(told) if told.dtype.kind == "f" else told < 0))
        for name, column in (("right", "correct"), ("agree", "agree")):
            if name in self._counts:
                self._counts[name] += int(np.count_nonzero(given[column]))
        if "rank" in given:
            for k in self._top_k:
                within = int(np.count_nonzero(given["rank"] <= k)) - int(np.count_nonzero(given["rank"] < 1))
                self._counts[f"top_{k}"] += within

        for name, total in self._sums.items():
            if name in given:
                total.add(given[name])
        for name, bins in self._histograms.items():
            bins.add(given["max_prob" if name == "confidence" else name])
        if "weighted_loss" in self._sums:
            # A row of weight 0 is absent, whatever its loss.
            weight = np.where(np.isnan(given["loss"]), np.nan, given["weight"])
            self._sums["weights"].add(weight)
            loss = np.where(weight == 0, 0.0, given["loss"])
            self._sums["weighted_loss"].add(weight * loss)
        if self._calibration:
            self._calibration.add(given["max_prob"], given["correct"])
            off = np.subtract(given["max_prob"], given["correct"], dtype=np.float64)
            self._sums["confidence_brier"].add(off * off)
        if self._confusion is not None:
            count.confusions(given["label"], given["argmax"], self._confusion)
        for name, top in self._top.items():
            if name == "surprising":
                values = np.subtract(given["loss"], given["entropy"], dtype=np.float64)
            else:
                values = given["loss" if name == "worst" else "kl"]
            top.add(values, given, first_row, self.source)

    def _checked(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        first_row: int,
        labels: npt.NDArray[Any] | None,
        weights: npt.NDArray[Any] | None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Return what `add` was given, each in a type that is counted; raise if it is not what it should be."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing; given are {', '.join(columns)}")
        given: dict[str, npt.NDArray[Any]] = {name: np.asarray(columns[name]) for name in self.columns}
        shape = given[self.columns[0]].shape
        for name, values, wanted in (("label", labels, self._has_labels), ("weight", weights, self._has_weights)):
            if (values is not None) != wanted:
                raise ValueError(f"{name}s are {'wanted' if wanted else 'given, but were not announced'}")
            if values is not None:
                given[name] = np.array(values)  # checked here, and to stay as checked
        for name, array in given.items():
            if array.shape != shape or len(shape) != 1:
                raise ValueError(f"{name} has shape {array.shape}; {self.columns[0]} has {shape}, and columns are 1-d")
            kinds = {"label": "iu", "argmax": "i", "rank": "i", "correct": "b", "agree": "b"}.get(name, "f")
            if array.dtype.kind not in kinds:
                kind = {"iu": "an integer", "i": "a signed integer", "b": "bool", "f": "floating point"}[kinds]
                raise ValueError(f"{name} is {kind}, not {array.dtype}")
            if kinds == "f" and array.dtype not in (np.float32, np.float64):
                given[name] = array.astype(np.float64)
        if labels is not None:
            wrong = (given["label"] < 0) | (given["label"] >= self.classes)
            if wrong.any():
                at = int(np.argmax(wrong))
                raise IndexError(
                    f"label {given['label'][at]} in row {first_row + at} is out of range for {self.classes} classes"
                )
            given["label"] = given["label"].astype(np.int64, copy=False)
        if weights is not None:
            wrong = ~((given["weight"] >= 0) & (given["weight"] < math.inf))
            if wrong.any():
                at = int(np.argmax(wrong))
                raise ValueError(f"weight {given['weight'][at]} in row {first_row + at} is not finite and >= 0")
        return given

    def _settings(self) -> dict[str, Any]:
        """Return what two totals must have in common to be merged."""
        return {
            "classes": self.classes,
            "has_labels": self._has_labels,
            "has_reference": self._has_reference,
            "has_weights": self._has_weights,
            "stats": list(self.columns),
            "top_k": self._top_k,
            "bins": self._bins,
            "worst": self._worst,
            "confusion_limit": self._confusion_limit,
        }

    def merge(self, other: Totals) -> None:
        """Add what other totals hold; they are left as they are.

        Raises
        ------
        ValueError
            If the two were not made for the same classes, columns and bins; the message names the difference.
        """
        mine, theirs = self._settings(), other._settings()
        for name, value in mine.items():
            if value != theirs[name]:
                raise ValueError(f"totals of different {name} do not merge: {value} and {theirs[name]}")
        for name in self._counts:
            self._counts[name] += other._counts[name]
        for name, total in self._sums.items():
            total.merge(other._sums[name])
        for name, bins in self._histograms.items():
            bins.counts += other._histograms[name].counts
        if self._calibration and other._calibration:
            self._calibration.merge(other._calibration)
        if self._confusion is not None and other._confusion is not None:
            self._confusion += other._confusion
        for name, top in self._top.items():
            top.take(other._top[name].rows)

    def to_json(self) -> str:
        """Return everything as JSON text: the same for the same rows, however they came."""
        state: dict[str, Any] = {
            "format": 1,
            "settings": self._settings(),
            "counts": self._counts,
            "sums": {name: total.state() for name, total in self._sums.items()},
            "histograms": {name: sparse(bins.counts) for name, bins in self._histograms.items()},
            # Floats as hexadecimal text: infinities too have a place in it.
            "top": {
                name: [[v.hex() if isinstance(v, float) else v for v in vars(row).values()] for row in top.rows]
                for name, top in self._top.items()
            },
        }
        if self._calibration:
            state["calibration"] = [sparse(self._calibration.wide), sparse(self._calibration.fine)]
        if self._confusion is not None:
            state["confusion"] = sparse(self._confusion)
        return json.dumps(state, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Totals:
        """Return the totals that `to_json` wrote.

        Raises
        ------
        ValueError
            For text that is not of this format.
        """
        state = json.loads(text)
        if not isinstance(state, dict) or state.get("format") != 1:
            raise ValueError("not totals of format 1")
        totals = cls(**state["settings"])
        totals._counts = state["counts"]
        for name, total in totals._sums.items():
            total.restore(state["sums"][name])
        for name, bins in totals._histograms.items():
            fill(bins.counts, state["histograms"][name])
        if totals._calibration:
            fill(totals._calibration.wide, state["calibration"][0])
            fill(totals._calibration.fine, state["calibration"][1])
        if totals._confusion is not None:
            fill(totals._confusion, state["confusion"])
        floats = {"value", "loss", "entropy", "confidence"}
        for name, top in totals._top.items():
            for values in state["top"][name]:
                told: dict[str, Any] = dict(zip(Row.__dataclass_fields__, values, strict=True))
                told |= {key: float.fromhex(told[key]) for key in floats if told[key] is not None}
                top.rows.append(Row(**told))
        return totals

    def summary(self) -> Summary:
        """Return what the rows amount to so far."""
        counts, rows = self._counts, self._counts["rows"]
        told: dict[str, Any] = {}
        for name in ("entropy", "kl", "reverse_kl", "js"):
            if name in self._sums:
                told[f"mean_{name}"] = self._sums[name].mean()
        for name in ("brier", "confidence_brier"):
            if name in self._sums:
                told[name] = self._sums[name].mean()
        if self.classes <= 2 and "brier" not in told and "confidence_brier" in told:
            # Of two classes the other's error is the same, of one there is no other.
            told["brier"] = self.classes * told["confidence_brier"]
        if "loss" in self._sums:
            told["infinite_losses"] = self._sums["loss"].infinite
            told["mean_loss"] = self._weighted_mean() if self._has_weights else self._sums["loss"].mean()
            told["perplexity"] = math.exp(told["mean_loss"]) if not told["mean_loss"] > 709 else math.inf
        if "weights" in self._sums:
            told["weight"] = self._sums["weights"].over(1)
        if "right" in counts:
            told["right"] = counts["right"]
            told["accuracy"] = counts["right"] / rows if rows else math.nan
        for name in ("kl", "reverse_kl", "js"):
            if name in self._sums:
                told["no_divergence"] = counts["valid"] - self._sums[name].finite - self._sums[name].infinite
        if "kl" in self._sums:
            told["infinite_kl"] = self._sums["kl"].infinite
        if "agree" in counts:
            told["agreement"] = counts["agree"] / rows if rows else math.nan
        for name, top in self._top.items():
            told[name] = tuple(top.rows)
        if self._calibration:
            told["calibration"] = self._calibration.equal_width()
            told["calibration_equal_mass"] = self._calibration.equal_mass()
            told["ece"] = calibration_error(told["calibration"])
            told["ece_equal_mass"] = calibration_error(told["calibration_equal_mass"])
        return Summary(
            rows=rows,
            classes=self.classes,
            invalid=rows - counts["valid"],
            top_k={k: counts[f"top_{k}"] / rows if rows else math.nan for k in self._top_k if f"top_{k}" in counts},
            confusion=None if self._confusion is None else self._confusion.copy(),
            histograms={name: bins.histogram() for name, bins in self._histograms.items()},
            **told,
        )

    def _weighted_mean(self) -> float:
        weight, weighted = self._sums["weights"], self._sums["weighted_loss"]
        if weighted.infinite:
            return math.inf
        return float(Fraction(weighted.units, weight.units)) if weight.units else math.nan


def sparse(counts: Ints) -> list[list[int]]:
    """Return the counts that are not 0: how far each is from the one before it, and the counts."""
    places = np.flatnonzero(counts)
    return [np.diff(places, prepend=0).tolist(), counts.ravel()[places].tolist()]


def fill(counts: Ints, stored: Sequence[Sequence[int]]) -> None:
    """Put counts that `sparse` gave into an array of zeros."""
    steps, values = stored
    counts.reshape(-1)[np.cumsum(np.asarray(steps, np.int64))] = values
