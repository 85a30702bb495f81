//! Several measurements, each a process of its own, here or on another machine.

use super::args::Args;
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_bench::on::{Device, Finished, Options};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// So close to where it was at first a processor has cooled down, in degrees.
const CLOSE: f64 = 3.0;

/// What an audit ends with that found a choice behind.
const BEHIND: i32 = 2;

/// Where the program runs.
enum Host {
    Here,
    There(Box<Device>),
}

impl Host {
    /// Where the program finds a file.
    fn file(&mut self, path: &Path, say: impl FnMut(&str)) -> Result<String> {
        Ok(match self {
            Host::Here => text(path)?,
            Host::There(device) => device.push(path, say)?,
        })
    }

    fn model(&mut self, path: &Path, say: impl FnMut(&str)) -> Result<String> {
        Ok(match self {
            Host::Here => text(path)?,
            Host::There(device) => device.push_model(path, say)?,
        })
    }

    /// Where the program writes a file.
    fn result(&mut self, path: &Path) -> Result<String> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("cannot write {}: no such folder", path.display());
        }
        Ok(match self {
            Host::Here => text(path)?,
            Host::There(device) => device.output(path)?,
        })
    }

    fn run(&self, arguments: &[String]) -> Result<Finished> {
        match self {
            Host::There(device) => Ok(device.run(arguments)?),
            Host::Here => {
                let program = std::env::current_exe().context("where this program lies")?;
                let mut command = Command::new(program);
                let output = command.args(arguments).stdin(Stdio::null()).output()?;
                Ok(Finished {
                    code: output.status.code().unwrap_or(128),
                    stdout: output.stdout,
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                })
            }
        }
    }

    /// The temperature, once it is no higher than `cool_to` or the time is over.
    fn celsius(&self, cool_to: Option<[f64; 2]>) -> Result<Option<f64>> {
        let mut arguments = vec!["state".to_owned()];
        if let Some([celsius, seconds]) = cool_to {
            let pair = [("--cool-to", celsius), ("--within", seconds)];
            arguments.extend(
                pair.iter()
                    .flat_map(|(k, v)| [k.to_string(), v.to_string()]),
            );
        }
        let finished = self.run(&arguments)?;
        let value: Option<Value> = serde_json::from_slice(&finished.stdout).ok();
        match value.filter(|_| finished.code == 0) {
            Some(value) => Ok(value["state"]["celsius"].as_f64()),
            None => bail!(
                "the program does not run there, or is another version (status {}): {}",
                finished.code,
                finished.stderr.trim()
            ),
        }
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{}: a name that is not UTF-8", path.display()))
}

/// Measures every model that `args` names, one after the other.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bar = ProgressBar::new_spinner();
    let say = |stage: &str| {
        bar.set_message(stage.to_owned());
        bar.tick();
    };
    let one = [
        ("--csv", &args.csv),
        ("--html", &args.html),
        ("--table", &args.table),
        ("--profile-out", &args.profile_out),
    ];
    if let (true, Some((flag, _))) = (args.models.len() > 1, one.iter().find(|f| f.1.is_some())) {
        bail!(
            "{flag} names one file, and {} models are given",
            args.models.len()
        );
    }
    if let Some(path) = args.models.iter().find(|p| !p.exists()) {
        bail!("{}: no such file", path.display());
    }
    let mut host = match &args.on {
        None => Host::Here,
        Some(target) => {
            let remote = args.pack_cache.as_deref();
            if let Some(folder) = remote.filter(|p| !text(p).is_ok_and(|t| t.starts_with('/'))) {
                bail!(
                    "--pack-cache {}: with --on it is a folder of that machine, from its root on",
                    folder.display()
                );
            }
            let options = Options {
                binary: args.on_binary.clone(),
                folder: args.on_folder.clone(),
                ssh: args.ssh_option.clone(),
            };
            Host::There(Box::new(Device::connect(target, &options, say)?))
        }
    };
    let at = args.on.as_ref().map_or("here".into(), |t| t.to_string());
    let at_first = host.celsius(None).with_context(|| at.clone())?;
    let mut last = 0;
    let models: Vec<Option<&PathBuf>> = match args.models.is_empty() {
        true => vec![None],
        false => args.models.iter().map(Some).collect(),
    };
    for (i, model) in models.into_iter().enumerate() {
        if let Some(seconds) = args.cool_down.filter(|_| i > 0) {
            say("cool down");
            match at_first {
                None => std::thread::sleep(Duration::from_secs_f64(seconds)),
                Some(first) => {
                    let now = host.celsius(Some([first + CLOSE, seconds]))?;
                    if let Some(now) = now.filter(|now| *now > first + CLOSE) {
                        let late = format!("{now:.0} °C after {seconds} s, {first:.0} °C at first");
                        bar.suspend(|| eprintln!("{at}: still {late}"));
                    }
                }
            }
        }
        let (arguments, results) = arguments(args, model, &mut host, say)?;
        let shown = model.map_or(String::new(), |m| m.display().to_string());
        say(&format!("{at}: {shown}"));
        let finished = host.run(&arguments)?;
        let mut said = finished.stderr.clone();
        let mut stdout = finished.stdout;
        if let Host::There(device) = &host {
            said = device.here(&said);
            if args.table.is_some() {
                stdout = device.here(&String::from_utf8_lossy(&stdout)).into_bytes();
            }
        }
        let audit = args.audit && finished.code == BEHIND && !stdout.is_empty();
        if finished.code != 0 && !audit {
            bail!(
                "{at}: the run ended with status {}: {}",
                finished.code,
                said.trim()
            );
        }
        if let Host::There(device) = &host {
            for result in &results {
                device.pull(result)?;
            }
        }
        bar.suspend(|| {
            eprint!("{said}");
            std::io::stdout().write_all(&stdout)
        })?;
        last = last.max(finished.code);
    }
    bar.finish_and_clear();
    Ok(ExitCode::from(u8::try_from(last).unwrap_or(1)))
}

