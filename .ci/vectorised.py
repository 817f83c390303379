"""Check that the compiled loops are vector code of their tier's width: python .ci/vectorised.py [FOLDER]

FOLDER holds the compiled modules; by default it is that of the installed package. A loop that falls back to scalar
code is 10 to 30 times slower and passes every other test.

The loops are functions of their own: whatever the ``.pxi`` sources define as ``cdef loop name(...)``, where ``loop`` is
a void that gcc does not inline. Each is looked up in the disassembly of each tier's module, in float and in double, and
the share of its floating-point arithmetic that works on the tier's whole vectors is held to a minimum. A loop that gcc
has unrolled and jammed shows here too: its scalar body beside a vector remainder.
"""

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REGISTERS = {"avx512": "zmm", "avx2": "ymm", "base": "xmm"}
LEAST_SHARE = 0.9

#: Additions, products, maxima, comparisons: "vfmadd231ps", "mulsd". Loads, shuffles and conversions are not counted.
ARITHMETIC = re.compile(r"v?(?:add|sub|mul|div|max|min|sqrt|fn?m(?:add|sub)\d*|cmp\w*?|u?comi)([ps])[sd]$")


def loops(sources: Path) -> list[str]:
    """Return the names of the loops that the sources define."""
    text = "\n".join(path.read_text() for path in sorted(sources.glob("*.pxi")))
    return sorted(set(re.findall(r"^cdef loop (\w+)\(", text, re.MULTILINE)))


def instructions(module: Path) -> dict[str, list[str]]:
    """Return the instructions of each function of a module, as objdump prints them, by the function's name."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", str(module)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[str]] = defaultdict(list)
    name = ""
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            name = header[1]
        elif "\t" in line:
            functions[name].append(line.split("\t", 1)[1])
    return functions


def count(code: list[str], register: str) -> tuple[int, int]:
    """Return how many arithmetic instructions there are on whole vectors, and how many in all."""
    whole = every = 0
    for instruction in code:
        operation, _, operands = instruction.partition(" ")
        if kind := ARITHMETIC.match(operation):
            every += 1
            whole += kind[1] == "p" and register in operands
    return whole, every


def check(module: Path, tier: str, names: list[str]) -> list[str]:
    """Print a line for each loop of a module; return what is wrong."""
    wrong = []
    functions = instructions(module)
    for name in names:
        # Cython's names for the float and the double instance, or for the only one; gcc may have cloned a function for
        # arguments that are constants.
        instances: dict[str, list[str]] = defaultdict(list)
        for symbol, code in functions.items():
            if found := re.fullmatch(rf"(?:__pyx_fuse_([01]))?__pyx_f_\w*\d{tier}_{name}(?:\.\w+\.\d+)*", symbol):
                instances[{"0": "float", "1": "double", None: "only"}[found[1]]] += code
        if set(instances) not in ({"float", "double"}, {"only"}):
            wrong.append(f"{tier}: {name} is not in the module, or not in both types")
        for kind, code in sorted(instances.items()):
            whole, every = count(code, REGISTERS[tier])
            share = whole / every if every else 0.0
            print(f"  {name:24} {kind:6} {whole:5} of {every:5} on {REGISTERS[tier]}")
            if share < LEAST_SHARE:
                wrong.append(f"{tier}: {name} ({kind}) has {share:.0%} vector arithmetic, less than {LEAST_SHARE:.0%}")
    return wrong


def main() -> int:
    """Check every tier; return an exit code."""
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    else:
        package = importlib.util.find_spec("fastkl")  # finds it without loading the kernels
        if package is None or package.origin is None:
            print("fastkl is not installed")
            return 1
        folder = Path(package.origin).parent / "_kernels"
    names = loops(Path(__file__).parents[1] / "fastkl" / "_kernels")
    wrong = [] if names else ["no loops found in the sources"]
    for tier in REGISTERS:
        modules = list(folder.glob(f"{tier}.*.so"))
        print(f"{tier}: {', '.join(str(module) for module in modules) or 'no module'}")
        if len(modules) == 1:
            wrong += check(modules[0], tier, names)
        else:
            wrong.append(f"{folder} holds {len(modules)} modules of the tier {tier}, not one")
    print("\n".join(wrong) if wrong else "all loops are vectorised")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
