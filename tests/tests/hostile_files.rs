//! Files that lie. Each must be refused with an error that names the file and what is wrong in
//! it, without a panic and without believing a number before it is checked.

mod common;

use common::{Raw, assemble, bytes, raw, small_model, with_header};
use lacuna::Model;
use lacuna::model::file::{self, Tensors};
use std::path::Path;

const LABEL: &str = "hostile.safetensors";
const META: &str = r#"{"format":"lacuna","version":"1"}"#;

/// The tensors of the small model's file.
fn parts() -> Vec<Raw> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    let tensors = Tensors::open(&path).unwrap();
    let names: Vec<String> = tensors.names().map(String::from).collect();
    names
        .iter()
        .map(|n| {
            let t = tensors.get(n).unwrap();
            let shape: Vec<i64> = t.shape.iter().map(|&d| d as i64).collect();
            raw(n, t.dtype_name, &shape, &t.bytes)
        })
        .collect()
}

fn good_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    bytes(&path)
}

/// The small model's file after a change to its tensors.
fn changed(change: impl Fn(&mut Vec<Raw>)) -> Vec<u8> {
    let mut all = parts();
    change(&mut all);
    assemble(META, &all)
}

/// The small model's file after a change to one tensor.
fn tensor(name: &'static str, change: impl Fn(&mut Raw)) -> Vec<u8> {
    changed(|all| change(all.iter_mut().find(|t| t.name == name).unwrap()))
}

/// The small model's file after a replacement in its graph.
fn graph(from: &'static str, to: &str) -> Vec<u8> {
    tensor("lacuna.graph", |t| {
        let json = String::from_utf8(t.data.clone()).unwrap();
        assert!(json.contains(from), "{from} is not in {json}");
        t.data = json.replacen(from, to, 1).into_bytes();
        t.shape = format!("[{}]", t.data.len());
    })
}

