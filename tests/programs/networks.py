"""Layers of neural networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from case import Array, Case, Random, program


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, 0))


@program(t=(5, 17, 1, 0), start=(0, 9, 3, 0))
def rotary(r: Random, t: int, start: int) -> Case:
    x = r.f32(3, t, 8)
    angle = np.outer(np.arange(start, start + t), 10000.0 ** (-np.arange(4) / 4))
    low, high = x[..., :4].astype(np.float64), x[..., 4:].astype(np.float64)
    c, s = np.cos(angle), np.sin(angle)
    wanted = np.concatenate([low * c - high * s, low * s + high * c], -1)
    return Case([x, start], [wanted, wanted])


@program(t=(6, 20, 1), window=(3, 7, 1))
def sliding_window(r: Random, t: int, window: int) -> Case:
    q, k, v = r.f32(4, t, 6), r.f32(2, t, 6), r.f32(2, t, 6)
    i, j = np.mgrid[:t, :t]
    slope = 2.0 ** (-8 * (np.arange(4) + 1) / 4)
    k2, v2 = np.repeat(k, 2, 0).astype(np.float64), np.repeat(v, 2, 0)
    score = q @ k2.transpose(0, 2, 1) / math.sqrt(6) - slope[:, None, None] * (i - j)
    score = np.where((j <= i) & (i - j < window), score, -np.inf)
    return Case([q, k, v, window], [softmax(score) @ v2])


@program(t=(6, 21, 1, 0))
def window_band(r: Random, t: int) -> Case:
    q, k, v = r.f32(t, 6), r.f32(t, 6), r.f32(t, 5)
    i, j = np.mgrid[:t, :t]
    score = np.where((j <= i) & (i - j < 4), q.astype(np.float64) @ k.T, -np.inf)
    return Case([q, k, v], [softmax(score) @ v if t else v])


@program(pos=(3, 0, 7))
def kv_cache(r: Random, pos: int) -> Case:
    q, k, v, keys, values = r.f32(2, 4), r.f32(2, 4), r.f32(2, 4), r.f32(2, 8, 4), r.f32(2, 8, 4)
    new_keys, new_values = keys.copy(), values.copy()
    new_keys[:, pos], new_values[:, pos] = k, v
    score = np.einsum("hd,hjd->hj", q.astype(np.float64), new_keys[:, : pos + 1]) / 2
    out = np.einsum("hj,hjd->hd", softmax(score), new_values[:, : pos + 1])
    return Case([q, k, v, keys, values, pos], [out, new_keys, new_values])


@program(t=(5, 16, 1), layers=(2, 1, 3))
def transformer(r: Random, t: int, layers: int) -> Case:
    d, f, v = 8, 12, 11

    def norm() -> dict[str, Array]:
        return {"gain": 1 + 0.1 * r.f32(d), "bias": 0.1 * r.f32(d)}

    stack: list[dict[str, Any]] = [
        {
            "first": norm(),
            "qkv": 0.3 * r.f32(d, 3 * d),
            "out": 0.3 * r.f32(d, d),
            "second": norm(),
            "gate": 0.3 * r.f32(d, f),
            "up": 0.3 * r.f32(d, f),
            "down": 0.3 * r.f32(f, d),
        }
        for _ in range(layers)
    ]
    model = {"table": r.f32(v, d), "layers": stack, "last": norm()}
    ids = r.integers(0, v, (t,))

    def normed(x: Array, p: dict[str, Array]) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return np.asarray(centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["gain"] + p["bias"])

    x = model["table"][ids].astype(np.float64)
    for p in stack:
        q, k, w = (a.reshape(t, 2, 4).transpose(1, 0, 2) for a in np.split(normed(x, p["first"]) @ p["qkv"], 3, 1))
        score = np.where(np.tri(t, dtype=bool), q @ k.transpose(0, 2, 1) / 2, -np.inf)
        x = x + (softmax(score) @ w).transpose(1, 0, 2).reshape(t, d) @ p["out"]
        y = normed(x, p["second"])
        gate = y @ p["gate"]
        x = x + (gate * sigmoid(gate) * (y @ p["up"])) @ p["down"]
    return Case([ids, model], [normed(x, model["last"]) @ model["table"].T])


@program(t=(5, 13, 1, 0))
def mixture(r: Random, t: int) -> Case:
    x, gate, up, down = r.f32(t, 4), r.f32(4, 5), r.f32(5, 4, 6), r.f32(5, 6, 4)
    score = x.astype(np.float64) @ gate
    chosen = np.argsort(-score, axis=1, kind="stable")[:, :2]
    weight = softmax(np.take_along_axis(score, chosen, 1)) if t else score[:, :2]
    h = np.maximum(np.einsum("td,tsdf->tsf", x, up[chosen]), 0)
    return Case([x, gate, up, down], [np.einsum("ts,tsf,tsfd->td", weight, h, down[chosen]), chosen])


def correlate(x: Array, w: Array, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Array:
    """conv2d by shifting: one product for each element of the window."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows = (x.shape[2] - dilation * (w.shape[2] - 1) - 1) // stride + 1
    columns = (x.shape[3] - dilation * (w.shape[3] - 1) - 1) // stride + 1
    parts = []
    for xg, wg in zip(np.split(x, groups, 1), np.split(w, groups, 0)):
        total = np.zeros((x.shape[0], wg.shape[0], rows, columns))
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                top, left = i * dilation, j * dilation
                part = xg[:, :, top : top + rows * stride : stride, left : left + columns * stride : stride]
                total += np.einsum("nihw,oi->nohw", part[:, :, :rows, :columns], wg[:, :, i, j])
        parts.append(total)
    return np.concatenate(parts, 1)


