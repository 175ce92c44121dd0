//! Where the turns of the model lie in the text of a row. The chat template alone says so: a turn is what the text up to
//! and with it has more than the text before it with the prompt to speak. Where that can't be compared (the row begins
//! with the turn, or the template changes what is past), a mark in the place of the turn's words finds it.
//!
//! A template may leave out some of the words: thoughts, mostly. Such a turn is written as the model has to write it: the
//! words as they are given, between what the template writes before and after them.

mod many;

use std::ops::Range;

use minijinja::Value;

use super::conversation::Conversation;
use super::turns::{Chat, Turn};
use crate::error::{Error, Result, shown};
use crate::text::ChatTemplate;
use crate::text::TextTokenizer;

/// Rounds after which every turn is written as it is given, should a template lose more in each.
const ROUNDS: usize = 2;
/// Begins and ends a mark; private characters that no script has, and no template changes.
const MARK: char = '\u{10fffd}';
/// The mark's digits begin here.
const DIGITS: u32 = 0x10_0000;

/// A turn to find.
pub(super) struct Wanted<'c> {
    pub(super) turn: &'c Turn,
    /// Whether all of it must be in the text, since it is trained on.
    pub(super) whole: bool,
}

/// A text and the turns in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    /// Of each turn that was wanted, the place.
    pub(super) places: Vec<Range<usize>>,
    /// How many turns are written as the row has them, since the template leaves out some of their words.
    pub(super) as_given: usize,
}

/// What renders a row.
#[derive(Clone, Copy)]
pub(super) struct Writer<'w> {
    pub(super) template: &'w ChatTemplate,
    pub(super) tokenizer: &'w TextTokenizer,
}

/// The text of `row`, which `chat` is, with the places of the turns that are `wanted`, in their order.
pub(super) fn find(writer: Writer<'_>, row: &Conversation, chat: &Chat, wanted: &[Wanted<'_>]) -> Result<Found> {
    find_by(many::are_many(wanted, chat.messages.len()), writer, row, chat, wanted)
}

