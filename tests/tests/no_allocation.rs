//! A run after the first allocates nothing, in no thread.

mod common;

use common::small_model;
use lacuna::{
    DType, Decoder, DecoderOptions, Session, SessionOptions, Stream, TensorView, TensorViewMut,
};
use lacuna_tests::language;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counted.
struct Counted;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The calls that `work` makes each time: the fewest of some, since the harness allocates now and then.
fn calls(mut work: impl FnMut()) -> usize {
    let count = |_| {
        let before = CALLS.load(Ordering::SeqCst);
        work();
        CALLS.load(Ordering::SeqCst) - before
    };
    (0..10).map(count).min().unwrap_or(0)
}

/// One test, so that no other thread of the harness allocates.
#[test]
fn runs_after_the_first_allocate_nothing() {
    assert!(calls(|| drop(std::hint::black_box(vec![1u8; 100]))) > 0);

    let model = small_model();
    let x = vec![0.5f32; 2 * 2 * 5 * 5];
    let mut y = [0.0f32; 2 * 3];
    for threads in [1, 3] {
        let options = SessionOptions {
            threads,
            symbols: [("N".to_owned(), 2)].into(),
            ..SessionOptions::default()
        };
        let mut session = Session::new(&model, options).unwrap();
        let shape = session.outputs()[0].1.clone();
        let mut run = || {
            session
                .run_into(
                    &[TensorView::f32(&[2, 2, 5, 5], &x)],
                    &mut [TensorViewMut::f32(&shape, &mut y)],
                )
                .unwrap();
        };
        run();
        assert_eq!(calls(&mut run), 0, "{threads} threads");
    }

    let model = language::sparse(&language::decoder());
    let model = model.to_dtype(DType::BF16).unwrap();
    let prompt: Vec<u32> = (0..40).collect();
    for threads in [1, 3] {
        let options = DecoderOptions {
            threads,
            chunk: 16,
            ..DecoderOptions::default()
        };
        let mut decoder = Decoder::new(&model, options).unwrap();
        let mut run = || {
            decoder.reset();
            decoder.prefill(&prompt).unwrap();
            for token in 0..10 {
                decoder.step(token).unwrap();
            }
        };
        run();
        assert_eq!(calls(&mut run), 0, "a decoder, {threads} threads");
    }

    let arch = Some("fastgrnn-6-32-7-4-20".to_owned());
    let options = lacuna_convert::Options {
        arch,
        ..Default::default()
    };
    let model = lacuna_convert::untrained(&options, 0).unwrap();
    let mut stream = Stream::new(&model, SessionOptions::default()).unwrap();
    let (x, mut logits) = ([0.5; 6], [0.0; 7]);
    let mut step = || {
        stream
            .step_into(
                &[TensorView::f32(&[1, 6], &x)],
                &mut [TensorViewMut::f32(&[1, 7], &mut logits)],
            )
            .unwrap();
    };
    step();
    assert_eq!(calls(&mut step), 0, "a stream");
}
