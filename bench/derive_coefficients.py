"""Derive every constant of fastkl/_kernels/vmath.h: minimax polynomials and the splits of ln 2.

    python bench/derive_coefficients.py                                    print the C lines, and the errors on stderr
    python bench/derive_coefficients.py --check fastkl/_kernels/vmath.h    exit 1 with a diff if the header differs

The polynomials come from a Remez exchange in 50 digits, each with the weight that makes the relative error of the
finished function smallest, and are then rounded to the type. Only mpmath is needed.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from pathlib import Path

import mpmath
from mpmath import mpf

mpmath.mp.dps = 50

BEGIN = "/* Constants: begin (bench/derive_coefficients.py) */"
END = "/* Constants: end */"

#: Mantissa bits and C suffix of a type.
TYPES = {"float": (24, "f"), "double": (53, "")}

Function = Callable[[mpf], mpf]


def evaluate(coefficients: list[mpf], x: mpf) -> mpf:
    """Horner, lowest power first in the list."""
    value = mpf(0)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def remez(target: Function, weight: Function, degree: int, low: mpf, high: mpf) -> tuple[list[mpf], mpf]:
    """Return the polynomial that minimises max abs(weight * (target - polynomial)) on [low, high], and that maximum.

    Starts from interpolation in Chebyshev nodes. Each round finds the extremum of the error between any two of its
    zeros and solves for equal alternating errors at these points, until the largest and the smallest extremum agree
    to one part in a thousand.
    """
    n = degree + 2
    middle, radius = (low + high) / 2, (high - low) / 2

    def solve(points: list[mpf], alternating: bool) -> list[mpf]:
        system = mpmath.matrix(len(points), len(points))
        right = mpmath.matrix(len(points), 1)
        for row, x in enumerate(points):
            # Rows are scaled by the weight and columns by high^power, for the condition of the matrix.
            scale = weight(x) if alternating else mpf(1)
            for power in range(degree + 1):
                system[row, power] = scale * (x / high) ** power
            if alternating:
                system[row, degree + 1] = (-1) ** row
            right[row] = scale * target(x)
        solution = mpmath.lu_solve(system, right)
        return [solution[power] / high**power for power in range(degree + 1)]

    def chebyshev(i: float, count: int) -> mpf:
        return middle - radius * mpmath.cos(mpmath.pi * i / count)

    grid = [chebyshev(i, 40 * n) for i in range(40 * n + 1)]
    targets = [target(x) for x in grid]
    weights = [weight(x) for x in grid]
    coefficients = solve([chebyshev(i + 0.5, n - 1) for i in range(n - 1)], alternating=False)
    for _ in range(50):
        errors = [w * (t - evaluate(coefficients, x)) for x, t, w in zip(grid, targets, weights, strict=True)]
        peaks: list[int] = []
        for i in range(len(grid)):
            if not peaks or errors[i] * errors[peaks[-1]] < 0:
                peaks.append(i)
            elif abs(errors[i]) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        while len(peaks) > n:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        if len(peaks) < n:
            raise ArithmeticError("the error does not alternate often enough")
        extrema = [abs(errors[i]) for i in peaks]
        if max(extrema) <= min(extrema) * mpf("1.001"):
            return coefficients, max(extrema)
        coefficients = solve([grid[i] for i in peaks], alternating=True)
    raise ArithmeticError("the exchange did not converge")


def rounded(x: mpf, bits: int) -> mpf:
    """Round to nearest with this many mantissa bits."""
    with mpmath.workprec(bits):
        return +x


def literal(x: mpf, ctype: str) -> str:
    """Format as a C hex literal; x must already be representable."""
    bits, suffix = TYPES[ctype]
    if x != rounded(x, bits):
        raise ValueError(f"{x} does not fit {ctype}")
    return float(x).hex().replace("0000000p", "p").rstrip() + suffix


def polynomial(name: str, ctype: str, target: Function, weight: Function, degree: int, low: mpf, high: mpf) -> str:
    """Return the C line of one minimax polynomial, its error reported on stderr."""
    coefficients, error = remez(target, weight, degree, low, high)
    print(f"{name}: weighted error 2^{float(mpmath.log(error, 2)):.1f}", file=sys.stderr)
    values = ", ".join(literal(rounded(c, TYPES[ctype][0]), ctype) for c in coefficients)
    return f"static const {ctype} {name}[{degree + 1}] = {{{values}}};"


def scalar(name: str, ctype: str, value: mpf) -> str:
    """Return the C line of one constant."""
    return f"static const {ctype} {name} = {literal(rounded(value, TYPES[ctype][0]), ctype)};"


def series(x: mpf, function: Function, terms: Function) -> mpf:
    """Return function(x), by its power series where the closed form would lose digits."""
    if abs(x) > mpf("0.02"):
        return function(x)
    return mpmath.fsum(terms(i) * x**i for i in range(30))


def lines() -> list[str]:
    """Return the C lines of all constants."""
    ln2 = mpmath.log(2)
    half_octave = ln2 / 2
    # exp(r) = 1 + r + r^2 Q(r); an error of Q weighs r^2 / exp(r). |r| exceeds ln2/2 by the rounding of x log2(e).
    exp_tail = lambda r: series(r, lambda r: (mpmath.expm1(r) - r) / r**2, lambda i: 1 / mpmath.factorial(i + 2))  # noqa: E731
    exp_weight = lambda r: r**2 * mpmath.exp(-r)  # noqa: E731
    exp_reach = half_octave * mpf("1.0001")
    # exp(r) - 1 - r = r^2 Q(r), relative to itself.
    excess_weight = lambda r: 1 / exp_tail(r)  # noqa: E731
    # log(1 + f) = f - f^2/2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)]; relative to the logarithm.
    log_tail = lambda f: series(  # noqa: E731
        f, lambda f: (mpmath.log1p(f) - f + f**2 / 2) / f**3, lambda i: mpf((-1) ** int(i)) / (i + 3)
    )
    log_weight = lambda f: abs(f**3 / mpmath.log1p(f)) if f else mpf(0)  # noqa: E731
    # log(1 + f) = 2 atanh(s), s = f / (2 + f): 2 atanh(s) = 2 s + s z C(z), z = s^2. Relative to 2 s.
    atanh_tail = lambda z: series(  # noqa: E731
        z, lambda z: 2 * (mpmath.atanh(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z, lambda i: mpf(2) / (2 * i + 3)
    )
    sqrt_half = mpmath.sqrt(mpf(1) / 2)
    atanh_reach = ((1 - sqrt_half) / (1 + sqrt_half)) ** 2
    # KL: w d + p w^3 C(w^2), the same C; relative to w d an error of C weighs about w. Rounding the difference of the
    # bits up from c = 261/512 leaves w = (p - q') / (p + q') between -(1 - c) / (3 - c) and c / (2 + c).
    kl_cut = mpf(261) / 512
    kl_reach = (kl_cut / (2 + kl_cut)) ** 2
    result = [
        # Splits of ln 2: k * hi is exact for every exponent k (8 and 11 bits), with or without fma.
        scalar("LOG2E_F32", "float", 1 / ln2),
        scalar("LN2_HI_F32", "float", rounded(ln2, 15)),
        scalar("LN2_LO_F32", "float", ln2 - rounded(ln2, 15)),
        scalar("LOG2E_F64", "double", 1 / ln2),
        scalar("LN2_HI_F64", "double", rounded(ln2, 32)),
        scalar("LN2_LO_F64", "double", ln2 - rounded(ln2, 32)),
        # Splits for the KL term: k * hi has at most half the mantissa's bits, so that its product with half of p is
        # exact.
        scalar("LN2_F32", "float", ln2),
        scalar("LN2_4BIT_F32", "float", rounded(ln2, 4)),
        scalar("LN2_REST_F32", "float", ln2 - rounded(ln2, 4)),
        scalar("LN2_14BIT_F64", "double", rounded(ln2, 14)),
        scalar("LN2_REST_F64", "double", ln2 - rounded(ln2, 14)),
        polynomial("EXP_F32", "float", exp_tail, exp_weight, 4, -exp_reach, exp_reach),
        polynomial("EXP_F64", "double", exp_tail, exp_weight, 9, -exp_reach, exp_reach),
        polynomial("EXCESS_F32", "float", exp_tail, excess_weight, 4, -exp_reach, exp_reach),
        polynomial("EXCESS_F64", "double", exp_tail, excess_weight, 9, -exp_reach, exp_reach),
        polynomial("LOG_F32", "float", log_tail, log_weight, 7, sqrt_half - 1, 2 * sqrt_half - 1),
        polynomial("LOG_F64", "double", atanh_tail, lambda z: z / 2, 6, mpf(0), atanh_reach),
        polynomial("KL_F32", "float", atanh_tail, mpmath.sqrt, 2, mpf(0), kl_reach),
        polynomial("KL_F64", "double", atanh_tail, mpmath.sqrt, 7, mpf(0), kl_reach),
    ]
    return [wrapped for line in result for wrapped in wrap(line)]


def wrap(line: str) -> list[str]:
    """Break a line at 120 columns, as the header does."""
    out = []
    while len(line) > 120:
        cut = line.rindex(" ", 0, 120)
        out.append(line[:cut])
        line = "    " + line[cut + 1 :]
    return [*out, line]


def header_lines(path: Path) -> list[str]:
    """Return the lines of the header between the two marks."""
    text = path.read_text().splitlines()
    return text[text.index(BEGIN) + 1 : text.index(END)]


def main(argv: list[str] | None = None) -> int:
    """Print the constants, or compare them with a header."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="HEADER", type=Path, help="compare instead of printing")
    arguments = parser.parse_args(argv)
    if arguments.check is None:
        print("\n".join(lines()))
        return 0
    diff = list(
        difflib.unified_diff(header_lines(arguments.check), lines(), str(arguments.check), "derived", lineterm="")
    )
    print("\n".join(diff))
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())
