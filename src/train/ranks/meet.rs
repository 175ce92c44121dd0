//! How the ranks of a run find each other: all come to rank 0, which turns strangers away and tells everyone where the
//! others listen; then each pair is connected. Knows nothing of sums.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::Launch;
use super::wire::{self, ADDRESS, Hello, VERSION, Verdict, Welcome};
use crate::error::{Error, Result, escaped};

/// How long a stranger may keep rank 0 from the next caller.
const GREETING: Duration = Duration::from_secs(5);
/// Between two looks at whether somebody came, or two tries to come.
const PAUSE: Duration = Duration::from_millis(20);
const PORT: &str = "give each run a MASTER_PORT of its own (torchrun: --master_port)";

/// The connections of a rank, by rank; none with itself.
pub(super) type Peers = Vec<Option<TcpStream>>;

struct Meeting<'a> {
    launch: &'a Launch,
    run: [u8; 32],
    deadline: Instant,
    patience: Duration,
}

/// Connects this process with every other of its run; waits at most `patience` for them.
pub(super) fn meet(launch: &Launch, run: [u8; 32], patience: Duration) -> Result<Peers> {
    let meeting = Meeting { launch, run, deadline: Instant::now() + patience, patience };
    let mut peers: Peers = (0..launch.count).map(|_| None).collect();
    if launch.rank == 0 {
        meeting.gather(&mut peers)?;
    } else {
        meeting.come(&mut peers)?;
    }
    Ok(peers)
}

