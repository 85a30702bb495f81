//! The programs that talk to a device: `ssh` and `adb`.

use super::Finished;
use super::shell::quoted;
use crate::{Error, Result};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;

/// A device, as it is named: `ssh:[user@]host[:port]` or `adb[:serial]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A machine with an ssh server.
    Ssh {
        /// `[user@]host`, or a name from ssh's own configuration.
        host: String,
        /// The port, where it is not ssh's own choice.
        port: Option<u16>,
    },
    /// An Android device.
    Adb {
        /// Its serial number; `None` takes the only one that is connected.
        serial: Option<String>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Ssh { host, port: None } => write!(f, "ssh:{host}"),
            Target::Ssh {
                host,
                port: Some(port),
            } if host.contains(':') => {
                let (user, host) = host.rsplit_once('@').unwrap_or(("", host));
                let at = if user.is_empty() { "" } else { "@" };
                write!(f, "ssh:{user}{at}[{host}]:{port}")
            }
            Target::Ssh {
                host,
                port: Some(port),
            } => write!(f, "ssh:{host}:{port}"),
            Target::Adb { serial: None } => f.write_str("adb"),
            Target::Adb {
                serial: Some(serial),
            } => write!(f, "adb:{serial}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || format!("`{text}`: expected ssh:[user@]host[:port] or adb[:serial]");
        // What begins with a dash would be taken for a flag of the program that gets it.
        let name = |name: &str| match name.is_empty() || name.starts_with('-') {
            true => Err(wrong()),
            false => Ok(name.to_owned()),
        };
        if text == "adb" {
            return Ok(Target::Adb { serial: None });
        }
        if let Some(serial) = text.strip_prefix("adb:") {
            let serial = Some(name(serial)?);
            return Ok(Target::Adb { serial });
        }
        let rest = text.strip_prefix("ssh:").ok_or_else(wrong)?;
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (format!("{}@", name(user)?), host),
            None => (String::new(), rest),
        };
        let (host, port) = match host.strip_prefix('[') {
            Some(inside) => {
                let (host, port) = inside.split_once(']').ok_or_else(wrong)?;
                (
                    host,
                    port.strip_prefix(':').or(port.is_empty().then_some("")),
                )
            }
            // An IPv6 address without brackets has no port.
            None if host.matches(':').count() > 1 => (host, Some("")),
            None => match host.split_once(':') {
                Some((host, "")) => return Err(format!("`{host}:`: a port is missing")),
                Some((host, port)) => (host, Some(port)),
                None => (host, Some("")),
            },
        };
        let port = match port.ok_or_else(wrong)? {
            "" => None,
            port => Some(port.parse().map_err(|_| format!("`{port}` is no port"))?),
        };
        let host = format!("{user}{}", name(host)?);
        Ok(Target::Ssh { host, port })
    }
}

/// How a device is spoken to.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    /// Options of ssh, each after a `-o`.
    options: Vec<String>,
}

impl Link {
    /// Looks for the device, as far as that needs no connection of its own.
    pub fn new(target: &Target, options: &[String]) -> Result<Link> {
        let link = Link {
            target: target.clone(),
            options: options.to_vec(),
        };
        if let Target::Adb { serial } = target {
            link.find(serial.as_deref())?;
        }
        Ok(link)
    }

    /// That one Android device is meant, connected, and lets us in.
    fn find(&self, serial: Option<&str>) -> Result<()> {
        let mut command = Command::new("adb");
        let output = self.done(command.arg("devices").stdin(Stdio::null()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(self.error(format!("`adb devices` failed: {}", said.trim())));
        }
        // `SERIAL<tab>STATE`, after a headline and words of the server's.
        let devices: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|l| l.split_once('\t'))
            .map(|(serial, state)| (serial, state.trim()))
            .collect();
        let list = || {
            let list: Vec<String> = devices.iter().map(|(s, t)| format!("{s} ({t})")).collect();
            match list.is_empty() {
                true => "none is connected".to_owned(),
                false => format!("connected: {}", list.join(", ")),
            }
        };
        let found = match serial {
            Some(serial) => devices.iter().find(|d| d.0 == serial),
            None if devices.len() > 1 => {
                return Err(self.error(format!("which device? adb:SERIAL says; {}", list())));
            }
            None => devices.first(),
        };
        match found {
            None => Err(self.error(format!("no such device; {}", list()))),
            Some((_, "device")) => Ok(()),
            Some((serial, state)) => Err(self.error(format!(
                "{serial} is {state}; on the device, allow this computer to debug it"
            ))),
        }
    }

