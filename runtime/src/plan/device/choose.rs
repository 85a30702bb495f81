//! Choosing a form for a weighted layer on a device: which are legal, and which is estimated fastest.

use crate::cuda::launch::Cores;
use crate::cuda::{Library, Limits};
use std::fmt;

/// How a device executes a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DeviceForm {
    /// Every element, without tensor cores.
    DenseVector,
    /// Every element, by our kernels on tensor cores.
    DenseMma,
    /// Every element, by our kernels on Hopper's tensor cores.
    DenseWgmma,
    /// Every element, by cuBLAS.
    DenseBlas,
    /// Every element, by cuBLASLt.
    DenseBlasLt,
    /// Bitmask and values, without tensor cores.
    BitmaskVector,
    /// Bitmask and values, expanded for tensor cores.
    BitmaskMma,
    /// Bitmask and values, expanded for Hopper's tensor cores.
    BitmaskWgmma,
    /// Two of each four columns, on sparse tensor cores.
    TwoOfFourMma,
    /// Two of each four columns, on Hopper's sparse tensor cores.
    TwoOfFourWgmma,
}

impl DeviceForm {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceForm::DenseVector => "dense-vector",
            DeviceForm::DenseMma => "dense-mma",
            DeviceForm::DenseWgmma => "dense-wgmma",
            DeviceForm::DenseBlas => "dense-cublas",
            DeviceForm::DenseBlasLt => "dense-cublaslt",
            DeviceForm::BitmaskVector => "bitmask-vector",
            DeviceForm::BitmaskMma => "bitmask-mma",
            DeviceForm::BitmaskWgmma => "bitmask-wgmma",
            DeviceForm::TwoOfFourMma => "2of4-mma",
            DeviceForm::TwoOfFourWgmma => "2of4-wgmma",
        }
    }

    /// Whether every element is stored.
    pub const fn is_dense(self) -> bool {
        use DeviceForm::{DenseBlas, DenseBlasLt, DenseMma, DenseVector, DenseWgmma};
        matches!(
            self,
            DenseVector | DenseMma | DenseWgmma | DenseBlas | DenseBlasLt
        )
    }

    /// The form that is packed as this one.
    pub(super) const fn packing(self) -> DeviceForm {
        match self {
            DeviceForm::DenseBlas | DeviceForm::DenseBlasLt => DeviceForm::DenseVector,
            DeviceForm::DenseWgmma => DeviceForm::DenseMma,
            DeviceForm::BitmaskWgmma => DeviceForm::BitmaskMma,
            DeviceForm::TwoOfFourWgmma => DeviceForm::TwoOfFourMma,
            other => other,
        }
    }

    /// Who multiplies in our kernels.
    pub(super) const fn cores(self) -> Cores {
        use DeviceForm::{BitmaskWgmma, DenseWgmma, TwoOfFourWgmma};
        match self {
            DenseWgmma | BitmaskWgmma | TwoOfFourWgmma => Cores::Group,
            _ => Cores::Warp,
        }
    }

    /// The library that multiplies.
    pub(super) const fn library(self) -> Option<Library> {
        match self {
            DeviceForm::DenseBlas => Some(Library::Cublas),
            DeviceForm::DenseBlasLt => Some(Library::CublasLt),
            _ => None,
        }
    }

    /// Whether columns are rounded to 16 bits by a launch of its own, where the layer is no convolution.
    pub const fn is_rounded(self) -> bool {
        !matches!(self, DeviceForm::DenseVector | DeviceForm::BitmaskVector)
    }
}

impl fmt::Display for DeviceForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The sizes that decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    /// Outputs of one group.
    pub rows: usize,
    pub cols: usize,
    /// Of one group.
    pub nonzeros: usize,
    /// Columns of activations: pixels or input rows.
    pub columns: usize,
    pub groups: usize,
    pub two_four: bool,
    pub conv: bool,
    /// A bias, a residual or limits.
    pub epilogue: bool,
}

impl Layer {
    /// Columns that a block has of a form's kernels.
    fn block(&self, form: DeviceForm) -> usize {
        match (form.is_rounded(), form.cores()) {
            (false, _) => 8,
            (true, Cores::Group) if self.conv || self.columns > 64 => 128,
            (true, _) => 64,
        }
    }
}

