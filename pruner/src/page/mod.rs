//! One HTML page about a pruned model: nothing is fetched, no script runs.

mod channels;
mod chart;
mod sidecar;

use chart::{Colour, Row, Series, bars, lines};
use indicatif::{DecimalBytes, HumanCount};
use sidecar::{Epoch, Evaluation, Latency, Layer, Sidecar, State, Timed};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The texts that a page is made of; only the sidecar has to be there.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The report that `prune` leaves beside its output.
    pub sidecar: String,
    /// The metrics of a training run, JSON lines; without them those of the sidecar.
    pub metrics: Option<String>,
    /// What `lacuna-bench MODEL --layers --json` prints.
    pub latency: Option<String>,
    /// The same of the model before pruning, where layers became smaller.
    pub latency_before: Option<String>,
    /// What `prune eval --json` prints of the model before pruning.
    pub eval_before: Option<String>,
    /// And after.
    pub eval_after: Option<String>,
}

/// A text that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which of [`Sources`]: "sidecar", "metrics", "latency", "latency before", "eval before", "eval after".
    pub source: &'static str,
    /// What is wrong.
    pub what: String,
}

/// The page.
pub fn html(sources: &Sources) -> Result<String, Unreadable> {
    fn read<T>(
        text: Option<&String>,
        source: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Unreadable> {
        let read = text.map(|t| parse(t).map_err(|what| Unreadable { source, what }));
        read.transpose()
    }
    let sidecar = Sidecar::parse(&sources.sidecar).map_err(|what| Unreadable {
        source: "sidecar",
        what,
    })?;
    let epochs = read(sources.metrics.as_ref(), "metrics", Epoch::parse)?;
    let latency = read(sources.latency.as_ref(), "latency", Latency::parse)?;
    let before = read(
        sources.latency_before.as_ref(),
        "latency before",
        Latency::parse,
    )?;
    let page = Page {
        floored: (sidecar.plan.iter())
            .flat_map(|p| &p.layers)
            .filter(|l| l.floored)
            .map(|l| l.weight.clone())
            .collect(),
        epochs: epochs.unwrap_or_else(|| sidecar.epochs.clone()),
        latency: match before {
            Some(before) => latency.map(|l| l.against(&before)),
            None => latency,
        },
        eval_before: read(
            sources.eval_before.as_ref(),
            "eval before",
            Evaluation::parse,
        )?,
        eval_after: read(sources.eval_after.as_ref(), "eval after", Evaluation::parse)?,
        sidecar,
    };
    Ok(page.html())
}

struct Page {
    sidecar: Sidecar,
    floored: BTreeSet<String>,
    epochs: Vec<Epoch>,
    latency: Option<Latency>,
    eval_before: Option<Evaluation>,
    eval_after: Option<Evaluation>,
}

impl Page {
    fn html(&self) -> String {
        let s = &self.sidecar;
        let name = s.output.as_ref().unwrap_or(&s.input);
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{0}: pruned</title>\n\
             <style>\n{1}</style>\n</head>\n<body>\n<header>\n<h1>{0}</h1>\n<p>{2}, from {3}</p>\n</header>\n<main>\n",
            escape(name),
            include_str!("style.css"),
            match &s.plan {
                Some(plan) => format!("{} at {}", escape(&plan.allocator), percent(plan.target)),
                None => escape(&s.kind),
            },
            escape(&s.input),
        );
        out += &self.cards();
        out += &self.warnings();
        out += &self.groups();
        out += &self.rounds();
        out += &self.density();
        out += &self.over_epochs();
        out += &self.latency();
        out += &self.table();
        out += &self.recipe();
        out += "</main>\n</body>\n</html>\n";
        out
    }

    fn cards(&self) -> String {
        let (b, a) = (&self.sidecar.before, &self.sidecar.after);
        let left = |s: &State| (s.parameters - s.parameter_zeros) as u64;
        let mut cards = Vec::new();
        if self.sidecar.plan.is_some() {
            cards.push((
                "zeros in the prunable layers",
                percent(a.sparsity),
                format!(
                    "{} before; {} of all weights",
                    percent(b.sparsity),
                    percent(a.sparsity_of_all)
                ),
            ));
        }
        cards.extend([
            (
                "weights left",
                percent(ratio(left(a), left(b))),
                format!("{} of {}", count(left(a)), count(left(b))),
            ),
            change("multiply-accumulates", b.sparse_macs, a.sparse_macs, count),
        ]);
        match (b.file_bytes, a.file_bytes) {
            (Some(b), Some(a)) if b > 0 => cards.push(change("file", b, a, bytes)),
            _ => cards.push(change(
                "weights in bytes",
                b.weight_bytes,
                a.weight_bytes,
                bytes,
            )),
        }
        let tested = self.epochs.iter().rev().find_map(|e| e.test_accuracy);
        match (&self.eval_before, &self.eval_after) {
            (before, Some(after)) => cards.push((
                "accuracy",
                percent(after.top1),
                match before {
                    Some(b) => format!(
                        "{:+.2} points from {}, {} samples",
                        100.0 * (after.top1 - b.top1),
                        percent(b.top1),
                        count(after.samples as u64)
                    ),
                    None => format!("{} samples", count(after.samples as u64)),
                },
            )),
            (None, None) if tested.is_some() => cards.push((
                "accuracy",
                percent(tested.unwrap_or_default()),
                format!(
                    "after epoch {}",
                    self.epochs.last().map_or(0.0, |e| e.epoch)
                ),
            )),
            _ => {}
        }
        if let Some((before, after)) = self.times() {
            cards.push((
                "latency, these layers",
                format!("{:.2}×", before / after.max(f64::MIN_POSITIVE)),
                format!("as fast: {} ms to {} ms", millis(before), millis(after)),
            ));
        }
        let mut out = String::from("<div class=\"cards\">\n");
        for (what, figure, more) in cards {
            let _ = writeln!(
                out,
                "<div class=\"card\"><div class=\"what\">{what}</div><div class=\"figure\">{figure}</div>\
                 <div class=\"more\">{more}</div></div>"
            );
        }
        out + "</div>\n"
    }

    /// The sums of the layers that were timed dense and sparse.
    fn times(&self) -> Option<(f64, f64)> {
        let layers = &self.latency.as_ref()?.layers;
        let both = layers.iter().filter_map(|l| Some((l.dense_ms?, l.ms)));
        let (before, after) = both.fold((0.0, 0.0), |(b, a), (d, s)| (b + d, a + s));
        (before > 0.0).then_some((before, after))
    }

    fn warnings(&self) -> String {
        let mut list = Vec::new();
        let emptied: Vec<String> = (self.sidecar.layers.iter())
            .filter(|l| l.size > 0 && l.nonzeros == 0)
            .map(|l| escape(&l.weight))
            .collect();
        if !emptied.is_empty() {
            list.push(format!(
                "<b>Nothing is left of {}.</b> Where no path leads around such a layer the model is dead; a floor keeps \
                 it alive.",
                emptied.join(", ")
            ));
        }
        list.extend(self.sidecar.note.as_deref().map(escape));
        let one =
            |text: String| format!("<section class=\"warn\" role=\"note\">{text}</section>\n");
        list.into_iter().map(one).collect()
    }

    /// What happened to a layer, in a word, and its colour.
    fn fate(&self, layer: &Layer) -> (&'static str, Colour) {
        if layer.size > 0 && layer.nonzeros == 0 {
            ("empty", Colour::Empty)
        } else if self.floored.contains(&layer.weight) {
            ("floor", Colour::Floor)
        } else {
            ("", Colour::Kept)
        }
    }

    fn density(&self) -> String {
        let row = |layer: &Layer| {
            let (fate, colour) = self.fate(layer);
            let density = ratio(layer.nonzeros as u64, layer.size as u64);
            let mut note = format!("{} of {}", percent(density), short(layer.size as f64));
            if !fate.is_empty() {
                let _ = write!(note, "  {}", fate.to_uppercase());
            }
            Row {
                label: layer.weight.clone(),
                bars: vec![(density, colour)],
                note: (
                    note,
                    if fate.is_empty() {
                        Colour::Muted
                    } else {
                        colour
                    },
                ),
            }
        };
        let rows: Vec<Row> = self.sidecar.layers.iter().map(row).collect();
        let Some(plan) = &self.sidecar.plan else {
            return String::new();
        };
        let floor = match plan.sigma {
            0 => "There is no floor.".to_owned(),
            n => format!("The floor is {} weights a layer.", count(n as u64)),
        };
        let threshold = plan.threshold.map_or(String::new(), |t| {
            format!(" Weights of a magnitude below {t:.3e} went.")
        });
        format!(
            "<section>\n<h2>What is left of each layer</h2>\n<p>{} of {} selected weights are zero. {floor}{threshold}</p>\n\
             {}{}</section>\n",
            count(plan.zeros_after as u64),
            count(plan.total as u64),
            keys(&[
                (Colour::Kept, "kept"),
                (Colour::Floor, "kept by the floor"),
                (Colour::Empty, "empty"),
            ]),
            bars(
                "density",
                "Share of the weights that each layer keeps",
                &rows
            ),
        )
    }

    fn over_epochs(&self) -> String {
        let series = |colour, of: fn(&Epoch) -> Option<f64>| {
            let points = self.epochs.iter().filter_map(|e| Some((e.epoch, of(e)?)));
            let points: Vec<(f64, f64)> = points
                .filter(|p| p.0.is_finite() && p.1.is_finite())
                .collect();
            Series { colour, points }
        };
        let mut accuracy = vec![
            series(Colour::Dense, |e| e.train_accuracy),
            series(Colour::Kept, |e| e.test_accuracy),
        ];
        // Before the first weights go there is none.
        let pruned = self.epochs.iter().any(|e| e.sparsity.is_some());
        let mut sparsity = match pruned {
            true => vec![series(Colour::Floor, |e| e.sparsity.or(Some(0.0)))],
            false => Vec::new(),
        };
        accuracy.retain(|s| !s.points.is_empty());
        sparsity.retain(|s| !s.points.is_empty());
        if accuracy.is_empty() && sparsity.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "<section>\n<h2>Over the epochs</h2>\n{}<div class=\"pair\">\n",
            keys(&[
                (Colour::Kept, "test accuracy"),
                (Colour::Dense, "training accuracy"),
                (Colour::Floor, "sparsity"),
            ])
        );
        for (id, title, series) in [
            ("accuracy", "Accuracy", accuracy),
            ("sparsity", "Sparsity", sparsity),
        ] {
            if !series.is_empty() {
                let drawn = lines(id, &format!("{title} by epoch"), "epoch", true, &series);
                let _ = writeln!(
                    out,
                    "<figure><figcaption>{title}</figcaption>{drawn}</figure>"
                );
            }
        }
        out + "</div>\n</section>\n"
    }

    fn latency(&self) -> String {
        let Some(latency) = &self.latency else {
            return String::new();
        };
        let timed = |t: &Timed| t.dense_ms.unwrap_or(0.0).max(t.ms);
        let most = latency.layers.iter().map(timed).fold(0.0, f64::max);
        let most = most.max(f64::MIN_POSITIVE);
        let rows: Vec<Row> = (latency.layers.iter())
            .map(|t| Row {
                label: t.node.clone(),
                bars: vec![
                    (t.dense_ms.unwrap_or(0.0) / most, Colour::Dense),
                    (t.ms / most, Colour::Kept),
                ],
                note: match t.dense_ms {
                    Some(d) => (
                        format!("{} to {} ms", millis(d), millis(t.ms)),
                        Colour::Muted,
                    ),
                    None => (format!("{} ms", millis(t.ms)), Colour::Muted),
                },
            })
            .collect();
        format!(
            "<section>\n<h2>Measured latency of each layer</h2>\n<p>Medians of lacuna-bench on the device that it ran on, the \
             same layers dense and as pruned.</p>\n{}{}</section>\n",
            keys(&[(Colour::Dense, "dense"), (Colour::Kept, "pruned")]),
            bars(
                "latency",
                "Milliseconds of each layer, dense and pruned",
                &rows
            ),
        )
    }

    fn table(&self) -> String {
        let timed: BTreeMap<&str, &Timed> = (self.latency.iter())
            .flat_map(|l| &l.layers)
            .map(|t| (t.node.as_str(), t))
            .collect();
        let mut out = String::from(
            "<section>\n<h2>Layers in figures</h2>\n<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr><th>weight</th>\
             <th>op</th><th>shape</th><th class=\"n\">size</th><th class=\"n\">kept</th><th class=\"n\">density</th>\
             <th class=\"n\">dense MACs</th><th class=\"n\">MACs</th><th class=\"n\">bytes</th><th>stored</th>",
        );
        if !timed.is_empty() {
            out += "<th class=\"n\">dense ms</th><th class=\"n\">ms</th><th>kernel</th>";
        }
        out += "<th></th></tr></thead>\n<tbody>\n";
        for l in &self.sidecar.layers {
            let (fate, _) = self.fate(l);
            let shape: Vec<String> = l.shape.iter().map(usize::to_string).collect();
            let _ = write!(
                out,
                "<tr class=\"{fate}\"><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>",
                escape(&l.weight),
                escape(&l.op),
                shape.join("×"),
                count(l.size as u64),
                count(l.nonzeros as u64),
                percent(ratio(l.nonzeros as u64, l.size as u64)),
                count(l.dense_macs),
                count(l.sparse_macs),
                count(l.bytes),
                escape(&l.encoding),
            );
            if !timed.is_empty() {
                let t = timed.get(l.node.as_str());
                let _ = write!(
                    out,
                    "<td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>",
                    t.and_then(|t| t.dense_ms).map_or(String::new(), millis),
                    t.map_or(String::new(), |t| millis(t.ms)),
                    t.map_or(String::new(), |t| escape(&t.kernel)),
                );
            }
            let _ = writeln!(out, "<td>{fate}</td></tr>");
        }
        out += "</tbody>\n</table>\n</div>\n";
        let _ = writeln!(
            out,
            "<p>MACs at batch 1: {}.</p>\n</section>",
            escape(&self.sidecar.mac_convention)
        );
        out
    }

    fn recipe(&self) -> String {
        let s = &self.sidecar;
        let text = toml::to_string(&s.recipe).unwrap_or_else(|_| s.recipe.to_string());
        let mut facts = vec![("recipe sha256", s.recipe_sha256.clone())];
        if let Some(hash) = &s.input_sha256 {
            facts.push(("input sha256", hash.clone()));
        }
        facts.push(("made by", s.tool.clone()));
        if let Some(t) = &s.seconds {
            let write = t
                .write
                .map_or(String::new(), |w| format!(", write {w:.2} s"));
            facts.push((
                "took",
                format!("open {:.2} s, plan {:.2} s{write}", t.open, t.plan),
            ));
        }
        let facts: String = facts
            .into_iter()
            .map(|(what, value)| format!("<dt>{what}</dt><dd>{}</dd>", escape(&value)))
            .collect();
        format!(
            "<section>\n<h2>The recipe</h2>\n<p>The same recipe on the same model gives the same bytes.</p>\n\
             <pre tabindex=\"0\">{}</pre>\n<dl>{facts}</dl>\n</section>\n",
            escape(&text)
        )
    }
}

