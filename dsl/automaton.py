"""Runs the LALR(1) tables over the tokens of a source and goes on after errors.

This is the shift-reduce automaton of Aho, Lam, Sethi and Ullman, "Compilers" (2007), section 4.6, with panic-mode
recovery (4.8.3): after an error, the rest of the statement, field or declaration is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from intarsia.dsl import lexical_errors, syntax_errors
from intarsia.dsl.lexer import DECLARATION_WORDS, MAX_NESTING, NEWLINE, Token, Tokens
from intarsia.dsl.tables import END, Rule, Tables
from intarsia.dsl.tree import TreeBuilder
from intarsia.ir.errors import Diagnostic, Span

_RESUMING = ("statement", "field", "declaration")


class Automaton:
    """One run over `tokens`. What is wrong is in `diagnostics`, and in those of the builder."""

    def __init__(self, tables: Tables, tokens: Tokens, builder: TreeBuilder) -> None:
        self.tables = tables
        self.tokens = tokens
        self.builder = builder
        self.diagnostics: list[Diagnostic] = []
        self.soft_kinds = {t.name for t in tables.terminals if t.pattern in DECLARATION_WORDS}
        # One entry for each symbol on the stack: the state after it, its node or token, where it begins, and the height
        # of its tree. `states` has the first state below them.
        self.states: list[int] = []
        self.values: list[object] = []
        self.starts: list[int] = []
        self.heights: list[int] = []
        self.checkpoint: tuple[int, list[int]] = (0, [])

    def parse(self, start: str) -> object:
        """The tree of the start rule, or None where an error keeps it from being whole."""
        self.states = [self.tables.starts[start]]
        self.checkpoint = (0, list(self.states))
        position = self.advance(0, self.tables.ends[start])
        while position < len(self.tokens.items):
            self.diagnostics.append(self.explain(position))
            resumed = self.skip(position)
            if resumed is None:
                return None
            position = self.advance(resumed, self.tables.ends[start])
            if position == resumed:
                return None
        return None if self.diagnostics else self.values[-1]

    def advance(self, position: int, end_state: int) -> int:
        """Read tokens from `position` on. Gives the index of the one that does not fit, or their number."""
        items, actions, rules = self.tokens.items, self.tables.actions, self.tables.rules
        states, values, starts, heights = self.states, self.values, self.starts, self.heights
        while position < len(items):
            token = items[position]
            kind = token.kind
            action = actions[states[-1]].get(kind)
            if action is None and kind in self.soft_kinds:
                kind = "NAME"
                action = actions[states[-1]].get(kind)
            while action is not None and action < 0:
                rule = rules[~action]
                if rule.length == 1 and not rule.action:
                    states[-1] = actions[states[-2]][rule.origin]
                else:
                    self.reduce(~action, position)
                if states[-1] == end_state and kind == END:
                    return len(items)
                action = actions[states[-1]].get(kind)
            if action is None:
                return position
            states.append(action)
            values.append(token)
            starts.append(token.start)
            heights.append(0)
            position += 1
            if kind == NEWLINE:
                self.checkpoint = (position, list(states))
        return position

    def reduce(self, number: int, position: int) -> None:
        """Replace the symbols of a complete alternative by its node; `position` is the token after it."""
        rule = self.tables.rules[number]
        values = self.values
        base = len(values) - rule.length
        children = [values[base + child] if child >= 0 else None for child in rule.children]
        start, height = self.tokens.items[position].start, 0
        if rule.length:
            start, height = self.starts[base], max(self.heights[base:])
            del values[base:], self.starts[base:], self.heights[base:], self.states[base + 1 :]
        value: object
        if rule.action == "list":
            value = self.collect(rule, children)
        elif not rule.action:
            value = children[0]
        else:
            span = Span(self.tokens.source, start, self.tokens.items[position - 1].end if rule.length else start)
            value = getattr(self.builder, rule.action)(span, *children)
            height += 1
            if height == MAX_NESTING:
                self.diagnostics.append(lexical_errors.nested_too_deeply(span, MAX_NESTING))
        values.append(value)
        self.starts.append(start)
        self.heights.append(height)
        self.states.append(self.tables.actions[self.states[-1]][rule.origin])

    @staticmethod
    def collect(rule: Rule, children: list[object]) -> object:
        """The elements of a list: those of lark's helper rules, which lists are spliced, in place."""
        elements: list[object] = []
        for index, child in enumerate(children):
            if index not in rule.spliced:
                elements.append(child)
            elif elements:
                elements.extend(cast(list[object], child))
            else:
                elements = cast(list[object], child)
        return elements if rule.origin.startswith("__") else tuple(elements)

    def explain(self, position: int) -> Diagnostic:
        """What is wrong with the token at `position`."""
        states = self.states_before(position)
        terminals = [t for t in self.tables.terminals if self.accepts(states, t.name)]
        expected = frozenset(t.name if t.is_regexp else t.pattern for t in terminals)
        reserved = frozenset(t.pattern for t in self.tables.terminals if t.is_word) - DECLARATION_WORDS
        return syntax_errors.explain(syntax_errors.Context(self.tokens, position, expected, reserved))

    def states_before(self, position: int) -> list[int]:
        """The states before the token at `position` was seen: it may already have completed rules that it does not fit
        into. They are found by reading once more from the last line end."""
        start, saved = self.checkpoint
        states = list(saved)
        for token in self.tokens.items[start:position]:
            if not self.shift(states, token.kind):
                assert token.kind in self.soft_kinds
                self.shift(states, "NAME")
        return states

    def accepts(self, states: Sequence[int], kind: str) -> bool:
        """Whether a token of this kind could come next."""
        return self.shift(list(states), kind)

    def shift(self, states: list[int], kind: str) -> bool:
        """Move `states` over one token, building nothing. False where it does not fit."""
        actions, rules = self.tables.actions, self.tables.rules
        action = actions[states[-1]].get(kind)
        while action is not None and action < 0:
            rule = rules[~action]
            if rule.length:
                del states[-rule.length :]
            states.append(actions[states[-1]][rule.origin])
            if kind == END and not actions[states[-1]]:
                return True
            action = actions[states[-1]].get(kind)
        if action is None:
            return False
        states.append(action)
        return True

    def skip(self, position: int) -> int | None:
        """Leave out the statement, field or declaration that is wrong: the position of the token after it, or None
        where there is none to leave out."""
        resumed = self.unwind()
        if resumed is None:
            return None
        items, partners = self.tokens.items, self.tokens.partners
        while items[position].kind not in (NEWLINE, END):
            if items[position].text == "}" and items[partners[position]].text == "{":
                break
            position = max(position, partners.get(position, position)) + 1
        self.values.append(None)
        self.starts.append(items[position].start)
        self.heights.append(0)
        self.states.append(resumed)
        self.checkpoint = (position, list(self.states))
        return position

    def unwind(self) -> int | None:
        """Leave the innermost statement, field or declaration: the state after a right one, or None where there is
        none. A block whose `}` was read is left as a whole."""
        closed = 0
        while self.states:
            gotos = self.tables.actions[self.states[-1]]
            for symbol in _RESUMING:
                if symbol in gotos and not closed:
                    return gotos[symbol]
            last = self.values[-1] if self.values else None
            if isinstance(last, Token):
                closed += (last.text == "}") - (last.text[0] == "{")
            del self.states[-1:], self.values[-1:], self.starts[-1:], self.heights[-1:]
        return None
