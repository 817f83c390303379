"""Readers: a file is opened, checked once, and handed out in chunks of rows.

A ``Source`` is one open file and the arrays in it that a run needs, each under its role: logits, labels, weights,
reference. ``.npy``, stored ``.npz`` members, safetensors and uncompressed Arrow files are memory-mapped: a chunk is
read by the kernels themselves, with no copy in between, and any chunk at any time. What is compressed comes in order,
span by span.

A mapping has two dangers. A file cut short while it is read would kill the process: ``Watched`` turns that into an
error, at no cost. And pages once touched count as this process' memory: ``release`` gives a chunk's pages back.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import stat
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastkl._kernels.mapped import Watched

Array = npt.NDArray[Any]

#: The endings of the files that are read, and what reads them.
FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


#: The roles that have one number a row in place of one for each class: the kinds of types that they take, in words too.
PER_ROW = {"labels": ("iu", "integers"), "weights": ("fiu", "floats or integers")}

#: The bytes of a batch of rows that suits: what is unpacked should be in the cache still when it is scored; pages that
#: are mapped are taken and given back at less cost in larger ones.
UNPACKED_BYTES = 4 * 2**20
MAPPED_BYTES = 32 * 2**20


class InputError(Exception):
    """A file cannot be scored; the message is one line that names the file and says why."""


class Operand(NamedTuple):
    """Where an array is: in which file, and under which key or column there (None: the one that it must be)."""

    path: str
    key: str | None = None


class Source(ABC):
    """One open file: arrays of equally many rows, each under its role.

    Attributes
    ----------
    path
        The file.
    rows
        Rows of each array, but for a reference of one row, which stands for all.
    shapes
        (classes, dtype) of the logits and the reference by role; labels and weights have (0, dtype).
    spans
        Ranges of rows that can be read independently, in order, or None where any range can.
    chunk_bytes
        The size of a batch that suits.
    file
        The mapping that the arrays are views of, if they are.
    """

    path: str
    rows: int
    shapes: dict[str, tuple[int, np.dtype[Any]]]
    spans: list[tuple[int, int]] | None = None
    chunk_bytes: int = UNPACKED_BYTES
    file: MappedFile | None = None

    @abstractmethod
    def batches(self, start: int, stop: int, step: int) -> Generator[dict[str, Array], None, None]:
        """Yield rows ``start`` to ``stop`` in order, at most ``step`` at a time."""

    def unpack_by(self, threads: int) -> None:  # noqa: B027 (most are unpacked by one)
        """Let so many threads unpack a batch, if that pays; the source has one span then."""

    def check(self) -> None:
        """Raise if the file was cut short since it was opened: what was read may be zeros that it never held."""
        if self.file is not None:
            self.file.check()

    def fetch(self, batch: Mapping[str, Array]) -> None:
        """Have the pages of some rows mapped, where they lie together: of a few rows in columns all would be."""
        for file, array in self._mapped(batch):
            if array.flags.c_contiguous and (place := file.place(array)) is not None:
                file.watched.fetch(*place)

    def release(self, batch: Mapping[str, Array]) -> None:
        """Give back the memory of rows that are done with."""
        for file, array in self._mapped(batch):
            if (place := file.place(array)) is not None:
                file.watched.give_back(*place)

    def _mapped(self, batch: Mapping[str, Array]) -> Iterator[tuple[MappedFile, Array]]:
        return ((self.file, array) for array in batch.values()) if self.file is not None else iter(())


class MappedFile:
    """A file mapped into memory, watched over, with its size and time as they were when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # a pipe must not block
            self.stat = os.fstat(file.fileno())
            if not stat.S_ISREG(self.stat.st_mode):
                raise InputError(f"{path}: not a regular file, so it cannot be memory-mapped")
            if not self.stat.st_size:
                raise InputError(f"{path}: not a readable {Path(path).suffix} file (it is empty)")
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.watched = Watched(self._mapping)
        self.bytes: npt.NDArray[np.uint8] = np.asarray(self.watched).view(np.uint8)
        self.address = self.bytes.__array_interface__["data"][0]

    def check(self) -> None:
        """Raise if the file has been cut short, written to or replaced under us."""
        # Behind the end, but on its last page, a shortened file reads as zeros without a signal: its size tells.
        if self.watched.lost or self._mapping.size() < len(self.bytes):
            raise InputError(f"{self.path}: the file was cut short while it was being read")

    def place(self, array: Array) -> tuple[int, int] | None:
        """Return where in the file an array's bytes lie, or None if it is no view of the file."""
        reach = [step * (length - 1) for step, length in zip(array.strides, array.shape, strict=True)]
        first = array.__array_interface__["data"][0] - self.address + sum(min(r, 0) for r in reach)
        last = first + sum(abs(r) for r in reach) + array.itemsize
        return (first, last) if array.size and first >= 0 and last <= len(self.bytes) else None


