"""The manifest: what became of each shard, so that a run can go on where another ended.

A JSON file beside the results: version and parameters, and for each shard its inputs and its result, by size, time and
checksum, with its totals (packed); or the reason why it was set aside. It is written anew, whole, as shards end.

The checksum of a file is the XXH3-64 of the XXH3-64 digests (big-endian) of its MiBs. XXH3 runs at the speed of memory,
so it costs a fraction of the scoring; in MiBs it can be taken by several threads and of the very bytes that a chunk's
scores are made of, while they are in cache. The file need not be read twice.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastkl.batch.readers import Array, InputError, MappedFile
from fastkl.batch.writers import replacing

BLOCK = 2**20


class Checksum:
    """The checksum of a file, block by block in any order; what nobody took is read at the end."""

    def __init__(self, path: str) -> None:
        try:
            import xxhash
        except ImportError:
            raise InputError("a manifest's checksums need xxhash: pip install 'fastkl[score]'") from None
        self._xxh3: Any = xxhash.xxh3_64_digest
        self.path = path
        self.stat = os.stat(path)
        self._digests: dict[int, bytes] = {}

    def take(self, file: MappedFile, array: Array) -> None:
        """Take the blocks that begin within some rows of a mapped array."""
        place = file.place(array) if array.flags.c_contiguous else None
        if place is not None:
            first, last = place
            for at in range(-(-first // BLOCK) * BLOCK, last, BLOCK):
                self._digests[at] = self._xxh3(file.bytes[at : at + BLOCK])

    def describe(self) -> dict[str, Any]:
        """Return the file's size, time and checksum; raise if it changed since this was made."""
        with open(self.path, "rb", buffering=0) as file:
            for at in range(0, self.stat.st_size, BLOCK):
                if at not in self._digests:
                    self._digests[at] = self._xxh3(os.pread(file.fileno(), BLOCK, at))
        if same_time(self.stat, now := os.stat(self.path)) and self.stat.st_size == now.st_size:
            whole = self._xxh3(b"".join(digest for _, digest in sorted(self._digests.items()))).hex()
            return {"path": self.path, "size": now.st_size, "mtime_ns": now.st_mtime_ns, "xxh3_mib": whole}
        raise InputError(f"{self.path}: the file was changed while it was being read")


def same_time(a: os.stat_result, b: os.stat_result) -> bool:
    """Whether a file was not written to in between."""
    return a.st_mtime_ns == b.st_mtime_ns


def unchanged(described: Mapping[str, Any], *, by_time: bool) -> bool:
    """Whether a file is still the one described. Its time is proof enough if asked so; else its checksum is taken."""
    try:
        now = os.stat(described["path"])
        if now.st_size != described["size"]:
            return False
        if by_time and now.st_mtime_ns == described["mtime_ns"]:
            return True
        return bool(Checksum(described["path"]).describe()["xxh3_mib"] == described["xxh3_mib"])
    except (OSError, InputError, KeyError, TypeError):
        return False


class Manifest:
    """The manifest of a run, in memory and in its file."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.head = dict(head)
        self.shards: dict[str, dict[str, Any]] = {}
        self._written = self._took = 0.0
        self._saved: dict[str, dict[str, Any]] | None = None

    def load(self) -> dict[str, dict[str, Any]]:
        """Return the shards of an earlier run of the same version and parameters; of another none is of use."""
        try:
            earlier = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: not a readable manifest ({error})") from error
        try:
            shards = earlier.pop("shards")
            if earlier == json.loads(json.dumps(self.head)):
                return {name: entry for name, entry in shards.items() if isinstance(entry, dict)}
        except (AttributeError, KeyError) as error:
            raise InputError(f"{self.path}: not a manifest of fastkl") from error
        return {}

    def put(self, name: str, entry: dict[str, Any]) -> None:
        """Note what became of a shard. The file follows soon: writing it takes a twentieth of the time at most."""
        self.shards[name] = entry
        if time.monotonic() - self._written > max(0.5, 20 * self._took):
            self.save()

    def save(self) -> None:
        """Write the file, unless it is as it should be."""
        if self._saved == self.shards:
            return
        began = time.monotonic()
        text = json.dumps({**self.head, "shards": dict(sorted(self.shards.items()))}, indent=1)
        with replacing(self.path) as file:
            file.write(text.encode())
        self._saved = dict(self.shards)
        self._written = time.monotonic()
        self._took = self._written - began


def packed(text: str) -> str:
    """Return a shard's totals as the manifest holds them: they are bins for the most part, which pack well."""
    return base64.b85encode(zlib.compress(text.encode())).decode()


def unpacked(text: str) -> str:
    """Return what was `packed`; ValueError if it was not."""
    try:
        return zlib.decompress(base64.b85decode(text)).decode()
    except zlib.error as error:
        raise ValueError(f"not packed totals ({error})") from error


def verified(entry: Mapping[str, Any], inputs: list[str], out: str) -> bool:
    """Whether a shard is done: same inputs as then, and the result there as it was written."""
    try:
        return (
            [described["path"] for described in entry["inputs"]] == inputs
            and entry["output"]["path"] == out
            and unchanged(entry["output"], by_time=False)
            and all(unchanged(described, by_time=True) for described in entry["inputs"])
        )
    except (KeyError, TypeError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run away from a folder of results."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another run is writing there") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
