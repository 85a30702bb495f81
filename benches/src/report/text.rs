//! The report for a person at a terminal.

use super::{bytes, count, dims, percent, time};
use crate::{Facts, Layer, Report, Resident, Summary};
use lacuna_targets::{Conditions, Limits};
use std::fmt::Write;

/// Longer names keep their end.
const LONGEST_NAME: usize = 32;

/// The report as aligned text: the model, one line a figure, the layers in the order of the
/// network, the verdict last.
pub fn text(report: &Report) -> String {
    let r = report;
    let mut out = String::new();
    let shapes = |list: &[(String, Vec<usize>)]| {
        let parts: Vec<String> = list
            .iter()
            .map(|(name, shape)| format!("{name} {}", dims(shape)))
            .collect();
        parts.join(", ")
    };
    line(
        &mut out,
        "model",
        format!(
            "{}   {}   {}",
            r.model,
            bytes(r.file_bytes),
            parameters(&r.facts),
        ),
    );
    let (inputs, outputs) = (shapes(&r.inputs), shapes(&r.outputs));
    let plural = if r.threads == 1 { "" } else { "s" };
    let dense = if r.dense { "   every weight dense" } else { "" };
    line(
        &mut out,
        "run",
        format!(
            "{inputs} -> {outputs}   {} thread{plural}   {}{dense}",
            r.threads, r.isa
        ),
    );
    line(
        &mut out,
        "start",
        format!(
            "load {} ms   encode {} ms   plan {} ms, of which pack {} ms   first run {} ms",
            time(r.load_ms),
            time(r.encode_ms),
            time(r.plan_ms),
            time(r.pack_ms),
            time(r.first_ms),
        ),
    );
    line(
        &mut out,
        "memory",
        format!(
            "{}   (weights {} mapped, {} packed; activations {}, of which scratch {})",
            held(r.resident),
            bytes(r.mapped_bytes as u64),
            bytes(r.packed_bytes as u64),
            bytes(r.arena_bytes as u64),
            bytes(r.arena_bytes.saturating_sub(r.activations.0) as u64),
        ),
    );
    if let Some(packs) = &r.packs {
        line(&mut out, "packs", packs.to_string());
    }
    line(&mut out, "machine", r.conditions.line());
    line(&mut out, "latency", summary(&r.steady));
    if let Some(dense) = &r.dense_steady {
        line(&mut out, "dense", summary(dense));
    }
    if !r.layers.is_empty() {
        out.push('\n');
        out.push_str(&table_of(&r.layers, r.limits));
    }
    for (name, s) in [("", Some(&r.steady)), ("dense: ", r.dense_steady.as_ref())] {
        if let Some(s) = s.filter(|s| s.noisy()) {
            let _ = writeln!(
                out,
                "\nnote      {name}a noisy machine: standard deviation {} of the mean, outliers {} of \
                 {}; the minimum is the better guide",
                percent(s.sd / s.mean),
                s.outliers,
                s.n,
            );
        }
    }
    doubts(&mut out, &r.conditions);
    match (r.speedup, &r.dense_steady) {
        (Some(speedup), Some(dense)) => {
            let minima = dense.min / r.steady.min;
            let _ = writeln!(
                out,
                "\nsparse vs dense: {speedup:.2}x   (minima {minima:.2}x)"
            );
        }
        _ if r.sparse_weights == 0 && !r.dense => {
            let _ = writeln!(out, "\nno weight has zeros enough to be stored sparse");
        }
        _ => {}
    }
    out
}

fn summary(s: &Summary) -> String {
    let p99 = s
        .p99
        .map_or(String::new(), |p| format!("   p99 {}", time(p)));
    format!(
        "median {} ms   min {}   mean {} ± {}   p90 {}   p95 {}{p99}   (n = {})",
        time(s.p50),
        time(s.min),
        time(s.mean),
        time(s.sd),
        time(s.p90),
        time(s.p95),
        s.n,
    )
}

/// How many parameters a model has, and how many are zero.
pub(super) fn parameters(facts: &Facts) -> String {
    format!(
        "{} parameters, {} not zero ({} sparse, {} of the prunable)",
        count(facts.parameters),
        count(facts.nonzeros),
        percent(facts.sparsity()),
        percent(facts.prunable_sparsity()),
    )
}

/// What the process holds.
pub(super) fn held(resident: Option<Resident>) -> String {
    resident.map_or("not told here".into(), |m| {
        format!("peak {}   anonymous {}", bytes(m.peak), bytes(m.anonymous))
    })
}

/// Why figures may not be those of this machine.
pub(super) fn doubts(out: &mut String, conditions: &Conditions) {
    let doubts = conditions.doubts();
    if !doubts.is_empty() {
        let _ = writeln!(
            out,
            "\nnote      do not trust these figures: {}",
            doubts.join("; ")
        );
    }
}

/// A figure and its name.
pub(super) fn line(out: &mut String, name: &str, what: String) {
    let _ = writeln!(out, "{name:<9} {what}");
}

