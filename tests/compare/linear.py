#!/usr/bin/env python3
"""Linear layers beside other runtimes, f32, in one run: bursts take turns in random order, medians of rounds.

  linear.py LINEAR_LAYERS --shape 4096x4096 --n 1,16 --sparsity 50,90 --threads 1 [--cold] [--deepsparse PYTHON]

LINEAR_LAYERS is the example of that name, built. Peers: ONNX Runtime and OpenVINO on the dense layer, DeepSparse (with the
interpreter of an environment that has it) and MKL's CSR (with its library in this environment) on the pruned one. With
--cold each runs as many layers in turn as their weights fill 128 MB; DeepSparse, whose graph would take gigabytes,
is then left out. Prints a line for each cell, and appends it to --json. Needs numpy, onnx, onnxruntime, openvino, scipy, mkl.

  linear.py --table FILE LIMITS LIMITS       the cells of --json as Markdown; limits with one thread and with two: multiply-adds
                                             in G/s, bytes from the third-level cache and from memory in GB/s
"""
import argparse
import atexit
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

COLD_BYTES = 128 << 20
RUNNING = []


def end(*_):
    # A stopped process would outlive this one, and whatever waits for its files and locks would wait.
    for process in RUNNING:
        process.kill()
    if _:
        sys.exit(1)


atexit.register(end)


class Ours:
    def __init__(self, program, shape, n, sparsity, threads, layers, dense):
        args = [program, *map(str, (*shape, n, sparsity, threads, layers))] + ["--dense"] * dense
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.kernel = self.process.stdout.readline().strip()
        self.pause()

    def pause(self):
        if self.process not in RUNNING:
            RUNNING.append(self.process)
        # Threads that wait for work spin for a while, beside the next burst.
        self.process.send_signal(signal.SIGSTOP)

    def burst(self, ms):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{ms}\n")
        time = float(self.process.stdout.readline().split()[0])
        self.pause()
        return time

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()
        RUNNING.remove(self.process)


class Peer(Ours):
    def __init__(self, python, *args):
        command = [python, __file__, "--peer", *map(str, args)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, bufsize=1)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{args[0]} did not start")
        self.pause()


def weight(outer, inner, sparsity):
    import numpy as np

    w = np.random.default_rng(1).uniform(-1, 1, (outer, inner)).astype(np.float32)
    w[np.abs(w) < sparsity / 100] = 0
    return w / np.float32(64)


