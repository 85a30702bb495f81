//! Packed weights kept between runs of a program, in a directory that the app names.

use crate::kernels::cpu::conv::PanelSet;
use crate::kernels::cpu::hash::Hash;
use crate::kernels::cpu::packed::{Expected, read, write};
use crate::model::file::{Output, map, replace};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What files begin with; the last byte is the version of the content.
const MAGIC: &[u8; 8] = b"LACPACK\x01";

/// Bytes of the head: the magic, 8 bytes of 0, the hash of what follows.
const HEAD: usize = 32;

/// What a pack cache brought to a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackReport {
    /// Weights that were found and mapped.
    pub found: usize,
    /// Weights that were packed and kept for the next time.
    pub kept: usize,
    /// Files that were not used, and weights that were not kept: which, and why.
    pub notes: Vec<String>,
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} found, {} kept", self.found, self.kept)?;
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// One file for each weight, named by a hash of the weight's bytes and of all that packing depends on.
///
/// A file that is not sound is reported, passed over, and written anew.
pub(super) struct PackCache {
    folder: PathBuf,
    report: Mutex<PackReport>,
}

impl PackCache {
    pub fn new(folder: &Path) -> PackCache {
        PackCache {
            folder: folder.to_path_buf(),
            report: Mutex::default(),
        }
    }

    pub fn report(&self) -> PackReport {
        self.edit(|r| r.clone())
    }

    /// The weights under `key`, or those that `pack` makes, which are then kept.
    pub fn get_or_pack(
        &self,
        key: u128,
        expected: &Expected,
        pack: impl FnOnce() -> PanelSet,
    ) -> PanelSet {
        let name = format!("{key:032x}.pack");
        let path = self.folder.join(&name);
        match path.exists().then(|| open(&path, expected)) {
            Some(Ok(set)) => {
                self.edit(|r| r.found += 1);
                return set;
            }
            Some(Err(why)) => self.note(format!("{name}: {why}; packed again")),
            None => {}
        }
        let set = pack();
        match self.keep(&path, &set) {
            Ok(()) => self.edit(|r| r.kept += 1),
            Err(why) => self.note(format!("{name} is not kept: {why}")),
        }
        set
    }

    fn keep(&self, path: &Path, set: &PanelSet) -> Result<(), String> {
        std::fs::create_dir_all(&self.folder).map_err(|e| e.to_string())?;
        let mut body = Vec::with_capacity(set.groups.iter().map(|g| g.byte_len()).sum());
        write(set, HEAD, &mut body).map_err(|e| e.to_string())?;
        let fill = |out: &mut dyn Output| {
            out.write_all(MAGIC)?;
            out.write_all(&[0; 8])?;
            out.write_all(&sum(&body).to_le_bytes())?;
            out.write_all(&body)
        };
        replace(path, fill, |_| Ok(())).map_err(|e| e.to_string())
    }

    fn note(&self, what: String) {
        self.edit(|r| r.notes.push(what));
    }

    fn edit<T>(&self, f: impl FnOnce(&mut PackReport) -> T) -> T {
        f(&mut self.report.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

fn sum(body: &[u8]) -> u128 {
    let mut hash = Hash::default();
    hash.write(body);
    hash.finish()
}

fn open(path: &Path, expected: &Expected) -> Result<PanelSet, String> {
    let file = map(path).map_err(|e| e.to_string())?;
    let (Some(head), Some(body)) = (file.get(..HEAD), file.get(HEAD..)) else {
        return Err(format!("it has {} bytes", file.len()));
    };
    if head[..8] != MAGIC[..] {
        return Err("it is of another kind or version".into());
    }
    if head[16..] != sum(body).to_le_bytes() {
        return Err("its content does not have the sum that its head says".into());
    }
    read(&file, HEAD, expected)
}
