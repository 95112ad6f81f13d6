"""Intarsia: a compiler for tensor programs, from one line of index notation to machine code."""

from pathlib import Path as _Path

if (_Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parent.parent))  # a checkout keeps dsl/, ir/, ... one level up

__version__ = "0.1.0"
