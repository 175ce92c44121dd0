//! Deltas of modules that are no tensor of their own on disk: experts, rows of a tensor that holds other weights too, and
//! weights that several tensors hold. Which rows they are is told by `experts` and `rename`.

use std::ops::Range;

use super::apply::Pair;
use super::change::FactorPlan;
use super::experts::{self, Slice};
use super::keys::Part;
use super::rename::Place;
use super::resolve::{Indexed, Module, Resolver};
use crate::error::escaped;
use crate::merge::Layout;

impl Resolver<'_> {
    /// A pair for a module without a weight of its own.
    pub(super) fn fused(
        &mut self,
        (index, adapter): Indexed<'_>,
        path: &str,
        module: &Module<'_>,
        (a, b): Pair<'_>,
        claimed: &mut Vec<String>,
    ) {
        let weight = format!("{path}.weight");
        let place = self.names.place(&weight);
        if module.parts.keys().any(|part| matches!(part, Part::BBias | Part::Magnitude | Part::TokenRows)) {
            return self.no_such_tensor(a.name(), &weight);
        }
        if let Some(slice) = experts::slice_of_fused((self.base, &self.names), path) {
            return self.expert_slice((index, adapter), path, slice, (a, b));
        }
        match place {
            Some(place @ (Place::Rows(..) | Place::Joined(_))) => {
                return self.placed((index, adapter), path, &place, (a, b));
            }
            Some(Place::Mixed(_) | Place::Shared(_)) => return self.no_such_tensor(a.name(), &weight),
            None => {}
        }
        let parameters: Vec<String> =
            experts::candidates(&adapter.config, path).map(|name| format!("{path}.{name}")).collect();
        if parameters.is_empty() {
            return self.no_such_tensor(a.name(), &weight);
        }
        let sources = (self.base, &self.names);
        match experts::resolve(sources, &adapter.config, (index, adapter.weight), path, (a, b), claimed) {
            Ok((parameter, terms)) => {
                claimed.push(parameter);
                for term in terms {
                    if !self.push(&term.tensor, term.term, Some(term.row_axes), a) {
                        return;
                    }
                }
            }
            Err(problem) => {
                let out_of_reach = |name: &&String| {
                    matches!(self.names.place(name.as_str()), Some(Place::Mixed(_) | Place::Shared(_)))
                };
                match parameters.iter().find(out_of_reach) {
                    Some(parameter) => self.no_such_tensor(a.name(), parameter),
                    None => self.problem(a.name(), problem),
                }
            }
        }
    }

    /// A pair for one expert, on a base that stores the experts fused.
    fn expert_slice(&mut self, (index, adapter): Indexed<'_>, path: &str, slice: Slice, (a, b): Pair<'_>) {
        let Slice { tensor: output, rows, transposed } = slice;
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let columns = self.tensors.get(&output).and_then(|t| t.source.shape().last().copied()).unwrap_or(0);
        let rank = usize::try_from(rank).unwrap_or(usize::MAX);
        let (out, input) = if transposed { (columns, rows.len()) } else { (rows.len(), columns) };
        if a.shape() != [rank, input] || b.shape() != [out, rank] {
            let problem =
                format!("has shape {:?} and lora_B {:?}, which do not fit {}", a.shape(), b.shape(), escaped(&output));
            return self.problem(a.name(), problem);
        }
        let factors = if transposed {
            (FactorPlan::transposed(a, input, rank), FactorPlan::transposed(b, rank, out))
        } else {
            (FactorPlan::whole(b, out, rank), FactorPlan::whole(a, rank, input))
        };
        self.term(index, &output, (rows, Some(2)), factors, (rank, scale), a);
    }

    /// A pair for rows of one tensor, or for several tensors one after another.
    fn placed(&mut self, (index, adapter): Indexed<'_>, path: &str, place: &Place, (a, b): Pair<'_>) {
        let (rank, scale) = adapter.config.scale(path, adapter.weight);
        let rank = usize::try_from(rank).unwrap_or(usize::MAX);
        let Some(slices) = self.slices(place, rank, (a, b)) else {
            let tensors = place.tensors().iter().map(|tensor| escaped(tensor)).collect::<Vec<_>>().join(" and ");
            let problem = format!("has shape {:?} and lora_B {:?}, which do not fit {tensors}", a.shape(), b.shape());
            return self.problem(a.name(), problem);
        };
        for (tensor, first, rows) in slices {
            if !self.claimed.insert(format!("{tensor} {rows:?}")) {
                let problem = format!("is the second delta of rows {rows:?} of {}", escaped(tensor));
                return self.problem(a.name(), problem);
            }
            let columns = a.shape().last().copied().unwrap_or(0);
            let left = Layout { offset: first * rank, row_stride: rank, column_stride: 1 };
            let factors = (FactorPlan::new(b, left, rows.len(), rank), FactorPlan::whole(a, rank, columns));
            if !self.term(index, tensor, (rows, None), factors, (rank, scale), a) {
                return;
            }
        }
    }

    /// What a delta of factors `a` and `b` is on disk: tensors, the delta's first row for each, and the rows there.
    /// `None` if it does not fit.
    fn slices<'p>(
        &self,
        place: &'p Place,
        rank: usize,
        (a, b): Pair<'_>,
    ) -> Option<Vec<(&'p String, usize, Range<usize>)>> {
        let (&[a_rank, input], &[out, b_rank]) = (a.shape(), b.shape()) else { return None };
        let heights = place.tensors().iter().map(|tensor| match self.tensors.get(tensor)?.source.shape() {
            &[rows, columns] => (columns == input && (a_rank, b_rank) == (rank, rank)).then_some((tensor, rows)),
            _ => None,
        });
        let heights: Vec<(&String, usize)> = heights.collect::<Option<_>>()?;
        match place {
            Place::Rows(tensor, within) => {
                let total = heights.first()?.1;
                Some(vec![(tensor, 0, within.rows(out, total)?)])
            }
            Place::Joined(_) => {
                let mut first = 0;
                let mut slices = Vec::new();
                for (tensor, rows) in heights {
                    slices.push((tensor, first, 0..rows));
                    first += rows;
                }
                (first == out).then_some(slices)
            }
            Place::Mixed(_) | Place::Shared(_) => None,
        }
    }
}
