//! Decoders: a language model token by token, and the choice of the next token.

use crate::handle::{self, Handle};
use crate::memory::{self, Versioned};
use crate::model::lacuna_model;
use crate::session::{
    LACUNA_FLAG_DENSE, LACUNA_FLAG_KEEP_INPUTS, LACUNA_FLAG_ROUND_INPUTS, flags, lacuna_flags,
    lacuna_usage, threads,
};
use crate::status::{Failure, Result, c_string, guard, lacuna_status};
use runtime::{Decoder, DecoderOptions, Sampler, Sampling};
use std::ffi::{CString, c_char};
use std::sync::Mutex;

/// A language model with the keys and values of one sequence.
pub struct lacuna_decoder {
    _opaque: [u8; 0],
}

/// How a decoder is planned and run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_decoder_options {
    /// sizeof(lacuna_decoder_options).
    pub size: usize,
    /// As in lacuna_session_options.
    pub isa: *const c_char,
    /// The longest sequence; 0 takes the model's context, 2048 at most. Its keys and values are held from the
    /// start.
    pub capacity: usize,
    /// Tokens of a prompt that are processed at a time; 0 takes 128.
    pub chunk: usize,
    /// As in lacuna_session_options.
    pub threads: u32,
    /// LACUNA_FLAG_...
    pub flags: lacuna_flags,
}

// SAFETY: repr(C), a size first, zeros are NULL and 0; the last two fields fill a word.
unsafe impl Versioned for lacuna_decoder_options {
    const NAME: &'static str = "lacuna_decoder_options";
    const FIRST: usize = size_of::<lacuna_decoder_options>();
}

pub struct Decoding {
    decoder: Mutex<Decoder>,
    isa: CString,
}

impl Handle for lacuna_decoder {
    type Object = Decoding;
    const NAME: &'static str = "decoder";
}

fn options(given: *const lacuna_decoder_options) -> Result<DecoderOptions> {
    let given = memory::read(given)?;
    let known = [
        LACUNA_FLAG_DENSE,
        LACUNA_FLAG_ROUND_INPUTS,
        LACUNA_FLAG_KEEP_INPUTS,
    ];
    let [dense, round, keep] = flags(given.flags, known)?;
    if round && keep {
        return Err(Failure::argument("flags: round inputs, and keep them"));
    }
    // SAFETY: the app promises that the string ends with a zero byte.
    let isa = unsafe { memory::optional_string(given.isa, "isa") }?;
    Ok(DecoderOptions {
        threads: threads(given.threads),
        isa: isa.map(str::to_owned),
        dense,
        round_inputs: (round || keep).then_some(round),
        capacity: given.capacity,
        chunk: given.chunk,
        ..DecoderOptions::default()
    })
}

/// Plans a language model for this device. NULL options are zeros.
///
/// # Safety
/// Strings end with a zero byte; `options->size` is set; `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_new(
    model: *const lacuna_model,
    options: *const lacuna_decoder_options,
    out: *mut *mut lacuna_decoder,
) -> lacuna_status {
    guard(|| {
        let model = handle::get(model)?;
        let options = self::options(options)?;
        handle::put(out, || {
            let decoder = Decoder::new(&model.model, options)?;
            Ok(Decoding {
                isa: c_string(decoder.isa()),
                decoder: Mutex::new(decoder),
            })
        })
    })
}

fn with<T>(decoder: *const lacuna_decoder, f: impl FnOnce(&mut Decoder) -> Result<T>) -> Result<T> {
    let decoding = handle::get(decoder)?;
    let mut decoder = handle::enter(&decoding.decoder, "decoder")?;
    f(&mut decoder)
}

/// Processes tokens after those before: a prompt, or a part of it. lacuna_decoder_logits then has what follows the
/// last one. When they do not fit, or one is not in the vocabulary, the sequence is as it was.
///
/// # Safety
/// There are `count` tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_prefill(
    decoder: *const lacuna_decoder,
    tokens: *const u32,
    count: usize,
) -> lacuna_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let tokens = unsafe { memory::elements(tokens, count, "tokens") }?;
        with(decoder, |d| Ok(d.prefill(tokens).map(|_| ())?))
    })
}

/// Processes one token.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_decoder_step(decoder: *const lacuna_decoder, token: u32) -> lacuna_status {
    guard(|| with(decoder, |d| Ok(d.step(token).map(|_| ())?)))
}

/// Copies the logits that follow the last token: one for each token of the vocabulary.
///
/// # Safety
/// `logits` has room for `capacity` of them, `count` for their number; NULL with 0 asks for the number alone and
/// returns LACUNA_STATUS_BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_logits(
    decoder: *const lacuna_decoder,
    logits: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> lacuna_status {
    guard(|| {
        with(decoder, |d| {
            let made = d.logits().ok_or_else(no_logits)?;
            // SAFETY: the caller's promise.
            unsafe { memory::fill(made, None, logits, capacity, count, "logits") }
        })
    })
}

