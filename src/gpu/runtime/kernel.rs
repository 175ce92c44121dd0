//! Kernels as rows of a table: in which file of PTX each is, and how its work is dealt to threads, which must be as in
//! its source. The tables are where the kernels are used.

use std::fmt;

/// The kernels of one source file, as `cargo xtask ptx` compiled them.
pub(crate) struct Module {
    name: &'static str,
    ptx: &'static str,
}

impl Module {
    /// The file's name without its ending, and its text.
    pub(crate) const fn new(name: &'static str, ptx: &'static str) -> Self {
        Self { name, ptx }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn ptx(&self) -> &'static str {
        self.ptx
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Modules by their files' names: `ADAPT = "adapt";` is `files::ADAPT`, of `kernels/adapt.ptx` beside the table.
macro_rules! kernel_files {
    ($($id:ident = $name:literal;)*) => {
        mod files {
            use crate::gpu::Module;

            $(pub(super) static $id: Module =
                Module::new($name, include_str!(concat!("kernels/", $name, ".ptx")));)*
        }
    };
}
pub(crate) use kernel_files;

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    pub(super) module: &'static Module,
    pub(super) name: &'static str,
    /// Threads of a thread block.
    pub(super) threads: u32,
    /// How much of the work a thread block does; 1 where the work is counted in thread blocks.
    pub(super) per_block: u64,
    /// Bytes of dynamic shared memory.
    pub(super) shared: u32,
}

impl Kernel {
    /// The kernel `name` of a file, in thread blocks of `threads`, in which its work is counted.
    pub(crate) const fn new(module: &'static Module, name: &'static str, threads: u32) -> Self {
        Self { module, name, threads, per_block: 1, shared: 0 }
    }

    /// With work of which a thread block does so much.
    pub(crate) const fn per_block(self, per_block: u64) -> Self {
        Self { per_block, ..self }
    }

    /// With so many bytes of dynamic shared memory.
    pub(crate) const fn with_shared(self, shared: u32) -> Self {
        Self { shared, ..self }
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(&self) -> u32 {
        self.shared
    }
}

/// Holds what a table says of its kernels against the PTX that is committed.
#[cfg(test)]
pub(crate) fn check_table(kernels: &[Kernel]) {
    let mut names = std::collections::BTreeSet::new();
    for Kernel { module, name, threads, per_block, .. } in kernels {
        let found = super::ptx::only(module.ptx, name);
        let ptx = found.unwrap_or_else(|| panic!("{module:?}.ptx has no kernel {name}"));
        assert_eq!(ptx.matches(".entry ").count(), 1, "{name}");
        assert_eq!(super::ptx::threads(&ptx, name), Some(*threads), "{name} of {module:?}.ptx");
        assert!(*per_block > 0 && names.insert(name), "{name} of {module:?}.ptx");
        let source = format!("// Made by `cargo xtask ptx` from {module:?}.cu;");
        assert!(module.ptx.starts_with(&source), "{module:?} has the PTX of another file");
    }
}
