//! Placing: every activation gets an offset in one arena, shared where lifetimes allow.

use super::lower::{Lowered, Place};
use super::{Slot, Step, StepInfo};
use crate::Result;
use std::collections::HashMap;

/// Elements of a cache line: what offsets are a multiple of.
const ALIGN: usize = 16;

pub(super) struct Placed {
    pub steps: Vec<Step>,
    pub outputs: Vec<Slot>,
    pub arena_len: usize,
    /// The most elements that live at the same time.
    pub bound: usize,
    pub infos: Vec<StepInfo>,
}

/// From which step to which a value is needed, and its elements.
pub(super) struct Life {
    pub value: usize,
    pub len: usize,
    pub born: usize,
    pub dies: usize,
}

/// Where values lie.
pub(super) struct Layout {
    pub offsets: HashMap<usize, usize>,
    pub len: usize,
    /// The most elements that live at the same time.
    pub bound: usize,
}

pub(super) fn place(lowered: Lowered, outputs: &[String]) -> Result<Placed> {
    let mut lives: HashMap<usize, Life> = HashMap::new();
    for (i, step) in lowered.steps.iter().enumerate() {
        lives.insert(
            step.out,
            Life {
                value: step.out,
                len: step.out_len,
                born: i,
                dies: i,
            },
        );
        for input in &step.inputs {
            if let Place::Value(v) = input
                && let Some(life) = lives.get_mut(v)
            {
                life.dies = i;
            }
        }
    }
    let output_places: Vec<Place> = outputs
        .iter()
        .map(|o| lowered.place(o))
        .collect::<Result<_>>()?;
    for place in &output_places {
        if let Place::Value(v) = place
            && let Some(life) = lives.get_mut(v)
        {
            life.dies = usize::MAX;
        }
    }

    let Layout {
        offsets,
        len: arena_len,
        bound,
    } = layout(&lives.into_values().collect::<Vec<_>>());

    let slot = |place: &Place| match place {
        Place::Value(v) => Slot::Arena(offsets.get(v).copied().unwrap_or(0)),
        Place::Input(i) => Slot::Input(*i),
        Place::Constant(c) => Slot::Constant(c.clone()),
        Place::Integers(c) => Slot::Integers(c.clone()),
    };
    let steps = lowered
        .steps
        .into_iter()
        .map(|s| Step {
            inputs: s.inputs.iter().map(slot).collect(),
            kernel: s.kernel,
            out: offsets.get(&s.out).copied().unwrap_or(0),
        })
        .collect();
    Ok(Placed {
        steps,
        outputs: output_places.iter().map(slot).collect(),
        arena_len,
        bound,
        infos: lowered.infos,
    })
}

/// Places values so that those that live at the same time do not overlap.
pub(super) fn layout(lives: &[Life]) -> Layout {
    let last = lives.iter().map(|l| l.born).max().map_or(0, |l| l + 1);
    let bound = (0..last)
        .map(|i| {
            let live = lives.iter().filter(|l| l.born <= i && i <= l.dies);
            live.map(|l| l.len.next_multiple_of(ALIGN)).sum()
        })
        .max()
        .unwrap_or(0);

    // Largest first, each at the lowest offset that no overlapping lifetime holds.
    let mut order: Vec<&Life> = lives.iter().collect();
    order.sort_by_key(|l| (std::cmp::Reverse(l.len), l.value));
    let mut placed: Vec<(&Life, usize)> = Vec::new();
    let mut arena_len = 0;
    for life in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(o, _)| o.born <= life.dies && life.born <= o.dies)
            .map(|(o, at)| (*at, at + o.len.next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (from, to) in taken {
            if at + life.len <= from {
                break;
            }
            at = at.max(to);
        }
        placed.push((life, at));
        arena_len = arena_len.max(at + life.len.next_multiple_of(ALIGN));
    }
    Layout {
        offsets: placed.iter().map(|(l, at)| (l.value, *at)).collect(),
        len: arena_len,
        bound,
    }
}
