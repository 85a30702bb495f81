//! Gates: a product with an activation that nothing else reads becomes one unit.

use super::fixed_shape;
use super::rewrite::{UNCLAMPED, Unit};
use crate::Model;
use crate::model::{Op, Shapes};
use std::collections::HashMap;

/// Turns `Mul(activation(x), y)` of equal shapes into the activation's unit with the inputs `x, y`,
/// where the product stood.
pub(super) fn fuse(
    list: &mut Vec<Unit<'_>>,
    uses: &HashMap<String, usize>,
    model: &Model,
    shapes: &Shapes,
) {
    let mut producers: HashMap<String, usize> = HashMap::new();
    let mut gone = vec![false; list.len()];
    for at in 0..list.len() {
        producers.insert(list[at].output.clone(), at);
        let unit = &list[at];
        let plain = matches!(unit.node.op, Op::Mul) && unit.clamp == UNCLAMPED;
        if !plain || unit.residual.is_some() {
            continue;
        }
        let found = (0..2).find_map(|i| {
            let producer = *producers.get(&unit.inputs[i])?;
            let fits = is_open_activation(&list[producer])
                && uses.get(&unit.inputs[i]) == Some(&1)
                && same_shapes(unit, model, shapes);
            fits.then_some((i, producer))
        });
        let Some((i, producer)) = found else {
            continue;
        };
        let (activation, gate) = (list[producer].clone(), unit.inputs[1 - i].clone());
        let mut fused = vec![unit.node.name.clone()];
        fused.extend(unit.fused.iter().cloned());
        list[at] = Unit {
            inputs: vec![activation.inputs[0].clone(), gate],
            output: unit.output.clone(),
            fused,
            ..activation
        };
        gone[producer] = true;
    }
    let mut gone = gone.into_iter();
    list.retain(|_| !gone.next().unwrap_or(false));
}

/// Whether a unit is an activation and nothing more.
fn is_open_activation(unit: &Unit<'_>) -> bool {
    let activation = matches!(
        unit.node.op,
        Op::Swish { .. } | Op::Gelu { .. } | Op::Sigmoid | Op::Tanh
    );
    activation && unit.inputs.len() == 1 && unit.fused.is_empty()
}

/// Whether both factors have the shape of the product, and neither is a constant.
fn same_shapes(unit: &Unit<'_>, model: &Model, shapes: &Shapes) -> bool {
    let shape = |name: &str| fixed_shape(shapes, name).ok();
    let out = shape(&unit.output);
    let fits = |name: &String| shape(name) == out && !model.weights().contains_key(name);
    out.is_some() && unit.node.inputs.iter().all(fits)
}
