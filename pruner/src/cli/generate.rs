//! `prune generate`.

use super::{Source, json};
use anyhow::{Context, Result};
use clap::Args;
use lacuna::{
    Decoder, DecoderOptions, DeviceName, GenerateOptions, Generated, Message, Model, Sampling,
    Stop, TextStream, Tokenizer,
};
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// The text goes to stdout as it is made, how fast it was made to stderr.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    source: Source,
    /// The text to continue, or with --chat what the user says
    #[arg(
        long,
        short,
        value_name = "TEXT",
        required_unless_present = "prompt_file"
    )]
    prompt: Option<String>,
    /// A file that holds the prompt
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,
    /// With --chat: what the system says first
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tokens at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 takes the most likely token each time
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens that hold this share of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Equal seeds give equal texts
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End the text before this; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not end at the model's end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Tokens of the prompt that are processed at a time; 0 takes 128
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// What to run on: cpu, or cuda or cuda:N, a GPU of NVIDIA; with ",cpu" behind it the processor where that fails.
    /// --threads, --isa and --round-inputs are for processors
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceName,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Instruction set: scalar, neon, neondot, neonfhm, neonbf16, avx2, avx512, avx512vbmi2, avx512bf16 [default: the best one here]
    #[arg(long)]
    isa: Option<String>,
    /// Run every weight dense
    #[arg(long)]
    dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are [default: with
    /// avx512bf16]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    round_inputs: Option<bool>,
    /// Print JSON at the end instead of the text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: PathBuf,
    prompt: String,
    prompt_ids: Vec<u32>,
    text: String,
    tokens: Vec<u32>,
    stop: String,
    first_token_ms: f64,
    decode_tps: f64,
    /// The GPU; on a processor threads and instruction set are said.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isa: Option<String>,
}

/// Where a text is made.
enum Writes {
    Cpu(Box<Decoder>),
    #[cfg(feature = "gpu")]
    Gpu(Box<lacuna::cuda::DeviceDecoder>),
}

impl Writes {
    fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> lacuna::Result<Generated> {
        match self {
            Writes::Cpu(decoder) => decoder.generate(prompt, options, on_token),
            #[cfg(feature = "gpu")]
            Writes::Gpu(decoder) => decoder.generate(prompt, options, on_token),
        }
    }

    fn gpu(&self) -> Option<String> {
        match self {
            Writes::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            Writes::Gpu(decoder) => Some(decoder.device()),
        }
    }

    fn cpu(&self) -> Option<&Decoder> {
        match self {
            Writes::Cpu(decoder) => Some(decoder),
            #[cfg(feature = "gpu")]
            Writes::Gpu(_) => None,
        }
    }
}

impl Generate {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        let tokenizer = Tokenizer::new(&model)?;
        let said = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .with_context(|| format!("{}: cannot read the prompt", path.display()))?,
            (None, None) => String::new(),
        };
        let prompt = match self.chat {
            true => tokenizer.chat(&self.messages(said))?,
            false => said,
        };
        // A chat template writes the special tokens itself.
        let ids = tokenizer.encode(&prompt, !self.chat)?;
        let mut decoder = self.decoder(&model)?;
        let eos = model.text.as_ref().map(|t| t.eos.clone());
        let options = GenerateOptions {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
            },
            max_tokens: self.max_tokens,
            stop: match self.ignore_eos {
                true => Vec::new(),
                false => eos.unwrap_or_default(),
            },
        };
        let mut writer = Writer::new(tokenizer.stream(), &self.stop, !self.json);
        let mut failed = None;
        let start = Instant::now();
        let mut first = None;
        let generated = decoder.generate(&ids, &options, |token| {
            first.get_or_insert_with(|| start.elapsed());
            match writer.push(token) {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(error) = failed {
            return Err(error);
        }
        let text = writer.finish()?;
        let first = first.unwrap_or_default().as_secs_f64();
        let decoded = generated.tokens.len().saturating_sub(1);
        let report = Report {
            model: self.source.name(),
            prompt,
            prompt_ids: ids,
            text,
            stop: match generated.stop {
                Stop::Token(t) => format!("token {t}"),
                Stop::Length => "length".into(),
                Stop::Capacity => "capacity".into(),
                Stop::Callback => "stop text".into(),
            },
            tokens: generated.tokens,
            first_token_ms: first * 1e3,
            decode_tps: decoded as f64 / (seconds - first).max(1e-9),
            device: decoder.gpu(),
            threads: decoder.cpu().map(Decoder::threads),
            isa: decoder.cpu().map(|d| d.isa().to_owned()),
        };
        if self.json {
            return json(&report);
        }
        eprintln!(
            "\n{} prompt tokens, first token after {:.0} ms; {} tokens, {:.1} tokens/s; {}; ended by {}",
            report.prompt_ids.len(),
            report.first_token_ms,
            report.tokens.len(),
            report.decode_tps,
            match (&report.device, &report.threads, &report.isa) {
                (None, Some(threads), Some(isa)) => format!("{threads} threads, {isa}"),
                (device, ..) => device.clone().unwrap_or_default(),
            },
            report.stop,
        );
        Ok("\n".into())
    }

    fn decoder(&self, model: &Model) -> Result<Writes> {
        if let DeviceName::Cuda { ordinal, or_cpu } = self.device {
            match self.on_gpu(model, ordinal) {
                Err(e) if or_cpu => eprintln!("{e:#}; on the processor instead"),
                other => return other,
            }
        }
        let options = DecoderOptions {
            threads: self.threads,
            isa: self.isa.clone(),
            dense: self.dense,
            round_inputs: self.round_inputs,
            chunk: self.chunk,
            ..DecoderOptions::default()
        };
        Ok(Writes::Cpu(Box::new(Decoder::new(model, options)?)))
    }

    #[cfg(feature = "gpu")]
    fn on_gpu(&self, model: &Model, ordinal: usize) -> Result<Writes> {
        use lacuna::cuda::{DeviceDecoder, DeviceDecoderOptions, DeviceOptions, Gpu};
        let plan = DeviceOptions {
            dense: self.dense,
            ..DeviceOptions::default()
        };
        let options = DeviceDecoderOptions {
            plan,
            capacity: 0,
            chunk: self.chunk,
        };
        let gpu = Box::new(Gpu::open(ordinal)?);
        Ok(Writes::Gpu(Box::new(DeviceDecoder::new(
            model, gpu, &options,
        )?)))
    }

    #[cfg(not(feature = "gpu"))]
    fn on_gpu(&self, _: &Model, _: usize) -> Result<Writes> {
        anyhow::bail!("this prune was built without its feature gpu")
    }

    fn messages(&self, said: String) -> Vec<Message> {
        let message = |role: &str, content: String| Message {
            role: role.into(),
            content,
        };
        let system = self.system.iter().map(|s| message("system", s.clone()));
        system.chain([message("user", said)]).collect()
    }
}

/// Writes text as it comes, but holds back what may be the start of a stop text.
struct Writer<'t> {
    stream: Option<TextStream<&'t Tokenizer>>,
    stop: &'t [String],
    text: String,
    written: usize,
    live: bool,
}

