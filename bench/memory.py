"""Peak memory of a call beyond its inputs and outputs, as the kernel counts it: python bench/memory.py [--gb 2]

Linux keeps the high-water mark of a process's resident set (VmHWM in /proc/self/status) and resets it on request. Each
case runs in a process of its own. The promise is less than 1 MiB a thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np

import fastkl as fk

#: Operation, type, classes; 0 classes: one row.
CASES = (
    ("logsumexp", "float32", 131072),
    ("logsumexp", "float32", 0),
    ("softmax", "float32", 131072),
    ("softmax", "float32", 100),
    ("softmax", "float64", 128256),
    ("log_softmax", "float64", 131072),
    ("entropy", "float64", 1000),
    ("kl_divergence", "float32", 100),
    ("kl_divergence", "float64", 0),
)


def resident(field: str) -> int:
    """Return a line of /proc/self/status, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:"))


def measure(op: str, dtype: str, classes: int, threads: int, gb: float) -> int:
    """Return the KiB that a call takes beyond what it is given and what it returns."""
    arrays = 2 if op in ("softmax", "log_softmax") or (op == "kl_divergence" and not classes) else 1
    elements = int(gb * 1e9) // np.dtype(dtype).itemsize // arrays
    shape = (elements // classes, classes) if classes else (1, elements)
    x = np.full(shape, 0.25, dtype)
    x[:, 0] = 1
    operands = [x] if op != "kl_divergence" else [x, x[:1].copy()]
    out = np.ones_like(x) if op in ("softmax", "log_softmax") else None
    function = getattr(fk, op)
    function(*(a[:1] for a in operands), **({} if out is None else {"out": out[:1]}))  # what is loaded and set up once
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = resident("VmRSS")
    result = function(*operands, **({} if out is None else {"out": out}), n_threads=threads)
    return resident("VmHWM") - before - (result.nbytes >> 10 if out is None else 0)


def main() -> None:
    """Print the table, or, in a process of its own, one number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the input, and the output if it is as large")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        op, dtype, classes, threads = options.case
        print(measure(op, dtype, int(classes), int(threads), options.gb))
        return
    print(f"{options.gb:g} GB of arrays; KiB beyond them, on 1 and 2 threads")
    for op, dtype, classes in CASES:
        extra = []
        for threads in ("1", "2"):
            command = [sys.executable, __file__, "--gb", str(options.gb), "--case", op, dtype, str(classes), threads]
            extra.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{op:14} {dtype} {f'rows of {classes}' if classes else 'one row':15} {extra[0]:6} {extra[1]:6}")


if __name__ == "__main__":
    main()
