"""The scoring of one shard: its rows in order, in chunks, every chunk on one of several threads.

A chunk is read, scored and counted by one thread, which calls the kernels serially: no thread waits for another within
a chunk, and reading, unpacking and scoring overlap by themselves. Neither the scores nor the totals depend on that.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

import fastkl as fk
from fastkl.batch.manifest import Checksum
from fastkl.batch.readers import PER_ROW, Array, InputError, Source, open_source
from fastkl.batch.shards import Shard
from fastkl.batch.totals import OF_LABELS, OF_LOGITS, OF_REFERENCE, ON_REQUEST, TELLS_INVALID, Totals
from fastkl.batch.writers import open_writer
from fastkl.registry import STATISTICS

#: The bytes that the chunks of all threads together have at most, by default.
ALL_CHUNKS_BYTES = 128 * 2**20

#: About what a row's scores and totals take beside its numbers.
SCORES_BYTES = 128


@dataclass(frozen=True)
class Parameters:
    """What is done with each shard. It can be pickled.

    ``stats`` are those of `fastkl.score` (None: all that the inputs allow, but brier and top_k); ``complete`` asks for
    totals of everything, brier too, whatever the stats; ``checksums`` for the checksum of each input. Neither ``chunk``
    nor ``threads`` show in any result.
    """

    stats: tuple[str, ...] | None = None
    given: str | tuple[str, str] = "logits"
    temperature: float | tuple[float, float] = 1.0
    k: int = 5
    complete: bool = True
    checksums: bool = False
    chunk: int | None = None
    threads: int | None = None

    def check(
        self, labels: bool, reference: bool, weights: bool = False, dtypes: Sequence[Any] = ("float64", "float64")
    ) -> None:
        """Raise ValueError or TypeError, as `fastkl.score` does, for what it does not take of these types."""
        if weights and not labels:
            raise ValueError("weights weigh the losses of the labels, and there are no labels")
        x, r = (np.zeros((1, 2), dtype) for dtype in dtypes)
        self.score(x, np.zeros(1, int) if labels else None, r if reference else None, None)

    def columns(
        self, labels: bool, reference: bool, weights: bool, written: bool
    ) -> tuple[list[str], list[str], list[str]]:
        """Return the statistics to compute, those of them that are asked for, and those that the totals take."""
        there = {"labels": labels, "reference": reference}
        allowed = [s.name for s in STATISTICS if s.by_default and all(there[need] for need in s.needs)]
        counted = [*OF_LOGITS, *(OF_LABELS if labels else ()), *(OF_REFERENCE if reference else ())]
        # Where nothing is written, nothing is computed that nobody sees.
        asked = list(self.stats) if self.stats is not None else allowed if written else counted
        counted = [*counted, *(ON_REQUEST if labels else ())]
        if not self.complete:
            counted = [name for name in counted if name in asked or (weights and name == "loss")]
        if not set(counted) & set(TELLS_INVALID):
            counted.append("argmax")
        return list(dict.fromkeys([*asked, *counted])), asked, counted

    def score(
        self, x: Array, labels: Array | None, reference: Array | None, stats: Sequence[str] | None, threads: int = 1
    ) -> Mapping[str, Array]:
        """Return the scores of some rows."""
        return fk.score(
            x, labels, reference, stats=self.stats if stats is None else stats, given=self.given,
            temperature=self.temperature, k=min(self.k, x.shape[1]), n_threads=threads,
        )  # fmt: skip


@dataclass
class Scored:
    """What one shard came to: its totals, and for the manifest its inputs and its result."""

    rows: int
    totals: Totals
    entry: dict[str, Any]


class Stopped(Exception):
    """The shard is given up by another thread."""


Advance = Callable[[int, int], None]


def open_operands(shard: Shard) -> tuple[list[Source], int, int]:
    """Open a shard's files; return them with the rows and classes that they agree on."""
    sources: dict[str, Source] = {}
    for path in shard.inputs:
        keys = {role: operand.key for role, operand in shard.operands.items() if operand.path == path}
        try:
            sources[path] = open_source(path, keys)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
    main = sources[shard.operands["logits"].path]
    classes = main.shapes["logits"][0]
    for source in sources.values():
        one_reference = source.rows == 1 and list(source.shapes) == ["reference"]
        if source.rows != main.rows and not one_reference:
            what = " and ".join(source.shapes)
            raise InputError(f"{source.path}: has {source.rows} rows of {what}, but {main.path} has {main.rows} rows")
        if "reference" in source.shapes and source.shapes["reference"][0] != classes:
            theirs = source.shapes["reference"][0]
            raise InputError(f"{source.path}: the reference has {theirs} classes, but {main.path} has {classes}")
    return list(sources.values()), main.rows, classes


