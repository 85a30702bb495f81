//! PyTorch and safetensors state dicts, and the architectures that they are mapped onto.

mod common;

use common::{fixture, test_data};
use lacuna::model::{Dim, Op, Symbols, Weight, Weights, infer_shapes};
use lacuna::{DType, Model};
use lacuna_convert::{Options, open, state_dict};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::BTreeMap;

fn eighths(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32 / 8.0).collect()
}

fn check_tensors(tensors: &Weights) {
    let floats = |name: &str| tensors[name].to_f32().unwrap();
    let is = |name: &str, dtype, shape: &[usize]| {
        assert_eq!(
            (tensors[name].dtype(), tensors[name].shape()),
            (dtype, shape),
            "{name}"
        );
    };
    is("f32", DType::F32, &[2, 3]);
    assert_eq!(floats("f32"), eighths(6));
    is("f16", DType::F16, &[5]);
    assert_eq!(floats("f16"), eighths(5));
    is("bf16", DType::BF16, &[5]);
    assert_eq!(floats("bf16"), eighths(5));
    is("f64", DType::F32, &[4]);
    assert_eq!(floats("f64"), eighths(4));
    is("i64", DType::I64, &[3]);
    is("i32", DType::I32, &[3]);
    is("u8", DType::U8, &[3]);
    is("bool", DType::U8, &[2]);
    is("scalar", DType::I64, &[]);
    is("empty", DType::F32, &[0, 3]);
    is("transposed", DType::F32, &[6, 4]);
    let base = eighths(24);
    let transposed: Vec<f32> = (0..24).map(|i| base[i % 4 * 6 + i / 4]).collect();
    assert_eq!(floats("transposed"), transposed);
    is("part", DType::F32, &[2, 3]);
    assert_eq!(floats("part"), [8, 9, 10, 14, 15, 16].map(|i| base[i]));
    is("channels_last", DType::F32, &[2, 3, 2, 2]);
    assert_eq!(floats("channels_last"), eighths(24));
    assert_eq!(floats("parameter"), eighths(2));
    assert_eq!(tensors.len(), 14);
}

#[test]
fn a_zip_state_dict_is_read_with_every_dtype_stride_and_offset() {
    check_tensors(&state_dict(fixture("tensors-zip.pth")).unwrap());
}

#[test]
fn a_legacy_state_dict_is_read_with_every_dtype_stride_and_offset() {
    check_tensors(&state_dict(fixture("tensors-legacy.pth")).unwrap());
}

#[test]
fn newer_pickle_protocols_are_read() {
    for protocol in 3..=5 {
        let tensors = state_dict(fixture(&format!("protocol{protocol}.pth"))).unwrap();
        assert_eq!(tensors["w"].to_f32().unwrap(), eighths(4));
    }
}

#[test]
fn a_pickled_module_is_refused_by_the_name_of_its_class() {
    let error = state_dict(fixture("module.pth")).unwrap_err().to_string();
    assert!(error.contains("module.pth"), "{error}");
    assert!(error.contains("torch.nn.modules.linear.Linear"), "{error}");
}

fn describe(model: &Model) -> String {
    let shapes = infer_shapes(model.graph(), model.weights(), &Symbols::new()).unwrap();
    let show = |name: &str| {
        let dims: Vec<String> = shapes[name].iter().map(Dim::to_string).collect();
        format!("{name}[{}]", dims.join(","))
    };
    let graph = model.graph();
    let elements: usize = model.weights().values().map(Weight::numel).sum();
    format!(
        "{}: {} -> {}, {} nodes, {elements} weights",
        graph.name,
        show(&graph.inputs[0].name),
        show(&graph.outputs[0]),
        graph.nodes.len()
    )
}

#[test]
fn fashion_cnn_is_detected_and_sized_from_its_tensors() {
    let model = open(fixture("fashion-narrow.pth"), &Options::default()).unwrap();
    assert_eq!(
        describe(&model),
        "fashion-cnn: x[N,1,28,28] -> logits[N,10], 17 nodes, 426 weights"
    );
    let source = model.metadata.source.unwrap();
    assert_eq!(source.len(), 64);
}

#[test]
fn the_input_shape_can_be_replaced() {
    let options = Options {
        input: Some([2, 1, 32, 20].map(Dim::Fixed).to_vec()),
        ..Options::default()
    };
    let model = open(fixture("fashion-narrow.pth"), &options).unwrap();
    assert!(describe(&model).contains("x[2,1,32,20] -> logits[2,10]"));
}

/// Writes a safetensors file of f32 tensors that count in eighths.
fn write(dir: &tempfile::TempDir, shapes: &BTreeMap<String, Vec<usize>>) -> std::path::PathBuf {
    let data: BTreeMap<&str, Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let values = eighths(shape.iter().product());
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name.as_str(), bytes)
        })
        .collect();
    let views = shapes.iter().map(|(name, shape)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &data[name.as_str()]).unwrap();
        (name.as_str(), view)
    });
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
    path
}

fn norm(shapes: &mut BTreeMap<String, Vec<usize>>, name: &str, channels: usize) {
    for part in ["weight", "bias", "running_mean", "running_var"] {
        shapes.insert(format!("{name}.{part}"), vec![channels]);
    }
}

