//! The profile as data, and its file.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// The version of the file format that this crate reads and writes.
pub const SCHEMA: i64 = 1;

/// No profile is longer; anything that is gets refused before it is parsed.
const MAX_BYTES: u64 = 1 << 20;

/// A machine: what it has, and what it was measured to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Version of the format, [`SCHEMA`].
    pub schema: i64,
    /// A short name for reports, such as `zen4-2core-vm`.
    pub name: String,
    /// The architecture as Rust names it: `x86_64`, `aarch64`.
    pub arch: String,
    /// The processor's own name, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// The command that measured the limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Instruction set extensions that were detected at run time, as Rust names them.
    #[serde(default)]
    pub isa: Vec<String>,
    /// Data caches.
    #[serde(default)]
    pub caches: Caches,
    /// Constants of the plan's estimate on this machine, by name; what is absent is as the runtime has it. The names are
    /// the runtime's business.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub costs: BTreeMap<String, f64>,
    /// Groups of equal cores, fastest first.
    pub clusters: Vec<Cluster>,
    /// Measured limits, one entry for each number of threads that was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limits>,
}

/// A group of equal cores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Cores that the system has online.
    pub count: usize,
    /// How these cores compare to the other clusters.
    pub kind: CoreKind,
    /// Highest clock in MHz, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_mhz: Option<u32>,
}

/// How the cores of a cluster compare to those of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoreKind {
    /// All cores of the machine are equal.
    Uniform,
    /// The fastest of several kinds.
    Performance,
    /// Neither the fastest nor the slowest.
    Middle,
    /// The slowest of several kinds.
    Efficiency,
}

/// Data cache sizes in bytes as one core of the fastest cluster sees them; absent when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caches {
    /// First level, data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1d: Option<usize>,
    /// Second level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<usize>,
    /// Third level, shared by several cores as a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3: Option<usize>,
}

/// Where data lies when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// First-level data cache.
    L1,
    /// Second-level cache.
    L2,
    /// Third-level cache.
    L3,
    /// Main memory.
    Dram,
}

/// What the machine reaches with a number of threads, all threads together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Threads that ran at once.
    pub threads: usize,
    /// Single-precision fused multiply-adds from registers, two operations each, in 10⁹ a second.
    pub fma_gflops: f64,
    /// Reads from the first-level cache, 10⁹ bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1_gbs: Option<f64>,
    /// Reads from the second-level cache, 10⁹ bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2_gbs: Option<f64>,
    /// Reads from the third-level cache, 10⁹ bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3_gbs: Option<f64>,
    /// Reads from main memory (2 MB pages where the system grants them), 10⁹ bytes a second.
    pub dram_gbs: f64,
}

impl Limits {
    /// Read bandwidth of a level in 10⁹ bytes a second; a level that was not measured answers
    /// with the next one below it.
    pub fn bandwidth(&self, level: Level) -> f64 {
        let l3 = self.l3_gbs.unwrap_or(self.dram_gbs);
        let l2 = self.l2_gbs.unwrap_or(l3);
        match level {
            Level::L1 => self.l1_gbs.unwrap_or(l2),
            Level::L2 => l2,
            Level::L3 => l3,
            Level::Dram => self.dram_gbs,
        }
    }

    /// The same machine with another number of threads, every figure in proportion: an upper
    /// bound, since threads share what lies behind the second level.
    fn scaled(&self, threads: usize) -> Limits {
        let by = threads as f64 / self.threads as f64;
        let scale = |v: Option<f64>| v.map(|v| v * by);
        Limits {
            threads,
            fma_gflops: self.fma_gflops * by,
            l1_gbs: scale(self.l1_gbs),
            l2_gbs: scale(self.l2_gbs),
            l3_gbs: scale(self.l3_gbs),
            dram_gbs: self.dram_gbs * by,
        }
    }
}

