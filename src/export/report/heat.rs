//! The heat map of a page: layer by kind, coloured by relative error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::markup::{Name, Text, cosine, percent};
use super::{OutputQuality, QualityRow, Summary, kind};

/// Colours of the map; the style sheet has them as `h0` to `h8`.
const STEPS: usize = 9;
/// Most kinds that are listed beside the map.
const OUTSIDE: usize = 32;

/// From relative errors to colours.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// The scale of `errors`. It spans a fifth of the highest at least, so that small differences don't look large.
    fn of(errors: impl Iterator<Item = f64>) -> Option<Self> {
        let bounds = errors.fold(None, |bounds: Option<(f64, f64)>, v| {
            Some(bounds.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        });
        bounds.filter(|(_, high)| *high > 0.0).map(|(low, high)| Self { low: low.min(high * 0.8), high })
    }

    fn step(&self, error: f64) -> usize {
        let edge = |step: usize| self.low + (self.high - self.low) * step as f64 / STEPS as f64;
        (1..STEPS).take_while(|step| error >= edge(*step)).count()
    }

    /// The colours, with the errors that they stand for.
    fn legend(&self) -> String {
        let swatches: String = (0..STEPS).map(|step| format!("<i class=h{step}></i>")).collect();
        let at = |share: f64| percent(self.low + (self.high - self.low) * share);
        format!(
            "<div class=legend><div class=swatches>{swatches}</div><div class=ticks><span>{}</span><span>{}</span>\
             <span>{}</span></div></div>\n",
            at(0.0),
            at(0.5),
            at(1.0)
        )
    }
}

type Cells<'a> = BTreeMap<(Option<u32>, &'a str), Vec<&'a QualityRow>>;

/// The map of `output`, with its legend; nothing if no tensor was encoded with loss.
pub(super) fn map(output: &OutputQuality) -> String {
    let mut cells: Cells<'_> = BTreeMap::new();
    for row in output.rows.iter().filter(|row| row.quality.is_some()) {
        cells.entry((row.layer, &row.kind)).or_default().push(row);
    }
    let relative = |rows: &Vec<&QualityRow>| Summary::of("", rows.iter().copied()).figures.map(|f| f.relative);
    let (inside, outside): (Cells<'_>, Cells<'_>) = cells.into_iter().partition(|((layer, _), _)| layer.is_some());
    // The colours are to tell the layers apart; what is outside may be beyond them.
    let scale = [&inside, &outside].into_iter().find_map(|cells| Scale::of(cells.values().filter_map(relative)));
    let Some(scale) = scale else { return String::new() };
    let mut text = scale.legend();
    text.push_str(&grid(&inside, &scale));
    if !outside.is_empty() && outside.len() <= OUTSIDE {
        text.push_str("<table class=\"heat outside\"><tbody><tr>");
        let mut outside: Vec<_> = outside.iter().collect();
        outside.sort_by_key(|((_, kind), _)| (kind::rank(kind), *kind));
        for ((_, kind), rows) in outside {
            let _ = write!(text, "<th scope=row>{}</th>{}", Name(kind), cell(kind, rows, &scale));
        }
        text.push_str("</tr></tbody></table>\n");
    }
    let exact = output.rows.iter().filter(|row| row.quality.is_none());
    let exact: BTreeSet<(usize, &str)> = exact.map(|row| (kind::rank(&row.kind), row.kind.as_str())).collect();
    if !exact.is_empty() {
        let more = if exact.len() > OUTSIDE { ", and others" } else { "" };
        let exact: Vec<String> = exact.iter().take(OUTSIDE).map(|(_, kind)| Text(kind).to_string()).collect();
        let _ = writeln!(text, "<p class=note>Kept unchanged, without an error: {}{more}.</p>", exact.join(", "));
    }
    text
}

/// The table of layers by kinds.
fn grid(cells: &Cells<'_>, scale: &Scale) -> String {
    let layers: BTreeSet<Option<u32>> = cells.keys().map(|(layer, _)| *layer).collect();
    let kinds: BTreeSet<(usize, &str)> = cells.keys().map(|(_, kind)| (kind::rank(kind), *kind)).collect();
    // Names that form no grid would make one that is mostly holes, and large.
    if cells.is_empty() || layers.len().saturating_mul(kinds.len()) > 8 * cells.len() + 64 {
        return String::new();
    }
    let mut text = format!(
        "<div class=scroll><table class=\"heat grid\" style=\"min-width:{}em\"><thead><tr><th scope=col>layer</th>",
        3 * (kinds.len() + 2)
    );
    for (_, kind) in &kinds {
        let _ = write!(text, "<th scope=col>{}</th>", Name(kind));
    }
    text.push_str("<th scope=col>all</th></tr></thead>\n<tbody>\n");
    for layer in &layers {
        let name = layer.unwrap_or_default();
        let _ = write!(text, "<tr><th scope=row>{name}</th>");
        for (_, kind) in &kinds {
            match cells.get(&(*layer, *kind)) {
                Some(rows) => text.push_str(&cell(&format!("layer {name}, {kind}"), rows, scale)),
                None => text.push_str("<td></td>"),
            }
        }
        let all: Vec<&QualityRow> = cells
            .range((*layer, "")..)
            .take_while(|((l, _), _)| l == layer)
            .flat_map(|(_, rows)| rows)
            .copied()
            .collect();
        let _ = writeln!(text, "{}</tr>", cell(&format!("layer {name}"), &all, scale));
    }
    text.push_str("</tbody>\n<tfoot><tr><th scope=row>all</th>");
    for (_, kind) in &kinds {
        let all: Vec<&QualityRow> =
            cells.iter().filter(|((_, k), _)| k == kind).flat_map(|(_, rows)| rows).copied().collect();
        text.push_str(&cell(&format!("{kind} of all layers"), &all, scale));
    }
    let all: Vec<&QualityRow> = cells.values().flatten().copied().collect();
    let _ = writeln!(text, "{}</tr></tfoot></table></div>", cell("all layers", &all, scale));
    text
}

/// One cell: its colour and figure, and the rest of the figures for who points at it.
fn cell(what: &str, rows: &[&QualityRow], scale: &Scale) -> String {
    let Some(figures) = Summary::of("", rows.iter().copied()).figures else { return "<td></td>".to_owned() };
    let types: BTreeSet<&str> = rows.iter().map(|row| row.encoding.name()).collect();
    let types = types.into_iter().collect::<Vec<_>>().join(" and ");
    let error = percent(figures.relative);
    format!(
        "<td class=h{} title=\"{}: {types}, relative error {error}, lowest cosine {}\">{}</td>",
        scale.step(figures.relative),
        Text(what),
        cosine(figures.cosine),
        error.trim_end_matches('%')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_span_a_fifth_at_least() {
        let scale = Scale::of([0.07, 0.08, 0.075].into_iter()).unwrap();
        assert_eq!((scale.low, scale.high), (0.08 * 0.8, 0.08));
        assert_eq!([0.0, 0.064, 0.072, 0.08, 1.0].map(|v| scale.step(v)), [0, 0, 4, 8, 8]);
        let wide = Scale::of([0.01, 0.09].into_iter()).unwrap();
        assert_eq!((wide.low, wide.high), (0.01, 0.09));
        assert!(Scale::of([0.0].into_iter()).is_none() && Scale::of(std::iter::empty()).is_none());
    }
}
