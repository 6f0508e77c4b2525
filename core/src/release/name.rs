//! The parts of a release's name (T1): `r<generation>-<hash8>[-<attempt>]`.
//!
//! Invariant: a name that is read is the name that is written.

use std::fmt;

use crate::token::ReleaseId;

/// What a release id of the controller says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    /// Of the document that first asked for it.
    pub generation: u64,
    /// First 8 hexadecimal digits of SHA-256 over what is released.
    pub hash8: String,
    /// 1 for the first; later ones are written behind the hash.
    pub attempt: u32,
}

impl Name {
    /// Reads an id; `None` if it was not named by the controller.
    pub fn read(id: &ReleaseId) -> Option<Self> {
        let mut parts = id.as_str().strip_prefix('r')?.split('-');
        let name = Self {
            generation: parts.next()?.parse().ok()?,
            hash8: parts.next()?.to_owned(),
            attempt: parts.next().map_or(Some(1), |text| text.parse().ok())?,
        };
        let plain = name.hash8.len() == 8 && name.hash8.bytes().all(|c| c.is_ascii_hexdigit());
        (plain && name.to_string() == id.as_str()).then_some(name)
    }

    /// The id.
    ///
    /// # Panics
    /// If the hash is no 8 letters or digits: our mistake.
    pub fn id(&self) -> ReleaseId {
        ReleaseId::new(&self.to_string()).expect("a short hash makes a short plain name")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}-{}", self.generation, self.hash8)?;
        if self.attempt > 1 {
            write!(f, "-{}", self.attempt)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t1_names_are_read_as_they_are_written() {
        let check = |text: &str, expect: Option<(u64, u32)>| {
            let id = ReleaseId::new(text).unwrap();
            let read = Name::read(&id);
            assert_eq!(
                read.as_ref().map(|n| (n.generation, n.attempt)),
                expect,
                "{text}"
            );
            assert!(read.is_none_or(|name| name.id() == id));
        };
        check("r12-77ab0e41", Some((12, 1)));
        check("r12-77ab0e41-2", Some((12, 2)));
        check("r12-77ab0e41-1", None);
        check("r012-77ab0e41", None);
        check("r12-77ab0e4", None);
        check("r12-77ab0e41-2-3", None);
        check("dev", None);
    }
}
