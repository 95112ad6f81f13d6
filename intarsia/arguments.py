"""Arguments of a program as a command line gives them, and weights bound by dotted name.

`--arg NAME=VALUE`, where VALUE is a number, an array in a file (`x.npy`, `w.npz:key`, `model.safetensors:key`) or a
generator (`randn`, `rand(lo=-1, hi=1)`, `zeros`, `ones`, `arange`). A specification is parsed first and made into an
array later, when element type and shape of its parameter are known; files know their shape themselves, which fixes
dimension names.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from intarsia.files import SUFFIXES, StoredType, open_arrays, typed
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import BOOL, F32, F64, I64, Array, DType, dtype
from intarsia.ir.errors import CompileError
from intarsia.runtime.dlpack import Parameter, adapt
from intarsia.streams import part_of_stream

T = TypeVar("T")

GENERATORS = ("randn", "rand", "zeros", "ones", "arange")


class ArgumentSpec(ABC):
    """What VALUE says."""

    @abstractmethod
    def make(self, dtype: DType, shape: Sequence[int], name: str = "") -> Array:
        """The array for parameter `name` of this element type and shape, C-contiguous."""

    def shape(self) -> tuple[int, ...] | None:
        """The shape, where it is known without the parameter."""
        return None

    def dtype(self) -> DType | None:
        """The element type, where it is known without the parameter."""
        return None


@dataclass(frozen=True)
class Number(ArgumentSpec):
    """A number or a truth value, for a scalar parameter. A literal: it has no type of its own."""

    value: bool | int | float

    def make(self, dtype: DType, shape: Sequence[int], name: str = "") -> Array:
        """Raises CompileError E0601, E0602, E0606."""
        return adapt(self.value, Parameter(name, dtype, tuple(shape)))

    def shape(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class FromFile(ArgumentSpec):
    """An array of a file; `key` is None where the file was named alone. All raise CompileError E0701 to E0708."""

    path: str
    key: str | None = None

    def make(self, dtype: DType, shape: Sequence[int], name: str = "") -> Array:
        """Raises CompileError E0601 and E0602 where the array has not the parameter's type."""
        file = open_arrays(self.path)
        array = typed(file.read(file.resolve(self.key)), dtype, name)
        return adapt(array, Parameter(name, dtype, tuple(shape)))

    def shape(self) -> tuple[int, ...]:
        return self._stored.shape

    def dtype(self) -> DType | None:
        """None where the file has only the width of an element."""
        return self._stored.dtype

    @property
    def _stored(self) -> StoredType:
        file = open_arrays(self.path)
        return file.type_of(file.resolve(self.key))


