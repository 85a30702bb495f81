//! Named architectures: the graph that a state dict was saved from, with every size taken from its
//! tensors; and their state dicts before any training.

mod builder;
mod cifar_resnet;
mod fashion_cnn;
mod fastgrnn;
mod fresh;
mod mobilenet_v1;
mod mobilenet_v2;
mod resnet;
mod wide_resnet;

use crate::{Error, Options, Result};
use builder::Builder;
use fresh::Fresh;
use lacuna::Model;
use lacuna::model::Weights;
use std::path::Path;

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
    /// Makes the tensors of a member by its name, or tells that it has none of this name.
    fresh: fn(&str, &mut Fresh) -> bool,
}

const ALL: [Architecture; 7] = [
    Architecture {
        name: "cifar-resnet",
        about: "CIFAR ResNets of 6n+2 layers, shortcut option A or B",
        detect: cifar_resnet::detect,
        build: cifar_resnet::build,
        fresh: cifar_resnet::fresh,
    },
    Architecture {
        name: "fashion-cnn",
        about: "four convolutions and a linear layer on 28x28 images",
        detect: fashion_cnn::detect,
        build: fashion_cnn::build,
        fresh: fashion_cnn::fresh,
    },
    Architecture {
        name: "fastgrnn",
        about: "FastGRNN, full and low rank, one step with its state",
        detect: fastgrnn::detect,
        build: fastgrnn::build,
        fresh: fastgrnn::fresh,
    },
    Architecture {
        name: "mobilenet-v1",
        about: "MobileNet-V1",
        detect: mobilenet_v1::detect,
        build: mobilenet_v1::build,
        fresh: mobilenet_v1::fresh,
    },
    Architecture {
        name: "mobilenet-v2",
        about: "torchvision's MobileNetV2 of any width",
        detect: mobilenet_v2::detect,
        build: mobilenet_v2::build,
        fresh: mobilenet_v2::fresh,
    },
    Architecture {
        name: "resnet",
        about: "torchvision's ResNet-18 to -152, ResNeXt and wide ResNets",
        detect: resnet::detect,
        build: resnet::build,
        fresh: resnet::fresh,
    },
    Architecture {
        name: "wrn",
        about: "wide ResNets for CIFAR, such as wrn-28-8",
        detect: wide_resnet::detect,
        build: wide_resnet::build,
        fresh: wide_resnet::fresh,
    },
];

/// Names and descriptions of the architectures that state dicts are mapped onto. A member of a
/// family may be asked for by its own name: `resnet-50`, `resnet-32` (that of CIFAR), `wrn-28-8`.
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
pub(crate) fn build(path: &Path, tensors: Weights, options: &Options) -> Result<Model> {
    let fail = |arch: &str, what: String| Error::Arch {
        path: path.to_path_buf(),
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
    let tensors = match found.name {
        "fastgrnn" => fastgrnn::tidy(tensors).map_err(|what| fail(found.name, what))?,
        _ => tensors,
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
    Model::new(graph, weights).map_err(|source| Error::Model {
        path: path.to_path_buf(),
        source,
    })
}

/// The network of this name before any training, its weights drawn from `seed`.
pub(crate) fn fresh(name: &str, seed: u64, options: &Options) -> Result<Model> {
    let asked = spelled(name);
    for architecture in &ALL {
        let mut fresh = Fresh::new(seed);
        if (architecture.fresh)(&asked, &mut fresh) {
            let arch = Some(architecture.name.to_owned());
            let options = Options {
                arch,
                ..options.clone()
            };
            return build(Path::new("random weights"), fresh.tensors, &options);
        }
    }
    Err(Error::Arch {
        path: "random weights".into(),
        arch: name.to_owned(),
        what: "names no network; known are fashion-cnn, fastgrnn-INPUTS-HIDDEN-CLASSES[-RANK_W-RANK_U], mobilenet-v1, mobilenet-v2, resnet-18 to resnet-152, resnet-20 to \
               resnet-110 (CIFAR) and wrn-DEPTH-WIDTH"
            .into(),
    })
}

/// The name as this module spells it: `resnet50`, and `cifar-resnet32` where only CIFAR has the depth.
fn spelled(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    match depth(&name, &["cifar-resnet", "resnet"]) {
        Some(n) if name.starts_with("cifar") || !resnet::DEPTHS.contains(&n) => {
            format!("cifar-resnet{n}")
        }
        Some(n) => format!("resnet{n}"),
        None => name,
    }
}

/// The number behind a family's name, after a dash or none.
fn depth(name: &str, families: &[&str]) -> Option<usize> {
    let rest = families.iter().find_map(|f| name.strip_prefix(f))?;
    rest.strip_prefix('-').unwrap_or(rest).parse().ok()
}

/// The name without the sizes behind it.
fn family(name: &str) -> &str {
    for sized in ["wrn", "fastgrnn"] {
        if name.strip_prefix(sized).is_some_and(|n| n.starts_with('-')) {
            return sized;
        }
    }
    name.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// Whether a tensor only counts training steps.
fn is_counter(name: &str) -> bool {
    name.ends_with(".num_batches_tracked") || name == "num_batches_tracked"
}
