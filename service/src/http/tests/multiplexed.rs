//! The client over HTTP/2, against a server that follows a script.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// A server that answers a body with itself; `silence` and `large` with what they say. Counts
/// its connections.
async fn server() -> (Arc<Client>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let serving = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(async move { drop(serving.await) });
        }
    });
    let settings = Settings::local(port, 16, 1_000).with(Protocol::Http2);
    (Arc::new(Client::new(settings).unwrap()), connections)
}

async fn answer(
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/process");
    assert!(request.uri().authority().is_some(), "RFC 9113, 8.3.1");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(hyper::Response::new(match &body[..] {
        b"silence" => std::future::pending().await,
        b"large" => Full::from(vec![0; 1_001]),
        _ => Full::new(body),
    }))
}

fn say(text: &'static str) -> Request {
    Request::post(
        "/process",
        HeaderMap::new(),
        Bytes::from_static(text.as_bytes()),
    )
}

#[tokio::test]
async fn all_calls_share_one_connection() {
    let (client, connections) = server().await;
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.send(say("hi"), SOON).await })
        })
        .collect();
    for call in calls {
        assert_eq!(&call.await.unwrap().unwrap().body[..], b"hi");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn f_24_a_stalled_stream_meets_its_deadline_and_later_calls_a_new_connection() {
    let (client, connections) = server().await;
    client.send(say("hi"), SOON).await.unwrap();
    let error = client
        .send(say("silence"), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Timeout { written: true, .. }),
        "{error:?}"
    );
    assert_eq!(&client.send(say("hi"), SOON).await.unwrap().body[..], b"hi");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn f_24_a_call_that_is_open_on_a_distrusted_connection_still_ends() {
    let (client, _) = server().await;
    client.send(say("hi"), SOON).await.unwrap();
    let Pool::Http2(shared) = &client.pool else {
        panic!("this client speaks HTTP/2");
    };
    let other = Arc::clone(&client);
    let waits =
        tokio::spawn(async move { other.send(say("silence"), Duration::from_millis(500)).await });
    let error = client
        .send(say("silence"), Duration::from_millis(20))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(shared.is_empty(), "nobody gets that connection any more");
    let error = waits.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_only_its_stream() {
    let (client, connections) = server().await;
    let error = client.send(say("large"), SOON).await.unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { limit_bytes: 1_000 }),
        "{error:?}"
    );
    client.send(say("hi"), SOON).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_that_dies_is_told_and_then_connected_to_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = Settings::local(port, 4, 1_000).with(Protocol::Http2);
    let client = Client::new(settings).unwrap();
    let server = tokio::spawn(async move {
        // The first connection ends with a request on it.
        let (stream, _) = listener.accept().await.unwrap();
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        let asked = std::sync::Mutex::new(Some(asked));
        let service = service_fn(move |_: hyper::Request<Incoming>| {
            let asked = asked.lock().unwrap().take().unwrap();
            asked.send(()).unwrap();
            std::future::pending::<Result<hyper::Response<Full<Bytes>>, Infallible>>()
        });
        let serving = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            _ = serving => panic!("it ends with the question"),
            asked = was_asked => asked.unwrap(),
        }
        let (stream, _) = listener.accept().await.unwrap();
        let serving = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        drop(serving.await);
    });
    let error = client.send(say("hi"), SOON).await.unwrap_err();
    assert!(matches!(error, Error::LostAfterWrite(_)), "{error:?}");
    assert!(error.may_have_happened());
    assert_eq!(&client.send(say("hi"), SOON).await.unwrap().body[..], b"hi");
    server.abort();
}

#[tokio::test]
async fn a_server_of_another_http_is_told_apart() {
    let (http1, _) = super::server(&[&[Does::Answer(OK)]]).await;
    let Server::Tcp { port, .. } = http1.settings.server else {
        panic!("a port");
    };
    let settings = Settings::local(port, 4, 1_000).with(Protocol::Http2);
    let client = Client::new(settings).unwrap();
    let error = client
        .send(say("hi"), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout { .. } | Error::LostAfterWrite(_) | Error::Malformed(_)
        ),
        "{error:?}"
    );
}
