//! Sums over connections between all pairs of ranks, with the same bits on each rank and in each run.
//!
//! Each rank owns a share of the values: it gets the others' parts of it, adds them in the order of ranks (0 and 1,
//! then 2, ...), and sends the result to all. So the order of addition depends on nothing but the number of ranks,
//! nobody adds what another has added, and each rank sends and receives `2 (n - 1) / n` of the values, as around a ring.
//! Small things go through rank 0.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use super::meet::{self, Peers};
use super::trouble::Trouble;
use super::wire::{self, Frame, Kind, SEGMENT};
use super::{Launch, Ranks};
use crate::error::Result;

/// How long the last words of a rank that gives up may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a rank waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until all have come.
    pub meeting: Duration,
    /// For an answer: longer than the slowest step, and than rank 0 takes to write a checkpoint. A connection that is
    /// closed is noticed at once.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { meeting: Duration::from_mins(10), answer: Duration::from_mins(30) }
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
}

/// What one rank owns of `len` values.
fn share(len: usize, rank: usize, count: usize) -> Range<usize> {
    let begin = |rank: usize| (len as u128 * rank as u128 / count as u128) as usize;
    begin(rank)..begin(rank + 1)
}

impl TcpRanks {
    /// Meets the others of the run; `run` is a digest of what all must have in common.
    pub fn join(launch: &Launch, run: [u8; 32], patience: Patience) -> Result<Self> {
        let peers = meet::meet(launch, run, patience.meeting)?;
        let mut ranks = Self { rank: launch.rank, peers, patience: patience.meeting, number: 0, trouble: None };
        ranks.wait_at_most(patience.meeting)?;
        ranks.barrier()?;
        ranks.wait_at_most(patience.answer)?;
        Ok(ranks)
    }

    fn wait_at_most(&mut self, patience: Duration) -> Result<()> {
        self.patience = patience;
        let set = |stream: &TcpStream| {
            stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)))
        };
        let troubles = self.others().map(|(rank, stream)| set(stream).map_err(|error| Trouble::of(rank, &error)));
        troubles.collect::<Result<(), _>>().map_err(|trouble| trouble.error(patience))
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
        let seen = self.others().try_for_each(|(rank, stream)| look(rank, stream));
        seen.map_err(|trouble| {
            self.give_up(&trouble);
            self.trouble.insert(trouble).error(self.patience)
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
    fn together<T>(&mut self, work: impl FnOnce(&Self) -> Result<T, Trouble>) -> Result<T> {
        let worked = match self.trouble.clone() {
            Some(trouble) => Err(trouble),
            None => work(self).inspect_err(|trouble| self.give_up(trouble)),
        };
        self.number = self.number.wrapping_add(1);
        worked.map_err(|trouble| self.trouble.insert(trouble).error(self.patience))
    }

    fn give_up(&self, trouble: &Trouble) {
        for (_, mut stream) in self.others() {
            // Whether it arrives does not matter: that the connection is closed tells enough.
            let _ = stream.set_write_timeout(Some(LAST_WORDS));
            let _ = stream.write_all(&trouble.frame().bytes());
        }
        self.close();
    }

    /// Ends all connections: nobody is to wait for this rank.
    pub(super) fn close(&self) {
        for (_, stream) in self.others() {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
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

    fn transport(&self) -> String {
        "TCP".to_owned()
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
        if let Err(trouble) = done {
            self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
            self.ranks.close();
        }
    }

    fn end(self) -> Result<(), Trouble> {
        self.first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Whether a rank is still there, as far as can be seen without reading.
fn look(rank: usize, stream: &TcpStream) -> Result<(), Trouble> {
    let mut bytes = [0; Frame::LEN];
    let seen = stream.set_nonblocking(true).and_then(|()| {
        let peeked = stream.peek(&mut bytes);
        stream.set_nonblocking(false).and(peeked)
    });
    match seen {
        Ok(0) => Err(Trouble::of(rank, &ErrorKind::UnexpectedEof.into())),
        Ok(Frame::LEN) if Frame::parse(&bytes).kind == Some(Kind::GivenUp) => {
            let frame = Frame::parse(&bytes);
            Err(Trouble::unexpected(rank, &frame, &frame))
        }
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(Trouble::of(rank, &error)),
        _ => Ok(()),
    }
}

fn expect(rank: usize, mut stream: &TcpStream, frame: &Frame) -> Result<(), Trouble> {
    let mut bytes = [0; Frame::LEN];
    stream.read_exact(&mut bytes).map_err(|error| Trouble::of(rank, &error))?;
    let found = Frame::parse(&bytes);
    if found == *frame { Ok(()) } else { Err(Trouble::unexpected(rank, &found, frame)) }
}

fn send(rank: usize, mut stream: &TcpStream, frame: &Frame, payload: &[u8]) -> Result<(), Trouble> {
    stream.write_all(&[&frame.bytes(), payload].concat()).map_err(|error| Trouble::of(rank, &error))
}

fn receive<const N: usize>(rank: usize, mut stream: &TcpStream, frame: &Frame) -> Result<[u8; N], Trouble> {
    expect(rank, stream, frame)?;
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(|error| Trouble::of(rank, &error))?;
    Ok(bytes)
}

fn send_values(rank: usize, stream: &TcpStream, frame: &Frame, values: &[f32]) -> Result<(), Trouble> {
    send(rank, stream, frame, &[])?;
    wire::send_values(stream, values).map_err(|error| Trouble::of(rank, &error))
}

fn receive_values(rank: usize, stream: &TcpStream, frame: &Frame, values: &mut [f32]) -> Result<(), Trouble> {
    expect(rank, stream, frame)?;
    wire::receive_values(stream, &mut Vec::new(), values, |value, theirs| *value = theirs)
        .map_err(|error| Trouble::of(rank, &error))
}
