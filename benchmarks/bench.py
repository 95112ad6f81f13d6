"""Times every peer on every workload, side by side.

    python bench.py [--peers a,b] [--workloads x,y] [--threads 1,2] [--merge] [--out results.json]

Each peer runs in a process of its own (its virtual environment, its thread settings).  For one
workload all peers are prepared first (compile + check), then timed in interleaved rounds; before
each batch a short FMA probe waits until the machine's cores are really free.
To add a peer: write adapters/NAME.py (see adapters/numpy_.py) and add a line to PEERS.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
LLVM = HERE / "llvm19/usr/lib"
CLANG_ENV = {
    "LD_LIBRARY_PATH": f"{LLVM}/x86_64-linux-gnu:{LLVM}/llvm-19/lib",
    "PATH": f"{LLVM}/llvm-19/bin:{os.environ['PATH']}",
    "CACHEDB": str(HERE / "cache/tinygrad.db"),
}
# name: (adapter[:variant], virtual environment, extra environment, pinned to one core when single-threaded)
PEERS = {
    "intarsia": ("intarsia_", "intarsia", {}, True),
    "c": ("c_", "misc", {}, True),
    "numpy": ("numpy_", "misc", {}, True),
    "torch": ("torch_:eager", "torch", {}, True),
    "torch.compile": ("torch_:compile", "torch", {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}, True),
    "torch.max": ("torch_:max", "torch", {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}, True),
    "jax": ("jax_", "jax", {"JAX_PLATFORMS": "cpu"}, True),
    "numba": ("numba_", "misc", {}, True),
    "numexpr": ("numexpr_", "misc", {}, True),
    "onnxruntime": ("onnxruntime_", "misc", {}, True),
    "openvino": ("openvino_", "openvino", {}, True),
    "tinygrad": ("tinygrad_", "tinygrad", {**CLANG_ENV, "DEV": "CPU:LLVM"}, False),
    "tinygrad.clang": ("tinygrad_", "tinygrad", {**CLANG_ENV, "DEV": "CPU:CLANG"}, False),
    "tinygrad.beam2": ("tinygrad_:beam2", "tinygrad", {**CLANG_ENV, "DEV": "CPU:LLVM", "BEAM": "2"}, False),
    "tvm": ("tvm_", "tvm25", {}, True),
    "tvm.tuned": ("tvm_:tuned", "tvm25", {}, True),
    "halide": ("halide_", "halide", {}, True),
    "halide.mullapudi": ("halide_:Mullapudi2016", "halide", {}, True),
    "taichi": ("taichi_", "taichi", {}, True),
}
# One memory setting for all: freed memory is kept and backed by huge pages, so that a call that
# allocates its result does not pay page faults each time.  --malloc=default leaves glibc as it is.
WARM_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
}
DEFAULT_MALLOC = {"intarsia"}  # has a pool of results of its own, and is measured as users get it
ROUNDS, ROUND_BUDGET_S, ROUND_SAMPLES = 5, 0.25, 15


class Peer:
    def __init__(self, name, threads, malloc):
        adapter, venv, extra, pin = PEERS[name]
        n = str(threads)
        env = {
            **os.environ,
            **dict.fromkeys(
                (
                    "OMP_NUM_THREADS",
                    "MKL_NUM_THREADS",
                    "OPENBLAS_NUM_THREADS",
                    "NUMBA_NUM_THREADS",
                    "NUMEXPR_NUM_THREADS",
                    "NUMEXPR_MAX_THREADS",
                    "INTARSIA_NUM_THREADS",
                    "TVM_NUM_THREADS",
                    "HL_NUM_THREADS",
                    "NUM_CPU_THREADS",
                ),
                n,
            ),
            **(WARM_MALLOC if malloc == "warm" and name not in DEFAULT_MALLOC else {}),
            **extra,
        }
        if threads == 1 and pin:
            env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        (HERE / "logs").mkdir(exist_ok=True)
        self.name, self.log = name, open(HERE / f"logs/{name}.{threads}.log", "w")
        cmd = [str(HERE / f"venv-{venv}/bin/python"), str(HERE / "worker.py"), adapter, n]
        if threads == 1 and pin:
            cmd = ["taskset", "-c", "1"] + cmd
        self.p = subprocess.Popen(
            cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env, cwd=HERE
        )
        self.info = self.read()

    def read(self):
        line = self.p.stdout.readline()
        return json.loads(line) if line else {"error": f"process ended, code {self.p.wait()}"}

    def ask(self, **cmd):
        if self.p.poll() is not None:
            return {"error": "process gone"}
        self.p.stdin.write(json.dumps(cmd) + "\n")
        self.p.stdin.flush()
        return self.read()

    def close(self):
        if self.p.poll() is None:
            self.p.stdin.close()
            try:
                self.p.wait(20)
            except subprocess.TimeoutExpired:
                self.p.kill()


def probe(threads):
    """GFLOP/s of a few milliseconds of FMAs on `threads` cores."""
    o = subprocess.run([HERE / "hw/probe", str(threads)], capture_output=True, text=True).stdout
    return float(o or 0)


def wait_quiet(threads, best, tries=25):
    """Waits until the probe reaches 93% of the best seen; returns what it reached, in GFLOP/s."""
    for _ in range(tries):
        g = probe(threads)
        if g >= 0.93 * best:
            break
        time.sleep(0.1)
    return g


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--peers", default=",".join(PEERS))
    ap.add_argument("--workloads", default=",".join(WORKLOADS))
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--malloc", default="warm", choices=("warm", "default"))
    ap.add_argument("--merge", action="store_true", help="keep what --out holds and replace only what is measured now")
    ap.add_argument("--out", default=str(HERE / "results" / "cpu-zen5-2cores.json"))
    args = ap.parse_args()
    out = Path(args.out)
    db = json.loads(out.read_text()) if args.merge and out.exists() else {"peers": {}, "results": []}
    for threads in map(int, args.threads.split(",")):
        best = max(probe(threads) for _ in range(10))
        peers = {}
        for name in args.peers.split(","):
            p = Peer(name, threads, args.malloc)
            if "error" in p.info:
                print(f"{name}: {p.info['error']} (see logs/)", flush=True)
                continue
            peers[name] = p
            db["peers"][name] = {k: p.info[k] for k in ("version", "import_s")}
        for wname in args.workloads.split(","):
            rows = {}
            for name, p in peers.items():
                if wname not in p.info["workloads"]:
                    continue
                r = p.ask(do="prepare", workload=wname)
                rows[name] = {
                    "workload": wname,
                    "peer": name,
                    "threads": threads,
                    "malloc": args.malloc,
                    **{k: r[k] for k in ("build_s", "first_s", "err", "error", "call_s") if k in r},
                    "samples": [],
                    "probe_gflops": [],
                }
            live = [n for n in rows if "error" not in rows[n]]
            for rnd in range(ROUNDS):
                for name in live[rnd % max(1, len(live)) :] + live[: rnd % max(1, len(live))]:
                    row = rows[name]
                    slow = row["call_s"] > 0.2
                    row["probe_gflops"].append(round(wait_quiet(threads, best), 1))
                    r = peers[name].ask(
                        do="time",
                        budget_s=ROUND_BUDGET_S,
                        max_samples=ROUND_SAMPLES,
                        min_samples=1 if row["call_s"] > 1 else 2 if slow else 5,
                    )
                    row["samples"] += r.get("samples", [])
                    if "error" in r:
                        row["error"] = r["error"]
            for name in rows:
                peers[name].ask(do="drop")
                row = rows[name]
                if row["samples"]:
                    row["median_ms"] = statistics.median(row["samples"]) * 1e3
                    row["min_ms"] = min(row["samples"]) * 1e3
                row["samples"] = [round(s * 1e3, 5) for s in row["samples"]]
                row.pop("call_s", None)
            db["results"] = [
                r
                for r in db["results"]
                if (r["workload"], r["threads"], r["malloc"]) != (wname, threads, args.malloc) or r["peer"] not in rows
            ] + list(rows.values())
            out.write_text(json.dumps(db, indent=0))
            print(
                time.strftime("%H:%M:%S"),
                f"t{threads} {wname:20}",
                "  ".join(f"{n} {r['median_ms']:.3g}" if "median_ms" in r else f"{n} ERR" for n, r in rows.items()),
                flush=True,
            )
        for p in peers.values():
            p.close()


if __name__ == "__main__":
    main()
