#!/usr/bin/env python3
"""SmolLM2's speed beside llama.cpp's: every program runs in turn, and ratios are of the same round.

  smollm_speed.py LACUNA_BENCH LLAMA_BENCH --gguf F16=FILE [--gguf Q8_0=FILE ...] --file NAME=FILE [--file 'NAME=FILE --round-inputs' ...]
                  [--threads 1] [--rounds 5] [--depth 0] [--ms 300]

128 tokens of a prompt, then 64 generated ones, each after `depth` tokens. Ratios are to the first GGUF, medians of rounds.
Beside ours: GB/s of weights that generating reads, mask and scales included, and their share of the read bandwidth that is
measured at the start of this run, in huge pages.
"""
import argparse
import json
import os
import random
import statistics
import tempfile
import tomllib

from common import run, table


def llama(bench, gguf, args):
    out = json.loads(run(bench, "-m", gguf, "-p", 128, "-n", 64, "-t", args.threads, "-r", 1, "-d", args.depth, "-o", "json"))
    speed = {("prefill" if r["n_prompt"] else "decode"): r["avg_ts"] for r in out}
    return speed["prefill"], speed["decode"], None


def ours(bench, command, args):
    more = ["--depth", args.depth] if args.depth else []
    out = run(bench, *command.split(), "--threads", args.threads, "--min-time-ms", args.ms, *more, "--json")
    flat = json.loads(out.splitlines()[-1])
    return flat["prefill_tps"], flat["decode_tps"], flat["decode_gbs"]


def bandwidth(bench, threads):
    """GB/s of reads from memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "here.toml")
        run(bench, "--profile-out", path, "--threads", threads)
        with open(path, "rb") as f:
            limits = tomllib.load(f)["limits"]
    return next(limit["dram_gbs"] for limit in limits if limit["threads"] == threads)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("bench")
    a.add_argument("llama")
    a.add_argument("--gguf", action="append", required=True)
    a.add_argument("--file", action="append", required=True)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--depth", type=int, default=0)
    a.add_argument("--ms", type=float, default=300)
    args = a.parse_args()
    jobs = {}
    for name, path in (g.split("=", 1) for g in args.gguf):
        jobs[f"llama.cpp {name}"] = lambda path=path: llama(args.llama, path, args)
    first = next(iter(jobs))
    for name, command in (f.split("=", 1) for f in args.file):
        jobs[name] = lambda command=command: ours(args.bench, command, args)
    limit = bandwidth(args.bench, args.threads)
    got = {name: [] for name in jobs}
    for _ in range(args.rounds):
        for name in random.sample(list(jobs), len(jobs)):
            got[name].append(jobs[name]())
    rows = []
    for name, times in got.items():
        row = [name]
        for i in range(2):
            ratio = statistics.median(t[i] / f[i] for t, f in zip(times, got[first]))
            row += [f"{statistics.median(t[i] for t in times):.1f}", f"{ratio:.2f}"]
        if times[0][2]:
            speed = statistics.median(t[2] for t in times)
            row += [f"{speed:.1f} ({100 * speed / limit:.0f} %)"]
        rows.append(row + [""] * (6 - len(row)))
    after = f", after {args.depth} tokens" if args.depth else ""
    print(f"SmolLM2-135M{after}, {args.threads} thread(s), {args.rounds} rounds; reads of memory {limit} GB/s\n")
    table(["", "prefill, tokens/s", "ratio", "decode, tokens/s", "ratio", "GB/s (of reads)"], rows)


main()
