//! Callers of a listening rank, read in parallel: one that sends nothing, or little, does not keep others from being
//! heard, and costs little.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::waiting::passes;
use super::wire::{Greeting, Hello};

/// How long a caller may take for its whole greeting.
const GREETING: Duration = Duration::from_secs(5);
/// Callers that are heard at once. Ranks greet when they come, so where more call, the oldest are no ranks.
const MOST: usize = 64;

struct Caller {
    stream: TcpStream,
    from: SocketAddr,
    since: Instant,
    greeting: Greeting,
}

/// A caller that has greeted as ranks do.
pub(super) struct Arrival {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) hello: Hello,
}

/// A listener and those who call.
pub(super) struct Reception {
    listener: TcpListener,
    callers: VecDeque<Caller>,
}

impl Reception {
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, callers: VecDeque::new() })
    }

    /// Where it listens.
    pub(super) fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    /// Those who have greeted since the last call. Does not wait.
    pub(super) fn arrivals(&mut self) -> io::Result<Vec<Arrival>> {
        for _ in 0..MOST {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    // One that fails here is gone already.
                    if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok() {
                        self.callers.push_back(Caller {
                            stream,
                            from,
                            since: Instant::now(),
                            greeting: Greeting::new(),
                        });
                    }
                }
                Err(error) if passes(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let surplus = self.callers.len().saturating_sub(MOST);
        self.callers.drain(..surplus);
        let mut arrivals = Vec::new();
        for mut caller in std::mem::take(&mut self.callers) {
            match caller.greeting.read(&caller.stream) {
                Ok(Some(hello)) if caller.stream.set_nonblocking(false).is_ok() => {
                    arrivals.push(Arrival { stream: caller.stream, from: caller.from, hello });
                }
                Ok(None) if caller.since.elapsed() < GREETING => self.callers.push_back(caller),
                // No rank, or one that has gone.
                _ => {}
            }
        }
        Ok(arrivals)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::wire::VERSION;
    use super::*;

    #[test]
    fn a_crowd_of_strangers_is_bounded_and_keeps_no_rank_out() {
        let mut reception = Reception::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let place = ("127.0.0.1", reception.port());
        let mut strangers = Vec::new();
        for _ in 0..4 {
            // Fewer than a listener's queue holds.
            for _ in 0..50 {
                strangers.push(TcpStream::connect(place).unwrap());
                strangers.last_mut().unwrap().write_all(b"qft").unwrap();
            }
            assert_eq!(reception.arrivals().unwrap().len(), 0);
        }
        assert_eq!(reception.callers.len(), MOST);
        let hello = Hello { version: VERSION, count: 2, rank: 1, port: 7, token: 0 };
        let mut rank = TcpStream::connect(place).unwrap();
        rank.write_all(&hello.bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let arrived = loop {
            assert!(Instant::now() < deadline, "the rank was not heard");
            if let Some(arrival) = reception.arrivals().unwrap().pop() {
                break arrival;
            }
        };
        assert_eq!(arrived.hello, hello);
        let first = &mut strangers[0];
        first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(!matches!(first.read(&mut [0]), Ok(1..)), "the oldest was let go");
    }
}
