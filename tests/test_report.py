"""The report: every number where a reader looks for it, in one page that needs nothing else, on screen and paper."""

from __future__ import annotations

import html
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fastkl as fk
from fastkl.batch import report
from fastkl.batch.command import digits
from fastkl.batch.report import LIGHT, write_plot, write_report
from fastkl.batch.totals import Histogram, Summary, Totals

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def columns_of(x: np.ndarray, y: np.ndarray | None, reference: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return columns as fastkl.score has them, for finite logits and -inf."""
    p = fk.softmax(x)
    columns = {"entropy": fk.entropy(x, given="logits"), "max_prob": p.max(axis=1), "argmax": x.argmax(axis=1)}
    if y is not None:
        columns["loss"] = fk.softmax_cross_entropy(x, y)
        columns["correct"] = columns["argmax"] == y
        columns["rank"] = 1 + (x > x[np.arange(len(x)), y][:, None]).sum(axis=1)
    if reference is not None:
        q = fk.softmax(reference)
        columns["kl"] = fk.kl_divergence(q, p, normalize=True)
        columns["reverse_kl"] = fk.kl_divergence(p, q, normalize=True)
        columns["js"] = (fk.kl_divergence(p, (p + q) / 2) + fk.kl_divergence(q, (p + q) / 2)).clip(0) / 2
        columns["agree"] = reference.argmax(axis=1) == columns["argmax"]
    return columns


def summary_of(rows: int, classes: int, *, labels: bool = True, reference: bool = False) -> Summary:
    """Return the summary of drawn logits, with a loss and a KL that are infinite where there are rows to spare."""
    rng = np.random.default_rng(rows + classes)
    x = rng.normal(0, 3, (rows, classes))
    y = (x + rng.gumbel(size=x.shape) * 2).argmax(axis=1) if labels else None
    if rows > 10 and labels:
        x[3, y[3]] = -np.inf
    columns = columns_of(x, y, x + rng.normal(size=x.shape) if reference else None)
    totals = Totals(
        classes, has_labels=labels, has_reference=reference, stats=list(columns), source="shard-1.npy", worst=7
    )
    totals.add(columns, 0, y)
    return totals.summary()


@pytest.fixture(scope="module")
def digits_summary() -> Summary:
    """Return the summary of the digits."""
    logits, labels = digits()
    x, y = np.load(logits), np.load(labels)
    columns = columns_of(x, y)
    totals = Totals(10, has_labels=True, has_reference=False, stats=list(columns))
    totals.add(columns, 0, y)
    return totals.summary()


class Page(html.parser.HTMLParser):
    """A page taken apart: its text, ids and attributes, and whether all that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.ids, self.attributes, self.tags = "", [], [], []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self._open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += " ".join(data.split()) + " "


def page_of(summary: Summary, folder: Path, **settings: object) -> tuple[str, Page]:
    """Write a report and return its text, as it is and taken apart."""
    write_report(folder / "report.html", summary, **settings)
    assert os.listdir(folder) == ["report.html"]
    text = (folder / "report.html").read_text()
    return text, Page(text)


def test_the_page_needs_nothing_else(tmp_path, digits_summary):
    text, page = page_of(digits_summary, tmp_path)
    assert "script" not in page.tags
    assert not {"link", "img", "iframe", "object", "image"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    linked = {value for name, value in page.attributes if name == "xlink:href"}
    linked |= {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", text)}
    assert linked <= {f"#{name}" for name in page.ids}
    assert not re.findall(r"https?://(?!www\.w3\.org/)", text)
    assert "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    # Every colour is a variable of the page, so that all of it can be dark.
    body = text[text.index("</style>") :]
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) <= {"#000000"}
    assert body.count("#000000") <= 5


def test_every_number_is_told(tmp_path, digits_summary):
    _, page = page_of(digits_summary, tmp_path, title="digits", details={"version": "1.2.3"})
    x, y = map(np.load, digits())
    loss = fk.softmax_cross_entropy(x, y)
    for told in (
        "899 rows of 10 classes",
        f"Accuracy {100 * np.mean(x.argmax(axis=1) == y):.2f}%",
        f"Mean loss {loss.mean(dtype=float):.4g}",
        f"Perplexity {np.exp(loss.mean(dtype=float)):.4g}",
        f"Mean entropy {fk.entropy(x, given='logits').mean(dtype=float):.4g}",
        "Most often confused: 1 predicted as 9, in 6 rows.",
        "version 1.2.3",
        f"row true predicted loss entropy confidence {loss.argmax()} ",
        "Reliability",
        "Loss of the label",
        "Entropy of the prediction",
        "Confidence",
        "Worst rows",
        "Most surprising rows",
    ):
        assert told in page.text, told
    assert "KL" not in page.text
    assert page.tags.count("svg") == page.attributes.count(("role", "img")) == page.tags.count("desc") == 5


def test_what_others_wrote_is_text(tmp_path):
    names = ["<b>a</b>", "$x^2$", "&amp;", "a name much longer than fits", "\udcff"]
    _, page = page_of(
        summary_of(500, 5, reference=True),
        tmp_path,
        title="<script>alert(1)</script>\udc80",
        class_names=names,
        details={"<i>": '"\''},
        set_aside=[("bad\udcff.npy", "<label> 9 is out of range")],
    )
    assert not {"script", "b", "i"} & set(page.tags)
    for told in ("<script>alert(1)</script>\\udc80", *names[:4], "<i> \"' ", "bad\\udcff.npy: <label> 9"):
        assert told in page.text, told
    _, page = page_of(Summary(100_000, 2, 0, mean_loss=0.1, accuracy=1e-6, ece=1 - 1e-9), tmp_path)
    assert "Accuracy <0.01%" in page.text
    assert "Calibration error >99.99%" in page.text
    with pytest.raises(ValueError, match="2 class names are given for 5 classes"):
        write_report(tmp_path / "report.html", summary_of(5, 5), class_names=["a", "b"])


@pytest.mark.parametrize(
    ("summary", "told", "untold"),
    [
        (summary_of(0, 4), "0 rows of 4 classes", "<svg"),
        (summary_of(40, 3, labels=False), "Entropy of the prediction", "Accuracy"),
        (summary_of(40, 3, labels=False, reference=True), "Furthest from the reference", "Worst"),
        (summary_of(40, 1), "Mean loss", "Most surprising rows</h1>"),
        (summary_of(40, 26), "Calibration", "Confusion"),
        (summary_of(40, 2), "1 row has an infinite loss", "KL"),
        (Summary(rows=3, classes=2, invalid=3), "3 rows hold no distribution", "<svg"),
    ],
    ids=["none", "entropies", "divergences", "one class", "many classes", "infinite", "invalid"],
)
def test_what_is_not_known_is_left_out(tmp_path, summary, told, untold):
    text, page = page_of(summary, tmp_path)
    assert told in page.text
    assert untold not in text
    assert "None" not in page.text
    assert "nan" not in re.findall(r"\w+", text[text.index("</style>") :])
    write_plot(tmp_path / "plot.png", summary)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("spread", [0.1, 1, 15])
def test_bars_hold_every_row_once(spread):
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    values = np.exp(np.random.default_rng(1).normal(-3, spread, 5000))
    values[:50], values[50:150] = 0, np.inf
    totals = Totals(2, has_labels=True, has_reference=False, stats=["loss"])
    totals.add({"loss": values}, 0, np.zeros(5000, int))
    histogram = totals.summary().histograms["loss"]
    axes = Figure().add_subplot()
    report.draw_nats(axes, histogram, 0.5, 1.0)
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    ordinary = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) == LIGHT["main"]]
    assert len(ordinary) == len(axes.patches) - 2 > 10
    assert [bar.get_height() for bar in axes.patches if bar not in ordinary] == pytest.approx([1, 2])
    for bar in ordinary:
        left, right = bar.get_x(), bar.get_x() + bar.get_width() / 0.94
        assert bar.get_height() == pytest.approx(100 * np.mean((values >= left) & (values < right)))
    left, right = axes.get_xlim()
    assert all(left <= bar.get_x() and bar.get_x() + bar.get_width() <= right for bar in axes.patches)


