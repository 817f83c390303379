"""The figures of a run as a page of Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEAD = (
    "| operation | shape | ms | ns per element | fastest peer | its ms | ratio | bar | share of the limit | bar |",
    "|---|---|---|---|---|---|---|---|---|---|",
)

CIRCUMSTANCES = {
    "stream": "Calls back to back, arrays out of memory",
    "cached": "Calls back to back, arrays in the second-level cache",
    "spaced": "A call every 20 ms, arrays out of memory",
    "neighbour": "Calls back to back beside a busy process, arrays out of memory",
}


def write(record: dict[str, Any], file: Path) -> None:
    """Write the machine, what ran, and a table for each type; what `NOTES.md` beside the file holds comes last."""
    build, clock = record["build"], "processor time" if record["clock"] == "cpu" else "wall time"
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "fastkl")
    lines = [
        "# Measured",
        "",
        f"One run of `python bench/compare.py` on {record['processor']}; {build['compiler']}, tier {build['tier']}, "
        f"{threads}, {clock}. Out of cache the machine reads {record['read_gb_per_s']:.1f} GB/s and writes "
        f"{record['write_gb_per_s']:.1f} (non-temporal stores); the limit reads and writes every byte once at that "
        f"rate. A ratio is the fastest peer's time over ours, so below 1 the peer is faster. Peers: {versions}.",
    ]
    for mode, dtype in dict.fromkeys((case["mode"], case["dtype"]) for case in record["cases"]):
        lines += ["", f"## {CIRCUMSTANCES[mode]}, {dtype}", "", *HEAD]
        for case in (c for c in record["cases"] if (c["mode"], c["dtype"]) == (mode, dtype)):
            ours = next(t for t in case["timings"] if t["name"] == "fastkl")
            peer = ["-", "", ""]
            if case["fastest"]:
                peer = [case["fastest"], f"{case['ratio'] * ours['ms']:.3f}", f"{case['ratio']:.2f}"]
            shape = f"{case['rows']}x{case['classes']}"
            cells = [case["op"], shape, f"{ours['ms']:.3f}", f"{ours['ns_per_element']:.3f}"]
            cells += [*peer, str(case["ratio_bar"] or ""), f"{case['share']:.2f}", str(case["share_bar"] or "")]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## A call on ten float64 numbers, microseconds", ""]
    lines += [
        f"- {op}: " + ", ".join(f"{name} {us:.1f}" for name, us in found.items())
        for op, found in record["small_calls_us"].items()
    ]
    notes = file.with_name("NOTES.md")
    if notes.is_file():
        lines += ["", notes.read_text().rstrip()]
    file.write_text("\n".join(lines) + "\n")
