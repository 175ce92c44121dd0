//! Kills at every system call that changes the disk, and calls that fail there: what is left is the old state, the new
//! one, or one that the same command finishes. A sample of the points; all with `cargo xtask crash`.

mod jobs;
mod tracer;
mod training;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime};

use self::jobs::{Job, Step};
use self::tracer::{Blow, Call, NotPermitted, Point};
use crate::workbench::Bench;

/// Everything below a directory: path to content. Directories end with a slash.
type Tree = BTreeMap<String, Vec<u8>>;
/// When each file was written.
type Times = BTreeMap<String, SystemTime>;

/// Where jobs write. All else on the bench are their inputs.
const MADE: &str = "made";

/// What a kill or a failure left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Old,
    New,
    /// The new one, beside what the next run clears away.
    Leftovers,
    /// The same command finishes it, with `--resume` and without.
    Resumable,
}

/// How the points of one kind of calls ended.
struct Row {
    call: Call,
    blow: Blow,
    states: Vec<State>,
}

/// What became of a job.
struct Outcome {
    rows: Vec<Row>,
    defects: Vec<String>,
}

/// Whether every point is tried, and not a sample.
fn all() -> bool {
    std::env::var_os("QFT_CRASH").is_some_and(|value| value == "all")
}

/// Tries a job at each point: `attempt` says what was left, or `None` if the run did not come so far. `counts` are those
/// of a run that nothing disturbed.
fn at_each_point(
    name: &str,
    counts: [usize; 6],
    blows: &[Blow],
    mut attempt: impl FnMut(&Point) -> Option<Result<State, String>>,
) -> Outcome {
    let mut outcome = Outcome { rows: Vec::new(), defects: Vec::new() };
    // Of a sample, one point of each kind, not the same for each job.
    let spread = name.bytes().map(usize::from).sum::<usize>();
    for (kind, call) in Call::ALL.into_iter().enumerate() {
        let mut blows: Vec<Blow> = blows.iter().copied().filter(|blow| fits(call, *blow)).collect();
        let mut numbers = 1..=2 * counts[kind] + 20;
        if !all() {
            blows = vec![blows[(spread + kind) % blows.len()]];
            // The last renames put everything in place.
            let of = if call == Call::Rename { counts[kind].min(8) } else { counts[kind] };
            let number = counts[kind] - (7 * spread + 5 * kind) % of.max(1);
            numbers = number..=number;
        }
        for blow in blows {
            let mut row = Row { call, blow, states: Vec::new() };
            for number in numbers.clone() {
                let point = Point { call, number, blow };
                match attempt(&point) {
                    None => break,
                    Some(Ok(state)) => row.states.push(state),
                    Some(Err(defect)) => outcome.defects.push(format!("{name}, {point:?}: {defect}")),
                }
            }
            outcome.rows.push(row);
        }
    }
    outcome
}

/// Whether a blow at such a call says more than others do.
fn fits(call: Call, blow: Blow) -> bool {
    match blow {
        Blow::Before | Blow::Fails => true,
        Blow::Breaks => matches!(call, Call::Rename | Call::Sync | Call::Unlink),
        Blow::After => matches!(call, Call::Rename | Call::Unlink | Call::Mkdir),
        Blow::Torn => call == Call::Write,
    }
}

/// Prints what became of a job, in all or a row a kind of calls, and panics if there is a defect.
fn tell(name: &str, started: Instant, outcome: &Outcome) {
    let line = |what: &str, states: &[State]| {
        let of = |state| states.iter().filter(|s| **s == state).count();
        let (old, new, leftovers) = (of(State::Old), of(State::New), of(State::Leftovers));
        let (points, resumable) = (states.len(), of(State::Resumable));
        format!(
            "{name:<36}{what:<16}{points:>4} points: {old:>3} old, {new:>3} new, {leftovers:>2} new with leftovers, \
             {resumable:>3} resumable"
        )
    };
    let mut text = String::new();
    for Row { call, blow, states } in outcome.rows.iter().filter(|_| all()) {
        text += &(line(&format!("{call:?} {blow:?}").to_lowercase(), states) + "\n");
    }
    let states: Vec<State> = outcome.rows.iter().flat_map(|row| &row.states).copied().collect();
    let faults = outcome.rows.iter().any(|row| matches!(row.blow, Blow::Fails | Blow::Breaks));
    let what = if faults { "faults" } else { "kills" };
    // At once: others print as well.
    eprintln!("{text}{}, {:.1} s", line(what, &states), started.elapsed().as_secs_f64());
    assert!(outcome.defects.is_empty(), "{} defects\n{}", outcome.defects.len(), outcome.defects.join("\n"));
    assert!(!states.is_empty(), "no point was hit");
}

