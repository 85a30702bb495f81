//! The library as an app has it: installed, found by pkg-config, and linked by a C and a C++ compiler.

use runtime::{Model, Session, SessionOptions, TensorView};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// An installation, two models and some pictures with their classes.
struct Stage {
    folder: TempDir,
    pictures: Vec<(PathBuf, Vec<f32>, u8)>,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Compiles with these flags beside those of pkg-config; fails where there is no compiler.
    fn compile(&self, source: &str, name: &str, flags: &[&str]) -> PathBuf {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", self.path("lib/pkgconfig"));
        pkg_config.args(["--cflags", "--libs", "lacuna"]);
        if flags.contains(&"-static-lacuna") {
            pkg_config.arg("--static");
        }
        let found = String::from_utf8(run(&mut pkg_config).stdout).unwrap();
        let found = match flags.contains(&"-static-lacuna") {
            true => found.replace("-llacuna", "-l:liblacuna.a"),
            false => found,
        };
        let plus = source.ends_with(".cpp");
        let mut compiler = Command::new(if plus { "g++" } else { "gcc" });
        compiler.arg(if plus { "-std=c++17" } else { "-std=c11" });
        compiler.args(["-Wall", "-Wextra", "-Werror", "-g", "-O1"]);
        compiler.args(flags.iter().filter(|f| **f != "-static-lacuna"));
        compiler.arg(Path::new(ROOT).join(source));
        compiler.args(found.split_whitespace());
        let program = self.path(name);
        run(compiler.arg("-o").arg(&program));
        program
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.path("lib"));
        command
    }
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{:?} is needed: {e}", command.get_program()));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a program says; on stderr it must say nothing.
fn said(command: &mut Command) -> String {
    let output = run(command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let profile = if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        };
        let mut install = Command::new(Path::new(ROOT).join("install.sh"));
        run(install.arg(folder.path()).env("PROFILE", profile));
        let workspace = Path::new(ROOT).join("../..");
        for (source, name) in [
            (
                "pruner/assets/fashion-mnist/fashion-cnn.safetensors",
                "fashion",
            ),
            ("converters/tests/fixtures/language/llama.gguf", "llama"),
        ] {
            let options = lacuna_convert::Options::default();
            let model = lacuna_convert::open(workspace.join(source), &options).unwrap();
            model.save(folder.path().join(name)).unwrap();
        }
        let data = workspace.join("pruner/assets/fashion-mnist");
        let images = unpacked(&data.join("t10k-images-idx3-ubyte.gz"));
        let labels = unpacked(&data.join("t10k-labels-idx1-ubyte.gz"));
        let pictures = images[16..]
            .chunks(784)
            .zip(&labels[8..])
            .take(20)
            .enumerate();
        let pictures = pictures.map(|(i, (image, label))| {
            let path = folder.path().join(format!("{i}.pgm"));
            let mut pgm = b"P5\n# a piece of clothing\n28 28\n255\n".to_vec();
            pgm.extend_from_slice(image);
            std::fs::write(&path, pgm).unwrap();
            let value = |v: &u8| ((f64::from(*v) / 255.0 - 0.2860) / 0.3530) as f32;
            (path, image.iter().map(value).collect(), *label)
        });
        Stage {
            pictures: pictures.collect(),
            folder,
        }
    })
}

fn unpacked(path: &Path) -> Vec<u8> {
    run(Command::new("gzip").arg("-dc").arg(path)).stdout
}

