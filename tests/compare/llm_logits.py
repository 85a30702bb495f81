"""The logits of a Llama-type GGUF, worked out in numpy apart from the runtime.

    pip install numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3
    python llm_logits.py MODEL.gguf --text FILE --tokenizer tokenizer.json --ids ids.json --out ref.safetensors
    python llm_logits.py MODEL.gguf --ids ids.json --out ref.safetensors
    python llm_logits.py --compare ref.safetensors OURS.safetensors

`--text` makes `--ids`: the first `--count` tokens of the file. The GGUF is parsed and dequantised
here; the arithmetic is the file's own (interleaved rotation of the rows as they are stored), in
float64 with `--double`, else in float32. Files hold `input_ids` I64 [1, T] and `logits` F32
[1, T, V].
"""

import argparse
import json
import struct
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """A GGUF file: `meta` and, by name, tensors as float32."""

    def __init__(self, path):
        self.data = np.memmap(path, np.uint8, "r")
        self.at = 0
        magic, version, tensors, pairs = self.unpack("<4sIQQ")
        assert magic == b"GGUF" and version in (2, 3), (magic, version)
        self.meta = {}
        for _ in range(pairs):
            key = self.text()
            self.meta[key] = self.value(self.unpack("<I")[0])
        self.infos = {}
        for _ in range(tensors):
            name = self.text()
            axes = self.unpack("<I")[0]
            shape = self.unpack(f"<{axes}Q")[::-1]
            kind, offset = self.unpack("<IQ")
            self.infos[name] = (shape, kind, offset)
        align = self.meta.get("general.alignment", 32)
        self.start = -(-self.at // align) * align

    def unpack(self, form):
        size = struct.calcsize(form)
        out = struct.unpack(form, self.data[self.at : self.at + size].tobytes())
        self.at += size
        return out

    def text(self):
        (n,) = self.unpack("<Q")
        self.at += n
        return self.data[self.at - n : self.at].tobytes().decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.unpack("<IQ")
            return [self.value(inner) for _ in range(count)]
        return self.unpack("<" + SCALARS[kind])[0]

    def __contains__(self, name):
        return name in self.infos

    def __getitem__(self, name):
        shape, kind, offset = self.infos[name]
        count = int(np.prod(shape))
        begin = self.start + offset

        def blocks(elements, size):
            n = count // elements
            return np.asarray(self.data[begin : begin + n * size]).reshape(n, size)

        def half(b):
            return b.copy().view(np.float16).astype(np.float32)

        def nibbles(b):
            return np.concatenate([b & 15, b >> 4], 1).astype(np.float32)

        if kind == 0:
            out = blocks(1, 4).copy().view(np.float32)
        elif kind == 1:
            out = half(blocks(1, 2))
        elif kind == 30:
            out = (blocks(1, 2).copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif kind == 2:
            b = blocks(32, 18)
            out = (nibbles(b[:, 2:]) - 8) * half(b[:, :2])
        elif kind == 3:
            b = blocks(32, 20)
            out = nibbles(b[:, 4:]) * half(b[:, :2]) + half(b[:, 2:4])
        elif kind == 8:
            b = blocks(32, 34)
            out = b[:, 2:].copy().view(np.int8).astype(np.float32) * half(b[:, :2])
        else:
            sys.exit(f"{name}: element type {kind}")
        return out.reshape(shape)


def forward(g, ids, dtype):
    meta = lambda key: g.meta["llama." + key]
    heads, kv = meta("attention.head_count"), meta("attention.head_count_kv")
    eps = dtype(np.float32(meta("attention.layer_norm_rms_epsilon")))
    base = float(np.float32(meta("rope.freq_base")))
    d, t = meta("embedding_length"), len(ids)
    head = g.meta.get("llama.attention.key_length", d // heads)
    w = lambda name: g[name].astype(dtype)

    angles = np.arange(t)[:, None] * base ** (-np.arange(0, head, 2) / head)
    if "rope_freqs.weight" in g:
        angles = angles / g["rope_freqs.weight"].astype(np.float64)
    cos, sin = np.cos(angles)[:, None].astype(dtype), np.sin(angles)[:, None].astype(dtype)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w(name)

    def rotate(x):
        out = np.empty_like(x)
        a, b = x[..., ::2], x[..., 1::2]
        out[..., ::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        return out

    embedding = w("token_embd.weight")
    x = embedding[ids]
    future = np.triu(np.full((t, t), -np.inf, dtype), 1)
    for i in range(meta("block_count")):
        p = f"blk.{i}."
        y = norm(x, p + "attn_norm.weight")
        q = rotate((y @ w(p + "attn_q.weight").T).reshape(t, heads, head))
        k = rotate((y @ w(p + "attn_k.weight").T).reshape(t, kv, head))
        v = (y @ w(p + "attn_v.weight").T).reshape(t, kv, -1)
        out = []
        for h in range(heads):
            g_ = h // (heads // kv)
            s = q[:, h] @ k[:, g_].T / dtype(np.sqrt(head)) + future
            s = np.exp(s - s.max(-1, keepdims=True))
            out.append(s / s.sum(-1, keepdims=True) @ v[:, g_])
        x = x + np.concatenate(out, 1) @ w(p + "attn_output.weight").T
        y = norm(x, p + "ffn_norm.weight")
        gate = y @ w(p + "ffn_gate.weight").T
        y = gate / (1 + np.exp(-gate)) * (y @ w(p + "ffn_up.weight").T)
        x = x + y @ w(p + "ffn_down.weight").T
    x = norm(x, "output_norm.weight")
    return x @ (w("output.weight") if "output.weight" in g else embedding).T


def compare(a, b, name="logits"):
    a, b = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
    if a.shape != b.shape:
        sys.exit(f"shapes {a.shape} and {b.shape}")
    same = (a.argmax(-1) == b.argmax(-1)).mean()
    print(f"{name}: max|a-b|/max|a| {np.abs(a - b).max() / np.abs(a).max():.3e}, argmax agrees on {same:.4%}")


if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("model", nargs="?")
    args.add_argument("--text")
    args.add_argument("--tokenizer")
    args.add_argument("--count", type=int, default=256)
    args.add_argument("--ids")
    args.add_argument("--out")
    args.add_argument("--double", action="store_true")
    args.add_argument("--compare", nargs=2)
    args = args.parse_args()
    if args.compare:
        compare(*(load_file(f) for f in args.compare))
        sys.exit()
    if args.text:
        from tokenizers import Tokenizer

        text = open(args.text, encoding="utf-8").read()
        ids = Tokenizer.from_file(args.tokenizer).encode(text, add_special_tokens=False).ids
        json.dump(ids[: args.count], open(args.ids, "w"))
    ids = np.array(json.load(open(args.ids)), np.int64)
    logits = forward(Gguf(args.model), ids, np.float64 if args.double else np.float32)
    p = logits[:-1].astype(np.float64)
    p = p - p.max(-1, keepdims=True)
    p = p - np.log(np.exp(p).sum(-1, keepdims=True))
    loss = -p[np.arange(len(ids) - 1), ids[1:]].mean()
    print(f"{len(ids)} tokens, perplexity {np.exp(loss):.3f}")
    save_file({"input_ids": ids[None], "logits": logits[None].astype(np.float32)}, args.out)
