//! Trains the small CNN of `prune demo` on Fashion-MNIST, so that it can be pruned in one shot.
//!
//! Stochastic gradient descent with Nesterov momentum, a cosine schedule, flips and shifts. From
//! `--ramp-start` on, the weights that a global magnitude threshold would remove are pulled towards
//! zero after every step, by `--shrink`; the share they make up grows to `--sparsity` at
//! `--ramp-end` and stays there. No weight is ever set to zero: the file is dense, and what
//! one-shot pruning takes from it no longer matters much.
//!
//! ```text
//! apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb deb
//! cargo run --release -p lacuna-prune --example train_fashion_cnn -- \
//!     --data deb/usr/share/datasets/fashion-mnist -o fashion-cnn.safetensors
//! ```
//!
//! Activations are `[C, N, H, W]`, channels outermost, so that a convolution is one matrix product
//! and a channel's statistics are those of a row. Candle differentiates; three operations of it are
//! slow on a CPU in this layout and are written out here.

use anyhow::{Context, Result, ensure};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, Shape, Storage, Tensor, Var, bail,
};
use clap::Parser;
use lacuna_prune::data::{Dataset, Idx};
use lacuna_prune::eval::{EvalOptions, evaluate};
use lacuna_prune::{AllocatorName, Recipe};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The channels of the convolutions, the first being the input's.
const CHANNELS: [usize; 5] = [1, 32, 64, 128, 128];
const CLASSES: usize = 10;
const SIDE: usize = 28;
const EPS: f32 = 1e-5;
const MOMENTUM: f64 = 0.9;
/// How fast the running statistics follow the batches.
const FOLLOW: f32 = 0.1;
/// Weights smaller than this are left alone, so that none becomes zero or subnormal.
const TINY: f32 = 1e-6;

#[derive(Parser)]
#[command(about = "Trains the CNN of `prune demo` on Fashion-MNIST")]
struct Args {
    /// The folder of the four IDX files
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where the weights go, after every epoch
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Start from these weights instead of random ones
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Passes over the training images
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Stop after this one, as if more were to come
    #[arg(long, value_name = "EPOCH")]
    stop: Option<usize>,
    /// Images of a step
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// The learning rate that the cosine starts from
    #[arg(long, default_value_t = 0.05)]
    lr: f64,
    /// L2 decay of convolution and linear weights
    #[arg(long, default_value_t = 5e-4)]
    decay: f64,
    /// The share of the weights that ends up small; 0 trains an ordinary network
    #[arg(long, default_value_t = 0.9)]
    sparsity: f64,
    /// The part of a small weight that goes at every step
    #[arg(long, default_value_t = 0.02)]
    shrink: f32,
    /// When the first weights are shrunk, as a part of the run; less than 0 starts in the middle
    #[arg(long, default_value_t = 0.2, allow_hyphen_values = true)]
    ramp_start: f64,
    /// When the share reaches --sparsity
    #[arg(long, default_value_t = 0.6)]
    ramp_end: f64,
    /// The largest shift of an image, in pixels
    #[arg(long, default_value_t = 2)]
    shift: usize,
    /// Seeds the weights, the order and the augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.epochs > 0 && args.batch > 1, "nothing to train");
    ensure!((0.0..1.0).contains(&args.sparsity), "--sparsity in 0..1");
    ensure!((0.0..=1.0).contains(&args.shrink), "--shrink in 0..=1");
    let train = Idx::open(&args.data.join("train-images-idx3-ubyte.gz"))?;
    let test = Idx::open(&args.data.join("t10k-images-idx3-ubyte.gz"))?;
    let mut random = Random(args.seed);
    let mut net = match &args.init {
        Some(path) => Net::read(path)?,
        None => Net::random(&mut random)?,
    };
    let mut order: Vec<usize> = (0..train.len()).collect();
    let per_epoch = train.len() / args.batch;
    ensure!(per_epoch > 0, "{} images are no batch", train.len());
    let steps = per_epoch * args.epochs;
    let started = Instant::now();
    let mut said = Instant::now();
    let mut step = 0;
    let last = args.stop.unwrap_or(args.epochs).min(args.epochs);
    let trained = describe(&args)?;
    for epoch in 1..=last {
        random.shuffle(&mut order);
        let (mut loss_sum, mut right) = (0.0, 0);
        for (i, indices) in order.chunks_exact(args.batch).enumerate() {
            let at = step as f64 / steps as f64;
            let lr = args.lr * 0.5 * (1.0 + (at * std::f64::consts::PI).cos());
            let (images, labels) = batch(&train, indices, args.shift, &mut random)?;
            let logits = net.forward(&images)?;
            let loss = candle_nn::loss::cross_entropy(&logits, &labels)?;
            let found = logits.argmax(1)?.eq(&labels)?.to_dtype(DType::U32)?;
            right += found.sum_all()?.to_scalar::<u32>()?;
            loss_sum += f64::from(loss.to_scalar::<f32>()?);
            net.descend(&loss, lr, args.decay)?;
            let share = args.sparsity * ramp(at, args.ramp_start, args.ramp_end);
            if share > 0.0 {
                net.shrink(share, args.shrink)?;
            }
            step += 1;
            if said.elapsed() > Duration::from_secs(20) {
                said = Instant::now();
                let seen = (i + 1) as f64;
                eprintln!(
                    "epoch {epoch}, step {}/{per_epoch}: loss {:.4}, training accuracy {:.2} %, \
                     lr {lr:.4}, small {:.1} %, {} left",
                    i + 1,
                    loss_sum / seen,
                    100.0 * f64::from(right) / seen / args.batch as f64,
                    share * 100.0,
                    left(started, step, steps),
                );
            }
        }
        net.write(&args.output, &trained)?;
        let levels: &[f64] = match epoch == last {
            true => &[0.0, 0.5, 0.7, 0.8, 0.85, 0.9],
            false => &[0.0, 0.9],
        };
        let mut line = format!("epoch {epoch}/{}: test accuracy", args.epochs);
        for (level, correct) in levels.iter().zip(test_at(&args.output, &test, levels)?) {
            line += &format!(" {correct} at {:.0} % zeros;", level * 100.0);
        }
        eprintln!("{line} {} left", left(started, step, steps));
    }
    Ok(())
}