/// The layers, aligned; columns that say nothing for any layer are left out.
pub(super) fn table_of(layers: &[Layer], limits: Option<Limits>) -> String {
    let optional = |value: Option<String>| value.unwrap_or_default();
    let row = |l: &Layer| -> Vec<String> {
        let weight = match l.weight_bytes {
            0 => String::new(),
            _ => format!("{} {}", l.residency, percent(l.density)),
        };
        let products = l.macs > 0;
        vec![
            tail(&l.node),
            l.op.clone(),
            l.shape.clone(),
            l.kernel.clone(),
            weight,
            time(l.ms),
            percent(l.share),
            optional(products.then(|| format!("{:.1}", l.gflops))),
            format!("{:.1}", l.gbs),
            optional(l.of_limit.map(percent)),
            optional(l.dense_ms.map(time)),
            optional(l.speedup().map(|s| format!("{s:.2}x"))),
            l.reason.clone(),
        ]
    };
    let head = [
        "node", "op", "shape", "kernel", "weight", "ms", "share", "GFLOP/s", "GB/s", "of limit",
        "dense ms", "faster", "why",
    ];
    let left = |column: usize| column < 5 || column == 12;
    let mut rows: Vec<Vec<String>> = layers.iter().map(row).collect();
    let total: f64 = layers.iter().map(|l| l.ms).sum();
    let mut sum = vec![String::new(); head.len()];
    sum[0] = "sum of medians".into();
    sum[5] = time(total);
    let dense: Option<f64> = layers.iter().map(|l| l.dense_ms).sum();
    if let Some(dense) = dense {
        sum[10] = time(dense);
        sum[11] = format!("{:.2}x", dense / total);
    }
    rows.push(sum);
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let widest = rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
            match widest {
                0 => 0,
                w => w.max(name.len()),
            }
        })
        .collect();
    let mut out = String::new();
    let mut write = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (i, cell) in cells.enumerate() {
            let width = widths[i];
            match (width, left(i)) {
                (0, _) => {}
                (_, true) => line.push_str(&format!("{cell:<width$}  ")),
                (_, false) => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    write(&mut head.into_iter());
    for row in &rows {
        write(&mut row.iter().map(String::as_str));
    }
    if let Some(l) = limits {
        let level = |name: &str, rate: Option<f64>| {
            rate.map_or(String::new(), |r| format!(" {name} {r:.0}"))
        };
        let _ = writeln!(
            out,
            "limits of this machine, {} thread(s): {:.0} GFLOP/s; reads, GB/s:{}{}{}{}",
            l.threads,
            l.fma_gflops,
            level("L1", l.l1_gbs),
            level("L2", l.l2_gbs),
            level("L3", l.l3_gbs),
            level("memory", Some(l.dram_gbs)),
        );
    }
    out
}

/// A name, its beginning cut when it is long.
pub(super) fn tail(name: &str) -> String {
    let length = name.chars().count();
    match length > LONGEST_NAME {
        false => name.to_owned(),
        true => {
            let end: String = name.chars().skip(length - LONGEST_NAME + 1).collect();
            format!("…{end}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn columns_line_up_and_the_verdict_is_last() {
        let text = text(&sample());
        let head = text.lines().find(|l| l.starts_with("node")).unwrap();
        let stem = text.lines().find(|l| l.starts_with("stem")).unwrap();
        for (column, cell) in [("kernel", "f32_conv_sparse"), ("why", "density 0.10")] {
            assert_eq!(head.find(column), stem.find(cell), "{column}\n{text}");
        }
        let end = |line: &str, cell: &str| line.find(cell).unwrap() + cell.len();
        assert_eq!(end(head, " ms"), end(stem, "2.000"), "{text}");
        assert_eq!(
            text.lines().last(),
            Some("sparse vs dense: 2.00x   (minima 2.00x)")
        );
        assert!(!text.contains("noisy"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let mut report = sample();
        report.dense_steady = None;
        report.speedup = None;
        report.limits = None;
        report.resident = None;
        for layer in &mut report.layers {
            layer.dense_ms = None;
            layer.of_limit = None;
        }
        let shown = text(&report);
        for absent in ["dense", "faster", "of limit", "limits of", "peak"] {
            let line = shown
                .lines()
                .find(|l| l.contains(absent) && !l.contains("density"));
            assert_eq!(line, None, "{shown}");
        }
        report.layers.clear();
        assert!(!text(&report).contains("node"));
    }

    #[test]
    fn noise_is_noted() {
        let mut report = sample();
        report.steady = Summary::of(&[1.0, 1.01, 1.02, 1.01, 9.0]).unwrap();
        let text = text(&report);
        assert!(text.contains("outliers 1 of 5;"), "{text}");
        let warm =
            "do not trust these figures: cores were throttled 2 times meanwhile; the temperature";
        assert!(
            text.contains(warm) && text.contains("40 to 60 °C"),
            "{text}"
        );
    }

    #[test]
    fn long_names_keep_their_end() {
        let name = format!("/features/{}/conv/Conv", "x".repeat(40));
        let short = tail(&name);
        assert_eq!(short.chars().count(), LONGEST_NAME);
        assert!(short.starts_with('…') && short.ends_with("/conv/Conv"));
    }
}
