"""The promise of ``fastkl score``: every row's numbers, whole results or none, and one line when something is wrong."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastkl as fk
from fastkl import reference
from fastkl.batch import InputError, score_files
from fastkl.batch.command import digits, main
from fastkl.batch.readers import open_source

COMMAND = [sys.executable, "-m", "fastkl", "score"]


def draw(rows: int, classes: int, dtype: str = "float32", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits and labels: what is drawn is not tested here, only what becomes of it."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (rows, classes)).astype(dtype), rng.integers(0, classes, rows)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Logits and labels of 300 rows, and the name of a result that is not there yet."""
    x, y = draw(300, 17)
    np.save(tmp_path / "logits.npy", x)
    np.save(tmp_path / "labels.npy", y)
    return tmp_path / "logits.npy", tmp_path / "labels.npy", tmp_path / "scores.npz"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command on something wrong and return the one line that it says."""
    try:
        code = main(["score", *map(str, arguments)])
    except SystemExit as left:  # argparse leaves by itself
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("fastkl: error: ")
    assert said.err.count("\n") == 1
    return said.err


# What is computed


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_columns_are_what_the_functions_give_for_the_whole_array(tmp_path: Path, dtype: str, order: str) -> None:
    x, y = draw(1000, 37, dtype)
    np.save(tmp_path / "x.npy", np.asarray(x, order=order))
    np.save(tmp_path / "y.npy", y.astype(np.uint8))
    score_files(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "s.npz", chunk=64)
    with np.load(tmp_path / "s.npz") as scores:
        whole = fk.score(x, y)
        assert list(scores) == list(whole)
        for name in whole:
            assert (scores[name].dtype, scores[name].tobytes()) == (whole[name].dtype, whole[name].tobytes())
        for name, ours, definition in [
            ("loss", fk.softmax_cross_entropy(x, y), reference.softmax_cross_entropy(x, y)),
            ("lse", fk.logsumexp(x), reference.logsumexp(x)),
            ("entropy", fk.entropy(x, given="logits"), reference.entropy(x, given="logits")),
        ]:
            assert scores[name].dtype == ours.dtype == (np.float64 if dtype == "float64" else np.float32)
            assert scores[name].tobytes() == ours.tobytes()
            np.testing.assert_allclose(ours, definition, rtol=1e-5)
        assert scores["argmax"].tolist() == np.argmax(x, axis=1).tolist()
        assert scores["correct"].tolist() == (np.argmax(x, axis=1) == y).tolist()


def test_summary_of_the_digits() -> None:
    logits, labels = digits()
    summary = score_files(logits, labels).summary
    x, y = np.load(logits), np.load(labels)
    losses = reference.softmax_cross_entropy(x.astype(np.float64), y)
    assert (summary.rows, summary.classes, summary.invalid) == (899, 10, 0)
    assert summary.right == 865
    assert summary.accuracy == 865 / 899
    assert summary.mean_loss == pytest.approx(losses.mean(), rel=1e-6)
    assert summary.mean_loss == pytest.approx(0.198223, abs=5e-7)
    assert summary.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-6)
    entropies = reference.entropy(x.astype(np.float64), given="logits")
    assert summary.mean_entropy == pytest.approx(entropies.mean(), rel=1e-6)


def test_the_brier_score_is_computed_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits, labels = digits()
    x, y = np.load(logits).astype(np.float64), np.load(labels)
    exact = ((reference.softmax(x) - np.eye(10)[y]) ** 2).sum(axis=1).mean()
    assert score_files(logits, labels).summary.brier == pytest.approx(exact, rel=1e-6)
    assert score_files(logits, labels, complete=False).summary.brier is None
    assert score_files(logits, complete=True).summary.brier is None
    said = {}
    for stats in (None, "brier", "loss"):
        out = tmp_path / f"{stats}.npz"
        options = [] if stats is None else ["--stats", stats]
        assert main(["score", str(logits), "--labels", str(labels), "--out", str(out), *options]) == 0
        said[stats] = capsys.readouterr().out
        with np.load(out) as columns:
            assert ("brier" in columns) == (stats == "brier")
    assert f"Brier score    {exact:.4f} of 0 to 2\n" in said["brier"]
    assert "Brier" not in said[None] + said["loss"]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_report_redoes_what_lacks_its_totals(tmp_path: Path, labelled: bool) -> None:
    logits, labels = digits()
    arguments = (logits, labels if labelled else None, tmp_path / "s.npz")
    score_files(*arguments, resume=True, complete=False)
    again = score_files(*arguments, resume=True, complete=True)
    assert again.skipped == (not labelled)
    assert (again.summary.brier is None) == (not labelled)
    assert score_files(*arguments, resume=True, complete=True).skipped == 1


def test_without_a_file_the_digits_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "rows           899\n" in said.out
    assert "accuracy       0.9622 (865 right)\n" in said.out
    assert "mean loss      0.198223 nats\n" in said.out


def test_nothing_depends_on_chunk_or_threads(tmp_path: Path) -> None:
    x, y = draw(9000, 10)
    x[17, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    results = set()
    for chunk, threads in [(None, None), (None, 1), (1, 1), (7, 2), (4096, 3), (4097, 8), (10**9, 2)]:
        run = score_files(
            tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "s.npz", chunk=chunk, n_threads=threads
        )
        results.add((repr(run.summary), (tmp_path / "s.npz").read_bytes()))
    assert len(results) == 1


def test_without_labels_there_is_no_loss(files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    logits, _, out = files
    assert main(["score", str(logits), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "mean entropy" in said
    assert "loss" not in said
    with np.load(out) as scores:
        assert list(scores) == ["lse", "entropy", "perplexity", "max_prob", "argmax", "margin"]


def test_rows_that_hold_no_distribution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.array([[0, 0], [np.nan, 9], [9, 0], [np.inf, 0], [-np.inf, -np.inf], [-np.inf, 0]], np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 0, 0, 1]))
    arguments = [str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"), "--out", str(tmp_path / "s.npz")]
    assert main(["score", *arguments]) == 0
    said = capsys.readouterr().out
    assert "invalid rows   3 " in said
    assert "accuracy       0.5000 (3 right)" in said
    mean = (np.log(2) + np.log1p(np.exp(-9)) + 0) / 3
    assert f"mean loss      {mean:.6g} nats" in said
    with np.load(tmp_path / "s.npz") as scores:
        assert scores["argmax"].tolist() == [0, -1, 0, -1, -1, 1]
        assert scores["correct"].tolist() == [True, False, True, False, False, True]
        assert np.isnan(scores["loss"]).tolist() == [False, True, False, True, True, False]


def test_a_label_without_a_chance_costs_infinitely_much(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[0, -np.inf], [0, 0]]))
    np.save(tmp_path / "y.npy", np.array([1, 1]))
    summary = score_files(tmp_path / "x.npy", tmp_path / "y.npy").summary
    assert (summary.mean_loss, summary.perplexity, summary.invalid) == (np.inf, np.inf, 0)


@pytest.mark.parametrize("labelled", [True, False])
def test_no_rows(tmp_path: Path, labelled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.empty((0, 5), np.float32))
    np.save(tmp_path / "y.npy", np.empty(0, np.int32))
    labels = ["--labels", str(tmp_path / "y.npy")] if labelled else []
    assert main(["score", str(tmp_path / "x.npy"), *labels, "--out", str(tmp_path / "s.npz")]) == 0
    assert "rows           0\n" in capsys.readouterr().out
    with np.load(tmp_path / "s.npz") as scores:
        assert {name: scores[name].shape for name in scores} == dict.fromkeys(scores, (0,))
        assert len(scores) == (9 if labelled else 6)


# What is refused


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (np.zeros(5, np.float32), "has shape (5,); logits are 2-d"),
        (np.zeros((2, 3, 4), np.float32), "has shape (2, 3, 4); logits are 2-d"),
        (np.zeros((5, 0), np.float32), "no classes"),
        (np.zeros((5, 2), np.int64), "holds int64; logits are float"),
        (np.zeros((5, 2), np.longdouble), "logits are float"),
        (np.zeros((5, 2), np.complex64), "holds complex64"),
        (np.zeros((5, 2), "U3"), "holds <U3"),
        (np.zeros((5, 2), [("a", "f4"), ("b", "f4")]), "holds [('a'"),
    ],
    ids=lambda value: str(value.dtype) + str(value.shape) if isinstance(value, np.ndarray) else "",
)
def test_logits_of_a_wrong_kind(
    tmp_path: Path, logits: np.ndarray, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", logits)
    said = complaint(capsys, tmp_path / "x.npy", "--out", tmp_path / "s.npz")
    assert reason in said
    assert str(tmp_path / "x.npy") in said
    assert os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(299, np.int64), "has 299 rows of labels, but "),
        (np.zeros((300, 1), np.int64), "has shape (300, 1), but labels are 1-d"),
        (np.zeros(300, np.float64), "holds float64; labels are integers"),
        (np.zeros(300, bool), "holds bool; labels are integers"),
        (np.r_[np.zeros(260, int), 17, np.zeros(39, int)], "label 17 in row 260 is out of range for 17 classes"),
        (np.r_[np.zeros(299, np.int8), np.int8(-1)], "label -1 in row 299 is out of range for 17 classes"),
        (np.r_[np.zeros(299, np.uint64), np.uint64(2**64 - 1)], "label 18446744073709551615 in row 299 is out of"),
    ],
)
def test_labels_of_a_wrong_kind(
    files: tuple[Path, Path, Path], labels: np.ndarray, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logits, path, out = files
    np.save(path, labels)
    assert reason in complaint(capsys, logits, "--labels", path, "--out", out, "--chunk", 100)
    assert not out.exists()


class Trap:
    """An object whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.array([[Trap(tmp_path / "sprung")]], dtype=object), allow_pickle=True)
    assert "not a readable .npy file" in complaint(capsys, tmp_path / "x.npy")
    assert os.listdir(tmp_path) == ["x.npy"]


