"""Writers: results are complete under their name, or not there at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt


class NpzWriter:
    """An ``.npz`` file of equally long columns, grown by ``append`` and put in its place when the block ends well.

    Rows come in chunks, an ``.npz`` wants column after column: each column grows in a temporary file of its own, which
    has no name and so vanishes with the process, however that ends. Memory is constant; the disk holds the results
    twice while they are put together. That happens under a temporary name in the same folder; a rename, which is
    atomic, is the last step, so a file already there is replaced by a complete one or stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A symbolic link is followed: the rename is to replace the file, not the link.
        self.path = Path(os.path.realpath(path))
        if self.path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder")
        if self.path.exists() and not self.path.is_file():
            raise OSError(f"{path}: is a device or pipe, and would be replaced")
        self._open_files = ExitStack()
        self._columns: dict[str, tuple[np.dtype[Any], IO[bytes]]] = {}
        self._rows = 0

    def __enter__(self) -> NpzWriter:
        # A folder that is missing or read-only is better told before the work than after it.
        try:
            with tempfile.TemporaryFile(dir=self.path.parent):
                return self
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def append(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Append the next rows: 1-d arrays of one length, with the same names and types at each call."""
        if not self._columns:
            for name, values in columns.items():
                file = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 (the stack closes it)
                self._columns[name] = (values.dtype, self._open_files.enter_context(file))
        for name, values in columns.items():
            self._columns[name][1].write(np.ascontiguousarray(values).data)
        self._rows += len(next(iter(columns.values())))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open_files:
            if kind is None:
                self._put_in_place()

    def _put_in_place(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        try:
            # Not tempfile's 0600: the results get the permissions that any new file of this user gets.
            with open(partial, "xb") as output:
                self._write_npz(output)
                output.flush()
                os.fsync(output.fileno())
            os.replace(partial, self.path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is on disk too
        finally:
            os.close(folder)

    def _write_npz(self, output: IO[bytes]) -> None:
        with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
            for name, (dtype, file) in self._columns.items():
                # ZipInfo's fixed date: the same results are the same bytes, whenever they are written.
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (self._rows,)}
                    np.lib.format.write_array_header_1_0(entry, header)
                    file.seek(0)
                    shutil.copyfileobj(file, entry, 2**20)
