//! Reads what a token endpoint answers (RFC 6749, sections 5.1 and 5.2).
//!
//! The end of a token is what its own claim `exp` says, if it is a JSON Web Token: brokers judge
//! by that. `expires_in` of the answer counts where the token does not tell, and where our clock
//! is so wrong that the token would be over already. Nothing is verified: brokers do that.
//!
//! Invariant: no part of a token comes out in an error.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::AuthToken;
use crate::limits::{AUTH_TOKEN_BYTES_MAX, AUTH_TOKEN_LIFE_MAX, TOKEN_REFUSAL_CHARS_MAX};
use crate::time::Time;

/// Why an answer holds no token that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// An error of the endpoint.
    #[error("it answers {0}")]
    Refused(String),
    /// No JSON object.
    #[error("its answer is not a JSON object")]
    NotJson,
    /// No `access_token` of type Bearer.
    #[error("its answer has no access_token of type Bearer")]
    NoToken,
    /// Characters that no token has, or too many.
    #[error(
        "its token has characters that no token has, or more than {AUTH_TOKEN_BYTES_MAX} of them"
    )]
    Unusable,
    /// Neither `exp` nor `expires_in`.
    #[error("neither its token (exp) nor its answer (expires_in) says when the token ends")]
    Endless,
    /// It is over.
    #[error("its token has ended already; do the clocks agree?")]
    Ended,
}

/// Reads an answer with this HTTP status; `client` is the principal of a token that names none.
///
/// # Errors
/// See [`Error`].
pub fn read(status: u16, body: &[u8], client: &str, now: Time) -> Result<AuthToken, Error> {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    if status != 200 {
        return Err(Error::Refused(refusal(status, answer.as_ref())));
    }
    let answer = answer.filter(Value::is_object).ok_or(Error::NotJson)?;
    let bearer = |kind: &Value| {
        kind.as_str()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"))
    };
    let text = answer["access_token"].as_str().ok_or(Error::NoToken)?;
    if !answer.get("token_type").is_none_or(bearer) {
        return Err(Error::NoToken);
    }
    let usable = |byte: u8| byte.is_ascii_graphic();
    if text.is_empty() || text.len() > AUTH_TOKEN_BYTES_MAX || !text.bytes().all(usable) {
        return Err(Error::Unusable);
    }
    let claims = claims(text).unwrap_or(Value::Null);
    let by_claim = claims["exp"]
        .as_f64()
        .map(|exp| exp - now.wall_ms as f64 / 1_000.0);
    let by_answer = seconds(&answer["expires_in"]);
    if by_claim.is_none() && by_answer.is_none() {
        return Err(Error::Endless);
    }
    let lasts = |left: &f64| *left > 0.0;
    let left = by_claim.filter(lasts).or(by_answer.filter(lasts));
    let left = left.ok_or(Error::Ended)?;
    Ok(AuthToken {
        principal: claims["sub"].as_str().unwrap_or(client).to_owned(),
        text: text.to_owned(),
        life: Duration::from_secs_f64(left.min(AUTH_TOKEN_LIFE_MAX.as_secs_f64())),
    })
}

/// The claims of a JSON Web Token; `None` if it is something else.
fn claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let json = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok().filter(Value::is_object)
}

/// Some endpoints write the number as text.
fn seconds(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|seconds: &f64| seconds.is_finite())
}

/// What the endpoint says about its refusal, in one line.
fn refusal(status: u16, answer: Option<&Value>) -> String {
    let said = |name: &str| {
        let text = answer?.get(name)?.as_str()?;
        let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        Some(line.take(TOKEN_REFUSAL_CHARS_MAX).collect::<String>())
    };
    match (said("error"), said("error_description")) {
        (Some(error), Some(description)) => format!("{status}: {error} ({description})"),
        (Some(said), None) | (None, Some(said)) => format!("{status}: {said}"),
        (None, None) => format!("{status}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Time = Time {
        boot: Duration::from_secs(5),
        wall_ms: 1_000_000,
    };

    fn jwt(claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "none"})), part(claims))
    }

    fn check(answer: &Value, expect: Result<(&str, u64), Error>) {
        let read = read(200, answer.to_string().as_bytes(), "client", NOW);
        let read = read.map(|token| (token.principal, token.life.as_secs()));
        assert_eq!(
            read,
            expect.map(|(who, life)| (who.to_owned(), life)),
            "{answer}"
        );
    }

    #[test]
    fn the_life_of_a_token_is_what_it_says_itself_else_what_the_answer_says() {
        let token = jwt(&json!({"sub": "me", "exp": 1_060}));
        check(
            &json!({"access_token": token, "token_type": "Bearer"}),
            Ok(("me", 60)),
        );
        check(
            &json!({"access_token": token, "expires_in": 600}),
            Ok(("me", 60)),
        );
        let silent = jwt(&json!({"sub": "me"}));
        check(
            &json!({"access_token": silent, "expires_in": "90"}),
            Ok(("me", 90)),
        );
        check(
            &json!({"access_token": "opaque", "expires_in": 90}),
            Ok(("client", 90)),
        );
        check(
            &json!({"access_token": "a.b.c", "expires_in": 90}),
            Ok(("client", 90)),
        );
        let endless = jwt(&json!({"exp": 1e18}));
        let most = AUTH_TOKEN_LIFE_MAX.as_secs();
        check(&json!({"access_token": endless}), Ok(("client", most)));
    }

    #[test]
    fn f_18_a_token_that_our_clock_calls_over_lives_as_long_as_the_answer_says() {
        let token = jwt(&json!({"sub": "me", "exp": 900}));
        check(&json!({"access_token": token}), Err(Error::Ended));
        check(
            &json!({"access_token": token, "expires_in": 0}),
            Err(Error::Ended),
        );
        check(
            &json!({"access_token": token, "expires_in": 60}),
            Ok(("me", 60)),
        );
    }

    #[test]
    fn an_answer_without_a_usable_token_says_what_is_wrong_with_it() {
        check(&json!([]), Err(Error::NotJson));
        check(&json!({"expires_in": 60}), Err(Error::NoToken));
        check(
            &json!({"access_token": "a", "token_type": "mac"}),
            Err(Error::NoToken),
        );
        check(&json!({"access_token": "a"}), Err(Error::Endless));
        check(
            &json!({"access_token": "a", "expires_in": true}),
            Err(Error::Endless),
        );
        for text in [
            String::new(),
            "a b".to_owned(),
            "ä".to_owned(),
            "a".repeat(AUTH_TOKEN_BYTES_MAX + 1),
        ] {
            check(
                &json!({"access_token": text, "expires_in": 60}),
                Err(Error::Unusable),
            );
        }
        assert_eq!(read(200, b"<html>", "client", NOW), Err(Error::NotJson));
    }

    #[test]
    fn a_refusal_is_quoted_in_one_short_line() {
        let quoted = |status, body: &str| {
            read(status, body.as_bytes(), "client", NOW)
                .unwrap_err()
                .to_string()
        };
        let both = json!({"error": "invalid_client", "error_description": "unknown\nclient"});
        assert_eq!(
            quoted(401, &both.to_string()),
            "it answers 401: invalid_client (unknown client)"
        );
        assert_eq!(quoted(503, "<html>"), "it answers 503");
        assert_eq!(quoted(302, "{}"), "it answers 302");
        let long = json!({"error": "x".repeat(10_000)});
        assert!(quoted(400, &long.to_string()).len() < 300);
    }
}
