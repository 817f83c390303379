"""What `fastkl score` does with a large file: rate beside the same work in memory, peak memory, and pandas + SciPy.

    python bench/scoring.py [--gb 4] [--parquet-gb 1] [--classes 1000] [--threads N] [--repeats 5] [--folder DIR]

Writes random logits as .npy and as Parquet into a temporary folder, which it removes; the files are read from the page
cache. In memory and from the file run in turn, and the medians are compared. Needs memory for the array beside the
page cache's copy of it: about 2.5 times --gb.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

import fastkl as fk

COMMAND = [sys.executable, "-m", "fastkl", "score"]

PANDAS = """
import sys, time
import numpy as np, pandas as pd
from scipy.special import log_softmax, entr, softmax
began = time.perf_counter()
frame = pd.read_parquet(sys.argv[1])
labels = frame["labels"].to_numpy()
names = [name for name in frame.columns if name.startswith("class_")]
x = frame[names].to_numpy() if names else np.stack(frame["logits"].to_numpy())
loss = -np.take_along_axis(log_softmax(x, axis=1), labels[:, None], axis=1)[:, 0]
pd.DataFrame({"loss": loss}).to_parquet(sys.argv[2])
print(time.perf_counter() - began, loss.mean(dtype=np.float64))
"""


def write_npy(folder: Path, rows: int, classes: int) -> tuple[Path, Path]:
    """Write logits and labels; a block of random rows, then the same rows shifted, which is quick and as random."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, 3, (4096, classes)).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, classes))
    for first in range(0, rows, len(block)):
        part = x[first : first + len(block)]
        part[:] = np.roll(block, first // len(block), axis=1)[: len(part)]
    x.flush()
    np.save(folder / "y.npy", rng.integers(0, classes, rows))
    return folder / "x.npy", folder / "y.npy"


#: Runs a process from one that is small: a child's peak memory starts at what its parent had when it was forked.
LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
wall = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, done.stdout]))
"""


def run(arguments: list[str]) -> tuple[float, float, float, str]:
    """Run a process to its end; return its wall time, its CPU time, its peak memory in MB and what it printed."""
    launched = subprocess.run([sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, check=True)
    code, wall, cpu, memory, said = json.loads(launched.stdout)
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}")
    return wall, cpu, memory, said


def rate_of(said: str, rows: int) -> float:
    """Return the seconds that the command says it scored for."""
    found = re.search(r"rows/second\s+(\S+)", said)
    assert found
    return rows / float(found[1])


def from_npy(folder: Path, size: float, classes: int, threads: int, repeats: int) -> None:
    """Compare the command on a file in the page cache with the function on the same array in memory."""
    rows = int(size * 1e9) // (4 * classes)
    path, labels = write_npy(folder, rows, classes)
    x, y = np.fromfile(path, np.float32, offset=128).reshape(rows, classes), np.load(labels)
    size = x.nbytes / 1e9
    base = [str(path), "--labels", str(labels), "--threads", str(threads)]
    cases = {
        "loss": [*base, "--stats", "loss"],
        "loss, to Parquet": [*base, "--stats", "loss", "--out", str(folder / "s.parquet")],
        "loss, to Parquet, with checksums": [*base, "--stats", "loss", "--out", f"{folder}/out/"],
        "all statistics, to Parquet": [*base, "--out", str(folder / "s.parquet")],
    }
    times: dict[str, list[float]] = {"loss in memory": [], "all in memory": []} | {name: [] for name in cases}
    walls: dict[str, list[float]] = {name: [] for name in cases}
    cpus: dict[str, list[float]] = {name: [] for name in times}
    peak = dict.fromkeys(cases, 0.0)
    for _ in range(repeats):
        for name, function in (("loss in memory", fk.softmax_cross_entropy), ("all in memory", fk.score)):
            began, cpu_began = time.perf_counter(), time.process_time()
            function(x, y, n_threads=threads)
            times[name].append(time.perf_counter() - began)
            cpus[name].append(time.process_time() - cpu_began)
        for name, arguments in cases.items():
            wall, cpu, memory, said = run([*COMMAND, *arguments])
            cpus[name].append(cpu)
            times[name].append(rate_of(said, rows))
            walls[name].append(wall)
            peak[name] = max(peak[name], memory)
    print(f"\n{size:.2f} GB .npy, {rows} x {classes} float32, {threads} threads, medians of {repeats}")
    print(f"{'':34}{'GB/s':>8}{'of memory':>11}{'CPU s':>8}{'process s':>11}{'peak MB':>9}")
    for name, seconds in times.items():
        line = f"{name:34}{size / median(seconds):8.2f}"
        if name in cases:
            memory = times["all in memory" if name.startswith("all") else "loss in memory"]
            line += f"{median(memory) / median(seconds):11.0%}{median(cpus[name]):8.2f}"
            line += f"{median(walls[name]):11.2f}{peak[name]:9.0f}"
        else:
            line += f"{'':11}{median(cpus[name]):8.2f}"
        print(line)


def from_parquet(folder: Path, size: float, classes: int, threads: int, repeats: int, kind: str) -> None:
    """Compare the command with pandas + SciPy on the same Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = int(size * 1e9) // (4 * classes)
    rng = np.random.default_rng(1)
    block = min(rows, 50_000)
    writer = None
    for first in range(0, rows, block):
        x = rng.normal(0, 3, (min(block, rows - first), classes)).astype(np.float32)
        y = rng.integers(0, classes, len(x))
        if kind == "a column for each class":
            batch = pa.table({"labels": y, **{f"class_{i}": x[:, i] for i in range(classes)}})
        else:
            batch = pa.table({"labels": y, "logits": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), classes)})
        writer = writer or pq.ParquetWriter(folder / "x.parquet", batch.schema, use_dictionary=False)
        writer.write_table(batch)
    assert writer is not None
    writer.close()
    path = str(folder / "x.parquet")
    key = ["--logits", "class_*"] if kind.endswith("class") else []
    ours, theirs, peaks, cpus = [], [], [0.0, 0.0], [0.0, 0.0]
    for _ in range(repeats):
        _, cpus[0], memory, said = run(
            [*COMMAND, path, *key, "--labels", "labels", "--stats", "loss", "--threads", str(threads), "--out",
             str(folder / "s.parquet")]
        )  # fmt: skip
        ours.append(rate_of(said, rows))
        peaks[0] = max(peaks[0], memory)
        _, cpus[1], memory, said = run([sys.executable, "-c", PANDAS, path, str(folder / "p.parquet")])
        theirs.append(float(said.split()[0]))
        peaks[1] = max(peaks[1], memory)
    got, expected = (pq.read_table(folder / name)["loss"].to_numpy() for name in ("s.parquet", "p.parquet"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    print(f"\n{rows * classes * 4 / 1e9:.2f} GB in Parquet, {kind}: loss of {rows} x {classes} float32 to Parquet")
    for name, seconds, cpu, peak in zip(("fastkl score", "pandas + SciPy"), (ours, theirs), cpus, peaks, strict=True):
        print(f"{name:15}{median(seconds):7.2f} s  {cpu:7.2f} s of CPU in the last run  peak {peak:6.0f} MB")
    print(f"{median(theirs) / median(ours):.1f} times as fast, on {threads} threads")
    (folder / "x.parquet").unlink()


def main() -> None:
    """Run the comparisons asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=4, help="size of the .npy file; 0 leaves it out")
    parser.add_argument("--parquet-gb", type=float, default=1, help="size of the Parquet files' numbers; 0: none")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=fk.build_info()["threads"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the temporary folder goes (default: the system's)")
    options = parser.parse_args()
    needed = 1.2 * (options.gb + options.parquet_gb) * 1e9
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="fastkl-bench-") as name:
        if shutil.disk_usage(name).free < needed:
            raise SystemExit(f"{name}: {needed / 1e9:.0f} GB are needed there")
        folder = Path(name)
        if options.gb:
            from_npy(folder, options.gb, options.classes, options.threads, options.repeats)
            (folder / "x.npy").unlink()
        for kind in ("a column of lists", "a column for each class") if options.parquet_gb else ():
            from_parquet(folder, options.parquet_gb, options.classes, options.threads, options.repeats, kind)


if __name__ == "__main__":
    main()
