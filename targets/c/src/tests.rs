//! The API as C calls it, with all that it must refuse.

use crate::abi::*;
use crate::decoder::*;
use crate::model::*;
use crate::session::*;
use crate::status::*;
use crate::text::*;
use lacuna_status::*;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// A model of the workspace as a Lacuna file.
fn converted(file: &'static OnceLock<(TempDir, PathBuf)>, source: &str) -> &'static Path {
    let (_, path) = file.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(source);
        let model = lacuna_convert::open(source, &lacuna_convert::Options::default()).unwrap();
        let path = folder.path().join("model.safetensors");
        model.save(&path).unwrap();
        (folder, path)
    });
    path
}

/// A network for pictures of clothes.
fn fashion() -> &'static Path {
    static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    converted(&FILE, "pruner/assets/fashion-mnist/fashion-cnn.safetensors")
}

/// A small Llama with a tokenizer.
fn llama() -> &'static Path {
    static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    converted(&FILE, "converters/tests/fixtures/language/llama.gguf")
}

fn message() -> String {
    // SAFETY: it is a string that stays until the next call that fails.
    unsafe { CStr::from_ptr(lacuna_last_error()) }
        .to_str()
        .unwrap()
        .to_owned()
}

/// A call that is refused so, with these words.
#[track_caller]
fn refused(got: lacuna_status, wanted: lacuna_status, words: &str) {
    assert_eq!(got, wanted, "{}", message());
    assert!(
        message().contains(words),
        "`{words}` is not in: {}",
        message()
    );
}

#[track_caller]
fn done(got: lacuna_status) {
    assert_eq!(got, Ok, "{}", message());
}

#[track_caller]
fn model(path: impl AsRef<Path>) -> *mut lacuna_model {
    let path = CString::new(path.as_ref().to_str().unwrap()).unwrap();
    let mut model = null_mut();
    // SAFETY: a string and a place.
    done(unsafe { lacuna_model_open(path.as_ptr(), &mut model) });
    model
}

fn zeroed<T>() -> T {
    // SAFETY: used for structs of numbers and pointers.
    unsafe { std::mem::zeroed() }
}

fn session_options() -> lacuna_session_options {
    lacuna_session_options {
        size: size_of::<lacuna_session_options>(),
        ..zeroed()
    }
}

#[track_caller]
fn session(model: *mut lacuna_model) -> *mut lacuna_session {
    let mut session = null_mut();
    // SAFETY: NULL options, and a place.
    done(unsafe { lacuna_session_new(model, null(), &mut session) });
    session
}

fn input(data: &[f32]) -> lacuna_input {
    lacuna_input {
        size: size_of::<lacuna_input>(),
        data: data.as_ptr().cast(),
        bytes: size_of_val(data),
        ..zeroed()
    }
}

fn output(data: &mut [f32]) -> lacuna_output {
    lacuna_output {
        size: size_of::<lacuna_output>(),
        data: data.as_mut_ptr().cast(),
        bytes: size_of_val(data),
        ..zeroed()
    }
}

fn run(session: *mut lacuna_session, input: lacuna_input, output: lacuna_output) -> lacuna_status {
    // SAFETY: tests give memory as large as they say, or what must be refused before it is touched.
    unsafe { lacuna_session_run(session, &input, 1, &output, 1) }
}

fn picture() -> Vec<f32> {
    (0..784).map(|i| (i % 29) as f32 / 29.0).collect()
}

#[track_caller]
fn scores(model: *mut lacuna_model) -> [f32; 10] {
    let (session, mut scores) = (session(model), [0.0; 10]);
    done(run(session, input(&picture()), output(&mut scores)));
    done(lacuna_session_free(session));
    scores
}

