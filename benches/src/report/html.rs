//! The report as a page that needs nothing else.

use super::{bytes, count, percent, time};
use crate::{Layer, Report};
use std::fmt::Write;

const STYLE: &str = "\
:root{--sparse:#1f6f8b;--dense:#d9a566;--ink:#222;--paper:#fff;--line:#ddd}
@media(prefers-color-scheme:dark){:root{--sparse:#4fb3d1;--dense:#b8834a;--ink:#ddd;--paper:#181818;--line:#3a3a3a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin-bottom:0}h2{font-size:1.1rem;margin-top:2rem}
.big{font-size:2.2rem;font-weight:600;color:var(--sparse)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{opacity:.7}dd{margin:0}
.sparse{fill:var(--sparse)}.dense{fill:var(--dense)}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
.n{text-align:right}";

/// One self-contained page: the verdict, the figures, a bar for every layer beside its dense bar
/// (kernel and reason on hover), and the table. No script, nothing fetched.
pub fn html(report: &Report) -> String {
    let r = report;
    let model = escape(&r.model);
    let verdict = match r.speedup {
        Some(s) => format!("{s:.2}× as fast as dense"),
        None => format!("{} ms", time(r.steady.p50)),
    };
    let mut facts = vec![
        ("latency", {
            let s = &r.steady;
            format!(
                "median {} ms, min {}, mean {} ± {}, p90 {}, p95 {}, n = {}",
                time(s.p50),
                time(s.min),
                time(s.mean),
                time(s.sd),
                time(s.p90),
                time(s.p95),
                s.n
            )
        }),
        (
            "model",
            format!(
                "{}, {} parameters, {} not zero ({} sparse)",
                bytes(r.file_bytes),
                count(r.facts.parameters),
                count(r.facts.nonzeros),
                percent(r.facts.sparsity())
            ),
        ),
        (
            "run",
            format!("{} thread(s), {}", r.threads, escape(&r.isa)),
        ),
        (
            "start",
            format!(
                "load {} ms, encode {} ms, plan {} ms, first run {} ms",
                time(r.load_ms),
                time(r.encode_ms),
                time(r.plan_ms),
                time(r.first_ms)
            ),
        ),
    ];
    if let Some(d) = &r.dense_steady {
        let what = format!(
            "median {} ms, min {}, n = {}",
            time(d.p50),
            time(d.min),
            d.n
        );
        facts.insert(1, ("dense", what));
    }
    if let Some(m) = r.resident {
        let what = format!("peak {}, anonymous {}", bytes(m.peak), bytes(m.anonymous));
        facts.push(("memory", what));
    }
    facts.push(("machine", r.conditions.line()));
    let doubts = r.conditions.doubts();
    if !doubts.is_empty() {
        facts.push(("do not trust", escape(&doubts.join("; "))));
    }
    if let Some(l) = r.limits {
        let what = format!(
            "{:.0} GFLOP/s, {:.0} GB/s from memory, {} thread(s)",
            l.fma_gflops, l.dram_gbs, l.threads
        );
        facts.push(("limits", what));
    }
    let facts: String = facts
        .iter()
        .map(|(name, what)| format!("<dt>{name}</dt><dd>{what}</dd>"))
        .collect();
    let layers = match r.layers.is_empty() {
        true => String::new(),
        false => format!(
            "<h2>Layers<span class=\"key\" style=\"background:var(--sparse)\"></span>this plan\
             <span class=\"key\" style=\"background:var(--dense)\"></span>dense</h2>\n{}\n\
             <div class=\"scroll\">{}</div>\n",
            bars(&r.layers),
            table(&r.layers)
        ),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{model}</title>\n<style>{STYLE}</style></head><body>\n<h1>{model}</h1>\n\
         <div class=\"big\">{verdict}</div>\n<dl>{facts}</dl>\n{layers}</body></html>\n"
    )
}

/// Two bars a layer on one scale.
fn bars(layers: &[Layer]) -> String {
    const ROW: usize = 22;
    const LABEL: usize = 230;
    const WIDTH: f64 = 700.0;
    let longest = layers
        .iter()
        .flat_map(|l| [l.ms, l.dense_ms.unwrap_or(0.0)])
        .fold(0.0, f64::max);
    let mut out = format!("<svg viewBox=\"0 0 1000 {}\">", layers.len() * ROW);
    for (i, l) in layers.iter().enumerate() {
        let y = i * ROW;
        let width = |ms: f64| {
            if longest > 0.0 {
                ms / longest * WIDTH
            } else {
                0.0
            }
        };
        let hover = format!("{} {}\n{}\n{}", l.node, l.shape, l.kernel, l.reason);
        let _ = write!(
            out,
            "<g><title>{}</title><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"sparse\" x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"8\"/>",
            escape(&hover),
            LABEL - 8,
            y + 14,
            escape(&short(&l.node)),
            y + 2,
            width(l.ms)
        );
        if let Some(dense) = l.dense_ms {
            let _ = write!(
                out,
                "<rect class=\"dense\" x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"8\"/>",
                y + 11,
                width(dense)
            );
        }
        let end = LABEL as f64 + width(l.ms.max(l.dense_ms.unwrap_or(0.0))) + 6.0;
        let label = match l.speedup() {
            Some(s) => format!("{s:.1}×"),
            None => String::new(),
        };
        let _ = write!(
            out,
            "<text x=\"{end:.1}\" y=\"{}\">{label}</text></g>",
            y + 14
        );
    }
    out.push_str("</svg>");
    out
}

fn table(layers: &[Layer]) -> String {
    let mut out = String::from(
        "<table><tr><th>node<th>op<th>shape<th>kernel<th>weight<th class=n>ms<th class=n>share\
         <th class=n>GFLOP/s<th class=n>GB/s<th class=n>of limit<th class=n>dense ms<th>why</tr>\n",
    );
    for l in layers {
        let optional = |v: Option<String>| v.unwrap_or_default();
        let weight = match l.weight_bytes {
            0 => String::new(),
            _ => format!("{} {}", escape(&l.residency), percent(l.density)),
        };
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{weight}<td class=n>{}<td class=n>{}<td class=n>{}\
             <td class=n>{:.1}<td class=n>{}<td class=n>{}<td>{}</tr>",
            escape(&l.node),
            escape(&l.op),
            escape(&l.shape),
            escape(&l.kernel),
            time(l.ms),
            percent(l.share),
            optional((l.macs > 0).then(|| format!("{:.1}", l.gflops))),
            l.gbs,
            optional(l.of_limit.map(percent)),
            optional(l.dense_ms.map(time)),
            escape(&l.reason)
        );
    }
    out.push_str("</table>");
    out
}

/// The end of a long name.
fn short(name: &str) -> String {
    let skip = name.chars().count().saturating_sub(34);
    name.chars().skip(skip).collect()
}

/// Text that cannot become markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_names_cannot_become_markup() {
        let page = html(&sample());
        for outside in [
            "http:", "https:", "<script", "<link", "url(", "@import", " src=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("block <1>"));
        assert!(page.contains("block &lt;1&gt; &amp; &quot;co&quot;"));
        assert!(page.contains("2.00× as fast as dense"));
    }

    #[test]
    fn bars_are_on_one_scale() {
        let page = html(&sample());
        // The longest is the second layer run dense, 5 ms; its own bar is a fifth of that.
        assert_eq!(page.matches("width=\"700.0\"").count(), 1);
        assert!(
            page.contains("class=\"sparse\" x=\"230\" y=\"24\" width=\"140.0\""),
            "{page}"
        );
        assert_eq!(
            page.matches("class=\"dense\"").count(),
            2,
            "the pool has no dense time"
        );
    }

    #[test]
    fn a_report_without_layers_has_no_table() {
        let mut report = sample();
        report.layers.clear();
        assert!(!html(&report).contains("<table"));
    }
}
