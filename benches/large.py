#!/usr/bin/env python3
"""The global threshold over a checkpoint of 1.5 billion parameters: time against cold reads, and anonymous memory.

    cargo build --release -p lacuna-prune --bins --example large_checkpoint
    benches/large.py [--folder DIR] [--keep] [--layers N] [--rounds N] [--dtype bf16|f32]

Generates the checkpoint (3 GB of bf16, 6 GB of f32) where it is missing, and deletes it afterwards. Before every timing the page cache
is emptied: `/proc/sys/vm/drop_caches` where we may, and posix_fadvise(DONTNEED) on the file. The reference is one
sequential read(2) of the file in blocks of 1 MiB. Anonymous memory is the largest RssAnon of /proc/PID/status, sampled
every 5 ms. Fails where the threshold takes more than 1.3 times two reads, or a run more memory than the largest tensor
and 200 MB.
"""

import argparse
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def cold(file):
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read(file):
    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    with open(file, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass
    return time.perf_counter() - start


def run(args):
    """Seconds, the largest anonymous memory in bytes, and what was printed."""
    start = time.perf_counter()
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=sys.stderr)
    status, peak = f"/proc/{child.pid}/status", 0
    os.set_blocking(child.stdout.fileno(), False)
    out = b""
    while child.poll() is None:
        try:
            with open(status) as f:
                for line in f:
                    if line.startswith("RssAnon:"):
                        peak = max(peak, int(line.split()[1]) * 1024)
        except OSError:
            pass
        out += child.stdout.read() or b""
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    os.set_blocking(child.stdout.fileno(), True)
    out += child.stdout.read() or b""
    if child.returncode:
        sys.exit(f"{args}: exit status {child.returncode}")
    return seconds, peak, json.loads(out)


def largest(file):
    with open(file, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    ends = [t["data_offsets"] for n, t in header.items() if n != "__metadata__"]
    return max(end - begin for begin, end in ends)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=TARGET / "large")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparsity", default="0.9")
    parser.add_argument("--keep", action="store_true", help="do not delete the checkpoint")
    options = parser.parse_args()
    file, pruned = options.folder / "model.safetensors", options.folder / "pruned.safetensors"
    if not file.exists():
        generator = TARGET / "examples" / "large_checkpoint"
        subprocess.run([generator, options.folder, str(options.layers), options.dtype], check=True)
    limit = largest(file) + 200_000_000
    method = [TARGET / "prune", "global-mp", options.folder, "--sparsity", options.sparsity, "--json"]
    failed = False
    try:
        for _ in range(options.rounds):
            cold(file)
            reference = read(file)
            cold(file)
            seconds, peak, report = run([*method, "--dry-run"])
            ratio = seconds / (2 * reference)
            rate = file.stat().st_size / reference / 1e9
            parts = " + ".join(f"{what} {s:.2f}" for what, s in report["seconds"].items() if s)
            print(
                f"threshold: {seconds:.2f} s ({parts}), cold read {reference:.2f} s ({rate:.2f} GB/s): "
                f"{ratio:.2f} times two reads; anonymous {peak / 1e6:.0f} MB of {limit / 1e6:.0f}",
                flush=True,
            )
            failed |= ratio > 1.3 or peak > limit
        seconds, peak, report = run([*method, "-o", pruned])
        wrote = report["seconds"]["write"]
        print(
            f"with output: {seconds:.2f} s, of which {wrote:.2f} s write and check {pruned.stat().st_size / 1e6:.0f} MB; "
            f"anonymous {peak / 1e6:.0f} MB"
        )
        failed |= peak > limit
    finally:
        for path in [pruned, options.folder / "pruned.report.json"]:
            path.unlink(missing_ok=True)
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
