"""The cache on disk: compiled programs and kernels, found again by the next process.

An entry is one file, named by a digest of its kind and key. Its header holds the length and a digest of kind, key and
contents, so that a truncated, damaged or misplaced file is noticed, deleted and made anew. Files are written under
another name and renamed, so concurrent processes see whole entries only. The size is capped; what was used least
recently, by the files' modification times, goes first. A cache that cannot be written (a full disk, a read-only home)
is read as far as possible and otherwise does without, after one warning.

Contents are bytes that their writer defines; nothing is ever unpickled. The folder is made for its owner alone, since
machine code is run from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import platformdirs

import intarsia

DEFAULT_LIMIT = 1 << 30
_MAGIC = b"intarsia cache 1\n"
_HEADER = struct.Struct(f"<{len(_MAGIC)}sQ32s")
_STALE_SECONDS = 3600.0  # an unfinished file this old was left by a process that died

SOURCE_SUFFIXES = (".py", ".json", ".lark", ".ita")
SOURCE_FOLDERS = ("backends", "costmodel", "dsl", "ir", "passes")


def cache_directory() -> Path:
    """INTARSIA_CACHE_DIR where it is set, else the platform's folder for caches of this user."""
    chosen = os.environ.get("INTARSIA_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("intarsia"))


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: float  # seconds since the epoch


class Cache:
    """Bytes under (kind, key), on disk. `enabled=False` is a cache that never finds and never keeps anything.

    kind: a word for the sort of contents, such as `program` or `kernel`, which `info` counts apart. key: any text that
    says all that the contents depend on, `compiler_digest` included.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int = DEFAULT_LIMIT, *, enabled: bool = True) -> None:
        self.directory = cache_directory() if directory is None else directory
        self.max_bytes = max_bytes
        self.enabled = enabled
        self._readable = enabled
        self._writable = enabled
        self._size: int | None = None  # estimate, from the first write on; other processes write too

    def get(self, kind: str, key: str) -> bytes | None:
        """The contents that were put, or None. Marks them as used."""
        if not self._readable:
            return None
        path = self._path(kind, key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        contents = data[_HEADER.size :]
        if data[: _HEADER.size] != _header(kind, key, contents):
            _remove(path)
            return None
        if self._writable:
            with contextlib.suppress(OSError):  # dropped by another process meanwhile
                os.utime(path)
        return contents

    def put(self, kind: str, key: str, contents: bytes) -> None:
        """Keep `contents`, unless they are larger than the whole cache may be or the cache cannot be written."""
        size = _HEADER.size + len(contents)
        if not self._writable or size > self.max_bytes:
            return
        path = self._path(kind, key)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, _header(kind, key, contents) + contents)
        except OSError as error:
            self._writable = False
            reason = error.strerror or str(error)
            warnings.warn(f"cannot write the cache {self.directory}: {reason}", RuntimeWarning, stacklevel=2)
            return
        self._size = sum(e.size for e in self._entries()) if self._size is None else self._size + size
        if self._size > self.max_bytes:
            self._size = self._shrink()

    def info(self) -> dict[str, str | int]:
        """What there is: folder, limit and size in bytes, and the number of entries of each kind."""
        entries = list(self._entries())
        kinds = sorted({e.path.parent.name for e in entries})
        return {
            "directory": str(self.directory),
            "limit": self.max_bytes,
            "bytes": sum(e.size for e in entries),
            "entries": len(entries),
            **{kind: sum(e.path.parent.name == kind for e in entries) for kind in kinds},
        }

    def clear(self) -> int:
        """Delete every entry, and no file that is not one; returns their number."""
        entries = list(self._entries())
        for entry in entries:
            _remove(entry.path)
        self._size = None
        return len(entries)

    def _path(self, kind: str, key: str) -> Path:
        assert kind.isidentifier(), kind
        return self.directory / kind / f"{hashlib.blake2b(key.encode(), digest_size=20).hexdigest()}.entry"

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, unfinished = tempfile.mkstemp(suffix=".unfinished", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(unfinished, path)
        except OSError:
            _remove(Path(unfinished))
            raise

    def _entries(self) -> Iterator[_Entry]:
        """Every entry, in no order. Deletes unfinished files that nobody will finish."""
        now = time.time()
        for folder in _listing(self.directory):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in _listing(Path(folder.path)):
                finished = file.name.endswith(".entry")
                if not finished and not file.name.endswith(".unfinished"):
                    continue
                try:
                    found = file.stat(follow_symlinks=False)
                except OSError:  # another process dropped it
                    continue
                if not stat.S_ISREG(found.st_mode):
                    continue
                if finished:
                    yield _Entry(Path(file.path), found.st_size, found.st_mtime)
                elif now - found.st_mtime > _STALE_SECONDS:
                    _remove(Path(file.path))

    def _shrink(self) -> int:
        """Delete what was used least recently until a tenth of the limit is free again; returns the size that is left.

        The slack keeps a full cache from being listed on every write.
        """
        entries = sorted(self._entries(), key=lambda e: (e.used, e.path))
        size = sum(e.size for e in entries)
        for entry in entries:
            if size <= self.max_bytes * 0.9:
                break
            _remove(entry.path)
            size -= entry.size
        return size


def compiler_digest(cache: Cache) -> str:
    """A digest of the compiler's own source files, for the keys of what it makes.

    The files' contents count, not their dates, so a new checkout of the same version finds what an older one kept.
    Reading them all is saved as long as no path, size or modification time changes; that answer is kept in `cache`.
    """
    files = sorted(_source_files())
    listing = "\n".join(f"{name} {size} {modified}" for name, _, size, modified in files)
    # A file changed twice within the clock's resolution keeps its time, so very young files are always read.
    settled = all(time.time_ns() - modified > 2_000_000_000 for _, _, _, modified in files)
    if settled and (known := cache.get("sources", listing)) is not None:
        return known.decode()
    digest = hashlib.blake2b(digest_size=20)
    for name, path, _, _ in files:
        contents = Path(path).read_bytes()
        digest.update(f"{name} {len(contents)}\n".encode())
        digest.update(contents)
    if settled:
        cache.put("sources", listing, digest.hexdigest().encode())
    return digest.hexdigest()


def _source_files() -> Iterator[tuple[str, str, int, int]]:
    """Name within the package, path, size and modification time (ns) of each source file.

    A checkout keeps some of the package's folders beside it, where its `__path__` has a second entry.
    """
    package, *beside = intarsia.__path__
    roots = [("", package), *((name, os.path.join(root, name)) for root in beside for name in SOURCE_FOLDERS)]
    while roots:
        prefix, folder = roots.pop()
        for item in _listing(Path(folder)):
            name = f"{prefix}/{item.name}"
            if item.is_dir():
                if item.name != "__pycache__":
                    roots.append((name, item.path))
            elif item.name.endswith(SOURCE_SUFFIXES):
                found = item.stat()
                yield name.lstrip("/"), item.path, found.st_size, found.st_mtime_ns


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError:  # not there, or not ours to read
        return []


def _header(kind: str, key: str, contents: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for part in (kind.encode(), key.encode(), contents):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return _HEADER.pack(_MAGIC, len(contents), digest.digest())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or not ours to delete: then it stays unused
        path.unlink()


class KernelStore:
    """The second level of the cache: the object code of single kernels, by a key that the back end makes."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def get(self, key: str) -> bytes | None:
        """The code of a kernel, if this compiler has made it before."""
        return self._cache.get("kernel", self._full(key)) if self._cache.enabled else None

    def put(self, key: str, code: bytes) -> None:
        """Keep the code of a kernel."""
        if self._cache.enabled:
            self._cache.put("kernel", self._full(key), code)

    @cached_property
    def _compiler(self) -> str:
        return compiler_digest(self._cache)

    def _full(self, key: str) -> str:
        return hashlib.sha256(f"{self._compiler} {key}".encode()).hexdigest()
