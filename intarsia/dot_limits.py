"""How many products a second the dot instructions of this machine add up, from registers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from intarsia.backends.cpu.compile import compile_kernel, load
from intarsia.ir.dots import Dot
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.target import Target
from intarsia.runtime.native import NativeFunction, native_symbols

_SUMS = 16  # more than two units of latency 6 want

_KERNEL = """kernel dots(a: {left}[{width}], b: {right}[2, {lanes}, {width}], out y: {total}[{sums}, {lanes}])
  [sizes N] {{
  alloc s: {total}[{sums}, {lanes}] register
  unroll i.0 in 0..{sums} {{ lane j.0 in 0..{lanes} {{ s[i.0, j.0] = {zero} }} }}
  for k in 0..N {{ unroll i in 0..{sums} {{ lane j in 0..{lanes} {{ dot n in 0..{width} {{
    s[i, j] += {total}(a[n]) * {total}(b[k % 2, j, n]) }} }} }} }}
  unroll i.1 in 0..{sums} {{ lane j.1 in 0..{lanes} {{ y[i.1, j.1] = s[i.1, j.1] }} }}
}}"""


class DotLoop:
    """A loop of nothing but one dot instruction."""

    def __init__(self, target: Target, dot: Dot) -> None:
        lanes = target.lanes(32)
        zero = "0.0" if dot.total.is_float else f"{dot.total}:0"
        text = _KERNEL.format(
            left=dot.left, right=dot.right, total=dot.total, width=dot.width, lanes=lanes, sums=_SUMS, zero=zero
        )
        compiled = compile_kernel(read_kernel(Source("dots", text)), target)
        loaded = load(compiled.object_code, compiled.entry, native_symbols())
        self._function = NativeFunction(loaded.address, 2, 1, 1, owner=loaded)
        self._factors = np.zeros(dot.width, dot.left.numpy), np.zeros((2, lanes, dot.width), dot.right.numpy)
        self._result = np.zeros((_SUMS, lanes), dot.total.numpy)
        self._step = _SUMS * lanes * dot.width * 2

    def operations(self, threads: int = 1, steps: int = 1 << 18, repeats: int = 8) -> float:
        """Additions and multiplications a second, in the best of some runs on all threads at once."""
        results = [np.zeros_like(self._result) for _ in range(threads)]

        def run(result: Array) -> None:
            self._function.run(self._factors, [result], [steps], interruptible=False)

        best = float("inf")
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(repeats):
                start = time.perf_counter()
                list(pool.map(run, results))
                best = min(best, time.perf_counter() - start)
        return threads * steps * self._step / best
