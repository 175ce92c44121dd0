//! NCCL, which all-reduces over GPUs and is found at run time: its functions, and a communicator that never blocks, so
//! that a process that dies can't hold the others. One of the rooms with `unsafe`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr;
use std::rc::Rc;

use cudarc::driver::sys;
use libloading::Library;

use super::symbol;
use crate::error::escaped;

/// Where NCCL is looked for, unless the variable names a file.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Names the library's file, or is `off`.
const VARIABLE: &str = "QFT_NCCL";
/// The first version whose communicators need not block.
const OLDEST: c_int = 21400;

/// `ncclResult_t`, `ncclDataType_t` and `ncclRedOp_t`, as nccl.h numbers them.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const F32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct UniqueId(pub(crate) [u8; UniqueId::LEN]);

impl UniqueId {
    pub(crate) const LEN: usize = 128;
}

/// `ncclConfig_t` of version 2.14; later versions take what is missing for "not set".
#[repr(C)]
pub(crate) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    /// Padding there, another setting later.
    unset: c_int,
}

type Handle = *mut c_void;
pub(crate) type MakeId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
pub(crate) type Init = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
pub(crate) type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
pub(crate) type AsyncError = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
pub(crate) type Abort = unsafe extern "C" fn(Handle) -> c_int;
pub(crate) type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
pub(crate) type LastError = unsafe extern "C" fn(Handle) -> *const c_char;
/// Whether a stream's work is done: 0, or the driver's code for "not ready", or an error.
pub(crate) type Query = unsafe extern "C" fn(*mut c_void) -> c_int;

/// `CUDA_ERROR_NOT_READY`.
pub(crate) const NOT_READY: c_int = 600;

/// What is used of the library.
pub(crate) struct Functions {
    pub(crate) version: c_int,
    pub(crate) make_id: MakeId,
    pub(crate) init: Init,
    pub(crate) all_reduce: AllReduce,
    pub(crate) async_error: AsyncError,
    pub(crate) abort: Abort,
    pub(crate) error_string: ErrorString,
    pub(crate) last_error: LastError,
    pub(crate) query: Query,
}

unsafe extern "C" fn query(stream: *mut c_void) -> c_int {
    // SAFETY: the caller's stream is alive; and since it is a stream, the driver is loaded.
    let status = unsafe { sys::cuStreamQuery(stream.cast()) };
    status as c_int
}

impl Functions {
    /// Finds the library, or says why not.
    pub(crate) fn load() -> Result<Self, String> {
        let named = std::env::var(VARIABLE).ok();
        if named.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("off")) {
            return Err(format!("{VARIABLE} is off"));
        }
        let names: Vec<&str> = named.as_deref().map_or_else(|| NAMES.to_vec(), |name| vec![name]);
        // SAFETY: loading NCCL runs its initializers, which is what it is made for.
        let found = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = found.ok_or_else(|| {
            let names = escaped(&names.join(", "));
            format!("{names} was not found on LD_LIBRARY_PATH; {VARIABLE} can name the file")
        })?;
        // Never unloaded: its threads may outlive the communicator.
        let library = ManuallyDrop::new(library);
        // SAFETY: the functions have these signatures since the version that is checked; the first one in all versions.
        unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = function(&library, "ncclGetVersion")?;
            let mut version = 0;
            if get_version(&raw mut version) != SUCCESS || version < OLDEST {
                return Err("the NCCL that was found is older than 2.14".to_owned());
            }
            Ok(Self {
                version,
                make_id: function(&library, "ncclGetUniqueId")?,
                init: function(&library, "ncclCommInitRankConfig")?,
                all_reduce: function(&library, "ncclAllReduce")?,
                async_error: function(&library, "ncclCommGetAsyncError")?,
                abort: function(&library, "ncclCommAbort")?,
                error_string: function(&library, "ncclGetErrorString")?,
                last_error: function(&library, "ncclGetLastError")?,
                query,
            })
        }
    }

    /// For users.
    pub(crate) fn name(&self) -> String {
        let version = self.version;
        format!("NCCL {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// What rank 0 tells the others, so that they find each other.
    pub(crate) fn make_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; UniqueId::LEN]);
        // SAFETY: the function fills the struct.
        let status = unsafe { (self.make_id)(&raw mut id) };
        self.check("ncclGetUniqueId", status, ptr::null_mut()).map(|_| id)
    }

    /// Whether the call is done; if not, it goes on in the background.
    fn check(&self, call: &str, status: c_int, handle: Handle) -> Result<bool, String> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(status == SUCCESS);
        }
        // SAFETY: both give a static text, or one that lives until the next call; a null handle is allowed.
        let [what, last] = unsafe { [text((self.error_string)(status)), text((self.last_error)(handle))] };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Err(format!("{call} says: {what}{last}"))
    }
}

