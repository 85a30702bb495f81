//! What is said to the device's shell: POSIX and nothing more.

use super::link::Link;
use crate::Result;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::time::{Duration, Instant};

/// A word for a POSIX shell that stands for `text`, whatever is in it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What the holder's answers begin with; a shell's own greeting is passed over.
const MARK: &str = "lacuna-bench: ";

/// How long the device may take to clear up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shell on the device that made a folder, and removes it when its standard input ends.
pub(super) struct Holder {
    child: Child,
    /// The folder, as the device names it.
    pub folder: String,
    /// The processor, as `uname -m` names it.
    pub machine: String,
    /// Bytes that are free where the folder is.
    pub free: u64,
    /// The loader that was asked for and is not there.
    pub missing: Option<String>,
}

impl Holder {
    /// Makes a folder in `parent`, or in the device's own place for such folders.
    pub fn start(link: &Link, parent: Option<&str>, loader: Option<&str>) -> Result<Holder> {
        let parent = match parent {
            Some(folder) => quoted(folder),
            None => link.default_folder().to_owned(),
        };
        let loader = loader.map_or(String::new(), |path| {
            let path = quoted(path);
            format!("[ -e {path} ] || echo '{MARK}missing' {path}; ")
        });
        let name = format!("lacuna-bench.{:016x}", random());
        // One line: what a shell has not read yet would be taken by `cat`.
        let script = format!(
            "{{ umask 077; cd {parent} && mkdir {name} && cd {name} && d=$(pwd) || exit 1; \
             trap 'kill $(cat \"$d/pid\" 2>/dev/null) 2>/dev/null; cd /; rm -rf \"$d\"' EXIT; trap 'exit 1' HUP INT TERM; \
             echo '{MARK}folder' \"$d\"; echo '{MARK}machine' \"$(uname -m)\"; {loader}\
             echo '{MARK}space' \"$(df -Pk . | tail -n 1)\"; echo '{MARK}ready'; cat > /dev/null; }}\n"
        );
        let mut holder = Holder {
            child: link.hold(&script)?,
            folder: String::new(),
            machine: String::new(),
            free: u64::MAX,
            missing: None,
        };
        holder.listen(link)?;
        Ok(holder)
    }

    /// Reads what the shell says until it is ready.
    fn listen(&mut self, link: &Link) -> Result<()> {
        let mut ready = false;
        if let Some(stdout) = self.child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { break };
                let Some(said) = line.trim_end().strip_prefix(MARK) else {
                    continue;
                };
                let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
                match word {
                    "folder" => self.folder = rest.to_owned(),
                    "machine" => self.machine = rest.to_owned(),
                    "missing" => self.missing = Some(rest.to_owned()),
                    "space" => self.free = free(rest).unwrap_or(u64::MAX),
                    _ => ready = true,
                }
                if ready {
                    break;
                }
            }
        }
        if !ready {
            drop(self.child.stdin.take());
            let mut said = String::new();
            if let Some(mut stderr) = self.child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            let code = self.child.wait().ok().and_then(|s| s.code());
            return Err(link.refused(code, &said));
        }
        // Other programs than a POSIX shell read some paths on the way.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-,@%=".contains(c);
        match self.folder.starts_with('/') && self.folder.chars().all(plain) {
            true => Ok(()),
            false => Err(link.error(format!(
                "the folder `{}` has characters that not every shell takes; --on-folder names another one",
                self.folder
            ))),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that are free, from a line of `df -Pk`: the number before the percentage.
fn free(line: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let percentage = words.iter().position(|w| w.ends_with('%'))?;
    let kib: u64 = words.get(percentage.checked_sub(1)?)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Another number each time.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_read_whatever_the_file_system_is_called() {
        let line = "/dev/vda 264212084 54342640 40943248 58% /";
        assert_eq!(free(line), Some(40_943_248 * 1024));
        assert_eq!(free("a name 10 5 5 50% /mnt/a b"), Some(5 * 1024));
        for odd in ["", "%", "df: no", "- - -"] {
            assert_eq!(free(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_shell_reads_words_as_they_were() {
        if !cfg!(unix) {
            return;
        }
        for text in [
            "plain",
            "it's",
            "a b\tc",
            "$(touch x) `y` \\ \" ! * ?",
            "\n",
            "",
            "-n",
            "é ✓",
        ] {
            let script = format!("printf %s {}", quoted(text));
            let mut shell = std::process::Command::new("sh");
            let output = shell.arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
