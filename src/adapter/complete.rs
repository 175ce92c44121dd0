//! Completeness: what the config says that an adapter has, and its file lacks. A file that was cut off or saved in part
//! must not count as a complete one.

use std::collections::BTreeSet;

use super::Adapter;
use super::keys::Part;
use super::resolve::{Module, Resolver};

type Modules<'m, 'a> = [((String, usize), Module<'a>)];

/// Reports what is missing of `adapter`, whose tensors are `modules`.
pub(super) fn check(resolver: &mut Resolver<'_>, adapter: &Adapter, modules: &Modules<'_, '_>) {
    saved_modules(resolver, adapter, modules);
    let has_rows = modules.iter().any(|(_, module)| module.parts.contains_key(&Part::TokenRows));
    if !adapter.config.token_indices.is_empty() && !has_rows {
        resolver.problem("trainable_token_indices", "is set in adapter_config.json, but the rows are missing");
    }
    if adapter.config.lora_bias {
        biases(resolver, modules);
    }
    targets(resolver, adapter, modules);
}

/// Each of `modules_to_save` that the base has must be there. PEFT adds names that no module has.
fn saved_modules(resolver: &mut Resolver<'_>, adapter: &Adapter, modules: &Modules<'_, '_>) {
    let lies_in = |path: &str, name: &str| format!(".{path}.").contains(&format!(".{name}."));
    for name in &adapter.config.modules_to_save {
        let there = modules
            .iter()
            .any(|((path, _), m)| lies_in(path, name) && m.parts.keys().any(|part| matches!(part, Part::Value(_))));
        let in_base = resolver.base.tensors.keys().any(|tensor| lies_in(tensor, name));
        if in_base && !there {
            resolver.problem(name, "is in modules_to_save, but its values are missing");
        }
    }
}

fn biases(resolver: &mut Resolver<'_>, modules: &Modules<'_, '_>) {
    for ((path, _), module) in modules {
        if module.parts.contains_key(&Part::B) && !module.parts.contains_key(&Part::BBias) {
            resolver.problem(path, "lora_bias is set, but lora_B.bias is missing");
        }
    }
}

/// Warns where `target_modules` names layers of the base that the adapter has nothing for. A warning only: a model
/// class may not have all that the file has.
fn targets(resolver: &mut Resolver<'_>, adapter: &Adapter, modules: &Modules<'_, '_>) {
    let names = &adapter.config.target_modules;
    let is_target = |path: &str| names.iter().any(|name| path == name || path.ends_with(&format!(".{name}")));
    let changed = resolver.tensors.iter().filter(|(_, source)| source.is_changed());
    let touched: BTreeSet<String> = changed.map(|(tensor, _)| model_of(tensor).to_owned()).collect();
    let mut missing = Vec::new();
    for (tensor, base) in &resolver.base.tensors {
        let Some(path) = tensor.strip_suffix(".weight").filter(|path| base.shape().len() == 2 && is_target(path))
        else {
            continue;
        };
        // A base may hold other models too, whose layers have the same names: a talker beside a thinker.
        if !touched.contains(model_of(path)) {
            continue;
        }
        let untouched = resolver.tensors.get(tensor).is_some_and(|source| !source.is_changed());
        if untouched && !path.contains(".experts.") && !adapter.config.saves(path) {
            missing.push(path.to_owned());
        }
    }
    if let Some(first) = missing.first().filter(|_| !modules.is_empty()) {
        let first = crate::error::escaped(first);
        let count = missing.len();
        resolver
            .warnings
            .push(format!("target_modules names {count} layers of the base that have no delta: {first} ..."));
    }
}

/// What stands before a path's first number: the model that its layer is one of.
fn model_of(path: &str) -> &str {
    let first = path.split('.').find(|part| part.bytes().all(|b| b.is_ascii_digit()));
    // The part lies in the path, so the distance of their addresses is its place.
    first.map_or("", |part| &path[..part.as_ptr() as usize - path.as_ptr() as usize])
}
