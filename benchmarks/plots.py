"""Pictures of results: the share of the machine's limit that each peer reaches on each workload, and scaling curves."""

from pathlib import Path

from matplotlib import pyplot as plt

OURS = "intarsia"


def _styles(peers):
    """A colour and a marker for each peer; ours stands out."""
    colours = plt.get_cmap("tab20").colors
    markers = "sD^vP*X<>ph"
    return {
        p: {"color": "black", "marker": "o", "s": 70, "zorder": 3}
        if p == OURS
        else {"color": colours[n % 20], "marker": markers[n % len(markers)], "s": 28, "zorder": 2}
        for n, p in enumerate(peers)
    }


def _save(figure, path):
    plt.rcParams["svg.hashsalt"] = "intarsia"  # the same picture, the same bytes
    metadata = {"Date" if Path(path).suffix == ".svg" else "Software": None}
    figure.savefig(path, metadata=metadata, bbox_inches="tight")
    plt.close(figure)
    return Path(path).name


def shares(rows, peers, title, path):
    """rows: (workload, {peer: share of the limit}), drawn from top to bottom."""
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2))
    for p, style in _styles(peers).items():
        points = [(got[p], -n) for n, (_, got) in enumerate(rows) if p in got]
        if points:
            axes.scatter(*zip(*points), label=p, **style)
    axes.set_yticks([-n for n in range(len(rows))], [name for name, _ in rows])
    axes.set_xlim(0, 1.15)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("share of the limit (multiply-adds, or bytes from memory)")
    axes.set_title(title)
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _save(figure, path)


def curves(points, peers, title, label, path):
    """points: {peer: [(size, rate), …]}; sizes on a logarithmic axis."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for p, style in _styles(peers).items():
        if points.get(p):
            x, y = zip(*sorted(points[p]))
            axes.plot(x, y, label=p, color=style["color"], marker=style["marker"], markersize=4, zorder=style["zorder"])
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False)
    return _save(figure, path)