/// The history of the weights, for their file.
fn describe(args: &Args) -> Result<String> {
    let epochs = match args.stop {
        Some(stop) => format!("{stop} of {} epochs", args.epochs),
        None => format!("{} epochs", args.epochs),
    };
    let mut text = format!(
        "{epochs} of SGD, cosine from {}, flips, shifts up to {} px, seed {}",
        args.lr, args.shift, args.seed
    );
    if args.sparsity > 0.0 {
        text += &format!(
            ", up to {:.0} % of the weights, the smallest, pulled towards zero by {} a step",
            args.sparsity * 100.0,
            args.shrink
        );
    }
    let Some(init) = &args.init else {
        return Ok(format!(
            "60,000 training images of Fashion-MNIST, from random weights: {text}"
        ));
    };
    let file = std::fs::read(init).with_context(|| format!("{}", init.display()))?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&file)?;
    let before = header.metadata().as_ref().and_then(|m| m.get("trained"));
    let before = before.map_or(
        "60,000 training images of Fashion-MNIST, from other weights",
        |b| b,
    );
    Ok(format!("{before}; then {text}"))
}

/// From 0 to 1 between `start` and `end`, fast first.
fn ramp(at: f64, start: f64, end: f64) -> f64 {
    let t = ((at - start) / (end - start).max(1e-9)).clamp(0.0, 1.0);
    1.0 - (1.0 - t).powi(3)
}

fn left(started: Instant, step: usize, steps: usize) -> String {
    let seconds = started.elapsed().as_secs_f64() / step as f64 * (steps - step) as f64;
    format!(
        "{:.0} min {:02.0} s",
        (seconds / 60.0).floor(),
        seconds % 60.0
    )
}

/// Test images that the weights get right, as they are and pruned in one shot.
fn test_at(path: &Path, test: &Idx, levels: &[f64]) -> Result<Vec<usize>> {
    let options = lacuna_convert::Options {
        arch: Some("fashion-cnn".into()),
        ..Default::default()
    };
    let dense = lacuna_convert::open(path, &options)?;
    let mut correct = Vec::new();
    for &level in levels {
        let pruned;
        let model = match level {
            0.0 => &dense,
            _ => {
                pruned = Recipe::new(AllocatorName::GlobalMagnitude, level).run(&dense)?;
                &pruned.model
            }
        };
        let options = EvalOptions {
            batch: 16,
            dense: true,
            ..EvalOptions::default()
        };
        correct.push(evaluate(model, test, &options, &mut |_, _| {})?.top1_correct);
    }
    Ok(correct)
}

