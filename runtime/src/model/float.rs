//! Attributes that may be infinite, for which JSON has no number: they become strings.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Float {
    Finite(f32),
    Named(Name),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Name {
    #[serde(rename = "inf")]
    Inf,
    #[serde(rename = "-inf")]
    MinusInf,
    #[serde(rename = "nan")]
    Nan,
}

impl From<f32> for Float {
    fn from(value: f32) -> Float {
        match value {
            f32::INFINITY => Float::Named(Name::Inf),
            f32::NEG_INFINITY => Float::Named(Name::MinusInf),
            v if v.is_nan() => Float::Named(Name::Nan),
            v => Float::Finite(v),
        }
    }
}

impl From<Float> for f32 {
    fn from(value: Float) -> f32 {
        match value {
            Float::Finite(v) => v,
            Float::Named(Name::Inf) => f32::INFINITY,
            Float::Named(Name::MinusInf) => f32::NEG_INFINITY,
            Float::Named(Name::Nan) => f32::NAN,
        }
    }
}

pub fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    Float::from(*value).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Float::deserialize(deserializer).map(f32::from)
}

pub mod option {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Float::from).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f32>, D::Error> {
        Ok(Option::<Float>::deserialize(deserializer)?.map(f32::from))
    }
}
