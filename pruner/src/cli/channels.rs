//! `prune channels`.

use super::Source;
use super::cuts::{By, Cut, CutJob, Line};
use super::groups::LimitFlags;
use super::text::{self, Align, Table};
use super::train::Effort;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna_prune::ChannelSettings;
use lacuna_prune::groups::{Groups, Leftover, Scope, Target};
use serde::Serialize;
use std::path::PathBuf;

/// Whole channels, heads and neurons go; the layers become smaller and stay dense.
#[derive(Args)]
pub struct Channels {
    #[command(flatten)]
    source: Source,
    /// What units are ranked by
    #[arg(long, value_enum, default_value_t = By::GroupNorm)]
    criterion: By,
    /// How the units of different groups compare
    #[arg(long, value_enum, default_value_t = Among::Global)]
    scope: Among,
    /// The share of the multiply-accumulates that may be left, such as 0.4
    #[arg(
        long,
        value_name = "SHARE",
        required_unless_present = "parameters",
        conflicts_with = "parameters"
    )]
    flops: Option<f64>,
    /// The share of the parameters that may be left
    #[arg(long, value_name = "SHARE")]
    parameters: Option<f64>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Drop biases and shifts of removed channels, instead of moving what they leave into the next layer
    #[arg(long)]
    drop_constants: bool,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Write the recipe, for `prune run`; its SHA-256 is the one that the output carries
    #[arg(long, value_name = "FILE")]
    emit_recipe: Option<PathBuf>,
    /// Say what would happen and write no model
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Among {
    /// Every group loses the same share
    Uniform,
    /// All units are ranked together
    Global,
}

/// What this method has to say.
#[derive(Serialize)]
struct Own {
    /// Nodes whose bias took constants of removed channels.
    folded: Vec<String>,
    /// Nodes that lost constants.
    leftovers: Vec<Leftover>,
}

impl Channels {
    pub fn run(&self) -> Result<String> {
        let target = match (self.flops, self.parameters) {
            (Some(share), None) => Target::Macs(share),
            (None, Some(share)) => Target::Parameters(share),
            _ => bail!("give one of --flops and --parameters"),
        };
        let (limits, ignore) = self.limits.parts();
        let settings = ChannelSettings {
            criterion: self.criterion.into(),
            scope: match self.scope {
                Among::Uniform => Scope::Uniform,
                Among::Global => Scope::Global,
            },
            drop_constants: self.drop_constants,
            ignore: ignore.to_vec(),
            target,
            limits,
        };
        CutJob {
            recipe: settings.into(),
            source: &self.source,
            output: self.output.as_deref(),
            emit_recipe: self.emit_recipe.as_deref(),
            effort: &Effort::default(),
            json: self.json,
        }
        .channels()
    }
}

impl CutJob<'_> {
    /// Cuts by magnitudes.
    pub fn channels(self) -> Result<String> {
        self.run(
            |job, model| {
                let settings = job.recipe.channels.as_ref();
                let settings = settings.context("the recipe has no table [channels]")?;
                let mut groups = Groups::of(model)?;
                let plan = settings.plan(&mut groups)?;
                let cut = groups.cut(&plan.removed, !settings.drop_constants)?;
                let free = groups.listed().filter(|(_, g)| g.reason.is_none());
                let line = |(at, g): (usize, &lacuna_prune::groups::Group)| Line {
                    name: g.name().to_owned(),
                    units: g.units,
                    removed: plan.removed.of(at).len(),
                };
                Ok(Cut {
                    kind: "channels",
                    groups: free.map(line).collect(),
                    model: cut.model,
                    own: Own {
                        folded: cut.folded,
                        leftovers: cut.leftovers,
                    },
                })
            },
            said,
        )
    }
}

fn said(groups: &[Line], own: &Own) -> String {
    let mut table = Table::new([
        ("first weight", Align::Left),
        ("units", Align::Right),
        ("kept", Align::Right),
        ("left", Align::Right),
    ]);
    for l in groups {
        let kept = l.units - l.removed;
        table.row([
            l.name.clone(),
            text::count(l.units as u64),
            text::count(kept as u64),
            text::percent(text::ratio(kept as u64, l.units as u64)),
        ]);
    }
    let mut out = table.render();
    out += "\n";
    if !own.folded.is_empty() {
        let n = own.folded.len();
        out += &format!("constants of removed channels went into the bias of {n} layers\n");
    }
    if !own.leftovers.is_empty() {
        let names: Vec<&str> = own.leftovers.iter().map(|l| l.node.as_str()).collect();
        out += &format!(
            "note: no bias can stand for constants of removed channels at {}; they are lost\n",
            names.join(", ")
        );
    }
    out
}
