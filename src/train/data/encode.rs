//! Conversations to token ids and loss weights, through the model's own chat template and tokenizer.
//!
//! The ids are those of the whole rendered text in one go, which is what a served model sees. ms-swift tokenizes prompt
//! and response apart: the ids differ where a token reaches over the border, as for an answer that begins with a line
//! feed. Such a token belongs to the side on which it begins. ms-swift also trains on the end of a turn that a row
//! wants left out (`loss: false`); here the whole turn is left out.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::conversation::Conversation;
use super::fit::{Dropped, Encoded, Reason, Truncation, fit};
use super::spans::{self, Found, Wanted, Writer};
use super::turns::{Chat, Turn};
use crate::digest::{Hex, sha256};
use crate::error::{Error, Result};
use crate::files::read_text_if_there;
use crate::text::ChatTemplate;
use crate::text::TextTokenizer;

/// Changes whenever the same row can give other tokens than before.
const VERSION: u32 = 2;
/// Rows of more bytes are looked at before their turns are searched.
const MUCH: usize = 64 << 10;
/// Rows that a thread takes at once.
const ROWS: usize = 8;
/// The files that a tokenizer depends on.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Which turns are trained on, as ms-swift's `--loss_scale` names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossScale {
    /// What the model writes, and what ends each of its turns.
    #[default]
    Default,
    /// Of that, what comes after the last word of the user.
    LastRound,
    /// All of a row.
    All,
}

/// What an encoding depends on beside the model's files and the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The system prompt of rows that have none; `None` leaves it to the template.
    pub system: Option<String>,
    /// Which turns are trained on where a row doesn't say.
    pub loss_scale: LossScale,
    /// Most tokens of a row; `None` is no limit.
    pub max_length: Option<usize>,
    /// What happens to longer rows.
    pub truncation: Truncation,
}

/// A row in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The ids.
    pub ids: Vec<u32>,
    /// What the loss of predicting each id counts, 0 for nothing. The first is predicted from nothing, and is 0.
    pub weights: Vec<f32>,
}

impl Sample {
    /// How many tokens are trained on.
    pub fn trained(&self) -> usize {
        self.weights.iter().filter(|weight| **weight != 0.0).count()
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes of it that are trained on.
    pub trained: Vec<Range<usize>>,
    /// How many turns are written as the row has them, since the template leaves out some of their words.
    pub as_given: usize,
}

/// Makes samples of conversations.
pub struct Encoder {
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    options: EncodeOptions,
    fingerprint: Hex,
}

impl Encoder {
    /// Opens the tokenizer and the template of the model in `dir`.
    pub fn new(dir: &Path, options: EncodeOptions) -> Result<Self> {
        let template = ChatTemplate::open(dir)?;
        let tokenizer = TextTokenizer::open(dir)?;
        let mut parts = vec![format!("{VERSION} {options:?}"), template.digested().to_owned()];
        for name in TOKENIZER_FILES {
            parts.push(read_text_if_there(&dir.join(name))?.map_or(String::new(), |text| sha256(text.as_bytes())));
        }
        let fingerprint = sha256(format!("{parts:?}").as_bytes());
        Ok(Self { template, tokenizer, options, fingerprint })
    }

    /// A digest of all that samples depend on beside the rows: template, tokenizer and options.
    pub fn fingerprint(&self) -> &Hex {
        &self.fingerprint
    }

    /// The file that has the template.
    pub fn template_path(&self) -> &Path {
        self.template.path()
    }

    /// One more than the greatest id that a sample can hold: no more than the model has rows of embeddings.
    pub fn ids_end(&self) -> u32 {
        self.tokenizer.ids_end()
    }

    /// The text of a row, and what of it is trained on. Text of a turn that is trained on is never lost: what the
    /// template leaves out is put in (see `spans`).
    pub fn render(&self, row: &Conversation) -> Result<Rendered> {
        let chat = Chat::new(row, self.options.system.as_deref())?;
        let all = self.options.loss_scale == LossScale::All;
        let learned = |turn: &Turn| if all { turn.loss != Some(false) } else { self.is_trained(turn) };
        let wanted: Vec<Wanted<'_>> = chat
            .turns
            .iter()
            .map(|turn| Wanted { turn, whole: learned(turn) })
            .filter(|one| all || one.whole)
            .collect();
        let writer = Writer { template: &self.template, tokenizer: &self.tokenizer };
        let Found { text, places, as_given } = spans::find(writer, row, &chat, &wanted)?;
        let of = |whole| wanted.iter().zip(&places).filter(move |(one, _)| one.whole == whole);
        let of = |whole| of(whole).map(|(_, place)| place.clone()).collect::<Vec<_>>();
        let trained = if all { gaps(&of(false), text.len()) } else { of(true) };
        Ok(Rendered { text, trained, as_given })
    }

