//! A Hub on this machine, and a host that it may redirect to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use qft::digest::sha256;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// More requests than any test makes; a client in a loop ends here.
const MAX_REQUESTS: usize = 200;

/// A request, as far as tests look at it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub target: String,
    pub token: Option<String>,
    pub range: Option<String>,
}

/// A Hub with the models in a directory, `ORG/NAME/FILE`. Files of a model say how it behaves:
///
/// - `.gated`: its files are refused with 403.
/// - `.status`: they are refused with the status that it holds.
/// - `.busy`: they are refused with 503 as often as it holds.
/// - `.cut`: its weights break off in the middle of what is sent, as often as it holds.
/// - `.elsewhere`: the bytes of its weights are at the address that it holds.
/// - `.renamed`: it is now called what it holds.
/// - `.noparts`: nothing is sent in parts.
/// - `.etag`: the `ETag` of its weights, instead of their SHA-256.
/// - `.size`: the listed length of its weights, instead of the true one.
pub(crate) struct FakeHub {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    requests: Arc<Mutex<Vec<Seen>>>,
}

impl FakeHub {
    pub(crate) fn serve(root: PathBuf) -> Self {
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

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.requests.lock().unwrap().clone()
    }

    /// The files that were asked for, once each, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let requests = self.requests();
        let mut files: Vec<String> =
            requests.iter().filter_map(|r| Some(r.target.split_once("/resolve/")?.1.into())).collect();
        files.sort();
        files.dedup();
        files
    }

    /// Where parts of files that were asked for begin.
    pub(crate) fn ranges(&self) -> Vec<u64> {
        let requests = self.requests();
        requests.iter().filter_map(|seen| seen.range.as_ref()?.strip_suffix('-')?.parse().ok()).collect()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: TcpStream, root: &Path, log: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(64 << 10));
    let (mut method, mut seen) = head(&mut reader)?;
    // As a proxy is asked, which here leads to the Hub itself, whatever host is named.
    if method == "CONNECT" {
        write!(stream, "HTTP/1.1 200 Connected\r\n\r\n")?;
        (method, seen) = head(&mut reader)?;
    }
    log.lock().unwrap().push(seen.clone());
    let path = seen.target.split('?').next().unwrap_or_default();
    let (status, headers, body) = respond(root, path, seen.range.as_deref());
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len())?;
    let id = path.trim_start_matches('/').split("/resolve/").next().unwrap_or_default();
    if method == "HEAD" {
        return Ok(());
    }
    let cut = is_weights(path) && status.starts_with('2') && takes_one(&root.join(id).join(".cut"));
    stream.write_all(if cut { &body[..body.len() / 2] } else { &body })
}

/// The method of a request, and what tests look at.
fn head(reader: &mut impl BufRead) -> std::io::Result<(String, Seen)> {
    let mut lines = reader.lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = request.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let mut seen = Seen { target: words.next().unwrap_or_default(), ..Seen::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = value.strip_prefix("bytes=").map(str::to_owned),
            "authorization" => seen.token = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok((method, seen))
}

fn is_weights(path: &str) -> bool {
    path.ends_with("/model.safetensors")
}

/// Takes one from the number in the file, if it is there.
fn takes_one(counter: &Path) -> bool {
    let Some(left) = fs::read_to_string(counter).ok().and_then(|text| text.parse::<u32>().ok()) else { return false };
    let _ = if left > 1 { fs::write(counter, (left - 1).to_string()) } else { fs::remove_file(counter) };
    left > 0
}

type Response = (String, String, Vec<u8>);

fn no(status: &str) -> Response {
    (format!("{status} No"), String::new(), Vec::new())
}

fn respond(root: &Path, target: &str, range: Option<&str>) -> Response {
    let to = |location: String| (String::from("307 Temporary Redirect"), format!("Location: {location}\r\n"), vec![]);
    if let Some(id) = target.strip_prefix("/api/models/").and_then(|rest| rest.strip_suffix("/revision/main")) {
        if let Ok(other) = fs::read_to_string(root.join(id).join(".renamed")) {
            return to(format!("/api/models/{other}/revision/main"));
        }
        let headers = "Content-Type: application/json\r\n".to_owned();
        return listing(&root.join(id))
            .map_or_else(|| no("404"), |body| ("200 OK".to_owned(), headers, body.into_bytes()));
    }
    let Some((id, file)) = target.strip_prefix('/').and_then(|t| t.split_once("/resolve/")) else { return no("404") };
    let setting = |name: &str| fs::read_to_string(root.join(id).join(name)).ok();
    if let Some(other) = setting(".renamed") {
        return to(format!("/{other}/resolve/{file}"));
    }
    if setting(".gated").is_some() {
        return no("403");
    }
    if let Some(status) = setting(".status") {
        return no(&status);
    }
    if takes_one(&root.join(id).join(".busy")) {
        return no("503");
    }
    let name = file.strip_prefix("main/").or_else(|| file.strip_prefix(COMMIT)?.strip_prefix('/'));
    let Some(bytes) = name.and_then(|name| fs::read(root.join(id).join(name)).ok()) else { return no("404") };
    let digest = sha256(&bytes);
    let mut headers = format!("X-Repo-Commit: {COMMIT}\r\n");
    if is_weights(target) {
        let etag = setting(".etag").unwrap_or(digest);
        headers.push_str(&format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n", bytes.len()));
        if let Some(host) = setting(".elsewhere") {
            headers.push_str(&format!("ETag: \"no-name\"\r\nLocation: {host}{target}\r\n"));
            return ("302 Found".to_owned(), headers, Vec::new());
        }
    } else {
        headers.push_str(&format!("ETag: W/\"{}\"\r\n", &digest[..40]));
    }
    let from = range.filter(|_| setting(".noparts").is_none()).and_then(|range| range.split('-').next()?.parse().ok());
    match from {
        None => ("200 OK".to_owned(), headers, bytes),
        Some(from) if from >= bytes.len() => no("416"),
        Some(from) => {
            headers.push_str(&format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
            ("206 Partial Content".to_owned(), headers, bytes[from..].to_vec())
        }
    }
}

/// What the Hub says of a model's files, or nothing if there is no such model.
fn listing(model: &Path) -> Option<String> {
    let siblings = fs::read_dir(model).ok()?.flatten().map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let lie = fs::read_to_string(model.join(".size")).ok().filter(|_| name == "model.safetensors");
        let size = lie.map_or_else(|| entry.metadata().unwrap().len(), |text| text.parse().unwrap());
        serde_json::json!({"rfilename": name, "size": size})
    });
    let siblings: Vec<_> = siblings.collect();
    Some(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string())
}
