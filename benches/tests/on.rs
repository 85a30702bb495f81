//! Runs on another machine: over a real ssh server on this one, and over a script that stands in for `adb`.
#![cfg(target_os = "linux")]

use lacuna::model::{Dim, Graph, Input, Node, Op};
use lacuna::{Model, Weight};
use lacuna_bench::normal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Names what a shell and a file system let through.
const ODD: &str = "it's $(odd) `one` \"& ; é";

fn run(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|e| panic!("{:?} is needed: {e}", command.get_program()))
}

/// A linear layer, one weight in ten.
fn model(path: &Path) {
    let graph = Graph {
        name: "small".into(),
        inputs: vec![Input::f32(
            "x",
            vec![Dim::Symbol("N".into()), Dim::Fixed(64)],
        )],
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "layer".into(),
            op: Op::MatMul { trans_b: true },
            inputs: vec!["x".into(), "w".into()],
            output: "y".into(),
        }],
    };
    let mut values = normal(48 * 64, 2);
    for (i, v) in values.iter_mut().enumerate() {
        if i % 10 != 0 {
            *v = 0.0;
        }
    }
    let weights = BTreeMap::from([("w".into(), Weight::from_f32(&[48, 64], &values))]);
    Model::new(graph, weights).unwrap().save(path).unwrap();
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A desk: a folder with an oddly named one in it, with a model, and programs that stand before those of the system.
struct Desk {
    folder: TempDir,
    programs: PathBuf,
    model: PathBuf,
    /// Where temporary folders of the device go.
    device: PathBuf,
}

impl Desk {
    fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let model_path = make(ODD).join(format!("{ODD}.safetensors"));
        model(&model_path);
        Desk {
            programs: make("bin"),
            device: make("device"),
            model: model_path,
            folder,
        }
    }

    fn file(&self, name: &str) -> String {
        let path = self.folder.path().join(ODD).join(name);
        path.to_str().unwrap().to_owned()
    }

    fn model(&self) -> &str {
        self.model.to_str().unwrap()
    }

    /// The program, with the desk's own programs first.
    fn bench(&self, on: &[String], args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna-bench"));
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.programs.display()));
        command.env("LOG", self.log());
        command.args(on);
        if !args.contains(&"--on-folder") {
            command.arg("--on-folder").arg(&self.device);
        }
        command.args(["--threads", "1", "--min-time-ms", "20"]);
        command.args(args);
        command
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Lines of the log with this in them.
    fn logged(&self, part: &str) -> usize {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter(|l| l.contains(part)).count()
    }

    /// That the device has nothing left of us.
    fn is_clear(&self) -> bool {
        fs::read_dir(&self.device).unwrap().next().is_none()
    }
}