@program(n=(1, 2, 0), h=(7, 5, 5), w=(6, 20, 5))
def convolutions(r: Random, n: int, h: int, w: int) -> Case:
    x, k, g, d = r.f32(n, 4, h, w), r.f32(6, 4, 3, 3), r.f32(6, 2, 3, 3), r.f32(4, 3)
    depthwise = sum(x[..., s : s + w - 2].astype(np.float64) * d[:, None, s, None] for s in range(3))
    wanted = [
        correlate(x, k, stride=2, padding=1),
        correlate(x, k, dilation=2),
        correlate(x, g, padding=1, groups=2),
        depthwise,
        correlate(x, k),
    ]
    return Case([x, k, g, d], wanted)


@program(n=(5, 19, 1, 0))
def conv_transpose(r: Random, n: int) -> Case:
    x, w = r.f32(2, n), r.f32(2, 4, 3)
    y = np.zeros((4, 2 * n + 1))
    for i in range(n):
        y[:, 2 * i : 2 * i + 3] += np.einsum("c,cor->or", x[:, i].astype(np.float64), w)
    return Case([x, w], [y, y])


@program(h=(5, 9, 2), w=(6, 17, 3))
def pooling(r: Random, h: int, w: int) -> Case:
    x = r.f32(2, 3, h, w)
    halves = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(2, 3, h // 2, 2, w // 2, 2)
    inside = np.pad(np.ones((h, w)), 1)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    low, zero = (np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=v) for v in (-np.inf, 0))
    same = np.max([low[:, :, i : i + h, j : j + w] for i, j in shifts], 0)
    total = np.sum([zero[:, :, i : i + h, j : j + w].astype(np.float64) for i, j in shifts], 0)
    count = np.sum([inside[i : i + h, j : j + w] for i, j in shifts], 0)
    wanted = [halves.max((3, 5)), halves.mean((3, 5)), same, total / count, x.mean((2, 3)), x.max((2, 3))]
    return Case([x], wanted)


@program(t=(5, 18, 1, 0))
def selective_scan(r: Random, t: int) -> Case:
    x, dt, a, b, c, skip = r.f32(t, 3), r.f32(t, 3), -np.abs(r.f32(3, 4)), r.f32(t, 4), r.f32(t, 4), r.f32(3)
    h, y = np.zeros((3, 4)), np.zeros((t, 3))
    for s in range(t):
        step = softplus(dt[s].astype(np.float64))
        h = np.exp(step[:, None] * a) * h + step[:, None] * b[s] * x[s][:, None]
        y[s] = h @ c[s] + skip * x[s]
    return Case([x, dt, a, b, c, skip], [y, h])


