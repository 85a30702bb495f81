//! Products of sparse matrices on the first GPU beside cuBLAS, cuBLASLt and a copy: one JSON object a line.
//!
//! `cargo run --release -p lacuna --features cuda --example cuda_products`; with `-- --device`, only the device. Each time is a median of replays of a graph
//! that goes through as many copies of the weight as exceed the cache, over device events.

use lacuna::cuda::launch::{self, Cores, Epilogue, Product, Weight, stride};
use lacuna::cuda::pack::{self, Form};
use lacuna::cuda::{Arena, Blas, BlasLt, Device, Error, Modules, Result, Stream};
use lacuna::{DType, Weight as Matrix};
use std::process::ExitCode;
use std::sync::Arc;

/// Bytes of weights that a round goes through: more than the cache of any device.
const ROUND: usize = 256 << 20;
const REPLAYS: usize = 31;

fn main() -> ExitCode {
    match all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<()> {
    let device = Device::open(0)?;
    let modules = Modules::load(&device)?;
    let (major, minor) = device.capability();
    println!(
        r#"{{"device":"{}","capability":"{major}.{minor}","memory_bytes":{}}}"#,
        device.name(),
        device.memory()
    );
    if std::env::args().any(|a| a == "--device") {
        return Ok(());
    }
    for (rows, cols) in [(4096, 4096), (14336, 8192), (8192, 28672)] {
        for sparsity in [0.0, 0.5, 0.7, 0.9] {
            let matrix = random(rows, cols, sparsity);
            for columns in [1, 16, 128] {
                shape(&device, &modules, &matrix, sparsity, columns)?;
            }
        }
    }
    Ok(())
}

/// A matrix of f16 with so many zeros, by a generator that is the same everywhere.
fn random(rows: usize, cols: usize, sparsity: f64) -> Matrix {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let below = (sparsity * 65536.0) as u64;
    let mut bytes = vec![0u8; rows * cols * 2];
    for element in bytes.as_chunks_mut::<2>().0 {
        let bits = next();
        if bits >> 48 >= below {
            // Between 1 and 2, of either sign.
            *element = ((bits & 0x83ff) as u16 | 0x3c00).to_le_bytes();
        }
    }
    Matrix::dense(vec![rows, cols], DType::F16, bytes.into()).expect("they fill it")
}

fn shape(
    device: &Arc<Device>,
    modules: &Modules,
    matrix: &Matrix,
    sparsity: f64,
    columns: usize,
) -> Result<()> {
    let (rows, cols) = matrix.matrix();
    let stream = Arc::new(Stream::new(device)?);
    let form = match columns {
        1..=launch::VECTOR_COLUMNS => Form::Vector,
        _ => Form::Matrix,
    };
    let groups = modules.has("f16_linear_bitmask_wgmma_64");
    let warps = Way::Kernel(Cores::Warp);
    let mut all = Vec::new();
    if sparsity > 0.0 {
        let packed = pack::chunks(&matrix.encode(), form)?;
        let bytes = 4 * (packed.masks.len() + packed.starts.len()) + 2 * packed.values.len();
        all.push(("bitmask", warps, bytes, Upload::Chunks(packed.clone())));
        if form == Form::Matrix && groups {
            let way = Way::Kernel(Cores::Group);
            all.push(("bitmask_wgmma", way, bytes, Upload::Chunks(packed)));
        }
    } else {
        let packed = pack::rows(matrix)?;
        let bytes = 2 * packed.values.len();
        if form == Form::Vector {
            all.push(("dense", warps, bytes, Upload::Rows(packed.clone())));
        } else {
            let tiles = pack::tiles(matrix)?;
            let bytes = 2 * tiles.values.len();
            all.push(("dense_mma", warps, bytes, Upload::Tiles(tiles.clone())));
            if groups {
                let way = Way::Kernel(Cores::Group);
                all.push(("dense_wgmma", way, bytes, Upload::Tiles(tiles)));
            }
        }
        for (name, way) in [
            ("cublas", Blas::open(&stream).map(Way::Cublas)),
            ("cublaslt", BlasLt::open(device, &stream).map(Way::CublasLt)),
        ] {
            match way {
                Ok(way) => all.push((name, way, bytes, Upload::Rows(packed.clone()))),
                Err(e @ Error::NoLibrary { .. }) => eprintln!("{e}: not compared"),
                Err(e) => return Err(e),
            }
        }
    }
    let mut activations = Arena::new(
        device,
        Arena::room([columns * stride(cols) * 4, columns * rows * 4]),
    )?;
    let x = activations.take(columns * stride(cols) * 4)?;
    let y = activations.take(columns * rows * 4)?;
    stream.fill(x, 0)?;
    for (name, way, bytes, upload) in &all {
        let copies = ROUND.div_ceil(*bytes).max(2);
        let mut arena = Arena::new(device, (bytes + 1024) * copies)?;
        let weights = (0..copies).map(|_| match upload {
            Upload::Chunks(packed) => arena.chunks(&stream, packed),
            Upload::Rows(packed) => arena.rows(&stream, packed),
            Upload::Tiles(packed) => arena.tiles(&stream, packed),
        });
        let weights = weights.collect::<Result<Vec<Weight>>>()?;
        let p = Product {
            y,
            x,
            epilogue: Epilogue::NONE,
            columns,
        };
        // SAFETY: the arenas outlive the stream's work, which `median` waits for.
        let once = |stream: &Stream| unsafe {
            for weight in &weights {
                match way {
                    Way::Kernel(cores) => {
                        stream.launch(modules, &launch::linear(weight, *cores, &p)?)?;
                    }
                    // Nothing is to be added.
                    Way::Cublas(blas) => drop(blas.linear(weight, &p)?),
                    Way::CublasLt(blas) => drop(blas.linear(weight, &p)?),
                }
            }
            Ok(())
        };
        let ms = median(&stream, once)? / copies as f32;
        // A copy reads as much as it writes; it goes through as much memory.
        let mut room = Arena::new(device, 2 * copies * Arena::room([*bytes]))?;
        let pairs = (0..copies).map(|_| Ok((room.take(*bytes)?, room.take(*bytes)?)));
        let pairs = pairs.collect::<Result<Vec<_>>>()?;
        let copy = |stream: &Stream| {
            // SAFETY: as above.
            (pairs.iter()).try_for_each(|(to, from)| unsafe { stream.copy(*to, *from) })
        };
        let copied = median(&stream, copy)? / copies as f32;
        println!(
            r#"{{"form":"{name}","rows":{rows},"cols":{cols},"sparsity":{sparsity},"columns":{columns},"weight_bytes":{bytes},"ms":{ms:.5},"gb_per_s":{:.1},"copy_gb_per_s":{:.1}}}"#,
            *bytes as f32 / ms / 1e6,
            2.0 * *bytes as f32 / copied / 1e6,
        );
    }
    Ok(())
}

enum Way {
    Kernel(Cores),
    Cublas(Blas),
    CublasLt(BlasLt),
}

enum Upload {
    Chunks(pack::Chunks),
    Rows(pack::Rows),
    Tiles(pack::Tiles),
}

/// Milliseconds of a replay of what `work` launches.
fn median(stream: &Stream, work: impl Fn(&Stream) -> Result<()>) -> Result<f32> {
    // What a library sets up at its first call is no part of a graph.
    work(stream)?;
    stream.wait()?;
    let graph = stream.capture(&work)?;
    let mut times = Vec::with_capacity(REPLAYS);
    for run in 0..REPLAYS + 3 {
        let start = stream.mark()?;
        // SAFETY: what was captured is alive.
        unsafe { stream.replay(&graph)? };
        let ms = start.until(&stream.mark()?)?;
        if run >= 3 {
            times.push(ms);
        }
    }
    times.sort_by(f32::total_cmp);
    Ok(times[REPLAYS / 2])
}
