#!/usr/bin/env python3
"""Prunes a network of three tasks on overlapped pairs: a row in pairs.jsonl for each run that is finished.

A run that has a row is skipped, and one that was killed goes on where it was, so the same command resumes the queue:

    cargo build --release -p lacuna-prune -p lacuna-bench
    python3 benches/quality/pairs.py FOLDER pairs.safetensors pairs.onnx
    python3 benches/quality/pairs_queue.py --data pairs.safetensors --network pairs.onnx --work FOLDER
    python3 benches/quality/pairs_queue.py --work FOLDER --latency     # alone on the machine

`pagcp` cuts and trains in rounds; every other variant is cut at once. All of them, `dense` too, are trained for as many
epochs in all. --latency needs onnxruntime. `--only GLOB` picks runs by name, `--wrap CMD` puts a command before each run,
`--quick` is a smaller setting, whose rows have it in their name; `--table` and `--summary` print what
README.md has.
"""
import argparse
import fnmatch
import json
import os
import shlex
import statistics
import subprocess
import sys
import time

from rows import add, read

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = ["upper", "lower", "pixels"]
HOLD_OUT, SEEDS = 1000, [0, 1, 2]
CHANNELS = {
    "uniform-l1": ["--criterion", "l1", "--scope", "uniform"],
    "global-l1": ["--criterion", "l1", "--scope", "global"],
    "group-norm": ["--criterion", "group-norm", "--scope", "global"],
}
BUDGETS = {"flops": ["--flops", "0.4"], "parameters": ["--parameters", "0.4"], "latency": ["--latency", "0.45"]}
PAGCP = ["--allowance", "0.5", "--inflation", "6", "--rounds", "20"]
# Training images, epochs of the first network, of a round, and of all others in all; the learning rate afterwards.
FULL = dict(limit=59000, first=10, round=1, total=12, lr=0.05)
QUICK = dict(limit=20000, first=6, round=1, total=9, lr=0.05)


def runs():
    """Name, variant, budget and seed of every run, those first that later ones start from."""
    yield "first", "first", None, 0
    for seed in SEEDS:
        yield f"dense-seed{seed}", "dense", None, seed
        for budget in BUDGETS:
            for variant in ["pagcp", *CHANNELS]:
                # Only the method that measures what it cuts can keep a budget of milliseconds.
                if budget != "latency" or variant == "pagcp" and seed == 0:
                    yield f"{variant}-{budget}-seed{seed}", variant, budget, seed