    /// All turns that are trained on, found one by one and at once.
    #[cfg(test)]
    pub(super) fn found_by(&self, row: &Conversation) -> [Result<Found>; 2] {
        let chat = Chat::new(row, None).unwrap();
        let wanted: Vec<_> = chat.turns.iter().map(|turn| Wanted { turn, whole: true }).collect();
        let writer = Writer { template: &self.template, tokenizer: &self.tokenizer };
        [false, true].map(|many| spans::find_by(many, writer, row, &chat, &wanted))
    }

    fn is_trained(&self, turn: &Turn) -> bool {
        turn.loss.unwrap_or(match self.options.loss_scale {
            LossScale::Default | LossScale::All => true,
            LossScale::LastRound => turn.last_round,
        })
    }

    /// The tokens of a row, however many they are.
    pub fn encode(&self, row: &Conversation) -> Result<Sample> {
        self.tokens(self.render(row)?)
    }

    fn tokens(&self, rendered: Rendered) -> Result<Sample> {
        let Rendered { text, trained, .. } = rendered;
        let tokens = self.tokenizer.encode(&text)?;
        let mut spans = trained.into_iter().peekable();
        let (mut ids, mut weights) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(tokens.len()));
        for (id, place) in tokens {
            while spans.next_if(|span| span.end <= place.start).is_some() {}
            let inside = spans.peek().is_some_and(|span| span.contains(&place.start));
            weights.push(if inside && !ids.is_empty() { 1.0 } else { 0.0 });
            ids.push(id);
        }
        Ok(Sample { ids, weights })
    }

    /// The samples of all rows, in their order, made by `threads` threads and cut to the greatest length. A row that
    /// can't be used is dropped with the reason. `done` is told of rows as they are finished. An error of the whole is
    /// [`Error::Interrupted`].
    pub fn encode_all(
        &self,
        rows: &[&Conversation],
        threads: usize,
        cancel: &AtomicBool,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Encoded> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::with_capacity(rows.len().div_ceil(ROWS)));
        let work = || {
            while !cancel.load(Ordering::Relaxed) && self.template.if_stuck().is_ok() {
                let start = next.fetch_add(ROWS, Ordering::Relaxed);
                let Some(some) = rows.get(start..rows.len().min(start.saturating_add(ROWS))) else { return };
                if some.is_empty() {
                    return;
                }
                let encoded: Vec<_> = some.iter().map(|row| self.fitted(row)).collect();
                found.lock().unwrap_or_else(PoisonError::into_inner).push((start, encoded));
                done(some.len());
            }
        };
        std::thread::scope(|scope| {
            (1..threads.min(rows.len().div_ceil(ROWS))).for_each(|_| {
                scope.spawn(work);
            });
            work();
        });
        self.template.if_stuck()?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { kept: None, finished: 0, shards: 0 });
        }
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_unstable_by_key(|(start, _)| *start);
        let mut all = Encoded::default();
        for (row, result) in found.into_iter().flat_map(|(_, encoded)| encoded).enumerate() {
            match result {
                Ok((sample, as_given)) => {
                    all.rows.push(row);
                    all.samples.push(sample);
                    all.as_given += as_given;
                }
                Err(reason) => all.dropped.push(Dropped { row, reason }),
            }
        }
        Ok(all)
    }

    /// The sample of a row, and how many of its turns are written as it has them.
    fn fitted(&self, row: &Conversation) -> Result<(Sample, usize), Reason> {
        let refused = |error: Error| match error {
            Error::Failed { problem, remedy, .. } => Reason::Refused { problem, remedy },
            other => Reason::Refused { problem: other.to_string(), remedy: "drop the row".to_owned() },
        };
        let EncodeOptions { max_length, truncation, .. } = self.options;
        let deleted = max_length.filter(|_| truncation == Truncation::Delete);
        // Text without end would take hundreds of bytes of memory for each of its own, and many renderings of all of it.
        if let Some(max) = deleted.filter(|_| row.bytes() > MUCH) {
            let chat = Chat::new(row, self.options.system.as_deref()).map_err(refused)?;
            let text = self.template.render(&chat.messages, chat.tools.as_ref(), false).map_err(refused)?;
            let fewest = self.tokenizer.fewest_tokens(&text);
            if fewest > max {
                return Err(Reason::FarTooLong(fewest));
            }
        }
        let mut rendered = self.render(row).map_err(refused)?;
        let as_given = rendered.as_given;
        if max_length.is_some() {
            rendered = shortened(rendered, self.tokenizer.most_bytes(), truncation);
        }
        let sample = self.tokens(rendered).map_err(refused)?;
        Ok((fit(sample, max_length, truncation)?, as_given))
    }
}

