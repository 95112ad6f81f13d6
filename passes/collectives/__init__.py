"""What devices send to each other, and when: fewer and larger collectives, at the same time as they compute."""

from intarsia.passes.collectives.combine import CombineCollectives
from intarsia.passes.collectives.deep_halos import DeepHalos
from intarsia.passes.collectives.gather_ahead import GatherAhead
from intarsia.passes.collectives.in_turn import InTurn
from intarsia.passes.collectives.overlap import Overlap
from intarsia.passes.collectives.quantize import QuantizeCollectives
from intarsia.passes.collectives.scatter_rows import ScatterRows

__all__ = ["CombineCollectives", "DeepHalos", "GatherAhead", "InTurn", "Overlap", "QuantizeCollectives", "ScatterRows"]
