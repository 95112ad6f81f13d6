"""The LALR(1) tables of the grammar: computed by lark, kept as plain data in the user's cache.

Lark checks that the grammar has no conflicts and computes the automaton; the result is small enough to be read back in
a millisecond, so that a parse imports lark only where no cache holds the tables yet. The automaton itself is run by
`automaton.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark.grammar import Rule as LarkRule

GRAMMAR = Path(__file__).with_name("grammar.lark")
STARTS = ("program", "expression")
END = "$END"

_FORMAT = 1  # of the cached file


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
def load_tables(cache_dir: Path | None = None) -> Tables:
    """The tables of `grammar.lark`, from `cache_dir` where they are, else computed and, with a `cache_dir`, kept there.

    A cached file that is damaged is computed again; a folder that cannot be written is not an error.
    """
    if cache_dir is None:
        return build_tables()
    digest = hashlib.sha256(f"{_FORMAT}\n{GRAMMAR.read_text('utf-8')}".encode()).hexdigest()
    path = cache_dir / f"grammar-{digest[:16]}.json"
    tables = _read(path)
    if tables is None:
        tables = build_tables()
        _write(path, tables)
    return tables


def build_tables() -> Tables:
    """Have lark compute the tables of the grammar (about 0.2 s).

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


def _read(path: Path) -> Tables | None:
    """The tables of a cached file, or None where it is missing or is not what was written."""
    try:
        checksum, text = path.read_text("utf-8").split("\n", 1)
    except (OSError, ValueError):
        return None
    if checksum != hashlib.sha256(text.encode()).hexdigest():
        return None
    data = json.loads(text)
    return Tables(
        terminals=tuple(Terminal(**terminal) for terminal in data["terminals"]),
        rules=tuple(
            Rule(r["origin"], r["length"], tuple(r["children"]), r["action"], tuple(r["spliced"]))
            for r in data["rules"]
        ),
        actions=tuple(data["actions"]),
        starts=data["starts"],
        ends=data["ends"],
    )


def _write(path: Path, tables: Tables) -> None:
    """Write through a temporary file, so that no other process can see half a file."""
    text = json.dumps(asdict(tables))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        os.replace(temporary, path)
    except OSError:
        return
