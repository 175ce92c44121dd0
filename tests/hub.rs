//! A base named by its Hub id: `qft` as a child process against a small Hub on this machine, and offline afterwards.

pub(crate) mod server;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use server::{COMMIT, FakeHub};

/// One BF16 tensor, four bytes.
const WEIGHT: [u8; 4] = [0x80, 0x3f, 0x00, 0x40];

fn write_model(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let tensor = TensorView::new(Dtype::BF16, vec![1, 2], &WEIGHT).unwrap();
    let bytes = safetensors::serialize([("model.embed_tokens.weight", tensor)], None).unwrap();
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    fs::write(dir.join("config.json"), r#"{"model_type":"llama","torch_dtype":"bfloat16"}"#).unwrap();
    for unread in ["README.md", "pytorch_model.bin", "consolidated.safetensors"] {
        fs::write(dir.join(unread), "unread").unwrap();
    }
    fs::write(dir.join("merges.txt"), "").unwrap();
}

/// Runs `qft export --base BASE --out OUT` with caches below `home` only.
fn export(home: &Path, base: &str, out: &Path, vars: &[(&str, &str)]) -> Output {
    const CLEARED: [&str; 14] = [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "XDG_CACHE_HOME",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_qft"));
    for name in CLEARED {
        command.env_remove(name);
    }
    command.args(["export", "--base", base, "--out"]).arg(out);
    command.env("HOME", home).env("HF_HOME", home.join("hf")).env("MODELSCOPE_CACHE", home.join("modelscope"));
    command.envs(vars.iter().copied()).output().unwrap()
}

fn assert_exported(output: &Output, out: &Path) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let weights = fs::read_dir(out).unwrap().flatten().map(|e| e.path());
    let weights: Vec<_> = weights.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    assert_eq!(weights.len(), 1, "{weights:?}");
    let bytes = fs::read(&weights[0]).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("model.embed_tokens.weight").unwrap().data(), WEIGHT);
}

#[test]
fn a_base_is_downloaded_once_and_found_offline_afterwards() {
    let tmp = tempfile::tempdir().unwrap();
    write_model(&tmp.path().join("hub/tiny/base"));
    let hub = FakeHub::serve(tmp.path().join("hub"));
    let endpoint = hub.endpoint();

    let first = tmp.path().join("first");
    assert_exported(&export(tmp.path(), "tiny/base", &first, &[("HF_ENDPOINT", &endpoint)]), &first);
    let fetched = ["config.json", "merges.txt", "model.safetensors"].map(|file| format!("{COMMIT}/{file}"));
    assert_eq!(hub.files(), fetched, "the others are not read");
    let repo = tmp.path().join("hf/hub/models--tiny--base");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read_dir(repo.join("refs")).unwrap().count(), 1);

    drop(hub);
    let second = tmp.path().join("second");
    let vars = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HUB_OFFLINE", "1")];
    assert_exported(&export(tmp.path(), "tiny/base", &second, &vars), &second);
}

#[test]
fn a_refusal_of_the_hub_tells_the_way_out() {
    let tmp = tempfile::tempdir().unwrap();
    write_model(&tmp.path().join("hub/tiny/gated"));
    fs::write(tmp.path().join("hub/tiny/gated/.gated"), "").unwrap();
    for (model, file) in [
        ("pickle", "pytorch_model.bin"),
        ("gguf", "tiny-Q8_0.gguf"),
        ("renamed", "weights.safetensors"),
        ("lacking", "model-00001-of-00002.safetensors"),
        ("mistral", "consolidated.safetensors"),
        ("empty", "README.md"),
    ] {
        let dir = tmp.path().join("hub/tiny").join(model);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), "x").unwrap();
    }
    let hub = FakeHub::serve(tmp.path().join("hub"));
    for (base, parts) in [
        ("tiny/gated", ["HTTP 403", "HF_TOKEN"]),
        ("tiny/none", ["HTTP 404", "check the id"]),
        ("tiny/pickle", ["no safetensors weights", "qft runs no pickle"]),
        ("tiny/gguf", ["no safetensors weights", "tiny-Q8_0.gguf is a GGUF model"]),
        ("tiny/renamed", ["weights of another name", "rename that file"]),
        ("tiny/lacking", ["model-00002-of-00002.safetensors is missing", "a whole copy"]),
        ("tiny/mistral", ["no safetensors weights", "Hugging Face files"]),
        ("tiny/empty", ["has no weights", "check the id"]),
    ] {
        let out = tmp.path().join("out");
        let output = export(tmp.path(), base, &out, &[("HF_ENDPOINT", &hub.endpoint())]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && !out.exists(), "{base}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{base}: {stderr}");
    }
}

#[test]
fn a_download_that_broke_off_is_continued() {
    let tmp = tempfile::tempdir().unwrap();
    write_model(&tmp.path().join("hub/tiny/base"));
    // As often as one command tries.
    fs::write(tmp.path().join("hub/tiny/base/.cut"), "4").unwrap();
    let hub = FakeHub::serve(tmp.path().join("hub"));
    let out = tmp.path().join("out");
    let run = |vars: &[(&str, &str)]| export(tmp.path(), "tiny/base", &out, vars);

    let broken = run(&[("HF_ENDPOINT", &hub.endpoint())]);
    let stderr = String::from_utf8_lossy(&broken.stderr);
    assert!(broken.status.code() == Some(75) && stderr.contains("run the command again"), "{stderr}");
    let offline = run(&[("HF_HUB_OFFLINE", "1")]);
    let stderr = String::from_utf8_lossy(&offline.stderr);
    assert!(offline.status.code() == Some(1) && stderr.contains("lacks model.safetensors"), "{stderr}");
    assert_exported(&run(&[("HF_ENDPOINT", &hub.endpoint())]), &out);
    let ranges = hub.ranges();
    assert!(ranges.len() >= 4 && ranges.is_sorted(), "each goes on where the last one broke off: {ranges:?}");
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let tmp = tempfile::tempdir().unwrap();
    write_model(&tmp.path().join("hub/tiny/base"));
    let hub = FakeHub::serve(tmp.path().join("hub"));
    let out = tmp.path().join("out");
    // No such host is known: only the proxy can answer for it.
    let vars = [("HF_ENDPOINT", "http://hub.invalid"), ("HTTP_PROXY", &hub.endpoint())];
    assert_exported(&export(tmp.path(), "tiny/base", &out, &vars), &out);
}
