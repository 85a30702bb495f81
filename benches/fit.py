#!/usr/bin/env python3
"""Fits the panel constants of runtime/src/plan/costs.rs to what audits measured, and prints them as a profile's `[costs]`.

  lacuna-bench MODEL --audit --threads 1 --json > a.json        for several models and sparsities
  fit.py a.json [b.json ...] [--l1 49152]

The estimate of `dense-by-row` is taken as it is. Minimises, over the layers, how far the form that the model would choose is behind the fastest. Prints the constants
(one vector operation of a dense panel is 1) and what is left. Needs numpy.
"""
import argparse
import json
import math
import re

import numpy as np


def shared_loads(density, chunk):
    """As `loads` in choose.rs."""
    chance = density**2
    shared = chance + math.sqrt(chance * (1 - chance) / chunk)
    return 1 - min(shared / density / 2, 0.5)


def layers(paths, l1):
    for path in paths:
        for layer in json.loads(open(path).read().splitlines()[-1])["audit"]["layers"]:
            sizes = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+) @ (\d+)x(\d+)", layer["shape"])
            if not sizes:
                continue
            o, c, kh, kw, h, w = map(int, sizes.groups())
            cols, columns = c * kh * kw, h * w
            nonzeros, vectors = layer["density"] * o * cols, math.ceil(columns / 16)
            forms = []
            for form in layer["forms"]:
                if form["form"] == "dense-panel":
                    features = [0] * 7 + [vectors * o * cols]
                elif form["form"] == "dense-by-row":
                    features = [0] * 7 + [math.ceil(o / 32) * 32 * columns * (cols / 16.8 + 0.8)]
                else:
                    width, chunk = map(int, re.fullmatch(r"(?:stream|pair)-panel-(\d+)x(\d+)", form["form"]).groups())
                    chunks, tiles = math.ceil(cols / chunk), math.ceil(columns / width)
                    far = min(cols, chunk) * width * 4 > l1
                    pairs, rows = form["form"].startswith("pair"), tiles * o * chunks
                    loads = nonzeros * (shared_loads(layer["density"], min(cols, chunk)) if pairs else 1)
                    features = [vectors * nonzeros, vectors * loads, vectors * loads * far, tiles * nonzeros,
                                vectors * o * chunks, rows * (not pairs), rows * pairs, 0]
                forms.append((features, form["ms"], form["form"]))
            if len(forms) > 1:
                yield path, layer["node"], layer["density"], forms


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("audits", nargs="+")
    a.add_argument("--l1", type=int, default=48 << 10)
    args = a.parse_args()
    data = list(layers(args.audits, args.l1))
    features = [np.array([f[0] for f in d[3]], float) for d in data]
    times = [np.array([f[1] for f in d[3]]) for d in data]

    def behind(constants):
        return np.array([t[int(np.argmin(f @ constants))] / t.min() - 1 for f, t in zip(features, times)])

    def loss(constants):
        b = behind(constants)
        return b.mean() + 2 * np.maximum(b - 0.03, 0).mean()

    # Starts from least squares of relative errors, then walks downhill at random.
    x, y = np.concatenate(features), np.concatenate(times)
    best = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)[0]
    best = np.maximum(best / best[-1], 1e-3)
    random, value = np.random.default_rng(1), loss(best)
    for i in range(20000):
        step = best * np.exp(random.normal(0, 0.2 if i % 3 else 0.03, len(best)) * (random.random(len(best)) < 0.4))
        step /= step[-1]
        if (v := loss(step)) < value:
            best, value = step, v
    names = ["an FMA", "a load", "more from beyond L1", "the weight, by tile", "sums, by vector", "a row, by tile",
             "a row of a pair, by tile", "dense"]
    for name, constant in zip(names, best):
        print(f"{name:24s} {constant:8.3f}")
    fma, load, far, tile, sums, row, pair, _ = best
    costs = {"nonzero": fma, "load": load, "far_load": load + far, "tile_nonzero": tile, "sums": sums, "row": row,
             "paired_row": pair}
    print("\n[costs]\n" + "\n".join(f"{name} = {value:.4g}" for name, value in costs.items()) + "\n")
    b = behind(best)
    print(f"{len(b)} layers, {(b > 0.05).sum()} behind by more than 5 %, mean {100 * b.mean():.2f} %")
    for (path, node, density, forms), behind_by in zip(data, b):
        if behind_by > 0.05:
            i = [d[1] for d in data].index(node)
            print(f"  {path} {node} density {density:.2f}: {100 * behind_by:.1f} %")


main()
