"""Programs and functions as Python objects: load, call, look inside.

layers = intarsia.load("layers.ita")
y = layers.mlp(x, w1, b1, w2)              # compiles for these types on first use, then reuses
kernel = layers.mlp.lower(x, w1, b1, w2)   # the compilation itself, with every stage
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.arguments import bind_leaves, flatten
from intarsia.cache import Cache, compiler_digest
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import STAGES, Compilation, Options
from intarsia.executable import Executable
from intarsia.ir.dtypes import F32, I64, Array, DType, of_numpy
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.runtime import dlpack
from intarsia.signature import ParameterForm, SignatureForm, TensorForm

Tensors = dict[str, "Array | tuple[Array, ...]"]
"""Arrays by the label of their tensor; a tuple for a tensor of a list of structs."""


class Program:
    """A source file or text with everything compiled from it so far.

    Functions are attributes (`program.mlp`) or items (`program["mlp"]`).
    """

    def __init__(self, source: Source, options: Options | None = None, *, use_cache: bool = True) -> None:
        self.source = source
        self.options = options or Options()
        self.cache = Cache(enabled=use_cache)
        self._functions: dict[str | None, Function] = {}

    @cached_property
    def library(self) -> Any:
        """The parsed program and what it imports; not needed where everything is in the cache."""
        from intarsia.dsl.library import load

        return with_deep_stack(lambda: load(self.source, cache_dir=self.cache.directory))

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions that the file declares."""
        return tuple(self.library.functions)

    def entry(self, name: str | None = None) -> Function:
        """The function of a name, or the entry point: `main`, else the only or the last one."""
        if name not in self._functions:
            self._functions[name] = Function(self, name)
        return self._functions[name]

    def __getitem__(self, name: str) -> Function:
        found = self.entry(name)
        _ = found.form  # a name that is not there is an error now
        return found

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except CompileError as error:
            if error.code == "E0316":
                raise AttributeError(str(error)) from None
            raise

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.functions]

    def key(self, *parts: object) -> str:
        """A cache key: this text, this compiler, and `parts`."""
        text = json.dumps([compiler_digest(self.cache), self.source.name, self.source.text, *parts], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def remember(self, kind: str, key: str, content: Mapping[str, Any] | bytes) -> None:
        """Keep something in the cache, valid as long as the imported files stay as they are."""
        imports = [[f.source.name, _digest_of(Path(f.source.name))] for f in self.library.files[1:]]
        head = json.dumps(imports).encode()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.cache.put(kind, key, len(head).to_bytes(4, "little") + head + body)

    def recall(self, kind: str, key: str) -> bytes | None:
        """What `remember` kept, if it is there and no imported file has changed."""
        data = self.cache.get(kind, key)
        if data is None:
            return None
        length = int.from_bytes(data[:4], "little")
        imports = json.loads(data[4 : 4 + length])
        return data[4 + length :] if all(_digest_of(Path(p)) == d for p, d in imports) else None


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


class Function:
    """One function of a program; calling it compiles it for the types of the arguments, once."""

    def __init__(self, program: Program, name: str | None, bound: Mapping[str, object] | None = None) -> None:
        self.program = program
        self.name = name
        self.bound = dict(bound or {})
        self._compiled: dict[object, Executable] = {}

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

    @property
    def constants(self) -> tuple[str, ...]:
        """The parameters declared `const`."""
        return tuple(p.name for p in self.form.parameters if p.is_constant)

    def bind(self, **values: object) -> Function:
        """The function with some parameters given. They are read once: later changes to the arrays are not seen."""
        for name in values:
            self._parameter(name)
        copies = {name: _snapshot(value) for name, value in values.items()}
        return Function(self.program, self.name, {**self.bound, **copies})

    def _parameter(self, name: str) -> ParameterForm:
        found = self.form.parameter(name)
        if found is None:
            names = ", ".join(p.name for p in self.form.parameters)
            raise CompileError(
                "E0610", f"{self.form.function} has no parameter '{name}'", hint=f"its parameters: {names}"
            )
        return found

    # ---------------------------------------------------------------- calling

    def __call__(self, *positional: object, **named: object) -> Any:
        """Run on NumPy arrays, anything with DLPack, Python numbers, and mappings for structs.

        Dimension names that no argument decides are keywords (`grid(x, N=64)`). Results are of the arguments' kind.
        """
        given, dims = self.arrange(positional, named)
        statics, tensors = self.split(given)
        executable, sizes = self.compiled(tensors, statics, dims)
        library = dlpack.library_of([v for v in given.values() if not isinstance(v, Mapping)])
        results = executable.run(adapted(executable, tensors, sizes), sizes)
        kind = [dlpack.to_library(r, library) for r in results]
        return kind[0] if len(kind) == 1 else tuple(kind)

    def arrange(
        self, positional: Sequence[object], named: Mapping[str, object]
    ) -> tuple[dict[str, object], dict[str, int]]:
        """Arguments by parameter, and sizes given by keyword. What has a default may be missing."""
        free = [p for p in self.form.parameters if p.name not in self.bound]
        if len(positional) > len(free):
            message = f"{self.form.function} takes {len(free)} arguments, {len(positional)} are given"
            raise CompileError("E0615", message)
        given: dict[str, object] = {**self.bound, **{p.name: v for p, v in zip(free, positional)}}
        dims: dict[str, int] = {}
        for name, value in named.items():
            if name in self.form.dimensions and self.form.parameter(name) is None:
                dims[name] = int(value)  # type: ignore[call-overload]
                continue
            self._parameter(name)
            if name in given and name not in self.bound:
                raise CompileError("E0615", f"{self.form.function}: the argument {name} is given twice")
            given[name] = value
        missing = [p.name for p in self.form.parameters if p.name not in given and not p.has_default]
        if missing:
            raise CompileError("E0613", f"{self.form.function}: no argument for {', '.join(missing)}")
        return given, dims

    def split(self, given: Mapping[str, object]) -> tuple[dict[str, object], Tensors]:
        """Static arguments, and the tensors of all others by label."""
        statics: dict[str, object] = {}
        tensors: Tensors = {}
        for parameter in self.form.parameters:
            if parameter.name not in given:
                continue
            value = given[parameter.name]
            if parameter.is_static:
                statics[parameter.name] = value
            elif parameter.is_struct:
                found = bind_leaves(parameter.name, parameter.leaves, _leaves(value))
                for tensor, leaf in zip(parameter.tensors, parameter.leaves):
                    item = found[leaf.name]
                    tensors[tensor.label] = (
                        tuple(_array(i, tensor) for i in item) if isinstance(item, tuple) else _array(item, tensor)
                    )
            else:
                tensors[parameter.name] = _array(value, parameter.tensors[0])
        return statics, tensors

    # ---------------------------------------------------------------- compiling

    def compiled(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]
    ) -> tuple[Executable, dict[str, int]]:
        """Code for these types, from memory, the cache or the compiler; and the sizes that stayed open."""
        types = {label: _type_key(value) for label, value in tensors.items()}
        dynamic = self.program.options.dynamic
        key = (tuple(types.items()), tuple(sorted(statics.items(), key=str)), tuple(sorted(dims.items())))
        if dynamic:
            sizes = self.sizes(tensors, statics, dims)
            fixed = tuple(sorted((n, v) for n, v in sizes.items() if n not in dynamic))
            key = (tuple((n, t[0], len(t[1])) for n, t in types.items()), key[1], fixed)
        if (found := self._compiled.get(repr(key))) is None:
            found = self._from_cache(repr(key), tensors, statics, dims)
            self._compiled[repr(key)] = found
        return found, {n: v for n, v in sizes.items() if n in found.sizes} if dynamic else {}

    def _from_cache(
        self, key: str, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]
    ) -> Executable:
        options = dataclasses.asdict(self.program.options)
        target = self.program.options.resolve_target()
        full = self.program.key("program", self.name, key, options, dataclasses.astuple(target))
        if (data := self.program.recall("program", full)) is not None:
            return Executable.from_bytes(data)
        compilation = self.compilation(tensors, statics, dims)
        executable = with_deep_stack(compilation.executable)
        self.program.remember("program", full, executable.to_bytes())
        return executable

    def sizes(self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int]) -> dict[str, int]:
        """The number of every dimension name. Raises CompileError where the arguments do not fit."""
        types = {label: type_of(value) for label, value in tensors.items()}
        found: dict[str, int] = with_deep_stack(lambda: self.program.library.bind_sizes(self.name, types, dims))
        return found

    def compilation(
        self,
        tensors: Tensors,
        statics: Mapping[str, object] | None = None,
        dims: Mapping[str, int] | None = None,
        options: Options | None = None,
    ) -> Compilation:
        """The compilation for these tensors, no stage made yet but the graph."""
        types = {label: type_of(value) for label, value in tensors.items()}
        return self.compilation_of_types(types, statics or {}, dims or {}, options)

    def compilation_of_types(
        self,
        types: Mapping[str, Type] | None,
        statics: Mapping[str, object],
        dims: Mapping[str, int],
        options: Options | None = None,
    ) -> Compilation:
        """The compilation for these types; for None, the types are those of the signature, sizes as names."""
        library = self.program.library

        def build() -> Compilation:
            sizes = dims if types is None else library.bind_sizes(self.name, types, dims)
            module = library.build(self.name, types=types, dims=sizes, statics=statics)
            return Compilation(module, sizes, options or self.program.options)

        return with_deep_stack(build)

    def lower(self, *positional: object, **named: object) -> Lowered:
        """The compilation for the types of these arguments, with every stage."""
        given, dims = self.arrange(positional, named)
        statics, tensors = self.split(given)
        return Lowered(self.compilation(tensors, statics, dims))


