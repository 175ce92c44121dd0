//! The page: one HTML file without external content, for a quick overview.

use std::fmt::Write;

use super::markup::{Name, Text, cosine, percent, scientific};
use super::{OutputQuality, QualityReport, QualityRow, Summary, heat};
use crate::size::ByteSize;

const STYLE: &str = include_str!("page.css");
/// Sorts tables. Everything can be read without it.
const SCRIPT: &str = include_str!("page.js");
/// SHA-256 of [`SCRIPT`]: the page forbids every other script.
const SCRIPT_HASH: &str = "qrJz8owUM7goVV81s/uk0xs9c09fspZM38joPhJO3xE=";

/// What the figures mean.
const TERMS: [(&str, &str); 4] = [
    (
        "relative error",
        "The root of the mean squared error (RMSE), divided by the root of the mean square of the values. A type of b \
         bits has about the same in every tensor; one that stands out is harder to encode.",
    ),
    (
        "RMSE, max error",
        "In the units of the weights: the typical and the largest difference between a decoded and an original value.",
    ),
    (
        "cosine",
        "Of the angle between a tensor's values and their decoded counterparts. 1 is best. Sums give the lowest.",
    ),
    (
        "bits per weight",
        "The tensors' bytes in the file, scales included. Sums of errors count each weight once, and leave out \
         unchanged tensors.",
    ),
];

/// The whole page.
pub(super) fn page(report: &QualityReport) -> String {
    let outputs = &report.outputs;
    let title = match outputs.as_slice() {
        [only] => Text(&only.file).to_string(),
        _ => format!("{} GGUF models", outputs.len()),
    };
    let mut text = format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta name=viewport \
         content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=Content-Security-Policy \
         content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'\">\n\
         <title>{title}: quality of the encoding</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p class=lead>Quality of the encoding: the difference between decoded and original \
         weights.</p>\n"
    );
    if outputs.len() > 1 {
        text.push_str(&comparison(outputs));
    }
    for (i, output) in outputs.iter().enumerate() {
        if outputs.len() > 1 {
            let _ = writeln!(text, "<h2 id=o{i}>{}</h2>", Text(&output.file));
        }
        section(output, &mut text);
    }
    text.push_str("<h3>What the figures mean</h3>\n<dl class=terms>\n");
    TERMS.iter().for_each(|(term, meaning)| text.push_str(&format!("<dt>{term}</dt><dd>{meaning}</dd>\n")));
    let version = env!("CARGO_PKG_VERSION");
    let _ =
        write!(text, "</dl>\n<footer>Made by qft {version}.</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n");
    text
}

/// All outputs side by side.
fn comparison(outputs: &[OutputQuality]) -> String {
    let mut text = String::from("<div class=scroll><table class=figures><thead><tr>");
    heads(&mut text, &[("file", ""), ("type", ""), ("size", "n"), ("bits per weight", "n wide")]);
    heads(&mut text, &[("relative error", "n"), ("lowest cosine", "n")]);
    text.push_str("</tr></thead>\n<tbody>\n");
    for (i, output) in outputs.iter().enumerate() {
        let total = output.total();
        let figures = total.figures;
        let _ = writeln!(
            text,
            "<tr><th scope=row class=name><a href=#o{i}>{}</a></th><td>{}</td><td class=n>{}</td>\
             <td class=\"n wide\">{:.2}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            Text(&output.file),
            output.mixture,
            ByteSize(output.bytes),
            total.bits_per_weight,
            figures.map_or("exact".to_owned(), |f| percent(f.relative)),
            figures.map_or("1".to_owned(), |f| cosine(f.cosine)),
        );
    }
    text + "</tbody></table></div>\n"
}