/// Classes and scores, best first.
fn ranked(text: &str) -> Vec<(usize, f32)> {
    let line = |line: &str| {
        let (class, score) = line.trim().split_once(' ').unwrap();
        (class.parse().unwrap(), score.trim().parse().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn pictures_are_classified_from_c_and_from_cpp_as_from_rust() {
    let stage = stage();
    let programs = [
        stage.compile("examples/classify.c", "classify-c", &[]),
        stage.compile(
            "examples/classify.c",
            "classify-static",
            &["-static-lacuna"],
        ),
        stage.compile("examples/classify.cpp", "classify-cpp", &[]),
    ];
    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    let model = Model::open(stage.path("fashion")).unwrap();
    let mut session = Session::new(&model, options).unwrap();
    let mut right = 0;
    for (path, pixels, label) in &stage.pictures {
        let scores = session
            .run(&[TensorView::f32(&[1, 1, 28, 28], pixels)])
            .unwrap();
        let scores = &scores[0].data;
        for program in &programs {
            let mut command = stage.command(program);
            let found = ranked(&said(command.arg(stage.path("fashion")).arg(path)));
            assert_eq!(found.len(), 5);
            for (class, score) in &found {
                assert!(
                    (score - scores[*class]).abs() < 1e-3,
                    "{found:?} {scores:?}"
                );
            }
            assert!(scores.iter().all(|s| *s <= found[0].1 + 1e-3));
            right += usize::from(found[0].0 == usize::from(*label));
        }
    }
    // The network is right about 94 of 100.
    assert!(right >= 17 * programs.len(), "{right} of 60");
}

#[test]
fn a_text_is_continued_from_c_and_from_cpp_as_from_rust() {
    let stage = stage();
    let model = Model::open(stage.path("llama")).unwrap();
    let mut decoder = runtime::Decoder::new(&model, runtime::DecoderOptions::default()).unwrap();
    let tokenizer = runtime::Tokenizer::new(&model).unwrap();
    let mut text = tokenizer.stream();
    let mut expected = String::new();
    let options = runtime::GenerateOptions {
        max_tokens: 12,
        stop: model.text.as_ref().unwrap().eos.clone(),
        ..Default::default()
    };
    let prompt = tokenizer.encode("hello world", true).unwrap();
    decoder
        .generate(&prompt, &options, |token| {
            expected += &text.push(token).unwrap();
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    for (source, name) in [
        ("examples/generate.c", "generate-c"),
        ("examples/generate.cpp", "generate-cpp"),
    ] {
        let mut command = stage.command(&stage.compile(source, name, &[]));
        command
            .arg(stage.path("llama"))
            .args(["hello world", "--tokens", "12"]);
        assert_eq!(said(&mut command), format!("{expected}\n"), "{name}");
    }
}

#[test]
fn nothing_is_leaked_or_read_twice_under_the_address_sanitizer() {
    let stage = stage();
    let (fashion, picture) = (stage.path("fashion"), &stage.pictures[0].0);
    for kind in ["-static-lacuna", "-DSHARED"] {
        let flags = ["-fsanitize=address", "-fno-omit-frame-pointer", kind];
        let compile = |source: &str| {
            let name = format!("{}{kind}-asan", source.replace('/', "-"));
            stage.command(&stage.compile(source, &name, &flags))
        };
        let mut classify = compile("examples/classify.c");
        said(classify.arg(&fashion).arg(picture).args(["--threads", "2"]));
        said(compile("examples/classify.cpp").arg(&fashion).arg(picture));
        let mut generate = compile("examples/generate.c");
        said(
            generate
                .arg(stage.path("llama"))
                .args(["hello", "--tokens", "5"]),
        );
        let mut misuse = compile("tests/misuse.c");
        assert_eq!(said(misuse.arg(&fashion)), "answered\n");
    }
}

#[test]
fn nothing_is_leaked_or_read_uninitialised_under_valgrind() {
    let stage = stage();
    if Command::new("valgrind").arg("--version").output().is_err() {
        return eprintln!("there is no valgrind here: not checked");
    }
    let classify = stage.compile("examples/classify.c", "classify-valgrind", &[]);
    let generate = stage.compile("examples/generate.c", "generate-valgrind", &[]);
    let misuse = stage.compile("tests/misuse.c", "misuse-valgrind", &[]);
    let valgrind = |program: &Path, arguments: &[&str]| {
        let mut command = stage.command(Path::new("valgrind"));
        // It knows no AVX-512. Tables of hash maps are held by their middle: "possibly lost" is no leak.
        command.args(["-q", "--error-exitcode=9", "--leak-check=full"]);
        command.args([
            "--errors-for-leak-kinds=definite",
            "--show-leak-kinds=definite",
        ]);
        said(command.arg(program).args(arguments))
    };
    let isa = [
        "--isa",
        if cfg!(target_arch = "x86_64") {
            "avx2"
        } else {
            "scalar"
        },
    ];
    let (fashion, llama) = (stage.path("fashion"), stage.path("llama"));
    let (fashion, llama) = (fashion.to_str().unwrap(), llama.to_str().unwrap());
    let picture = stage.pictures[0].0.to_str().unwrap();
    valgrind(
        &classify,
        &[fashion, picture, isa[0], isa[1], "--threads", "2"],
    );
    valgrind(
        &generate,
        &[llama, "hello", "--tokens", "5", isa[0], isa[1]],
    );
    valgrind(&misuse, &[fashion]);
}

#[test]
fn eight_threads_of_python_run_one_model() {
    let stage = stage();
    let mut python = stage.command(Path::new("python3"));
    python.arg(Path::new(ROOT).join("examples/threads.py"));
    python
        .arg(stage.path("lib/liblacuna.so"))
        .arg(stage.path("fashion"));
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("there is no python3 here: not checked");
    }
    assert_eq!(said(&mut python), "8 threads, 400 runs, equal outputs\n");
}

#[test]
fn no_variable_file_or_thread_is_used_that_the_app_did_not_name() {
    let stage = stage();
    let classify = stage.compile("examples/classify.c", "classify-watched", &[]);
    let generate = stage.compile("examples/generate.c", "generate-watched", &[]);
    let watch = stage.path("watch.so");
    let mut compiler = Command::new("gcc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&watch);
    run(compiler
        .arg(Path::new(ROOT).join("tests/watch.c"))
        .arg("-ldl"));
    let watched = |program: &Path, arguments: &[&str]| {
        let mut command = stage.command(program);
        let output = run(command.args(arguments).env("LD_PRELOAD", &watch));
        String::from_utf8(output.stderr).unwrap()
    };
    let (fashion, llama) = (stage.path("fashion"), stage.path("llama"));
    let (fashion, llama) = (fashion.to_str().unwrap(), llama.to_str().unwrap());
    let picture = stage.pictures[0].0.to_str().unwrap();
    // The model is opened by the library; the picture by the example, with a call of libc that is not seen.
    let model = format!("file {fashion}\n");
    assert_eq!(watched(&classify, &[fashion, picture]), model);
    let said = watched(&classify, &[fashion, picture, "--threads", "3"]);
    let threads = said.matches("thread\n").count();
    assert_eq!(said.replace("thread\n", ""), model);
    // Two that stay and three that pack and go; the one that calls waits for them.
    assert!((2..=5).contains(&threads), "{said}");
    let said = watched(&generate, &[llama, "hello", "--tokens", "3"]);
    assert_eq!(said, format!("file {llama}\n"));
}
