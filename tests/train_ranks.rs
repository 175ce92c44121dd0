//! Training with two processes over loopback: the same factors on each, and what one process with all of the data gives.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use std::{env, fs};

use qft::arch::Spec;
use qft::checkpoint::Checkpoint;
use qft::engine::Batch;
use qft::engine::CpuEngine;
use qft::model::{Keep, Model};
use qft::ranks::{Alone, Joining, Launch, Patience, Ranks, Waiting};
use qft::train::data::Sample;
use qft::train::guard::{Guard, GuardCounts};
use qft::train::lora::{Layout, LoraSpec};
use qft::train::trainer::{Recipe, State, Trainer};

use crate::train::{RUN, bench};
use crate::train_resume::{signal, wait_for_lines};
use crate::workbench::{Bench, Said, said};

const STEPS: usize = 6;
/// Tells a process that it is a rank: where its factors go.
const OUT: &str = "QFT_TEST_RANK_OUT";
/// The step after which it ends without a word.
const DIES: &str = "QFT_TEST_RANK_DIES";
/// The step after which it stops until a signal wakes it.
const HANGS: &str = "QFT_TEST_RANK_HANGS";
/// How long answers are waited for, in seconds.
const PATIENCE: u64 = 5;

fn number(seed: u64) -> u64 {
    (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

fn batch(step: usize, micro_batch: usize) -> Batch {
    let sample = |len: u64| {
        let ids: Vec<u32> = (0..len).map(|i| number(i + 1000 * (2 * step + micro_batch) as u64) as u32 % 40).collect();
        let weights = (0..len).map(|i| if i < 3 { 0.0 } else { 1.0 }).collect();
        Sample { ids, weights }
    };
    // Ranks have different numbers of tokens.
    Batch::new(&[sample(9 + 4 * micro_batch as u64), sample(5)])
}

/// Losses and norms of each step, and the factors in the end.
fn train(ranks: &mut dyn Ranks, dies: Option<usize>) -> qft::Result<(Vec<[f64; 2]>, Vec<f32>)> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/train/peft/llama/base");
    let base = Checkpoint::open(&base)?;
    let spec = Spec::read(&base)?;
    let (layout, adapters) = Layout::of(&spec, LoraSpec { rank: 4, scale: 2.0, magnitudes: false }, |_| true);
    let engine = CpuEngine::new();
    let model = Model::load(&engine, &base, &spec, &adapters, 64, &mut |_| {})?;
    let factors = (0..layout.len as u64).map(|i| number(i) as f32 / (1u64 << 31) as f32 * 0.1 - 0.05).collect();
    let (beta1, beta2) = (0.9, 0.95);
    let recipe = Recipe { dropout: 0.1, seed: 5, beta1, beta2, epsilon: 1e-8, decay: 0.01, keep: Keep::All };
    let mut trainer = Trainer::new(&engine, model, layout, recipe, &State::new(factors))?;
    let mut guard = Guard::new(1.0, GuardCounts::default());
    let mut figures = Vec::new();
    for step in 0..STEPS {
        let own = (0..2).filter(|micro_batch| ranks.count() == 1 || *micro_batch == ranks.rank());
        let batches: Vec<Batch> = own.map(|micro_batch| batch(step, micro_batch)).collect();
        let done = trainer.step(&batches, 1e-3, &mut guard, ranks)?;
        figures.push([done.loss, done.grad_norm]);
        if dies == Some(step) {
            std::process::exit(9);
        }
        if env::var(HANGS).is_ok_and(|hangs| hangs == step.to_string()) {
            let pid = std::process::id().to_string();
            assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
        }
    }
    Ok((figures, trainer.state()?.parameters))
}

/// What each process of the tests below does.
#[test]
#[ignore = "no test: the tests beside it start it as a process"]
fn a_rank() {
    let Some(out) = env::var_os(OUT) else { return };
    let dies = env::var(DIES).ok().map(|step| step.parse().unwrap());
    let patience = Patience { answer: Duration::from_secs(PATIENCE), ..Patience::default() };
    let waiting = Waiting { cancel: &AtomicBool::new(false), say: &|line| eprintln!("{line}") };
    static IN_VAIN: AtomicBool = AtomicBool::new(false);
    let joined = Joining::begin(&Launch::from_env().unwrap(), patience, &IN_VAIN).unwrap().finish([3; 32], waiting);
    let trained = joined.and_then(|mut ranks| train(&mut *ranks, dies));
    match trained {
        Ok((figures, factors)) => {
            let figures = figures.into_iter().flatten().flat_map(f64::to_le_bytes);
            let bytes: Vec<u8> = figures.chain(factors.into_iter().flat_map(f32::to_le_bytes)).collect();
            fs::write(out, bytes).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(rank: usize, port: u16, dies: Option<usize>, out: &Path) -> Child {
    rank_command(rank, port, dies, out).spawn().unwrap()
}

fn rank_command(rank: usize, port: u16, dies: Option<usize>, out: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "train_ranks::a_rank", "--nocapture"]).env(OUT, out);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
    command.env_remove("TORCHELASTIC_USE_AGENT_STORE").env_remove(DIES);
    command.envs(dies.map(|step| (DIES, step.to_string())));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Two ranks, the second of which may die: what each says, and where each writes.
fn two(dies: Option<usize>, dir: &Path) -> [(Output, PathBuf); 2] {
    let port = free_port();
    let out = |rank| dir.join(format!("rank-{rank}"));
    let second = start(1, port, dies, &out(1));
    let first = start(0, port, None, &out(0));
    [(first.wait_with_output().unwrap(), out(0)), (second.wait_with_output().unwrap(), out(1))]
}

#[test]
fn two_processes_train_as_one_with_all_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let both = two(None, dir.path()).map(|(output, out)| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(out).unwrap()
    });
    assert!(both[0] == both[1], "the ranks' losses or factors differ");
    let (figures, factors) = train(&mut Alone, None).unwrap();
    let (ours, parameters) = both[0].split_at(STEPS * 16);
    let ours = ours.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
    let error = ours.zip(figures.iter().flatten()).map(|(ours, alone)| (ours / alone - 1.0).abs()).fold(0.0, f64::max);
    let parameters = parameters.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let apart = parameters.zip(&factors).map(|(ours, alone)| (ours - alone).abs()).fold(0.0, f32::max);
    println!("losses and norms differ by {error:.1e}, factors by {apart:.1e}");
    assert!(error < 1e-5 && apart < 1e-4, "{error} {apart}");
    assert!(figures[STEPS - 1][0] != figures[0][0]);
}

#[test]
fn a_process_ends_with_the_name_of_the_one_that_died() {
    let dir = tempfile::tempdir().unwrap();
    let [(first, out), (second, _)] = two(Some(2), dir.path());
    assert_eq!(second.status.code(), Some(9));
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(!first.status.success() && said.contains("rank 1 has ended"), "{said}");
    assert!(said.contains("⟦resume_from_checkpoint true⟧"), "{said}");
    assert!(!out.exists());
}

/// Its connections stay open; nothing comes through them.
#[test]
fn a_process_that_hangs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut second = rank_command(1, port, None, &dir.path().join("rank-1")).env(HANGS, "2").spawn().unwrap();
    let start_of_first = Instant::now();
    let first = said(start(0, port, None, &dir.path().join("rank-0")).wait_with_output().unwrap());
    let took = start_of_first.elapsed();
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(first.err.contains("rank 1 has sent nothing for 5 s"), "{}", first.err);
    assert!(took < Duration::from_secs(PATIENCE + 30), "{took:?}");
}

