"""The default schedule: what it makes of kernels of real sizes, on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule_programs import PROGRAMS
from schedule_samples import assert_same_meaning, sample
from test_schedule_default import TARGET, kernels

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import For, Kernel, Prefetch, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.kernel_counts import count_accesses
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.scalar import loads
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.default import build_schedule, schedule_kernel
from intarsia.passes.verify import verification


def axes_of_kind(kernel: Kernel, kind: str) -> list[str]:
    return [s.axis for s, _ in walk(kernel.body) if isinstance(s, For) and s.kind == kind]


def large(text: str, **dims: int) -> Kernel:
    """The only scheduled kernel of a program; nothing is run, so sizes may be real ones."""
    module = load(Source("f.ita", text)).build(None, None, dims)
    (kernel,) = default_pipeline(dims).run(module, Context(TARGET)).kernels
    return kernel


def test_rows_are_read_once_from_memory() -> None:
    kernel = large(PROGRAMS["layer_norm"][0], N=4096, M=1024)
    (rows,) = [s for s in kernel.body if isinstance(s, For)]
    assert rows.kind == "parallel" and trips(rows).constant == 4096
    assert not [b for b in kernel.buffers().values() if b.role == "temp" and b.memory == "global"]
    counts = count_accesses(kernel, {})
    assert counts["y"].stores == 4096 * 1024 and counts["y"].loads == 0


def test_a_chain_is_one_pass_of_whole_vectors() -> None:
    kernel = large("fn f(a: f32[N], b: f32[N]) -> f32[N] { return a + 3.0 * b }", N=1 << 24)
    counts = count_accesses(kernel, {})
    assert [counts[n].total for n in ("a", "b", "y")] == [1 << 24] * 3
    (put,) = [s for s, _ in walk(kernel.body) if isinstance(s, Put)]
    assert put.nontemporal and not put.mask


def writes_past_caches(text: str, **dims: int) -> bool:
    module = load(Source("f.ita", text)).build(None, None, dims)
    found = default_pipeline(dims).run(module, Context(TARGET)).kernels
    return any(isinstance(s, Put) and s.nontemporal for k in found for s, _ in walk(k.body))


def test_rows_that_shrink_are_vectors() -> None:
    ((kernel, _),) = kernels("rows_that_shrink")
    assert "vectorize j" in str(schedule_kernel(kernel, TARGET)[0])


def test_what_the_next_step_reads_stays_in_the_caches() -> None:
    """Two grids that fit the last cache: a step alone goes past the caches, those of a loop do not."""
    side = int((TARGET.caches[-1] / 8 * 0.4) ** 0.5)
    step = "2.0 * (x[i, j] + x[i, j - 1])"
    once = f"fn f(x: f64[N, N]) -> f64[N, N] {{ return update x[i in 0..N, j in 1..N] = {step} }}"
    often = once.replace("return", "return loop (x = x) for t < 9 { yield").replace("}", "} }")
    assert writes_past_caches(once, N=side) and not writes_past_caches(often, N=side)
    assert writes_past_caches(often, N=2 * side)


def test_single_elements_are_written_through_the_caches() -> None:
    text = "fn f(x: f64[N, N]) -> f64[N, N] { return loop (x = x) for i < N { yield update x[i, i] = 1.0 } }"
    assert not writes_past_caches(text, N=1 << 14)


def test_a_matrix_times_its_transpose_is_packed_and_tiled() -> None:
    text = "fn f(x: f32[M, K]) -> f32[M, M] { return x @ transpose(x) }"
    assert [b.memory for b in large(text, M=512, K=512).buffers().values() if b.role == "temp"][:1] == ["cache"]


def prefetches(kernel: Kernel) -> list[tuple[str, str, int]]:
    """What is fetched early: the buffer, the innermost loop that steps, the cache."""
    found = [(s, loops) for s, loops in walk(kernel.body) if isinstance(s, Prefetch)]
    return [(s.buffer, [x.axis for x in loops if x.kind in ("seq", "parallel")][-1], s.level) for s, loops in found]


@pytest.mark.parametrize(
    ("text", "sizes", "rows"),
    [
        ("log_softmax(x)", {"N": 1000, "M": 64}, 32),
        ("log_softmax(x)", {"N": 40, "M": 64}, 16),
        ("rms_norm(x, x[0])", {"N": 1000, "M": 64}, 32),
        ("rms_norm(x, x[0])", {"N": 1000, "M": 128}, 0),  # a root is little beside so long a row
        ("rms_norm(x, x[0])", {"N": 100000, "M": 64}, 0),  # rows come from memory
        ("log_softmax(x)", {"N": 1000, "M": 3}, 0),  # lanes run across rows
    ],
)
def test_stages_share_blocks_of_short_rows(text: str, sizes: dict[str, int], rows: int) -> None:
    """What there is one of for each row is a vector in a block of them."""
    kernel = large(f"fn f(x: f32[N, M]) -> f32[N, M] {{ return {text} }}", **sizes)
    lanes = [loops[-1] for s, loops in walk(kernel.body) if isinstance(s, Put) and s.buffer in ("t_log", "t_rsqrt")]
    blocks = [trips(loop).constant for loop in lanes if loop.kind == "lane" and len(kernel.body) == 1]
    assert set(blocks) == ({rows} if rows else set())


VARIANCE = "z = %s\n m = mean(z, axis=-1, keepdims=true)\n y = sum((z - m)**2, axis=-1, keepdims=true)\n return z - y"


@pytest.mark.parametrize(
    ("body", "length", "rows", "passes"),
    [
        ("return softmax(x)", 64, 32, 3),  # the sum shares a pass with what it sums
        ("return softmax(x)", 200, 16, 3),
        ("return softmax(x)", 512, 1, 3),  # a block would not stay in the first cache
        (VARIANCE % "x", 200, 16, 3),
        (VARIANCE % "x + w", 256, 1, 3),  # reading takes longer than what the reductions wait for
        ("y = sum(x * x, axis=-1, keepdims=true)\n return x / y", 256, 1, 2),  # no reduction waits for another
    ],
)
def test_reductions_that_wait_for_each_other_take_blocks_of_rows(
    body: str, length: int, rows: int, passes: int
) -> None:
    """The end of one reduction is found for a whole block before the next one begins."""
    kernel = large(f"fn f(x: f32[N, M], w: f32[N, M]) -> f32[N, M] {{ {body} }}", N=1600, M=length)
    (top,) = (s for s in kernel.body if isinstance(s, For))
    assert trips(top).constant == 1600 // rows
    assert len([s for s in top.body if isinstance(s, For) and s.kind == "seq"]) == passes


@pytest.mark.parametrize("sizes", [{"M": 1, "N": 0}, {"M": 1, "N": 1}, {"M": 0, "N": 1}])
def test_rows_may_have_no_elements(sizes: dict[str, int]) -> None:
    """Nothing divides by the length of a row."""
    value = "b[i, j] + sum[k in i+1..M](a[k, i] * b[k, j])"
    text = f"fn f(a: f64[M, M], b: f64[M, N]) -> f64[M, N] {{ return tensor[i, j]({value}) }}"
    assert large(text, **sizes).outputs


def test_the_second_pass_over_a_row_fetches_the_next_one() -> None:
    assert prefetches(large(PROGRAMS["softmax"][0], N=4096, M=4097))
    kernel = large(PROGRAMS["softmax"][0], N=4096, M=4096)
    (found,) = prefetches(kernel)
    assert found[0] == "x" and found[2] == 1
    (fetching,) = [loops for s, loops in walk(kernel.body) if isinstance(s, Prefetch)]
    statement = next(s for s in fetching[-1].body if isinstance(s, Put))
    assert "exp" in str(statement.value)
    long = large(PROGRAMS["softmax"][0], N=512, M=32768)
    assert [level for _, _, level in prefetches(long)] == [2]  # a row that would fill the first cache
    assert not prefetches(large(PROGRAMS["softmax"][0], N=16, M=4096))  # all of it is in a cache


def test_a_dense_pass_fetches_ahead() -> None:
    text = "fn f(x: f32[N, M], s: f32[M]) -> f32[N, M] { return tanh(x * s) }"
    assert [buffer for buffer, _, _ in prefetches(large(text, N=4096, M=4096))] == ["x"]
    assert not prefetches(large("fn f(x: f32[N, M], s: f32[M]) -> f32[N, M] { return x * s }", N=4096, M=4096))


def test_a_dense_pass_fetches_no_columns() -> None:
    """Of a matrix that is read along rows and along columns, lines fetched for the latter would be too many."""
    sides = " + ".join(f"{x}[i - 1, j] * {x}[i + 1, j] + {x}[i, j - 1] * {x}[i, j + 1]" for x in ("a", "a", "b"))
    step = f"update a[i in 1..N-1, j in 1..N-1] = {sides} + b[j, i] * b[i, j]"
    found = prefetches(large(f"fn f(a: f64[N, N], b: f64[N, N]) -> f64[N, N] {{ return {step} }}", N=1000))
    assert [name for name, _, _ in found] == ["a"] * 3


def test_transpositions_go_by_long_pieces_of_rows() -> None:
    kernel = large(PROGRAMS["transpose"][0], N=4096, M=4096)
    blocks = [loop for loop, _ in walk(kernel.body) if isinstance(loop, For)][:4]
    assert [trips(loop).constant for loop in blocks] == [4096 // 128, 4096 // 64, 8, 4]
    narrow = large(PROGRAMS["transpose"][0], N=1 << 16, M=80)
    found = [trips(loop).constant for loop, _ in walk(narrow.body) if isinstance(loop, For)][:4]
    assert found == [(1 << 16) // 128, 2, 8, 3]  # 80 are five squares: three in each block
    cached = large(PROGRAMS["transpose"][0], N=4096, M=80)
    found = [trips(loop).constant for loop, _ in walk(cached.body) if isinstance(loop, For)][:4]
    assert found == [4096 // 128, 5, 8, 1]  # single lines of what stays in the caches


def test_transpositions_go_through_registers_in_every_width() -> None:
    for dtype in ("f64", "f32", "i16", "i8"):
        kernel = large(f"fn f(x: {dtype}[N, M]) -> {dtype}[M, N] {{ return transpose(x) }}", N=512, M=512)
        assert axes_of_kind(kernel, "lane"), dtype
        assert [b.memory for b in kernel.buffers().values() if b.role == "temp"][:1] == ["register"], dtype


def test_a_column_that_every_row_reads_is_copied_once() -> None:
    text = "fn f(x: f64[N, K], y: f64[K, M]) -> f64[N] { return tensor[i](sum[k](x[i, k] * y[k, 3])) }"
    kernel = large(text, N=500, K=600, M=9)
    counts = count_accesses(kernel, {})
    assert counts["y"].loads == 600
    assert [b.name for b in kernel.buffers().values() if b.memory == "cache"] == ["y.0"]


@pytest.mark.parametrize(("above", "slope"), [(0, 1), (1, 2), (2, 3), (3, None)])
def test_sweeps_go_down_several_rows_at_once(above: int, slope: int | None) -> None:
    """Along the flattest diagonals whose points are independent; not where these are too steep."""
    text = f"""fn f(a: f64[N, N]) -> f64[N, N] {{
        return loop (a = a) for i in 1..N {{ yield loop (a = a) for j in 1..N-3 {{
            yield update a[i, j] = a[i - 1, j + {above}] + a[i, j - 1] }} }}
    }}"""
    kernel = large(text, N=100)
    unrolled = [(s, loops[-1]) for s, loops in walk(kernel.body) if isinstance(s, For) and s.kind == "unroll"]
    assert [trips(s).constant for s, _ in unrolled] == ([8] if slope else [])
    for rows, diagonals in unrolled:
        (put,) = rows.body
        assert isinstance(put, Put) and put.indices[1].coefficient(rows.axis) == -(slope or 0)
        assert trips(diagonals).constant == 96 - 7 * (slope or 0)


def test_small_kernels_wake_no_threads() -> None:
    for name in ("softmax", "matmul", "gelu"):
        for kernel, _ in kernels(name):
            assert not axes_of_kind(schedule_kernel(kernel, TARGET)[1], "parallel")


def test_large_products_are_packed_and_tiled() -> None:
    kernel = large(PROGRAMS["matmul"][0], M=1024, N=1024, K=512)
    buffers = kernel.buffers()
    assert [b.memory for b in buffers.values() if b.role == "temp"] == ["cache", "register"]
    counts = count_accesses(kernel, {})
    assert counts["y"].stores == 1024 * 1024 and counts["y"].loads == 0
    assert counts["b"].loads == 1024 * 512  # each block of it is packed once, by the thread that uses it
    assert len(axes_of_kind(kernel, "parallel")) == 1


def test_convolutions_have_lanes_along_channels() -> None:
    text = "fn f(x: f32[1, I, H, W], w: f32[O, I, 3, 3]) -> f32[1, O, H - 2, W - 2] { return conv2d(x, w) }"
    kernel = large(text, I=64, O=64, H=58, W=58)
    counts = count_accesses(kernel, {})
    assert counts["y"].stores == 64 * 56 * 56 and counts["y"].loads == 0
    assert counts["w"].loads == 64 * 64 * 9  # packed once
    tiles = [[int(n.constant or 0) for n in x.shape] for x in kernel.buffers().values() if x.memory == "register"]
    assert sorted(tiles) == [[8, 2, 16], [16, 16]]  # pixels by two vectors of channels; squares of weights
    (main,) = [s for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "+="]
    assert not main.mask
    grouped = text.replace("w: f32[O, I, ", "w: f32[O, I//4, ").replace("(x, w)", "(x, w, groups=4)")
    (main,) = [
        s for s, _ in walk(large(grouped, I=128, O=128, H=58, W=58).body) if isinstance(s, Put) and s.operator == "+="
    ]
    assert not main.mask and "//" not in str(main.value)
    few = large(text, I=64, O=3, H=58, W=58)
    assert all(b.memory != "cache" for b in few.buffers().values())  # lanes along three channels would be empty


@pytest.mark.parametrize("channels, size", [(0, 9), (3, 1), (3, 0), (1, 2), (17, 5)])
def test_windows_of_any_image_keep_their_meaning(channels: int, size: int) -> None:
    text = (
        "fn f(x: f32[2, C, H, H], w: f32[C, 1, 3, 3]) -> f32[2, C, H, H] { return conv2d(x, w, padding=1, groups=C) }"
    )
    pipeline = default_pipeline({"C": channels, "H": size})
    pipeline.run(load(Source("f.ita", text)).build(None), Context(TARGET), verification("exec"))


def test_points_of_an_image_are_one_axis() -> None:
    """A convolution with windows of one element is a matrix product; few points are transposed as they are written."""
    text = PROGRAMS["conv2d_of_points"][0]
    kernel = large(text, N=1, I=128, O=64)
    tiles = [[int(n.constant or 0) for n in x.shape] for x in kernel.buffers().values() if x.memory == "register"]
    assert [7, 2, 16] in tiles  # seven of 49 points by two vectors of channels
    wide = large(text.replace("7, 7", "56, 56"), N=1, I=128, O=64)
    tiles = [[int(n.constant or 0) for n in x.shape] for x in wide.buffers().values() if x.memory == "register"]
    assert [8, 2, 16] in tiles and [int(n) for n in map(str, wide.outputs[0].shape[-1:])] == [56 * 56]
    assert count_accesses(wide, {})["y"].stores == 64 * 56 * 56


def test_lanes_lie_along_what_is_made_last() -> None:
    """Channels that come last are written in whole vectors, and pixels read along them."""
    text = PROGRAMS["conv2d_last"][0].replace(", padding=1", "").replace("[N, H, W, O]", "[N, H - 2, W - 2, O]")
    kernel = large(text, N=1, I=64, O=64, H=28, W=28)
    puts = [(s, loops) for s, loops in walk(kernel.body) if isinstance(s, Put) and s.buffer == "y"]
    assert puts and all(s.indices[-1].coefficient(x[-1].axis) == 1 and x[-1].kind == "lane" for s, x in puts)
    main = next(loops for s, loops in walk(kernel.body) if isinstance(s, Put) and s.operator == "+=")
    assert [x.axis[0] for x in main if x.axis[0] in "crs"] == ["r", "s", "c", "c"]


def test_windows_are_read_from_a_copy_with_padding() -> None:
    """Each element of the image is copied once, and again at the edges of blocks; what reads the copy has no masks."""
    for height, width in ((56, 56), (28, 28), (7, 7)):
        kernel = large(PROGRAMS["depthwise"][0], N=1, C=64, H=height, W=width)
        counts = count_accesses(kernel, {})
        assert counts["x"].loads == counts["y"].stores == 64 * height * width and counts["y"].loads == 0
        mains = [s for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "+="]
        assert mains and not any(s.mask or any(x.mask for x in loads(s.value)) for s in mains)
    plane = "fn f(x: f32[82, 82], w: f32[11, 11]) -> f32[72, 72] {"
    whole = large(plane + " return tensor[i < 72, j < 72](sum[r, s](x[i + r, j + s] * w[r, s])) }")
    assert len(axes_of_kind(whole, "parallel")) == 1  # one copy of the whole image, which threads share
    apart = large("fn f(x: f32[1, C, 2*H, 2*W]) -> f32[1, C, H, W] { return max_pool2d(x, 2) }", C=9, H=32, W=32)
    assert all(b.memory != "cache" for b in apart.buffers().values())  # these windows share nothing


@pytest.mark.parametrize("rows, columns, channels", [(1, 9, 16), (3, 1, 16), (3, 9, 0), (3, 9, 16), (3, 9, 3)])
def test_convolutions_of_any_size_keep_their_meaning(rows: int, columns: int, channels: int) -> None:
    """As a module, in which the kernel sees weights of fewer dimensions than the call; also where there are none."""
    text = "fn f(x: f32[1, 2, H, W], w: f32[O, 2, 2, 2]) -> f32[1, O, H - 1, W - 1] { return conv2d(x, w) + 1.0 }"
    pipeline = default_pipeline({"H": rows, "W": columns, "O": channels})
    pipeline.run(load(Source("f.ita", text)).build(None), Context(TARGET), verification("exec"))


@pytest.mark.parametrize("width", [55, 57])
def test_the_last_tile_of_a_row_of_pixels_has_as_many_as_there_are(width: int) -> None:
    """Masks are left in one iteration of known number, where they are decided when code is made."""
    text = "fn f(x: f32[1, 16, 9, W + 2], w: f32[64, 16, 3, 3]) -> f32[1, 64, 7, W] { return conv2d(x, w) }"
    kernel = large(text, W=width)
    sums = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.operator == "+="]
    masked = [around for s, around in sums if any(x.mask for x in loads(s.value))]
    assert len(sums) == 2 and len(masked) == 1
    assert any(loop.lower.constant and trips(loop).constant == 1 for loop in masked[0])


@pytest.mark.parametrize(("width", "pixels"), [(56, 8), (60, 6), (59, 6), (25, 5), (20, 7), (13, 7)])
def test_no_tile_of_pixels_is_much_shorter_than_the_others(width: int, pixels: int) -> None:
    """Weights come from the second cache: a tile of few pixels takes as long as one of six."""
    text = "fn f(x: f32[1, 16, 9, W + 2], w: f32[64, 16, 3, 3]) -> f32[1, 64, 7, W] { return conv2d(x, w) }"
    kernel = large(text, W=width)
    whole, *last = [s for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "+="]
    tiles = [kernel.buffers()[s.buffer].shape[0].constant for s in (whole, *last)]
    assert tiles == [pixels] * len(tiles) and bool(last) == (width % pixels > 0)


def test_few_pixels_fetch_the_next_weights() -> None:
    """Where weights are used for 49 pixels alone, reading them takes as long as a tenth of the multiply-adds."""
    text = "fn f(x: f32[1, 64, W + 2, W + 2], const w: f32[64, 64, 3, 3]) -> f32[1, 64, W, W] { return conv2d(x, w) }"

    def fetched(width: int) -> list[tuple[str, int]]:
        body = large(text, W=width).body
        return [(s.buffer, s.level) for s, around in walk(body) if isinstance(s, Prefetch) and around[-1].kind == "seq"]

    assert fetched(7) == [("w.0", 2)] and not fetched(56)


def test_lanes_are_along_channels_where_they_fill_as_much_as_pixels_and_their_tiles_do() -> None:
    """61 channels fill as much of four vectors as of eight tiles of rows; 40 are whole tiles of eight rows."""
    text = "fn f(x: f32[1, 16, 9, 50], w: f32[O, 16, 3, 3]) -> f32[1, O, 7, 48] { return conv2d(x, w) }"
    for channels, copied in ((61, "w"), (40, "")):
        names = [b.name for b in large(text, O=channels).buffers().values() if b.memory == "cache"]
        assert any(name.startswith("w.") for name in names) == bool(copied), names


def test_left_operands_that_lie_across_are_packed_once() -> None:
    text = "fn f(a: f32[K, M], b: f32[K, N]) -> f32[M, N] { return transpose(a) @ b }"
    counts = count_accesses(large(text, M=1024, N=1024, K=512), {})
    assert counts["a"].loads == counts["b"].loads == 1024 * 512


def test_few_columns_are_dot_products() -> None:
    kernel = large(PROGRAMS["matmul"][0], M=4096, N=8, K=512)
    (main,) = [s for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "+=" and s.buffer != "y"]
    (tile,) = [x for x in kernel.buffers().values() if x.memory == "register"]
    assert main.buffer == tile.name
    assert [int(extent.constant or 0) for extent in tile.shape] == [4, 4, 16]


def test_results_that_lie_apart_have_lanes_all_the_same() -> None:
    kernel = large(PROGRAMS["matmul_spread"][0], C=64, H=28, W=28, O=64)
    summed = {s.buffer for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "+="}
    assert {kernel.buffers()[name].memory for name in summed} == {"register"}
    assert all(kernel.buffers()[name].shape[-1].constant == 16 for name in summed)


def test_few_rows_fetch_the_other_operand_ahead() -> None:
    kernel = large(PROGRAMS["matmul"][0], M=8, N=4096, K=4096)
    fetched = [s for s, _ in walk(kernel.body) if isinstance(s, Prefetch)]
    assert fetched and all(s.buffer == "b" and s.level == 1 for s in fetched)


def test_few_rows_copy_what_they_use_again_where_it_would_crowd_the_first_cache() -> None:
    """Rows of it are a multiple of 2 KiB apart, so that those of one part fall into the same few sets."""
    crowded = large(PROGRAMS["matmul"][0], M=16, N=4096, K=4096)
    assert count_accesses(crowded, {})["b"].loads == 4096 * 4096
    (copy,) = (buffer for name, buffer in crowded.buffers().items() if name.startswith("b."))
    assert copy.memory == "cache" and np.prod([extent.evaluate({}) for extent in copy.shape]) * 4 <= 16 << 10
    for sizes in ({"M": 16, "N": 4000}, {"M": 8, "N": 4096}):  # no row is in the way of another; each is used once
        names = large(PROGRAMS["matmul"][0], **sizes, K=4096).buffers()
        assert not any(name.startswith("b.") for name in names)


@pytest.mark.parametrize(
    ("sizes", "gathered"),
    [
        ({"M": 16, "N": 4096, "K": 4096}, True),
        ({"M": 5, "N": 1024, "K": 3000}, True),
        ({"M": 5, "N": 1000, "K": 3000}, False),  # the last tile of a row has masks
        ({"M": 4, "N": 4096, "K": 4096}, False),  # all the time is that of reading
        ({"M": 24, "N": 4096, "K": 4096}, False),  # three tiles of rows
        ({"M": 16, "N": 4096, "K": 1024}, False),  # copying the sums would be much beside so short a reduction
    ],
)
def test_sums_of_few_rows_lie_together_until_all_parts_are_added(sizes: dict[str, int], gathered: bool) -> None:
    """What is added to again and again is read in order, and rows of the result do not crowd the caches."""
    kernel = large(PROGRAMS["matmul"][0], **sizes)
    assert any(b.memory == "cache" for name, b in kernel.buffers().items() if name.startswith("y.")) == gathered
    assert (count_accesses(kernel, {})["y"].loads == 0) == gathered


def test_a_fetch_goes_on_in_the_next_block() -> None:
    """What the first part of a block of columns reads is fetched while the last part of the block before it runs."""
    kernel = large(PROGRAMS["matmul"][0], M=8, N=4096, K=1024)
    ((fetched, loops), *_) = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Prefetch)]
    block, part = (next(x for x in loops if x.axis == axis) for axis in (loops[0].axis, loops[1].axis))
    last = trips(part).constant - 1
    here = {x.axis: 0 for x in loops} | {part.axis: last}
    assert [i.evaluate(here) for i in fetched.indices] == [0, 4096 // trips(block).constant]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"M": 2048, "N": 2048, "K": 2048}, {("a", 2), ("y", 1)}),  # rows come from the last cache, and sums twice
        ({"M": 2048, "N": 2048, "K": 512}, {("a", 2)}),  # the reduction has one part
        ({"M": 128, "N": 3072, "K": 768}, {("b", 2)}),  # rows stay in the second cache, columns are used 16 times
        ({"M": 256, "N": 256, "K": 256}, set()),  # all of it stays there
    ],
)
def test_tiles_fetch_what_later_ones_read_from_beyond_the_second_cache(
    sizes: dict[str, int], wanted: set[tuple[str, int]]
) -> None:
    kernel = large(PROGRAMS["matmul"][0], **sizes)
    found = [s for s, loops in walk(kernel.body) if isinstance(s, Prefetch) and loops[-1].kind != "lane"]
    assert {(s.buffer, s.level) for s in found} == wanted


def test_what_is_only_reduced_is_fetched_ahead_along_what_lies_together() -> None:
    def ahead(text: str, **sizes: int) -> set[int]:
        """Bytes by which what is fetched lies behind what is read, in each fetch."""
        kernel = large(text, **sizes)
        puts = [s for s, _ in walk(kernel.body) if isinstance(s, Put)]
        places = [x.indices for put in puts for x in loads(put.value) if x.buffer == "x"]
        fetched = [s.indices for s, _ in walk(kernel.body) if isinstance(s, Prefetch)]
        distances = {(f[-1] - p[-1]).constant for f in fetched for p in places}
        return {4 * distance for distance in distances if distance is not None}

    rows = "fn f(x: f32[N, M]) -> f32[N] { return sum(x, axis=1) }"
    assert ahead(rows, N=4096, M=4096) == ahead(rows, N=16384, M=1024) == {8192}
    assert (
        ahead("fn f(x: f32[N, M]) -> f32[M] { return max(x, axis=0) }", N=4096, M=4096) == set()
    )  # in blocks of 4 KiB
    assert ahead(rows, N=128, M=1024) == set()  # it is in the cache


@pytest.mark.parametrize("length", [1 << 20, 1_000_003])
@pytest.mark.parametrize("value", ["sum(x)", "logsumexp(x)", "var(x)"])
def test_reductions_of_any_length_are_shared_in_vectors(value: str, length: int) -> None:
    """A last part that is shorter than the others does not hide how long these are."""
    module = load(Source("f.ita", f"fn f(x: f32[{length}]) -> f32 {{ return {value} }}")).build(None)
    (kernel,) = default_pipeline({}).before("schedule").run(module, Context(TARGET)).kernels
    b = build_schedule(kernel, replace(TARGET, cores=2))
    assert not any("is not vectorized" in r.message for r in b.remarks)
    assert str(b.schedule).count("parallel") == 1, "one sweep finds all"


def test_chunks_of_a_reduction_depend_on_sizes_alone() -> None:
    text = "fn f(x: f32[N]) -> f32 { return sum(x) }"
    kernel = large(text, N=1 << 24)
    (part,) = axes_of_kind(kernel, "parallel")
    (loop,) = [s for s, _ in walk(kernel.body) if isinstance(s, For) and s.axis == part]
    assert trips(loop).constant == 64


def test_what_is_not_vectorized_is_told() -> None:
    built = build_schedule(sample("sweep")[0], TARGET)
    assert any("vector" in r.message for r in built.remarks)


@pytest.mark.parametrize("way", [1, 2])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_strided", "conv2d_groups"])
def test_images_may_be_copied_first(name: str, way: int) -> None:
    """Rows of the image once, or window after window, in place of reading it where it lies."""
    kernel, sizes = next((k, n) for k, n in kernels(name) if "+=" in print_kernel(k))
    result = next(p.buffer for p, _ in walk(kernel.body) if isinstance(p, Put) and p.operator == "+=")
    copied = build_schedule(kernel, TARGET, choices={f"image of {result}": way})
    assert f"image of {result}" in copied.decisions and "pack x at" in str(copied.schedule)
    assert_same_meaning(kernel, copied.kernel, sizes)


def test_the_layers_of_a_loop_are_tiled_alike_from_either_end() -> None:
    """What no axis changes is a number: `2 - l` made a convolution of the products of the step back."""

    def steps(layer: str) -> str:
        text = f"""
kernel f(w: f32[3, 128, 512], x: f32[16, 64, 128], out y: f32[16, 64, 512])[sizes l] {{
  for i in 0..16 {{ for j in 0..64 {{ for k in 0..512 {{ y[i, j, k] = 0.0 }} }} }}
  for i.1 in 0..16 {{ for j.1 in 0..64 {{ for k.1 in 0..512 {{ for r in 0..128 {{
    y[i.1, j.1, k.1] += x[i.1, j.1, r] * w[{layer}, r, k.1]
  }} }} }} }}
}}
"""
        schedule, _ = schedule_kernel(read_kernel(Source("f.ir", text)), TARGET)
        return str(schedule)

    assert steps("2 - l") == steps("l") and "collapse" in steps("l")
