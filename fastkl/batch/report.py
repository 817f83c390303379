"""The report: one page of HTML that needs nothing else, and its figures, from a `Summary`.

matplotlib draws, as SVG inside the page. The drawings name their colours by the page's CSS variables, so they follow it
into a dark or a printed one. The same summary gives the same bytes: there is no date, and ids do not come by chance.
"""

from __future__ import annotations

import html
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastkl.batch.totals import CalibrationBin, Histogram, Row, Summary
from fastkl.batch.writers import replacing, target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours by their role, on a light page and on a dark one. In a drawing each stands for a variable of the page's CSS.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c2733",
    "faint": "#5d6b7a",
    "line": "#dde3ea",
    "main": "#2a6f97",
    "other": "#d1603d",
}
DARK = {
    "paper": "#12181f",
    "ink": "#e6ebf0",
    "faint": "#9fadbb",
    "line": "#2c3743",
    "main": "#62b0dc",
    "other": "#f08a63",
}

#: The most classes whose confusions are drawn: more do not fit a page.
CONFUSION_DRAWN = 25

STYLE = """
:root { color-scheme: light dark; %(light)s }
@media (prefers-color-scheme: dark) { :root { %(dark)s } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .4rem 0; }
.faint, figcaption, dt, th { color: var(--faint); }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.headline div { display: flex; flex-direction: column; justify-content: space-between; border: 1px solid var(--line);
  border-radius: .5rem; padding: .6rem .8rem; }
.headline dt { font-size: .85rem; }
.headline dd { margin: 0; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.warning ul { margin: 0; padding-left: 1.2rem; }
.warning { border-left: .3rem solid var(--other); padding: .3rem 0 .3rem .8rem; margin: 1rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 24rem), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%%; height: auto; }
figure svg text { font-family: inherit; }
figcaption { font-size: .9rem; margin-top: .25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .4rem; }
th { text-align: left; font-weight: 500; }
td, th { padding: .22rem 1.4rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
.summary th { min-width: 13rem; }
.summary td:last-child { color: var(--faint); }
.rows td:last-child, .rows th:last-child { padding-right: .2rem; }
@media (max-width: 40rem) {
  body { padding-top: 1rem; }
  h1 { font-size: 1.35rem; }
  .headline { grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: .5rem; }
  .headline dd { font-size: 1.2rem; }
  .summary th { min-width: 0; }
  .summary td:last-child, .summary th:last-child { display: none; }
  .summary table { width: 100%%; }
  .rows td, .rows th { padding-right: .35rem; font-size: .75rem; }
  .rows th.number { white-space: normal; vertical-align: bottom; }
}
@media print {
  :root { color-scheme: light; %(light)s }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1rem; }
  figure, .headline div, tr { break-inside: avoid; }
  h2 { break-after: avoid; margin-top: 1.2rem; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  td, th { padding-top: .05rem; padding-bottom: .05rem; }
  section > figure { max-width: 11cm !important; }
}
"""