/// Everything about one output.
fn section(output: &OutputQuality, text: &mut String) {
    facts(output, text);
    let map = heat::map(output);
    if map.is_empty() {
        text.push_str("<p class=note>Every tensor keeps its values unchanged: there is no error to show.</p>\n");
    } else {
        let _ = write!(text, "<h3>Relative error by layer and kind, in per cent</h3>\n{map}");
    }
    text.push_str("<h3>Size by type</h3>\n");
    bars(output, text);
    text.push_str("<h3>By kind</h3>\n");
    summaries("kind", &output.kinds(), text);
    let worst = output.worst();
    if !worst.is_empty() {
        let _ = writeln!(text, "<h3>The worst {} by cosine</h3>", worst.len());
        rows(&worst, false, text);
    }
    let layers = output.layers();
    if layers.len() > 1 {
        text.push_str("<details><summary><h3>By layer</h3></summary>\n");
        summaries("layer", &layers, text);
        text.push_str("</details>\n");
    }
    let _ = writeln!(text, "<h3>All {} tensors</h3>", output.rows.len());
    rows(&output.rows.iter().collect::<Vec<_>>(), true, text);
}

/// The figures of a whole output.
fn facts(output: &OutputQuality, text: &mut String) {
    let total = output.total();
    let files = if output.files > 1 { format!("{} files", output.files) } else { String::new() };
    text.push_str("<dl class=facts>\n");
    let mut fact = |name: &str, value: &str, more: &str| {
        let more = if more.is_empty() { String::new() } else { format!("<small>{more}</small>") };
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{value}{more}</dd></div>");
    };
    let exact = match total.exact {
        0 => String::new(),
        exact => format!("{exact} without loss"),
    };
    fact("mixture", output.mixture, &files);
    fact("size", &ByteSize(output.bytes).to_string(), &format!("{:.2} bits per weight", total.bits_per_weight));
    fact("tensors", &total.tensors.to_string(), &exact);
    if let Some(figures) = total.figures {
        let name = |row: Option<&QualityRow>| row.map_or(String::new(), |row| Name(&row.name).to_string());
        let worst = output.worst().first().copied();
        let error = |row: &&QualityRow| row.quality.map_or(0.0, |q| q.max_error);
        let largest = output.rows.iter().max_by(|a, b| error(a).total_cmp(&error(b)));
        fact("relative error", &percent(figures.relative), &format!("RMSE {}", scientific(figures.rmse)));
        fact("lowest cosine", &cosine(figures.cosine), &name(worst));
        fact("max error", &scientific(figures.max_error), &name(largest));
    }
    text.push_str("</dl>\n");
}

/// Heads of columns: names, and classes of their cells.
fn heads(text: &mut String, heads: &[(&str, &str)]) {
    for (name, class) in heads {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = write!(text, "<th scope=col{class}>{name}</th>");
    }
}

/// Bytes of each type as bars, in relation to the largest.
fn bars(output: &OutputQuality, text: &mut String) {
    let types = output.types();
    let all = types.iter().map(|t| t.bytes).sum::<u64>().max(1) as f64;
    let largest = types.iter().map(|t| t.bytes).max().unwrap_or(0).max(1) as f64;
    text.push_str("<div class=scroll><table class=figures><thead><tr>");
    heads(text, &[("type", ""), ("", "bar"), ("size", "n"), ("share", "n"), ("tensors", "n wide")]);
    heads(text, &[("bits per weight", "n wide"), ("relative error", "n")]);
    text.push_str("</tr></thead>\n<tbody>\n");
    for kind in &types {
        let bytes = kind.bytes as f64;
        let _ = writeln!(
            text,
            "<tr><th scope=row>{}</th><td class=bar><i style=\"width:{:.2}%\"></i></td><td class=n>{}</td>\
             <td class=n>{:.1}%</td><td class=\"n wide\">{}</td><td class=\"n wide\">{:.2}</td><td class=n>{}</td></tr>",
            Text(&kind.name),
            bytes / largest * 100.0,
            ByteSize(kind.bytes),
            bytes / all * 100.0,
            kind.tensors,
            kind.bits_per_weight,
            kind.figures.map_or(EXACT.to_owned(), |f| percent(f.relative)),
        );
    }
    text.push_str("</tbody></table></div>\n");
}

/// What a tensor without an error has in place of figures.
const EXACT: &str = "<span class=q>exact</span>";

