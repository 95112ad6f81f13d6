"""The syntax tree as text, and where names are assigned."""

from __future__ import annotations

from intarsia.dsl import ast

_INLINE = (str, bool, int, float, ast.Identifier)


def show(node: ast.Node) -> str:
    """A line for each node, indented under the one that it belongs to: kind, plain fields, and line:column.

    A field that is a node or a list of nodes is named before its kind.
    """
    lines: list[str] = []
    stack: list[tuple[int, str, ast.Node]] = [(0, "", node)]
    while stack:
        depth, label, current = stack.pop()
        plain: list[str] = []
        below: list[tuple[int, str, ast.Node]] = []
        for name, value in vars(current).items():
            if isinstance(value, _INLINE):
                plain.append(f" {name}={str(value) if isinstance(value, ast.Identifier) else repr(value)}")
            elif isinstance(value, ast.Node):
                below.append((depth + 1, f"{name}: ", value))
            elif isinstance(value, tuple):
                below += [(depth + 1, f"{name}[{index}]: ", item) for index, item in enumerate(value)]
        place = "" if isinstance(current, ast.Program) else f"  # {current.span.line}:{current.span.column}"
        lines.append(f"{'  ' * depth}{label}{type(current).__name__}{''.join(plain)}{place}")
        stack.extend(reversed(below))
    return "\n".join(lines) + "\n"
