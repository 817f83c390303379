# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Counting rows into bins and exact sums, one loop each, the same for every instruction set: integers only.

What is counted into is int64 and comes from `fastkl.batch.totals`, which fixes its length. Whatever the values are, no
index leaves it. A NaN, or a class that is none, is not counted.
"""

from libc.math cimport ceil, rint
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

ctypedef fused real:
    float
    double


cdef inline int64_t bits_of(double value) noexcept nogil:
    cdef int64_t bits
    memcpy(&bits, &value, 8)
    return bits


cdef inline Py_ssize_t within(int64_t place, Py_ssize_t count) noexcept nogil:
    return 0 if place < 0 else count - 1 if place >= count else place


cdef inline Py_ssize_t octave(int64_t bits, int lowest, int wanted, Py_ssize_t count) noexcept nogil:
    # The exponent with the leading bits of the mantissa is a number that grows with the value.
    return within((bits >> (52 - wanted)) - ((<int64_t>1023 + lowest) << wanted) + 1, count)


def exact_sum(const real[:] values, int64_t[:, ::1] mantissas):
    """Add mantissas by exponent, in halves of 26 and 27 bits that 2**35 values do not overflow.

    ``mantissas`` is of shape (2048, 2). Returns how many values were finite and how many infinite.
    """
    cdef Py_ssize_t i, exponent
    cdef int64_t bits, mantissa, low, high, finite = 0, infinite = 0
    cdef double value
    if mantissas.shape[0] != 2048 or mantissas.shape[1] != 2:
        raise ValueError("mantissas of shape (2048, 2) are wanted")
    with nogil:
        for i in range(values.shape[0]):
            value = values[i]
            bits = bits_of(value)
            exponent = (bits >> 52) & 2047
            mantissa = bits & ((<int64_t>1 << 52) - 1)
            if exponent == 2047:
                infinite += mantissa == 0
                continue
            finite += 1
            if exponent:
                mantissa |= <int64_t>1 << 52
            low = mantissa & ((1 << 26) - 1)
            high = mantissa >> 26
            if bits < 0:
                low, high = -low, -high
            mantissas[exponent, 0] += low
            mantissas[exponent, 1] += high
    return finite, infinite


def octaves(const real[:] values, int lowest, int bits, int64_t[::1] counts):
    """Count values >= 0: below 2**lowest, then in ``2**bits`` bins for each octave; the last takes what is beyond."""
    cdef Py_ssize_t i
    cdef double value
    if not counts.shape[0]:
        raise ValueError("there are no bins")
    with nogil:
        for i in range(values.shape[0]):
            value = values[i]
            if value == value:
                counts[octave(bits_of(value), lowest, bits, counts.shape[0])] += 1


def evenly(const real[:] values, int64_t[::1] counts):
    """Count values in [0, 1] into bins of equal width; a value on an edge belongs to the bin above it."""
    cdef Py_ssize_t i, bins = counts.shape[0]
    cdef double value
    if not bins:
        raise ValueError("there are no bins")
    with nogil:
        for i in range(values.shape[0]):
            value = values[i]
            if value == value:
                counts[within(<int64_t>(min(max(value, 0.0), 1.0) * bins), bins)] += 1


def calibration(
    const real[:] confidence,
    const uint8_t[:] correct,
    int64_t[:, ::1] wide,
    int lowest,
    int bits,
    int offset_bits,
    int64_t[:, ::1] fine,
):
    """Count rows by their confidence, twice.

    ``wide``, of bins ((i - 1) / M, i / M], gets rows that are wrong, rows that are right, and confidences in units of
    2**-28; ``fine``, of octaves of 1 - confidence, wrong, right, and how far into its bin the doubt lies, in units of
    2**-offset_bits bins.
    """
    cdef Py_ssize_t i, place, m = wide.shape[0]
    cdef int64_t doubt, right
    cdef double sure
    if not m or wide.shape[1] != 3 or not fine.shape[0] or fine.shape[1] != 3:
        raise ValueError("bins of three numbers are wanted")
    if confidence.shape[0] != correct.shape[0]:
        raise ValueError("confidence and correct differ in length")
    with nogil:
        for i in range(confidence.shape[0]):
            sure = confidence[i]
            if sure != sure:
                continue
            sure = min(max(sure, 0.0), 1.0)
            right = correct[i] != 0
            place = within(<int64_t>ceil(sure * m) - 1, m)
            wide[place, right] += 1
            wide[place, 2] += <int64_t>rint(sure * 268435456.0)
            doubt = bits_of(1 - sure)
            place = octave(doubt, lowest, bits, fine.shape[0])
            fine[place, right] += 1
            fine[place, 2] += (doubt >> (52 - bits - offset_bits)) & ((<int64_t>1 << offset_bits) - 1)


def confusions(const int64_t[:] true, const int64_t[:] predicted, int64_t[:, ::1] counts):
    """Count pairs of classes; a pair with a number that is no class is left out."""
    cdef Py_ssize_t i
    cdef uint64_t a, b
    if true.shape[0] != predicted.shape[0]:
        raise ValueError("true and predicted differ in length")
    with nogil:
        for i in range(true.shape[0]):
            a, b = true[i], predicted[i]
            if a < <uint64_t>counts.shape[0] and b < <uint64_t>counts.shape[1]:
                counts[<Py_ssize_t>a, <Py_ssize_t>b] += 1
