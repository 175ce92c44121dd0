//! From a module's path in a model class to the tensor's name on disk, or to the rows of tensors that it is there, where
//! the two differ; and the nearest names for an error message.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::checkpoint::{Checkpoint, Tensor};

/// Prefixes that differ between model classes and saved models: (in the class, on disk).
const PREFIXES: [(&str, &str); 28] = [
    ("transformer.", ""),
    ("model.", ""),
    ("", "transformer."),
    ("", "model."),
    ("model.language_model.", "model."),
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.model.", "model."),
    ("lm_head.", "language_model.lm_head."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower."),
    // A text model's class on a multimodal model.
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("model.", "model.text_model."),
    ("lm_head.", "model.lm_head."),
    ("model.", "thinker.model."),
    ("model.language_model.", "thinker.model."),
    ("lm_head.", "thinker.lm_head."),
    ("thinker.model.language_model.", "thinker.model."),
    ("visual.", "thinker.visual."),
    ("audio_tower.", "thinker.audio_tower."),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("base_model.", ""),
];

/// Inner parts that they disagree on.
const PARTS: [(&str, &str); 2] = [(".mlp.", ".block_sparse_moe."), (".block_sparse_moe.", ".mlp.")];

/// The spellings that `name` may have on disk by rules that hold for all models, the name itself first.
pub(super) fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    let mut add = |spelling: String| {
        if !all.contains(&spelling) {
            all.push(spelling);
        }
    };
    let prefixed = || PREFIXES.iter().filter_map(|(class, disk)| Some(format!("{disk}{}", name.strip_prefix(class)?)));
    let inner = |name: &str| -> Vec<String> {
        PARTS
            .iter()
            .filter(|(class, _)| name.contains(class))
            .map(|(class, disk)| name.replacen(class, disk, 1))
            .collect()
    };
    prefixed().for_each(&mut add);
    inner(name).into_iter().chain(prefixed().flat_map(|name| inner(&name))).for_each(&mut add);
    all
}

/// The names of the same parts in transformers' class and in a saved model of one type. The columns are told in
/// the table's first lines.
const TABLE: &str = include_str!("names.tsv");

/// Which rows of its tensors on disk a weight of the class is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All rows of one tensor.
    Whole,
    /// One of so many equal parts.
    Equal(usize, usize),
    /// The first rows; the others are two equal parts.
    Query,
    /// The first of two equal parts at the end.
    Key,
    /// The last rows.
    Value,
    /// Several tensors, one after another.
    Joined,
    /// Rows in an order that no range tells.
    Mixed,
    /// A tensor that is another weight of the model, too.
    Shared,
}

impl Part {
    fn parse(cell: &str) -> Option<Self> {
        Some(match cell {
            "" => Self::Whole,
            "q" => Self::Query,
            "k" => Self::Key,
            "v" => Self::Value,
            "+" => Self::Joined,
            "mixed" => Self::Mixed,
            "shared" => Self::Shared,
            equal => {
                let (index, of) = equal.split_once('/')?;
                Self::Equal(index.parse().ok()?, of.parse().ok()?)
            }
        })
    }

    /// Which of `total` rows the part is that has `height` rows.
    fn rows(self, height: usize, total: usize) -> Option<Range<usize>> {
        let others = total.checked_sub(height)?;
        let first = match self {
            Self::Equal(index, of) => (height.checked_mul(of)? == total).then(|| index * height)?,
            Self::Query => (others % 2 == 0).then_some(0)?,
            Self::Key => others.checked_sub(height)?,
            Self::Value => (others >= height).then_some(others)?,
            Self::Whole | Self::Joined | Self::Mixed | Self::Shared => return None,
        };
        Some(first..first + height)
    }
}

/// Where a weight of the class lies, that is no tensor of its own.
pub(super) enum Place {
    /// Rows of a tensor that holds others too.
    Rows(String, Within),
    /// All rows of several tensors, one after another.
    Joined(Vec<String>),
    /// Rows that are spread over tensors.
    Mixed(Vec<String>),
    /// A tensor that is another weight of the model, too.
    Shared(String),
}

/// The rows of a tensor that are a weight.
#[derive(Clone, Copy)]
pub(super) struct Within(Part);

impl Within {
    /// The rows of a weight of `height` rows in a tensor of `total`; `None` if it can't have so many.
    pub(super) fn rows(self, height: usize, total: usize) -> Option<Range<usize>> {
        self.0.rows(height, total)
    }
}

impl Place {
    /// The tensors that hold it.
    pub(super) fn tensors(&self) -> &[String] {
        match self {
            Self::Rows(tensor, _) | Self::Shared(tensor) => std::slice::from_ref(tensor),
            Self::Joined(tensors) | Self::Mixed(tensors) => tensors,
        }
    }
}

/// Beginnings of names in the class and of tensors on disk; `N` is a number.
struct Rename {
    class: Vec<&'static str>,
    disk: Vec<Vec<&'static str>>,
    part: Part,
}

