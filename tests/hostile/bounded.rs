//! Runs commands beside each other and watches what they take: for input of strangers, which is to end in bounded time
//! and memory.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::workbench::{Bench, Said};

/// Plans a training on the scene that [`trainee`] makes.
pub(super) const TRAIN: &str =
    "train --model base --dataset data.jsonl --device cpu --max_steps 1 --split_dataset_ratio 0 --dry-run";

/// A model that can be trained, and a row of data: what is asked and answered.
pub(super) fn trainee(asked: &str, answered: &str) -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "qwen2");
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    bench.write("data.jsonl", json!({"messages": [said("user", asked), said("assistant", answered)]}).to_string());
    bench
}

/// Most memory that a command may hold, in MB.
pub(super) const MEMORY: u64 = 1000;
/// Longest time, whatever else this machine does.
const TIME: Duration = Duration::from_secs(60);
/// Commands at a time.
const AT_ONCE: usize = 4;

/// What a command said, and the most memory that it held, in MB.
struct Watched {
    said: Said,
    peak: u64,
}

/// Lets a command run to its end, or ends it when it has taken too much.
fn watch(mut child: Child) -> Watched {
    let status = format!("/proc/{}/status", child.id());
    let mut pipes = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |pipe: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(|| read(&mut pipes.0));
        let err = scope.spawn(|| read(&mut pipes.1));
        let (started, mut peak) = (Instant::now(), 0);
        let code = loop {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let held =
                text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
            peak = held.unwrap_or(0_u64).max(peak);
            if let Some(ended) = child.try_wait().unwrap() {
                break ended.code();
            }
            if started.elapsed() > TIME || peak > 4 * MEMORY * 1000 {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = Said { code, out: out.join().unwrap(), err: err.join().unwrap() };
        Watched { said, peak: peak / 1000 }
    })
}

/// One thing that a stranger might give: its name, how it is put in place of the good one, and what the message has to
/// mention; nothing if the command may also succeed.
pub(super) struct Kind {
    pub(super) name: String,
    pub(super) put: Box<dyn Fn(&Bench) + Send + Sync>,
    pub(super) mentions: &'static str,
}

/// Runs `line` on each of `kinds`, every one in a bench that `make` made. Exit code 1 with a reason and a remedy, or 0
/// where that is allowed; no panic, no end by a signal, and no more memory and time than is right.
pub(super) fn all_end(make: impl Fn() -> Bench + Sync, line: &str, kinds: &[Kind]) {
    let (next, wrong) = (Mutex::new(kinds.iter()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(Kind { name, put, mentions }) = next.lock().unwrap().next() else { return };
            let bench = make();
            put(&bench);
            let mut command = bench.command();
            command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let Watched { said: Said { code, out, err }, peak } = watch(command.spawn().unwrap());
            let said = format!("{out}{err}");
            let ends = code == Some(1) && err.contains("remedy: ") || code == Some(0) && mentions.is_empty();
            if !ends || peak > MEMORY || said.contains("panicked") || said.contains('\x1b') || !said.contains(mentions)
            {
                let said = said.get(..said.floor_char_boundary(600)).unwrap_or_default().to_owned();
                wrong.lock().unwrap().push(format!("{name}: exit {code:?}, {peak} MB, not {mentions:?}: {said}"));
            }
        }
    };
    std::thread::scope(|scope| {
        (0..AT_ONCE).for_each(|_| {
            scope.spawn(work);
        });
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
}
