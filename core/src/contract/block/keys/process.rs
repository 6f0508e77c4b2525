//! Keys of the processes themselves: ports, logs, traces.

use super::Absent::{Depends, Json, Nothing};
use super::Form::{Any, Filled, Ip, UrlOrNothing};
use super::Kind::{Flag, Secret, Section, Text, Whole, Word};
use super::{Key, Later, key};

pub(super) const KEYS: &[Key] = &[
    key(
        "admin",
        Section,
        Nothing,
        "Probes, metrics and operators' calls.",
    )
    .rule("D-H1"),
    key(
        "admin.bind",
        Text(Ip),
        Json("\"127.0.0.1\""),
        "Address of both ports; charts set the pod's.",
    )
    .rule("D-P5"),
    key(
        "admin.inputPort",
        Whole("port", 0, 65_535),
        Depends("9400; a free one under millrace dev"),
        "Port of the input proxy; 0 is any free one.",
    )
    .rule("D-H1"),
    key(
        "admin.outputPort",
        Whole("port", 0, 65_535),
        Depends("9401; a free one under millrace dev"),
        "Port of the output proxy; 0 is any free one.",
    )
    .rule("D-H1"),
    key(
        "admin.token",
        Secret,
        Nothing,
        "What /v1/* asks for; required when bind is not loopback.",
    )
    .rule("D-P6"),
    key(
        "admin.tapPayloads",
        Flag,
        Json("false"),
        "Whether /v1/tap may show keys and values to those who ask for them.",
    )
    .rule("D-H3"),
    key(
        "publish",
        Section,
        Nothing,
        "Between input and output; never leaves the pod.",
    )
    .rule("P-1"),
    key(
        "publish.socket",
        Text(Any),
        Json("\"\""),
        "Path of a Unix socket; wins over the port.",
    )
    .rule("P-1"),
    key(
        "publish.port",
        Whole("port", 0, 65_535),
        Depends("9402; a free one under millrace dev"),
        "Port on 127.0.0.1; 0 is any free one.",
    )
    .rule("P-1"),
    key("telemetry", Section, Nothing, "Logs and traces."),
    key(
        "telemetry.logFormat",
        Word(&["Text", "Json"]),
        Json("\"Text\""),
        "Form of log lines.",
    ),
    key(
        "telemetry.logLevel",
        Text(Filled),
        Json("\"info\""),
        "A level, or directives such as info,millrace_input=debug.",
    ),
    key("telemetry.otlp", Section, Nothing, "Where traces go."),
    key(
        "telemetry.otlp.endpoint",
        Text(UrlOrNothing),
        Json("\"\""),
        "Where traces go; empty: nowhere.",
    )
    .rule("D-F3")
    .later(Later::Set),
];
