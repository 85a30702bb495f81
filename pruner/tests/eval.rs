//! Data sets of every kind, and the accuracy of a network that names the strongest colour.

use flate2::Compression;
use flate2::write::GzEncoder;
use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Weight, Weights};
use lacuna_prune::data::{self, Dataset};
use lacuna_prune::eval::{Accuracy, EvalOptions, evaluate};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::io::Write;
use std::path::Path;

/// `[N, channels, 4, 4]` to the mean of each channel, and `classes - channels` classes of score -9.
fn colours(channels: usize, classes: usize, batch: Dim) -> Model {
    let node = |name: &str, op: Op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: format!("{name}.y"),
    };
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let graph = Graph {
        name: "colours".into(),
        inputs: vec![Input::f32(
            "x",
            vec![batch, Dim::Fixed(channels), Dim::Fixed(4), Dim::Fixed(4)],
        )],
        outputs: vec!["fc.y".into()],
        nodes: vec![
            node("pool", Op::GlobalAveragePool, &["x"]),
            node("flat", Op::Flatten { axis: 1 }, &["pool.y"]),
            node("fc", gemm, &["flat.y", "fc.weight", "fc.bias"]),
        ],
    };
    let mut weight = vec![0.0; classes * channels];
    let mut bias = vec![-9.0; classes];
    for c in 0..channels.min(classes) {
        weight[c * channels + c] = 1.0;
        bias[c] = 0.0;
    }
    let weights: Weights = [
        (
            "fc.weight".to_string(),
            Weight::from_f32(&[classes, channels], &weight),
        ),
        ("fc.bias".to_string(), Weight::from_f32(&[classes], &bias)),
    ]
    .into();
    Model::new(graph, weights).unwrap()
}

fn symbolic() -> Dim {
    Dim::Symbol("N".into())
}

fn options() -> EvalOptions {
    EvalOptions {
        mean: Some(vec![0.0]),
        std: Some(vec![1.0]),
        batch: 4,
        threads: 1,
        ..EvalOptions::default()
    }
}

fn run(model: &Model, data: &dyn Dataset, options: &EvalOptions) -> Accuracy {
    evaluate(model, data, options, &mut |_, _| ()).unwrap()
}

fn refusal(model: &Model, data: &dyn Dataset, options: &EvalOptions) -> String {
    let result = evaluate(model, data, options, &mut |_, _| ());
    result.unwrap_err().to_string()
}

/// A PNG of one colour, the channel `strong` above the others.
fn png(path: &Path, side: u32, strong: usize) {
    let mut pixel = [40u8; 3];
    pixel[strong] = 200;
    image::RgbImage::from_pixel(side, side, image::Rgb(pixel))
        .save(path)
        .unwrap();
}

#[test]
fn files_are_labelled_by_the_last_number_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    for (i, (strong, label)) in [(0, 0), (1, 1), (2, 2), (0, 1), (1, 5)].iter().enumerate() {
        png(
            &folder.path().join(format!("c_{i:02}_{label}.png")),
            4,
            *strong,
        );
    }
    std::fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    let data = data::open(folder.path(), "test").unwrap();
    let a = run(&colours(3, 7, symbolic()), &*data, &options());
    // The fourth is called class 1 but is of colour 0; the fifth is class 5 of -9.
    assert_eq!((a.samples, a.top1_correct, a.top5_correct), (5, 3, 4));
    assert_eq!((a.classes, a.batch), (7, 4));

    let e = refusal(&colours(3, 3, symbolic()), &*data, &options());
    assert!(
        e.contains("c_04_5.png") && e.contains("label 5") && e.contains("3 classes"),
        "{e}"
    );

    let pattern = folder.path().join("c_0[01]_*.png");
    let two = data::open(&pattern, "test").unwrap();
    assert_eq!(two.len(), 2);
}

#[test]
fn a_fixed_batch_runs_and_its_last_part_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..5 {
        png(&folder.path().join(format!("{i}_{}.png", i % 3)), 4, i % 3);
    }
    let data = data::open(folder.path(), "test").unwrap();
    let a = run(&colours(3, 3, Dim::Fixed(3)), &*data, &options());
    assert_eq!(
        (a.batch, a.samples, a.top1_correct, a.top5_correct),
        (3, 5, 5, 5)
    );
}

