"""The command line: ``fastkl score INPUT... [--labels ...] [--reference ...] [--out ...]``.

Whatever goes wrong with files or arguments is one line on stderr and exit code 2; 1 if some of several shards were set
aside and the others are done; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import fastkl as fk
from fastkl.batch.readers import InputError
from fastkl.batch.run import Run, Runner, run_here, score_files
from fastkl.batch.scoring import Advance, Parameters


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all others of this command."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and exit."""
        self.exit(2, f"fastkl: error: {message} (try: {self.prog} --help)\n")


def positive(text: str) -> int:
    """Read an option that is a positive number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


positive.__name__ = "int"  # argparse names the type in "invalid int value"


def pair(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Read an option that is one value, or two with a comma between, for the logits and the reference."""

    def read(text: str) -> Any:
        parts = [kind(part) for part in text.split(",")]
        return parts[0] if len(parts) == 1 else tuple(parts)

    read.__name__ = kind.__name__
    return read


DESCRIPTION = """\
Score each row of files of logits and print a summary. Without INPUT it scores 899 hand-written digits that the package
carries. INPUT is a file, or a folder, a quoted pattern or several files: then each is a shard, in the order of names.
Read are .npy, .npz, .safetensors, Parquet (.parquet, .pq) and Arrow (.arrow, .feather, .ipc, .arrows): rows x classes
of float16, bfloat16, float32 or float64, as an array, a column of lists, or one column for each class."""


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog="fastkl", description="Score batches of distributions on CPUs.")
    parser.add_argument("--version", action="version", version=f"fastkl {fk.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser(
        "score", help="loss, entropy, rank, KL and more of each row of logits", description=DESCRIPTION
    )
    score.add_argument("inputs", nargs="*", metavar="INPUT", help="files of logits")
    read = score.add_argument_group("what is read")
    read.add_argument(
        "--labels",
        metavar="L",
        help="the true classes: a key or column of the INPUT, a file, FILE:KEY, or a folder with a file for each shard",
    )
    read.add_argument("--reference", metavar="R", help="the logits of a reference model, named as --labels are")
    read.add_argument(
        "--weights", metavar="W", help="the weights of the rows in the mean loss, named as --labels are; needs labels"
    )
    read.add_argument(
        "--logits",
        metavar="KEY",
        help="the key or column of the logits, or a pattern of columns (default: 'logits', or the only one that fits)",
    )
    read.add_argument(
        "--given",
        type=pair(str),
        default="logits",
        metavar="G",
        help="what the numbers are: logits, probs or log_probs; two with a comma for INPUT,reference",
    )
    read.add_argument(
        "--temperature", type=pair(float), default=1.0, metavar="T", help="divide the logits by T; two with a comma"
    )
    written = score.add_argument_group("what is written")
    written.add_argument(
        "--out",
        metavar="OUT",
        help="a value per row and statistic: .parquet, .arrow, .feather, .npz or .csv; for shards a folder with a file "
        "for each and manifest.json; replaced only when complete",
    )
    written.add_argument("--format", choices=["parquet", "arrow", "npz", "csv"], help="of the files in a folder")
    written.add_argument(
        "--stats",
        metavar="A,B",
        help="statistics to write, of fastkl.score (default: all that the inputs allow, but brier and top_k)",
    )
    written.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes that top_k has (default: 5)")
    written.add_argument("--report", metavar="FILE.html", help="a page of the summary, with figures")
    written.add_argument("--plot", metavar="FILE.png", help="the figures alone")
    how = score.add_argument_group("how it runs")
    how.add_argument("--resume", action="store_true", help="skip what an earlier run has done, once that is verified")
    how.add_argument("--strict", action="store_true", help="end at the first shard that cannot be scored")
    how.add_argument("--threads", type=positive, metavar="N", help="threads to use (default: one for each CPU)")
    how.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run the shards on the cluster of this dask.distributed scheduler, which sees the same files under the "
        "same paths; --threads is then of each task (default: one)",
    )
    how.add_argument("--chunk", type=positive, metavar="ROWS", help="rows at a time (default: 4 to 32 MiB of them)")
    return parser


