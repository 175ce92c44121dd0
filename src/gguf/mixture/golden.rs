//! Types of tensors as llama-quantize chose them, by the files of fixtures/mixtures/, whose script says what is in them.

use std::path::{Path, PathBuf};
use std::{collections::BTreeMap, fs, iter};

use serde_json::Value;

use super::*;
use crate::gguf::GgufFile;
use crate::gguf::imatrix::Imatrix;

fn fixtures(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mixtures").join(of)
}

/// The names that a list of patterns stands for.
fn names(patterns: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for pattern in patterns.as_array().unwrap() {
        let pattern = pattern.as_str().unwrap();
        let Some((head, (ranges, tail))) = pattern.split_once('{').map(|(a, b)| (a, b.split_once('}').unwrap())) else {
            names.push(pattern.to_owned());
            continue;
        };
        for range in ranges.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let range = first.parse::<usize>().unwrap()..=last.parse().unwrap();
            names.extend(range.map(|i| format!("{head}{i}{tail}")));
        }
    }
    names
}

/// Choices by llama-quantize's flags, and whether there is an imatrix.
fn choices(mixture: &Value, flags: &Value) -> (Choices, bool) {
    let mut choices = Choices::of(mixture.as_str().unwrap().parse().unwrap());
    let mut has_imatrix = false;
    let mut flags = flags.as_array().unwrap().iter().map(|flag| flag.as_str().unwrap());
    while let Some(flag) = flags.next() {
        let mut value = || flags.next().unwrap();
        match flag {
            "--imatrix" => has_imatrix = value() == "imatrix.gguf",
            "--pure" => choices.pure = true,
            "--leave-output-tensor" => choices.leave_output = true,
            "--output-tensor-type" => choices.output_type = Some(value().parse().unwrap()),
            "--token-embedding-type" => choices.embedding_type = Some(value().parse().unwrap()),
            "--tensor-type" => choices.overrides.push(value().parse().unwrap()),
            _ => panic!("{flag}"),
        }
    }
    (choices, has_imatrix)
}

/// Checks every run of a file; returns how many tensors got a type.
fn check_file(path: &Path) -> usize {
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let number = |key: &str| golden[key].as_u64().unwrap();
    let facts = Facts {
        architecture: golden["architecture"].as_str().unwrap().to_owned(),
        layers: number("layers"),
        prediction_layers: 0,
        heads: number("heads"),
        key_value_heads: number("key_value_heads"),
        experts: number("experts"),
    };
    let mut tensors: Vec<(String, Vec<usize>, TensorType)> = Vec::new();
    for group in golden["tensors"].as_array().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(group[1].clone()).unwrap();
        let kind: TensorType = group[0].as_str().unwrap().parse().unwrap();
        tensors.extend(names(&group[2]).into_iter().map(|name| (name, shape.clone(), kind)));
    }
    let order = order(&tensors.iter().map(|tensor| &tensor.0).collect::<Vec<_>>());
    let candidates: Vec<_> = order
        .into_iter()
        .map(|i| &tensors[i])
        .map(|(name, shape, source)| Candidate { name, shape, source: *source, always_f32: false })
        .collect();
    let mut count = 0;
    for run in golden["runs"].as_array().unwrap() {
        let (choices, has_imatrix) = choices(&run["type"], &run["flags"]);
        let what = format!("{} {} {}", path.display(), run["type"], run["flags"]);
        let chosen = choose(&candidates, &facts, &choices, has_imatrix);
        if run["refused"] == true {
            assert!(chosen.is_err(), "{what}");
            continue;
        }
        let groups = run["tensors"].as_object().unwrap().iter();
        let kinds: BTreeMap<_, _> =
            groups.flat_map(|(kind, list)| names(list).into_iter().map(move |name| (name, kind))).collect();
        for (candidate, choice) in candidates.iter().zip(chosen.unwrap_or_else(|e| panic!("{what}: {e}"))) {
            let expected = kinds.get(candidate.name).or(kinds.get("...")).unwrap();
            assert_eq!(choice.kind.name(), *expected, "{what}: {}", candidate.name);
            count += 1;
        }
    }
    count
}

fn check_directory(name: &str) -> usize {
    fs::read_dir(fixtures(name)).unwrap().map(|entry| check_file(&entry.unwrap().path())).sum()
}

#[test]
fn made_up_models_get_the_types_of_llama_quantize() {
    assert!(check_directory("made") > 100_000);
}

#[test]
fn real_models_get_the_types_of_llama_cpps_own_test() {
    assert!(check_directory("snapshots") > 50_000);
}

#[test]
fn files_have_the_keys_and_the_order_of_llama_quantize() {
    let open = |name: &str| GgufFile::open(&fixtures("files").join(name)).unwrap();
    let long_path = iter::repeat_n("./", 80).chain(["imatrix.dat"]).collect::<String>();
    for (source, name, mixture, imatrix) in [
        ("source", "plain", FileType::Q8_0, None),
        ("source", "with_imatrix", FileType::Q8_0, Some(("imatrix.gguf", "imatrix.gguf"))),
        ("source", "with_legacy", FileType::Q8_0, Some(("imatrix.dat", long_path.as_str()))),
        ("plain", "requantized", FileType::Q4_0, None),
    ] {
        let (source, expected) = (open(&format!("{source}.gguf")), open(&format!("{name}.gguf")));
        let info = imatrix.map(|(file, typed)| Imatrix::read(&fixtures("files").join(file)).unwrap().info(typed));
        let finished = finish_metadata(source.metadata().clone(), mixture.file_type_id(), info.as_ref());
        assert_eq!(&finished, expected.metadata(), "{name}");

        let names: Vec<_> = source.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        let ordered: Vec<_> = order(&names).into_iter().map(|i| &source.tensors()[i]).collect();
        let candidates: Vec<_> = ordered
            .iter()
            .map(|t| Candidate { name: &t.name, shape: &t.shape, source: t.kind, always_f32: false })
            .collect();
        let choices = Choices { allow_requantize: true, ..Choices::of(mixture) };
        let facts = Facts::of(source.metadata()).unwrap();
        let chosen = choose(&candidates, &facts, &choices, info.is_some()).unwrap();
        let ours: Vec<_> = candidates.iter().zip(chosen).map(|(tensor, choice)| (tensor.name, choice.kind)).collect();
        let theirs: Vec<_> = expected.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.kind)).collect();
        assert_eq!(ours, theirs, "{name}");
    }
}
