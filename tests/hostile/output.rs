//! Destinations that would lose something or can't be written, and disks that fill up.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{EXPORT, Scene, can, complaints, describe, expect_none, is_kept};
use crate::workbench::{Bench, f32_noise};

/// Mounts a disk of memory at `disk` with options `$1`, runs the rest, and lists in `listing` what is left on the disk.
const ON_A_DISK: &str = "mount -t tmpfs -o $1 none disk || exit 99; shift; \"$@\"; code=$?; \
                         ls -A disk > listing; exit $code";

#[test]
fn destinations_that_would_lose_something() {
    type Break = fn(&Scene);
    let nothing: Break = |_| ();
    let rows: [(&str, Break, &[&str], &[&str]); 13] = [
        ("a file", |s| drop(s.0.write("out", "x")), &["out"], &["out", "not a directory"]),
        (
            "a file, with --overwrite",
            |s| drop(s.0.write("out", "x")),
            &["out", "--overwrite"],
            &["out", "not a directory"],
        ),
        ("not empty", nothing, &["old"], &["old", "not empty"]),
        (
            "no model",
            |s| drop(s.0.write("out/thesis.tex", "x")),
            &["out", "--overwrite"],
            &["out", "not look like a model"],
        ),
        ("the base", nothing, &["base", "--overwrite"], &["base", "holds the input"]),
        ("the adapter", nothing, &["./lora/", "--overwrite"], &["lora", "holds the input"]),
        ("a link to the base", |s| s.link("out", "base"), &["out", "--overwrite"], &["out", "holds the input"]),
        ("the current directory", nothing, &[".", "--overwrite"], &["can't be a destination"]),
        ("the parent directory", nothing, &["..", "--overwrite"], &["can't be a destination"]),
        ("the root", nothing, &["/", "--overwrite"], &["can't be a destination"]),
        ("below a file", nothing, &["old/config.json/x"], &["old/config.json"]),
        ("a link to nothing", |s| s.link("out", "nowhere"), &["out"], &["out"]),
        ("a link to itself", |s| s.link("out", "out"), &["out"], &["out"]),
    ];
    let wrong = rows.into_iter().filter_map(|(what, change, out, mentions)| {
        let scene = Scene::new();
        change(&scene);
        scene.refuses(what, &[EXPORT, &["--out"], out].concat(), mentions)
    });
    expect_none(wrong);
}

#[test]
fn a_destination_around_the_base() {
    let scene = Scene::new();
    fs::create_dir(scene.0.path("models")).unwrap();
    fs::rename(scene.0.path("base"), scene.0.path("models/base")).unwrap();
    scene.0.write("models/config.json", "{}");
    let args = ["export", "--base", "models/base", "--out", "models", "--overwrite"];
    expect_none(scene.refuses("around the base", &args, &["models", "holds the input"]));
    assert!(scene.0.path("models/base/model.safetensors").exists());
}

#[test]
fn staging_that_is_not_ours() {
    let staging = ".out.qft-staging";
    let args = [EXPORT, &["--out", "out"]].concat();
    let scene = Scene::new();
    scene.0.write("victim/thesis.tex", "x");
    scene.link(staging, "victim");
    let mut wrong: Vec<String> = scene.refuses("a link", &args, &[staging, "link"]).into_iter().collect();
    assert_eq!(scene.0.files("victim").len(), 1, "what the link names is untouched");
    scene.link(staging, "nowhere");
    wrong.extend(scene.refuses("a link to nothing", &args, &[staging]));
    fs::remove_file(scene.0.path(staging)).unwrap();
    scene.0.write(staging, "x");
    wrong.extend(scene.refuses("a file", &args, &[staging]));
    fs::remove_file(scene.0.path(staging)).unwrap();
    fs::create_dir(scene.0.path(staging)).unwrap();
    let lock = fs::File::open(scene.0.path(staging)).unwrap();
    lock.lock().unwrap();
    let said = scene.run(&[], &args);
    wrong.extend(describe("locked", &args, &complaints(&said, 75, &said.err, &["out", "another qft"]), &said));
    expect_none(wrong);
}

#[test]
fn names_that_are_too_long() {
    let scene = Scene::new();
    // The second is allowed, but its staging directory's name is not.
    let wrong = [300, 250].into_iter().filter_map(|length| {
        let name = "x".repeat(length);
        scene.refuses(&format!("{length} letters"), &[EXPORT, &["--out", &name]].concat(), &["xxx"])
    });
    expect_none(wrong);
}