/// Images `[1, N, 28, 28]`, flipped and shifted at random, and their labels.
fn batch(
    data: &Idx,
    indices: &[usize],
    shift: usize,
    random: &mut Random,
) -> Result<(Tensor, Tensor)> {
    let grey = |byte: u8| (f32::from(byte) / 255.0 - 0.2860) / 0.3530;
    let mut pixels = vec![grey(0); indices.len() * SIDE * SIDE];
    let mut labels = Vec::with_capacity(indices.len());
    for (&index, to) in indices.iter().zip(pixels.chunks_exact_mut(SIDE * SIDE)) {
        let image = data.image(index)?;
        ensure!(
            (image.height, image.width) == (SIDE, SIDE),
            "{} is not {SIDE}x{SIDE}",
            data.origin(index)
        );
        let flip = random.below(2) == 1;
        let (down, right) = (random.below(2 * shift + 1), random.below(2 * shift + 1));
        for y in 0..SIDE {
            let Some(from_y) = (y + shift).checked_sub(down).filter(|y| *y < SIDE) else {
                continue;
            };
            for x in 0..SIDE {
                let Some(from_x) = (x + shift).checked_sub(right).filter(|x| *x < SIDE) else {
                    continue;
                };
                let from_x = if flip { SIDE - 1 - from_x } else { from_x };
                to[y * SIDE + x] = grey(image.pixels[from_y * SIDE + from_x]);
            }
        }
        labels.push(u32::try_from(data.label(index))?);
    }
    let images = Tensor::from_vec(pixels, (1, indices.len(), SIDE, SIDE), &Device::Cpu)?;
    Ok((images, Tensor::new(labels, &Device::Cpu)?))
}

