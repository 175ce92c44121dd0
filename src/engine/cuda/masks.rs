//! The masks of dropout as kernels take them: the keys of all modules go to the GPU once a micro-batch.

use std::cell::{Cell, RefCell};

use super::card::Card;
use crate::engine::dropout::Dropout;
use crate::error::Result;
use crate::gpu::DeviceMemory;

/// The masks of the slots of some weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masks {
    /// Two u32 for each slot.
    pub(super) keys: u64,
    pub(super) threshold: u64,
    pub(super) scale: u64,
}

impl Masks {
    /// Nothing is dropped.
    pub(super) const NONE: Self = Self { keys: 0, threshold: 0, scale: 1f32.to_bits() as u64 };

    /// That of one slot, by its number among them.
    pub(super) fn of_slot(self, number: usize) -> Self {
        Self { keys: self.keys + 8 * number as u64, ..self }
    }

    /// Whether anything is dropped.
    pub(super) fn drop_any(self) -> bool {
        self.threshold > 0
    }
}

/// The keys on the GPU.
#[derive(Default)]
pub(super) struct Keys {
    modules: Cell<usize>,
    held: RefCell<Option<(Dropout, DeviceMemory)>>,
}

impl Keys {
    /// Says that modules are numbered below `modules`.
    pub(super) fn expect(&self, modules: usize) {
        if modules > self.modules.get() {
            self.modules.set(modules);
            self.held.take();
        }
    }

    /// The masks of the modules from `first` on.
    pub(super) fn masks(&self, card: &Card, dropout: Option<&Dropout>, first: usize) -> Result<Masks> {
        let Some(dropout) = dropout else { return Ok(Masks::NONE) };
        let mut held = self.held.borrow_mut();
        let known = held.as_ref().filter(|(known, _)| known == dropout).map(|(_, memory)| memory.address());
        let address = if let Some(address) = known {
            address
        } else {
            let keys: Vec<_> = (0..self.modules.get()).map(|module| dropout.mask(module).key).collect();
            held.insert((*dropout, card.upload(&keys)?)).1.address()
        };
        let (threshold, scale) = (dropout.mask(0).threshold.into(), dropout.scale().to_bits().into());
        Ok(Masks { keys: address + 8 * first as u64, threshold, scale })
    }
}
