"""Ways to compute with few bits, on a whole model: the linear layers of all-MiniLM-L6-v2 in each way of `quantised/`.

A way is a file that declares what a linear layer stores, `Linear`, and what it computes, `linear`. The rest of the
model is `quantised/model.ita`, the same for all. Prints for each way how far its embeddings are from those in f32, how
large the file of weights is, and how long a sentence of 16 tokens takes and 32 of them.

    python examples/quantised.py [--ways int8,w8a8] [--folder FOLDER] [--rounds N] [--plot FILE]

Needs what `minilm.py` needs, and SciPy for `nf4_lora`. What is compiled is kept in Intarsia's cache, the weights in
FOLDER if it is given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import minilm
import numpy as np

import intarsia
from intarsia.cli import main as command_line
from intarsia.files import write_results

WAYS = Path(__file__).with_name("quantised")
TABLE, ROWS = "embeddings.word_embeddings.weight", "quant(i8, scale=f16)"
LINEAR = ("encoder.*.self.*.weight", "encoder.*.dense.weight")
SHAPES = ((1, 16), (32, 16))
RANK = 16

COMMON, CALIBRATION = (1996, 8000), (1024, 12)
CLS, SEP, PERIOD = 101, 102, 1012
"""Of the vocabulary: its most frequent whole words; sentences, and tokens of each; what they begin and end with."""

INPUTS = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("intermediate.dense",),
    ("output.dense",),
)
"""The linear layers of a layer that have the same input, in the order of `seen` in `model.ita`."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Way:
    """One way: the file of `quantised/` that declares it, and how its weights are made.

    format: in which format the weights of linear layers are stored; by default the file's own `weights`. prepared: what
    the weights are before they are quantized. calibrated: are they rounded for inputs such as layers get? same_as: a
    way that has the same file of weights.
    """

    title: str
    format: str = "weights"
    prepared: Callable[[Arrays], Arrays] | None = None
    calibrated: bool = False
    same_as: str = ""