fn stdout(desk: &Desk, command: &mut Command) -> String {
    let output = run(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    assert!(desk.is_clear(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that must fail says; nothing is on stdout, and the device is clear.
fn refused(desk: &Desk, command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success(), "{command:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
    assert!(desk.is_clear(), "{command:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// An ssh server for this user on a port of its own, with keys of its own.
struct Server {
    child: Child,
    on: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(desk: &Desk) -> Server {
    let program = std::env::var("LACUNA_SSHD").unwrap_or("/usr/sbin/sshd".into());
    let keys = desk.folder.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let key = |name: &str| keys.join(name).to_str().unwrap().to_owned();
    for name in ["host", "own"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &key(name)]);
        assert!(run(&mut keygen).status.success());
    }
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let configuration = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
         UsePAM no\nPasswordAuthentication no\nMaxStartups 50\n",
        key("host"),
        key("own.pub")
    );
    fs::write(key("config"), configuration).unwrap();
    let mut command = Command::new(&program);
    command.args(["-D", "-e", "-f", &key("config")]);
    command.stderr(fs::File::create(key("server.log")).unwrap());
    let mut child = command.spawn().unwrap_or_else(|e| {
        panic!("{program}: {e}; install an ssh server (openssh-server), or name one in LACUNA_SSHD")
    });
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let said = || fs::read_to_string(key("server.log")).unwrap();
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{program} ended: {}", said());
        assert!(begin.elapsed() < Duration::from_secs(10), "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Calls are counted on their way.
    executable(
        &desk.programs.join("ssh"),
        "#!/bin/sh\necho \"$*\" >> \"$LOG\"\nPATH=${PATH#*:}\nexec ssh \"$@\"\n",
    );
    let mut on = vec![format!("--on=ssh:127.0.0.1:{port}")];
    for option in [
        format!("IdentityFile={}", key("own")),
        format!("UserKnownHostsFile={}", key("known")),
        "IdentitiesOnly=yes".into(),
        "StrictHostKeyChecking=accept-new".into(),
    ] {
        on.extend(["--ssh-option".into(), option]);
    }
    Server { child, on }
}

#[test]
#[ignore = "needs an ssh server"]
fn over_ssh_figures_and_files_come_back_as_if_it_ran_here() {
    let desk = Desk::new();
    let server = server(&desk);
    let bench = |args: &[&str]| desk.bench(&server.on, args);

    // The same model twice: pushed once, measured twice.
    let twice = [desk.model(), desk.model(), "--json", "--cool-down", "0.1"];
    let text = stdout(&desk, &mut bench(&twice));
    assert_eq!(text.lines().count(), 2);
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["model"], desk.model());
        assert!(value["median_ms"].as_f64().unwrap() > 0.0);
        assert!(value["load_after"].as_f64().is_some(), "{value}");
        let (trusted, doubts) = (value["trusted"].as_bool().unwrap(), value.get("doubts"));
        assert_eq!(trusted, doubts.is_none(), "{value}");
    }
    assert_eq!(desk.logged("cat > "), 2, "the program and one model");

    let (csv, html, profile) = (desk.file("l.csv"), desk.file("l.html"), desk.file("p.toml"));
    let mut here = lacuna_targets::Profile::detect();
    here.measure(Duration::from_millis(10), 1).unwrap();
    here.limits[0].fma_gflops = 4321.0;
    here.save(&profile).unwrap();
    let files = [
        desk.model(),
        "--csv",
        &csv,
        "--html",
        &html,
        "--profile",
        &profile,
    ];
    let text = stdout(&desk, &mut bench(&files));
    let model_line = format!("model     {}", desk.model());
    assert!(text.starts_with(&model_line), "{text}");
    assert!(text.contains("4321 GFLOP/s"), "{text}");
    assert!(text.contains("\nmachine   "), "{text}");
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 2);
    assert!(fs::read_to_string(&html).unwrap().contains("<svg"));

    let (tuned, table) = (desk.file("tuned.json"), desk.file("table.json"));
    stdout(&desk, &mut bench(&[desk.model(), "--tune", &tuned]));
    let first = fs::read_to_string(&tuned).unwrap();
    // What is there is added to, and what was measured is used.
    stdout(
        &desk,
        &mut bench(&[desk.model(), "--batch=40", "--tune", &tuned]),
    );
    assert!(fs::read_to_string(&tuned).unwrap().len() > first.len());
    let text = stdout(&desk, &mut bench(&[desk.model(), "--tuned", &tuned]));
    assert!(text.contains("measured"), "{text}");
    let text = stdout(&desk, &mut bench(&[desk.model(), "--table", &table]));
    assert_eq!(text, format!("1 layers in {table}\n"));
    let value: Value = serde_json::from_str(&fs::read_to_string(&table).unwrap()).unwrap();
    assert_eq!(value["model"], desk.model());
}

#[test]
#[ignore = "needs an ssh server"]
fn models_of_several_files_are_pushed_whole() {
    let desk = Desk::new();
    let server = server(&desk);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../converters/tests/fixtures");
    let sharded = fixtures.join("language/llama");
    let args = [
        sharded.to_str().unwrap(),
        "--json",
        "--prompt=4",
        "--generate=2",
    ];
    let text = stdout(&desk, &mut desk.bench(&server.on, &args));
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["decode_tps"].as_f64().unwrap() > 0.0);
    assert!(desk.logged("cat > ") > 5);
}

#[test]
#[ignore = "needs an ssh server"]
fn what_goes_wrong_over_ssh_is_said_and_cleared_up() {
    let desk = Desk::new();
    let server = server(&desk);
    let bench = |args: &[&str]| desk.bench(&server.on, args);
    let told = |command: &mut Command, parts: &[&str]| {
        let error = refused(&desk, command);
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    };
    // What is damaged is not pushed, where that shows from the outside.
    let damaged = desk.file("damaged.safetensors");
    let whole = fs::read(&desk.model).unwrap();
    fs::write(&damaged, &whole[..whole.len() - 9]).unwrap();
    told(&mut bench(&[&damaged]), &[&damaged, "truncated"]);
    // What the program says there, with the names of here.
    let damaged = desk.file("damaged.gguf");
    fs::write(&damaged, "GGUF and nothing else").unwrap();
    told(
        &mut bench(&[&damaged]),
        &["the run ended with status 1", &damaged],
    );
    told(&mut bench(&[desk.model(), "--isa", "abacus"]), &["abacus"]);
    told(&mut bench(&["absent.onnx"]), &["absent.onnx: no such file"]);
    let nowhere = desk.file("none/l.csv");
    told(
        &mut bench(&[desk.model(), "--csv", &nowhere]),
        &[&nowhere, "no such folder"],
    );
    told(
        &mut bench(&[desk.model(), "--pack-cache", "packs"]),
        &["--pack-cache packs", "of that machine"],
    );

    // Programs for another processor, of another loader, and none at all; nothing is pushed.
    let pushed = desk.logged("cat > ");
    let program = fs::read(env!("CARGO_BIN_EXE_lacuna-bench")).unwrap();
    let (other, machine) = match std::env::consts::ARCH {
        "x86_64" => (183u8, "aarch64"),
        _ => (62, "x86_64"),
    };
    let mut foreign = program[..4096].to_vec();
    foreign[18] = other;
    let binary = desk.file("foreign");
    fs::write(&binary, foreign).unwrap();
    told(
        &mut bench(&[desk.model(), "--on-binary", &binary]),
        &[&binary, machine, std::env::consts::ARCH],
    );
    let find = |part: &[u8]| program.windows(part.len()).position(|w| w == part);
    if let Some(at) = find(b"/ld-linux") {
        let mut odd = program.clone();
        odd[at + 1..at + 3].copy_from_slice(b"no");
        fs::write(&binary, odd).unwrap();
        told(
            &mut bench(&[desk.model(), "--on-binary", &binary]),
            &["/no-linux", "statically linked"],
        );
    }
    fs::write(&binary, "#!/bin/sh\n").unwrap();
    told(
        &mut bench(&[desk.model(), "--on-binary", &binary]),
        &[&binary, "ELF"],
    );
    assert_eq!(desk.logged("cat > "), pushed);
    // Another program of this machine.
    let echo = fs::canonicalize("/bin/echo").unwrap();
    told(
        &mut bench(&[desk.model(), "--on-binary", echo.to_str().unwrap()]),
        &["does not run there, or is another version"],
    );

    told(
        &mut bench(&[desk.model(), "--on-folder", "/nowhere"]),
        &["no temporary folder could be made there", "/nowhere"],
    );
    let odd = desk.file("");
    told(
        &mut bench(&[desk.model(), "--on-folder", &odd]),
        &["characters that not every shell takes"],
    );
    let unreachable = |on: &str| {
        let on = vec![on.to_owned()];
        desk.bench(&on, &[desk.model(), "--ssh-option", "ConnectTimeout=2"])
    };
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let closed = format!("ssh:127.0.0.1:{port}");
    told(
        &mut unreachable(&format!("--on={closed}")),
        &[&closed, "cannot be reached", "refused"],
    );
    told(
        &mut unreachable("--on=ssh:-oProxyCommand=x"),
        &["expected ssh:"],
    );
    let mut command = bench(&[desk.model()]);
    command.env("PATH", desk.file(""));
    told(&mut command, &["there is no program `ssh` here"]);
}

#[test]
#[ignore = "needs an ssh server"]
fn who_is_killed_leaves_nothing_on_the_device() {
    let desk = Desk::new();
    let server = server(&desk);
    let mut command = desk.bench(&server.on, &[desk.model(), "--json"]);
    command.args(["--warmup", "1000000000"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let patience = Duration::from_secs(60);
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < patience, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let pid = || -> Option<String> {
        let folder = fs::read_dir(&desk.device).unwrap().next()?.ok()?.path();
        let pid = fs::read_to_string(folder.join("pid")).ok()?;
        (!pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).exists())
            .then(|| pid.trim().to_owned())
    };
    until("the run begins", &|| {
        pid().is_some_and(|p| {
            let line = fs::read(format!("/proc/{p}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("--warmup")
        })
    });
    let running = pid().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the folder goes", &|| desk.is_clear());
    until("the run ends", &|| {
        !Path::new("/proc").join(&running).exists()
    });
}

/// `adb` as far as it is used: the device is this machine. What its shell is given is one text.
const ADB: &str = r#"#!/bin/sh
printf '%s\n' "$*" | head -n 1 >> "$LOG"
serial=
if [ "$1" = -s ]; then serial=$2; shift 2; fi
known() {
  case " ${serial:-only} " in
    ' only ') [ -z "$SECOND" ] || { echo 'adb: more than one device/emulator' >&2; exit 1; } ;;
    ' phone ') ;;
    *) echo "adb: device '$serial' not found" >&2; exit 1 ;;
  esac
}
verb=$1; shift
case $verb in
  devices)
    printf 'List of devices attached\n'
    [ -n "$NONE" ] || printf 'phone\t%s\n' "${STATE:-device}"
    [ -z "$SECOND" ] || printf '%s\tdevice\n' "$SECOND"
    echo ;;
  shell)
    known
    [ -z "$FULL" ] || full='df() { echo F; echo "/data 100 99 1 99% /data"; }; '
    exec sh -c "$full$*" ;;
  push) known; cp "$1" "$2" 2>/dev/null || { echo "adb: error: failed to copy '$1' to '$2'"; exit 1; }
    echo "$1: 1 file pushed." ;;
  pull) known; cp "$1" "$2"; echo "$1: 1 file pulled." ;;
  *) echo "adb: unknown command $verb" >&2; exit 1 ;;
