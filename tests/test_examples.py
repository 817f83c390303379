"""Worked examples with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastkl as fk

# Teeth left, 0 to 10: how often each count was seen.
TEETH = np.array([0.02, 0.03, 0.05, 0.14, 0.16, 0.15, 0.12, 0.08, 0.1, 0.08, 0.07])


def binomial(p: float, n: int = 10) -> np.ndarray:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def test_binary_cross_entropy() -> None:
    """Labels 0 and 1, predicted probabilities 0.2 and 0.8 of a 1."""
    y_true, y_pred = np.array([0, 1]), np.array([0.2, 0.8])
    distributions = np.stack([1 - y_pred, y_pred], axis=1)
    assert fk.cross_entropy(np.eye(2)[y_true], distributions).mean() == pytest.approx(0.2231, abs=5e-5)
    logits = np.log(distributions)
    assert fk.softmax_cross_entropy(logits, y_true, reduction="mean") == pytest.approx(0.2231, abs=5e-5)


def test_kl_of_two_coins() -> None:
    p, q = [0.1, 0.9], [0.2, 0.8]
    assert fk.kl_divergence(p, q) == pytest.approx(0.0367, abs=5e-5)
    assert fk.kl_divergence(p, q, normalize=True) == pytest.approx(0.0367, abs=5e-5)
    assert fk.generalized_kl(p, q) == pytest.approx(0.0367, abs=5e-5)
    assert fk.cross_entropy(p, q) - fk.entropy(p) == pytest.approx(fk.kl_divergence(p, q), rel=1e-14)


def test_entropies_in_bits() -> None:
    even, lopsided = fk.entropy([[0.5, 0.5], [0.99, 0.01]], base=2)
    assert even == 1.0
    assert lopsided == pytest.approx(0.0808, abs=5e-5)


def test_teeth() -> None:
    assert TEETH.sum() == pytest.approx(1)
    assert fk.kl_divergence(TEETH, np.full(11, 1 / 11)) == pytest.approx(0.1367, abs=5e-5)
    assert fk.kl_divergence(TEETH, binomial(0.57)) == pytest.approx(0.4411, abs=5e-5)


def test_the_binomial_that_loses_least() -> None:
    mean = float(TEETH @ np.arange(11)) / 10
    assert mean == pytest.approx(0.544)
    candidates = np.linspace(0.001, 0.999, 999)
    losses = fk.kl_divergence(TEETH, np.stack([binomial(p) for p in candidates]))
    assert candidates[losses.argmin()] == pytest.approx(0.544)
    assert losses.min() == pytest.approx(0.4273, abs=5e-5)
    # Even so, the uniform model keeps more of the data.
    assert fk.kl_divergence(TEETH, np.full(11, 1 / 11)) < losses.min()
