//! Forms: how a layer's weights are executed. Their names are an interface: tables of forms, files of
//! measurements and reports all spell them the same way.

use crate::model::Storage;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How a layer's weights are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Form {
    /// Every element, in register tiles over an activation panel.
    DensePanel,
    /// Every element, in register tiles whose vectors are output rows: no lane is lost where columns are few.
    DenseByRow,
    /// The non-zeros, as index streams over an activation panel.
    StreamPanel,
    /// The same, two rows at a time: what both have is loaded once.
    PairPanel,
    /// Every element of a linear layer, in vectors of outputs: activations are read as they lie.
    DenseOutputs,
    /// The non-zeros of sixteen rows at a time, each lane's input looked up in a window.
    LookupRows,
    /// Every element, as dot products from the bytes of the model.
    DenseRows,
    /// Mask and non-zeros, as dot products from the bytes of the model.
    BitmaskRows,
    /// Every element, expanded from the bytes of the model a block at a time for all columns.
    DenseChunk,
    /// Mask and non-zeros, expanded to every element likewise.
    BitmaskChunk,
    /// Two weights of each four columns, as dot products with the inputs that they select.
    TwoOfFourRows,
    /// The same at many columns: each weight, or pair of them, with the lines of a packed panel that it selects.
    TwoOfFourChunk,
}

impl Form {
    /// Every form.
    pub const ALL: [Form; 12] = [
        Form::DensePanel,
        Form::DenseByRow,
        Form::StreamPanel,
        Form::PairPanel,
        Form::DenseOutputs,
        Form::LookupRows,
        Form::DenseRows,
        Form::BitmaskRows,
        Form::DenseChunk,
        Form::BitmaskChunk,
        Form::TwoOfFourRows,
        Form::TwoOfFourChunk,
    ];

    /// Its name in tables and files.
    pub const fn id(self) -> &'static str {
        match self {
            Form::DensePanel => "dense-panel",
            Form::DenseByRow => "dense-by-row",
            Form::StreamPanel => "stream-panel",
            Form::PairPanel => "pair-panel",
            Form::DenseOutputs => "dense-outputs",
            Form::LookupRows => "lookup-rows",
            Form::DenseRows => "dense-rows",
            Form::BitmaskRows => "bitmask-rows",
            Form::DenseChunk => "dense-chunk",
            Form::BitmaskChunk => "bitmask-chunk",
            Form::TwoOfFourRows => "2of4-rows",
            Form::TwoOfFourChunk => "2of4-chunk",
        }
    }

    /// The word for this form in kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            form if form.is_dense() => "dense",
            Form::StreamPanel => "stream",
            Form::PairPanel => "pairs",
            Form::LookupRows => "lookup",
            Form::TwoOfFourRows | Form::TwoOfFourChunk => "2of4",
            _ => "bitmask",
        }
    }

    /// What the form does, for people.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Form::DensePanel => "dense, packed",
            Form::DenseByRow => "dense, packed by row",
            Form::DenseOutputs => "dense, packed by outputs",
            Form::LookupRows => "non-zeros of sixteen rows at a time",
            Form::DenseRows => "dense",
            Form::DenseChunk => "dense, from the file",
            Form::StreamPanel => "a stream of non-zeros",
            Form::PairPanel => "a stream of non-zeros, rows in pairs",
            Form::BitmaskRows => "the bitmask",
            Form::BitmaskChunk => "the bitmask, expanded",
            Form::TwoOfFourRows => "two of each four",
            Form::TwoOfFourChunk => "two of each four, over a panel",
        }
    }

    /// Whether it executes rows of the model's own bytes, or of a copy in one of the model's encodings, at few
    /// columns; of many columns chunks do.
    pub(super) const fn is_rows(self) -> bool {
        matches!(
            self,
            Form::DenseRows | Form::BitmaskRows | Form::TwoOfFourRows
        )
    }

    /// The storage of the weights that rows and chunks execute.
    pub(super) const fn storage(self) -> Storage {
        match self {
            Form::BitmaskRows | Form::BitmaskChunk => Storage::Bitmask,
            Form::TwoOfFourRows | Form::TwoOfFourChunk => Storage::TwoFour,
            _ => Storage::Dense,
        }
    }

    /// Whether it is an index stream, whose activation panels may have several sizes.
    pub const fn is_stream(self) -> bool {
        matches!(self, Form::StreamPanel | Form::PairPanel)
    }

    /// Whether it multiplies every element, zeros included, and stores them.
    pub const fn is_dense(self) -> bool {
        matches!(
            self,
            Form::DensePanel
                | Form::DenseByRow
                | Form::DenseOutputs
                | Form::DenseRows
                | Form::DenseChunk
        )
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// A form and its parameters.
///
/// It is spelled as the form's name, and for an index stream the columns and the most rows of its
/// activation panels: `dense-panel`, `bitmask-rows`, `stream-panel-112x85`. The spelling and what it means
/// stay as they are; new forms get new names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// The form.
    pub form: Form,
    /// Columns of an activation panel; 0 where the form takes no choice.
    pub width: usize,
    /// Most rows of an activation panel; 0 where the form takes no choice.
    pub chunk: usize,
}

