"""Plain C loops, `gcc -O3 -march=native -fopenmp`, into an output that is made once: the yardstick of STREAM."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = """
void triad(const double *restrict b, const double *restrict c, double *restrict a, long n) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; i++) a[i] = b[i] + 3.0 * c[i];
}
"""
LIBRARY = None


def setup(threads, variant):
    global LIBRARY
    folder = Path(tempfile.mkdtemp())
    (folder / "loops.c").write_text(SOURCE)
    target = folder / "loops.so"
    command = ["gcc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", target, folder / "loops.c"]
    subprocess.run(command, check=True)
    LIBRARY = ctypes.CDLL(str(target))


def version():
    return subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0]


def to_numpy(x):
    return x


def triad(b, c):
    out = np.empty_like(b)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (b, c, out)]
    n = ctypes.c_long(b.size)

    def run():
        LIBRARY.triad(*pointers, n)
        return out

    run.arrays = (b, c)  # alive as long as the pointers
    return run


BUILD = {"stream_triad": triad}
