//! Whether a GPU is faster: the time of a job on the processor, and with a GPU. The rates are those of one core of a
//! sixteen-core Xeon with AVX-512 beside an H100 (docs/performance.md); it is their ratios that decide.

use crate::ggml::TensorType;

/// Seconds a gigabyte: SHA-256 of outputs, which is one chain a file; BLAKE3 of inputs; writing; and reading inputs into
/// memory that GPUs read from, and waiting for them.
const SHA_256: f64 = 1.0;
const BLAKE3: f64 = 0.35;
const WRITE: f64 = 0.6;
const LANES: f64 = 0.4;
/// Seconds a billion weights: a merge, and a rank of it.
const MERGE: f64 = 0.7;
const RANK: f64 = 0.08;
/// Seconds that opening a GPU takes before it helps.
const OPEN: f64 = 0.3;
/// A GPU is taken where it needs no more than this part of the processor's time, and saves so many seconds of it: for
/// less, it is not worth a line that there is none.
const GAIN: f64 = 0.9;
const SAVES: f64 = 1.0;

/// Seconds a billion weights of encoding and measuring a type, without and with importance.
const ENCODE: [(TensorType, f64, f64); 15] = {
    use TensorType as T;
    [
        (T::F32, 0.3, 0.3),
        (T::F16, 0.5, 0.5),
        (T::BF16, 0.5, 0.5),
        (T::Q8_0, 0.7, 0.7),
        (T::Q4_0, 0.8, 5.0),
        (T::Q4_1, 0.8, 9.0),
        (T::Q5_0, 1.2, 5.0),
        (T::Q5_1, 1.2, 9.0),
        (T::Q2_K, 11.0, 20.0),
        (T::Q3_K, 7.0, 9.0),
        (T::Q4_K, 13.0, 23.0),
        (T::Q5_K, 11.0, 23.0),
        (T::Q6_K, 7.0, 7.0),
        (T::IQ4_NL, 22.0, 22.0),
        (T::IQ4_XS, 22.0, 22.0),
    ]
};

/// What a job is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Effort {
    /// Bytes of the weights that are read.
    pub input: u64,
    /// How many weights that are.
    pub weights: u64,
    /// Ranks of all adapters together; `None` where nothing is merged.
    pub rank: Option<u32>,
    /// Most bytes of a safetensors file, if such are written.
    pub shard: Option<u64>,
    /// The types that most tensors of each GGUF file get.
    pub kinds: Vec<TensorType>,
    /// Whether an importance weighs their columns.
    pub weighted: bool,
}

impl Effort {
    /// Whether a job of `jobs` threads is done sooner with a GPU.
    pub fn pays(&self, jobs: usize) -> bool {
        let billions = self.weights as f64 / 1e9;
        let gigabytes = self.input as f64 / 1e9;
        let made_as = |kind: TensorType| billions * kind.block_bytes() as f64 / kind.block_len() as f64;
        let merge = self.rank.map_or(0.0, |rank| billions * (MERGE + RANK * f64::from(rank)));
        let (mut fill, mut output, mut longest) = (0.0, 0.0, 0.0f64);
        if let Some(shard) = self.shard {
            fill += merge;
            output += gigabytes;
            longest = gigabytes.min(shard as f64 / 1e9);
        }
        for kind in &self.kinds {
            let cost = |row: &(TensorType, f64, f64)| if self.weighted { row.2 } else { row.1 };
            let encode = ENCODE.iter().find(|row| row.0 == *kind).map_or(0.0, cost);
            fill += merge + billions * encode;
            output += made_as(*kind);
            longest = longest.max(made_as(*kind));
        }
        let outputs = self.kinds.len() + usize::from(self.shard.is_some());
        let rest = output * (SHA_256 + WRITE) + gigabytes * BLAKE3;
        let time = |fill: f64| (longest * SHA_256).max((fill + rest) / jobs.max(1) as f64);
        let (alone, beside_a_card) = (time(fill), OPEN + time(gigabytes * LANES * outputs as f64));
        beside_a_card < (GAIN * alone).min(alone - SAVES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen2.5-7B with a LoRA of that rank.
    fn seven_billion(rank: u32, shard: Option<u64>, kinds: &[TensorType]) -> Effort {
        let (input, weights) = (15_230_000_000, 7_615_000_000);
        Effort { input, weights, rank: Some(rank), shard, kinds: kinds.to_vec(), weighted: false }
    }

    #[test]
    fn a_card_pays_where_there_is_much_to_compute() {
        let shards = |rank| seven_billion(rank, Some(2_000_000_000), &[]);
        assert!(!shards(8).pays(16), "digests and writing bound it");
        assert!(shards(256).pays(16));
        assert!(seven_billion(8, None, &[TensorType::Q4_K]).pays(16));
        assert!(seven_billion(8, None, &[TensorType::Q4_K]).pays(2));
        assert!(!seven_billion(8, None, &[TensorType::Q8_0]).pays(16), "the digest of the one file bounds it");
        let importance = Effort { weighted: true, ..seven_billion(8, None, &[TensorType::Q4_1]) };
        assert!(importance.pays(4));
    }

    #[test]
    fn a_small_job_is_done_before_a_card_is_open() {
        let small = Effort { weights: 20_000_000, input: 40_000_000, ..seven_billion(8, None, &[TensorType::Q4_K]) };
        assert!(!small.pays(16) && !Effort { weights: 0, input: 0, ..small }.pays(1));
    }

    #[test]
    fn what_saves_less_than_a_second_is_left_to_the_processor() {
        // SmolLM2-135M on two cores: 0.7 s.
        let kinds = vec![TensorType::Q4_K, TensorType::Q8_0];
        let small =
            Effort { input: 269_000_000, weights: 134_500_000, shard: None, kinds, rank: Some(8), weighted: false };
        assert!(!small.pays(2));
        assert!(Effort { input: 4 * small.input, weights: 4 * small.weights, ..small }.pays(2));
    }

    #[test]
    fn every_type_has_its_cost() {
        let encoded = TensorType::all().filter(|kind| crate::ggml::encode::can_encode(*kind));
        assert!(encoded.eq(TensorType::all().filter(|kind| ENCODE.iter().any(|row| row.0 == *kind))));
    }
}
