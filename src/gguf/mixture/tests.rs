use super::*;
use TensorType as T;

/// A model of `layers` blocks, in llama-quantize's order.
fn names(layers: usize, is_tied: bool) -> Vec<String> {
    let mut names = vec!["token_embd.weight".to_owned()];
    if !is_tied {
        names.insert(0, "output.weight".to_owned());
    }
    for i in 0..layers {
        let parts = ["attn_norm", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_up"];
        names.extend(parts.iter().map(|part| format!("blk.{i}.{part}.weight")));
    }
    names
}

fn facts(layers: u64) -> Facts {
    Facts { architecture: "llama".to_owned(), layers, heads: 4, key_value_heads: 2, ..Facts::default() }
}

/// The types of a model's tensors of 256 columns, by name.
fn kinds(is_tied: bool, choices: &Choices) -> impl Fn(&str) -> T + use<> {
    let names = names(16, is_tied);
    let candidates: Vec<_> = names
        .iter()
        .map(|name| Candidate {
            name,
            shape: if name.contains("_norm") { &[256] } else { &[64, 256] },
            source: T::BF16,
            always_f32: name.contains("_norm"),
        })
        .collect();
    let chosen = choose(&candidates, &facts(16), choices, false).unwrap();
    let kinds: Vec<_> = names.iter().cloned().zip(chosen).collect();
    move |name| kinds.iter().find(|(other, _)| other == name).unwrap().1.kind
}

#[test]
fn the_first_that_speaks_decides_type_by_type() {
    let mut choices = Choices::of(FileType::Q4_K_M);
    let kind = kinds(false, &choices);
    assert_eq!(kind("output.weight"), T::Q6_K);
    assert_eq!(kind("token_embd.weight"), T::Q4_K);
    assert_eq!(kind("blk.3.attn_norm.weight"), T::F32);
    assert_eq!([0, 2, 4, 5].map(|i| kind(&format!("blk.{i}.ffn_down.weight"))), [T::Q6_K, T::Q4_K, T::Q6_K, T::Q4_K]);
    let kind = kinds(true, &choices);
    assert_eq!(kind("token_embd.weight"), T::Q6_K, "serves as output");

    choices.overrides = vec!["attn_q=q8_0".parse().unwrap(), "blk.*=q5_0".parse().unwrap()];
    choices.overrides.push("(output|token_embd)=f16".parse().unwrap());
    choices.output_type = Some(T::Q5_1);
    let kind = kinds(false, &choices);
    assert_eq!([kind("blk.1.attn_q.weight"), kind("blk.1.attn_v.weight")], [T::Q8_0, T::Q5_0]);
    assert_eq!([kind("output.weight"), kind("token_embd.weight")], [T::Q5_1, T::F16], "the pattern comes later");
    assert_eq!(kind("blk.1.attn_norm.weight"), T::F32, "no pattern makes a norm change");
    choices.mixture = FileType::F16;
    assert_eq!(kinds(false, &choices)("blk.1.attn_q.weight"), T::F16, "a mixture without blocks has no patterns");
}

#[test]
fn pure_knows_no_output() {
    let mut choices = Choices { pure: true, output_type: Some(T::Q8_0), ..Choices::of(FileType::Q4_K_S) };
    assert_eq!(kinds(true, &choices)("token_embd.weight"), T::Q4_K, "a tied embedding is output by the mixture only");
    assert_eq!(kinds(false, &choices)("output.weight"), T::Q8_0);
    assert_eq!(kinds(false, &choices)("blk.0.attn_v.weight"), T::Q4_K);
    choices.pure = false;
    assert_eq!(kinds(true, &choices)("token_embd.weight"), T::Q8_0);
    choices.embedding_type = Some(T::F16);
    assert_eq!(kinds(true, &choices)("token_embd.weight"), T::F16);
    choices = Choices { leave_output: true, ..Choices::of(FileType::Q4_K_S) };
    assert_eq!(kinds(false, &choices)("output.weight"), T::BF16);
    assert_eq!(kinds(true, &choices)("token_embd.weight"), T::Q6_K, "no output head to leave");
}

fn one(name: &str, shape: &[usize], source: T, choices: &Choices) -> Result<Choice> {
    let candidate = Candidate { name, shape, source, always_f32: false };
    choose(&[candidate], &facts(1), choices, false).map(|chosen| chosen[0])
}

#[test]
fn blocks_are_not_encoded_again_unasked() {
    let mut choices = Choices::of(FileType::Q4_K_S);
    let error = one("blk.0.attn_q.weight", &[64, 256], T::Q8_0, &choices).unwrap_err().to_string();
    assert!(error.contains("quantized already, as Q8_0") && error.contains("⟦allow_requantize"), "{error}");
    assert!(one("blk.0.attn_q.weight", &[64, 256], T::Q4_K, &choices).is_ok(), "copied");
    choices.allow_requantize = true;
    assert!(one("blk.0.attn_q.weight", &[64, 256], T::Q8_0, &choices).is_ok());
}

#[test]
fn what_no_block_fits_falls_back_or_is_refused() {
    let mut choices = Choices::of(FileType::Q6_K);
    let choice = one("blk.0.attn_q.weight", &[64, 160], T::BF16, &choices).unwrap();
    assert_eq!((choice.kind, choice.instead_of), (T::Q8_0, Some(T::Q6_K)));
    choices.embedding_type = Some(T::Q4_K);
    assert!(one("token_embd.weight", &[64, 160], T::BF16, &choices).unwrap_err().to_string().contains("160"));
    choices.overrides.push("x=nvfp4".parse().unwrap());
    assert!(one("x.weight", &[64, 32], T::BF16, &choices).is_err());
}

#[test]
fn two_bits_need_an_imatrix() {
    let error = one("blk.0.attn_q.weight", &[64, 256], T::BF16, &Choices::of(FileType::Q2_K_S)).unwrap_err();
    assert!(error.to_string().contains("⟦imatrix"), "{error}");
    assert!(one("token_embd.weight", &[64, 256], T::BF16, &Choices::of(FileType::Q2_K_S)).is_ok());
}

#[test]
fn experts_name_their_block() {
    let facts = Facts { experts: 8, ..facts(1) };
    let candidate = |name| Candidate { name, shape: &[4, 64, 256], source: T::BF16, always_f32: false };
    let choices = Choices::of(FileType::Q4_K_M);
    let chosen =
        choose(&[candidate("blk.0.attn_k.weight"), candidate("blk.0.attn_output.weight")], &facts, &choices, false);
    assert_eq!(chosen.unwrap().iter().map(|c| c.kind).collect::<Vec<_>>(), [T::Q8_0, T::Q5_K]);
    for bad in ["blk.1.ffn_down_exps.weight", "ffn_up.weight"] {
        assert!(choose(&[candidate(bad)], &facts, &choices, false).is_err(), "{bad}");
    }
}
