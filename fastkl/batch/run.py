"""A run over files: shard after shard, the manifest beside the results, and the totals of them all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastkl as fk
from fastkl.batch.manifest import Manifest, locked, packed, unpacked, verified
from fastkl.batch.readers import InputError
from fastkl.batch.scoring import Advance, Parameters, Scored, open_operands, score_shard
from fastkl.batch.shards import Name, Shard, check_apart, find_shards
from fastkl.batch.totals import Summary, Totals
from fastkl.batch.writers import form_of, target

#: What runs shards: it yields each with what it came to, in any order.
Outcome = tuple[Shard, Scored | InputError]
Runner = Callable[[Sequence[Shard], Parameters, int | None, Advance | None], Iterable[Outcome]]


@dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes
    ----------
    summary
        The totals of all shards that are done, those of earlier runs too.
    shards, skipped
        How many shards are done, and how many of those were done already.
    set_aside
        Name and reason of each shard that could not be scored.
    rows, bytes, seconds
        Rows scored in this run, the size of their files, and the time it took.
    """

    summary: Summary
    shards: int
    skipped: int
    set_aside: tuple[tuple[str, str], ...]
    rows: int
    bytes: int
    seconds: float


def run_here(
    shards: Sequence[Shard], parameters: Parameters, classes: int | None, advance: Advance | None
) -> Iterator[Outcome]:
    """Score shards one after another in this process, on as many threads as the parameters say."""
    for shard in shards:
        try:
            yield shard, score_shard(shard, parameters, classes=classes, advance=advance)
        except InputError as error:
            yield shard, error


