"""The report about the learned model: a page, its pictures, and every figure as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.costmodel.dataset import Dataset
from intarsia.costmodel.evaluation import TOPS, Floats, by_shape
from intarsia.costmodel.experiments import FEW, TIMED, WORSE, table
from intarsia.costmodel.targets import target_table
from intarsia.plotting import pyplot

COLUMNS = (
    "model",
    *(f"top-{k} regret, median / p90" for k in TOPS),
    "recall@5",
    "Spearman",
    "Kendall",
    "pairs",
    "over default",
)


SPLITS = {"unseen_shapes": "Unseen shapes", "unseen_ops": "Unseen kinds of op"}
"""How problems are held out, with the titles of their sections."""


def write_report(data: Dataset, found: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md` and its pictures into a folder. Raises CompileError E1801 without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {name: value for name, value in found.items() if name != "predicted"}
    (folder / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
    _draw_search(found, folder / "search.png")
    _draw_times(data, found["predicted"], folder / "times.png")
    _draw_importance(data, folder / "features.png")
    (folder / "report.md").write_text(_page(found))


PREFACE = """\
# The learned cost model, evaluated

Made by `intarsia costmodel evaluate`; every figure is in [report.json](report.json).

{rows} schedules of {problems} kernels, of {whole} kernels all that there are, measured on {machine}.
The second best round of a measurement was {median:.1%} above the best one (median; p90 {p90:.1%}). The best measured
schedule was {best:.2f} times as fast as the default one in the geometric mean: no choice can gain more than that.

*Regret* is how much slower the choice is than the best of a kernel, if so many schedules that look fastest are measured
and the best of them is taken. Only kernels of which every schedule was timed are judged. *Pairs*: of pairs of schedules
that differ by more than 2 %, and by more than both are uncertain, the share in the right order. *Over default*: the
time of the default schedule over that of the first choice, geometric mean.
"""


def _page(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    whole, best = found["whole problems"], found["best over default"]
    lines = [PREFACE.format(**found, **found["spread"], whole=whole, best=best)]
    for split, title in SPLITS.items():
        lines += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table(found, split)]
    lines += [
        "",
        "## Times",
        "",
        "| of | R² of log time | mean error | coverage of the 80 % interval | rows |",
        "|---" * 5 + "|",
    ]
    for name in (n for n in TIMED if n in found):
        own = found[name]
        cells = (name, f"{own['r2']:.3f}", f"{own['mean_error']:.1%}", f"{own['coverage']:.1%}", str(own["rows"]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "![predicted against measured](times.png)",
        *_chosen(found["choices"]),
        *_measured(found),
        *_counted(found["targets"]),
        "",
        "## Searches",
        "",
        "![best so far](search.png)",
    ]
    lines += ["", "## Features", "", "![importance](features.png)", ""]
    return "\n".join(lines)


CHOSEN = """\

## Choices

Of unseen shapes, if the default schedule is left only for one that is predicted to take at most some part of its time;
`passes/schedule/choosing.py` says which part a compilation asks for. *Beside analytic*: the time of what was chosen
over that of what the analytic model would have chosen.

| part | changed | over default | at worst | beside analytic: more than {worse:.0%} worse | at worst |
|---|---|---|---|---|---|\
"""


def _chosen(found: Mapping[str, Any]) -> list[str]:
    """The section about choices by predicted ratios."""
    lines = [CHOSEN.format(worse=WORSE - 1)]
    for worth, own in found.items():
        cells = (
            worth, f"{own['changed']:.1%}", f"{own['over default']:.3f}", f"{own['worst']:.2f}",
            f"{own['worse than analytic']:.1%}", f"{own['worst beside analytic']:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


MEASURED = """\

If {few} schedules are measured and the best of them is taken, its time over that of what the analytic model would have
chosen. `intarsia tune` measures that one as well, so that it cannot end up worse.

| split | measured | geometric mean | more than {worse:.0%} worse | at worst |
|---|---|---|---|---|\
"""


def _measured(found: Mapping[str, Any]) -> list[str]:
    """The section about measuring a few schedules, beside the choice of the analytic model."""
    lines = [MEASURED.format(few=FEW, worse=WORSE - 1)]
    for split, title in SPLITS.items():
        for name, own in found[split]["measured few"].items():
            lines.append(f"| {title} | {name} | {own['mean']:.3f} | {own['worse']:.1%} | {own['worst']:.2f} |")
    return lines


COUNTED = """\

## What is in the code

Predicted for unseen shapes, from the features and from the tokens of the kernel's text: instructions of the LLVM IR,
moves of vector registers to the stack and back, and vector registers that are live at once; {rows} schedules were
counted. Errors are of 1 + count; Spearman is within a kernel, of those whose schedules differ.

| count | median | from | R² of the logarithm | mean error | Spearman |
|---|---|---|---|---|---|\
"""


def _counted(found: Mapping[str, Any]) -> list[str]:
    """The section about what was counted; none where nothing was."""
    if not found:
        return []
    return [COUNTED.format(**found), *(f"| {' | '.join(row)} |" for row in target_table(found))]


def _draw_search(found: Mapping[str, Any], path: Path) -> None:
    """Mean regret over the number of measurements."""
    figure, axes = pyplot().subplots(figsize=(6, 4))
    for name, curve in found["best so far"].items():
        axes.plot(range(1, len(curve) + 1), [100 * value for value in curve], label=name)
    axes.set_xlabel("schedules measured")
    axes.set_ylabel("mean regret of the best so far, %")
    axes.set_yscale("symlog", linthresh=1)
    axes.legend()
    figure.savefig(path, dpi=100, bbox_inches="tight")


def _draw_times(data: Dataset, predicted: Floats, path: Path) -> None:
    """Predicted against measured times of unseen shapes."""
    figure, axes = pyplot().subplots(figsize=(5, 5))
    axes.plot(data.seconds * 1e6, np.exp2(predicted) * 1e6, ".", markersize=2, color="C0", alpha=0.5)
    limits = [float(data.seconds.min() * 1e6), float(data.seconds.max() * 1e6)]
    axes.plot(limits, limits, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured, us")
    axes.set_ylabel("predicted, us")
    figure.savefig(path, dpi=100, bbox_inches="tight")


def _draw_importance(data: Dataset, path: Path) -> None:
    """How much worse the prediction gets on unseen shapes when a feature is shuffled among all rows."""
    from intarsia.costmodel.training import fit, weights

    fitted, judged = next(iter(by_shape(data, 0)))
    model = fit("boosting", data.features[fitted], data.residual[fitted], weights(data)[fitted], 0)
    generator = np.random.default_rng(0)
    base = float(np.mean(np.abs(model.predict(data.features[judged]) - data.residual[judged])))
    worse = []
    for column in range(data.features.shape[1]):
        x = data.features[judged].copy()
        x[:, column] = generator.permutation(x[:, column])
        worse.append(float(np.mean(np.abs(model.predict(x) - data.residual[judged]))) - base)
    order = np.argsort(worse)[-20:]
    figure, axes = pyplot().subplots(figsize=(6, 5))
    axes.barh([data.names[n] for n in order], [worse[n] for n in order])
    axes.set_xlabel("error of log2 time that is added when the feature is shuffled")
    figure.savefig(path, dpi=100, bbox_inches="tight")
