//! Keys of the customer's container.

use super::Absent::{Depends, Json, Nothing, Required};
use super::Form::{Any, File, Filled, HeaderName, HttpPath, Variable};
use super::Kind::{Anything, Duration, Flag, Section, Sections, Size, Text, Texts, Whole, Word};
use super::{Key, Later, Zero, key};

pub(super) const KEYS: &[Key] = &[
    key("app", Section, Required, "The customer's container; only this section is released."),
    key("app.image", Text(Any), Nothing, "Its image; required on clusters only.").rule("C-6"),
    key("app.port", Whole("port", 1, 65_535), Depends("8080; a free one under millrace dev"), "Where it listens on 127.0.0.1."),
    key("app.socket", Text(Filled), Json("\"/var/run/millrace/app.sock\""), "Where it listens with transport: UnixSocket; millrace dev chooses a path and tells the app by SOCKET.").rule("A-T1"),
    key("app.path", Text(HttpPath), Json("\"/process\""), "Path of single requests; batches go to it with -batch."),
    key("app.health", Text(HttpPath), Json("\"/healthz\""), "Path of the health check.").rule("D-S1"),
    key("app.contract", Section, Nothing, "How the proxies talk to it."),
    key("app.contract.mode", Word(&["Reply", "Push"]), Json("\"Reply\""), "Results in the response, or posted to the output proxy.").rule("R10").later(Later::Words(&["Push"])),
    key("app.contract.request", Word(&["Single", "Batch"]), Json("\"Single\""), "One event or many per request.").rule("A-B1"),
    key("app.contract.content", Word(&["Raw", "CloudEvents"]), Json("\"Raw\""), "The value's bytes as they are, or CloudEvents.").rule("A-C1"),
    key("app.contract.structured", Flag, Json("false"), "Structured requests, with CloudEvents.").rule("A-C2"),
    key("app.contract.timeout", Duration(Zero::Refused), Json("\"30s\""), "Of one request, wall clock; at most 24h."),
    key("app.contract.maxInFlight", Whole("requests", 1, 4_096), Json("32"), "Requests that may be open at it.").rule("D-C2"),
    key("app.contract.transport", Word(&["Tcp", "UnixSocket", "Http2"]), Json("\"Tcp\""), "HTTP/1.1 on 127.0.0.1, the same on a socket, or HTTP/2 without TLS.").rule("A-T1"),
    key("app.contract.emptyBody", Word(&["Error", "Filter", "Emit"]), Json("\"Error\""), "What a 200 without a body means: malformed, no result, or an empty result."),
    key("app.push", Section, Nothing, "Where it posts results, with mode: Push."),
    key("app.push.port", Whole("port; 0 is any free one", 0, 65_535), Depends("6000; any free one under millrace dev"), "Where the output proxy listens on 127.0.0.1.").rule("D-P5"),
    key("app.push.correlate", Word(&["Echo", "Serial"]), Json("\"Echo\""), "How a posted result finds its event: an echoed header, or one event at a time.").rule("A5"),
    key("app.push.allowUncorrelated", Flag, Json("false"), "Whether results that belong to no event pass.").rule("R10"),
    key("app.maxRequestBytes", Size(1), Json("\"8Mi\""), "Largest request body."),
    key("app.maxResponseBytes", Size(1), Json("\"8Mi\""), "Largest response body."),
    key("app.oversized", Word(&["DeadLetter", "Block"]), Json("\"DeadLetter\""), "An event above maxRequestBytes: store it with the reason, or hold its lane and alert."),
    key("app.forwardHeaders", Texts(HeaderName), Json("[]"), "Record headers to send along as Millrace-Header-<name>.").rule("A-S2"),
    key("app.allHeaders", Flag, Json("false"), "Send all record headers as one Millrace-Headers.").rule("A-S2"),
    key("app.state", Word(&["None", "PerRelease", "Shared"]), Json("\"None\""), "What it remembers between events: nothing, each release its own, or all releases the same.").rule("C-2"),
    key("app.shadow", Word(&["Safe", "Aware", "Unsafe"]), Required, "Whether it may be asked in silence: it has no side effects, it obeys Millrace-Mode, or neither.").rule("A-S3"),
    key("app.model", Section, Nothing, "What it computes with."),
    key("app.model.version", Text(Any), Json("\"\""), "A word for it; part of the release id.").rule("T1"),
    key("app.env[]", Sections, Json("[]"), "Its environment, as in a Pod."),
    key("app.env[].name", Text(Variable), Required, "Name of the variable."),
    key("app.env[].value", Text(Any), Nothing, "Its value; or valueFrom."),
    key("app.env[].valueFrom", Anything, Nothing, "A reference as in a Pod; clusters only.").rule("C-3"),
    key("app.resources", Anything, Json("{}"), "Requests and limits, as in a Pod."),
    key("app.local", Section, Nothing, "How millrace dev starts it.").rule("C-6"),
    key("app.local.directory", Text(File), Json("\".\""), "Where it runs, relative to the document."),
    key("app.local.command", Texts(Filled), Required, "Program and arguments."),
    key("app.local.python", Section, Nothing, "Give it a virtual environment of its own."),
    key("app.local.python.requirements", Text(File), Required, "What to install there, relative to directory."),
];
