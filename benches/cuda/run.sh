#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds, holds every kernel against f64 on the device, and measures the products.
# Results are JSON lines on stdout and in $1 [default: cuda.jsonl]. Needs Rust and the driver; cuBLAS and compute-sanitizer
# are used where they are installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-cuda.jsonl}
step() { printf '== %s (%d s)\n' "$*" $SECONDS >&2; }

step "build"
build=(--release -p lacuna --no-default-features --features "cuda portable")
cargo build "${build[@]}" --example cuda_products
cargo run -q "${build[@]}" --example cuda_products -- --device >&2
tests=$(cargo test "${build[@]}" --lib --no-run --message-format json |
  sed -n 's/.*"kind":\["lib"\].*"executable":"\([^"]*\)".*/\1/p' | tail -1)

step "the battery, on the device"
(cd runtime && LACUNA_CUDA_BATTERY=device "$tests" cuda --include-ignored --test-threads 1) >&2

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "compute-sanitizer $tool"
    (cd runtime && LACUNA_CUDA_BATTERY=device timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$tests" every_kernel_runs --include-ignored --test-threads 1) >&2
  done
else
  step "compute-sanitizer is not installed: left out"
fi

step "products"
cargo run -q "${build[@]}" --example cuda_products | tee "$out"
step "done"
