//! The globals that a state dict may refer to, and what they build.

use lacuna::DType;

/// A global that the pickle machine knows. None of them is called: each stands for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

/// The element type of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    I16,
    Bool,
    /// A type that weights may have as it is.
    Plain(DType),
}

impl Element {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Element::F64 => 8,
            Element::I16 => 2,
            Element::Bool => 1,
            Element::Plain(d) => d.size(),
        }
    }
}

/// A run of elements, by its key in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub element: Element,
    pub key: &'a str,
    pub elements: usize,
}

/// A view of a storage; sizes, strides and the offset count elements.
#[derive(Clone, Debug)]
pub(super) struct TensorRef<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Global {
    /// The global of this name; an error that names it when it is not one of those known.
    pub fn named(module: &str, name: &str) -> Result<Global, String> {
        use Element::{Bool, F64, I16, Plain};
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "FloatStorage") => Global::Storage(Plain(DType::F32)),
            ("torch", "HalfStorage") => Global::Storage(Plain(DType::F16)),
            ("torch", "BFloat16Storage") => Global::Storage(Plain(DType::BF16)),
            ("torch", "DoubleStorage") => Global::Storage(F64),
            ("torch", "LongStorage") => Global::Storage(Plain(DType::I64)),
            ("torch", "IntStorage") => Global::Storage(Plain(DType::I32)),
            ("torch", "ShortStorage") => Global::Storage(I16),
            ("torch", "CharStorage") => Global::Storage(Plain(DType::I8)),
            ("torch", "ByteStorage") => Global::Storage(Plain(DType::U8)),
            ("torch", "BoolStorage") => Global::Storage(Bool),
            _ => {
                return Err(format!(
                    "refers to `{}.{}`, which a state dict does not need; nothing is executed, \
                     save a plain state dict of tensors instead",
                    clip(module),
                    clip(name)
                ));
            }
        })
    }
}

/// At most the first hundred characters.
fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}
