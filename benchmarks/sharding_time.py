"""How long it takes to split a transformer of many layers over many devices, and the memory that takes.

    python benchmarks/sharding_time.py [LAYERS …]

One core. The passes are `propagate-sharding`, `reshard` and `partition`, on a forward pass with the weights of each
layer as parameters of their own; building the program and making it simple are not counted.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter

from intarsia.deep_stack import with_deep_stack
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.ops import Collective
from intarsia.ir.sharding import Mesh
from intarsia.options import Options
from intarsia.passes.pipeline import Context, Pipeline
from intarsia.passes.shard.meshes import with_mesh
from intarsia.passes.specialize import specialize

MESHES = ("data=2,model=4", "data=32,model=64", "data=128,model=64")

SIZES = {"B": 512, "S": 2048, "D": 8192, "H": 64, "K": 128, "F": 32768}

BLOCK = """
  n{l} = rms_norm(h{l}, g{l})
  q{l} = einsum("bsd,dhk->bhsk", n{l}, wq{l})
  k{l} = einsum("bsd,dhk->bhsk", n{l}, wk{l})
  v{l} = einsum("bsd,dhk->bhsk", n{l}, wv{l})
  a{l} = h{l} + einsum("bhsk,hkd->bsd", attention(q{l}, k{l}, v{l}, causal=true), wo{l})
  h{next} = a{l} + gelu(rms_norm(a{l}, c{l}) @ up{l}) @ down{l}"""

PARAMETERS = (
    "g{l}: f32[D], wq{l}: f32[D, H@model, K], wk{l}: f32[D, H@model, K], wv{l}: f32[D, H@model, K], "
    "wo{l}: f32[H@model, K, D], c{l}: f32[D], up{l}: f32[D, F@model], down{l}: f32[F@model, D]"
)


def transformer(layers: int) -> Module:
    """The program of so many blocks, with shardings of its weights and batch."""
    parameters = ", ".join(PARAMETERS.format(l=n) for n in range(layers))
    body = "".join(BLOCK.format(l=n, next=n + 1) for n in range(layers))
    text = f"mesh pod(data=32, model=64)\nfn f(h0: f32[B@data, S, D], {parameters}) {{{body}\n  return h{layers}\n}}"
    return specialize(load(Source("transformer.ita", text)).build(dims=SIZES), SIZES)


def measure(layers: int) -> None:
    """Print a line for each mesh."""
    context = Context(Options().resolve_target())
    module = Pipeline.parse("canonicalize,cse,dce").run(transformer(layers), context)
    nodes = sum(1 for _ in module.graph.body.walk())
    for mesh in MESHES:
        local = with_mesh(module, Mesh.parse(mesh))
        seconds = []
        for name in ("propagate-sharding", "reshard", "partition"):
            start = time.perf_counter()
            local = Pipeline.parse(name).run(local, context)
            seconds.append(time.perf_counter() - start)
        sent = Counter(n.name for n in local.graph.body.walk() if isinstance(n, Collective))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        each = " + ".join(f"{s:.2f}" for s in seconds)
        devices = Mesh.parse(mesh).devices
        print(
            f"{layers} layers, {nodes} nodes, {devices} devices: {each} = {sum(seconds):.2f} s, {peak:.0f} MB, {dict(sent)}"
        )


if __name__ == "__main__":
    for count in [int(word) for word in sys.argv[1:]] or [24, 48, 96]:
        with_deep_stack(lambda count=count: measure(count))  # as the driver does
