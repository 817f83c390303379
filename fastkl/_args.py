"""The gate: every array, axis, mask, out, label and option is checked here, and nowhere below.

What passes is safe for the kernels, which cannot fail: arrays of a known storage type, of one shape, with the reduced
axes last, and an output that overlaps no input.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

Array = np.ndarray[Any, Any]

# What each operand holds: whether it is of logs, whether it is divided by its sum, and the temperature.
Forms = tuple[tuple[bool, bool, float], ...]

# Integers and bool are computed in float64, half precision in float32.
_TAKEN = "float64, float32, float16, bfloat16, integers and bool"


def as_array(value: ArrayLike, name: str) -> Array:
    """Return an array that the kernels can read, without a copy wherever the value is one already."""
    array = value if type(value) is np.ndarray else _as_ndarray(value, name, "its mask as where=~mask")
    dtype = array.dtype
    if dtype is FLOAT64 or dtype is FLOAT32 or compute_dtype(dtype) is not None:
        return array
    raise TypeError(f"{name} has dtype {dtype}; taken are {_TAKEN}")


def _as_ndarray(value: ArrayLike, name: str, instead_of_mask: str) -> Array:
    """What NumPy makes of an array of another library, of a sequence or of a number."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass its data, and {instead_of_mask}")
    if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        array: Array = np.from_dlpack(value)  # type: ignore[arg-type]
        return array
    return np.asarray(value)


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """The type that a storage type is computed in and gives, or None if it is not taken."""
    if dtype.kind == "f":
        sizes: dict[int, np.dtype[Any]] = {2: FLOAT32, 4: FLOAT32, 8: FLOAT64}
        return sizes.get(dtype.itemsize)
    if dtype.kind in "iub":
        return FLOAT64
    return FLOAT32 if dtype.name == "bfloat16" else None


def result_dtype(*arrays: Array) -> np.dtype[Any]:
    """The result's type: NumPy's promotion of the inputs', then half precision to float32, integers to float64."""
    first = arrays[0].dtype
    if first is FLOAT64 or (first is FLOAT32 and all(a.dtype is FLOAT32 for a in arrays)):
        return first
    # NumPy does not know how bfloat16 promotes with its own types: it goes as float32, which it is computed in.
    types = [FLOAT32 if a.dtype.name == "bfloat16" else a.dtype for a in arrays]
    promoted = compute_dtype(np.result_type(*types))
    assert promoted is not None, "types that are taken promote to one that is"
    return promoted


def reduced_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The reduced axes, ascending and non-negative. A 0-d array counts as a row of one."""
    if type(axis) is int and axis == -1 and ndim:
        return (ndim - 1,)
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    found = []
    for one in axes:
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise TypeError(f"axis takes an int, a tuple of ints or None, not {one!r}")
        index = operator.index(one)
        if not -max(ndim, 1) <= index < max(ndim, 1):
            raise np.exceptions.AxisError(index, ndim)
        found.append(index % ndim if ndim else 0)
    if len(set(found)) < len(found):
        raise ValueError(f"axis {axis} names an axis twice")
    return tuple(sorted(found)) if ndim else ()


def axes_last(array: Array, axes: tuple[int, ...]) -> Array:
    """The same array with the given axes moved to its end, in their order."""
    ndim = array.ndim
    if not axes or axes[0] == ndim - len(axes):
        return array    # they are ascending, so these are the last ones
    return array.transpose([i for i in range(ndim) if i not in axes] + list(axes))


def broadcast(arrays: Sequence[Array], names: Sequence[str]) -> Sequence[Array]:
    """Broadcast arrays against each other by NumPy's rules."""
    if len(arrays) == 1 or (len(arrays) == 2 and arrays[0].shape == arrays[1].shape):
        return arrays
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = " and ".join(f"{name} of shape {a.shape}" for name, a in zip(names, arrays, strict=True))
        raise ValueError(f"{shapes} do not broadcast against each other") from None
    return [np.broadcast_to(a, shape) for a in arrays]


