//! Recipes and reports of the methods that cut channels: what they replay to, also after kills, and what is refused.
#![cfg(unix)]

mod training;

use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::Instant;
use training::{Place, until_it_ends, well};

fn program(place: &Place, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
    command
        .current_dir(place.dir.path())
        .stderr(Stdio::piped())
        .args(args.split_whitespace());
    command
}

fn run(place: &Place, args: &str) -> Output {
    program(place, args).output().unwrap()
}

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&place.bytes(name)).unwrap()
}

const CHANNELS: &str = "channels in.safetensors --parameters 0.7 --criterion l1 --max-ratio 0.8";
const PAGCP: &str = "pagcp in.safetensors --parameters 0.5 --allowance 0.4 --fine-tune 3 --hold-out 30 --rounds 3 \
    --data data.safetensors --batch 4 --lr 0.05 --threads 1";

#[test]
fn an_emitted_recipe_replays_to_the_same_bytes_with_its_hash_in_the_file() {
    for method in [CHANNELS, PAGCP] {
        let place = Place::new();
        well(run(
            &place,
            &format!("{method} -o a.safetensors --emit-recipe r.toml"),
        ));
        let threads = if method == PAGCP { "--threads 1" } else { "" };
        well(run(
            &place,
            &format!("run r.toml -o b.safetensors {threads}"),
        ));
        assert!(
            place.bytes("a.safetensors") == place.bytes("b.safetensors"),
            "{method}"
        );
        let (a, b) = (json(&place, "a.report.json"), json(&place, "b.report.json"));
        assert_eq!(a["recipe_sha256"], b["recipe_sha256"]);
        let parameters = |when: &str| a[when]["parameters"].as_u64().unwrap();
        assert!(parameters("after") < parameters("before"), "{method}: {a}");
        let inspected = run(&place, "inspect b.safetensors --json").stdout;
        let inspected: Value = serde_json::from_slice(&inspected).unwrap();
        assert_eq!(inspected["recipe"], a["recipe_sha256"]);
        assert_eq!(inspected["layers"], a["layers"]);
        // Another setting is another recipe.
        let text = String::from_utf8(place.bytes("r.toml")).unwrap();
        let other = text.replace("ignore = []", "ignore = [\"fc.*\"]");
        assert_ne!(text, other);
        std::fs::write(place.file("r.toml"), &other).unwrap();
        well(run(
            &place,
            &format!("run r.toml -o c.safetensors {threads}"),
        ));
        assert_ne!(
            json(&place, "c.report.json")["recipe_sha256"],
            a["recipe_sha256"]
        );
        // What is left of the groups is what the layers have.
        let first = |report: &Value| {
            let groups = report["groups"].as_array().unwrap().clone();
            let group = groups.into_iter().find(|g| g["name"] == "c1.w").unwrap();
            group["units"].as_u64().unwrap() - group["removed"].as_u64().unwrap()
        };
        let layers = a["layers"].as_array().unwrap();
        let width = layers.iter().find(|l| l["weight"] == "c1.w").unwrap();
        assert_eq!(first(&a), width["shape"][0].as_u64().unwrap());
        // The page shows it.
        well(run(&place, "report a.safetensors"));
        let page = String::from_utf8(place.bytes("a.report.html")).unwrap();
        assert!(page.contains("What is left of each group") && page.contains("c1.w"));
        assert_eq!(page.contains("Tasks over the rounds"), method == PAGCP);
    }
}

#[test]
fn a_recipe_that_is_killed_again_and_again_gives_the_same_bytes() {
    let place = Place::new();
    let start = Instant::now();
    well(run(
        &place,
        &format!("{PAGCP} -o whole.safetensors --emit-recipe r.toml"),
    ));
    let state = place.file("killed.safetensors.pagcp");
    until_it_ends(start.elapsed(), &state, || {
        let mut command = program(&place, "run r.toml -o killed.safetensors --threads 1");
        command.stdout(Stdio::null());
        command
    });
    assert!(place.bytes("whole.safetensors") == place.bytes("killed.safetensors"));
    let left = std::fs::read_dir(place.dir.path()).unwrap();
    let left = left.map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|n| n.contains(".pagcp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_no_recipe_is_refused() {
    let place = Place::new();
    well(run(
        &place,
        &format!("{CHANNELS} -o a.safetensors --emit-recipe r.toml"),
    ));
    let text = String::from_utf8(place.bytes("r.toml")).unwrap();
    let hash = text.lines().find(|l| l.starts_with("sha256")).unwrap();
    for (changed, parts) in [
        (text.replace("scope", "scop"), &["r.toml", "scop"][..]),
        (text.replace("schema = 1", "schema = 7"), &["schema 7"]),
        (
            text.replace(hash, "sha256 = \"00\""),
            &["in.safetensors", "made for 00"],
        ),
        (
            text.replace("parameters = 0.7", "parameters = 1.7"),
            &["1.7", "share"],
        ),
        (format!("{text}\n[pagcp]\n"), &["r.toml", "pagcp"]),
    ] {
        assert_ne!(text, changed);
        std::fs::write(place.file("r.toml"), changed).unwrap();
        let out = run(&place, "run r.toml -o b.safetensors");
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && !place.file("b.safetensors").exists());
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
}
