#!/usr/bin/env python3
"""Makes ptx/*.ptx of src/*.cu and the table of registers in docs/cuda.md; with --check, says whether they are current.

Needs Python and, once, pip: the compiler (NVRTC) and the assembler (ptxas) of CUDA 11.8, and of 12.2 for Hopper's own
instructions, are Python packages, kept in ~/.cache/lacuna-cuda. NVRTC writes the version of the PTX language that its release has, and a driver refuses what is
newer than itself; so the line is lowered to the version that the oldest driver of a target takes, and ptxas, which
refuses every instruction that a file's version does not have, assembles the result. Which of two orders NVRTC gives some
instructions depends on where it lies in memory: it runs in a process of its own at addresses that are the same each time,
and a file that differs is compiled again at others before it is called stale.
"""
import ctypes
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DOC = HERE.parents[3] / "docs" / "cuda.md"
CACHE = pathlib.Path.home() / ".cache" / "lacuna-cuda"

# Target, CUDA, PTX version, sources, whether bfloat16 is there, devices that ptxas is asked about.
COMMON = ["vector", "decoder", "elementwise", "rows", "window"]
TARGETS = [
    ("sm_72", "11.8.89", "7.4", COMMON, False, ["sm_72"]),
    ("sm_80", "11.8.89", "7.4", [*COMMON, "matrix"], True, ["sm_80", "sm_87", "sm_90"]),
    ("sm_90a", "12.2.140", "8.2", ["hopper"], True, ["sm_90a"]),
]


def tools(cuda):
    major = cuda.split(".")[0]
    folder = CACHE / cuda
    if not (folder / "nvidia").exists():
        packages = [f"nvidia-cuda-{p}-cu{major}=={cuda}" for p in ("nvrtc", "nvcc")]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    (library,) = (folder / "nvidia" / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*")
    ptxas = folder / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
    ptxas.chmod(0o755)
    return ctypes.CDLL(str(library)), ptxas


def compile_source(target, name):
    """The PTX of a source, without the lines that name the compiler's build."""
    _, cuda, version, _, bf16, _ = next(t for t in TARGETS if t[0] == target)
    nvrtc, _ = tools(cuda)
    options = [
        f"--gpu-architecture=compute_{target[3:]}",
        f"-I{HERE / 'src'}",
        "--std=c++17",
        f"-DLACUNA_BF16={int(bf16)}",
    ]
    source = HERE / "src" / f"{name}.cu"
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    kind = "ProgramLog" if failed else "PTX"
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    room = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, room)
    if failed:
        sys.exit(f"{source}: {room.value.decode()}")
    text = re.sub(r"\A(\s*//.*\n|\s*\n)*", "", room.value.decode())
    text, lines = re.subn(r"^\.version \S+$", f".version {version}", text, flags=re.M)
    assert lines == 1
    return text


def compiled(target, name, known):
    """The text of one of a few compilations: `known` if it is among them, else the first."""
    texts = []
    for attempt in range(8):
        # ADDR_NO_RANDOMIZE, at first.
        fix = (lambda: ctypes.CDLL(None).personality(0x0040000)) if attempt == 0 else None
        words = [sys.executable, __file__, "--compile", target, name]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, preexec_fn=fix)
        if done.returncode != 0:
            sys.exit(1)
        texts.append(done.stdout)
        if known is None or texts[-1] == known:
            return texts[-1]
    return texts[0]


def assemble(ptxas, path, device):
    """Registers, spilled bytes and shared memory of each kernel."""
    command = [str(ptxas), f"-arch={device}", "-v", "-o", "/dev/null", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{path.name} for {device}: {done.stderr}")
    rows, name, spills = {}, None, 0
    for line in done.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name, spills = found[1], 0
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            rows[name] = (int(found[1]), spills, int(shared[1]) if shared else 0)
    return dict(reversed(rows.items()))


def table(all_rows, devices):
    names = list(dict.fromkeys(name for rows in all_rows.values() for name in rows))
    lines = ["| kernel | shared memory | " + " | ".join(devices) + " |", "|---|---:|" + "---:|" * len(devices)]
    for name in names:
        cells = []
        for device in devices:
            row = all_rows[device].get(name)
            cells.append("" if row is None else f"{row[0]}" + (f" ({row[1]} spilled)" if row[1] else ""))
        shared = next(rows[name][2] for rows in all_rows.values() if name in rows)
        lines.append(f"| `{name}` | {shared} | " + " | ".join(cells) + " |")
    spilled = sum(row[1] > 0 for rows in all_rows.values() for row in rows.values())
    return f"Kernels that spill registers: {spilled or 'none'}.\n\n" + "\n".join(lines)


def main():
    if sys.argv[1:2] == ["--compile"]:
        sys.stdout.write(compile_source(*sys.argv[2:4]))
        return
    check = "--check" in sys.argv[1:]
    stale, rows = [], {}

    def put(path, text):
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)

    for target, cuda, _, sources, _, devices in TARGETS:
        _, ptxas = tools(cuda)
        for name in sources:
            path = HERE / "ptx" / f"{name}_{target}.ptx"
            put(path, compiled(target, name, path.read_text() if path.exists() else None))
            for device in devices:
                rows.setdefault(device, {}).update(assemble(ptxas, path, device))
    if DOC.exists():
        head, _, rest = DOC.read_text().partition("<!-- registers -->\n")
        _, end, tail = rest.partition("\n<!-- end -->")
        put(DOC, head + "<!-- registers -->\n" + table(rows, list(rows)) + end + tail)
    print("\n".join(stale) if stale else "current")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