/// The parameters by their PyTorch names, and what the optimiser remembers of each.
struct Net {
    params: BTreeMap<String, Var>,
    velocity: BTreeMap<String, Tensor>,
    /// Mean and variance of each normalisation.
    running: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Net {
    /// Kaiming's normal initialisation.
    fn random(random: &mut Random) -> Result<Net> {
        let mut tensors = HashMap::new();
        let mut normal = |shape: &[usize]| -> Result<Tensor> {
            let fan_in: usize = shape[1..].iter().product();
            let scale = (2.0 / fan_in as f64).sqrt();
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|_| (random.normal() * scale) as f32).collect();
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        for (i, &c) in CHANNELS.iter().enumerate().skip(1) {
            tensors.insert(
                format!("conv{i}.weight"),
                normal(&[c, CHANNELS[i - 1], 3, 3])?,
            );
            for (name, value) in [
                ("weight", 1f32),
                ("bias", 0.0),
                ("running_mean", 0.0),
                ("running_var", 1.0),
            ] {
                let t = Tensor::full(value, c, &Device::Cpu)?;
                tensors.insert(format!("bn{i}.{name}"), t);
            }
        }
        tensors.insert("fc.weight".into(), normal(&[CLASSES, CHANNELS[4]])?);
        let bias = Tensor::zeros(CLASSES, DType::F32, &Device::Cpu)?;
        tensors.insert("fc.bias".into(), bias);
        Net::new(tensors)
    }

    fn read(path: &Path) -> Result<Net> {
        Net::new(candle_core::safetensors::load(path, &Device::Cpu)?)
            .with_context(|| format!("{}", path.display()))
    }

    fn new(mut tensors: HashMap<String, Tensor>) -> Result<Net> {
        let mut take = |name: String, shape: &[usize]| -> Result<Tensor> {
            let t = tensors
                .remove(&name)
                .with_context(|| format!("no tensor `{name}`"))?;
            ensure!(
                t.dims() == shape,
                "`{name}` is {:?}, not {shape:?}",
                t.dims()
            );
            Ok(t.to_dtype(DType::F32)?)
        };
        let mut params = BTreeMap::new();
        let mut running = Vec::new();
        let mut param = |name: String, t: Tensor| -> Result<()> {
            params.insert(name, Var::from_tensor(&t)?);
            Ok(())
        };
        for (i, &c) in CHANNELS.iter().enumerate().skip(1) {
            let name = format!("conv{i}.weight");
            param(name.clone(), take(name, &[c, CHANNELS[i - 1], 3, 3])?)?;
            for name in ["weight", "bias"] {
                let name = format!("bn{i}.{name}");
                param(name.clone(), take(name, &[c])?)?;
            }
            running.push((
                take(format!("bn{i}.running_mean"), &[c])?.to_vec1()?,
                take(format!("bn{i}.running_var"), &[c])?.to_vec1()?,
            ));
        }
        param(
            "fc.weight".into(),
            take("fc.weight".into(), &[CLASSES, CHANNELS[4]])?,
        )?;
        param("fc.bias".into(), take("fc.bias".into(), &[CLASSES])?)?;
        Ok(Net {
            params,
            velocity: BTreeMap::new(),
            running,
        })
    }

    /// Logits `[N, 10]` of images `[1, N, 28, 28]`; moves the running statistics.
    fn forward(&mut self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for (i, &c) in CHANNELS.iter().enumerate().skip(1) {
            let (_, n, h, w) = x.dims4()?;
            let weight = self.params[&format!("conv{i}.weight")].flatten_from(1)?;
            let y = weight.matmul(&x.apply_op1(Columns)?)?;
            let norm = NormRelu::default();
            let batch = norm.moments.clone();
            let y = y.apply_op3(
                self.params[&format!("bn{i}.weight")].as_tensor(),
                self.params[&format!("bn{i}.bias")].as_tensor(),
                norm,
            )?;
            let count = (n * h * w) as f32;
            let unbiased = count / (count - 1.0);
            let (mean, var) = &mut self.running[i - 1];
            let batch = batch.lock().map_err(|e| anyhow::anyhow!("{e}"))?;
            for (row, &(m, v)) in batch.iter().enumerate() {
                mean[row] += FOLLOW * (m - mean[row]);
                var[row] += FOLLOW * (v * unbiased - var[row]);
            }
            x = y.reshape((c, n, h, w))?;
            if i <= 2 {
                x = x.apply_op1(Pool)?;
            }
        }
        let x = x.flatten_from(2)?.mean(2)?;
        let weight = self.params["fc.weight"].as_tensor();
        let bias = self.params["fc.bias"].unsqueeze(1)?;
        Ok(weight.matmul(&x)?.broadcast_add(&bias)?.t()?.contiguous()?)
    }

    /// One step of SGD with Nesterov momentum.
    fn descend(&mut self, loss: &Tensor, lr: f64, decay: f64) -> Result<()> {
        let grads = loss.backward()?;
        for (name, param) in &self.params {
            let Some(grad) = grads.get(param) else {
                continue;
            };
            let mut grad = grad.clone();
            if prunable(param) {
                grad = (grad + (param.as_tensor() * decay)?)?;
            }
            let velocity = match self.velocity.get(name) {
                Some(v) => ((v * MOMENTUM)? + &grad)?,
                None => grad.clone(),
            };
            let step = ((grad + (&velocity * MOMENTUM)?)? * lr)?;
            param.set(&(param.as_tensor() - step)?.detach())?;
            self.velocity.insert(name.clone(), velocity.detach());
        }
        Ok(())
    }

    /// Pulls the `share` of the weights with the smallest magnitudes towards zero.
    fn shrink(&self, share: f64, part: f32) -> Result<()> {
        let weights: Vec<(&Var, Vec<f32>)> = self
            .params
            .values()
            .filter(|p| prunable(p))
            .map(|p| Ok((p, p.flatten_all()?.to_vec1()?)))
            .collect::<Result<_>>()?;
        let mut all: Vec<f32> = weights
            .iter()
            .flat_map(|(_, w)| w)
            .map(|w| w.abs())
            .collect();
        let at = ((all.len() as f64 * share) as usize).min(all.len() - 1);
        let (_, &mut threshold, _) = all.select_nth_unstable_by(at, f32::total_cmp);
        for (param, mut values) in weights {
            for w in &mut values {
                if w.abs() < threshold && w.abs() > TINY {
                    *w *= 1.0 - part;
                }
            }
            param.set(&Tensor::from_vec(values, param.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    fn write(&self, path: &Path, trained: &str) -> Result<()> {
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
        for (name, p) in &self.params {
            let values = p.flatten_all()?.to_vec1()?;
            tensors.insert(name.clone(), (p.dims().to_vec(), values));
        }
        for (i, (mean, var)) in self.running.iter().enumerate() {
            for (what, values) in [("mean", mean), ("var", var)] {
                let name = format!("bn{}.running_{what}", i + 1);
                tensors.insert(name, (vec![values.len()], values.clone()));
            }
        }
        let bytes: BTreeMap<&String, Vec<u8>> = (tensors.iter())
            .map(|(name, (_, v))| (name, v.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = tensors
            .iter()
            .map(|(name, (shape, _))| {
                let dtype = safetensors::Dtype::F32;
                Ok((name, TensorView::new(dtype, shape.clone(), &bytes[name])?))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([("trained".to_owned(), trained.to_owned())]);
        safetensors::serialize_to_file(views, Some(metadata), path)?;
        Ok(())
    }
}

/// What Global MP prunes: the weights of convolutions and linears.
fn prunable(param: &Var) -> bool {
    param.rank() > 1
}

/// The contiguous f32 elements of a tensor's storage.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(v), Some((from, to))) => Ok(&v[from..to]),
        _ => bail!("contiguous f32 expected"),
    }
}

/// Calls `f` with the elements of contiguous f32 tensors on the CPU.
fn with<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            Storage::Cpu(storage) => floats(storage, layout)?,
            _ => bail!("a tensor on the CPU expected"),
        };
    }
    f(slices)
}

/// `[C, N, H, W]` to the columns `[C * 9, N * H * W]` of a 3x3 convolution with padding 1.
struct Columns;

impl CustomOp1 for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = floats(s, l)?;
        let (c, n, h, w) = l.shape().dims4()?;
        let mut out = vec![0f32; x.len() * 9];
        out.par_chunks_mut(n * h * w)
            .enumerate()
            .for_each(|(row, out)| {
                let plane = &x[row / 9 * n * h * w..][..n * h * w];
                taps(row % 9, n, h, w, |to, from, len| {
                    out[to..to + len].copy_from_slice(&plane[from..from + len]);
                });
            });
        Ok((CpuStorage::F32(out), (c * 9, n * h * w).into()))
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, n, h, w) = arg.dims4()?;
        let size = n * h * w;
        with([&grad.contiguous()?], |[g]| {
            let mut out = vec![0f32; arg.elem_count()];
            out.par_chunks_mut(size).enumerate().for_each(|(c, out)| {
                for tap in 0..9 {
                    let g = &g[(c * 9 + tap) * size..][..size];
                    taps(tap, n, h, w, |from, to, len| {
                        for (o, g) in out[to..to + len].iter_mut().zip(&g[from..from + len]) {
                            *o += g;
                        }
                    });
                }
            });
            Tensor::from_vec(out, arg.shape(), &Device::Cpu).map(Some)
        })
    }
}

/// Calls `f` with where a run of outputs starts, where its inputs start, and its length.
fn taps(tap: usize, n: usize, h: usize, w: usize, mut f: impl FnMut(usize, usize, usize)) {
    let (ky, kx) = (tap / 3, tap % 3);
    // An output column x reads x + kx - 1.
    let first = usize::from(kx == 0);
    let last = w - usize::from(kx == 2);
    for image in 0..n {
        for y in 0..h {
            let Some(from) = (y + ky).checked_sub(1).filter(|y| *y < h) else {
                continue;
            };
            let (to, from) = ((image * h + y) * w, (image * h + from) * w);
            f(to + first, from + first + kx - 1, last - first);
        }
    }
}

/// Batch normalisation of `[C, N]` by its own moments, then ReLU.
#[derive(Default)]
struct NormRelu {
    /// The mean and the variance of each row, once the forward pass has run.
    moments: Arc<Mutex<Vec<(f32, f32)>>>,
}

fn moments(row: &[f32]) -> (f32, f32) {
    let n = row.len() as f64;
    // Lanes keep the sums vectorised, and small.
    let sum = |f: &dyn Fn(&[f32]) -> f64| row.chunks(1024).map(f).sum::<f64>() / n;
    let mean = sum(&|c| f64::from(lanes(c, |x| x)));
    let m = mean as f32;
    let var = sum(&|c| f64::from(lanes(c, |x| (x - m) * (x - m))));
    (m, var as f32)
}

fn lanes(chunk: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; 16];
    let mut groups = chunk.chunks_exact(16);
    for group in &mut groups {
        for (s, &x) in sums.iter_mut().zip(group) {
            *s += f(x);
        }
    }
    let rest: f32 = groups.remainder().iter().map(|&x| f(x)).sum();
    sums.iter().sum::<f32>() + rest
}

