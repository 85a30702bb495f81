//! Where the battery runs: on this machine, by `src/host.cpp`, compiled by a C++ compiler and loaded, with regions that
//! end where a page that can't be touched begins; or, where `LACUNA_CUDA_BATTERY` is `device`, on the first GPU.

use super::backend::{Limits, Machine, Recorded, Work};
use super::blas::dense;
use super::driver::{Arena, Device, Modules, Plain, Stream, pointer};
use super::gpu::Gpu;
use super::launch::{self, Cores, Epilogue, Launch, Product, Region, Weight};
use super::pack::Half;
use super::table::KERNELS;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

type Run = unsafe extern "C" fn(*const c_char, *const u32, u32, *const *mut c_void) -> c_int;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn mmap(a: *mut c_void, n: usize, p: c_int, f: c_int, d: c_int, o: i64) -> *mut c_void;
    fn mprotect(a: *mut c_void, n: usize, p: c_int) -> c_int;
    fn munmap(a: *mut c_void, n: usize) -> c_int;
}

/// Compiles the kernels, once.
fn library() -> Run {
    static LIBRARY: OnceLock<Run> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/src");
        let folder = tempfile::tempdir().expect("a folder");
        let names: String = KERNELS.iter().map(|k| format!("K({})\n", k.name)).collect();
        std::fs::write(folder.path().join("names.h"), names).expect("names");
        let out = folder.path().join("kernels.so");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let done = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-fno-strict-aliasing", "-DLACUNA_HOST"])
            .args(["-fPIC", "-shared", "-I"])
            .arg(folder.path())
            .arg("-o")
            .arg(&out)
            .arg(source.join("host.cpp"))
            .output()
            .unwrap_or_else(|e| panic!("the C++ compiler {compiler}: {e}"));
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{errors}");
        let path = CString::new(out.to_str().expect("UTF-8")).expect("a path");
        // SAFETY: our own library, which stays loaded; the type is that in host.cpp.
        unsafe {
            let library = dlopen(path.as_ptr(), 2);
            assert!(!library.is_null(), "{} does not load", out.display());
            let run = dlsym(library, c"lacuna_host_launch".as_ptr());
            assert!(!run.is_null());
            std::mem::transmute::<*mut c_void, Run>(run)
        }
    })
}

type Opened = (Arc<Device>, Modules, Mutex<Stream>);

/// A GPU, if the battery is to run there.
fn gpu() -> Option<&'static Opened> {
    static GPU: OnceLock<Option<Opened>> = OnceLock::new();
    let open = || {
        let wanted = std::env::var("LACUNA_CUDA_BATTERY").is_ok_and(|v| v == "device");
        wanted.then(|| {
            let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
            let modules = Modules::load(&device).unwrap_or_else(|e| panic!("{e}"));
            let stream = Stream::new(&device).unwrap_or_else(|e| panic!("{e}"));
            (device, modules, Mutex::new(stream))
        })
    };
    GPU.get_or_init(open).as_ref()
}

/// The machine that models run on in tests: the first GPU, or this one.
pub(crate) fn machine() -> Box<dyn Machine> {
    match gpu() {
        Some(_) => Box::new(Gpu::open(0).unwrap_or_else(|e| panic!("{e}"))),
        None => Box::new(Host::default()),
    }
}

/// Who multiplies there.
pub(super) fn cores() -> Vec<Cores> {
    match gpu() {
        Some((_, modules, _)) if !modules.has("f16_linear_bitmask_mma_8") => Vec::new(),
        Some((_, modules, _)) if !modules.has("f16_linear_bitmask_wgmma_64") => vec![Cores::Warp],
        _ => vec![Cores::Warp, Cores::Group],
    }
}

