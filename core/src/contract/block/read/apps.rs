//! Reads `app`.

use std::path::PathBuf;

use super::Scope;
use crate::contract::block::{
    App, AppContract, AppState, Content, ContentType, ContractMode, Correlate, EmptyBody,
    EnvironmentValue, EnvironmentVariable, HealthCheck, LocalApp, OversizedRequest, Push,
    RequestKind, ShadowSafety, Transport,
};

pub(super) fn app(top: &Scope<'_>) -> App {
    let scope = top.inside("app");
    let local = scope.inside("local");
    App {
        image: scope.filled("image"),
        port: scope.port("port", 8080),
        socket: scope.text("socket").into(),
        path: scope.text("path"),
        health: scope.text("health"),
        health_check: scope.word("healthCheck").unwrap_or(HealthCheck::Http),
        contract: contract(&scope.inside("contract")),
        push: Push {
            port: scope.port("push.port", 6000),
            correlate: scope.word("push.correlate").unwrap_or(Correlate::Echo),
            allow_uncorrelated: scope.flag("push.allowUncorrelated"),
            copies: scope.texts("push.copies"),
        },
        max_request_bytes: scope.size("maxRequestBytes").unwrap_or_default(),
        max_response_bytes: scope.size("maxResponseBytes").unwrap_or_default(),
        oversized: scope
            .word("oversized")
            .unwrap_or(OversizedRequest::DeadLetter),
        forward_headers: scope.texts("forwardHeaders"),
        all_headers: scope.flag("allHeaders"),
        state: scope.word("state").unwrap_or(AppState::None),
        shadow: scope.word("shadow").unwrap_or(ShadowSafety::Unsafe),
        model_version: scope.filled("model.version"),
        env: scope
            .items("env")
            .unwrap_or_default()
            .iter()
            .map(variable)
            .collect(),
        resources: scope.get("resources"),
        local: local.is_there().then(|| LocalApp {
            directory: local.text("directory").into(),
            command: local.texts("command"),
            python_requirements: local.filled("python.requirements").map(PathBuf::from),
        }),
    }
}

fn contract(scope: &Scope<'_>) -> AppContract {
    AppContract {
        mode: scope.word("mode").unwrap_or(ContractMode::Reply),
        request: scope.word("request").unwrap_or(RequestKind::Single),
        content: scope.word("content").unwrap_or(Content::Raw),
        structured: scope.flag("structured"),
        content_type: scope.word("contentType").unwrap_or(ContentType::Always),
        timeout: scope.duration("timeout"),
        max_in_flight: scope.whole_32("maxInFlight"),
        transport: scope.word("transport").unwrap_or(Transport::Tcp),
        empty_body: scope.word("emptyBody").unwrap_or(EmptyBody::Error),
    }
}

fn variable(scope: &Scope<'_>) -> EnvironmentVariable {
    let reference = scope.get("valueFrom");
    EnvironmentVariable {
        name: scope.text("name"),
        value: if reference.is_null() {
            EnvironmentValue::Text(scope.text("value"))
        } else {
            EnvironmentValue::Reference(reference)
        },
    }
}
