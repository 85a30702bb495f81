//! NEON against the portable operations, lane by lane.

use super::*;
use crate::kernels::cpu::battery::at_page_end;
use crate::kernels::cpu::isa::scalar::Scalar;
use crate::kernels::cpu::simd::{Bf16, F16, F32, I8};

type Neon = super::Neon<false>;

fn bits<S: Simd>(v: S::V) -> [u32; LANES] {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: sixteen lanes; scalar and NEON are always there.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes.map(f32::to_bits)
}

fn of<S: Simd>(lanes: [f32; LANES]) -> S::V {
    // SAFETY: sixteen lanes.
    unsafe { S::load(lanes.as_ptr()) }
}

/// Elements at the very end of a page.
fn at_end(elements: &[f32]) -> crate::model::Bytes {
    at_page_end(
        &elements
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<_>>(),
    )
}

const NUMBERS: [f32; LANES] = [
    1.5, -2.25, 3.0, 1e-40, -1e30, 6.5, 0.0, -8.0, 9.0, 1e38, 11.0, -12.0, 13.0, 14.0, -15.5, 16.0,
];

#[test]
fn masks_touch_only_their_lanes() {
    for mask in 0..=u16::MAX {
        // SAFETY: the arrays hold all lanes.
        unsafe {
            let got = bits::<Neon>(Neon::load_mask(NUMBERS.as_ptr(), mask));
            assert_eq!(
                got,
                bits::<Scalar>(Scalar::load_mask(NUMBERS.as_ptr(), mask))
            );
            let (mut got, mut want) = ([7.0f32; LANES], [7.0f32; LANES]);
            Neon::store_mask(got.as_mut_ptr(), of::<Neon>(NUMBERS), mask);
            Scalar::store_mask(want.as_mut_ptr(), of::<Scalar>(NUMBERS), mask);
            assert_eq!(got, want);
        }
        assert_eq!(Neon::count(mask), mask.count_ones() as usize);
    }
    for n in 0..=LANES {
        let bytes = at_end(&NUMBERS[..n]);
        // SAFETY: `n` elements, and nothing behind them.
        let got = unsafe { Neon::load_mask(bytes.as_ptr().cast(), first(n)) };
        let want: [f32; LANES] = std::array::from_fn(|i| if i < n { NUMBERS[i] } else { 0.0 });
        assert_eq!(bits::<Neon>(got), want.map(f32::to_bits));
    }
}

#[test]
fn even_lanes_end_where_the_elements_do() {
    let elements: Vec<f32> = (1..32).map(|i| i as f32).collect();
    for n in 0..=LANES {
        let bytes = at_end(&elements[..(2 * n).saturating_sub(1)]);
        // SAFETY: `2 * n - 1` elements.
        let got = unsafe { Neon::load_even(bytes.as_ptr().cast(), n) };
        let want: [f32; LANES] =
            std::array::from_fn(|i| if i < n { 2.0 * i as f32 + 1.0 } else { 0.0 });
        assert_eq!(bits::<Neon>(got), want.map(f32::to_bits), "{n}");
    }
}

fn stored<E: Element>() -> Vec<u8> {
    let value = |i: u32| match E::KIND {
        Kind::F32 => (i as f32 - 7.5).to_le_bytes().to_vec(),
        Kind::I8 => vec![(37 * i) as u8],
        _ => (0x3c01 + 0x111 * i as u16).to_le_bytes().to_vec(),
    };
    (0..LANES as u32).flat_map(value).collect()
}

fn expands<E: Element>() {
    let values = at_page_end(&stored::<E>());
    for mask in 0..=u16::MAX {
        // SAFETY: sixteen values, and nothing behind them.
        unsafe {
            let got = bits::<Neon>(Neon::expand::<E>(values.as_ptr(), mask));
            let want = bits::<Scalar>(Scalar::expand::<E>(values.as_ptr(), mask));
            assert_eq!(got, want, "{mask:b}");
        }
    }
    for n in 0..LANES {
        let values = at_page_end(&stored::<E>()[..n * E::SIZE]);
        // SAFETY: `n` values, and nothing behind them.
        unsafe {
            let got = bits::<Neon>(Neon::widen_first::<E>(values.as_ptr(), n));
            let want = bits::<Scalar>(Scalar::widen_first::<E>(values.as_ptr(), n));
            assert_eq!(got, want, "{n}");
        }
    }
}

#[test]
fn stored_values_expand_under_every_mask() {
    expands::<F32>();
    expands::<F16>();
    expands::<Bf16>();
    expands::<I8>();
}

