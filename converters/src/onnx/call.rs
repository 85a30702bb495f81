//! One node of the file on its way into the graph.

use super::attrs::Attrs;
use super::ints::{Int, Ints};
use super::value::{Constant, Value};
use lacuna::model::Padding;
use std::rc::Rc;

/// A node with its inputs resolved.
pub(super) struct Call<'a> {
    /// A name that no other node has.
    pub name: String,
    /// The operator as the file spells it.
    pub op: &'a str,
    /// `None` where an optional input is absent.
    pub inputs: Vec<Option<Value>>,
    pub attrs: Attrs<'a>,
    /// The name of the first output.
    pub output: &'a str,
    /// The version of the operator set.
    pub opset: i64,
}

impl Call<'_> {
    /// An input that may be absent.
    pub fn optional(&self, i: usize) -> Option<&Value> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// An input that must be there.
    pub fn input(&self, i: usize) -> Result<&Value, String> {
        self.optional(i)
            .ok_or_else(|| format!("input {i} is missing"))
    }

    /// Refuses more than `most` inputs.
    pub fn at_most(&self, most: usize) -> Result<(), String> {
        match self.inputs.len() {
            n if n > most => Err(format!("{n} inputs; at most {most}")),
            _ => Ok(()),
        }
    }

    /// An input that must be a floating-point constant.
    pub fn weight(&self, i: usize) -> Result<&Constant, String> {
        match self.input(i)? {
            Value::Weight(c) => Ok(c),
            Value::Ints(_) => Err(format!(
                "input {i} holds integers; expected f32, f16 or bf16"
            )),
            Value::Tensor { name, .. } => Err(format!(
                "input {i}, `{name}`, is computed at run time; {} takes a constant there",
                self.op
            )),
        }
    }

    /// An optional input that must be a floating-point constant of one element.
    pub fn scalar(&self, i: usize) -> Result<Option<f32>, String> {
        if self.optional(i).is_none() {
            return Ok(None);
        }
        match self.weight(i)?.weight.to_f32().as_deref() {
            Some([value]) => Ok(Some(*value)),
            _ => Err(format!("input {i} is no single number")),
        }
    }

    /// An optional input that holds integers, symbolic ones included.
    pub fn shape_list(&self, i: usize) -> Result<Option<Rc<Ints>>, String> {
        match self.optional(i) {
            None => Ok(None),
            Some(Value::Ints(ints)) if ints.shape.len() <= 1 => Ok(Some(ints.clone())),
            Some(Value::Ints(ints)) => Err(format!(
                "input {i} has shape {:?}, expected a list",
                ints.shape
            )),
            Some(_) => Err(format!(
                "input {i} must be integers that are known before a run"
            )),
        }
    }

    /// An optional input that holds known integers.
    pub fn ints(&self, i: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(list) = self.shape_list(i)? else {
            return Ok(None);
        };
        let known = list.known();
        let shown = || list.items.iter().find(|n| n.known().is_none());
        match known {
            Some(list) => Ok(Some(list)),
            None => Err(format!(
                "input {i} depends on the symbol {}",
                shown().map_or_else(String::new, Int::to_string)
            )),
        }
    }

    /// Axes: an attribute in operator sets before `since`, input 1 from then on.
    pub fn axes(&mut self, since: i64) -> Result<Option<Vec<i64>>, String> {
        if self.opset < since {
            self.at_most(1)?;
            Ok(self.attrs.ints("axes")?.map(<[i64]>::to_vec))
        } else {
            self.at_most(2)?;
            self.ints(1)
        }
    }

    /// Two sizes of an attribute, both 1 when it is absent.
    pub fn pair(&mut self, name: &'static str) -> Result<[usize; 2], String> {
        match self.attrs.ints(name)? {
            None => Ok([1; 2]),
            Some(list) => two(list).map_err(|e| format!("attribute `{name}`: {e}")),
        }
    }

    /// The attributes `auto_pad` and `pads`.
    pub fn padding(&mut self) -> Result<Padding, String> {
        let pads = match self.attrs.ints("pads")? {
            None => [0; 4],
            Some(list) => {
                let sizes: Vec<usize> = list
                    .iter()
                    .map(|&p| usize::try_from(p).map_err(|_| format!("negative pads {list:?}")))
                    .collect::<Result<_, _>>()?;
                <[usize; 4]>::try_from(sizes)
                    .map_err(|_| format!("pads {list:?}; only two spatial axes are supported"))?
            }
        };
        let padding = match self.attrs.text("auto_pad")? {
            None | Some("" | "NOTSET") => return Ok(Padding::Explicit(pads)),
            Some("VALID") => Padding::NONE,
            Some("SAME_UPPER") => Padding::SameUpper,
            Some("SAME_LOWER") => Padding::SameLower,
            Some(other) => {
                return Err(format!(
                    "auto_pad `{other}`; supported: NOTSET, VALID, SAME_UPPER, SAME_LOWER"
                ));
            }
        };
        if pads != [0; 4] {
            return Err(format!("both auto_pad and pads {pads:?}"));
        }
        Ok(padding)
    }
}

/// The two sizes of two spatial axes.
pub(super) fn two(list: &[i64]) -> Result<[usize; 2], String> {
    let sizes: Vec<usize> = list
        .iter()
        .map(|&n| usize::try_from(n).map_err(|_| format!("{list:?}")))
        .collect::<Result<_, _>>()?;
    <[usize; 2]>::try_from(sizes)
        .map_err(|_| format!("{list:?}; only two spatial axes are supported"))
}
