"""Every operation beside every peer that is installed, on this machine: ``python bench/compare.py``.

Speed is a ratio inside one run. For each operation, type and shape all contenders take turns in one process on the
same arrays, in a new order each round (in a fixed one, a contender would always find what the same neighbour left in
the caches); the median of each is compared. Several copies of the arrays are walked through, so that no contender
finds its input in cache. The machine's limit, reading every input byte and writing every output byte once, takes its
turn among the contenders as well.

``--accuracy`` prints what every contender answers in a handful of telling cases, beside the exact value.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import timeit
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import bars
import cases
import numpy as np
import peers
from bandwidth import Stream

from fastkl.registry import ELEMENTWISE, OPERATIONS, Operation

ENVIRONMENT_SET = "FASTKL_BENCH_THREADS"


def hold_to_threads(threads: int) -> None:
    """Start again with every library's thread limit in the environment, on as many cores as there are threads.

    Most libraries read their limits once, when they are loaded, and NumPy is loaded by now.
    """
    if os.environ.get(ENVIRONMENT_SET) == str(threads):
        return
    count = str(threads)
    for variable in ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMBA", "NUMEXPR"):
        os.environ[f"{variable}_NUM_THREADS"] = count
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}" + (
        " intra_op_parallelism_threads=1" if threads == 1 else ""
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    # No pool of compiler processes: they would inherit the affinity and outlive the compilation.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ[ENVIRONMENT_SET] = count
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    os.execv(sys.executable, [sys.executable, *sys.argv])


#: Contenders slower than this take every third turn only.
SLOW_SECONDS = 0.04
#: The answers are checked on this many elements, and at least one row.
CHECKED_ELEMENTS = 2_000_000
#: Whose overhead is measured.
SMALL = ("logsumexp", "softmax", "kl_divergence")
#: What --quick times.
QUICK = ("logsumexp", "softmax", "softmax_cross_entropy", "kl_divergence")


@dataclass
class Contender:
    """One way of one library to do one operation, bound to every copy of the inputs."""

    name: str
    form: str
    calls: list[peers.Call]
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    slow: bool = False
    processor_time: bool = False
    interrupted: int = 0

    def take_turn(self, copy: int) -> None:
        """Time one call, as in a stream of them.

        A call on another copy comes first: the contender before has driven this one's code out of the caches, and
        that costs a library with much Python around its kernel more than one with little.
        """
        if not self.slow:
            self.calls[(copy + 1) % len(self.calls)]()
        call = self.calls[copy % len(self.calls)]
        start, busy = perf_counter(), process_time()
        call()
        busy, wall = process_time() - busy, perf_counter() - start
        self.seconds.append(busy if self.processor_time else wall)
        self.interrupted += busy < 0.9 * wall


@dataclass
class Timing:
    """One line of the table."""

    name: str
    form: str
    ms: float
    ms_least: float
    rounds: int
    ns_per_element: float
    gb_per_s: float
    share_of_floor: float
    times_ours: float
    error: float


@dataclass
class Case:
    """One operation, type and shape: the timings, and what of it matters for the bars."""

    op: str
    dtype: str
    rows: int
    classes: int
    bytes_moved: int
    floor_ms: float
    timings: list[Timing]
    absent: dict[str, str]
    turns: int
    interrupted: int
    ratio: float = 0.0
    ratio_bar: float | None = None
    fastest: str = ""
    apart: dict[str, tuple[float, float]] = field(default_factory=dict)
    share: float = 0.0
    share_bar: float | None = None

    @property
    def shape(self) -> str:
        """The shape's name."""
        return cases.shape_name((self.rows, self.classes))

    @property
    def ours(self) -> Timing:
        """Our own line."""
        return next(t for t in self.timings if t.name == peers.OURS.name)

    def judge(self, threads: int) -> None:
        """Fill in ratio, share and their bars."""
        set_apart = bars.APART.get((self.op, self.dtype), {})
        best: dict[str, Timing] = {}
        for t in self.timings:
            if t.name != peers.OURS.name and (t.name not in best or t.ms < best[t.name].ms):
                best[t.name] = t
        self.apart = {n: (best[n].ms / self.ours.ms, set_apart[n]) for n in set_apart if n in best}
        rest = [t for n, t in best.items() if n not in set_apart]
        if rest:
            fastest = min(rest, key=lambda t: t.ms)
            self.fastest, self.ratio = fastest.name, fastest.ms / self.ours.ms
        self.share = self.floor_ms / self.ours.ms
        if threads == 1:
            self.ratio_bar = bars.ratio_bar(self.op, self.dtype, self.classes)
        self.share_bar = bars.floor_bar(self.op, self.dtype, self.classes, threads >= (os.cpu_count() or 1))

    def failures(self) -> list[str]:
        """Return the bars that are not reached, in words."""
        found = []
        if self.ratio_bar and self.fastest and self.ratio < self.ratio_bar:
            found.append(f"{self.ratio:.2f} < {self.ratio_bar} x {self.fastest}")
        found += [f"{got:.2f} < {bar} x {name}" for name, (got, bar) in self.apart.items() if got < bar]
        if self.share_bar and self.share < self.share_bar:
            found.append(f"share {self.share:.2f} < {self.share_bar}")
        return found


