//! Training on the processor, in f32: products are candle's, the rest is loops over rows. What cards are held against.
//! Results are the same, to the bit, from run to run and for any number of threads.

mod attention;
mod elementwise;
mod frozen;
mod loss;
mod matrix;
mod optimizer;
mod projection;
#[cfg(test)]
mod tests;

pub use frozen::Frozen;
pub use matrix::Matrix;

use super::{AdamW, Engine};
use crate::arch::Heads;
use crate::checkpoint::Tensor;
use crate::engine::Batch;
use crate::engine::dropout::Dropout;
use crate::error::{Error, Result};
use crate::train::lora::Group;

/// The processor. Its threads are as many as `RAYON_NUM_THREADS` or the machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuEngine;

impl CpuEngine {
    /// The processor.
    pub fn new() -> Self {
        Self
    }
}

impl Engine for CpuEngine {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Frozen = Frozen;
    type Placed = Batch;

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn read(&self, vector: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(vector.clone())
    }

    fn write(&self, vector: &mut Vec<f32>, values: &[f32]) -> Result<()> {
        vector.clear();
        vector.extend_from_slice(values);
        Ok(())
    }

    fn zero(&self, vector: &mut Vec<f32>) -> Result<()> {
        vector.fill(0.0);
        Ok(())
    }

    fn table(&self, tensor: &Tensor) -> Result<Matrix> {
        let [rows, cols] = *tensor.shape() else { return Err(frozen::misshapen(tensor, &[0, 0])) };
        Matrix::new(frozen::widen(tensor)?, rows, cols, cols)
    }

    fn freeze(&self, group: &Group, weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Frozen> {
        Frozen::new(group, weights, biases)
    }

    fn row_norms(&self, frozen: &Frozen) -> Result<Vec<Vec<f32>>> {
        Ok(frozen.row_norms())
    }

    fn bind(&self, frozen: &mut Frozen, parameters: &Vec<f32>) -> Result<()> {
        frozen.bind(parameters)
    }

    fn place(&self, batch: &Batch) -> Result<Batch> {
        check(batch)?;
        Ok(batch.clone())
    }

    fn zeros_like(&self, x: &Matrix) -> Result<Matrix> {
        Matrix::new(vec![0.0; x.rows() * x.width()], x.rows(), x.cols(), x.width())
    }

    fn embed(&self, table: &Matrix, batch: &Batch) -> Result<Matrix> {
        elementwise::embed(table, batch)
    }

    fn normalize(&self, x: &Matrix, weight: &Vec<f32>, epsilon: f32, room: usize) -> Result<(Matrix, Vec<f32>)> {
        elementwise::normalize(x, weight, epsilon, room)
    }

    fn normalize_back(
        &self,
        dy: &Matrix,
        x: &Matrix,
        weight: &Vec<f32>,
        inverse: &Vec<f32>,
        onto: Matrix,
    ) -> Result<Matrix> {
        elementwise::normalize_back(dy, x, weight, inverse, onto)
    }

    fn adapt(&self, frozen: &Frozen, x: Matrix, dropout: Option<&Dropout>) -> Result<Matrix> {
        projection::adapt(frozen, x, dropout)
    }

    fn project(&self, frozen: &Frozen, x: &Matrix, dropout: Option<&Dropout>, onto: Option<&Matrix>) -> Result<Matrix> {
        projection::project(frozen, x, dropout, onto)
    }

    fn project_back(
        &self,
        frozen: &Frozen,
        dy: &Matrix,
        x: &Matrix,
        dropout: Option<&Dropout>,
        gradients: &mut Vec<f32>,
    ) -> Result<Matrix> {
        projection::project_back(frozen, dy, x, dropout, gradients)
    }

    fn rotate(&self, qkv: Matrix, heads: Heads, tables: &[Vec<f32>; 2], batch: &Batch, back: bool) -> Result<Matrix> {
        elementwise::rotate(qkv, heads, tables, batch, back)
    }

    fn attend(&self, qkv: &Matrix, heads: Heads, batch: &Batch, room: usize) -> Result<(Matrix, Vec<f32>)> {
        attention::attend(qkv, heads, batch, room)
    }

    fn attend_back(
        &self,
        dout: &Matrix,
        qkv: &Matrix,
        out: &Matrix,
        sums: &Vec<f32>,
        heads: Heads,
        batch: &Batch,
    ) -> Result<Matrix> {
        attention::attend_back(dout, qkv, out, sums, heads, batch)
    }

    fn gate(&self, gate_up: &Matrix, room: usize) -> Result<Matrix> {
        elementwise::gate(gate_up, room)
    }

    fn gate_back(&self, dy: &Matrix, gate_up: Matrix) -> Result<Matrix> {
        elementwise::gate_back(dy, gate_up)
    }

    fn cross_entropy(
        &self,
        x: &Matrix,
        head: &Matrix,
        batch: &Batch,
        scale: f32,
        back: bool,
    ) -> Result<(Vec<f32>, Option<Matrix>)> {
        loss::cross_entropy(x, head, batch, scale, back)
    }

    fn sum_of_squares(&self, vector: &Vec<f32>) -> Result<f64> {
        Ok(optimizer::sum_of_squares(vector))
    }

    fn adamw(
        &self,
        parameters: &mut Vec<f32>,
        gradients: &Vec<f32>,
        first: &mut Vec<f32>,
        second: &mut Vec<f32>,
        step: &AdamW,
    ) -> Result<()> {
        optimizer::adamw(parameters, gradients, first, second, step);
        Ok(())
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }

    fn name(&self) -> String {
        "cpu".to_owned()
    }

    const TYPE: &'static str = "f32";
}

/// Refuses a batch whose parts contradict each other.
fn check(batch: &Batch) -> Result<()> {
    let tokens = batch.tokens.len();
    let covers = batch.starts.first() == Some(&0)
        && batch.starts.is_sorted()
        && batch.starts.last().is_some_and(|end| *end as usize == tokens);
    let inside = batch.targets.iter().all(|target| (target.row as usize) < tokens);
    if covers && inside && batch.positions.len() == tokens {
        return Ok(());
    }
    let problem = format!("a batch of {tokens} tokens has segments or targets outside of them");
    Err(Error::bug(problem, "report this: batches are made from checked rows"))
}
