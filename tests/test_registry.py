"""The registry, the public functions, the reference and their documentation name the same things."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import reference
from fastkl.registry import DOMINANT_LOGSUMEXP, ELEMENTWISE, OPERATIONS, Operation

REGISTERED = OPERATIONS + ELEMENTWISE
operations = pytest.mark.parametrize("operation", REGISTERED, ids=lambda operation: operation.id)
FUNCTIONS = sorted({operation.function for operation in REGISTERED})

#: Public, but not an operation on arrays with one result; score's own tests are in test_rows.py, those of the functions
#: of any generator and of bounds in test_variational.py.
OTHER_NAMES = {"build_info", "f_divergence", "get_num_threads", "score", "set_num_threads", "variational_bound"}


def test_every_public_function_is_registered() -> None:
    public = {name for name in fk.__all__ if inspect.isfunction(getattr(fk, name))}
    assert public - OTHER_NAMES == set(FUNCTIONS)
    defined = {
        name
        for name, function in vars(reference).items()
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_")
    }
    assert defined - OTHER_NAMES == set(FUNCTIONS)


def test_operations_are_told_apart() -> None:
    assert len({operation.id for operation in REGISTERED}) == len(REGISTERED)
    for operation in REGISTERED:
        assert bool(operation.form) == bool(operation.keywords)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_reference_takes_the_same_keywords(function: str) -> None:
    """All but where to write and on how many threads, with the same defaults, in the same order."""
    signatures = [inspect.signature(getattr(module, function)) for module in (fk, reference)]
    ours, theirs = ({n: (p.kind, repr(p.default)) for n, p in s.parameters.items()} for s in signatures)
    for name in ("out", "n_threads"):
        kind, default = ours.pop(name)
        assert (kind, default) == (inspect.Parameter.KEYWORD_ONLY, "None")
    assert list(ours.items()) == list(theirs.items())
    positional = [name for name, (kind, _) in ours.items() if kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) == len(next(o for o in REGISTERED if o.function == function).operands)


@operations
def test_budgets(operation: Operation) -> None:
    """Each within what bars.md could ask for, in a unit that the oracle knows, and with an exact answer to compare."""
    assert operation.id in oracle.EXACT
    for dtype in ("float32", "float64"):
        assert 0 < operation.budget.multiple(dtype) <= 8
    row = {"x": [0.5, 0.25], "p": [0.5, 0.25], "q": [0.25, 0.5], "labels": 1, "y": [1.0, 0.25]}
    arguments = [row[operand] for operand in operation.operands]
    right = oracle.exact(operation, arguments)
    assert all(bound > 0 for bound in oracle.allowed(operation, arguments, right, "float64"))
    assert set(oracle.EXACT) == {operation.id for operation in REGISTERED}
    assert DOMINANT_LOGSUMEXP.multiple("float32") == DOMINANT_LOGSUMEXP.multiple("float64") == 4


@operations
def test_traffic(operation: Operation) -> None:
    assert operation.arrays_read == len([o for o in operation.operands if o != "labels"])
    assert operation.arrays_written == (operation.returns == "element")
    moved = operation.bytes_moved(10, 100, 4)
    arrays = 10 * 100 * 4 * (operation.arrays_read + operation.arrays_written)
    assert arrays <= moved <= arrays + 10 * 12


@operations
def test_benchmarks(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks have inputs for it, and its kernel's instructions are counted: bench/instructions.py --write."""
    bench = Path(__file__).parents[1] / "bench"
    monkeypatch.syspath_prepend(str(bench))
    cases, instructions = importlib.import_module("cases"), importlib.import_module("instructions")
    inputs = cases.make_inputs((5, 7), "float32", np.random.default_rng(0))
    result = oracle.evaluate(fk, operation, inputs.operands(operation), out=inputs.out(operation), n_threads=1)
    assert np.isfinite(result).all()
    assert np.ptp(result) > 0
    counted = json.loads((bench / "instructions.json").read_text())
    for tier in instructions.TIERS:
        asked = [f"{name} {cases.shape_name(s)} {t}" for name, s, t in instructions.CASES if name == operation.id]
        assert asked
        assert set(asked) <= set(counted[tier]), "not in bench/instructions.json"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_docstrings(function: str) -> None:
    """Formula, parameters, result, errors, domain, accuracy, and an example that the doctests run."""
    docstring = inspect.getdoc(getattr(fk, function)) or ""
    for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
        assert re.search(rf"^{section}\n-{{{len(section)}}}$", docstring, re.M), f"no section {section}"
    assert re.search(r"``[^`]*[-+*/(][^`]*``", docstring.split("Parameters\n")[0]), "no formula above the parameters"
    parameters = docstring.split("Parameters\n")[1].split("Returns\n")[0]
    for name in inspect.signature(getattr(fk, function)).parameters:
        assert re.search(rf"^(\w+, )*{name}\b.* : ", parameters, re.M), f"parameter {name} is not described"
    for error in ("TypeError", "ValueError"):
        assert error in docstring.split("Raises\n")[1]
    for word in ("Domain", "Accuracy", "eps"):
        assert word in docstring.split("Notes\n")[1]
    for text, called in (
        (docstring.split("Examples\n")[1], f"fk.{function}("),
        (inspect.getdoc(getattr(reference, function)) or "", f"{function}("),
    ):
        examples = doctest.DocTestParser().get_examples(text)
        assert any(called in example.source for example in examples), f"no example calls {called}"
        assert any(example.want for example in examples), "no example has a result"
