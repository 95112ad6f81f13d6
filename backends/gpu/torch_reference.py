"""A graph op by op in PyTorch: the plain function that a program's kernels are checked against."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from intarsia.backends.gpu.python_layout import tidy
from intarsia.backends.gpu.python_names import Names
from intarsia.backends.gpu.torch_spaces import SpaceWriter, reduced
from intarsia.backends.gpu.torch_texts import Text, Unwritten, applied, converted, integer, number, reinterpreted
from intarsia.backends.gpu.torch_texts import torch_arithmetic_type as torch_type
from intarsia.ir.dtypes import BOOL, I64
from intarsia.ir.graph import Graph, Node, Region, Structured, Value
from intarsia.ir.ops import (
    ArgReduce,
    Argsort,
    BitcastOp,
    BroadcastTo,
    Cast,
    Concat,
    Constant,
    Cumulative,
    Elementwise,
    Fused,
    ListGet,
    Loop,
    Matmul,
    Pad,
    Reduce,
    Reshape,
    Slice,
    Sort,
    Transpose,
    Update,
)
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import operand_position
from intarsia.ir.types import TensorType

_SHORT = 50
"""Characters of an expression that may stand inside another."""


def reference_lines(graph: Graph, parameters: Sequence[str], names: Names) -> list[str]:
    """The body of a function of `parameters` (and of the graph's dimensions, by name). Raises Unwritten for what
    PyTorch lacks."""
    writer = _Writer(graph, parameters, names)
    writer.region(graph.body)
    results = [writer.of(v).tensor for v in graph.results]
    writer.add("return " + ", ".join(tidy(r) for r in results))
    return _without_unused(writer.lines)


def _without_unused(lines: list[str]) -> list[str]:
    """Without variables that nothing reads, as an operand of which no element is used."""
    words = Counter(word for line in lines for word in set(re.findall(r"\w+", line)))
    kept = [x for x in lines if not (found := re.match(r" +(\w+) = ", x)) or words[found[1]] > 1]
    return kept if len(kept) == len(lines) else _without_unused(kept)


class _Writer:
    """Adds lines node by node. texts: what stands for a value."""

    def __init__(self, graph: Graph, parameters: Sequence[str], names: Names) -> None:
        self.names = names
        self.lines: list[str] = []
        self.depth = 1
        self.counters: dict[str, str] = {}
        self.texts: dict[Value, Text] = {}
        self.uses = Counter(v for n in graph.body.nodes for v in n.inputs)
        self.uses.update(v for n in graph.body.walk() for r in n.regions for v in r.captures for _ in range(2))
        self.uses.update(v for v in graph.results for _ in range(2))
        for parameter, text in zip(graph.parameters, parameters):
            kind = parameter.type
            dtype = kind.dtype if isinstance(kind, TensorType) else I64
            self.texts[parameter.value] = Text(text, dtype)

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def assign(self, name: str, text: str) -> None:
        self.add(f"{name} = {tidy(text)}")

    def of(self, value: Value) -> Text:
        return self.texts[value]

    def size(self, size: Size, scalars: Sequence[Value] = ()) -> str:
        """An integer of Python; `scalars` are the tensors that it may load."""

        def scalar(value: Expr) -> str:
            if not isinstance(value, Load):
                raise Unwritten("a size that is computed from several values")
            return f"int({self.of(scalars[operand_position(value.buffer)]).text})"

        return tidy(integer(size, lambda n: self.counters.get(n, n), scalar, False))

    def shape(self, sizes: Sequence[Size]) -> str:
        return "(" + "".join(f"{self.size(s)}, " for s in sizes) + ")"

    # ------------------------------------------------------------------ nodes

    def region(self, region: Region) -> None:
        for node in region.nodes:
            match node:
                case Loop():
                    self.loop(node)
                case Fused(body):
                    self.count(body)
                    self.region(body)
                    self.texts.update({v: self.of(r) for v, r in zip(node.values, body.results)})
                case _ if self.uses[node.value]:
                    self.keep(node, self.node(node))

    def keep(self, node: Node, text: Text) -> None:
        """Remember what a node is; under a name, unless it is short and used but once."""
        value = node.value
        short = self.uses[value] == 1 and isinstance(node, Elementwise | Cast) and len(tidy(text.text)) <= _SHORT
        if not text.literal and not short and not text.text.isidentifier():
            hint = node.function if isinstance(node, Elementwise) else getattr(node, "combiner", node.name)
            name = self.names.fresh(f"t_{hint}")
            self.assign(name, text.text)
            text = Text(name, text.dtype)
        self.texts[value] = text

    def node(self, node: Node) -> Text:
        """The expression of a node with one result."""
        match node:
            case Constant(literal, dtype):
                return number(literal, dtype)
            case Elementwise(function, arguments):
                return applied(function, [self.of(a) for a in arguments], node.value.dtype)
            case Cast(x, dtype):
                return converted(self.of(x), dtype)
            case ListGet(source, index, scalars):
                return Text(f"{self.of(source).text}[{self.size(index, scalars)}]", node.value.dtype)
            case Update():
                return Text(self.writer(node).update(node), node.value.dtype)
            case Structured() if (text := self.shaped(node)) is not None:
                return Text(text, node.value.dtype)
            case Structured():
                return self.writer(node).space(node.space)
        return Text(self.ordered(node), node.value.dtype)

    def writer(self, node: Node) -> SpaceWriter:
        texts = [self.of(v) for v in node.operands]
        return SpaceWriter(texts, node.operands, self.size, self.assign, self.names.fresh)

    def shaped(self, node: Structured) -> str | None:
        """An op on whole tensors that PyTorch has; None for any other."""
        first = self.of(node.operands[0]).tensor if node.operands else ""
        match node:
            case BitcastOp(dtype=dtype):
                return reinterpreted(self.of(node.operands[0]), dtype).text
            case Reshape(shape=shape):
                return f"{first}.reshape({self.shape(shape)})"
            case BroadcastTo(shape=shape):
                return f"{first}.broadcast_to({self.shape(shape)})"
            case Transpose(axes=axes):
                return f"{first}.permute({', '.join(map(str, axes))})" if axes else first
            case Concat(parts, axis):
                return f"torch.cat(({', '.join(self.of(p).tensor for p in parts)},), dim={axis})"
            case Slice():
                return self.slice(node)
            case Pad(_, before, after, literal):
                around = [self.size(s) for pair in zip(reversed(before), reversed(after)) for s in pair]
                value = number(literal, node.value.dtype).text
                return f"torch.nn.functional.pad({first}, ({', '.join(around)}), value={value})" if around else first
            case Reduce(x, combiner, axes, keepdims):
                torch_type(node.value.dtype)
                if combiner in ("max", "min") and any(x.tensor.shape[d] == ZERO for d in axes):
                    raise Unwritten(f"PyTorch has no {combiner} of no elements")
                if not axes:
                    return converted(self.of(x), node.value.dtype).tensor
                return reduced(first, combiner, axes, keepdims, node.value.dtype)
            case Matmul():
                return self.matmul(node)
        return None

    def slice(self, node: Slice) -> str:
        words: list[str] = []
        for d, (start, extent, step) in enumerate(zip(node.starts, node.extents, node.steps)):
            if step < 1:
                raise Unwritten("PyTorch takes no slices with negative steps")
            whole = start == ZERO and step == 1 and extent == node.x.tensor.shape[d]
            end = self.size(start + extent * step) if step == 1 else self.size(start + (extent - 1) * step + 1)
            low = "" if start == ZERO else self.size(start)
            single = self.size(start) if d in node.dropped else None
            words.append(single or (":" if whole else f"{low}:{end}" + (f":{step}" if step != 1 else "")))
        while words and words[-1] == ":":
            words.pop()
        source = self.of(node.x).tensor
        return f"{source}[{', '.join(words)}]" if words else source

    def matmul(self, node: Matmul) -> str:
        left, right = self.of(node.lhs), self.of(node.rhs)
        wanted = torch_type(node.value.dtype)
        if node.value.dtype.is_float:
            return f"({left.tensor} @ {right.tensor})"
        return f"({left.tensor}.double() @ {right.tensor}.double()).to({wanted})"

    def ordered(self, node: Node) -> str:
        """An op that puts elements in order or runs along one dimension."""
        first = self.of(node.operands[0]).tensor
        match node:
            case Sort():
                return f"torch.sort({first}, dim=-1, stable=True).values"
            case Argsort():
                return f"torch.argsort({first}, dim=-1, stable=True)"
            case ArgReduce(_, which, axis):
                numbers = f"{first}.to(torch.uint8)" if node.operands[0].dtype == BOOL else first
                return f"torch.{which}({numbers}, dim={axis})"
            case Cumulative(_, combiner, axis):
                return f"torch.cum{combiner}({first}, dim={axis}, dtype={torch_type(node.value.dtype)})"
        raise Unwritten(f"{node.name} has no counterpart in PyTorch")

    # ------------------------------------------------------------------ loops

    def loop(self, loop: Loop) -> None:
        """A loop of Python over the states."""
        bounds = [self.size(b, loop.scalars) for b in (loop.lower, loop.upper)]
        names = [self.names.fresh(p.label) for p in loop.states]
        self.assign_all(names, [self.of(v).tensor for v in loop.initial])
        stacks = [self.names.fresh("rows") for _ in range(loop.stacked)]
        for stack in stacks:
            self.add(f"{stack} = []")
        counter = self.counters[loop.counter] = self.names.fresh(loop.counter)
        self.add(f"for {counter} in range({bounds[1] if bounds[0] == '0' else ', '.join(bounds)}):")
        self.depth += 1
        self.count(loop.body)
        if loop.condition is not None:
            self.count(loop.condition)
            self.states(loop.condition, names)
            self.region(loop.condition)
            self.add(f"if not {tidy(self.of(loop.condition.results[0]).tensor)}:")
            self.add("    break")
        self.states(loop.body, names)
        self.region(loop.body)
        emitted = loop.body.results[len(names) :]
        for stack, value in zip(stacks, emitted):
            self.add(f"{stack}.append({tidy(self.of(value).tensor)})")
        self.assign_all(names, [self.of(v).tensor for v in loop.body.results[: len(names)]])
        self.depth -= 1
        for stack, value, result in zip(stacks, emitted, loop.values[len(names) :]):
            joined = f"torch.stack({stack})"
            if not result.tensor.shape[0].constant:
                shape = f"(0, {self.shape(value.tensor.shape)[1:]}"
                joined += f" if {stack} else torch.empty({shape}, dtype={torch_type(value.dtype)}, device=device)"
            self.assign(stack, joined)
            self.texts[result] = Text(stack, value.dtype)
        for name, result in zip(names, loop.values):
            self.texts[result] = Text(name, result.dtype)

    def states(self, region: Region, names: Sequence[str]) -> None:
        for parameter, name in zip(region.parameters, names):
            self.texts[parameter.value] = Text(name, parameter.value.dtype)

    def count(self, region: Region) -> None:
        """Count the uses in the region of a loop; its results are used after it."""
        self.uses.update(v for n in region.nodes for v in n.inputs)
        self.uses.update(v for v in region.results for _ in range(2))

    def assign_all(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Assign at once, as each text may use any of the names."""
        changed = [(n, tidy(t)) for n, t in zip(names, texts) if n != tidy(t)]
        if changed:
            self.add(f"{', '.join(n for n, _ in changed)} = {', '.join(t for _, t in changed)}")
