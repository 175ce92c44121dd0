//! The GPU that trains: opening it, and its failures as errors.

use super::kernels::ALL;
use crate::error::{Error, Result, escaped};
use crate::gpu::{CUBLAS_VARIABLE, Device, Failure, NoCard, Queue, find};

/// A GPU, open for training.
pub(super) type Card = Queue;

/// Opens the first GPU that `device` means.
pub(super) fn open(device: Device) -> Result<Card> {
    let refused = |no_card: NoCard| {
        let (problem, remedy) = no_card.parts();
        Error::new(no_card.kind(), problem, remedy)
    };
    let number = find(device).map_err(refused)?.first().copied().unwrap_or(0);
    Queue::open(number, ALL, failed)
}

/// What a failure means for the user.
fn failed(failure: Failure) -> Error {
    match failure {
        _ if failure.is_out_of_memory() => Error::out_of_memory(
            "the GPU has too little memory for this model and these batches",
            "lower ⟦per_device_train_batch_size⟧ or ⟦max_length⟧ (activations that don't fit are already computed \
             again); if the base alone is too large, take a smaller one with ⟦model⟧, or use ⟦device cpu⟧",
        ),
        Failure::Driver(_) => Error::Card { problem: format!("the GPU failed: {failure}") },
        Failure::Kernel(problem) | Failure::Library(problem) => Error::Card { problem },
        Failure::NoCublas(reason) => Error::device(
            format!("cuBLAS, which training on a GPU needs, can't be used: {}", escaped(&reason)),
            format!(
                "install it (with the CUDA toolkit, or `pip install nvidia-cublas-cu12`) and put it on \
                 LD_LIBRARY_PATH, or name its file in {CUBLAS_VARIABLE}; or use ⟦device cpu⟧"
            ),
        ),
        Failure::NoPools => Error::device("the GPU's driver has no memory pools", "update it, or use ⟦device cpu⟧"),
        Failure::TooLarge(problem) => Error::unsupported(problem, "lower ⟦per_device_train_batch_size⟧"),
        Failure::Misuse(what) => broken(what),
    }
}

/// A mistake of a caller's, which kernels would not survive.
pub(super) fn broken(what: &str) -> Error {
    Error::bug(format!("the GPU was given {what}"), "report this: it is a bug in qft; or use ⟦device cpu⟧")
}
