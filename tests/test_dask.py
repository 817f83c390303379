"""The functions over Dask arrays, with rows whole and in pieces, and runs over shards on a cluster of two processes.

The tests that lose a worker draw their moment, and are repeated FASTKL_REPEATS times.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from test_accuracy import assert_within_budget, measured
from test_arguments import draw
from test_batch_runs import contents, make_shards, manifest
from test_edges import EDGES, check, edge_id, padded

import fastkl as fk
from fastkl.batch import InputError, score_files
from fastkl.batch.command import main
from fastkl.registry import DOMINANT_LOGSUMEXP, FORMS, OPERATIONS, Operation

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
import dask.array as da  # noqa: E402

import fastkl.dask as fd  # noqa: E402
from fastkl.batch.cluster import Cluster  # noqa: E402

REPEATS = range(int(os.environ.get("FASTKL_REPEATS", "2")))
OFFERED = [operation for operation in OPERATIONS if operation.function in fd.__all__]

#: What rows in pieces are taken for: by a state of their own, and as sums of terms where nothing is normalized.
BY_STATES = ("logsumexp", "softmax", "log_softmax", "softmax_cross_entropy", "entropy", "kl_divergence", "perplexity")
BY_SUMS = (
    "alpha_divergence", "chi2_divergence", "cross_entropy", "generalized_kl", "hellinger_distance",
    "jeffreys_divergence", "js_distance", "js_divergence", "total_variation", "triangular_discrimination",
    "tsallis_entropy",
)  # fmt: skip


def in_pieces(function: str, keywords: Any) -> bool:
    """Whether the function takes rows in pieces with these options."""
    given = keywords.get("given", "probs")
    words = {given} if isinstance(given, str) else set(given)
    if function in ("entropy", "perplexity"):
        return keywords.get("temperature", 1) == 1 and ("logits" in words or not keywords.get("normalize"))
    if function == "kl_divergence":
        return words == {"probs"}
    return function in BY_STATES or (
        function in BY_SUMS and not keywords.get("normalize") and words <= {"probs", "log_probs"}
    )


def each(chosen: Any) -> Any:
    """Parametrize a test by operations."""
    return pytest.mark.parametrize("operation", chosen, ids=lambda operation: operation.id)


operations = each(OFFERED)
in_states = each([one for one in OFFERED if one.function in BY_STATES and in_pieces(one.function, one.keywords)])
in_sums = each([one for one in OFFERED if one.function in BY_SUMS and in_pieces(one.function, one.keywords)])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
INF = np.inf


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in this thread, so that a failure has its traceback."""
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(array: Any, chunks: Any) -> Any:
    """Return a Dask array; labels, which lack the last axis, get the chunks of the others."""
    array = np.asarray(array)
    return da.from_array(array, chunks=chunks[: array.ndim])


def assert_same(got: Any, right: Any) -> None:
    """Equal as bytes, in shape and in type, as told and as computed."""
    computed = got.compute()
    assert (got.shape, got.dtype) == (np.shape(right), np.asarray(right).dtype)
    assert (np.shape(computed), np.asarray(computed).dtype) == (got.shape, got.dtype)
    assert np.asarray(computed).tobytes() == np.asarray(right).tobytes()


# Rows that are whole: the bits of NumPy -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16, "int8"])
@operations
def test_rows_that_are_whole_have_the_same_bits(operation: Operation, dtype: Any, rng: np.random.Generator) -> None:
    arrays = draw(operation, (7, 5, 30), dtype if dtype != "int8" else "float64", rng)
    if dtype == "int8":
        arrays[0] = np.clip(10 * np.abs(arrays[0]), 0, 100).astype("int8")
    right = oracle.evaluate(fk, operation, arrays)
    assert_same(oracle.evaluate(fd, operation, [lazy(a, (3, 2, -1)) for a in arrays]), right)


