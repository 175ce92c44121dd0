//! A layer, forward and backward. What the backward pass needs is either kept or computed again, to the bit.

use super::weights::Layer;
use crate::arch::Heads;
use crate::engine::dropout::Dropout;
use crate::engine::{Backward, Columns, Engine, Forward, KeysValues};
use crate::error::Result;

/// What every layer of a pass shares.
pub(super) struct Context<'p, E: Engine> {
    pub(super) engine: &'p E,
    pub(super) batch: &'p E::Placed,
    pub(super) heads: Heads,
    pub(super) epsilon: f32,
    pub(super) tables: &'p [E::Vector; 2],
    pub(super) dropout: Option<&'p Dropout>,
}

/// What attention leaves for the backward pass.
pub(super) struct Attended<E: Engine> {
    qkv: E::Matrix,
    /// The heads' outputs, adapted for the next projection.
    out: E::Matrix,
    sums: E::Vector,
    /// The hidden state after attention.
    middle: E::Matrix,
}

/// What a layer leaves for the backward pass, besides its input.
pub(super) struct Trace<E: Engine> {
    pub(super) attended: Option<Attended<E>>,
    pub(super) gate_up: Option<E::Matrix>,
}

/// What of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) attended: bool,
    pub(super) gate_up: bool,
}

impl<E: Forward> Layer<E> {
    /// The hidden state after the layer, and what is kept.
    pub(super) fn forward(&self, pass: &Context<'_, E>, x: &E::Matrix, kept: Kept) -> Result<(E::Matrix, Trace<E>)> {
        let engine = pass.engine;
        let attended = self.attention(pass, x)?;
        let (input, _) = self.mlp_input(pass, &attended.middle)?;
        let gate_up = engine.project(&self.gate_up.frozen, &input, pass.dropout, None)?;
        drop(input);
        let active = engine.gate(&gate_up, self.down.adapters.padding())?;
        let active = engine.adapt(&self.down.frozen, active, pass.dropout)?;
        let y = engine.project(&self.down.frozen, &active, pass.dropout, Some(&attended.middle))?;
        let trace = Trace { attended: kept.attended.then_some(attended), gate_up: kept.gate_up.then_some(gate_up) };
        Ok((y, trace))
    }

    fn attention(&self, pass: &Context<'_, E>, x: &E::Matrix) -> Result<Attended<E>> {
        let engine = pass.engine;
        let (input, _) = self.attention_input(pass, x)?;
        let qkv = engine.project(&self.qkv.frozen, &input, pass.dropout, None)?;
        drop(input);
        let qkv = engine.rotate(qkv, pass.heads, pass.tables, pass.batch, false)?;
        let (queries, seen) = (Columns::queries(&qkv), KeysValues::of(&qkv, pass.heads));
        let (out, sums) = engine.attend(queries, seen, pass.heads, pass.batch, self.out.adapters.padding())?;
        let out = engine.adapt(&self.out.frozen, out, pass.dropout)?;
        let middle = engine.project(&self.out.frozen, &out, pass.dropout, Some(x))?;
        Ok(Attended { qkv, out, sums, middle })
    }

    fn attention_input(&self, pass: &Context<'_, E>, x: &E::Matrix) -> Result<(E::Matrix, E::Vector)> {
        let padding = self.qkv.adapters.padding();
        let (input, inverse) = pass.engine.normalize(x, &self.attention_norm, pass.epsilon, padding)?;
        Ok((pass.engine.adapt(&self.qkv.frozen, input, pass.dropout)?, inverse))
    }

    fn mlp_input(&self, pass: &Context<'_, E>, middle: &E::Matrix) -> Result<(E::Matrix, E::Vector)> {
        let padding = self.gate_up.adapters.padding();
        let (input, inverse) = pass.engine.normalize(middle, &self.mlp_norm, pass.epsilon, padding)?;
        Ok((pass.engine.adapt(&self.gate_up.frozen, input, pass.dropout)?, inverse))
    }
}

impl<E: Backward> Layer<E> {
    /// The gradient with respect to the layer's input `x`, from that of its output; adds those of its factors.
    pub(super) fn backward(
        &self,
        pass: &Context<'_, E>,
        x: &E::Matrix,
        trace: Trace<E>,
        dy: E::Matrix,
        gradients: &mut E::Vector,
    ) -> Result<E::Matrix> {
        let (engine, dropout) = (pass.engine, pass.dropout);
        let Attended { qkv, out, sums, middle } = match trace.attended {
            Some(attended) => attended,
            None => self.attention(pass, x)?,
        };
        let (input, inverse) = self.mlp_input(pass, &middle)?;
        let gate_up = match trace.gate_up {
            Some(gate_up) => gate_up,
            None => engine.project(&self.gate_up.frozen, &input, dropout, None)?,
        };
        let active = engine.gate(&gate_up, self.down.adapters.padding())?;
        let active = engine.adapt(&self.down.frozen, active, dropout)?;
        let dactive = engine.project_back(&self.down.frozen, &dy, &active, dropout, gradients)?;
        drop(active);
        let dgate_up = engine.gate_back(&dactive, gate_up)?;
        drop(dactive);
        let dinput = engine.project_back(&self.gate_up.frozen, &dgate_up, &input, dropout, gradients)?;
        drop((dgate_up, input));
        let dmiddle = engine.normalize_back(&dinput, &middle, &self.mlp_norm, &inverse, dy)?;
        drop((dinput, middle));

        let dout = engine.project_back(&self.out.frozen, &dmiddle, &out, dropout, gradients)?;
        let dqkv = engine.attend_back(&dout, &qkv, &out, &sums, pass.heads, pass.batch)?;
        drop((dout, qkv, out, sums));
        let dqkv = engine.rotate(dqkv, pass.heads, pass.tables, pass.batch, true)?;
        let (input, inverse) = self.attention_input(pass, x)?;
        let dinput = engine.project_back(&self.qkv.frozen, &dqkv, &input, dropout, gradients)?;
        engine.normalize_back(&dinput, x, &self.attention_norm, &inverse, dmiddle)
    }
}
