"""One row per operation: its name, form, domain, accuracy budget and memory traffic.

Whatever is done "for each operation" starts from this table: the tests are parametrised from it, the accuracy bars
are asserted from it, the benchmarks are made from it and the documentation quotes it. A number written here is
written nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scale = Literal["max1", "relative", "relative+d/2", "relative+d", "element+d/2", "absolute-sum", "kl", "order", "exp"]


@dataclass(frozen=True)
class Budget:
    """How far a result may be from the exact one.

    The allowed error is ``eps * multiple * unit``, with ``eps`` that of the result's type, ``multiple`` one of the two
    numbers below and ``unit`` by ``scale``:

    ``max1``
        max(1, abs(result)).
    ``relative``
        abs(result).
    ``relative+d/2``
        abs(result), with d/2 added to ``multiple``, where d is the distance between the label's logit (the element's
        own, for a result per element) and the largest of the others; without a label, between the two largest. It is
        the rounding of that difference.
    ``relative+d``
        The same with d added, which the square of such a result has.
    ``element+d/2``
        abs(result), with d/2 added to ``multiple``, where d is the distance of this element from the row's maximum;
        holds for results above the denormals.
    ``absolute-sum``
        the sum of the absolute values of the terms.
    ``kl``
        generalized_kl + abs(sum(p - q)): plain KL is the difference of two such parts.
    ``order``
        abs(result), or if larger the smaller of alpha D + abs(sum(p - q)), D being the alpha divergence, and
        sum(p) / abs(alpha - 1): plain Tsallis divergence is a difference of these. For Renyi's both are over sum(p).
    ``exp``
        abs(result) times max(1, log(result)), with d/2 added to ``multiple`` as for ``relative+d/2``: the result is the
        exponential of such a number.
    """

    float32: float
    float64: float
    scale: Scale

    def multiple(self, dtype: str) -> float:
        """Return the budget of a result type by its name, "float32" or "float64"."""
        return {"float32": self.float32, "float64": self.float64}[dtype]


@dataclass(frozen=True)
class Operation:
    """One operation in one form.

    Attributes
    ----------
    function
        The public function's name, in ``fastkl`` and in ``fastkl.reference``.
    form
        Empty for the plain call, else the word that tells this form from it; ``keywords`` are what it passes.
    operands
        What is passed by position: "x" (logits), "p" and "q" (probabilities), "labels".
    returns
        "row": one number per row; "element": one per element.
    budget
        The accuracy asserted by the tests.
    arrays_read, arrays_written
        N x C arrays read and written once by a call: the traffic that the speed of light is computed from.
    """

    function: str
    operands: tuple[str, ...]
    returns: Literal["row", "element"]
    budget: Budget
    arrays_read: int
    arrays_written: int = 0
    form: str = ""
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name used in test ids and tables."""
        return f"{self.function}[{self.form}]" if self.form else self.function

    @property
    def domain(self) -> Literal["logits", "probabilities"]:
        """What the rows hold."""
        return "logits" if self.operands[0] == "x" else "probabilities"

    def bytes_moved(self, rows: int, classes: int, itemsize: int) -> int:
        """Bytes of the N x C arrays and of the per-row arrays, each read or written once."""
        per_row = itemsize * (self.returns == "row") + 8 * ("labels" in self.operands)
        return rows * (classes * itemsize * (self.arrays_read + self.arrays_written) + per_row)


#: LSE where the maximum is 0 and dominates, e.g. [0, -40]: relative, in eps.
DOMINANT_LOGSUMEXP = Budget(4, 4, "relative")

OPERATIONS: tuple[Operation, ...] = (
    Operation("logsumexp", ("x",), "row", Budget(1, 2, "max1"), 1),
    Operation("softmax", ("x",), "element", Budget(3, 3, "element+d/2"), 1, 1),
    Operation("log_softmax", ("x",), "element", Budget(4, 4, "relative+d/2"), 1, 1),
    Operation("softmax_cross_entropy", ("x", "labels"), "row", Budget(4, 4, "relative+d/2"), 1),
    Operation("entropy", ("p",), "row", Budget(4, 4, "relative"), 1),
    Operation(
        "entropy", ("x",), "row", Budget(4, 4, "relative+d/2"), 1, form="logits", keywords={"given": "logits"}
    ),
    Operation("cross_entropy", ("p", "q"), "row", Budget(4, 4, "absolute-sum"), 2),
    Operation("kl_divergence", ("p", "q"), "row", Budget(8, 8, "kl"), 2),
    Operation(
        "kl_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2, form="normalize", keywords={"normalize": True}
    ),
    Operation("generalized_kl", ("p", "q"), "row", Budget(8, 8, "relative"), 2),
    # order alpha (renyi): computed in double for both types
    Operation("renyi_entropy", ("p",), "row", Budget(1, 8, "relative"), 1, form="alpha=2", keywords={"alpha": 2.0}),
    Operation("tsallis_entropy", ("p",), "row", Budget(1, 8, "relative"), 1, form="alpha=0.5", keywords={"alpha": 0.5}),
    Operation(
        "renyi_divergence", ("p", "q"), "row", Budget(1, 8, "order"), 2, form="alpha=0.5", keywords={"alpha": 0.5}
    ),
    Operation(
        "renyi_divergence", ("p", "q"), "row", Budget(1, 8, "relative"), 2,
        form="alpha=2,normalize", keywords={"alpha": 2.0, "normalize": True},
    ),
    Operation(
        "tsallis_divergence", ("p", "q"), "row", Budget(1, 8, "order"), 2, form="alpha=1.5", keywords={"alpha": 1.5}
    ),
    Operation(
        "alpha_divergence", ("p", "q"), "row", Budget(1, 8, "relative"), 2, form="alpha=0.3", keywords={"alpha": 0.3}
    ),
)


@dataclass(frozen=True)
class Statistic:
    """One statistic of a row that `score` gives.

    Attributes
    ----------
    name
        What it is asked for by, and its column.
    needs
        The inputs it is made of beside the logits.
    budget
        The accuracy asserted by the tests; None for an integer or a truth value, which is exact.
    columns
        Its columns where they are not just its name.
    by_default
        Whether ``stats=None`` asks for it.
    """

    name: str
    needs: tuple[str, ...] = ()
    budget: Budget | None = None
    columns: tuple[str, ...] = ()
    by_default: bool = True


STATISTICS: tuple[Statistic, ...] = (
    Statistic("lse", (), Budget(1, 2, "max1")),
    Statistic("loss", ("labels",), Budget(4, 4, "relative+d/2")),
    Statistic("entropy", (), Budget(4, 4, "relative+d/2")),
    Statistic("perplexity", (), Budget(5, 5, "exp")),
    Statistic("max_prob", (), Budget(4, 4, "relative")),
    Statistic("argmax"),
    Statistic("correct", ("labels",)),
    Statistic("rank", ("labels",)),
    Statistic("brier", ("labels",), Budget(8, 8, "relative+d"), by_default=False),
    Statistic("margin", (), Budget(1, 1, "relative")),
    Statistic("top_k", (), Budget(4, 4, "relative+d/2"), columns=("top_k", "top_k_log_prob"), by_default=False),
    Statistic("kl", ("reference",), Budget(32, 32, "relative")),
    Statistic("reverse_kl", ("reference",), Budget(32, 32, "relative")),
    Statistic("js", ("reference",), Budget(32, 32, "relative")),
    Statistic("agree", ("reference",)),
)
