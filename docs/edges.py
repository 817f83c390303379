"""What other libraries return where the formula alone does not say: ``python docs/edges.py`` writes docs/edges.md.

Every library that is installed is asked every case, with the code that the page shows: it is what is evaluated here.
Each is asked with its own function for the purpose, or with the formula that its users write where it has none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).with_name("edges.md")
INF, NAN = math.inf, math.nan
#: An answer that is off by more than so much is marked as wrong; float16 has an eps of 0.001.
TOLERANCE = 0.005

#: The modules that each library's code uses, by the names it uses them by; the first names the distribution.
LIBRARIES: dict[str, tuple[str, dict[str, str]]] = {
    "fastkl": ("fastkl", {"fk": "fastkl"}),
    "NumPy": ("numpy", {}),
    "SciPy": (
        "scipy",
        {"special": "scipy.special", "stats": "scipy.stats", "distance": "scipy.spatial.distance"},
    ),
    "PyTorch": ("torch", {"torch": "torch", "F": "torch.nn.functional"}),
    "JAX": ("jax", {"jax": "jax", "jnp": "jax.numpy", "scipy": "jax.scipy"}),
    "scikit-learn": ("scikit-learn", {"extmath": "sklearn.utils.extmath", "metrics": "sklearn.metrics"}),
    "NumKong": ("numkong", {"numkong": "numkong"}),
}

#: Question, library, code. Rows lie along the last axis; `rows` is 0 ... N - 1.
CALLS: dict[str, dict[str, str]] = {
    "logsumexp": {
        "fastkl": "fk.logsumexp(x)",
        "NumPy": "np.logaddexp.reduce(x, axis=-1)",
        "SciPy": "special.logsumexp(x, axis=-1)",
        "PyTorch": "torch.logsumexp(x, -1)",
        "JAX": "jax.nn.logsumexp(x, axis=-1)",
    },
    "softmax": {
        "fastkl": "fk.softmax(x)",
        "SciPy": "special.softmax(x, axis=-1)",
        "PyTorch": "torch.softmax(x, -1)",
        "JAX": "jax.nn.softmax(x, axis=-1)",
        "scikit-learn": "extmath.softmax(x)",
    },
    "entropy": {
        "fastkl": "fk.entropy(p)",
        "NumPy": "-np.sum(p * np.log(p), axis=-1)",
        "SciPy": "special.entr(p).sum(axis=-1)",
        "PyTorch": "torch.special.entr(p).sum(-1)",
        "JAX": "scipy.special.entr(p).sum(axis=-1)",
    },
    "entropy of logits": {
        "fastkl": 'fk.entropy(x, given="logits")',
        "SciPy": "special.entr(special.softmax(x, axis=-1)).sum(axis=-1)",
        "PyTorch": "torch.distributions.Categorical(logits=x, validate_args=False).entropy()",
        "JAX": "scipy.special.entr(jax.nn.softmax(x, axis=-1)).sum(axis=-1)",
    },
    "KL": {
        "fastkl": "fk.kl_divergence(p, q)",
        "NumPy": "np.sum(p * np.log(p / q), axis=-1)",
        "SciPy": "special.rel_entr(p, q).sum(axis=-1)",
        "PyTorch": 'F.kl_div(q.log(), p, reduction="none").sum(-1)',
        "JAX": "scipy.special.rel_entr(p, q).sum(axis=-1)",
        "NumKong": "numkong.kullbackleibler(p, q)",
    },
    "KL of log-probabilities": {
        "fastkl": 'fk.kl_divergence(p, q, given="log_probs")',
        "NumPy": "np.sum(np.exp(p) * (p - q), axis=-1)",
        "PyTorch": 'F.kl_div(q, p, reduction="none", log_target=True).sum(-1)',
        "JAX": "jnp.sum(jnp.exp(p) * (p - q), axis=-1)",
    },
    "JS distance": {
        "fastkl": "fk.js_distance(p, q, normalize=True)",
        "SciPy": "distance.jensenshannon(p, q, axis=-1)",
        "NumKong": "numkong.jensenshannon(p, q)",
    },
    "loss": {
        "fastkl": "fk.softmax_cross_entropy(x, labels)",
        "SciPy": "-special.log_softmax(x, axis=-1)[rows, labels]",
        "PyTorch": 'F.cross_entropy(x, labels, reduction="none")',
        "JAX": "-jax.nn.log_softmax(x, axis=-1)[rows, labels]",
        "scikit-learn": "metrics.log_loss(labels, extmath.softmax(x), labels=range(x.shape[-1]))",
    },
    "mean loss": {
        "fastkl": 'fk.softmax_cross_entropy(x, labels, reduction="mean")',
        "SciPy": "-special.log_softmax(x, axis=-1)[rows, labels].mean()",
        "PyTorch": "F.cross_entropy(x, labels)",
        "JAX": "-jax.nn.log_softmax(x, axis=-1)[rows, labels].mean()",
        "scikit-learn": "metrics.log_loss(labels, extmath.softmax(x), labels=range(x.shape[-1]))",
    },
    "binary loss": {
        "fastkl": "fk.binary_cross_entropy(p, y)",
        "NumPy": "-(y * np.log(p) + (1 - y) * np.log(1 - p))",
        "SciPy": "-(special.xlogy(y, p) + special.xlog1py(1 - y, -p))",
        "PyTorch": 'F.binary_cross_entropy(p, y, reduction="none")',
        "JAX": "-(scipy.special.xlogy(y, p) + scipy.special.xlog1py(1 - y, -p))",
        "scikit-learn": "metrics.log_loss(y[0], p[0], labels=[0, 1])",
    },
    "binary loss of logits": {
        "fastkl": 'fk.binary_cross_entropy(x, y, given="logits")',
        "SciPy": "-(y * special.log_expit(x) + (1 - y) * special.log_expit(-x))",
        "PyTorch": 'F.binary_cross_entropy_with_logits(x, y, reduction="none")',
        "JAX": "-(y * jax.nn.log_sigmoid(x) + (1 - y) * jax.nn.log_sigmoid(-x))",
    },
    "loss, label −100 ignored": {
        "fastkl": "fk.softmax_cross_entropy(x, labels, ignore_index=-100)",
        "PyTorch": 'F.cross_entropy(x, labels, reduction="none")',
    },
    "mean loss, label −100 ignored": {
        "fastkl": 'fk.softmax_cross_entropy(x, labels, ignore_index=-100, reduction="mean")',
        "PyTorch": "F.cross_entropy(x, labels)",
    },
}


@dataclass(frozen=True)
class Case:
    """One row, or for a mean many: how the page names it, what is asked, of which arrays, and the right answer."""

    text: str
    question: str
    arrays: dict[str, np.ndarray]
    right: Any

    def answer(self, library: str, modules: dict[str, Any]) -> Any:
        """Return what a library makes of it: floats, an exception's name, or None where it has no such function."""
        code = CALLS[self.question].get(library)
        if code is None:
            return None
        convert: Callable[[np.ndarray], Any] = np.asarray
        if library == "PyTorch":
            convert = modules["torch"].from_numpy
        elif library == "JAX":
            convert = modules["jnp"].asarray
        names = {name: convert(array) for name, array in self.arrays.items()}
        first = next(iter(self.arrays.values()))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                result = eval(code, {"np": np, "rows": np.arange(len(first)), **modules, **names})
                return np.asarray(result, np.float64).reshape(-1).tolist()
            except Exception as error:  # whatever a library raises is its answer
                return type(error).__name__


