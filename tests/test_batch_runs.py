"""Runs over shards: what is done stays done, whatever ends the run; what is wrong is set aside and named.

The tests that kill, cut and resume draw their moment, and are repeated FASTKL_REPEATS times.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pty
import resource
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastkl as fk
from fastkl.batch import InputError, score_files
from fastkl.batch.command import main
from fastkl.batch.manifest import packed, unpacked
from fastkl.batch.scoring import Parameters, score_shard
from fastkl.batch.shards import find_shards

pytest.importorskip("xxhash")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

COMMAND = [sys.executable, "-m", "fastkl", "score"]
#: A shell sees 130 for both: Python ends itself by the signal where that came while a module was imported.
INTERRUPTED = (130, -signal.SIGINT)
REPEATS = range(int(os.environ.get("FASTKL_REPEATS", "1")))


def make_shards(folder: Path, count: int = 4, rows: int = 500, classes: int = 7) -> dict[str, np.ndarray]:
    """Write shards with their labels, in three formats and a folder within the folder; return logits by name."""
    rng = np.random.default_rng(1)
    (folder / "deep").mkdir(parents=True)
    logits = {}
    for i in range(count):
        x = rng.normal(0, 2, (rows + i, classes)).astype(np.float32)
        y = rng.integers(0, classes, len(x))
        name = f"deep/part-{i}" if i % 2 else f"part-{i}"
        np.savez(folder / f"{name}.npz", logits=x, y=y)
        logits[name] = x
    return logits


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, but its manifest, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def manifest(folder: Path) -> dict[str, Any]:
    """Return what the manifest says of the shards."""
    shards: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["shards"]
    return shards


def test_each_shard_gets_a_file_and_the_summary_is_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = make_shards(tmp_path / "in")
    out = tmp_path / "out"
    assert main(["score", str(tmp_path / "in"), "--labels", "y", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "shards         4\n" in said.out
    assert f"rows           {sum(map(len, logits.values()))}\n" in said.out
    assert sorted(contents(out)) == sorted(f"{name}.parquet" for name in logits)
    for name, x in logits.items():
        assert pq.read_table(out / f"{name}.parquet")["lse"].to_numpy().tobytes() == fk.logsumexp(x).tobytes()
    whole = np.concatenate(list(logits.values()))
    entropy = fk.entropy(whole, given="logits").mean(dtype=np.float64)
    assert f"mean entropy   {entropy:.6g} nats" in said.out
    told = manifest(out)
    assert list(told) == sorted(f"{name}.npz" for name in logits)
    for name, entry in told.items():
        path = tmp_path / "in" / name
        assert entry["inputs"][0]["path"] == str(path)
        assert entry["inputs"][0]["size"] == path.stat().st_size
        assert entry["inputs"][0]["mtime_ns"] == path.stat().st_mtime_ns


def test_the_checksum_is_what_the_manifest_says_it_is(tmp_path: Path) -> None:
    import xxhash

    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(700_000, 2)))  # more than eleven MiB
    score_files([tmp_path], out=tmp_path.parent / f"{tmp_path.name}-out", chunk=12_345)
    content = (tmp_path / "a.npy").read_bytes()
    blocks = [content[at : at + 2**20] for at in range(0, len(content), 2**20)]
    expected = xxhash.xxh3_64_hexdigest(b"".join(xxhash.xxh3_64_digest(block) for block in blocks))
    told = manifest(tmp_path.parent / f"{tmp_path.name}-out")
    assert told["a.npy"]["inputs"][0]["xxh3_mib"] == expected


def test_no_order_and_no_number_of_threads_shows(tmp_path: Path) -> None:
    """Shards in any order, process and threads: the same files and totals."""
    make_shards(tmp_path / "in")
    runs = []
    for threads, chunk in [(1, None), (3, 11)]:
        out = tmp_path / f"out-{threads}"
        run = score_files(tmp_path / "in", "y", out, n_threads=threads, chunk=chunk)
        totals = {name: unpacked(entry["totals"]) for name, entry in manifest(out).items()}
        runs.append((contents(out), repr(run.summary), totals))
    shards, _ = find_shards([tmp_path / "in"], "y", out=tmp_path / "out-one-by-one")
    (tmp_path / "out-one-by-one" / "deep").mkdir(parents=True)
    # As another process would get them.
    sent = pickle.loads(pickle.dumps((shards[::-1], Parameters())))
    totals = {shard.name: score_shard(shard, sent[1]).totals.to_json() for shard in sent[0]}
    runs.append((contents(tmp_path / "out-one-by-one"), runs[0][1], totals))
    assert runs[0] == runs[1] == runs[2]


def test_totals_are_packed_in_the_manifest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (20_000, 10))
    np.savez(tmp_path / "x.npz", logits=x, y=rng.integers(10, size=len(x)))
    score_files(tmp_path / "x.npz", "y", f"{tmp_path}/out/")
    held = manifest(tmp_path / "out")["x.npz"]["totals"]
    text = unpacked(held)
    assert json.loads(text)["counts"]["rows"] == len(x)
    assert (packed(text), 2 * len(held) < len(text)) == (held, True)
    for broken in ("", held[:-10], "totals"):
        with pytest.raises(ValueError, match=r"packed|base85"):
            unpacked(broken)


def test_patterns_folders_of_labels_and_formats(tmp_path: Path) -> None:
    logits = make_shards(tmp_path / "in")
    for name, x in logits.items():
        path = tmp_path / "labels" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.argmax(x, axis=1))
    run = score_files(tmp_path / "in", tmp_path / "labels", tmp_path / "a", form="npz")
    assert run.summary.accuracy == 1
    assert sorted(contents(tmp_path / "a")) == sorted(f"{name}.npz" for name in logits)
    run = score_files(f"{tmp_path}/in/**/*.npz", tmp_path / "labels", tmp_path / "b", form="npz")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    several = sorted((tmp_path / "in").glob("*.npz"))
    score_files(several[::-1], tmp_path / "labels", tmp_path / "c", form="npz")
    assert list(contents(tmp_path / "c")) == [path.name for path in several]
    (tmp_path / "labels" / "part-0.npy").unlink()
    with pytest.raises(InputError, match=r"part-0.npz: no files of labels called part-0\.\* are in"):
        score_files(tmp_path / "in", tmp_path / "labels", tmp_path / "d")
    with pytest.raises(InputError, match="one file of labels for several shards"):
        score_files(tmp_path / "in", tmp_path / "labels" / "part-2.npy")


def test_names_that_would_clash(tmp_path: Path) -> None:
    make_shards(tmp_path / "in", 1)
    np.save(tmp_path / "in" / "part-0.npy", np.zeros((3, 7)))
    with pytest.raises(InputError, match=r"the results of both would be called .*part-0\.parquet"):
        score_files(tmp_path / "in", out=tmp_path / "out")
    with pytest.raises(InputError, match="is inside the input"):
        score_files(tmp_path / "in", out=tmp_path / "in" / "out")
    with pytest.raises(InputError, match="no file matches"):
        score_files(f"{tmp_path}/in/*.parquet")
    assert not (tmp_path / "out").exists()


def spoil(folder: Path) -> dict[str, str]:
    """Add shards that cannot be scored; return what is to be said of each."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 2, (400, 7)).astype(np.float32), rng.integers(0, 7, 400)
    y[317] = 7
    np.savez(folder / "bad-label.npz", logits=x, y=y)
    np.savez(folder / "bad-type.npz", logits=x.astype(int), y=y)
    np.savez(folder / "bad-classes.npz", logits=x[:, :5], y=y % 5)
    np.savez(folder / "bad-rows.npz", logits=x, y=y[:300])
    np.savez_compressed(folder / "bad-bytes.npz", logits=x, y=y % 7)
    content = bytearray((folder / "bad-bytes.npz").read_bytes())
    content[5000:5100] = bytes(100)
    (folder / "bad-bytes.npz").write_bytes(content)
    (folder / "bad-cut.npz").write_bytes((folder / "part-0.npz").read_bytes()[:3000])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 7)
    pq.write_table(pa.table({"logits": lists, "y": y % 7}), folder / "bad-page.parquet", write_page_checksum=True)
    content = bytearray((folder / "bad-page.parquet").read_bytes())
    content[300:6000] = rng.bytes(5700)
    (folder / "bad-page.parquet").write_bytes(content)
    return {
        "bad-label.npz": "label 7 in row 317 is out of range for 7 classes",
        "bad-type.npz": "holds int64; logits are float16, bfloat16, float32 or float64",
        "bad-classes.npz": "has 5 classes; the shards before it have 7",
        "bad-rows.npz": "has 400 rows of logits, but 300 of labels",
        "bad-bytes.npz": "not a readable .npz file (",
        "bad-cut.npz": "not a readable .npz file (",
        "bad-page.parquet": "not a readable Parquet file (",
    }


