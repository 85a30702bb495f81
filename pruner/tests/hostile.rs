//! The program on files that it cannot use: it fails, says which file and what in it, and leaves what stood
//! at the output.

mod common;

use common::rows;
use lacuna_prune::{AllocatorName, Recipe, save};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn prune(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_prune");
    Command::new(program).args(args).output().unwrap()
}

fn asset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist/fashion-cnn.safetensors")
}

/// The demo's state dict with one tensor changed.
fn changed(name: &str, change: impl Fn(&mut Vec<usize>, &mut Vec<u8>)) -> Vec<u8> {
    let file = std::fs::read(asset()).unwrap();
    let all = safetensors::SafeTensors::deserialize(&file).unwrap();
    let parts: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .iter()
        .map(|(n, t)| {
            let (mut shape, mut data) = (t.shape().to_vec(), t.data().to_vec());
            if n == name {
                change(&mut shape, &mut data);
            }
            (n.to_owned(), shape, data)
        })
        .collect();
    let views = parts
        .iter()
        .map(|(n, s, d)| (n, TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A weight that cannot be ranked was refused without the name of its file and without its value.
#[test]
fn a_refused_checkpoint_is_named_and_leaves_the_old_output() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.safetensors");
    let half = Recipe::new(AllocatorName::Uniform, 0.5);
    let model = rows(&[vec![1.0, 2.0, 3.0, 4.0]]);
    save(&half.run(&model).unwrap(), &output).unwrap();
    let old = std::fs::read(&output).unwrap();

    let sound = std::fs::read(asset()).unwrap();
    let nan = changed("conv3.weight", |_, data| {
        data[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let reshaped = changed("conv3.weight", |shape, _| shape.swap(0, 1));
    let infinite = changed("fc.weight", |_, data| {
        data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let cut = sound[..header + 10_000].to_vec();
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("cut.safetensors", cut, &["tensor `", "10000 bytes"]),
        ("header.safetensors", sound[..100].to_vec(), &["100 bytes"]),
        ("nan.safetensors", nan, &["`conv3.weight`", "100", "NaN"]),
        (
            "inf.safetensors",
            infinite,
            &["`fc.weight`", "element 0", "inf and"],
        ),
        (
            "shape.safetensors",
            reshaped,
            &["`conv3", "[64, 128, 3, 3]"],
        ),
        ("empty.onnx", vec![], &[]),
        ("cut.onnx", b"\x08\x08\x12\x07pytor".to_vec(), &[]),
        ("cut.pth", b"PK\x03\x04\x14\x00\x00\x08".to_vec(), &[]),
        (
            "cut.th",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(),
            &[],
        ),
    ];
    for (name, bytes, parts) in cases {
        let input = dir.path().join(name);
        std::fs::write(&input, bytes).unwrap();
        let [input_name, output_name] = [&input, &output].map(|p| p.to_str().unwrap());
        for args in [
            &[
                "global-mp",
                input_name,
                "--sparsity",
                "0.9",
                "-o",
                output_name,
            ][..],
            &[
                "magnitude",
                input_name,
                "--sparsity",
                "0.9",
                "-o",
                output_name,
            ],
        ] {
            let run = prune(args);
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(!run.status.success() && run.stdout.is_empty(), "{name}");
            assert!(!said.contains("panicked"), "{said}");
            for part in parts.iter().chain(&[name]) {
                assert!(said.contains(part), "`{part}` is not in: {said}");
            }
            assert_eq!(std::fs::read(&output).unwrap(), old, "{name}");
        }
        std::fs::remove_file(&input).unwrap();
    }
    // No temporary file stays.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_output_that_is_the_mapped_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let name = path.to_str().unwrap();
    let converted = prune(&["convert", asset().to_str().unwrap(), "-o", name]);
    assert!(converted.status.success());
    let old = std::fs::read(&path).unwrap();
    let run = prune(&["global-mp", name, "--sparsity", "0.9", "-o", name]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success(), "{said}");
    assert!(
        said.contains("m.safetensors") && said.contains("is what is read"),
        "{said}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), old);
}