def digits() -> tuple[Path, Path]:
    """Return the digits' logits and labels: installed beside this file, or in the checkout that this file is in."""
    here = Path(__file__).parent
    for folder in (here / "digits", here.parents[1] / "examples" / "digits"):
        if (folder / "logits.npy").is_file():
            return folder / "logits.npy", folder / "labels.npy"
    raise InputError(f"the digits are not installed ({here / 'digits'}); pass a file: fastkl score INPUT")


def described(run: Run, source: str) -> str:
    """Return a run as the lines to print."""
    build = fk.build_info()
    summary = run.summary
    # A file name need not be text in any encoding; the summary is.
    name = source.encode(errors="backslashreplace").decode()
    lines = [f"{name}: fastkl {build['version']}, {build['tier']}"]

    def add(what: str, value: Any, form: str = "", more: str = "") -> None:
        if value is not None:
            lines.append(f"{what:<15}{value:{form}}{more}")

    if run.shards + len(run.set_aside) > 1:
        done = f" ({run.skipped} done before)" if run.skipped else ""
        add("shards", run.shards, "", done)
    add("rows", summary.rows)
    add("classes", summary.classes)
    add("accuracy", summary.accuracy, ".4f", f" ({summary.right} right)")
    for k, share in summary.top_k.items():
        if k > 1:
            add(f"top-{k} accuracy", share, ".4f")
    add("mean loss", summary.mean_loss, ".6g", " nats" if summary.weight is None else " nats, weighted")
    add("perplexity", summary.perplexity, ".6g")
    add("mean entropy", summary.mean_entropy, ".6g", " nats")
    add("calibration", summary.ece, ".4f", " expected error")
    add("Brier score", summary.brier, ".4f", " of 0 to 2")
    add("mean KL", summary.mean_kl, ".6g", " nats, reference to model")
    add("reverse KL", summary.mean_reverse_kl, ".6g", " nats, model to reference")
    add("mean JS", summary.mean_js, ".6g", " nats")
    add("agreement", summary.agreement, ".4f")
    if run.rows or not run.skipped:
        add("rows/second", run.rows / run.seconds, ".3g", f" ({run.bytes / run.seconds / 1e9:.3g} GB/s)")
    if summary.invalid:
        wrong = "" if summary.accuracy is None else "counted as wrong, "
        add(
            "invalid rows",
            summary.invalid,
            "",
            f" (a NaN, a +inf or nothing but -inf): predicted as -1, {wrong}left out of the means",
        )
    add("set aside", len(run.set_aside) or None, "", " of the shards: see above")
    return "\n".join(lines)


