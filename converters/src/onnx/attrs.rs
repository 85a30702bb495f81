//! The attributes of a node, read by name and type.

use super::proto::{AttributeProto, NodeProto};

/// The attributes of one node. Those that nobody asked for are an error at the end.
pub(super) struct Attrs<'a> {
    node: &'a NodeProto,
    asked: Vec<&'static str>,
}

/// Values of `AttributeProto.type`.
mod kind {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const STRING: i32 = 3;
    pub const TENSOR: i32 = 4;
    pub const FLOATS: i32 = 6;
    pub const INTS: i32 = 7;
    pub const SPARSE_TENSOR: i32 = 11;
}

impl<'a> Attrs<'a> {
    pub fn new(node: &'a NodeProto) -> Attrs<'a> {
        Attrs {
            node,
            asked: Vec::new(),
        }
    }

    fn find(
        &mut self,
        name: &'static str,
        kind: i32,
    ) -> Result<Option<&'a AttributeProto>, String> {
        self.asked.push(name);
        let found = self.node.attribute.iter().find(|a| a.name == name);
        match found {
            // Files of the first versions leave the type out.
            Some(a) if a.r#type != kind && a.r#type != 0 => Err(format!(
                "attribute `{name}` has type {}, expected {kind}",
                a.r#type
            )),
            found => Ok(found),
        }
    }

    pub fn int(&mut self, name: &'static str) -> Result<Option<i64>, String> {
        Ok(self.find(name, kind::INT)?.map(|a| a.i))
    }

    pub fn float(&mut self, name: &'static str) -> Result<Option<f32>, String> {
        Ok(self.find(name, kind::FLOAT)?.map(|a| a.f))
    }

    pub fn ints(&mut self, name: &'static str) -> Result<Option<&'a [i64]>, String> {
        Ok(self.find(name, kind::INTS)?.map(|a| &a.ints[..]))
    }

    pub fn floats(&mut self, name: &'static str) -> Result<Option<&'a [f32]>, String> {
        Ok(self.find(name, kind::FLOATS)?.map(|a| &a.floats[..]))
    }

    pub fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, String> {
        match self.find(name, kind::STRING)? {
            None => Ok(None),
            Some(a) => match std::str::from_utf8(&a.s) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(format!("attribute `{name}` is no text")),
            },
        }
    }

    pub fn tensor(
        &mut self,
        name: &'static str,
    ) -> Result<Option<&'a super::proto::TensorProto>, String> {
        Ok(self.find(name, kind::TENSOR)?.and_then(|a| a.t.as_ref()))
    }

    pub fn sparse(
        &mut self,
        name: &'static str,
    ) -> Result<Option<&'a super::proto::SparseTensorProto>, String> {
        let found = self.find(name, kind::SPARSE_TENSOR)?;
        Ok(found.and_then(|a| a.sparse_tensor.as_ref()))
    }

    /// An integer that is 0 or 1.
    pub fn flag(&mut self, name: &'static str, default: bool) -> Result<bool, String> {
        match self.int(name)? {
            None => Ok(default),
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(v) => Err(format!("attribute `{name}` is {v}, expected 0 or 1")),
        }
    }

    /// Marks attributes that mean nothing at inference as read.
    pub fn ignore(&mut self, names: &[&'static str]) {
        self.asked.extend(names);
    }

    /// An error for attributes that nobody asked for.
    pub fn finish(&self) -> Result<(), String> {
        let known = |a: &&AttributeProto| self.asked.contains(&a.name.as_str());
        match self.node.attribute.iter().find(|a| !known(a)) {
            None => Ok(()),
            Some(a) => Err(format!(
                "attribute `{}` is not supported; supported: {}",
                a.name,
                if self.asked.is_empty() {
                    "none".to_owned()
                } else {
                    self.asked.join(", ")
                }
            )),
        }
    }
}
