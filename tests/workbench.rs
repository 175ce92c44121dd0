//! What the other modules work with: a temporary directory, tiny models and adapters in it, and the command.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// A temporary directory.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

/// One tensor: type, shape, bytes.
pub(crate) type Data = (Dtype, Vec<usize>, Vec<u8>);

/// Everything that a finished command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// In a directory of the caller's choice, such as one on another filesystem.
    pub(crate) fn new_in(parent: &Path) -> Self {
        Self { dir: tempfile::tempdir_in(parent).unwrap() }
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn read(&self, name: impl AsRef<Path>) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn json(&self, name: impl AsRef<Path>) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// A command in this directory, with no caches, no network and no terminal.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qft"));
        command.current_dir(self.dir.path()).env_clear();
        command.env("HOME", self.path("home")).env("HF_HUB_OFFLINE", "1");
        // Products of tiny models: candle's threads would do nothing but wait for each other.
        command.env("RAYON_NUM_THREADS", "1");
        command
    }

    /// Runs `qft` with `line`'s words.
    pub(crate) fn qft(&self, line: &str) -> Said {
        said(self.command().args(line.split_whitespace()).output().unwrap())
    }

    /// Runs `qft` and expects it to succeed.
    pub(crate) fn ok(&self, line: &str) -> Said {
        let said = self.qft(line);
        assert_eq!(said.code, Some(0), "qft {line}\n{}\n{}", said.out, said.err);
        said
    }

    /// Runs `qft`, expects exit code 1, no panic and a message that mentions each of `mentions`.
    pub(crate) fn refuses(&self, line: &str, mentions: &[&str]) -> Said {
        self.fails(1, line, mentions)
    }

    /// As [`Self::refuses`], with another exit code.
    pub(crate) fn fails(&self, code: i32, line: &str, mentions: &[&str]) -> Said {
        let said = self.qft(line);
        assert_eq!(said.code, Some(code), "qft {line}\n{}\n{}", said.out, said.err);
        assert!(!said.err.contains("panicked"), "{}", said.err);
        for mention in mentions {
            assert!(said.err.contains(mention), "qft {line}: {mention:?} is not in {}", said.err);
        }
        said
    }

    /// Writes a safetensors file by the reference writer.
    pub(crate) fn tensors(&self, name: impl AsRef<Path>, tensors: &BTreeMap<String, Data>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut views = Vec::new();
        for (name, (dtype, shape, bytes)) in tensors {
            views.push((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        }
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        safetensors::serialize_to_file(views, metadata, &path).unwrap();
        path
    }

    /// A two-layer llama-shaped base in `base`, bf16, with `hidden` columns; and its tensors.
    pub(crate) fn base(&self, hidden: usize) -> BTreeMap<String, Data> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            let seed = tensors.len() as u64 + 1;
            tensors.insert(name.to_owned(), (Dtype::BF16, shape.to_vec(), bf16_noise(shape.iter().product(), seed)));
        };
        add("model.embed_tokens.weight", &[48, hidden]);
        add("lm_head.weight", &[48, hidden]);
        add("model.norm.weight", &[hidden]);
        for layer in 0..2 {
            add(&format!("model.layers.{layer}.self_attn.q_proj.weight"), &[hidden, hidden]);
            add(&format!("model.layers.{layer}.self_attn.v_proj.weight"), &[hidden / 2, hidden]);
            add(&format!("model.layers.{layer}.mlp.down_proj.weight"), &[hidden, 2 * hidden]);
            add(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden]);
        }
        self.tensors("base/model.safetensors", &tensors);
        let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "vocab_size": 48, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-06});
        self.write("base/config.json", format!("{config:#}\n"));
        self.write("base/tokenizer.json", "{}");
        tensors
    }

    /// A LoRA of rank 4 on q_proj and down_proj of [`Self::base`], in directory `name`.
    pub(crate) fn adapter(&self, name: &str, hidden: usize) -> BTreeMap<String, Data> {
        let mut tensors = BTreeMap::new();
        for layer in 0..2 {
            for (module, out, input) in [("self_attn.q_proj", hidden, hidden), ("mlp.down_proj", hidden, 2 * hidden)] {
                let key = format!("base_model.model.model.layers.{layer}.{module}");
                let seed = 100 + tensors.len() as u64;
                tensors.insert(format!("{key}.lora_A.weight"), f32_noise(&[4, input], seed));
                tensors.insert(format!("{key}.lora_B.weight"), f32_noise(&[out, 4], seed + 50));
            }
        }
        self.tensors(Path::new(name).join("adapter_model.safetensors"), &tensors);
        self.adapter_config(name, json!({}));
        tensors
    }

    /// An `adapter_config.json` of rank 4 and alpha 8 in directory `name`, with the settings of `extra`.
    pub(crate) fn adapter_config(&self, name: &str, extra: Value) {
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base",
            "peft_version": "0.21.2"});
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.write(Path::new(name).join("adapter_config.json"), config.to_string());
    }

    /// A two-layer model to train, with grouped heads, in directory `name`, with the tokenizer of fixtures/chat/small:
    /// `qwen2` in bf16 with biases and tied embeddings, or `llama` in f32 with a head of its own.
    pub(crate) fn trainee(&self, name: &str, family: &str) {
        let (hidden, width, kv, vocabulary, is_qwen2) = (32, 64, 16, 384, family == "qwen2");
        let mut tensors = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize], mean: f32, deviation: f32| {
            let mut noise = Noise(tensors.len() as u64 + 1);
            let values = (0..shape.iter().product()).map(|_: usize| mean + noise.value(deviation));
            let (dtype, bytes) = match is_qwen2 {
                true => (Dtype::BF16, values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect()),
                false => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            };
            tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        };
        add("model.embed_tokens.weight", &[vocabulary, hidden], 0.0, 0.3);
        if !is_qwen2 {
            add("lm_head.weight", &[vocabulary, hidden], 0.0, 0.3);
        }
        add("model.norm.weight", &[hidden], 1.0, 0.1);
        for layer in 0..2 {
            let mut add = |name: &str, shape: &[usize], mean, deviation| {
                add(&format!("model.layers.{layer}.{name}"), shape, mean, deviation);
            };
            add("input_layernorm.weight", &[hidden], 1.0, 0.1);
            add("post_attention_layernorm.weight", &[hidden], 1.0, 0.1);
            for (module, outputs) in [("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{module}.weight"), &[outputs, hidden], 0.0, 0.2);
                if is_qwen2 {
                    add(&format!("self_attn.{module}.bias"), &[outputs], 0.0, 0.2);
                }
            }
            add("self_attn.o_proj.weight", &[hidden, hidden], 0.0, 0.2);
            add("mlp.gate_proj.weight", &[width, hidden], 0.0, 0.2);
            add("mlp.up_proj.weight", &[width, hidden], 0.0, 0.2);
            add("mlp.down_proj.weight", &[hidden, width], 0.0, 0.2);
        }
        let name = Path::new(name);
        self.tensors(name.join("model.safetensors"), &tensors);
        let (class, dtype) = if is_qwen2 { ("Qwen2ForCausalLM", "bfloat16") } else { ("LlamaForCausalLM", "float32") };
        let config = json!({"architectures": [class], "model_type": family, "hidden_size": hidden,
            "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": vocabulary, "max_position_embeddings": 512, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "hidden_act": "silu", "tie_word_embeddings": is_qwen2, "torch_dtype": dtype});
        self.write(name.join("config.json"), format!("{config:#}\n"));
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat/small").join(file);
            fs::copy(from, self.path(name.join(file))).unwrap();
        }
    }

    /// All tensors of the model in directory `name`.
    pub(crate) fn model(&self, name: &str) -> BTreeMap<String, Data> {
        read_model(&self.path(name))
    }

    /// Everything below directory `name`: path to content.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut pending = vec![self.path(name)];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    let short = path.strip_prefix(self.path(name)).unwrap().to_string_lossy().into_owned();
                    files.insert(short, fs::read(&path).unwrap());
                }
            }
        }
        files
    }

    /// The names in this directory, to see what a failed run left behind.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

pub(crate) fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// All tensors of all safetensors files in a directory, by the reference reader.
pub(crate) fn read_model(dir: &Path) -> BTreeMap<String, Data> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let data = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                assert!(all.insert(name.clone(), data).is_none(), "{name} is there twice");
            }
        }
    }
    all
}

/// A small generator, so that tests need no seed from outside (splitmix64).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal, deviation about `scale`.
    pub(crate) fn value(&mut self, scale: f32) -> f32 {
        let sum: f64 = (0..4).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum();
        sum as f32 * 1.7 * scale
    }
}

/// `n` bf16 values of deviation 0.05.
pub(crate) fn bf16_noise(n: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    (0..n).flat_map(|_| half::bf16::from_f32(noise.value(0.05)).to_le_bytes()).collect()
}

/// An f32 tensor of deviation 0.05.
pub(crate) fn f32_noise(shape: &[usize], seed: u64) -> Data {
    let mut noise = Noise(seed);
    let bytes = (0..shape.iter().product()).flat_map(|_| noise.value(0.05).to_le_bytes()).collect();
    (Dtype::F32, shape.to_vec(), bytes)
}
