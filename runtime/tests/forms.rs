//! Forms that are asked for or measured, and weights that are kept packed: the answers stay the same, and
//! what cannot be done is said.

use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Storage};
use lacuna::plan::{Chosen, Costs, Form, Forms, Tuned, Variant};
use lacuna::{Model, Session, SessionOptions, TensorView, Weight};
use std::collections::BTreeMap;
use std::path::Path;

fn values(len: usize, every: usize) -> Vec<f32> {
    let value = |i: usize| match i.is_multiple_of(every) {
        true => ((i * 7919 % 2003) as f32 - 1001.0) / 1001.0,
        false => 0.0,
    };
    (0..len).map(value).collect()
}

/// A convolution, its normalization, a global mean and a classifier.
fn model() -> Model {
    let node = |name: &str, op: Op, inputs: &[&str], output: &str| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|i| i.to_string()).collect(),
        output: output.into(),
    };
    let conv = Op::Conv {
        strides: [1; 2],
        padding: Padding::Explicit([1; 4]),
        dilations: [1; 2],
        groups: 2,
    };
    let graph = Graph {
        name: "small".into(),
        inputs: vec![Input::f32("x", [1, 8, 13, 13].map(Dim::Fixed).to_vec())],
        outputs: vec!["y".into()],
        nodes: vec![
            node("conv", conv, &["x", "conv.weight"], "a"),
            node(
                "norm",
                Op::BatchNormalization { epsilon: 1e-5 },
                &["a", "scale", "shift", "mean", "variance"],
                "b",
            ),
            node("pool", Op::GlobalAveragePool, &["b"], "c"),
            node("flat", Op::Flatten { axis: 1 }, &["c"], "d"),
            node(
                "head",
                Op::MatMul { trans_b: true },
                &["d", "head.weight"],
                "y",
            ),
        ],
    };
    let weight =
        |shape: &[usize], every| Weight::from_f32(shape, &values(shape.iter().product(), every));
    let ones = |by: f32| Weight::from_f32(&[140], &[by; 140]);
    let weights = BTreeMap::from([
        ("conv.weight".into(), weight(&[140, 4, 3, 3], 5)),
        ("scale".into(), ones(1.5)),
        ("shift".into(), ones(0.25)),
        ("mean".into(), ones(0.1)),
        ("variance".into(), ones(2.0)),
        ("head.weight".into(), weight(&[33, 140], 4)),
    ]);
    Model::new(graph, weights).unwrap().encoded()
}

fn session(options: SessionOptions) -> lacuna::Result<Session> {
    let threads = 2;
    Session::new(&model(), SessionOptions { threads, ..options })
}

/// The same with weights of signed bytes; groups of 32 columns leave a tail in both.
fn scaled() -> Model {
    let plain = model();
    let mut weights = plain.weights().clone();
    for name in ["conv.weight", "head.weight"] {
        let bytes = weights[name].to_scaled(32).unwrap();
        weights.insert(name.into(), bytes);
    }
    Model::new(plain.graph().clone(), weights).unwrap()
}

/// The same with weights of two of each four columns.
fn two_of_four() -> Model {
    let plain = model();
    let mut weights = plain.weights().clone();
    for (name, shape) in [
        ("conv.weight", &[140, 4, 3, 3][..]),
        ("head.weight", &[33, 140]),
    ] {
        let value = |i: usize| match (i + i / 4) % 4 < 2 {
            true => ((i * 7919 % 2003) as f32 - 1001.0) / 1001.0,
            false => 0.0,
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let stored = Weight::from_f32(shape, &values).stored_best();
        assert_eq!(stored.storage(), Storage::TwoFour);
        weights.insert(name.into(), stored);
    }
    Model::new(plain.graph().clone(), weights).unwrap()
}

fn run(session: &mut Session) -> Vec<f32> {
    let x = values(8 * 169, 1);
    session
        .run(&[TensorView::f32(&[1, 8, 13, 13], &x)])
        .unwrap()[0]
        .data
        .clone()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()))
}

