"""Sentence embeddings by several processes: `mpiexec -n 4 python examples/sharded/minilm.py data=2,model=2`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

import intarsia

sys.path.insert(0, str(Path(__file__).parent.parent))

import minilm


def embed(mesh: str, sentences: tuple[str, ...] = minilm.SENTENCES) -> np.ndarray:
    """Embeddings f32[B, 384] of unit length, in each process."""
    folder = minilm.model_folder()
    ids, mask = minilm.tokenize(sentences, folder)
    options = intarsia.Options(devices="mpi", mesh=mesh)
    program = intarsia.load(Path(__file__).with_name("minilm.ita"), options)
    weights = intarsia.read_weights(folder / "model.safetensors")
    return program.sentences.bind(p=weights)(ids, mask)


def main() -> None:
    """Print how far the embeddings are from those of one process."""
    mesh = sys.argv[1] if len(sys.argv) > 1 else f"data={MPI.COMM_WORLD.size},model=1"
    embeddings = embed(mesh)
    if MPI.COMM_WORLD.rank == 0:
        difference = np.abs(embeddings - minilm.embed()).max()
        print(f"{mesh}: at most {difference:.1e} from one")


if __name__ == "__main__":
    main()