def together(
    sources: Sequence[Source], start: int, stop: int, step: int
) -> Generator[list[dict[str, Array]], None, None]:
    """Yield rows of several sources in step, a batch of equally many rows from each."""
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(source.batches(start, stop, step))) for source in sources]
        yield from in_step(sources, streams, start, stop)


def in_step(
    sources: Sequence[Source], streams: Sequence[Iterator[dict[str, Array]]], start: int, stop: int
) -> Iterator[list[dict[str, Array]]]:
    """Cut the batches of several sources where any of them ends one."""
    heads: list[dict[str, Array]] = [{} for _ in sources]
    row = start
    while row < stop:
        for i, stream in enumerate(streams):
            while not heads[i] or not rows_in(heads[i]):
                heads[i] = next(stream, {})
                if not heads[i]:
                    raise InputError(f"{sources[i].path}: ends after {row} rows, but says it has {sources[i].rows}")
        taken = min(map(rows_in, heads))
        yield [{role: a if alone(head, role) else a[:taken] for role, a in head.items()} for head in heads]
        heads = [{role: a if alone(head, role) else a[taken:] for role, a in head.items()} for head in heads]
        row += taken
    for stream in streams:
        for _ in stream:  # a stream may have something to check at its end
            pass


def rows_in(batch: Mapping[str, Array]) -> int:
    """Return the rows of a batch; a reference may have one for all."""
    return next((len(batch[role]) for role in ("logits", *PER_ROW, "reference") if role in batch), 0)


def alone(batch: Mapping[str, Array], role: str) -> bool:
    """Whether an array of a batch is a reference of one row for all of them."""
    return role == "reference" and len(batch[role]) == 1 != rows_in(batch)


def checked_labels(labels: Array, path: str, first_row: int, classes: int) -> Array:
    """Return labels, copied before they are checked, so that they stay as checked."""
    labels = np.array(labels)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: label {labels[row]} in row {first_row + row} is out of range for {classes} classes")
    return labels


def checked_weights(weights: Array, path: str, first_row: int) -> Array:
    """Return weights as float64, copied before they are checked."""
    weights = np.array(weights, np.float64)
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: weight {weights[row]} in row {first_row + row} is not finite and >= 0")
    return weights


