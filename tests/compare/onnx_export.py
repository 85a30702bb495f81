#!/usr/bin/env python3
"""`prune export --onnx` against ONNX Runtime: onnx.checker passes, and the outputs equal ours.

    tests/compare/onnx_export.py --prune target/release/prune --example target/release/examples/run_model MODEL...

Each MODEL is pruned to 90 %, exported, checked, and run on the same input by both: random numbers, or the tensors of
--inputs, which graphs of integers need (`minilm.py --out` writes some).
"""
import argparse
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file

from common import run, table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", default="target/release/prune")
    parser.add_argument("--example", default="target/release/examples/run_model")
    parser.add_argument("--sparsity", default="0.9")
    parser.add_argument("--inputs", help="safetensors with a tensor for each input")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for model in options.models:
            pruned, exported = folder / "p.safetensors", folder / "p.onnx"
            run(options.prune, "global-mp", model, "--sparsity", options.sparsity, "-o", pruned)
            run(options.prune, "export", pruned, "--onnx", "-o", exported)
            proto = onnx.load(exported)
            onnx.checker.check_model(proto, full_check=True)
            session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
            if options.inputs:
                known = load_file(options.inputs)
                feed = {i.name: known[i.name] for i in session.get_inputs()}
            else:
                (given,) = session.get_inputs()
                shape = [d if isinstance(d, int) else 2 for d in given.shape]
                feed = {given.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
            names = [o.name for o in session.get_outputs()]
            theirs = dict(zip(names, session.run(None, feed)))
            save_file(feed, folder / "in.safetensors")
            run(options.example, pruned, folder / "in.safetensors", folder / "out.safetensors")
            ours = load_file(folder / "out.safetensors")
            mask = feed.get("attention_mask")
            opset = proto.opset_import[0].version
            given = ", ".join("x".join(map(str, x.shape)) for x in feed.values())
            for name in names:
                a, b = ours[name], theirs[name]
                if mask is not None and a.shape[:2] == mask.shape:
                    # Of padding nothing is promised.
                    a, b = a[mask != 0], b[mask != 0]
                off = float(np.abs(a - b).max() / np.abs(b).max())
                failed |= not off < 1e-4
                rows.append([pathlib.Path(model).name, len(proto.graph.node), opset, given, name, f"{off:.1e}"])
    table(["model", "nodes", "operator set", "inputs", "output", "largest difference / largest output"], rows)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
