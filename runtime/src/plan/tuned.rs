//! Measured choices: which form was fastest for a layer on a machine.

use super::form::Variant;
use crate::kernels::cpu::Isa;
use crate::model::file::replace;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const FORMAT: &str = "lacuna-tuned";
const VERSION: u32 = 1;

/// Files beyond this size are refused.
const LARGEST: u64 = 64 << 20;

/// Measured choices, read from a file that the app names: `lacuna-bench MODEL --tune FILE` writes one.
///
/// An entry says how fast each form of a layer was on a machine, with an instruction set and a number of
/// threads. The layer is known by its sizes, dtype and density, so that entries serve every model that has
/// such a layer. A plan takes the fastest form that is legal; where nothing was measured for this machine
/// it estimates, as without a file. One file can hold the entries of several machines.
///
/// The file is JSON:
///
/// ```json
/// {"format": "lacuna-tuned", "version": 1, "entries": [
///   {"machine": "AMD EPYC (AuthenticAMD 26/2/1)", "isa": "avx512", "threads": 1,
///    "layer": "conv 64x64x3x3 s1x1 d1x1 g1 @ 56x56 b1 f32", "density": 10,
///    "forms": [["stream-panel-112x85", 101.2], ["dense-panel", 420.9]]}]}
/// ```
///
/// `density` is in percent as [`density_bucket`] rounds it, the numbers of `forms` are microseconds, the
/// fastest first. Forms that this version does not know are passed over.
#[derive(Clone, Debug, Default)]
pub struct Tuned {
    entries: Arc<BTreeMap<Key, Vec<(Variant, f64)>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    machine: String,
    isa: String,
    threads: usize,
    layer: String,
    density: u32,
}

#[derive(Deserialize, Serialize)]
struct Document {
    format: String,
    version: u32,
    entries: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    machine: String,
    isa: String,
    threads: usize,
    layer: String,
    density: u32,
    forms: Vec<(String, f64)>,
}

/// A density in percent, as entries are told apart: steps of 1 below 10, of 5 above.
pub fn density_bucket(density: f64) -> u32 {
    let percent = (density * 100.0).clamp(0.0, 100.0);
    match percent < 10.0 {
        true => percent.round() as u32,
        false => (percent / 5.0).round() as u32 * 5,
    }
}

impl Tuned {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no such file; the error says why.
    pub fn open(path: impl AsRef<Path>) -> Result<Tuned> {
        let path = path.as_ref();
        let io = |source| Error::Io {
            path: path.to_path_buf(),
            action: "read",
            source,
        };
        let length = std::fs::metadata(path).map_err(io)?.len();
        if length > LARGEST {
            return Err(Error::File {
                path: path.to_path_buf(),
                what: format!("{length} bytes are no table of measured forms"),
            });
        }
        Tuned::parse(path, &std::fs::read(path).map_err(io)?)
    }

    /// Reads the bytes of a file; `label` stands for its path in errors.
    ///
    /// # Errors
    /// When they are no table of measured forms, or one of another version.
    pub fn parse(label: impl Into<PathBuf>, bytes: &[u8]) -> Result<Tuned> {
        let label = label.into();
        let refuse = |what: String| {
            Err(Error::File {
                path: label.clone(),
                what: format!("no table of measured forms: {what}"),
            })
        };
        // The version first: another one may hold other entries.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head = match serde_json::from_slice::<Head>(bytes) {
            Ok(head) if head.format != FORMAT => {
                return refuse(format!("its format is not `{FORMAT}`"));
            }
            Ok(head) => head,
            Err(e) => return refuse(e.to_string()),
        };
        if head.version != VERSION {
            return refuse(format!(
                "version {}; this library reads {VERSION}",
                head.version
            ));
        }
        let document: Document = match serde_json::from_slice(bytes) {
            Ok(document) => document,
            Err(e) => return refuse(e.to_string()),
        };
        let mut entries = BTreeMap::new();
        for (i, e) in document.entries.into_iter().enumerate() {
            if let Some((form, time)) = e.forms.iter().find(|f| !(f.1 > 0.0 && f.1.is_finite())) {
                return refuse(format!("entry {i}: `{form}` takes {time}"));
            }
            let known = |(form, time): &(String, f64)| Some((form.parse::<Variant>().ok()?, *time));
            let mut forms: Vec<(Variant, f64)> = e.forms.iter().filter_map(known).collect();
            forms.sort_by(|a, b| a.1.total_cmp(&b.1));
            let key = Key {
                machine: e.machine,
                isa: e.isa,
                threads: e.threads,
                layer: e.layer,
                density: e.density,
            };
            entries.insert(key, forms);
        }
        Ok(Tuned {
            entries: Arc::new(entries),
        })
    }

    /// Writes a file, atomically.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let entries = self.entries.iter().map(|(k, forms)| Entry {
            machine: k.machine.clone(),
            isa: k.isa.clone(),
            threads: k.threads,
            layer: k.layer.clone(),
            density: k.density,
            forms: forms.iter().map(|(v, t)| (v.to_string(), *t)).collect(),
        });
        let head = format!("{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"entries\":[");
        let lines: Vec<String> = entries
            .filter_map(|e| serde_json::to_string(&e).ok())
            .collect();
        let text = format!("{head}\n{}\n]}}\n", lines.join(",\n"));
        replace(
            path.as_ref(),
            |out| out.write_all(text.as_bytes()),
            |_| Ok(()),
        )
    }

    /// Adds or replaces what was measured for a layer on this machine, in microseconds.
    pub fn record(
        &mut self,
        isa: Isa,
        threads: usize,
        layer: &str,
        density: f64,
        mut forms: Vec<(Variant, f64)>,
    ) {
        forms.sort_by(|a, b| a.1.total_cmp(&b.1));
        let key = Key::here(isa, threads, layer, density);
        Arc::make_mut(&mut self.entries).insert(key, forms);
    }

    /// What was measured for a layer on this machine, fastest first, in microseconds.
    pub fn get(
        &self,
        isa: Isa,
        threads: usize,
        layer: &str,
        density: f64,
    ) -> Option<&[(Variant, f64)]> {
        let forms = self.entries.get(&Key::here(isa, threads, layer, density))?;
        Some(forms.as_slice()).filter(|f| !f.is_empty())
    }

    /// Entries, of every machine.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries of this machine.
    pub fn here(&self) -> usize {
        let here = |k: &&Key| k.machine == machine();
        self.entries.keys().filter(here).count()
    }
}

