"""Threads, forks and the floating-point environment: no call leaves the process changed, none hangs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import json
import mmap
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import oracle
import pytest

import fastkl as fk
from fastkl import _kernels
from fastkl.registry import OPERATIONS, Operation

operations = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)


def draw(operation: Operation, rows: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    if operation.domain == "logits":
        arrays = [rng.normal(size=(rows, size)).astype(np.float32)]
    else:
        arrays = [rng.uniform(0.01, 1, (rows, size)).astype(np.float32) for _ in operation.operands]
    return [*arrays, rng.integers(size, size=rows)] if "labels" in operation.operands else arrays


# Many callers -----------------------------------------------------------------------------------------------------


@operations
def test_many_python_threads_at_once(operation: Operation, rng: np.random.Generator) -> None:
    for rows, size in ((4000, 7), (300, 100), (2, 140_000)):
        batches = [draw(operation, rows, size, rng) for _ in range(4)]
        right = [oracle.evaluate(fk, operation, batch, n_threads=1).tobytes() for batch in batches]

        def call(i: int, batches: list = batches) -> bytes:
            return oracle.evaluate(fk, operation, batches[i % 4], n_threads=1 + i % 3).tobytes()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(48))) == right * 12


def test_the_gil_is_released(rng: np.random.Generator) -> None:
    """Another Python thread runs while a long call does."""
    x = rng.normal(size=(64, 300_000))
    counted, running = 0, threading.Event()

    def call() -> None:
        running.set()
        fk.softmax(x, out=x, n_threads=1)
        running.clear()

    caller = threading.Thread(target=call)
    caller.start()
    running.wait()
    while running.is_set():
        counted += 1
    caller.join()
    assert counted > 1000


def os_threads() -> set[str]:
    """The numbers of this process's threads. Those of a team whose Python thread has ended go only a little later."""
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list its threads")
def test_small_calls_stay_on_their_thread(rng: np.random.Generator) -> None:
    """A new Python thread has no OpenMP team yet: a call that opens a region shows as new threads."""
    if not fk.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    x, seen = rng.normal(size=(100, 10)), []

    def call() -> None:
        seen.append(os_threads())
        fk.logsumexp(x)
        seen.append(os_threads())
        fk.logsumexp(rng.normal(size=(40_000, 30)), n_threads=4)
        seen.append(os_threads())

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    before, after_small, after_parallel = seen
    assert not after_small - before
    assert len(after_parallel - before) == 3


def test_threadpoolctl_limits_are_asked_at_every_call() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if not fk.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    before = fk.build_info()["threads"]
    with threadpoolctl.threadpool_limits(limits=1):
        assert fk.build_info()["threads"] == 1
    assert fk.build_info()["threads"] == before


# Where the workers are ------------------------------------------------------------------------------------------------

# In a process of its own: the masks of its threads are set, and what the policy knows begins with nothing.
PLACES = """
import json, os, sys, time
import numpy as np, fastkl as fk

def switches(worker):
    with open(f"/proc/self/task/{worker}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary"))

def masks():
    return [sorted(os.sched_getaffinity(int(worker))) for worker in workers]

def wakes(x):
    # after a pause, in which the workers fall asleep
    time.sleep(0.1)
    before = [switches(worker) for worker in workers]
    fk.logsumexp(x)
    time.sleep(0.1)
    return [switches(worker) for worker in workers] != before

everywhere = os.sched_getaffinity(0)
first, last = min(everywhere), max(everywhere)
x = np.random.default_rng(1).standard_normal((2048, 8192), dtype=np.float32)
others = set(os.listdir("/proc/self/task"))
fk.logsumexp(x, n_threads=int(sys.argv[1]))
workers = sorted(set(os.listdir("/proc/self/task")) - others, key=int)
seen = {"all": sorted(everywhere), "workers": len(workers), "started": masks()}
for cpu in (first, last):
    os.sched_setaffinity(0, {cpu})
    fk.logsumexp(x, n_threads=int(sys.argv[1]))
    seen[f"off {cpu == last}"] = masks()
    seen[f"own {cpu == last}"] = sorted(os.sched_getaffinity(0))
if len(workers) > 1:
    fk.logsumexp(x, n_threads=2)
    seen["fewer"] = [sorted(os.sched_getaffinity(int(workers[0])))]     # the others are gone, or going
    print(json.dumps(seen))
    raise SystemExit
fk.set_num_threads(2)
fk.logsumexp(x, n_threads=1)
seen["long"] = wakes(x)
seen["short"] = wakes(x[:31])
os.sched_setaffinity(0, {first})
seen["moved"] = wakes(x[:1024])
seen["off where it moved"] = masks()
for worker in workers:
    os.sched_setaffinity(int(worker), {first, last})
os.sched_setaffinity(0, {last})
fk.logsumexp(x, n_threads=2)
seen["given"] = masks()
print(json.dumps(seen))
"""

