"""How many threads a call gets: what is set, what the machine and its cgroups allow, and what pays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fastkl as fk
from fastkl import _threads
from fastkl._kernels import cpu

openmp = pytest.mark.skipif(not cpu.openmp, reason="built without OpenMP")
lists_threads = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list its threads")


@pytest.fixture(autouse=True)
def no_number_set() -> Iterator[None]:
    fk.set_num_threads(None)
    yield
    fk.set_num_threads(None)


def printed(program: str, **environment: str) -> str:
    """What a fresh process prints; where it fails, the last line of its stderr."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FASTKL_NUM_THREADS", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", f"import os, fastkl as fk\n{program}"],
        capture_output=True, text=True, env=kept | environment, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


# What is set ------------------------------------------------------------------------------------------------------


@openmp
def test_the_number_set_is_the_number_got() -> None:
    by_itself = fk.get_num_threads()
    assert 1 <= by_itself <= len(os.sched_getaffinity(0))
    for n in (1, 2, 3, np.int64(5)):
        fk.set_num_threads(n)
        assert fk.get_num_threads() == fk.build_info()["threads"] == n
        assert type(fk.get_num_threads()) is int
    fk.set_num_threads(None)
    assert fk.get_num_threads() == by_itself


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-3, ValueError), (True, TypeError), (2.0, TypeError), ("2", TypeError)]
)
def test_a_number_that_is_none_changes_nothing(n: object, error: type[Exception]) -> None:
    fk.set_num_threads(2)
    before = fk.get_num_threads()
    with pytest.raises(error, match=r"set_num_threads takes None or a positive int, not"):
        fk.set_num_threads(n)  # type: ignore[arg-type]
    assert fk.get_num_threads() == before


@openmp
def test_the_environment() -> None:
    show = "print(fk.get_num_threads())"
    assert printed(show, FASTKL_NUM_THREADS="3") == "3"
    assert printed(show, FASTKL_NUM_THREADS="3", OMP_NUM_THREADS="1") == "3"
    assert printed(show, OMP_NUM_THREADS="1") == "1"
    assert printed(show, FASTKL_NUM_THREADS="") == printed(show)
    assert printed(f"fk.set_num_threads(2); {show}", FASTKL_NUM_THREADS="3") == "2"
    assert printed(f"fk.set_num_threads(2); fk.set_num_threads(None); {show}", FASTKL_NUM_THREADS="3") == "3"


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "+2", "2 3", "²"])
def test_a_bad_environment_is_an_error_at_import(text: str) -> None:
    assert printed("", FASTKL_NUM_THREADS=text) == f"ImportError: FASTKL_NUM_THREADS takes a positive int, not {text!r}"


@openmp
def test_affinity_is_asked_at_every_call() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one CPU")
    program = """
cpus = os.sched_getaffinity(0)
before = fk.get_num_threads()
os.sched_setaffinity(0, {min(cpus)})
narrow = fk.get_num_threads()
os.sched_setaffinity(0, cpus)
print(before > narrow == 1, fk.get_num_threads() == before)
"""
    assert printed(program) == "True True"


@openmp
def test_threadpoolctl_stands_above_the_number_set() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if cpu.max_threads() < 2:
        pytest.skip("OpenMP's limit is one thread already")
    fk.set_num_threads(5)
    with threadpoolctl.threadpool_limits(limits=1):
        assert fk.get_num_threads() == 1
    assert fk.get_num_threads() == 5


# cgroups ----------------------------------------------------------------------------------------------------------

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = """\
23 28 0:21 / /proc rw,nosuid - proc proc rw
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"""


