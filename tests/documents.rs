//! What programs read, whole: the manifest of a release and the plan of an export, byte for byte.

use std::fs;
use std::path::Path;

use qft::manifest::Manifest;

use crate::workbench::Bench;

const EXPORT: &str = "export --merge-lora --base base --adapter adapter=0.5 --pre llama-bpe --jobs 2 --device cpu \
                      --max-shard 40KB --dtype f16 --gguf q8_0,bf16 --out o";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "llama");
    bench.adapter("adapter", 32);
    bench.write("base/modeling.py", "a = 1");
    bench.write("base/README.md", "# A model");
    bench
}

/// Compares `text` with the committed document `name`. What another version or processor may change is masked: the version,
/// digests of files, and what is after the point of a figure.
fn compare(name: &str, text: &str) {
    let version = concat!("\"", env!("CARGO_PKG_VERSION"), "\"");
    let figures = ["rmse", "rms", "max_error", "cosine", "relative"];
    let masked = |line: &str| match line.split_once(": ") {
        Some((key, _)) if key.ends_with("\"sha256\"") => format!("{key}: ..."),
        Some((key, value)) if figures.contains(&key.trim().trim_matches('"')) => {
            let end = if value.ends_with(',') { "," } else { "" };
            format!("{key}: {}.{end}", value.split('.').next().unwrap_or_default())
        }
        _ => line.replace(version, "\"VERSION\""),
    };
    let text: String = text.lines().map(|line| masked(line) + "\n").collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/documents").join(name);
    if std::env::var_os("QFT_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(committed == text, "{name}: {differs:?}; if it should be so: QFT_BLESS=1 cargo test documents");
}

#[test]
fn a_manifest_is_as_it_was() {
    let bench = bench();
    bench.ok(EXPORT);
    let text = bench.read("o/qft-manifest.json");
    compare("qft-manifest.json", &text);
    let manifest: Manifest = serde_json::from_str(&text).unwrap();
    assert_eq!(format!("{:#}\n", serde_json::json!(manifest)), text, "what was read is not what was written");
}

#[test]
fn a_plan_is_as_it_was() {
    let bench = bench();
    compare("plan.json", &bench.ok(&format!("{EXPORT} --dry-run --json")).out);
    compare("plan.txt", &bench.ok(&format!("{EXPORT} --dry-run")).out);
    compare("quantize.json", &bench.ok("gguf base --pre llama-bpe --type q4_0 --out x.gguf --dry-run --json").out);
}
