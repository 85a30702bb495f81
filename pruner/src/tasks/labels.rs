//! Images with the labels of several tasks.

use super::boxes::{Grid, LABEL};
use super::{Head, LossName, Runner, Target, refuse};
use crate::data::{self, Dataset, Samples, Tensors};
use crate::{Error, Result};
use lacuna::Model;
use safetensors::tensor::TensorView as View;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// The labels of a task, for every sample.
#[derive(Clone, Debug)]
pub(crate) enum Labels {
    /// Classes, so many of a sample.
    Classes(usize, Vec<u16>),
    /// Numbers, so many of a sample, channels last.
    Numbers(usize, Vec<f32>),
    /// Boxes, so many numbers of a sample.
    Boxes(usize, Vec<f32>),
    /// What another network says.
    Teacher,
}

impl Labels {
    /// A classifier's.
    ///
    /// # Errors
    /// When a label has no class.
    pub fn of(data: &Samples, classes: usize) -> Result<Labels> {
        let label = |i: usize| match data.label(i) {
            label if label < classes && label <= usize::from(u16::MAX) => Ok(label as u16),
            label => Err(Error::Label {
                sample: data.origin(i),
                label,
                classes,
            }),
        };
        Ok(Labels::Classes(
            1,
            (0..data.len()).map(label).collect::<Result<_>>()?,
        ))
    }

    /// What the outputs of these samples are held against; nothing yet where another network says it.
    pub fn gather(&self, indices: &[usize]) -> Target {
        match self {
            Labels::Classes(each, all) => Target::Classes(rows(*each, all, indices)),
            Labels::Numbers(each, all) => Target::Numbers(rows(*each, all, indices)),
            Labels::Boxes(each, all) => Target::Boxes(*each, rows(*each, all, indices)),
            Labels::Teacher => Target::Numbers(Vec::new()),
        }
    }
}

fn rows<T: Copy>(each: usize, all: &[T], indices: &[usize]) -> Vec<T> {
    let row = |&i: &usize| &all[i * each..(i + 1) * each];
    indices.iter().flat_map(row).copied().collect()
}

/// Images and the labels of every task.
pub(crate) struct TaskData {
    pub images: Samples,
    pub labels: Vec<Labels>,
}

impl TaskData {
    /// Reads the part `split`. Labels are tensors of a safetensors file; without any, images of every kind are read.
    ///
    /// # Errors
    /// When the file has no such tensor, or one of another shape, number of samples or classes than its task has.
    pub fn open(path: &Path, split: &str, heads: &[Head]) -> Result<TaskData> {
        let tensors = path.extension().is_some_and(|e| e == "safetensors");
        let refuse = |what: String| Error::Data {
            path: path.to_owned(),
            what,
        };
        if !tensors {
            let images = Samples::Images(data::open(path, split)?);
            // Other kinds of data have one class for each image.
            let own = |head: &Head| match head.labels.as_deref() {
                None => Ok(Labels::Teacher),
                Some("labels") if head.loss == LossName::CrossEntropy && head.rows == 1 => {
                    Labels::of(&images, head.width)
                }
                Some(labels) => Err(refuse(format!(
                    "labels `{labels}` of task `{}` are read from a safetensors file",
                    head.name
                ))),
            };
            let labels = heads.iter().map(own).collect::<Result<_>>()?;
            return Ok(TaskData { images, labels });
        }
        let images = Tensors::images(path, split)?;
        let count = images.len();
        let bytes = data::read(path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
        let own = |head: &Head| -> Result<Labels> {
            let Some(name) = &head.labels else {
                return Ok(Labels::Teacher);
            };
            let with_split = format!("{split}_{name}");
            let found = [&with_split, name]
                .into_iter()
                .find_map(|n| Some((n, file.tensor(n).ok()?)));
            let (found, view) = found.ok_or_else(|| {
                refuse(format!(
                    "no tensor `{with_split}` or `{name}` for the labels of task `{}`",
                    head.name
                ))
            })?;
            read(head, &view, count).map_err(|what| refuse(format!("tensor `{found}`: {what}")))
        };
        Ok(TaskData {
            labels: heads.iter().map(own).collect::<Result<_>>()?,
            images: Samples::Images(Box::new(images)),
        })
    }

    /// Refuses where a task needs another network and there is none.
    pub fn check_teacher(&self, heads: &[Head], teacher: Option<&Teacher>) -> Result<()> {
        let without = self
            .labels
            .iter()
            .zip(heads)
            .find(|l| matches!(l.0, Labels::Teacher));
        match (without, teacher) {
            (Some((_, head)), None) => Err(refuse(
                &head.name,
                "it has no labels, and there is no other network to hold it against",
            )),
            _ => Ok(()),
        }
    }
}

/// The labels of a tensor.
fn read(head: &Head, view: &View<'_>, count: usize) -> Result<Labels, String> {
    let shape = view.shape();
    if let Some(grid) = &head.grid {
        return boxes(head, grid, view, count);
    }
    let wanted = match (head.loss, head.shape.as_slice()) {
        (LossName::CrossEntropy, [_, rest @ ..]) if head.rows > 1 => rest,
        (LossName::CrossEntropy, _) => &[],
        (_, shape) => shape,
    };
    let fits = shape.first() == Some(&count)
        && (shape[1..] == *wanted
            || shape[1..].iter().product::<usize>() == 1 && wanted.iter().product::<usize>() == 1);
    if !fits {
        return Err(format!(
            "shape {shape:?}; task `{}` takes {wanted:?} for each of {count} images",
            head.name
        ));
    }
    if head.loss != LossName::CrossEntropy {
        let planes = numbers(view)?;
        let mut values = vec![0.0; planes.len()];
        head.channels_last(&planes, &mut values);
        return Ok(Labels::Numbers(head.rows * head.width, values));
    }
    let values = data::integers(view)?;
    let each = head.rows;
    let label = |(at, v): (usize, i64)| {
        let class = u16::try_from(v).ok();
        class
            .filter(|&c| usize::from(c) < head.width || Some(c) == head.ignore)
            .ok_or_else(|| {
                format!(
                    "element {} of image {} is {v}; output of task `{}` has {} classes",
                    at % each,
                    at / each,
                    head.name,
                    head.width
                )
            })
    };
    let values = values
        .into_iter()
        .enumerate()
        .map(label)
        .collect::<Result<_, String>>();
    Ok(Labels::Classes(each, values?))
}

/// Boxes of a tensor `[N, M, 5]`.
fn boxes(head: &Head, grid: &Grid, view: &View<'_>, count: usize) -> Result<Labels, String> {
    let &[n, most @ (1..), LABEL] = view.shape() else {
        return Err(format!(
            "shape {:?}; task `{}` takes [{count}, M, 5]: class, centre and size of each box",
            view.shape(),
            head.name
        ));
    };
    if n != count {
        return Err(format!("{n} images of {count} have boxes"));
    }
    let values = numbers(view)?;
    for (i, label) in values.chunks_exact(LABEL).enumerate() {
        let class = label[0];
        let is_class = class.fract() == 0.0 && (class as usize) < grid.classes;
        let inside = |v: &f32| (0.0..=1.0).contains(v);
        let fits = is_class && label[1..].iter().all(inside) && label[3] > 0.0 && label[4] > 0.0;
        if class >= 0.0 && !fits {
            return Err(format!(
                "box {} of image {} is {label:?}; task `{}` takes a class below {}, centre and size from 0 to 1",
                i % most,
                i / most,
                head.name,
                grid.classes
            ));
        }
    }
    Ok(Labels::Boxes(most * LABEL, values))
}

fn numbers(view: &View<'_>) -> Result<Vec<f32>, String> {
    if view.dtype() != Dtype::F32 {
        return Ok(data::integers(view)?
            .into_iter()
            .map(|v| v as f32)
            .collect());
    }
    let words = view.data().as_chunks::<4>().0.iter();
    let values: Vec<f32> = words.map(|w| f32::from_le_bytes(*w)).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(format!("element {at} is {}", values[at])),
        None => Ok(values),
    }
}

