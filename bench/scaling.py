"""Cost per element over rows and over classes: python bench/scaling.py [--plot FILE.png] [--threads N] [--dtype TYPE]

Two sweeps: 10^2 to 10^8 elements in rows of 1000 classes, and 2 to 10^6 classes in 10^7 elements. The cost of an
element should grow with neither, but for what a call itself costs (the left end of the first) and where the arrays
leave a cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import fastkl as fk

ELEMENTS = tuple(10**k for k in range(2, 9))
CLASSES = (2, 4, 10, 32, 64, 100, 256, 257, 1000, 4096, 10_000, 100_000, 1_000_000)
OPERATIONS = ("logsumexp", "softmax", "entropy", "kl_divergence")


def call(op: str, shape: tuple[int, int], dtype: str, threads: int) -> Callable[[], object]:
    """Return a call of an operation on fresh arrays of a shape; a softmax fills the same output again and again."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, 2, (min(shape[0], max(1, 10**6 // shape[1])), shape[1])).astype(dtype)
    x = np.resize(block, shape)
    if op == "logsumexp":
        return lambda: fk.logsumexp(x, n_threads=threads)
    if op == "softmax":
        out = np.ones_like(x)
        return lambda: fk.softmax(x, out=out, n_threads=threads)
    p = fk.softmax(x, out=x)
    if op == "entropy":
        return lambda: fk.entropy(p, n_threads=threads)
    q = np.roll(p, 1, axis=0) if len(p) > 1 else p[:, ::-1].copy()
    return lambda: fk.kl_divergence(p, q, n_threads=threads)


def cost(op: str, shape: tuple[int, int], dtype: str, threads: int) -> float:
    """Return nanoseconds per element, the median of 9 turns of a millisecond or more each."""
    run = call(op, shape, dtype, threads)
    run()
    elements = shape[0] * shape[1]
    times = max(1, 2 * 10**6 // elements)
    turns = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(times):
            run()
        turns.append((time.perf_counter() - began) / times)
    return median(turns) / elements * 1e9


def main() -> None:
    """Print both sweeps, and draw them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    sweeps = {
        "elements, in rows of 1000": {n: (max(1, n // 1000), min(n, 1000)) for n in ELEMENTS},
        "classes, in 10^7 elements": {c: (10**7 // c, c) for c in CLASSES},
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, shapes in sweeps.items():
        print(f"ns per element, {options.dtype}, threads {options.threads}, by {name}")
        print(" " * 15 + "".join(f"{n:>10.4g}" for n in shapes))
        found[name] = {}
        for op in OPERATIONS:
            found[name][op] = [cost(op, shape, options.dtype, options.threads) for shape in shapes.values()]
            print(f"{op:15}" + "".join(f"{ns:10.3f}" for ns in found[name][op]), flush=True)
    if options.plot:
        draw(found, sweeps, options.plot, f"{options.dtype}, threads {options.threads}, {fk.build_info()['tier']}")


def draw(
    found: dict[str, dict[str, list[float]]], sweeps: dict[str, dict[int, tuple[int, int]]], file: Path, title: str
) -> None:
    """Draw the sweeps side by side, logarithmic both ways."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(sweeps), figsize=(10, 3.8), sharey=True, dpi=120)
    for panel, (name, costs) in zip(panels, found.items(), strict=True):
        for op, marker, colour in zip(costs, "os^v", ("#000000", "#D55E00", "#0072B2", "#009E73"), strict=True):
            panel.loglog(list(sweeps[name]), costs[op], marker=marker, markersize=4, color=colour, label=op)
        panel.set_xlabel(name)
        panel.grid(which="major", color="#DDDDDD", linewidth=0.7)
    panels[0].set_ylabel("ns per element")
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9.5)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
