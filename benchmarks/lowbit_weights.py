"""Products of one row with weights in few bits beside the f32 product, PyTorch's int4, ONNX Runtime's MatMulNBits and the
bandwidth that is there; and what becomes of the speed with more rows. `lowbit.py` runs it.

From memory: copies of the weights take turns, which together are larger than the last cache. From the cache: one copy, again
and again. The bound is the time in which a program that only adds numbers up reads as many bytes from there.
"""

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

SIDE = 4096
GROUP = 128
ROTATED = 64 << 20
"""Bytes of all copies of a weight: twice the last cache."""

CACHED = 8 << 20
"""Bytes that are read again and again to see how fast the last cache is."""

WEIGHTS = {
    **{f"i{bits}": (bits, f"quant(i{bits}, scale=f16, group={GROUP}, axis=0)") for bits in range(8, 1, -1)},
    "mxfp4": (4, "mxfp4(axis=0)"),
    "nf4": (4, "nf4(axis=0)"),
    "f8e4m3": (8, "quant(f8e4m3, scale=f32, axis=0)"),
    "f8e5m2": (8, "quant(f8e5m2, scale=f32, axis=0)"),
}
"""Bits of a code, and how the format is declared."""

BY_BYTES = {f"{name} by i8": WEIGHTS[name] for name in ("i8", "i4")}
"""The same with x in codes of 8 bits, which the program makes."""

BYTES = "quant(i8, scale=f32, axis=1)"

PEERS = {
    "torch bf16": "PyTorch int4, x in bf16",
    "ort 0": "MatMulNBits, x in f32",
    "ort 4": "MatMulNBits, x in int8",
}
PAUSE = 0.05
"""Seconds in which threads of another library that wait for work go to sleep."""

PLACES = ("memory", "cache")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def timed(calls, place):
    """Seconds of one run: a mean over all copies, or over runs of the first one."""
    if place == "cache":
        calls = [calls[0]] * 5
        for _ in range(2):
            calls[0]()
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


