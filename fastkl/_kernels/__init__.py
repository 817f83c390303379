"""The compiled kernels: one source, compiled once per instruction set; the tier is chosen once, at import.

``FASTKL_TIER=avx512``, ``avx2`` or ``base`` forces one. AVX-512 and AVX2 give the same bits; the baseline has no fused
multiply-add and may differ in the last digit, within the same budgets.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType

from . import cpu as cpu

TIERS = ("avx512", "avx2", "base")

# The operations' numbers in the kernels: the order of `Op` in plan.pxi.
(
    LOGSUMEXP,
    WEIGHTED_LOGSUMEXP,
    SOFTMAX,
    LOG_SOFTMAX,
    SOFTMAX_CROSS_ENTROPY,
    ENTROPY_OF_LOGITS,
    ENTROPY,
    CROSS_ENTROPY,
    KL,
    KL_NORMALIZED,
    GENERALIZED_KL,
    # pointwise
    JS,
    JS_DISTANCE,
    JEFFREYS,
    HELLINGER,
    BHATTACHARYYA,
    TOTAL_VARIATION,
    CHI2,
    TRIANGULAR,
    # scan
    LOGCUMSUMEXP,
    WASSERSTEIN,
    BINARY_LOGITS,
    BINARY_PROBS,
) = range(23)


def supported() -> list[str]:
    """The tiers that this processor can run, the fastest first."""
    return [tier for tier in TIERS if tier == "base" or getattr(cpu, tier)]


def load(tier: str) -> ModuleType:
    """Return the module of a tier."""
    if tier not in supported():
        raise ImportError(f"fastkl has no tier {tier!r} here; this CPU has: {', '.join(supported())}")
    return importlib.import_module(f"{__name__}.{tier}")


@contextlib.contextmanager
def use(name: str) -> Iterator[ModuleType]:
    """Run with another tier for a while. For tests: other threads see the change too."""
    global active, tier
    before = active, tier
    active, tier = load(name), name
    try:
        yield active
    finally:
        active, tier = before


tier = os.environ.get("FASTKL_TIER") or supported()[0]
active = load(tier)
