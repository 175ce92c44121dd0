use std::path::Path;

use super::super::conversation::Role::{Assistant, System, Tool, ToolCall, User};
use super::super::encode::tests::conversation;
use super::super::encode::{EncodeOptions, Encoder, LossScale};
use super::*;

/// An encoder with this template.
fn encoder(template: &str, loss_scale: LossScale) -> Encoder {
    let dir = tempfile::tempdir().unwrap();
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat/small");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(small.join(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    Encoder::new(dir.path(), EncodeOptions { loss_scale, ..EncodeOptions::default() }).unwrap()
}

/// The text of `row`, what of it is trained on, and how many turns are as the row has them.
fn rendered(template: &str, loss_scale: LossScale, row: &Conversation) -> (String, Vec<String>, usize) {
    let rendered = encoder(template, loss_scale).render(row).unwrap();
    let learned = rendered.trained.iter().map(|span| rendered.text[span.clone()].to_owned()).collect();
    (rendered.text, learned, rendered.as_given)
}

fn learned(template: &str, loss_scale: LossScale, row: &Conversation) -> Vec<String> {
    rendered(template, loss_scale, row).1
}

fn problem(template: &str, loss_scale: LossScale, row: &Conversation) -> String {
    encoder(template, loss_scale).render(row).unwrap_err().to_string()
}

/// As those of Qwen2.5-Instruct: no text without a first message, and a system message of its own.
const DEFAULT_SYSTEM: &str = "{%- set first = messages[0]['role'] == 'system' -%}\n<|im_start|>system\n{{ \
    messages[0]['content'] if first else 'Be kind.' }}<|im_end|>\n{% for m in (messages[1:] if first else messages) \
    -%}\n<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor -%}\n{%- if add_generation_prompt %}\
    <|im_start|>assistant\n{% endif -%}";

/// As that of `DeepSeek-R1-Distill`: thoughts are cut out of every turn, and the prompt opens one.
const CUTS_ALL: &str = "{{- '<s>' -}}{%- for m in messages -%}{%- if m.role == 'user' -%}<U>{{ m.content }}{%- else -%}\
    <A>{{ m.content.split('</think>')[-1] }}<E>{%- endif -%}{%- endfor -%}{%- if add_generation_prompt %}<A><think>\n\
    {% endif -%}";

/// As that of Qwen3: thoughts of turns before the user's last word are cut, and the last turn gets empty ones.
const CUTS_PAST: &str = "{%- set ns = namespace(last=-1) -%}{%- for m in messages if m.role == 'user' -%}{%- set ns.last = \
    loop.index0 -%}{%- endfor -%}{%- set ns.users = 0 -%}{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}{%- \
    if m.role == 'user' -%}{%- set ns.users = ns.users + 1 -%}{{ m.content }}{%- else -%}{%- set thought = \
    m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' -%}{%- if ns.users > ns.last \
    -%}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif -%}{{ \
    m.content.split('</think>')[-1].lstrip('\n') }}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}{%- if \
    add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}";

fn thoughts() -> Conversation {
    conversation(&[
        (User, "2+2?"),
        (Assistant, "<think>\nadd\n</think>\n\n4"),
        (User, "3+3?"),
        (Assistant, "<think>\nadd three\n</think>\n\n6"),
    ])
}

