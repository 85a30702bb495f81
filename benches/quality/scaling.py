#!/usr/bin/env python3
"""What `prune tyr` costs a Llama of another size, from what it cost a small one.

    /usr/bin/time -v prune tyr MODEL --sparsity 0.5 --quick --windows 16 --keep-search --json ... -o out.safetensors > out.json
    python3 benches/quality/scaling.py --measure out.json out.search/evaluations.jsonl --cores 2 > benches/quality/scaling.json
    python3 benches/quality/scaling.py                 # the table of pruner/SCALING.md

`--measure` turns the seconds of each phase into rates, in 10^9 operations a second; without it the rates of scaling.json
give hours, memory and disk of the default preset at the shapes below.
"""
import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# Blocks, width, query heads, key heads, width of a head, neurons, vocabulary.
SHAPES = {
    "SmolLM2-135M": (30, 576, 9, 3, 64, 1536, 49152),
    "1B": (16, 2048, 32, 8, 64, 8192, 128256),
    "8B": (32, 4096, 32, 8, 128, 14336, 128256),
    "70B": (80, 8192, 64, 8, 128, 28672, 128256),
}
# The default preset: windows to prune on and to search on, tokens of a window, rounds, levels on each side of the middle.
PRESET = dict(windows=64, search_windows=32, window=512, rounds=2, levels=4, interval=0.125, top=256)
GENERATIONS, OFFSPRING, STAGES = 16, 24, [(1024, 6), (4096, 2), (12288, 1)]
ELEMENT = 2  # bytes of a stored weight


def block(shape):
    """Parameters of a block's matrices."""
    _, width, heads, keys, head, neurons, _ = shape
    return 2 * width * head * (heads + keys) + 3 * width * neurons


def modules(shape):
    """Width of the inputs that can go, and units of them, of an attention and of an MLP."""
    _, _, heads, _, head, neurons, _ = shape
    return [(heads * head, heads), (neurons, neurons)]


def ladder(units, interval, levels, keep=0.5):
    """Shares of a module that are left at its levels."""
    step = max(1, round(interval * units))
    middle = round(keep * units)
    up, down = min((units - middle) // step, levels), min(middle // step, levels)
    return [(middle + i * step) / units for i in range(-down, up + 1)]


def solve_operations(shape, ladders):
    """A factor and its inverse for each module, then least squares for each level: k^3/3 + 2 k^2 width."""
    blocks, width = shape[:2]
    total = 0
    for (inputs, units), shares in zip(modules(shape), ladders):
        total += inputs**3
        total += sum((s * inputs) ** 3 / 3 + 2 * (s * inputs) ** 2 * width for s in shares)
    return blocks * total


def operations(shape, p, rounds, evaluated):
    """By phase, what is to be computed."""
    blocks, width, _, _, _, _, vocabulary = shape
    tokens = p["windows"] * p["window"]
    forward = 2 * tokens * blocks * block(shape)
    each = [
        [ladder(units, p["interval"] / 2**r, p["levels"]) for _, units in modules(shape)] for r in range(rounds)
    ]
    last = [[0.5], [0.5]]
    passes = rounds + 1
    searched = p["search_windows"] * p["window"]
    return {
        "forward": passes * forward,
        "moments": passes * tokens * blocks * sum(inputs**2 for inputs, _ in modules(shape)),
        "solve": sum(solve_operations(shape, ladders) for ladders in [*each, last]),
        "advance": passes * forward,
        "teacher": 2 * searched * (blocks * block(shape) + vocabulary * width),
        "search": 2 * evaluated * blocks * block(shape),
    }


def evaluations(shape):
    """Tokens of all candidates of the default preset; of the first generation every module a level up and down too."""
    total = 0
    for generation in range(GENERATIONS):
        pool = OFFSPRING + 1 + (4 * shape[0] if generation == 0 else 0)
        for i, (tokens, keep) in enumerate(STAGES):
            total += tokens * (pool if i == 0 else last + (i == len(STAGES) - 1))
            last = keep
    return PRESET["rounds"] * total


def disk(shape, p):
    """Bytes of the largest supernet, and of the teacher's answers."""
    blocks, width = shape[:2]
    supernet = 0
    for inputs, units in modules(shape):
        shares = [s for s in ladder(units, p["interval"], p["levels"]) if 0 < s < 1]
        supernet += sum(s * inputs * width * ELEMENT + 8 * s * units for s in shares)
    # The next round's lies beside it until it is done.
    return 2 * blocks * supernet, p["search_windows"] * p["window"] * p["top"] * 8


def memory(shape, p):
    """Bytes: states of the windows, second moments and factors of one block in f64, its weights in f64, and candidates."""
    _, width, _, _, _, neurons, vocabulary = shape
    states = (p["windows"] + p["search_windows"]) * p["window"] * width * 4
    moments = 4 * 8 * sum(inputs**2 for inputs, _ in modules(shape))
    weights = 2 * 8 * sum(inputs * width for inputs, _ in modules(shape))
    candidates = (OFFSPRING + 1) * STAGES[0][0] * width * 4
    return states + moments + weights + candidates + vocabulary * width * 4


def measure(options):
    with open(options.measure[0]) as f:
        report = json.load(f)
    with open(options.measure[1]) as f:
        rows = [json.loads(line) for line in f]
    settings = report["settings"]
    calibration, shape = settings["calibration"], SHAPES["SmolLM2-135M"]
    p = dict(PRESET, windows=calibration["windows"] + calibration["held_out"], search_windows=8, window=calibration["window"])
    found = operations(shape, p, len(report["rounds"]), sum(row["tokens"] for row in rows))
    seconds = report["phase_seconds"]
    rates = {phase: n / seconds[phase] / 1e9 for phase, n in found.items()}
    supernet = [r["supernet_bytes"] for r in report["rounds"]]
    json.dump(dict(cores=options.cores, seconds=seconds, rates=rates, supernet_bytes=supernet, tokens=p["windows"] * p["window"], evaluations=len(rows)), sys.stdout, indent=1)
    print()


def table(options):
    with open(os.path.join(HERE, "scaling.json")) as f:
        measured = json.load(f)
    phases = list(measured["rates"])
    here = measured["cores"]
    print("| shape | " + " | ".join(f"{p}, h" for p in phases) + f" | in all, h, {here} cores | {options.cores} cores | memory, GB | disk, GB |")
    print("|---|" + "---|" * (len(phases) + 4))
    for name, shape in SHAPES.items():
        work = operations(shape, PRESET, PRESET["rounds"], evaluations(shape))
        hours = {p: work[p] / (measured["rates"][p] * 1e9) / 3600 for p in phases}
        total = sum(hours.values())
        cells = [f"{hours[p]:.2g}" for p in phases] + [f"{total:.3g}", f"{total * here / options.cores:.2g}"]
        cells += [f"{memory(shape, PRESET) / 1e9:.3g}", f"{sum(disk(shape, PRESET)) / 1e9:.3g}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("REPORT", "LOG"))
    parser.add_argument("--cores", type=int, default=64)
    options = parser.parse_args()
    measure(options) if options.measure else table(options)


main()
