#!/usr/bin/env python3
"""Prunes a small language model by every one-shot method and measures it: a row in llm.jsonl for each run.

A run that has a row is skipped, so the same command goes on where it was stopped:

    cargo build --release -p lacuna-prune
    python3 tests/compare/texts.py austen FOLDER TEXTS; python3 tests/compare/texts.py wiki FOLDER TEXTS
    python3 benches/quality/llm.py --model SmolLM2-135M-Instruct.Q4_1.gguf --texts TEXTS --work FOLDER

Methods learn from austen-train.txt (five novels) and wiki-train.txt; perplexity is that of persuasion.txt and
wiki-test.txt, which they never see, on the first 32 windows of 512 tokens of each. `--only GLOB` picks runs by name,
`--wrap CMD` puts a command before each (nice, a lock), `--list` prints names, `--table` the rows as in README.md,
`--order` the comparison of layer errors, fitted and held out. `--full` measures models that `--keep` left on the whole
of both texts, into llm-full.jsonl.
"""
import argparse
import fnmatch
import json
import os
import shlex
import subprocess
import sys
import time

from rows import add, read

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = os.path.join(HERE, "llm.jsonl")
FULL = os.path.join(HERE, "llm-full.jsonl")
TESTS = ["persuasion", "wiki-test"]
STRUCTURED = ["wanda-sp", "obs", "tyr", "flap", "drop-blocks"]
METHODS = ["magnitude", "wanda", "sparsegpt", "l-admm", "alps"]


def run(name, verb, *extra, windows=32, held_out=8):
    return dict(name=name, verb=verb, extra=list(extra), windows=windows, held_out=held_out)


def queue():
    """Every run, the most telling first."""
    half, two_four = ["--sparsity", "0.5"], ["--pattern", "2:4"]
    runs = [run(f"{m}-50", m, *half) for m in ["magnitude", "wanda", "sparsegpt", "alps"]]
    runs += [run(f"{m}-2:4", m, *two_four) for m in ["wanda", "sparsegpt", "alps", "magnitude"]]
    runs += [run(f"{m}-50-swaps", m, *half, "--refine", "sparse-swaps") for m in ["wanda", "magnitude"]]
    runs += [run("l-admm-50", "l-admm", *half), run("l-admm-2:4", "l-admm", *two_four)]
    runs += [run(f"{m}-50-owl", m, *half, "--allocator", "owl") for m in ["wanda", "sparsegpt", "alps"]]
    search = ["--allocator", "search", "--generations", "6"]
    runs += [run(f"{m}-50-search", m, *half, *search) for m in ["wanda", "sparsegpt"]]
    runs += [run("wanda-2:4-swaps", "wanda", *two_four, "--refine", "sparse-swaps")]
    runs += [run("wanda-50-swaps-refit", "wanda", *half, "--refine", "sparse-swaps-refit")]
    # The same inputs for all: what errors of layers are compared on.
    runs += [run(f"{m}-50-dense-prefix", m, *half, "--prefix", "dense", windows=16) for m in METHODS]
    runs += [
        run(f"{m}-50-dense-prefix-swaps", m, *half, "--prefix", "dense", "--refine", "sparse-swaps", windows=16)
        for m in ["magnitude", "wanda"]
    ]
    runs += [run(f"{m}-{s}", m, "--sparsity", f"0.{s}") for s in [60, 70] for m in METHODS[1:]]
    runs += [run("sparsegpt-50-128-windows", "sparsegpt", *half, windows=128)]
    # Whole heads and neurons, at shares of the parameters of attentions and MLPs.
    for share in ["0.5", "0.25", "0.375", "0.125"]:
        name = f"{100 * float(share):g}"
        runs += [run(f"{m}-{name}-structured", m, "--sparsity", share, windows=64) for m in STRUCTURED]
        groups = ["--sparsity", share, "--head-mode", "kv-group"]
        runs += [run(f"{m}-{name}-kv-group", m, *groups, windows=64) for m in ["tyr", "obs"]]
    ablations = [("no-accumulation", ["--accumulation", "none"]), ("median", ["--accumulation", "median"]), ("no-refit", ["--no-refit"])]
    runs += [run(f"tyr-50-{n}", "tyr", *half, *extra, windows=64) for n, extra in ablations]
    # Half an hour on one core, with the surrogate and without.
    longer = [*half, "--generations", "20"]
    runs += [run("tyr-50-longer", "tyr", *longer, windows=64)]
    runs += [run("tyr-50-longer-no-surrogate", "tyr", *longer, "--no-surrogate", windows=64)]
    return runs


