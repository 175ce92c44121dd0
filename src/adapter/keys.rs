//! The grammar of tensor names in a PEFT adapter file: `base_model.model.<module>.<part>`.

/// What one adapter tensor is to its module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `lora_A.weight`: `[r, in]`, or `[r, in, kh, kw]`.
    A,
    /// `lora_B.weight`: `[out, r]`, or `[out, r, 1, 1]`.
    B,
    /// `lora_B.bias`: `[out]`.
    BBias,
    /// `lora_embedding_A`: `[r, vocabulary]`.
    EmbeddingA,
    /// `lora_embedding_B`: `[dim, r]`.
    EmbeddingB,
    /// `lora_magnitude_vector`: one norm an output.
    Magnitude,
    /// `token_adapter.trainable_tokens_delta`: rows of an embedding, as values.
    TokenRows,
    /// A parameter that the adapter brings a trained value of: `modules_to_save`, biases.
    Value(String),
    /// A parameter of the base as it was when the adapter was trained: `base_layer`.
    BaseLayer(String),
    /// The untrained copy that PEFT saves beside `modules_to_save` where a vocabulary was resized: `original_module`.
    Untrained(String),
}

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The module's path in the model, such as `model.layers.0.self_attn.q_proj`.
    pub(super) module: String,
    /// How many wrappers of the same module lie around this one (`target_parameters` nests them).
    pub(super) depth: usize,
    /// What the tensor is.
    pub(super) part: Part,
}

const PREFIX: &str = "base_model.model.";
/// Wrappers of modules that leave their name in every path: torch.compile, FSDP, activation checkpointing.
const WRAPPED: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// What `DistributedDataParallel` puts in front of all.
const PARALLEL: &str = "module.";

/// Endings and what they mean. PEFT drops the adapter's name (`.default`) when it saves; others don't.
const ENDINGS: [(&str, Part); 16] = [
    (".lora_A.weight", Part::A),
    (".lora_A.default.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_B.default.weight", Part::B),
    (".lora_B.bias", Part::BBias),
    (".lora_B.default.bias", Part::BBias),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_A.default", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_embedding_B.default", Part::EmbeddingB),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector.default", Part::Magnitude),
    (".lora_magnitude_vector.default.weight", Part::Magnitude),
    (".token_adapter.trainable_tokens_delta", Part::TokenRows),
    (".token_adapter.trainable_tokens_delta.default", Part::TokenRows),
];

/// Wrappers between a module's path and a parameter that is saved as a value.
const WRAPPERS: [&str; 2] = [".token_adapter.base_layer", ".base_layer"];

/// Parses a tensor's name; `None` if it is no name of a PEFT LoRA.
pub(super) fn parse(name: &str) -> Option<Key> {
    let plain = unwrapped(name);
    let rest = plain.strip_prefix(PREFIX)?;
    for (ending, part) in ENDINGS {
        if let Some(mut module) = rest.strip_suffix(ending) {
            let mut depth = 0;
            while let Some(inner) = module.strip_suffix(".base_layer") {
                module = inner;
                depth += 1;
            }
            return named(module, depth, part);
        }
    }
    // A module that is saved whole has the wrapper's name in the middle of its parameters' paths.
    for (wrapper, part) in
        [(".modules_to_save.", Part::Value as fn(String) -> Part), (".original_module.", Part::Untrained)]
    {
        if let Some((module, inner)) = rest.split_once(wrapper) {
            let whole = format!("{module}.{}", inner.strip_prefix("default.").unwrap_or(inner));
            let (path, parameter) = whole.rsplit_once('.')?;
            return named(path, 0, part(parameter.to_owned()));
        }
    }
    let (path, parameter) = rest.rsplit_once('.')?;
    if path.split('.').any(|p| p.starts_with("lora_")) || parameter.starts_with("lora_") {
        return None;
    }
    let wrapper = WRAPPERS.into_iter().find(|w| path.ends_with(w));
    let module = wrapper.and_then(|w| path.strip_suffix(w)).unwrap_or(path);
    let parameter = parameter.to_owned();
    // A bias in `base_layer` was trained (`bias: all`, `lora_only`); a weight there was not.
    let is_base = wrapper.is_some_and(|w| w.ends_with(".base_layer")) && parameter == "weight";
    named(module, 0, if is_base { Part::BaseLayer(parameter) } else { Part::Value(parameter) })
}

/// The name without the wrappers that were around a module when it was saved. PEFT would load none of them; nothing else
/// can be meant.
fn unwrapped(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPED.contains(part)).collect();
    let plain = parts.join(".");
    match plain.strip_prefix(PARALLEL) {
        Some(rest) if rest.starts_with(PREFIX) => rest.to_owned(),
        _ => plain,
    }
}

fn named(module: &str, depth: usize, part: Part) -> Option<Key> {
    (!module.is_empty()).then(|| Key { module: module.to_owned(), depth, part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_peft_saves() {
        let value = |p: &str| Part::Value(p.to_owned());
        let base = || Part::BaseLayer("weight".to_owned());
        for (name, module, depth, part) in [
            ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj", 0, Part::A),
            ("m.q_proj.lora_B.default.weight", "m.q_proj", 0, Part::B),
            ("m.q_proj.lora_B.bias", "m.q_proj", 0, Part::BBias),
            ("m.q_proj.base_layer.bias", "m.q_proj", 0, value("bias")),
            ("m.k_proj.bias", "m.k_proj", 0, value("bias")),
            ("m.experts.base_layer.lora_A.weight", "m.experts", 1, Part::A),
            ("m.embed.lora_embedding_A", "m.embed", 0, Part::EmbeddingA),
            ("m.embed.base_layer.weight", "m.embed", 0, base()),
            ("m.embed.token_adapter.trainable_tokens_delta", "m.embed", 0, Part::TokenRows),
            ("m.embed.token_adapter.base_layer.weight", "m.embed", 0, base()),
            ("lm_head.modules_to_save.default.weight", "lm_head", 0, value("weight")),
            ("lm_head.weight", "lm_head", 0, value("weight")),
            ("m.q.lora_magnitude_vector", "m.q", 0, Part::Magnitude),
            ("lm_head.original_module.weight", "lm_head", 0, Part::Untrained("weight".to_owned())),
            ("decoder.modules_to_save.default.layer.0.q.weight", "decoder.layer.0.q", 0, value("weight")),
            ("decoder.original_module.layer.0.q.bias", "decoder.layer.0.q", 0, Part::Untrained("bias".to_owned())),
            ("_orig_mod.m.q_proj.lora_A.weight", "m.q_proj", 0, Part::A),
            ("m._fsdp_wrapped_module.q_proj._checkpoint_wrapped_module.lora_B.weight", "m.q_proj", 0, Part::B),
        ] {
            let key = parse(&format!("base_model.model.{name}"));
            assert_eq!(key, Some(Key { module: module.to_owned(), depth, part }), "{name}");
        }
        for around in ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."] {
            let key = parse(&format!("{around}base_model.model.q_proj.lora_A.weight"));
            assert_eq!(key, Some(Key { module: "q_proj".to_owned(), depth: 0, part: Part::A }), "{around}");
        }
    }

    #[test]
    fn what_it_does_not_know_it_does_not_guess() {
        for name in [
            "q_proj.lora_A.weight",
            "base_model.model.q.lora_E",
            "base_model.model.q.lora_C.weight",
            "base_model.model..lora_A.weight",
            "base_model.model.x",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
