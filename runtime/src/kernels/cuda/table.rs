//! The kernels by name, and their PTX.

use std::fmt;

/// What a kernel takes at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// An address in device memory.
    Pointer,
    /// A 32-bit integer.
    Integer,
    /// An f32.
    Float,
}

/// A kernel's name, source and parameters.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Dtype of the weight, operation, form, columns: as in reports.
    pub name: &'static str,
    /// The file of `src/` that has it.
    pub source: &'static str,
    /// Its parameters, in order.
    pub parameters: &'static [Parameter],
}

/// The PTX for a compute capability and later ones.
#[derive(Clone, Copy)]
pub struct Ptx {
    /// The least compute capability.
    pub capability: (i32, i32),
    /// As PTX names it.
    pub target: &'static str,
    /// The version of the language, which the driver has to know: 7.4 is CUDA 11.4, that of JetPack 5.
    pub version: &'static str,
    /// Source and text.
    pub modules: &'static [(&'static str, &'static str)],
    /// Whether kernels of bfloat16 weights are there.
    pub bf16: bool,
}

impl fmt::Debug for Ptx {
    /// Without the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX {} {}", self.version, self.target)
    }
}

macro_rules! ptx {
    ($target:literal: $($source:literal)*) => {
        &[$(($source, include_str!(concat!("ptx/", $source, "_", $target, ".ptx")))),*]
    };
}

/// The newest first. What the compiler makes for 8.0, 8.7 and 9.0 is the same text, so one is enough.
pub(super) const PTX: &[Ptx] = &[
    Ptx {
        capability: (8, 0),
        target: "sm_80",
        version: "7.4",
        modules: ptx!("sm_80": "vector" "matrix" "decoder" "elementwise" "rows" "window"),
        bf16: true,
    },
    Ptx {
        capability: (7, 2),
        target: "sm_72",
        version: "7.4",
        modules: ptx!("sm_72": "vector" "decoder" "elementwise" "rows" "window"),
        bf16: false,
    },
];

/// Kernels of instructions that compute capability 9.0 has and no other; 8.2 is CUDA 12.2.
pub(super) const HOPPER: Ptx = Ptx {
    capability: (9, 0),
    target: "sm_90a",
    version: "8.2",
    modules: ptx!("sm_90a": "hopper"),
    bf16: true,
};

/// What is loaded beside for a device of this compute capability.
pub(super) fn hopper_for(capability: (i32, i32)) -> Option<&'static Ptx> {
    (HOPPER.capability == capability).then_some(&HOPPER)
}

/// The PTX for a device of this compute capability, if it is new enough.
pub fn ptx_for(capability: (i32, i32)) -> Option<&'static Ptx> {
    PTX.iter().find(|p| p.capability <= capability)
}

use Parameter::{Float as F, Integer as I, Pointer as P};

const BITMASK: &[Parameter] = &[P, P, P, P, P, P, P, F, F, I, I, I];
const DENSE: &[Parameter] = &[P, P, P, P, P, F, F, I, I, I, I];
const BITMASK_MMA: &[Parameter] = &[P, P, P, P, P, P, P, F, F, I, I, I, I];
const TWO_FOUR_MMA: &[Parameter] = &[P, P, P, P, P, P, F, F, I, I, I, I];
const DENSE_MMA: &[Parameter] = &[P, P, P, P, P, F, F, I, I, I, I];
// Those of convolutions end with x, taps and the sizes of windows.
const BITMASK_CONV: &[Parameter] = &[
    P, P, P, P, P, P, F, F, I, I, I, P, P, I, I, I, I, I, I, I, I, I, I,
];
const DENSE_CONV: &[Parameter] = &[
    P, P, P, P, F, F, I, I, I, I, P, P, I, I, I, I, I, I, I, I, I, I,
];
const TWO_FOUR_CONV_MMA: &[Parameter] = &[
    P, P, P, P, P, F, F, I, I, I, P, P, I, I, I, I, I, I, I, I, I, I,
];
const DENSE_CONV_MMA: &[Parameter] = &[
    P, P, P, P, F, F, I, I, I, P, P, I, I, I, I, I, I, I, I, I, I,
];
const ATTENTION: &[Parameter] = &[P, P, P, P, P, P, I, I, I, I, F];
const KEEP: &[Parameter] = &[P, P, P, P, P, I, I, I, I];

macro_rules! kernels {
    ($($source:literal $parameters:expr, $($name:literal)*;)*) => {
        &[$($(Kernel { name: $name, source: $source, parameters: $parameters }),*),*]
    };
}

