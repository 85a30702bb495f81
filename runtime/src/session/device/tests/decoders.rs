//! Decoders beside the CPU's, and the tokens that they choose.

use super::*;

/// A decoder with a layer of logits, which only the last token of a chunk goes through.
fn with_output_layer(model: &Model, rows: usize) -> Model {
    let (mut graph, mut weights) = (model.graph().clone(), model.weights().clone());
    let values: Vec<f32> = (0..rows * 40)
        .map(|i| ((i * 31 % 97) as f32 - 48.0) / 300.0)
        .collect();
    weights.insert("head".into(), Weight::from_f32(&[rows, 40], &values));
    graph.nodes.push(Node {
        name: "logits".into(),
        op: Op::MatMul { trans_b: true },
        inputs: vec![graph.outputs[0].clone(), "head".into()],
        output: "logits".into(),
    });
    graph.outputs = vec!["logits".into()];
    Model::new(graph, weights).unwrap()
}

/// Prompt and steps of a decoder on both.
fn decoders(model: &Model, plan: DeviceOptions, part: f32, what: &str) -> DeviceDecoder {
    let ids: Vec<u32> = (0..17).map(|i| (i * 7 + 3) % 30).collect();
    let cpu = DecoderOptions {
        threads: 1,
        capacity: 24,
        isa: Some("scalar".into()),
        ..DecoderOptions::default()
    };
    let mut cpu = Decoder::new(model, cpu).unwrap();
    let options = DeviceDecoderOptions {
        plan,
        capacity: 24,
        chunk: 5,
    };
    let mut device = DeviceDecoder::new(model, machine(), &options).unwrap();
    assert_eq!(device.vocabulary(), cpu.vocabulary());
    for part_of in [&ids[..12], &ids[12..13], &ids[13..14], &ids[14..17]] {
        let want = cpu.prefill(part_of).unwrap().to_vec();
        near(&device.prefill(part_of).unwrap(), &want, part, what);
    }
    // Another way on from position 12, and the most likely token without its logits.
    cpu.truncate(12);
    device.truncate(12);
    let want = cpu.step(29).unwrap().to_vec();
    near(&device.step(29).unwrap(), &want, part, what);
    cpu.truncate(12);
    device.truncate(12);
    let most = |v: &[f32]| v.iter().copied().fold(f32::MIN, f32::max);
    let best = device.next(&[29]).unwrap() as usize;
    assert!(
        want[best] >= most(&want) - part * most(&want).abs().max(1.0),
        "{what}"
    );
    assert!(
        device
            .prefill(&[30])
            .unwrap_err()
            .to_string()
            .contains("token 0 is 30")
    );
    assert!(
        device
            .prefill(&[1; 30])
            .unwrap_err()
            .to_string()
            .contains("30 tokens after 13")
    );
    assert_eq!(device.position(), 13);
    device
}

#[test]
#[ignore = "needs a C++ compiler"]
fn decoders_say_what_the_cpu_says() {
    let plain = with_output_layer(&model(4, 2, 16, 16, true), 37);
    for (rotary, heads) in [(true, (4, 2)), (false, (3, 3))] {
        let model = pruned(&model(heads.0, heads.1, 16, 16, rotary), half);
        let device = decoders(&model, DeviceOptions::default(), 4e-3, "chosen");
        assert!(device.memory().cache > 0);
    }
    let sparse = pruned(&plain, half);
    for form in [
        DeviceForm::DenseVector,
        DeviceForm::DenseMma,
        DeviceForm::DenseWgmma,
        DeviceForm::BitmaskVector,
        DeviceForm::BitmaskMma,
        DeviceForm::BitmaskWgmma,
    ] {
        let plan = DeviceOptions {
            forms: every(&sparse, form),
            ..DeviceOptions::default()
        };
        let device = decoders(&sparse, plan, 6e-3, form.name());
        let steps = device.steps(PhaseKind::Step);
        let forms = steps
            .iter()
            .filter_map(|s| s.choice.as_ref())
            .map(|c| c.form);
        assert!(forms.clone().count() > 10 && forms.clone().all(|f| f == form));
    }
    let quarter = pruned(&plain, two_four);
    for form in [DeviceForm::TwoOfFourMma, DeviceForm::TwoOfFourWgmma] {
        let forms: BTreeMap<_, _> = quarter
            .product_weights()
            .iter()
            .filter(|w| quarter.weights()[w.0].is_two_four())
            .map(|w| (w.0.to_owned(), vec![form]))
            .collect();
        assert!(forms.len() > 5);
        let plan = DeviceOptions {
            forms,
            ..DeviceOptions::default()
        };
        decoders(&quarter, plan, 6e-3, form.name());
    }
    // Weights of f32 are rounded.
    decoders(&plain, DeviceOptions::default(), 8e-3, "f32");
}

#[test]
#[ignore = "needs a C++ compiler"]
fn tokens_are_chosen_on_the_device() {
    let model = pruned(&with_output_layer(&model(4, 2, 16, 16, true), 30), half);
    let options = DeviceDecoderOptions {
        capacity: 24,
        chunk: 5,
        ..DeviceDecoderOptions::default()
    };
    let mut device = DeviceDecoder::new(&model, machine(), &options).unwrap();
    let prompt = [3, 1, 4, 1, 5, 9, 2];
    let written = |device: &mut DeviceDecoder, sampling| {
        device.truncate(0);
        let options = GenerateOptions {
            sampling,
            max_tokens: 12,
            stop: Vec::new(),
        };
        let mut seen = Vec::new();
        let on_token = |t| {
            seen.push(t);
            ControlFlow::Continue(())
        };
        let got = device.generate(&prompt, &options, on_token).unwrap();
        assert_eq!((got.tokens.len(), got.stop), (12, Stop::Length));
        assert_eq!(got.tokens, seen);
        got.tokens
    };
    let greedy = written(&mut device, Sampling::default());
    device.truncate(0);
    let mut likely = vec![device.next(&prompt).unwrap()];
    for at in 0..11 {
        likely.push(device.next(&[likely[at]]).unwrap());
    }
    assert_eq!(greedy, likely);
    let warm = |top_k, seed| Sampling {
        temperature: 1.5,
        top_k,
        seed,
        ..Sampling::default()
    };
    assert_eq!(written(&mut device, warm(1, 5)), greedy);
    let drawn = written(&mut device, warm(3, 5));
    assert_eq!(written(&mut device, warm(3, 5)), drawn);
    assert_ne!(written(&mut device, warm(3, 6)), drawn);
    // Each is among the three most likely.
    device.truncate(0);
    let mut logits = device.prefill(&prompt).unwrap();
    for &token in &drawn {
        let of = logits[token as usize];
        assert!(logits.iter().filter(|l| **l > of).count() < 3);
        logits = device.step(token).unwrap();
    }
    // No room for more.
    device.truncate(0);
    let all = device.generate(&prompt, &GenerateOptions::default(), |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(all.unwrap().stop, Stop::Capacity);
}
