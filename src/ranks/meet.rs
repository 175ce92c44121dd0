//! How the ranks of a run find each other: all come to rank 0, which rejects other programs and tells everyone where
//! the others listen; then each pair is connected. One deadline holds for all of it. Knows nothing of sums.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::reception::{Arrival, Reception};
use super::talk::{self, look};
use super::trouble::{Stage, Trouble};
use super::waiting::{PAUSE, apart, read_while};
use super::wire::{self, ADDRESS, Frame, Hello, Kind, VERSION, Verdict, Welcome};
use super::{Launch, Patience};
use crate::error::{Error, Result, escaped};

/// How long one try to connect may take.
const CALL: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);
/// Between two checks of whether those who have come are still there.
const WATCH: Duration = Duration::from_millis(200);
/// How long a write to one who has just come may take.
const WRITE: Duration = Duration::from_secs(5);
/// How long the others may take to tell why a rank has gone.
const HEARSAY: Duration = Duration::from_secs(1);
const PORT: &str = "give each run its own MASTER_PORT (torchrun: --master_port)";
const PLACE: &str = "set MASTER_ADDR to a name or an address of rank 0's host that the other hosts reach too";

/// The connections of a rank, by rank; none with itself.
pub(super) type Peers = Vec<Option<TcpStream>>;

/// What the thread that meets the others and the one that waits for it tell each other.
#[derive(Debug, Default)]
pub(super) struct Notice {
    leaving: Mutex<Option<Leaving>>,
    waits: Mutex<String>,
    claimed: AtomicBool,
}

/// This rank won't take part after all: those who come until then are told.
#[derive(Debug, Clone)]
struct Leaving {
    why: String,
    until: Instant,
}

