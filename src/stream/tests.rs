//! A job on several GPUs: who of them made what.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::Work;
use super::job::Job;
use super::workers::run;
use crate::error::Result;
use crate::gpu::{Assist, Card, Cards, Device, SimulatedCard};
use crate::progress::Silent;

/// Twenty segments of zeros, slow enough for the second GPU to come in time.
struct Zeros;

impl Work for Zeros {
    fn name(&self) -> &'static str {
        "zeros"
    }
    fn len(&self) -> u64 {
        40 << 20
    }
    fn fill(&self, _: Range<usize>, out: &mut [u8], _: &mut Assist<'_>) -> Result<()> {
        std::thread::sleep(std::time::Duration::from_millis(20));
        out.fill(0);
        Ok(())
    }
    fn output(&self) -> usize {
        0
    }
    fn factor_bytes(&self) -> usize {
        0
    }
}

#[test]
fn two_cards_of_one_kind_are_two() {
    let dir = tempfile::tempdir().unwrap();
    let card = || Card::Simulated(SimulatedCard { capacity: 256 });
    let cards = Cards::of(Device::All, vec![card(), card()], None);
    let done = run(&Job {
        works: vec![(0, &Zeros)],
        inputs: &[],
        directory: dir.path(),
        jobs: 2,
        cards: &cards,
        encoders: &[],
        cancel: &AtomicBool::new(false),
        progress: &Silent,
        finished: &|_, _| Ok(()),
    });
    let found = done.unwrap().cards.cards;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert!(found.values().all(|share| share.name == "simulated"));
}
