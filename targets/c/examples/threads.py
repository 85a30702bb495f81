"""Eight threads over one model, through ctypes: each has a session of its own, all share the weights.

    python3 threads.py liblacuna.so MODEL [RUNS]

Every thread runs the same input; the outputs must be the same to the last bit, and the library's memory is counted
once. ctypes lets go of Python's lock during a call, so that the runs are parallel."""

import array
import ctypes as c
import sys
import threading


class TensorInfo(c.Structure):
    _fields_ = [("size", c.c_size_t), ("name", c.c_char_p), ("shape", c.POINTER(c.c_size_t)), ("rank", c.c_size_t),
                ("bytes", c.c_size_t), ("index_limit", c.c_size_t), ("dtype", c.c_uint32), ("reserved", c.c_uint32)]


class Tensor(c.Structure):
    """lacuna_input and lacuna_output."""
    _fields_ = [("size", c.c_size_t), ("name", c.c_char_p), ("data", c.c_void_p), ("bytes", c.c_size_t),
                ("shape", c.POINTER(c.c_size_t)), ("rank", c.c_size_t), ("dtype", c.c_uint32), ("reserved", c.c_uint32)]


def main(library, path, runs=50):
    lib = c.CDLL(library)
    lib.lacuna_last_error.restype = c.c_char_p

    def call(name, *arguments):
        if getattr(lib, name)(*arguments):
            raise RuntimeError(f"{name}: {lib.lacuna_last_error().decode()}")

    assert lib.lacuna_abi_version() == 1
    model = c.c_void_p()
    call("lacuna_model_open", path.encode(), c.byref(model))
    results, barrier = [None] * 8, threading.Barrier(8)

    def work(i):
        session = c.c_void_p()
        call("lacuna_session_new", model, None, c.byref(session))
        info = TensorInfo(size=c.sizeof(TensorInfo))
        call("lacuna_session_input", session, c.c_size_t(0), c.byref(info))
        given = array.array("f", ((n % 29) / 29 for n in range(info.bytes // 4)))
        call("lacuna_session_output", session, c.c_size_t(0), c.byref(info))
        made = array.array("f", bytes(info.bytes))
        first = None
        barrier.wait()
        for _ in range(runs):
            put = Tensor(size=c.sizeof(Tensor), data=given.buffer_info()[0], bytes=len(given) * 4)
            get = Tensor(size=c.sizeof(Tensor), data=made.buffer_info()[0], bytes=len(made) * 4)
            call("lacuna_session_run", session, c.byref(put), c.c_size_t(1), c.byref(get), c.c_size_t(1))
            first = first or made.tobytes()
            assert made.tobytes() == first
        call("lacuna_session_free", session)
        # A message belongs to the thread whose call failed.
        assert lib.lacuna_session_free(session) == 2 and b"session" in lib.lacuna_last_error()
        results[i] = first

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    call("lacuna_model_input_count", model, c.byref(c.c_size_t()))
    for thread in threads:
        thread.join()
    call("lacuna_model_free", model)
    assert results[0] is not None and all(r == results[0] for r in results)
    print(f"8 threads, {8 * runs} runs, equal outputs")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