impl Profile {
    /// Reads and checks a profile. Unknown keys are ignored, unknown versions refused.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or holds a value that cannot be: the error names
    /// the file, the key and the value.
    pub fn load(path: impl AsRef<Path>) -> Result<Profile> {
        let path = path.as_ref();
        let io = |source| Error::Io {
            path: path.to_owned(),
            action: "read",
            source,
        };
        let syntax = |what: String| Error::Syntax {
            path: path.to_owned(),
            what,
        };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(syntax(format!("longer than {MAX_BYTES} bytes")));
        }
        let table: toml::Table =
            toml::from_str(&text).map_err(|e| syntax(e.to_string().trim_end().to_owned()))?;
        match table.get("schema") {
            Some(toml::Value::Integer(SCHEMA)) => {}
            other => {
                return Err(Error::Value {
                    path: Some(path.to_owned()),
                    key: "schema".into(),
                    value: other.map_or("nothing".into(), |v| v.to_string()),
                    what: "this program reads version 1",
                });
            }
        }
        // From the text once more: its errors carry line and column.
        let profile: Profile =
            toml::from_str(&text).map_err(|e| syntax(e.to_string().trim_end().to_owned()))?;
        profile.validate().map_err(|e| match e {
            Error::Value {
                key, value, what, ..
            } => Error::Value {
                path: Some(path.to_owned()),
                key,
                value,
                what,
            },
            other => other,
        })?;
        Ok(profile)
    }

    /// Writes the profile as TOML: a temporary file beside the target, renamed over it.
    ///
    /// # Errors
    /// When the profile does not validate or the system refuses; the old file then stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.validate()?;
        let text = self.to_toml()?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let io = |action, source| Error::Io {
            path: path.to_owned(),
            action,
            source,
        };
        std::fs::write(&temporary, text).map_err(|e| io("write", e))?;
        std::fs::rename(&temporary, path).map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            io("rename", e)
        })
    }

    /// The profile as TOML text.
    ///
    /// # Errors
    /// When a number does not fit TOML's 64-bit integers.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Syntax {
            path: self.name.clone().into(),
            what: e.to_string(),
        })
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Value`] for the first value that cannot be.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, key: String, value: String, what: &'static str| match ok {
            true => Ok(()),
            false => Err(Error::Value {
                path: None,
                key,
                value,
                what,
            }),
        };
        check(
            self.schema == SCHEMA,
            "schema".into(),
            self.schema.to_string(),
            "this program reads version 1",
        )?;
        for (key, text) in [("name", &self.name), ("arch", &self.arch)] {
            check(
                !text.trim().is_empty(),
                key.into(),
                format!("{text:?}"),
                "must not be empty",
            )?;
        }
        check(
            !self.clusters.is_empty(),
            "clusters".into(),
            "[]".into(),
            "a machine has at least one cluster of cores",
        )?;
        for (i, c) in self.clusters.iter().enumerate() {
            check(
                (1..=65536).contains(&c.count),
                format!("clusters[{i}].count"),
                c.count.to_string(),
                "must lie between 1 and 65536",
            )?;
            check(
                c.max_mhz.is_none_or(|m| (1..=100_000).contains(&m)),
                format!("clusters[{i}].max_mhz"),
                c.max_mhz.unwrap_or(0).to_string(),
                "must lie between 1 and 100000",
            )?;
        }
        for (name, cost) in &self.costs {
            check(
                cost.is_finite() && *cost >= 0.0,
                format!("costs.{name}"),
                cost.to_string(),
                "must be zero or a positive number",
            )?;
        }
        let mut below = 0;
        for (key, size) in self.caches.named() {
            let Some(size) = size else { continue };
            check(
                (1..=1 << 40).contains(&size),
                format!("caches.{key}"),
                size.to_string(),
                "must lie between 1 and 2^40 bytes",
            )?;
            check(
                size >= below,
                format!("caches.{key}"),
                size.to_string(),
                "smaller than the level before it",
            )?;
            below = size;
        }
        for (i, l) in self.limits.iter().enumerate() {
            check(
                (1..=65536).contains(&l.threads),
                format!("limits[{i}].threads"),
                l.threads.to_string(),
                "must lie between 1 and 65536",
            )?;
            check(
                !self.limits[..i].iter().any(|o| o.threads == l.threads),
                format!("limits[{i}].threads"),
                l.threads.to_string(),
                "listed twice",
            )?;
            let rates = [
                ("fma_gflops", Some(l.fma_gflops)),
                ("l1_gbs", l.l1_gbs),
                ("l2_gbs", l.l2_gbs),
                ("l3_gbs", l.l3_gbs),
                ("dram_gbs", Some(l.dram_gbs)),
            ];
            for (key, rate) in rates {
                let Some(rate) = rate else { continue };
                check(
                    rate.is_finite() && rate > 0.0,
                    format!("limits[{i}].{key}"),
                    rate.to_string(),
                    "must be a positive number",
                )?;
            }
        }
        Ok(())
    }

    /// Cores of all clusters.
    pub fn cores(&self) -> usize {
        self.clusters.iter().map(|c| c.count).sum()
    }

    /// The limits with `threads` threads: the entry measured so, else the nearest one with fewer
    /// threads (or the first) in proportion, which bounds the truth from above. `None` when
    /// nothing was measured.
    pub fn limits_for(&self, threads: usize) -> Option<Limits> {
        let nearest = self
            .limits
            .iter()
            .filter(|l| l.threads <= threads)
            .max_by_key(|l| l.threads)
            .or(self.limits.first())?;
        Some(match nearest.threads == threads {
            true => *nearest,
            false => nearest.scaled(threads.max(1)),
        })
    }

    /// The level that holds `bytes` which `threads` threads share out among them and come back
    /// to. An unknown cache holds nothing.
    pub fn level_of(&self, bytes: usize, threads: usize) -> Level {
        let threads = threads.max(1);
        let fits = |cache: Option<usize>, copies: usize| {
            cache.is_some_and(|c| bytes <= c.saturating_mul(copies))
        };
        if fits(self.caches.l1d, threads) {
            Level::L1
        } else if fits(self.caches.l2, threads) {
            Level::L2
        } else if fits(self.caches.l3, 1) {
            Level::L3
        } else {
            Level::Dram
        }
    }
}

impl Caches {
    /// The sizes with their keys, smallest level first.
    pub(crate) fn named(&self) -> [(&'static str, Option<usize>); 3] {
        [("l1d", self.l1d), ("l2", self.l2), ("l3", self.l3)]
    }
}