#[test]
fn a_model_is_the_same_from_a_path_from_memory_and_from_a_part_of_a_file() {
    let expected = {
        let model = model(fashion());
        let scores = scores(model);
        done(lacuna_model_free(model));
        scores
    };
    assert!(expected.iter().any(|s| *s != 0.0));

    let bytes = std::fs::read(fashion()).unwrap();
    let mut model = null_mut();
    // SAFETY: the bytes outlive the model.
    done(unsafe { lacuna_model_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut model) });
    assert_eq!(scores(model), expected);
    done(lacuna_model_free(model));

    // Where an archive has it: at an odd place, with something behind it.
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let mut archive = tempfile::tempfile().unwrap();
    archive.write_all(&[7; 12345]).unwrap();
    archive.write_all(&bytes).unwrap();
    archive.write_all(&[9; 99]).unwrap();
    let (fd, length) = (archive.as_raw_fd(), bytes.len() as u64);
    // SAFETY: a place.
    let open = |fd, offset, length, out| unsafe { lacuna_model_open_fd(fd, offset, length, out) };
    done(open(fd, 12345, length, &mut model));
    refused(
        open(fd, 12345, 0, &mut null_mut()),
        InvalidModel,
        "descriptor",
    );
    refused(
        open(fd, 1 << 40, 0, &mut null_mut()),
        InvalidModel,
        "1099511627776",
    );
    drop(archive);
    assert_eq!(scores(model), expected);
    done(lacuna_model_free(model));
    refused(open(-1, 0, 0, &mut null_mut()), InvalidArgument, "-1");
    refused(open(1_000_000, 0, 0, &mut null_mut()), Io, "1000000");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let mut out = null_mut();
    // SAFETY: strings and places, or NULL, which is refused.
    unsafe {
        refused(
            lacuna_model_open(c"/nowhere/m".as_ptr(), &mut out),
            Io,
            "/nowhere/m",
        );
        refused(
            lacuna_model_open(null(), &mut out),
            InvalidArgument,
            "path: NULL",
        );
        refused(
            lacuna_model_open(c"\xff".as_ptr(), &mut out),
            InvalidArgument,
            "UTF-8",
        );
        refused(
            lacuna_model_open_memory(null(), 10, &mut out),
            InvalidArgument,
            "NULL",
        );
        refused(
            lacuna_model_open_memory(null(), 0, &mut out),
            InvalidModel,
            "memory",
        );
        let rubbish = [1u8; 100];
        let rubbish = rubbish.as_ptr().cast::<c_void>();
        refused(
            lacuna_model_open_memory(rubbish, 100, &mut out),
            InvalidModel,
            "memory",
        );
        let path = CString::new(fashion().to_str().unwrap()).unwrap();
        refused(
            lacuna_model_open(path.as_ptr(), null_mut()),
            InvalidArgument,
            "NULL",
        );
    }
    assert!(out.is_null());
}

#[test]
fn handles_that_are_null_freed_of_another_kind_or_made_up_are_refused() {
    let mut n = 0;
    // SAFETY: a place.
    let mut count = |model| unsafe { lacuna_model_input_count(model, &mut n) };
    let good = model(fashion());
    done(count(good));
    refused(count(null_mut()), InvalidHandle, "the model is NULL");
    let on_the_stack = [0u64; 4];
    refused(
        count(on_the_stack.as_ptr().cast_mut().cast()),
        InvalidHandle,
        "no model",
    );
    for number in [1usize, 2, 8, usize::MAX, 1 << 20] {
        if number != good.addr() {
            let made_up = without_provenance_mut(number.wrapping_mul(1_000_003));
            refused(count(made_up), InvalidHandle, "no model");
        }
    }
    let session = session(good);
    refused(
        count(session.cast()),
        InvalidHandle,
        "a session where one of a model",
    );
    refused(
        lacuna_model_free(session.cast()),
        InvalidHandle,
        "a session",
    );
    done(lacuna_model_free(good));
    refused(count(good), InvalidHandle, "freed");
    refused(lacuna_model_free(good), InvalidHandle, "freed");
    // The session keeps what it needs.
    done(run(session, input(&picture()), output(&mut [0.0; 10])));
    done(lacuna_session_free(session));
    refused(
        run(session, input(&picture()), output(&mut [0.0; 10])),
        InvalidHandle,
        "freed",
    );
    assert_eq!(n, 1);

    done(lacuna_model_free(null_mut()));
    done(lacuna_session_free(null_mut()));
    done(lacuna_decoder_free(null_mut()));
    done(lacuna_sampler_free(null_mut()));
    done(lacuna_tokenizer_free(null_mut()));
    done(lacuna_text_free(null_mut()));
    refused(
        lacuna_decoder_step(null(), 1),
        InvalidHandle,
        "the decoder is NULL",
    );
    refused(
        lacuna_decoder_reset(null()),
        InvalidHandle,
        "the decoder is NULL",
    );
    // SAFETY: NULL handles.
    unsafe {
        let mut place = null();
        refused(
            lacuna_text_push(null(), 1, &mut place),
            InvalidHandle,
            "the text is NULL",
        );
        refused(
            lacuna_tokenizer_ends(null(), 1, &mut 0),
            InvalidHandle,
            "the tokenizer is NULL",
        );
        refused(
            lacuna_sampler_next(null(), null(), &mut 0),
            InvalidHandle,
            "the sampler is NULL",
        );
    }
}

