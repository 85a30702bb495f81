#!/usr/bin/env bash
# SmolLM2-135M by magnitude: perplexity on a held-out novel, and a text, at 0, 30 and 50 %.
#
#   smollm.sh SmolLM2-135M-Instruct.Q4_1.gguf persuasion.txt WORKDIR
#
# "Dense" is the shipped model, dequantised once. 32 windows of 512 tokens from the start of the text: 16,384 tokens.
set -euo pipefail
gguf=$1 text=$2 work=$3
prune=${PRUNE:-target/release/prune}
mkdir -p "$work"
say() { printf '%-10s %-5s %-5s  %s\n' "$@"; }
say method prune dtype perplexity
row() { # file, method, sparsity, dtype
  local json
  json=$("$prune" eval "$1" --text "$text" --window 512 --windows 32 --threads "${THREADS:-1}" --json)
  say "$2" "$3" "$4" "$(python3 -c 'import json,sys; r = json.loads(sys.argv[1]); print("%.2f  nll %.4f ± %.4f, %d of %d tokens predicted, %d windows of %d, stride %d" % (r["perplexity"], r["nll"], r["nll_se"], r["predicted"], r["windows"] * r["window"], r["windows"], r["window"], r["stride"]))' "$json")"
}
for dtype in f32 bf16; do
  dense=$work/dense-$dtype.safetensors
  [[ -e $dense ]] || "$prune" convert "$gguf" --dtype "$dtype" -o "$dense" >/dev/null
  row "$dense" dense 0 "$dtype"
  for method in global-mp magnitude; do
    for sparsity in 0.3 0.5; do
      file=$work/$method-$sparsity-$dtype.safetensors
      [[ -e $file ]] || "$prune" "$method" "$gguf" --sparsity "$sparsity" --dtype "$dtype" -o "$file" >/dev/null
      row "$file" "$method" "$sparsity" "$dtype"
    done
  done
done
for file in dense-bf16 global-mp-0.3-bf16 global-mp-0.5-bf16 magnitude-0.3-bf16 magnitude-0.5-bf16; do
  printf '\n%s\n' "$file"
  "$prune" generate "$work/$file.safetensors" --prompt "Once upon a time, there was a little" --max-tokens 80 --threads 1 2>/dev/null
done
