"""What times are taken under: where arrays lie, how many threads run, and whether the core is shared."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.options import Options, host_target
from intarsia.passes.schedule.candidates import Space
from intarsia.runtime.native import address_of
from intarsia.runtime.threads import THREADS
from intarsia.tuning import benches, calm
from intarsia.tuning.calm import Calm
from intarsia.tuning.measuring import Rounds, Stopwatch
from intarsia.tuning.placing import PAGE, place, placed


def naive(text: str) -> Kernel:
    (found,) = Compilation(load(Source("p", text)).build("f"), {}, Options()).kernels.kernels
    return found


def test_arrays_lie_at_the_same_places_every_time() -> None:
    sizes = [3000, 100, 5_000_000, 64]
    one, other = place(sizes), place(sizes)
    assert [a.nbytes for a in one] == sizes
    offsets = [[address_of(a) - address_of(found[0]) for a in found] for found in (one, other)]
    assert offsets[0] == offsets[1] and address_of(one[0]) % PAGE == address_of(other[0]) % PAGE == 0
    places = [address_of(a) % PAGE for a in one]
    assert len(set(places)) == len(sizes) and all(p % 64 == 0 for p in places)
    assert all(address_of(b) - address_of(a) >= a.nbytes for a, b in pairwise(one))
    assert address_of(place([64], first=3)[0]) % PAGE == places[3]


def test_placed_arrays_are_copies() -> None:
    given = [np.arange(6, dtype=np.float64).reshape(2, 3), np.ones((), np.int8), np.zeros((0, 4), np.float32)]
    found = placed(given)
    for copy, array in zip(found, given):
        assert copy.dtype == array.dtype and copy.shape == array.shape and not np.shares_memory(copy, array)
        np.testing.assert_array_equal(copy, array)


@pytest.mark.parametrize("cores", [1, 2])
def test_as_many_threads_run_as_the_target_has_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = benches._samples
    monkeypatch.setattr(benches, "_samples", lambda run: (seen.append(THREADS.get()), plain(run))[1])
    kernel, target = (
        naive("fn f(x: f32[256, 256]) -> f32[256, 256] { return exp(x) }"),
        replace(host_target(), cores=cores),
    )
    before = THREADS.get()
    try:
        THREADS.set(2)
        Stopwatch.of(kernel, target, rounds=Rounds(1, 1, 0.0)).time([Space(kernel, target).default])
        assert set(seen) == {cores} and THREADS.get() == 2
    finally:
        THREADS.set(before)


def test_a_round_beside_a_neighbour_is_repeated_while_there_is_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.0, 1.0, 1.6, 1.6, 1.6, 1.6, 1.0, 1.0, 1.0, 1.0])  # calm; shared afterwards, and before; calm
    monkeypatch.setattr(calm, "_sum", lambda: next(answers))
    monkeypatch.setattr(benches, "CALM", Calm())
    rounds = iter([[5.0], [3.0]])
    monkeypatch.setattr(benches, "_samples", lambda run: next(rounds))
    found, left = benches._calm_samples(lambda: None, 1.0)
    assert found == [3.0] and 0 < left < 1


def test_without_patience_there_is_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_samples", lambda run: [7.0])
    assert benches._calm_samples(lambda: None, 0.0) == ([7.0], 0.0)


def test_waiting_for_calm_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ever_slower = iter(float(2**n) for n in range(10_000))
    monkeypatch.setattr(calm, "_sum", lambda: next(ever_slower))
    found = Calm()
    assert found.is_calm() and not found.is_calm() and found.wait(0.01) == 0.0
