//! The profile `agogosml`: the environment of an agogosml deployment becomes a block document
//! (A-K1, A-K5), so that its containers can be exchanged one for one.
//!
//! Invariant: each problem names the variable that a person has to change.
//! Invariant: no secret stands in the document; it refers to the variable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::Problem;
use super::problem::Problems;

/// The variable that selects the profile.
pub const SELECTOR: &str = "MESSAGING_TYPE";

/// The release of a block that has none: this profile exchanges apps by restarting (A-P4).
pub const RELEASE: &str = "r1-00000000";

/// Which of the two proxies starts: it decides the direction, not the set of variables (A-K8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Reads events and calls the app.
    Input,
    /// Stores what the app posts.
    Output,
}

/// What the environment says.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// The block document.
    pub document: Value,
    /// The process ends by itself after this long.
    pub stop_after: Option<Duration>,
    /// What was read and does nothing.
    pub ignored: Vec<String>,
}

/// Where the other half of the block is set up: this half never looks there.
const ELSEWHERE: &str = "set-up-by-the-other-proxy";

/// Certificates that agogosml takes where nobody says otherwise.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const CONNECTION_STRING: &str = "EVENT_HUB_KAFKA_CONNECTION_STRING";

/// What is accepted and does nothing.
const IGNORED: [&str; 3] = [
    "LOG_CFG",
    "APPINSIGHTS_INSTRUMENTATIONKEY",
    "APPINSIGHTS_ENDPOINT",
];

/// Reads the environment of one of the two proxies.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(
    direction: Direction,
    variables: &BTreeMap<String, String>,
) -> Result<Profile, Problems> {
    let mut reader = Reader {
        direction,
        variables,
        problems: Vec::new(),
    };
    let profile = reader.profile();
    match Problems::some(reader.problems) {
        None => Ok(profile),
        Some(problems) => Err(problems),
    }
}