def expected(op: Operation, inputs: cases.Inputs) -> np.ndarray:
    """Return what fastkl.reference says of the first rows, from the inputs as float64."""
    from fastkl import reference

    rows = max(1, CHECKED_ELEMENTS // inputs.x.shape[1])
    operands = [a[:rows].astype(np.float64) if a.dtype.kind == "f" else a[:rows] for a in inputs.operands(op)]
    return np.asarray(getattr(reference, op.function)(*operands, **op.keywords))


def largest_error(got: Any, want: np.ndarray) -> float:
    """Return the largest relative error; NaN where one is NaN."""
    got = np.asarray(got)[: len(want)].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(got == want, 0.0, np.abs(got - want) / np.abs(want))))


def enter(
    op: Operation, party: list[peers.Peer], copies: list[cases.Inputs], scratch: list[np.ndarray]
) -> tuple[list[Contender], dict[str, str]]:
    """Bind, compile and check every way to do ``op``; return them, and why who is not among them."""
    want = expected(op, copies[0])
    contenders, absent = [], {}
    for peer in party:
        peer.begin_case()
        forms = peer.forms(op)
        if not forms:
            absent[peer.name] = "has no such operation"
        for form, function in forms.items():
            try:
                calls = [peer.bind(function, c.operands(op), c.out(op), scratch) for c in copies]
                error = largest_error(calls[0](), want)
            except Exception as refusal:  # whatever a library raises is its answer
                if peer.name == peers.OURS.name:
                    raise
                absent[peer.name] = f"{type(refusal).__name__}: {str(refusal).splitlines()[0] if str(refusal) else ''}"
                continue
            contenders.append(Contender(peer.name, form, calls, error))
    return contenders, absent


def rotate(contenders: list[Contender], rounds: int, seconds: float) -> None:
    """Let the contenders take turns for ``rounds`` rounds, fewer where they would take longer than ``seconds``."""
    gc.collect()
    gc.disable()
    try:
        for c in contenders:
            start = perf_counter()
            c.calls[0]()
            c.slow = perf_counter() - start > SLOW_SECONDS
        shuffled, turn = random.Random(rounds), 0
        began = perf_counter()
        for number in range(rounds):
            if number >= 6 and perf_counter() - began > seconds:
                break
            for contender in shuffled.sample(contenders, len(contenders)):
                if contender.slow and number % 3:
                    continue
                contender.take_turn(turn)
                turn += 1
    finally:
        gc.enable()


def run_case(
    op: Operation,
    dtype: str,
    shape: tuple[int, int],
    party: list[peers.Peer],
    copies: list[cases.Inputs],
    scratch: list[np.ndarray],
    stream: Stream,
    options: argparse.Namespace,
) -> Case:
    """Time one operation on one shape."""
    contenders, absent = enter(op, party, copies, scratch)

    def floor_call(inputs: cases.Inputs) -> peers.Call:
        def call() -> None:
            for array in inputs.operands(op):
                stream.read(array)
            stream.write(inputs.out(op))

        return call

    floor = Contender("floor", "", [floor_call(c) for c in copies])
    for contender in (*contenders, floor):
        contender.processor_time = options.clock == "cpu"
    rotate([*contenders, floor], options.rounds, options.seconds)
    rows, classes = shape
    moved = op.bytes_moved(rows, classes, np.dtype(dtype).itemsize)
    floor_ms = float(np.median(floor.seconds)) * 1e3
    ours = next(c for c in contenders if c.name == peers.OURS.name)
    ours_ms = float(np.median(ours.seconds)) * 1e3
    timings = []
    for c in contenders:
        ms = float(np.median(c.seconds)) * 1e3
        timings.append(
            Timing(
                name=c.name,
                form=c.form,
                ms=ms,
                ms_least=min(c.seconds) * 1e3,
                rounds=len(c.seconds),
                ns_per_element=ms * 1e6 / (rows * classes),
                gb_per_s=moved / ms / 1e6,
                share_of_floor=floor_ms / ms,
                times_ours=ms / ours_ms,
                error=c.error,
            )
        )
    turns, interrupted = sum(len(c.seconds) for c in contenders), sum(c.interrupted for c in contenders)
    case = Case(op.id, dtype, rows, classes, moved, floor_ms, timings, absent, turns, interrupted)
    case.judge(options.threads)
    return case


