//! How images become inputs: the flags of every verb that reads them.

use clap::Args;
use lacuna_prune::data::Preset;

/// What a model's images went through when it was trained.
#[derive(Args)]
pub struct Preprocessing {
    /// Preprocessing: imagenet, cifar10 or fashion-mnist [default: by the input's shape]
    #[arg(long, value_parser = preset)]
    pub preset: Option<Preset>,
    /// Means by channel of pixels in 0..1, instead of the preset's
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviations by channel, instead of the preset's
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    pub std: Option<Vec<f32>>,
    /// Resize every image's shorter side to N pixels, then crop the centre
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
}

/// The preset of a name.
fn preset(name: &str) -> Result<Preset, String> {
    let found = Preset::ALL.into_iter().find(|p| p.name() == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = Preset::ALL.iter().map(|p| p.name()).collect();
        format!("one of {}", names.join(", "))
    })
}
