"""Readers: a file is opened, checked once, and handed out in chunks of rows.

Files are memory-mapped: a chunk is then read by the kernels themselves, on all their threads, with no copy in between.
(On one thread a mapping and ``readinto`` of a buffer ran at the same speed, 8 to 11 GB/s from the page cache.) The
price is that touching a page which the file no longer has kills the process, so the file's size is asked again before
each chunk is handed out.
"""

from __future__ import annotations

import mmap
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class InputError(Exception):
    """A file cannot be scored; the message is one line that names the file and says why."""


class NpyFile:
    """A memory-mapped ``.npy`` file. Pickled objects are refused: reading one would run code that it holds."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise InputError(f"{path}: not a regular file, so it cannot be memory-mapped")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # an overflowing shape is only warned of
                mapped = np.lib.format.open_memmap(self.path, mode="r")
        except OSError:
            raise
        except Exception as error:  # whatever NumPy's parser makes of a broken header: there is no common type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{path}: not a readable .npy file ({reason})") from error
        assert isinstance(mapped.base, mmap.mmap)
        self._file: mmap.mmap = mapped.base
        self._array: npt.NDArray[Any] = np.asarray(mapped)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's type."""
        return self._array.dtype

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows ``start`` to ``stop`` as a view of the mapping."""
        if self._file.size() < len(self._file):
            raise InputError(f"{self.path}: the file was cut short while it was being read")
        return self._array[start:stop]


class Logits(NpyFile):
    """A file of logits: rows x classes, float16, float32 or float64, in any byte order and memory order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        if self.dtype.kind != "f" or self.dtype.itemsize > 8:
            raise InputError(f"{path}: holds {self.dtype}; logits are float16, float32 or float64")
        if len(self.shape) != 2:
            raise InputError(f"{path}: has shape {self.shape}; logits are 2-d, rows x classes")
        if self.shape[1] == 0:
            raise InputError(f"{path}: has shape {self.shape}, so no classes")
        self.count, self.classes = self.shape


class Labels(NpyFile):
    """A file of labels for some logits: one integer per row, of any integer type, each the number of a class."""

    def __init__(self, path: str | os.PathLike[str], logits: Logits) -> None:
        super().__init__(path)
        if self.dtype.kind not in "iu":
            raise InputError(f"{path}: holds {self.dtype}; labels are integers")
        if self.shape != (logits.count,):
            raise InputError(
                f"{path}: has shape {self.shape}, but {logits.path} has {logits.count} rows: "
                f"labels of shape ({logits.count},) are wanted"
            )
        self.classes = logits.classes
        # A whole pass before the first row is scored: a bad label in the last row is better told now than in an hour.
        step = 2**18
        for start in range(0, logits.count, step):
            self.rows(start, start + step)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return labels ``start`` to ``stop``, copied before they are checked, so that they stay as checked."""
        labels = np.array(super().rows(start, stop))
        wrong = (labels < 0) | (labels >= self.classes)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{self.path}: label {labels[row]} in row {start + row} is out of range for {self.classes} classes"
            )
        return labels