esac
"#;

#[test]
fn over_adb_the_same_commands_do_it() {
    let desk = Desk::new();
    executable(&desk.programs.join("adb"), ADB);
    let bench = |on: &str, args: &[&str]| desk.bench(&[format!("--on={on}")], args);
    let csv = desk.file("l.csv");
    let args = [desk.model(), desk.model(), "--json"];
    let text = stdout(&desk, &mut bench("adb:phone", &args));
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["model"], desk.model());
    assert_eq!(
        desk.logged("-s phone push "),
        2,
        "the program and one model"
    );
    assert_eq!(desk.logged("devices"), 1);
    let text = stdout(&desk, &mut bench("adb", &[desk.model(), "--csv", &csv]));
    assert!(text.contains("\nmachine   "), "{text}");
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 2);
    assert_eq!(desk.logged(&format!("pull {}", desk.device.display())), 1);

    let told = |command: &mut Command, parts: &[&str]| {
        let error = refused(&desk, command);
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    };
    told(
        bench("adb", &[desk.model()]).env("SECOND", "tablet"),
        &["which device?", "phone (device), tablet (device)"],
    );
    told(
        bench("adb", &[desk.model()]).env("NONE", "1"),
        &["no such device; none is connected"],
    );
    told(
        &mut bench("adb:other", &[desk.model()]),
        &["adb:other: no such device; connected: phone (device)"],
    );
    told(
        bench("adb", &[desk.model()]).env("STATE", "unauthorized"),
        &["phone is unauthorized"],
    );
    told(
        bench("adb", &[desk.model()]).env("FULL", "1"),
        &["no space for", "1024 are free", "--on-folder"],
    );
    told(
        &mut bench("adb", &[desk.model(), "--isa", "abacus"]),
        &["abacus"],
    );
}

#[test]
fn several_models_here_have_a_process_each() {
    let desk = Desk::new();
    let bench = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna-bench"));
        command.args(["--threads", "1", "--min-time-ms", "20"]);
        run(command.args(args))
    };
    let output = bench(&[desk.model(), desk.model(), "--json", "--cool-down", "0.1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.lines().count() == 2,
        "{text}"
    );
    let output = bench(&[desk.model(), desk.model(), "--csv", "x.csv"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("--csv names one file, and 2 models"),
        "{error}"
    );
    let mut state = Command::new(env!("CARGO_BIN_EXE_lacuna-bench"));
    let output = run(state.args(["state", "--cool-to", "-300", "--within", "0.2"]));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value["state"]["load"].as_f64().is_some(), "{value}");
}