class Pass:
    """One pass over the rows of a shard, by several threads."""

    def __init__(self, shard: Shard, parameters: Parameters, classes: int | None, advance: Advance | None) -> None:
        self.parameters, self.advance = parameters, advance
        # Before they are opened, so that a change from then on is seen.
        self.checksums = {path: Checksum(path) for path in shard.inputs} if parameters.checksums else {}
        self.sources, self.rows, self.classes = open_operands(shard)
        if classes is not None and classes != self.classes:
            path = shard.operands["logits"].path
            raise InputError(f"{path}: has {self.classes} classes; the shards before it have {classes}")
        self.labelled, self.referenced = "labels" in shard.operands, "reference" in shard.operands
        self.weighted = "weights" in shard.operands
        self.paths = {role: operand.path for role, operand in shard.operands.items()}
        self.computed, self.asked, self.counted = parameters.columns(
            self.labelled, self.referenced, self.weighted, shard.out is not None
        )
        held = {role: dtype for source in self.sources for role, (_, dtype) in source.shapes.items()}
        try:
            # A temperature may be none in float32.
            parameters.check(
                self.labelled, self.referenced, dtypes=(held["logits"], held.get("reference", held["logits"]))
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.paths['logits']}: {error}") from error
        self.source_name = shard.name
        self.size = sum(os.path.getsize(path) for path in shard.inputs)

        self.reference: Array | None = None
        for source in self.sources:
            if list(source.shapes) == ["reference"] and source.rows == 1 != self.rows:
                with closing(source.batches(0, 1, 1)) as batches:
                    self.reference = next(batches)["reference"].copy()
                source.check()
        self.streamed = [s for s in self.sources if self.reference is None or list(s.shapes) != ["reference"]]
        row_bytes = SCORES_BYTES + sum(
            max(n, 1) * dtype.itemsize for source in self.streamed for n, dtype in source.shapes.values()
        )
        self.threads = parameters.threads or fk.get_num_threads()
        for source in self.streamed:
            source.unpack_by(self.threads)
        # Of two files in spans the one with fewer decides: the other skips to its place within one of its own.
        cut = min((source.spans for source in self.streamed if source.spans is not None), key=len, default=None)
        at_once = min(self.threads, len(cut)) if cut is not None else self.threads
        aim = min(ALL_CHUNKS_BYTES // at_once, *(source.chunk_bytes for source in self.streamed))
        self.step = parameters.chunk or max(1, aim // row_bytes)
        # An empty file too passes through once, and so gets its empty columns.
        step = self.step
        self.spans = cut or [(a, min(a + step, self.rows)) for a in range(0, max(1, self.rows), step)]
        self.workers = min(self.threads, len(self.spans))
        self.stop = threading.Event()
        self._own = threading.local()
        self._totals: list[Totals] = []

    def new_totals(self) -> Totals:
        """Return totals of nothing yet."""
        return Totals(
            self.classes, has_labels=self.labelled, has_reference=self.referenced, has_weights=self.weighted,
            stats=self.counted, source=self.source_name,
        )  # fmt: skip

    def totals(self) -> Totals:
        """Return the totals of all threads."""
        whole = self.new_totals()
        for part in self._totals:
            whole.merge(part)
        return whole

    def check_labels(self) -> None:
        """Read all labels and weights once, where that is cheap: what is wrong is better told now than in an hour."""
        for source in self.sources:
            if source.shapes.keys() <= PER_ROW.keys() and source.spans is None:
                row = 0
                for batch in source.batches(0, self.rows, 2**18):
                    self.checked(batch, row)
                    source.check()
                    row += rows_in(batch)

    def checked(self, arrays: Mapping[str, Array], row: int) -> tuple[Array | None, Array | None]:
        """Return the labels and weights of rows from `row` on, those that there are, copied and checked."""
        labels, weights = arrays.get("labels"), arrays.get("weights")
        return (
            None if labels is None else checked_labels(labels, self.paths["labels"], row, self.classes),
            None if weights is None else checked_weights(weights, self.paths["weights"], row),
        )

    def score_span(self, start: int, stop: int, put: Callable[[Mapping[str, Array]], None]) -> None:
        """Score a span of rows and hand out their columns, in order."""
        if not hasattr(self._own, "totals"):
            self._own.totals = self.new_totals()
            self._totals.append(self._own.totals)
        with ExitStack() as stack:
            chunks: Iterable[list[dict[str, Array]]] = [self.nothing()]
            if stop > start:
                chunks = stack.enter_context(closing(together(self.streamed, start, stop, self.step)))
            self.score_chunks(chunks, start, put)

    def score_chunks(
        self, chunks: Iterable[list[dict[str, Array]]], row: int, put: Callable[[Mapping[str, Array]], None]
    ) -> None:
        """Score rows from `row` on, as they come from the sources."""
        for batches in chunks:
            if self.stop.is_set():
                raise Stopped
            arrays = {role: array for batch in batches for role, array in batch.items()}
            for source, batch in zip(self.streamed, batches, strict=True):
                source.fetch(batch)
            labels, weights = self.checked(arrays, row)
            x, reference = arrays["logits"], arrays.get("reference", self.reference)
            scores = self.parameters.score(x, labels, reference, self.computed, self.threads // self.workers)
            for source, batch in zip(self.streamed, batches, strict=True):
                checksum = self.checksums.get(source.path)
                if checksum is not None and source.file is not None:
                    for array in batch.values():
                        checksum.take(source.file, array)
                source.check()  # before anything that was read is believed
                source.release(batch)
            self._own.totals.add(scores, row, labels=labels, weights=weights)
            put({name: scores[name] for name in scores if name.removesuffix("_log_prob") in self.asked})
            before, row = row, row + len(x)
            if self.advance is not None and self.rows:
                self.advance(row - before, self.size * row // self.rows - self.size * before // self.rows)

    def nothing(self) -> list[dict[str, Array]]:
        """Return a batch of no rows."""
        return [
            {role: np.empty(0 if role in PER_ROW else (0, n), dtype) for role, (n, dtype) in source.shapes.items()}
            for source in self.streamed
        ]

    def columns(self) -> Generator[Mapping[str, Array], None, None]:
        """Yield the columns of all rows in order, computed by the threads ahead of that."""

        def run(start: int, stop: int, queue: SimpleQueue[Any]) -> None:
            try:
                self.score_span(start, stop, queue.put)
            except OSError as error:  # of reading: nothing is written here
                raise InputError(f"{self.source_name}: {error.strerror or error}") from error
            finally:
                queue.put(None)

        with ThreadPoolExecutor(self.workers, "fastkl") as pool:
            under_way: deque[tuple[SimpleQueue[Any], Future[None]]] = deque()
            try:
                spans = iter(self.spans)
                while True:
                    while len(under_way) < 2 * self.workers and (span := next(spans, None)) is not None:
                        queue: SimpleQueue[Any] = SimpleQueue()
                        under_way.append((queue, pool.submit(run, *span, queue)))
                    if not under_way:
                        return
                    queue, future = under_way.popleft()
                    while (columns := queue.get()) is not None:
                        yield columns
                    future.result()
            finally:
                self.stop.set()
                for _, future in under_way:
                    future.cancel()


def score_shard(
    shard: Shard, parameters: Parameters, *, classes: int | None = None, advance: Advance | None = None
) -> Scored:
    """Score one shard: read its files, write its result, return its totals and its entry in the manifest.

    Everything that the result depends on is in the arguments: it can run in any thread of any process.

    Parameters
    ----------
    shard
        The files.
    parameters
        What to do with them.
    classes
        The number of classes that it must have, if that is known.
    advance
        Called with rows and bytes of the files as they are done, from several threads.

    Raises
    ------
    InputError
        If a file is not what it should be; it names the file and the row. Nothing is written then.
    OSError
        If the result cannot be written; nothing is left half-written then.
    """
    work = Pass(shard, parameters, classes, advance)
    work.check_labels()
    with nullcontext() if shard.out is None else open_writer(shard.out) as writer:
        with closing(work.columns()) as chunks:  # so that its threads end before this does, however it ends
            for columns in chunks:
                if writer is not None:
                    writer.append(columns)
        described = [work.checksums[path].describe() for path in work.checksums]
    entry: dict[str, Any] = {"rows": work.rows, "inputs": described}
    if shard.out is not None and parameters.checksums:
        entry["output"] = Checksum(shard.out).describe()
    return Scored(work.rows, work.totals(), entry)
