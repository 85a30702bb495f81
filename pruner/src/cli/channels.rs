//! `prune channels`.

use super::groups::LimitFlags;
use super::outcome::sidecar;
use super::text::{self, Align, Table};
use super::{Source, file_bytes, json, write_text};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna::Model;
use lacuna::model::Symbols;
use lacuna_prune::groups::{ChannelPlan, Criterion, Groups, Leftover, Scope, Target};
use lacuna_prune::report::{MAC_CONVENTION, Totals, report};
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
    /// Say what would happen and write no model
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// Mean magnitude of the weights that make a unit
    L1,
    /// Root of their mean square
    L2,
    /// Squares of the weights that make and that read it, relative to the group (DepGraph)
    GroupNorm,
}

#[derive(Clone, Copy, ValueEnum)]
enum Among {
    /// Every group loses the same share
    Uniform,
    /// All units are ranked together
    Global,
}

#[derive(Serialize)]
struct Report {
    kind: &'static str,
    tool: &'static str,
    input: PathBuf,
    input_sha256: Option<String>,
    output: Option<PathBuf>,
    dry_run: bool,
    criterion: Criterion,
    scope: Scope,
    target: Target,
    mac_convention: &'static str,
    groups: Vec<Line>,
    before: State,
    after: State,
    /// Nodes whose bias took constants of removed channels.
    folded: Vec<String>,
    /// Nodes that lost constants.
    leftovers: Vec<Leftover>,
}

#[derive(Serialize)]
struct Line {
    group: usize,
    name: String,
    units: usize,
    removed: usize,
}

#[derive(Serialize)]
struct State {
    #[serde(flatten)]
    totals: Totals,
    file_bytes: Option<u64>,
}

impl Channels {
    pub fn run(&self) -> Result<String> {
        let target = match (self.flops, self.parameters) {
            (Some(share), None) => Target::Macs(share),
            (None, Some(share)) => Target::Parameters(share),
            _ => bail!("give one of --flops and --parameters"),
        };
        let criterion = match self.criterion {
            By::L1 => Criterion::L1,
            By::L2 => Criterion::L2,
            By::GroupNorm => Criterion::GroupNorm,
        };
        let scope = match self.scope {
            Among::Uniform => Scope::Uniform,
            Among::Global => Scope::Global,
        };
        let model = self.source.open()?;
        let input = || self.source.name().display().to_string();
        if let Some(path) = &self.output {
            self.source.keep(path)?;
        }
        let mut groups = Groups::of(&model).with_context(input)?;
        let limits = self.limits.apply(&mut groups)?;
        let plan =
            ChannelPlan::new(&groups, criterion, scope, target, &limits).with_context(input)?;
        let cut = groups
            .cut(&plan.removed, !self.drop_constants)
            .with_context(input)?;
        let after = match &self.output {
            Some(path) => {
                cut.model.save(path)?;
                Model::open(path)?
            }
            None => cut.model,
        };
        let totals =
            |model: &Model| -> Result<Totals> { Ok(report(model, &Symbols::new())?.totals) };
        let lines = groups.listed().filter(|(_, g)| g.reason.is_none());
        let result = Report {
            kind: "channels",
            tool: concat!("prune ", env!("CARGO_PKG_VERSION")),
            input: self.source.name(),
            input_sha256: self.source.digest(&model)?,
            output: self.output.clone(),
            dry_run: self.output.is_none(),
            criterion,
            scope,
            target,
            mac_convention: MAC_CONVENTION,
            groups: lines
                .map(|(at, g)| Line {
                    group: at,
                    name: g.name().to_owned(),
                    units: g.units,
                    removed: plan.removed.of(at).len(),
                })
                .collect(),
            before: State {
                totals: totals(&model)?,
                file_bytes: Some(self.source.bytes()?),
            },
            after: State {
                totals: totals(&after)?,
                file_bytes: self.output.as_deref().map(file_bytes).transpose()?,
            },
            folded: cut.folded,
            leftovers: cut.leftovers,
        };
        let document = json(&result)?;
        if let Some(path) = &self.output {
            write_text(&sidecar(path), &document)?;
        }
        match self.json {
            true => Ok(document),
            false => Ok(result.text()),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut table = Table::new([
            ("group", Align::Right),
            ("first weight", Align::Left),
            ("units", Align::Right),
            ("kept", Align::Right),
            ("left", Align::Right),
        ]);
        for l in &self.groups {
            let kept = l.units - l.removed;
            table.row([
                l.group.to_string(),
                l.name.clone(),
                text::count(l.units as u64),
                text::count(kept as u64),
                text::percent(text::ratio(kept as u64, l.units as u64)),
            ]);
        }
        let mut out = table.render();
        out += "\n";
        let (b, a) = (&self.before, &self.after);
        out += &text::left([
            (
                "parameters",
                b.totals.trained as u64,
                Some(a.totals.trained as u64),
            ),
            ("MACs", b.totals.dense_macs, Some(a.totals.dense_macs)),
            ("bytes of the file", b.file_bytes.unwrap_or(0), a.file_bytes),
        ]);
        out += &format!("MACs at batch 1: {}\n", self.mac_convention);
        if !self.folded.is_empty() {
            let n = self.folded.len();
            out += &format!("constants of removed channels went into the bias of {n} layers\n");
        }
        if !self.leftovers.is_empty() {
            let names: Vec<&str> = self.leftovers.iter().map(|l| l.node.as_str()).collect();
            out += &format!(
                "note: no bias can stand for constants of removed channels at {}; they are lost\n",
                names.join(", ")
            );
        }
        out += &match &self.output {
            Some(path) => format!("wrote {}\n", path.display()),
            None => "dry run: nothing was written\n".to_owned(),
        };
        out
    }
}
