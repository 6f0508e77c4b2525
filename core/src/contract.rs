//! Wire forms: versioned, golden-tested, and the only types that are serialized
//! (architecture invariant 13).

pub mod app;
pub mod block;
pub mod canonical;
pub mod commit;
pub mod grant;
pub mod intent;
pub mod publish;
pub mod result;

/// The longest beginning of `text` of at most `bytes_max` bytes that ends between characters.
pub(crate) fn beginning(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}
