//! A scan for values that are not finite.

use crate::model::scan::scan;
use crate::model::{Encoding, Weight};

/// Says which element of a weight is infinite or not a number, if one is; counts those that are not zero on the way.
pub(super) fn check(weight: &Weight) -> Result<(), String> {
    if !weight.dtype().is_float() {
        return Ok(());
    }
    let found = scan(weight.dtype(), weight.stored());
    let _ = weight.nonzeros.set(found.nonzeros);
    let Some((stored, value)) = found.fault else {
        return Ok(());
    };
    let bitmask = match weight.encoding() {
        Encoding::Dense(_) => None,
        Encoding::Bitmask(b) => Some(b),
    };
    let flat = match bitmask {
        None => stored,
        Some(b) => {
            let row = (0..b.rows)
                .rev()
                .find(|&r| b.row_start(r) <= stored)
                .unwrap_or(0);
            let column = b.row_columns(row).nth(stored - b.row_start(row));
            row * b.cols + column.unwrap_or(0)
        }
    };
    Err(format!("the value at flat index {flat} is {value}"))
}
