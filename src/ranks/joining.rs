//! Joining the run: the others are met in a thread of its own while this rank prepares, so that a rank that can't
//! prepare is able to tell them. Then all compare what they must have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::meet::{self, Notice, Peers};
use super::trouble::{INTERRUPTED, PANICKED, Stage, Trouble};
use super::waiting::PAUSE;
use super::{Alone, CardRanks, Launch, Patience, Ranks, TcpRanks};
use crate::error::{Error, Result};

/// How long a rank that can't prepare waits for others to tell them.
const LINGER: Duration = Duration::from_secs(3);
/// How long is waited before that is said.
const QUIET: Duration = Duration::from_secs(1);
/// How long the meeting's thread may take to end.
const ENDING: Duration = Duration::from_secs(1);

/// What a rank that waits for others is given.
#[derive(Clone, Copy)]
pub struct Waiting<'w> {
    /// Set from outside to stop.
    pub cancel: &'w AtomicBool,
    /// Takes a line for the user.
    pub say: &'w dyn Fn(&str),
}

/// A rank that is on its way to the others.
pub struct Joining {
    launch: Launch,
    patience: Patience,
    notice: Arc<Notice>,
    /// None where there are no others, or once it is over.
    meeting: Option<JoinHandle<Result<Peers>>>,
}

impl Joining {
    /// Begins to look for the others of the launch. `stop` is set when that fails, or one of them: to go on preparing is
    /// in vain then.
    pub fn begin(launch: &Launch, patience: Patience, stop: &'static AtomicBool) -> Result<Self> {
        let notice = Arc::new(Notice::default());
        let (theirs, own) = (launch.clone(), Arc::clone(&notice));
        let meet = move || {
            let met = meet::meet(&theirs, patience, &own);
            let met = met.and_then(|peers| meet::look_after(peers, patience, &own));
            met.inspect_err(|_| stop.store(true, Ordering::SeqCst))
        };
        let meeting = (launch.count > 1).then(|| thread::Builder::new().name("ranks".to_owned()).spawn(meet));
        let failed =
            |error| Error::out_of_memory(format!("no thread can be started: {error}"), "raise the limit of threads");
        let meeting = meeting.transpose().map_err(failed)?;
        Ok(Self { launch: launch.clone(), patience, notice, meeting })
    }

    /// The processes of the launch, when all are here; `run` is a digest of what all must have in common (settings,
    /// data, model), so that two runs that were given one port can't mix.
    pub fn finish(self, run: [u8; 32], waiting: Waiting<'_>) -> Result<Box<dyn Ranks>> {
        if self.launch.count == 1 {
            return Ok(Box::new(Alone));
        }
        Ok(Box::new(CardRanks::new(self.connect(run, waiting)?)))
    }

    /// This rank can't take part: tells the others why, also those who come within a few seconds. Gives why they could
    /// not come together, if that was earlier.
    pub fn fail(mut self, why: &str) -> Option<Error> {
        self.leave(why, LINGER)
    }

    /// As [`Self::finish`], for two ranks or more.
    pub(super) fn connect(mut self, run: [u8; 32], waiting: Waiting<'_>) -> Result<TcpRanks> {
        let (start, mut said) = (Instant::now(), false);
        self.notice.claim();
        while self.meeting.as_ref().is_some_and(|meeting| !meeting.is_finished()) {
            let waits = format!("rank {} waits {}", self.launch.rank, self.notice.waits());
            if waiting.cancel.load(Ordering::SeqCst) {
                self.leave(INTERRUPTED, Duration::ZERO);
                return Err(Error::Unjoined { waits });
            }
            if !said && start.elapsed() > QUIET {
                said = true;
                let most = self.patience.meeting.as_secs_f32() / 60.0;
                (waiting.say)(&format!("{waits}, for {most} minutes at most"));
            }
            thread::sleep(PAUSE);
        }
        let met = self.meeting.take().map_or_else(|| Ok(Ok(vec![None])), JoinHandle::join);
        let Ok(met) = met else {
            return Err(Error::bug("the search for the other ranks panicked", "report this as a bug in qft"));
        };
        let mut ranks = TcpRanks::over(self.launch.rank, met?, self.patience.answer);
        ranks.compare(run, waiting)?;
        Ok(ranks)
    }

    /// The connections as they are.
    #[cfg(test)]
    pub(super) fn peers(mut self) -> Peers {
        self.notice.claim();
        self.meeting.take().unwrap().join().unwrap().unwrap()
    }

    fn leave(&mut self, why: &str, linger: Duration) -> Option<Error> {
        let meeting = self.meeting.take()?;
        let was_over = meeting.is_finished();
        self.notice.leave(why, linger);
        let deadline = Instant::now() + linger + ENDING;
        while !meeting.is_finished() && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        match meeting.is_finished().then(|| meeting.join()) {
            Some(Ok(Ok(peers))) => {
                TcpRanks::over(self.launch.rank, peers, self.patience.answer).give_up(why);
                None
            }
            Some(Ok(Err(error))) if was_over => Some(error),
            _ => None,
        }
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if thread::panicking() {
            self.leave(PANICKED, LINGER);
        }
    }
}

impl TcpRanks {
    /// Refuses to go on if a rank does something else than the others.
    fn compare(&mut self, run: [u8; 32], waiting: Waiting<'_>) -> Result<()> {
        let rank = self.rank();
        let compared = self.exchange_runs(run, waiting).map_err(|trouble| {
            if trouble == Trouble::failed(rank, INTERRUPTED) {
                let waits = format!("rank {rank} waits for other ranks that still prepare");
                return Error::Unjoined { waits };
            }
            trouble.error(self.patience(), Stage::Meeting)
        })?;
        let Some(other) = compared else {
            self.begin();
            return Ok(());
        };
        let who = if other == rank { format!("this process, rank {rank},") } else { format!("rank {other}") };
        Err(Error::invalid(
            format!("{who} trains with other settings, data or another model than rank 0"),
            "start all ranks with the same command on the same files; give each run its own MASTER_PORT (torchrun: \
             --master_port)",
        ))
    }
}
