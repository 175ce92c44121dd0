//! The tables: what came of each contest, and of each of its parts.

use super::Memory;
use super::contests::{Contest, Part};
use crate::bench::measure::{least, median};

const CONTESTS: &str = "\
| contest | qft, s | the others, s | times as fast | target | files |
| --- | ---: | ---: | ---: | ---: | --- |
";
const PARTS: &str = "\
| contest | what | median s | min s | million weights a second and thread | peak anonymous | peak resident |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
";
const NOTHING: &str = "-";

/// A Markdown table of the contests: sums of medians, and their ratios.
pub(super) fn contests(contests: &[Contest]) -> String {
    let row = |contest: &Contest| {
        let sum = |parts: &[Part]| parts.iter().map(|part| median(&part.runs)).sum::<f64>();
        let ours = sum(&contest.ours);
        let theirs = (!contest.theirs.is_empty()).then(|| sum(&contest.theirs));
        let ratio = theirs.map(|theirs| theirs / ours);
        let missed = |target: f64| ratio.is_some_and(|ratio| ratio < target);
        let target = contest.target.map(|target| format!("{target}{}", if missed(target) { " (missed)" } else { "" }));
        let cells = [
            Some(contest.name.clone()),
            Some(format!("{ours:.2}")),
            theirs.map(|seconds| format!("{seconds:.2}")),
            ratio.map(|ratio| format!("{ratio:.2}")),
            target,
            contest.same.as_ref().map(ToString::to_string),
        ];
        line(cells)
    };
    CONTESTS.to_owned() + &contests.iter().map(row).collect::<String>()
}

/// A Markdown table of the parts. A part that encodes has encoded `weights` weights.
pub(super) fn parts(contests: &[Contest], weights: usize) -> String {
    let row = |contest: &Contest, part: &Part| {
        let seconds = median(&part.runs);
        let speed = part.encoders.map(|threads| weights as f64 / 1e6 / seconds / threads as f64);
        let [anonymous, resident] = Memory::most(&part.runs).mib().map(|mib| Some(format!("{mib} MiB")));
        let cells = [
            Some(contest.name.clone()),
            Some(part.name.clone()),
            Some(format!("{seconds:.2}")),
            Some(format!("{:.2}", least(&part.runs))),
            speed.map(|speed| format!("{speed:.1}")),
            anonymous,
            resident,
        ];
        line(cells)
    };
    let rows = |contest: &Contest| {
        contest.ours.iter().chain(&contest.theirs).map(|part| row(contest, part)).collect::<String>()
    };
    PARTS.to_owned() + &contests.iter().map(rows).collect::<String>()
}

fn line<const N: usize>(cells: [Option<String>; N]) -> String {
    format!("| {} |\n", cells.map(|cell| cell.unwrap_or_else(|| NOTHING.to_owned())).join(" | "))
}
