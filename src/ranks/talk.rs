//! One connection with another rank: frames with what follows them, the last words of a rank that gives up, and whether
//! it is still there.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::trouble::Trouble;
use super::wire::{self, Frame, Kind, LastWords};

/// How long the last words of a rank that gives up may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether the rank has sent something that is not read yet; it may be its last words, or be gone.
pub(super) fn look(rank: usize, stream: &TcpStream) -> Result<bool, Trouble> {
    let mut bytes = [0; Frame::LEN];
    let seen = stream.set_nonblocking(true).and_then(|()| {
        let peeked = stream.peek(&mut bytes);
        stream.set_nonblocking(false).and(peeked)
    });
    match seen {
        Ok(0) => Err(Trouble::of(rank, &ErrorKind::UnexpectedEof.into())),
        Ok(Frame::LEN) if Frame::parse(&bytes).kind == Some(Kind::GivenUp) => {
            let frame = Frame::parse(&bytes);
            expect(rank, stream, &Frame { kind: None, ..frame }).map(|()| true)
        }
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(Trouble::of(rank, &error)),
    }
}

/// Tells a rank why this one goes, and hangs up.
pub(super) fn give_up(mut stream: &TcpStream, trouble: &Trouble) {
    // Whether it arrives does not matter: that the connection is closed tells enough.
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_write_timeout(Some(LAST_WORDS));
    let _ = stream.write_all(&trouble.words().bytes());
    hang_up(stream);
}

/// Ends a connection: the other is not to wait for this rank.
pub(super) fn hang_up(stream: &TcpStream) {
    // It may be closed already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Reads a frame that must be this one.
pub(super) fn expect(rank: usize, mut stream: &TcpStream, frame: &Frame) -> Result<(), Trouble> {
    let mut bytes = [0; Frame::LEN];
    stream.read_exact(&mut bytes).map_err(|error| Trouble::of(rank, &error))?;
    let found = Frame::parse(&bytes);
    if found.kind == Some(Kind::GivenUp) {
        return Err(last_words(rank, stream, &found));
    }
    if found == *frame { Ok(()) } else { Err(Trouble::unexpected(rank, &found, frame)) }
}

/// What a rank says that gives up, after the frame that announces it.
pub(super) fn last_words(rank: usize, stream: &TcpStream, frame: &Frame) -> Trouble {
    let _ = stream.set_read_timeout(Some(LAST_WORDS));
    Trouble::told(&LastWords::read(frame, stream), rank)
}

pub(super) fn send(rank: usize, mut stream: &TcpStream, frame: &Frame, payload: &[u8]) -> Result<(), Trouble> {
    stream.write_all(&[&frame.bytes(), payload].concat()).map_err(|error| Trouble::of(rank, &error))
}

pub(super) fn receive<const N: usize>(rank: usize, mut stream: &TcpStream, frame: &Frame) -> Result<[u8; N], Trouble> {
    expect(rank, stream, frame)?;
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(|error| Trouble::of(rank, &error))?;
    Ok(bytes)
}

pub(super) fn send_values(rank: usize, stream: &TcpStream, frame: &Frame, values: &[f32]) -> Result<(), Trouble> {
    send(rank, stream, frame, &[])?;
    wire::send_values(stream, values).map_err(|error| Trouble::of(rank, &error))
}

pub(super) fn receive_values(
    rank: usize,
    stream: &TcpStream,
    frame: &Frame,
    values: &mut [f32],
) -> Result<(), Trouble> {
    expect(rank, stream, frame)?;
    wire::receive_values(stream, &mut Vec::new(), values, |value, theirs| *value = theirs)
        .map_err(|error| Trouble::of(rank, &error))
}
