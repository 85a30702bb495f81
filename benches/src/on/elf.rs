//! For which processor and which loader a program was linked.

use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What the header of a program says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    machine: u16,
    /// The loader of its shared libraries; a static program has none.
    pub interpreter: Option<String>,
}

/// Machines by their ELF numbers, with the names that `uname -m` gives kernels that run their programs.
const MACHINES: [(u16, &str, &[&str]); 5] = [
    (
        3,
        "x86 (32 bits)",
        &["i386", "i486", "i586", "i686", "x86_64"],
    ),
    (
        40,
        "arm (32 bits)",
        &["armv6l", "armv7l", "armv8l", "aarch64"],
    ),
    (62, "x86_64", &["x86_64", "amd64"]),
    (183, "aarch64", &["aarch64", "arm64"]),
    (243, "riscv64", &["riscv64"]),
];

impl Elf {
    /// Reads the header of a file.
    pub fn of_file(path: &Path) -> Result<Elf> {
        let read = || -> std::io::Result<Option<Elf>> {
            let mut file = File::open(path)?;
            let mut part = |offset: u64, len: usize| -> std::io::Result<Vec<u8>> {
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = Vec::new();
                (&mut file).take(len as u64).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            Elf::parse(&mut part)
        };
        let found = read().map_err(|source| lacuna::Error::Io {
            path: path.to_path_buf(),
            action: "read",
            source,
        })?;
        found.ok_or_else(|| {
            Error::Option(format!(
                "{}: no program of Linux or Android (ELF, little-endian); name one with --on-binary",
                path.display()
            ))
        })
    }

    /// `part` gives up to so many bytes from an offset on.
    fn parse(
        part: &mut dyn FnMut(u64, usize) -> std::io::Result<Vec<u8>>,
    ) -> std::io::Result<Option<Elf>> {
        let head = part(0, 64)?;
        let wide = match head.get(..6) {
            Some([0x7f, b'E', b'L', b'F', 1, 1]) => false,
            Some([0x7f, b'E', b'L', b'F', 2, 1]) => true,
            _ => return Ok(None),
        };
        let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
            let bytes = bytes.get(at..at + len)?;
            Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
        };
        let layout = |narrow: (usize, usize), other: (usize, usize)| match wide {
            false => number(&head, narrow.0, narrow.1),
            true => number(&head, other.0, other.1),
        };
        let (Some(machine), Some(table), Some(size), Some(count)) = (
            number(&head, 18, 2),
            layout((28, 4), (32, 8)),
            layout((42, 2), (54, 2)),
            layout((44, 2), (56, 2)),
        ) else {
            return Ok(None);
        };
        let mut interpreter = None;
        let entries = part(table, (size * count) as usize)?;
        for entry in entries.chunks(size.max(1) as usize) {
            const INTERPRETER: u64 = 3;
            if number(entry, 0, 4) != Some(INTERPRETER) {
                continue;
            }
            let (offset, len) = match wide {
                false => (number(entry, 4, 4), number(entry, 16, 4)),
                true => (number(entry, 8, 8), number(entry, 32, 8)),
            };
            if let (Some(offset), Some(len)) = (offset, len) {
                let name = part(offset, len.min(4096) as usize)?;
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                interpreter = Some(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(Some(Elf {
            machine: machine as u16,
            interpreter,
        }))
    }

    /// The processor.
    pub fn machine_name(&self) -> String {
        match MACHINES.iter().find(|m| m.0 == self.machine) {
            Some(known) => known.1.into(),
            None => format!("ELF machine {}", self.machine),
        }
    }

    /// Whether a kernel of this `uname -m` runs it. An unknown name is not refused here.
    pub fn runs_on(&self, uname: &str) -> bool {
        let known = MACHINES.iter().any(|m| m.2.contains(&uname));
        match MACHINES.iter().find(|m| m.0 == self.machine) {
            Some(ours) => !known || ours.2.contains(&uname),
            None => !known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<Elf> {
        let mut part = |offset: u64, len: usize| {
            let from = (offset as usize).min(bytes.len());
            Ok(bytes[from..(from + len).min(bytes.len())].to_vec())
        };
        Elf::parse(&mut part).unwrap()
    }

    /// A header with one program header, that of a loader.
    fn program(machine: u16, loader: &str) -> Vec<u8> {
        let mut bytes = vec![0u8; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 3;
        bytes[72] = 120;
        bytes[96] = loader.len() as u8 + 1;
        bytes.extend(loader.bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_processor_and_the_loader_are_read() {
        let elf = of(&program(183, "/lib/ld-linux-aarch64.so.1")).unwrap();
        assert_eq!(
            elf.interpreter.as_deref(),
            Some("/lib/ld-linux-aarch64.so.1")
        );
        assert!(elf.runs_on("aarch64") && elf.runs_on("arm64") && !elf.runs_on("x86_64"));
        assert_eq!(elf.machine_name(), "aarch64");
        assert!(of(&program(3, "")).unwrap().runs_on("x86_64"));
        assert!(!of(&program(62, "")).unwrap().runs_on("i686"));
        assert!(!of(&program(999, "")).unwrap().runs_on("x86_64"));
        for end in 0..140 {
            of(&program(62, "/lib64/ld-linux-x86-64.so.2")[..end]);
        }
        assert_eq!(of(b"MZ and so on"), None);
        let mut hostile = program(62, "x");
        hostile[32..40].fill(0xff);
        hostile[54..58].fill(0xff);
        assert_eq!(of(&hostile).unwrap().interpreter, None);
    }

    #[test]
    fn this_program_is_for_this_machine() {
        if cfg!(target_os = "linux") {
            let elf = Elf::of_file(&std::env::current_exe().unwrap()).unwrap();
            assert!(elf.runs_on(std::env::consts::ARCH), "{elf:?}");
        }
    }
}
