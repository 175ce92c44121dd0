//! Which device the user asked for.

use std::fmt;
use std::str::FromStr;

/// Where blocks are merged and encoded. The bytes are the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// A GPU if one is there and the job is large enough for it to pay, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU.
    Cuda,
    /// The GPU of this number.
    One(usize),
    /// Every GPU.
    All,
    /// For tests: a GPU whose blocks the processor makes. Its failures are borne, or not where it is demanded.
    Simulated {
        /// Whether its failure is an error.
        demanded: bool,
    },
}

impl Device {
    /// Whether a GPU is demanded, so that its absence is an error.
    pub fn demands_card(self) -> bool {
        !matches!(self, Self::Auto | Self::Cpu | Self::Simulated { demanded: false })
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" | "gpu" => Ok(Self::Cuda),
            "cuda:all" => Ok(Self::All),
            "simulated" => Ok(Self::Simulated { demanded: false }),
            "simulated:demanded" => Ok(Self::Simulated { demanded: true }),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Self::One).ok_or_else(|| "choose auto, cpu, cuda, cuda:N or cuda:all".to_owned())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda => f.write_str("cuda"),
            Self::One(number) => write!(f, "cuda:{number}"),
            Self::All => f.write_str("cuda:all"),
            Self::Simulated { demanded: false } => f.write_str("simulated"),
            Self::Simulated { demanded: true } => f.write_str("simulated:demanded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:7", "cuda:all", "simulated"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        for text in ["", "cuda:", "cuda:x", "cuda:-1", "rocm"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert!(!Device::Auto.demands_card() && Device::One(0).demands_card());
    }
}
