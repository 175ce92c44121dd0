//! The rules of each mixture: which tensors depart from its base type. Same rules as `llama_tensor_get_type_impl` in
//! llama-quant.cpp, for the mixtures that `FileType` has.

use super::FileType as F;
use super::eligible::{Role, block_of};
use super::{Candidate, Choices, Facts};
use crate::error::{Error, Result, escaped};
use crate::ggml::TensorType as T;

/// Applies a mixture's rules to tensors, one after the other: some depend on how many of a role came before.
pub(super) struct Rules<'a> {
    facts: &'a Facts,
    choices: &'a Choices,
    has_imatrix: bool,
    /// The model has no output head: the embedding serves as one.
    is_tied: bool,
    /// Tensors of role [`Role::Values`] in all.
    values: u64,
    /// Of these, how many came before.
    values_seen: u64,
    /// Tensors of role [`Role::FfnDown`] that came before.
    downs_seen: u64,
}

/// Where a tensor stands among those of its role: the index and the number of all.
#[derive(Clone, Copy)]
struct Place(u64, u64);

impl Place {
    /// In the first of `parts` parts.
    fn in_first(self, parts: u64) -> bool {
        self.0 < self.1 / parts
    }

    /// In the first or last eighth, or a third of those between.
    fn gets_more_bits(self) -> bool {
        let eighth = self.1 / 8;
        self.0 < eighth || self.0 >= 7 * self.1 / 8 || (self.0 - eighth) % 3 == 2
    }
}

impl<'a> Rules<'a> {
    /// Rules for a file of `candidates`, which [`Self::kind_of`] must be given in llama-quantize's order.
    pub(super) fn new(candidates: &[Candidate], facts: &'a Facts, choices: &'a Choices, has_imatrix: bool) -> Self {
        let count = |role| candidates.iter().filter(|tensor| Role::of(tensor.name) == role).count() as u64;
        Self {
            facts,
            choices,
            has_imatrix,
            is_tied: count(Role::Output) == 0,
            values: count(Role::Values),
            values_seen: 0,
            downs_seen: 0,
        }
    }

    /// The type of the next tensor, one of `role`, before its shape is looked at.
    pub(super) fn kind_of(&mut self, tensor: &Candidate, role: Role) -> Result<T> {
        let base = self.choices.mixture.base_type();
        match role {
            Role::Output => Ok(self.output(tensor, base)),
            Role::Embedding if self.is_tied => Ok(self.output(tensor, base)),
            Role::Values => Ok(self.values(base)),
            Role::Keys if self.facts.experts == 8 => Ok(T::Q8_0),
            Role::AttentionOutput => Ok(self.attention_output(base)),
            Role::FfnDown => self.ffn_down(tensor, base),
            Role::FfnUp | Role::FfnGate => self.check_block(tensor).map(|()| base),
            Role::Embedding | Role::Keys | Role::Other => Ok(base),
        }
    }

    fn output(&self, tensor: &Candidate, base: T) -> T {
        let whole_blocks = tensor.columns().is_multiple_of(base.block_len());
        match self.choices.output_type {
            Some(kind) => kind,
            None if base == T::Q8_0 || self.is_falcon() || !whole_blocks => T::Q8_0,
            None => T::Q6_K,
        }
    }

    fn values(&mut self, base: T) -> T {
        let place = Place(self.values_seen, self.values);
        self.values_seen += 1;
        let heads_are_shared = self.facts.heads_per_group() >= 4;
        let kind = match self.choices.mixture {
            F::Q2_K | F::Q2_K_S if heads_are_shared => T::Q4_K,
            F::Q2_K => T::Q3_K,
            F::Q3_K_M if place.0 >= 2 => T::Q4_K,
            F::Q3_K_M | F::Q3_K_L => T::Q5_K,
            F::IQ4_NL | F::IQ4_XS if heads_are_shared => T::Q5_K,
            F::Q4_K_M | F::Q5_K_M if place.gets_more_bits() => T::Q6_K,
            F::Q4_K_S if place.0 < 4 => T::Q5_K,
            _ => base,
        };
        match kind {
            _ if self.facts.experts == 8 => T::Q8_0,
            T::Q3_K | T::Q4_K if self.facts.is_70b() => T::Q5_K,
            _ => kind,
        }
    }

    fn attention_output(&self, base: T) -> T {
        let mixture = self.choices.mixture;
        if self.is_falcon() {
            return if mixture == F::Q3_K_L { T::Q4_K } else { base };
        }
        match mixture {
            F::Q2_K | F::Q3_K_S | F::Q3_K_M | F::IQ4_NL | F::Q4_K_S | F::Q4_K_M | F::IQ4_XS
                if self.facts.experts == 8 =>
            {
                T::Q5_K
            }
            _ if self.facts.experts == 8 => base,
            F::Q2_K => T::Q3_K,
            F::Q3_K_M => T::Q4_K,
            F::Q3_K_L => T::Q5_K,
            _ => base,
        }
    }

