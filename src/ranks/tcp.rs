//! All-reduce over connections between all pairs of ranks, with the same bits on each rank and in each run.
//!
//! Each rank owns a share of the values: it gets the others' parts of it, adds them in the order of ranks (0 and 1,
//! then 2, ...), and sends the result to all. So the order of addition depends on nothing but the number of ranks,
//! no value is added twice, and each rank sends and receives `2 (n - 1) / n` of the values, as around a ring.
//! Small things go through rank 0.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::meet::Peers;
use super::talk::{self, expect, look, receive, receive_values, send, send_values};
use super::trouble::{INTERRUPTED, PANICKED, Stage, Trouble};
use super::waiting::PAUSE;
use super::wire::{self, Frame, Kind, SEGMENT};
use super::{Joining, Launch, Ranks, Waiting};
use crate::error::Result;

/// How long is waited for ranks that prepare before that is said.
const QUIET: Duration = Duration::from_secs(5);
/// Where no rank is named.
const NONE: [u8; 4] = [0xff; 4];

/// How long a rank waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until all have come, from the beginning of the process.
    pub meeting: Duration,
    /// Until rank 0 answers a greeting, which it does at once.
    pub greeting: Duration,
    /// Until the name of rank 0's host is known.
    pub name: Duration,
    /// For an answer: longer than the slowest step, and than rank 0 takes to write a checkpoint. A connection that is
    /// closed is noticed at once.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            meeting: Duration::from_mins(10),
            greeting: Duration::from_secs(30),
            name: Duration::from_mins(2),
            answer: Duration::from_mins(30),
        }
    }
}

/// Ranks that are connected through TCP.
#[derive(Debug)]
pub struct TcpRanks {
    rank: usize,
    peers: Peers,
    patience: Duration,
    /// Of the next operation.
    number: u32,
    /// Why nothing works any more.
    trouble: Option<Trouble>,
    stage: Stage,
}

/// What one rank owns of `len` values.
fn share(len: usize, rank: usize, count: usize) -> Range<usize> {
    let begin = |rank: usize| (len as u128 * rank as u128 / count as u128) as usize;
    begin(rank)..begin(rank + 1)
}

impl TcpRanks {
    /// Meets the others of the run, without a way to stop it; `run` is a digest of what all must have in common.
    pub fn join(launch: &Launch, run: [u8; 32], patience: Patience) -> Result<Self> {
        static IN_VAIN: AtomicBool = AtomicBool::new(false);
        let never = AtomicBool::new(false);
        Joining::begin(launch, patience, &IN_VAIN)?.connect(run, Waiting { cancel: &never, say: &|_| () })
    }

    /// Over connections that are there. Others still prepare.
    pub(super) fn over(rank: usize, peers: Peers, patience: Duration) -> Self {
        Self { rank, peers, patience, number: 0, trouble: None, stage: Stage::Meeting }
    }

    /// From here on, there is something to go on with.
    pub(super) fn begin(&mut self) {
        self.stage = Stage::Training;
    }

    /// Holds the ranks' digests against rank 0's: the first rank that has another one, the same on all. Where others
    /// are not ready, this waits as long as for an answer, unless it is stopped.
    pub(super) fn exchange_runs(&mut self, run: [u8; 32], waiting: Waiting<'_>) -> Result<Option<usize>, Trouble> {
        let mut mine = [0; 36];
        mine[..32].copy_from_slice(&run);
        mine[32..].copy_from_slice(&NONE);
        let all = self.attempt(|ranks| {
            let frame = ranks.frame(Kind::Run, mine.len());
            for (rank, stream) in ranks.others() {
                let set = stream.set_read_timeout(Some(ranks.patience));
                let set = set.and_then(|()| stream.set_write_timeout(Some(ranks.patience)));
                set.map_err(|error| Trouble::of(rank, &error))?;
            }
            if let Some(first) = &ranks.peers[0] {
                send(0, first, &frame, &mine)?;
                ranks.await_words(&[0], waiting)?;
                return receive(0, first, &frame);
            }
            let others: Vec<usize> = (1..ranks.peers.len()).collect();
            ranks.await_words(&others, waiting)?;
            let mut all = mine;
            for (rank, stream) in ranks.others() {
                let theirs: [u8; 36] = receive(rank, stream, &frame)?;
                if theirs[..32] != all[..32] && all[32..] == NONE {
                    all[32..].copy_from_slice(&(rank as u32).to_le_bytes());
                }
            }
            for (rank, stream) in ranks.others() {
                send(rank, stream, &frame, &all)?;
            }
            Ok(all)
        })?;
        let other: [u8; 4] = [all[32], all[33], all[34], all[35]];
        Ok((other != NONE).then(|| u32::from_le_bytes(other) as usize))
    }