several_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs that can be chosen"
)


@functools.cache
def places(threads: int) -> dict[str, Any]:
    if not fk.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    told = ("OMP_", "GOMP_", "FASTKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    command = [sys.executable, "-c", PLACES, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@several_cpus
def test_workers_keep_off_the_cpu_of_their_caller() -> None:
    """Else one is woken there and waits for the caller, which waits for it; the caller itself may go where it likes."""
    seen = places(2)
    first, last = seen["all"][0], seen["all"][-1]
    assert seen["workers"] == 1
    assert len(seen["started"][0]) == len(seen["all"]) - 1
    assert seen["off False"] == [[cpu for cpu in seen["all"] if cpu != first]]
    assert seen["off True"] == [[cpu for cpu in seen["all"] if cpu != last]]
    assert seen["own False"] == [first]
    assert seen["own True"] == [last]


@several_cpus
def test_workers_keep_the_cpus_that_someone_else_gave_them() -> None:
    seen = places(2)
    assert seen["given"] == [[seen["all"][0]]]


@several_cpus
def test_workers_that_are_more_than_the_other_cpus_use_all() -> None:
    seen = places(len(os.sched_getaffinity(0)) + 1)
    assert [*seen["started"], *seen["off False"], *seen["off True"]] == 3 * seen["workers"] * [seen["all"]]
    assert seen["fewer"] == [seen["all"][:-1]]


@several_cpus
def test_which_calls_wake_the_workers() -> None:
    """A call made now and then does where it is long, also from another CPU than before: they keep off that, then."""
    seen = places(2)
    assert seen["long"]
    assert not seen["short"]
    assert seen["moved"]
    assert seen["off where it moved"] == [seen["all"][1:]]


# Forks ------------------------------------------------------------------------------------------------------------


def passes_in_a_child(check: Callable[[], bool]) -> None:
    """Fork; the child runs the check, and is killed if it takes more than 5 seconds."""
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads: that this is safe here is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)
        try:
            right = check()
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert status != signal.SIGALRM, "the child hung"
    assert os.waitstatus_to_exitcode(status) == 0


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
@operations
def test_fork_after_a_parallel_region(operation: Operation, rng: np.random.Generator) -> None:
    arrays = draw(operation, 3000, 300, rng)
    right = oracle.evaluate(fk, operation, arrays, n_threads=4).tobytes()
    for n_threads in (None, 1, 2, 4):
        passes_in_a_child(
            lambda n=n_threads: oracle.evaluate(fk, operation, arrays, n_threads=n).tobytes() == right
        )
    assert oracle.evaluate(fk, operation, arrays, n_threads=4).tobytes() == right


