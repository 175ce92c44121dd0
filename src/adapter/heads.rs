//! Input embeddings and output heads by their names on disk: which belong together. What a merge makes of a pair is in
//! `tied`.

/// A head, the embeddings that it may be tied to, and the model types for which that holds; all, if none is named.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Rows for model types come first: the same embedding has another head elsewhere.
const ROWS: [Row; 25] = [
    ("proj_out.weight", &["model.decoder.embed_tokens.weight"], &["whisper", "canary", "moonshine"]),
    ("lm_head.out_proj.weight", &["model.decoder.embed_tokens.weight"], &["t5gemma"]),
    (
        "output_projection.weight",
        &["biogpt.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
        &["biogpt", "trocr"],
    ),
    ("lm_head.decoder.weight", &["bert.embeddings.word_embeddings.weight"], &["bert-generation"]),
    (
        "language_model.lm_head.weight",
        &["language_model.model.decoder.embed_tokens.weight"],
        &["blip-2", "instructblip"],
    ),
    ("embed_out.weight", &["gpt_neox.embed_in.weight", "gpt_neox_japanese.embed_in.weight"], &[]),
    ("language_model.lm_head.weight", &["language_model.model.embed_tokens.weight"], &[]),
    (
        "lm_head.weight",
        &[
            "model.embed_tokens.weight",
            "model.language_model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "model.text_model.embed_tokens.weight",
            "model.shared.weight",
            "led.shared.weight",
            "transformer.wte.weight",
            "transformer.w.weight",
            "transformer.tokens_embed.weight",
            "transformer.word_embeddings.weight",
            "backbone.embeddings.weight",
            "backbone.embedding.weight",
            "prophetnet.word_embeddings.weight",
            "wte.weight",
            "word_embeddings.weight",
            "shared.weight",
            "embed_tokens.weight",
        ],
        &[],
    ),
    ("llm.lm_head.weight", &["llm.model.embed_tokens.weight"], &[]),
    ("thinker.lm_head.weight", &["thinker.model.embed_tokens.weight"], &[]),
    ("text_model.lm_head.weight", &["text_model.model.embed_tokens.weight"], &[]),
    ("model.llm.unembed.weight", &["model.llm.embed.weight"], &[]),
    ("output.weight", &["tok_embeddings.weight", "git.embeddings.word_embeddings.weight"], &[]),
    ("head.weight", &["rwkv.embeddings.weight", "model.embed_tokens.weight"], &[]),
    ("decoder.weight", &["model.embeddings.tok_embeddings.weight"], &[]),
    (
        "cls.predictions.decoder.weight",
        &[
            "bert.embeddings.word_embeddings.weight",
            "deberta.embeddings.word_embeddings.weight",
            "ernie.embeddings.word_embeddings.weight",
            "rembert.embeddings.word_embeddings.weight",
            "roc_bert.embeddings.word_embeddings.weight",
            "roformer.embeddings.word_embeddings.weight",
        ],
        &[],
    ),
    ("vocab_projector.weight", &["distilbert.embeddings.word_embeddings.weight"], &[]),
    (
        "lm_head.decoder.weight",
        &[
            "roberta.embeddings.word_embeddings.weight",
            "roberta_prelayernorm.embeddings.word_embeddings.weight",
            "reformer.embeddings.word_embeddings.weight",
            "data2vec_text.embeddings.word_embeddings.weight",
        ],
        &[],
    ),
    ("pred_layer.proj.weight", &["transformer.embeddings.weight"], &[]),
    ("lm_loss.weight", &["transformer.word_embedding.weight"], &[]),
    ("generator_lm_head.weight", &["electra.embeddings.word_embeddings.weight"], &[]),
    ("predictions.decoder.weight", &["albert.embeddings.word_embeddings.weight"], &[]),
    ("text_decoder.cls.predictions.decoder.weight", &["text_decoder.bert.embeddings.word_embeddings.weight"], &[]),
    ("decoder.cls.predictions.decoder.weight", &["decoder.bert.embeddings.word_embeddings.weight"], &[]),
    ("lm_head.out_proj.weight", &["model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"], &[]),
];

/// Embeddings that an encoder and a decoder share, and the names of both sides' copies, the model types' own first:
/// whatever unties the head unties these too.
const SHARED: [(&str, [&str; 2], &[&str]); 4] = [
    (
        "shared.weight",
        ["text_encoder.embed_tokens.weight", "text_decoder.embed_tokens.weight"],
        &["seamless_m4t", "seamless_m4t_v2"],
    ),
    ("model.shared.weight", ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"], &[]),
    ("led.shared.weight", ["led.encoder.embed_tokens.weight", "led.decoder.embed_tokens.weight"], &[]),
    ("shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"], &[]),
];

/// What else is tied to `embedding` of a model of this type by the same flag as the head.
pub(super) fn copies_of(embedding: &str, model_type: &str) -> &'static [&'static str] {
    let fits = |types: &[&str]| types.is_empty() || types.contains(&model_type);
    let row = SHARED.iter().find(|(name, _, types)| *name == embedding && fits(types));
    row.map_or(&[], |(_, copies, _)| copies)
}

