//! The record of a release's inputs, and whether the audit has the same ones. The audit finds out whether the record is
//! true.

use std::path::{Path, PathBuf};

use crate::adapter::Adapter;
use crate::digest::sha256;
use crate::error::{Error, Result, shown};
use crate::files::read_text;
use crate::manifest::MANIFEST;
use crate::manifest::claims::{ClaimedAdapter, Claims};

/// What the manifest of a release says of how it was made.
#[derive(Debug)]
pub struct Recipe {
    /// A directory, or one GGUF file.
    pub(super) release: PathBuf,
    /// `None` if there is no manifest that is JSON; of a single file, if the one beside it does not list it.
    pub(super) claims: Option<Claims>,
    /// `None` if there is no list of them.
    pub(super) adapters: Option<Vec<ClaimedAdapter>>,
}

const REMEDY: &str = "name each adapter with ⟦adapter⟧, as it was given to export";

impl Recipe {
    /// Of the release at `release`, a directory or one GGUF file.
    pub fn read(release: &Path) -> Self {
        let file = release.file_name().filter(|_| release.is_file()).map(|name| name.to_string_lossy());
        let manifest = if file.is_some() { release.with_file_name(MANIFEST) } else { release.join(MANIFEST) };
        let claims = read_text(&manifest).ok().and_then(|text| Claims::parse(&text).ok());
        let claims = claims.filter(|claims| file.as_ref().is_none_or(|file| claims.lists(file)));
        let adapters = claims.as_ref().and_then(Claims::adapters);
        Self { release: release.to_owned(), claims, adapters }
    }

    /// Whether the manifest lists the adapters: none, or some.
    pub fn lists_adapters(&self) -> bool {
        self.adapters.is_some()
    }

    /// The adapters of the release where none is named: there are none, or there is one, and it is `newest`.
    ///
    /// # Errors
    ///
    /// Where they have to be named: nothing lists them, they are several, or the one is not `newest`, which may be an
    /// error itself.
    pub fn unnamed_adapters(&self, newest: impl FnOnce() -> Result<Adapter>) -> Result<Vec<Adapter>> {
        let refused =
            |problem: &str, remedy: &str| Error::invalid(format!("{} {problem}", shown(&self.release)), remedy);
        let ClaimedAdapter { weight, sha256: digest } = match self.adapters.as_deref() {
            None => {
                let problem = format!("has no {MANIFEST} that lists its adapters");
                return Err(refused(&problem, &format!("{REMEDY}; if it has none, name the model with ⟦base⟧")));
            }
            Some([]) => return Ok(Vec::new()),
            Some([one]) => one,
            Some(many) => return Err(refused(&format!("was made from {} adapters", many.len()), REMEDY)),
        };
        let unnamed = |error: Error| refused(&format!("was made from an adapter, and {}", error.split().0), REMEDY);
        let mut adapter = newest().map_err(unnamed)?;
        if digest.as_ref() != Some(&sha256(adapter.file.bytes())) {
            let problem = format!("was made from another adapter than {}", shown(&adapter.dir));
            return Err(refused(&problem, REMEDY));
        }
        adapter.weight = *weight;
        Ok(vec![adapter])
    }

    /// In what `adapters` are not those that the manifest lists.
    pub(super) fn deviations(&self, adapters: &[Adapter]) -> Vec<String> {
        let Some(listed) = &self.adapters else { return Vec::new() };
        let count = |n: usize| if n == 1 { "1 adapter".to_owned() } else { format!("{n} adapters") };
        let mut notes = Vec::new();
        if adapters.len() != listed.len() {
            notes.push(format!("{} given; {MANIFEST} lists {}", count(adapters.len()), count(listed.len())));
        }
        for (adapter, ClaimedAdapter { weight, sha256: digest }) in adapters.iter().zip(listed) {
            let dir = adapter.dir.display();
            if digest.as_ref().is_some_and(|digest| *digest != sha256(adapter.file.bytes())) {
                notes.push(format!(
                    "{dir} is not the adapter in {MANIFEST}: {} has another SHA-256",
                    adapter.file.name()
                ));
            }
            if adapter.weight.to_bits() != weight.to_bits() {
                notes.push(format!("{dir} has the weight {}; {MANIFEST} gives it {weight}", adapter.weight));
            }
        }
        notes
    }
}
