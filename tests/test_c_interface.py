"""Programs called from C: static and open sizes, constants, structs, lists, statuses, several threads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from intarsia.cli import main

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

PROGRAM = """
struct Linear(N, K) {
    weight: f32[N, K]
    bias: f32[N]
}

fn scaled(x: f32[4], new: f64) -> (f32[4], i64) {
    return x * f32(new), argmax(x)
}

fn stack(x: f32[B, K], first: Linear(K, K), layer: Linear(K, K)[L]) -> f32[B, K] {
    return loop (h = x @ transpose(first.weight) + first.bias) for i < L {
        yield h @ transpose(layer[i].weight) + layer[i].bias
    }
}

fn project(x: f32[B, 3], const p: Linear(2, 3), const scale: f32) -> f32[B, 2] {
    return scale * (x @ transpose(p.weight) + p.bias)
}

fn perceptron(x: f32[B, K], const w: f32[K, F], const v: f32[N, F]) -> f32[B, N] {
    return relu(x @ exp(w)) @ transpose(v)
}

fn narrow(w: i4[N], f: f4e2m1[N], u: u3[N]) -> (f32[N], i4[N], f6e2m3[N], u3[N]) {
    x = f32(w) * f32(f) + f32(u)
    return x, i4(i32(u) - 4), f6e2m3(x), u
}

format w4 = quant(i4, scale=f16, group=2, axis=0)

fn dequantized(w: w4[4, 2]) -> f32[4, 2] {
    return dequantize(w)
}

format large = quant(i4, scale=f16, group=128, axis=0)

fn multiplied(x: f32[1, 1024], const w: large[1024, 1024]) -> f32[1, 1024] {
    return x @ dequantize(w)
}

fn shifted(x: f32[N], y: f32[M]) -> f32[M] {
    return tensor[i < M](where(i < 3, x[i + 1], 0.0) + y[i])
}

fn halves(x: f32[N]) -> f32[2, N // 2] {
    return reshape(x, (2, -1))
}

fn gather(x: f32[N], ids: i64[M]) -> f32[M] {
    return tensor[i](x[ids[i]])
}

