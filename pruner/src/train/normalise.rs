//! The normalisation of sequences: two nodes in front of a model, so that whoever runs it needs nothing else.

use super::prepare::refuse;
use super::settings::DataSettings;
use crate::Result;
use crate::data::Sequences;
use lacuna::model::{Dim, Node, Op};
use lacuna::{Model, Weight};

/// The weights of the nodes, as the architecture `fastgrnn` names them.
const NAMES: [&str; 2] = ["input.mean", "input.std"];

/// The model behind `(x - mean) / std` by channel. Statistics are those of the settings, or of `data`; a model that
/// has its own keeps them.
pub(super) fn normalise(model: &Model, data: &Sequences, settings: &DataSettings) -> Result<Model> {
    if settings.preset.is_some() || settings.size.is_some() {
        return Err(refuse("a preset or a size is for images"));
    }
    let given = [&settings.mean, &settings.std];
    if data.is_empty() {
        return Err(refuse(format!("nothing to train on: {}", data.describe())));
    }
    let input = model.graph().inputs.iter().find(|i| i.carried.is_none());
    let Some(input) = input else {
        return Err(refuse("the model takes nothing"));
    };
    let channels = data.channels();
    if let Some(Dim::Fixed(n)) = input.shape.get(1)
        && *n != channels
    {
        return Err(refuse(format!(
            "the model takes steps of {n} channels, those of {} have {channels}",
            data.describe()
        )));
    }
    if NAMES.iter().any(|n| model.weights().contains_key(*n)) {
        return match given {
            [None, None] => Ok(model.clone()),
            _ => Err(refuse("the model has a normalisation of its own")),
        };
    }
    let mut graph = model.graph().clone();
    let input = input.name.clone();
    let found = match given {
        [Some(_), Some(_)] => None,
        _ => Some(data.statistics()?),
    };
    let mut weights = model.weights().clone();
    let mut statistics = Vec::new();
    for (i, given) in given.into_iter().enumerate() {
        let values = match (given, &found) {
            (Some(given), _) if given.len() == 1 => vec![given[0]; channels],
            (Some(given), _) => given.clone(),
            (None, found) => found.as_ref().map(|f| f[i].clone()).unwrap_or_default(),
        };
        let fits = |x: &f32| x.is_finite() && (i == 0 || *x > 0.0);
        if values.len() != channels || !values.iter().all(fits) {
            return Err(refuse(format!(
                "`{}` {values:?} for {channels} channels",
                NAMES[i]
            )));
        }
        statistics.push(Weight::from_f32(&[channels], &values));
    }
    let parts = ["input.centre", "input.scale"];
    for node in &mut graph.nodes {
        for name in node.inputs.iter_mut().filter(|n| **n == input) {
            *name = parts[1].to_owned();
        }
    }
    let mut from = input;
    for (i, (op, statistic)) in [Op::Sub, Op::Div].into_iter().zip(statistics).enumerate() {
        let node = Node {
            name: parts[i].to_owned(),
            op,
            inputs: vec![from, NAMES[i].to_owned()],
            output: parts[i].to_owned(),
        };
        from = node.output.clone();
        graph.nodes.insert(i, node);
        weights.insert(NAMES[i].to_owned(), statistic);
    }
    let mut normalised = Model::new(graph, weights)?;
    normalised.metadata = model.metadata.clone();
    Ok(normalised)
}
