"""Readers of Parquet and Arrow IPC (Feather) files, by pyarrow.

Logits and references are a column of lists of one length (List, LargeList, FixedSizeList, FixedShapeTensor), whose
numbers are read where they lie, or one column for each class.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastkl.batch.readers import MAPPED_BYTES, PER_ROW, Array, InputError, MappedFile, Source, checked, held

try:
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet
except ImportError as missing:
    raise InputError("Parquet and Arrow files need pyarrow: pip install 'fastkl[score]'") from missing

#: What a Parquet file's columns are read ahead, all together. A whole row group may be larger than memory.
READ_AHEAD = 16 * 2**20

#: From so many columns on threads unpack them side by side: then one row group is in memory at a time, not one for each
#: thread. And a batch has more rows: each costs time for each of its columns.
MANY_COLUMNS = 64
COLUMNS_BYTES = 16 * 2**20


@contextmanager
def refusing(path: str, what: str) -> Iterator[None]:
    """Turn what pyarrow says of a broken file into an error that names the file."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable {what} ({reason})") from error


@contextmanager
def opened(path: str, **how: Any) -> Iterator[Any]:
    """Open a Parquet file. pyarrow takes names in UTF-8 only; by its number a file of any name is found."""
    handle = None
    try:
        try:
            name = path.encode("utf-8").decode()
        except UnicodeEncodeError:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            name = f"/proc/self/fd/{handle}"
        with pa.parquet.ParquetFile(name, **how) as table:
            yield table
    finally:
        if handle is not None:
            os.close(handle)


def storage(kind: Any) -> Any:
    """Return the type that an extension type is stored as."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def is_list(kind: Any) -> bool:
    """Whether a column of this type holds a row's numbers in each cell."""
    kind = storage(kind)
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


