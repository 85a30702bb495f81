//! Named architectures: the graph that a state dict was saved from, with every size taken from its
//! tensors.

mod builder;
mod cifar_resnet;
mod fashion_cnn;
mod mobilenet_v2;
mod resnet;

use crate::source::Source;
use crate::{Error, Options, Result};
use builder::Builder;
use lacuna::Model;
use lacuna::model::Weights;

/// One family of networks.
struct Architecture {
    /// The name that `Options::arch` takes.
    name: &'static str,
    /// What it is, in a few words.
    about: &'static str,
    /// Whether a state dict with these tensors is of this family.
    detect: fn(&Weights) -> bool,
    /// Builds the graph and returns the name of the member, such as `resnet50`.
    build: fn(&mut Builder<'_>) -> Result<String, String>,
}

const ALL: [Architecture; 4] = [
    Architecture {
        name: "cifar-resnet",
        about: "CIFAR ResNets of 6n+2 layers, shortcut option A or B",
        detect: cifar_resnet::detect,
        build: cifar_resnet::build,
    },
    Architecture {
        name: "fashion-cnn",
        about: "four convolutions and a linear layer on 28x28 images",
        detect: fashion_cnn::detect,
        build: fashion_cnn::build,
    },
    Architecture {
        name: "mobilenet-v2",
        about: "torchvision's MobileNetV2 of any width",
        detect: mobilenet_v2::detect,
        build: mobilenet_v2::build,
    },
    Architecture {
        name: "resnet",
        about: "torchvision's ResNet-18 to -152, ResNeXt and wide ResNets",
        detect: resnet::detect,
        build: resnet::build,
    },
];

/// Names and descriptions of the architectures that state dicts are mapped onto. A member of a
/// family may be asked for by its own name: `resnet50`, `cifar-resnet32`.
pub fn architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|a| (a.name, a.about))
}

fn known() -> String {
    let list: Vec<String> = architectures()
        .map(|(name, about)| format!("{name} ({about})"))
        .collect();
    list.join(", ")
}

/// Puts the tensors of a state dict under the graph of its architecture.
pub(crate) fn build(source: &Source, tensors: Weights, options: &Options) -> Result<Model> {
    let fail = |arch: &str, what: String| Error::Arch {
        path: source.path.clone(),
        arch: arch.to_owned(),
        what,
    };
    let asked = options.arch.as_deref().map(spelled);
    let found = match &asked {
        Some(name) => ALL
            .iter()
            .find(|a| name == a.name || family(name) == a.name)
            .ok_or_else(|| fail(name, format!("unknown; known: {}", known())))?,
        None => {
            let mut fits = ALL.iter().filter(|a| (a.detect)(&tensors));
            match (fits.next(), fits.next()) {
                (Some(one), None) => one,
                _ => {
                    let names: Vec<&str> = tensors.keys().take(4).map(String::as_str).collect();
                    return Err(fail(
                        "not named",
                        format!(
                            "the tensors ({} ...) tell none; name one of: {}",
                            names.join(", "),
                            known()
                        ),
                    ));
                }
            }
        }
    };
    let mut builder = Builder::new(&tensors, options.input.as_deref());
    let member = (found.build)(&mut builder).map_err(|what| fail(found.name, what))?;
    if let Some(asked) = asked
        && asked != found.name
        && asked != member
    {
        return Err(fail(&asked, format!("the tensors are those of {member}")));
    }
    let graph = builder
        .finish(member.clone())
        .map_err(|what| fail(&member, what))?;
    let mut weights = tensors;
    weights.retain(|name, _| !is_counter(name));
    Model::new(graph, weights).map_err(|e| source.model_error(e))
}

/// The name as this module spells it.
fn spelled(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// The name without the depth behind it.
fn family(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// Whether a tensor only counts training steps.
fn is_counter(name: &str) -> bool {
    name.ends_with(".num_batches_tracked") || name == "num_batches_tracked"
}
