"""Every format gives the same scores, to the bit; what a file holds that it should not is named with its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastkl as fk
from fastkl.batch import InputError, score_files
from fastkl.batch.readers import open_source

pa = pytest.importorskip("pyarrow")
import pyarrow.csv  # noqa: E402
import pyarrow.feather  # noqa: E402
import pyarrow.ipc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

ROWS, CLASSES = 1000, 17


def draw(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw logits, labels and a reference; no two rows are alike."""
    rng = np.random.default_rng(5)
    x, r = rng.normal(0, 3, (2, ROWS, CLASSES)).astype(dtype)
    return x, rng.integers(0, CLASSES, ROWS), r


def lists(x: np.ndarray, kind: str) -> Any:
    """Return rows as a column of Arrow's."""
    values = pa.array(x.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, x.shape[1])
    if kind == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    offsets = np.arange(0, x.size + 1, x.shape[1])
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def table(x: np.ndarray, y: np.ndarray, r: np.ndarray, kind: str) -> Any:
    """Return a table with labels, and logits and reference as lists or as a column for each class."""
    if kind == "columns":
        columns = {f"class_{i}": x[:, i] for i in range(x.shape[1])} | {f"ref_{i}": r[:, i] for i in range(x.shape[1])}
        return pa.table({"y": y, **columns})
    return pa.table({"y": y, "logits": lists(x, kind), "reference": lists(r, kind)})


def write_parquet(path: Path, t: Any) -> None:
    pq.write_table(t, path, row_group_size=300)


