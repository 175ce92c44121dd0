//! The flags that choose the device, shared by the commands that merge and encode.

use clap::Args;
use qft::export::CardUse;
use qft::gpu::{Cards, Device, Fault};
use qft::size::ByteSize;

use super::note;

/// Input bytes from which on a card pays for its start: half a second of a processor's work.
const PAYS_FROM: u64 = 1_500_000_000;

/// Where to merge and encode.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to merge and encode: auto, cpu, cuda, cuda:N or cuda:all. The bytes don't depend on it. auto takes a card
    /// if one is there and the model is large enough, and goes on without it if it fails.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto, hide_default_value = true)]
    device: Device,
    /// Most memory to use on a card [default: 2GiB, or what is free].
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<ByteSize>,
    /// For tests: oom@N, lost@N or value@N fails the N-th block of the cards.
    #[arg(long, value_name = "FAULT", hide = true)]
    inject_fault: Option<Fault>,
}

impl DeviceArgs {
    /// The cards for a job that reads that many bytes of weights: opened in the background.
    pub(super) fn open(&self, input_bytes: u64) -> Cards {
        let pays = self.device.demands_card() || input_bytes >= PAYS_FROM || self.inject_fault.is_some();
        match self.device {
            Device::Cpu => Cards::none(),
            Device::Auto if !pays => Cards::none(),
            device => Cards::open(device, self.device_memory, self.inject_fault.clone()),
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
        note(&format!("warning: a card failed, and the processor made the rest: {}", qft::error::escaped(warning)));
    }
}
