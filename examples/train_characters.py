"""Trains a small transformer on the characters of this project's documentation with `train_characters.ita`, draws the
loss of each step, and lets the model write.

    python examples/train_characters.py [--steps 800] [--picture loss.png]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import intarsia

LENGTH, WIDTH, HIDDEN, LAYERS, BATCH, RATE = 64, 128, 512, 3, 16, 1e-3
CALL = 20  # steps

Weights = dict[str, "NDArray[np.float32] | list[dict[str, NDArray[np.float32]]]"]
Report = Callable[[int, float], object]


def read_text() -> str:
    """The pages of docs/, one after the other."""
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def encoded(text: str) -> tuple[list[str], NDArray[np.int64]]:
    """The characters that occur, and the text in their numbers."""
    letters = sorted(set(text))
    number = {c: n for n, c in enumerate(letters)}
    return letters, np.array([number[c] for c in text])


def first_weights(letters: int, rng: np.random.Generator) -> Weights:
    """Small random weights, gains of 1."""

    def weight(*shape: int) -> NDArray[np.float32]:
        return rng.normal(scale=0.02, size=shape).astype(np.float32)

    def layer() -> dict[str, NDArray[np.float32]]:
        return {
            "attention_gain": np.ones(WIDTH, np.float32),
            "attention_in": weight(WIDTH, 3 * WIDTH),
            "attention_out": weight(WIDTH, WIDTH),
            "hidden_gain": np.ones(WIDTH, np.float32),
            "hidden_in": weight(WIDTH, HIDDEN),
            "hidden_out": weight(HIDDEN, WIDTH),
        }

    return {
        "token": weight(letters, WIDTH),
        "position": weight(LENGTH, WIDTH),
        "layer": [layer() for _ in range(LAYERS)],
        "gain": np.ones(WIDTH, np.float32),
    }


def zeros_like(weights: Weights) -> Weights:
    """A model of zeros."""
    layers = weights["layer"]
    assert isinstance(layers, list)
    found: Weights = {name: np.zeros_like(w) for name, w in weights.items() if not isinstance(w, list)}
    return found | {"layer": [{name: np.zeros_like(w) for name, w in layer.items()} for layer in layers]}


def train(
    text: NDArray[np.int64], p: Weights, starts: NDArray[np.int64], report: Report = lambda step, loss: None
) -> tuple[Weights, NDArray[np.float32]]:
    """The weights after a step for each row of `starts`, where the pieces of text begin, and the loss of each.

    report: called with the number of steps and the loss now and then.
    """
    program = intarsia.load(Path(__file__).with_name("train_characters.ita"))
    m, v = zeros_like(p), zeros_like(p)
    losses: list[float] = []
    for first in range(0, len(starts), CALL):
        p, m, v, found = program.main(text, starts[first : first + CALL], p, m, v, first, np.float32(RATE))
        losses += found.tolist()
        report(len(losses), losses[-1])
    return p, np.array(losses, np.float32)


def write(p: Weights, letters: list[str], begin: str, count: int, rng: np.random.Generator) -> str:
    """What the model writes after `begin`. Noise of Gumbel's distribution makes the best score a draw from softmax."""
    program = intarsia.load(Path(__file__).with_name("train_characters.ita"))
    text = [letters.index(c) for c in begin]
    for _ in range(count):
        seen = text[-LENGTH:]
        ids = np.array([seen + [0] * (LENGTH - len(seen))])
        noise = 0.7 * rng.gumbel(size=len(letters)).astype(np.float32)
        text.append(int(program.next(ids, len(seen) - 1, noise, p)))
    return "".join(letters[n] for n in text)


def draw(curves: dict[str, NDArray[np.float32]], path: Path) -> None:
    """The losses by step, as a picture."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for n, (name, losses) in enumerate(curves.items()):
        axes.plot(losses, label=name, linewidth=2.4 - 1.6 * n)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    letters, text = encoded(read_text())
    starts = rng.integers(0, len(text) - LENGTH, (options.steps, BATCH))
    columns = (TextColumn("step {task.completed} of {task.total}"), BarColumn(), TextColumn("loss {task.fields[loss]}"))
    begin = time.perf_counter()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=options.steps, loss="")
        p, losses = train(
            text,
            first_weights(len(letters), rng),
            starts,
            lambda step, loss: progress.update(task, completed=step, loss=f"{loss:.3f}"),
        )
    print(f"{time.perf_counter() - begin:.1f} s, with the compilation")
    if options.picture:
        draw({"loss": losses}, options.picture)
    print(write(p, letters, "The compiler ", 400, rng))


if __name__ == "__main__":
    main()
