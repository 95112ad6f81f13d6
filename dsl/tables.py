"""The LALR(1) tables of the grammar: computed by lark, kept beside the grammar as plain data.

Lark checks that the grammar has no conflicts and computes the automaton, which takes a quarter of a second; the result
is read back in a millisecond. After a change of the grammar, `python -m intarsia.dsl.tables` writes it anew; until then
it is computed in each process. The automaton itself is run by `automaton.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark.grammar import Rule as LarkRule

GRAMMAR = Path(__file__).with_name("grammar.lark")
TABLES = Path(__file__).with_name("grammar.json")
STARTS = ("program", "expression")
END = "$END"


@dataclass(frozen=True)
class Terminal:
    """A kind of token: a fixed `text` or a regular expression."""

    name: str
    pattern: str
    is_regexp: bool

    @property
    def is_word(self) -> bool:
        return not self.is_regexp and self.pattern.isidentifier()


@dataclass(frozen=True)
class Rule:
    """One alternative: `length` symbols become one `origin`.

    `children` says which of their values the node is built from, by position, -1 for an absent optional part. `action`
    is the method that builds it, "" where the one child is passed on, "list" where the children are collected;
    `spliced` are those children that are such collections themselves.
    """

    origin: str
    length: int
    children: tuple[int, ...]
    action: str
    spliced: tuple[int, ...]


@dataclass(frozen=True)
class Tables:
    """The automaton. `actions[state]` maps a token kind to the next state, or to `~rule` to reduce, and the name of a
    rule to the state after it. `starts` and `ends` are the first and the accepting state of each start rule."""

    terminals: tuple[Terminal, ...]
    rules: tuple[Rule, ...]
    actions: tuple[Mapping[str, int], ...]
    starts: Mapping[str, int]
    ends: Mapping[str, int]


@cache
def load_tables() -> Tables:
    """The tables of `grammar.lark`, from their file if it was made from the grammar as it is."""
    data = json.loads(TABLES.read_text("utf-8"))
    if data["grammar"] != _digest():
        return build_tables()
    return Tables(
        terminals=tuple(Terminal(*terminal) for terminal in data["terminals"]),
        rules=tuple(
            Rule(origin, length, tuple(children), action, tuple(spliced))
            for origin, length, children, action, spliced in data["rules"]
        ),
        actions=tuple(data["actions"]),
        starts=data["starts"],
        ends=data["ends"],
    )


def tables_text(tables: Tables) -> str:
    """The contents of the file: an item a line, so that changes can be read."""
    fields = {"grammar": _digest(), **vars(tables)}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_json(value)}" for name, value in fields.items()) + "\n}\n"


def _json(value: object) -> str:
    if not isinstance(value, tuple):
        return json.dumps(value)
    items = (json.dumps(item if isinstance(item, dict) else astuple(item)) for item in value)
    return "[\n" + ",\n".join(items) + "\n]"


def _digest() -> str:
    return hashlib.sha256(GRAMMAR.read_bytes()).hexdigest()


def build_tables() -> Tables:
    """Have lark compute the tables of the grammar.

    That it has no conflicts is a test's business: lark's strict mode takes as long again.
    """
    from lark import Lark
    from lark.lexer import Lexer
    from lark.parsers.lalr_analysis import Shift

    class Unused(Lexer):  # lark's own lexer would have every regular expression checked and compiled
        def __init__(self, *_: object) -> None: ...
        def lex(self, *_: object) -> None: ...  # type: ignore[override]

    lark = Lark(GRAMMAR.read_text("utf-8"), parser="lalr", lexer=Unused, start=list(STARTS))
    parsers = {start: lark.parse_interactive("", start).parser_state.parse_conf for start in STARTS}
    rule_numbers = {rule: number for number, rule in enumerate(lark.rules)}
    states = parsers[STARTS[0]].states
    # Lark's numbers of states differ from run to run: these are in the order in which the states are reached.
    numbers = {parsers[start].start_state: number for number, start in enumerate(STARTS)}
    actions: list[dict[str, int]] = []
    for state in (queue := list(numbers)):
        row: dict[str, int] = {}
        for symbol, (action, target) in sorted(states[state].items()):
            if action is Shift and target not in numbers:
                numbers[target] = len(numbers)
                queue.append(target)
            row[symbol] = numbers[target] if action is Shift else ~rule_numbers[target]
        actions.append(row)
    return Tables(
        terminals=tuple(
            Terminal(t.name, t.pattern.value, t.pattern.type != "str")
            for t in sorted(lark.terminals, key=lambda t: t.name)
        ),
        rules=tuple(_rule(rule) for rule in lark.rules),
        actions=tuple(actions),
        starts={start: numbers[parser.start_state] for start, parser in parsers.items()},
        ends={start: numbers[parser.end_state] for start, parser in parsers.items()},
    )


def _rule(rule: LarkRule) -> Rule:
    keeps = [rule.options.keep_all_tokens or not getattr(symbol, "filter_out", False) for symbol in rule.expansion]
    # lark marks with True where an absent [part] stands between the symbols that are there.
    absent = rule.options.empty_indices or (False,) * len(rule.expansion)
    positions = iter(range(len(rule.expansion)))
    children = [-1 if is_absent else next(positions) for is_absent in absent]
    children = [child for child in children if child < 0 or keeps[child]]
    helper = [child >= 0 and rule.expansion[child].name.startswith("__") for child in children]
    action = rule.alias or rule.origin.name.split("{")[0]
    if rule.origin.name.startswith("__") or action == "lines":
        action = "list"
    elif rule.options.expand1 and not rule.alias and len(children) == 1:
        action = ""
    spliced = tuple(index for index, is_helper in enumerate(helper) if is_helper)
    return Rule(rule.origin.name, len(rule.expansion), tuple(children), action, spliced)


if __name__ == "__main__":
    TABLES.write_text(tables_text(build_tables()), "utf-8")
