"""The right answers, to 240 bits or more, and how far from them a result may be.

Each function takes one row as it is stored (its very floats, converted exactly) and returns mpmath numbers. Below them
are the rows that the tests draw: awkward ones, fresh in every run.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import mpmath
import numpy as np

import fastkl as fk
from fastkl.registry import FORMS, Budget, Operation

mp = mpmath.MPContext()
mp.prec = 240
INF = mp.inf

#: bars.md asks for a relative error "at every scale down to" these; below, the error allowed at that scale.
SMALLEST_LOSS = {"float32": 1e-30, "float64": 1e-280}
SMALLEST_DIVERGENCE = {"float32": 1e-12, "float64": 1e-25}


# One row ----------------------------------------------------------------------------------------------------------


def distances(x: Sequence[float]) -> tuple[Any, list[Any]]:
    """Return the maximum of x and the distance of each entry from it."""
    m = mp.mpf(max(x))
    return m, [m - mp.mpf(v) for v in x]


def rest_of(exps: Sequence[Any], top: int) -> Any:
    """Return the sum of the exps but the one at ``top``."""
    return mp.fsum(exps[:top]) + mp.fsum(exps[top + 1 :])


def logsumexp(x: Sequence[float]) -> Any:
    """log(sum(exp(x)))."""
    m, d = distances(x)
    return m + mp.log1p(rest_of([mp.exp(-v) for v in d], d.index(0)))


def signed_logsumexp(x: Sequence[float], b: Sequence[float]) -> tuple[Any, int]:
    """log(abs(sum(b * exp(x)))) and the sign of the sum."""
    kept = [(v, w) for v, w in zip(x, b, strict=True) if w != 0 and v != -math.inf]
    m, d = distances([v for v, _ in kept])
    total = mp.fsum(mp.mpf(w) * mp.exp(-v) for v, (_, w) in zip(d, kept, strict=True))
    return m + mp.log(abs(total)), int(mp.sign(total))


def softmax(x: Sequence[float]) -> list[Any]:
    """exp(x) / sum(exp(x))."""
    _, d = distances(x)
    exps = [mp.exp(-v) for v in d]
    reciprocal = 1 / mp.fsum(exps)
    return [e * reciprocal for e in exps]


def log_softmax(x: Sequence[float]) -> list[Any]:
    """The log of softmax: x - log(sum(exp(x)))."""
    _, d = distances(x)
    log_total = mp.log1p(rest_of([mp.exp(-v) for v in d], d.index(0)))
    return [-(v + log_total) for v in d]


def softmax_cross_entropy(x: Sequence[float], label: int) -> Any:
    """log(1 + sum of exp(x - x[label]) over the other classes)."""
    at = mp.mpf(x[label])
    return mp.log1p(mp.fsum(mp.exp(mp.mpf(v) - at) for j, v in enumerate(x) if j != label))


def entropy(p: Sequence[float]) -> Any:
    """-sum(p log p)."""
    return -mp.fsum(mp.mpf(v) * mp.log(mp.mpf(v)) for v in p if v > 0)


def entropy_of_logits(x: Sequence[float]) -> Any:
    """The entropy of softmax(x)."""
    _, d = distances(x)
    exps = [mp.exp(-v) for v in d]
    rest = rest_of(exps, d.index(0))
    return mp.log1p(rest) + mp.fsum(e * v for e, v in zip(exps, d, strict=True) if e) / (1 + rest)


def cross_entropy(p: Sequence[float], q: Sequence[float], of: Any = lambda term: term) -> Any:
    """-sum(p log q); with ``of=abs`` the sum of the absolute terms."""
    if any(u > 0 and v == 0 for u, v in zip(p, q, strict=True)):
        return INF
    return mp.fsum(of(-mp.mpf(u) * mp.log(mp.mpf(v))) for u, v in zip(p, q, strict=True) if u > 0)


def kl_divergence(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum(p log(p/q))."""
    if any(u > 0 and v == 0 for u, v in zip(p, q, strict=True)):
        return INF
    return mp.fsum(mp.mpf(u) * mp.log(mp.mpf(u) / mp.mpf(v)) for u, v in zip(p, q, strict=True) if u > 0)


def kl_normalized(p: Sequence[float], q: Sequence[float]) -> Any:
    """The same of p / sum(p) and q / sum(q)."""
    total_p, total_q = (mp.fsum(mp.mpf(v) for v in row) for row in (p, q))
    return kl_divergence(p, q) / total_p - mp.log(total_p / total_q)


