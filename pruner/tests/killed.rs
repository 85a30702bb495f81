//! Training that is killed, at many times and in the middle of its writes: what it goes on to gives the same files.
#![cfg(unix)]

mod training;

use safetensors::SafeTensors;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use training::{Place, until_it_ends, well};

/// The signals that end a process: by a test, and by the system for a file that grows beyond its limit.
const KILL: i32 = 9;
const FILE_SIZE: i32 = 25;

#[test]
fn a_run_that_is_killed_again_and_again_gives_the_same_bytes_on_any_number_of_threads() {
    let place = Place::new();
    let started = Instant::now();
    well(
        place
            .command("whole.safetensors", &["--threads", "1"])
            .output()
            .unwrap(),
    );
    let whole = started.elapsed();
    well(
        place
            .command(
                "threads.safetensors",
                &["--threads", "2", "--metrics", "m.jsonl"],
            )
            .output()
            .unwrap(),
    );
    assert_eq!(
        place.bytes("whole.safetensors"),
        place.bytes("threads.safetensors")
    );
    let rows = String::from_utf8(place.bytes("m.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 12);

    let checkpoint = place.file("killed.safetensors.checkpoint");
    until_it_ends(whole, &checkpoint, || {
        place.command("killed.safetensors", &["--threads", "2"])
    });
    assert_eq!(
        place.bytes("whole.safetensors"),
        place.bytes("killed.safetensors")
    );
    assert!(!checkpoint.exists());
}

/// Ways to train that each write `out.safetensors` over twelve epochs.
fn ways(place: &Place) -> Vec<Command> {
    let more = [
        "--gradual",
        "cubic",
        "--gradual-end",
        "8",
        "--metrics",
        "m.jsonl",
    ];
    let gradual = || place.command("out.safetensors", &more);
    well(
        place
            .command("other.safetensors", &["--emit-recipe", "recipe.toml"])
            .output()
            .unwrap(),
    );
    let program = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
        command.current_dir(place.dir.path()).args(args);
        command
    };
    let train = "train in.safetensors --data data.safetensors --epochs 12 --batch 4 --optimizer adam -o out.safetensors";
    vec![
        gradual(),
        program(&[
            "run",
            "recipe.toml",
            "-o",
            "out.safetensors",
            "--metrics",
            "m.jsonl",
        ]),
        program(&train.split(' ').collect::<Vec<_>>()),
    ]
}

/// Everything in the folder but times: names, and the content of what can be compared.
fn left(place: &Place) -> Vec<(String, String)> {
    fn timeless(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("seconds");
                map.values_mut().for_each(timeless);
            }
            Value::Array(list) => list.iter_mut().for_each(timeless),
            _ => {}
        }
    }
    let read = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        match path.extension().and_then(|e| e.to_str()) {
            Some("json" | "jsonl") => {
                let stream = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
                let rows = stream.map(|v| {
                    let mut v = v.unwrap();
                    timeless(&mut v);
                    v.to_string()
                });
                rows.collect::<Vec<_>>().join("\n")
            }
            _ => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        }
    };
    let mut all: Vec<(String, String)> = std::fs::read_dir(place.dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| {
            (
                p.file_name().unwrap().to_string_lossy().into_owned(),
                read(&p),
            )
        })
        .collect();
    all.sort();
    all
}

/// The files of an undisturbed run beside those of a disturbed one.
fn same(way: usize, whole: &[(String, String)], place: &Place) {
    let found = left(place);
    let names = |all: &[(String, String)]| all.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), names(whole), "way {way}");
    for (a, b) in found.iter().zip(whole) {
        let from = a.1.bytes().zip(b.1.bytes()).take_while(|(x, y)| x == y);
        let from = from.count().saturating_sub(100);
        let near = |text: &str| text.chars().skip(from).take(300).collect::<String>();
        assert!(
            a == b,
            "way {way}: {} differs:\n{}\n{}",
            a.0,
            near(&a.1),
            near(&b.1)
        );
    }
}

/// The files that each way leaves when nothing happens to it.
fn undisturbed() -> Vec<Vec<(String, String)>> {
    let run = |way: usize| {
        let place = Place::new();
        well(ways(&place)[way].output().unwrap());
        left(&place)
    };
    (0..3).map(run).collect()
}

