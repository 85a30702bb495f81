//! Inputs and outputs that do not fit a session: each is an error that names the tensor and what is
//! wrong with it, and the session still works afterwards.

mod common;

use common::small_model;
use lacuna::model::{
    Coordinates, Dim, Graph, Input, Interpolation, Node, Op, PadMode, Resized, Symbols, Weights,
};
use lacuna::{Model, Session, SessionOptions, TensorView, TensorViewMut};

const SHAPE: [usize; 4] = [1, 2, 5, 5];

/// What it is, the input's shape and elements, and what its error must say.
type Case = (&'static str, Vec<usize>, Vec<f32>, &'static [&'static str]);

fn session(allow_non_finite: bool) -> Session {
    let options = SessionOptions {
        threads: 1,
        allow_non_finite,
        ..SessionOptions::default()
    };
    Session::new(&small_model(), options).unwrap()
}

fn input() -> Vec<f32> {
    (0..50).map(|i| i as f32 / 10.0 - 2.0).collect()
}

fn input_with(at: usize, value: f32) -> Vec<f32> {
    let mut data = input();
    data[at] = value;
    data
}

#[test]
fn every_hostile_input_is_refused_by_name() {
    let good = input();
    let long = vec![0.0; 60];
    let cases: [Case; 12] = [
        (
            "NaN",
            SHAPE.to_vec(),
            input_with(17, f32::NAN),
            &["element 17", "NaN"],
        ),
        (
            "NaN at the end",
            SHAPE.to_vec(),
            input_with(49, -f32::NAN),
            &["element 49", "NaN"],
        ),
        (
            "infinity",
            SHAPE.to_vec(),
            input_with(0, f32::INFINITY),
            &["element 0", "inf"],
        ),
        (
            "minus infinity",
            SHAPE.to_vec(),
            input_with(3, f32::NEG_INFINITY),
            &["element 3", "-inf"],
        ),
        ("no axes", vec![], vec![1.0], &["shape []", "[1, 2, 5, 5]"]),
        (
            "an axis missing",
            vec![2, 5, 5],
            good.clone(),
            &["[2, 5, 5]", "[1, 2, 5, 5]"],
        ),
        (
            "an axis too many",
            vec![1, 1, 2, 5, 5],
            good.clone(),
            &["[1, 1, 2, 5, 5]"],
        ),
        (
            "other channels",
            vec![1, 5, 2, 5],
            good.clone(),
            &["[1, 5, 2, 5]"],
        ),
        (
            "another batch",
            vec![2, 2, 5, 5],
            vec![0.0; 100],
            &["[2, 2, 5, 5]", "[1, 2, 5, 5]"],
        ),
        ("no batch", vec![0, 2, 5, 5], vec![], &["[0, 2, 5, 5]"]),
        (
            "an overflowing shape",
            vec![usize::MAX; 4],
            good.clone(),
            &["18446744073709551615"],
        ),
        (
            "too many elements",
            SHAPE.to_vec(),
            long,
            &["60 elements", "[1, 2, 5, 5]"],
        ),
    ];
    let mut session = session(false);
    let expected = session.run(&[TensorView::f32(&SHAPE, &good)]).unwrap();
    for (name, shape, data, parts) in cases {
        let error = session.run(&[TensorView::f32(&shape, &data)]).unwrap_err();
        let said = error.to_string();
        for part in parts.iter().chain(&["input `x`"]) {
            assert!(said.contains(part), "{name}: `{part}` is not in: {said}");
        }
        let again = session.run(&[TensorView::f32(&SHAPE, &good)]).unwrap();
        assert_eq!(again, expected, "after {name}");
    }
}

#[test]
fn inputs_too_many_or_too_few_are_counted() {
    let data = input();
    let view = TensorView::f32(&SHAPE, &data);
    let mut session = session(false);
    for (views, count) in [(vec![], "0 given"), (vec![view; 2], "2 given")] {
        let said = session.run(&views).unwrap_err().to_string();
        assert!(
            said.contains("input `x`") && said.contains(count) && said.contains("1 expected"),
            "{said}"
        );
    }
}

#[test]
fn every_hostile_output_is_refused_by_name_and_left_as_it_was() {
    let data = input();
    let mut session = session(false);
    let cases: [(&[usize], usize, &[&str]); 3] = [
        (&[3], 3, &["[3]", "[1, 3]"]),
        (&[1, 4], 4, &["[1, 4]", "[1, 3]"]),
        (&[1, 3], 2, &["2 elements", "[1, 3]"]),
    ];
    for (shape, len, parts) in cases {
        let mut out = vec![7.0; len];
        let said = session
            .run_into(
                &[TensorView::f32(&SHAPE, &data)],
                &mut [TensorViewMut::f32(shape, &mut out)],
            )
            .unwrap_err()
            .to_string();
        for part in parts.iter().chain(&["output `fc.out`"]) {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
        assert!(out.iter().all(|&x| x == 7.0));
    }
    let said = session
        .run_into(&[TensorView::f32(&SHAPE, &data)], &mut [])
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("output `fc.out`") && said.contains("0 given"),
        "{said}"
    );
}

#[test]
fn non_finite_inputs_run_where_they_are_allowed() {
    let data = input_with(17, f32::NAN);
    session(true)
        .run(&[TensorView::f32(&SHAPE, &data)])
        .unwrap();
}

#[test]
fn symbols_that_cannot_be_are_refused() {
    for (size, part) in [
        (usize::MAX, "18446744073709551615"),
        (1 << 60, "1152921504606846976"),
    ] {
        let options = SessionOptions {
            symbols: Symbols::from([("N".to_owned(), size)]),
            ..SessionOptions::default()
        };
        let said = Session::new(&small_model(), options)
            .unwrap_err()
            .to_string();
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn long_axes_are_refused_before_tables_are_made_for_them() {
    let long = 1 << 38;
    let resized = Op::Resize {
        resized: Resized::Sizes([1, long]),
        interpolation: Interpolation::Linear,
        coordinates: Coordinates::HalfPixel,
    };
    let padded = Op::Pad {
        pads: vec![0, 0, 0, 0, 0, 0, 0, long as i64 - 3],
        mode: PadMode::Constant(0.0),
    };
    for op in [resized, padded] {
        let name = op.name().to_lowercase();
        let graph = Graph {
            name: "long".into(),
            inputs: vec![Input::f32("x", [1, 1, 1, 3].map(Dim::Fixed).to_vec())],
            outputs: vec!["y".into()],
            nodes: vec![Node {
                name: name.clone(),
                op,
                inputs: vec!["x".into()],
                output: "y".into(),
            }],
        };
        let model = Model::new(graph, Weights::new()).unwrap();
        let said = Session::new(&model, SessionOptions::default())
            .unwrap_err()
            .to_string();
        assert!(
            said.contains(&name) && said.contains(&long.to_string()),
            "{said}"
        );
    }
}
