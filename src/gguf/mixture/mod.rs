//! Mixtures: which type each tensor of a quantized file gets. The rules are llama-quantize's, so that both make the
//! same file of the same model. What a type's blocks hold is in `encode`.

mod eligible;
mod facts;
mod file_type;
mod metadata;
mod overrides;
mod rules;

use self::eligible::Role;
use self::rules::Rules;
use crate::error::{Error, Result, escaped};
use crate::ggml::TensorType;
use crate::ggml::decode::can_decode;
use crate::ggml::encode::can_encode;

pub(super) use self::eligible::is_embedding;
pub use self::eligible::order;
pub use self::facts::Facts;
pub use self::file_type::FileType;
pub use self::metadata::finish_metadata;
pub use self::overrides::TypeOverride;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Choices {
    /// The mixture.
    pub mixture: FileType,
    /// Every tensor gets the mixture's base type.
    pub pure: bool,
    /// Type of the output head, and of an embedding that serves as one (unless `pure`).
    pub output_type: Option<TensorType>,
    /// Type of the embedding of tokens.
    pub embedding_type: Option<TensorType>,
    /// Types by pattern; a mixture without blocks (F16, ...) ignores them.
    pub overrides: Vec<TypeOverride>,
    /// The output head keeps its type. An embedding that serves as one doesn't.
    pub leave_output: bool,
    /// Blocks may be decoded and encoded again, which loses more than encoding the original.
    pub allow_requantize: bool,
}

impl Choices {
    /// `mixture` as it is.
    pub fn of(mixture: FileType) -> Self {
        Self {
            mixture,
            pure: false,
            output_type: None,
            embedding_type: None,
            overrides: Vec::new(),
            leave_output: false,
            allow_requantize: false,
        }
    }
}

/// A tensor whose type is to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its shape, outermost axis first.
    pub shape: &'a [usize],
    /// Its type in the file that is quantized, or would be if there were one.
    pub source: TensorType,
    /// That type is F32 whatever `source` says: a norm, a bias.
    pub always_f32: bool,
}

impl Candidate<'_> {
    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn source(&self) -> TensorType {
        if self.always_f32 { TensorType::F32 } else { self.source }
    }
}

/// The type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The type.
    pub kind: TensorType,
    /// The type that it would have if its rows held a whole number of that type's blocks.
    pub instead_of: Option<TensorType>,
    /// llama-quantize doesn't encode the tensor without weights of an imatrix.
    pub needs_importance: bool,
}

/// Architectures of which llama-quantize knows more than the rules here.
const UNKNOWN: [&str; 3] = ["glm5-next", "graniteswitch", "nanbeige"];

/// Chooses the type of each of `candidates`: all tensors of a file, in the order that [`order`] gives.
pub fn choose(candidates: &[Candidate], facts: &Facts, choices: &Choices, has_imatrix: bool) -> Result<Vec<Choice>> {
    if UNKNOWN.contains(&facts.architecture.as_str()) {
        let problem = format!("the types of the tensors of a {} model are not known", facts.architecture);
        return Err(Error::unsupported(problem, "quantize it with llama-quantize"));
    }
    let mut rules = Rules::new(candidates, facts, choices, has_imatrix);
    let chosen = candidates.iter().map(|tensor| {
        let choice = choose_one(tensor, choices, &mut rules)?;
        check(tensor, choice, choices, has_imatrix)?;
        Ok(choice)
    });
    chosen.collect()
}

fn choose_one(tensor: &Candidate, choices: &Choices, rules: &mut Rules) -> Result<Choice> {
    let (role, base) = (Role::of(tensor.name), choices.mixture.base_type());
    let chosen = |wanted, kind| Choice {
        kind,
        instead_of: (kind != wanted).then_some(wanted),
        needs_importance: eligible::needs_importance(tensor.name, kind, choices.mixture),
    };
    let is_kept = choices.leave_output && tensor.name == eligible::OUTPUT;
    if is_kept || !eligible::may_change(tensor.name, tensor.shape) {
        return Ok(Choice { needs_importance: false, ..chosen(tensor.source(), tensor.source()) });
    }
    let named = choices.overrides.iter().find(|one| one.pattern.is_match(tensor.name)).map(|one| one.kind);
    // A pattern beats the type asked for embeddings only where it names the per-layer ones.
    let embedding_type =
        choices.embedding_type.filter(|_| named.is_none() || tensor.name != eligible::PER_LAYER_EMBEDDING);
    let asked = match role {
        Role::Embedding => embedding_type,
        Role::Output => choices.output_type,
        _ => None,
    };
    if let Some(kind) = asked {
        return Ok(chosen(kind, kind));
    }
    if !base.is_quantized() {
        return Ok(chosen(base, base));
    }
    let wanted = match named {
        Some(kind) => kind,
        None if choices.pure => base,
        None => rules.kind_of(tensor, role)?,
    };
    Ok(chosen(wanted, rules::fallback(wanted, tensor.columns())?))
}

/// Refuses what llama-quantize refuses: rows that no block fits, blocks encoded again unasked, weights that are missing.
fn check(tensor: &Candidate, choice: Choice, choices: &Choices, has_imatrix: bool) -> Result<()> {
    let (name, source, kind) = (escaped(tensor.name), tensor.source(), choice.kind);
    if kind.row_bytes(tensor.columns()).is_none() {
        let problem = format!(
            "tensor {name}: rows of {} values are not a multiple of the block size of {kind}",
            tensor.columns()
        );
        return Err(Error::unsupported(
            problem,
            "choose another type for it, such as f16, with ⟦token_embedding_type⟧ or ⟦output_tensor_type⟧",
        ));
    }
    if kind != source && source.is_quantized() && !choices.allow_requantize {
        let problem = format!("tensor {name} is quantized already, as {source}; {kind} would lose more");
        return Err(Error::invalid(problem, "start from the F16, BF16 or F32 file, or pass ⟦allow_requantize⟧"));
    }
    if choice.needs_importance && !has_imatrix {
        let problem = format!("tensor {name}: {} as {kind} requires an importance matrix", choices.mixture);
        return Err(Error::invalid(
            problem,
            "give one with ⟦imatrix⟧, or choose q2_k with ⟦type⟧ (⟦gguf⟧ in an export)",
        ));
    }
    Ok(())
}

/// Refuses types that qft has no code for: a source that it can't decode, a choice that it can't encode.
pub fn check_codecs(candidates: &[Candidate], choices: &[Choice]) -> Result<()> {
    const PLAIN: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::BF16];
    for (tensor, choice) in candidates.iter().zip(choices) {
        let (name, source, kind) = (escaped(tensor.name), tensor.source(), choice.kind);
        if source == kind {
            continue;
        }
        if !PLAIN.contains(&source) && !can_decode(source) {
            let problem = format!("tensor {name}: qft can't decode {source}");
            return Err(Error::unsupported(problem, "start from the F16, BF16 or F32 file"));
        }
        if !PLAIN.contains(&kind) && !can_encode(kind) {
            let problem = format!("tensor {name}: qft can't encode {kind}");
            return Err(Error::unsupported(problem, "choose another type, such as q4_k, q6_k or q8_0"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