def onnx_file(outer, inner, n, sparsity, layers, folder):
    path = os.path.join(folder, f"{outer}x{inner}-{n}-{sparsity}-{layers}.onnx")
    if os.path.exists(path):
        return path
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # Weights that differ: equal ones would be merged.
    w = weight(outer, inner, sparsity)
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Gemm", ["x", f"w{i}", "b"], [f"y{i}"], transB=1) for i in range(layers)]
    graph = helper.make_graph(
        nodes, "layers", [info("x", TensorProto.FLOAT, [n, inner])],
        [info(f"y{i}", TensorProto.FLOAT, [n, outer]) for i in range(layers)],
        [numpy_helper.from_array(w * np.float32(1 + i / 1024), f"w{i}") for i in range(layers)]
        + [numpy_helper.from_array(np.zeros(outer, np.float32), "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def peer(runtime, path, outer, inner, n, sparsity, threads, layers):
    """A process of one other runtime: as `linear_layers`, in Python."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    import numpy as np

    x = np.random.default_rng(3).standard_normal((n, inner), dtype=np.float32)
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        run = lambda: session.run(None, {"x": x})
    elif runtime == "openvino":
        import openvino

        hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY",
                 "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x))
        run = request.infer
    elif runtime == "deepsparse":
        import deepsparse

        engine = deepsparse.Engine(path, batch_size=n, num_cores=threads)
        assert engine.fraction_of_supported_ops > 0.99, "it would run in its bundled ONNX Runtime"
        run = lambda: engine.run([x], val_inp=False)
    else:
        run = mkl(outer, inner, n, sparsity, threads, layers, x)
    for _ in range(3):
        run()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        run()
        times, end = [], time.perf_counter() + float(line) / 1e3
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) / layers)
        print(statistics.median(times), min(times), file=out, flush=True)


def mkl(outer, inner, n, sparsity, threads, layers, x):
    """MKL's inspector-executor CSR: y^T = W x^T."""
    import ctypes as c
    import glob

    import numpy as np
    import scipy.sparse

    lib = c.CDLL(sorted(glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so*")))[0])
    lib.MKL_Set_Num_Threads(threads)

    class Description(c.Structure):
        _fields_ = [("type", c.c_int), ("mode", c.c_int), ("diag", c.c_int)]

    general, address = Description(20, 0, 0), lambda a: c.c_void_p(a.ctypes.data)
    csr = scipy.sparse.csr_matrix(weight(outer, inner, sparsity))
    parts, handles = [], []
    for _ in range(layers):
        rows, cols, values = csr.indptr.astype(np.int32), csr.indices.astype(np.int32), csr.data.copy()
        handle = c.c_void_p()
        assert not lib.mkl_sparse_s_create_csr(c.byref(handle), 0, outer, inner, address(rows),
                                               c.c_void_p(rows.ctypes.data + 4), address(cols), address(values))
        if n == 1:
            lib.mkl_sparse_set_mv_hint(handle, 10, general, 1000000)
        else:
            lib.mkl_sparse_set_mm_hint(handle, 10, general, 101, n, 1000000)
        lib.mkl_sparse_optimize(handle)
        parts.append((rows, cols, values))
        handles.append(handle)
    xt, y = np.ascontiguousarray(x.T), np.zeros((outer, n), np.float32)
    one, zero = c.c_float(1), c.c_float(0)

    def run(parts=parts):
        for h in handles:
            if n == 1:
                lib.mkl_sparse_s_mv(10, one, h, general, address(xt), zero, address(y))
            else:
                lib.mkl_sparse_s_mm(10, one, h, general, 101, address(xt), n, n, zero, address(y), n)

    return run


def table(path, limits):
    """Markdown of what --json wrote: for each cell our time, how many times the best peer's that is, the goal and the
    share of the limit, which is arithmetic on the non-zeros or reading them with a bitmask."""
    rows = {}
    for line in open(path):
        c = json.loads(line)
        outer, inner = numbers(c["shape"].replace("x", ","))
        kept = outer * inner * (100 - c["sparsity"]) / 100
        peak, l3, memory = limits[c["threads"]]
        size = 4 * kept + outer * inner / 8
        bandwidth = memory if c["cold"] or size > 32e6 else l3
        limit = max(size / bandwidth, kept * c["n"] / peak) / 1e3
        us, best = c["us"], c["us"][c["best"]]
        dense = min(us[name] for name in ("onnxruntime", "openvino") if name in us)
        goal = 1.1 if limit < 0.75 * best else 1.0
        ok = best / us["ours"] >= goal - 0.005 and dense / us["ours"] >= 0.965
        cell = f"{us['ours']:.0f}, {best / us['ours']:.2f}{'' if ok else ' (!)'} {c['best'][:2]}, {100 * limit / us['ours']:.0f} %"
        key = (c["shape"], c["n"], c["threads"], c["cold"])
        rows.setdefault(key, {})[c["sparsity"]] = cell if goal > 1 else cell + " *"
    levels = sorted({s for row in rows.values() for s in row})
    print("| layer | N | threads | " + " | ".join(f"{s} %" for s in levels) + " |")
    print("|---" * (3 + len(levels)) + "|")
    for (shape, n, threads, cold), row in sorted(rows.items(), key=lambda r: (r[0][3], r[0][0], r[0][1], r[0][2])):
        print(f"| {shape}{', cold' * cold} | {n} | {threads} | " + " | ".join(row.get(s, "") for s in levels) + " |")


def numbers(text):
    return [int(v) for v in text.split(",")]


def main():
    if sys.argv[1:2] == ["--peer"]:
        runtime, path, *rest = sys.argv[2:]
        return peer(runtime, path, *map(int, rest))
    if sys.argv[1:2] == ["--table"]:
        given = [list(map(float, text.split(","))) for text in sys.argv[3:5]]
        return table(sys.argv[2], {1: given[0], 2: given[1]})
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("program")
    a.add_argument("--shape", default="4096x4096")
    a.add_argument("--n", type=numbers, default=[1])
    a.add_argument("--sparsity", type=numbers, default=[50])
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--cold", action="store_true")
    a.add_argument("--deepsparse", metavar="PYTHON")
    a.add_argument("--peers", default="onnxruntime,openvino,deepsparse,mkl")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--ms", type=float, default=40)
    a.add_argument("--json")
    a.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "linear-layers"), help="for ONNX files")
    args = a.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    signal.signal(signal.SIGTERM, end)
    shape = numbers(args.shape.replace("x", ","))
    size, peers = shape[0] * shape[1] * 4, args.peers.split(",")

    def layers(bytes):
        return -(-COLD_BYTES // bytes) if args.cold else 1

    for n in args.n:
        dense = {}
        for runtime in ("onnxruntime", "openvino"):
            if runtime in peers:
                path = onnx_file(*shape, n, 0, layers(size), args.folder)
                dense[runtime] = Peer(sys.executable, runtime, path, *shape, n, 0, args.threads, layers(size))
        dense["ours dense"] = Ours(args.program, shape, n, 0, args.threads, layers(size), True)
        for sparsity in args.sparsity:
            stored = int(size * (100 - sparsity) / 100)
            jobs = dict(dense)
            if args.deepsparse and "deepsparse" in peers and not args.cold:
                path = onnx_file(*shape, n, sparsity, 1, args.folder)
                jobs["deepsparse"] = Peer(args.deepsparse, "deepsparse", path, *shape, n, sparsity, args.threads, 1)
            if "mkl" in peers:
                jobs["mkl"] = Peer(sys.executable, "mkl", "-", *shape, n, sparsity, args.threads, layers(stored))
            jobs["ours"] = Ours(args.program, shape, n, sparsity, args.threads, layers(stored), False)
            got = {name: [] for name in jobs}
            for _ in range(args.rounds):
                for name in random.sample(list(jobs), len(jobs)):
                    got[name].append(jobs[name].burst(args.ms))
            us = {name: statistics.median(times) * 1e6 for name, times in got.items()}
            best = min((u, name) for name, u in us.items() if not name.startswith("ours"))[1] if len(us) > 2 else "ours dense"
            ratio = statistics.median(b / o for b, o in zip(got[best], got["ours"]))
            print(f"{args.shape} n{n} s{sparsity} t{args.threads}{' cold' * args.cold}: "
                  + ", ".join(f"{name} {u:.1f}" for name, u in us.items())
                  + f" us; x{ratio:.2f} of {best}; {jobs['ours'].kernel}, {dense['ours dense'].kernel}", flush=True)
            if args.json:
                with open(args.json, "a") as file:
                    file.write(json.dumps(dict(shape=args.shape, n=n, sparsity=sparsity, threads=args.threads, cold=args.cold,
                                               us=us, best=best, ratio=ratio, kernel=jobs["ours"].kernel)) + "\n")
            for name in set(jobs) - set(dense):
                jobs[name].close()
        for job in dense.values():
            job.close()


main()
