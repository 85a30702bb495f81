//! The command line: one module per verb. A verb returns what goes to stdout.

mod calibration;
mod channels;
mod convert;
mod cut;
mod cuts;
mod demo;
mod eval;
mod export;
mod generate;
mod groups;
mod inspect;
mod outcome;
mod pagcp;
mod preprocessing;
mod prune;
mod report;
mod run;
mod structured;
mod text;
mod train;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use lacuna::model::Dim;
use lacuna::{DType, Model};
use lacuna_prune::structured::{Score, Spread};
use lacuna_prune::{Origin, SolverName};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The version of every JSON object that this program prints.
const SCHEMA: u32 = 1;

/// Prunes models for the Lacuna runtime: a checkpoint in, a sparse file out.
///
/// Results go to stdout, progress to stderr.
#[derive(Parser)]
#[command(name = "prune", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Turns a checkpoint (ONNX, PyTorch, safetensors) into a Lacuna file
    Convert(convert::Convert),
    /// Shows what is in a model, layer by layer
    Inspect(inspect::Inspect),
    /// Prunes by one magnitude threshold for the whole network
    GlobalMp(prune::GlobalMp),
    /// Prunes the same share of every layer by magnitude
    Magnitude(prune::Magnitude),
    /// Carries a recipe out
    Run(run::Run),
    /// Prunes by magnitude, small layers less, by the sums of their axes (ERK)
    Erk(prune::Erk),
    /// Prunes by magnitudes that are normalised by what is left of their layer (LAMP)
    Lamp(prune::Lamp),
    /// Prunes whole columns of factors of low rank
    Columns(prune::Columns),
    /// Removes the channels of factors that nothing goes through
    Cut(cut::Cut),
    /// Lists channels, heads and neurons that can only be cut together
    Groups(groups::ListGroups),
    /// Cuts whole channels, heads and neurons by their magnitudes: smaller dense layers
    Channels(channels::Channels),
    /// Cuts channels until a budget is met, as much of each layer as every task of the network allows (PAGCP)
    Pagcp(pagcp::Pagcp),
    /// Prunes a language model by magnitudes times norms of inputs (Wanda)
    Wanda(prune::Calibrated),
    /// Prunes a language model column by column, errors spread over the columns behind (SparseGPT)
    #[command(name = "sparsegpt")]
    SparseGpt(prune::Calibrated),
    /// Prunes a language model by twenty iterations of ADMM in each layer (L-ADMM)
    LAdmm(prune::Calibrated),
    /// Prunes a language model by ADMM until the zeros settle, then least squares (ALPS)
    Alps(prune::Calibrated),
    /// Cuts heads and neurons of a language model, as many of each block as a search finds best (Týr-the-Pruner)
    Tyr(structured::Tyr),
    /// Cuts the same share of heads and neurons of every block of a language model; the others make up for it (OBS)
    Obs(structured::Uniform),
    /// Cuts the same share of heads and neurons of every block by magnitudes times norms of inputs (Wanda-sp)
    WandaSp(structured::Uniform),
    /// Cuts the heads and neurons of a language model that vary least, ranked across all blocks; their means stay (FLAP)
    Flap(structured::Uniform),
    /// Drops the blocks of a language model that turn its states least (ShortGPT)
    DropBlocks(structured::Uniform),
    /// Trains on labelled images or sequences
    Train(train::Train),
    /// Measures accuracy on labelled images or sequences, or perplexity on a text
    Eval(eval::Eval),
    /// Continues a text with a language model
    Generate(generate::Generate),
    /// Writes a model for other programs
    Export(export::Export),
    /// Writes a page about a pruned model
    Report(report::Report),
    /// Prunes the model that comes with the project and shows what it brings and costs
    Demo(demo::Demo),
    /// Prints what makes a shell complete this program's verbs and flags
    Completions(lacuna_manual::Completions),
    /// Prints the manual page
    Man(lacuna_manual::Man),
}

