//! The chat template of a model: which of its files has it, and how it is run. It renders what transformers'
//! `apply_chat_template` renders. What is said to it is the business of `turns`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::python;
use super::room::{Trouble, with_room};
use crate::error::{Error, Result, escaped, shown};
use crate::files::read_text_if_there;

/// The tokens that a template can name, as transformers passes them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The template that is used, and the one that is used instead where there are tools.
const DEFAULT: &str = "default";
const WITH_TOOLS: &str = "tool_use";
/// What a rendering may cost, in minijinja's measure (an instruction, or 64 bytes): a second, and some hundred megabytes. It
/// also bounds how deep values can nest, and so what is needed of a stack (see `room`).
const FUEL: u64 = 1 << 22;
/// Most bytes of a template: the largest known has a tenth. Each may be a level of nesting.
const MOST_BYTES: usize = 256 << 10;

/// How long reading a template or a rendering may take, whatever costs no fuel: the longest that are known take some
/// milliseconds, and the most that fuel lets through a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// A model's chat template, compiled.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Arc<Environment<'static>>,
    /// Whether a rendering took too long: none is tried again.
    stuck: AtomicBool,
    named: Value,
    digested: String,
}

impl ChatTemplate {
    /// Reads the template of the model in `dir`: `chat_template.jinja` and the templates beside it, else what
    /// `tokenizer_config.json` has, a text or a list of named ones.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = members(&dir.join("tokenizer_config.json"))?;
        let (path, templates) = read(dir, &config)?;
        let mut names = config.clone();
        if !config.contains_key("added_tokens_decoder") {
            names.extend(members(&dir.join("special_tokens_map.json"))?);
        }
        Self::compile(path, templates, &names, SystemTime::now())
    }

    /// Compiles named `templates`. Those that ask for the date get that of `now`.
    fn compile(
        path: PathBuf,
        templates: BTreeMap<String, String>,
        names: &Map<String, Json>,
        now: SystemTime,
    ) -> Result<Self> {
        let text_of = |value: &Json| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let named: BTreeMap<&str, String> =
            NAMED.iter().filter_map(|name| Some((*name, names.get(*name).and_then(text_of)?))).collect();
        let mut digested = format!("{templates:?} {named:?}");
        if templates.values().any(|text| text.contains("strftime_now")) {
            digested += &python::strftime(" %F", now);
        }
        let mut environment = environment(now);
        let restore = |problem| Error::malformed(&path, problem, "restore the template from the model's source");
        for (name, text) in templates {
            if text.len() > MOST_BYTES {
                return Err(restore(format!("the chat template has {} bytes, more than {MOST_BYTES}", text.len())));
            }
            let add = move || {
                // The name is minijinja's only hint at escaping, and the texts are no HTML.
                let added = environment.add_template_owned(name, without_generation_tags(&text));
                added.map(|()| environment).map_err(|e| explained(&e))
            };
            let added = with_room(PATIENCE, add).map_err(|trouble| troubled(&path, trouble))?;
            environment = added.map_err(|e| restore(format!("the chat template can't be read: {e}")))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            let problem = "names chat templates, but none has the name \"default\"";
            return Err(Error::malformed(&path, problem, "name the one to use \"default\""));
        }
        let environment = Arc::new(environment);
        Ok(Self { path, environment, stuck: AtomicBool::new(false), named: Value::from(Serde(named)), digested })
    }

    /// The file that has it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that its renderings depend on beside what is said, as text: for a digest.
    pub fn digested(&self) -> &str {
        &self.digested
    }

    /// The text of a chat. `messages` have the form that transformers takes; `tools` are undefined to the template if
    /// there are none. With `prompt`, the text goes on to where the model would speak.
    pub(crate) fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<String> {
        let name = match tools {
            Some(_) if self.environment.get_template(WITH_TOOLS).is_ok() => WITH_TOOLS,
            _ => DEFAULT,
        };
        self.if_stuck()?;
        let said = minijinja::context! {
            messages => messages,
            tools => tools,
            documents => (),
            add_generation_prompt => prompt,
            ..self.named.clone()
        };
        let environment = Arc::clone(&self.environment);
        // An error may hold values of the template, and is dropped where they were made.
        let render = move || {
            let rendered = environment.get_template(name).and_then(|template| template.render(said));
            rendered.map_err(|e| explained(&e))
        };
        let rendered = with_room(PATIENCE, render).map_err(|trouble| {
            self.stuck.fetch_or(matches!(trouble, Trouble::TooLong), Ordering::Relaxed);
            troubled(&self.path, trouble)
        });
        rendered?.map_err(|e| {
            let problem = format!("the chat template of {} rejects it: {e}", shown(&self.path));
            Error::inconsistent(problem, "change the row, or leave it out")
        })
    }

    /// An error if a rendering took too long: it is none of a row, but of the template.
    pub(crate) fn if_stuck(&self) -> Result<()> {
        if self.stuck.load(Ordering::Relaxed) { Err(troubled(&self.path, Trouble::TooLong)) } else { Ok(()) }
    }
}

