//! AdamW and the norm of gradients on the GPU.

use super::CudaEngine;
use super::card::broken;
use super::kernels::{ADAMW, SUM_PARTIALS, SUM_SQUARES};
use super::matrix::CudaVector;
use crate::engine::{AdamW, Optimizer};
use crate::error::Result;

impl Optimizer for CudaEngine {
    fn sum_of_squares(&self, vector: &CudaVector) -> Result<f64> {
        let blocks = (vector.len as u64).div_ceil(8192);
        let partials = self.card.allocate(blocks as usize * 8)?;
        let sum = self.card.zeros(8)?;
        self.launch(&SUM_SQUARES, blocks, &[vector.address(), vector.len as u64, partials.address()])?;
        self.launch(&SUM_PARTIALS, 1, &[partials.address(), blocks, sum.address()])?;
        Ok(self.card.read::<f64>(&sum, 1)?.first().copied().unwrap_or_default())
    }

    fn adamw(
        &self,
        parameters: &mut CudaVector,
        gradients: &CudaVector,
        first: &mut CudaVector,
        second: &mut CudaVector,
        step: &AdamW,
    ) -> Result<()> {
        if [gradients, first, second].iter().any(|vector| vector.len != parameters.len) {
            return Err(broken("gradients or moments of other parameters"));
        }
        let AdamW { rate, beta1, beta2, epsilon, decay, step, clip } = *step;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let numbers = [rate, beta1, beta2, epsilon, decay, correction(beta1), correction(beta2), clip];
        let vectors = [parameters.address(), gradients.address(), first.address(), second.address()];
        let len = parameters.len as u64;
        let arguments: Vec<u64> = vectors.into_iter().chain([len]).chain(numbers.map(f64::to_bits)).collect();
        self.card.timed("adamw", || self.launch(&ADAMW, len.div_ceil(1024), &arguments))
    }
}
