"""MobileNetV2 against ONNX Runtime on the same weights, and its accuracy on foolbox's 20 ImageNet images.

    python mobilenet.py PRUNE RUN_MODEL mobilenet_v2-b0353104.pth FOOLBOX_DATA [WORK_FOLDER]

The ONNX graph is built here, from the weights of `prune export --dense`: nothing of the project takes part
in it but those numbers. Accuracy is counted on the images as Pillow decodes them, and once more on the
JPEGs themselves: decoders differ by a level here and there. The figure is the largest over the images of max|a-b| / max|b|, b being ONNX
Runtime's. The spread is the largest standard deviation of a class over the images, by the largest output: a
network that answers every image alike is easy to match. Pruning in one shot leaves such a network, so each is
compared once more with the normalisation statistics that the 20 images have in it, which is no way to measure
accuracy and a fair way to compare. Needs numpy, onnx, onnxruntime, pillow and safetensors.
"""
import glob
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file

from common import run, run_json, table

LIMIT = 1e-4
SPARSITIES = [0, 0.5, 0.8, 0.95]
ISAS = ["scalar", "avx2", "avx512"]
BATCHES = [1, 20]
# t, c, n, s of the paper (arXiv 1801.04381, table 2).
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def onnx_model(weights, own_statistics=False):
    """The network; with `own_statistics` every normalisation takes those of its batch, and puts them out too."""
    nodes, values, statistics = [], {}, []

    def node(op, inputs, **attributes):
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def weight(name):
        values[name] = weights[name]
        return name

    def conv(x, name, norm, stride, relu):
        w = weights[f"{name}.weight"]
        k = w.shape[2]
        group = w.shape[0] if w.shape[1] == 1 else 1
        x = node("Conv", [x, weight(f"{name}.weight")], kernel_shape=[k, k], strides=[stride] * 2,
                 pads=[k // 2] * 4, group=group)
        if own_statistics:
            mean = node("ReduceMean", [x], axes=[0, 2, 3])
            x = node("Sub", [x, mean])
            var = node("ReduceMean", [node("Mul", [x, x])], axes=[0, 2, 3])
            values["epsilon"], shape = np.float32(1e-5), [1, -1, 1, 1]
            values[f"{norm}.w"], values[f"{norm}.b"] = (weights[f"{norm}.{p}"].reshape(shape) for p in ("weight", "bias"))
            x = node("Mul", [node("Div", [x, node("Sqrt", [node("Add", [var, "epsilon"])])]), f"{norm}.w"])
            x = node("Add", [x, f"{norm}.b"])
            statistics.extend([(f"{norm}.running_mean", mean), (f"{norm}.running_var", var)])
            return node("Clip", [x, "zero", "six"]) if relu else x
        stats = [weight(f"{norm}.{p}") for p in ("weight", "bias", "running_mean", "running_var")]
        x = node("BatchNormalization", [x, *stats], epsilon=1e-5)
        return node("Clip", [x, "zero", "six"]) if relu else x

    values["zero"], values["six"] = np.float32(0), np.float32(6)
    x, channels, feature = conv("x", "features.0.0", "features.0.1", 2, True), 32, 1
    for t, c, n, s in BLOCKS:
        for i in range(n):
            name, stride, start = f"features.{feature}.conv", s if i == 0 else 1, x
            part = 0
            if t != 1:
                x = conv(x, f"{name}.0.0", f"{name}.0.1", 1, True)
                part = 1
            x = conv(x, f"{name}.{part}.0", f"{name}.{part}.1", stride, True)
            x = conv(x, f"{name}.{part + 1}", f"{name}.{part + 2}", 1, False)
            if stride == 1 and channels == c:
                x = node("Add", [x, start])
            channels, feature = c, feature + 1
    x = conv(x, "features.18.0", "features.18.1", 1, True)
    x = node("Flatten", [node("GlobalAveragePool", [x])])
    x = node("Gemm", [x, weight("classifier.1.weight"), weight("classifier.1.bias")], transB=1)
    graph = helper.make_graph(
        nodes, "mobilenet_v2",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 1000])]
        + [helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, weights[name].size, 1, 1])
           for name, out in statistics],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString(), [name for name, _ in statistics]


