//! Networks, encoders and single operators beside the CPU's sessions.

use super::*;

#[test]
#[ignore = "needs a C++ compiler"]
fn networks_say_what_the_cpu_says() {
    for images in [1, 2] {
        let model = pruned(&network(images), half);
        let data = image(images * 3 * 13 * 11);
        let shape = [images, 3, 13, 11];
        let inputs = [TensorView::f32(&shape, &data)];
        let options = DeviceOptions::default();
        sessions(&model, machine(), &options, &inputs, 3e-3, "chosen");
        for form in [
            DeviceForm::DenseVector,
            DeviceForm::DenseMma,
            DeviceForm::DenseWgmma,
            DeviceForm::BitmaskVector,
            DeviceForm::BitmaskMma,
            DeviceForm::BitmaskWgmma,
        ] {
            let depthwise = |n: &String| model.weights()[n].shape().get(1) == Some(&1);
            let mut forms = every(&model, form);
            forms.retain(|n, _| !depthwise(n));
            let options = DeviceOptions {
                forms,
                ..DeviceOptions::default()
            };
            let device = sessions(&model, machine(), &options, &inputs, 3e-3, form.name());
            let forms = device
                .steps()
                .iter()
                .filter_map(|s| s.choice.as_ref())
                .map(|c| c.form);
            assert!(forms.clone().count() == 4 && forms.clone().all(|f| f == form));
        }
        // Of f32, dense.
        sessions(&network(images), machine(), &options, &inputs, 3e-3, "f32");
        let bad = vec![f32::NAN; data.len()];
        let mut device = DeviceSession::new(&model, machine(), &options).unwrap();
        let error = device.run(&[TensorView::f32(&shape, &bad)]).unwrap_err();
        assert!(error.to_string().contains("element 0 is NaN"), "{error}");
    }
}

/// Whatever goes element by element, along axes, by index, or moves.
#[test]
#[ignore = "needs a C++ compiler"]
fn transposed_convolutions_say_what_the_cpu_says() {
    let mut n = Net::new(10);
    let mut outputs = Vec::new();
    for (groups, shape, strides, dilations) in [
        (1, [5, 3, 3, 3], [2, 3], [1, 2]),
        (1, [5, 2, 2, 3], [1, 1], [1, 1]),
        (5, [5, 1, 4, 2], [3, 1], [1, 1]),
    ] {
        let op = Op::ConvTranspose {
            strides,
            pads: [1, 0, 0, 1],
            output_padding: [strides[0] - 1, 0],
            dilations,
            groups,
        };
        let (w, b) = (
            n.0.weight(&shape, 0.4),
            n.0.weight(&[groups * shape[1]], 1.0),
        );
        outputs.push(n.node(op, &["x", &w, &b]));
    }
    let model = n.model(vec![Input::f32("x", fixed(&[2, 5, 3, 5]))], &outputs);
    let data = image(150);
    let inputs = [TensorView::f32(&[2, 5, 3, 5], &data)];
    let options = DeviceOptions::default();
    let device = sessions(&model, machine(), &options, &inputs, 3e-3, "transposed");
    // Each place within the stride is a convolution of its own, and one step puts them together.
    let steps = device.steps().iter();
    let kernels = |k: &str| steps.clone().filter(|s| s.info.kernel.contains(k)).count();
    assert_eq!(kernels("_conv_"), 2 * 3 + 1);
    assert_eq!(kernels("f32_depthwise"), 3);
    assert!(steps.clone().all(|s| s.info.op == "ConvTranspose"));
}

