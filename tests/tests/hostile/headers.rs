//! Headers that lie.

use super::Case;
use crate::common::with_header;

/// A file of the tensor `w`, whose header entry is this.
fn entry(entry: &str, data: usize) -> Vec<u8> {
    with_header(&format!("{{\"w\":{entry}}}"), &vec![0; data])
}

/// Files whose header is wrong, or that are something else.
pub fn cases() -> Vec<Case> {
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
