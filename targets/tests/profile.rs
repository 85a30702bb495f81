//! The profile's file: what is written comes back, and what cannot be is refused by key and value.

use lacuna_targets::{Caches, Cluster, CoreKind, Level, Limits, Profile, SCHEMA};
use std::path::Path;

fn sample() -> Profile {
    Profile {
        schema: SCHEMA,
        name: "sample".into(),
        arch: "aarch64".into(),
        cpu: None,
        origin: Some("made up by a test".into()),
        isa: vec!["neon".into()],
        caches: Caches {
            l1d: Some(64 << 10),
            l2: Some(512 << 10),
            l3: None,
        },
        costs: [("load".into(), 0.7), ("packed".into(), 0.25)].into(),
        clusters: vec![
            Cluster {
                count: 2,
                kind: CoreKind::Performance,
                max_mhz: Some(2400),
            },
            Cluster {
                count: 4,
                kind: CoreKind::Efficiency,
                max_mhz: None,
            },
        ],
        limits: vec![Limits {
            threads: 2,
            fma_gflops: 40.0,
            l1_gbs: Some(60.5),
            l2_gbs: None,
            l3_gbs: None,
            dram_gbs: 12.0,
        }],
    }
}

/// What `load` says about the sample with `from` replaced by `to`.
fn refused(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.toml");
    let text = sample().to_toml().unwrap();
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    let error = Profile::load(&path).unwrap_err().to_string();
    assert!(error.contains("device.toml"), "no file in: {error}");
    error
}

#[test]
fn what_is_saved_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.toml");
    sample().save(&path).unwrap();
    assert_eq!(Profile::load(&path).unwrap(), sample());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "a temporary file stayed");
}

#[test]
fn a_profile_that_cannot_be_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.toml");
    sample().save(&path).unwrap();
    let mut bad = sample();
    bad.limits[0].dram_gbs = f64::NAN;
    let error = bad.save(&path).unwrap_err().to_string();
    assert!(
        error.contains("limits[0].dram_gbs") && error.contains("NaN"),
        "{error}"
    );
    assert_eq!(
        Profile::load(&path).unwrap(),
        sample(),
        "the old file stays"
    );
}

#[test]
fn unknown_keys_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.toml");
    let text = sample().to_toml().unwrap();
    std::fs::write(&path, format!("later = \"idea\"\n{text}")).unwrap();
    assert_eq!(Profile::load(&path).unwrap(), sample());
}

#[test]
fn bad_values_are_named_with_key_and_value() {
    for (from, to, parts) in [
        ("schema = 1", "schema = 2", ["`schema` = 2", "version 1"]),
        ("schema = 1", "", ["`schema` = nothing", "version 1"]),
        ("name = \"sample\"", "name = \" \"", ["`name`", "empty"]),
        ("count = 2", "count = 0", ["clusters[0].count", "= 0"]),
        ("count = 2", "count = -2", ["count", "-2"]),
        (
            "max_mhz = 2400",
            "max_mhz = 0",
            ["clusters[0].max_mhz", "= 0"],
        ),
        ("l2 = 524288", "l2 = 1024", ["caches.l2", "1024"]),
        ("threads = 2", "threads = 0", ["limits[0].threads", "= 0"]),
        (
            "fma_gflops = 40.0",
            "fma_gflops = -1.0",
            ["limits[0].fma_gflops", "-1"],
        ),
        ("l1_gbs = 60.5", "l1_gbs = inf", ["limits[0].l1_gbs", "inf"]),
        ("dram_gbs = 12.0", "", ["dram_gbs", "missing"]),
        ("load = 0.7", "load = -0.7", ["costs.load", "-0.7"]),
        ("load = 0.7", "load = \"dear\"", ["load", "dear"]),
        ("\"performance\"", "\"fast\"", ["fast", "performance"]),
        ("schema = 1", "schema = ", ["line 1", "schema"]),
    ] {
        let error = refused(from, to);
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    }
}

#[test]
fn absent_and_oversized_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.toml");
    let error = Profile::load(&absent).unwrap_err().to_string();
    assert!(error.contains("absent.toml: cannot read"), "{error}");
    let long = folder.path().join("long.toml");
    std::fs::write(&long, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = Profile::load(&long).unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
}

#[test]
fn limits_of_other_thread_counts_are_in_proportion() {
    let profile = sample();
    assert_eq!(profile.limits_for(2), Some(profile.limits[0]));
    let four = profile.limits_for(4).unwrap();
    assert_eq!(
        (four.threads, four.fma_gflops, four.dram_gbs),
        (4, 80.0, 24.0)
    );
    assert_eq!(profile.limits_for(1).unwrap().fma_gflops, 20.0);
    let mut bare = profile;
    bare.limits.clear();
    assert_eq!(bare.limits_for(1), None);
}

#[test]
fn bandwidth_falls_to_the_next_measured_level() {
    let limits = sample().limits[0];
    let rates = [Level::L1, Level::L2, Level::L3, Level::Dram].map(|l| limits.bandwidth(l));
    assert_eq!(rates, [60.5, 12.0, 12.0, 12.0]);
}

#[test]
fn private_caches_count_once_for_each_thread() {
    let profile = sample();
    assert_eq!(profile.level_of(64 << 10, 1), Level::L1);
    assert_eq!(profile.level_of(65 << 10, 1), Level::L2);
    assert_eq!(profile.level_of(65 << 10, 2), Level::L1);
    assert_eq!(profile.level_of(2 << 20, 2), Level::Dram);
}

#[test]
fn shipped_profiles_load_and_say_where_they_come_from() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let profile = Profile::load(&path).unwrap();
        let stem = path.file_stem().unwrap().to_str();
        assert_eq!(stem, Some(profile.name.as_str()));
        assert!(
            profile.limits.is_empty() || profile.origin.is_some(),
            "{path:?}"
        );
        count += 1;
    }
    assert!(count > 0);
}