/// `qft train` as rank `rank` of two.
fn qft(bench: &Bench, rank: usize, host: &str, port: u16, line: &str) -> Child {
    let mut command = bench.command();
    let rank = rank.to_string();
    command.envs([("RANK", rank.as_str()), ("LOCAL_RANK", &rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", host)]);
    command.env("MASTER_PORT", port.to_string()).args(line.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the process says until it ends, which must be within `seconds`.
fn ends_within(child: Child, seconds: u64) -> Said {
    let (pid, start) = (child.id().to_string(), Instant::now());
    let waits = std::thread::spawn(move || said(child.wait_with_output().unwrap()));
    while !waits.is_finished() {
        if start.elapsed() > Duration::from_secs(seconds) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
            panic!("it has not ended in {seconds} s: {:?}", waits.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    waits.join().unwrap()
}

/// Waits for a line on standard error that holds `text`, and gives what was said so far, with the rest to come.
fn hear(child: &mut Child, text: &str) -> std::thread::JoinHandle<String> {
    use std::io::{BufRead, BufReader};
    let (sender, receiver) = std::sync::mpsc::channel();
    let (lines, text) = (BufReader::new(child.stderr.take().unwrap()).lines(), text.to_owned());
    let all = std::thread::spawn(move || {
        let mut all = String::new();
        for line in lines.map_while(Result::ok) {
            all.push_str(&line);
            all.push('\n');
            if line.contains(&text) {
                let _ = sender.send(());
            }
        }
        all
    });
    let heard = receiver.recv_timeout(Duration::from_secs(60));
    assert!(heard.is_ok(), "{:?}", all.is_finished().then(|| all.join()));
    all
}

#[test]
fn the_first_signal_ends_a_rank_that_waits_for_the_others() {
    let bench = bench("qwen2");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().port();
    let line = format!("{RUN} --out out");
    let free = free_port();
    let cases = [
        (0, free, "-TERM", format!("rank 0 waits at 127.0.0.1:{free} for 1 of 2 ranks (missing: 1)")),
        (1, free, "-INT", format!("rank 1 waits for rank 0 at 127.0.0.1:{free}")),
        (1, silent, "-TERM", format!("rank 1 waits for an answer of the program that listens at 127.0.0.1:{silent}")),
    ];
    for (rank, port, name, waits) in cases {
        let mut child = qft(&bench, rank, "127.0.0.1", port, &line);
        let all = hear(&mut child, &waits);
        signal(&child, name);
        let (start, ended) = (Instant::now(), ends_within(child, 10));
        let (took, all) = (start.elapsed(), all.join().unwrap());
        assert_eq!(ended.code, Some(130), "{all}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert!(all.contains(&format!("interrupted while {waits}")), "{all}");
        assert_eq!(all.matches("minutes at most").count(), 1, "it is said once: {all}");
    }
    let runs = fs::read_dir(bench.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(runs.collect::<Vec<_>>(), ["tokens"], "nothing was trained");
}

/// One can't read its data: the other, which was ready long ago, ends too, with the reason.
#[test]
fn a_rank_that_fails_ends_the_others_with_its_reason() {
    for failing in [0, 1] {
        let bench = bench("qwen2");
        let port = free_port();
        let lines =
            [0, 1].map(|rank| if rank == failing { RUN.replace("data.jsonl", "none.jsonl") } else { RUN.to_owned() });
        let children = [0, 1].map(|rank| qft(&bench, rank, "127.0.0.1", port, &format!("{} --out out", lines[rank])));
        let said = children.map(|child| ends_within(child, 30));
        assert!(said.iter().all(|said| said.code == Some(1)), "{said:?}");
        let (own, other) = (&said[failing].err, &said[1 - failing].err);
        assert!(own.contains("none.jsonl") && !own.contains("the ranks"), "{own}");
        assert!(other.contains(&format!("rank {failing} has failed: ")) && other.contains("none.jsonl"), "{other}");
    }
}

#[test]
fn a_rank_that_is_killed_amid_training_ends_the_other() {
    let bench = bench("qwen2");
    let port = free_port();
    let line = format!("{} --out out", RUN.replace("_epochs 2", "_epochs 200"));
    let second = qft(&bench, 1, "127.0.0.1", port, &line);
    let mut first = qft(&bench, 0, "127.0.0.1", port, &line);
    assert!(wait_for_lines(&bench, &mut first, "out", 2), "{:?}", said(first.wait_with_output().unwrap()));
    signal(&second, "-KILL");
    let first = ends_within(first, 20);
    assert_eq!(first.code, Some(75), "{}", first.err);
    assert!(first.err.contains("the ranks can't go on: rank 1 has ended"), "{}", first.err);
    ends_within(second, 5);
}

/// A stranger who holds the port says nothing: both ranks find out by themselves.
#[test]
fn a_port_that_is_taken_is_told_by_both() {
    let bench = bench("qwen2");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = format!("{RUN} --out out");
    let children = [0, 1].map(|rank| qft(&bench, rank, "127.0.0.1", port, &line));
    let [first, second] = children.map(|child| ends_within(child, 60));
    assert!(
        first.code == Some(75) && first.err.contains("in use") && first.err.contains("MASTER_PORT"),
        "{}",
        first.err
    );
    assert_eq!(second.code, Some(1), "{}", second.err);
    assert!(
        second.err.contains("it has sent nothing for 30 s") && second.err.contains("MASTER_PORT"),
        "{}",
        second.err
    );
}