fn softmaxes(x: f32[N, M]) -> f32[N, M] {
    e = exp(x - max(x, axis=1, keepdims=true))
    return e / sum(e, axis=1, keepdims=true)
}
"""


def run_c(folder: Path, function: str, code: str, *options: str) -> str:
    """Make the library of a function, compile `code` as the body of `main`, and give what that prints."""
    (folder / "p.ita").write_text(PROGRAM)
    for stage, output in (("so", f"lib{function}.so"), ("header", f"{function}.h")):
        assert (
            main(["emit", f"{folder / 'p.ita'}:{function}", "--to", stage, *options, "-o", str(folder / output)]) == 0
        )
    lines = ["#include <pthread.h>", "#include <stdio.h>", "#include <stdlib.h>", f'#include "{function}.h"', code]
    (folder / "main.c").write_text("\n".join(lines))
    command = f"gcc -Wall -Wextra -Werror -std=gnu11 main.c -o main -L. -l{function} -Wl,-rpath,. -pthread"
    subprocess.run(command.split(), cwd=folder, check=True)
    return subprocess.run(["./main"], cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


def body(text: str) -> str:
    return f"int main(void) {{ {text} return 0; }}"


def test_static_sizes_and_several_results(tmp_path: Path) -> None:
    code = """float x[4] = {1, 4, 2, 3}, y[4]; double s = 0.5; int64_t best;
    void *w = aligned_alloc(64, scaled_workspace_size() + 64);
    printf("%d", scaled(x, &s, y, &best, w));
    printf(" %g %g %g %g %ld", y[0], y[1], y[2], y[3], (long)best); free(w);"""
    assert run_c(tmp_path, "scaled", body(code)) == "0 0.5 2 1 1.5 1"


def test_structs_and_lists_with_open_sizes(tmp_path: Path) -> None:
    code = """float x[6] = {1, 2, 3, 4, 5, 6}, swap[4] = {0, 1, 1, 0}, twice[4] = {2, 0, 0, 2}, b[2] = {1, 0}, y[6];
    const float *weights[2] = {swap, twice}, *biases[2] = {b, b};
    void *w = aligned_alloc(64, stack_workspace_size(3, 2) + 64);
    printf("%d", stack(x, twice, b, weights, biases, y, 3, 2, w));
    for (int i = 0; i < 6; i++) printf(" %g", y[i]);
    printf(" %d", stack(x, twice, b, weights, biases, y, 3, 0, w));
    for (int i = 0; i < 6; i++) printf(" %g", y[i]);
    printf(" %d", stack(x, twice, b, NULL, biases, y, 3, 2, w)); free(w);"""
    out = run_c(tmp_path, "stack", body(code), "--dynamic", "B", "--dynamic", "L", "--dim", "K=2")
    # h0 = 2x + (1, 0); swapped + (1, 0); doubled + (1, 0).
    wanted = [v for a, b in ((1, 2), (3, 4), (5, 6)) for v in (2 * (2 * b + 1) + 1, 2 * (2 * a + 1))]
    first = [v for a, b in ((1, 2), (3, 4), (5, 6)) for v in (2 * a + 1, 2 * b)]
    assert out.split() == ["0", *map(str, wanted), "0", *map(str, first), "-1"]


def test_constants_are_prepared_once(tmp_path: Path) -> None:
    code = """float x[6] = {1, 2, 3, 4, 5, 6}, weight[6] = {1, 0, 0, 0, 1, 1}, bias[2] = {10, 20}, scale = 2, y[4];
    void *w = aligned_alloc(64, project_workspace_size(2) + 64), *p = malloc(project_prepared_size(2));
    printf("%d", project_prepare(weight, bias, NULL, 2, p));
    printf(" %d", project_prepare(weight, bias, &scale, 2, p));
    for (int n = 0; n < 2; n++) {
        printf(" %d", project(x, y, 2, p, w));
        for (int i = 0; i < 4; i++) printf(" %g", y[i]);
        x[0] = 7;
    }
    printf(" %d %d", project(x, y, 2, NULL, w), project(x, NULL, 2, p, w)); free(w); free(p);"""
    out = run_c(tmp_path, "project", body(code), "--dynamic", "B")
    assert out == "-1 0 0 22 50 28 62 0 34 50 28 62 -1 -1"


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("--dynamic", "B"), marks=pytest.mark.slow),
        ("--dynamic", "B", "--dynamic", "K", "--dynamic", "F"),
    ],
)
def test_what_depends_on_constants_only_is_computed_once(options: tuple[str, ...], tmp_path: Path) -> None:
    """h = relu(x @ exp(w)) with w = 0 is the sum of x, or 0; y = h * sum of a row of v."""
    open_sizes = [{"B": 37, "K": 65, "F": 100}[name] for name in options[1::2]]
    sizes = ", ".join(map(str, open_sizes))
    more = f"{sizes}, " if sizes else ""
    code = f"""static float x[37 * 65], w[65 * 100], v[18 * 100], y[37 * 18];
    for (int i = 0; i < 37 * 65; i++) x[i] = i / 65 % 2 ? 1 : -1;
    for (int i = 0; i < 18 * 100; i++) v[i] = i / 100;
    void *s = aligned_alloc(64, (perceptron_workspace_size({sizes}) + 127) / 64 * 64);
    long bytes = perceptron_prepared_size({sizes});
    char *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    for (int i = 0; i < 64; i++) p[bytes + i] = 77;
    printf("%d", perceptron_prepare(w, v, {more}p));
    for (int i = 0; i < 65 * 100; i++) w[i] = 9;
    for (int n = 0; n < 2; n++) printf(" %d", perceptron(x, y, {more}p, s));
    for (int i = 0; i < 64; i++) if (p[bytes + i] != 77) printf("written outside");
    for (int i = 0; i < 37; i++) for (int j = 0; j < 18; j++)
        if (y[i * 18 + j] != (i % 2 ? 65.0f * 100 * j : 0)) {{ printf(" wrong at %d %d", i, j); return 1; }}
    printf(" %d", bytes >= 4 * 65 * 100); free(p); free(s);"""
    static = [f"--dim={n}={e}" for n, e in (("B", 37), ("K", 65), ("F", 100)) if n not in options]
    assert run_c(tmp_path, "perceptron", body(code), *options, *static, "--dim=N=18") == "0 0 0 1"


def test_narrow_elements_take_a_byte_each(tmp_path: Path) -> None:
    """A code lies in the low bits of its byte; what is above it does not count, and is 0 in what is computed."""
    code = """uint8_t f[5] = {0x1, 0x9, 0xF7, 0x02, 0xFF}, u[5] = {7, 0, 0xFC, 3, 1}, six[5], three[5];
    int8_t w[5] = {7, -8, 0x0F, 1, (int8_t)0xF8}, i4[5]; float x[5];
    int status = narrow(w, f, u, x, i4, six, three, 5, NULL);
    printf("%d", status);
    for (int i = 0; i < 5; i++) printf(" %g:%x:%x:%x", x[i], (uint8_t)i4[i], six[i], three[i]);
    """
    # 7 * 0.5 + 7, -8 * -0.5 + 0, -1 * 6 + 4, 1 * 1 + 3, -8 * -6 + 1; f6e2m3 saturates at 7.5.
    # Elements of u are only moved.
    wanted = "0 10.5:3:1f:7 4:c:18:0 -2:0:30:fc 4:f:18:3 49:d:1f:1"
    assert run_c(tmp_path, "narrow", body(code), "--dynamic", "N") == wanted
    text = (tmp_path / "narrow.h").read_text()
    assert "const int8_t *w, /* i4[N] */" in text and "const uint8_t *f, /* f4e2m1[N] */" in text


def test_a_tensor_of_a_format_is_its_parts(tmp_path: Path) -> None:
    code = """int8_t codes[8] = {1, -2, 3, -4, 5, -6, 7, -8};
    uint16_t half[4] = {0x3C00, 0x4000, 0x3800, 0xBC00};
    float x[8];
    printf("%d", dequantized(codes, half, x, NULL)); for (int i = 0; i < 8; i++) printf(" %g", x[i]);"""
    # Scales of 1 and 2 for the first two rows, of 0.5 and -1 for the others.
    assert run_c(tmp_path, "dequantized", body(code)) == "0 1 -4 3 -8 2.5 6 3.5 8"
    text = (tmp_path / "dequantized.h").read_text()
    assert "*w_codes, /* i4[4, 2] */" in text and "*w_scale, /* f16[2, 2] */" in text


@pytest.mark.slow
def test_weights_of_a_format_are_prepared(tmp_path: Path) -> None:
    """Whatever is above the codes in their bytes; prepared, they share words. A row of x with a single 1 reads one row
    of the weights."""
    code = """enum { N = 1024 };
    static int8_t codes[N * N]; static uint16_t scale[N / 128 * N]; static float x[N], y[N];
    for (int i = 0; i < N * N; i++) codes[i] = (int8_t)((i / N * 7 + i % N * 3) % 16 | (i % 13) << 4);
    for (int i = 0; i < N / 128 * N; i++) scale[i] = i % 3 ? 0x3C00 : 0x4000;
    void *w = aligned_alloc(64, (multiplied_workspace_size() + 127) / 64 * 64);
    void *p = aligned_alloc(64, (multiplied_prepared_size() + 127) / 64 * 64);
    printf("%d", multiplied_prepare(codes, scale, p));
    int wrong = 0;
    for (int row = 0; row < N; row += 31) {
        x[row] = 1;
        wrong += multiplied(x, y, p, w) != 0;
        for (int j = 0; j < N; j++) {
            int number = (codes[row * N + j] & 15) - 16 * (codes[row * N + j] >> 3 & 1);
            wrong += y[j] != (float)number * (scale[row / 128 * N + j] == 0x4000 ? 2 : 1);
        }
        x[row] = 0;
    }
    printf(" %d %d", wrong, multiplied_prepared_size() >= N * N / 2); free(w); free(p);"""
    assert run_c(tmp_path, "multiplied", body(code)) == "0 0 1"


def test_conditions_of_open_sizes_give_a_status(tmp_path: Path) -> None:
    code = """float x[5] = {1, 2, 3, 4, 5}, y[4] = {10, 20, 30, 40}, z[4];
    printf("%d", shifted(x, y, z, 4, 4, NULL));
    for (int i = 0; i < 4; i++) printf(" %g", z[i]);
    printf(" %d %d %d %d", shifted(x, y, z, 3, 4, NULL), shifted(x, y, z, 3, 2, NULL),
           shifted(x, y, z, -1, 2, NULL), shifted(NULL, NULL, NULL, 0, 0, NULL));"""
    out = run_c(tmp_path, "shifted", body(code), "--dynamic", "N", "--dynamic", "M")
    assert out == "0 12 23 34 40 3 0 1 0"
    header = (tmp_path / "shifted.h").read_text()
    assert "3: `x[i + 1]` can fall outside (" in header and "1: the size N is negative" in header


def test_divisions_that_are_not_exact_give_a_status(tmp_path: Path) -> None:
    code = """float x[5] = {1, 2, 3, 4, 5}, y[4];
    int fine = halves(x, y, 4, NULL);
    printf("%d %g %d", fine, y[3], halves(x, y, 5, NULL) > 0);"""
    assert run_c(tmp_path, "halves", body(code), "--dynamic", "N") == "0 4 1"


def test_a_failed_check_gives_its_number(tmp_path: Path) -> None:
    code = """float x[3] = {1, 2, 3}, y[2]; int64_t ids[2] = {2, 0};
    int fine = gather(x, ids, y, 3, 2, NULL);
    printf("%d %g %g", fine, y[0], y[1]); ids[1] = 3;
    printf(" %d", gather(x, ids, y, 3, 2, NULL));"""
    out = run_c(tmp_path, "gather", body(code), "--dynamic", "N", "--dynamic", "M", "--checks")
    assert out == "0 3 1 1"
    assert "1: subscript … is outside 0..… (" in (tmp_path / "gather.h").read_text()


def test_calls_at_the_same_time(tmp_path: Path) -> None:
    code = """enum { N = 64, M = 100 };
    static float x[N * M];
    static void *calls(void *failed) {
        float *y = malloc(sizeof x);
        void *w = aligned_alloc(64, (softmaxes_workspace_size(N, M) + 127) / 64 * 64);
        for (int n = 0; n < 50; n++) {
            if (softmaxes(x, y, N, M, w)) *(int *)failed = 1;
            for (int i = 0; i < N; i++) {
                double s = 0;
                for (int j = 0; j < M; j++) s += y[i * M + j];
                if (s < 0.99999 || s > 1.00001) *(int *)failed = 2;
            }
        }
        free(w); free(y); return NULL;
    }
    int main(void) {
        pthread_t threads[4]; int failed[4] = {0};
        for (int i = 0; i < N * M; i++) x[i] = (float)(i % 37) / 7;
        for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, calls, &failed[i]);
        for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
        printf("%d", failed[0] | failed[1] | failed[2] | failed[3]);
        if (softmaxes_workspace_size(N, M) > 0) printf(" %d", softmaxes(x, x, N, M, NULL));
    }"""
    assert run_c(tmp_path, "softmaxes", code, "--dynamic", "N", "--dynamic", "M") in ("0", "0 -1")


def test_the_header_is_fit_for_cpp(tmp_path: Path) -> None:
    (tmp_path / "p.ita").write_text(PROGRAM)
    assert main(["emit", f"{tmp_path / 'p.ita'}:scaled", "--to", "header", "-o", str(tmp_path / "p.h")]) == 0
    command = ["g++" if shutil.which("g++") else "gcc", "-Wall", "-Werror", "-fsyntax-only", str(tmp_path / "p.h")]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("name", ["memcpy", "exp"])
def test_names_of_the_c_library_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"fn {name}(x: f32[3]) -> f32[3] {{ return x }}"
    assert main(["emit", "-e", text, "--to", "so", "-o", str(tmp_path / "x.so")]) == 1
    assert "E1712" in capsys.readouterr().err


def test_conditions_that_cannot_be_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "fn f(x: f32[N], y: f32[M]) -> f32[M] { return tensor[i < M](x[(i * i) % 7 + 0 * M] + y[i]) }"
    status = main(["emit", "-e", text, "--to", "header", "--dynamic", "N", "--dynamic", "M"])
    assert status == 1 and "E1714" in capsys.readouterr().err
