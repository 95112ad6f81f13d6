"""How much does `--verify-each=exec` find? Breaks the passes in one place at a time and counts.

    python tests/mutants/run.py [--count 200] [--seed 0] [--passes lower,canonicalize] [--results FILE] [--verbose]

Every mutant is a small change in the code of one pass (see mutate.py). The default pipeline runs with it over a corpus
(see corpus.py), every pass verified, until an example shows it; at most 32 that reach the changed statement are
taken, first those that have shown most so far. A mutant is *found* if verification says that a result is wrong,
*crashed* if a pass itself fails, *late* if one takes too long: all three are caught, and the pass that is blamed (by
verification, or by the last line of the passes in the traceback) should be the broken one. One that takes what is to be
refused, with the right result (a vector of lanes that meet, say), is *accepted*, and caught by the golden files that
say so. It is *equivalent* if what
it leaves is shown to mean the same (see equivalence.py): a rule no longer applies, say, or something else is fused. It
is *idle* if every pass gives the same IR as without the change, *unreached* if no example runs the statement, and
*survived* otherwise: what is wrong and not found would be among those.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from corpus import ROOT, corpus
from mutate import Mutant, mutants
from trial import PARTS, Prepared, outcome_of, prepare

from intarsia.deep_stack import with_deep_stack

CHOICES = ("report.py", "groups.py", "names.py", "uses.py", "checks.py", "hints.py", "shape.py")
"""Files that decide on what is fused, stored, called or reported, and change no result: not broken."""

COLUMNS = ("found", "crashed", "late", "accepted", "blamed", "equivalent", "survived", "idle", "unreached")
EXAMPLES = 32
"""How many examples a mutant is tried on that none of them shows."""

CAUGHT = ("found", "crashed", "late", "accepted")


Tried: TypeAlias = "tuple[Mutant, dict[str, Any]]"
"""A mutant and what became of it: the fields of its Outcome, or that no example reaches it."""


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


def tried(part: str, chosen: Sequence[Mutant], prepared: Sequence[Prepared], known: Results) -> Iterator[Tried]:
    """What became of each mutant, as far as it is not known."""
    shown: Counter[str] = Counter()
    for mutant in chosen:
        outcome = known.get(mutant)
        if outcome is None:
            reached = [p for p in prepared if not mutant.statement or not p.lines.isdisjoint(mutant.places)]
            reached = spread(reached, lambda p: (-shown[p.example.name], sum(len(s.text) for s in p.steps)))
            outcome = asdict(outcome_of(mutant, reached)) if reached else {"kind": "unreached", "pass_": ""}
            known.add(mutant, outcome)
        if outcome.get("example") and outcome["kind"] in CAUGHT:
            shown[outcome["example"]] += 1
        yield mutant, outcome


def spread(examples: Sequence[Prepared], order: Callable[[Prepared], Any]) -> list[Prepared]:
    """At most `EXAMPLES` of them in an order: the first ones, and of the others some from everywhere."""
    ordered = sorted(examples, key=order)
    first, rest = ordered[: EXAMPLES // 2], ordered[EXAMPLES // 2 :]
    step = -(-len(rest) // (EXAMPLES // 2)) or 1
    return [*first, *rest[::-step][::-1]]


class Results:
    """What is known of mutants, in a file if there is one: a line of JSON for each, so that a run can be resumed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
        self.known: dict[str, dict[str, Any]] = {row["mutant"]: row for row in map(json.loads, lines)}

    def get(self, mutant: Mutant) -> dict[str, Any] | None:
        return self.known.get(self._key(mutant))

    def add(self, mutant: Mutant, outcome: dict[str, Any]) -> None:
        row = {**{k: v for k, v in outcome.items() if k != "changes"}, "mutant": self._key(mutant)}
        self.known[row["mutant"]] = row
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @staticmethod
    def _key(mutant: Mutant) -> str:
        return f"{mutant} #{mutant.number} {hashlib.sha256(mutant.source.encode()).hexdigest()[:12]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", default=",".join(PARTS))
    parser.add_argument("--results", type=Path, help="keep what is found in this file, and go on from it")
    parser.add_argument("--verbose", action="store_true", help="show every mutant")
    options = parser.parse_args()
    parts = options.passes.split(",")
    start = time.perf_counter()
    prepared = prepare(corpus())
    print(f"{len(prepared)} examples in {time.perf_counter() - start:.0f} s", flush=True)
    counts: dict[str, Counter[str]] = {part: Counter() for part in parts}
    listed: list[Tried] = []
    known = Results(options.results)
    for part, chosen in sample(parts, options.count, options.seed).items():
        for mutant, outcome in tried(part, chosen, prepared, known):
            kind = outcome["kind"]
            blamed = kind in CAUGHT and outcome["pass_"] == part
            counts[part].update([kind, *(["blamed"] if blamed else [])])
            if kind not in (*CAUGHT, "equivalent") or not blamed:
                listed.append((mutant, outcome))
            if options.verbose:
                detail = (
                    f" in {outcome['pass_']}: {outcome['detail']} ({outcome['example']})"
                    if "example" in outcome
                    else ""
                )
                print(f"{kind:10} {mutant}{detail}", flush=True)
    _print_table(counts)
    print(f"in {time.perf_counter() - start:.0f} s")
    for mutant, outcome in listed:
        print(f"\n{outcome['kind']} in {outcome['pass_'] or 'no pass'}: {mutant}\n    {mutant.text}")
        print(f"{outcome.get('example', '')}: {outcome.get('detail', '')}")
    return 0


def _print_table(counts: dict[str, Counter[str]]) -> None:
    print(f"{'pass':16}{'mutants':>10}" + "".join(f"{c:>11}" for c in COLUMNS))
    total = sum(counts.values(), Counter[str]())
    for part, row in {**counts, "all": total}.items():
        print(f"{part:16}{row.total() - row['blamed']:10}" + "".join(f"{row[c]:11}" for c in COLUMNS))


if __name__ == "__main__":
    sys.exit(with_deep_stack(main))
