"""What every contender answers in a handful of telling cases, beside the exact value.

The exact value is of the very numbers that the contenders read, to 60 digits by mpmath. A peer is asked with the same
method of ``peers.py`` that is timed; where a library has no function of its own, that is the formula written in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases
import mpmath
import numpy as np
import peers

DIGITS = 60
#: Not asked where the case is about the types that a function takes: what they run is a formula, not their function.
FORMULAS = ("NumPy", "Numba", "torch.compile")


@dataclass
class Telling:
    """One row of inputs, and what the right answer is."""

    text: str
    op: str
    operands: tuple[np.ndarray, ...]
    exact: Callable[..., Any]
    element: int | None = None
    out_dtype: str = "float32"
    unasked: tuple[str, ...] = ()

    def answer(self, peer: peers.Peer) -> float | str:
        """Return the peer's answer, "refuses" where it raises, "-" where it has no such operation."""
        op = cases.operation(self.op)
        forms = peer.forms(op)
        if not forms or peer.name in self.unasked:
            return "-"
        shape = self.operands[0].shape
        out = cases.aligned(shape if op.returns == "element" else shape[:1], self.out_dtype)
        scratch = [cases.aligned(shape, self.out_dtype) for _ in range(2)]
        peer.begin_case()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                result = np.asarray(peer.bind(forms[""], self.operands, out, scratch)())
        except Exception:  # whatever a library raises is its answer
            return "refuses"
        return float(result[0] if self.element is None else result[0, self.element])

    def truth(self) -> float:
        """Return the exact value, rounded to float64."""
        with mpmath.workdps(DIGITS):
            # Lists of Python floats, which mpmath takes exactly.
            return float(self.exact(*(operand.reshape(-1).tolist() for operand in self.operands)))


def exact_logsumexp(x):
    """log(sum(exp(x)))."""
    return mpmath.log(mpmath.fsum(mpmath.exp(v) for v in x))


def exact_loss(x, label):
    """The log-sum-exp, less the label's logit."""
    return exact_logsumexp(x) - x[label[0]]


def exact_entropy(p):
    """-sum(p log p)."""
    return -mpmath.fsum(v * mpmath.log(v) for v in p if v)


def exact_entropy_logits(x):
    """The entropy of the softmax."""
    lse = exact_logsumexp(x)
    return exact_entropy([mpmath.exp(v - lse) for v in x])


def exact_kl(p, q):
    """sum(p log(p/q))."""
    if any(a and not b for a, b in zip(p, q, strict=True)):
        return mpmath.inf
    return mpmath.fsum(a * mpmath.log(mpmath.mpf(a) / b) for a, b in zip(p, q, strict=True) if a)


def row(values: Any, dtype: str) -> np.ndarray:
    """Return one aligned row."""
    array = cases.aligned((1, len(values)), dtype)
    array[0] = values
    return array


def close_pair(distance: float, classes: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return two float32 distributions whose KL is about ``distance`` and whose sums are exactly 1.

    With both sums exact, plain, normalised and generalised KL are the same number, and no answer is excused by the
    others. All entries are multiples of 2^-32 below 2^-8, which float32 holds exactly.
    """
    rng = np.random.default_rng(classes)
    p = rng.uniform(0.5, 1.5, classes) / classes
    q = p * (1 + np.sqrt(2 * distance) * rng.standard_normal(classes))
    pair = []
    for v in (p, q):
        units = np.rint(v / v.sum() * 2.0**32).astype(np.int64)
        excess = int(units.sum()) - 2**32
        units[: abs(excess)] -= np.sign(excess)
        assert units.sum() == 2**32
        assert units.max() < 2**24
        pair.append(row(units / 2.0**32, "float32"))
    return pair[0], pair[1]


def telling_cases() -> list[Telling]:
    """Return the cases of the table."""
    sure, lone = row([30, 0], "float32"), np.array([0])
    found = [
        Telling("loss, logits [30, 0], label 0", "softmax_cross_entropy", (sure, lone), exact_loss),
        Telling("log_softmax([30, 0])[0]", "log_softmax", (sure,), lambda x: x[0] - exact_logsumexp(x), element=0),
        Telling("logsumexp([0, -40])", "logsumexp", (row([0, -40], "float32"),), exact_logsumexp),
        Telling("logsumexp([0, -40]) f64", "logsumexp", (row([0, -40], "float64"),), exact_logsumexp, None, "float64"),
    ]
    for distance in (4.5e-5, 3e-7, 5e-9):
        pair = close_pair(distance)
        found.append(Telling(f"KL near {distance:g}, n = 1000", "kl_divergence", pair, exact_kl))
    found += [
        Telling(
            "KL([.5, .5], [1, 0])", "kl_divergence", (row([0.5, 0.5], "float32"), row([1, 0], "float32")), exact_kl
        ),
        Telling("entropy of logits [20, 0]", "entropy[logits]", (row([20, 0], "float32"),), exact_entropy_logits),
        Telling(
            "entropy, uniform, n = 10M",
            "entropy",
            (row(np.full(10_000_000, 1e-7), "float32"),),
            lambda p: len(p) * exact_entropy(p[:1]),
        ),
        Telling(
            "softmax(int8 [-128, 127])[1]",
            "softmax",
            (row([-128, 127], "int8"),),
            lambda x: mpmath.exp(x[1] - exact_logsumexp(x)),
            1,
            "float64",
            FORMULAS,
        ),
    ]
    return found


def cell(answer: float | str, truth: float) -> str:
    """Return an answer as text, with its relative error where that is above 1e-5."""
    if isinstance(answer, str):
        return answer
    text = f"{answer:.3g}"
    if answer == truth:
        return text
    if not np.isfinite([answer, truth]).all():
        return text + " (wrong)"
    error = abs(answer - truth) / abs(truth)
    return text if error <= 1e-5 else f"{text} ({error:.0e})"


def print_accuracy(party: list[peers.Peer]) -> None:
    """Print the answers as a Markdown table."""
    table = [["case, float32", "exact", *(peer.name for peer in party)]]
    for case in telling_cases():
        truth = case.truth()
        table.append([case.text, f"{truth:.3g}", *(cell(case.answer(peer), truth) for peer in party)])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    table.insert(1, ["-" * width for width in widths])
    print("\nin brackets: the relative error, where it is above 1e-5\n")
    for line in table:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
