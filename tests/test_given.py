"""Log-probabilities, logits and mixed pairs: the operations of registry.FORMS, and the temperature."""

from __future__ import annotations

import inspect
import itertools
import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from conftest import TIERS, generator
from test_accuracy import Case, assert_within_budget, measured, use

import fastkl as fk
from fastkl import _kernels, reference
from fastkl.registry import FORMS, Operation

INF, NAN = math.inf, math.nan
LN2 = math.log(2)
BY_ID = {form.id: form for form in FORMS}
DTYPES = ("float32", "float64")
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.id)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
both = pytest.mark.parametrize("module", [fk, reference], ids=["kernels", "reference"])


def draw(form: Operation, shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw rows of what a form takes."""
    arrays = []
    for operand in form.operands:
        x = 3 * rng.normal(size=shape)
        if operand not in ("x", "y"):
            x -= np.log(np.exp(x).sum(axis=-1, keepdims=True)) if shape[-1] else 0.0
        arrays.append((np.exp(x) if operand in ("p", "q") else x).astype(dtype))
    return arrays


# Digits -----------------------------------------------------------------------------------------------------------

SIZES = (1, 10, 60, 300)


@lru_cache(maxsize=2)
def cases(id_: str, dtype: str, size: int) -> list[Case]:
    """Draw rows and find their right results, once for all tiers."""
    rng = generator(f"{id_}-{dtype}-{size}")
    rows = oracle.rows_for(BY_ID[id_], size, dtype, rng)
    kept = len(rows) if size <= 10 else 5 if size <= 60 else 2 if size <= 300 else 1
    return [measured(BY_ID[id_], rows[i], dtype) for i in rng.permutation(len(rows))[:kept]]


@pytest.mark.parametrize(
    ("form", "dtype", "size", "tier"),
    [
        pytest.param(form, dtype, size, tier, id=f"{form.id}-{dtype}-{size}-{tier}")
        for form, dtype, size, tier in itertools.product(FORMS, DTYPES, SIZES, TIERS)
    ],
)
def test_budget(form: Operation, dtype: str, size: int, tier: str) -> None:
    with use(tier):
        rows = cases(form.id, dtype, size)
        got = oracle.evaluate(fk, form, oracle.stacked([row for row, _, _ in rows]))
    assert_within_budget(got, rows, dtype)


def test_chi2_of_numbers_of_any_size(tier: str, rng: np.random.Generator) -> None:
    """The quotient of two numbers is not made from their logs, whose errors grow with the logs."""
    form = BY_ID["chi2_divergence[logits-probs-kind]"]
    rows = []
    for size in (1, 3) * 20:
        logits = rng.normal(size=size) * 10 ** rng.uniform(-1, 2.5)
        rows.append(oracle.Row("far", (logits, 10 ** rng.uniform(-250, 120, size))))
    for row in rows:
        got = oracle.evaluate(fk, form, oracle.stacked([row]))
        assert_within_budget(got, [measured(form, row, "float64")], "float64")


@forms
@dtypes
def test_long_rows(form: Operation, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """Of several blocks, and of several chunks: the oracle would take seconds, so it is the reference that judges."""
    for rows, size in ((2, 9000), (1, 140_000)):
        arrays = draw(form, (rows, size), dtype, rng)
        right = oracle.evaluate(reference, form, [v.astype(np.float64) for v in arrays])
        for n_threads in (1, 3):
            got = oracle.evaluate(fk, form, arrays, n_threads=n_threads)
            np.testing.assert_allclose(got, right, rtol=1e-5 if dtype == "float32" else 1e-11)


@forms
@dtypes
def test_masked_and_strided(form: Operation, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """The digits are those of the kept entries alone; whatever lies under the mask is not read."""
    rows = []
    arrays = draw(form, (6, 90), dtype, rng)
    where = rng.random((6, 90)) < 0.6
    for i in range(6):
        kept = oracle.Row(str(i), tuple(v[i][where[i]] for v in arrays))
        rows.append(measured(form, kept, dtype))
    for v in arrays:
        v[~where] = rng.choice([NAN, INF, -1.0], (~where).sum())
    arrays = [np.repeat(v, 2, axis=1)[:, ::2].T for v in arrays]
    got = oracle.evaluate(fk, form, arrays, where=where.T, axis=0)
    assert_within_budget(got, rows, dtype)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "int8", "bool"])
@forms
def test_narrow_types(form: Operation, narrow: str, rng: np.random.Generator) -> None:
    """They are the same numbers in float32 or float64, to the bit."""
    kind = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(narrow, narrow))
    wide = np.float32 if "float" in narrow else np.float64
    for size in (5, 300):
        arrays = [np.clip(v, -100, 100).astype(kind) for v in draw(form, (70, size), np.float32, rng)]
        got = oracle.evaluate(fk, form, arrays)
        assert got.dtype == wide
        right = oracle.evaluate(fk, form, [v.astype(wide) for v in arrays])
        assert got.tobytes() == right.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 10, 300])
@pytest.mark.parametrize(
    "id_", ["kl_divergence[logits]", "kl_divergence[log_probs-normalize]", "generalized_kl[log_probs]"]
)
def test_of_every_scale(id_: str, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """From 10 down to 1e-12 (float64: 1e-25), far from 0 or near it."""
    smallest = oracle.SMALLEST_DIVERGENCE[dtype]
    rows = []
    for distance in np.geomspace(1, 0.7 * np.sqrt(smallest), 8):
        a = (rng.normal(size=size) * (0.3 if dtype == "float64" else 0.003)).astype(dtype)
        b = a + distance * np.resize([1.0, -1.0], size) * rng.uniform(1, 2, size)
        rows.append(measured(BY_ID[id_], oracle.Row(f"{distance:.0e} apart", (a, b.astype(dtype))), dtype))
    if id_ != "generalized_kl[log_probs]":
        assert rows[-1][1][0] < 100 * smallest
    assert_within_budget(oracle.evaluate(fk, BY_ID[id_], oracle.stacked([row for row, _, _ in rows])), rows, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 10, 200, 1000, 9000, 140_000])
def test_near_and_far_logits_side_by_side(dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """Rows are told by other sums where they are near each other, and read in an order learnt from the rows before:
    neighbours, their order, threads and strides change no bit.
    """
    rows = 70 if size <= 1000 else 6 if size == 9000 else 2
    x = rng.normal(size=(rows, size)) * 3
    y = x + rng.choice([0, 1e-4, 0.02, 0.3, 1, 3], (rows, 1)) * rng.normal(size=x.shape)
    y += rng.choice([0, 0, 5, 1000], (rows, 1))
    x[::5, rng.random(size) < 0.3] = -INF  # a class that only y has, or
    y[::10][np.isinf(x[::10])] = -INF  # neither
    x[1::5, -1], y[1::5, -1] = -70, 20  # p is as good as 0
    x[2::9, : size // 2], x[2::9, size // 2] = -60, 9  # a bad first guess of what the rows differ by
    y[2::9, size // 2] = x[2::9, size // 2] + 3
    x, y = x.astype(dtype), y.astype(dtype)
    x[:, 0][np.isneginf(x).all(axis=1)] = 0
    if rows > 3:
        x[3, 0] = NAN
    with np.errstate(all="ignore"):
        right = reference.kl_divergence(x.astype(np.float64), y.astype(np.float64), given="logits")
    got = fk.kl_divergence(x, y, given="logits", n_threads=1)
    np.testing.assert_allclose(got, right, rtol=1e-5 if dtype == "float32" else 1e-11, atol=1e-12)
    alone = [fk.kl_divergence(v, w, given="logits", n_threads=1) for v, w in zip(x, y, strict=True)]
    assert got.tobytes() == np.array(alone).tobytes()
    assert got[::-1].tobytes() == fk.kl_divergence(x[::-1], y[::-1], given="logits", n_threads=3).tobytes()
    columns = [np.asfortranarray(v) for v in (x, y)]
    assert got.tobytes() == fk.kl_divergence(*columns, given="logits").tobytes()
    apart = [np.repeat(v, 2, axis=1)[:, ::2] for v in (x, y)]
    assert got.tobytes() == fk.kl_divergence(*apart, given="logits").tobytes()


@pytest.mark.parametrize("size", [10, 300])
def test_normalized_mixed_pairs_of_float32(size: int, tier: str, rng: np.random.Generator) -> None:
    """Their logs are taken in double: at every scale they are as exact as those of two rows of logits."""
    form = BY_ID["kl_divergence[probs-logits-normalize]"]
    budget, rows = BY_ID["kl_divergence[logits]"].budget, []
    for distance in np.geomspace(1, 1e-6, 7):
        p = rng.dirichlet(np.full(size, 5.0)).astype(np.float32)
        y = np.log(p.astype(np.float64)) + distance * rng.normal(size=size)
        y = y.astype(np.float32)
        right = oracle.exact(form, (p, y))
        got = np.asarray(oracle.evaluate(fk, form, (p, y)))
        unit = max(abs(right[0]), oracle.SMALLEST_DIVERGENCE["float32"])
        assert oracle.errors_over_budget(got, right, [budget.float32 * 2.0**-23 * unit])[0] <= 1
        rows.append(right[0])
    assert rows[-1] < 1e-10


# Meaning ----------------------------------------------------------------------------------------------------------

# Function, what each row holds, p and q, keywords, what it gives.
P, L, X = "probs", "log_probs", "logits"
HALF = [-LN2, -LN2]
EDGES: list[tuple[str, Any, tuple[Any, ...], dict[str, Any], float]] = [
    ("entropy", L, (HALF,), {}, LN2),
    ("entropy", L, (HALF,), {"base": 2}, 1.0),
    ("entropy", L, ([0.0, -INF],), {}, 0.0),
    ("entropy", L, ([-INF, -INF],), {}, 0.0),
    ("entropy", L, ([NAN, 0.0],), {}, NAN),
    ("entropy", L, ([INF, 0.0],), {}, NAN),
    ("entropy", L, ([601.0, 0.0],), {}, NAN),
    ("entropy", L, ([1.0, -INF],), {}, -math.e),
    ("entropy", L, ([5.0, 5.0],), {"normalize": True}, LN2),
    ("entropy", L, ([NAN, 0.0],), {"where": [False, True]}, 0.0),
    ("entropy", L, ([NAN, 0.0],), {"where": [False, False]}, 0.0),
    ("entropy", P, ([3.0, 3.0],), {"normalize": True}, LN2),
    ("entropy", P, ([0.0, 3.0],), {"normalize": True}, 0.0),
    ("entropy", P, ([0.0, 0.0],), {"normalize": True}, NAN),
    ("entropy", P, ([-1.0, 3.0],), {"normalize": True}, NAN),
    ("entropy", P, ([1e-45, 1e-45],), {"normalize": True}, LN2),
    ("entropy", X, ([2.0, 2.0],), {"temperature": 7.0}, LN2),
    ("entropy", X, ([0.0, -INF],), {"temperature": 7.0}, 0.0),
    ("cross_entropy", (P, X), ([1.0, 0.0], [0.0, 0.0]), {}, LN2),
    ("cross_entropy", (P, X), ([1.0, 0.0], [0.0, -INF]), {}, 0.0),
    ("cross_entropy", (P, X), ([0.0, 1.0], [0.0, -INF]), {}, INF),
    ("cross_entropy", (P, X), ([0.0, 1.0], [-INF, -INF]), {}, NAN),
    ("cross_entropy", (P, X), ([0.0, 0.0], [1.0, 2.0]), {}, 0.0),
    ("cross_entropy", (P, X), ([0.0, -1.0], [1.0, 2.0]), {}, NAN),
    ("cross_entropy", (P, X), ([0.0, 1.0], [1.0, INF]), {}, NAN),
    ("cross_entropy", (P, X), ([0.0, 1.0], [0.0, 100.0]), {}, 3.720075976020836e-44),
    ("cross_entropy", (P, X), ([0.0, 3.0], [0.0, 0.0]), {"normalize": True}, LN2),
    ("cross_entropy", L, (HALF, [-INF, 0.0]), {}, INF),
    ("cross_entropy", L, ([-1e30, 0.0], [-INF, 0.0]), {}, INF),
    ("cross_entropy", L, ([-INF, 0.0], [-INF, -1.0]), {}, 1.0),
    ("cross_entropy", X, ([0.0, 0.0], [-1e30, 0.0]), {}, 5e29),
    ("cross_entropy", P, ([0.0, 3.0], [7.0, 7.0]), {"normalize": True}, LN2),
    ("cross_entropy", P, ([0.0, 3.0], [0.0, 0.0]), {"normalize": True}, NAN),
    ("kl_divergence", X, ([3.0, 3.0], [-2.0, -2.0]), {}, 0.0),
    ("kl_divergence", X, ([0.0, -INF], [5.0, 5.0]), {}, LN2),
    ("kl_divergence", X, ([5.0, 5.0], [0.0, -INF]), {}, INF),
    ("kl_divergence", X, ([-1e30, 5.0], [-INF, 0.0]), {}, INF),
    ("kl_divergence", X, ([-INF, 5.0], [-INF, 0.0]), {}, 0.0),
    ("kl_divergence", X, ([-INF, -INF], [0.0, 0.0]), {}, NAN),
    ("kl_divergence", X, ([0.0, 0.0], [-INF, -INF]), {}, NAN),
    ("kl_divergence", X, ([NAN, 0.0], [0.0, 0.0]), {}, NAN),
    ("kl_divergence", X, ([0.0, 0.0], [0.0, INF]), {}, NAN),
    ("kl_divergence", X, ([NAN, 0.0], [0.0, 0.0]), {"where": [False, True]}, 0.0),
    ("kl_divergence", X, ([0.0, 0.0], [0.0, 0.0]), {"where": [False, False]}, NAN),
    ("kl_divergence", X, ([3e38, 0.0], [-3e38, 0.0]), {}, 3e38),
    ("kl_divergence", L, (HALF, HALF), {}, 0.0),
    ("kl_divergence", L, ([-INF, 0.0], [-INF, -1.0]), {}, 1.0),
    ("kl_divergence", L, ([-INF, -INF], [0.0, 0.0]), {}, 0.0),
    ("kl_divergence", L, ([0.0, -1e30], [0.0, -INF]), {}, INF),
    ("kl_divergence", L, ([0.0, 0.0], [1.0, 1.0]), {}, -2.0),
    ("kl_divergence", L, ([0.0, 0.0], [1.0, 1.0]), {"normalize": True}, 0.0),
    ("kl_divergence", L, ([INF, 0.0], [0.0, 0.0]), {}, NAN),
    ("kl_divergence", L, ([0.0, 0.0], [601.0, 0.0]), {}, NAN),
    ("kl_divergence", (P, L), ([0.0, 1.0], [-INF, 0.0]), {}, 0.0),
    ("kl_divergence", (P, L), ([1.0, 1.0], [-INF, 0.0]), {}, INF),
    ("kl_divergence", (P, X), ([1.0, 0.0], [0.0, 0.0]), {"base": 2}, 1.0),
    ("kl_divergence", (P, X), ([-1e-45, 1.0], [0.0, 0.0]), {}, NAN),
    ("kl_divergence", (P, X), ([4.0, 4.0], [0.0, 0.0]), {"normalize": True}, 0.0),
    ("kl_divergence", (P, X), ([0.0, 0.0], [0.0, 0.0]), {"normalize": True}, NAN),
    ("kl_divergence", (P, X), ([1e-45, 1e-45], [0.0, 0.0]), {"normalize": True}, 0.0),
    ("kl_divergence", (P, X), ([3e38, 3e38], [0.0, 0.0]), {"normalize": True}, 0.0),
    ("kl_divergence", (X, P), ([0.0, -INF], [0.5, 0.0]), {}, LN2),
    ("generalized_kl", L, ([-INF, 0.0], [0.0, 0.0]), {}, 1.0),
    ("generalized_kl", L, ([0.0, 0.0], [-INF, 0.0]), {}, INF),
    ("generalized_kl", L, ([-INF, -INF], [-INF, -INF]), {}, 0.0),
    ("generalized_kl", (P, L), ([0.0, 1.0], [0.0, 0.0]), {}, 1.0),
    ("generalized_kl", X, ([7.0, 7.0], [1.0, 1.0]), {}, 0.0),
    ("js_divergence", X, ([0.0, -INF], [-INF, 3.0]), {"base": 2}, 1.0),
    ("js_distance", L, ([0.0, -INF], [-INF, 0.0]), {"base": 2}, 1.0),
    ("jeffreys_divergence", X, ([0.0, 0.0], [0.0, -INF]), {}, INF),
    ("jeffreys_divergence", X, ([-1e30, 0.0], [-INF, 0.0]), {}, INF),
    ("hellinger_distance", X, ([0.0, -INF], [-INF, 3.0]), {}, 1.0),
    ("bhattacharyya_distance", X, ([0.0, -INF], [-INF, 3.0]), {}, INF),
    ("bhattacharyya_distance", X, ([0.0, -700.0], [-700.0, 0.0]), {}, 350 - LN2),
    ("bhattacharyya_distance", L, ([0.0, -INF], [2.0, -INF]), {}, -1.0),
    ("bhattacharyya_distance", (P, X), ([1.0, 0.0], [0.0, 0.0]), {"base": 2}, 0.5),
    ("total_variation", X, ([0.0, 0.0], [0.0, -INF]), {}, 0.5),
    ("total_variation", (P, L), ([1.0, 0.0], [-INF, 0.0]), {}, 1.0),
    ("chi2_divergence", X, ([0.0, 0.0], [0.0, -INF]), {}, INF),
    ("chi2_divergence", X, ([0.0, -INF], [0.0, 0.0]), {}, 1.0),
    ("chi2_divergence", X, ([0.0, 0.0], [0.0, -INF]), {"kind": "neyman"}, 1.0),
    ("chi2_divergence", (P, X), ([0.5, 0.5], [0.0, -INF]), {"kind": "neyman"}, 1.0),
    ("triangular_discrimination", X, ([0.0, -INF], [-INF, 3.0]), {}, 2.0),
]
for _function in ("js_divergence", "js_distance", "jeffreys_divergence", "hellinger_distance", "bhattacharyya_distance",
                  "total_variation", "chi2_divergence", "triangular_discrimination"):  # fmt: skip
    EDGES += [
        (_function, X, ([3.0, 5.0], [-2.0, 0.0]), {}, 0.0),
        (_function, X, ([-INF, 5.0], [-INF, 0.0]), {}, 0.0),
        (_function, X, ([NAN, 5.0], [7.0, 0.0]), {"where": [False, True]}, 0.0),
        (_function, X, ([0.0, 5.0], [-INF, -INF]), {}, NAN),
        (_function, X, ([INF, 5.0], [0.0, 0.0]), {}, NAN),
        (_function, X, ([0.0, 5.0], [0.0, NAN]), {}, NAN),
        (_function, L, ([0.0, 601.0], [0.0, 0.0]), {}, NAN),
        (_function, L, ([5.0, 6.0], [0.0, 1.0]), {"normalize": True}, 0.0),
        (_function, (P, X), ([-1e-45, 1.0], [0.0, 0.0]), {}, NAN),
        (_function, (P, X), ([3.0, 3.0], [7.0, 7.0]), {"normalize": True}, 0.0),
        (_function, (P, X), ([0.0, 0.0], [7.0, 7.0]), {"normalize": True}, NAN),
    ]


def edge_id(edge: Any) -> str:
    function, given, arguments, keywords, _ = edge
    said = [given if isinstance(given, str) else "-".join(given), *map(str, arguments)]
    return f"{function}({','.join([*said, *(f'{k}={v}' for k, v in keywords.items())])})".replace(" ", "")


@dtypes
@pytest.mark.parametrize(
    ("module", "width"), [(fk, 0), (fk, 30), (fk, 400), (fk, 131_100), (reference, 0), (reference, 30)],
    ids=lambda v: f"+{v}" if isinstance(v, int) else v.__name__,
)  # fmt: skip
@pytest.mark.parametrize("edge", EDGES, ids=edge_id)
def test_edge(edge: Any, module: ModuleType, width: int, dtype: str) -> None:
    """Alone, and among entries that are absent."""
    function, given, arguments, keywords, expected = edge
    words = (given,) * 2 if isinstance(given, str) else given
    rows = [np.r_[v, np.full(width, 0.0 if word == P else -INF)] for v, word in zip(arguments, words, strict=False)]
    if "where" in keywords:
        keywords = keywords | {"where": np.r_[keywords["where"], np.full(width, any(keywords["where"]))].astype(bool)}
    with np.errstate(all="ignore"):
        rows = [row.astype(dtype) for row in rows]
    got = getattr(module, function)(*rows, given=given, **keywords)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.array(expected, dtype), rtol=1e-6, atol=1e-300)
    assert expected != 0 or math.copysign(1, got) == 1, "-0.0"


@forms
@dtypes
@both
def test_rows_of_none(form: Operation, dtype: str, module: ModuleType, rng: np.random.Generator) -> None:
    for shape in ((0, 5), (0, 0), (3, 0, 5)):
        got = oracle.evaluate(module, form, draw(form, shape, dtype, rng), keepdims=True)
        assert (got.shape, got.dtype) == ((*shape[:-1], 1), dtype)
    got = oracle.evaluate(module, form, draw(form, (4, 0), dtype, rng))
    one_scaled = form.keywords.get("normalize") or {"x", "y"} & set(form.operands)
    nothing = INF if form.function == "bhattacharyya_distance" else 0.0
    np.testing.assert_array_equal(got, np.full(4, NAN if one_scaled else nothing, dtype), strict=True)


@forms
@dtypes
@pytest.mark.parametrize("round_", range(2))
def test_behaves_as_the_reference(form: Operation, dtype: str, round_: int, rng: np.random.Generator) -> None:
    """Rows strewn with special values, any axis, mask, base, broadcasting: the same NaNs, infinities and numbers."""
    oddities = [NAN, INF, -INF, 0.0, -0.0, -1.0, 1.0, 1e-45, -1e-45, 1e-30, 50.0]
    for _ in range(12):
        shape = tuple(int(v) for v in rng.choice([1, 2, 3, 5, 8, 17, 70], size=rng.integers(1, 4)))
        arrays = draw(form, shape, dtype, rng)
        for v in arrays:
            strewn = rng.random(shape) < rng.choice([0, 0.02, 0.2])
            v[strewn] = rng.choice(oddities, strewn.sum())
        keywords: dict[str, Any] = {"keepdims": bool(rng.integers(2))}
        if rng.random() < 0.5:
            keywords["where"] = rng.random(shape) < rng.choice([0.1, 0.5, 0.9])
        if rng.random() < 0.3 and "base" in inspect.signature(getattr(fk, form.function)).parameters:
            keywords["base"] = float(rng.choice([2, 10, 0.5]))
        axes = rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)]
        keywords["axis"] = [int(axes[0]), tuple(axes.tolist()), None][rng.integers(3)]
        if len(arrays) == 2 and rng.random() < 0.3:
            arrays[int(rng.integers(2))] = draw(form, shape, dtype, rng)[0][:1]     # broadcast
            if len(shape) == 1:
                arrays = draw(form, shape, dtype, rng)
        if form.operands[-1] in ("p", "q"):
            arrays[-1] = np.abs(arrays[-1]) if rng.random() < 0.5 else arrays[-1]
        got = np.asarray(oracle.evaluate(fk, form, arrays, **keywords))
        right = np.asarray(oracle.evaluate(reference, form, arrays, **keywords))
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        what = f"{keywords} of {arrays}"
        np.testing.assert_array_equal(np.isnan(got), np.isnan(right), err_msg=what)
        finite = np.isfinite(right)
        np.testing.assert_array_equal(got[~finite], right[~finite], err_msg=what)
        largest = max(1.0, float(np.abs(right[finite]).max(initial=0.0)))
        rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (1e-10, 1e-13)
        np.testing.assert_allclose(got[finite], right[finite], rtol=rtol, atol=atol * largest, err_msg=what)


# Same bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 33, 256, 257, 4100, 140_000])
@dtypes
@forms
def test_same_bits(form: Operation, dtype: str, size: int, rng: np.random.Generator) -> None:
    """However a row comes, and the same on AVX2 as on AVX-512; the baseline, without fma, is held to itself."""
    rows = 5 if size <= 4100 else 2
    arrays = draw(form, (rows, size), dtype, rng)
    arrays[0][0, size // 2] = rng.choice([0.0, NAN, -INF, 1e-42])
    alone = [oracle.evaluate(fk, form, [v[i].copy() for v in arrays], n_threads=1) for i in range(rows)]
    right = np.array(alone, dtype).tobytes()
    alike = {"avx2", "avx512"} if _kernels.tier != "base" else {"base"}
    for tier in sorted(alike & set(_kernels.supported())):
        with _kernels.use(tier):
            for n_threads in (1, 3):
                assert oracle.evaluate(fk, form, arrays, n_threads=n_threads).tobytes() == right, tier
    down = [np.ascontiguousarray(v.T) for v in arrays]
    assert oracle.evaluate(fk, form, down, axis=0).tobytes() == right, "along axis 0"
    many = [np.tile(v, (20 if size <= 4100 else 2, 1)) for v in arrays]
    assert oracle.evaluate(fk, form, many, n_threads=2).tobytes() == right * (20 if size <= 4100 else 2), "in a batch"
    swapped = [v.astype(v.dtype.newbyteorder())[::-1][::-1] for v in arrays]
    assert oracle.evaluate(fk, form, swapped, n_threads=3).tobytes() == right, "byte-swapped"
    where = np.ones((rows, size), bool)
    assert oracle.evaluate(fk, form, arrays, where=where).tobytes() == right, "under a mask that masks nothing"


# Relations --------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("size", [7, 300, 5000])
def test_temperature_is_scaling_by_hand(size: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """The quotient is rounded to the type, then everything is as of the quotients: to the bit."""
    x, y, p = (rng.normal(size=(40, size)).astype(dtype) for _ in range(3))
    s, t = np.array([0.7, 3.0], dtype)
    p = fk.softmax(p)
    for function in (fk.cross_entropy, fk.kl_divergence, fk.generalized_kl):
        got = function(x, y, given="logits", temperature=(float(s), float(t)))
        assert got.tobytes() == function(x / s, y / t, given="logits").tobytes()
        got = function(x, y, given="logits", temperature=float(t))
        assert got.tobytes() == function(x / t, y / t, given="logits").tobytes()
        got = function(p, y, given=("probs", "logits"), temperature=(1, float(t)))
        assert got.tobytes() == function(p, y / t, given=("probs", "logits")).tobytes()
    assert fk.entropy(x, given="logits", temperature=float(t)).tobytes() == fk.entropy(x / t, given="logits").tobytes()
    half = x.astype(np.float16)
    got = fk.entropy(half, given="logits", temperature=3)
    assert got.tobytes() == fk.entropy(half.astype(np.float32) / np.float32(3), given="logits").tobytes()


@dtypes
@pytest.mark.parametrize("size", [7, 300, 5000])
def test_the_kl_of_score(size: int, dtype: str, tier: str, rng: np.random.Generator) -> None:
    """Both are within their budget of the right number, hence within two of one another."""
    x = rng.normal(size=(40, size)).astype(dtype)
    y = (x + np.geomspace(1e-5, 1, 40)[:, None] * rng.normal(size=x.shape)).astype(dtype)
    scores = fk.score(x, reference=y, stats=["kl", "reverse_kl"], temperature=2.0)
    rtol = 64 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(fk.kl_divergence(y, x, given="logits", temperature=2.0), scores["kl"], rtol=rtol)
    np.testing.assert_allclose(fk.kl_divergence(x, y, given="logits", temperature=2.0), scores["reverse_kl"], rtol=rtol)


# -log of a sum that need not be 1 is no divergence.
DIVERGENCES = [
    f for f in FORMS
    if "entropy" not in f.function and (f.function != "bhattacharyya_distance" or oracle.all_scaled(f))
]  # fmt: skip
#: Of rows of one form.
ALIKE = [f for f in DIVERGENCES if isinstance(f.keywords["given"], str)]
#: KL as written may be negative.
NEVER_NEGATIVE = [f for f in DIVERGENCES if f.function != "kl_divergence" or oracle.all_scaled(f)]


@pytest.mark.parametrize("form", ALIKE, ids=lambda form: form.id)
@dtypes
@pytest.mark.parametrize("size", [1, 7, 300])
def test_equal_rows(form: Operation, dtype: str, size: int, tier: str, rng: np.random.Generator) -> None:
    """Of one form: 0, to the bit, whatever they hold."""
    for scale in (1e-3, 1.0, 30.0):
        x = (scale * rng.normal(size=(50, size))).astype(dtype)
        x[::3, 0] = -INF
        x[:, -1] = 0.5
        got = oracle.evaluate(fk, form, [x, x.copy()])
        assert got.tobytes() == np.zeros(50, dtype).tobytes()


@pytest.mark.parametrize("form", NEVER_NEGATIVE, ids=lambda form: form.id)
def test_never_negative(form: Operation, tier: str, rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        for size in (2, 5, 300):
            arrays = draw(form, (300, size), np.float64, rng)
            logs = [np.log(v) if o in ("p", "q") else v for o, v in zip(form.operands, arrays, strict=True)]
            logs[1] = logs[0] + 10.0 ** rng.uniform(-17, 0, (300, 1)) * rng.normal(size=(300, size))
            arrays = [np.exp(v) if o in ("p", "q") else v for o, v in zip(form.operands, logs, strict=True)]
            assert (oracle.evaluate(fk, form, [v.astype(dtype) for v in arrays]) >= 0).all()


# Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", sorted({form.function for form in FORMS}))
def test_bad_arguments(function: str) -> None:
    rows = [np.full((2, 3), 1 / 3) for _ in next(f for f in FORMS if f.function == function).operands]
    call = getattr(fk, function)
    with pytest.raises(ValueError, match="given takes 'probs', 'log_probs', 'logits', not 'logit'"):
        call(*rows, given="logit")
    for bad in (0.0, -1.0, INF, NAN, 1e-60 * 1e-300):
        with pytest.raises(ValueError, match="temperature takes a positive finite number"):
            call(*rows, given="logits", temperature=bad)
    for wrong in ("2", None, True, 1j):
        with pytest.raises(TypeError, match="temperature takes a positive number"):
            call(*rows, given="logits", temperature=wrong)
    for given in ("probs", "log_probs"):
        with pytest.raises(ValueError, match=f"temperature=2 for p, which holds {given}: only logits"):
            call(*rows, given=given, temperature=2)
    if len(rows) == 2:
        with pytest.raises(ValueError, match="for q, which holds log_probs"):
            call(*rows, given=("logits", "log_probs"), temperature=2)
        with pytest.raises(ValueError, match=r"given takes one for both or a pair, for p and q, not \('probs',\)"):
            call(*rows, given=("probs",))
        with pytest.raises(ValueError, match="temperature takes one for both or a pair"):
            call(*rows, given="logits", temperature=(1, 2, 3))
    else:
        with pytest.raises((TypeError, ValueError)):
            call(*rows, given=("logits", "logits"))


@forms
def test_out(form: Operation, rng: np.random.Generator) -> None:
    arrays = draw(form, (7, 50), np.float32, rng)
    out = np.zeros(14, np.float32)[::2]
    assert oracle.evaluate(fk, form, arrays, out=out) is out
    assert out.tobytes() == oracle.evaluate(fk, form, arrays).tobytes()
    with pytest.raises(ValueError, match="overlaps an input"):
        oracle.evaluate(fk, form, arrays, out=arrays[0][:, 0])


# Perplexity ---------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("size", [1, 10, 300, 9000])
@pytest.mark.parametrize(
    ("given", "keywords"),
    [
        ("probs", {"normalize": True}),
        ("log_probs", {}),
        ("log_probs", {"normalize": True}),
        ("logits", {"temperature": 0.5}),
    ],
)
def test_perplexity(given: str, keywords: dict[str, Any], size: int, dtype: str, rng: np.random.Generator) -> None:
    """Of every form the exponential of the entropy in float64, which its own tests judge."""
    x = 3 * rng.normal(size=(5, size))
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    x = (np.exp(x) if given == "probs" else x).astype(dtype)
    scaled = (x / np.array(keywords.get("temperature", 1), dtype)).astype(np.float64)
    entropies = fk.entropy(scaled, given=given, normalize=keywords.get("normalize", False))
    right = np.exp(entropies)
    eps = float(np.finfo(dtype).eps)
    got = fk.perplexity(x, given=given, **keywords)
    assert got.dtype == dtype
    assert (abs(got - right) <= 16 * eps * right * np.maximum(1, entropies)).all()
    np.testing.assert_allclose(reference.perplexity(x, given=given, **keywords), right, rtol=1e4 * eps)
