"""Passes as data: their text, the order in which they run, what is shown of them, and how a wrong one is found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module, Node, Value
from intarsia.ir.ops import Elementwise, Matmul, Reduce
from intarsia.ir.rewriting import rewrite
from intarsia.ir.target import TARGETS
from intarsia.ir.text import print_module, read_module
from intarsia.passes.instruments import ALL, Diff, PrintIR, Timing
from intarsia.passes.pipeline import OPEN, PASSES, Context, Instrument, Pass, PassError, Pipeline, default_pipeline
from intarsia.passes.verify import VerifyExec, breaks, verification
from intarsia.passes.verify.inputs import check_sizes, work

SOFTMAX = """func @f[N, M](%x: f32[N, M], %bias: f32[M]) {
  %0 = add %x, %bias : f32[N, M]
  %1 = reduce %0 combiner=max axes=(1,) keepdims=true : f32[N, 1]
  %2 = sub %0, %1 : f32[N, M]
  %3 = exp %2 : f32[N, M]
  %4 = reduce %3 combiner=sum axes=(1,) keepdims=true : f32[N, 1]
  %5 = div %3, %4 : f32[N, M]
  return %5
}
"""


def read(text: str) -> Module:
    return read_module(Source("test.ir", text))


def context() -> Context:
    return Context(TARGETS["cpu:x86-avx2"])


@dataclass(frozen=True)
class Options(Pass):
    """Every kind of option."""

    name: ClassVar[str] = "test-options"
    max_ops: int = 4
    on: bool = False
    names: tuple[str, ...] = ()
    limit: int | None = None
    mode: Literal["fast", "small"] = "fast"
    sizes: tuple[tuple[str, int], ...] = field(default=(), metadata=OPEN)

    def run(self, module: Module, context: Context) -> Module:
        return module


@dataclass(frozen=True)
class DropBias(Pass):
    """A wrong pass: x + y -> x."""

    name: ClassVar[str] = "test-drop-bias"
    exact: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        def drop(node: Node) -> Value | None:
            match node:
                case Elementwise("add", (x, _)) if x.type == node.results[0]:
                    return x
            return None

        return module.with_body(rewrite(module.graph.body, [drop]))


@dataclass(frozen=True)
class SwapFactors(Pass):
    """A wrong pass: x @ y -> y @ x, which fits the types of square matrices."""

    name: ClassVar[str] = "test-swap-factors"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        return module.with_body(rewrite(module.graph.body, [_swap_once()]))


def _swap_once():  # type: ignore[no-untyped-def]
    swapped: set[tuple[Value, Value]] = set()

    def swap(node: Node) -> Node | None:
        match node:
            case Matmul(a, b) if a.type == b.type and (a, b) not in swapped:
                swapped.add((b, a))
                return Matmul(b, a)
        return None

    return swap


@dataclass(frozen=True)
class ForgetNaN(Pass):
    """A wrong pass that shows on special values only: max over one element of x -> x * 1, but x - x -> 0."""

    name: ClassVar[str] = "test-forget-nan"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        def forget(node: Node) -> Node | None:
            match node:
                case Elementwise("sub", (x, y)) if x == y:
                    return Elementwise("sub", (abs_(x), abs_(x)))
                case Elementwise("maximum", (x, y)):
                    return Elementwise("where", (Elementwise("gt", (x, y)).value, x, y))
            return None

        return module.with_body(rewrite(module.graph.body, [forget]))


def abs_(x: Value) -> Value:
    return Elementwise("abs", (x,)).value


# ---------------------------------------------------------------------- text


def test_a_pipeline_prints_and_reads_back() -> None:
    text = "specialize{B=128 N=3},test-options{max-ops=8 on=true names=a,b limit=3 mode=small K=2},test-options"
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert Pipeline.parse(str(pipeline)) == pipeline
    options = pipeline.passes[1]
    assert options == Options(8, True, ("a", "b"), 3, "small", (("K", 2),))
    assert Pipeline.parse("") == Pipeline(())
    assert Pipeline.parse(" cse , dce ") == Pipeline.parse("cse,dce")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("canonicalise", "E1401", "did you mean canonicalize?"),
        ("fuse{maxops=3}", "E1402", "did you mean max-ops?"),
        ("fuse{max-ops=many}", "E1403", "'many' is not of type int"),
        ("fuse{max-ops=-1}", "E1403", "the least is 0"),
        ("quantize-collectives{block=0}", "E1403", "the least is 1"),
        ("quantize-collectives{block=8,least=1}", "E1403", "options are separated by spaces"),
        ("test-options{on=yes}", "E1403", "not true or false"),
        ("test-options{mode=slow}", "E1403", "not one of fast, small"),
        ("fuse{max-ops=3", "E1404", "do not match"),
        ("fuse,,dce", "E1404", "is no pass"),
    ],
)
def test_what_is_wrong_with_a_pipeline(text: str, code: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        Pipeline.parse(text)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_every_pass_says_before_and_after() -> None:
    Pipeline.parse("")  # imports them all
    for name, cls in PASSES.items():
        if not name.startswith("test-") and cls.__module__.startswith("intarsia.passes"):
            assert cls.__doc__, name
            assert dataclasses.is_dataclass(cls), name
            assert str(cls()).split("{")[0] == name


# ---------------------------------------------------------------------- instruments


def test_instruments_see_each_pass_in_order() -> None:
    seen: list[str] = []

    class Log(Instrument):
        def __init__(self, name: str) -> None:
            self.name = name

        def before(self, pass_: Pass, index: int, module: Module, context: Context) -> None:
            seen.append(f"{self.name} before {index} {pass_}")

        def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
            seen.append(f"{self.name} after {index} {pass_} {'same' if old is new else 'changed'}")

    Pipeline.parse("specialize{N=2 M=3},dce").run(read(SOFTMAX), context(), [Log("a"), Log("b")])
    assert seen == [
        "a before 0 specialize{N=2 M=3}",
        "b before 0 specialize{N=2 M=3}",
        "b after 0 specialize{N=2 M=3} changed",
        "a after 0 specialize{N=2 M=3} changed",
        "a before 1 dce",
        "b before 1 dce",
        "b after 1 dce same",
        "a after 1 dce same",
    ]


def test_dumps_are_valid_input() -> None:
    written: list[str] = []
    dumps = PrintIR(written.append, frozenset({"dce"}), frozenset({ALL}), only_changes=True)
    Pipeline.parse("cse,fuse,dce").run(read(SOFTMAX), context(), [dumps])
    assert [w.splitlines()[0] for w in written] == ["# ----- after fuse", "# ----- before dce"]
    assert written[0].partition("\n")[2] == written[1].partition("\n")[2]
    for text in written:
        assert print_module(read(text)) == text.partition("\n")[2]


def test_diff_shows_what_changed() -> None:
    written: list[str] = []
    Pipeline.parse("cse,specialize{N=2}").run(read(SOFTMAX), context(), [Diff(written.append)])
    assert len(written) == 1
    assert "# ----- specialize{N=2}" in written[0]
    assert "-  %0 = add %x, %bias : f32[N, M]\n" in written[0]
    assert "+  %0 = add %x, %bias : f32[2, M]\n" in written[0]


def test_times_add_up() -> None:
    ticks = iter([1.0, 1.5, 2.0, 3.5])
    timing = Timing(clock=lambda: next(ticks))
    Pipeline.parse("cse,dce").run(read(SOFTMAX), context(), [timing])
    assert timing.seconds == [("cse", 0.5), ("dce", 1.5)]
    assert "2000.00 ms 100.0%  total" in timing.table()
    assert "25.0%  cse" in timing.table()


def test_a_pipeline_can_stop_early() -> None:
    pipeline = Pipeline.parse("specialize,canonicalize,fuse,dce")
    assert str(pipeline.first(2)) == "specialize,canonicalize"
    assert str(pipeline.before("fuse")) == "specialize,canonicalize"
    assert pipeline.before("lower") == pipeline


# ---------------------------------------------------------------------- verification


@pytest.mark.parametrize("level", ["types", "text", "exec"])
def test_right_passes_pass(level: Literal["types", "text", "exec"]) -> None:
    passes = "specialize{N=5 M=3},canonicalize,cse,legalize-dtype,fuse,dce,lower"
    Pipeline.parse(passes).run(read(SOFTMAX), context(), verification(level))


def test_the_wrong_pass_is_named_and_reduced() -> None:
    pipeline = Pipeline.parse("specialize{N=5 M=3},canonicalize,test-drop-bias,cse,fuse")
    with pytest.raises(PassError) as caught:
        pipeline.run(read(SOFTMAX), context(), verification("exec"))
    error = caught.value
    assert error.pass_.name == "test-drop-bias"
    assert "result 0 of @f" in error.message
    assert "-  %0 = add %x, %bias : f32[5, 3]\n" in error.diff
    first, _, text = error.reproducer.partition("\n")
    assert first == "# intarsia opt %s --passes test-drop-bias --verify-each=exec"
    small = read(text)
    assert len(small.graph.body.nodes) == 1  # the addition alone
    assert breaks(DropBias(), small, context(), {}, 0)


def test_a_wrong_product_is_found_among_much_else() -> None:
    module = read("""func @f[N](%x: f32[N, N], %y: f32[N, N]) {
      %0 = exp %x : f32[N, N]
      %1 = tanh %y : f32[N, N]
      %2 = matmul %0, %1 : f32[N, N]
      %3 = reduce %2 combiner=sum axes=(0, 1) : f32
      %4 = sub %2, %3 : f32[N, N]
      return %3, %4
    }""")
    with pytest.raises(PassError) as caught:
        Pipeline((SwapFactors(),)).run(module, context(), verification("exec"))
    small = read(caught.value.reproducer.partition("\n")[2])
    assert [n.name for n in small.graph.body.nodes] == ["matmul"]


def test_special_values_are_tried() -> None:
    module = read("""func @f[N, M](%x: f32[N, M], %y: f32[N, M]) {
      %0 = maximum %x, %y : f32[N, M]
      return %0
    }""")
    with pytest.raises(PassError, match="test-forget-nan"):
        Pipeline((ForgetNaN(),)).run(module, context(), verification("exec"))


def test_large_modules_run_at_check_sizes() -> None:
    module = read(SOFTMAX)
    sizes = {"N": 1 << 20, "M": 1 << 12}
    assert work(module, sizes) > 10**10
    passes = "specialize{N=1048576 M=4096},fuse,dce"
    Pipeline.parse(passes).run(module, context(), verification("exec"))
    wrong = Pipeline.parse(f"{passes},test-drop-bias").passes
    # As the driver does: the same instruments through several pipelines.
    instruments = [VerifyExec()]
    specialized = Pipeline(wrong[:1]).run(module, context(), instruments)
    with pytest.raises(PassError, match="test-drop-bias"):
        Pipeline((DropBias(),)).run(specialized, context(), instruments)


def test_schedules_of_large_kernels_run_on_small_ones() -> None:
    """A small product is left alone; checked is what its large likeness gets: tiles, lanes, masks."""
    module = read("""func @f[N, K, M](%x: f32[N, K], %w: f32[K, M]) {
      %0 = matmul %x, %w : f32[N, M]
      return %0
    }""")
    verify = VerifyExec()
    given = context()
    default_pipeline({"N": 1024, "K": 512, "M": 2048}).run(module, given, [verify])
    assert given.schedules and verify.current is not None
    assert "lane " in print_module(verify.current)
    assert verify.current.graph.parameters[0].type.static_shape < (20, 20)  # type: ignore[union-attr]


def test_a_large_module_without_names_is_not_run() -> None:
    module = read("""func @f(%x: f32[100000, 1000]) {
      %0 = exp %x : f32[100000, 1000]
      return %0
    }""")
    given = context()
    Pipeline.parse("cse,dce,fuse,canonicalize").run(module, given, [VerifyExec(limit=1000)])
    (remark,) = given.remarks.items
    assert remark.about == "verification" and remark.message.startswith("@f was not run: it is large")


def test_check_sizes_fit_the_program() -> None:
    module = read("""func @f[N, H](%x: f32[N]) {
      %0 = reshape %x : f32[H, N // H]
      return %0
    }""")
    found = check_sizes(module)
    assert found is not None and found["N"] % found["H"] == 0


def test_verification_stops_where_types_are_wrong() -> None:
    @dataclass(frozen=True)
    class Shuffle(Pass):
        """A wrong pass: nodes before what they use."""

        name: ClassVar[str] = "test-shuffle"

        def run(self, module: Module, context: Context) -> Module:
            body = module.graph.body
            return module.with_body(dataclasses.replace(body, nodes=tuple(reversed(body.nodes))))

    with pytest.raises(PassError, match="test-shuffle"):
        Pipeline((Shuffle(),)).run(read(SOFTMAX), context(), verification("types"))


def test_sums_may_change_their_order() -> None:
    @dataclass(frozen=True)
    class SumTwice(Pass):
        """sum over two dimensions at once -> one after the other: right but for last digits."""

        name: ClassVar[str] = "test-sum-twice"
        exact: ClassVar[bool] = False

        def run(self, module: Module, context: Context) -> Module:
            def split(node: Node) -> Node | None:
                match node:
                    case Reduce(x, "sum", (0, 1)):
                        return Reduce(Reduce(x, "sum", (0,)).value, "sum", (0,))
                return None

            return module.with_body(rewrite(module.graph.body, [split]))

    text = """func @f[N, M](%x: f32[N, M]) {
      %0 = reduce %x combiner=sum axes=(0, 1) : f32
      return %0
    }"""
    Pipeline((SumTwice(),)).run(read(text), context(), verification("exec"))