def command(words, wrap):
    """Runs a command; its standard output, seconds and peak memory."""
    start = time.monotonic()
    child = subprocess.Popen(wrap + words, stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {shlex.join(words)}")
    return out, time.monotonic() - start, usage.ru_maxrss * 1024


def file(options, name):
    """Where a run's model lies."""
    name = f"dense-{options.dtype}" if name == "dense" else name.replace(":", "-")
    return os.path.join(options.work, f"{name}.safetensors")


def measure(options, model, windows=32):
    """Perplexities of a model on so many windows of each text, or with 0 on all."""
    found = {}
    for text in TESTS:
        path = os.path.join(options.texts, f"{text}.txt")
        words = [options.prune, "eval", model, "--text", path, "--window", "512", "--json"]
        words += ["--windows", str(windows)] if windows else []
        out = json.loads(command(words, options.wrap)[0])
        found[text] = {k: out[k] for k in ["perplexity", "nll", "nll_se", "predicted", "windows", "window", "isa"]}
    return found


def work(options):
    dense = file(options, "dense")
    os.makedirs(options.work, exist_ok=True)
    if not os.path.exists(dense):
        command([options.prune, "convert", options.model, "--dtype", options.dtype, "-o", dense], options.wrap)
    done = {row["name"] for row in read(ROWS)}
    if "dense" not in done and fnmatch.fnmatch("dense", options.only):
        add(ROWS, dict(name="dense", dtype=options.dtype, bytes=os.path.getsize(dense), perplexity=measure(options, dense)))
    for one in queue():
        if one["name"] in done or not fnmatch.fnmatch(one["name"], options.only):
            continue
        print(one["name"], file=sys.stderr, flush=True)
        path = file(options, one["name"])
        words = [options.prune, one["verb"], dense, *one["extra"], "-o", path, "--json"]
        for text in ["austen-train", "wiki-train"]:
            words += ["--calibration-text", os.path.join(options.texts, f"{text}.txt")]
        words += ["--windows", str(one["windows"]), "--window", "512", "--held-out", str(one["held_out"])]
        out, seconds, peak = command(words, options.wrap)
        out = json.loads(out)
        if one["verb"] in STRUCTURED:
            add(
                ROWS,
                dict(
                    name=one["name"], dtype=options.dtype, arguments=one["extra"], windows=one["windows"], window=512,
                    held_out=one["held_out"], module_parameters=out["module_parameters"], parameters=out["parameters"],
                    heads=out["settings"]["heads"], bytes=out["file_bytes"][1], seconds=round(seconds, 1), peak_bytes=peak,
                    mean_error=out["mean_error"], mean_held_out_error=out["mean_held_out_error"], rounds=out["rounds"],
                    widths=out["settings"]["widths"], perplexity=measure(options, path),
                )
            )
            if not options.keep:
                os.remove(path)
            continue
        calibration = out["calibration"]
        plan = out["plan"]
        add(
            ROWS,
            dict(
                name=one["name"], dtype=options.dtype, arguments=one["extra"], windows=one["windows"], window=512,
                held_out=one["held_out"], zeros=plan["zeros_after"], total=plan["total"],
                bytes=out["after"]["file_bytes"], seconds=round(seconds, 1), peak_bytes=peak,
                state_bytes=calibration["state_bytes"], mean_error=calibration["mean_error"],
                mean_held_out_error=calibration["mean_held_out_error"], errors=calibration["errors"],
                perplexity=measure(options, path),
            )
        )
        if not options.keep:
            os.remove(path)


def full(options):
    """The whole of both texts, for every model that is there."""
    done = {row["name"] for row in read(FULL)}
    for name in ["dense"] + [one["name"] for one in queue()]:
        path = file(options, name)
        if name not in done and fnmatch.fnmatch(name, options.only) and os.path.exists(path):
            print(name, file=sys.stderr, flush=True)
            add(FULL, dict(name=name, bytes=os.path.getsize(path), perplexity=measure(options, path, windows=0)))


def perplexities(row):
    return [f"{row['perplexity'][t]['perplexity']:.2f}" for t in TESTS]


def cost(row):
    return [f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 1e6:.0f}", f"{row['bytes'] / 1e6:.0f}"]


def print_rows(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def table():
    """As in README.md: weights one by one, then heads and neurons by how much of them is gone."""
    rows = read(ROWS)
    error = lambda row: f"{100 * row['mean_held_out_error']:.1f} %"
    costs = ["seconds", "peak MB", "file MB"]
    single = [r for r in rows if "errors" in r]
    dense = [["dense", "", *perplexities(r), "", "", f"{r['bytes'] / 1e6:.0f}"] for r in rows if r["name"] == "dense"]
    lines = [[f"`{r['name']}`", error(r), *perplexities(r), *cost(r)] for r in single]
    print_rows(["run", "held-out error, mean", "Persuasion", "Wikipedia", *costs], dense + lines)
    print()
    whole = [r for r in rows if "widths" in r]
    gone = lambda r: 1 - r["module_parameters"][1] / r["module_parameters"][0]
    best = lambda r: r["perplexity"][TESTS[0]]["perplexity"]
    whole.sort(key=lambda r: (round(gone(r), 2), best(r)))
    lines = [
        [f"{100 * gone(r):.1f} %", f"`{r['name']}`", r["heads"], error(r), *perplexities(r), *cost(r)] for r in whole
    ]
    print_rows(["gone", "run", "heads", "held-out error, mean", "Persuasion", "Wikipedia", *costs], lines)
    print()
    error = lambda text: f"{text['perplexity']:.2f} ± {text['perplexity'] * text['nll_se']:.2f}"
    both = lambda row: [error(row["perplexity"][t]) for t in TESTS]
    lines = [[f"`{r['name']}`", *both(r), f"{r['bytes'] / 1e6:.0f}"] for r in read(FULL)]
    print_rows(["run", "Persuasion", "Wikipedia", "file MB"], lines)


def order():
    """In how many layers one run's error is at most another's: on the windows that they were fitted on, and on others."""
    rows = {r["name"]: r["errors"] for r in read(ROWS) if "errors" in r}
    pairs = [("wanda", "magnitude"), ("sparsegpt", "wanda"), ("l-admm", "sparsegpt"), ("alps", "sparsegpt")]
    pairs += [("alps", "l-admm"), ("magnitude-swaps", "magnitude"), ("wanda-swaps", "wanda")]
    lines = []
    for pair in pairs:
        parts = [n.partition("-swaps") for n in pair]
        names = [f"{method}-50-dense-prefix{swaps}" for method, swaps, _ in parts]
        if not all(n in rows for n in names):
            continue
        line = [" <= ".join(pair)]
        for key in ["fitted", "held_out"]:
            low, high = ({e["weight"]: e[key] for e in rows[n]} for n in names)
            line.append(f"{sum(low[w] <= high[w] for w in low)} of {len(low)}")
        worse = [w.removeprefix("model.layers.").removesuffix(".weight") for w in low if low[w] > high[w]]
        line.append(", ".join(worse) if len(worse) < 10 else "")
        lines.append(line)
    print_rows(["error", "fitted", "held out", "not, held out"], lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--texts")
    parser.add_argument("--work")
    parser.add_argument("--prune", default="target/release/prune")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--only", default="*")
    parser.add_argument("--wrap", type=shlex.split, default=[])
    parser.add_argument("--keep", action="store_true", help="keep the pruned models")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--order", action="store_true")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(one["name"] for one in queue()))
    elif options.table:
        table()
    elif options.order:
        order()
    elif options.full and options.texts and options.work:
        full(options)
    elif options.model and options.texts and options.work:
        work(options)
    else:
        parser.error("give --model, --texts and --work")


main()