@dataclass(frozen=True)
class Generated(ArgumentSpec):
    """Values made up, the same ones on every run.

    - `rand`: evenly from `lo` up to `hi` without it; 0 to 1, for integers 0 to 7, for `bool` both values, for integers
      of fewer than 8 bits all codes.
    - `randn`: normal, mean 0 and deviation 1, cut off at `lo` and `hi`, the magnitude where `lo` is 0 or more; for
      integers deviation 3, rounded.
    - `arange`: `lo`, `lo` + 1, … in row-major order, from the beginning again where `hi` is reached; `lo` is 0, and
      `hi` beyond the integers that the type holds exactly.
    - `zeros`, `ones`.

    With `seed`, floats are those of `numpy.random.default_rng(seed)` in the type f32 (f64 for `f64`), then rounded;
    without, the seed is made of the parameter's name, so that two parameters differ.
    """

    generator: str
    seed: int | None = None
    lo: int | float | None = None
    hi: int | float | None = None

    def make(self, dtype: DType, shape: Sequence[int], name: str = "") -> Array:
        """Raises CompileError E0608 for bounds that the type does not have."""
        return self.part(dtype, shape, name, (slice(None),) * len(shape))

    def part(self, dtype: DType, shape: Sequence[int], name: str, places: Sequence[slice]) -> Array:
        """`make(dtype, shape, name)[places]`, without all of it in memory at once."""
        self._check_bounds(dtype, name)
        return part_of_stream(self._elements(dtype, name), shape, places, dtype.numpy)

    def _elements(self, dtype: DType, name: str) -> Callable[[int], Array]:
        """Gives the next so many elements, in row-major order."""
        drawn, random = F64 if dtype == F64 else F32, self._random(name)
        done = 0

        def draw(count: int) -> Array:
            nonlocal done
            values: Array
            match self.generator:
                case "zeros" | "ones":
                    values, source = np.full(count, self.generator == "ones", np.int64), I64
                case "arange":
                    lo, hi = self._range(dtype, 0, _exact_limit(dtype))
                    period = min(max(1, math.ceil(hi - lo)), 1 << 62)
                    values = lo + np.arange(done, done + count, dtype=np.int64) % period
                    source = I64 if isinstance(lo, int) else F64
                case "rand" if dtype.is_float:
                    lo, hi = self._range(dtype, 0.0, 1.0)
                    values, source = lo + (hi - lo) * random.random(count, drawn.numpy.type), drawn
                case "rand":
                    lo, hi = self._range(dtype, *_default_integers(dtype))
                    values, source = random.integers(int(lo), int(hi), count), I64
                case "randn":
                    values, source = random.standard_normal(count, drawn.numpy.type), drawn
                    if not dtype.is_float:
                        values = np.rint(3 * values)
                    lo = max(-math.inf if self.lo is None else self.lo, float(dtype.least))
                    hi = min(math.inf if self.hi is None else self.hi, float(dtype.greatest))
                    values = np.clip(np.abs(values) if lo >= 0 else values, lo, hi)
                case _:
                    raise AssertionError(self.generator)
            if dtype.is_float and dtype.specials == "scale":  # unsigned powers of two
                values, source = np.maximum(np.abs(values), 2.0**-10).astype(np.float32), F32
            done += count
            return convert(np.asarray(values).astype(source.numpy, copy=False), source, dtype)

        return draw

    def _random(self, name: str) -> np.random.Generator:
        named = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng(named if self.seed is None else self.seed)

    def _range(self, dtype: DType, lo: int | float, hi: int | float) -> tuple[int | float, int | float]:
        """The bounds; one that is not given is the usual one, moved along if it lay on the wrong side of the other."""
        low = lo if self.lo is None else self.lo
        high = hi if self.hi is None else self.hi
        if low >= high:
            low, high = (low, low + hi - lo) if self.hi is None else (high - (hi - lo), high)
        return low, min(high, int(dtype.greatest) + 1) if dtype.is_integer else high

    def _check_bounds(self, dtype: DType, name: str) -> None:
        for label, bound in (("lo", self.lo), ("hi", self.hi)):
            if bound is None or dtype.is_float:
                continue
            last = min(int(dtype.greatest), 2**63 - 1) + (label == "hi")
            if bound != int(bound) or not int(dtype.least) <= bound <= last:
                raise CompileError(
                    "E0608",
                    f"argument '{name}': {label}={bound} is no {dtype}",
                    hint=f"{dtype} holds {int(dtype.least)} to {int(dtype.greatest)}",
                )


RANDOM_FLOATS, RANDOM_OTHERS = Generated("randn"), Generated("rand")


def random_fill(dtype: DType) -> Generated:
    """What `--random` gives a parameter: normal floats; integers from 0 to 7, which serve as subscripts too."""
    return RANDOM_FLOATS if dtype.is_float else RANDOM_OTHERS