@fork
def test_fork_before_any_parallel_region() -> None:
    """In a fresh process: the parent has opened no region when it forks, the child and then the parent do."""
    program = """
import os, signal
import numpy as np, fastkl as fk
x = np.random.default_rng(1).normal(size=(3000, 300))
child = os.fork()
signal.alarm(20)
right = fk.logsumexp(x, n_threads=1).tobytes()
assert fk.logsumexp(x, n_threads=4).tobytes() == right
assert fk.logsumexp(x).tobytes() == right
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
grandchild = os.fork()
if grandchild == 0:
    signal.alarm(5)
    second = os.fork()
    assert fk.logsumexp(x, n_threads=4).tobytes() == right
    os._exit(0 if second == 0 else os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
print("done")
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


@fork
def test_fork_from_a_python_thread(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3000, 300))
    right = fk.softmax(x, n_threads=3).tobytes()
    failures = []

    def call() -> None:
        try:
            fk.softmax(x, n_threads=3)
            passes_in_a_child(lambda: fk.softmax(x, n_threads=3).tobytes() == right)
        except BaseException as error:
            failures.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert not failures


@fork
@operations
def test_fork_during_a_parallel_region(operation: Operation, rng: np.random.Generator) -> None:
    """The children come to be while another thread computes on three; they neither wait for it nor for its team."""
    arrays = draw(operation, 6000, 300, rng)
    right = oracle.evaluate(fk, operation, arrays, n_threads=1).tobytes()
    done, failures = threading.Event(), []

    def call() -> None:
        while not done.is_set():
            if oracle.evaluate(fk, operation, arrays, n_threads=3).tobytes() != right:
                failures.append("other bits")

    caller = threading.Thread(target=call)
    caller.start()
    try:
        for n_threads in (None, 1, 2, 3, None, 4):
            passes_in_a_child(
                lambda n=n_threads: (
                    _kernels.cpu.in_forked_child()
                    and fk.get_num_threads() == 1
                    and oracle.evaluate(fk, operation, arrays, n_threads=n).tobytes() == right
                )
            )
    finally:
        done.set()
        caller.join()
    assert not failures
    assert not _kernels.cpu.in_forked_child()


@fork
def test_fork_by_a_c_library(rng: np.random.Generator) -> None:
    """Python is not told of such a fork."""
    x = rng.normal(size=(3000, 300))
    right = fk.softmax(x, n_threads=3).tobytes()
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)
        os._exit(0 if fk.softmax(x, n_threads=3).tobytes() == right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@fork
def test_a_pool_of_forked_processes() -> None:
    """multiprocessing's, made after a parallel region and beside a thread that is in one."""
    program = """
import multiprocessing, signal, threading
import numpy as np, fastkl as fk

x = np.random.default_rng(1).normal(size=(3000, 300))
right = fk.logsumexp(x, n_threads=4).tobytes()

def call(n_threads):
    signal.alarm(5)
    return fk.logsumexp(x, n_threads=n_threads).tobytes() == right and fk.get_num_threads() == 1

done = threading.Event()
def keep_busy():
    while not done.is_set():
        fk.logsumexp(x, n_threads=3)
beside = threading.Thread(target=keep_busy)
beside.start()
try:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(all(pool.map_async(call, [None, 1, 2, 4] * 6).get(timeout=20)))
finally:
    done.set()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as pool:
        try:
            printed, _ = pool.communicate(timeout=30)
        finally:
            # A pool whose workers hang does not end by itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pool.pid, signal.SIGKILL)
    assert printed == "True\n"


# Flush-to-zero ----------------------------------------------------------------------------------------------------

FLUSH = 0x8040  # FTZ and DAZ


class ControlWord:
    """The SSE control word of the calling thread, read and set by four bytes of machine code."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.page.write(bytes.fromhex("0fae1fc3" + "0fae17c3"))  # stmxcsr [rdi]; ret; ldmxcsr [rdi]; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        prototype = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
        self.store, self.load = prototype(address), prototype(address + 4)

    def get(self) -> int:
        word = ctypes.c_uint32()
        self.store(ctypes.byref(word))
        return word.value

    def set(self, value: int) -> None:
        self.load(ctypes.byref(ctypes.c_uint32(value)))

    @contextlib.contextmanager
    def flushing(self) -> Iterator[None]:
        before = self.get()
        self.set(before | FLUSH)
        try:
            yield
        finally:
            self.set(before)


