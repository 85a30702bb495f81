//! One line of the table by layer, and how it stands beside dense and beside the machine.

use lacuna::StepInfo;
use lacuna_targets::Profile;
use serde::Serialize;

/// A step of the plan with what it took. Times are milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Layer {
    /// The node of the graph.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Nodes that this step computes as well.
    pub fused: Vec<String>,
    /// Weight and output sizes: `256x64x1x1 @ 56x56`.
    pub shape: String,
    /// The kernel that runs.
    pub kernel: String,
    /// Why it was chosen.
    pub reason: String,
    /// Whether the weight is executed from the file (`mapped`) or was repacked (`packed`).
    pub residency: String,
    /// The share of the weight that is not zero.
    pub density: f64,
    /// Bytes of the weight as this kernel reads it.
    pub weight_bytes: usize,
    /// Bytes of activations read and written.
    pub activation_bytes: usize,
    /// Multiply-accumulates that this kernel does.
    pub macs: u64,
    /// Multiply-accumulates of the same layer run dense.
    pub dense_macs: u64,
    /// Median time over the timed runs.
    pub ms: f64,
    /// Share of the sum over all layers.
    pub share: f64,
    /// Useful operations a second in 10⁹: two for each multiply-accumulate.
    pub gflops: f64,
    /// Bytes of weights and activations a second in 10⁹.
    pub gbs: f64,
    /// The least time that the machine's measured limits allow.
    pub limit_ms: Option<f64>,
    /// `limit_ms` over `ms`: 1 means nothing is left to gain.
    pub of_limit: Option<f64>,
    /// Median time of the same node in the dense session of the same run.
    pub dense_ms: Option<f64>,
    /// The kernel that ran it there.
    pub dense_kernel: Option<String>,
}

impl Layer {
    /// A step of a plan and its median time in milliseconds.
    pub fn of(step: &StepInfo, ms: f64) -> Layer {
        Layer {
            node: step.node.clone(),
            op: step.op.to_owned(),
            fused: step.fused.clone(),
            shape: step.shape.clone(),
            kernel: step.kernel.clone(),
            reason: step.reason.clone(),
            residency: step.residency.to_string(),
            density: step.density,
            weight_bytes: step.weight_bytes,
            activation_bytes: step.activation_bytes,
            macs: step.macs,
            dense_macs: step.dense_macs,
            ms,
            ..Layer::default()
        }
    }

    /// How many times faster than dense; `None` without a dense time.
    pub fn speedup(&self) -> Option<f64> {
        self.dense_ms.filter(|_| self.ms > 0.0).map(|d| d / self.ms)
    }
}

/// Fills shares and rates from times, bytes and multiply-accumulates.
pub fn share_out(layers: &mut [Layer]) {
    let total: f64 = layers.iter().map(|l| l.ms).sum();
    for layer in layers {
        let per_second = |units: f64| match layer.ms > 0.0 {
            true => units / (layer.ms * 1e-3) * 1e-9,
            false => 0.0,
        };
        layer.gflops = per_second(2.0 * layer.macs as f64);
        layer.gbs = per_second((layer.weight_bytes + layer.activation_bytes) as f64);
        layer.share = if total > 0.0 { layer.ms / total } else { 0.0 };
    }
}

/// Fills the limits of the machine: a layer takes at least as long as its multiply-adds at the
/// measured peak, and at least as long as its bytes at the measured bandwidth. Weights come from
/// the level that holds the weights of all layers, since each run goes through them all;
/// activations come from the level that holds those of the layer, since they were just written.
/// Does nothing when the profile has no limits.
pub fn place_under_limits(layers: &mut [Layer], profile: &Profile, threads: usize) {
    let Some(limits) = profile.limits_for(threads) else {
        return;
    };
    let seconds = |bytes: usize, held: usize| {
        bytes as f64 / (limits.bandwidth(profile.level_of(held, threads)) * 1e9)
    };
    let weights: usize = layers.iter().map(|l| l.weight_bytes).sum();
    for layer in layers {
        let compute = 2.0 * layer.macs as f64 / (limits.fma_gflops * 1e9);
        let memory = seconds(layer.weight_bytes, weights)
            + seconds(layer.activation_bytes, layer.activation_bytes);
        let limit_ms = compute.max(memory) * 1e3;
        layer.limit_ms = Some(limit_ms);
        layer.of_limit = (layer.ms > 0.0).then(|| limit_ms / layer.ms);
    }
}