impl Notice {
    /// Ends the meeting, for all.
    pub(super) fn leave(&self, why: &str, linger: Duration) {
        let leaving = Leaving { why: why.to_owned(), until: Instant::now() + linger };
        *self.leaving.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaving);
    }

    fn leaving(&self) -> Option<Leaving> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for the connections: this rank is prepared.
    pub(super) fn claim(&self) {
        self.claimed.store(true, Ordering::SeqCst);
    }

    /// What is waited for, for users; empty before anything is.
    pub(super) fn waits(&self) -> String {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a meeting came to nothing.
enum Stop {
    Left(String),
    Trouble(Trouble),
    Failed(Error),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Meeting<'a> {
    launch: &'a Launch,
    patience: Patience,
    deadline: Instant,
    notice: &'a Notice,
}

/// Connects this process with every other of its run. Where that comes to nothing, those who have come are told.
pub(super) fn meet(launch: &Launch, patience: Patience, notice: &Notice) -> Result<Peers> {
    let meeting = Meeting { launch, patience, deadline: Instant::now() + patience.meeting, notice };
    let mut peers: Peers = (0..launch.count).map(|_| None).collect();
    let met = if launch.rank == 0 { meeting.gather(&mut peers) } else { meeting.come(&mut peers) };
    let Err(stop) = met else { return Ok(peers) };
    let (trouble, error) = match stop {
        Stop::Left(why) => {
            let trouble = Trouble::failed(launch.rank, &why);
            (trouble.clone(), trouble.error(patience.meeting, Stage::Meeting))
        }
        Stop::Trouble(trouble) => (trouble.clone(), trouble.error(patience.meeting, Stage::Meeting)),
        Stop::Failed(error) => (Trouble::failed(launch.rank, &error.split().0), error),
    };
    peers.iter().flatten().for_each(|stream| talk::give_up(stream, &trouble));
    Err(error)
}

/// Looks after connections until they are claimed. A rank that goes meanwhile is told to all.
pub(super) fn look_after(peers: Peers, patience: Patience, notice: &Notice) -> Result<Peers> {
    let mut watched = Instant::now();
    while !notice.claimed.load(Ordering::SeqCst) && notice.leaving().is_none() {
        thread::sleep(PAUSE);
        if watched.elapsed() < WATCH {
            continue;
        }
        watched = Instant::now();
        if let Err(trouble) = others(&peers).try_for_each(|(rank, stream)| look(rank, stream).map(|_| ())) {
            peers.iter().flatten().for_each(|stream| talk::give_up(stream, &trouble));
            return Err(trouble.error(patience.meeting, Stage::Meeting));
        }
    }
    Ok(peers)
}

impl Meeting<'_> {
    fn place(&self) -> String {
        format!("{}:{}", escaped(&self.launch.host), self.launch.port)
    }

    /// Whether there is time left.
    fn goes_on(&self) -> bool {
        let deadline = self.notice.leaving().map_or(self.deadline, |leaving| leaving.until.min(self.deadline));
        Instant::now() < deadline
    }

    fn waits(&self, for_what: String) {
        *self.notice.waits.lock().unwrap_or_else(PoisonError::into_inner) = for_what;
    }

    fn pause(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && self.goes_on() {
            thread::sleep(PAUSE);
        }
    }

    /// What follows when there is no time left.
    fn end(&self, problem: impl FnOnce() -> String) -> Stop {
        match self.notice.leaving() {
            Some(leaving) => Stop::Left(leaving.why),
            None => Stop::Failed(self.failed(&problem())),
        }
    }

    fn hello(&self, port: u16, token: u64) -> Hello {
        let (count, rank) = (self.launch.count as u32, self.launch.rank as u32);
        Hello { version: VERSION, count, rank, port, token }
    }

    /// Rank 0: waits for all others, then tells them of each other.
    fn gather(&self, peers: &mut Peers) -> Result<(), Stop> {
        let mut reception = self.listen()?;
        // No secret: it keeps processes of another run, which were told of the same addresses, apart.
        let token = RandomState::new().build_hasher().finish();
        let mut directory = vec![[0; ADDRESS]; self.launch.count];
        self.accept(&mut reception, peers, |Arrival { mut stream, from, hello }, peers| {
            let verdict = self.judge(&hello, peers);
            let _ = stream.set_write_timeout(Some(WRITE));
            let answered = stream.write_all(&Welcome { verdict, token }.bytes());
            if verdict != Verdict::Joined {
                return Err(self.mismatch(verdict, &format!("a process from {}", from.ip()), hello.rank).into());
            }
            if answered.is_ok() {
                directory[hello.rank as usize] = wire::address_bytes(SocketAddr::new(from.ip(), hello.port));
                peers[hello.rank as usize] = Some(stream);
            }
            Ok(())
        })?;
        let frame = self.directory_frame();
        for (rank, stream) in others(peers) {
            talk::send(rank, stream, &frame, directory.as_flattened())?;
        }
        Ok(())
    }

    /// What announces the directory.
    fn directory_frame(&self) -> Frame {
        Frame { kind: Some(Kind::Directory), number: 0, len: self.launch.count as u64 }
    }

    fn listen(&self) -> Result<Reception, Stop> {
        let (place, addresses) = (self.place(), self.look_up()?);
        let listener = match TcpListener::bind(&addresses[..]) {
            // The name of a service, or an address that is translated on its way here.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.launch.port))
                    .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.launch.port)))
            }
            bound => bound,
        };
        listener.and_then(Reception::new).map_err(|error| {
            let problem = format!("rank 0 can't wait for the other ranks at {place}: {error}");
            match error.kind() {
                ErrorKind::AddrInUse => Error::busy(problem, PORT).into(),
                _ => Error::network(problem, PLACE).into(),
            }
        })
    }

    /// The addresses of `MASTER_ADDR`. Under some schedulers a name appears later than those who look for it.
    fn look_up(&self) -> Result<Vec<SocketAddr>, Stop> {
        let (start, host) = (Instant::now(), escaped(&self.launch.host));
        loop {
            let name = (self.launch.host.clone(), self.launch.port);
            let found = apart(move || name.to_socket_addrs().map(Vec::from_iter), || self.goes_on());
            let why = match found {
                Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
                Ok(_) => "it has no address".to_owned(),
                Err(error) => error.to_string(),
            };
            let (rank, waited) = (self.launch.rank, start.elapsed());
            if !self.goes_on() {
                return Err(self.end(|| format!("rank {rank} does not find {host}: {why}")));
            }
            if waited >= self.patience.name {
                let problem = format!("rank {rank} does not find MASTER_ADDR {host} in {waited:.0?}: {why}");
                return Err(Error::network(problem, PLACE).into());
            }
            self.waits(format!("for the name {host} to be known ({why})"));
            self.pause(RETRY);
        }
    }

    /// Hears callers until every place in `peers` is taken; each goes to `take`.
    fn accept(
        &self,
        reception: &mut Reception,
        peers: &mut Peers,
        mut take: impl FnMut(Arrival, &mut Peers) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let broken = |error: io::Error| self.failed(&format!("waiting for other ranks failed: {error}"));
        let mut watched = Instant::now();
        loop {
            for arrival in reception.arrivals().map_err(broken)? {
                take(arrival, peers)?;
            }
            let missing = self.missing(peers);
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(leaving) = self.notice.leaving() {
                self.turn_away(reception, peers, &leaving);
                return Err(Stop::Left(leaving.why));
            }
            let (names, waited) = (missing.join(", "), self.patience.meeting.as_secs_f32());
            if !self.goes_on() {
                return Err(self.end(|| format!("after {waited} s, these ranks have not connected: {names}")));
            }
            let (place, of) = (self.place(), self.launch.count);
            self.waits(format!("at {place} for {} of {of} ranks (missing: {names})", missing.len()));
            if watched.elapsed() > WATCH {
                watched = Instant::now();
                others(peers).try_for_each(|(rank, stream)| look(rank, stream).map(|_| ()))?;
            }
            thread::sleep(PAUSE);
        }
    }

    /// The ranks that have not come.
    fn missing(&self, peers: &Peers) -> Vec<String> {
        let missing = peers.iter().enumerate().filter(|(rank, peer)| peer.is_none() && *rank != self.launch.rank);
        missing.map(|(rank, _)| rank.to_string()).collect()
    }

    /// Tells those who have come, and those who still come, that this rank goes.
    fn turn_away(&self, reception: &mut Reception, peers: &mut Peers, leaving: &Leaving) {
        let trouble = Trouble::failed(self.launch.rank, &leaving.why);
        let mut left = self.missing(peers).len();
        peers.iter_mut().filter_map(Option::take).for_each(|stream| talk::give_up(&stream, &trouble));
        while left > 0 && self.goes_on() {
            for Arrival { mut stream, .. } in reception.arrivals().unwrap_or_default() {
                if self.launch.rank == 0 {
                    let _ = stream.set_write_timeout(Some(WRITE));
                    let _ = stream.write_all(&Welcome { verdict: Verdict::Joined, token: 0 }.bytes());
                }
                talk::give_up(&stream, &trouble);
                left = left.saturating_sub(1);
            }
            thread::sleep(PAUSE);
        }
    }

    fn judge(&self, hello: &Hello, peers: &Peers) -> Verdict {
        let free = peers.get(hello.rank as usize).is_some_and(Option::is_none) && hello.rank != 0;
        match hello {
            hello if hello.version != VERSION => Verdict::OtherVersion,
            hello if hello.count as usize != self.launch.count => Verdict::OtherCount,
            _ if !free => Verdict::RankTaken,
            _ => Verdict::Joined,
        }
    }

    /// Any other rank: goes to rank 0, learns where the others are, goes to the lower ones and waits for the higher.
    fn come(&self, peers: &mut Peers) -> Result<(), Stop> {
        let rank = self.launch.rank;
        let (first, mut reception, welcome) = self.enter()?;
        if welcome.verdict != Verdict::Joined {
            return Err(self.mismatch(welcome.verdict, "this process", rank as u32).into());
        }
        let first = peers[0].insert(first);
        self.waits(format!("with rank 0 at {} for the rest of {} ranks", self.place(), self.launch.count));
        let directory = self.directory(first)?;
        for lower in 1..rank {
            let address = wire::parse_address(&directory[lower]);
            let connected = address.ok_or(ErrorKind::InvalidData.into()).and_then(|address| self.reach(address));
            let sent = connected.and_then(|mut stream| {
                stream.set_write_timeout(Some(WRITE))?;
                stream.write_all(&self.hello(0, welcome.token).bytes())?;
                Ok(stream)
            });
            match sent {
                Ok(stream) => peers[lower] = Some(stream),
                Err(error) => return Err(self.unreached(lower, address, &error, peers)),
            }
        }
        self.accept(&mut reception, peers, |Arrival { stream, hello, .. }, peers| {
            if hello.token == welcome.token && self.judge(&hello, peers) == Verdict::Joined {
                peers[hello.rank as usize] = Some(stream);
            }
            Ok(())
        })
    }

    /// A lower rank is not where it said: the others may know why.
    fn unreached(&self, lower: usize, address: Option<SocketAddr>, error: &io::Error, peers: &Peers) -> Stop {
        let start = Instant::now();
        while start.elapsed() < HEARSAY && self.goes_on() {
            if let Err(trouble) = others(peers).try_for_each(|(rank, stream)| look(rank, stream).map(|_| ())) {
                return trouble.into();
            }
            thread::sleep(PAUSE);
        }
        let address = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        let rank = self.launch.rank;
        Stop::Failed(Error::network(
            format!("rank {rank} can't reach rank {lower} at {address}: {error}"),
            format!(
                "see rank {lower}'s last message, if it has ended; else every host must reach every other at any port: \
                 set MASTER_ADDR to an address of rank 0's host that all hosts reach, not to a loopback one"
            ),
        ))
    }

    /// A connection on which rank 0 has answered, and a listener at the address by which rank 0 sees this process.
    fn enter(&self) -> Result<(TcpStream, Reception, Welcome), Stop> {
        let rank = self.launch.rank;
        loop {
            let mut last = "no address".to_owned();
            for address in self.look_up()? {
                match self.reach(address) {
                    Ok(stream) => {
                        let here = stream.local_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |here| here.ip());
                        let reception = TcpListener::bind((here, 0))
                            .and_then(Reception::new)
                            .map_err(|error| self.failed(&format!("rank {rank} can't listen at {here}: {error}")))?;
                        if let Some(welcome) = self.greet(&stream, reception.port())? {
                            return Ok((stream, reception, welcome));
                        }
                        // Whoever listened there has gone; rank 0 may still come.
                        last = format!("{address}: the program that listens there closes the connection");
                    }
                    Err(error) => last = format!("{address}: {error}"),
                }
            }
            let (place, waited) = (self.place(), self.patience.meeting.as_secs_f32());
            if !self.goes_on() {
                return Err(self.end(|| format!("rank {rank} did not reach rank 0 at {place} in {waited} s: {last}")));
            }
            self.waits(format!("for rank 0 at {place} ({last})"));
            self.pause(RETRY);
        }
    }

    fn reach(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = apart(move || TcpStream::connect_timeout(&address, CALL), || self.goes_on())?;
        // Connecting to a free local port may meet itself: the system picks ports for callers from the same range.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Rank 0's answer; `None` if nobody was there after all. Rank 0 answers at once: silence is another program's.
    fn greet(&self, mut first: &TcpStream, port: u16) -> Result<Option<Welcome>, Stop> {
        let (place, silence) = (self.place(), self.patience.greeting);
        self.waits(format!("for an answer of the program that listens at {place}"));
        let (start, mut answer) = (Instant::now(), [0; Welcome::LEN]);
        let goes_on = || self.goes_on() && start.elapsed() < silence;
        let stranger =
            |what: &str| Stop::Failed(Error::invalid(format!("the program that listens at {place} {what}"), PORT));
        let read = first.set_write_timeout(Some(WRITE)).and_then(|()| {
            first.write_all(&self.hello(port, 0).bytes())?;
            let (magic, rest) = answer.split_at_mut(Welcome::MAGIC.len());
            read_while(first, magic, goes_on)?;
            if *magic == Welcome::MAGIC { read_while(first, rest, goes_on) } else { Ok(()) }
        });
        match read {
            Ok(()) => match Welcome::parse(&answer) {
                Some(welcome) => Ok(Some(welcome)),
                None => Err(stranger("is not a qft of this kind")),
            },
            Err(error) if !self.goes_on() => {
                Err(self.end(|| format!("the program that listens at {place} does not answer as rank 0: {error}")))
            }
            Err(_) if start.elapsed() >= silence => Err(stranger(&format!(
                "does not answer as rank 0: it has sent nothing for {} s",
                silence.as_secs_f32()
            ))),
            Err(_) => Ok(None),
        }
    }

    /// Where all ranks listen, which rank 0 tells when all have come; or its last words.
    fn directory(&self, first: &TcpStream) -> Result<Vec<[u8; ADDRESS]>, Stop> {
        let mut directory = vec![[0; ADDRESS]; self.launch.count];
        let mut bytes = [0; Frame::LEN];
        let goes_on = || self.goes_on() && self.notice.leaving().is_none();
        let lost = |error: io::Error| {
            if goes_on() {
                return Stop::Trouble(Trouble::of(0, &error));
            }
            self.end(|| format!("rank 0 at {} has not confirmed that all ranks have connected", self.place()))
        };
        read_while(first, &mut bytes, goes_on).map_err(lost)?;
        let (found, expected) = (Frame::parse(&bytes), self.directory_frame());
        if found.kind == Some(Kind::GivenUp) {
            return Err(talk::last_words(0, first, &found).into());
        }
        if found != expected {
            return Err(Trouble::unexpected(0, &found, &expected).into());
        }
        read_while(first, directory.as_flattened_mut(), goes_on).map_err(lost)?;
        Ok(directory)
    }

    fn failed(&self, problem: &str) -> Error {
        Error::network(
            format!("the {} ranks of the run did not connect: {problem}", self.launch.count),
            "start all ranks within a few minutes of each other, with one MASTER_ADDR and MASTER_PORT that every host \
             reaches; see the message of the missing rank, too",
        )
    }

    fn mismatch(&self, verdict: Verdict, who: &str, rank: u32) -> Error {
        let (problem, remedy) = match verdict {
            Verdict::OtherVersion => ("is of another version of qft", "use the same qft for all ranks"),
            Verdict::OtherCount => ("was given another WORLD_SIZE", "give all ranks the same WORLD_SIZE"),
            Verdict::RankTaken | Verdict::Joined => {
                ("has a rank that is already connected", "give each rank its own RANK")
            }
        };
        let place = self.place();
        Error::invalid(
            format!("{who}, which connected to {place} as rank {rank}, {problem}"),
            format!("{remedy}; {PORT}"),
        )
    }
}

fn others(peers: &Peers) -> impl Iterator<Item = (usize, &TcpStream)> {
    peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)))
}
