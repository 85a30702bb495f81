"""Python's safetensors opens what the pruner writes, and the bitmasks decode to the dense weights.

    python safetensors_files.py PRUNE CHECKPOINT [SPARSITY ...]

For each sparsity: prunes, exports dense, and reads both files with the safetensors package alone. Every bitmask
weight is decoded by the few lines of numpy below and compared, bit for bit, with the dense export; the row
offsets are compared with the counts of the mask. Needs numpy and safetensors.
"""
import json
import os
import sys
import tempfile

import numpy as np
import safetensors
from safetensors.numpy import load_file

from common import run, table


def decode(compressed, bitmask, shape):
    """What the bitmask encoding means: bit c % 8 of byte c / 8 of a row says whether column c is stored."""
    rows, columns = shape
    mask = np.unpackbits(bitmask, axis=1, bitorder="little")
    assert not mask[:, columns:].any(), "bits behind the last column"
    mask = mask[:, :columns].astype(bool)
    dense = np.zeros((rows, columns), compressed.dtype)
    dense[mask] = compressed
    return dense, mask


def main(prune, checkpoint, sparsities, work):
    rows = []
    for sparsity in sparsities:
        sparse_file, dense_file = os.path.join(work, "s.safetensors"), os.path.join(work, "d.safetensors")
        run(prune, "global-mp", checkpoint, "--sparsity", sparsity, "-o", sparse_file)
        run(prune, "export", "--dense", sparse_file, "-o", dense_file)
        sparse, dense = load_file(sparse_file), load_file(dense_file)
        with safetensors.safe_open(sparse_file, "np") as f:
            metadata = f.metadata()
            assert set(f.keys()) == set(sparse)
        graph = json.loads(sparse["lacuna.graph"].tobytes())
        assert graph["version"] == 1, graph["version"]
        encoded = zeros = total = 0
        seen = {"lacuna.graph"}
        for name, weight in dense.items():
            # `X.weight` is stored as `X.compressed` and so on.
            stem = name.removesuffix(".weight")
            total += weight.size
            zeros += weight.size - np.count_nonzero(weight)
            if name in sparse:
                seen.add(name)
                assert sparse[name].dtype == weight.dtype and sparse[name].tobytes() == weight.tobytes(), name
                continue
            parts = [f"{stem}.{p}" for p in ("compressed", "bitmask", "shape", "row_offsets")]
            values, mask, shape, offsets = (sparse[p] for p in parts)
            seen.update(parts)
            decoded, mask = decode(values, mask, shape.tolist())
            assert weight.shape[0] == decoded.shape[0] and weight.size == decoded.size, name
            # Only a negative zero, which is not stored, may lose its sign.
            assert np.array_equal(decoded.reshape(weight.shape), weight), name
            counts = mask.sum(1)
            assert np.array_equal(offsets, np.cumsum(counts) - counts), name
            encoded += 1
        assert seen == set(sparse), set(sparse) - seen
        rows.append([f"{float(sparsity):.0%}", len(sparse), len(dense), encoded, f"{zeros} of {total}",
                     os.path.getsize(sparse_file), os.path.getsize(dense_file), metadata["version"]])
    print(f"{os.path.basename(checkpoint)}, safetensors {safetensors.__version__}\n")
    table(["sparsity", "tensors", "dense tensors", "bitmask weights, equal", "zeros", "bytes", "dense bytes", "version"], rows)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], sys.argv[2], sys.argv[3:] or ["0.5", "0.9"], scratch)
