"""Shards: which files a run reads, in which order, and where the result of each goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastkl.batch.readers import FORMATS, PER_ROW, InputError, Operand
from fastkl.batch.writers import form_of

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Shard:
    """One file of logits, with where its labels and reference are and where its scores go. It can be pickled.

    ``name`` is what the shard is called in messages and in the manifest: its path within the folder it was found in.
    """

    name: str
    operands: dict[str, Operand]
    out: str | None = None

    @property
    def inputs(self) -> list[str]:
        """The files that are read, each once."""
        return list(dict.fromkeys(operand.path for operand in self.operands.values()))


def readable(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that a reader takes, at any depth, but no hidden ones."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in FORMATS and not any(part[0] == "." for part in path.relative_to(folder).parts):
            yield path


def found(inputs: Sequence[Name]) -> tuple[list[tuple[str, Path]], bool]:
    """Return files by name, sorted by name, and whether they are shards (a folder, a pattern, or several files)."""
    files: list[tuple[str, Path]] = []
    many = len(inputs) > 1
    for one in [os.fspath(name) for name in inputs]:
        if not one:
            raise InputError("an INPUT without a name")    # which would be the folder that this process is in
        path = Path(one)
        if path.is_dir():
            inside = [(str(file.relative_to(path)), file) for file in readable(path)]
            if not inside:
                raise InputError(f"{one}: holds no file that ends in one of {', '.join(sorted(FORMATS))}")
            files += inside
            many = True
        elif not path.exists() and glob.has_magic(one):
            paths = sorted(p for p in map(Path, glob.iglob(one, recursive=True)) if p.is_file())
            # Links may lead to a file again, those of a folder to one above it dozens of times.
            matched = list({os.path.realpath(p): p for p in reversed(paths)}.values())[::-1]
            if not matched:
                raise InputError(f"{one}: no file matches")
            top = Path(os.path.commonpath([p.parent for p in matched]))
            files += [(str(p.relative_to(top)), p) for p in matched]
            many = True
        else:
            files.append((path.name, path))
    files.sort(key=lambda file: (Path(file[0]).parts, str(file[1])))
    return files, many


def operand(role: str, text: str | None, shard: tuple[str, Path], many: bool) -> Operand | None:
    """Return where a shard's labels, weights or reference are.

    The text is KEY (in its own file), FILE, FILE:KEY, FOLDER or FOLDER:KEY. In a folder it is the file of the shard's
    name, with any ending.
    """
    if text is None:
        return None
    name, own = shard
    where, key = text, None
    if not os.path.exists(where) and ":" in where:
        before, _, after = where.rpartition(":")
        if os.path.exists(before):
            where, key = before, after
    path = Path(where)
    if path.is_dir():
        stem = path / Path(name).with_suffix("")
        same = sorted(stem.with_name(stem.name + ending) for ending in FORMATS)
        same = [candidate for candidate in same if candidate.is_file()]
        if len(same) != 1:
            raise InputError(f"{own}: {len(same) or 'no'} files of {role} called {stem.name}.* are in {stem.parent}")
        return Operand(str(same[0]), key)
    if path.exists():
        if many and role in PER_ROW:
            raise InputError(f"{where}: one file of {role} for several shards; give a folder with one for each")
        return Operand(where, key)
    if path.suffix.lower() in FORMATS or os.sep in where:
        raise FileNotFoundError(2, "No such file or directory", where)
    return Operand(str(own), text)


def find_shards(
    inputs: Sequence[Name],
    labels: str | None = None,
    reference: str | None = None,
    logits: str | None = None,
    out: Name | None = None,
    form: str | None = None,
    weights: str | None = None,
) -> tuple[list[Shard], Path | None]:
    """Return the shards of a run, sorted by name, and the folder of their results if there are several."""
    files, many = found(inputs)
    others = {"labels": labels, "weights": weights, "reference": reference}
    folder = None
    if out is not None and (many or os.path.isdir(out) or os.fspath(out).endswith(os.sep)):
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; the results of several shards go into a folder")
        for one in inputs:
            if Path(one).is_dir() and folder.resolve().is_relative_to(Path(one).resolve()):
                raise InputError(f"{folder}: is inside the input {os.fspath(one)}, and would be read as input")
    elif out is not None:
        if form is not None and form != form_of(out):
            raise InputError(f"{os.fspath(out)}: its ending asks for {form_of(out)}, --format for {form}")
        form_of(out)

    shards, taken = [], dict[str, str]()
    for name, path in files:
        operands = {"logits": Operand(str(path), logits)}
        for role, text in others.items():
            found_there = operand(role, text, (name, path), many)
            if found_there is not None:
                operands[role] = found_there
        goes = None if out is None else os.fspath(out)
        if folder is not None:
            goes = str((folder / name).with_suffix(f".{form or 'parquet'}"))
            if goes in taken:
                raise InputError(f"{path} and {taken[goes]}: the results of both would be called {goes}")
            taken[goes] = str(path)
        shards.append(Shard(name, operands, goes))
    return shards, folder


def check_apart(shards: Sequence[Shard], others: Sequence[Name]) -> None:
    """Raise if what will be written, the results and other files, is an input or is written twice."""

    def identity(path: str) -> tuple[int, int] | None:
        with suppress(OSError):
            found = os.stat(path)
            return found.st_dev, found.st_ino
        return None

    read = {identity(path) for shard in shards for path in shard.inputs} - {None}
    written = set()
    for path in [*(shard.out for shard in shards if shard.out is not None), *(os.fspath(other) for other in others)]:
        if identity(path) in read:
            raise InputError(f"{path}: is also an input, and would be replaced")
        place = os.path.realpath(path)
        if place in written:
            raise InputError(f"{path}: would be written twice")
        written.add(place)