#[test]
fn options_of_other_sizes_are_read_as_far_as_both_know_them() {
    let model = model(fashion());
    let try_with = |options: *const lacuna_session_options| {
        let mut out = null_mut();
        // SAFETY: options with their size, and a place.
        let status = unsafe { lacuna_session_new(model, options, &mut out) };
        done(lacuna_session_free(out));
        status
    };
    done(try_with(&session_options()));
    for size in [
        0,
        1,
        size_of::<lacuna_session_options>() - 1,
        4097,
        usize::MAX,
    ] {
        let options = lacuna_session_options {
            size,
            ..session_options()
        };
        refused(
            try_with(&options),
            InvalidArgument,
            &format!("size is {size}"),
        );
    }
    #[repr(C)]
    struct Newer(lacuna_session_options, usize);
    let mut newer = Newer(session_options(), 0);
    newer.0.size = size_of::<Newer>();
    done(try_with((&raw const newer).cast()));
    newer.1 = 1 << 40;
    refused(
        try_with((&raw const newer).cast()),
        Unsupported,
        "does not know",
    );

    let with = |change: fn(&mut lacuna_session_options)| {
        let mut options = session_options();
        change(&mut options);
        try_with(&options)
    };
    refused(with(|o| o.flags = 1 << 20), InvalidArgument, "0x100000");
    refused(
        with(|o| o.flags = LACUNA_FLAG_KEEP_INPUTS),
        InvalidArgument,
        "0x4",
    );
    refused(with(|o| o.threads = 5000), InvalidArgument, "5000");
    refused(with(|o| o.isa = c"mmx".as_ptr()), InvalidArgument, "mmx");
    refused(
        with(|o| o.symbol_count = 1),
        InvalidArgument,
        "symbols: NULL",
    );
    done(with(|o| o.isa = c"scalar".as_ptr()));
    done(with(|o| o.threads = LACUNA_THREADS_ALL));
    done(lacuna_model_free(model));
}

#[test]
fn inputs_and_outputs_are_described() {
    let model = model(llama());
    let mut info: lacuna_tensor_info = zeroed();
    let (mut count, mut symbol) = (0, null());
    // SAFETY: structs with their sizes, and places; what is read belongs to the model.
    unsafe {
        refused(
            lacuna_model_input(model, 0, &mut info),
            InvalidArgument,
            "size is 0",
        );
        info.size = size_of::<lacuna_tensor_info>();
        refused(
            lacuna_model_input(model, 3, &mut info),
            InvalidArgument,
            "number 3",
        );
        done(lacuna_model_input_count(model, &mut count));
        done(lacuna_model_input(model, 0, &mut info));
        assert_eq!((count, info.rank, info.dtype), (1, 2, LACUNA_DTYPE_I64));
        assert_eq!(std::slice::from_raw_parts(info.shape, 2), [0, 0]);
        assert_eq!((info.bytes, info.reserved), (0, 0));
        done(lacuna_model_input_symbol(model, 0, 1, &mut symbol));
        assert_eq!(CStr::from_ptr(symbol), c"T");
        refused(
            lacuna_model_input_symbol(model, 0, 2, &mut symbol),
            InvalidArgument,
            "dimension 2 of input 0",
        );
        // An older app asks for less.
        let mut older: [usize; 6] = [40, 1, 1, 1, 1, 0x55];
        let older = older.as_mut_ptr();
        let status = lacuna_model_input(model, 0, older.cast());
        refused(status, InvalidArgument, "size is 40");
        assert_eq!(*older.add(5), 0x55);
    }
    done(lacuna_model_free(model));
}

