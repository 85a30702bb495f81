#!/usr/bin/env python3
"""`prune channels` and `prune export --onnx` against ONNX Runtime: cut models pass onnx.checker, and the outputs equal ours.

    tests/compare/cut_models.py --prune target/release/prune --example target/release/examples/run_model MODEL...

A MODEL is a file, or `--arch` names: `arch:resnet-50`. Each is cut to a share of its multiply-accumulates, exported, checked,
and run on the same random input by both.
"""
import argparse
import json
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
    parser.add_argument("--flops", default="0.4")
    parser.add_argument("--criterion", default="group-norm")
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for model in options.models:
            source = ["--arch", model[5:]] if model.startswith("arch:") else [model]
            cut, exported = folder / "c.safetensors", folder / "c.onnx"
            text = subprocess.run(
                [options.prune, "channels", *source, "--flops", options.flops, "--criterion", options.criterion,
                 "-o", str(cut), "--json"], check=True, capture_output=True, text=True).stdout
            report = json.loads(text)
            run(options.prune, "export", cut, "--onnx", "-o", exported)
            proto = onnx.load(exported)
            onnx.checker.check_model(proto, full_check=True)
            session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
            (given,) = session.get_inputs()
            shape = [d if isinstance(d, int) else 2 for d in given.shape]
            x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            theirs = session.run(None, {given.name: x})
            save_file({given.name: x}, folder / "in.safetensors")
            run(options.example, cut, folder / "in.safetensors", folder / "out.safetensors")
            ours = load_file(folder / "out.safetensors")
            off = 0.0
            for output, value in zip(session.get_outputs(), theirs):
                off = max(off, float(np.abs(ours[output.name] - value).max() / np.abs(value).max()))
            failed |= not off < 1e-4
            left = report["after"]["dense_macs"] / report["before"]["dense_macs"]
            parameters = report["after"]["trained"] / report["before"]["trained"]
            name = model if model.startswith("arch:") else pathlib.Path(model).name
            rows.append([name, f"{left:.3f}", f"{parameters:.3f}", "x".join(map(str, shape)), f"{off:.1e}"])
    table(["model", "MACs left", "parameters left", "input", "largest difference / largest output"], rows)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