def parse_argument(text: str) -> ArgumentSpec:
    """The VALUE of `--arg NAME=VALUE`. Raises CompileError E0607 and E0608."""
    text = text.strip()
    if (number := _number(text)) is not None:
        return Number(number)
    if found := re.fullmatch(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))(?::(.*))?", text, re.IGNORECASE):
        return FromFile(found[1], found[2])
    if found := re.fullmatch(r"([A-Za-z_]\w*)\s*(?:\((.*)\))?", text, re.DOTALL):
        if found[1] in GENERATORS:
            return _generated(found[1], found[2] or "")
        near = difflib.get_close_matches(found[1].lower(), [*GENERATORS, "true", "false", "inf", "nan"], 1)
        hint = f"did you mean '{near[0]}'?" if near else ""
    else:
        hint = f"files are {', '.join(SUFFIXES)}" if Path(text).suffix else ""
    raise CompileError(
        "E0607",
        f"'{text}' is not a number, a file or a generator",
        hint=hint or f"generators: {', '.join(GENERATORS)}; files: x.npy, w.npz:key, model.safetensors:key",
    )


def parse_arguments(texts: Iterable[str]) -> dict[str, ArgumentSpec]:
    """Every `--arg NAME=VALUE` of a command. Raises CompileError E0607, E0608, and E0610 for a name given twice."""
    arguments: dict[str, ArgumentSpec] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
            raise CompileError("E0607", f"'{text}' is not NAME=VALUE", hint="as in --arg x=randn")
        if name in arguments:
            raise CompileError("E0610", f"argument '{name}' is given twice")
        arguments[name] = parse_argument(value)
    return arguments


def parse_static(text: str) -> object:
    """The VALUE of `--arg NAME=VALUE` for a static parameter: a literal, or an array of a file (`FromFile`).

    A literal is a number, `true`, `false`, `none`, an element type, a text in double quotes, or a tuple of these in
    parentheses. Raises CompileError E0616.
    """
    text = text.strip()
    if text == "none":
        return None
    if (number := _number(text)) is not None:
        return number
    if (element := dtype(text)) is not None:
        return element
    if found := re.fullmatch(r'"([^"]*)"', text):
        return found[1]
    if text.startswith("(") and text.endswith(")"):
        return tuple(parse_static(item) for item in _items(text[1:-1]))
    with contextlib.suppress(CompileError):
        if isinstance(found_array := parse_argument(text), FromFile):
            return found_array
    raise CompileError(
        "E0616", f"'{text}' is no literal, as a static parameter wants", hint='as in -1, none, f32, "ij->ji", (2, 3)'
    )


def _items(text: str) -> list[str]:
    """The parts between commas outside inner parentheses; a comma at the end counts for nothing."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [p for p in parts if p.strip()]


def parse_dimensions(texts: Iterable[str]) -> dict[str, int]:
    """Every `--dim B=128` of a command. Raises CompileError E0611."""
    sizes: dict[str, int] = {}
    for text in texts:
        found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\d[\d_]*)\s*", text)
        if found is None:
            raise CompileError("E0611", f"'{text}' is not a dimension and its size", hint="as in --dim B=128")
        size = int(found[2])
        if sizes.setdefault(found[1], size) != size:
            raise CompileError("E0611", f"dimension {found[1]} is given as {sizes[found[1]]} and as {size}")
    return sizes


def parse_weights(text: str) -> tuple[str | None, str, str]:
    """Of `--weights [NAME=]FILE[:KEY]` the parameter (None: every one), the file, and the key in front of its names."""
    name, equals, rest = text.partition("=")
    parameter = name if equals and name.isidentifier() and not Path(text).exists() else None
    path = text if parameter is None else rest
    if found := re.fullmatch(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))})):(.*)", path, re.IGNORECASE):
        return parameter, found[1], found[2]
    return parameter, path, ""


def check_names(given: Collection[str], parameters: Sequence[str], *, complete: bool = True) -> None:
    """Are the arguments given those that the function has? `complete` asks for every one of them.

    Raises CompileError E0610 for names that no parameter has, E0613 for parameters without an argument.
    """
    for name in given:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise CompileError(
                "E0610", f"no parameter is named '{name}'", hint=f"{hint}parameters: {', '.join(parameters) or 'none'}"
            )
    missing = [name for name in parameters if name not in given]
    if missing and complete:
        raise CompileError(
            "E0613",
            f"no argument for {', '.join(missing)}",
            hint=f"as in --arg {missing[0]}=randn; --random fills all that are not named",
        )


@dataclass(frozen=True)
class Leaf:
    """A tensor of a struct parameter, by its dotted name below the parameter; "" for a parameter that is a tensor.

    A leaf under a list has `*` in the place of the list's index (`layer.*.up.weight`), or only `is_list`: then the
    index may stand between any two parts.
    """

    name: str
    is_list: bool = False


@dataclass(frozen=True)
class Binding(Generic[T]):
    """Leaves found, a list leaf as a tuple; names that should be there but are not; names that nothing asked for."""

    found: dict[str, T | tuple[T, ...]]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = field(default=())


def match_leaves(parameter: str, leaves: Sequence[Leaf], arrays: Mapping[str, T]) -> Binding[T]:
    """Look up the leaves of a parameter, with the parameter's name in front or, where that finds less, without."""
    attempts = [_match(prefix, leaves, arrays) for prefix in (parameter, "")]
    return max(attempts, key=lambda b: len(b.found))  # the first of equals


