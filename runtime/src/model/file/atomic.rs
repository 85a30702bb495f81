//! A file appears whole under its name, or not at all.

use crate::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A temporary file, removed unless it was renamed.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where a file's content goes.
pub trait Output: Write + Seek + Send {}

impl Output for BufWriter<File> {}

/// Writes `target` through a temporary file beside it: `fill` writes, the file is synced, `check`
/// reads it back, and only then it takes the name. On any failure what was there before stays.
/// Where `target` is a symbolic link the file that it points to is replaced. What a killed writer of `target` left
/// beside it is removed.
///
/// # Errors
/// When the system refuses, `target` is a folder, or `check` fails.
pub fn replace(
    target: &Path,
    fill: impl FnOnce(&mut dyn Output) -> std::io::Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let io = |action: &'static str| {
        move |source| Error::Io {
            path: target.to_path_buf(),
            action,
            source,
        }
    };
    let place = fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
    if place.is_dir() {
        return Err(Error::File {
            path: target.to_path_buf(),
            what: "is a folder; name a file to write".into(),
        });
    }
    let Some(name) = place.file_name() else {
        return Err(Error::File {
            path: target.to_path_buf(),
            what: "names no file to write".into(),
        });
    };
    let folder = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };

    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    sweep(folder, hidden.as_encoded_bytes());
    hidden.push(format!(
        "{}.{}.tmp",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    let path = folder.join(hidden);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(io("create a temporary file beside"))?;
    let mut temporary = Temporary { path, keep: false };
    if cfg!(unix) {
        // Held until the rename, so that nobody sweeps it away; some file systems have no locks, and no sweeping.
        let _ = file.try_lock();
    }

    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer).map_err(io("write"))?;
    let file = writer
        .into_inner()
        .map_err(|e| io("write")(e.into_error()))?;
    file.sync_all().map_err(io("sync"))?;

    check(&temporary.path)?;
    fs::rename(&temporary.path, &place).map_err(io("rename to"))?;
    temporary.keep = true;
    drop(file);
    if cfg!(unix) {
        use std::io::ErrorKind::{InvalidInput, Unsupported};
        match File::open(folder).and_then(|f| f.sync_all()) {
            // Some file systems cannot sync a folder.
            Err(e) if !matches!(e.kind(), InvalidInput | Unsupported) => {
                return Err(io("sync the folder of")(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the temporary files of writers that were killed: those called `prefix`, two numbers and `tmp` that nobody locks.
fn sweep(folder: &Path, prefix: &[u8]) {
    if !cfg!(unix) {
        return;
    }
    let number = |part: Option<&[u8]>| part.is_some_and(|p| p.iter().all(u8::is_ascii_digit));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.as_encoded_bytes().strip_prefix(prefix) else {
            continue;
        };
        let mut parts = rest.split(|&b| b == b'.');
        let ours = number(parts.next()) && number(parts.next()) && parts.next() == Some(b"tmp");
        if !ours || parts.next().is_some() {
            continue;
        }
        // A lock goes with the process that held it.
        if File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
