//! All-reduce on GPUs: the rules around NCCL over a stand-in for it that sums in this process's memory, the real
//! library's refusal where there is no GPU, and the real sum where there are two.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::super::*;
use super::{SHORT, bits, each, expected, launch, ranks, values};
use crate::error::Error;
use crate::gpu::nccl::{Config, Functions, NOT_READY, UniqueId};
use crate::gpu::{Cards, Queue};

/// A communicator of the stand-in.
struct Fake {
    run: [u8; UniqueId::LEN],
    rank: usize,
    count: usize,
}

/// Values of ranks, by run and rank.
type Given = HashMap<([u8; UniqueId::LEN], usize), Vec<f32>>;

/// What ranks have given.
static GIVEN: Mutex<Option<Given>> = Mutex::new(None);
static CAME: Condvar = Condvar::new();
/// What a rank does that has no values to give; and a stream that is never done.
const BROKEN: usize = 1;
const STUCK: usize = 2;

unsafe extern "C" fn make_id(id: *mut UniqueId) -> c_int {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the caller's struct.
    unsafe { *id = UniqueId([next; UniqueId::LEN]) };
    0
}

unsafe extern "C" fn init(handle: *mut *mut c_void, count: c_int, id: UniqueId, rank: c_int, _: *mut Config) -> c_int {
    let fake = Fake { run: id.0, rank: rank.cast_unsigned() as usize, count: count.cast_unsigned() as usize };
    // SAFETY: the caller's pointer.
    unsafe { *handle = Box::into_raw(Box::new(fake)).cast() };
    7
}