def x(values: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return one row of logits."""
    return {"x": np.array([values], dtype)}


def p(values: Any) -> dict[str, np.ndarray]:
    """Return one row of probabilities."""
    return {"p": np.array([values], "float32")}


def pq(first: Any, second: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return a pair of rows."""
    return {"p": np.array([first], dtype), "q": np.array([second], dtype)}


def labelled(values: Any, label: int) -> dict[str, np.ndarray]:
    """Return one row of logits and its label."""
    return {**x(values), "labels": np.array([label])}


def binary(**values: float) -> dict[str, np.ndarray]:
    """Return a prediction, p or its logit x, and its label y."""
    return {name: np.array([[value]], "float32") for name, value in values.items()}


def js_distance_near(p: list[float], q: list[float]) -> float:
    """Return the Jensen-Shannon distance of p / sum(p) and q / sum(q), which are a rounding apart.

    So near, it is the root of sum((p - q)**2 / p) / 8 to all digits, and fractions have no rounding.
    """
    shares = [[Fraction(v) / sum(map(Fraction, row)) for v in row] for row in (p, q)]
    return math.sqrt(sum((u - v) ** 2 / u for u, v in zip(*shares, strict=True)) / 8)


def sections() -> dict[str, list[Case]]:
    """Return the cases by what they are about."""
    many = np.zeros((200_000, 10), "float16")
    step = 2.0**-13
    small = float(np.float32(1e-40))
    thirds = [0.1, 0.7, 0.7], [3 * 0.1, 3 * 0.7, 3 * 0.7]
    near = [0.01, 0.99], [np.nextafter(0.01, 1), 0.99]
    return {
        "Zeros": [
            Case("entropy of [0, 1]", "entropy", p([0, 1]), 0.0),
            Case("KL([0, 1], [½, ½])", "KL", pq([0, 1], [0.5, 0.5]), math.log(2)),
            Case("KL([0, 1], [0, 1]): p = q = 0", "KL", pq([0, 1], [0, 1]), 0.0),
            Case("KL([½, ½], [1, 0]): p > 0 where q = 0", "KL", pq([0.5, 0.5], [1, 0]), INF),
            Case("KL of the logs of [0, 1], [½, ½]", "KL of log-probabilities", pq([-INF, 0], [np.log(0.5)] * 2),
                 math.log(2)),
            Case("KL of the logs of [0, 1], [0, 1]", "KL of log-probabilities", pq([-INF, 0], [-INF, 0]), 0.0),
            Case("JS distance of [1, 0] and [0, 1]", "JS distance", pq([1, 0], [0, 1]), math.log(2) ** 0.5),
            Case("entropy of logits [0, −inf]", "entropy of logits", x([0, -INF]), 0.0),
        ],
        "Infinities, and no entries": [
            Case("logsumexp([−inf, −inf])", "logsumexp", x([-INF, -INF]), -INF),
            Case("logsumexp([0, inf])", "logsumexp", x([0, INF]), INF),
            Case("logsumexp([inf, NaN])", "logsumexp", x([INF, NAN]), NAN),
            Case("logsumexp of no entries", "logsumexp", x([]), -INF),
            Case("softmax([−inf, −inf])", "softmax", x([-INF, -INF]), [NAN, NAN]),
            Case("softmax([inf, 0])", "softmax", x([INF, 0]), [NAN, NAN]),
        ],
        "What is no probability": [
            Case("entropy of [−½, 1½]", "entropy", p([-0.5, 1.5]), NAN),
            Case("entropy of [NaN, ½]", "entropy", p([NAN, 0.5]), NAN),
            Case("KL([−½, 1½], [½, ½])", "KL", pq([-0.5, 1.5], [0.5, 0.5]), NAN),
            Case("KL([½, ½], [−½, 1½])", "KL", pq([0.5, 0.5], [-0.5, 1.5]), NAN),
            Case("KL([0, 1], [NaN, 1])", "KL", pq([0, 1], [NAN, 1]), NAN),
        ],
        "Labels": [
            Case("loss, logits [0, −inf], label 1", "loss", labelled([0, -INF], 1), INF),
            Case("loss, logits [1, 2, 3], label −1", "loss", labelled([1, 2, 3], -1), "IndexError"),
            Case("loss, logits [1, 2, 3], label 3", "loss", labelled([1, 2, 3], 3), "IndexError"),
            Case("loss, logits [NaN, 0], label −100, which is ignored", "loss, label −100 ignored",
                 labelled([NAN, 0], -100), 0.0),
            Case("mean loss of a row with label −100, which is ignored", "mean loss, label −100 ignored",
                 labelled([0, 0], -100), NAN),
        ],
        "Yes or no": [
            Case("binary loss, p = 0, label 0", "binary loss", binary(p=0, y=0), 0.0),
            Case("binary loss, p = 0, label 1", "binary loss", binary(p=0, y=1), INF),
            Case("binary loss, p = 1e-40, denormal, label 1", "binary loss", binary(p=1e-40, y=1), -math.log(small)),
            Case("binary loss, p = 1½, label 1", "binary loss", binary(p=1.5, y=1), NAN),
            Case("binary loss, logit inf, label 1", "binary loss of logits", binary(x=INF, y=1), 0.0),
            Case("binary loss, logit inf, label 0", "binary loss of logits", binary(x=INF, y=0), INF),
            Case("binary loss, logit 40, label 1", "binary loss of logits", binary(x=40, y=1),
                 math.log1p(math.exp(-40))),
        ],
        "Types": [
            Case("softmax of int8 [−128, 127]", "softmax", x([-128, 127], "int8"), [math.exp(-255), 1.0]),
            Case("logsumexp of 70 000 zeros in float16", "logsumexp", x(np.zeros(70_000), "float16"), math.log(70_000)),
            Case("mean loss of 200 000 rows of 10 zeros in float16", "mean loss",
                 {"x": many, "labels": np.zeros(200_000, np.int64)}, math.log(10)),
        ],
        "Digits": [
            Case("loss, logits [30, 0], label 0", "loss", labelled([30, 0], 0), math.log1p(math.exp(-30))),
            Case("logsumexp([0, −40])", "logsumexp", x([0, -40]), math.log1p(math.exp(-40))),
            Case("entropy of logits [20, 0]", "entropy of logits", x([20, 0]),
                 math.log1p(math.exp(-20)) + 20 / (1 + math.exp(20))),
            Case("KL([½, ½], [½ + 2⁻¹³, ½ − 2⁻¹³])", "KL", pq([0.5, 0.5], [0.5 + step, 0.5 - step]),
                 -0.5 * math.log1p(-(2.0**-24))),
            Case("entropy of [1e-40, 1], denormal", "entropy", p([1e-40, 1]), -small * math.log(small)),
            Case("KL([1e-40, 1], [0, 1]), denormal", "KL", pq([1e-40, 1], [0, 1]), INF),
            Case("JS distance of [0.1, 0.7, 0.7] and 3 times that; float64", "JS distance", pq(*thirds, "float64"),
                 js_distance_near(*thirds)),
            Case("JS distance of [0.01, 0.99] and the same with the next number for 0.01; float64", "JS distance",
                 pq(*near, "float64"), js_distance_near(*near)),
        ],
    }  # fmt: skip


def text(value: float) -> str:
    """Return a number as the page shows it."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−")


def agrees(answer: list[float] | str, right: Any) -> bool:
    """Return whether an answer is right; an exception is, where there is no number to give."""
    if isinstance(answer, str):
        return isinstance(right, str) or bool(np.isnan(right).all())
    if isinstance(right, str):
        return False
    wanted = np.atleast_1d(np.asarray(right, np.float64))
    return len(answer) == len(wanted) and np.allclose(answer, wanted, rtol=TOLERANCE, atol=0, equal_nan=True)


def cell(answer: Any, right: Any) -> str:
    """Return an answer for the table: bold where it is wrong."""
    if answer is None:
        return ""
    if isinstance(answer, str):
        return f"`{answer}`"
    shown = ", ".join(map(text, answer)) or "nothing"
    return shown if agrees(answer, right) else f"**{shown}**"


def load(library: str) -> dict[str, Any]:
    """Return a library's modules by the names that its code uses; ImportError where it is not installed."""
    modules = {name: importlib.import_module(module) for name, module in LIBRARIES[library][1].items()}
    if library == "JAX":
        modules["jax"].config.update("jax_enable_x64", True)
    return modules


def column(library: str) -> dict[str, list[str]]:
    """Return a library's cells, section by section."""
    modules = load(library)
    return {
        title: [cell(case.answer(library, modules), case.right) for case in cases]
        for title, cases in sections().items()
    }


def rights() -> dict[str, list[str]]:
    """Return the right answers, section by section."""
    return {
        title: [cell(c.right if isinstance(c.right, str) else np.ravel(c.right).tolist(), c.right) for c in cases]
        for title, cases in sections().items()
    }  # fmt: skip


HEAD = """<!-- Written by docs/edges.py: change that. -->

# Edges, here and in other libraries

What zeros, infinities, NaNs and the ends of a type give. In fastkl:

```{{include}} ../README.md
:start-after: "## Edges\\n"
:end-before: "[docs/edges.md]"
```

## The same asked of others

{asked}
float32 unless the row says otherwise. **Bold**: off by more than {tolerance:.1%}, or a number where there is none to
give. The name of an exception: it was raised. (That SciPy's and JAX's functions make ±inf of a negative number is
documented; the row then looks like any other that is infinite.)
"""


def page() -> str:
    """Return the page, of the libraries that are installed."""
    columns = {"right": rights()}
    for library in LIBRARIES:
        try:
            columns[library] = column(library)
        except ImportError:
            print(f"{library} is not installed: left out")
    versions = [
        f"{name} {importlib.metadata.version(LIBRARIES[name][0])}"
        for name in columns
        if name not in ("right", "fastkl")
    ]
    asked = (
        f"Below is what {', '.join(versions[:-1])} and {versions[-1]} made of such rows, on one machine, each asked by "
    )
    asked = textwrap.fill(asked + "the code that stands at the end of this page.", 120)
    parts = [HEAD.format(asked=asked, tolerance=TOLERANCE)]
    for title, cases in sections().items():
        shown = [name for name in columns if any(columns[name][title])]
        lines = [["", *shown], ["---"] * (len(shown) + 1)]
        lines += [[case.text, *(columns[name][title][i] for name in shown)] for i, case in enumerate(cases)]
        parts.append(f"\n### {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    parts.append("\n## What each was asked\n")
    for question, calls in CALLS.items():
        asked = "".join(f"{library + ':':14}{code}\n" for library, code in calls.items() if library in columns)
        parts.append(f"\n{question[0].upper()}{question[1:]}:\n\n```text\n{asked}```\n")
    parts.append(
        "\n`special`, `stats` and `distance` are SciPy's, in JAX's lines `scipy` is `jax.scipy`; `F` is "
        "`torch.nn.functional`;\n`extmath` is `sklearn.utils.extmath`.\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
