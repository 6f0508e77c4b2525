//! From a file and the environment to a [`Block`], or to everything that is wrong.
//!
//! Two layers, the later one wins: the YAML document, then the overrides `MILLRACE__…`. The
//! crate `config` puts the layers on top of each other; `millrace-core` says what they mean.
//!
//! The environment comes in as a value ([`Environment`]), so tests need no process environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use millrace_core::contract::block::agogosml::{self, Direction, Profile};
use millrace_core::contract::block::{Block, Problem, Problems};
use millrace_core::limits::DOCUMENT_BYTES_MAX;

mod layers;
mod yaml;

/// Names and values of environment variables.
pub type Environment = BTreeMap<String, String>;

/// The environment of this process; what is not UTF-8 is left out.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Why there is no block.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such file, or no right to read it.
    #[error("failed to read the block document {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nobody writes such a document.
    #[error("the block document {} is larger than {DOCUMENT_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It is not text.
    #[error("the block document {} is not UTF-8: byte {at} is the first that is not", path.display())]
    NotUtf8 {
        /// Which.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// It is not YAML, or not one document, or a key stands there twice.
    #[error("the block document {} is not valid YAML: {message}", path.display())]
    NotYaml {
        /// Which.
        path: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// Neither a file nor the environment says anything.
    #[error(
        "there is no block: give the path of its document, or set {} (profile agogosml)",
        agogosml::SELECTOR
    )]
    Nothing,
    /// It does not say what a block needs.
    #[error("in {}: {problems}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Problems,
    },
}

impl Error {
    /// What a process exits with (C-1): 2 for a wrong document, 1 if there is none to judge.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreadable { .. } => 1,
            Self::Nothing
            | Self::TooLarge { .. }
            | Self::NotUtf8 { .. }
            | Self::NotYaml { .. }
            | Self::Invalid { .. } => 2,
        }
    }

    /// Everything that is wrong, if the document could be read.
    pub fn problems(&self) -> Option<&Problems> {
        match self {
            Self::Invalid { problems, .. } => Some(problems),
            _ => None,
        }
    }
}

/// Reads the document at `path`, with the overrides of `environment`.
///
/// # Errors
/// See [`Error`].
pub fn load(path: &Path, environment: &Environment) -> Result<Block, Error> {
    let mut block = parse(path, &read(path)?, environment)?;
    // Everybody who gets the block may live in another folder than the document.
    let folder = path.parent().unwrap_or(Path::new(""));
    for schema in [&mut block.input.schema, &mut block.output.schema]
        .into_iter()
        .flatten()
    {
        let joined = folder.join(&*schema);
        *schema = std::path::absolute(&joined).unwrap_or(joined);
    }
    Ok(block)
}

/// The same for a document in memory; `path` is for messages only.
///
/// # Errors
/// See [`Error`].
pub fn parse(path: &Path, bytes: &[u8], environment: &Environment) -> Result<Block, Error> {
    let text = std::str::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
        path: path.to_owned(),
        at: error.valid_up_to(),
    })?;
    let document = yaml::read(text).map_err(|message| Error::NotYaml {
        path: path.to_owned(),
        message,
    })?;
    let (document, wrong) = layers::put(document, environment);
    problems_of(Block::parse(&document), wrong).map_err(|problems| Error::Invalid {
        path: path.to_owned(),
        problems,
    })
}

/// The block of a proxy: in the file, or without one in the environment of an agogosml deployment,
/// whose other wishes come along.
///
/// # Errors
/// See [`Error`].
pub fn of_proxy(
    path: Option<&Path>,
    direction: Direction,
    environment: &Environment,
) -> Result<(Block, Option<Profile>), Error> {
    if let Some(path) = path {
        return Ok((load(path, environment)?, None));
    }
    if !environment.contains_key(agogosml::SELECTOR) {
        return Err(Error::Nothing);
    }
    let invalid = |problems| Error::Invalid {
        path: "the environment".into(),
        problems,
    };
    let profile = agogosml::read(direction, environment).map_err(invalid)?;
    let (document, wrong) = layers::put(profile.document.clone(), environment);
    let block = problems_of(Block::parse(&document), wrong).map_err(invalid)?;
    Ok((block, Some(profile)))
}

/// The document as it stands in the file with the overrides in place, not yet judged: for
/// `millrace dev`, which fills in addresses before it starts anything.
///
/// # Errors
/// See [`Error`].
pub fn document(path: &Path, environment: &Environment) -> Result<serde_json::Value, Error> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| Error::NotUtf8 {
        path: path.to_owned(),
        at: error.valid_up_to(),
    })?;
    let document = yaml::read(text).map_err(|message| Error::NotYaml {
        path: path.to_owned(),
        message,
    })?;
    Ok(layers::put(document, environment).0)
}

/// What is wrong with overrides is reported together with what is wrong with the document.
fn problems_of(
    parsed: Result<Block, Problems>,
    mut wrong: Vec<Problem>,
) -> Result<Block, Problems> {
    match (parsed, wrong.is_empty()) {
        (parsed, true) => parsed,
        (parsed, false) => {
            wrong.extend(parsed.err().map(Problems::into_vec).unwrap_or_default());
            Err(Problems::some(wrong).expect("there is at least one"))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
