//! What a page says of a cut: groups, and tasks over rounds.

use super::chart::{Colour, Row, Series, bars, lines};
use super::{Page, count, escape, keys, percent, ratio};
use crate::tasks::Metric;
use std::fmt::Write;

impl Page {
    /// The units of every group, before and after.
    pub(super) fn groups(&self) -> String {
        let groups = &self.sidecar.groups;
        if groups.is_empty() {
            return String::new();
        }
        let most = groups.iter().map(|g| g.units).max().unwrap_or(0) as u64;
        let rows: Vec<Row> = (groups.iter())
            .map(|g| {
                let kept = g.units.saturating_sub(g.removed) as u64;
                let all = g.units as u64;
                Row {
                    label: g.name.clone(),
                    bars: vec![
                        (ratio(all, most), Colour::Dense),
                        (ratio(kept, most), Colour::Kept),
                    ],
                    note: (
                        format!(
                            "{} of {}, {}",
                            count(kept),
                            count(all),
                            percent(ratio(kept, all))
                        ),
                        Colour::Muted,
                    ),
                }
            })
            .collect();
        format!(
            "<section>\n<h2>What is left of each group</h2>\n<p>Channels, heads and neurons that go together, by the first \
             weight that makes them.</p>\n{}{}</section>\n",
            keys(&[(Colour::Dense, "before"), (Colour::Kept, "after")]),
            bars("groups", "Units of each group before and after", &rows),
        )
    }

    /// Every task over the rounds.
    pub(super) fn rounds(&self) -> String {
        let s = &self.sidecar;
        if s.rounds.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "<section>\n<h2>Tasks over the rounds</h2>\n<p>On the samples held out; round 0 is the network as it was.</p>\n\
             {}<div class=\"pair\">\n",
            keys(&[
                (Colour::Dense, "cut, not yet trained"),
                (Colour::Kept, "before, and after the training of the round"),
            ])
        );
        let tasks = || s.tasks.iter().zip(&s.metrics).enumerate();
        for (i, (task, metric)) in tasks() {
            let value = |at: usize, round: usize| s.rounds[round].metrics[at].get(i).copied();
            let numbers = 0..s.rounds.len();
            let cut = numbers.clone().map(|r| ((r + 1) as f64, value(1, r)));
            let trained = numbers.map(|r| ((r + 1) as f64, value(2, r)));
            let start = std::iter::once((0.0, value(0, 0)));
            let points = |all: &mut dyn Iterator<Item = (f64, Option<f64>)>| {
                let known = all.filter_map(|(x, y)| Some((x, y.filter(|y| y.is_finite())?)));
                known.collect()
            };
            let series = [
                Series {
                    colour: Colour::Dense,
                    points: points(&mut { cut }),
                },
                Series {
                    colour: Colour::Kept,
                    points: points(&mut start.chain(trained)),
                },
            ];
            if series.iter().all(|s| s.points.is_empty()) {
                continue;
            }
            let title = format!("{task}, {metric}");
            let id = format!("task{i}");
            let drawn = lines(
                &id,
                &format!("{title} by round"),
                "round",
                metric.is_share(),
                &series,
            );
            let _ = writeln!(
                out,
                "<figure><figcaption>{}</figcaption>{drawn}</figure>",
                escape(&title)
            );
        }
        out += "</div>\n<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr><th>round</th><th class=\"n\">left of \
                the budget's measure</th>";
        for (_, (task, metric)) in tasks() {
            let _ = write!(
                out,
                "<th class=\"n\">{0}, loss</th><th class=\"n\">{0}, {metric}</th>",
                escape(task)
            );
        }
        out += "</tr></thead>\n<tbody>\n";
        for (number, round) in s.rounds.iter().enumerate() {
            let stages = [
                ("before", &round.losses_before, 0),
                ("cut", &round.losses_cut, 1),
                ("trained", &round.losses_after, 2),
            ];
            for (stage, losses, at) in stages {
                // What one round ends with the next begins with.
                if stage == "before" && number > 0 {
                    continue;
                }
                let left = match stage {
                    "before" => 1.0,
                    _ => round.left_after,
                };
                let _ = write!(
                    out,
                    "<tr><td>{} {stage}</td><td class=\"n\">{}</td>",
                    number + 1,
                    percent(left)
                );
                for (i, (_, metric)) in tasks() {
                    let number = |of: &[f64]| of.get(i).copied().unwrap_or(f64::NAN);
                    let _ = write!(
                        out,
                        "<td class=\"n\">{:.4}</td><td class=\"n\">{}</td>",
                        number(losses),
                        shown(*metric, number(&round.metrics[at]))
                    );
                }
                out += "</tr>\n";
            }
        }
        out + "</tbody>\n</table>\n</div>\n</section>\n"
    }
}

fn shown(metric: Metric, value: f64) -> String {
    match metric.is_share() {
        true => percent(value),
        false => format!("{value:.4}"),
    }
}