#[test]
fn every_value_of_sixteen_bits_widens_exactly() {
    for start in (0..=u16::MAX).step_by(LANES) {
        let bytes: Vec<u8> = (0..LANES as u16)
            .flat_map(|i| (start + i).to_le_bytes())
            .collect();
        // SAFETY: sixteen values.
        let pairs = unsafe {
            [
                (
                    bits::<Neon>(Neon::widen::<F16>(bytes.as_ptr())),
                    bits::<Scalar>(Scalar::widen::<F16>(bytes.as_ptr())),
                ),
                (
                    bits::<Neon>(Neon::widen::<Bf16>(bytes.as_ptr())),
                    bits::<Scalar>(Scalar::widen::<Bf16>(bytes.as_ptr())),
                ),
            ]
        };
        for (got, want) in pairs {
            for (got, want) in got.map(f32::from_bits).iter().zip(want.map(f32::from_bits)) {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{got} is not {want}");
            }
        }
    }
}

#[test]
fn operations_agree_with_portable_code() {
    let mut other = NUMBERS;
    other.reverse();
    fn all<S: Simd>(a: [f32; LANES], b: [f32; LANES]) -> Vec<[u32; LANES]> {
        let (a, b) = (of::<S>(a), of::<S>(b));
        // SAFETY: operations on registers.
        unsafe {
            vec![
                bits::<S>(S::add(a, b)),
                bits::<S>(S::sub(a, b)),
                bits::<S>(S::mul(a, b)),
                bits::<S>(S::div(a, b)),
                bits::<S>(S::max(a, b)),
                bits::<S>(S::min(a, b)),
                bits::<S>(S::where_less(a, b, a, S::splat(0.5))),
                bits::<S>(S::where_less(a, S::splat(f32::NAN), a, b)),
                bits::<S>(S::splat(S::largest(a))),
            ]
        }
    }
    assert_eq!(all::<Neon>(NUMBERS, other), all::<Scalar>(NUMBERS, other));
    for n in -250..=250 {
        let n = [n as f32; LANES];
        // SAFETY: operations on registers.
        unsafe {
            let got = Neon::scale(of::<Neon>(NUMBERS), of::<Neon>(n));
            let want = Scalar::scale(of::<Scalar>(NUMBERS), of::<Scalar>(n));
            assert_eq!(bits::<Neon>(got), bits::<Scalar>(want));
        }
    }
    let rounded = 1.0 + f32::EPSILON;
    // SAFETY: operations on registers.
    unsafe {
        let (a, c) = (Neon::splat(rounded), Neon::splat(-rounded * rounded));
        let want = rounded.mul_add(rounded, -rounded * rounded);
        assert_eq!(bits::<Neon>(Neon::fma(a, a, c)), [want.to_bits(); LANES]);
        let ramp = of::<Neon>(std::array::from_fn(|i| i as f32));
        assert_eq!(Neon::sum(ramp), 120.0);
        let four = [
            ramp,
            Neon::splat(1.0),
            Neon::splat(-2.0),
            Neon::add(ramp, ramp),
        ];
        assert_eq!(Neon::sum4(four), [120.0, 16.0, -32.0, 240.0]);
    }
}

#[test]
fn nan_stays_or_goes_as_promised() {
    let mut holes = NUMBERS;
    holes[3] = f32::NAN;
    holes[9] = f32::NAN;
    // SAFETY: operations on registers.
    unsafe {
        let (v, one) = (of::<Neon>(holes), Neon::splat(1.0));
        for kept in [
            Neon::max(one, v),
            Neon::min(one, v),
            Neon::scale(v, one),
            Neon::scale(v, v),
        ] {
            for (i, lane) in bits::<Neon>(kept)
                .map(f32::from_bits)
                .into_iter()
                .enumerate()
            {
                assert_eq!(lane.is_nan(), i == 3 || i == 9);
            }
        }
        assert_eq!(Neon::largest(v), 16.0);
        assert_eq!(Neon::largest(Neon::splat(f32::NAN)), f32::NEG_INFINITY);
    }
}

#[test]
fn transposing_moves_every_lane() {
    let rows: [[f32; LANES]; LANES] =
        std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as f32));
    // SAFETY: operations on registers.
    let out = unsafe { Neon::transpose(rows.map(of::<Neon>)) };
    for (j, line) in out.into_iter().enumerate() {
        let want: [f32; LANES] = std::array::from_fn(|i| rows[i][j]);
        assert_eq!(bits::<Neon>(line), want.map(f32::to_bits));
    }
}
