#!/usr/bin/env python3
"""Runs criterion benches and keeps their raw results under benches/results/MACHINE/.

  record.py [--machine NAME] [--bench layers|linear|steps] [--quick] [FILTER]

From the repository's root. One CSV for each bench: name, median, lower and upper bound of its confidence interval in
nanoseconds, and the units that a second is counted in. Lines of names that were not run again stay. MACHINE is the
processor's name, family, model and cores unless given; beside the CSV stands what the machine is. --quick takes few samples.
"""
import argparse
import csv
import json
import os
import re
import subprocess


def machine():
    info = dict(
        (k.strip(), v.strip()) for k, v in (l.split(":", 1) for l in open("/proc/cpuinfo") if ":" in l and l.strip())
    )
    name = f"{info.get('model name', 'cpu')} {info.get('cpu family', '')} {info.get('model', '')} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), info


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("filter", nargs="?", default="")
    a.add_argument("--machine")
    a.add_argument("--bench", default="layers")
    a.add_argument("--quick", action="store_true")
    args = a.parse_args()
    name, info = machine()
    name = args.machine or name
    command = ["cargo", "bench", "-q", "-p", "lacuna-bench", "--bench", args.bench, "--"]
    if args.quick:
        command += ["--sample-size", "10", "--warm-up-time", "0.05", "--measurement-time", "0.1", "--nresamples", "1000"]
    command += [args.filter] if args.filter else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "criterion")
    rows = {}
    path = os.path.join("benches", "results", name, f"{args.bench}.csv")
    if os.path.exists(path):
        rows = {r[0]: r for r in list(csv.reader(open(path)))[1:]}
    for where, _, files in os.walk(folder):
        if os.path.basename(where) != "new" or "benchmark.json" not in files:
            continue
        about = json.load(open(os.path.join(where, "benchmark.json")))
        median = json.load(open(os.path.join(where, "estimates.json")))["median"]
        interval = median["confidence_interval"]
        unit, count = next(iter((about["throughput"] or {"": 0}).items()))
        kind = {"layers": ("conv1x1", "conv3x3", "unpruned", "linear"), "linear": ("linear",), "steps": ("steps",)}
        first = about["full_id"].split("/")[0]
        if first not in kind[args.bench] or (first == "linear" and (args.bench == "linear") != ("/t" in about["full_id"])):
            continue
        if args.filter and not re.search(args.filter, about["full_id"]):
            continue
        numbers = [median["point_estimate"], interval["lower_bound"], interval["upper_bound"]]
        rows[about["full_id"]] = [about["full_id"], *(f"{n:.1f}" for n in numbers), unit, count]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["name", "median_ns", "low_ns", "high_ns", "unit", "count"])
        out.writerows(rows[k] for k in sorted(rows))
    with open(os.path.join(os.path.dirname(path), "machine.json"), "w") as file:
        keys = ["vendor_id", "model name", "cpu family", "model", "stepping", "cache size", "CPU part"]
        json.dump({**{k: info[k] for k in keys if k in info}, "cores": os.cpu_count()}, file, indent=1)
        file.write("\n")
    print(f"{len(rows)} lines in {path}")


main()
