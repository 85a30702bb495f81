//! Thousands of damaged files: none may panic, and none may make the reader allocate more than
//! the file could be worth. The mutations are the same in every run.

mod common;

use common::{bytes, small_model};
use lacuna::model::file::{self, Tensors, decode_bitmask_tensors};
use peak_alloc::PeakAlloc;
use std::path::Path;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const ROUNDS: usize = 6000;
/// Bytes that reading one damaged file of a few KB may take at once.
const LIMIT: usize = 16 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Numbers that programs get wrong.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "7",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
];

/// The ranges of the decimal numbers in a text.
fn numbers(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let len = text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if len > 0 {
            found.push((at, at + len));
        }
        at += len.max(1);
    }
    found
}

/// Damages a file: bytes, bits, words, numbers in the header or the graph, length.
fn mutate(file: &[u8], graph: (usize, usize), random: &mut Random) -> Vec<u8> {
    let mut bad = file.to_vec();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for _ in 0..1 + random.below(3) {
        let at = random.below(bad.len());
        match random.below(8) {
            0 => bad[at] ^= 1 << random.below(8),
            1 => bad[at] = random.next() as u8,
            2 => {
                let end = header.min(bad.len());
                bad[random.below(end)] = random.next() as u8;
            }
            3 => {
                let at = at & !7;
                let word = NUMBERS[random.below(11)].parse::<i128>().unwrap() as u64;
                if let Some(to) = bad.get_mut(at..at + 8) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
            }
            4 => bad.truncate(at),
            5 => {
                let n = random.below(9);
                bad.splice(at..at, std::iter::repeat_n(b'0', n));
            }
            // A number of the same length keeps the offsets right, so that the damage gets deeper.
            6 => {
                let (from, to) = (graph.0.min(bad.len()), graph.1.min(bad.len()));
                let all = numbers(&bad[from..to]);
                if !all.is_empty() {
                    let (a, b) = all[random.below(all.len())];
                    for digit in &mut bad[from + a..from + b] {
                        *digit = b'0' + random.below(10) as u8;
                    }
                }
            }
            _ => {
                let end = header.min(bad.len());
                let all = numbers(&bad[8.min(end)..end]);
                if !all.is_empty() {
                    let (a, b) = all[random.below(all.len())];
                    let number = NUMBERS[random.below(NUMBERS.len())];
                    bad.splice(8 + a..8 + b, number.bytes());
                    let grown = end as i64 - 8 + number.len() as i64 - (b - a) as i64;
                    bad[..8].copy_from_slice(&grown.to_le_bytes());
                }
            }
        }
        if bad.is_empty() {
            break;
        }
    }
    bad
}

/// The small model's graph, with a number in it replaced, in a file that is sound otherwise.
fn mutate_graph(file: &[u8], random: &mut Random) -> Vec<u8> {
    let tensors = Tensors::parse("good", file.to_vec().into()).unwrap();
    let mut all = Vec::new();
    for name in tensors.names() {
        let t = tensors.get(name).unwrap();
        let shape: Vec<i64> = t.shape.iter().map(|&d| d as i64).collect();
        let mut data = t.bytes.to_vec();
        if name == "lacuna.graph" {
            for _ in 0..1 + random.below(3) {
                let found = numbers(&data);
                let (a, b) = found[random.below(found.len())];
                data.splice(a..b, NUMBERS[random.below(NUMBERS.len())].bytes());
            }
            all.push(common::raw(name, "U8", &[data.len() as i64], &data));
        } else {
            all.push(common::raw(name, t.dtype_name, &shape, &data));
        }
    }
    common::assemble("{\"format\":\"lacuna\"}", &all)
}

#[test]
fn damaged_files_never_panic_and_never_allocate_hugely() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    let model = bytes(&path);
    let checkpoint = bytes(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures/compressed_tensors/bitmask-0.8.1.safetensors"),
    );
    let start = model
        .windows(12)
        .position(|w| w == b"{\"version\":1")
        .unwrap();
    let mut random = Random(2024);
    let (mut opened, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let bad = match round % 3 {
            0 => mutate(&model, (start, model.len()), &mut random),
            1 => mutate_graph(&model, &mut random),
            _ => mutate(&checkpoint, (0, 0), &mut random),
        };
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let result = Tensors::parse("fuzz", bad.clone().into())
            .and_then(|t| decode_bitmask_tensors(&t))
            .map(|weights| weights.values().map(|w| w.decode().numel()).sum::<usize>());
        let loaded = file::read_bytes("fuzz", bad.into());
        match (&result, &loaded) {
            (_, Ok(model)) => {
                opened += 1;
                for (name, weight) in model.weights() {
                    let values = weight.to_f32();
                    assert!(
                        values.is_none_or(|v| v.len() == weight.numel()),
                        "round {round}: {name}"
                    );
                }
            }
            (Err(a), Err(b)) => {
                refused += 1;
                for e in [a, b] {
                    assert!(e.to_string().contains("fuzz"), "round {round}: {e}");
                }
            }
            (Ok(_), Err(e)) => assert!(e.to_string().contains("fuzz"), "round {round}: {e}"),
        }
        let peak = MEMORY.peak_usage().saturating_sub(before);
        assert!(peak < LIMIT, "round {round}: {peak} bytes");
    }
    // Both ends are reached: damage that is seen, and damage in values, which no one can see.
    assert!(
        opened > ROUNDS / 50 && refused > ROUNDS / 4,
        "{opened} opened, {refused} refused"
    );
}
