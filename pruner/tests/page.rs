//! The page: its structure, hostile names, and how a browser shows it, where there is one.

use lacuna_prune::page::{Sources, html};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn layer(name: &str, size: usize, nonzeros: usize) -> Value {
    json!({
        "weight": name, "node": format!("{name}.node"), "op": "Conv", "shape": [size / 4, 4], "dtype": "F32",
        "encoding": "bitmask", "size": size, "nonzeros": nonzeros, "dense_macs": size * 100,
        "sparse_macs": nonzeros * 100, "bytes": nonzeros * 4 + size / 8,
    })
}

fn sidecar(layers: &[(&str, usize, usize, bool)]) -> String {
    let state = json!({
        "sparsity": 0.9, "sparsity_of_all": 0.88, "parameters": 1000, "parameter_zeros": 880, "sparse_macs": 1200,
        "weight_bytes": 900, "file_bytes": 1234,
    });
    let plan: Vec<Value> = layers
        .iter()
        .map(|l| json!({"weight": l.0, "floored": l.3}))
        .collect();
    let list: Vec<Value> = layers.iter().map(|l| layer(l.0, l.1, l.2)).collect();
    json!({
        "schema": 1, "kind": "prune", "tool": "prune 0", "input": "in.onnx", "input_sha256": "ab", "output": "out.safetensors",
        "recipe_sha256": "cd", "recipe": {"schema": 1, "sparsity": 0.9}, "note": null, "mac_convention": "as usual",
        "plan": {"allocator": "global-magnitude", "target": 0.9, "total": 1000, "zeros_after": 900, "sigma": 40,
            "threshold": 0.0125, "layers": plan},
        "before": state, "after": state, "layers": list, "seconds": {"open": 0.1, "plan": 0.2, "write": 0.3},
    })
    .to_string()
}

fn full() -> Sources {
    let layers = [
        ("a", 400, 100, false),
        ("b", 400, 40, true),
        ("c", 200, 0, false),
    ];
    let rows = (1..=9).map(|e| {
        let e = f64::from(e);
        json!({"schema": 1, "epoch": e, "sparsity": e / 10.0, "train_accuracy": 0.8 + e / 100.0,
            "test_accuracy": 0.9 - e / 200.0})
        .to_string()
    });
    let timed = |node: &str, dense: Option<f64>| json!({"node": node, "kernel": "stream", "ms": 0.5, "dense_ms": dense});
    Sources {
        sidecar: sidecar(&layers),
        metrics: Some(rows.collect::<Vec<_>>().join("\n") + "\n"),
        latency: Some(
            json!({"schema": 1, "layers": [timed("a.node", Some(1.0)), timed("b.node", None)]})
                .to_string(),
        ),
        latency_before: None,
        eval_before: Some(json!({"schema": 1, "top1": 0.9, "samples": 100}).to_string()),
        eval_after: Some(json!({"schema": 1, "top1": 0.88, "samples": 100}).to_string()),
    }
}

/// Checks that elements nest and returns how often each tag opens.
fn tags(page: &str) -> std::collections::BTreeMap<String, usize> {
    const VOID: [&str; 3] = ["meta", "br", "link"];
    let (mut open, mut seen) = (Vec::new(), std::collections::BTreeMap::new());
    let mut rest = page;
    while let Some((_, behind)) = rest.split_once('<') {
        let (tag, next) = behind.split_once('>').expect("a tag that ends");
        rest = next;
        if tag.starts_with('!') {
            continue;
        }
        let name = tag.trim_matches('/').split_whitespace().next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "before {next:.60}");
            continue;
        }
        *seen.entry(name.to_owned()).or_insert(0) += 1;
        if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
    seen
}

