//! The order of tensors in an export: as a model runs, so that a loader reads layer by layer.

use std::cmp::Ordering;

/// Sorts by stage of the forward pass (embeddings, numbered layers, final norms and the rest, heads), then by name
/// with numbers compared as numbers, so that layer 2 comes before layer 10.
pub fn compare(a: &str, b: &str) -> Ordering {
    stage(a).cmp(&stage(b)).then_with(|| natural(a, b))
}

const EMBEDDINGS: [&str; 6] = ["embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embeddings"];
const HEADS: [&str; 5] = ["lm_head", "embed_out", "score", "classifier", "value_head"];

fn stage(name: &str) -> u8 {
    let has = |words: &[&str]| name.split('.').any(|part| words.contains(&part));
    if name.split('.').any(|part| part.parse::<u32>().is_ok()) {
        1
    } else if has(&EMBEDDINGS) {
        0
    } else if has(&HEADS) {
        3
    } else {
        2
    }
}

/// Compares part by part at the dots: two numbers as numbers, a number before a word.
fn natural(a: &str, b: &str) -> Ordering {
    let parts = |name: &str| name.split('.').map(|p| (p.parse::<u64>().ok(), p.to_owned())).collect::<Vec<_>>();
    for ((x, x_text), (y, y_text)) in parts(a).iter().zip(&parts(b)) {
        let order = match (x, y) {
            (Some(x), Some(y)) => x.cmp(y).then_with(|| x_text.cmp(y_text)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => x_text.cmp(y_text),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_from_the_embeddings_to_the_head() {
        let expected = [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.2.mlp.experts.3.up_proj.weight",
            "model.layers.2.mlp.experts.10.up_proj.weight",
            "model.layers.10.mlp.up_proj.weight",
            "model.norm.weight",
            "lm_head.weight",
        ];
        let mut names = expected;
        names.reverse();
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(names, expected);
    }

    proptest! {
        #[test]
        fn is_a_total_order(mut names in proptest::collection::vec("(9|10|1a|a|01|1)(\\.(9|10|1a|b))?", 3)) {
            names.sort_by(|a, b| compare(a, b));
            prop_assert_ne!(compare(&names[0], &names[2]), Ordering::Greater);
            prop_assert_ne!(compare(&names[0], &names[1]), Ordering::Greater);
            prop_assert_ne!(compare(&names[1], &names[2]), Ordering::Greater);
            prop_assert_eq!(compare(&names[0], &names[1]) == Ordering::Equal, names[0] == names[1]);
        }
    }
}
