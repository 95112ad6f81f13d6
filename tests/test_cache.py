"""The cache on disk: what is put is found, nothing else is, and no trouble with the disk stops a compilation."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import time
import warnings
from pathlib import Path

import pytest

import intarsia
from intarsia import cache as cache_module
from intarsia.cache import Cache, cache_directory, compiler_digest


def files(cache: Cache) -> list[Path]:
    return sorted(p for p in cache.directory.rglob("*") if p.is_file())


def test_what_is_put_is_found_by_another_process(tmp_path: Path) -> None:
    Cache(tmp_path).put("kernel", "a key\nof any text", b"\0contents")
    assert Cache(tmp_path).get("kernel", "a key\nof any text") == b"\0contents"
    assert Cache(tmp_path).get("kernel", "another") is None
    assert Cache(tmp_path).get("program", "a key\nof any text") is None
    Cache(tmp_path).put("kernel", "a key\nof any text", b"")
    assert Cache(tmp_path).get("kernel", "a key\nof any text") == b""


def test_directory_is_the_users_choice_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_directory() == tmp_path / "chosen"
    Cache().put("kernel", "k", b"x")
    assert stat.S_IMODE((tmp_path / "chosen").stat().st_mode) == 0o700
    monkeypatch.delenv("INTARSIA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "intarsia" in str(cache_directory())


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "append", "swap", "header"])
def test_damaged_entries_are_deleted_and_made_anew(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    cache.put("kernel", "k", b"0123456789" * 100)
    (path,) = files(cache)
    data = path.read_bytes()
    if damage == "swap":  # the entry of another key, whole in itself
        cache.put("kernel", "other", b"abc")
        (other,) = set(files(cache)) - {path}
        shutil.copy(other, path)
    else:
        path.write_bytes(
            {
                "truncate": data[:-1],
                "empty": b"",
                "flip": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
                "append": data + b"x",
                "header": b"X" + data[1:],
            }[damage]
        )
    assert cache.get("kernel", "k") is None
    assert not path.exists()
    cache.put("kernel", "k", b"new")
    assert cache.get("kernel", "k") == b"new"


def test_size_is_capped_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=10_000)
    for i in range(8):
        cache.put("kernel", str(i), bytes(1000))
        os.utime(cache._path("kernel", str(i)), (i, i))
    assert cache.get("kernel", "0") is not None  # used now, so 1 and 2 are the oldest
    for i in range(8, 11):
        cache.put("kernel", str(i), bytes(1000))
    assert sum(f.stat().st_size for f in files(cache)) <= 10_000
    kept = {i for i in range(11) if Cache(tmp_path).get("kernel", str(i)) is not None}
    assert 0 in kept and {8, 9, 10} <= kept and 1 not in kept


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000)
    cache.put("kernel", "small", b"x")
    cache.put("kernel", "large", bytes(2000))
    assert cache.get("kernel", "large") is None
    assert cache.get("kernel", "small") == b"x"


def test_info_and_clear(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=5000)
    cache.put("kernel", "a", b"x")
    cache.put("kernel", "b", b"x")
    cache.put("program", "a", b"x")
    (tmp_path / "kernel" / "notes.txt").write_text("the user's own")
    info = cache.info()
    assert info["directory"] == str(tmp_path) and info["limit"] == 5000
    assert (info["entries"], info["kernel"], info["program"]) == (3, 2, 1)
    assert info["bytes"] == sum(f.stat().st_size for f in files(cache) if f.suffix == ".entry")
    assert cache.clear() == 3
    assert [f.name for f in files(cache)] == ["notes.txt"]
    assert cache.get("kernel", "a") is None
    assert Cache(tmp_path / "missing").info()["entries"] == 0
    assert Cache(tmp_path / "missing").clear() == 0


def test_a_disabled_cache_touches_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, enabled=False)
    cache.put("kernel", "k", b"x")
    assert cache.get("kernel", "k") is None
    assert files(cache) == []


def test_a_directory_that_cannot_be_written_gives_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    cache = Cache(tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="cannot write the cache"):
        cache.put("kernel", "k", b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("kernel", "k", b"x")
        assert cache.get("kernel", "k") is None


def test_a_full_disk_leaves_no_unfinished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.put("kernel", "before", b"x")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        cache.put("kernel", "k", b"x")
    assert len(files(cache)) == 1
    assert cache.get("kernel", "before") == b"x"  # what is there is still read


def test_unfinished_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("kernel", "k", b"x")
    old, young = tmp_path / "kernel" / "a.unfinished", tmp_path / "kernel" / "b.unfinished"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.info()
    assert not old.exists() and young.exists()


def _writer(directory: Path, number: int) -> int:
    """Put and get entries that all processes share; returns how many came back wrong."""
    cache, wrong = Cache(directory, max_bytes=200_000), 0
    for i in range(60):
        key = str(i % 20)
        cache.put("kernel", key, key.encode() * 3000)
        wrong += cache.get("kernel", key) not in (None, key.encode() * 3000)
    return wrong


def test_processes_may_share_a_cache(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_writer, [(tmp_path, n) for n in range(3)]) == [0, 0, 0]


# ----- the compiler's own sources


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in a checkout, in place of the real one."""
    root = tmp_path / "repository"
    for name, text in {
        "intarsia/__init__.py": "",
        "intarsia/runtime/threads.py": "threads = 1",
        "dsl/grammar.lark": "start: x",
        "dsl/prelude.ita": "fn f",
        "ir/ops/index.py": "class Gather: ...",
        "tests/test_ir.py": "not part of the compiler",
        "ir/__pycache__/index.py": "not a source",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1000, 1000))
    monkeypatch.setattr(intarsia, "__path__", [str(root / "intarsia"), str(root)])
    return root