/// Model types in whose classes the flag does more than tie the head: other layers are tied by it, or inputs are scaled.
const BOUND: [&str; 7] =
    ["diffusion_gemma", "moonshine", "prophetnet", "switch_transformers", "t5gemma2", "zamba", "zamba2"];
/// Model types that normalize an embedding after the look-up, where PEFT adds its delta.
const NORMALIZED: [&str; 6] =
    ["inkling2", "inkling2_text", "inkling_mm_model", "inkling_text", "muse_glimmer", "muse_spark"];

/// Model types whose classes do not say which weights they tie: PEFT takes the embedding for one apart.
const UNSAID: [&str; 2] = ["kosmos-2.5", "llama4"];

/// Whether rows of new values for the embedding of a model of this type are not meant for its head.
pub(super) fn is_unsaid(model_type: &str) -> bool {
    UNSAID.contains(&model_type)
}

/// Embeddings, by model type, that no head is tied to: an encoder's beside those of a decoder.
const ALONE: [(&str, &str); 2] = [
    ("encoder-decoder", "encoder.embeddings.word_embeddings.weight"),
    ("t5gemma", "model.encoder.embed_tokens.weight"),
];

/// Whether no head is tied to `embedding` in models of this type.
pub(super) fn is_alone(model_type: &str, embedding: &str) -> bool {
    ALONE.contains(&(model_type, embedding))
}

/// Model types whose classes have a head that no flag ties.
const NEVER_TIED: [&str; 1] = ["pop2piano"];

/// Whether the head of a model of this type has weights of its own whatever its config says.
pub(super) fn is_never_tied(model_type: &str) -> bool {
    NEVER_TIED.contains(&model_type)
}

/// Whether embedding and head of a model of this type can't be written apart.
pub(super) fn is_bound(model_type: &str) -> bool {
    BOUND.contains(&model_type)
}

/// Whether a delta of the embedding is none of its weight.
pub(super) fn is_normalized(model_type: &str) -> bool {
    NORMALIZED.contains(&model_type)
}

/// Biases of heads that the same flag ties: the one on disk, and the head's own.
const BIASES: [(&str, &str); 5] = [
    ("decoder.cls.predictions.bias", "decoder.cls.predictions.decoder.bias"),
    ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias"),
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("predictions.bias", "predictions.decoder.bias"),
];

/// The bias that head `head` is tied to, and its own name.
pub(super) fn bias_of(head: &str) -> Option<(&'static str, &'static str)> {
    let own = head.strip_suffix("weight")?;
    BIASES.iter().copied().find(|(_, bias)| bias.strip_suffix("bias") == Some(own))
}

/// Head and embedding of a model of type `model_type`, of whose tensors `has` tells: those of which both are there, else an
/// embedding with the head that its class would have.
pub(super) fn among(has: impl Fn(&str) -> bool, model_type: &str) -> Option<(&'static str, &'static str)> {
    let fits = |types: &[&str]| types.is_empty() || types.contains(&model_type);
    let rows = || ROWS.iter().filter(|(_, _, types)| fits(types));
    let known = || rows().flat_map(|(head, embeddings, _)| embeddings.iter().map(move |e| (*head, *e)));
    let known = || known().filter(|(_, embedding)| has(embedding));
    known().find(|(head, _)| has(head)).or_else(|| known().next())
}

/// Names of heads.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|(head, ..)| *head)
}

/// The name of the input embedding among tensors, if it is one that qft knows.
pub fn embedding_among(has: impl Fn(&str) -> bool) -> Option<&'static str> {
    ROWS.iter().flat_map(|(_, embeddings, _)| embeddings.iter()).find(|name| has(name)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_told_by_its_embedding_and_the_model_type() {
        let pair = |names: &[&str], kind: &str| among(|name| names.contains(&name), kind).map(|(head, _)| head);
        let decoder = ["model.decoder.embed_tokens.weight"];
        assert_eq!(pair(&decoder, "whisper"), Some("proj_out.weight"));
        assert_eq!(pair(&decoder, "opt"), Some("lm_head.weight"));
        assert_eq!(pair(&["bert.embeddings.word_embeddings.weight"], "bert"), Some("cls.predictions.decoder.weight"));
        assert_eq!(
            pair(&["language_model.model.embed_tokens.weight"], "llama4"),
            Some("language_model.lm_head.weight")
        );
        let both = ["language_model.model.embed_tokens.weight", "lm_head.weight"];
        assert_eq!(pair(&both, "x"), Some("lm_head.weight"), "what is there counts");
        assert_eq!(pair(&["x.weight"], "llama"), None);
    }
}