@pytest.fixture(scope="module")
def control_word() -> ControlWord:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the control word is that of x86-64")
    try:
        return ControlWord()
    except OSError as refusal:
        pytest.skip(f"this system lets no program write machine code: {refusal}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@operations
def test_flush_to_zero_changes_nothing(
    operation: Operation, dtype: str, control_word: ControlWord, tier: str, rng: np.random.Generator
) -> None:
    """Set by another library in the calling thread, and inherited by the workers of a team that is made then."""
    batches = []
    for size in (5, 64, 300, 5000):
        arrays = [v.astype(dtype) if v.ndim == 2 else v for v in draw(operation, 40, size, rng)]
        least = np.finfo(dtype).smallest_subnormal
        for v in arrays:
            if v.ndim == 2:
                few = rng.random(v.shape) < 0.3
                v[few] = rng.integers(1, 1000, few.sum()) * least
                v[::3] = rng.integers(1, 1000, v[::3].shape) * least
        batches.append(arrays)
    right = [oracle.evaluate(fk, operation, arrays, n_threads=1).tobytes() for arrays in batches]
    if operation.function == "softmax":
        spread = np.linspace(-110 if dtype == "float32" else -760, 0, 300).astype(dtype)
        batches.append([np.resize(spread, (40, 300))])
        right.append(fk.softmax(batches[-1][0], n_threads=1).tobytes())
    seen: list[object] = []

    def call() -> None:
        with control_word.flushing():
            small = np.full(8, np.finfo(dtype).tiny, dtype)
            seen.append((small / 4 == 0).all())
            word = control_word.get()
            for n_threads in (1, 4):
                seen.extend(
                    oracle.evaluate(fk, operation, arrays, n_threads=n_threads).tobytes() == r
                    for arrays, r in zip(batches, right, strict=True)
                )
            seen.append(control_word.get() & 0xFFC0 == word & 0xFFC0)

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert seen == [True] * (2 * len(batches) + 2)


class Team(ControlWord):
    """The control words of the calling thread and of its OpenMP workers, through libgomp's own entry."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        with open("/proc/self/maps") as maps:
            library = next(line.split()[-1] for line in maps if "libgomp" in line)
        self.gomp_parallel = ctypes.CDLL(library).GOMP_parallel
        self.threads = threads
        # stmxcsr [rsp-4]; mov eax, [rsp-4]; lock or [rdi], eax; lock and [rdi+4], eax; lock inc dword [rdi+8]; ret
        self.page.write(bytes.fromhex("0fae5c24fc 8b4424fc f00907 f0214704 f0ff4708 c3"))
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.page))

    def run(self, offset: int, words: ctypes.Array) -> None:
        self.gomp_parallel(ctypes.c_void_p(self.start + offset), ctypes.byref(words), self.threads, 0)

    def set_all(self, value: int) -> None:
        self.run(4, (ctypes.c_uint32 * 1)(value))

    def modes(self) -> tuple[int, int, int]:
        """Bits set in any word, bits set in all (both without the sticky flags), and how many words there are."""
        words = (ctypes.c_uint32 * 3)(0, 0xFFFFFFFF, 0)
        self.run(8, words)
        return words[0] & 0xFFC0, words[1] & 0xFFC0, words[2]


@operations
def test_each_worker_gets_back_its_mode(
    operation: Operation, control_word: ControlWord, rng: np.random.Generator
) -> None:
    """Whatever another library has set in the caller and in its team's workers: tiles, whole rows and split ones."""
    if not fk.build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    batches = [draw(operation, rows, size, rng) for rows, size in ((4000, 7), (900, 300), (60, 5000), (2, 140_000))]
    right = [oracle.evaluate(fk, operation, arrays, n_threads=1).tobytes() for arrays in batches]
    seen = []

    def call() -> None:
        team = Team(3)
        usual = control_word.get() & 0xFFC0
        for mode in (usual, usual | FLUSH, usual | FLUSH | 0x6000, usual | 0x2000):  # and other rounding directions
            team.set_all(mode)
            seen.append(team.modes() == (mode, mode, 3))
            for arrays, bits in zip(batches, right, strict=True):
                seen.append(oracle.evaluate(fk, operation, arrays, n_threads=3).tobytes() == bits)
                seen.append(team.modes() == (mode, mode, 3))
        team.set_all(usual)

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert seen == [True] * (4 + 4 * 2 * len(batches))


def test_no_call_leaves_flush_to_zero_behind(control_word: ControlWord, rng: np.random.Generator) -> None:
    before = control_word.get() & 0xFFC0
    for operation in OPERATIONS:
        oracle.evaluate(fk, operation, draw(operation, 300, 300, rng), n_threads=3)
        assert control_word.get() & 0xFFC0 == before
    assert np.log(np.float64(5e-324)) == pytest.approx(-744.44, abs=0.01)


# The build and its tiers ------------------------------------------------------------------------------------------


def test_build_info() -> None:
    info = fk.build_info()
    assert set(info) == {"version", "tier", "tiers", "compiler", "openmp", "threads"}
    assert info["tier"] in info["tiers"]
    assert list(info["tiers"]) == list(_kernels.supported())
    assert set(info["tiers"]) <= set(_kernels.TIERS)
    assert "base" in info["tiers"]
    assert re.search(r"gcc|clang", info["compiler"])
    assert info["openmp"] in (True, False)
    assert isinstance(info["threads"], int)
    assert 1 <= info["threads"] <= len(os.sched_getaffinity(0))
    try:
        assert info["version"] == importlib.metadata.version("fastkl")
    except importlib.metadata.PackageNotFoundError:
        assert info["version"] == "unknown"  # built in place, not installed


def imported_with(tier: str) -> subprocess.CompletedProcess[str]:
    program = "import fastkl as fk; print(fk.build_info()['tier'], fk.logsumexp([0.0, 0.0]))"
    environment = {**os.environ, "FASTKL_TIER": tier}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@pytest.mark.parametrize("tier", _kernels.TIERS)
def test_forced_tier(tier: str) -> None:
    done = imported_with(tier)
    if tier in _kernels.supported():
        assert done.stdout.startswith(f"{tier} 0.693147"), done.stderr
    else:
        assert "ImportError" in done.stderr
        assert all(name in done.stderr for name in _kernels.supported())


@pytest.mark.parametrize("tier", ["avx1024", "AVX2", "cpu"])
def test_unknown_tier(tier: str) -> None:
    done = imported_with(tier)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert tier in last
    assert all(name in last for name in _kernels.supported())
