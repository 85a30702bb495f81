//! `prune pagcp`.

use super::Source;
use super::cuts::{By, Cut, CutJob, Line};
use super::groups::LimitFlags;
use super::text::{self, Align, Table};
use super::train::{TrainOptions, bar, figure, line, shown};
use anyhow::{Context, Result, bail};
use clap::Args;
use lacuna_prune::pagcp::{
    Budget, Conduct, LatencyTable, PagcpSettings, Progress, Round, Saved, Stage, forget, pagcp,
};
use lacuna_prune::tasks::Metric;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Rounds of cutting and training. Images that are held out of the training say what each cut costs each task
/// (--hold-out, 1024 of them without it). Killed, the same command goes on where it was.
#[derive(Args)]
pub struct Pagcp {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    budget: BudgetFlags,
    /// Layers of this model, measured by `lacuna-bench MODEL --table FILE`
    #[arg(long, value_name = "FILE", requires = "latency")]
    table: Option<PathBuf>,
    /// The share by which the first layer may raise the loss of any task
    #[arg(long, value_name = "D", default_value_t = 0.06)]
    allowance: f64,
    /// The factor by which all layers of a round together may raise it
    #[arg(long, value_name = "T", default_value_t = 6.0)]
    inflation: f64,
    /// What each round adds to the allowance
    #[arg(
        long,
        value_name = "D",
        default_value_t = 0.0,
        allow_hyphen_values = true
    )]
    allowance_slope: f64,
    /// What each round adds to the inflation
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_hyphen_values = true
    )]
    inflation_slope: f64,
    /// Allow every layer the same
    #[arg(long)]
    no_decay: bool,
    /// The share of the layers that a round cuts: those that lose least for what they save
    #[arg(long, value_name = "P", default_value_t = 0.8)]
    top: f64,
    /// What the units of a layer are ranked by
    #[arg(long, value_enum, default_value_t = By::L1)]
    criterion: By,
    /// The most rounds
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: usize,
    /// Train for N epochs after each round
    #[arg(long, value_name = "N", default_value_t = 0)]
    fine_tune: usize,
    /// Follow the method's reference where it slips
    #[arg(long)]
    as_coded: bool,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    options: TrainOptions,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write the recipe, for `prune run`; its SHA-256 is the one that the output carries
    #[arg(long, value_name = "FILE")]
    emit_recipe: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct BudgetFlags {
    /// The share of the multiply-accumulates that may be left, such as 0.4
    #[arg(long, value_name = "SHARE")]
    flops: Option<f64>,
    /// The share of the parameters that may be left
    #[arg(long, value_name = "SHARE")]
    parameters: Option<f64>,
    /// The share of the bytes of the weights that may be left
    #[arg(long, value_name = "SHARE")]
    bytes: Option<f64>,
    /// The share of the milliseconds that may be left, by --table
    #[arg(long, value_name = "SHARE")]
    latency: Option<f64>,
}

/// What this method has to say.
#[derive(Serialize)]
struct Own {
    /// The tasks, in the order of all losses.
    tasks: Vec<String>,
    /// What is measured of each.
    metrics: Vec<Metric>,
    oracle_samples: usize,
    rounds: Vec<Round>,
    /// The share of what the budget is of.
    left: f64,
    budget_met: bool,
}

/// The state of a run that writes `output`.
fn state(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".pagcp");
    name.into()
}

impl Pagcp {
    fn settings(&self) -> Result<PagcpSettings> {
        let b = &self.budget;
        let (of, share) = match (b.flops, b.parameters, b.bytes, b.latency) {
            (Some(share), ..) => (Saved::Flops, share),
            (_, Some(share), ..) => (Saved::Parameters, share),
            (_, _, Some(share), _) => (Saved::Bytes, share),
            (.., Some(share)) => (Saved::Latency, share),
            _ => bail!("give one of --flops, --parameters, --bytes and --latency"),
        };
        let table = self.table.as_deref().map(LatencyTable::open).transpose()?;
        let (limits, ignore) = self.limits.parts();
        let mut train = self.options.settings(self.fine_tune.max(1))?;
        train.data.hold_out.get_or_insert(1024);
        Ok(PagcpSettings {
            allowance: self.allowance,
            inflation: self.inflation,
            allowance_slope: self.allowance_slope,
            inflation_slope: self.inflation_slope,
            decay: !self.no_decay,
            top: self.top,
            criterion: self.criterion.into(),
            rounds: self.rounds,
            ignore: ignore.to_vec(),
            limits,
            as_coded: self.as_coded,
            epochs: self.fine_tune,
            train,
            ..PagcpSettings::new(Budget { of, share, table })
        })
    }

    pub fn run(&self) -> Result<String> {
        CutJob {
            recipe: self.settings()?.into(),
            source: &self.source,
            output: Some(&self.output),
            emit_recipe: self.emit_recipe.as_deref(),
            effort: self.options.effort(),
            json: self.json,
        }
        .pagcp()
    }
}

