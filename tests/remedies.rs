//! Remedies work: a command is refused, what its remedy says is done, and then the command succeeds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use crate::gguf_release::imatrix;
use crate::workbench::{Bench, Data, Said, bf16_noise};

/// A command that is refused, what its remedy says, and the command that does so.
type Row = (&'static str, &'static str, &'static str);

fn mend(bench: &Bench, (refused, remedy, mended): Row) -> Said {
    let said = bench.refuses(refused, &["\n  remedy: "]);
    let way = remedy_of(&said);
    assert!(way.contains(remedy), "qft {refused}: {remedy:?} is not in {way:?}");
    bench.ok(mended)
}

/// The text after `remedy:`.
fn remedy_of(said: &Said) -> String {
    said.err.split_once("\n  remedy: ").unwrap().1.trim_end().to_owned()
}

/// A base and an adapter.
fn pair() -> Bench {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    bench
}

/// A model that a GGUF file can be made of.
fn convertible() -> Bench {
    let bench = Bench::new();
    bench.trainee("base", "llama");
    bench
}

/// Sets every value of a tensor of the base.
fn fill(bench: &Bench, name: &str, value: f32) {
    let mut tensors = bench.model("base");
    let (_, shape, bytes) = tensors.remove(name).unwrap();
    let bytes = value.to_le_bytes().repeat(bytes.len() / 4);
    tensors.insert(name.to_owned(), (Dtype::F32, shape, bytes));
    bench.tensors("base/model.safetensors", &tensors);
}

/// Whether the release `out` is the base with `adapters` merged.
fn holds(bench: &Bench, out: &str, adapters: &str) {
    bench.ok(&format!("verify {out} --audit --base base --adapter {adapters}"));
}

#[test]
fn what_is_to_be_merged_is_named() {
    let bench = pair();
    let rows: [Row; 4] = [
        (
            "export --base base --adapter adapter --out a",
            "add --merge-lora",
            "export --base base --adapter adapter --out a --merge-lora",
        ),
        (
            "export --base base --adapter adapter --out b --merge_lora false",
            "add --merge-lora",
            "export --base base --adapter adapter --out b --merge_lora false --merge-lora",
        ),
        (
            "export --merge-lora --base base --out c",
            "name the adapter with --adapter",
            "export --merge-lora --base base --out c --adapter adapter",
        ),
        (
            "export --merge-lora --base base --adapter adapter --tokenizer adapter --out d",
            "--tokenizer base",
            "export --merge-lora --base base --adapter adapter --tokenizer base --out d",
        ),
    ];
    for (row, out) in rows.into_iter().zip(["a", "b", "c", "d"]) {
        mend(&bench, row);
        holds(&bench, out, "adapter");
    }
    mend(&bench, ("export --out e", "name a model to reshard with --base", "export --out e --base base"));
    assert!(bench.model("e") == bench.model("base"));
}

#[test]
fn a_base_that_is_not_to_be_had_is_given() {
    let bench = pair();
    for (named, remedy) in [
        (json!(null), "name the base with --base"),
        (json!("tiny/base"), "give the base with --base; or unset HF_HUB_OFFLINE"),
        (json!("/home/another/base"), "give the base with --base: its directory, or its Hub id"),
    ] {
        bench.adapter_config("adapter", json!({"base_model_name_or_path": named}));
        let refused = "export --merge-lora --adapter adapter --out o --overwrite";
        mend(&bench, (refused, remedy, "export --merge-lora --adapter adapter --out o --overwrite --base base"));
        holds(&bench, "o", "adapter");
    }
}

/// What stands in a base's or an adapter's place, and what to do with it.
#[test]
fn what_is_no_base_and_no_adapter_is_told() {
    let bench = pair();
    let said = bench.refuses("export --base adapter --out o", &["this is a LoRA adapter, not a base"]);
    let remedy = remedy_of(&said);
    let command = remedy.split_once("merge it with qft ").unwrap().1.split(',').next().unwrap();
    assert_eq!(command, "export --merge-lora --adapter adapter");
    bench.ok(&format!("{command} --out merged"));
    holds(&bench, "merged", "adapter");

    bench.ok("export --base base --out output/v0/checkpoint-5");
    for refused in ["export --merge-lora --out full", "export --merge-lora --adapter output/v0/checkpoint-5 --out full"]
    {
        mend(
            &bench,
            (
                refused,
                "name it with --base, without --merge-lora",
                "export --base output/v0/checkpoint-5 --out full --overwrite",
            ),
        );
        assert!(bench.model("full") == bench.model("base"));
    }

    // Once renamed to model.safetensors, an adapter's weights made a release.
    fs::create_dir(bench.path("lora")).unwrap();
    for name in ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"] {
        fs::copy(bench.path("adapter/adapter_model.safetensors"), bench.path(Path::new("lora").join(name))).unwrap();
        let said = bench.refuses("export --base lora --out o", &["adapter_config.json"]);
        assert!(!said.err.contains("rename"), "{}", said.err);
        fs::remove_file(bench.path(Path::new("lora").join(name))).unwrap();
    }
    symlink("gone", bench.path("lora/model.safetensors")).unwrap();
    let said = bench.refuses("export --base lora --out o", &["is a link to nothing"]);
    assert!(!said.err.contains("rename"), "{}", said.err);
}

