//! Safetensors files that break the format's rules, by what safetensors' own tests and the format's page list, as
//! weights of the base and of the adapter, and what is odd but legal.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Scene, can, expect_none};
use crate::workbench::read_model;

/// A file: the header's length, the header, and `data` bytes.
pub(super) fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 1);
    bytes
}

/// One entry of a header, with `shape` and `offsets` as JSON.
pub(super) fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

fn one(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<u8> {
    file(format!("{{{}}}", entry("wte", dtype, shape, offsets)), data)
}

/// Two tensors of bytes, `wte` and `other`.
fn two(first: [usize; 2], second: [usize; 2], data: usize) -> Vec<u8> {
    let of = |name, [a, b]: [usize; 2]| entry(name, "U8", &format!("[{}]", b - a), &format!("[{a},{b}]"));
    file(format!("{{{},{}}}", of("wte", first), of("other", second)), data)
}

type Row = (&'static str, Vec<u8>, &'static [&'static str]);

/// Lengths, and what the header is written in.
fn frames() -> Vec<Row> {
    let length = |n: u64| n.to_le_bytes().to_vec();
    vec![
        ("an empty file", vec![], &["8 bytes"]),
        ("seven bytes", vec![0; 7], &["8 bytes"]),
        ("no header", length(60), &["cut off"]),
        ("no header, of no length", length(0), &["begin with '{'"]),
        ("the longest length", length(u64::MAX), &["allows 100000000"]),
        ("a length with the high bits set", length(0xffff_ff00_0000_003c), &["allows 100000000"]),
        ("a length just over the cap", length(100_000_001), &["allows 100000000"]),
        ("a length beyond the file", [length(90), b"{}".to_vec()].concat(), &["cut off"]),
        ("a length within the header", [length(4), one("U8", "[1]", "[0,1]", 1)[8..].to_vec()].concat(), &["header"]),
        ("one byte that is no text", file(b"\xff", 0), &["begin with '{'"]),
        ("a header that is no text", file(b"{\"\xff\":0}", 0), &["UTF-8"]),
        ("half a character", file(b"{\"\xe5\xb1\":0}", 0), &["UTF-8"]),
        ("an open brace", file("{", 0), &["the header"]),
        ("half an entry", file("{\"wte\":", 0), &["the header"]),
        ("a list", file("[]", 0), &["begin with '{'"]),
        ("two objects", file("{}{}", 0), &["trailing"]),
        ("a trailing comma", file("{\"__metadata__\":{},}", 0), &["the header"]),
        ("a comment", file("{/**/}", 0), &["the header"]),
        ("zeros as padding", file("{}\0\0\0\0\0\0", 0), &["trailing"]),
        ("leading white space", file("\t\n{}", 0), &["begin with '{'"]),
        ("a byte order mark", file("\u{feff}{}", 0), &["begin with '{'"]),
        ("half a surrogate pair", file(r#"{"\ud800":0}"#, 0), &["the header"]),
        ("a pickle", b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.".to_vec(), &["a file of torch.save"]),
        ("a page of HTML", b"<!DOCTYPE html><html>Not found</html>".to_vec(), &["declares a header"]),
        ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["is a Git LFS pointer"]),
        ("many open brackets", file(format!("{{\"wte\":{}", "[".repeat(200_000)), 0), &["the header"]),
        ("many open objects", file("{\"wte\":".repeat(100_000), 0), &["the header"]),
    ]
}

/// Where the tensors lie.
fn places() -> Vec<Row> {
    vec![
        ("an overlap", two([0, 4], [2, 6], 6), &["other", "overlaps"]),
        ("an overlap by one byte", two([0, 4], [3, 6], 6), &["other", "overlaps"]),
        ("a tensor inside another", two([0, 6], [2, 4], 6), &["other", "overlaps"]),
        ("twice the same bytes", two([0, 4], [0, 4], 4), &["wte", "overlaps"]),
        ("a hole", two([0, 4], [5, 6], 6), &["other", "belong to no tensor"]),
        ("a hole at the start", two([2, 4], [4, 6], 6), &["wte", "belong to no tensor"]),
        ("bytes after the end", two([0, 4], [4, 6], 7), &["after the last tensor"]),
        ("bytes and no tensor", file("{}", 5), &["after the last tensor"]),
        ("a byte short", two([0, 4], [4, 6], 5), &["other", "cut off"]),
        ("no bytes at all", two([0, 4], [4, 6], 0), &["wte", "cut off"]),
        ("offsets that wrap", one("U8", "[8]", "[18446744073709551607,18446744073709551615]", 8), &["wte", "cut off"]),
        ("an end beyond memory", one("U8", "[2305843009213693951]", "[0,2305843009213693951]", 8), &["wte", "cut off"]),
        ("an end before its begin", one("U8", "[1]", "[1,0]", 1), &["wte", "ends before"]),
        ("negative offsets", one("U8", "[1]", "[-1,0]", 1), &["invalid value"]),
        ("offsets with fractions", one("U8", "[1]", "[0.0,1.0]", 1), &["invalid type"]),
        ("offsets with exponents", one("U8", "[10]", "[0,1e1]", 10), &["invalid type"]),
        ("offsets of 65 bits", one("U8", "[1]", "[18446744073709551616,18446744073709551617]", 1), &["invalid"]),
        ("offsets in quotes", one("U8", "[1]", r#"["0","1"]"#, 1), &["invalid type"]),
        ("no offsets", one("U8", "[1]", "null", 1), &["invalid type"]),
        ("one offset", one("U8", "[1]", "[1]", 1), &["invalid length"]),
        ("three offsets", one("U8", "[1]", "[0,1,2]", 1), &["the header"]),
    ]
}

/// What the tensors are.
fn forms() -> Vec<Row> {
    let rest = |text: &str, data| file(format!("{{{text}}}"), data);
    let wte = |shape, offsets| entry("wte", "U8", shape, offsets);
    vec![
        ("too many bytes", one("I32", "[2,2]", "[0,20]", 20), &["wte", "20 bytes are given", "need 16"]),
        ("too few bytes", one("I32", "[2,2]", "[0,4]", 4), &["wte", "4 bytes are given", "need 16"]),
        ("bytes for a shape without", one("I32", "[2,0]", "[0,4]", 4), &["wte", "need 0"]),
        ("elements that overflow", one("I32", "[2,18446744073709551614]", "[0,16]", 16), &["wte", "overflows"]),
        ("bits that overflow", one("I32", "[2,9223372036854775807]", "[0,16]", 16), &["wte", "overflows"]),
        ("elements that wrap to none", one("U8", "[4294967296,4294967296]", "[0,0]", 0), &["wte", "overflows"]),
        ("an axis of 65 bits", one("U8", "[18446744073709551616]", "[0,1]", 1), &["invalid type"]),
        ("a negative axis", one("U8", "[-1]", "[0,1]", 1), &["invalid value"]),
        ("an axis with a fraction", one("U8", "[1.0]", "[0,1]", 1), &["invalid type"]),
        ("a number as shape", one("U8", "1", "[0,1]", 1), &["invalid type"]),
        ("half a byte", one("F4", "[1,3]", "[0,2]", 2), &["wte", "whole bytes"]),
        ("six bits", one("F6_E2M3", "[1]", "[0,1]", 1), &["wte", "whole bytes"]),
        ("an unknown type", one("F99", "[1]", "[0,1]", 1), &["F99"]),
        ("a type in small letters", one("f32", "[1]", "[0,4]", 4), &["f32"]),
        ("no type", rest(r#""wte":{"shape":[1],"data_offsets":[0,1]}"#, 1), &["dtype"]),
        ("no shape", rest(r#""wte":{"dtype":"U8","data_offsets":[0,1]}"#, 1), &["shape"]),
        ("a field too many", rest(&wte("[1]", r#"[0,1],"stride":[1]"#), 1), &["stride"]),
        ("a field twice", rest(&wte(r#"[9],"shape":[1]"#, "[0,1]"), 1), &["shape"]),
        ("an entry that is a list", rest(r#""wte":["U8",[1],[0,1]]"#, 1), &["invalid type"]),
        (
            "a name twice, the same bytes",
            rest(&[wte("[1]", "[0,1]"), wte("[1]", "[0,1]")].join(","), 1),
            &["wte", "twice"],
        ),
        ("a name twice", rest(&[wte("[1]", "[0,1]"), wte("[1]", "[1,2]")].join(","), 2), &["wte", "twice"]),
        (
            "a name in two spellings",
            rest(&[wte("[1]", "[0,1]"), entry(r"wt\u0065", "U8", "[1]", "[1,2]")].join(","), 2),
            &["wte", "twice"],
        ),
        ("a name without letters", rest(&entry("", "U8", "[1]", "[0,1]"), 1), &["empty name"]),
        ("metadata twice", rest(r#""__metadata__":{},"__metadata__":{"format":"pt"}"#, 0), &["__metadata__", "twice"]),
        ("metadata of numbers", rest(r#""__metadata__":{"step":1}"#, 0), &["invalid type"]),
        ("metadata as a list", rest(r#""__metadata__":[]"#, 0), &["invalid type"]),
        ("metadata as a tensor", rest(&entry("__metadata__", "U8", "[1]", "[0,1]"), 1), &["invalid type"]),
        ("a name of a megabyte", rest(&entry(&"n".repeat(1 << 20), "U8", "[2]", "[0,1]"), 1), &["nnn", "need 2"]),
        ("a shape of a million axes", rest(&wte(&format!("[{}2]", "1,".repeat(1 << 20)), "[0,1]"), 1), &["axes"]),
    ]
}

fn refused_everywhere(rows: Vec<Row>) {
    let (base, adapter) = (Scene::new(), Scene::new());
    let mut wrong = Vec::new();
    for (what, bytes, words) in rows {
        let with = |name| [&[name], words].concat();
        base.0.write("base/model.safetensors", &bytes);
        let mentions = with("base/model.safetensors");
        wrong.extend(base.export_refuses(what, &mentions));
        wrong.extend(base.refuses(what, &["inspect", "base"], &mentions));
        wrong.extend(base.refuses(what, &["inspect", "--json", "base/model.safetensors"], &mentions));
        wrong.extend(base.verify_reports(what, "base", &with("model.safetensors")));
        adapter.0.write("lora/adapter_model.safetensors", &bytes);
        let mentions = with("lora/adapter_model.safetensors");
        wrong.extend(adapter.export_refuses(what, &mentions));
        wrong.extend(adapter.refuses(what, &["inspect", "lora"], &mentions));
    }
    expect_none(wrong);
}

#[test]
fn a_broken_frame() {
    refused_everywhere(frames());
}

#[test]
fn tensors_out_of_place() {
    refused_everywhere(places());
}

#[test]
fn tensors_of_impossible_form() {
    refused_everywhere(forms());
}

#[test]
fn odd_but_legal_files_pass_unchanged() {
    let rows = [
        ("no tensor", file("{}      ", 0)),
        ("only metadata", file(r#"{"__metadata__":{"format":"pt"}}"#, 0)),
        ("white space after the header", file("{}\r \t\n", 0)),
        ("a scalar", one("I32", "[]", "[0,4]", 4)),
        ("no elements", one("I32", "[2,0]", "[0,0]", 0)),
        ("no elements, of huge axes", one("BF16", "[0,4294967296,4294967296]", "[0,0]", 0)),
        ("scalars and nothing in turns", {
            let entries = [entry("a", "U8", "[]", "[0,1]"), entry("b", "F64", "[3,0]", "[1,1]")];
            file(format!("{{{},{}}}", entries.join(","), entry("c", "BOOL", "[1]", "[1,2]")), 2)
        }),
        ("the type of half a byte", one("F4", "[1,2]", "[0,1]", 1)),
        ("odd alignment", file(format!("{{{}}}   ", entry("a", "F32", "[1]", "[0,4]")), 4)),
    ];
    let scene = Scene::new();
    let wrong = rows.into_iter().flat_map(|(what, bytes)| {
        scene.0.write("base/model.safetensors", &bytes);
        let mut wrong: Vec<String> = [
            &["inspect", "--stats", "base"][..],
            &["inspect", "--json", "base"],
            &["export", "--base", "base", "--out", "copy", "--overwrite", "--dry-run"],
            &["export", "--base", "base", "--out", "copy", "--overwrite"],
            &["export", "--base", "base", "--out", "cast", "--dtype", "f32", "--overwrite"],
            &["verify", "copy", "--audit", "--base", "base"],
        ]
        .iter()
        .filter_map(|args| scene.accepts(what, args))
        .collect();
        if wrong.is_empty() && read_model(&scene.0.path("copy")) != read_model(&scene.0.path("base")) {
            wrong.push(format!("{what}: the export changed it"));
        }
        wrong
    });
    expect_none(wrong);
}

#[test]
fn a_header_over_the_cap_is_not_read() {
    let scene = Scene::new();
    let sparse = File::create(scene.0.path("base/model.safetensors")).unwrap();
    sparse.set_len(200_000_000).unwrap();
    sparse.write_all_at(&100_000_001u64.to_le_bytes(), 0).unwrap();
    expect_none(scene.export_refuses("a header over the cap", &["base/model.safetensors", "allows 100000000"]));
}

/// Below the cap, a header could still ask for memory by the gigabyte: with tiny tensors, or with many axes.
#[test]
fn a_header_of_many_parts_takes_little_memory() {
    let wrapper = ["prlimit", "--as=1000000000"];
    if !can(&wrapper, "a bound on memory") {
        return;
    }
    let scene = Scene::new();
    let inspect = ["inspect", "base"];
    let mut wrong = Vec::new();
    let entries: String = (0..520_000).map(|i| entry(&format!("{i:x}"), "U8", "[0]", "[0,0]") + ",").collect();
    scene.0.write("base/model.safetensors", file(format!("{{{entries}}}"), 0));
    let mentions = ["base/model.safetensors", "500000 tensors"];
    wrong.extend(scene.refuses_below(&wrapper, "many tensors", &inspect, &mentions));
    let shape = format!("[{}0]", "1,".repeat(45_000_000));
    scene.0.write("base/model.safetensors", one("U8", &shape, "[0,0]", 0));
    wrong.extend(scene.refuses_below(&wrapper, "many axes", &inspect, &["base/model.safetensors"]));
    expect_none(wrong);
}
