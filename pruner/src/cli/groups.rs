//! `prune groups`.

use super::text::{self, Align, Table};
use super::{Source, json};
use anyhow::Result;
use clap::Args;
use lacuna_prune::groups::{Cost, Group, Groups, Limits, Member, Reason, Role};
use serde::Serialize;
use std::path::PathBuf;

/// Channels, attention heads and neurons that can only be cut together, and those that cannot be cut.
#[derive(Args)]
pub struct ListGroups {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    limits: LimitFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What every method that cuts keeps to.
#[derive(Args)]
pub struct LimitFlags {
    /// Keep the outputs of weights whose names match; a shell glob, may be repeated
    #[arg(long, value_name = "GLOB")]
    ignore: Vec<String>,
    /// Leave multiples of N output channels
    #[arg(long, value_name = "N", default_value_t = 1)]
    round_to: usize,
    /// Leave every layer at least N output channels
    #[arg(long, value_name = "N", default_value_t = 1)]
    min_channels: usize,
    /// Take at most this share of a group's units
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    max_ratio: f64,
}

impl LimitFlags {
    /// The limits, and the patterns of what stays.
    pub fn parts(&self) -> (Limits, &[String]) {
        let limits = Limits {
            round_to: self.round_to,
            min_channels: self.min_channels,
            max_ratio: self.max_ratio,
        };
        (limits, &self.ignore)
    }

    /// The limits, once `groups` knows what is ignored.
    pub fn apply(&self, groups: &mut Groups<'_>) -> Result<Limits> {
        let (limits, _) = self.parts();
        limits.check()?;
        groups.ignore(&self.ignore)?;
        Ok(limits)
    }
}

#[derive(Serialize)]
struct Output<'g> {
    file: PathBuf,
    groups: Vec<Line<'g>>,
}

#[derive(Serialize)]
struct Line<'g> {
    group: usize,
    /// The first weight that makes the channels.
    name: &'g str,
    units: usize,
    /// Units that the limits let go.
    removable: usize,
    /// What goes with one unit.
    per_unit: Cost,
    /// Why none can go.
    reason: Option<&'g Reason>,
    members: Vec<Touched<'g>>,
}

#[derive(Serialize)]
struct Touched<'g> {
    weight: &'g str,
    axis: usize,
    role: Role,
    /// Indices of the axis in a unit.
    per_unit: usize,
}

impl ListGroups {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        let mut groups = Groups::of(&model)?;
        let limits = self.limits.apply(&mut groups)?;
        let costs = groups.unit_costs()?;
        let output = Output {
            file: self.source.name(),
            groups: groups
                .listed()
                .map(|(at, g)| Line::of(at, g, costs[at], &limits))
                .collect(),
        };
        match self.json {
            true => json(&output),
            false => Ok(output.text()),
        }
    }
}

impl<'g> Line<'g> {
    fn of(group: usize, g: &'g Group, per_unit: Cost, limits: &Limits) -> Line<'g> {
        let touched = |m: &'g Member| Touched {
            weight: &m.weight,
            axis: m.axis,
            role: m.role,
            per_unit: m.per_unit,
        };
        Line {
            group,
            name: g.name(),
            units: g.units,
            removable: limits.allowed(g, g.units),
            per_unit,
            reason: g.reason.as_ref(),
            members: g.members.iter().map(touched).collect(),
        }
    }

    /// Layers and axes, the first few.
    fn cuts(&self) -> String {
        const SHOWN: usize = 4;
        let matrices = self.members.iter();
        let layers: Vec<String> = matrices
            .filter(|m| matches!(m.role, Role::Output | Role::Input))
            .map(|m| match m.per_unit {
                1 => format!("{}[{}]", m.weight, m.axis),
                n => format!("{}[{}]x{n}", m.weight, m.axis),
            })
            .collect();
        let head = layers[..layers.len().min(SHOWN)].join(" ");
        match layers.len().saturating_sub(SHOWN) {
            0 => head,
            more => format!("{head} +{more}"),
        }
    }
}

impl Output<'_> {
    fn text(&self) -> String {
        let mut table = Table::new([
            ("group", Align::Right),
            ("units", Align::Right),
            ("removable", Align::Right),
            ("parameters/unit", Align::Right),
            ("MACs/unit", Align::Right),
            ("cuts (weight[axis])", Align::Left),
            ("stays because", Align::Left),
        ]);
        for line in &self.groups {
            table.row([
                line.group.to_string(),
                text::count(line.units as u64),
                text::count(line.removable as u64),
                text::count(line.per_unit.parameters),
                text::count(line.per_unit.macs),
                line.cuts(),
                line.reason.map_or(String::new(), Reason::to_string),
            ]);
        }
        let free = self.groups.iter().filter(|l| l.reason.is_none());
        format!(
            "{}: {} groups, {} of them can be cut\n\n{}",
            self.file.display(),
            self.groups.len(),
            free.count(),
            table.render()
        )
    }
}