#[test]
fn tensors_that_do_not_fit_are_refused_and_nothing_is_written() {
    let model = model(fashion());
    let session = session(model);
    let (data, mut scores) = (picture(), [42.0f32; 10]);
    let good_in = input(&data);
    let good_out = output(&mut scores);
    let with_in = |change: &dyn Fn(&mut lacuna_input)| {
        let mut changed = good_in;
        change(&mut changed);
        run(session, changed, good_out)
    };
    let with_out = |change: &dyn Fn(&mut lacuna_output)| {
        let mut changed = good_out;
        change(&mut changed);
        run(session, good_in, changed)
    };
    refused(with_in(&|i| i.bytes -= 4), InvalidArgument, "3132 bytes");
    refused(with_in(&|i| i.data = null()), InvalidArgument, "x");
    refused(
        with_in(&|i| i.dtype = LACUNA_DTYPE_I64),
        InvalidArgument,
        "`x`",
    );
    refused(with_in(&|i| i.dtype = 77), InvalidArgument, "dtype 77");
    refused(
        with_in(&|i| i.name = c"y".as_ptr()),
        InvalidArgument,
        "no input `y`",
    );
    refused(with_in(&|i| i.size = 8), InvalidArgument, "size is 8");
    refused(
        with_in(&|i| i.data = i.data.wrapping_byte_add(1)),
        InvalidArgument,
        "not aligned",
    );
    let (three, swapped) = ([1usize, 784], [1usize, 28, 28, 1]);
    refused(
        with_in(&|i| (i.shape, i.rank) = (three.as_ptr(), 2)),
        InvalidArgument,
        "[1, 784]",
    );
    refused(
        with_in(&|i| (i.shape, i.rank) = (swapped.as_ptr(), 4)),
        InvalidArgument,
        "[1, 28, 28, 1]",
    );
    let huge = [usize::MAX; 4];
    refused(
        with_in(&|i| (i.shape, i.rank) = (huge.as_ptr(), 4)),
        InvalidArgument,
        "do not fill",
    );
    refused(with_out(&|o| o.bytes = 44), InvalidArgument, "44 bytes");
    refused(
        with_out(&|o| o.dtype = LACUNA_DTYPE_I64),
        InvalidArgument,
        "dtype 1",
    );
    refused(
        with_out(&|o| o.data = data.as_ptr().cast_mut().cast()),
        InvalidArgument,
        "overlaps",
    );
    // SAFETY: refused before memory is touched.
    unsafe {
        let status = lacuna_session_run(session, &good_in, 0, &good_out, 1);
        refused(status, InvalidArgument, "0 inputs given; there are 1: `x`");
        let status = lacuna_session_run(session, null(), 1, &good_out, 1);
        refused(status, InvalidArgument, "NULL");
        let status = lacuna_session_run(session, &good_in, usize::MAX, &good_out, 1);
        refused(status, InvalidArgument, "18446744073709551615");
    }
    let mut poisoned = picture();
    poisoned[5] = f32::NAN;
    refused(
        run(session, input(&poisoned), good_out),
        InvalidArgument,
        "element 5 is NaN",
    );
    assert_eq!(scores, [42.0; 10]);
    let shape = [1usize, 1, 28, 28];
    done(with_in(&|i| {
        (i.shape, i.rank) = (shape.as_ptr(), 4);
        i.name = c"x".as_ptr();
    }));
    assert!(scores.iter().all(|s| *s != 42.0));
    done(lacuna_session_free(session));
    done(lacuna_model_free(model));
}

