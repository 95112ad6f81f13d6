"""Every choice about shardings is a remark that names its rule and the user's line, and is the same on every run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

FOLDER = Path(__file__).parent.parent / "examples" / "sharded"
SIZES = {
    "experts": "G=4 T=8 D=16 E=8 C=4 F=32",
    "heat": "N=16 M=16",
    "linear_attention": "S=16 D=4 E=4",
    "megatron": "B=4 S=8 D=16 H=4 K=4 F=32",
    "megatron_overlap": "B=2 S=16 D=16 H=8 K=4 F=32",
    "sequence": "H=4 S=16 K=8",
    "sequence_attention": "S=32 D=16 H=2 K=8",
    "zero3": "B=8 D=16 F=32",
}
FILES: dict[str, str] = {}
RULES = (
    r" \((basic|aggressive), .+\)$",
    r" \(fewest bytes\)$",
    r" \(preset \w+ over \w+\)$",
    r"as its type says: ",
    r"in each step of a loop: ",
    r"^blocks of |^sums go round |^what this needs is gathered ",
    r"go through the parts|goes through|rows",
    r"^halos are exchanged once for .+ us with one for each$",
)
"""How remarks say why."""


def words(name: str) -> list[str]:
    dims = [w for size in SIZES[name].split() for w in ("--dim", size)]
    return ["explain", str(FOLDER / f"{name}.ita"), *dims, "--about", "sharding"]


@pytest.mark.slow
@pytest.mark.parametrize("collectives", ["gather", "ring"])
@pytest.mark.parametrize("name", SIZES)
def test_each_choice_has_its_rule_and_line(name: str, collectives: str, ita: Run) -> None:
    status, shown, report = ita(*words(name), "--collectives", collectives)
    assert status == 0, report
    told = [line.strip() for line in shown.partition("\ndevices are numbered")[0].splitlines() if line.startswith("  ")]
    assert told
    for line in told:
        place, _, message = line.partition(": ")
        assert re.search(r"\.ita:\d+:\d+$", place), line
        assert any(re.search(rule, message) for rule in RULES), line
    sent = re.findall(r"^(all_gather|all_to_all|all_reduce|reduce_scatter|collective_permute) ", shown, re.MULTILINE)
    assert not sent or any("each device sends" in line or "go round" in line for line in told)


@pytest.mark.slow
def test_presets_and_idle_axes_are_told(ita: Run) -> None:
    path = f"{FOLDER / 'training.ita'}:step"
    dims = [w for size in ("B=4", "S=4", "D=8", "H=2", "K=4", "F=16") for w in ("--dim", size)]
    shown = ita("explain", path, *dims, "--about", "sharding", "--mesh", "data=2", "--preset", "zero1")[1]
    assert re.search(r"training\.ita:\d+:\d+: `m\.up` is f32\[.*@data.*\] \(preset zero1 over data\)", shown)
    shown = ita("explain", *words("heat")[1:], "--mesh", "rows=2,idle=2")[1]
    assert "no tensor is split over idle: the devices along it all do the same" in shown


@pytest.mark.slow
def test_the_same_for_every_seed_of_hashes() -> None:
    """What is printed of the program of a device does not depend on the order of sets."""
    for name in ("megatron", "zero3", "experts"):
        found = set()
        for seed in ("0", "1", "2"):
            command = [sys.executable, "-m", "intarsia", *words(name)]
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            command[3:4], command[-2:] = ["emit"], ["--to", "partitioned"]
            text += subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            found.add(text)
        assert len(found) == 1


@pytest.mark.slow
def test_how_tensors_lie(ita: Run) -> None:
    """Which devices have what, as text and as a picture; parts of a sum are not whole."""
    text = "mesh m(a=2, b=2)\nfn f(x: f32[N@a, M@b], w: f32[M]) -> (f32[M@(a, b), N], f32[N]{max: a}) {\n    "
    text += "return transpose(x + w), max(x, axis=1)\n}"
    shown = ita("explain", "-e", text, "--dim", "N=4", "--dim", "M=6", "--about", "sharding", "--plot", "lying.png")[1]
    assert "x: f32[4@a, 6@b], dimension 0 downwards, 1 across\n  | 0 | 1 |\n  | 2 | 3 |\n" in shown
    assert "result0: f32[6@(a, b), 4], dimension 0\n  | 0 | 1 | 2 | 3 |\n" in shown
    assert "result1: f32[4]{max: a}\n  | 0 1 2 3 |\n" in shown
    assert "whole on each device: w\n" in shown
    assert Path("lying.png").read_bytes().startswith(b"\x89PNG")
    status, _, report = ita("explain", "-e", "fn f() -> f32 { return 1.0 }", "--about", "sharding", "--plot", "x.png")
    assert status == 1 and "E1901" in report


@pytest.mark.parametrize(
    "parameters, result, wrong, hint, right",
    [
        ("x: f32[N@a], y: f32[N@b]", "f32[N]", "x + y", "v: f32[…@a] = y", "x + v"),
        ("x: f32[N@a, M], w: f32[M, N@a]", "f32[N, N]", "x @ w", "v: f32[…, …@_] = w", "x @ v"),
    ],
)
def test_hints_of_strict_sharding_work(
    parameters: str, result: str, wrong: str, hint: str, right: str, ita: Run
) -> None:
    def strict(body: str) -> tuple[int, str, str]:
        text = f"fn f({parameters}) -> {result} {{\n    {body}\n}}\n"
        sizes = ("--dim", "N=4", *(("--dim", "M=4") if "M" in parameters else ()))
        return ita("shard", "-e", text, *sizes, "--mesh", "a=2,b=2", "--sharding", "strict")

    status, _, report = strict(f"return {wrong}")
    assert status == 1 and "E1902" in report and "<command line>:2:12" in report and hint in report
    names = iter(("M", "N") if "M" in parameters else ("N",))
    followed = re.sub("…", lambda _: next(names), hint)
    status, _, report = strict(f"{followed}\n    return {right}")
    assert status == 0, report
