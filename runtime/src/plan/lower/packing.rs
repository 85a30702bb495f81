//! Packing weights in the form that was decided on, or finding them packed.

use super::super::form::{Form, Variant};
use super::super::rewrite::LinearUse;
use super::Context;
use super::matrix::{Matrix, Scale, hash_weight};
use crate::kernels::cpu::by_row::MOST_COLUMNS;
use crate::kernels::cpu::conv::PanelSet;
use crate::kernels::cpu::hash::Hash;
use crate::kernels::cpu::l1_bytes;
use crate::kernels::cpu::packed::{Expected, Kind};
use crate::kernels::cpu::pairs::PairStream;
use crate::kernels::cpu::weights::{
    DensePanels, IndexStream, PANEL, PanelWeights, ROW_GROUP, chunk_rows,
};
use crate::model::Weight;
use std::sync::Arc;

/// What packing panels of a layer takes.
pub(super) struct Packing<'p> {
    pub weight: &'p Weight,
    pub transpose: bool,
    pub scale: Scale<'p>,
    pub groups: usize,
    pub bias: Vec<f32>,
    pub variant: Variant,
}

impl Packing<'_> {
    /// The packed weights: those that a session of this model holds, those of the pack cache, or new ones.
    pub fn get(self, context: &Context<'_>) -> Arc<PanelSet> {
        let (unit, options) = (context.unit, context.options);
        // Row groups of dense panels differ by instruction set.
        let variant = self.variant;
        let mr = match variant.form {
            Form::DenseByRow => ROW_GROUP,
            _ => options.isa.dense_rows(),
        };
        let key = format!("{}|{}|{variant}|{mr}", unit.node.name, unit.fused.join(","));
        context.model.derived().get_or_make(&key, || {
            let Some(cache) = context.pack_cache else {
                return self.pack(mr);
            };
            let (rows, cols) = self.weight.matrix();
            let (outer, inner) = if self.transpose {
                (cols, rows)
            } else {
                (rows, cols)
            };
            let expected = Expected {
                groups: self.groups,
                rows: outer / self.groups,
                cols: inner,
                group: mr,
                chunk: self.chunk(),
                width: match variant.form.is_stream() {
                    true => variant.width,
                    false => PANEL,
                },
                kind: match variant.form {
                    Form::StreamPanel => Kind::Stream,
                    Form::PairPanel => Kind::Pairs,
                    _ => Kind::Dense,
                },
                bias: self.bias.len(),
            };
            let mut hash = Hash::default();
            let how = (
                self.transpose,
                self.groups,
                self.chunk(),
                mr,
                options.isa.name(),
            );
            hash.write(format!("{variant}{how:?}").as_bytes());
            let numbers = |hash: &mut Hash, list: &[f32]| {
                let bytes: Vec<u8> = list.iter().flat_map(|v| v.to_le_bytes()).collect();
                hash.write(&bytes);
            };
            match self.scale {
                Scale::All(s) => numbers(&mut hash, &[s]),
                Scale::Rows(list) => numbers(&mut hash, list),
            }
            numbers(&mut hash, &self.bias);
            hash_weight(self.weight, &mut hash);
            cache.get_or_pack(hash.finish(), &expected, || self.pack(mr))
        })
    }

    /// Most rows of a panel.
    fn chunk(&self) -> usize {
        match self.variant.form {
            form if form.is_stream() => self.variant.chunk,
            Form::DenseByRow => chunk_rows(l1_bytes(), PANEL + ROW_GROUP),
            _ => 2 * chunk_rows(l1_bytes(), PANEL),
        }
    }

    fn pack(&self, mr: usize) -> PanelSet {
        let matrix = Matrix::new(self.weight, self.transpose, self.scale);
        let (outer, cols) = matrix.shape();
        let rows = outer / self.groups;
        let (chunk, width) = (self.chunk(), self.variant.width);
        let group = |g: usize| {
            let part = matrix.part(g * rows, rows);
            match self.variant.form {
                Form::StreamPanel => {
                    PanelWeights::Stream(IndexStream::pack(rows, cols, chunk, width, &part))
                }
                Form::PairPanel => {
                    PanelWeights::Pairs(PairStream::pack(rows, cols, chunk, width, &part))
                }
                _ => PanelWeights::Dense(DensePanels::pack(rows, cols, mr, chunk, &part)),
            }
        };
        PanelSet {
            groups: (0..self.groups).map(group).collect(),
            bias: self.bias.clone(),
        }
    }
}

/// Resident bytes of packed panels.
pub(super) fn packed_bytes(set: &PanelSet) -> usize {
    set.groups.iter().map(PanelWeights::byte_len).sum::<usize>() + set.bias.len() * 4
}

/// The name of a kernel over panels.
pub(super) fn panel_name(op: &str, variant: Variant, context: &Context<'_>) -> String {
    let tile = match variant.form {
        Form::DensePanel => format!("{}x64", context.options.isa.dense_rows()),
        Form::DenseByRow => format!("{ROW_GROUP}x{MOST_COLUMNS}"),
        Form::PairPanel => format!("2x{}", variant.width),
        _ => format!("1x{}", variant.width),
    };
    format!("f32_{op}_{}_{tile}_{}", variant.form.name(), context.isa())
}

/// A form made of a linear layer's rows, once for all sessions of a model and every number of columns.
pub(super) fn packed_rows<T: Send + Sync + 'static>(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    weight: &Weight,
    variant: Variant,
    pack: impl FnOnce(&Matrix<'_>) -> T,
) -> Arc<T> {
    // A panel's width depends on the registers.
    let many = context.options.isa.has_many_registers();
    let unit = context.unit;
    let key = format!(
        "{}|{}|{variant}|{many}",
        unit.node.name,
        unit.fused.join(",")
    );
    context.model.derived().get_or_make(&key, || {
        let scale = Scale::All(linear.alpha);
        pack(&Matrix::new(weight, !linear.trans_b, scale))
    })
}
