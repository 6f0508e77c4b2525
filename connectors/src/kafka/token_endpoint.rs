//! Asks a token endpoint for a token: OAuth 2.0 client credentials (RFC 6749, section 4.4).
//!
//! One connection and one request per question, no redirects; TLS is the OpenSSL that speaks to
//! the brokers. What an answer means is decided in `core::auth_token`.
//!
//! Invariant: a question takes [`TOKEN_ANSWER_MAX`] and holds [`TOKEN_ANSWER_BYTES_MAX`] at most.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use millrace_core::limits::{TOKEN_ANSWER_BYTES_MAX, TOKEN_ANSWER_MAX};
use native_tls::{Certificate, TlsConnector};
use tokio::net::TcpStream;

/// Where tokens come from, and what is said there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TokenEndpoint {
    url: Uri,
    client: String,
    scope: Option<String>,
    roots: Roots,
}

/// Whom we trust as a token endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Roots {
    /// Whom the system trusts.
    System,
    /// A file with certificates, read at each question.
    File(PathBuf),
    /// Certificates.
    Pem(String),
}

/// Status and body.
pub(super) type Answer = (u16, Bytes);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it did not answer within {} s", TOKEN_ANSWER_MAX.as_secs())]
    Late,
    #[error("it cannot be reached: {0}")]
    Connect(#[source] std::io::Error),
    #[error("the certificates that it is judged by cannot be read: {0}")]
    Roots(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it does not speak TLS with us: {0}")]
    Tls(#[source] native_tls::Error),
    #[error("the client secret cannot stand in a header")]
    Secret,
    #[error("its answer broke off or is not HTTP: {0}")]
    Http(#[source] hyper::Error),
    #[error("its answer broke off, or is larger than {TOKEN_ANSWER_BYTES_MAX} bytes")]
    Body,
}

impl TokenEndpoint {
    /// `None`: the URL is none that can be asked.
    pub(super) fn new(url: &str, client: &str, scope: Option<&str>, roots: Roots) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let known = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&url.scheme());
        (known && url.host().is_some_and(|host| !host.is_empty())).then(|| Self {
            url,
            client: client.to_owned(),
            scope: scope.map(str::to_owned),
            roots,
        })
    }

    /// Who asks.
    pub(super) fn client(&self) -> &str {
        &self.client
    }

    /// Asks once.
    pub(super) async fn ask(&self, secret: &str) -> Result<Answer, Error> {
        let asked = Box::pin(self.exchange(secret));
        tokio::time::timeout(TOKEN_ANSWER_MAX, asked)
            .await
            .map_err(|_| Error::Late)?
    }

    async fn exchange(&self, secret: &str) -> Result<Answer, Error> {
        let request = self.request(secret)?;
        let encrypted = self.url.scheme() == Some(&Scheme::HTTPS);
        let host = self.url.host().unwrap_or_default();
        // An IPv6 address stands in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self
            .url
            .port_u16()
            .unwrap_or(if encrypted { 443 } else { 80 });
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(Error::Connect)?;
        if !encrypted {
            return converse(TokioIo::new(stream), request).await;
        }
        let tls = tokio_native_tls::TlsConnector::from(self.roots.connector()?);
        let stream = tls.connect(host, stream).await.map_err(Error::Tls)?;
        converse(TokioIo::new(stream), request).await
    }

    fn request(&self, secret: &str) -> Result<Request<Full<Bytes>>, Error> {
        let login = STANDARD.encode(format!("{}:{secret}", self.client));
        let mut login =
            HeaderValue::from_str(&format!("Basic {login}")).map_err(|_| Error::Secret)?;
        login.set_sensitive(true);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        let form = form.finish();
        let path = self.url.path_and_query();
        let path = path.map_or("/", PathAndQuery::as_str);
        let authority = self.url.authority().map_or("", |authority| {
            // A name before it would be a password in a URL.
            let all = authority.as_str();
            all.rsplit_once('@').map_or(all, |(_, host)| host)
        });
        Request::post(path)
            .header(HOST, authority)
            .header(AUTHORIZATION, login)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(CONNECTION, "close")
            .body(Full::new(form.into()))
            .map_err(|_| Error::Secret)
    }
}

impl fmt::Display for TokenEndpoint {
    /// Without the query and what stands before the host, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.scheme_str().unwrap_or_default();
        let host = self.url.host().unwrap_or_default();
        write!(f, "{scheme}://{host}")?;
        if let Some(port) = self.url.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.url.path())
    }
}

