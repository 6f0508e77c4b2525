//! The admin port over real connections.

use std::time::Duration;

use axum::routing::post;
use bytes::Bytes;

use super::*;
use crate::http::{self, Client, Settings};

struct World {
    client: Client,
    health: Health,
    shutdown: Shutdown,
}

async fn world(access: Access) -> World {
    let listener = bind("127.0.0.1".parse().unwrap(), 0).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (health, shutdown) = (Health::new(), Shutdown::new());
    let admin = Admin {
        access,
        health: health.clone(),
        metrics: Metrics::new("score", "r1-0a", "input"),
        shutdown: shutdown.clone(),
        logs: None,
        v1: Router::new().route("/pause", post(|| async { "paused" })),
    };
    tokio::spawn(serve(listener, admin, std::future::pending()));
    World {
        client: Client::new(Settings::local(port, 2, 1 << 20)).unwrap(),
        health,
        shutdown,
    }
}

fn access() -> Access {
    Access {
        bind: "127.0.0.1".parse().unwrap(),
        token: None,
        environment: Environment::from([("ADMIN".to_owned(), "open sesame".to_owned())]),
        drain_token: None,
    }
}

impl World {
    async fn ask(
        &self,
        method: http::Method,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> (u16, String) {
        let mut map = http::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, http::HeaderValue::from_static(value));
        }
        let request = http::Request {
            method,
            path: path.to_owned().into(),
            headers: map,
            body: Bytes::new(),
        };
        let response = self
            .client
            .send(request, Duration::from_secs(10))
            .await
            .unwrap();
        (
            response.status,
            String::from_utf8(response.body.to_vec()).unwrap(),
        )
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(http::Method::GET, path, &[]).await
    }

    async fn pause(&self, headers: &[(&'static str, &'static str)]) -> u16 {
        self.ask(http::Method::POST, "/v1/pause", headers).await.0
    }
}

#[tokio::test]
async fn d_h1_probes_tell_the_state_of_the_process() {
    let world = world(access()).await;
    assert_eq!(world.get("/livez").await.0, 200);
    assert_eq!(world.get("/startupz").await.0, 503);
    assert_eq!(world.get("/readyz").await.0, 503);
    world.health.has_started();
    world.health.set(Readiness::Ready);
    assert_eq!(world.get("/startupz").await.0, 200);
    world
        .health
        .set(Readiness::Degraded("no broker is reachable".to_owned()));
    let (code, body) = world.get("/readyz").await;
    assert_eq!(code, 200);
    assert!(body.contains(r#""status":"degraded""#), "{body}");
    assert!(
        world
            .get("/metrics")
            .await
            .1
            .contains("millrace_build_info")
    );
    assert_eq!(world.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn d_p6_operators_need_the_token_and_probes_do_not() {
    let token = Some(Secret::Env("ADMIN".to_owned()));
    let world = world(Access { token, ..access() }).await;
    assert_eq!(world.get("/livez").await.0, 200);
    assert_eq!(world.pause(&[]).await, 401);
    assert_eq!(world.pause(&[("authorization", "Bearer wrong")]).await, 401);
    assert_eq!(world.pause(&[("authorization", "open sesame")]).await, 401);
    assert_eq!(
        world
            .pause(&[("authorization", "Bearer open sesame")])
            .await,
        200
    );
    assert_eq!(
        world.get("/v1/nothing").await.0,
        401,
        "strangers do not learn which calls exist"
    );
}

#[tokio::test]
async fn d_p6_without_a_token_operators_must_be_on_the_machine() {
    assert_eq!(world(access()).await.pause(&[]).await, 200);
    let elsewhere = Access {
        bind: "10.0.0.7".parse().unwrap(),
        ..access()
    };
    assert_eq!(world(elsewhere).await.pause(&[]).await, 403);
}

#[tokio::test]
async fn c3_a_changed_token_counts_at_the_next_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let token = Some(Secret::File(path.clone()));
    let world = world(Access { token, ..access() }).await;
    assert_eq!(world.pause(&[("authorization", "Bearer one")]).await, 200);
    std::fs::write(&path, "two\n").unwrap();
    assert_eq!(world.pause(&[("authorization", "Bearer one")]).await, 401);
    assert_eq!(world.pause(&[("authorization", "Bearer two")]).await, 200);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(world.pause(&[("authorization", "Bearer two")]).await, 503);
}

#[tokio::test]
async fn d_s3_drain_waits_until_nothing_is_in_flight() {
    let drain_token = Some(SecretText::new("let me out".to_owned()));
    let closed = world(access()).await;
    assert_eq!(closed.get("/drain?wait=1").await.0, 403);
    let world = world(Access {
        drain_token,
        ..access()
    })
    .await;
    assert_eq!(world.get("/drain?wait=1").await.0, 401);
    assert!(!world.shutdown.is_requested());
    let header = [("millrace-drain-token", "let me out")];
    let (answer, ()) = tokio::join!(
        world.ask(http::Method::GET, "/drain?wait=1", &header),
        async {
            world.shutdown.requested().await;
            world.shutdown.drained();
        }
    );
    assert_eq!(answer, (200, r#"{"drained":true}"#.to_owned()));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let first = bind("127.0.0.1".parse().unwrap(), 0).await.unwrap();
    let port = first.local_addr().unwrap().port();
    let error = bind("127.0.0.1".parse().unwrap(), port).await.unwrap_err();
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}