/// A job on its bench, before it is run.
struct Scene {
    job: &'static Job,
    bench: Bench,
    old: Tree,
    new: Tree,
}

/// Tries jobs at points of these blows, each to its end; a defect of one does not hide those of the others.
fn try_all(jobs: &'static [Job], blows: &[Blow]) {
    let mut defects = Vec::new();
    for job in jobs {
        let started = Instant::now();
        let (scene, counts) = match Scene::new(job) {
            Ok(made) => made,
            Err(NotPermitted(why)) => return eprintln!("skipped: this machine lets no process be traced ({why})"),
        };
        let outcome = at_each_point(job.name, counts, blows, |point| scene.attempt(point));
        let told = std::panic::catch_unwind(|| tell(job.name, started, &outcome));
        defects.extend(told.is_err().then_some(job.name));
    }
    assert!(defects.is_empty(), "see above: {defects:?}");
}

impl Scene {
    /// Makes the inputs and the old state, and runs the job once without a disturbance.
    fn new(job: &'static Job) -> Result<(Self, [usize; 6]), NotPermitted> {
        let bench = (job.scene)();
        fs::create_dir_all(bench.path(MADE)).unwrap();
        for step in job.before {
            match step {
                Step::Run(line) => drop(bench.ok(line)),
                Step::Killed(line, call, number) => {
                    let point = Point { call: *call, number: *number, blow: Blow::Before };
                    assert!(run(&bench, line, Some(&point), false)?.hit, "{line} was over before it could be killed");
                }
            }
        }
        let old = tree(&bench.path(MADE));
        let whole = run(&bench, job.line, None, job.plain_renames)?;
        assert_eq!(whole.code, Some(0), "qft {}\n{}", job.line, whole.err);
        let new = tree(&bench.path(MADE));
        assert!(new != old && new.keys().all(|name| !name.starts_with('.')), "{:?}", new.keys());
        Ok((Self { job, bench, old, new }, whole.counts))
    }

    /// Runs the job to `point`, and judges what is left.
    fn attempt(&self, point: &Point) -> Option<Result<State, String>> {
        let made = self.bench.path(MADE);
        restore(&made, &self.old);
        let ended = run(&self.bench, self.job.line, Some(point), self.job.plain_renames).unwrap();
        let now = tree(&made);
        let times = times(&made, &now);
        if !ended.hit {
            let is_whole = ended.code == Some(0) && now == self.new;
            return (!is_whole).then(|| Err(format!("undisturbed, and not whole: {}", ended.err)));
        }
        let told = match ended.code {
            None => Ok(()),
            Some(code) => self.told(code, &ended.err, &now),
        };
        Some(told.and_then(|()| self.judge(&now, &times)))
    }

    /// What a run whose call failed said must be so.
    fn told(&self, code: i32, err: &str, now: &Tree) -> Result<(), String> {
        let (is_old, is_new) = (visible(now) == visible(&self.old), visible(now) == visible(&self.new));
        let in_place = err.contains("is complete and in place");
        let half = err.contains("neither the old");
        let fits = match code {
            0 => now == &self.new,
            1 if in_place => is_new && !err.contains("untouched"),
            1 if half => !err.contains("untouched"),
            1 => is_old,
            _ => false,
        };
        // A hidden directory that stays is named.
        let named =
            now.keys().all(|name| !name.starts_with('.') || self.old.contains_key(name)) || err.contains(".qft-");
        if fits && named {
            return Ok(());
        }
        Err(format!("exit code {code}, old: {is_old}, new: {is_new}, left {}, but it said: {err}", names(now)))
    }

    fn judge(&self, now: &Tree, times: &Times) -> Result<State, String> {
        if now == &self.old {
            return Ok(State::Old);
        }
        if now == &self.new {
            return Ok(State::New);
        }
        let (is_old, is_new) = (visible(now) == visible(&self.old), visible(now) == visible(&self.new));
        if !(is_old || is_new || self.job.parts) {
            return Err(format!("the destination is neither the old nor the new: {}", names(now)));
        }
        self.check_that_halves_are_seen(now)?;
        if is_new {
            let overwrite = if self.job.line.contains("--overwrite") { "" } else { " --overwrite" };
            return self.finishes(now, times, &format!("{}{overwrite}", self.job.line)).map(|()| State::Leftovers);
        }
        let again = self.job.line.replace(" --resume", "");
        self.finishes(now, times, &format!("{again} --resume"))?;
        self.finishes(now, times, &again).map(|()| State::Resumable)
    }