struct Reader<'a> {
    direction: Direction,
    variables: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn profile(&mut self) -> Profile {
        self.twins();
        self.messaging_type();
        let address = self.address();
        let (input, output) = self.topics();
        let copies = self.broadcast(&address);
        let own = match self.direction {
            Direction::Input => &input,
            Direction::Output => &output,
        };
        let name = label(own.as_deref().unwrap_or_default());
        let group = match self.direction {
            Direction::Input => self.required("KAFKA_CONSUMER_GROUP"),
            Direction::Output => None,
        };
        let identity = match &group {
            // Inputs of one group share the work, as they did.
            Some(group) => format!("agogosml/{}", label(group)),
            None => format!("agogosml/{name}"),
        };
        let app_port = self.host_and_port("APP_HOST", "APP_PORT", 5_000);
        let push_port = self.host_and_port("OUTPUT_WRITER_HOST", "OUTPUT_WRITER_PORT", 6_000);
        let topic = |topic: &Option<String>| topic.clone().unwrap_or_else(|| ELSEWHERE.to_owned());
        let (input, output) = (topic(&input), topic(&output));
        let mut document = json!({
            "identity": identity,
            "connections": {"main": {"kafka": self.connection(&address)}},
            "input": {"kafka": {"connection": "main", "topics": [input], "startAt": "Earliest"}},
            "output": {"kafka": {
                "connection": "main",
                "topic": output,
                "deadLetter": format!("{output}.dlq"),
                "verification": format!("{output}.verify"),
            }},
            "topics": {"create": "Missing"},
            "retry": {"maxAttempts": 4, "backoff": {"initial": "1s"}},
            "app": {
                "port": app_port,
                "path": "/",
                "healthCheck": "Connect",
                "shadow": "Unsafe",
                "contract": {"mode": "Push", "contentType": "IfKnown"},
                "push": {
                    "port": push_port,
                    "correlate": "Serial",
                    "allowUncorrelated": true,
                    "copies": copies,
                },
            },
            "release": {"strategy": "Recreate"},
            "telemetry": {"logFormat": "Json", "logLevel": "info,millrace::messages=trace"},
        });
        if let Some(group) = group {
            document["input"]["kafka"]["adoptGroup"] = group.into();
        }
        Profile {
            document,
            stop_after: self.stop_after(),
            ignored: IGNORED
                .into_iter()
                .filter(|name| self.variables.contains_key(*name))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// A variable under either of its spellings (A-K1); empty is as good as absent.
    fn get(&self, name: &str) -> Option<&str> {
        let twin = name.strip_prefix("EVENT_HUB_");
        let twin = twin.map(|rest| format!("EVENTHUB_{rest}"));
        let value = |name: &str| self.variables.get(name).map(|value| value.trim());
        value(name)
            .or_else(|| value(&twin?))
            .filter(|value| !value.is_empty())
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let value = self.get(name).map(str::to_owned);
        if value.is_none() {
            self.wrong(name, "nothing", "a value; it is needed", "A-K5");
        }
        value
    }

    fn wrong(&mut self, name: &str, found: impl Into<String>, allowed: &str, rule: &str) {
        self.problems
            .push(Problem::new(name, found, allowed).because(rule));
    }

    /// `EVENT_HUB_X` and `EVENTHUB_X` are one name.
    fn twins(&mut self) {
        for (name, value) in self.variables {
            if let Some(rest) = name.strip_prefix("EVENT_HUB_") {
                let twin = format!("EVENTHUB_{rest}");
                let other = self.variables.get(&twin);
                if other.is_some_and(|other| other != value) {
                    // The values may be secrets.
                    self.wrong(
                        name,
                        format!("another value than {twin}"),
                        "one value under both names, or only one of them",
                        "A-K1",
                    );
                }
            }
        }
    }

    fn messaging_type(&mut self) {
        let kind = self.get(SELECTOR).unwrap_or_default().to_ascii_lowercase();
        let found = format!("{kind:?}");
        let later = "not in this version";
        match (kind.as_str(), self.direction) {
            ("kafka", _) | ("broadcast", Direction::Output) => {}
            ("eventhub", _) => self.wrong(
                SELECTOR,
                found,
                "kafka, with KAFKA_ADDRESS and EVENT_HUB_KAFKA_CONNECTION_STRING for the Kafka endpoint of Event Hubs",
                later,
            ),
            ("storage" | "redis", Direction::Output) => {
                self.wrong(SELECTOR, found, "kafka, broadcast", later);
            }
            (_, Direction::Input) => self.wrong(SELECTOR, found, "kafka", "A-K5"),
            (_, Direction::Output) => self.wrong(SELECTOR, found, "kafka, broadcast", "A-K5"),
        }
    }

    fn is_broadcast(&self) -> bool {
        let kind = self.get(SELECTOR).unwrap_or_default();
        self.direction == Direction::Output && kind.eq_ignore_ascii_case("broadcast")
    }

    /// Brokers; of a broadcast those of its clients.
    fn address(&mut self) -> Vec<String> {
        let text = if self.is_broadcast() {
            self.get("KAFKA_ADDRESS").map(str::to_owned).or_else(|| {
                let clients = clients(self.get("BROADCAST_CLIENTS")?).ok()?;
                clients.into_iter().find_map(|client| client.address)
            })
        } else {
            self.required("KAFKA_ADDRESS")
        };
        let Some(text) = text else { return Vec::new() };
        text.split(',')
            .map(|broker| {
                let broker = broker.trim();
                let (scheme, rest) = broker.split_once("://").unwrap_or(("", broker));
                let scheme = scheme.to_ascii_lowercase();
                if !["", "kafka", "plaintext", "ssl", "sasl_ssl"].contains(&scheme.as_str()) {
                    self.wrong(
                        "KAFKA_ADDRESS",
                        format!("the scheme {scheme:?}"),
                        "host:port, several separated by commas",
                        "A-K5",
                    );
                }
                rest.to_owned()
            })
            .collect()
    }

    /// Topics of both directions, as far as they are told; the suffix wins.
    fn topics(&mut self) -> (Option<String>, Option<String>) {
        let plain = self.get("KAFKA_TOPIC").map(str::to_owned);
        let mut input = self.get("KAFKA_TOPIC_INPUT").map(str::to_owned);
        let mut output = self.get("KAFKA_TOPIC_OUTPUT").map(str::to_owned);
        match self.direction {
            Direction::Input => input = input.or(plain),
            Direction::Output => output = output.or(plain),
        }
        if self.is_broadcast() {
            let clients = self.get("BROADCAST_CLIENTS").map(clients);
            if let Some(Ok(clients)) = clients {
                output = clients.into_iter().find_map(|client| client.topic);
            }
        }
        if input.is_some() && input == output {
            self.wrong(
                match self.direction {
                    Direction::Input => "KAFKA_TOPIC_INPUT",
                    Direction::Output => "KAFKA_TOPIC_OUTPUT",
                },
                format!(
                    "{:?} for input and output",
                    input.as_deref().unwrap_or_default()
                ),
                "two topics",
                "A-K5, D-O6",
            );
        }
        let missing = match self.direction {
            Direction::Input => input.is_none(),
            Direction::Output => output.is_none() && !self.is_broadcast(),
        };
        if missing {
            self.wrong("KAFKA_TOPIC", "nothing", "a value; it is needed", "A-K5");
        }
        (input, output)
    }

    /// Topics of a broadcast beside the first one (A-K4).
    fn broadcast(&mut self, address: &[String]) -> Vec<String> {
        const NAME: &str = "BROADCAST_CLIENTS";
        if !self.is_broadcast() {
            return Vec::new();
        }
        let Some(text) = self.required(NAME) else {
            return Vec::new();
        };
        let clients = match clients(&text) {
            Ok(clients) => clients,
            Err(message) => {
                let allowed =
                    "a list of {\"type\": …, \"config\": {…}}, as JSON or as Python writes it";
                self.wrong(NAME, message, allowed, "A-K4");
                return Vec::new();
            }
        };
        let mut topics = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, client) in clients.into_iter().enumerate() {
            let at = format!("{NAME}[{i}]");
            if !client.kind.eq_ignore_ascii_case("kafka") {
                let known = ["eventhub", "storage", "redis", "broadcast"];
                let kind = client.kind.to_ascii_lowercase();
                let why = if known.contains(&kind.as_str()) {
                    "not in this version"
                } else {
                    "A-K5"
                };
                self.wrong(
                    &format!("{at}.type"),
                    format!("{:?}", client.kind),
                    "kafka",
                    why,
                );
                continue;
            }
            let Some(topic) = client.topic else {
                self.wrong(
                    &format!("{at}.config.KAFKA_TOPIC"),
                    "nothing",
                    "a value; it is needed",
                    "A-K5",
                );
                continue;
            };
            let elsewhere = client.address.is_some_and(|own| {
                own.split(',')
                    .map(str::trim)
                    .ne(address.iter().map(String::as_str))
            });
            if elsewhere {
                self.wrong(
                    &format!("{at}.config.KAFKA_ADDRESS"),
                    "other brokers",
                    "the brokers of the first client",
                    "not in this version",
                );
            }
            if !seen.insert(topic.clone()) {
                self.wrong(
                    &format!("{at}.config.KAFKA_TOPIC"),
                    format!("{topic:?} again"),
                    "each topic once",
                    "A-K4",
                );
            }
            topics.push(topic);
        }
        if topics.is_empty() && self.problems.is_empty() {
            self.wrong(NAME, "an empty list", "at least one client", "A-K5");
        }
        topics.into_iter().skip(1).collect()
    }

    /// A host that is this pod, and a port.
    fn host_and_port(&mut self, host: &str, port: &str, usual: u16) -> u16 {
        if let Some(text) = self.variables.get(host) {
            let text = text.trim();
            let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
            let local = ["localhost", "127.0.0.1", "0.0.0.0", "::1", "::"];
            if text.is_empty() {
                self.wrong(host, "nothing", "localhost", "A-K5");
            } else if !["", "http"].contains(&scheme.to_ascii_lowercase().as_str()) {
                self.wrong(host, format!("the scheme {scheme:?}"), "localhost", "A-K5");
            } else if !local.contains(&rest.trim_end_matches('/')) {
                let allowed = "localhost: app and proxies share a pod";
                self.wrong(host, format!("{text:?}"), allowed, "D-P5");
            }
        }
        let Some(text) = self.variables.get(port) else {
            return usual;
        };
        match text.trim().parse::<u16>() {
            Ok(number) if number > 0 => number,
            _ => {
                self.wrong(port, format!("{text:?}"), "1 to 65535", "A-K5");
                usual
            }
        }
    }

    fn connection(&mut self, address: &[String]) -> Value {
        let mut kafka = json!({"bootstrap": address, "tls": "Off"});
        if self.get(CONNECTION_STRING).is_some() {
            let named = if self.variables.contains_key(CONNECTION_STRING) {
                CONNECTION_STRING.to_owned()
            } else {
                CONNECTION_STRING.replacen("EVENT_HUB_", "EVENTHUB_", 1)
            };
            let certificates = self.get("SSL_CERT_LOCATION").unwrap_or(CERTIFICATES);
            kafka["preset"] = "EventHubs".into();
            kafka["tls"] = json!({ "ca": certificates });
            kafka["sasl"] = json!({
                "mechanism": "Plain",
                "username": "$ConnectionString",
                "password": {"env": named},
            });
        }
        if let Some(debug) = self.get("KAFKA_DEBUG") {
            kafka["properties"] = json!({ "debug": debug });
        }
        kafka
    }

    fn stop_after(&mut self) -> Option<Duration> {
        let name = ["TIMEOUT", "KAFKA_TIMEOUT"]
            .into_iter()
            .find(|name| self.get(name).is_some())?;
        let text = self.get(name).unwrap_or_default().to_owned();
        match text.parse::<f64>() {
            Ok(seconds) if seconds > 0.0 && seconds < 1e9 => Some(Duration::from_secs_f64(seconds)),
            _ => {
                self.wrong(name, format!("{text:?}"), "seconds, more than 0", "A-K5");
                None
            }
        }
    }
}

