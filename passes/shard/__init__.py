"""From shardings on a few tensors to a program for each device."""

from intarsia.passes.shard.gather_again import GatherAgain
from intarsia.passes.shard.partition import DropSharding, Partition
from intarsia.passes.shard.presets import Preset
from intarsia.passes.shard.propagate import PropagateSharding
from intarsia.passes.shard.reshard import Reshard
from intarsia.passes.shard.rings import Rings
from intarsia.passes.shard.scans import SplitScans
from intarsia.passes.shard.whole_updates import WholeUpdates

__all__ = [
    "DropSharding",
    "GatherAgain",
    "Partition",
    "Preset",
    "PropagateSharding",
    "Reshard",
    "Rings",
    "SplitScans",
    "WholeUpdates",
]