#[test]
fn killed_in_every_epoch_it_gives_the_same_files() {
    for (way, whole) in undisturbed().iter().enumerate() {
        let place = Place::new();
        let command = &mut ways(&place)[way];
        command
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null());
        let mut kills = 0;
        for round in 0.. {
            let mut child = command.spawn().unwrap();
            // The line of an epoch comes when its checkpoint is written: the kill falls into the next one.
            let lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let mut epochs = lines
                .map_while(Result::ok)
                .filter(|l| l.starts_with("epoch "));
            if epochs.next().is_some() {
                std::thread::sleep(Duration::from_millis(round % 3));
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            if status.signal() != Some(KILL) {
                assert!(status.success(), "way {way}");
                break;
            }
            kills += 1;
        }
        assert!(kills > 3, "way {way}: killed {kills} times");
        same(way, whole, &place);
    }
}

/// Runs with a limit on the size of files, in blocks: the system kills the process in the middle of the write that
/// reaches it, with what came before already in the file.
fn limited(command: &Command, blocks: usize) -> Output {
    let script = format!("ulimit -c 0; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &script])
        .arg(command.get_program())
        .args(command.get_args());
    limited.current_dir(command.get_current_dir().unwrap());
    limited.output().unwrap()
}

/// Epochs that a checkpoint holds; it has to be whole.
fn epochs(checkpoint: &Path) -> usize {
    let Ok(bytes) = std::fs::read(checkpoint) else {
        return 0;
    };
    SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let head = &metadata.metadata().as_ref().unwrap()["lacuna.training"];
    let head: Value = serde_json::from_str(head).unwrap();
    head["epochs"].as_u64().unwrap() as usize
}

#[test]
fn killed_in_the_write_of_a_checkpoint_it_gives_the_same_files() {
    for (way, whole) in undisturbed().iter().enumerate() {
        let place = Place::new();
        let command = &mut ways(&place)[way];
        let checkpoint = place.file("out.safetensors.checkpoint");
        let (mut kills, mut late, mut done) = (0, 0, 0);
        for blocks in 1.. {
            let output = limited(command, blocks);
            if output.status.signal() != Some(FILE_SIZE) {
                well(output);
                break;
            }
            kills += 1;
            let now = epochs(&checkpoint);
            assert!(
                now >= done && now < 12,
                "way {way}: from {done} to {now} epochs"
            );
            assert!(!place.file("out.safetensors").exists());
            (done, late) = (now, late + usize::from(now > 0));
        }
        // The file grows by a row in each epoch, so that later ones are hit too.
        assert!(
            kills > 10 && late > 1,
            "way {way}: {kills} kills, {late} after an epoch"
        );
        assert!(!checkpoint.exists());
        same(way, whole, &place);
    }
}

#[test]
fn killed_in_the_write_of_the_output_it_gives_the_same_files() {
    for (way, whole) in undisturbed().iter().enumerate() {
        let place = Place::new();
        let command = &mut ways(&place)[way];
        let [output, checkpoint, report] = [
            "out.safetensors",
            "out.safetensors.checkpoint",
            "out.report.json",
        ]
        .map(|n| place.file(n));
        // A folder in its place: the training is done, and its result is not written.
        std::fs::create_dir(&output).unwrap();
        let said = command.output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("is a folder"), "{said}");
        std::fs::remove_dir(&output).unwrap();
        assert_eq!(epochs(&checkpoint), 12);
        let state = place.bytes("out.safetensors.checkpoint");
        let expected = &whole.iter().find(|f| f.0 == "out.safetensors").unwrap().1;
        let (mut unwritten, mut written) = (0, 0);
        for blocks in 1.. {
            let end = limited(command, blocks);
            if end.status.signal() != Some(FILE_SIZE) {
                well(end);
                break;
            }
            // Whole or not at all, and nothing of the training is lost.
            match std::fs::read(&output) {
                Ok(bytes) => {
                    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                    assert!(hex == *expected, "way {way}: a file in part");
                    written += 1;
                }
                Err(_) => unwritten += 1,
            }
            assert!(!report.exists());
            assert!(
                place.bytes("out.safetensors.checkpoint") == state,
                "way {way}"
            );
        }
        assert!(unwritten > 3, "way {way}: {unwritten} kills");
        // A pruning run writes its report behind the model; `train` has none.
        assert!(
            written > 3 || way == 2,
            "way {way}: {written} kills behind the model"
        );
        assert!(!checkpoint.exists());
        same(way, whole, &place);
    }
}
