//! How ranks come together: what other programs, mistakes, failures and signals do to that, each with a bound in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use super::*;
use crate::error::Error;

#[test]
fn runs_that_differ_do_not_mix() {
    type Change = fn(&mut Launch, &mut [u8; 32]);
    let start = Instant::now();
    let cases: [(&str, Change); 3] = [
        ("other settings, data or another model", |_, run| run[31] = 1),
        ("another WORLD_SIZE", |launch, _| launch.count = 3),
        ("a rank that is already connected", |launch, _| launch.rank = 0),
    ];
    for (problem, change) in cases {
        let port = port();
        let (mut strange, mut run) = (launch(1, 2, port), RUN);
        change(&mut strange, &mut run);
        thread::scope(|scope| {
            let first = scope.spawn(|| TcpRanks::join(&launch(0, 2, port), RUN, SHORT).unwrap_err().to_string());
            let other = if strange.rank == 0 {
                let hello = Hello { version: VERSION, count: 2, rank: 0, port: 1, token: 0 };
                say(port, &hello.bytes());
                String::new()
            } else {
                TcpRanks::join(&strange, run, SHORT).unwrap_err().to_string()
            };
            let first = first.join().unwrap();
            assert!(first.contains(problem) && first.contains("MASTER_PORT"), "{first}");
            assert!(other.is_empty() || other.contains(problem) && other.contains("MASTER_PORT"), "{other}");
        });
    }
    assert!(start.elapsed() < SHORT.meeting, "nobody waits for the missing rank");
}

/// Says something to a port, once somebody listens there, and reads what comes until the end.
fn say(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) if stream.local_addr().unwrap().port() != port => break stream,
            _ => thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn strangers_are_turned_away() {
    let port = port();
    thread::scope(|scope| {
        let join = |rank| move || TcpRanks::join(&launch(rank, 2, port), RUN, SHORT).map(|ranks| ranks.rank());
        let first = scope.spawn(join(0));
        assert!(say(port, &[b'x'; 100]).is_empty());
        let second = scope.spawn(join(1));
        assert_eq!(first.join().unwrap().unwrap(), 0);
        assert_eq!(second.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn ranks_come_back_if_rank_0_was_not_there_yet() {
    let port = port();
    let before = TcpListener::bind(("127.0.0.1", port)).unwrap();
    thread::scope(|scope| {
        let join = |rank| {
            move || {
                let mut ranks = TcpRanks::join(&launch(rank, 3, port), RUN, SHORT).unwrap();
                ranks.sum_numbers([rank as f64, 1.0]).unwrap().map(f64::to_bits)
            }
        };
        let others = [scope.spawn(join(1)), scope.spawn(join(2))];
        for _ in 0..2 {
            drop(before.accept().unwrap());
        }
        drop(before);
        let sums = [3f64.to_bits(); 2];
        assert_eq!(join(0)(), sums);
        assert!(others.into_iter().all(|other| other.join().unwrap() == sums));
    });
}

#[test]
fn waiting_for_those_who_do_not_come_ends() {
    let patience = Patience { meeting: Duration::from_millis(200), ..SHORT };
    let first = TcpRanks::join(&launch(0, 3, port()), RUN, patience).unwrap_err().to_string();
    assert!(first.contains("these ranks have not connected: 1, 2"), "{first}");
    let other = TcpRanks::join(&launch(1, 3, port()), RUN, patience).unwrap_err().to_string();
    assert!(other.contains("rank 1 did not reach rank 0 at 127.0.0.1:"), "{other}");
}

#[test]
fn what_is_no_qft_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            let _ = stream.read(&mut [0; Hello::LEN]);
        });
        let error = TcpRanks::join(&launch(1, 2, port), RUN, SHORT).unwrap_err().to_string();
        assert!(error.contains("is not a qft") && error.contains("MASTER_PORT"), "{error}");
        let error = TcpRanks::join(&launch(0, 2, port), RUN, SHORT).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("MASTER_PORT"), "{error}");
    });
}

/// A rank's end, with the time that it took.
fn ended(launch: &Launch, patience: Patience) -> (String, Duration) {
    let start = Instant::now();
    let error = TcpRanks::join(launch, RUN, patience).unwrap_err();
    (error.to_string(), start.elapsed())
}

