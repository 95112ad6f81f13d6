"""Choices between ways, and what pairs of them cost: a binary integer program, solved by HiGHS through SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCALE = 1e6
"""Costs are given in seconds and solved in microseconds: the solver's tolerances are absolute."""

INFEASIBLE = 2
"""The status with which HiGHS says that no solution meets all constraints."""


@dataclass(frozen=True)
class Solution:
    """The value of each column, 1 where it is chosen, and the cost of all."""

    values: Sequence[float]
    cost: float

    def chosen(self, columns: range) -> int:
        """Which of the ways of a choice is taken."""
        return max(range(len(columns)), key=lambda n: self.values[columns[n]])


@dataclass
class IntegerProgram:
    """Exactly one way of each choice is taken. A pair of ways of two choices is taken where both are."""

    costs: list[float] = field(default_factory=list)
    binary: list[int] = field(default_factory=list)
    rows: list[tuple[Sequence[tuple[int, float]], float, float]] = field(default_factory=list)

    def choice(self, costs: Sequence[float]) -> range:
        """The columns of a new choice between ways that cost so much."""
        columns = self._columns(costs, 1)
        self.rows.append(([(n, 1.0) for n in columns], 1.0, 1.0))
        return columns

    def pair(self, first: range, second: range, costs: Sequence[Sequence[float]]) -> list[range]:
        """The columns of the pairs of two choices, those of each way of the first one together."""
        made = [self._columns(row, 0) for row in costs]
        for way, own in zip(first, made):
            self.rows.append(([*((n, 1.0) for n in own), (way, -1.0)], 0.0, 0.0))
        for position, way in enumerate(second):
            self.rows.append(([*((own[position], 1.0) for own in made), (way, -1.0)], 0.0, 0.0))
        return made

    def limit(self, terms: Sequence[tuple[int, float]], most: float) -> None:
        """The sum of what columns count, where they are chosen, is at most `most`."""
        self.rows.append(([(n, count / most) for n, count in terms], -float("inf"), 1.0))

    def _columns(self, costs: Sequence[float], binary: int) -> range:
        start = len(self.costs)
        self.costs += costs
        self.binary += [binary] * len(costs)
        return range(start, len(self.costs))

    def solve(self) -> Solution | None:
        """The cheapest solution; None if there is none."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        entries: list[tuple[float, int, int]] = [
            (count, row, column) for row, (terms, _, _) in enumerate(self.rows) for column, count in terms
        ]
        counts, rows, columns = zip(*entries)
        matrix: Any = csr_matrix((counts, (rows, columns)), shape=(len(self.rows), len(self.costs)))
        result = milp(
            np.array(self.costs) * SCALE,
            integrality=np.array(self.binary),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows]),
            options={"mip_rel_gap": 1e-7},
        )
        if result.x is None:
            assert result.status == INFEASIBLE, result.message
            return None
        return Solution(result.x.tolist(), float(result.fun) / SCALE)
