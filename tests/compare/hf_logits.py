"""Logits of exported models in transformers, beside ours.

    pip install torch transformers numpy safetensors
    python hf_logits.py PRUNE RUN_DECODER WORK --ids ids.safetensors EXPORTED=OURS[,OURS...] ...

Each EXPORTED is a Lacuna file of whole shapes: `prune export --hf` makes a folder of it, which
`AutoModelForCausalLM.from_pretrained` loads as it is and runs in float32. OURS are Lacuna files that should compute the
same: the file itself, the model of heads and neurons cut that it is the zero-filled form of; `OURS:bitmask` is the file
with its 2:4 weights written as bitmasks. They run in chunks of 64 and inputs are not rounded. `--text FILE` makes
`--ids` of the first 512 tokens of a text by the exported tokenizer. Fails beyond 1e-4 of the largest logit, or where the
likeliest token is another that is not as likely within that.
"""

import argparse
import os
import subprocess

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

LIMIT = 1e-4


def exported(options, model):
    folder = os.path.join(options.work, os.path.basename(model).removesuffix(".safetensors") + ".hf")
    subprocess.run([options.prune, "export", "--hf", model, "-o", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def tokens(options, folder):
    """The ids, made by the tokenizer of a folder where there are none."""
    if options.text:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
        with open(options.text, encoding="utf-8") as f:
            ids = tokenizer(f.read(200_000), add_special_tokens=False)["input_ids"][: options.count]
        save_file({"input_ids": np.array([ids], np.int64)}, options.ids)
    return load_file(options.ids)["input_ids"]


def theirs(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits[0].numpy()


def ours(options, name):
    model, _, bitmask = name.partition(":")
    out = os.path.join(options.work, "logits.safetensors")
    words = [options.run_decoder, model, options.ids, out, "--chunk", "64", "--round-inputs", "false"]
    if bitmask:
        words += ["--bitmask", os.path.join(options.work, "bitmask.safetensors")]
    subprocess.run(words, check=True)
    return load_file(out)["logits"][0]


def compare(a, b):
    """max|a-b| / max|b|, and positions of the same likeliest token."""
    return np.abs(a - b).max() / np.abs(b).max(), int((a.argmax(1) == b.argmax(1)).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prune")
    parser.add_argument("run_decoder")
    parser.add_argument("work")
    parser.add_argument("models", nargs="+", metavar="EXPORTED=OURS[,OURS...]")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--text")
    parser.add_argument("--count", type=int, default=512)
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    failed = []
    print("| exported | ours | max abs difference / max abs | same likeliest token | equal to the first of ours |\n|---|---|---|---|---|")
    for pair in options.models:
        model, _, names = pair.partition("=")
        folder = exported(options, model)
        ids = tokens(options, folder)
        reference = theirs(folder, ids)
        first = None
        for name in names.split(","):
            found = ours(options, name)
            first = found if first is None else first
            far, same = compare(found, reference)
            # A tie within the limit may turn either way.
            top = np.take_along_axis(reference, found.argmax(1)[:, None], 1)[:, 0]
            ties = reference.max(1) - top <= LIMIT * np.abs(reference).max()
            if far > LIMIT or not ties.all():
                failed.append(name)
            cells = [os.path.basename(model), os.path.basename(name), f"{far:.1e}", f"{same} of {len(found)}"]
            cells.append("bit for bit" if np.array_equal(found, first) else f"{compare(found, first)[0]:.1e}")
            print("| " + " | ".join(cells) + " |")
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}")
    if failed:
        raise SystemExit(f"too far: {', '.join(failed)}")


if __name__ == "__main__":
    main()
