//! Where each factor lies in the one vector of parameters, and in the padding columns of the weights that it adapts.

use std::ops::Range;

use crate::arch::{Projection, Spec};
use crate::engine::{Adapters, Slot};
use crate::model::{LayerAdapters, STACKS};

/// What every adapted module shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraSpec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The factor on every delta: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub scale: f32,
    /// Whether rows have trained magnitudes (DoRA, Liu et al., 2024).
    pub magnitudes: bool,
}

/// The factors of one module. `A` is `[rank, inputs]` and `B` is `[outputs, rank]`, both row-major in the vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The module's path in the base: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Columns of the weight.
    pub inputs: usize,
    /// Rows of the weight.
    pub outputs: usize,
    /// Where `A` lies.
    pub a: Range<usize>,
    /// Where `B` lies.
    pub b: Range<usize>,
    /// Where the magnitudes of the rows lie, with DoRA.
    pub magnitude: Option<Range<usize>>,
}

/// Every adapted module, in the order of the model, and the length of the vector that holds their factors.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// What they share.
    pub spec: LoraSpec,
    /// The modules.
    pub modules: Vec<Module>,
    /// Length of the vector.
    pub len: usize,
}

impl Layout {
    /// No modules yet.
    pub fn new(spec: LoraSpec) -> Self {
        Self { spec, modules: Vec::new(), len: 0 }
    }

    /// The layout of an adapter on the projections of a model that `adapted` chooses by their paths, and the adapters of
    /// each layer.
    pub fn of(spec: &Spec, lora: LoraSpec, adapted: impl Fn(&str) -> bool) -> (Self, Vec<LayerAdapters>) {
        let mut layout = Self::new(lora);
        let layers = (0..spec.layers).map(|layer| {
            STACKS.map(|projections| {
                let part = |projection: &Projection| {
                    let path = projection.path(layer);
                    let chosen = adapted(&path);
                    (path, spec.shape(*projection)[0], chosen)
                };
                let parts: Vec<_> = projections.iter().map(part).collect();
                layout.stack(spec.shape(projections[0])[1], &parts)
            })
        });
        let layers = layers.collect();
        (layout, layers)
    }

    /// The adapters of projections that share an input of `inputs` values, stacked. A part is a module's path, its
    /// outputs, and whether it is adapted.
    pub fn stack(&mut self, inputs: usize, parts: &[(String, usize, bool)]) -> Adapters {
        let LoraSpec { rank, scale, magnitudes } = self.spec;
        let mut slots = Vec::new();
        let mut row = 0;
        for (name, outputs, adapted) in parts {
            let rows = row..row + outputs;
            row = rows.end;
            if !adapted {
                continue;
            }
            let a = self.take(rank * inputs);
            let b = self.take(outputs * rank);
            let magnitude = magnitudes.then(|| self.take(*outputs));
            let columns = slots.len() * rank..(slots.len() + 1) * rank;
            let module = self.modules.len();
            slots.push(Slot { module, rows, columns, a: a.clone(), b: b.clone(), magnitude: magnitude.clone() });
            self.modules.push(Module { name: name.clone(), inputs, outputs: *outputs, a, b, magnitude });
        }
        Adapters { rank, scale, slots }
    }

    fn take(&mut self, len: usize) -> Range<usize> {
        let start = self.len;
        self.len += len;
        start..self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_their_own_rows_columns_and_places() {
        let mut layout = Layout::new(LoraSpec { rank: 3, scale: 2.0, magnitudes: true });
        let parts = [("q".to_owned(), 8, true), ("k".to_owned(), 4, false), ("v".to_owned(), 4, true)];
        let adapters = layout.stack(10, &parts);
        assert_eq!(adapters.padding(), 8);
        let [q, v] = &adapters.slots[..] else { panic!("{adapters:?}") };
        assert_eq!((q.rows.clone(), v.rows.clone(), v.columns.clone(), v.module), (0..8, 12..16, 3..6, 1));
        assert_eq!((q.a.clone(), q.b.clone(), q.magnitude.clone()), (0..30, 30..54, Some(54..62)));
        assert_eq!((v.a.start, layout.len), (62, 62 + 30 + 12 + 4));
    }
}
