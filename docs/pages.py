"""What the registry and the docstrings say, as pages: ``conf.py`` writes a page for each function from here.

Nothing about a function is written in docs/: a new one has its page, its line in the table of all and its line in the
README's table as soon as it is in ``fastkl.__all__``, in the registry, and has its docstring. The README's table is
committed; ``python docs/pages.py`` makes it anew, and a test compares it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fastkl as fk
from fastkl import reference, registry
from fastkl.registry import STATISTICS, Budget, Operation

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
#: The README's table stands between two comments.
TABLE = re.compile(r"(?<=<!-- functions, by python docs/pages.py -->\n).*?(?=<!-- end of functions -->)", re.DOTALL)

#: All rows of the registry, of whatever table.
OPERATIONS = [
    row for rows in vars(registry).values() if isinstance(rows, tuple) for row in rows if isinstance(row, Operation)
]


def functions() -> list[str]:
    """Return the public functions on arrays: those of the registry in its order, then those without a row in it."""
    registered = list(dict.fromkeys(operation.function for operation in OPERATIONS))
    return registered + [name for name in vars(reference) if name in fk.__all__ and name not in registered]


def others() -> list[str]:
    """Return what else is public, by name."""
    return [name for name in fk.__all__ if name not in functions()]


def docstring(name: str) -> str:
    """Return a public function's docstring, not indented."""
    return inspect.getdoc(getattr(fk, name)) or ""


def summary(name: str) -> str:
    """Return the docstring's first paragraph as Markdown, on one line and without its full stop."""
    return markdown(docstring(name).split("\n\n")[0]).removesuffix(".")


def formula(name: str) -> str:
    """Return the first formula of the docstring."""
    found = re.search(r"``(.+?)``", docstring(name), re.S)
    if found is None:
        raise ValueError(f"the docstring of {name} has no formula in double backticks")
    return " ".join(found[1].split())


def domain(name: str) -> str:
    """Return what the docstring says of the domain up to the first stop."""
    found = re.search(r"^Domain: (.+?)[.;:](?:\s|\Z)", docstring(name), re.S | re.M)
    if found is None:
        raise ValueError(f"the docstring of {name} has no 'Domain: ...'")
    return markdown(found[1])


def units() -> dict[str, str]:
    """Return what the scales of a budget mean, from the docstring of Budget."""
    entries = re.findall(r"^``(\S+)``\n((?:    .+\n?)+)", inspect.getdoc(Budget) or "", re.M)
    found = {scale: markdown(text) for scale, text in entries}
    for operation in OPERATIONS:
        if operation.budget.scale not in found:
            raise ValueError(f"the docstring of Budget does not say what the scale {operation.budget.scale!r} is")
    return found


def markdown(text: str) -> str:
    """Return reStructuredText of a docstring on one line, in Markdown: only its literals differ."""
    return " ".join(text.replace("``", "`").split())


def call(function: Callable[..., object]) -> str:
    """Return a call with what may be passed by position."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY
    taken = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    named = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in taken]
    return f"{function.__name__}({', '.join(named)})"


def call_of_form(operation: Operation) -> str:
    """Return the call that a row of the registry is about."""
    keywords = [f"{name}={value!r}".replace("'", '"') for name, value in operation.keywords.items()]
    return f"{operation.function}({', '.join([*operation.operands, *keywords])})"


def table(lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])


def accuracy(budget: Budget) -> str:
    """Return the two numbers of a budget, as one where they are equal, and its unit with a link to what it is."""
    numbers = f"{budget.float32:g}" if budget.float32 == budget.float64 else f"{budget.float32:g}, {budget.float64:g}"
    return f"{numbers} eps, [{budget.scale}](#units)"


def traffic(arrays: int) -> str:
    """Return bytes for each element in float32 and float64."""
    return f"{4 * arrays}, {8 * arrays}" if arrays else "0"


def forms(name: str) -> list[Operation]:
    """Return the function's rows of the registry."""
    return [operation for operation in OPERATIONS if operation.function == name]


