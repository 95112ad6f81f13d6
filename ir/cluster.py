"""What devices and the links between them can do, for estimates of how long a program on a mesh takes.

A collective over n devices takes `alpha + beta * bytes` for each of the bytes that a ring sends: those formulas are
Alpa's (https://github.com/alpa-projects/alpa, cluster_env.py), per axis of the mesh.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from intarsia.ir.errors import CompileError
from intarsia.ir.ops.collective import Collective
from intarsia.ir.sharding import Mesh, MeshAxis, ring_elements

FOLDER = Path(__file__).parent / "clusters"
"""The files that come with the compiler, by name."""

ALL_TO_ALL = 1.5
"""An exchange between all takes so many times what its bytes say: its messages meet on the links."""


@dataclass(frozen=True)
class Level:
    """Devices that reach each other at one speed: `devices` neighbours in number.

    alpha: seconds until the first byte. bytes_per_second: of one device, each way.
    """

    devices: int
    alpha: float
    bytes_per_second: float


@dataclass(frozen=True)
class Cluster:
    """Levels from the nearest neighbours outwards; the last one reaches all. Rates are those of one device."""

    name: str
    levels: tuple[Level, ...]
    operations_per_second: float
    memory_bytes_per_second: float
    memory_bytes: float

    @staticmethod
    def read(name: str) -> Cluster:
        """One that comes with the compiler, or a file. Raises CompileError E1905."""
        path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
            raise CompileError("E1905", f"there is no cluster '{name}'", hint=f"{known}, or a .json file")
        try:
            found = json.loads(path.read_text())
            levels = tuple(Level(**level) for level in found.pop("levels"))
            return Cluster(levels=levels, **found)
        except (ValueError, TypeError, KeyError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            hint = f"a file is like {FOLDER / 'laptop.json'}"
            raise CompileError("E1905", f"{path.name} describes no cluster: {problem}", hint=hint) from None

    def level(self, mesh: Mesh, axes: Iterable[MeshAxis]) -> Level:
        """The level that a group of devices along axes spans: devices are numbered with neighbours side by side."""
        span = 1
        for axis in axes:
            names = [n for n, _ in mesh.axes]
            inner = math.prod(s for _, s in mesh.axes[names.index(axis.name) + 1 :])
            right = mesh.sizes[axis.name] // (axis.left * mesh.size(axis))
            span = max(span, inner * right * mesh.size(axis))
        return next((found for found in self.levels if found.devices >= span), self.levels[-1])

    def seconds(self, mesh: Mesh, kind: str, axes: tuple[MeshAxis, ...], size: float) -> float:
        """What a collective takes. size: bytes of what one device puts in."""
        sent = ring_elements(kind, size, mesh.size(axes))
        if kind == "all_to_all":
            sent *= ALL_TO_ALL
        link = self.level(mesh, axes)
        return link.alpha + sent / link.bytes_per_second if sent else 0.0

    def collective_seconds(self, mesh: Mesh, node: Collective) -> float:
        """What a collective of the program of a device takes."""
        return self.seconds(mesh, node.name, node.mesh_axes, node.x.type.bytes_for())