impl Roots {
    /// Made for each question, so that changed roots count.
    fn connector(&self) -> Result<TlsConnector, Error> {
        let pem = match self {
            Self::System => None,
            Self::File(path) => {
                let read = std::fs::read(path);
                Some(read.map_err(|error| Error::Roots(Box::new(error)))?)
            }
            Self::Pem(text) => Some(text.clone().into_bytes()),
        };
        let mut builder = TlsConnector::builder();
        if let Some(pem) = pem {
            builder.disable_built_in_roots(true);
            let roots = Certificate::stack_from_pem(&pem);
            for root in roots.map_err(|error| Error::Roots(Box::new(error)))? {
                builder.add_root_certificate(root);
            }
        }
        builder.build().map_err(Error::Tls)
    }
}

async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, Error>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await.map_err(Error::Http)?;
    let conversation = async {
        let answer = sender.send_request(request).await.map_err(Error::Http)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), TOKEN_ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|_| Error::Body)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(conversation, connection);
    tokio::select! {
        biased;
        answer = &mut conversation => answer,
        // Whatever it has read belongs to the answer, or says why there is none.
        _ = &mut connection => conversation.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn endpoint(url: &str) -> TokenEndpoint {
        TokenEndpoint::new(url, "me", Some("a b/.default"), Roots::System).unwrap()
    }

    /// Answers one request, and tells what it was.
    async fn answer(listener: TcpListener, answer: String) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"default") {
            let mut part = [0; 1_024];
            let read = stream.read(&mut part).await.unwrap();
            request.extend_from_slice(&part[..read]);
        }
        // A client that has seen enough hangs up.
        drop(stream.write_all(answer.as_bytes()).await);
        String::from_utf8(request).unwrap()
    }

    async fn asked(said: String) -> (Result<Answer, Error>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token?x=1", listener.local_addr().unwrap());
        let endpoint = endpoint(&url);
        tokio::join!(endpoint.ask("secret"), answer(listener, said))
    }

    #[tokio::test]
    async fn d_p1_client_credentials_are_posted_as_a_form_with_basic_authentication() {
        let said = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_owned();
        let (answer, request) = asked(said).await;
        assert_eq!(answer.unwrap(), (200, Bytes::from_static(b"{}")));
        assert!(
            request.starts_with("POST /token?x=1 HTTP/1.1\r\n"),
            "{request}"
        );
        let login = STANDARD.encode("me:secret");
        assert!(
            request.contains(&format!("authorization: Basic {login}\r\n")),
            "{request}"
        );
        let form = "grant_type=client_credentials&scope=a+b%2F.default";
        assert!(request.ends_with(form), "{request}");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_not_kept() {
        let body = "x".repeat(TOKEN_ANSWER_BYTES_MAX + 1);
        let (answer, _) = asked(format!("HTTP/1.1 200 OK\r\n\r\n{body}")).await;
        assert!(matches!(answer, Err(Error::Body)), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let answer = endpoint(&url).ask("secret").await;
        assert!(matches!(answer, Err(Error::Late)), "{answer:?}");
    }

    #[tokio::test]
    async fn d_p1_a_certificate_of_a_stranger_is_not_trusted() {
        // Plain text where TLS is expected ends the same way, without a key in the tree.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        };
        let endpoint = endpoint(&url);
        let (answer, ()) = tokio::join!(endpoint.ask("secret"), server);
        assert!(matches!(answer, Err(Error::Tls(_))), "{answer:?}");
    }

    #[test]
    fn only_http_urls_are_asked_and_their_secrets_are_not_shown() {
        for none in ["", "/token", "ftp://a/b", "a b", "http://"] {
            assert!(
                TokenEndpoint::new(none, "me", None, Roots::System).is_none(),
                "{none}"
            );
        }
        let shown = endpoint("https://user:geheim@idp:8443/t?code=geheim").to_string();
        assert_eq!(shown, "https://idp:8443/t");
    }
}
