"""Golden files of schedule steps: `tests/golden/schedule-<step>/<case>.ir` shows kernels before and after.

Each case begins with `# schedule: STEPS`, perhaps `# sizes: N=21`, then a kernel; cases are separated by `# -----`.
What is expected is the kernel after the steps, or the error. Before and after are run on the same data.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from schedule_samples import assert_same_meaning

from intarsia.ir.errors import ScheduleError, Source
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.schedule import STEPS, Schedule
from intarsia.passes.schedule.apply import apply

FOLDER = Path(__file__).parent / "golden"
SEPARATOR = "# -----\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("schedule-*/*.ir")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden_step(path: Path, golden: Any) -> None:
    cases = golden.input(path).split(SEPARATOR)
    golden.check(path, SEPARATOR.join(scheduled(path.name, case) for case in cases))


def scheduled(name: str, case: str) -> str:
    (steps,) = re.findall(r"^# schedule: (.*)$", case, re.MULTILINE)
    sizes = {
        n: int(v) for n, v in re.findall(r"(\w+)=(\d+)", "".join(re.findall(r"^# sizes: (.*)$", case, re.MULTILINE)))
    }
    kernel = read_kernel(Source(name, case))
    verify_kernel(kernel)
    try:
        result = apply(kernel, Schedule.parse(steps))
    except ScheduleError as error:
        return f"# refused: {error}\n"
    verify_kernel(result)
    assert_same_meaning(kernel, result, sizes)
    assert read_kernel(Source(name, print_kernel(result))) == result
    return print_kernel(result) + "\n"


def test_every_step_has_golden_files() -> None:
    found = {p.parent.name.removeprefix("schedule-") for p in FOLDER.glob("schedule-*/*.ir")}
    assert found == set(STEPS)
