//! The registry's metadata string: which release is the root, how far seeding came, and what
//! the controller asks an owner to commit (E4, R13).
//!
//! `mg1;root=r11-9f3c1a2b;s=seeded:4;r=r12-77ab0e41,k=S,e=24,at=812,pr=r11-9f3c1a2b;c=…`
//!
//! Invariant: decoding is strict, as in [`super::commit`].

pub use super::commit::Error;
use super::commit::{Fields, UnknownKeys, decimal, name_of, parts_of, put, seal, token_of, wrong};
use crate::token::{ReleaseId, Token};

/// What stands in the registry beside a partition.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    /// The release that owns everything no adoption tells about.
    pub root: ReleaseId,
    /// How far the starter came; on partition 0 (D-G12).
    pub seeding: Option<Seeding>,
    /// What an owner shall commit.
    pub release: Option<Grants>,
}

/// Progress of the first start (D-G12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Seeding {
    /// `Live(1)` is being committed to partitions 0..n.
    Seeding(u32),
    /// Partitions 0..n have a token; later ones are seeded by their owners.
    Seeded(u32),
}

/// One grant, or one for each of two releases.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Grants {
    /// The first.
    pub first: Granted,
    /// Another one, for the other release.
    pub second: Option<Granted>,
}

impl Grants {
    /// The grant for `release`.
    pub fn of(&self, release: &ReleaseId) -> Option<&Granted> {
        [Some(&self.first), self.second.as_ref()]
            .into_iter()
            .flatten()
            .find(|granted| granted.release == *release)
    }
}

/// What the owner in one release shall commit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Granted {
    /// Whose owner.
    pub release: ReleaseId,
    /// Shadow or Live, never Sealed.
    pub token: Token,
}

impl Grant {
    /// The string to commit.
    ///
    /// # Panics
    /// If it grants a seal: our mistake.
    pub fn encode(&self) -> String {
        let mut text = format!("mg1;root={}", self.root);
        match self.seeding {
            None => {}
            Some(Seeding::Seeding(n)) => put(&mut text, format_args!(";s=seeding:{n}")),
            Some(Seeding::Seeded(n)) => put(&mut text, format_args!(";s=seeded:{n}")),
        }
        if let Some(grants) = &self.release {
            text.push_str(";r=");
            grants.first.encode(&mut text);
            if let Some(second) = &grants.second {
                text.push('|');
                second.encode(&mut text);
            }
        }
        seal(&mut text);
        text
    }

    /// Reads a string.
    pub fn decode(text: &str, unknown_keys: UnknownKeys) -> Result<Self, Error> {
        let mut fields = Fields::open(text, "mg1;", &["root", "s", "r", "c"])?;
        let root = ReleaseId::new(fields.required("root")?).map_err(|_| wrong("root"))?;
        let seeding = fields.optional("s", seeding)?;
        let release = fields.optional("r", grants)?;
        fields.end(unknown_keys)?;
        Ok(Self {
            root,
            seeding,
            release,
        })
    }
}

impl Granted {
    fn encode(&self, text: &mut String) {
        assert!(!matches!(self.token, Token::Sealed { .. }), "{self:?}");
        let (kind, at, peer) = parts_of(&self.token);
        put(
            text,
            format_args!(
                "{},k={kind},e={},at={at},pr={}",
                self.release,
                self.token.epoch(),
                name_of(peer)
            ),
        );
    }

    fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let release = ReleaseId::new(parts.next()?).ok()?;
        let mut field = |key: &str| parts.next()?.strip_prefix(key)?.strip_prefix('=');
        let (kind, epoch, at, peer) = (field("k")?, field("e")?, field("at")?, field("pr")?);
        let token = token_of(kind, epoch, at, peer).ok()?;
        let grantable = parts.next().is_none() && kind != "X";
        grantable.then_some(Self { release, token })
    }
}

fn seeding(text: &str) -> Option<Seeding> {
    let (word, n) = text.split_once(':')?;
    let n = decimal(n)?;
    match word {
        "seeding" => Some(Seeding::Seeding(n)),
        "seeded" => Some(Seeding::Seeded(n)),
        _ => None,
    }
}

fn grants(text: &str) -> Option<Grants> {
    let (first, second) = match text.split_once('|') {
        None => (text, None),
        Some((first, second)) => (first, Some(Granted::decode(second)?)),
    };
    let first = Granted::decode(first)?;
    if second
        .as_ref()
        .is_some_and(|second| second.release == first.release)
    {
        return None;
    }
    Some(Grants { first, second })
}

#[cfg(test)]
mod tests;
