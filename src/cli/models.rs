//! Which base and which adapters a command means: what was typed, or what lies where training leaves it.

use std::path::{Path, PathBuf};

use qft::adapter::{Adapter, newest_checkpoint};
use qft::checkpoint::Locator;
use qft::error::{Error, escaped, shown};
use qft::export::{Overwrite, Provenance};
use qft::files::read_text;
use qft::store::Located;

use super::note;

/// Where training leaves its runs.
pub(super) const OUTPUT: &str = "output";

/// An adapter as it is typed: a directory or a Hub id, and a weight after `=`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AdapterSpec {
    spec: String,
    weight: f64,
}

impl std::str::FromStr for AdapterSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || Ok(Self { spec: text.to_owned(), weight: 1.0 });
        let Some((spec, weight)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else { return whole() };
        match weight.parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight != 0.0 => Ok(Self { spec: spec.to_owned(), weight }),
            Ok(_) => Err("the weight must be a finite number other than zero".to_owned()),
            Err(_) => whole(),
        }
    }
}

/// An opened adapter, and how it was named.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) adapter: Adapter,
    /// Its Hub id, if it was found by one.
    pub(super) repo: Option<String>,
}

/// Opens the newest checkpoint below `./output`.
pub(super) fn newest_adapter() -> qft::Result<Adapter> {
    let dir = newest_checkpoint(Path::new(OUTPUT))?;
    note(&format!("adapter: {} (the newest checkpoint below ./{OUTPUT})", shown(&dir)));
    Adapter::open(&dir, 1.0)
}

/// Opens the adapters that were named, or the newest checkpoint below `./output`.
pub(super) fn find_adapters(locator: &Locator, specs: &[AdapterSpec]) -> qft::Result<Vec<Found>> {
    if specs.is_empty() {
        return Ok(vec![Found { adapter: newest_adapter()?, repo: None }]);
    }
    let open = |AdapterSpec { spec, weight }: &AdapterSpec| {
        let Located { dir, repo, .. } = locator.model(spec, &mut downloading)?;
        Ok(Found { adapter: Adapter::open(&dir, *weight)?, repo })
    };
    specs.iter().map(open).collect()
}

/// Finds the base that was named, or the one that `adapter` was trained on.
pub(super) fn find_base(
    locator: &Locator,
    spec: Option<&str>,
    adapter: Option<&Adapter>,
) -> qft::Result<(PathBuf, Provenance)> {
    if let Some(spec) = spec {
        return locator.model(spec, &mut downloading).map(provenance);
    }
    let Some(adapter) = adapter else {
        return Err(Error::invalid("no base and no adapter was named", "name the model with --base"));
    };
    if let (Some(original), Some(named)) = (adapter.config.unquantized_base(), &adapter.config.base_model)
        && !Path::new(named).exists()
    {
        // Said before gigabytes are downloaded that no delta can be merged into.
        let problem = format!(
            "adapter_config.json of {} names {}, a copy of the base with weights of 4 or 8 bits",
            shown(&adapter.dir),
            escaped(named)
        );
        return Err(Error::unsupported(problem, format!("give the 16-bit model: --base {}", escaped(original))));
    }
    let mut first_error = None;
    for (spec, place) in named_bases(adapter) {
        match locator.model(&spec, &mut downloading) {
            Ok(located) => {
                let here = std::env::current_dir().unwrap_or_default();
                let dir = located.dir.strip_prefix(here).unwrap_or(&located.dir);
                note(&format!("base: {} ({place})", shown(dir)));
                return Ok(provenance(located));
            }
            Err(error) => first_error = first_error.or_else(|| Some(not_here(adapter, &spec, place, &error))),
        }
    }
    let dir = shown(&adapter.dir);
    Err(first_error
        .unwrap_or_else(|| Error::not_found(format!("{dir} does not name its base"), "name the base with --base")))
}

/// Says who named a base that can't be had. What helps with a Hub id is known where it was looked for; a path was that of
/// another machine.
fn not_here(adapter: &Adapter, spec: &str, place: &str, error: &Error) -> Error {
    let (problem, remedy) = error.split();
    let is_path = spec.starts_with(['.', '/', '~']) || spec.matches('/').count() > 1;
    let remedy = match remedy.filter(|_| !is_path) {
        Some(remedy) => format!("give the base with --base; or {remedy}"),
        None => "give the base with --base: its directory, or its Hub id".to_owned(),
    };
    let dir = shown(&adapter.dir);
    Error::new(
        error.kind(),
        format!("{place} of {dir} names {} as the base, which is not available here: {problem}", escaped(spec)),
        remedy,
    )
}

fn provenance(located: Located) -> (PathBuf, Provenance) {
    (located.dir, Provenance { repo: located.repo, revision: located.revision })
}

/// The bases that an adapter names: in PEFT's config, and in ms-swift's args.json beside it.
fn named_bases(adapter: &Adapter) -> Vec<(String, &'static str)> {
    let config = adapter.config.base_model.as_ref().map(|base| {
        let at_revision = adapter.config.revision.as_ref().filter(|_| !Path::new(base).exists());
        (at_revision.map_or_else(|| base.clone(), |revision| format!("{base}@{revision}")), "adapter_config.json")
    });
    let args = read_text(&adapter.dir.join("args.json")).ok();
    let args = args.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let model = args.and_then(|args| Some((args.get("model")?.as_str()?.to_owned(), "args.json")));
    config.into_iter().chain(model).collect()
}

fn downloading(file: &str) {
    note(&format!("downloading {}", escaped(file)));
}

/// What two flags say of an existing destination.
pub(super) fn overwrite(model: bool, others: bool) -> Overwrite {
    match (model, others) {
        (false, _) => Overwrite::No,
        (true, false) => Overwrite::Model,
        (true, true) => Overwrite::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_have_a_weight() {
        let parse = |text: &str| text.parse::<AdapterSpec>().map(|a| (a.spec, a.weight));
        assert_eq!(parse("a/b=0.5"), Ok(("a/b".to_owned(), 0.5)));
        assert_eq!(parse("a/b=-1e-1"), Ok(("a/b".to_owned(), -0.1)));
        assert_eq!(parse("run=v2/checkpoint-1"), Ok(("run=v2/checkpoint-1".to_owned(), 1.0)));
        assert!(parse("a=0").is_err() && parse("a=NaN").is_err());
    }
}
