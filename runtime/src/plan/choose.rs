//! Choosing a form for a weighted layer: which are legal, and which is estimated fastest.

use crate::kernels::cpu::chunk::Chunk;
use crate::kernels::cpu::l1_bytes;
use crate::kernels::cpu::weights::{is_long, stream_rows};

/// How a layer's weights are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Every element, in register tiles over an activation panel.
    DensePanel,
    /// The non-zeros, as index streams over an activation panel.
    StreamPanel,
    /// Every element, as dot products from the bytes of the model.
    DenseRows,
    /// Mask and non-zeros, as dot products from the bytes of the model.
    BitmaskRows,
    /// Every element, expanded from the bytes of the model a block at a time for all columns.
    DenseChunk,
    /// Mask and non-zeros, expanded to every element likewise.
    BitmaskChunk,
}

impl Form {
    /// The word for this form in kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            Form::DensePanel | Form::DenseRows | Form::DenseChunk => "dense",
            Form::StreamPanel => "stream",
            Form::BitmaskRows | Form::BitmaskChunk => "bitmask",
        }
    }

    /// What the form does, for people.
    const fn words(self) -> &'static str {
        match self {
            Form::DensePanel => "dense, packed",
            Form::DenseRows => "dense",
            Form::DenseChunk => "dense, from the file",
            Form::StreamPanel => "a stream of non-zeros",
            Form::BitmaskRows => "the bitmask",
            Form::BitmaskChunk => "the bitmask, expanded",
        }
    }

    const fn is_dense(self) -> bool {
        matches!(self, Form::DensePanel | Form::DenseRows | Form::DenseChunk)
    }
}

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
}

/// A weight in the model's own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Bytes of a value.
    pub element: usize,
    /// Only the non-zeros are stored.
    pub bitmask: bool,
    /// No other form may be made: the weights are shared by plans that would each make their own, or
    /// another form takes several times the bytes.
    pub only: bool,
}

/// A legal form and its estimated cost, in vector operations per layer.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The form.
    pub form: Form,
    /// The estimate; only ratios mean something.
    pub cost: f64,
}

/// Input rows up to which dot products are used.
pub const MOST_DOT_COLUMNS: usize = 8;

/// Bytes of weights that stay in a core's caches.
const CACHED: f64 = 4e6;

/// The legal forms of a layer, not ordered.
pub fn candidates(layer: &Layer, dense_only: bool) -> Vec<Form> {
    let few = layer.linear && layer.columns <= MOST_DOT_COLUMNS;
    let mapped = |stored: Stored| match (few, stored.bitmask && !dense_only) {
        (true, false) => Form::DenseRows,
        (true, true) => Form::BitmaskRows,
        (false, false) => Form::DenseChunk,
        (false, true) => Form::BitmaskChunk,
    };
    if let Some(stored) = layer.stored.filter(|s| s.only) {
        return vec![mapped(stored)];
    }
    let mut forms = if few {
        vec![Form::DenseRows, Form::BitmaskRows]
    } else {
        vec![Form::DensePanel, Form::StreamPanel]
    };
    if !few && let Some(stored) = layer.stored {
        forms.push(mapped(stored));
    }
    if dense_only || layer.nonzeros == layer.rows * layer.cols {
        forms.retain(|f| f.is_dense());
    }
    forms
}

/// Orders forms by their estimated cost, cheapest first. Panels of a stream have `width` columns.
pub fn rank(layer: &Layer, forms: &[Form], width: usize) -> Vec<Candidate> {
    let mut ranked: Vec<Candidate> = forms
        .iter()
        .map(|&form| Candidate {
            form,
            cost: cost(layer, form, width),
        })
        .collect();
    ranked.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    ranked
}