def write_ipc(path: Path, t: Any, compression: str | None = None) -> None:
    with pa.ipc.new_file(path, t.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as file:
        file.write_table(t, max_chunksize=300)


def write_ipc_compressed(path: Path, t: Any) -> None:
    write_ipc(path, t, "zstd")


def write_stream(path: Path, t: Any) -> None:
    with pa.ipc.new_stream(path, t.schema) as file:
        file.write_table(t, max_chunksize=300)


def write_feather(path: Path, t: Any) -> None:
    pyarrow.feather.write_feather(t, path)


TABLES = [write_parquet, write_ipc, write_ipc_compressed, write_stream, write_feather]


def scored(tmp_path: Path, path: Path, name: str = "s.npz", **options: Any) -> dict[str, np.ndarray]:
    """Score a file and return the columns of its result."""
    score_files(path, out=tmp_path / name, stats=["lse", "loss", "entropy"], complete=False, **options)
    with np.load(tmp_path / name) as columns:
        return dict(columns)


def assert_as_whole(columns: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> None:
    """Assert that the columns are what the functions give for the whole array."""
    assert list(columns) == ["lse", "loss", "entropy"]
    assert columns["lse"].tobytes() == fk.logsumexp(x).tobytes()
    assert columns["loss"].tobytes() == fk.softmax_cross_entropy(x, y).tobytes()
    assert columns["entropy"].tobytes() == fk.entropy(x, given="logits").tobytes()


@pytest.mark.parametrize("kind", ["fixed", "list", "large", "tensor", "columns"])
@pytest.mark.parametrize("write", TABLES, ids=lambda write: write.__name__)
def test_tables(tmp_path: Path, write: Any, kind: str) -> None:
    x, y, r = draw("float64" if kind in ("large", "columns") else "float32")
    path = tmp_path / ("x.parquet" if write is write_parquet else "x.arrow")
    write(path, table(x, y, r, kind))
    key = "class_*" if kind == "columns" else None
    for chunk, threads in [(None, 2), (7, 3), (299, 1)]:
        assert_as_whole(scored(tmp_path, path, labels="y", key=key, chunk=chunk, n_threads=threads), x, y)
    other = "ref_*" if kind == "columns" else "reference"
    score_files(path, reference=other, key=key, out=tmp_path / "r.npz", stats=["kl"])
    with np.load(tmp_path / "r.npz") as columns:
        assert columns["kl"].tobytes() == fk.score(x, None, r, stats=["kl"])["kl"].tobytes()


@pytest.mark.parametrize("write", [write_ipc, write_stream], ids=lambda write: write.__name__)
@pytest.mark.parametrize("kind", ["fixed", "list", "large", "tensor"])
def test_lists_of_an_uncompressed_arrow_file_are_not_copied(tmp_path: Path, write: Any, kind: str) -> None:
    x, y, r = draw()
    write(tmp_path / "x.arrow", table(x, y, r, kind))
    source = open_source(str(tmp_path / "x.arrow"), {"logits": None})
    assert source.file is not None
    pieces = [batch["logits"] for batch in source.batches(0, ROWS, 250)]
    assert all(source.file.place(piece) is not None for piece in pieces)
    assert np.concatenate(pieces).tobytes() == x.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any, order: str) -> None:
    x, y, r = draw()
    save(tmp_path / "x.npz", logits=np.asarray(x, order=order), y=y, reference=r, name=np.array("text"))
    for chunk in (None, 7):
        assert_as_whole(scored(tmp_path, tmp_path / "x.npz", labels="y", chunk=chunk), x, y)
    source = open_source(str(tmp_path / "x.npz"), {"logits": None})
    assert (source.file is not None) == (save is np.savez)
    run = score_files(tmp_path / "x.npz", "y", reference="reference")
    assert run.summary.mean_kl == pytest.approx(fk.score(x, None, r, stats=["kl"])["kl"].mean(dtype=float))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_safetensors(tmp_path: Path, dtype: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, y, _ = draw()
    x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":  # the library's NumPy side does not know it: written as it would be, through uint16
        content = safetensors.save({"logits": x.view(np.uint16), "y": y}).replace(b'"U16"', b'"BF16"')
        length = int.from_bytes(content[:8], "little") + 1
        (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    else:
        safetensors.save_file({"logits": x, "y": y}, tmp_path / "x.safetensors")
    assert_as_whole(scored(tmp_path, tmp_path / "x.safetensors", labels="y"), x, y)


def test_half_precision_columns(tmp_path: Path) -> None:
    x, y, r = draw("float16")
    for kind in ("fixed", "columns"):
        pq.write_table(table(x, y, r, kind), tmp_path / "x.parquet")
        key = None if kind == "fixed" else "class_*"
        assert_as_whole(scored(tmp_path, tmp_path / "x.parquet", labels="y", key=key), x, y)


@pytest.fixture
def two_arrow_threads() -> Iterator[None]:
    """Have pyarrow's pool of two threads, whatever the machine has."""
    before = pa.cpu_count()
    pa.set_cpu_count(2)
    yield
    pa.set_cpu_count(before)


def test_many_columns_are_unpacked_side_by_side(tmp_path: Path, two_arrow_threads: None) -> None:
    """Through all row groups in one span, where Arrow has no more threads than the run; to the same bytes."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 3, (ROWS, 80)).astype(np.float32)
    y = rng.integers(0, 80, ROWS)
    columns = {f"class_{i}": x[:, i] for i in range(80)}
    write_parquet(tmp_path / "x.parquet", pa.table({"y": y, **columns}))
    pq.write_table(pa.table({"y": y}), tmp_path / "y.parquet", row_group_size=170)

    spans = {}
    for key in ("class_*", "class_[1-5]?"):
        for threads in (1, 2, 3):
            source = open_source(str(tmp_path / "x.parquet"), {"logits": key})
            source.unpack_by(threads)
            spans[key, threads] = source.spans
    groups = [(0, 300), (300, 600), (600, 900), (900, 1000)]
    together = [(0, 1000)]
    assert list(spans.values()) == [groups, together, together, groups, groups, groups]

    whole = fk.score(x, y)
    files = set()
    for labels in ("y", f"{tmp_path}/y.parquet:y"):
        for threads, chunk in [(1, None), (2, None), (2, 64), (3, 299)]:
            run = score_files(
                tmp_path / "x.parquet", labels, tmp_path / "s.npz", key="class_*", n_threads=threads, chunk=chunk
            )
            files.add(((tmp_path / "s.npz").read_bytes(), repr(run.summary).replace("y.parquet", "x.parquet")))
    assert len(files) == 1
    with np.load(tmp_path / "s.npz") as got:
        for name in whole:
            np.testing.assert_array_equal(got[name], whole[name])

    columns["class_4"] = pa.array([None if i == 700 else value for i, value in enumerate(x[:, 4].tolist())])
    write_parquet(tmp_path / "x.parquet", pa.table(columns))
    for threads in (1, 2):
        with pytest.raises(InputError, match="row 700 of 'class_4' holds a null"):
            score_files(tmp_path / "x.parquet", key="class_*", n_threads=threads)


def test_a_parquet_file_that_ends_early_in_one_span(tmp_path: Path, two_arrow_threads: None) -> None:
    """Bytes of a row group are lost: the file is refused by name, and nothing is written."""
    x = np.random.default_rng(5).normal(0, 3, (ROWS, 80)).astype(np.float32)
    path = tmp_path / "x.parquet"
    write_parquet(path, pa.table({f"class_{i}": x[:, i] for i in range(80)}))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: not a readable Parquet file"):
        score_files(path, out=tmp_path / "s.npz", key="class_*", n_threads=2)
    assert os.listdir(tmp_path) == ["x.parquet"]


def test_labels_and_reference_in_files_of_their_own(tmp_path: Path) -> None:
    """Files of every kind walk in step, whatever their row groups and batches."""
    x, y, r = draw()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez_compressed(tmp_path / "r.npz", r=r)
    write_parquet(tmp_path / "x.parquet", table(x, y, r, "fixed"))
    pq.write_table(table(x, y, r, "list"), tmp_path / "other.parquet", row_group_size=170)
    write_stream(tmp_path / "x.arrows", table(x, y, r, "fixed"))
    whole = fk.score(x, y, r)
    for logits in ("x.npy", "x.parquet", "x.arrows"):
        for labels in ("y.npy", "other.parquet:y", "x.arrows:y"):
            for reference in ("r.npz:r", "other.parquet:reference", "x.arrows:reference"):
                score_files(
                    tmp_path / logits, f"{tmp_path}/{labels}", tmp_path / "s.npz", reference=f"{tmp_path}/{reference}",
                    chunk=130, key=None if logits == "x.npy" else "logits",
                )  # fmt: skip
                with np.load(tmp_path / "s.npz") as columns:
                    for name in ("loss", "kl", "agree"):
                        assert columns[name].tobytes() == whole[name].tobytes()


def test_a_reference_of_one_row_stands_for_all(tmp_path: Path) -> None:
    x, _, r = draw()
    np.savez(tmp_path / "x.npz", logits=x, one=r[0], row=r[:1])
    np.save(tmp_path / "one.npy", r[0])
    whole = fk.score(x, None, r[:1], stats=["kl"])
    for reference in ("one", "row", f"{tmp_path}/one.npy"):
        score_files(tmp_path / "x.npz", reference=reference, out=tmp_path / "s.npz", stats=["kl"], chunk=99)
        with np.load(tmp_path / "s.npz") as columns:
            assert columns["kl"].tobytes() == whole["kl"].tobytes()


def read_back(path: Path) -> dict[str, np.ndarray]:
    """Read a result with the library that its users have."""
    if path.suffix == ".npz":
        with np.load(path) as columns:
            return dict(columns)
    if path.suffix == ".parquet":
        read = pq.read_table(path)
    elif path.suffix == ".csv":
        read = pyarrow.csv.read_csv(path)
    else:
        read = pa.ipc.open_file(path).read_all()
    columns = {}
    for name in read.column_names:
        column = read.column(name).combine_chunks()
        is_list = pa.types.is_fixed_size_list(column.type)
        columns[name] = (
            column.flatten().to_numpy().reshape(len(column), -1) if is_list else column.to_numpy(zero_copy_only=False)
        )
    return columns


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather", ".npz", ".csv"])
def test_results_in_every_format(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 3, (140_000, 6)).astype(np.float32)  # more than two of the blocks that are written at once
    x[70_000] = np.nan
    y = rng.integers(0, 6, len(x))
    np.savez(tmp_path / "x.npz", logits=x, labels=y)
    stats = ["loss", "argmax", "correct", "top_k"]
    files = set()
    for chunk, threads in [(None, 2), (999, 3)]:
        score_files(
            tmp_path / "x.npz", "labels", tmp_path / f"s{ending}", stats=stats, k=3, chunk=chunk, n_threads=threads
        )
        files.add((tmp_path / f"s{ending}").read_bytes())
    assert len(files) == 1
    got, whole = read_back(tmp_path / f"s{ending}"), fk.score(x, y, stats=stats, k=3)
    if ending == ".csv":
        for name in ("top_k", "top_k_log_prob"):
            got[name] = np.stack([got.pop(f"{name}_{i}") for i in (1, 2, 3)], axis=1)
    assert list(got) == list(whole)
    for name in whole:
        np.testing.assert_array_equal(got[name].astype(whole[name].dtype), whole[name])


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".csv"])
def test_results_are_written_without_pandas(tmp_path: Path, ending: str) -> None:
    """`pyarrow.array` would import it where it is there, which takes longer than scoring a GB."""
    pytest.importorskip("pandas")
    np.save(tmp_path / "x.npy", np.zeros((10, 3)))
    program = (
        "import sys; from fastkl.batch import score_files;"
        f"score_files({str(tmp_path / 'x.npy')!r}, out={str(tmp_path / ('s' + ending))!r});"
        "print('pandas' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"


def test_no_rows_in_every_format(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.empty((0, 5), np.float32))
    pq.write_table(pa.table({"logits": lists(np.empty((0, 5), np.float32), "fixed")}), tmp_path / "x.parquet")
    for source in ("x.npy", "x.parquet"):
        for ending in (".parquet", ".arrow", ".npz", ".csv"):
            assert score_files(tmp_path / source, out=tmp_path / f"s{ending}").summary.rows == 0
            columns = read_back(tmp_path / f"s{ending}")
            assert {len(values) for values in columns.values()} == {0}


def broken(what: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Make a file that has something wrong in row 700."""
    x, y, _ = draw()
    rows = x.tolist()
    path = tmp_path / "x.parquet"
    options: dict[str, Any] = {}
    if what == "null row":
        rows[700] = None
        columns = {"logits": pa.array(rows, pa.list_(pa.float32(), CLASSES))}
    elif what == "null number":
        rows[700][3] = None
        columns = {"logits": pa.array(rows, pa.list_(pa.float32(), CLASSES))}
    elif what == "short row":
        rows[700] = rows[700][:5]
        columns = {"logits": pa.array(rows, pa.list_(pa.float32()))}
    elif what == "null in a column":
        columns = {f"c{i}": pa.array([row[i] for row in rows], pa.float32()) for i in range(CLASSES)}
        columns["c4"] = pa.array([None if i == 700 else row[4] for i, row in enumerate(rows)], pa.float32())
    else:
        y = y.copy()
        y[700] = CLASSES
        columns = {"logits": lists(x, "fixed"), "y": pa.array(y)}
        if what == "null label":
            columns["y"] = pa.array([None if i == 700 else v for i, v in enumerate(y.tolist())])
        options = {"labels": "y"}
    return path, {"table": pa.table(columns), **options}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("null row", "row 700 of 'logits' holds a null"),
        ("null number", "row 700 of 'logits' holds a null"),
        ("short row", "row 700 of 'logits' has 5 numbers; the rows before it have 17"),
        ("null in a column", "row 700 of 'c4' holds a null"),
        ("null label", "row 700 of 'y' holds a null"),
        ("label out of range", "label 17 in row 700 is out of range for 17 classes"),
    ],
)
@pytest.mark.parametrize("write", TABLES, ids=lambda write: write.__name__)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, write: Any, what: str, said: str) -> None:
    path, options = broken(what, tmp_path)
    path = path if write is write_parquet else path.with_suffix(".arrow")
    write(path, options.pop("table"))
    for chunk in (None, 64):
        with pytest.raises(InputError, match=said) as caught:
            score_files(path, out=tmp_path / "s.npz", chunk=chunk, **options)
        assert str(caught.value).startswith(f"{path}: ")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0]]}, {}, "which of 'a', 'b' are the logits\\? Name one \\(--logits COLUMN"),
        ({"a": ["x"]}, {}, "which of 'a' are the logits"),
        ({"logits": [[1, 2]]}, {}, "column 'logits' holds list<.*: int64>; logits are lists of floats"),
        ({"logits": [1.0]}, {"key": "c*"}, "holds no column 'c\\*' for the logits; it holds 'logits'"),
        ({"logits": [[1.0, 2.0]], "y": [0.5]}, {"labels": "y"}, "column 'y' holds double; labels are integers"),
        ({"logits": pa.array([[]], pa.list_(pa.float32()))}, {}, "no classes"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: Any, options: Any, said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=said):
        score_files(tmp_path / "x.parquet", **options)