/// A legal form of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceCandidate {
    /// The form.
    pub form: DeviceForm,
    /// Seconds: estimated, or measured where the plan was tuned.
    pub seconds: f64,
}

/// Of a peak, what kernels are taken to reach. Not measured: tuning measures the kernels themselves.
mod share {
    pub const BANDWIDTH: f64 = 0.85;
    pub const MMA: f64 = 0.35;
    pub const WGMMA: f64 = 0.5;
    pub const BLAS: f64 = 0.7;
    /// Multiply-adds of f32 with the conversion of each weight.
    pub const DENSE: f64 = 0.4;
    /// The same with a walk over bits.
    pub const BITMASK: f64 = 0.2;
    /// How much faster than memory a cache gives the weights again to further columns.
    pub const CACHE: f64 = 3.0;
}

/// Bytes that a form's kernels read of the weight, once.
pub(super) fn weight_bytes(form: DeviceForm, layer: &Layer) -> f64 {
    let (rows, cols) = (layer.rows, layer.cols);
    let tiles = (rows.div_ceil(16) * cols.div_ceil(64)) as f64;
    let bytes = match form.packing() {
        DeviceForm::DenseVector => 2.0 * (rows * cols.next_multiple_of(8)) as f64,
        DeviceForm::DenseMma => tiles * 2048.0,
        DeviceForm::BitmaskVector => {
            2.0 * layer.nonzeros as f64 + (rows * cols.div_ceil(1024)) as f64 * 132.0
        }
        DeviceForm::BitmaskMma => 2.0 * layer.nonzeros as f64 + tiles * 132.0,
        _ => tiles * (1024.0 + 128.0),
    };
    bytes * layer.groups as f64
}

/// Estimated seconds: launches, and the greater of what memory and arithmetic take.
fn seconds(form: DeviceForm, layer: &Layer, limits: &Limits) -> f64 {
    let (rows, cols, n) = (layer.rows, layer.cols, layer.columns);
    let groups = layer.groups as f64;
    let block = layer.block(form);
    let again = (n.div_ceil(block) - 1) as f64 / share::CACHE;
    let (band, tile, reached) = match form.cores() {
        Cores::Warp => (16, 8, share::MMA),
        // A group multiplies all columns of its block.
        Cores::Group => (64, block, share::WGMMA),
    };
    let padded = (rows.next_multiple_of(band) * cols.next_multiple_of(64)) as f64
        * n.next_multiple_of(tile) as f64;
    let plain = (rows * cols * n) as f64;
    let arithmetic = groups
        * match form {
            DeviceForm::DenseVector => plain / (limits.vector * share::DENSE),
            DeviceForm::BitmaskVector => {
                (layer.nonzeros * n) as f64 / (limits.vector * share::BITMASK)
            }
            DeviceForm::DenseBlas | DeviceForm::DenseBlasLt => {
                let peak = limits.tensor.max(limits.vector);
                padded / (peak * share::BLAS)
            }
            DeviceForm::TwoOfFourMma | DeviceForm::TwoOfFourWgmma => {
                padded / (2.0 * limits.tensor * reached)
            }
            _ => padded / (limits.tensor * reached),
        };
    let rounding = if form.is_rounded() && !layer.conv {
        2.0
    } else {
        1.0
    };
    let activations = 4.0 * groups * n as f64 * (rounding * cols as f64 + rows as f64);
    let bytes = weight_bytes(form, layer) * (1.0 + again) + activations;
    let launches = match form {
        // cuBLASLt does most of what follows a sum.
        DeviceForm::DenseBlas => 2.0 + f64::from(layer.epilogue),
        DeviceForm::DenseBlasLt => 2.0,
        _ if layer.conv => groups,
        _ => rounding,
    };
    let memory = bytes / (limits.bandwidth * share::BANDWIDTH);
    launches * limits.launch + memory.max(arithmetic)
}

