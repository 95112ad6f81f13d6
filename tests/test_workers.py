"""Work shared with forked children: the results and the errors of `map`, whatever becomes of the children."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import intarsia.driver
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source, Span
from intarsia.ir.graph import Module
from intarsia.ir.text import print_module
from intarsia.options import Options
from intarsia.runtime.threads import THREADS
from intarsia.workers import map_with, worker_count

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")

PROGRAM = """
fn f(x: f32[N, N], w: f32[N, N], v: f32[N, N]) -> f32[N, N] {
    y = softmax(tanh(x @ w))
    z = sort(y + 1.0)
    return layer_norm((z @ v) * sum(y, axis=0), x[0], x[1])
}
"""

shared = partial(map_with, patience=0.0)


def children() -> set[str]:
    """The processes that this one has started, also those that have ended but that nobody has waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it is gone
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(stat.parent.name)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No child and no pipe outlives the work."""
    before = children(), sorted(os.listdir("/proc/self/fd"))
    yield
    assert (children(), sorted(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 2000])
def test_results_are_in_order(workers: int, length: int) -> None:
    assert list(shared(workers, lambda i: (i, i * i), range(length))) == [(i, i * i) for i in range(length)]


def test_children_take_part(tmp_path: Path) -> None:
    def waiting_for_the_others(_: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        return os.getpid()

    found = set(shared(3, waiting_for_the_others, range(12)))
    assert len(found) == 3 and os.getpid() in found


def test_little_work_starts_no_child() -> None:
    assert set(map_with(3, lambda _: os.getpid(), range(50), patience=60.0)) == {os.getpid()}


def failing(bad: Sequence[int], item: int) -> int:
    if item in bad:
        raise CompileError("E0403", f"item {item}")
    return item


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_the_first_error_in_order_comes_through(workers: int, patience: float) -> None:
    results = map_with(workers, partial(failing, (3, 5, 8)), range(9), patience=patience)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CompileError, match="item 3"):
        next(results)


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0), lambda: [][0]])
def test_what_a_lost_child_had_is_done_again(end: Callable[[], object]) -> None:
    parent = os.getpid()

    def work(item: int) -> int:
        time.sleep(0.002)
        if os.getpid() != parent:
            end()
        return -item

    assert list(shared(3, work, range(20))) == [-i for i in range(20)]


def test_results_that_cannot_be_sent_are_made_here() -> None:
    results = list(shared(2, lambda i: (time.sleep(0.002), lambda: i), range(10)))
    assert [make() for _, make in results] == list(range(10))


@pytest.mark.parametrize("stack", [with_deep_stack, lambda work: work()])
def test_what_is_nested_too_deeply_to_be_sent_is_done_here(stack: Callable[[Callable[[], Any]], Any]) -> None:
    deep: tuple[Any, ...] = ()
    for _ in range(150_000):
        deep = (deep,)
    assert stack(lambda: list(shared(2, lambda item: len(item[0]), [(deep,), (deep,)]))) == [1, 1]
    assert [len(x) for x in stack(lambda: list(shared(2, lambda _: deep, range(3))))] == [1, 1, 1]


def test_without_processes_the_work_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    assert list(shared(4, str, range(4))) == ["0", "1", "2", "3"]


def test_what_compares_by_identity_stays_itself() -> None:
    source = Source("a.ita", "y = x")
    spans = [Span(source, i, i + 1) for i in range(4)]

    def work(span: Span) -> tuple[int, Span, Source]:
        time.sleep(0.01)
        return os.getpid(), span.to(spans[3]), Source("new", "")

    results = list(shared(2, work, spans))
    assert len({process for process, _, _ in results}) == 2
    assert all(span.source is source for _, span, _ in results)
    assert [span for _, span, _ in results] == [s.to(spans[3]) for s in spans]


def test_an_interrupt_ends_the_children() -> None:
    parent = os.getpid()

    def work(_: int) -> None:
        if os.getpid() == parent:
            raise KeyboardInterrupt
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(shared(3, work, range(6)))
    assert time.monotonic() - start < 30


def test_waiting_for_a_child_can_be_interrupted() -> None:
    parent = os.getpid()

    def work(_: int) -> None:
        time.sleep(0.2 if os.getpid() == parent else 60)

    timer = threading.Timer(1.0, lambda: os.kill(parent, signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(shared(2, work, range(2)))
    assert time.monotonic() - start < 30


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_COMPILE_PROCESSES", "5")
    if len(sys._current_frames()) == 1:  # not where the tests themselves are spread
        assert worker_count() == 5 and with_deep_stack(worker_count) == 5
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(worker_count()))
    other.start()
    other.join()
    assert found == [1]
    monkeypatch.setattr(THREADS, "alone", True)
    assert worker_count() == 1
    monkeypatch.setenv("INTARSIA_COMPILE_PROCESSES", "none")
    with pytest.raises(CompileError) as error:
        worker_count()
    assert error.value.code == "E0612"


def compiled(module: Module, monkeypatch: pytest.MonkeyPatch, workers: int) -> tuple[Any, ...]:
    """Everything that a compilation gives, with the keys of its kernels in the order in which they are kept."""

    def each(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return shared(workers, function, items)

    monkeypatch.setattr(intarsia.driver, "map_in_workers", each)
    store = _Store()
    done = Compilation(module, {"N": 96}, Options())
    code = done.executable(store).to_bytes()
    assert len(done.plan.kernels) > 3
    return code, store.keys, done.remarks.items, done.schedules, done.scheduled, print_module(done.scheduled, True)


class _Store:
    def __init__(self) -> None:
        self.keys: list[str] = []

    def get(self, key: str) -> bytes | None:
        return None

    def put(self, key: str, code: bytes) -> None:
        self.keys.append(key)


def test_a_compilation_does_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(Source("f.ita", PROGRAM)).build(None, dims={"N": 96})
    alone = compiled(module, monkeypatch, 1)
    *results, scheduled, text = compiled(module, monkeypatch, 3)
    assert (*results, text) == (*alone[:-2], alone[-1])  # remarks have spans, equal if their source is the same one
    assert scheduled.kernels == alone[-2].kernels
    assert {p.span.source for p in scheduled.kernels if p.span} <= {module.graph.body.nodes[0].span.source}
