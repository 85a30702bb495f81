//! The verbs that take whole heads and neurons from a language model, by what it does on a text.

use super::calibration::{SearchFlags, Shown, TextFlags, tokens};
use super::outcome::sidecar;
use super::text::{self, Align, Table};
use super::{Source, file_bytes, json, write_text};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna::Model;
use lacuna_prune::LayerError;
use lacuna_prune::latency::{LatencyTable, Reading};
use lacuna_prune::report::report;
use lacuna_prune::search::{Round, SearchSettings, tidy};
use lacuna_prune::structured::{
    Accumulation, HeadMode, Kind, Latency, LatencyBudget, Limit, Local, Score, Spread, Structured,
    Width,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Looks for the heads and neurons of each block that keep the model's answers: Týr-the-Pruner (arXiv 2503.09657).
///
/// Beside the output a folder NAME.search holds the search: the same command goes on from there after a kill.
/// Its evaluations.jsonl stays.
#[derive(Args)]
pub struct Tyr {
    #[command(flatten)]
    common: Common,
    /// The most that the model may take by --table, in the place of --sparsity: milliseconds, such as 4.5ms, or a share of
    /// what it takes now, such as 0.7
    #[arg(long, value_name = "MS|SHARE", value_parser = limit, requires_all = ["table", "calibration_text"], conflicts_with = "sparsity")]
    latency: Option<Limit>,
    /// Layers and attentions of this model, measured by `lacuna-bench MODEL --table FILE`
    #[arg(long, value_name = "FILE", requires = "latency")]
    table: Option<PathBuf>,
    /// What --latency is of
    #[arg(long, value_enum, default_value_t = Of::Token, requires = "latency")]
    latency_of: Of,
    /// What the blocks behind one of several widths are pruned on
    #[arg(long, value_enum, default_value_t = Behind::Expectation)]
    accumulation: Behind,
    /// What a matrix's inputs are ranked by
    #[arg(long, value_enum, default_value_t = By::Obs)]
    score: By,
    /// Leave each level as the removals' updates made it, without least squares at the end
    #[arg(long)]
    no_refit: bool,
    #[command(flatten)]
    search: SearchFlags,
}

/// Learns widths without a search.
#[derive(Args)]
pub struct Uniform {
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    source: Source,
    /// The share of the parameters of all attentions and MLPs that goes, such as 0.25
    #[arg(long, value_name = "S", requires = "calibration_text")]
    sparsity: Option<f64>,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Also write a model of the shapes before, with zeros where what went was read: `prune export --dense --like` makes
    /// of it a checkpoint that stock loaders take
    #[arg(long, value_name = "FILE")]
    masked: Option<PathBuf>,
    /// Which heads go together where several share keys and values
    #[arg(long, value_enum, default_value_t = Heads::Query)]
    head_mode: Heads,
    #[command(flatten)]
    learn: TextFlags,
    /// The seed that draws windows and candidates
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads; 0 takes every core. The result is the same with any number
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Do again what --emit-recipe wrote, to the same bytes: nothing is searched
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sparsity", "head_mode", "windows", "window", "held_out", "damping", "seed"])]
    recipe: Option<PathBuf>,
    /// Write the widths that were found, for --recipe
    #[arg(long, value_name = "FILE")]
    emit_recipe: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Heads {
    /// Each by itself
    Query,
    /// All that share a key head, and it
    KvGroup,
    /// As many of every key head
    Equal,
}

#[derive(Clone, Copy, ValueEnum)]
enum Of {
    /// A generated token
    Token,
    /// The prompt that the table was made with
    Prompt,
}

/// Milliseconds with their unit, or a share.
fn limit(text: &str) -> Result<Limit, String> {
    let number = |t: &str| {
        t.trim()
            .parse::<f64>()
            .ok()
            .filter(|n| *n > 0.0 && n.is_finite())
    };
    let found = match text.strip_suffix("ms") {
        Some(ms) => number(ms).map(Limit::Milliseconds),
        None => number(text).filter(|n| *n < 1.0).map(Limit::Share),
    };
    found.ok_or_else(|| "milliseconds, such as 4.5ms, or a share below 1, such as 0.7".into())
}

#[derive(Clone, Copy, ValueEnum)]
enum Behind {
    /// The mean of the widths, by their density
    Expectation,
    /// The one in the middle
    Median,
    /// The model as it was
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// What the outputs lose when the others make up for it
    Obs,
    /// The same and a first-order term: Týr's code
    Code,
    /// Magnitudes of both terms: Týr's paper
    Paper,
}

impl Tyr {
    pub fn run(&self) -> Result<String> {
        let search = self.search.settings(false);
        let score = match self.score {
            By::Obs => Score::Obs,
            By::Code => Score::Code,
            By::Paper => Score::Paper,
        };
        let accumulation = match self.accumulation {
            Behind::Expectation => Accumulation::Expectation,
            Behind::Median => Accumulation::Median,
            Behind::None => Accumulation::None,
        };
        let table = self.table.as_deref().map(LatencyTable::open).transpose()?;
        let latency = self.latency.zip(table).map(|(limit, table)| LatencyBudget {
            limit,
            of: match self.latency_of {
                Of::Token => Reading::Token,
                Of::Prompt => Reading::Prompt,
            },
            table,
        });
        let way = Way {
            latency,
            local: Local {
                score,
                refit: !self.no_refit,
                ..Local::default()
            },
            accumulation,
            spread: Spread::Even,
            search: Some(search),
        };
        self.common.run("tyr", way, self.search.keep_search)
    }
}

impl Uniform {
    pub fn run(&self, name: &'static str, score: Score, spread: Spread) -> Result<String> {
        let way = Way {
            latency: None,
            local: Local {
                score,
                ..Local::default()
            },
            accumulation: Accumulation::default(),
            spread,
            search: None,
        };
        self.common.run(name, way, false)
    }
}

#[derive(Serialize)]
struct Report {
    kind: &'static str,
    tool: &'static str,
    input: PathBuf,
    input_sha256: Option<String>,
    output: PathBuf,
    recipe_sha256: String,
    settings: Structured,
    /// Parameters of all attentions and MLPs before and after, and those that the sparsity asks for.
    module_parameters: [usize; 3],
    /// Milliseconds by the table, where they were the budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    /// Parameters of the model.
    parameters: [usize; 2],
    file_bytes: [u64; 2],
    modules: Vec<Width>,
    /// The mean over modules of the relative error of their outputs, on the windows and on those held out.
    mean_error: Option<f64>,
    mean_held_out_error: Option<f64>,
    errors: Vec<LayerError>,
    rounds: Vec<Round>,
    /// Wall time of this run alone, in all and by phase.
    seconds: f64,
    phase_seconds: BTreeMap<&'static str, f64>,
}

/// What tells the verbs apart.
struct Way {
    latency: Option<LatencyBudget>,
    local: Local,
    accumulation: Accumulation,
    spread: Spread,
    search: Option<SearchSettings>,
}

impl Common {
    fn run(&self, kind: &'static str, way: Way, keep: bool) -> Result<String> {
        let started = Instant::now();
        let mut settings = match &self.recipe {
            Some(path) => self.read(path)?,
            None => Structured {
                schema: 1,
                sparsity: match (self.sparsity, &way.latency) {
                    (None, Some(_)) => 0.0,
                    (given, _) => given.context("--sparsity is missing")?,
                },
                latency: way.latency,
                heads: match self.head_mode {
                    Heads::Query => HeadMode::Query,
                    Heads::KvGroup => HeadMode::KvGroup,
                    Heads::Equal => HeadMode::Equal,
                },
                accumulation: way.accumulation,
                local: way.local,
                spread: way.spread,
                calibration: self.learn.calibration(64, self.seed),
                search: way.search,
                widths: Default::default(),
            },
        };
        let model = self.source.open()?;
        let input = || self.source.name().display().to_string();
        self.source.keep(&self.output)?;
        let (tokens, digest) = tokens(&settings.calibration, &model)?;
        settings.calibration.sha256 = digest.clone();
        let sha = self.source.digest(&model)?;
        let origin = format!("{} {digest}", sha.clone().unwrap_or_default());
        let work = self.output.with_extension("search");
        let rounds = settings.search.as_ref().map_or(0, |s| s.rounds);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()?;
        let found = pool.install(|| {
            let mut show = Shown::new();
            settings.run(&model, &tokens, &origin, &work, &mut |e| show.tell(e))
        });
        let mut found = found.with_context(input)?;
        found.model.metadata.recipe = Some(found.settings.hash()?);
        found.model.save(&self.output)?;
        let after = Model::open(&self.output)?;
        if let Some(path) = &self.masked {
            self.source.keep(path)?;
            found.masked.metadata.recipe = found.model.metadata.recipe.clone();
            found.masked.save(path)?;
        }
        if let Some(path) = &self.emit_recipe {
            write_text(path, &found.settings.to_toml())?;
        }
        if rounds > 0 && !keep {
            tidy(&work, rounds)?;
        }
        let mean = |of: fn(&LayerError) -> Option<f64>| {
            let all: Vec<f64> = found.errors.iter().filter_map(of).collect();
            (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
        };
        let trained =
            |m: &Model| -> Result<usize> { Ok(report(m, &Default::default())?.totals.trained) };
        let result = Report {
            kind,
            tool: concat!("prune ", env!("CARGO_PKG_VERSION")),
            input: self.source.name(),
            input_sha256: sha,
            output: self.output.clone(),
            recipe_sha256: found.settings.hash()?,
            module_parameters: found.parameters,
            latency: found.latency,
            parameters: [trained(&model)?, trained(&after)?],
            file_bytes: [self.source.bytes()?, file_bytes(&self.output)?],
            mean_error: mean(|e| Some(e.fitted)),
            mean_held_out_error: mean(|e| e.held_out),
            errors: found.errors,
            modules: found.modules,
            settings: found.settings,
            rounds: found.rounds,
            seconds: started.elapsed().as_secs_f64(),
            phase_seconds: found.seconds,
        };
        let document = json(&result)?;
        write_text(&sidecar(&self.output), &document)?;
        match self.json {
            true => Ok(document),
            false => Ok(result.text()),
        }
    }

    fn read(&self, path: &Path) -> Result<Structured> {
        let named = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read the recipe", path.display()))?;
        let settings = Structured::from_toml(&text).with_context(named)?;
        if settings.widths.is_empty() && settings.search.is_some() {
            bail!("{}: has no widths", path.display());
        }
        Ok(settings)
    }
}

impl Report {
    fn text(&self) -> String {
        let mut table = Table::new([
            ("read by", Align::Left),
            ("kind", Align::Left),
            ("units", Align::Right),
            ("kept", Align::Right),
            ("left", Align::Right),
            ("error", Align::Right),
        ]);
        for (m, e) in self.modules.iter().zip(&self.errors) {
            table.row([
                m.weight.clone(),
                match m.kind {
                    Kind::Attention => "heads".to_owned(),
                    Kind::Mlp => "neurons".to_owned(),
                },
                text::count(m.units as u64),
                text::count(m.kept.len() as u64),
                text::percent(text::ratio(m.kept.len() as u64, m.units as u64)),
                text::percent(e.held_out.unwrap_or(e.fitted)),
            ]);
        }
        let mut out = table.render();
        out += "\n";
        let [before, after, _] = self.module_parameters;
        out += &text::left([
            ("attentions and MLPs", before as u64, Some(after as u64)),
            (
                "parameters",
                self.parameters[0] as u64,
                Some(self.parameters[1] as u64),
            ),
            (
                "bytes of the file",
                self.file_bytes[0],
                Some(self.file_bytes[1]),
            ),
        ]);
        if let Some(Latency { of, ms, rest_ms }) = self.latency {
            let of = match of {
                Reading::Token => "a token",
                Reading::Prompt => "the prompt",
            };
            out += &format!(
                "{of}, by the table: {:.3} -> {:.3} ms of {:.3}; {rest_ms:.3} in no attention and no MLP\n",
                ms[0], ms[1], ms[2]
            );
        }
        out += &format!("{:.0} s\nwrote {}\n", self.seconds, self.output.display());
        out
    }
}
