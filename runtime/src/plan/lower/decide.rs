//! Which form a layer takes: the one that the app asks for, the one measured fastest, or the one estimated so.

use super::super::choose::{self, Decision, Layer};
use super::super::form::{Candidate, Chosen, Variant};
use super::Context;
use crate::{Error, Result};

/// Decides for the weight of a unit, and lists the legal forms. `key` is what measurements know the layer by.
pub(super) fn decide(
    context: &Context<'_>,
    layer: &Layer,
    key: &str,
    density: f64,
) -> Result<(Decision, Vec<Candidate>)> {
    let legal = choose::candidates(layer, context.options.dense, &context.options.costs);
    let decision = match asked(context, layer, &legal, density)? {
        Some(asked) => asked,
        None => measured(context, layer, &legal, key, density).unwrap_or_else(|| Decision {
            variant: legal[0].variant,
            by: Chosen::Estimated,
            reason: choose::reason(layer, &legal, context.options.dense),
        }),
    };
    Ok((decision, legal))
}

fn asked(
    context: &Context<'_>,
    layer: &Layer,
    legal: &[Candidate],
    density: f64,
) -> Result<Option<Decision>> {
    let name = &context.unit.inputs[1];
    let Some(asked) = context.options.forms.get(name) else {
        return Ok(None);
    };
    let found = asked.iter().find(|v| choose::is_legal(layer, legal, **v));
    let Some(&variant) = found else {
        let list = |forms: &mut dyn Iterator<Item = Variant>| {
            forms.map(|v| v.to_string()).collect::<Vec<_>>().join(", ")
        };
        return Err(Error::Option(format!(
            "weight `{name}` of node `{}`: none of the forms asked for is legal ({}); legal are {}",
            context.unit.node.name,
            list(&mut asked.iter().copied()),
            list(&mut legal.iter().map(|c| c.variant)),
        )));
    };
    let words = variant.form.words();
    Ok(Some(Decision {
        variant,
        by: Chosen::Asked,
        reason: format!("density {density:.2}: {words} was asked for"),
    }))
}

fn measured(
    context: &Context<'_>,
    layer: &Layer,
    legal: &[Candidate],
    key: &str,
    density: f64,
) -> Option<Decision> {
    let allowed = |v: Variant| {
        let listed = legal.iter().find(|c| c.variant.form == v.form);
        choose::is_legal(layer, legal, v) && listed.is_some_and(|c| !c.copy)
    };
    let times = context.measured(key, density)?;
    let mut forms = times.iter().filter(|(v, _)| allowed(*v));
    let &(variant, time) = forms.next()?;
    let next = forms.find(|(v, _)| v.form != variant.form);
    let than = next.map_or(String::new(), |(v, t)| {
        format!(" {:.1}x faster than {}", t / time, v.form.words())
    });
    let words = variant.form.words();
    Some(Decision {
        variant,
        by: Chosen::Measured,
        reason: format!("density {density:.2}: {words}, measured{than}"),
    })
}
