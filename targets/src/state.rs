//! What a machine is doing while something is measured on it: clocks, governor, temperature, throttling, load.
//! Linux tells it in `/sys` and `/proc`; elsewhere nothing is known, and nothing is guessed.

use crate::detect::{cpu_list, read};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// A machine at one moment. What the system does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    /// The frequency governor of the online cores; where they differ, each name once, `a/b`.
    pub governor: Option<String>,
    /// Clock of the core that is clocked highest now, in MHz.
    pub mhz: Option<u32>,
    /// The highest clock of that core, in MHz.
    pub max_mhz: Option<u32>,
    /// What that core is held below, in MHz, where that is less than its highest clock.
    pub capped_mhz: Option<u32>,
    /// Temperature of the hottest sensor of the processor, in degrees Celsius; of any, where none is named so.
    pub celsius: Option<f64>,
    /// How often cores were throttled since the system started.
    pub throttles: Option<u64>,
    /// What holds clocks back now, or has since the system started where only that is told.
    pub held_back: Option<String>,
    /// Mean number of programs that ran or waited to run over the last minute.
    pub load: Option<f64>,
    /// Processor time so far.
    #[serde(skip)]
    time: Option<CpuTime>,
}

/// Processor time since the start of the system, in ticks of `/proc/stat`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CpuTime {
    cores: u64,
    all: u64,
    busy: u64,
    stolen: u64,
    /// Of this process.
    own: u64,
}

/// A machine before and after something was measured on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conditions {
    /// Before.
    pub before: State,
    /// After.
    pub after: State,
    /// Threads that were used.
    pub threads: usize,
    /// Cores that other programs kept busy meanwhile, in the mean; of runs of less than 0.2 s unknown.
    pub others_cores: Option<f64>,
    /// The share of busy time that a hypervisor gave to others.
    pub stolen: Option<f64>,
}

/// Warmer by more than this, a machine may have slowed down on the way.
const RISE: f64 = 10.0;

/// Other programs may use this many cores.
const OTHERS: f64 = 0.25;

/// A hypervisor may take this share.
const STOLEN: f64 = 0.02;

/// Clocks from this share of the highest on are the highest.
const FULL: f64 = 0.95;

/// Fewer ticks than this for each core tell nothing.
const FEWEST_TICKS: u64 = 20;

impl State {
    /// This machine now.
    pub fn now() -> State {
        State::under(Path::new("/"))
    }

    fn under(root: &Path) -> State {
        let cpus = root.join("sys/devices/system/cpu");
        let mut state = State {
            celsius: celsius(&root.join("sys/class")),
            load: read(&root.join("proc/loadavg"))
                .and_then(|t| t.split_whitespace().next()?.parse().ok()),
            time: cpu_time(&root.join("proc")),
            held_back: held_back(root),
            ..State::default()
        };
        let online = read(&cpus.join("online")).and_then(|t| cpu_list(&t));
        let mut governors: Vec<String> = Vec::new();
        for cpu in online.unwrap_or_default() {
            let folder = cpus.join(format!("cpu{cpu}"));
            let number = |file: &str| -> Option<u64> { read(&folder.join(file))?.parse().ok() };
            let mhz = |file: &str| number(file).and_then(|khz| u32::try_from(khz / 1000).ok());
            if let Some(governor) = read(&folder.join("cpufreq/scaling_governor"))
                && !governors.contains(&governor)
            {
                governors.push(governor);
            }
            if let Some(now) = mhz("cpufreq/scaling_cur_freq")
                && state.mhz.is_none_or(|m| now > m)
            {
                let (max, cap) = (
                    mhz("cpufreq/cpuinfo_max_freq"),
                    mhz("cpufreq/scaling_max_freq"),
                );
                state.mhz = Some(now);
                state.max_mhz = max;
                state.capped_mhz = cap.filter(|c| max.is_some_and(|m| *c < m));
            }
            if let Some(count) = number("thermal_throttle/core_throttle_count") {
                *state.throttles.get_or_insert(0) += count;
            }
        }
        state.governor = (!governors.is_empty()).then(|| governors.join("/"));
        state
    }
}

impl Conditions {
    /// What happened on a machine between `before` and now, while `threads` threads were in use.
    pub fn since(before: State, threads: usize) -> Conditions {
        Conditions::between(before, State::now(), threads)
    }