impl CustomOp3 for NormRelu {
    fn name(&self) -> &'static str {
        "norm-relu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, gamma, beta) = (floats(s1, l1)?, floats(s2, l2)?, floats(s3, l3)?);
        let (_, n) = l1.shape().dims2()?;
        let found: Vec<(f32, f32)> = x.par_chunks(n).map(moments).collect();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(n).enumerate().for_each(|(c, out)| {
            let (mean, var) = found[c];
            let scale = gamma[c] / (var + EPS).sqrt();
            let shift = beta[c] - mean * scale;
            for (o, &x) in out.iter_mut().zip(&x[c * n..]) {
                *o = (x * scale + shift).max(0.0);
            }
        });
        if let Ok(mut moments) = self.moments.lock() {
            *moments = found;
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, n) = x.dims2()?;
        let Ok(moments) = self.moments.lock() else {
            bail!("the moments are lost");
        };
        let moments = moments.as_slice();
        with(
            [x, gamma, y, &grad.contiguous()?],
            |[xs, gammas, ys, gs]| {
                let mut dx = vec![0f32; xs.len()];
                let sums: Vec<(f32, f32)> = (dx.par_chunks_mut(n).enumerate())
                    .map(|(c, dx)| {
                        let row = c * n..(c + 1) * n;
                        let (x, y, g) = (&xs[row.clone()], &ys[row.clone()], &gs[row]);
                        let (mean, var) = moments[c];
                        let inverse = 1.0 / (var + EPS).sqrt();
                        // The sums of g and of g * (x - mean), where the ReLU is open.
                        let (mut plain, mut weighted) = (0f64, 0f64);
                        for ((x, y), g) in x.chunks(1024).zip(y.chunks(1024)).zip(g.chunks(1024)) {
                            let (mut p, mut w) = ([0f32; 16], [0f32; 16]);
                            for ((x, y), g) in x.chunks(16).zip(y.chunks(16)).zip(g.chunks(16)) {
                                for (i, ((x, y), g)) in x.iter().zip(y).zip(g).enumerate() {
                                    let g = if *y > 0.0 { *g } else { 0.0 };
                                    p[i] += g;
                                    w[i] += g * (x - mean);
                                }
                            }
                            plain += f64::from(p.iter().sum::<f32>());
                            weighted += f64::from(w.iter().sum::<f32>());
                        }
                        let (plain, weighted) = (plain as f32, weighted as f32 * inverse);
                        let scale = gammas[c] * inverse;
                        let (a, b) = (plain / n as f32, weighted / n as f32 * inverse);
                        for (((d, x), y), g) in dx.iter_mut().zip(x).zip(y).zip(g) {
                            let g = if *y > 0.0 { *g } else { 0.0 };
                            *d = scale * (g - a - (x - mean) * b);
                        }
                        (weighted, plain)
                    })
                    .collect();
                let (dgamma, dbeta): (Vec<f32>, Vec<f32>) = sums.into_iter().unzip();
                Ok((
                    Some(Tensor::from_vec(dx, (rows, n), &Device::Cpu)?),
                    Some(Tensor::new(dgamma, &Device::Cpu)?),
                    Some(Tensor::new(dbeta, &Device::Cpu)?),
                ))
            },
        )
    }
}