unsafe extern "C" fn init_unless_last(
    handle: *mut *mut c_void,
    count: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> c_int {
    // SAFETY: as above.
    if rank == count - 1 { 5 } else { unsafe { init(handle, count, id, rank, config) } }
}

unsafe extern "C" fn all_reduce(
    from: *const c_void,
    to: *mut c_void,
    len: usize,
    kind: c_int,
    operation: c_int,
    handle: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    assert_eq!((from, kind, operation), (to.cast_const(), 7, 0));
    if stream.addr() == BROKEN {
        return 1;
    }
    if stream.addr() == STUCK {
        return 0;
    }
    // SAFETY: the handle is one of `init`, and the test's values are as many.
    let (fake, values) = unsafe { (&*handle.cast::<Fake>(), std::slice::from_raw_parts_mut(to.cast::<f32>(), len)) };
    let mut given = GIVEN.lock().unwrap();
    given.get_or_insert_default().insert((fake.run, fake.rank), values.to_vec());
    CAME.notify_all();
    let all = |given: &Option<Given>| {
        (0..fake.count).map(|rank| given.as_ref()?.get(&(fake.run, rank)).cloned()).collect::<Option<Vec<_>>>()
    };
    while all(&given).is_none() {
        given = CAME.wait(given).unwrap();
    }
    values.fill(-0.0);
    for theirs in all(&given).unwrap() {
        values.iter_mut().zip(theirs).for_each(|(value, theirs)| *value += theirs);
    }
    0
}

unsafe extern "C" fn async_error(_: *mut c_void, state: *mut c_int) -> c_int {
    // SAFETY: the caller's number.
    unsafe { *state = 0 };
    0
}

unsafe extern "C" fn abort(handle: *mut c_void) -> c_int {
    // SAFETY: the handle is one of `init`.
    drop(unsafe { Box::from_raw(handle.cast::<Fake>()) });
    0
}

unsafe extern "C" fn error_string(status: c_int) -> *const c_char {
    if status == 1 { c"unhandled cuda error".as_ptr() } else { c"invalid usage".as_ptr() }
}

unsafe extern "C" fn last_error(_: *mut c_void) -> *const c_char {
    c"Duplicate GPU detected".as_ptr()
}

unsafe extern "C" fn query(stream: *mut c_void) -> c_int {
    if stream.addr() == STUCK { NOT_READY } else { 0 }
}

#[allow(clippy::unnecessary_wraps)]
fn fake() -> Result<Functions, String> {
    Ok(Functions { version: 23_007, make_id, init, all_reduce, async_error, abort, error_string, last_error, query })
}

fn stream(number: usize) -> *mut c_void {
    ptr::without_provenance_mut(number)
}

/// The error of a sum of ten values, or their sums.
fn sum(ranks: &mut CardRanks, stream: *mut c_void) -> Result<Vec<u32>, String> {
    let mut mine = values(ranks.rank(), 10);
    let address = mine.as_mut_ptr().expose_provenance() as u64;
    let card = ranks.on_card().unwrap().unwrap();
    // SAFETY: the stand-in sums in memory.
    unsafe { card.sum(address, 10, stream) }.map(|()| bits(&mine)).map_err(|error| error.to_string())
}

#[test]
fn cards_are_connected_once_and_sum() {
    let sums = ranks(3, |tcp| {
        let mut ranks = CardRanks::with(tcp, fake);
        assert_eq!(ranks.transport(), "TCP");
        assert!(ranks.on_card().unwrap().is_some());
        assert_eq!(ranks.transport(), "NCCL 2.30.7");
        let sums = sum(&mut ranks, stream(0)).unwrap();
        ranks.barrier().unwrap();
        sums
    });
    assert!(sums.iter().all(|sums| *sums == bits(&expected(3, 10))));
}

#[test]
fn all_sum_by_tcp_if_one_lacks_nccl_or_can_not_connect() {
    let missing = || Err("libnccl.so.2 was not found".to_owned());
    let last_fails = || fake().map(|fake| Functions { init: init_unless_last, ..fake });
    for (case, why, elsewhere) in [
        (0, "libnccl.so.2 was not found", "missing on another rank"),
        (1, "ncclCommInitRankConfig says: invalid usage: Duplicate GPU detected", "failed on another rank"),
    ] {
        let notes = ranks(3, |tcp| {
            let load = match (case, tcp.rank()) {
                (0, 2) => missing,
                (0, _) => fake,
                _ => last_fails,
            };
            let mut ranks = CardRanks::with(tcp, load);
            assert!(ranks.on_card().unwrap().is_none());
            assert!(ranks.on_card().unwrap().is_none(), "it is not tried again");
            let mut mine = values(ranks.rank(), 10);
            Ranks::sum(&mut ranks, &mut mine).unwrap();
            assert_eq!(bits(&mine), bits(&expected(3, 10)));
            ranks.transport()
        });
        assert!(notes[0].contains(elsewhere) && notes[1].contains(elsewhere), "{notes:?}");
        assert!(notes[2].starts_with("TCP (") && notes[2].contains(why), "{notes:?}");
    }
}

#[test]
fn a_sum_on_cards_ends_when_a_rank_dies() {
    let start = Instant::now();
    let messages = ranks(3, |tcp| {
        let mut ranks = CardRanks::with(tcp, fake);
        let rank = ranks.rank();
        assert!(ranks.on_card().unwrap().is_some());
        if rank == 2 {
            thread::sleep(Duration::from_millis(150));
            return sum(&mut ranks, stream(BROKEN)).unwrap_err();
        }
        sum(&mut ranks, stream(STUCK)).unwrap_err()
    });
    assert!(start.elapsed() < SHORT.answer);
    assert!(
        messages[2].contains("rank 2 could not all-reduce") && messages[2].contains("unhandled cuda"),
        "{messages:?}"
    );
    let told = |message: &String| message.contains("rank 2 has failed: it could not all-reduce gradients on its GPU");
    assert!(messages[..2].iter().any(told), "{messages:?}");
    assert!(messages[..2].iter().all(|message| told(message) || message.contains("has ended")), "{messages:?}");
}

#[test]
#[allow(clippy::print_stdout)]
fn nccl_sums_on_two_cards_with_the_same_bits() {
    const LEN: usize = 20_000_003;
    if Cards::count() < 2 {
        println!("skipped: fewer than two GPUs");
        return;
    }
    if let Err(why) = Functions::load() {
        println!("skipped: {why}");
        return;
    }
    let sums = each(2, |rank, port| {
        let queue = Queue::open(rank, &[], |failure| Error::bug(failure.to_string(), "")).unwrap();
        let (mine, stream) = (queue.upload(&values(rank, LEN)).unwrap(), queue.stream().handle());
        queue.bind().unwrap();
        let mut ranks = CardRanks::new(TcpRanks::join(&launch(rank, 2, port), [7; 32], SHORT).unwrap());
        let card = ranks.on_card().unwrap().map(|card| {
            // SAFETY: the values and the stream are of this thread's GPU, and alive.
            unsafe { card.sum(mine.address(), LEN, stream) }.unwrap();
            let first = bits(&queue.read(&mine, LEN).unwrap());
            let start = Instant::now();
            // SAFETY: as above.
            unsafe { card.sum(mine.address(), LEN, stream) }.unwrap();
            (first, start.elapsed())
        });
        println!("rank {rank}: {}", ranks.transport());
        card.unwrap()
    });
    println!("{LEN} values in {:?}", sums[0].1);
    assert!(sums[0].0 == sums[1].0, "the ranks differ");
    assert!(sums[0].0 == bits(&expected(2, LEN)), "two values have one sum");
}