@operations
def test_axes_masks_and_bases(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, (6, 5, 8), "float32", rng)
    mask = rng.random((5, 8)) < 0.8
    keywords: list[dict[str, Any]] = [{"axis": -1, "where": mask}]
    if "labels" not in operation.operands:
        keywords += [{"axis": axis, "where": mask} for axis in (0, (0, 2), None)]
    for how in keywords:
        for keepdims in (False, True) if operation.returns == "row" else (None,):
            options = how if keepdims is None else {**how, "keepdims": keepdims}
            if oracle.takes(operation, "base"):
                options = {**options, "base": 2}
            right = oracle.evaluate(fk, operation, arrays, **options)
            axis = how["axis"]
            reduced = range(3) if axis is None else [a % 3 for a in np.atleast_1d(axis)]
            whole = tuple(-1 if i in reduced else 2 for i in range(3))
            lazily = {**options, "where": mask}
            assert_same(oracle.evaluate(fd, operation, [lazy(a, whole) for a in arrays], **lazily), right)
            if not in_pieces(operation.function, operation.keywords):
                continue
            lazily["where"] = da.from_array(mask, chunks=3)
            pieces = oracle.evaluate(fd, operation, [lazy(a, (2, 2, 3)) for a in arrays], **lazily)
            assert (pieces.shape, pieces.dtype) == (np.shape(right), right.dtype)
            slack = 1e-7
            if operation.id == "kl_divergence":  # two parts that may cancel; each result has the budget of scale "kl"
                terms = fk.generalized_kl(*arrays, **options)
                slack += 16 * np.finfo("float32").eps * float(np.max(terms + np.abs(right - terms)))
            np.testing.assert_allclose(pieces.compute(), right, rtol=3e-6, atol=slack)


@each([one for one in FORMS if one.function in fd.__all__])
def test_what_the_rows_are_given_by(operation: Operation, rng: np.random.Generator) -> None:
    """Logs and logits, mixed pairs too: whole rows have the bits of NumPy; in pieces they are right or refused."""
    logits = 2 * rng.normal(size=(2, 7, 30))
    kinds = {"x": logits[0], "y": logits[1], "p": fk.softmax(logits[0]), "q": fk.softmax(logits[1])}
    kinds |= {"log_p": fk.log_softmax(logits[0]), "log_q": fk.log_softmax(logits[1])}
    arrays = [kinds[operand].astype("float32") for operand in operation.operands]
    right = oracle.evaluate(fk, operation, arrays)
    assert_same(oracle.evaluate(fd, operation, [lazy(a, (3, -1)) for a in arrays]), right)
    pieces = [lazy(a, (3, 8)) for a in arrays]
    if in_pieces(operation.function, operation.keywords):
        np.testing.assert_allclose(oracle.evaluate(fd, operation, pieces).compute(), right, rtol=2e-6)
    else:
        with pytest.raises(ValueError, match=rf"{operation.function}.* needs whole rows.*rechunk"):
            oracle.evaluate(fd, operation, pieces)


def test_every_function_of_rows_is_offered() -> None:
    """All that is public, but what is no function of rows; with the same parameters, but no `out`."""
    apart = {"Scores", "build_info", "get_num_threads", "set_num_threads", "variational_bound"}
    assert sorted(fd.__all__) == sorted(set(fk.__all__) - apart)
    for name in fd.__all__:
        theirs, ours = (inspect.signature(getattr(module, name)).parameters for module in (fk, fd))
        assert set(theirs) - set(ours) <= {"out", "y"}, name
        assert ours["n_threads"].default == 1
        told = getattr(fd, name).__doc__
        assert all(f"{part}\n---" in inspect.cleandoc(told) for part in ("Parameters", "Returns", "Raises", "Notes"))
        assert "out :" not in told


