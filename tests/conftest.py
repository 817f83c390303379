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
    """Mark the tests that run on every tier by themselves: a run under another FASTKL_TIER need not repeat them."""
    for item in items:
        if "tier" in getattr(item, "fixturenames", ()):
            item.add_marker("tiers")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to repeat this run."""
    terminalreporter.write_line(f"drawn with FASTKL_TEST_SEED={SEED}")


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