/// Max-pooling of `[C, N, H, W]` by 2x2; a gradient goes to the first of equal maxima.
struct Pool;

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = floats(s, l)?;
        let (c, n, h, w) = l.shape().dims4()?;
        let mut out = vec![0f32; x.len() / 4];
        out.par_chunks_mut(w / 2)
            .zip(x.par_chunks(2 * w))
            .for_each(|(out, x)| {
                let (top, bottom) = x.split_at(w);
                for ((o, t), b) in out.iter_mut().zip(top.chunks(2)).zip(bottom.chunks(2)) {
                    *o = t[0].max(t[1]).max(b[0].max(b[1]));
                }
            });
        Ok((CpuStorage::F32(out), (c, n, h / 2, w / 2).into()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let w = x.dim(3)?;
        with([x, y, &grad.contiguous()?], |[xs, ys, gs]| {
            let mut dx = vec![0f32; xs.len()];
            dx.par_chunks_mut(2 * w).enumerate().for_each(|(row, dx)| {
                let x = &xs[row * 2 * w..][..2 * w];
                for i in 0..w / 2 {
                    let at = [2 * i, 2 * i + 1, w + 2 * i, w + 2 * i + 1];
                    let max = ys[row * w / 2 + i];
                    if let Some(&at) = at.iter().find(|&&at| x[at] == max) {
                        dx[at] = gs[row * w / 2 + i];
                    }
                }
            });
            Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
        })
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn shuffle(&mut self, items: &mut [usize]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