#[test]
fn a_destination_that_is_taken_is_exchanged_or_another_one() {
    let bench = convertible();
    bench.ok("export --base base --out o");
    bench.ok("gguf base --pre qwen2 --type f16 --out s.gguf");
    bench.write("taken.gguf", "");
    bench.write("thesis/chapter.tex", "");
    let rows: [Row; 6] = [
        ("export --base base --out o", "exchange it with --overwrite", "export --base base --out o --overwrite"),
        ("export --base base --out thesis", "choose another destination with --out", "export --base base --out other"),
        (
            "quantize s.gguf --type q8_0 --out taken.gguf",
            "replace it with --overwrite",
            "quantize s.gguf --type q8_0 --out taken.gguf --overwrite",
        ),
        (
            "quantize s.gguf --type q8_0 --out s.gguf --overwrite",
            "choose another destination with --out",
            "quantize s.gguf --type q8_0 --out t.gguf",
        ),
        (
            "quantize s.gguf --type q8_0 --out x",
            "give --out a name that ends in .gguf",
            "quantize s.gguf --type q8_0 --out x.gguf",
        ),
        ("export --base s.gguf --out p", "make a directory of it with qft to-hf", "to-hf s.gguf --out p"),
    ];
    for row in rows {
        let said = bench.refuses(row.0, &[]);
        assert_eq!(said.err.contains("--overwrite"), row.2.contains("--overwrite"), "{}", said.err);
        mend(&bench, row);
    }
    for made in ["o", "other", "taken.gguf", "t.gguf", "x.gguf", "p"] {
        bench.ok(&format!("verify {made}"));
    }
    assert!(bench.path("thesis/chapter.tex").exists());
}

#[test]
fn an_audit_is_given_what_the_release_was_made_from() {
    let bench = pair();
    bench.ok("export --base base --out o");
    mend(&bench, ("verify o --audit", "name the model with --base", "verify o --audit --base base"));
    bench.ok("export --merge-lora --base base --adapter adapter adapter=0.5 --out two");
    mend(
        &bench,
        (
            "verify two --audit --base base",
            "name each adapter with --adapter",
            "verify two --audit --base base --adapter adapter adapter=0.5",
        ),
    );
    bench.ok("export --merge-lora --base base --adapter adapter --out one");
    mend(
        &bench,
        (
            "verify one --audit --base base",
            "name each adapter with --adapter",
            "verify one --audit --base base --adapter adapter",
        ),
    );
    // A model without a manifest may have no adapter to name.
    for (release, code) in [("o", 0), ("one", 3)] {
        for list in ["qft-manifest.json", "SHA256SUMS"] {
            fs::remove_file(bench.path(Path::new(release).join(list))).unwrap();
        }
        let line = format!("verify {release} --audit");
        assert!(remedy_of(&bench.refuses(&line, &[])).contains("if it has none, name the model with --base"));
        let said = bench.qft(&format!("{line} --base base"));
        assert_eq!(said.code, Some(code), "{}", said.out);
        assert!(said.out.contains("audited against the base alone"), "{}", said.out);
    }
}

