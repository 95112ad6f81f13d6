"""The programs of `examples/sharded`: what each device sends, and equal results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from sharded import check_results, run_passes
from test_sharding import LOCAL, check, collectives

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.spmd import simulate
from intarsia.passes.specialize import specialize
from intarsia.passes.verify.inputs import random_inputs

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


@pytest.mark.parametrize(
    ("passes", "sent"),
    [
        (LOCAL, {"all_gather": 2, "reduce_scatter": 2, "all_reduce": 5}),
        pytest.param(
            # Two tensors for the value; then these, with the sums of two gradients, first to the next device.
            f"{LOCAL},exchange,rings",
            {"collective_permute": 2 + 2 + 2 + 4 + 2, "all_reduce": 5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_over_a_split_sequence(passes: str, sent: dict[str, int]) -> None:
    path, dims = FOLDER / "sequence_training.ita", {"S": 16, "D": 6, "H": 2, "K": 4}
    module = specialize(load(Source(str(path), path.read_text())).build("step", dims=dims), dims)
    local, _ = run_passes(module, passes)
    assert Counter(n.name for n in collectives(local)) == sent
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


def test_every_example_is_here() -> None:
    # in test_in_turn.py, test_presets.py, test_deep_presets.py, test_mpi.py, test_pipeline_runs.py
    elsewhere = {"megatron_overlap", "training", "deep_training", "minilm", "deep"}
    assert {p.stem for p in FOLDER.glob("*.ita")} == {*SENT, *elsewhere, "sequence_training"}
