//! A job on several GPUs: which of them made what. And what is kept of a run that failed.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::job::Job;
use super::journal::{Finished, Journal};
use super::workers::run;
use super::{Staging, Work, abandon};
use crate::error::{Error, Result};
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

/// A resumed run that finds the disk still full must not delete what an earlier one finished.
#[test]
fn finished_files_outlast_what_a_retry_may_cure() {
    let dir = tempfile::tempdir().unwrap();
    let staging = Staging::open(&dir.path().join("out")).unwrap();
    std::fs::write(staging.dir().join("a"), "whole").unwrap();
    let finished = Finished { digest: "0".repeat(64), record: serde_json::Value::Null };
    let identity = "1".repeat(64);
    let journal = Journal::new(&staging, &identity, &[("a".to_owned(), finished)].into());
    let full = Error::NoSpace { problem: "full".to_owned(), remedy: "free".to_owned(), needed: None, free: None };
    match abandon(full, &staging, &journal, 3) {
        Error::Stopped { finished: 1, shards: 3, .. } => assert!(staging.dir().join("a").exists()),
        other => panic!("{other}"),
    }
    let hopeless = abandon(Error::unsupported("x", "y"), &staging, &journal, 3);
    assert!(matches!(hopeless, Error::Failed { .. }) && !staging.dir().exists(), "{hopeless}");
}
