"""Builds and runs peak.c and stream.c a few times; keeps the best of each in limits.json."""

import json
import re
import subprocess
import time
from pathlib import Path

HW = Path(__file__).resolve().parent
FLAGS = ["gcc", "-O3", "-march=native", "-pthread"]
limits = {}


def keep(key, value):
    limits[key] = max(value, limits.get(key, 0))


for name, extra in (("peak", []), ("probe", []), ("stream", ["-fno-tree-loop-distribute-patterns"])):
    subprocess.run(FLAGS + extra + [HW / f"{name}.c", "-o", HW / name], check=True)
for _ in range(4):
    for t in "12":
        for line in subprocess.run([HW / "peak", t], capture_output=True, text=True).stdout.splitlines():
            m = re.match(r"(\S+) threads=(\d) gops=([\d.]+)", line)
            keep(f"{m[1]}.{m[2]}", float(m[3]))
        for huge in "10":
            for line in subprocess.run(
                [HW / "stream", t, "512", huge], capture_output=True, text=True
            ).stdout.splitlines():
                m = re.match(r"(\S+) threads=(\d) huge=(\d) best_GBs=([\d.]+)", line)
                keep(f"{m[1]}{'' if huge == '1' else '.4k'}.{m[2]}", float(m[4]))
    time.sleep(2)
(HW / "limits.json").write_text(json.dumps(limits, indent=1))
for k, v in limits.items():
    print(f"{k:22} {v:8.1f}")
