"""Writers: results are complete under their name, or not there at all.

A result grows in a file that has no name, and gets one when it is complete and on disk. Whatever ends the process
before that, a full disk, Ctrl-C or SIGKILL, leaves nothing behind, and a result already there as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastkl.batch.readers import InputError

Columns = Mapping[str, npt.NDArray[Any]]

#: Rows that Arrow's formats get at a time. Fixed, so that no chunk size shows in the bytes of a file.
BLOCK_ROWS = 2**16


def target(path: str | os.PathLike[str]) -> Path:
    """Return where a result goes, and raise if it cannot go there: that is better told before the work than after."""
    # A symbolic link is followed: the rename is to replace the file, not the link.
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)}: is a folder")
    if place.exists() and not place.is_file():
        raise OSError(f"{os.fspath(path)}: is a device or pipe, and would be replaced")
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            return place
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name when the block ends well: complete, on disk, in one step."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Not tempfile's 0600: the results get the permissions that any new file of this user gets.
        try:
            handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
            nameless = True
        except OSError:  # a file system that has only files with names
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            nameless = False
        try:
            with open(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(handle)
                if nameless:
                    # With a folder's descriptor Python calls linkat, which follows the link that /proc has.
                    os.link(f"/proc/self/fd/{handle}", partial, src_dir_fd=folder)
            os.replace(partial, path)
        except BaseException:
            with suppress(FileNotFoundError):
                partial.unlink()
            raise
        os.fsync(folder)  # the new name is on disk too
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        os.close(folder)


class Writer(ABC):
    """A file of equally long columns, grown by ``append`` and put in its place when the block ends well."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = target(path)
        self._stack = ExitStack()

    def __enter__(self) -> Writer:
        return self

    @abstractmethod
    def append(self, columns: Columns) -> None:
        """Append the next rows: arrays of one length, with the same names and types at each call."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is not written yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            try:
                self._finish()
            finally:
                self._abandon()

    def _abandon(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of what would still write, whether or not that has finished."""


class NpzWriter(Writer):
    """An ``.npz`` file.

    Rows come in chunks, an ``.npz`` wants column after column: each column grows in a temporary file of its own, and
    the disk holds the results twice while they are put together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._columns: dict[str, tuple[np.dtype[Any], tuple[int, ...], IO[bytes]]] = {}
        self._rows = 0

    def append(self, columns: Columns) -> None:
        if not self._columns:
            for name, values in columns.items():
                file = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 (the stack closes it)
                self._columns[name] = (values.dtype, values.shape[1:], self._stack.enter_context(file))
        try:
            for name, values in columns.items():
                self._columns[name][2].write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._rows += len(next(iter(columns.values())))

    def _finish(self) -> None:
        output = self._stack.enter_context(replacing(self.path))
        with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
            for name, (dtype, shape, file) in self._columns.items():
                # ZipInfo's fixed date: the same results are the same bytes, whenever they are written.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (self._rows, *shape)}
                    np.lib.format.write_array_header_1_0(entry, header)
                    file.seek(0)
                    shutil.copyfileobj(file, entry, 2**20)


class TableWriter(Writer):
    """A Parquet, Arrow IPC or CSV file, by pyarrow."""

    def __init__(self, path: str | os.PathLike[str], start: Callable[[Any, Any], Any], *, lists: bool = True) -> None:
        super().__init__(path)
        self._start, self._lists = start, lists
        self._writer: Any = None
        self._waiting: list[Columns] = []
        self._rows = 0

    def append(self, columns: Columns) -> None:
        self._waiting.append(columns)
        self._rows += len(next(iter(columns.values())))
        if self._rows >= BLOCK_ROWS:
            joined = self._join()
            last = self._rows // BLOCK_ROWS * BLOCK_ROWS
            for first in range(0, last, BLOCK_ROWS):
                self._write({name: values[first : first + BLOCK_ROWS] for name, values in joined.items()})
            self._waiting = [{name: values[last:] for name, values in joined.items()}]
            self._rows -= last

    def _join(self) -> Columns:
        return {name: np.concatenate([part[name] for part in self._waiting]) for name in self._waiting[0]}

    def _write(self, columns: Columns) -> None:
        batch = arrow_batch(columns, self._lists)
        if self._writer is None:
            self._file = self._stack.enter_context(replacing(self.path))
            self._writer = self._start(self._file, batch.schema)
        self._writer.write_batch(batch)

    def _finish(self) -> None:
        if self._rows or self._writer is None:
            self._write(self._join())
        self._writer.close()

    def _abandon(self) -> None:
        if getattr(self._writer, "is_open", False):
            # Else ParquetWriter's destructor closes it, into a file that is closed by then, and prints what that gives.
            with suppress(Exception):
                self._writer.close()
            self._writer.is_open = False


def arrow_batch(columns: Columns, lists: bool) -> Any:
    """Return columns as an Arrow record batch; those with several numbers a row as lists, or as so many columns."""
    import pyarrow as pa

    arrays = {}
    for name, values in columns.items():
        if values.ndim == 1:
            arrays[name] = arrow_array(values)
        elif lists:
            arrays[name] = pa.FixedSizeListArray.from_arrays(arrow_array(values.reshape(-1)), values.shape[1])
        else:
            arrays |= {f"{name}_{i + 1}": arrow_array(values[:, i]) for i in range(values.shape[1])}
    return pa.record_batch(arrays)


def arrow_array(values: npt.NDArray[Any]) -> Any:
    """Return numbers as an Arrow array over their memory. `pyarrow.array` would import pandas first if it is there."""
    import pyarrow as pa

    kind = pa.from_numpy_dtype(values.dtype)
    held = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(held)])


def start_parquet(file: Any, schema: Any) -> Any:
    """Start a Parquet file; class numbers repeat and are worth a dictionary, scores are not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    repeating = [field.name for field in schema if pa.types.is_integer(field.type)]
    return pq.ParquetWriter(file, schema, use_dictionary=repeating)


def start_arrow(file: Any, schema: Any) -> Any:
    """Start an Arrow IPC file."""
    import pyarrow as pa

    return pa.ipc.new_file(file, schema)


def start_csv(file: Any, schema: Any) -> Any:
    """Start a CSV file."""
    import pyarrow.csv

    return pyarrow.csv.CSVWriter(file, schema)


#: The endings of the files that are written.
ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".npz": "npz",
    ".csv": "csv",
}


def form_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a result's name asks for."""
    form = ENDINGS.get(Path(path).suffix.lower())
    if form is None:
        raise InputError(f"{os.fspath(path)}: results end in one of {', '.join(ENDINGS)}")
    return form


def open_writer(path: str | os.PathLike[str]) -> Writer:
    """Open a result for writing, in the format that its name asks for."""
    form = form_of(path)
    if form == "npz":
        return NpzWriter(path)
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f"{os.fspath(path)}: {form} files need pyarrow: pip install 'fastkl[score]'") from None
    start = {"parquet": start_parquet, "arrow": start_arrow, "csv": start_csv}[form]
    return TableWriter(path, start, lists=form != "csv")
