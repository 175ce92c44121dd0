//! From a module's path in a model class to the tensor's name on disk, where the two differ, and the nearest names for
//! an error message.

use std::collections::BTreeMap;

/// Prefixes that model classes and checkpoints disagree on: (in the class, on disk).
const PREFIXES: [(&str, &str); 14] = [
    ("transformer.", ""),
    ("model.", ""),
    ("", "transformer."),
    ("", "model."),
    ("model.language_model.", "model."),
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.model.", "model."),
    ("lm_head.", "language_model.lm_head."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("base_model.", ""),
];

/// Inner parts that they disagree on.
const PARTS: [(&str, &str); 2] = [(".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp.")];

/// The spellings that `name` may have on disk, the name itself first.
pub(super) fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    let prefixed = PREFIXES.iter().filter_map(|(class, disk)| Some(format!("{disk}{}", name.strip_prefix(class)?)));
    let inner =
        PARTS.iter().filter(|(class, _)| name.contains(class)).map(|(class, disk)| name.replacen(class, disk, 1));
    for spelling in prefixed.chain(inner) {
        if !all.contains(&spelling) {
            all.push(spelling);
        }
    }
    all
}

/// The base's name for `name`: itself if the base has it, else the one spelling that the base has. Two spellings
/// would be a guess.
pub(super) fn find<T>(base: &BTreeMap<String, T>, name: &str) -> Option<String> {
    if base.contains_key(name) {
        return Some(name.to_owned());
    }
    let mut found = spellings(name).into_iter().filter(|spelling| base.contains_key(spelling));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// Up to three of the base's names that share most with `name`.
pub(super) fn nearest<'a, T>(base: &'a BTreeMap<String, T>, name: &str) -> Vec<&'a str> {
    let parts: Vec<&str> = name.split('.').collect();
    let shared = |other: &str| {
        let forward = other.split('.').filter(|part| parts.contains(part)).count();
        let backward = other.rsplit('.').zip(parts.iter().rev()).take_while(|(a, b)| a == *b).count();
        let letters = other.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        (forward + backward, letters)
    };
    let mut scored: Vec<_> = base.keys().map(|other| (shared(other), other.as_str())).collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().filter(|((parts, _), _)| *parts > 0).take(3).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(names: &[&str]) -> BTreeMap<String, u8> {
        names.iter().map(|n| ((*n).to_owned(), 0)).collect()
    }

    #[test]
    fn finds_the_spelling_on_disk() {
        let gpt2 = base(&["h.0.attn.c_attn.weight"]);
        assert_eq!(find(&gpt2, "transformer.h.0.attn.c_attn.weight").as_deref(), Some("h.0.attn.c_attn.weight"));
        let vl = base(&["model.layers.0.q.weight", "visual.blocks.0.q.weight"]);
        assert_eq!(find(&vl, "model.language_model.layers.0.q.weight").as_deref(), Some("model.layers.0.q.weight"));
        assert_eq!(find(&vl, "model.visual.blocks.0.q.weight").as_deref(), Some("visual.blocks.0.q.weight"));
        assert_eq!(find(&vl, "model.layers.1.q.weight"), None);
    }

    #[test]
    fn does_not_choose_between_two() {
        let both = base(&["x.weight", "transformer.model.x.weight"]);
        assert_eq!(find(&both, "model.x.weight"), None);
    }

    #[test]
    fn names_the_nearest() {
        let b =
            base(&["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]);
        assert_eq!(nearest(&b, "model.layers.0.self_attn.qq_proj.weight")[0], "model.layers.0.self_attn.q_proj.weight");
    }
}
