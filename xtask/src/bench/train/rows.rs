//! What is trained on: conversations of random words, each longer than a row, so that every row is cut to its full length
//! whatever the tokenizer, as the peer's are. And the chat template, where the tokenizer has none.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::bench::data::Data;
use crate::synth;

/// No tokenizer finds tokens that long in random words.
const BYTES_OF_TOKEN: usize = 6;
/// The form in which Qwen's models are spoken to.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content \
                        + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                        {% endif %}";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Writes `rows` conversations that have more than `length` tokens each.
pub(super) fn write(path: &Path, rows: usize, length: usize) -> anyhow::Result<()> {
    let mut random = Random(42);
    let text: String = (0..rows).map(|_| format!("{}\n", row(&mut random, length))).collect();
    synth::write_text(path, &text)
}

/// One conversation as `ShareGPT` has them: a short question, and an answer that goes on.
fn row(random: &mut Random, length: usize) -> Value {
    let answer = random.words(length * BYTES_OF_TOKEN);
    json!({"conversations": [{"from": "human", "value": random.words(20)}, {"from": "gpt", "value": answer}]})
}

/// Gives the base a chat template, unless its tokenizer came with one.
pub(super) fn put_template(data: &Data) -> anyhow::Result<()> {
    let file = data.base.join(TEMPLATE_FILE);
    let config = data.base.join("tokenizer_config.json");
    let config = fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let config: Value = serde_json::from_str(&config).context("tokenizer_config.json is no JSON")?;
    if file.exists() || config.get("chat_template").is_some() {
        return Ok(());
    }
    synth::write_text(&file, TEMPLATE)
}

/// A linear congruential generator: Knuth's constants, the upper bits.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// Words of two to nine letters, at least `bytes` of them in all.
    fn words(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 10);
        while text.len() < bytes {
            let letters = 2 + self.below(8);
            text.extend((0..letters).map(|_| char::from(b'a' + self.below(26) as u8)));
            text.push(' ');
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_differ_and_are_long_enough_for_any_tokenizer() {
        let mut random = Random(42);
        let [one, other] = [row(&mut random, 100), row(&mut random, 100)];
        let answer = |row: &Value| row["conversations"][1]["value"].as_str().unwrap().to_owned();
        assert_ne!(answer(&one), answer(&other));
        let words: Vec<usize> = answer(&one).split(' ').map(str::len).collect();
        assert!(answer(&one).len() >= 599 && words.iter().all(|letters| (2..10).contains(letters)), "{words:?}");
        assert_eq!(one["conversations"][0]["from"], "human");
    }
}
