"""What it costs to run a program in several processes of MPI: two of them with one thread each beside one with two.

    python processes.py [--out results/processes.json]

Both wait for their turn without using a core, and take it in interleaved rounds. `collective` is the time of a step of a
loop with an all-reduce of 16 numbers in compiled code, beside that of `Allreduce` of mpi4py in the same processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROUNDS, SECONDS = 8, 0.6
COLLECTIVE = """mesh pod(d=2)

fn steps(x: f32[N@d, M], n: i64) -> f32[M] {
    return loop (h = zeros(f32[M])) for t < n { yield tensor[j < M](sum[i](minimum(x[i, j], h[j]))) }
}
"""


def heat(size, steps):
    def program(devices, mesh):
        import numpy as np

        import intarsia

        options = intarsia.Options(devices=devices or "one", mesh=mesh and "rows=2")
        plate = np.random.default_rng(0).standard_normal((size, size), np.float32)
        function = intarsia.load(ROOT / "examples" / "sharded" / "heat.ita", options).heat
        return lambda: function(plate, steps)

    return program


def minilm(mesh):
    def program(devices, given):
        sys.path.insert(0, str(ROOT / "examples"))
        import minilm as example
        import numpy as np

        import intarsia

        options = intarsia.Options(devices=devices or "one", mesh=given and mesh)
        weights = intarsia.read_weights(example.model_folder() / "model.safetensors")
        path = ROOT / "examples" / ("sharded/minilm.ita" if given else "minilm.ita")
        function = intarsia.load(path, options)["sentences" if given else "main"].bind(p=weights)
        ids = np.random.default_rng(0).integers(1000, 30000, (32, 64))
        mask = np.ones((32, 64), np.float32)
        return lambda: function(ids, mask)

    return program


PROGRAMS = {
    "MiniLM, batch 32 of 64 tokens, the batch split": minilm("data=2,model=1"),
    "MiniLM, batch 32 of 64 tokens, heads and features split": minilm("data=1,model=2"),
    "heat, 1024 x 1024, 200 steps": heat(1024, 200),
    "heat, 4096 x 4096, 16 steps": heat(4096, 16),
}


def count_for(call, seconds):
    """How many calls take so long."""
    start = time.perf_counter()
    call()
    return max(1, round(seconds / (time.perf_counter() - start)))


def serve(name, devices):
    """Answer each line of standard input by a line with the seconds of calls."""
    wait, first, share = lambda: sys.stdin.readline(), True, lambda count: count
    if devices is not None:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        first = world.rank == 0

        def wait():
            if first:
                sys.stdin.readline()
            request = world.Ibarrier()
            while not request.Test():
                time.sleep(0.001)

        def share(count):
            return world.bcast(count)

    call = PROGRAMS[name](devices, devices and True)
    call()
    call()
    count = share(count_for(call, SECONDS))
    for _ in range(ROUNDS + 1):
        wait()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        if first:
            print(json.dumps(seconds), flush=True)


def start(words, threads, processes=()):
    environment = {**os.environ, "INTARSIA_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [*processes, sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def mpiexec():
    own = Path(sys.executable).parent / "mpiexec"
    return [str(own) if own.exists() else "mpiexec", "-n", "2"]


def turn(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(name):
    one = start(["--serve", name], 2)
    two = start(["--serve", name, "--devices", "mpi"], 1, mpiexec())
    found = {"one": [], "two": []}
    for n in range(ROUNDS + 1):
        for who, process in (("one", one), ("two", two)):
            seconds = turn(process)
            if n:
                found[who].append(statistics.median(seconds))
    for process in (one, two):
        process.wait()
    medians = {who: statistics.median(s) for who, s in found.items()}
    return {
        "one process, two threads": medians["one"],
        "two processes": medians["two"],
        "speed of the two": medians["one"] / medians["two"],
        "rounds": found,
    }


def collective():
    """Run by each of two processes."""
    import numpy as np
    from mpi4py import MPI

    import intarsia

    world = MPI.COMM_WORLD
    function = intarsia.compile(COLLECTIVE, intarsia.Options(devices="mpi")).steps
    x = np.ones((2, 16), np.float32)
    given, taken, few, many = x[0].copy(), x[1].copy(), 1000, 11000

    def compiled(steps):
        start = time.perf_counter()
        function(x, steps)
        return time.perf_counter() - start

    def plain(steps):
        start = time.perf_counter()
        for _ in range(steps):
            world.Allreduce(given, taken)
        return time.perf_counter() - start

    found = {"step": [], "mpi4py": []}
    for n in range(ROUNDS + 1):
        for who, run in (("step", compiled), ("mpi4py", plain)):
            world.Barrier()
            short, long = run(few), run(many)
            if n:
                found[who].append((long - short) / (many - few))
    if world.rank == 0:
        medians = {who: statistics.median(s) for who, s in found.items()}
        print(json.dumps({**medians, "beyond mpi4py": medians["step"] - medians["mpi4py"], "rounds": found}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "processes.json")
    parser.add_argument("--only", default="", help="programs whose name begins so")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--devices", help=argparse.SUPPRESS)
    parser.add_argument("--collective", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.devices)
        return
    if given.collective:
        collective()
        return
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    if "collective".startswith(given.only):
        results["collective"] = json.loads(start(["--collective"], 1, mpiexec()).communicate()[0])
        print("collective", {k: v for k, v in results["collective"].items() if k != "rounds"})
    for name in PROGRAMS:
        if name.startswith(given.only):
            results[name] = compare(name)
            print(name, {k: v for k, v in results[name].items() if k != "rounds"})
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
