//! The checks pass a good app, and each finds the app that breaks its point.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use millrace_core::contract::app::EmptyBody;
use tokio::net::TcpListener;

use super::*;
use crate::bench::echo::echo_batch;
use crate::records::Draft;

/// What an app sees of a request.
struct Asked {
    path: String,
    headers: http::HeaderMap,
    body: Bytes,
    number: usize,
}

fn answer(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let kind = "application/json";
    let response = Response::builder()
        .status(status)
        .header("content-type", kind);
    response.body(Full::new(body.into())).unwrap()
}

/// A good app: JSON in, the same JSON out.
fn good(asked: &Asked) -> Response<Full<Bytes>> {
    match asked.path.as_str() {
        "/healthz" => answer(200, "ok"),
        "/.well-known/millrace" => answer(
            200,
            r#"{"contract":"1","modes":["reply"],"requests":["single","batch"],"content":["raw"],"max_batch":20,"idempotent":true}"#,
        ),
        _ if asked.body.len() > 100_000 => answer(413, "{}"),
        "/process" if asked.headers.contains_key("millrace-tombstone") => answer(204, ""),
        "/process" => match serde_json::from_slice::<serde_json::Value>(&asked.body) {
            Ok(_) => answer(200, asked.body.clone()),
            Err(_) => answer(422, r#"{"error":{"code":"BAD","message":"no JSON"}}"#),
        },
        "/process-batch" => answer(200, echo_batch(&asked.body).unwrap()),
        _ => answer(404, ""),
    }
}

type App = fn(&Asked) -> Response<Full<Bytes>>;

async fn findings(app: App) -> Findings {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await;
                        let asked = Asked {
                            path: head.uri.path().to_owned(),
                            headers: head.headers,
                            body: body.map(|body| body.to_bytes()).unwrap_or_default(),
                            number,
                        };
                        Ok::<_, Infallible>(app(&asked))
                    }
                });
                let stream = TokioIo::new(stream);
                drop(
                    http1::Builder::new()
                        .serve_connection(stream, service)
                        .await,
                );
            });
        }
    });
    let findings = check(plan(&address, None, &["{\"a\":1}", "{\"a\":2}"]))
        .await
        .unwrap();
    server.abort();
    findings
}

/// What is asked of an app at `address`, with these values as samples.
fn plan(address: &str, push: Option<u16>, samples: &[&'static str]) -> Plan {
    let sample = |value: &&'static str| Draft {
        key: Some("k".into()),
        value: Some((*value).into()),
        ..Draft::default()
    };
    Plan {
        address: address.parse().unwrap(),
        path: "/process".to_owned(),
        health: "/healthz".to_owned(),
        wanted: Wanted::Auto,
        content: WantedContent::Auto,
        timeout: Duration::from_secs(5),
        max_request_bytes: 100_000,
        max_response_bytes: 1 << 20,
        push,
        empty_body: EmptyBody::Error,
        batch_max: 100,
        samples: samples.iter().map(sample).collect(),
    }
}

fn failed(findings: &Findings) -> Vec<u8> {
    let failed = |f: &&Finding| matches!(f.verdict, Verdict::Failed(_));
    findings
        .points
        .iter()
        .filter(failed)
        .map(|f| f.point)
        .collect()
}

