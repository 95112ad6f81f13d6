"""The second level of the cache: a kernel is compiled once, whatever program it stands in."""

from __future__ import annotations

import numpy as np
import pytest

from intarsia.backends.cpu import pieces
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.errors import Source

ONE = "fn first(x: f32[N]) -> f32[N] { return tanh(x) * 2.0 }"
TWO = """
fn second(a: f32[N], x: f32[N]) -> (f32[N], f32[N]) {
    s = loop (h = a) for t < 3 { yield cumsum(h, axis=0) }
    return tanh(x) * 2.0, s
}
"""


class Store:
    """A store in memory that counts."""

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}
        self.hits = 0

    def get(self, key: str) -> bytes | None:
        self.hits += key in self.code
        return self.code.get(key)

    def put(self, key: str, code: bytes) -> None:
        assert key not in self.code
        self.code[key] = code


def compilation(text: str) -> Compilation:
    library = load(Source("program.ita", text))
    return Compilation(library.build(None, dims={"N": 33}), {"N": 33}, Options())


def test_a_kernel_of_another_program_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    x = np.linspace(-2, 2, 33, dtype=np.float32)
    (first,) = compilation(ONE).executable(store).run([x], {})
    kept = len(store.code)
    tanh_twice, _ = compilation(TWO).executable(store).run([x, x], {})
    assert store.hits == 1 and len(store.code) > kept
    np.testing.assert_array_equal(tanh_twice, first)

    def refuse(*_: object) -> bytes:
        raise AssertionError("a kernel that the store has was compiled")

    monkeypatch.setattr(pieces, "_kernel_code", refuse)
    again, _ = compilation(TWO).executable(store).run([x, x], {})
    np.testing.assert_array_equal(again, first)


def test_another_target_is_another_key() -> None:
    store = Store()
    done = compilation(ONE)
    pieces.compile_pieces(done.plan, done.target, store)
    other = Compilation(done.source_module, {"N": 33}, Options(target="cpu:x86-avx2"))
    pieces.compile_pieces(other.plan, other.target, store)
    assert store.hits == 0 and len(store.code) == 2