    fn between(before: State, after: State, threads: usize) -> Conditions {
        let times = before.time.zip(after.time);
        let passed = times.map(|(a, b)| CpuTime {
            cores: b.cores.max(1),
            all: b.all.saturating_sub(a.all),
            busy: b.busy.saturating_sub(a.busy),
            stolen: b.stolen.saturating_sub(a.stolen),
            own: b.own.saturating_sub(a.own),
        });
        let passed = passed.filter(|p| p.all >= FEWEST_TICKS * p.cores);
        Conditions {
            others_cores: passed.map(|p| {
                let others = p.busy.saturating_sub(p.own);
                others as f64 * p.cores as f64 / p.all as f64
            }),
            stolen: passed.map(|p| p.stolen as f64 / (p.stolen + p.busy).max(1) as f64),
            before,
            after,
            threads,
        }
    }

    /// How often cores were throttled meanwhile.
    pub fn throttles(&self) -> Option<u64> {
        let (a, b) = self.before.throttles.zip(self.after.throttles)?;
        Some(b.saturating_sub(a))
    }

    /// Why times that were measured meanwhile may not be those of this machine; nothing where no reason is known.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let after = &self.after;
        let clock = after.mhz.zip(after.max_mhz);
        let full = clock.is_some_and(|(now, max)| f64::from(now) >= FULL * f64::from(max));
        if let Some(governor) = after.governor.as_ref().filter(|g| *g != "performance")
            && !full
        {
            let at = clock.map_or(String::new(), |(now, max)| {
                format!(", and the clock at {now} of {max} MHz")
            });
            doubts.push(format!("the governor is {governor}{at}"));
        }
        if let (Some(cap), Some(max)) = (after.capped_mhz, after.max_mhz) {
            doubts.push(format!("clocks are held below {cap} of {max} MHz"));
        }
        if let Some(n) = self.throttles().filter(|n| *n > 0) {
            doubts.push(format!("cores were throttled {n} times meanwhile"));
        }
        doubts.extend(after.held_back.clone());
        if let (Some(before), Some(after)) = (self.before.celsius, after.celsius)
            && after - before > RISE
        {
            doubts.push(format!(
                "the temperature rose from {before:.0} to {after:.0} °C"
            ));
        }
        let loads = [self.before.load, after.load];
        let load = loads.into_iter().flatten().fold(0.0, f64::max);
        if load > self.threads as f64 + 0.5 {
            doubts.push(format!(
                "the load average is {load:.1} with {} in use",
                threads(self.threads)
            ));
        }
        if let Some(others) = self.others_cores.filter(|o| *o > OTHERS) {
            doubts.push(format!("other programs kept {others:.1} cores busy"));
        }
        if let Some(stolen) = self.stolen.filter(|s| *s > STOLEN) {
            doubts.push(format!(
                "the hypervisor took {:.0} % of the time",
                100.0 * stolen
            ));
        }
        doubts
    }

    /// What is known, on one line: `governor performance   2400 of 2400 MHz   45 to 47 °C   load 0.1 to 0.9`.
    pub fn line(&self) -> String {
        let after = &self.after;
        let mut parts = Vec::new();
        parts.extend(after.governor.as_ref().map(|g| format!("governor {g}")));
        match (after.mhz, after.max_mhz) {
            (Some(now), Some(max)) => parts.push(format!("{now} of {max} MHz")),
            (Some(now), None) => parts.push(format!("{now} MHz")),
            _ => {}
        }
        let pair = |a: Option<f64>, b: Option<f64>, digits: usize| {
            let (a, b) = a.zip(b)?;
            Some(format!("{a:.digits$} to {b:.digits$}"))
        };
        parts.extend(pair(self.before.celsius, after.celsius, 0).map(|t| format!("{t} °C")));
        parts.extend(self.throttles().map(|n| format!("throttled {n} times")));
        parts.extend(pair(self.before.load, after.load, 2).map(|l| format!("load {l}")));
        parts.extend(self.others_cores.map(|o| format!("others {o:.2} cores")));
        let stolen = self.stolen.filter(|s| *s > 0.0);
        parts.extend(stolen.map(|s| format!("stolen {:.1} %", 100.0 * s)));
        match parts.is_empty() {
            true => "the system tells nothing of clocks, heat and load".into(),
            false => parts.join("   "),
        }
    }
}

fn threads(n: usize) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

/// Folders of `class` whose names start so.
fn folders(class: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let mut list: Vec<PathBuf> = named.map(|e| e.path()).collect();
    list.sort();
    list
}

