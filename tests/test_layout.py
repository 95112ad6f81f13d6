"""The repository's folders are the package's subpackages: packaging, imports and types stay in step with the tree."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # the only test that needs it says so
    tomllib = None

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dsl", "ir", "passes", "backends", "costmodel")
MAY_IMPORT: dict[str, set[str]] = {
    "ir": set(),
    "dsl": {"ir"},
    "passes": {"ir"},
    "backends": {"ir"},
    "costmodel": {"ir"},
}


@pytest.mark.skipif(tomllib is None, reason="reading pyproject.toml needs Python 3.11")
def test_every_package_is_listed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        "intarsia",
        *(
            "intarsia." + ".".join(p.parent.relative_to(ROOT).parts)
            for f in FOLDERS
            for p in (ROOT / f).rglob("__init__.py")
        ),
    }
    found |= {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "intarsia").rglob("__init__.py")}
    assert set(config["packages"]) == found | {"intarsia.error_pages"}  # data only: the pages of docs/errors


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_down(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                modules = [node.module, *(f"{node.module}.{a.name}" for a in node.names if node.module == "intarsia")]
            elif isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            for module in modules:
                parts = module.split(".")
                if parts[0] == "intarsia" and len(parts) > 1:
                    assert parts[1] in MAY_IMPORT[folder] | {folder}, f"{path}:{node.lineno} imports {module}"


def test_files_stay_short() -> None:
    """A file has one subject; 600 lines is the hard limit behind the aim of 500."""
    long = {}
    for folder in (*FOLDERS, "intarsia"):
        for path in (ROOT / folder).rglob("*.py"):
            if (lines := path.read_text().count("\n")) > 600:
                long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_types(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`mypy --strict` over what an installed package looks like, made of links."""
    if not request.config.getoption("--run-mypy"):
        pytest.skip("run with --run-mypy")
    farm = tmp_path / "intarsia"
    farm.mkdir()
    for item in [*(ROOT / "intarsia").iterdir(), *(ROOT / f for f in FOLDERS)]:
        if item.name != "__pycache__":
            (farm / item.name).symlink_to(item, target_is_directory=item.is_dir())
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "intarsia"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout.replace("intarsia/", "")
