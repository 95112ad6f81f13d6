"""How much does `--verify-each=exec` find? Breaks the passes in one place at a time and counts.

    python tests/mutants/run.py [--count 150] [--seed 0] [--passes lower,canonicalize] [--verbose]

Every mutant is a small change in the code of one pass (see mutate.py). It runs in a process of its own over a corpus:
programs of the language, the inputs of golden files, random graphs and expressions, as they are before that pass. A
mutant is *found* if verification after the pass says that the result is wrong, *crashed* if the pass itself fails,
*late* if it takes too long, *idle* if the pass gives the same IR as without the change, and *survives* otherwise.
Survivors are listed: they give another IR with the same results, because a rule no longer applies, say, or something
else is fused. What is wrong and not found would be among them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))

from expressions import Expressions, module_of
from mutate import Mutant, mutants

from intarsia.dsl.library import load
from intarsia.ir.dtypes import BOOL, F32, I32
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.random_graphs import random_module
from intarsia.ir.text import print_module, read_module

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60
"""What one mutant may take."""

TARGET = "cpu:x86-avx2"

PARTS = {
    "specialize": ("specialize.py",),
    "canonicalize": ("canonicalize",),
    "dce": ("dce.py",),
    "legalize-dtype": ("legalize_dtype",),
    "fuse": ("fuse",),
    "skip-rounding": ("skip_rounding.py",),
    "lower": ("lower",),
    "schedule": ("schedule",),
}
"""The code of each pass, below passes/."""

CHOICES = ("report.py", "groups.py", "names.py", "uses.py", "checks.py", "hints.py", "shape.py")
"""Files that decide on what is fused, stored, called or reported, and change no result: not broken."""

PIPELINE = "specialize,canonicalize,cse,dce,legalize-dtype,fuse,skip-rounding,lower,schedule"
"""The order of the passes; each is tried on what those before it leave."""

PROGRAMS = (
    "fn f(x: f32[N, M], g: f32[M], b: f32[M]) -> f32[N, M] { return layer_norm(x, g, b) }",
    "fn f(x: f32[N, M]) -> (f32[N, M], f32[N]) { return softmax(x), logsumexp(x, axis=1) }",
    "fn f(x: f32[N, K], w: f32[K, M], b: f32[M]) -> f32[N, M] { return gelu(x @ w + b) }",
    "fn f(x: bf16[N, M], g: bf16[M]) -> (bf16[N, M], i64[N]) { return softmax(x * g), argmax(x, axis=1) }",
    "fn f(x: f16[N, M]) -> (f16[N], f16[N, M]) { return sum(x * x, axis=1), where(x > 0.0, x, x * 0.1) }",
    "fn f(x: f32[N], b: i64[M], v: f32[M]) -> f32[N] { return update x[b[i]] += v[i] * 2.0 }",
    "fn f(x: f32[N, M]) -> f32[N, M] { return update x[i in 1..N, j] = x[i - 1, j] * 0.5 }",
    "fn f(x: f32[N]) -> f32[N] { y[i < N] = where(i > 0, x[i - 1], 0.0) + where(i < N - 1, x[i + 1], 1.0); return y }",
    "fn f(t: f32[N, M], ids: i64[K]) -> f32[K, M] { return take(t, ids, axis=0) * 2.0 }",
    "fn f(x: f32[N, M], k: i64) -> f32[N, M] { return loop (h = x) for t < k { yield tanh(h) + x * f32(t) } }",
    "fn f(a: f32[N, M], x: f32[N, M]) -> (f32[M], f32[N, M]) {"
    " s, all = scan (h = zeros(f32[M])) for t < N { n = a[t] * h + x[t]; yield n; emit n }; return s, all }",
    "fn f(l: f32[N, N], x: f32[N]) -> f32[N] { y[i] = sum[k < i](l[i, k] * x[k]); return y }",
    "fn f(x: f32[N, M]) -> (f32[M, N], f32[N, M], f32[2*N, M]) {"
    " return transpose(x) * 2.0, cumsum(x, axis=1), concat((x, exp(x)), axis=0) }",
    "fn f(x: f32[N, M]) -> (f32[N, M], i64[N, M]) { return sort(x), argsort(-x) }",
    "fn f(x: f32[1, 2, N, M], w: f32[3, 2, 2, 2]) -> f32[1, 3, N - 1, M - 1] { return conv2d(x, w) + 1.0 }",
    "fn f(x: f32[N, M]) -> f32[N * M] { return reshape(pad(x, ((0, 0), (0, 0))) + x, (N * M)) }",
    "fn f(x: f32[N], k: i64) -> (f32[N], f32[N]) { a[i < N] = where(i <= N - 2, x[i + 1], 0.5);"
    " b[i < N] = where(i >= 1 and not i > N - 1, x[i - 1], -1.0); return a, b }",
    "fn f(x: f32[N], y: f32[N]) -> f32[N] { z[i < N] = where(i == 0, x[0], where(i < 2, 7.0, y[i - 1] + x[i - 2]));"
    " return z }",
    "fn f(x: f32[N, M]) -> (f32[N, M], f32[2 * N, M]) { return flip(x, axis=0) * 2.0, repeat(x, 2, 0) }",
    "fn f(x: bool[N], y: bool[N]) -> (bool[N], bool, bool[N]) { return maximum(x, y), max(minimum(x, y)), x <= y }",
    "fn f(x: f16[N], y: f16[N], b: bool[N]) -> (f16[N], f16, f32[N]) {"
    " update_ = update x[0] += y[0]; return where(b, x * y, update_), max(x - y), f32(f16(f32(x) * 0.1)) }",
    "fn f(x: i32[N], y: bool[N]) -> (i32, bool[N], i32[N]) { return max(x), x > 1 and not y, x // 3 + x % 3 }",
)
SIZES = ("N=5 M=3 K=4", "N=17 M=33 K=7", "N=1 M=2 K=1")
LARGE = "N=67 M=35 K=40"
"""For schedules, which leave small kernels alone; no tile divides them."""


@dataclass(frozen=True)
class Example:
    """A module, with the text of its sizes."""

    name: str
    module: Module
    sizes: str = ""


def corpus(large: bool = False) -> list[Example]:
    """Small programs, the inputs of golden files, random graphs; or the programs at sizes worth a schedule."""
    found: list[Example] = []
    for number, text in enumerate(PROGRAMS):
        module = load(Source(f"program{number}.ita", text)).build(None)
        for sizes in (LARGE,) if large else SIZES if number < 3 else SIZES[:2]:
            found.append(Example(f"program {number} at {sizes}", module, _given(module, sizes)))
    if large:
        return found
    folders = ("specialize", "canonicalize", "cse", "dce", "fuse", "legalize-dtype", "skip-rounding")
    for path in sorted(p for folder in folders for p in (ROOT / "tests" / "golden" / folder).glob("*.ir")):
        if path.stem not in ("errors", "narrow"):
            for text in path.read_text("utf-8").partition("# ===== expected\n")[0].split("# -----\n"):
                module = read_module(Source(path.name, text))
                found.append(Example(f"{path.parent.name}/{path.name}", module, _given(module, SIZES[0])))
    for seed in range(0, 300, 60):
        bodies = [Expressions(s).of((F32, I32, BOOL)[s % 3], 4) for s in range(seed, seed + 60)]
        found.append(Example(f"random expressions {seed}", module_of(bodies)))
    return found + [Example(f"random graph {seed}", random_module(seed)) for seed in range(24)]


def _given(module: Module, sizes: str) -> str:
    return " ".join(s for s in sizes.split() if s.split("=")[0] in module.graph.dimensions)


# ---------------------------------------------------------------------- one mutant


class MutatingFinder(importlib.abc.MetaPathFinder):
    """Imports one module from a changed syntax tree, all others as they are."""

    def __init__(self, name: str, code: CodeType) -> None:
        self.name = name
        self.code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        code = self.code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        spec.loader = Loader(fullname, spec.loader.path)
        return spec


def module_name(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(("intarsia", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def before_pass(part: str, examples: Sequence[Example]) -> list[str | None]:
    """The texts of the examples as they reach a pass; None where the passes before it fail."""
    from intarsia.ir.target import TARGETS
    from intarsia.passes.pipeline import Context, Pipeline

    passes = PIPELINE[: PIPELINE.index(part)].rstrip(",")
    texts: list[str | None] = []
    for example in examples:
        pipeline = Pipeline.parse(passes.replace("specialize", f"specialize{{{example.sizes}}}"))
        try:
            texts.append(print_module(pipeline.run(example.module, Context(TARGETS[TARGET]))))
        except Exception:  # an error of the passes as they are, which this script does not look for
            texts.append(None)
    return texts


def trial(part: str, examples: Sequence[Example]) -> tuple[str, str]:
    """Run a pass over the corpus. Gives what happened, and how it was seen or a digest of what the pass gives."""
    from intarsia.ir.errors import CompileError, ScheduleError
    from intarsia.ir.target import TARGETS
    from intarsia.passes.pipeline import Context, PassError, Pipeline
    from intarsia.passes.verify import VerifyExec, VerifyText, VerifyTypes

    texts = hashlib.sha256()
    for example in examples:
        options = f"{{{example.sizes}}}" if part == "specialize" else ""
        instruments = [VerifyExec(reduce=False), VerifyText(), VerifyTypes()]
        try:
            result = Pipeline.parse(f"{part}{options}").run(example.module, Context(TARGETS[TARGET]), instruments)
            texts.update(print_module(result).encode())
        except PassError as error:
            assert error.pass_.name == part
            return "found", f"{error.message} ({example.name})"
        except (CompileError, ScheduleError) as error:
            return "crashed", f"{type(error).__name__}: {error} ({example.name})"
    return "survived", texts.hexdigest()


def isolated(work: Callable[[], object]) -> object:
    """What `work` gives in a process of its own, or None if it takes too long."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        signal.alarm(SECONDS)
        sys.setrecursionlimit(20_000)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(json.dumps(work()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data) if data else None


def outcome_of(mutant: Mutant | None, part: str, examples: Sequence[Example]) -> tuple[str, str]:
    """What becomes of one mutant, or of the passes as they are."""

    def work() -> tuple[str, str]:
        if mutant is not None:
            code = compile(mutant.tree(), mutant.path, "exec")
            sys.meta_path.insert(0, MutatingFinder(module_name(mutant.path), code))
        try:
            return trial(part, examples)
        except BaseException as error:  # whatever a broken compiler raises is what we ask for
            return "crashed", f"{type(error).__name__}: {error}"[:500]

    found = isolated(work)
    return (found[0], found[1]) if isinstance(found, list) else ("late", f"more than {SECONDS} seconds")


def examples_for(part: str) -> list[Example]:
    """The corpus as it reaches a pass, without what fails there unchanged."""
    examples = corpus(large=part == "schedule")
    ready = examples
    if part != "specialize":
        texts = isolated(lambda: before_pass(part, examples))
        assert isinstance(texts, list), "the passes before it take too long"
        ready = [Example(e.name, read_module(Source(e.name, t)), e.sizes) for e, t in zip(examples, texts) if t]
    return [e for e in ready if outcome_of(None, part, [e])[0] == "survived"]


# ---------------------------------------------------------------------- all of them


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", default=",".join(PARTS))
    parser.add_argument("--verbose", action="store_true", help="show every mutant")
    options = parser.parse_args()
    parts = options.passes.split(",")
    counts: dict[str, Counter[str]] = {part: Counter() for part in parts}
    survivors: list[Mutant] = []
    start = time.perf_counter()
    for part, chosen in sample(parts, options.count, options.seed).items():
        ready = examples_for(part)
        unchanged = outcome_of(None, part, ready)
        for mutant in chosen:
            outcome, detail = outcome_of(mutant, part, ready)
            if (outcome, detail) == unchanged:
                outcome = "idle"
            counts[part][outcome] += 1
            if outcome == "survived":
                survivors.append(mutant)
            if options.verbose:
                print(f"{outcome:9}{mutant}\n         {detail}", flush=True)
    columns = ("found", "crashed", "late", "idle", "survived")
    print(f"{'pass':16}{'mutants':>9}" + "".join(f"{c:>9}" for c in columns))
    for part in parts:
        print(f"{part:16}{counts[part].total():9}" + "".join(f"{counts[part][c]:9}" for c in columns))
    print(f"{sum(c.total() for c in counts.values())} mutants in {time.perf_counter() - start:.0f} s")
    for mutant in survivors:
        print(f"survived {mutant}\n    {mutant.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