impl<'t> Writer<'t> {
    fn new(stream: TextStream<&'t Tokenizer>, stop: &'t [String], live: bool) -> Writer<'t> {
        Writer {
            stream: Some(stream),
            stop,
            text: String::new(),
            written: 0,
            live,
        }
    }

    /// Takes one more token; `false` once a stop text stands in the text.
    fn push(&mut self, token: u32) -> Result<bool> {
        let Some(stream) = &mut self.stream else {
            return Ok(false);
        };
        let piece = stream.push(token)?;
        self.take(&piece)
    }

    fn take(&mut self, piece: &str) -> Result<bool> {
        self.text += piece;
        let stops = || self.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops().filter_map(|s| self.text.find(s.as_str())).min() {
            self.text.truncate(at);
            self.stream = None;
            self.write(at)?;
            return Ok(false);
        }
        let longest = stops().map(|s| s.len()).max().unwrap_or(0);
        let from = self.text.len().saturating_sub(longest);
        let held = (from..self.text.len())
            .filter(|&i| self.text.is_char_boundary(i))
            .find(|&i| stops().any(|s| s.starts_with(&self.text[i..])));
        self.write(held.unwrap_or(self.text.len()))?;
        Ok(true)
    }

    fn write(&mut self, to: usize) -> Result<()> {
        if self.live && to > self.written {
            let mut out = std::io::stdout().lock();
            out.write_all(&self.text.as_bytes()[self.written..to])?;
            out.flush()?;
        }
        self.written = self.written.max(to);
        Ok(())
    }

    /// Writes what was held back and returns the whole text.
    fn finish(mut self) -> Result<String> {
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish()?;
            self.take(&rest)?;
        }
        self.write(self.text.len())?;
        Ok(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(stop: &[String]) -> Writer<'_> {
        Writer {
            stream: None,
            stop,
            text: String::new(),
            written: 0,
            live: false,
        }
    }

    #[test]
    fn the_start_of_a_stop_text_is_held_back_and_the_stop_text_left_out() {
        let stop = ["\n\nUser:".to_owned(), "END".to_owned()];
        let mut w = writer(&stop);
        assert!(w.take("Hello\n").unwrap());
        assert_eq!(w.written, 5);
        assert!(w.take("you E").unwrap());
        assert_eq!(w.written, w.text.len() - 1);
        assert!(w.take("N").unwrap());
        assert!(!w.take("D of it").unwrap());
        assert_eq!(w.finish().unwrap(), "Hello\nyou ");
    }

    #[test]
    fn what_was_held_back_in_vain_is_written_at_the_end() {
        let stop = ["éND".to_owned()];
        let mut w = writer(&stop);
        assert!(w.take("a é").unwrap());
        assert_eq!(w.written, 2);
        assert_eq!(w.finish().unwrap(), "a é");
    }
}
