"""What must be reached: the ratio to the fastest peer, and the share of the machine's limit.

A bar without an entry is not asserted; being slower than a peer is reported either way.
"""

from __future__ import annotations

#: Peers that are held to a bar of their own, by operation and type: faster because they compute something else.
APART: dict[tuple[str, str], dict[str, float]] = {("kl_divergence", "float32"): {"NumKong": 1.0}}

#: A call on ten float64 numbers may take so many microseconds.
SMALL_CALL_US = 3.0

LONG_ROW = 100_000


def ratio_bar(op: str, dtype: str, classes: int) -> float | None:
    """How many times faster than the fastest peer, on one thread."""
    if op in ("logsumexp", "softmax_cross_entropy"):
        return 2.0 if dtype == "float64" else 1.6 if classes == 100 else 2.5
    if op in ("softmax", "log_softmax"):
        return 2.0 if dtype == "float64" else 1.3
    if op == "kl_divergence":
        return 3.0 if classes <= 10 else 1.5 if dtype == "float64" else 1.6
    return {"entropy": 1.6, "js_divergence": 2.0, "entropy[logits]": 4.0}.get(op)


def floor_bar(op: str, dtype: str, classes: int, all_cores: bool) -> float | None:
    """The share of the machine's limit, for long rows out of memory."""
    if classes < LONG_ROW:
        return None
    if op in ("logsumexp", "softmax_cross_entropy"):
        return 0.5 if dtype == "float64" else 0.85 if all_cores else 0.65
    if op in ("softmax", "log_softmax"):
        return 0.5 if dtype == "float64" else 0.6
    if op == "kl_divergence":
        return 0.6 if dtype == "float64" else 0.85
    return None
