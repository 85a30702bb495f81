//! Batches of images, decoded and augmented by worker threads ahead of their use; or of sequences.

use super::settings::{Augment, Border, TrainSettings};
use crate::data::{Dataset, Image, Preprocess, Samples, Sequences};
use crate::random::Random;
use crate::tasks::{Labels, Target};
use crate::{Error, Result};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Decoded images are kept up to so many bytes in all.
const KEPT_BYTES: usize = 1 << 30;

/// Steps that each worker may be ahead.
const AHEAD: usize = 2;

/// The images of a step, channels last, or its sequences.
pub(super) struct Batch {
    pub samples: Vec<f32>,
    /// Steps of a sequence; 1 of images.
    pub time: usize,
    /// Images or sequences.
    pub count: usize,
    /// One of each task.
    pub targets: Vec<Target>,
}

#[cfg(test)]
impl Batch {
    pub fn of_images(images: &[f32], labels: &[usize]) -> Batch {
        Batch {
            samples: images.to_vec(),
            time: 1,
            count: labels.len(),
            targets: vec![Target::of_classes(labels)],
        }
    }
}

/// A data set, ready to be read in the order of any epoch.
pub(super) struct Loader<'a> {
    kind: Kind<'a>,
    labels: &'a [Labels],
    batch: usize,
    seed: u64,
    /// The samples to train on.
    chosen: Vec<usize>,
}

enum Kind<'a> {
    Images {
        data: &'a dyn Dataset,
        preprocess: Preprocess,
        augment: Augment,
        /// Images that were decoded; empty where they do not fit.
        kept: Vec<OnceLock<Image>>,
    },
    Sequences(&'a Sequences),
}

impl<'a> Loader<'a> {
    /// Checks sizes of what can be checked without decoding everything. Images need a preprocessing.
    pub fn new(
        data: &'a Samples,
        preprocess: Option<Preprocess>,
        settings: &TrainSettings,
        labels: &'a [Labels],
    ) -> Result<Loader<'a>> {
        let mut chosen: Vec<usize> = (0..data.len()).collect();
        let held = settings.data.held_out(data.len());
        chosen.retain(|i| held.binary_search(i).is_err());
        if let Some(limit) = settings.data.limit {
            Random::new(settings.seed, &[u64::MAX]).shuffle(&mut chosen);
            chosen.truncate(limit);
        }
        if chosen.is_empty() {
            return Err(Error::Training(format!(
                "nothing to train on: {}",
                data.describe()
            )));
        }
        let augment = settings.augment;
        let kind = match (data, preprocess) {
            (Samples::Sequences(_), _) if augment != Augment::default() => {
                return Err(Error::Training("crop and flip are for images".into()));
            }
            (Samples::Sequences(data), _) => Kind::Sequences(data),
            (Samples::Images(_), None) => {
                return Err(Error::Training("images without a preprocessing".into()));
            }
            (Samples::Images(data), Some(preprocess)) => {
                let [c, h, w] = preprocess.input;
                if augment.border == Border::Reflect && augment.crop >= h.min(w) {
                    return Err(Error::Training(format!(
                        "a mirrored border of {} around {h}x{w} pixels",
                        augment.crop
                    )));
                }
                if augment.crop > 1 << 12 {
                    return Err(Error::Training(format!(
                        "a crop by {} pixels",
                        augment.crop
                    )));
                }
                let fits = data.len().saturating_mul(c * h * w) <= KEPT_BYTES;
                let kept = (0..if fits { data.len() } else { 0 }).map(|_| OnceLock::new());
                Kind::Images {
                    data: &**data,
                    preprocess,
                    augment,
                    kept: kept.collect(),
                }
            }
        };
        Ok(Loader {
            kind,
            labels,
            batch: settings.batch,
            seed: settings.seed,
            chosen,
        })
    }

    pub fn samples(&self) -> usize {
        self.chosen.len()
    }

    /// Steps of an epoch.
    pub fn steps(&self) -> usize {
        self.chosen.len().div_ceil(self.batch)
    }

    /// Calls `step` with each batch of an epoch in turn.
    pub fn epoch(
        &self,
        epoch: usize,
        mut step: impl FnMut(usize, Batch) -> Result<()>,
    ) -> Result<()> {
        let mut order = self.chosen.clone();
        Random::new(self.seed, &[epoch as u64]).shuffle(&mut order);
        let batches: Vec<&[usize]> = order.chunks(self.batch).collect();
        let workers = rayon::current_num_threads().clamp(1, batches.len().max(1));
        std::thread::scope(|scope| {
            let channels: Vec<Receiver<Result<Batch>>> = (0..workers)
                .map(|w| {
                    let (sender, receiver) = sync_channel(AHEAD);
                    let batches = &batches;
                    scope.spawn(move || {
                        self.work(epoch, batches.iter().skip(w).step_by(workers), &sender)
                    });
                    receiver
                })
                .collect();
            for i in 0..batches.len() {
                let lost = || Error::Training("a loading thread ended early".into());
                let batch = channels[i % workers].recv().map_err(|_| lost())??;
                step(i, batch)?;
            }
            Ok(())
        })
    }

    fn work<'b>(
        &self,
        epoch: usize,
        batches: impl Iterator<Item = &'b &'b [usize]>,
        to: &SyncSender<Result<Batch>>,
    ) {
        for indices in batches {
            // A closed channel means that the epoch has ended with an error.
            if to.send(self.batch(epoch, indices)).is_err() {
                return;
            }
        }
    }

    fn batch(&self, epoch: usize, indices: &[usize]) -> Result<Batch> {
        let (samples, time) = match &self.kind {
            Kind::Sequences(data) => {
                let all = indices.iter().flat_map(|&i| data.sequence(i));
                (all.copied().collect(), data.time())
            }
            Kind::Images {
                data,
                preprocess,
                augment,
                kept,
            } => {
                let size: usize = preprocess.input.iter().product();
                let mut images = vec![0.0; size * indices.len()];
                let mut planes = vec![0.0; size];
                for (&i, to) in indices.iter().zip(images.chunks_exact_mut(size.max(1))) {
                    image(*data, kept, preprocess, i, &mut planes)?;
                    let mut random = Random::new(self.seed, &[epoch as u64, i as u64]);
                    place(preprocess, *augment, &planes, &mut random, to);
                }
                (images, 1)
            }
        };
        Ok(Batch {
            samples,
            time,
            count: indices.len(),
            targets: self.labels.iter().map(|l| l.gather(indices)).collect(),
        })
    }
}

