"""Runs the graph of a Lacuna file in numpy, node by node, and compares.

    pip install numpy==2.4.6 safetensors==0.8.0
    python graph.py MODEL.safetensors REFERENCE.safetensors [--double] [--out OURS.safetensors]

REFERENCE holds the graph's inputs and outputs by name. It checks what a converter made of a model
apart from the runtime's kernels; the operators are those of language models.
"""

import argparse
import json
import math

import numpy as np
from safetensors.numpy import load_file, save_file


DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


def load(path):
    """The tensors of a Lacuna file, bfloat16 and bitmask weights as float32."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view(np.uint64)[0])
    raw = {}
    for name, info in json.loads(data[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        part = data[start + begin : start + end].copy()
        if info["dtype"] == "BF16":
            part = (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            part = part.view(DTYPES[info["dtype"]])
        raw[name] = part.reshape(info["shape"])
    for name in [n for n in raw if n.endswith(".compressed")]:
        prefix = name[: -len(".compressed")]
        parts = {p: raw.pop(f"{prefix}.{p}") for p in ("compressed", "bitmask", "shape")}
        raw.pop(f"{prefix}.row_offsets", None)  # 2:4 has none
        rows, columns = parts["shape"].flatten()
        mask = np.unpackbits(parts["bitmask"], axis=1, bitorder="little")[:, :columns] != 0
        dense = np.zeros((rows, columns), parts["compressed"].dtype)
        dense[mask] = parts["compressed"].flatten()
        raw[prefix + ".weight"] = dense
    return raw


def erf(x):
    return np.vectorize(math.erf)(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1)


def rotary(n, x, f):
    y = split(x, n["heads"])
    angle = (np.arange(x.shape[1])[:, None] * f.astype(np.float64))[:, None]
    cos, sin = (t(angle).astype(x.dtype) * x.dtype.type(n.get("scale", 1)) for t in (np.cos, np.sin))
    r, out = len(f), y.copy()
    if n.get("interleaved"):
        a, b = y[..., : 2 * r : 2], y[..., 1 : 2 * r : 2]
        out[..., : 2 * r : 2], out[..., 1 : 2 * r : 2] = a * cos - b * sin, b * cos + a * sin
    else:
        a, b = y[..., :r], y[..., r : 2 * r]
        out[..., :r], out[..., r : 2 * r] = a * cos - b * sin, b * cos + a * sin
    return out.reshape(x.shape)


def attention(n, q, k, v, mask=None):
    q, k, v = split(q, n["heads"]), split(k, n["kv_heads"]), split(v, n["kv_heads"])
    k, v = (np.repeat(t, n["heads"] // n["kv_heads"], 2) for t in (k, v))
    s = np.einsum("nihd,njhd->nhij", q, k) * q.dtype.type(n.get("scale") or q.shape[-1] ** -0.5)
    if n["causal"]:
        s = np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf)
    if mask is not None:
        s = np.where(mask[:, None, None] != 0, s, -np.inf)
    out = np.einsum("nhij,njhd->nihd", softmax(s), v)
    return out.reshape(*out.shape[:2], -1)


def layer_norm(n, x, scale, bias=None):
    x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(n["epsilon"])) * scale
    return y if bias is None else y + bias


def gelu(n, x):
    if n["approximate"]:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return (x / 2 * (1 + erf(x / np.sqrt(2)))).astype(x.dtype)


def masked_mean(n, x, mask):
    m = (mask != 0)[..., None].astype(x.dtype)
    return (x * m).sum(1) / np.maximum(m.sum(1), 1)


def normalize(n, x):
    size = np.sqrt((x * x).sum(n["axis"], keepdims=True))
    return np.divide(x, size, out=np.zeros_like(x), where=size != 0)


OPS = {
    "Add": lambda n, a, b: a + b,
    "Mul": lambda n, a, b: a * b,
    "MatMul": lambda n, a, b: a @ (b.swapaxes(-1, -2) if n["trans_b"] else b),
    "Gather": lambda n, x, i: np.take(x, i, n["axis"]),
    "Reshape": lambda n, x: x.reshape([s or x.shape[i] for i, s in enumerate(n["shape"])]),
    "Swish": lambda n, x: x / (1 + np.exp(-x * x.dtype.type(n["alpha"]))),
    "Gelu": gelu,
    "RMSNormalization": lambda n, x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(n["epsilon"])) * w,
    "LayerNormalization": layer_norm,
    "RotaryEmbedding": rotary,
    "PositionEmbedding": lambda n, x, table: x + table[: x.shape[1]],
    "Attention": attention,
    "MaskedMean": masked_mean,
    "LpNormalization": normalize,
}

if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("model")
    args.add_argument("reference")
    args.add_argument("--double", action="store_true")
    args.add_argument("--out")
    args = args.parse_args()
    dtype = np.float64 if args.double else np.float32
    values = load(args.model)
    graph = json.loads(values.pop("lacuna.graph").tobytes())["graph"]
    reference = load_file(args.reference)
    for i in graph["inputs"]:
        values[i["name"]] = reference[i["name"]]
    for n in graph["nodes"]:
        inputs = [None if i == "" else values[i] for i in n["inputs"]]
        inputs = [i if i is None or i.dtype == np.int64 else i.astype(dtype) for i in inputs]
        values[n["output"]] = OPS[n["op"]](n, *inputs)
    out = {name: values[name] for name in graph["outputs"] if name in reference}
    for name, a in out.items():
        b = reference[name].astype(np.float64)
        error = np.abs(a - b).max() / np.abs(b).max()
        same = (a.argmax(-1) == b.argmax(-1)).mean()
        print(f"{name} {list(a.shape)}: max|a-b|/max|b| {error:.3e}, argmax agrees on {same:.4%}")
    if args.out:
        save_file({name: a.astype(np.float32) for name, a in out.items()}, args.out)