/// A segment of an identity that no two names share.
fn label(name: &str) -> String {
    let mut label: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    label = label.trim_matches('-').to_owned();
    if label != name || label.is_empty() {
        let hash = crc32c::crc32c(name.as_bytes());
        let dash = if label.is_empty() { "" } else { "-" };
        label = format!("{label}{dash}{hash:08x}");
    }
    label
}

/// One of `BROADCAST_CLIENTS`.
struct Client {
    kind: String,
    topic: Option<String>,
    address: Option<String>,
}

fn clients(text: &str) -> Result<Vec<Client>, String> {
    let list: Value = match serde_json::from_str(text) {
        Ok(list) => list,
        Err(_) => serde_json::from_str(&from_python(text)).map_err(|error| error.to_string())?,
    };
    let list = list.as_array().ok_or("no list")?;
    list.iter()
        .map(|client| {
            // Values are text, whatever they look like (A-K1).
            let text = |value: &Value| match value {
                Value::String(text) => Some(text.trim().to_owned()).filter(|t| !t.is_empty()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            let config = &client["config"];
            let first = |names: [&str; 2]| names.into_iter().find_map(|name| text(&config[name]));
            Ok(Client {
                kind: text(&client["type"]).ok_or("a client without type")?,
                topic: first(["KAFKA_TOPIC_OUTPUT", "KAFKA_TOPIC"]),
                address: text(&config["KAFKA_ADDRESS"]),
            })
        })
        .collect()
}

/// A Python literal of lists, dictionaries, texts, numbers and the three constants, as JSON.
fn from_python(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' | '"' => {
                let mut content = String::new();
                while let Some(inner) = rest.next() {
                    match inner {
                        '\\' => content.extend(rest.next()),
                        end if end == c => break,
                        other => content.push(other),
                    }
                }
                json += &Value::String(content).to_string();
            }
            ']' | '}' => {
                // Python allows a comma behind the last item.
                let end = json.trim_end().trim_end_matches(',').len();
                json.truncate(end);
                json.push(c);
            }
            c if c.is_ascii_alphabetic() => {
                let mut word = String::from(c);
                while let Some(next) = rest.next_if(char::is_ascii_alphanumeric) {
                    word.push(next);
                }
                json += match word.as_str() {
                    "True" => "true",
                    "False" => "false",
                    "None" => "null",
                    other => other,
                };
            }
            other => json.push(other),
        }
    }
    json
}

#[cfg(test)]
mod tests;
