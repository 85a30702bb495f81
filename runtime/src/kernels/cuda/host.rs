//! The kernels on this machine: `src/host.cpp`, compiled by a C++ compiler and loaded. Regions end where a page that
//! can't be touched begins.

use super::device::pointer;
use super::launch::{Launch, Region};
use super::table::KERNELS;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

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

/// Runs a launch of regions that [`Memory`] made.
pub(super) fn run(launch: &Launch) {
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

/// A region of this machine's memory, as near to its end as 16-byte alignment lets it be.
pub(super) struct Memory {
    map: *mut c_void,
    mapped: usize,
    at: *mut u8,
    bytes: usize,
}

const PAGE: usize = 1 << 16;

impl Memory {
    /// Bytes that are all ones: NaN as floats.
    pub(super) fn new(bytes: usize) -> Memory {
        let mapped = bytes.next_multiple_of(PAGE) + PAGE;
        // SAFETY: a new private mapping, whose last page is closed.
        unsafe {
            let map = mmap(std::ptr::null_mut(), mapped, 3, 0x22, -1, 0);
            assert!(map as isize != -1, "no memory");
            let end = map.cast::<u8>().add(mapped - PAGE);
            assert_eq!(mprotect(end.cast(), PAGE, 0), 0);
            let at = end.sub(bytes.next_multiple_of(16));
            std::ptr::write_bytes(at, 0xff, bytes);
            Memory {
                map,
                mapped,
                at,
                bytes,
            }
        }
    }

    pub(super) fn of<T: Copy>(data: &[T]) -> Memory {
        let memory = Memory::new(std::mem::size_of_val(data));
        // SAFETY: as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().cast(), memory.at, memory.bytes) };
        memory
    }

    pub(super) fn region(&self) -> Region {
        Region {
            address: self.at as u64,
            bytes: self.bytes,
        }
    }

    /// What is in it, of a type that any bits are.
    pub(super) fn read<T: Copy>(&self) -> Vec<T> {
        let count = self.bytes / size_of::<T>();
        // SAFETY: aligned to 16, within the region.
        unsafe { std::slice::from_raw_parts(self.at.cast::<T>(), count).to_vec() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped here.
        unsafe { munmap(self.map, self.mapped) };
    }
}
