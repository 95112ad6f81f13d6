"""Sorting, selecting, counting, sparse matrices, graphs, words and integers."""

from __future__ import annotations

import zlib

import numpy as np
from case import Array, Case, Random, program


@program(n=(3, 2, 1, 0), m=(5, 40, 2, 3))
def sorting(r: Random, n: int, m: int) -> Case:
    x, y = r.f32(n, m).round(1), r.integers(-3, 3, (m,), np.int16)
    x[:, m // 2] = x[:, 0]
    best = np.argsort(-x, axis=1, kind="stable")[:, :2]
    wanted = [
        np.sort(x),
        np.argsort(x, kind="stable"),
        np.sort(x, axis=0),
        np.sort(y),
        np.argsort(y, kind="stable"),
        np.take_along_axis(x, best, 1),
        best,
        np.sort(x)[:, m // 2],
    ]
    return Case([x, y], wanted)


@program(n=(9, 50, 1, 0))
def segments(r: Random, n: int) -> Case:
    label, x = r.integers(0, 7, (n,), np.int32), r.f32(n, 3)
    label[label == 4] = 5
    count = np.bincount(label, minlength=8)
    total = np.zeros((8, 3))
    np.add.at(total, label, x)
    largest, smallest = np.full((8, 3), -np.inf, np.float32), np.full((8, 3), np.inf, np.float32)
    np.maximum.at(largest, label, x)
    np.minimum.at(smallest, label, x)
    return Case([label, x], [count, total, total / np.maximum(count, 1)[:, None], largest, smallest, count])


@program(n=(3, 2, 1, 2, 0), m=(6, 40, 1, 0, 2))
def cumulative(r: Random, n: int, m: int) -> Case:
    x, keep = r.f64(n, m), r.flags(m)
    packed = np.zeros((n, m))
    packed[:, : keep.sum()] = x[:, keep]
    backward = x[:, ::-1].cumsum(1)[:, ::-1]
    return Case([x, keep], [x.cumsum(0), x.cumsum(1), x.cumprod(1), keep.cumsum() - 1, packed, backward])


@program(n=(6, 20, 3, 1), e=(14, 90, 0, 1))
def sparse(r: Random, n: int, e: int) -> Case:
    from scipy.sparse import csr_array

    row = np.sort(r.integers(0, n, (e,), np.int32))
    column, value = r.integers(0, 5, (e,), np.int32), r.f64(e)
    start = np.searchsorted(row, np.arange(n + 1)).astype(np.int32)
    matrix = csr_array((value, (row, column)), shape=(n, 5))
    x, b, z = r.f64(5), r.f64(5, 3), r.f64(n)
    largest = np.array([np.abs(value[start[i] : start[i + 1]]).max(initial=-np.inf) for i in range(n)])
    wanted = [matrix @ x, matrix @ x, matrix @ b, matrix.T @ z, np.diff(start), largest]
    return Case([start, row, column, value, x, b, z], wanted)


@program(n=(6, 30, 3), e=(15, 100, 0))
def pagerank(r: Random, n: int, e: int) -> Case:
    source, target = r.integers(0, n - 1, (e,)), r.integers(0, n, (e,))
    degree = np.bincount(source, minlength=n)
    rank = np.full(n, 1 / n)
    x, change, count = rank, 1.0, 0
    while change > 1e-13:
        share = np.where(degree > 0, x / np.maximum(degree, 1), 0)
        nxt = np.full(n, 0.15 / n) + 0.85 * x[degree == 0].sum() / n
        np.add.at(nxt, target, 0.85 * share[source])
        x, change, count = nxt, np.abs(nxt - x).sum(), count + 1
    return Case([source, target, rank], [x, None if count > 1 else count])


@program(n=(7, 20, 1))
def reachability(r: Random, n: int) -> Case:
    from scipy.sparse.csgraph import connected_components, shortest_path

    a = r.rng.random((n, n)) < 1.2 / n
    distance = shortest_path(a.astype(float), unweighted=True, indices=0)
    _, component = connected_components(a, directed=False)
    label = np.array([np.flatnonzero(component == c)[0] for c in component])
    return Case([a, 0], [np.where(np.isinf(distance), -1, distance).astype(np.int32), label])


@program(n=(5, 12, 1), h=(6, 9, 1))
def life(r: Random, n: int, h: int) -> Case:
    world = r.flags(h, n)
    x = world
    for _ in range(4):
        around = sum(np.roll(x, (i, j), (0, 1)).astype(int) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))
        x = (around == 3) | (x & (around == 2))
    return Case([world, 4], [x])


@program(t=(6, 30, 1))
def viterbi(r: Random, t: int) -> Case:
    def rows(*shape: int) -> Array:
        x = r.rng.random(shape) + 0.05
        return np.asarray(x / x.sum(-1, keepdims=True))

    start, move, emission, seen = rows(4), rows(4, 4), rows(4, 3), r.integers(0, 3, (t,))
    p, back = np.log(start) + np.log(emission[:, seen[0]]), []
    for s in range(1, t):
        score = p[:, None] + np.log(move)
        back.append(score.argmax(0))
        p = score.max(0) + np.log(emission[:, seen[s]])
    path = [int(p.argmax())]
    for b in reversed(back):
        path.append(int(b[path[-1]]))
    return Case([start, move, emission, seen], [np.array(path[::-1])])


@program(n=(4, 12, 0, 3, 1), m=(6, 9, 3, 0, 1))
def edit_distance(r: Random, n: int, m: int) -> Case:
    a, b = r.integers(97, 100, (n,), np.uint8), r.integers(97, 100, (m,), np.uint8)
    row = list(range(m + 1))
    for i in range(n):
        nxt = [i + 1]
        for j in range(1, m + 1):
            nxt.append(min(row[j] + 1, nxt[j - 1] + 1, row[j - 1] + (a[i] != b[j - 1])))
        row = nxt
    return Case([a, b], [np.int32(row[m])])


@program(n=(5, 100, 0))
def hashing(r: Random, n: int) -> Case:
    data = r.integers(0, 256, (n,), np.uint8)
    fnv = 2166136261
    for byte in data.tolist():
        fnv = (fnv ^ byte) * 16777619 % 2**32
    x = 88172645463325252
    for _ in range(20):
        x ^= x << 13 & (2**64 - 1)
        x ^= x >> 7
        x ^= x << 17 & (2**64 - 1)
    parity = np.array([bin(b).count("1") % 2 for b in data.tolist()], np.uint8)
    return Case([data], [np.uint32(fnv), np.uint32(zlib.crc32(data.tobytes())), np.uint64(x), parity])


@program(n=(8, 40))
def integers(r: Random, n: int) -> Case:
    a, b = r.integers(-(2**31), 2**31, (n,), np.int32), r.integers(-9, 9, (n,), np.int32)
    a[0], b[0], b[1], a[2], b[2] = -(2**31), -1, 0, -7, 2
    x = 200 * r.f32(n)
    x[:4] = [np.nan, np.inf, -np.inf, -0.9]
    with np.errstate(all="ignore"):
        quotient = np.where(b == 0, 0, np.floor_divide(a, b))
        remainder = np.where(b == 0, 0, np.remainder(a, b))
        product = a * b
    quotient[0] = -(2**31)
    saturated = np.clip(np.trunc(np.nan_to_num(x.astype(np.float64), nan=0, posinf=1e9, neginf=-1e9)), -128, 127)
    unsigned = np.clip(np.trunc(np.nan_to_num(x.astype(np.float64), nan=0, posinf=1e9, neginf=-1e9)), 0, 255)
    state, noise = 12345, []
    for _ in range(16):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        noise.append((state >> 40) / 16777216)
    counts = np.array([bin(v & 0xFFFFFFFF).count("1") for v in a.tolist()], np.int32)
    wanted = [
        quotient.astype(np.int32),
        remainder.astype(np.int32),
        product,
        (a.astype(np.int64) << 3).astype(np.int32),
        a >> 2,
        saturated.astype(np.int8),
        unsigned.astype(np.uint8),
        a.astype(np.int8),
        (a & b) ^ (a | ~b),
        np.array(noise),
        counts,
    ]
    return Case([a, b, x, np.uint64(12345)], wanted)


@program()
def special(r: Random) -> Case:
    x = np.array([1.0, np.nan, -np.inf, 0.0, -0.0, np.inf, 3.0, np.nan, -2.0], np.float32)
    clean = np.where(np.isnan(x), -np.inf, np.minimum(x, 10)).astype(np.float64)
    e = np.exp(clean - 10)
    nan = np.float32(np.nan)
    return Case(
        [x],
        [
            nan,
            nan,
            np.maximum(x, 0),
            np.minimum(x, 0),
            np.int64(1),
            np.int64(1),
            x == x,
            nan,
            np.sort(x),
            e / e.sum(),
            np.isinf(x),
            np.sign(x),
        ],
    )


@program(n=(3, 0, 0, 0, 0, 1, 1, 1, 1), m=(4, 0, 0, 1, 1, 0, 0, 1, 1), k=(2, 0, 1, 0, 1, 0, 1, 0, 1))
def empty(r: Random, n: int, m: int, k: int) -> Case:
    x, y = r.f32(n, m), r.f32(m, k)
    z = np.concatenate([np.ones((n, 1)), np.full((m, 1), 2.0)])
    wide = x.astype(np.float64)
    mean = wide.mean() if x.size else np.float64(np.nan)
    low, high = wide.max(1, initial=-np.inf), wide.min(1, initial=np.inf)
    return Case(
        [x, y],
        [wide.sum(1), wide.prod(0), low, high, mean, wide @ y, (x > 0).any(1), (x > 0).all(1), wide.cumsum(1), z],
    )
