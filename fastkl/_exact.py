"""Exact sums of float64: the same for any order, any parts and any process, rounded once at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._kernels import count

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class ExactSum:
    """A sum of float64 without rounding: an integer number of 2**-1074, which divides every float64.

    Infinite values are counted apart; a NaN is no value.
    """

    #: Before the sums of mantissas might overflow they move to Python's integers.
    ROOM = 2**34

    def __init__(self) -> None:
        self.finite, self.infinite = 0, 0
        self._units = 0
        self._mantissas = np.zeros((2048, 2), np.int64)  # by exponent, low and high bits
        self._waiting = 0

    def add(self, values: Values) -> None:
        """Add values."""
        for start in range(0, len(values), self.ROOM):
            part = values[start : start + self.ROOM]
            if self._waiting + len(part) > self.ROOM:
                self._fold()
            self._waiting += len(part)
            finite, infinite = count.exact_sum(part, self._mantissas)
            self.finite += finite
            self.infinite += infinite

    def _fold(self) -> None:
        for exponent in np.flatnonzero(self._mantissas.any(axis=1)).tolist():
            low, high = self._mantissas[exponent].tolist()
            self._units += ((high << 26) + low) << max(0, exponent - 1)
        self._mantissas[:] = 0
        self._waiting = 0

    @property
    def units(self) -> int:
        """The sum of the finite values, in units of 2**-1074."""
        self._fold()
        return self._units

    def merge(self, other: ExactSum) -> None:
        """Add what another sum holds."""
        self._units += other.units
        self.finite += other.finite
        self.infinite += other.infinite

    def over(self, divisor: int) -> float:
        """Return the sum divided by a positive integer, rounded once; inf where one of the values was."""
        try:
            # Python's quotient of two integers is the float64 that is nearest.
            return math.inf if self.infinite else self.units / (divisor << 1074)
        except OverflowError:
            return math.inf if self.units > 0 else -math.inf

    def mean(self) -> float:
        """Return the mean of what was added, correctly rounded; NaN of nothing."""
        return self.over(self.finite) if self.finite or self.infinite else math.nan

    def state(self) -> list[Any]:
        """Return the sum as JSON can hold it."""
        return [self.finite, self.infinite, hex(self.units)]

    def restore(self, state: Sequence[Any]) -> None:
        """Take what `state` gave."""
        self.finite, self.infinite, self._units = state[0], state[1], int(state[2], 16)