impl Variant {
    /// A form that takes no parameters.
    pub const fn plain(form: Form) -> Variant {
        Variant {
            form,
            width: 0,
            chunk: 0,
        }
    }

    /// An index stream over panels of `width` columns and at most `chunk` rows.
    pub const fn stream(width: usize, chunk: usize) -> Variant {
        Variant {
            form: Form::StreamPanel,
            width,
            chunk,
        }
    }

    /// The same with rows in pairs.
    pub const fn pairs(width: usize, chunk: usize) -> Variant {
        Variant {
            form: Form::PairPanel,
            width,
            chunk,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            form if form.is_stream() => f.pad(&format!("{form}-{}x{}", self.width, self.chunk)),
            form => form.fmt(f),
        }
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        let refuse = || {
            let known: Vec<&str> = Form::ALL.iter().map(|f| f.id()).collect();
            format!(
                "`{text}` is no form; known are {} (a stream with columns and rows of its panels: \
                 stream-panel-64x96)",
                known.join(", ")
            )
        };
        let mut streams = Form::ALL.into_iter().filter(|f| f.is_stream());
        let sizes = |f: Form| Some((f, text.strip_prefix(f.id())?.strip_prefix('-')?));
        let Some((form, sizes)) = streams.find_map(sizes) else {
            let form = Form::ALL.into_iter().find(|f| f.id() == text);
            let form = form.filter(|f| !f.is_stream());
            return form.map(Variant::plain).ok_or_else(refuse);
        };
        let number = |s: &str| s.parse::<u16>().ok().map(usize::from);
        let (width, chunk) = sizes
            .split_once('x')
            .and_then(|(w, c)| Some((number(w)?, number(c)?)))
            .ok_or_else(refuse)?;
        Ok(Variant { form, width, chunk })
    }
}

/// A legal form of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The form.
    pub variant: Variant,
    /// Its estimated cost; only ratios mean something.
    pub cost: f64,
    /// It executes a copy of the weight that other plans of the same decoder would not share: legal
    /// when it is asked for, never chosen.
    pub copy: bool,
}

/// Who took a layer's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chosen {
    /// The app named it.
    Asked,
    /// It was measured fastest on this machine.
    Measured,
    /// It is estimated fastest, or the only one.
    Estimated,
}

/// Forms by the name of a weight. A weight may be used by several layers or at several numbers of
/// columns (a decoder's plans for one token and for a chunk), so a list: each layer takes the first form
/// that is legal for it.
///
/// ```
/// use lacuna::plan::Forms;
///
/// let mut forms = Forms::new();
/// forms.insert("layer1.conv2.weight".into(), vec!["stream-panel-112x85".parse()?]);
/// forms.insert("lm_head.weight".into(), vec!["dense-rows".parse()?, "dense-chunk".parse()?]);
/// # Ok::<(), String>(())
/// ```
pub type Forms = BTreeMap<String, Vec<Variant>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let plain = Form::ALL.into_iter().filter(|f| !f.is_stream());
        let streams = [Variant::stream(112, 85), Variant::pairs(64, 200)];
        for variant in plain.map(Variant::plain).chain(streams) {
            assert_eq!(variant.to_string().parse::<Variant>(), Ok(variant));
        }
        for bad in [
            "",
            "dense",
            "stream-panel",
            "pair-panel-64",
            "stream-panel-64",
            "stream-panel-64x",
            "stream-panel-64x-1",
            "stream-panel-99999999x1",
            "dense-panel-64x64",
        ] {
            assert!(
                bad.parse::<Variant>().unwrap_err().contains("is no form"),
                "{bad}"
            );
        }
    }
}
