"""Plans as they run on a GPU: on a device whose kernels are run by the interpreter, in memory that is poisoned."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from op_programs import PROGRAMS

from intarsia.backends.gpu import interpreter
from intarsia.backends.gpu.triton_kernel import Pointer, TritonKernel
from intarsia.driver import Compilation, Options
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.runtime.cuda import target_of_capability
from intarsia.runtime.gpu import DevicePlan, Launcher, Place, PlanCall, Step

pytest.importorskip("triton")

TARGET = "gpu:sm_90"


class InterpretedDevice:
    """A device whose memory is that of the process: arrays that are made known to it."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.loaded: list[TritonKernel] = []
        self.captured: list[Callable[[], None]] | None = None
        self.reads = 0
        self.clock = 0

    def add(self, array: Array) -> int:
        """Make memory known, and give its address."""
        self.arrays.append(array)
        return array.ctypes.data

    def array(self, address: int, dtype: np.dtype[np.generic], others: Sequence[int]) -> Array:
        """The elements from an address to the next of some others, or to the end of the memory that it lies in."""
        for array in self.arrays:
            if 0 <= address - array.ctypes.data < max(array.nbytes, 1):
                rest = array.reshape(-1).view(np.uint8)[address - array.ctypes.data :]
                rest = rest[: min([a - address for a in others if a > address], default=len(rest))]
                return rest[: len(rest) // dtype.itemsize * dtype.itemsize].view(dtype)
        raise AssertionError(f"no memory was made at {address}")

    def prepare(self, kernels: Sequence[TritonKernel]) -> list[str | None]:
        return [None for _ in kernels]

    def load(self, kernel: TritonKernel) -> Launcher:
        self.loaded.append(kernel)
        return partial(self._launch, kernel)

    def _launch(self, kernel: TritonKernel, grid: tuple[int, int, int], parameters: Sequence[int | Place]) -> Step:
        def step(addresses: Sequence[int], stream: int) -> None:
            assert stream == 7
            self.launch(kernel, grid, [p if isinstance(p, int) else addresses[p[0]] + p[1] for p in parameters])

        return step

    def launch(self, kernel: TritonKernel, grid: tuple[int, int, int], parameters: Sequence[int]) -> None:
        """Run a kernel on the memory that its parameters point to."""
        values = dict(zip(kernel.parameters, parameters, strict=True))
        places = [v for p, v in values.items() if isinstance(p, Pointer)]
        sizes = {str(p.value): v for p, v in values.items() if not isinstance(p, Pointer)}
        arrays: dict[str, Array | list[Array]] = {}
        for p, address in values.items():
            if not isinstance(p, Pointer):
                continue
            found = self.array(address, p.dtype.numpy, places)
            if p.element is None:
                arrays[p.buffer] = found
            else:
                listed = arrays.setdefault(p.buffer, [])
                assert isinstance(listed, list)
                listed += [found] * (int(p.element) + 1 - len(listed))
                listed[int(p.element)] = found
        assert interpreter.launch_grid(kernel, sizes) == grid
        interpreter.run(kernel, arrays, sizes)
        self.clock += 1

    def copy(self, target: Place, source: Place, size: int) -> Step:
        def step(addresses: Sequence[int], stream: int) -> None:
            ctypes.memmove(addresses[target[0]] + target[1], addresses[source[0]] + source[1], size)

        return step

    def run(self, steps: Sequence[Step], addresses: Sequence[int], stream: int) -> None:
        for step in steps:
            step(addresses, stream)
        if self.captured is not None:
            self.captured.append(lambda: self.run(steps, addresses, stream))

    def read(self, address: int, size: int, stream: int) -> bytes:
        self.reads += 1
        return ctypes.string_at(address, size)

    def moment(self, stream: int) -> int:
        return self.clock

    def seconds(self, start: int, end: int) -> float:
        """A microsecond for each launch."""
        return (end - start) * 1e-6

    def bandwidth(self) -> float | None:
        return 1e12


def aligned(count: int, dtype: np.dtype[np.generic]) -> Array:
    """Poisoned memory at a multiple of 64 bytes."""
    size = count * dtype.itemsize
    raw = np.full(size + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype)


def placed(array: Array) -> Array:
    found = aligned(array.size, array.dtype)
    found[...] = array.reshape(-1)
    return found


def run(compilation: Compilation, inputs: Sequence[Array | list[Array]]) -> tuple[list[Array], InterpretedDevice]:
    device = InterpretedDevice()
    given = [[placed(t) for t in i] if isinstance(i, list) else placed(np.asarray(i)) for i in inputs]
    for number, plan in enumerate(compilation.plan.whole):
        call = PlanCall(DevicePlan(plan, compilation.launches, device), compilation.sizes)
        own = given
        if number == 0 and (once := compilation.plan.preparation) is not None:
            own = [given[n] for n in once.inputs]
        places = [device.add(t) for a in own for t in (a if isinstance(a, list) else [a])]
        for _ in range(2):  # walked, then repeated
            outputs = [aligned(int(np.prod(shape)), dtype.numpy) for shape, dtype in call.shapes]
            workspace = aligned(call.workspace, np.dtype(np.uint8))
            call.run([*places, *map(device.add, (*outputs, workspace)), 0], 7)
        given = [*given, *outputs]
    return [o.reshape(shape) for o, (shape, _) in zip(outputs, call.shapes)], device


SOME = (
    "dynamic_rows", "emitted_rows", "empty_and_single", "escape f32", "feed_forward", "layers", "loops", "nested_loops",
    "scalar_recurrence", "tables", "updates_in_group", "views",
)  # fmt: skip
"""Programs with loops, copies, lists and scratch memory."""


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", SOME)
def test_a_plan_gives_what_the_graph_gives(name: str, dynamic: bool) -> None:
    case = PROGRAMS[name]()
    module = Module(case.graph)
    options = Options(target=TARGET, dynamic=tuple(case.sizes) if dynamic else ())
    actual, _device = run(Compilation(module, case.sizes, options), list(case.inputs))
    for a, e in zip(actual, evaluate(module, case.inputs, case.sizes), strict=True):
        np.testing.assert_allclose(a.astype(np.float64), e.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_the_host_waits_only_for_numbers_that_it_branches_on() -> None:
    for name, waits in (("feed_forward", False), ("emitted_rows", False), ("loops", True)):
        case = PROGRAMS[name]()
        _, device = run(Compilation(Module(case.graph), case.sizes, Options(target=TARGET)), list(case.inputs))
        assert (device.reads > 0) == waits


def test_the_target_of_a_chip() -> None:
    assert target_of_capability((9, 0)).name == "gpu:sm_90"
    assert target_of_capability((8, 6)).name == "gpu:sm_80"
    with pytest.raises(CompileError, match="there is no code for this GPU, which is sm_75") as caught:
        target_of_capability((7, 5))
    assert caught.value.code == "E1716"
