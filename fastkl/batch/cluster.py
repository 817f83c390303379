"""Shards on a cluster: what runs them where a `dask.distributed` scheduler is, one task for each.

The workers read and write the files themselves: every path must lead to the same file on each of them, on a shared
file system. Results, manifest and totals are those of a run in this process, to the bit. A shard whose worker is lost
goes to another; should the first still be alive somewhere, both write the same bytes, each in one step.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import fastkl as fk
from fastkl.batch.readers import InputError, Operand
from fastkl.batch.scoring import Advance, Parameters, Scored, Stopped, score_shard
from fastkl.batch.shards import Shard

#: Seconds to wait for the scheduler.
PATIENCE = 10.0


class Unlike(Exception):
    """A worker's fastkl would not give the bits of this one."""


def build() -> tuple[str, str]:
    """Return what decides on the bits of a result: the version, and whether the CPU has fused multiply-add."""
    return fk.__version__, "base" if fk.build_info()["tier"] == "base" else "fma"


def score_there(shard: Shard, parameters: Parameters, classes: int | None, wanted: tuple[str, str]) -> Any:
    """Score a shard on a worker, unless the run is over before that."""
    from distributed import get_worker

    if build() != wanted:
        raise Unlike(f"has fastkl {' '.join(build())}, but this run is of {' '.join(wanted)}")
    worker: Any = get_worker()
    key = worker.get_current_task()

    def still_wanted(rows: int, size: int) -> None:
        # The client has left, or was interrupted: a result written now might replace one of a later run.
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise Stopped

    try:
        return score_shard(shard, parameters, classes=classes, advance=still_wanted)
    except InputError as error:
        return error


class Cluster:
    """A runner for `score_files`: each shard is a task on the workers of a scheduler.

    Parameters
    ----------
    address
        The scheduler's, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    InputError
        If Dask is not installed, the scheduler does not answer, or a worker's fastkl is another one.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise InputError("a cluster needs Dask: pip install 'fastkl[dask]'") from None
        self._distributed: Any = distributed
        self.address = address

    def __call__(
        self, shards: Sequence[Shard], parameters: Parameters, classes: int | None, advance: Advance | None
    ) -> Iterator[tuple[Shard, Scored | InputError]]:
        """Yield each shard with what it came to, as they end; a task uses one thread unless told otherwise."""
        parameters = replace(parameters, threads=parameters.threads or 1)
        self._knock()
        with self._distributed.Client(self.address, timeout=PATIENCE, set_as_default=False) as client:
            left = iter(shards)
            under_way: dict[Any, Shard] = {}

            def submit(count: int) -> list[Any]:
                started = []
                for shard in islice(left, count):
                    task = client.submit(score_there, absolute(shard), parameters, classes, build(), pure=False)
                    under_way[task] = shard
                    started.append(task)
                return started

            # Enough for every thread to have its next shard at hand, and no more: a run may have a million of them.
            first = submit(max(8, 4 * sum(client.nthreads().values())))
            ended = self._distributed.as_completed(first, loop=client.loop)
            for task in ended:
                shard = under_way.pop(task)
                outcome = self._outcome(task, shard)
                task.release()
                for one in submit(1):
                    ended.add(one)
                if advance is not None and isinstance(outcome, Scored):
                    advance(outcome.rows, sum(os.path.getsize(path) for path in shard.inputs))
                yield shard, outcome

    def _knock(self) -> None:
        """Raise if there is no scheduler: a client that finds none would go on trying, and complain at exit."""

        async def connect() -> None:
            comm = await self._distributed.comm.connect(self.address, timeout=PATIENCE)
            await comm.close()

        try:
            with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop already
                pool.submit(asyncio.run, connect()).result()
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"{self.address}: no scheduler of dask.distributed answers ({error})") from error

    def _outcome(self, task: Any, shard: Shard) -> Scored | InputError:
        error = task.exception()
        if error is None:
            return as_named(task.result(), shard)
        if isinstance(error, self._distributed.KilledWorker):
            return InputError(f"{shard.operands['logits'].path}: each worker that took it was lost")
        if isinstance(error, Unlike):
            raise InputError(f"{self.address}: a worker {error}") from error
        if isinstance(error, ModuleNotFoundError):
            raise InputError(f"{self.address}: a worker cannot import what this run needs ({error})") from error
        raise error


def absolute(shard: Shard) -> Shard:
    """Return a shard with paths that do not depend on the folder that a process is in."""
    operands = {role: Operand(os.path.abspath(one.path), one.key) for role, one in shard.operands.items()}
    return replace(shard, operands=operands, out=None if shard.out is None else os.path.abspath(shard.out))


def as_named(outcome: Scored | InputError, shard: Shard) -> Scored | InputError:
    """Return an outcome with the paths as they were given, which are what the manifest and the messages have."""
    given = {os.path.abspath(path): path for path in [*shard.inputs, *([shard.out] if shard.out else [])]}
    if isinstance(outcome, InputError):
        text = str(outcome)
        for path, name in given.items():
            text = text.replace(path, name)
        return InputError(text)
    for described in [*outcome.entry["inputs"], *([outcome.entry["output"]] if "output" in outcome.entry else [])]:
        described["path"] = given[described["path"]]
    return outcome
