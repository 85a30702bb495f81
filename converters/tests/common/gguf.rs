//! GGUF files made by hand, right or wrong.

#![allow(dead_code)]

/// A value of the metadata: its type number and its bytes.
pub struct Raw(pub u32, pub Vec<u8>);

pub fn text(s: &str) -> Raw {
    Raw(8, string(s.as_bytes()))
}

pub fn uint(v: u32) -> Raw {
    Raw(4, v.to_le_bytes().to_vec())
}

pub fn long(v: u64) -> Raw {
    Raw(10, v.to_le_bytes().to_vec())
}

pub fn float(v: f32) -> Raw {
    Raw(6, v.to_le_bytes().to_vec())
}

pub fn boolean(v: u8) -> Raw {
    Raw(7, vec![v])
}

/// An array with a count of its own.
pub fn array(kind: u32, count: u64, elements: &[u8]) -> Raw {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(elements);
    Raw(9, bytes)
}

pub fn texts(list: &[&str]) -> Raw {
    let all: Vec<u8> = list.iter().flat_map(|s| string(s.as_bytes())).collect();
    array(8, list.len() as u64, &all)
}

pub fn ints(list: &[i32]) -> Raw {
    let all: Vec<u8> = list.iter().flat_map(|v| v.to_le_bytes()).collect();
    array(5, list.len() as u64, &all)
}

pub fn floats(list: &[f32]) -> Raw {
    let all: Vec<u8> = list.iter().flat_map(|v| v.to_le_bytes()).collect();
    array(6, list.len() as u64, &all)
}

fn string(s: &[u8]) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s);
    bytes
}

/// One tensor: the sizes as the file lists them, the type's number, the offset and the data.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub sizes: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
    pub data: Vec<u8>,
}

/// A file in parts.
pub struct File {
    pub version: u32,
    pub meta: Vec<(String, Raw)>,
    pub tensors: Vec<Tensor>,
    /// Counts in place of the true ones.
    pub counts: [Option<u64>; 2],
}

impl File {
    /// A decoder of one layer that opens: width 4, one head of 4, three tokens.
    pub fn decoder() -> File {
        let mut file = File {
            version: 3,
            meta: Vec::new(),
            tensors: Vec::new(),
            counts: [None; 2],
        };
        file.set("general.architecture", text("llama"));
        file.set("llama.block_count", uint(1));
        file.set("llama.context_length", uint(16));
        file.set("llama.embedding_length", uint(4));
        file.set("llama.attention.head_count", uint(1));
        file.set("llama.attention.layer_norm_rms_epsilon", float(1e-5));
        file.add("token_embd.weight", &[4, 3]);
        file.add("output_norm.weight", &[4]);
        for norm in ["attn_norm", "ffn_norm"] {
            file.add(&format!("blk.0.{norm}.weight"), &[4]);
        }
        for linear in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            file.add(&format!("blk.0.{linear}.weight"), &[4, 4]);
        }
        file.add("blk.0.ffn_gate.weight", &[4, 8]);
        file.add("blk.0.ffn_up.weight", &[4, 8]);
        file.add("blk.0.ffn_down.weight", &[8, 4]);
        file
    }

    /// The same with a byte pair tokenizer of three tokens.
    pub fn with_tokenizer() -> File {
        let mut file = File::decoder();
        file.set("tokenizer.ggml.model", text("gpt2"));
        file.set("tokenizer.ggml.pre", text("gpt-2"));
        file.set("tokenizer.ggml.tokens", texts(&["a", "b", "ab"]));
        file.set("tokenizer.ggml.token_type", ints(&[1, 1, 1]));
        file.set("tokenizer.ggml.merges", texts(&["a b"]));
        file
    }

    /// Sets a key, in place of one of its name.
    pub fn set(&mut self, key: &str, value: Raw) {
        match self.meta.iter_mut().find(|(k, _)| k == key) {
            Some(slot) => slot.1 = value,
            None => self.meta.push((key.to_owned(), value)),
        }
    }

    pub fn unset(&mut self, key: &str) {
        self.meta.retain(|(k, _)| k != key);
    }

    /// Adds an f32 tensor whose values count up in sixteenths.
    pub fn add(&mut self, name: &str, sizes: &[u64]) {
        let count: u64 = sizes.iter().product();
        let data = (0..count).flat_map(|i| ((i % 32) as f32 / 16.0 - 1.0).to_le_bytes());
        let end = self
            .tensors
            .last()
            .map_or(0, |t| (t.offset + t.data.len() as u64).next_multiple_of(32));
        self.tensors.push(Tensor {
            name: name.to_owned(),
            sizes: sizes.to_vec(),
            kind: 0,
            offset: end,
            data: data.collect(),
        });
    }

    /// A tensor to change.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        let counts = [self.tensors.len() as u64, self.meta.len() as u64];
        for (own, told) in counts.iter().zip(&self.counts) {
            out.extend(told.unwrap_or(*own).to_le_bytes());
        }
        for (key, Raw(kind, bytes)) in &self.meta {
            out.extend(string(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        for t in &self.tensors {
            out.extend(string(t.name.as_bytes()));
            out.extend((t.sizes.len() as u32).to_le_bytes());
            out.extend(t.sizes.iter().flat_map(|s| s.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.to_le_bytes());
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.data);
        }
        out
    }
}
