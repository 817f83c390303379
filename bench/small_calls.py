"""Where the time of a small call goes: python bench/small_calls.py [--elements N]

Each operation is called on one row of ten float64 numbers, in turn with a Python function that takes the same arguments
and does nothing. The compiled part is timed by itself, called with what it was called with by the function.
Microseconds, the least of many rounds: what comes on top in a round is the machine's.
"""

from __future__ import annotations

import argparse
import inspect
import timeit
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastkl as fk
from fastkl import _kernels
from fastkl.registry import OPERATIONS

CALLS = 1000


def empty_like(function: Callable[..., Any]) -> Callable[..., None]:
    """Return a function of the same arguments that does nothing."""
    takes = str(inspect.signature(function, eval_str=False).replace(return_annotation=inspect.Signature.empty))
    names: dict[str, Any] = {}
    exec(f"from __future__ import annotations\nfrom math import nan\ndef empty{takes}: pass", names)
    return names["empty"]


def compiled_part(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call of a compiled entry that a call makes."""
    seen: list[partial[Any]] = []
    tier = _kernels.active

    def watched(entry: str) -> Callable[..., Any]:
        def run(*arguments: Any, **told: Any) -> Any:
            seen.append(partial(getattr(tier, entry), *arguments, **told))
            return seen[-1]()

        return run

    entries = ("run", "run_plain", "of_order", "of_order_plain")
    _kernels.active = SimpleNamespace(**{entry: watched(entry) for entry in entries})
    try:
        call()
    finally:
        _kernels.active = tier
    return seen[-1]    # the first may have found that the call is none of its own


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="where the time of a small call goes")
    parser.add_argument("--elements", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    row = {"x": rng.normal(size=options.elements), "labels": np.array(options.elements // 2)}
    row |= {name: rng.dirichlet(np.ones(options.elements)) for name in ("p", "q")}
    calls = {}
    for op in OPERATIONS:
        function = getattr(fk, op.function)
        arguments = [row[operand] for operand in op.operands]
        whole = partial(function, *arguments, **op.keywords)
        calls[op.id] = whole, partial(empty_like(function), *arguments, **op.keywords), compiled_part(whole)
    least: dict[str, list[float]] = {name: [np.inf] * 3 for name in calls}
    for _ in range(options.rounds):
        for name, timed in calls.items():
            least[name] = [
                min(t, timeit.timeit(call, number=CALLS) / CALLS * 1e6)
                for t, call in zip(least[name], timed, strict=True)
            ]
    print(f"one row of {options.elements}, float64; us; {fk.build_info()['tier']}")
    print("| operation | over an empty call | compiled | checks, plan of the call, result |")
    print("|---|---|---|---|")
    for name, (whole, empty, compiled) in least.items():
        print(f"| {name} | {whole - empty:.2f} | {compiled:.2f} | {whole - empty - compiled:.2f} |")


if __name__ == "__main__":
    main()
