"""Makes a module that shows a fault smaller, as long as it still shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.passes.dce import prune, without_dead_kernels

Fails = Callable[[Module], bool]


def reduced(module: Module, fails: Fails, tries: int = 200) -> Module:
    """A smaller module for which `fails` still holds: one result, as few nodes as possible, the rest parameters.

    `fails` is asked at most `tries` times. Greedy: the first results that fail are kept, then nodes become parameters
    from the first on.
    """
    budget = [tries]

    def still(candidate: Module) -> bool:
        budget[0] -= 1
        return budget[0] >= 0 and fails(candidate)

    module = _first_failing(module, [(v,) for v in module.graph.results], still)
    module = _first_failing(module, [node.values for node in module.graph.body.nodes], still)
    position = 0
    while position < len(module.graph.body.nodes):
        node = module.graph.body.nodes[position]
        smaller = None if any(v in module.graph.results for v in node.values) else _cut(module, node)
        if smaller is not None and still(smaller):
            module = smaller
        else:
            position += 1
    return _without_unread_parameters(module)


def _first_failing(module: Module, choices: Sequence[tuple[Value, ...]], fails: Fails) -> Module:
    """The module with the first of several choices of results that fails; itself if none does."""
    for results in choices:
        smaller = module.with_body(prune(module.graph.body, results))
        if results != module.graph.results and fails(smaller):
            return without_dead_kernels(smaller)
    return module


def _cut(module: Module, node: Node) -> Module:
    """The module with new parameters for the results of a node."""
    body = module.graph.body
    names = {p.label for p in body.parameters}
    new: list[Parameter] = []
    for type_ in node.results:
        label = next(f"cut{n}" for n in range(len(names) + 1) if f"cut{n}" not in names)
        names.add(label)
        new.append(Parameter(label, type_))
    rest = tuple(n for n in body.nodes if n is not node)
    values = dict(zip(node.values, (p.value for p in new)))
    rebuilt = Region((*body.parameters, *new), rest, body.results).rebuild(values)
    return without_dead_kernels(module.with_body(prune(rebuilt, rebuilt.results)))


def _without_unread_parameters(module: Module) -> Module:
    body = module.graph.body
    read = {v.node for n in body.nodes for v in n.inputs} | {v.node for v in body.results}
    kept = tuple(p for p in body.parameters if p in read)
    return module.with_body(Region(kept, body.nodes, body.results))
