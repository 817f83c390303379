"""What compare.py's table has no row for, beside PyTorch, eager and compiled: ``python bench/forms.py``.

- ``softmax_cross_entropy`` of float16 and bfloat16 logits (bar 3);
- ``kl_divergence`` of two rows of logits (bar 4), of far rows, as of two models, and of near ones, as of one model
  before and after a small step: those are told by other sums.

All take turns on the same arrays, on one thread, in one process; medians are compared, as in ``compare.py``. bfloat16
is that of ml_dtypes.
"""

from __future__ import annotations

import argparse
import functools
import random
import time
from collections.abc import Callable, Sequence

import cases
import ml_dtypes
import numpy as np
from compare import hold_to_threads

Party = dict[str, Callable[[], object]]

#: Shapes of the label losses and of the divergences.
HALF_SHAPES = ((100_000, 100), (10_000, 1_000), (256, 128_256))
#: What a near row is added, in standard deviations; the rows themselves have 2.
STEP = 0.01
COPIES = 3


def label_losses(dtype: str, shape: tuple[int, int], rng: np.random.Generator) -> list[Party]:
    """Return the contenders for the label loss of a half type, a party for each copy of the logits."""
    import torch
    import torch.nn.functional as functional

    import fastkl as fk

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    labels, out = rng.integers(0, shape[1], shape[0]), np.empty(shape[0], np.float32)
    targets = torch.from_numpy(labels)
    torch._dynamo.reset()
    in_half = torch.compile(lambda x: functional.cross_entropy(x, targets, reduction="none"), dynamic=False)
    in_float = torch.compile(lambda x: functional.cross_entropy(x.float(), targets, reduction="none"), dynamic=False)
    parties = []
    for _ in range(COPIES):
        x = (2 * rng.standard_normal(shape, dtype=np.float32)).astype(kind)
        tensor = torch.from_numpy(x.view(np.int16)).view(getattr(torch, dtype))
        parties.append(
            {
                "fastkl": functools.partial(fk.softmax_cross_entropy, x, labels, out=out, n_threads=1),
                "PyTorch": functools.partial(functional.cross_entropy, tensor, targets, reduction="none"),
                "torch.compile": functools.partial(in_half, tensor),
                "torch.compile (float)": functools.partial(in_float, tensor),
            }
        )
    return parties


def divergences(near: bool, dtype: str, shape: tuple[int, int], rng: np.random.Generator) -> list[Party]:
    """Return the contenders for the KL divergence of two rows of logits, a party for each copy of them."""
    import torch
    import torch.nn.functional as functional

    import fastkl as fk

    def of_log_softmax(x, y):
        p, q = torch.log_softmax(x, 1), torch.log_softmax(y, 1)
        return (p.exp() * (p - q)).sum(1)

    def kl_div(x, y):
        p, q = torch.log_softmax(x, 1), torch.log_softmax(y, 1)
        return functional.kl_div(q, p, log_target=True, reduction="none").sum(1)

    def of_sums(x, y):
        shifted = x - x.amax(1, keepdim=True)
        e = torch.exp(shifted)
        return (e * (x - y)).sum(1) / e.sum(1) - (torch.logsumexp(x, 1) - torch.logsumexp(y, 1))

    torch._dynamo.reset()
    forms = {form.__name__: torch.compile(form, dynamic=False) for form in (of_log_softmax, kl_div, of_sums)}
    out = np.empty(shape[0], dtype)
    parties = []
    for _ in range(COPIES):
        x, y = (cases.aligned(shape, dtype) for _ in range(2))
        x[:] = 2 * rng.standard_normal(shape, dtype=np.float32)
        y[:] = (STEP if near else 2) * rng.standard_normal(shape, dtype=np.float32)
        y += x if near else 0
        tensors = torch.from_numpy(x), torch.from_numpy(y)
        party: Party = {
            "fastkl": functools.partial(fk.kl_divergence, x, y, given="logits", out=out, n_threads=1),
            "PyTorch": functools.partial(of_log_softmax, *tensors),
        }
        for name, form in forms.items():
            party[f"torch.compile ({name.replace('_', ' ')})"] = functools.partial(form, *tensors)
        parties.append(party)
    return parties


def medians(parties: Sequence[Party], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return each contender's median seconds; all take turns, in a new order each round."""
    seconds: dict[str, list[float]] = {name: [] for name in parties[0]}
    for turn in range(rounds + 1):
        party = list(parties[turn % len(parties)].items())
        for name, call in random.sample(party, len(party)):
            started = clock()
            call()
            if turn:  # the first compiles
                seconds[name].append(clock() - started)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def main() -> None:
    """Print a line for each operation, type and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=("half", "far", "near"), default=["half", "far", "near"])
    names = [cases.shape_name(shape) for shape in dict.fromkeys((*cases.SHAPES, *HALF_SHAPES))]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, metavar="NxC", help=" ".join(names))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    hold_to_threads(1)
    import torch

    import fastkl as fk

    torch.set_num_threads(1)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    rng = np.random.default_rng()
    print(f"{fk.build_info()['tier']}, one thread, medians of {options.rounds} ({options.clock} clock), ns per element")
    for op in options.ops:
        for dtype in ("bfloat16", "float16") if op == "half" else cases.DTYPES:
            for shape in HALF_SHAPES if op == "half" else cases.SHAPES:
                if cases.shape_name(shape) not in options.shapes:
                    continue
                what = "softmax_cross_entropy" if op == "half" else f"kl_divergence[logits], {op} rows"
                make = label_losses if op == "half" else functools.partial(divergences, op == "near")
                with torch.inference_mode():
                    found = medians(make(dtype, shape, rng), options.rounds, clock)
                ours, peer = found.pop("fastkl"), min(found, key=found.__getitem__)
                per_element = 1e9 / (shape[0] * shape[1])
                print(
                    f"{what:34}{dtype:10}{cases.shape_name(shape):14}{ours * per_element:8.3f}  {peer:32}"
                    f"{found[peer] * per_element:8.3f}{found[peer] / ours:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
