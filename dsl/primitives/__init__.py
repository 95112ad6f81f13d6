"""The built-in functions that are not written in the language: name to builder."""

from intarsia.dsl.primitives.arguments import Primitive
from intarsia.dsl.primitives.contractions import CONTRACTIONS
from intarsia.dsl.primitives.elementwise import ELEMENTWISE
from intarsia.dsl.primitives.making import MAKING
from intarsia.dsl.primitives.order import ORDER
from intarsia.dsl.primitives.queries import QUERIES
from intarsia.dsl.primitives.reductions import REDUCTIONS
from intarsia.dsl.primitives.shapes import SHAPES
from intarsia.dsl.primitives.storage import STORAGE
from intarsia.dsl.primitives.windows import WINDOWS

PRIMITIVES: dict[str, Primitive] = {
    p.name: p
    for family in (ELEMENTWISE, REDUCTIONS, SHAPES, MAKING, ORDER, CONTRACTIONS, WINDOWS, STORAGE, QUERIES)
    for p in family
}

__all__ = ["PRIMITIVES", "Primitive"]