    fn ffn_down(&mut self, tensor: &Candidate, base: T) -> Result<T> {
        self.check_block(tensor)?;
        // Experts come one by one in some files, so models that have them are counted by block.
        let index =
            if self.facts.experts > 1 { u64::try_from(block_of(tensor.name)).unwrap_or(0) } else { self.downs_seen };
        self.downs_seen += 1;
        let place = Place(index, self.facts.layers);
        let falcon = self.is_falcon();
        Ok(match self.choices.mixture {
            F::Q2_K => T::Q3_K,
            F::Q2_K_S if place.in_first(8) => T::Q4_K,
            F::Q3_K_M if place.in_first(16) => T::Q5_K,
            F::Q3_K_M if !falcon || place.gets_more_bits() => T::Q4_K,
            F::Q3_K_L if falcon => T::Q4_K,
            F::Q3_K_L => T::Q5_K,
            F::Q4_K_M if falcon && place.in_first(16) => T::Q6_K,
            F::Q4_K_M if falcon && place.gets_more_bits() => T::Q5_K,
            F::Q4_K_M if !falcon && place.gets_more_bits() => T::Q6_K,
            F::IQ4_NL | F::IQ4_XS if !self.has_imatrix && place.in_first(8) => T::Q5_K,
            F::Q5_K_M if place.gets_more_bits() => T::Q6_K,
            F::Q4_K_S if !falcon && place.in_first(8) => T::Q5_K,
            F::Q4_0 if self.has_imatrix && place.in_first(8) => T::Q4_1,
            F::Q5_0 if self.has_imatrix && place.in_first(8) => T::Q5_1,
            _ => base,
        })
    }

    /// The feed-forward weights of a model with experts must name their block.
    fn check_block(&self, tensor: &Candidate) -> Result<()> {
        let block = u64::try_from(block_of(tensor.name));
        if self.facts.experts <= 1 || block.is_ok_and(|block| block < self.facts.layers) {
            return Ok(());
        }
        let name = escaped(tensor.name);
        Err(Error::inconsistent(
            format!("tensor {name}: its name has no block number below block_count, {}", self.facts.layers),
            "choose the types with ⟦pure⟧ or ⟦tensor_type⟧, which don't require a block number",
        ))
    }

    fn is_falcon(&self) -> bool {
        self.facts.architecture == "falcon"
    }
}

/// The type that takes the place of `kind` in a tensor whose rows hold no whole number of its blocks.
pub(super) fn fallback(kind: T, columns: usize) -> Result<T> {
    if columns.is_multiple_of(kind.block_len()) {
        return Ok(kind);
    }
    let smaller = match kind {
        T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS | T::IQ3_S | T::IQ4_XS => T::IQ4_NL,
        T::Q2_0 | T::Q2_K | T::Q3_K | T::TQ1_0 | T::TQ2_0 => T::Q4_0,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        T::Q6_K => T::Q8_0,
        _ if kind.block_len() <= 32 => T::F16,
        _ => {
            let problem = format!(
                "rows of {columns} values are not a multiple of the block size of {kind}, and nothing stands in for it"
            );
            return Err(Error::unsupported(problem, "choose another type for the tensor with ⟦tensor_type⟧"));
        }
    };
    Ok(if columns.is_multiple_of(smaller.block_len()) { smaller } else { T::F16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_go_to_the_ends_and_to_a_third_between() {
        let more: Vec<_> = (0..32).filter(|i| Place(*i, 32).gets_more_bits()).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert!(Place(0, 1).gets_more_bits() && !Place(0, 2).gets_more_bits(), "7/8 of 1 is 0, of 2 it is 1");
        assert!(Place(u64::from(u32::MAX), u64::from(u32::MAX)).gets_more_bits(), "no overflow");
    }

    #[test]
    fn odd_rows_get_smaller_blocks_or_f16() {
        let cases = [
            (T::Q4_K, 256, T::Q4_K),
            (T::Q4_K, 896, T::Q5_0),
            (T::Q6_K, 896, T::Q8_0),
            (T::IQ4_XS, 160, T::IQ4_NL),
            (T::Q4_K, 100, T::F16),
            (T::Q8_0, 48, T::F16),
            (T::F16, 3, T::F16),
        ];
        for (kind, columns, expected) in cases {
            assert_eq!(fallback(kind, columns).unwrap(), expected, "{kind} {columns}");
        }
        assert!(fallback(T::NVFP4, 96).is_err());
    }
}