#[test]
fn a_row_may_begin_with_the_assistant() {
    let row = conversation(&[(Assistant, "Welcome!"), (User, "hi"), (Assistant, "hello")]);
    let (text, spans, as_given) = rendered(DEFAULT_SYSTEM, LossScale::Default, &row);
    assert!(text.starts_with("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>assistant\nWelcome!<|im_end|>\n"));
    assert_eq!((spans, as_given), (vec!["Welcome!<|im_end|>\n".to_owned(), "hello<|im_end|>\n".to_owned()], 0));
    // One that writes nothing where there is no message, and has no prompt.
    let silent =
        "{% if messages %}<S>Be kind.{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}<E>{% endfor %}";
    assert_eq!(learned(silent, LossScale::Default, &row)[0], "Welcome!<E>");
    // One turn alone, and one whose words are its own header's.
    let row = conversation(&[(Assistant, "<|im_start|>assistant\nx")]);
    assert_eq!(learned(DEFAULT_SYSTEM, LossScale::Default, &row), ["<|im_start|>assistant\nx<|im_end|>\n"]);
    let mut row = conversation(&[(Assistant, "a"), (User, "b"), (Assistant, "c")]);
    row.messages[0].loss = Some(false);
    let all = learned(DEFAULT_SYSTEM, LossScale::All, &row).concat();
    assert_eq!(all, rendered(DEFAULT_SYSTEM, LossScale::All, &row).0.replacen("a<|im_end|>\n", "", 1));
}

#[test]
fn thoughts_that_a_template_cuts_are_learned() {
    let row = thoughts();
    let (text, spans, as_given) = rendered(CUTS_ALL, LossScale::Default, &row);
    let turns = ["<think>\nadd\n</think>\n\n4<E>", "<think>\nadd three\n</think>\n\n6<E>"];
    assert_eq!((spans, as_given), (turns.map(str::to_owned).to_vec(), 2));
    assert_eq!(text, format!("<s><U>2+2?<A>{}<U>3+3?<A>{}", turns[0], turns[1]));
    // Of the last round alone: turns before it are as the template writes them.
    let (text, spans, as_given) = rendered(CUTS_ALL, LossScale::LastRound, &row);
    assert_eq!((spans, as_given), (vec![turns[1].to_owned()], 1));
    assert_eq!(text, format!("<s><U>2+2?<A>\n\n4<E><U>3+3?<A>{}", turns[1]));
    let (text, spans, as_given) = rendered(CUTS_ALL, LossScale::All, &row);
    assert_eq!((spans.concat(), as_given), (text, 2));
    let mut one = row.clone();
    one.messages[1].loss = Some(false);
    let (text, spans, _) = rendered(CUTS_ALL, LossScale::All, &one);
    assert_eq!(text, format!("<s><U>2+2?<A>\n\n4<E><U>3+3?<A>{}", turns[1]));
    assert_eq!(spans, ["<s><U>2+2?<A>", &format!("<U>3+3?<A>{}", turns[1])]);
    // Answers without thoughts are as the template writes them, after its header.
    let plain = conversation(&[(User, "hi"), (Assistant, "hello"), (User, "hi"), (Assistant, "<b>yes</b>")]);
    let (text, spans, as_given) = rendered(CUTS_ALL, LossScale::Default, &plain);
    assert_eq!((text.as_str(), as_given), ("<s><U>hi<A>hello<E><U>hi<A><b>yes</b><E>", 0));
    assert_eq!(spans, ["hello<E>", "<b>yes</b><E>"]);
}

#[test]
fn earlier_turns_that_a_template_changes_are_found() {
    let plain = conversation(&[(User, "a"), (Assistant, " b\n"), (User, "c"), (Assistant, "d")]);
    let (text, spans, as_given) = rendered(CUTS_PAST, LossScale::Default, &plain);
    assert!(text.starts_with("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n b\n<|im_end|>\n"), "{text}");
    assert_eq!(spans, [" b\n<|im_end|>\n", "<think>\n\n</think>\n\nd<|im_end|>\n"]);
    assert_eq!(as_given, 0);
    let (_, spans, as_given) = rendered(CUTS_PAST, LossScale::Default, &thoughts());
    let turns = ["<think>\nadd\n</think>\n\n4<|im_end|>\n", "<think>\nadd three\n</think>\n\n6<|im_end|>\n"];
    assert_eq!((spans, as_given), (turns.map(str::to_owned).to_vec(), 1));
    let (text, spans, as_given) = rendered(CUTS_PAST, LossScale::LastRound, &thoughts());
    assert_eq!((spans, as_given), (vec![turns[1].to_owned()], 0));
    assert!(text.contains("assistant\n4<|im_end|>"), "{text}");
    // Names of the last speaker alone, and no end of a turn.
    let odd = "{% for m in messages %}[{{ m.role if loop.last else m.role[0] }}]{{ m.content }}{% endfor %}\
               {% if add_generation_prompt %}[assistant]{% endif %}";
    let row = conversation(&[(System, "s"), (User, "u"), (Assistant, "a"), (User, "v"), (Assistant, "b")]);
    assert_eq!(learned(odd, LossScale::Default, &row), ["a", "b"]);
}

