"""One picture of the speed table: ns per element of ours and of every peer, for each operation and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Colours after Okabe and Ito, told apart by every common colour vision, and a marker each besides.
STYLES = {
    "NumPy": ("#56B4E9", "s"),
    "SciPy": ("#0072B2", "D"),
    "PyTorch": ("#E69F00", "o"),
    "torch.compile": ("#D55E00", "^"),
    "JAX": ("#009E73", "v"),
    "Numba": ("#CC79A7", "P"),
    "ONNX Runtime": ("#8C8C00", "X"),
    "NumKong": ("#555555", "*"),
}
OURS = "#000000"
SHORT = {"1000000x10": "1M x 10", "100000x100": "100k x 100", "10000x1000": "10k x 1000", "1x10000000": "1 x 10M"}


def draw(record: dict[str, Any], file: Path) -> None:
    """Draw the float32 cases of a run's first mode, or those of its only type, into a PNG file."""
    dtypes = {c["dtype"] for c in record["cases"]}
    dtype = "float32" if "float32" in dtypes else dtypes.pop()
    mode = record["cases"][0]["mode"]
    chosen = [c for c in record["cases"] if (c["mode"], c["dtype"]) == (mode, dtype)]
    ops = list(dict.fromkeys(c["op"] for c in chosen))
    columns = 2 if len(ops) > 1 else 1
    lines = -(-len(ops) // columns)
    most = max(sum(c["op"] == op for c in chosen) for op in ops)
    figure, panels = plt.subplots(
        lines, columns, figsize=(10, 0.9 + lines * (0.5 + 0.23 * most)), sharex=True, squeeze=False, dpi=120
    )
    seen: dict[str, Any] = {}
    for panel, op in zip(panels.flat, ops, strict=False):
        rows = [c for c in chosen if c["op"] == op]
        for y, case in enumerate(rows):
            draw_row(panel, y, case, seen)
        panel.set_yticks(range(len(rows)), [row_name(c) for c in rows], fontsize=9)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_title(op, fontsize=10, fontweight="bold", loc="left", pad=3)
        panel.set_xscale("log")
        panel.margins(x=0.04)
        panel.grid(axis="x", which="major", color="#DDDDDD", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    for panel in panels.flat[len(ops) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        panel.xaxis.set_minor_formatter("")
        panel.set_xlabel("ns per element (log scale, less is faster)", fontsize=9)
    order = ["limit", "fastkl", *(n for n in STYLES if n in seen)]
    figure.legend(
        [seen[n] for n in order], order, loc="upper center", ncols=len(order), fontsize=8.5, frameon=False,
        handletextpad=0.1, columnspacing=1.0, bbox_to_anchor=(0.5, 1 - 0.32 / figure.get_figheight()),
    )  # fmt: skip
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    title = f"{dtype}, {threads}, {record['processor'].split(',')[0]}, {record['build']['tier']}"
    title += "; 'limit' reads and writes every byte once; at the right our lead over the fastest peer"
    figure.suptitle(title, fontsize=9.5, y=1 - 0.1 / figure.get_figheight())
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / figure.get_figheight()), h_pad=0.5)
    figure.savefig(file)
    plt.close(figure)


def row_name(case: dict[str, Any]) -> str:
    """Return the shape in few characters."""
    name = f"{case['rows']}x{case['classes']}"
    return SHORT.get(name, name.replace("x", " x "))


def draw_row(panel: Any, y: int, case: dict[str, Any], seen: dict[str, Any]) -> None:
    """Draw one shape: the limit as a line, peers as small markers, ours last with its number beside it."""
    elements = case["rows"] * case["classes"]
    limit = case["floor_ms"] * 1e6 / elements
    best: dict[str, float] = {}
    for t in case["timings"]:
        best[t["name"]] = min(best.get(t["name"], float("inf")), t["ns_per_element"])
    ours = best.pop("fastkl")
    panel.plot([ours, max(best.values(), default=ours)], [y, y], color="#E8E8E8", linewidth=5, zorder=1)
    seen["limit"] = panel.plot([limit] * 2, [y - 0.32, y + 0.32], color="#999999", linewidth=2, zorder=2)[0]
    for name, ns in best.items():
        colour, marker = STYLES[name]
        seen[name] = panel.plot(
            ns, y, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.4, zorder=3
        )[0]
    seen["fastkl"] = panel.plot(ours, y, "o", color=OURS, markersize=8, zorder=4)[0]
    if case["fastest"]:
        label = f"{case['ratio']:.1f}x {case['fastest']}"
        panel.text(1.01, y, label, transform=panel.get_yaxis_transform(), ha="left", va="center", fontsize=8)