def test_only_zeros_and_infinities_can_be_drawn():
    from matplotlib.figure import Figure

    edges = Totals(2, has_labels=True, has_reference=False).summary().histograms["loss"].edges
    counts = np.zeros(len(edges) - 1, np.int64)
    counts[[0, -1]] = 1, 3
    axes = Figure().add_subplot()
    report.draw_nats(axes, Histogram(edges, counts), None, None)
    assert sorted(bar.get_height() for bar in axes.patches)[-2:] == [25, 75]


def test_the_same_summary_gives_the_same_bytes(tmp_path):
    script = (
        "import sys; from test_report import summary_of, write_plot, write_report\n"
        "summary = summary_of(300, 4, reference=True)\n"
        "write_report(sys.argv[1] + '.html', summary); write_plot(sys.argv[1] + '.png', summary)\n"
    )
    for seed, name in (("1", "a"), ("2", "b")):
        settings = tmp_path / f"matplotlibrc-{seed}"
        settings.write_text(f"font.size: {5 * int(seed)}\n")  # a user's own settings do not count
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MATPLOTLIBRC": str(settings)}
        environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
        subprocess.run([sys.executable, "-c", script, tmp_path / name], env=environment, check=True)
    for ending in ("html", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    summary = summary_of(3, 2, labels=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_report(path, summary)
    assert caught.value.filename == str(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("before", ["report.html"])
    (tmp_path / "link.html").symlink_to(path)
    write_report(tmp_path / "link.html", summary)
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "link.html").is_symlink()
    with pytest.raises(OSError, match="is a device or pipe"):
        write_report("/dev/null", summary)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for write in (write_report, write_plot):
        with pytest.raises(ImportError, match=r"pip install fastkl\[score\]"):
            write(tmp_path / "out", summary_of(30, 2))
    assert os.listdir(tmp_path) == []


def test_a_share_is_rounded_to_all_or_nothing_only_where_it_is():
    shares = (None, math.nan, 0.0, 1e-9, 0.12345, 1 - 1e-9, 1.0)
    assert [*map(report.percent, shares)] == ["", "", "0.00%", "<0.01%", "12.35%", ">99.99%", "100.00%"]
    numbers = (-math.inf, -1.5e-7, 0.0, 12345.678)
    assert [*map(report.number, numbers)] == ["−∞", "−1.5e−7", "0", "1.235e4"]
    counts = (9, 9999, 10_400, 1_240_000, 99_000_000, 4 * 10**9)
    assert [*map(report.compact, counts)] == ["9", "9999", "10k", "1.2M", "99M", "4.0G"]


def browse(page: Path, *options: str) -> str:
    """Show a page in a browser of its own and return what it prints."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", *options, page.as_uri()),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


MEASURE = """<script>
const sizes = name => [...document.querySelectorAll(name)].map(shape => shape.getBoundingClientRect());
parent.document.body.setAttribute('data-seen', JSON.stringify({
  width: innerWidth,
  scrolls: document.documentElement.scrollWidth,
  drawings: sizes('svg').map(size => size.width),
  texts: sizes('svg text').map(size => size.height),
  columns: getComputedStyle(document.querySelector('.figures')).gridTemplateColumns.split(' ').length }));
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium: the report was not looked at in a browser")
@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1280, 2)], ids=["phone", "desktop"])
def test_in_a_browser(tmp_path, width, columns):
    from matplotlib import image

    path = tmp_path / "report.html"
    write_report(path, summary_of(2000, 4, reference=True), title="model b", class_names=["ant", "bee", "cat", "dog"])
    page = Page(browse(path, "--dump-dom"))
    for told in ("model b", "Agreement", "KL(reference ‖ model)", "uniform", "Worst rows", "shard-1.npy", "bee"):
        assert told in page.text, told

    # The page forbids itself all scripts; the one that measures it is let into a copy, which a frame shows: a window is
    # not let as narrow as a phone.
    copy = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text()).replace("</body>", MEASURE)
    framed = tmp_path / "framed.html"
    framed.write_text(
        f'<body><iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(copy)}"></iframe></body>'
    )
    seen = re.search('data-seen="([^"]*)"', browse(framed, "--window-size=1600,1000", "--dump-dom"))
    layout = json.loads(html.unescape(seen[1]))
    assert layout["scrolls"] <= layout["width"] == width  # nothing sticks out sideways
    assert layout["columns"] == columns
    assert len(layout["drawings"]) == 8
    assert min(layout["drawings"]) > 300
    assert min(layout["texts"]) > 8  # pixels

    browse(path, f"--window-size={width},2000", f"--screenshot={tmp_path / 'seen.png'}")
    picture = (255 * image.imread(tmp_path / "seen.png")[:, :, :3]).round().astype(int)
    assert picture.shape[1] == width
    for role, share in (("paper", 0.4), ("ink", 1e-3), ("main", 5e-3), ("other", 1e-4)):
        colour = [int(LIGHT[role][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.mean((abs(picture - colour) <= 2).all(axis=2)) > share, role


@pytest.mark.skipif(BROWSER is None, reason="no chromium: the report was not printed")
def test_in_print(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, summary_of(2000, 4, reference=True))
    browse(path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'printed.pdf'}")
    printed = (tmp_path / "printed.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 6
