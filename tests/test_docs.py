"""The documentation says what the package says: pages made from docstrings, tables and numbers that are committed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fastkl as fk
from fastkl.registry import OPERATIONS, STATISTICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NUMBER = re.compile(r"-?\d+\.\d+")


def module_of_docs(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a script of docs/ as a module."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module(name)


# The pages of the functions ---------------------------------------------------------------------------------------


def test_every_public_name_has_its_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each function a page with formula, domain, accuracy and bytes; what else is public stands on the page of all."""
    pages = module_of_docs("pages", monkeypatch)
    (tmp_path / "gone.md").write_text("of a function that is no more")
    pages.write_pages(tmp_path)
    index = (tmp_path / "index.md").read_text()
    assert sorted(pages.functions() + pages.others()) == sorted(fk.__all__)
    assert {file.stem for file in tmp_path.iterdir()} == {"index", *pages.functions()}
    for name in pages.functions():
        line = re.search(rf"^\| \[{name}\]\({name}\.md\) \| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", index, re.M)
        assert line, f"{name} has no full line in the table"
        assert f"autofunction:: fastkl.{name}\n" in (tmp_path / f"{name}.md").read_text()
    assert [operation for operation in OPERATIONS if operation not in pages.OPERATIONS] == []
    for operation in pages.OPERATIONS:
        page = (tmp_path / f"{operation.function}.md").read_text()
        line = re.search(rf"^\| `{re.escape(pages.call_of_form(operation))}` \| (.+) \| (.+) \| .+ \|$", page, re.M)
        assert line, f"{operation.id} is not on its page"
        assert f"{operation.budget.float32:g}" in line[1]
        assert f"[{operation.budget.scale}]" in line[1]
        assert line[2] == f"{4 * operation.arrays_read}, {8 * operation.arrays_read}"
        assert f"`{operation.budget.scale}`\n: " in index
    score = (tmp_path / "score.md").read_text()
    assert all(f"| `{statistic.name}` |" in score for statistic in STATISTICS)
    for name in pages.others():
        assert re.search(rf":: fastkl\.{name}\n", index)


def test_pages_tell_what_a_docstring_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = module_of_docs("pages", monkeypatch)
    assert pages.formula("entropy") == "-sum(p * log(p))"
    assert pages.domain("entropy") == "p >= 0, denormals included"
    monkeypatch.setattr(fk.entropy, "__doc__", "Entropy.")
    for missing in (pages.formula, pages.domain):
        with pytest.raises(ValueError, match="the docstring of entropy has no"):
            missing("entropy")


def test_readme_names_every_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's table is what the docstrings say today."""
    pages = module_of_docs("pages", monkeypatch)
    tables = pages.TABLE.findall((ROOT / "README.md").read_text())
    assert tables == [pages.readme_table()], "the README's table is out of date: run python docs/pages.py"


def test_pages_are_linked() -> None:
    """Each hand-written page is in the table of contents, and what the pages and the README link to is there."""
    written = [file for file in DOCS.glob("*.md") if file.stem != "index"]
    index = (DOCS / "index.md").read_text()
    assert {file.stem for file in written} <= set(re.findall(r"^[\w/-]+$", index, re.M))
    for file in [*written, DOCS / "index.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```\w+\n.*?^```", "", file.read_text(), flags=re.DOTALL | re.M)
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert target.startswith("functions/") or (file.parent / target).is_file(), f"{file.name}: {target}"


# Which divergence -------------------------------------------------------------------------------------------------


def test_two_modes(tmp_path: Path) -> None:
    """The script prints what its page says, and the page's other numbers follow."""
    pytest.importorskip("matplotlib")
    path = os.pathsep.join([str(Path(fk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", DOCS / "two-modes.py", "two-modes.svg"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stderr == ""
    page = (DOCS / "which-divergence.md").read_text()
    assert f"```text\n{run.stdout}```" in page
    numbers = [float(number) for number in NUMBER.findall(run.stdout)]
    assert len(numbers) == 10
    (mean, width, forward, _), (_, _, missed, reverse), (target_mean, target_width) = (
        numbers[:4], numbers[4:8], numbers[8:],
    )  # fmt: skip
    assert reverse == pytest.approx(-np.log(0.65), abs=2e-3)
    assert "9.2 nats" in page
    assert missed == pytest.approx(9.2, abs=0.05)
    assert forward < 0.6 < missed
    assert (mean, width) == pytest.approx((target_mean, target_width), abs=0.05)
    for figure in (tmp_path / "two-modes.svg", DOCS / "two-modes.svg"):
        assert 10_000 < figure.stat().st_size < 200_000
    assert "12075 candidates" in page
    assert 161 * 75 == 12075


# Edges ------------------------------------------------------------------------------------------------------------


def test_edges_of_fastkl_are_those_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own column anew; the page has the cases, the right answers and the code that the script has."""
    edges = module_of_docs("edges", monkeypatch)
    page = edges.PAGE.read_text()
    ours, rights = edges.column("fastkl"), edges.rights()
    committed = {}
    for title, rest in re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", page, re.M):
        head, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in rest.splitlines()]
        committed[title] = [(line[0], line[head.index("right")], line[head.index("fastkl")]) for line in lines]
    expected = {
        title: [(c.text, *cells) for c, *cells in zip(cases, rights[title], ours[title], strict=True)]
        for title, cases in edges.sections().items()
    }
    assert committed == expected, "docs/edges.md is out of date: run python docs/edges.py beside the other libraries"
    assert not any("**" in cell for cells in ours.values() for cell in cells), "fastkl is wrong somewhere"
    for calls in edges.CALLS.values():
        assert f"{calls['fastkl']}\n" in page


def test_edges_mark_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = module_of_docs("edges", monkeypatch)
    nan = float("nan")
    assert edges.cell([0.5], 0.5) == "0.5"
    assert edges.cell([0.51], 0.5) == "**0.51**"
    assert edges.cell([1e-9], 0.0) == "**1e−9**"
    assert edges.cell([nan, 1.0], [nan, 1.0]) == "NaN, 1"
    assert edges.cell([1.0], nan) == "**1**"
    assert edges.cell([1.0], "IndexError") == "**1**"
    assert edges.cell("IndexError", "IndexError") == "`IndexError`"
    assert edges.cell(None, 0.5) == ""


# Contributing -----------------------------------------------------------------------------------------------------


def test_the_diff_of_a_divergence_is_what_stands_in_the_files() -> None:
    """Each line that CONTRIBUTING.md adds to a file is there, in that order."""
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert diff is not None
    files = re.findall(r"^\+\+\+ b/(\S+)\n((?:(?!---).*\n)+)", diff[1], re.M)
    assert len(files) == 7
    for file, hunks in files:
        lines = iter((ROOT / file).read_text().splitlines())
        for line in hunks.splitlines():
            if not line.startswith("@@"):
                assert line[1:] in lines, f"{file} has no line {line[1:]!r} after the ones before it"