/// Runs a launch of regions that [`Memory`] made.
pub(super) fn run(launch: &Launch) {
    if let Some((_, modules, stream)) = gpu() {
        let stream = stream.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the regions live until the wait.
        let done = unsafe { stream.launch(modules, launch) }.and_then(|()| stream.wait());
        return done.unwrap_or_else(|e| panic!("{launch:?}: {e}"));
    }
    static ONE: Mutex<()> = Mutex::new(());
    let kernel = KERNELS.iter().find(|k| k.name == launch.kernel);
    let kernel = kernel.unwrap_or_else(|| panic!("{} is not in the table", launch.kernel));
    assert_eq!(kernel.parameters.len(), launch.arguments.len());
    let library = library();
    let name = CString::new(launch.kernel.as_str()).expect("a name");
    let arguments: Vec<_> = launch.arguments.iter().map(pointer).collect();
    let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    // SAFETY: arguments as the table says; what they point to is checked by guards.
    let code = unsafe {
        library(
            name.as_ptr(),
            launch.grid.as_ptr(),
            launch.threads,
            arguments.as_ptr(),
        )
    };
    drop(one);
    assert_eq!(
        code, 0,
        "{launch:?}: 1 is no such kernel, 2 threads that wait for ever"
    );
}

/// Memory of where the battery runs.
pub(super) enum Memory {
    Host(Guarded),
    Device { region: Region, _arena: Arena },
}

impl Memory {
    /// Bytes that are all ones: NaN as floats.
    pub(super) fn new(bytes: usize) -> Memory {
        Memory::of(&vec![0xffu8; bytes])
    }

    pub(super) fn of<T: Plain>(data: &[T]) -> Memory {
        let bytes = std::mem::size_of_val(data);
        let Some((device, _, stream)) = gpu() else {
            let memory = Guarded::new(bytes);
            // SAFETY: as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().cast(), memory.at, bytes) };
            return Memory::Host(memory);
        };
        let mut arena = Arena::new(device, bytes).unwrap_or_else(|e| panic!("{e}"));
        let region = arena.take(bytes).unwrap_or_else(|e| panic!("{e}"));
        let stream = stream.lock().unwrap_or_else(|e| e.into_inner());
        stream.write(region, data).unwrap_or_else(|e| panic!("{e}"));
        Memory::Device {
            region,
            _arena: arena,
        }
    }

    pub(super) fn region(&self) -> Region {
        match self {
            Memory::Host(m) => Region {
                address: m.at as u64,
                bytes: m.bytes,
            },
            Memory::Device { region, .. } => *region,
        }
    }

    /// What is in it.
    pub(super) fn read<T: Plain>(&self) -> Vec<T> {
        let region = self.region();
        let count = region.bytes / size_of::<T>();
        if let Some((_, _, stream)) = gpu() {
            // SAFETY: zeros are a number.
            let mut data = vec![unsafe { std::mem::zeroed::<T>() }; count];
            let stream = stream.lock().unwrap_or_else(|e| e.into_inner());
            stream
                .read(region, &mut data)
                .unwrap_or_else(|e| panic!("{e}"));
            return data;
        }
        // SAFETY: aligned to 16, within the region.
        unsafe { std::slice::from_raw_parts(region.address as *const T, count).to_vec() }
    }
}

