//! The flags that choose the device, shared by the commands that merge and encode.

use std::collections::BTreeMap;

use clap::Args;
use qft::export::CardUse;
use qft::gpu::{CardNeeds, Cards, Device, Effort, Fault};
use qft::size::ByteSize;

use super::flags::warned;
use super::note;

/// Where to merge and encode.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where to merge and encode: auto, cpu, cuda, cuda:N or cuda:all. The bytes don't depend on it. auto uses NVIDIA
    /// GPUs if there are any and the job is faster with them, and continues without a GPU that fails.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto, hide_default_value = true)]
    device: Device,
    /// Maximum memory to use on each GPU [default: 2GiB, and at most four fifths of its free memory].
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<ByteSize>,
    /// For tests: oom@N, lost@N or value@N fails the N-th block of the GPUs.
    #[arg(long, value_name = "FAULT", hide = true)]
    inject_fault: Option<Fault>,
}

impl DeviceArgs {
    /// The GPUs for a job of `jobs` threads, opened in the background.
    pub(super) fn open(&self, jobs: usize, effort: &Effort) -> Cards {
        let pays = self.inject_fault.is_some() || effort.pays(jobs);
        match self.device {
            Device::Cpu => Cards::none(),
            Device::Auto if !pays => Cards::none(),
            device => Cards::open(device, self.device_memory, self.inject_fault),
        }
    }
}

impl DeviceArgs {
    /// What a GPU would take of its memory and of the machine's, where one would be used.
    pub(super) fn needs(&self, jobs: usize, effort: &Effort) -> Option<CardNeeds> {
        let used = match self.device {
            Device::Cpu => false,
            Device::Auto => effort.pays(jobs) && Cards::count() > 0,
            _ => true,
        };
        CardNeeds::of(self.device_memory).filter(|_| used)
    }
}

/// A line if there was no GPU although one would have been faster, and for each GPU that failed.
pub(super) fn warn(cards: &Cards, used: &CardUse) {
    if cards.device() == Device::Auto
        && let Some(why) = cards.unavailable()
    {
        note(&format!("on the processor: {why}"));
    }
    for warning in &used.warnings {
        note(&format!("warning: {}; other lanes or the processor made the rest", warned(warning)));
    }
}

/// What GPUs did, if they did anything: one line.
pub(super) fn text(used: &CardUse) -> String {
    let left = match used.left {
        0 => String::new(),
        left => format!(", {left} left to the processor"),
    };
    let mut kinds: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    used.cards.values().for_each(|card| kinds.entry(&card.name).or_default().push(card.made));
    let names = kinds.iter().map(|(name, made)| match made.len() {
        1 => (*name).to_owned(),
        n => format!("{n} x {name}"),
    });
    let names: Vec<String> = names.collect();
    // In the order of the names: of several GPUs, who made what.
    let each: Vec<String> = kinds.values().flatten().map(u64::to_string).collect();
    let each = if each.len() > 1 { format!(" ({})", each.join(" + ")) } else { String::new() };
    if names.is_empty() {
        String::new()
    } else {
        format!("on {}: {} blocks{each}{left}\n", names.join(", "), used.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qft::export::CardShare;

    #[test]
    fn cards_of_one_kind_are_counted() {
        let of = |cards: &[(&str, u64)]| {
            let share =
                |(i, (name, made)): (usize, &(&str, u64))| (i, CardShare { name: (*name).to_owned(), made: *made });
            let made = cards.iter().map(|card| card.1).sum();
            text(&CardUse { cards: cards.iter().enumerate().map(share).collect(), made, left: 3, ..CardUse::default() })
        };
        assert_eq!(of(&[]), "");
        assert_eq!(of(&[("H200", 7)]), "on H200: 7 blocks, 3 left to the processor\n");
        assert_eq!(of(&[("H200", 7), ("H200", 5)]), "on 2 x H200: 12 blocks (7 + 5), 3 left to the processor\n");
        let mixed = of(&[("L4", 1), ("H200", 7), ("L4", 2)]);
        assert_eq!(mixed, "on H200, 2 x L4: 10 blocks (7 + 1 + 2), 3 left to the processor\n");
    }
}
