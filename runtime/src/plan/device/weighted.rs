//! Weighted layers on a device: a form is chosen, by estimate or by the machine's clock, and becomes launches.

use super::choose::{self, DeviceCandidate, DeviceForm, Layer};
use super::pool::{Pool, upload};
use super::{DeviceOptions, bind};
use crate::Result;
use crate::cuda::launch::{self, Cores, Epilogue, Product, Region, Windows};
use crate::cuda::{Error, Machine, Work};
use crate::plan::lower::device::{DeviceOp, Geometry, Weights};

/// Replays of each form that is measured; the median counts.
const REPLAYS: usize = 9;

/// A layer with its form chosen.
pub(super) struct Chosen {
    pub form: DeviceForm,
    pub list: Vec<DeviceCandidate>,
    pub measured: bool,
    pub reason: String,
    pub weight_bytes: usize,
    pub macs: u64,
}

fn layer(op: &DeviceOp) -> Option<(Layer, &Weights)> {
    let (weights, columns, conv) = match op {
        DeviceOp::Plain(_) => return None,
        DeviceOp::Linear(w, n) => (w, *n, false),
        DeviceOp::Conv(w, g) => (w, g.images * g.output[0] * g.output[1], true),
    };
    let (rows, cols) = weights.groups.first().map_or((0, 0), |w| w.matrix());
    let groups = weights.groups.len();
    let nonzeros: usize = weights.groups.iter().map(|w| w.count_nonzero()).sum();
    let layer = Layer {
        rows,
        cols,
        nonzeros: nonzeros / groups.max(1),
        columns,
        groups,
        two_four: weights.groups.iter().all(|w| w.is_two_four()),
        conv,
        epilogue: weights.residual || !weights.bias.is_empty() || !bind::is_open(weights.limits),
    };
    Some((layer, weights))
}

/// Elements of scratch: columns rounded to 16 bits.
pub(super) fn scratch(op: &DeviceOp) -> usize {
    match op {
        DeviceOp::Plain(kernel) => bind::scratch(kernel),
        DeviceOp::Linear(w, n) => {
            let cols = w.groups.first().map_or(0, |w| w.matrix().1);
            n * launch::stride(cols) / 2
        }
        DeviceOp::Conv(..) => 0,
    }
}

/// Chooses the form of a weighted layer; `None` of any other step. Where the plan is tuned each form is run on the machine.
pub(super) fn choose(
    op: &DeviceOp,
    options: &DeviceOptions,
    machine: &mut dyn Machine,
) -> Result<Option<Chosen>> {
    let Some((layer, weights)) = layer(op) else {
        return Ok(None);
    };
    let mut list = choose::candidates(&layer, &machine.limits(), options.dense);
    if options.tune && list.len() > 1 {
        for candidate in &mut list {
            candidate.seconds = measure(op, candidate.form, machine)?;
        }
        list.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    }
    let form = match options
        .forms
        .get(weights.key.split('|').next().unwrap_or(""))
    {
        None => list[0].form,
        Some(asked) => match list.iter().find(|c| asked.contains(&c.form)) {
            Some(found) => found.form,
            None => {
                let names: Vec<&str> = list.iter().map(|c| c.form.name()).collect();
                return Err(crate::Error::Option(format!(
                    "weight `{}`: none of the forms asked for is legal on this device; legal are {}",
                    weights.key.split('|').next().unwrap_or(""),
                    names.join(", ")
                )));
            }
        },
    };
    let density = layer.nonzeros as f64 / (layer.rows * layer.cols).max(1) as f64;
    let reason = match form == list[0].form {
        true => choose::reason(&list, density, options.tune),
        false => format!("density {density:.2}: {form} was asked for"),
    };
    let elements = match form {
        f if f.is_dense() => layer.rows * layer.cols,
        f if f.packing() == DeviceForm::TwoOfFourMma => layer.rows * layer.cols / 2,
        _ => layer.nonzeros,
    };
    Ok(Some(Chosen {
        weight_bytes: choose::weight_bytes(form, &layer) as usize,
        macs: (elements * layer.columns * layer.groups) as u64,
        form,
        measured: options.tune && list.len() > 1,
        list,
        reason,
    }))
}

/// The regions of a layer.
pub(super) struct Regions {
    pub x: Region,
    pub residual: Option<Region>,
    pub y: Region,
    pub scratch: Region,
}

/// The work of a layer in a form, its weights uploaded.
pub(super) fn work(
    op: &DeviceOp,
    at: &Regions,
    uploaded: &[launch::Weight],
    machine: &mut dyn Machine,
    pool: &mut Pool,
    form: DeviceForm,
) -> Result<Vec<Work>> {
    let (weights, geometry) = match op {
        DeviceOp::Plain(_) => return Ok(Vec::new()),
        DeviceOp::Linear(w, _) => (w, None),
        DeviceOp::Conv(w, g) => (w, Some(g)),
    };
    let bias = match weights.bias.is_empty() {
        true => None,
        false => Some(pool.floats(machine, &weights.bias)?),
    };
    let epilogue = Epilogue {
        bias,
        residual: at.residual,
        limits: weights.limits,
    };
    if let Some(g) = geometry {
        return conv(g, at, uploaded, form.cores(), &epilogue, machine, pool);
    }
    let (Some(weight), DeviceOp::Linear(_, columns)) = (uploaded.first(), op) else {
        return Ok(Vec::new());
    };
    let (columns, cols) = (*columns, weight.shape().1);
    let mut product = Product {
        y: at.y,
        x: at.x,
        epilogue,
        columns,
    };
    let mut all = Vec::new();
    if form.is_rounded() {
        let half = weight.half();
        all.push(Work::Launch(launch::round(
            half, at.scratch, at.x, columns, cols,
        )?));
        product.x = at.scratch;
    }
    all.push(match form.library() {
        Some(library) => Work::Blas(library, *weight, product),
        None => Work::Launch(launch::linear(weight, form.cores(), &product)?),
    });
    Ok(all)
}

