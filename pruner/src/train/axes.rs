//! Steps that move elements between places along axes.

use super::compile::Kind;
use super::layout::{Selection, stored, stored_axis, strides};
use super::prepare::at;
use crate::Result;
use lacuna::model::{Node, PadMode};

pub(super) fn axis(node: &Node, axis: i64, rank: usize) -> Result<usize> {
    let wrapped = if axis < 0 { axis + rank as i64 } else { axis };
    let found = usize::try_from(wrapped).ok().filter(|&a| a < rank);
    found.ok_or_else(|| at(node, format!("axis {axis} of {rank}")))
}

pub(super) fn mean(x: &[usize], axes: &[usize], kept: &[usize]) -> Kind {
    let own = strides(kept, false);
    let order = |a: usize| if axes.contains(&a) { 0 } else { own[a] };
    let mut moved = vec![0; x.len()];
    for a in 0..x.len() {
        moved[stored_axis(a, x.len())] = order(a);
    }
    Kind::Mean {
        dims: stored(x),
        strides: moved,
        count: axes.iter().map(|&a| x[a]).product(),
    }
}

/// The indices that a slice of `count` elements reads of an axis of `len`.
pub(super) fn slice(len: usize, count: usize, start: i64, step: i64) -> Vec<Option<usize>> {
    let len = len as i128;
    let start = i128::from(start);
    let start = if start < 0 { start + len } else { start };
    let start = if step > 0 {
        start.clamp(0, len)
    } else {
        start.clamp(-1, len - 1)
    };
    let index = |i: usize| usize::try_from(start + i as i128 * i128::from(step)).ok();
    (0..count).map(index).collect()
}

pub(super) fn pad(node: &Node, x: &[usize], pads: &[i64], mode: PadMode) -> Result<Selection> {
    let maps: Result<Vec<Vec<Option<usize>>>> = (x.iter().enumerate())
        .map(|(axis, &n)| {
            let (before, after) = (pads[axis], pads[axis + x.len()]);
            (-before..n as i64 + after)
                .map(|i| {
                    let last = n as i64 - 1;
                    let read = match mode {
                        PadMode::Constant(_) if i < 0 || i > last => return Ok(None),
                        PadMode::Constant(_) => i,
                        PadMode::Edge => i.clamp(0, last),
                        PadMode::Reflect if i < 0 => -i,
                        PadMode::Reflect if i > last => 2 * last - i,
                        PadMode::Reflect => i,
                    };
                    match usize::try_from(read) {
                        Ok(read) if read < n => Ok(Some(read)),
                        _ => Err(at(node, "a reflection longer than its axis")),
                    }
                })
                .collect()
        })
        .collect();
    let constant = match mode {
        PadMode::Constant(value) => value,
        PadMode::Reflect | PadMode::Edge => 0.0,
    };
    Ok(select(x, maps?, constant))
}

/// A selection from maps of the logical axes.
pub(super) fn select(x: &[usize], maps: Vec<Vec<Option<usize>>>, constant: f32) -> Selection {
    let mut moved = vec![Vec::new(); maps.len()];
    for (axis, map) in maps.into_iter().enumerate() {
        moved[stored_axis(axis, x.len())] = map;
    }
    Selection {
        dims: stored(x),
        maps: moved,
        constant,
    }
}