/// The tensors of a base, and what else its class may call them.
pub(super) struct Names<'b, T = Tensor> {
    tensors: &'b BTreeMap<String, T>,
    /// The longest beginnings first.
    renames: Vec<Rename>,
}

impl<'b> Names<'b> {
    /// The names of `base`.
    pub(super) fn of(base: &'b Checkpoint) -> Self {
        let model_type = base.config.as_ref().and_then(|config| config.string(&["model_type"]));
        Self::new(&base.tensors, &model_type.unwrap_or_default())
    }
}

impl<'b, T> Names<'b, T> {
    fn new(tensors: &'b BTreeMap<String, T>, model_type: &str) -> Self {
        let parts = |path: &'static str| path.split('.').filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let rows = TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let mut cells = line.split('\t');
            let (class, disk, part, types) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
            let disk = disk.split(' ').map(parts).collect();
            let fits = types.split(' ').any(|name| name == model_type);
            Some(Rename { class: parts(class), disk, part: Part::parse(part)? }).filter(|_| fits)
        });
        let mut renames: Vec<_> = rows.collect();
        renames.sort_by_key(|rename| std::cmp::Reverse(rename.class.len()));
        Self { tensors, renames }
    }

    /// The base's name for `name`: itself if the base has it, else what its model type has for it, else the one spelling
    /// that the base has. Two spellings would be a guess.
    pub(super) fn find(&self, name: &str) -> Option<String> {
        let has = |spelling: &String| self.tensors.contains_key(spelling);
        if self.tensors.contains_key(name) {
            return Some(name.to_owned());
        }
        let known = |name: &str| self.renamed(name).find(has);
        if let Some(known) = known(name) {
            return Some(known);
        }
        let spellings = spellings(name);
        let mut found = spellings.iter().filter(|spelling| has(spelling));
        if let Some(first) = found.next() {
            return found.next().is_none().then(|| first.clone());
        }
        // Both: a class without its head, whose parts have other names on disk.
        let mut both = spellings.iter().skip(1).filter_map(|spelling| known(spelling));
        if let Some(first) = both.next() {
            return both.all(|other| other == first).then_some(first);
        }
        // A class that was loaded without what stands around it: `encoder.layer.0` is `bert.encoder.layer.0`.
        let whole = format!(".{name}");
        let mut endings = self.tensors.keys().filter(|tensor| tensor.ends_with(&whole));
        let first = endings.next()?;
        endings.next().is_none().then(|| first.clone())
    }

    /// What the model type may have for `name` on disk, whether it is there or not.
    pub(super) fn renamed(&self, name: &str) -> impl Iterator<Item = String> {
        let parts: Vec<&str> = name.split('.').collect();
        let whole = self.renames.iter().filter(|rename| rename.part == Part::Whole);
        whole.filter_map(move |rename| renamed(&parts, &rename.class, &rename.disk[0]))
    }

    /// Where `name` lies if it is no tensor of its own, by the names of its model type.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        spellings(name).iter().find_map(|name| {
            let parts: Vec<&str> = name.split('.').collect();
            let others = self.renames.iter().filter(|rename| rename.part != Part::Whole);
            others.into_iter().find_map(|rename| {
                let tensors = rename.disk.iter().map(|disk| renamed(&parts, &rename.class, disk));
                let tensors: Vec<String> = tensors.collect::<Option<_>>()?;
                tensors.iter().all(|tensor| self.tensors.contains_key(tensor)).then_some(())?;
                Some(match rename.part {
                    Part::Joined => Place::Joined(tensors),
                    Part::Mixed => Place::Mixed(tensors),
                    Part::Shared => Place::Shared(tensors.into_iter().next()?),
                    part => Place::Rows(tensors.into_iter().next()?, Within(part)),
                })
            })
        })
    }
}

/// A name whose beginning is `class`, with `disk` in its place.
fn renamed(parts: &[&str], class: &[&str], disk: &[&str]) -> Option<String> {
    let (head, rest) = parts.split_at_checked(class.len())?;
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let fits = head.iter().zip(class).all(|(part, class)| if *class == "N" { number(part) } else { part == class });
    let mut numbers = head.iter().zip(class).filter(|(_, class)| **class == "N").map(|(part, _)| *part);
    let new = disk.iter().map(|part| if *part == "N" { numbers.next() } else { Some(*part) });
    let new: Option<Vec<&str>> = new.chain(rest.iter().map(|part| Some(*part))).collect();
    new.filter(|_| fits).map(|new| new.join("."))
}