def write_report(
    path: str | os.PathLike[str],
    summary: Summary,
    *,
    title: str = "Scores",
    details: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    set_aside: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a summary as one self-contained page of HTML.

    Parameters
    ----------
    path : path
        The file, made anew or replaced once the page is complete.
    summary : Summary
        What to show; what is None in it is left out.
    title : str
        The page's heading, for instance the name of what was scored.
    details : mapping of str to str, optional
        How the scores came about, shown at the end: version, parameters, inputs.
    class_names : sequence of str, optional
        Names of the classes, for the confusion matrix and the lists of rows.
    set_aside : sequence of (str, str)
        Files that were not scored, with the reason, shown at the top.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If there are not as many names as classes.
    OSError
        If the file cannot be written; nothing is left half-written then.
    """
    if class_names is not None and len(class_names) != summary.classes:
        raise ValueError(f"{len(class_names)} class names are given for {summary.classes} classes")
    text = page(summary, title, details or {}, class_names, set_aside)
    with replacing(target(path)) as output:
        output.write(text.encode("utf-8", "backslashreplace"))


def write_plot(path: str | os.PathLike[str], summary: Summary, *, title: str = "Scores") -> None:
    """Write the figures of a summary as one PNG picture.

    Parameters
    ----------
    path : path
        The file, made anew or replaced once the picture is complete.
    summary : Summary
        What to draw; what is None in it is left out.
    title : str
        The picture's heading.

    Raises
    ------
    ImportError
        Without matplotlib.
    OSError
        If the file cannot be written; nothing is left half-written then.
    """
    with drawing_style("plot"):
        from matplotlib.figure import Figure

        shown = panels(summary)
        columns = min(2, max(1, len(shown)))
        lines = -(-max(1, len(shown)) // columns)
        picture = Figure(figsize=(5 * columns, 3.3 * lines + 0.5), layout="constrained")
        picture.suptitle(literal(title), fontsize=13, fontweight="bold", color=LIGHT["ink"])
        for place, panel in enumerate(shown):
            axes = picture.add_subplot(lines, columns, place + 1)
            panel.draw(axes)
            axes.set_title(panel.title, loc="left", pad=22)  # above the marks
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with replacing(target(path)) as output:
        output.write(buffer.getvalue())


@dataclass(frozen=True)
class Panel:
    """A figure: its title, what a reader who does not see it is told, what stands below it, and how it is drawn."""

    name: str
    title: str
    spoken: str
    caption: str
    draw: Callable[[Axes], None]
    margins: tuple[float, float, float, float] = (0.5, 0.45, 0.1, 0.35)


def drawing_style(name: str) -> AbstractContextManager[None]:
    """Return the settings to draw with, on no account those of the user; `name` makes the ids of a drawing its own."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("reports and plots need matplotlib: pip install fastkl[score]") from error
    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in ("backend", "toolbar")}
    settings |= {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": name,
        "figure.facecolor": "none" if name != "plot" else LIGHT["paper"],
        "axes.facecolor": "none",
        "font.size": 9,
        "text.color": LIGHT["ink"],
        "axes.labelcolor": LIGHT["faint"],
        "axes.edgecolor": LIGHT["faint"],
        "axes.linewidth": 0.7,
        "axes.titlesize": 10,
        "axes.titlecolor": LIGHT["ink"],
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": LIGHT["line"],
        "grid.linewidth": 0.7,
        "xtick.color": LIGHT["faint"],
        "ytick.color": LIGHT["faint"],
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": LIGHT["ink"],
    }
    context: AbstractContextManager[None] = matplotlib.rc_context(settings)
    return context


def literal(text: str) -> str:
    """Return text that matplotlib takes as it stands, not as a formula."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def panels(summary: Summary) -> list[Panel]:
    """Return the figures that a summary has the numbers for."""
    shown = []
    if summary.ece is not None and summary.ece_equal_mass is not None and any(b.rows for b in summary.calibration):
        shown.append(
            Panel(
                "reliability",
                "Reliability",
                f"Accuracy against confidence. Expected calibration error {number(summary.ece)} in bins of equal "
                f"width, {number(summary.ece_equal_mass)} in bins of equal mass.",
                "Blue lines: accuracy of the rows in each bin of confidence; orange: what separates it from their mean "
                "confidence. Dots: bins of equal mass, with 95% intervals. On the diagonal, confidence is right.",
                lambda axes: draw_reliability(axes, summary),
            )
        )
    # All but the confidence run over many orders of magnitude.
    drawings = (
        ("loss", "Loss of the label", summary.mean_loss),
        ("entropy", "Entropy of the prediction", summary.mean_entropy),
        ("confidence", "Confidence", None),
        ("kl", "KL(reference ‖ model)", summary.mean_kl),
        ("reverse_kl", "KL(model ‖ reference)", summary.mean_reverse_kl),
        ("js", "Jensen–Shannon divergence", summary.mean_js),
    )
    uniform = math.log(summary.classes)
    for name, title, mean in drawings:
        histogram = summary.histograms.get(name)
        if histogram is None or not histogram.counts.any():
            continue
        if name == "confidence":
            shares = np.cumsum(histogram.counts[::-1]) / histogram.counts.sum()
            caption = f"{percent(shares[4])} of the rows have at least 0.9, {percent(shares[0])} at least 0.98."
            draw = partial(draw_confidence, histogram=histogram)
        else:
            median, most, nearly_all = (number(histogram.quantile(share), 2) for share in (0.5, 0.9, 0.99))
            caption = f"Median {median}, 90% below {most}, 99% below {nearly_all}."
            if name == "loss" and uniform:
                caption += f" To guess all classes alike costs {number(uniform)}."
            elif name == "entropy":
                caption += f" {summary.classes} classes allow up to {number(uniform)}."
            draw = partial(
                draw_nats, histogram=histogram, mean=mean, uniform=uniform if name in ("loss", "entropy") else None
            )
        shown.append(Panel(name, title, f"Histogram. {caption}", caption, draw))
    return shown


def draw_reliability(axes: Axes, summary: Summary) -> None:
    """Draw accuracy by confidence, in both kinds of bins."""
    count = len(summary.calibration)
    left = np.flatnonzero([bin_.rows for bin_ in summary.calibration]) / count
    right = left + 0.94 / count
    accuracy = np.array([bin_.accuracy for bin_ in summary.calibration if bin_.rows])
    confidence = np.array([bin_.confidence for bin_ in summary.calibration if bin_.rows])
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    axes.bar(left, low, right - left, align="edge", color=LIGHT["main"], alpha=0.4)
    axes.bar(left, high - low, right - left, bottom=low, align="edge", color=LIGHT["other"], alpha=0.35)
    axes.hlines(accuracy, left, right, color=LIGHT["main"], linewidth=2)
    axes.plot([0, 1], [0, 1], color=LIGHT["faint"], linewidth=0.9, linestyle="--")
    mass = summary.calibration_equal_mass
    dots = np.array([(bin_.confidence, bin_.accuracy, *interval(bin_)) for bin_ in mass]).T
    axes.vlines(dots[0], dots[2], dots[3], color=LIGHT["ink"], linewidth=0.8, clip_on=False)
    axes.plot(dots[0], dots[1], "o", color=LIGHT["ink"], markersize=3.2, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")


def interval(bin_: CalibrationBin) -> tuple[float, float]:
    """Return the 95% interval of Wilson (1927) of a bin's accuracy."""
    z, n, p = 1.959964, bin_.rows, bin_.accuracy
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(middle - reach, p), max(middle + reach, p)


