//! A run on another machine, from the desk: the program and its files are pushed into a temporary folder there, it
//! runs, and what it prints and writes comes back.
//!
//! The system's own programs `ssh` and `adb` do the talking. What is pushed goes away with the connection, however
//! that ends: a shell on the device holds the folder for as long as this end keeps its standard input open.

mod elf;
mod link;
mod shell;

pub use link::Target;
pub use shell::quoted;

use crate::{Error, Result};
use elf::Elf;
use link::Link;
use shell::Holder;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

/// The program's name on the device.
const PROGRAM: &str = "lacuna-bench";

/// Bytes that are to stay free on the device.
const SPARE: u64 = 4 << 20;

/// How a device is used.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The program for the device; `None` takes the one that runs here.
    pub binary: Option<PathBuf>,
    /// The folder that the temporary one is made in; `None` takes `$TMPDIR` or `/tmp` of an ssh host, and
    /// `/data/local/tmp` of an Android device.
    pub folder: Option<String>,
    /// Options of ssh, as they follow its `-o`.
    pub ssh: Vec<String>,
}

/// What a program did on a device.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status; of a signal 128 and its number.
    pub code: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: String,
}

/// A device with the program on it, in a temporary folder that goes away with this value.
pub struct Device {
    link: Link,
    holder: Holder,
    free: u64,
    /// Files that are there, by their places here.
    there: BTreeMap<PathBuf, There>,
    /// Folders here, each with a folder of its own there.
    folders: Vec<PathBuf>,
    pushed: usize,
}

/// A file on the device.
struct There {
    place: String,
    /// Length and time of change of the file here when it was pushed; `None` of what is written there.
    state: Option<(u64, Option<SystemTime>)>,
}

impl Device {
    /// Connects, makes the temporary folder, and pushes the program, once it is known to be for such a processor.
    ///
    /// # Errors
    /// When `ssh` or `adb` is missing, the device cannot be reached, its processor is another one than the program's,
    /// its loader is missing, or the space is.
    pub fn connect(
        target: &Target,
        options: &Options,
        mut progress: impl FnMut(&str),
    ) -> Result<Device> {
        let binary = match &options.binary {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(|e| Error::Option(format!("where this program lies is not known: {e}")))?,
        };
        let elf = Elf::of_file(&binary)?;
        progress(&format!("connect to {target}"));
        let link = Link::new(target, &options.ssh)?;
        let holder = Holder::start(&link, options.folder.as_deref(), elf.interpreter.as_deref())?;
        let refuse = |what: String| Err(link.error(what));
        if !elf.runs_on(&holder.machine) {
            return refuse(format!(
                "{} is for {}, the device is {}; name a program for it with --on-binary",
                binary.display(),
                elf.machine_name(),
                holder.machine
            ));
        }
        if let Some(loader) = &holder.missing {
            return refuse(format!(
                "{} needs the loader {loader}, which the device does not have; name a program for its C library, or a \
                 statically linked one, with --on-binary",
                binary.display()
            ));
        }
        let mut device = Device {
            free: holder.free,
            link,
            holder,
            there: BTreeMap::new(),
            folders: Vec::new(),
            pushed: 0,
        };
        device.place(&[(binary, PROGRAM.to_owned())], &mut progress)?;
        device.script(&format!("chmod 700 {PROGRAM}"))?;
        Ok(device)
    }

    /// The processor, as `uname -m` names it there.
    pub fn machine(&self) -> &str {
        &self.holder.machine
    }

    /// Pushes a file, where it is not there yet; its place, relative to the folder that the program runs in.
    ///
    /// # Errors
    /// When it cannot be read here or not be written there.
    pub fn push(&mut self, file: &Path, progress: impl FnMut(&str)) -> Result<String> {
        self.push_all(file, &[file.to_path_buf()], progress)
    }

    /// Pushes a model: every file of it, with the same places beside each other.
    ///
    /// # Errors
    /// As [`push`](Device::push), and when the model's format is not known.
    pub fn push_model(&mut self, model: &Path, progress: impl FnMut(&str)) -> Result<String> {
        let files = lacuna_convert::files(model)?;
        self.push_all(model, &files, progress)
    }

    fn push_all(
        &mut self,
        named: &Path,
        files: &[PathBuf],
        mut progress: impl FnMut(&str),
    ) -> Result<String> {
        let (root, place) = self.placed(named)?;
        let mut list = Vec::new();
        for file in files {
            let inside = absolute(file)?;
            let inside = inside.strip_prefix(&root).map_err(|_| {
                Error::Option(format!(
                    "{} does not lie beside {}",
                    file.display(),
                    named.display()
                ))
            })?;
            let folder = place.split('/').next().unwrap_or_default();
            list.push((file.clone(), format!("{folder}/{}", utf8(inside)?)));
        }
        self.place(&list, &mut progress)?;
        Ok(place)
    }

    /// Where a result is to be written on the device, to be fetched with [`pull`](Device::pull).
    ///
    /// # Errors
    /// When the name cannot be one there.
    pub fn output(&mut self, file: &Path) -> Result<String> {
        let (root, place) = self.placed(file)?;
        let folder = place.split('/').next().unwrap_or_default();
        self.script(&format!("mkdir -p {}", quoted(folder)))?;
        let file = root.join(file.file_name().unwrap_or_default());
        let there = There {
            place: place.clone(),
            state: None,
        };
        self.there.insert(file, there);
        Ok(place)
    }

