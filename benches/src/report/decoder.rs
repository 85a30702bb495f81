//! The report of a language model.

use super::json::Flat;
use super::text::{doubts, held, line, parameters, table_of};
use super::{bytes, time};
use crate::{DecoderReport, Layer, SCHEMA, Summary};
use serde_json::json;
use std::fmt::Write;

/// The report as aligned text: one line a figure, then what the layers take, those that differ only
/// by their number together.
pub fn decoder_text(report: &DecoderReport) -> String {
    let r = report;
    let mut out = String::new();
    line(
        &mut out,
        "model",
        format!(
            "{}   {}   {}   {}",
            r.model,
            r.name,
            bytes(r.file_bytes),
            parameters(&r.facts),
        ),
    );
    let plural = if r.threads == 1 { "" } else { "s" };
    let dense = if r.dense { "   every weight dense" } else { "" };
    let after = match r.depth {
        0 => String::new(),
        n => format!("each after {n} tokens   "),
    };
    line(
        &mut out,
        "run",
        format!(
            "prompt {} tokens, then {} generated   {after}{} thread{plural}   {}{dense}",
            r.prompt, r.generate, r.threads, r.isa
        ),
    );
    line(
        &mut out,
        "start",
        format!(
            "load {} ms   encode {} ms   plan {} ms   first prompt {} ms",
            time(r.load_ms),
            time(r.encode_ms),
            time(r.plan_ms),
            time(r.first_ms),
        ),
    );
    line(
        &mut out,
        "memory",
        format!(
            "{}   (weights {} mapped, {} packed; activations {}; keys and values {})",
            held(r.resident),
            bytes(r.mapped_bytes as u64),
            bytes(r.packed_bytes as u64),
            bytes(r.arena_bytes as u64),
            bytes(r.cache_bytes as u64),
        ),
    );
    line(&mut out, "machine", r.conditions.line());
    let rate = |s: &Summary, tokens: usize| tokens as f64 / (s.p50 * 1e-3);
    let mut phase = |name: &str, s: &Summary, tokens: usize, more: String| {
        line(
            &mut out,
            name,
            format!(
                "{:.1} tokens/s   median {} ms   min {}   mean {} ± {}   (n = {}){more}",
                rate(s, tokens),
                time(s.p50),
                time(s.min),
                time(s.mean),
                time(s.sd),
                s.n,
            ),
        );
    };
    let reads = format!(
        "   {} of weights a token, {:.1} GB/s",
        bytes(r.token_bytes as u64),
        r.decode_gbs()
    );
    phase("prefill", &r.prefill, r.prompt, String::new());
    phase("decode", &r.decode, 1, reads);
    if let Some(b) = &r.beside {
        let faster = |x: f64| format!("   sparse {x:.2}x faster");
        phase("dense", &b.prefill, r.prompt, faster(b.prefill_speedup));
        phase("", &b.decode, 1, faster(b.decode_speedup));
    }
    for (title, layers) in ["decode, one token", "prefill, one chunk"]
        .iter()
        .zip(&r.layers)
    {
        if !layers.is_empty() {
            let _ = write!(out, "\n{title}\n{}", table_of(&together(layers), r.limits));
        }
    }
    doubts(&mut out, &r.conditions);
    out
}

