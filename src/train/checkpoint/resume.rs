//! Reading a checkpoint back: every tensor held against the layout, every setting against what is asked now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::adapter::load_factors;
use super::runs::{checkpoint_dir, run_of, step_of, steps};
use super::state::{Progress, SchedulerState, layout_digest};
use super::tensors::Source;
use super::write::{Record, moment_entries};
use super::{ARGS, OPTIMIZER, PROGRESS, SCHEDULER, TRAINER_STATE, member};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Place, newest_checkpoint};
use crate::checkpoint::member_if_there;
use crate::digest::{Hex, sha256};
use crate::error::{Error, Result, escaped, quoted, shown};
use crate::files::{Mapping, read_text};
use crate::train::lora::Layout;
use crate::train::settings::Settings;

/// The moments of the optimizer, laid out as the parameters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// Of the gradient.
    pub first: Vec<f32>,
    /// Of its square.
    pub second: Vec<f32>,
}

/// A checkpoint that a run goes on from.
#[derive(Debug, Clone, PartialEq)]
pub struct Resume {
    /// Its directory.
    pub dir: PathBuf,
    /// Factors and magnitudes.
    pub parameters: Vec<f32>,
    /// The optimizer's state.
    pub moments: Moments,
    /// Where the run stands.
    pub progress: Progress,
    /// The schedule that it followed.
    pub scheduler: SchedulerState,
    /// Records of its log.
    pub history: Vec<Map<String, Value>>,
    /// Settings that differ, so that the losses won't be those of a run that was not interrupted.
    pub notes: Vec<String>,
}

/// Whether a setting may differ when a run is resumed.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// Never: the factors have its form.
    Same,
    /// Only where no more than the factors is taken.
    Drawn,
    /// Only with `--ignore_data_skip`.
    Data,
    /// It is noted.
    Noted,
}

/// The settings that a run's losses depend on. What the data is, is told by its fingerprint; which modules have
/// factors, by the layout.
const RULES: [(&str, Rule); 21] = [
    ("use_rslora", Rule::Same),
    ("use_dora", Rule::Same),
    ("lora_rank", Rule::Same),
    ("lora_alpha", Rule::Same),
    ("seed", Rule::Drawn),
    ("data_seed", Rule::Data),
    ("packing", Rule::Data),
    ("per_device_train_batch_size", Rule::Data),
    ("model", Rule::Noted),
    ("lora_dropout", Rule::Noted),
    ("learning_rate", Rule::Noted),
    ("weight_decay", Rule::Noted),
    ("adam_beta1", Rule::Noted),
    ("adam_beta2", Rule::Noted),
    ("adam_epsilon", Rule::Noted),
    ("max_grad_norm", Rule::Noted),
    ("lr_scheduler_type", Rule::Noted),
    ("warmup_ratio", Rule::Noted),
    ("warmup_steps", Rule::Noted),
    ("num_train_epochs", Rule::Noted),
    ("max_steps", Rule::Noted),
];

/// What the fingerprint of the data is made of.
const TOKENS: &str = "the data, or a setting of its tokens (⟦max_length⟧, ⟦truncation_strategy⟧, ⟦loss_scale⟧, \
                      ⟦system⟧, the model's template),";
const DAMAGED: &str = "choose an earlier checkpoint: this one is damaged, or was not written by qft";
const NO_STATE: &str = "take its factors only with ⟦resume_only_model true⟧, or name another checkpoint";

