"""The tutorial: its script runs, and its page tells what the script prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastkl as fk

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?")


def test_two_classifiers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = os.pathsep.join([str(Path(fk.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "two_classifiers.py", "two-classifiers"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stderr == ""
    page = (ROOT / "docs" / "two-classifiers.md").read_text()
    promised = re.search(r"```text\n(.*?)```", page, flags=re.DOTALL)
    assert promised is not None
    # Word for word; numbers to 3%, as another scikit-learn may stop its solver a step earlier.
    assert NUMBER.sub("#", run.stdout) == NUMBER.sub("#", promised[1])
    said, told = ([float(number) for number in NUMBER.findall(text)] for text in (run.stdout, promised[1]))
    assert len(said) == 31
    np.testing.assert_allclose(said, told, rtol=0.03, atol=1e-300)

    folder = tmp_path / "two-classifiers"
    assert sorted(os.listdir(folder)) == ["bayes.npy", "labels.npy", "logistic.npy", "report.html"]
    report = (folder / "report.html").read_text()
    assert "Furthest from the reference" in report
    x, labels = np.load(folder / "bayes.npy"), np.load(folder / "labels.npy")
    loss = fk.score(x, labels, stats=["loss"])["loss"]
    assert loss.min() == pytest.approx(2.6e-154, rel=0.01)
    assert x.min() == pytest.approx(-2542, abs=0.5)
    assert f"{loss.mean():.4g}" in report
    told = fk.score(x, labels, stats=["loss"], temperature=7.5)["loss"].mean()
    assert told == pytest.approx(0.145, abs=6e-4)
