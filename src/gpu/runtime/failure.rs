//! Why the driver, or a library beside it, failed.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The driver's answer.
    #[error("{}", said(*.0))]
    Driver(DriverError),
    /// A kernel that does not load, and what the driver's compiler says of it.
    #[error("{0}")]
    Kernel(String),
    /// A call of a library failed.
    #[error("{0}")]
    Library(String),
    /// No cuBLAS can be used, and why not.
    #[error("cuBLAS can't be used: {0}")]
    NoCublas(String),
    /// The driver has no memory pools.
    #[error("the driver has no memory pools")]
    NoPools,
    /// More than one call takes.
    #[error("{0}")]
    TooLarge(String),
    /// A mistake of the caller's, which the device would not survive: it was given this.
    #[error("it was given {0}")]
    Misuse(&'static str),
}

impl Failure {
    /// Whether the device has too little memory.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Driver(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)))
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// What the driver says of an error: "out of memory (2)".
pub(super) fn said(error: DriverError) -> String {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    format!("{} ({})", text.as_deref().unwrap_or("unknown error"), error.0 as u32)
}
