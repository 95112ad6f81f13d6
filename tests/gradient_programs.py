# ruff: noqa: E501
"""Programs whose gradients are checked, by what is hard about them."""

PROGRAMS = {
    "conv1": """fn f(x: f64[N], w: f64[R]) -> f64[N-R+1] {
 y[i < N-R+1] = sum[r](x[i + r] * w[r])
 return y }""",
    "conv2d": """fn f(x: f64[B, C, 6, 7], w: f64[O, C, 3, 2]) { return conv2d(x, w, stride=(2, 1), padding=1) }""",
    "pool": """fn f(x: f64[B, C, 6, 8]) { return max_pool2d(x, size=2) }""",
    "avgpool": """fn f(x: f64[B, C, 6, 8]) { return avg_pool2d(x, size=3, stride=2, padding=1) }""",
    "stencil": """fn f(x: f64[N]) -> f64[N] {
 y[i] = where(i > 0, x[i - 1], 0.0) * x[i] + where(i < N - 1, x[i + 1] * x[i + 1], 2.0)
 return y }""",
    "triangular": """fn f(l: f64[N, N], x: f64[N]) -> f64[N] {
 y[i < N] = sum[k < i](l[i, k] * x[k])
 return y }""",
    "sparse": """fn f(start: i64[R1], val: f64[P], col: i64[P], x: f64[C]) {
 y[r < R1 - 1] = sum[p in start[r]..start[r + 1]](val[p] * x[col[p]])
 return y }""",
    "gather": """fn f(table: f64[V, D], ids: i64[T]) {
 y[t, d] = table[ids[t], d] * 2.0
 return y }""",
    "take": """fn f(x: f64[N, M], ids: i64[T]) { return take(x, ids, axis=1) }""",
    "softmax": """fn f(x: f64[N, M]) { return softmax(x) }""",
    "log_softmax": """fn f(x: f64[N, M]) { return log_softmax(x) }""",
    "logsumexp": """fn f(x: f64[N, M]) { return logsumexp(x, axis=1) }""",
    "softmax in two steps": """fn f(x: f64[N, M], v: f64[M, D]) {
 m[i] = max[j](x[i, j])
 e[i, j] = where(j <= i, exp2(3.0 * x[i, j] - 3.0 * m[i]), 0.0)
 return (e @ v) / sum(e, axis=1, keepdims=true) }""",
    "shifts": """fn f(x: f64[N, M]) {
 m = max(x, axis=1, keepdims=true)
 return (log(sum(exp(x - m), axis=1, keepdims=true)) + m - x) * m - exp(minimum(x, 1.0) - 0.5 * m) }""",
    "layer_norm": """fn f(x: f64[N, M], g: f64[M], b: f64[M]) { return layer_norm(x, g, b) }""",
    "rms_norm": """fn f(x: f64[N, M], g: f64[M]) { return rms_norm(x, g) }""",
    "attention": """fn f(q: f64[H, S, D], k: f64[H, T, D], v: f64[H, T, E]) { return attention(q, k, v, causal=true) }""",
    "gelu": """fn f(x: f64[N, M]) { return gelu(x) + gelu_tanh(x) + silu(x) + softplus(x) + elu(x) + leaky_relu(x) + relu(x) }""",
    "repeat": """fn f(x: f64[N, M]) { return repeat(x, 3, axis=1) }""",
    "strided": """fn f(x: f64[N, 9]) { return x[1:, ::2] }""",
    "quotient": """fn f(x: f64[4, 6]) {
 y[i < 24] = x[i // 6, i % 6] * 3.0
 return y }""",
    "flat": """fn f(x: f64[24]) {
 y[i < 4, j < 6] = x[6 * i + j] * 3.0
 return y }""",
    "diag": """fn f(x: f64[N, N]) { return trace(x) }""",
    "flip": """fn f(x: f64[N, M]) { return flip(x, axis=0) }""",
    "concat": """fn f(x: f64[N, M], y: f64[K, M]) { return concat((x, y, x), axis=0) }""",
    "split": """fn f(x: f64[N, 6]) {
 a, b, c = split(x, 3, axis=1)
 return a * b + c }""",
    "update": """fn f(x: f64[N], y: f64[M]) {
 return update x[i in 1..M+1] = y[i - 1] * x[i] }""",
    "scatter": """fn f(x: f64[N], bin: i64[T], y: f64[T]) {
 return update x[bin[i]] += y[i] * y[i] }""",
    "multiplied": """fn f(x: f64[N], y: f64[M]) {
 return update x[i in 1..M+1] *= y[i - 1] * x[i - 1] }""",
    "multiplied_often": """fn f(x: f64[N], bin: i64[T], y: f64[T]) {
 return update x[bin[i]] *= floor(y[i]) * y[i] }""",
    "greatest": """fn f(x: f64[N], bin: i64[T], y: f64[T]) {
 return update x[bin[i]] max= y[i] * y[i] }""",
    "least": """fn f(x: f64[N, M], y: f64[M]) {
 return update x[2, j] min= y[j] * x[1, j] }""",
    "ragged_prod": """fn f(start: i64[R1], val: f64[P], col: i64[P], x: f64[C]) {
 y[r < R1 - 1] = prod[p in start[r]..start[r + 1]](floor(val[p]) * val[p] * x[col[p]])
 return y }""",
    "triangular_prod": """fn f(l: f64[N, N], x: f64[N]) {
 y[i < N] = prod[k < i](l[i, k] + x[k])
 return y }""",
    "slices": """fn f(x: f64[N, M], y: f64[M], pos: i64) {
 return update x[pos, :] = y }""",
    "dyn": """fn f(x: f64[N, M], pos: i64) { return x[pos] * x[0] * x[-1] }""",
    "einsum": """fn f(x: f64[B, I, J], y: f64[B, J, K]) { return einsum("bij,bjk->kb", x, y) }""",
    "prods": """fn f(x: f64[N, M]) { return prod(x, axis=1), prod(x) }""",
    "maxs": """fn f(x: f64[N, M]) { return max(x, axis=1), min(x), max(x, axis=0, keepdims=true) * x }""",
    "sort": """fn f(x: f64[N, M]) { return sort(x, axis=0) }""",
    "topk": """fn f(x: f64[N, M]) {
 a, b = top_k(x, 2)
 return a }""",
    "cumsum": """fn f(x: f64[N, M]) { return cumsum(x, axis=0) }""",
    "reshape": """fn f(x: f64[N, M]) { return reshape(x, (M, N)) * 2.0 }""",
    "pad": """fn f(x: f64[N, M]) { return pad(x, ((1, 2), (0, 3)), value=2.0) }""",
    "varz": """fn f(x: f64[N, M]) { return var(x, axis=0), mean(x) }""",
    "pown": """fn f(x: f64[N, M], y: f64[N, M]) { return abs(x) ** y, x ** 2, x ** 3 }""",
    "matmulx": """fn f(x: f64[N, M], w: f64[M, K], b: f64[K]) { return tanh(x @ w + b) }""",
    "batched": """fn f(x: f64[B, 1, N, M], w: f64[C, M, K]) { return x @ w }""",
    "wheres": """fn f(x: f64[N, M]) { return where(x > 0, log(abs(x)), x * x) }""",
    "clip": """fn f(x: f64[N, M]) { return clip(x, -0.5, 0.5) * x }""",
    "masked": """fn f(x: f64[N, M]) {
 y[i, j] = where(j <= i, x[i, j], -inf)
 return softmax(y) }""",
    "revidx": """fn f(x: f64[N], w: f64[4]) {
 y[i < N + 3] = sum[r < 4](where(i - r >= 0 and i - r < N, x[i - r] * w[r], 0.0))
 return y }""",
    "guarded_max": """fn f(x: f64[N]) {
 y[i] = max[r < 3](where(i + r >= 1 and i + r <= N, x[i + r - 1] * 0.01 * x[i], 0.2))
 return y }""",
    "guarded_twice": """fn f(x: f64[N]) {
 y[i] = (where(i > 0, x[i - 1] * 2.0, 0.0) + where(i > 1, x[i - 1] * x[i], 1.0)) * x[i]
 return y }""",
    "negneg": """fn f(x: f64[N]) {
 y[i] = x[N - 1 - i] * x[i]
 return y }""",
    "conv1t": """fn f(x: f64[B, 4, 8], w: f64[4, 1, 3]) { return conv1d(x, w, padding=1, groups=4, stride=2) }""",
    "stack": """fn f(x: f64[N], y: f64[N]) { return stack((x, y), axis=1) }""",
    "tile": """fn f(x: f64[N, M]) { return tile(x, (2, 3)) }""",
    "multi": """fn f(x: f64[N, M]) {
 y[i] = sum[j, k < 2](x[i, j] * x[(i + k) % N, j])
 return y }""",
    "bounded": """fn f(x: f64[N, M]) {
 y[i] = max[j < i + 1](x[i, minimum(j, M - 1)])
 return y }""",
    "cumprod": """fn f(x: f64[N, M]) { return cumprod(x, axis=0), cumprod(x, axis=1) }""",
    "cumprod0": """fn f(x: f64[N, M]) { return cumprod(floor(x) * x, axis=1) }""",
    "power": """fn f(x: f64[N], a: f64[N, N]) { return loop (v = x) for t < 4 { yield tanh(a @ v) } }""",
    "rnn": """fn f(a: f64[T, D], x: f64[T, D], h0: f64[D]) {
 last, all_h = scan (h = h0) for t < T {
 h1 = a[t] * h + x[t]
 yield h1
 emit tanh(h1) * h
 }
 return last, all_h }""",
    "two": """fn f(x: f64[N], w: f64[N]) { return loop (a = x, b = w) for t in 1..4 { yield a * b + f64(t) * w, a - b * x } }""",
    "stencil2": """fn f(a: f64[N, N]) { return loop (x = a) for t < 3 { yield update x[i in 1..N-1, j in 1..N-1] = 0.2 * (x[i, j] + x[i-1, j] * x[i+1, j] + x[i, j-1] + x[i, j+1]) } }""",
    "nested": """fn f(x: f64[N], w: f64[T, N]) {
 return loop (v = x) for t < 3 {
 u = loop (z = v) for s < T { yield sin(z * w[s]) + z }
 yield u * v
 } }""",
    "int_state": """fn f(x: f64[N], k: i64) {
 y, c = loop (v = x, n = k) for t < 3 { yield v * x[n % N], n + 1 }
 return y }""",
    "cell": """fn f(x: f64[T, N], w: f64[N, N]) {
 return loop (h = x[0]) for t in 1..T { yield tanh(h @ w + x[t]) } }""",
    "until": """fn f(x: f64[N], w: f64[N]) {
 return loop (y = x * x) for t < 9 while sum(y) < 50.0 { yield y * 1.5 + w * w } }""",
    "until_at_once": """fn f(x: f64[N]) {
 return loop (y = x) for t < 9 while sum(y) > 1000.0 { yield y * y } }""",
    "counted_by_data": """fn f(x: f64[N], w: f64[M], k: i64[M]) {
 return loop (y = x) for t in 1..minimum(k[0] + 2, M) { yield sin(y) * w[t] + y } }""",
    "triangle": """fn f(x: f64[N], w: f64[T, T]) {
 return loop (v = x) for t < T {
 yield loop (u = v) for s < t { yield sin(u) * w[t, s] + u }
 } }""",
    "until_inside": """fn f(x: f64[N], w: f64[T]) {
 return loop (v = x) for t < T {
 yield loop (u = v) for s < t + 2 while sum(u * u) < 20.0 { yield 1.5 * u + sin(u) * w[t] }
 } }""",
    "writes": """fn f(x: f64[T, N]) {
 return loop (h = x) for t in 1..T { yield update h[t, :] = h[t] * h[t-1] } }""",
}
SIZES = {
    "N": 5,
    "M": 4,
    "R": 3,
    "B": 2,
    "C": 4,
    "O": 3,
    "R1": 5,
    "P": 6,
    "V": 7,
    "D": 3,
    "T": 4,
    "H": 2,
    "S": 4,
    "E": 3,
    "K": 3,
    "I": 2,
    "J": 3,
}
