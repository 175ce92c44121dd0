//! Ranks in threads, over loopback.

mod cards;
mod meeting;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Frame, Hello, VERSION};
use super::*;

const RUN: [u8; 32] = [7; 32];
/// Nobody looks at it.
static IN_VAIN: AtomicBool = AtomicBool::new(false);
const SHORT: Patience = Patience {
    meeting: Duration::from_secs(20),
    greeting: Duration::from_secs(20),
    name: Duration::from_secs(20),
    answer: Duration::from_secs(20),
};

/// A port that nobody listens at.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn launch(rank: usize, count: usize, port: u16) -> Launch {
    Launch { rank, count, local_rank: rank, host: "127.0.0.1".to_owned(), port, ..Launch::default() }
}

/// What each of `count` ranks gives, in order; rank 0 comes last, so that the others must wait for it.
fn each<T: Send>(count: usize, work: impl Fn(usize, u16) -> T + Sync) -> Vec<T> {
    let port = port();
    thread::scope(|scope| {
        let work = &work;
        let start = |rank| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(if rank == 0 { 60 } else { 0 }));
                work(rank, port)
            })
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What each rank of a run gives.
fn ranks<T: Send>(count: usize, work: impl Fn(TcpRanks) -> T + Sync) -> Vec<T> {
    each(count, |rank, port| work(TcpRanks::join(&launch(rank, count, port), RUN, SHORT).unwrap()))
}