class Columns:
    """Which columns of a table play which role, and their numbers as arrays."""

    def __init__(self, path: str, schema: Any, keys: Mapping[str, str | None]) -> None:
        self.path = path
        self._kinds = {field.name: field.type for field in schema}
        if len(self._kinds) < len(schema):
            raise InputError(f"{path}: has two columns of one name")
        self._schema = schema
        self.names = {role: self._choose(role, key, keys) for role, key in keys.items()}

    def _choose(self, role: str, key: str | None, keys: Mapping[str, str | None]) -> list[str]:
        """Return the column of lists, or the columns of single numbers, that a role has."""
        kinds = self._kinds
        if key is not None:
            names = [key] if key in kinds else [name for name in kinds if fnmatch.fnmatchcase(name, key)]
            if not names:
                raise InputError(f"{self.path}: holds no column {key!r} for the {role}; it holds {held(kinds)}")
        elif role in kinds:
            names = [role]
        else:
            others = set(keys.values())
            free = {name: kind for name, kind in kinds.items() if name not in others}
            if role in PER_ROW:
                names = [name for name, kind in free.items() if self._fits(role, kind, 1)]
            else:
                # Many columns of numbers are one for each class, but only if nothing better is there.
                names = [name for name, kind in free.items() if is_list(kind)]
                if not names and role == "logits":
                    names = [name for name, kind in free.items() if pa.types.is_floating(kind)]
                    return names or self._refuse(role)
            if len(names) != 1:
                self._refuse(role)
        wrong = [name for name in names if not self._fits(role, kinds[name], len(names))]
        if wrong:
            wanted = PER_ROW[role][1] if role in PER_ROW else "lists of floats, or floats, one column for each class"
            raise InputError(f"{self.path}: column {wrong[0]!r} holds {kinds[wrong[0]]}; {role} are {wanted}")
        return names

    def _refuse(self, role: str) -> list[str]:
        option = "--logits COLUMN" if role == "logits" else f"--{role} FILE:COLUMN"
        raise InputError(f"{self.path}: which of {held(self._kinds)} are the {role}? Name one ({option})")

    @staticmethod
    def _fits(role: str, kind: Any, columns: int) -> bool:
        if role in PER_ROW:
            floats = role == "weights" and pa.types.is_floating(kind)
            return columns == 1 and bool(pa.types.is_integer(kind) or floats)
        if isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) != 1:
            return False
        return (columns == 1 and is_list(kind)) or pa.types.is_floating(kind)

    def head(self, role: str, first: Callable[[], Any]) -> tuple[int, np.dtype[Any]]:
        """Return classes and type of a role; where the lists are of any length, a batch of rows tells."""
        names = self.names[role]
        kind = storage(self._kinds[names[0]])
        if role in PER_ROW:
            return 0, np.dtype(kind.to_pandas_dtype())
        if not is_list(kind):
            return len(names), np.result_type(*(self._kinds[name].to_pandas_dtype() for name in names))
        dtype = np.dtype(kind.value_type.to_pandas_dtype())
        if pa.types.is_fixed_size_list(kind):
            return kind.list_size, dtype
        batch = first()
        if batch is None or not batch.num_rows:
            raise InputError(f"{self.path}: has no rows, and its type does not tell the number of classes")
        row = batch.column(names[0]).slice(0, 1)
        row.validate(full=True)  # pyarrow ends the process where it follows a broken offset
        self._no_nulls(names[0], row, 1, 0)
        return len(row[0]), dtype

    def arrays(self, batch: Any, shapes: Mapping[str, tuple[int, Any]], first_row: int) -> dict[str, Array]:
        """Return the numbers of a record batch by role, without a copy where they are lists."""
        batch.validate(full=True)
        found: dict[str, Array] = {}
        for role, names in self.names.items():
            classes, dtype = shapes[role]
            if role in PER_ROW or is_list(self._kinds[names[0]]):
                column = batch.column(names[0])
                if isinstance(column, pa.ExtensionArray):
                    column = column.storage
                found[role] = self._numbers(names[0], column, 0 if role in PER_ROW else classes, first_row)
                continue
            found[role] = self._stacked(batch.select(names), first_row).astype(dtype, copy=False)
        return found

    def _stacked(self, columns: Any, first_row: int) -> Array:
        """Return columns of single floats as rows of an array, which lie as the columns do."""
        if not len(columns):
            return np.empty((0, columns.num_columns))
        try:
            rows: Array = columns.to_tensor(row_major=False).to_numpy()
        except pa.ArrowException:
            for name, column in zip(columns.schema.names, columns.columns, strict=True):
                self._no_nulls(name, column, 1, first_row)
            raise
        return rows.reshape(len(columns), columns.num_columns)

    def _numbers(self, name: str, column: Any, classes: int, first_row: int) -> Array:
        """Return a column of single numbers, or one of lists of equally many floats as rows of an array."""
        self._no_nulls(name, column, 1, first_row)
        if not classes:
            numbers: Array = column.to_numpy(zero_copy_only=False)
            return numbers
        if not pa.types.is_fixed_size_list(column.type):
            lengths = np.diff(column.offsets.to_numpy())
            if (lengths != classes).any():
                row = int(np.argmax(lengths != classes))
                raise InputError(
                    f"{self.path}: row {first_row + row} of {name!r} has {lengths[row]} numbers; "
                    f"the rows before it have {classes}"
                )
        values = column.flatten()
        self._no_nulls(name, values, classes, first_row)
        rows: Array = values.to_numpy(zero_copy_only=True).reshape(-1, classes)
        return rows

    def _no_nulls(self, name: str, column: Any, classes: int, first_row: int) -> None:
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // classes
            raise InputError(f"{self.path}: row {first_row + row} of {name!r} holds a null")


