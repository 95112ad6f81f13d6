"""Compiled programs in the cache: what is found there, and what is made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_program import DOUBLE, code_of, counting, data

import intarsia


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty at first."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(folder))
    return folder


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(intarsia.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, **environment},
    )


CALL = f"""
import numpy as np, intarsia
assert intarsia.jit({DOUBLE!r})(np.arange(4, dtype=np.float32)).tolist() == [0, 2, 4, 6]
"""


def test_what_is_in_the_cache_runs_without_the_compiler(cache_folder: Path) -> None:
    script = CALL + (
        "import sys\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('lark', 'rich', 'sklearn', 'networkx', 'triton')"
        " or m.startswith(('intarsia.dsl', 'intarsia.passes', 'intarsia.ir.graph', 'intarsia.driver'))"
        " or m in ('intarsia.backends.cpu.compile', 'intarsia.backends.cpu.emit')])"
    )
    first = run_python(script)
    assert first.returncode == 0 and "intarsia.driver" in first.stdout, first.stderr
    second = run_python(script)
    assert (second.returncode, second.stdout) == (0, "[]\n"), second.stderr


def test_help_loads_little() -> None:
    script = "import sys\nfrom intarsia.cli import main\nmain(['--help'])\nprint(sorted(sys.modules), file=sys.stderr)"
    found = run_python(script)
    assert "'numpy'" not in found.stderr and "'llvmlite'" not in found.stderr and "'click'" in found.stderr


def entries(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.entry"))


def test_damaged_entries_are_made_anew(cache_folder: Path) -> None:
    x = data(5)
    intarsia.jit(DOUBLE)(x)
    for damage in (b"", b"nonsense", None):
        for kind in ("program", "signature"):
            for path in entries(cache_folder, kind):
                content = path.read_bytes()
                path.write_bytes(content[:-7] if damage is None else damage)
        np.testing.assert_array_equal(intarsia.jit(DOUBLE)(x), 2 * x)
        assert len(entries(cache_folder, "program")) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(blocked))
    with pytest.warns(RuntimeWarning, match="cannot write the cache"):
        np.testing.assert_array_equal(intarsia.jit(DOUBLE)(data(5)), 2 * data(5))


def test_no_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, and no key is made, for which all of the compiler would be read."""
    monkeypatch.setattr("intarsia.program.compiler_digest", None)
    monkeypatch.setattr("intarsia.cache.compiler_digest", None)
    intarsia.jit(DOUBLE, use_cache=False)(data(5))
    assert not list(cache_folder.rglob("*.entry"))


def test_a_changed_import_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "lib.ita").write_text("fn g(x: f32[N]) -> f32[N] { return x + 1.0 }\n")
    (tmp_path / "main.ita").write_text('import "lib.ita"\nfn main(x: f32[N]) -> f32[N] { return g(x) }\n')
    x = data(5)
    np.testing.assert_array_equal(intarsia.load(tmp_path / "main.ita").main(x), x + 1)
    np.testing.assert_array_equal(intarsia.load(tmp_path / "main.ita").main(x), x + 1)
    (tmp_path / "lib.ita").write_text("fn g(x: f32[N]) -> f32[N] { return x + 2.0 }\n")
    np.testing.assert_array_equal(intarsia.load(tmp_path / "main.ita").main(x), x + 2)
    (tmp_path / "lib.ita").unlink()
    assert code_of(lambda: intarsia.load(tmp_path / "main.ita").main(x)) == "E0319"


def test_another_compiler_makes_everything_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = counting(monkeypatch, "compilation_of_types")
    x = data(5)
    for digest, wanted in (("one", 1), ("one", 1), ("two", 2)):
        monkeypatch.setattr("intarsia.program.compiler_digest", lambda cache, digest=digest: digest)
        intarsia.jit(DOUBLE)(x)
        assert len(compilations) == wanted


def test_types_sizes_and_options_are_told_apart() -> None:
    f = "fn f[T: float](x: T[N]) -> T[N] { return x * 2.0 }"
    for options in (None, intarsia.Options(passes="lower"), intarsia.Options(dynamic=("N",))):
        for dtype in (np.float32, np.float64, np.float16):
            for n in (1, 5):
                x = np.ones(n, dtype)
                result = intarsia.jit(f, options)(x)
                assert result.dtype == dtype and result.shape == (n,) and (result == 2).all()


@pytest.mark.slow
def test_processes_at_once_on_an_empty_cache(cache_folder: Path) -> None:
    root = str(Path(intarsia.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    processes = [
        subprocess.Popen([sys.executable, "-c", CALL], stderr=subprocess.PIPE, env=environment) for _ in range(4)
    ]
    assert [(p.wait(), p.communicate()[1]) for p in processes] == [(0, b"")] * 4
    assert len(entries(cache_folder, "program")) == 1
