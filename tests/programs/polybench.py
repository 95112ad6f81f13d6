"""The kernels of PolyBench (Pouchet and Yuki), their loops written in NumPy."""

from __future__ import annotations

import numpy as np
from case import Array, Case, Random, program


@program(n=(7, 17, 1, 0))
def two_mm(r: Random, n: int) -> Case:
    a, b, c, d = r.f64(n, n + 1), r.f64(n + 1, 5), r.f64(5, n), r.f64(n, n)
    return Case([1.5, 0.5, a, b, c, d], [1.5 * a @ b @ c + 0.5 * d])


@program(n=(7, 18, 1, 0))
def three_mm(r: Random, n: int) -> Case:
    a, b, c, d = r.f64(n, 4), r.f64(4, n + 2), r.f64(n + 2, 6), r.f64(6, n)
    return Case([a, b, c, d], [(a @ b) @ (c @ d)])


@program(n=(9, 33, 0))
def atax(r: Random, n: int) -> Case:
    a, x = r.f64(n, 7), r.f64(7)
    return Case([a, x], [a.T @ (a @ x)])


@program(n=(9, 40, 0))
def bicg(r: Random, n: int) -> Case:
    a, p, s = r.f64(n, 6), r.f64(6), r.f64(n)
    return Case([a, p, s], [a.T @ s, a @ p])


@program(n=(11, 40, 1))
def mvt(r: Random, n: int) -> Case:
    x1, x2, y1, y2, a = r.f64(n), r.f64(n), r.f64(n), r.f64(n), r.f64(n, n)
    return Case([x1, x2, y1, y2, a], [x1 + a @ y1, x2 + a.T @ y2])


@program(n=(9, 35, 1, 0))
def gemver(r: Random, n: int) -> Case:
    a, u1, v1, u2, v2, y, z = r.f64(n, n), *(r.f64(n) for _ in range(6))
    b = a + np.outer(u1, v1) + np.outer(u2, v2)
    x = 0.5 * b.T @ y + z
    return Case([1.5, 0.5, a, u1, v1, u2, v2, y, z], [b, x, 1.5 * b @ x])


@program(n=(9, 35))
def gesummv(r: Random, n: int) -> Case:
    a, b, x = r.f64(n, n), r.f64(n, n), r.f64(n)
    return Case([1.5, 0.5, a, b, x], [1.5 * a @ x + 0.5 * b @ x])


@program(n=(7, 20, 1, 0))
def syrk(r: Random, n: int) -> Case:
    c, a = r.f64(n, n), r.f64(n, 5)
    return Case([1.5, 0.5, c, a], [np.where(np.tri(n, dtype=bool), 0.5 * c + 1.5 * a @ a.T, c)])


@program(n=(7, 20))
def syr2k(r: Random, n: int) -> Case:
    c, a, b = r.f64(n, n), r.f64(n, 5), r.f64(n, 5)
    return Case([1.5, 0.5, c, a, b], [np.where(np.tri(n, dtype=bool), 0.5 * c + 1.5 * (a @ b.T + b @ a.T), c)])


@program(n=(7, 20, 1))
def trmm(r: Random, n: int) -> Case:
    a, b = r.f64(n, n), r.f64(n, 6)
    return Case([1.5, a, b], [1.5 * (b + np.tril(a, -1).T @ b)])


@program(n=(7, 20, 1))
def symm(r: Random, n: int) -> Case:
    a, b, c = r.f64(n, n), r.f64(n, 6), r.f64(n, 6)
    full = np.tril(a) + np.tril(a, -1).T
    return Case([1.5, 0.5, a, b, c], [0.5 * c + 1.5 * full @ b])


@program(n=(4, 17))
def doitgen(r: Random, n: int) -> Case:
    a, c4 = r.f64(3, n, 5), r.f64(5, 5)
    return Case([a, c4], [a @ c4])


@program(n=(6, 25, 1, 0))
def cholesky(r: Random, n: int) -> Case:
    a = r.f64(n, n)
    a = a @ a.T + n * np.eye(n)
    return Case([a], [np.linalg.cholesky(a) if n else a])


@program(n=(6, 25, 1, 0))
def lu(r: Random, n: int) -> Case:
    a = r.f64(n, n) + n * np.eye(n)
    m = a.copy()
    for k in range(n):
        m[k + 1 :, k] /= m[k, k]
        m[k + 1 :, k + 1 :] -= np.outer(m[k + 1 :, k], m[k, k + 1 :])
    return Case([a], [m])


@program(n=(8, 40, 1, 0))
def trisolv(r: Random, n: int) -> Case:
    low, b = np.tril(r.f64(n, n)) + 3 * np.eye(n), r.f64(n)
    return Case([low, b], [np.linalg.solve(low, b)])


@program(n=(7, 20, 1))
def durbin(r: Random, n: int) -> Case:
    from scipy.linalg import toeplitz

    row = 0.5 ** np.arange(1, n + 1) * (1 + 0.1 * r.f64(n))
    matrix = toeplitz(np.concatenate(([1.0], row[: n - 1])))
    return Case([row], [np.linalg.solve(matrix, -row)])


@program(n=(5, 12, 1))
def gramschmidt(r: Random, n: int) -> Case:
    a = r.f64(n + 3, n)
    q, upper = np.linalg.qr(a)
    signs = np.sign(np.diag(upper))
    return Case([a], [q * signs, upper * signs[:, None]])


