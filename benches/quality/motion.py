#!/usr/bin/env python3
"""Turns the motion data of seglearn into windows that `prune` reads: one safetensors file.

    pip download --no-deps --only-binary :all: seglearn==1.2.5 && unzip seglearn-1.2.5-*.whl
    python3 benches/quality/motion.py seglearn/data/watch_dataset.npy motion.safetensors

140 recordings (10 subjects, 7 shoulder exercises, both sides) of a smart watch: acceleration and rotation, 6 channels
at 50 Hz (Burns et al., arXiv 1802.01489; BSD 3-clause). The source is a pickle, which can execute code: only the
file of this SHA-256 is read. A window never crosses recordings; nothing is normalised.

The file holds `windows` F32 [N, T, 6], `labels` U8 [N], `subjects` I32 [N] and `recordings` I32 [N].
"""
import argparse
import hashlib
import json
import os
import struct

import numpy as np

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def windows(data, length, stride):
    """Windows, labels, subjects and recordings, in the order of the recordings."""
    rows = []
    for i, signal in enumerate(data["X"]):
        signal = np.asarray(signal, np.float32)
        for start in range(0, len(signal) - length + 1, stride):
            rows.append((signal[start : start + length], data["y"][i], data["subject"][i], i))
    found, labels, subjects, recordings = zip(*rows)
    return {
        "windows": np.stack(found),
        "labels": np.array(labels, np.uint8),
        "subjects": np.array(subjects, np.int32),
        "recordings": np.array(recordings, np.int32),
    }


def write(path, tensors, facts):
    """Writes a safetensors file that appears whole."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8", np.dtype(np.int32): "I32"}
    header, at = {"__metadata__": facts}, 0
    # Wide elements first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda n: -tensors[n].itemsize)
    for name in order:
        tensor = tensors[name]
        header[name] = dict(dtype=names[tensor.dtype], shape=tensor.shape, data_offsets=[at, at + tensor.nbytes])
        at += tensor.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            f.write(tensors[name].astype(tensors[name].dtype.newbyteorder("<")).tobytes())
    os.replace(path + ".part", path)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("source", help="watch_dataset.npy of seglearn 1.2.5")
    args.add_argument("output")
    args.add_argument("--window", type=int, default=128, help="samples of a window")
    args.add_argument("--stride", type=int, default=64, help="samples from one window to the next of a recording")
    args = args.parse_args()
    if args.window < 1 or args.stride < 1:
        raise SystemExit("a window and a stride are at least 1 sample")
    with open(args.source, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{args.source}: SHA-256 {digest}, not {SHA256}: nothing of it is executed")
    data = np.load(args.source, allow_pickle=True).item()
    if args.window > max(map(len, data["X"])):
        raise SystemExit(f"no recording has {args.window} samples")
    tensors = windows(data, args.window, args.stride)
    facts = dict(
        source="seglearn 1.2.5, watch_dataset.npy", source_sha256=digest, window=str(args.window),
        stride=str(args.stride), channels=",".join(data["X_labels"]), classes=",".join(data["y_labels"]),
    )
    write(args.output, tensors, facts)
    print(f"{args.output}: {len(tensors['labels'])} windows of {args.window} x 6, stride {args.stride}")


main()
