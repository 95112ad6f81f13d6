"""What the kernels for GPUs take of a chip: counted in their code, which needs no GPU.

    venv-intarsia/bin/python gpu.py [--target gpu:sm_90] [--out results/gpu-counted.json]

For each launch of each program: registers, shared memory, spills, instructions of matrix units, accesses of 16 bytes, and
the bytes that its programs load and store beside the bytes of what they touch. Times are "not measured" where no GPU
was reached; nothing is claimed about them.
"""

import argparse
import json
from pathlib import Path

from intarsia.backends.gpu.traffic import bytes_moved
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.sizes import product
from intarsia.options import Options

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "gpu-counted.json"

LONG_ROWS = dict(N=131072, D=4096)  # a gigabyte of bf16
PROGRAMS = {
    "matmul 4096": ("matmul", dict(M=4096, K=4096, N=4096)),
    "matmul 8192": ("matmul", dict(M=8192, K=8192, N=8192)),
    "matmul 16x4096x4096": ("matmul", dict(M=16, K=4096, N=4096)),
    "matmul 128x4096x4096": ("matmul", dict(M=128, K=4096, N=4096)),
    "matmul 2048x4096x4096": ("matmul", dict(M=2048, K=4096, N=4096)),
    "matmul, bias, gelu 4096": ("matmul_bias_gelu", dict(M=4096, K=4096, N=4096)),
    **{
        f"attention {kind} {length} d {width}": (kind, dict(H=16, S=length, D=width, **({"T": length} if kind == "full" else {})))
        for kind in ("full", "causal")
        for length in (4096, 16384)
        for width in (64, 128)
    },
    **{
        f"linear attention {length} d {width}": ("linear_attention", dict(H=128, S=length, D=width))
        for length in (4096, 16384)
        for width in (64, 128)
    },
    "linear attention, quadratic, 4096 d 64": ("linear_attention_quadratic", dict(H=128, S=4096, D=64)),
    "softmax": ("softmax_rows", dict(N=131072, M=4096)),
    "layer norm": ("norm", LONG_ROWS),
    "rms norm": ("rms", LONG_ROWS),
    "gelu chain": ("gelu_chain", LONG_ROWS),
    "decode attention": ("full", dict(H=16, S=1, T=32768, D=128)),
    "decode attention, 8 heads for each key": ("grouped", dict(H=4, G=8, T=32768, D=128)),
    "cross entropy 256x50304, d 1024": ("cross_entropy", dict(N=256, D=1024, V=50304)),
    "gemv 4096": ("gemv", dict(N=4096, M=4096)),
    "gru 64x512, 256 to 256": ("gru", dict(T=512, B=64, I=256, H=256)),
    "transformer block 8x1024, d 2048": ("block", dict(B=8, S=1024, D=2048, F=8192)),
}  # fmt: skip


def counted(function, sizes, target):
    """What is known of each launch of a program."""
    library = load(Source("gpu.ita", (HERE / "gpu.ita").read_text()))
    compilation = Compilation(library.build(function), sizes, Options(target=target))
    kernels = {k.name: k for part in compilation.plan.whole for k in part.kernels}
    rows = []
    for name, launches in compilation.launches.items():
        held = {b.name: product(b.extents).evaluate(sizes) * b.dtype.bytes for b in kernels[name].parameters}
        for launch, code in zip(launches, compilation.counted_code[name]):
            moved = bytes_moved(launch, sizes)
            found = code.resources
            rows.append(
                {
                    "launch": launch.name,
                    "programs": [n.evaluate(sizes) for n in launch.grid],
                    "blocks": dict(launch.constants),
                    "warps": found.warps,
                    "registers": found.registers,
                    "shared": found.shared,
                    "spilled": found.spilled,
                    "instructions": found.instructions,
                    "bytes loaded": sum(n for (_, writes), n in moved.items() if not writes),
                    "bytes loaded at least": sum(min(n, held[b]) for (b, writes), n in moved.items() if not writes),
                    "bytes stored": sum(n for (_, writes), n in moved.items() if writes),
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="gpu:sm_90")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    results = {}
    for name, (function, sizes) in PROGRAMS.items():
        launches = counted(function, sizes, arguments.target)
        results[name] = {"function": function, "sizes": sizes, "time": "not measured", "launches": launches}
        worst = max(launch["spilled"] for launch in launches)
        print(f"{name}: {len(launches)} launches, {worst or 'no'} bytes spilled", flush=True)
    arguments.out.write_text(json.dumps({"target": arguments.target, "programs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