fn no_logits() -> Failure {
    Failure::argument("no token was processed since the start, a reset or a truncation")
}

/// Tokens processed so far: the position of the next one.
///
/// # Safety
/// `position` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_position(
    decoder: *const lacuna_decoder,
    position: *mut usize,
) -> lacuna_status {
    guard(|| with(decoder, |d| memory::put(position, "position", d.position())))
}

/// The longest sequence.
///
/// # Safety
/// `capacity` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_capacity(
    decoder: *const lacuna_decoder,
    capacity: *mut usize,
) -> lacuna_status {
    guard(|| with(decoder, |d| memory::put(capacity, "capacity", d.capacity())))
}

/// Tokens of the vocabulary: how many logits there are.
///
/// # Safety
/// `vocabulary` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_vocabulary(
    decoder: *const lacuna_decoder,
    vocabulary: *mut usize,
) -> lacuna_status {
    guard(|| {
        with(decoder, |d| {
            memory::put(vocabulary, "vocabulary", d.vocabulary())
        })
    })
}

/// Forgets every token: a new sequence.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_decoder_reset(decoder: *const lacuna_decoder) -> lacuna_status {
    guard(|| {
        with(decoder, |d| {
            d.reset();
            Ok(())
        })
    })
}

/// Forgets the tokens from `position` on, so that the sequence can be continued in another way.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_decoder_truncate(
    decoder: *const lacuna_decoder,
    position: usize,
) -> lacuna_status {
    guard(|| {
        with(decoder, |d| {
            d.truncate(position);
            Ok(())
        })
    })
}

/// What the decoder uses.
///
/// # Safety
/// `usage->size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_decoder_usage(
    decoder: *const lacuna_decoder,
    usage: *mut lacuna_usage,
) -> lacuna_status {
    guard(|| {
        let decoding = handle::get(decoder)?;
        let decoder = handle::enter(&decoding.decoder, "decoder")?;
        let memory = decoder.memory();
        let answer = lacuna_usage {
            size: 0,
            isa: decoding.isa.as_ptr(),
            threads: decoder.threads(),
            working_bytes: memory.arena + memory.cache,
            packed_bytes: memory.packed,
            mapped_bytes: memory.mapped,
        };
        memory::write(usage, &answer)
    })
}

/// Frees a decoder and ends its threads.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_decoder_free(decoder: *mut lacuna_decoder) -> lacuna_status {
    guard(|| handle::free(decoder))
}

/// Chooses tokens; keeps the state of its random numbers.
pub struct lacuna_sampler {
    _opaque: [u8; 0],
}

impl Handle for lacuna_sampler {
    type Object = Mutex<Sampler>;
    const NAME: &'static str = "sampler";
}

/// How the next token is chosen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_sampler_options {
    /// sizeof(lacuna_sampler_options).
    pub size: usize,
    /// Where the random numbers start: equal seeds give equal texts.
    pub seed: u64,
    /// Choose among so many of the most likely tokens; 0 for all.
    pub top_k: usize,
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Choose among the most likely tokens that hold this share of the probability together; 0 and 1 for all.
    pub top_p: f32,
}

// SAFETY: repr(C), a size first, zeros are numbers. On targets of 32 bits the seed is aligned to 4 or leaves a
// gap after the size, which is copied as bytes and never read.
unsafe impl Versioned for lacuna_sampler_options {
    const NAME: &'static str = "lacuna_sampler_options";
    const FIRST: usize = size_of::<lacuna_sampler_options>();
}

/// Makes a sampler. NULL options are zeros: always the most likely token.
///
/// # Safety
/// `options->size` is set; `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_sampler_new(
    options: *const lacuna_sampler_options,
    out: *mut *mut lacuna_sampler,
) -> lacuna_status {
    guard(|| {
        let given = memory::read(options)?;
        let sampling = Sampling {
            temperature: given.temperature,
            top_k: given.top_k,
            top_p: match given.top_p {
                0.0 => 1.0,
                p => p,
            },
            seed: given.seed,
        };
        handle::put(out, || Ok(Mutex::new(Sampler::new(sampling)?)))
    })
}

/// Chooses the token that follows the last one of the decoder, which does not process it yet.
///
/// # Safety
/// `token` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_sampler_next(
    sampler: *const lacuna_sampler,
    decoder: *const lacuna_decoder,
    token: *mut u32,
) -> lacuna_status {
    guard(|| {
        let sampler = handle::get(sampler)?;
        let mut sampler = handle::enter(&sampler, "sampler")?;
        with(decoder, |d| {
            let next = sampler.sample(d.logits().ok_or_else(no_logits)?)?;
            memory::put(token, "token", next)
        })
    })
}

/// Frees a sampler.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_sampler_free(sampler: *mut lacuna_sampler) -> lacuna_status {
    guard(|| handle::free(sampler))
}
