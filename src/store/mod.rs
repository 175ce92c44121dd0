//! Where files come from: directories, the caches of the Hugging Face Hub and of `ModelScope`, downloads. Knows names of
//! files, and not what a model is: `checkpoint` says which of them it needs.

mod cache;
mod environment;
mod failure;
mod fetch;
mod http;
mod hub;
mod id;
mod local;
mod modelscope;
mod near;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use environment::Environment;
pub use hub::Hub;
pub use id::Id;
pub(crate) use id::is_part;
pub use local::directory;
pub use modelscope::ModelScope;
pub(crate) use near::{nearly, no_such_directory};

use crate::error::Result;

/// A directory of files, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The directory.
    pub dir: PathBuf,
    /// The Hub id without its revision, if the directory was found by id or lies in a Hugging Face cache.
    pub repo: Option<String>,
    /// The commit, if the directory is a snapshot of a Hugging Face cache.
    pub revision: Option<String>,
}

/// A place that files come from by the id of a repository.
pub trait Source {
    /// Where it keeps what it fetched on this machine.
    fn cache(&self) -> &Path;

    /// The directories of its cache that belong to `id`, the preferred one first. They may be incomplete.
    fn cached(&self, id: &Id) -> Vec<Located>;

    /// What it holds of `id`, to be fetched; `None` if it is a cache alone.
    ///
    /// # Errors
    ///
    /// If the place can't be reached, or has no such repository or revision, or refuses it.
    fn open<'a>(&'a self, _id: &'a Id) -> Result<Option<Box<dyn Remote + 'a>>> {
        Ok(None)
    }
}

/// One commit of a repository elsewhere, whose files can be fetched one by one.
pub trait Remote {
    /// Its name and its place: "org/name on <https://huggingface.co>".
    fn name(&self) -> String;

    /// The names of its files, and their sizes where it says them.
    fn files(&self) -> &BTreeMap<String, Option<u64>>;

    /// The directory that fetched files come to.
    fn dir(&self) -> &Path;

    /// Fetches one file into [`Self::dir`], whole or not at all.
    ///
    /// # Errors
    ///
    /// If the file can't be had or can't be written, or is not what was listed.
    fn fetch(&self, name: &str) -> Result<()>;

    /// Enters the commit in the cache under the revision that was asked for, once all files are there.
    ///
    /// # Errors
    ///
    /// If the cache can't be written.
    fn publish(&self) -> Result<Located>;
}