/// The hottest sensor of the processor.
fn celsius(class: &Path) -> Option<f64> {
    // Of a battery, a modem or a skin nobody asks.
    const PROCESSOR: [&str; 9] = [
        "cpu", "soc", "x86_pkg", "core", "k10temp", "zenpower", "acpitz", "mtktscpu", "big",
    ];
    let degrees = |path: PathBuf| -> Option<f64> {
        let value = read(&path)?.parse::<f64>().ok()? / 1000.0;
        (1.0..150.0).contains(&value).then_some(value)
    };
    let mut sensors: Vec<(String, f64)> = Vec::new();
    for zone in folders(&class.join("thermal"), "thermal_zone") {
        let kind = read(&zone.join("type")).unwrap_or_default();
        sensors.extend(degrees(zone.join("temp")).map(|t| (kind, t)));
    }
    for chip in folders(&class.join("hwmon"), "hwmon") {
        let kind = read(&chip.join("name")).unwrap_or_default();
        let inputs = folders(&chip, "temp").into_iter();
        let inputs = inputs.filter(|p| p.to_string_lossy().ends_with("_input"));
        sensors.extend(inputs.filter_map(degrees).map(|t| (kind.clone(), t)));
    }
    let hottest = |of_processor: bool| {
        let named = |kind: &str| {
            let kind = kind.to_lowercase();
            PROCESSOR.iter().any(|p| kind.contains(p))
        };
        let kept = sensors.iter().filter(|(k, _)| !of_processor || named(k));
        kept.map(|s| s.1).max_by(f64::total_cmp)
    };
    hottest(true).or_else(|| hottest(false))
}

/// What the firmware or the kernel's thermal framework says holds the clocks back.
fn held_back(root: &Path) -> Option<String> {
    // Raspberry Pi: bits 1 to 3 now, 17 to 19 since the start; bits 0 and 16 of the supply's voltage.
    let firmware = root.join("sys/devices/platform/soc/soc:firmware/get_throttled");
    if let Some(text) = read(&firmware)
        && let Ok(bits) = u32::from_str_radix(text.trim_start_matches("0x"), 16)
    {
        const REASONS: [&str; 4] = [
            "the supply's voltage is too low",
            "the firmware holds the clock back",
            "the firmware throttles the processor",
            "the processor is at its temperature limit",
        ];
        for (i, reason) in REASONS.iter().enumerate() {
            if bits >> i & 1 == 1 {
                return Some((*reason).into());
            }
            if bits >> (16 + i) & 1 == 1 {
                return Some(format!("{reason}, or was since the start"));
            }
        }
    }
    let devices = folders(&root.join("sys/class/thermal"), "cooling_device");
    devices.iter().find_map(|device| {
        let kind = read(&device.join("type"))?;
        let state: u64 = read(&device.join("cur_state"))?.parse().ok()?;
        (state > 0 && kind.contains("cpufreq"))
            .then(|| format!("heat holds the clocks back ({kind} at step {state})"))
    })
}

