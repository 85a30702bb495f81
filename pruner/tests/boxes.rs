//! A detection head learns boxes: its three losses fall, its precision rises, and labels that are none are refused.

mod common;
#[path = "common/nets.rs"]
mod nets;

use lacuna::model::Op;
use lacuna_prune::eval::EvalOptions;
use lacuna_prune::tasks::{TaskFigures, TaskOptions, TaskSettings, evaluate_tasks};
use lacuna_prune::train::{DataSettings, Effort, TrainSettings, train};
use nets::Net;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

const SIDE: usize = 12;
const IMAGES: usize = 60;

/// One bright rectangle an image: wide or high, which is its class.
fn data(path: &Path, change: impl Fn(&mut Vec<f32>)) {
    let (mut images, mut boxes) = (Vec::new(), Vec::new());
    for i in 0..IMAGES {
        let [w, h] = if i % 2 == 0 { [5, 3] } else { [3, 5] };
        let (x, y) = (i * 5 % (SIDE - w), i * 7 % (SIDE - h));
        for p in 0..SIDE * SIDE {
            let inside = (x..x + w).contains(&(p % SIDE)) && (y..y + h).contains(&(p / SIDE));
            images.push(if inside { 230u8 } else { 20 });
        }
        let share = |n: f32| n / SIDE as f32;
        let centre = |from: usize, n: usize| share(from as f32 + n as f32 / 2.0);
        boxes.extend([
            (i % 2) as f32,
            centre(x, w),
            centre(y, h),
            share(w as f32),
            share(h as f32),
        ]);
        boxes.extend([-1.0; 5]);
    }
    change(&mut boxes);
    let boxes: Vec<u8> = boxes.iter().flat_map(|v| v.to_le_bytes()).collect();
    let labels = vec![0u8; IMAGES];
    let view = |dtype, shape: Vec<usize>, data| TensorView::new(dtype, shape, data).unwrap();
    let tensors = [
        (
            "train_images",
            view(Dtype::U8, vec![IMAGES, 1, SIDE, SIDE], &images),
        ),
        ("train_labels", view(Dtype::U8, vec![IMAGES], &labels)),
        ("train_boxes", view(Dtype::F32, vec![IMAGES, 2, 5], &boxes)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn tasks() -> Vec<TaskSettings> {
    ["box", "objectness", "class"]
        .map(|name| {
            format!("name={name},output=head,loss={name},labels=boxes,anchors=0.4x0.25/0.25x0.4")
                .parse()
                .unwrap()
        })
        .into()
}

fn network() -> lacuna::Model {
    let mut n = Net::new("detector", 1, SIDE, 3);
    let y = n.block("a", "x", 12, [3, 1, 1], Op::Relu);
    let y = n.block("b", &y, 16, [3, 2, 1], Op::Relu);
    let y = n.block("c", &y, 20, [3, 1, 1], Op::Relu);
    let y = n.block("d", &y, 20, [3, 1, 1], Op::Relu);
    let y = n.conv("head", &y, 14, 1, 1, 1);
    n.finish(&[&y])
}

#[test]
fn boxes_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.safetensors");
    data(&path, |_| {});
    let settings = TrainSettings {
        epochs: 30,
        batch: 15,
        lr: 0.05,
        tasks: tasks(),
        data: DataSettings {
            path: path.clone(),
            ..DataSettings::default()
        },
        ..TrainSettings::default()
    };
    let model = network();
    let measured = |model: &lacuna::Model| -> Vec<TaskFigures> {
        let options = TaskOptions {
            path: &path,
            split: "train",
            eval: EvalOptions::default(),
            teacher: None,
        };
        evaluate_tasks(model, &tasks(), &options).unwrap()
    };
    let before = measured(&model);
    let trained = train(&model, None, &settings, &Effort::default(), &mut |_| {}).unwrap();
    let after = measured(&trained.model);
    for (before, after) in before.iter().zip(&after) {
        assert!(after.loss < 0.5 * before.loss, "{before:?} {after:?}");
        assert_eq!(after.metric.name(), "map50");
    }
    assert!(
        before[0].value < 0.5 && after[0].value > 0.8,
        "{before:?} {after:?}"
    );
}

#[test]
fn boxes_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.safetensors");
    let refused = |tasks: &[TaskSettings], change: &dyn Fn(&mut Vec<f32>), parts: &[&str]| {
        data(&path, change);
        let options = TaskOptions {
            path: &path,
            split: "train",
            eval: EvalOptions::default(),
            teacher: None,
        };
        let error = evaluate_tasks(&network(), tasks, &options)
            .unwrap_err()
            .to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}`: {error}");
        }
    };
    let with = |text: &str| -> Vec<TaskSettings> { vec![text.parse().unwrap()] };
    refused(
        &tasks(),
        &|b| b[20] = 2.0,
        &["train_boxes", "box 0 of image 2", "class below 2"],
    );
    refused(&tasks(), &|b| b[3] = 0.0, &["box 0 of image 0"]);
    refused(
        &tasks(),
        &|b| b[11] = f32::NAN,
        &["train_boxes", "element 11", "NaN"],
    );
    for (text, part) in [
        ("name=a,loss=box,labels=boxes", "anchors"),
        ("name=a,loss=box,anchors=0.1x0.1", "labels"),
        ("name=a,loss=box,labels=boxes,anchors=0.1x1.5", "1.5"),
        ("name=a,loss=box,labels=boxes,anchors=0.1", "anchors `0.1`"),
        ("name=a,loss=mse,labels=boxes,anchors=0.1x0.1", "anchors"),
    ] {
        let error = text.parse::<TaskSettings>().unwrap_err();
        assert!(error.contains(part), "`{part}`: {error}");
    }
    refused(
        &with("name=a,output=head,loss=box,labels=labels,anchors=0.1x0.1/0.2x0.2"),
        &|_| {},
        &["train_labels", "[60]"],
    );
    refused(
        &with("name=a,output=head,loss=class,labels=boxes,anchors=0.1x0.1/0.1x0.2/0.2x0.1"),
        &|_| {},
        &["14", "3 anchors"],
    );
}
