"""Programs and functions as Python objects: load, call, look inside.

layers = intarsia.load("layers.ita")
y = layers.mlp(x, w1, b1, w2)              # compiles for these types on first use, then reuses
kernel = layers.mlp.lower(x, w1, b1, w2)   # the compilation itself, with every stage
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.cache import Cache, KernelStore, compiler_digest
from intarsia.deep_stack import with_deep_stack
from intarsia.function import Function
from intarsia.ir.errors import CompileError, Source
from intarsia.options import Options
from intarsia.tensors import type_of as type_of

if TYPE_CHECKING:
    from intarsia.dsl.library import Library


class Program:
    """A source file or text with everything compiled from it so far.

    Functions are attributes (`program.mlp`) or items (`program["mlp"]`).
    """

    def __init__(self, source: Source, options: Options | None = None, *, use_cache: bool = True) -> None:
        self.source = source
        self.options = options or Options()
        self.cache = Cache(enabled=use_cache)
        self._functions: dict[str | None, Function] = {}

    def with_options(self, options: Options) -> Program:
        """The same program, not parsed again, for other options."""
        other = Program(self.source, options, use_cache=self.cache.enabled)
        if self.is_parsed:
            vars(other)["library"] = self.library
        return other

    @cached_property
    def library(self) -> Library:
        """The parsed program and what it imports; not needed where everything is in the cache."""
        from intarsia.dsl.library import load

        return with_deep_stack(lambda: load(self.source))

    @property
    def is_parsed(self) -> bool:
        """Has the text been parsed? It has not where the cache answered everything."""
        return "library" in vars(self)

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions of the file, and of those that it imports."""
        return tuple(self.library.functions)

    def entry(self, name: str | None = None) -> Function:
        """The function of a name, or the entry point: `main`, else the only or last one."""
        found = self._functions.get(name)
        return self._functions.setdefault(name, Function(self, name)) if found is None else found

    def __getitem__(self, name: str) -> Function:
        found = self.entry(name)
        _ = found.form  # a name that is not there is an error now
        return found

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except CompileError as error:
            if error.code == "E0316":
                raise AttributeError(str(error)) from None
            raise

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.functions})

    def __repr__(self) -> str:
        return f"<intarsia program {self.source.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the source and compiles by itself, or finds the code in the cache."""
        return _restored, (self.source, self.options, self.cache.enabled)

    # ---------------------------------------------------------------- cache

    def key(self, *parts: object) -> str:
        """A digest of the source, of this compiler and of `parts`, which are plain data."""
        text = json.dumps([self._digest, *parts])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def kernel_store(self) -> KernelStore:
        """Where the code of single kernels is kept, for all programs."""
        return KernelStore(self.cache)

    @cached_property
    def _digest(self) -> list[str]:
        compiler = compiler_digest(self.cache) if self.cache.enabled else ""  # no key finds anything then
        return [compiler, self.source.name, self.source.text]

    def remember(self, kind: str, key: str, content: Mapping[str, Any] | bytes) -> None:
        """Keep something in the cache, valid as long as the imported files stay as they are."""
        imports = [[f.source.name, _text_digest(f.source.text)] for f in self.library.files[1:]]
        head = json.dumps(imports).encode()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.cache.put(kind, key, len(head).to_bytes(4, "little") + head + body)

    def recall(self, kind: str, key: str) -> bytes | None:
        """What `remember` kept, if it is there and no imported file has changed."""
        data = self.cache.get(kind, key)
        if data is None:
            return None
        length = int.from_bytes(data[:4], "little")
        imports = json.loads(data[4 : 4 + length])
        return data[4 + length :] if all(_file_digest(Path(p)) == d for p, d in imports) else None


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """The digest of a file's text as the parser reads it; empty where it cannot be read."""
    try:
        return _text_digest(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return ""


def _restored(source: Source, options: Options, use_cache: bool) -> Program:
    return Program(source, options, use_cache=use_cache)
