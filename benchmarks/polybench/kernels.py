# ruff: noqa: E741, the sizes have the names of the language: I, J, …
"""The thirty kernels of PolyBench 4.2 (Pouchet and Yuki): sizes, inputs, and where both versions are found.

A kernel is a function of the same name in one file of examples/polybench, and `kernel` in one file of the folder c. In C
every array is a parameter, what is changed in place and what is only written included; sizes are macros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arguments = dict[str, Any]
Maker = Callable[..., Arguments]

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER.parent.parent / "examples" / "polybench"


@dataclass(frozen=True)
class Kernel:
    """One kernel. `make(random, **sizes)` gives its arguments, for both versions, in order."""

    name: str
    file: str
    sizes: Mapping[str, tuple[int, int, int]]
    """Each size at MINI, MEDIUM and LARGE."""
    make: Maker
    results: tuple[str, ...]
    """What C writes, in the order of our results: names of arguments, or of `made`."""
    made: Callable[..., Arguments]
    """What C gets besides: arrays for results and temporaries."""

    def at(self, dataset: str) -> dict[str, int]:
        """The sizes of a data set."""
        return {name: values[("MINI", "MEDIUM", "LARGE").index(dataset)] for name, values in self.sizes.items()}

    @property
    def source(self) -> Path:
        """The program in our language."""
        return EXAMPLES / f"{self.file}.ita"

    @property
    def c_source(self) -> Path:
        """The program in C."""
        return FOLDER / "c" / f"{self.name}.c"


class Random:
    """Random arrays, the same in every run. Their elements are about as large as a sum of a few of them."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)

    def triangle(self, n: int) -> Array:
        """A lower triangular matrix that is well conditioned."""
        return np.asarray(np.tril(self(n, n)) / n + np.eye(n))

    def definite(self, n: int) -> Array:
        """A symmetric positive definite matrix."""
        low = self.triangle(n)
        return np.asarray(low @ low.T)


KERNELS: dict[str, Kernel] = {}
Sizes = tuple[int, int, int]


def kernel(
    file: str, results: str, made: Callable[..., Arguments] | None = None, **sizes: Sizes
) -> Callable[[Maker], None]:
    """Put a function that makes the arguments into the table under its name."""

    def register(make: Maker) -> None:
        nothing: Callable[..., Arguments] = lambda **_: {}
        name = make.__name__
        KERNELS[name] = Kernel(name, file, sizes, make, tuple(results.split()), made or nothing)

    return register


SCALARS: Arguments = {"alpha": 1.5, "beta": 1.2}
SQUARE: Sizes = (40, 400, 2000)


@kernel("blas", "c", I=(20, 200, 1000), J=(25, 220, 1100), K=(30, 240, 1200))
def gemm(r: Random, I: int, J: int, K: int) -> Arguments:
    return {**SCALARS, "c": r(I, J), "a": r(I, K), "b": r(K, J)}


@kernel("blas", "a x w", N=SQUARE)
def gemver(r: Random, N: int) -> Arguments:
    return {**SCALARS, "a": r(N, N), **{name: r(N) for name in ("u1", "v1", "u2", "v2", "w", "x", "y", "z")}}


@kernel("blas", "result", lambda N: {"result": np.zeros(N)}, N=(30, 250, 1300))
def gesummv(r: Random, N: int) -> Arguments:
    return {**SCALARS, "a": r(N, N), "b": r(N, N), "x": r(N)}


@kernel("blas", "c", M=(20, 200, 1000), N=(30, 240, 1200))
def symm(r: Random, M: int, N: int) -> Arguments:
    return {**SCALARS, "c": r(M, N), "a": r(M, M), "b": r(M, N)}


@kernel("blas", "c", M=(20, 200, 1000), N=(30, 240, 1200))
def syrk(r: Random, M: int, N: int) -> Arguments:
    return {**SCALARS, "c": r(N, N), "a": r(N, M)}


@kernel("blas", "c", M=(20, 200, 1000), N=(30, 240, 1200))
def syr2k(r: Random, M: int, N: int) -> Arguments:
    return {**SCALARS, "c": r(N, N), "a": r(N, M), "b": r(N, M)}


@kernel("blas", "b", M=(20, 200, 1000), N=(30, 240, 1200))
def trmm(r: Random, M: int, N: int) -> Arguments:
    return {"alpha": 1.5, "a": r(M, M), "b": r(M, N)}


@kernel(
    "products",
    "d",
    lambda I, J, **_: {"t": np.zeros((I, J))},
    I=(16, 180, 800),
    J=(18, 190, 900),
    K=(22, 210, 1100),
    L=(24, 220, 1200),
)
def two_mm(r: Random, I: int, J: int, K: int, L: int) -> Arguments:
    return {**SCALARS, "a": r(I, K), "b": r(K, J), "c": r(J, L), "d": r(I, L)}


@kernel(
    "products",
    "result",
    lambda I, J, L, **_: {"result": np.zeros((I, L)), "e": np.zeros((I, J)), "f": np.zeros((J, L))},
    I=(16, 180, 800),
    J=(18, 190, 900),
    K=(20, 200, 1000),
    L=(22, 210, 1100),
    M=(24, 220, 1200),
)
def three_mm(r: Random, I: int, J: int, K: int, L: int, M: int) -> Arguments:
    return {"a": r(I, K), "b": r(K, J), "c": r(J, M), "d": r(M, L)}


@kernel("products", "result", lambda N, **_: {"result": np.zeros(N)}, M=(38, 390, 1900), N=(42, 410, 2100))
def atax(r: Random, M: int, N: int) -> Arguments:
    return {"a": r(M, N), "x": r(N)}


