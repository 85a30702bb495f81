//! A result written weight by weight against one that was made in memory first.

mod common;

use common::linears;
use half::bf16;
use lacuna::DType;
use lacuna::model::{Storage, Symbols, Weight};
use lacuna::{Model, model::file};
use lacuna_prune::report::{forecast, report};
use lacuna_prune::{AllocatorName, Recipe, save};
use std::path::Path;

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn brain(shape: [usize; 2], values: &[f32]) -> Weight {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
        .collect();
    Weight::dense(shape.to_vec(), DType::BF16, bytes.into()).unwrap()
}

/// Dense and sparse, f32 and bf16, with rows that are no multiple of 8, and zeros that are there already.
fn models() -> Vec<Model> {
    let mut zeros = noise(40 * 33, 3);
    zeros[..1200].fill(0.0);
    let single = |seed| Weight::from_f32(&[17, 61], &noise(17 * 61, seed));
    let half = |seed| brain([17, 61], &noise(17 * 61, seed));
    vec![
        linears(vec![
            single(1),
            single(2),
            Weight::from_f32(&[40, 33], &zeros),
        ]),
        linears(vec![half(1), half(2), brain([40, 33], &zeros)]),
        linears(vec![half(1), single(2), brain([40, 33], &zeros).encode()]),
    ]
}

fn recipes() -> Vec<Recipe> {
    let mut list = Vec::new();
    for (allocator, sparsity) in [
        (AllocatorName::GlobalMagnitude, 0.0),
        (AllocatorName::GlobalMagnitude, 0.12),
        (AllocatorName::GlobalMagnitude, 0.9),
        (AllocatorName::Uniform, 0.5),
    ] {
        for (keep_dense, exclude) in [(false, false), (true, false), (false, true)] {
            list.push(Recipe {
                keep_dense,
                exclude: if exclude { vec!["w2".into()] } else { vec![] },
                ..Recipe::new(allocator, sparsity)
            });
        }
    }
    list
}

/// Patterns that lie 2:4 and one that does not, on weights with zeros that are there already, of which one lies
/// 2:4.
fn two_of_four() -> (Model, Vec<Recipe>) {
    let mut zeros = noise(40 * 40, 3);
    zeros[..80].fill(0.0);
    let lies = zeros.iter().enumerate();
    let lies: Vec<f32> = lies
        .map(|(i, v)| if i % 4 < 2 { *v } else { 0.0 })
        .collect();
    let single = Weight::from_f32(&[16, 64], &noise(16 * 64, 1));
    let model = linears(vec![
        single,
        brain([40, 40], &lies).encode(),
        brain([40, 40], &zeros),
        Weight::from_f32(&[40, 40], &lies).stored_best(),
    ]);
    let pattern = |text: &str| Recipe {
        pattern: text.parse().ok(),
        ..Recipe::new(AllocatorName::Uniform, 0.5)
    };
    let patterns = ["2:4", "1:2", "4:8"].map(pattern);
    let left = Recipe {
        exclude: vec!["w3".into()],
        ..pattern("2:4")
    };
    let nothing = Recipe::new(AllocatorName::GlobalMagnitude, 0.0);
    let all = patterns.into_iter().chain([left, nothing]).collect();
    (model, all)
}

#[test]
fn patterns_of_two_of_four_are_stored_so() {
    let (model, recipes) = two_of_four();
    let storage =
        |recipe: &Recipe, name: &str| recipe.run(&model).unwrap().model.weights()[name].storage();
    for recipe in &recipes[..2] {
        assert_eq!(storage(recipe, "w0"), Storage::TwoFour);
        assert_eq!(storage(recipe, "w2"), Storage::TwoFour);
    }
    assert_eq!(storage(&recipes[0], "w1"), Storage::TwoFour);
    // One of two neighbours that were left: a quarter.
    assert_eq!(storage(&recipes[1], "w1"), Storage::Bitmask);
    assert_eq!(storage(&recipes[2], "w0"), Storage::Bitmask);
    assert_eq!(storage(&recipes[4], "w0"), Storage::Dense);
    assert_eq!(storage(&recipes[4], "w3"), Storage::TwoFour);
}

#[test]
fn a_streamed_file_is_byte_for_byte_that_of_a_model_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let plain = models().into_iter().map(|m| (m, recipes()));
    let all: Vec<_> = plain.chain([two_of_four()]).collect();
    for (m, (model, recipes)) in all.iter().enumerate() {
        for recipe in recipes {
            let pruned = recipe.run(model).unwrap();
            save(&pruned, &path("whole")).unwrap();
            let prepared = recipe.prepare(model).unwrap();
            let mut expected = std::fs::read(path("whole")).unwrap();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let pool = pool.build().unwrap();
                let written = pool.install(|| prepared.write(&path("streamed"))).unwrap();
                let streamed = std::fs::read(path("streamed")).unwrap();
                assert!(
                    streamed == expected,
                    "model {m}, {threads} threads, {recipe:?}"
                );
                expected = streamed;
                assert_eq!(written.metadata.recipe, Some(recipe.hash()));
            }
        }
    }
}

#[test]
fn the_forecast_is_what_comes() {
    let plain = models().into_iter().map(|m| (m, recipes()));
    for (model, recipes) in plain.chain([two_of_four()]) {
        for recipe in recipes {
            let pruned = recipe.run(&model).unwrap();
            let (before, after) = forecast(&model, &pruned.plan, recipe.keep_dense).unwrap();
            let symbols = Symbols::new();
            assert_eq!(before, report(&model, &symbols).unwrap());
            let came = report(&pruned.model, &symbols).unwrap();
            assert_eq!(after.layers, came.layers, "{recipe:?}");
            assert_eq!(after.totals, came.totals, "{recipe:?}");
        }
    }
}

/// Makes something else than it promised.
struct Liar(Weight);

impl file::Maker for Liar {
    fn form(&self, name: &str) -> Option<file::Form> {
        (name == "w0").then_some(file::Form {
            storage: Storage::Bitmask,
            nonzeros: 7,
        })
    }

    fn make(&self, _: &str) -> Result<Weight, String> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_weight_that_is_not_as_promised_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    std::fs::write(&path, "before").unwrap();
    let model = &models()[0];
    let mut infinite = noise(17 * 61, 1);
    infinite[5] = f32::INFINITY;
    for (weight, part) in [
        (model.weights()["w0"].clone(), "another form"),
        (model.weights()["w0"].encode(), "another form"),
        (Weight::from_f32(&[17, 61], &infinite).encode(), "inf"),
    ] {
        let e = file::write_made(model, &Liar(weight), Path::new(&path)).unwrap_err();
        assert!(e.to_string().contains(part), "`{part}` is not in: {e}");
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
