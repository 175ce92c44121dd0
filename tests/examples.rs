//! The programs of `examples`, on tiny models. They are part of this binary: no further build of the crate is needed.

use std::fs;

use qft::ErrorKind;
use qft::audit::{Audit, Verdict};
use qft::checkpoint::Checkpoint;
use qft::export::{Export, GgufOptions, Options, Run};
use qft::gguf::mixture::FileType;
use qft::size::ByteSize;
use qft::train::settings::Settings;

use crate::workbench::Bench;

#[allow(dead_code)]
#[path = "../examples/encode.rs"]
mod encode;
#[allow(dead_code)]
#[path = "../examples/export.rs"]
mod export;
#[allow(dead_code)]
#[path = "../examples/train.rs"]
mod train;
#[allow(dead_code)]
#[path = "../examples/verify.rs"]
mod verify;

fn bench() -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "llama");
    bench.adapter("adapter", 32);
    bench
}

#[test]
fn an_export_is_what_base_and_adapter_give() {
    let bench = bench();
    let [base, adapter, out] = ["base", "adapter", "out"].map(|name| bench.path(name));
    let said = export::run(&base, &adapter, &out).unwrap();
    assert!(said.starts_with("4 of 21 tensors changed") && said.ends_with("what base and adapter give"), "{said}");
    let said = verify::run(&out).unwrap();
    assert!(said.contains("21 tensors, 0 problems") && said.contains("changed 4 of 21 tensors"), "{said}");
    // As the command writes it.
    bench.ok("export --merge-lora --base base --adapter adapter --max-shard 2GB --out same");
    assert_eq!(bench.files("out"), bench.files("same"));
    fs::write(out.join("config.json"), "{}").unwrap();
    assert!(verify::run(&out).unwrap().contains("config.json: its SHA-256 is not the listed one"));
}

#[test]
fn a_model_is_encoded_and_measured() {
    let bench = bench();
    let pre = || Some("llama-bpe".to_owned());
    let said = encode::run(&bench.path("base"), FileType::Q8_0, &bench.path("x.gguf"), pre()).unwrap();
    assert!(said.starts_with("x.gguf: 8.") && said.contains("relative error 0."), "{said}");
    bench.ok("gguf base --pre llama-bpe --type q8_0 --out y.gguf");
    assert_eq!(fs::read(bench.path("x.gguf")).unwrap(), fs::read(bench.path("y.gguf")).unwrap());
}

/// Options of a program are checked as flags are, and a GGUF of a release is measured, which its audit asks for.
#[test]
fn options_that_contradict_each_other_are_refused() {
    let bench = bench();
    let plan = |name: &str, options: Options| {
        Export::of(Checkpoint::open(&bench.path("base")).unwrap()).options(options).plan(&bench.path(name))
    };
    let gguf = || Some(GgufOptions { pre: Some("llama-bpe".to_owned()), ..GgufOptions::of(&[FileType::Q8_0]) });
    let contradictions = [
        Options { max_shard: None, ..Options::default() },
        Options { max_shard: Some(ByteSize(0)), ..Options::default() },
        Options { as_file: true, ..Options::default() },
        Options { as_file: true, gguf: gguf(), ..Options::default() },
    ];
    for options in contradictions {
        assert_eq!(plan("out", options).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let unmeasured = gguf().map(|gguf| GgufOptions { measure: false, ..gguf });
    let options = Options { max_shard: None, gguf: unmeasured, ..Options::default() };
    plan("out", options).unwrap().run(&Run::default()).unwrap();
    let audit = Audit::of(&bench.path("out"), Checkpoint::open(&bench.path("base")).unwrap());
    let verdict = audit.run(&Run::default()).unwrap().verdict;
    assert!(matches!(verdict, Verdict::Agrees { .. }), "{verdict:?}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let good = || Settings { model: "m".to_owned(), dataset: vec!["d".to_owned()], ..Settings::default() };
    assert!(good().checked().is_ok());
    let bad = [
        Settings { lora_rank: 0, ..good() },
        Settings { per_device_train_batch_size: 0, ..good() },
        Settings { lora_dropout: 2.0, ..good() },
        Settings { save_steps: 0.0, ..good() },
        Settings { learning_rate: f64::NAN, ..good() },
    ];
    for settings in bad {
        assert_eq!(settings.checked().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_lora_is_trained_and_merged() {
    let bench = bench();
    let said = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let row = format!(r#"{{"messages": [{}, {}]}}"#, said("user", "a b"), said("assistant", "c d"));
    fs::write(bench.path("data.jsonl"), format!("{row}\n").repeat(4)).unwrap();
    let report = train::run(&bench.path("base"), &bench.path("data.jsonl"), &bench.path("runs")).unwrap();
    assert_eq!(report.steps, [2, 2]);
    let said = export::run(&bench.path("base"), &report.checkpoint.unwrap(), &bench.path("out")).unwrap();
    assert!(said.ends_with("what base and adapter give"), "{said}");
}
