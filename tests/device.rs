//! Devices: whatever merges and encodes, the files are the same, and a GPU that fails costs nothing but time. Where
//! there is no GPU, a simulated one stands in: its blocks are made by the processor, so that everything around them is
//! tested; and what needs a real one says that it was skipped.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::gguf::bench;
use crate::golden::{cases, export_on};
use crate::workbench::{Bench, Noise};

/// Mixtures that have every type that qft encodes.
const MIXTURES: &str = "f32,f16,bf16,q4_0,q4_1,q5_0,q5_1,q8_0,q2_k,q3_k_m,q4_k_m,q5_k_m,iq4_nl,iq4_xs";
/// Mixtures that have every type that takes an importance.
const WEIGHTED: &str = "q4_0,q4_1,q5_0,q5_1,q2_k,q3_k_m,q4_k_m,q5_k_m,iq4_nl,iq4_xs";

/// The GPUs to hold against the processor: the simulated one, and a real one where it is there.
fn cards() -> Vec<&'static str> {
    let bench = Bench::new();
    bench.base(64);
    bench.adapter("adapter", 64);
    let said = bench.qft("export --merge-lora --base base --adapter adapter --device cuda");
    if said.code == Some(0) {
        return vec!["simulated", "cuda"];
    }
    // Past the test harness, which keeps what tests print.
    let line = format!("skipped on a real GPU: {}\n", said.err.lines().next().unwrap_or_default());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    vec!["simulated"]
}

/// What lies in the bench, but for the home directory, where a driver keeps what it compiled.
fn names(bench: &Bench) -> Vec<String> {
    bench.names().into_iter().filter(|name| name != "home").collect()
}

/// The first file that differs, and where.
fn difference(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> Option<String> {
    if a.keys().ne(b.keys()) {
        return Some(format!("{:?} and {:?}", a.keys(), b.keys()));
    }
    let (name, x, y) = a.iter().map(|(name, x)| (name, x, &b[name])).find(|(_, x, y)| x != y)?;
    let at = x.iter().zip(y).position(|(x, y)| x != y);
    Some(format!("{name}, {} and {} bytes, from byte {at:?} on", x.len(), y.len()))
}

/// Importances of every matrix of the bench's model, in the older format: name, calls, values.
fn write_imatrix(bench: &Bench) {
    let mut names = vec![("output.weight".to_owned(), 256i32)];
    for layer in 0..2 {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"] {
            names.push((format!("blk.{layer}.{name}.weight"), 256));
        }
        names.push((format!("blk.{layer}.ffn_down.weight"), 512));
    }
    let mut noise = Noise(11);
    let mut bytes = (names.len() as i32).to_le_bytes().to_vec();
    for (name, columns) in names {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(1i32.to_le_bytes());
        bytes.extend(columns.to_le_bytes());
        (0..columns).for_each(|_| bytes.extend((noise.value(1.0).powi(2)).to_le_bytes()));
    }
    bench.write("imatrix.dat", bytes);
}

#[test]
fn every_type_is_the_same_on_every_device() {
    let cards = cards();
    let merge = "export --merge-lora --base base --adapter adapter --pre qwen2 --name Tiny";
    for (llama, form, flags) in [
        (true, "plain", format!("{merge} --max-shard 1MB --gguf {MIXTURES}")),
        (true, "weighted", format!("{merge} --gguf {WEIGHTED} --imatrix imatrix.dat")),
        (true, "unmerged", "export --base base --pre qwen2 --name Tiny --gguf q4_k_m,q8_0,f16,bf16".to_owned()),
        (false, "biased", format!("{merge} --max-shard 1MB --gguf q4_k_m,q8_0")),
        (false, "cast", format!("{merge} --dtype f16 --max-shard 1MB --gguf q4_k_m,f16,f32")),
    ] {
        let bench = bench(llama);
        write_imatrix(&bench);
        {
            bench.ok(&format!("{flags} --device cpu --out cpu-{form}/out"));
            for card in &cards {
                bench.ok(&format!("{flags} --device {card} --out {card}-{form}/out"));
                let (a, b) = (bench.files(&format!("cpu-{form}/out")), bench.files(&format!("{card}-{form}/out")));
                assert_eq!(difference(&a, &b), None, "{form}, llama: {llama}, {card}");
            }
        }
    }
}