def test_files_that_are_no_npy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.npy: No such file or directory" in complaint(capsys, tmp_path / "none.npy")
    assert "holds no file that ends in one of .arrow, " in complaint(capsys, tmp_path)
    (tmp_path / "scores.txt").touch()
    assert "ends in none of .arrow, " in complaint(capsys, tmp_path / "scores.txt")
    os.mkfifo(tmp_path / "pipe.npy")
    assert "not a regular file" in complaint(capsys, tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "not a regular file" in complaint(capsys, tmp_path / "pipe.parquet")
    (tmp_path / "text.npy").write_text("0.1 0.9\n")
    assert "not a readable .npy file" in complaint(capsys, tmp_path / "text.npy")
    (tmp_path / "empty.npy").touch()
    assert "not a readable .npy file" in complaint(capsys, tmp_path / "empty.npy")
    np.savez(tmp_path / "zip.npy", x=np.zeros((2, 2)))
    (tmp_path / "zip.npy.npz").rename(tmp_path / "zip.npy")
    assert "not a readable .npy file" in complaint(capsys, tmp_path / "zip.npy")


@pytest.mark.parametrize("kept", [1, 60, 128, 129, -1])
def test_a_truncated_file(files: tuple[Path, Path, Path], kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    logits, _, _ = files
    os.truncate(logits, kept if kept > 0 else logits.stat().st_size + kept)
    assert "not a readable .npy file" in complaint(capsys, logits)


def test_a_file_cut_short_while_it_is_read(files: tuple[Path, Path, Path]) -> None:
    x = open_source(str(files[0]), {"logits": None})
    before = next(x.batches(0, 100, 100))["logits"]
    x.check()
    os.truncate(files[0], 4000)
    assert before[0].any()
    assert not next(x.batches(100, 200, 100))["logits"].any()  # touched, and the process lives
    with pytest.raises(InputError, match="cut short while it was being read"):
        x.check()


def test_broken_headers_are_errors_and_nothing_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    np.save(buffer, draw(20, 5)[0])
    refused = 0
    for _ in range(300):
        mutated = bytearray(buffer.getvalue())
        for place in rng.integers(0, 80, rng.integers(1, 4)):
            mutated[place] = rng.choice([rng.integers(256), ord(rng.choice(list("0123456789-(),'fOV[]")))])
        (tmp_path / "x.npy").write_bytes(mutated)
        code = main(["score", str(tmp_path / "x.npy")])
        said = capsys.readouterr()
        assert (code, said.err.count("\n")) in [(0, 0), (2, 1)]
        refused += code == 2
    assert refused > 100


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--threads", "0"], "argument --threads: 0 is not positive"),
        (["--chunk", "-5"], "argument --chunk: -5 is not positive"),
        (["--chunk", "many"], "argument --chunk: invalid int value: 'many'"),
        (["--speed=3"], "unrecognized arguments: --speed=3"),
        (["--labels", "labels.npy"], "--labels is given without INPUT"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in complaint(capsys, *arguments)


# What is written


def test_results_appear_whole_and_with_ordinary_permissions(files: tuple[Path, Path, Path]) -> None:
    logits, labels, out = files
    mask = os.umask(0o027)
    try:
        score_files(logits, labels, out)
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(out.parent)) == ["labels.npy", "logits.npy", "scores.npz"]
    assert zipfile.ZipFile(out).testzip() is None


def test_a_result_is_replaced_and_a_link_to_it_stays(files: tuple[Path, Path, Path]) -> None:
    logits, labels, out = files
    out.write_bytes(b"old")
    link = out.with_name("link.npz")
    link.symlink_to(out.name)
    score_files(logits, labels, link)
    assert link.is_symlink()
    with np.load(out) as scores:
        assert len(scores["loss"]) == 300


def test_outputs_that_cannot_be(files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    logits, labels, out = files
    folder = out.parent
    before = sorted(os.listdir(folder))
    missing = folder / "missing" / "scores.npz"
    assert f"{missing}: No such file or directory" in complaint(capsys, logits, "--out", missing)
    assert "results end in one of .parquet, " in complaint(capsys, logits, "--out", "/dev/null")
    pipe = folder / "pipe.npz"
    os.mkfifo(pipe)
    assert "is a device or pipe, and would be replaced" in complaint(capsys, logits, "--out", pipe)
    pipe.unlink()
    linked = folder / "linked.npz"
    linked.symlink_to(logits)
    assert "is also an input" in complaint(capsys, logits, "--out", linked)
    linked.unlink()
    linked.symlink_to(labels)
    assert "is also an input" in complaint(capsys, logits, "--labels", labels, "--out", linked)
    linked.unlink()
    assert "Not a directory" in complaint(capsys, logits, "--out", labels / "scores.npz")
    assert sorted(os.listdir(folder)) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    logits, _, out = files
    out.parent.chmod(0o555)
    try:
        assert "Permission denied" in complaint(capsys, logits, "--out", out)
    finally:
        out.parent.chmod(0o755)


@pytest.mark.parametrize("limit", [2**13, 2**20], ids=["in-a-column", "in-the-result"])
def test_a_full_disk_leaves_the_old_result(tmp_path: Path, limit: int) -> None:
    """A limit on file size stands for the full disk: a write fails midway, with the process going on."""
    x, y = draw(60_000, 2)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    (tmp_path / "s.npz").write_bytes(b"old")
    run = subprocess.run(
        [*COMMAND, tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--out", tmp_path / "s.npz"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"fastkl: error: {tmp_path}/s.npz: File too large\n")
    assert sorted(os.listdir(tmp_path)) == ["s.npz", "x.npy", "y.npy"]
    assert (tmp_path / "s.npz").read_bytes() == b"old"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    # A file with a hole for its rows: long to score, nothing to store.
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10**9, 10))
    del x
    with subprocess.Popen(
        [*COMMAND, tmp_path / "x.npy", "--out", tmp_path / "s.npz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as command:
        try:
            maps = Path(f"/proc/{command.pid}/maps")
            deadline = time.monotonic() + 30
            while "x.npy" not in maps.read_text():  # from then on it scores
                assert command.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.2)
            assert command.poll() is None
            command.send_signal(number)
            said = command.communicate(timeout=30)
        finally:
            command.kill()
    assert (command.returncode, *said) == (code, "", "fastkl: interrupted\n" if number == signal.SIGINT else "")
    assert os.listdir(tmp_path) == ["x.npy"]


# The program


def test_the_program(files: tuple[Path, Path, Path]) -> None:
    logits, labels, out = files
    run = subprocess.run(
        [*COMMAND, logits, "--labels", labels, "--out", out], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stderr == ""
    assert run.stdout.splitlines()[0].startswith(f"{logits}: fastkl {fk.__version__}")
    with np.load(out) as scores:
        assert scores["loss"].tobytes() == fk.softmax_cross_entropy(np.load(logits), np.load(labels)).tobytes()


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_the_program_keeps_its_workers_from_spinning(given: str | None, used: str) -> None:
    """Spinning workers would hold the cores that read the next chunk; a policy that the user has set stays."""
    if not fk.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    run = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=True, env=environment)
    shown = [line for line in run.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert used in shown[-1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastkl {fk.__version__}\n"