/// A table of sums.
fn summaries(of: &str, summaries: &[Summary], text: &mut String) {
    text.push_str("<div class=scroll><table class=\"figures sortable\"><thead><tr>");
    heads(text, &[(of, if of == "layer" { "n" } else { "" }), ("tensors", "n wide"), ("size", "n")]);
    heads(text, &[("bits per weight", "n wide"), ("relative error", "n"), ("RMSE", "n wide"), ("max error", "n")]);
    heads(text, &[("lowest cosine", "n")]);
    text.push_str("</tr></thead>\n<tbody>\n");
    for summary in summaries {
        let name = if of == "layer" {
            // Behind all numbers.
            let place = summary.name.parse::<u64>().unwrap_or(u64::from(u32::MAX) + 1);
            format!("<th scope=row class=n data-v={place}>{}</th>", Text(&summary.name))
        } else {
            format!("<th scope=row class=name>{}</th>", Name(&summary.name))
        };
        let _ = write!(
            text,
            "<tr>{name}<td class=\"n wide\">{}</td><td class=n data-v={}>{}</td><td class=\"n wide\">{:.2}</td>",
            summary.tensors,
            summary.bytes,
            ByteSize(summary.bytes),
            summary.bits_per_weight
        );
        figures(summary.figures.map(|f| [f.relative, f.rmse, f.max_error, f.cosine]), text);
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
}

/// A table of tensors; with `sizes`, of their shapes and sizes too.
fn rows(rows: &[&QualityRow], sizes: bool, text: &mut String) {
    let class = if sizes { "figures sortable" } else { "figures" };
    let _ = write!(text, "<div class=scroll><table class=\"{class}\"><thead><tr>");
    heads(text, &[("tensor", ""), ("type", "")]);
    if sizes {
        heads(text, &[("shape", ""), ("size", "n")]);
    }
    heads(text, &[("relative error", "n"), ("RMSE", "n wide"), ("max error", "n"), ("cosine", "n")]);
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        let mut notes = row.instead_of.map_or(String::new(), |wanted| format!(" for {wanted}"));
        if row.imatrix {
            notes.push_str(" imatrix");
        }
        let _ = write!(
            text,
            "<tr><th scope=row class=name>{}</th><td>{}<span class=q>{notes}</span></td>",
            Name(&row.name),
            row.encoding
        );
        if sizes {
            let shape = row.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let (bytes, weights) = (row.bytes, row.weights());
            let _ =
                write!(text, "<td data-v={weights}>{shape}</td><td class=n data-v={bytes}>{}</td>", ByteSize(bytes));
        }
        figures(row.quality.map(|q| [q.relative(), q.rmse, q.max_error, q.cosine]), text);
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
}

/// The cells of relative error, RMSE, largest error and cosine.
fn figures(figures: Option<[f64; 4]>, text: &mut String) {
    let Some([relative, rmse, max_error, angle]) = figures else {
        text.push_str("<td class=n data-v=0><span class=q>exact</span></td>");
        text.push_str("<td class=\"n wide\" data-v=0></td><td class=n data-v=0></td>");
        text.push_str("<td class=n data-v=1></td>");
        return;
    };
    let shown = [percent(relative), scientific(rmse), scientific(max_error), cosine(angle)];
    let classes = ["n", "\"n wide\"", "n", "n"];
    for ((value, shown), class) in [relative, rmse, max_error, angle].iter().zip(shown).zip(classes) {
        let _ = write!(text, "<td class={class} data-v={value:e}>{shown}</td>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest;

    #[test]
    fn the_policy_names_the_script() {
        let digest = sha2::Sha256::digest(SCRIPT.as_bytes());
        assert_eq!(base64(&digest), SCRIPT_HASH, "page.js was changed: change its digest too");
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |group: &[u8]| {
            let bits = group.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - group.len()));
            let digit =
                |i: usize| if i > group.len() { '=' } else { DIGITS[(bits >> (18 - 6 * i)) as usize % 64].into() };
            (0..4).map(digit).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }
}
