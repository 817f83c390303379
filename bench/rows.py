"""score() beside the calls that it replaces: ``python bench/rows.py``.

All take turns on the same float32 arrays, on one thread, in one process; medians are compared. Several copies of the
arrays are walked through, so that none is in cache when its turn comes. ``--clock cpu`` takes the thread's processor
time in place of the wall clock, on a machine that others use too.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial

import cases
import numpy as np

import fastkl as fk
from fastkl.registry import STATISTICS

SHAPES = ((64, 128_256), (10_000, 1_000), (1_000_000, 10))
OF_ONE = [s.name for s in STATISTICS if s.by_default and "reference" not in s.needs]


def contenders(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """What takes turns, by name; the first is what the others are compared with."""
    score = partial(fk.score, x, n_threads=1)
    return {
        "entropy(logits)": partial(fk.entropy, x, given="logits", n_threads=1),
        "logsumexp": partial(fk.logsumexp, x, n_threads=1),
        "softmax_cross_entropy": partial(fk.softmax_cross_entropy, x, labels, n_threads=1),
        "numpy argmax": partial(np.argmax, x, axis=1),
        "score: entropy": partial(score, stats=["entropy"]),
        "score: loss": partial(score, labels, stats=["loss"]),
        "score: argmax": partial(score, stats=["argmax"]),
        "score: rank, margin, argmax": partial(score, labels, stats=["rank", "margin", "argmax"]),
        "score: lse, loss, entropy": partial(score, labels, stats=["lse", "loss", "entropy"]),
        f"score: all {len(OF_ONE)} of one model": partial(score, labels, stats=OF_ONE),
        "  where the labels are right": partial(score, x.argmax(axis=1), stats=OF_ONE),
        "score: top_k, k = 5": partial(score, stats=["top_k"]),
        "score: kl": partial(score, None, y, stats=["kl"]),
        "score: kl, reverse_kl, js": partial(score, None, y, stats=["kl", "reverse_kl", "js"]),
        "score: all of two models": partial(score, labels, y),
    }


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    rng = np.random.default_rng()
    print(f"{fk.build_info()['tier']}, one thread, medians of {options.rounds} ({options.clock} clock)")
    for shape in SHAPES:
        copies = [cases.make_inputs(shape, "float32", rng) for _ in range(cases.copies_needed(shape, "float32"))]
        # q is spent as a second model's logits: the log of a softmax of such.
        parties = [contenders(c.x, np.log(c.q), c.labels) for c in copies]
        seconds: dict[str, list[float]] = {name: [] for name in parties[0]}
        for turn in range(options.rounds + 1):
            party = list(parties[turn % len(parties)].items())
            for name, call in random.sample(party, len(party)):
                started = clock()
                call()
                if turn:    # the first touches what is new
                    seconds[name].append(clock() - started)
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        first = next(iter(medians.values()))
        print(f"\n{cases.shape_name(shape)}")
        for name, median in medians.items():
            per_element = median * 1e9 / (shape[0] * shape[1])
            print(f"  {name:32} {median * 1e3:8.2f} ms {per_element:7.3f} ns/element {median / first:6.2f} x entropy")


if __name__ == "__main__":
    main()
