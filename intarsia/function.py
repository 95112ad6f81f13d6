"""A function of a program as a Python object: calling it compiles it for the types of the arguments, once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from intarsia.arguments import check_names, flatten
from intarsia.deep_stack import with_deep_stack
from intarsia.donation import with_own_memory
from intarsia.executable import Executable
from intarsia.files import Weights
from intarsia.ir.dtypes import F32, Array
from intarsia.ir.errors import CompileError
from intarsia.options import Options, require_host
from intarsia.positional_call import PositionalCall
from intarsia.results import in_form
from intarsia.runtime import dlpack
from intarsia.runtime.dispatch import Dispatcher
from intarsia.signature import ParameterForm, SignatureForm, known_sizes
from intarsia.tensors import Tensors, adapted, declared_types, kind_of, open_types, snapshot, split_arguments
from intarsia.tuning.known import state_of_knowledge

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.gpu_calls import GpuCalls
    from intarsia.ir.graph import Module
    from intarsia.ir.types import Type
    from intarsia.lowered import Lowered
    from intarsia.mesh_calls import MeshCalls
    from intarsia.program import Program

_KNOWN_CALLS = 1024

_KNOWN_PREPARATIONS = 16
"""Arrangements of the bound constants that are kept: each is about as large as they are."""


class Function:
    """One function of a program. Safe to call from several threads, and in forked children."""

    def __init__(self, program: Program, name: str | None, bound: Mapping[str, object] | None = None) -> None:
        self.program = program
        self.name = name
        self.bound = dict(bound or {})
        self._calls: dict[tuple[object, ...], PositionalCall] = {}
        self._dispatcher = Dispatcher()
        self._orders: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._compiled: dict[object, tuple[Executable, dict[str, int]]] = {}
        self._prepared: dict[object, list[Array]] = {}

    def __repr__(self) -> str:
        return f"<intarsia function {self.form.function} of {self.program.source.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the program, the name and what is bound."""
        return Function, (self.program, self.name, self.bound)

    # ---------------------------------------------------------------- signature

    @cached_property
    def form(self) -> SignatureForm:
        """The signature as data. Raises CompileError where the program or the name is wrong."""
        key = self.program.key("signature", self.name)
        if (data := self.program.recall("signature", key)) is not None:
            return SignatureForm.from_json(json.loads(data))
        from intarsia.library_form import signature_form  # brings the parser

        form = with_deep_stack(lambda: signature_form(self.program.library, self.name))
        self.program.remember("signature", key, form.to_json())
        return form

    @cached_property
    def options(self) -> Options:
        """What is chosen for the program, with the devices that this means for the mesh that it declares; None is one
        device.

        Raises CompileError E0610 for a donated parameter that is not there, E1901 for what needs devices and has none.
        """
        chosen = self.program.options
        check_names(chosen.donated, self.form.labels, complete=False)
        return chosen.on_devices(self.form.mesh)

    @property
    def constants(self) -> tuple[str, ...]:
        """The parameters declared `const`."""
        return tuple(p.name for p in self.form.parameters if p.is_constant)

    def bind(self, **values: object) -> Function:
        """The function with some parameters given. They are read once: later changes to the arrays are not seen.

        Raises CompileError E0610 for a name that no parameter has.
        """
        for name in values:
            self._require_parameter(name)
        copies = {name: snapshot(value) for name, value in values.items()}
        return Function(self.program, self.name, {**self.bound, **copies})

    def _require_parameter(self, name: str) -> None:
        if self.form.parameter(name) is None:
            names = ", ".join(p.name for p in self.form.parameters) or "none"
            message = f"{self.form.function} has no parameter '{name}'"
            raise CompileError("E0610", message, hint=f"its parameters: {names}")

    # ---------------------------------------------------------------- calling

    def __call__(self, *positional: object, **named: object) -> Any:
        """Run on NumPy arrays, anything with DLPack, Python numbers, and mappings for structs.

        Dimension names that no argument decides are keywords (`grid(x, N=64)`). Results are of the arguments' kind.
        """
        if self._elsewhere is not None:
            return self._elsewhere(positional, named)
        if named:
            positional, named = self._in_order(positional, named)
        if not named:
            result = self._dispatcher.function(*positional)
            if result is not NotImplemented:
                return result
            kinds = tuple([(v.dtype, v.shape) if type(v) is np.ndarray else type(v) for v in positional])
            call = self._calls.get(kinds)
            if call is not None:
                if not call.is_repeated:
                    call.is_repeated = True  # a program that runs once does not wait for what speeds up repetition
                    self._dispatch(call)
                return call(positional)
            if (library := dlpack.library_of(positional)) is not None and self._takes_tensors(len(positional)):
                return self._call_with_tensors(positional, library)
        given, dims = self.arrange(positional, named)
        statics, tensors = self.split(given)
        executable, sizes = self.compiled(tensors, statics, dims, self.fixed(given))
        inputs = with_own_memory(executable, adapted(executable.inputs, tensors, sizes), self.bound)
        prepared = self._prepared_for(executable, inputs, sizes)
        if not named and self._is_plain(positional, executable):
            if len(self._calls) >= _KNOWN_CALLS:  # a stream of ever new sizes
                self._calls.clear()
                self._dispatcher.clear()
            names = [p.name for p in self._free]
            call = PositionalCall(executable, sizes, inputs, prepared, dict(zip(names, positional)))
            self._calls[kinds] = call
        values = (v for v in given.values() if not isinstance(v, Weights))
        library = dlpack.library_of([leaf for v in values for leaf in flatten(v).values()])
        results = [dlpack.to_library(r, library) for r in executable.run(inputs, sizes, prepared)]
        return in_form(executable.labels, results)

    def local(self, *positional: object, **named: object) -> Any:
        """Run on processes that are the devices of a mesh; gives this process's part of each result, which a later call
        takes as it is (`intarsia.Part`).

        Raises CompileError E1911 where the devices are no processes.
        """
        if self.mesh is None:
            from intarsia.parts import Part

            raise Part.without_processes()
        return self.mesh.local(positional, named)

    @property
    def runs_on_gpu(self) -> bool:
        """Is its target a GPU, and no mesh of them?"""
        options = self.options
        return (options.target or "").startswith("gpu") and options.devices is None

    @cached_property
    def gpu(self) -> GpuCalls | None:
        """What runs the function if its target is a GPU. Raises CompileError E1703 or E1716 where there is none."""
        if not self.runs_on_gpu:
            return None
        from intarsia.gpu_calls import GpuCalls

        return GpuCalls.of(self)

    @cached_property
    def mesh(self) -> MeshCalls | None:
        """What runs the function if it is for the devices of a mesh."""
        if self.options.devices is None:
            return None
        if self.options.pipeline is not None:
            from intarsia.pipeline_calls import PipelineCalls

            return PipelineCalls(self)
        if self.options.devices == "nccl":
            from intarsia.gpu_mesh import GpuMeshCalls

            return GpuMeshCalls(self)
        from intarsia.mesh_calls import MeshCalls

        return MeshCalls(self)

    @cached_property
    def _elsewhere(self) -> GpuCalls | MeshCalls | None:
        return self.mesh or self.gpu

    def _prepared_for(
        self, executable: Executable, inputs: Sequence[Array | tuple[Array, ...]], sizes: Mapping[str, int]
    ) -> list[Array]:
        """What is computed from the bound constants, kept for all code that wants the same of them."""
        once = executable.preparation
        if once is None:
            return []
        labels = tuple(layout.label for layout in once.inputs)
        key = (once.pieces, labels, tuple(sizes[name] for name in once.sizes))
        found = self._prepared.get(key)
        if found is None:
            if len(self._prepared) >= _KNOWN_PREPARATIONS:
                self._prepared.clear()
            found = self._prepared[key] = executable.prepared(inputs, sizes)
        return found

    def _in_order(
        self, positional: tuple[object, ...], named: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """All arguments by position, where those by keyword are for the parameters that come next."""
        key = (len(positional), *named)
        order = self._orders.get(key)
        if order is None:
            following = tuple(p.name for p in self._free[len(positional) : len(positional) + len(named)])
            order = following if set(following) == set(named) else ()
            if len(self._orders) < _KNOWN_CALLS:
                self._orders[key] = order
        return ((*positional, *[named[name] for name in order]), {}) if order else (positional, named)

    def _takes_tensors(self, count: int) -> bool:
        """Is each of the first parameters one tensor?"""
        return count <= len(self._free) and not any(p.is_struct or p.is_static for p in self._free[:count])

    def _call_with_tensors(self, positional: Sequence[object], library: ModuleType) -> Any:
        """A call with tensors of another library, as one with arrays that share their memory."""
        own = (np.ndarray, np.generic)
        arrays = [
            dlpack.as_array(v, dlpack.Parameter(p.name, F32))
            if hasattr(v, "__dlpack__") and not isinstance(v, own)
            else v
            for p, v in zip(self._free, positional)
        ]
        return _to_library(self(*arrays), library)

    def _dispatch(self, call: PositionalCall) -> None:
        """Have a call made natively from now on where it can be."""
        if (native := call.dispatched()) is not None:
            self._dispatcher.add(native)

    def _is_plain(self, positional: Sequence[object], executable: Executable) -> bool:
        """Do the types of the positional arguments alone decide what has to be run on their memory?"""
        if any(t.takes >= 0 for t in executable.outputs):
            return False
        labels = {layout.label: layout.dtype for layout in executable.inputs}
        for parameter, value in zip(self._free, positional):
            if type(value) not in (np.ndarray, bool, int, float) or parameter.name not in labels:
                return False
            if type(value) is np.ndarray and value.dtype != labels[parameter.name].numpy:
                return False
            if labels[parameter.name].is_narrow:  # codes, whose range is checked in each call
                return False
        return True

    @cached_property
    def _free(self) -> tuple[ParameterForm, ...]:
        """The parameters that are not bound."""
        return tuple(p for p in self.form.parameters if p.name not in self.bound)

    def arrange(
        self, positional: Sequence[object], named: Mapping[str, object]
    ) -> tuple[dict[str, object], dict[str, int]]:
        """Arguments by parameter, and sizes given by keyword. What has a default may be missing.

        Raises CompileError E0610, E0611, E0613 or E0615.
        """
        form = self.form
        if len(positional) > len(self._free):
            count = "1 argument" if len(self._free) == 1 else f"{len(self._free)} arguments"
            message = f"{form.function} takes {count}, and {len(positional)} are given"
            raise CompileError("E0615", message)
        given: dict[str, object] = {p.name: v for p, v in zip(self._free, positional)}
        dims: dict[str, int] = {}
        for name, value in named.items():
            if form.parameter(name) is None and name in form.dimensions:
                dims[name] = _dimension(name, value)
                continue
            self._require_parameter(name)
            if name in given:
                raise CompileError("E0615", f"{form.function}: the argument {name} is given twice")
            given[name] = value
        given = {**self.bound, **given}
        missing = [p.name for p in form.parameters if p.name not in given and not p.has_default]
        if missing:
            raise CompileError("E0613", f"{form.function}: no argument for {', '.join(missing)}")
        return given, dims

    def split(self, given: Mapping[str, object]) -> tuple[dict[str, object], Tensors]:
        """Static arguments, and the tensors of all others by label. Bound ones are looked up once."""
        own = [p for p in self.form.parameters if p.name not in self.bound or given[p.name] is not self.bound[p.name]]
        names = {p.name for p in own}
        bound_statics, bound_tensors = self._bound_arguments
        statics, tensors = split_arguments(own, given)
        statics.update((n, v) for n, v in bound_statics.items() if n not in names)
        tensors.update((n, v) for n, v in bound_tensors.items() if n.partition(".")[0] not in names)
        return statics, tensors

    @cached_property
    def _bound_arguments(self) -> tuple[dict[str, object], Tensors]:
        return split_arguments(self.form.parameters, self.bound)

    # ---------------------------------------------------------------- compiling

    def compiled(
        self,
        tensors: Tensors,
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: Collection[str] | None = None,
    ) -> tuple[Executable, dict[str, int]]:
        """Code for these types, from memory, the cache or the compiler; and the sizes that stayed open. `constants` are
        the parameters that will not change between calls: by default all that are declared so.

        Raises CompileError for what is wrong with the program or does not fit.
        """
        fixed = self.constants if constants is None else tuple(constants)
        key = (tuple([(n, *kind_of(v)) for n, v in tensors.items()]), _plain(statics), tuple(dims.items()), fixed)
        found = self._compiled.get(key)
        if found is None:
            if len(self._compiled) >= _KNOWN_CALLS:
                self._compiled.clear()
            types = declared_types(self.form, tensors, dims)
            found = self._compiled[key] = self._for_types(types, statics, dims, fixed)
        return found

    def _for_types(
        self,
        types: Mapping[str, Type],
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: tuple[str, ...],
    ) -> tuple[Executable, dict[str, int]]:
        require_host(self.options.resolve_target())
        key, sizes = self.code_key(types, statics, dims, constants)
        if (known := self._compiled.get(key)) is not None:
            executable = known[0]
        else:
            executable = self._from_cache(self.program.key(*key), types, statics, dims, constants)
            self._compiled[key] = executable, {}
        return executable, {name: sizes[name] for name in executable.sizes}

    def code_key(
        self,
        types: Mapping[str, Type],
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: tuple[str, ...],
    ) -> tuple[tuple[str, str], dict[str, int]]:
        """What decides the code for these types, and the sizes, if some stay open in it. Raises CompileError where the
        program is not right for them."""
        options = self.options
        sizes = self._open_sizes(types, dims)
        opened = open_types(self.form, types, sizes, options.dynamic)
        fixed = {n: v for n, v in dims.items() if n not in options.dynamic}
        settings = [dataclasses.asdict(options), dataclasses.asdict(options.resolve_target())]
        if options.devices is not None:
            from intarsia.ir.cluster import Cluster

            settings.append(dataclasses.asdict(Cluster.read(options.cluster)))  # what is in the file
        sizes_given = sorted(fixed.items())
        parts = [self.name, _texts(opened), _plain(statics), sizes_given, constants, *settings, state_of_knowledge()]
        if sizes:
            self._prove(types, statics, dims)
        return ("program", json.dumps(parts)), sizes

    def _from_cache(
        self,
        key: str,
        types: Mapping[str, Type],
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        constants: tuple[str, ...],
    ) -> Executable:
        if (data := self.program.recall("program", key)) is not None:
            return Executable.from_bytes(data)
        compilation = self.compilation_of_types(types, statics, dims, constants=constants)
        store = self.program.kernel_store
        executable = with_deep_stack(lambda: compilation.executable(store))
        self.program.remember("program", key, executable.to_bytes())
        return executable

    def _open_sizes(self, types: Mapping[str, Type], dims: Mapping[str, int]) -> dict[str, int]:
        """The number of every dimension name, where some are to stay open; else nothing."""
        dynamic = self.options.dynamic
        if not dynamic:
            return {}
        found = known_sizes(self.form, *shapes_of(types), dims)
        require_dimensions(self.form, dynamic, found)
        return found

    def _prove(self, types: Mapping[str, Type], statics: Mapping[str, object], dims: Mapping[str, int]) -> None:
        """Check the program for the sizes at hand: code for open sizes rests on what holds for them.

        Raises CompileError, such as E0403 for an access that is outside for these sizes.
        """
        key = self.program.key("proof", self.name, _texts(types), _plain(statics), sorted(dims.items()))
        if self.program.recall("proof", key) is None:
            self.compilation_of_types(types, statics, dims, dataclasses.replace(self.options, dynamic=()))
            self.program.remember("proof", key, b"")

    def compilation(
        self,
        tensors: Tensors,
        statics: Mapping[str, object] | None = None,
        dims: Mapping[str, int] | None = None,
        constants: Collection[str] | None = None,
    ) -> Compilation:
        """The compilation for these tensors, no stage made yet but the graph."""
        types = declared_types(self.form, tensors, dims)
        return self.compilation_of_types(types, statics or {}, dims or {}, constants=constants)

    def compilation_of_types(
        self,
        types: Mapping[str, Type] | None,
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        options: Options | None = None,
        constants: Collection[str] | None = None,
    ) -> Compilation:
        """The compilation for these types; for None, the types are those of the signature, sizes as names. `constants`
        are the parameters that will not change between calls: by default all that are declared so."""
        from intarsia.driver import Compilation  # brings the passes

        library, own = self.program.library, options or self.options

        def build() -> Compilation:
            sizes = dict(dims) if types is None else library.bind_sizes(self.name, types, dims)
            given = types
            if types is not None and own.dynamic:
                library.build(self.name, types=types, dims=sizes, statics=statics)  # finds what is wrong at these sizes
                given = open_types(self.form, types, sizes, own.dynamic)
            fixed = {name: number for name, number in sizes.items() if name not in own.dynamic}
            module, conditions = library.build_open(self.name, given, fixed, statics)
            if constants is not None:
                module = _with_constants(module, constants)
            return Compilation(module, sizes, own, conditions)

        return with_deep_stack(build)

    def lower(self, *positional: object, **named: object) -> Lowered:
        """The compilation for the types of these arguments, with every stage."""
        from intarsia.lowered import Lowered

        given, dims = self.arrange(positional, named)
        statics, tensors = self.split(given)
        return Lowered(self.compilation(tensors, statics, dims, self.fixed(given)))

    def fixed(self, given: Mapping[str, object]) -> tuple[str, ...]:
        """The constants that are bound, and not given anew for one call."""
        return tuple(n for n in self.constants if n in self.bound and given[n] is self.bound[n])


def require_dimensions(form: SignatureForm, dynamic: Collection[str], also: Collection[str] = ()) -> None:
    """Raise CompileError E0611 for a name to keep open that is no dimension of the function."""
    packs = {d[2:] for t in form.tensors for d in t.dims if d.startswith("..")}
    for name in dynamic:
        if name not in form.dimensions and name not in also and name.rpartition("_")[0] not in packs:
            known = ", ".join(form.dimensions) or "none"
            message = f"{form.function} has no dimension '{name}' to keep open"
            raise CompileError("E0611", message, hint=f"its dimensions: {known}")


def shapes_of(types: Mapping[str, Type]) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes by label, of one element for a list, and the lengths of lists."""
    from intarsia.ir.types import ListType

    tensors = {n: t.tensor for n, t in types.items()}
    lengths = {n: int(t.length) for n, t in types.items() if isinstance(t, ListType)}
    return {n: t.static_shape for n, t in tensors.items()}, lengths


def _with_constants(module: Module, constants: Collection[str]) -> Module:
    """The program in which these parameters only do not change between calls."""
    body = module.graph.body
    old = [p for p in body.parameters if p.constant and p.label.partition(".")[0] not in constants]
    new = {p: dataclasses.replace(p, constant=False) for p in old}
    if not new:
        return module
    body = dataclasses.replace(body, parameters=tuple(new.get(p, p) for p in body.parameters))
    return module.with_body(body.rebuild({p.value: n.value for p, n in new.items()}))


def _to_library(results: Any, library: ModuleType) -> Any:
    """Results in any form as tensors of a library."""
    if isinstance(results, tuple | list):
        return type(results)(_to_library(r, library) for r in results)
    if isinstance(results, dict):
        return {name: _to_library(r, library) for name, r in results.items()}
    return dlpack.to_library(results, library)


def _texts(types: Mapping[str, Type]) -> list[tuple[str, str]]:
    return [(label, str(kind)) for label, kind in types.items()]


def _plain(statics: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Static arguments as text: 1, 1.0 and true differ."""
    return tuple(sorted((name, repr(value)) for name, value in statics.items()))


def _dimension(name: str, value: object) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise CompileError("E0611", f"the dimension {name} cannot be {value!r}", hint="it is a whole number of 0 or more")
