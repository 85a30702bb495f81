#!/usr/bin/env python3
"""Runs the training experiments one after the other: a row in results.jsonl for each that is finished.

A run that has a row is skipped, and one that was killed goes on from its checkpoint, so the same command
resumes the queue:

    cargo build --release -p lacuna-prune
    python3 benches/quality/queue.py --cifar cifar10-jpeg.safetensors --models FOLDER --work FOLDER

FOLDER of --models holds cifar-resnet20.th, cifar-resnet32.th and mobilenet_v2-b0353104.pth; runs whose model is
missing are skipped. `--only GLOB` picks runs by name, `--wrap CMD` puts a command before each run (nice, a lock),
`--list` prints the names, `--table` the rows as the table of README.md.
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
ALLOCATORS = {
    "global": ["global-mp"],
    "global-floor": ["global-mp", "--mt-percent", "0.2"],
    "uniform": ["magnitude"],
    "erk": ["erk"],
    "lamp": ["lamp"],
}
AUGMENT = ["--crop", "4", "--flip"]


def run(name, verb, base, epochs, lr, seed=0, extra=(), **facts):
    return dict(name=name, verb=verb, base=base, epochs=epochs, lr=lr, seed=seed, extra=list(extra), facts=facts)


def queue():
    """Every run, those first that later ones start from."""
    runs = [run("resnet20-dense", ["train"], "cifar-resnet20.th", 2, 0.01, model="resnet-20", sparsity=0)]
    pruned = []
    for sparsity, seeds, names in [
        (0.95, [0], ["global", "erk", "lamp", "uniform"]),
        (0.95, [1], ["global", "erk", "lamp", "uniform"]),
        (0.90, [0], ["global", "erk", "lamp", "uniform"]),
        (0.95, [0], ["global-floor"]),
    ]:
        for seed in seeds:
            for allocator in names:
                pruned.append(
                    run(
                        f"resnet20-{allocator}-{sparsity:g}-seed{seed}", ALLOCATORS[allocator] + ["--sparsity", str(sparsity)],
                        "resnet20-dense", 2, 0.05, seed, model="resnet-20", sparsity=sparsity, allocator=allocator,
                    )
                )
    runs += pruned[:4]
    runs.append(
        run(
            "mobilenet2-dense", ["train"], "mobilenet_v2-b0353104.pth", 2, 0.01,
            extra=["--input-size", "32"], model="mobilenet-v2", sparsity=0,
        )
    )
    for floor in ["", "0.02"]:
        allocator = "global-floor" if floor else "global"
        runs.append(
            run(
                f"mobilenet2-{allocator}-0.98", ["global-mp", "--sparsity", "0.98"] + (["--mt-percent", floor] if floor else []),
                "mobilenet2-dense", 2, 0.05, model="mobilenet-v2", sparsity=0.98, allocator=allocator,
            )
        )
    runs += pruned[4:]
    runs.append(run("resnet32-dense", ["train"], "cifar-resnet32.th", 2, 0.01, model="resnet-32", sparsity=0))
    # A floor of 0.2 % in each of 32 layers is more than 95 % leaves.
    for sparsity, floor in [(0.9, "0.2"), (0.95, "0.1")]:
        for allocator in ["global", "global-floor"]:
            words = ["global-mp"] + (["--mt-percent", floor] if allocator == "global-floor" else [])
            runs.append(
                run(
                    f"resnet32-{allocator}-{sparsity:g}", words + ["--sparsity", str(sparsity)],
                    "resnet32-dense", 4, 0.05, model="resnet-32", sparsity=sparsity, allocator=allocator,
                )
            )
    return runs


def interval(correct, n):
    """Wilson's 95 % interval, in percent."""
    z, p = 1.96, correct / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round(100 * (centre + s * half) / (1 + z * z / n), 2) for s in (-1, 1)]


def table(path):
    rows = read(path)
    print("| run | sparsity | epochs | lr | top-1, % | 95 % interval | MACs left | seconds an epoch |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        low, high = r["interval"]
        macs = f"{100 * r['macs'] / r['dense_macs']:.1f} %"
        seconds = f"{sum(r['epoch_seconds']) / len(r['epoch_seconds']):.0f}"
        print(
            f"| {r['name']} | {100 * r['sparsity']:g} % | {r['epochs']} | {r['lr']:g} | {r['top1']:.2f} | {low:.2f} to {high:.2f} "
            f"| {macs} | {seconds} |"
        )


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--prune", default="target/release/prune")
    args.add_argument("--cifar")
    args.add_argument("--models")
    args.add_argument("--work", help="where models and checkpoints go")
    args.add_argument("--results", default=os.path.join(HERE, "results.jsonl"))
    args.add_argument("--threads", default="1")
    args.add_argument("--wrap", default="nice")
    args.add_argument("--only", default="*")
    args.add_argument("--list", action="store_true")
    args.add_argument("--table", action="store_true")
    args = args.parse_args()
    if args.table:
        return table(args.results)
    runs = [r for r in queue() if fnmatch.fnmatch(r["name"], args.only)]
    if args.list:
        return print("\n".join(r["name"] for r in runs))
    done = {r["name"] for r in read(args.results)}
    for r in runs:
        if r["name"] in done:
            continue
        trained = os.path.join(args.work, r["base"] + ".safetensors")
        base = trained if os.path.exists(trained) else os.path.join(args.models, r["base"])
        if not os.path.exists(base):
            print(f"{r['name']}: {base} is missing", file=sys.stderr)
            continue
        output = os.path.join(args.work, r["name"] + ".safetensors")
        metrics = os.path.join(args.work, r["name"] + ".jsonl")
        options = ["--data", args.cifar, "--lr", str(r["lr"]), "--seed", str(r["seed"]), "--threads", args.threads]
        options += AUGMENT + ["--metrics", metrics, "-o", output]
        options += ["--epochs" if r["verb"] == ["train"] else "--fine-tune", str(r["epochs"])]
        wrap = shlex.split(args.wrap)
        command = [args.prune, r["verb"][0], base] + r["verb"][1:] + r["extra"] + options
        print(" ".join(command), flush=True)
        if subprocess.run(wrap + command, stdout=subprocess.DEVNULL).returncode != 0:
            print(f"{r['name']}: failed", file=sys.stderr)
            continue
        measure = [args.prune, "eval", output, "--data", args.cifar, "--threads", args.threads, "--json"]
        measured = json.loads(subprocess.run(wrap + measure, stdout=subprocess.PIPE, check=True).stdout)
        inspect = [args.prune, "inspect", output, "--json"]
        totals = json.loads(subprocess.run(inspect, stdout=subprocess.PIPE, check=True).stdout)["totals"]
        with open(metrics) as f:
            seconds = [round(json.loads(line)["seconds"], 1) for line in f]
        row = dict(
            name=r["name"], **r["facts"], seed=r["seed"], epochs=r["epochs"], lr=r["lr"],
            top1=round(100 * measured["top1"], 2), interval=interval(measured["top1_correct"], measured["samples"]),
            samples=measured["samples"], data="CIFAR-10 (JPEG), test", macs=totals["sparse_macs"],
            dense_macs=totals["dense_macs"], threads=int(args.threads), epoch_seconds=seconds,
            command=" ".join(["prune"] + [os.path.basename(c) if os.sep in c else c for c in command[1:]]),
        )
        add(args.results, row)
        print(f"{r['name']}: {row['top1']} %", flush=True)


main()
