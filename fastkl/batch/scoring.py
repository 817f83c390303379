"""The scoring loop: one chunk of rows at a time, every row's results out, sums for the summary kept."""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import fastkl as fk
from fastkl.batch.readers import InputError, Labels, Logits
from fastkl.batch.writers import NpzWriter

#: A chunk is read by four functions in turn. At this size it comes from memory for the first and from the last-level
#: cache for the others, and the calls' own cost (microseconds) does not show.
CHUNK_BYTES = 4 * 2**20

#: The most that a row's results take: three float64, one int64, one bool.
RESULT_BYTES = 33


@dataclass(frozen=True)
class Summary:
    """What a file of logits amounts to. Means are in nats; without labels the three label fields are None.

    A row with a NaN, with a +inf or of -inf only holds no distribution: its loss and entropy are NaN and its predicted
    class is -1. Such ``invalid`` rows are left out of the means, and count as wrong in the accuracy.
    """

    rows: int
    classes: int
    invalid: int
    mean_entropy: float
    seconds: float
    mean_loss: float | None = None
    accuracy: float | None = None
    right: int | None = None

    @property
    def perplexity(self) -> float | None:
        """exp(mean loss)."""
        if self.mean_loss is None:
            return None
        with np.errstate(over="ignore"):
            return float(np.exp(self.mean_loss))


@dataclass
class Mean:
    """A mean to which no chunk size shows: float64 sums of 4096 values each, cut by their place in the column."""

    _block: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(4096))
    _filled: int = 0
    _totals: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take the next values of the column."""
        self.count += len(values)
        while len(values):
            taken = values[: len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            values = values[len(taken) :]
            if self._filled == len(self._block):
                with np.errstate(over="ignore"):
                    self._totals.append(float(self._block.sum()))
                self._filled = 0

    def value(self) -> float:
        """Return the mean of what was taken; NaN of nothing."""
        with np.errstate(over="ignore"):
            total = float(np.sum([*self._totals, self._block[: self._filled].sum()]))
        return total / self.count if self.count else math.nan


def score_files(
    logits: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    chunk: int | None = None,
    n_threads: int | None = None,
) -> Summary:
    """Score a file of logits row by row, in chunks of rows, and return a summary.

    Parameters
    ----------
    logits
        An ``.npy`` file of shape (rows, classes), float16, float32 or float64. It may be larger than memory.
    labels
        An ``.npy`` file of shape (rows,), of any integer type.
    out
        An ``.npz`` file to write, with one value per row under each name: ``loss`` (with labels), ``logsumexp`` and
        ``entropy`` in nats, ``predicted`` (the class with the largest logit, the first of equals, -1 for a row that
        holds no distribution), ``correct`` (with labels). It appears, or is replaced, only when complete.
    chunk
        Rows read at a time; by default as many as stay in the last-level cache. No result depends on it.
    n_threads
        Threads per call; None for the policy of fastkl.

    Raises
    ------
    InputError
        If a file is not what it should be; nothing is written then.
    OSError
        If a file cannot be read or written; nothing is left half-written then.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastkl.batch import score_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/logits.npy", np.log([[0.9, 0.1], [0.5, 0.5]]))
    ...     np.save(f"{folder}/labels.npy", np.array([0, 1]))
    ...     summary = score_files(f"{folder}/logits.npy", f"{folder}/labels.npy")
    >>> summary.rows, summary.right, round(summary.mean_loss, 4)
    (2, 1, 0.3993)
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a positive number of rows, not {chunk}")
    x = Logits(logits)
    y = None if labels is None else Labels(labels, x)
    if chunk is None:
        chunk = max(1, CHUNK_BYTES // (x.classes * x.dtype.itemsize + RESULT_BYTES))
    if out is not None:
        refuse_to_replace_input(out, x, y)

    started = time.perf_counter()
    losses, entropies, right = Mean(), Mean(), 0
    with nullcontext() if out is None else NpzWriter(out) as writer:
        # An empty file too passes through once, and so gets its empty columns.
        for start in range(0, max(1, x.count), chunk):
            stop = min(start + chunk, x.count)
            rows = x.rows(start, stop)
            column: dict[str, npt.NDArray[Any]] = {}
            if y is not None:
                true = y.rows(start, stop)
                column["loss"] = fk.softmax_cross_entropy(rows, true, n_threads=n_threads)
            column["logsumexp"] = fk.logsumexp(rows, n_threads=n_threads)
            column["entropy"] = fk.entropy(rows, given="logits", n_threads=n_threads)
            valid = ~np.isnan(column["entropy"])
            column["predicted"] = np.where(valid, np.argmax(rows, axis=1), -1)
            entropies.add(column["entropy"][valid])
            if y is not None:
                column["correct"] = column["predicted"] == true
                losses.add(column["loss"][valid])
                right += int(np.count_nonzero(column["correct"]))
            if writer is not None:
                writer.append(column)

    summary: dict[str, Any] = {}
    if y is not None:
        accuracy = right / x.count if x.count else math.nan
        summary = {"mean_loss": losses.value(), "accuracy": accuracy, "right": right}
    return Summary(
        rows=x.count,
        classes=x.classes,
        invalid=x.count - entropies.count,
        mean_entropy=entropies.value(),
        seconds=time.perf_counter() - started,
        **summary,
    )


def refuse_to_replace_input(out: str | os.PathLike[str], logits: Logits, labels: Labels | None) -> None:
    """Raise if the output is one of the inputs, by whatever name."""
    for file in (logits, labels):
        if file is not None and os.path.exists(out) and os.path.samefile(out, file.path):
            raise InputError(f"{os.fspath(out)}: is also an input, and would be replaced")