/// A template for which there is no thread, or not enough time.
fn troubled(path: &Path, trouble: Trouble) -> Error {
    match trouble {
        Trouble::NoThread(cause) => Error::io("start a thread for", path)(cause),
        Trouble::TooLong => {
            let problem = format!("the chat template takes longer than {} s", PATIENCE.as_secs());
            Error::malformed(path, problem, "restore the template from the model's source")
        }
        Trouble::Panicked(words) => {
            let problem = format!("the chat template is too large for its library ({words})");
            Error::malformed(path, problem, "restore the template from the model's source")
        }
    }
}

/// An environment like that of transformers' `_compile_jinja_template`.
fn environment(now: SystemTime) -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false);
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", python::tojson);
    environment.add_function("strftime_now", move |format: &str| python::strftime(format, now));
    environment.add_function("raise_exception", |message: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

/// An error of minijinja for a message: what a template says itself stands as it is.
fn explained(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    escaped(&text) + &line
}

/// Without the tags that mark what a model generates, which minijinja doesn't know. A condition that holds in their
/// place keeps what they do to white space.
fn without_generation_tags(text: &str) -> String {
    let tags = [
        (r"\{%([-+]?)\s*generation\s*([-+]?)%\}", "{%$1 if true $2%}"),
        (r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", "{%$1 endif $2%}"),
    ];
    tags.iter().fold(text.to_owned(), |text, (pattern, tag)| {
        Regex::new(pattern).map_or_else(|_| text.clone(), |pattern| pattern.replace_all(&text, *tag).into_owned())
    })
}

/// The members of a JSON file that holds an object; none if there is no such file.
fn members(path: &Path) -> Result<Map<String, Json>> {
    let Some(text) = read_text_if_there(path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text)
        .map_err(|e| Error::malformed(path, format!("is not a JSON object: {e}"), "restore the file from its source"))
}

/// The templates of the model in `dir` by name, and the file that has them.
fn read(dir: &Path, config: &Map<String, Json>) -> Result<(PathBuf, BTreeMap<String, String>)> {
    let path = dir.join("chat_template.jinja");
    if let Some(text) = read_text_if_there(&path)? {
        let mut templates = BTreeMap::from([(DEFAULT.to_owned(), lines(&text))]);
        let tools = dir.join("additional_chat_templates").join(format!("{WITH_TOOLS}.jinja"));
        templates.extend(read_text_if_there(&tools)?.map(|text| (WITH_TOOLS.to_owned(), lines(&text))));
        return Ok((path, templates));
    }
    let beside = dir.join("chat_template.json");
    let sources = [(dir.join("tokenizer_config.json"), config.clone()), (beside.clone(), members(&beside)?)];
    for (path, source) in sources {
        match source.get("chat_template") {
            None | Some(Json::Null) => {}
            Some(Json::String(text)) => return Ok((path, BTreeMap::from([(DEFAULT.to_owned(), text.clone())]))),
            Some(choices) => {
                let text = |choice: &Json, name: &str| choice.get(name)?.as_str().map(str::to_owned);
                let pair = |choice: &Json| Some((text(choice, "name")?, text(choice, "template")?));
                return Ok((path, choices.as_array().into_iter().flatten().filter_map(pair).collect()));
            }
        }
    }
    let problem = format!("{} has no chat template, which turns a conversation into text", shown(dir));
    Err(Error::not_found(problem, "train an instruct model, or copy its chat_template.jinja to that directory"))
}

/// Text as Python reads it: every line ends in a line feed.
fn lines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn compiled(text: &str) -> Result<ChatTemplate> {
        let templates = BTreeMap::from([(DEFAULT.to_owned(), text.to_owned())]);
        let names = Map::from_iter([
            ("eos_token".to_owned(), json!({"content": "</s>"})),
            ("bos_token".to_owned(), Json::Null),
        ]);
        ChatTemplate::compile("t".into(), templates, &names, UNIX_EPOCH + Duration::from_hours(24))
    }

    fn rendered(text: &str, messages: &Json) -> Result<String> {
        let messages: Vec<Value> = messages.as_array().unwrap().iter().map(|m| Value::from(Serde(m))).collect();
        compiled(text)?.render(&messages, None, true)
    }

    /// Jinja2 3.1.6 with the settings of transformers 5.23 gives each of these texts.
    /// Each ended the process, or took gigabytes.
    #[test]
    fn templates_of_strangers_end_in_an_error_or_a_text() {
        let said = json!([{"role": "user", "content": "x"}]);
        for chain in ["-", "not ", "1+", "a.", "[", "1 if 1 else "] {
            let text = format!("{{{{ {}1 }}}}", chain.repeat((MOST_BYTES - 16) / chain.len()));
            let _ = rendered(&text, &said);
        }
        let _ = rendered(&format!("{{{{ {}1 }}}}", "1~".repeat(9_000)), &said);
        let _ = rendered(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000)), &said);
        let nested = "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% for j in range(9) %}{% set ns.s = [ns.s] %}\
                      {% endfor %}{% endfor %}";
        for end in ["{{ ns.s }}", "{{ ns.s | tojson }}", "{{ ns.s == [ns.s] }}", ""] {
            let _ = rendered(&format!("{nested}{end}"), &said);
            let _ = rendered(&format!("{}{end}", nested.replace("range(9)", "range(4)")), &said);
        }
        let long = format!("{{% for i in range(16000) %}}{}{{% endfor %}}", "y".repeat(65_000));
        for text in ["{{ \"%999999999d\" | format(1) }}", long.as_str()] {
            assert!(rendered(text, &said).is_err(), "{text:.60}");
        }
        let error = rendered(&"x".repeat(MOST_BYTES + 1), &said).unwrap_err().to_string();
        assert!(error.contains("more than 262144"), "{error}");
    }

    #[test]
    fn templates_do_what_transformers_makes_of_them() {
        let said = json!([{"role": "user", "content": " <b>'x'&</b> "}, {"role": "assistant", "content": "y"}]);
        let cases = [
            ("{{ messages[::-1][0].content }}{{ messages[1:][0].role }}", "yassistant"),
            ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " <b>'x'&</b> "}"#),
            (
                "{{ {'b': [1, 2.0, none, true], 'a': '层\\n'} | tojson }}",
                "{\"b\": [1, 2.0, null, true], \"a\": \"层\\n\"}",
            ),
            ("{{ {'b': [], 'a': [1]} | tojson(indent=2) }}", "{\n  \"b\": [],\n  \"a\": [\n    1\n  ]\n}"),
            ("{{ ['é', 1] | tojson(ensure_ascii=true, separators=(',', ':')) }}", "[\"\\u00e9\",1]"),
            ("{{ messages[0].content.strip().split('x')[0].removeprefix('<b>') }}", "'"),
            ("{{ eos_token }}{{ bos_token is defined }}{{ tools is none }}", "</s>FalseTrue"),
            ("{%- for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
            ("{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}", "3"),
            ("{{ strftime_now('%d %b %Y') }}", "02 Jan 1970"),
            ("{{ '20240601 {:>4}'.format('x') }}", "20240601    x"),
            ("{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}", "role=assistant;content=y;"),
            ("a\n{%- generation -%}\n b{% endgeneration %}\nc", "abc"),
            ("{{ messages[1].get('tool_calls', 'no') }}{{ messages[0].none is defined }}", "noFalse"),
            ("{%- macro f(x, y='d') -%}{{ x }}{{ y }}{%- endmacro -%}{{ f('a', y='b') }}{{ f(1) }}", "ab1d"),
            (
                "{{ messages | map(attribute='role') | join(',') }} {{ messages[-1]['role'] }}",
                "user,assistant assistant",
            ),
        ];
        for (template, expected) in cases {
            assert_eq!(rendered(template, &said).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn what_a_template_says_against_a_row_is_the_reason() {
        let problem =
            rendered("{{ raise_exception('roles must \\x1b alternate') }}", &json!([])).unwrap_err().to_string();
        assert!(problem.contains("rejects it: roles must") && !problem.contains('\x1b'), "{problem}");
        let problem = rendered("a\n{{ messages[0].content + 1 }}", &json!([{"content": "x"}])).unwrap_err().to_string();
        assert!(problem.contains("(line 2)"), "{problem}");
        let problem = compiled("{% if %}").err().unwrap().to_string();
        assert!(problem.contains("the chat template can't be read"), "{problem}");
    }

    #[test]
    fn a_template_without_end_is_stopped() {
        let text = "{% for a in range(9999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        let problem = rendered(&text, &json!([])).unwrap_err().to_string();
        assert!(problem.contains("fuel"), "{problem}");
    }

    #[test]
    fn files_and_lists_are_found_and_no_template_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let text =
            || ChatTemplate::open(dir.path()).map(|t| (t.render(&[], None, false).unwrap(), t.path().to_owned()));
        assert!(text().unwrap_err().to_string().contains("has no chat template"));
        put("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
        assert!(text().unwrap_err().to_string().contains("none has the name"));
        let list =
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        put("tokenizer_config.json", list);
        assert_eq!(text().unwrap().0, "d");
        let template = ChatTemplate::open(dir.path()).unwrap();
        assert_eq!(template.render(&[], Some(&Value::from(1)), false).unwrap(), "t");
        put("chat_template.jinja", "f\r\ng");
        assert_eq!(text().unwrap(), ("f\ng".to_owned(), dir.path().join("chat_template.jinja")));
        put("tokenizer_config.json", "[]");
        assert!(text().unwrap_err().to_string().contains("is not a JSON object"));
    }
}
