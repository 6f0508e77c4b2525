//! The echo app: answers every event with itself, single and batch, as cheaply as an HTTP
//! server can, so that a measurement shows the proxies.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;

/// The default of `app.maxRequestBytes`.
const BODY_BYTES_MAX: usize = 8 << 20;
const BATCH_EVENTS_MAX: usize = 10_000;

/// Serves until it is dropped. A connection that breaks ends alone.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(answer);
            let connection = http1::Builder::new()
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.await);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let tombstone = head.headers.contains_key("millrace-tombstone");
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return Ok(refusal(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE"));
    };
    let body = body.to_bytes();
    Ok(match (&head.method, head.uri.path()) {
        (&Method::POST, "/process") if tombstone => status(StatusCode::NO_CONTENT),
        (&Method::POST, "/process") if body.is_empty() => {
            let mut response = status(StatusCode::OK);
            let filter = HeaderValue::from_static("filter");
            response.headers_mut().insert("millrace-result", filter);
            response
        }
        (&Method::POST, "/process") => {
            let mut response = Response::new(Full::new(body));
            if let Some(kind) = head.headers.get(CONTENT_TYPE) {
                response.headers_mut().insert(CONTENT_TYPE, kind.clone());
            }
            response
        }
        (&Method::POST, "/process-batch") => match echo_batch(&body) {
            Ok(answer) => json(StatusCode::OK, answer.into()),
            Err(error) => refusal(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
        },
        (&Method::GET, "/healthz") => Response::new(Full::from("ok")),
        (&Method::GET, "/.well-known/millrace") => json(
            StatusCode::OK,
            Bytes::from(format!(
                "{{\"contract\":\"1\",\"modes\":[\"reply\"],\"requests\":[\"single\",\"batch\"],\
                 \"content\":[\"raw\"],\"max_batch\":{BATCH_EVENTS_MAX},\"idempotent\":true}}"
            )),
        ),
        _ => refusal(StatusCode::NOT_FOUND, "NOT_SERVED"),
    })
}

/// The answer to a batch. Texts are copied as they are spelled, never decoded.
pub fn echo_batch(body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        items: Vec<Item<'a>>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow)]
        id: &'a RawValue,
        #[serde(borrow)]
        value: Option<&'a RawValue>,
        #[serde(borrow)]
        value_base64: Option<&'a RawValue>,
    }
    let batch: Batch<'_> = serde_json::from_slice(body)?;
    let mut answer = Vec::with_capacity(body.len() + 64);
    answer.extend_from_slice(b"{\"results\":[");
    for (index, item) in batch.items.iter().enumerate() {
        if index > 0 {
            answer.push(b',');
        }
        let parts = match (item.value, item.value_base64) {
            (Some(value), _) => ["\"ok\",\"outputs\":[{\"value\":", value.get(), "}]}"],
            (None, Some(value)) => ["\"ok\",\"outputs\":[{\"value_base64\":", value.get(), "}]}"],
            (None, None) => ["\"filter\"", "", "}"],
        };
        for part in ["{\"id\":", item.id.get(), ",\"status\":"]
            .into_iter()
            .chain(parts)
        {
            answer.extend_from_slice(part.as_bytes());
        }
    }
    answer.extend_from_slice(b"]}");
    Ok(answer)
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn json(code: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = code;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refusal(code: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({"error": {"code": code.as_str(), "message": why}});
    json(code, Bytes::from(body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_echoed_as_it_is_spelled() {
        let answer = echo_batch(
            br#"{"items":[{"id":"a","headers":[],"value":"\u00fc \"x\""},
                {"id":"b","value_base64":"AP8="},{"id":"c","value":null}]}"#,
        );
        assert_eq!(
            String::from_utf8(answer.unwrap()).unwrap(),
            r#"{"results":[{"id":"a","status":"ok","outputs":[{"value":"\u00fc \"x\""}]},{"id":"b","status":"ok","outputs":[{"value_base64":"AP8="}]},{"id":"c","status":"filter"}]}"#
        );
        assert!(echo_batch(b"{").is_err());
    }
}