impl Cli {
    /// Runs the verb and returns its output.
    pub fn run(&self) -> Result<String> {
        match &self.verb {
            Verb::Convert(v) => v.run(),
            Verb::Inspect(v) => v.run(),
            Verb::GlobalMp(v) => v.run(),
            Verb::Magnitude(v) => v.run(),
            Verb::Run(v) => v.run(),
            Verb::Erk(v) => v.run(),
            Verb::Lamp(v) => v.run(),
            Verb::Columns(v) => v.run(),
            Verb::Cut(v) => v.run(),
            Verb::Groups(v) => v.run(),
            Verb::Channels(v) => v.run(),
            Verb::Pagcp(v) => v.run(),
            Verb::Wanda(v) => v.run(SolverName::Wanda),
            Verb::SparseGpt(v) => v.run(SolverName::SparseGpt),
            Verb::LAdmm(v) => v.run(SolverName::LAdmm),
            Verb::Alps(v) => v.run(SolverName::Alps),
            Verb::Tyr(v) => v.run(),
            Verb::Obs(v) => v.run("obs", Score::Obs, Spread::Even),
            Verb::WandaSp(v) => v.run("wanda-sp", Score::Wanda, Spread::Even),
            Verb::Flap(v) => v.run("flap", Score::Fluctuation, Spread::Ranked),
            Verb::DropBlocks(v) => v.run("drop-blocks", Score::Wanda, Spread::Blocks),
            Verb::Train(v) => v.run(),
            Verb::Eval(v) => v.run(),
            Verb::Generate(v) => v.run(),
            Verb::Export(v) => v.run(),
            Verb::Report(v) => v.run(),
            Verb::Demo(v) => v.run(),
            Verb::Completions(v) => Ok(v.text(Cli::command())),
            Verb::Man(v) => Ok(v.text(Cli::command())?),
        }
    }
}

/// A model to read.
#[derive(Args)]
struct Source {
    /// A Lacuna file, ONNX, GGUF, a Hugging Face folder, or a state dict (.pth, .pt, .th, .safetensors); without one,
    /// the network that --arch names, its weights random
    #[arg(required_unless_present = "arch")]
    model: Option<PathBuf>,
    /// The architecture of a state dict, such as resnet-50, resnet-32, wrn-28-8 or mobilenet-v1 [default: told from
    /// the names of its tensors]
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// The attention heads of a BERT state dict that has no config.json beside it
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Give an encoder the output `sentence_embedding`, where no modules.json says whether it has one
    #[arg(long)]
    sentence: bool,
    /// Run a convolutional network on images of N by N pixels instead of its own size
    #[arg(long, value_name = "N")]
    input_size: Option<usize>,
    /// The seed of random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    init_seed: u64,
}

impl Source {
    fn open(&self) -> Result<Model> {
        let options = lacuna_convert::Options {
            arch: self.arch.clone(),
            heads: self.heads,
            sentence: self.sentence,
            ..Default::default()
        };
        let open = |options: &lacuna_convert::Options| match &self.model {
            Some(path) => lacuna_convert::open(path, options),
            None => lacuna_convert::untrained(options, self.init_seed),
        };
        let model = open(&options)?;
        let (Some(size), [input]) = (self.input_size, model.graph().inputs.as_slice()) else {
            return Ok(model);
        };
        let mut shape = input.shape.clone();
        shape.iter_mut().skip(2).for_each(|d| *d = Dim::Fixed(size));
        Ok(open(&lacuna_convert::Options {
            input: Some(shape),
            ..options
        })?)
    }

    /// The file, or the architecture in its place.
    fn name(&self) -> PathBuf {
        let arch = || self.arch.clone().unwrap_or_default().into();
        self.model.clone().unwrap_or_else(arch)
    }

    /// The table `[model]` of a recipe for this source, without the file.
    fn origin(&self) -> Origin {
        Origin {
            arch: self.arch.clone(),
            heads: self.heads,
            sentence: self.sentence,
            input_size: self.input_size,
            init_seed: if self.model.is_some() {
                0
            } else {
                self.init_seed
            },
            ..Origin::default()
        }
    }

