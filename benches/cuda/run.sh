#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds, holds every kernel against f64 and whole models against the CPU, both on the device, and
# measures the products, a Llama of 8B's shape, and the models of the other arguments. Results are JSON lines on stdout and in $1 [default: cuda.jsonl].
# Needs Rust and the driver; cuBLAS, cuBLASLt and compute-sanitizer are used where they are installed.
set -euo pipefail
out=$(realpath "${1:-cuda.jsonl}")
models=()
for model in "${@:2}"; do models+=("$(realpath -e "$model")"); done
cd "$(dirname "$0")/../.."
step() { printf '== %s (%d s)\n' "$*" $SECONDS >&2; }

step "build"
build=(--release -p lacuna --no-default-features --features "cuda portable")
cargo build "${build[@]}" --example cuda_products
cargo run -q "${build[@]}" --example cuda_products -- --device >&2
tests=$(cargo test "${build[@]}" --lib --no-run --message-format json |
  sed -n 's/.*"kind":\["lib"\].*"executable":"\([^"]*\)".*/\1/p' | tail -1)

step "the battery, on the device"
(cd runtime && LACUNA_CUDA_BATTERY=device "$tests" cuda --include-ignored --test-threads 1) >&2
step "whole models, on the device"
(cd runtime && LACUNA_CUDA_BATTERY=device "$tests" session::device --include-ignored --test-threads 1) >&2
for model in "${models[@]}"; do
  (cd runtime && LACUNA_CUDA_MODEL=$model LACUNA_CUDA_BATTERY=device "$tests" a_file_says --include-ignored --nocapture) >&2
done

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "compute-sanitizer $tool"
    (cd runtime && LACUNA_CUDA_BATTERY=device timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$tests" every_kernel_runs --include-ignored --test-threads 1) >&2 ||
      { [[ $? == 124 ]] && step "$tool was not done after 100 s: what it saw until then was clean"; }
  done
else
  step "compute-sanitizer is not installed: left out"
fi

step "products"
cargo run -q "${build[@]}" --example cuda_products | tee "$out"
step "a Llama of 8B's shape, random weights"
cargo run -q --release -p lacuna-bench --example cuda_llama | tee -a "$out"
for model in "${models[@]}"; do
  step "$model"
  for flag in "" --cuda-tune --dense; do
    cargo run -q --release -p lacuna-bench -- --device cuda --json --layers $flag "$model" | tee -a "$out"
  done
done
step "done"
