#!/usr/bin/env python3
"""Makes overlapped pairs of Fashion-MNIST and a network for them: data as one safetensors file, the network as ONNX.

    python3 benches/quality/pairs.py FOLDER pairs.safetensors pairs.onnx

FOLDER holds the four files of Fashion-MNIST (Zalando, MIT), `train-images-idx3-ubyte.gz` and so on. A picture of 36 x 36 shows
two garments, the one at the upper left, the other at the lower right, each up to two pixels from its corner; where they overlap
the brighter pixel shows. The tasks: the class of either garment, and for every pixel whether it is background, the upper left
garment or the lower right one. Pictures of the part test are pairs of test images, the others of training images, which are
each in two pairs.

The network is a residual backbone of 13 convolutions (3 x 3; 16, 32 and 64 channels) with a linear head for each class
and a pyramid of sums for the pixels. Its weights are random (He), by --seed.

The data: `train_images` and `test_images` U8 [N, 1, 36, 36], `*_upper` and `*_lower` U8 [N], `*_pixels` U8 [N, 36, 36].
"""
import argparse
import gzip
import json
import os
import struct

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, OBJECT, JITTER, CLASSES = 36, 28, 2, 10


def idx(path):
    with gzip.open(path) as f:
        kind, rank = struct.unpack(">xxBB", f.read(4))
        shape = struct.unpack(f">{rank}I", f.read(4 * rank))
        if kind != 8:
            raise SystemExit(f"{path}: elements of type {kind}, not unsigned bytes")
        return np.frombuffer(f.read(), np.uint8).reshape(shape)


def pairs(images, labels, random, prefix):
    """As many pictures as images: each image once at either corner."""
    n = len(images)
    order = [random.permutation(n), random.permutation(n)]
    planes = np.zeros((2, n, SIDE, SIDE), np.uint8)
    for corner, chosen in enumerate(order):
        away = random.integers(0, JITTER + 1, (n, 2))
        for i, k in enumerate(chosen):
            y, x = away[i] if corner == 0 else SIDE - OBJECT - away[i]
            planes[corner, i, y : y + OBJECT, x : x + OBJECT] = images[k]
    pixels = np.where(planes[1] > planes[0], 2, (planes[0] > 0).astype(np.uint8)).astype(np.uint8)
    return {
        f"{prefix}_images": planes.max(0)[:, None],
        f"{prefix}_upper": labels[order[0]],
        f"{prefix}_lower": labels[order[1]],
        f"{prefix}_pixels": pixels,
    }


def write(path, tensors):
    """Writes a safetensors file that appears whole."""
    head, at = {}, 0
    for name, array in tensors.items():
        head[name] = {"dtype": "U8", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    head = json.dumps(head).encode()
    head += b" " * (-len(head) % 8)
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for array in tensors.values():
            f.write(np.ascontiguousarray(array).tobytes())
    os.replace(path + ".part", path)


class Network:
    """A graph of ONNX operators that grows value by value."""

    def __init__(self, seed):
        self.random, self.nodes, self.weights = np.random.default_rng(seed), [], []

    def weight(self, name, array):
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x, name, channels, kernel=3, stride=1, norm=True):
        outputs, inputs = channels
        shape = (outputs, inputs, kernel, kernel)
        spread = np.sqrt(2 / (inputs * kernel * kernel))
        w = self.weight(name + ".weight", (spread * self.random.standard_normal(shape)).astype(np.float32))
        bias = [] if norm else [self.weight(name + ".bias", np.zeros(outputs, np.float32))]
        pads = [kernel // 2] * 4
        y = self.node("Conv", [x, w] + bias, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        if not norm:
            return y
        start = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
        parts = [self.weight(f"{name}.norm.{k}", np.full(outputs, v, np.float32)) for k, v in start.items()]
        return self.node("BatchNormalization", [y] + parts, name + ".norm")

    def relu(self, x):
        return self.node("Relu", [x], x + ".relu")

    def block(self, x, name, channels, stride):
        outputs, inputs = channels
        y = self.relu(self.conv(x, name + ".conv1", channels, stride=stride))
        y = self.conv(y, name + ".conv2", (outputs, outputs))
        if stride != 1 or inputs != outputs:
            x = self.conv(x, name + ".shortcut", channels, kernel=1, stride=stride)
        return self.relu(self.node("Add", [y, x], name + ".add"))

    def resize(self, x, name, scale, mode):
        where = {"nearest": "asymmetric", "linear": "half_pixel"}[mode]
        extra = {"nearest_mode": "floor"} if mode == "nearest" else {}
        scales = self.weight(name + ".scales", np.array([1, 1, scale, scale], np.float32))
        return self.node("Resize", [x, "", scales], name, mode=mode, coordinate_transformation_mode=where, **extra)


def network(seed):
    n = Network(seed)
    x = n.relu(n.conv("image", "stem", (16, 1), stride=2))
    levels, width = [], 16
    for stage, (outputs, stride) in enumerate([(16, 1), (32, 2), (64, 2)], 1):
        x = n.block(x, f"stage{stage}.0", (outputs, width), stride)
        x = n.block(x, f"stage{stage}.1", (outputs, outputs), 1)
        levels.append(x)
        width = outputs
    pooled = n.node("Flatten", [n.node("GlobalAveragePool", [x], "pool")], "flat", axis=1)
    for name in ["upper", "lower"]:
        w = n.weight(name + ".weight", (n.random.standard_normal((CLASSES, width)) / np.sqrt(width)).astype(np.float32))
        b = n.weight(name + ".bias", np.zeros(CLASSES, np.float32))
        n.node("Gemm", [pooled, w, b], name, transB=1)
    y = n.conv(levels[2], "side3", (16, 64), kernel=1)
    y = n.resize(y, "up3", np.nextafter(np.float32(9 / 5), np.float32(2)), "nearest")
    y = n.relu(n.node("Add", [y, n.conv(levels[1], "side2", (16, 32), kernel=1)], "sum2"))
    y = n.resize(y, "up2", 2, "nearest")
    y = n.relu(n.node("Add", [y, n.conv(levels[0], "side1", (16, 16), kernel=1)], "sum1"))
    y = n.relu(n.conv(y, "mask.conv", (16, 16)))
    n.resize(n.conv(y, "mask.classes", (3, 16), kernel=1, norm=False), "pixels", 2, "linear")
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        n.nodes, "pairs", [value("image", ["N", 1, SIDE, SIDE])],
        [value("upper", ["N", CLASSES]), value("lower", ["N", CLASSES]), value("pixels", ["N", 3, SIDE, SIDE])], n.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder")
    args.add_argument("data")
    args.add_argument("network")
    args.add_argument("--seed", type=int, default=0, help="of the network's weights")
    args = args.parse_args()
    onnx.save(network(args.seed), args.network)
    random, tensors = np.random.default_rng(36), {}
    for prefix, name in [("train", "train"), ("test", "t10k")]:
        files = [os.path.join(args.folder, f"{name}-{kind}-ubyte.gz") for kind in ["images-idx3", "labels-idx1"]]
        tensors |= pairs(*map(idx, files), random, prefix)
    write(args.data, tensors)


main()