def copies(size):
    """How many copies of so many bytes do not fit into the cache."""
    return max(2, -(-ROTATED // size))


# ---------------------------------------------------------------------- peers


def codes():
    """Codes, scales, one row and its exact product, the same in every process."""
    random = np.random.default_rng(2)
    q = random.integers(0, 16, (SIDE, SIDE), np.uint8)  # [columns, rows]
    scale = (random.random((SIDE, SIDE // GROUP)) * 0.1 + 0.01).astype(np.float32)
    x = random.standard_normal((1, SIDE)).astype(np.float32)
    wide = (q.astype(np.float32) - 8) * np.repeat(scale, GROUP, 1)
    return q, scale, x, x.astype(np.float64) @ wide.T.astype(np.float64)


def torch_calls(threads):
    """PyTorch's product for each type of x, as calls of copies."""
    import torch

    torch.set_num_threads(threads)
    q, scale, x, exact = codes()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(q.astype(np.int32)), 1)
    scales = torch.from_numpy(np.stack([scale.T, np.zeros_like(scale.T)], 2)).to(torch.bfloat16).contiguous()
    row, product = torch.from_numpy(x).to(torch.bfloat16), torch.ops.aten._weight_int4pack_mm_for_cpu
    found = product(row, packed, GROUP, scales).float().numpy()
    assert abs(found - exact).max() < 0.02 * abs(exact).max()
    weights = [packed.clone() for _ in range(copies(packed.numel()))]
    return torch.__version__, {"torch bf16": [partial(product, row, w, GROUP, scales) for w in weights]}


def ort_calls(threads):
    """ONNX Runtime's product for each accuracy level, as calls of sessions."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    q, scale, x, exact = codes()
    blocks = q.reshape(SIDE, SIDE // GROUP, GROUP)
    packed = blocks[..., 0::2] | (blocks[..., 1::2] << 4)
    found = {}
    for level, allowed in ((0, 1e-5), (4, 0.02)):
        attributes = {"K": SIDE, "N": SIDE, "bits": 4, "block_size": GROUP, "accuracy_level": level}
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, SIDE]) for n in "xy"]
        constants = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scale, "s")]
        graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False  # those of other sessions would spin meanwhile
        sessions = [
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(copies(packed.nbytes))
        ]
        assert abs(sessions[0].run(None, {"x": x})[0] - exact).max() < allowed * abs(exact).max()
        found[f"ort {level}"] = [partial(s.run, None, {"x": x}) for s in sessions]
    return onnxruntime.__version__, found


def worker(library, threads):
    """Answers `PEER PLACE` with the seconds of a run."""
    version, calls = {"torch": torch_calls, "ort": ort_calls}[library](threads)
    for place in PLACES:
        for own in calls.values():
            timed(own, place)
    print(version, flush=True)
    for line in sys.stdin:
        name, place = line.rstrip("\n").rsplit(" ", 1)
        print(timed(calls[name], place), flush=True)


class Peer:
    """A library in a process of its own, which answers lines with seconds."""

    def __init__(self, python, script, *arguments):
        command = [python, str(Path(__file__).resolve().parent / script), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.process.stdout.readline().strip()

    def seconds(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------------- ours


class Weights:
    """Copies of weights in each format, bound to products with one row."""

    def __init__(self):
        import intarsia

        random = np.random.default_rng(3)
        w = random.standard_normal((SIDE, SIDE)).astype(np.float32)
        self.x = random.standard_normal((1, SIDE)).astype(np.float32)
        self.calls = {"f32": [partial(plain_product().bind(w=w.copy()), self.x) for _ in range(copies(w.nbytes))]}
        self.bytes = {"f32": w.nbytes}
        rounded = intarsia.dequantize(intarsia.quantize(self.x, BYTES), BYTES)
        for name, (bits, declaration) in (WEIGHTS | BY_BYTES).items():
            parts = intarsia.quantize(w, declaration)
            scales = sum(array.nbytes for part, array in parts.items() if part != "codes")
            self.bytes[name] = w.size * bits // 8 + scales
            product = product_with(declaration, name in BY_BYTES)
            bound = [product.bind(w=parts) for _ in range(copies(self.bytes[name]))]
            x = rounded if name in BY_BYTES else self.x
            check(name, bound[0](self.x), x, intarsia.dequantize(parts, declaration))
            self.calls[name] = [partial(b, self.x) for b in bound]
        total = intarsia.compile("fn f(x: f32[N]) -> f32 { return sum(x) }").f
        large, small = np.ones(ROTATED // 4, np.float32), np.ones(CACHED // 4, np.float32)
        self.reading = {"memory": [partial(total, large)], "cache": [partial(total, small)]}
        for place in PLACES:
            for calls in (*self.calls.values(), self.reading[place]):
                timed(calls, place)


def plain_product():
    """The product with a constant f32 matrix."""
    import intarsia

    return intarsia.compile("fn f(x: f32[M, K], const w: f32[K, N]) -> f32[M, N] { return x @ w }").f


def product_with(declaration, by_bytes=False):
    """The product with a constant matrix of a format."""
    import intarsia

    left = "dequantize(quantize(x, bytes))" if by_bytes else "x"
    product = f"fn f(x: f32[M, K], const w: stored[K, N]) -> f32[M, N] {{ return {left} @ dequantize(w) }}"
    return intarsia.compile(f"format stored = {declaration}\nformat bytes = {BYTES}\n{product}").f


def check(name, found, x, values):
    """Stop where a product is wrong."""
    exact = x.astype(np.float64) @ values
    bound = abs(x.astype(np.float64)) @ abs(values) * SIDE * 2.0**-24
    assert (abs(found - exact) <= bound).all(), f"{name} is wrong"


def measure(weights, threads, turns, torch_python, ort_python):
    """Rows of results for so many threads, and the versions of the peers."""
    from intarsia.runtime.threads import THREADS

    THREADS.set(threads)
    script = Path(__file__).name
    torch, ort = (Peer(p, script, n, threads) for p, n in ((torch_python, "torch"), (ort_python, "ort")))
    rows = []
    for place in PLACES:
        taken = {name: [] for name in ("reading", *weights.calls, *PEERS)}
        for _ in range(turns):
            for name, calls in (("reading", weights.reading[place]), *weights.calls.items()):
                taken[name].append(timed(calls, place))
            time.sleep(PAUSE)
            for name in PEERS:
                peer = torch if name.startswith("torch") else ort
                taken[name].append(peer.seconds(name, place))
                time.sleep(PAUSE)
        speed = {"memory": ROTATED, "cache": CACHED}[place]
        for name, seconds in taken.items():
            if name != "reading":
                rows.append(_row(name, place, threads, seconds, taken, weights.bytes.get(name), speed))
                print(json.dumps(rows[-1]), flush=True)
    versions = {"torch": torch.version, "onnxruntime": ort.version}
    torch.close()
    ort.close()
    return rows, versions


def _row(name, place, threads, seconds, taken, size, read):
    """What is known of a product: medians, and medians of ratios within a turn."""
    row = {"case": name, "threads": threads, "place": place, "ours": name not in PEERS, "bytes": size}
    row |= {"seconds": statistics.median(seconds), "least": min(seconds)}
    row["f32"] = statistics.median(a / b for a, b in zip(taken["f32"], seconds))
    row["i4"] = statistics.median(a / b for a, b in zip(taken["i4"], seconds))
    if size is not None:
        row["share"] = statistics.median(r * size / read / b for r, b in zip(taken["reading"], seconds))
    return row


def curve(turns):
    """Seconds of the f32 and of the i4 product by the number of rows, on all threads."""
    import intarsia

    random = np.random.default_rng(4)
    w = random.standard_normal((SIDE, SIDE)).astype(np.float32)
    declaration = WEIGHTS["i4"][1]
    products = {"f32": plain_product().bind(w=w)}
    products["i4"] = product_with(declaration).bind(w=intarsia.quantize(w, declaration))
    points = []
    for rows in ROWS:
        x = random.standard_normal((rows, SIDE)).astype(np.float32)
        taken = {name: [] for name in products}
        for product in products.values():
            product(x)
        for _ in range(turns):
            for name, product in products.items():
                taken[name].append(timed([partial(product, x)], "cache"))
        point = {"rows": rows, **{name: statistics.median(seconds) for name, seconds in taken.items()}}
        point["speed"] = statistics.median(a / b for a, b in zip(taken["f32"], taken["i4"]))
        points.append(point)
        print(json.dumps(point), flush=True)
    return points


# ---------------------------------------------------------------------- pages

TABLE = """## Weights in few bits

One row by a constant matrix of {side}x{side}, in the same run; integers in groups of {group} rows with f16 scales.
{turns} turns; medians of them, and of the ratios within a turn. From memory: copies of the weights take turns that
together are {rotated} MiB; from the cache: the same one again and again. Of the bound: the time in which a program that
only adds numbers up reads as many bytes from there. PyTorch {torch} (`_weight_int4pack_mm_for_cpu`) and ONNX Runtime
{onnxruntime} (`MatMulNBits`, accuracy levels 0 and 4) have 4-bit codes in groups of {group}. With x in 8 bits, which takes the time of
rounding it in, the product is another one: `by i8` is to be compared with `MatMulNBits, x in int8`.

| weights | threads | from memory, ms | least | f32 / this | i4 / this | of the bound | from the cache, ms | least | f32 / this | i4 / this | of the bound |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}
"""


def table(about, rows):
    """The results as a section of a page."""
    places = {place: {(r["case"], r["threads"]): r for r in rows if r["place"] == place} for place in PLACES}
    lines = []
    for (name, threads), memory in places["memory"].items():
        cells = [PEERS.get(name, name), threads]
        for row in (memory, places["cache"][name, threads]):
            share = "–" if row["bytes"] is None else f"{row['share']:.2f}"
            cells += [
                f"{row['seconds'] * 1e3:.3f}",
                f"{row['least'] * 1e3:.3f}",
                f"{row['f32']:.1f}",
                f"{row['i4']:.2f}",
                share,
            ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return TABLE.format(**about, side=SIDE, group=GROUP, rotated=ROTATED >> 20, rows="\n".join(lines))


CURVE = """## More rows

The speed of the product with `i4` weights of {side}x{side}, in groups of {group}, against the f32 product, by the number
of rows; one copy of each, {cores} threads.

![i4 against f32](results/lowbit-rows.png)

| rows | f32, ms | i4, ms | speed |
|---|---|---|---|
{rows}
"""


def curve_page(about, points):
    """The curve as a section of a page, and its picture."""
    from plots import curves

    values = {"intarsia": [(p["rows"], p["speed"]) for p in points]}
    title = f"x @ dequantize(w), i4 {SIDE}x{SIDE}, against f32"
    curves(values, ["intarsia"], title, "f32 / i4", Path(__file__).parent / "results" / "lowbit-rows.png")
    lines = [f"| {p['rows']} | {p['f32'] * 1e3:.2f} | {p['i4'] * 1e3:.2f} | {p['speed']:.2f} |" for p in points]
    return CURVE.format(**about, side=SIDE, group=GROUP, rows="\n".join(lines))


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