/// Fills the dense times from the layers of a dense session, matched by node; a node that only
/// this plan fuses into another counts for that one.
pub fn set_beside_dense(layers: &mut [Layer], dense: &[Layer]) {
    for layer in layers {
        let Some(same) = dense.iter().find(|d| d.node == layer.node) else {
            continue;
        };
        let also: f64 = dense
            .iter()
            .filter(|d| d.node != layer.node && layer.fused.contains(&d.node))
            .map(|d| d.ms)
            .sum();
        layer.dense_ms = Some(same.ms + also);
        layer.dense_kernel = Some(same.kernel.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_targets::Limits;

    fn layer(
        node: &str,
        ms: f64,
        macs: u64,
        weight_bytes: usize,
        activation_bytes: usize,
    ) -> Layer {
        Layer {
            node: node.into(),
            ms,
            macs,
            weight_bytes,
            activation_bytes,
            ..Layer::default()
        }
    }

    fn profile() -> Profile {
        let mut profile = Profile::detect();
        profile.caches.l1d = Some(1000);
        profile.caches.l2 = Some(10_000);
        profile.caches.l3 = Some(100_000);
        profile.limits = vec![Limits {
            threads: 1,
            fma_gflops: 100.0,
            l1_gbs: Some(200.0),
            l2_gbs: Some(100.0),
            l3_gbs: Some(50.0),
            dram_gbs: 20.0,
        }];
        profile
    }

    #[test]
    fn shares_and_rates_follow_from_times() {
        let mut layers = [
            layer("a", 3.0, 3_000_000, 0, 6_000_000),
            layer("b", 1.0, 0, 0, 0),
        ];
        share_out(&mut layers);
        assert_eq!((layers[0].share, layers[1].share), (0.75, 0.25));
        assert!((layers[0].gflops - 2.0).abs() < 1e-9);
        assert!((layers[0].gbs - 2.0).abs() < 1e-9);
        assert_eq!(layers[1].gflops, 0.0);
    }

    #[test]
    fn the_nearer_limit_counts() {
        let mut layers = [
            layer("compute", 0.1, 1_000_000, 4_000, 800),
            layer("memory", 0.01, 1_000, 200_000, 800),
        ];
        place_under_limits(&mut layers, &profile(), 1);
        // 2e6 operations at 100 GFLOP/s.
        assert!((layers[0].limit_ms.unwrap() - 0.02).abs() < 1e-12);
        assert!((layers[0].of_limit.unwrap() - 0.2).abs() < 1e-12);
        // All weights, 204 kB, outgrow the caches; 800 bytes fit the first level.
        let expect = (200_000.0 / 20e9 + 800.0 / 200e9) * 1e3;
        assert!((layers[1].limit_ms.unwrap() - expect).abs() < 1e-12);
    }

    #[test]
    fn without_limits_nothing_is_claimed() {
        let mut bare = profile();
        bare.limits.clear();
        let mut layers = [layer("a", 1.0, 1, 1, 1)];
        place_under_limits(&mut layers, &bare, 1);
        assert_eq!(layers[0].limit_ms, None);
    }

    #[test]
    fn dense_layers_are_matched_by_node() {
        let mut layers = [layer("a", 1.0, 0, 0, 0), layer("gone", 1.0, 0, 0, 0)];
        layers[0].fused = vec!["add".into()];
        let dense = [("x", 9.0), ("a", 4.0), ("add", 2.0)];
        set_beside_dense(
            &mut layers,
            &dense.map(|(node, ms)| layer(node, ms, 0, 0, 0)),
        );
        assert_eq!(layers[0].speedup(), Some(6.0));
        assert_eq!(layers[1].speedup(), None);
    }
}
