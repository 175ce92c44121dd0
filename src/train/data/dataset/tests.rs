use std::fs;

use proptest::prelude::*;

use super::super::conversation::Role;
use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/train_data").join(name)
}

fn spec(path: &Path) -> DatasetSpec {
    DatasetSpec { path: path.to_owned(), sample: None }
}

fn rows(count: usize) -> String {
    (0..count).map(|n| format!("{{\"query\": \"q{n}\", \"response\": \"r{n}\"}}\n")).collect()
}

#[test]
fn a_spec_is_a_path_and_perhaps_a_number() {
    let parse = |text: &str| text.parse::<DatasetSpec>();
    assert_eq!(parse("a/b.jsonl").unwrap(), spec(Path::new("a/b.jsonl")));
    let sampled = DatasetSpec { path: "a#b.jsonl".into(), sample: Some(500) };
    assert_eq!(parse(" a#b.jsonl#500 ").unwrap(), sampled);
    assert_eq!(parse(&sampled.to_string()).unwrap(), sampled);
    for bad in ["", " ", "a#", "a#0", "a#-1", "a#x", "a#99999999999999999999"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part#3");
    fs::write(&path, rows(1)).unwrap();
    assert_eq!(parse(path.to_str().unwrap()).unwrap(), spec(&path));
}

#[test]
fn reads_files_in_order_and_counts_what_it_skips() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.jsonl"), format!("{}\r\n{{\"messages\": []}}\r\n{{\n", rows(2))).unwrap();
    fs::write(dir.path().join("a.json"), format!("[{},\n{{}}]", rows(1))).unwrap();
    fs::write(dir.path().join("dataset_info.json"), "{}").unwrap();
    fs::write(dir.path().join("notes.txt"), "no data").unwrap();
    let loaded = load(&[spec(dir.path())], false, 0).unwrap();
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    let origins: Vec<_> = loaded.conversations.iter().map(|c| (name(&c.origin.file), c.origin.line)).collect();
    assert_eq!(origins, [("a.json".to_owned(), 1), ("b.jsonl".to_owned(), 1), ("b.jsonl".to_owned(), 2)]);
    let counts: Vec<_> = loaded.files.iter().map(|f| (name(&f.file), f.usable, f.skipped)).collect();
    assert_eq!(counts, [("a.json".to_owned(), 1, 1), ("b.jsonl".to_owned(), 2, 2)]);
    let skipped: Vec<_> = loaded.skipped.iter().map(ToString::to_string).collect();
    assert!(skipped[0].contains("a.json, line 3: has no known column; give each row"), "{skipped:?}");
    assert!(skipped[1].contains("b.jsonl, line 4: the list of messages is empty; drop the row"), "{skipped:?}");
    assert!(skipped[2].contains("b.jsonl, line 5: is not JSON (EOF while parsing an object, 1 bytes"), "{skipped:?}");

    let error = load(&[spec(dir.path())], true, 0).unwrap_err().to_string();
    assert!(error.contains("a.json: line 3: has no known column\n  remedy: give each row"), "{error}");
}

#[test]
fn samples_each_dataset_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
    fs::write(&a, rows(20)).unwrap();
    fs::write(&b, rows(3)).unwrap();
    let specs = [DatasetSpec { path: a, sample: Some(5) }, DatasetSpec { path: b.clone(), sample: Some(7) }];
    let loaded = load(&specs, true, 1).unwrap();
    assert_eq!(loaded.order.iter().filter(|at| *loaded.conversations[**at].origin.file == *b).count(), 7);
    assert_eq!((loaded.order.len(), loaded.conversations.len()), (12, 8), "a row that is repeated is kept once");
    assert_eq!(loaded.files.iter().map(|file| file.usable).collect::<Vec<_>>(), [20, 3]);
    assert_eq!(loaded, load(&specs, true, 1).unwrap());
    assert_ne!(loaded, load(&specs, true, 2).unwrap());
}

#[test]
fn a_sample_repeats_rows_so_often_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, rows(2)).unwrap();
    let of = |count| load(&[DatasetSpec { path: path.clone(), sample: Some(count) }], true, 1);
    let loaded = of(1_000_000).unwrap();
    assert_eq!((loaded.conversations.len(), loaded.order.len()), (2, 1_000_000));
    let error = of(1_000_001).unwrap_err().to_string();
    assert!(error.contains("a.jsonl#1000001 requests 1000001 rows, and 2 can be used"), "{error}");
    assert!(error.contains("⟦num_train_epochs"), "{error}");
}

