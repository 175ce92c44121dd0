//! The processor, in f32: products are the gemm crate's, the rest is loops over rows. The reference for GPUs.
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

use super::dropout::Dropout;
use super::{AdamW, Adapters, Backward, Batch, Columns, Engine, Forward, KeysValues, Optimizer};
use crate::arch::Heads;
use crate::checkpoint::Tensor;
use crate::error::{Error, Result};

/// The processor. Its threads are as many as `RAYON_NUM_THREADS` says, or the machine has cores.
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

    fn read_matrix(&self, matrix: &Matrix) -> Result<Vec<f32>> {
        let rows = matrix.values().chunks(matrix.width().max(1));
        Ok(rows.flat_map(|row| &row[..matrix.cols()]).copied().collect())
    }

    fn table(&self, tensor: &Tensor) -> Result<Matrix> {
        let [rows, cols] = *tensor.shape() else { return Err(frozen::misshapen(tensor, &[0, 0])) };
        Ok(Matrix::new(frozen::widen(tensor)?, rows, cols, cols))
    }

    fn freeze(&self, weights: &[Tensor], biases: &[Option<Tensor>], adapters: &Adapters) -> Result<Frozen> {
        Frozen::new(weights, biases, adapters)
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

    fn peak_memory(&self) -> Option<u64> {
        None
    }

    fn name(&self) -> String {
        "cpu".to_owned()
    }

    const TYPE: &'static str = "f32";
}

impl Forward for CpuEngine {
    fn embed(&self, table: &Matrix, batch: &Batch) -> Result<Matrix> {
        elementwise::embed(table, batch)
    }

    fn normalize(&self, x: &Matrix, weight: &Vec<f32>, epsilon: f32, padding: usize) -> Result<(Matrix, Vec<f32>)> {
        Ok(elementwise::normalize(x, weight, epsilon, padding))
    }

    fn adapt(&self, frozen: &Frozen, x: Matrix, dropout: Option<&Dropout>) -> Result<Matrix> {
        projection::adapt(frozen, x, dropout)
    }

    fn project(&self, frozen: &Frozen, x: &Matrix, dropout: Option<&Dropout>, onto: Option<&Matrix>) -> Result<Matrix> {
        projection::project(frozen, x, dropout, onto)
    }

    fn rotate(&self, qkv: Matrix, heads: Heads, tables: &[Vec<f32>; 2], batch: &Batch, back: bool) -> Result<Matrix> {
        elementwise::rotate(qkv, heads, tables, batch, back)
    }

    fn attend(
        &self,
        queries: Columns<'_, Matrix>,
        seen: KeysValues<'_, Matrix>,
        heads: Heads,
        batch: &Batch,
        padding: usize,
    ) -> Result<(Matrix, Vec<f32>)> {
        attention::attend(queries, seen, heads, batch, padding)
    }

    fn gate(&self, gate_up: &Matrix, padding: usize) -> Result<Matrix> {
        Ok(elementwise::gate(gate_up, padding))
    }

    fn logits(&self, x: &Matrix, head: &Matrix, rows: &[u32]) -> Result<Matrix> {
        loss::logits(x, head, rows)
    }

    fn cross_entropy(&self, x: &Matrix, head: &Matrix, batch: &Batch) -> Result<Vec<f32>> {
        Ok(loss::cross_entropy(x, head, batch, None)?.0)
    }
}

impl Backward for CpuEngine {
    fn zeros_like(&self, x: &Matrix) -> Result<Matrix> {
        Ok(Matrix::zeros(x.rows(), x.cols(), x.width()))
    }

    fn normalize_back(
        &self,
        dy: &Matrix,
        x: &Matrix,
        weight: &Vec<f32>,
        inverse: &Vec<f32>,
        onto: Matrix,
    ) -> Result<Matrix> {
        Ok(elementwise::normalize_back(dy, x, weight, inverse, onto))
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

    fn gate_back(&self, dy: &Matrix, gate_up: Matrix) -> Result<Matrix> {
        Ok(elementwise::gate_back(dy, gate_up))
    }

    fn cross_entropy_back(&self, x: &Matrix, head: &Matrix, batch: &Batch, scale: f32) -> Result<(Vec<f32>, Matrix)> {
        let (losses, dx) = loss::cross_entropy(x, head, batch, Some(scale))?;
        // With a scale, there is a gradient.
        Ok((losses, dx.unwrap_or_else(|| Matrix::zeros(x.rows(), x.cols(), x.cols()))))
    }
}

impl Optimizer for CpuEngine {
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
