"""Writes RESULTS.md from results.json and hw/limits.json."""

import json
from math import exp, log
from pathlib import Path
from statistics import median

import compile_time
import dispatch
import odd_sizes
import plots
from bench import PEERS
from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
db = json.loads((HERE / "results" / "cpu-zen5-2cores.json").read_text())
lim = json.loads((HERE / "hw/limits.json").read_text())
PEAK = {"f32": "f32_avx512", "bf16": "bf16_dpbf16", "int8": "int8_vpdpbusd"}


def bandwidth(t):  # the best mix of loads and stores seen
    return max(
        v
        for k, v in lim.items()
        if k.endswith(f".{t}") and k.split(".")[0] in ("copy", "copy_nt", "triad", "triad_nt", "read", "memcpy")
    )


def limit(w, t):
    """Rate and unit of the physical limit `w` is held against: the best bandwidth seen, or what a probe of multiply-adds
    reached just before the batches of this workload."""
    if w.bound == "bandwidth":
        return bandwidth(t), "GB/s"
    rows = (r for r in db["results"] if (r["workload"], r["threads"]) == (w.name, t))
    beside = [g for r in rows for g in r.get("probe_gflops", ())]
    best = lim[f"f32_avx512.{t}"]
    return lim[f"{PEAK[w.bound]}.{t}"] / best * (median(beside) if beside else best), "GOP/s"


def rate(w, ms):
    return (w.bytes if w.bound == "bandwidth" else w.flops) / ms / 1e6


def table(threads, malloc="warm"):
    rows = {(r["workload"], r["peer"]): r for r in db["results"] if r["threads"] == threads and r["malloc"] == malloc}
    peers = [p for p in PEERS if any(k[1] == p for k in rows)]
    out = ["| workload | " + " | ".join(peers) + " | best | rate | of limit |", "|---" * (len(peers) + 4) + "|"]
    for w in WORKLOADS.values():
        got = {p: rows[w.name, p]["median_ms"] for p in peers if (w.name, p) in rows and "median_ms" in rows[w.name, p]}
        if not got:
            continue
        best = min(got, key=got.get)
        cell = lambda p: (
            ("**%.3g**" % got[p] if p == best else "%.3g" % got[p])
            if p in got
            else ("err" if (w.name, p) in rows else "")
        )
        peak, unit = limit(w, threads)
        r = rate(w, got[best])
        if w.bound == "bandwidth" and w.bytes <= 34e6:
            unit += " (in L3)"
        out.append(f"| {w.name} | " + " | ".join(map(cell, peers)) + f" | {best} | {r:.3g} {unit} | {r / peak:.0%} |")
    return out


def medians(threads):
    """By workload: the median of each peer, where it was measured in this run."""
    found = {}
    for r in db["results"]:
        if r["threads"] == threads and r["malloc"] == "warm" and "median_ms" in r:
            found.setdefault(r["workload"], {})[r["peer"]] = r["median_ms"]
    return {w: found[w] for w in WORKLOADS if w in found}


def ahead(threads):
    """How far ours is ahead: of the best peer in each row, and of each peer over all rows, as geometric means."""
    rows = {w: got for w, got in medians(threads).items() if plots.OURS in got and len(got) > 1}
    best = {w: min(ms for p, ms in got.items() if p != plots.OURS) / got[plots.OURS] for w, got in rows.items()}
    mean = lambda values: exp(sum(map(log, values)) / len(values))
    out = ["| beside | rows | geometric mean of its time over ours | worst row | |", "|---|---|---|---|---|"]
    if not best:
        return out
    floats = {w: ratio for w, ratio in best.items() if WORKLOADS[w].bound not in ("bf16", "int8") and "int4" not in w}
    each = {"the best peer of each row": best, "the same, f32 only": floats}
    for p in PEERS:
        own = {w: got[p] / got[plots.OURS] for w, got in rows.items() if p in got and p != plots.OURS}
        if own:
            each[p] = own
    for name, own in each.items():
        worst = min(own, key=own.get)
        out.append(f"| {name} | {len(own)} | {mean(own.values()):.2f} | {own[worst]:.2f} | {worst} |")
    return out


def picture(threads):
    shares = [
        (w, {p: rate(WORKLOADS[w], ms) / limit(WORKLOADS[w], threads)[0] for p, ms in got.items()})
        for w, got in medians(threads).items()
    ]
    peers = [p for p in PEERS if any(p in got for _, got in shares)]
    title = f"{threads} thread{'s' * (threads > 1)}: share of the machine's limit"
    return plots.shares(shares, peers, title, HERE / "results" / f"shares-{threads}.svg")