#[test]
fn a_parent_that_may_not_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let wrapper = ["setpriv", "--bounding-set=-dac_override"];
    if !can(&wrapper, "permissions as root") {
        return;
    }
    let scene = Scene::new();
    fs::create_dir(scene.0.path("closed")).unwrap();
    let allow = |mode| fs::set_permissions(scene.0.path("closed"), fs::Permissions::from_mode(mode)).unwrap();
    allow(0o555);
    let args = [EXPORT, &["--out", "closed/out"]].concat();
    let wrong = scene.refuses_below(&wrapper, "a closed parent", &args, &["closed"]);
    allow(0o755);
    assert_eq!(fs::read_dir(scene.0.path("closed")).unwrap().count(), 0);
    expect_none(wrong);
}

#[test]
fn another_filesystem_is_fine() {
    let scene = Scene::new();
    let memory = Path::new("/dev/shm");
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    if device(memory).is_none() || device(memory) == device(&scene.0.path("")) {
        return println!("skipped: another filesystem: /dev/shm is none");
    }
    let there = Bench::new_in(memory);
    let out = there.path("out");
    let to = |end: &'static [&'static str]| [EXPORT, &["--out", out.to_str().unwrap()], end].concat();
    expect_none([&[][..], &["--overwrite"]].into_iter().filter_map(|end| scene.accepts("/dev/shm", &to(end))));
    expect_none(scene.accepts("here", &[EXPORT, &["--out", "out"]].concat()));
    assert!(there.files("out") == scene.0.files("out"));
    assert_eq!(there.names(), ["out"]);
}

/// What is wrong with how an export to a disk with `options` is refused, and with what it leaves there.
fn on_a_disk(scene: &Scene, what: &str, options: &str, args: &[&str], mentions: &[&str]) -> Option<String> {
    let wrapper = ["unshare", "--mount", "sh", "-c", ON_A_DISK, "sh", options];
    fs::create_dir_all(scene.0.path("disk")).unwrap();
    let args = [EXPORT, &["--out", "disk/out"], args].concat();
    let said = scene.run(&wrapper, &args);
    let code = if options == "ro" { 1 } else { 75 };
    let mut wrong = complaints(&said, code, &said.err, &[mentions, &["remedy: "]].concat());
    let left = scene.0.read("listing");
    if !left.is_empty() && !is_kept(left.trim(), &said) {
        wrong.push(format!("left on the disk: {left:?}"));
    }
    describe(what, &args, &wrong, &said)
}

#[test]
fn a_full_disk() {
    let probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"];
    if !std::process::Command::new(probe[0]).args(&probe[1..]).status().is_ok_and(|status| status.success()) {
        return println!("skipped: a full disk: mounting needs root and a mount namespace");
    }
    let mut wrong = Vec::new();
    let scene = Scene::new();
    wrong.extend(on_a_disk(&scene, "a disk too small", "size=64k", &[], &["disk/out", "requires", "free"]));
    wrong.extend(on_a_disk(&scene, "a disk that is read-only", "ro", &[], &["disk"]));
    wrong.extend(on_a_disk(&scene, "a disk that takes few files", "nr_inodes=4", &[], &["disk"]));
    // The plan knows lengths; that each file takes a page of this disk it doesn't: so the disk fills up on the way.
    for i in 0..300 {
        scene.0.write(format!("base/{i}.txt"), "x");
    }
    wrong.extend(on_a_disk(&scene, "companions fill the disk", "size=640k", &[], &["disk", "space"]));
    let scene = Scene::new();
    let mut tensors = scene.0.base(8);
    tensors.extend((0..300).map(|i| (format!("x.{i}"), f32_noise(&[8], i))));
    scene.0.tensors("base/model.safetensors", &tensors);
    wrong.extend(on_a_disk(&scene, "shards fill the disk", "size=640k", &["--max-shard", "32"], &["disk", "space"]));
    expect_none(wrong);
}

#[test]
fn a_limit_on_the_length_of_files() {
    let scene = Scene::new();
    let args = [EXPORT, &["--out", "out"]].concat();
    let mut wrong = Vec::new();
    for limit in ["0", "64", "1000", "3000", "4096", "5000"] {
        let wrapper = ["prlimit", &format!("--fsize={limit}")];
        let ignored = [&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"], &wrapper[..]].concat();
        wrong.extend(scene.refuses_below(&ignored, &format!("{limit} bytes, no signal"), &args, &["out"]));
        wrong.extend(scene.refuses_below(&wrapper, &format!("{limit} bytes"), &args, &["out"]));
    }
    expect_none(wrong);
}
