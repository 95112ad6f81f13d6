"""The devices of a mesh as processes of `torch.distributed`: on CPUs by gloo, with a GPU for each by NCCL.

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

from intarsia.backends.gpu.torch_types import TORCH_TYPES
from intarsia.collectives import Group, Memory, Transfer, Wait, empty, nothing
from intarsia.ir.dtypes import BF16, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.processes import Sent, World

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
        if backend == "nccl":
            _take_gpu(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
        if not self.distributed.is_initialized():
            self.distributed.init_process_group("gloo", timeout=_LONG)
            atexit.register(self.distributed.destroy_process_group)
        self._world = self.distributed.new_group(backend="gloo", timeout=_LONG)
        hint = "start {0}: torchrun --nproc-per-node {0} …"
        super().__init__(self.distributed.get_rank(), self.distributed.get_world_size(), hint)

    def group(self, ranks: Sequence[Sequence[int]]) -> Group:
        made = [self.distributed.new_group(list(own), timeout=_LONG, backend=self.backend) for own in ranks]
        number, own = next((n, group) for n, group in enumerate(ranks) if self.rank in group)
        self.distributed.barrier(group=made[number])  # all have to meet before some of them send to each other
        return TorchGroup(self.distributed, made[number], own, own.index(self.rank))

    def share(self, data: bytes) -> Sequence[bytes]:
        import torch

        given = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = torch.empty(self.size, len(data), dtype=torch.uint8)
        _named(self.distributed, "all_gather")(found.view(-1), given, group=self._world)
        return [bytes(row.numpy()) for row in found]

    def send(self, memory: Memory, to: int, tag: int) -> Sent:
        work = self.distributed.isend(_bytes_of(memory), to, group=self._world, tag=tag)
        return Sent(work.is_completed, work.wait)

    def receive(self, memory: Memory, origin: int, tag: int) -> None:
        self.distributed.recv(_bytes_of(memory), origin, group=self._world, tag=tag)

    def end_all(self, error: BaseException, text: str = "") -> NoReturn:
        if isinstance(error, RuntimeError):  # another process may be gone
            time.sleep(_GRACE)
        super().end_all(error, text)

    def abort(self) -> NoReturn:
        """What has started the processes ends the others, or they find that this one is gone."""
        os._exit(1)


class TorchGroup(Group):
    """A process group, for tensors. `ranks` are those of its processes among all, in the order of the mesh; PyTorch
    sorts them. On a GPU nothing waits on the host: what is done, it does on the caller's stream."""

    def __init__(self, distributed: Any, group: Any, ranks: Sequence[int], rank: int) -> None:
        import torch

        self.torch = torch
        self.distributed = distributed
        self.group = group
        self.ranks = ranks
        self._sorted = sorted(range(len(ranks)), key=ranks.__getitem__)
        self.rank = rank
        self.size = len(ranks)

    def reduces(self, combiner: str, memory: Memory) -> bool:
        """Neither gloo nor NCCL says what a maximum does with NaN, and gloo has not all integers; NCCL rounds sums of
        16 bits at each device."""
        torch = self.torch
        if memory.dtype in (torch.float32, torch.float64):
            return combiner in ("sum", "prod")
        return memory.dtype in (torch.int8, torch.uint8, torch.int32, torch.int64)

    def all_reduce(self, combiner: str, source: Memory, target: Memory) -> Transfer:
        operator = self._operator(combiner)
        sent = self._transfer(lambda **how: self.distributed.all_reduce(target, operator, **how))
        return sent.around(lambda: target.copy_(source), nothing)

    def reduce_scatter(self, combiner: str, source: Memory, target: Memory) -> Transfer:
        do, operator = _named(self.distributed, "reduce_scatter"), self._operator(combiner)

        def send(source: Memory, target: Memory) -> Transfer:
            given, taken = source.view(-1), target.view(-1)
            return self._transfer(lambda **how: do(taken, given, operator, **how))

        return self._in_order(source, target, send, of_target=False)

    def all_gather(self, source: Memory, target: Memory) -> Transfer:
        do = _named(self.distributed, "all_gather")
        return self._in_order(source, target, self._bytes_by(do), of_source=False)

    def all_to_all(self, source: Memory, target: Memory) -> Transfer:
        return self._in_order(source, target, self._bytes_by(self.distributed.all_to_all_single))

    def permute(self, source: Memory, target: Memory, origin: int, receivers: Sequence[int]) -> Transfer:
        own, given, taken = self.distributed, self._bytes(source), self._bytes(target)
        kinds = [(own.irecv, taken, origin)] if origin >= 0 else []
        kinds += [(own.isend, given, n) for n in receivers]
        every = [own.P2POp(kind, memory, self.ranks[n], self.group) for kind, memory, n in kinds]

        def begin() -> Wait:
            works = own.batch_isend_irecv(every) if every else []
            return lambda: [work.wait() for work in works]

        return Transfer(lambda: begin()(), begin)

    def _bytes_by(self, do: Callable[..., Any]) -> Callable[[Memory, Memory], Transfer]:
        def send(source: Memory, target: Memory) -> Transfer:
            given, taken = self._bytes(source), self._bytes(target)
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
        near = empty(source.shape, source) if of_source else source
        far = empty(target.shape, target) if of_target else target

        def before() -> None:
            if of_source:
                for n, own in enumerate(self._sorted):  # PyTorch indexes by lists in some types only
                    near[n] = source[own]

        def after() -> None:
            if of_target:
                for n, own in enumerate(self._sorted):
                    target[own] = far[n]

        return send(near, far).around(before, after)

    def _transfer(self, do: Callable[..., Any]) -> Transfer:
        return Transfer(lambda: do(group=self.group), lambda: do(group=self.group, async_op=True).wait)

    def _operator(self, combiner: str) -> Any:
        names = {"sum": "SUM", "prod": "PRODUCT", "max": "MAX", "min": "MIN"}
        return getattr(self.distributed.ReduceOp, names[combiner])

    # ------------------------------------------------------------------ memory

    def memory(self, given: Memory) -> Memory:
        """A tensor, or an array of NumPy as one; what PyTorch has no type for by its bytes."""
        if not isinstance(given, np.ndarray):
            return given
        element = of_numpy(given.dtype)
        if element == BF16:
            return self.torch.from_numpy(given.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(given if element in TORCH_TYPES else given.view(np.uint8))

    def moved(self, memory: Memory, order: Sequence[int]) -> Memory:
        return memory.permute(*order)

    def is_dense(self, memory: Memory) -> bool:
        return bool(memory.is_contiguous())

    def merged(self, combiner: str, parts: Memory) -> Memory:
        """As `ir/spmd.py` has it. PyTorch cannot compute with unsigned integers of more than 8 bits: sums and products
        of them have the bits of signed ones, and they are in the order of these where the first bit is flipped."""
        torch, kind = self.torch, parts.dtype
        merge = {"sum": torch.add, "prod": torch.mul, "max": torch.maximum, "min": torch.minimum}[combiner]
        signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}.get(kind)
        if signed is not None:
            flip = torch.iinfo(signed).min if combiner in ("max", "min") else 0
            return (self.merged(combiner, parts.view(signed) ^ flip) ^ flip).view(kind)
        wide = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind
        result = parts[0].to(wide)
        for other in parts[1:]:
            result = merge(result, other.to(wide))
        return result.to(kind)

    def _bytes(self, memory: Memory) -> Any:
        """The bytes of memory without gaps."""
        return memory.view(-1).view(self.torch.uint8)


def _bytes_of(memory: Memory) -> Any:
    """The bytes of an array without gaps, as a tensor."""
    import torch

    return torch.from_numpy(memory.reshape(-1).view(np.uint8))


def _take_gpu(number: int) -> None:
    """Make a GPU that of this process. Raises CompileError E1907 where there is none of this number."""
    import torch

    if number >= (count := torch.cuda.device_count()):
        message = f"process {number} of this machine has no GPU: PyTorch finds {count}"
        raise CompileError("E1907", message, hint="start as many processes on a machine as it has GPUs")
    torch.cuda.set_device(number)


def _named(distributed: Any, collective: str) -> Callable[..., Any]:
    """A collective between single tensors, by its name in this version of PyTorch."""
    old = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}
    found: Callable[..., Any] | None = getattr(distributed, f"{collective}_single", None)
    return getattr(distributed, old[collective]) if found is None else found
