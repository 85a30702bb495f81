//! `lacuna::nn` against candle's own layers.
#![cfg(feature = "candle")]

use candle_core::{DType, Device, Module, Tensor, Var};
use lacuna::model::Padding;
use lacuna::nn::{Conv2d, Conv2dConfig, Linear};
use lacuna::{SessionOptions, Weight};

/// Deterministic values in -1..1.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The same tensor with the elements below `threshold` in magnitude set to zero.
fn pruned(t: &Tensor, threshold: f64) -> Tensor {
    let keep = t.abs().unwrap().ge(threshold).unwrap();
    (t * keep.to_dtype(DType::F32).unwrap()).unwrap()
}

fn weight(t: &Tensor) -> Weight {
    Weight::try_from(t).unwrap()
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    let max = |t: Tensor| {
        t.abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    let error = max((ours - theirs).unwrap()) / max(theirs.clone());
    assert!(error <= 1e-5, "max|a-b|/max|b| = {error}");
}

#[test]
fn linear_matches_candle_for_every_rank_density_and_dtype() {
    let bias = noise(&[19], 2);
    for threshold in [0.0, 0.5, 0.95, 2.0] {
        let w = pruned(&noise(&[19, 37], 1), threshold);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let w = w.to_dtype(dtype).unwrap();
            let theirs = candle_nn::Linear::new(
                w.to_dtype(DType::F32).unwrap(),
                Some((&bias * 0.5).unwrap()),
            );
            for encoded in [false, true] {
                let w = if encoded {
                    weight(&w).encode()
                } else {
                    weight(&w)
                };
                let b = weight(&(&bias * 0.5).unwrap());
                let ours = Linear::new(w, Some(b)).unwrap();
                for shape in [&[5, 37][..], &[37], &[1, 37], &[2, 3, 37], &[2, 1, 33, 37]] {
                    let x = noise(shape, 3);
                    let rows = x.reshape(((), 37)).unwrap();
                    let y = theirs.forward(&rows).unwrap();
                    let mut out = shape.to_vec();
                    *out.last_mut().unwrap() = 19;
                    close(&ours.forward(&x).unwrap(), &y.reshape(out).unwrap());
                }
            }
        }
    }
}

#[test]
fn linear_without_bias_takes_strided_and_empty_inputs() {
    let w = pruned(&noise(&[6, 9], 1), 0.4);
    let ours = Linear::new(weight(&w).encode(), None).unwrap();
    let x = noise(&[9, 14], 2).t().unwrap().narrow(0, 3, 7).unwrap();
    assert!(!x.is_contiguous());
    let y = candle_nn::Linear::new(w, None).forward(&x.contiguous().unwrap());
    close(&x.apply(&ours).unwrap(), &y.unwrap());
    let empty = Tensor::zeros((3, 0, 9), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(empty.apply(&ours).unwrap().dims(), [3, 0, 6]);
}

#[test]
fn conv_matches_candle() {
    for (c, o, k, stride, padding, dilation, groups) in [
        (8, 12, 1, 1, 0, 1, 1),
        (8, 12, 1, 2, 0, 1, 1),
        (3, 7, 3, 1, 1, 1, 1),
        (3, 7, 3, 2, 1, 1, 1),
        (4, 6, 5, 1, 4, 2, 1),
        (8, 12, 3, 1, 1, 1, 2),
        (5, 5, 3, 2, 1, 1, 5),
        (4, 8, 3, 1, 0, 1, 4),
    ] {
        for threshold in [0.0, 0.85] {
            let w = pruned(&noise(&[o, c / groups, k, k], 1), threshold);
            let bias = noise(&[o], 2);
            let config = candle_nn::Conv2dConfig {
                padding,
                stride,
                dilation,
                groups,
                cudnn_fwd_algo: None,
            };
            let theirs = candle_nn::Conv2d::new(w.clone(), Some(bias.clone()), config);
            let config = Conv2dConfig {
                strides: [stride; 2],
                padding: Padding::Explicit([padding; 4]),
                dilations: [dilation; 2],
                groups,
            };
            for w in [weight(&w), weight(&w).encode()] {
                let ours = Conv2d::new(w, Some(weight(&bias)), config).unwrap();
                for shape in [[2, c, 9, 11], [1, c, 16, 7]] {
                    let x = noise(&shape, 3);
                    close(&ours.forward(&x).unwrap(), &theirs.forward(&x).unwrap());
                }
            }
        }
    }
}

#[test]
fn conv_pads_as_named() {
    let w = noise(&[4, 2, 3, 3], 1);
    let config = Conv2dConfig {
        strides: [2, 2],
        padding: Padding::SameUpper,
        ..Conv2dConfig::default()
    };
    let ours = Conv2d::new(weight(&w), None, config).unwrap();
    let x = noise(&[1, 2, 8, 7], 2);
    // Height 8 lacks one element, which goes to the end; width 7 lacks two.
    let padded = x
        .pad_with_zeros(2, 0, 1)
        .unwrap()
        .pad_with_zeros(3, 1, 1)
        .unwrap();
    let y = padded.conv2d(&w, 0, 2, 1, 1).unwrap();
    close(&ours.forward(&x).unwrap(), &y);
}

#[test]
fn modules_are_shared_by_threads_and_take_changing_shapes() {
    fn shared<T: Module + Clone + Send + Sync + std::fmt::Debug>(_: &T) {}
    let w = pruned(&noise(&[16, 24], 1), 0.6);
    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    let ours = Linear::with_options(weight(&w).encode(), None, options).unwrap();
    shared(&ours);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (ours, w) = (&ours, &w);
            scope.spawn(move || {
                // More shapes than a module keeps plans for.
                for n in (1..=12).chain(1..=12) {
                    let x = noise(&[n, 24], seed);
                    let y = x.matmul(&w.t().unwrap()).unwrap();
                    close(&x.apply(ours).unwrap(), &y);
                }
            });
        }
    });
}

