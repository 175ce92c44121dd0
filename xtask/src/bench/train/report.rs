//! The table, where the time of a step went, and what was promised.

use super::entrant::Entrant;
use super::{PEFT, QFT, Shape};
use crate::bench::contender::target;

/// The most of the GPU's memory that the whole model may take.
const GIB: f64 = 50.0;

/// A Markdown table of all entrants.
pub(super) fn table(entrants: &[Entrant]) -> String {
    let peft = rate(entrants, PEFT);
    let head = "| what | tokens/s | ratio to PEFT | peak GiB | s besides the steps | last loss |\n\
                | --- | ---: | ---: | ---: | ---: | ---: |\n";
    let row = |entrant: &Entrant| {
        let cells = [
            format!("{:.0}", entrant.rate()),
            peft.map_or_else(|| "-".to_owned(), |peft| format!("{:.2}", entrant.rate() / peft)),
            entrant.peak_gib().map_or_else(|| "-".to_owned(), |gib| format!("{gib:.1}")),
            format!("{:.1}", entrant.besides()),
            entrant.runs.last().map_or_else(|| "-".to_owned(), |run| format!("{:.3}", run.loss)),
        ];
        format!("| {} | {} |\n", entrant.name, cells.join(" | "))
    };
    head.to_owned() + &entrants.iter().map(row).collect::<String>()
}

/// Where the GPU's time of the last step went, of each entrant that can tell.
pub(super) fn breakdowns(entrants: &[Entrant]) -> String {
    let text = |entrant: &Entrant| {
        let timings = entrant.runs.last().map(|run| &run.timings[..]).filter(|timings| !timings.is_empty())?;
        let all: f64 = timings.iter().map(|(_, seconds)| seconds).sum();
        let row =
            |(name, seconds): &(String, f64)| format!("| {name} | {seconds:.4} | {:.1}% |\n", seconds / all * 100.0);
        let rows: String = timings.iter().chain([&("all".to_owned(), all)]).map(row).collect();
        Some(format!("{}, the last step:\n\n| operation | s | share |\n| --- | ---: | ---: |\n{rows}", entrant.name))
    };
    entrants.iter().filter_map(text).collect::<Vec<_>>().join("\n")
}

/// What was promised, and what was seen.
pub(super) fn targets(entrants: &[Entrant], shape: &Shape, is_whole: bool) -> String {
    let mut lines = Vec::new();
    if let (Some(qft), Some(peft)) = (rate(entrants, QFT), rate(entrants, PEFT)) {
        let promised = format!("{QFT} at least as fast as {PEFT}");
        lines.push(target(qft >= peft, &promised, &format!("{qft:.0} and {peft:.0} tokens/s")));
    }
    let peak = find(entrants, QFT).and_then(Entrant::peak_gib).filter(|_| is_whole);
    if let Some(gib) = peak {
        lines.push(target(gib <= GIB, &format!("{QFT} in at most {GIB} GiB"), &format!("{gib:.1} GiB")));
    }
    for entrant in entrants.iter().filter(|entrant| !entrant.runs.is_empty()) {
        let full = entrant.runs.iter().all(|run| run.tokens == shape.tokens());
        let seen = entrant.runs.iter().map(|run| run.tokens.to_string()).collect::<Vec<_>>().join(", ");
        lines.push(target(
            full,
            &format!("{}: every row is full, {} tokens a run", entrant.name, shape.tokens()),
            &seen,
        ));
    }
    lines.join("\n")
}

fn find<'a>(entrants: &'a [Entrant], name: &str) -> Option<&'a Entrant> {
    entrants.iter().find(|entrant| entrant.name == name && !entrant.runs.is_empty())
}

fn rate(entrants: &[Entrant], name: &str) -> Option<f64> {
    find(entrants, name).map(Entrant::rate)
}

#[cfg(test)]
mod tests {
    use super::super::entrant::Trained;
    use super::*;
    use crate::bench::Words;

    const SHAPE: Shape = Shape { rows: 8, length: 100, steps: 4 };

    fn entrant(name: &'static str, rate: f64, gib: u64) -> Entrant {
        let mut entrant = Entrant::new(name, &Words(vec![]), "true");
        let timings = vec![("project".to_owned(), 0.3), ("attend".to_owned(), 0.1)];
        entrant.runs.push(Trained {
            rates: vec![1.0, 1.0, rate, rate],
            loss: 2.5,
            tokens: 3200,
            besides: 7.0,
            peak: Some(gib << 30),
            timings: if name == QFT { timings } else { vec![] },
            ..Trained::default()
        });
        entrant
    }

    #[test]
    fn the_table_and_the_targets_hold_qft_against_the_peer() {
        let entrants = [entrant(QFT, 9000.0, 40), entrant(PEFT, 6000.0, 61)];
        let table = table(&entrants);
        assert!(table.contains(&format!("| {QFT} | 9000 | 1.50 | 40.0 | 7.0 | 2.500 |\n")), "{table}");
        assert!(table.contains(&format!("| {PEFT} | 6000 | 1.00 | 61.0 | 7.0 | 2.500 |\n")), "{table}");
        let seen = targets(&entrants, &SHAPE, true);
        assert_eq!((seen.lines().count(), seen.matches("(passed)").count()), (4, 4), "{seen}");
        assert!(
            breakdowns(&entrants).contains("| project | 0.3000 | 75.0% |\n| attend | 0.1000 | 25.0% |\n| all | 0.4000")
        );
    }

    #[test]
    fn what_is_missed_or_missing_shows() {
        let entrants = [entrant(QFT, 5000.0, 55), entrant(PEFT, 6000.0, 61)];
        let seen = targets(&entrants, &Shape { steps: 5, ..SHAPE }, true);
        assert_eq!(seen.matches("(missed)").count(), 4, "{seen}");
        let alone = [entrant(QFT, 5000.0, 55)];
        assert!(table(&alone).contains("| 5000 | - | 55.0 |"));
        assert_eq!(targets(&alone, &SHAPE, false).lines().count(), 1);
    }
}
