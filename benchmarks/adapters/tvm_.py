"""Apache TVM relax on llvm.  Default: TVM's own default CPU pipeline, no tuning (naive loops).
Variant tuned: MetaSchedule, from the database that `python -m adapters.tvm_ TRIALS WORKLOAD...` makes
(run it in venv-tvm, with TVM_NUM_THREADS=2)."""

import sys
import time
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

VARIANT, THREADS = "", 2
TensorInfo = getattr(relax, "TensorStructInfo", None) or relax.TensorType  # renamed after 0.25
DB = Path(__file__).resolve().parent.parent / "cache/tvm"


def setup(threads, variant):
    global VARIANT, THREADS
    VARIANT, THREADS = variant, threads
    if variant == "tuned":
        for n in list(BUILD):
            if not (DB / n / "database_workload.json").exists():
                del BUILD[n]


def version():
    return f"tvm {tvm.__version__} {VARIANT or 'default'}"


def to_numpy(x):
    return x.numpy()


def target():
    return tvm.target.Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 2})


def gelu(x):
    return op.nn.gelu_tanh(x)


def c(v):
    return relax.const(np.float32(v))


def chain10(x):
    t = op.maximum(op.add(op.multiply(x, c(1.1)), c(0.3)), c(-1))
    t = op.subtract(op.multiply(t, t), x)
    return op.add(op.multiply(op.exp(op.negative(op.abs(t))), c(0.5)), x)


def ln(x, g, b):
    return op.nn.layer_norm(x, g, b, axes=[-1], epsilon=1e-5)


def mlp(x, w1, b1, w2, b2):
    return op.add(op.matmul(gelu(op.add(op.matmul(x, w1), b1)), w2), b2)


def attention(q, k, v, s=1024, causal=False):
    t = op.multiply(op.matmul(q, op.permute_dims(k, [0, 2, 1])), c(0.125))
    if causal:
        t = op.add(t, relax.const(np.triu(np.full((s, s), -1e30, np.float32), 1)))
    return op.matmul(op.nn.softmax(t, -1), v)


def module(fn, inputs):
    bb = relax.BlockBuilder()
    args = [relax.Var(k, TensorInfo(v.shape, str(v.dtype))) for k, v in inputs.items()]
    with bb.function("main", args):
        with bb.dataflow():

            def emit(x):
                return bb.emit(x)

            v = bb.emit(bb.normalize(fn(*args)))
            out = bb.emit_output(v)
        bb.emit_func_output(out)
    mod = bb.finalize()
    return tvm.transform.Sequential(
        [
            relax.transform.Normalize(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(mod)


def build(fn, name):
    def make(**inputs):
        t = target()
        with t:
            mod = module(fn, inputs)
            if VARIANT == "tuned":
                from tvm.s_tir import meta_schedule as ms

                db = ms.database.JSONDatabase(work_dir=str(DB / name))
                with db, tvm.transform.PassContext(opt_level=3):
                    mod = relax.transform.MetaScheduleApplyDatabase()(mod)
            exe = relax.build(mod, target=t)
        vm = relax.VirtualMachine(exe, tvm.cpu())
        args = [tvm.runtime.tensor(v) for v in inputs.values()]
        f = vm["main"]
        return lambda: f(*args)

    return make


mm = lambda a, b: op.matmul(a, b)
FUNCS = {
    **dict.fromkeys(("mm_512", "mm_1024", "gemv_4096", "mm_128x768x3072"), mm),
    "gelu_scale_bias": lambda x, s, b: gelu(op.add(op.multiply(x, s), b)),
    "chain10_16M": chain10,
    "softmax_4096": lambda x: op.nn.softmax(x, -1),
    "layernorm_4096x1024": ln,
    "rmsnorm_4096": lambda x, g: op.nn.rms_norm(x, g, axes=[-1], epsilon=1e-5),
    "sum_axis0_4096": lambda x: op.sum(x, 0),
    "sum_axis1_4096": lambda x: op.sum(x, 1),
    "mlp": mlp,
    "attention": attention,
    "conv3x3_64": lambda x, w: op.nn.conv2d(x, w, strides=1, padding=1),
    "transpose_4096": lambda x: op.permute_dims(x, [1, 0]),
    "gather_4096": lambda t, i: op.take(t, i, axis=0),
}
BUILD = {n: build(f, n) for n, f in FUNCS.items()}


def tune(name, trials):
    sys.path.insert(0, str(DB.parent.parent))
    from tvm.s_tir import meta_schedule as ms
    from workloads import WORKLOADS

    inputs, _ = WORKLOADS[name].data()
    t0 = time.time()
    with target():
        mod = module(FUNCS[name], inputs)
        (DB / name).mkdir(parents=True, exist_ok=True)
        ms.relax_integration.tune_relax(
            mod=mod,
            params={},
            target=target(),
            work_dir=str(DB / name),
            max_trials_global=trials,
            num_trials_per_iter=32,
            cost_model="xgb",
        )
    print(f"TUNED {name} trials {trials} seconds {time.time() - t0:.1f}", flush=True)


if __name__ == "__main__":
    for n in sys.argv[2:]:
        tune(n, int(sys.argv[1]))
