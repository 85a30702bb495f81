//! Sound safetensors files that are no sound model.

use super::{Case, META, parts};
use crate::common::{Raw, assemble, raw};

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

/// Files whose graph or weights are wrong.
pub fn cases() -> Vec<Case> {
    vec![
        (
            "format of others",
            assemble(r#"{"format":"pt"}"#, &parts()),
            &["`format`", "`pt`"],
        ),
        (
            "version of the metadata",
            assemble(r#"{"format":"lacuna","version":"3"}"#, &parts()),
            &["`version`", "`3`"],
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