#[test]
fn an_importance_matrix_is_given_or_left_out() {
    let bench = convertible();
    imatrix(&bench, "im.dat", &[("blk.0.ffn_down.weight", 64), ("blk.1.ffn_down.weight", 64)]);
    imatrix(&bench, "other.dat", &[("blk.7.foo.weight", 64)]);
    bench.ok("export --base base --pre qwen2 --gguf q8_0 --imatrix im.dat --out o");
    let rows: [Row; 3] = [
        ("verify o --audit --base base", "give it with --imatrix", "verify o --audit --base base --imatrix im.dat"),
        (
            "gguf base --pre qwen2 --type q8_0 --imatrix other.dat --out x.gguf",
            "leave out --imatrix",
            "gguf base --pre qwen2 --type q8_0 --out x.gguf",
        ),
        (
            "export --base base --pre qwen2 --report --out p",
            "add --gguf q4_k_m",
            "export --base base --pre qwen2 --report --out p --gguf q4_k_m",
        ),
    ];
    rows.into_iter().for_each(|row| _ = mend(&bench, row));
    // The manifest beside a file tells what it was made from.
    bench.ok("verify o/model-Q8_0.gguf --audit --base base --imatrix im.dat");
}

#[test]
fn a_value_beyond_a_type_has_the_ways_out_of_its_command() {
    let bench = convertible();
    fill(&bench, "model.layers.0.mlp.up_proj.weight", 1e6);
    bench.ok("gguf base --pre qwen2 --type f32 --out s.gguf");
    let clamps = "choose bf16 or f32, or clamp such values with --allow-overflow";
    let rows: [Row; 4] = [
        ("export --base base --dtype f16 --out a", clamps, "export --base base --dtype f16 --out a --allow-overflow"),
        ("export --base base --dtype f16 --out b", clamps, "export --base base --dtype bf16 --out b"),
        (
            "gguf base --pre qwen2 --type f16 --out x.gguf",
            clamps,
            "gguf base --pre qwen2 --type f16 --out x.gguf --allow-overflow",
        ),
        ("to-hf s.gguf --dtype f16 --out c", "choose bf16 or f32", "to-hf s.gguf --dtype bf16 --out c"),
    ];
    for row in rows {
        mend(&bench, row);
    }
    let said = bench.refuses("to-hf s.gguf --dtype f16 --out d", &[]);
    assert!(!said.err.contains("--allow-overflow"), "{}", said.err);
    bench.ok("verify a --audit --base base");

    fill(&bench, "model.layers.0.mlp.up_proj.weight", 3.4e38);
    mend(
        &bench,
        ("export --base base --dtype bf16 --out e", "choose f32, or clamp", "export --base base --dtype f32 --out e"),
    );
    mend(
        &bench,
        (
            "gguf base --pre qwen2 --type q8_0 --out y.gguf",
            "--tensor-type NAME=bf16",
            "gguf base --pre qwen2 --type q8_0 --out y.gguf --tensor-type blk.0.ffn_up.weight=f32",
        ),
    );
    fill(&bench, "model.layers.0.mlp.up_proj.weight", f32::NAN);
    let nan = "gguf base --pre qwen2 --type q8_0 --out z.gguf";
    let counted = mend(&bench, (nan, "`qft inspect --stats PATH` counts", "inspect --stats base"));
    assert!(counted.out.contains("2,048"), "{}", counted.out);
}

