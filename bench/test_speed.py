"""Our own speed over time, one case for each operation, type and shape: ``pytest bench --benchmark-compare``.

The cases come from the registry. Beside the peers, see compare.py.
"""

from __future__ import annotations

import cases
import numpy as np
import pytest

import fastkl
from fastkl.registry import ELEMENTWISE, OPERATIONS, Operation


@pytest.fixture(scope="module", params=cases.DTYPES)
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=cases.SHAPES, ids=cases.shape_name)
def shape(request) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module")
def copies(dtype: str, shape: tuple[int, int]) -> list[cases.Inputs]:
    rng = np.random.default_rng()
    return [cases.make_inputs(shape, dtype, rng) for _ in range(cases.copies_needed(shape, dtype))]


@pytest.mark.parametrize("op", OPERATIONS + ELEMENTWISE, ids=lambda op: op.id)
def test_speed(benchmark, op: Operation, dtype: str, shape: tuple[int, int], copies: list[cases.Inputs]) -> None:
    function = getattr(fastkl, op.function)
    turn = iter(range(1_000_000))

    def next_copy():
        # Another copy each round, so that the input is not in cache.
        inputs = copies[next(turn) % len(copies)]
        return inputs.operands(op), {"out": inputs.out(op), "n_threads": 1, **op.keywords}

    benchmark.group = f"{op.id} {dtype}"
    result = benchmark.pedantic(function, setup=next_copy, rounds=9, warmup_rounds=1)
    rows, classes = shape
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["ns_per_element"] = seconds * 1e9 / (rows * classes)
        benchmark.extra_info["gb_per_s"] = op.bytes_moved(rows, classes, np.dtype(dtype).itemsize) / seconds / 1e9
    assert np.isfinite(result).all()


@pytest.mark.parametrize("models", [1, 2])
def test_score_speed(benchmark, dtype: str, shape: tuple[int, int], copies: list[cases.Inputs], models: int) -> None:
    """All statistics of one model, and of two (whose logits are any numbers)."""
    turn = iter(range(1_000_000))

    def next_copy():
        inputs = copies[next(turn) % len(copies)]
        return (inputs.x, inputs.labels, inputs.p if models == 2 else None), {"n_threads": 1}

    benchmark.group = f"score {models} {dtype}"
    scores = benchmark.pedantic(fastkl.score, setup=next_copy, rounds=5, warmup_rounds=1)
    assert np.isfinite(scores["entropy"]).all()


def test_small_call(benchmark) -> None:
    """The Python overhead: log-sum-exp of ten numbers."""
    x = np.linspace(-1, 1, 10)
    assert np.isclose(benchmark(fastkl.logsumexp, x), np.log(np.exp(x).sum()))
