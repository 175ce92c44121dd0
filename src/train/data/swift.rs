//! What ms-swift calls a chat template. It writes conversations by templates of its own, and asks for their name where a
//! model's type has several: a checkpoint that tells it can be loaded without a flag.

use std::path::Path;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::json;

use crate::error::{Error, Result};
use crate::text::ChatTemplate;

/// One of ms-swift's templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwiftTemplate {
    /// Its name.
    pub name: &'static str,
    /// The system prompt of rows that have none, where the model's template has another than ms-swift's; empty if it has
    /// none.
    pub system: Option<String>,
}

/// A form of text, and the templates of ms-swift that write it.
struct Form {
    /// How the text of [`SAID`] begins, after the token that begins a text, and how it ends.
    text: [&'static str; 2],
    /// Names, by the system prompt that each has where a row has none. The first is taken for any other.
    names: &'static [(&'static str, Option<&'static str>)],
}

/// What is said to tell forms apart: a system prompt, a question, an answer and a question.
const SAID: [(&str, &str); 4] = [("system", "S0"), ("user", "U1"), ("assistant", "A2"), ("user", "U3")];

/// ms-swift 4.6's templates (`swift/template/templates`) for the models that qft trains.
const FORMS: [Form; 7] = [
    Form {
        text: [
            "<|im_start|>system\nS0<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
            "<|im_start|>user\nU3<|im_end|>\n<|im_start|>assistant\n",
        ],
        names: &[
            ("chatml", None),
            ("qwen", Some("You are a helpful assistant.")),
            ("qwen2_5", Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
            ("qwen2_5_math", Some("Please reason step by step, and put your final answer within \\boxed{}.")),
        ],
    },
    Form {
        text: [
            "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ",
            "\n\nS0<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant\
             <|end_header_id|>\n\nA2<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU3<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ],
        names: &[("llama3_2", None)],
    },
    Form {
        text: [
            "<|start_header_id|>system<|end_header_id|>\n\nS0<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\
             A2<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU3<|eot_id|><|start_header_id|>assistant\
             <|end_header_id|>\n\n",
        ],
        names: &[("llama3", None)],
    },
    Form {
        text: [
            "S0<｜User｜>U1<｜Assistant｜>A2<｜end▁of▁sentence｜><｜User｜>U3<｜Assistant｜>",
            "<｜Assistant｜><think>\n",
        ],
        names: &[("deepseek_r1", None)],
    },
    Form {
        text: ["S0<｜User｜>U1<｜Assistant｜>A2<｜end▁of▁sentence｜>", "<｜User｜>U3<｜Assistant｜>"],
        names: &[("deepseek_v2_5", None)],
    },
    Form {
        text: ["<|system|>\nS0</s>\n<|user|>\nU1</s>\n<|assistant|>\nA2</s>\n", "<|user|>\nU3</s>\n<|assistant|>\n"],
        names: &[("zephyr", None)],
    },
    Form {
        text: ["[INST] <<SYS>>\nS0\n<</SYS>>\n\nU1 [/INST]", "U3 [/INST]"],
        names: &[("llama", Some(LLAMA_SYSTEM))],
    },
];

const LLAMA_SYSTEM: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, \
    while being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal \
    content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not \
    make any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't \
    know the answer to a question, please don't share false information.";

/// The template of ms-swift that writes conversations as the model in `dir` does; `None` if none is known to.
pub fn swift_template(dir: &Path) -> Result<Option<SwiftTemplate>> {
    match ChatTemplate::open(dir) {
        Ok(template) => Ok(known(&template)),
        Err(error @ Error::Io { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

fn known(template: &ChatTemplate) -> Option<SwiftTemplate> {
    let text = rendered(template, &SAID)?;
    let form = FORMS.iter().find(|form| {
        // A token that begins the text is one of ms-swift's prefixes, too, or its tokenizer adds it.
        let start = text.find(form.text[0]).filter(|start| *start <= LONGEST_TOKEN);
        start.is_some() && text.ends_with(form.text[1])
    })?;
    // What is written before the question of a row that has no system prompt.
    let (with, without) = (text.find("U1")?, rendered(template, &SAID[1..])?);
    let (head, tail) = text[..with].split_once("S0")?;
    let before = &without[..without.find("U1")?];
    let system = before.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).filter(|system| !system.is_empty());
    match form.names.iter().find(|(_, own)| *own == system) {
        Some((name, _)) => Some(SwiftTemplate { name, system: None }),
        None => Some(SwiftTemplate { name: form.names[0].0, system: Some(system.unwrap_or_default().to_owned()) }),
    }
}

/// Bytes of the longest token that is taken for the beginning of a text.
const LONGEST_TOKEN: usize = 32;

fn rendered(template: &ChatTemplate, said: &[(&str, &str)]) -> Option<String> {
    let message = |(role, content): &(&str, &str)| Value::from(Serde(json!({"role": role, "content": content})));
    template.render(&said.iter().map(message).collect::<Vec<_>>(), None, true).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(template: &str) -> Option<(&'static str, Option<String>)> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), "{\"bos_token\": \"<s>\"}").unwrap();
        swift_template(dir.path()).unwrap().map(|found| (found.name, found.system))
    }

    fn chatml(system: &str) -> String {
        format!(
            "{{% if messages[0].role != 'system' %}}{system}{{% endif %}}{{% for m in messages %}}<|im_start|>{{{{ m.role \
             }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n\
             {{% endif %}}"
        )
    }

    #[test]
    fn forms_are_told_apart_by_what_they_write() {
        let qwen = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
        let system = |text: &str| format!("<|im_start|>system\n{text}<|im_end|>\n");
        assert_eq!(of(&chatml(&system(qwen))), Some(("qwen2_5", None)));
        assert_eq!(of(&chatml(&system("You are a helpful assistant."))), Some(("qwen", None)));
        assert_eq!(of(&chatml("")), Some(("chatml", None)));
        assert_eq!(of(&chatml(&system("Be kind."))), Some(("chatml", Some("Be kind.".to_owned()))));
        let llama3 = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if \
                      loop.first and m.role == 'system' and dated %}Cutting Knowledge Date: December 2023\nToday Date: 26 \
                      Jul 2024\n\n{% endif %}{{ m.content }}<|eot_id|>{% endfor %}<|start_header_id|>assistant\
                      <|end_header_id|>\n\n{{ '' }}";
        assert_eq!(of(llama3), Some(("llama3", None)));
        assert_eq!(of(&format!("{{% set dated = true %}}{llama3}")), Some(("llama3_2", None)));
        let deepseek = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role \
                        == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}\
                        <｜end▁of▁sentence｜>{% endif %}{% endfor %}<｜Assistant｜>";
        assert_eq!(of(deepseek), Some(("deepseek_v2_5", None)));
        assert_eq!(of(&format!("{deepseek}<think>\n{{{{ '' }}}}")), Some(("deepseek_r1", None)));
        let llama = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[INST] <<SYS>>\n{{ m.content }}\n\
                     <</SYS>>\n\n{% elif m.role == 'user' %}{% if not loop.previtem or loop.previtem.role != 'system' \
                     %}[INST] {% endif %}{{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}";
        assert_eq!(of(llama), Some(("llama", Some(String::new()))));
        assert_eq!(of("{% for m in messages %}{{ m.content }}{% endfor %}"), None);
        assert_eq!(of("{{ raise_exception('no') }}"), None);
    }
}
