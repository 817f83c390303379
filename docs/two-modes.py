"""One mode for two: a normal distribution fitted to a target with two modes, by KL in one direction and in the other.

Usage: python two-modes.py [FIGURE]. docs/which-divergence.md reads the numbers and shows the figure, which needs
matplotlib. Every candidate is tried: a grid over mean and width, scored by one call for each direction.
"""

import sys

import numpy as np

import fastkl as fk

at = np.linspace(-10, 10, 401)


def normal(mean, width):
    """Return normal distributions on the grid `at`: one row for each mean and width."""
    x = -0.5 * ((at - np.asarray(mean)[..., None]) / np.asarray(width)[..., None]) ** 2
    return fk.softmax(x)


target = 0.65 * normal(-2, 0.6) + 0.35 * normal(2.5, 0.8)

means, widths = np.linspace(-4, 4, 161), np.linspace(0.3, 4, 75)
candidates = normal(means[:, None], widths)  # 161 x 75 x 401

forward = fk.kl_divergence(target, candidates)  # KL(target || candidate): the target broadcasts
reverse = fk.kl_divergence(candidates, target)

best = {}
for name, losses in ("forward", forward), ("reverse", reverse):
    mean, width = np.unravel_index(np.argmin(losses), losses.shape)
    best[name] = candidates[mean, width]
    share = fk.kl_divergence(target, best[name]), fk.kl_divergence(best[name], target)
    print(
        f"{name} KL: mean {means[mean]:5.2f}, width {widths[width]:.2f};"
        f" KL(target || fit) {share[0]:.3f}, KL(fit || target) {share[1]:.3f}"
    )

target_mean = target @ at
target_width = np.sqrt(target @ (at - target_mean) ** 2)
print(f"     target: mean {target_mean:5.2f}, width {target_width:.2f}")

if len(sys.argv) > 1:
    import matplotlib

    matplotlib.use("svg")
    # Another run draws the same bytes: no date, and ids that do not change.
    matplotlib.rcParams |= {"svg.hashsalt": "two-modes", "font.size": 9}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    axes[0].fill_between(at, target, color="0.85", label="target")
    axes[0].plot(at, best["forward"], color="C0", label="forward KL: covers both modes")
    axes[0].plot(at, best["reverse"], color="C3", label="reverse KL: seeks one")
    axes[0].set(yticks=[], xlabel="fits", xlim=(-7, 7), ylim=(0, 0.05))
    axes[0].legend(loc="upper right", frameon=False)
    for losses, color, name in (forward, "C0", "forward"), (reverse, "C3", "reverse"):
        axes[1].plot(means, losses.min(axis=1), color=color, label=f"{name} KL")
    axes[1].set(xlabel="mean of the candidate", ylabel="nats, at the best width", ylim=(0, 3))
    axes[1].legend(frameon=False)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.argv[1], metadata={"Date": None})