/// An image, decoded once where it is kept, as planes.
fn image(
    data: &dyn Dataset,
    kept: &[OnceLock<Image>],
    preprocess: &Preprocess,
    i: usize,
    planes: &mut [f32],
) -> Result<()> {
    let fresh;
    let image = match kept.get(i) {
        Some(slot) => match slot.get() {
            Some(image) => image,
            None => {
                let image = data.image(i)?;
                slot.get_or_init(|| image)
            }
        },
        None => {
            fresh = data.image(i)?;
            &fresh
        }
    };
    preprocess.apply(image, planes).map_err(|what| Error::Data {
        path: data.origin(i).into(),
        what,
    })
}

/// Crops and mirrors an image of planes to one of channels last.
fn place(p: &Preprocess, augment: Augment, planes: &[f32], random: &mut Random, to: &mut [f32]) {
    let [channels, height, width] = p.input;
    let Augment { crop, border, flip } = augment;
    let shift = |random: &mut Random| random.below(2 * crop + 1) as isize - crop as isize;
    let (down, right) = (shift(random), shift(random));
    let flip = flip && random.below(2) == 1;
    let per = |values: &[f32], c: usize| values[c.min(values.len() - 1)];
    let black: Vec<f32> = (0..channels)
        .map(|c| -per(&p.mean, c) / per(&p.std, c))
        .collect();
    let inside = |at: isize, len: usize| match (usize::try_from(at), border) {
        (Ok(at), _) if at < len => Some(at),
        (_, Border::Zero) => None,
        (Ok(at), Border::Reflect) => Some(2 * (len - 1) - at),
        (Err(_), Border::Reflect) => Some(at.unsigned_abs()),
    };
    for (i, to) in to.chunks_exact_mut(channels).enumerate() {
        let (y, x) = (i / width, i % width);
        let x = if flip { width - 1 - x } else { x };
        let from = inside(y as isize + down, height).zip(inside(x as isize + right, width));
        for (c, to) in to.iter_mut().enumerate() {
            *to = match from {
                Some((y, x)) => planes[(c * height + y) * width + x],
                None => black[c],
            };
        }
    }
}
