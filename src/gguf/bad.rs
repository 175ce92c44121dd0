//! Why qft can't read a GGUF file, and what the user can do.

/// Why a file is no GGUF file that qft reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadGguf {
    /// Another kind of file.
    #[error("does not begin with the letters GGUF: it is another kind of file")]
    NotGguf,
    /// The numbers' bytes are reversed.
    #[error("is a big-endian GGUF file")]
    BigEndian,
    /// A version that is too old, or not yet known.
    #[error("is GGUF version {0}; versions 2 and 3 are supported")]
    Version(u32),
    /// The file ends too early.
    #[error("ends within {0}: it is cut off")]
    CutOff(String),
    /// A rule is broken.
    #[error("{0}")]
    Broken(String),
}

impl BadGguf {
    /// What the reader can do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotGguf => "give a file that llama.cpp's tools or qft wrote",
            Self::BigEndian => "make a little-endian file with llama.cpp's gguf_convert_endian.py",
            Self::Version(0 | 1) => "convert the model again with a current llama.cpp",
            Self::Version(_) => "use a newer qft, or convert the model again",
            Self::CutOff(_) | Self::Broken(_) => "download or convert the file again: it is damaged or malicious",
        }
    }
}

impl From<String> for BadGguf {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

pub(super) type Result<T> = std::result::Result<T, BadGguf>;