class Queue:
    def __init__(self, args):
        self.args = args
        self.how = QUICK if args.quick else FULL
        self.latencies = os.path.join(args.work or "", "first.table.json")
        self.wrap = shlex.split(args.wrap)

    def place(self, name, end=".safetensors"):
        return os.path.join(self.args.work, name + ("-quick" if self.args.quick else "") + end)

    def call(self, command):
        print(" ".join(command), flush=True)
        ran = subprocess.run(self.wrap + command, stdout=subprocess.PIPE, check=True)
        return json.loads(ran.stdout)

    def tasks(self):
        return [part for t in TASKS for part in ["--task", f"name={t},loss=cross-entropy,labels={t}"]]

    def training(self, lr, seed):
        held = ["--hold-out", str(HOLD_OUT), "--train-limit", str(self.how["limit"]), "--nesterov"]
        rest = ["--lr", str(lr), "--weight-decay", "5e-4", "--seed", str(seed), "--threads", self.args.threads]
        return ["--data", self.args.data] + self.tasks() + held + rest

    def train(self, source, name, epochs, lr, seed, more=()):
        flags = ["--epochs", str(epochs)] + self.training(lr, seed) + list(more)
        return self.call([self.args.prune, "train", source] + flags + ["-o", self.place(name), "--json"])

    def budget(self, name):
        """Flags of a budget; that of milliseconds needs the table of the first network, made alone on the machine."""
        if name == "latency" and not os.path.exists(self.latencies):
            command = [self.args.bench, self.place("first"), "--threads", "1", "--min-time-ms", "30", "--table", self.latencies]
            subprocess.run(command, check=True)
        return BUDGETS[name] + (["--table", self.latencies] if name == "latency" else [])

    def measure(self, path):
        command = [self.args.prune, "eval", path, "--data", self.args.data, "--threads", self.args.threads, "--batch", "32"]
        found = self.call(command + self.tasks() + ["--json"])["tasks"]
        return {t["name"]: {"metric": t["metric"], "value": round(100 * t["value"], 2), "loss": round(t["loss"], 4)} for t in found}

    def run(self, name, variant, budget, seed):
        row = dict(kind="accuracy", name=name, variant=variant, budget=budget, seed=seed, quick=self.args.quick)
        start, total = time.time(), self.how["total"]
        if variant == "first":
            self.train(self.args.network, name, self.how["first"], 0.1, seed, ["--warmup", "1"])
            row |= dict(epochs=self.how["first"])
        elif variant == "dense":
            self.train(self.place("first"), name, total, self.how["lr"], seed)
            row |= dict(epochs=total)
        else:
            cut, spent = self.place(name + "-cut"), 0
            if variant == "pagcp":
                own = PAGCP + self.budget(budget) + ["--fine-tune", str(self.how["round"])] + self.training(self.how["lr"], seed)
                report = self.call([self.args.prune, "pagcp", self.place("first")] + own + ["-o", cut, "--json"])
                row |= dict(rounds=len(report["rounds"]), budget_met=report["budget_met"])
                spent = self.how["round"] * len(report["rounds"])
                # The same at once, without a training between rounds, for what it is worth before one.
                once = self.place(name + "-once")
                self.call([self.args.prune, "pagcp", self.place("first")] + PAGCP + self.budget(budget) + self.training(0.05, seed) + ["-o", once, "--json"])
                row |= dict(untrained=self.measure(once))
            else:
                self.call([self.args.prune, "channels", self.place("first")] + CHANNELS[variant] + self.budget(budget) + ["-o", cut, "--json"])
                row |= dict(untrained=self.measure(cut))
            self.train(cut, name, max(1, total - spent), self.how["lr"], seed)
            row |= dict(epochs=spent + max(1, total - spent))
        totals = self.call([self.args.prune, "inspect", self.place(name), "--json"])["totals"]
        row |= dict(
            trained=self.measure(self.place(name)), macs=totals["dense_macs"], parameters=totals["trained"],
            images=self.how["limit"], data="overlapped pairs of Fashion-MNIST, test", seconds=round(time.time() - start),
        )
        add(self.args.results, row)
        print(f"{name}: {row['trained']}", flush=True)