def draw_confidence(axes: Axes, histogram: Histogram) -> None:
    """Draw a histogram of probabilities."""
    from matplotlib.ticker import MaxNLocator

    share = 100 * histogram.counts / histogram.counts.sum()
    axes.bar(histogram.edges[:-1], share, np.diff(histogram.edges) * 0.94, align="edge", color=LIGHT["main"])
    axes.set(xlim=(0, 1), xlabel="largest probability", ylabel="% of rows")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def draw_nats(axes: Axes, histogram: Histogram, mean: float | None, uniform: float | None) -> None:
    """Draw a histogram over orders of magnitude; what is too small or too large for it gets a bar of its own."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    counts, total = histogram.counts, histogram.counts.sum()
    inner = np.flatnonzero(counts[1:-1]) + 1
    finite = [value for value in (mean, uniform) if value is not None and 0 < value < math.inf]
    lowest, highest = (1e-3, 1.0) if not len(inner) else (histogram.edges[inner[0]], histogram.edges[inner[-1] + 1])
    lowest, highest = min([lowest, *finite]), max([highest, *finite])
    first, last = math.floor(math.log2(lowest)), math.ceil(math.log2(highest))
    first, last = min(first, last - 3), last
    bars = 64 if total >= 10_000 else 32  # few rows make ragged bars
    step = next(step for step in 2.0 ** np.arange(-3, 8) if last - first <= bars * step)
    wanted = 2.0 ** np.arange(first, last + step, step)
    # Bars end where bins end, at the nearest: no row is counted by guess.
    ends = np.clip(np.searchsorted(histogram.edges[1:-1] * (1 + 1 / 64), wanted), 0, len(counts) - 2)
    upto = np.concatenate(([0], np.cumsum(counts[1:-1])))
    edges = histogram.edges[1:-1][ends]
    share = 100 * np.diff(upto[ends]) / total
    ratio = edges[1] / edges[0]
    axes.set_xscale("log")
    axes.bar(edges[:-1], share, np.diff(edges) * 0.94, align="edge", color=LIGHT["main"])
    left, right = edges[0], edges[-1]
    room = max(ratio, (right / left) ** 0.04)
    for count, start, text, side in ((counts[0], left / room**2, "< 10⁻⁴⁴", -1), (counts[-1], right * room, "∞", 1)):
        if count:
            axes.bar(start, 100 * count / total, start * (room - 1), align="edge", color=LIGHT["other"])
            axes.annotate(
                text, (start * math.sqrt(room), 100 * count / total), ha="center", va="bottom", color=LIGHT["other"]
            )
            left, right = (start / room, right) if side < 0 else (left, start * room**2)
    axes.set(xlim=(left, right), xlabel="nats, log scale", ylabel="% of rows")
    lowest_decade, highest_decade = math.ceil(math.log10(edges[0])), math.floor(math.log10(edges[-1]))
    apart = 1 + (highest_decade - lowest_decade) // 7
    decades = [decade for decade in range(lowest_decade, highest_decade + 1) if decade % apart == 0]
    axes.xaxis.set_major_locator(FixedLocator([10.0**decade for decade in decades]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(round(math.log10(value)))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if mean is not None and 0 < mean < math.inf:
        mark(axes, mean, f"mean {number(mean)}")
    if uniform:
        mark(axes, uniform, "uniform", line=":", level=1.07)


def mark(axes: Axes, place: float, text: str, line: str = "-", level: float = 1.0) -> None:
    """Draw an upright line with its meaning above it."""
    upright = axes.axvline(place, 0, level, color=LIGHT["other"], linewidth=1.1, linestyle=line)
    upright.set_clip_on(False)
    across = axes.transAxes.inverted().transform(axes.transData.transform((place, 0)))[0]
    side = "left" if across < 0.15 else "right" if across > 0.85 else "center"
    axes.annotate(text, (place, level + 0.01), xycoords=("data", "axes fraction"), ha=side, va="bottom", fontsize=8)


def draw_confusion(axes: Axes, confusion: Any, names: Sequence[str]) -> None:
    """Draw a confusion matrix: shares of each true class as shades, counts as numbers."""
    from matplotlib.patches import Rectangle

    classes = len(confusion)
    of_class = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for true, predicted in zip(*np.nonzero(confusion), strict=True):
        share = float((confusion / of_class)[true, predicted])
        colour = LIGHT["main"] if true == predicted else LIGHT["other"]
        cell = Rectangle((predicted - 0.48, true - 0.48), 0.96, 0.96, facecolor=colour, alpha=0.15 + 0.85 * share)
        axes.add_patch(cell)
        text = compact(int(confusion[true, predicted]))
        size = min(9, 150 / classes / max(2, 0.8 * len(text)))
        light = LIGHT["paper"] if share > 0.75 else LIGHT["ink"]
        axes.annotate(text, (predicted, true), ha="center", va="center", fontsize=size, color=light)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="predicted", ylabel="true", aspect="equal")
    labels = [literal(name if len(name) <= 16 else name[:15] + "…") for name in names]
    axes.set_xticks(range(classes), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set_yticks(range(classes), labels)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def as_svg(panel: Panel, size: tuple[float, float]) -> str:
    """Return a figure as an SVG element that fits its place in the page, and tells what it shows."""
    with drawing_style(panel.name):
        from matplotlib.figure import Figure

        picture = Figure(figsize=size)
        # Margins in inches, which is several times as fast as to have them found.
        left, bottom, right, top = panel.margins
        rectangle = (left / size[0], bottom / size[1], 1 - (left + right) / size[0], 1 - (bottom + top) / size[1])
        panel.draw(picture.add_axes(rectangle))
        buffer = io.StringIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids are unique in a page, and so is each drawing's name.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{panel.name}-", text)
    # Sizes come from the page; the proportions stay in viewBox.
    text = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    spoken = html.escape(panel.spoken)
    told = f'<title id="{panel.name}-title">{panel.title}</title><desc id="{panel.name}-desc">{spoken}</desc>'
    start = f'<svg role="img" aria-labelledby="{panel.name}-title {panel.name}-desc"'
    opening = text.index(">") + 1
    return start + text[len("<svg") : opening] + told + text[opening:]


def page(
    summary: Summary,
    title: str,
    details: Mapping[str, str],
    class_names: Sequence[str] | None,
    set_aside: Sequence[tuple[str, str]],
) -> str:
    """Return the page."""
    style = STYLE % {
        name: " ".join(f"--{role}: {colour};" for role, colour in colours.items())
        for name, colours in (("light", LIGHT), ("dark", DARK))
    }
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing is fetched, not even by a mistake in this file.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{html.escape(title)} · fastkl</title>",
        f"<style>{style}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1>",
        f'<p class="faint">{summary.rows:,} rows of {summary.classes:,} classes, scored by fastkl. '
        "Losses, entropies and divergences are in nats.</p></header><main>",
        headline(summary),
        *warnings(summary, set_aside),
    ]
    shown = panels(summary)
    if shown:
        parts.append('<section><h2>Figures</h2><div class="figures">')
        for panel in shown:
            parts.append(f"<figure><h3>{panel.title}</h3>{as_svg(panel, (4.6, 2.9))}")
            parts.append(f"<figcaption>{html.escape(panel.caption)}</figcaption></figure>")
        parts.append("</div></section>")
    parts.append(summary_table(summary))
    if summary.confusion is not None and summary.confusion.any() and summary.classes <= CONFUSION_DRAWN:
        parts.append(confusion_section(summary, class_names))
    lists = (
        ("Worst rows", "The rows of largest loss.", summary.worst, None),
        (
            "Most surprising rows",
            "The rows whose loss is furthest above their entropy, which is the loss that the model itself expected: "
            "confident and wrong.",
            summary.surprising,
            "loss − entropy",
        ),
        ("Furthest from the reference", "The rows of largest KL(reference ‖ model).", summary.furthest, "KL"),
    )
    parts += [rows_section(heading, text, rows, value, class_names) for heading, text, rows, value in lists if rows]
    if details:
        parts.append('<section><h2>How it was made</h2><div class="scroll summary"><table>')
        parts += [f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in details.items()]
        parts.append("</table></div></section>")
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def headline(summary: Summary) -> str:
    """Return the few numbers that come first."""
    told = (
        ("Accuracy", percent(summary.accuracy)),
        ("Mean loss", number(summary.mean_loss)),
        ("Perplexity", number(summary.perplexity)),
        ("Mean entropy", number(summary.mean_entropy)),
        ("Calibration error", percent(summary.ece)),
        ("Mean KL", number(summary.mean_kl)),
        ("Agreement", percent(summary.agreement)),
    )
    boxes = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in told if value)
    return f'<dl class="headline">{boxes}</dl>'


def warnings(summary: Summary, set_aside: Sequence[tuple[str, str]]) -> list[str]:
    """Return what a reader must know before the numbers."""
    said = []
    if set_aside:
        files = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in set_aside)
        said.append(f'<div class="warning"><strong>{len(set_aside):,} not scored.</strong><ul>{files}</ul></div>')
    wrong = "" if summary.accuracy is None else ", and counted as wrong"
    for count, one, many, what, why in (
        (
            summary.invalid, "holds", "hold", "no distribution",
            f" (a NaN, a +inf, or nothing but -inf): left out of the means and figures{wrong}.",
        ),
        (summary.infinite_losses, "has", "have", "an infinite loss", ": the label had probability 0."),
        (
            summary.infinite_kl, "has", "have", "an infinite KL",
            ": the model gives probability 0 to a class that the reference allows.",
        ),
    ):  # fmt: skip
        if count:
            rows = f"{count:,} row{'' if count == 1 else 's'} {one if count == 1 else many}"
            said.append(f'<p class="warning"><strong>{rows} {what}</strong>{why}</p>')
    return said


def summary_table(summary: Summary) -> str:
    """Return every number of the summary, with its meaning."""
    loss_is = "−log of the label's probability"
    if summary.weight is not None:
        loss_is += f", by the rows' weights, {number(summary.weight)} in all"
    told: list[tuple[str, str, str]] = [
        ("Rows", f"{summary.rows:,}", ""),
        ("Invalid rows", f"{summary.invalid:,}", "hold no distribution"),
        ("Classes", f"{summary.classes:,}", ""),
        ("Mean loss", number(summary.mean_loss), loss_is),
        ("Perplexity", number(summary.perplexity), "exp(mean loss)"),
        ("Mean entropy", number(summary.mean_entropy), "the loss that the model itself expects"),
        ("Accuracy", percent(summary.accuracy), f"{summary.right or 0:,} rows right"),
    ]
    told += [
        (f"Top-{k} accuracy", percent(share), f"label among the {k} largest, ties in its favour")
        for k, share in summary.top_k.items()
        if share != summary.accuracy
    ]
    bins = len(summary.calibration)
    told += [
        ("Calibration error", percent(summary.ece), f"expected |accuracy − confidence|, {bins} bins of equal width"),
        ("Calibration error, equal mass", percent(summary.ece_equal_mass), f"the same, {bins} bins of equal mass"),
        ("Brier score", number(summary.brier), "Σ (p − one-hot label)², 0 to 2"),
        ("Brier score of confidence", number(summary.confidence_brier), "(confidence − right)², 0 to 1"),
        ("Mean KL(reference ‖ model)", number(summary.mean_kl), "what the model loses against the reference"),
        ("Mean KL(model ‖ reference)", number(summary.mean_reverse_kl), ""),
        ("Mean Jensen–Shannon", number(summary.mean_js), "0 to log 2 = 0.6931"),
        ("Agreement", percent(summary.agreement), "rows where both predict the same class"),
    ]
    if summary.no_divergence:
        told.append(("Rows without a reference", f"{summary.no_divergence:,}", "theirs holds no distribution"))
    lines = "".join(
        f'<tr><th scope="row">{name}</th><td class="number">{html.escape(value)}</td><td>{meaning}</td></tr>'
        for name, value, meaning in told
        if value
    )
    return f'<section><h2>Summary</h2><div class="scroll summary"><table>{lines}</table></div></section>'


def confusion_section(summary: Summary, class_names: Sequence[str] | None) -> str:
    """Return the confusion matrix."""
    assert summary.confusion is not None
    confusion = summary.confusion
    names = [str(i) for i in range(summary.classes)] if class_names is None else list(class_names)
    margin = 0.35 + 0.08 * min(16, max(map(len, names)))
    wrong = confusion - np.diag(np.diag(confusion))
    spoken = "No row is confused."
    if wrong.any():
        true, predicted = np.unravel_index(np.argmax(wrong), wrong.shape)
        count = wrong[true, predicted]
        spoken = f"Most often confused: {names[true]} predicted as {names[predicted]}, in {count:,} rows."
    panel = Panel(
        "confusion",
        "Confusion matrix",
        spoken,
        f"Rows by their true class (down) and the predicted one (across). {spoken}",
        lambda axes: draw_confusion(axes, confusion, names),
        (margin, margin, 0.05, 0.05),
    )
    side = margin + min(6.5, 1.5 + 0.27 * summary.classes)
    return (
        f'<section><h2>{panel.title}</h2><figure style="max-width: {7 * side:.1f}rem">{as_svg(panel, (side, side))}'
        f"<figcaption>{html.escape(panel.caption)}</figcaption></figure></section>"
    )


def rows_section(heading: str, text: str, rows: Sequence[Row], value: str | None, names: Sequence[str] | None) -> str:
    """Return a list of rows as a table."""

    def class_name(index: int | None) -> str:
        if index is None or not names:
            return "" if index is None else str(index)
        return names[index]

    sources = {row.source for row in rows}
    if len(sources) == 1 and rows[0].source:
        text += f" All of them are in {rows[0].source}."
    columns: list[tuple[str, str, list[str]]] = [
        ("file", "", [row.source if len(sources) > 1 else "" for row in rows]),
        ("row", "number", [f"{row.row:,}" for row in rows]),
        (value or "", "number", [number(row.value) if value else "" for row in rows]),
        ("true", "" if names else "number", [class_name(row.true) for row in rows]),
        ("predicted", "" if names else "number", [class_name(row.predicted) for row in rows]),
        ("loss", "number", [number(row.loss) for row in rows]),
        ("entropy", "number", [number(row.entropy) for row in rows]),
        ("confidence", "number", [percent(row.confidence) for row in rows]),
    ]
    columns = [column for column in columns if any(column[2])]
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind, _ in columns)
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{html.escape(cells[i])}</td>' for _, kind, cells in columns) + "</tr>"
        for i in range(len(rows))
    )
    return (
        f'<section><h2>{heading}</h2><p class="faint">{html.escape(text)}</p><div class="scroll rows"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits, as text; nothing for the mean of nothing."""
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """Return a share as a percentage with two decimals, which is 0 or 100 only for all or none; nothing for NaN."""
    if share is None or math.isnan(share):
        return ""
    text = f"{100 * share:.2f}%"
    if text == "100.00%" and share < 1:
        return ">99.99%"
    return "<0.01%" if text == "0.00%" and share > 0 else text


def power_of_ten(exponent: int) -> str:
    """Return a power of ten as text, not as a formula: matplotlib's formulas take long."""
    return {0: "1", 1: "10"}.get(exponent, "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")))


def compact(count: int) -> str:
    """Return a count in at most four characters."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * limit:
            return f"{count / limit:.0f}{unit}"
        if count >= limit and limit > 10**3:
            return f"{count / limit:.1f}{unit}"
    return str(count)