def is_refused(path: Path, labels: str, out: Path) -> bool:
    """Score a file that may be damaged where it matters, and return whether it is refused, by name."""
    try:
        score_files(path, labels, out)
    except InputError as error:
        return str(error).startswith(f"{path}: ") or pytest.fail(str(error))
    return False


@pytest.mark.parametrize("write", TABLES, ids=lambda write: write.__name__)
def test_tables_that_are_cut_short_or_damaged(tmp_path: Path, write: Any, rng: np.random.Generator) -> None:
    """Whatever bytes a file has, it is scored or refused: no crash, no traceback, no half-written result."""
    x, y, r = draw()
    path = tmp_path / ("x.parquet" if write is write_parquet else "x.arrow")
    write(path, table(x, y, r, "list"))
    whole = path.read_bytes()
    refused = 0
    for kept in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        # A stream may end after any of its batches.
        with pytest.raises(InputError, match=r"not a readable|ends after"):
            score_files(path, "y", tmp_path / "s.npz")
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 30):
            damaged[place] = rng.integers(256)
        tail = rng.integers(0, 2)
        damaged[-200 * tail :] = rng.bytes(200 * tail) if tail else damaged[0:]
        path.write_bytes(damaged)
        refused += is_refused(path, "y", tmp_path / "s.npz")
    assert refused


