//! A token endpoint as an identity provider has one, for OAUTHBEARER: client credentials in, an
//! unsigned token of a short life out. It remembers who asked.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

/// Who may ask.
pub const CLIENT: &str = "millrace";
/// What it has to know, at first.
pub const SECRET: &str = "the-client-secret";

/// An endpoint that serves until the test ends.
#[derive(Debug)]
pub struct TokenEndpoint {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    life: Duration,
    refuses: AtomicBool,
    secret: Mutex<String>,
    given: AtomicUsize,
    refused: AtomicUsize,
    last: Mutex<String>,
}

impl TokenEndpoint {
    /// Tokens of this life.
    pub fn start(life: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            life,
            refuses: AtomicBool::new(false),
            secret: Mutex::new(SECRET.to_owned()),
            given: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            last: Mutex::new(String::new()),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who goes away before the answer asks again.
                drop(own.answer(stream));
            }
        });
        Self { port, shared }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// Refuses everybody from now on, or nobody any more.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Whoever asks has to know another secret from now on.
    pub fn change_secret(&self, secret: &str) {
        secret.clone_into(&mut self.shared.secret.lock().expect("no holder panics"));
    }

    /// Tokens that it has given.
    pub fn given(&self) -> usize {
        self.shared.given.load(Ordering::SeqCst)
    }

    /// Requests that it has refused.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// The body of the last request.
    pub fn last_request(&self) -> String {
        self.shared.last.lock().expect("no holder panics").clone()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (head, body) = request(&mut stream)?;
        *self.last.lock().expect("no holder panics") = body;
        let secret = self.secret.lock().expect("no holder panics").clone();
        let login = STANDARD.encode(format!("{CLIENT}:{secret}"));
        let known = head.contains(&format!("Basic {login}"));
        let (status, body) = if known && !self.refuses.load(Ordering::SeqCst) {
            self.given.fetch_add(1, Ordering::SeqCst);
            let token = self.token();
            let life = self.life.as_secs();
            let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": life});
            ("200 OK", body)
        } else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let body = json!({"error": "invalid_client", "error_description": "unknown client"});
            ("401 Unauthorized", body)
        };
        let body = body.to_string();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )
    }

    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs();
        let claims = json!({"sub": CLIENT, "iat": now, "exp": now + self.life.as_secs()});
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.", part(json!({"alg": "none"})), part(claims))
    }
}

/// Head and body of a request.
fn request(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut text = Vec::new();
    let mut part = [0; 4_096];
    loop {
        let read = stream.read(&mut part)?;
        text.extend_from_slice(&part[..read]);
        let all = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = all.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is = name.eq_ignore_ascii_case("content-length");
                is.then(|| value.trim().parse::<usize>().ok())?
            });
            if read == 0 || body.len() >= length.unwrap_or(0) {
                return Ok((head.to_owned(), body.to_owned()));
            }
        } else if read == 0 {
            return Ok((all, String::new()));
        }
    }
}
