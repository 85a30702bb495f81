//! Choosing a form for a weighted layer: which are legal, and which is estimated fastest.

use super::costs::Costs;
use super::form::{Candidate, Chosen, Form, Variant};
use crate::kernels::cpu::chunk::Chunk;
use crate::kernels::cpu::lookup::MOST_INPUTS;
use crate::kernels::cpu::weights::{ROW_GROUP, chunk_rows, largest_chunk, stream_width};
use crate::kernels::cpu::{Isa, l1_bytes};
use crate::model::Storage;

/// The sizes that decide.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Output rows of one group.
    pub rows: usize,
    /// Inner dimension.
    pub cols: usize,
    /// Elements that are not zero, of one group.
    pub nonzeros: usize,
    /// Columns of activations: pixels or input rows.
    pub columns: usize,
    /// Whether the layer is a matrix product, so that dot products are possible.
    pub linear: bool,
    /// How the model holds the weight, where kernels can execute it from there.
    pub stored: Option<Stored>,
    /// Activation panels of index streams may be wide.
    pub wide: bool,
    /// Bytes of the first-level data cache.
    pub l1_bytes: usize,
}

/// A weight in the model's own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Bytes of a value.
    pub element: usize,
    /// Its encoding.
    pub storage: Storage,
    /// The weight is shared by plans that would each make their own form, or other forms take several
    /// times the bytes: the same values, dense or as the model holds them, are all that is made.
    pub only: bool,
    /// Of such a weight: execute a dense copy, made once, in the place of the mask and values.
    pub expand: bool,
}

impl Stored {
    fn is_sparse(&self) -> bool {
        self.storage != Storage::Dense
    }
}

impl Layer {
    /// A layer of `rows` and `cols` on this machine with an instruction set.
    pub fn new(rows: usize, cols: usize, nonzeros: usize, columns: usize, isa: Isa) -> Layer {
        Layer {
            rows,
            cols,
            nonzeros,
            columns,
            linear: false,
            stored: None,
            wide: isa.has_many_registers(),
            l1_bytes: l1_bytes(),
        }
    }