def latency(queue):
    """Median milliseconds, batch 1, one thread: networks take turns, in this runtime and in ONNX Runtime."""
    import numpy as np
    import onnxruntime

    args = queue.args
    rows = read(args.results)
    done = {r["name"] for r in rows if r["kind"] == "latency" and r["quick"] == args.quick}
    names = [n for n, _, _, seed in runs() if seed == 0 and n not in done and os.path.exists(queue.place(n))]
    names = [n for n in names if fnmatch.fnmatch(n, args.only) and n != "first"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions, ours, theirs = {}, {n: [] for n in names}, {n: [] for n in names}
    image = np.random.default_rng(0).standard_normal((1, 1, 36, 36)).astype(np.float32)
    for name in names:
        onnx = queue.place(name, ".onnx")
        subprocess.run([args.prune, "export", queue.place(name), "--onnx", "-o", onnx], stdout=subprocess.DEVNULL, check=True)
        sessions[name] = onnxruntime.InferenceSession(onnx, options)
    for turn in range(args.turns):
        for name in names:
            command = [args.bench, queue.place(name), "--threads", "1", "--no-layers", "--json", "--min-time-ms", "300"]
            printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
            ours[name].append(json.loads(printed.strip().splitlines()[-1])["median_ms"])
            session, times = sessions[name], []
            feed = {session.get_inputs()[0].name: image}
            for i in range(320):
                begin = time.perf_counter()
                session.run(None, feed)
                times.append(1e3 * (time.perf_counter() - begin))
            theirs[name].append(statistics.median(times[20:]))
    for name in names:
        row = dict(kind="latency", name=name, quick=args.quick, threads=1, batch=1, turns=args.turns)
        add(args.results, row | dict(ms=round(statistics.median(ours[name]), 4), onnxruntime_ms=round(statistics.median(theirs[name]), 4)))


def table(path, quick):
    rows = [r for r in read(path) if r["quick"] == quick]
    ms = {r["name"]: r for r in rows if r["kind"] == "latency"}
    head = ["run", "MACs", "parameters", "epochs", "before training, %", "after, %", "ours, ms", "ONNX Runtime, ms"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for r in rows:
        if r["kind"] != "accuracy":
            continue
        values = lambda key: " / ".join(f"{r[key][t]['value']:.2f}" for t in TASKS) if key in r else ""
        time_of = lambda key: f"{ms[r['name']][key]:.3f}" if r["name"] in ms else ""
        cells = [r["name"], f"{r['macs']:,}", f"{r['parameters']:,}", str(r["epochs"]), values("untrained"), values("trained")]
        print("| " + " | ".join(cells + [time_of("ms"), time_of("onnxruntime_ms")]) + " |")


def summary(path, quick):
    """Over the seeds: means and deviations, and the task that is furthest behind `dense`."""
    rows = [r for r in read(path) if r["quick"] == quick and r["kind"] == "accuracy" and r["variant"] != "first"]
    groups = {}
    for r in rows:
        groups.setdefault((r["budget"] or "", r["variant"]), []).append(r)
    mean = lambda rs, t: statistics.mean(r["trained"][t]["value"] for r in rs)
    dense = groups.get(("", "dense"))
    head = ["budget", "variant", "seeds", "MACs", "parameters", *TASKS, "worst task, points behind dense", "losses before training"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for (budget, variant), rs in sorted(groups.items()):
        part = lambda key: f"{100 * statistics.mean(r[key] for r in rs) / dense[0][key]:.1f} %"
        spread = lambda t: statistics.stdev(r["trained"][t]["value"] for r in rs) if len(rs) > 1 else 0
        cells = [budget, variant, str(len(rs)), part("macs"), part("parameters")]
        cells += [f"{mean(rs, t):.2f} ± {spread(t):.2f}" for t in TASKS]
        cells.append(f"{max(mean(dense, t) - mean(rs, t) for t in TASKS):.2f}")
        cells.append(" / ".join(f"{rs[0]['untrained'][t]['loss']:.2f}" for t in TASKS) if "untrained" in rs[0] else "")
        print("| " + " | ".join(cells) + " |")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--prune", default="target/release/prune")
    args.add_argument("--bench", default="target/release/lacuna-bench")
    args.add_argument("--data")
    args.add_argument("--network")
    args.add_argument("--work", help="where models and checkpoints go")
    args.add_argument("--results", default=os.path.join(HERE, "pairs.jsonl"))
    args.add_argument("--threads", default="1")
    args.add_argument("--wrap", default="nice")
    args.add_argument("--only", default="*")
    args.add_argument("--turns", type=int, default=5)
    for flag in ["--quick", "--list", "--table", "--summary", "--latency"]:
        args.add_argument(flag, action="store_true")
    args = args.parse_args()
    if args.table:
        return table(args.results, args.quick)
    if args.summary:
        return summary(args.results, args.quick)
    queue = Queue(args)
    if args.latency:
        return latency(queue)
    wanted = [r for r in runs() if fnmatch.fnmatch(r[0], args.only)]
    if args.list:
        return print("\n".join(r[0] for r in wanted))
    done = {r["name"] for r in read(args.results) if r["kind"] == "accuracy" and r["quick"] == args.quick}
    for run in wanted:
        if run[0] in done:
            continue
        if run[1] != "first" and not os.path.exists(queue.place("first")):
            print(f"{run[0]}: the run `first` is missing", file=sys.stderr)
            continue
        try:
            queue.run(*run)
        except subprocess.CalledProcessError as e:
            print(f"{run[0]}: {e.cmd[0]} {e.cmd[1]} failed", file=sys.stderr)


main()
