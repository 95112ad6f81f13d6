"""Training beside PyTorch, on a CPU: a step of a transformer block with AdamW, and the loss curve of a whole model.

    venv-intarsia/bin/python training.py [--torch venv-torch/bin/python] [--threads 1,2] [--turns 15]
        [--parts block,characters,curves] [--steps 600]

A step of the block: 4 sequences of 128, width 768, 12 heads, gradient and AdamW, in f32. PyTorch runs in a process of its
own, eager and by `torch.compile`, with its fused AdamW. After three steps from the same weights, losses and weights have
to agree; then all take turns, and medians count.

The model is that of examples/train_characters.py, from the same weights on the same pieces of text. TRAINING.md shows
both, results/training.json keeps the samples.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from lowbit_weights import PAUSE, Peer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

BATCH, LENGTH, WIDTH, HIDDEN, HEADS, RATE = 4, 128, 768, 3072, 12, 1e-3
SHAPES = {
    "norm_gain": (WIDTH,), "norm_bias": (WIDTH,), "qkv": (WIDTH, 3 * WIDTH), "qkv_bias": (3 * WIDTH,),
    "out": (WIDTH, WIDTH), "out_bias": (WIDTH,), "hidden_gain": (WIDTH,), "hidden_bias": (WIDTH,),
    "up": (WIDTH, HIDDEN), "up_bias": (HIDDEN,), "down": (HIDDEN, WIDTH), "down_bias": (WIDTH,),
}  # fmt: skip
CHECKED = 3
"""Steps after which losses and weights have to agree."""

WAYS = ("eager", "compiled")

KINDS = ("allocated", "resident")


def first_block():
    """Weights, inputs and what the block should make of them, the same in every process."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.normal(size=s) * 0.02 + n.endswith("gain")).astype(np.float32) for n, s in SHAPES.items()}
    x, y = (rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32) for _ in range(2))
    return weights, x, y


# ---------------------------------------------------------------------- PyTorch