@pytest.mark.parametrize("write", [write_ipc, write_stream], ids=lambda write: write.__name__)
@pytest.mark.parametrize("offset", [-CLASSES, 2**31 - 1, -(2**31), 10**6])
@pytest.mark.parametrize("row", [0, 1, 299])
def test_lists_that_begin_elsewhere(tmp_path: Path, write: Any, offset: int, row: int) -> None:
    """Following such an offset would end the process inside pyarrow: they are checked before."""
    x, y, r = draw()
    path = tmp_path / "x.arrow"
    write(path, table(x, y, r, "list"))
    whole = bytearray(path.read_bytes())
    offsets = np.arange(0, 300 * CLASSES, CLASSES, np.int32).tobytes()
    at, found = whole.find(offsets), 0
    while at >= 0:
        whole[at + 4 * row : at + 4 * row + 4] = np.int32(offset).tobytes()
        at, found = whole.find(offsets, at + 1), found + 1
    assert found >= 2
    path.write_bytes(whole)
    with pytest.raises(InputError, match="not a readable Arrow file"):
        score_files(path, "y", tmp_path / "s.npz", key="logits")
    assert os.listdir(tmp_path) == [path.name]


def test_archives_and_tensors_that_are_damaged(tmp_path: Path, rng: np.random.Generator) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    x, y, _ = draw()
    np.savez(tmp_path / "stored.npz", logits=x, labels=y)
    np.savez_compressed(tmp_path / "packed.npz", logits=x, labels=y)
    safetensors.save_file({"logits": x, "labels": y}, tmp_path / "x.safetensors")
    for name in ("stored.npz", "packed.npz", "x.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        for kept in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:kept])
            with pytest.raises(InputError, match=f"{name}: not a readable"):
                score_files(path, "labels", tmp_path / "s.npz")
        refused = 0
        for _ in range(60):
            damaged = bytearray(whole)
            edge = 300 if rng.integers(2) else len(whole)
            for place in rng.integers(0, edge, 5):
                damaged[-place if rng.integers(2) else place] = rng.integers(256)
            path.write_bytes(damaged)
            refused += is_refused(path, "labels", tmp_path / "s.npz")
        assert refused
    assert not list(tmp_path.glob(".*"))


def test_keys_that_do_not_fit(tmp_path: Path) -> None:
    x, y, r = draw()
    np.savez(tmp_path / "x.npz", a=x, b=r, y=y)
    with pytest.raises(InputError, match=r"which of 'a', 'b', 'y' are the logits\? Name one \(--logits KEY"):
        score_files(tmp_path / "x.npz")
    with pytest.raises(InputError, match="holds no 'c' for the logits; it holds 'a', 'b', 'y'"):
        score_files(tmp_path / "x.npz", key="c")
    assert score_files(tmp_path / "x.npz", "y", key="a").summary.rows == ROWS
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"an \.npy file is one array, and has no 'y' for the labels"):
        score_files(tmp_path / "x.npy", f"{tmp_path}/x.npy:y")