@kernel("products", "s q", lambda M, N: {"s": np.zeros(M), "q": np.zeros(N)}, M=(38, 390, 1900), N=(42, 410, 2100))
def bicg(r: Random, M: int, N: int) -> Arguments:
    return {"a": r(N, M), "p": r(M), "r": r(N)}


@kernel("products", "a", lambda P, **_: {"row": np.zeros(P)}, Q=(8, 40, 140), R=(10, 50, 150), P=(12, 60, 160))
def doitgen(r: Random, Q: int, R: int, P: int) -> Arguments:
    return {"a": r(R, Q, P), "c4": r(P, P)}


@kernel("products", "x1 x2", N=SQUARE)
def mvt(r: Random, N: int) -> Arguments:
    return {**{name: r(N) for name in ("x1", "x2", "y1", "y2")}, "a": r(N, N)}


@kernel("solvers", "a", N=SQUARE)
def cholesky(r: Random, N: int) -> Arguments:
    return {"a": r.definite(N)}


@kernel("solvers", "result", lambda N: {"result": np.zeros(N), "z": np.zeros(N)}, N=SQUARE)
def durbin(r: Random, N: int) -> Arguments:
    return {"r": 0.25 * np.tanh(r(N)) / np.arange(1, N + 1) ** 2}


@kernel(
    "solvers",
    "q r",
    lambda M, N: {"q": np.zeros((M, N)), "r": np.zeros((N, N))},
    M=(30, 240, 1200),
    N=(20, 200, 1000),
)
def gramschmidt(r: Random, M: int, N: int) -> Arguments:
    return {"a": r(M, N) + 4 * np.eye(M, N)}


@kernel("solvers", "a", N=SQUARE)
def lu(r: Random, N: int) -> Arguments:
    return {"a": r.triangle(N) @ r.triangle(N).T}


@kernel("solvers", "a result", lambda N: {"result": np.zeros(N), "y": np.zeros(N)}, N=SQUARE)
def ludcmp(r: Random, N: int) -> Arguments:
    return {"a": r.triangle(N) @ r.triangle(N).T, "b": r(N)}


@kernel("solvers", "result", lambda N: {"result": np.zeros(N)}, N=SQUARE)
def trisolv(r: Random, N: int) -> Arguments:
    return {"l": r.triangle(N), "b": r(N)}


@kernel(
    "datamining",
    "result",
    lambda M, **_: {"result": np.zeros((M, M)), "mean": np.zeros(M)},
    M=(28, 240, 1200),
    N=(32, 260, 1400),
)
def covariance(r: Random, M: int, N: int) -> Arguments:
    return {"data": r(N, M)}


@kernel(
    "datamining",
    "result",
    lambda M, **_: {"result": np.zeros((M, M)), "mean": np.zeros(M), "deviation": np.zeros(M)},
    M=(28, 240, 1200),
    N=(32, 260, 1400),
)
def correlation(r: Random, M: int, N: int) -> Arguments:
    return {"data": r(N, M)}


@kernel(
    "medley",
    "result",
    lambda W, H: {name: np.zeros((W, H)) for name in ("result", "forth", "back")},
    W=(64, 720, 4096),
    H=(64, 480, 2160),
)
def deriche(r: Random, W: int, H: int) -> Arguments:
    return {"image": r(W, H), "alpha": 0.25}


@kernel("medley", "d", N=(60, 500, 2800))
def floyd_warshall(r: Random, N: int) -> Arguments:
    return {"d": np.abs(r(N, N)) * (1 - np.eye(N))}


@kernel("medley", "result", lambda N: {"result": np.zeros((N, N), np.int32)}, N=(60, 500, 2500))
def nussinov(r: Random, N: int) -> Arguments:
    return {"base": r.rng.integers(0, 4, N, np.int32)}


@kernel(
    "stencils",
    "u",
    lambda N, T: {name: np.zeros((N, N)) for name in "vpq"},
    T=(20, 100, 500),
    N=(20, 200, 1000),
)
def adi(r: Random, N: int, T: int) -> Arguments:
    return {"u": r(N, N), "steps": T}


@kernel("stencils", "ex ey hz", T=(20, 100, 500), X=(20, 200, 1000), Y=(30, 240, 1200))
def fdtd_2d(r: Random, T: int, X: int, Y: int) -> Arguments:
    return {"ex": r(X, Y), "ey": r(X, Y), "hz": r(X, Y), "source": r(T)}


@kernel("stencils", "a", lambda N, T: {"b": np.zeros((N, N, N))}, T=(20, 100, 500), N=(10, 40, 120))
def heat_3d(r: Random, N: int, T: int) -> Arguments:
    return {"a": r(N, N, N), "steps": T}


@kernel("stencils", "a", lambda N, T: {"b": np.zeros(N)}, T=(20, 100, 500), N=(30, 400, 2000))
def jacobi_1d(r: Random, N: int, T: int) -> Arguments:
    return {"a": r(N), "steps": T}


@kernel("stencils", "a", lambda N, T: {"b": np.zeros((N, N))}, T=(20, 100, 500), N=(30, 250, 1300))
def jacobi_2d(r: Random, N: int, T: int) -> Arguments:
    return {"a": r(N, N), "steps": T}


@kernel("stencils", "a", T=(20, 100, 500), N=(40, 400, 2000))
def seidel_2d(r: Random, N: int, T: int) -> Arguments:
    return {"a": r(N, N), "steps": T}
