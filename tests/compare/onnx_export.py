#!/usr/bin/env python3
"""`prune export --onnx` against ONNX Runtime: onnx.checker passes, and the outputs equal ours.

    tests/compare/onnx_export.py --prune target/release/prune --example target/release/examples/run_model MODEL...

Each MODEL is pruned to 90 %, exported, checked, and run on the same random input by both.
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
            (given,) = session.get_inputs()
            shape = [d if isinstance(d, int) else 2 for d in given.shape]
            x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            theirs = session.run(None, {given.name: x})[0]
            save_file({given.name: x}, folder / "in.safetensors")
            run(options.example, pruned, folder / "in.safetensors", folder / "out.safetensors")
            ours = next(iter(load_file(folder / "out.safetensors").values()))
            off = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            failed |= not off < 1e-4
            opset = proto.opset_import[0].version
            rows.append([pathlib.Path(model).name, len(proto.graph.node), opset, "x".join(map(str, shape)), f"{off:.1e}"])
    table(["model", "nodes", "operator set", "input", "largest difference / largest output"], rows)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
