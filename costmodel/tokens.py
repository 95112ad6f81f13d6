"""A kernel as text for a model: counts of tokens and of pairs of them, hashed into a fixed number of columns.

After "ML-driven Hardware Cost Model for MLIR" (Das and Mannarswamy, 2023): what the compiler prints is enough to learn
from, without features that somebody has thought of. Names do not matter, so they are numbered; numbers count by their
size. Counts are logarithms. Hashing: Weinberger et al., "Feature hashing for large scale multitask learning", 2009.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel

COLUMNS = 384
"""Columns of the result."""

_TOKEN = re.compile(r"[A-Za-z_][\w.]*|\d+(?:\.\d+)?(?:e[+-]?\d+)?|[-+*/%<>=]=?|\.\.|[\[\](){}.,:]")

_WORDS = """
for in parallel lane unroll step alloc register cache global prepared where exp log sqrt tanh max min fma abs rsqrt
prefetch nontemporal if else f32 f64 bf16 f16 i64 i32 i8 bool call check sort
"""

_KEPT = frozenset(_WORDS.split())
"""Words of the text form; every other word is somebody's name."""


def tokens(text: str) -> list[str]:
    """The tokens of a printed kernel: names as `name`, whole numbers as the power of two at or below them."""
    found = []
    for token in _TOKEN.findall(text):
        if token[0].isdigit():
            found.append(_size(int(token)) if token.isdigit() else "number")
        elif token[0].isalpha() or token[0] == "_":
            found.append(token if token in _KEPT else "name")
        else:
            found.append(token)
    return found


def _size(number: int) -> str:
    return f"2^{number.bit_length() - 1}" if number else "0"


def token_features(kernel: Kernel) -> npt.NDArray[np.float32]:
    """log2(1 + count) of the tokens and pairs that fall into each column: shape (COLUMNS,)."""
    words = tokens(print_kernel(kernel))
    counts = Counter(words)
    counts.update(f"{a} {b}" for a, b in pairwise(words))
    columns = np.zeros(COLUMNS)
    for word, count in counts.items():
        columns[crc32(word.encode()) % COLUMNS] += count
    return np.log2(1 + columns).astype(np.float32)
