//! Groups of channels, and that a cut model computes what the masked one does.

#[path = "common/nets.rs"]
mod nets;

use lacuna::{Decoder, DecoderOptions, Model, Session, SessionOptions, Tensor};
use lacuna_prune::groups::{ChannelPlan, Criterion, Group, Groups, Limits, Removed, Scope, Target};
use proptest::prelude::*;

struct Dice(u64);

impl Dice {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

/// Outputs on random inputs, a batch of 2.
fn run(model: &Model, seed: u64) -> Vec<Vec<f32>> {
    let options = SessionOptions {
        threads: 1,
        symbols: [("N".to_owned(), 2)].into(),
        ..SessionOptions::default()
    };
    let mut session = Session::new(model, options).unwrap();
    let mut dice = Dice(seed);
    let inputs: Vec<Tensor> = (session.inputs().iter())
        .map(|(_, shape)| {
            let mut t = Tensor::zeros(shape);
            t.data.fill_with(|| dice.next(2001) as f32 / 1000.0 - 1.0);
            t
        })
        .collect();
    let views: Vec<_> = inputs.iter().map(|t| t.view()).collect();
    session
        .run(&views)
        .unwrap()
        .into_iter()
        .map(|t| t.data)
        .collect()
}

/// Logits after a few tokens, and after one more.
fn decode(model: &Model) -> Vec<Vec<f32>> {
    let options = DecoderOptions {
        threads: 1,
        round_inputs: Some(false),
        ..DecoderOptions::default()
    };
    let mut decoder = Decoder::new(model, options).unwrap();
    let first = decoder.prefill(&[1, 5, 17, 260, 9]).unwrap().to_vec();
    vec![first, decoder.step(42).unwrap().to_vec()]
}

/// `LACUNA_CUT_MODELS` names checkpoints, or `arch=resnet-50`, separated by colons: each is cut at random, and compared with the
/// masked model.
#[test]
fn real_checkpoints_are_cut() {
    let Some(paths) = std::env::var_os("LACUNA_CUT_MODELS") else {
        eprintln!("skipped: LACUNA_CUT_MODELS names no checkpoint");
        return;
    };
    for path in std::env::split_paths(&paths) {
        let arch = path.to_str().and_then(|p| p.strip_prefix("arch="));
        let options = lacuna_convert::Options {
            arch: arch.map(str::to_owned),
            ..Default::default()
        };
        let model = match arch {
            Some(_) => lacuna_convert::untrained(&options, 1),
            None => lacuna_convert::open(&path, &options),
        };
        let model = model.unwrap();
        let began = std::time::Instant::now();
        let groups = Groups::of(&model).unwrap();
        let found = began.elapsed();
        for (seed, fold) in [(1, true), (2, false)] {
            let removed = random(&groups, &mut Dice(seed));
            let masked = groups.mask(&removed, fold).unwrap();
            let cut = groups.cut(&removed, fold).unwrap();
            let of = |m: &Model| match m.is_language_model() {
                true => decode(m),
                false => run(m, seed),
            };
            let off = difference(&of(&cut.model), &of(&masked));
            eprintln!(
                "{}: groups in {found:?}; {} units gone, {} layers took constants, {} lost some; largest difference {off:.1e}",
                path.display(),
                removed.counts().iter().sum::<usize>(),
                cut.folded.len(),
                cut.leftovers.len()
            );
            assert!(cut.leftovers.is_empty());
            assert!(off <= 1e-5, "{}: {off}", path.display());
        }
    }
}

/// Random units of random groups.
fn random(groups: &Groups<'_>, dice: &mut Dice) -> Removed {
    let units = groups.all().iter().map(|g| {
        if g.reason.is_some() || g.units < 2 || dice.next(4) == 0 {
            return Vec::new();
        }
        let count = 1 + dice.next(g.units - 1);
        let mut units: Vec<usize> = (0..g.units).collect();
        for i in 0..count {
            let other = i + dice.next(units.len() - i);
            units.swap(i, other);
        }
        units.truncate(count);
        units
    });
    Removed::new(groups, units.collect()).unwrap()
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let largest = b.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    // A network that the cut killed would agree with anything.
    let first = b[0][0];
    assert!(
        b.iter().flatten().any(|v| *v != first),
        "every output is {first}"
    );
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest.max(f32::MIN_POSITIVE)
}

/// Cuts at random, twice by mode, and compares. Returns how many layers took constants.
fn check(model: &Model, seed: u64) -> usize {
    let groups = Groups::of(model).unwrap();
    let mut dice = Dice(seed);
    let mut folded = 0;
    for fold in [true, false] {
        let removed = random(&groups, &mut dice);
        let masked = groups.mask(&removed, fold).unwrap();
        let cut = groups.cut(&removed, fold).unwrap();
        assert!(cut.leftovers.is_empty(), "{:?}", cut.leftovers);
        let off = difference(&run(&cut.model, seed), &run(&masked, seed));
        assert!(off <= 1e-5, "{} fold {fold}: {off}", model.graph().name);
        folded += cut.folded.len();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        cut.model.save(&path).unwrap();
        let again = Model::open(&path).unwrap();
        assert_eq!(run(&again, seed), run(&cut.model, seed));
    }
    folded
}

fn nets(seed: u64) -> Vec<Model> {
    vec![
        nets::resnet(seed),
        nets::padded_shortcut(seed),
        nets::densenet(seed),
        nets::mobilenet(seed),
        nets::detector(seed),
        nets::unet(seed),
        nets::transposed(seed),
        nets::vgg(seed),
        nets::transformer(seed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_cut_model_computes_what_the_masked_one_does(seed in any::<u64>()) {
        for net in nets(seed) {
            check(&net, seed);
        }
    }
}

fn group<'g>(groups: &'g Groups<'_>, name: &str) -> &'g Group {
    let mut all = groups
        .all()
        .iter()
        .filter(|g| g.outputs().any(|m| m.weight == name));
    let first = all
        .next()
        .unwrap_or_else(|| panic!("no group makes {name}"));
    assert!(all.next().is_none(), "several groups make {name}");
    first
}

fn touches(g: &Group, weight: &str, axis: usize) -> usize {
    let m = g
        .members
        .iter()
        .find(|m| m.weight == weight && m.axis == axis);
    m.map_or(0, |m| m.per_unit)
}

#[test]
fn residual_additions_join_their_branches() {
    let model = nets::resnet(1);
    let groups = Groups::of(&model).unwrap();
    let stem = group(&groups, "stem.conv.weight");
    assert_eq!(stem.units, 10);
    for (weight, axis) in [
        ("a2.conv.weight", 0),
        ("a1.conv.weight", 1),
        ("b1.conv.weight", 1),
        ("b.down.weight", 1),
    ] {
        assert_eq!(touches(stem, weight, axis), 1, "{weight}");
    }
    assert_eq!(
        group(&groups, "b2.conv.weight"),
        group(&groups, "b.down.weight")
    );
    let classes = group(&groups, "fc.weight");
    assert_eq!(classes.reason.as_ref().unwrap().to_string(), "output `fc`");
}

#[test]
fn concatenations_are_offsets() {
    let model = nets::densenet(1);
    let groups = Groups::of(&model).unwrap();
    // The second layer's channels lie behind 8 and 5 others.
    let grow = group(&groups, "1.grow.weight");
    assert_eq!(grow.units, 5);
    let read = grow
        .members
        .iter()
        .find(|m| m.weight == "2.narrow.conv.weight")
        .unwrap();
    assert_eq!((read.indices(0), read.indices(4)), (&[13][..], &[17][..]));
}

#[test]
fn transposed_convolutions_read_by_their_first_axis() {
    let model = nets::transposed(1);
    let groups = Groups::of(&model).unwrap();
    let made = group(&groups, "up.weight");
    assert_eq!((made.units, touches(made, "up.weight", 1)), (7, 1));
    assert_eq!(touches(made, "c.conv.weight", 1), 1);
    let read = group(&groups, "b.conv.weight");
    assert_eq!((read.units, touches(read, "up.weight", 0)), (9, 1));
    // Two groups of four inputs and three outputs.
    let whole = group(&groups, "groups.weight");
    assert_eq!((whole.units, touches(whole, "c.conv.weight", 0)), (2, 4));
    assert_eq!(touches(whole, "mix.weight", 1), 3);
    let single = group(&groups, "single.weight");
    assert_eq!((single.units, touches(single, "mix.weight", 0)), (6, 1));
}

#[test]
fn slices_flattening_and_gates_are_index_maps() {
    let model = nets::detector(1);
    let groups = Groups::of(&model).unwrap();
    // Halves of one layer are two groups.
    let halves: Vec<&Group> = (groups.all().iter())
        .filter(|g| g.outputs().any(|m| m.weight == "c2f.1.conv.weight"))
        .collect();
    assert_eq!(halves.iter().map(|g| g.units).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(touches(halves[1], "c2f.2.conv.weight", 1), 1);
    // A pyramid repeats its channels.
    assert_eq!(
        touches(
            group(&groups, "sppf.1.conv.weight"),
            "sppf.2.conv.weight",
            1
        ),
        3
    );
    // A head that three scales share joins them.
    assert_eq!(
        group(&groups, "c3.3.conv.weight"),
        group(&groups, "sppf.2.conv.weight")
    );

    let model = nets::vgg(1);
    let groups = Groups::of(&model).unwrap();
    let flat = group(&groups, "c3.weight");
    assert_eq!(touches(flat, "f1.weight", 1), 9);
    let read = flat
        .members
        .iter()
        .find(|m| m.weight == "f1.weight")
        .unwrap();
    assert_eq!(read.indices(2), (18..27).collect::<Vec<u32>>());
    // Two groups of three channels in and four out.
    let grouped = group(&groups, "c1.weight");
    assert_eq!(
        (
            grouped.units,
            touches(grouped, "c1.weight", 0),
            touches(grouped, "c2.weight", 0)
        ),
        (2, 3, 4)
    );

    let model = nets::mobilenet(1);
    let groups = Groups::of(&model).unwrap();
    let wide = group(&groups, "1.expand.conv.weight");
    assert_eq!(wide.units, 20);
    for weight in ["1.depth.conv.weight", "1.excite.weight"] {
        assert_eq!(touches(wide, weight, 0), 1, "{weight}");
    }
    assert_eq!(touches(wide, "1.squeeze.weight", 1), 1);
}

#[test]
fn query_heads_go_with_their_key_head() {
    let model = nets::transformer(1);
    let groups = Groups::of(&model).unwrap();
    let heads = group(&groups, "q.weight");
    assert_eq!(heads.units, 3);
    let found = [
        ("q.weight", 0),
        ("k.weight", 0),
        ("v.weight", 0),
        ("o.weight", 1),
    ]
    .map(|(w, a)| touches(heads, w, a));
    assert_eq!(found, [8, 4, 3, 6]);
    let neurons = group(&groups, "gate.weight");
    assert_eq!(
        (
            neurons.units,
            touches(neurons, "up.weight", 0),
            touches(neurons, "down.weight", 1)
        ),
        (13, 1, 1)
    );
    assert!(group(&groups, "o.weight").reason.is_some());
}

#[test]
fn constants_go_into_the_next_bias() {
    // Sigmoids leave a half of every channel that is gone, and biases stay.
    let folded: usize = (0..8).map(|seed| check(&nets::vgg(seed), seed)).sum();
    assert!(folded > 0);
    // A padded convolution cannot take them: the shift goes too, and the models agree still.
    let cut: usize = (0..8).map(|seed| check(&nets::resnet(seed), seed)).sum();
    assert!(cut > 0);
}

#[test]
fn constants_that_no_bias_takes_are_told() {
    let mut n = nets::Net::new("border", 2, 6, 3);
    let y = n.conv("a", "x", 6, 3, 1, 1);
    let y = n.node("half", lacuna::model::Op::Sigmoid, &[&y]);
    let y = n.conv("b", &y, 4, 3, 1, 1);
    let model = n.finish(&[&y]);
    let groups = Groups::of(&model).unwrap();
    let units = groups.all().iter().map(|g| {
        if g.reason.is_none() {
            vec![1, 3]
        } else {
            vec![]
        }
    });
    let removed = Removed::new(&groups, units.collect()).unwrap();
    let cut = groups.cut(&removed, true).unwrap();
    assert_eq!(cut.leftovers.len(), 1);
    assert_eq!(
        (cut.leftovers[0].node.as_str(), cut.leftovers[0].channels),
        ("b", 2)
    );
    assert_eq!(cut.model.weights()["b.weight"].shape(), [4, 4, 3, 3]);
}

#[test]
fn a_plan_meets_its_budget_and_no_more() {
    for net in nets(5) {
        let mut groups = Groups::of(&net).unwrap();
        for (criterion, scope) in [
            (Criterion::L1, Scope::Uniform),
            (Criterion::L2, Scope::Global),
            (Criterion::GroupNorm, Scope::Global),
        ] {
            for target in [Target::Macs(0.7), Target::Parameters(0.7)] {
                let plan = ChannelPlan::new(&groups, criterion, scope, target, &Limits::default())
                    .unwrap();
                let cut = groups.cut(&plan.removed, false).unwrap();
                let found = lacuna_prune::report::report(&cut.model, &Default::default())
                    .unwrap()
                    .totals;
                assert_eq!(plan.after.macs, found.dense_macs, "{}", net.graph().name);
                assert_eq!(
                    plan.after.parameters,
                    found.trained as u64,
                    "{}",
                    net.graph().name
                );
                let share = match target {
                    Target::Macs(_) => plan.after.macs as f64 / plan.before.macs as f64,
                    Target::Parameters(_) => {
                        plan.after.parameters as f64 / plan.before.parameters as f64
                    }
                };
                assert!(
                    share <= 0.7 && share > 0.35,
                    "{}: {share}",
                    net.graph().name
                );
            }
        }
        let limits = Limits {
            max_ratio: 0.0,
            ..Limits::default()
        };
        let none = ChannelPlan::new(
            &groups,
            Criterion::L1,
            Scope::Global,
            Target::Macs(0.9),
            &limits,
        );
        assert!(none.unwrap_err().to_string().contains("keep 1.0000"));
        groups.ignore(&["*".into()]).unwrap();
        assert!(
            groups
                .all()
                .iter()
                .all(|g| g.outputs().next().is_none() || g.reason.is_some())
        );
        assert!(groups.ignore(&["nothing of this name".into()]).is_err());
    }
}

#[test]
fn units_that_cannot_go_are_refused() {
    let model = nets::resnet(2);
    let groups = Groups::of(&model).unwrap();
    let at = |f: &dyn Fn(&Group) -> bool| groups.all().iter().position(f).unwrap();
    let with = |group: usize, units: Vec<usize>| {
        let mut all = vec![Vec::new(); groups.all().len()];
        all[group] = units;
        Removed::new(&groups, all).unwrap_err().to_string()
    };
    let fc = at(&|g| g.name() == "fc.weight");
    assert!(with(fc, vec![0]).contains("output `fc`"));
    let stem = at(&|g| g.name() == "stem.conv.weight");
    assert!(with(stem, (0..10).collect()).contains("nothing would be left"));
    assert!(with(stem, vec![10]).contains("unit 10"));
}

#[test]
fn sparse_weights_are_cut_too() {
    let model = nets::resnet(4);
    let mut sparse = model.clone();
    for (name, weight) in model.weights() {
        if weight.shape().len() == 4 {
            let mut values = weight.to_f32().unwrap();
            values
                .iter_mut()
                .filter(|v| v.abs() < 0.2)
                .for_each(|v| *v = 0.0);
            let dense = lacuna::Weight::from_f32(weight.shape(), &values);
            sparse.set_weight(name, dense.encode()).unwrap();
        }
    }
    check(&sparse, 9);
    let groups = Groups::of(&sparse).unwrap();
    let cut = groups.cut(&random(&groups, &mut Dice(3)), true).unwrap();
    assert!(cut.model.weights().values().any(|w| w.is_sparse()));
}

#[test]
fn the_verbs_list_and_cut() {
    let prune = |arguments: &[&str]| {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_prune"))
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            program.status.success(),
            text(program.stdout),
            text(program.stderr),
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    let path = path.to_str().unwrap();
    let source = ["--arch", "fashion-cnn"];

    let (good, out, _) = prune(&[&["groups", "--json"], &source[..]].concat());
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(good && list["schema"] == 1);
    let groups = list["groups"].as_array().unwrap();
    assert!(groups.iter().any(|g| g["reason"].is_null()));
    let classes = groups.last().unwrap();
    assert_eq!(
        (&classes["units"], &classes["removable"]),
        (&10.into(), &0.into())
    );

    let flags = ["--flops", "0.5", "--round-to", "2", "--json", "-o", path];
    let (good, out, errors) = prune(&[&["channels"], &source[..], &flags[..]].concat());
    assert!(good, "{errors}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let macs = |when: &str| report[when]["dense_macs"].as_f64().unwrap();
    assert!(macs("after") <= 0.5 * macs("before"));
    let kept =
        |g: &serde_json::Value| g["units"].as_u64().unwrap() - g["removed"].as_u64().unwrap();
    assert!(
        report["groups"]
            .as_array()
            .unwrap()
            .iter()
            .all(|g| kept(g) % 2 == 0)
    );
    assert_eq!(run(&Model::open(path).unwrap(), 1)[0].len(), 20);
    assert!(folder.path().join("cut.report.json").exists());

    let flags = ["--flops", "0.5", "--ignore", "no such weight", "--dry-run"];
    let (good, _, errors) = prune(&[&["channels"], &source[..], &flags[..]].concat());
    assert!(!good && errors.contains("no such weight"), "{errors}");
}