def generalized_kl(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum(p log(p/q) - p + q), term by term: of the sums of each part, 240 bits need not be enough."""
    if any(u > 0 and v == 0 for u, v in zip(p, q, strict=True)):
        return INF
    terms = []
    for u, v in zip(map(mp.mpf, p), map(mp.mpf, q), strict=True):
        terms.append(u * mp.log(u / v) - (u - v) if u else v)
    return mp.fsum(terms)


# pointwise


def numbers(p: Sequence[float], q: Sequence[float]) -> list[tuple[Any, Any]]:
    """Return the pairs that are not both 0."""
    return [(mp.mpf(u), mp.mpf(v)) for u, v in zip(p, q, strict=True) if u or v]


def over_sums(function: Any, p: Sequence[float], q: Sequence[float]) -> Any:
    """Return a function of p / sum(p) and q / sum(q)."""
    total_p, total_q = (mp.fsum(map(mp.mpf, row)) for row in (p, q))
    return function([mp.mpf(v) / total_p for v in p], [mp.mpf(v) / total_q for v in q])


def log_times(p: Any, ratio: Any) -> Any:
    """Return p log(ratio), 0 where p is 0."""
    return p * mp.log(ratio) if p else mp.mpf(0)


def js_divergence(p: Sequence[float], q: Sequence[float], weight: float = 0.5) -> Any:
    """With m = w p + (1 - w) q: w sum(p log(p/m)) + (1 - w) sum(q log(q/m)), term by term."""
    w, terms = mp.mpf(weight), []
    for u, v in numbers(p, q):
        m = w * u + (1 - w) * v
        terms.append(w * log_times(u, u / m) + (1 - w) * log_times(v, v / m))
    return mp.fsum(terms)


def jeffreys_divergence(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum((p - q) log(p/q))."""
    pairs = numbers(p, q)
    return mp.fsum((u - v) * mp.log(u / v) for u, v in pairs) if all(u and v for u, v in pairs) else INF


def hellinger_square(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum((sqrt(p) - sqrt(q))^2) / 2."""
    return mp.fsum(((u - v) / (mp.sqrt(u) + mp.sqrt(v))) ** 2 for u, v in numbers(p, q)) / 2


def overlap(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum(sqrt(p q))."""
    return mp.fsum(mp.sqrt(u * v) for u, v in numbers(p, q))


def bhattacharyya_distance(p: Sequence[float], q: Sequence[float]) -> Any:
    """-log(sum(sqrt(p q)))."""
    shared = overlap(p, q)
    return -mp.log(shared) if shared else INF


def bhattacharyya_normalized(p: Sequence[float], q: Sequence[float]) -> Any:
    """The same of p / sum(p) and q / sum(q), where the sum is 1 less half a sum of squares."""
    lost = over_sums(hellinger_square, p, q)
    return -mp.log1p(-lost) if lost < 0.5 else over_sums(bhattacharyya_distance, p, q)


def total_variation(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum(abs(p - q)) / 2."""
    return mp.fsum(abs(u - v) for u, v in numbers(p, q)) / 2


def chi2_divergence(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum((p - q)^2 / q)."""
    pairs = numbers(p, q)
    return mp.fsum((u - v) ** 2 / v for u, v in pairs) if all(v for _, v in pairs) else INF


def triangular_discrimination(p: Sequence[float], q: Sequence[float]) -> Any:
    """sum((p - q)^2 / (p + q))."""
    return mp.fsum((u - v) ** 2 / (u + v) for u, v in numbers(p, q))


POINTWISE = {
    "js_divergence": js_divergence,
    "js_divergence[weight]": lambda p, q: js_divergence(p, q, 0.3),
    "js_distance": lambda p, q: mp.sqrt(js_divergence(p, q)),
    "jeffreys_divergence": jeffreys_divergence,
    "hellinger_distance": lambda p, q: mp.sqrt(hellinger_square(p, q)),
    "bhattacharyya_distance": bhattacharyya_distance,
    "total_variation": total_variation,
    "chi2_divergence": chi2_divergence,
    "chi2_divergence[neyman]": lambda p, q: chi2_divergence(q, p),
    "triangular_discrimination": triangular_discrimination,
    "js_divergence[normalize]": lambda p, q: over_sums(js_divergence, p, q),
    "js_distance[normalize]": lambda p, q: mp.sqrt(over_sums(js_divergence, p, q)),
    "jeffreys_divergence[normalize]": lambda p, q: over_sums(jeffreys_divergence, p, q),
    "hellinger_distance[normalize]": lambda p, q: mp.sqrt(over_sums(hellinger_square, p, q)),
    "bhattacharyya_distance[normalize]": bhattacharyya_normalized,
    "total_variation[normalize]": lambda p, q: over_sums(total_variation, p, q),
    "chi2_divergence[normalize]": lambda p, q: over_sums(chi2_divergence, p, q),
    "triangular_discrimination[normalize]": lambda p, q: over_sums(triangular_discrimination, p, q),
}

# Order alpha (renyi). Terms are near 1, their sums down to 1e-25: 240 bits are enough.


def power_terms(p: Sequence[float], q: Sequence[float], alpha: float) -> list[Any]:
    """p^alpha q^(1 - alpha); p = 0 contributes 0, also at alpha = 0."""
    a = mp.mpf(alpha)
    pairs = [(mp.mpf(u), mp.mpf(v)) for u, v in zip(p, q, strict=True)]
    powers = []
    for u, v in pairs:
        if u == v or not u:
            powers.append(u)     # exactly, so that equal rows have 0
        else:
            powers.append(u**a * v ** (1 - a) if v else INF if a >= 1 else mp.mpf(0))
    return powers


def tsallis_divergence(p: Sequence[float], q: Sequence[float], alpha: float) -> Any:
    """(sum(p^alpha q^(1 - alpha)) - sum(p)) / (alpha - 1)."""
    if alpha == 1:
        return kl_divergence(p, q)
    return mp.fsum(t - mp.mpf(u) for t, u in zip(power_terms(p, q, alpha), p, strict=True)) / (mp.mpf(alpha) - 1)


def renyi_divergence(p: Sequence[float], q: Sequence[float], alpha: float) -> Any:
    """log(sum(p^alpha q^(1 - alpha)) / sum(p)) / (alpha - 1)."""
    total = mp.fsum(mp.mpf(u) for u in p)
    if alpha == 1:
        return kl_divergence(p, q) / total
    if alpha == INF:
        return mp.log(max(mp.mpf(u) / mp.mpf(v) if v else INF for u, v in zip(p, q, strict=True) if u))
    powers = power_terms(p, q, alpha)
    if INF in powers or not any(powers):
        return INF
    # Term by term: of the sums, 240 bits need not be enough.
    less1 = mp.fsum(t - mp.mpf(u) for t, u in zip(powers, p, strict=True)) / total
    return (mp.log1p(less1) if abs(less1) < 0.5 else mp.log(mp.fsum(powers) / total)) / (mp.mpf(alpha) - 1)


def alpha_divergence(p: Sequence[float], q: Sequence[float], alpha: float) -> Any:
    """sum(alpha p + (1 - alpha) q - p^alpha q^(1 - alpha)) / (alpha (1 - alpha)), term by term."""
    if alpha in (0, 1):
        return generalized_kl(p, q) if alpha else generalized_kl(q, p)
    if alpha < 0:
        return alpha_divergence(q, p, 1 - mp.mpf(alpha))
    a = mp.mpf(alpha)
    terms = [
        a * mp.mpf(u) + (1 - a) * mp.mpf(v) - t for t, u, v in zip(power_terms(p, q, alpha), p, q, strict=True)
    ]
    return mp.fsum(t / (a * (1 - a)) for t in terms)


def renyi_entropy(p: Sequence[float], alpha: float) -> Any:
    """log(sum(p^alpha) / sum(p)) / (1 - alpha)."""
    p = [v for v in p if v]
    return -renyi_divergence(p, [1.0] * len(p), alpha)


def tsallis_entropy(p: Sequence[float], alpha: float) -> Any:
    """(sum(p) - sum(p^alpha)) / (alpha - 1)."""
    p = [v for v in p if v]
    return -tsallis_divergence(p, [1.0] * len(p), alpha)


def divided(p: Sequence[float]) -> list[Any]:
    """Return p over its sum."""
    total = mp.fsum(mp.mpf(v) for v in p)
    return [mp.mpf(v) / total for v in p]


def unit_of_order(operation: Operation, p: Sequence[float], q: Sequence[float], right: Any) -> Any:
    """Return the unit "order" of registry.Budget."""
    alpha, total = mp.mpf(operation.keywords["alpha"]), mp.fsum(mp.mpf(v) for v in p)
    gap = abs(mp.fsum(mp.mpf(u) - mp.mpf(v) for u, v in zip(p, q, strict=True)))
    parts = min(alpha * alpha_divergence(p, q, alpha) + gap, total / abs(alpha - 1))
    return max(abs(right), parts / total if operation.function == "renyi_divergence" else parts)



# scan


def logcumsumexp(x: Sequence[float]) -> list[Any]:
    """The logsumexp of each beginning of x, the sum relative to the largest so far."""
    m, total, results = -math.inf, mp.mpf(0), []
    for v in x:
        if v > m:
            total *= mp.exp(mp.mpf(m) - mp.mpf(v)) if m > -math.inf else 0
            m = v
        if v > -math.inf:
            total += mp.exp(mp.mpf(v) - mp.mpf(m))
        results.append(mp.mpf(m) + mp.log(total) if total else -INF)
    return results


def wasserstein_1d(p: Sequence[float], q: Sequence[float], x: Sequence[float] | None = None) -> Any:
    """sum(abs(cumsum(p - q)) times the distance to the next point)."""
    points = [mp.mpf(i if x is None else x[i]) for i in range(len(p))]
    order = sorted(range(len(p)), key=lambda i: points[i])
    running, terms = mp.mpf(0), []
    for i, next_ in itertools.pairwise(order):
        running += mp.mpf(p[i]) - mp.mpf(q[i])
        terms.append(abs(running) * (points[next_] - points[i]))
    return mp.fsum(terms)


def wasserstein_normalized(p: Sequence[float], q: Sequence[float]) -> Any:
    """The same of p / sum(p) and q / sum(q)."""
    total_p, total_q = (mp.fsum(mp.mpf(v) for v in row) for row in (p, q))
    return wasserstein_1d([mp.mpf(v) / total_p for v in p], [mp.mpf(v) / total_q for v in q])


def binary_cross_entropy(p: Sequence[float], y: Sequence[float]) -> list[Any]:
    """-y log(p) - (1 - y) log(1 - p) of each element."""
    pairs = [(mp.mpf(u), mp.mpf(v)) for u, v in zip(p, y, strict=True)]
    ones = [(-v * mp.log(u) if u else INF) if v else 0 for u, v in pairs]
    zeros = [(-(1 - v) * mp.log1p(-u) if u < 1 else INF) if v < 1 else 0 for u, v in pairs]
    return [one + zero for one, zero in zip(ones, zeros, strict=True)]


def binary_cross_entropy_of_logits(x: Sequence[float], y: Sequence[float]) -> list[Any]:
    """log(1 + exp(-abs(x))) + abs(x) times the label's share against the sign of x, of each element."""
    pairs = [(mp.mpf(u), mp.mpf(v)) for u, v in zip(x, y, strict=True)]
    return [mp.log1p(mp.exp(-abs(u))) + abs(u) * (1 - v if u > 0 else v) for u, v in pairs]


SCAN = {
    "logcumsumexp": logcumsumexp,
    "perplexity": lambda p: mp.exp(entropy(p)),
    "perplexity[logits]": lambda x: mp.exp(entropy_of_logits(x)),
    "wasserstein_1d": wasserstein_1d,
    "wasserstein_1d[normalize]": wasserstein_normalized,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy[logits]": binary_cross_entropy_of_logits,
}

def takes_every_size(operation: Operation) -> bool:
    """Return whether the tests that go through many sizes of a row do so for this operation.

    All of POINTWISE share their loops: one does, plainly and divided by the sums; of the others a few sizes suffice.
    """
    return operation.id not in POINTWISE or operation.id in ("js_divergence", "js_divergence[normalize]")


EXACT = {
    "logsumexp": logsumexp,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "softmax_cross_entropy": softmax_cross_entropy,
    "entropy": entropy,
    "entropy[logits]": entropy_of_logits,
    "cross_entropy": cross_entropy,
    "kl_divergence": kl_divergence,
    "kl_divergence[normalize]": kl_normalized,
    "generalized_kl": generalized_kl,
    **POINTWISE,
    # order alpha (renyi)
    "renyi_entropy[alpha=2]": partial(renyi_entropy, alpha=2),
    "tsallis_entropy[alpha=0.5]": partial(tsallis_entropy, alpha=0.5),
    "renyi_divergence[alpha=0.5]": partial(renyi_divergence, alpha=0.5),
    "renyi_divergence[alpha=2,normalize]": lambda p, q: renyi_divergence(divided(p), divided(q), 2),
    "tsallis_divergence[alpha=1.5]": partial(tsallis_divergence, alpha=1.5),
    "alpha_divergence[alpha=0.3]": partial(alpha_divergence, alpha=0.3),
    **SCAN,
}


def probabilities_of(operation: Operation, arguments: Sequence[Any]) -> list[Any]:
    """Return the probabilities that the rows of one of registry.FORMS are."""
    rows = []
    for operand, row in zip(operation.operands, plain(arguments), strict=True):
        logs = operand not in ("p", "q")
        # Logits to a maximum of 0 first, so that no exponential is out of mpmath's reach.
        shift = max(row) if operand in ("x", "y") else 0
        p = [mp.exp(mp.mpf(v) - shift) if logs else mp.mpf(v) for v in row]
        if operand in ("x", "y") or operation.keywords.get("normalize"):
            total = mp.fsum(p)
            p = [v / total for v in p]
        rows.append(p)
    return rows


def bits_for(operation: Operation, arguments: Sequence[Any]) -> int:
    """Return how many bits one of registry.FORMS takes: 240, and as many more as its rows' numbers are apart.

    A logit far above the others may have a probability of 1 - 2^-200, whose log has 40 good bits out of 240.
    """
    bits = mp.prec
    for operand, row in zip(operation.operands, plain(arguments), strict=True):
        if operand in ("p", "q"):
            logs = [math.log2(v) for v in row if v > 0]
        else:
            logs = [v / math.log(2) for v in row if v > -math.inf]
        bits += int(max(logs, default=0.0) - min(logs, default=0.0))
    return bits


def function_of(operation: Operation) -> Any:
    """Return what one of registry.FORMS is of probabilities."""
    options = {"weight", "kind"} & set(operation.keywords)
    if options:
        return POINTWISE[f"{operation.function}[{'weight' if 'weight' in options else operation.keywords['kind']}]"]
    if operation.function == "bhattacharyya_distance" and all_scaled(operation):
        return bhattacharyya_normalized
    return EXACT[operation.function]


def all_scaled(operation: Operation) -> bool:
    """Return whether all operands of one of registry.FORMS are divided by their sums."""
    return bool(operation.keywords.get("normalize")) or set(operation.operands) <= {"x", "y"}


def exact(operation: Operation, arguments: Sequence[Any]) -> list[Any]:
    """Return what the operation is of one row: one number, or one per element."""
    if operation in FORMS:
        with mp.workprec(bits_for(operation, arguments)):
            rows = probabilities_of(operation, arguments)
            if operation.function == "kl_divergence" and all_scaled(operation):
                return [generalized_kl(*rows)]     # p - q of each class is far below p
            return [function_of(operation)(*rows)]
    value = EXACT[operation.id](*plain(arguments))
    return value if operation.returns == "element" else [value]


def plain(arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments with each array as a list of Python floats."""
    return [v.astype(np.float64).tolist() if isinstance(v, np.ndarray) else v for v in arguments]


#: Divergences that are a function of a sum of terms: that sum, and how much the result changes with it.
MADE_OF_A_SUM = {
    "js_distance": (js_divergence, lambda result: 1 / (2 * result)),
    "hellinger_distance": (hellinger_square, lambda result: 1 / (2 * result)),
    "bhattacharyya_distance": (overlap, lambda result: mp.exp(result)),
}


# The error allowed ------------------------------------------------------------------------------------------------


def allowed(
    operation: Operation, arguments: Sequence[Any], right: Sequence[Any], dtype: str, pieces: int = 1
) -> list[Any]:
    """Return the error that the operation's budget allows each of the right results.

    A right result that is denormal is also allowed the rounding of the result itself; of a row in pieces, that of what
    each piece adds.
    """
    finfo = np.finfo(dtype)
    rounding, tiny, eps = pieces * mp.mpf(float(finfo.smallest_subnormal)) / 2, float(finfo.tiny), float(finfo.eps)
    with mp.workprec(bits_for(operation, arguments) if operation in FORMS else mp.prec):
        if operation in FORMS and operation.budget.scale != "relative+d/2":
            arguments = probabilities_of(operation, arguments)
        units = units_of(operation, plain(arguments), right, dtype, tiny)
    return [eps * u + (rounding if abs(r) < tiny else 0) for u, r in zip(units, right, strict=True)]


def units_of(operation: Operation, x: Sequence[Any], right: Sequence[Any], dtype: str, tiny: float) -> list[Any]:
    """Return each result's budget in eps: the multiple times the unit (see registry.Budget)."""
    multiple = operation.budget.multiple(dtype)
    if operation.budget.scale == "element+d/2":
        top = max(x[0])
        units = [(multiple + (top - v) / 2) * abs(r) if r else 0 for v, r in zip(x[0], right, strict=True)]
        if operation.function == "softmax":
            # Below the smallest normal number the bar only asks that the result be as small.
            units = [u if r >= tiny else tiny / float(np.finfo(dtype).eps) for u, r in zip(units, right, strict=True)]
        return units
    if operation.budget.scale == "relative+d/2":
        if operation.returns == "element":
            gaps = gaps_of_each(x[0])
        else:
            gaps = [gap(x[0], x[1] if "labels" in operation.operands else int(np.argmax(x[0])))]
        return [(multiple + d / 2) * max(abs(r), SMALLEST_LOSS[dtype]) for d, r in zip(gaps, right, strict=True)]
    if operation.budget.scale == "exp":
        d = gap(x[0], int(np.argmax(x[0]))) if operation.domain == "logits" else 0.0
        return [(multiple + d / 2) * abs(r) * max(1, mp.log(r)) for r in right]
    return [multiple * unit(operation, x, r, dtype) for r in right]


def gaps_of_each(x: Sequence[float]) -> list[float]:
    """Return gap(x, j) for each j."""
    top = int(np.argmax(x))
    return [gap(x, j) if j == top else x[top] - v if math.isfinite(v) else 0.0 for j, v in enumerate(x)]


def gap(x: Sequence[float], label: int) -> float:
    """Return the distance between the label's logit and the largest of the others; 0 where there is none."""
    others = max((v for j, v in enumerate(x) if j != label), default=-math.inf)
    return abs(others - x[label]) if math.isfinite(others - x[label]) else 0.0


def unit(operation: Operation, x: Sequence[Any], right: Any, dtype: str) -> Any:
    """Return what one eps of an operation's budget is a fraction of (see registry.Budget)."""
    if not mp.isfinite(right):
        return 0
    match operation.budget.scale:
        case "max1":
            return max(1, abs(right))
        case "distance":
            return max(abs(right), float(np.finfo(dtype).eps))
        case "transport":
            return max(abs(right), float(np.finfo(dtype).eps) * len(x[0]))
        case "relative" if len(operation.operands) == 2 and operation.returns == "row":
            return max(abs(right), SMALLEST_DIVERGENCE[dtype])
        case "relative":
            return abs(right)
        case "absolute-sum":
            return cross_entropy(x[0], x[-1], of=abs)
        case "logs":
            return abs(right) + cross_entropy(x[0], x[0], of=abs) + cross_entropy(x[0], x[1], of=abs)
        case "order":
            return max(unit_of_order(operation, *x, right), SMALLEST_DIVERGENCE[dtype])
        case "mixed":
            # The terms' derivatives, by a change that is far below their digits and far above the oracle's; then the
            # derivative of what is made of their sum.
            change, total = mp.mpf(10) ** -30, mp.mpf(0)
            function, outer = MADE_OF_A_SUM.get(operation.function, (function_of(operation), lambda result: 1))
            for u, v in zip(*x, strict=True):
                if u:
                    slope = (function([u * (1 + change)], [v]) - function([u], [v])) / change
                    total += abs(slope) * (1 + abs(mp.log(u)))
            return abs(right) + (total * outer(right) if right else 0)
        case "kl":
            return generalized_kl(*x) + abs(mp.fsum(mp.mpf(u) - mp.mpf(v) for u, v in zip(*x, strict=True)))
        case "overlap":
            gap = mp.fsum(mp.mpf(v) for row in x for v in row) / 2 - 1
            return max(hellinger_square(*x) + abs(gap), abs(right), float(np.finfo(np.float64).eps))
    raise ValueError(f"no unit is known for a budget of scale {operation.budget.scale!r}")


def errors_over_budget(got: np.ndarray, right: Sequence[Any], bounds: Sequence[Any]) -> list[float]:
    """Return each error as a fraction of what is allowed: above 1 is a failure; infinity is a wrong 0, inf or NaN."""
    fractions = []
    largest = float(np.finfo(got.dtype).max)
    for g, r, bound in zip(np.asarray(got, np.float64).reshape(-1).tolist(), right, bounds, strict=True):
        if not (math.isfinite(g) and mp.isfinite(r)):
            beyond = math.isinf(g) and abs(r) > largest and (g > 0) == (r > 0)     # no number of the type is that large
            fractions.append(0.0 if g == r or beyond else math.inf)
            continue
        error = abs(mp.mpf(g) - r)
        fractions.append(float(error / bound) if bound else math.inf if error else 0.0)
    return fractions


def relative_errors(got: Iterable[float], right: Sequence[Any], budget: Budget, dtype: str) -> list[float]:
    """The same for a plain relative budget that is not an operation's own."""
    eps = float(np.finfo(dtype).eps)
    return errors_over_budget(
        np.array(list(got), np.float64), right, [budget.multiple(dtype) * eps * abs(r) for r in right]
    )


# Calls ------------------------------------------------------------------------------------------------------------


def evaluate(module: ModuleType, operation: Operation, arrays: Sequence[Any], **keywords: Any) -> Any:
    """Call the operation's function, of fastkl or of fastkl.reference."""
    return getattr(module, operation.function)(*arrays, **operation.keywords, **keywords)


def takes(operation: Operation, keyword: str) -> bool:
    """Whether the operation's function has this keyword."""
    return keyword in inspect.signature(getattr(fk, operation.function)).parameters


def stacked(rows: Sequence[Row]) -> list[np.ndarray]:
    """Return the rows as one batch: an array for each operand."""
    return [np.stack([np.asarray(row.arguments[i]) for row in rows]) for i in range(len(rows[0].arguments))]


# Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row as it is stored, and the name of the kind of row it is."""

    kind: str
    arguments: tuple[Any, ...]


def rows_for(operation: Operation, size: int, dtype: str, rng: np.random.Generator) -> list[Row]:
    """Return one row of every awkward kind for the operation, freshly drawn."""
    kinds: Iterator[tuple[str, tuple[Any, ...]]]
    if operation in FORMS:
        drawn = given_rows(operation, size, dtype, rng)
        return [Row(kind, tuple(cast(v, dtype) for v in rows)) for kind, rows in drawn]
    if operation.operands == ("p", "q"):
        kinds = ((kind, pair) for kind, *pair in pairs(size, dtype, rng))
        if operation.keywords.get("normalize"):
            # The other operations' results would be denormal too, which leaves nothing to measure.
            small = rng.integers(1, 2000, (2, size)) * np.finfo(dtype).smallest_subnormal
            kinds = iter([*kinds, ("all denormal", tuple(small))])
    elif operation.operands == ("p",):
        kinds = ((kind, (p,)) for kind, p in probabilities(size, dtype, rng))
    elif operation.operands == ("x", "labels"):
        kinds = ((kind, (x, label)) for kind, x in logits(size, dtype, rng) for label in [label_for(x, rng)])
    else:
        kinds = ((kind, (x,)) for kind, x in logits(size, dtype, rng))
    rows = [Row(kind, tuple(cast(v, dtype) for v in arguments)) for kind, arguments in kinds]
    rows = [row for row in rows if not divides_by_zero(operation, row.arguments)]
    contents = {tuple(np.asarray(v).tobytes() for v in row.arguments) for row in rows}
    assert size < 10 or len(contents) == len(rows), "a generator drew the same row twice"
    return rows


def given_rows(
    operation: Operation, size: int, dtype: str, rng: np.random.Generator
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield rows for one of registry.FORMS: those drawn as probabilities, by their logs where it takes these."""

    def as_given(operand: str, p: np.ndarray) -> np.ndarray:
        if operand in ("p", "q"):
            return p
        with np.errstate(divide="ignore"):
            log_p: np.ndarray = np.log(p)
        return log_p + rng.uniform(-30, 30) if operand in ("x", "y") else log_p

    two = len(operation.operands) == 2
    drawn: Iterator[tuple[Any, ...]] = pairs(size, dtype, rng) if two else probabilities(size, dtype, rng)
    for kind, *rows in drawn:
        if kind == "every scale":
            rows = [np.minimum(p, 1e250) for p in rows]     # see the domain of log-probabilities
        if not all(np.any(p) for p in rows):
            continue     # no distribution
        given = tuple(as_given(operand, p) for operand, p in zip(operation.operands, rows, strict=True))
        if kind == "same" and len(set(operation.keywords["given"])) != 2:
            given = given[:1] * 2     # the same numbers
        yield kind, given
    if two and set(operation.operands) <= {"x", "y", "log_p", "log_q"}:
        for exponent in (1, 2, 3, 4, 5, 6) if dtype == "float32" else (1, 3, 5, 7, 9, 11, 12.5):
            a = (rng.normal(size=size) * 10.0 ** rng.uniform(-3, 0.5) - 1).astype(dtype).astype(np.float64)
            yield f"logs 1e-{exponent} apart", (a, a + 10.0**-exponent * rng.normal(size=size).clip(-4, 4))


def divides_by_zero(operation: Operation, arguments: Sequence[Any]) -> bool:
    """Whether a sum that the operation divides by is 0: an edge, not a matter of digits."""
    if operation.keywords.get("normalize"):
        return not all(v.any() for v in arguments)
    return operation.function.startswith("renyi") and not arguments[0].any()


def cast(v: Any, dtype: str) -> Any:
    """Return an array in the given type, anything else as it is."""
    return v.astype(dtype) if isinstance(v, np.ndarray) else v


def label_for(x: np.ndarray, rng: np.random.Generator) -> int:
    """Return the class of the largest logit half of the time, else any whose logit is finite."""
    finite = np.flatnonzero(np.isfinite(x))
    return int(np.argmax(x)) if rng.random() < 0.5 else int(rng.choice(finite))


def logits(size: int, dtype: str, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield rows of logits."""
    normal = rng.normal(size=size)
    at = rng.integers(size)
    wide, deepest = (30.0, 69.0) if dtype == "float32" else (200.0, 644.0)
    yield "normal", 2 * normal
    yield "wide", wide * rng.normal(size=size)
    yield "far above 0", 3 * rng.normal(size=size) + rng.uniform(500, 5000)
    yield "far below 0", 3 * rng.normal(size=size) - rng.uniform(500, 5000)
    yield "constant", np.full(size, rng.uniform(-3, 3))
    yield "tiny", 1e-20 * rng.normal(size=size)
    yield "ascending", np.sort(rng.uniform(-wide, wide, size))
    yield "descending", -np.sort(rng.uniform(-wide, wide, size))
    yield "two values", rng.choice(rng.normal(size=2), size)

    x = rng.normal(size=size).astype(dtype)
    x[[at, rng.integers(size)]] = x.max() + 1
    x[at] = np.nextafter(x[at], np.array(np.inf, dtype))
    yield "nearly equal maxima", x

    for kind, low, high in [("maximum ahead", 5.0, 20.0), ("maximum far ahead", 20.0, deepest)]:
        x = rng.uniform(-2, 0, size) + math.log(1 / size) - rng.uniform(low, high - 3)
        x = np.maximum(x, -deepest)
        x[at] = 0.0
        yield kind, x + (rng.uniform(0, 3) if kind == "maximum ahead" else 0.0)

    x = 3 * rng.normal(size=size)
    x[rng.random(size) < 0.2] = -np.inf
    x[at] = 0.5 + rng.random()
    yield "some -inf", x


def simplex(size: int, rng: np.random.Generator, concentration: float = 1.0) -> np.ndarray:
    """Draw from the symmetric Dirichlet distribution."""
    draw = rng.gamma(concentration, size=size)
    draw[rng.integers(size)] += 1e-3
    return draw / draw.sum()


def probabilities(size: int, dtype: str, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield rows of probabilities, none above 1: past that, entropy is a difference and has no relative budget."""
    at = rng.integers(size)
    yield "uniform", np.full(size, 1 / size)
    for concentration in (0.05, 0.5, 1.0, 20.0):
        yield f"Dirichlet({concentration})", np.minimum(simplex(size, rng, concentration), 1.0)
    for rest in (1e-2, 1e-5, 1e-7) if dtype == "float32" else (1e-3, 1e-9, 1e-15):
        p = rest * simplex(size, rng)
        p[at] = 1 - rest * rng.uniform(0.5, 1)
        yield f"1 - {rest}", p
    p = simplex(size, rng)
    p[rng.random(size) < 0.5] = 0.0
    yield "half zeros", p
    p = np.zeros(size)
    p[at] = 1.0
    yield "one-hot", p
    yield "sums to less", rng.uniform(0.05, 0.3) * simplex(size, rng)
    p = simplex(size, rng)
    few = rng.random(size) < 0.3
    p[few] = rng.integers(1, 1000, few.sum()) * float(np.finfo(dtype).smallest_subnormal)
    yield "some denormal", p


def pairs(size: int, dtype: str, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield pairs of rows of probabilities."""
    at = rng.integers(size)
    denormal = float(np.finfo(dtype).smallest_subnormal)
    largest = 1e35 if dtype == "float32" else 1e302
    p, q = simplex(size, rng), simplex(size, rng)
    yield "independent", p, q
    yield "peaked", simplex(size, rng, 0.1), simplex(size, rng, 20.0)
    yield "same", p, p
    for exponent in (1, 2, 3, 4, 5, 6) if dtype == "float32" else (1, 3, 5, 7, 9, 11, 13):
        p = simplex(size, rng, 5.0).astype(dtype).astype(np.float64)
        yield f"1e-{exponent} apart", p, p * (1 + 10.0**-exponent * rng.normal(size=size).clip(-4, 4))
    for factor in (2.0, 3.0):
        p = simplex(size, rng).astype(dtype).astype(np.float64)
        yield f"{factor:.0f} times", p, factor * p
    yield "sums of 0.1 and 7e5", 0.1 * simplex(size, rng), 7e5 * simplex(size, rng)
    p = simplex(size, rng)
    yield "sums of 7e5 and 0.1, near", 7e5 * p, 0.1 * p * (1 + 1e-3 * rng.normal(size=size))

    p, q = simplex(size, rng), simplex(size, rng)
    zeros = rng.random(size)
    p[zeros < 0.5], q[zeros < 0.25] = 0.0, 0.0
    p[at] = q[at] = 0.5
    yield "zeros", p, q
    p = np.zeros(size)
    p[at] = 1.0
    yield "one-hot", p, simplex(size, rng)
    p = 1e-6 * simplex(size, rng)
    p[at] = 1 - 1e-6
    yield "nearly one-hot", p, 0.9 * p + 0.1 * simplex(size, rng)
    p, q = simplex(size, rng), simplex(size, rng)
    q[at], p[at] = 0.0, 0.1
    if size > 1:
        yield "p where q is 0", p, q

    few = rng.random((2, size)) < 0.3
    small = rng.integers(1, 1000, (2, size)) * denormal
    p, q = np.where(few, small, rng.dirichlet(np.ones(2 * size)).reshape(2, size))
    yield "some denormal", p, q
    exponents = rng.uniform(-1, 1, (2, size))
    p, q = largest**exponents
    yield "every scale", p / size, q / size
    p, q = simplex(size, rng), simplex(size, rng) / largest
    yield "q near the least", p, q
