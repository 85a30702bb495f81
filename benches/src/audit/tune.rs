//! Measured choices from an audit.

use super::Audit;
use crate::{Error, Result};
use lacuna::Isa;
use lacuna::plan::{Tuned, Variant, density_bucket};
use std::collections::BTreeMap;

/// Adds what an audit measured to a table of choices, for this machine: of layers of one kind and density
/// the mean. Returns how many kinds there were.
///
/// # Errors
/// When the instruction set is none of this library's.
pub fn tune(audit: &Audit, tuned: &mut Tuned) -> Result<usize> {
    let isa = Isa::parse(&audit.isa).map_err(Error::Option)?;
    type Sums = BTreeMap<Variant, (f64, f64)>;
    let mut kinds: BTreeMap<(String, u32), (f64, Sums)> = BTreeMap::new();
    for layer in &audit.layers {
        let kind = (layer.key.clone(), density_bucket(layer.density));
        let new = || (layer.density, Sums::new());
        let (_, sums) = kinds.entry(kind).or_insert_with(new);
        for form in layer.forms.iter().filter(|f| f.ms.is_finite()) {
            let (sum, count) = sums.entry(form.variant).or_default();
            (*sum, *count) = (*sum + form.ms * 1e3, *count + 1.0);
        }
    }
    let count = kinds.len();
    for ((key, _), (density, sums)) in kinds {
        let forms = sums.into_iter().map(|(v, (sum, n))| (v, sum / n)).collect();
        tuned.record(isa, audit.threads, &key, density, forms);
    }
    Ok(count)
}
