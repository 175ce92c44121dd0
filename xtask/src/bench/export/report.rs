//! The benchmark's table and its targets.

use super::{CP, Contender, PEFT, QFT};
use crate::bench::measure::{Memory, least, median};

const HEAD: &str = "\
| what | median s | min s | ratio to cp | ratio to PEFT | peak anonymous | peak resident |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// A Markdown table of all contenders.
pub(super) fn table(contenders: &[Contender]) -> String {
    let [cp, peft] = [CP, PEFT].map(|name| median_of(contenders, name));
    let row = |contender: &Contender| {
        let seconds = contender.median();
        let least = least(&contender.runs);
        let ratio = |to: Option<f64>| to.map_or_else(|| "-".to_owned(), |to| format!("{:.2}", seconds / to));
        let [anonymous, resident] = contender.memory_mib().map(|mib| format!("{mib} MiB"));
        let cells = [format!("{seconds:.2}"), format!("{least:.2}"), ratio(cp), ratio(peft), anonymous, resident];
        format!("| {} | {} |\n", contender.name, cells.join(" | "))
    };
    HEAD.to_owned() + &contenders.iter().map(row).collect::<String>()
}

/// What was promised, and what was seen.
pub(super) fn targets(contenders: &[Contender]) -> String {
    let [cp, qft, peft] = [CP, QFT, PEFT].map(|name| median_of(contenders, name));
    let mut lines = Vec::new();
    let mut line = |met: bool, target: &str, seen: String| {
        lines.push(format!("{target}: {seen}{}", if met { "" } else { " (missed)" }));
    };
    if let (Some(qft), Some(peft)) = (qft, peft) {
        line(peft >= 8.0 * qft, "at least 8x faster than PEFT", format!("{:.1}x", peft / qft));
    }
    if let (Some(qft), Some(cp)) = (qft, cp) {
        line(qft <= 2.0 * cp, "at most 2x cp -r", format!("{:.1}x", qft / cp));
    }
    if let Some(qft) = contenders.iter().find(|contender| contender.name == QFT) {
        let [anonymous, _] = qft.memory_mib();
        line(anonymous < 512, "anonymous memory under 512 MiB", format!("{anonymous} MiB"));
    }
    lines.join("\n")
}

fn median_of(contenders: &[Contender], name: &str) -> Option<f64> {
    contenders.iter().find(|contender| contender.name == name).map(Contender::median)
}

impl Contender {
    fn median(&self) -> f64 {
        median(&self.runs)
    }

    /// The most anonymous and the most resident memory of all runs.
    fn memory_mib(&self) -> [u64; 2] {
        Memory::most(&self.runs).mib()
    }
}