    fn density(&self) -> f64 {
        self.nonzeros as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// Streams over wide and narrow panels, which fit the first-level cache or are three times as long.
    fn streams(&self) -> Vec<Variant> {
        let mut list: Vec<Variant> = Vec::new();
        for form in [Form::StreamPanel, Form::PairPanel] {
            let wide = stream_width(self.columns, self.widest(form));
            for width in [wide, (wide / 2).next_multiple_of(16)] {
                let rows = chunk_rows(self.l1_bytes, width);
                for chunk in [rows, 3 * rows] {
                    let chunk = chunk.min(largest_chunk(width));
                    let variant = Variant { form, width, chunk };
                    let same = |v: &Variant| {
                        let parts = |v: &Variant| self.cols.div_ceil(v.chunk.max(1));
                        v.form == form && v.width == width && parts(v) == parts(&variant)
                    };
                    if !list.iter().any(same) {
                        list.push(variant);
                    }
                }
            }
        }
        list
    }

    /// The most columns of a stream's panels whose sums fit the registers.
    fn widest(&self, form: Form) -> usize {
        match (self.wide, form) {
            (true, _) => 128,
            (false, Form::PairPanel) => 32,
            (false, _) => 64,
        }
    }
}

/// Input rows up to which dot products are used.
pub const MOST_DOT_COLUMNS: usize = 8;

/// The legal forms of a layer by their estimated cost, those that would be chosen first and cheapest
/// first.
pub fn candidates(layer: &Layer, dense_only: bool, costs: &Costs) -> Vec<Candidate> {
    let few = layer.linear && layer.columns <= MOST_DOT_COLUMNS;
    let two_of_four = (layer.stored).is_some_and(|s| s.storage == Storage::TwoFour);
    let (dense, sparse) = match (few, two_of_four) {
        (true, false) => (Form::DenseRows, Form::BitmaskRows),
        (true, true) => (Form::DenseRows, Form::TwoOfFourRows),
        (false, false) => (Form::DenseChunk, Form::BitmaskChunk),
        (false, true) => (Form::DenseChunk, Form::TwoOfFourChunk),
    };
    let only = layer.stored.filter(|s| s.only);
    let mut forms: Vec<(Variant, bool)> = Vec::new();
    match only {
        Some(stored) => {
            let chosen = stored.is_sparse() && !stored.expand && !dense_only;
            forms.push((Variant::plain(dense), chosen));
            if stored.is_sparse() {
                forms.push((Variant::plain(sparse), !chosen));
            }
        }
        None if few => forms.extend([dense, sparse].map(|f| (Variant::plain(f), false))),
        None => {
            forms.push((Variant::plain(Form::DensePanel), false));
            if layer.wide && !layer.linear {
                forms.push((Variant::plain(Form::DenseByRow), false));
            }
            if let Some(stored) = layer.stored {
                forms.push((Variant::plain(dense), false));
                if stored.is_sparse() {
                    forms.push((Variant::plain(sparse), false));
                }
            }
        }
    }
    if layer.linear && only.is_none() {
        forms.push((Variant::plain(Form::DenseOutputs), false));
        if few && layer.cols <= MOST_INPUTS {
            forms.push((Variant::plain(Form::LookupRows), false));
        }
    }
    let copy = only.is_some();
    forms.extend(layer.streams().into_iter().map(|v| (v, copy)));
    let full = layer.nonzeros == layer.rows * layer.cols;
    let kept = |form: Form| match form {
        form if form.is_stream() => !full && !dense_only,
        // A weight without zeros may be held with a mask all the same.
        form if !form.is_dense() => !dense_only && (!full || only.is_some()),
        _ => true,
    };
    forms.retain(|(v, _)| kept(v.form));
    let mut ranked: Vec<Candidate> = forms
        .into_iter()
        .map(|(variant, copy)| Candidate {
            variant,
            cost: cost(layer, variant, costs),
            copy,
        })
        .collect();
    ranked.sort_by(|a, b| a.copy.cmp(&b.copy).then(a.cost.total_cmp(&b.cost)));
    ranked
}

/// Whether a form can execute the layer, be it listed or not.
pub fn is_legal(layer: &Layer, listed: &[Candidate], variant: Variant) -> bool {
    let stream = |v: Variant| {
        v.width >= 16
            && v.width <= layer.widest(v.form)
            && v.width.is_multiple_of(16)
            && (1..=largest_chunk(v.width)).contains(&v.chunk)
    };
    match variant.form {
        form if form.is_stream() => {
            listed.iter().any(|c| c.variant.form == form) && stream(variant)
        }
        _ => listed.iter().any(|c| c.variant == variant),
    }
}

/// The estimate, in vector operations of a dense panel.
fn cost(layer: &Layer, variant: Variant, c: &Costs) -> f64 {
    let (rows, cols, nonzeros) = (layer.rows as f64, layer.cols as f64, layer.nonzeros as f64);
    let vectors = layer.columns.div_ceil(16) as f64;
    let element = layer.stored.map_or(4, |s| s.element) as f64;
    let passes = Chunk::passes(layer.columns, layer.cols);
    // A linear layer's weights may exceed the caches; panels then read them for each tile of columns.
    let traffic = |bytes: f64, times: usize| match layer.linear && bytes > c.cached {
        true => c.reread * bytes * times as f64,
        false => 0.0,
    };
    let (few, columns) = (layer.columns <= MOST_DOT_COLUMNS, layer.columns as f64);
    // What the caches do not hold comes at the memory's speed, which hides the work.
    let far = |near: f64, bytes: f64, byte: f64| match bytes > c.cached {
        true => near.max(byte * bytes),
        false => near,
    };
    match variant.form {
        Form::DensePanel => {
            vectors * rows * cols + traffic(4.0 * rows * cols, layer.columns.div_ceil(64))
        }
        // The same without lanes that no column fills, and the sums are transposed.
        Form::DenseByRow => {
            let rows = layer.rows.next_multiple_of(ROW_GROUP) as f64;
            rows * layer.columns as f64 * (cols / c.by_row_lanes + c.by_row_sums)
        }
        // For each non-zero an FMA and a load by vector, dearer from beyond the first-level cache and fewer in
        // pairs, and its own loads by tile; for each row of each chunk the sums, and the start and end of a loop.
        Form::StreamPanel | Form::PairPanel => {
            let width = variant.width.max(1);
            let sums = rows * layer.cols.div_ceil(variant.chunk.max(1)) as f64;
            let panel = layer.cols.min(variant.chunk) * width * 4;
            let load = match panel > layer.l1_bytes {
                true => c.far_load,
                false => c.load,
            };
            let tiles = layer.columns.div_ceil(width);
            let (loads, row) = match variant.form {
                Form::PairPanel => (
                    self::loads(layer.density(), layer.cols.min(variant.chunk)),
                    c.paired_row,
                ),
                _ => (1.0, c.row),
            };
            vectors * ((c.nonzero + load * loads) * nonzeros + c.sums * sums)
                + tiles as f64 * (c.tile_nonzero * nonzeros + row * sums)
                + traffic(6.0 * nonzeros, tiles)
        }
        // A weight's load is shared by all columns; few columns are bound by bytes.
        Form::DenseOutputs => {
            let near = if few {
                (c.outputs_few_column * columns).max(c.outputs_least)
            } else {
                c.outputs + c.outputs_column * columns
            };
            far(rows * cols / 16.0 * near, 4.0 * rows * cols, c.packed)
        }
        // Per step a permutation for each column; the sparser, the more lanes are idle.
        Form::LookupRows => {
            let steps = (nonzeros + c.lookup_idle * rows * cols) / 16.0;
            far(
                steps * (c.lookup + c.lookup_column * columns),
                c.lookup_bytes * steps,
                c.packed,
            )
        }
        // Bound by bytes, from somewhere between the second-level cache and memory.
        Form::DenseRows => {
            let bytes = element * rows * cols;
            let near = c.rows_element
                * rows
                * cols
                * (c.dense_rows + c.rows_column * columns + c.dense_rows_byte * element);
            far(near, bytes, c.mapped)
        }
        // The same, with an expansion per 16 elements.
        Form::BitmaskRows => {
            let bytes = rows * cols / 8.0 + element * nonzeros;
            let near = c.rows_element * rows * cols * (c.bitmask_rows + c.rows_column * columns)
                + c.rows_element * element * nonzeros;
            far(near, bytes, c.mapped)
        }
        // Inputs are selected in the place of an expansion, for each column.
        Form::TwoOfFourRows => {
            let bytes = rows * cols / 8.0 + element * rows * cols / 2.0;
            let near = match layer.columns {
                ..=4 => rows * cols * (c.two_of_four_few + c.two_of_four_few_column * columns),
                _ => rows * cols * (c.two_of_four_rows + c.two_of_four_rows_column * columns),
            };
            far(near, bytes, c.mapped)
        }
        // As the dense panel, and for each pass a vector that is read, converted and stored.
        Form::DenseChunk => {
            rows * cols * (c.chunk * vectors + c.dense_chunk_pass * passes as f64)
                + traffic(element * rows * cols, passes)
        }
        // For each stored weight a load by vector as well.
        Form::TwoOfFourChunk => {
            rows * cols * (c.two_of_four_chunk * vectors + c.two_of_four_chunk_pass * passes as f64)
                + traffic(rows * cols / 8.0 + element * rows * cols / 2.0, passes)
        }
        // As the dense chunk, with an expansion.
        Form::BitmaskChunk => {
            rows * cols * (c.chunk * vectors + c.bitmask_chunk_pass * passes as f64)
                + traffic(rows * cols / 8.0 + element * nonzeros, passes)
        }
    }
}

/// Loads of a panel for each non-zero where rows are paired in chunks of `chunk` columns.
fn loads(density: f64, chunk: usize) -> f64 {
    // Chance gives the square; the best of many partners has a deviation more.
    let chance = density * density;
    let shared = chance + (chance * (1.0 - chance) / chunk.max(1) as f64).sqrt();
    1.0 - (shared / density.max(1e-9) / 2.0).min(0.5)
}

/// The form that was taken, and by whom.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The form.
    pub variant: Variant,
    /// Who took it.
    pub by: Chosen,
    /// Why.
    pub reason: String,
}

