"""Numbers small enough to check by hand: binary cross-entropy, KL divergence, entropy in bits."""

import numpy as np

import fastkl as fk

y_true = np.array([0, 1])
y_pred = np.array([0.2, 0.8])
# A binary label is a distribution over two classes, and so is its prediction.
losses = fk.cross_entropy(np.stack([1 - y_true, y_true], axis=-1), np.stack([1 - y_pred, y_pred], axis=-1))
print(f"mean binary cross-entropy              {losses.mean():.4f} nats")

print(f"KL([0.1, 0.9] || [0.2, 0.8])           {fk.kl_divergence([0.1, 0.9], [0.2, 0.8]):.4f} nats")

for coin in [0.5, 0.5], [0.99, 0.01]:
    print(f"entropy of a coin of {coin[0]:4} / {coin[1]:4}       {fk.entropy(coin, base=2):.4f} bits")
