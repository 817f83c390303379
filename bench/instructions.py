"""Count the instructions of kernel calls, and hold them to a table: python bench/instructions.py [--write]

A count does not depend on how busy the machine is: a kernel that got slower shows on a noisy one as well. Each call of
a fixed set runs under ``valgrind --tool=callgrind``, which counts what the compiled entry executes, for the tiers
that valgrind can emulate (it knows no AVX-512). ``instructions.json`` holds instructions per element; a count that is
off by more than 5% is an error, also one that is lower: ``--write`` notes the new ones.

Compilers differ by more than that. Where the compiler is not the table's, the counts are printed beside the table's and
held to nothing, and the last line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from cases import operation, shape_name

import fastkl as fk
from fastkl import _kernels
from fastkl.registry import ELEMENTWISE, OPERATIONS

TABLE = Path(__file__).with_name("instructions.json")
TIERS = ("avx2", "base")
SHAPES = ((10_000, 10), (1_000, 100), (100, 1_000), (1, 100_000))
DTYPES = ("float32", "float64")
ALLOWED = 0.05

CASES = [(op.id, shape, dtype) for op in OPERATIONS + ELEMENTWISE for shape in SHAPES for dtype in DTYPES]


def draw(folder: Path) -> None:
    """Write the arrays of all shapes; not under valgrind, where it would take longer than the calls."""
    rng = np.random.default_rng(20)
    for shape in SHAPES:
        np.save(folder / f"x {shape_name(shape)}.npy", rng.normal(0, 2, shape))
        for name in ("p", "q"):
            weights = np.exp(rng.normal(0, 2, shape))
            np.save(folder / f"{name} {shape_name(shape)}.npy", weights / weights.sum(1, keepdims=True))
        np.save(folder / f"labels {shape_name(shape)}.npy", rng.integers(0, shape[1], shape[0]))
        np.save(folder / f"targets {shape_name(shape)}.npy", np.arange(shape[0] * shape[1]).reshape(shape) % 3 == 0)


class Subclass(np.ndarray):
    """An array to fill that keeps small calls from the entry of their own."""


def call_all(folder: Path, entry: str) -> None:
    """Make each call that goes through an entry once; this is what valgrind watches."""
    for name, shape, dtype in cases_of(entry):
        op = operation(name)
        arrays = [np.load(folder / f"{operand} {shape_name(shape)}.npy") for operand in op.operands]
        arrays = [array.astype(dtype) if array.ndim == 2 else array for array in arrays]
        out = np.empty(shape if op.returns == "element" else shape[:1], dtype).view(Subclass)
        getattr(fk, op.function)(*arrays, out=out, n_threads=1, **op.keywords)


def cases_of(entry: str) -> list[tuple[str, tuple[int, int], str]]:
    """Return the cases that go through an entry of the kernels: those with an order alpha have their own."""
    return [case for case in CASES if ("alpha" in operation(case[0]).keywords) == (entry == "of_order")]


def count(tier: str) -> dict[str, float]:
    """Return instructions per element of each call, by its name."""
    counts: dict[str, float] = {}
    for entry in ("run", "of_order"):
        cases = cases_of(entry)
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder))
            nm = ["nm", str(_kernels.load(tier).__file__)]
            symbols = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
            symbol = re.search(rf"__pyx_pw_\w+_\d+{entry}$", symbols, re.MULTILINE)[0]  # Cython's name
            command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={folder}/call"]
            command += [f"--toggle-collect={symbol}", f"--dump-after={symbol}"]
            command += [sys.executable, __file__, "--calls", folder, "--entry", entry]
            environment = {**os.environ, "FASTKL_TIER": tier, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"valgrind failed on the tier {tier}:\n{done.stderr}")
            # A file for each time that the entry was left, numbered from 1; the last one is of the end of the program.
            files = [Path(folder, f"call.{i}") for i in range(1, len(cases) + 1)]
            if not files[-1].exists() or Path(folder, f"call.{len(cases) + 2}").exists():
                seen = len(list(Path(folder).glob("call.*")))
                raise SystemExit(f"valgrind saw {seen} calls of {symbol}, not {len(cases)}")
            totals = [int(re.search(r"^totals: (\d+)", file.read_text(), re.MULTILINE)[1]) for file in files]
        for (name, shape, dtype), total in zip(cases, totals, strict=True):
            assert total, f"{name} counts nothing"
            counts[f"{name} {shape_name(shape)} {dtype}"] = float(f"{total / (shape[0] * shape[1]):.4g}")
    return counts


def compare(counts: dict[str, dict[str, float]], table: dict[str, dict[str, float]]) -> list[str]:
    """Return a line for each count that is not the table's, within what is allowed."""
    wrong = []
    for tier, found in counts.items():
        for case in {**table.get(tier, {}), **found}:
            now, then = found.get(case), table.get(tier, {}).get(case)
            if now is None or then is None:
                wrong.append(f"{tier}: {case}: {'no longer called' if now is None else 'not in the table'}")
            elif abs(now / then - 1) > ALLOWED:
                wrong.append(f"{tier}: {case}: {now} instructions an element, not {then} ({now / then - 1:+.0%})")
    return wrong


def main() -> int:
    """Count, and write or compare; return an exit code."""
    parser = argparse.ArgumentParser(description="hold the kernels' instruction counts to a table")
    parser.add_argument("--write", action="store_true", help="make these counts the table's")
    parser.add_argument("--calls", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calls:
        call_all(options.calls, options.entry)
        return 0
    if not shutil.which("valgrind"):
        print("SKIPPED: valgrind is not installed")
        return 0
    compiler = fk.build_info()["compiler"]
    counts = {tier: count(tier) for tier in TIERS if tier in fk.build_info()["tiers"]}
    if options.write:
        TABLE.write_text(json.dumps({"compiler": compiler, **counts}, indent=1) + "\n")
        print(f"{TABLE}: {sum(map(len, counts.values()))} counts, {compiler}")
        return 0
    table = json.loads(TABLE.read_text())
    wrong = compare(counts, table)
    print("\n".join(wrong) or f"all {sum(map(len, counts.values()))} counts are within {ALLOWED:.0%} of the table's")
    if wrong and compiler != table["compiler"]:
        print(f"NOT CHECKED: the table was made by {table['compiler']}, this is {compiler}")
        return 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
