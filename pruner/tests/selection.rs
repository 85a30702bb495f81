//! The histograms against a sort of everything: ties, zeros, denormals, 16-bit dtypes.

mod common;

use common::{linears, rows, values, zeros};
use half::{bf16, f16};
use lacuna::model::Weight;
use lacuna::{DType, Model};
use lacuna_prune::{AllocatorName, Floor, FloorMode, Recipe, Ties};
use proptest::prelude::*;

/// The layers after global pruning, by sorting every weight.
fn sorted_global(
    layers: &[Vec<f32>],
    sparsity: f64,
    sigma: usize,
    ties: Ties,
) -> Option<Vec<Vec<f32>>> {
    let total: usize = layers.iter().map(Vec::len).sum();
    let k = (sparsity * total as f64 + 1e-9).floor() as usize;
    let mut pool: Vec<(f32, usize, usize)> = Vec::new();
    for (l, layer) in layers.iter().enumerate() {
        let mut own: Vec<(f32, usize, usize)> = layer
            .iter()
            .enumerate()
            .map(|(i, w)| (w.abs(), l, i))
            .collect();
        own.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
        own.truncate(layer.len() - layer.len().min(sigma));
        pool.extend(own);
    }
    if pool.len() < k {
        return None;
    }
    pool.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut out = layers.to_vec();
    if k == 0 {
        return Some(out);
    }
    let threshold = pool[k - 1].0;
    for (rank, &(w, l, i)) in pool.iter().enumerate() {
        let goes = match ties {
            Ties::Exact => rank < k,
            Ties::Keep => w < threshold,
        };
        if goes {
            out[l][i] = 0.0;
        }
    }
    Some(out)
}

/// Magnitudes with many ties and every kind of finite float.
fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-8i8..8).prop_map(|v| f32::from(v) * 0.25),
        2 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => (0u32..4).prop_map(f32::from_bits),
        1 => any::<u32>().prop_map(f32::from_bits).prop_filter("not finite", |v| v.is_finite()),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<f32>>> {
    prop::collection::vec(prop::collection::vec(weight(), 1..60), 1..6)
}

fn recipe(sparsity: f64, sigma: usize, ties: Ties) -> Recipe {
    let mut recipe = Recipe::new(AllocatorName::GlobalMagnitude, sparsity);
    recipe.ties = ties;
    if sigma > 0 {
        recipe.floor = Some(Floor {
            mode: FloorMode::Global,
            min_weights: Some(sigma),
            mt_percent: None,
        });
    }
    recipe
}

