"""Programs for every kind of kernel that the default schedule tells apart, with sizes."""

from __future__ import annotations

PROGRAMS: dict[str, tuple[str, dict[str, int]]] = {
    "matmul_inner": (
        "fn f(x: f32[I, A, B], w: f32[B, K]) -> f32[I, K] { return tensor[i, k](sum[a, b](x[i, a, b] * w[b, k])) }",
        {"I": 19, "A": 3, "B": 11, "K": 37},
    ),
    "matmul_outer": (
        "fn f(x: f32[I, A, B], w: f32[A, K]) -> f32[I, K] { return tensor[i, k](sum[a, b](x[i, a, b] * w[a, k])) }",
        {"I": 19, "A": 11, "B": 3, "K": 37},
    ),
    "softmax": ("fn f(x: f32[N, M]) -> f32[N, M] { return softmax(x) }", {"N": 9, "M": 137}),
    "log_softmax_short": ("fn f(x: f32[N, M]) -> f32[N, M] { return log_softmax(x) }", {"N": 70, "M": 9}),
    "layer_norm_short": (
        "fn f(x: f32[B, N, M], g: f32[M]) -> f32[B, N, M] { return layer_norm(x, g, g) }",
        {"B": 2, "N": 33, "M": 19},
    ),
    "softmax_down": ("fn f(x: f32[N, M]) -> f32[N, M] { return softmax(x, axis=0) }", {"N": 40, "M": 37}),
    "layer_norm": (
        "fn f(x: f32[N, M], g: f32[M], b: f32[M]) -> f32[N, M] { return layer_norm(x, g, b) }",
        {"N": 9, "M": 132},
    ),
    "logsumexp": ("fn f(x: f32[N, M]) -> f32[M] { return logsumexp(x, axis=0) }", {"N": 33, "M": 70}),
    "sum_of_all": ("fn f(x: f32[N, M]) -> f32 { return sum(x) }", {"N": 301, "M": 417}),
    "sum_down": ("fn f(x: f32[N, M]) -> f32[M] { return sum(x, axis=0) }", {"N": 70, "M": 2100}),
    "sum_of_few": ("fn f(x: f32[N, 16]) -> f32[16] { return sum(x, axis=0) }", {"N": 9001}),
    "half": ("fn f(x: bf16[N, M]) -> bf16[N] { return sum(x, axis=1) }", {"N": 13, "M": 117}),
    "argmax": ("fn f(x: f32[N, M]) -> i64[N] { return argmax(x, axis=1) }", {"N": 13, "M": 117}),
    "gelu": ("fn f(x: f32[N], y: f32[N]) -> f32[N] { return gelu(x * 2.0 + y) }", {"N": 1003}),
    "transpose_wide": ("fn f(x: i8[N, M]) -> i8[M, N] { return transpose(x) }", {"N": 150, "M": 333}),
    "broadcast": ("fn f(x: f32[N, M], y: f32[M]) -> f32[N, M] { return x * y + 1.0 }", {"N": 13, "M": 150}),
    "transpose": ("fn f(x: f32[N, M]) -> f32[M, N] { return transpose(x) }", {"N": 130, "M": 77}),
    "matmul": ("fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }", {"M": 70, "N": 50, "K": 33}),
    "matmul_packed": (
        "fn f(a: f32[M, K], b: f32[N, K], c: f32[N]) -> f32[M, N] { return relu(a @ transpose(b) + c) }",
        {"M": 200, "N": 50, "K": 70},
    ),
    "matmul_few": ("fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }", {"M": 5, "N": 600, "K": 600}),
    "matmul_across": (
        "fn f(a: f32[K, M], b: f32[K, N]) -> f32[M, N] { return transpose(a) @ b }",
        {"M": 83, "N": 50, "K": 33},
    ),
    "matmul_across_deep": (
        "fn f(a: f32[K, M], b: f32[N, K]) -> f32[M, N] { return transpose(a) @ transpose(b) + 1.0 }",
        {"M": 33, "N": 17, "K": 4200},
    ),
    "matmul_weighted": (
        "fn f(a: f32[N, K], w: f32[N]) -> f32[K, K] { return tensor[i, j](sum[n](w[n] * a[n, i] * a[n, j])) }",
        {"N": 130, "K": 70},
    ),
    "matmul_narrow_weighted": (
        "fn f(a: f32[M, K], w: f32[K], b: f32[K, 3]) -> f32[M, 3]"
        " { return tensor[i, j](sum[k](w[k] * a[i, k] * b[k, j])) }",
        {"M": 70, "K": 300},
    ),
    "matmul_spread": (
        "fn f(x: f32[C, H, W], w: f32[C, O, 2, 2], b: f32[O]) -> f32[O, H, 2, W, 2]"
        " { return tensor[o, h, i, w_, j](relu(sum[c](x[c, h, w_] * w[c, o, i, j]) + b[o])) }",
        {"C": 9, "H": 5, "W": 37, "O": 10},
    ),
    "matmul_few_deep": (
        "fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }",
        {"M": 11, "N": 530, "K": 331},
    ),
    "matmul_few_crowded": (
        "fn f(a: f64[M, K], b: f64[K, N], c: f64[N]) -> f64[M, N] { return a @ b + c }",
        {"M": 11, "N": 256, "K": 300},
    ),
    "matmul_few_gathered": (
        "fn f(a: f32[M, K], b: f32[K, N], c: f32[N]) -> f32[M, N] { return relu(a @ b + c) }",
        {"M": 9, "N": 320, "K": 2053},
    ),
    "matmul_narrow": ("fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }", {"M": 45, "N": 6, "K": 131}),
    "batched_narrow": (
        "fn f(a: f32[B, M, K], b: f32[B, K, N]) -> f32[B, M, N] { return relu(a @ b) }",
        {"B": 2, "M": 21, "N": 3, "K": 70},
    ),
    "rows_in_batches": (
        "fn f(a: f32[B, M, K], b: f32[K, N]) -> f32[B, M, N] { return relu(a @ b) }",
        {"B": 3, "M": 40, "N": 50, "K": 33},
    ),
    "matmul_deep": ("fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }", {"M": 40, "N": 40, "K": 1700}),
    "matmul_triangular": (
        "fn f(a: f32[K, M], b: f32[K, N], c: f32[M, N]) -> f32[M, N] {"
        " return tensor[i, j](c[i, j] + sum[k in i+1..K](a[k, i] * b[k, j])) }",
        {"M": 61, "N": 50, "K": 63},
    ),
    "matmul_triangular_columns": (
        "fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return tensor[i, j](sum[k in 0..j+1](a[i, k] * b[k, j])) }",
        {"M": 45, "N": 70, "K": 71},
    ),
    "batched": (
        "fn f(a: f32[B, M, K], b: f32[B, K, N]) -> f32[B, M, N] { return a @ b }",
        {"B": 3, "M": 40, "N": 50, "K": 33},
    ),
    "shortest_paths": (
        "fn f(a: f64[M, K], b: f64[K, N]) -> f64[M, N] { return tensor[i, j](min[k](a[i, k] + b[k, j])) }",
        {"M": 71, "N": 50, "K": 33},
    ),
    "longest_paths_deep": (
        "fn f(a: i32[M, K], b: i32[K, N]) -> i32[M, N] { return tensor[i, j](max[k](a[i, k] + b[k, j]) - 1) }",
        {"M": 33, "N": 37, "K": 4200},
    ),
    "shortest_paths_across": (
        "fn f(a: f32[K, M], b: f32[N, K]) -> f32[M, N] { return tensor[i, j](min[k](abs(a[k, i] - b[j, k]))) }",
        {"M": 45, "N": 40, "K": 70},
    ),
    "vector": ("fn f(a: f32[K], b: f32[K, N]) -> f32[N] { return a @ b }", {"N": 640, "K": 133}),
    "conv2d": (
        "fn f(x: f32[N, I, H, W], w: f32[O, I, 3, 3]) -> f32[N, O, H, W] { return relu(conv2d(x, w, padding=1)) }",
        {"N": 1, "I": 3, "O": 36, "H": 9, "W": 40},
    ),
    "conv2d_strided": (
        "fn f(x: f32[N, I, 2*H, 2*W], w: f32[O, I, 4, 4]) -> f32[N, O, H, W] {"
        " return conv2d(x, w, stride=2, padding=1) }",
        {"N": 2, "I": 3, "O": 40, "H": 5, "W": 19},
    ),
    "conv2d_groups": (
        "fn f(x: f32[N, 6, 9, 11], w: f32[40, 3, 3, 3]) -> f32[N, 40, 7, 9] { return conv2d(x, w, groups=2) }",
        {"N": 2},
    ),
    "conv2d_narrow": (
        "fn f(x: f32[N, I, 7, 7], w: f32[O, I, 1, 3], b: f32[O]) -> f32[N, O, 7, 5] {"
        " c = conv2d(x, w)\n return tensor[n, o, i, j](c[n, o, i, j] * b[o]) }",
        {"N": 1, "I": 20, "O": 17},
    ),
    "conv2d_of_points": (
        "fn f(x: f32[N, I, 7, 7], const w: f32[O, I, 1, 1], b: f32[O]) -> f32[N, O, 7, 7] {"
        " return relu(conv2d(x, w) + reshape(b, (1, O, 1, 1))) }",
        {"N": 2, "I": 20, "O": 40},
    ),
    "conv2d_last": (
        "fn f(x: f32[N, H, W, I], const w: f32[O, I, 3, 3]) -> f32[N, H, W, O] {"
        " return transpose(conv2d(transpose(x, (0, 3, 1, 2)), w, padding=1), (0, 2, 3, 1)) }",
        {"N": 2, "I": 17, "O": 40, "H": 5, "W": 9},
    ),
    "conv2d_last_few": (
        "fn f(x: f32[N, H, W, I], w: f32[O, I, 3, 3]) -> f32[N, H, W, O] {"
        " return transpose(conv2d(transpose(x, (0, 3, 1, 2)), w, padding=1), (0, 2, 3, 1)) }",
        {"N": 1, "I": 64, "O": 3, "H": 5, "W": 9},
    ),
    "conv2d_few": (
        "fn f(x: f32[N, I, 6, 33], w: f32[3, I, 3, 3]) -> f32[N, 3, 4, 31] { return conv2d(x, w) }",
        {"N": 1, "I": 6},
    ),
    "depthwise": (
        "fn f(x: f32[N, C, H, W], w: f32[C, 1, 3, 3], b: f32[C]) -> f32[N, C, H, W] {"
        " return relu(conv2d(x, w, padding=1, groups=C) + reshape(b, (1, C, 1, 1))) }",
        {"N": 2, "C": 3, "H": 9, "W": 21},
    ),
    "depthwise_small": (
        "fn f(x: f32[N, C, 7, 7], w: f32[C, 1, 5, 5]) -> f32[N, C, 7, 7] { return conv2d(x, w, padding=2, groups=C) }",
        {"N": 2, "C": 19},
    ),
    "depthwise_strided": (
        "fn f(x: f32[N, C, 2*H, 2*W], w: f32[C, 1, 3, 3]) -> f32[N, C, H, W] {"
        " return conv2d(x, w, stride=2, padding=1, groups=C) }",
        {"N": 1, "C": 3, "H": 8, "W": 19},
    ),
    "depthwise_dilated": (
        "fn f(x: f64[N, C, 9, 9], w: f64[C, 1, 3, 2]) -> f64[N, C, 9, 7] {"
        " return conv2d(x, w, padding=(2, 0), dilation=2, groups=C) }",
        {"N": 1, "C": 9},
    ),
    "depthwise_last": (
        "fn f(x: f32[N, H, W, C], w: f32[3, 3, C]) -> f32[N, H - 2, W - 2, C] {"
        " return tensor[n, i < H - 2, j < W - 2, c](sum[r, s](x[n, i + r, j + s, c] * w[r, s, c])) }",
        {"N": 2, "H": 7, "W": 8, "C": 21},
    ),
    "blur": (
        "fn f(x: f32[H, W]) -> f32[H - 2, W - 4] {"
        " return tensor[i < H - 2, j < W - 4](sum[r < 3, s < 5](x[i + r, j + s]) / 15.0) }",
        {"H": 9, "W": 40},
    ),
    "blur_along_diagonals": (
        "fn f(x: f32[H, H, W]) -> f32[H - 2, W - 2] {"
        " return tensor[i < H - 2, j < W - 2](sum[r < 3, s < 3](x[i + r, i + s, j + r] * x[0, i, j])) }",
        {"H": 9, "W": 20},
    ),
    "blur_of_sums": (
        "fn f(x: f32[H]) -> f32[20, 30] { return tensor[i < 20, j < 30](sum[r < 3](x[i + j + r])) }",
        {"H": 60},
    ),
    "pooling_overlapping": (
        "fn f(x: f32[N, C, 15, 15]) -> f32[N, C, 8, 8] { return max_pool2d(x, 3, stride=2, padding=1) }",
        {"N": 2, "C": 17},
    ),
    "pooling": ("fn f(x: f32[N, C, 16, 16]) -> f32[N, C, 8, 8] { return max_pool2d(x, 2) }", {"N": 2, "C": 3}),
    "cumsum": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=0) }", {"N": 12, "M": 30}),
    "take": (
        "fn f(x: f32[N, M], ids: i64[K]) -> f32[K, M] { return take(x, ids, axis=0) }",
        {"N": 12, "M": 30, "K": 20},
    ),
    "scatter": (
        "fn f(h: f32[N], at: i64[K], w: f32[K]) -> f32[N] { return update h[at[i]] += w[i] }",
        {"N": 12, "K": 200},
    ),
    "stencil": (
        "fn f(a: f32[N, M]) -> f32[N, M] { return update a[i in 1..N-1, j in 1..M-1] = 0.5 * (a[i-1, j] + a[i, j+1]) }",
        {"N": 20, "M": 45},
    ),
    "sweep_in_place": (
        "fn f(a: f64[N, M]) -> f64[N, M] { return loop (a = a) for i in 1..N { yield loop (a = a) for j in 1..M-1 {"
        " yield update a[i, j] = a[i - 1, j + 1] + 0.5 * (a[i, j] - a[i, j - 1]) } } }",
        {"N": 21, "M": 40},
    ),
    "rows_in_place": (
        "fn f(a: i32[N, M]) -> i32[N, M] { return loop (a = a) for i in 1..N {"
        " yield update a[i, j in i..M] max= a[i, i - 1] + a[i - 1, j] } }",
        {"N": 21, "M": 200},
    ),
    "rows_that_shrink": (
        "fn f(a: f64[40, 60], x: f64[40], y: f64[60]) -> f64[40, 60] {"
        " return loop (a = a) for k < 60 { yield update a[i in 0..40, j in k+1..60] -= x[i] * y[j] } }",
        {},
    ),
    "a_factor_of_the_columns": (
        "fn f(x: f32[N, M], y: f32[M], z: f32[N]) -> f32[N, N] { a[i, l] = max[j](x[i, j] * z[l] * y[j]); return a }",
        {"N": 40, "M": 30},
    ),
    "two_results": (
        "fn f(x: f32[N, M]) -> (f32[N, M], f32[N]) {\n y = exp(x)\n return y, sum(y, axis=1) }",
        {"N": 12, "M": 30},
    ),
}

SHORTER = {"matmul_across_deep": {"K": 700}, "longest_paths_deep": {"K": 700}}
"""Sizes that need not be large where they are not known; where they are, these programs are left to the slow run."""
