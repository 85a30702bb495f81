//! Recipes of the methods that cut whole channels: replayable to the same bytes, and hashed into the output.

use crate::groups::{ChannelPlan, Criterion, Groups, Limits, Scope, Target};
use crate::origin::Origin;
use crate::pagcp::PagcpSettings;
use crate::recipe::{SCHEMA, parse};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Everything that decides the bytes of a cut network, given the network: one of the two methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelRecipe {
    /// The version of the format: 1.
    pub schema: u32,
    /// What is cut, where the recipe says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Origin>,
    /// Units go by their magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<ChannelSettings>,
    /// Units go as every task allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagcp: Option<PagcpSettings>,
}

/// How units go by their magnitudes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSettings {
    /// What units are ranked by.
    pub criterion: Criterion,
    /// How the units of different groups compare.
    pub scope: Scope,
    /// Whether biases and shifts of removed channels go with them, instead of into the next layer.
    #[serde(default)]
    pub drop_constants: bool,
    /// Patterns of weights whose outputs stay.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// What may be left.
    pub target: Target,
    /// What every group keeps.
    #[serde(default)]
    pub limits: Limits,
}

impl ChannelSettings {
    /// The units that go; what is ignored is marked in `groups`.
    ///
    /// # Errors
    /// When a pattern matches nothing, or the target cannot be met.
    pub fn plan(&self, groups: &mut Groups<'_>) -> Result<ChannelPlan> {
        self.limits.check()?;
        groups.ignore(&self.ignore)?;
        ChannelPlan::new(
            groups,
            self.criterion,
            self.scope,
            self.target,
            &self.limits,
        )
    }
}

impl From<ChannelSettings> for ChannelRecipe {
    fn from(channels: ChannelSettings) -> ChannelRecipe {
        ChannelRecipe {
            schema: SCHEMA,
            model: None,
            channels: Some(channels),
            pagcp: None,
        }
    }
}

impl From<PagcpSettings> for ChannelRecipe {
    fn from(pagcp: PagcpSettings) -> ChannelRecipe {
        ChannelRecipe {
            schema: SCHEMA,
            model: None,
            channels: None,
            pagcp: Some(pagcp),
        }
    }
}

impl ChannelRecipe {
    /// Whether a text is such a recipe, and not that of a method that sets weights to zero.
    pub fn is_one(text: &str) -> bool {
        let table: Option<toml::Table> = text.parse().ok();
        table.is_some_and(|t| t.contains_key("channels") || t.contains_key("pagcp"))
    }

    /// Reads a recipe. Unknown keys and other versions are refused.
    ///
    /// # Errors
    /// When the text is none, with its line.
    pub fn from_toml(text: &str) -> Result<ChannelRecipe> {
        let recipe: ChannelRecipe = parse(text, |r: &ChannelRecipe| r.schema)?;
        match (&recipe.channels, &recipe.pagcp) {
            (Some(_), None) | (None, Some(_)) => Ok(recipe),
            _ => Err(Error::Recipe(
                "give one of the tables [channels] and [pagcp]".into(),
            )),
        }
    }

    /// The canonical form: every key in one order, defaults written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// The SHA-256 of the canonical form, without where the model and the data lie.
    pub fn hash(&self) -> String {
        let model = self.model.as_ref().map(Origin::anywhere);
        let recipe = ChannelRecipe {
            schema: self.schema,
            model: model.filter(|m| *m != Origin::default()),
            channels: self.channels.clone(),
            pagcp: self.pagcp.as_ref().map(|p| PagcpSettings {
                train: p.train.anywhere(),
                ..p.clone()
            }),
        };
        crate::recipe::sha256(&recipe.to_toml())
    }
}