def print_timings(results: list[Case]) -> None:
    """Print every contender's line."""
    for dtype in dict.fromkeys(c.dtype for c in results):
        print(f"\n{dtype}: all contenders ('times' is their time over ours, 'limit' the share of the machine's limit)")
        head = f"{'op':25}{'shape':14}{'contender':30}{'ms':>9}{'ns/elem':>9}{'GB/s':>7}{'times':>8}{'limit':>7}"
        print(head + f"{'error':>10}")
        for case in (c for c in results if c.dtype == dtype):
            for i, t in enumerate(sorted(case.timings, key=lambda t: t.ms)):
                label = f"{case.op:25}{case.shape:14}" if i == 0 else " " * 39
                name = f"{t.name} ({t.form.replace('_', ' ')})" if t.form else t.name
                print(
                    f"{label}{name:30}{t.ms:9.3f}{t.ns_per_element:9.3f}{t.gb_per_s:7.1f}{t.times_ours:8.2f}"
                    f"{t.share_of_floor:7.2f}{t.error:10.1e}"
                )
            for name, why in case.absent.items():
                print(f"{'':39}{name:30}{'-':>9}  {why[:60]}")


def print_summary(results: list[Case]) -> None:
    """Print one line for each case, and the count of bars that are reached."""
    for dtype in dict.fromkeys(c.dtype for c in results):
        print(f"\n{dtype}: ours beside the fastest peer ('limit' is the share of the machine's limit)")
        head = f"{'op':25}{'shape':14}{'ms':>9}{'ns/elem':>9}  {'fastest peer':15}{'ms':>9}{'ratio':>7}{'bar':>5}"
        print(head + f"{'limit':>7}{'bar':>6}  verdict")
        for case in (c for c in results if c.dtype == dtype):
            peer_ms = f"{case.ratio * case.ours.ms:9.3f}" if case.fastest else f"{'-':>9}"
            failures = case.failures()
            judged = case.ratio_bar or case.share_bar or case.apart
            verdict = "FAIL: " + "; ".join(failures) if failures else "pass" if judged else ""
            if case.fastest and case.ratio < 1:
                verdict += " BEHIND"
            print(
                f"{case.op:25}{case.shape:14}{case.ours.ms:9.3f}{case.ours.ns_per_element:9.3f}  "
                f"{case.fastest or '-':15}{peer_ms}{case.ratio:7.2f}{case.ratio_bar or '':>5}"
                f"{case.share:7.2f}{case.share_bar or '':>6}  {verdict}"
            )
    failed = [c for c in results if c.failures()]
    behind = [c for c in results if c.fastest and c.ratio < 1]
    judged = [c for c in results if c.ratio_bar or c.share_bar or c.apart]
    lost = sum(c.interrupted for c in results) / max(1, sum(c.turns for c in results))
    if lost > 0.1:
        print(f"\nNOTE: {lost:.0%} of the turns waited for other processes, over a tenth of their time (see --clock)")
    print(
        f"\n{len(judged) - len(failed)} of {len(judged)} cases with a bar reach it; "
        f"behind a peer in {len(behind)} of {len(results)}."
    )


def small_calls(party: list[peers.Peer]) -> dict[str, dict[str, float]]:
    """Return the microseconds of a call on one row of ten float64 numbers, which is Python overhead alone."""
    inputs = cases.make_inputs((1, 10), "float64", np.random.default_rng(0))
    scratch = [cases.aligned((1, 10), "float64") for _ in range(2)]
    found: dict[str, dict[str, float]] = {}
    for op in (cases.operation(name) for name in SMALL):
        found[op.id] = {}
        for peer in party:
            peer.begin_case()
            if forms := peer.forms(op):
                call = peer.bind(next(iter(forms.values())), inputs.operands(op), inputs.out(op), scratch)
                if peer.name == peers.OURS.name:
                    # As it is called on a single row: one axis, nothing given but the numbers.
                    function, row = getattr(peer.library, op.function), [a[0] for a in inputs.operands(op)]
                    call = partial(function, *row)
                call()
                found[op.id][peer.name] = min(timeit.repeat(call, number=200, repeat=15)) / 200 * 1e6
    return found


def print_small_calls(found: dict[str, dict[str, float]]) -> None:
    """Print the overheads and the bar for ours."""
    print(f"\nmicroseconds of a call on ten float64 numbers; the bar for ours is {bars.SMALL_CALL_US:g}")
    for op, us in found.items():
        ours = us[peers.OURS.name]
        verdict = "pass" if ours <= bars.SMALL_CALL_US else "FAIL"
        print(f"{op:25}{verdict}  " + ", ".join(f"{name} {value:.1f}" for name, value in us.items()))