def test_what_cannot_be_scored_is_set_aside_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = make_shards(tmp_path / "in")
    (tmp_path / "in" / "a-first").mkdir()
    np.savez(tmp_path / "in" / "a-first" / "part.npz", logits=np.zeros((3, 7)), y=np.zeros(3, int))
    expected = spoil(tmp_path / "in")
    out = tmp_path / "out"
    arguments = ["score", str(tmp_path / "in"), "--labels", "y", "--out", str(out)]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == len(expected)
    assert "Traceback" not in said.err
    told = manifest(out)
    for name, reason in expected.items():
        assert any(f"set aside: {tmp_path}/in/{name}: " in line and reason in line for line in said.err.splitlines())
        assert told[name]["error"].startswith(f"{tmp_path}/in/{name}: ")
        assert reason in told[name]["error"]
    assert f"set aside      {len(expected)} of the shards" in said.out
    assert sorted(contents(out)) == sorted(["a-first/part.parquet", *(f"{name}.parquet" for name in logits)])

    # Mended, it alone is done again.
    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    with np.load(tmp_path / "in" / "bad-label.npz") as bad:
        np.savez(tmp_path / "in" / "bad-label.npz", logits=bad["logits"], y=bad["y"] % 7)
    assert main([*arguments, "--resume"]) == 1
    said = capsys.readouterr()
    assert "shards         6 (5 done before)" in said.out
    assert len(said.err.splitlines()) == len(expected) - 1
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert (out / "bad-label.parquet").exists()


