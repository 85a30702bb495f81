//! What a session holds: activations near the least that any layout takes, and no more anonymous memory
//! than packed weights, arena and 10 MB, loading and packing included.

use lacuna::{
    DType, Decoder, DecoderOptions, Model, Residency, Session, SessionOptions, TensorView,
};
use lacuna_bench::{Resident, networks};
use lacuna_tests::language;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the child process runs; set means that this is the child.
const CHILD: &str = "LACUNA_MEMORY_TEST_MODEL";

/// What anonymous memory may hold beside packed weights and arena.
const ALLOWED: u64 = 10_000_000;

#[test]
fn activations_take_little_more_than_the_bound() {
    for model in [
        networks::resnet50(0.1),
        networks::mobilenet_v1(0.5),
        networks::mobilenet_v2(1.0),
        Ok(decoder(false, DType::BF16)),
    ] {
        let model = model.unwrap();
        let memory = match model.is_language_model() {
            true => Decoder::new(&model, DecoderOptions::default())
                .unwrap()
                .memory(),
            false => Session::new(&model, SessionOptions::default())
                .unwrap()
                .memory(),
        };
        let (have, least) = (memory.activations, memory.activations_bound);
        assert!(least > 1_000_000, "{least}");
        assert!(
            have >= least && have as f64 <= 1.1 * least as f64,
            "{have} of {least}"
        );
    }
}

/// A folder beside the build: the models are larger than some systems' `/tmp`.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The most anonymous memory while `work` runs, looked at every few hundred microseconds.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let look = || {
        let now = Resident::now().map_or(0, |r| r.anonymous);
        peak.fetch_max(now, Ordering::Relaxed);
    };
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                look();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    look();
    (result, peak.into_inner())
}

/// A language model of 13 million weights, half of them zero where it is sparse, in BF16 or as signed bytes.
fn decoder(sparse: bool, dtype: DType) -> Model {
    let mut model = language::with_sizes(512, 300, [4096; 2]);
    if sparse {
        model = language::sparse(&model);
    }
    match dtype {
        DType::I8 => model.to_scaled(64).unwrap(),
        _ => model.to_dtype(dtype).unwrap(),
    }
}

/// In the child: opens, packs, runs, and prints peak, packed bytes, and arena with keys and values.
fn child(path: &Path) {
    let run = || {
        let model = Model::open(path).unwrap();
        if model.is_language_model() {
            let options = DecoderOptions {
                threads: 2,
                ..DecoderOptions::default()
            };
            let mut decoder = Decoder::new(&model, options).unwrap();
            decoder.prefill(&[7; 70]).unwrap();
            decoder.step(8).unwrap();
            return decoder.memory();
        }
        let options = SessionOptions {
            threads: 2,
            ..SessionOptions::default()
        };
        let mut session = Session::new(&model, options).unwrap();
        let x = vec![0.5; 3 * 224 * 224];
        session
            .run(&[TensorView::f32(&[1, 3, 224, 224], &x)])
            .unwrap();
        session.memory()
    };
    let (memory, peak) = peak_of(run);
    let kept = memory.arena + memory.cache;
    println!("measured {peak} {} {kept}", memory.packed);
}

#[cfg(target_os = "linux")]
#[test]
fn anonymous_memory_is_packed_weights_arena_and_little_else() {
    if let Some(path) = std::env::var_os(CHILD) {
        return child(&PathBuf::from(path));
    }
    let folder = scratch();
    for (name, model) in [
        ("resnet50 at 90 %", networks::resnet50(0.1)),
        ("resnet50 at 50 %", networks::resnet50(0.5)),
        ("mobilenet_v1 dense", networks::mobilenet_v1(1.0)),
        ("decoder, bf16", Ok(decoder(false, DType::BF16))),
        ("decoder, bf16 at 50 %", Ok(decoder(true, DType::BF16))),
        ("decoder, int8", Ok(decoder(false, DType::I8))),
        ("decoder, int8 at 50 %", Ok(decoder(true, DType::I8))),
    ] {
        let path = folder.path().join("model.safetensors");
        model.unwrap().save(&path).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "anonymous_memory_is_packed_weights_arena_and_little_else",
            ])
            .env(CHILD, &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|l| l.split("measured ").nth(1));
        let numbers: Vec<u64> = line
            .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let [peak, packed, arena] = numbers[..] else {
            panic!("{text}")
        };
        println!("{name}: anonymous peak {peak}, packed {packed}, arena {arena}");
        assert!(
            peak <= packed + arena + ALLOWED,
            "{name}: {peak} of {packed} + {arena}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn mapped_pages_of_packed_weights_are_let_go() {
    // Other mapped files, of which the test's own program is one, stay as they are.
    let file_pages = || Resident::now().unwrap().mapped;
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    networks::resnet50(0.5).unwrap().save(&path).unwrap();
    let model = Model::open(&path).unwrap();
    let before = file_pages();
    let session = Session::new(&model, SessionOptions::default()).unwrap();
    let packed = session
        .steps()
        .iter()
        .filter(|s| s.residency == Residency::Packed);
    assert!(packed.count() > 50);
    let after = file_pages();
    assert!(after + 40_000_000 < before, "{before} bytes, then {after}");
}