    /// Waits until each of `whom` has said something; any rank's last words end that, too.
    fn await_words(&self, whom: &[usize], waiting: Waiting<'_>) -> Result<(), Trouble> {
        let (start, mut said) = (Instant::now(), false);
        loop {
            let mut silent = Vec::new();
            for (rank, stream) in self.others() {
                let awaited = whom.contains(&rank);
                match look(rank, stream) {
                    Ok(false) if awaited => silent.push(rank.to_string()),
                    Err(trouble) if awaited || trouble.is_failure() => return Err(trouble),
                    // Others may have ended a run in which nothing was left to do.
                    Ok(_) | Err(_) => {}
                }
            }
            let Some(first) = silent.first() else { return Ok(()) };
            if waiting.cancel.load(Ordering::SeqCst) {
                return Err(Trouble::failed(self.rank, INTERRUPTED));
            }
            if start.elapsed() > self.patience {
                return Err(Trouble::of(first.parse().unwrap_or_default(), &ErrorKind::TimedOut.into()));
            }
            if !said && start.elapsed() > QUIET {
                said = true;
                let text = match self.rank {
                    0 => format!("rank 0 waits for ranks that still prepare: {}", silent.join(", ")),
                    rank => format!("rank {rank} waits for other ranks that still prepare"),
                };
                (waiting.say)(&text);
            }
            thread::sleep(PAUSE);
        }
    }

    fn others(&self) -> impl Iterator<Item = (usize, &TcpStream)> {
        self.peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)))
    }

    /// How long answers are waited for.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Looks, without waiting, whether all others are still there.
    pub(super) fn watch(&mut self) -> Result<()> {
        let seen = self.others().try_for_each(|(rank, stream)| look(rank, stream).map(|_| ()));
        seen.map_err(|trouble| {
            self.tell(&trouble);
            self.trouble.insert(trouble).error(self.patience, self.stage)
        })
    }

    /// Bytes of rank 0, for all.
    pub(super) fn give<const N: usize>(&mut self, mine: [u8; N]) -> Result<[u8; N]> {
        self.agree(Kind::Bytes, mine, |_, _| ())
    }

    #[cfg(test)]
    pub(super) fn streams(&self) -> impl Iterator<Item = &TcpStream> {
        self.others().map(|(_, stream)| stream)
    }

    /// Does what all ranks do now. After the first trouble, nothing is done any more, and the others hear of it.
    fn attempt<T>(&mut self, work: impl FnOnce(&Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let worked = match self.trouble.clone() {
            Some(trouble) => Err(trouble),
            None => work(self).map_err(|trouble| self.reason(trouble)).inspect_err(|trouble| self.tell(trouble)),
        };
        self.number = self.number.wrapping_add(1);
        worked.inspect_err(|trouble| self.trouble = Some(trouble.clone()))
    }

    /// The same, told to the user.
    fn together<T>(&mut self, work: impl FnOnce(&Self) -> Result<T, Trouble>) -> Result<T> {
        self.attempt(work).map_err(|trouble| trouble.error(self.patience, self.stage))
    }

    /// A rank that has hung up may have said why: that is still to be read where sending to it failed.
    fn reason(&self, trouble: Trouble) -> Trouble {
        let stream = self.peers.get(trouble.rank).and_then(Option::as_ref).filter(|_| trouble.is_closed());
        match stream.map(|stream| look(trouble.rank, stream)) {
            Some(Err(why)) if why.is_failure() => why,
            _ => trouble,
        }
    }

    fn tell(&self, trouble: &Trouble) {
        self.others().for_each(|(_, stream)| talk::give_up(stream, trouble));
    }

    fn frame(&self, kind: Kind, len: usize) -> Frame {
        Frame { kind: Some(kind), number: self.number, len: len as u64 }
    }

    /// Every rank's bytes go to rank 0, which folds them in the order of ranks, and come back as one.
    fn agree<const N: usize>(
        &mut self,
        kind: Kind,
        mine: [u8; N],
        mut fold: impl FnMut(&mut [u8; N], [u8; N]),
    ) -> Result<[u8; N]> {
        self.together(|ranks| {
            let frame = ranks.frame(kind, N);
            let mut all = mine;
            if let Some(first) = &ranks.peers[0] {
                send(0, first, &frame, &mine)?;
                all = receive(0, first, &frame)?;
            } else {
                for (rank, stream) in ranks.others() {
                    fold(&mut all, receive(rank, stream, &frame)?);
                }
                for (rank, stream) in ranks.others() {
                    send(rank, stream, &frame, &all)?;
                }
            }
            Ok(all)
        })
    }

    fn sum_shares(&self, values: &mut [f32]) -> Result<(), Trouble> {
        let len = values.len();
        let mut rest = values;
        let mut shares = Vec::with_capacity(self.peers.len());
        for rank in 0..self.peers.len() {
            let (share, behind) = rest.split_at_mut(share(len, rank, self.peers.len()).len());
            shares.push(share);
            rest = behind;
        }
        let own = std::mem::take(&mut shares[self.rank]);

        let (frame, watch) = (self.frame(Kind::Sum, len), Watch::over(self));
        thread::scope(|scope| {
            for (rank, stream) in self.others() {
                let share = &*shares[rank];
                watch.spawn(scope, rank, move || send_values(rank, stream, &frame, share));
            }
            watch.see(self.add_up(own, &frame));
        });
        watch.end()?;

        let (frame, watch, own) = (self.frame(Kind::Finished, len), Watch::over(self), &*own);
        thread::scope(|scope| {
            for ((rank, share), peer) in shares.into_iter().enumerate().zip(&self.peers) {
                let Some(stream) = peer else { continue };
                watch.spawn(scope, rank, move || send_values(rank, stream, &frame, own));
                watch.spawn(scope, rank, move || receive_values(rank, stream, &frame, share));
            }
        });
        watch.end()
    }

    /// Adds the others' parts of this rank's share to its own.
    fn add_up(&self, own: &mut [f32], frame: &Frame) -> Result<(), Trouble> {
        for (rank, stream) in self.others() {
            expect(rank, stream, frame)?;
        }
        let mut bytes = Vec::new();
        let mut total = vec![0.0; SEGMENT.min(own.len())];
        for segment in own.chunks_mut(SEGMENT) {
            let total = &mut total[..segment.len()];
            // The one number that changes nothing that is added to it, not even a zero's sign.
            total.fill(-0.0);
            for (rank, peer) in self.peers.iter().enumerate() {
                if let Some(stream) = peer {
                    wire::receive_values(stream, &mut bytes, total, |total, value| *total += value)
                        .map_err(|error| Trouble::of(rank, &error))?;
                } else {
                    total.iter_mut().zip(&*segment).for_each(|(total, value)| *total += value);
                }
            }
            segment.copy_from_slice(total);
        }
        Ok(())
    }
}