def classes_of(shards: Sequence[Shard]) -> int:
    """Return the classes of the first shard that opens; raise what is wrong with the first if none does."""
    first: InputError | None = None
    for shard in shards:
        try:
            return open_operands(shard)[2]
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def score_files(
    logits: Name | Sequence[Name],
    labels: Name | None = None,
    out: Name | None = None,
    *,
    reference: Name | None = None,
    weights: Name | None = None,
    stats: Sequence[str] | None = None,
    given: str | tuple[str, str] = "logits",
    temperature: float | tuple[float, float] = 1.0,
    k: int = 5,
    key: str | None = None,
    form: str | None = None,
    resume: bool = False,
    strict: bool = False,
    complete: bool = True,
    chunk: int | None = None,
    n_threads: int | None = None,
    progress: Callable[[int], Advance] | None = None,
    complain: Callable[[str, str], None] | None = None,
    written_after: Sequence[Name] = (),
    runner: Runner = run_here,
) -> Run:
    """Score files of logits row by row, in constant memory, and return what they amount to.

    Parameters
    ----------
    logits
        A file, or a folder, a pattern or several files: then each file is a shard, in the order of their names.
        ``.npy``, ``.npz``, ``.safetensors``, Parquet (``.parquet``, ``.pq``) and Arrow (``.arrow``, ``.feather``,
        ``.ipc``, ``.arrows``); rows x classes of float16, bfloat16, float32 or float64; larger than memory or not.
    labels, reference, weights
        The true classes, the reference model's logits, and the weights of the rows in the mean loss: a file,
        ``FILE:KEY``, a folder with a file for each shard by its name, or a key or column of the files of logits. A
        reference of one row stands for all; weights are finite numbers >= 0, and a row of weight 0 is absent.
    out
        Where the scores go, one row for each row, in their order, in the format of the name's ending: ``.parquet``,
        ``.arrow`` or ``.feather``, ``.npz``, ``.csv``. For shards a folder, in which each gets a file of its name, and
        ``manifest.json`` tells of all. A result appears, or is replaced, only when complete.
    stats, given, temperature, k
        As `fastkl.score` takes them.
    key
        The key, the column, or the pattern of columns (one for each class) of the logits in their files.
    form
        The format of the results in a folder: parquet, arrow, npz or csv.
    resume
        Skip what an earlier run with the same parameters and version has done, if its input is the same (size, and time
        or checksum) and its result is there (checksum); do the rest. A single result has its manifest beside it then.
    strict
        Raise at the first shard that cannot be scored, instead of setting it aside.
    complete
        Compute all that the summary tells, whatever the stats. Else it tells what can be told from them; of None, all
        but the Brier score, for which each row's exponentials are computed once more.
    chunk
        Rows at a time; by default as many as are 4 to 32 MiB, as suits the format. No result depends on it.
    n_threads
        Threads; None for as many as OpenMP and the CPU affinity allow. No result depends on it.
    progress
        Called with the bytes to read; returns what is called with rows and bytes as they are done.
    complain
        Called with the name of each shard that is set aside, and the reason.
    written_after
        Files that the caller will write then: one that cannot be, or is an input or a result, is refused before.
    runner
        What runs the shards: `run_here`, or a function that runs them elsewhere.

    Returns
    -------
    Run

    Raises
    ------
    InputError
        If a single file, or with ``strict`` any shard, or all shards cannot be scored.
    OSError
        If a result cannot be written. What is done stays done.
    ValueError, TypeError
        For statistics and options that `fastkl.score` does not take.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from fastkl.batch import score_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/logits.npy", np.log([[0.9, 0.1], [0.5, 0.5]]))
    ...     np.save(f"{folder}/labels.npy", np.array([0, 1]))
    ...     summary = score_files(f"{folder}/logits.npy", f"{folder}/labels.npy").summary
    >>> summary.rows, summary.right, round(summary.mean_loss, 4)
    (2, 1, 0.3993)
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a positive number of rows, not {chunk}")
    if resume and out is None:
        raise ValueError("resume needs out: without results there is nothing to go on from")
    inputs = [logits] if isinstance(logits, (str, os.PathLike)) else list(logits)
    texts = [None if value is None else os.fspath(value) for value in (labels, reference, weights)]
    shards, folder = find_shards(inputs, texts[0], texts[1], key, out, form, texts[2])
    parameters = Parameters(
        None if stats is None else tuple(stats), given, temperature, k, complete, resume or folder is not None, chunk,
        n_threads,
    )  # fmt: skip
    parameters.check(labels is not None, reference is not None, weights is not None)
    notes = None
    if parameters.checksums and out is not None:
        notes = folder / "manifest.json" if folder else Path(f"{os.fspath(out)}.manifest.json")
    check_apart(shards, [*([notes] if notes else []), *written_after])
    places = [] if folder is None else [folder, *(Path(shard.out).parent for shard in shards if shard.out)]
    for path in map(Path, written_after):
        if path.parent not in places:
            target(path)

    started = time.perf_counter()
    with ExitStack() as stack:
        manifest = None
        if folder is not None:
            for place in dict.fromkeys(places):
                place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        elif out is not None:
            target(out)
        if notes is not None:
            _, _, counted = parameters.columns(labels is not None, reference is not None, weights is not None, True)
            head = {
                "fastkl": fk.__version__,
                "tier": "base" if fk.build_info()["tier"] == "base" else "fma",  # which differ in last digits
                "parameters": {
                    "logits": key, "labels": texts[0], "reference": texts[1], "weights": texts[2],
                    "stats": stats if stats is None else list(stats), "given": given, "temperature": temperature,
                    "k": k, "totals": counted, "format": form or ("parquet" if folder else form_of(out or "")),
                },
            }  # fmt: skip
            manifest = Manifest(notes, head)
        noted = manifest.load() if manifest is not None and resume else {}
        done: set[str] = set()
        whole: Totals | None = None
        for shard in shards:
            entry = noted.get(shard.name, {})
            if verified(entry, shard.inputs, shard.out or "") and (totals := totals_of(entry)) is not None:
                whole = added(whole, totals)
                done.add(shard.name)
                if manifest is not None:
                    manifest.shards[shard.name] = entry
        left = [shard for shard in shards if shard.name not in done]
        if manifest is not None:
            manifest.save()
            stack.callback(save_quietly, manifest)

        rows, size, set_aside = 0, 0, []
        if left:
            classes = whole.classes if whole is not None else classes_of(left) if len(shards) > 1 else None
            advance = progress(sum(file_size(path) for shard in left for path in shard.inputs)) if progress else None
            for shard, outcome in runner(left, parameters, classes, advance):
                if isinstance(outcome, InputError):
                    if manifest is not None:
                        manifest.put(shard.name, {"error": str(outcome)})
                    if strict or len(shards) == 1:
                        raise outcome
                    set_aside.append((shard.name, str(outcome)))
                    if complain is not None:
                        complain(shard.name, str(outcome))
                    continue
                rows += outcome.rows
                size += sum(file_size(path) for path in shard.inputs)
                if manifest is not None:
                    manifest.put(shard.name, {**outcome.entry, "totals": packed(outcome.totals.to_json())})
                whole = added(whole, outcome.totals)
        if manifest is not None:
            manifest.save()
    if whole is None:
        raise InputError(f"none of {len(shards)} shards could be scored; the first: {set_aside[0][1]}")
    return Run(
        summary=whole.summary(),
        shards=len(shards) - len(set_aside),
        skipped=len(done),
        set_aside=tuple(sorted(set_aside)),
        rows=rows,
        bytes=size,
        seconds=time.perf_counter() - started,
    )


def added(whole: Totals | None, part: Totals) -> Totals:
    """Return totals with a part more."""
    if whole is None:
        return part
    whole.merge(part)
    return whole


def totals_of(entry: Mapping[str, Any]) -> Totals | None:
    """Return the totals that the manifest holds of a shard; None if they cannot be read."""
    try:
        return Totals.from_json(unpacked(entry["totals"]))
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def file_size(path: str) -> int:
    """Return a file's size; 0 if it is gone, which is told where it is read."""
    with suppress(OSError):
        return os.path.getsize(path)
    return 0


def save_quietly(manifest: Manifest) -> None:
    """Save what is done when the run ends early; if even that fails, the reason for the end is the better message."""
    with suppress(OSError):
        manifest.save()
