//! A Llama in the shape of 8B, with random weights, on the first GPU: tokens a second dense, at 50 and at 70 %. One JSON report a line.
//!
//! `cargo run --release -p lacuna-bench --example cuda_llama`

use lacuna_bench::networks::{Llama, llama};
use lacuna_bench::{CudaConfig, cuda_model};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before gigabytes are drawn.
    if let Err(e) = lacuna::cuda::Device::open(0) {
        eprintln!("{e}");
        return ExitCode::FAILURE;
    }
    for sparsity in [0.0, 0.5, 0.7] {
        let config = CudaConfig {
            path: format!("llama-8b, {:.0} % sparse", 100.0 * sparsity).into(),
            prompt: 128,
            depth: 64,
            warmup: 3,
            ..CudaConfig::default()
        };
        let measured = llama(&Llama::B8, 1.0 - sparsity)
            .map_err(Into::into)
            .and_then(|model| cuda_model(&model, &config, |_| {}));
        match measured {
            Ok(report) => println!("{}", serde_json::to_string(&report).expect("JSON")),
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
