//! Test vectors, and levels against levels made alone.

use super::*;

/// Test vector 7.2.
fn vector() -> (Matrix, Matrix) {
    let x = [
        [1., 2., 0., 1.],
        [0., 1., 1., 2.],
        [2., 0., 1., 1.],
        [1., 1., 1., 0.],
        [0., 2., 1., 1.],
        [1., 0., 2., 1.],
    ];
    let mut h = Matrix::zeros(4, 4);
    for row in x {
        for i in 0..4 {
            for j in 0..4 {
                h.data[i * 4 + j] += row[i] * row[j];
            }
        }
    }
    let mean = (0..4).map(|i| h.data[i * 5]).sum::<f64>() / 4.0;
    (0..4).for_each(|i| h.data[i * 5] += 0.01 * mean);
    let w = vec![1., -0.5, 0.2, 0.1, -0.3, 0.8, 0.6, 0.4];
    (Matrix::new(4, 2, w), h)
}

fn diagonal(h: &Matrix) -> Vec<f64> {
    (0..h.rows).map(|i| h.row(i)[i]).collect()
}

fn state<'a>(reader: &'a Reader<'a>, target: &'a Matrix, score: Score) -> State<'a> {
    State {
        reader,
        score,
        target,
        channels: (0..reader.gram.rows).collect(),
        atoms: reader.atoms.iter().cloned().enumerate().collect(),
        weight: reader.weight.clone(),
        inverse: inverse(reader.gram).unwrap(),
    }
}

fn near(found: &[f64], wanted: &[f64], within: f64) {
    assert_eq!(found.len(), wanted.len());
    for (f, w) in found.iter().zip(wanted) {
        assert!((f - w).abs() < within, "{found:?} is not {wanted:?}");
    }
}

#[test]
fn scores_updates_and_the_refit_are_those_of_the_vector() {
    let (w, h) = vector();
    let atoms: Vec<Vec<usize>> = (0..4).map(|i| vec![i]).collect();
    let reader = Reader {
        weight: &w,
        gram: &h,
        squares: &diagonal(&h),
        atoms: &atoms,
        classes: None,
    };
    let target = h.times(&w);
    let first = [9.873089, 2.132904, 4.335565, 8.251029];
    let second = [10.065558, 3.999789, 11.000653];
    let obs = [2.469964, 0.138779, 1.015340, 0.648129];
    let then = [2.522280, 1.022041, 1.478863];
    for (score, rounds) in [
        (Score::Code, [&first[..], &second[..]]),
        (Score::Obs, [&obs, &then]),
    ] {
        let mut state = state(&reader, &target, score);
        near(&state.scores().unwrap(), rounds[0], 1e-6);
        state.remove(1).unwrap();
        near(&state.scores().unwrap(), rounds[1], 1e-6);
        state.remove(1).unwrap();
        state.shrink();
        let whole = dot(&w.data, &target.data);
        let wanted = [0.88182005, 0.58425237, -0.18105295, 0.91026437];
        let (updated, refitted) = (state.level(false, whole), state.level(true, whole));
        for level in [updated.unwrap(), refitted.unwrap()] {
            assert_eq!(level.kept, [0, 3]);
            near(&level.weight.data, &wanted, 1e-6);
            near(&[0.5 * level.error * whole], &[1.16081976], 1e-6);
        }
    }
}

fn random(n: usize, outputs: usize) -> (Matrix, Matrix) {
    let mut state = 7u64;
    let mut dice = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let rows = 2 * n + 3;
    let x = Matrix::new(rows, n, (0..rows * n).map(|_| dice()).collect());
    let mut h = Matrix::zeros(n, n);
    for row in x.data.chunks_exact(n) {
        for i in 0..n {
            for j in 0..n {
                h.data[i * n + j] += row[i] * row[j];
            }
        }
    }
    (0..n).for_each(|i| h.data[i * n + i] += 0.01);
    let w = (0..n * outputs).map(|_| dice()).collect();
    (Matrix::new(n, outputs, w), h)
}

#[test]
fn levels_go_on_from_each_other_and_lose_more_and_more() {
    let (w, h) = random(66, 5);
    for width in [1, 3] {
        let atoms: Vec<Vec<usize>> = (0..66 / width)
            .map(|a| (a * width..(a + 1) * width).collect())
            .collect();
        let reader = Reader {
            weight: &w,
            gram: &h,
            squares: &diagonal(&h),
            atoms: &atoms,
            classes: None,
        };
        for score in [Score::Obs, Score::Code, Score::Paper, Score::Wanda] {
            let local = Local {
                score,
                ..Local::default()
            };
            let all = atoms.len();
            let counts = [all, all - 4, all - 8, all - 20, 0];
            let step = Step::Atoms(2);
            let chain = levels(&reader, &counts, &local, step).unwrap();
            for (level, &count) in chain.iter().zip(&counts) {
                let alone = levels(&reader, &[count], &local, step).unwrap();
                assert_eq!(level.kept, alone[0].kept, "{score:?} at {count}");
                near(&level.weight.data, &alone[0].weight.data, 1e-9);
            }
            near(&chain[0].weight.data, &w.transposed().data, 1e-12);
            assert!(chain[4].kept.is_empty() && (chain[4].error - 1.0).abs() < 1e-9);
            let grows = |l: &[Level]| l[0].error <= l[1].error + 1e-12;
            assert!(!score.updates() || chain.windows(2).all(grows), "{score:?}");
        }
    }
}

#[test]
fn a_refit_is_no_worse_and_classes_lose_alike() {
    let (w, h) = random(48, 4);
    let atoms: Vec<Vec<usize>> = (0..12).map(|a| (a * 4..a * 4 + 4).collect()).collect();
    let classes: Vec<usize> = (0..12).map(|a| a / 4).collect();
    let reader = Reader {
        weight: &w,
        gram: &h,
        squares: &diagonal(&h),
        atoms: &atoms,
        classes: Some(&classes),
    };
    let counts = [9, 6, 3];
    let step = Step::Atoms(3);
    let local = |refit| Local {
        refit,
        ..Local::default()
    };
    let with = levels(&reader, &counts, &local(true), step).unwrap();
    let without = levels(&reader, &counts, &local(false), step).unwrap();
    for (a, b) in with.iter().zip(&without) {
        assert_eq!(a.kept, b.kept);
        assert!(a.error <= b.error + 1e-9);
        for class in 0..3 {
            let n = a.kept.iter().filter(|k| classes[**k] == class).count();
            assert_eq!(n, a.kept.len() / 3);
        }
    }
    assert!(levels(&reader, &[6, 9], &local(true), step).is_err());
}
