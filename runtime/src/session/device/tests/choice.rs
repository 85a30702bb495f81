//! Which form is taken, and how steps are timed.

use super::*;
use crate::kernels::cuda::machine::Host;

#[test]
#[ignore = "needs a C++ compiler"]
fn libraries_take_dense_layers_and_the_epilogue_follows() {
    for (form, kernel) in [
        (DeviceForm::DenseBlas, "cublas_gemm"),
        (DeviceForm::DenseBlasLt, "cublaslt_matmul"),
    ] {
        let mut host = Host::default();
        (host.limits.blas, host.limits.blas_lt) = (true, true);
        let model = network(2);
        let data = image(2 * 3 * 13 * 11);
        let inputs = [TensorView::f32(&[2, 3, 13, 11], &data)];
        let is_classifier = |w: &&(&str, &Node)| model.weights()[w.0].shape() == [11, 24];
        let weights = model.product_weights();
        let classifier = weights.iter().find(is_classifier).unwrap().0.to_owned();
        let options = DeviceOptions {
            forms: BTreeMap::from([(classifier, vec![form])]),
            ..DeviceOptions::default()
        };
        let device = sessions(&model, Box::new(host), &options, &inputs, 3e-3, kernel);
        let steps = device.steps().iter();
        let kernels: Vec<&str> = steps.map(|s| s.info.kernel.as_str()).collect();
        assert!(kernels.contains(&kernel), "{kernels:?}");
    }
}

#[test]
fn what_the_clock_says_is_taken_and_dense_where_it_is_faster() {
    let model = pruned(&network(1), half);
    for (fast, sparse) in [
        ("bitmask_mma", true),
        ("conv_dense_8", false),
        ("2to4", false),
    ] {
        let mut host = Host::default();
        host.clock = match fast {
            "bitmask_mma" => |w| {
                if w.kernel().contains("bitmask_mma") {
                    1e-6
                } else {
                    2e-6
                }
            },
            "conv_dense_8" => |w| {
                if w.kernel().contains("dense_8") {
                    1e-6
                } else {
                    2e-6
                }
            },
            _ => |w| {
                if w.kernel().contains("bitmask") {
                    2e-6
                } else {
                    1e-6
                }
            },
        };
        let options = DeviceOptions {
            tune: true,
            ..DeviceOptions::default()
        };
        let device = DeviceSession::new(&model, Box::new(host), &options).unwrap();
        let first = device.steps()[0].choice.clone().unwrap();
        assert!(first.measured);
        assert_eq!(first.form.is_dense(), !sparse, "{fast}");
        let reason = &device.steps()[0].info.reason;
        assert!(
            reason.contains("measured") && reason.contains(" us"),
            "{reason}"
        );
        assert!(first.legal.is_sorted_by(|a, b| a.seconds <= b.seconds));
    }
    let options = DeviceOptions {
        forms: every(&model, DeviceForm::TwoOfFourMma),
        ..DeviceOptions::default()
    };
    let error = DeviceSession::new(&model, Box::new(Host::default()), &options).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("weight `w0`") && text.contains("dense-vector"),
        "{text}"
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn steps_are_timed_with_weights_that_no_cache_holds() {
    let model = pruned(&model(4, 2, 16, 16, true), half);
    let options = DeviceDecoderOptions {
        capacity: 8,
        chunk: 3,
        ..DeviceDecoderOptions::default()
    };
    let mut device = DeviceDecoder::new(&model, Box::new(Host::default()), &options).unwrap();
    let before = device.prefill(&[1, 2, 3]).unwrap();
    let (ceilings, times) = device.measure(PhaseKind::Step, 3).unwrap();
    assert_eq!(ceilings.gemm, None);
    assert_eq!(times.len(), device.steps(PhaseKind::Step).len());
    for (step, time) in device.steps(PhaseKind::Step).iter().zip(&times) {
        assert_eq!(time.copies > 1, step.choice.is_some(), "{}", step.info.node);
        // The clock counts a microsecond for each launch.
        let launches = step.launches.len() as f64;
        assert!((time.seconds / (launches * 1e-6) - 1.0).abs() < 1e-9);
    }
    assert_eq!(device.time(PhaseKind::Step, 3, 4).unwrap().len(), 4);
    assert!(device.time(PhaseKind::Chunk, 6, 1).is_err());
    device.truncate(0);
    assert_eq!(device.prefill(&[1, 2, 3]).unwrap(), before);
}