#[test]
fn files_are_quantized_alike() {
    let bench = bench(true);
    bench.ok("gguf base --type bf16 --out model-bf16.gguf --pre qwen2");
    for card in cards() {
        for kind in ["q4_k_m", "q8_0", "q3_k_m", "f16"] {
            for device in ["cpu", card] {
                bench.ok(&format!("quantize model-bf16.gguf --type {kind} --out {device}/x.gguf --device {device}"));
            }
            assert_eq!(difference(&bench.files("cpu"), &bench.files(card)), None, "{kind} on {card}");
            std::fs::remove_dir_all(bench.path("cpu")).unwrap();
            std::fs::remove_dir_all(bench.path(card)).unwrap();
        }
    }
}

#[test]
fn every_kind_of_adapter_is_merged_alike() {
    let cards = cards();
    let mut wrong = Vec::new();
    for case in cases() {
        let bench = Bench::new();
        assert_eq!(export_on(&bench, &case, "cpu", "cpu"), None);
        for card in &cards {
            let error = export_on(&bench, &case, card, card);
            let difference = error.or_else(|| difference(&bench.files("cpu"), &bench.files(card)));
            let name = case.file_name().unwrap().to_string_lossy().into_owned();
            wrong.extend(difference.map(|difference| format!("{name} on {card}: {difference}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_card_that_fails_costs_nothing_but_time() {
    const FLAGS: &str = "export --merge-lora --base base --adapter adapter --pre qwen2 --name Tiny --gguf q4_k_m,q8_0 \
                         --max-shard 1MB";
    let bench = bench(false);
    bench.ok(&format!("{FLAGS} --device cpu --out cpu/out"));
    for card in cards() {
        let lenient = if card == "cuda" { "auto" } else { card };
        for fault in ["lost@1", "lost@4", "oom@2", "value@3"] {
            let out = format!("{card}-{fault}/out");
            let said = bench.ok(&format!("{FLAGS} --device {lenient} --inject-fault {fault} --out {out}"));
            assert_eq!(difference(&bench.files("cpu/out"), &bench.files(&out)), None, "{fault} on {card}");
            let warned = said.err.contains("other lanes or the processor made the rest");
            assert_eq!(warned, fault != "value@3", "{fault} on {card}: {}", said.err);
        }
    }
}

#[test]
fn a_demanded_gpu_that_fails_leaves_the_destination_untouched() {
    let bench = bench(false);
    let before = names(&bench);
    let export =
        "export --merge-lora --base base --adapter adapter --pre qwen2 --name Tiny --gguf q4_k_m,q8_0 --out out";
    for card in cards() {
        let demanded = if card == "cuda" { card } else { "simulated:demanded" };
        let flags = format!("{export} --device {demanded} --inject-fault lost@2");
        bench.fails(75, &flags, &["remedy: ", "--device auto"]);
        assert_eq!(names(&bench), before, "nothing is left behind");
    }
}

#[test]
fn a_card_that_is_not_there_is_an_error_where_it_is_demanded() {
    let bench = Bench::new();
    bench.base(64);
    bench.adapter("adapter", 64);
    let before = names(&bench);
    let said = bench.refuses(
        "export --merge-lora --base base --adapter adapter --device cuda:97 --out out",
        &["remedy: use --device auto"],
    );
    assert!(said.err.contains("NVIDIA") || said.err.contains("97"), "{}", said.err);
    assert_eq!(names(&bench), before, "nothing is left behind");
    bench.ok("export --merge-lora --base base --adapter adapter --device auto --out out");
    assert!(Path::new(&bench.path("out/model.safetensors")).exists());
}

#[test]
fn a_plan_says_what_a_card_would_take() {
    let bench = bench(true);
    let line = "export --merge-lora --base base --adapter adapter --dry-run";
    assert!(!bench.ok(&format!("{line} --device cpu")).out.contains("on a GPU"));
    let said = bench.ok(&format!("{line} --device simulated --device-memory 1GiB"));
    assert!(said.out.contains("on a GPU: up to 1.07 GB of its memory, and "), "{}", said.out);
    let json = bench.ok(&format!("{line} --device simulated --json"));
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["needs"]["card"]["card_bytes"], 2u64 << 30);
}
