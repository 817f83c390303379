"""Which of two models of a count is worth keeping: a uniform one, or the best of all binomials?

The data are the proportions of some population with 0, 1, ... 10 teeth of a kind. A model that says q where p is
observed loses KL(p || q) nats per observation: that much of the data is not in the model. Both models are far smaller
than the data, so the one that loses less keeps more of it.

The best binomial is found by asking all of them: a whole grid of distributions, scored by one call.
"""

from math import comb

import numpy as np

import fastkl as fk

observed = np.array([0.02, 0.03, 0.05, 0.14, 0.16, 0.15, 0.12, 0.08, 0.1, 0.08, 0.07])
teeth = np.arange(11)


def binomial(chance: np.ndarray) -> np.ndarray:
    """Binomial(10, chance) for each chance: one row of 11 probabilities each."""
    chance = np.asarray(chance)[..., np.newaxis]
    ways = np.array([comb(10, k) for k in teeth])
    return ways * chance**teeth * (1 - chance) ** (10 - teeth)


uniform_loss = fk.kl_divergence(observed, np.full(11, 1 / 11))
print(f"uniform                  loses {uniform_loss:.4f} nats")
print(f"Binomial(10, 0.57)       loses {fk.kl_divergence(observed, binomial(0.57)):.4f} nats")

chances = np.linspace(0, 1, 1001)
losses = fk.kl_divergence(observed, binomial(chances))  # the observed row against 1001 rows
best = np.argmin(losses)
print(f"Binomial(10, {chances[best]:.3f})      loses {losses[best]:.4f} nats, the least of {len(chances)} binomials")

# The binomial that loses least is the one with the data's own mean: maximum likelihood by another name.
print(f"mean of the data / 10    {observed @ teeth / 10:.3f}")

model = "uniform" if uniform_loss < losses[best] else "binomial"
print(f"The {model} model keeps more of the data.")
