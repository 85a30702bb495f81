#!/usr/bin/env python3
"""Latency beside ONNX Runtime, in one run: bursts take turns in random order, ratios are medians over the rounds.

  speed.py LACUNA_BENCH DENSE.onnx MODEL [MODEL ...] [--threads 1] [--rounds 7] [--ms 150]
  speed.py --mobilenet WEIGHTS.safetensors DENSE.onnx       writes MobileNetV2 as ONNX from `prune export --dense`

Each MODEL is anything that lacuna-bench opens. Dense is the faster of ONNX Runtime on DENSE.onnx and lacuna-bench --dense on
the first MODEL. Needs numpy, onnx and onnxruntime.
"""
import argparse
import json
import random
import statistics
import subprocess
import time

import numpy as np


def ours(bench, model, threads, ms, *more):
    command = [bench, model, "--threads", str(threads), "--min-time-ms", str(ms), "--json", *more]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])["median_ms"]


def onnx_runtime(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")

    def burst(ms):
        # A new session each time: the threads of an old one would go on spinning beside the other runtime.
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        shape = [d if isinstance(d, int) else 1 for d in given.shape]
        x = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
        for _ in range(5):
            session.run(None, {given.name: x})
        times, end = [], time.perf_counter() + ms / 1e3
        while time.perf_counter() < end or len(times) < 2:
            start = time.perf_counter()
            session.run(None, {given.name: x})
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    return burst


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("paths", nargs="+")
    a.add_argument("--mobilenet", action="store_true")
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--rounds", type=int, default=7)
    a.add_argument("--ms", type=float, default=150)
    args = a.parse_args()
    if args.mobilenet:
        from mobilenet import onnx_model
        from safetensors.numpy import load_file

        weights, out = args.paths
        with open(out, "wb") as file:
            file.write(onnx_model(load_file(weights))[0])
        return
    bench, dense, *models = args.paths
    theirs = onnx_runtime(dense, args.threads)
    jobs = {"ONNX Runtime, dense": lambda: theirs(args.ms)}
    jobs["ours, dense"] = lambda: ours(bench, models[0], args.threads, args.ms, "--dense")
    for model in models:
        jobs[model] = lambda model=model: ours(bench, model, args.threads, args.ms)
    got = {name: [] for name in jobs}
    for _ in range(args.rounds):
        for name in random.sample(list(jobs), len(jobs)):
            got[name].append(jobs[name]())
    best = min(list(jobs)[:2], key=lambda n: statistics.median(got[n]))
    print(f"{args.threads} thread(s), {args.rounds} rounds; ratios to: {best}")
    for name, times in got.items():
        ratio = statistics.median(b / t for b, t in zip(got[best], times))
        print(f"  {name:60s} median {statistics.median(times):9.3f} ms   x{ratio:.2f}")


if __name__ == "__main__":
    main()