/// Up to three of the base's names that share most with `name`.
pub(super) fn nearest<'a, T>(base: &'a BTreeMap<String, T>, name: &str) -> Vec<&'a str> {
    let parts: Vec<&str> = name.split('.').collect();
    let shared = |other: &str| {
        let forward = other.split('.').filter(|part| parts.contains(part)).count();
        let backward = other.rsplit('.').zip(parts.iter().rev()).take_while(|(a, b)| a == *b).count();
        let letters = other.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        (forward + backward, letters)
    };
    let mut scored: Vec<_> = base.keys().map(|other| (shared(other), other.as_str())).collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().filter(|((parts, _), _)| *parts > 0).take(3).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(names: &[&str]) -> BTreeMap<String, u8> {
        names.iter().map(|n| ((*n).to_owned(), 0)).collect()
    }

    #[test]
    fn finds_the_spelling_on_disk() {
        fn find<T>(base: &BTreeMap<String, T>, name: &str) -> Option<String> {
            Names::new(base, "").find(name)
        }
        let gpt2 = base(&["h.0.attn.c_attn.weight"]);
        assert_eq!(find(&gpt2, "transformer.h.0.attn.c_attn.weight").as_deref(), Some("h.0.attn.c_attn.weight"));
        let vl = base(&["model.layers.0.q.weight", "visual.blocks.0.q.weight"]);
        assert_eq!(find(&vl, "model.language_model.layers.0.q.weight").as_deref(), Some("model.layers.0.q.weight"));
        assert_eq!(find(&vl, "model.visual.blocks.0.q.weight").as_deref(), Some("visual.blocks.0.q.weight"));
        assert_eq!(find(&vl, "model.layers.1.q.weight"), None);
    }

    #[test]
    fn does_not_choose_between_two() {
        let both = base(&["x.weight", "transformer.model.x.weight"]);
        assert_eq!(Names::new(&both, "").find("model.x.weight"), None);
    }

    #[test]
    fn knows_what_a_model_type_calls_its_parts() {
        let disk = base(&["model.layers.3.block_sparse_moe.experts.1.w1.weight", "layers.4.self_attn.to_q.weight"]);
        let find = |model_type: &str, name: &str| Names::new(&disk, model_type).find(name);
        let (expert, query) =
            ("model.layers.3.mlp.experts.1.w1.weight", "model.language_model.layers.4.self_attn.q_proj.weight");
        assert_eq!(find("minimax", expert).as_deref(), Some("model.layers.3.block_sparse_moe.experts.1.w1.weight"));
        assert_eq!(find("cosmos3_omni", query).as_deref(), Some("layers.4.self_attn.to_q.weight"));
        assert_eq!(find("llama", query), None);
        assert_eq!(
            find("cosmos3_omni", "model.language_model.layers.x.self_attn.q_proj.weight"),
            None,
            "x is no number"
        );
        let known = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert!(known > 300 && TABLE.lines().all(|line| line.starts_with('#') || line.split('\t').count() == 4));
        let read = |line: &str| line.split('\t').nth(2).is_some_and(|part| Part::parse(part).is_some());
        assert!(TABLE.lines().all(|line| line.starts_with('#') || read(line)));
    }

    #[test]
    fn a_class_may_lack_what_stands_around_it() {
        let names = [
            "bert.encoder.layer.0.q.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            "a.x.y.weight",
            "b.x.y.weight",
        ];
        let disk = base(&names);
        let find = |model_type: &str, name: &str| Names::new(&disk, model_type).find(name);
        assert_eq!(find("bert", "encoder.layer.0.q.weight").as_deref(), Some(names[0]));
        assert_eq!(find("mixtral", "layers.0.mlp.gate.weight").as_deref(), Some(names[1]));
        assert_eq!(find("", "layers.0.mlp.gate.weight").as_deref(), Some(names[1]));
        assert_eq!(find("", "x.y.weight"), None, "two endings are a guess");
    }

    #[test]
    fn a_weight_may_be_rows_of_another() {
        let disk = base(&[
            "model.transformer.blocks.1.self_attn.att_proj.weight",
            "model.llm.layers.0.mlp.experts.w13_weight",
        ]);
        let names = Names::new(&disk, "molmo2");
        let rows = |module: &str, height, total| match names
            .place(&format!("model.language_model.layers.1.self_attn.{module}.weight"))
        {
            Some(Place::Rows(tensor, within)) if tensor == "model.transformer.blocks.1.self_attn.att_proj.weight" => {
                within.rows(height, total)
            }
            _ => None,
        };
        assert_eq!((rows("q_proj", 64, 128), rows("q_proj", 96, 128)), (Some(0..64), Some(0..96)));
        assert_eq!((rows("k_proj", 32, 128), rows("v_proj", 32, 128)), (Some(64..96), Some(96..128)));
        assert_eq!((rows("k_proj", 96, 128), rows("v_proj", 96, 128), rows("q_proj", 129, 128)), (None, None, None));
        assert_eq!(rows("o_proj", 64, 128), None);
        assert_eq!((Part::Equal(2, 3).rows(4, 12), Part::Equal(2, 3).rows(4, 13)), (Some(8..12), None));
        let mixed = Names::new(&disk, "inkling2").place("model.language_model.layers.0.mlp.experts.gate_up_proj");
        assert!(matches!(mixed, Some(Place::Mixed(tensors)) if tensors.len() == 1));
    }

    #[test]
    fn names_the_nearest() {
        let b =
            base(&["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]);
        assert_eq!(nearest(&b, "model.layers.0.self_attn.qq_proj.weight")[0], "model.layers.0.self_attn.q_proj.weight");
    }
}