impl Resume {
    /// Reads the checkpoint in `dir` for a run of `settings` and `layout`. Of `now`, where that run would begin, the
    /// data's fingerprint, ranks and micro-batches of a step are compared.
    pub fn open(dir: &Path, settings: &Settings, layout: &Layout, now: &Progress) -> Result<Self> {
        let Some(optimizer) = member_if_there(dir, OPTIMIZER)? else {
            let problem = format!("{} holds no {OPTIMIZER}, so it can't be resumed", shown(dir));
            return Err(Error::not_found(problem, NO_STATE));
        };
        let path = member(dir, PROGRESS, NO_STATE)?;
        let mut record: Record = parse(&path)?;
        if let Some(problem) = record.progress.problem() {
            return Err(Error::malformed(&path, problem, DAMAGED));
        }
        let args: Map<String, Value> = parse(&member(dir, ARGS, NO_STATE)?)?;
        let mut notes = compare_settings(dir, &Settings::from_args_json(&args)?, settings)?;
        // Checkpoints of before hold none.
        let base = &record.progress.base_fingerprint;
        if !base.is_empty() && *base != now.base_fingerprint {
            return Err(Error::invalid(
                format!("{} was trained on other weights than those of the base", shown(dir)),
                "give the base that it was trained on with ⟦model⟧, or take its factors only with \
                 ⟦resume_only_model true⟧",
            ));
        }
        compare_data(dir, &record.progress, now, settings.ignore_data_skip, &mut notes)?;
        if record.layout != layout_digest(layout) {
            return Err(Error::invalid(
                format!("{} was written for other modules than those of this run", shown(dir)),
                "give the ⟦model⟧, ⟦target_modules⟧ and ⟦target_regex⟧ of its args.json",
            ));
        }
        check_digests(dir, &record.digests)?;
        let parameters = load_factors(dir, layout)?;
        notes.extend(branch(dir, &mut record.progress)?);
        let state_path = member(dir, TRAINER_STATE, NO_STATE)?;
        let mut state: Map<String, Value> = parse(&state_path)?;
        let Some(Ok(history)) = state.remove("log_history").map(serde_json::from_value) else {
            return Err(Error::malformed(&state_path, "log_history is not a list of records", DAMAGED));
        };
        Ok(Self {
            dir: dir.to_owned(),
            moments: moments(&optimizer, layout)?,
            parameters,
            progress: record.progress,
            scheduler: parse(&member(dir, SCHEDULER, NO_STATE)?)?,
            history,
            notes,
        })
    }
}

/// Refuses files of tensors that are not what was written: a flipped bit in a factor looks like any other factor.
fn check_digests(dir: &Path, digests: &BTreeMap<String, Hex>) -> Result<()> {
    for name in [ADAPTER_WEIGHTS, OPTIMIZER] {
        // Whoever reads a file that is missing says so.
        let (Some(digest), Some(path)) = (digests.get(name), member_if_there(dir, name)?) else { continue };
        if sha256(Mapping::open(&path)?.bytes()) == *digest {
            continue;
        }
        let remedy = match earlier(dir)? {
            Some(earlier) => format!("resume from the one before it: ⟦resume_from_checkpoint {}⟧", quoted(&earlier)),
            None => "train from the start: the run has no earlier checkpoint".to_owned(),
        };
        let problem = format!("was damaged: its SHA-256 is not the one in {PROGRESS}");
        return Err(Error::malformed(&path, problem, remedy));
    }
    Ok(())
}

/// The last checkpoint of the run before this one that can be resumed.
fn earlier(dir: &Path) -> Result<Option<PathBuf>> {
    let run = run_of(dir)?;
    let own = step_of(&dir.canonicalize().unwrap_or_else(|_| dir.to_owned()));
    let before = steps(&run).into_iter().filter(|step| own.is_some_and(|own| *step < own));
    let mut dirs = before.map(|step| checkpoint_dir(&run, step));
    let whole = |dir: &PathBuf| [OPTIMIZER, PROGRESS, ADAPTER_WEIGHTS].iter().all(|name| dir.join(name).is_file());
    Ok(dirs.rfind(whole))
}

/// Where the run has checkpoints after this one, they are another branch's from here on: what is new is told from
/// them by the branch's number. Gives a note.
fn branch(dir: &Path, progress: &mut Progress) -> Result<Option<String>> {
    let run = run_of(dir)?;
    let all = steps(&run);
    let later: Vec<u64> = all.iter().copied().filter(|step| *step > progress.global_step).collect();
    let (Some(first), Some(last)) = (later.first(), later.last()) else { return Ok(None) };
    let highest = all.iter().map(|step| Place::of(&checkpoint_dir(&run, *step)).branch).max();
    progress.branch = highest.unwrap_or(0).saturating_add(1);
    progress.branched_at = progress.global_step;
    let which = if first == last { format!("checkpoint-{first}") } else { format!("checkpoint-{first} to -{last}") };
    Ok(Some(format!(
        "{which} of {}: abandoned, since the run was resumed at step {}, and no longer the newest; ⟦save_total_limit⟧ \
         deletes these first",
        shown(&run),
        progress.global_step
    )))
}

fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::malformed(path, escaped(&e.to_string()), DAMAGED))
}

fn moments(path: &Path, layout: &Layout) -> Result<Moments> {
    let entries = moment_entries(layout.len);
    let source = Source::open(path, &entries, &|_| DAMAGED.to_owned())?;
    if source.metadata.get("layout") != Some(&layout_digest(layout)) {
        return Err(Error::malformed(path, "its moments are of other parameters", DAMAGED));
    }
    let mut first = vec![0.0; layout.len * 2];
    source.read(path, &entries, &mut first)?;
    let second = first.split_off(layout.len);
    if second.iter().any(|value| *value < 0.0) {
        return Err(Error::malformed(path, "a second moment is below zero", DAMAGED));
    }
    Ok(Moments { first, second })
}

fn compare_settings(dir: &Path, then: &Settings, now: &Settings) -> Result<Vec<String>> {
    let (then, ours) = (then.args_json(), now.args_json());
    let mut notes = Vec::new();
    for (name, rule) in RULES {
        let values = [&then, &ours].map(|args| args.get(name).unwrap_or(&Value::Null).to_string());
        if values[0] == values[1] {
            continue;
        }
        let [was, is] = values.map(|value| escaped(&value));
        if rule != Rule::Noted && !(rule == Rule::Data && now.ignore_data_skip) {
            let remedy = match rule {
                Rule::Data => {
                    format!("give ⟦{name} {was}⟧, or start at the beginning of the data with ⟦ignore_data_skip true⟧")
                }
                Rule::Drawn => format!("give ⟦{name} {was}⟧, or take the factors only with ⟦resume_only_model true⟧"),
                _ => format!("give ⟦{name} {was}⟧"),
            };
            return Err(Error::invalid(format!("{} was trained with {name} {was}, not {is}", shown(dir)), remedy));
        }
        notes.push(format!("{name} was {was} and is now {is}"));
    }
    Ok(notes)
}

fn compare_data(dir: &Path, then: &Progress, now: &Progress, anew: bool, notes: &mut Vec<String>) -> Result<()> {
    let rows = [
        (TOKENS, then.data_fingerprint.clone(), now.data_fingerprint.clone()),
        ("the number of rows", then.epoch_len.to_string(), now.epoch_len.to_string()),
        ("the number of ranks", then.world.to_string(), now.world.to_string()),
        ("gradient_accumulation_steps", then.accumulation.to_string(), now.accumulation.to_string()),
    ];
    for (what, was, is) in rows.into_iter().filter(|(_, was, is)| was != is) {
        let [was, is] = [was, is].map(|text| escaped(&text.chars().take(16).collect::<String>()));
        if !anew {
            return Err(Error::invalid(
                format!("{what} was {was} when {} was written, and is {is}", shown(dir)),
                "resume with the same data and settings, or start at the beginning of the data with \
                 ⟦ignore_data_skip true⟧",
            ));
        }
        notes.push(format!("{what} was {was} and is now {is}"));
    }
    Ok(())
}

/// The checkpoint that `--resume_from_checkpoint` means: a checkpoint, the newest of a run, or, for `true`, of the
/// newest run below `output`.
pub fn find_resumed(spec: &str, output: &Path) -> Result<PathBuf> {
    find(
        spec,
        output,
        "name a checkpoint with ⟦resume_from_checkpoint⟧, or the ⟦output_dir⟧ of its run, or train from the start",
    )
}

fn find(spec: &str, output: &Path, remedy: &'static str) -> Result<PathBuf> {
    let dir = if spec == "true" { output } else { Path::new(spec) };
    if spec != "true" && member_if_there(dir, ADAPTER_CONFIG)?.is_some() {
        return Ok(dir.to_owned());
    }
    newest_checkpoint(dir).map_err(|error| match error {
        Error::Failed { kind, problem, .. } => Error::new(kind, problem, remedy),
        other => other,
    })
}