/// The network whose outputs tasks without labels are held against.
pub(crate) struct Teacher {
    runner: Runner,
    planes: Vec<f32>,
    input: [usize; 3],
}

impl Teacher {
    /// `model` is narrowed to the outputs of the tasks.
    pub fn new(model: &Model, batch: usize, threads: usize) -> Result<Teacher> {
        let runner = Runner::new(model, batch, threads)?;
        let [_, c, h, w] = runner.shapes()[0][..] else {
            return Err(Error::Evaluation(
                "the model to learn from takes no images".into(),
            ));
        };
        Ok(Teacher {
            runner,
            planes: Vec::new(),
            input: [c, h, w],
        })
    }

    /// Fills the targets of tasks without labels, for images that are kept channels last.
    pub fn fill(&mut self, heads: &[Head], images: &[f32], targets: &mut [Target]) -> Result<()> {
        let [c, h, w] = self.input;
        let (plane, size) = (h * w, c * h * w);
        self.planes.resize(images.len(), 0.0);
        for (from, to) in images
            .chunks_exact(size)
            .zip(self.planes.chunks_exact_mut(size))
        {
            for (p, pixel) in from.chunks_exact(c).enumerate() {
                for (i, &x) in pixel.iter().enumerate() {
                    to[i * plane + p] = x;
                }
            }
        }
        let planes = std::mem::take(&mut self.planes);
        let filled = self.fill_planes(heads, &planes, targets);
        self.planes = planes;
        filled
    }

    /// The same for images of planes.
    pub fn fill_planes(
        &mut self,
        heads: &[Head],
        planes: &[f32],
        targets: &mut [Target],
    ) -> Result<()> {
        let size: usize = self.input.iter().product();
        let count = planes.len() / size.max(1);
        for (head, target) in heads.iter().zip(targets.iter_mut()) {
            if head.labels.is_none() {
                *target = Target::Numbers(vec![0.0; count * head.rows * head.width]);
            }
        }
        self.runner.run(&[planes], count, &mut |at, n, outputs| {
            for (head, target) in heads.iter().zip(targets.iter_mut()) {
                let Target::Numbers(to) = target else {
                    continue;
                };
                if head.labels.is_none() {
                    let each = head.rows * head.width;
                    let from = &outputs[head.output].data[..n * each];
                    head.channels_last(from, &mut to[at * each..(at + n) * each]);
                }
            }
            Ok(true)
        })
    }
}
