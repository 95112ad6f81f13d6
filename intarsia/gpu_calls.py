"""Calls of a function on a GPU: with tensors that lie there, on the caller's stream, without copies or waiting.

What lies elsewhere (NumPy's arrays, numbers) is moved to the GPU first, with a warning for arrays that are no scalars.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intarsia.deep_stack import with_deep_stack
from intarsia.gpu_program import GpuCall, GpuPlace, GpuProgram, Launched
from intarsia.ir.dtypes import BF16, Array, DType
from intarsia.ir.errors import CompileError
from intarsia.results import in_form
from intarsia.runtime.gpu import Watch
from intarsia.tensors import Tensors, declared_types, kind_of

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.function import Function


_KNOWN_CALLS = 1024


class GpuCalls:
    """What a function keeps for its calls on one GPU."""

    def __init__(self, function: Function, place: GpuPlace) -> None:
        self.function = function
        self.place = place
        self.torch = place.torch
        self._programs: dict[object, GpuProgram] = {}
        self._calls: dict[object, GpuCall] = {}
        self._repeated: dict[object, RepeatedCall] = {}
        self._latest: Callable[[Sequence[Any]], Any] = lambda positional: None
        self._bound: dict[int, tuple[object, Any]] = {}

    @staticmethod
    def of(function: Function) -> GpuCalls:
        """For the current GPU. Raises CompileError E1703 or E1716 where there is none."""
        return GpuCalls(function, GpuPlace.current(function.program.options.resolve_target()))

    def __call__(self, positional: Sequence[object], named: Mapping[str, object]) -> Any:
        """Run; results are tensors of PyTorch, or arrays where no argument is a tensor."""
        kinds = None
        if not named:
            if (found := self._latest(positional)) is not None:
                return found
            kinds = _kinds(positional)
            if (again := self._repeated.get(kinds)) is not None:
                self._latest = again
                if (found := again(positional)) is not None:
                    return found
        call, tensors, foreign = self.call_for(positional, named)
        if kinds is not None and (again := self._repetition(call, tensors, positional)) is not None:
            _bounded(self._repeated)[kinds] = again
        results = call(call.addresses(tensors))
        if not foreign:
            results = as_arrays(call.launch, results)
        return in_form(call.program.result_labels, results)

    def _repetition(self, call: GpuCall, tensors: Sequence[Any], positional: Sequence[object]) -> RepeatedCall | None:
        """What makes such a call again. None if it has to look at more than the types of its arguments."""
        names = [p.name for p in self.function.form.parameters if p.name not in self.function.bound]
        numbers = {name: n for n, name in enumerate(names[: len(positional)])}
        given = [numbers.get(label) for label in call.program.labels]
        bound = {id(tensor) for _, tensor in self._bound.values()}
        as_they_are = (id(t) in bound if n is None else t is positional[n] for t, n in zip(tensors, given))
        if not all(as_they_are) or not numbers.keys() <= {*call.program.labels}:
            return None
        return RepeatedCall(call, tensors, given)

    def repeated(self, compilation: Compilation, tensors: Tensors, *, graph: bool) -> PlacedCall:
        """A call of a compilation on arguments which are on the GPU when this returns. `graph`: all launches are one
        CUDA graph, and every run gives the same tensors."""
        program = with_deep_stack(lambda: GpuProgram(compilation, self.place))
        placed = [self._placed(tensors[label]) for label in program.labels]
        return PlacedCall(program.call(compilation.sizes), placed, graph)

    def _placed(self, value: Any) -> Any:
        return [self._of_array(v) for v in value] if isinstance(value, tuple) else self._of_array(value)

    def call_for(self, positional: Sequence[object], named: Mapping[str, object]) -> tuple[GpuCall, list[Any], bool]:
        """The compiled program, its arguments on the GPU, and whether any of them was a tensor already."""
        given, dims = self.function.arrange(positional, named)
        real: dict[int, Any] = {}
        statics, tensors = self.function.split({n: self._stand_in(v, real) for n, v in given.items()})
        call = self._call(tensors, statics, dims, self.function.fixed(given))
        return call, [self._moved(tensors[label], real, label) for label in call.program.labels], bool(real)

    def _call(
        self, tensors: Tensors, statics: Mapping[str, object], dims: Mapping[str, int], constants: tuple[str, ...]
    ) -> GpuCall:
        """The program for these types, of whose constants some will not change between calls. Where sizes stay open,
        one compilation serves them all."""
        kinds = tuple((n, *kind_of(v)) for n, v in tensors.items())
        key = (kinds, repr(sorted(statics.items())), tuple(dims.items()), constants)
        call = self._calls.get(key)
        if call is None:
            types = declared_types(self.function.form, tensors, dims, codes=True)
            code, sizes = self.function.code_key(types, statics, dims, constants)
            program = self._programs.get(code)
            if program is None:
                compilation = self.function.compilation_of_types(types, statics, dims, constants=constants)
                program = self._programs[code] = with_deep_stack(lambda: GpuProgram(compilation, self.place))
            call = _bounded(self._calls)[key] = program.call(sizes)
        return call

    def _stand_in(self, value: object, real: dict[int, Any]) -> object:
        """An array of the type of a tensor, without its elements; `real` keeps the tensor by the array's identity."""
        if isinstance(value, Mapping):
            return {n: self._stand_in(v, real) for n, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._stand_in(v, real) for v in value)
        if isinstance(value, self.torch.Tensor):
            array = stand_in(value)
            real[id(array)] = (array, value)
            return array
        return value

    def _moved(self, value: Any, real: Mapping[int, Any], label: str) -> Any:
        """An argument as a tensor on the GPU, in one piece and at a multiple of 16 bytes."""
        if isinstance(value, tuple):
            return [self._moved(v, real, label) for v in value]
        if id(value) in real:
            tensor = real[id(value)][1]
        elif id(value) in self._bound:
            return self._bound[id(value)][1]
        else:
            tensor = self._of_array(value)
            if label.partition(".")[0] in self.function.bound:
                self._bound[id(value)] = (value, tensor)
            elif value.ndim:
                message = f"{label} is copied to the GPU in every call: give a tensor that lies there"
                warnings.warn(message, stacklevel=5)
        where = self.place.place
        if tensor.device != where:
            message = f"{label} is on {tensor.device}, and the program runs on {where}"
            raise CompileError("E0604", message, hint=f"{label}.to('{where}')")
        return self.place.ready(tensor)

    def _of_array(self, array: Any) -> Any:
        return self.place.of_array(array)