def bind_leaves(parameter: str, leaves: Sequence[Leaf], arrays: Mapping[str, T]) -> dict[str, T | tuple[T, ...]]:
    """Every leaf of a parameter by its name, a list leaf as a tuple. `arrays` may hold more than is asked for, but no
    other parts of a tensor in a format: without its zero points, say, it would be another one.

    Raises CompileError E0609 that lists what is missing, with names that are much alike; E0601 for other parts.
    """
    if list(arrays) == [""] and not isinstance(arrays[""], list | tuple):  # an empty list of structs is one, too
        labels = ", ".join(f"{parameter}.{leaf.name}" for leaf in leaves)
        hint = "`intarsia quantize` makes them of floats" if "codes" in [leaf.name for leaf in leaves] else ""
        raise CompileError("E0609", f"'{parameter}' is {len(leaves)} tensors, {labels}; one is given", hint=hint)
    binding = match_leaves(parameter, leaves, arrays)
    if not binding.missing:
        if other := _other_parts(arrays, binding.extra):
            message = f"'{parameter}' is given with {' and '.join(other)}, which its format lacks"
            raise CompileError("E0601", message, hint="declare the format in which it is stored")
        return binding.found
    lines = []
    for name in binding.missing[:8]:
        near = difflib.get_close_matches(name, binding.extra, 1)
        lines.append(f"{name} (there is {near[0]})" if near else name)
    more = f" and {len(binding.missing) - 8} more" if len(binding.missing) > 8 else ""
    spare = f"{', '.join(binding.extra[:8])}{', …' if len(binding.extra) > 8 else ''}"
    raise CompileError(
        "E0609",
        f"no tensors for '{parameter}': {', '.join(lines)}{more}",
        hint=f"not used: {spare}" if binding.extra else f"the {len(arrays)} names there are all used",
    )


