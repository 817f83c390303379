"""The constants in vmath.h are the ones that bench/derive_coefficients.py derives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "fastkl" / "_kernels" / "vmath.h"


@pytest.fixture(scope="module")
def derivation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive_coefficients", ROOT / "bench" / "derive_coefficients.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_header_holds_the_derived_constants(derivation, capsys):
    status = derivation.main(["--check", str(HEADER)])
    assert status == 0, capsys.readouterr().out


def test_check_sees_one_changed_digit(derivation, tmp_path, capsys):
    text = HEADER.read_text()
    line = next(line for line in derivation.header_lines(HEADER) if line.startswith("static const float EXP_F32"))
    last = line.rindex("p-")
    changed = line[: last - 1] + ("1" if line[last - 1] != "1" else "2") + line[last:]
    copy = tmp_path / "vmath.h"
    copy.write_text(text.replace(line, changed))
    assert derivation.main(["--check", str(copy)]) == 1
    assert f"-{changed}" in capsys.readouterr().out
