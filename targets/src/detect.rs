//! What the system tells about this machine, without measuring.

use crate::profile::{Caches, Cluster, CoreKind, Profile, SCHEMA};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

impl Profile {
    /// This machine: cores, instruction sets and caches, no limits. What the system does not tell
    /// is absent; nothing is guessed.
    pub fn detect() -> Profile {
        let cpus = Path::new("/sys/devices/system/cpu");
        let (clusters, fastest) = clusters(cpus).unwrap_or_else(|| {
            let count = std::thread::available_parallelism().map_or(1, |n| n.get());
            let uniform = Cluster {
                count,
                kind: CoreKind::Uniform,
                max_mhz: None,
            };
            (vec![uniform], 0)
        });
        Profile {
            schema: SCHEMA,
            name: format!("{}-{}core", std::env::consts::ARCH, total(&clusters)),
            arch: std::env::consts::ARCH.into(),
            cpu: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|t| cpu_name(&t)),
            origin: None,
            isa: isa(),
            caches: caches(&cpus.join(format!("cpu{fastest}/cache"))),
            costs: BTreeMap::new(),
            clusters,
            limits: Vec::new(),
        }
    }
}

fn total(clusters: &[Cluster]) -> usize {
    clusters.iter().map(|c| c.count).sum()
}

/// A small file of the system, trimmed.
pub(crate) fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The first model name in the text of `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// CPUs in a list such as `0-3,8`.
pub(crate) fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse::<usize>().ok()?);
        if last > 65535 {
            return None;
        }
        cpus.extend(first..=last);
    }
    (!cpus.is_empty()).then_some(cpus)
}

/// The clusters, fastest first, and a CPU of the fastest.
fn clusters(cpus: &Path) -> Option<(Vec<Cluster>, usize)> {
    let number = |cpu: usize, file: &str| -> u64 {
        let path = cpus.join(format!("cpu{cpu}/{file}"));
        read(&path).and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    // Equal cores share the capacity that the scheduler sees and the highest clock.
    let mut groups: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    for cpu in cpu_list(&read(&cpus.join("online"))?)? {
        let capacity = number(cpu, "cpu_capacity");
        let khz = number(cpu, "cpufreq/cpuinfo_max_freq");
        groups.entry((capacity, khz)).or_default().push(cpu);
    }
    let last = groups.len().checked_sub(1)?;
    let fastest = *groups.last_key_value()?.1.first()?;
    let clusters = groups
        .iter()
        .rev()
        .enumerate()
        .map(|(i, ((_, khz), members))| Cluster {
            count: members.len(),
            kind: match i {
                _ if last == 0 => CoreKind::Uniform,
                0 => CoreKind::Performance,
                i if i == last => CoreKind::Efficiency,
                _ => CoreKind::Middle,
            },
            max_mhz: u32::try_from(khz / 1000).ok().filter(|m| *m > 0),
        })
        .collect();
    Some((clusters, fastest))
}

/// The data caches of one CPU, from its `cache` folder.
fn caches(folder: &Path) -> Caches {
    let mut found = Caches::default();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let field = |name: &str| read(&entry.path().join(name));
        let (Some(level), Some(kind), Some(size)) = (field("level"), field("type"), field("size"))
        else {
            continue;
        };
        if kind == "Instruction" {
            continue;
        }
        let size = parse_size(&size);
        match level.as_str() {
            "1" => found.l1d = size,
            "2" => found.l2 = size,
            "3" => found.l3 = size,
            _ => {}
        }
    }
    found
}

/// Bytes of a size such as `32K`.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

macro_rules! detected {
    ($detect:ident: $($name:tt)*) => {
        [$(($name, std::arch::$detect!($name))),*]
            .into_iter()
            .filter_map(|(name, here)| here.then(|| name.to_owned()))
            .collect()
    };
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<String> {
    detected!(is_x86_feature_detected:
        "sse4.2" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl"
        "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bf16" "avx512fp16")
}

#[cfg(target_arch = "aarch64")]
fn isa() -> Vec<String> {
    detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "bf16" "i8mm" "sve" "sve2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn isa() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn two_kinds_of_cores_become_two_clusters_fastest_first() {
        let root = tempfile::tempdir().unwrap();
        file(root.path(), "online", "0-3,5\n");
        for cpu in [0, 1, 2, 3, 5] {
            let big = cpu >= 3;
            let name = |f: &str| format!("cpu{cpu}/{f}");
            file(
                root.path(),
                &name("cpu_capacity"),
                if big { "1024" } else { "446" },
            );
            let khz = if big { "2400000" } else { "1800000" };
            file(root.path(), &name("cpufreq/cpuinfo_max_freq"), khz);
        }
        let (clusters, fastest) = clusters(root.path()).unwrap();
        let expect = [
            (2, CoreKind::Performance, Some(2400)),
            (3, CoreKind::Efficiency, Some(1800)),
        ];
        let found: Vec<_> = clusters
            .iter()
            .map(|c| (c.count, c.kind, c.max_mhz))
            .collect();
        assert_eq!(found, expect);
        assert_eq!(fastest, 3);
    }

    #[test]
    fn caches_are_read_by_level_and_the_instruction_cache_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        for (i, (level, kind, size)) in [
            ("1", "Data", "32K"),
            ("1", "Instruction", "64K"),
            ("2", "Unified", "1024K"),
            ("3", "Unified", "32M"),
        ]
        .iter()
        .enumerate()
        {
            file(root.path(), &format!("index{i}/level"), level);
            file(root.path(), &format!("index{i}/type"), kind);
            file(root.path(), &format!("index{i}/size"), &format!("{size}\n"));
        }
        let expect = Caches {
            l1d: Some(32 << 10),
            l2: Some(1 << 20),
            l3: Some(32 << 20),
        };
        assert_eq!(caches(root.path()), expect);
        assert_eq!(caches(&root.path().join("absent")), Caches::default());
    }

    #[test]
    fn odd_text_of_the_system_is_no_answer() {
        assert_eq!(cpu_list(""), None);
        assert_eq!(cpu_list("0-x"), None);
        assert_eq!(cpu_list("0-99999999999"), None);
        assert_eq!(parse_size("12Q"), None);
        assert_eq!(parse_size("99999999999999999999K"), None);
        assert_eq!(cpu_name("processor : 0\n"), None);
    }

    #[test]
    fn this_machine_validates_and_has_the_cores_that_we_may_use() {
        let here = Profile::detect();
        here.validate().unwrap();
        let usable = std::thread::available_parallelism().unwrap().get();
        assert!(here.cores() >= usable, "{} < {usable}", here.cores());
        assert!(here.limits.is_empty());
    }
}