fn same(model: &Model, expected: &[Vec<f32>]) {
    for (i, expected) in expected.iter().enumerate() {
        // -0 and 0 are equal here: an encoded weight has one zero only.
        assert_eq!(&values(model, i), expected, "layer {i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn global_magnitude_equals_a_sort(
        layers in layers(),
        sparsity in 0.0f64..1.0,
        sigma in 0usize..20,
        keep in any::<bool>(),
        sparse in any::<bool>(),
    ) {
        let ties = if keep { Ties::Keep } else { Ties::Exact };
        let mut model = rows(&layers);
        if sparse {
            model = model.encoded();
        }
        let result = recipe(sparsity, sigma, ties).run(&model);
        match sorted_global(&layers, sparsity, sigma, ties) {
            Some(expected) => {
                let pruned = result.unwrap();
                same(&pruned.model, &expected);
                for (i, layer) in pruned.plan.layers.iter().enumerate() {
                    prop_assert_eq!(zeros(&pruned.model, i), layer.zeros_after);
                }
            }
            None => prop_assert!(result.unwrap_err().to_string().contains("floor")),
        }
    }

    #[test]
    fn exact_removes_exactly_and_keeps_every_floor(
        layers in layers(),
        sparsity in 0.0f64..0.999,
        sigma in 0usize..20,
        uniform in any::<bool>(),
        global in any::<bool>(),
    ) {
        let mut recipe = recipe(sparsity, sigma, Ties::Exact);
        if uniform {
            recipe.allocator = AllocatorName::Uniform;
        }
        if let (false, Some(floor)) = (global, &mut recipe.floor) {
            floor.mode = FloorMode::Refine;
        }
        let total: usize = layers.iter().map(Vec::len).sum();
        let k = (sparsity * total as f64 + 1e-9).floor() as usize;
        let floor: usize = layers.iter().map(|l| l.len().min(sigma)).sum();
        match recipe.plan(&rows(&layers)) {
            Ok(plan) => {
                prop_assert_eq!(plan.layers.iter().map(|l| l.remove).sum::<usize>(), k);
                for l in &plan.layers {
                    prop_assert!(l.size - l.remove >= l.size.min(sigma), "{:?}", l);
                }
            }
            Err(lacuna_prune::Error::Floor { .. }) => prop_assert!(floor > total - k),
            // Only layers that the first ranking touched can take more in the reference's way.
            Err(lacuna_prune::Error::Refine { .. }) => prop_assert!(!uniform && !global && sigma > 0),
            Err(e) => prop_assert!(false, "{}", e),
        }
    }

    #[test]
    fn half_precision_ranks_as_single_does(
        bits in prop::collection::vec(prop::collection::vec(any::<u16>(), 1..50), 1..4),
        sparsity in 0.0f64..1.0,
        brain in any::<bool>(),
        mixed in any::<bool>(),
    ) {
        let dtype = if brain { DType::BF16 } else { DType::F16 };
        let to_f32 = |b: &u16| match brain {
            true => bf16::from_bits(*b).to_f32(),
            false => f16::from_bits(*b).to_f32(),
        };
        // What is not finite becomes zero.
        let bits: Vec<Vec<u16>> = bits
            .iter()
            .map(|l| l.iter().map(|b| if !to_f32(b).is_finite() { 0 } else { *b }).collect())
            .collect();
        let mut layers: Vec<Vec<f32>> =
            bits.iter().map(|l| l.iter().map(to_f32).collect()).collect();
        let mut weights: Vec<Weight> = bits
            .iter()
            .map(|l| {
                let bytes: Vec<u8> = l.iter().flat_map(|b| b.to_le_bytes()).collect();
                Weight::dense(vec![1, l.len()], dtype, bytes.into()).unwrap()
            })
            .collect();
        if mixed {
            let single = vec![0.1, -0.1, 1e-40, 3.0, 0.0];
            weights.push(Weight::from_f32(&[1, 5], &single));
            layers.push(single);
        }
        let pruned = recipe(sparsity, 0, Ties::Exact).run(&linears(weights)).unwrap();
        same(&pruned.model, &sorted_global(&layers, sparsity, 0, Ties::Exact).unwrap());
    }
}

#[test]
fn all_equal_weights_go_in_layer_order() {
    let model = rows(&[vec![0.5; 10], vec![-0.5; 10]]);
    let pruned = recipe(0.6, 0, Ties::Exact).run(&model).unwrap();
    assert_eq!((zeros(&pruned.model, 0), zeros(&pruned.model, 1)), (10, 2));
    assert_eq!(values(&pruned.model, 1)[..3], [0.0, 0.0, -0.5]);
    assert_eq!(pruned.plan.emptied().count(), 1);
    let kept = recipe(0.6, 0, Ties::Keep).run(&model).unwrap();
    assert_eq!(kept.plan.zeros_after, 0);
}

#[test]
fn the_reference_rule_removes_one_less_than_k() {
    let layer: Vec<f32> = (1..=100).map(|i| i as f32).collect();
    let plan = recipe(0.5, 0, Ties::Keep).plan(&rows(&[layer])).unwrap();
    assert_eq!(plan.zeros_after, 49);
    assert_eq!(plan.threshold, Some(50.0));
}

#[test]
fn denormals_are_ranked_below_normals_and_above_zero() {
    let tiny = f32::from_bits(1);
    let model = rows(&[vec![f32::MIN_POSITIVE, tiny, 0.0, -2.0 * tiny]]);
    let pruned = recipe(0.5, 0, Ties::Exact).run(&model).unwrap();
    assert_eq!(
        values(&pruned.model, 0),
        [f32::MIN_POSITIVE, 0.0, 0.0, -2.0 * tiny]
    );
}

#[test]
fn pruning_a_sparse_model_less_than_it_is_changes_nothing() {
    let values_before = [0.0, 0.0, 0.0, 1.0, 2.0, 0.0];
    let model = rows(&[values_before.to_vec()]).encoded();
    let pruned = recipe(0.2, 0, Ties::Exact).run(&model).unwrap();
    assert_eq!(values(&pruned.model, 0), values_before);
    let layer = &pruned.plan.layers[0];
    assert_eq!(
        (layer.zeros_before, layer.zeros_after, layer.remove),
        (4, 4, 1)
    );
}