impl Ranks for TcpRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.peers.len()
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.together(|ranks| ranks.sum_shares(values))
    }

    fn sum_numbers(&mut self, [a, b]: [f64; 2]) -> Result<[f64; 2]> {
        let mut mine = [0; 16];
        mine[..8].copy_from_slice(&a.to_le_bytes());
        mine[8..].copy_from_slice(&b.to_le_bytes());
        let sums = self.agree(Kind::Numbers, mine, |all, theirs| {
            for (all, theirs) in all.as_chunks_mut().0.iter_mut().zip(theirs.as_chunks().0) {
                *all = (f64::from_le_bytes(*all) + f64::from_le_bytes(*theirs)).to_le_bytes();
            }
        })?;
        let mut numbers = [0.0; 2];
        numbers.iter_mut().zip(sums.as_chunks().0).for_each(|(number, bytes)| *number = f64::from_le_bytes(*bytes));
        Ok(numbers)
    }

    fn barrier(&mut self) -> Result<()> {
        self.agree(Kind::Barrier, [], |_, _| ()).map(|_| ())
    }

    fn any(&mut self, flag: bool) -> Result<bool> {
        let any = self.agree(Kind::Flag, [flag.into()], |all, theirs| all[0] |= theirs[0])?;
        Ok(any != [0])
    }

    fn give_up(&mut self, why: &str) {
        if self.trouble.is_none() {
            let trouble = Trouble::failed(self.rank, why);
            self.tell(&trouble);
            self.trouble = Some(trouble);
        }
    }

    fn transport(&self) -> String {
        "TCP".to_owned()
    }
}

impl Drop for TcpRanks {
    fn drop(&mut self) {
        if thread::panicking() {
            self.give_up(PANICKED);
        }
    }
}

/// Threads that exchange values with other ranks. The first trouble closes all connections, which ends the rest too.
struct Watch<'r> {
    ranks: &'r TcpRanks,
    first: Mutex<Option<Trouble>>,
}

impl<'r> Watch<'r> {
    fn over(ranks: &'r TcpRanks) -> Self {
        Self { ranks, first: Mutex::new(None) }
    }

    /// Does `work` with a rank in a thread of its own.
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        rank: usize,
        work: impl FnOnce() -> Result<(), Trouble> + Send + 'scope,
    ) {
        let spawned = thread::Builder::new().spawn_scoped(scope, move || self.see(work()));
        self.see(spawned.map(|_| ()).map_err(|error| Trouble::of(rank, &error)));
    }

    fn see(&self, done: Result<(), Trouble>) {
        let Err(trouble) = done else { return };
        // The others' troubles follow from the first, unless they say more about it.
        let better = |known: &Option<Trouble>, new: &Trouble| match known {
            Some(known) => known.is_closed() && new.is_failure(),
            None => true,
        };
        let lock = || self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = lock();
        let is_first = first.is_none();
        if better(&first, &trouble) {
            *first = Some(trouble.clone());
        }
        drop(first);
        if is_first {
            let reason = self.ranks.reason(trouble);
            let mut first = lock();
            if better(&first, &reason) {
                *first = Some(reason.clone());
            }
            drop(first);
            self.ranks.tell(&reason);
        }
    }

    fn end(self) -> Result<(), Trouble> {
        self.first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
