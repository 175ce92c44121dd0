//! Training with two processes over loopback: the same factors on each, and what one process with all of the data gives.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{env, fs};

use qft::checkpoint::Checkpoint;
use qft::train::data::{Batch, Sample};
use qft::train::engine::CpuEngine;
use qft::train::guard::{Guard, GuardCounts};
use qft::train::lora::LoraSpec;
use qft::train::model::{Keep, Model, Spec};
use qft::train::ranks::{Alone, Launch, Ranks, join};
use qft::train::trainer::{Recipe, State, Trainer};

const STEPS: usize = 6;
/// Tells a process that it is a rank: where its factors go.
const OUT: &str = "QFT_TEST_RANK_OUT";
/// The step after which it ends without a word.
const DIES: &str = "QFT_TEST_RANK_DIES";

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
    let (layout, groups) = spec.layout(LoraSpec { rank: 4, scale: 2.0, magnitudes: false }, |_| true);
    let engine = CpuEngine::new();
    let model = Model::load(&engine, &base, &spec, groups, 64, &mut |_| {})?;
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
    }
    Ok((figures, trainer.state()?.parameters))
}

/// Not a test of its own: what each process of the tests below does.
#[test]
fn a_rank() {
    let Some(out) = env::var_os(OUT) else { return };
    let dies = env::var(DIES).ok().map(|step| step.parse().unwrap());
    let trained = join(&Launch::from_env().unwrap(), || [3; 32]).and_then(|mut ranks| train(&mut *ranks, dies));
    match trained {
        Ok((figures, factors)) => {
            let figures = figures.into_iter().flatten().flat_map(f64::to_le_bytes);
            let bytes: Vec<u8> = figures.chain(factors.into_iter().flat_map(f32::to_le_bytes)).collect();
            fs::write(out, bytes).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
}

fn start(rank: usize, port: u16, dies: Option<usize>, out: &Path) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "train_ranks::a_rank", "--nocapture"]).env(OUT, out);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
    command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
    command.env_remove("TORCHELASTIC_USE_AGENT_STORE").env_remove(DIES);
    command.envs(dies.map(|step| (DIES, step.to_string())));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Two ranks, the second of which may die: what each says, and where each writes.
fn two(dies: Option<usize>, dir: &Path) -> [(Output, PathBuf); 2] {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
    assert!(said.contains("--resume_from_checkpoint true"), "{said}");
    assert!(!out.exists());
}