#[test]
fn what_an_adapter_can_t_be_merged_for_has_its_own_way_out() {
    let bench = pair();
    let saved = |seed| -> Data { (Dtype::BF16, vec![32], bf16_noise(32, seed)) };
    for (name, seed) in [("adapter", 7), ("second", 8)] {
        let mut tensors = bench.adapter(name, 32);
        tensors.insert("base_model.model.model.norm.weight".to_owned(), saved(seed));
        bench.tensors(Path::new(name).join("adapter_model.safetensors"), &tensors);
        bench.adapter_config(name, json!({"modules_to_save": ["norm"]}));
    }
    mend(
        &bench,
        (
            "export --merge-lora --base base --adapter adapter=0.5 --out a",
            "drop the weight after = from --adapter",
            "export --merge-lora --base base --adapter adapter --out a",
        ),
    );
    holds(&bench, "a", "adapter");
    let both = "export --merge-lora --base base --adapter adapter second --out b";
    let next = "merge one adapter, then the next one into that release, with --base";
    mend(&bench, (both, next, "export --merge-lora --base a --adapter second --out b"));
    assert!(bench.model("b")["model.norm.weight"] == saved(8));

    // A quantized base is no reason for a weight's refusal; its types are one.
    let mut base = bench.model("base");
    let name = "model.layers.0.self_attn.q_proj.weight".to_owned();
    base.insert(name, (Dtype::U8, vec![32, 32], vec![1; 32 * 32]));
    bench.tensors("packed/model.safetensors", &base);
    let mut config = bench.json("base/config.json");
    config["quantization_config"] = json!({"quant_method": "bitsandbytes"});
    bench.write("packed/config.json", config.to_string());
    let weighted = "export --merge-lora --base packed --adapter adapter=0.5 --out c";
    let remedy = remedy_of(&bench.refuses(weighted, &["bitsandbytes"]));
    assert!(remedy.contains("as --base") && remedy.contains("drop the weight"), "{remedy}");
    let packed = "export --merge-lora --base packed --adapter adapter --out c";
    mend(&bench, (packed, "give the 16-bit model", "export --merge-lora --base base --adapter adapter --out c"));
    mend(&bench, ("export --base packed --dtype bf16 --out d", "drop --dtype", "export --base packed --out d"));
    assert!(bench.model("d") == bench.model("packed"));
}

#[test]
fn a_card_that_is_lost_is_gone_on_without() {
    let bench = convertible();
    let gguf = "gguf base --pre qwen2 --type q8_0 --out x.gguf --device";
    let said = bench.fails(75, &format!("{gguf} simulated:demanded --inject-fault lost@1"), &[]);
    assert!(remedy_of(&said).contains("or with --device cpu"), "{}", said.err);
    bench.ok(&format!("{gguf} cpu"));
    bench.ok("verify x.gguf --audit --base base");
}

/// Editing a file of a release would break its checksums.
#[test]
fn what_verify_warns_of_is_mended_where_the_release_came_from() {
    let bench = convertible();
    let set = |name: &str, sampling: bool| {
        let text = if sampling { json!({"temperature": 0.5, "do_sample": true}) } else { json!({"temperature": 0.5}) };
        bench.write(Path::new(name).join("generation_config.json"), text.to_string());
    };
    set("base", false);
    bench.ok("export --base base --out o");
    let warning = ", in the model that this was exported from, and export again";
    let said = bench.ok("verify o");
    let sampling = said.out.lines().find(|line| line.contains("temperature is set")).unwrap();
    assert!(sampling.contains(warning), "{sampling}");
    set("base", true);
    bench.ok("export --base base --out o --overwrite");
    assert!(!bench.ok("verify o").out.contains("temperature is set"));
    set("o", false);
    assert_eq!(bench.qft("verify o").code, Some(3), "the release itself may not be edited");
    assert!(!bench.ok("verify base").out.contains(warning), "a model without checksums may");
}

/// What users put beside a release is theirs: `--overwrite` takes the model, and the rest by a flag of its own.
#[test]
fn what_is_no_part_of_a_release_is_not_deleted_unasked() {
    let bench = Bench::new();
    bench.base(32);
    bench.ok("export --base base --out o");
    bench.ok("export --base base --out o --overwrite");
    bench.write("o/README.md", "# card");
    std::fs::create_dir(bench.path("o/eval")).unwrap();
    bench.write("o/eval/r.json", "{}");
    let words = ["o has files that are not part of the model there: README.md, eval/r.json", "--delete-others"];
    bench.refuses("export --base base --out o --overwrite", &words);
    bench.refuses("export --base base --out o --overwrite --dry-run", &words);
    assert_eq!(bench.read("o/README.md"), "# card");
    let plan = bench.ok("export --base base --out o --overwrite --delete-others --dry-run");
    assert!(plan.out.contains("deletes") && plan.out.contains("eval/r.json"), "{}", plan.out);
    bench.ok("export --base base --out o --overwrite --delete-others");
    assert!(!bench.path("o/README.md").exists() && !bench.path("o/eval").exists());
    // A directory of something else that has a config.json.
    std::fs::create_dir_all(bench.path("proj/src")).unwrap();
    bench.write("proj/config.json", "{}");
    bench.write("proj/src/main.py", "main");
    bench.refuses("export --base base --out proj --overwrite", &["src/main.py", "--delete-others"]);
    assert_eq!(bench.read("proj/src/main.py"), "main");
}
