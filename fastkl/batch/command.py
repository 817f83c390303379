"""The command line: ``fastkl score [LOGITS.npy] [--labels LABELS.npy] [--out SCORES.npz]``.

Whatever goes wrong with files or arguments is one line on stderr and exit code 2; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import fastkl as fk
from fastkl.batch.readers import InputError
from fastkl.batch.scoring import Summary, score_files


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


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog="fastkl", description="Score batches of distributions on CPUs.")
    parser.add_argument("--version", action="version", version=f"fastkl {fk.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser(
        "score",
        help="loss, log-sum-exp, entropy and predicted class of each row of logits",
        description="Score each row of a file of logits and print a summary. Without LOGITS.npy it scores 899 "
        "hand-written digits that the package carries.",
    )
    score.add_argument("logits", nargs="?", metavar="LOGITS.npy", help="rows x classes, float16, float32 or float64")
    score.add_argument("--labels", metavar="LABELS.npy", help="the true class of each row, any integer type")
    score.add_argument(
        "--out",
        metavar="SCORES.npz",
        help="write one value per row: loss, logsumexp, entropy, predicted, correct; replaced only when complete",
    )
    score.add_argument("--threads", type=positive, metavar="N", help="threads to use (default: as the work is worth)")
    score.add_argument("--chunk", type=positive, metavar="ROWS", help="rows read at a time (default: 4 MiB of them)")
    return parser


def digits() -> tuple[Path, Path]:
    """Return the digits' logits and labels: installed beside this file, or in the checkout that this file is in."""
    here = Path(__file__).parent
    for folder in (here / "digits", here.parents[1] / "examples" / "digits"):
        if (folder / "logits.npy").is_file():
            return folder / "logits.npy", folder / "labels.npy"
    raise InputError(f"the digits are not installed ({here / 'digits'}); pass a file: fastkl score LOGITS.npy")


def report(summary: Summary, source: str) -> str:
    """Return the summary as the lines to print."""
    build = fk.build_info()
    # A file name need not be text in any encoding; the summary is.
    name = source.encode(errors="backslashreplace").decode()
    lines = [f"{name}: fastkl {build['version']}, {build['tier']}"]
    lines.append(f"rows           {summary.rows}")
    lines.append(f"classes        {summary.classes}")
    if summary.accuracy is not None:
        lines.append(f"accuracy       {summary.accuracy:.4f} ({summary.right} right)")
        lines.append(f"mean loss      {summary.mean_loss:.6g} nats")
        lines.append(f"perplexity     {summary.perplexity:.6g}")
    lines.append(f"mean entropy   {summary.mean_entropy:.6g} nats")
    lines.append(f"rows/second    {summary.rows / summary.seconds:.3g}")
    if summary.invalid:
        wrong = "" if summary.accuracy is None else "counted as wrong, "
        lines.append(
            f"invalid rows   {summary.invalid} (a NaN, a +inf or nothing but -inf): predicted as -1, {wrong}"
            f"left out of the means"
        )
    return "\n".join(lines)


def score(options: argparse.Namespace) -> None:
    """Run ``fastkl score``."""
    logits, labels, source = options.logits, options.labels, options.logits
    if logits is None:
        if labels is not None:
            raise InputError("--labels is given without LOGITS.npy")
        logits, labels = digits()
        source = "hand-written digits (UCI, test half)"
    summary = score_files(logits, labels, options.out, chunk=options.chunk, n_threads=options.threads)
    print(report(summary, source), flush=True)


def restart_with_passive_workers() -> None:
    """Start this process anew with OMP_WAIT_POLICY=passive, unless the user has set a policy.

    OpenMP reads the policy once, when it is loaded, which ``import fastkl`` has done by now. By default its workers
    spin between calls, on the very cores that should be reading the next chunk. A library must not decide that for its
    process; a command may.
    """
    if fk.build_info()["openmp"] and "OMP_WAIT_POLICY" not in os.environ and sys.executable:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "passive"})


def exit_with_cleanup(number: int, frame: Any) -> NoReturn:
    """Leave through the ``finally`` blocks when the process is told to end."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Without ``argv`` it is the program itself and owns the process."""
    options = arguments().parse_args(argv)
    if argv is None:
        restart_with_passive_workers()
        signal.signal(signal.SIGTERM, exit_with_cleanup)
        signal.signal(signal.SIGHUP, exit_with_cleanup)
    try:
        score(options)
    except KeyboardInterrupt:
        print("fastkl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read stdout has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError, MemoryError) as error:
        print(f"fastkl: error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def describe(error: BaseException) -> str:
    """Return an error as one line, without Python's error number."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split("\n"))