fn le(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A file of the tensor `w`, whose header entry is this.
fn entry(entry: &str, data: usize) -> Vec<u8> {
    with_header(&format!("{{\"w\":{entry}}}"), &vec![0; data])
}

/// A case: what it is, the file, and what its error must say.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

fn header_cases() -> Vec<Case> {
    let huge = |n: u64| {
        let mut file = n.to_le_bytes().to_vec();
        file.extend_from_slice(b"{}      ");
        file
    };
    let nested = |open: &str| with_header(&format!("{{\"w\":{}", open.repeat(100_000)), &[]);
    let two = |a: &str, b: &str, data: usize| {
        let of = |o: &str| format!("{{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":{o}}}");
        with_header(
            &format!("{{\"a\":{},\"b\":{}}}", of(a), of(b)),
            &vec![0; data],
        )
    };
    vec![
        ("empty file", vec![], &["0 bytes"]),
        ("seven bytes", vec![0; 7], &["7 bytes"]),
        (
            "header of 2^60 bytes",
            huge(1 << 60),
            &["1152921504606846976", "100000000"],
        ),
        (
            "header of 2^64-1 bytes",
            huge(u64::MAX),
            &["18446744073709551615"],
        ),
        ("header over the limit", huge(100_000_001), &["100000001"]),
        (
            "header longer than the file",
            huge(9),
            &["9 bytes", "16 bytes"],
        ),
        ("header of no bytes", huge(0), &["start with `{`"]),
        (
            "header that is not UTF-8",
            {
                let mut f = with_header("{\"w\":1}", &[]);
                f[10] = 0xff;
                f
            },
            &["UTF-8", "index 2"],
        ),
        (
            "header that is a list",
            with_header("[]", &[]),
            &["start with `{`"],
        ),
        (
            "space before the header",
            with_header(" {}", &[]),
            &["start with `{`"],
        ),
        (
            "two objects",
            with_header("{}{}", &[]),
            &["header", "trailing"],
        ),
        ("broken JSON", with_header("{\"w\":", &[]), &["`w`", "EOF"]),
        ("deeply nested lists", nested("["), &["`w`"]),
        ("deeply nested objects", nested("{\"a\":"), &["`w`"]),
        (
            "deeply nested unknown key",
            with_header(&format!("{{\"w\":{{\"x\":{}", "[".repeat(100_000)), &[]),
            &["`w`"],
        ),
        (
            "metadata that is not text",
            with_header("{\"__metadata__\":{\"a\":1}}", &[]),
            &["`__metadata__`", "string"],
        ),
        (
            "metadata key twice",
            with_header("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", &[]),
            &["`__metadata__`", "`a` stands twice"],
        ),
        (
            "metadata twice",
            with_header("{\"__metadata__\":{},\"__metadata__\":{}}", &[]),
            &["`__metadata__`", "twice"],
        ),
        (
            "tensor twice",
            with_header(
                r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                &[],
            ),
            &["`w`", "twice"],
        ),
        (
            "field twice",
            entry(
                r#"{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}"#,
                0,
            ),
            &["`w`", "duplicate field `dtype`"],
        ),
        (
            "field missing",
            entry(r#"{"dtype":"U8","shape":[0]}"#, 0),
            &["`w`", "data_offsets"],
        ),
        (
            "unknown dtype",
            entry(r#"{"dtype":"F99","shape":[1],"data_offsets":[0,1]}"#, 1),
            &["`w`", "`F99`"],
        ),
        (
            "negative shape",
            entry(r#"{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}"#, 4),
            &["`w`", "-4"],
        ),
        (
            "fractional shape",
            entry(r#"{"dtype":"U8","shape":[1.5],"data_offsets":[0,4]}"#, 4),
            &["`w`", "1.5"],
        ),
        (
            "shape beyond 64 bits",
            entry(
                r#"{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]}"#,
                4,
            ),
            &["`w`", "1e+20"],
        ),
        (
            "overflowing shape",
            entry(
                r#"{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#,
                4,
            ),
            &["`w`", "[4294967296, 4294967296] overflows"],
        ),
        (
            "shape that overflows in bits",
            entry(
                r#"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}"#,
                4,
            ),
            &["`w`", "overflows"],
        ),
        (
            "half a byte",
            entry(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#, 2),
            &["`w`", "F4", "[3]"],
        ),
        (
            "offsets that do not fit the shape",
            entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            &["`w`", "4 bytes", "needs 8"],
        ),
        (
            "offsets behind the end",
            entry(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#, 3),
            &["`w`", "[0, 4]", "3 bytes"],
        ),
        (
            "offsets near 2^64",
            entry(
                r#"{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551615]}"#,
                4,
            ),
            &["`w`", "18446744073709551612"],
        ),
        (
            "offsets backwards",
            entry(r#"{"dtype":"U8","shape":[4],"data_offsets":[4,0]}"#, 4),
            &["`w`", "[4, 0]"],
        ),
        (
            "negative offset",
            entry(r#"{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}"#, 4),
            &["`w`", "-4"],
        ),
        ("overlap", two("[0,4]", "[2,6]", 6), &["`b`", "`a`", "at 2"]),
        (
            "same bytes twice",
            two("[0,4]", "[0,4]", 4),
            &["`b`", "`a`"],
        ),
        ("hole", two("[0,4]", "[6,10]", 10), &["`b`", "a hole"]),
        (
            "hole at the start",
            two("[2,6]", "[6,10]", 10),
            &["`a`", "a hole"],
        ),
        (
            "bytes behind the end",
            two("[0,4]", "[4,8]", 9),
            &["1 bytes behind"],
        ),
        (
            "a zip archive",
            b"PK\x03\x04\x14\x00\x00\x08rest of it".to_vec(),
            &["zip", "prune convert"],
        ),
        (
            "an ONNX model",
            b"\x08\x08\x12\x07pytorch\x1a\x052.5.1".to_vec(),
            &["ONNX", "prune convert"],
        ),
    ]
}

fn model_cases() -> Vec<Case> {
    vec![
        (
            "format of others",
            assemble(r#"{"format":"pt"}"#, &parts()),
            &["`format`", "`pt`"],
        ),
        (
            "version of the metadata",
            assemble(r#"{"format":"lacuna","version":"2"}"#, &parts()),
            &["`version`", "`2`"],
        ),
        (
            "version of the graph",
            graph("\"version\":1", "\"version\":7"),
            &["`lacuna.graph`", "version 7"],
        ),
        (
            "version that is text",
            graph("\"version\":1", "\"version\":\"one\""),
            &["`lacuna.graph`", "one"],
        ),
        (
            "no graph",
            changed(|all| all.retain(|t| t.name != "lacuna.graph")),
            &["compressed-tensors", "lacuna.graph"],
        ),
        (
            "graph of another dtype",
            tensor("lacuna.graph", |t| t.dtype = "I8".into()),
            &["`lacuna.graph`", "I8"],
        ),
        (
            "graph cut short",
            tensor("lacuna.graph", |t| {
                t.data.truncate(100);
                t.shape = "[100]".into();
            }),
            &["`lacuna.graph`", "EOF"],
        ),
        (
            "graph that is not UTF-8",
            graph("\"small\"", "\"sm\u{0}all\""),
            &["`lacuna.graph`", "control character"],
        ),
        (
            "graph nested deeply",
            tensor("lacuna.graph", |t| {
                t.data = format!("{{\"version\":1,\"graph\":{}", "[".repeat(100_000)).into();
                t.shape = format!("[{}]", t.data.len());
            }),
            &["`lacuna.graph`"],
        ),
        (
            "unknown operator",
            graph("\"GlobalAveragePool\"", "\"GlobalMagicPool\""),
            &["`lacuna.graph`", "GlobalMagicPool"],
        ),
        (
            "operator without an attribute",
            graph("\"groups\":1", "\"grups\":1"),
            &["`lacuna.graph`", "groups"],
        ),
        (
            "negative stride",
            graph("\"strides\":[1,1]", "\"strides\":[-1,1]"),
            &["`lacuna.graph`", "-1"],
        ),
        (
            "stride of zero",
            graph("\"strides\":[1,1]", "\"strides\":[0,1]"),
            &["`conv`", "strides [0, 1]"],
        ),
        (
            "groups near 2^64",
            graph("\"groups\":1", "\"groups\":18446744073709551615"),
            &["`conv`", "18446744073709551615"],
        ),
        (
            "input near 2^64",
            graph(
                "{\"name\":\"x\",\"shape\":[\"N\",2,5,5]}",
                "{\"name\":\"x\",\"shape\":[9223372036854775807,2,5,5]}",
            ),
            &["`x`", "9223372036854775807"],
        ),
        (
            "graph that names a missing weight",
            graph("\"fc.bias\"", "\"fc.bios\""),
            &["`fc`", "`fc.bios`"],
        ),
        (
            "graph that reads what comes later",
            graph("\"inputs\":[\"mean.out\"]", "\"inputs\":[\"fc.out\"]"),
            &["`flat`", "`fc.out`"],
        ),
        (
            "weight that does not fit its node",
            tensor("fc.bias", |t| {
                t.data.truncate(8);
                t.shape = "[2]".into();
            }),
            &["`fc`", "[2]"],
        ),
        (
            "encoded weight of another shape",
            graph("\"fc.weight\":[3,10]", "\"fc.weight\":[3,11]"),
            &["`fc.weight`", "[3, 10]", "[3, 11]"],
        ),
        (
            "logical shape that overflows",
            graph(
                "\"conv.weight\":[10,2,3,3]",
                "\"conv.weight\":[10,18446744073709551615,18446744073709551615]",
            ),
            &["`conv.weight`", "18446744073709551615"],
        ),
        (
            "shape of a weight that is not there",
            graph("\"fc.weight\":[3,10]", "\"fd.weight\":[3,10]"),
            &["`fd.weight`"],
        ),
        (
            "shape given twice",
            graph(
                "\"fc.weight\":[3,10]",
                "\"fc.weight\":[3,10],\"fc.weight\":[3,10]",
            ),
            &["`lacuna.graph`", "`fc.weight` stands twice"],
        ),
        (
            "two names, one place",
            graph("\"fc.weight\":[3,10]", "\"fc\":[3,10],\"fc.weight\":[3,10]"),
            &["`fc`", "`fc.weight`", "same names"],
        ),
        (
            "no row offsets",
            changed(|all| all.retain(|t| t.name != "fc.row_offsets")),
            &["`fc.row_offsets`", "no such tensor"],
        ),
        (
            "no shape",
            changed(|all| all.retain(|t| t.name != "fc.shape")),
            &["`fc.shape`", "no such tensor"],
        ),
        (
            "no mask",
            changed(|all| all.retain(|t| t.name != "fc.bitmask")),
            &["`fc.weight`"],
        ),
        (
            "negative size",
            tensor("fc.shape", |t| t.data = le(&[3, -10])),
            &["`fc.shape`", "-10"],
        ),
        (
            "sizes that overflow",
            tensor("fc.shape", |t| t.data = le(&[i64::MAX, i64::MAX])),
            &["`fc.shape`", "9223372036854775807"],
        ),
        (
            "other sizes",
            tensor("fc.shape", |t| t.data = le(&[3, 17])),
            &["`fc.bitmask`", "[3, 2]", "[3, 3]"],
        ),
        (
            "three sizes",
            changed(|all| {
                for t in all {
                    match t.name.as_str() {
                        "fc.shape" => *t = raw("fc.shape", "I64", &[3], &le(&[1, 3, 10])),
                        "fc.bitmask" => t.shape = "[1,3,2]".into(),
                        _ => {}
                    }
                }
            }),
            &["`fc.shape`", "3 sizes"],
        ),
        (
            "shape of another dtype",
            tensor("fc.shape", |t| t.dtype = "U64".into()),
            &["`fc.shape`", "U64"],
        ),
        (
            "a bit too many",
            tensor("fc.bitmask", |t| t.data[0] |= 1),
            &["`fc.compressed`", "row_offsets[1] is 3", "counts 4"],
        ),
        (
            "a bit too many in the last row",
            tensor("fc.bitmask", |t| t.data[4] |= 2),
            &["`fc.compressed`", "counts 7"],
        ),
        (
            "a bit behind the last column",
            tensor("fc.bitmask", |t| t.data[5] |= 128),
            &["`fc.compressed`", "behind column 10"],
        ),
        (
            "mask of another dtype",
            tensor("fc.bitmask", |t| t.dtype = "BOOL".into()),
            &["`fc.bitmask`", "BOOL"],
        ),
        (
            "flat mask",
            tensor("fc.bitmask", |t| t.shape = "[6]".into()),
            &["`fc.bitmask`", "[6]", "[3, 2]"],
        ),
        (
            "wrong row offset",
            tensor("fc.row_offsets", |t| t.data = le(&[0, 3, 4])),
            &["`fc.compressed`", "row_offsets[2] is 4", "counts 3"],
        ),
        (
            "negative row offset",
            tensor("fc.row_offsets", |t| t.data = le(&[0, -1, 3])),
            &["`fc.compressed`", "row_offsets[1] is -1"],
        ),
        (
            "row offset near 2^63",
            tensor("fc.row_offsets", |t| t.data = le(&[0, i64::MAX, 3])),
            &["row_offsets[1] is 9223372036854775807"],
        ),
        (
            "too few row offsets",
            tensor("fc.row_offsets", |t| {
                *t = raw("fc.row_offsets", "I64", &[2], &le(&[0, 3]))
            }),
            &["`fc.row_offsets`", "[2]", "[3]"],
        ),
        (
            "a value missing",
            tensor("fc.compressed", |t| {
                t.data.truncate(20);
                t.shape = "[5]".into();
            }),
            &["`fc.compressed`", "20 bytes", "counts 6"],
        ),
        (
            "values in two dimensions",
            tensor("fc.compressed", |t| t.shape = "[2,3]".into()),
            &["`fc.compressed`", "[2, 3]"],
        ),
        (
            "values of a reserved dtype",
            tensor("fc.compressed", |t| {
                *t = raw("fc.compressed", "I8", &[6], &[1; 6])
            }),
            &["`fc.compressed`", "I8", "reserved"],
        ),
        (
            "values of a dtype that is not supported",
            tensor("fc.compressed", |t| {
                *t = raw("fc.compressed", "F8_E4M3", &[6], &[1; 6])
            }),
            &["`fc.compressed`", "F8_E4M3"],
        ),
        (
            "dense weight of a dtype that is not supported",
            tensor("fc.bias", |t| *t = raw("fc.bias", "F64", &[3], &[0; 24])),
            &["`fc.bias`", "F64"],
        ),
        (
            "NaN in a dense weight",
            tensor("fc.bias", |t| {
                t.data[4..8].copy_from_slice(&f32::NAN.to_le_bytes())
            }),
            &["`fc.bias`", "flat index 1", "NaN"],
        ),
        (
            "infinity in a dense weight",
            tensor("fc.bias", |t| {
                t.data[8..].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes())
            }),
            &["`fc.bias`", "flat index 2", "-inf"],
        ),
        (
            "NaN in a sparse weight",
            tensor("fc.compressed", |t| {
                t.data[16..20].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            &["`fc.weight`", "flat index 27", "NaN"],
        ),
        (
            "infinity in an F16 weight",
            tensor("fc.bias", |t| {
                *t = raw("fc.bias", "F16", &[3], &[0, 0, 0, 0x7c, 0, 0]);
            }),
            &["`fc.bias`", "flat index 1", "inf"],
        ),
        (
            "NaN in a BF16 weight",
            tensor("fc.bias", |t| {
                *t = raw("fc.bias", "BF16", &[3], &[0, 0, 0, 0, 0x81, 0xff]);
            }),
            &["`fc.bias`", "flat index 2", "NaN"],
        ),
        (
            "weight both dense and encoded",
            changed(|all| all.push(raw("fc.weight", "F32", &[1], &[0; 4]))),
            &["`fc.weight`", "twice"],
        ),
    ]
}

#[test]
fn every_hostile_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LABEL);
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, file, expected) in header_cases().into_iter().chain(model_cases()) {
        count += 1;
        std::fs::write(&path, &file).unwrap();
        match Model::open(&path) {
            Ok(_) => wrong.push(format!("{name}: opened")),
            Err(e) => {
                let said = e.to_string();
                let misses: Vec<_> = expected.iter().filter(|e| !said.contains(**e)).collect();
                if !misses.is_empty() || !said.contains(LABEL) || said.len() > 1000 {
                    wrong.push(format!("{name}: {said}\n    misses {misses:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "of {count} cases:\n{}", wrong.join("\n"));
}

#[test]
fn the_untouched_file_opens() {
    let model = file::read_bytes(LABEL, assemble(META, &parts()).into()).unwrap();
    assert_eq!(model.weights().len(), 3);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (dir.path().to_path_buf(), "not a regular file"),
        (dir.path().join("absent"), "cannot open"),
    ] {
        let error = Model::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    #[cfg(unix)]
    {
        let error = Model::open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero"), "{error}");
    }
}

#[test]
fn unaligned_offsets_are_legal() {
    let mut all = parts();
    all.insert(0, raw("a", "U8", &[1], &[7]));
    let model = file::read_bytes(LABEL, assemble(META, &all).into()).unwrap();
    let reference = small_model();
    for (name, weight) in reference.weights() {
        assert_eq!(model.weights()[name].to_f32(), weight.to_f32(), "{name}");
    }
}

#[test]
fn unknown_metadata_json_keys_and_reserved_tensors_are_ignored() {
    let mut all = parts();
    all.push(raw("lacuna.later", "F64", &[1], &[0xff; 8]));
    for t in &mut all {
        if t.name == "lacuna.graph" {
            let json = String::from_utf8(t.data.clone()).unwrap();
            let json = json
                .replacen("{\"version\"", "{\"later\":[{}],\"version\"", 1)
                .replacen("{\"name\":\"conv\"", "{\"later\":null,\"name\":\"conv\"", 1);
            t.shape = format!("[{}]", json.len());
            t.data = json.into_bytes();
        }
    }
    let meta = r#"{"format":"lacuna","version":"1","later":"x","recipe":"r"}"#;
    let model = file::read_bytes(LABEL, assemble(meta, &all).into()).unwrap();
    assert_eq!(model.metadata.recipe.as_deref(), Some("r"));
    assert_eq!(model.weights().len(), 3);
}

#[test]
fn every_truncation_is_refused() {
    let file = good_file();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let boundaries = (0..header.min(600))
        .chain((header - 20)..(header + 20))
        .chain((header..file.len()).step_by(37))
        .chain(file.len() - 9..file.len());
    for n in boundaries {
        let error = file::read_bytes(LABEL, file[..n].to_vec().into())
            .err()
            .unwrap_or_else(|| panic!("the first {n} of {} bytes open", file.len()));
        assert!(error.to_string().contains(LABEL), "{error}");
    }
}

/// Every bit of the header flipped: an error that names the file, or a model that is whole.
#[test]
fn every_bit_flip_of_the_header_is_refused_or_harmless() {
    let file = good_file();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for bit in 0..header * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match file::read_bytes(LABEL, bad.into()) {
            Ok(model) => assert_eq!(model.weights().len(), 3, "bit {bit}"),
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains(LABEL), "bit {bit}: {e}");
            }
        }
    }
    // What is left are the padding, letters of metadata and of names that no one reads.
    assert!(refused * 10 > header * 8 * 7, "{refused} of {}", header * 8);
}
