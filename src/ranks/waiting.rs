//! Waiting that ends when it should: reads with one deadline over all bytes, and what the system does in one go, in a
//! thread of its own.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Between two checks of whether to go on.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Fills `bytes` from the stream, as long as `goes_on`: however its bytes come, that is asked all the time.
pub(super) fn read_while(mut stream: &TcpStream, bytes: &mut [u8], goes_on: impl Fn() -> bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PAUSE))?;
    let mut filled = 0;
    while filled < bytes.len() {
        if !goes_on() {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What `work` gives. Where `goes_on` says no, its thread is left to itself.
pub(super) fn apart<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    goes_on: impl Fn() -> bool,
) -> io::Result<T> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || sender.send(work()))?;
    loop {
        match receiver.recv_timeout(PAUSE) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) if goes_on() => {}
            Err(RecvTimeoutError::Timeout) => return Err(ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => return Err(ErrorKind::Other.into()),
        }
    }
}

/// Whether an error says no more than that nothing is there yet.
pub(super) fn passes(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted | ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn bytes_that_trickle_do_not_put_the_end_off() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let start = Instant::now();
        let goes_on = || start.elapsed() < Duration::from_millis(300);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..40 {
                    let _ = sender.write_all(b"x");
                    thread::sleep(Duration::from_millis(50));
                }
            });
            assert_eq!(read_while(&stream, &mut [0; 40], goes_on).unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        });
    }

    #[test]
    fn what_takes_long_is_left() {
        let start = Instant::now();
        let slow = || {
            thread::sleep(Duration::from_secs(20));
            Ok(1)
        };
        let goes_on = || start.elapsed() < Duration::from_millis(100);
        assert_eq!(apart(slow, goes_on).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(apart(|| Ok(2), || true).unwrap(), 2);
    }
}