/// The tensors of a torchvision ResNet of one or two blocks a stage, `width` channels in the first.
fn resnet_shapes(bottleneck: bool, width: usize, blocks: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let expansion = if bottleneck { 4 } else { 1 };
    shapes.insert("conv1.weight".into(), vec![width, 3, 7, 7]);
    norm(&mut shapes, "bn1", width);
    let mut inputs = width;
    for stage in 1..=4 {
        let mid = width << (stage - 1);
        for i in 0..blocks {
            let name = format!("layer{stage}.{i}");
            let mut conv = |n: usize, o: usize, c: usize, k: usize| {
                shapes.insert(format!("{name}.conv{n}.weight"), vec![o, c, k, k]);
                norm(&mut shapes, &format!("{name}.bn{n}"), o);
            };
            if bottleneck {
                conv(1, mid, inputs, 1);
                conv(2, mid, mid, 3);
                conv(3, mid * 4, mid, 1);
            } else {
                conv(1, mid, inputs, 3);
                conv(2, mid, mid, 3);
            }
            if i == 0 && (stage > 1 || bottleneck) {
                let out = mid * expansion;
                shapes.insert(
                    format!("{name}.downsample.0.weight"),
                    vec![out, inputs, 1, 1],
                );
                norm(&mut shapes, &format!("{name}.downsample.1"), out);
            }
            inputs = mid * expansion;
        }
    }
    shapes.insert("fc.weight".into(), vec![7, inputs]);
    shapes.insert("fc.bias".into(), vec![7]);
    shapes
}

#[test]
fn resnets_of_both_block_kinds_come_from_safetensors() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let basic = open(
        write(&dir, &resnet_shapes(false, 64, 2)),
        &Options::default(),
    )
    .unwrap();
    assert_eq!(
        describe(&basic),
        "resnet18: x[N,3,224,224] -> logits[N,7], 69 nodes, 11189703 weights"
    );
    let deep = open(write(&dir, &resnet_shapes(true, 8, 1)), &Options::default()).unwrap();
    assert!(describe(&deep).starts_with("resnet: x[N,3,224,224] -> logits[N,7]"));
    let strides: Vec<[usize; 2]> = deep
        .graph()
        .nodes
        .iter()
        .filter_map(|n| match n.op {
            Op::Conv { strides, .. } if n.name.ends_with(".conv2") => Some(strides),
            _ => None,
        })
        .collect();
    assert_eq!(strides, [[1, 1], [2, 2], [2, 2], [2, 2]]);
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut shapes = resnet_shapes(false, 8, 1);
    shapes.remove("layer2.0.bn1.running_var");
    shapes.remove("layer3.0.conv1.weight");
    let error = open(write(&dir, &shapes), &Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("missing tensors: layer2.0.bn1.running_var, layer3.0.conv1.weight"),
        "{error}"
    );
}

#[test]
fn a_tensor_without_a_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut shapes = resnet_shapes(false, 8, 1);
    shapes.insert("extra.weight".into(), vec![3]);
    shapes.insert("bn1.num_batches_tracked".into(), vec![1]);
    let error = open(write(&dir, &shapes), &Options::default()).unwrap_err();
    assert!(
        error.to_string().ends_with("without a use: extra.weight"),
        "{error}"
    );
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut shapes = resnet_shapes(false, 8, 1);
    shapes.insert("layer2.0.bn1.bias".into(), vec![5]);
    let error = open(write(&dir, &shapes), &Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`layer2.0.bn1` (BatchNormalization)"),
        "{error}"
    );
}

#[test]
fn unknown_tensors_and_architectures_list_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, &BTreeMap::from([("w".to_owned(), vec![2])]));
    let unknown = open(&path, &Options::default()).unwrap_err().to_string();
    assert!(
        unknown.contains("mobilenet-v2") && unknown.contains("fashion-cnn"),
        "{unknown}"
    );
    let options = |arch: &str| Options {
        arch: Some(arch.into()),
        ..Options::default()
    };
    let wrong = open(&path, &options("vgg16")).unwrap_err().to_string();
    assert!(
        wrong.contains("vgg16: unknown; known: cifar-resnet"),
        "{wrong}"
    );
    let path = write(&dir, &resnet_shapes(false, 64, 2));
    assert!(open(&path, &options("ResNet18")).is_ok());
    let other = open(&path, &options("resnet50")).unwrap_err().to_string();
    assert!(
        other.ends_with("the tensors are those of resnet18"),
        "{other}"
    );
}

#[test]
fn a_file_of_no_known_format_lists_the_formats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for content in ["", "\0\0\0\0", "GGML\u{3}\0\0\0", "plain text"] {
        std::fs::write(&path, content).unwrap();
        let error = open(&path, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("supported: ONNX"), "{content:?}: {error}");
    }
    assert!(open(dir.path(), &Options::default()).is_err());
}

#[test]
fn real_cifar_resnets_open() {
    for (name, expected) in [
        (
            "cifar-resnet20.th",
            "cifar-resnet20: x[N,3,32,32] -> logits[N,10]",
        ),
        (
            "cifar-resnet32.th",
            "cifar-resnet32: x[N,3,32,32] -> logits[N,10]",
        ),
    ] {
        let Some(path) = test_data(name) else { return };
        let model = open(path, &Options::default()).unwrap();
        assert!(
            describe(&model).starts_with(expected),
            "{}",
            describe(&model)
        );
    }
}

#[test]
fn real_mobilenet_v2_opens() {
    let Some(path) = test_data("mobilenet_v2-b0353104.pth") else {
        return;
    };
    let model = open(path, &Options::default()).unwrap();
    assert_eq!(
        describe(&model),
        "mobilenet-v2: x[N,3,224,224] -> logits[N,1000], 152 nodes, 3538984 weights"
    );
}
