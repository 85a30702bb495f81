//! Recipes, floors and refusals on synthetic models.

mod common;

use common::{linears, rows, values, zeros};
use lacuna::DType;
use lacuna::model::Weight;
use lacuna_prune::{AllocatorName, Error, Floor, FloorMode, Recipe};

/// Pseudo-random magnitudes in `(0, scale]`, the same every time.
fn noise(n: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale
        })
        .collect()
}

fn global(sparsity: f64) -> Recipe {
    Recipe::new(AllocatorName::GlobalMagnitude, sparsity)
}

fn with_floor(sparsity: f64, mode: FloorMode, sigma: usize) -> Recipe {
    Recipe {
        floor: Some(Floor {
            mode,
            min_weights: Some(sigma),
            mt_percent: None,
        }),
        ..global(sparsity)
    }
}

/// Three layers, of which the second is so small in magnitude that global ranking empties it.
fn lopsided() -> lacuna::Model {
    rows(&[
        noise(1000, 1.0, 1),
        noise(400, 0.001, 2),
        noise(20, 0.001, 3),
        noise(3000, 0.5, 4),
    ])
}

#[test]
fn global_ranking_empties_a_layer_and_says_so() {
    let plan = global(0.8).plan(&lopsided()).unwrap();
    let emptied: Vec<&str> = plan.emptied().map(|l| l.weight.as_str()).collect();
    assert_eq!(emptied, ["w1", "w2"]);
    assert_eq!(plan.zeros_after, 3536); // 0.8 * 4420
}

#[test]
fn both_floors_keep_sigma_weights_and_the_total() {
    for mode in [FloorMode::Refine, FloorMode::Global] {
        let pruned = with_floor(0.8, mode, 50).run(&lopsided()).unwrap();
        assert_eq!(pruned.plan.zeros_after, 3536, "{mode:?}");
        assert_eq!(zeros(&pruned.model, 1), 350, "{mode:?}");
        assert_eq!(zeros(&pruned.model, 2), 0, "{mode:?}");
        let touched: Vec<&str> = pruned.plan.floored().map(|l| l.weight.as_str()).collect();
        assert_eq!(touched, ["w1", "w2"], "{mode:?}");
        assert_eq!(pruned.plan.emptied().count(), 0);
    }
}

#[test]
fn the_global_floor_keeps_the_largest_of_the_layer() {
    let model = lopsided();
    let pruned = with_floor(0.8, FloorMode::Global, 50).run(&model).unwrap();
    let (before, after) = (values(&model, 1), values(&pruned.model, 1));
    let kept_min = after
        .iter()
        .filter(|v| **v != 0.0)
        .map(|v| v.abs())
        .reduce(f32::min);
    let lost_max = (before.iter().zip(&after))
        .filter(|(_, a)| **a == 0.0)
        .map(|(b, _)| b.abs())
        .reduce(f32::max);
    assert!(kept_min >= lost_max);
}

#[test]
fn a_layer_of_exactly_sigma_weights_stays_whole() {
    for mode in [FloorMode::Refine, FloorMode::Global] {
        let pruned = with_floor(0.5, mode, 400).run(&lopsided()).unwrap();
        assert_eq!(zeros(&pruned.model, 1), 0, "{mode:?}");
        assert_eq!(pruned.plan.zeros_after, 2210, "{mode:?}");
    }
}

#[test]
fn a_percentage_floor_is_of_all_selected_weights() {
    let mut recipe = global(0.8);
    recipe.floor = Some(Floor {
        mode: FloorMode::Global,
        min_weights: None,
        mt_percent: Some(1.0),
    });
    let plan = recipe.plan(&lopsided()).unwrap();
    assert_eq!(plan.sigma, 44); // floor(4420 / 100)
    assert_eq!(plan.layers[1].size - plan.layers[1].zeros_after, 44);
}

#[test]
fn uniform_takes_the_same_share_everywhere() {
    let plan = Recipe::new(AllocatorName::Uniform, 0.75)
        .plan(&lopsided())
        .unwrap();
    let removed: Vec<usize> = plan.layers.iter().map(|l| l.remove).collect();
    assert_eq!(removed, [750, 300, 15, 2250]);
}

#[test]
fn uniform_with_a_floor_makes_up_in_the_other_layers() {
    let mut recipe = with_floor(0.9, FloorMode::Refine, 50);
    recipe.allocator = AllocatorName::Uniform;
    let plan = recipe.plan(&lopsided()).unwrap();
    assert_eq!(plan.zeros_after, 3978);
    assert_eq!(plan.layers[1].remove, 350);
    assert_eq!(plan.layers[2].remove, 0);
    assert!(plan.layers[0].sparsity() > 0.9);
    let touched: Vec<bool> = plan.layers.iter().map(|l| l.floored).collect();
    assert_eq!(touched, [false, true, true, false]);
}

