"""The example scripts run, and print the numbers that are known from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastkl

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("small_numbers.py", ["cross-entropy 0.2231 nats", "0.8]) 0.0367 nats", "1.0000 bits", "0.0808 bits"]),
        (
            "teeth.py",
            [
                "uniform loses 0.1367 nats",
                "Binomial(10, 0.57) loses 0.4411 nats",
                "Binomial(10, 0.544) loses 0.4273 nats",
                "data / 10 0.544",
                "The uniform model keeps more of the data.",
            ],
        ),
    ],
)
def test_script(script: str, printed: list[str]) -> None:
    # The script is to run against the very package that is tested, wherever the tests found it.
    path = os.pathsep.join([str(Path(fastkl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stderr == ""
    said = " ".join(run.stdout.split())
    for words in printed:
        assert words in said
