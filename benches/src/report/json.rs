//! The report for a program.

use crate::{Report, SCHEMA};
use serde_json::{Map, Value, json};

/// One flat object on one line: every figure of the whole model. What was not measured is absent.
pub fn json(report: &Report) -> String {
    let r = report;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            object.insert(key.into(), value);
        }
    };
    put("schema", json!(SCHEMA));
    put("version", json!(env!("CARGO_PKG_VERSION")));
    put("model", json!(r.model));
    put("batch", json!(r.batch));
    put("threads", json!(r.threads));
    put("isa", json!(r.isa));
    put("dense", json!(r.dense));
    let s = &r.steady;
    for (key, value) in [
        ("median_ms", Some(s.p50)),
        ("min_ms", Some(s.min)),
        ("mean_ms", Some(s.mean)),
        ("sd_ms", Some(s.sd)),
        ("p50_ms", Some(s.p50)),
        ("p90_ms", Some(s.p90)),
        ("p95_ms", Some(s.p95)),
        ("p99_ms", s.p99),
        ("load_ms", Some(r.load_ms)),
        ("encode_ms", Some(r.encode_ms)),
        ("plan_ms", Some(r.plan_ms)),
        ("pack_ms", Some(r.pack_ms)),
        ("first_ms", Some(r.first_ms)),
        ("dense_median_ms", r.dense_steady.map(|d| d.p50)),
        ("dense_min_ms", r.dense_steady.map(|d| d.min)),
        ("speedup", r.speedup),
        ("sparsity", Some(r.facts.sparsity())),
        ("prunable_sparsity", Some(r.facts.prunable_sparsity())),
    ] {
        put(key, json!(value));
    }
    put("n", json!(s.n));
    put("outliers", json!(s.outliers));
    put("peak_rss_bytes", json!(r.resident.map(|m| m.peak)));
    put("rss_anon_bytes", json!(r.resident.map(|m| m.anonymous)));
    put("arena_bytes", json!(r.arena_bytes));
    put("packed_bytes", json!(r.packed_bytes));
    put("mapped_bytes", json!(r.mapped_bytes));
    put("file_bytes", json!(r.file_bytes));
    put("parameters", json!(r.facts.parameters));
    put("nonzeros", json!(r.facts.nonzeros));
    Value::Object(object).to_string()
}

/// `{"schema": .., "limits": .., "layers": [..]}` on one line: every layer with the limits that
/// it was held against.
pub fn layers_json(report: &Report) -> String {
    json!({"schema": SCHEMA, "limits": report.limits, "layers": report.layers}).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_object_is_flat_and_on_one_line() {
        let text = json(&sample());
        assert_eq!(text.lines().count(), 1);
        let value: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert!(value.values().all(|v| !v.is_object() && !v.is_array()));
        let number = |key: &str| value[key].as_f64().unwrap();
        assert_eq!((number("median_ms"), number("min_ms")), (4.0, 3.9));
        assert_eq!(number("dense_median_ms"), 8.0);
        assert_eq!(number("n"), 3.0);
        assert_eq!(number("peak_rss_bytes"), 90e6);
        assert!((number("sparsity") - 0.8).abs() < 1e-12);
        assert!(!value.contains_key("p99_ms"), "three runs have no p99");
    }

    #[test]
    fn layers_carry_what_the_table_shows() {
        let value: Value = serde_json::from_str(&layers_json(&sample())).unwrap();
        assert_eq!(value["limits"]["fma_gflops"], 100.0);
        let layers = value["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 3);
        assert_eq!(layers[0]["fused"], json!(["stem_relu"]));
        assert_eq!(layers[1]["dense_ms"], 5.0);
        assert_eq!(layers[2]["dense_ms"], Value::Null);
    }
}