#[test]
fn a_text_is_continued_as_the_runtime_does_it() {
    let handle = model(llama());
    let (mut tokenizer, mut decoder, mut sampler) = (null_mut(), null_mut(), null_mut());
    let (mut text, mut count, mut tokens) = (null_mut(), 0, [0u32; 64]);
    let prompt = c"hello world".to_bytes();
    // SAFETY: strings, places, and room of the size that is told.
    unsafe {
        done(lacuna_tokenizer_new(handle, &mut tokenizer));
        done(lacuna_decoder_new(handle, null(), &mut decoder));
        done(lacuna_sampler_new(null(), &mut sampler));
        done(lacuna_text_new(tokenizer, &mut text));
        let status = lacuna_tokenizer_encode(
            tokenizer,
            prompt.as_ptr().cast(),
            prompt.len(),
            1,
            null_mut(),
            0,
            &mut count,
        );
        refused(status, BufferTooSmall, "room for 0 tokens");
        let needed = count;
        done(lacuna_tokenizer_encode(
            tokenizer,
            prompt.as_ptr().cast(),
            prompt.len(),
            1,
            tokens.as_mut_ptr(),
            tokens.len(),
            &mut count,
        ));
        assert_eq!(count, needed);
        let status = lacuna_sampler_next(sampler, decoder, &mut 0);
        refused(status, InvalidArgument, "no token was processed");
        done(lacuna_decoder_prefill(decoder, tokens.as_ptr(), count));
    }

    let rust = runtime::Model::open(llama()).unwrap();
    let mut reference = runtime::Decoder::new(
        &rust,
        runtime::DecoderOptions {
            threads: 1,
            ..Default::default()
        },
    )
    .unwrap();
    let tokenizer_too = runtime::Tokenizer::new(&rust).unwrap();
    let ids = tokenizer_too.encode("hello world", true).unwrap();
    assert_eq!(ids, tokens[..count]);
    let mut wanted = reference.prefill(&ids).unwrap().to_vec();
    let (mut logits, mut n, mut pieces) = (vec![0f32; wanted.len()], 0, String::new());
    let mut made = Vec::new();
    for _ in 0..12 {
        let mut next = 0;
        // SAFETY: as above.
        unsafe {
            let room = logits.len();
            done(lacuna_decoder_logits(
                decoder,
                logits.as_mut_ptr(),
                room,
                &mut n,
            ));
            assert_eq!((&logits, n), (&wanted, room));
            done(lacuna_sampler_next(sampler, decoder, &mut next));
            let mut piece: *const c_char = null();
            done(lacuna_text_push(text, next, &mut piece));
            pieces.push_str(CStr::from_ptr(piece).to_str().unwrap());
        }
        made.push(next);
        done(lacuna_decoder_step(decoder, next));
        wanted = reference.step(next).unwrap().to_vec();
    }
    let (mut bytes, mut room) = (0, [1u8; 256]);
    // SAFETY: as above.
    unsafe {
        let to = room.as_mut_ptr().cast();
        done(lacuna_tokenizer_decode(
            tokenizer,
            made.as_ptr(),
            made.len(),
            to,
            256,
            &mut bytes,
        ));
        assert_eq!(room[bytes], 0);
        let whole = std::str::from_utf8(&room[..bytes]).unwrap();
        assert_eq!(whole, tokenizer_too.decode(&made).unwrap());
        assert!(whole.starts_with(&pieces), "{whole} {pieces}");
        let status =
            lacuna_tokenizer_decode(tokenizer, made.as_ptr(), made.len(), to, bytes, &mut bytes);
        refused(status, BufferTooSmall, "bytes");

        let mut position = 0;
        done(lacuna_decoder_position(decoder, &mut position));
        assert_eq!(position, count + made.len());
        done(lacuna_decoder_truncate(decoder, count));
        let status = lacuna_decoder_logits(decoder, logits.as_mut_ptr(), logits.len(), &mut n);
        refused(status, InvalidArgument, "no token was processed");
        done(lacuna_decoder_step(decoder, made[0]));
        done(lacuna_decoder_logits(
            decoder,
            logits.as_mut_ptr(),
            logits.len(),
            &mut n,
        ));
        reference.truncate(count);
        assert_eq!(logits, reference.step(made[0]).unwrap());
        done(lacuna_decoder_reset(decoder));
        done(lacuna_decoder_position(decoder, &mut position));
        assert_eq!(position, 0);

        refused(
            lacuna_decoder_step(decoder, u32::MAX),
            InvalidArgument,
            "4294967295",
        );
        refused(
            lacuna_decoder_prefill(decoder, null(), 0),
            InvalidArgument,
            "no tokens",
        );
        refused(
            lacuna_decoder_prefill(decoder, null(), 5),
            InvalidArgument,
            "tokens: NULL",
        );
        let many = vec![1u32; 1 << 20];
        refused(
            lacuna_decoder_prefill(decoder, many.as_ptr(), many.len()),
            InvalidArgument,
            "1048576",
        );
        refused(
            lacuna_tokenizer_encode(tokenizer, c"\xff".as_ptr(), 1, 0, null_mut(), 0, &mut n),
            InvalidArgument,
            "UTF-8 at byte 0",
        );
        let mut ends = 7;
        done(lacuna_tokenizer_ends(tokenizer, 0, &mut ends));
        assert!(ends == 0 || ends == 1);
        let mut usage: lacuna_usage = zeroed();
        usage.size = size_of::<lacuna_usage>();
        done(lacuna_decoder_usage(decoder, &mut usage));
        assert_eq!(usage.threads, 1);
        assert!(usage.working_bytes > 0 && usage.packed_bytes + usage.mapped_bytes > 0);
        assert_eq!(CStr::from_ptr(usage.isa).to_str().unwrap(), reference.isa());
    }
    done(lacuna_tokenizer_free(tokenizer));
    done(lacuna_text_free(text));
    done(lacuna_sampler_free(sampler));
    done(lacuna_decoder_free(decoder));
    done(lacuna_model_free(handle));
}