def layers(weights: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The names of the linear layers of the encoder."""
    for name in weights:
        layer = name.removesuffix(".weight")
        if layer != name and name.startswith("encoder.") and not layer.endswith("LayerNorm"):
            yield layer


def smoothed(weights: Arrays) -> Arrays:
    """Inputs that come from a LayerNorm are divided by a factor each, and the weights multiplied by it: the square root
    of how large the input may be, judged by the gain and bias of the LayerNorm, over the largest weight."""
    found = dict(weights)
    for layer in layers(weights):
        weight, norm = weights[f"{layer}.weight"], _norm_before(layer)
        factor = np.ones(weight.shape[1], np.float32)
        if norm:
            reach = 3 * np.abs(weights[f"{norm}.weight"]) + np.abs(weights[f"{norm}.bias"])
            factor = np.sqrt(reach / np.abs(weight).max(0)).astype(np.float32)
        found[f"{layer}.weight"], found[f"{layer}.smooth"] = weight * factor, 1 / factor
    return found


def _norm_before(layer: str) -> str:
    """The LayerNorm whose result a linear layer reads, if it reads one."""
    _, _, number, part, *_ = layer.split(".")
    if part == "intermediate":
        return f"encoder.layer.{number}.attention.output.LayerNorm"
    if ".self." in layer:
        return f"encoder.layer.{int(number) - 1}.output.LayerNorm" if int(number) else "embeddings.LayerNorm"
    return ""


def adapted(weights: Arrays) -> Arrays:
    """Thin matrices whose product is what is lost by quantizing, as nearly as their rank allows. (Those of a model that
    was tuned would be what it learned.)"""
    from scipy.sparse.linalg import svds

    found = dict(weights)
    for layer in layers(weights):
        weight = weights[f"{layer}.weight"]
        lost = weight - intarsia.dequantize(intarsia.quantize(weight, "nf4"), "nf4")
        left, values, right = svds(lost, RANK, v0=np.ones(min(lost.shape), np.float32))
        found[f"{layer}.up"], found[f"{layer}.down"] = left * values, right
    return found


def signed(weights: Arrays) -> Arrays:
    """Signs, 32 to a word, and the mean magnitude of each row."""
    found = dict(weights)
    for layer in layers(weights):
        weight = weights[f"{layer}.weight"]
        bits = (weight >= 0).reshape(len(weight), -1, 32)
        found[f"{layer}.weight"] = np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)[..., 0]
        found[f"{layer}.scale"] = np.abs(weight).mean(1)
    return found


def moments(weights: Mapping[str, np.ndarray]) -> Arrays:
    """For the weight of each linear layer, the sums of the products of the elements of its inputs with each other, in
    f32, over sentences of random words: no text is needed to tell which inputs are large, and which go together."""
    model = program("f32")
    ids = np.random.default_rng(0).integers(*COMMON, CALIBRATION)
    ids[:, 0], ids[:, -2:] = CLS, (PERIOD, SEP)
    mask = np.ones(ids.shape, np.float32)
    x = model.embed(ids, below("embeddings.", weights))
    found = {}
    for number in range(6):
        front = f"encoder.layer.{number}."
        x, *sums = model.seen(x, mask, below(front, weights))
        for names, own in zip(INPUTS, sums):
            found |= {f"{front}{name}.weight": own for name in names}
    return found


def below(front: str, weights: Mapping[str, np.ndarray]) -> Arrays:
    """The weights whose names begin so, without this."""
    return {name.removeprefix(front): weights[name] for name in weights if name.startswith(front)}


ALL = {
    "int8": Way("int8 weights"),
    "int8_bf16": Way("int8 weights, bf16 activations", same_as="int8"),
    "int4": Way("int4 weights, groups of 32"),
    "int4_128": Way("int4 weights, groups of 128"),
    "int4_zero": Way("int4 weights, zero points, groups of 32"),
    "gptq": Way("the same, rounded as GPTQ, bf16 activations", calibrated=True),
    "w8a8": Way("int8 weights and activations", same_as="int8"),
    "outliers": Way("the same but for outliers, as LLM.int8()", same_as="int8"),
    "smooth": Way("the same, smoothed, as SmoothQuant", prepared=smoothed),
    "nf4_lora": Way(f"nf4 weights, adapters of rank {RANK}", "nf4", adapted),
    "xnor": Way("signs of both, as XNOR-Net", "", signed),
}


def say(text: str) -> None:
    """Show what is being done."""
    print(text, file=sys.stderr, flush=True)


def quantize(source: Path, target: Path, *options: str) -> None:
    """`intarsia quantize`, without the list of what is lost of each tensor."""
    words = ["quantize", str(source), *options, "-o", str(target)]
    say("  intarsia " + " ".join(words))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = command_line(words)
    if status:
        sys.exit(said.getvalue())


def weight_file(name: str, folder: Path) -> Path:
    """The file of weights of a way, which is made if it is not there."""
    way = ALL[name]
    if way.same_as:
        return weight_file(way.same_as, folder)
    made = folder / f"{name}.safetensors"
    if made.exists():
        return made
    source = folder / "tables.safetensors"
    if not source.exists():
        model = minilm.model_folder() / "model.safetensors"
        quantize(model, source, "--format", ROWS, "--tensor", TABLE)
    if way.prepared is not None:
        before, source = source, folder / f"{name}.prepared.safetensors"
        write_results(str(source), way.prepared(dict(intarsia.read_weights(before))))
    if not way.format:
        return source.rename(made)
    declared = ("--program", str(WAYS / f"{name}.ita")) if way.format == "weights" else ()
    options = [*declared, *(word for pattern in LINEAR for word in ("--tensor", pattern))]
    if way.calibrated:
        write_results(str(sums := folder / "moments.safetensors"), moments(intarsia.read_weights(source)))
        options += ["--moments", str(sums)]
    quantize(source, made, "--format", way.format, *options)
    if way.prepared is not None:
        source.unlink()
    return made


def program(name: str) -> intarsia.Program:
    """The model with linear layers of one way: the text of both files."""
    return intarsia.compile("".join((WAYS / f"{file}.ita").read_text() for file in (name, "model")))


def functions(names: list[str], folder: Path) -> tuple[dict[str, intarsia.Function], dict[str, Path]]:
    """The model in f32 and in each way, with its weights; and the files of these."""
    files = {"f32": minilm.model_folder() / "model.safetensors"}
    programs = {"f32": intarsia.load(Path(__file__).with_name("minilm.ita"))}
    for name in names:
        say(f"{name}: weights")
        files[name], programs[name] = weight_file(name, folder), program(name)
    return {n: p.main.bind(p=intarsia.read_weights(files[n])) for n, p in programs.items()}, files


def similarities(models: Mapping[str, intarsia.Function]) -> dict[str, np.ndarray]:
    """The cosine between each sentence's embedding and the one in f32."""
    ids, mask = minilm.tokenize(minilm.SENTENCES, minilm.model_folder())
    found = {}
    for number, (name, model) in enumerate(models.items(), 1):
        say(f"[{number}/{len(models)}] {name}: compiling for {len(ids)} sentences")
        found[name] = model(ids, mask)
    return {name: (each * found["f32"]).sum(1) for name, each in found.items()}


def times(models: Mapping[str, intarsia.Function], sentences: int, tokens: int, rounds: int) -> dict[str, float]:
    """Milliseconds: medians of runs that take turns."""
    ids = np.random.default_rng(0).integers(1000, 20000, (sentences, tokens))
    mask = np.ones(ids.shape, np.float32)
    for number, (name, model) in enumerate(models.items(), 1):
        say(f"[{number}/{len(models)}] {name}: compiling for {sentences} x {tokens} tokens")
        for _ in range(3):
            model(ids, mask)
    say(f"measuring {sentences} x {tokens} tokens")
    samples: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            before = time.perf_counter()
            model(ids, mask)
            samples[name].append(time.perf_counter() - before)
    return {name: 1e3 * float(np.median(each)) for name, each in samples.items()}


def plot(file: str, cosines: Mapping[str, np.ndarray], measured: Mapping[str, float]) -> None:
    """A picture of time against similarity."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, each in cosines.items():
        axes.plot(measured[name], each.mean(), "o")
        axes.annotate(name, (measured[name], each.mean()), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel="one sentence of 16 tokens, ms", ylabel="mean cosine to the embeddings in f32", xlim=(0, None))
    figure.savefig(file, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default=",".join(ALL), help=f"some of {', '.join(ALL)}")
    parser.add_argument("--folder", type=Path, help="where the weights are kept")
    parser.add_argument("--rounds", type=int, default=60, help="how often each is measured (60)")
    parser.add_argument("--plot", metavar="FILE", help="a picture of time against similarity")
    options = parser.parse_args()
    names = options.ways.split(",")
    if unknown := [n for n in names if n not in ALL]:
        parser.error(f"no way is named {unknown[0]}; there are {', '.join(ALL)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models, files = functions(names, folder)
        cosines = similarities(models)
        measured = [times(models, *shape, options.rounds) for shape in SHAPES]
        sizes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
    shapes = "".join(f"{f'{sentences} x {tokens}, ms':>14}" for sentences, tokens in SHAPES)
    print(f"{'way':56}{'cosine, least':>14}{'mean':>9}{'MB':>7}{shapes}")
    for name, each in cosines.items():
        title = "f32" if name == "f32" else f"{name}: {ALL[name].title}"
        row = "".join(f"{m[name]:14.2f}" for m in measured)
        print(f"{title:56}{each.min():14.4f}{each.mean():9.4f}{sizes[name]:7.1f}{row}")
    if options.plot:
        plot(options.plot, cosines, measured[0])


if __name__ == "__main__":
    main()
