"""Iterations, transforms, images, element types, and the forms of the language."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from case import Array, Case, Random, program


@program(b=(2, 1, 3), i=(3, 1, 17), j=(4, 1, 5), k=(3, 1, 9))
def einsums(r: Random, b: int, i: int, j: int, k: int) -> Case:
    x, y, c, v, w = r.f64(b, i, j), r.f64(b, j, k), r.f64(j, j), r.f64(j), r.f64(i, j, k)
    forms = [
        np.einsum("bij,bjk->bik", x, y),
        np.einsum("bij,bjk->bik", x, y),
        np.einsum("bij,jl,bil->b", x, c, x),
        np.diagonal(c),
        v @ np.diag(np.diag(c)) @ v,
        np.einsum("bij->ji", x),
        w * w,
        np.einsum("bij,cij->bc", x, x),
        np.einsum("ijk,pij->kp", w, x),
        x.prod(2),
    ]
    return Case([x, y, c, v, w], forms)


@program(n=(5, 17, 1), tolerance=1e-06)
def power_iteration(r: Random, n: int) -> Case:
    q, _ = np.linalg.qr(r.f64(n, n))
    a = q @ np.diag(0.5 ** np.arange(n) * 4) @ q.T
    a = (a + a.T) / 2
    values, vectors = np.linalg.eigh(a)
    top = vectors[:, -1] * np.sign(vectors[:, -1].sum())
    return Case([a], [values[-1], top, None])


@program(n=(70, 13, 0), k=(33, 150, 4))
def gram(r: Random, n: int, k: int) -> Case:
    a, w, v, b = r.f32(n, k), r.f32(n), r.f32(k), r.f32(k, 3)
    wide = a.astype(np.float64)
    wanted = [wide.T * w @ wide, wide * v @ wide.T, (wide**2).T @ wide, wide * v @ b]
    return Case([a, w, v, b], wanted)


@program(a=(7, 16, 3), i=(19, 30, 0))
def factored(r: Random, a: int, i: int) -> Case:
    b, c, j, k = a + 2, a + 4, 21, 17
    g, u, v, w, d = r.f32(a, b, c), r.f32(i, a), r.f32(j, b), r.f32(k, c), r.f32(a, 3)
    ids, n = r.integers(0, c, (b,)), np.arange(i)
    x, y, z, e, f = (m.astype(np.float64) for m in (g, u, v, w, d))
    wanted = [
        np.einsum("abc,ia,jb,kc->ijk", x, y, z, e, optimize=True),
        np.einsum("abc,ib,ic,ia->ai", x, z[n % j], e[n % k], y, optimize=True),
        np.einsum("ia,abc,jb,kc->jk", y, x, z, e, optimize=True),
        np.einsum("abcs,as,ia->icb", np.lib.stride_tricks.sliding_window_view(x, 3, 2), f, y, optimize=True),
        y[:, 0].sum() * z.sum() * e.sum(),
        np.einsum("ia,ab,kb->ik", y, x[:, :, 0], e[:, ids], optimize=True),
    ]
    return Case([g, u, v, w, d, ids], wanted)


@program(t=(6, 40, 0), tolerance=1e-12)
def kalman(r: Random, t: int) -> Case:
    z, a, h, q, noise = r.f64(t, 2), np.eye(4) + 0.1 * np.eye(4, k=2), np.eye(2, 4), 0.01 * np.eye(4), np.eye(2)
    x, p, states = np.zeros(4), np.eye(4), np.zeros((t, 4))
    for n in range(t):
        x, p = a @ x, a @ p @ a.T + q
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + noise)
        x, p = x + gain @ (z[n] - h @ x), (np.eye(4) - gain @ h) @ p
        states[n] = x
    return Case([z, a, h, q, noise, np.eye(4)], [states])


@program(m=(7, 30, 4), n=(4, 17, 4), tolerance=1e-12)
def householder(r: Random, m: int, n: int) -> Case:
    a = r.f64(m, n)
    triangle = np.linalg.qr(a, "r")
    return Case([a], [triangle * np.sign(np.diag(triangle))[:, None]])


@program(n=(5, 12, 1), sweeps=(7, 8, 1), tolerance=1e-12)
def eigenvalues(r: Random, n: int, sweeps: int) -> Case:
    a = r.f64(n, n)
    return Case([a + a.T, sweeps], [np.linalg.eigvalsh(a + a.T)])


@program(n=(5, 40, 0))
def newton(r: Random, n: int) -> Case:
    a = np.exp(r.f64(n) * 2)
    root = np.roots([1, 0, -1, -2])
    return Case([a], [np.sqrt(a), root[np.abs(root.imag) < 1e-9].real[0], None])


@program(n=(8, 31, 1))
def fourier(r: Random, n: int) -> Case:
    x = r.f64(n)
    return Case([x], [np.fft.fft(x).real, np.fft.fft(x).imag, x])


@program()
def fast_fourier(r: Random) -> Case:
    re, im = r.f64(16), r.f64(16)
    wanted = np.fft.fft(re + 1j * im)
    return Case([re, im], [wanted.real, wanted.imag])


@program(h=(5, 9, 2), w=(6, 20, 2))
def images(r: Random, h: int, w: int) -> Case:
    from scipy import ndimage

    x, rgb, sigma = r.f32(h, w), r.integers(0, 256, (h, w, 3), np.uint8), np.float32(0.8)
    wide = x.astype(np.float64)
    edges = np.hypot(ndimage.sobel(wide, 1, mode="constant"), ndimage.sobel(wide, 0, mode="constant"))
    median = ndimage.median_filter(x, 3)[1:-1, 1:-1]
    p, ones = np.pad(wide, 1), np.pad(np.ones((h, w)), 1)
    total, weights = np.zeros((h, w)), np.zeros((h, w))
    for i in range(3):
        for j in range(3):
            near = p[i : i + h, j : j + w]
            weight = np.exp(-((near - wide) ** 2) / (2 * float(sigma) ** 2)) * ones[i : i + h, j : j + w]
            total, weights = total + weight * near, weights + weight
    grey = (rgb.astype(int) @ np.array([77, 150, 29]) // 256).astype(np.uint8)
    count = np.bincount(grey.ravel(), minlength=256).astype(np.int32)
    return Case([x, rgb, sigma], [edges, median, total / weights, grey, count])


@program(n=(8, 40, 8), steps=(2, 5, 0))
def kmeans(r: Random, n: int, steps: int) -> Case:
    x, centres = r.f32(n, 2), r.f32(3, 2)
    c = centres.astype(np.float64)

    def nearest(c: Array) -> Array:
        return np.asarray(((x[:, None] - c[None]) ** 2).sum(-1).argmin(1))

    for _ in range(steps):
        label = nearest(c)
        c = np.array([x[label == k].mean(0, dtype=np.float64) if (label == k).any() else c[k] for k in range(3)])
    return Case([x, centres, steps], [c, nearest(c)])


@program(b=(2, 5, 0, 2), n=(4, 9, 3, 1))
def batched(r: Random, b: int, n: int) -> Case:
    a, y, c = r.f64(b, n, n), r.f64(b, n), r.f64(b, 2, 2)
    x = np.linalg.solve(a, y[..., None])[..., 0]
    return Case([a, y, c], [x, np.linalg.det(a), np.linalg.inv(c), a @ a.transpose(0, 2, 1)])


@program(t=(6, 30, 1), tolerance=1e-05)
def ema(r: Random, t: int) -> Case:
    x = r.f32(t, 3)
    m, states = x[0].astype(np.float64), []
    for row in x:
        m = 0.9 * m + 0.1 * row
        states.append(m)
    return Case([x, np.float32(0.9)], [np.array(states), np.array(states)])


@program(m=(3, 1, 2), k=(5, 40, 0), n=(4, 17, 3))
def dtypes(r: Random, m: int, k: int, n: int) -> Case:
    h, g = r.f16(m, k), r.f16(k, n)
    b, c = r.f32(m, k).astype(ml_dtypes.bfloat16), r.f32(k, n).astype(ml_dtypes.bfloat16)
    i, j = r.integers(-128, 128, (m, k), np.int8), r.integers(-128, 128, (k, n), np.int8)
    u, flag = r.integers(0, 256, (m, k), np.uint8), r.flags(m, k)
    wide, wb = h.astype(np.float64), b.astype(np.float64)
    wanted = [
        wide @ g.astype(np.float64),
        wb @ c.astype(np.float64),
        i.astype(np.int32) @ j.astype(np.int32),
        wide.sum(1),
        wb.mean(0),
        i.sum(1, dtype=np.int32),
        u.sum(0, dtype=np.uint32),
        flag.sum(1),
        flag.any(0),
        wide * i + wb,
        (i.astype(int) + 100).astype(np.int8),
        (u.astype(int) * 3).astype(np.uint8),
    ]
    return Case([h, g, b, c, i, j, u, flag], wanted)


@program(n=(9, 0, 30), flag=(1, 0, 0))
def scalars(r: Random, n: int, flag: int) -> Case:
    x = float(r.f64())
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    wanted = [math.sin(x) if flag else math.cos(x), a, math.gcd(n * 6, 84), 2.5 * n]
    return Case(
        [x, n, bool(flag)],
        [*map(np.asarray, wanted), np.bool_((flag and n > 3) or not flag), np.clip(x, -0.5, 0.5), -(x**2)],
    )


@program(n=(3, 9, 1))
def generic(r: Random, n: int) -> Case:
    s, v, m, t, w = np.float32(1.5), r.f64(n), r.f16(2, n), r.f32(2, 1, 2, n), r.f32(n, 2)

    def standard(x: Array, eps: float) -> Array:
        wide = x.astype(np.float64)
        return np.asarray((wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + eps))

    product = t.astype(np.float64) @ w
    wanted = [
        4.5,
        0.5 * v,
        m * 2,
        standard(v, 1e-5),
        standard(t, 1e-3),
        product,
        product[0, 0],
        np.array([0, 7], np.int32),
    ]
    return Case([s, v, m, t, w], [np.asarray(x) for x in wanted])


@program(n=(4, 12, 1), steps=(3, 6, 2))
def bodies(r: Random, n: int, steps: int) -> Case:
    x, v, m = r.f64(n, 3), r.f64(n, 3), np.abs(r.f64(n)) / n
    dt = 0.01

    def acceleration(x: Array) -> Array:
        d = x[None] - x[:, None]
        r2 = (d**2).sum(-1) + 1e-4
        return np.asarray((m[None, :, None] * d / (r2 * np.sqrt(r2))[..., None]).sum(1))

    y, u, a = x, v, acceleration(x)
    for _ in range(steps):
        half = u + 0.5 * dt * a
        y = y + dt * half
        a = acceleration(y)
        u = half + 0.5 * dt * a
    return Case([x, v, m, dt, steps], [y, u, 0.5 * (m[:, None] * u**2).sum()])


@program(n=(5, 33))
def options(r: Random, n: int) -> Case:
    from scipy.stats import norm

    s, k, t = 100 * np.exp(0.2 * r.f64(n)), 100 * np.exp(0.1 * r.f64(n)), 0.1 + np.abs(r.f64(n))
    d1 = (np.log(s / k) + (0.03 + 0.02) * t) / (0.2 * np.sqrt(t))
    d2 = d1 - 0.2 * np.sqrt(t)
    call = s * norm.cdf(d1) - k * np.exp(-0.03 * t) * norm.cdf(d2)
    return Case([s, k, t, 0.03, 0.2], [call, call - s + k * np.exp(-0.03 * t), norm.cdf(d1)])


@program(n=(4, 9, 1), m=(5, 20, 1), steps=(3, 30, 1))
def sinkhorn(r: Random, n: int, m: int, steps: int) -> Case:
    cost, a, b = np.abs(r.f64(n, m)), np.full(n, 1 / n), np.full(m, 1 / m)
    kernel = np.exp(-cost / 0.5)
    u, v = np.ones(n), np.ones(m)
    for _ in range(steps):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return Case([cost, a, b, 0.5, steps], [u[:, None] * kernel * v])


@program(n=(3, 9, 1))
def exponential(r: Random, n: int) -> Case:
    from scipy.linalg import expm

    a = r.f64(n, n)
    return Case([a, 5], [expm(a), np.linalg.matrix_power(a, 5)])


@program(n=(6, 40, 2), m=(7, 33, 1))
def interpolation(r: Random, n: int, m: int) -> Case:
    from scipy import ndimage

    xs, ys = np.sort(r.f64(n)), r.f64(n)
    x, image = 1.5 * r.f64(m), r.f32(5, 6)
    u, v = (5 * r.rng.random(m)).astype(np.float32) * 0.99, (4 * r.rng.random(m)).astype(np.float32) * 0.99
    sample = ndimage.map_coordinates(image.astype(np.float64), [v, u], order=1)
    pieces = np.where(x < 0, -x, np.where(x < 1, x * x, np.where(x < 2, 2 * x - 1, 3.0)))
    return Case([xs, ys, x, image, u, v], [np.interp(x, xs, ys), sample, pieces])


@program()
def views(r: Random) -> Case:
    x = r.f32(4, 6)
    wanted = [
        x[:, ::2],
        x[1:3],
        x[-1],
        x[:, 2],
        x[None, ..., None],
        x[::-1],
        np.tile(x, (2, 2)),
        np.repeat(x, 2, 1),
        np.stack((x, 2 * x)),
        np.pad(x, ((1, 2), (0, 0)), constant_values=9),
        x.T,
        x[:, 3:] - x[:, :3],
        x.reshape(3, 8),
        x[::-1].reshape(2, 2, 6),
        np.broadcast_to(x[0], (4, 6)),
        x[::2, 1::2][:, ::-1],
    ]
    return Case([x], wanted)
