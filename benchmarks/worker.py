"""Runs one peer in its own process and virtual environment, on commands from bench.py.

    python worker.py ADAPTER THREADS      commands and answers are JSON lines on stdin / stdout

`prepare W` builds the workload, times the first call (compile included) and checks its result
against the float64 reference; `time W` returns samples in seconds per call; `drop` frees it.
"""

import gc
import importlib
import json
import math
import os
import sys
import time
import traceback

import numpy as np
from workloads import WORKLOADS

MIN_SAMPLE_S = 2e-3  # short calls are repeated inside one sample


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints goes to stderr
    name, threads = sys.argv[1], int(sys.argv[2])
    module, _, variant = name.partition(":")
    t0 = time.perf_counter()
    adapter = importlib.import_module("adapters." + module)
    adapter.setup(threads, variant)
    reply = lambda **k: print(json.dumps(k), file=out, flush=True)
    reply(ready=True, import_s=time.perf_counter() - t0, version=adapter.version(), workloads=sorted(adapter.BUILD))
    run = None
    for line in sys.stdin:
        cmd = json.loads(line)
        try:
            if cmd["do"] == "prepare":
                w = WORKLOADS[cmd["workload"]]
                inputs, ref = w.data()
                t0 = time.perf_counter()
                run = adapter.BUILD[w.name](**inputs)
                build_s = time.perf_counter() - t0
                t0 = time.perf_counter()
                result = run()
                first_s = time.perf_counter() - t0
                got = np.asarray(adapter.to_numpy(result)).astype(np.float64).reshape(ref.shape)
                err = float(np.abs(got - ref).max() / np.abs(ref).max())
                del got, ref, inputs, result
                t0 = time.perf_counter()
                run()
                run()  # warm-up
                t = (time.perf_counter() - t0) / 2
                if not (err <= w.tol):
                    run = None
                    reply(error=f"wrong result: relative error {err:.3g} > {w.tol}", err=err)
                else:
                    reply(ok=True, build_s=build_s, first_s=first_s, err=err, call_s=t)
            elif cmd["do"] == "time":
                t0 = time.perf_counter()
                run()
                t1 = time.perf_counter()
                inner = max(1, math.ceil(MIN_SAMPLE_S / max(t1 - t0, 1e-7)))
                samples, end = [], t1 + cmd["budget_s"]
                while len(samples) < cmd["max_samples"] and (
                    time.perf_counter() < end or len(samples) < cmd["min_samples"]
                ):
                    t0 = time.perf_counter()
                    for _ in range(inner):
                        run()
                    samples.append((time.perf_counter() - t0) / inner)
                reply(samples=samples, inner=inner)
            elif cmd["do"] == "drop":
                run = None
                gc.collect()
                reply(ok=True)
        except Exception as e:  # a peer's failure on one workload is a result too
            traceback.print_exc()
            run = None
            gc.collect()
            reply(error=f"{type(e).__name__}: {str(e)[:400]}")


main()