fn conv(
    g: &Geometry,
    at: &Regions,
    uploaded: &[launch::Weight],
    cores: Cores,
    epilogue: &Epilogue,
    machine: &mut dyn Machine,
    pool: &mut Pool,
) -> Result<Vec<Work>> {
    let groups = uploaded.len().max(1);
    let (channels, rows) = (g.channels / groups, g.outputs / groups);
    let (plane, pixels) = (g.input[0] * g.input[1], g.output[0] * g.output[1]);
    let reach = |i: usize| (g.kernel[i] - 1) * g.dilations[i];
    if reach(0) > 0x7fff || reach(1) > 0xffff {
        let kernel = "conv".into();
        let what = format!(
            "a window of {:?} elements {:?} apart",
            g.kernel, g.dilations
        );
        return Err(Error::Argument { kernel, what }.into());
    }
    let mut taps = Vec::with_capacity(2 * channels * g.kernel[0] * g.kernel[1]);
    for c in 0..channels {
        for i in 0..g.kernel[0] {
            for j in 0..g.kernel[1] {
                let (down, across) = (i * g.dilations[0], j * g.dilations[1]);
                // Both fit: an image has less than 2^31 elements, or its launch is refused.
                taps.push(((c * g.input[0] + down) * g.input[1] + across) as i32);
                taps.push((down << 16 | across) as i32);
            }
        }
    }
    let taps = pool.table(machine, &taps)?;
    let one = |(group, weight): (usize, &launch::Weight)| {
        let windows = Windows {
            x: at.x.from(group * channels * plane * 4),
            taps,
            images: g.images,
            channels: [g.channels, channels],
            input: g.input,
            output: g.output,
            strides: g.strides,
            pads: g.pads,
            outputs: g.outputs,
        };
        let skip = group * rows * pixels * 4;
        let epilogue = Epilogue {
            bias: epilogue.bias.map(|b| b.from(group * rows * 4)),
            residual: epilogue.residual.map(|r| r.from(skip)),
            ..*epilogue
        };
        let launch = launch::conv(weight, cores, at.y.from(skip), &windows, &epilogue)?;
        Ok(Work::Launch(launch))
    };
    uploaded.iter().enumerate().map(one).collect()
}

/// Seconds of a form on the machine, with weights and activations of its own, which are freed.
fn measure(op: &DeviceOp, form: DeviceForm, machine: &mut dyn Machine) -> Result<f64> {
    let before = machine.allocations();
    let time = measured(op, form, machine);
    machine.free_to(before)?;
    time
}

fn measured(op: &DeviceOp, form: DeviceForm, machine: &mut dyn Machine) -> Result<f64> {
    let (weights, x, y) = match op {
        DeviceOp::Plain(_) => return Ok(0.0),
        DeviceOp::Linear(w, n) => {
            let (rows, cols) = w.groups.first().map_or((0, 0), |w| w.matrix());
            (w, n * cols, n * rows)
        }
        DeviceOp::Conv(w, g) => {
            let plane = |s: [usize; 2]| s[0] * s[1] * g.images;
            (w, g.channels * plane(g.input), g.outputs * plane(g.output))
        }
    };
    let mut pool = Pool::default();
    let mut zeros = |elements: usize, machine: &mut dyn Machine| -> Result<Region> {
        pool.floats(machine, &vec![0.0; elements])
    };
    let regions = Regions {
        x: zeros(x, machine)?,
        residual: match weights.residual {
            true => Some(zeros(y, machine)?),
            false => None,
        },
        y: zeros(y, machine)?,
        scratch: zeros(scratch(op), machine)?,
    };
    // So many copies that none is in a cache when its turn comes, up to what a tuning may take.
    let bytes: usize = weights.groups.iter().map(|w| w.numel() * 2).sum();
    let copies = (super::ROTATED / bytes.max(1)).clamp(1, 64);
    let mut all = Vec::new();
    for _ in 0..copies {
        let groups = weights.groups.iter();
        let uploaded = groups.map(|w| upload(machine, &mut pool, form, w));
        let uploaded = uploaded.collect::<Result<Vec<_>>>()?;
        all.extend(work(op, &regions, &uploaded, machine, &mut pool, form)?);
    }
    // SAFETY: the regions were made for the layer, and live until the last replay.
    let recorded = unsafe { machine.record(&all)? };
    machine.time(recorded, 2)?;
    let mut times = machine.time(recorded, REPLAYS)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] / copies as f64)
}
