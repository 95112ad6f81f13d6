"""The thirty kernels of PolyBench in NumPy and SciPy, by formulas and library functions where there are any.

Each function takes the arguments of its kernel by name and gives the results in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Results = list[Array]

REFERENCES: dict[str, Callable[..., Results]] = {}


def reference(function: Callable[..., Results]) -> Callable[..., Results]:
    REFERENCES[function.__name__] = function
    return function


@reference
def gemm(alpha: float, beta: float, c: Array, a: Array, b: Array) -> Results:
    return [alpha * a @ b + beta * c]


@reference
def gemver(
    alpha: float, beta: float, a: Array, u1: Array, v1: Array, u2: Array, v2: Array, **vectors: Array
) -> Results:
    changed = a + np.outer(u1, v1) + np.outer(u2, v2)
    x = vectors["x"] + beta * changed.T @ vectors["y"] + vectors["z"]
    return [changed, x, vectors["w"] + alpha * changed @ x]


@reference
def gesummv(alpha: float, beta: float, a: Array, b: Array, x: Array) -> Results:
    return [(alpha * a + beta * b) @ x]


@reference
def symm(alpha: float, beta: float, c: Array, a: Array, b: Array) -> Results:
    return [alpha * (np.tril(a) + np.tril(a, -1).T) @ b + beta * c]


@reference
def syrk(alpha: float, beta: float, c: Array, a: Array) -> Results:
    return [np.tril(alpha * a @ a.T + beta * c) + np.triu(c, 1)]


@reference
def syr2k(alpha: float, beta: float, c: Array, a: Array, b: Array) -> Results:
    return [np.tril(alpha * (a @ b.T + b @ a.T) + beta * c) + np.triu(c, 1)]


@reference
def trmm(alpha: float, a: Array, b: Array) -> Results:
    return [alpha * (np.tril(a, -1) + np.eye(len(a))).T @ b]


@reference
def two_mm(alpha: float, beta: float, a: Array, b: Array, c: Array, d: Array) -> Results:
    return [alpha * (a @ b @ c) + beta * d]


@reference
def three_mm(a: Array, b: Array, c: Array, d: Array) -> Results:
    return [a @ b @ c @ d]


@reference
def atax(a: Array, x: Array) -> Results:
    return [(a.T @ a) @ x]


@reference
def bicg(a: Array, p: Array, r: Array) -> Results:
    return [r @ a, a @ p]


@reference
def doitgen(a: Array, c4: Array) -> Results:
    return [np.einsum("rqs,sp->rqp", a, c4)]


@reference
def mvt(x1: Array, x2: Array, y1: Array, y2: Array, a: Array) -> Results:
    return [x1 + a @ y1, x2 + y2 @ a]


@reference
def cholesky(a: Array) -> Results:
    return [np.linalg.cholesky(a) + np.triu(a, 1)]


@reference
def durbin(r: Array) -> Results:
    from scipy.linalg import solve_toeplitz

    return [solve_toeplitz(np.concatenate(([1.0], r[:-1])), -r)]


@reference
def gramschmidt(a: Array) -> Results:
    q, r = np.linalg.qr(a)
    signs = np.sign(np.diag(r))
    return [q * signs, r * signs[:, None]]


@reference
def lu(a: Array) -> Results:
    m = a.copy()
    for k in range(1, len(m)):  # the k-th row and column, bordering what is done (Doolittle)
        m[k, :k] = np.linalg.solve(np.triu(m[:k, :k]).T, m[k, :k])
        m[:k, k] = np.linalg.solve(np.tril(m[:k, :k], -1) + np.eye(k), m[:k, k])
        m[k, k] -= m[k, :k] @ m[:k, k]
    return [m]


@reference
def ludcmp(a: Array, b: Array) -> Results:
    return [*lu(a), np.linalg.solve(a, b)]


@reference
def trisolv(l: Array, b: Array) -> Results:  # noqa: E741, the parameter's name
    return [np.linalg.solve(np.tril(l), b)]


@reference
def covariance(data: Array) -> Results:
    return [np.cov(data.T)]


@reference
def correlation(data: Array) -> Results:
    return [np.corrcoef(data.T)]


@reference
def deriche(image: Array, alpha: float) -> Results:
    from scipy.signal import lfilter

    e = np.exp(-alpha)
    k = (1 - e) ** 2 / (1 + 2 * alpha * e - np.exp(-2 * alpha))
    denominator = [1, -2 * e, np.exp(-2 * alpha)]

    def both(x: Array, axis: int) -> Array:
        forth = lfilter([k, k * e * (alpha - 1)], denominator, x, axis)
        back = lfilter([0, k * e * (alpha + 1), -k * np.exp(-2 * alpha)], denominator, np.flip(x, axis), axis)
        return np.asarray(forth + np.flip(back, axis))

    return [both(both(image, 1), 0)]


@reference
def floyd_warshall(d: Array) -> Results:
    from scipy.sparse.csgraph import floyd_warshall as shortest

    return [shortest(d)]


@reference
def nussinov(base: Array) -> Results:
    n = len(base)
    best = np.zeros((n, n), np.int32)
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            pair = base[i] + base[j] == 3 if length > 1 else 0
            split = best[i, i:j] + best[i + 1 : j + 1, j]
            best[i, j] = max(best[i + 1, j - 1] + pair, split.max())
    return [best]


@reference
def adi(u: Array, steps: int) -> Results:
    from scipy.linalg import solve_banded

    n, u = len(u), u.copy()
    across = n * n / (2 * steps)

    def half(x: Array, weight: float, other: float) -> Array:
        """Solve along the first dimension: the second difference there is new, the one across is old."""
        right = x[1:-1, 1:-1] + other * (x[1:-1, :-2] - 2 * x[1:-1, 1:-1] + x[1:-1, 2:])
        right[[0, -1]] += weight  # the boundary is 1
        bands = np.repeat([[-weight], [1 + 2 * weight], [-weight]], n - 2, axis=1)
        result = np.ones((n, n))
        result[1:-1, 1:-1] = solve_banded((1, 1), bands, right)
        return result

    for _ in range(steps):
        v = half(u, 2 * across, across)
        u[1:-1] = half(v.T, across, 2 * across).T[1:-1]
    return [u]


@reference
def fdtd_2d(ex: Array, ey: Array, hz: Array, source: Array) -> Results:
    ex, ey, hz = ex.copy(), ey.copy(), hz.copy()
    for value in source:
        ey[0] = value
        ey[1:] -= 0.5 * np.diff(hz, axis=0)
        ex[:, 1:] -= 0.5 * np.diff(hz, axis=1)
        hz[:-1, :-1] -= 0.7 * (np.diff(ex, axis=1)[:-1] + np.diff(ey, axis=0)[:, :-1])
    return [ex, ey, hz]


@reference
def heat_3d(a: Array, steps: int) -> Results:
    x, inner = a.copy(), (slice(1, -1),) * 3
    for _ in range(2 * steps):
        x[inner] += 0.125 * sum(np.roll(x, 1, d) - 2 * x + np.roll(x, -1, d) for d in range(3))[inner]  # type: ignore[index]
    return [x]


@reference
def jacobi_1d(a: Array, steps: int) -> Results:
    x = a.copy()
    for _ in range(2 * steps):
        x[1:-1] = 0.33333 * np.convolve(x, np.ones(3), "valid")
    return [x]


@reference
def jacobi_2d(a: Array, steps: int) -> Results:
    x = a.copy()
    for _ in range(2 * steps):
        x[1:-1, 1:-1] = 0.2 * (x[1:-1, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] + x[2:, 1:-1] + x[:-2, 1:-1])
    return [x]


@reference
def seidel_2d(a: Array, steps: int) -> Results:
    from scipy.signal import lfilter

    x = a.copy()
    for _ in range(steps):
        for i in range(1, len(x) - 1):  # along a row, the new value to the left enters with weight 1/9
            known = x[i - 1, :-2] + x[i - 1, 1:-1] + x[i - 1, 2:] + x[i, 1:-1] + x[i, 2:]
            known += x[i + 1, :-2] + x[i + 1, 1:-1] + x[i + 1, 2:]
            x[i, 1:-1] = lfilter([1 / 9], [1, -1 / 9], known, zi=[x[i, 0] / 9])[0]
    return [x]
