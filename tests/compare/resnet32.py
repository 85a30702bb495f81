"""CIFAR-10 ResNet-32 pruned in one shot, on the pixel-exact test images.

    python resnet32.py PRUNE cifar-resnet32.th cifar10-exact.safetensors

Checks that the dense network is right on 709 +-1 of the 761 images, and shows what global and uniform
magnitude pruning without any training leave of it.
"""
import os
import sys
import tempfile

from common import run, run_json, table

METHODS = [("global-mp", "Global MP"), ("magnitude", "magnitude, uniform")]
SPARSITIES = [0.5, 0.7, 0.8]
DENSE = 709


def main(prune, checkpoint, data, work):
    model = os.path.join(work, "m.safetensors")

    def correct(path, *flags):
        found = run_json(prune, "eval", path, "--data", data, "--preset", "cifar10", *flags)
        return found["top1_correct"], found["samples"]

    cell = lambda c, n: f"{c} ({100 * c / n:.2f} %)"
    dense, samples = correct(checkpoint)
    rows = [["dense", cell(dense, samples)] + [""] * (len(SPARSITIES) - 1)]
    for verb, name in METHODS:
        row = [name]
        for sparsity in SPARSITIES:
            run(prune, verb, checkpoint, "--sparsity", sparsity, "-o", model)
            counts = correct(model)
            assert counts == correct(model, "--dense"), "the sparse kernels change the count"
            row.append(cell(*counts))
        rows.append(row)
    print(f"{samples} images\n")
    table(["", *(f"{s:.0%}" for s in SPARSITIES)], rows)
    return 0 if abs(dense - DENSE) <= 1 else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(*sys.argv[1:], scratch))
