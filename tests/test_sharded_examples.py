"""The programs of `examples/sharded`: what each device sends, and equal results."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_sharding import check

FOLDER = Path(__file__).parent.parent / "examples" / "sharded"

SENT: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "megatron": ({"all_reduce": 2}, {"B": 4, "S": 6, "D": 8, "H": 4, "K": 4, "F": 16}),
    "zero3": ({"all_gather": 2, "reduce_scatter": 2}, {"B": 64, "D": 8, "F": 16}),
    "sequence_attention": ({"all_gather": 2}, {"S": 16, "D": 6, "H": 2, "K": 4}),
    "linear_attention": ({"all_gather": 1}, {"S": 16, "D": 4, "E": 6}),
    "sequence": ({"all_to_all": 4}, {"H": 4, "S": 16, "K": 4}),
    "experts": ({"all_to_all": 2}, {"G": 4, "T": 4, "D": 4, "E": 4, "C": 2, "F": 8}),
    "heat": ({"collective_permute": 2}, {"N": 10, "M": 6}),
}


@pytest.mark.parametrize("name", SENT)
def test_an_example_sends_what_an_expert_would(name: str) -> None:
    sent, dims = SENT[name]
    check((FOLDER / f"{name}.ita").read_text(), sent, **dims)


def test_every_example_is_here() -> None:
    # in test_in_turn.py, test_presets.py, test_deep_presets.py, test_mpi.py, test_pipeline_runs.py
    elsewhere = {"megatron_overlap", "training", "deep_training", "minilm", "deep"}
    assert {p.stem for p in FOLDER.glob("*.ita")} == {*SENT, *elsewhere}
