//! The flags that choose the device, shared by the commands that merge and encode.

use clap::Args;
use qft::export::CardUse;
use qft::gpu::{Cards, Device, Effort, Fault};
use qft::size::ByteSize;

use super::note;

/// Where to merge and encode.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to merge and encode: auto, cpu, cuda, cuda:N or cuda:all. The bytes don't depend on it. auto takes NVIDIA
    /// cards if some are there and the job is done sooner with them, and goes on without one that fails.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto, hide_default_value = true)]
    device: Device,
    /// Most memory to use on a card [default: 2GiB, or most of what is free].
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<ByteSize>,
    /// For tests: oom@N, lost@N or value@N fails the N-th block of the cards.
    #[arg(long, value_name = "FAULT", hide = true)]
    inject_fault: Option<Fault>,
}

impl DeviceArgs {
    /// The cards for a job of `jobs` threads, opened in the background.
    pub(super) fn open(&self, jobs: usize, effort: &Effort) -> Cards {
        let pays = self.inject_fault.is_some() || effort.pays(jobs);
        match self.device {
            Device::Cpu => Cards::none(),
            Device::Auto if !pays => Cards::none(),
            device => Cards::open(device, self.device_memory, self.inject_fault),
        }
    }
}

/// A line where there was no card although one would have paid, and for each card that failed on the way.
pub(super) fn warn(cards: &Cards, used: &CardUse) {
    if cards.device() == Device::Auto
        && let Some(why) = cards.unavailable()
    {
        note(&format!("on the processor: {why}"));
    }
    for warning in &used.warnings {
        note(&format!("warning: {}; other lanes or the processor made the rest", qft::error::escaped(warning)));
    }
}

/// What cards did, if they did anything: one line.
pub(super) fn text(used: &CardUse) -> String {
    let left = match used.left {
        0 => String::new(),
        left => format!(", {left} left to the processor"),
    };
    if used.names.is_empty() {
        String::new()
    } else {
        format!("on {}: {} blocks{left}\n", used.names.join(", "), used.made)
    }
}