/// The legal forms of a layer, the fastest estimate first. There always is a dense one.
pub(super) fn candidates(layer: &Layer, limits: &Limits, dense: bool) -> Vec<DeviceCandidate> {
    let tensor = limits.tensor > 0.0;
    let sparse = !dense && layer.nonzeros < layer.rows * layer.cols;
    let forms = [
        (DeviceForm::DenseVector, true),
        (DeviceForm::DenseMma, tensor),
        (DeviceForm::DenseWgmma, limits.groups),
        // Of vectors cuBLAS has kernels of its own.
        (DeviceForm::DenseBlas, limits.blas && !layer.conv),
        (DeviceForm::DenseBlasLt, limits.blas_lt && !layer.conv),
        (DeviceForm::BitmaskVector, sparse),
        (DeviceForm::BitmaskMma, sparse && tensor),
        (DeviceForm::BitmaskWgmma, sparse && limits.groups),
        (DeviceForm::TwoOfFourMma, sparse && tensor && layer.two_four),
        (
            DeviceForm::TwoOfFourWgmma,
            sparse && limits.groups && layer.two_four,
        ),
    ];
    let legal = forms
        .iter()
        .filter(|f| f.1)
        .map(|&(form, _)| DeviceCandidate {
            form,
            seconds: seconds(form, layer, limits),
        });
    let mut list: Vec<DeviceCandidate> = legal.collect();
    list.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    list
}

/// Why the first of `list` is taken.
pub(super) fn reason(list: &[DeviceCandidate], density: f64, measured: bool) -> String {
    let Some(first) = list.first() else {
        return String::new();
    };
    let how = if measured { "measured" } else { "estimated" };
    let other = list
        .iter()
        .find(|c| c.form.is_dense() != first.form.is_dense());
    let micro = |c: &DeviceCandidate| format!("{} {:.1} us", c.form, c.seconds * 1e6);
    let rest = other.map_or(String::new(), |c| format!(", {}", micro(c)));
    format!("density {density:.2}: {how} {}{rest}", micro(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits {
        bandwidth: 3.35e12,
        vector: 33e12,
        tensor: 495e12,
        launch: 2.5e-6,
        blas: true,
        blas_lt: true,
        groups: false,
        bf16: true,
    };

    fn first(density: f64, columns: usize, two_four: bool, limits: &Limits) -> DeviceForm {
        let (rows, cols) = (14336, 8192);
        let layer = Layer {
            rows,
            cols,
            nonzeros: (density * (rows * cols) as f64) as usize,
            columns,
            groups: 1,
            two_four,
            conv: false,
            epilogue: false,
        };
        let list = candidates(&layer, limits, false);
        assert!(list.iter().any(|c| c.form.is_dense()));
        assert!(list.is_sorted_by(|a, b| a.seconds <= b.seconds));
        list[0].form
    }

    #[test]
    fn one_column_goes_by_bytes_and_many_by_arithmetic() {
        assert!(first(1.0, 1, false, &H100).is_dense());
        assert_eq!(first(0.5, 1, false, &H100), DeviceForm::BitmaskVector);
        assert_eq!(first(0.1, 16, false, &H100), DeviceForm::BitmaskMma);
        // The layer has nothing to add, and so both libraries take the same.
        assert_eq!(first(0.5, 4096, false, &H100), DeviceForm::DenseBlas);
        let alone = Limits {
            blas: false,
            blas_lt: false,
            ..H100
        };
        assert_eq!(first(0.5, 4096, true, &alone), DeviceForm::TwoOfFourMma);
        let hopper = Limits {
            groups: true,
            ..alone
        };
        assert_eq!(first(0.5, 128, false, &hopper), DeviceForm::BitmaskWgmma);
        assert_eq!(first(1.0, 4096, false, &hopper), DeviceForm::DenseWgmma);
        assert_eq!(first(0.5, 4096, true, &hopper), DeviceForm::TwoOfFourWgmma);
        // A group multiplies 64 columns, however few there are.
        assert_eq!(first(0.1, 16, false, &hopper), DeviceForm::BitmaskMma);
        let xavier = Limits {
            tensor: 0.0,
            bf16: false,
            ..alone
        };
        assert_eq!(first(0.3, 256, true, &xavier), DeviceForm::BitmaskVector);
        assert_eq!(first(1.0, 1, false, &xavier), DeviceForm::DenseVector);
    }
}
