//! BERT: token ids to hidden states, and to the embedding of a sentence.

use super::assembly::Assembly;
use super::token_shape;
use lacuna::model::{Dim, Graph, Op, Weights};

/// What an encoder's file says beside its tensors; widths are taken from the tensors.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// A name for reports.
    pub name: String,
    /// Layers, where the file says how many.
    pub layers: Option<usize>,
    /// Elements of a head.
    pub head: usize,
    /// Epsilon of the normalisations.
    pub epsilon: f32,
    /// What stands between the two layers of a block.
    pub activation: Op,
    /// Whether the mean of the hidden states is an output too, and whether it is normalised.
    pub sentence: Option<bool>,
}

impl Encoder {
    /// The graph over `weights`, which are named as Hugging Face names them.
    pub fn build(
        &self,
        weights: Weights,
        input: Option<&[Dim]>,
    ) -> Result<(Graph, Weights), String> {
        let mut a = Assembly::new(weights);
        let shape = token_shape(input)?;
        let layers = a.count("encoder.layer");
        if let Some(said) = self.layers
            && said != layers
        {
            return Err(format!("{said} layers, of which {layers} have tensors"));
        }
        let [ids, mask, types] =
            ["input_ids", "attention_mask", "token_type_ids"].map(|name| a.tokens(name, &shape));
        let words = self.embedding(&mut a, "word", &ids);
        let types = self.embedding(&mut a, "token_type", &types);
        let x = a.node("embeddings.add", Op::Add, &[&words, &types]);
        let positions = "embeddings.position_embeddings";
        let table = a.weight(format!("{positions}.weight"));
        let x = a.node(positions, Op::PositionEmbedding, &[&x, &table]);
        let mut x = self.norm(&mut a, "embeddings.LayerNorm", &x);
        for i in 0..layers {
            x = self.block(&mut a, &format!("encoder.layer.{i}"), &x, &mask)?;
        }
        a.output("last_hidden_state");
        if let Some(normalize) = self.sentence {
            let y = a.node("pooling", Op::MaskedMean, &["last_hidden_state", &mask]);
            if normalize {
                a.node("normalize", Op::LpNormalization { axis: -1 }, &[&y]);
            }
            a.output("sentence_embedding");
        }
        a.finish(&self.name)
    }

    fn embedding(&self, a: &mut Assembly, kind: &str, ids: &str) -> String {
        let name = format!("embeddings.{kind}_embeddings");
        let table = a.weight(format!("{name}.weight"));
        a.node(name, Op::Gather { axis: 0 }, &[&table, ids])
    }

    fn norm(&self, a: &mut Assembly, name: &str, x: &str) -> String {
        let epsilon = self.epsilon;
        a.module(name, Op::LayerNormalization { epsilon }, x)
    }

    fn block(&self, a: &mut Assembly, layer: &str, x: &str, mask: &str) -> Result<String, String> {
        let attention = format!("{layer}.attention");
        let heads = a.heads(&format!("{attention}.self.query"), self.head)?;
        let [q, k, v] =
            ["query", "key", "value"].map(|n| a.linear(&format!("{attention}.self.{n}"), x));
        let op = Op::Attention {
            heads,
            kv_heads: heads,
            causal: false,
            cache: false,
            scale: None,
        };
        let y = a.node(format!("{attention}.self"), op, &[&q, &k, &v, mask]);
        let y = a.linear(&format!("{attention}.output.dense"), &y);
        let y = a.node(format!("{attention}.residual"), Op::Add, &[&y, x]);
        let x = self.norm(a, &format!("{attention}.output.LayerNorm"), &y);

        let y = a.linear(&format!("{layer}.intermediate.dense"), &x);
        let y = a.node(
            format!("{layer}.intermediate.act_fn"),
            self.activation.clone(),
            &[&y],
        );
        let y = a.linear(&format!("{layer}.output.dense"), &y);
        let y = a.node(format!("{layer}.residual"), Op::Add, &[&y, &x]);
        Ok(self.norm(a, &format!("{layer}.output.LayerNorm"), &y))
    }
}
