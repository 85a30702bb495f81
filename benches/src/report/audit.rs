//! The report of an audit.

use super::text::{doubts, line, tail};
use super::time;
use crate::{Audit, AuditLayer, SCHEMA, TOLERANCE, Verdict};
use serde_json::json;
use std::fmt::Write;

/// The audit as aligned text: a line for each layer with the time of each form, then whole runs and the
/// verdict.
pub fn audit_text(audit: &Audit) -> String {
    let mut out = String::new();
    let plural = if audit.threads == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "audit     {}   {} thread{plural}   {}   {}",
        audit.model, audit.threads, audit.isa, audit.machine
    );
    let mut phases: Vec<&str> = audit.layers.iter().map(|l| l.phase).collect();
    phases.dedup();
    for phase in phases {
        let layers = audit.layers.iter().filter(|l| l.phase == phase);
        let _ = write!(out, "\n{phase}\n{}", table(&layers.collect::<Vec<_>>()));
    }
    out.push('\n');
    line(&mut out, "machine", audit.conditions.line());
    doubts(&mut out, &audit.conditions);
    for c in &audit.whole {
        let _ = writeln!(
            out,
            "whole {:<8} chosen {} ms   dense {} ms   {:.2}x",
            c.phase,
            time(c.chosen_ms),
            time(c.dense_ms),
            c.speedup
        );
    }
    let behind: Vec<&str> = audit.behind().map(|l| l.node.as_str()).collect();
    let slower: Vec<&str> = audit.slower_than_dense().map(|c| c.phase).collect();
    let percent = 100.0 * TOLERANCE;
    let _ = match (behind.is_empty(), slower.is_empty()) {
        (true, true) => writeln!(
            out,
            "every choice is within {percent:.0} % of the best form, and no phase behind dense"
        ),
        _ => writeln!(
            out,
            "behind by more than {percent:.0} %, measured twice: {} of {} layers ({}){}",
            behind.len(),
            audit.layers.len(),
            behind.join(", "),
            match slower.is_empty() {
                true => String::new(),
                false => format!("; slower than dense: {}", slower.join(", ")),
            }
        ),
    };
    out
}

/// Columns: the layer, the choice and its time, then every other form with its time, fastest first.
fn table(layers: &[&AuditLayer]) -> String {
    let head = [
        "node",
        "shape",
        "density",
        "chosen",
        "ms",
        "best",
        "behind",
        "again",
        "",
        "other forms",
    ];
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let mut rows: Vec<Vec<String>> = vec![head.map(String::from).to_vec()];
    for l in layers {
        let mut others: Vec<_> = l.forms.iter().skip(1).collect();
        others.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let others = others.iter().map(|f| {
            let copy = if f.copy { " (copy)" } else { "" };
            format!("{} {}{copy}", f.form, time(f.ms))
        });
        rows.push(vec![
            tail(&l.node),
            l.shape.clone(),
            format!("{:.2}", l.density),
            l.chosen.clone(),
            time(l.forms.first().map_or(f64::NAN, |f| f.ms)),
            l.best.clone(),
            percent(l.behind),
            l.behind_again.map_or(String::new(), percent),
            match l.verdict {
                Verdict::Behind => "BEHIND".into(),
                Verdict::Holds => String::new(),
            },
            others.collect::<Vec<_>>().join(", "),
        ]);
    }
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let width = widths[i];
            match (width, i) {
                (0, _) => {}
                (_, 2 | 4 | 6 | 7) => line.push_str(&format!("{cell:>width$}  ")),
                _ => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// One object on one line.
pub fn audit_json(audit: &Audit) -> String {
    json!({"schema": SCHEMA, "holds": audit.holds(), "tolerance": TOLERANCE, "audit": audit})
        .to_string()
}
