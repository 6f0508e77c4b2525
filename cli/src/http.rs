//! A small HTTP/1.1 client that shows what the proxies' own client hides: which connection a
//! call took, whether the app kept it open, and what an abort does.
//!
//! Invariant: no redirects, no proxies, no silent re-send (A-T1).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use millrace_service::http::Server;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a connection may take (app-contract.md, limits).
const CONNECT: Duration = Duration::from_secs(1);

/// An app's address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// A bare connection.
    pub async fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The same for the proxies' own client.
    pub fn server(&self) -> Server {
        Server::Tcp {
            host: self.host.clone(),
            port: self.port,
        }
    }

    /// An app on this machine.
    pub fn local(port: u16) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port,
        }
    }
}

/// Why a text is not an address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{url:?} is no app address; write it as http://127.0.0.1:8080")]
pub struct AddressError {
    url: String,
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError {
            url: url.to_owned(),
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        match (uri.host(), plain) {
            (Some(host), true) => Ok(Self {
                host: host.to_owned(),
                port: uri.port_u16().unwrap_or(80),
            }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

/// What an app answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens there.
    #[error("no connection to {address}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection ended before the answer did.
    #[error("the connection was closed before the answer was complete")]
    Lost(#[source] hyper::Error),
    /// Something is no HTTP.
    #[error("the request cannot be built")]
    Request(#[source] http::Error),
    /// The answer's body ended wrongly or is too large.
    #[error("the body of the answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too late.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// A request before it has an address.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET` or `POST`.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// In order; values are bytes.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
}

impl Call {
    /// A request without body.
    pub fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    fn request(&self, address: &Address) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .header(HOST, format!("{}:{}", address.host, address.port));
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), value.as_slice());
        }
        request.body(Full::new(self.body.clone()))
    }
}

/// One connection to an app.
#[derive(Debug)]
pub struct Connection {
    address: Address,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Opens it.
    pub async fn open(address: &Address) -> Result<Self, CallError> {
        let stream = match timeout(CONNECT, address.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => {
                return Err(CallError::Connect {
                    address: address.clone(),
                    source,
                });
            }
            Err(_) => return Err(CallError::TimedOut(CONNECT)),
        };
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(CallError::Lost)?;
        let driver = tokio::spawn(async move {
            // How it ended is told to whoever waits for an answer.
            drop(connection.await);
        });
        Ok(Self {
            address: address.clone(),
            sender,
            driver,
        })
    }

    /// Sends a request and reads the whole answer.
    pub async fn call(
        &mut self,
        call: &Call,
        within: Duration,
        body_max: usize,
    ) -> Result<Answer, CallError> {
        let request = call.request(&self.address).map_err(CallError::Request)?;
        let answer = async {
            let response = self
                .sender
                .send_request(request)
                .await
                .map_err(CallError::Lost)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, body_max).collect().await;
            Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: body.map_err(CallError::Body)?.to_bytes(),
            })
        };
        match timeout(within, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::TimedOut(within)),
        }
    }

    /// Whether the app left it open for another request.
    pub async fn kept(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closes the socket at once, whatever is still under way.
        self.driver.abort();
    }
}

/// One request on a connection of its own.
pub async fn once(
    address: &Address,
    call: &Call,
    within: Duration,
    body_max: usize,
) -> Result<Answer, CallError> {
    Connection::open(address)
        .await?
        .call(call, within, body_max)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_addresses_are_taken() {
        let address: Address = "http://127.0.0.1:8080/".parse().unwrap();
        assert_eq!(address.to_string(), "http://127.0.0.1:8080");
        assert_eq!("http://app".parse::<Address>().unwrap().port, 80);
        for wrong in [
            "",
            "8080",
            "https://app",
            "http://",
            "http://app/process",
            "app:80",
        ] {
            let error = wrong.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8080"), "{error}");
        }
    }
}
