//! Bases of other tools: those whose files, links and number formats are other than a download's. Each is merged like its
//! plain form, or refused with a way out. Adapters are in `brought`.

use std::collections::BTreeMap;
use std::fs;

use safetensors::Dtype;
use serde_json::json;

use crate::brought::{ADAPTER, EXPORT, bench, configure};
use crate::workbench::{Bench, bf16_noise};

#[test]
fn numbered_shards_need_no_index() {
    let (bench, merged) = bench();
    bench.ok("export --base base --max-shard 8KB --out sharded");
    fs::remove_file(bench.path("sharded/model.safetensors.index.json")).unwrap();
    let said = bench.ok("export --merge-lora --base sharded --adapter adapter --out out");
    assert!(said.err.contains("index.json is missing"), "{}", said.err);
    assert!(bench.model("out") == merged);
    bench.ok("export --base sharded --max-shard 8KB --out again");
    assert!(bench.path("again/model.safetensors.index.json").exists());
    let shard = bench.files("sharded").into_keys().rfind(|name| name.starts_with("model-")).unwrap();
    fs::remove_file(bench.path(format!("sharded/{shard}"))).unwrap();
    bench.refuses("export --base sharded --out never", &[&shard, "is missing"]);
}

#[test]
fn an_index_may_name_what_no_loader_asks_for() {
    let (bench, merged) = bench();
    configure(&bench, json!({"num_hidden_layers": 2}));
    bench.ok("export --base base --max-shard 8KB --out sharded");
    let index = bench.json("sharded/model.safetensors.index.json");
    let with = |name: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = index["weight_map"]["model.norm.weight"].clone();
        bench.write("sharded/model.safetensors.index.json", index.to_string());
    };
    let export = "export --merge-lora --base sharded --adapter adapter --out out --overwrite";
    for name in ["model.layers.2.self_attn.q_proj.weight", "model.layers.9.mtp.weight", "mtp.norm.weight"] {
        with(name);
        assert!(bench.ok(export).err.contains(name));
        assert!(bench.model("out") == merged);
    }
    with("model.layers.1.mlp.up_proj.weight");
    bench.ok(export);
    fs::remove_file(bench.path("sharded/model.safetensors.index.json")).unwrap();
    // A layer that others have is needed.
    let file = |name: &str| index["weight_map"][name].as_str().unwrap().to_owned();
    let shard = format!("sharded/{}", file("model.layers.1.self_attn.q_proj.weight"));
    let mut tensors = BTreeMap::new();
    for (name, view) in safetensors::SafeTensors::deserialize(&fs::read(bench.path(&shard)).unwrap()).unwrap().tensors()
    {
        if !name.contains("layers.1.self_attn.q_proj") {
            tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    bench.tensors(&shard, &tensors);
    bench.write("sharded/model.safetensors.index.json", index.to_string());
    bench.refuses(export, &["layers.1.self_attn.q_proj.weight", "download the model again"]);
}

#[test]
fn links_are_followed_where_they_are_weights_or_a_hubs_cache() {
    let (bench, merged) = bench();
    let blobs = bench.path("cache/models--org--m/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (at, name) in ["model.safetensors", "config.json", "tokenizer.json"].into_iter().enumerate() {
        let blob = blobs.join(format!("{at}"));
        fs::rename(bench.path(format!("base/{name}")), &blob).unwrap();
        std::os::unix::fs::symlink(&blob, bench.path(format!("base/{name}"))).unwrap();
    }
    bench.ok(EXPORT);
    assert!(bench.model("out") == merged);
    // An adapter's, too.
    fs::rename(bench.path(ADAPTER), bench.path("elsewhere.safetensors")).unwrap();
    std::os::unix::fs::symlink(bench.path("elsewhere.safetensors"), bench.path(ADAPTER)).unwrap();
    bench.ok(&format!("{EXPORT} --overwrite"));
    assert!(bench.model("out") == merged);
    // Elsewhere, weights may be links, but no file that is copied: it could be anybody's.
    fs::rename(bench.path("cache/models--org--m"), bench.path("cache/plain")).unwrap();
    for (at, name) in ["model.safetensors", "config.json", "tokenizer.json"].into_iter().enumerate() {
        let link = bench.path(format!("base/{name}"));
        fs::remove_file(&link).unwrap();
        let target = bench.path(format!("cache/plain/blobs/{at}"));
        if name == "model.safetensors" {
            std::os::unix::fs::symlink(target, link).unwrap();
        } else {
            fs::copy(target, link).unwrap();
        }
    }
    bench.ok(&format!("{EXPORT} --overwrite"));
    fs::remove_file(bench.path("base/tokenizer.json")).unwrap();
    std::os::unix::fs::symlink(bench.path("cache/plain/blobs/2"), bench.path("base/tokenizer.json")).unwrap();
    let said = bench.refuses(&format!("{EXPORT} --overwrite"), &["tokenizer.json", "link", "cp -rL base DIR"]);
    assert!(said.err.contains("remedy"));
    // The remedy, done.
    assert!(
        std::process::Command::new("cp")
            .args(["-rL"])
            .arg(bench.path("base"))
            .arg(bench.path("copy"))
            .status()
            .unwrap()
            .success()
    );
    bench.ok("export --merge-lora --base copy --adapter adapter --out out --overwrite");
    assert!(bench.model("out") == merged);
}

#[test]
fn what_is_quantized_elsewhere_is_merged_where_it_is_not() {
    let (bench, merged) = bench();
    let mut base = bench.model("base");
    let experts = "model.layers.0.mlp.experts.gate_up_proj_blocks".to_owned();
    base.insert(experts.clone(), (Dtype::U8, vec![2, 4], vec![7; 8]));
    bench.tensors("base/model.safetensors", &base);
    configure(&bench, json!({"quantization_config": {"quant_method": "mxfp4"}}));
    bench.ok(EXPORT);
    let mut out = bench.model("out");
    assert!(out.remove(&experts) == base.remove(&experts) && out == merged);
    assert_eq!(bench.json("out/config.json")["quantization_config"]["quant_method"], "mxfp4");
    bench.ok("verify out --audit --base base --adapter adapter");
    let down = "model.layers.1.mlp.down_proj.weight".to_owned();
    base.insert(down, (Dtype::U8, vec![32, 64], vec![7; 32 * 64]));
    bench.tensors("base/model.safetensors", &base);
    bench.refuses(&format!("{EXPORT} --overwrite"), &["down_proj", "quantized (mxfp4)", "16-bit model"]);

    // Nothing is quantized any more, whatever the config says.
    base.insert("model.layers.1.mlp.down_proj.weight".to_owned(), (Dtype::BF16, vec![32, 64], bf16_noise(32 * 64, 1)));
    bench.tensors("base/model.safetensors", &base);
    bench.ok(&format!("{EXPORT} --overwrite"));
    assert!(bench.json("out/config.json").get("quantization_config").is_none());
}

/// Block FP8 as DeepSeek-V3 and Qwen3-FP8 store it: `W = code * scale`, plus the delta, rounded once to bf16.
#[test]
fn block_fp8_is_decoded_where_a_delta_touches_it() {
    let bench = Bench::new();
    let plain = bench.base(32);
    let adapter = bench.adapter("adapter", 32);
    let mut base = plain.clone();
    let scales = [0.5f32, 0.25, 1.0, 2.0, 0.125, 4.0, 0.75, 1.5];
    let names = ["self_attn.q_proj", "mlp.down_proj"].map(|part| format!("model.layers.0.{part}.weight"));
    let code = |at: usize| (at * 37 % 120) as u8 | if at.is_multiple_of(3) { 0x80 } else { 0 };
    for name in &names {
        let shape = base[name].1.clone();
        let codes: Vec<u8> = (0..shape.iter().product()).map(code).collect();
        let blocks = vec![shape[0].div_ceil(16), shape[1].div_ceil(24)];
        let values = (0..blocks[0] * blocks[1]).flat_map(|at| scales[at % 8].to_le_bytes()).collect();
        base.insert(format!("{name}_scale_inv"), (Dtype::F32, blocks, values));
        base.insert(name.clone(), (Dtype::F8_E4M3, shape, codes));
    }
    bench.tensors("base/model.safetensors", &base);
    configure(&bench, json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 24]}}));
    let said = bench.ok(EXPORT);
    assert!(said.err.contains("2 weights are decoded from FP8"), "{}", said.err);
    let out = bench.model("out");
    assert!(bench.json("out/config.json").get("quantization_config").is_none());
    assert_eq!(out.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>(), "the scales are gone");
    let decode = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
        if code & 0x80 == 0 { size } else { -size }
    };
    for name in &names {
        let (shape, key) = (&plain[name].1, format!("base_model.model.{}", name.trim_end_matches(".weight")));
        let float = |part: &str, at: usize| {
            f32::from_le_bytes(adapter[&format!("{key}.lora_{part}.weight")].2[4 * at..4 * at + 4].try_into().unwrap())
        };
        let (columns, across) = (shape[1], shape[1].div_ceil(24));
        for (at, bytes) in out[name].2.chunks_exact(2).enumerate() {
            let (row, column) = (at / columns, at % columns);
            let base = decode(code(at)) * scales[(row / 16 * across + column / 24) % 8];
            let sum = (0..4).fold(0.0, |sum, k| float("B", row * 4 + k).mul_add(float("A", k * columns + column), sum));
            let expected = half::bf16::from_f32(2f32.mul_add(sum, base));
            assert_eq!(half::bf16::from_le_bytes(bytes.try_into().unwrap()), expected, "{name} {row} {column}");
        }
    }
    assert!(bench.ok("verify out --audit --base base --adapter adapter").out.contains("clean"));

    // Without an adapter, a cast decodes it, too.
    bench.ok("export --base base --dtype bf16 --out cast");
    let cast = bench.model("cast");
    assert!(bench.json("cast/config.json").get("quantization_config").is_none());
    assert_eq!(cast.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    let first = half::bf16::from_f32(decode(code(0)) * scales[0]);
    assert_eq!(cast[&names[0]].2[..2], first.to_le_bytes());

    // A delta that touches none of it leaves it as it is stored.
    let attention = "model.layers.1.self_attn.q_proj";
    bench.tensors(ADAPTER, &adapter.into_iter().filter(|(name, _)| name.contains(attention)).collect());
    bench.ok(&format!("{EXPORT} --overwrite"));
    let out = bench.model("out");
    assert!(names.iter().all(|name| out[name] == base[name] && out.contains_key(&format!("{name}_scale_inv"))));
    assert_eq!(bench.json("out/config.json")["quantization_config"]["quant_method"], "fp8");
}
