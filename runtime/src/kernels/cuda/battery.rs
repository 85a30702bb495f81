//! Every kernel against plain f64: odd sizes, empty rows, tails, poisoned outputs. It needs a C++ compiler, or a GPU:
//! `cargo test --release -p lacuna --features cuda --lib cuda -- --include-ignored`.

use super::launch::{
    self, Cache, Cores, Draw, Epilogue, Heads, Product, Region, Rotation, Seen, stride,
};
use super::machine::{Memory, cores, run};
use super::pack::{self, Form, Half};
use super::{Error, KERNELS};
use crate::{DType, Weight};
use half::{bf16, f16};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// A generator of which a test's values come; a linear congruence is random enough for products.
pub(super) struct Values(pub u64);

impl Values {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

pub(super) fn dtype(half: Half) -> DType {
    match half {
        Half::F16 => DType::F16,
        Half::Bf16 => DType::BF16,
    }
}

pub(super) fn rounded(half: Half, v: f32) -> (u16, f32) {
    match half {
        Half::F16 => (f16::from_f32(v).to_bits(), f16::from_f32(v).to_f32()),
        Half::Bf16 => (bf16::from_f32(v).to_bits(), bf16::from_f32(v).to_f32()),
    }
}

/// A matrix with so many in 64 elements stored, every fifth row empty, the third full.
pub(super) fn matrix(
    values: &mut Values,
    half: Half,
    rows: usize,
    cols: usize,
    kept: u32,
) -> Weight {
    let mut data = values.many(rows * cols);
    for (r, row) in data.chunks_mut(cols).enumerate() {
        for v in row {
            let keep = match r {
                3 => true,
                _ if r % 5 == 4 => false,
                _ => values.next() < kept as f32 / 32.0 - 1.0,
            };
            if !keep {
                *v = 0.0;
            }
        }
    }
    let weight = Weight::from_f32(&[rows, cols], &data);
    weight.to_dtype(dtype(half)).expect("a float")
}

/// A matrix that keeps two of each four.
pub(super) fn two_four(values: &mut Values, half: Half, rows: usize, cols: usize) -> Weight {
    let mut data = values.many(rows * cols);
    for group in data.chunks_mut(4) {
        let first = ((values.next() + 1.0) * 2.0) as usize % 4;
        let second = (first + 1 + ((values.next() + 1.0) * 1.5) as usize % 3) % 4;
        group[first] = 0.0;
        group[second] = 0.0;
    }
    let weight = Weight::from_f32(&[rows, cols], &data);
    let weight = weight.to_dtype(dtype(half)).expect("a float");
    weight.encode_two_four().expect("2:4")
}

/// What a product writes and what is added to it.
struct Sums {
    y: Memory,
    limits: (f32, f32),
    bias: Option<(Memory, Vec<f32>)>,
    residual: Option<(Memory, Vec<f32>)>,
}

impl Sums {
    fn new(values: &mut Values, n: usize, rows: usize, with: u32) -> Sums {
        let mut extra = |bit: u32, len: usize| {
            (with & bit != 0).then(|| {
                let data = values.many(len);
                (Memory::of(&data), data)
            })
        };
        Sums {
            y: Memory::new(n * rows * 4),
            limits: match with & 4 {
                0 => Epilogue::NONE.limits,
                _ => (-0.25, 0.5),
            },
            bias: extra(1, rows),
            residual: extra(2, n * rows),
        }
    }

    fn product(&self, x: Region, columns: usize) -> Product {
        let region = |m: &Option<(Memory, Vec<f32>)>| m.as_ref().map(|m| m.0.region());
        Product {
            y: self.y.region(),
            x,
            epilogue: Epilogue {
                bias: region(&self.bias),
                residual: region(&self.residual),
                limits: self.limits,
            },
            columns,
        }
    }