def test_rows_that_cannot_be_cut_are_refused() -> None:
    p = da.full((4, 6), 1 / 6, chunks=(2, 3))
    for name in fd.__all__:
        options = [p] * (2 if "q" in inspect.signature(getattr(fd, name)).parameters else 1)
        options += [2.0] if name.startswith(("renyi", "alpha", "tsallis")) else ["kl"] if name[0] == "f" else []
        if name in ("binary_cross_entropy", "softmax_cross_entropy") or in_pieces(name, {}):
            continue
        with pytest.raises(ValueError, match=r"needs whole rows.*rechunk\(\{-1: -1\}\)"):
            getattr(fd, name)(*options)


def test_points_and_generators(rng: np.random.Generator) -> None:
    p, q = rng.uniform(0.1, 1, (2, 7, 3, 10))
    x = rng.normal(size=10)
    right = fk.wasserstein_1d(p, q, x=x, normalize=True)
    assert_same(fd.wasserstein_1d(lazy(p, (2, 2, -1)), q, x=x, normalize=True), right)
    right = fk.wasserstein_1d(p.swapaxes(1, 2), q.swapaxes(1, 2), x=x, axis=1)
    assert_same(fd.wasserstein_1d(lazy(p.swapaxes(1, 2), (2, -1, 2)), q.swapaxes(1, 2), x=x, axis=1), right)
    with pytest.raises(ValueError, match="x has"):
        fd.wasserstein_1d(lazy(p, (2, 2, -1)), q, x=x[1:])
    assert_same(fd.f_divergence(lazy(p, (2, 2, -1)), q, np.square, f_at_0=0.0), fk.f_divergence(p, q, np.square))


