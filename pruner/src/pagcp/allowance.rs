//! How much each step of a pass may cost.

/// The factor `lambda` with which the allowances `first * lambda^i` of so many steps use up `inflation`:
/// `prod (1 + first * lambda^i) = inflation`. The product rises with the factor, so it is found by halves.
///
/// `None` where no factor does it: there are no steps, or the first alone allows more.
pub(super) fn decay(first: f64, inflation: f64, steps: usize) -> Option<f64> {
    let goal = inflation.ln();
    let used = |factor: f64| -> f64 {
        let mut allowance = first;
        let mut sum = 0.0;
        for _ in 0..steps {
            sum += allowance.ln_1p();
            allowance *= factor;
        }
        sum
    };
    let least = used(0.0);
    if steps == 0 || least.is_nan() || goal.is_nan() || least > goal {
        return None;
    }
    if steps == 1 {
        return Some(1.0);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while used(high) < goal {
        high *= 2.0;
        if high > 1e12 {
            return None;
        }
    }
    // As close as f64 comes.
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return Some(low);
        }
        match used(middle) <= goal {
            true => low = middle,
            false => high = middle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Found independently, by Newton's method in higher precision.
    #[test]
    fn factors_are_those_of_the_equation() {
        for (steps, factor) in [
            (10, 1.253032),
            (30, 1.001747),
            (60, 0.973794),
            (80, 0.969914),
        ] {
            let found = decay(0.06, 6.0, steps).unwrap();
            assert!((found - factor).abs() < 1e-6, "{steps}: {found}");
        }
    }

    proptest! {
        #[test]
        fn the_product_is_the_inflation_and_never_more(
            first in 0.001f64..0.5, more in 1.0f64..20.0, steps in 1usize..200
        ) {
            let inflation = (1.0 + first) * more;
            let factor = decay(first, inflation, steps).unwrap();
            let product: f64 = (0..steps).map(|i| 1.0 + first * factor.powi(i as i32)).product();
            prop_assert!(product <= inflation * (1.0 + 1e-9), "{product} of {inflation}");
            prop_assert!(steps == 1 || product >= inflation * (1.0 - 1e-9), "{product} of {inflation}");
        }
    }

    #[test]
    fn what_the_first_step_alone_exceeds_has_no_factor() {
        assert_eq!(decay(0.5, 1.4, 10), None);
        assert_eq!(decay(0.1, 2.0, 0), None);
        assert_eq!(decay(f64::NAN, 2.0, 3), None);
    }
}