/// The adapter that a run begins with, not going on from it: `--adapters`, or `--resume_only_model`'s checkpoint.
pub fn find_adapter(settings: &Settings) -> Result<Option<PathBuf>> {
    match (&settings.resume_from_checkpoint, settings.adapters.first()) {
        (Some(spec), _) if settings.resume_only_model => find_resumed(spec, &settings.output_dir()).map(Some),
        (_, Some(dir)) => {
            // A directory may be called true.
            let path = Path::new(dir).join("");
            find(&path.to_string_lossy(), &path, "name the adapter's directory or Hub id with ⟦adapters⟧").map(Some)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::write::tests::Case;
    use super::*;

    #[test]
    fn damaged_checkpoints_are_refused_by_file() {
        let run = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let dir = case.write(run.path());
        let whole: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e != "md"))
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        assert_eq!(whole.len(), 7);
        for (path, bytes) in &whole {
            let name = path.file_name().unwrap().to_str().unwrap();
            for cut in [0, 1, bytes.len() / 2, bytes.len() - 2] {
                fs::write(path, &bytes[..cut]).unwrap();
                let error = case.resume(&dir).unwrap_err().to_string();
                assert!(error.contains(name), "{name} cut to {cut}: {error}");
            }
            fs::remove_file(path).unwrap();
            let error = case.resume(&dir).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("remedy"), "{error}");
            fs::write(path, bytes).unwrap();
            // In settings and counts, a flipped bit may go unseen; it must not end in a panic.
            for at in (0..bytes.len()).step_by(bytes.len().div_ceil(97)) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x20;
                fs::write(path, &flipped).unwrap();
                let resumed = case.resume(&dir);
                if name.ends_with(".safetensors") {
                    let error = resumed.unwrap_err().to_string();
                    assert!(error.contains(name) && error.contains("train from the start"), "{name} at {at}: {error}");
                }
            }
            fs::write(path, bytes).unwrap();
        }
        assert!(case.resume(&dir).is_ok());
    }

    #[test]
    fn a_damaged_checkpoint_names_the_one_before() {
        let run = tempfile::tempdir().unwrap();
        let mut case = Case::new(false);
        for step in [3, 7, 20] {
            case.progress.global_step = step;
            (case.progress.optimizer_steps, case.progress.best_step) = (step, None);
            case.write(run.path());
        }
        // One that lacks its optimizer can't be gone on from.
        fs::remove_file(run.path().join("checkpoint-7").join(OPTIMIZER)).unwrap();
        let dir = run.path().join("checkpoint-20");
        let weights = dir.join(ADAPTER_WEIGHTS);
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let error = case.resume(&dir).unwrap_err().to_string();
        let remedy = format!("⟦resume_from_checkpoint {}⟧", run.path().join("checkpoint-3").display());
        assert!(error.contains("adapter_model.safetensors: was damaged") && error.contains(&remedy), "{error}");
        // A checkpoint of before has no digests.
        let state = dir.join(PROGRESS);
        let mut record: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
        assert_eq!(record.remove("digests").unwrap().as_object().unwrap().len(), 2);
        fs::write(&state, Value::from(record).to_string()).unwrap();
        assert!(case.resume(&dir).is_ok());
    }

    #[test]
    fn later_checkpoints_are_another_branch() {
        let run = tempfile::tempdir().unwrap();
        let mut case = Case::new(false);
        let mut write = |step, branch, branched_at| {
            case.progress.global_step = step;
            (case.progress.optimizer_steps, case.progress.best_step) = (step, None);
            (case.progress.branch, case.progress.branched_at) = (branch, branched_at);
            case.write(run.path())
        };
        (1..5).for_each(|tens| drop(write(10 * tens, 0, 0)));
        write(25, 1, 20);
        let resumed = |step| case.resume(&checkpoint_dir(run.path(), step)).unwrap();
        let newest = resumed(40);
        assert_eq!((newest.progress.branch, newest.notes), (0, Vec::new()));
        let earlier = resumed(20);
        assert_eq!((earlier.progress.branch, earlier.progress.branched_at), (2, 20));
        assert!(earlier.notes[0].starts_with("checkpoint-25 to -40 of "), "{:?}", earlier.notes);
        assert_eq!(newest_checkpoint(run.path()).unwrap(), checkpoint_dir(run.path(), 25));
    }

    #[test]
    fn tensors_must_be_those_of_the_layout() {
        let run = tempfile::tempdir().unwrap();
        let mut case = Case::new(false);
        case.parameters[3] = f32::NAN;
        let error = case.resume(&case.write(run.path())).unwrap_err().to_string();
        assert!(error.contains("q_proj.lora_A.weight holds NaN"), "{error}");
        case.parameters[3] = 0.0;
        let dir = case.write(run.path());
        let error = |layout: &Layout| load_factors(&dir, layout).unwrap_err().to_string();
        let mut other = Layout::new(case.layout.spec);
        let part = |name: &str, rows| (format!("model.layers.0.self_attn.{name}"), rows, true);
        other.stack(6, &[part("q_proj", 10)]);
        assert!(error(&other).contains("v_proj.lora_A.weight, which this run lacks (2 such tensors)"));
        other.stack(6, &[part("v_proj", 3)]);
        assert!(error(&other).contains("has shape [2, 4], not [3, 4]"));
        let mut more = case.layout.clone();
        more.stack(6, &[part("o_proj", 6)]);
        assert!(error(&more).contains("lacks tensor") && error(&more).contains("(2 in all)"));
        assert!(
            Resume::open(&dir, &case.settings, &more, &case.progress)
                .unwrap_err()
                .to_string()
                .contains("other modules")
        );
        let mut scaled = case.layout.clone();
        scaled.spec.scale = 2.0;
        assert!(error(&scaled).contains("⟦lora_alpha 32⟧"), "{}", error(&scaled));
    }

    #[test]
    fn settings_that_matter_must_be_the_same() {
        let run = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let dir = case.write(run.path());
        let open = |change: &dyn Fn(&mut Settings, &mut Progress)| {
            let (mut settings, mut now) = (case.settings.clone(), case.progress.clone());
            change(&mut settings, &mut now);
            Resume::open(&dir, &settings, &case.layout, &now).map(|resume| resume.notes).map_err(|e| e.to_string())
        };
        assert!(open(&|s, _| s.lora_rank = 8).unwrap_err().contains("give ⟦lora_rank 4⟧"));
        assert!(open(&|s, _| s.seed = 1).unwrap_err().contains("seed 42, not 1"));
        assert!(open(&|s, _| s.data_seed = 1).unwrap_err().contains("⟦ignore_data_skip"));
        assert!(open(&|_, now| now.epoch_len = 1).unwrap_err().contains("the number of rows was 160"));
        assert!(open(&|_, now| now.data_fingerprint = "x".to_owned()).unwrap_err().contains("template), was abc"));
        assert!(open(&|_, now| now.world = 2).unwrap_err().contains("ranks"));
        let anew = open(&|s, now| {
            (s.data_seed, s.ignore_data_skip) = (1, true);
            now.data_fingerprint = "x".to_owned();
        });
        assert_eq!(anew.unwrap().len(), 2);
        assert_eq!(open(&|s, _| s.learning_rate = 1e-5).unwrap(), ["learning_rate was 0.0001 and is now 0.00001"]);
        assert_eq!(open(&|s, _| s.logging_steps = 1.0).unwrap().len(), 0, "it does not touch the losses");
    }

    #[test]
    fn a_checkpoint_is_found_by_path_by_run_and_as_the_newest() {
        let output = tempfile::tempdir().unwrap();
        let case = Case::new(false);
        let dir = case.write(&output.path().join("v0-20250820-093000"));
        let run = dir.parent().unwrap();
        for spec in [dir.to_str().unwrap(), run.to_str().unwrap(), "true"] {
            assert_eq!(find_resumed(spec, output.path()).unwrap(), dir, "{spec}");
        }
        let error = find_resumed("nowhere", output.path()).unwrap_err().to_string();
        assert!(error.contains("nowhere") && error.contains("⟦resume_from_checkpoint"), "{error}");
        let mut settings = Settings { resume_from_checkpoint: Some("true".to_owned()), ..case.settings };
        settings.output_dir = Some(output.path().to_owned());
        assert_eq!(find_adapter(&settings).unwrap(), None);
        settings.resume_only_model = true;
        assert_eq!(find_adapter(&settings).unwrap(), Some(dir));
    }
}