def mins(threads, malloc="warm"):
    rows = {
        (r["workload"], r["peer"]): r
        for r in db["results"]
        if r["threads"] == threads and r["malloc"] == malloc and "min_ms" in r
    }
    out = ["| workload | best by median | median ms | its min ms | best by min | min ms |", "|---|---|---|---|---|---|"]
    for w in WORKLOADS.values():
        got = {p: r for (n, p), r in rows.items() if n == w.name}
        if got:
            a = min(got, key=lambda p: got[p]["median_ms"])
            b = min(got, key=lambda p: got[p]["min_ms"])
            out.append(
                f"| {w.name} | {a} | {got[a]['median_ms']:.4g} | {got[a]['min_ms']:.4g} | {b} | {got[b]['min_ms']:.4g} |"
            )
    return out


def compile_table():
    rows = {
        (r["workload"], r["peer"], r["threads"]): r for r in db["results"] if "first_s" in r and r["malloc"] == "warm"
    }
    peers = [p for p in PEERS if any(k[1] == p for k in rows)]
    out = ["| workload | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for w in WORKLOADS:
        cells = []
        for p in peers:
            v = [rows[w, p, t]["build_s"] + rows[w, p, t]["first_s"] for t in (2, 1) if (w, p, t) in rows]
            cells.append("%.2g" % v[0] if v else "")
        out.append(f"| {w} | " + " | ".join(cells) + " |")
    return out


def errors():
    seen = {}
    for r in db["results"]:
        if "error" in r:
            seen.setdefault((r["peer"], r["workload"]), r["error"])
    return [f"- {p}, {w}: {e}" for (p, w), e in sorted(seen.items())]


def repeats():
    """How far a second run (repeat.json) of some workloads is from the first: the noise a bar must allow for."""
    p = HERE / "repeat.json"
    if not p.exists():
        return []
    first = {
        (r["workload"], r["peer"], r["threads"]): r for r in db["results"] if r["malloc"] == "warm" and "median_ms" in r
    }
    out = ["| workload | threads | " + "peer: second / first run, medians (minima) | ", "|---|---|---|"]
    rows = {}
    for r in json.loads(p.read_text())["results"]:
        a = first.get((r["workload"], r["peer"], r["threads"]))
        if a and "median_ms" in r:
            rows.setdefault((r["threads"], r["workload"]), []).append(
                f"{r['peer']} {r['median_ms'] / a['median_ms']:.2f} ({r['min_ms'] / a['min_ms']:.2f})"
            )
    return out + [f"| {w} | {t} | {', '.join(v)} |" for (t, w), v in sorted(rows.items())]


def notes():
    p = HERE / "NOTES.md"
    return p.read_text().splitlines() if p.exists() else []


if __name__ == "__main__":
    o = ["# What peers reach on this machine", ""] + notes()
    o += ["", "## Physical limits (best seen)", "", "| what | 1 thread | 2 threads |", "|---|---|---|"]
    for k in dict.fromkeys(k.rsplit(".", 1)[0] for k in lim):
        unit = "GB/s" if k.split("_")[0].split(".")[0] in ("copy", "triad", "read", "write", "memcpy") else "GOP/s"
        o.append(f"| {k} ({unit}) | {lim[k + '.1']:.1f} | {lim[k + '.2']:.1f} |")
    for t in (1, 2):
        if medians(t):
            o += ["", f"![share of the limit](results/{picture(t)})"]
        o += ["", f"## Median ms, {t} thread{'s' * (t > 1)}", ""] + table(t)
        o += ["", f"## How far ahead, {t} thread{'s' * (t > 1)}", ""] + ahead(t)
    for t in (1, 2):
        o += ["", f"## Best peer by median and by minimum, {t} thread{'s' * (t > 1)}", ""] + mins(t)
    for t in (1, 2):
        d = table(t, "default")
        if len(d) > 2:
            o += [
                "",
                f"## Median ms, {t} thread{'s' * (t > 1)}, glibc's default malloc (no kept memory, no huge pages)",
                "",
            ] + d
    o += [
        "",
        "## What a call costs",
        "",
        "Microseconds of a call from Python on 16 elements of f32 that gives a new array,",
    ]
    o += ["median (minimum): the sum of two arrays, and of ten. Peers as in dispatch.py, pinned to one core.", ""]
    o += dispatch.table()
    o += [
        "",
        "## What odd sizes cost",
        "",
        "One thread, least processor time: see odd_sizes.py.",
        "",
        *odd_sizes.table(),
    ]
    o += ["", "## What compiling costs", ""]
    o += ["Seconds of whole processes, from text to results: see compile_time.py.", "", *compile_time.table()]
    o += ["", "## Build and first call, seconds (2 threads; includes compiling)", ""] + compile_table()
    if repeats():
        o += ["", "## Run-to-run noise", ""] + repeats()
    o += ["", "## Failures", ""] + errors()
    o += ["", "## Versions and import time", ""] + [
        f"- {n}: {p['version']}, import {p['import_s']:.1f} s" for n, p in db["peers"].items()
    ]
    (HERE / "RESULTS.md").write_text("\n".join(o) + "\n")
