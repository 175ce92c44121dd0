//! Finding the NVIDIA driver and the GPUs that support qft's kernels. Nothing here requires a GPU, a driver or a
//! toolkit to be there: what is missing is said. One of the rooms with `unsafe`.

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{DriverError, result};

use super::choice::Device;
use super::failure::{Failure, said};
use crate::error::ErrorKind;
use crate::size::ByteSize;

/// The oldest driver that takes the kernels' PTX 8.4: CUDA 12.4, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: i32 = 12_040;
/// The oldest architecture that the kernels are compiled for.
const OLDEST_CARD: (i32, i32) = (8, 0);

/// Why there is no GPU to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCard {
    /// Nobody asked for one.
    #[error("no GPU was requested; choose one with ⟦device cuda⟧")]
    NotWanted,
    /// The driver's library is not there.
    #[error("no NVIDIA driver was found (libcuda.so.1); install one, or use ⟦device cpu⟧")]
    NoDriver,
    /// It is older than the kernels.
    #[error(
        "the NVIDIA driver is for CUDA {found}, and qft requires {needed} or later; update it, or use ⟦device cpu⟧"
    )]
    OldDriver {
        /// The CUDA version that it is for.
        found: String,
        /// The least that qft needs.
        needed: String,
    },
    /// There is a driver, but no GPU.
    #[error("the NVIDIA driver finds no GPU; see what nvidia-smi says and CUDA_VISIBLE_DEVICES, or use ⟦device cpu⟧")]
    NoneFound,
    /// There are fewer GPUs than the number that was asked for.
    #[error("there is no GPU number {number}: there are {count}, counted from 0; choose another with ⟦device cuda:N⟧")]
    NoSuchCard {
        /// The number that was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error("{name} has compute capability {capability}, and qft requires 8.0 or more; use ⟦device cpu⟧")]
    OldCard {
        /// The GPU's name.
        name: String,
        /// Its compute capability: "7.5".
        capability: String,
    },
    /// The GPU has too little memory left.
    #[error(
        "{name} has {free} for qft, which requires {needed}; stop other programs that use it, or raise ⟦device_memory⟧"
    )]
    LittleMemory {
        /// The GPU's name.
        name: String,
        /// What qft may use of the free memory.
        free: ByteSize,
        /// The least that it needs.
        needed: ByteSize,
    },
    /// The driver failed.
    #[error("the NVIDIA driver failed: {0}; see what nvidia-smi says, or use ⟦device cpu⟧")]
    Failed(String),
}

impl From<DriverError> for NoCard {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => Self::NoneFound,
            CUresult::CUDA_ERROR_STUB_LIBRARY => Self::NoDriver,
            _ => Self::Failed(said(error)),
        }
    }
}

impl From<Failure> for NoCard {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Driver(error) => error.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl NoCard {
    /// Of which kind an error is that says so.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::LittleMemory { free, needed, .. } => {
                ErrorKind::OutOfMemory { needed: Some(needed.0), free: Some(free.0) }
            }
            _ => ErrorKind::Device { lost: matches!(self, Self::Failed(_)) },
        }
    }

    /// What is wrong, and what to do about it: the two parts of the message.
    pub(crate) fn parts(&self) -> (String, String) {
        let text = self.to_string();
        let (problem, remedy) = text.split_once("; ").unwrap_or((&text, "use ⟦device cpu⟧"));
        (problem.to_owned(), remedy.to_owned())
    }
}

