"""Make logits.npy and labels.npy: class logits for hand-written digits that the model has not seen.

The digits are the 1797 images of 8 x 8 pixels of the UCI "Optical Recognition of Handwritten Digits" test set
(E. Alpaydin and C. Kaynak, 1998, CC BY 4.0), as scikit-learn's ``load_digits`` carries them. A multinomial logistic
regression is trained on one half, drawn with a fixed seed and with each digit in its share; the files hold the logits
of the other half and its true digits, in the order of the draw.

Run from anywhere with scikit-learn installed; the files are written beside this script.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

SEED = 20240


def main() -> None:
    """Train on one half, write the other half's logits and labels."""
    pixels, digits = load_digits(return_X_y=True)
    seen, unseen, seen_digits, unseen_digits = train_test_split(
        pixels / 16, digits, test_size=0.5, stratify=digits, random_state=SEED
    )
    model = LogisticRegression(C=1.0, max_iter=10_000, tol=1e-8).fit(seen, seen_digits)
    logits = model.decision_function(unseen).astype(np.float32)

    folder = Path(__file__).parent
    np.save(folder / "logits.npy", logits)
    np.save(folder / "labels.npy", unseen_digits.astype(np.int8))
    right = np.mean(np.argmax(logits, axis=1) == unseen_digits)
    print(f"{logits.shape[0]} x {logits.shape[1]} logits, {right:.2%} right")


if __name__ == "__main__":
    main()