/// As [`find`]; with `many`, turns are not all found one by one.
pub(super) fn find_by(
    many: bool,
    writer: Writer<'_>,
    row: &Conversation,
    chat: &Chat,
    wanted: &[Wanted<'_>],
) -> Result<Found> {
    let mut given = vec![false; wanted.len()];
    let mut rounds = 0;
    loop {
        let mut scene = Scene { writer, chat, messages: chat.messages.clone() };
        for (nth, one) in wanted.iter().enumerate().filter(|(nth, _)| given[*nth]) {
            scene.mark(one.turn, nth);
        }
        let text = scene.render(chat.messages.len(), false)?;
        let found = if many {
            many::places(&scene, &text, row, wanted, &given)?
        } else {
            let all = wanted.iter().enumerate().map(|(nth, one)| scene.exact(&text, one.turn, nth, given[nth]));
            all.collect::<Result<_>>()?
        };
        let mut places = Vec::with_capacity(wanted.len());
        let mut lost = Vec::new();
        for (nth, (one, place)) in wanted.iter().zip(found).enumerate() {
            let words = one.turn.words(row);
            let holds = |place: &Place| given[nth] || !one.whole || place.holds(&text, words);
            match place.filter(holds) {
                Some(place) => places.push(place),
                None if one.whole && !words.is_empty() => lost.push(nth),
                None => return Err(scene.unclear(one)),
            }
        }
        if lost.is_empty() {
            return written(&scene, &text, &places, row, wanted);
        }
        rounds += 1;
        for (nth, one) in wanted.iter().enumerate() {
            given[nth] |= lost.contains(&nth) || (rounds > ROUNDS && one.whole && !one.turn.words(row).is_empty());
        }
    }
}

/// `text` with the words in the place of the marks.
fn written(
    scene: &Scene<'_>,
    text: &str,
    places: &[Place],
    row: &Conversation,
    wanted: &[Wanted<'_>],
) -> Result<Found> {
    let mut found = Found { text: String::with_capacity(text.len()), places: Vec::new(), as_given: 0 };
    let mut at = 0;
    for (place, one) in places.iter().zip(wanted) {
        let before = text.get(at..place.turn.start).ok_or_else(|| scene.unclear(one))?;
        found.text.push_str(before);
        let mut start = found.text.len();
        if let Some(mark) = &place.mark {
            let words = one.turn.words(row);
            // A prompt that opens the thought already is not to open it twice.
            start -= opened(&found.text, words);
            found.text.truncate(start);
            found.text.push_str(words);
            found.text.push_str(&text[mark.end..place.turn.end]);
            found.as_given += 1;
        } else {
            found.text.push_str(&text[place.turn.clone()]);
        }
        let calls = |text: &str| one.turn.calls.iter().all(|call| text.contains(call.as_str()));
        if one.whole && !calls(&found.text[start..]) {
            return Err(scene.without_calls(one));
        }
        found.places.push(start..found.text.len());
        at = place.turn.end;
    }
    found.text.push_str(&text[at..]);
    Ok(found)
}

/// Where a turn is.
struct Place {
    turn: Range<usize>,
    /// The mark in it, if its words are still to be put there.
    mark: Option<Range<usize>>,
}

impl Place {
    /// Whether `text` has all the words there. White space at their edges, and about thoughts, is the template's.
    fn holds(&self, text: &str, words: &str) -> bool {
        let start = self.turn.start - opened(&text[..self.turn.start], words);
        let turn = &text[start..self.turn.end];
        turn.contains(words.trim()) || dense(turn).contains(&dense(words))
    }
}

fn dense(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Bytes at the end of `text` that the tag with which `words` begin is to replace: the prompt has written it.
fn opened(text: &str, words: &str) -> usize {
    let tag = words.find('>').filter(|_| words.starts_with('<')).map(|end| &words[..=end]);
    let rest = tag.and_then(|tag| text.trim_end().strip_suffix(tag));
    rest.map_or(0, |rest| text.len() - rest.len())
}

/// A row's messages, marks among them.
struct Scene<'s> {
    writer: Writer<'s>,
    chat: &'s Chat,
    messages: Vec<Value>,
}

impl Scene<'_> {
    /// The text of the first `end` messages.
    fn render(&self, end: usize, prompt: bool) -> Result<String> {
        self.writer.template.render(&self.messages[..end], self.chat.tools.as_ref(), prompt)
    }

    /// Puts the mark `nth` in the place of the words of `turn`.
    fn mark(&mut self, turn: &Turn, nth: usize) {
        let message = &mut self.messages[turn.at];
        let keys: Vec<Value> = message.try_iter().map(Iterator::collect).unwrap_or_default();
        let value = |key: &Value| match key.as_str() {
            Some("content") => Value::from(mark(nth)),
            _ => message.get_item(key).unwrap_or_default(),
        };
        let marked = Value::from_pairs(keys.iter().map(|key| (key.clone(), value(key))));
        *message = marked;
    }

    /// Where `turn` is in `text`, about its mark if it is `given`; `None` if it can't be told.
    fn exact(&self, text: &str, turn: &Turn, nth: usize, given: bool) -> Result<Option<Place>> {
        if given { self.around(text, turn, nth).map(Some) } else { Ok(self.place(text, turn, nth)) }
    }

    /// Where `turn` is in `text`; `None` if it can't be told.
    fn place(&self, text: &str, turn: &Turn, nth: usize) -> Option<Place> {
        let turn = self.grown(text, turn).or_else(|| self.marked(text, turn, nth))?;
        Some(Place { turn, mark: None })
    }

    /// The text before `turn` with the prompt to speak. What a template makes of no message at all says nothing: some
    /// refuse it, and some leave out what they write before the first.
    fn before(&self, turn: &Turn) -> Option<String> {
        if turn.at == 0 {
            return None;
        }
        self.render(turn.at, true).ok()
    }

    /// What the text up to and with `turn` has more than the text before it with the prompt.
    fn grown(&self, text: &str, turn: &Turn) -> Option<Range<usize>> {
        let begins = |part: &String| text.starts_with(part.as_str());
        let start = self.before(turn).filter(begins)?.len();
        let last = turn.at + 1 == self.messages.len();
        let end = if last { text.len() } else { self.render(turn.at + 1, false).ok().filter(begins)?.len() };
        (start <= end).then_some(start..end)
    }

    /// What lies in `text` between that which a mark in the place of the words has before and after it.
    fn marked(&self, text: &str, turn: &Turn, nth: usize) -> Option<Range<usize>> {
        let mut scene = Scene { messages: self.messages.clone(), ..*self };
        scene.mark(turn, nth);
        let whole = scene.render(scene.messages.len(), false).ok()?;
        let found = once(&whole, nth)?;
        let (head, tail) = (&whole[..found.start], &whole[found.end..]);
        let start = scene.header(head, turn);
        let behind = text.len().checked_sub(tail.len())?;
        let end = behind + scene.ending(tail, turn, nth)?;
        (text.starts_with(&head[..start]) && text.ends_with(tail) && start <= end).then_some(start..end)
    }

    /// Where `turn` is in `text` about its mark.
    fn around(&self, text: &str, turn: &Turn, nth: usize) -> Result<Place> {
        let mark = once(text, nth).ok_or_else(|| self.left_out(turn))?;
        let start = self.header(&text[..mark.start], turn);
        let ending = self.ending(&text[mark.end..], turn, nth);
        let end = mark.end + ending.ok_or_else(|| self.unclear(&Wanted { turn, whole: true }))?;
        Ok(Place { turn: start..end, mark: Some(mark) })
    }

    /// Of `head`, the text before a mark, how much is no part of the turn: all, or up to where the prompt ends.
    fn header(&self, head: &str, turn: &Turn) -> usize {
        if let Some(before) = self.before(turn).filter(|before| head.starts_with(before.as_str())) {
            return before.len();
        }
        // What the prompt adds to a text, and where in this one it may be.
        let past = if turn.at == 0 { turn.at + 1 } else { turn.at };
        let plain = self.render(past, false).unwrap_or_default();
        let asked = self.render(past, true).unwrap_or_default();
        let prompt = asked.strip_prefix(plain.as_str()).filter(|prompt| !prompt.is_empty());
        let low = if turn.at == 0 { 0 } else { common(&plain, head) };
        prompt.and_then(|prompt| Some(low + head[low..].rfind(prompt)? + prompt.len())).unwrap_or(head.len())
    }

    /// Of `tail`, the text after a mark, how much ends the turn; `None` if it ends another way when nothing follows.
    fn ending(&self, tail: &str, turn: &Turn, nth: usize) -> Option<usize> {
        if turn.at + 1 == self.messages.len() {
            return Some(tail.len());
        }
        let alone = self.render(turn.at + 1, false).ok()?;
        let own = &alone[once(&alone, nth)?.end..];
        if tail.starts_with(own) {
            return Some(own.len());
        }
        // Some templates end the text with a token more. What both have must be an end, and not a letter by chance.
        let near = &tail[..tail.floor_char_boundary(own.len().saturating_add(64))];
        let tokenizer = self.writer.tokenizer;
        let tokens = [own, near].map(|text| tokenizer.encode(text).unwrap_or_default());
        let same = tokens[0].iter().zip(&tokens[1]).take_while(|(own, near)| own == near);
        let end = same.filter(|((id, _), _)| tokenizer.is_added(*id)).last()?.0.1.end;
        let blank = tail[end..].len() - tail[end..].trim_start().len();
        Some(end + common(&own[end..], &tail[end..end + blank]))
    }

    fn refused(&self, turn: &Turn, problem: &str, remedy: String) -> Error {
        let template = shown(self.writer.template.path());
        Error::unsupported(format!("the chat template of {template} {problem} message {}", turn.first + 1), remedy)
    }

    fn unclear(&self, one: &Wanted<'_>) -> Error {
        let remedy =
            if one.whole { instead(one.turn) } else { "drop \"loss\": false from it, or drop the row".to_owned() };
        self.refused(one.turn, "does not show which tokens are those of", remedy)
    }

    fn too_many(&self, one: &Wanted<'_>) -> Error {
        let remedy =
            "cut the conversation into rows of fewer turns, or train on the last round only (⟦loss_scale last_round⟧)";
        self.refused(one.turn, "would have to run too often to show which tokens are those of", remedy.to_owned())
    }

    fn left_out(&self, turn: &Turn) -> Error {
        let words = if turn.calls.is_empty() { "" } else { "drop the text beside its call, or " };
        self.refused(turn, "leaves out the words of", format!("{words}{}", instead(turn)))
    }

    fn without_calls(&self, one: &Wanted<'_>) -> Error {
        let remedy = format!("choose a model whose template writes tool calls, or {}", instead(one.turn));
        self.refused(one.turn, "leaves out a tool call of", remedy)
    }
}

/// What to do with a turn that can't be trained on.
fn instead(turn: &Turn) -> String {
    let last_round =
        if turn.last_round { "" } else { "train on the last round only (⟦loss_scale last_round⟧), or " };
    format!("{last_round}mark it with \"loss\": false, or drop the row")
}

/// The mark of this number.
fn mark(nth: usize) -> String {
    let digits = nth.to_string();
    let digit = |c: char| char::from_u32(DIGITS + c.to_digit(10)?);
    std::iter::once(MARK).chain(digits.chars().filter_map(digit)).chain([MARK]).collect()
}

/// The place of the mark `nth` in `text`, if it is there once.
fn once(text: &str, nth: usize) -> Option<Range<usize>> {
    let mark = mark(nth);
    let start = text.find(&mark)?;
    (text.rfind(&mark) == Some(start)).then_some(start..start + mark.len())
}

/// Bytes with which both texts begin.
fn common(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    b.floor_char_boundary(same)
}

#[cfg(test)]
mod tests;