@program(n=(8, 30))
def correlation(r: Random, n: int) -> Case:
    data = r.f64(n, 5)
    data[:, 2] = 3.0  # no deviation
    wanted = np.zeros((5, 5))
    keep = np.array([0, 1, 3, 4])
    wanted[np.ix_(keep, keep)] = np.corrcoef(data[:, keep].T)
    wanted[2, 2] = 1.0
    return Case([data], [wanted])


@program(n=(8, 30))
def covariance(r: Random, n: int) -> Case:
    data = r.f64(n, 5)
    return Case([data], [np.cov(data.T)])


@program(n=(9, 50, 2, 9), steps=(3, 20, 3, 0))
def jacobi_1d(r: Random, n: int, steps: int) -> Case:
    a = r.f64(n)
    x = a.copy()
    for _ in range(2 * steps):
        x[1:-1] = 0.33333 * (x[:-2] + x[1:-1] + x[2:])
    return Case([a, steps], [x])


@program(n=(5, 12, 2), steps=(2, 4, 1))
def heat_3d(r: Random, n: int, steps: int) -> Case:
    a = r.f64(n, n, n)
    x, inner = a.copy(), (slice(1, -1),) * 3
    for _ in range(2 * steps):
        change = sum(np.roll(x, 1, d) - 2 * x + np.roll(x, -1, d) for d in range(3))
        x[inner] += 0.125 * change[inner]
    return Case([a, steps], [x])


@program(n=(5, 10, 2), steps=(2, 3, 2))
def seidel_2d(r: Random, n: int, steps: int) -> Case:
    a = r.f64(n, n)
    x = a.copy()
    for _ in range(steps):
        for i in range(1, n - 1):
            for j in range(1, n - 1):
                x[i, j] = x[i - 1 : i + 2, j - 1 : j + 2].sum() / 9
    return Case([a, steps], [x])


@program(n=(6, 20, 1, 6), steps=(3, 9, 2, 0))
def fdtd_2d(r: Random, n: int, steps: int) -> Case:
    given = r.f64(n, n + 2), r.f64(n, n + 2), r.f64(n, n + 2), r.f64(steps)
    ex, ey, hz, source = (g.copy() for g in given)
    for t in range(steps):
        ey[0] = source[t]
        ey[1:] -= 0.5 * (hz[1:] - hz[:-1])
        ex[:, 1:] -= 0.5 * (hz[:, 1:] - hz[:, :-1])
        hz[:-1, :-1] -= 0.7 * (ex[:-1, 1:] - ex[:-1, :-1] + ey[1:, :-1] - ey[:-1, :-1])
    return Case(given, [ex, ey, hz])


@program(n=(6, 15, 3, 2), steps=(2, 4, 1, 1))
def adi(r: Random, n: int, steps: int) -> Case:
    u = r.f64(n, n)
    a, b, d = -0.3, 1.6, -0.3

    def sweep(u: Array) -> Array:
        v = np.ones((n, n))
        v[0] = v[-1] = 1.0
        for i in range(1, n - 1):
            p, q = np.zeros(n), np.ones(n)
            for j in range(1, n - 1):
                p[j] = -a / (a * p[j - 1] + b)
                right = -d * u[j, i - 1] + (1 + 2 * d) * u[j, i] - d * u[j, i + 1]
                q[j] = (right - a * q[j - 1]) / (a * p[j - 1] + b)
            for j in range(n - 2, 0, -1):
                v[i, j] = p[j] * v[i, j + 1] + q[j]
        return v

    x = u
    for _ in range(steps):
        x = sweep(x).T
    return Case([u, steps, a, b, d], [x])


@program(n=(7, 20, 1))
def deriche(r: Random, n: int) -> Case:
    image, alpha = r.f32(n, n + 3), np.float32(0.25)
    e = np.exp(-0.25)
    k = (1 - e) ** 2 / (1 + 0.5 * e - np.exp(-0.5))
    a0, a1, a2, a3 = k, k * e * (0.25 - 1), k * e * 1.25, -k * np.exp(-0.5)
    b1, b2 = 2 * e, -np.exp(-0.5)

    def rows(x: Array) -> Array:
        from scipy.signal import lfilter

        forth = lfilter([a0, a1], [1, -b1, -b2], x, axis=1)
        back = lfilter([0, a2, a3], [1, -b1, -b2], x[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(forth + back)

    return Case([image, alpha], [rows(rows(image.astype(np.float64)).T).T])


@program(n=(7, 20, 1, 0))
def floyd_warshall(r: Random, n: int) -> Case:
    d = np.abs(r.f32(n, n)) + np.float32(0.1)
    d[r.flags(n, n)] = np.inf
    x = d.copy()
    for k in range(n):
        x = np.minimum(x, x[:, k : k + 1] + x[k : k + 1])
    return Case([d], [x])


@program(n=(7, 14, 1, 0))
def nussinov(r: Random, n: int) -> Case:
    base = r.integers(0, 4, (n,), np.int32)
    best = np.zeros((n, n), np.int32)
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            found = max(best[i, j - 1], best[i + 1, j])
            if length > 1:
                found = max(found, best[i + 1, j - 1] + (base[i] + base[j] == 3))
            best[i, j] = max([found, *(best[i, k] + best[k + 1, j] for k in range(i, j))])
    return Case([base], [best])
