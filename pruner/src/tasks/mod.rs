//! What a network is for: tasks, each with an output, a loss and a metric.
//!
//! A network with several outputs trains on the weighted sum of its tasks' losses; what prunes it can ask each task by
//! itself what a cut costs. A task without labels is the distance to another network's output.

mod boxes;
mod evaluate;
mod head;
mod labels;
mod loss;
mod metric;
mod precision;

pub use evaluate::{TaskFigures, TaskOptions, evaluate_tasks};
pub use metric::Metric;

pub(crate) use evaluate::{Images, Runner, figures, part};
pub(crate) use head::{Head, drop_unread, heads, with_graph};
pub(crate) use labels::{Labels, TaskData, Teacher};
pub(crate) use loss::{Found, Target, losses};
pub(crate) use metric::Tally;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// One task of a network. In a recipe: a table of `[[train.tasks]]`; on the command line the same keys as
/// `name=upper,output=logits,loss=cross-entropy,labels=upper`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSettings {
    /// Its name, for reports.
    pub name: String,
    /// The output of the model that it reads.
    pub output: String,
    /// What the output is held against, and how.
    pub loss: LossName,
    /// The tensor of its labels in the data: `upper` is read as `train_upper` of the part `train`. Without it the
    /// output is held against that of another network, the dense one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// What its loss counts in the sum that is trained on.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
    /// A label that does not count, such as 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<u16>,
    /// Of losses of boxes: width and height of each anchor, as shares of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anchors: Vec<[f64; 2]>,
    /// What is reported of it; chosen by the loss and the output where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
}

fn one() -> f64 {
    1.0
}

fn is_one(x: &f64) -> bool {
    *x == 1.0
}

/// How an output is held against its labels. A sample's loss is the mean over what it has of the output: over its
/// pixels, or over its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// Softmax over the channels and cross-entropy with a class: of `[N, C]` labels `[N]`, of `[N, C, H, W]` labels
    /// `[N, H, W]`.
    CrossEntropy,
    /// The square of the difference, of numbers of the output's shape.
    Mse,
    /// Half the square of a difference up to 1, beyond it the magnitude less a half.
    SmoothL1,
    /// Kullback-Leibler divergence of softmaxes over the channels, from the other network's output to this one.
    Kl,
    /// 1 less the complete IoU of the boxes that anchors answer for, as YOLOv5's: of an output `[N, A * (5 + K), H, W]`, and labels
    /// `[N, M, 5]` of class, centre and size as shares of the image, a class below 0 where there are fewer boxes.
    Box,
    /// Binary cross-entropy of the objectness of every anchor of the same output with its IoU.
    Objectness,
    /// Binary cross-entropy of the classes of the boxes that anchors answer for.
    Class,
}

