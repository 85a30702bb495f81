//! Text to tokens and back. A build without tokenizers has the same functions, which say so.

use crate::handle::{self, Handle};
use crate::memory;
use crate::model::lacuna_model;
use crate::status::{guard, lacuna_status};
use std::ffi::c_char;

/// The tokenizer that travels in the file of a language model.
pub struct lacuna_tokenizer {
    _opaque: [u8; 0],
}

/// Turns tokens into text as they come.
pub struct lacuna_text {
    _opaque: [u8; 0],
}

#[cfg(feature = "tokenizer")]
mod made {
    use crate::status::{Result, c_string};
    use runtime::{Message, Model, TextStream, Tokenizer};
    use std::ffi::CString;
    use std::sync::{Arc, Mutex};

    pub struct Tokens(Arc<Tokenizer>);

    pub struct Text {
        stream: TextStream<Arc<Tokenizer>>,
        piece: CString,
    }

    impl Tokens {
        pub fn new(model: &Model) -> Result<Tokens> {
            Ok(Tokens(Arc::new(Tokenizer::new(model)?)))
        }

        pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            Ok(self.0.encode(text, special)?)
        }

        pub fn decode(&self, tokens: &[u32]) -> Result<String> {
            Ok(self.0.decode(tokens)?)
        }

        pub fn ends(&self, token: u32) -> Result<bool> {
            Ok(self.0.ends(token))
        }

        pub fn chat(&self, turns: &[(&str, &str)]) -> Result<String> {
            let message = |&(role, content): &(&str, &str)| Message {
                role: role.to_owned(),
                content: content.to_owned(),
            };
            let messages: Vec<Message> = turns.iter().map(message).collect();
            Ok(self.0.chat(&messages)?)
        }

        pub fn text(&self) -> Result<Mutex<Text>> {
            Ok(Mutex::new(Text {
                stream: TextStream::new(self.0.clone()),
                piece: CString::default(),
            }))
        }
    }

    impl Text {
        pub fn push(&mut self, token: u32) -> Result<&CString> {
            self.piece = c_string(&self.stream.push(token)?);
            Ok(&self.piece)
        }
    }
}

#[cfg(not(feature = "tokenizer"))]
mod made {
    use crate::status::{Failure, Result, lacuna_status};
    use runtime::Model;
    use std::ffi::CString;
    use std::sync::Mutex;

    /// There is never one.
    pub enum Tokens {}

    /// There is never one.
    pub enum Text {}

    impl Tokens {
        pub fn new(_: &Model) -> Result<Tokens> {
            let message = "this library was built without tokenizers";
            Err(Failure::new(lacuna_status::Unsupported, message))
        }

        pub fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>> {
            match *self {}
        }

        pub fn decode(&self, _: &[u32]) -> Result<String> {
            match *self {}
        }

        pub fn ends(&self, _: u32) -> Result<bool> {
            match *self {}
        }

        pub fn chat(&self, _: &[(&str, &str)]) -> Result<String> {
            match *self {}
        }

        pub fn text(&self) -> Result<Mutex<Text>> {
            match *self {}
        }
    }

    impl Text {
        pub fn push(&mut self, _: u32) -> Result<&CString> {
            match *self {}
        }
    }
}

impl Handle for lacuna_tokenizer {
    type Object = made::Tokens;
    const NAME: &'static str = "tokenizer";
}

impl Handle for lacuna_text {
    type Object = std::sync::Mutex<made::Text>;
    const NAME: &'static str = "text";
}

/// The tokenizer of a model.
///
/// # Safety
/// `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_tokenizer_new(
    model: *const lacuna_model,
    out: *mut *mut lacuna_tokenizer,
) -> lacuna_status {
    guard(|| {
        let model = handle::get(model)?;
        handle::put(out, || made::Tokens::new(&model.model))
    })
}

