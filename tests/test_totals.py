"""Totals: right against plain definitions, and the same to the bit however the rows came."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkl._kernels import count
from fastkl.batch.totals import (
    BLOCK_ROWS,
    Calibration,
    EvenBins,
    ExactSum,
    OctaveBins,
    Totals,
    calibration_error,
)

SETTINGS = {"has_labels": True, "has_reference": True, "has_weights": True, "worst": 5, "bins": 7}


def score_in_numpy(rng, rows, classes, dtype=np.float32):
    """Columns of fastkl.score by plain NumPy, with labels, weights, probabilities, and a tenth of the rows invalid."""
    p, q = (rng.dirichlet(np.full(classes, 0.3), rows) for _ in range(2))
    p[rng.random(rows) < 0.05] = np.nan
    q[rng.random(rows) < 0.05] = np.nan
    labels = rng.integers(classes, size=rows)
    valid = ~np.isnan(p[:, 0])
    own = p[np.arange(rows), labels]
    argmax = np.where(valid, p.argmax(axis=1), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (p + q) / 2
        columns = {
            "entropy": -np.where(p == 0, 0, p * np.log(p)).sum(axis=1),
            "max_prob": p.max(axis=1),
            "argmax": argmax,
            "loss": -np.log(own),
            "correct": argmax == labels,
            "rank": np.where(valid, 1 + (p > own[:, None]).sum(axis=1), -1),
            "brier": ((p - np.eye(classes)[labels]) ** 2).sum(axis=1),
            "kl": (q * np.log(q / p)).sum(axis=1),
            "reverse_kl": (p * np.log(p / q)).sum(axis=1),
            "js": (p * np.log(p / middle) + q * np.log(q / middle)).sum(axis=1) / 2,
            "agree": valid & ~np.isnan(q[:, 0]) & (p.argmax(axis=1) == q.argmax(axis=1)),
        }
    columns = {name: values.astype(dtype) if values.dtype.kind == "f" else values for name, values in columns.items()}
    return columns, labels, rng.exponential(size=rows), p


def totals_of(classes, columns, labels, weights, cuts=(), **settings):
    """Totals of columns that come in the chunks between cuts."""
    totals = Totals(classes, stats=list(columns), **{**SETTINGS, **settings})
    for start, stop in zip([0, *cuts], [*cuts, len(labels)], strict=True):
        part = {name: values[start:stop] for name, values in columns.items()}
        totals.add(part, start, labels[start:stop], weights[start:stop])
    return totals


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (1000, 2), (5000, 10), (100_000, 3)])
def test_summary_is_what_the_definitions_say(rows, classes, dtype):
    columns, labels, weights, p = score_in_numpy(np.random.default_rng(rows), rows, classes, dtype)
    summary = totals_of(classes, columns, labels, weights).summary()
    valid = ~np.isnan(p[:, 0])
    both = ~np.isnan(columns["kl"])
    c = {name: values[valid] for name, values in columns.items()}

    assert (summary.rows, summary.invalid, summary.classes) == (rows, np.count_nonzero(~valid), classes)
    assert summary.no_divergence == np.count_nonzero(valid & ~both)

    def mean(values):
        return float(sum(map(Fraction, values.tolist())) / len(values)) if len(values) else math.nan

    np.testing.assert_equal(summary.mean_entropy, mean(c["entropy"]))
    for name in ("kl", "reverse_kl", "js"):
        np.testing.assert_equal(getattr(summary, f"mean_{name}"), mean(columns[name][both]))
    np.testing.assert_equal(summary.brier, mean(c["brier"]))
    np.testing.assert_allclose(summary.confidence_brier, np.mean((c["max_prob"] - c["correct"]) ** 2.0), rtol=1e-6)
    np.testing.assert_allclose(summary.mean_loss, np.average(c["loss"], weights=weights[valid]), rtol=1e-6)
    assert summary.perplexity == math.exp(summary.mean_loss)
    assert summary.right == np.count_nonzero(columns["correct"])
    assert summary.accuracy == summary.right / rows
    assert summary.agreement == np.count_nonzero(columns["agree"]) / rows
    assert list(summary.top_k) == [k for k in (1, 5) if k == 1 or k < classes]
    for k, share in summary.top_k.items():
        assert share == np.mean((columns["rank"] >= 1) & (columns["rank"] <= k))
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels[valid], c["argmax"]), 1)
    np.testing.assert_array_equal(summary.confusion, confusion)
    for name, values in (
        ("loss", c["loss"]),
        ("entropy", c["entropy"]),
        ("confidence", c["max_prob"].astype(float)),
        ("kl", columns["kl"][both]),
        ("reverse_kl", columns["reverse_kl"][both]),
        ("js", columns["js"][both]),
    ):
        histogram = summary.histograms[name]
        np.testing.assert_array_equal(histogram.counts, np.histogram(values, histogram.edges)[0], err_msg=name)
    assert len(summary.histograms) == 6

    order = np.argsort(-c["loss"], kind="stable")[:5]
    assert [row.row for row in summary.worst] == np.flatnonzero(valid)[order].tolist()
    surprise = c["loss"].astype(float) - c["entropy"]
    order = np.argsort(-surprise, kind="stable")[:5]
    assert [row.row for row in summary.surprising] == np.flatnonzero(valid)[order].tolist()
    for row in summary.worst:
        at = row.row
        assert (row.value, row.true, row.predicted) == (columns["loss"][at], labels[at], columns["argmax"][at])
        assert (row.loss, row.entropy) == (row.value, columns["entropy"][at])
        assert row.confidence == columns["max_prob"][at]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chunks_order_and_processes_leave_no_trace(data):
    rows = data.draw(st.sampled_from([0, 1, 7, 300, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 3]))
    classes = data.draw(st.sampled_from([1, 2, 5]))
    columns, labels, weights, _ = score_in_numpy(np.random.default_rng(rows), rows, classes)
    if rows:
        columns["loss"][data.draw(st.lists(st.integers(0, rows - 1), max_size=12))] = np.inf  # ties in every list
    whole = totals_of(classes, columns, labels, weights).to_json()

    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    assert totals_of(classes, columns, labels, weights, cuts).to_json() == whole

    parts = []
    for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
        part = Totals(classes, stats=list(columns), **SETTINGS)
        some = {name: values[start:stop] for name, values in columns.items()}
        part.add(some, start, labels[start:stop], weights[start:stop])
        parts.append(part if data.draw(st.booleans()) else Totals.from_json(part.to_json()))
    parts = data.draw(st.permutations(parts))
    while len(parts) > 1:  # merged as a tree of random shape
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at].merge(parts.pop(at + 1))
    assert parts[0].to_json() == whole


@given(st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=False)))
def test_sums_are_exact_over_the_whole_range(values):
    total = ExactSum()
    total.add(np.array(values, dtype=np.float64))
    exact = sum(map(Fraction, values))
    assert Fraction(total.units, 2**1074) == exact
    np.testing.assert_equal(total.mean(), float(exact / len(values)) if values else math.nan)


@pytest.mark.parametrize("bits", [np.uint32, np.uint64])
def test_no_value_leaves_its_bins(bits):
    """Any bits at all, negative numbers and NaNs of both signs among them, in steps through memory of both signs."""
    rng = np.random.default_rng(6)
    drawn = rng.integers(np.iinfo(bits).max, size=100_000, dtype=bits, endpoint=True)
    values = drawn.view(np.float32 if bits is np.uint32 else np.float64)
    classes = rng.integers(-(2**63), 2**63 - 1, 100_000)
    classes[::2] %= 5
    for step in (1, -3):
        octaves, even, calibration, total = OctaveBins(), EvenBins(), Calibration(3), ExactSum()
        confusion = np.zeros((4, 5), np.int64)
        for counter in (octaves, even, total):
            counter.add(values[::step])
        calibration.add(values[::step], (classes > 0)[::step])
        count.confusions(classes[::step], classes[::-1][::step], confusion)
        kept = np.count_nonzero(~np.isnan(values[::step]))
        assert octaves.counts.sum() == even.counts.sum() == total.finite + total.infinite == kept
        assert calibration.wide[:, :2].sum() == calibration.fine[:, :2].sum() == kept
        assert total.infinite == np.count_nonzero(np.isinf(values[::step]))
        finite = values[::step][np.isfinite(values[::step])].tolist()
        assert Fraction(total.units, 2**1074) == sum(map(Fraction, finite))
        a, b = classes[::step], classes[::-1][::step]
        expected = [[np.count_nonzero((a == i) & (b == j)) for j in range(5)] for i in range(4)]
        assert confusion.tolist() == expected
    for call in (count.evenly, lambda v, c: count.octaves(v, 0, 5, c)):
        with pytest.raises(ValueError, match="there are no bins"):
            call(values, np.zeros(0, np.int64))
    with pytest.raises(ValueError, match=r"shape \(2048, 2\)"):
        count.exact_sum(values, np.zeros((3, 2), np.int64))


def test_a_sum_goes_on_where_its_mantissas_are_full(monkeypatch):
    monkeypatch.setattr(ExactSum, "ROOM", 1000)
    values = np.random.default_rng(7).exponential(size=5432)
    total = ExactSum()
    for part in np.split(values, [10, 999, 1001, 4000]):
        total.add(part)
    assert Fraction(total.units, 2**1074) == sum(map(Fraction, values.tolist()))
    assert (total.finite, total.infinite) == (5432, 0)


def plain_calibration_error(confidence, right, groups):
    """Expected calibration error over groups of rows, by its definition."""
    return sum(abs(right[g].mean() - confidence[g].mean()) * len(g) / len(right) for g in groups if len(g))


def test_calibration_errors_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    confidence = 1 - rng.beta(0.5, 3, 20_000) * 0.9
    right = rng.random(20_000) < confidence**2
    edges = np.linspace(0, 1, 16)
    wide = [np.flatnonzero((confidence > a) & (confidence <= b)) for a, b in itertools.pairwise(edges)]
    order = np.argsort(confidence)
    mass = np.array_split(order, 16)

    calibration = Calibration(15)
    calibration.add(confidence, right)
    assert abs(calibration_error(calibration.equal_width()) - plain_calibration_error(confidence, right, wide)) < 1e-9
    # 16 divides the rows: the bins are the same but for rows at their borders that are within 2**-9 of each other.
    calibration = Calibration(16)
    calibration.add(confidence, right)
    bins = calibration.equal_mass()
    assert max(abs(bin_.rows - 1250) for bin_ in bins) <= 12
    np.testing.assert_allclose([bin_.confidence for bin_ in bins], [confidence[g].mean() for g in mass], atol=3e-4)
    assert abs(calibration_error(bins) - plain_calibration_error(confidence, right, mass)) < 5e-4


def test_equal_mass_bins_are_exact_where_confidences_are_apart():
    confidence = 1 - np.geomspace(0.9, 1e-6, 1000)
    right = np.random.default_rng(2).random(1000) < 0.8
    groups = np.array_split(np.arange(1000), 10)
    calibration = Calibration(10)
    calibration.add(confidence, right)
    bins = calibration.equal_mass()
    assert [bin_.rows for bin_ in bins] == [100] * 10
    np.testing.assert_allclose([b.confidence for b in bins], [confidence[g].mean() for g in groups], rtol=0, atol=1e-9)
    assert [bin_.accuracy for bin_ in bins] == [right[g].mean() for g in groups]


def test_against_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, top_k_accuracy_score

    columns, labels, _, p = score_in_numpy(np.random.default_rng(3), 4000, 8, np.float64)
    kept = p.min(axis=1) > 1e-12  # scikit-learn clips probabilities at 2e-16
    columns = {name: values[kept] for name, values in columns.items()}
    labels, p = labels[kept], p[kept]
    totals = Totals(8, has_labels=True, has_reference=False, stats=list(columns)[:7], bins=10)
    totals.add(columns, 0, labels)
    summary = totals.summary()
    assert summary.mean_loss == pytest.approx(log_loss(labels, p, labels=range(8)), rel=1e-9)
    assert summary.top_k[5] == pytest.approx(top_k_accuracy_score(labels, p, k=5))
    np.testing.assert_array_equal(summary.confusion, confusion_matrix(labels, columns["argmax"]))
    assert summary.confidence_brier == pytest.approx(brier_score_loss(columns["correct"], columns["max_prob"]))
    every = sum(brier_score_loss(labels == i, p[:, i]) for i in range(8))
    assert summary.brier == pytest.approx(every)
    accuracy, confidence = calibration_curve(columns["correct"], columns["max_prob"], n_bins=10)
    bins = [bin_ for bin_ in summary.calibration if bin_.rows]
    np.testing.assert_allclose([bin_.accuracy for bin_ in bins], accuracy, rtol=1e-12)
    np.testing.assert_allclose([bin_.confidence for bin_ in bins], confidence, rtol=1e-8)


@pytest.mark.parametrize("classes", [1, 2])
def test_up_to_two_classes_need_no_column_for_their_brier_score(classes):
    columns, labels, weights, _ = score_in_numpy(np.random.default_rng(4), 2000, classes, np.float64)
    told = totals_of(classes, columns, labels, weights).summary()
    del columns["brier"]
    derived = totals_of(classes, columns, labels, weights).summary()
    assert derived.brier == pytest.approx(told.brier)
    del columns["max_prob"]
    assert totals_of(classes, columns, labels, weights).summary().brier is None


def test_a_row_of_weight_zero_is_absent_and_an_infinite_loss_is_counted():
    for weight, mean in ((0.0, 1.0), (1.0, math.inf)):
        totals = Totals(3, has_labels=True, has_reference=False, has_weights=True, stats=["loss"])
        totals.add({"loss": np.array([1.0, np.inf])}, 0, np.array([0, 1]), np.array([1.0, weight]))
        summary = totals.summary()
        assert (summary.mean_loss, summary.infinite_losses) == (mean, 1)
        assert [row.value for row in summary.worst] == [math.inf, 1.0]
    assert summary.perplexity == math.inf


def test_rows_of_several_files_are_told_apart():
    first, second = (Totals(2, has_labels=True, has_reference=False, stats=["loss"], worst=3, source=s) for s in "ba")
    loss, labels = np.array([2.0, 1.0, 2.0]), np.array([0, 1, 0])
    first.add({"loss": loss}, 0, labels)
    second.add({"loss": loss}, 0, labels)
    second.merge(first)
    assert [(row.source, row.row) for row in second.summary().worst] == [("a", 0), ("a", 2), ("b", 0)]
    # A list that is full lets a level row in only where it comes earlier in the order.
    second.add({"loss": np.full(2, 2.0)}, 1, labels[:2])
    assert [(row.source, row.row) for row in second.summary().worst] == [("a", 0), ("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "classes is a positive number, not 0"),
        ({"bins": 0}, "bins is a positive number, not 0"),
        ({"top_k": (1, 0)}, "top_k is a positive number, not 0"),
        ({"stats": ["kl"]}, "no total reads 'kl' here; it reads entropy, max_prob, argmax, loss"),
        ({"stats": ["correct"]}, "one of entropy, max_prob, argmax, loss, rank is needed"),
        ({"has_labels": False, "has_weights": True}, "weights weigh losses"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Totals(**{"classes": 3, "has_labels": True, "has_reference": False, **settings})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"columns": {"entropy": np.zeros(2)}}, ValueError, "column 'loss' is missing; given are entropy"),
        ({"columns": {"loss": np.zeros(3)}}, ValueError, r"label has shape \(2,\); loss has \(3,\)"),
        ({"labels": None}, ValueError, "labels are wanted"),
        ({"labels": np.array([0.0, 1.0])}, ValueError, "label is an integer, not float64"),
        ({"labels": np.array([0, 3])}, IndexError, "label 3 in row 11 is out of range for 3 classes"),
        ({"labels": np.array([2**64 - 1, 1], np.uint64)}, IndexError, f"label {2**64 - 1} in row 10"),
        ({"weights": np.array([1.0, np.nan])}, ValueError, "weight nan in row 11 is not finite and >= 0"),
        ({"weights": None}, ValueError, "weights are wanted"),
        ({"columns": {"loss": np.ones((2, 1))}}, ValueError, r"loss has shape \(2, 1\).* and columns are 1-d"),
        ({"columns": {"loss": np.ones(2, int)}}, ValueError, "loss is floating point, not int64"),
    ],
)
def test_what_is_refused_leaves_the_totals_as_they_were(change, error, message):
    totals = Totals(3, has_labels=True, has_reference=False, has_weights=True, stats=["loss"])
    good = {"columns": {"loss": np.ones(2)}, "first_row": 10, "labels": np.array([0, 2]), "weights": np.ones(2)}
    totals.add(**good)
    before = totals.to_json()
    with pytest.raises(error, match=message):
        totals.add(**{**good, **change})
    assert totals.to_json() == before


def test_totals_that_differ_do_not_merge():
    a, b = (Totals(3, has_labels=True, has_reference=False, bins=bins) for bins in (10, 15))
    with pytest.raises(ValueError, match="totals of different bins do not merge: 10 and 15"):
        a.merge(b)
    with pytest.raises(ValueError, match="not totals of format 1"):
        Totals.from_json("{}")


def test_quantiles_are_right_to_their_bin():
    values = np.random.default_rng(5).exponential(size=10_000)
    totals = Totals(3, has_labels=True, has_reference=False, stats=["loss"])
    totals.add({"loss": values}, 0, np.zeros(10_000, int))
    histogram = totals.summary().histograms["loss"]
    for q in (0.01, 0.5, 0.9, 0.999):
        assert histogram.quantile(q) == pytest.approx(np.quantile(values, q), rel=1 / 32)
    assert math.isnan(Totals(3, has_labels=True, has_reference=False).summary().histograms["loss"].quantile(0.5))