/// Why the first of `ranked` was taken.
pub fn reason(layer: &Layer, ranked: &[Candidate], dense_only: bool) -> String {
    let density = layer.density();
    let Some(best) = ranked.first() else {
        return String::new();
    };
    let form = best.variant.form;
    let next = ranked.iter().find(|c| !c.copy && c.variant.form != form);
    match (layer.stored.filter(|s| s.only), next) {
        (Some(s), _) if s.is_sparse() && dense_only => "dense was asked for: decoded once".into(),
        (Some(s), _) if s.is_sparse() && form.is_dense() => {
            format!("density {density:.2}: decoded once, the model fits the caches")
        }
        (Some(s), _) if s.is_sparse() => format!("density {density:.2}: as the model holds it"),
        (Some(_), _) => "dense, as the model holds it".into(),
        (None, _) if dense_only => "dense was asked for".into(),
        (None, None) => "no zeros".into(),
        (None, Some(next)) => {
            let ratio = next.cost / best.cost;
            format!(
                "density {density:.2}: {}, {ratio:.1}x faster than {} (estimate)",
                form.words(),
                next.variant.form.words()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(columns: usize, density: f64, stored: Option<Stored>) -> Layer {
        Layer {
            rows: 4096,
            cols: 4096,
            nonzeros: (density * 4096.0 * 4096.0) as usize,
            columns,
            linear: true,
            stored,
            wide: true,
            l1_bytes: 48 << 10,
        }
    }

    fn best(layer: &Layer, dense_only: bool) -> Form {
        candidates(layer, dense_only, &Costs::default())[0]
            .variant
            .form
    }

    fn stored(element: usize, storage: Storage, only: bool) -> Stored {
        Stored {
            element,
            storage,
            only,
            expand: false,
        }
    }

    #[test]
    fn a_weight_that_must_not_be_made_twice_is_executed_as_it_is() {
        for (storage, few, many) in [
            (Storage::Dense, Form::DenseRows, Form::DenseChunk),
            (Storage::Bitmask, Form::BitmaskRows, Form::BitmaskChunk),
            (Storage::TwoFour, Form::TwoOfFourRows, Form::TwoOfFourChunk),
        ] {
            let kept = Some(stored(2, storage, true));
            for (columns, form) in [(8, few), (9, many)] {
                let list = candidates(&layer(columns, 0.5, kept), false, &Costs::default());
                assert_eq!(list[0].variant.form, form);
                assert_eq!(list.iter().filter(|c| !c.copy).count(), 1, "{list:?}");
            }
            let dense = candidates(&layer(9, 0.5, kept), true, &Costs::default());
            assert_eq!(dense.len(), 1);
            assert_eq!(dense[0].variant.form, Form::DenseChunk);
        }
        let expanded = Some(Stored {
            expand: true,
            ..stored(2, Storage::Bitmask, true)
        });
        assert_eq!(best(&layer(1, 0.5, expanded), false), Form::DenseRows);
        assert_eq!(best(&layer(9, 0.5, expanded), false), Form::DenseChunk);
    }

    #[test]
    fn zeros_are_left_out_where_they_are_enough_and_large_weights_are_read_once() {
        let kept = Some(stored(4, Storage::Bitmask, false));
        assert_eq!(best(&layer(1, 0.5, kept), false), Form::LookupRows);
        assert_eq!(best(&layer(1, 0.95, kept), false), Form::DenseOutputs);
        assert_eq!(best(&layer(256, 1.0, kept), true), Form::DenseOutputs);
        assert_eq!(best(&layer(256, 0.1, kept), false), Form::PairPanel);
    }

    #[test]
    fn every_layer_with_zeros_has_a_dense_form_and_two_sparse_ones() {
        for columns in [1, 8, 9, 49, 196, 3136] {
            for kept in [
                None,
                Some(stored(4, Storage::Bitmask, false)),
                Some(stored(2, Storage::TwoFour, true)),
            ] {
                let list = candidates(&layer(columns, 0.3, kept), false, &Costs::default());
                let dense = list.iter().filter(|c| c.variant.form.is_dense()).count();
                assert!(dense >= 1 && list.len() - dense >= 2, "{list:?}");
                assert!(list.iter().all(|c| is_legal(
                    &layer(columns, 0.3, kept),
                    &list,
                    c.variant
                )));
            }
        }
        let conv = Layer {
            linear: false,
            ..layer(196, 0.3, None)
        };
        let list = candidates(&conv, false, &Costs::default());
        for (width, chunk, legal) in [
            (64, 100, true),
            (60, 100, false),
            (128, 5000, false),
            (16, 0, false),
        ] {
            assert_eq!(
                is_legal(&conv, &list, Variant::stream(width, chunk)),
                legal,
                "{width}"
            );
        }
    }
}