#[test]
fn a_module_takes_part_in_a_candle_program() {
    let (w, v) = (pruned(&noise(&[8, 6], 1), 0.3), noise(&[2, 8], 2));
    let mixed = candle_nn::seq()
        .add(Linear::new(weight(&w).encode(), None).unwrap())
        .add(candle_nn::Activation::Relu)
        .add(candle_nn::Linear::new(v.clone(), None));
    let plain = candle_nn::seq()
        .add(candle_nn::Linear::new(w, None))
        .add(candle_nn::Activation::Relu)
        .add(candle_nn::Linear::new(v, None));
    let x = noise(&[3, 6], 3);
    close(&mixed.forward(&x).unwrap(), &plain.forward(&x).unwrap());
}

#[test]
fn gradients_are_refused_by_name() {
    let ours = Linear::new(weight(&noise(&[3, 4], 1)), None).unwrap();
    let x = Var::from_tensor(&noise(&[2, 4], 2)).unwrap();
    let y = ours.forward(x.as_tensor()).unwrap().sum_all().unwrap();
    let error = y.backward().unwrap_err().to_string();
    assert!(error.contains("lacuna-linear: no gradient"), "{error}");
}

#[test]
fn misfits_are_named() {
    let w = || weight(&noise(&[3, 4], 1));
    let fails = |r: lacuna::Result<Linear>| r.unwrap_err().to_string();
    let four = weight(&noise(&[3, 4, 1, 1], 1));
    assert!(fails(Linear::new(four.clone(), None)).contains("[3, 4, 1, 1] is not [O, I]"));
    let bias = weight(&noise(&[4], 1));
    assert!(fails(Linear::new(w(), Some(bias))).contains("weight `bias`: F32 of shape [4]"));
    let bytes = Weight::dense(vec![1, 1], lacuna::DType::U8, vec![0].into()).unwrap();
    assert!(fails(Linear::new(bytes, None)).contains("U8 is not floating point"));
    let config = Conv2dConfig {
        groups: 2,
        ..Conv2dConfig::default()
    };
    let error = Conv2d::new(four.clone(), None, config)
        .unwrap_err()
        .to_string();
    assert!(error.contains("3 channels in 2 groups"), "{error}");
    let error = Conv2d::new(w(), None, Conv2dConfig::default()).unwrap_err();
    assert!(
        error.to_string().contains("[3, 4] is not [O, C/groups"),
        "{error}"
    );

    let linear = Linear::new(w(), None).unwrap();
    let run = |x: &Tensor| linear.forward(x).unwrap_err().to_string();
    assert!(run(&noise(&[2, 5], 1)).contains("[2, 5] is not [..., 4]"));
    assert!(run(&noise(&[2, 4], 1).to_dtype(DType::F64).unwrap()).contains("F64, not F32"));
    let nan = Tensor::full(f32::NAN, (1, 4), &Device::Cpu).unwrap();
    assert!(run(&nan).contains("element 0 is NaN"));
    let conv = Conv2d::new(four, None, Conv2dConfig::default()).unwrap();
    let error = conv
        .forward(&noise(&[1, 5, 2, 2], 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("5 channels"), "{error}");
}