impl CutJob<'_> {
    /// Cuts as every task allows.
    pub fn pagcp(self) -> Result<String> {
        let output = self.output.context(
            "a dry run trains nothing; `prune groups` says what could be cut, `prune channels --dry-run` what a budget takes",
        )?;
        let mut rounds = 0;
        let out = self.run(
            |job, model| {
                let settings = job.recipe.pagcp.as_ref();
                let settings = settings.context("the recipe has no table [pagcp]")?;
                let (device, threads) = job.effort.place();
                let conduct = Conduct {
                    device,
                    threads,
                    state: Some(state(output)),
                };
                let bar = bar();
                let mut show = |p: &Progress<'_>| show(&bar, p);
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()?;
                let outcome = pool.install(|| pagcp(model, settings, &conduct, &mut show));
                bar.finish_and_clear();
                let outcome = outcome?;
                rounds = outcome.rounds.len();
                Ok(Cut {
                    kind: "pagcp",
                    groups: lines(&outcome.rounds),
                    model: outcome.model,
                    own: Own {
                        tasks: outcome.tasks,
                        metrics: outcome.metrics,
                        oracle_samples: outcome.oracle_samples,
                        rounds: outcome.rounds,
                        left: outcome.left,
                        budget_met: outcome.met,
                    },
                })
            },
            |_, own| own.text(),
        )?;
        // Last: until all of it is written, a run that is killed goes on from there.
        forget(&state(output), rounds)?;
        Ok(out)
    }
}

/// What all rounds took of each group.
fn lines(rounds: &[Round]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for visit in rounds.iter().flat_map(|r| &r.visits) {
        match lines.iter_mut().find(|l| l.name == visit.name) {
            Some(line) => line.removed += visit.taken,
            None => lines.push(Line {
                name: visit.name.clone(),
                units: visit.units,
                removed: visit.taken,
            }),
        }
    }
    lines
}

/// Says how far a run is.
fn show(bar: &indicatif::ProgressBar, p: &Progress<'_>) {
    let round = p.round + 1;
    let say = |line: String| bar.suspend(|| eprintln!("{line}"));
    match &p.stage {
        Stage::Resumed([rounds, visits]) => say(format!(
            "going on after {rounds} rounds and {visits} layers of the next"
        )),
        Stage::Visit {
            group,
            at,
            share,
            most,
            losses,
        } => {
            let room = losses.iter().zip(*most);
            let room: Vec<String> = room.map(|(l, m)| format!("{l:.3} of {m:.3}")).collect();
            bar.set_length(at[1] as u64);
            bar.set_position(at[0] as u64 - 1);
            bar.set_message(format!(
                "round {round}, {} left of {}: {} of {group}, losses {}",
                text::percent(p.left),
                text::percent(p.goal),
                text::percent(*share),
                room.join(", ")
            ));
        }
        Stage::Visited(visit, at) => say(format!(
            "round {round}, {}/{} {}: {} of {} units, {}; {} left",
            at[0],
            at[1],
            visit.name,
            visit.removed.len(),
            visit.units,
            match &visit.stopped_by {
                Some(task) => format!(
                    "then {task} loses more than {}",
                    text::percent(visit.allowance)
                ),
                None => "no task objects".into(),
            },
            text::percent(p.left)
        )),
        Stage::Cut(visits) => {
            let taken = visits.iter().filter(|v| v.taken > 0).count();
            say(format!(
                "round {round}: {taken} of {} layers are cut; {} left of {}",
                visits.len(),
                text::percent(p.left),
                text::percent(p.goal)
            ));
        }
        Stage::Training(t) => {
            let [epoch, epochs] = t.epoch;
            bar.set_length((epochs * t.step[1]) as u64);
            bar.set_position(((epoch - 1) * t.step[1] + t.step[0]) as u64);
            bar.set_message(format!(
                "round {round}, epoch {epoch}/{epochs}, loss {:.4}",
                t.loss
            ));
            if let Some(row) = t.row {
                say(line(row));
            }
        }
        Stage::Done(_) => bar.reset(),
    }
}

impl Own {
    fn text(&self) -> String {
        let mut out = String::new();
        for (i, round) in self.rounds.iter().enumerate() {
            let mut table = Table::new([
                ("group", Align::Left),
                ("units", Align::Right),
                ("could go", Align::Right),
                ("went", Align::Right),
                ("stopped by", Align::Left),
            ]);
            for v in &round.visits {
                table.row([
                    v.name.clone(),
                    text::count(v.units as u64),
                    text::count(v.removed.len() as u64),
                    text::count(v.taken as u64),
                    v.stopped_by.clone().unwrap_or_default(),
                ]);
            }
            let all = |at: usize, losses: &[f64]| -> String {
                let tasks = self.tasks.iter().zip(&self.metrics);
                let figures = losses.iter().zip(&round.metrics[at]);
                let each = tasks.zip(figures).map(|((task, metric), (loss, &value))| {
                    format!("{task} {loss:.4} ({metric} {})", shown(*metric, value))
                });
                each.collect::<Vec<_>>().join(", ")
            };
            out += &format!(
                "round {}: {} left, of {}\n{}losses before: {}\nlosses cut: {}\nlosses after: {}\n",
                i + 1,
                text::percent(round.left_after),
                text::percent(round.left_before),
                table.render(),
                all(0, &round.losses_before),
                all(1, &round.losses_cut),
                all(2, &round.losses_after),
            );
            if let Some(last) = round.epochs.last() {
                let tasks: Vec<String> = last.tasks.iter().map(figure).collect();
                if !tasks.is_empty() {
                    out += &format!("test: {}\n", tasks.join(", "));
                }
            }
            out += "\n";
        }
        if !self.budget_met {
            out += &format!(
                "note: the budget is not met: {} is left; more rounds, a larger allowance or --inflation take more\n",
                text::percent(self.left)
            );
        }
        out
    }
}