@pytest.mark.parametrize("given", ["probs", "logits"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy(given: str, dtype: str, rng: np.random.Generator) -> None:
    p = rng.uniform(0.01, 0.99, (7, 5)).astype(dtype)
    y, mask = rng.integers(2, size=5), rng.random((7, 1)) < 0.7
    chunked = da.from_array(p, chunks=(3, 2))
    for where in (None, mask, da.from_array(mask, chunks=2)):
        right = fk.binary_cross_entropy(p, y, given=given, where=where if where is None else mask)
        assert_same(fd.binary_cross_entropy(chunked, y, given=given, where=where), right)
        for reduction in ("mean", "sum"):
            options = {"given": given, "reduction": reduction}
            right = fk.binary_cross_entropy(p, y, where=None if where is None else mask, **options)
            got = fd.binary_cross_entropy(chunked, y, where=where, **options)
            assert (got.dtype, got.shape) == (dtype, ())
            np.testing.assert_allclose(got.compute(), right, rtol=1e-6)
    with pytest.raises(ValueError, match="given takes"):
        fd.binary_cross_entropy(chunked, y, given="odds")


@pytest.mark.parametrize("function", ["kl_divergence", "cross_entropy", "generalized_kl"])
@pytest.mark.parametrize("cut", [-1, 4])
def test_one_q_against_all(function: str, cut: int, rng: np.random.Generator) -> None:
    p, q = rng.uniform(0.1, 1, (6, 10)), rng.uniform(0.1, 1, 10)
    chunked = da.from_array(q, chunks=3), da.from_array(q[None], chunks=(1, 5))
    for second in (q, q[None], *chunked, q[:1], q[:6, None]):
        rechunked = second.rechunk(-1) if cut == -1 and isinstance(second, da.Array) else second
        for lazily, arrays in [
            ((da.from_array(p, chunks=(2, cut)), rechunked), (p, np.asarray(second))),
            ((rechunked, da.from_array(p, chunks=(2, cut))), (np.asarray(second), p)),
        ]:
            got, right = getattr(fd, function)(*lazily).compute(), getattr(fk, function)(*arrays)
            size = abs(right)
            if function == "kl_divergence":  # these rows do not sum to 1: it is a difference, and may be next to 0
                size = fk.generalized_kl(*arrays) + abs((arrays[0] - arrays[1]).sum(axis=-1))
            assert (abs(got - right) <= 1e-14 * size).all()


# Rows in pieces: within the budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "cut"), [(2, 1), (10, (1, 4, 5)), (100, 7), (1000, 300)], ids=str)
@dtypes
@in_states
def test_budget_in_pieces(operation: Operation, dtype: str, size: int, cut: Any, rng: np.random.Generator) -> None:
    check_budget(operation, dtype, size, cut, rng)


@pytest.mark.parametrize(("size", "cut"), [(10, (1, 4, 5)), (100, 7)], ids=str)
@dtypes
@in_sums
def test_budget_of_sums(operation: Operation, dtype: str, size: int, cut: Any, rng: np.random.Generator) -> None:
    check_budget(operation, dtype, size, cut, rng)


def check_budget(operation: Operation, dtype: str, size: int, cut: Any, rng: np.random.Generator) -> None:
    """Compare rows in pieces with the oracle."""
    drawn = oracle.rows_for(operation, size, dtype, rng)
    if size == 1000:
        drawn = [drawn[i] for i in rng.permutation(len(drawn))[:4]]  # the oracle takes its time
    arrays = [lazy(a, (5, cut)) for a in oracle.stacked(drawn)]
    rows = [measured(operation, row, dtype, arrays[0].numblocks[-1]) for row in drawn]
    assert_within_budget(oracle.evaluate(fd, operation, arrays).compute(), rows, dtype)


@dtypes
def test_logsumexp_where_the_maximum_dominates(dtype: str, rng: np.random.Generator) -> None:
    depths = np.linspace(1, 80 if dtype == "float32" else 640, 12)
    x = rng.uniform(-1, 0, (depths.size, 100)) - depths[:, None]
    x[np.arange(depths.size), rng.integers(100, size=depths.size)] = 0.0
    x = x.astype(dtype)
    right = [oracle.logsumexp(row.tolist()) for row in x]
    got = fd.logsumexp(da.from_array(x, chunks=(4, 9))).compute()
    assert max(oracle.relative_errors(got, right, DOMINANT_LOGSUMEXP, dtype)) <= 1


@dtypes
def test_losses_down_to_the_smallest(dtype: str, rng: np.random.Generator) -> None:
    operation = next(operation for operation in OPERATIONS if operation.function == "softmax_cross_entropy")
    depths = np.linspace(0, -np.log(oracle.SMALLEST_LOSS[dtype]) - 1, 12)
    x, labels = rng.uniform(-1, 1, (depths.size, 100)), rng.integers(100, size=depths.size)
    x[np.arange(depths.size), labels] += depths + np.log(100)
    x = (x + rng.normal(size=(depths.size, 1))).astype(dtype)
    drawn = zip(depths, x, labels, strict=True)
    rows = [measured(operation, oracle.Row(f"{d:.0f} ahead", (row, int(k))), dtype) for d, row, k in drawn]
    assert rows[-1][1][0] < 100 * oracle.SMALLEST_LOSS[dtype]
    got = fd.softmax_cross_entropy(da.from_array(x, chunks=(5, 9)), labels).compute()
    assert_within_budget(got, rows, dtype)


EDGES_IN_PIECES = [e for e in EDGES if e[1][0] and isinstance(e[1][0], list) and in_pieces(e[0], e[2])]
KINDS = [(dtype, cut) for dtype in ("float32", "float64") for cut in (1, 30)]


@pytest.mark.parametrize(
    ("edge", "dtype", "cut"),
    # Of sums there is less to go wrong.
    [(edge, *kind) for edge in EDGES_IN_PIECES for kind in (KINDS if edge[0] in BY_STATES else KINDS[2:3])],
    ids=lambda value: edge_id(value) if isinstance(value, tuple) else str(value),
)
def test_edge_in_pieces(edge: Any, dtype: str, cut: int) -> None:
    """What a call means where the formula does not say, of a row whose every piece may be one element."""
    function, arguments, keywords, expected = edge
    logits = function in ("logsumexp", "softmax", "log_softmax", "softmax_cross_entropy") or "given" in keywords
    width = 40 if cut == 30 else 0
    arrays = [padded(v, -INF if logits else 0.0, width, dtype) for v in arguments]
    added = {"b": 0.0, "where": any(keywords.get("where", ()))}
    keywords = {k: padded(v, added.get(k), width, dtype if k == "b" else bool) for k, v in keywords.items()}
    got = getattr(fd, function)(da.from_array(arrays[0], chunks=cut), *arrays[1:], **keywords)
    for result, right in zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]:
        value = result.compute()
        check(value if isinstance(right, list) else value[()], right, dtype)


def test_pieces_of_nothing() -> None:
    x = da.from_array(np.zeros((3, 4)), chunks=((2, 1), (2, 0, 2)))
    np.testing.assert_allclose(fd.logsumexp(x).compute(), np.log(4) * np.ones(3))
    np.testing.assert_allclose(fd.entropy(x, given="logits").compute(), np.log(4) * np.ones(3))
    np.testing.assert_allclose(fd.softmax_cross_entropy(x, [0, 3, 1]).compute(), np.log(4) * np.ones(3))


def test_no_chunking_of_the_rows_shows(rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(20, 50)), rng.integers(50, size=20)
    losses = [fd.softmax_cross_entropy(da.from_array(x, chunks=(n, 13)), labels).compute() for n in (1, 3, 20)]
    assert losses[0].tobytes() == losses[1].tobytes() == losses[2].tobytes()


# Labels and reductions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [-1, 4])
def test_ignored_labels_and_reductions(cut: int, rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(11, 10)).astype("float32"), rng.integers(10, size=11)
    labels[[2, 7]] = -100
    x[2] = np.nan
    lazily = da.from_array(x, chunks=(4, cut))
    for reduction in ("none", "sum", "mean"):
        got = fd.softmax_cross_entropy(lazily, labels, ignore_index=-100, reduction=reduction)
        right = fk.softmax_cross_entropy(x, labels, ignore_index=-100, reduction=reduction)
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        np.testing.assert_allclose(got.compute(), right, rtol=3e-7)
    nothing = np.full(11, -100)
    empty = fd.softmax_cross_entropy(lazily, nothing, ignore_index=-100, reduction="mean", empty_mean=0.5)
    assert empty.compute() == 0.5
    assert np.isnan(fd.softmax_cross_entropy(lazily, nothing, ignore_index=-100, reduction="mean").compute())


@pytest.mark.parametrize("cut", [-1, 4])
@pytest.mark.parametrize(("dtype", "bad"), [("int64", -1), ("int64", 10), ("uint64", 2**64 - 1), ("int8", -128)])
def test_a_label_out_of_range_is_named_by_its_row(cut: int, dtype: str, bad: int) -> None:
    labels = np.zeros((9, 3), dtype)
    labels[7, 1] = bad
    loss = fd.softmax_cross_entropy(da.zeros((9, 3, 10), chunks=(4, 2, cut)), labels)
    with pytest.raises(IndexError, match=rf"label {bad} in row \(7, 1\) is out of range for 10 classes"):
        loss.compute()
    with pytest.raises(IndexError, match=rf"label {bad} in row 7 is out of range for 10 classes"):
        fd.score(da.zeros((9, 10), chunks=(4, -1)), labels[:, 1])["loss"].compute()


def test_what_is_refused_at_the_call() -> None:
    x = da.zeros((4, 6), chunks=(2, 3))
    with pytest.raises(TypeError, match="x has dtype complex128"):
        fd.logsumexp(x.astype(complex))
    with pytest.raises(ValueError, match=r"p of shape \(4, 6\) and q of shape \(5,\) do not broadcast"):
        fd.kl_divergence(x, np.zeros(5))
    with pytest.raises(np.exceptions.AxisError):
        fd.softmax(x, axis=2)
    with pytest.raises(ValueError, match="given takes"):
        fd.entropy(x, given="odds")
    with pytest.raises(ValueError, match="base takes"):
        fd.entropy(x, base=1)
    with pytest.raises(ValueError, match="temperature"):
        fd.js_divergence(x, x, temperature=2.0)
    with pytest.raises(ValueError, match="alpha takes"):
        fd.renyi_entropy(x, -1.0)
    with pytest.raises(TypeError, match="missing a required argument: 'q'"):
        fd.js_divergence(x)
    with pytest.raises(TypeError, match="where takes booleans"):
        fd.entropy(x, where=np.zeros(6))
    with pytest.raises(ValueError, match="labels has shape"):
        fd.softmax_cross_entropy(x, np.zeros(3, int))
    with pytest.raises(TypeError, match="labels has dtype float64"):
        fd.softmax_cross_entropy(x, np.zeros(4))
    with pytest.raises(ValueError, match="n_threads takes"):
        fd.logsumexp(x, n_threads=0)
    with pytest.raises(ValueError, match=r"score needs whole rows.*rechunk"):
        fd.score(x)
    with pytest.raises(ValueError, match="needs labels"):
        fd.score(x.rechunk((2, -1)), stats=["loss"])


def test_score(rng: np.random.Generator) -> None:
    x, y, r = rng.normal(size=(11, 3, 6)), rng.integers(6, size=(11, 3)), rng.normal(size=6).astype("float32")
    right = fk.score(x, y, r, temperature=2.0)
    got = fd.score(da.from_array(x, chunks=(4, 2, -1)), y, r, temperature=2.0)
    assert list(got) == list(right)
    for name, column in right.items():
        assert_same(got[name], column)
    names = ["entropy", "top_k"]
    right = fk.score(x, stats=names, k=3)
    got = fd.score(da.from_array(x, chunks=(4, 2, -1)), stats=names, k=3)
    for name, column in right.items():
        assert_same(got[name], column)


def test_without_dask_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['dask'] = None; import fastkl; import fastkl.dask"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "ImportError: fastkl.dask needs Dask: pip install fastkl[dask]"


# A cluster ------------------------------------------------------------------------------------------------------------


def two_workers() -> Any:
    """Start a cluster of two workers, each a process of one thread."""
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start the cluster of the tests that leave it as it was."""
    with two_workers() as running:
        yield running


def without_times(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run, without what differs between two runs: where its results are, and since when."""
    told: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for entry in told["shards"].values():
        entry.get("output", {}).pop("path", None)
        entry.get("output", {}).pop("mtime_ns", None)
    return told


def test_arrays_on_a_cluster(cluster: Any, rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(40, 30)), rng.integers(30, size=40)
    with distributed.Client(cluster, set_as_default=False) as client:
        whole = fd.softmax_cross_entropy(da.from_array(x, chunks=(7, -1)), labels)
        pieces = fd.softmax_cross_entropy(da.from_array(x, chunks=(7, 8)), labels)
        computed = [future.result() for future in client.compute([whole, pieces])]
    right = fk.softmax_cross_entropy(x, labels)
    assert computed[0].tobytes() == right.tobytes()
    np.testing.assert_allclose(computed[1], right, rtol=1e-14)


def test_the_command_gives_what_it_gives_here(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path / "in")
    (tmp_path / "in" / "part-2.npz").write_bytes(b"no archive")
    monkeypatch.chdir(tmp_path)  # a folder that the workers are not in: relative paths must reach them all the same
    said = []
    for out, more in (("here", []), ("there", ["--dask", cluster.scheduler_address])):
        assert main(["score", "in", "--labels", "y", "--out", out, *more]) == 1
        printed = capsys.readouterr()
        said.append(([line for line in printed.out.splitlines() if "rows/second" not in line], printed.err))
    assert said[0] == said[1]
    assert "fastkl: set aside: in/part-2.npz: not a readable .npz file" in said[1][1]
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert without_times(tmp_path / "here") == without_times(tmp_path / "there")
    assert manifest(tmp_path / "there")["part-0.npz"]["output"]["path"] == "there/part-0.parquet"
    # What is done here is done there.
    assert main(["score", "in", "--labels", "y", "--out", "here", "--resume", *more]) == 1
    assert "shards         3 (3 done before)" in capsys.readouterr().out


def test_no_scheduler(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkl.batch.cluster.PATIENCE", 0.5)
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        assert main(["score", str(tmp_path / "x.npy"), "--dask", address]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"fastkl: error: {address}: no scheduler of dask.distributed answers")
        assert said.count("\n") == 1


def test_another_fastkl_is_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkl.batch.cluster.build", lambda: ("0.0.1", "fma"))
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"a worker has fastkl .*, but this run is of 0\.0\.1 fma"):
        score_files(tmp_path / "x.npy", runner=Cluster(cluster.scheduler_address))


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Sixteen shards that take about a tenth of a second each, and what becomes of them here."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(6)
    (folder / "in").mkdir()
    for i in range(16):
        np.save(folder / "in" / f"{i:02}.npy", rng.normal(0, 2, (30_000, 50)).astype(np.float32))
    run = score_files(folder / "in", out=folder / "out")
    return folder / "in", folder / "out", repr(run.summary)


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_worker_killed_in_the_middle(
    many_shards: tuple[Path, Path, str], tmp_path: Path, rng: np.random.Generator, repeat: int
) -> None:
    """Its shards go to another worker: every shard is there, with the bytes and totals of a run here."""
    folder, expected, summary = many_shards
    out = tmp_path / "out"
    at, delay, killed = int(rng.integers(1, 10)), float(rng.uniform(0, 0.1)), []
    with two_workers() as running:  # one of its own: a nanny does not always bring back what was killed
        with distributed.Client(running, set_as_default=False) as client:
            pids = sorted(client.run(os.getpid).values())
        runner = Cluster(running.scheduler_address)

        def run_and_kill(shards: Any, *arguments: Any) -> Iterator[Any]:
            for number, (shard, outcome) in enumerate(runner(shards, *arguments)):
                if number == at:
                    time.sleep(delay)
                    os.kill(pids[repeat % 2], signal.SIGKILL)
                    killed.append(number)
                yield shard, outcome

        run = score_files(folder, out=out, runner=run_and_kill)
    assert killed
    assert (run.shards, run.set_aside, repr(run.summary)) == (16, (), summary)
    assert contents(out) == contents(expected)
    assert without_times(out) == without_times(expected)
    print(f"killed after {at + 1} of 16 shards")


def test_an_interrupted_run_leaves_nothing_at_work(
    cluster: Any, many_shards: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Ctrl-C ends the command at once; what the workers have begun does not appear afterwards."""
    folder, expected, summary = many_shards
    out = tmp_path / "out"
    command = subprocess.Popen(
        [sys.executable, "-m", "fastkl", "score", folder, "--out", out, "--dask", cluster.scheduler_address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with command:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.parquet")):
            assert command.poll() is None, command.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        command.send_signal(signal.SIGINT)
        sent = time.monotonic()
        said = command.communicate(timeout=60)
        print(f"ended {time.monotonic() - sent:.2f} s after Ctrl-C")
    assert (command.returncode, *said) == (130, "", "fastkl: interrupted\n")
    time.sleep(1.0)
    left = contents(out)
    assert left.items() <= contents(expected).items()
    assert len(left) < 16
    run = score_files(folder, out=out, resume=True, runner=Cluster(cluster.scheduler_address))
    assert contents(out) == contents(expected)
    assert repr(run.summary) == summary