def quota(root: Path, mounts: str, member: str, **files: str) -> int:
    """Lay out a file system and read the quota from it; `files`: the contents, by path below /sys/fs/cgroup."""
    for path, text in {
        "proc/self/mountinfo": f"{OTHERS}\n{mounts}\n",
        "proc/self/cgroup": f"7:memory:/elsewhere\n{member}\n",
        **{f"sys/fs/cgroup/{path}": f"{text}\n" for path, text in files.items()},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return _threads.cpu_quota(str(root))


@pytest.mark.parametrize(
    ("leaf", "above", "cpus"),
    [
        ("max 100000", "max 100000", 1024),
        ("200000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("800000 100000", "300000 100000", 3),
        ("150000 100000", "300000 100000", 2),
        ("1000 100000", "max 100000", 1),
        ("50000 10000", "max 100000", 5),
    ],
)
def test_quota_of_version_2(leaf: str, above: str, cpus: int, tmp_path: Path) -> None:
    """The least of all levels, rounded up."""
    files = {"a.slice/cpu.max": above, "a.slice/b.scope/cpu.max": leaf, "a.slice/other/cpu.max": "1000 100000"}
    assert quota(tmp_path, V2, "0::/a.slice/b.scope", **files) == cpus


@pytest.mark.parametrize(
    ("leaf", "above", "cpus"), [(-1, -1, 1024), (250000, -1, 3), (-1, 90000, 1), (400000, 200000, 2)]
)
def test_quota_of_version_1(leaf: int, above: int, cpus: int, tmp_path: Path) -> None:
    files = {}
    for level, number in (("docker", above), ("docker/c1", leaf)):
        files[f"cpu,cpuacct/{level}/cpu.cfs_quota_us"] = str(number)
        files[f"cpu,cpuacct/{level}/cpu.cfs_period_us"] = "100000"
    assert quota(tmp_path, V1, "4:cpu,cpuacct:/docker/c1\n3:cpuset:/", **files) == cpus


def test_quota_inside_a_container(tmp_path: Path) -> None:
    """Without a namespace of its own the member's path is the host's, and the mount shows the container's group."""
    mounts = V1.replace("0:27 / ", "0:27 /docker/c1 ")
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert quota(tmp_path / "its own", mounts, "4:cpu,cpuacct:/docker/c1", **files) == 2
    assert quota(tmp_path / "another", mounts, "4:cpu,cpuacct:/system.slice", **files) == 2
    files |= {"cpu,cpuacct/inner/cpu.cfs_quota_us": "100000", "cpu,cpuacct/inner/cpu.cfs_period_us": "100000"}
    assert quota(tmp_path / "below", mounts, "4:cpu,cpuacct:/docker/c1/inner", **files) == 1


def test_quota_of_both_versions(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "unified/cpu.max": "300000 100000"}
    files["cpu,cpuacct/cpu.cfs_period_us"] = "100000"
    mounts = f"{V1}\n{V2.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified')}"
    assert quota(tmp_path, mounts, "4:cpu,cpuacct:/\n0::/", **files) == 3


def test_quota_where_the_mount_has_a_blank(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/a\\040b")
    assert quota(tmp_path, mounts, "0::/", **{"a b/cpu.max": "100000 100000"}) == 1


def test_no_quota_to_be_read(tmp_path: Path) -> None:
    assert _threads.cpu_quota(str(tmp_path / "nothing")) == 1024
    assert quota(tmp_path / "no files", V2, "0::/") == 1024
    assert quota(tmp_path / "not understood", V2, "0::/", **{"cpu.max": "a lot"}) == 1024
    assert 1 <= _threads.cpu_quota() <= 1024


@openmp
def test_the_quota_is_a_limit_and_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, quotas = 1000.0, iter([1, 2])
    monkeypatch.setattr(_threads, "cpu_quota", lambda: next(quotas))
    monkeypatch.setattr(_threads, "_quota", (7, now + 0.5))
    monkeypatch.setattr(_threads.time, "monotonic", lambda: now)
    most = min(cpu.max_threads(), len(os.sched_getaffinity(0)))
    assert fk.get_num_threads() == min(7, most)
    now = 1001.0
    assert fk.get_num_threads() == 1
    now = 1001.9
    assert fk.get_num_threads() == 1
    fk.set_num_threads(3)
    assert fk.get_num_threads() == 3  # what the user says stands above the quota
    fk.set_num_threads(None)
    now = 1002.1
    assert fk.get_num_threads() == min(2, most)


# What pays --------------------------------------------------------------------------------------------------------


def in_a_new_thread(call: Callable[[], None]) -> None:
    """Run in a Python thread of its own, which has no OpenMP team and no past calls; raise what it raises."""
    failures = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    caller = threading.Thread(target=guarded)
    caller.start()
    caller.join()
    if failures:
        raise failures[0]


def os_threads() -> set[str]:
    """The numbers of this process's threads. Those of a team whose Python thread has ended go only a little later."""
    return set(os.listdir("/proc/self/task"))


@openmp
@lists_threads
def test_calls_now_and_then_stay_serial(rng: np.random.Generator) -> None:
    """A little over 1 MiB is 0.2 ms at most: a team is not worth making for it, whatever the number set."""
    fk.set_num_threads(3)
    x = rng.normal(size=(280, 512))

    def call() -> None:
        before = os_threads()
        for _ in range(10):
            fk.logsumexp(x)
            time.sleep(0.005)
        assert not os_threads() - before

    in_a_new_thread(call)


@openmp
@lists_threads
def test_a_stream_of_calls_goes_parallel(rng: np.random.Generator) -> None:
    fk.set_num_threads(3)
    x = rng.normal(size=(512, 512))

    def call() -> None:
        before, until = os_threads(), time.monotonic() + 30
        right = fk.logsumexp(x).tobytes()
        while not os_threads() - before and time.monotonic() < until:
            for _ in range(50):
                assert fk.logsumexp(x).tobytes() == right
        assert len(os_threads() - before) == 2

    in_a_new_thread(call)


@openmp
@lists_threads
@pytest.mark.parametrize("limit", ["set", "quota"])
def test_no_stream_goes_beyond_the_limit(limit: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit == "set":
        fk.set_num_threads(1)
    else:
        monkeypatch.setattr(_threads, "cpu_quota", lambda: 1)
        monkeypatch.setattr(_threads, "_quota", (1, 0.0))
    x = rng.normal(size=(512, 512))

    def call() -> None:
        before = os_threads()
        for _ in range(100):
            fk.logsumexp(x)
        assert not os_threads() - before

    in_a_new_thread(call)


@openmp
@lists_threads
def test_a_long_call_goes_parallel_by_itself(rng: np.random.Generator) -> None:
    """Once it is known how long such a call takes, the first of a thread need not be the start of a stream."""
    fk.set_num_threads(2)
    x = rng.normal(size=1000)
    x = np.lib.stride_tricks.as_strided(x, (150_000, 1000), (0, 8))  # 1.2 GB read, 8 kB held
    seen = []

    def call() -> None:
        before = os_threads()
        fk.logsumexp(x)
        seen.append(len(os_threads() - before))

    in_a_new_thread(call)
    in_a_new_thread(call)
    assert seen[-1] == 1


@openmp
def test_threads_that_lose_are_left_alone() -> None:
    """On one core a second thread costs ten times what it gains: a stream gives it up. Processor time, spinning too."""
    program = """
import time
import numpy as np
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
fk.set_num_threads(2)
x = np.random.default_rng(1).normal(size=(1024, 512))
def spent(n_threads):
    start = time.process_time()
    for _ in range(500):
        fk.logsumexp(x, n_threads=n_threads)
    return time.process_time() - start
serial = spent(1)
print(spent(None) < 2 * serial)
"""
    assert printed(program) == "True"


# Many callers -----------------------------------------------------------------------------------------------------


@openmp
def test_callers_share_the_threads(rng: np.random.Generator) -> None:
    """Eight callers that ask for four threads each take what is left: never more than four and one each."""
    x = rng.normal(size=(3000, 300))
    right = fk.logsumexp(x, n_threads=1).tobytes()
    room = max(4, len(os.sched_getaffinity(0))) + 7
    done = threading.Event()
    seen = []

    def watch() -> None:
        while not done.is_set():
            seen.append(cpu.threads_in_use())
            time.sleep(1e-4)

    def call() -> None:
        for _ in range(40):
            assert fk.logsumexp(x, n_threads=4).tobytes() == right

    watcher = threading.Thread(target=watch)
    callers = [threading.Thread(target=in_a_new_thread, args=(call,)) for _ in range(8)]
    for thread in [watcher, *callers]:
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    watcher.join()
    assert 4 <= max(seen) <= room
    assert cpu.threads_in_use() == 0


def test_threads_are_given_back_after_an_error(rng: np.random.Generator) -> None:
    x, labels = rng.normal(size=(5000, 10)), rng.integers(10, size=5000)
    labels[4321] = 10
    for n_threads in (None, 1, 2):
        with pytest.raises(IndexError, match="label 10 in row 4321"):
            fk.softmax_cross_entropy(x, labels, n_threads=n_threads)
        assert cpu.threads_in_use() == 0
