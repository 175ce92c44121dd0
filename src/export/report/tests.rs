//! The model and its page, of made-up rows.

use super::*;

fn row(name: &str, encoding: TensorType, shape: &[usize], quality: Option<(f64, f64, f64)>) -> QualityRow {
    let weights = shape.iter().product::<usize>();
    let (layer, kind) = place(name);
    QualityRow {
        name: name.to_owned(),
        layer,
        kind,
        encoding,
        instead_of: None,
        imatrix: false,
        shape: shape.to_vec(),
        bytes: (weights / encoding.block_len() * encoding.block_bytes()) as u64,
        quality: quality.map(|(rmse, rms, cosine)| Quality { rmse, rms, max_error: rmse * 3.0, cosine }),
    }
}

fn output(rows: Vec<QualityRow>) -> OutputQuality {
    OutputQuality { file: "m-Q4_0.gguf".into(), files: 1, bytes: 1000, mixture: "Q4_0", rows }
}

fn sample() -> OutputQuality {
    use TensorType::{F32, Q4_0, Q8_0};
    output(vec![
        row("output.weight", Q8_0, &[4, 32], Some((0.001, 0.2, 0.9999))),
        row("token_embd.weight", Q4_0, &[4, 32], Some((0.02, 0.2, 0.99))),
        row("blk.10.attn_q.weight", Q4_0, &[32, 32], Some((0.01, 0.1, 0.995))),
        row("blk.2.attn_q.weight", Q4_0, &[96, 32], Some((0.03, 0.2, 0.98))),
        row("blk.2.attn_norm.weight", F32, &[32], None),
    ])
}

#[test]
fn sums_weigh_each_value_once() {
    let output = sample();
    let names = |summaries: Vec<Summary>| summaries.into_iter().map(|s| s.name).collect::<Vec<_>>();
    assert_eq!(names(output.kinds()), ["token_embd", "attn_norm", "attn_q", "output"]);
    assert_eq!(names(output.layers()), ["2", "10", "none"]);
    assert_eq!(names(output.types()), ["Q4_0", "Q8_0", "F32"]);
    let kinds = output.kinds();
    let q = &kinds[2];
    assert_eq!((q.tensors, q.exact, q.weights, q.bits_per_weight), (2, 0, 4096, 4.5));
    let figures = q.figures.unwrap();
    // A quarter of the weights are the first tensor's.
    let (error, values) =
        (0.25 * 0.01f64.powi(2) + 0.75 * 0.03f64.powi(2), 0.25 * 0.1f64.powi(2) + 0.75 * 0.2f64.powi(2));
    assert!((figures.rmse - error.sqrt()).abs() < 1e-12 && (figures.relative - (error / values).sqrt()).abs() < 1e-12);
    assert_eq!((figures.max_error, figures.cosine), (0.03 * 3.0, 0.98));
    assert_eq!((kinds[1].figures, kinds[1].exact), (None, 1));
    let total = output.total();
    assert_eq!((total.tensors, total.exact, total.weights), (5, 1, 4096 + 256 + 32));
}

#[test]
fn the_worst_are_those_with_the_lowest_cosine() {
    let mut rows: Vec<QualityRow> = (0..15)
        .map(|i| {
            row(
                &format!("blk.{i}.attn_q.weight"),
                TensorType::Q4_0,
                &[32],
                Some((0.01, 0.1, 0.9 + 0.001 * f64::from(i))),
            )
        })
        .collect();
    rows.push(row("same.weight", TensorType::Q4_0, &[32], Some((0.02, 0.1, 0.9))));
    rows.push(row("exact.weight", TensorType::Q4_0, &[32], Some((0.0, 0.0, 0.0))));
    let output = output(rows);
    let worst: Vec<&str> = output.worst().into_iter().map(|row| row.name.as_str()).collect();
    assert_eq!(worst.len(), WORST);
    assert_eq!(worst[..3], ["same.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"]);
}

#[test]
fn json_has_sums_and_worst() {
    let report = QualityReport { outputs: vec![sample()] };
    let json = serde_json::json!(report.sums());
    assert_eq!(json[0]["total"]["tensors"], 5);
    assert_eq!(json[0]["kinds"][2]["cosine"], 0.98);
    assert!(json[0]["kinds"][1].get("rmse").is_none(), "no figures where there is no error");
    assert_eq!(json[0]["worst"][0]["tensor"], "blk.2.attn_q.weight");
}

#[test]
fn the_page_shows_everything_once() {
    let html = QualityReport { outputs: vec![sample()] }.to_html();
    for tensor in &sample().rows {
        assert!(html.contains(&markup::Name(&tensor.name).to_string()), "{}", tensor.name);
    }
    assert!(html.contains("<td class=h8 title=\"layer 2, attn_q: Q4_0, relative error 15.0%"));
    assert!(html.contains("Kept unchanged, without an error: attn_norm."));
    for foreign in ["http://", "https://", "src=", "url(", "@import"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    let two = QualityReport { outputs: vec![sample(), sample()] }.to_html();
    assert!(two.contains("<a href=#o1>") && two.contains("<h2 id=o1>"));
}

#[test]
fn hostile_names_stay_text() {
    let hostile = "blk.1.<img src=x onerror=alert(1)>\"'&.weight";
    let mut output = sample();
    output.rows.push(row(hostile, TensorType::Q8_0, &[32], Some((0.1, 0.2, 0.9))));
    output.rows.push(row("<b>", TensorType::F32, &[32], None));
    output.file = "</title><script>x</script>.gguf".into();
    let html = QualityReport { outputs: vec![output] }.to_html();
    assert!(!html.contains("<img") && !html.contains("<b>") && html.matches("<script").count() == 1);
    assert!(html.contains("&lt;img"));
}

#[test]
fn names_that_form_no_grid_make_no_large_page() {
    let rows = (0..2000).map(|i| row(&format!("blk.{i}.kind{i}"), TensorType::Q8_0, &[32], Some((0.1, 0.2, 0.9))));
    let output = output(rows.collect());
    assert!(heat::map(&output).len() < 10_000);
    let lossless = self::output(vec![row("a", TensorType::F32, &[1], None)]);
    assert!(heat::map(&lossless).is_empty() && lossless.worst().is_empty() && lossless.total().figures.is_none());
    assert!(!QualityReport { outputs: vec![lossless] }.to_html().is_empty());
}

#[test]
fn pages_replace_nothing_unless_asked() {
    let tmp = tempfile::tempdir().unwrap();
    let page = tmp.path().join("deep/report.html");
    write_page(&page, "one", false).unwrap();
    assert!(write_page(&page, "two", false).unwrap_err().to_string().contains("⟦overwrite"));
    write_page(&page, "three", true).unwrap();
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "three");
    assert_eq!(std::fs::read_dir(tmp.path().join("deep")).unwrap().count(), 1, "nothing is left behind");
    assert!(check_page(&tmp.path().join("model.gguf"), &[], true).is_err());
    assert!(check_page(&page, &[&page], true).is_err(), "an input stays");
}
