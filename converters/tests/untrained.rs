//! Networks by name, before any training: the sizes are the published ones, the seed decides the weights.

use lacuna::model::Weight;
use lacuna::{Model, Session, SessionOptions, TensorView};
use lacuna_convert::{Options, untrained};

fn network(name: &str, seed: u64) -> Result<Model, lacuna_convert::Error> {
    let arch = Some(name.to_owned());
    untrained(
        &Options {
            arch,
            ..Options::default()
        },
        seed,
    )
}

/// Elements of the convolutions and linear layers.
fn prunable(model: &Model) -> usize {
    let weights = model.prunable().into_iter();
    weights.map(|(name, _)| model.weights()[name].numel()).sum()
}

#[test]
fn sizes_are_the_published_ones() {
    for (name, spelled, size) in [
        ("resnet-20", "cifar-resnet20", 268_336),
        ("resnet-32", "cifar-resnet32", 461_872),
        ("ResNet_110", "cifar-resnet110", 1_719_856),
        ("resnet-18", "resnet18", 11_678_912),
        ("resnet50", "resnet50", 25_502_912),
        ("wrn-28-8", "wrn-28-8", 23_340_464),
        ("wrn-22-8", "wrn-22-8", 17_147_312),
        ("mobilenet-v1", "mobilenet-v1", 4_209_088),
        ("mobilenet-v2", "mobilenet-v2", 3_469_760),
        ("fashion-cnn", "fashion-cnn", 241_184),
        ("fastgrnn", "fastgrnn-9-80-2", 7_280),
        ("fastgrnn-low-rank", "fastgrnn-9-80-2-9-80", 13_761),
        ("fastgrnn-6-32-7", "fastgrnn-6-32-7", 1_440),
    ] {
        let model = network(name, 0).unwrap();
        assert_eq!(
            (model.graph().name.as_str(), prunable(&model)),
            (spelled, size)
        );
    }
}

#[test]
fn the_seed_decides_and_signals_neither_vanish_nor_explode() {
    let flat =
        |m: &Model| -> Vec<Option<Vec<f32>>> { m.weights().values().map(Weight::to_f32).collect() };
    let [a, b, c] = [3, 3, 4].map(|seed| network("resnet-20", seed).unwrap());
    assert_eq!(flat(&a), flat(&b));
    assert_ne!(flat(&a), flat(&c));
    let x: Vec<f32> = (0..3 * 32 * 32)
        .map(|i| ((i * 37 % 201) as f32 - 100.0) / 58.0)
        .collect();
    for name in ["resnet-20", "wrn-10-1", "mobilenet-v1"] {
        let mut session =
            Session::new(&network(name, 1).unwrap(), SessionOptions::default()).unwrap();
        let side = if name == "mobilenet-v1" { 224 } else { 32 };
        let x: Vec<f32> = x.iter().copied().cycle().take(3 * side * side).collect();
        let y = session
            .run(&[TensorView::f32(&[1, 3, side, side], &x)])
            .unwrap();
        let largest = y[0].data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!((0.01..100.0).contains(&largest), "{name}: {largest}");
    }
}

#[test]
fn a_name_that_no_network_has_is_refused_with_the_known_ones() {
    for name in [
        "resnet-99",
        "wrn-28",
        "wrn-27-8",
        "wrn-28-9999",
        "",
        "resnet--20",
    ] {
        let error = network(name, 0).unwrap_err().to_string();
        assert!(error.contains("wrn-DEPTH-WIDTH"), "{name}: {error}");
    }
}