class ParquetSource(Source):
    """A Parquet file: a row group is a span, unpacked a batch at a time; of many columns all groups are one."""

    def __init__(self, path: str, keys: Mapping[str, str | None]) -> None:
        self.path = path
        if not os.path.isfile(path) and os.path.exists(path):
            raise InputError(f"{path}: not a regular file")
        with refusing(path, "Parquet file"), opened(path) as table:
            self._columns = Columns(path, table.schema_arrow, keys)
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
            self._names = list(dict.fromkeys(name for names in self._columns.names.values() for name in names))
            leaves = len(self._names)
            self._buffer = min(max(READ_AHEAD // leaves, 2**14), 2**20)
            starts = np.cumsum([0, *sizes]).tolist()
            rows = starts.pop()

            def first() -> Any:  # only where the type does not tell: it unpacks a page of each column
                return next(table.iter_batches(batch_size=1, columns=self._names, use_threads=False), None)

            heads = {role: self._columns.head(role, first) for role in keys}
        shapes = {role: ((rows,) if role in PER_ROW else (rows, n), dtype) for role, (n, dtype) in heads.items()}
        self.rows, self.shapes = checked(path, shapes)
        self._groups = [(i, start, start + n) for i, (start, n) in enumerate(zip(starts, sizes, strict=True)) if n]
        self.spans = [(start, stop) for _, start, stop in self._groups] or [(0, 0)]
        self._side_by_side = False
        if leaves >= MANY_COLUMNS:
            self.chunk_bytes = COLUMNS_BYTES

    def unpack_by(self, threads: int) -> None:
        # Arrow's threads are those of its process: it takes them all, or none.
        if len(self._names) >= MANY_COLUMNS and threads >= pa.cpu_count() > 1:
            self._side_by_side = True
            self.spans = [(0, self.rows)]

    def batches(self, start: int, stop: int, step: int) -> Generator[dict[str, Array], None, None]:
        # Pages are read as they are needed: a row group need not fit into memory.
        with (
            refusing(self.path, "Parquet file"),
            opened(self.path, pre_buffer=False, buffer_size=self._buffer, page_checksum_verification=True) as table,
        ):
            for group, first, last in self._groups:
                if first >= stop or last <= start:
                    continue
                row = first
                for batch in table.iter_batches(
                    batch_size=step, row_groups=[group], columns=self._names, use_threads=self._side_by_side
                ):
                    begin, row = row, row + len(batch)
                    if row > start and begin < stop:
                        cut = max(start - begin, 0)
                        part = batch.slice(cut, min(row, stop) - begin - cut)
                        yield self._columns.arrays(part, self.shapes, begin + cut)
                if row != last:
                    raise InputError(f"{self.path}: a row group of {last - first} rows ends after {row - first}")


def open_parquet(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open a Parquet file."""
    return ParquetSource(path, keys)


class ArrowSource(Source):
    """An Arrow IPC file or stream: mapped, and read where it lies if it is not compressed."""

    def __init__(self, path: str, keys: Mapping[str, str | None]) -> None:
        self.path = path
        file = MappedFile(path)
        self._whole = file
        with refusing(path, "Arrow file"):
            reader = self._reader()
            self._columns = Columns(path, reader.schema, keys)
            self._names = list(dict.fromkeys(name for names in self._columns.names.values() for name in names))
            first = next(self._read(), None)
            heads = {role: self._columns.head(role, lambda: first) for role in keys}
            if first is None or all(map(self._lies_in_file, first.columns)):
                # Only the batches' descriptions are read here, and kept.
                self._batches = list(self._read())
                rows = sum(map(len, self._batches))
                self.file = file
                self.chunk_bytes = MAPPED_BYTES
            else:
                self._batches = []
                rows = sum(map(len, self._read()))
                self.spans = [(0, rows)]
        shapes = {role: ((rows,) if role in PER_ROW else (rows, n), dtype) for role, (n, dtype) in heads.items()}
        self.rows, self.shapes = checked(path, shapes)

    def _reader(self) -> Any:
        whole = pa.py_buffer(self._whole.watched)
        if self._whole.bytes[:6].tobytes() == b"ARROW1":
            return pa.ipc.open_file(pa.BufferReader(whole))
        return pa.ipc.open_stream(pa.BufferReader(whole))

    def _read(self) -> Iterator[Any]:
        reader = self._reader()
        whole = isinstance(reader, pa.ipc.RecordBatchFileReader)
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader:
            used = batch.select(self._names)
            used.validate()  # columns shorter than they say must not be cut into slices
            yield used

    def _lies_in_file(self, column: Any) -> bool:
        first = self._whole.address
        buffers = [buffer for buffer in column.buffers() if buffer is not None and buffer.size]
        return all(first <= buffer.address <= first + len(self._whole.bytes) for buffer in buffers)

    def batches(self, start: int, stop: int, step: int) -> Generator[dict[str, Array], None, None]:
        with refusing(self.path, "Arrow file"):
            row = 0
            for batch in self._batches if self.file is not None else self._read():
                begin, row = row, row + len(batch)
                for first in range(max(start, begin), min(stop, row), step):
                    part = batch.slice(first - begin, min(step, min(stop, row) - first))
                    yield self._columns.arrays(part, self.shapes, first)
                if row >= stop:
                    break

    def check(self) -> None:
        self._whole.check()


def open_arrow(path: str, keys: Mapping[str, str | None]) -> Source:
    """Open an Arrow IPC file (which Feather is) or stream."""
    return ArrowSource(path, keys)