#[test]
fn subfolders_are_classes_in_sorted_order_or_by_number() {
    let folder = tempfile::tempdir().unwrap();
    for (name, strong) in [("blue", 0), ("green", 1), ("red", 2)] {
        let class = folder.path().join(name);
        std::fs::create_dir(&class).unwrap();
        png(&class.join("a.png"), 4, strong);
    }
    let data = data::open(folder.path(), "test").unwrap();
    assert_eq!(
        run(&colours(3, 3, symbolic()), &*data, &options()).top1_correct,
        3
    );

    let numbered = tempfile::tempdir().unwrap();
    for label in [10, 2] {
        let class = numbered.path().join(label.to_string());
        std::fs::create_dir(&class).unwrap();
        png(&class.join("a.png"), 4, 2);
    }
    let data = data::open(numbered.path(), "test").unwrap();
    let labels: Vec<usize> = (0..2).map(|i| data.label(i)).collect();
    assert_eq!(labels, [10, 2]);
}

#[test]
fn images_of_another_size_need_a_resize() {
    let folder = tempfile::tempdir().unwrap();
    png(&folder.path().join("a_1.png"), 9, 1);
    let data = data::open(folder.path(), "test").unwrap();
    let model = colours(3, 3, symbolic());
    let e = refusal(&model, &*data, &options());
    assert!(
        e.contains("9x9") && e.contains("--size") && e.contains("a_1.png"),
        "{e}"
    );
    let resized = EvalOptions {
        size: Some(5),
        ..options()
    };
    assert_eq!(run(&model, &*data, &resized).top1_correct, 1);
}

/// An IDX file of bytes.
fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_pairs_are_read_raw_and_gzipped_and_by_split() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let images = idx(&[3, 4, 4], &[77; 48]);
    std::fs::write(at("t10k-images-idx3-ubyte.gz"), gzip(&images)).unwrap();
    std::fs::write(
        at("t10k-labels-idx1-ubyte.gz"),
        gzip(&idx(&[3], &[0, 0, 1])),
    )
    .unwrap();
    std::fs::write(at("train-images-idx3-ubyte"), idx(&[1, 4, 4], &[1; 16])).unwrap();
    std::fs::write(at("train-labels-idx1-ubyte"), idx(&[1], &[1])).unwrap();
    let test = data::open(folder.path(), "test").unwrap();
    let a = run(&colours(1, 2, symbolic()), &*test, &options());
    assert_eq!((a.samples, a.top1_correct), (3, 2));
    assert_eq!(data::open(folder.path(), "train").unwrap().len(), 1);
    assert_eq!(
        data::open(&at("train-images-idx3-ubyte"), "test")
            .unwrap()
            .len(),
        1
    );
    let e = data::open(folder.path(), "dev").err().unwrap().to_string();
    assert!(e.contains("split `dev`"), "{e}");
}

#[test]
fn hostile_idx_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("a-images-idx3-ubyte");
    let labels = folder.path().join("a-labels-idx1-ubyte");
    std::fs::write(&labels, idx(&[2], &[0, 1])).unwrap();
    let cases = [
        (vec![], "magic number"),
        (vec![0, 0, 8], "magic number"),
        (idx(&[2], &[0, 1]), "1 axes"),
        (vec![0, 0, 0x0d, 3, 0, 0], "0x00000d03"),
        (vec![0, 0, 8, 3, 0, 0], "size of axis 0"),
        (idx(&[2, 2, 2], &[0; 7]), "7 bytes"),
        (idx(&[2, 2, 2], &[0; 9]), "more than 8 bytes"),
        (idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), "beyond"),
        (
            idx(&[1 << 11, 1 << 10, 1 << 10], &[0; 4]),
            "4 bytes of data",
        ),
        (
            idx(&[3, 2, 2], &[0; 12]),
            "labels of shape [2] for 3 images",
        ),
    ];
    for (bytes, part) in cases {
        std::fs::write(&images, bytes).unwrap();
        let e = data::open(&images, "test").err().unwrap().to_string();
        assert!(e.contains(part), "`{part}` is not in: {e}");
    }
    let truncated = gzip(&idx(&[2, 2, 2], &[7; 8]));
    let gz = folder.path().join("a-images-idx3-ubyte.gz");
    std::fs::write(&gz, &truncated[..truncated.len() - 12]).unwrap();
    let e = data::open(&gz, "test").err().unwrap().to_string();
    assert!(e.contains("cannot read"), "{e}");
}