def torch_block(x, y, p):
    """The loss of the block."""
    from torch.nn import functional

    q, k, v = (functional.layer_norm(x, (WIDTH,), p["norm_gain"], p["norm_bias"]) @ p["qkv"] + p["qkv_bias"]).split(
        WIDTH, 2
    )
    q, k, v = (t.view(BATCH, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    a = x + mixed @ p["out"] + p["out_bias"]
    hidden = functional.layer_norm(a, (WIDTH,), p["hidden_gain"], p["hidden_bias"]) @ p["up"] + p["up_bias"]
    e = a + functional.gelu(hidden) @ p["down"] + p["down_bias"] - y
    return (e * e).mean()


def torch_steps(way):
    """A function that makes one step and gives the loss, and the weights that it changes."""
    import torch

    weights, x, y = first_block()
    p = {n: torch.from_numpy(w).requires_grad_() for n, w in weights.items()}
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    optimiser = torch.optim.AdamW(p.values(), lr=RATE, weight_decay=0.01, fused=True)
    loss = torch.compile(torch_block) if way == "compiled" else torch_block

    def step():
        value = loss(x, y, p)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        return value.item()

    return step, p


def block_worker(threads, folder):
    """Answers the name of a way with the seconds of one step; first leaves losses and weights of each in `folder`."""
    import torch

    torch.set_num_threads(int(threads))
    steps = {}
    for way in WAYS:
        step, p = torch_steps(way)
        losses = [step() for _ in range(CHECKED)]
        np.savez(Path(folder) / f"{way}.npz", losses=losses, **{n: w.detach().numpy() for n, w in p.items()})
        steps[way] = step
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


def torch_model(ids, following, p):
    """The loss of the model of characters."""
    import torch
    from torch.nn import functional

    batch, length = ids.shape
    width = p["token"].shape[1]
    x = p["token"][ids] + p["position"]
    for layer in p["layer"]:
        h = functional.rms_norm(x, (width,), layer["attention_gain"], eps=1e-6) @ layer["attention_in"]
        q, k, v = (t.view(batch, length, 4, width // 4).transpose(1, 2) for t in h.split(width, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + mixed @ layer["attention_out"]
        h = functional.rms_norm(x, (width,), layer["hidden_gain"], eps=1e-6) @ layer["hidden_in"]
        x = x + functional.gelu(h) @ layer["hidden_out"]
    scores = functional.rms_norm(x, (width,), p["gain"], eps=1e-6) @ p["token"].T
    return functional.cross_entropy(scores.flatten(0, 1), torch.flatten(following))


def torch_train(text, weights, starts, length, rate):
    """The loss of each step, by PyTorch, and the seconds that all took."""
    import torch

    def tensor(w):
        return torch.from_numpy(np.array(w)).requires_grad_()

    p = {n: tensor(w) for n, w in weights.items() if n != "layer"}
    p["layer"] = [{n: tensor(w) for n, w in layer.items()} for layer in weights["layer"]]
    every = [w for n, w in p.items() if n != "layer"] + [w for layer in p["layer"] for w in layer.values()]
    optimiser = torch.optim.AdamW(every, lr=rate, weight_decay=0.1, fused=True)
    losses, begin = [], time.perf_counter()
    for start in starts:
        pieces = torch.from_numpy(text[start[:, None] + np.arange(length + 1)])
        value = torch_model(pieces[:, :-1], pieces[:, 1:], p)
        value.backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(value.item())
    return np.array(losses, np.float32), time.perf_counter() - begin


def characters_worker(threads, file):
    """Answers a number of steps with the seconds that they take from the first weights on, and leaves the losses in a
    file."""
    import torch

    torch.set_num_threads(int(threads))
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        losses, seconds = torch_train(*characters(int(line)))
        np.save(file, losses)
        print(seconds, flush=True)


def characters(steps):
    """What `torch_train` takes, of the example."""
    import train_characters as example

    rng = np.random.default_rng(0)
    letters, text = example.encoded(example.read_text())
    starts = rng.integers(0, len(text) - example.LENGTH, (steps, example.BATCH))
    return text, example.first_weights(len(letters), rng), starts, example.LENGTH, example.RATE


# ---------------------------------------------------------------------- ours


class Ours:
    """The block's step, from call to call."""

    def __init__(self):
        import intarsia

        self.program = intarsia.load(HERE / "training.ita")
        self.restart()

    def restart(self):
        self.p, self.x, self.y = first_block()
        self.m, self.v = ({n: np.zeros_like(w) for n, w in self.p.items()} for _ in range(2))
        self.number = 0

    def step(self):
        value, self.p, self.m, self.v = self.program.main(
            self.x, self.y, self.p, self.m, self.v, self.number, np.float32(RATE)
        )
        self.number += 1
        return float(value)


def check_block(ours, folder):
    """Stop where losses or weights differ by more than rounding: AdamW's first steps have the size of the rate whatever
    the gradient is, so that one that is all rounding moves a weight by up to that; few of them may."""
    ours.restart()
    losses = [ours.step() for _ in range(CHECKED)]
    for way in WAYS:
        with np.load(Path(folder) / f"{way}.npz") as theirs:
            assert np.allclose(losses, theirs["losses"], rtol=1e-5), (way, losses, theirs["losses"])
            for name, w in ours.p.items():
                moved = abs(w - theirs[name])
                assert moved.max() <= 2 * CHECKED * RATE, name
                if name != "qkv_bias":  # that of the keys changes nothing: its gradient is rounding alone
                    assert np.mean(moved > 0.01 * RATE) < 0.01, (way, name, float(np.mean(moved > 0.01 * RATE)))


def measure_block(threads, turns, python):
    """Seconds of a step by each way, one for each turn."""
    from intarsia.runtime.threads import THREADS

    THREADS.set(threads)
    ours = Ours()
    with tempfile.TemporaryDirectory() as folder:
        torch = Peer(python, Path(__file__).name, "--worker", "block", threads, folder)
        check_block(ours, folder)
    taken = {"ours": [], **{way: [] for way in WAYS}}
    for _ in range(turns):
        begin = time.perf_counter()
        ours.step()
        taken["ours"].append(time.perf_counter() - begin)
        time.sleep(PAUSE)
        for way in WAYS:
            taken[way].append(torch.seconds(way))
            time.sleep(PAUSE)
    torch.close()
    return {"threads": threads, "torch": torch.version, "seconds": taken}


def draw_characters(steps, python):
    """Both loss curves at every 100th step and as a picture, and what ours writes then."""
    import train_characters as example

    with tempfile.TemporaryDirectory() as folder:
        torch = Peer(python, Path(__file__).name, "--worker", "characters", 1, f"{folder}/losses.npy")
        torch.seconds(steps)
        theirs = np.load(f"{folder}/losses.npy")
        torch.close()
    text, weights, starts, *_ = characters(steps)
    p, ours = example.train(text, weights, starts)
    letters, _ = example.encoded(example.read_text())
    example.draw({"PyTorch": theirs, "Intarsia": ours}, HERE / "results" / "training-characters.png")
    return {
        "steps": steps,
        "ours": ours[99::100].tolist(),
        "eager": theirs[99::100].tolist(),
        "text": example.write(p, letters, "The compiler ", 400, np.random.default_rng(1)),
    }


def time_characters(threads, turns, python):
    """Seconds of a step, one for each turn of as many steps as a call of ours takes."""
    import train_characters as example

    from intarsia.runtime.threads import THREADS

    THREADS.set(threads)
    text, weights, starts, *_ = characters(example.CALL)
    example.train(text, weights, starts)  # compiles
    taken = {"ours": [], "eager": []}
    with tempfile.TemporaryDirectory() as folder:
        torch = Peer(python, Path(__file__).name, "--worker", "characters", threads, f"{folder}/losses.npy")
        torch.seconds(example.CALL)
        for _ in range(turns):
            begin = time.perf_counter()
            example.train(text, weights, starts)
            taken["ours"].append((time.perf_counter() - begin) / example.CALL)
            time.sleep(PAUSE)
            taken["eager"].append(torch.seconds(example.CALL) / example.CALL)
            time.sleep(PAUSE)
        torch.close()
    return {"threads": threads, "torch": torch.version, "seconds": taken}


# ---------------------------------------------------------------------- the page


def table(rows, ways):
    """Medians in milliseconds, and those of the ratios within a turn."""
    for row in rows:
        taken = row["seconds"]
        times = [f"{1e3 * statistics.median(taken[n]):.1f}" for n in ("ours", *ways)]
        ratios = [f"{statistics.median(a / b for a, b in zip(taken[w], taken['ours'])):.2f}" for w in ways]
        yield f"| {row['threads']} | {' | '.join(times + ratios)} |"


def memory(found):
    """What `training_memory.py` measured."""
    ours, theirs = ([f"{found[peer][kind] / 1e6:.0f}" for kind in KINDS] for peer in ("intarsia", "torch"))
    return [
        "The most memory of such a step, causal and with weights changed in place, parameters and the optimiser's state "
        "included, in MB",
        "(`training_memory.py`):",
        "",
        "| | ours | PyTorch |",
        "|---|---|---|",
        *(f"| {kind} | {a} | {b} |" for kind, a, b in zip(KINDS, ours, theirs)),
    ]


def page(results):
    """TRAINING.md."""
    found = results["curves"]
    ours, theirs = found["ours"], found["eager"]
    difference = 100 * max(abs(a / b - 1) for a, b in zip(ours, theirs))
    return "\n".join([
        "# Training",
        "",
        f"Beside PyTorch {results['block'][0]['torch']}, with its fused AdamW, on {results['cores']} cores, in f32: "
        "`training.py`. Medians of turns, in",
        "milliseconds, and of the ratios within a turn.",
        "",
        "## A step of a transformer block",
        "",
        f"{BATCH} sequences of {LENGTH}, width {WIDTH}, {HEADS} heads, {HIDDEN} hidden: the gradient of the mean square "
        "error, and AdamW. PyTorch",
        f"changes weights in place, ours are new arrays. After {CHECKED} steps losses and weights are the same.",
        "",
        "| threads | ours | eager | torch.compile | eager / ours | compiled / ours |",
        "|---|---|---|---|---|---|",
        *table(results["block"], WAYS),
        "",
        *memory(json.loads((HERE / "results" / "training-memory.json").read_text())),
        "",
        "## A model of characters",
        "",
        "`examples/train_characters.py` and the same in PyTorch, eager: 3 layers of width 128, 16 pieces of 64 characters "
        "a step.",
        "",
        "| threads | ours | eager | eager / ours |",
        "|---|---|---|---|",
        *table(results["characters"], ("eager",)),
        "",
        f"From the same weights, on the same pieces of text, the losses at every 100th step differ by at most "
        f"{difference:.1g} %:",
        "",
        "| step | " + " | ".join(str(100 * n + 100) for n in range(len(ours))) + " |",
        "|---|" + "---|" * len(ours),
        "| ours | " + " | ".join(f"{x:.4f}" for x in ours) + " |",
        "| PyTorch | " + " | ".join(f"{x:.4f}" for x in theirs) + " |",
        "",
        "![losses by step](results/training-characters.png)",
        "",
        f"What it writes after {found['steps']} steps, from `The compiler ` on:",
        "",
        "~~~text",
        found["text"],
        "~~~",
        "",
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=str(HERE / "venv-torch" / "bin" / "python"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--parts", default="block,characters,curves")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training.json")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, *words = options.worker
        {"block": block_worker, "characters": characters_worker}[kind](*words)
        return
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    measured = {"block": measure_block, "characters": time_characters}
    for part, measure in measured.items():
        for threads in map(int, options.threads.split(",")) if part in options.parts.split(",") else ():
            kept = [row for row in results.get(part, ()) if row["threads"] != threads]
            row = measure(threads, options.turns, options.torch)
            results[part] = sorted([*kept, row], key=lambda row: row["threads"])
    if "curves" in options.parts.split(","):
        results["curves"] = draw_characters(options.steps, options.torch)
    results["cores"] = os.cpu_count()
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if {*measured, "curves"} <= results.keys():
        (HERE / "TRAINING.md").write_text(page(results))


if __name__ == "__main__":
    main()
