//! From the document that a person wrote to one that the proxies can start with: addresses are
//! filled in, the embedded connection becomes an ordinary one.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use millrace_core::contract::block::{Block, Connection, ContractMode, Transport};
use serde_json::{Map, Value, json};

/// What the proxies are told instead of what the document leaves open.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// `host:port` of the broker that stands for embedded connections.
    pub bootstrap: Option<String>,
    /// Where the output listens for the input.
    pub publish_socket: String,
    /// Where the app listens.
    pub app: u16,
    /// Where it listens instead, if the block wants a socket.
    pub app_socket: Option<String>,
    /// The schema of events: an absolute path, because the document moves.
    pub event_schema: Option<PathBuf>,
    /// The schema of results.
    pub result_schema: Option<PathBuf>,
    /// Where the app posts its results, in push mode.
    pub push: Option<u16>,
    /// Where the input's admin port is.
    pub input_admin: u16,
    /// Where the output's admin port is.
    pub output_admin: u16,
}

impl Addresses {
    /// Takes what the document chooses, free ports for the rest, and sockets in this folder.
    ///
    /// # Errors
    /// If the machine has no free port.
    pub fn choose(
        block: &Block,
        bootstrap: Option<String>,
        sockets: &Path,
    ) -> std::io::Result<Self> {
        let socket = |name: &str| sockets.join(name).display().to_string();
        let by_socket = block.app.contract.transport == Transport::UnixSocket;
        let chosen = |port: millrace_core::contract::block::Port| match (port.chosen, port.number) {
            (true, number) if number != 0 => Ok(number),
            _ => free_port(),
        };
        Ok(Self {
            bootstrap,
            publish_socket: socket("publish.sock"),
            app_socket: by_socket.then(|| socket("app.sock")),
            app: chosen(block.app.port)?,
            event_schema: block.input.schema.clone(),
            result_schema: block.output.schema.clone(),
            push: match block.app.contract.mode {
                ContractMode::Push => Some(chosen(block.app.push.port)?),
                ContractMode::Reply => None,
            },
            input_admin: chosen(block.admin.input_port)?,
            output_admin: chosen(block.admin.output_port)?,
        })
    }
}

/// A port that nobody uses at the moment.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Whether a connection of the block needs the embedded broker.
pub fn needs_broker(block: &Block) -> bool {
    block
        .connections
        .values()
        .any(|c| matches!(c, Connection::Embedded(_)))
}

/// Fills the addresses in. `document` may be the bare spec or a whole object.
pub fn resolve(mut document: Value, addresses: &Addresses) -> Value {
    let whole = document.get("apiVersion").is_some() || document.get("kind").is_some();
    let spec = match document.get_mut("spec") {
        Some(spec) if whole => spec,
        _ => &mut document,
    };
    let mut embedded = false;
    if let (Some(bootstrap), Some(Value::Object(connections))) =
        (&addresses.bootstrap, spec.get_mut("connections"))
    {
        for connection in connections.values_mut() {
            if connection.get("embedded").is_some() {
                embedded = true;
                *connection = json!({"kafka": {"bootstrap": [bootstrap], "tls": "Off"}});
            }
        }
    }
    put(spec, &["app", "port"], json!(addresses.app));
    if let Some(socket) = &addresses.app_socket {
        put(spec, &["app", "socket"], json!(socket));
    }
    if let Some(push) = addresses.push {
        put(spec, &["app", "push", "port"], json!(push));
    }
    put(spec, &["admin", "inputPort"], json!(addresses.input_admin));
    put(
        spec,
        &["admin", "outputPort"],
        json!(addresses.output_admin),
    );
    put(
        spec,
        &["publish", "socket"],
        json!(addresses.publish_socket),
    );
    let schemas = [
        ("input", &addresses.event_schema),
        ("output", &addresses.result_schema),
    ];
    for (section, schema) in schemas {
        if let Some(path) = schema {
            put(spec, &[section, "schema"], json!(path));
        }
    }
    if embedded && spec.pointer("/topics/create").is_none() {
        // The default on an embedded connection (D-S1), which is not to be seen any more.
        put(spec, &["topics", "create"], json!("Missing"));
    }
    document
}

fn put(spec: &mut Value, path: &[&str], value: Value) {
    let mut node = spec;
    for key in path {
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        node = node
            .as_object_mut()
            .expect("it was just made one")
            .entry(*key)
            .or_insert(Value::Null);
    }
    *node = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            bootstrap: Some("127.0.0.1:19092".into()),
            publish_socket: "/tmp/p.sock".into(),
            app: 8081,
            app_socket: Some("/tmp/a.sock".into()),
            event_schema: Some("/here/event.json".into()),
            result_schema: None,
            push: None,
            input_admin: 9500,
            output_admin: 9501,
        }
    }

    #[test]
    fn an_embedded_connection_becomes_an_ordinary_one_and_addresses_are_filled_in() {
        let spec = json!({
            "identity": "local/demo/x",
            "connections": {"main": {"embedded": {}}, "far": {"kafka": {"bootstrap": ["b:1"]}}},
            "app": {"shadow": "Safe"},
        });
        for document in [spec.clone(), json!({"kind": "PipelineBlock", "spec": spec})] {
            let resolved = resolve(document, &addresses());
            let spec = resolved.get("spec").unwrap_or(&resolved);
            assert_eq!(
                spec.pointer("/connections/main/kafka/bootstrap/0"),
                Some(&json!("127.0.0.1:19092"))
            );
            assert_eq!(
                spec.pointer("/connections/far/kafka/bootstrap/0"),
                Some(&json!("b:1"))
            );
            assert_eq!(spec.pointer("/app/port"), Some(&json!(8081)));
            assert_eq!(spec.pointer("/app/socket"), Some(&json!("/tmp/a.sock")));
            assert_eq!(
                spec.pointer("/input/schema"),
                Some(&json!("/here/event.json"))
            );
            assert_eq!(spec.pointer("/app/shadow"), Some(&json!("Safe")));
            assert_eq!(spec.pointer("/publish/socket"), Some(&json!("/tmp/p.sock")));
            assert_eq!(spec.pointer("/topics/create"), Some(&json!("Missing")));
        }
    }

    #[test]
    fn a_choice_of_the_document_stays() {
        let spec =
            json!({"connections": {"main": {"embedded": {}}}, "topics": {"create": "Never"}});
        let resolved = resolve(spec, &addresses());
        assert_eq!(resolved.pointer("/topics/create"), Some(&json!("Never")));
    }
}