/// `rendered` with as many bytes as can be tokenized, of the side that `truncation` keeps: far more than a row may have
/// tokens.
fn shortened(rendered: Rendered, most: usize, truncation: Truncation) -> Rendered {
    if rendered.text.len() <= most {
        return rendered;
    }
    let Rendered { text, trained, as_given } = rendered;
    let kept = match truncation {
        // It is refused.
        Truncation::Delete => 0..text.len(),
        Truncation::Left => text.ceil_char_boundary(text.len() - most)..text.len(),
        Truncation::Right => 0..text.floor_char_boundary(most),
    };
    let place = |at: usize| at.clamp(kept.start, kept.end) - kept.start;
    let trained = trained.into_iter().map(|span| place(span.start)..place(span.end)).filter(|span| !span.is_empty());
    Rendered { trained: trained.collect(), text: text[kept.clone()].to_owned(), as_given }
}

/// What lies between `spans`, which are in order, up to `end`.
fn gaps(spans: &[Range<usize>], end: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(spans.iter().map(|span| span.end));
    let ends = spans.iter().map(|span| span.start).chain([end]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::conversation::{Message, Origin, Role};
    use super::*;

    /// A row that says `messages`.
    pub(in super::super) fn conversation(messages: &[(Role, &str)]) -> Conversation {
        let message =
            |(role, content): &(Role, &str)| Message { role: *role, content: (*content).to_owned(), loss: None };
        let origin = Origin { file: Path::new("rows.jsonl").into(), line: 3 };
        Conversation { messages: messages.iter().map(message).collect(), tools: Vec::new(), origin }
    }

    fn model() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat/small")
    }

    fn encoder(loss_scale: LossScale) -> Encoder {
        Encoder::new(&model(), EncodeOptions { loss_scale, ..EncodeOptions::default() }).unwrap()
    }

    fn learned(encoder: &Encoder, row: &Conversation) -> Vec<String> {
        let Rendered { text, trained, .. } = encoder.render(row).unwrap();
        trained.into_iter().map(|span| text[span].to_owned()).collect()
    }

    fn chat() -> Conversation {
        use Role::{Assistant, System, Tool, ToolCall, User};
        let call = r#"{"name": "f", "arguments": {}}"#;
        conversation(&[
            (System, "s"),
            (User, "u"),
            (Assistant, "a"),
            (User, "v"),
            (ToolCall, call),
            (Tool, "1"),
            (Tool, "2"),
            (Assistant, "b"),
            (Assistant, "c"),
        ])
    }

    const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n";

    #[test]
    fn answers_and_what_ends_them_are_learned() {
        let ended = |text: &str| format!("{text}<|im_end|>\n");
        assert_eq!(
            learned(&encoder(LossScale::Default), &chat()),
            [ended("a"), CALL.to_owned(), ended("b"), ended("c")]
        );
        assert_eq!(learned(&encoder(LossScale::LastRound), &chat()), [CALL.to_owned(), ended("b"), ended("c")]);
        let mut row = chat();
        row.messages[2].loss = Some(true);
        row.messages[4].loss = Some(false);
        assert_eq!(learned(&encoder(LossScale::LastRound), &row), [ended("a"), ended("b"), ended("c")]);
        let all = encoder(LossScale::All);
        assert_eq!(learned(&all, &chat()).concat(), all.render(&chat()).unwrap().text);
        let text = all.render(&row).unwrap().text;
        assert_eq!(learned(&all, &row).concat(), text.replacen(CALL, "", 1));
    }

    #[test]
    fn nothing_is_learned_of_the_first_token_and_all_of_a_turn() {
        let all = encoder(LossScale::All);
        let sample = all.encode(&chat()).unwrap();
        assert_eq!((sample.weights[0], sample.trained()), (0.0, sample.ids.len() - 1));
        let sample = encoder(LossScale::Default).encode(&chat()).unwrap();
        assert_eq!(sample.weights.last(), Some(&1.0), "the last line feed is trained on");
        assert!(sample.ids.iter().all(|id| *id < all.ids_end()));
    }

    #[test]
    fn a_row_that_a_template_refuses_is_dropped_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(model().join(name), dir.path().join(name)).unwrap();
        }
        let template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
                        {{ m.content }}{% endfor %}";
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let encoder = Encoder::new(dir.path(), EncodeOptions::default()).unwrap();
        let all = encoder.encode_all(&[&chat()], 1, &AtomicBool::new(false), &|_| {}).unwrap();
        let [Dropped { row: 0, reason: Reason::Refused { problem, remedy } }] = &all.dropped[..] else {
            panic!("{all:?}")
        };
        assert!(problem.contains("chat_template.jinja rejects it: no tools"), "{problem}");
        assert_eq!(remedy, "change the row, or leave it out");
    }

    #[test]
    fn text_that_is_too_long_for_certain_is_not_tokenized() {
        let row = conversation(&[(Role::User, &"x".repeat(100_000)), (Role::Assistant, "b")]);
        let encoder = |truncation| {
            let options = EncodeOptions { max_length: Some(10), truncation, ..EncodeOptions::default() };
            Encoder::new(&model(), options).unwrap()
        };
        let [Dropped { reason: Reason::FarTooLong(fewest), .. }] =
            &encoder(Truncation::Delete).encode_all(&[&row], 1, &AtomicBool::new(false), &|_| {}).unwrap().dropped[..]
        else {
            panic!("it was tokenized")
        };
        assert!(*fewest > 10 && *fewest <= encoder(Truncation::Delete).encode(&row).unwrap().ids.len());
        assert_eq!(encoder(Truncation::Left).fitted(&row).unwrap().0.ids.len(), 10, "what is cut must be known whole");
    }

    #[test]
    fn text_without_end_is_cut_before_it_is_tokenized() {
        let rendered = |text: &str| Rendered { text: text.to_owned(), trained: vec![0..1, 2..5, 7..8], as_given: 1 };
        let cut = |most, truncation| {
            let Rendered { text, trained, as_given } = shortened(rendered("a语bcdef"), most, truncation);
            (text, trained, as_given)
        };
        let whole = ("a语bcdef".to_owned(), vec![0..1, 2..5, 7..8], 1);
        assert_eq!(cut(9, Truncation::Left), whole);
        assert_eq!(cut(3, Truncation::Delete), whole);
        assert_eq!(cut(3, Truncation::Right).0, "a");
        assert_eq!(cut(5, Truncation::Right), ("a语b".to_owned(), vec![0..1, 2..5], 1));
        assert_eq!(cut(6, Truncation::Left), ("bcdef".to_owned(), vec![0..1, 3..4], 1));
        // A row's ends are what they are of a shorter row.
        let row = |words: &str| conversation(&[(Role::User, &words.repeat(300_000)), (Role::Assistant, "b")]);
        let options = EncodeOptions { max_length: Some(9), truncation: Truncation::Left, ..EncodeOptions::default() };
        let left = Encoder::new(&model(), options).unwrap();
        let words = "the quick brown fox ";
        let (huge, short) = (left.fitted(&row(words)).unwrap(), left.fitted(&row(&words[..2])).unwrap());
        assert_eq!((huge.0.ids.len(), &huge.0.ids[4..]), (9, &short.0.ids[4..]));
    }

    #[test]
    fn any_number_of_threads_gives_the_same_in_order() {
        let said: Vec<String> = (0..50).map(|i| "the dog ".repeat(i % 7 * 3) + &i.to_string()).collect();
        let rows: Vec<_> =
            said.iter().map(|said| conversation(&[(Role::User, said), (Role::Assistant, said)])).collect();
        let rows: Vec<&Conversation> = rows.iter().collect();
        let options = EncodeOptions { max_length: Some(100), ..EncodeOptions::default() };
        let encoder = Encoder::new(&model(), options).unwrap();
        let done = AtomicUsize::new(0);
        let count = |rows: usize| {
            done.fetch_add(rows, Ordering::Relaxed);
        };
        let go = AtomicBool::new(false);
        let one = encoder.encode_all(&rows, 1, &go, &count).unwrap();
        assert!(one.rows.len() + one.dropped.len() == 50 && !one.dropped.is_empty() && one.rows.is_sorted());
        assert_eq!(one.samples[0], encoder.encode(rows[one.rows[0]]).unwrap());
        assert_eq!(one, encoder.encode_all(&rows, 5, &go, &count).unwrap());
        assert_eq!(done.load(Ordering::Relaxed), 100);
        assert!(matches!(encoder.encode_all(&rows, 2, &AtomicBool::new(true), &count), Err(Error::Interrupted { .. })));
        assert_eq!(encoder.encode_all(&[], 3, &go, &count).unwrap(), Encoded::default());
    }

    #[test]
    fn the_fingerprint_is_of_options_and_files() {
        let of = |system: Option<&str>| {
            let options = EncodeOptions { system: system.map(str::to_owned), ..EncodeOptions::default() };
            Encoder::new(&model(), options).unwrap().fingerprint().clone()
        };
        assert_eq!(of(Some("s")), of(Some("s")));
        assert!(of(None) != of(Some("")) && of(Some("s")) != of(Some("t")));
    }
}