#[test]
fn a_row_without_end_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{{\"query\": \"{}\", \"response\": \"b\"}}", "x".repeat(17 << 20));
    let good = rows(1);
    for (name, text) in [("a.jsonl", format!("{long}\n{good}")), ("a.json", format!("[{long},\n{}]", good.trim_end()))]
    {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let loaded = load(&[spec(&path)], false, 1).unwrap();
        assert_eq!((loaded.conversations.len(), loaded.skipped.len()), (1, 1), "{name}");
        let reason = &loaded.skipped[0].reason;
        assert!(
            reason.contains("has 17.8 MB of text, and at most 16.8 MB are supported; cut it into shorter"),
            "{reason}"
        );
    }
}

#[test]
fn refuses_what_it_cannot_read_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| load(&[spec(path)], false, 0).unwrap_err().to_string();
    assert!(error(&dir.path().join("none.jsonl")).contains("there is no file or directory"));
    assert!(error(dir.path()).contains("holds no file named .json, .jsonl"));
    let empty = dir.path().join("train.jsonl");
    fs::write(&empty, "\n\n").unwrap();
    assert!(error(&empty).contains("there is no row in"));
    fs::write(&empty, "{}\n{}\n").unwrap();
    assert!(error(&empty).contains("none of 2 rows can be used; the first, "));
    fs::write(dir.path().join("test.jsonl"), rows(1)).unwrap();
    assert!(error(dir.path()).contains("files for training and others"));
    assert!(load(&[], false, 0).is_err());
    let fake = dir.path().join("fake.parquet");
    fs::write(&fake, "PAR1 and no more").unwrap();
    assert!(error(&fake).contains("fake.parquet: "));
}

#[test]
fn reads_parquet_rows_by_number() {
    let loaded = load(&[spec(&fixture("chat.snappy.parquet")), spec(&fixture("alpaca.parquet"))], false, 0).unwrap();
    let contents: Vec<Vec<&str>> =
        loaded.conversations.iter().map(|row| row.messages.iter().map(|message| &*message.content).collect()).collect();
    assert_eq!(
        contents,
        [
            vec!["Be kind.", "你好", "你好！"],
            vec!["Be brief.", "2+2", "4"],
            vec!["Add.\n1 and 2", "3"],
            vec!["Say hi.", "hi"],
        ]
    );
    let skipped: Vec<_> = loaded.skipped.iter().map(|skipped| skipped.origin.place()).collect();
    assert_eq!(skipped, ["row 3", "row 4"]);
    assert!(loaded.skipped[0].reason.contains("the role `narrator` is unknown"));
}

#[test]
fn reads_tool_calls_of_parquet() {
    let loaded = load(&[spec(&fixture("tools.zstd.parquet"))], true, 0).unwrap();
    let row = &loaded.conversations[0];
    let roles: Vec<Role> = row.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::User, Role::ToolCall, Role::ToolCall, Role::Tool, Role::Tool, Role::Assistant]);
    assert_eq!(row.messages[1].content, r#"{"name": "add", "arguments": {"x": 1, "y": 2}}"#);
    assert_eq!((&*row.messages[3].content, &*row.messages[4].content), ("3", "7"));
    let losses: Vec<_> = row.messages.iter().map(|message| message.loss).collect();
    assert_eq!(losses, [None, Some(false), Some(false), None, None, Some(true)]);
    assert_eq!(row.tools.len(), 1);
    assert!(loaded.conversations[1].tools.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), lines: bool) {
        let name = if lines { "a.jsonl" } else { "a.json" };
        let _ = read_text(Path::new(name), &bytes, false);
    }

    #[test]
    fn no_text_like_json_panics(text in "([\\[\\]{}:,\" \n]|\"[a-z]{0,2}\"|\"messages\"|\"role\"|1|null|\u{feff}){0,40}", lines: bool) {
        let name = if lines { "a.jsonl" } else { "a.json" };
        let _ = read_text(Path::new(name), text.as_bytes(), false);
    }
}