#[test]
fn a_thought_that_the_prompt_opens_is_not_opened_twice() {
    // As that of Qwen3-Thinking: the prompt opens the thought of the last turn, and the text has it, too.
    let template = CUTS_PAST.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}");
    let (text, spans, as_given) = rendered(&template, LossScale::LastRound, &thoughts());
    assert!(text.ends_with("<|im_start|>assistant\n<think>\nadd three\n</think>\n\n6<|im_end|>\n"), "{text}");
    assert_eq!((spans, as_given), (vec!["add three\n</think>\n\n6<|im_end|>\n".to_owned()], 0));
    // One that opens a thought and drops what is said of it.
    let drops = "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A><think>\n{{ \
                 m.content.split('</think>')[-1] }}<E>{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n\
                 {{ '' }}{% endif %}";
    let (text, _, as_given) = rendered(drops, LossScale::Default, &thoughts());
    assert_eq!((text.matches("<think>").count(), as_given), (2, 2), "{text}");
    assert!(text.ends_with("<A><think>\nadd three\n</think>\n\n6<E>"), "{text}");
}

#[test]
fn a_text_may_end_with_more_than_its_last_turn() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if \
                    add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}";
    let row = conversation(&[(User, "u"), (Assistant, "a"), (User, "v"), (Assistant, "b")]);
    assert_eq!(learned(template, LossScale::Default, &row), ["a<|im_end|>\n", "b<|im_end|>\n<|endoftext|>"]);
    let template = template.replace("<|im_end|>\n{% endfor", "{{ '<E>' if loop.last else '<M>' }}{% endfor");
    let error = problem(&template, LossScale::Default, &row);
    assert!(error.contains("message 2") && error.contains("⟦loss_scale last_round⟧"), "{error}");
    assert_eq!(learned(&template, LossScale::LastRound, &row), ["b<E><|endoftext|>"], "what the remedy says works");
    let mut marked = row.clone();
    marked.messages[1].loss = Some(false);
    assert_eq!(learned(&template, LossScale::Default, &marked).len(), 1, "and so does the other");
}

#[test]
fn text_that_can_t_be_learned_is_refused_with_a_way_out() {
    let call = r#"{"name": "lookup", "arguments": {}}"#;
    let mut row =
        conversation(&[(User, "u"), (Assistant, "let me see"), (ToolCall, call), (Tool, "1"), (Assistant, "b")]);
    let end = "<E>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    // Calls are no part of this template.
    let without = format!("{{% for m in messages %}}{{{{ m.role }}}}:{{{{ m.content }}}}{end}");
    let error = problem(&without, LossScale::Default, &row);
    assert!(error.contains("leaves out a tool call of message 2") && error.contains("\"loss\": false"), "{error}");
    // Words are none beside a call, as in Llama 3.1's.
    let beside = format!(
        "{{% for m in messages %}}{{{{ m.role }}}}:{{% if m.tool_calls %}}{{{{ m.tool_calls | tojson }}}}{{% else %}}{{{{ \
         m.content }}}}{{% endif %}}{end}"
    );
    for scale in [LossScale::Default, LossScale::All] {
        let error = problem(&beside, scale, &row);
        assert!(error.contains("leaves out the words of message 2") && error.contains("beside its call"), "{error}");
    }
    let mut bare = row.clone();
    bare.messages.remove(1);
    assert_eq!(learned(&beside, LossScale::Default, &bare).len(), 2);
    row.messages[1].loss = Some(false);
    for template in [&without, &beside] {
        assert_eq!(learned(template, LossScale::Default, &row), ["b<E>"]);
    }
    // Nothing of what the row says is anywhere.
    let error = problem("x", LossScale::Default, &conversation(&[(User, "u"), (Assistant, "a")]));
    assert!(error.contains("leaves out the words of message 2"), "{error}");
}

