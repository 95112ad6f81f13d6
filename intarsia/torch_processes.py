"""The devices of a mesh as processes of `torch.distributed`: on CPUs, by gloo.

They find each other as those that `torchrun` starts do: by `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, NoReturn

import numpy as np

from intarsia.collectives import Group, Memory, Transfer, Wait
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.spmd import merged
from intarsia.processes import World
from intarsia.runtime import buffers

_LONG = timedelta(days=7)
"""What a process waits for another one: as long as that one is there, it may compute."""

_GRACE = 5.0
"""Seconds until a process that has lost another one speaks: what started them knows more, and ends them."""


def distributed(backend: Literal["gloo", "nccl"]) -> Any:
    """The module of torch.distributed. Raises CompileError E1907 that says what is missing."""
    try:
        import torch
        import torch.distributed as found
    except ImportError as error:
        raise CompileError("E1907", f"there is no PyTorch: {error}", hint="install it: pip install torch") from None
    instead = "--devices gloo and --devices mpi run the program on CPUs"
    if backend == "nccl" and not torch.cuda.is_available():
        raise CompileError("E1907", "devices nccl are GPUs, and PyTorch finds none", hint=instead)
    if backend == "nccl":  # kernels, collectives and parts on GPUs have not been put together
        raise CompileError("E1906", "programs for several GPUs cannot be run yet", hint=instead)
    if not found.is_available() or not getattr(found, f"is_{backend}_available")():
        raise CompileError("E1907", f"this PyTorch was built without {backend}", hint=instead)
    return found


class TorchWorld(World):
    """The processes of torch.distributed. Raises CompileError E1907 where there are none."""

    def __init__(self, backend: Literal["gloo", "nccl"]) -> None:
        self.distributed = distributed(backend)
        self.backend = backend
        if missing := [n for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]:
            hint = "start it by torchrun --nproc-per-node 2 …, or by intarsia run"
            message = f"nothing says where the other processes are: no {', '.join(missing)}"
            raise CompileError("E1907", message, hint=hint)
        if not self.distributed.is_initialized():
            self.distributed.init_process_group("gloo", timeout=_LONG)
            atexit.register(self.distributed.destroy_process_group)
        self._world = self.distributed.new_group(backend="gloo", timeout=_LONG)
        hint = "start {0}: torchrun --nproc-per-node {0} …"
        super().__init__(self.distributed.get_rank(), self.distributed.get_world_size(), hint)

    def group(self, ranks: Sequence[Sequence[int]]) -> Group:
        made = [self.distributed.new_group(list(own), timeout=_LONG, backend=self.backend) for own in ranks]
        number, own = next((n, group) for n, group in enumerate(ranks) if self.rank in group)
        return TorchGroup(self.distributed, made[number], own, own.index(self.rank))

    def share(self, data: bytes) -> Sequence[bytes]:
        import torch

        given = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = torch.empty(self.size, len(data), dtype=torch.uint8)
        _named(self.distributed, "all_gather")(found.view(-1), given, group=self._world)
        return [bytes(row.numpy()) for row in found]

    def end_all(self, error: BaseException, text: str = "") -> NoReturn:
        if isinstance(error, RuntimeError):  # another process may be gone
            time.sleep(_GRACE)
        super().end_all(error, text)

    def abort(self) -> NoReturn:
        """What has started the processes ends the others, or they find that this one is gone."""
        os._exit(1)


class TorchGroup(Group):
    """A process group, for arrays of NumPy. `ranks` are those of its processes among all, in the order of the mesh;
    PyTorch sorts them."""

    def __init__(self, distributed: Any, group: Any, ranks: Sequence[int], rank: int) -> None:
        import torch

        self.torch = torch
        self.distributed = distributed
        self.group = group
        self.ranks = ranks
        self._sorted = sorted(range(len(ranks)), key=ranks.__getitem__)
        self.rank = rank
        self.size = len(ranks)

    def reduces(self, combiner: str, memory: Array) -> bool:
        """Gloo does not say what a maximum does with NaN, and has not all integers."""
        if memory.dtype in (np.float32, np.float64):
            return combiner in ("sum", "prod")
        return memory.dtype in (np.int8, np.uint8, np.int32, np.int64)

    def all_reduce(self, combiner: str, source: Array, target: Array) -> Transfer:
        given, taken = self.tensor(source), self.tensor(target)
        operator = self._operator(combiner)
        sent = self._transfer(lambda **how: self.distributed.all_reduce(taken, operator, **how))
        return sent.around(lambda: taken.copy_(given), _nothing)

    def reduce_scatter(self, combiner: str, source: Array, target: Array) -> Transfer:
        do, operator = _named(self.distributed, "reduce_scatter"), self._operator(combiner)

        def send(source: Memory, target: Memory) -> Transfer:
            given, taken = self.flat(source), self.flat(target)
            return self._transfer(lambda **how: do(taken, given, operator, **how))

        return self._in_order(source, target, send, of_target=False)

    def all_gather(self, source: Array, target: Array) -> Transfer:
        do = _named(self.distributed, "all_gather")
        return self._in_order(source, target, self._bytes_by(do), of_source=False)

    def all_to_all(self, source: Array, target: Array) -> Transfer:
        return self._in_order(source, target, self._bytes_by(self.distributed.all_to_all_single))

    def permute(self, source: Array, target: Array, origin: int, receivers: Sequence[int]) -> Transfer:
        own, given, taken = self.distributed, self.bytes(source), self.bytes(target)
        kinds = [(own.irecv, taken, origin)] if origin >= 0 else []
        kinds += [(own.isend, given, n) for n in receivers]
        every = [own.P2POp(kind, memory, self.ranks[n], self.group) for kind, memory, n in kinds]

        def begin() -> Wait:
            works = own.batch_isend_irecv(every) if every else []
            return lambda: [work.wait() for work in works]

        return Transfer(lambda: begin()(), begin)

    def _bytes_by(self, do: Callable[..., Any]) -> Callable[[Memory, Memory], Transfer]:
        def send(source: Memory, target: Memory) -> Transfer:
            given, taken = self.bytes(source), self.bytes(target)
            return self._transfer(lambda **how: do(taken, given, **how))

        return send

    def _in_order(
        self,
        source: Memory,
        target: Memory,
        send: Callable[[Memory, Memory], Transfer],
        of_source: bool = True,
        of_target: bool = True,
    ) -> Transfer:
        """What sends in the order in which PyTorch has the devices, between memory in that of the mesh: of those of the
        two that count them."""
        if self._sorted == [*range(self.size)]:
            return send(source, target)
        near = self.empty(source.shape, source) if of_source else source
        far = self.empty(target.shape, target) if of_target else target

        def before() -> None:
            if of_source:
                near[...] = source[self._sorted]

        def after() -> None:
            if of_target:
                target[self._sorted] = far

        return send(near, far).around(before, after)

    def _transfer(self, do: Callable[..., Any]) -> Transfer:
        return Transfer(lambda: do(group=self.group), lambda: do(group=self.group, async_op=True).wait)

    def _operator(self, combiner: str) -> Any:
        names = {"sum": "SUM", "prod": "PRODUCT", "max": "MAX", "min": "MIN"}
        return getattr(self.distributed.ReduceOp, names[combiner])

    # ------------------------------------------------------------------ memory

    def tensor(self, memory: Memory) -> Any:
        """Memory as a tensor of PyTorch."""
        return self.torch.from_numpy(memory)

    def flat(self, memory: Memory) -> Any:
        """The same in one dimension."""
        return self.tensor(memory.reshape(-1))

    def bytes(self, memory: Memory) -> Any:
        """The bytes of memory without gaps."""
        return self.tensor(memory.reshape(-1).view(np.uint8))

    def empty(self, shape: Sequence[int], like: Memory) -> Memory:
        return buffers.empty(shape, like.dtype)

    def moved(self, memory: Memory, order: Sequence[int]) -> Memory:
        return memory.transpose(order)

    def is_dense(self, memory: Memory) -> bool:
        return bool(memory.flags.c_contiguous)

    def merged(self, combiner: str, parts: Memory) -> Memory:
        return merged(combiner, list(parts))


def _named(distributed: Any, collective: str) -> Callable[..., Any]:
    """A collective between single tensors, by its name in this version of PyTorch."""
    old = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}
    found: Callable[..., Any] | None = getattr(distributed, f"{collective}_single", None)
    return getattr(distributed, old[collective]) if found is None else found


def _nothing() -> None:
    pass
