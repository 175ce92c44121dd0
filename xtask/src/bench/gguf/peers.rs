//! Which peers are there. One that is not given or lacks something is left out, with the reason.

use std::path::{Path, PathBuf};

use crate::bench::check_python;
use crate::options::Options;

/// The peers, or why they are left out.
pub(super) struct Peers {
    /// The program llama-quantize.
    pub(super) quantize: Result<PathBuf, String>,
    /// What comes before it on the way from an adapter to a quantized file.
    pub(super) chain: Result<Chain, String>,
}

/// PEFT's Python, and llama.cpp's converter, which runs in it.
pub(super) struct Chain {
    pub(super) python: String,
    pub(super) converter: PathBuf,
}

impl Peers {
    /// Looks where the options say.
    pub(super) fn find(options: &Options) -> Self {
        let llama = options.text("llama").map(Path::new);
        Self { quantize: quantize(llama), chain: chain(options, llama) }
    }

    /// A line for each peer that is left out.
    pub(super) fn left_out(&self) -> Vec<String> {
        let quantize = self.quantize.as_ref().err().map(|why| format!("llama-quantize: {why}"));
        let chain = self.chain.as_ref().err().map(|why| format!("PEFT, convert_hf_to_gguf.py, llama-quantize: {why}"));
        quantize.into_iter().chain(chain).collect()
    }
}

fn quantize(llama: Option<&Path>) -> Result<PathBuf, String> {
    let dir = llama.ok_or("name a directory of llama.cpp with --llama")?;
    let program = dir.join("build/bin/llama-quantize");
    if program.is_file() {
        return Ok(program);
    }
    let build = "cmake -B build && cmake --build build --target llama-quantize";
    Err(format!("{} is not there; in {}: {build}", program.display(), dir.display()))
}

fn chain(options: &Options, llama: Option<&Path>) -> Result<Chain, String> {
    quantize(llama).map_err(|_| "llama-quantize is not there".to_owned())?;
    let converter = llama.unwrap_or(Path::new("")).join("convert_hf_to_gguf.py");
    if !converter.is_file() {
        return Err(format!("{} is not there", converter.display()));
    }
    let python = options.text("python").ok_or("name a Python that has torch, transformers and peft with --python")?;
    check_python(python).map_err(|error| format!("{error:#}"))?;
    let real = "the converter refuses the synthetic tokenizer; name the directory of a real one with --tokenizer, of \
                at most 152,064 tokens, such as that of Qwen2.5";
    options.text("tokenizer").ok_or(real)?;
    Ok(Chain { python: python.to_owned(), converter })
}