def load_party(names: list[str], threads: int) -> list[peers.Peer]:
    """Import ours and the peers that are asked for and installed."""
    ours = peers.OURS()
    ours.load(threads)
    party: list[peers.Peer] = [ours]
    for kind in peers.PEERS:
        if names and kind.name not in names:
            continue
        peer = kind()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer.load(threads)
        except ImportError as error:
            print(f"{kind.name}: not installed ({error}): pip install fastkl[peers]")
            continue
        party.append(peer)
    return party


def processor() -> str:
    """Return the name of the processor, its cores and its last-level cache."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        told = dict(line.replace("\t", "").split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
        model = told.get("model name", model).strip()
        if "cpu family" in told and "model" in told:
            model += f" (family {told['cpu family'].strip()} model {told['model'].strip()})"
    return f"{model}, {os.cpu_count()} cores, {cases.last_level_cache() >> 20} MiB last-level cache"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ids = [op.id for op in OPERATIONS + ELEMENTWISE]
    shapes = {cases.shape_name(s): s for s in cases.SHAPES}
    parser.add_argument("--ops", nargs="+", choices=ids, default=ids, metavar="OP", help=", ".join(ids))
    parser.add_argument("--shapes", nargs="+", default=list(shapes), metavar="NxC", help=f"default {' '.join(shapes)}")
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    names = [p.name for p in peers.PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=[], metavar="PEER", help=", ".join(names))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu, on a machine that others use too: the processor time of one thread (default wall)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="at most; at least 6 are kept (default 15)")
    parser.add_argument("--seconds", type=float, default=2.5, help="stop adding rounds after this (default 2.5)")
    parser.add_argument("--seed", type=int, help="of the inputs; a fresh one each run otherwise")
    parser.add_argument("--quick", action="store_true", help="float32, long and short rows, four operations")
    parser.add_argument("--summary", action="store_true", help="leave out the lines of each contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the float32 figures, else float64")
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="write the tables and the machine as a page")
    parser.add_argument("--accuracy", action="store_true", help="answers in telling cases, no speed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.dtypes, options.rounds, options.seconds = ["float32"], min(options.rounds, 9), 1.0
        options.shapes = ["100000x100", "64x128256"]
        options.ops = [o for o in options.ops if o in QUICK]
    try:
        options.shapes = [tuple(int(n) for n in s.split("x")) for s in options.shapes]
        valid = all(len(s) == 2 and min(s) > 0 for s in options.shapes)
    except ValueError:
        valid = False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if ENVIRONMENT_SET not in os.environ and options.threads > cores:
        parser.error(f"this process may run on {cores} cores only")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu goes with one thread: it adds up the time of all")
    if not valid or options.threads < 1 or options.rounds < 1:
        parser.error("a shape is rows x classes, as 1000x10; threads and rounds are positive")
    return options


def main() -> int:
    """Run what the command line asks for."""
    options = parse()
    hold_to_threads(options.threads)
    seed = options.seed if options.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
    party = load_party(options.peers, options.threads)
    import fastkl

    build = fastkl.build_info()
    versions = {p.name: p.version() for p in party}
    print(f"{processor()}; tier {build['tier']}, {build['compiler']}; threads {options.threads}; seed {seed}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if options.accuracy:
        from accuracy import print_accuracy

        print_accuracy(party)
        return 0

    stream = Stream(options.threads, options.clock == "cpu")
    print(stream.text())
    results = []
    for dtype in options.dtypes:
        for shape in options.shapes:
            rng = np.random.default_rng(seed)
            copies = [cases.make_inputs(shape, dtype, rng) for _ in range(cases.copies_needed(shape, dtype))]
            scratch = [cases.aligned(shape, dtype) for _ in range(2)]
            print(f"{dtype} {cases.shape_name(shape)}: {len(copies)} copies of the inputs in rotation", file=sys.stderr)
            for name in options.ops:
                op = cases.operation(name)
                results.append(run_case(op, dtype, shape, party, copies, scratch, stream, options))
            del copies, scratch
    order = {name: i for i, name in enumerate(options.ops)}
    results.sort(key=lambda c: (options.dtypes.index(c.dtype), order[c.op]))
    if not options.summary:
        print_timings(results)
    print_summary(results)
    overheads = small_calls(party)
    print_small_calls(overheads)
    record = {
        "processor": processor(),
        "build": build,
        "versions": versions,
        "threads": options.threads,
        "clock": options.clock,
        "seed": seed,
        "read_gb_per_s": stream.read_rate,
        "write_gb_per_s": stream.write_rate,
        "small_calls_us": overheads,
        "cases": [asdict(c) for c in results],
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1, default=str) + "\n")
    if options.plot:
        from plot import draw

        draw(record, options.plot)
    if options.results:
        from results import write

        write(record, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
