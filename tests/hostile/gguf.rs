//! GGUF files that break the format's rules: each case that llama.cpp's own tests make by hand, the gaps that its reader
//! leaves, and splits whose parts do not fit. Files are built byte by byte here, not by qft.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Scene, can, complaints, describe, expect_none};

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;
const Q8_0: u32 = 8;
const I8: u32 = 24;
const I64: u32 = 27;

/// The parts of a file. Counts are those of the lists, if they are not given.
#[derive(Clone)]
struct Gguf {
    start: Vec<u8>,
    key_count: Option<u64>,
    tensor_count: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    /// What the header is padded to, if at all.
    alignment: usize,
    data: usize,
}

impl Gguf {
    /// No more than a header.
    fn empty() -> Self {
        let start = b"GGUF\x03\0\0\0".to_vec();
        let (keys, tensors) = (Vec::new(), Vec::new());
        Self { start, key_count: None, tensor_count: None, keys, tensors, alignment: 32, data: 0 }
    }

    fn start(start: &[u8]) -> Vec<u8> {
        Self { start: start.to_vec(), ..Self::empty() }.bytes()
    }

    fn of_keys(keys: &[Vec<u8>]) -> Vec<u8> {
        Self { keys: [&[architecture()], keys].concat(), ..Self::empty() }.bytes()
    }

    /// With so many bytes of data.
    fn of_tensors(tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
        Self { keys: vec![architecture()], tensors: tensors.to_vec(), data, ..Self::empty() }.bytes()
    }

    /// Two tensors at `offsets`, with the key of an alignment, and padded to one.
    fn aligned(key: u32, padded: usize, offsets: [u64; 2], data: usize) -> Vec<u8> {
        let keys = vec![architecture(), pair("general.alignment", U32, &key.to_le_bytes())];
        let tensors = vec![tensor("a", &[5], I8, offsets[0]), tensor("b", &[5], I8, offsets[1])];
        Self { keys, tensors, alignment: padded, data, ..Self::empty() }.bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [(self.tensor_count, &self.tensors), (self.key_count, &self.keys)];
        let counts = counts.map(|(given, list)| given.unwrap_or(list.len() as u64).to_le_bytes());
        let mut bytes = [&self.start, &counts.concat(), &self.keys.concat(), &self.tensors.concat()[..]].concat();
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.resize(bytes.len() + self.data, 0);
        bytes
    }
}

fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A key of type `kind`, with the bytes of its value.
fn pair(key: impl AsRef<[u8]>, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], value].concat()
}

fn architecture() -> Vec<u8> {
    pair("general.architecture", STRING, &text("llama"))
}

/// An array as a value.
fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

