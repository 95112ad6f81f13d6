"""How the parameters and results of a program lie on the devices of a mesh, for `intarsia explain --about sharding`: as
text, and as a picture like that of JAX's `visualize_array_sharding`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.graph import Module
from intarsia.ir.sharding import Mesh, Sharding
from intarsia.ir.spmd import Placement
from intarsia.ir.types import Type
from intarsia.plotting import pyplot, save

MOST = 24
"""Tensors that are shown: the first ones that are split, or parts of sums."""

FEW = 8
"""Devices of a cell that are named."""


@dataclass(frozen=True)
class Lying:
    """A tensor: the dimensions that are split, and the devices that have each part, by its numbers along these."""

    name: str
    type: Type
    dimensions: tuple[int, ...]
    parts: Mapping[tuple[int, ...], Sequence[int]]

    @staticmethod
    def of(name: str, type_: Type, mesh: Mesh) -> Lying:
        sharding = type_.sharding or Sharding(())
        split = [(d, axes) for d, axes in enumerate(sharding.axes) if mesh.size(axes) > 1]
        parts: dict[tuple[int, ...], list[int]] = {}
        for device in range(mesh.devices):
            parts.setdefault(tuple(mesh.position(device, axes) for _, axes in split), []).append(device)
        return Lying(name, type_, tuple(d for d, _ in split), parts)

    @property
    def grid(self) -> list[list[tuple[int, ...]]]:
        """The parts in rows: those of the last dimension that is split side by side, those of the others below."""
        rows: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for part in sorted(self.parts):
            rows.setdefault(part[:-1], []).append(part)
        return [*rows.values()]

    @property
    def said(self) -> str:
        """Its name and type, and which dimensions go where."""
        *down, across = map(str, self.dimensions or ("",))
        downwards = f"dimension {' and '.join(down)} downwards, {across} across" if down else f"dimension {across}"
        return f"{self.name}: {self.type}{f', {downwards}' if self.dimensions else ''}"

    @property
    def is_whole(self) -> bool:
        """Does each device have all of it?"""
        return not self.dimensions and (self.type.sharding is None or not self.type.sharding.partial)

    @property
    def text(self) -> str:
        """The numbers of the devices in the place of what they have."""
        wide = max(len(self.cell(part)) for part in self.parts)
        return "\n".join(f"  | {' | '.join(self.cell(part).ljust(wide) for part in row)} |" for row in self.grid)

    def cell(self, part: tuple[int, ...]) -> str:
        devices = self.parts[part]
        return " ".join(map(str, devices[:FEW])) + (" …" if len(devices) > FEW else "")


def lying_of(module: Module) -> list[Lying]:
    """The parameters and results of a partitioned program."""
    placed, graph = Placement.of(module), module.graph
    named = [*zip((p.label for p in graph.parameters), placed.parameters), *zip(graph.result_names, placed.results)]
    return [Lying.of(name, type_, placed.mesh) for name, type_ in named]


def lying_lines(module: Module) -> Iterator[str]:
    """The tensors, those that lie alike together."""
    every = lying_of(module)
    split = [one for one in every if not one.is_whole]
    yield f"devices are numbered along {Placement.of(module).mesh.said}, the last axis first"
    alike: dict[str, list[str]] = {}
    for one in split[:MOST]:
        alike.setdefault(one.text, []).append(one.said)
    for text, names in alike.items():
        yield from (*names, text)
    if len(split) > MOST:
        yield f"and {len(split) - MOST} more that are split"
    if whole := [one.name for one in every if one.is_whole]:
        more = f" and {len(whole) - MOST} more" if len(whole) > MOST else ""
        yield f"whole on each device: {', '.join(whole[:MOST])}{more}"


def draw_lying(module: Module, file: str) -> None:
    """Draw each tensor as a grid of parts, coloured by the first device that has one. Raises CompileError E0709 where
    the file cannot be written, E1801 without matplotlib."""
    plt = pyplot()
    every = lying_of(module)
    shown = sorted(every, key=lambda one: one.is_whole)[:MOST]
    columns = min(4, len(shown)) or 1
    rows = -(-len(shown) // columns) or 1
    figure, panels = plt.subplots(rows, columns, figsize=(3 * columns, 2.2 * rows), squeeze=False, layout="constrained")
    colours, count = plt.get_cmap("turbo"), Placement.of(module).mesh.devices
    for panel, one in zip(panels.flat, shown):
        grid = one.grid
        for y, row in enumerate(grid):
            for x, part in enumerate(row):
                colour = colours((one.parts[part][0] + 0.5) / count)
                panel.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", alpha=0.6))
                if len(grid) * len(row) <= 256:
                    panel.text(x + 0.5, y + 0.5, one.cell(part), ha="center", va="center", fontsize=7, wrap=True)
        panel.set_xlim(0, len(grid[0]))
        panel.set_ylim(len(grid), 0)
        panel.set_title(f"{one.name}\n{one.type}", fontsize=8)
    for panel in panels.flat:
        panel.set_axis_off()
    save(figure, file)