/// Every kernel.
pub const KERNELS: &[Kernel] = kernels! {
    "vector" BITMASK,
        "f16_linear_bitmask_1" "f16_linear_bitmask_2" "f16_linear_bitmask_4" "f16_linear_bitmask_8"
        "bf16_linear_bitmask_1" "bf16_linear_bitmask_2" "bf16_linear_bitmask_4" "bf16_linear_bitmask_8";
    "vector" DENSE,
        "f16_linear_dense_1" "f16_linear_dense_2" "f16_linear_dense_4" "f16_linear_dense_8"
        "bf16_linear_dense_1" "bf16_linear_dense_2" "bf16_linear_dense_4" "bf16_linear_dense_8";
    "matrix" BITMASK_MMA,
        "f16_linear_bitmask_mma_8" "f16_linear_bitmask_mma_16" "f16_linear_bitmask_mma_32"
        "f16_linear_bitmask_mma_64" "bf16_linear_bitmask_mma_8" "bf16_linear_bitmask_mma_16"
        "bf16_linear_bitmask_mma_32" "bf16_linear_bitmask_mma_64";
    "matrix" TWO_FOUR_MMA,
        "f16_linear_2to4_mma_8" "f16_linear_2to4_mma_16" "f16_linear_2to4_mma_32" "f16_linear_2to4_mma_64"
        "bf16_linear_2to4_mma_8" "bf16_linear_2to4_mma_16" "bf16_linear_2to4_mma_32" "bf16_linear_2to4_mma_64";
    "matrix" DENSE_MMA,
        "f16_linear_dense_mma_8" "f16_linear_dense_mma_16" "f16_linear_dense_mma_32" "f16_linear_dense_mma_64"
        "bf16_linear_dense_mma_8" "bf16_linear_dense_mma_16" "bf16_linear_dense_mma_32" "bf16_linear_dense_mma_64";
    "vector" BITMASK_CONV, "f16_conv_bitmask_8" "bf16_conv_bitmask_8";
    "vector" DENSE_CONV, "f16_conv_dense_8" "bf16_conv_dense_8";
    "matrix" BITMASK_CONV, "f16_conv_bitmask_mma_64" "bf16_conv_bitmask_mma_64";
    "matrix" TWO_FOUR_CONV_MMA, "f16_conv_2to4_mma_64" "bf16_conv_2to4_mma_64";
    "matrix" DENSE_CONV_MMA, "f16_conv_dense_mma_64" "bf16_conv_dense_mma_64";
    "hopper" BITMASK_MMA,
        "f16_linear_bitmask_wgmma_64" "f16_linear_bitmask_wgmma_128"
        "bf16_linear_bitmask_wgmma_64" "bf16_linear_bitmask_wgmma_128";
    "hopper" TWO_FOUR_MMA,
        "f16_linear_2to4_wgmma_64" "f16_linear_2to4_wgmma_128"
        "bf16_linear_2to4_wgmma_64" "bf16_linear_2to4_wgmma_128";
    "hopper" DENSE_MMA,
        "f16_linear_dense_wgmma_64" "f16_linear_dense_wgmma_128"
        "bf16_linear_dense_wgmma_64" "bf16_linear_dense_wgmma_128";
    "hopper" BITMASK_CONV, "f16_conv_bitmask_wgmma_128" "bf16_conv_bitmask_wgmma_128";
    "hopper" TWO_FOUR_CONV_MMA, "f16_conv_2to4_wgmma_128" "bf16_conv_2to4_wgmma_128";
    "hopper" DENSE_CONV_MMA, "f16_conv_dense_wgmma_128" "bf16_conv_dense_wgmma_128";
    "decoder" &[P, P, P, I, F], "f32_rms_norm";
    "decoder" &[P, P, P, P, P, I, I, I, I, I, I], "f32_rotary";
    "decoder" ATTENTION, "f16_attention" "f32_attention";
    "decoder" &[P, P, I, I], "f32_attention_sum";
    "decoder" KEEP, "f16_keep" "f32_keep";
    "decoder" &[P, P, P, I, I, I], "f16_embed" "bf16_embed" "f32_embed";
    "decoder" &[P, P, P, P, I, I], "f32_positions";
    "decoder" &[P, P, I, I], "f16_round" "bf16_round";
    "decoder" &[P, P, I], "f32_argmax";
    "decoder" &[P, P, P, I, F, I, F], "f32_sample";
    "elementwise" &[P, P, I, I, F, F], "f32_unary";
    "elementwise" &[P, P, P, I, I, F], "f32_gated";
    "elementwise" &[P, P, P, P, I, I, I, F, F], "f32_binary";
    "elementwise" &[P, P, P, P, I, I, I], "f32_scale_shift";
    "elementwise" &[P, P, P, I, I, F, F], "f32_epilogue";
    "elementwise" &[P, P, P, I, I, F], "f32_copy";
    "elementwise" &[P, P, P, P, P, I, I, I, I, I], "f32_interpolate";
    "elementwise" &[P, P, P, P, P, P, P, I, I], "f32_fast_grnn";
    "rows" &[P, P, I, I], "f32_softmax" "f32_length_norm";
    "rows" &[P, P, P, P, I, F], "f32_layer_norm";
    "rows" &[P, P, P, P, I, I, F], "f32_instance_norm";
    "rows" &[P, P, P, I, I, I, I], "f32_mean";
    "rows" &[P, P, P, I, I, I], "f32_masked_mean";
    "rows" &[P, P, P, P, I, I, I, I, I, I, I], "f32_matmul";
    "window" &[P, P, P, P, I, I, I, I, I, I, I, I, I, I, I, I, I, I, I, F, F], "f32_depthwise";
    "window" &[P, P, I, I, I, I, I, I, I, I, I, I, I, I, I], "f32_max_pool";
    "window" &[P, P, P, I, I, I, I, I, I, I, I, I, I, I, I, I], "f32_average_pool";
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Name and parameters of every entry.
    fn entries(text: &str) -> BTreeMap<&str, Vec<Parameter>> {
        let all = text.split(".visible .entry ").skip(1);
        all.map(|part| {
            let (name, rest) = part.split_once('(').expect("parameters");
            let (list, _) = rest.split_once(')').expect("parameters end");
            let kinds = list
                .split(".param")
                .skip(1)
                .map(|p| match p.split_whitespace().next() {
                    Some(".u64") => Parameter::Pointer,
                    Some(".u32") => Parameter::Integer,
                    Some(".f32") => Parameter::Float,
                    other => panic!("{name}: {other:?}"),
                });
            (name.trim(), kinds.collect())
        })
        .collect()
    }

    fn all() -> impl Iterator<Item = &'static Ptx> {
        PTX.iter().chain([&HOPPER])
    }

    #[test]
    fn ptx_says_the_version_and_the_target_that_the_oldest_driver_takes() {
        for ptx in all() {
            for (source, text) in ptx.modules {
                let line = |start: &str| {
                    let lines: Vec<_> = text.lines().filter(|l| l.starts_with(start)).collect();
                    assert_eq!(lines.len(), 1, "{source} {}: {lines:?}", ptx.target);
                    lines[0]
                };
                assert_eq!(line(".version "), format!(".version {}", ptx.version));
                assert_eq!(line(".target "), format!(".target {}", ptx.target));
                assert_eq!(line(".address_size "), ".address_size 64");
            }
        }
    }

    #[test]
    fn every_kernel_is_in_the_ptx_with_its_parameters_and_no_other() {
        for ptx in all() {
            for (source, text) in ptx.modules {
                let found = entries(text);
                let mut wanted = BTreeMap::new();
                for k in KERNELS.iter().filter(|k| k.source == *source) {
                    if ptx.bf16 || !k.name.starts_with("bf16") {
                        wanted.insert(k.name, k.parameters.to_vec());
                    }
                }
                assert_eq!(found, wanted, "{source} {}", ptx.target);
            }
        }
        let newest = || PTX[0].modules.iter().chain(HOPPER.modules);
        let has = |k: &Kernel| newest().any(|(s, _)| *s == k.source);
        assert!(KERNELS.iter().all(has));
    }

    #[test]
    fn a_device_gets_the_newest_ptx_that_it_can_run() {
        let target = |major, minor| ptx_for((major, minor)).map(|p| p.target);
        assert_eq!(target(7, 0), None);
        assert_eq!(target(7, 2), Some("sm_72"));
        assert_eq!(target(7, 5), Some("sm_72"));
        for (major, minor) in [(8, 0), (8, 7), (9, 0), (10, 1), (11, 0), (12, 0)] {
            assert_eq!(target(major, minor), Some("sm_80"));
            // Instructions of 9.0 alone: a later device has others in their place.
            assert_eq!(hopper_for((major, minor)).is_some(), major == 9);
        }
    }
}
