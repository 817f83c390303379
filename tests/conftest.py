"""What every test file shares: the seed of this run, the tiers, and Hypothesis' settings."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

from fastkl import _kernels

#: Fresh in every run; set FASTKL_TEST_SEED to repeat one.
SEED = int(os.environ.get("FASTKL_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
os.environ["FASTKL_TEST_SEED"] = str(SEED)  # of every process that pytest-xdist starts

#: FASTKL_TIER narrows the tests to that tier.
TIERS = [os.environ["FASTKL_TIER"]] if os.environ.get("FASTKL_TIER") else list(_kernels.TIERS)

# Hypothesis goes on looking in every run, but where CI is set it draws the same examples each time: what it has not
# found before is not the fault of the change that is tested. The rows of the oracle are fresh everywhere.
hypothesis.settings.register_profile(
    "fastkl", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True, max_examples=100
)
hypothesis.settings.load_profile("fastkl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they take.

    Those that run on every tier by themselves: a run under another FASTKL_TIER need not repeat them. And those that
    FASTKL_REPEATS repeats.
    """
    for item in items:
        if "tier" in getattr(item, "fixturenames", ()):
            item.add_marker("tiers")
        if "repeat" in getattr(item, "fixturenames", ()):
            item.add_marker("repeat")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to repeat this run, and how often the tests that draw their moment were repeated in it."""
    terminalreporter.write_line(f"drawn with FASTKL_TEST_SEED={SEED}")
    ran = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    repeated = sum("repeat" in report.keywords for report in ran)
    if repeated:
        times = os.environ.get("FASTKL_REPEATS", "not set: 1, with workers 2")
        terminalreporter.write_line(
            f"{repeated} tests of a kill, a cut, a resumed run or a lost worker drew their moment; each is repeated "
            f"FASTKL_REPEATS times ({times})"
        )


def generator(name: str) -> np.random.Generator:
    """Return the generator of one test by its name, the same whichever tests run beside it."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Draw from random numbers that are this test's own."""
    print(f"FASTKL_TEST_SEED={SEED}")
    return generator(request.node.nodeid)


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each tier; one that this CPU lacks is a visible skip."""
    if request.param not in _kernels.supported():
        pytest.skip(f"this CPU has no {request.param}")
    with _kernels.use(request.param):
        yield request.param