#[test]
fn every_listed_form_can_be_asked_for_and_answers_the_same() {
    for model in [model(), scaled(), two_of_four()] {
        let dense = Model::new(
            model.graph().clone(),
            model
                .weights()
                .iter()
                .map(|(n, w)| (n.clone(), w.decode()))
                .collect(),
        );
        let mut dense = Session::new(&dense.unwrap(), SessionOptions::default()).unwrap();
        every_listed_form_answers(&model, &run(&mut dense));
    }
}

fn every_listed_form_answers(model: &Model, expected: &[f32]) {
    let session = |options| {
        let threads = 2;
        Session::new(model, SessionOptions { threads, ..options })
    };
    let mut plain = session(SessionOptions::default()).unwrap();
    assert!(close(&run(&mut plain), expected));
    let mut tried = 0;
    let steps: Vec<_> = plain
        .steps()
        .iter()
        .filter_map(|s| s.weighted.clone())
        .collect();
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert_eq!(
            (step.by, step.form),
            (Chosen::Estimated, step.legal[0].variant)
        );
        let sparse = step.legal.iter().filter(|c| !c.variant.form.is_dense());
        assert!(sparse.count() >= 2, "{step:?}");
        for candidate in &step.legal {
            let forms = Forms::from([(step.weight.clone(), vec![candidate.variant])]);
            let mut asked = session(SessionOptions {
                forms,
                ..SessionOptions::default()
            })
            .unwrap();
            let info = asked.steps().iter().filter_map(|s| s.weighted.as_ref());
            let info = info.clone().find(|w| w.weight == step.weight).unwrap();
            assert_eq!((info.form, info.by), (candidate.variant, Chosen::Asked));
            assert!(close(&run(&mut asked), expected), "{}", candidate.variant);
            tried += 1;
        }
    }
    assert!(tried >= 6, "{tried}");
}