    /// From `now`, the command `line` ends with the new state and nothing beside it.
    fn finishes(&self, now: &Tree, times: &Times, line: &str) -> Result<(), String> {
        let made = self.bench.path(MADE);
        restore(&made, now);
        for (name, time) in times {
            fs::File::options().write(true).open(made.join(name)).unwrap().set_modified(*time).unwrap();
        }
        let (code, err) = if self.job.plain_renames {
            let ended = run(&self.bench, line, None, true).unwrap();
            (ended.code, ended.err)
        } else {
            let said = self.bench.qft(line);
            (said.code, said.err)
        };
        let then = tree(&made);
        if code == Some(0) && then == self.new {
            return Ok(());
        }
        let same = then.iter().filter(|(name, bytes)| self.new.get(*name) == Some(bytes)).count();
        Err(format!(
            "from {}\n  qft {line} ended with {code:?}, {same} of {} files right, and left {}\n  {err}",
            names(now),
            self.new.len(),
            names(&then)
        ))
    }

    /// `qft verify` finds nothing wrong with a directory or a GGUF file only if it is the old one or the new one, whole.
    fn check_that_halves_are_seen(&self, now: &Tree) -> Result<(), String> {
        let wholes = [&self.old, &self.new];
        let clean = |path: &str| self.bench.qft(&format!("verify {MADE}/{path}")).code == Some(0);
        for dir in directories(now) {
            let inside = below(now, dir);
            let is_whole = wholes.iter().any(|whole| directories(whole).any(|d| below(whole, d) == inside));
            if !is_whole && clean(dir) {
                return Err(format!("verify takes {dir} for clean: {:?}", inside.keys()));
            }
        }
        let whole_models: Vec<Tree> = wholes.iter().flat_map(|whole| models(whole).into_values()).collect();
        for ((dir, _), files) in models(now).into_iter().filter(|(_, files)| !whole_models.contains(files)) {
            if let Some(file) = files.keys().map(|file| format!("{dir}{file}")).find(|file| clean(file)) {
                return Err(format!("verify takes {file} for clean among {}", names(now)));
            }
        }
        Ok(())
    }
}

/// The GGUF files of a tree that are one model by their names, by their directory and what their names share.
fn models(tree: &Tree) -> BTreeMap<(String, String), Tree> {
    let mut models: BTreeMap<_, Tree> = BTreeMap::new();
    for (path, bytes) in tree.iter().filter(|(path, _)| path.ends_with(".gguf")) {
        let (dir, name) = path.split_at(path.rfind('/').map_or(0, |at| at + 1));
        let shared = match name.split_once("-of-") {
            Some((part, count)) => format!("{}{count}", &part[..part.len() - 5]),
            None => name.to_owned(),
        };
        models.entry((dir.to_owned(), shared)).or_default().insert(name.to_owned(), bytes.clone());
    }
    models
}

fn run(bench: &Bench, line: &str, point: Option<&Point>, plain_renames: bool) -> Result<tracer::Ended, NotPermitted> {
    let mut command = bench.command();
    command.args(line.split_whitespace());
    tracer::run(&command, point, plain_renames)
}

fn tree(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                tree.insert(name + "/", Vec::new());
                pending.push(entry.path());
            } else {
                tree.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    tree
}

fn restore(dir: &Path, tree: &Tree) {
    fs::remove_dir_all(dir).unwrap();
    fs::create_dir(dir).unwrap();
    for (name, bytes) in tree {
        if name.ends_with('/') {
            fs::create_dir_all(dir.join(name)).unwrap();
        } else {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

fn times(dir: &Path, tree: &Tree) -> Times {
    let files = tree.keys().filter(|name| !name.ends_with('/'));
    files.map(|name| (name.clone(), fs::metadata(dir.join(name)).unwrap().modified().unwrap())).collect()
}

/// What of a tree a user meets: what is hidden at its top is qft's.
fn visible(tree: &Tree) -> Tree {
    tree.iter().filter(|(name, _)| !name.starts_with('.')).map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
}

/// The directories at the top of a tree.
fn directories(tree: &Tree) -> impl Iterator<Item = &str> {
    tree.keys().filter(|name| name.matches('/').count() == 1).filter_map(|name| name.strip_suffix('/'))
}

/// What a directory of a tree holds.
fn below<'t>(tree: &'t Tree, dir: &str) -> BTreeMap<&'t str, &'t Vec<u8>> {
    let inside = tree.iter().filter_map(|(name, bytes)| Some((name.strip_prefix(dir)?.strip_prefix('/')?, bytes)));
    inside.filter(|(name, _)| !name.is_empty()).collect()
}

fn names(tree: &Tree) -> String {
    format!("{:?}", tree.iter().map(|(name, bytes)| format!("{name} {}", bytes.len())).collect::<Vec<_>>())
}