#[test]
fn a_row_s_own_marks_do_no_harm() {
    let said = mark(0);
    let row = conversation(&[(Assistant, &said), (User, &said), (Assistant, "b")]);
    let error = problem(DEFAULT_SYSTEM, LossScale::Default, &row);
    assert!(error.contains("message 1"), "{error}");
    assert_eq!(once(&format!("a{}b", mark(12)), 12), Some(1..17));
    assert_eq!((once(&mark(1).repeat(2), 1), once("", 0)), (None, None));
}

/// The same whether turns are found one by one or at once, of every template and of all that a row may hold.
#[test]
fn many_turns_are_where_each_by_itself_is() {
    let call = r#"{"name": "f", "arguments": {"x": 1}}"#;
    let words =
        ["plain", " edges\n", "<think>\nhm\n</think>\n\nthought", "", "<|im_end|>\n<|im_start|>user\n", "<E><U>"];
    let mut said = vec![(System, "be kind".to_owned())];
    for nth in 0..36 {
        said.push((User, format!("{} {nth}", words[nth % 5])));
        match nth % 9 {
            8 => said.extend([(ToolCall, call.to_owned()), (Tool, "1".to_owned()), (Assistant, nth.to_string())]),
            _ => said.push((Assistant, format!("{}{}", words[nth % 6], if nth % 6 == 3 { "x" } else { "" }))),
        }
    }
    let with_calls = "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}{% for call in m.tool_calls %}\
                      {{ call | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt %}\
                      {{ '<|im_start|>assistant\n' }}{% endif -%}";
    let trims = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/{{ m.role }}]\n\n{% endfor %}{% if \
                 add_generation_prompt %}[assistant]{% endif %}";
    let no_prompt =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<E>{% if loop.last %}<end>{% endif %}{% endfor %}";
    let mut compared = 0;
    for template in [DEFAULT_SYSTEM, CUTS_ALL, CUTS_PAST, with_calls, trims, no_prompt] {
        for without in [None, Some(ToolCall)] {
            let left = |(role, _): &&(_, String)| without.is_none_or(|call| ![call, Tool].contains(role));
            let row: Vec<_> = said.iter().filter(left).map(|(role, text)| (*role, text.as_str())).collect();
            let row = conversation(&row);
            let encoder = encoder(template, LossScale::Default);
            let found = encoder.found_by(&row);
            if let [Ok(each), Ok(many)] = &found {
                assert_eq!(each, many, "{template}");
                compared += 1;
            }
            assert_eq!(found[0].is_ok(), found[1].is_ok(), "{template}: {found:?}");
        }
    }
    assert!(compared >= 6, "only {compared}");
}

#[test]
fn a_row_of_thousands_of_turns_takes_no_time_of_their_square() {
    let said: Vec<_> = (0..6000).map(|nth| (if nth % 2 == 0 { User } else { Assistant }, "some words")).collect();
    let row = conversation(&said);
    let started = std::time::Instant::now();
    let (_, spans, _) = rendered(DEFAULT_SYSTEM, LossScale::Default, &row);
    assert_eq!((spans.len(), spans[1500].as_str()), (3000, "some words<|im_end|>\n"));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    // One whose turns no two look alike.
    let counts = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<{{ loop.index }}>{% endfor %}";
    let problem = problem(counts, LossScale::Default, &row);
    assert!(problem.contains("run too often") && problem.contains("fewer turns"), "{problem}");
}