class Stages(Mapping[str, str]):
    """The text of every stage by name, made when it is asked for."""

    def __init__(self, compilation: Compilation) -> None:
        self._compilation = compilation

    def __getitem__(self, name: str) -> str:
        if name not in STAGES:
            raise KeyError(f"{name!r}; the stages are {', '.join(STAGES)}")
        return with_deep_stack(lambda: self._compilation.text(name))

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)


class Lowered:
    """A function compiled for one set of types: its stages as text, and the decisions taken."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.asm = Stages(compilation)

    @property
    def remarks(self) -> list[Any]:
        """The decisions of the passes, in order."""
        with_deep_stack(lambda: self.compilation.plan)
        return self.compilation.remarks.items

    @property
    def schedule(self) -> dict[str, str]:
        """The schedule of each kernel, as text."""
        with_deep_stack(lambda: self.compilation.scheduled)
        return self.compilation.schedules

    @property
    def timing(self) -> dict[str, float]:
        """Seconds that each stage took, for the stages made so far."""
        return dict(self.compilation.seconds)


# -------------------------------------------------------------------- arguments as arrays


def _leaves(value: object) -> Mapping[str, object]:
    """The tensors of a struct argument by dotted name; weights read from a file stay unread."""
    from intarsia.files import Weights

    if isinstance(value, Weights):
        return value
    return flatten(value)


def _snapshot(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {k: _snapshot(v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return {k: value[k] for k in value}
    if isinstance(value, list):
        return [_snapshot(v) for v in value]
    return value


def _array(value: object, tensor: TensorForm) -> Array:
    """An argument as an array of its own dtype; a Python number takes the parameter's, or i64 or f32 for a generic."""
    declared = tensor.dtype or (I64 if isinstance(value, int) else F32)
    return dlpack.as_array(value, dlpack.Parameter(tensor.label, declared, ()))


