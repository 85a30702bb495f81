//! Elementary channels in disjoint sets, and why a set must stay.

use super::Reason;
use std::sync::Arc;

/// An elementary channel: one index of one axis of one weight, or of a padding.
pub(super) type Id = u32;

/// One axis of a value.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// No channel of it can go, for the reason of this number.
    Fixed(u32),
    /// The elementary channel of each index.
    Ids(Arc<[Id]>),
}

/// Union-find over elementary channels.
#[derive(Debug, Default)]
pub(super) struct Sets {
    parent: Vec<Id>,
    size: Vec<u32>,
    /// The reason of a root, plus 1; 0 for none.
    blocked: Vec<u32>,
    reasons: Vec<Reason>,
}

impl Sets {
    /// `n` new channels, each alone.
    pub fn fresh(&mut self, n: usize) -> Arc<[Id]> {
        let first = self.parent.len() as Id;
        let ids = first..first + n as Id;
        self.parent.extend(ids.clone());
        self.size.resize(self.parent.len(), 1);
        self.blocked.resize(self.parent.len(), 0);
        ids.collect()
    }

    /// How many channels there are.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// The number of a reason.
    pub fn reason(&mut self, reason: Reason) -> u32 {
        self.reasons.push(reason);
        self.reasons.len() as u32 - 1
    }

    /// The channel that stands for the set of `id`.
    pub fn root(&mut self, mut id: Id) -> Id {
        while self.parent[id as usize] != id {
            let up = self.parent[self.parent[id as usize] as usize];
            self.parent[id as usize] = up;
            id = up;
        }
        id
    }

    /// Both go, or neither.
    pub fn join(&mut self, a: Id, b: Id) {
        let (mut a, mut b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        if self.size[a as usize] < self.size[b as usize] {
            (a, b) = (b, a);
        }
        self.parent[b as usize] = a;
        self.size[a as usize] += self.size[b as usize];
        if self.blocked[a as usize] == 0 {
            self.blocked[a as usize] = self.blocked[b as usize];
        }
    }

    /// Keeps a channel, and all that go with it.
    pub fn block(&mut self, id: Id, reason: u32) {
        let root = self.root(id) as usize;
        if self.blocked[root] == 0 {
            self.blocked[root] = reason + 1;
        }
    }

    /// Why the set of a channel must stay.
    pub fn blocked(&mut self, id: Id) -> Option<&Reason> {
        let root = self.root(id) as usize;
        self.reasons
            .get((self.blocked[root] as usize).checked_sub(1)?)
    }

    /// Keeps every channel of an axis.
    pub fn block_axis(&mut self, axis: &Axis, reason: u32) {
        if let Axis::Ids(ids) = axis {
            for &id in ids.iter() {
                self.block(id, reason);
            }
        }
    }

    /// Index `i` of one axis goes with index `i` of the other; where one is fixed or they differ in size, the
    /// other stays.
    pub fn join_axes(&mut self, a: &Axis, b: &Axis) {
        match (a, b) {
            (Axis::Ids(a), Axis::Ids(b)) => {
                for (&a, &b) in a.iter().zip(b.iter()) {
                    self.join(a, b);
                }
            }
            (Axis::Fixed(why), ids) | (ids, Axis::Fixed(why)) => self.block_axis(ids, *why),
        }
    }

    /// Runs of `width` channels go together.
    pub fn join_runs(&mut self, ids: &[Id], width: usize) {
        for run in ids.chunks(width.max(1)) {
            for pair in run.windows(2) {
                self.join(pair[0], pair[1]);
            }
        }
    }
}
