"""A program as one Python file: its kernels in Triton, a function that launches them on PyTorch tensors, the same in
plain PyTorch, and a check of the one against the other. The file needs PyTorch and Triton, and nothing of Intarsia."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.backends.gpu.python_layout import laid_out, tidy
from intarsia.backends.gpu.python_names import Names
from intarsia.backends.gpu.torch_reference import reference_lines
from intarsia.backends.gpu.torch_texts import Unwritten, integer
from intarsia.backends.gpu.torch_types import torch_type
from intarsia.backends.gpu.triton_kernel import RECORD, Pointer, Scalar, TritonKernel
from intarsia.backends.gpu.triton_module import LIBRARY, parts_of
from intarsia.ir.graph import Graph
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat, Slot, State
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import ZERO, Size, product
from intarsia.ir.text_printer import operation_text
from intarsia.ir.types import TensorType

Launches = Mapping[str, Sequence[TritonKernel]]
"""What each kernel is on a GPU, by its name."""

_CHECK = '''
def check(name, tensor, dtype, shape):
    """Raise an error if an argument is not what the kernels take."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, not a tensor")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}, not {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous: pass {name}.contiguous()")
    if not INTERPRETED and tensor.get_device() != torch.cuda.current_device():
        device = torch.cuda.current_device()
        raise ValueError(f"{name} is on {tensor.device}, not on cuda:{device}")
'''

_ALIGNED = """    if tensor.data_ptr() % 16:
        raise ValueError(f"{name} is not at a multiple of 16 bytes: pass {name}.clone()")
"""
"""What descriptors want too."""

_ALLOCATE = '''
def allocate(size, alignment, stream):
    """Memory that a launch needs for tensor descriptors."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
'''

_INTERPRETED = '''
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Are kernels run by Triton's interpreter, on tensors of the CPU?"""
'''


_EXCHANGE = """, on one device of several.

    `exchange(number, source, target)` does what the line before it says with the other devices, on PyTorch's current
    stream: `source` is the tensor that this device has, `target` where the result goes.
    """
"""What the documentation of a function that takes it says of it."""

_COMPARE = '''def compare(actual, expected):
    """Raise an error if results are not what the reference gives."""
    for a, e in zip(actual, expected):
        difference = (a.double() - e.double()).abs().nan_to_num().flatten()
        largest = difference.max().item() if a.numel() else 0.0
        print(f"largest error: {{largest:.3g}}")
        torch.testing.assert_close(a, e, {}, equal_nan=True)
'''

_CHECKED = '''
CHECKS = {{
{}}}
"""What a run-time check that fails has to say, by its number."""


def require(record):
    """Raise an error if a run-time check failed. This waits for the kernels."""
    number, count, *values = record.tolist()
    if number:
        raise ValueError(CHECKS[number].format(*values[:count]))
'''


def program_text(
    plan: Plan, graph: Graph, launches: Launches, sizes: Mapping[str, int], checks: Mapping[int, str] | None = None
) -> str:
    """The file of a program. `graph` is the program as written, or that of one of several devices, `sizes` gives open
    dimensions for the comparison, `checks` what its run-time checks have to say. A program that exchanges something
    with other devices takes a function that does, and is not compared."""
    launches = _distinct(launches)
    own = [k for part in plan.whole for kernel in part.kernels for k in launches[kernel.name]]
    parts = parts_of(own)
    taken = {
        "torch",
        "triton",
        "tl",
        "os",
        "libdevice",
        "device",
        "allocate",
        "check",
        "main",
        "reference",
        "exchange",
        "compare",
        "require",
        "CHECKS",
        "INTERPRETED",
    }
    taken |= {n for k in own for n in (k.name, *(h.partition("def ")[2].partition("(")[0] for h in k.helpers))}
    program = _Program(plan, graph, launches, sizes, frozenset(taken))
    header = "import os\n\nimport torch\nimport triton\n" + ("import triton.language as tl\n" if own else "")
    header += LIBRARY if any("libdevice." in part for part in parts) else ""
    helpers = [_CHECK + _ALIGNED, _ALLOCATE] if any(_has_descriptors(k) for k in own) else [_CHECK]
    if checks:
        lines = "".join(f"    {number}: {text!r},\n" for number, text in checks.items())
        helpers.append(_CHECKED.format(lines))
    texts = [header + _INTERPRETED, *parts, *helpers, *program.functions()]
    return laid_out("\n\n".join(text.strip("\n") + "\n" for text in texts))


def _has_descriptors(kernel: TritonKernel) -> bool:
    return ".make_tensor_descriptor(" in kernel.text


def _distinct(launches: Launches) -> dict[str, list[TritonKernel]]:
    """The same launches, each under a name that no other one has."""
    names = Names()
    found: dict[str, list[TritonKernel]] = {}
    for kernel, group in launches.items():
        found[kernel] = []
        for launch in group:
            name = names.fresh(launch.name)
            text = launch.text.replace(f"def {launch.name}(", f"def {name}(", 1)
            found[kernel].append(replace(launch, name=name, text=text))
    return found


@dataclass(frozen=True)
class _Program:
    """Writes the functions of a program."""

    plan: Plan
    graph: Graph
    launches: Launches
    sizes: Mapping[str, int]
    taken: frozenset[str]

    def functions(self) -> list[str]:
        """The launcher, after what prepares its constants; the reference; the comparison."""
        names = Names(self.taken)
        function = names.fresh(self.graph.name)
        once = self.plan.preparation
        found: list[str] = []
        inner = None
        if once is not None:
            inner = names.fresh(f"prepare_{self.graph.name}")
            found.append(_Launcher(once.plan, self.launches, inner, names).text("What depends on constants alone."))
        launcher = _Launcher(self.plan, self.launches, function, names, inner)
        found.append(launcher.text(f"{_signature(self.graph)}{_EXCHANGE if self.plan.exchanges else ''}"))
        if self.plan.exchanges:
            return found
        try:
            reference = Names({*names.taken, *self.plan.sizes})
            labels = [reference.fresh(p.label) for p in self.graph.parameters]
            lines = reference_lines(self.graph, labels, reference)
        except Unwritten as reason:
            found.append(f"# There is no reference in PyTorch: {reason}.\n")
            return [*found, self.main(launcher, function, False)]
        head = f"def reference({', '.join((*labels, *launcher.keywords()))}):"
        lines = [head, '    """The same in plain PyTorch."""', *self._dimensions(labels, launcher, lines), *lines]
        return [*found, "\n".join(lines) + "\n", self.main(launcher, function, True)]

    def _dimensions(self, labels: Sequence[str], launcher: _Launcher, body: Sequence[str]) -> list[str]:
        """What the body of the reference uses of the arguments' shapes, and the device."""
        sources = [f"    {n} = {place}" for n, place in launcher.dimensions(dict(enumerate(labels))).items()]
        first = next((x for x, p in zip(labels, self.graph.parameters) if isinstance(p.type, TensorType)), None)
        where = 'torch.device("cpu" if INTERPRETED else "cuda")' if first is None else f"{first}.device"
        device = [f"    device = {where}"] if any("device=device" in line for line in body) else []
        words = {word for line in body for word in re.findall(r"\w+", line)}
        return [*(s for s in sources if s.split()[0] in words), *device]

    def main(self, launcher: _Launcher, function: str, has_reference: bool) -> str:
        """The part that runs when the file is run."""
        lines = ["def main():", '    """Run on random tensors, compare, and measure."""', "    torch.manual_seed(0)"]
        if launcher.inputs():
            lines.append('    device = "cpu" if INTERPRETED else "cuda"')
        arguments: list[str] = []
        for slot, name in launcher.inputs():
            arguments.append(name)
            count = "" if slot.length is None else f" for _ in range({int(slot.length.evaluate(self.sizes))})]"
            made = self._random(slot)
            lines.append(f"    {name} = " + (f"[{made}{count}" if count else made))
        words = ", ".join((*arguments, *(f"{n}={self.sizes[n]}" for n in launcher.keyword_sizes())))
        lines.append(f"    {'actual = ' if has_reference else ''}{function}({words})")
        if has_reference:
            several = len(self.graph.results) > 1
            lines.append(f"    expected = reference({words})")
            lines.append(f"    compare({'actual, expected' if several else '[actual], [expected]'})")
        lines.append("    if not INTERPRETED:")
        lines.append(f"        milliseconds = triton.testing.do_bench(lambda: {function}({words}))")
        lines.append('        print(f"time: {milliseconds:.4f} ms")')
        compare = f"{_COMPARE.format(self._tolerance())}\n\n" if has_reference else ""
        return compare + "\n".join(lines) + '\n\n\nif __name__ == "__main__":\n    main()\n'

    def _tolerance(self) -> str:
        bits = [d.mantissa for v in self.graph.results if (d := v.dtype).is_float]
        bits += [
            p.value.dtype.mantissa
            for p in self.graph.parameters
            if isinstance(p.type, TensorType) and p.type.dtype.is_float
        ]
        return "rtol=2e-2, atol=2e-2" if bits and min(bits) < 23 else "rtol=1e-4, atol=1e-4"

    def _random(self, slot: Slot) -> str:
        shape = _tuple(str(s.evaluate(self.sizes)) for s in slot.shape)
        kind = torch_type(slot.dtype)
        if slot.dtype.is_float and kind != "torch.uint8":
            plain = kind in ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")
            function = "rand" if slot.dtype.specials == "scale" else "randn"  # scales are positive
            made = f"torch.{function}({shape}, device=device"
            return f"{made}, dtype={kind})" if plain else f"{made}).to({kind})"
        low, high = 0, 2 if slot.dtype.kind == "bool" else 4
        if slot.dtype.is_narrow:  # any code
            low = int(slot.dtype.least) if slot.dtype.kind == "int" else 0
            high = low + (1 << slot.dtype.bits)
        drawn = f"torch.randint({low}, {high}, {shape}, device=device)"
        return drawn if kind == "torch.int64" else f"{drawn}.to({kind})"


class _Launcher:
    """Writes a function that runs a plan. names: of variables, by slot, state and size."""

    def __init__(
        self, plan: Plan, launches: Launches, function: str, names: Names, preparation: str | None = None
    ) -> None:
        self.plan = plan
        self.launches = launches
        self.function = function
        self.preparation = preparation
        self.names = Names(names.taken | set(plan.sizes))
        self.kernels = {k.name: k for k in plan.kernels}
        self.lines: list[str] = []
        self.depth = 1
        self.texts = {s.name: self.names.fresh(s.name) for s in plan.slots}
        self.texts.update({n: n for n in plan.sizes})
        self.slots = {s.name: s for s in plan.slots}
        self.record = self.names.fresh("record")

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def inputs(self) -> list[tuple[Slot, str]]:
        """The parameters and their names: the inputs but for those that are prepared."""
        slots = sorted((s for s in self.plan.slots if s.place == "input"), key=lambda s: s.index)
        once = self.plan.preparation
        prepared = sum(s.place == "output" for s in once.plan.slots) if once is not None else 0
        return [(s, self.texts[s.name]) for s in slots[: len(slots) - prepared]]

    def dimensions(self, names: Mapping[int, str]) -> dict[str, str]:
        """Where the value of each open dimension is found, for the names of the parameters."""
        found: dict[str, str] = {}
        for number, (slot, _) in enumerate(self.inputs()):
            if slot.length is not None and (name := slot.length.as_name) is not None:
                found.setdefault(name, f"len({names[number]})")
            element = names[number] + ("" if slot.length is None else "[0]")
            for d, extent in enumerate(slot.shape):
                if (name := extent.as_name) is not None:
                    found.setdefault(name, f"{element}.shape[{d}]")
        return {n: found[n] for n in self.plan.sizes if n in found}

    def keyword_sizes(self) -> list[str]:
        """The open dimensions that no parameter decides."""
        known = self.dimensions(dict.fromkeys(range(len(self.inputs())), ""))
        return [n for n in self.plan.sizes if n not in known]

    def keywords(self) -> list[str]:
        missing = [*self.keyword_sizes(), *(["exchange"] if self.plan.exchanges else [])]
        return ["*", *missing] if missing else []

    def text(self, description: str) -> str:
        """The function."""
        parameters = [name for _, name in self.inputs()]
        self.lines = [f"def {self.function}({', '.join((*parameters, *self.keywords()))}):"]
        self.line(f'"""{description}"""')
        for name, place in self.dimensions(dict(enumerate(parameters))).items():
            self.line(f"{name} = {place}")
        for slot, name in self.inputs():
            self.check(slot, name)
        given = [f"{n}[0]" if s.length is not None else n for s, n in self.inputs()]
        where = f"{given[0]}.device" if given else 'torch.device("cpu" if INTERPRETED else "cuda")'
        here = len(self.lines)
        self.prepare()
        self.memory()
        own = [k for name in self.kernels for k in self.launches[name]]
        if any(map(_has_descriptors, own)):
            self.line("triton.set_allocator(allocate)")
        if has_record := any(_is_record(p) for k in own for p in k.parameters):
            self.line(f"{self.record} = torch.zeros({RECORD.shape[0]}, dtype=torch.int64, device=device)")
        self.block(self.plan.body)
        if has_record:
            self.line(f"require({self.record})")
        if any("device=device" in line for line in self.lines[here:]):
            self.lines.insert(here, f"    device = {where}")
        results = sorted((s for s in self.plan.slots if s.place == "output"), key=lambda s: s.index)
        names = [self.texts[s.name] for s in results]
        self.line(f"return {', '.join(names)}")
        return "\n".join(self.lines) + "\n"

    def check(self, slot: Slot, name: str) -> None:
        what = f"{torch_type(slot.dtype)}, {self.shape(slot)}"
        if slot.length is None:
            self.line(f'check("{name}", {name}, {what})')
            return
        self.line(f"if len({name}) != {self.size(slot.length)}:")
        self.line(f'    raise ValueError(f"{name} has {{len({name})}} tensors, not {{{self.size(slot.length)}}}")')
        self.line(f"for number, tensor in enumerate({name}):")
        self.line(f'    check(f"{name}[{{number}}]", tensor, {what})')

    def prepare(self) -> None:
        """Call what makes the last inputs of constants."""
        once = self.plan.preparation
        if once is None:
            return
        slots = sorted((s for s in self.plan.slots if s.place == "input"), key=lambda s: s.index)
        own = [self.texts[slots[n].name] for n in once.inputs]
        made = [self.texts[s.name] for s in slots[len(self.inputs()) :]]
        words = ", ".join((*own, *(f"{n}={n}" for n in _Launcher(once.plan, {}, "", Names()).keyword_sizes())))
        self.line(f"{', '.join(made)} = {self.preparation}({words})")

    def memory(self) -> None:
        """Results and scratch memory. What shares memory in the plan is a part of one workspace."""
        temporaries = [s for s in self.plan.slots if s.place == "workspace"]
        whole = sum((_bytes(s) for s in temporaries), ZERO)
        workspace = None
        count = self.plan.workspace_bytes.constant
        if count is not None and whole.constant is not None and int(whole) > 2 * count:
            workspace = self.names.fresh("workspace")
            self.line(f"{workspace} = torch.empty({count}, dtype=torch.uint8, device=device)")
        for slot in self.plan.slots:
            if slot.place == "input":
                continue
            name, kind = self.texts[slot.name], torch_type(slot.dtype)
            if slot.place == "output" or workspace is None:
                self.line(f"{name} = torch.empty({self.shape(slot)}, dtype={kind}, device=device)")
            else:
                start, end = self.size(slot.offset), self.size(slot.offset + _bytes(slot))
                self.line(f"{name} = {workspace}[{start}:{end}].view({kind}).view({self.shape(slot)})")

    # ------------------------------------------------------------------ statements

    def block(self, body: Sequence[PlanStatement]) -> None:
        for statement in body:
            match statement:
                case Invoke():
                    self.invoke(statement)
                case Copy():
                    self.copy(statement)
                case Exchange():
                    self.exchange(statement)
                case Repeat():
                    self.repeat(statement)

    def invoke(self, statement: Invoke) -> None:
        kernel = self.kernels[statement.kernel]
        sizes = dict(zip(kernel.sizes, statement.sizes))
        given = {b.name: r for b, r in zip(kernel.parameters, statement.arguments)}
        for launch in self.launches[kernel.name]:
            words: list[str] = []
            for parameter in launch.parameters:
                if _is_record(parameter):
                    words.append(self.record)
                elif isinstance(parameter, Pointer):
                    codes = ".view(torch.uint8)" if parameter.dtype.is_narrow else ""
                    words.append(self.reference(given[parameter.buffer], parameter.element) + codes)
                else:
                    words.append(self.size(parameter.value.substitute(sizes)))
            words += [f"{name}={value}" for name, value in launch.constants]
            words += [f"num_warps={launch.warps}", f"num_stages={launch.stages}", "enable_fp_fusion=False"]
            grid = _tuple(self.size(g.substitute(sizes)) for g in launch.grid)
            self.line(f"{launch.name}[{grid}]({', '.join(words)})")

    def copy(self, statement: Copy) -> None:
        count = statement.elements

        def part(reference: Reference) -> str:
            text = self.reference(Reference(reference.name, reference.element))
            return tidy(f"{text}.view(-1)[{self.size(reference.start)}:{self.size(reference.start + count)}]")

        slots = [self.slots.get(r.name) for r in (statement.target, statement.source)]
        starts = (statement.target.start, statement.source.start)
        if all(s is not None and product(s.shape) == count for s in slots) and starts == (ZERO, ZERO):
            target, source = (self.reference(r) for r in (statement.target, statement.source))
            same = slots[0] is not None and slots[1] is not None and slots[0].shape == slots[1].shape
            self.line(f"{target}.copy_({source}{'' if same else '.view(' + target + '.shape)'})")
        else:
            self.line(f"{part(statement.target)}.copy_({part(statement.source)})")

    def exchange(self, statement: Exchange) -> None:
        """A call of what the caller gives."""
        node, source = statement.node, statement.source
        self.line(f"# {operation_text(node)}")
        given = "None" if source is None else self.reference(source)
        self.line(f"exchange({statement.number}, {given}, {self.reference(statement.target)})")

    def repeat(self, loop: Repeat) -> None:
        """A loop of Python, in which states trade places."""
        bounds = [self.size(loop.lower), self.size(loop.upper)]
        for state in loop.states:
            if len(state.buffers) == 1:  # the step works in place
                self.texts[state.name] = self.texts[f"{state.name}.next"] = self.reference(state.buffers[0])
        turning = [s for s in loop.states if len(s.buffers) > 1]
        own = [(s, self.names.fresh(s.name), self.names.fresh(f"{s.name}_next")) for s in turning]
        for state, name, following in own:
            self.begin_state(state, name, following)
        counter = self.texts[loop.counter] = self.names.fresh(loop.counter)
        self.line(f"for {counter} in range({bounds[1] if bounds[0] == '0' else ', '.join(bounds)}):")
        self.depth += 1
        for state, name, following in own:
            self.texts[state.name], self.texts[f"{state.name}.next"] = name, following
        self.block(loop.test)
        if loop.condition is not None:
            self.line(f"if not {self.reference(loop.condition)}.view(-1)[0]:")
            self.line("    break")
        self.block(loop.body)
        for _, name, following in own:
            self.line(f"{name}, {following}, {name}_spare = {following}, {name}_spare, {following}")
        self.depth -= 1
        if not loop.test and not loop.body and not own:
            self.line("    pass")

    def begin_state(self, state: State, name: str, following: str) -> None:
        buffers = [self.reference(b) for b in state.buffers]
        self.line(f"{name} = {self.reference(state.initial)}")
        self.names.taken.add(f"{name}_spare")
        self.line(f"{following}, {name}_spare = {', '.join(buffers)}")

    # ------------------------------------------------------------------ values

    def reference(self, reference: Reference, element: Size | None = None) -> str:
        """A tensor, or what begins some elements into it."""
        text = self.texts[reference.name]
        chosen = reference.element if reference.element is not None else element
        if chosen is not None:
            text += f"[{self.size(chosen)}]"
        return text if reference.start == ZERO else tidy(f"{text}.view(-1)[{self.size(reference.start)}:]")

    def size(self, size: Size) -> str:
        """An integer; one that depends on data waits for the GPU."""

        def scalar(value: Expr) -> str:
            assert isinstance(value, Load), f"{value} is no scalar"
            return f"int({self.texts[value.buffer]})"

        return tidy(integer(size, lambda n: self.texts.get(n, n), scalar, False))

    def shape(self, slot: Slot) -> str:
        return _tuple(self.size(s) for s in slot.shape)


def _tuple(words: Iterable[str]) -> str:
    """A tuple of Python."""
    found = list(words)
    return f"({found[0]},)" if len(found) == 1 else f"({', '.join(found)})"


def _is_record(parameter: Pointer | Scalar) -> bool:
    return isinstance(parameter, Pointer) and parameter.buffer == RECORD.name


def _bytes(slot: Slot) -> Size:
    return product(slot.shape) * slot.dtype.bytes


def _signature(graph: Graph) -> str:
    """The types of a function, as its documentation."""
    parameters = ", ".join(f"{p.label}: {p.type}" for p in graph.parameters)
    results = ", ".join(str(v.type) for v in graph.results)
    return f"{graph.name}({parameters}) -> {results if len(graph.results) == 1 else f'({results})'}"