/// Unknown programs of all kinds, until the channel is closed: some say nothing, some trickle, some hang up.
fn pester(port: u16, until: &mpsc::Receiver<()>) {
    let mut held = Vec::new();
    let mut turn = 0usize;
    while until.try_recv() == Err(mpsc::TryRecvError::Empty) {
        turn += 1;
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            if turn.is_multiple_of(3) {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
            } else if held.len() < 200 {
                held.push(stream);
            }
        }
        // Each begins as a greeting does, a byte at a time.
        let byte = b"qftrank?"[turn / 10 % 8];
        held.iter_mut().step_by(2).for_each(|stream| drop(stream.write_all(&[byte])));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn strangers_who_trickle_or_say_nothing_keep_nobody_waiting() {
    let port = port();
    let (end, until) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let join = |rank| move || TcpRanks::join(&launch(rank, 3, port), RUN, SHORT).map(|ranks| ranks.rank());
        let first = scope.spawn(join(0));
        scope.spawn(move || pester(port, &until));
        thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        let others = [scope.spawn(join(1)), scope.spawn(join(2))];
        assert_eq!(first.join().unwrap().unwrap(), 0);
        assert!(others.into_iter().all(|other| other.join().unwrap().is_ok()));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        drop(end);
    });
}

#[test]
fn the_deadline_holds_whoever_calls() {
    let port = port();
    let (end, until) = mpsc::channel::<()>();
    let patience = Patience { meeting: Duration::from_millis(600), ..SHORT };
    thread::scope(|scope| {
        scope.spawn(move || pester(port, &until));
        let (error, took) = ended(&launch(0, 2, port), patience);
        drop(end);
        assert!(error.contains("these ranks have not connected: 1"), "{error}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

#[test]
fn a_listener_that_says_nothing_is_no_rank_0() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let patience = Patience { greeting: Duration::from_millis(300), ..SHORT };
    let (error, took) = ended(&launch(1, 2, port), patience);
    assert!(error.contains("has sent nothing for 0.3 s") && error.contains("MASTER_PORT"), "{error}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Nor does one that trickles what rank 0 would say.
    thread::scope(|scope| {
        scope.spawn(|| {
            // The caller from above has hung up.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            for byte in b"qftrank!" {
                let _ = stream.write_all(&[*byte]);
                thread::sleep(Duration::from_millis(100));
            }
        });
        let (error, took) = ended(&launch(1, 2, port), patience);
        assert!(error.contains("does not answer as rank 0") && took < Duration::from_secs(3), "{error} {took:?}");
    });
}

#[test]
fn a_name_that_nobody_knows_ends_the_search_for_it() {
    let patience = Patience { name: Duration::from_millis(200), ..SHORT };
    for rank in [0, 1] {
        let launch = Launch { host: "rank0.invalid".to_owned(), ..launch(rank, 2, port()) };
        let (error, took) = ended(&launch, patience);
        assert!(error.contains("does not find MASTER_ADDR rank0.invalid"), "{error}");
        assert!(error.contains("remedy: set MASTER_ADDR") && took < Duration::from_secs(15), "{error} {took:?}");
    }
}

/// One of three can't prepare, before, while or after the others look for each other.
#[test]
fn a_rank_that_can_not_prepare_tells_the_others() {
    for (failing, late) in [(0, 0), (0, 400), (1, 0), (2, 400)] {
        let start = Instant::now();
        let errors = each(3, |rank, port| {
            let joining = Joining::begin(&launch(rank, 3, port), SHORT, &IN_VAIN).unwrap();
            if rank == failing {
                thread::sleep(Duration::from_millis(late));
                joining.fail("data.jsonl: \u{1b}[2J is no row");
                return None;
            }
            let never = AtomicBool::new(false);
            Some(joining.connect(RUN, Waiting { cancel: &never, say: &|_| () }).unwrap_err().to_string())
        });
        for error in errors.iter().flatten() {
            let named = format!("can't begin: rank {failing} has failed: data.jsonl: \\u{{1b}}[2J is no row");
            assert!(error.contains(&named) && error.contains("start all ranks again"), "{failing} {late}: {error}");
            assert!(!error.contains("⟦resume_from_checkpoint"), "there is nothing to resume: {error}");
        }
        assert!(start.elapsed() < Duration::from_secs(6), "{failing} {late}: {:?}", start.elapsed());
    }
}

/// A rank that still prepares need not go on where another has failed or died.
#[test]
fn what_is_in_vain_is_stopped() {
    static STOP: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
    for (stop, dies) in STOP.iter().zip([false, true]) {
        let port = port();
        let start = Instant::now();
        let error = thread::scope(|scope| {
            let other = scope.spawn(move || {
                let joining = Joining::begin(&launch(1, 2, port), SHORT, &IN_VAIN).unwrap();
                thread::sleep(Duration::from_millis(300));
                if dies {
                    drop(TcpRanks::over(1, joining.peers(), SHORT.answer));
                } else {
                    drop(joining.fail("no rows"));
                }
            });
            let joining = Joining::begin(&launch(0, 2, port), SHORT, stop).unwrap();
            while !stop.load(Ordering::SeqCst) {
                assert!(start.elapsed() < Duration::from_secs(5), "it prepares in vain");
                thread::sleep(Duration::from_millis(5));
            }
            other.join().unwrap();
            joining.fail("interrupted").unwrap().to_string()
        });
        let named = if dies { "can't begin: rank 1 has ended" } else { "can't begin: rank 1 has failed: no rows" };
        assert!(error.contains(named), "{error}");
    }
}

/// Rank 0 is gone when the others come: they wait for it no longer than it lingers.
#[test]
fn ranks_that_come_late_hear_why_rank_0_has_gone() {
    let port = port();
    thread::scope(|scope| {
        scope.spawn(|| Joining::begin(&launch(0, 2, port), SHORT, &IN_VAIN).unwrap().fail("no space"));
        thread::sleep(Duration::from_millis(700));
        let (error, took) = ended(&launch(1, 2, port), SHORT);
        assert!(error.contains("rank 0 has failed: no space") && took < Duration::from_secs(2), "{error} {took:?}");
    });
}

#[test]
fn a_rank_that_left_before_all_had_come_is_named() {
    let port = port();
    thread::scope(|scope| {
        let first = scope.spawn(move || ended(&launch(0, 3, port), SHORT));
        let hello = Hello { version: VERSION, count: 3, rank: 2, port: 1, token: 0 };
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) if stream.local_addr().unwrap().port() != port => break stream,
                _ => thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.write_all(&hello.bytes()).unwrap();
        stream.read_exact(&mut [0; 24]).unwrap();
        drop(stream);
        let (error, took) = first.join().unwrap();
        assert!(error.contains("rank 2 has ended") && took < Duration::from_secs(3), "{error} {took:?}");
    });
}

/// Wherever a rank waits, it says so once, and a signal ends it; the others hear of it.
#[test]
fn a_signal_ends_a_rank_that_waits() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().port();
    let free = port();
    let cases = [
        (launch(0, 3, free), format!("rank 0 waits at 127.0.0.1:{free} for 2 of 3 ranks (missing: 1, 2)")),
        (launch(1, 2, free), format!("rank 1 waits for rank 0 at 127.0.0.1:{free} (127.0.0.1:{free}: ")),
        (launch(1, 2, silent), format!("rank 1 waits for an answer of the program that listens at 127.0.0.1:{silent}")),
    ];
    for (launch, waits) in cases {
        let (cancel, said) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let start = Instant::now();
        let say = |line: &str| {
            said.lock().unwrap().push(line.to_owned());
            cancel.store(true, Ordering::SeqCst);
        };
        let joining = Joining::begin(&launch, SHORT, &IN_VAIN).unwrap();
        let error = joining.connect(RUN, Waiting { cancel: &cancel, say: &say }).unwrap_err();
        assert!(matches!(error, Error::Unjoined { .. }), "{error}");
        assert!(error.to_string().contains(&format!("interrupted while {waits}")), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let said = said.into_inner().unwrap();
        assert!(said.len() == 1 && said[0].starts_with(&waits) && said[0].contains(" minutes at most"), "{said:?}");
    }
}

#[test]
fn a_signal_ends_a_rank_that_waits_for_those_that_prepare() {
    let start = Instant::now();
    let errors = each(2, |rank, port| {
        let joining = Joining::begin(&launch(rank, 2, port), SHORT, &IN_VAIN).unwrap();
        let cancel = AtomicBool::new(rank == 1);
        thread::sleep(Duration::from_millis(if rank == 1 { 400 } else { 1000 }));
        let joined = joining.connect(RUN, Waiting { cancel: &cancel, say: &|_| () });
        // Rank 0 may have had all that it asks for.
        joined.and_then(|mut ranks| ranks.barrier()).unwrap_err().to_string()
    });
    assert!(errors[0].contains("rank 1 has failed: it was interrupted"), "{errors:?}");
    assert!(errors[1].contains("interrupted while rank 1 waits"), "{errors:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}
