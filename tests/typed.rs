//! Common typing errors and mistakes: each gets a remedy that names what was meant.

use std::fs;

use crate::workbench::Bench;

#[test]
fn a_mistyped_directory_is_no_model_on_the_hub() {
    let bench = Bench::new();
    bench.base(32);
    fs::create_dir_all(bench.path("models/llama")).unwrap();
    let export = |base: &str| format!("export --base {base} --out o");
    bench.refuses(&export("./bsae"), &["no such directory: ./bsae (there is ./base)", "check the path"]);
    bench.refuses(
        &export("models/lama"),
        &["no such directory: models/lama (there is models/llama)", "models/lama@main"],
    );
    bench.refuses(&export("/no/such/place"), &["no such directory: /no/such/place"]);
    bench.refuses(&export("a/b/c"), &["no such directory: a/b/c"]);
    // What may be either: both are named.
    bench.refuses(&export("bsae"), &["bsae is no directory (there is base)", "no cache holds it", "HF_HUB_OFFLINE"]);
    bench.refuses(&export("org/name"), &["org/name is no directory", "no cache holds it"]);
    bench.refuses(&export("models/lama@main"), &["no cache holds it complete at revision main"]);
    let mut command = bench.command();
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:9");
    let said = crate::workbench::said(command.args(export("org/name").split(' ')).output().unwrap());
    assert_eq!(said.code, Some(75), "nothing answers there, which may pass: {}", said.err);
    assert!(said.err.contains("there is no directory org/name here") && said.err.contains("check the network"));
}

#[test]
fn quantize_and_gguf_name_each_other() {
    let bench = Bench::new();
    bench.trainee("base", "llama");
    let line = "quantize base --type q8_0 --out x.gguf";
    let said = bench.refuses(line, &["base is a directory", "qft gguf base --type q8_0 --out x.gguf"]);
    let remedy = said.err.lines().find_map(|line| line.split_once("with qft ")).unwrap().1.to_owned();
    bench.ok(&format!("{remedy} --pre llama-bpe"));
    bench.refuses("gguf x.gguf --type q8_0 --out y.gguf", &["a GGUF model", "qft quantize"]);
    fs::create_dir(bench.path("files")).unwrap();
    fs::rename(bench.path("x.gguf"), bench.path("files/x.gguf")).unwrap();
    bench.refuses("quantize files --type q8_0 --out y.gguf", &["give a file in it, such as files/x.gguf"]);
    let said = bench.ok("quantize files/x.gguf --type q8_0 --allow-requantize --timings --out y.gguf");
    assert!(said.out.contains("seconds of all threads:") && said.out.contains("  write"), "{}", said.out);
    bench.refuses("quantize nowhere.gguf --type q8_0 --out y.gguf", &["nowhere.gguf"]);
    // What is typed in other ways than shells suggest stays accepted.
    bench.ok("export --base base --gguf Q8_0,q4_k --pre llama-bpe --out o");
}
