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
    "max1", "relative", "distance", "relative+d/2", "relative+d", "element+d/2", "absolute-sum", "kl", "overlap",
    "order", "exp", "transport", "logs", "mixed",
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
    ``logs``
        abs(result) + sum(p * (abs(log(p)) + abs(log(q)))): p log(p/q) by the logs, each of which is rounded.
    ``order``
        abs(result), or if larger the smaller of alpha D + abs(sum(p - q)), D being the alpha divergence, and
        sum(p) / abs(alpha - 1): plain Tsallis divergence is a difference of these. For Renyi's both are over sum(p).
    ``mixed``
        abs(result) + sum(abs(p * dterm/dp) * (1 + abs(log(p)))): each probability changed by its log's rounding. Of a
        root or a log of the sum, times its derivative.
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
        What is passed by position: "x" and "y" (logits), "log_p" and "log_q" (log-probabilities), "p" and "q"
        (probabilities), "labels", "targets" (labels of two classes).
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

# given

_WORDS = {"p": "probs", "q": "probs", "log_p": "log_probs", "log_q": "log_probs", "x": "logits", "y": "logits"}


def _form(function: str, operands: tuple[str, ...], budget: Budget, **keywords: Any) -> Operation:
    """An operation of other inputs than probabilities, or of probabilities divided by their sums."""
    words = tuple(_WORDS[operand] for operand in operands)
    given = words[0] if len(set(words)) == 1 else words
    form = "-".join([given if isinstance(given, str) else "-".join(given), *keywords])
    return Operation(function, operands, "row", budget, len(operands), form=form, keywords={"given": given, **keywords})


_RELATIVE, _LOGS, _MIXED = Budget(32, 32, "relative"), Budget(4, 4, "logs"), Budget(8, 8, "mixed")
_OF_SUMS = ("js_distance", "hellinger_distance", "bhattacharyya_distance")
_TERMS = ("js_divergence", "jeffreys_divergence", "total_variation", "chi2_divergence", "triangular_discrimination")

#: The same operations of log-probabilities, logits and mixed pairs; in a table of their own, for a few sizes and
#: layouts tell as much of them as all do of the plain ones.
FORMS: tuple[Operation, ...] = (
    _form("entropy", ("log_p",), Budget(4, 4, "absolute-sum")),
    _form("entropy", ("log_p",), Budget(4, 4, "relative+d/2"), normalize=True),
    _form("entropy", ("p",), Budget(8, 8, "relative"), normalize=True),
    _form("cross_entropy", ("x", "y"), Budget(8, 8, "relative")),
    _form("cross_entropy", ("log_p", "log_q"), Budget(4, 4, "absolute-sum")),
    _form("cross_entropy", ("p", "y"), Budget(8, 8, "relative")),
    _form("cross_entropy", ("x", "q"), Budget(8, 8, "absolute-sum")),
    _form("cross_entropy", ("p", "q"), Budget(8, 8, "relative"), normalize=True),
    _form("kl_divergence", ("x", "y"), _RELATIVE),
    _form("kl_divergence", ("log_p", "log_q"), _LOGS),
    _form("kl_divergence", ("log_p", "log_q"), _RELATIVE, normalize=True),
    _form("kl_divergence", ("p", "y"), _LOGS),
    _form("kl_divergence", ("x", "q"), _LOGS),
    _form("kl_divergence", ("p", "y"), _LOGS, normalize=True),
    _form("kl_divergence", ("x", "log_q"), _LOGS),
    _form("generalized_kl", ("x", "y"), _RELATIVE),
    _form("generalized_kl", ("log_p", "log_q"), _RELATIVE),
    _form("generalized_kl", ("p", "log_q"), Budget(8, 8, "logs")),
    *(_form(name, ("x", "y"), _RELATIVE) for name in (*_TERMS, "js_distance", "hellinger_distance")),
    *(_form(name, ("log_p", "log_q"), _RELATIVE) for name in (*_TERMS, "hellinger_distance")),
    *(_form(name, ("p", "y"), _MIXED) for name in (*_TERMS, *_OF_SUMS)),
    *(_form(name, ("log_p", "y"), _MIXED) for name in _OF_SUMS),
    _form("js_divergence", ("x", "y"), _RELATIVE, weight=0.3),
    _form("chi2_divergence", ("x", "q"), _MIXED, kind="neyman"),
    _form("bhattacharyya_distance", ("x", "y"), _RELATIVE),
    _form("bhattacharyya_distance", ("log_p", "log_q"), Budget(1, 8, "max1")),
)

#: Operations of single elements, without rows or an axis; "targets" are labels from 0 to 1.
ELEMENTWISE: tuple[Operation, ...] = (
    Operation("binary_cross_entropy", ("p", "targets"), "element", Budget(4, 4, "relative"), 2, 1),
    Operation(
        "binary_cross_entropy", ("x", "targets"), "element", Budget(4, 4, "relative"), 2, 1, form="logits",
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
