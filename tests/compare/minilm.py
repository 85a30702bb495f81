"""Sentence embeddings of a BERT encoder as sentence-transformers makes them, in numpy.

    pip install numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3
    python minilm.py FOLDER --out ref.safetensors [--text FILE] [--double]
    python minilm.py --compare ref.safetensors OURS.safetensors

FOLDER holds model.safetensors, config.json and tokenizer.json. The sentences are the lines of FILE
that are not empty, or a few of this script's. Files hold `input_ids`, `attention_mask` and
`token_type_ids` I64 [N, T], `last_hidden_state` F32 [N, T, D] and `sentence_embedding` F32 [N, D];
hidden states of padding count in no comparison.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

SENTENCES = [
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome, and everybody who has seen it wants to see it again.",
    "Sparse weights make a model smaller; whether they make it faster is for the kernel to say.",
    "Naïve café owners aren't rich, are they?",
    "ok",
]


def forward(w, config, ids, mask, types, dtype):
    eps = dtype(config["layer_norm_eps"])

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[p + ".weight"] + w[p + ".bias"]

    def linear(x, p):
        return x @ w[p + ".weight"].T + w[p + ".bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], config["num_attention_heads"], -1).swapaxes(1, 2)

    half = np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))), otypes=[np.float64])
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][None, : ids.shape[1]]
    x = norm(x + w[e + "token_type_embeddings.weight"][types], e + "LayerNorm")
    hidden = np.where(mask[:, None, None, :] != 0, 0, -np.inf).astype(dtype)
    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        q, k, v = (heads(linear(x, p + "attention.self." + n)) for n in ("query", "key", "value"))
        s = q @ k.swapaxes(2, 3) / dtype(math.sqrt(q.shape[-1])) + hidden
        s = np.exp(s - s.max(-1, keepdims=True))
        y = (s / s.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        x = norm(x + linear(y, p + "attention.output.dense"), p + "attention.output.LayerNorm")
        y = linear(x, p + "intermediate.dense")
        y = y * half(y).astype(dtype)
        x = norm(x + linear(y, p + "output.dense"), p + "output.LayerNorm")
    m = mask[..., None].astype(dtype)
    pooled = (x * m).sum(1) / np.clip(m.sum(1), 1e-9, None)
    return x, pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def compare(a, b):
    for name in ("last_hidden_state", "sentence_embedding"):
        if name not in b:
            print(f"{name}: not in the second file")
            continue
        x, y = a[name].astype(np.float64), b[name].astype(np.float64)
        if x.shape != y.shape:
            sys.exit(f"{name}: shapes {x.shape} and {y.shape}")
        if name == "last_hidden_state":
            x, y = (t[a["attention_mask"] != 0] for t in (x, y))
        same = (x.argmax(-1) == y.argmax(-1)).mean()
        print(f"{name}: max|a-b|/max|a| {np.abs(x - y).max() / np.abs(x).max():.3e}, argmax agrees on {same:.4%}")


if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("folder", nargs="?", type=pathlib.Path)
    args.add_argument("--text")
    args.add_argument("--out")
    args.add_argument("--double", action="store_true")
    args.add_argument("--compare", nargs=2)
    args = args.parse_args()
    if args.compare:
        compare(*(load_file(f) for f in args.compare))
        sys.exit()
    config = json.loads((args.folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    lines = SENTENCES
    if args.text:
        lines = [l for l in open(args.text, encoding="utf-8").read().splitlines() if l.strip()]
    all_ = tokenizer.encode_batch(lines)
    ids, mask, types = (
        np.array([getattr(e, n) for e in all_], np.int64) for n in ("ids", "attention_mask", "type_ids")
    )
    dtype = np.float64 if args.double else np.float32
    weights = load_file(args.folder / "model.safetensors")
    weights = {k: v.astype(dtype) for k, v in weights.items() if v.dtype.kind == "f"}
    hidden, embedding = forward(weights, config, ids, mask, types, dtype)
    print("cosines with the first sentence:", np.round(embedding @ embedding[0], 4))
    save_file(
        {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "last_hidden_state": hidden.astype(np.float32),
            "sentence_embedding": embedding.astype(np.float32),
        },
        args.out,
    )
