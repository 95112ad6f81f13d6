"""How much does `--verify-each=exec` find? Breaks the passes in one place at a time and counts.

    python tests/mutants/run.py [--count 200] [--seed 0] [--passes lower,canonicalize] [--verbose]

Every mutant is a small change in the code of one pass (see mutate.py). The default pipeline runs with it over a corpus
(see corpus.py), every pass verified, until an example shows it; examples that do not reach the changed statement are
left out, and those that have shown most so far come first. A mutant is *found* if verification says that a result is
wrong; the pass that it blames should be the broken one. It *crashed* if a pass itself fails, is *late* if one takes too
long, *idle* if every pass gives the same IR as without the change, *unreached* if no example runs the statement, and
*survives* otherwise. Survivors are listed, with the first difference: they give another IR with the same results,
because a rule no longer applies, say, or something else is fused. What is wrong and not found would be among them.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from corpus import ROOT, corpus
from mutate import Mutant, mutants
from trial import Outcome, Prepared, outcome_of, prepare

from intarsia.deep_stack import with_deep_stack

PARTS = {
    "specialize": ("specialize.py",),
    "canonicalize": ("canonicalize",),
    "cse": ("cse.py",),
    "dce": ("dce.py",),
    "legalize-dtype": ("legalize_dtype",),
    "contract": ("contract.py",),
    "fuse": ("fuse",),
    "skip-rounding": ("skip_rounding.py",),
    "lower": ("lower",),
    "schedule": ("schedule",),
}
"""The code of each pass, below passes/."""

CHOICES = ("report.py", "groups.py", "names.py", "uses.py", "checks.py", "hints.py", "shape.py")
"""Files that decide on what is fused, stored, called or reported, and change no result: not broken."""

COLUMNS = ("found", "blamed", "crashed", "late", "survived", "idle", "unreached")


def files(part: str) -> Iterator[Path]:
    for name in PARTS[part]:
        path = ROOT / "passes" / name
        yield from [path] if path.is_file() else sorted(p for p in path.rglob("*.py") if p.name not in CHOICES)


def sample(parts: Sequence[str], count: int, seed: int) -> dict[str, list[Mutant]]:
    """About `count` mutants, at random within each pass; a pass has a share by the root of the size of its code."""
    generator = random.Random(seed)
    every = {
        part: [m for path in files(part) for m in mutants(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
        for part in parts
    }
    weights = {part: len(found) ** 0.5 for part, found in every.items()}
    chosen: dict[str, list[Mutant]] = {}
    for part, found in every.items():
        share = min(round(count * weights[part] / sum(weights.values())), len(found))
        chosen[part] = sorted(generator.sample(found, share), key=lambda m: (m.path, m.number))
    return chosen


def tried(part: str, chosen: Sequence[Mutant], prepared: Sequence[Prepared]) -> Iterator[tuple[Mutant, Outcome | None]]:
    """What became of each mutant; None if no example reaches it."""
    shown: Counter[str] = Counter()
    for mutant in chosen:
        place = (mutant.path, mutant.statement)
        reached = [p for p in prepared if not mutant.statement or place in p.lines]
        reached.sort(key=lambda p: (-shown[p.example.name], sum(len(s.text) for s in p.steps)))
        outcome = outcome_of(mutant, reached) if reached else None
        if outcome is not None and outcome.example and outcome.kind != "survived":
            shown[outcome.example] += 1
        yield mutant, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", default=",".join(PARTS))
    parser.add_argument("--verbose", action="store_true", help="show every mutant")
    options = parser.parse_args()
    parts = options.passes.split(",")
    start = time.perf_counter()
    prepared = prepare(corpus())
    print(f"{len(prepared)} examples in {time.perf_counter() - start:.0f} s", flush=True)
    counts: dict[str, Counter[str]] = {part: Counter() for part in parts}
    listed: list[tuple[Mutant, Outcome]] = []
    for part, chosen in sample(parts, options.count, options.seed).items():
        for mutant, outcome in tried(part, chosen, prepared):
            counts[part][outcome.kind if outcome else "unreached"] += 1
            blamed = outcome is not None and outcome.kind == "found" and outcome.pass_ == part
            counts[part]["blamed"] += blamed
            if outcome and (outcome.kind == "survived" or (outcome.kind == "found" and not blamed)):
                listed.append((mutant, outcome))
            if options.verbose:
                detail = f" in {outcome.pass_}: {outcome.detail} ({outcome.example})" if outcome else ""
                print(f"{outcome.kind if outcome else 'unreached':9} {mutant}{detail}", flush=True)
    _print_table(counts, sum(map(len, sample(parts, options.count, options.seed).values())))
    print(f"in {time.perf_counter() - start:.0f} s")
    for mutant, outcome in listed:
        print(f"\n{outcome.kind} in {outcome.pass_}: {mutant}\n    {mutant.text}\n{outcome.example}: {outcome.detail}")
    return 0


def _print_table(counts: dict[str, Counter[str]], count: int) -> None:
    print(f"{'pass':16}{'mutants':>10}" + "".join(f"{c:>10}" for c in COLUMNS))
    total = sum(counts.values(), Counter[str]())
    for part, row in {**counts, "all": total}.items():
        print(f"{part:16}{row.total() - row['blamed']:10}" + "".join(f"{row[c]:10}" for c in COLUMNS))


if __name__ == "__main__":
    sys.exit(with_deep_stack(main))