    /// An error of this device.
    pub fn error(&self, what: String) -> Error {
        Error::Device {
            target: self.target.to_string(),
            what,
        }
    }

    /// What a shell that could not be used ended with.
    pub fn refused(&self, code: Option<i32>, said: &str) -> Error {
        let said = match said.trim() {
            "" => "it said nothing",
            said => said,
        };
        match (&self.target, code) {
            (Target::Ssh { .. }, Some(255)) => self.error(format!("cannot be reached: {said}")),
            _ => self.error(format!("no temporary folder could be made there: {said}")),
        }
    }

    /// Where temporary folders go, for the device's shell to expand.
    pub fn default_folder(&self) -> &'static str {
        match self.target {
            Target::Ssh { .. } => "\"${TMPDIR:-/tmp}\"",
            Target::Adb { .. } => "/data/local/tmp",
        }
    }

    /// ssh with everything up to the remote command.
    fn ssh(&self, host: &str, port: Option<u16>) -> Command {
        let mut command = Command::new("ssh");
        // The first value of an option counts: the caller's before ours.
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
            "LogLevel=ERROR",
        ] {
            command.arg("-o").arg(option);
        }
        if let Some(port) = port {
            command.arg("-p").arg(port.to_string());
        }
        command.args(["-T", "--", host]);
        command
    }

    /// adb with the device named.
    fn adb(serial: Option<&str>) -> Command {
        let mut command = Command::new("adb");
        if let Some(serial) = serial {
            command.args(["-s", serial]);
        }
        command
    }

    /// The command that runs a script there, and the script where it goes to standard input. An ssh host's own shell
    /// may be of any kind, so that it is only told to start `sh`.
    fn shell(&self, script: &str) -> (Command, Option<String>) {
        match &self.target {
            Target::Ssh { host, port } => {
                let mut command = self.ssh(host, *port);
                command.arg("sh");
                (command, Some(script.to_owned()))
            }
            Target::Adb { serial } => {
                let mut command = Link::adb(serial.as_deref());
                command.args(["shell", script]);
                (command, None)
            }
        }
    }

    /// Runs a script to its end.
    pub fn sh(&self, script: &str) -> Result<Finished> {
        let (mut command, input) = self.shell(script);
        let output = match input {
            None => self.done(command.stdin(Stdio::null()))?,
            Some(input) => {
                let mut child = self.started(command.stdin(Stdio::piped()))?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A connection that broke says so at the end.
                    let _ = stdin.write_all(input.as_bytes());
                }
                child
                    .wait_with_output()
                    .map_err(|e| self.error(e.to_string()))?
            }
        };
        self.finished(output)
    }

    fn finished(&self, output: Output) -> Result<Finished> {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().unwrap_or(128);
        if matches!(self.target, Target::Ssh { .. }) && code == 255 {
            return Err(self.error(format!("the connection broke: {}", stderr.trim())));
        }
        Ok(Finished {
            code,
            stdout: output.stdout,
            stderr,
        })
    }

    /// Starts a script whose standard input stays open.
    pub fn hold(&self, script: &str) -> Result<Child> {
        let (mut command, input) = self.shell(script);
        let mut child = self.started(command.stdin(Stdio::piped()))?;
        if let (Some(input), Some(stdin)) = (input, child.stdin.as_mut()) {
            let _ = stdin.write_all(input.as_bytes());
            let _ = stdin.flush();
        }
        Ok(child)
    }

    /// Writes a file there, under a name without characters that a shell sees anything in.
    pub fn push(&self, file: &Path, there: &str) -> Result<()> {
        let output = match &self.target {
            Target::Ssh { host, port } => {
                let opened = File::open(file).map_err(|source| lacuna::Error::Io {
                    path: file.to_path_buf(),
                    action: "read",
                    source,
                })?;
                let mut command = self.ssh(host, *port);
                command.arg(format!("cat > {there}"));
                self.done(command.stdin(opened))?
            }
            Target::Adb { serial } => {
                let mut command = Link::adb(serial.as_deref());
                command.arg("push").arg(file).arg(there);
                self.done(command.stdin(Stdio::null()))?
            }
        };
        match output.status.success() {
            true => Ok(()),
            false => Err(self.error(format!(
                "{} could not be pushed: {}",
                file.display(),
                said(&output)
            ))),
        }
    }

    /// Fetches a file.
    pub fn pull(&self, there: &str, file: &Path) -> Result<()> {
        let failed =
            |what: &str| self.error(format!("{} could not be fetched: {what}", file.display()));
        match &self.target {
            Target::Ssh { .. } => {
                let finished = self.sh(&format!("cat < {}\n", quoted(there)))?;
                if finished.code != 0 {
                    return Err(failed(finished.stderr.trim()));
                }
                std::fs::write(file, finished.stdout).map_err(|source| lacuna::Error::Io {
                    path: file.to_path_buf(),
                    action: "write",
                    source,
                })?;
            }
            Target::Adb { serial } => {
                let mut command = Link::adb(serial.as_deref());
                command.arg("pull").arg(there).arg(file);
                let output = self.done(command.stdin(Stdio::null()))?;
                if !output.status.success() {
                    return Err(failed(&said(&output)));
                }
            }
        }
        Ok(())
    }

    fn started(&self, command: &mut Command) -> Result<Child> {
        let started = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        started.map_err(|e| {
            let program = command.get_program().to_string_lossy().into_owned();
            self.error(match e.kind() {
                ErrorKind::NotFound => format!("there is no program `{program}` here"),
                _ => format!("{program}: {e}"),
            })
        })
    }

    fn done(&self, command: &mut Command) -> Result<Output> {
        let child = self.started(command)?;
        child
            .wait_with_output()
            .map_err(|e| self.error(e.to_string()))
    }
}