    /// Holds the result against `weight * x` in f64.
    fn check(&self, weight: &Weight, x: &[f32], n: usize) {
        let (rows, cols) = weight.matrix();
        let w = weight.to_f32().expect("a float");
        let y: Vec<f32> = self.y.read();
        for j in 0..n {
            for r in 0..rows {
                let at = j * rows + r;
                let (mut sum, mut size) = (0.0, 1e-3);
                for c in 0..cols {
                    let one = f64::from(w[r * cols + c]) * f64::from(x[j * cols + c]);
                    sum += one;
                    size += one.abs();
                }
                for (extra, i) in [(&self.bias, r), (&self.residual, at)] {
                    let one = extra.as_ref().map_or(0.0, |e| f64::from(e.1[i]));
                    sum += one;
                    size += one.abs();
                }
                let sum = sum.clamp(self.limits.0.into(), self.limits.1.into());
                let far = (f64::from(y[at]) - sum).abs();
                assert!(far <= 3e-6 * size, "y[{j}][{r}] = {}, {sum}", y[at]);
            }
        }
    }
}

/// The kernels that ran, so that none is left out.
static RAN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

pub(super) fn go(launch: &launch::Launch) {
    run(launch);
    RAN.lock()
        .unwrap_or_else(|e| e.into_inner())
        .insert(launch.kernel.clone());
}

/// 16-bit rows of x by the kernel that rounds, and what they say.
fn round(half: Half, x: &[f32], n: usize, cols: usize) -> (Memory, Vec<f32>) {
    let from = Memory::of(x);
    let to = Memory::new(n * stride(cols) * 2);
    go(&launch::round(half, to.region(), from.region(), n, cols).expect("a launch"));
    let got: Vec<u16> = to.read();
    for (j, row) in got.chunks(stride(cols)).enumerate() {
        for (c, v) in row.iter().enumerate() {
            let want = if c < cols {
                rounded(half, x[j * cols + c]).0
            } else {
                0
            };
            assert_eq!(*v, want, "row {j}, element {c}");
        }
    }
    (to, x.iter().map(|v| rounded(half, *v).1).collect())
}

fn vectors(seed: u64, half: Half, rows: usize, cols: usize, n: usize, kept: u32, with: u32) {
    let mut values = Values(seed);
    let dense = matrix(&mut values, half, rows, cols, kept);
    let x = values.many(n * cols);
    let xs = Memory::of(&x);
    let packed = pack::chunks(&dense.encode(), Form::Vector).expect("packs");
    let parts = (
        Memory::of(&packed.masks),
        Memory::of(&packed.starts),
        Memory::of(&packed.values),
    );
    let weight = packed.at(parts.0.region(), parts.1.region(), parts.2.region());
    let sums = Sums::new(&mut values, n, rows, with);
    go(&launch::linear(&weight, Cores::Warp, &sums.product(xs.region(), n)).expect("a launch"));
    sums.check(&dense, &x, n);

    let packed = pack::rows(&dense).expect("packs");
    let data = Memory::of(&packed.values);
    let sums = Sums::new(&mut values, n, rows, with);
    let p = sums.product(xs.region(), n);
    go(&launch::linear(&packed.at(data.region()), Cores::Warp, &p).expect("a launch"));
    sums.check(&dense, &x, n);
}

fn matrices(seed: u64, half: Half, rows: usize, cols: usize, n: usize, kept: u32, with: u32) {
    let mut values = Values(seed);
    let dense = matrix(&mut values, half, rows, cols, kept);
    let x = values.many(n * cols);
    let (xs, x) = round(half, &x, n, cols);
    let mut check = |weight: &launch::Weight, matrix: &Weight| {
        for cores in cores() {
            let sums = Sums::new(&mut values, n, rows, with);
            let p = sums.product(xs.region(), n);
            go(&launch::linear(weight, cores, &p).expect("a launch"));
            sums.check(matrix, &x, n);
        }
    };
    let packed = pack::chunks(&dense.encode(), Form::Matrix).expect("packs");
    let parts = (
        Memory::of(&packed.masks),
        Memory::of(&packed.starts),
        Memory::of(&packed.values),
    );
    let weight = packed.at(parts.0.region(), parts.1.region(), parts.2.region());
    check(&weight, &dense);

    let packed = pack::tiles(&dense).expect("packs");
    let data = Memory::of(&packed.values);
    check(&packed.at(data.region()), &dense);

    if cols.is_multiple_of(4) {
        let sparse = two_four(&mut Values(seed + 1), half, rows, cols);
        let packed = pack::two_four(&sparse).expect("packs");
        let parts = (Memory::of(&packed.values), Memory::of(&packed.places));
        check(&packed.at(parts.0.region(), parts.1.region()), &sparse);
    }
}

pub(super) fn halves() -> impl Strategy<Value = Half> {
    prop_oneof![Just(Half::F16), Just(Half::Bf16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn products_with_vectors(
        seed: u64, half in halves(), rows in 1usize..40, cols in 1usize..2600, n in 1usize..=19,
        kept in 0u32..=64, with in 0u32..8,
    ) {
        vectors(seed, half, rows, cols, n, kept, with);
    }

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn products_with_matrices(
        seed: u64, half in halves(), rows in 1usize..140, cols in 1usize..120, n in 1usize..150,
        kept in 0u32..=64, with in 0u32..8, four: bool,
    ) {
        let cols = if four { cols * 4 } else { cols };
        matrices(seed, half, rows, cols, n, kept, with);
    }

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn attention_over_a_cache(
        seed: u64, half: bool, tokens in 1usize..4, group in 1usize..4, kv_heads in 1usize..4,
        width in 1usize..=32, past in 0usize..200, spare in 0usize..3, parts in 1usize..6,
        causal: bool, masked: bool,
    ) {
        let (width, heads) = (width * 8, group * kv_heads);
        let capacity = past + tokens + spare;
        let mut values = Values(seed);
        let to = |v: f32| if half { f16::from_f32(v).to_f32() } else { v };
        let mut all: [Vec<f32>; 2] = [(); 2].map(|()| values.many(kv_heads * capacity * width));
        all.iter_mut().flatten().for_each(|v| *v = to(*v));
        let memory = |data: &[f32]| match half {
            true => Memory::of(&data.iter().map(|v| f16::from_f32(*v).to_bits()).collect::<Vec<_>>()),
            false => Memory::of(data),
        };
        let (keys, kept) = (memory(&all[0]), memory(&all[1]));
        let before = Memory::of(&[past as u32]);
        let cache = Cache {
            keys: keys.region(), values: kept.region(), past: before.region(), kv_heads, capacity, half,
        };
        let new: [Vec<f32>; 2] = [(); 2].map(|()| values.many(tokens * kv_heads * width));
        let (k, v) = (Memory::of(&new[0]), Memory::of(&new[1]));
        go(&launch::keep(&cache, k.region(), v.region(), tokens, width).unwrap());
        for (all, new) in all.iter_mut().zip(&new) {
            for (i, v) in new.iter().enumerate() {
                let (c, head, token) = (i % width, i / width % kv_heads, i / width / kv_heads);
                all[(head * capacity + past + token) * width + c] = to(*v);
            }
        }
        let q = values.many(tokens * heads * width);
        let qs = Memory::of(&q);
        let room = Memory::new(tokens * heads * parts * (width + 2) * 4);
        let y = Memory::new(q.len() * 4);
        let shape = Heads { tokens, heads, width };
        let scale = 1.7 / (width as f32).sqrt();
        let mut some: Vec<i32> = (0..capacity).map(|_| i32::from(values.next() > -0.5)).collect();
        some[0] = 1;
        let mask = Memory::of(&some.iter().map(|s| *s as u32).collect::<Vec<_>>());
        let seen = Seen { causal, mask: masked.then(|| mask.region()), scale };
        let sees = |token: usize, p: usize| {
            (!causal || p <= past + token) && (!masked || some[p] != 0)
        };
        let launches =
            launch::attention(&cache, y.region(), qs.region(), room.region(), &shape, parts, &seen);
        launches.unwrap().iter().for_each(go);
        let y: Vec<f32> = y.read();
        for (row, q) in q.chunks(width).enumerate() {
            let (token, head) = (row / heads, row % heads);
            let at = |p: usize| ((head / group) * capacity + p) * width;
            let dot = |p: usize| -> f64 {
                let k = &all[0][at(p)..at(p) + width];
                q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * f64::from(scale)
            };
            let end = if causal { past + token + 1 } else { capacity };
            let score = |p: usize| if sees(token, p) { dot(p) } else { f64::NEG_INFINITY };
            let scores: Vec<f64> = (0..end).map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for c in 0..width {
                let value = |(p, w): (usize, &f64)| w * f64::from(all[1][at(p) + c]);
                let want = weights.iter().enumerate().map(value).sum::<f64>() / sum;
                let got = f64::from(y[row * width + c]);
                prop_assert!((got - want).abs() <= 1e-5, "row {row}, element {c}: {got}, {want}");
            }
        }
    }

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn what_goes_element_by_element(
        seed: u64, half in halves(), tokens in 1usize..4, width in 1usize..700, pairs in 1usize..40,
        heads in 1usize..4, past in 0usize..9, interleaved: bool,
    ) {
        let mut values = Values(seed);
        let x = values.many(tokens * width);
        let (xs, y) = (Memory::of(&x), Memory::new(tokens * width * 4));
        let w = values.many(width);
        let ws = Memory::of(&w);
        go(&launch::rms_norm(y.region(), xs.region(), ws.region(), (tokens, width), 1e-5).unwrap());
        for (x, y) in x.chunks(width).zip(y.read::<f32>().chunks(width)) {
            let square = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
            for c in 0..width {
                let want = f64::from(x[c]) / (square + 1e-5).sqrt() * f64::from(w[c]);
                prop_assert!((f64::from(y[c]) - want).abs() <= 2e-6 * (1.0 + want.abs()));
            }
        }

        let table = Weight::from_f32(&[tokens + 3, width], &values.many((tokens + 3) * width));
        let table = table.to_dtype(dtype(half)).unwrap();
        let packed = pack::rows(&table).unwrap();
        let data = Memory::of(&packed.values);
        let ids: Vec<u32> = (0..tokens as u32).map(|t| if t == 2 { 1 << 31 } else { t + 2 }).collect();
        let (id, y) = (Memory::of(&ids), Memory::new(tokens * width * 4));
        go(&launch::embed(&packed.at(data.region()), y.region(), id.region(), tokens).unwrap());
        let all = table.to_f32().unwrap();
        for (id, y) in ids.iter().zip(y.read::<f32>().chunks(width)) {
            let from = *id as usize * width;
            let want = all.get(from..from + width).map_or(vec![0.0; width], <[f32]>::to_vec);
            prop_assert_eq!(y, &want[..]);
        }

        let width = 2 * pairs + past;
        let shape = Heads { tokens, heads, width };
        let x = values.many(tokens * heads * width);
        let (cos, sin) = (values.many((past + tokens) * pairs), values.many((past + tokens) * pairs));
        let (xs, y) = (Memory::of(&x), Memory::new(x.len() * 4));
        let (cosines, sines, before) = (Memory::of(&cos), Memory::of(&sin), Memory::of(&[past as u32]));
        let r = Rotation {
            cosines: cosines.region(), sines: sines.region(), past: before.region(),
            positions: past + tokens, pairs, interleaved,
        };
        go(&launch::rotary(y.region(), xs.region(), &shape, &r).unwrap());
        let got: Vec<f32> = y.read();
        let mut want = x.clone();
        for (row, head) in want.chunks_mut(width).enumerate() {
            for p in 0..pairs {
                let (a, b) = if interleaved { (2 * p, 2 * p + 1) } else { (p, p + pairs) };
                let at = (past + row / heads) * pairs + p;
                let (u, v) = (head[a], head[b]);
                head[a] = u * cos[at] - v * sin[at];
                head[b] = v * cos[at] + u * sin[at];
            }
        }
        for (got, want) in got.iter().zip(&want) {
            prop_assert!((got - want).abs() <= 1e-6);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn tokens_are_drawn(
        seed: u64, count in 1usize..5000, top_k in 0usize..60, top_p in 0.01f32..1.2, draw in 0.0f32..1.0,
        temperature in 0.2f32..2.0, coarse: bool,
    ) {
        let mut values = Values(seed);
        let mut logits = values.many(2 * count);
        // With many alike.
        logits.iter_mut().for_each(|v| *v = if coarse { (*v * 4.0).round() } else { *v * 6.0 });
        let (rows, draws) = (Memory::of(&logits), Memory::of(&[draw, draw]));
        let ids = Memory::new(8);
        go(&launch::argmax(ids.region(), rows.region(), 2, count).unwrap());
        for (row, id) in logits.chunks(count).zip(ids.read::<u32>()) {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            prop_assert_eq!(row.iter().position(|v| *v == top), Some(id as usize));
        }
        let ids = Memory::new(8);
        let how = Draw { temperature, top_k, top_p: top_p.min(1.0) };
        let regions = (ids.region(), rows.region(), draws.region());
        go(&launch::sample(regions.0, regions.1, regions.2, (2, count), &how).unwrap());
        for (row, id) in logits.chunks(count).zip(ids.read::<u32>()) {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let mass = |v: &f32| (f64::from(v - top) / f64::from(temperature)).exp();
            let mut down = row.to_vec();
            down.sort_by(|a, b| b.total_cmp(a));
            let mut cut = match top_k {
                0 => f32::MIN,
                k => down[k.min(count) - 1],
            };
            let all: f64 = row.iter().filter(|v| **v >= cut).map(mass).sum();
            let (mut sum, mut loose) = (0.0, cut);
            for v in &down {
                sum += mass(v);
                // Where rounding may have cut.
                if sum >= (f64::from(how.top_p) + 1e-4) * all && loose == cut {
                    loose = *v;
                }
            }
            if how.top_p < 1.0 { cut = cut.max(loose); }
            prop_assert!(row[id as usize] >= cut, "{} is below {cut}", row[id as usize]);
            if how.top_p == 1.0 {
                let part = |n: usize| -> f64 {
                    row[..n].iter().filter(|v| **v >= cut).map(mass).sum::<f64>() / all
                };
                prop_assert!(part(id as usize) <= f64::from(draw) + 1e-4);
                prop_assert!(part(id as usize + 1) >= f64::from(draw) - 1e-4);
            }
        }
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn every_kernel_runs() {
    for half in [Half::F16, Half::Bf16] {
        for n in [1, 2, 3, 7, 11] {
            vectors(n as u64, half, 19, 8300, n, 20, 3);
        }
        for n in [1, 9, 17, 33, 65, 130] {
            matrices(n as u64, half, 37, 332, n, 32, 0);
        }
        vectors(1, half, 9, 33, 1, 0, 0);
        matrices(1, half, 16, 64, 8, 64, 0);
    }
    let numbers = [
        0.0,
        -0.0,
        1e-8,
        6e-8,
        3e-5,
        6.1e-5,
        65519.0,
        65520.0,
        1e30,
        -1.000_488_3,
        0.1,
    ];
    for half in [Half::F16, Half::Bf16] {
        round(half, &numbers, 1, numbers.len());
    }
    let ran = RAN.lock().unwrap_or_else(|e| e.into_inner());
    let linear = |name: &str| name.contains("_linear_") || name.ends_with("_round");
    let left: Vec<_> = KERNELS
        .iter()
        .map(|k| k.name)
        .filter(|n| linear(n) && !ran.contains(*n))
        .filter(|n| cores().contains(&Cores::Group) || !n.contains("wgmma"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_its_name() {
    let region = |bytes| Region {
        address: 4096,
        bytes,
    };
    let what = |result: Result<launch::Launch, Error>| result.unwrap_err().to_string();
    let weight = pack::rows(&matrix(&mut Values(1), Half::F16, 4, 20, 64)).unwrap();
    assert_eq!(weight.stride, 24);
    let weight = weight.at(region(4 * 24 * 2));
    let fits = Product {
        y: region(4 * 3 * 4),
        x: region(20 * 3 * 4),
        epilogue: Epilogue::NONE,
        columns: 3,
    };
    let launch = launch::linear(&weight, Cores::Warp, &fits).unwrap();
    assert_eq!(
        (launch.kernel.as_str(), launch.grid),
        ("f16_linear_dense_4", [1, 1, 1])
    );
    let text = what(launch::linear(
        &weight,
        Cores::Warp,
        &Product {
            y: region(47),
            ..fits
        },
    ));
    assert_eq!(
        text,
        "kernel `f16_linear_dense_4`: y has 47 bytes, [3, 4] elements of 4 bytes are needed"
    );
    let text = what(launch::linear(
        &weight,
        Cores::Warp,
        &Product {
            epilogue: Epilogue {
                bias: Some(region(8)),
                ..Epilogue::NONE
            },
            ..fits
        },
    ));
    assert!(text.contains("bias has 8 bytes"), "{text}");
    let odd = Region {
        address: 4098,
        bytes: 240,
    };
    let text = what(launch::linear(
        &weight,
        Cores::Warp,
        &Product { x: odd, ..fits },
    ));
    assert!(text.contains("x is at 0x1002"), "{text}");
    let heads = Heads {
        tokens: 1,
        heads: 2,
        width: 12,
    };
    let cache = Cache {
        keys: region(4096),
        values: region(4096),
        past: region(4),
        kv_heads: 2,
        capacity: 4,
        half: false,
    };
    let all = region(1 << 20);
    let seen = Seen {
        causal: true,
        mask: None,
        scale: 1.0,
    };
    let text = launch::attention(&cache, all, all, all, &heads, 1, &seen)
        .unwrap_err()
        .to_string();
    assert!(text.contains("heads of 12 elements"), "{text}");
    let draw = Draw {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
    };
    assert!(what(launch::sample(all, all, all, (1, 4), &draw)).contains("temperature: 0.0"));
    let dense = Weight::from_f32(&[1, 4], &[1.0; 4]);
    let text = pack::rows(&dense).unwrap_err().to_string();
    assert!(text.contains("values of F32"), "{text}");
}

#[test]
fn chunks_hold_every_stored_element_once_and_in_the_order_of_warps() {
    for form in [Form::Vector, Form::Matrix] {
        let (high, wide) = form.shape();
        let mut places = BTreeSet::new();
        for row in 0..high {
            for col in 0..wide {
                let (lane, bit) = form.place(row, col);
                assert!(lane < 32 && bit < 32 && places.insert((lane, bit)));
            }
        }
        let weight = matrix(&mut Values(7), Half::F16, 35, 1100, 30).encode();
        let packed = pack::chunks(&weight, form).unwrap();
        let (across, bands) = form.chunks(35, 1100);
        assert_eq!(packed.starts.len(), across * bands);
        let dense = weight.to_f32().unwrap();
        let mut end = 0;
        for (chunk, start) in packed.starts.iter().enumerate() {
            assert_eq!(*start, end, "chunk {chunk}");
            let masks = &packed.masks[chunk * 32..chunk * 32 + 32];
            end += masks
                .iter()
                .map(|m| m.count_ones())
                .sum::<u32>()
                .next_multiple_of(2);
        }
        assert_eq!(packed.values.len(), end as usize);
        let stored = packed
            .masks
            .iter()
            .map(|m| m.count_ones() as usize)
            .sum::<usize>();
        assert_eq!(stored, dense.iter().filter(|v| **v != 0.0).count());
    }
}
