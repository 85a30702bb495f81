//! Decoders against plain sessions of the same graph, and what an app may get wrong.

use lacuna::model::Symbols;
use lacuna::{
    DType, Decoder, DecoderOptions, GenerateOptions, Isa, Model, Sampling, Session, SessionOptions,
    Stop, TensorView,
};
use lacuna_tests::language::{VOCABULARY, decoder, sparse};
use std::ops::ControlFlow;

fn tokens(len: usize) -> Vec<u32> {
    (0..len)
        .map(|i| (i * 29 + i / 7) as u32 % VOCABULARY as u32)
        .collect()
}

fn open(model: &Model, options: DecoderOptions) -> Decoder {
    Decoder::new(model, options).unwrap()
}

/// Logits of every token, from a plain session that sees them all at once.
fn whole(model: &Model, ids: &[u32], isa: &str) -> Vec<f32> {
    let options = SessionOptions {
        threads: 1,
        isa: Some(isa.into()),
        symbols: Symbols::from([("T".into(), ids.len())]),
        ..SessionOptions::default()
    };
    let ids: Vec<i64> = ids.iter().map(|&i| i64::from(i)).collect();
    let mut session = Session::new(model, options).unwrap();
    let shape = [1, ids.len()];
    session
        .run(&[TensorView::i64(&shape, &ids)])
        .unwrap()
        .remove(0)
        .data
}

fn closest(a: &[f32], b: &[f32]) -> f32 {
    let most = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter()
        .zip(b)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()))
        / most
}

#[test]
fn chunks_steps_and_whole_sequences_give_the_same_logits() {
    let dense = decoder();
    let ids = tokens(70);
    for isa in Isa::available() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
            for model in [&dense, &sparse(&dense)] {
                let model = match dtype {
                    DType::I8 => model.to_scaled(32).unwrap(),
                    _ => model.to_dtype(dtype).unwrap(),
                };
                let expect = whole(&model, &ids, isa.name());
                for (chunk, threads, round_inputs) in [
                    (1, 1, Some(false)),
                    (7, 2, Some(false)),
                    (64, 1, Some(false)),
                    (64, 3, Some(false)),
                    (1, 1, Some(true)),
                    (64, 2, None),
                ] {
                    let mut decoder = open(
                        &model,
                        DecoderOptions {
                            threads,
                            isa: Some(isa.name().into()),
                            chunk,
                            all_logits: true,
                            round_inputs,
                            ..DecoderOptions::default()
                        },
                    );
                    let mut got = vec![0.0; expect.len()];
                    decoder
                        .score(&ids, |i, logits| {
                            got[i * VOCABULARY..][..VOCABULARY].copy_from_slice(logits);
                        })
                        .unwrap();
                    let error = closest(&got, &expect);
                    let asked = round_inputs == Some(true);
                    let rounds = round_inputs != Some(false)
                        && (isa.multiplies(dtype, true)
                            || asked && matches!(dtype, DType::BF16 | DType::I8));
                    let most = match dtype {
                        _ if !rounds => 2e-5,
                        DType::I8 => 0.1,
                        _ => 0.03,
                    };
                    assert!(error < most, "{isa} {dtype} chunk {chunk}: {error}");
                    // Chunks are only where weights are bfloat16.
                    assert!(
                        !rounds || chunk > 8 && dtype != DType::BF16 || error > 2e-5,
                        "{isa} {dtype} chunk {chunk}: not rounded"
                    );
                }
            }
        }
    }
}

