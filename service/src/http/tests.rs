//! The client against servers that behave, and servers that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

mod multiplexed;

const SOON: Duration = Duration::from_secs(10);

/// What a server does with one request of a connection.
#[derive(Clone, Copy)]
enum Does {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    Close,
    Silence,
}

/// Serves connections by a script: the n-th connection follows the n-th list.
async fn server(script: &'static [&'static [Does]]) -> (Client, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        for steps in script {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, steps, Arc::clone(&seen)));
        }
    });
    (
        Client::new(Settings::local(port, 4, 1_000)).unwrap(),
        requests,
    )
}

async fn serve(mut stream: TcpStream, steps: &'static [Does], seen: Arc<AtomicUsize>) {
    for step in steps {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\nhello") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            request.push(byte[0]);
        }
        seen.fetch_add(1, Ordering::SeqCst);
        match step {
            Does::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Does::AnswerAndClose(text) => return stream.write_all(text.as_bytes()).await.unwrap(),
            Does::Close => return,
            Does::Silence => std::future::pending().await,
        }
    }
    // Keep the connection open without reading from it.
    std::future::pending::<()>().await;
}

fn idle(client: &Client) -> &Mutex<Vec<Connection>> {
    match &client.pool {
        Pool::Http1(idle) => idle,
        Pool::Http2(_) => unreachable!("this client speaks HTTP/1.1"),
    }
}

fn hello() -> Request {
    Request::post("/process", HeaderMap::new(), Bytes::from_static(b"hello"))
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: 1\r\n\r\nhi";
const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n";

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let (client, requests) =
        server(&[&[Does::Answer(OK), Does::Answer(CHUNKED), Does::Answer(OK)]]).await;
    for _ in 0..3 {
        let response = client.send(hello(), SOON).await.unwrap();
        assert_eq!((response.status, &response.body[..]), (200, &b"hi"[..]));
    }
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_is_replaced_without_telling() {
    let (client, requests) = server(&[&[Does::AnswerAndClose(OK)], &[Does::Answer(OK)]]).await;
    client.send(hello(), SOON).await.unwrap();
    // Wait for the server's farewell, unless it came with the answer.
    let closed = async {
        let idle = idle(&client);
        loop {
            let Some(mut kept) = lock(idle).pop() else {
                break;
            };
            if kept.is_usable().await {
                lock(idle).push(kept);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, closed).await.unwrap();
    client.send(hello(), SOON).await.unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_t1_a_post_is_never_sent_again_once_bytes_were_written() {
    let (client, requests) = server(&[&[Does::Answer(OK), Does::Close], &[Does::Answer(OK)]]).await;
    client.send(hello(), SOON).await.unwrap();
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(matches!(error, Error::LostAfterWrite(_)), "{error:?}");
    assert!(error.may_have_happened());
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    client.send(hello(), SOON).await.unwrap();
}

#[tokio::test]
async fn a_refused_connection_has_not_happened() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let client = Client::new(Settings::local(port, 1, 10)).unwrap();
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert!(!error.may_have_happened());
}

/// A request that was written is not answered in time.
async fn no_answer(client: &Client) {
    let error = client
        .send(hello(), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Timeout { written: true, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_deadline_is_outside_the_connection_and_closes_it() {
    let (client, _) = server(&[&[Does::Silence], &[Does::Answer(OK)]]).await;
    no_answer(&client).await;
    assert!(
        lock(idle(&client)).is_empty(),
        "a connection with an open request is never used again"
    );
    client.send(hello(), SOON).await.unwrap();
}

#[tokio::test]
async fn redirects_are_answers_and_other_statuses_too() {
    const MOVED: &str =
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    const NONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    let (client, _) = server(&[&[Does::Answer(MOVED), Does::Answer(NONE)]]).await;
    assert_eq!(client.send(hello(), SOON).await.unwrap().status, 302);
    assert_eq!(client.send(hello(), SOON).await.unwrap().status, 204);
}

#[tokio::test]
async fn what_is_not_http_and_what_is_too_large_is_told_apart() {
    const LARGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n";
    let (client, _) = server(&[
        &[Does::Answer("NONSENSE\r\n\r\n")],
        &[Does::Answer(LARGE)],
        &[Does::AnswerAndClose(
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        )],
    ])
    .await;
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { limit_bytes: 1_000 }),
        "{error:?}"
    );
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(matches!(error, Error::LostAfterWrite(_)), "{error:?}");
}

#[tokio::test]
async fn calls_beyond_the_pool_wait_for_a_connection() {
    let (client, requests) = server(&[
        &[Does::Answer(OK); 8],
        &[Does::Answer(OK); 8],
        &[Does::Answer(OK); 8],
        &[Does::Answer(OK); 8],
    ])
    .await;
    let client = Arc::new(client);
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                client
                    .send(hello(), SOON)
                    .await
                    .map(|response| response.status)
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 200);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 8);
    assert!(lock(idle(&client)).len() <= 4);
}

#[tokio::test]
async fn a_path_that_http_cannot_say_is_refused() {
    let client = Client::new(Settings::local(1, 1, 1)).unwrap();
    let error = client.send(Request::get("/a b"), SOON).await.unwrap_err();
    assert!(matches!(error, Error::Unsendable(_)), "{error:?}");
}

#[tokio::test]
async fn f_24_after_a_half_open_connection_no_kept_one_is_trusted() {
    // Both connections answer once; then the network swallows what comes.
    let (client, requests) = server(&[
        &[Does::Answer(OK), Does::Silence],
        &[Does::Answer(OK), Does::Silence],
        &[Does::Answer(OK), Does::Answer(OK)],
    ])
    .await;
    let (one, two) = tokio::join!(client.send(hello(), SOON), client.send(hello(), SOON));
    assert_eq!((one.unwrap().status, two.unwrap().status), (200, 200));
    assert_eq!(lock(idle(&client)).len(), 2);
    no_answer(&client).await;
    for _ in 0..2 {
        assert_eq!(client.send(hello(), SOON).await.unwrap().status, 200);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_socket_is_as_good_as_a_port() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let settings = Settings::new(Server::Socket(path.clone()), 4, 1_000);
    let client = Client::new(settings).unwrap();
    let error = client.send(hello(), SOON).await.unwrap_err();
    assert!(!error.may_have_happened(), "{error:?}");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        loop {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\nhello") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                request.push(byte[0]);
            }
            let text = String::from_utf8(request).unwrap().to_lowercase();
            assert!(text.contains("\r\nhost: localhost\r\n"), "{text}");
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    });
    for _ in 0..2 {
        let response = client.send(hello(), SOON).await.unwrap();
        assert_eq!(&response.body[..], b"hi");
    }
}
