//! Reads what an app answered: the negotiation document, refusals, and successes that are none.

use std::collections::BTreeSet;

use millrace_core::contract::app::Offer;
use millrace_core::contract::app::offer::CONTRACT;
use millrace_core::outcome::{Class, Failure, FailureKind, Item, Outcome, Output};
use serde::Deserialize;

use super::findings::Notes;
use super::probe::Asked;
use crate::http::Answer;

/// Reads `GET /.well-known/millrace` more strictly than the input does.
pub(super) fn negotiated(body: &[u8], push: bool, notes: &mut Notes) -> Option<Offer> {
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
    let wanted = if push { "push" } else { "reply" };
    if !about.modes.is_empty() && !about.modes.iter().any(|mode| mode == wanted) {
        notes.remark(format!(
            "the app does not offer {wanted} mode, in which it is asked (--push PORT: push mode)"
        ));
    }
    Some(about)
}

/// What is wrong with the attributes of a CloudEvent that was taken as a result.
pub(super) fn odd_attributes(output: &Output) -> Vec<String> {
    if !output.cloud_event {
        return Vec::new();
    }
    let value = output.value.as_deref().unwrap_or_default();
    let mut attributes: Vec<(String, String)> = output
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.strip_prefix(b"ce_")?;
            let value = value.as_deref().unwrap_or_default();
            Some((lossy(name), lossy(value)))
        })
        .collect();
    if attributes.is_empty()
        && let Ok(serde_json::Value::Object(members)) = serde_json::from_slice(value)
    {
        let is_data = |name: &str| matches!(name, "data" | "data_base64");
        let texts = members.into_iter().filter(|(name, _)| !is_data(name));
        attributes = texts
            .map(|(name, value)| {
                (
                    name,
                    value.as_str().map_or(value.to_string(), str::to_owned),
                )
            })
            .collect();
    }
    let mut problems = Vec::new();
    for (name, value) in attributes {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !name.bytes().all(allowed) {
            problems.push(format!("the attribute `{name}` is not of a-z and 0-9"));
        }
        match name.as_str() {
            "specversion" if value != "1.0" => {
                problems.push(format!("`specversion` is {value:?}; we speak \"1.0\""));
            }
            "time" if !is_rfc_3339(&value) => {
                problems.push(format!("`time` is {value:?}; write 2026-01-01T00:00:00Z"));
            }
            _ => {}
        }
    }
    problems
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `2026-01-01T00:00:00.5+01:00`.
fn is_rfc_3339(text: &str) -> bool {
    let matches = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(c, f)| match f {
                b'0' => c.is_ascii_digit(),
                other => c.eq_ignore_ascii_case(&other),
            })
    };
    let Some((start, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return false;
            }
            zone
        }
        None => rest,
    };
    let offset = matches(zone, "+00:00") || matches(zone, "-00:00");
    matches(start, "0000-00-00T00:00:00") && (offset || matches(zone, "Z"))
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
    struct OfParent {
        millraceparent: String,
    }
    #[derive(Deserialize)]
    struct Answered {
        results: Vec<Id>,
    }
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    // In a batch of CloudEvents several results may name one parent.
    if let Ok(events) = serde_json::from_slice::<Vec<OfParent>>(body) {
        let parents: BTreeSet<_> = events.into_iter().map(|one| one.millraceparent).collect();
        return Some(parents.into_iter().collect());
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
    fn attributes_of_cloud_events_are_looked_at() {
        let output = |value: &'static str| Output {
            value: Some(value.into()),
            cloud_event: true,
            ..Output::default()
        };
        let good =
            r#"{"specversion":"1.0","id":"1","time":"2026-01-01T00:00:00.5+01:00","data":{"A":1}}"#;
        assert_eq!(odd_attributes(&output(good)), Vec::<String>::new());
        let odd = r#"{"specversion":"0.3","camelCase":"1","time":"yesterday"}"#;
        assert_eq!(odd_attributes(&output(odd)).len(), 3);
    }

    #[test]
    fn an_error_text_in_a_success_is_seen() {
        assert!(speaks_of_an_error(br#"{"error":"bad"}"#));
        assert!(speaks_of_an_error(b"Traceback (most recent call last)"));
        assert!(!speaks_of_an_error(br#"{"error":null,"value":1}"#));
        assert!(!speaks_of_an_error(b"prediction: benign"));
    }
}