/// A safetensors file of these tensors.
fn tensors(path: &Path, parts: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = parts.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn tensors_of_pixels_and_of_jpegs_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.safetensors");
    let (mut pixels, mut jpeg, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    for strong in 0..3 {
        for c in 0..3 {
            pixels.extend([if c == strong { 250u8 } else { 5 }; 16]);
        }
        let mut pixel = [5u8; 3];
        pixel[strong] = 250;
        let image = image::RgbImage::from_pixel(4, 4, image::Rgb(pixel));
        let mut cursor = std::io::Cursor::new(Vec::new());
        image
            .write_to(&mut cursor, image::ImageFormat::Jpeg)
            .unwrap();
        jpeg.extend(cursor.into_inner());
        offsets.push(jpeg.len() as i64);
    }
    tensors(
        &path,
        &[
            ("test_images", Dtype::U8, vec![3, 3, 4, 4], pixels),
            ("test_labels", Dtype::U8, vec![3], vec![0, 1, 2]),
            ("train_jpeg", Dtype::U8, vec![jpeg.len()], jpeg),
            ("train_offsets", Dtype::I64, vec![4], i64s(&offsets)),
            ("train_labels", Dtype::I64, vec![3], i64s(&[0, 1, 0])),
        ],
    );
    let model = colours(3, 3, symbolic());
    let count = |split: &str| {
        let data = data::open(&path, split).unwrap();
        run(&model, &*data, &options()).top1_correct
    };
    assert_eq!((count("test"), count("train")), (3, 2));
    let e = data::open(&path, "dev").err().unwrap().to_string();
    assert!(e.contains("dev_labels"), "{e}");
}

#[test]
fn contradictory_tensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.safetensors");
    let images = |n: usize, c: usize| ("images", Dtype::U8, vec![n, c, 1, 1], vec![0; n * c]);
    let labels = |n: usize| ("labels", Dtype::U8, vec![n], vec![0; n]);
    let jpeg = ("jpeg", Dtype::U8, vec![2], vec![0; 2]);
    let offsets = |v: &[i64]| ("offsets", Dtype::I64, vec![v.len()], i64s(v));
    let cases = [
        (vec![images(2, 3), labels(3)], "3 labels for 2 images"),
        (vec![images(2, 2), labels(2)], "[2, 2, 1, 1]"),
        (vec![labels(2)], "`test_images` or `images`"),
        (
            vec![jpeg.clone(), offsets(&[0, 3]), labels(1)],
            "within 2 bytes",
        ),
        (vec![jpeg.clone(), offsets(&[2, 1]), labels(1)], "2..1"),
        (vec![jpeg, offsets(&[-1, 2]), labels(1)], "holds -1"),
        (
            vec![images(1, 1), ("labels", Dtype::F32, vec![1], vec![0; 4])],
            "F32",
        ),
    ];
    for (parts, part) in cases {
        tensors(&path, &parts);
        let e = data::open(&path, "test").err().unwrap().to_string();
        assert!(e.contains(part), "`{part}` is not in: {e}");
    }
    std::fs::write(&path, b"junk").unwrap();
    assert!(data::open(&path, "test").is_err());
}

#[test]
fn a_limit_is_spread_over_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.safetensors");
    // Sorted by class, as many data sets are: the second half has the wrong label.
    let mut labels = vec![0u8; 10];
    labels[5..].fill(1);
    let image = ("images", Dtype::U8, vec![10, 1, 4, 4], vec![9; 160]);
    tensors(&path, &[image, ("labels", Dtype::U8, vec![10], labels)]);
    let data = data::open(&path, "test").unwrap();
    let limited = EvalOptions {
        limit: Some(4),
        ..options()
    };
    let mut seen = Vec::new();
    let model = colours(1, 2, symbolic());
    let a = evaluate(&model, &*data, &limited, &mut |done, all| {
        seen.push((done, all))
    })
    .unwrap();
    assert_eq!((a.samples, a.top1_correct), (4, 2));
    assert_eq!(seen, [(4, 4)]);
}

#[test]
fn paths_that_are_no_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |p: &Path| data::open(p, "test").err().unwrap().to_string();
    assert!(open(folder.path()).contains("no .jpg"));
    assert!(open(&folder.path().join("none")).contains("no such file"));
    assert!(open(&folder.path().join("*.png")).contains("no .jpg"));
    let text = folder.path().join("a.csv");
    std::fs::write(&text, "1,2").unwrap();
    assert!(open(&text).contains("not a data set"));
    std::fs::write(folder.path().join("b_1.png"), b"no png").unwrap();
    let data = data::open(folder.path(), "test").unwrap();
    let e = refusal(&colours(3, 3, symbolic()), &*data, &options());
    assert!(e.contains("b_1.png"), "{e}");
}