def _type_key(value: Array | tuple[Array, ...]) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return (value[0].dtype.str if value else "", value[0].shape if value else (), len(value))
    return (value.dtype.str if value.dtype.kind != "V" else value.dtype.name, value.shape)


def type_of(value: Array | tuple[Array, ...]) -> Type:
    """The concrete type of an argument."""
    if isinstance(value, tuple):
        element = type_of(value[0])
        assert isinstance(element, TensorType)
        return ListType(Size.of(len(value)), element)
    found: DType | None = of_numpy(value.dtype)
    if found is None:
        raise CompileError("E0601", f"an array of {value.dtype}: no such element type")
    return TensorType.of(found, *value.shape)


def adapted(executable: Executable, tensors: Tensors, sizes: Mapping[str, int]) -> list[Array | tuple[Array, ...]]:
    """The arrays in the order of the entry function, in the layout that it wants; copied only where they differ."""
    result: list[Array | tuple[Array, ...]] = []
    for layout in executable.inputs:
        value = tensors[layout.label]
        parameter = dlpack.Parameter(layout.label, layout.dtype, layout.concrete_shape(sizes))
        if isinstance(value, tuple):
            result.append(tuple(dlpack.adapt(v, parameter) for v in value))
        else:
            result.append(dlpack.adapt(value, parameter))
    return result
