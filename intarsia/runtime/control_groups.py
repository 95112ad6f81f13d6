"""Limits that control groups (version 2 of Linux's) set for this process, as containers do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def limits(name: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[str]:
    """What the file `name`, such as `cpu.max`, says for the group of this process and each one around it."""
    try:
        own = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:  # not Linux
        return
    group = root / own.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            yield (folder / name).read_text().strip()
        except OSError:
            continue
