//! The file: what is written, byte for byte, and that it comes back.

mod common;

use common::{ROWS, bytes, small_model};
use lacuna::model::{Encoding, file};
use lacuna::{Model, Weight};

#[test]
fn bitmask_vector_stands_in_the_file_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();

    let file = bytes(&path);
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensor = |name: &str| read.tensor(name).unwrap();
    assert_eq!(tensor("fc.bitmask").data(), [18, 1, 0, 0, 129, 2]);
    assert_eq!(tensor("fc.bitmask").shape(), [3, 2]);
    let values: Vec<u8> = [1.5f32, -2., 3., 1., 4., 5.]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(tensor("fc.compressed").data(), values);
    let le = |v: &[i64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(tensor("fc.row_offsets").data(), le(&[0, 3, 3]));
    assert_eq!(tensor("fc.shape").data(), le(&[3, 10]));
    assert_eq!(tensor("conv.shape").data(), le(&[10, 18]));

    let model = Model::open(&path).unwrap();
    let Encoding::Bitmask(b) = model.weights()["fc.weight"].encoding() else {
        panic!("decoded")
    };
    assert!(
        b.values.is_mapped()
            && b.mask.is_mapped()
            && b.row_offsets.as_ref().is_some_and(|o| o.is_mapped())
    );
    assert_eq!(
        model.weights()["fc.weight"].to_f32().unwrap(),
        ROWS.as_flattened()
    );
}

#[test]
fn signed_bytes_come_back_with_their_scales() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let model = small_model().to_scaled(32).unwrap();
    assert!(model.weights()["fc.weight"].scales().is_some());
    assert!(model.weights()["conv.weight"].scales().is_none());
    model.save(&path).unwrap();

    let file = bytes(&path);
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensor = |name: &str| read.tensor(name).unwrap();
    assert_eq!(tensor("fc.compressed").dtype(), safetensors::Dtype::I8);
    assert_eq!(tensor("fc.scales").dtype(), safetensors::Dtype::BF16);
    assert_eq!(tensor("fc.scales").shape(), [3, 1]);
    let json = String::from_utf8(tensor("lacuna.graph").data().to_vec()).unwrap();
    assert!(json.contains("\"groups\":{\"fc.weight\":32}"), "{json}");

    let back = Model::open(&path).unwrap();
    let (read, written) = (&back.weights()["fc.weight"], &model.weights()["fc.weight"]);
    assert_eq!(read.scales().unwrap().group, 32);
    assert_eq!(read.to_f32(), written.to_f32());
    // A model that is encoded again keeps them.
    assert!(back.encoded().weights()["fc.weight"].scales().is_some());

    // What contradicts itself is refused.
    for (from, to, says) in [
        ("\"fc.weight\":32", "\"fc.weight\":16", "16 columns"),
        ("\"fc.weight\":32", "\"fc.weight\":00", "lacuna.graph"),
        ("\"fc.weight\":32", "\"fc_weight\":32", "I8"),
        ("\"dtype\":\"BF16\"", "\"dtype\" :\"F16\"", "scales"),
    ] {
        let mut broken = file.clone();
        let at = broken
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        broken[at..at + to.len()].copy_from_slice(to.as_bytes());
        let error = file::read_bytes("broken", broken.into())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{from} -> {to}: {error}");
    }
    // So are elements that are no numbers: the bytes of a tensor, found by its address.
    let place = |name: &str| tensor(name).data().as_ptr() as usize - file.as_ptr() as usize;
    for (at, to, says) in [
        (
            place("fc.scales") + 2,
            &half::bf16::NAN.to_le_bytes()[..],
            "scale 1 is NaN",
        ),
        (
            place("fc.scales"),
            &half::bf16::INFINITY.to_le_bytes(),
            "scale 0 is inf",
        ),
        (
            place("fc.scales"),
            &half::bf16::MAX.to_le_bytes(),
            "not finite",
        ),
        (place("fc.compressed") + 3, &[0x80], "value 3 is -128"),
    ] {
        let mut broken = file.clone();
        broken[at..at + to.len()].copy_from_slice(to);
        let error = file::read_bytes("broken", broken.into()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_model_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let mut model = small_model();
    model.tokenizer = Some(b"{\"tokens\":[]}".to_vec().into());
    model.metadata.recipe = Some("ab".repeat(32));
    model.metadata.source = Some("cd".repeat(32));
    model.save(&path).unwrap();

    let back = Model::open(&path).unwrap();
    assert_eq!(back.path(), Some(path.as_path()));
    assert_eq!(back.graph(), model.graph());
    assert_eq!(back.metadata, model.metadata);
    assert_eq!(back.tokenizer.as_deref(), model.tokenizer.as_deref());
    assert_eq!(back.weights().len(), 3);
    for (name, weight) in model.weights() {
        let read = &back.weights()[name];
        assert_eq!(read.shape(), weight.shape(), "{name}");
        assert_eq!(read.is_sparse(), weight.is_sparse(), "{name}");
        assert_eq!(read.to_f32(), weight.to_f32(), "{name}");
    }
    assert!(
        std::fs::read_dir(dir.path()).unwrap().count() == 1,
        "a temporary file stayed"
    );
}

#[test]
fn dense_export_is_plain_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let model = small_model();
    file::write_dense(&model, &path).unwrap();
    let file = bytes(&path);
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.len(), 3);
    assert_eq!(read.tensor("conv.weight").unwrap().shape(), [10, 2, 3, 3]);
    for (name, weight) in model.weights() {
        let dense = Weight::dense(
            weight.shape().to_vec(),
            weight.dtype(),
            read.tensor(name).unwrap().data().to_vec().into(),
        );
        assert_eq!(dense.unwrap().to_f32(), weight.to_f32());
    }
    let error = Model::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("without `lacuna.graph`") && error.contains("prune convert"),
        "{error}"
    );
}
