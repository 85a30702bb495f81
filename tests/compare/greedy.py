#!/usr/bin/env python3
"""Greedy texts with kept keys and values, in chunks of 1, 7 and 64, and without: the same tokens.

  greedy.py PRUNE RUN_DECODER MODEL.safetensors PROMPT [TOKENS]

Without a cache means: prompt and text go through the model in one run, and each token must be the argmax of the logits
before it.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

prune, run_decoder, model, prompt = sys.argv[1:5]
count = sys.argv[5] if len(sys.argv) > 5 else "64"


def generate(chunk):
    command = [prune, "generate", model, "-p", prompt, "-n", count, "--chunk", str(chunk), "--ignore-eos", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


texts = {chunk: generate(chunk) for chunk in (1, 7, 64)}
tokens = texts[1]["tokens"]
same = all(t["tokens"] == tokens for t in texts.values())
with tempfile.TemporaryDirectory() as folder:
    ids, out = pathlib.Path(folder, "ids.safetensors"), pathlib.Path(folder, "out.safetensors")
    prompt_ids = texts[1]["prompt_ids"]
    whole = np.array([prompt_ids + tokens[:-1]], dtype=np.int64)
    save_file({"input_ids": whole}, ids)
    subprocess.run([run_decoder, model, ids, out, "--chunk", str(whole.shape[1])], check=True)
    logits = load_file(out)["logits"][0, len(prompt_ids) - 1:]
best = logits.argmax(-1).tolist()
print(f"{model}: {len(tokens)} tokens; chunks of 1, 7 and 64: {'the same' if same else 'DIFFERENT'}; "
      f"without a cache: {sum(a == b for a, b in zip(best, tokens))} of {len(tokens)} the same")
sys.exit(not (same and best == tokens))