def test_strict_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "in")
    spoil(tmp_path / "in")
    arguments = ["score", str(tmp_path / "in"), "--labels", "y", "--out", str(tmp_path / "out"), "--strict"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"fastkl: error: {tmp_path}/in/bad-bytes.npz: not a readable .npz file")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "change", ["nothing", "touch", "input", "output", "lost", "parameters", "labels", "manifest", "totals"]
)
def test_resume_redoes_what_changed(tmp_path: Path, change: str) -> None:
    make_shards(tmp_path / "in")
    out = tmp_path / "out"
    run = score_files(tmp_path / "in", "y", out)
    expected, summary = contents(out), repr(run.summary)
    before = {name: (out / name).stat().st_mtime_ns for name in expected}
    part = tmp_path / "in" / "part-2.npz"
    options: dict[str, Any] = {}
    redone = {"part-2.parquet"}
    if change == "nothing":
        redone = set()
    elif change == "touch":
        os.utime(part)
        redone = set()
    elif change == "input":
        content = bytearray(part.read_bytes())
        content[600] ^= 1  # the same size, another number
        stamp = part.stat()
        part.write_bytes(content)
        os.utime(part, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    elif change == "output":
        content = bytearray((out / "part-2.parquet").read_bytes())
        content[600] ^= 1
        (out / "part-2.parquet").write_bytes(content)
    elif change == "lost":
        (out / "part-2.parquet").unlink()
    elif change == "parameters":
        options = {"temperature": 2.0}
        redone = set(expected)
    elif change == "labels":
        options = {"stats": ["loss"]}
        redone = set(expected)
    elif change == "manifest":
        (out / "manifest.json").unlink()
        redone = set(expected)
    elif change == "totals":
        told = json.loads((out / "manifest.json").read_text())
        told["shards"]["part-2.npz"]["totals"] = told["shards"]["part-2.npz"]["totals"][:-10]
        (out / "manifest.json").write_text(json.dumps(told))
    again = score_files(tmp_path / "in", "y", out, resume=True, **options)
    assert {name for name in expected if (out / name).stat().st_mtime_ns != before[name]} == redone
    assert (again.shards, again.skipped) == (4, 4 - len(redone))
    if change not in ("input", "parameters", "labels"):
        assert contents(out) == expected
        assert repr(again.summary) == summary


def test_a_single_result_is_resumed_by_the_manifest_beside_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 5))
    np.save(tmp_path / "x.npy", x)
    score_files(tmp_path / "x.npy", out=tmp_path / "s.npz")
    assert sorted(os.listdir(tmp_path)) == ["s.npz", "x.npy"]
    assert score_files(tmp_path / "x.npy", out=tmp_path / "s.npz", resume=True).skipped == 0
    assert sorted(os.listdir(tmp_path)) == ["s.npz", "s.npz.manifest.json", "x.npy"]
    again = score_files(tmp_path / "x.npy", out=tmp_path / "s.npz", resume=True)
    assert (again.skipped, again.rows, again.summary.rows) == (1, 0, 300)
    with pytest.raises(ValueError, match="resume needs out"):
        score_files(tmp_path / "x.npy", resume=True)


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    from fastkl.batch.manifest import locked

    make_shards(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(InputError, match="another run is writing there"):
        score_files(tmp_path / "in", out=tmp_path / "out")
    assert score_files(tmp_path / "in", out=tmp_path / "out").shards == 4


# What ends a run


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the command beside the test, and never longer than that."""
    command = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    with command:
        try:
            yield command
        finally:
            command.kill()


def until(condition: Any, command: subprocess.Popen[str]) -> None:
    """Wait until something is so, while the command runs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def large_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], str]:
    """Ten shards that take some tenths of a second together, and what becomes of them."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(4)
    (folder / "in").mkdir()
    for i in range(10):
        np.save(folder / "in" / f"{i}.npy", rng.normal(0, 2, (30_000, 50)).astype(np.float32))
    run = score_files(folder / "in", out=folder / "out")
    return folder / "in", contents(folder / "out"), repr(run.summary)


@pytest.mark.parametrize("repeat", REPEATS)
def test_sigkill_in_the_middle(
    tmp_path: Path, large_shards: tuple[Path, dict[str, bytes], str], rng: np.random.Generator, repeat: int
) -> None:
    """What is there is whole, what is noted is there, and a resumed run does the rest: the same bytes in the end."""
    folder, expected, summary = large_shards
    out = tmp_path / "out"
    with started(folder, "--out", out) as command:
        until(lambda: (out / "0.parquet").exists(), command)
        time.sleep(rng.uniform(0, 0.5))
        command.kill()
        _, said = command.communicate(timeout=60)
    assert said == ""
    left = contents(out)
    assert left.items() <= expected.items()
    assert {name.replace(".npy", ".parquet") for name in manifest(out)} <= set(left)
    run = score_files(folder, out=out, resume=True)
    assert contents(out) == expected
    assert repr(run.summary) == summary
    print(f"killed with {len(left)} of {len(expected)} results there, {run.skipped} of them noted")


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "arrow"])
def test_a_file_cut_short_while_it_is_mapped(
    tmp_path: Path, rng: np.random.Generator, ending: str, repeat: int
) -> None:
    """Neither a signal that kills, nor a traceback, nor a result: one line that says what happened."""
    path = tmp_path / f"x.{ending}"
    sparse_file(path, 10**8, 10)  # with a hole for its rows: long to score, nothing to store
    size = path.stat().st_size
    with started(path, "--out", tmp_path / "s.npz", "--stats", "lse") as command:
        until(lambda: path.name in Path(f"/proc/{command.pid}/maps").read_text(), command)
        time.sleep(rng.uniform(0.05, 0.3))
        assert command.poll() is None
        os.truncate(path, int(rng.integers(0, size // 2)))
        said = command.communicate(timeout=60)
    cut = "the file was cut short while it was being read"
    assert (command.returncode, *said) == (2, "", f"fastkl: error: {path}: {cut}\n")
    assert os.listdir(tmp_path) == [path.name]


def sparse_file(path: Path, rows: int, classes: int) -> None:
    """Write a file of zeros that takes no space."""
    if path.suffix == ".npy":
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, classes)).flush()
        return
    size = rows * classes * 4
    if path.suffix == ".safetensors":
        header = json.dumps({"logits": {"dtype": "F32", "shape": [rows, classes], "data_offsets": [0, size]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(path, 8 + len(header) + size)
        return
    zeros = np.zeros(rows * classes, np.float32)  # untouched, and so no memory either
    with open(path, "wb") as file:
        holes = Holes(file)
        if path.suffix == ".arrow":
            values = pa.FixedSizeListArray.from_arrays(pa.Array.from_buffers(
                pa.float32(), zeros.size, [None, pa.py_buffer(zeros)]), classes)
            with pa.ipc.new_file(pa.PythonFile(holes, "w"), pa.schema({"logits": values.type})) as arrow:
                arrow.write_batch(pa.record_batch({"logits": values}))
        else:
            head = io.BytesIO()
            shape = np.lib.format.header_data_from_array_1_0(zeros.reshape(rows, classes))
            np.lib.format.write_array_header_1_0(head, shape)
            with zipfile.ZipFile(holes, "w") as archive:
                archive.writestr("logits.npy", head.getvalue())
                entry = archive.getinfo("logits.npy")
                holes.seek(archive.start_dir)
                holes.write(memoryview(zeros).cast("B"))
                entry.file_size = entry.compress_size = len(head.getvalue()) + size
                archive.start_dir = holes.tell()


class Holes(io.RawIOBase):
    """A file in which what is large, and so is zeros, is left out."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        return int(self.file.seek(size, 1) and size if size > 2**20 else self.file.write(content))

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self.file.seek(place, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_shard_cut_short_is_set_aside(tmp_path: Path, rng: np.random.Generator, repeat: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        np.save(folder / f"{name}.npy", rng.normal(size=(1000, 10)).astype(np.float32))
    sparse_file(folder / "b.npy", 10**8, 10)
    with started(folder, "--out", tmp_path / "out", "--stats", "lse") as command:
        until(lambda: "b.npy" in Path(f"/proc/{command.pid}/maps").read_text(), command)
        time.sleep(rng.uniform(0.05, 0.3))
        os.truncate(folder / "b.npy", int(rng.integers(0, 10**9)))
        out, said = command.communicate(timeout=60)
    assert command.returncode == 1
    assert said == f"fastkl: set aside: {folder}/b.npy: the file was cut short while it was being read\n"
    assert "shards         2\n" in out
    assert sorted(contents(tmp_path / "out")) == ["a.parquet", "c.parquet"]
    assert "cut short" in manifest(tmp_path / "out")["b.npy"]["error"]


@pytest.mark.parametrize("repeat", REPEATS)
def test_an_interrupted_run_is_resumed(
    tmp_path: Path, large_shards: tuple[Path, dict[str, bytes], str], rng: np.random.Generator, repeat: int
) -> None:
    folder, expected, summary = large_shards
    out = tmp_path / "out"
    with started(folder, "--out", out) as command:
        until(lambda: (out / "1.parquet").exists(), command)
        time.sleep(rng.uniform(0, 0.2))
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=60)
    if "rows/second" not in said[0]:  # else it was done before
        assert (command.returncode in INTERRUPTED, *said) == (True, "", "fastkl: interrupted\n")
        # All that is there is noted, but one at most that had just got its name.
        noted = {name.replace(".npy", ".parquet") for name in manifest(out)}
        assert noted <= set(contents(out))
        assert len(contents(out)) - len(noted) <= 1
    run = score_files(folder, out=out, resume=True)
    assert run.skipped >= 1
    assert contents(out) == expected
    assert repr(run.summary) == summary


def test_an_interrupt_ends_the_run_within_a_second(tmp_path: Path) -> None:
    """The least of three, since a machine that does other things may take its time to wake anyone."""
    sparse_file(tmp_path / "x.npy", 10**9, 10)
    took = []
    for _ in range(3):
        with started(tmp_path / "x.npy", "--out", tmp_path / "s.parquet") as command:
            until(lambda: "x.npy" in Path(f"/proc/{command.pid}/maps").read_text(), command)
            time.sleep(0.3)
            began = time.monotonic()
            command.send_signal(signal.SIGINT)
            said = command.communicate(timeout=60)
            took.append(time.monotonic() - began)
        assert (command.returncode in INTERRUPTED, *said) == (True, "", "fastkl: interrupted\n")
        assert os.listdir(tmp_path) == ["x.npy"]
    print(f"ended after {', '.join(f'{seconds:.2f}' for seconds in took)} s")
    assert min(took) < 1


@pytest.mark.parametrize("ending", ["parquet", "arrow", "npz", "csv"])
def test_a_write_that_fails_midway(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(200_000, 3)).astype(np.float32))
    (tmp_path / f"s.{ending}").write_bytes(b"old")
    run = subprocess.run(
        [*COMMAND, tmp_path / "x.npy", "--out", tmp_path / f"s.{ending}"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"fastkl: error: {tmp_path}/s.{ending}: File too large\n"
    assert sorted(os.listdir(tmp_path)) == [f"s.{ending}", "x.npy"]
    assert (tmp_path / f"s.{ending}").read_bytes() == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_is_done(
    small_disk: Path, tmp_path: Path, large_shards: tuple[Path, dict[str, bytes], str]
) -> None:
    folder, expected, _ = large_shards
    out = small_disk / "out"
    run = subprocess.run([*COMMAND, folder, "--out", out], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert run.stderr.endswith(": No space left on device\n")
    left = contents(out)
    assert left
    assert left.items() < expected.items()
    assert manifest(out).keys() <= {name.replace(".parquet", ".npy") for name in left}


# The terminal, the report


def test_a_bar_on_a_terminal_and_none_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(200_000, 20)).astype(np.float32))
    shown, terminal = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, tmp_path / "x.npy", "--chunk", "1000"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(shown, 65536):
            seen += piece
    except OSError:  # what a terminal gives at its end
        pass
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert b"GB/s" in seen
    assert b" rows " in seen
    assert b"rows           200000\n" in out


def test_report_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    make_shards(tmp_path / "in")
    spoil(tmp_path / "in")
    report, plot = tmp_path / "r.html", tmp_path / "p.png"
    arguments = [str(tmp_path / "in"), "--labels", "y", "--stats", "margin", "--out", str(tmp_path / "out")]
    assert main(["score", *arguments, "--report", str(report), "--plot", str(plot)]) == 1
    said = capsys.readouterr().out
    assert "mean loss" in said
    assert "Brier score" in said
    page = report.read_text()
    assert page.count("Brier score") == 2     # and that of confidence
    assert "bad-cut.npz" in page
    assert "<svg" in page
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert pq.read_schema(tmp_path / "out" / "part-0.parquet").names == ["margin"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stats", "loss"], "the statistic 'loss' needs labels"),
        (["--stats", "speed"], "stats has 'speed'; there are lse, loss"),
        (["--temperature", "0"], "temperature takes a positive finite number, not 0.0"),
        (["--temperature", "1,2,3"], "temperature takes one for both or a pair"),
        (["--given", "odds"], "given takes 'logits', 'probs', 'log_probs'"),
        (["--resume"], "--resume needs --out"),
        (["--out", "s.txt"], "s.txt: results end in one of .parquet, "),
        (["--out", "s.npz", "--format", "csv"], "its ending asks for npz, --format for csv"),
        (["--weights", "w.npy"], "weights weigh the losses of the labels, and there are no labels"),
        (["--labels", "no/such.npy"], "no/such.npy: No such file or directory"),
        (["--reference", "r"], "has no 'r' for the reference"),
    ],
)
def test_arguments_that_make_no_sense(
    tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    assert main(["score", str(tmp_path / "x.npy"), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert reason in said.err


@pytest.mark.parametrize(
    ("given", "temperature", "stats"),
    [("logits,probs", "2,1", "kl,top_k"), ("probs", "1", "kl,top_k"), ("log_probs,logits", "0.5", "js,top_k")],
)
def test_given_and_temperature(tmp_path: Path, given: str, temperature: str, stats: str) -> None:
    rng = np.random.default_rng(0)
    x, r = rng.dirichlet(np.ones(5), (2, 100))
    np.savez(tmp_path / "x.npz", logits=x, reference=r)
    options = ["--given", given, "--temperature", temperature, "--stats", stats, "--top-k", "2"]
    out = tmp_path / "s.npz"
    assert main(["score", str(tmp_path / "x.npz"), "--reference", "reference", *options, "--out", str(out)]) == 0
    holds = given.split(",") if "," in given else given
    divisors = tuple(map(float, temperature.split(","))) if "," in temperature else float(temperature)
    whole = fk.score(x, None, r, stats=stats.split(","), given=holds, temperature=divisors, k=2)
    with np.load(out) as columns:
        assert list(columns) == list(whole)
        for name in whole:
            assert columns[name].tobytes() == whole[name].tobytes()


# Weights


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "parquet", "arrow"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_weights_of_rows(tmp_path: Path, ending: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(0, 2, (1000, 5)).astype(np.float32), rng.integers(0, 5, 1000)
    w = (10 * rng.random(1000)).astype(dtype)
    w[:50] = 0
    x[7] = np.nan
    x[3, y[3]] = -np.inf    # an infinite loss, which does not count either
    arrays = {"logits": x, "y": y, "w": w}
    path, labels, weights = tmp_path / f"x.{ending}", "y", "w"
    if ending == "npy":
        labels, weights = f"{tmp_path}/y.npy", f"{tmp_path}/w.npy"
        for name, array in (("x", x), ("y", y), ("w", w)):
            np.save(tmp_path / name, array)
    elif ending == "npz":
        np.savez(path, **arrays)
    elif ending == "safetensors":
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    else:
        columns = pa.table({"logits": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 5), "y": y, "w": w})
        if ending == "parquet":
            pq.write_table(columns, path, row_group_size=300)
        else:
            with pa.ipc.new_file(path, columns.schema) as file:
                file.write_table(columns, max_chunksize=300)
    out = tmp_path / "s.npz"
    command = ["score", str(path), "--labels", labels, "--weights", weights, "--stats", "entropy", "--out", str(out)]
    assert main([*command, "--chunk", "77", "--threads", "2"]) == 0
    loss = fk.softmax_cross_entropy(x, y).astype(np.float64)
    kept = w > 0
    expected = np.average(loss[kept], weights=w[kept])
    said = capsys.readouterr().out
    assert f"mean loss      {expected:.6g} nats, weighted\n" in said
    assert f"perplexity     {np.exp(expected):.6g}\n" in said
    with np.load(out) as columns:
        assert list(columns) == ["entropy"]
    assert score_files(path, labels, weights=weights).summary.weight == pytest.approx(w[kept].sum(dtype=float))


def test_weights_of_shards_and_of_a_resumed_run(tmp_path: Path) -> None:
    logits = make_shards(tmp_path / "in")
    rng = np.random.default_rng(9)
    losses, weights = [], []
    for name, x in logits.items():
        path = tmp_path / "weights" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        weights.append(rng.random(len(x)))
        np.save(path, weights[-1])
        with np.load(tmp_path / "in" / f"{name}.npz") as held:
            losses.append(fk.softmax_cross_entropy(x, held["y"]).astype(np.float64))
    expected = np.average(np.concatenate(losses), weights=np.concatenate(weights))
    for resume, skipped in ((False, 0), (True, 4)):
        run = score_files(tmp_path / "in", "y", tmp_path / "out", weights=tmp_path / "weights", resume=resume)
        assert (run.skipped, run.summary.mean_loss) == (skipped, pytest.approx(expected, rel=1e-12))
    assert score_files(tmp_path / "in", "y", tmp_path / "out", resume=True).skipped == 0    # with other weights: none
    with pytest.raises(InputError, match="one file of weights for several shards"):
        score_files(tmp_path / "in", "y", weights=tmp_path / "weights" / "part-0.npy")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.r_[np.ones(299), -1.0], "weight -1.0 in row 299 is not finite and >= 0"),
        (np.r_[np.ones(150), np.nan, np.ones(149)], "weight nan in row 150 is not finite"),
        (np.r_[np.inf, np.ones(299)], "weight inf in row 0 is not finite"),
        (np.ones(299), "has 299 rows of weights, but"),
        (np.ones((300, 1)), "has shape (300, 1), but weights are 1-d"),
        (np.ones(300, bool), "holds bool; weights are floats or integers"),
    ],
)
def test_weights_that_are_none(
    tmp_path: Path, weights: np.ndarray, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((300, 3)))
    np.save(tmp_path / "y.npy", np.zeros(300, int))
    np.save(tmp_path / "w.npy", weights)
    options = ["--labels", f"{tmp_path}/y.npy", "--weights", f"{tmp_path}/w.npy", "--out", f"{tmp_path}/s.npz"]
    assert main(["score", f"{tmp_path}/x.npy", *options, "--chunk", "100"]) == 2
    assert f"w.npy: {said}" in capsys.readouterr().err
    assert not (tmp_path / "s.npz").exists()


