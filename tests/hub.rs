//! A base named by its Hub id: `qft` as a child process against a small Hub on this machine, and offline afterwards.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// More requests than any test makes; a client in a loop ends here.
const MAX_REQUESTS: usize = 200;

/// A Hub with the models in a directory, `ORG/NAME/FILE`. A model with a file `.gated` refuses its other files; one
/// with a file `.cut` breaks off in the middle of its weights, once.
struct FakeHub {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn serve(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stopped, log) = (Arc::clone(&stop), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().take(MAX_REQUESTS) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that hangs up early is not the server's concern.
                let _ = stream.and_then(|stream| answer(stream, &root, &log));
            }
        });
        Self { port, stop, thread: Some(thread), requests }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The files that were asked for, once each, sorted.
    fn files(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let mut files: Vec<String> =
            requests.iter().filter_map(|r| Some(r.split_once("/resolve/")?.1.into())).collect();
        files.sort();
        files.dedup();
        files
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: TcpStream, root: &Path, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(64 << 10)).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    log.lock().unwrap().push(target.to_owned());
    let path = target.split('?').next().unwrap_or_default();
    let (status, headers, body) = respond(root, path, range.as_deref());
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len())?;
    let weights = path.ends_with("/model.safetensors") && range.as_deref() != Some("0-0");
    let id = path.trim_start_matches('/').split("/resolve/").next().unwrap_or_default();
    let cut = weights && fs::remove_file(root.join(id).join(".cut")).is_ok();
    stream.write_all(if cut { &body[..body.len() / 2] } else { &body })
}

type Response = (&'static str, String, Vec<u8>);

fn respond(root: &Path, target: &str, range: Option<&str>) -> Response {
    const NOT_FOUND: &str = "404 Not Found";
    if let Some(id) = target.strip_prefix("/api/models/").and_then(|rest| rest.strip_suffix("/revision/main")) {
        return listing(&root.join(id)).map_or((NOT_FOUND, String::new(), Vec::new()), |body| {
            ("200 OK", "Content-Type: application/json\r\n".to_owned(), body.into_bytes())
        });
    }
    let Some((id, file)) = target.strip_prefix('/').and_then(|t| t.split_once("/resolve/")) else {
        return (NOT_FOUND, String::new(), Vec::new());
    };
    if root.join(id).join(".gated").exists() {
        return ("403 Forbidden", "X-Error-Code: GatedRepo\r\n".to_owned(), Vec::new());
    }
    let name = file.strip_prefix("main/").or_else(|| file.strip_prefix(COMMIT)?.strip_prefix('/'));
    let Some(bytes) = name.and_then(|name| fs::read(root.join(id).join(name)).ok()) else {
        return (NOT_FOUND, String::new(), Vec::new());
    };
    let (from, to) = range.and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap();
    let to = to.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let etag = file.replace('/', "-");
    let headers =
        format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\nContent-Range: bytes {from}-{to}/{}\r\n", bytes.len());
    ("206 Partial Content", headers, bytes[from..=to].to_vec())
}

/// What the Hub says of a model's files, or nothing if there is no such model.
fn listing(model: &Path) -> Option<String> {
    let entries = fs::read_dir(model).ok()?.flatten();
    let siblings: Vec<_> = entries
        .map(|e| serde_json::json!({"rfilename": e.file_name().to_string_lossy(), "size": e.metadata().unwrap().len()}))
        .collect();
    Some(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string())
}

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
    let fetched = ["config.json", "model.safetensors"].map(|file| format!("{COMMIT}/{file}"));
    assert_eq!(hub.files(), fetched, "merges.txt is empty, and the others are not read");
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
    fs::write(tmp.path().join("hub/tiny/base/.cut"), "").unwrap();
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
}
