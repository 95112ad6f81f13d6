"""Draws the Mandelbrot set with `mandelbrot.ita` to mandelbrot.png (or the file given)."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

import intarsia


def main() -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    program = intarsia.load(Path(__file__).with_name("mandelbrot.ita"))
    count = program.main(H=600, W=750)
    target = sys.argv[1] if len(sys.argv) > 1 else "mandelbrot.png"
    pyplot.imsave(target, count**0.4, cmap="magma", origin="lower")
    print(f"wrote {target}: {count.shape[1]} x {count.shape[0]}, {int((count == 200).sum())} points inside")


if __name__ == "__main__":
    main()