def mask_for(where: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """The mask, broadcast to an input's shape."""
    if where is None or where is True:
        return None
    mask = np.asarray(where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where takes booleans, not {mask.dtype}")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"where of shape {mask.shape} does not broadcast to the input's shape {shape}") from None


def output_for(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Sequence[Array | None], in_place: bool
) -> Array:
    """The array to write to: a new one, or `out` once it is found to fit. With in_place it may be the first input."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out takes a NumPy array, not {type(out).__name__}")
    if out.dtype != dtype:
        raise ValueError(f"out has dtype {out.dtype}; this result is {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; this result has shape {shape}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only")
    if not flags.aligned:
        raise ValueError("out is not aligned in memory")
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise ValueError("out overlaps itself: it has a zero stride")
    for position, array in enumerate(inputs):
        if array is None or not np.may_share_memory(out, array):
            continue
        if position == 0 and in_place and _same(out, array):
            continue
        try:
            overlaps = np.shares_memory(out, array, max_work=100_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            overlaps = True
        if overlaps:
            allowed = "; it may be the input itself, exactly" if in_place else ""
            raise ValueError(f"out overlaps an input in memory{allowed}")
    return out


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements in the same places."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)
    )  # fmt: skip


def without(array: Array, axes: tuple[int, ...]) -> Array:
    """A view of a keepdims result without its axes of length 1."""
    return array[(*(0 if i in axes else slice(None) for i in range(array.ndim)), ...)] if axes else array


def log_scale(base: float | None) -> float:
    """1 / ln(base): what turns nats into the unit asked for."""
    if base is None:
        return 1.0
    if type(base) not in (int, float) and (
        isinstance(base, (bool, np.bool_)) or not isinstance(base, (int, float, np.integer, np.floating))
    ):
        raise TypeError(f"base takes a positive number other than 1, not {base!r}")
    number = float(base)
    if not (0 < number < math.inf) or number == 1:
        raise ValueError(f"base takes a positive number other than 1, not {base!r}")
    return 1 / math.log(number)


def fraction(value: Any, name: str) -> float:
    """A number from 0 to 1."""
    if type(value) is float and 0 <= value <= 1:
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} takes a number from 0 to 1, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} takes a number from 0 to 1, not {value!r}")
    return float(value)


def as_labels(labels: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Integer class numbers, one per row."""
    if type(labels) is np.ndarray:
        array: Array = labels
    else:
        array = _as_ndarray(labels, "labels", "mark the absent rows by ignore_index=")
        if array.size == 0 and not isinstance(labels, np.ndarray):
            array = array.astype(np.intp)    # an empty list has no integers to tell its type by
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {array.dtype}; taken are integers")
    if array.shape != shape:
        raise ValueError(f"labels has shape {array.shape}; the logits have rows of shape {shape}")
    return array


def ignored_label(ignore_index: int | None, labels: Array) -> int | None:
    """ignore_index as the 64 bits that a label equal to it reads as, or None if no label of that type can be it."""
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__"):
        raise TypeError(f"ignore_index takes an int or None, not {ignore_index!r}")
    index = operator.index(ignore_index)
    limits = np.iinfo(labels.dtype)
    return index % 2**64 if limits.min <= index <= limits.max else None


def raise_bad_label(row: int, bits: int, labels: Array, classes: int, origin: Sequence[int] = ()) -> None:
    """Name the first label out of range, by the value that was read; `origin` is where `labels` begin in a whole."""
    value = bits if labels.dtype.kind == "u" or bits < 2**63 else bits - 2**64
    index = np.unravel_index(row, labels.shape)
    place = tuple(int(i) + first for i, first in zip(index, origin or (0,) * labels.ndim, strict=True))
    named = "the only row" if not place else f"row {place[0] if len(place) == 1 else place}"
    raise IndexError(f"label {value} in {named} is out of range for {classes} classes")


def choice(value: Any, name: str, taken: Sequence[str]) -> str:
    """One of a few words."""
    if value in taken:
        return str(value)
    raise ValueError(f"{name} takes {', '.join(repr(one) for one in taken)}, not {value!r}")



GIVEN = ("probs", "log_probs", "logits")


def one_or_pair(value: Any, name: str, of: str) -> tuple[Any, Any]:
    """What applies to two inputs: one for both, or a pair; of: their names."""
    if not isinstance(value, (tuple, list)):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} takes one for both or a pair, for {of}, not {value!r}")
    return value[0], value[1]


def divisor(temperature: Any, dtype: np.dtype[Any]) -> float:
    """The temperature, found to be a positive finite number in the type that the logits are computed in."""
    if type(temperature) is float and temperature == 1:
        return 1.0
    if isinstance(temperature, (bool, np.bool_)) or not isinstance(temperature, (int, float, np.integer, np.floating)):
        raise TypeError(f"temperature takes a positive number, not {temperature!r}")
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(dtype.type(temperature))
    if not 0 < rounded < math.inf:
        raise ValueError(f"temperature takes a positive finite number, not {temperature!r}")
    return float(temperature)


def is_settled(given: Any, temperature: Any) -> bool:
    """Whether one plain word and no temperature say what every operand holds: nobody need look at them."""
    return type(given) is str and given in GIVEN and type(temperature) is float and temperature == 1


def settled_forms(given: str, normalize: bool, operands: int) -> Forms | None:
    """The `forms` of operands that one plain word tells of."""
    logs, scaled = given != "probs", bool(normalize) or given == "logits"
    return ((logs, scaled, 1.0),) * operands if logs or scaled else None


def forms(
    given: Any, temperature: Any, normalize: bool, operands: Sequence[Array], names: Sequence[str]
) -> Forms | None:
    """For each operand whether it holds logs, is divided by its sum, and the temperature; None for probabilities."""
    if is_settled(given, temperature):
        return settled_forms(given, normalize, len(operands))
    words: tuple[Any, ...] = (given,)
    divisors: tuple[Any, ...] = (temperature,)
    if len(operands) == 2:
        of = " and ".join(names)
        words, divisors = one_or_pair(given, "given", of), one_or_pair(temperature, "temperature", of)
    dtype = result_dtype(*operands)
    taken = []
    for word, t, name in zip(words, divisors, names, strict=True):
        word, t = choice(word, "given", GIVEN), divisor(t, dtype)
        if t != 1 and word != "logits":
            raise ValueError(f"temperature={t:g} for {name}, which holds {word}: only logits have one")
        taken.append((word != "probs", bool(normalize) or word == "logits", t))
    return tuple(taken) if any(logs or scaled for logs, scaled, _ in taken) else None
