"""What a user may choose about a compilation, and the machine that it is for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Literal, TypeAlias, get_args

from intarsia.cache import Cache
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS, Rates, Target

ProcessKind: TypeAlias = Literal["mpi", "gloo", "nccl"]
"""What carries messages between processes that are the devices of a mesh: MPI, or a backend of torch.distributed."""

PROCESS_KINDS: tuple[str, ...] = get_args(ProcessKind)

CHOICES = {
    "sharding": ("auto", "strict"),
    "collectives": ("gather", "ring", "auto"),
    "devices": ("one", "simulate", *PROCESS_KINDS),
}
"""What some of the options may be."""

TEXTS = {"mesh": "data=2,model=4", "preset": "data=zero1,model=megatron", "device_passes": "gather-ahead,overlap"}
"""Options that are lists as the command line writes them."""


@dataclass(frozen=True)
class Options:
    """What a user may choose about a compilation.

    target: a CPU target's name, or None for this machine. dynamic: dimension names kept as run-time values.
    passes: the pipeline after `specialize` in place of the default one. schedule: pinned schedules, as text.
    checks: subscripts that depend on data and divisors are checked at run time. unordered: float atomics are allowed.
    donated: parameters whose arrays a call on a CPU may use for its results, which are then these arrays.
    mesh: devices, `data=2,model=2`, in place of the mesh of the program. sharding: `strict` makes every choice between
    shardings an error. devices: where those of the mesh are: `simulate` all in this process, `mpi` and `gloo` one in
    each of several, `nccl` one GPU in each; `one` drops the mesh and all shardings; None is `simulate`, or `nccl`
    for a GPU, if there is a mesh or something that needs one is asked for, and else `one`.
    collectives: `ring` works on blocks as they come round the devices in place of gathering them first, `auto` where a
    model of the `cluster` says that this takes less time. cluster: what devices and links can do, by which the compiler
    chooses between ways of sending: a name such as `nvlink-node`, or a JSON file.
    device_passes: passes on the program of a device, `overlap{cluster=nvlink-node}`, as a pipeline.
    preset: a known plan of training, `zero3`, or one for each axis of the mesh, `data=zero1,model=megatron`.
    pipeline: a schedule, `1f1b`, by which a training step runs in `stages` on so many devices, or on as many as these
    are `chunks` where it is `interleaved`, with the batch cut into `microbatches`; a mesh is that of each stage.
    memory_budget: bytes of intermediate values that may wait for their readers; what would be more is computed again.
    """

    target: str | None = None
    dynamic: tuple[str, ...] = ()
    passes: str | None = None
    schedule: str | None = None
    checks: bool = False
    unordered: bool = False
    donated: tuple[str, ...] = ()
    mesh: str | None = None
    sharding: Literal["auto", "strict"] = "auto"
    devices: Literal["one", "simulate"] | ProcessKind | None = None
    collectives: Literal["gather", "ring", "auto"] = "gather"
    cluster: str = "laptop"
    device_passes: str | None = None
    preset: str | None = None
    pipeline: Literal["gpipe", "1f1b", "interleaved", "zero-bubble"] | None = None
    stages: int = 2
    microbatches: int = 4
    chunks: int = 2
    memory_budget: int | None = None

    @property
    def needing_devices(self) -> str | None:
        """The first of what is asked for that only the devices of a mesh can do: on one device it would be ignored."""
        asked = {
            f"the mesh {self.mesh}": self.mesh is not None,
            f"the preset {self.preset}": self.preset is not None,
            f"the device passes {self.device_passes}": self.device_passes is not None,
            "strict sharding": self.sharding != "auto",
            f"collectives {self.collectives}": self.collectives != "gather",
            f"the cluster {self.cluster}": self.cluster != "laptop",
            f"the pipeline {self.pipeline}": self.pipeline is not None,
        }
        return next((text for text, is_asked in asked.items() if is_asked), None)

    def on_devices(self, declared: str) -> Options:
        """The options with `devices` decided, None for one: a mesh, given or `declared` by the program, means all
        of its devices. Raises CompileError E1901 for what needs devices and has none, and for what is no choice."""
        for option, choices in CHOICES.items():
            if (asked := getattr(self, option)) not in (None, *choices):
                raise CompileError("E1901", f"{option} {asked!r} is no choice", hint=", ".join(choices))
        for option, example in TEXTS.items():
            if not isinstance(asked := getattr(self, option), str | None):
                raise CompileError("E1901", f"{option} {asked!r} is no text", hint=f"write '{example}'")
        asked = self.needing_devices
        if self.devices == "one" and asked is not None:
            raise CompileError("E1901", f"{asked} is for several devices", hint="leave out that, or devices 'one'")
        if self.pipeline is None and (self.stages, self.microbatches, self.chunks) != (2, 4, 2):
            raise CompileError("E1901", "stages, micro-batches and chunks are those of a pipeline, and there is none")
        if self.pipeline != "interleaved" and self.chunks != 2:
            raise CompileError("E1901", f"chunks are those of the pipeline interleaved, and this is {self.pipeline}")
        if asked is not None and not declared and self.mesh is None and self.pipeline is None:
            hint = "declare a mesh, mesh pod(data=2), or give --mesh data=2"
            raise CompileError("E1901", f"{asked} needs the devices of a mesh, and the program has none", hint=hint)
        if self.devices is None and (declared or asked is not None):
            return replace(self, devices="nccl" if (self.target or "").startswith("gpu") else "simulate")
        return replace(self, devices=None) if self.devices == "one" else self

    def resolve_target(self) -> Target:
        """The machine; for devices `nccl` the GPU at hand, unless another target is named. Raises CompileError E1701,
        E1703, E1716, and E1907 where PyTorch or a GPU is missing."""
        if self.devices == "nccl" and self.target in (None, "gpu"):
            from intarsia.torch_processes import distributed

            distributed("nccl")
            return resolve_target("gpu")
        return resolve_target(self.target)


def resolve_target(name: str | None) -> Target:
    """The target of a name such as `cpu`, `cpu:host` or `cpu:x86-avx2`; None is this machine, `gpu` its GPU.

    Raises CompileError E1701 where no target has this name, E1703 or E1716 where there is no GPU.
    """
    if name in (None, "cpu", "cpu:host"):
        return host_target()
    assert name is not None
    if name == "gpu":
        from intarsia.runtime.cuda import present_target

        return present_target()
    if name not in TARGETS:
        names = ", ".join(["cpu", *TARGETS])
        others = ("reference", "kernels", "plan", "triton-interpret")
        if name in others:
            hint = f"nothing is compiled for it: intarsia run --target {name}"
            raise CompileError("E1701", f"'{name}' is a target of the command line alone", hint=hint)
        raise CompileError("E1701", f"no target is named '{name}'", hint=f"targets: {names}, {', '.join(others)}")
    return TARGETS[name]


def require_host(target: Target) -> None:
    """Raise CompileError E1702 where this machine cannot run code for `target`."""
    if target.kind == "gpu":
        hint = "look at its code with `intarsia emit`, or run it without a GPU: --target triton-interpret"
        raise CompileError("E1702", f"this command does not run programs on {target.name}", hint=hint)
    host = host_target()
    missing = sorted(set(target.features) - set(host.features))
    if target.triple.partition("-")[0] != host.triple.partition("-")[0]:
        message = f"this machine is a {host.triple.partition('-')[0]} and cannot run code for {target.name}"
    elif missing and target != host:
        message = f"this machine lacks {', '.join(missing)} and cannot run code for {target.name}"
    else:
        return
    raise CompileError("E1702", message, hint="leave out --target, or only emit the code")


def measured_target(name: str | None) -> str | None:
    """The name under which a target is the machine at hand, on which schedules are to be measured: a GPU counts as
    `gpu`, so that it is told by its own name. Raises CompileError E1702 where this machine is another one, E1703 or
    E1716 where there is no GPU."""
    if name != "gpu" and (name not in TARGETS or TARGETS[name].kind == "cpu"):
        require_host(resolve_target(name))
        return name
    hint = "without it, `intarsia tune --target gpu:sm_90 --predict-only` ranks schedules and compiles the best ones"
    try:
        present = resolve_target("gpu")
    except CompileError as error:
        (found, *_) = error.diagnostics
        raise CompileError(found.code, found.message, hint=f"{found.hint}; {hint}") from None
    if name not in ("gpu", present.name):
        raise CompileError("E1702", f"the GPU at hand, {present.model}, is no {name}", hint=hint)
    return "gpu"


@cache
def host_target() -> Target:
    """This machine: its processor as LLVM knows it, its cores and caches, and its rates if they were measured."""
    from intarsia.backends.cpu import machine

    found = machine.host_target()
    return replace(found, rates=known_rates(Cache(), found) or found.rates)


def known_rates(cache: Cache, target: Target) -> Rates | None:
    """The rates of this machine as `intarsia list targets --measure` found them, or None if it never ran."""
    found = cache.get("rates", _rates_key(target))
    if found is None:
        return None
    values = json.loads(found)
    return Rates(**{**values, "cache_bytes": tuple(values["cache_bytes"])})


def remember_rates(cache: Cache, target: Target, rates: Rates) -> None:
    """Keep measured rates for compilations to come."""
    cache.put("rates", _rates_key(target), json.dumps(asdict(rates)).encode())
    host_target.cache_clear()


def _rates_key(target: Target) -> str:
    return str(replace(target, rates=Rates()))