/// Layers whose names differ only in numbers, and whose kernels are the same, become one line.
fn together(layers: &[Layer]) -> Vec<Layer> {
    let mut list: Vec<(Layer, usize)> = Vec::new();
    for layer in layers {
        let name = starred(&layer.node);
        let same = |l: &(Layer, usize)| {
            l.0.node == name && l.0.kernel == layer.kernel && l.0.shape == layer.shape
        };
        match list.iter_mut().find(|l| same(l)) {
            None => list.push((
                Layer {
                    node: name,
                    ..layer.clone()
                },
                1,
            )),
            Some((sum, n)) => {
                let add = |a: &mut Option<f64>, b: Option<f64>| *a = a.zip(b).map(|(a, b)| a + b);
                sum.ms += layer.ms;
                sum.share += layer.share;
                sum.macs += layer.macs;
                sum.dense_macs += layer.dense_macs;
                sum.weight_bytes += layer.weight_bytes;
                sum.activation_bytes += layer.activation_bytes;
                sum.density += layer.density;
                add(&mut sum.limit_ms, layer.limit_ms);
                add(&mut sum.dense_ms, layer.dense_ms);
                *n += 1;
            }
        }
    }
    let list = list.into_iter().map(|(mut layer, n)| {
        layer.density /= n as f64;
        if n > 1 {
            layer.node = format!("{} x{n}", layer.node);
        }
        let per_second = |units: f64| units / (layer.ms.max(1e-9) * 1e-3) * 1e-9;
        layer.gflops = per_second(2.0 * layer.macs as f64);
        layer.gbs = per_second((layer.weight_bytes + layer.activation_bytes) as f64);
        layer.of_limit = layer.limit_ms.map(|l| l / layer.ms.max(1e-9));
        layer
    });
    list.collect()
}

/// A name with every run of digits between dots replaced by a star.
fn starred(name: &str) -> String {
    let parts = name.split('.').map(|part| match part.parse::<usize>() {
        Ok(_) => "*",
        Err(_) => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

/// One flat object on one line.
pub fn decoder_json(report: &DecoderReport) -> String {
    let (r, b) = (report, report.beside.as_ref());
    let mut flat = Flat::new(&r.model, r.threads, &r.isa, r.dense);
    flat.put("name", &r.name);
    flat.put("prompt", r.prompt);
    flat.put("generate", r.generate);
    flat.put("depth", r.depth);
    flat.figures([
        ("prefill_tps", Some(r.prefill_tps())),
        ("decode_tps", Some(r.decode_tps())),
        ("prefill_ms", Some(r.prefill.p50)),
        ("prefill_min_ms", Some(r.prefill.min)),
        // A generated token is the run that an app waits for.
        ("median_ms", Some(r.decode.p50)),
        ("min_ms", Some(r.decode.min)),
        ("decode_gbs", Some(r.decode_gbs())),
        ("load_ms", Some(r.load_ms)),
        ("encode_ms", Some(r.encode_ms)),
        ("plan_ms", Some(r.plan_ms)),
        ("first_ms", Some(r.first_ms)),
        ("dense_prefill_ms", b.map(|b| b.prefill.p50)),
        ("dense_decode_ms", b.map(|b| b.decode.p50)),
        ("prefill_speedup", b.map(|b| b.prefill_speedup)),
        ("decode_speedup", b.map(|b| b.decode_speedup)),
    ]);
    flat.put("n", r.decode.n);
    flat.sizes(r.resident, &r.facts, r.sparse_weights);
    flat.put("arena_bytes", r.arena_bytes);
    flat.put("cache_bytes", r.cache_bytes);
    flat.put("packed_bytes", r.packed_bytes);
    flat.put("mapped_bytes", r.mapped_bytes);
    flat.put("token_bytes", r.token_bytes);
    flat.put("file_bytes", r.file_bytes);
    flat.conditions(&r.conditions);
    flat.line()
}

/// `{"schema": .., "limits": .., "decode": [..], "prefill": [..]}` on one line.
pub fn decoder_layers_json(report: &DecoderReport) -> String {
    let [decode, prefill] = &report.layers;
    json!({"schema": SCHEMA, "limits": report.limits, "decode": decode, "prefill": prefill})
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_model_share_a_line() {
        let layer = |node: &str, ms: f64| Layer {
            node: node.into(),
            kernel: "k".into(),
            ms,
            dense_ms: Some(2.0 * ms),
            density: 0.5,
            ..Layer::default()
        };
        let layers = [
            layer("model.layers.0.mlp.up_proj", 1.0),
            layer("lm_head", 4.0),
            layer("model.layers.1.mlp.up_proj", 2.0),
        ];
        let lines = together(&layers);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].node, "model.layers.*.mlp.up_proj x2");
        assert_eq!((lines[0].ms, lines[0].dense_ms), (3.0, Some(6.0)));
        assert_eq!((lines[0].density, &*lines[1].node), (0.5, "lm_head"));
    }
}
