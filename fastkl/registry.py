"""One row per operation: its name, form, domain, accuracy budget and memory traffic.

Whatever is done "for each operation" starts from this table: the tests are parametrised from it, the accuracy bars
are asserted from it, the benchmarks are made from it and the documentation quotes it. A number written here is
written nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scale = Literal[
    "max1", "relative", "distance", "relative+d/2", "relative+d", "element+d/2", "absolute-sum", "kl", "overlap", "exp",
    "transport",
]  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How far a result may be from the exact one.

    The allowed error is ``eps * multiple * unit``, with ``eps`` that of the result's type, ``multiple`` one of the two
    numbers below and ``unit`` by ``scale``:

    ``max1``
        max(1, abs(result)).
    ``relative``
        abs(result).
    ``distance``
        abs(result), at least eps: of rows that are proportional but for their rounding a distance, being linear in it,
        keeps what dividing by the sums leaves.
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
    ``overlap``
        H + abs((sum(p) + sum(q)) / 2 - 1), at least abs(result) and 2**-52, where H is the square of the Hellinger
        distance: the two parts that the overlap differs from 1 by, and may cancel.
    ``transport``
        abs(result), at least eps times the distance from the first point to the last: of rows that are proportional but
        for their rounding, what dividing by the sums leaves.
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
        What is passed by position: "x" (logits), "p" and "q" (probabilities), "labels", "y" (labels of two classes).
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
    # pointwise
    Operation("js_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2),
    Operation(
        "js_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2, form="weight", keywords={"weight": 0.3}
    ),
    Operation("js_distance", ("p", "q"), "row", Budget(4, 4, "relative"), 2),
    Operation("jeffreys_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2),
    Operation("hellinger_distance", ("p", "q"), "row", Budget(4, 4, "relative"), 2),
    Operation("bhattacharyya_distance", ("p", "q"), "row", Budget(8, 8, "overlap"), 2),
    Operation("total_variation", ("p", "q"), "row", Budget(4, 4, "relative"), 2),
    Operation("chi2_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2),
    Operation(
        "chi2_divergence", ("p", "q"), "row", Budget(8, 8, "relative"), 2, form="neyman", keywords={"kind": "neyman"}
    ),
    Operation("triangular_discrimination", ("p", "q"), "row", Budget(8, 8, "relative"), 2),
    *(
        Operation(name, ("p", "q"), "row", budget, 2, form="normalize", keywords={"normalize": True})
        for name, budget in {
            "js_divergence": Budget(8, 8, "relative"),
            "js_distance": Budget(4, 4, "distance"),
            "jeffreys_divergence": Budget(8, 8, "relative"),
            "hellinger_distance": Budget(4, 4, "distance"),
            "bhattacharyya_distance": Budget(8, 8, "relative"),
            "total_variation": Budget(4, 4, "distance"),
            "chi2_divergence": Budget(8, 8, "relative"),
            "triangular_discrimination": Budget(8, 8, "relative"),
        }.items()
    ),
    # scan
    Operation("logcumsumexp", ("x",), "element", Budget(1, 2, "max1"), 1, 1),
    Operation("perplexity", ("p",), "row", Budget(5, 5, "exp"), 1),
    Operation("perplexity", ("x",), "row", Budget(5, 5, "exp"), 1, form="logits", keywords={"given": "logits"}),
    Operation("wasserstein_1d", ("p", "q"), "row", Budget(4, 4, "relative"), 2),
    Operation(
        "wasserstein_1d", ("p", "q"), "row", Budget(4, 4, "transport"), 2, form="normalize",
        keywords={"normalize": True},
    ),
)

#: Operations of single elements, without rows or an axis; "y" are labels from 0 to 1.
ELEMENTWISE: tuple[Operation, ...] = (
    Operation("binary_cross_entropy", ("p", "y"), "element", Budget(4, 4, "relative"), 2, 1),
    Operation(
        "binary_cross_entropy", ("x", "y"), "element", Budget(4, 4, "relative"), 2, 1, form="logits",
        keywords={"given": "logits"},
    ),
)  # fmt: skip


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
