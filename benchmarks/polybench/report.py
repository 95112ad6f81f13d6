"""Writes POLYBENCH.md from results/polybench-LABEL.json: `python report.py LABEL`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent
LEAST = 0.9
"""Against gcc, below which a kernel is named."""

HEAD = """# PolyBench

The thirty kernels of PolyBench 4.2 in double precision (nussinov in 32-bit integers), at its size {dataset}: milliseconds,
and how many times faster ours is. gcc is `gcc 12 -O3 -march=native -ffast-math`, on one thread in both tables; polly is
`clang 16 -O3 -march=native -ffast-math -mllvm -polly`, with `-polly-parallel` on two threads. Both compile the same
straightforward C (polybench/c) with sizes known at compile time; ours is examples/polybench, compiled for these sizes.
All versions of a row were compared and took turns in one process; results are equal to 1e-9 of the largest element.

- Ours makes new results and leaves its arguments alone; C changes them in place. Copies are in our time.
- gramschmidt has rows and columns exchanged, so that its columns can be independent.
- Ours may be another arrangement of the same formulas: cholesky and lu by columns and rows in turn, syr2k by one product
  and its transpose, nussinov by halves that meet at `k`, floyd_warshall by blocks of stops. Tiles, vectors and threads
  are the compiler's in all of them.

Machine: 2 vCPUs of an AMD EPYC (Zen 5, AVX-512), 1 MiB L2 a core, 32 MiB L3, a shared host that was busy with other work
while this was measured: read the ratios within a row, not the times.
"""


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logarithms = [math.log(v) for v in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def table(rows: list[dict[str, Any]], threads: int) -> list[str]:
    """The lines of the table of one number of threads, with its means."""
    polly = "polly" if threads == 1 else "polly-parallel"
    lines = [f"## {threads} thread{'s' * (threads > 1)}", ""]
    lines += ["| kernel | ours | gcc | polly | over gcc | over polly |", "|---|--:|--:|--:|--:|--:|"]
    ratios: dict[str, list[float]] = {"gcc": [], polly: []}
    slow: list[str] = []
    for row in rows:
        if row["threads"] != threads:
            continue
        seconds = row.get("seconds", {})
        cells = [row["kernel"]]
        cells += [f"{seconds[name] * 1e3:.4g}" if name in seconds else "–" for name in ("intarsia", "gcc", polly)]
        for peer in ratios:
            ratio = seconds[peer] / seconds["intarsia"] if peer in seconds else math.nan
            cells.append("–" if math.isnan(ratio) else f"{ratio:.2f}")
            if not math.isnan(ratio):
                ratios[peer].append(ratio)
            if peer == "gcc" and ratio < LEAST:
                slow.append(f"{row['kernel']} ({ratio:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    means = {peer: geometric_mean(found) for peer, found in ratios.items()}
    lines += [f"| **geometric mean** | | | | **{means['gcc']:.2f}** | **{means[polly]:.2f}** |", ""]
    lines += [f"Kernels: {len(ratios['gcc'])}. Below {LEAST} of gcc: {', '.join(slow) or 'none'}.", ""]
    return lines


def main() -> None:
    """Write the page of one label."""
    content = json.loads((BENCHMARKS / "results" / f"polybench-{sys.argv[1]}.json").read_text())
    lines = [HEAD.format(dataset=content["dataset"])]
    for threads in sorted({row["threads"] for row in content["rows"]}):
        lines += table(content["rows"], threads)
    notes = BENCHMARKS / "polybench" / "NOTES.md"
    if notes.exists():
        lines.append(notes.read_text())
    (BENCHMARKS / "POLYBENCH.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
