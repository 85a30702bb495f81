//! Decoders of the Llama family: token ids to logits, with keys and values kept between runs.

use super::assembly::Assembly;
use super::{Rotary, token_shape};
use lacuna::Weight;
use lacuna::model::{Dim, Graph, Op, Weights};

/// What a decoder's file says beside its tensors. Every width is taken from the tensors, so that
/// layers pruned to different heads and widths load as they are.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// A name for reports.
    pub name: String,
    /// Layers, where the file says how many.
    pub layers: Option<usize>,
    /// Elements of a query or key head.
    pub head: usize,
    /// Query and key heads of every layer, where the file lists them.
    pub heads: Option<Vec<[usize; 2]>>,
    /// Epsilon of the normalisations.
    pub epsilon: f32,
    /// How positions are encoded.
    pub rotary: Rotary,
    /// What is applied to the gate.
    pub activation: Op,
    /// Whether the embedding is the output's weight too; `None` asks whether there is another.
    pub tied: Option<bool>,
    /// Tensors of every attention that the family never lacks.
    pub required: &'static [&'static str],
}

const FREQUENCIES: &str = "model.rotary_emb.inv_freq";
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

impl Decoder {
    /// The graph over `weights`, which are named as Hugging Face names them.
    pub fn build(
        &self,
        weights: Weights,
        input: Option<&[Dim]>,
    ) -> Result<(Graph, Weights), String> {
        let mut a = Assembly::new(weights);
        let shape = token_shape(input)?;
        let pairs = self.rotary.frequencies.len();
        if self.head == 0 || pairs == 0 || pairs > self.head / 2 {
            return Err(format!(
                "a head of {} elements of which {} rotate",
                self.head,
                pairs * 2
            ));
        }
        a.insert(
            FREQUENCIES,
            Weight::from_f32(&[pairs], &self.rotary.frequencies),
        );
        let layers = a.count("model.layers");
        if let Some(said) = self.layers
            && said != layers
        {
            return Err(format!("{said} layers, of which {layers} have tensors"));
        }
        let ids = a.tokens("input_ids", &shape);
        let embedding = a.weight(EMBEDDING);
        let mut x = a.node(
            "model.embed_tokens",
            Op::Gather { axis: 0 },
            &[&embedding, &ids],
        );
        for i in 0..layers {
            x = self.block(&mut a, i, &x)?;
        }
        let x = self.norm(&mut a, "model.norm", &x);
        let head = "lm_head.weight";
        let own = match self.tied {
            Some(tied) => !tied,
            None => a.has(head),
        };
        let head = if own {
            a.weight(head)
        } else {
            // Some files repeat the embedding under the name of the output's weight.
            a.discard(head);
            a.weight(EMBEDDING)
        };
        a.node("lm_head", Op::MatMul { trans_b: true }, &[&x, &head]);
        a.output("logits");
        a.finish(&self.name)
    }

    fn norm(&self, a: &mut Assembly, name: &str, x: &str) -> String {
        let epsilon = self.epsilon;
        let weight = a.weight(format!("{name}.weight"));
        a.node(name, Op::RMSNormalization { epsilon }, &[x, &weight])
    }

    /// Queries or keys: a linear layer, normalised head by head where there is a norm, and rotated.
    fn rotated(
        &self,
        a: &mut Assembly,
        attention: &str,
        letter: char,
        heads: usize,
        x: &str,
    ) -> String {
        let mut y = a.linear(&format!("{attention}.{letter}_proj"), x);
        let norm = format!("{attention}.{letter}_norm");
        if a.has(&format!("{norm}.weight")) {
            let shape = vec![0, 0, heads as i64, self.head as i64];
            y = a.node(format!("{norm}.split"), Op::Reshape { shape }, &[&y]);
            y = self.norm(a, &norm, &y);
            let shape = vec![0, 0, (heads * self.head) as i64];
            y = a.node(format!("{norm}.join"), Op::Reshape { shape }, &[&y]);
        }
        let frequencies = a.weight(FREQUENCIES);
        let rotate = Op::RotaryEmbedding {
            heads,
            interleaved: false,
            scale: self.rotary.scale,
        };
        a.node(
            format!("{attention}.{letter}_rotary"),
            rotate,
            &[&y, &frequencies],
        )
    }

    fn block(&self, a: &mut Assembly, i: usize, x: &str) -> Result<String, String> {
        let layer = format!("model.layers.{i}");
        let attention = format!("{layer}.self_attn");
        let heads = a.heads(&format!("{attention}.q_proj"), self.head)?;
        let kv_heads = a.heads(&format!("{attention}.k_proj"), self.head)?;
        if let Some(said) = self.heads.as_ref().and_then(|h| h.get(i))
            && *said != [heads, kv_heads]
        {
            return Err(format!(
                "layer {i} has {} query and {} key heads, its tensors are those of {heads} and \
                 {kv_heads}",
                said[0], said[1]
            ));
        }
        for part in self.required {
            a.weight(format!("{attention}.{part}"));
        }
        let y = self.norm(a, &format!("{layer}.input_layernorm"), x);
        let q = self.rotated(a, &attention, 'q', heads, &y);
        let k = self.rotated(a, &attention, 'k', kv_heads, &y);
        let v = a.linear(&format!("{attention}.v_proj"), &y);
        let op = Op::Attention {
            heads,
            kv_heads,
            causal: true,
            cache: true,
            scale: None,
        };
        let y = a.node(format!("{attention}.attention"), op, &[&q, &k, &v]);
        let y = a.linear(&format!("{attention}.o_proj"), &y);
        let x = a.node(format!("{attention}.residual"), Op::Add, &[x, &y]);

        let mlp = format!("{layer}.mlp");
        let y = self.norm(a, &format!("{layer}.post_attention_layernorm"), &x);
        let gate = a.linear(&format!("{mlp}.gate_proj"), &y);
        let gate = a.node(format!("{mlp}.act_fn"), self.activation.clone(), &[&gate]);
        let up = a.linear(&format!("{mlp}.up_proj"), &y);
        let y = a.node(format!("{mlp}.product"), Op::Mul, &[&gate, &up]);
        let y = a.linear(&format!("{mlp}.down_proj"), &y);
        Ok(a.node(format!("{mlp}.residual"), Op::Add, &[&x, &y]))
    }
}
