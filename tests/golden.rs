//! Every adapter kind against the golden cases of `fixtures/make_peft.py`: bit for bit, names, shapes, types, config.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workbench::{Bench, read_model, said};

pub(crate) fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peft");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("case.json").exists()).collect();
    cases.sort();
    cases
}

/// Exports a case with so many threads.
fn export(bench: &Bench, case: &Path, out: &str, jobs: usize) -> Option<String> {
    export_with(bench, case, out, &["--jobs", &jobs.to_string()])
}

/// Exports a case on a device.
pub(crate) fn export_on(bench: &Bench, case: &Path, out: &str, device: &str) -> Option<String> {
    export_with(bench, case, out, &["--device", device])
}

/// Exports a case; its extra flags name files relative to it.
fn export_with(bench: &Bench, case: &Path, out: &str, flags: &[&str]) -> Option<String> {
    let description: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(case.join("case.json")).unwrap()).unwrap();
    let mut command = bench.command();
    command.current_dir(case).args(["export", "--merge-lora", "--base", "base", "--adapter", "adapter"]);
    command.arg("--out").arg(bench.path(out)).args(flags);
    command.args(description["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()));
    let said = said(command.output().unwrap());
    (said.code != Some(0)).then_some(said.err)
}

/// The first way in which an export differs from what is expected.
fn difference(bench: &Bench, case: &Path) -> Option<String> {
    if let Some(error) = export(bench, case, "out", 1) {
        return Some(error);
    }
    let bytes = fs::read(case.join("expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let found = read_model(&bench.path("out"));
    for (name, tensor) in expected.tensors() {
        let Some((dtype, shape, data)) = found.get(&name) else { return Some(format!("lacks {name}")) };
        if (*dtype, shape.as_slice()) != (tensor.dtype(), tensor.shape()) {
            return Some(format!("{name}: {dtype:?} {shape:?}, expected {:?} {:?}", tensor.dtype(), tensor.shape()));
        }
        let width = dtype.bitsize() / 8;
        let wrong = data.chunks(width).zip(tensor.data().chunks(width)).filter(|(a, b)| a != b).count();
        if wrong > 0 {
            return Some(format!("{name}: {wrong} of {} values differ", data.len() / width));
        }
    }
    if let Some(extra) = found.keys().find(|name| expected.tensor(name).is_err()) {
        return Some(format!("has {extra}, which is not expected"));
    }
    let case_json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(case.join("case.json")).unwrap()).unwrap();
    let before: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(case.join("base/config.json")).unwrap()).unwrap();
    let mut config = before;
    for (key, value) in case_json["config"].as_object().unwrap() {
        config[key] = value.clone();
    }
    (bench.json("out/config.json") != config).then(|| format!("config.json is {}", bench.read("out/config.json")))
}

#[test]
fn every_kind_of_adapter_bit_for_bit() {
    let cases = cases();
    assert!(cases.len() >= 50, "only {} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let difference = difference(&Bench::new(), case)?;
            Some(format!("{}: {difference}", case.file_name().unwrap().to_string_lossy()))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn any_number_of_threads_gives_the_same_files() {
    for name in ["dora_linear", "experts_split", "gpt2_dora", "dora_embedding"] {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peft").join(name);
        let bench = Bench::new();
        assert_eq!(export(&bench, &case, "one", 1), None);
        assert_eq!(export(&bench, &case, "five", 5), None);
        assert!(bench.files("one") == bench.files("five"), "{name}");
    }
}

#[test]
fn the_audit_agrees_with_every_case() {
    for case in cases() {
        let bench = Bench::new();
        assert_eq!(export(&bench, &case, "out", 2), None);
        let mut command = bench.command();
        command.current_dir(&case).arg("verify").arg(bench.path("out")).args([
            "--audit",
            "--base",
            "base",
            "--adapter",
            "adapter",
        ]);
        if case.join("adapter2").exists() {
            command.args(["--adapter", "adapter2=0.5"]);
        }
        let said = said(command.output().unwrap());
        assert_eq!(said.code, Some(0), "{}: {}{}", case.display(), said.out, said.err);
    }
}
