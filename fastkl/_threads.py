"""How many threads a call may have.

Whether it takes them is decided in _kernels/threads.h, by its work and by what the calls beside it leave;
docs/threads.md has the measurements.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import re
import time

from ._kernels import cpu

# Below so many bytes read (0.1 ms of work) a call stays on its own thread: FK_LARGE in _kernels/threads.h.
PARALLEL_BYTES = 1 << 20

# More threads than this help no call; libgomp would end the process if it could not make them.
_MOST = 1024

# For so many seconds a cgroup's quota counts as known: reading it takes as long as a small call.
_QUOTA_LIFE = 1.0


def set_num_threads(n: int | None) -> None:
    """Set how many threads fastkl uses where a call does not say ``n_threads``, in the whole process.

    The threads count for all calls together: one that is made beside others takes what they leave, at least one. A call
    takes fewer where more would not pay. Results do not depend on it: the bits are the same for any number.

    Parameters
    ----------
    n : int or None
        A positive number, which stands above ``FASTKL_NUM_THREADS`` and above what the machine has; None goes back to
        ``FASTKL_NUM_THREADS`` or, where that is not set, to the least of OpenMP's limit, the CPU affinity and the
        cgroup's quota, which are asked at every call. A lower limit that threadpoolctl sets while the process runs is
        obeyed in any case, and a forked child computes on one thread.

    Raises
    ------
    TypeError
        For what is not an int.
    ValueError
        For an int below 1.

    See Also
    --------
    get_num_threads

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.set_num_threads(1)
    >>> fk.get_num_threads()
    1
    >>> fk.set_num_threads(None)
    """
    global _chosen
    _chosen = _FROM_ENVIRONMENT if n is None else _positive(n, "set_num_threads")


def get_num_threads() -> int:
    """How many threads a call gets at most, now, where it does not say ``n_threads``.

    Returns
    -------
    int
        At least 1; see `set_num_threads` for where it comes from.

    Examples
    --------
    >>> import fastkl as fk
    >>> fk.get_num_threads() >= 1
    True
    """
    if not cpu.openmp or cpu.in_forked_child():
        return 1
    limit = cpu.max_threads()
    if _chosen is not None:
        return min(_chosen, limit, _MOST) if limit < _LIMIT_AT_IMPORT else min(_chosen, _MOST)
    if hasattr(os, "sched_getaffinity"):
        limit = min(limit, len(os.sched_getaffinity(0)))
    return max(1, min(limit, _quota_now(), _MOST))


def threads_for(n_threads: int | None, nbytes: int) -> int:
    """The most threads for a call that reads so many bytes; asked anew at every call."""
    if n_threads is None:
        return get_num_threads() if nbytes >= PARALLEL_BYTES and cpu.may_pay(nbytes) else 1
    return min(_positive(n_threads, "n_threads"), _MOST) if cpu.openmp else 1


def _positive(value: int, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} takes None or a positive int, not a bool")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} takes None or a positive int, not {type(value).__name__}") from None
    if count < 1:
        raise ValueError(f"{name} takes None or a positive int, not {count}")
    return count


def _from_environment() -> int | None:
    text = os.environ.get("FASTKL_NUM_THREADS", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ImportError(f"FASTKL_NUM_THREADS takes a positive int, not {text!r}")
    return int(text)


# The cgroup's quota -----------------------------------------------------------------------------------------------


def _quota_now() -> int:
    """The quota as last read, within _QUOTA_LIFE."""
    global _quota
    quota, until = _quota
    now = time.monotonic()
    if now >= until:
        quota = cpu_quota()
        _quota = quota, now + _QUOTA_LIFE
    return quota


def cpu_quota(root: str = "/") -> int:
    """The CPUs that this process's cgroups grant it, rounded up, at least 1; _MOST where none of them has a quota.

    A quota counts for everything below its cgroup, so the least of all levels is taken: ``cpu.max`` (version 2) or
    ``cpu.cfs_quota_us`` over ``cpu.cfs_period_us`` (version 1). `root` is the root of the file system.
    """
    quota = float(_MOST)
    try:
        member = _read(root, "proc/self/cgroup").splitlines()
        for version, top, mount in _cgroup_mounts(root):
            for line in member:
                number, controllers, path = line.split(":", 2)
                if number == "0" if version == 2 else "cpu" in controllers.split(","):
                    quota = min(quota, *(_limit_of(level, version) for level in _levels(mount, top, path)))
    except (OSError, ValueError):
        pass  # no Linux, no /proc, or a format of the future
    return max(1, math.ceil(quota))


def _read(*path: str) -> str:
    with open(os.path.join(*path)) as file:
        return file.read()


@functools.cache
def _cgroup_mounts(root: str) -> list[tuple[int, str, str]]:
    """Where the cgroup file systems with a CPU controller are: version, the cgroup at the top, where it is mounted."""
    mounts = []
    for line in _read(root, "proc/self/mountinfo").splitlines():
        place, _, source = line.partition(" - ")
        kind, _, options = source.partition(" ")
        version = {"cgroup2": 2, "cgroup": 1}.get(kind)
        if version == 2 or (version == 1 and "cpu" in options.split()[-1].split(",")):
            # A blank in a path is written \040.
            top, mount = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), part) for part in place.split()[3:5])
            mounts.append((version, top, os.path.join(root, mount.lstrip("/"))))
    return mounts


def _levels(mount: str, top: str, path: str) -> list[str]:
    """The directories of a cgroup and of those above it, as far as they can be seen."""
    below = os.path.relpath(path, top)
    if below == "." or below.startswith(".."):
        return [mount]  # a container sees its own cgroup where it is mounted
    names = below.split("/")
    return [os.path.join(mount, *names[:depth]) for depth in range(len(names) + 1)]


def _limit_of(level: str, version: int) -> float:
    """The CPUs that one cgroup grants."""
    try:
        if version == 2:
            quota, period = _read(level, "cpu.max").split()
        else:
            quota, period = (_read(level, f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    except OSError:
        return math.inf  # the top has no such file
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


_chosen = _FROM_ENVIRONMENT = _from_environment()
# A number that the user chose stands above the limit that was there when fastkl came, such as OMP_NUM_THREADS, but not
# above one set later, by threadpoolctl.
_LIMIT_AT_IMPORT = cpu.max_threads()
_quota = (_MOST, -math.inf)
