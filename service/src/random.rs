//! Random bits of the system, for what others must not guess.

use std::fs::File;
use std::io::{self, Read};

/// 128 random bits.
///
/// # Errors
/// If the system has no source of them.
pub fn bits() -> io::Result<[u8; 16]> {
    let mut bits = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_equal() {
        let (one, other) = (bits().expect("a system"), bits().expect("a system"));
        assert_ne!(one, other);
    }
}