def test_digest_changes_with_every_source_file(package: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    digests = [compiler_digest(cache)]
    for name in ("intarsia/runtime/threads.py", "dsl/grammar.lark", "dsl/prelude.ita", "ir/ops/index.py"):
        (package / name).write_text((package / name).read_text() + "#")
        digests.append(compiler_digest(cache))
    (package / "ir/new.py").write_text("")
    digests.append(compiler_digest(cache))
    assert len(set(digests)) == len(digests)


def test_digest_ignores_dates_and_what_is_no_source(package: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    before = compiler_digest(cache)
    (package / "tests/test_ir.py").write_text("changed")
    (package / "ir/__pycache__/index.py").write_text("changed")
    os.utime(package / "dsl/prelude.ita", (2000, 2000))
    assert compiler_digest(cache) == before
    assert compiler_digest(Cache(enabled=False)) == before


def test_digest_is_not_read_from_the_listing_while_files_are_young(package: Path, tmp_path: Path) -> None:
    cache, path = Cache(tmp_path / "cache"), package / "dsl/prelude.ita"
    now = time.time_ns()
    path.write_text("fn g")
    os.utime(path, ns=(now, now))
    before = compiler_digest(cache)
    path.write_text("fn h")
    os.utime(path, ns=(now, now))  # as if within one tick of the clock
    assert compiler_digest(cache) != before


def test_digest_of_the_real_package_is_quick_when_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)  # no file is young
    cache = Cache(tmp_path)
    first = compiler_digest(cache)
    monkeypatch.setattr(cache_module.Path, "read_bytes", _only_entries(Path.read_bytes))
    times = []
    for _ in range(5):
        start = time.process_time()
        assert compiler_digest(cache) == first
        times.append(time.process_time() - start)
    assert min(times) < 0.02


def _only_entries(read_bytes: object) -> object:
    """`Path.read_bytes` that refuses source files: they must not be read again."""

    def read(path: Path) -> bytes:
        assert path.suffix == ".entry", path
        return read_bytes(path)  # type: ignore[operator,no-any-return]

    return read