@contextmanager
def progress_bar() -> Iterator[tuple[Callable[[int], Advance], Callable[[str], None]]]:
    """Show rows, GB/s and the time left on a terminal, if rich is there; give what starts it, and what prints lines."""

    def silent(size: int) -> Advance:
        return lambda rows, size: end_if_told()

    if sys.stderr is None or not sys.stderr.isatty():
        yield silent, complain
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
        from rich.text import Text
    except ImportError:
        yield silent, complain
        return

    class Speed(ProgressColumn):
        """Rows so far, and how fast their files are read."""

        def render(self, task: Task) -> Text:
            """Return the column's text."""
            return Text(f"{task.fields['rows']:,} rows  {(task.speed or 0) / 1e9:.2f} GB/s")

    console = Console(stderr=True)
    bar = Progress(BarColumn(), TaskProgressColumn(), Speed(), TimeRemainingColumn(), console=console, transient=True)
    rows, lock = 0, threading.Lock()

    def start(size: int) -> Advance:
        task = bar.add_task("", total=size or None, rows=0)

        def advance(more: int, size: int) -> None:
            nonlocal rows
            end_if_told()
            with lock:
                rows += more
                bar.update(task, advance=size, rows=rows)

        return advance

    with bar:
        yield start, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def score(options: argparse.Namespace) -> int:
    """Run ``fastkl score`` and return its exit code."""
    inputs, labels = options.inputs, options.labels
    source = inputs[0] if len(inputs) == 1 else f"{len(inputs)} inputs"
    if not inputs:
        for option in ("labels", "reference", "weights", "logits"):
            if getattr(options, option) is not None:
                raise InputError(f"--{option} is given without INPUT")
        inputs, labels = digits()
        source = "hand-written digits (UCI, test half)"
    stats = None if options.stats is None else tuple(name.strip() for name in options.stats.split(","))
    pictures = [name for name in (options.report, options.plot) if name is not None]
    try:
        wanted = Parameters(stats, options.given, options.temperature, options.top_k)
        wanted.check(labels is not None, options.reference is not None, options.weights is not None)
        if options.resume and options.out is None:
            raise ValueError("--resume needs --out")
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    if pictures:
        import_drawing()
    runner: Runner = run_here
    if options.dask is not None:
        from fastkl.batch.cluster import Cluster

        runner = Cluster(options.dask)
    with progress_bar() as (progress, say):
        run = score_files(
            inputs, labels, options.out, reference=options.reference, weights=options.weights, stats=stats,
            given=options.given, temperature=options.temperature, k=options.top_k, key=options.logits,
            form=options.format, resume=options.resume, strict=options.strict, complete=bool(pictures),
            chunk=options.chunk, n_threads=options.threads, progress=progress, written_after=pictures, runner=runner,
            complain=lambda name, reason: say(f"fastkl: set aside: {one_line(reason)}"),
        )  # fmt: skip
    if pictures:
        from fastkl.batch import report

        details = {"fastkl": f"{fk.__version__}, {fk.build_info()['tier']}", "command": " ".join(sys.argv[1:])}
        if options.report is not None:
            report.write_report(
                options.report, run.summary, title=source, details=details, set_aside=run.set_aside
            )
        if options.plot is not None:
            report.write_plot(options.plot, run.summary, title=source)
    tell(described(run, source))
    return 1 if run.set_aside else 0


def tell(text: str) -> None:
    """Print to stdout; where whoever read it has left, that is no error."""
    try:
        print(text, flush=True)
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def complain(line: str) -> None:
    """Print a line to stderr, if there is one that takes it: a run does not end because nobody reads what it says."""
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Let a stream lead nowhere. Python would complain once more when it flushes what is left at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def import_drawing() -> None:
    """Raise before the work if there is nothing to draw with after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--report and --plot need matplotlib: pip install 'fastkl[score]'") from None


def restart_with_passive_workers() -> None:
    """Start this process anew with OMP_WAIT_POLICY=passive, unless the user has set a policy.

    OpenMP reads the policy once, when it is loaded, which ``import fastkl`` has done by now. By default its workers
    spin between calls, on the very cores that should be reading the next chunk. A library must not decide that for its
    process; a command may.
    """
    if fk.build_info()["openmp"] and "OMP_WAIT_POLICY" not in os.environ and sys.executable:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "passive"})


#: The signal that told this process to end, once one has, and how often it was told.
told_to_end: int | None = None
told = 0


def end(number: int, frame: Any) -> None:
    """Leave through the ``finally`` blocks when the process is told to end.

    Being told once more must not end those; whoever tells it a third time has waited enough.
    """
    global told_to_end, told
    told += 1
    if told > 2:
        os._exit(128 + number)
    if told == 1:
        told_to_end = number
        end_if_told()


def end_if_told() -> None:
    """Raise what ends the process, if it was told to end.

    Where a signal arrives in a destructor or while a module is imported, what its handler raises may get lost: it is
    raised again with the next chunk.
    """
    if told_to_end is not None:
        raise KeyboardInterrupt if told_to_end == signal.SIGINT else SystemExit(128 + told_to_end)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Without ``argv`` it is the program itself and owns the process."""
    options = arguments().parse_args(argv)
    if argv is None:
        restart_with_passive_workers()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job's is ignored
            signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGHUP, end)
    try:
        return score(options)
    except KeyboardInterrupt:
        complain("fastkl: interrupted")
        return 130
    except (InputError, OSError, MemoryError) as error:
        complain(f"fastkl: error: {one_line(describe(error))}")
        return 2


def one_line(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.split("\n"))


def describe(error: BaseException) -> str:
    """Return what an error says, without Python's error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
