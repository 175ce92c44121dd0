//! The bytes that ranks exchange: greetings, the directory of addresses, frames, and values in little-endian. Knows no
//! order of things: `meet` and `tcp` do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Of what is sent here. Ranks of different builds must not train together: they may compute differently.
pub(super) const VERSION: u32 = 1;
const HELLO: [u8; 8] = *b"qftrank?";
const WELCOME: [u8; 8] = *b"qftrank!";
/// Values that are converted, sent and added at once.
pub(super) const SEGMENT: usize = 64 << 10;

/// What a rank says first, to rank 0 and then to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) count: u32,
    pub(super) rank: u32,
    /// Where it listens for higher ranks.
    pub(super) port: u16,
    /// Digest of what all ranks must have in common.
    pub(super) run: [u8; 32],
    /// Rank 0's, by which the others know each other; 0 before it is known.
    pub(super) token: u64,
}

/// What rank 0 answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) verdict: Verdict,
    pub(super) token: u64,
}

/// Whether a rank may join, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Joined,
    OtherVersion,
    OtherCount,
    OtherRun,
    RankTaken,
}

const VERDICTS: [Verdict; 5] =
    [Verdict::Joined, Verdict::OtherVersion, Verdict::OtherCount, Verdict::OtherRun, Verdict::RankTaken];

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

impl Hello {
    pub(super) const LEN: usize = 64;

    pub(super) fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&HELLO);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rank.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.port.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.run);
        bytes[56..].copy_from_slice(&self.token.to_le_bytes());
        bytes
    }

    /// `None` if this is no greeting of a rank.
    pub(super) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut run = [0; 32];
        run.copy_from_slice(&bytes[24..56]);
        let (version, count, rank) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
        let port = u32_at(bytes, 20) as u16;
        let hello = Self { version, count, rank, port, run, token: u64_at(bytes, 56) };
        (bytes[..8] == HELLO).then_some(hello)
    }
}

impl Welcome {
    pub(super) const LEN: usize = 24;

    pub(super) fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&WELCOME);
        bytes[8..12].copy_from_slice(&(self.verdict as u32).to_le_bytes());
        bytes[16..].copy_from_slice(&self.token.to_le_bytes());
        bytes
    }

    /// `None` if this is no answer of rank 0.
    pub(super) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let verdict = VERDICTS.get(u32_at(bytes, 8) as usize).copied();
        verdict.filter(|_| bytes[..8] == WELCOME).map(|verdict| Self { verdict, token: u64_at(bytes, 16) })
    }
}

/// An entry of the directory, as text with zeros behind it: long enough for any address with a port and a scope.
pub(super) const ADDRESS: usize = 64;

pub(super) fn address_bytes(address: SocketAddr) -> [u8; ADDRESS] {
    let text = address.to_string();
    let mut bytes = [0; ADDRESS];
    let len = text.len().min(ADDRESS);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}

pub(super) fn parse_address(bytes: &[u8; ADDRESS]) -> Option<SocketAddr> {
    std::str::from_utf8(bytes).ok()?.trim_end_matches('\0').parse().ok()
}

/// What ranks do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not done together: the sender gives up because of the rank `number`; `len` tells why.
    GivenUp,
    Sum,
    Finished,
    Numbers,
    Barrier,
    Flag,
    Bytes,
}

/// Names of the kinds, for people.
const KINDS: [(Kind, &str); 7] = [
    (Kind::GivenUp, "giving up"),
    (Kind::Sum, "a sum of values"),
    (Kind::Finished, "the result of a sum of values"),
    (Kind::Numbers, "a sum of numbers"),
    (Kind::Barrier, "a barrier"),
    (Kind::Flag, "a flag"),
    (Kind::Bytes, "bytes of rank 0"),
];

/// What stands before every payload: that both sides do the same thing is checked each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// `None` if it is unknown here.
    pub(super) kind: Option<Kind>,
    /// Of the operation, from 0.
    pub(super) number: u32,
    /// Values or bytes in all.
    pub(super) len: u64,
}

impl Frame {
    pub(super) const LEN: usize = 16;

    pub(super) fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let kind = self.kind.map_or(u32::MAX, |kind| kind as u32);
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let kind = KINDS.get(u32_at(bytes, 0) as usize).map(|(kind, _)| *kind);
        Self { kind, number: u32_at(bytes, 4), len: u64_at(bytes, 8) }
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        let name = self.kind.and_then(|kind| KINDS.get(kind as usize)).map_or("something unknown", |(_, name)| name);
        format!("operation {}, {name} of length {}", self.number, self.len)
    }
}

/// Sends values, through a bounded buffer.
pub(super) fn send_values(mut stream: &TcpStream, values: &[f32]) -> io::Result<()> {
    let mut bytes = vec![0; 4 * SEGMENT.min(values.len())];
    for segment in values.chunks(SEGMENT) {
        let bytes = &mut bytes[..4 * segment.len()];
        for (four, value) in bytes.as_chunks_mut().0.iter_mut().zip(segment) {
            *four = value.to_le_bytes();
        }
        stream.write_all(bytes)?;
    }
    Ok(())
}

/// Receives values through `bytes`, and gives each to `take` with its place; at most [`SEGMENT`] of them.
pub(super) fn receive_values(
    mut stream: &TcpStream,
    bytes: &mut Vec<u8>,
    values: &mut [f32],
    take: impl Fn(&mut f32, f32),
) -> io::Result<()> {
    for segment in values.chunks_mut(SEGMENT) {
        bytes.resize(4 * segment.len(), 0);
        stream.read_exact(bytes)?;
        for (value, four) in segment.iter_mut().zip(bytes.as_chunks().0) {
            take(value, f32::from_le_bytes(*four));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_back() {
        let hello = Hello { version: 1, count: 300, rank: 257, port: 65535, run: [7; 32], token: u64::MAX - 1 };
        assert_eq!(Hello::parse(&hello.bytes()), Some(hello));
        assert_eq!(Hello::parse(&[0; Hello::LEN]), None);
        for verdict in VERDICTS {
            let welcome = Welcome { verdict, token: 1 << 40 };
            assert_eq!(Welcome::parse(&welcome.bytes()), Some(welcome));
        }
        let mut bytes = Welcome { verdict: Verdict::Joined, token: 0 }.bytes();
        bytes[8] = 9;
        assert_eq!(Welcome::parse(&bytes), None);
        for (kind, _) in KINDS {
            let frame = Frame { kind: Some(kind), number: 1 << 31, len: 1 << 40 };
            assert_eq!(Frame::parse(&frame.bytes()), frame);
        }
        assert_eq!(Frame::parse(&[0xff; Frame::LEN]).kind, None);
        for text in ["127.0.0.1:1", "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"] {
            let address = text.parse().unwrap();
            assert_eq!(parse_address(&address_bytes(address)), Some(address));
        }
        assert_eq!(parse_address(&[b'9'; ADDRESS]), None);
    }
}