def _other_parts(arrays: Mapping[str, object], extra: Sequence[str]) -> list[str]:
    """Names that nothing asked for beside codes and scales that something did."""
    used = arrays.keys() - {*extra}
    stems = [n.removesuffix("codes") for n in used if n == "codes" or n.endswith(".codes")]
    stems = [stem for stem in stems if f"{stem}scale" in used or f"{stem}scale.codes" in used]
    return [n for n in extra if any(n in (f"{stem}zero", f"{stem}tensor_scale") for stem in stems)]


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """The leaves of nested mappings and sequences by dotted name: `{"layer": [{"w": x}]}` is `{"layer.0.w": x}`."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {n: v for key, item in items for n, v in flatten(item, f"{prefix}.{key}" if prefix else key).items()}


def _number(text: str) -> bool | int | float | None:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?(inf|nan)", text):
        return float(text)
    if re.fullmatch(r"[+-]?(0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+)", text):
        return int(text, 0)
    if re.fullmatch(r"[+-]?\d+(_\d+)*", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return float(text)
    return None


def _generated(generator: str, options: str) -> Generated:
    """A generator with its options in parentheses."""
    given: dict[str, int | float] = {}
    for part in filter(None, (p.strip() for p in options.split(","))):
        label, equals, value = (p.strip() for p in part.partition("="))
        number = _number(value)
        allowed = ("seed",) if generator in ("zeros", "ones") else ("seed", "lo", "hi")
        if not equals or label not in allowed or number is None or not math.isfinite(number) or label in given:
            raise CompileError("E0608", f"{generator}: '{part}' is no option", hint=f"options: {', '.join(allowed)}")
        given[label] = number
    seed, lo, hi = given.get("seed"), given.get("lo"), given.get("hi")
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise CompileError("E0608", f"{generator}: seed={seed} is not a whole number of 0 or more")
    if lo is not None and hi is not None and lo >= hi:
        raise CompileError("E0608", f"{generator}: from lo={lo} to hi={hi} there is nothing", hint="hi is above lo")
    return Generated(generator, seed, lo, hi)


def _default_integers(dtype: DType) -> tuple[int, int]:
    if dtype == BOOL:
        return 0, 2
    return (int(dtype.least), int(dtype.greatest) + 1) if dtype.is_narrow else (0, 8)


def _exact_limit(dtype: DType) -> int:
    """Up to this number, itself left out, the type holds every integer."""
    if dtype == BOOL:
        return 2
    if dtype.is_integer:
        return int(dtype.greatest) + 1
    return min(1 << (dtype.mantissa + 1), 1 << min(62, 1 << (dtype.exponent - 1)))


def _match(prefix: str, leaves: Sequence[Leaf], arrays: Mapping[str, T]) -> Binding[T]:
    found: dict[str, T | tuple[T, ...]] = {}
    missing: list[str] = []
    used: set[str] = set()
    lists: dict[str, dict[str, set[int]]] = {}  # the list's path -> the rest of the name -> indices that are there
    patterns: dict[str, tuple[str, str]] = {}
    for leaf in leaves:
        name = ".".join(part for part in (prefix, leaf.name) if part)
        if not leaf.is_list and "*" not in name:
            if name in arrays:
                found[leaf.name] = arrays[name]
                used.add(name)
            else:
                missing.append(name)
            continue
        if (empty := _empty_list(name, arrays)) is not None:
            found[leaf.name] = ()
            used.add(empty)
            continue
        before, after = patterns[leaf.name] = _list_position(name, arrays)
        lists.setdefault(before, {})[after] = _indices(before, after, arrays)
    for leaf_name, (before, after) in patterns.items():
        length = 1 + max((i for indices in lists[before].values() for i in indices), default=0)
        names = [f"{before}{index}{after}" for index in range(length)]
        used.update(n for n in names if n in arrays)
        absent = [n for n in names if n not in arrays]
        missing += absent
        if not absent:
            found[leaf_name] = tuple(arrays[n] for n in names)
    return Binding(found, tuple(missing), tuple(n for n in arrays if n not in used))


def _empty_list(name: str, arrays: Mapping[str, object]) -> str | None:
    """The path of a list without items that a leaf would be in."""
    parts = name.split(".")
    for path in (".".join(parts[:i]) for i in range(len(parts))):
        if path in arrays and isinstance(arrays[path], list | tuple) and not arrays[path]:
            return path
    return None


def _list_position(name: str, arrays: Mapping[str, object]) -> tuple[str, str]:
    """The text before and after the index in the names of a list leaf."""
    if "*" in name:
        before, _, after = name.partition("*")
        return before, after
    parts = name.split(".")
    positions = [*range(1, len(parts) + 1), 0]  # an index in front of all only if there is no other
    splits = [(".".join([*parts[:i], ""]), "".join(f".{p}" for p in parts[i:])) for i in positions]
    return max(splits, key=lambda split: len(_indices(split[0], split[1], arrays)))


def _indices(before: str, after: str, arrays: Mapping[str, object]) -> set[int]:
    between = (n[len(before) : len(n) - len(after)] for n in arrays if n.startswith(before) and n.endswith(after))
    return {int(text) for text in between if text.isdecimal()}
