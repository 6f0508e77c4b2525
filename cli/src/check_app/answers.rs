//! Reads what an app answered: the negotiation document, refusals, and successes that are none.

use millrace_core::contract::app::Offer;
use millrace_core::contract::app::offer::CONTRACT;
use millrace_core::outcome::{Class, Failure, FailureKind, Item, Outcome};
use serde::Deserialize;

use super::findings::Notes;
use super::probe::Asked;
use crate::http::Answer;

/// Reads `GET /.well-known/millrace` more strictly than the input does.
pub(super) fn negotiated(body: &[u8], notes: &mut Notes) -> Option<Offer> {
    let about = match Offer::read(body) {
        Ok(about) => about,
        Err(error) => {
            notes.fail(format!("the negotiation document cannot be read: {error}"));
            return None;
        }
    };
    if about.contract != CONTRACT {
        notes.fail(format!(
            "`contract` is {:?}; we speak {CONTRACT:?}",
            about.contract
        ));
    }
    if about.max_batch == Some(0) {
        notes.fail("`max_batch` is 0");
    }
    for (name, values, known) in [
        ("modes", &about.modes, ["reply", "push"]),
        ("requests", &about.requests, ["single", "batch"]),
        ("content", &about.content, ["raw", "cloudevents"]),
    ] {
        for value in values
            .iter()
            .filter(|value| !known.contains(&value.as_str()))
        {
            notes.fail(format!(
                "`{name}` lists {value:?}; known: {}",
                known.join(", ")
            ));
        }
    }
    if !about.modes.is_empty() && !about.modes.iter().any(|mode| mode == "reply") {
        notes.remark("the app offers push mode only, which this version does not run");
    }
    Some(about)
}

/// Why the whole call or its only event failed.
pub(super) fn failure(outcome: &Outcome) -> Option<&Failure> {
    match outcome {
        Outcome::Items(items) => match items.as_slice() {
            [Item::Failed(failure)] => Some(failure),
            _ => None,
        },
        Outcome::Failed(failure) | Outcome::TooLarge(failure) => Some(failure),
        Outcome::Abandoned => None,
    }
}

/// What is wrong with the form of an answer to an odd but harmless event.
pub(super) fn ill_formed(asked: &Asked) -> Option<String> {
    let failure = failure(&asked.outcome)?;
    let wrong = failure.kind == FailureKind::Malformed
        || failure.class == Class::Misconfigured
        || asked.answer.status == 500;
    wrong.then(|| {
        format!(
            "{}; answer it, filter it (204) or refuse it (400, 422)",
            describe(asked)
        )
    })
}

pub(super) fn describe(asked: &Asked) -> String {
    let status = asked.answer.status;
    match failure(&asked.outcome) {
        None => format!("status {status}"),
        Some(failure) if failure.message.is_empty() => {
            format!("status {status} ({:?})", failure.class)
        }
        Some(failure) => {
            let message: String = failure.message.chars().take(200).collect();
            format!("status {status} ({:?}: {message})", failure.class)
        }
    }
}

pub(super) fn speaks_of_an_error(body: &[u8]) -> bool {
    if let Ok(serde_json::Value::Object(members)) = serde_json::from_slice(body) {
        return ["error", "errors", "exception", "traceback"]
            .iter()
            .any(|name| members.get(*name).is_some_and(|value| !value.is_null()));
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]).to_lowercase();
    ["traceback", "exception", "error:", "<title>error"]
        .iter()
        .any(|word| text.contains(word))
}

pub(super) fn answered_ids(body: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Answered {
        results: Vec<Id>,
    }
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    let answered: Answered = serde_json::from_slice(body).ok()?;
    Some(
        answered
            .results
            .into_iter()
            .map(|result| result.id)
            .collect(),
    )
}

/// What is wrong with a refusal's `Retry-After` and its error body.
pub(super) fn error_problems(answer: &Answer) -> Vec<String> {
    let mut problems = Vec::new();
    let status = answer.status;
    if let Some(after) = answer.headers.get(http::header::RETRY_AFTER) {
        let text = after.to_str().unwrap_or_default().trim();
        let seconds = text.parse::<u64>().is_ok();
        if !seconds && !is_http_date(text) {
            problems.push(format!(
                "Retry-After of a {status} is {text:?}; give seconds or an HTTP date"
            ));
        }
    }
    let json = answer
        .headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/json"));
    if !json || answer.body.is_empty() {
        return problems;
    }
    match serde_json::from_slice::<serde_json::Value>(&answer.body) {
        Err(error) => problems.push(format!("the body of a {status} is no JSON: {error}")),
        Ok(body) => {
            if let Some(error) = body.get("error") {
                let text = |name: &str| error.get(name).is_none_or(serde_json::Value::is_string);
                let retryable = error
                    .get("retryable")
                    .is_none_or(serde_json::Value::is_boolean);
                if !error.is_object() || !text("code") || !text("message") || !retryable {
                    problems.push(format!(
                        "the error body of a {status} is {body}; write \
                         {{\"error\":{{\"code\":\"…\",\"message\":\"…\",\"retryable\":false}}}}"
                    ));
                }
            }
        }
    }
    problems
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn is_http_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split([' ', ':']).collect();
    let number = |part: &str, most: u32| part.parse::<u32>().is_ok_and(|n| n <= most);
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    match parts.as_slice() {
        [day, date, month, year, hour, minute, second, "GMT"] => {
            day.len() == 4
                && day.ends_with(',')
                && number(date, 31)
                && months.contains(month)
                && number(year, 9999)
                && number(hour, 23)
                && number(minute, 59)
                && number(second, 60)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_and_seconds_are_retry_after() {
        assert!(is_http_date("Sun, 06 Nov 1994 08:49:37 GMT"));
        for wrong in ["soon", "1994-11-06", "Sun, 06 Nov 1994 28:49:37 GMT", ""] {
            assert!(!is_http_date(wrong), "{wrong}");
        }
    }

    #[test]
    fn an_error_text_in_a_success_is_seen() {
        assert!(speaks_of_an_error(br#"{"error":"bad"}"#));
        assert!(speaks_of_an_error(b"Traceback (most recent call last)"));
        assert!(!speaks_of_an_error(br#"{"error":null,"value":1}"#));
        assert!(!speaks_of_an_error(b"prediction: benign"));
    }
}
