//! What the app posts to the output in push mode (A-P1..A-P3, A-S4).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::{AnswerHead, cloud_events};
use crate::outcome::{Item, Outcome, Output};

/// The header that carries the correlation, either way.
pub const CORRELATION: &str = "millrace-correlation";

/// A result that the app posted.
#[derive(Clone, PartialEq, Debug)]
pub struct Pushed {
    /// The call that it answers; `None`: the app did not say.
    pub correlation: Option<[u8; 16]>,
    /// The result.
    pub output: Output,
}

/// Why a post is no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The correlation is none of ours.
    #[error("`Millrace-Correlation` is not what the request carried")]
    Correlation,
    /// A result header is wrong, or it is no CloudEvent where results are.
    #[error("{0}")]
    Header(Cow<'static, str>),
}

/// The correlation as both headers spell it.
pub fn correlation_text(correlation: &[u8; 16]) -> String {
    URL_SAFE_NO_PAD.encode(correlation)
}

/// The correlation that a post names.
///
/// # Errors
/// If it is none of ours.
pub fn read_correlation(headers: &[(&str, &[u8])]) -> Result<Option<[u8; 16]>, Malformed> {
    let named = headers
        .iter()
        .rfind(|(name, _)| name.eq_ignore_ascii_case(CORRELATION));
    let Some((_, text)) = named else {
        return Ok(None);
    };
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_ascii()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    bytes.map(Some).ok_or(Malformed::Correlation)
}

/// Reads a posted result. Its body is the value, byte for byte, whatever its media type says;
/// with `app.contract.content: CloudEvents` it is a CloudEvent in either form (A-C2).
///
/// # Errors
/// See [`Malformed`].
pub fn read_push(
    headers: &[(&str, &[u8])],
    body: &Bytes,
    are_cloud_events: bool,
) -> Result<Pushed, Malformed> {
    let correlation = read_correlation(headers)?;
    let head = AnswerHead::read(200, headers.iter().copied());
    if head.too_many_headers {
        return Err(Malformed::Header("it has too many headers".into()));
    }
    let output = if are_cloud_events {
        cloud_events::answer::result(&head, body).map_err(Malformed::Header)?
    } else {
        let value = (!head.out_tombstone).then(|| body.clone());
        let wrong = |why: &'static str| Malformed::Header(why.into());
        head.output(value).map_err(wrong)?
    };
    Ok(Pushed {
        correlation,
        output,
    })
}

/// What a 2xx of the app means in push mode: its results, if there are any, were posted before.
pub(super) fn accepted() -> Outcome {
    Outcome::Items(vec![Item::Filter])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::OutputKey;

    const HEADER: (&str, &[u8]) = ("Millrace-Correlation", b"q3VZ0n8mTk2Jx1cR7eYbLw");

    fn read(headers: &[(&str, &[u8])], body: &'static [u8]) -> Result<Pushed, Malformed> {
        read_push(headers, &Bytes::from_static(body), false)
    }

    #[test]
    fn a_p1_the_correlation_comes_back_as_it_was_sent() {
        let pushed = read(&[HEADER], b"v").unwrap();
        let correlation = pushed.correlation.unwrap();
        assert_eq!(correlation_text(&correlation).as_bytes(), HEADER.1);
        assert_eq!(read(&[], b"v").unwrap().correlation, None);
        for wrong in [
            &b""[..],
            b"q3VZ0n8mTk2Jx1cR7eYbL",
            b"not base64 at all!!!!!",
        ] {
            let read = read(&[("millrace-correlation", wrong)], b"v");
            assert_eq!(read, Err(Malformed::Correlation), "{wrong:?}");
        }
    }

    #[test]
    fn a_k2_the_body_is_the_value_byte_for_byte() {
        let form: (&str, &[u8]) = ("content-type", b"application/x-www-form-urlencoded");
        let pushed = read(&[HEADER, form], b"a=1&b=%ff").unwrap();
        assert_eq!(pushed.output.value.as_deref(), Some(&b"a=1&b=%ff"[..]));
        assert_eq!(pushed.output.key, OutputKey::Inherit);
        assert!(pushed.output.headers.is_empty());
        // Nor do results in JSON mean several: one post is one result.
        let several: (&str, &[u8]) = ("content-type", b"application/vnd.millrace.results+json");
        let pushed = read(&[HEADER, several], b"{\"outputs\":[]}").unwrap();
        assert_eq!(
            pushed.output.value.as_deref(),
            Some(&b"{\"outputs\":[]}"[..])
        );
        assert_eq!(
            read(&[], b"").unwrap().output.value.as_deref(),
            Some(&b""[..])
        );
    }

    #[test]
    fn a_c2_a_posted_cloud_event_keeps_its_form() {
        let read = |headers: &[(&str, &[u8])], body: &'static str| {
            read_push(headers, &Bytes::from_static(body.as_bytes()), true)
        };
        let binary: [(&str, &[u8]); 5] = [
            HEADER,
            ("ce-specversion", b"1.0"),
            ("ce-id", b"s-1"),
            ("ce-source", b"/apps/score"),
            ("ce-type", b"order.scored"),
        ];
        let output = read(&binary, "v").unwrap().output;
        assert!(output.cloud_event);
        assert_eq!(output.value.as_deref(), Some(&b"v"[..]));
        assert_eq!(output.headers[1].0, "ce_id");
        assert_eq!(output.headers[1].1.as_deref(), Some(&b"s-1"[..]));
        let structured: [(&str, &[u8]); 2] =
            [HEADER, ("content-type", b"application/cloudevents+json")];
        let event = r#"{"specversion":"1.0","id":"s","source":"/a","type":"t","data":1}"#;
        let output = read(&structured, event).unwrap().output;
        assert_eq!(output.value.as_deref(), Some(event.as_bytes()));
        for (headers, body) in [
            (&structured[..], "{}"),
            (&binary[..3], "v"),
            (&[HEADER], "v"),
        ] {
            let wrong = read(headers, body);
            assert!(matches!(wrong, Err(Malformed::Header(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_p3_result_headers_apply() {
        let headers: [(&str, &[u8]); 4] = [
            ("millrace-out-topic", b"other"),
            ("millrace-out-key", b"azI"),
            ("millrace-out-header-model", b"v12"),
            ("millrace-out-tombstone", b"true"),
        ];
        let output = read(&headers, b"ignored").unwrap().output;
        assert_eq!(output.topic.as_deref(), Some("other"));
        assert_eq!(output.key, OutputKey::Bytes(Bytes::from_static(b"k2")));
        assert_eq!(output.headers[0].0, "model");
        assert_eq!(output.value, None);
        let wrong = read(&[("millrace-out-topic", b"a b")], b"v");
        assert!(matches!(wrong, Err(Malformed::Header(_))), "{wrong:?}");
    }
}
