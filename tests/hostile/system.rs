//! Files that change while they are read.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use safetensors::Dtype;

use super::{EXPORT, Scene, complaints, describe, expect_none};
use crate::workbench::{Noise, Said, said};

const BASE: &str = "base/model.safetensors";
const ATTEMPTS: usize = 5;
/// Enough for the race to be won, as a rule.
const LARGE: usize = 32 << 20;

/// A base with one large tensor of noise, the last of its file; and that file's bytes.
fn large() -> (Scene, Vec<u8>) {
    let scene = Scene::new();
    let mut tensors = scene.0.base(8);
    let mut noise = Noise(1);
    let bytes = (0..LARGE / 8).flat_map(|_| noise.next().to_le_bytes()).collect();
    tensors.insert("z".to_owned(), (Dtype::U8, vec![LARGE], bytes));
    let path = scene.0.tensors(BASE, &tensors);
    (scene, fs::read(path).unwrap())
}

/// Exports, and makes `change` as soon as the export has begun to write.
fn during_export(scene: &Scene, change: impl FnOnce()) -> Said {
    let mut command = scene.0.command();
    command.args(EXPORT).args(["--out", "out"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while !scene.0.path(".out.qft-staging/model.safetensors").exists() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(20), "it never begins to write");
        std::thread::sleep(Duration::from_micros(200));
    }
    change();
    said(child.wait_with_output().unwrap())
}

/// Cuts `lost` bytes off the base during an export, until one fails: with a message about that. One that was faster
/// must have the bytes that were cut off afterwards.
fn cut(lost: usize) {
    let (scene, whole) = large();
    let tail = &whole[whole.len() - 64..];
    for _ in 0..ATTEMPTS {
        let said = during_export(&scene, || {
            let file = File::options().write(true).open(scene.0.path(BASE)).unwrap();
            file.set_len((whole.len() - lost) as u64).unwrap();
        });
        if said.code != Some(0) {
            let mut wrong = complaints(&said, 1, &said.err, &["shorter", "remedy: "]);
            if scene.0.path("out").exists() {
                wrong.push("the destination is there".to_owned());
            }
            return expect_none(describe(&format!("{lost} bytes cut off"), EXPORT, &wrong, &said));
        }
        let out = fs::read(scene.0.path("out/model.safetensors")).unwrap();
        assert!(out.ends_with(tail), "an export succeeded without the bytes that were cut off");
        fs::remove_dir_all(scene.0.path("out")).unwrap();
        fs::write(scene.0.path(BASE), &whole).unwrap();
    }
    println!("the export was faster than the cut each of {ATTEMPTS} times");
}

#[test]
fn a_base_that_loses_its_second_half() {
    cut(LARGE / 2);
}

/// A cut within the last page raises no signal: the lost bytes read as zeros.
#[test]
fn a_base_that_loses_its_last_bytes() {
    cut(9);
}

/// What is mapped stays whole when its name is gone; only what is opened later is missed.
#[test]
fn a_base_that_is_removed_while_it_is_read() {
    let (scene, whole) = large();
    let said = during_export(&scene, || fs::remove_file(scene.0.path(BASE)).unwrap());
    if said.code == Some(0) {
        let out = fs::read(scene.0.path("out/model.safetensors")).unwrap();
        assert!(out.ends_with(&whole[whole.len() - 64..]));
    } else {
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert_eq!(scene.0.names(), ["base", "lora", "old"]);
    }
}