# What must not be lost


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "x.npy"], "x.npy: is also an input, and would be replaced"),
        (["--plot", "link.png"], "link.png: is also an input, and would be replaced"),
        (["--labels", "y.npy", "--report", "y.npy"], "y.npy: is also an input"),
        (["--report", "r.html", "--plot", "./r.html"], "./r.html: would be written twice"),
        (["--report", "s.npz", "--out", "s.npz"], "s.npz: would be written twice"),
        (["--out", "o/", "--report", "o/manifest.json"], "o/manifest.json: would be written twice"),
        (["--out", "s.npz", "--report", "none/r.html"], "none/r.html: No such file or directory"),
        (["--out", "o/", "--report", "none/r.html"], "none/r.html: No such file or directory"),
        (["--report", "."], ".: is a folder"),
    ],
)
def test_what_is_written_besides_is_checked_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((3, 2)))
    np.save("y.npy", np.zeros(3, int))
    os.symlink("x.npy", "link.png")
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    assert main(["score", "x.npy", *options]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert said in told.err
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before
    assert main(["score", "x.npy", "--out", "o/", "--report", "o/r.html"]) == 0
    assert sorted(os.listdir("o")) == ["manifest.json", "r.html", "x.parquet"]


def test_inputs_that_are_nothing_or_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    np.save("in/x.npy", np.zeros((3, 2)))
    os.symlink("..", "in/deep/up")    # leads round and round
    assert score_files("in/**/*.npy").summary.rows == 3
    assert score_files("in").summary.rows == 3
    with pytest.raises(InputError, match="an INPUT without a name"):
        score_files("")
    os.symlink("loop.npy", "loop.npy")
    with pytest.raises(InputError, match=r"loop\.npy: Too many levels of symbolic links"):
        score_files("loop.npy")


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet", "arrow"])
def test_names_that_are_no_text(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"n\xff")
    folder.mkdir()
    path = folder / os.fsdecode(b"x\xfe." + ending.encode())
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    if ending in ("npy", "npz"):
        with open(path, "wb") as file:
            np.save(file, x) if ending == "npy" else np.savez(file, logits=x)
    else:
        columns = pa.table({"logits": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)})
        with open(path, "wb") as file:
            if ending == "parquet":
                pq.write_table(columns, file)
            else:
                with pa.ipc.new_file(file, columns.schema) as arrow:
                    arrow.write_table(columns)
    out = folder / "out"
    for _ in range(2):    # the second finds what the first has done
        assert main(["score", str(path), "--out", f"{out}/", "--resume"]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert "rows           50\n" in said.out
    assert len(contents(out)) == 1


def test_a_temperature_that_is_none_in_the_type_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    assert main(["score", str(tmp_path / "x.npy"), "--temperature", "1e-320"]) == 2
    assert capsys.readouterr().err == (
        f"fastkl: error: {tmp_path}/x.npy: temperature takes a positive finite number, not 1e-320\n"
    )


def test_lists_that_are_all_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"logits": pa.array([None] * 3, pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="row 0 of 'logits' holds a null"):
        score_files(tmp_path / "x.parquet")


# The program's ends


def ended(*arguments: object, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with redirections of a shell."""
    line = " ".join(map(shlex.quote, [*COMMAND, *map(str, arguments)]))
    return subprocess.run(
        ["bash", "-c", f"{line} {shell}"], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("shell", "code", "out", "err"),
    [
        ("| head -c 5; exit ${PIPESTATUS[0]}", 0, "hand-", ""),
        (">&-", 0, "", ""),
        ("> /dev/full", 2, "", "fastkl: error: No space left on device\n"),
        ("no/such.npy 2> /dev/full", 2, "", ""),
        ("no/such.npy 2>&-", 2, "", ""),
    ],
)
def test_who_reads_may_leave(shell: str, code: int, out: str, err: str) -> None:
    """No traceback, no complaint of Python's at exit, no other exit code."""
    run = ended(shell=shell)
    assert (run.returncode, run.stdout, run.stderr) == (code, out, err)


def test_a_tier_that_is_none(tmp_path: Path) -> None:
    run = ended(FASTKL_TIER="abacus")
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("fastkl: error: fastkl has no tier 'abacus' here; this CPU has: ")
    script = tmp_path / "fastkl"    # as pip installs it
    script.write_text("import sys\nfrom fastkl.batch.command import main\nsys.exit(main())\n")
    environment = {**os.environ, "FASTKL_TIER": "abacus"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environment)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    run = subprocess.run(
        [sys.executable, "-c", "import fastkl"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert run.stderr.splitlines()[-1].startswith("ImportError: fastkl has no tier 'abacus' here")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_twice(tmp_path: Path, number: signal.Signals) -> None:
    """The second signal must not cut short what the first began: no traceback, nothing half-written."""
    sparse_file(tmp_path / "x.npy", 10**9, 10)
    for pause in (0.0, 0.01, 0.1):
        with started(tmp_path / "x.npy", "--out", tmp_path / "s.parquet") as command:
            until(lambda: "x.npy" in Path(f"/proc/{command.pid}/maps").read_text(), command)
            time.sleep(0.2)
            command.send_signal(number)
            time.sleep(pause)
            command.send_signal(number)
            said = command.communicate(timeout=60)
        # By the signal itself where the second came while Python was ending; a shell sees the same.
        assert command.returncode in (128 + number, -number)
        assert said == ("", "fastkl: interrupted\n" if number == signal.SIGINT else "")
        assert os.listdir(tmp_path) == ["x.npy"]
