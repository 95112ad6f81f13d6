"""Trains a classifier with scikit-learn on its digits data, then runs it with `digits.ita`.

Writes digits.npz (weights) and digits_x.npy (images), so that the command line can run it too:
`intarsia run digits.ita --arg x=digits_x.npy --weights p=digits.npz`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import intarsia


def train() -> tuple[MLPClassifier, np.ndarray, dict[str, np.ndarray]]:
    """The fitted classifier, all images f32[1797, 64], and its weights by the names of `Mlp`."""
    data = load_digits()
    images = (data.data / 16.0).astype(np.float32)
    classifier = MLPClassifier((48,), max_iter=120, random_state=0, tol=1e-3).fit(images, data.target)
    (w1, w2), (b1, b2) = classifier.coefs_, classifier.intercepts_
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return classifier, images, {k: np.ascontiguousarray(v, np.float32) for k, v in weights.items()}


def main() -> None:
    classifier, images, weights = train()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    np.savez(folder / "digits.npz", **weights)
    np.save(folder / "digits_x.npy", images)
    program = intarsia.load(Path(__file__).with_name("digits.ita"))
    predicted, _ = program.main(images, weights)
    same = int((predicted == classifier.predict(images)).sum())
    print(f"{same} of {len(images)} predictions are those of scikit-learn")


if __name__ == "__main__":
    main()
