#!/usr/bin/env python3
"""Runs FastGRNN on the motion data, leaving subjects out: a row in motion.jsonl for each finished run.

A run that has a row is skipped, and one that was killed goes on from its checkpoint, as in queue.py:

    cargo build --release -p lacuna-prune --example stream_step
    python3 benches/quality/motion.py watch_dataset.npy motion.safetensors
    python3 benches/quality/motion_queue.py --data motion.safetensors --work FOLDER
    python3 benches/quality/motion_queue.py --work FOLDER --steps     # alone on the machine: the time of a step

Five folds of two subjects; nothing is chosen by their accuracy: settings are fixed, and the figure is that of the last
epoch. `--only GLOB` picks runs by name, `--wrap CMD` puts a command before each run, `--table` prints what README.md has.
"""
import argparse
import fnmatch
import json
import math
import os
import shlex
import subprocess
import sys

from rows import add, read

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDS = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
EPOCHS, LR, BATCH = 30, 0.0064, 100
TRAIN = ["train", "--epochs", str(EPOCHS)]
TUNE = ["--fine-tune", str(EPOCHS), "--gradual", "cubic", "--gradual-end", str(EPOCHS // 2)]

# Variant: the verb and its flags, what it starts from (an architecture or another variant), whether it is cut.
VARIANTS = {
    "dense-first": (TRAIN, "fastgrnn-6-80-7", False),
    "factors-first": (TRAIN, "fastgrnn-6-80-7-6-80", False),
    "low-rank-first": (TRAIN, "fastgrnn-6-80-7-6-8", False),
    "dense": (TRAIN, "dense-first", False),
    "factors": (TRAIN, "factors-first", False),
    "low-rank-6-8": (TRAIN, "low-rank-first", False),
    "global-0.9": (["global-mp", "--sparsity", "0.9"] + TUNE, "dense-first", False),
    "columns-6-8": (["columns", "--rank", "rnn.U1=8", "--rank", "rnn.W1=6"] + TUNE, "factors-first", True),
    "columns-5-7": (["columns", "--rank", "rnn.U1=7", "--rank", "rnn.W1=5"] + TUNE, "factors-first", True),
    "global-0.8": (["global-mp", "--sparsity", "0.8"] + TUNE, "dense-first", False),
    "columns-6-7": (["columns", "--rank", "rnn.U1=7", "--rank", "rnn.W1=6"] + TUNE, "factors-first", True),
    "global-0.95": (["global-mp", "--sparsity", "0.95"] + TUNE, "dense-first", False),
}
# The two-sided 95 % point of Student's distribution with a fold less one degrees of freedom.
STUDENT = 2.776


def interval(values):
    """Mean and half of its 95 % interval over the folds."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, STUDENT * math.sqrt(variance / len(values))


def table(path):
    rows = read(path)
    steps = {r["variant"]: r for r in rows if r["kind"] == "step"}
    of = lambda v: {r["fold"]: r for r in rows if r["kind"] == "accuracy" and r["variant"] == v}
    base = of("dense")
    head = ["variant", "accuracy, %", "less than `dense`, points", "parameters left", "multiplications a step", "file, bytes"]
    head += ["microcontroller, bytes"] + (["a step, ns"] if steps else [])
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for variant in VARIANTS:
        own = of(variant)
        if len(own) < len(FOLDS) or len(base) < len(FOLDS):
            continue
        mean, _ = interval([r["top1"] for r in own.values()])
        difference, half = interval([base[f]["top1"] - own[f]["top1"] for f in own])
        drop = "" if variant == "dense" else f"{difference:.1f} ({difference - half:.1f} to {difference + half:.1f})"
        average = lambda key: f"{sum(r[key] for r in own.values()) / len(own):,.0f}"
        cells = [variant, f"{mean:.1f}", drop, average("weights"), average("macs"), average("bytes"), average("micro_bytes")]
        if steps:
            cells.append(f"{steps[variant]['median_ns']:.0f}" if variant in steps else "")
        print("| " + " | ".join(cells) + " |")


def steps(args):
    names = {v: os.path.join(args.work, f"{v}-fold0.safetensors") for v in VARIANTS}
    paths = [p for p in names.values() if os.path.exists(p)]
    printed = subprocess.run(shlex.split(args.wrap) + [args.step] + paths, stdout=subprocess.PIPE, check=True).stdout
    for line in printed.decode().splitlines():
        row = json.loads(line)
        variant = os.path.basename(row.pop("model")).rsplit("-fold", 1)[0]
        add(args.results, dict(kind="step", variant=variant, threads=1, batch=1, **row))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--prune", default="target/release/prune")
    args.add_argument("--step", default="target/release/examples/stream_step")
    args.add_argument("--data")
    args.add_argument("--work", help="where models and checkpoints go")
    args.add_argument("--results", default=os.path.join(HERE, "motion.jsonl"))
    args.add_argument("--threads", default="1")
    args.add_argument("--wrap", default="nice")
    args.add_argument("--only", default="*")
    args.add_argument("--list", action="store_true")
    args.add_argument("--table", action="store_true")
    args.add_argument("--steps", action="store_true")
    args = args.parse_args()
    if args.table:
        return table(args.results)
    if args.steps:
        return steps(args)
    runs = [(f"{v}-fold{i}", v, i, held) for v in VARIANTS for i, held in enumerate(FOLDS)]
    runs = [r for r in runs if fnmatch.fnmatch(r[0], args.only)]
    if args.list:
        return print("\n".join(r[0] for r in runs))
    done = {r["name"] for r in read(args.results) if r["kind"] == "accuracy"}
    wrap = shlex.split(args.wrap)
    call = lambda command: json.loads(subprocess.run(wrap + command, stdout=subprocess.PIPE, check=True).stdout)
    for name, variant, fold, held in runs:
        if name in done:
            continue
        verb, base, is_cut = VARIANTS[variant]
        place = lambda n, end=".safetensors": os.path.join(args.work, n + end)
        if base in VARIANTS:
            source = [place(f"{base}-fold{fold}")]
            if not os.path.exists(source[0]):
                print(f"{name}: {source[0]} is missing", file=sys.stderr)
                continue
        else:
            source = ["--arch", base]
        output = place(name + "-masked") if is_cut else place(name)
        split = ["--data", args.data, "--held-out-subjects", ",".join(map(str, held))]
        command = [args.prune, verb[0]] + source + verb[1:] + split + ["--test-split", "test", "--optimizer", "adam"]
        command += ["--lr", str(LR), "--batch", str(BATCH), "--weight-decay", "0", "--threads", args.threads]
        command += ["--metrics", place(name, ".jsonl"), "-o", output]
        print(" ".join(command), flush=True)
        if subprocess.run(wrap + command, stdout=subprocess.DEVNULL).returncode != 0:
            print(f"{name}: failed", file=sys.stderr)
            continue
        if is_cut:
            call([args.prune, "cut", output, "-o", place(name), "--json"])
        measured = call([args.prune, "eval", place(name), "--threads", args.threads, "--batch", "32", "--json"] + split)
        if is_cut:
            masked = call([args.prune, "eval", output, "--threads", args.threads, "--batch", "32", "--json"] + split)
            if abs(masked["top1_correct"] - measured["top1_correct"]) > 1:
                raise SystemExit(f"{name}: {masked['top1_correct']} right, {measured['top1_correct']} once it is cut")
        totals = call([args.prune, "inspect", place(name), "--json"])["totals"]
        call([args.prune, "export", place(name), "--micro", "-o", place(name, ".bin"), "--json"])
        epochs = read(place(name, ".jsonl"))
        row = dict(
            kind="accuracy", name=name, variant=variant, fold=fold, held_out_subjects=held, epochs=EPOCHS, lr=LR,
            top1=round(100 * measured["top1"], 2), correct=measured["top1_correct"], samples=measured["samples"],
            data="motion data (seglearn), windows of 128, stride 64", loss=round(epochs[-1]["loss"], 4),
            weights=totals["parameters"] - totals["parameter_zeros"], macs=totals["sparse_macs"],
            bytes=os.path.getsize(place(name)), micro_bytes=os.path.getsize(place(name, ".bin")), threads=int(args.threads),
            epoch_seconds=round(sum(e["seconds"] for e in epochs) / len(epochs), 2),
            command=" ".join(["prune"] + [os.path.basename(c) if os.sep in c else c for c in command[1:]]),
        )
        add(args.results, row)
        print(f"{name}: {row['top1']} %", flush=True)


main()
