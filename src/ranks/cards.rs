//! Ranks that all-reduce values on GPUs by NCCL, and everything else by TCP, by which they also find each other's GPUs
//! and notice one that dies. If NCCL is missing on any rank, all use TCP.

use std::ffi::c_void;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::trouble::AGAIN;
use super::{CardSum, Ranks, TcpRanks};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::nccl::{Communicator, Functions, UniqueId};

/// How long connecting the GPUs may take, where nothing says that it failed.
const CONNECTING: Duration = Duration::from_mins(3);
/// A sum that takes no longer is waited for without sleep.
const SHORT: Duration = Duration::from_millis(2);
/// Between two checks of whether a sum is done.
const PAUSE: Duration = Duration::from_micros(100);
/// Between two checks of whether the other ranks are there.
const WATCH: Duration = Duration::from_millis(100);

/// Ranks that may each have a GPU.
pub struct CardRanks {
    /// Before `tcp`: the GPUs are let go first.
    cards: Cards,
    tcp: TcpRanks,
    load: fn() -> Result<Functions, String>,
}

enum Cards {
    /// Nobody has asked yet.
    Unasked,
    Connected(Communicator, String),
    /// And why.
    Unconnected(String),
}

impl CardRanks {
    /// Over connections that are there; GPUs are connected when they are first asked for.
    pub fn new(tcp: TcpRanks) -> Self {
        Self::with(tcp, Functions::load)
    }

    pub(super) fn with(tcp: TcpRanks, load: fn() -> Result<Functions, String>) -> Self {
        Self { cards: Cards::Unasked, tcp, load }
    }

    /// Connects the GPUs of all ranks, or of none.
    fn connect(&mut self) -> Result<Cards> {
        let loaded = (self.load)();
        if self.tcp.any(loaded.is_err())? {
            let elsewhere = || "NCCL is missing on another rank".to_owned();
            return Ok(Cards::Unconnected(loaded.err().unwrap_or_else(elsewhere)));
        }
        let functions = Rc::new(match loaded {
            Ok(functions) => functions,
            Err(why) => return Ok(Cards::Unconnected(why)),
        });
        let made = if self.tcp.rank() == 0 { functions.make_id().map(Some) } else { Ok(None) };
        let id = made.as_ref().ok().copied().flatten().unwrap_or(UniqueId([0; UniqueId::LEN]));
        let id = UniqueId(self.tcp.give(id.0)?);
        let begun = made.and_then(|_| Communicator::begin(&functions, id, self.tcp.rank(), self.tcp.count()));
        let begun = begun.and_then(|communicator| {
            let start = Instant::now();
            while !communicator.ready()? {
                if start.elapsed() > CONNECTING {
                    return Err(format!("NCCL has not connected the GPUs in {} s", CONNECTING.as_secs()));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(communicator)
        });
        // What failed is let go already: ranks that still connect hear of it through NCCL's own connections.
        let failed = self.tcp.any(begun.is_err())?;
        Ok(match begun {
            Ok(communicator) if !failed => Cards::Connected(communicator, functions.name()),
            Ok(_) => Cards::Unconnected("NCCL failed on another rank".to_owned()),
            Err(why) => Cards::Unconnected(why),
        })
    }

    /// Gives up: the others must not wait for this rank.
    fn failed(&mut self, why: &str) -> Error {
        self.cards = Cards::Unconnected(format!("NCCL failed: {why}"));
        // A rank that is gone explains more than NCCL's words about it.
        if let Err(error) = self.tcp.watch() {
            return error;
        }
        self.tcp.give_up(&format!("it could not all-reduce gradients on its GPU: {why}"));
        Error::new(
            ErrorKind::Device { lost: true },
            format!("rank {} could not all-reduce gradients on the GPUs: {why}", self.tcp.rank()),
            format!(
                "see the other ranks' last messages, and the output of NCCL_DEBUG=INFO; then {AGAIN}; QFT_NCCL=off \
                 uses TCP"
            ),
        )
    }
}

impl CardSum for CardRanks {
    unsafe fn sum(&mut self, address: u64, len: usize, stream: *mut c_void) -> Result<()> {
        let Cards::Connected(communicator, _) = &mut self.cards else {
            return Err(self.failed("they are not connected"));
        };
        // SAFETY: the caller guarantees the values and the stream.
        let enqueued = unsafe { communicator.sum(address, len, stream) };
        enqueued.map_err(|why| self.failed(&why))?;
        let start = Instant::now();
        let mut watched = start;
        loop {
            let Cards::Connected(communicator, _) = &self.cards else { return Ok(()) };
            // SAFETY: as above.
            match unsafe { communicator.done(stream) } {
                Ok(true) => return Ok(()),
                Err(why) => return Err(self.failed(&why)),
                Ok(false) if start.elapsed() > self.tcp.patience() => return Err(self.failed("it takes too long")),
                Ok(false) if start.elapsed() < SHORT => thread::yield_now(),
                Ok(false) => thread::sleep(PAUSE),
            }
            if watched.elapsed() > WATCH {
                watched = Instant::now();
                if let Err(error) = self.tcp.watch() {
                    // Ends the sum, which would wait for that rank forever.
                    self.cards = Cards::Unconnected("a rank is gone".to_owned());
                    return Err(error);
                }
            }
        }
    }
}

impl Ranks for CardRanks {
    fn rank(&self) -> usize {
        self.tcp.rank()
    }

    fn count(&self) -> usize {
        self.tcp.count()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.tcp.sum(values)
    }

    fn sum_numbers(&mut self, numbers: [f64; 2]) -> Result<[f64; 2]> {
        self.tcp.sum_numbers(numbers)
    }

    fn barrier(&mut self) -> Result<()> {
        self.tcp.barrier()
    }

    fn any(&mut self, flag: bool) -> Result<bool> {
        self.tcp.any(flag)
    }

    fn on_card(&mut self) -> Result<Option<&mut dyn CardSum>> {
        if matches!(self.cards, Cards::Unasked) {
            self.cards = self.connect()?;
        }
        Ok(matches!(self.cards, Cards::Connected(..)).then_some(self as &mut dyn CardSum))
    }

    fn give_up(&mut self, why: &str) {
        self.tcp.give_up(why);
    }

    fn transport(&self) -> String {
        match &self.cards {
            Cards::Unasked => self.tcp.transport(),
            Cards::Connected(_, name) => name.clone(),
            Cards::Unconnected(why) => format!("{} ({why})", self.tcp.transport()),
        }
    }
}
