//! Text to tokens and back, with the tokenizer that travels in the file.

use crate::model::Text;
use crate::{Error, Model, Result};
use std::borrow::Borrow;
use tokenizers::Tokenizer as Inner;

/// The tokenizer of a model.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    text: Text,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: "system", "user" or "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Tokenizer {
    /// The tokenizer of `model`.
    ///
    /// # Errors
    /// When the model has none, or it is damaged.
    pub fn new(model: &Model) -> Result<Tokenizer> {
        let bytes = model.tokenizer.as_ref().ok_or_else(|| {
            Error::Option(
                "the model has no tokenizer: convert it from a source that has one".into(),
            )
        })?;
        Tokenizer::from_json(bytes, model.text.clone().unwrap_or_default())
    }

    /// A tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// When they are none.
    pub fn from_json(json: &[u8], text: Text) -> Result<Tokenizer> {
        let mut inner = Inner::from_bytes(json).map_err(|e| fault("is damaged", &*e))?;
        // Padding and truncation are the app's business; some files ask for them.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| fault("does not work", &*e))?;
        Ok(Tokenizer { inner, text })
    }

    /// Tokens, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token of a special or ordinary piece of text.
    pub fn token(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// The tokens of `text`. With `special`, what the tokenizer puts around a text is added, and the
    /// model's first token where it asks for one.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, special)
            .map_err(|e| fault("fails", &*e))?;
        let mut ids = encoding.get_ids().to_vec();
        if let (true, true, Some(bos)) = (special, self.text.add_bos, self.text.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// When the tokenizer fails on the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, true)
            .map_err(|e| fault("fails", &*e))
    }

    /// A conversation as the model wants to read it, up to where its answer starts.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the conversation.
    pub fn chat(&self, messages: &[Message]) -> Result<String> {
        let template = self.text.chat_template.as_deref().ok_or_else(|| {
            Error::Option("the model has no chat template: give it plain text".into())
        })?;
        let mut environment = minijinja::Environment::new();
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As the templates' authors run them.
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|e| Error::Option(e.to_string()))?);
        // A template is data from a file: it may not run for ever.
        environment.set_fuel(Some(1_000_000));
        environment.add_function("raise_exception", |what: String| {
            Err::<String, _>(minijinja::Error::new(
                minijinja::ErrorKind::InvalidOperation,
                what,
            ))
        });
        let piece = |id: Option<u32>| id.and_then(|id| self.inner.id_to_token(id));
        let messages: Vec<minijinja::Value> = messages
            .iter()
            .map(|m| minijinja::context! { role => m.role.clone(), content => m.content.clone() })
            .collect();
        environment
            .render_str(
                template,
                minijinja::context! {
                    messages,
                    add_generation_prompt => true,
                    bos_token => piece(self.text.bos).unwrap_or_default(),
                    eos_token => piece(self.text.eos.first().copied()).unwrap_or_default(),
                },
            )
            .map_err(|e| Error::Option(format!("the chat template fails: {e}")))
    }

    /// A stream that turns tokens into text as they come.
    pub fn stream(&self) -> TextStream<&Tokenizer> {
        TextStream::new(self)
    }

    /// Whether `token` ends a text.
    pub fn ends(&self, token: u32) -> bool {
        self.text.eos.contains(&token)
    }
}

fn fault(what: &str, error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::Option(format!("the tokenizer {what}: {error}"))
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocabulary())
    }
}

/// Turns tokens into text as they come: a character whose bytes are spread over several tokens
/// appears with the last of them. `T` is a tokenizer, or a reference or an `Arc` of one.
#[derive(Debug)]
pub struct TextStream<T> {
    tokenizer: T,
    /// The tokens of the current piece; its start is known to stand at a whole character.
    tokens: Vec<u32>,
    /// Bytes of its text that were handed out.
    done: usize,
}

/// Tokens after which a piece is closed at the next whole character.
const PIECE: usize = 24;

impl<T: Borrow<Tokenizer>> TextStream<T> {
    /// A stream at the start of a text.
    pub fn new(tokenizer: T) -> TextStream<T> {
        TextStream {
            tokenizer,
            tokens: Vec::new(),
            done: 0,
        }
    }

    /// The text that `token` completes; often a word, sometimes nothing.
    ///
    /// # Errors
    /// When the tokenizer fails on the tokens.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let text = self.tokenizer.borrow().decode(&self.tokens)?;
        if text.ends_with('\u{fffd}') || !text.is_char_boundary(self.done) {
            return Ok(String::new());
        }
        let new = text.get(self.done..).unwrap_or_default().to_owned();
        self.done = text.len();
        if self.tokens.len() >= PIECE {
            // The last token stays: decoders drop a blank before the first token of a text.
            self.tokens.drain(..self.tokens.len() - 1);
            self.done = self.tokenizer.borrow().decode(&self.tokens)?.len();
        }
        Ok(new)
    }

    /// What is left: incomplete characters, replaced.
    ///
    /// # Errors
    /// When the tokenizer fails on the tokens.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.borrow().decode(&self.tokens)?;
        Ok(text.get(self.done..).unwrap_or_default().to_owned())
    }
}