/// A tensor's entry; the row's length comes first among the axes.
fn tensor(name: impl AsRef<[u8]>, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let lengths: Vec<u8> = axes.iter().flat_map(|axis| axis.to_le_bytes()).collect();
    let count = (axes.len() as u32).to_le_bytes();
    [&text(name), &count[..], &lengths, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

type Row = (&'static str, Vec<u8>, &'static [&'static str]);

/// Holds that inspecting each file ends with exit code 1 and verifying it with 3, and what both mention.
fn refused(rows: Vec<Row>) {
    let scene = Scene::new();
    let mut wrong = Vec::new();
    for (what, bytes, mentions) in rows {
        scene.0.write("bad.gguf", bytes);
        let mentions = [&["bad.gguf"], mentions].concat();
        wrong.extend(scene.refuses(what, &["inspect", "bad.gguf"], &mentions));
        wrong.extend(scene.refuses(what, &["inspect", "--stats", "--json", "bad.gguf"], &mentions));
        wrong.extend(scene.verify_reports(what, "bad.gguf", &mentions));
    }
    expect_none(wrong);
}

#[test]
fn a_broken_start() {
    let counts = |tensor_count, key_count| Gguf { tensor_count, key_count, ..Gguf::empty() }.bytes();
    refused(vec![
        ("an empty file", vec![], &["GGUF"]),
        ("three bytes", b"GGU".to_vec(), &["GGUF"]),
        ("other letters", Gguf::start(b"FUGG\x03\0\0\0"), &["GGUF"]),
        ("the older letters", Gguf::start(b"tjgg\x03\0\0\0"), &["GGUF"]),
        ("a page of HTML", b"<!DOCTYPE html><html>Not found</html>".to_vec(), &["GGUF"]),
        ("only the letters", b"GGUF".to_vec(), &["version", "cut off"]),
        ("half a header", Gguf::empty().bytes()[..20].to_vec(), &["cut off"]),
        ("version 0", Gguf::start(b"GGUF\0\0\0\0"), &["version 0"]),
        ("version 1", Gguf::start(b"GGUF\x01\0\0\0"), &["version 1"]),
        ("version 4", Gguf::start(b"GGUF\x04\0\0\0"), &["version 4"]),
        ("big-endian", Gguf::start(b"GGUF\0\0\0\x03"), &["big-endian"]),
        ("-1 tensors", counts(Some(u64::MAX), None), &["18446744073709551615 tensors"]),
        ("-1 keys", counts(None, Some(u64::MAX)), &["18446744073709551615 keys"]),
        ("tensors that no file holds", counts(Some(400_000), None), &["400000 tensors"]),
        ("keys that the file lacks", counts(None, Some(2)), &["2 keys", "cut off"]),
    ]);
}

#[test]
fn broken_keys() {
    let one = |key: Vec<u8>| Gguf::of_keys(&[key]);
    let beyond = |kind: u32| one(pair("my.key", kind, &[1; 80]));
    refused(vec![
        ("a key beyond the file", one([&u64::MAX.to_le_bytes()[..], &[1; 40]].concat()), &["key 1", "cut off"]),
        ("an empty key", one(pair("", U32, &[1; 4])), &["empty"]),
        ("a key of 65536 bytes", one(pair("k".repeat(65_536), U32, &[1; 4])), &["65535"]),
        ("a key that is no text", one(pair(b"\xff\xfe", U32, &[1; 4])), &["key 1", "UTF-8"]),
        ("a key that C reads as another", one(pair("my.key\0x", U32, &[1; 4])), &["zero byte"]),
        ("type 13", beyond(13), &["my.key", "type 13"]),
        ("type -1", beyond(u32::MAX), &["my.key", "does not exist"]),
        (
            "two keys twice",
            Gguf::of_keys(&[pair("my.key", U32, &[1; 4]), pair("my.key", 0, &[1])]),
            &["my.key", "twice"],
        ),
        ("alignment 13", one(pair("general.alignment", U32, &13u32.to_le_bytes())), &["general.alignment is 13"]),
        ("alignment 0", one(pair("general.alignment", U32, &[0; 4])), &["general.alignment is 0"]),
        (
            "a huge alignment",
            one(pair("general.alignment", U32, &[0, 0, 0, 0x80])),
            &["general.alignment", "is supported"],
        ),
        ("alignment as i32", one(pair("general.alignment", 5, &[32, 0, 0, 0])), &["general.alignment is not a u32"]),
        ("alignment as a list", one(pair("general.alignment", ARRAY, &array(U32, 1, &[32, 0, 0, 0]))), &["not a u32"]),
        ("a string beyond the file", one(pair("my.key", STRING, &u64::MAX.to_le_bytes())), &["my.key", "cut off"]),
        ("a string that is no text", one(pair("my.key", STRING, &text(b"a\xe5\xb1"))), &["my.key", "UTF-8"]),
        (
            "text of a list that is none",
            one(pair("my.key", ARRAY, &array(STRING, 1, &text(b"\x80")))),
            &["my.key", "UTF-8"],
        ),
        ("a boolean of 2", one(pair("my.key", 7, &[2])), &["my.key", "boolean of 2"]),
        (
            "a list of lists",
            one(pair("my.key", ARRAY, &array(ARRAY, 1, &array(U32, 1, &[1; 4])))),
            &["my.key", "array of arrays"],
        ),
        ("a list of type 13", one(pair("my.key", ARRAY, &array(13, 1, &[1; 80]))), &["my.key", "type 13"]),
        ("a list beyond the file", one(pair("my.key", ARRAY, &array(0, 1 << 30, &[1; 80]))), &["my.key", "cut off"]),
        (
            "a list whose bytes overflow",
            one(pair("my.key", ARRAY, &array(10, 1 << 61, &[1; 80]))),
            &["my.key", "cut off"],
        ),
        (
            "a list of strings beyond the file",
            one(pair("my.key", ARRAY, &array(STRING, 1 << 60, &[0; 80]))),
            &["my.key", "cut off"],
        ),
        (
            "a list of cut strings",
            one(pair("my.key", ARRAY, &array(STRING, 2, &[&text("a"), &[0xff; 16][..]].concat()))),
            &["my.key", "cut off"],
        ),
        ("nothing after a key's type", Gguf::of_keys(&[pair("my.key", ARRAY, &[])])[..64].to_vec(), &["cut off"]),
    ]);
}

#[test]
fn broken_tensors() {
    let one = |name: &str, axes: &[u64], kind| Gguf::of_tensors(&[tensor(name, axes, kind, 0)], 4096);
    let at = |offset| Gguf::of_tensors(&[tensor("x", &[8], F32, offset)], 4096);
    let two = |name: &str, offset| Gguf::of_tensors(&[tensor("x", &[5], F32, 0), tensor(name, &[5], F32, offset)], 64);
    let many = (0..3).map(|i| tensor(format!("t{i}"), &[1 << 62], I8, i << 62)).collect::<Vec<_>>();
    refused(vec![
        ("a name of 64 bytes", one(&"n".repeat(64), &[8], F32), &["nnnn", "64 bytes"]),
        ("an empty name", one("", &[8], F32), &["empty name"]),
        ("a name that C reads as another", one("x\0y", &[8], F32), &["zero byte"]),
        ("a name that is no text", Gguf::of_tensors(&[tensor(b"\xff", &[8], F32, 0)], 32), &["tensor 0", "UTF-8"]),
        ("five axes", one("x", &[1; 5], F32), &["tensor x", "5 axes"]),
        ("4294967295 axes", Gguf::of_tensors(&[[&text("x"), &[255; 100][..]].concat()], 32), &["tensor x", "axes"]),
        ("a length of -1", one("x", &[u64::MAX], F32), &["tensor x", "overflows"]),
        ("too many elements", one("x", &[4 * 0x7fff_ffff, 4 * 0x7fff_ffff], F32), &["tensor x", "overflows"]),
        ("too many bytes", one("x", &[1_533_877_328, 1_533_877_328], I64), &["tensor x", "overflows"]),
        ("bytes just under the limit", one("x", &[4, (1 << 30) - 1, (1 << 30) + 1], F32), &["tensor x", "cut off"]),
        ("huge axes beside one of 0", one("x", &[0, 1 << 40, 1 << 40], F32), &["tensor x", "overflows"]),
        ("type 43", one("x", &[32], 43), &["tensor x", "type is 43"]),
        ("type -1", one("x", &[32], u32::MAX), &["tensor x", "does not exist"]),
        ("a type that was removed", one("x", &[32], 4), &["tensor x", "type is 4"]),
        ("half a block", one("x", &[48, 2], Q8_0), &["tensor x", "a multiple of the block size of Q8_0"]),
        ("no axis, of blocks", one("x", &[], Q8_0), &["tensor x", "a multiple of the block size of Q8_0"]),
        ("an offset of -1", at(u64::MAX), &["tensor x", "offset"]),
        ("an offset before a gap", at(32), &["tensor x", "offset is 32"]),
        ("a name twice", two("x", 32), &["tensor x", "twice"]),
        ("an overlap", two("y", 0), &["tensor y", "offset is 0"]),
        ("no padding between", two("y", 20), &["tensor y", "offset is 20"]),
        ("a sum that overflows", Gguf::of_tensors(&many, 32), &["tensor t0", "cut off"]),
        ("an entry that is cut", Gguf::of_tensors(&[tensor("x", &[8], F32, 0)], 0)[..90].to_vec(), &["cut off"]),
    ]);
}

#[test]
fn data_out_of_place() {
    let huge = [
        tensor("a", &[0x7fff_ffff_ffff_ffc0], I8, 0),
        tensor("b", &[0x7fff_ffff_ffff_ffc0], I8, 0x7fff_ffff_ffff_ffc0),
    ];
    refused(vec![
        ("no data", Gguf::of_tensors(&[tensor("x", &[8], F32, 0)], 0), &["tensor x", "cut off"]),
        ("a byte too few", Gguf::of_tensors(&[tensor("x", &[8], F32, 0)], 31), &["tensor x", "cut off"]),
        ("no padding before the data", Gguf { alignment: 1, ..tensors_of_one() }.bytes(), &["tensor x", "cut off"]),
        ("sizes whose sum is no more memory", Gguf::of_tensors(&huge, 32), &["tensor a", "cut off"]),
        ("an alignment that is none", Gguf::aligned(13, 13, [0, 13], 26), &["general.alignment is 13"]),
        ("offsets of another alignment", Gguf::aligned(32, 1, [0, 5], 100), &["tensor b", "offset is 5"]),
        ("offsets of the default alignment", Gguf::aligned(8, 32, [0, 32], 100), &["tensor b", "offset is 32"]),
    ]);
}

fn tensors_of_one() -> Gguf {
    Gguf { keys: vec![architecture()], tensors: vec![tensor("x", &[8], F32, 0)], data: 32, ..Gguf::empty() }
}

#[test]
fn odd_but_legal_files_are_shown() {
    let scalar = |key: &str, kind: u32, len: usize| pair(key, kind, &vec![1; len]);
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].into_iter().zip(0u32..).filter(|(size, _)| *size > 0);
    let every: Vec<Vec<u8>> = sizes
        .flat_map(|(size, kind)| {
            let list = array(kind, 3, &vec![1; 3 * size]);
            [scalar(&format!("k{kind}"), kind, size), pair(format!("l{kind}"), ARRAY, &list)]
        })
        .chain([pair("none", ARRAY, &array(STRING, 0, &[]))])
        .collect();
    let axes = [tensor("a", &[64, 1, 1], Q8_0, 0), tensor("b", &[5, 0], F32, 96), tensor("c", &[], F32, 96)];
    // What llama.cpp's reader takes, and how qft's lint sees it.
    let rows: Vec<(&str, Vec<u8>, i32)> = vec![
        ("no key and no tensor", Gguf::empty().bytes(), 3),
        ("no padding without a tensor", Gguf { alignment: 1, ..Gguf::empty() }.bytes(), 3),
        ("every type of value", Gguf::of_keys(&every), 3),
        ("axes of 0 and 1, and no axis", Gguf::of_tensors(&axes, 128), 0),
        ("version 2", Gguf { start: b"GGUF\x02\0\0\0".to_vec(), ..tensors_of_one() }.bytes(), 0),
        ("alignment 1", Gguf::aligned(1, 1, [0, 5], 10), 0),
        ("alignment 4096", Gguf::aligned(4096, 4096, [0, 4096], 8192), 0),
        ("a name of 63 bytes", Gguf::of_tensors(&[tensor("n".repeat(63), &[8], F32, 0)], 32), 0),
        ("bytes after the end", Gguf { data: 33, ..tensors_of_one() }.bytes(), 3),
        ("no padding at the end", Gguf::of_tensors(&[tensor("x", &[7], F32, 0)], 28), 3),
    ];
    let scene = Scene::new();
    let mut wrong = Vec::new();
    for (what, bytes, verdict) in rows {
        scene.0.write("odd.gguf", bytes);
        wrong.extend(scene.accepts(what, &["inspect", "--stats", "odd.gguf"]));
        wrong.extend(scene.accepts(what, &["inspect", "--stats", "--json", "odd.gguf"]));
        let said = scene.run(&[], &["verify", "odd.gguf"]);
        wrong.extend(describe(what, &["verify", "odd.gguf"], &complaints(&said, verdict, "", &[]), &said));
    }
    expect_none(wrong);
}

#[test]
fn names_and_values_do_not_reach_the_terminal_raw() {
    let hostile = "\u{1b}[2J\u{202e}\r";
    let keys = vec![
        pair(format!("k{hostile}"), STRING, &text(format!("v{hostile}"))),
        pair("list", ARRAY, &array(STRING, 1, &text(hostile))),
        architecture(),
    ];
    let tensors = vec![tensor(format!("t{hostile}"), &[8], F32, 0)];
    let scene = Scene::new();
    let good = Gguf { keys: keys.clone(), tensors, data: 32, ..Gguf::empty() };
    scene.0.write("odd.gguf", good.bytes());
    let mut wrong: Vec<String> =
        scene.accepts("hostile names", &["inspect", "--stats", "odd.gguf"]).into_iter().collect();
    let twice = [keys[0].clone(), keys[0].clone()];
    scene.0.write("bad.gguf", Gguf::of_keys(&twice));
    wrong.extend(scene.refuses("a hostile key twice", &["inspect", "bad.gguf"], &["twice"]));
    wrong.extend(scene.verify_reports("a hostile key twice", "bad.gguf", &["twice"]));
    expect_none(wrong);
}

/// A part of a split of two, with the numbers that it gives, and one tensor.
fn part(numbers: [u16; 3], name: &str) -> Vec<u8> {
    let keys = ["split.no", "split.count", "split.tensors.count"].iter().zip(numbers);
    let keys = keys.map(|(key, number)| pair(key, 2, &number.to_le_bytes())).chain([architecture()]).collect();
    Gguf { keys, tensors: vec![tensor(name, &[8], F32, 0)], data: 32, ..Gguf::empty() }.bytes()
}

#[test]
fn parts_that_do_not_fit() {
    const FIRST: &str = "m-00001-of-00002.gguf";
    const SECOND: &str = "m-00002-of-00002.gguf";
    let rows: Vec<Row> = vec![
        ("another number", part([0, 2, 2], "y"), &[SECOND, "split.no is 0"]),
        ("another count", part([1, 3, 2], "y"), &[SECOND, "split.count is 3"]),
        ("another number of tensors", part([1, 2, 9], "y"), &[SECOND, "split.tensors.count"]),
        ("a tensor twice", part([1, 2, 2], "x"), &[SECOND, "tensor x"]),
        ("no part at all", tensors_of_one().bytes(), &[SECOND, "split.count is absent"]),
        ("a broken part", b"GGUF".to_vec(), &[SECOND, "cut off"]),
    ];
    let scene = Scene::new();
    let mut wrong = Vec::new();
    let both = |what: &str, mentions: &[&str]| {
        let inspect = scene.refuses(what, &["inspect", &format!("release/{FIRST}")], mentions);
        [inspect, scene.verify_reports(what, "release", mentions)].into_iter().flatten().collect::<Vec<_>>()
    };
    scene.0.write(format!("release/{FIRST}"), part([0, 2, 2], "x"));
    wrong.extend(both("a missing part", &[SECOND, "is missing"]));
    for (what, bytes, mentions) in rows {
        scene.0.write(format!("release/{SECOND}"), bytes);
        wrong.extend(both(what, mentions));
    }
    scene.0.write(format!("release/{SECOND}"), part([1, 2, 2], "y"));
    wrong.extend(scene.accepts("a whole split", &["inspect", &format!("release/{SECOND}")]));
    wrong.extend(scene.accepts("a whole split", &["verify", "release"]));
    scene.0.write("alone.gguf", part([0, 2, 2], "x"));
    wrong.extend(scene.refuses("a part by another name", &["inspect", "alone.gguf"], &["alone.gguf", "2 parts"]));
    scene.0.write("many.gguf", part([0, u16::MAX, 2], "x"));
    wrong.extend(scene.refuses("65535 parts", &["inspect", "many.gguf"], &["many.gguf", "65535 parts"]));
    scene.link(format!("release/{SECOND}"), scene.0.path("nowhere"));
    wrong.extend(both("a link to nothing", &[SECOND, "is a link to nothing"]));
    scene.pipe(&format!("release/{SECOND}"));
    wrong.extend(both("a pipe as a part", &[SECOND, "regular file"]));
    expect_none(wrong);
}

/// Keys and tensors could ask for many times the memory that they take of the file.
#[test]
fn counts_claim_little_memory() {
    let wrapper = ["prlimit", "--as=1500000000"];
    if !can(&wrapper, "a bound on memory") {
        return;
    }
    let scene = Scene::new();
    let sparse = |name: &str, start: &[u8], len: u64| {
        let file = File::create(scene.0.path(name)).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(start, 0).unwrap();
    };
    let list = |kind: u32, count: u64| {
        let keys = vec![pair("my.key", ARRAY, &array(kind, count, &[]))];
        Gguf { keys, alignment: 1, ..Gguf::empty() }.bytes()
    };
    let counts = |tensor_count, key_count| Gguf { tensor_count, key_count, alignment: 1, ..Gguf::empty() }.bytes();
    let mut wrong = Vec::new();
    let rows = [
        ("empty strings", list(STRING, 90_000_000), "bytes of values"),
        ("bytes", list(0, 700_000_000), "bytes of values"),
        ("keys", counts(None, Some(40_000_000)), "40000000 keys"),
        ("tensors", counts(Some(20_000_000), None), "20000000 tensors"),
    ];
    for (what, start, expected) in rows {
        sparse("big.gguf", &start, 800_000_000);
        wrong.extend(scene.refuses_below(&wrapper, what, &["inspect", "big.gguf"], &["big.gguf", expected]));
    }
    expect_none(wrong);
}