impl Meeting<'_> {
    fn place(&self) -> String {
        format!("{}:{}", escaped(&self.launch.host), self.launch.port)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn hello(&self, port: u16, token: u64) -> Hello {
        let (count, rank) = (self.launch.count as u32, self.launch.rank as u32);
        Hello { version: VERSION, count, rank, port, run: self.run, token }
    }

    /// Rank 0: waits for all others, then tells them of each other.
    fn gather(&self, peers: &mut Peers) -> Result<()> {
        let listener = self.listen()?;
        // No secret: it keeps processes of another run, which were told of the same addresses, apart.
        let token = RandomState::new().build_hasher().finish();
        let mut directory = vec![[0; ADDRESS]; self.launch.count];
        while peers[1..].iter().any(Option::is_none) {
            let (mut stream, from) = self.accept(&listener, peers)?;
            let Some(hello) = greeting(&stream) else { continue };
            let verdict = self.judge(&hello, peers);
            let answered = stream.write_all(&Welcome { verdict, token }.bytes());
            if verdict != Verdict::Joined {
                return Err(self.mismatch(verdict, &format!("a process from {}", from.ip()), hello.rank));
            }
            if answered.is_ok() {
                directory[hello.rank as usize] = wire::address_bytes(SocketAddr::new(from.ip(), hello.port));
                peers[hello.rank as usize] = Some(stream);
            }
        }
        for (rank, peer) in peers.iter_mut().enumerate() {
            if let Some(stream) = peer {
                let sent = stream.write_all(directory.as_flattened());
                sent.map_err(|error| self.failed(&format!("rank {rank} left before all had come: {error}")))?;
            }
        }
        Ok(())
    }

    fn listen(&self) -> Result<TcpListener> {
        let place = self.place();
        let listener = match TcpListener::bind((self.launch.host.as_str(), self.launch.port)) {
            // The name of a service, or an address that is translated on its way here.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.launch.port))
                    .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.launch.port)))
            }
            bound => bound,
        };
        let listener = listener.map_err(|error| {
            let remedy = if error.kind() == ErrorKind::AddrInUse {
                PORT
            } else {
                "set MASTER_ADDR to a name or an address of rank 0's host that the other hosts reach too"
            };
            Error::refused(format!("rank 0 can't wait for the other ranks at {place}: {error}"), remedy)
        })?;
        Ok(listener)
    }

    /// The next caller.
    fn accept(&self, listener: &TcpListener, peers: &Peers) -> Result<(TcpStream, SocketAddr)> {
        let broken = |error: io::Error| self.failed(&format!("waiting for other ranks failed: {error}"));
        listener.set_nonblocking(true).map_err(broken)?;
        loop {
            match listener.accept() {
                Ok((stream, from)) => {
                    stream.set_nonblocking(false).map_err(broken)?;
                    prepare(&stream, GREETING).map_err(broken)?;
                    return Ok((stream, from));
                }
                Err(error) if passes(&error) && !self.over() => thread::sleep(PAUSE),
                Err(error) if passes(&error) => {
                    let missing: Vec<_> = peers.iter().enumerate().filter(|(_, peer)| peer.is_none()).collect();
                    let missing = missing.iter().map(|(rank, _)| *rank).filter(|rank| *rank != self.launch.rank);
                    let missing = missing.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ");
                    let waited = self.patience.as_secs_f32();
                    return Err(self.failed(&format!("after {waited} s, these ranks have not come: {missing}")));
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn judge(&self, hello: &Hello, peers: &Peers) -> Verdict {
        let free = peers.get(hello.rank as usize).is_some_and(Option::is_none) && hello.rank != 0;
        match hello {
            hello if hello.version != VERSION => Verdict::OtherVersion,
            hello if hello.count as usize != self.launch.count => Verdict::OtherCount,
            hello if hello.run != self.run => Verdict::OtherRun,
            _ if !free => Verdict::RankTaken,
            _ => Verdict::Joined,
        }
    }

    /// Any other rank: goes to rank 0, learns where the others are, goes to the lower ones and waits for the higher.
    fn come(&self, peers: &mut Peers) -> Result<()> {
        let rank = self.launch.rank;
        let (mut first, listener, welcome) = loop {
            let (mut first, listener) = self.reach_first()?;
            let port = listener.local_addr().map_or(0, |address| address.port());
            if let Some(welcome) = self.greet_first(&mut first, port)? {
                break (first, listener, welcome);
            }
            // Whoever listened there has gone; rank 0 may still come.
        };
        if welcome.verdict != Verdict::Joined {
            return Err(self.mismatch(welcome.verdict, "this process", rank as u32));
        }
        let mut directory = vec![[0; ADDRESS]; self.launch.count];
        let gone = |error: io::Error| {
            Error::refused(
                format!("rank 0 at {} gave up before all ranks had come ({error})", self.place()),
                "look at rank 0's message",
            )
        };
        first.set_read_timeout(Some(self.patience)).map_err(gone)?;
        first.read_exact(directory.as_flattened_mut()).map_err(gone)?;
        peers[0] = Some(first);
        for lower in 1..rank {
            let address = wire::parse_address(&directory[lower]);
            let connected = address.ok_or(ErrorKind::InvalidData.into()).and_then(|address| self.reach(address));
            let sent = connected.and_then(|mut stream| {
                stream.write_all(&self.hello(0, welcome.token).bytes())?;
                Ok(stream)
            });
            let unreached = |error| {
                let address = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
                Error::refused(
                    format!("rank {rank} can't reach rank {lower} at {address}: {error}"),
                    "every host must reach every other at any port; set MASTER_ADDR to an address of rank 0's host \
                     that all hosts reach, not to a loopback one",
                )
            };
            peers[lower] = Some(sent.map_err(unreached)?);
        }
        while peers[rank + 1..].iter().any(Option::is_none) {
            let (stream, _) = self.accept(&listener, peers)?;
            let known = greeting(&stream).filter(|hello| hello.token == welcome.token);
            if let Some(hello) = known.filter(|hello| self.judge(hello, peers) == Verdict::Joined) {
                peers[hello.rank as usize] = Some(stream);
            }
        }
        Ok(())
    }

    /// A connection to rank 0, and a listener at the address by which rank 0 sees this process.
    fn reach_first(&self) -> Result<(TcpStream, TcpListener)> {
        loop {
            let addresses = (self.launch.host.as_str(), self.launch.port).to_socket_addrs();
            let mut last = addresses.as_ref().map_or_else(ToString::to_string, |_| "no address".to_owned());
            for address in addresses.into_iter().flatten() {
                match self.reach(address) {
                    Ok(stream) => {
                        let here = stream.local_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |here| here.ip());
                        let listener = TcpListener::bind((here, 0)).map_err(|error| {
                            self.failed(&format!("rank {} can't listen at {here}: {error}", self.launch.rank))
                        })?;
                        return Ok((stream, listener));
                    }
                    Err(error) => last = format!("{address}: {error}"),
                }
            }
            if self.over() {
                let (rank, place, waited) = (self.launch.rank, self.place(), self.patience.as_secs_f32());
                return Err(self.failed(&format!("rank {rank} did not reach rank 0 at {place} in {waited} s: {last}")));
            }
            thread::sleep(PAUSE);
        }
    }

    fn reach(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, self.left().min(GREETING))?;
        // Connecting to a free local port may meet itself: the system picks ports for callers from the same range.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        prepare(&stream, self.patience)?;
        Ok(stream)
    }

    /// Rank 0's answer; `None` if nobody was there after all.
    fn greet_first(&self, first: &mut TcpStream, port: u16) -> Result<Option<Welcome>> {
        let mut answer = [0; Welcome::LEN];
        let read = first.write_all(&self.hello(port, 0).bytes()).and_then(|()| {
            first.set_read_timeout(Some(self.left()))?;
            first.read_exact(&mut answer)
        });
        match read {
            Ok(()) => Welcome::parse(&answer).map(Some).ok_or_else(|| {
                Error::refused(format!("what listens at {} is no qft of this kind", self.place()), PORT)
            }),
            Err(error) if self.over() => {
                Err(self.failed(&format!("what listens at {} does not answer as rank 0: {error}", self.place())))
            }
            Err(_) => {
                thread::sleep(PAUSE);
                Ok(None)
            }
        }
    }

    fn failed(&self, problem: &str) -> Error {
        Error::refused(
            format!("the {} ranks of the run did not come together: {problem}", self.launch.count),
            "start all ranks within a few minutes of each other, with one MASTER_ADDR and MASTER_PORT that every host \
             reaches; the message of the rank that is missing may say more",
        )
    }

    fn mismatch(&self, verdict: Verdict, who: &str, rank: u32) -> Error {
        let (problem, remedy) = match verdict {
            Verdict::OtherVersion => ("is of another version of qft", "use the same qft for all ranks"),
            Verdict::OtherCount => ("was given another WORLD_SIZE", "give all ranks the same WORLD_SIZE"),
            Verdict::RankTaken => ("has a rank that is already here", "give each rank its own RANK"),
            Verdict::OtherRun | Verdict::Joined => (
                "trains with other settings, data or another model than rank 0",
                "start all ranks with the same command on the same files",
            ),
        };
        let place = self.place();
        Error::refused(format!("{who}, which came to {place} as rank {rank}, {problem}"), format!("{remedy}; {PORT}"))
    }
}

/// What a caller says; `None` if it says nothing in time, or is no rank.
fn greeting(mut stream: &TcpStream) -> Option<Hello> {
    let mut bytes = [0; Hello::LEN];
    stream.read_exact(&mut bytes).ok()?;
    Hello::parse(&bytes)
}

fn prepare(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}

/// Whether waiting for a caller may go on.
fn passes(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}
