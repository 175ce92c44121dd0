//! The flags of GGUF types, which `export`, `gguf` and `quantize` share, and what they say of a run's GGUF files.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Args, Command};
use qft::export::GgufOptions;
use qft::ggml::TensorType;
use qft::gguf::imatrix::Imatrix;
use qft::gguf::mixture::{Choices, FileType, TypeOverride};
use qft::gpu::Effort;
use qft::size::ByteSize;

/// The mixtures as users type them.
static NAMES: LazyLock<Vec<String>> =
    LazyLock::new(|| FileType::all().map(|mixture| mixture.name().to_lowercase()).collect());

/// Reads a mixture, and tells shells which there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixtures;

impl TypedValueParser for Mixtures {
    type Value = FileType;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<FileType, clap::Error> {
        str::parse::<FileType>.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(NAMES.iter().map(|name| PossibleValue::new(name.as_str()))))
    }
}

/// Which tensors get which types.
#[expect(clippy::doc_markdown, reason = "the text is shown in a terminal")]
#[derive(Debug, Args)]
#[command(next_help_heading = "GGUF types")]
pub(super) struct EncodingArgs {
    /// Weigh the errors of columns by an importance matrix, as llama-imatrix writes it in either format.
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Choose the type of tensors whose name matches; the first match decides. For example
    /// --tensor-type ffn_down=q6_k.
    #[arg(long, value_name = "REGEX=TYPE", num_args = 1..)]
    tensor_type: Vec<TypeOverride>,
    /// Type of the output head, and of an embedding that serves as one.
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<TensorType>,
    /// Type of the embedding of tokens.
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<TensorType>,
    /// Give every tensor the mixture's base type.
    #[arg(long)]
    pure: bool,
    /// Leave the output head unchanged.
    #[arg(long)]
    leave_output_tensor: bool,
    /// Split GGUF files into parts of at most so many tensor bytes, with the names that llama.cpp's loader expects.
    #[arg(long, value_name = "SIZE")]
    split_max_size: Option<ByteSize>,
}

/// What it takes to encode that many bytes of weights as each of `mixtures`.
pub(super) fn encoding_effort(input: u64, weights: u64, mixtures: &[FileType], args: &EncodingArgs) -> Effort {
    let kinds = mixtures.iter().map(|mixture| mixture.base_type()).collect();
    Effort { input, weights, rank: None, shard: None, kinds, weighted: args.imatrix.is_some() }
}

impl EncodingArgs {
    /// The options of one output for each of `mixtures`.
    pub(super) fn options(&self, mixtures: &[FileType], allow_requantize: bool) -> qft::Result<GgufOptions> {
        let choices = |mixture: &FileType| Choices {
            mixture: *mixture,
            pure: self.pure,
            output_type: self.output_tensor_type,
            embedding_type: self.token_embedding_type,
            overrides: self.tensor_type.clone(),
            leave_output: self.leave_output_tensor,
            allow_requantize,
        };
        let read = |path: &PathBuf| Ok(Arc::new((path.to_string_lossy().into_owned(), Imatrix::read(path)?)));
        Ok(GgufOptions {
            choices: mixtures.iter().map(choices).collect(),
            imatrix: self.imatrix.as_ref().map(read).transpose()?,
            split: self.split_max_size,
            ..GgufOptions::of(&[])
        })
    }
}

/// How a Hugging Face model becomes a GGUF file.
#[derive(Debug, Args)]
#[command(next_help_heading = "GGUF conversion")]
pub(super) struct ConversionArgs {
    /// The name of the pre-tokenizer, as llama.cpp knows it (qwen2, llama-bpe, ...), where qft does not recognize the
    /// tokenizer.
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// The model's name in GGUF files (general.name) [default: from the model card, or the directory's name].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl ConversionArgs {
    /// `options` with what these flags say.
    pub(super) fn apply(&self, options: GgufOptions) -> GgufOptions {
        GgufOptions { pre: self.pre.clone(), name: self.name.clone(), ..options }
    }
}
