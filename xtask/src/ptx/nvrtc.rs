//! NVRTC, the compiler of kernels that is a shared library: looked for when it is needed, so that nothing else needs it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

use anyhow::{Context, anyhow, ensure};
use libloading::{Library, Symbol};

use super::source::Source;

/// Later ones write PTX that the oldest drivers served cannot read, and any other writes another text.
const NEEDED: (c_int, c_int) = (12, 4);
const VARIABLE: &str = "QFT_NVRTC";
const FILE: &str = "libnvrtc.so.12";
const REMEDY: &str = "`pip install nvidia-cuda-nvrtc-cu12==12.4.127` into a virtual environment, then \
                      --nvrtc (or QFT_NVRTC=) VENV/lib/python3.*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";

/// `nvrtcProgram`.
type Program = *mut c_void;
/// `nvrtcResult`: zero where all went well.
type Code = c_int;
/// `nvrtcCreateProgram`: program, source, its name, how many headers, their texts, their names.
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Code;
/// `nvrtcGetPTX` and `nvrtcGetProgramLog`.
type Get = unsafe extern "C" fn(Program, *mut c_char) -> Code;
/// `nvrtcGetPTXSize` and `nvrtcGetProgramLogSize`.
type Size = unsafe extern "C" fn(Program, *mut usize) -> Code;

/// The loaded library.
pub(super) struct Nvrtc(Library);

/// What came of a file of kernels.
pub(super) struct Compiled {
    pub(super) ptx: String,
    /// Warnings; empty where there are none.
    pub(super) log: String,
}

impl Nvrtc {
    /// Loads the library that `path` or the environment names, or else the one that the loader finds.
    pub(super) fn load(path: Option<&str>) -> anyhow::Result<Self> {
        let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let path = path.map(Into::into).or(variable).map_or_else(|| FILE.into(), PathBuf::from);
        let remedy = |error: anyhow::Error| anyhow!("{error:#}\n  remedy: {REMEDY}");
        // SAFETY: what runs when NVRTC is loaded has no demands on its caller.
        let library = unsafe { Library::new(&path) }.context("NVRTC 12.4 could not be loaded").map_err(remedy)?;
        let nvrtc = Self(library);
        let found = nvrtc.version()?;
        let at = path.display();
        let (major, minor) = NEEDED;
        let wanted = || anyhow!("{at} is NVRTC {}.{}, and {major}.{minor} is needed", found.0, found.1);
        if found == NEEDED { Ok(nvrtc) } else { Err(remedy(wanted())) }
    }

    /// Compiles a file; its headers are handed over, so that no directory matters.
    pub(super) fn compile(&self, source: &Source, options: &[&str]) -> anyhow::Result<Compiled> {
        let name = &source.name;
        let program = OpenProgram::new(self, source).with_context(|| name.clone())?;
        let options = strings(options.iter().copied())?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let compile: Symbol<'_, unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code> =
            self.function(c"nvrtcCompileProgram")?;
        // SAFETY: the program is open, and as many strings as said are there and end with NUL.
        let code = unsafe { compile(program.handle, count(&options)?, options.as_ptr()) };
        let log = program.text(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?.trim_end().to_owned();
        ensure!(code == 0, "{name} could not be compiled: {}\n{log}", self.message(code));
        Ok(Compiled { ptx: program.text(c"nvrtcGetPTXSize", c"nvrtcGetPTX")?, log })
    }

    fn version(&self) -> anyhow::Result<(c_int, c_int)> {
        let version: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code> =
            self.function(c"nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both numbers outlive the call.
        self.pass(unsafe { version(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    /// The function of this name, whose type the caller must know from nvrtc.h.
    fn function<T>(&self, name: &CStr) -> anyhow::Result<Symbol<'_, T>> {
        // SAFETY: every caller here names the function's type as nvrtc.h declares it.
        let found = unsafe { self.0.get(name) };
        found.with_context(|| format!("the library has no {}: is it NVRTC?", name.to_string_lossy()))
    }

    fn pass(&self, code: Code) -> anyhow::Result<()> {
        ensure!(code == 0, "NVRTC failed: {}", self.message(code));
        Ok(())
    }

    /// What NVRTC calls an error.
    fn message(&self, code: Code) -> String {
        let text: anyhow::Result<Symbol<'_, unsafe extern "C" fn(Code) -> *const c_char>> =
            self.function(c"nvrtcGetErrorString");
        // SAFETY: any code is answered with a string that lives as long as the library.
        text.map_or_else(
            |error| error.to_string(),
            |text| unsafe { CStr::from_ptr(text(code)).to_string_lossy().into_owned() },
        )
    }
}

/// A program of NVRTC's, freed at the end.
struct OpenProgram<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl<'a> OpenProgram<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &Source) -> anyhow::Result<Self> {
        let [name, text] = [&source.name, &source.text].map(|text| CString::new(text.as_str()));
        let (name, text) = (name?, text?);
        let names = strings(source.headers.keys().map(String::as_str))?;
        let texts = strings(source.headers.values().map(String::as_str))?;
        let [names, texts] = [&names, &texts].map(|all| all.iter().map(|one| one.as_ptr()).collect::<Vec<_>>());
        let create: Symbol<'_, Create> = nvrtc.function(c"nvrtcCreateProgram")?;
        let mut handle = ptr::null_mut();
        let (count, out) = (count(&names)?, &raw mut handle);
        // SAFETY: all strings end with NUL and outlive the call, which copies them.
        nvrtc.pass(unsafe { create(out, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr()) })?;
        Ok(Self { nvrtc, handle })
    }

    /// One of the program's texts, by the functions that tell its size and copy it.
    fn text(&self, size: &CStr, get: &CStr) -> anyhow::Result<String> {
        let size: Symbol<'_, Size> = self.nvrtc.function(size)?;
        let get: Symbol<'_, Get> = self.nvrtc.function(get)?;
        let mut len = 0;
        // SAFETY: the program is open, and the number outlives the call.
        self.nvrtc.pass(unsafe { size(self.handle, &raw mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the program is open, and there is memory for as many bytes as were told.
        self.nvrtc.pass(unsafe { get(self.handle, bytes.as_mut_ptr().cast()) })?;
        let text = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        let destroy: anyhow::Result<Symbol<'_, unsafe extern "C" fn(*mut Program) -> Code>> =
            self.nvrtc.function(c"nvrtcDestroyProgram");
        if let Ok(destroy) = destroy {
            // SAFETY: the program is open, and nothing uses it after this.
            unsafe { destroy(&raw mut self.handle) };
        }
    }
}

fn strings<'a>(texts: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<CString>> {
    texts.map(|text| CString::new(text).context("a text for the compiler holds a NUL")).collect()
}

fn count<T>(items: &[T]) -> anyhow::Result<c_int> {
    Ok(c_int::try_from(items.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_a_remedy() {
        let said = Nvrtc::load(Some("/nowhere/libnvrtc.so.12")).err().unwrap().to_string();
        assert!(said.contains("NVRTC 12.4") && said.contains("/nowhere/") && said.contains("12.4.127"), "{said}");
    }
}