/// The tokens of `bytes` bytes of text. With `special` not 0, what the tokenizer puts around a text is added, and the
/// model's first token where it asks for one. `count` gets their number, also when the room is too small.
///
/// # Safety
/// The text has `bytes` bytes, `tokens` room for `capacity` tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_tokenizer_encode(
    tokenizer: *const lacuna_tokenizer,
    text: *const c_char,
    bytes: usize,
    special: i32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> lacuna_status {
    guard(|| {
        let tokenizer = handle::get(tokenizer)?;
        // SAFETY: the caller's promise.
        let text = unsafe { memory::text(text, bytes, "text") }?;
        let made = tokenizer.encode(text, special != 0)?;
        // SAFETY: the caller's promise.
        unsafe { memory::fill(&made, None, tokens, capacity, count, "tokens") }
    })
}

/// The text of tokens, special ones left out, with a zero byte at its end. `bytes` gets its length without it, also
/// when the room is too small.
///
/// # Safety
/// There are `count` tokens; `text` has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_tokenizer_decode(
    tokenizer: *const lacuna_tokenizer,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
) -> lacuna_status {
    guard(|| {
        let tokenizer = handle::get(tokenizer)?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { memory::elements(tokens, count, "tokens") }?;
        let made = tokenizer.decode(tokens)?;
        // SAFETY: the caller's promise.
        unsafe { memory::fill_text(&made, text, capacity, bytes) }
    })
}

/// A conversation as the model wants to read it, up to where its answer starts: a text to encode without `special`.
/// Roles are "system", "user" and "assistant". As with lacuna_tokenizer_decode there is a zero byte at the end.
///
/// # Safety
/// There are `count` roles and contents, each of which ends with a zero byte; `text` has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_tokenizer_chat(
    tokenizer: *const lacuna_tokenizer,
    roles: *const *const c_char,
    contents: *const *const c_char,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
) -> lacuna_status {
    guard(|| {
        let tokenizer = handle::get(tokenizer)?;
        // SAFETY: the caller's promise.
        let turns: Vec<(&str, &str)> = unsafe {
            let roles = memory::elements(roles, count, "roles")?;
            let contents = memory::elements(contents, count, "contents")?;
            let turn = |(r, c): (&*const c_char, &*const c_char)| {
                Ok((memory::string(*r, "role")?, memory::string(*c, "content")?))
            };
            roles
                .iter()
                .zip(contents)
                .map(turn)
                .collect::<crate::status::Result<_>>()?
        };
        let made = tokenizer.chat(&turns)?;
        // SAFETY: the caller's promise.
        unsafe { memory::fill_text(&made, text, capacity, bytes) }
    })
}

/// Whether a token ends a text: 1, or 0.
///
/// # Safety
/// `ends` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_tokenizer_ends(
    tokenizer: *const lacuna_tokenizer,
    token: u32,
    ends: *mut i32,
) -> lacuna_status {
    guard(|| {
        let tokenizer = handle::get(tokenizer)?;
        memory::put(ends, "answer", i32::from(tokenizer.ends(token)?))
    })
}

/// Frees a tokenizer. Texts that were made from it go on.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_tokenizer_free(tokenizer: *mut lacuna_tokenizer) -> lacuna_status {
    guard(|| handle::free(tokenizer))
}

/// A text at its start.
///
/// # Safety
/// `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_text_new(
    tokenizer: *const lacuna_tokenizer,
    out: *mut *mut lacuna_text,
) -> lacuna_status {
    guard(|| {
        let tokenizer = handle::get(tokenizer)?;
        handle::put(out, || tokenizer.text())
    })
}

/// The text that a token completes: often a word, sometimes nothing, for a character whose bytes are spread over
/// several tokens comes with the last of them. It belongs to the text and stays until the next call on it.
///
/// # Safety
/// `piece` has room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_text_push(
    text: *const lacuna_text,
    token: u32,
    piece: *mut *const c_char,
) -> lacuna_status {
    guard(|| {
        let text = handle::get(text)?;
        let mut text = handle::enter(&text, "text")?;
        memory::put(piece, "piece", text.push(token)?.as_ptr())
    })
}

/// Frees a text.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_text_free(text: *mut lacuna_text) -> lacuna_status {
    guard(|| handle::free(text))
}