#[test]
fn a_model_that_is_no_language_model_is_refused_as_one() {
    let model = model(fashion());
    // SAFETY: places.
    unsafe {
        refused(
            lacuna_decoder_new(model, null(), &mut null_mut()),
            InvalidModel,
            "no decoder",
        );
        refused(
            lacuna_tokenizer_new(model, &mut null_mut()),
            InvalidArgument,
            "no tokenizer",
        );
    }
    done(lacuna_model_free(model));
}

#[test]
fn bad_sampling_is_refused_with_the_value() {
    let with = |temperature, top_p| {
        let options = lacuna_sampler_options {
            size: size_of::<lacuna_sampler_options>(),
            seed: 1,
            top_k: 0,
            temperature,
            top_p,
        };
        // SAFETY: options with their size, and a place.
        unsafe { lacuna_sampler_new(&options, &mut null_mut()) }
    };
    refused(with(-1.0, 1.0), InvalidArgument, "-1");
    refused(with(f32::NAN, 1.0), InvalidArgument, "NaN");
    refused(with(1.0, 2.0), InvalidArgument, "top_p of 2");
}

#[test]
fn one_session_for_two_threads_is_busy_and_one_for_each_is_not() {
    let model = model(fashion());
    let expected = scores(model);
    let shared = session(model).addr();
    let (busy, done_) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let model = model.addr();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = session(without_provenance_mut(model));
                for _ in 0..100 {
                    let mut scores = [0.0; 10];
                    done(run(own, input(&picture()), output(&mut scores)));
                    assert_eq!(scores, expected);
                    let shared = without_provenance_mut(shared);
                    match run(shared, input(&picture()), output(&mut scores)) {
                        Ok => {
                            done_.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(scores, expected);
                        }
                        status => {
                            refused(status, Busy, "another thread is in the session");
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                done(lacuna_session_free(own));
            });
        }
    });
    assert!(done_.into_inner() > 0);
    done(lacuna_session_free(without_provenance_mut(shared)));
    done(lacuna_model_free(without_provenance_mut(model)));
}

#[test]
fn a_handle_freed_during_a_call_goes_when_the_call_ends() {
    let model = model(fashion());
    let handle = session(model).addr();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                loop {
                    let (data, mut scores) = (picture(), [0.0; 10]);
                    let handle = without_provenance_mut(handle);
                    match run(handle, input(&data), output(&mut scores)) {
                        Ok | Busy => {}
                        status => break refused(status, InvalidHandle, "freed"),
                    }
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        done(lacuna_session_free(without_provenance_mut(handle)));
    });
    done(lacuna_model_free(model));
}

#[test]
fn a_panic_becomes_a_status_and_messages_belong_to_threads() {
    refused(
        guard(|| panic!("the {} word", "last")),
        Internal,
        "the last word",
    );
    std::thread::spawn(|| assert_eq!(message(), ""))
        .join()
        .unwrap();
    done(guard(|| Result::Ok(())));
    assert!(message().contains("the last word"));
}

#[test]
fn versions_and_statuses_have_names() {
    assert_eq!(lacuna_abi_version(), LACUNA_ABI_VERSION);
    // SAFETY: strings.
    let text = |s| unsafe { CStr::from_ptr(s) }.to_str().unwrap();
    assert_eq!(text(lacuna_version()), env!("CARGO_PKG_VERSION"));
    let known: Vec<&str> = (0..=8).map(|s| text(lacuna_status_name(s))).collect();
    assert!(!known.contains(&"unknown"), "{known:?}");
    assert_eq!(text(lacuna_status_name(9)), "unknown");
    assert_eq!(text(lacuna_status_name(-1)), "unknown");
    assert_eq!(known[Internal as usize], "internal");
}
