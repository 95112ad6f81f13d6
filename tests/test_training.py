"""Training: optimisers that are programs, and a classifier that learns."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from intarsia.dsl.library import load
from intarsia.files import read_source
from intarsia.ir.dtypes import Array, of_numpy
from intarsia.ir.interpreter import evaluate
from intarsia.ir.types import TensorType

EXAMPLES = Path(__file__).parent.parent / "examples"


def _step(name: str, *inputs: object) -> tuple[Array, ...]:
    library = load(read_source(EXAMPLES / "optim.ita"))
    tensors = [p.label for p in library.signature(name).parameters if not p.is_static]
    arrays = [np.asarray(x) for x in inputs]
    types = {label: _type(a) for label, a in zip(tensors, arrays)}
    return evaluate(library.build(name, types), arrays)


def _type(array: Array) -> TensorType:
    found = of_numpy(array.dtype)
    assert found is not None
    return TensorType.of(found, *array.shape)


def test_optimisers() -> None:
    """Against their formulas, as the papers have them."""
    w, g, m, v = np.random.default_rng(0).normal(size=(4, 3))
    v = v * v
    moved, kept = _step("sgd", w, g, m, 0.1)
    assert np.allclose(kept, 0.9 * m + g) and np.allclose(moved, w - 0.1 * (0.9 * m + g))
    moved, m1, v1 = _step("adam", w, g, m, v, np.int64(4), 0.1)
    mean, square = (0.9 * m + 0.1 * g) / (1 - 0.9**5), (0.999 * v + 0.001 * g * g) / (1 - 0.999**5)
    assert np.allclose(moved, w - 0.1 * mean / (np.sqrt(square) + 1e-8))
    assert np.allclose(m1, 0.9 * m + 0.1 * g) and np.allclose(v1, 0.999 * v + 0.001 * g * g)
    moved, kept = _step("lion", w, g, m, 0.1)
    assert np.allclose(moved, w - 0.1 * np.sign(0.9 * m + 0.1 * g)) and np.allclose(kept, 0.99 * m + 0.01 * g)
    assert np.allclose(_step("clipping", 16.0, 1.0)[0], 0.25) and _step("clipping", 0.25, 1.0)[0] == 1


@pytest.mark.slow
def test_a_classifier_of_digits_learns() -> None:
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from train_digits import train
    finally:
        sys.path.remove(str(EXAMPLES))
    assert train(epochs=15, report=False) >= 0.97


@pytest.mark.slow
def test_a_model_of_characters_learns_as_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights, on the same pieces of text, the losses are the same within 1 % at every 100th step."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "benchmarks"))
    import training

    text, weights, starts, length, rate = training.characters(steps=200)
    theirs, _ = training.torch_train(text, weights, starts, length, rate)
    import train_characters

    _, ours = train_characters.train(text, weights, starts)
    assert np.allclose(ours[99::100], theirs[99::100], rtol=0.01)
    assert ours[-1] < 0.7 * ours[0]
