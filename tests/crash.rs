//! Crashes and interruptions at any moment: the destination is complete or as it was, and `--resume` finishes the work.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use safetensors::Dtype;

use crate::workbench::{Bench, bf16_noise, said};

const EXPORT: &str = "export --merge-lora --base base --adapter adapter --max-shard 8MB --jobs 1";

/// A base of 64 MB in tensors of 2 MB, with an adapter on two of them.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.base(64);
    bench.adapter("adapter", 64);
    let mut tensors = bench.model("base");
    for i in 0..32 {
        let name = format!("model.layers.{i}.mlp.gate_proj.weight");
        tensors.insert(name, (Dtype::BF16, vec![1024, 1024], bf16_noise(1 << 20, i)));
    }
    bench.tensors("base/model.safetensors", &tensors);
    bench
}

fn start(bench: &Bench, line: &str) -> Child {
    let mut command = bench.command();
    command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// Waits until the export has `shards` finished shards in its journal; `false` if it ended before.
fn wait_for_shards(bench: &Bench, child: &mut Child, out: &str, shards: usize) -> bool {
    let journal = bench.path(format!(".{out}.qft-staging/qft-journal.json"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the export makes no progress");
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        if text.matches(".safetensors").count() >= shards {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn killed_at_many_points() {
    let bench = bench();
    bench.ok(&format!("{EXPORT} --out whole"));
    let whole = bench.files("whole");
    assert!(whole.len() > 8, "{:?}", whole.keys());
    let (mut killed, mut resumed) = (0, 0);
    for step in 0..24u32 {
        let resume = if step % 2 == 0 { "--resume" } else { "" };
        let mut child = start(&bench, &format!("{EXPORT} --out out {resume}"));
        // From before the first shard to after the seventh of eight or nine, and some moments later each time.
        wait_for_shards(&bench, &mut child, "out", step as usize % 8);
        std::thread::sleep(Duration::from_micros(u64::from(step / 8) * 700));
        signal(&child, "-KILL");
        let ended = child.wait().unwrap();
        let complete = bench.path("out").exists();
        killed += u32::from(!ended.success());
        if complete {
            assert!(bench.files("out") == whole, "what is published is complete");
            std::fs::remove_dir_all(bench.path("out")).unwrap();
        }
        if step % 6 == 5 {
            let done = bench.ok(&format!("{EXPORT} --out out --resume"));
            resumed += u32::from(done.out.contains("taken over"));
            assert!(bench.files("out") == whole, "after a kill at step {step}");
            std::fs::remove_dir_all(bench.path("out")).unwrap();
            assert_eq!(bench.names(), ["adapter", "base", "whole"], "nothing is left behind");
        }
    }
    assert!(killed >= 12, "only {killed} of 24 kills hit a running export");
    eprintln!("{killed} kills hit a running export, {resumed} resumed runs took over shards");
}

#[test]
fn killed_while_overwriting() {
    let bench = bench();
    bench.ok("export --base base --out out --dtype f32");
    let old = bench.files("out");
    bench.ok(&format!("{EXPORT} --out whole"));
    let new = bench.files("whole");
    for step in 0..8 {
        let mut child = start(&bench, &format!("{EXPORT} --out out --overwrite"));
        wait_for_shards(&bench, &mut child, "out", step + 1);
        signal(&child, "-KILL");
        child.wait().unwrap();
        let now = bench.files("out");
        assert!(now == old || now == new, "the destination is the old one or the new one, whole");
    }
    bench.ok(&format!("{EXPORT} --out out --overwrite"));
    assert!(bench.files("out") == new);
    assert_eq!(bench.names(), ["adapter", "base", "out", "whole"]);
}

#[test]
fn an_interrupted_run_says_so_and_can_be_resumed() {
    for name in ["-INT", "-TERM"] {
        let bench = bench();
        bench.ok(&format!("{EXPORT} --out whole"));
        let mut child = start(&bench, &format!("{EXPORT} --out out"));
        assert!(wait_for_shards(&bench, &mut child, "out", 2), "the export was over before it could be interrupted");
        signal(&child, name);
        let stopped = said(child.wait_with_output().unwrap());
        assert_eq!(stopped.code, Some(130), "{}", stopped.err);
        assert!(stopped.err.contains("the destination is unchanged"), "{}", stopped.err);
        assert!(stopped.err.contains("--resume"), "{}", stopped.err);
        assert!(!bench.path("out").exists());
        let done = bench.ok(&format!("{EXPORT} --out out --resume"));
        assert!(done.out.contains("taken over from the interrupted run"), "{}", done.out);
        assert!(bench.files("out") == bench.files("whole"));
    }
}

#[test]
fn a_resumption_that_lacks_its_card_keeps_what_is_finished() {
    let bench = bench();
    bench.ok(&format!("{EXPORT} --out whole"));
    let mut child = start(&bench, &format!("{EXPORT} --out out"));
    assert!(wait_for_shards(&bench, &mut child, "out", 2), "the export was over before it could be interrupted");
    signal(&child, "-INT");
    child.wait().unwrap();
    let staged = bench.files(".out.qft-staging");
    bench.refuses(&format!("{EXPORT} --out out --resume --device cuda:97"), &["remedy: use --device auto"]);
    assert!(bench.files(".out.qft-staging") == staged);
    let done = bench.ok(&format!("{EXPORT} --out out --resume --device simulated"));
    assert!(done.out.contains("taken over from the interrupted run"), "{}", done.out);
    assert!(bench.files("out") == bench.files("whole"));
}

#[test]
fn resume_checks_what_it_takes_over() {
    let bench = bench();
    bench.ok(&format!("{EXPORT} --out whole"));
    let stop = |bench: &Bench| {
        let mut child = start(bench, &format!("{EXPORT} --out out"));
        assert!(wait_for_shards(bench, &mut child, "out", 3));
        signal(&child, "-INT");
        child.wait().unwrap();
    };
    let staged = |bench: &Bench| -> BTreeMap<String, Vec<u8>> { bench.files(".out.qft-staging") };
    // A byte of a finished shard changes: that shard is written again.
    stop(&bench);
    let journal = String::from_utf8(staged(&bench)["qft-journal.json"].clone()).unwrap();
    let finished = journal.split('"').find(|word| word.ends_with(".safetensors")).unwrap();
    let path = format!(".out.qft-staging/{finished}");
    let mut bytes = std::fs::read(bench.path(&path)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    bench.write(&path, bytes);
    bench.ok(&format!("{EXPORT} --out out --resume"));
    assert!(bench.files("out") == bench.files("whole"));
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    // Another plan, or another adapter: nothing is taken over.
    stop(&bench);
    let other = bench.ok("export --merge-lora --base base --adapter adapter=0.5 --max-shard 8MB --out out --resume");
    assert!(!other.out.contains("taken over"), "{}", other.out);
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    stop(&bench);
    let again = bench.adapter("adapter", 64);
    assert!(!again.is_empty());
    let fresh = bench.ok(&format!("{EXPORT} --out out --resume"));
    assert!(!fresh.out.contains("taken over"), "the adapter was written anew: {}", fresh.out);
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    // Other bytes of the base in place, with the old time: as `cp -p`, an archive or an image's layer leaves them.
    stop(&bench);
    let base = bench.path("base/model.safetensors");
    let time = std::fs::metadata(&base).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&base, bytes).unwrap();
    std::fs::File::options().write(true).open(&base).unwrap().set_modified(time).unwrap();
    let fresh = bench.ok(&format!("{EXPORT} --out out --resume"));
    assert!(!fresh.out.contains("taken over"), "the base is another one: {}", fresh.out);
}

#[test]
fn two_exports_to_one_destination() {
    let bench = bench();
    let mut first = start(&bench, &format!("{EXPORT} --out out"));
    assert!(wait_for_shards(&bench, &mut first, "out", 1));
    signal(&first, "-STOP");
    bench.fails(75, &format!("{EXPORT} --out out"), &["another qft is writing to", "another destination"]);
    signal(&first, "-CONT");
    assert!(first.wait().unwrap().success());
    bench.ok("verify out");
}
