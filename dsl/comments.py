"""Which comment belongs to which node, so that a formatted program keeps them all.

A comment belongs to an *anchor*: a declaration, a statement, a field, or an item of a list in brackets. One at the end
of a line belongs to the anchor that ends there, or to the first in the bracket that opens there; one on a line of its
own to the next in the same brackets, or to the last. Where there is no such anchor, as between the operands of a sum,
it moves above the one that it stands in.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from intarsia.dsl import ast
from intarsia.ir.errors import Source

_PIECES = re.compile(r'"[^"\n]*"|(?P<comment>#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])')


@dataclass(frozen=True)
class Comment:
    """A comment with its `#`, and where it stands."""

    text: str
    position: int


@dataclass(frozen=True)
class Comments:
    """The comments of each node: `before` it, where its bracket opens; on lines of their own `above` it; `behind` it at
    the end of its last line; on lines of their own `below` it. `alone` are those of a file without declarations."""

    before: dict[ast.Node, list[Comment]] = field(default_factory=lambda: defaultdict(list))
    above: dict[ast.Node, list[Comment]] = field(default_factory=lambda: defaultdict(list))
    behind: dict[ast.Node, list[Comment]] = field(default_factory=lambda: defaultdict(list))
    below: dict[ast.Node, list[Comment]] = field(default_factory=lambda: defaultdict(list))
    alone: list[Comment] = field(default_factory=list)

    def of(self, node: ast.Node) -> bool:
        """Whether a node has any."""
        return any(node in kind for kind in (self.before, self.above, self.behind, self.below))


@dataclass
class _Bracket:
    """What is known of an open bracket: the last anchor that began directly in it, and comments that wait for one."""

    last: ast.Node | None = None
    waiting: list[Comment] = field(default_factory=list)


def attach(program: ast.Program) -> Comments:
    """Every comment of the source of `program`, with the node it belongs to."""
    comments = Comments()
    if "#" not in program.source.text:
        return comments
    anchors = sorted(_anchors(program), key=lambda node: (node.span.start, -node.span.end))
    ends = {node.span.end: node for node in reversed(anchors)}
    open_brackets = [_Bracket()]
    events: list[tuple[int, int, ast.Node | re.Match[str]]] = [(node.span.start, 0, node) for node in anchors]
    events += [(match.start(), 1, match) for match in _PIECES.finditer(program.source.text)]
    for position, _, event in sorted(events, key=lambda event: event[:2]):
        bracket = open_brackets[-1]
        if isinstance(event, ast.Node):
            if bracket.last is None or bracket.last.span.end <= position:
                bracket.last = event
            for comment in bracket.waiting:
                kind = comments.before if _opens_bracket(program.source, comment) else comments.above
                kind[event].append(comment)
            bracket.waiting = []
        elif event["open"]:
            open_brackets.append(_Bracket())
        elif event["close"]:
            _close(comments, open_brackets)
        elif event["comment"]:
            comment = Comment(event["comment"].rstrip(), position)
            before = ends.get(_code_end(program.source, position))
            if before is not None:
                comments.behind[before].append(comment)
            elif bracket.last is not None and bracket.last.span.end > position:
                comments.above[bracket.last].append(comment)
            else:
                bracket.waiting.append(comment)
    _close(comments, open_brackets)
    return comments


def _close(comments: Comments, open_brackets: list[_Bracket]) -> None:
    """Leave the innermost bracket; comments that no anchor followed go below the last, or above what is around them."""
    closed = open_brackets.pop()
    if not closed.waiting:
        return
    position = closed.waiting[0].position
    around = (b.last for b in reversed(open_brackets) if b.last is not None and b.last.span.end > position)
    if closed.last is not None:
        comments.below[closed.last] += closed.waiting
    elif (node := next(around, None)) is not None:
        comments.above[node] += closed.waiting
    else:
        comments.alone.extend(closed.waiting)


def _code_end(source: Source, position: int) -> int:
    """Where the code before a comment on its line ends, separators left out; -1 where there is none."""
    line = source.text.rfind("\n", 0, position) + 1
    code = source.text[line:position].rstrip(" \t,;")
    return line + len(code) if code.strip() else -1


def _opens_bracket(source: Source, comment: Comment) -> bool:
    """Whether the code before a comment on its line ends with an opening bracket."""
    end = _code_end(source, comment.position)
    return end > 0 and source.text[end - 1] in "([{"


def _anchors(program: ast.Program) -> Iterator[ast.Node]:
    """The nodes that comments belong to."""
    for node in ast.walk(program):
        match node:
            case ast.Program():
                yield from node.declarations
            case ast.Mesh():
                yield from node.axes
            case ast.Struct():
                yield from node.fields
            case ast.Function():
                yield from node.parameters
                yield from node.body
            case ast.Test():
                yield from node.body
            case ast.If():
                yield from node.then
                if not is_chained(node):
                    yield from node.otherwise
            case ast.LoopExpr():
                yield from node.states
                yield from node.body
            case ast.Call() | ast.Derived():
                yield from node.positional
                yield from node.keywords
            case ast.Comprehension():
                yield from node.binders
                yield node.body
            case ast.Subscript() | ast.Update() | ast.TupleExpr():
                yield from node.items


def is_chained(node: ast.If) -> bool:
    """Whether the other side is `else if`."""
    return len(node.otherwise) == 1 and isinstance(node.otherwise[0], ast.If)
