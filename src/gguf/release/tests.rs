use super::*;

const TENSORS: [(&str, &[usize]); 2] = [(EMBEDDING, &[3, 8]), ("blk.0.attn_q.weight", &[8, 8])];

/// What the rules say of a file with these keys, an embedding of three rows and a matrix.
fn found(keys: &[(&str, Value)]) -> Vec<(Verdict, String)> {
    let metadata = metadata(keys);
    find(&metadata, TENSORS.into_iter()).into_iter().map(|finding| (finding.verdict, finding.problem)).collect()
}

fn metadata(keys: &[(&str, Value)]) -> Metadata {
    let all = [("general.architecture", Value::string("qwen2"))];
    all.iter().chain(keys).map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// The one thing that the rules say.
fn one(keys: &[(&str, Value)]) -> (Verdict, String) {
    let mut all = found(keys);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn tokens<const N: usize>(texts: [&str; N]) -> (&'static str, Value) {
    (TOKENS, Value::strings(texts))
}

#[test]
fn a_sound_file_breaks_no_rule() {
    let keys = [
        tokens(["a", "b", "c"]),
        ("tokenizer.ggml.model", Value::string("gpt2")),
        ("tokenizer.ggml.pre", Value::string("qwen2")),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1, 1, 3]))),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("general.base_model.0.repo_url", Value::string("https://huggingface.co/a/b")),
        ("general.tags", Value::strings(["chat", "base_model:finetune:a/b"])),
        ("quantize.imatrix.file", Value::string("imatrix.dat")),
        ("quantize.imatrix.entries_count", Value::U32(1)),
        ("qwen2.rope.freq_base", Value::F32(1e6)),
    ];
    assert_eq!(found(&keys), []);
    let nothing = find(&Metadata::default(), std::iter::empty());
    assert_eq!(nothing.iter().map(|finding| finding.verdict).collect::<Vec<_>>(), [Verdict::Wrong; 2]);
}

#[test]
fn what_llama_cpp_does_not_load_is_refused() {
    let refused = |keys: &[(&str, Value)], mentions: &[&str]| {
        let (verdict, problem) = one(keys);
        assert_eq!(verdict, Verdict::Refuse, "{problem}");
        mentions.iter().for_each(|mention| assert!(problem.contains(mention), "{problem} should mention {mention}"));
        let metadata = metadata(keys);
        let error = check_plan(&metadata, TENSORS.into_iter()).unwrap_err().to_string();
        assert!(error.contains(&problem) && error.contains("remedy"), "{error}");
    };
    refused(&[tokens(["a", "b"])], &["3 rows", "2 elements"]);
    refused(&[tokens(["a", "b", "a"])], &["tokens 0 and 2 are both a"]);
    let scores = ("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; 2])));
    refused(&[tokens(["a", "b", "c"]), scores], &["scores has 2"]);
    let scores = ("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0, f32::NAN, 0.0])));
    refused(&[tokens(["a", "b", "c"]), scores], &["tokenizer.ggml.scores", "NaN", "place 1"]);
    refused(&[("qwen2.rope.freq_base", Value::F32(f32::INFINITY))], &["qwen2.rope.freq_base is inf"]);
    refused(&[("x.y", Value::F64(f64::NEG_INFINITY))], &["x.y is -inf"]);
    assert_eq!(found(&[tokens(["", "", "a"])]), [], "llama.cpp names empty tokens itself");
}

#[test]
fn many_equal_tokens_are_counted() {
    let texts = vec!["x"; 40];
    let metadata = metadata(&[(TOKENS, Value::strings(texts))]);
    let found = find(&metadata, [("a", &[1][..])].into_iter());
    assert_eq!(found.len(), 9);
    assert!(found[8].problem.contains("31 more"), "{found:?}");
}

#[test]
fn what_loads_and_is_wrong_is_told() {
    let told = |verdict, keys: &[(&str, Value)], mentions: &[&str]| {
        let (found, problem) = one(keys);
        assert_eq!(found, verdict, "{problem}");
        mentions.iter().for_each(|mention| assert!(problem.contains(mention), "{problem} should mention {mention}"));
        let metadata = metadata(keys);
        assert_eq!(check_plan(&metadata, TENSORS.into_iter()).unwrap()[0], problem);
    };
    let three = || tokens(["a", "b", "c"]);
    told(Verdict::Wrong, &[three(), ("tokenizer.ggml.eos_token_id", Value::U32(3))], &["eos token is 3"]);
    told(Verdict::Wrong, &[three(), ("tokenizer.ggml.model", Value::string("gpt2"))], &["tokenizer.ggml.pre"]);
    told(Verdict::Wrong, &[("general.source.url", Value::string("/srv/x"))], &["general.source.url", "/srv/x"]);
    told(Verdict::Wrong, &[("general.tags", Value::strings(["a", "base_model:adapter:/srv/x"]))], &["/srv/x"]);
    told(Verdict::Tell, &[("quantize.imatrix.dataset", Value::string("C:\\x.txt"))], &["C:\\x.txt"]);
    told(Verdict::Tell, &[("quantize.imatrix.entries_count", Value::U32(63))], &["63 entries"]);
    told(Verdict::Tell, &[("qwen2.logit_scale", Value::F32(8.0))], &["qwen2.logit_scale is 8", "logits"]);
    told(Verdict::Tell, &[("qwen2.attention.sliding_window", Value::U32(64))], &["sliding_window is 64"]);
    told(Verdict::Tell, &[("qwen2.rope.scaling.yarn_attn_factor", Value::F32(0.5))], &["yarn_attn_factor is 0.5"]);
    for fine in [
        ("qwen2.logit_scale", Value::F32(1.0)),
        ("qwen2.attention.sliding_window", Value::U32(0)),
        ("gemma2.attention.sliding_window", Value::U32(4096)),
    ] {
        assert_eq!(found(std::slice::from_ref(&fine)), [], "{}", fine.0);
    }
    let both = ["yarn_attn_factor", "attn_factor"].map(|key| (format!("qwen2.rope.scaling.{key}"), Value::F32(0.5)));
    assert_eq!(found(&both.each_ref().map(|(key, value)| (key.as_str(), value.clone()))), [], "llama.cpp reads one");
}

#[test]
fn paths_are_left_out_and_all_else_stays() {
    let keys = [
        ("general.name", Value::string("Tiny")),
        ("general.base_model.0.repo_url", Value::string("https://huggingface.co//home/me/base")),
        ("general.tags", Value::strings(["chat", "base_model:adapter:/home/me/base"])),
        ("general.languages", Value::strings([""; 0])),
        ("quantize.imatrix.file", Value::string("/home/me/imatrix.dat")),
        ("tokenizer.chat_template", Value::string("/home/me")),
    ];
    let (kept, left_out) = without_paths(metadata(&keys));
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    let expected = [
        ("general.name", Value::string("Tiny")),
        ("general.tags", Value::strings(["chat"])),
        ("general.languages", Value::strings([""; 0])),
        ("quantize.imatrix.file", Value::string("imatrix.dat")),
        ("tokenizer.chat_template", Value::string("/home/me")),
    ];
    assert_eq!(kept, metadata(&expected));
}
