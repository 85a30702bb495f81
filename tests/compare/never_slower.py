#!/usr/bin/env python3
"""Never slower than dense, from 0 to 99 % zeros: ours against our dense and, of ONNX models, ONNX Runtime's, in turns.

  never_slower.py PRUNE LACUNA_BENCH MODEL [MODEL ...] [--work DIR] [--threads 1] [--rounds 5] [--ms 120]
                  [--sparsities 0,10,20,30,40,50,70,90,99]

Each MODEL is a dense ONNX file, which ONNX Runtime runs too, or a dense language model as `prune convert` writes it. Pruned
files are made by `prune magnitude` and kept in DIR. Ratios are medians over rounds; below 0.97 of the faster dense
runtime the script ends with 1. A language model counts its generated tokens and its prompt apart.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys

from speed import onnx_runtime


def ours(bench, model, threads, ms, keys, *more):
    command = [bench, model, "--threads", str(threads), "--min-time-ms", str(ms), "--generate", "16", "--json", *more]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    flat = json.loads(out.splitlines()[-1])
    return [flat[k] for k in keys]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("prune")
    a.add_argument("bench")
    a.add_argument("models", nargs="+")
    a.add_argument("--work", default="never-slower")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--ms", type=float, default=120)
    a.add_argument("--sparsities", default="0,10,20,30,40,50,70,90,99")
    a.add_argument("--prepare", action="store_true", help="only make the pruned files")
    args = a.parse_args()
    os.makedirs(args.work, exist_ok=True)
    worst = []
    for dense in args.models:
        whole = dense.endswith(".onnx")
        keys = ["median_ms"] if whole else ["median_ms", "prefill_ms"]
        stem = os.path.splitext(os.path.basename(dense))[0]
        files = {}
        for percent in map(int, args.sparsities.split(",")):
            path = os.path.join(args.work, f"{stem}-{percent}.safetensors")
            if not os.path.exists(path):
                command = [args.prune, "magnitude", dense, "--sparsity", str(percent / 100), "-o", path]
                if percent == 0:
                    command = [args.prune, "convert", dense, "-o", path]
                subprocess.run(command, check=True, capture_output=True)
            files[percent] = path
        if args.prepare:
            continue
        theirs = onnx_runtime(dense, args.threads) if whole else None
        print(f"{stem}, {args.threads} thread(s), {args.rounds} rounds")
        for percent, path in files.items():
            jobs = {
                "ours": lambda: ours(args.bench, path, args.threads, args.ms, keys),
                "our dense": lambda: ours(args.bench, path, args.threads, args.ms, keys, "--dense"),
            }
            if theirs:
                jobs["ONNX Runtime"] = lambda: [theirs(args.ms)]
            got = {name: [] for name in jobs}
            for _ in range(args.rounds):
                for name in random.sample(list(jobs), len(jobs)):
                    got[name].append(jobs[name]())
            for i, key in enumerate(keys):
                times = {name: [t[i] for t in list_] for name, list_ in got.items()}
                line = f"  {percent:3d} %  {'' if whole else key:10s}"
                for name, list_ in times.items():
                    line += f"  {name} {statistics.median(list_):9.3f}"
                for name in list(times)[1:]:
                    ratio = statistics.median(d / o for d, o in zip(times[name], times["ours"]))
                    line += f"  x{ratio:.2f} of {name}"
                    worst.append((ratio, name, f"{stem} {percent} %"))
                print(line, flush=True)
    if args.prepare:
        return
    behind = [w for w in worst if w[0] < 0.97]
    for ratio, name, what in behind:
        print(f"slower than {name}: {what}: {ratio:.2f}")
    sys.exit(bool(behind))


main()
