"""Two classifiers of the same tumours, compared row by row: which is right, which knows when it is, where they differ.

Usage: python two_classifiers.py [FOLDER]. It needs scikit-learn, which also brings the data: 569 tumours of the breast
(Wisconsin, 1995), each by 30 measures of its cells' nuclei. docs/two-classifiers.md reads the results.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastkl as fk
from fastkl.batch.report import write_report
from fastkl.batch.totals import Summary, Totals

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "two-classifiers")
folder.mkdir(parents=True, exist_ok=True)

# Each tumour is judged by a model that has not seen it. Log-probabilities, not probabilities: naive Bayes is so sure
# that exp(-2542) would be 0.
measures, labels = load_breast_cancer(return_X_y=True)
folds = StratifiedKFold(10, shuffle=True, random_state=0)
models = {"logistic": make_pipeline(StandardScaler(), LogisticRegression()), "bayes": GaussianNB()}
log_probs = {
    name: cross_val_predict(model, measures, labels, cv=folds, method="predict_log_proba")
    for name, model in models.items()
}
np.save(folder / "labels.npy", labels)
for name, rows in log_probs.items():
    np.save(folder / f"{name}.npy", rows)


def compare(name: str, other: str) -> Summary:
    """Score a model's rows against the labels and the other model."""
    totals = Totals(2, has_labels=True, has_reference=True, source=f"{name}.npy")
    scores = fk.score(log_probs[name], labels, log_probs[other], given="log_probs", stats=totals.columns)
    totals.add(scores, 0, labels)
    return totals.summary()


logistic, bayes = compare("logistic", "bayes"), compare("bayes", "logistic")
print(f"{'':22}{'logistic':>12}{'naive Bayes':>14}")
for told, name, form in (
    ("accuracy", "accuracy", ".1%"),
    ("mean loss", "mean_loss", ".3f"),
    ("mean entropy", "mean_entropy", ".3f"),
    ("calibration error", "ece", ".1%"),
    ("Brier score", "brier", ".3f"),
    ("KL from the other", "mean_kl", ".3f"),
):
    print(f"{told:22}{getattr(logistic, name):12{form}}{getattr(bayes, name):14{form}}")
print(f"\nThey agree on {bayes.agreement:.1%} of the tumours. Furthest apart, by KL(logistic || naive Bayes):")
for row in bayes.furthest[:4]:
    benign = {name: np.exp(rows[row.row, 1]) for name, rows in log_probs.items()}
    print(
        f"  row {row.row:3}: {row.value:4.1f} nats, {('malignant', 'benign')[row.true]:9}; benign with probability "
        f"{benign['logistic']:.3f} or {benign['bayes']:.1e}"
    )

# How much of the loss is overconfidence? Dividing all log-probabilities by one temperature changes no prediction.
temperatures = np.geomspace(1, 64, 61)
losses = [fk.score(log_probs["bayes"], labels, stats=["loss"], temperature=t)["loss"].mean() for t in temperatures]
print(f"\nnaive Bayes at temperature {temperatures[np.argmin(losses)]:.1f}: mean loss {min(losses):.3f}")

write_report(
    folder / "report.html",
    bayes,
    title="Naive Bayes against logistic regression",
    class_names=["malignant", "benign"],
    details={"data": "Breast Cancer Wisconsin (Diagnostic), 569 tumours", "models": "scored out of fold, 10 folds"},
)
print(f"\n{folder / 'report.html'}")
