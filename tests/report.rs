//! The quality report: measured against decoded files, as text, as JSON and as a page.

use std::fs;

use qft::ggml::decode::decode;
use qft::ggml::{ErrorSums, TensorType};
use qft::gguf::{GgufModel, Metadata, TensorForm, Value, lay_out};

use crate::workbench::{Bench, f32_noise};

/// A two-layer model of 64 columns in `in.gguf`, F32, and a tensor with a name that wants out of a page.
fn bench() -> Bench {
    let bench = Bench::new();
    let text = |text: &str| Value::String(text.into());
    let metadata: Metadata = [
        ("general.architecture", text("llama")),
        ("llama.block_count", Value::U32(2)),
        ("llama.attention.head_count", Value::U32(2)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("token_embd.weight".into(), vec![40, 64]),
        ("output_norm.weight".into(), vec![64]),
        ("output.weight".into(), vec![40, 64]),
    ];
    for layer in 0..2 {
        for kind in ["attn_q", "attn_v", "ffn_down", "<script>alert(1)</script>&\""] {
            tensors.push((format!("blk.{layer}.{kind}.weight"), vec![64, 64]));
        }
        tensors.push((format!("blk.{layer}.attn_norm.weight"), vec![64]));
    }
    let forms: Vec<TensorForm<'_>> =
        tensors.iter().map(|(name, shape)| TensorForm { name, shape, kind: TensorType::F32 }).collect();
    let layout = lay_out(&metadata, &forms).unwrap();
    let mut bytes = layout.header;
    for (i, (_, shape)) in tensors.iter().enumerate() {
        bytes.resize(layout.offsets[i] as usize, 0);
        bytes.extend(f32_noise(shape, i as u64 + 1).2);
    }
    bytes.resize(layout.total as usize, 0);
    bench.write("in.gguf", bytes);
    bench
}

#[test]
fn figures_are_those_of_the_decoded_file() {
    let bench = bench();
    let said = bench.ok("quantize in.gguf --type q8_0 --out out.gguf --report --json");
    let said: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let measured = said["quality"]["out.gguf"].as_object().unwrap();
    assert_eq!(measured.len(), 10, "norms have no error");
    let [before, after] = ["in.gguf", "out.gguf"].map(|name| GgufModel::open(&bench.path(name)).unwrap());
    let mut all = ErrorSums::default();
    for tensor in &after.tensors {
        let Some(quality) = measured.get(&tensor.info().name) else { continue };
        let original = before.tensors.iter().find(|t| t.info().name == tensor.info().name).unwrap();
        let [x, y] = [original, tensor].map(|t| {
            let mut values = vec![0.0; t.info().shape.iter().product()];
            decode(t.info().kind, t.bytes(), &mut values);
            values
        });
        let sums = ErrorSums::of(&x, &y);
        all = all.and(sums);
        let expected = sums.quality();
        assert!((quality["rmse"].as_f64().unwrap() / expected.rmse - 1.0).abs() < 1e-5);
        assert_eq!(quality["max_error"].as_f64().unwrap(), expected.max_error);
        assert!((quality["cosine"].as_f64().unwrap() - expected.cosine).abs() < 1e-6);
    }
    let summary = &said["quality_summary"][0];
    assert!((summary["total"]["relative"].as_f64().unwrap() / all.quality().relative() - 1.0).abs() < 1e-5);
    assert_eq!((&summary["total"]["tensors"], &summary["total"]["exact"]), (&13.into(), &3.into()));
    assert_eq!(summary["worst"].as_array().unwrap().len(), 10);
    assert_eq!(summary["layers"][1]["name"], "1");

    let text = bench.ok("quantize in.gguf --type q8_0 --out text.gguf --report").out;
    for part in ["text.gguf: Q8_0", "by kind", "the worst 10 by cosine", "  attn_norm ", "exact"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_page_is_one_file_and_the_same_each_time() {
    let bench = bench();
    let said = bench.ok("quantize in.gguf --type q8_0 --out out.gguf --report-html q.html -j 1");
    assert!(!said.out.contains("by kind"), "the text is for --report");
    let page = bench.read("q.html");
    bench.ok("quantize in.gguf --type q8_0 --out out.gguf --report-html deep/q.html -j 3 --overwrite");
    assert!(page == bench.read("deep/q.html"));
    assert!(page.contains("blk.<wbr>1.<wbr>ffn_<wbr>down.<wbr>weight") && page.contains("&lt;script&gt;alert(1)"));
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    assert!(!page.contains("http:") && !page.contains("https:"));
    assert!(!page.contains(&bench.path("").to_string_lossy().into_owned()));
    assert_eq!(bench.names(), ["deep", "in.gguf", "out.gguf", "q.html"], "nothing is left behind");
}

#[test]
fn a_page_replaces_nothing_and_comes_last() {
    let bench = bench();
    bench.write("q.html", "mine");
    let line = "quantize in.gguf --type q8_0 --out out.gguf";
    bench.refuses(&format!("{line} --report-html q.html"), &["q.html exists", "--report-html", "--overwrite"]);
    bench.refuses(&format!("{line} --report-html in.gguf --overwrite"), &["in.gguf", ".html"]);
    bench.refuses("export --base base --report-html q2.html", &["--gguf"]);
    assert_eq!(bench.names(), ["in.gguf", "q.html"], "all is refused before the first byte");
    assert_eq!(bench.read("q.html"), "mine");
    // What is in the way of the page's staging shows only when all else is done.
    bench.write(".late.html.qft-staging", "");
    bench.refuses(&format!("{line} --report-html late.html"), &["the GGUF output is complete", "late.html"]);
    assert!(fs::metadata(bench.path("out.gguf")).unwrap().len() > 0 && !bench.path("late.html").exists());
    bench.ok(&format!("{line} --report-html q.html --overwrite"));
    assert!(bench.read("q.html").starts_with("<!doctype html>"));
}