/// A mapping, and in it a region as near to its end as 16-byte alignment lets it be; behind is a closed page.
pub(super) struct Guarded {
    map: *mut c_void,
    mapped: usize,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: memory that is this value's own.
unsafe impl Send for Guarded {}

const PAGE: usize = 1 << 16;

/// This machine, with the figures of an H100 for estimates, and a clock that a test sets.
pub(crate) struct Host {
    memory: Vec<Guarded>,
    recorded: Vec<Vec<Work>>,
    pub limits: Limits,
    /// Seconds of a piece of work.
    pub clock: fn(&Work) -> f64,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            memory: Vec::new(),
            recorded: Vec::new(),
            limits: Limits {
                bandwidth: 3.35e12,
                vector: 33e12,
                tensor: 495e12,
                launch: 2.5e-6,
                blas: false,
                blas_lt: false,
                groups: true,
                bf16: true,
            },
            clock: |_| 1e-6,
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    fn one(work: &Work) {
        match work {
            Work::Launch(launch) => run(launch),
            Work::Blas(_, weight, product) => blas(weight, product),
        }
    }
}

/// What a library does, in f32 and in order; what follows a sum by the kernel for it.
fn blas(weight: &Weight, p: &Product) {
    let d = dense("host", weight, p).unwrap_or_else(|e| panic!("{e}"));
    let wide = |bits: u16| match d.half {
        Half::F16 => half::f16::from_bits(bits).to_f32(),
        Half::Bf16 => half::bf16::from_bits(bits).to_f32(),
    };
    let step = launch::stride(d.cols);
    // SAFETY: as many elements, by what `dense` checks.
    unsafe {
        let (w, x) = (d.values.address as *const u16, p.x.address as *const u16);
        for j in 0..p.columns {
            for r in 0..d.rows {
                let term = |c: usize| wide(*w.add(r * d.pitch + c)) * wide(*x.add(j * step + c));
                *(p.y.address as *mut f32).add(j * d.rows + r) = (0..d.cols).map(term).sum();
            }
        }
    }
    if p.epilogue != Epilogue::NONE {
        let rest = launch::epilogue(p.y, &p.epilogue, d.rows, p.columns);
        run(&rest.unwrap_or_else(|e| panic!("{e}")));
    }
}

impl Machine for Host {
    fn name(&self) -> String {
        "host".into()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate(&mut self, bytes: usize) -> super::Result<Region> {
        let memory = Guarded::new(bytes);
        // SAFETY: a region of its own; NaN until something is written.
        unsafe { memory.at.write_bytes(0xff, bytes) };
        let region = Region {
            address: memory.at as u64,
            bytes,
        };
        self.memory.push(memory);
        Ok(region)
    }

    fn free_to(&mut self, allocations: usize) -> super::Result<()> {
        self.memory.truncate(allocations);
        Ok(())
    }

    fn allocations(&self) -> usize {
        self.memory.len()
    }

    fn write(&mut self, to: Region, data: &[u8]) -> super::Result<()> {
        assert_eq!(to.bytes, data.len());
        // SAFETY: as long as the region.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.address as *mut u8, data.len()) };
        Ok(())
    }

    fn read(&mut self, from: Region, data: &mut [u8]) -> super::Result<()> {
        assert_eq!(from.bytes, data.len());
        let len = data.len();
        // SAFETY: as long as the region.
        unsafe { std::ptr::copy_nonoverlapping(from.address as *const u8, data.as_mut_ptr(), len) };
        Ok(())
    }

    unsafe fn run(&mut self, work: &[Work]) -> super::Result<()> {
        work.iter().for_each(Host::one);
        Ok(())
    }

    unsafe fn record(&mut self, work: &[Work]) -> super::Result<Recorded> {
        self.recorded.push(work.to_vec());
        Ok(Recorded(self.recorded.len() - 1))
    }

    fn replay(&mut self, recorded: Recorded) -> super::Result<()> {
        self.recorded[recorded.0].iter().for_each(Host::one);
        Ok(())
    }

    fn time(&mut self, recorded: Recorded, replays: usize) -> super::Result<Vec<f64>> {
        let time = self.recorded[recorded.0].iter().map(self.clock).sum();
        Ok(vec![time; replays])
    }

    unsafe fn record_copies(&mut self, pairs: &[(Region, Region)]) -> super::Result<Recorded> {
        for (to, from) in pairs {
            assert_eq!(to.bytes, from.bytes);
        }
        self.recorded.push(Vec::new());
        Ok(Recorded(self.recorded.len() - 1))
    }
}

impl Guarded {
    fn new(bytes: usize) -> Guarded {
        let mapped = bytes.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a new private mapping, whose last page is closed.
        unsafe {
            let map = mmap(std::ptr::null_mut(), mapped, 3, 0x22, -1, 0);
            assert!(map as isize != -1, "no memory");
            let end = map.cast::<u8>().add(mapped - PAGE);
            assert_eq!(mprotect(end.cast(), PAGE, 0), 0);
            Guarded {
                map,
                mapped,
                at: end.sub(bytes.next_multiple_of(16)),
                bytes,
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped here.
        unsafe { munmap(self.map, self.mapped) };
    }
}
