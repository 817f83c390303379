"""What a second thread gains and what waking it costs: python bench/threads.py [--spacing MS]

Calls of several lengths on one thread, on two (or as many as there are) and on what the policy grants, first back to
back and then one every 20 ms, each kind for itself: a call on two threads leaves a team that spins for some
milliseconds beside the next one. Run it again with OMP_WAIT_POLICY=passive or GOMP_SPINCOUNT=1000 in the environment.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

import fastkl as fk

CLASSES = 8192


def measure(rows: np.ndarray, n_threads: int | None, calls: int, spacing: float) -> np.ndarray:
    """Return the milliseconds of each of some calls, `spacing` seconds of sleep before each."""
    taken = []
    for _ in range(calls):
        if spacing:
            time.sleep(spacing)
        start = time.perf_counter()
        fk.logsumexp(rows, n_threads=n_threads)
        taken.append(time.perf_counter() - start)
    return np.array(taken) * 1e3


def main() -> None:
    """Print a table: medians, and in brackets the ninth decile."""
    parser = argparse.ArgumentParser(description="what a second thread gains, and what waking it costs")
    parser.add_argument("--spacing", type=float, default=20, metavar="MS", help="between calls made now and then")
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    settings = {name: os.environ.get(name, "-") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    most = fk.get_num_threads()
    print(f"logsumexp, float32, rows of {CLASSES}; ms; {most} threads; {fk.build_info()['tier']}; {settings}")
    print("| calls | MiB | 1 thread | all | policy | 1 / all | policy / 1 |")
    print("|---|---|---|---|---|---|---|")
    x = np.random.default_rng(1).standard_normal((3072, CLASSES), dtype=np.float32)
    for spacing in (0.0, options.spacing / 1e3):
        for mib in (1, 2, 4, 8, 16, 32, 64, 96):
            rows = x[: mib << 5]
            columns = []
            for n_threads in (1, most, None):
                time.sleep(0.03)  # for the team to fall asleep
                measure(rows, n_threads, 10, 0) if not spacing else None
                columns.append(measure(rows, n_threads, options.calls, spacing))
            cells = [f"{np.median(c):.3f} ({np.quantile(c, 0.9):.3f})" for c in columns]
            one, both, policy = (float(np.median(c)) for c in columns)
            kind = f"every {options.spacing:g} ms" if spacing else "back to back"
            print(f"| {kind} | {mib} | {' | '.join(cells)} | {one / both:.2f} | {policy / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