#[test]
fn greedy_texts_do_not_depend_on_the_chunk_or_the_cache() {
    let model = sparse(&decoder()).to_dtype(DType::BF16).unwrap();
    let prompt = tokens(23);
    let mut without = prompt.clone();
    for _ in 0..30 {
        let logits = whole(&model, &without, "scalar");
        let last = &logits[logits.len() - VOCABULARY..];
        let best = (0..VOCABULARY).max_by(|&a, &b| last[a].total_cmp(&last[b]));
        without.push(best.unwrap() as u32);
    }
    for chunk in [1, 7, 64] {
        let mut decoder = open(
            &model,
            DecoderOptions {
                chunk,
                isa: Some("scalar".into()),
                ..DecoderOptions::default()
            },
        );
        let options = GenerateOptions {
            max_tokens: 30,
            ..GenerateOptions::default()
        };
        let got = decoder
            .generate(&prompt, &options, |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(got.tokens, without[prompt.len()..], "chunk {chunk}");
        assert_eq!(got.stop, Stop::Length);
    }
}

#[test]
fn the_last_logits_are_those_of_all_logits() {
    let model = decoder();
    let ids = tokens(40);
    let expect = whole(&model, &ids, "scalar");
    let mut decoder = open(
        &model,
        DecoderOptions {
            chunk: 16,
            ..DecoderOptions::default()
        },
    );
    let got = decoder.prefill(&ids).unwrap();
    assert!(closest(got, &expect[39 * VOCABULARY..]) < 2e-5);
    let error = decoder.score(&ids, |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("all_logits"), "{error}");
}

#[test]
fn a_sequence_is_rewound_and_continued() {
    let model = decoder();
    let mut decoder = open(&model, DecoderOptions::default());
    let ids = tokens(30);
    let expect = decoder.prefill(&ids).unwrap().to_vec();
    decoder.prefill(&tokens(9)).unwrap();
    assert_eq!(decoder.position(), 39);
    decoder.truncate(20);
    assert_eq!(decoder.position(), 20);
    decoder.prefill(&ids[20..29]).unwrap();
    let again = decoder.step(ids[29]).unwrap();
    assert!(closest(again, &expect) < 2e-5);
    decoder.truncate(99);
    assert_eq!(decoder.position(), 30);
    decoder.reset();
    assert_eq!(decoder.position(), 0);
}

#[test]
fn wrong_tokens_are_refused_with_the_value_and_change_nothing() {
    let model = decoder();
    let mut decoder = open(
        &model,
        DecoderOptions {
            capacity: 12,
            ..DecoderOptions::default()
        },
    );
    let expect = decoder.prefill(&tokens(8)).unwrap().to_vec();
    let refused = |decoder: &mut Decoder, ids: &[u32], what: &str| {
        let error = decoder.prefill(ids).unwrap_err().to_string();
        assert!(
            error.contains("input_ids") && error.contains(what),
            "{error}"
        );
        assert_eq!(decoder.position(), 8);
    };
    refused(&mut decoder, &[], "no tokens");
    refused(
        &mut decoder,
        &[1, 53],
        "token 1 is 53, the vocabulary has 53",
    );
    refused(&mut decoder, &[u32::MAX], "4294967295");
    refused(
        &mut decoder,
        &tokens(5),
        "5 tokens after 8, the capacity is 12",
    );
    decoder.truncate(7);
    let again = decoder.step(tokens(8)[7]).unwrap();
    assert!(closest(again, &expect) < 2e-5);
    decoder.prefill(&tokens(4)).unwrap();
    assert!(decoder.step(1).is_err());
}

#[test]
fn generation_stops_for_each_of_its_reasons() {
    let model = decoder();
    let mut decoder = open(
        &model,
        DecoderOptions {
            capacity: 20,
            ..DecoderOptions::default()
        },
    );
    let go = |decoder: &mut Decoder, options: &GenerateOptions, most: usize| {
        decoder.reset();
        let mut seen = 0;
        let generated = decoder.generate(&tokens(10), options, |_| {
            seen += 1;
            match seen < most {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        let generated = generated.unwrap();
        assert_eq!(generated.tokens.len(), seen);
        generated
    };
    let mut options = GenerateOptions::default();
    let all = go(&mut decoder, &options, 1000);
    assert_eq!((all.stop, all.tokens.len()), (Stop::Capacity, 11));
    assert_eq!(go(&mut decoder, &options, 3).stop, Stop::Callback);
    let fifth = all.tokens[4];
    options.stop = vec![fifth];
    let stopped = go(&mut decoder, &options, 1000);
    let before = all.tokens.iter().position(|&t| t == fifth).unwrap();
    assert_eq!(
        (stopped.stop, stopped.tokens.len()),
        (Stop::Token(fifth), before)
    );
    options.stop.clear();
    options.max_tokens = 4;
    assert_eq!(go(&mut decoder, &options, 1000).tokens, all.tokens[..4]);
    options.sampling = Sampling {
        temperature: 1.5,
        top_p: 0.9,
        seed: 5,
        ..Sampling::default()
    };
    let first = go(&mut decoder, &options, 1000);
    assert_eq!(first, go(&mut decoder, &options, 1000));
}

#[test]
fn bad_options_and_models_are_refused() {
    let model = decoder();
    let refuse = |model: &Model, options: DecoderOptions, what: &str| {
        let error = Decoder::new(model, options).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    let with = |capacity| DecoderOptions {
        capacity,
        ..DecoderOptions::default()
    };
    refuse(&model, with(97), "97 positions; the model's context is 96");
    let mut graph = model.graph().clone();
    for node in &mut graph.nodes {
        if let lacuna::model::Op::Attention { cache, .. } = &mut node.op {
            *cache = false;
        }
    }
    let stateless = Model::new(graph, model.weights().clone()).unwrap();
    refuse(&stateless, with(0), "layers.0.attention");
    let mut unlimited = model.clone();
    unlimited.text = None;
    refuse(&unlimited, with(usize::MAX / 64), "");
}

/// Sessions of one model in several threads, each with its own sequence.
#[test]
fn decoders_of_one_model_share_its_weights_between_threads() {
    let model = sparse(&decoder());
    let expect = open(&model, DecoderOptions::default())
        .prefill(&tokens(40))
        .unwrap()
        .to_vec();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let options = DecoderOptions {
                    threads: 1,
                    ..DecoderOptions::default()
                };
                let mut decoder = open(&model, options);
                assert!(closest(decoder.prefill(&tokens(40)).unwrap(), &expect) < 2e-5);
            });
        }
    });
}

#[test]
fn a_decoder_survives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decoder.safetensors");
    let model = sparse(&decoder()).to_dtype(DType::BF16).unwrap();
    model.save(&path).unwrap();
    let read = Model::open(&path).unwrap();
    assert_eq!((read.graph(), &read.text), (model.graph(), &model.text));
    let logits = |m: &Model| {
        let mut decoder = open(m, DecoderOptions::default());
        decoder.prefill(&tokens(40)).unwrap().to_vec()
    };
    assert_eq!(logits(&read), logits(&model));
}

/// Of a language model the blocks are pruned, not the embedding that is also its output layer.
#[test]
fn the_embedding_and_the_output_layer_are_not_prunable_by_default() {
    let model = decoder();
    let names: Vec<&str> = model.prunable().iter().map(|p| p.0).collect();
    assert_eq!(names.len(), 14);
    assert!(!names.contains(&"embed.weight"));
    assert!(
        model
            .product_weights()
            .iter()
            .any(|p| p.0 == "embed.weight")
    );
}