impl Key {
    fn here(isa: Isa, threads: usize, layer: &str, density: f64) -> Key {
        Key {
            machine: machine().to_owned(),
            isa: isa.name().to_owned(),
            threads,
            layer: layer.to_owned(),
            density: density_bucket(density),
        }
    }
}

/// This machine's processor, as entries name it.
pub fn machine() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        name_of(&text).unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH))
    })
}

/// The name that `/proc/cpuinfo` gives the first processor, with the numbers that tell its kind.
fn name_of(cpuinfo: &str) -> Option<String> {
    let field = |name: &str| {
        let mut lines = cpuinfo.lines();
        let line = lines.find(|l| l.split(':').next().is_some_and(|k| k.trim() == name))?;
        let value = line.split_once(':')?.1.split_whitespace();
        Some(value.collect::<Vec<_>>().join(" "))
    };
    let list = |names: &[&str]| names.iter().filter_map(|n| field(n)).collect::<Vec<_>>();
    match (field("model name"), field("vendor_id")) {
        (Some(model), Some(vendor)) => {
            let numbers = list(&["cpu family", "model", "stepping"]).join("/");
            Some(format!("{model} ({vendor} {numbers})"))
        }
        _ => {
            let parts = list(&["CPU implementer", "CPU part", "CPU variant", "CPU revision"]);
            (!parts.is_empty()).then(|| format!("arm {}", parts.join("/")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Form;

    fn sample() -> Tuned {
        let mut tuned = Tuned::default();
        let dense = Variant::plain(Form::DensePanel);
        let forms = vec![(dense, 9.0), (Variant::stream(64, 96), 3.5)];
        tuned.record(Isa::Scalar, 2, "conv", 0.123, forms);
        tuned
    }

    #[test]
    fn what_was_recorded_is_read_back_fastest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        sample().save(&path).unwrap();
        let back = Tuned::open(&path).unwrap();
        let forms = back.get(Isa::Scalar, 2, "conv", 0.11).unwrap();
        assert_eq!(forms[0], (Variant::stream(64, 96), 3.5));
        assert_eq!((back.len(), back.here()), (1, 1));
        for (threads, layer, density) in [(1, "conv", 0.1), (2, "cony", 0.1), (2, "conv", 0.2)] {
            assert!(back.get(Isa::Scalar, threads, layer, density).is_none());
        }
    }

    #[test]
    fn foreign_files_are_refused_with_the_reason() {
        let error = |text: &str| {
            Tuned::parse("t.json", text.as_bytes())
                .unwrap_err()
                .to_string()
        };
        let entry = r#"{"machine":"m","isa":"i","threads":1,"layer":"l","density":5,"forms":[["dense-panel",-1.0]]}"#;
        for (text, says) in [
            ("", "EOF"),
            ("[]", "no table"),
            (r#"{"format":"x","version":1,"entries":[]}"#, "its format"),
            (
                r#"{"format":"lacuna-tuned","version":7,"entries":3}"#,
                "version 7",
            ),
            (
                r#"{"format":"lacuna-tuned","version":1,"entries":3}"#,
                "invalid type",
            ),
            (
                &format!(r#"{{"format":"lacuna-tuned","version":1,"entries":[{entry}]}}"#),
                "`dense-panel` takes -1",
            ),
        ] {
            let error = error(text);
            assert!(error.contains("t.json") && error.contains(says), "{error}");
        }
        let missing = Tuned::open("no/such/file.json").unwrap_err().to_string();
        assert!(missing.contains("no/such/file.json"), "{missing}");
    }

    #[test]
    fn forms_of_a_later_version_and_other_machines_are_passed_over() {
        let entry = r#"{"machine":"m","isa":"scalar","threads":1,"layer":"l","density":5,"forms":[["warp-panel",1.0]]}"#;
        let text = format!(r#"{{"format":"lacuna-tuned","version":1,"entries":[{entry}]}}"#);
        let tuned = Tuned::parse("t", text.as_bytes()).unwrap();
        assert_eq!((tuned.len(), tuned.here()), (1, 0));
        assert!(tuned.get(Isa::Scalar, 1, "l", 0.05).is_none());
    }

    #[test]
    fn densities_fall_into_buckets() {
        let buckets = [0.0, 0.004, 0.05, 0.094, 0.1, 0.12, 0.13, 0.5, 1.0].map(density_bucket);
        assert_eq!(buckets, [0, 0, 5, 9, 10, 10, 15, 50, 100]);
    }

    #[test]
    fn processors_are_named_by_model_and_numbers() {
        let x86 = "processor\t: 0\nvendor_id\t: V\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: A  B\nstepping\t: 1\n";
        assert_eq!(name_of(x86).unwrap(), "A B (V 26/2/1)");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(name_of(arm).unwrap(), "arm 0x41/0xd0c");
        assert_eq!(name_of(""), None);
    }
}
