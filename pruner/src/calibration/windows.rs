//! Windows drawn from a text.

use super::Calibration;
use crate::random::Random;
use crate::{Error, Result};

/// The windows that `settings` draws from `tokens`: those to fit, then those that are held out. The text is cut
/// into windows that do not overlap, and the seed picks among them.
///
/// # Errors
/// When the text is too short for so many.
pub fn windows<'t>(settings: &Calibration, tokens: &'t [u32]) -> Result<Vec<&'t [u32]>> {
    settings.check()?;
    let wanted = settings.windows.saturating_add(settings.held_out);
    let there = tokens.len() / settings.window;
    if there < wanted {
        return Err(Error::Calibration(format!(
            "the text has {} tokens, {there} windows of {}; {wanted} are asked for ({} and {} held out)",
            tokens.len(),
            settings.window,
            settings.windows,
            settings.held_out
        )));
    }
    let mut order: Vec<usize> = (0..there).collect();
    Random::new(settings.seed, &[]).shuffle(&mut order);
    let at = |i: &usize| &tokens[i * settings.window..][..settings.window];
    Ok(order[..wanted].iter().map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_depend_on_the_seed() {
        let tokens: Vec<u32> = (0..103).collect();
        let settings = Calibration {
            windows: 7,
            window: 10,
            held_out: 3,
            ..Calibration::default()
        };
        let drawn = windows(&settings, &tokens).unwrap();
        let mut firsts: Vec<u32> = drawn.iter().map(|w| w[0]).collect();
        assert_ne!(firsts, (0..10).map(|i| i * 10).collect::<Vec<_>>());
        let other = Calibration {
            seed: 1,
            ..settings.clone()
        };
        assert_ne!(drawn, windows(&other, &tokens).unwrap());
        firsts.sort();
        assert_eq!(firsts, (0..10).map(|i| i * 10).collect::<Vec<_>>());
        let more = Calibration {
            held_out: 4,
            ..settings
        };
        let e = windows(&more, &tokens).unwrap_err().to_string();
        assert!(
            e.contains("103 tokens") && e.contains("11 are asked for"),
            "{e}"
        );
    }
}