impl LossName {
    const ALL: [(&'static str, LossName); 7] = [
        ("cross-entropy", LossName::CrossEntropy),
        ("mse", LossName::Mse),
        ("smooth-l1", LossName::SmoothL1),
        ("kl", LossName::Kl),
        ("box", LossName::Box),
        ("objectness", LossName::Objectness),
        ("class", LossName::Class),
    ];

    /// Whether the output is logits of a softmax over its channels.
    pub(crate) fn is_of_classes(self) -> bool {
        matches!(self, LossName::CrossEntropy | LossName::Kl)
    }

    /// Whether the output is that of a detection head.
    pub(crate) fn is_of_boxes(self) -> bool {
        matches!(self, LossName::Box | LossName::Objectness | LossName::Class)
    }
}

pub(crate) fn refuse(task: &str, what: impl Into<String>) -> Error {
    Error::Task {
        task: task.to_owned(),
        what: what.into(),
    }
}

impl TaskSettings {
    /// Refuses what cannot be.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(refuse(&self.name, what));
        if self.name.is_empty() {
            return refuse("it has no name".into());
        }
        if !self.weight.is_finite() || self.weight < 0.0 {
            return refuse(format!("a weight of {}", self.weight));
        }
        let side = |s: &f64| *s > 0.0 && *s <= 1.0;
        if self.loss.is_of_boxes() == self.anchors.is_empty() {
            return refuse("losses of boxes have anchors, and no others do".into());
        }
        if let Some([w, h]) = self.anchors.iter().find(|a| !a.iter().all(side)) {
            return refuse(format!("an anchor of {w} x {h} is no share of the image"));
        }
        match (self.loss, &self.labels) {
            (LossName::CrossEntropy, None) => {
                refuse("cross-entropy needs labels; without them take kl or mse".into())
            }
            (loss, None) if loss.is_of_boxes() => refuse("losses of boxes need labels".into()),
            (LossName::Kl, Some(labels)) => refuse(format!(
                "kl compares with another network's output; it takes no labels `{labels}`"
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses tasks of one name, and each that cannot be.
pub(crate) fn check(tasks: &[TaskSettings]) -> Result<()> {
    for (i, task) in tasks.iter().enumerate() {
        task.check()?;
        if tasks[..i].iter().any(|t| t.name == task.name) {
            return Err(refuse(&task.name, "two tasks have this name"));
        }
    }
    Ok(())
}

impl FromStr for TaskSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<TaskSettings, String> {
        let mut task = TaskSettings {
            name: String::new(),
            output: String::new(),
            loss: LossName::CrossEntropy,
            labels: None,
            weight: 1.0,
            ignore: None,
            anchors: Vec::new(),
            metric: None,
        };
        let mut has_loss = false;
        for part in text.split(',') {
            let (key, value) =
                (part.split_once('=')).ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
            let number = |what: &str| format!("`{value}` is no {what}");
            match key {
                "name" => task.name = value.to_owned(),
                "output" => task.output = value.to_owned(),
                "labels" => task.labels = Some(value.to_owned()),
                "weight" => task.weight = value.parse().map_err(|_| number("weight"))?,
                "ignore" => task.ignore = Some(value.parse().map_err(|_| number("label"))?),
                "anchors" => {
                    let one = |text: &str| -> Option<[f64; 2]> {
                        let (w, h) = text.split_once('x')?;
                        Some([w.parse().ok()?, h.parse().ok()?])
                    };
                    let all = value.split('/').map(one).collect::<Option<_>>();
                    task.anchors = all.ok_or_else(|| {
                        format!("anchors `{value}`: sizes such as 0.1x0.2/0.3x0.25")
                    })?;
                }
                "metric" => task.metric = Some(value.parse()?),
                "loss" => {
                    has_loss = true;
                    let found = LossName::ALL.iter().find(|l| l.0 == value);
                    let names: Vec<&str> = LossName::ALL.iter().map(|l| l.0).collect();
                    task.loss = found
                        .ok_or_else(|| format!("loss `{value}`: one of {}", names.join(", ")))?
                        .1;
                }
                _ => {
                    return Err(format!(
                        "`{key}` is none of name, output, loss, labels, weight, ignore, anchors, metric"
                    ));
                }
            }
        }
        if !has_loss {
            return Err("a task needs a loss".into());
        }
        if task.output.is_empty() {
            task.output.clone_from(&task.name);
        }
        task.check().map_err(|e| e.to_string())?;
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_read_and_refused_with_the_part_that_is_wrong() {
        let read = |text: &str| text.parse::<TaskSettings>();
        let task =
            read("name=pixels,loss=cross-entropy,labels=mask,ignore=255,weight=0.5").unwrap();
        assert_eq!(task.output, "pixels");
        assert_eq!((task.weight, task.ignore), (0.5, Some(255)));
        assert_eq!(read("name=a,output=b,loss=kl").unwrap().labels, None);
        for (text, what) in [
            ("name=a", "needs a loss"),
            ("name=a,loss=l2", "`l2`"),
            ("name=a,loss=cross-entropy", "needs labels"),
            ("name=a,loss=kl,labels=b", "no labels `b`"),
            ("loss=kl,output=a", "no name"),
            ("name=a,loss=kl,weight=-1", "-1"),
            ("name=a,loss=kl,metric=best", "`best`"),
            ("name=a,loss=kl,size=3", "`size`"),
            ("name", "KEY=VALUE"),
        ] {
            let e = read(text).unwrap_err();
            assert!(e.contains(what), "{text}: {e}");
        }
    }

    #[test]
    fn two_tasks_of_one_name_are_refused() {
        let task: TaskSettings = "name=a,loss=kl".parse().unwrap();
        let e = check(&[task.clone(), task]).unwrap_err().to_string();
        assert!(e.contains("task `a`"), "{e}");
    }
}