@program(n=(4, 13, 1))
def losses(r: Random, n: int) -> Case:
    logits, label, other = r.f32(n, 5), r.integers(0, 5, (n,)), r.f32(3, 5)
    wide, w2 = logits.astype(np.float64), other.astype(np.float64)
    p = softmax(wide)
    logp = np.log(p)
    q = softmax(w2[0])
    cosine = wide @ w2.T / np.outer(np.linalg.norm(wide, axis=1), np.linalg.norm(w2, axis=1))
    picked = logp[np.arange(n), label]
    loss, smooth = -picked.mean(), (-0.9 * picked - 0.1 / 5 * logp.sum(1)).mean()
    gradient = (p - np.eye(5)[label]) / n
    accuracy = (logits.argmax(1) == label).mean()
    return Case(
        [logits, label, other], [cosine, loss, smooth, gradient, accuracy, np.sum(p[0] * (logp[0] - np.log(q)))]
    )


@program(t=(6, 20, 1))
def lstm(r: Random, t: int) -> Case:
    x, w, u, b = r.f32(2, t, 3), r.f32(3, 16), r.f32(4, 16), r.f32(16)
    h, c, states = np.zeros((2, 4)), np.zeros((2, 4)), []
    for s in range(t):
        i, f, g, o = np.split(x[:, s].astype(np.float64) @ w + h @ u + b, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return Case([x, {"w": w, "u": u, "b": b}], [h, c, np.stack(states, 1)])


@program(n=(6, 20, 6), steps=(2, 15, 0), tolerance=0.0001)
def training(r: Random, n: int, steps: int) -> Case:
    x, y, w, b = r.f32(n, 4), r.f32(n), r.f32(4), np.float32(0.5)
    p, m, v = np.append(w, b).astype(np.float64), np.zeros(5), np.zeros(5)
    x1 = np.column_stack([x, np.ones(n)]).astype(np.float64)
    for t in range(1, steps + 1):
        g = 2 * x1.T @ (x1 @ p - y) / n
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return Case([x, y, w, b, steps], [p[:4], p[4], np.mean((x1 @ p - y) ** 2)])


@program(n=(4, 9))
def structs(r: Random, n: int) -> Case:
    def affine(rows: int, columns: int) -> dict[str, Array]:
        return {"weight": r.f32(rows, columns), "bias": r.f32(rows)}

    x = r.f32(n, 3)
    net: dict[str, Any] = {
        "first": affine(5, 3),
        "blocks": [{"inner": affine(5, 5), "scale": np.float32(0.3 * i)} for i in range(3)],
        "last": affine(2, 5),
    }

    def apply(x: Array, p: dict[str, Array]) -> Array:
        return np.asarray(x @ p["weight"].T.astype(np.float64) + p["bias"])

    h = apply(x, net["first"])
    for block in net["blocks"]:
        h = h + block["scale"] * np.tanh(apply(h, block["inner"]))
    return Case([x, net, 2], [apply(h, net["last"]), net["blocks"][2]["inner"]["bias"]])


@program(n=(4, 18, 1, 0))
def importing(r: Random, n: int) -> Case:
    x, w, b = r.f32(n, 3), r.f32(3, 4), r.f32(4)
    y = x @ w.astype(np.float64) + b
    return Case([x, {"w": w, "b": b}], [np.where(y > 0, y, 0.125 * y), np.maximum(x, 0.5), 0.125 * x])


@program()
def masked(r: Random) -> Case:
    score, mask = r.f32(3, 2, 5), r.flags(3, 5)
    mask[1] = False
    s = np.where(mask[:, None], score, -np.inf)
    with np.errstate(invalid="ignore"):
        p = softmax(s)
    return Case([score, mask], [p, np.where(mask[:, None], p, 0)])