    /// The model of a recipe that lies at `path`.
    fn of_recipe(path: &Path, origin: Option<Origin>) -> Result<Source> {
        let origin = origin
            .filter(|m| m.file.is_some() || m.arch.is_some())
            .context("no model: give `file` or `arch` in the table `[model]`")
            .with_context(|| path.display().to_string())?;
        Ok(Source {
            // Of a path that is absolute the folder is dropped.
            model: origin.file.map(|file| path.with_file_name(file)),
            arch: origin.arch,
            heads: origin.heads,
            sentence: origin.sentence,
            input_size: origin.input_size,
            init_seed: origin.init_seed,
        })
    }

    /// The table `[model]` without the file, where there is anything in it; refuses another model than a recipe was made
    /// for.
    fn checked(&self, recipe: Option<&Origin>, digest: &Option<String>) -> Result<Option<Origin>> {
        let wanted = recipe.and_then(|m| m.sha256.as_ref());
        if let (Some(wanted), Some(found)) = (wanted, digest)
            && wanted != found
        {
            bail!(
                "{}: its SHA-256 is {found}, the recipe was made for {wanted}",
                self.name().display()
            );
        }
        let origin = self.origin();
        Ok((origin != Origin::default()).then_some(origin))
    }

    /// The table `[model]` of a recipe that lies at `path`.
    fn placed(&self, path: &Path, digest: Option<String>) -> Origin {
        Origin {
            file: self.model.as_deref().map(|m| from_recipe(path, m)),
            sha256: digest,
            ..self.origin()
        }
    }

    /// SHA-256 of the content of the file; none of random weights.
    fn digest(&self, model: &Model) -> Result<Option<String>> {
        // A Lacuna file names the source of its own source.
        match (&self.model, model.path()) {
            (Some(_), Some(path)) => Ok(Some(lacuna_convert::sha256(path)?)),
            (Some(_), None) => Ok(model.metadata.source.clone()),
            (None, _) => Ok(None),
        }
    }

    /// Refuses to write over the source.
    fn keep(&self, output: &Path) -> Result<()> {
        self.model
            .as_deref()
            .map_or(Ok(()), |m| refuse_same(m, output))
    }

    /// Bytes of the file; none of random weights.
    fn bytes(&self) -> Result<u64> {
        self.model.as_deref().map_or(Ok(0), file_bytes)
    }
}

/// Where a file lies, from the folder of a recipe where it lies below it.
fn from_recipe(recipe: &Path, file: &Path) -> PathBuf {
    let whole = |p: &Path| std::fs::canonicalize(p).unwrap_or_else(|_| p.to_owned());
    let folder = recipe.parent().filter(|p| !p.as_os_str().is_empty());
    let (file, folder) = (whole(file), whole(folder.unwrap_or(Path::new("."))));
    let below = file.strip_prefix(&folder).map(Path::to_owned);
    below.unwrap_or(file)
}

/// Refuses to write over a file that is read.
fn refuse_same(input: &Path, output: &Path) -> Result<()> {
    let place = std::fs::canonicalize(output);
    if place.is_ok_and(|place| std::fs::canonicalize(input).is_ok_and(|i| i == place)) {
        bail!(
            "{}: is what is read; write to another file",
            output.display()
        );
    }
    Ok(())
}

/// Writes a text file that appears whole.
fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// Replaces a file by these bytes, whole or not at all.
fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let fill = |out: &mut dyn lacuna::model::file::Output| out.write_all(bytes);
    Ok(lacuna::model::file::replace(path, fill, |_| Ok(()))?)
}

/// Bytes of a file, or of the files of a folder.
fn file_bytes(path: &Path) -> Result<u64> {
    let named = || path.display().to_string();
    let metadata = std::fs::metadata(path).with_context(named)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path).with_context(named)? {
        let metadata = entry.and_then(|e| e.metadata()).with_context(named)?;
        sum += if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
    }
    Ok(sum)
}

/// A floating-point dtype by its name in lower case.
fn dtype(name: &str) -> Result<DType, String> {
    let upper = name.to_ascii_uppercase();
    let found = DType::from_name(&upper).filter(|d| d.is_float());
    found.ok_or_else(|| "one of f32, f16, bf16".to_owned())
}

/// An object with `schema` and the fields of `value`, indented.
fn json(value: &impl Serialize) -> Result<String> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        schema: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    let schema = SCHEMA;
    Ok(serde_json::to_string_pretty(&Versioned { schema, value })? + "\n")
}