#[test]
fn patterns_choose_and_must_match() {
    let mut recipe = global(0.5);
    recipe.include = vec!["w[03]".into()];
    recipe.exclude = vec!["w3".into()];
    let pruned = recipe.run(&lopsided()).unwrap();
    assert_eq!(zeros(&pruned.model, 0), 500);
    assert_eq!(zeros(&pruned.model, 3), 0);

    recipe.exclude = vec!["*.bias".into()];
    let e = recipe.run(&lopsided()).unwrap_err().to_string();
    assert!(e.contains("`*.bias`") && e.contains("none of the 4"), "{e}");
    recipe.exclude = vec!["w*".into()];
    let e = recipe.run(&lopsided()).unwrap_err();
    assert!(matches!(e, Error::NothingSelected(4)), "{e}");
    recipe.exclude = vec!["w[".into()];
    assert!(matches!(
        recipe.run(&lopsided()),
        Err(Error::Pattern { .. })
    ));
}

#[test]
fn nan_and_infinity_are_refused_with_their_place_dense_and_sparse() {
    let mut bad = noise(30, 1.0, 5);
    bad[4] = 0.0;
    bad[17] = f32::NAN;
    let weight = Weight::from_f32(&[5, 6], &bad);
    let half = |dtype: DType, bits: u16| {
        let bytes: Vec<u8> = [0, bits, 0].iter().flat_map(|b| b.to_le_bytes()).collect();
        Weight::dense(vec![1, 3], dtype, bytes.into()).unwrap()
    };
    let cases = [
        (weight.encode(), 17),
        (weight, 17),
        (half(DType::F16, 0x7e00), 1),
        (half(DType::F16, 0xfc00), 1),
        (half(DType::BF16, 0x7f80), 1),
    ];
    for (weight, place) in cases {
        let model = linears(vec![Weight::from_f32(&[1, 2], &[1.0, 2.0]), weight]);
        match global(0.5).plan(&model).unwrap_err() {
            Error::NotFinite {
                weight,
                index,
                value,
            } => {
                assert_eq!((weight.as_str(), index), ("w1", place));
                assert!(!value.is_finite());
            }
            e => panic!("{e}"),
        }
    }
}

#[test]
fn the_same_recipe_gives_the_same_weights() {
    let recipe = with_floor(0.8, FloorMode::Refine, 50);
    let (a, b) = (
        recipe.run(&lopsided()).unwrap(),
        recipe.run(&lopsided()).unwrap(),
    );
    assert_eq!(a.plan, b.plan);
    for i in 0..4 {
        assert_eq!(values(&a.model, i), values(&b.model, i));
    }
    assert_eq!(a.model.metadata.recipe, Some(recipe.hash()));
}

#[test]
fn zeros_are_encoded_unless_asked_otherwise() {
    let mut recipe = global(0.8);
    assert!(recipe.run(&lopsided()).unwrap().model.weights()["w3"].is_sparse());
    recipe.keep_dense = true;
    let dense = recipe.run(&lopsided()).unwrap().model;
    assert!(dense.weights().values().all(|w| !w.is_sparse()));
}

#[test]
fn a_recipe_survives_its_canonical_form() {
    let mut recipe = with_floor(0.9, FloorMode::Global, 7);
    recipe.exclude = vec!["fc.*".into()];
    let text = recipe.to_toml();
    let back = Recipe::from_toml(&text).unwrap();
    assert_eq!(back, recipe);
    assert_eq!(back.hash(), recipe.hash());
    assert_ne!(recipe.hash(), global(0.9).hash());
}

#[test]
fn defaults_and_their_spelled_out_form_hash_alike() {
    let short = Recipe::from_toml("schema = 1\nsparsity = 0.9\nallocator = 'uniform'").unwrap();
    let long = Recipe::from_toml(
        "allocator = 'uniform'\nschema = 1\nsparsity = 0.90\nsolver = 'magnitude'\nrefiner = 'none'\n\
         ties = 'exact'\ninclude = []\nexclude = []\nkeep_dense = false",
    )
    .unwrap();
    assert_eq!(short.hash(), long.hash());
}

#[test]
fn malformed_recipes_are_refused() {
    let cases = [
        (
            "schema = 2\nsparsity = 0.5\nallocator = 'uniform'",
            "schema 2",
        ),
        ("schema = 1\nsparsity = 0.5\nallocator = 'magic'", "magic"),
        (
            "schema = 1\nsparsity = 0.5\nallocator = 'uniform'\nspeed = 3",
            "speed",
        ),
        ("schema = 1\nallocator = 'uniform'", "sparsity"),
        (
            "schema = 1\nsparsity = 0.5\nallocator = 'uniform'\n[floor]\nmode = 'global'",
            "one of min_weights and mt_percent",
        ),
        (
            "schema = 1\nsparsity = 0.5\nallocator = 'uniform'\n[floor]\nmt_percent = 120.0",
            "120",
        ),
    ];
    for (text, part) in cases {
        let e = Recipe::from_toml(text).unwrap_err().to_string();
        assert!(e.contains(part), "`{part}` is not in: {e}");
    }
    let e = global(1.0).plan(&lopsided()).unwrap_err();
    assert!(e.to_string().contains("sparsity 1 "), "{e}");
}