/// The command line of one measurement, with every file where the program finds it, and the files that it writes.
fn arguments(
    args: &Args,
    model: Option<&PathBuf>,
    host: &mut Host,
    say: impl FnMut(&str) + Copy,
) -> Result<(Vec<String>, Vec<PathBuf>)> {
    // Whole, so that no flag is forgotten.
    let Args {
        verb: _,
        models: _,
        device,
        cuda_tune,
        threads,
        warmup,
        min_time_ms,
        isa,
        dense,
        round_inputs,
        batch,
        prompt,
        generate,
        depth,
        layers,
        no_layers,
        json,
        audit,
        tune,
        tuned,
        table,
        pack_cache,
        csv,
        html,
        profile,
        profile_out,
        on: _,
        on_binary: _,
        on_folder: _,
        ssh_option: _,
        cool_down: _,
        shown_as: _,
    } = args;
    let mut list: Vec<String> = Vec::new();
    let mut put = |flag: &str, value: String| list.push(format!("--{flag}={value}"));
    for (flag, value) in [
        ("threads", threads),
        ("warmup", warmup),
        ("batch", batch),
        ("prompt", prompt),
        ("generate", generate),
        ("depth", depth),
    ] {
        put(flag, value.to_string());
    }
    put("min-time-ms", min_time_ms.to_string());
    if *device != lacuna::DeviceName::Cpu {
        put("device", device.to_string());
    }
    if let Some(isa) = isa {
        put("isa", isa.clone());
    }
    if let Some(round) = round_inputs {
        put("round-inputs", round.to_string());
    }
    if let Some(folder) = pack_cache {
        put("pack-cache", text(folder)?);
    }
    for (flag, path) in [("profile", profile), ("tuned", tuned)] {
        if let Some(path) = path {
            put(flag, host.file(path, say)?);
        }
    }
    let mut results = Vec::new();
    for (flag, path) in [
        ("tune", tune),
        ("table", table),
        ("csv", csv),
        ("html", html),
        ("profile-out", profile_out),
    ] {
        let Some(path) = path else { continue };
        // What was remembered before is added to.
        if flag == "tune" && path.exists() {
            host.file(path, say)?;
        }
        put(flag, host.result(path)?);
        results.push(path.clone());
    }
    for (flag, given) in [
        ("dense", dense),
        ("layers", layers),
        ("no-layers", no_layers),
        ("json", json),
        ("audit", audit),
        ("cuda-tune", cuda_tune),
    ] {
        if *given {
            list.push(format!("--{flag}"));
        }
    }
    if let Some(model) = model {
        list.push(format!("--shown-as={}", text(model)?));
        list.push("--".into());
        list.push(host.model(model, say)?);
    }
    Ok((list, results))
}