def session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def recalibrated(weights, x):
    """The weights with the statistics that `x` has in every layer."""
    model, names = onnx_model(weights, own_statistics=True)
    found = session(model).run(None, {"x": x})[1:]
    return {**weights, **{name: value.reshape(-1) for name, value in zip(names, found)}}


def images(folder, decoded):
    """Network inputs as torchvision makes them, and labels; leaves the decoded images as PNG in `decoded`."""
    files = sorted(f for kind in ("jpg", "jpeg", "png") for f in glob.glob(os.path.join(folder, f"imagenet_*.{kind}")))
    labels = [int(os.path.splitext(f)[0].rsplit("_", 1)[1]) for f in files]
    pixels = []
    for f in files:
        image = Image.open(f).convert("RGB")
        image.save(os.path.join(decoded, os.path.splitext(os.path.basename(f))[0] + ".png"))
        short = min(image.size)
        image = image.resize([256 * side // short for side in image.size], Image.BILINEAR)
        left, top = ((side - 224) // 2 for side in image.size)
        image = image.crop((left, top, left + 224, top + 224))
        x = np.asarray(image, np.float32) / 255
        x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels.append(x.transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(pixels), np.float32), np.array(labels)


def main(prune, run_model, checkpoint, data, work):
    path = lambda name: os.path.join(work, name)
    decoded = path("decoded")
    os.makedirs(decoded, exist_ok=True)
    x, labels = images(data, decoded)
    print(f"{len(labels)} images; onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}\n")
    save_file({"x": x}, path("x.safetensors"))
    rows, worst = [], 0.0

    def compare(name, source, sparsity):
        nonlocal worst
        model, dense = path("model.safetensors"), path("dense.safetensors")
        if sparsity:
            run(prune, "global-mp", source, "--sparsity", sparsity, "-o", model)
        else:
            run(prune, "convert", source, "-o", model)
        run(prune, "export", "--dense", model, "-o", dense)
        top = run_json(prune, "eval", model, "--data", decoded)
        jpeg = run_json(prune, "eval", model, "--data", os.path.join(data, "imagenet_*"))
        weights = load_file(dense)
        theirs = session(onnx_model(weights)[0]).run(None, {"x": x})[0]
        five = (np.argsort(-theirs, 1)[:, :5] == labels[:, None]).any(1)
        cells = [name, f"{top['top1_correct']}, {top['top5_correct']}",
                 f"{jpeg['top1_correct']}, {jpeg['top5_correct']}",
                 f"{(theirs.argmax(1) == labels).sum()}, {five.sum()}",
                 f"{theirs.std(0).max() / np.abs(theirs).max():.2g}"]
        for isa in ISAS:
            largest = 0.0
            for batch in BATCHES:
                run(run_model, model, path("x.safetensors"), path("y.safetensors"), "--isa", isa, "--batch", batch)
                (ours,) = load_file(path("y.safetensors")).values()
                difference = np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)
                largest = max(largest, float(difference.max()))
            worst = max(worst, largest)
            cells.append(f"{largest:.1e}")
        rows.append(cells)
        if not sparsity:
            assert top["top1_correct"] == 18 and top["top5_correct"] == 20, top
        return weights

    for sparsity in SPARSITIES:
        weights = compare(f"{sparsity:.0%}", checkpoint, sparsity)
        if sparsity:
            # What is zero already goes first: the same weights are left.
            save_file(recalibrated(weights, x), path("recalibrated.safetensors"))
            compare(f"{sparsity:.0%}, recalibrated", path("recalibrated.safetensors"), sparsity)
    table(["sparsity", "top-1, top-5", "of the JPEGs as we decode them", "ONNX Runtime's", "spread", *ISAS], rows)
    print(f"\nlargest difference {worst:.1e}, limit {LIMIT:.0e}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(*sys.argv[1:5], *(sys.argv[5:] or [scratch])))