def function_page(name: str) -> str:
    """Return the page of one function."""
    lines = [["call", "error below, in float32 and float64", "bytes read per element", "bytes written"]]
    for operation in forms(name):
        units_elsewhere = accuracy(operation.budget).replace("(#units)", "(index.md#units)")
        moved = traffic(operation.arrays_read), traffic(operation.arrays_written)
        lines.append([f"`{call_of_form(operation)}`", units_elsewhere, *moved])
    page = f"# {name}\n\n```{{eval-rst}}\n.. autofunction:: fastkl.{name}\n```\n"
    if forms(name):
        page += "\n## Accuracy and cost\n\n" + table(lines)
        page += "\nBytes in float32 and float64; an operand that is broadcast is read from the cache.\n"
    if name == "score":
        page += "\n## Accuracy of each statistic\n\n" + table(statistics())
    return page + (
        "\n## In plain NumPy\n\nThe definition, float64, from `fastkl/reference.py`:\n\n"
        f"```{{literalinclude}} ../../fastkl/reference.py\n:pyobject: {name}\n```\n"
    )


def statistics() -> Iterator[list[str]]:
    """Yield the lines of the table of score's statistics."""
    yield ["statistic", "needs", "error below, in float32 and float64"]
    for one in STATISTICS:
        bound = accuracy(one.budget).replace("(#units)", "(index.md#units)") if one.budget else "exact"
        yield [f"`{one.name}`", ", ".join(one.needs), bound]


INDEX = """# Functions

Of arrays of any shape; a row lies along `axis`. Numbers in pairs are of float32 and float64; float16 and bfloat16 are
read as they are, two bytes an element, and computed as float32. Where there are several bounds, they are of several
forms of call. A name leads to all of it.
"""

UNITS = """
(units)=
## Units of the errors

The error of a result, against a 240-bit computation on the very numbers given, is below so many eps of the result's
type, times

"""

REST = """
## Threads and the build

```{{eval-rst}}
{functions}
```

## What score gives

```{{eval-rst}}
{classes}
```

## Files

```{{eval-rst}}
.. autofunction:: fastkl.batch.score_files
```

```{{toctree}}
:hidden:

{names}
```
"""


def index_page() -> str:
    """Return the page of all functions: a table for each module, the units of the errors, and what else is public."""
    page = INDEX
    rooms: dict[str, list[str]] = {}
    for name in functions():
        rooms.setdefault(getattr(fk, name).__module__, []).append(name)
    for room, names in rooms.items():
        title = (inspect.getdoc(sys.modules[room]) or "").split("\n\n")[0]
        lines = [["function", "formula", "domain", "error below", "bytes read per element"]]
        for name in names:
            bounds = dict.fromkeys(accuracy(o.budget) for o in forms(name))
            reads = dict.fromkeys(traffic(o.arrays_read) for o in forms(name))
            cells = [f"[{name}]({name}.md)", f"`{formula(name)}`", domain(name), "<br>".join(bounds), "; ".join(reads)]
            lines.append([cell or "see there" for cell in cells])
        page += f"\n## {room}\n\n{markdown(title)}\n\n{table(lines)}"
    page += UNITS + "".join(f"`{scale}`\n: {text}\n\n" for scale, text in units().items())
    return page + REST.format(
        functions="\n".join(f".. autofunction:: fastkl.{n}" for n in others() if inspect.isfunction(getattr(fk, n))),
        classes="\n".join(
            f".. autoclass:: fastkl.{n}\n   :members:" for n in others() if inspect.isclass(getattr(fk, n))
        ),
        names="\n".join(functions()),
    )


def write_pages(folder: Path) -> None:
    """Write the pages, those alone that have changed, and remove those of functions that are gone."""
    pages = {"index.md": index_page(), **{f"{name}.md": function_page(name) for name in functions()}}
    folder.mkdir(exist_ok=True)
    for old in set(folder.glob("*.md")) - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def readme_table() -> str:
    """Return the table of all functions in the README."""
    return table([["function", "what it gives"], *([f"`{call(getattr(fk, n))}`", summary(n)] for n in functions())])


if __name__ == "__main__":
    README.write_text(TABLE.sub(lambda _: readme_table(), README.read_text(), count=1))
    print(f"{README}: {len(functions())} functions")
