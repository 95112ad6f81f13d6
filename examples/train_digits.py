"""Trains a classifier of hand-written digits with `train_digits.ita`: the gradient, the optimiser and the loop over the
batches are compiled together. Prints the loss of each epoch, and how many held-out digits are classified rightly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import intarsia

HIDDEN, BATCH, EPOCHS, RATE = 96, 32, 30, 3e-3


def first_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Small random weights, and biases of 0."""
    w1, w2 = (rng.normal(size=s).astype(np.float32) * np.sqrt(2 / s[0]) for s in ((64, HIDDEN), (HIDDEN, 10)))
    weights = {"w1": w1, "b1": np.zeros(HIDDEN), "w2": w2, "b2": np.zeros(10)}
    return {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}


def train(epochs: int = EPOCHS, report: bool = True) -> float:
    """The share of held-out digits that are classified rightly after training on the others."""
    program = intarsia.load(Path(__file__).with_name("train_digits.ita"))
    rng = np.random.default_rng(0)
    data = load_digits()
    order = rng.permutation(len(data.data))
    images, labels = (data.data[order] / 16.0).astype(np.float32), data.target[order].astype(np.int64)
    held, kept = slice(0, 360), slice(360, None)
    p = first_weights(rng)
    m, v = ({name: np.zeros_like(w) for name, w in p.items()} for _ in range(2))
    steps = (len(images) - 360) // BATCH
    for epoch in range(epochs):
        order = rng.permutation(len(images[kept]))
        x, y = images[kept][order], labels[kept][order]
        p, m, v, loss = program.main(x, y, p, m, v, epoch * steps, np.float32(RATE), B=BATCH)
        if report:
            print(f"\repoch {epoch + 1:2} of {epochs}: loss {float(loss):.4f}", end="", flush=True)
    right = float(np.mean(program.predict(images[held], p) == labels[held]))
    if report:
        print(f"\n{100 * right:.1f} % of the held-out digits are right")
    return right


if __name__ == "__main__":
    start = time.perf_counter()
    train()
    print(f"{time.perf_counter() - start:.1f} s, with the compilation")
