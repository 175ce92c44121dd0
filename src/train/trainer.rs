//! One optimizer step after another over a model on a device: accumulation, clipping, AdamW, and evaluation. Knows no
//! file and no schedule: `run` decides what is fed, at which rate, and what is kept.

use std::sync::atomic::{AtomicBool, Ordering};

use super::all_reduce::all_reduce;
use super::guard::{Guard, Verdict};
use super::lora::Layout;
use super::loss;
use crate::engine::dropout::Dropout;
use crate::engine::{AdamW, Backward, Batch, Engine, Optimizer};
use crate::error::Result;
use crate::model::{Keep, Model, Pass};
use crate::ranks::Ranks;

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Probability of dropout at the adapters' inputs.
    pub dropout: f64,
    /// Seed of the masks.
    pub seed: u64,
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// What is kept for the backward pass.
    pub keep: Keep,
}

/// What training changes: everything that a checkpoint must hold of the optimizer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The factors, as [`Layout`] lays them out.
    pub parameters: Vec<f32>,
    /// First moments.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Vec<f32>,
    /// Updates made: what the corrections of AdamW count.
    pub updates: u64,
    /// Micro-batches seen: what dropout counts.
    pub micro_batches: u64,
}

impl State {
    /// Before the first step.
    pub fn new(parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; parameters.len()];
        Self { parameters, first: zeros.clone(), second: zeros, updates: 0, micro_batches: 0 }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stepped {
    /// Mean loss of the trained tokens of all micro-batches and ranks.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, of all ranks.
    pub tokens: u64,
    /// Whether the factors were updated.
    pub verdict: Verdict,
}

/// The result of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Evaluated {
    /// Mean loss.
    Loss(f64),
    /// No token is trained.
    Nothing,
    /// It was stopped from outside.
    Cut,
}

/// A model with its adapter and its optimizer.
pub struct Trainer<'e, E: Engine> {
    engine: &'e E,
    model: Model<E>,
    layout: Layout,
    recipe: Recipe,
    parameters: E::Vector,
    gradients: E::Vector,
    first: E::Vector,
    second: E::Vector,
    updates: u64,
    micro_batches: u64,
}

impl<'e, E: Backward + Optimizer> Trainer<'e, E> {
    /// Takes over a model and the state of a checkpoint, or of a beginning.
    pub fn new(engine: &'e E, mut model: Model<E>, layout: Layout, recipe: Recipe, state: &State) -> Result<Self> {
        let parameters = engine.vector(&state.parameters)?;
        model.bind(engine, &parameters)?;
        Ok(Self {
            gradients: engine.vector(&vec![0.0; layout.len])?,
            first: engine.vector(&state.first)?,
            second: engine.vector(&state.second)?,
            updates: state.updates,
            micro_batches: state.micro_batches,
            engine,
            model,
            layout,
            recipe,
            parameters,
        })
    }

    /// Where the factors lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Updates made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Micro-batches seen.
    pub fn micro_batches(&self) -> u64 {
        self.micro_batches
    }

    /// What a checkpoint must hold.
    pub fn state(&self) -> Result<State> {
        Ok(State {
            parameters: self.engine.read(&self.parameters)?,
            first: self.engine.read(&self.first)?,
            second: self.engine.read(&self.second)?,
            updates: self.updates,
            micro_batches: self.micro_batches,
        })
    }

    /// One optimizer step at `rate` over this rank's micro-batches. The loss is the mean over the trained tokens of all
    /// of them and of all ranks, so that neither accumulation nor ranks change what is minimized.
    pub fn step(&mut self, batches: &[Batch], rate: f64, guard: &mut Guard, ranks: &mut dyn Ranks) -> Result<Stepped> {
        let weight: f64 = batches.iter().map(Batch::weight).sum();
        let tokens = batches.iter().map(|batch| batch.tokens.len() as f64).sum();
        let [weight, tokens] = ranks.sum_numbers([weight, tokens])?;
        let scale = if weight > 0.0 { (1.0 / weight) as f32 } else { 0.0 };
        self.engine.zero(&mut self.gradients)?;
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            let number = self.micro_batches * ranks.count() as u64 + ranks.rank() as u64;
            self.micro_batches += 1;
            // Near the end of an epoch, a rank may have nothing left.
            if batch.tokens.is_empty() {
                continue;
            }
            let placed = self.engine.place(batch)?;
            let dropout = Dropout::new(self.recipe.dropout, self.recipe.seed, number);
            let pass = Pass { model: &self.model, engine: self.engine, batch: &placed, dropout };
            losses.push(loss::gradients(&pass, scale, self.recipe.keep, &mut self.gradients)?);
        }
        let loss = self.total(&losses)?;
        let [loss, _] = ranks.sum_numbers([loss, 0.0])?;
        let loss = loss * f64::from(scale);
        all_reduce(self.engine, &mut self.gradients, ranks)?;
        let grad_norm = self.engine.sum_of_squares(&self.gradients)?.sqrt();
        let verdict = guard.judge(loss, grad_norm);
        if let Verdict::Step { clip_factor } = verdict {
            self.update(rate, f64::from(clip_factor))?;
        }
        #[expect(clippy::cast_sign_loss, reason = "it is a count")]
        let tokens = tokens as u64;
        Ok(Stepped { loss, grad_norm, tokens, verdict })
    }

    fn update(&mut self, rate: f64, clip: f64) -> Result<()> {
        let Recipe { beta1, beta2, epsilon, decay, .. } = self.recipe;
        self.updates += 1;
        let step = AdamW { rate, beta1, beta2, epsilon, decay, step: self.updates, clip };
        let Self { engine, parameters, gradients, first, second, .. } = self;
        engine.adamw(parameters, gradients, first, second, &step)?;
        self.model.bind(self.engine, &self.parameters)
    }

    /// Mean loss per trained token over `batches`, without dropout, in `rounds` of at most one of them on each rank.
    /// Between rounds, any rank's `cancel` ends it on all.
    pub fn evaluate(
        &self,
        batches: &[Batch],
        rounds: usize,
        cancel: &AtomicBool,
        ranks: &mut dyn Ranks,
    ) -> Result<Evaluated> {
        let mut loss = 0.0;
        for round in 0..rounds {
            if ranks.any(cancel.load(Ordering::SeqCst))? {
                return Ok(Evaluated::Cut);
            }
            let Some(batch) = batches.get(round) else { continue };
            let placed = self.engine.place(batch)?;
            let pass = Pass { model: &self.model, engine: self.engine, batch: &placed, dropout: None };
            loss += self.total(&[loss::losses(&pass)?])?;
        }
        let [loss, weight] = ranks.sum_numbers([loss, batches.iter().map(Batch::weight).sum()])?;
        Ok(if weight > 0.0 { Evaluated::Loss(loss / weight) } else { Evaluated::Nothing })
    }

    /// The gradients of the last step, before clipping.
    pub fn gradients(&self) -> Result<Vec<f32>> {
        self.engine.read(&self.gradients)
    }

    fn total(&self, losses: &[E::Vector]) -> Result<f64> {
        let mut sum = 0.0;
        for losses in losses {
            sum += self.engine.read(losses)?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum)
    }
}