#[test]
#[ignore = "needs a C++ compiler"]
fn other_operators_say_what_the_cpu_says() {
    let mut n = Net::new(9);
    let wide = n.0.weight(&[5, 1, 5], 1.0);
    let slope = n.0.weight(&[5, 1, 1], 0.5);
    let mut outputs = Vec::new();
    for op in [
        Op::LeakyRelu { alpha: 0.1 },
        Op::HardSigmoid {
            alpha: 0.3,
            beta: 0.4,
        },
        Op::Erf,
        Op::Sigmoid,
        Op::Tanh,
        Op::Gelu { approximate: false },
        Op::Gelu { approximate: true },
        Op::Swish { alpha: 1.7 },
        Op::Relu,
        Op::Softmax { axis: 1 },
        Op::Softmax { axis: -1 },
        Op::LpNormalization { axis: 1 },
        Op::LpNormalization { axis: -1 },
        Op::Transpose {
            perm: vec![0, 2, 3, 1],
        },
        Op::ReduceMean {
            axes: vec![1, 3],
            keepdims: false,
        },
        Op::ReduceMean {
            axes: vec![],
            keepdims: true,
        },
        Op::Pad {
            pads: vec![0, 1, 2, 0, 0, -1, 1, 2],
            mode: PadMode::Constant(0.5),
        },
        Op::Pad {
            pads: vec![0, 0, 2, 1, 0, 0, 1, 2],
            mode: PadMode::Reflect,
        },
        Op::Slice {
            axes: vec![1, 3],
            starts: vec![-1, 0],
            ends: vec![0, 9],
            steps: vec![-2, 2],
        },
        Op::MaxPool(window(3, 1, 1)),
        Op::AveragePool {
            window: window(3, 2, 1),
            count_include_pad: true,
        },
        Op::Resize {
            resized: Resized::Scales([1.7, 2.0]),
            interpolation: Interpolation::Linear,
            coordinates: Coordinates::HalfPixel,
        },
    ] {
        outputs.push(n.node(op, &["x"]));
    }
    outputs.push(n.node(Op::Mul, &["x", &wide]));
    outputs.push(n.node(Op::Div, &["x", &wide]));
    outputs.push(n.node(Op::PRelu, &["x", &slope]));
    outputs.push(n.node(Op::Sub, &[&outputs[0].clone(), "x"]));
    let more = n.node(
        Op::Concat { axis: 1 },
        &[&outputs[0].clone(), "x", &outputs[2].clone()],
    );
    let (scale, bias) = (n.0.weight(&[15], 1.0), n.0.weight(&[15], 1.0));
    outputs.push(n.node(
        Op::InstanceNormalization { epsilon: 1e-3 },
        &[&more, &scale, &bias],
    ));
    let turned = n.node(
        Op::Transpose {
            perm: vec![0, 1, 3, 2],
        },
        &["x"],
    );
    outputs.push(n.node(Op::MatMul { trans_b: false }, &["x", &turned]));
    outputs.push(n.node(Op::MatMul { trans_b: true }, &["x", "x"]));
    let (scale, bias) = (n.0.weight(&[5], 1.0), n.0.weight(&[5], 1.0));
    outputs.push(n.node(
        Op::LayerNormalization { epsilon: 1e-5 },
        &["x", &scale, &bias],
    ));
    outputs.push(more);
    let model = n.model(vec![Input::f32("x", fixed(&[2, 5, 3, 5]))], &outputs);
    let data = image(150);
    let inputs = [TensorView::f32(&[2, 5, 3, 5], &data)];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        2e-5,
        "operators",
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn a_recurrent_step_says_what_the_cpu_says() {
    let mut n = Net::new(7);
    let vectors = [(19, 1.0), (19, 1.0), (1, 2.0), (1, 2.0)].map(|(n_, s)| n.0.weight(&[n_], s));
    let inputs = ["u", "h", &vectors[0], &vectors[1], &vectors[2], &vectors[3]];
    let y = n.node(Op::FastGRNN, &inputs);
    let model = n.model(
        ["u", "h"].map(|i| Input::f32(i, fixed(&[3, 19]))).to_vec(),
        &[y],
    );
    let (u, h) = (image(57), image(57));
    let inputs = [TensorView::f32(&[3, 19], &u), TensorView::f32(&[3, 19], &h)];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        1e-5,
        "cell",
    );
}

/// An encoder of two texts, one of them shorter: embeddings, positions, masks.
#[test]
#[ignore = "needs a C++ compiler"]
fn encoders_say_what_the_cpu_says() {
    let mut n = Net::new(5);
    let (table, places) = (n.0.weight(&[23, 24], 1.0), n.0.weight(&[12, 24], 0.5));
    let x = n.node(Op::Gather { axis: 0 }, &[&table, "ids"]);
    let x = n.node(Op::PositionEmbedding, &[&x, &places]);
    let (scale, bias) = (n.0.weight(&[24], 1.0), n.0.weight(&[24], 0.1));
    let x = n.node(
        Op::LayerNormalization { epsilon: 1e-5 },
        &[&x, &scale, &bias],
    );
    let (q, k) = (n.0.linear(&x, 24, 48), n.0.linear(&x, 24, 16));
    let v = n.0.linear(&x, 24, 16);
    let op = Op::Attention {
        heads: 6,
        kv_heads: 2,
        causal: false,
        cache: false,
        scale: Some(0.4),
    };
    let y = n.node(op, &[&q, &k, &v, "mask"]);
    let y = n.0.linear(&y, 48, 24);
    let x = n.node(Op::Add, &[&x, &y]);
    let mean = n.node(Op::MaskedMean, &[&x, "mask"]);
    let unit = n.node(Op::LpNormalization { axis: -1 }, &[&mean]);
    let inputs = ["ids", "mask"].map(|i| Input::i64(i, fixed(&[2, 9])));
    let model = n.model(inputs.to_vec(), &[x, unit]);
    let ids: Vec<i64> = (0..18).map(|i| (i * 5) % 23 - i64::from(i == 4)).collect();
    let mask: Vec<i64> = (0..18).map(|i| i64::from(i != 3 && i < 14)).collect();
    let inputs = [
        TensorView::i64(&[2, 9], &ids),
        TensorView::i64(&[2, 9], &mask),
    ];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        3e-3,
        "encoder",
    );
    let mut device = DeviceSession::new(&model, machine(), &DeviceOptions::default()).unwrap();
    let bad = vec![23; 18];
    let inputs = [
        TensorView::i64(&[2, 9], &bad),
        TensorView::i64(&[2, 9], &mask),
    ];
    let error = device.run(&inputs).unwrap_err().to_string();
    assert!(error.contains("element 0 is 23"), "{error}");
}
