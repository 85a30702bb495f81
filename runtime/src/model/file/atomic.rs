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
/// Where `target` is a symbolic link the file that it points to is replaced.
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
    hidden.push(format!(
        ".{}.{}.tmp",
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

    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer).map_err(io("write"))?;
    let file = writer
        .into_inner()
        .map_err(|e| io("write")(e.into_error()))?;
    file.sync_all().map_err(io("sync"))?;
    drop(file);

    check(&temporary.path)?;
    fs::rename(&temporary.path, &place).map_err(io("rename to"))?;
    temporary.keep = true;
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