    /// The folder here that a file lies in, and the file's place there.
    fn placed(&mut self, file: &Path) -> Result<(PathBuf, String)> {
        let file = absolute(file)?;
        let (Some(root), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(Error::Option(format!("{}: not a file", file.display())));
        };
        let known = self.folders.iter().position(|f| f == root);
        let index = known.unwrap_or_else(|| {
            self.folders.push(root.to_path_buf());
            self.folders.len() - 1
        });
        Ok((
            root.to_path_buf(),
            format!("at{index}/{}", utf8(Path::new(name))?),
        ))
    }

    /// Pushes what is not there or has changed since, each under a plain name, and moves it to its place.
    fn place(&mut self, files: &[(PathBuf, String)], progress: &mut dyn FnMut(&str)) -> Result<()> {
        let mut script = String::new();
        for (file, place) in files {
            let here = absolute(file)?;
            let io = |source| {
                Error::from(lacuna::Error::Io {
                    path: file.clone(),
                    action: "read",
                    source,
                })
            };
            let metadata = std::fs::metadata(file).map_err(io)?;
            let state = (metadata.len(), metadata.modified().ok());
            match self.there.get(&here) {
                Some(there) if there.state.is_none_or(|s| s == state) => continue,
                _ => {}
            }
            if state.0.saturating_add(SPARE) > self.free {
                return Err(self.link.error(format!(
                    "no space for {}: {} bytes, of which {} are free in {}; --on-folder names another place",
                    file.display(),
                    state.0,
                    self.free,
                    self.holder.folder
                )));
            }
            progress(&format!("push {} ({} bytes)", file.display(), state.0));
            let plain = format!("push.{}", self.pushed);
            self.pushed += 1;
            self.link
                .push(file, &format!("{}/{plain}", self.holder.folder))?;
            self.free -= state.0;
            // What was cut short says so before it is run.
            script += &format!(
                "[ \"$(wc -c < {plain})\" -eq {} ] || {{ echo {} >&2; exit 1; }}\n",
                state.0,
                quoted(&format!("{}: cut short on the way", file.display()))
            );
            if let Some((folder, _)) = place.rsplit_once('/') {
                script += &format!("mkdir -p {} || exit 1\n", quoted(folder));
            }
            script += &format!("mv {plain} {} || exit 1\n", quoted(place));
            self.there.insert(
                here,
                There {
                    place: place.clone(),
                    state: Some(state),
                },
            );
        }
        match script.is_empty() {
            true => Ok(()),
            false => self.script(&script).map(drop),
        }
    }

    /// Runs a script in the folder on the device, which must succeed.
    fn script(&self, script: &str) -> Result<Vec<u8>> {
        let finished = self.link.sh(&format!(
            "cd {} || exit 1\n{script}\n",
            quoted(&self.holder.folder)
        ))?;
        match finished.code {
            0 => Ok(finished.stdout),
            code => Err(self.link.error(format!(
                "a command failed there (status {code}): {}",
                finished.stderr.trim()
            ))),
        }
    }

    /// Runs the program with these arguments. What it says names files as they are named there;
    /// [`here`](Device::here) turns that back.
    ///
    /// # Errors
    /// When the connection breaks; not when the program fails.
    pub fn run(&self, arguments: &[String]) -> Result<Finished> {
        let arguments: Vec<String> = arguments.iter().map(|a| quoted(a)).collect();
        // Whoever removes the folder ends the program, too.
        self.link.sh(&format!(
            "cd {} || exit 1\n./{PROGRAM} {} </dev/null & p=$!; echo $p > pid; wait $p; s=$?; rm -f pid; exit $s\n",
            quoted(&self.holder.folder),
            arguments.join(" ")
        ))
    }

    /// Fetches a result into its place here: beside it first, then renamed.
    ///
    /// # Errors
    /// When it is not there, or cannot be written here.
    pub fn pull(&self, file: &Path) -> Result<()> {
        let there = self.there.get(&absolute(file)?);
        let there =
            there.ok_or_else(|| Error::Option(format!("{}: not asked for", file.display())))?;
        let mut beside = file.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = PathBuf::from(beside);
        let place = format!("{}/{}", self.holder.folder, there.place);
        let done = self.link.pull(&place, &beside).and_then(|()| {
            std::fs::rename(&beside, file).map_err(|source| {
                Error::from(lacuna::Error::Io {
                    path: file.to_path_buf(),
                    action: "write",
                    source,
                })
            })
        });
        if done.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        done
    }

    /// A text with the names that files have there put back to those they have here.
    pub fn here(&self, text: &str) -> String {
        let mut places: Vec<_> = self.there.iter().collect();
        places.sort_by_key(|(_, t)| std::cmp::Reverse(t.place.len()));
        places.iter().fold(text.to_owned(), |text, (here, there)| {
            match there.place.contains('/') {
                true => text.replace(&there.place, &here.display().to_string()),
                false => text,
            }
        })
    }
}

/// A path without `.`, as far as that needs no look at the disk; one that ends in nothing or `..` is looked up.
fn absolute(path: &Path) -> Result<PathBuf> {
    let found = match path.components().next_back() {
        Some(Component::Normal(_)) => std::path::absolute(path),
        _ => path.canonicalize(),
    };
    found.map_err(|source| {
        Error::from(lacuna::Error::Io {
            path: path.to_path_buf(),
            action: "open",
            source,
        })
    })
}

fn utf8(path: &Path) -> Result<String> {
    let parts: Option<Vec<&str>> = path.components().map(|c| c.as_os_str().to_str()).collect();
    parts.map(|p| p.join("/")).ok_or_else(|| {
        Error::Option(format!(
            "{}: a name that is not UTF-8 cannot be carried over",
            path.display()
        ))
    })
}
