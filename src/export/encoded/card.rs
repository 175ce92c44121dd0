//! What an encoder asks of a GPU: several chunks of its tensor at once, as one block.

use std::ops::Range;

use super::{Encoder, Scratch, Source, float_of};
use crate::ggml::ErrorSums;
use crate::gpu::{self, Assist, Block, Encoding, Importance, Measured};

impl<'a> Encoder<'a> {
    /// Encodes `units` on the GPU that assists, if that can be done there: the `wanted` of their bytes go to `out`.
    #[expect(clippy::too_many_arguments, reason = "a block has as many parts")]
    pub(super) fn encode_on_card(
        &self,
        source: &Source<'_, 'a>,
        units: Range<usize>,
        wanted: Range<usize>,
        step: usize,
        scratch: &mut Scratch,
        out: &mut [u8],
        assist: &mut Assist<'_>,
    ) -> Option<Vec<ErrorSums>> {
        let elements = units.start * self.unit..units.end * self.unit;
        let columns = self.tensor.columns().max(1);
        let source = match source {
            Source::Made(_) => return None,
            Source::Stored(stored) => {
                let kind = stored.info().kind;
                let float = float_of(kind)?;
                let bytes = elements.start * float.size()..elements.end * float.size();
                stored.prefetch(bytes.start, bytes.len());
                gpu::Source::Stored { bytes: &stored.bytes()[bytes], float }
            }
            Source::Merged(ready, float, heads) => match (ready.prepared(), heads) {
                (Some(prepared), heads) => {
                    ready.stored(self.touched(&elements, *heads));
                    gpu::Source::Merged { merge: &prepared.merge, factors: &prepared.factors, heads: *heads }
                }
                (None, None) => gpu::Source::Stored { bytes: ready.stored(elements.clone()), float: *float },
                (None, Some(heads)) => {
                    self.gather(ready, *float, *heads, elements.clone(), &mut scratch.bytes).ok()?;
                    gpu::Source::Stored { bytes: &scratch.bytes, float: *float }
                }
            },
        };
        let importance = self.tensor.importance.as_ref().map(|weights| Importance {
            weights,
            rows_per_matrix: self.rows_per_matrix(),
            resident: &self.importance,
        });
        // A unit counts where its first byte is wanted.
        let unit_bytes = self.unit / self.tensor.kind.block_len() * self.tensor.kind.block_bytes();
        let skipped = wanted.start.div_ceil(unit_bytes) * self.unit;
        let chunk = step * self.unit;
        let measured = self.sums.as_ref().map(|_| Measured { skipped, first: chunk.saturating_sub(skipped), chunk });
        let encoding = Encoding { kind: self.tensor.kind, columns, importance, measured };
        assist.run(&Block { source, elements, encoding: Some(encoding), wanted }, out)
    }

    /// The elements of the source tensor among which `elements` of the output are: whole heads where rows are reordered.
    fn touched(&self, elements: &Range<usize>, heads: Option<usize>) -> Range<usize> {
        let Some(heads) = heads else { return elements.clone() };
        let (rows, columns) = self.matrix();
        let head = (rows / heads.max(1)).max(1) * columns;
        elements.start / head * head..(elements.end.div_ceil(head) * head).min(rows * columns)
    }
}
