//! The benchmark's table and its targets.

use super::{CP, PEFT, QFT};
use crate::bench::contender::{self, Contender, find, target};

/// A Markdown table of all contenders.
pub(super) fn table(contenders: &[Contender]) -> String {
    contender::table(contenders, &[("cp", CP), ("PEFT", PEFT)])
}

/// What was promised, and what was seen.
pub(super) fn targets(contenders: &[Contender]) -> String {
    let [cp, qft, peft] = [CP, QFT, PEFT].map(|name| find(contenders, name).map(Contender::median));
    let mut lines = Vec::new();
    if let (Some(qft), Some(peft)) = (qft, peft) {
        lines.push(target(peft >= 8.0 * qft, "at least 8x faster than PEFT", &format!("{:.1}x", peft / qft)));
    }
    if let (Some(qft), Some(cp)) = (qft, cp) {
        lines.push(target(qft <= 2.0 * cp, "at most 2x cp -r", &format!("{:.1}x", qft / cp)));
    }
    if let Some(qft) = find(contenders, QFT) {
        let [anonymous, _] = qft.memory_mib();
        lines.push(target(anonymous < 512, "anonymous memory under 512 MiB", &format!("{anonymous} MiB")));
    }
    lines.join("\n")
}