fn cost(layer: &Layer, form: Form, width: usize) -> f64 {
    let (rows, cols, nonzeros) = (layer.rows as f64, layer.cols as f64, layer.nonzeros as f64);
    let vectors = layer.columns.div_ceil(16) as f64;
    let element = layer.stored.map_or(4, |s| s.element) as f64;
    let passes = Chunk::passes(layer.columns, layer.cols);
    // A linear layer's weights may exceed the caches; panels then read them for each 64 columns.
    let traffic = |bytes: f64, times: usize| match layer.linear && bytes > CACHED {
        true => 0.25 * bytes * times as f64,
        false => 0.0,
    };
    let tiles = layer.columns.div_ceil(64);
    match form {
        // One FMA per element, at 80 % of the peak.
        Form::DensePanel => vectors * rows * cols / 0.8 + traffic(4.0 * rows * cols, tiles),
        // A load and an FMA per element, a weight's loads shared by the vectors of a tile, and per row
        // and chunk the sums to and from memory and the end of a loop.
        Form::StreamPanel => {
            let density = nonzeros / (rows * cols).max(1.0);
            let chunks = layer.cols.div_ceil(stream_rows(l1_bytes(), width, density)) as f64;
            let far = if is_long(l1_bytes(), width, density) {
                1.25
            } else {
                1.0
            };
            let element = far + 2.8 * 16.0 / width as f64;
            let tiles = layer.columns.div_ceil(width.max(1));
            vectors * (element * nonzeros + 9.5 * rows * chunks) + traffic(6.0 * nonzeros, tiles)
        }
        // Bound by bytes, from somewhere between the second-level cache and memory.
        Form::DenseRows => rows * cols / 16.0 * (1.0 + 0.5 * layer.columns as f64 + 0.96 * element),
        // The same, with an expansion per 16 elements.
        Form::BitmaskRows => {
            rows * cols / 16.0 * (2.5 + 0.5 * layer.columns as f64) + 0.06 * element * nonzeros
        }
        // As the dense panel, and for each pass a vector that is read, converted and stored.
        Form::DenseChunk => {
            rows * cols * (vectors / 0.88 + 3.0 * passes as f64 / 16.0)
                + traffic(element * rows * cols, passes)
        }
        // The same with an expansion.
        Form::BitmaskChunk => {
            rows * cols * (vectors / 0.88 + 5.0 * passes as f64 / 16.0)
                + traffic(rows * cols / 8.0 + element * nonzeros, passes)
        }
    }
}

/// Why the first of `ranked` was taken.
pub fn reason(layer: &Layer, ranked: &[Candidate], dense_only: bool) -> String {
    let density = layer.nonzeros as f64 / ((layer.rows * layer.cols).max(1)) as f64;
    let Some(best) = ranked.first() else {
        return String::new();
    };
    match ranked.get(1) {
        None if layer.stored.is_some_and(|s| s.only) => {
            let bitmask = layer.stored.is_some_and(|s| s.bitmask);
            match (bitmask, dense_only) {
                (true, true) => "dense was asked for: decoded once".into(),
                (true, false) => format!("density {density:.2}: as the model holds it"),
                (false, _) => "dense, as the model holds it".into(),
            }
        }
        None if dense_only => "dense was asked for".into(),
        None => "no zeros".into(),
        Some(next) => {
            let ratio = next.cost / best.cost;
            format!(
                "density {density:.2}: {}, {ratio:.1}x faster than {} (estimate)",
                best.form.words(),
                next.form.words()
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
        }
    }

    fn best(layer: &Layer, dense_only: bool) -> Form {
        rank(layer, &candidates(layer, dense_only), 128)[0].form
    }

    #[test]
    fn a_weight_that_must_not_be_made_twice_has_one_form() {
        for (bitmask, few, many) in [
            (false, Form::DenseRows, Form::DenseChunk),
            (true, Form::BitmaskRows, Form::BitmaskChunk),
        ] {
            let stored = Stored {
                element: 2,
                bitmask,
                only: true,
            };
            assert_eq!(candidates(&layer(8, 0.5, Some(stored)), false), [few]);
            assert_eq!(candidates(&layer(9, 0.5, Some(stored)), false), [many]);
            let dense = candidates(&layer(9, 0.5, Some(stored)), true);
            assert_eq!(dense, [Form::DenseChunk]);
        }
    }

    #[test]
    fn half_of_the_weights_is_enough_for_rows_and_large_weights_are_read_once() {
        let stored = Some(Stored {
            element: 4,
            bitmask: true,
            only: false,
        });
        assert_eq!(best(&layer(1, 0.5, stored), false), Form::BitmaskRows);
        assert_eq!(best(&layer(1, 0.9, stored), false), Form::DenseRows);
        assert_eq!(best(&layer(256, 1.0, stored), true), Form::DenseChunk);
        assert_eq!(best(&layer(256, 0.1, stored), false), Form::StreamPanel);
    }
}
