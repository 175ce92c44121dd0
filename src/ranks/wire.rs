//! The bytes that ranks exchange: greetings, the directory of addresses, frames, last words, and values in
//! little-endian. Knows no order of things: `meet` and `tcp` do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Of what is sent here. Ranks of different builds must not train together: they may compute differently.
pub(super) const VERSION: u32 = 2;
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
    RankTaken,
}

const VERDICTS: [Verdict; 4] = [Verdict::Joined, Verdict::OtherVersion, Verdict::OtherCount, Verdict::RankTaken];

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

impl Hello {
    /// Half of it is zeros: version 1, which must understand that it was called by another, reads as much.
    pub(super) const LEN: usize = 64;

    pub(super) fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&HELLO);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rank.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.port.to_le_bytes());
        bytes[56..].copy_from_slice(&self.token.to_le_bytes());
        bytes
    }

    /// `None` if this is no greeting of a rank.
    pub(super) fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (version, count, rank) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
        let port = u32_at(bytes, 20) as u16;
        let hello = Self { version, count, rank, port, token: u64_at(bytes, 56) };
        (bytes[..8] == HELLO).then_some(hello)
    }
}

/// A greeting that comes in pieces.
#[derive(Debug, Clone)]
pub(super) struct Greeting {
    bytes: [u8; Hello::LEN],
    filled: usize,
}

impl Greeting {
    pub(super) fn new() -> Self {
        Self { bytes: [0; Hello::LEN], filled: 0 }
    }

    /// Reads what is there. The greeting, if it is whole, `None` if more must come; an error is the end of the caller,
    /// who may be no rank at all.
    pub(super) fn read(&mut self, mut from: impl Read) -> io::Result<Option<Hello>> {
        while self.filled < Hello::LEN {
            match from.read(&mut self.bytes[self.filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            let known = self.filled.min(HELLO.len());
            if self.bytes[..known] != HELLO[..known] {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Hello::parse(&self.bytes).map(Some).ok_or(ErrorKind::InvalidData.into())
    }
}

impl Welcome {
    pub(super) const LEN: usize = 24;
    /// What each begins with.
    pub(super) const MAGIC: [u8; 8] = WELCOME;

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

/// An entry of the directory, as text with zeros after it: long enough for any address with a port and a scope.
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
    /// Not done together: the sender gives up because of the rank `number`; `len` tells why, and how long a text
    /// follows.
    GivenUp,
    /// Not done together: where the ranks listen, as many addresses as `len` says.
    Directory,
    Run,
    Sum,
    Finished,
    Numbers,
    Barrier,
    Flag,
    Bytes,
}

/// Names of the kinds, for users.
const KINDS: [(Kind, &str); 9] = [
    (Kind::GivenUp, "giving up"),
    (Kind::Directory, "a directory"),
    (Kind::Run, "the comparison of runs"),
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

    /// For users.
    pub(super) fn shown(&self) -> String {
        let name = self.kind.and_then(|kind| KINDS.get(kind as usize)).map_or("something unknown", |(_, name)| name);
        format!("operation {}, {name} of length {}", self.number, self.len)
    }
}

/// Why a rank gives up: a code, and words for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastWords {
    /// The rank because of which.
    pub(super) rank: u32,
    pub(super) code: u8,
    pub(super) text: String,
}

impl LastWords {
    /// Most bytes of the text.
    pub(super) const MOST: usize = 1 << 10;

    /// A frame and the text.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let text = &self.text[..self.text.floor_char_boundary(Self::MOST)];
        let len = (text.len() as u64) << 8 | u64::from(self.code);
        let frame = Frame { kind: Some(Kind::GivenUp), number: self.rank, len };
        [&frame.bytes(), text.as_bytes()].concat()
    }

    /// Reads the text after its frame; one that is too long, or that doesn't come, is left out.
    pub(super) fn read(frame: &Frame, from: impl Read) -> Self {
        let len = Some(frame.len >> 8).filter(|len| *len <= Self::MOST as u64).unwrap_or(0);
        let mut bytes = Vec::new();
        // What has come of it says more than nothing.
        let _ = from.take(len).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let text = text[..text.floor_char_boundary(Self::MOST)].to_owned();
        Self { rank: frame.number, code: frame.len as u8, text }
    }
}

/// What the bytes of a connection mean to a rank that reads them as each thing that it may expect, for users: nothing
/// for bytes that mean nothing. `piece` is how many come at once.
pub fn understood(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut greeting = Greeting::new();
    for piece in bytes.chunks(piece.max(1)) {
        // A slice ends where a connection would have nothing yet.
        let mut rest = piece;
        let mut read = |into: &mut [u8]| match rest.read(into)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            read => Ok(read),
        };
        match greeting.read(Pieces(&mut read)) {
            Ok(None) => {}
            Ok(Some(hello)) => {
                all.push(format!("{hello:?}"));
                break;
            }
            Err(_) => break,
        }
    }
    all.extend(bytes.first_chunk().and_then(Welcome::parse).map(|welcome| format!("{welcome:?}")));
    all.extend(bytes.first_chunk().and_then(parse_address).map(|address| address.to_string()));
    if let Some((frame, rest)) = bytes.split_first_chunk() {
        let frame = Frame::parse(frame);
        if frame.kind == Some(Kind::GivenUp) {
            all.push(format!("{:?}", LastWords::read(&frame, rest)));
        } else if frame.kind.is_some() {
            all.push(frame.shown());
        }
    }
    all
}

/// A reader made of a function.
struct Pieces<'f>(&'f mut dyn FnMut(&mut [u8]) -> io::Result<usize>);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (self.0)(into)
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
        let hello = Hello { version: 1, count: 300, rank: 257, port: 65535, token: u64::MAX - 1 };
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

    #[test]
    fn greetings_come_in_pieces_and_strangers_show_at_once() {
        let hello = Hello { version: VERSION, count: 2, rank: 1, port: 9, token: 0 };
        for piece in [1, 7, 64, 100] {
            assert_eq!(understood(&hello.bytes(), piece), [format!("{hello:?}")], "{piece} at once");
        }
        assert!(understood(&hello.bytes()[..63], 5).is_empty());
        let mut greeting = Greeting::new();
        assert_eq!(greeting.read(&b"x"[..]).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(Greeting::new().read(&b"qft"[..]).unwrap_err().kind(), ErrorKind::UnexpectedEof, "it has hung up");
    }

    #[test]
    fn last_words_are_short_and_read_back() {
        let words = LastWords { rank: 3, code: 4, text: "no space".to_owned() };
        let read = |bytes: &[u8]| {
            let (frame, rest) = bytes.split_first_chunk().unwrap();
            LastWords::read(&Frame::parse(frame), rest)
        };
        assert_eq!(read(&words.bytes()), words);
        let long = LastWords { text: "层".repeat(1000), ..words.clone() };
        let back = read(&long.bytes());
        assert!(long.text.starts_with(&back.text) && (1000..=LastWords::MOST).contains(&back.text.len()));
        let lie = Frame { kind: Some(Kind::GivenUp), number: 3, len: u64::MAX };
        assert_eq!(read(&[&lie.bytes()[..], &[b'x'; 4000]].concat()).text, "");
    }
}
