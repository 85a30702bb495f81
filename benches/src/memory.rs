//! What the process holds in memory.

/// Resident memory of this process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// The most that was ever resident.
    pub peak: u64,
    /// Resident now and backed by no file: what mapping a model does not cost.
    pub anonymous: u64,
    /// Resident now and backed by a file, one in memory (tmpfs) included.
    pub mapped: u64,
}

impl Resident {
    /// What the system says now; `None` where it has no `/proc`.
    pub fn now() -> Option<Resident> {
        parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }
}

fn parse(status: &str) -> Option<Resident> {
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Resident {
        peak: field("VmHWM:")?,
        anonymous: field("RssAnon:")?,
        mapped: field("RssFile:")?.checked_add(field("RssShmem:")?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_status_file() {
        let text = "VmPeak:\t  9000 kB\nVmHWM:\t    5000 kB\nVmRSS:\t 4000 kB\nRssAnon:\t 70 kB\nRssFile:\t 8 kB\nRssShmem:\t 1 kB\n";
        let expect = Resident {
            peak: 5000 << 10,
            anonymous: 70 << 10,
            mapped: 9 << 10,
        };
        assert_eq!(parse(text), Some(expect));
        assert_eq!(parse("VmHWM:\t 1 kB\n"), None);
        assert_eq!(parse("VmHWM:\t x kB\nRssAnon: 1 kB"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_shows() {
        let before = Resident::now().unwrap();
        let block = vec![1u8; 64 << 20];
        let after = Resident::now().unwrap();
        assert!(block.iter().step_by(4096).all(|b| *b == 1));
        assert!(after.anonymous >= before.anonymous + (48 << 20));
        assert!(after.peak >= after.anonymous);
    }
}