class RepeatedCall:
    """A call with tensors of known types, by position: all that is left to do is to take their addresses. `given` says
    which argument each of `tensors` is; those that are none are bound and stay."""

    def __init__(self, call: GpuCall, tensors: Sequence[Any], given: Sequence[int | None]) -> None:
        self._call = call
        self._run = call if call.launch.has_record else call.launch
        self._index = call.program.place.index
        self._bound = [t for t, n in zip(tensors, given) if n is None]
        self._addresses = call.addresses(tensors)
        self._labels = call.program.result_labels
        places = {n: place for place, n in enumerate(given) if n is not None}
        self._taken = [(places[n], tensors[places[n]].dtype, tensors[places[n]].shape) for n in range(len(places))]

    def __call__(self, positional: Sequence[Any]) -> Any:
        """The results, or None where the types are others or a tensor cannot be taken as it is."""
        if len(positional) != len(self._taken):
            return None
        addresses, index = self._addresses.copy(), self._index
        try:
            for (place, dtype, shape), tensor in zip(self._taken, positional):
                if tensor.dtype is not dtype or tensor.shape != shape:
                    return None
                address = addresses[place] = tensor.data_ptr()
                if address & 15 or tensor.get_device() != index or not tensor.is_contiguous():
                    return None
        except AttributeError:  # a number
            return None
        results = self._run(addresses)
        return in_form(self._labels, results)


class PlacedCall:
    """A call on arguments that lie on the GPU, for as often as it is wanted."""

    def __init__(self, call: GpuCall, tensors: Sequence[Any], graph: bool) -> None:
        self.call = call
        self.place = call.program.place
        self.compilation = call.program.compilation
        self._tensors = tensors
        self._addresses = call.addresses(tensors)
        self._graph = call.captured(self._addresses) if graph else None

    def start(self) -> list[Any]:
        """Run without waiting; gives the results, which lie on the GPU."""
        if self._graph is None:
            return self.call(self._addresses)
        start, results = self._graph
        start()
        return results

    def __call__(self) -> list[Any]:
        """Run and wait."""
        results = self.start()
        self.place.wait()
        return results

    def seconds(self) -> float:
        """The time that one run takes on the GPU."""
        device, stream = self.place.device, self.place.stream()
        before = device.moment(stream)
        self.start()
        return device.seconds(before, device.moment(stream))

    def watched(self, watch: Watch) -> None:
        """Run, each launch and each copy done by `watch`."""
        self.call.launch(self._addresses, watch)


def _kinds(positional: Sequence[Any]) -> object:
    """The types of tensors; None if there is anything else."""
    try:
        return tuple([(t.dtype, t.shape) for t in positional])
    except AttributeError:
        return None


def _bounded(known: dict[object, Any]) -> dict[object, Any]:
    """The same dictionary, emptied where a stream of ever new sizes has filled it."""
    if len(known) >= _KNOWN_CALLS:
        known.clear()
    return known


def stand_in(tensor: Any) -> Array:
    """An array of the type of a tensor, without its elements. Raises CompileError E0601."""
    return np.broadcast_to(np.zeros((), _numpy_type(str(tensor.dtype))), tuple(tensor.shape))


def _numpy_type(name: str) -> np.dtype[Any]:
    """NumPy's type for one of PyTorch. Raises CompileError E0601 for one that the language lacks."""
    import ml_dtypes

    plain = name.removeprefix("torch.")
    try:
        return np.dtype(getattr(ml_dtypes, plain, plain))
    except TypeError:
        raise CompileError("E0601", f"there is no element type for {name}") from None


def as_arrays(launched: Launched, results: Sequence[Any]) -> list[Array]:
    """The results of launches as arrays of NumPy."""
    return [as_array(r, dtype) for r, (_, dtype) in zip(results, launched.plan.shapes)]


def as_array(tensor: Any, dtype: DType) -> Array:
    """A tensor as an array of NumPy, on the host."""
    import torch

    host = tensor.cpu()
    if dtype == BF16 or dtype.is_narrow:  # which NumPy knows by ml_dtypes only
        host = host.view(torch.int16 if dtype == BF16 else torch.uint8)
    array: Array = host.numpy()
    return array.view(dtype.numpy)