#[test]
fn the_page_is_whole_and_stands_alone() {
    let page = html(&full()).unwrap();
    let tags = tags(&page);
    assert_eq!(
        (tags["html"], tags["h1"], tags["table"], tags["svg"]),
        (1, 1, 1, 4)
    );
    assert_eq!(tags["title"], 5, "the page and every drawing");
    assert!(
        !tags.contains_key("script") && !tags.contains_key("img") && !tags.contains_key("link")
    );
    for foreign in ["url(", "@import", "href="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for part in [
        "FLOOR",
        "EMPTY",
        "Nothing is left of c",
        "-2.00 points",
        "2.00×",
        "sparsity = 0.9",
        "prefers-color-scheme: dark",
        "role=\"img\"",
        "1.000 to 0.500 ms",
    ] {
        let plain = page.replace("scheme:dark", "scheme: dark");
        assert!(plain.contains(part), "{part}");
    }
    // Every colour of a drawing is one of the style.
    assert!(!page.contains("fill=\"#") && !page.contains("stroke=\"#"));
}

#[test]
fn only_the_sidecar_has_to_be_there() {
    let only = Sources {
        sidecar: full().sidecar,
        ..Sources::default()
    };
    assert_eq!(tags(&html(&only).unwrap())["svg"], 1);
}

#[test]
fn the_epochs_of_a_training_are_in_its_sidecar() {
    let mut report: Value = serde_json::from_str(&full().sidecar).unwrap();
    report["epochs"] = json!([
        {"epoch": 1, "train_accuracy": 0.8, "test_accuracy": 0.7},
        {"epoch": 2, "train_accuracy": 0.6, "test_accuracy": 0.5, "sparsity": 0.9},
    ]);
    let page = |metrics: Option<&str>| {
        let sources = Sources {
            sidecar: report.to_string(),
            metrics: metrics.map(str::to_owned),
            ..Sources::default()
        };
        html(&sources).unwrap()
    };
    let own = page(None);
    assert_eq!(tags(&own)["svg"], 3);
    assert!(
        own.contains("50.00 %") && own.contains("after epoch 2"),
        "{own}"
    );
    // Before weights went the sparsity was 0, on the axis that the accuracy has.
    let (_, sparsity) = own.split_once("Sparsity by epoch").unwrap();
    assert_eq!(
        sparsity
            .split("</svg>")
            .next()
            .unwrap()
            .matches("<circle")
            .count(),
        2
    );
    // Metrics that are given go first.
    let line = json!({"epoch": 3, "test_accuracy": 0.25}).to_string();
    assert!(page(Some(&line)).contains("after epoch 3"));
}

#[test]
fn a_cut_shows_its_groups_and_its_tasks_over_rounds() {
    let mut report: Value = serde_json::from_str(&sidecar(&[("a", 400, 400, false)])).unwrap();
    report.as_object_mut().unwrap().remove("plan");
    report["kind"] = "channels".into();
    report["groups"] = json!([{"name": "a<b", "units": 40, "removed": 10}, {"name": "b", "units": 8, "removed": 0}]);
    let page = |report: &Value, before: Option<f64>| {
        let timed = |ms: f64| {
            json!({"schema": 1, "layers": [{"node": "a.node", "kernel": "dense", "ms": ms, "dense_ms": ms}]}).to_string()
        };
        let sources = Sources {
            sidecar: report.to_string(),
            latency: before.map(|_| timed(2.0)),
            latency_before: before.map(timed),
            ..Sources::default()
        };
        html(&sources).unwrap()
    };
    let own = page(&report, None);
    assert_eq!(tags(&own)["svg"], 1);
    assert!(own.contains("a&lt;b") && own.contains("30 of 40, 75.00 %"));
    assert!(!own.contains("zeros in the prunable layers"));
    // Twice as slow before.
    let timed = page(&report, Some(4.0));
    assert!(timed.contains("2.00×") && timed.contains("4.000 to 2.000 ms"));
    report["kind"] = "pagcp".into();
    report["tasks"] = json!(["upper", "<depth>"]);
    report["metrics"] = json!(["top1", "rmse"]);
    let round = |left: f64, top1: f64| {
        json!({"left_after": left, "losses_before": [0.5, 2.0], "losses_cut": [0.7, 3.0], "losses_after": [0.6, 2.5],
            "metrics": [[0.9, 1.5], [top1, 1.75], [0.85, 1.625]]})
    };
    report["rounds"] = json!([round(0.7, 0.8), round(0.4, 0.75)]);
    let own = page(&report, None);
    assert_eq!((tags(&own)["svg"], tags(&own)["table"]), (3, 2));
    for part in ["&lt;depth&gt;, rmse", "75.00 %", "1.6250", "40.00 %"] {
        assert!(own.contains(part), "{part}");
    }
}

#[test]
fn names_are_text_and_nothing_else() {
    let name = "<script>alert('\"&')</script>";
    let sources = Sources {
        sidecar: sidecar(&[(name, 400, 100, false), ("ü…層", 0, 0, false)]),
        ..Sources::default()
    };
    let page = html(&sources).unwrap();
    assert!(!tags(&page).contains_key("script"));
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn other_files_are_refused_with_what_is_wrong() {
    let with = |f: &dyn Fn(&mut Sources)| {
        let mut sources = full();
        f(&mut sources);
        let e = html(&sources).unwrap_err();
        format!("{}: {}", e.source, e.what)
    };
    let newer = full().sidecar.replace("\"schema\":1", "\"schema\":9");
    for (error, part) in [
        (with(&|s| s.sidecar = "{".into()), "sidecar: EOF"),
        (with(&|s| s.sidecar = newer.clone()), "sidecar: schema 9"),
        (
            with(&|s| s.metrics = Some("{\"epoch\":1}\nx".into())),
            "metrics: line 2",
        ),
        (
            with(&|s| s.latency = Some("{\"schema\":1}".into())),
            "lacuna-bench",
        ),
        (with(&|s| s.eval_after = Some("[]".into())), "eval after: "),
    ] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

/// A browser of the Chromium family, if one is here.
fn browser() -> Option<String> {
    let named = std::env::var("CHROMIUM").ok();
    let known = ["chromium", "chromium-browser", "google-chrome", "chrome"].map(str::to_owned);
    let runs = |name: &String| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    };
    named.into_iter().chain(known).find(runs)
}

#[test]
fn a_browser_shows_the_page_as_it_was_meant() {
    let Some(browser) = browser() else {
        eprintln!("no Chromium here: only the structure of the page is checked");
        return;
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("page.html");
    // A probe of the test writes what it sees into the title of the page.
    let probe = "<script>addEventListener('load',()=>{const s=[...document.querySelectorAll('svg')];\
        const ok=r=>r.width>100&&r.height>10;\
        const wide=document.documentElement.scrollWidth<=innerWidth;\
        const colours=new Set([...document.querySelectorAll('svg rect')].map(r=>getComputedStyle(r).fill));\
        document.title=['seen',s.length,s.every(e=>ok(e.getBoundingClientRect())),wide,colours.size].join(' ')})</script>";
    let page = html(&full())
        .unwrap()
        .replace("</body>", &format!("{probe}</body>"));
    std::fs::write(&file, page).unwrap();
    for (width, dark) in [(1200, false), (1200, true), (500, false)] {
        let out = headless(&browser, folder.path(), &file, width, dark);
        let title = out
            .split_once("<title>")
            .and_then(|t| t.1.split_once("</title>"));
        // Track, kept, floor, dense; nothing is drawn of an empty layer.
        assert_eq!(
            title.map(|t| t.0),
            Some("seen 4 true true 4"),
            "width {width}: {out:.300}"
        );
    }
}

fn headless(browser: &str, home: &Path, file: &Path, width: u32, dark: bool) -> String {
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=2000",
    ]);
    command.arg(format!("--window-size={width},900"));
    command.arg(format!(
        "--user-data-dir={}",
        home.join("profile").display()
    ));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    let out = command
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}
