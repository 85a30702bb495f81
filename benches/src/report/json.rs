//! The report for a program.

use crate::{Facts, Report, Resident, SCHEMA};
use lacuna_targets::Conditions;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// One flat object. What was not measured is absent.
pub(super) struct Flat(Map<String, Value>);

impl Flat {
    /// What every report begins with.
    pub fn new(model: &str, threads: usize, isa: &str, dense: bool) -> Flat {
        let mut flat = Flat(Map::new());
        flat.put("schema", SCHEMA);
        flat.put("version", env!("CARGO_PKG_VERSION"));
        flat.put("model", model);
        flat.put("threads", threads);
        flat.put("isa", isa);
        flat.put("dense", dense);
        flat
    }

    pub fn put(&mut self, key: &str, value: impl Serialize) {
        let value = json!(value);
        if !value.is_null() {
            self.0.insert(key.into(), value);
        }
    }

    /// Times and rates.
    pub fn figures<const N: usize>(&mut self, figures: [(&str, Option<f64>); N]) {
        for (key, value) in figures {
            self.put(key, value);
        }
    }

    /// What the process holds and what the model is made of.
    pub fn sizes(&mut self, resident: Option<Resident>, facts: &Facts, sparse_weights: usize) {
        self.put("peak_rss_bytes", resident.map(|m| m.peak));
        self.put("rss_anon_bytes", resident.map(|m| m.anonymous));
        self.put("sparsity", facts.sparsity());
        self.put("prunable_sparsity", facts.prunable_sparsity());
        self.put("parameters", facts.parameters);
        self.put("nonzeros", facts.nonzeros);
        self.put("sparse_weights", sparse_weights);
    }

    /// What the machine is and did meanwhile.
    pub fn conditions(&mut self, c: &Conditions) {
        let (before, after, doubts) = (&c.before, &c.after, c.doubts());
        self.put("machine", lacuna::plan::machine());
        self.put("governor", &after.governor);
        self.put("mhz", after.mhz);
        self.put("max_mhz", after.max_mhz);
        self.put("throttles", c.throttles());
        self.figures([
            ("celsius_before", before.celsius),
            ("celsius_after", after.celsius),
            ("load_before", before.load),
            ("load_after", after.load),
            ("others_cores", c.others_cores),
            ("stolen", c.stolen),
        ]);
        self.put("trusted", doubts.is_empty());
        let doubts = (!doubts.is_empty()).then(|| doubts.join("; "));
        self.put("doubts", doubts);
    }

    /// The object on one line.
    pub fn line(self) -> String {
        Value::Object(self.0).to_string()
    }
}

/// One flat object on one line: every figure of the whole model.
pub fn json(report: &Report) -> String {
    let (r, s) = (report, &report.steady);
    let mut flat = Flat::new(&r.model, r.threads, &r.isa, r.dense);
    flat.put("batch", r.batch);
    flat.figures([
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
    ]);
    flat.put("n", s.n);
    flat.put("outliers", s.outliers);
    flat.sizes(r.resident, &r.facts, r.sparse_weights);
    flat.put("arena_bytes", r.arena_bytes);
    flat.put("activation_bytes", r.activations.0);
    flat.put("activation_bound_bytes", r.activations.1);
    flat.put("packs_found", r.packs.as_ref().map(|p| p.found));
    flat.put("packs_kept", r.packs.as_ref().map(|p| p.kept));
    flat.put("packed_bytes", r.packed_bytes);
    flat.put("mapped_bytes", r.mapped_bytes);
    flat.put("file_bytes", r.file_bytes);
    flat.conditions(&r.conditions);
    flat.line()
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
        assert_eq!((number("celsius_after"), number("throttles")), (60.0, 2.0));
        assert_eq!(value["trusted"], false);
        let doubts = value["doubts"].as_str().unwrap();
        assert!(
            doubts.contains("2 times") && doubts.contains("40 to 60"),
            "{doubts}"
        );
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