#[test]
fn a_form_that_is_not_legal_is_refused_with_those_that_are() {
    let forms = Forms::from([(
        "conv.weight".into(),
        vec![Variant::plain(Form::BitmaskRows)],
    )]);
    let error = session(SessionOptions {
        forms,
        ..SessionOptions::default()
    })
    .unwrap_err()
    .to_string();
    for part in [
        "`conv.weight`",
        "`conv`",
        "bitmask-rows",
        "dense-panel",
        "stream-panel-",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn measured_choices_are_taken_where_they_are_legal() {
    let plain = session(SessionOptions::default()).unwrap();
    let conv = plain.steps()[0].clone();
    let facts = conv.weighted.unwrap();
    let slow = facts.legal.last().unwrap().variant;
    let isa = lacuna::Isa::parse(plain.isa()).unwrap();
    let mut tuned = Tuned::default();
    let forms = vec![
        (Variant::plain(Form::BitmaskRows), 1.0),
        (slow, 2.0),
        (facts.form, 9.0),
    ];
    tuned.record(isa, 2, &facts.key, conv.density, forms);
    let with = |tuned: &Tuned, dense| {
        let options = SessionOptions {
            tuned: Some(tuned.clone()),
            dense,
            ..SessionOptions::default()
        };
        session(options).unwrap().steps()[0].clone()
    };
    let step = with(&tuned, false);
    let facts = step.weighted.unwrap();
    assert_eq!((facts.form, facts.by), (slow, Chosen::Measured));
    assert!(step.reason.contains("measured"), "{}", step.reason);
    assert!(with(&tuned, true).weighted.unwrap().form.form.is_dense());
    let mut elsewhere = Tuned::default();
    elsewhere.record(isa, 1, &facts.key, step.density, vec![(slow, 1.0)]);
    assert_eq!(
        with(&elsewhere, false).weighted.unwrap().by,
        Chosen::Estimated
    );
}

#[test]
fn costs_change_the_choice_and_not_the_answer() {
    let mut plain = session(SessionOptions::default()).unwrap();
    let conv = plain.steps()[0].weighted.clone().unwrap();
    assert_eq!(conv.by, Chosen::Estimated);
    assert!(!conv.form.form.is_dense(), "{}", conv.form);
    let with = |change: &[(&str, f64)]| {
        let mut costs = Costs::default();
        for (name, value) in change {
            costs.set(name, *value).unwrap();
        }
        let options = SessionOptions {
            costs,
            ..SessionOptions::default()
        };
        session(options).unwrap()
    };
    let same = with(&[("load", Costs::default().load)]);
    assert_eq!(same.steps()[0].weighted.as_ref(), Some(&conv));
    let mut other = with(&[("load", 100.0), ("far_load", 100.0)]);
    let form = other.steps()[0].weighted.as_ref().unwrap().form;
    assert!(form.form.is_dense(), "{form}");
    let x = values(8 * 13 * 13, 1);
    let input = [TensorView::f32(&[1, 8, 13, 13], &x)];
    let (a, b) = (plain.run(&input).unwrap(), other.run(&input).unwrap());
    for (a, b) in a[0].data.iter().zip(&b[0].data) {
        assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} {b}");
    }
}

fn cached(folder: &Path, forms: &Forms) -> Session {
    session(SessionOptions {
        pack_cache: Some(folder.into()),
        forms: forms.clone(),
        ..SessionOptions::default()
    })
    .unwrap()
}

#[test]
fn packed_weights_are_kept_mapped_and_made_anew_when_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/when/missing");
    let expected = run(&mut session(SessionOptions::default()).unwrap());
    for form in [
        "dense-panel",
        "dense-by-row",
        "stream-panel-64x20",
        "pair-panel-32x20",
    ] {
        let forms = Forms::from([("conv.weight".into(), vec![form.parse().unwrap()])]);
        // Tiles by output rows need the registers of AVX-512.
        let options = SessionOptions {
            forms: forms.clone(),
            ..SessionOptions::default()
        };
        if form == "dense-by-row" && session(options).is_err() {
            continue;
        }
        let mut first = cached(&folder, &forms);
        assert_eq!(
            (first.packs().found, first.packs().kept),
            (0, 1),
            "{}",
            first.packs()
        );
        let mut second = cached(&folder, &forms);
        assert_eq!(
            (second.packs().found, second.packs().kept),
            (1, 0),
            "{}",
            second.packs()
        );
        for session in [&mut first, &mut second] {
            assert!(close(&run(session), &expected));
        }
    }
    let forms = Forms::from([(
        "conv.weight".into(),
        vec!["stream-panel-64x20".parse().unwrap()],
    )]);
    drop(cached(&folder, &forms));
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    }
    let mut third = cached(&folder, &forms);
    assert_eq!((third.packs().found, third.packs().kept), (0, 1));
    assert!(
        third.packs().notes[0].contains("packed again"),
        "{}",
        third.packs()
    );
    assert!(close(&run(&mut third), &expected));
    drop(third);
    assert_eq!(cached(&folder, &forms).packs().found, 1);
}

#[test]
fn hostile_packs_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let forms = Forms::from([(
        "conv.weight".into(),
        vec!["stream-panel-64x20".parse().unwrap()],
    )]);
    drop(cached(folder.path(), &forms));
    let path = std::fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = std::fs::read(&path).unwrap();
    let expected = run(&mut session(SessionOptions::default()).unwrap());
    let zeros = vec![0; good.len()];
    let mut version = good.clone();
    version[7] = 9;
    let mut offset = good.clone();
    let end = offset.len();
    offset[end - 2..].fill(0xff);
    for (bytes, why) in [
        (&b""[..], "0 bytes"),
        (&good[..31], "31 bytes"),
        (&zeros[..], "version"),
        (&version[..], "version"),
        (&offset[..], "sum"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let mut session = cached(folder.path(), &forms);
        assert_eq!(session.packs().kept, 1);
        assert!(
            session.packs().notes[0].contains(why),
            "{}",
            session.packs()
        );
        assert!(close(&run(&mut session), &expected));
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_a_note() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut session = cached(file.path(), &Forms::new());
    assert_eq!(session.packs().kept, 0);
    assert!(
        session.packs().notes[0].contains("is not kept"),
        "{}",
        session.packs()
    );
    assert!(!run(&mut session).is_empty());
}