/// A rank's values: of many magnitudes, so that the order of addition shows.
fn values(rank: usize, len: usize) -> Vec<f32> {
    let value = |index: usize| {
        let hash = ((rank as u64) << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20;
        ((hash as u32).cast_signed() as f32) * 2f32.powi((hash >> 32) as i32 % 12 - 31)
    };
    (0..len).map(value).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// In the documented order.
fn expected(count: usize, len: usize) -> Vec<f32> {
    let mut sums = values(0, len);
    for rank in 1..count {
        sums.iter_mut().zip(values(rank, len)).for_each(|(sum, value)| *sum += value);
    }
    sums
}

#[test]
fn sums_have_the_bits_of_adding_in_the_order_of_ranks() {
    for count in 1..=5 {
        let lens = [0, 1, 7, 100_003, 2 * count * wire::SEGMENT + 1];
        let all = ranks(count, |mut ranks| {
            let sum = |len| {
                let mut mine = values(ranks.rank(), len);
                ranks.sum(&mut mine).map(|()| bits(&mine)).unwrap()
            };
            lens.map(sum)
        });
        for (index, len) in lens.into_iter().enumerate() {
            let expected = bits(&expected(count, len));
            assert!(all.iter().all(|sums| sums[index] == expected), "{len} values of {count} ranks");
        }
    }
    let backwards = values(2, 1000).into_iter().zip(values(1, 1000)).zip(values(0, 1000));
    let backwards: Vec<f32> = backwards.map(|((c, b), a)| c + b + a).collect();
    assert_ne!(bits(&backwards), bits(&expected(3, 1000)), "these values do not show the order");
}

#[test]
fn a_sum_keeps_signs_of_zeros_and_spreads_non_finite() {
    let all = ranks(3, |mut ranks| {
        let infinite = if ranks.rank() == 1 { f32::INFINITY } else { -1.0 };
        let mut values = [-0.0, infinite, if ranks.rank() == 2 { f32::NAN } else { 0.0 }];
        ranks.sum(&mut values).unwrap();
        bits(&values)
    });
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
    assert_eq!(all[0][..2], bits(&[-0.0, f32::INFINITY]));
    assert!(f32::from_bits(all[0][2]).is_nan());
}

#[test]
fn numbers_flags_and_barriers_reach_all() {
    let numbers = |rank: usize| [0.1 * rank as f64 + 1e10, (rank as f64 - 1.5).exp2()];
    let all = ranks(4, |mut ranks| {
        let rank = ranks.rank();
        let sums = ranks.sum_numbers(numbers(rank)).unwrap();
        let flags = [false, rank == 3, rank == 0, true].map(|flag| ranks.any(flag).unwrap());
        let before = Instant::now();
        thread::sleep(Duration::from_millis(40 * rank as u64));
        ranks.barrier().unwrap();
        (sums.map(f64::to_bits), flags, before.elapsed())
    });
    let sums = (1..4).fold(numbers(0), |[a, b], rank| [a + numbers(rank)[0], b + numbers(rank)[1]]);
    for (found, flags, waited) in all {
        assert_eq!(found, sums.map(f64::to_bits));
        assert_eq!(flags, [false, true, true, true]);
        assert!(waited >= Duration::from_millis(100), "{waited:?}");
    }
}

#[test]
fn all_ranks_end_when_one_dies_and_name_it() {
    let start = Instant::now();
    let messages = ranks(4, |mut ranks| {
        if ranks.rank() == 2 {
            return String::new();
        }
        let error = ranks.sum_numbers([1.0, 2.0]).unwrap_err().to_string();
        assert_eq!(ranks.sum(&mut [1.0]).unwrap_err().to_string(), error, "once broken, it stays so");
        error
    });
    assert!(start.elapsed() < SHORT.answer);
    for (rank, message) in messages.iter().enumerate().filter(|(rank, _)| *rank != 2) {
        assert!(message.contains("rank 2 has ended"), "{message}");
        assert_eq!(message.contains("as rank 0 saw"), rank != 0, "{message}");
        assert!(message.contains("⟦resume_from_checkpoint"), "{message}");
    }
}

#[test]
fn all_ranks_end_when_one_dies_amid_a_sum() {
    let messages = ranks(3, |mut ranks| {
        let mut mine = values(ranks.rank(), 3_000_000);
        if ranks.rank() == 1 {
            // It announces its values and sends few of them.
            for stream in ranks.streams() {
                let frame = Frame { kind: Some(wire::Kind::Sum), number: 1, len: mine.len() as u64 };
                (&*stream).write_all(&frame.bytes()).unwrap();
                wire::send_values(stream, &mine[..1000]).unwrap();
            }
            return String::new();
        }
        ranks.sum(&mut mine).unwrap_err().to_string()
    });
    assert!(messages[0].contains("has ended") && messages[2].contains("has ended"), "{messages:?}");
}

#[test]
fn a_silent_rank_is_named_when_patience_ends() {
    let patience = Patience { answer: Duration::from_millis(300), ..SHORT };
    let messages = each(3, |rank, port| {
        let mut ranks = TcpRanks::join(&launch(rank, 3, port), RUN, patience).unwrap();
        if rank == 1 {
            thread::sleep(Duration::from_millis(900));
            return "rank 1 has sent nothing".to_owned();
        }
        ranks.barrier().unwrap_err().to_string()
    });
    // Rank 2 may lose patience with rank 0 before rank 0 can tell it of rank 1.
    assert!(messages[0].contains("rank 1 has sent nothing"), "{messages:?}");
    assert!(messages[2].contains("has sent nothing") || messages[2].contains("has ended"), "{messages:?}");
}

#[test]
fn ranks_that_do_different_things_are_told_so() {
    let messages = ranks(2, |mut ranks| {
        let mut values = vec![1.0; 10 + ranks.rank()];
        ranks.sum(&mut values).unwrap_err().to_string()
    });
    for (rank, message) in messages.iter().enumerate() {
        let out_of_step = format!("a sum of values of length {}, this rank at", 11 - rank);
        let told = format!("rank {rank} is out of step");
        assert!([&out_of_step, "has ended", &told].iter().any(|end| message.contains(*end)), "{message}");
    }
    assert!(messages.iter().any(|message| message.contains("out of step")), "{messages:?}");
}

/// A rank's own failure, and a panic, are told to the others with their cause.
#[test]
fn a_rank_that_fails_is_named_with_its_cause() {
    let causes = [("cannot write checkpoint-20: no space left", false), ("it panicked", true)];
    for (cause, panics) in causes {
        let start = Instant::now();
        let errors = each(3, |rank, port| {
            let mut ranks = TcpRanks::join(&launch(rank, 3, port), RUN, SHORT).unwrap();
            ranks.barrier().unwrap();
            if rank != 1 {
                return ranks.sum(&mut values(rank, 100_000)).unwrap_err().to_string();
            }
            if panics {
                let panicked = thread::spawn(move || {
                    let _ranks = ranks;
                    std::panic::resume_unwind(Box::new(()));
                });
                assert!(panicked.join().is_err());
            } else {
                ranks.give_up(cause);
            }
            String::new()
        });
        for rank in [0, 2] {
            assert!(
                errors[rank].contains("can't go on: rank 1 has failed: ") && errors[rank].contains(cause),
                "{errors:?}"
            );
            assert!(errors[rank].contains("⟦resume_from_checkpoint true⟧"), "{errors:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn one_process_needs_nobody() {
    let waiting = Waiting { cancel: &AtomicBool::new(true), say: &|line| panic!("{line}") };
    let mut ranks = Joining::begin(&Launch::default(), SHORT, &IN_VAIN).unwrap().finish(RUN, waiting).unwrap();
    let mut values = [1.0, -0.0];
    ranks.sum(&mut values).unwrap();
    ranks.barrier().unwrap();
    assert_eq!((bits(&values), ranks.any(true).unwrap()), (bits(&[1.0, -0.0]), true));
    assert_eq!((ranks.count(), ranks.sum_numbers([2.0, 3.0]).unwrap()), (1, [2.0, 3.0]));
}

/// `cargo test --release ranks::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout)]
fn speed() {
    const LEN: usize = 20_000_000;
    for count in [2, 4] {
        let seconds = ranks(count, |mut ranks| {
            let mut mine = values(ranks.rank(), LEN);
            ranks.sum(&mut mine).unwrap();
            let start = Instant::now();
            for _ in 0..5 {
                ranks.sum(&mut mine).unwrap();
            }
            start.elapsed().as_secs_f64() / 5.0
        });
        let slowest = seconds.into_iter().fold(0.0, f64::max);
        println!("{count} ranks: {slowest:.3} s for {LEN} values, {:.0} MB/s", LEN as f64 * 4e-6 / slowest);
    }
}
