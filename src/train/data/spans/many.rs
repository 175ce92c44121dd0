//! Turns of a row that has many: to render what is before each would take time of their square. Their words are found by
//! one rendering with marks in the place of all; where a turn begins and ends about its words is seen of a few, and
//! looked for at the others. Turns that look otherwise, such as calls of tools, are found one by one, as long as that takes
//! no great time.

use std::ops::Range;

use super::super::conversation::Conversation;
use super::{Place, Scene, Wanted, mark};
use crate::error::Result;

/// Turns times messages from which on a row has many turns.
const MANY: usize = 1 << 15;
/// Turns at either end of a row that are found one by one.
const SAMPLES: usize = 4;
/// Messages that may be rendered to find turns one by one: some seconds.
const BUDGET: usize = 1 << 22;

/// Whether a row has so many turns that they are found by [`places`].
pub(super) fn are_many(wanted: &[Wanted<'_>], messages: usize) -> bool {
    wanted.len() > 2 * SAMPLES && wanted.len().saturating_mul(messages) > MANY
}

/// What a turn has about its words.
struct Shape<'t> {
    /// Text of the turn before its words.
    lead: &'t str,
    /// Text with which its words begin that is none of the turn: the prompt has it.
    skip: &'t str,
    /// Text of the turn after its words.
    ending: &'t str,
}

impl<'t> Shape<'t> {
    /// Of a turn at `place` whose words are at `words`.
    fn new(text: &'t str, place: &Range<usize>, words: &Range<usize>) -> Option<Self> {
        let lead = text.get(place.start.min(words.start)..words.start)?;
        let skip = text.get(words.start..place.start.max(words.start))?;
        Some(Self { lead, skip, ending: text.get(words.end..place.end)? })
    }

    /// The place of the turn with the words at `words`, if it looks so.
    fn of(&self, text: &str, words: &Range<usize>) -> Option<Range<usize>> {
        let (before, rest, behind) = (&text[..words.start], &text[words.start..], &text[words.end..]);
        let fits = before.ends_with(self.lead) && rest.starts_with(self.skip) && behind.starts_with(self.ending);
        let start = words.start - self.lead.len() + self.skip.len();
        fits.then(|| start..words.end + self.ending.len())
    }
}

/// Where each turn that is wanted is in `text`; `None` for one of which it can't be told. Those that are `given` have a
/// mark there.
pub(super) fn places(
    scene: &Scene<'_>,
    text: &str,
    row: &Conversation,
    wanted: &[Wanted<'_>],
    given: &[bool],
) -> Result<Vec<Option<Place>>> {
    let mut budget = BUDGET;
    let mut exactly = |nth: usize| {
        let one: &Wanted<'_> = &wanted[nth];
        budget = budget.checked_sub(2 * (one.turn.at + 1)).ok_or_else(|| scene.too_many(one))?;
        scene.exact(text, one.turn, nth, given[nth])
    };
    let Some(words) = words(scene, text, row, wanted, given) else {
        return (0..wanted.len()).map(exactly).collect();
    };
    let last = wanted.len() - 1;
    let mut found: Vec<Option<Place>> = wanted.iter().map(|_| None).collect();
    for nth in (0..SAMPLES).chain(wanted.len() - SAMPLES..wanted.len()) {
        found[nth] = exactly(nth)?;
    }
    // What ends a text may end it otherwise than a turn within it.
    let seen =
        found[..last].iter().zip(&words).filter_map(|(place, words)| Shape::new(text, &place.as_ref()?.turn, words));
    let mut shapes: Vec<Shape<'_>> = seen.collect();
    shapes.sort_by_key(|shape| std::cmp::Reverse(shape.ending.len() + shape.lead.len()));
    for nth in SAMPLES..wanted.len() - SAMPLES {
        let plain = wanted[nth].turn.calls.is_empty();
        let place = plain.then(|| shapes.iter().find_map(|shape| shape.of(text, &words[nth]))).flatten();
        found[nth] = match place {
            Some(turn) => Some(Place { turn, mark: given[nth].then(|| words[nth].clone()) }),
            None => exactly(nth)?,
        };
    }
    Ok(found)
}

/// Where the words of each turn are in `text`, or what the template makes of them: what it has between that which marks
/// in the place of all have before and after them. `None` if it has something else.
fn words(
    scene: &Scene<'_>,
    text: &str,
    row: &Conversation,
    wanted: &[Wanted<'_>],
    given: &[bool],
) -> Option<Vec<Range<usize>>> {
    let mut all = Scene { messages: scene.messages.clone(), ..*scene };
    wanted.iter().enumerate().for_each(|(nth, one)| all.mark(one.turn, nth));
    let marked = all.render(all.messages.len(), false).ok()?;
    let mut between = Vec::with_capacity(wanted.len() + 1);
    let mut at = 0;
    for nth in 0..wanted.len() {
        let mark = mark(nth);
        let start = at + marked[at..].find(&mark)?;
        between.push(&marked[at..start]);
        at = start + mark.len();
    }
    between.push(&marked[at..]);
    let mut at = text.starts_with(between[0]).then_some(between[0].len())?;
    let mut places = Vec::with_capacity(wanted.len());
    for (nth, one) in wanted.iter().enumerate() {
        let (rest, next) = (&text[at..], between[nth + 1]);
        let said = if given[nth] { mark(nth) } else { one.turn.words(row).to_owned() };
        let as_is = |said: &str| rest.strip_prefix(said).filter(|rest| rest.starts_with(next)).map(|_| said.len());
        // White space at their edges is the template's. What follows the last is the end.
        let otherwise = || if nth + 1 == wanted.len() { rest.len().checked_sub(next.len()) } else { rest.find(next) };
        let len = as_is(&said).or_else(|| as_is(said.trim())).or_else(otherwise)?;
        places.push(at..at + len);
        at += len + next.len();
    }
    (text.ends_with(between[wanted.len()]) && at == text.len()).then_some(places)
}
