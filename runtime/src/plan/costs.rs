//! The constants of the estimate that ranks the forms of a layer.

use crate::{Error, Result};

macro_rules! costs {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        /// Constants of the estimate that ranks forms, in vector operations of a dense panel where nothing else is said. The
        /// defaults were fitted to audits on a server processor with AVX-512 (`benches/fit.py`); a device profile has others.
        /// They decide between legal forms and never change what a layer computes.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub struct Costs {
            $($(#[$doc])* pub $name: f64,)*
        }

        impl Default for Costs {
            fn default() -> Costs {
                Costs { $($name: $value,)* }
            }
        }

        impl Costs {
            /// The names, which are those of the fields.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// Sets the constant of this name.
            ///
            /// # Errors
            /// When there is none of this name, or the value is negative or not a number; the error names both.
            pub fn set(&mut self, name: &str, value: f64) -> Result<()> {
                if !(value.is_finite() && value >= 0.0) {
                    return Err(Error::Option(format!(
                        "cost `{name}` = {value}: must be zero or a positive number"
                    )));
                }
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => {
                        return Err(Error::Option(format!(
                            "cost `{name}`: not known; known are {}",
                            Costs::NAMES.join(", ")
                        )));
                    }
                }
                Ok(())
            }

            /// The constant of this name.
            pub fn get(&self, name: &str) -> Option<f64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

costs! {
    /// A byte of mapped weights from memory.
    mapped = 0.22;
    /// A byte of packed weights, in huge pages, from memory.
    packed = 0.14;
    /// A byte of weights that panels of a linear layer read again for each tile of columns.
    reread = 0.2;
    /// Bytes of weights that stay in a core's caches.
    cached = 4e6;
    /// `dense-by-row`: elements of a row that take one operation.
    by_row_lanes = 16.8;
    /// `dense-by-row`: the sums of a row, for each column.
    by_row_sums = 0.8;
    /// Index streams: a product, for each vector.
    nonzero = 0.18;
    /// Index streams: a load from a panel in the first-level cache, for each vector.
    load = 0.85;
    /// Index streams: a load from a panel beyond it.
    far_load = 1.36;
    /// Index streams: the sums of a row of a chunk, for each vector.
    sums = 1.05;
    /// Index streams: a non-zero and its index, for each tile of columns.
    tile_nonzero = 1.1;
    /// `stream-panel`: start and end of a row, for each tile and chunk.
    row = 58.7;
    /// `pair-panel`: start and end of a row, for each tile and chunk.
    paired_row = 32.0;
    /// `dense-outputs`: a vector of outputs at few columns, at the least.
    outputs_least = 4.3;
    /// `dense-outputs`: the same for each of few columns.
    outputs_few_column = 0.92;
    /// `dense-outputs`: a vector of outputs at many columns.
    outputs = 0.8;
    /// `dense-outputs`: the same for each of many columns.
    outputs_column = 0.84;
    /// `lookup-rows`: idle lanes, as a share of all elements.
    lookup_idle = 0.055;
    /// `lookup-rows`: a step of sixteen rows.
    lookup = 3.6;
    /// `lookup-rows`: the same for each column.
    lookup_column = 1.9;
    /// `lookup-rows`: bytes of a step.
    lookup_bytes = 82.0;
    /// Rows of the model's own bytes: an element; what follows is in these.
    rows_element = 0.05;
    /// `dense-rows`: an element at no column.
    dense_rows = 1.0;
    /// `dense-rows`: a byte of an element.
    dense_rows_byte = 0.96;
    /// `bitmask-rows`: an element at no column, its expansion included.
    bitmask_rows = 2.5;
    /// `dense-rows` and `bitmask-rows`: an element for each column.
    rows_column = 0.5;
    /// `2of4-rows`: an element at up to four columns.
    two_of_four_few = 0.09;
    /// `2of4-rows`: the same for each column.
    two_of_four_few_column = 0.045;
    /// `2of4-rows`: an element at more columns.
    two_of_four_rows = 0.225;
    /// `2of4-rows`: the same for each column.
    two_of_four_rows_column = 0.025;
    /// `dense-chunk` and `bitmask-chunk`: an element, for each vector.
    chunk = 0.91;
    /// `dense-chunk`: reading, converting and storing an element, for each pass.
    dense_chunk_pass = 0.15;
    /// `bitmask-chunk`: the same, with an expansion.
    bitmask_chunk_pass = 0.25;
    /// `2of4-chunk`: an element, for each vector.
    two_of_four_chunk = 0.66;
    /// `2of4-chunk`: an element, for each pass.
    two_of_four_chunk_pass = 0.2;
}

/// Operations that the machine of the defaults does in the time in which one thread reads a byte from memory: 138.5 G multiply-adds a
/// second and 49 GB/s (`benches/RECORD.md`).
const BALANCE: f64 = 2.0 * 138.5 / 49.0;

impl Costs {
    /// The constants of bytes from memory scaled to a machine that does this many floating-point operations in the time in
    /// which it reads a byte from memory: GFLOP/s over GB/s of one thread.
    #[must_use]
    pub fn with_balance(mut self, operations: f64) -> Costs {
        let by = operations / BALANCE;
        for byte in [&mut self.mapped, &mut self.packed, &mut self.reread] {
            *byte *= by;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_set_and_read_and_no_other() {
        let mut costs = Costs::default();
        for (i, name) in Costs::NAMES.iter().enumerate() {
            costs.set(name, i as f64).unwrap();
        }
        for (i, name) in Costs::NAMES.iter().enumerate() {
            assert_eq!(costs.get(name), Some(i as f64));
        }
        assert_eq!(costs.get("nothing"), None);
        for (name, value) in [("nothing", 1.0), ("load", -1.0), ("load", f64::NAN)] {
            let error = costs.set(name, value).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn bytes_are_dearer_where_memory_is_slower() {
        let same = Costs::default().with_balance(BALANCE);
        assert_eq!(same, Costs::default());
        let slow = Costs::default().with_balance(2.0 * BALANCE);
        assert_eq!(
            (slow.packed, slow.load),
            (2.0 * same.packed, Costs::default().load)
        );
    }
}