fn cpu_time(proc: &Path) -> Option<CpuTime> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let cores = stat.lines().filter(|l| l.starts_with("cpu")).count();
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|t| t.parse().ok())
        .collect();
    let &[user, nice, system, idle, wait, irq, soft, stolen, ..] = ticks.as_slice() else {
        return None;
    };
    let busy = user + nice + system + irq + soft;
    // The name of a program may hold anything; what follows the last parenthesis is counted from field 3.
    let own = fs::read_to_string(proc.join("self/stat")).ok()?;
    let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(CpuTime {
        cores: cores.saturating_sub(1).max(1) as u64,
        all: busy + idle + wait + stolen,
        busy,
        stolen,
        own: field(14)? + field(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A phone of two clusters that does well.
    fn phone() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| put(root.path(), name, text);
        put("sys/devices/system/cpu/online", "0-1\n");
        for (cpu, max) in [(0, "1800000"), (1, "2400000")] {
            let file = |f: &str| format!("sys/devices/system/cpu/cpu{cpu}/{f}");
            put(&file("cpufreq/scaling_governor"), "performance\n");
            put(&file("cpufreq/scaling_cur_freq"), max);
            put(&file("cpufreq/scaling_max_freq"), max);
            put(&file("cpufreq/cpuinfo_max_freq"), max);
            put(&file("thermal_throttle/core_throttle_count"), "3\n");
        }
        for (zone, kind, temp) in [
            (0, "battery", "99000"),
            (1, "cpu-0-0", "41500"),
            (2, "cpu-1-0", "45000"),
        ] {
            put(&format!("sys/class/thermal/thermal_zone{zone}/type"), kind);
            put(&format!("sys/class/thermal/thermal_zone{zone}/temp"), temp);
        }
        put(
            "sys/class/thermal/cooling_device0/type",
            "thermal-cpufreq-0",
        );
        put("sys/class/thermal/cooling_device0/cur_state", "0");
        put("proc/loadavg", "0.40 0.10 0.05 1/123 4567\n");
        put(
            "proc/stat",
            "cpu  100 0 100 10000 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 1\n",
        );
        put(
            "proc/self/stat",
            "12 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 100 50 0 0 20 0 1",
        );
        root
    }

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_state_is_that_of_the_fastest_core_and_of_the_processor_s_sensors() {
        let root = phone();
        let state = State::under(root.path());
        assert_eq!(state.governor.as_deref(), Some("performance"));
        assert_eq!((state.mhz, state.max_mhz), (Some(2400), Some(2400)));
        assert_eq!((state.capped_mhz, state.celsius), (None, Some(45.0)));
        assert_eq!((state.throttles, state.load), (Some(6), Some(0.4)));
        assert_eq!(state.held_back, None);
        let time = state.time.unwrap();
        assert_eq!(
            (time.cores, time.all, time.busy, time.own),
            (2, 10_200, 200, 150)
        );
        let calm = Conditions::between(state.clone(), state, 1);
        assert_eq!(calm.doubts(), Vec::<String>::new());
        assert_eq!(
            calm.line(),
            "governor performance   2400 of 2400 MHz   45 to 45 °C   throttled 0 times   load 0.40 to 0.40"
        );
    }

    #[test]
    fn what_changes_times_is_said_with_its_value() {
        let doubts = |change: &dyn Fn(&Path)| {
            let root = phone();
            let before = State::under(root.path());
            change(root.path());
            Conditions::between(before, State::under(root.path()), 1).doubts()
        };
        let core = "sys/devices/system/cpu/cpu1";
        let one = |files: &[(&str, &str)], expected: &str| {
            let found = doubts(&|root| files.iter().for_each(|(name, text)| put(root, name, text)));
            assert_eq!(found, [expected], "{files:?}");
        };
        let governor = format!("{core}/cpufreq/scaling_governor");
        let clock = format!("{core}/cpufreq/scaling_cur_freq");
        one(
            &[(&governor, "schedutil"), (&clock, "2000000")],
            "the governor is performance/schedutil, and the clock at 2000 of 2400 MHz",
        );
        // At its highest clock any governor will do.
        let kept = doubts(&|root| put(root, &governor, "schedutil"));
        assert!(kept.is_empty(), "{kept:?}");
        one(
            &[(&format!("{core}/cpufreq/scaling_max_freq"), "1500000")],
            "clocks are held below 1500 of 2400 MHz",
        );
        one(
            &[(&format!("{core}/thermal_throttle/core_throttle_count"), "7")],
            "cores were throttled 4 times meanwhile",
        );
        one(
            &[("sys/class/thermal/cooling_device0/cur_state", "2")],
            "heat holds the clocks back (thermal-cpufreq-0 at step 2)",
        );
        one(
            &[(
                "sys/devices/platform/soc/soc:firmware/get_throttled",
                "50000\n",
            )],
            "the supply's voltage is too low, or was since the start",
        );
        one(
            &[("sys/class/thermal/thermal_zone2/temp", "56000")],
            "the temperature rose from 45 to 56 °C",
        );
        one(
            &[("proc/loadavg", "2.31 1 1 1/1 1")],
            "the load average is 2.3 with 1 thread in use",
        );
        // 100 ticks of each of two cores: 100 of ours, 60 of others, 40 taken away.
        let used = "cpu  260 0 100 10000 0 0 0 40 0 0\ncpu0 1\ncpu1 1\n";
        let own = "12 (x) S 1 1 1 0 -1 0 0 0 0 0 200 50 0 0 20 0 1";
        let found = doubts(&|root| {
            put(root, "proc/stat", used);
            put(root, "proc/self/stat", own);
        });
        assert_eq!(
            found,
            [
                "other programs kept 0.6 cores busy",
                "the hypervisor took 20 % of the time"
            ]
        );
    }

    #[test]
    fn where_the_system_is_silent_nothing_is_claimed() {
        let root = tempfile::tempdir().unwrap();
        let state = State::under(root.path());
        assert_eq!(state, State::default());
        let silent = Conditions::between(state.clone(), state, 4);
        assert!(silent.doubts().is_empty());
        assert!(silent.line().contains("tells nothing"));
        for (name, text) in [
            ("proc/stat", "cpu  x"),
            ("proc/loadavg", "high"),
            ("sys/class/thermal/thermal_zone0/temp", "-273000"),
        ] {
            put(root.path(), name, text);
        }
        assert_eq!(State::under(root.path()), State::default());
    }

    #[test]
    fn other_programs_are_told_from_this_one() {
        if !cfg!(target_os = "linux") {
            return;
        }
        let before = State::now();
        assert!(before.load.is_some() && before.time.is_some());
        let begin = std::time::Instant::now();
        while begin.elapsed().as_millis() < 400 {
            std::hint::black_box(0);
        }
        let after = State::now();
        let used = |s: &State| s.time.unwrap().own;
        // 40 ticks, fewer where the machine is shared.
        assert!(used(&after) - used(&before) >= 5, "{before:?} {after:?}");
    }
}
