"""Reductions that go through their axis once: with infinities and NaN, masks and blocks of rows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import ScheduleError, Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_verifier import problems
from intarsia.ir.schedule import Schedule
from intarsia.passes.schedule.apply import apply

ROWS, KEYS, DEPTH, WIDTH = 7, 13, 2, 3

STAGES = f"""kernel attention(q: f32[{ROWS}, {DEPTH}], k: f32[{KEYS}, {DEPTH}], v: f32[{KEYS}, {WIDTH}],
                              out y: f32[{ROWS}, {WIDTH}], out l: f32[{ROWS}]) {{
  alloc s: f32[{ROWS}, {KEYS}]
  alloc m: f32[{ROWS}]
  alloc p: f32[{ROWS}, {KEYS}]
  for i in 0..{ROWS} {{ for j in 0..{KEYS} {{ s[i, j] = 0.0 }} }}
  for i.1 in 0..{ROWS} {{ for j.1 in 0..{KEYS} {{ for d in 0..{DEPTH} {{ s[i.1, j.1] += q[i.1, d] * k[j.1, d] }} }} }}
  for i.2 in 0..{ROWS} {{ m[i.2] = -inf }}
  for i.3 in 0..{ROWS} {{ for j.3 in 0..{KEYS} {{ m[i.3] max= SCORE(i.3, j.3) }} }}
  for i.4 in 0..{ROWS} {{ for j.4 in 0..{KEYS} {{ p[i.4, j.4] = exp(SCORE(i.4, j.4) - m[i.4]) }} }}
  for i.5 in 0..{ROWS} {{ l[i.5] = 0.0 }}
  for i.6 in 0..{ROWS} {{ for j.6 in 0..{KEYS} {{ l[i.6] += p[i.6, j.6] }} }}
  for i.7 in 0..{ROWS} {{ for e in 0..{WIDTH} {{ y[i.7, e] = 0.0 }} }}
  for i.8 in 0..{ROWS} {{ for e.1 in 0..{WIDTH} {{ for j.7 in 0..{KEYS} {{
    y[i.8, e.1] += p[i.8, j.7] / l[i.8] * v[j.7, e.1] }} }} }}
}}"""

MASKS = {
    "full": "s[i, j] * 0.5",
    "bias": "s[i, j] * 0.5 + f32(index(j - i))",
    "causal": "where(index(j) <= index(i), s[i, j] * 0.5, -inf)",
    "anticausal": "where(index(i + 9) <= index(j), s[i, j], -inf)",
    "window": "where(index(j) <= index(i) and index(i) < index(j + 3), s[i, j], -inf)",
}

BLOCKS = "; ".join(f"split {axis} 3 -> b{n} r{n}" for n, axis in enumerate(
    ("i", "i.1", "i.2", "i.3", "i.4", "i.5", "i.6", "i.7", "i.8", "i.8.0")
))  # fmt: skip
SCHEDULES = {
    "rows at once": "factor y; online m 4 -> b",
    "one row": "factor y; merge i i.1 i.2 i.3 i.4 i.5 i.6 i.7 i.8 i.8.0; online m 5 -> b",
    "blocks of rows": f"factor y; {BLOCKS}; merge {' '.join(f'b{n}' for n in range(10))}; online m 4 -> b",
    "parts": "factor y; parts m 5",
    "parts of one row": "factor y; merge i i.1 i.2 i.3 i.4 i.5 i.6 i.7 i.8 i.8.0; parts m 4",
    "parts in blocks": "factor y; parts m 6; "
    "merge j.3.0 j.3.1 j.3.3 j.3.2 j.3.4 j.3.6 j.3.5 j.3.8 j.3.7 j.3.9 j.3.10 j.3.11; online m.0 4 -> b",
}


def attention(score: str, stages: str = STAGES) -> Kernel:
    def written(match: re.Match[str]) -> str:
        axes = {"i": match[1], "j": match[2]}
        return re.sub(r"\b[ij]\b", lambda m: axes[m[0]], score)

    return read_kernel(Source("attention.ir", re.sub(r"SCORE\(([\w.]+), ([\w.]+)\)", written, stages)))


def results(kernel: Kernel, inputs: dict[str, Array]) -> tuple[Array, Array]:
    y, total = np.full((ROWS, WIDTH), 7, np.float32), np.full(ROWS, 7, np.float32)
    with np.errstate(all="ignore"):
        run(kernel, {**inputs, "y": y, "l": total}, {})
    return y, total


def special(seed: int) -> dict[str, Array]:
    """Inputs of which few elements are infinite or NaN; keys at the front that make every score -inf."""
    random = np.random.default_rng(seed)
    inputs = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in (("q", (ROWS, DEPTH)), ("k", (KEYS, DEPTH)), ("v", (KEYS, WIDTH)))
    }
    for array in inputs.values():
        places = random.random(array.shape) < 0.05
        array[places] = random.choice([np.inf, -np.inf, np.nan], places.sum())
    if seed % 2:
        inputs["q"] = abs(inputs["q"])
        inputs["k"][: random.integers(1, KEYS + 1)] = -np.inf
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask", MASKS)
def test_infinities_and_nan_are_kept(mask: str, schedule: str) -> None:
    naive = attention(MASKS[mask])
    online = apply(naive, Schedule.parse(SCHEDULES[schedule]))
    assert not problems(online)
    seen = np.zeros(2, int)
    for seed in range(6):
        inputs = special(seed)
        for expected, actual in zip(results(naive, inputs), results(online, inputs)):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
            seen += np.isnan(expected).sum(), np.isfinite(expected).sum()
    assert seen.min() > 15, "some results are numbers, some are NaN"


@pytest.mark.parametrize(
    ("mask", "bounds"),
    [
        ("full", r"0\.\.13 step 4"),
        ("causal", r"0\.\.min\(13, 3 \* \w+ \+ 3\) step 4"),
        ("window", r"max\(0, 3 \* \w+ - 2\)\.\.min\(13, 3 \* \w+ \+ 3\) step 4"),
    ],
)
def test_blocks_that_a_mask_rules_out_are_left_out(mask: str, bounds: str) -> None:
    kernel = apply(attention(MASKS[mask]), Schedule.parse(SCHEDULES["blocks of rows"]))
    loop = next(line for line in print_kernel(kernel).splitlines() if line.strip().startswith("for b in"))
    assert re.search(bounds, loop), loop


SUMS = f"""kernel sums(q: f32[{ROWS}, {DEPTH}], k: f32[{KEYS}, {DEPTH}], v: f32[{KEYS}, {WIDTH}],
                        out y: f32[{ROWS}, {WIDTH}], out l: f32[{ROWS}]) {{
  alloc s: f32[{ROWS}, {KEYS}]
  for n in 0..{ROWS} {{ l[n] = 0.0 }}
  for i in 0..{ROWS} {{ for j in 0..{KEYS} {{ s[i, j] = 0.0 }} }}
  for i.1 in 0..{ROWS} {{ for j.1 in 0..{KEYS} {{ for d in 0..{DEPTH} {{ s[i.1, j.1] += q[i.1, d] * k[j.1, d] }} }} }}
  for i.2 in 0..{ROWS} {{ for e in 0..{WIDTH} {{ y[i.2, e] = 0.0 }} }}
  for i.3 in 0..{ROWS} {{ for e.1 in 0..{WIDTH} {{ for j.2 in 0..{KEYS} {{
    y[i.3, e.1] += SCORE(i.3, j.2) * v[j.2, e.1] }} }} }}
}}"""
SWEPT = "; ".join(f"split {axis} 3 -> b{n} r{n}" for n, axis in enumerate(("i", "i.1", "i.2", "i.3")))


@pytest.mark.parametrize("mask", ["causal", "anticausal", "window"])
def test_sums_leave_out_blocks_in_which_a_factor_is_zero(mask: str) -> None:
    """But not what makes NaN of it."""
    naive = attention(MASKS[mask].replace("-inf", "0.0"), SUMS)
    swept = apply(naive, Schedule.parse(f"{SWEPT}; merge b0 b1 b2 b3; online y 4 -> b"))
    assert not problems(swept)
    loop = next(line for line in print_kernel(swept).splitlines() if line.strip().startswith("for b in"))
    assert "b0" in loop, "which blocks there are depends on the rows"
    seen = np.zeros(2, int)
    for seed in range(10):
        inputs = special(seed)
        expected, actual = results(naive, inputs)[0], results(swept, inputs)[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        seen += np.isnan(expected).sum(), np.isfinite(expected).sum()
    assert seen.min() > 15, "some results are numbers, some are NaN"


def test_the_sign_of_zero_stays_when_factors_are_taken_out() -> None:
    """Sums start from 0.0 and are never -0.0; what a negative number divides afterwards would be."""
    text = "kernel mean(e: f32[3], l: f32, out y: f32) { y[] = 0.0 for j in 0..3 { y[] += e[j] / l[] } }"
    kernel = read_kernel(Source("mean.ir", text))
    for each in (kernel, apply(kernel, Schedule.parse("factor y"))):
        result = np.full((), np.nan, np.float32)
        run(each, {"e": np.zeros(3, np.float32), "l": np.full((), -2.0, np.float32), "y": result}, {})
        assert result == 0 and not np.signbit(result)


MOMENTS = """kernel moments(x: f32[5, 23], w: f32[23], out v: f32[5]) {
  alloc s: f32[5]
  for i in 0..5 { s[i] = 0.0 }
  for i.1 in 0..5 { for j in 0..23 { s[i.1] += x[i.1, j] } }
  for i.2 in 0..5 { v[i.2] = 0.0 }
  for i.3 in 0..5 { for j.1 in 0..23 { v[i.3] += SUMMAND } }
}"""
POLYNOMIALS = {
    "variance": "(x[i.3, j.1] - s[i.3] / 23.0) * (x[i.3, j.1] - s[i.3] / 23.0)",
    "negative": "(s[i.3] * 0.04347826086956522 - x[i.3, j.1]) * (x[i.3, j.1] - s[i.3] * 0.04347826086956522)",
    "with more of it": "(x[i.3, j.1] - s[i.3] / 23.0) * (x[i.3, j.1] - s[i.3] / 23.0) + w[j.1]",
}


def moments(summand: str, schedule: str = "") -> Kernel:
    """A kernel that adds up a polynomial in a sum."""
    kernel = apply(read_kernel(Source("moments.ir", MOMENTS.replace("SUMMAND", summand))), Schedule.parse(schedule))
    assert not problems(kernel)
    return kernel


def of_rows(kernel: Kernel, x: Array) -> Array:
    """What such a kernel computes."""
    result = np.full(5, 7, np.float32)
    with np.errstate(all="ignore"):
        run(kernel, {"x": x, "w": np.linspace(-1, 2, 23, dtype=np.float32), "v": result}, {})
    return result


@pytest.mark.parametrize(
    "schedule", ["online s 4", "online s 23", "merge i i.1 i.2 i.3; online s 6", "parts s 4", "parts s 23"]
)
@pytest.mark.parametrize("polynomial", POLYNOMIALS)
def test_sums_follow_a_sum_that_they_need(polynomial: str, schedule: str) -> None:
    """Rows of numbers, of large ones, with infinities and NaN, and with sums that overflow."""
    random = np.random.default_rng(0)
    naive, scheduled = moments(POLYNOMIALS[polynomial]), moments(POLYNOMIALS[polynomial], schedule)
    seen = np.zeros(3, int)
    for special in (
        [],
        [np.inf],
        [-np.inf],
        [np.inf, -np.inf],
        [np.nan],
        [3e38, 3e38],
        [3e38, -3e38],
        [1e25],
        [-4e37] * 9,
    ):
        x = (random.standard_normal((5, 23)) * 10.0 ** random.integers(-3, 4)).astype(np.float32)
        x[2, random.permutation(23)[: len(special)]] = special
        expected, actual = of_rows(naive, x), of_rows(scheduled, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        seen += np.isnan(expected).sum(), np.isinf(expected).sum(), np.isfinite(expected).sum()
    assert seen.all(), "some results are numbers, some infinite, some NaN"


def test_a_variance_is_as_exact_as_in_two_passes() -> None:
    random = np.random.default_rng(1)
    x = (1e4 + random.standard_normal((5, 23))).astype(np.float32)
    x[1].sort()
    x[2, :4] += 1e4
    exact = np.var(x.astype(np.float64), axis=1) * 23
    for steps in ("online s 4", "parts s 4"):
        np.testing.assert_allclose(of_rows(moments(POLYNOMIALS["variance"], steps), x), exact, rtol=2e-6)


@pytest.mark.parametrize(
    ("summand", "reason"),
    [
        ("x[i.3, j.1] - s[i.3]", "otherwise than as a mean"),
        ("(x[i.3, j.1] - s[i.3] / 23.0) / (s[i.3] / 23.0)", "is no polynomial"),
        ("exp(x[i.3, j.1] - s[i.3] / 23.0)", "is no polynomial"),
        ("x[i.3, j.1] - s[i.3] / 23.0", "of degree 2"),
        ("(w[j.1] - s[i.3] / 23.0) * (w[j.1] - s[i.3] / 23.0)", "is not least at the mean"),
        ("x[i.3, j.1] - s[4 - i.3]", "does not run over the rows"),
    ],
)
def test_what_does_not_follow_a_sum_is_refused(summand: str, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        moments(summand, "online s 4")


def test_what_needs_the_finished_sum_otherwise_comes_after_the_sweep() -> None:
    text = """kernel both(x: f32[5, 23], w: f32[5], out q: f32[5], out v: f32[5], out total: f32) {
      alloc s: f32[5]
      alloc z: f32[5, 23]
      for i in 0..5 { for j in 0..23 { z[i, j] = exp(x[i, j]) } }
      for i.1 in 0..5 { s[i.1] = 0.0 }
      for i.2 in 0..5 { for j.2 in 0..23 { s[i.2] += z[i.2, j.2] } }
      for i.3 in 0..5 { q[i.3] = 0.0 }
      for i.4 in 0..5 { for j.4 in 0..23 { q[i.4] += z[i.4, j.4] * z[i.4, j.4] } }
      for i.5 in 0..5 { v[i.5] = 0.0 }
      for i.6 in 0..5 { for k in 0..5 { v[i.6] += w[k] * s[i.6] } }
      total[] = 0.0
      for i.7 in 0..5 { total[] += s[i.7] }
    }"""
    naive = read_kernel(Source("both.ir", text))
    online = apply(naive, Schedule.parse("online s 4"))
    assert not problems(online)
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 23), 5))
    found = []
    for kernel in (naive, online):
        outputs = {"q": np.zeros(5, np.float32), "v": np.zeros(5, np.float32), "total": np.zeros((), np.float32)}
        run(kernel, {"x": x, "w": w, **outputs}, {})
        found.append(np.concatenate([o.reshape(-1) for o in outputs.values()]))
    np.testing.assert_allclose(*found, rtol=1e-5)
