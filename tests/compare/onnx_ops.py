#!/usr/bin/env python3
"""Graphs as exporters write them, of odd sizes, against ONNX Runtime: converted and run by us, and exported again and run by it.

    tests/compare/onnx_ops.py --prune target/release/prune --example target/release/examples/run_model --cases 40

Transposed convolutions (padding by numbers, SAME_UPPER, SAME_LOWER and output_shape; groups, dilations, output_padding), GELU as
Erf and as Tanh (x^3 as Pow and as products, the half in three places), SiLU, and a plain Erf.
"""
import argparse
import json
import pathlib
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from common import run, table


class Graph:
    def __init__(self, rng, shape):
        self.rng, self.shape, self.nodes, self.weights, self.last = rng, shape, [], [], "x"

    def weight(self, value):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, op, inputs, **attributes):
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.last = name
        return name

    def model(self):
        info = helper.make_tensor_value_info
        graph = helper.make_graph(self.nodes, "g", [info("x", TensorProto.FLOAT, self.shape)],
                                  [info(self.last, TensorProto.FLOAT, None)], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return onnx.shape_inference.infer_shapes(model)


def transposed(g, kind):
    rng = g.rng
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, own = groups * int(rng.integers(1, 4)), int(rng.integers(1, 4))
    g.shape = [int(rng.integers(1, 3)), channels, int(rng.integers(1, 8)), int(rng.integers(1, 10))]
    kernel, strides, dilations = (list(map(int, rng.integers(1, n, 2))) for n in (5, 4, 3))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    attributes = dict(kernel_shape=kernel, strides=strides, dilations=dilations, group=groups)
    if kind == "pads":
        # ONNX Runtime takes more padding than the kernel, but wants something left.
        limit = [min(e, (n - 1) * s + e - 1) for e, n, s in zip(extent, g.shape[2:], strides)]
        begin = [int(rng.integers(0, n // 2 + 1)) for n in limit]
        end = [int(rng.integers(0, n // 2 + 1)) if n > 1 else 0 for n in limit]
        attributes["pads"] = [min(b, e - 1) for b, e in zip(begin, extent)] + [min(b, e - 1) for b, e in zip(end, extent)]
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]  # what ONNX Runtime takes
    elif kind == "output_shape":
        whole = [(n - 1) * s + e for n, s, e in zip(g.shape[2:], strides, extent)]
        attributes["output_shape"] = [int(rng.integers(max(1, w - 3), w + 1)) for w in whole]
    else:
        attributes["auto_pad"] = kind
    inputs = ["x", g.weight(rng.normal(size=[channels, own, *kernel]))]
    if rng.integers(2):
        inputs.append(g.weight(rng.normal(size=[own * groups])))
    g.node("ConvTranspose", inputs, **attributes)


def gelu(g, kind):
    half, one = g.weight(0.5), g.weight(1.0)
    if kind.startswith("erf"):
        inner = (g.node("Div", ["x", g.weight(np.sqrt(2.0))]) if kind.endswith("div")
                 else g.node("Mul", [g.weight([np.sqrt(0.5)]), "x"]))
        gate = g.node("Add", [one, g.node("Erf", [inner])])
    else:
        if kind.endswith("pow"):
            cube = g.node("Pow", ["x", g.weight(3.0)])
        else:
            cube = g.node("Mul", ["x", g.node("Mul", ["x", "x"])])
        cube = g.node("Mul", [cube, g.weight(0.044715)])
        inner = g.node("Mul", [g.node("Add", ["x", cube]), g.weight(np.sqrt(2 / np.pi))])
        gate = g.node("Add", [g.node("Tanh", [inner]), one])
    where = int(g.rng.integers(3))
    if where == 0:
        g.node("Mul", [g.node("Mul", ["x", gate]), half])
    elif where == 1:
        g.node("Mul", [g.node("Mul", ["x", half]), gate])
    else:
        g.node("Mul", ["x", g.node("Mul", [half, gate])])


def silu(g, kind):
    inner = "x" if kind == "silu" else g.node("Mul", ["x", g.weight(1.702)])
    g.node("Mul", [g.node("Sigmoid", [inner]), "x"])


CASES = [(transposed, k, "ConvTranspose") for k in ("pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape")]
CASES += [(gelu, k, "Gelu") for k in ("erf-div", "erf-mul", "tanh-pow", "tanh-mul")]
CASES += [(silu, k, "Swish") for k in ("silu", "quick")]
CASES += [(lambda g, k: g.node("Erf", ["x"]), "erf", "Erf")]


def operators(path):
    """The operators of a Lacuna file."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view(np.uint64)[0])
    begin, end = json.loads(data[8:start].tobytes())["lacuna.graph"]["data_offsets"]
    return [n["op"] for n in json.loads(data[start + begin:start + end].tobytes())["graph"]["nodes"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prune", default="target/release/prune")
    parser.add_argument("--example", default="target/release/examples/run_model")
    parser.add_argument("--cases", type=int, default=40)
    options = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source, ours, again = folder / "m.onnx", folder / "m.safetensors", folder / "again.onnx"
        for build, kind, op in CASES:
            worst = [0.0, 0.0]
            for seed in range(options.cases):
                rng = np.random.default_rng(seed)
                g = Graph(rng, list(map(int, rng.integers(1, 9, 4))))
                build(g, kind)
                onnx.save(g.model(), source)
                run(options.prune, "convert", source, "-o", ours)
                if operators(ours) != [op]:
                    raise SystemExit(f"{kind} {seed}: operators {operators(ours)}")
                run(options.prune, "export", ours, "--onnx", "-o", again)
                onnx.checker.check_model(onnx.load(again), full_check=True)
                x = (3 * rng.normal(size=g.shape)).astype(np.float32)

                def theirs(path):
                    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                    return session.run(None, {"x": x})[0]

                expected = theirs(source)
                save_file({"x": x}, folder / "in.safetensors")
                run(options.example, ours, folder / "in.safetensors", folder / "out.safetensors")
                for i, found in enumerate([load_file(folder / "out.safetensors")[g.last], theirs(again)]):
                    if found.shape != expected.shape:
                        raise SystemExit(f"{kind} {seed}: {found.shape} is not {expected.shape}")
                    worst[i] = max(worst[i], float(np.abs(found - expected).max() / max(np.abs(expected).max(), 0.1)))
            failed |= not max(worst) < 1e-5
            rows.append([op, kind, options.cases, *(f"{w:.1e}" for w in worst)])
    table(["operator", "as", "cases", "ours", "exported again"], rows)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