class ArraySource(Source):
    """Views of a mapped file: any rows at any time, without a copy."""

    chunk_bytes = MAPPED_BYTES

    def __init__(self, file: MappedFile, arrays: Mapping[str, Array]) -> None:
        self.path, self.file = file.path, file
        self.rows, self.shapes = checked(file.path, {role: (a.shape, a.dtype) for role, a in arrays.items()})
        self._arrays = {role: a.reshape(1, -1) if is_one_row(role, a.shape) else a for role, a in arrays.items()}

    def batches(self, start: int, stop: int, step: int) -> Generator[dict[str, Array], None, None]:
        for first in range(start, stop, step):
            rows = slice(first, min(first + step, stop))
            yield {r: a if repeats(r, len(a), self.rows) else a[rows] for r, a in self._arrays.items()}


def is_one_row(role: str, shape: tuple[int, ...]) -> bool:
    """Whether an array is a reference without an axis of rows."""
    return role == "reference" and len(shape) == 1


def repeats(role: str, length: int, rows: int) -> bool:
    """Whether an array is a reference of one row, which every row is compared with."""
    return role == "reference" and length == 1 != rows


def checked(
    path: str, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> tuple[int, dict[str, tuple[int, np.dtype[Any]]]]:
    """Check the shapes and types of the arrays of one file; return their rows, and classes and type by role."""
    shapes = {}
    rows: dict[str, int] = {}
    for role, (shape, dtype) in arrays.items():
        if role in PER_ROW:
            kinds, in_words = PER_ROW[role]
            if dtype.kind not in kinds:
                raise InputError(f"{path}: holds {dtype}; {role} are {in_words}")
            if len(shape) != 1:
                raise InputError(f"{path}: has shape {shape}, but {role} are 1-d, one for each row")
            shapes[role], rows[role] = (0, dtype), shape[0]
            continue
        if (dtype.kind != "f" or dtype.itemsize > 8) and dtype.name != "bfloat16":
            raise InputError(f"{path}: holds {dtype}; {role} are float16, bfloat16, float32 or float64")
        if is_one_row(role, shape):
            shape = (1, *shape)
        if len(shape) != 2:
            raise InputError(f"{path}: has shape {shape}; {role} are 2-d, rows x classes")
        if shape[1] == 0:
            raise InputError(f"{path}: has shape {shape}, so no classes")
        shapes[role], rows[role] = (shape[1], dtype), shape[0]
    count = rows.get("logits", next(iter(rows.values())))
    for role, number in rows.items():
        if number != count and not (role == "reference" and number == 1):
            raise InputError(f"{path}: has {count} rows of logits, but {number} of {role}")
    return count, shapes


def npy_array(file: MappedFile, first: int, last: int, what: str) -> Array:
    """Return the array of the ``.npy`` file that is bytes ``first`` to ``last`` of a mapped one, without a copy."""
    header = io.BytesIO(file.bytes[first : min(last, first + 2**20)].tobytes())
    shape, dtype, fortran = npy_header(header, file.path, what)
    place = first + header.tell()
    size = math.prod(shape) * dtype.itemsize
    if place + size > last:
        raise InputError(
            f"{file.path}: not a readable {what} (cut short: {size} bytes of numbers are wanted, "
            f"{max(0, last - place)} are there)"
        )
    return np.ndarray(shape, dtype, file.bytes, place, order="F" if fortran else "C")


def npy_header(file: Any, path: str, what: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the header of an ``.npy`` file. Pickled objects are refused: reading one would run code that it holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflowing shape is only warned of
            version = np.lib.format.read_magic(file)
            # Version 3.0 differs from 2.0 only in the encoding of the names of fields, which nothing here has.
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            if any(length < 0 for length in shape):
                raise ValueError(f"its shape is {shape}")
            np.empty(0, dtype)  # some types can be named, but not made
    except Exception as error:  # whatever NumPy's parser makes of a broken header: there is no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable {what} ({reason})") from error
    return shape, dtype, fortran


def open_npy(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open an ``.npy`` file, which is one array."""
    for role, key in keys.items():
        if key is not None:
            raise InputError(f"{path}: an .npy file is one array, and has no {key!r} for the {role}")
    if len(keys) > 1:
        raise InputError(f"{path}: an .npy file is one array, not {' and '.join(keys)}")
    file = MappedFile(path)
    return ArraySource(file, {role: npy_array(file, 0, len(file.bytes), ".npy file") for role in keys})


class Member(NamedTuple):
    """One array of an ``.npz`` file, as its header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def choose(
    path: str, keys: Mapping[str, str | None], shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> dict[str, str]:
    """Choose the key for each role: the one asked for, else the role's own name, else the only array that fits."""
    chosen = {}
    for role, key in keys.items():
        if key is None:
            ndim, kinds = (1, PER_ROW[role][0]) if role in PER_ROW else (2, "fV")
            fits = [k for k, (shape, dtype) in shapes.items() if len(shape) == ndim and dtype.kind in kinds]
            fits = [k for k in fits if k not in keys.values()]
            key = role if role in shapes else fits[0] if len(fits) == 1 else None
            if key is None:
                option = "--logits KEY" if role == "logits" else f"--{role} FILE:KEY"
                raise InputError(f"{path}: which of {held(shapes)} are the {role}? Name one ({option})")
        if key not in shapes:
            raise InputError(f"{path}: holds no {key!r} for the {role}; it holds {held(shapes)}")
        chosen[role] = key
    return chosen


def held(names: Mapping[str, Any]) -> str:
    """Return some names as text."""
    listed = [repr(name) for name in names]
    return ", ".join(listed if len(listed) <= 8 else [*listed[:7], f"... ({len(listed)} in all)"]) or "nothing"


def open_npz(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open an ``.npz`` file. Stored members are mapped; compressed ones are unpacked as they are read."""
    file = MappedFile(path)
    what = ".npz file"
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError) as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from error
    heads: dict[str, Member] = {}
    with archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        for key, entry in entries.items():
            try:
                with archive.open(entry) as member:
                    heads[key] = Member(entry.filename, *npy_header(member, path, f"{what}: {entry.filename}"))
            except InputError:
                if key in keys.values():
                    raise
                continue  # a member of another kind, which nobody asks for
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError) as error:
                raise InputError(f"{path}: not a readable {what} ({entry.filename}: {error})") from error
    chosen = choose(path, keys, {key: (head.shape, head.dtype) for key, head in heads.items()})
    if any(entries[key].compress_type != zipfile.ZIP_STORED for key in chosen.values()):
        return CompressedNpz(path, {role: heads[key] for role, key in chosen.items()})
    arrays = {}
    for role, key in chosen.items():
        first = entries[key].header_offset
        local = file.bytes[first : first + 30].tobytes()
        if len(local) < 30 or local[:4] != b"PK\3\4":
            raise InputError(f"{path}: not a readable {what} ({entries[key].filename} is not where it should be)")
        first += 30 + sum(struct.unpack("<HH", local[26:30]))  # its name and its extra field
        arrays[role] = npy_array(file, first, min(len(file.bytes), first + entries[key].file_size), what)
    return ArraySource(file, arrays)


class CompressedNpz(Source):
    """Members of an ``.npz`` file that are compressed: unpacked in order, a chunk at a time."""

    def __init__(self, path: str, members: Mapping[str, Member]) -> None:
        self.path = path
        self._members = members
        self.rows, self.shapes = checked(path, {role: (m.shape, m.dtype) for role, m in members.items()})
        self.spans = [(0, self.rows)]

    def batches(self, start: int, stop: int, step: int) -> Generator[dict[str, Array], None, None]:
        assert (start, stop) == (0, self.rows)
        try:
            with zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
                pieces = {
                    role: stack.enter_context(closing(self._pieces(archive, role, step))) for role in self._members
                }
                for _ in range(0, self.rows, step):
                    yield {role: next(piece) for role, piece in pieces.items()}
                for piece in pieces.values():
                    next(piece, None)  # to the end of the member, where its checksum is compared
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise InputError(f"{self.path}: not a readable .npz file ({error})") from error

    def _pieces(self, archive: zipfile.ZipFile, role: str, step: int) -> Generator[Array, None, None]:
        """Yield a member's rows; one in column-major order cannot be read by rows and is unpacked whole."""
        name, shape, dtype, fortran = self._members[role]
        shape = (1, *shape) if is_one_row(role, shape) else shape
        single = repeats(role, shape[0], self.rows)
        with archive.open(name) as member:
            npy_header(member, self.path, ".npz file")
            taken = max(shape[0], 1) if fortran or single else step
            for first in range(0, shape[0], taken):
                rows = min(taken, shape[0] - first)
                piece = np.empty((rows, *shape[1:]), dtype, order="F" if fortran else "C")
                fill(member, piece.reshape(-1, order="A").view(np.uint8).data, name)
                yield from (piece[i : i + step] for i in range(0, rows, step))
            if member.read(1):
                raise ValueError(f"{name} is longer than its header says")
            while single:
                yield piece


def fill(file: Any, buffer: memoryview, name: str) -> None:
    """Read a buffer full."""
    place = 0
    while place < len(buffer):
        read = file.readinto(buffer[place:])
        if not read:
            raise EOFError(f"{name} is cut short")
        place += read


#: The types of safetensors that logits or labels may have.
SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


def open_safetensors(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open a safetensors file: a length, a header of JSON, then the numbers.

    The library of that name copies what it hands out, knows no bfloat16 in NumPy, and maps the file by itself, so that
    a file cut short would kill the process; the format is simple enough to be read here.
    """
    file = MappedFile(path)
    arrays: dict[str, Array] = {}
    try:
        (length,) = struct.unpack("<Q", file.bytes[:8].tobytes())
        if length > min(len(file.bytes) - 8, 100_000_000):
            raise ValueError(f"its header would be {length} bytes long")
        header = json.loads(file.bytes[8 : 8 + length].tobytes())
        begin = 8 + length
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in SAFETENSORS:
                continue
            if entry["dtype"] == "BF16" and name not in keys.values() and not bfloat16_known():
                continue
            dtype = bfloat16(path) if entry["dtype"] == "BF16" else np.dtype(SAFETENSORS[entry["dtype"]])
            first, last = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
                raise ValueError(f"{name} has the shape {shape} and the place {first, last}")
            if math.prod(shape) * dtype.itemsize != last - first:
                raise ValueError(f"{name} has the shape {shape}, but {last - first} bytes")
            if begin + last > len(file.bytes):
                raise ValueError(f"cut short: {name} would end at byte {begin + last} of {len(file.bytes)}")
            arrays[name] = np.ndarray(shape, dtype, file.bytes, begin + first)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    chosen = choose(path, keys, {name: (a.shape, a.dtype) for name, a in arrays.items()})
    return ArraySource(file, {role: arrays[key] for role, key in chosen.items()})


def bfloat16_known() -> bool:
    """Whether NumPy can be told of bfloat16."""
    with suppress(ImportError):
        import ml_dtypes  # noqa: F401

        return True
    return False


def bfloat16(path: str) -> np.dtype[Any]:
    """Return NumPy's bfloat16, which a package of its own defines."""
    try:
        import ml_dtypes
    except ImportError:
        raise InputError(f"{path}: bfloat16 needs ml_dtypes: pip install 'fastkl[score]'") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def open_source(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open a file, find the arrays for the roles given, and check what can be checked before they are read."""
    form = FORMATS.get(Path(path).suffix.lower())
    if form is None:
        endings = ", ".join(sorted(FORMATS))
        raise InputError(f"{path}: a file that ends in none of {endings}")
    if form in ("parquet", "arrow"):
        from fastkl.batch import tables

        return tables.open_parquet(path, keys) if form == "parquet" else tables.open_arrow(path, keys)
    return {"npy": open_npy, "npz": open_npz, "safetensors": open_safetensors}[form](path, keys)
