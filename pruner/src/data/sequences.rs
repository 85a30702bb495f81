//! A safetensors file of labelled sequences: windows of a signal, with the subject of each.

use super::read;
use super::tensors::{find, indices};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Sequences of one length, held in memory. The tensors of the file are
///
/// - `windows` F32 `[N, T, C]`, of finite numbers;
/// - `labels` `[N]`, U8, I32 or I64;
/// - `subjects` `[N]`, of the same dtypes: whose a sequence is. Only needed where subjects are held out.
///
/// For a split `test`, names with it (`test_windows`, ...) are read where they exist.
#[derive(Clone, Debug)]
pub struct Sequences {
    path: PathBuf,
    part: String,
    time: usize,
    channels: usize,
    windows: Vec<f32>,
    labels: Vec<usize>,
    /// Where each sequence stands in the file.
    places: Vec<usize>,
}

impl Sequences {
    /// Reads and checks a split. With subjects held out, `train` is the sequences of the others and `test` theirs.
    pub fn open(path: &Path, split: &str, held_out: &[usize]) -> Result<Sequences> {
        let bytes = read(path)?;
        Sequences::parse(&bytes, path, split, held_out).map_err(|what| Error::Data {
            path: path.to_owned(),
            what,
        })
    }

    fn parse(
        bytes: &[u8],
        path: &Path,
        split: &str,
        held_out: &[usize],
    ) -> Result<Sequences, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let need = |name: &str| {
            let found = find(&file, split, name);
            found.ok_or_else(|| format!("no tensor `{split}_{name}` or `{name}`"))
        };
        let windows = need("windows")?;
        let &[count, time, channels] = windows.shape() else {
            return Err(format!(
                "windows of shape {:?}, not [N, T, C]",
                windows.shape()
            ));
        };
        if windows.dtype() != Dtype::F32 || time == 0 || channels == 0 {
            return Err(format!(
                "windows of {:?} and shape {:?}, not F32 [N, T, C]",
                windows.dtype(),
                windows.shape()
            ));
        }
        let labels = indices("labels", &need("labels")?)?;
        if labels.len() != count {
            return Err(format!("{} labels for {count} windows", labels.len()));
        }
        let values = windows.data().as_chunks::<4>().0;
        let mut part = format!("split {split}");
        let places: Vec<usize> = match held_out {
            [] => (0..count).collect(),
            _ => {
                let subjects = indices("subjects", &need("subjects")?)?;
                if subjects.len() != count {
                    return Err(format!("{} subjects for {count} windows", subjects.len()));
                }
                let known: BTreeSet<usize> = subjects.iter().copied().collect();
                if let Some(s) = held_out.iter().find(|s| !known.contains(s)) {
                    return Err(format!(
                        "subject {s} is to be held out, the subjects are {known:?}"
                    ));
                }
                let tested = match split {
                    "train" => false,
                    "test" => true,
                    _ => {
                        return Err(format!(
                            "split `{split}` of subjects; `train` is those that are not held out, `test` the others"
                        ));
                    }
                };
                let names: Vec<String> = held_out.iter().map(usize::to_string).collect();
                let which = if tested {
                    "subjects"
                } else {
                    "all subjects but"
                };
                part = format!("{which} {}", names.join(", "));
                let own = |i: &usize| held_out.contains(&subjects[*i]) == tested;
                (0..count).filter(own).collect()
            }
        };
        let each = time * channels;
        let mut own = Vec::with_capacity(places.len() * each);
        for &place in &places {
            let window = &values[place * each..][..each];
            own.extend(window.iter().map(|w| f32::from_le_bytes(*w)));
            let start = own.len() - each;
            if let Some(i) = own[start..].iter().position(|x| !x.is_finite()) {
                return Err(format!(
                    "window {place}, step {}, channel {}: {}",
                    i / channels,
                    i % channels,
                    own[start + i]
                ));
            }
        }
        Ok(Sequences {
            path: path.to_owned(),
            part,
            time,
            channels,
            windows: own,
            labels: places.iter().map(|&i| labels[i]).collect(),
            places,
        })
    }

    /// What it is, for reports.
    pub fn describe(&self) -> String {
        format!(
            "{} sequences of {} steps of {}, {}",
            self.len(),
            self.time,
            self.path.display(),
            self.part
        )
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Steps of a sequence.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Numbers of a step.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The class of sequence `index`, less than [`Sequences::len`].
    pub fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    /// Sequence `index`, less than [`Sequences::len`]: its steps, one after the other.
    pub fn sequence(&self, index: usize) -> &[f32] {
        let each = self.time * self.channels;
        &self.windows[index * each..][..each]
    }

    /// Where sequence `index` comes from, for errors.
    pub fn origin(&self, index: usize) -> String {
        format!("{}, window {}", self.path.display(), self.places[index])
    }

    /// Mean and standard deviation of each channel, over all steps of all sequences.
    ///
    /// # Errors
    /// When a channel never changes.
    pub fn statistics(&self) -> Result<[Vec<f32>; 2]> {
        let steps = || self.windows.chunks_exact(self.channels);
        let still = |c: &usize| steps().all(|step| step[*c] == self.windows[*c]);
        if let Some(channel) = (0..self.channels).find(still) {
            return Err(Error::Data {
                path: self.path.clone(),
                what: format!("channel {channel} never changes in {}", self.describe()),
            });
        }
        let rows = (self.windows.len() / self.channels).max(1) as f64;
        let mut moments = vec![[0.0f64; 2]; self.channels];
        for step in steps() {
            for (m, &x) in moments.iter_mut().zip(step) {
                m[0] += f64::from(x) / rows;
            }
        }
        for step in steps() {
            for (m, &x) in moments.iter_mut().zip(step) {
                m[1] += (f64::from(x) - m[0]).powi(2) / rows;
            }
        }
        Ok([
            moments.iter().map(|m| m[0] as f32).collect(),
            moments.iter().map(|m| m[1].sqrt() as f32).collect(),
        ])
    }
}