/// # Safety
/// `text` must be null, or end in a zero.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller guarantees it.
    escaped(unsafe { CStr::from_ptr(text) }.to_string_lossy().trim())
}

/// # Safety
/// `T` must be the function's type.
unsafe fn function<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller knows the type.
    unsafe { symbol(library, name) }.map_err(|_| format!("the NCCL that was found lacks {name}"))
}

/// This rank's part of the GPUs' connections.
pub(crate) struct Communicator {
    functions: Rc<Functions>,
    handle: Handle,
}

impl Communicator {
    /// Begins to connect the GPU whose context is current on this thread with those of the other ranks.
    pub(crate) fn begin(functions: &Rc<Functions>, id: UniqueId, rank: usize, count: usize) -> Result<Self, String> {
        let (size, magic) = (size_of::<Config>(), 0xcafe_beef);
        let mut config = Config { size, magic, version: OLDEST as c_uint, blocking: 0, unset: c_int::MIN };
        let int = |number: usize| c_int::try_from(number).map_err(|_| "too many ranks".to_owned());
        let (rank, count) = (int(rank)?, int(count)?);
        let mut handle = ptr::null_mut();
        // SAFETY: the arguments are what nccl.h says; the config is read before the call returns.
        let status = unsafe { (functions.init)(&raw mut handle, count, id, rank, &raw mut config) };
        // Before the check: a communicator that failed is aborted, too.
        let communicator = Self { functions: Rc::clone(functions), handle };
        functions.check("ncclCommInitRankConfig", status, handle)?;
        Ok(communicator)
    }

    /// Whether what was begun is done.
    pub(crate) fn ready(&self) -> Result<bool, String> {
        let mut state = SUCCESS;
        // SAFETY: the handle is live, and the function fills the number.
        let status = unsafe { (self.functions.async_error)(self.handle, &raw mut state) };
        self.functions.check("ncclCommGetAsyncError", status, self.handle)?;
        self.functions.check("NCCL", state, self.handle)
    }

    /// Enqueues the sum over all ranks of `len` f32 at `address`, in place.
    ///
    /// # Safety
    /// The values must be on the GPU that the communicator was begun with, and the stream must be of that GPU; both
    /// must live until [`Self::done`], or until the communicator is dropped.
    pub(crate) unsafe fn sum(&mut self, address: u64, len: usize, stream: *mut c_void) -> Result<(), String> {
        let values = ptr::with_exposed_provenance_mut::<c_void>(address as usize);
        // SAFETY: the handle is live; the caller guarantees the rest.
        let status = unsafe { (self.functions.all_reduce)(values, values, len, F32, SUM, self.handle, stream) };
        self.functions.check("ncclAllReduce", status, self.handle).map(|_| ())
    }

    /// Whether all that was enqueued on the stream is done.
    ///
    /// # Safety
    /// The stream must be alive.
    pub(crate) unsafe fn done(&self, stream: *mut c_void) -> Result<bool, String> {
        if !self.ready()? {
            return Ok(false);
        }
        // SAFETY: the caller guarantees it.
        match unsafe { (self.functions.query)(stream) } {
            0 => Ok(true),
            NOT_READY => Ok(false),
            status => Err(format!("the GPU failed with status {status}")),
        }
    }
}

impl Drop for Communicator {
    /// Not `ncclCommDestroy`, which waits for the other ranks: they may be gone. What was enqueued is done, or
    /// never will be.
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the handle is live, and nothing uses it after this.
            unsafe { (self.functions.abort)(self.handle) };
        }
    }
}