/// The numbers of the GPUs that `device` means and that are fit, at least one.
pub(crate) fn find(device: Device) -> Result<Vec<usize>, NoCard> {
    let count = || -> Result<usize, NoCard> {
        check_driver()?;
        result::init()?;
        match usize::try_from(result::device::get_count()?) {
            Ok(0) | Err(_) => Err(NoCard::NoneFound),
            Ok(count) => Ok(count),
        }
    };
    match device {
        Device::Cpu | Device::Simulated { .. } => Err(NoCard::NotWanted),
        Device::Cuda => {
            count()?;
            check_card(0).map(|()| vec![0])
        }
        Device::One(number) => {
            let count = count()?;
            if number >= count {
                return Err(NoCard::NoSuchCard { number, count });
            }
            check_card(number).map(|()| vec![number])
        }
        Device::Auto | Device::All => {
            let (fit, unfit): (Vec<_>, Vec<_>) =
                (0..count()?).map(|number| check_card(number).map(|()| number)).partition(Result::is_ok);
            match unfit.into_iter().find_map(Result::err) {
                Some(reason) if fit.is_empty() || device == Device::All => Err(reason),
                _ => Ok(fit.into_iter().flatten().collect()),
            }
        }
    }
}

/// Finds the library, and that it is new enough for every function that qft calls: cudarc panics where one is missing.
fn check_driver() -> Result<(), NoCard> {
    type GetVersion = unsafe extern "C" fn(*mut i32) -> CUresult;
    // SAFETY: loading the driver's library runs its initializers, which is what it is made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoCard::NoDriver);
    }
    // SAFETY: the library is present, and every driver has this function, with this signature.
    let found = unsafe { sys::culib().get::<GetVersion>(b"cuDriverGetVersion\0") };
    let Ok(get_version) = found else { return Err(NoCard::NoDriver) };
    let mut version = 0;
    // SAFETY: the function writes one int, there.
    unsafe { get_version(&raw mut version) }.result()?;
    check_version(version)
}

fn check_version(version: i32) -> Result<(), NoCard> {
    let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    if version < OLDEST_DRIVER {
        return Err(NoCard::OldDriver { found: shown(version), needed: shown(OLDEST_DRIVER) });
    }
    Ok(())
}

/// Whether the GPU has the architecture.
fn check_card(number: usize) -> Result<(), NoCard> {
    let card = result::device::get(i32::try_from(number).unwrap_or(i32::MAX))?;
    let attribute = |attribute| {
        // SAFETY: `card` was given by `device::get`.
        unsafe { result::device::get_attribute(card, attribute) }
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < OLDEST_CARD {
        let name = result::device::get_name(card)?;
        return Err(NoCard::OldCard { name, capability: format!("{major}.{minor}") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_12_4_on_will_do() {
        for version in [12_040, 12_080, 13_000] {
            assert_eq!(check_version(version), Ok(()));
        }
        let old = check_version(12_020).unwrap_err();
        assert_eq!(old, NoCard::OldDriver { found: "12.2".to_owned(), needed: "12.4".to_owned() });
        assert!(old.to_string().contains("CUDA 12.2, and qft requires 12.4"), "{old}");
    }

    #[test]
    fn every_reason_is_one_line_with_a_remedy() {
        let name = || "NVIDIA Something".to_owned();
        let reasons = [
            NoCard::NotWanted,
            NoCard::NoDriver,
            check_version(11_080).unwrap_err(),
            NoCard::NoneFound,
            NoCard::NoSuchCard { number: 4, count: 2 },
            NoCard::OldCard { name: name(), capability: "7.5".to_owned() },
            NoCard::LittleMemory { name: name(), free: ByteSize(1_000_000), needed: ByteSize(16_000_000) },
            NoCard::Failed("unknown error (999)".to_owned()),
        ];
        for reason in reasons {
            let text = reason.to_string();
            assert!(!text.contains('\n') && text.contains('⟦') && text.chars().count() < 120, "{text}");
        }
    }

    /// Whatever the machine has: an answer, and no panic.
    #[test]
    fn looking_for_cards_never_panics() {
        assert_eq!(find(Device::Cpu), Err(NoCard::NotWanted));
        for device in [Device::Auto, Device::Cuda, Device::All, Device::One(0)] {
            assert_ne!(find(device), Ok(Vec::new()), "{device}");
        }
        // SAFETY: as in `check_driver`.
        if !unsafe { sys::is_culib_present() } {
            assert_eq!(find(Device::Cuda), Err(NoCard::NoDriver));
        }
        assert!(find(Device::One(usize::MAX)).is_err());
    }
}