/// adb says what went wrong on either.
fn said(output: &Output) -> String {
    let texts = [&output.stderr, &output.stdout];
    let texts = texts.map(|t| String::from_utf8_lossy(t).trim().to_owned());
    let found = texts.into_iter().find(|t| !t.is_empty());
    found.unwrap_or_else(|| format!("{}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_one_way() {
        let ssh = |host: &str, port| Target::Ssh {
            host: host.into(),
            port,
        };
        for (text, expected) in [
            ("ssh:pi", ssh("pi", None)),
            ("ssh:me@pi.local:2222", ssh("me@pi.local", Some(2222))),
            ("ssh:me@[fe80::1]:22", ssh("me@fe80::1", Some(22))),
            ("ssh:fe80::1", ssh("fe80::1", None)),
            ("adb", Target::Adb { serial: None }),
            (
                "adb:192.168.1.5:5555",
                Target::Adb {
                    serial: Some("192.168.1.5:5555".into()),
                },
            ),
        ] {
            let found: Target = text.parse().unwrap();
            assert_eq!(found, expected);
            assert_eq!(found.to_string(), text);
        }
        for wrong in [
            "pi",
            "ssh:",
            "ssh:-oProxyCommand=x",
            "ssh:me@",
            "ssh:@pi",
            "ssh:pi:",
            "ssh:pi:70000",
            "ssh:[fe80::1",
            "ssh:[::1]x",
            "adb:",
            "adb:-s",
            "usb",
        ] {
            let error = wrong.parse::<Target>().unwrap_err();
            assert!(error.contains('`'), "{wrong}: {error}");
        }
    }
}
