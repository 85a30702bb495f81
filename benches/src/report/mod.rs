//! A [`Report`](crate::Report) as text, JSON, CSV, or a page.

mod audit;
mod csv;
mod decoder;
mod html;
mod json;
mod text;

pub use audit::{audit_json, audit_text};
pub use csv::csv;
pub use decoder::{decoder_json, decoder_layers_json, decoder_text};
pub use html::html;
pub use json::{json, layers_json};
pub use text::text;

/// A time in milliseconds with three digits or so: `0.0123`, `1.23`, `123`.
fn time(ms: f64) -> String {
    match ms.abs() {
        m if m >= 100.0 => format!("{ms:.1}"),
        m if m >= 10.0 => format!("{ms:.2}"),
        m if m >= 0.1 => format!("{ms:.3}"),
        _ => format!("{ms:.4}"),
    }
}

/// Bytes in the unit that reads best, powers of 1000.
fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB"])
}

/// A count in the unit that reads best.
fn count(n: usize) -> String {
    scaled(n as f64, &["", "k", "M", "G"]).trim_end().to_owned()
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value:.0} {}", units[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

/// A share in percent: `12 %`, `0.3 %`.
fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p >= 9.95 || p == 0.0 => format!("{p:.0} %"),
        p => format!("{p:.1} %"),
    }
}

/// `1x3x224x224`.
fn dims(shape: &[usize]) -> String {
    let parts: Vec<String> = shape.iter().map(usize::to_string).collect();
    parts.join("x")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Facts, Layer, Report, Resident, Summary, place_under_limits};
    use lacuna_targets::{Conditions, Limits, Profile, State};

    /// A report of three layers, made up.
    pub(crate) fn sample() -> Report {
        let mut profile = Profile::detect();
        profile.limits = vec![Limits {
            threads: 1,
            fma_gflops: 100.0,
            l1_gbs: Some(200.0),
            l2_gbs: Some(100.0),
            l3_gbs: Some(50.0),
            dram_gbs: 20.0,
        }];
        let layer = |node: &str, op: &str, ms, dense_ms, macs| Layer {
            node: node.into(),
            op: op.into(),
            shape: "64x64x1x1 @ 56x56".into(),
            kernel: "f32_conv_sparse_4x16_avx512".into(),
            reason: "density 0.10 < 0.30, 4 times fewer products".into(),
            residency: "packed".into(),
            density: 0.1,
            weight_bytes: 4000,
            activation_bytes: 100_000,
            macs,
            dense_macs: macs * 10,
            ms,
            dense_ms,
            ..Layer::default()
        };
        let mut layers = vec![
            layer("stem", "Conv", 2.0, Some(2.0), 5_000_000),
            layer("block <1> & \"co\"", "Conv", 1.0, Some(5.0), 1_000_000),
            layer("pool", "MaxPool", 1.0, None, 0),
        ];
        layers[0].fused = vec!["stem_relu".into()];
        crate::share_out(&mut layers);
        place_under_limits(&mut layers, &profile, 1);
        Report {
            model: "nets/sample.onnx".into(),
            file_bytes: 1_234_567,
            facts: Facts {
                parameters: 300_000,
                nonzeros: 60_000,
                prunable: 290_000,
                prunable_nonzeros: 50_000,
            },
            sparse_weights: 2,
            inputs: vec![("x".into(), vec![1, 3, 224, 224])],
            outputs: vec![("y".into(), vec![1, 1000])],
            batch: 1,
            threads: 1,
            isa: "avx512".into(),
            dense: false,
            load_ms: 12.0,
            encode_ms: 3.0,
            plan_ms: 8.0,
            pack_ms: 6.0,
            packs: None,
            first_ms: 5.0,
            steady: Summary::of(&[4.0, 4.1, 3.9]).unwrap(),
            resident: Some(Resident {
                peak: 90_000_000,
                anonymous: 40_000_000,
                mapped: 0,
            }),
            arena_bytes: 5_000_000,
            activations: (4_000_000, 4_000_000),
            packed_bytes: 700_000,
            mapped_bytes: 0,
            dense_steady: Summary::of(&[8.0, 8.2, 7.8]),
            speedup: Some(2.0),
            conditions: {
                let at = |celsius, throttles| {
                    let mut state = State::default();
                    (state.celsius, state.throttles) = (Some(celsius), Some(throttles));
                    state
                };
                Conditions {
                    before: at(40.0, 5),
                    after: at(60.0, 7),
                    threads: 1,
                    ..Conditions::default()
                }
            },
            limits: profile.limits_for(1),
            layers,
        }
    }

    #[test]
    fn units_read_well() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000)],
            ["0 B", "999 B", "1.0 kB"]
        );
        assert_eq!([bytes(97_600_000), bytes(999_600)], ["97.6 MB", "1.0 MB"]);
        assert_eq!([count(12), count(25_557_032)], ["12", "25.6 M"]);
        assert_eq!(
            [time(0.01234), time(1.5), time(76.543)],
            ["0.0123", "1.500", "76.54"]
        );
        assert_eq!(
            [percent(0.0), percent(0.004), percent(0.5)],
            ["0 %", "0.4 %", "50 %"]
        );
    }
}