/// The app breaks the contract in one way; at least `point` must say so.
async fn check_breach(point: u8, app: App) {
    let findings = findings(app).await;
    let failed = failed(&findings);
    assert!(
        !findings.ok && failed.contains(&point),
        "{point}: {findings:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_app_passes_every_point() {
    let findings = findings(good).await;
    assert!(findings.ok, "{findings:#?}");
    let numbers: Vec<u8> = findings
        .points
        .iter()
        .map(|finding| finding.point)
        .collect();
    assert_eq!(numbers, (1..=11).collect::<Vec<u8>>());
    let skipped = |f: &&Finding| matches!(f.verdict, Verdict::Skipped(_));
    let skipped: Vec<u8> = findings
        .points
        .iter()
        .filter(skipped)
        .map(|f| f.point)
        .collect();
    assert_eq!(skipped, vec![9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_echo_app_passes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(crate::bench::echo::serve(listener));
    let plan = Plan {
        address: address.parse().unwrap(),
        path: "/process".to_owned(),
        health: "/healthz".to_owned(),
        wanted: Wanted::Auto,
        content: WantedContent::Auto,
        timeout: Duration::from_secs(5),
        max_request_bytes: 8 << 20,
        max_response_bytes: 8 << 20,
        push: None,
        empty_body: EmptyBody::Error,
        batch_max: 100,
        samples: vec![Draft {
            value: Some("{}".into()),
            ..Draft::default()
        }],
    };
    let findings = check(plan).await.unwrap();
    assert!(findings.ok, "{findings:#?}");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_breach_is_found_by_its_point() {
    check_breach(1, |asked| match asked.path.as_str() {
        "/healthz" => answer(503, ""),
        _ => good(asked),
    })
    .await;
    check_breach(1, |asked| match asked.path.as_str() {
        "/.well-known/millrace" => answer(200, r#"{"contract":"2"}"#),
        _ => good(asked),
    })
    .await;
    check_breach(2, |asked| match asked.headers.get("millrace-key") {
        None if asked.path == "/process" => answer(500, "no key"),
        _ => good(asked),
    })
    .await;
    check_breach(2, |asked| match asked.body.is_empty() {
        true if asked.path == "/process" => answer(200, ""),
        _ => good(asked),
    })
    .await;
    check_breach(3, |asked| match good(asked) {
        refused if refused.status() == 422 => answer(500, ""),
        other => other,
    })
    .await;
    check_breach(3, |asked| match good(asked) {
        refused if refused.status() == 422 => answer(200, r#"{"error":"no JSON"}"#),
        other => other,
    })
    .await;
    check_breach(4, |asked| match asked.path.as_str() {
        "/process-batch" => answer(200, r#"{"results":[]}"#),
        _ => good(asked),
    })
    .await;
    check_breach(4, by_place).await;
    check_breach(5, |asked| match asked.path.as_str() {
        "/process" if good(asked).status() == 200 => answer(200, asked.number.to_string()),
        _ => good(asked),
    })
    .await;
    check_breach(6, |asked| match good(asked) {
        refused if refused.status() == 413 => answer(200, "{}"),
        other => other,
    })
    .await;
    check_breach(7, |asked| {
        let mut response = good(asked);
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert("connection", close);
        response
    })
    .await;
    check_breach(10, |asked| match asked.headers.get("millrace-mode") {
        Some(mode) if mode == "shadow" => answer(400, ""),
        _ => good(asked),
    })
    .await;
    check_breach(11, |asked| match good(asked) {
        refused if refused.status() == 422 => {
            let mut response = answer(422, "{}");
            let soon = http::HeaderValue::from_static("soon");
            response.headers_mut().insert("retry-after", soon);
            response
        }
        other => other,
    })
    .await;
}

/// Answers the events of a batch by their place, not by their content.
fn by_place(asked: &Asked) -> Response<Full<Bytes>> {
    if asked.path != "/process-batch" {
        return good(asked);
    }
    let batch: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
    let items = batch["items"].as_array().unwrap();
    let results: Vec<_> = (0..)
        .zip(items)
        .map(|(place, item)| {
            let output = serde_json::json!({"value_json": {"place": place}});
            serde_json::json!({"id": item["id"], "status": "ok", "outputs": [output]})
        })
        .collect();
    answer(200, serde_json::json!({"results": results}).to_string())
}

/// A good app that takes CloudEvents, too, and answers with what came.
fn good_with_cloud_events(asked: &Asked) -> Response<Full<Bytes>> {
    let of = |name: &str| {
        asked
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let kind = of("content-type").unwrap_or_default();
    let binary = of("ce-id").is_some();
    match asked.path.as_str() {
        "/.well-known/millrace" => answer(
            200,
            r#"{"contract":"1","modes":["reply"],"requests":["single","batch"],"content":["raw","cloudevents"],"max_batch":20}"#,
        ),
        "/process" if kind == "application/cloudevents+json" => {
            let mut response = answer(200, asked.body.clone());
            let kind = http::HeaderValue::from_static("application/cloudevents+json");
            response.headers_mut().insert("content-type", kind);
            response
        }
        "/process" if binary => {
            let mut response = good(asked);
            for name in ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time"] {
                if let Some(value) = asked.headers.get(name) {
                    response.headers_mut().insert(name, value.clone());
                }
            }
            response
        }
        "/process-batch" if kind == "application/cloudevents-batch+json" => {
            let mut events: Vec<serde_json::Value> = serde_json::from_slice(&asked.body).unwrap();
            for event in &mut events {
                event["millraceparent"] = event["millraceid"].clone();
            }
            let mut response = answer(200, serde_json::to_vec(&events).unwrap());
            let kind = http::HeaderValue::from_static("application/cloudevents-batch+json");
            response.headers_mut().insert("content-type", kind);
            response
        }
        _ => good(asked),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_events_are_asked_in_every_form_if_the_app_offers_them() {
    let findings = findings(good_with_cloud_events).await;
    assert!(findings.ok, "{findings:#?}");
    check_breach(10, |asked| {
        let mut response = good_with_cloud_events(asked);
        let time = http::HeaderValue::from_static("yesterday");
        if response.headers().contains_key("ce-time") {
            response.headers_mut().insert("ce-time", time);
        }
        response
    })
    .await;
    check_breach(10, |asked| match asked.headers.contains_key("ce-id") {
        // Answers without a word of CloudEvents.
        true => good(asked),
        false => good_with_cloud_events(asked),
    })
    .await;
    check_breach(10, |asked| {
        let kind = asked.headers.get("content-type");
        match kind.is_some_and(|kind| kind == "application/cloudevents+json") {
            true => answer(415, ""),
            false => good_with_cloud_events(asked),
        }
    })
    .await;
}

#[tokio::test]
async fn an_app_that_does_not_run_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let plan = Plan {
        address: address.parse().unwrap(),
        path: "/process".to_owned(),
        health: "/healthz".to_owned(),
        wanted: Wanted::Auto,
        content: WantedContent::Auto,
        timeout: Duration::from_secs(1),
        max_request_bytes: 1,
        max_response_bytes: 1,
        push: None,
        empty_body: EmptyBody::Error,
        batch_max: 1,
        samples: Vec::new(),
    };
    let error = check(plan).await.unwrap_err();
    assert!(error.to_string().contains("is it running?"));
}

/// How an app of push mode posts its results.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Posts {
    /// With the correlation; 500 if the result is not stored.
    Well,
    /// Without the correlation.
    Mute,
    /// It does not care what becomes of them.
    Careless,
    /// Not at all.
    Nothing,
}

/// An app of push mode on any port, which posts to `desk`.
async fn pushing(posts: Posts, desk: u16) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serve = async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    Ok::<_, Infallible>(push_and_answer(posts, desk, request).await)
                });
                drop(
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    };
    (address, tokio::spawn(serve))
}

async fn push_and_answer(
    posts: Posts,
    desk: u16,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if head.uri.path() != "/process" {
        return answer(
            if head.uri.path() == "/healthz" {
                200
            } else {
                404
            },
            "",
        );
    }
    if body.len() > 100_000 {
        return answer(413, "{}");
    }
    if serde_json::from_slice::<serde_json::Value>(&body).is_err() {
        return answer(422, "{}");
    }
    let correlation = head.headers.get("millrace-correlation").unwrap().clone();
    let mut headers = Vec::new();
    if posts != Posts::Mute {
        let echo = correlation.as_bytes().to_vec();
        headers.push(("millrace-correlation".to_owned(), echo));
    }
    let post = crate::http::Call {
        method: http::Method::POST,
        path: "/".to_owned(),
        headers,
        body,
    };
    let address = crate::http::Address::local(desk);
    if posts == Posts::Nothing {
        return answer(200, "");
    }
    let posted = crate::http::once(&address, &post, Duration::from_secs(5), 1 << 20).await;
    let stored = posted.is_ok_and(|answer| answer.status == 200);
    answer(
        if stored || posts == Posts::Careless {
            200
        } else {
            500
        },
        "",
    )
}

#[tokio::test]
async fn point_9_looks_at_what_an_app_of_push_mode_posts() {
    let desk = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for (posts, passes, remark) in [
        (Posts::Well, true, None),
        (
            Posts::Careless,
            true,
            Some("although its result was not stored"),
        ),
        (Posts::Nothing, true, Some("posted nothing")),
        (Posts::Mute, false, Some("does not echo")),
    ] {
        let desk = desk();
        let (address, server) = pushing(posts, desk).await;
        let plan = plan(&address, Some(desk), &["{\"a\":1}"]);
        let findings = check(plan).await.unwrap();
        server.abort();
        let point = findings.points.iter().find(|f| f.point == 9).unwrap();
        assert_eq!(point.verdict == Verdict::Passed, passes, "{point:?}");
        let said = format!("{point:?}");
        match remark {
            Some(remark) => assert!(said.contains(remark), "{said}"),
            None => assert!(findings.ok && point.remarks.is_empty(), "{findings:?}"),
        }
    }
}