fn change(
    what: &'static str,
    before: u64,
    after: u64,
    show: fn(u64) -> String,
) -> (&'static str, String, String) {
    (
        what,
        percent(ratio(after, before)),
        format!("{} from {}", show(after), show(before)),
    )
}

fn keys(list: &[(Colour, &str)]) -> String {
    let key = |(colour, what): &(Colour, &str)| {
        format!("<li><i class=\"b-{}\"></i>{what}</li>", colour.name())
    };
    format!(
        "<ul class=\"keys\">{}</ul>\n",
        list.iter().map(key).collect::<String>()
    )
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn count(n: u64) -> String {
    HumanCount(n).to_string()
}

fn bytes(n: u64) -> String {
    DecimalBytes(n).to_string()
}

fn millis(ms: f64) -> String {
    match ms {
        ..0.1 => format!("{ms:.4}"),
        ..10.0 => format!("{ms:.3}"),
        _ => format!("{ms:.1}"),
    }
}

/// `1.2 M`.
fn short(n: f64) -> String {
    match n {
        ..1e3 => format!("{n:.0}"),
        ..1e6 => format!("{:.1} k", n / 1e3),
        ..1e9 => format!("{:.1} M", n / 1e6),
        _ => format!("{:.1} G", n / 1e9),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}
