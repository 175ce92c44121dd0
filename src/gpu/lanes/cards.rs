//! The GPUs of a job, opened while the rest of it is being prepared.

use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use super::card::{Card, CudaCard};
use super::fault::{Fault, Faults};
use super::simulated::SimulatedCard;
use crate::caught::caught;
use crate::gpu::runtime::{Device, NoCard, find};
use crate::size::ByteSize;

type Opened = Arc<OnceLock<Result<Vec<Card>, NoCard>>>;

/// The GPUs that a job may use, or why there are none.
pub struct Cards {
    device: Device,
    /// Whether faults are injected.
    faulty: bool,
    opened: Opened,
    thread: Option<JoinHandle<()>>,
}

impl Cards {
    /// Begins to open the GPUs that `device` means, to use up to `memory` of each. With `fault`, their lanes fail when
    /// it says.
    pub fn open(device: Device, memory: Option<ByteSize>, fault: Option<Fault>) -> Self {
        match device {
            Device::Cpu => return Self::none(),
            Device::Simulated { .. } => {
                let cards = vec![Card::Simulated(SimulatedCard::default())];
                return Self::settled(device, Ok(with_fault(cards, fault)));
            }
            _ => {}
        }
        let faulty = fault.is_some();
        let opened = Opened::default();
        let shared = Arc::clone(&opened);
        let open = move || {
            // Whoever waits must get an answer, even if a driver lacks a function and cudarc panics.
            let found = caught(|| open_all(device, memory));
            let found = found.unwrap_or_else(|_| Err(NoCard::Failed("it lacks a function".to_owned())));
            let cards = shared.get_or_init(|| found.map(|cards| with_fault(cards, fault)));
            // The first merge waits for its kernels if they are not done by then.
            cards.iter().flatten().for_each(load_merge);
        };
        let thread = thread::Builder::new().name("cards".to_owned()).spawn(open);
        match thread {
            Ok(thread) => Self { device, faulty, opened, thread: Some(thread) },
            Err(error) => Self::settled(device, Err(NoCard::Failed(format!("no thread to open the GPUs in: {error}")))),
        }
    }

    /// How many GPUs are fit for qft.
    pub fn count() -> usize {
        // A driver that lacks a function makes cudarc panic: none is fit then.
        caught(|| find(Device::Auto)).ok().and_then(Result::ok).map_or(0, |found| found.len())
    }

    /// No GPUs: all is done on the processor.
    pub fn none() -> Self {
        Self::settled(Device::Cpu, Err(NoCard::NotWanted))
    }

    /// GPUs that are there already.
    #[cfg(test)]
    pub(crate) fn of(device: Device, cards: Vec<Card>, fault: Option<Fault>) -> Self {
        Self::settled(device, Ok(with_fault(cards, fault)))
    }

    fn settled(device: Device, cards: Result<Vec<Card>, NoCard>) -> Self {
        Self { device, faulty: false, opened: Arc::new(OnceLock::from(cards)), thread: None }
    }

    /// The GPUs, at least one, once they are open; or why there are none.
    pub(crate) fn wait(&self) -> Result<&[Card], NoCard> {
        self.opened.wait().as_ref().map(|cards| &cards[..]).map_err(NoCard::clone)
    }

    /// Why there are no GPUs, once that is known; waits for it.
    pub fn unavailable(&self) -> Option<NoCard> {
        self.wait().err()
    }

    /// Whether the processor leaves the work to the GPUs from the start, instead of beginning it while they are being
    /// opened: where they were asked for by name, or are tested.
    pub(crate) fn work_alone(&self) -> bool {
        self.faulty || matches!(self.device, Device::Simulated { .. }) || self.device.demands_card()
    }

    /// What was asked for.
    pub fn device(&self) -> Device {
        self.device
    }
}

impl Drop for Cards {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens each of the GPUs in a thread of its own: a context takes a while.
fn open_all(device: Device, memory: Option<ByteSize>) -> Result<Vec<Card>, NoCard> {
    let numbers = find(device)?;
    let opened: Vec<Result<CudaCard, NoCard>> = thread::scope(|scope| {
        let threads: Vec<_> =
            numbers.iter().map(|number| scope.spawn(move || CudaCard::open(*number, memory))).collect();
        let failed = |_| Err(NoCard::Failed("opening a GPU failed".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    });
    let (open, failed): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    match failed.into_iter().find_map(Result::err) {
        Some(reason) if open.is_empty() || device == Device::All => Err(reason),
        _ => Ok(open.into_iter().flatten().map(|card| Card::Cuda(Box::new(card))).collect()),
    }
}

fn with_fault(cards: Vec<Card>, fault: Option<Fault>) -> Vec<Card> {
    match fault.map(Faults::new) {
        None => cards,
        Some(faults) => cards.into_iter().map(|card| Card::Faulty(Box::new(card), Arc::clone(&faults))).collect(),
    }
}

fn load_merge(card: &Card) {
    match card {
        Card::Cuda(card) => card.load_merge(),
        Card::Faulty(card, _) => load_merge(card),
        Card::Simulated(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared<T: Sync>(_: &T) {}

    #[test]
    fn without_cards_the_reason_is_given() {
        let cards = Cards::none();
        shared(&cards);
        assert_eq!(cards.device(), Device::Cpu);
        assert_eq!(cards.wait().err(), Some(NoCard::NotWanted));
        assert_eq!(Cards::open(Device::Cpu, None, None).wait().err(), Some(NoCard::NotWanted));
        let none = Cards::open(Device::One(usize::MAX), None, None);
        assert!(none.wait().is_err() && none.wait().is_err(), "asked twice");
    }

    #[test]
    fn cards_that_are_dropped_at_once_leave_no_thread() {
        drop(Cards::open(Device::Auto, Some(ByteSize(1 << 30)), None));
    }

    #[test]
    fn a_fault_is_one_for_all_cards() {
        let card = || Card::Simulated(SimulatedCard { capacity: 256 });
        let cards = Cards::of(Device::All, vec![card(), card()], Some("value@2".parse().unwrap()));
        let cards = cards.wait().unwrap();
        assert!(cards.iter().all(|card| matches!(card, Card::Faulty(..))));
        assert_eq!(cards.len(), 2);
    }
}
