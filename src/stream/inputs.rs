//! Digests of what streams past: inputs are handed out in steps, and what becomes of each is kept here. SHA-256 is one
//! chain, fed in order by one thread at a time; BLAKE3 is a tree, whose pieces any thread or GPU may hash.

use std::ops::Range;
use std::sync::Arc;

use crate::digest::{Hasher, Hex, PIECE, PieceTree, hex};

/// Bytes that one step digests.
const STEP: usize = 2 << 20;

const _: () = assert!(STEP.is_multiple_of(PIECE));

/// Bytes to digest as they stream past, beside the files.
pub(crate) struct Input<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) digest: InputDigest,
}

/// The digest of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputDigest {
    Sha256,
    Blake3,
}

/// What is known of an input's digest.
enum Digesting {
    /// The hasher, unless a thread feeds it.
    Chain(Option<Hasher>),
    Tree(Arc<PieceTree>),
    Done(Hex),
}

struct State {
    len: usize,
    /// Bytes that were handed out, and that are digested.
    handed: usize,
    digested: usize,
    digesting: Digesting,
}

/// A step: some bytes of an input, and what to do with them.
pub(super) struct Step {
    pub(super) input: usize,
    pub(super) range: Range<usize>,
    pub(super) how: How,
}

/// What to do with the bytes of a step.
pub(super) enum How {
    Feed(Hasher),
    Add(Arc<PieceTree>),
}

/// All inputs of a job.
pub(super) struct Inputs {
    states: Vec<State>,
    /// Inputs before this one are digested.
    first: usize,
    digested: u64,
}

impl Inputs {
    pub(super) fn new(inputs: &[Input<'_>]) -> Self {
        let state = |input: &Input<'_>| {
            let len = input.bytes.len();
            let digesting = match input.digest {
                InputDigest::Sha256 => Digesting::Chain(Some(Hasher::sha256())),
                InputDigest::Blake3 => Digesting::Tree(Arc::new(PieceTree::new(len as u64))),
            };
            let mut state = State { len, handed: 0, digested: 0, digesting };
            state.finish_if_done();
            state
        };
        let mut inputs = Self { states: inputs.iter().map(state).collect(), first: 0, digested: 0 };
        inputs.pass_done();
        inputs
    }

    /// Bytes that are digested.
    pub(super) fn digested(&self) -> u64 {
        self.digested
    }

    pub(super) fn is_done(&self) -> bool {
        self.first == self.states.len()
    }

    /// The digests in the order of the inputs, once all is done.
    pub(super) fn digests(self) -> Vec<Hex> {
        let digest = |state: State| match state.digesting {
            Digesting::Done(digest) => Some(digest),
            _ => None,
        };
        self.states.into_iter().filter_map(digest).collect()
    }

    /// The next step in the order of the inputs; one of `digest` if only such will do.
    pub(super) fn next(&mut self, only: Option<InputDigest>) -> Option<Step> {
        let wanted = |state: &State| match &state.digesting {
            Digesting::Chain(hasher) => hasher.is_some() && only != Some(InputDigest::Blake3),
            Digesting::Tree(_) => state.handed < state.len && only != Some(InputDigest::Sha256),
            Digesting::Done(_) => false,
        };
        let (input, state) = self.states.iter_mut().enumerate().skip(self.first).find(|(_, state)| wanted(state))?;
        let range = state.handed..state.len.min(state.handed + STEP);
        let how = match &mut state.digesting {
            Digesting::Chain(hasher) => How::Feed(hasher.take()?),
            Digesting::Tree(tree) => How::Add(Arc::clone(tree)),
            Digesting::Done(_) => return None,
        };
        state.handed = range.end;
        Some(Step { input, range, how })
    }

    /// A step is done; whether it was the last of all.
    pub(super) fn done(&mut self, step: Step) -> bool {
        let Step { input, range, how } = step;
        let state = &mut self.states[input];
        state.digested += range.len();
        self.digested += range.len() as u64;
        match how {
            How::Feed(hasher) => state.digesting = Digesting::Chain(Some(hasher)),
            // The last step leaves no other owner of the tree.
            How::Add(tree) => drop(tree),
        }
        state.finish_if_done();
        self.pass_done();
        self.is_done()
    }

    fn pass_done(&mut self) {
        let done = |state: &State| matches!(state.digesting, Digesting::Done(_));
        self.first += self.states[self.first..].iter().take_while(|state| done(state)).count();
    }
}

impl State {
    fn finish_if_done(&mut self) {
        if self.digested < self.len {
            return;
        }
        let digesting = std::mem::replace(&mut self.digesting, Digesting::Chain(None));
        self.digesting = match digesting {
            Digesting::Chain(Some(hasher)) => Digesting::Done(hasher.finish()),
            Digesting::Tree(tree) => match Arc::try_unwrap(tree).map(PieceTree::finish) {
                Ok(Some(digest)) => Digesting::Done(hex(&digest)),
                _ => Digesting::Chain(None),
            },
            other => other,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256;

    /// Steps in any order, several at once, give the digests of the whole inputs.
    #[test]
    fn steps_give_the_digests() {
        let bytes: Vec<u8> = (0..3 * STEP + 70_001).map(|i| (i * 7 + i / 977) as u8).collect();
        let lengths = [0, 1, PIECE, PIECE + 1, STEP, STEP + 1, bytes.len()];
        for digest in [InputDigest::Sha256, InputDigest::Blake3] {
            let inputs: Vec<Input<'_>> = lengths.iter().map(|len| Input { bytes: &bytes[..*len], digest }).collect();
            let mut state = Inputs::new(&inputs);
            assert!(!state.is_done());
            while !state.is_done() {
                let mut steps: Vec<Step> = std::iter::from_fn(|| state.next(None)).collect();
                assert!(!steps.is_empty());
                while let Some(mut step) = steps.pop() {
                    let (input, range) = (step.input, step.range.clone());
                    match &mut step.how {
                        How::Feed(hasher) => hasher.update(&inputs[input].bytes[range]),
                        How::Add(tree) => tree.add_bytes(range.start / PIECE, &inputs[input].bytes[range]),
                    }
                    assert_eq!(state.done(step), state.is_done());
                }
            }
            assert_eq!(state.digested(), lengths.iter().sum::<usize>() as u64);
            let expected = lengths.iter().map(|len| match digest {
                InputDigest::Sha256 => sha256(&bytes[..*len]),
                InputDigest::Blake3 => blake3::hash(&bytes[..*len]).to_hex().to_string(),
            });
            assert_eq!(state.digests(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn only_what_will_do_is_handed_out() {
        let inputs = [InputDigest::Sha256, InputDigest::Blake3].map(|digest| Input { bytes: &[1; 9], digest });
        let mut state = Inputs::new(&inputs);
        assert_eq!(state.next(Some(InputDigest::Blake3)).map(|step| step.input), Some(1));
        assert!(state.next(Some(InputDigest::Blake3)).is_none());
        assert_eq!(state.next(Some(InputDigest::Sha256)).map(|step| step.input), Some(0));
        assert!(state.next(None).is_none());
    }
}
