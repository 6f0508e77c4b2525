//! The reference pages against the code: the command line's page is what `--help` says, and the
//! answers shown in the app contract mean what the page says they mean.
//!
//! `UPDATE=1 cargo test -p millrace-integration-tests --test reference_pages` rewrites the former.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Command, CommandFactory as _};
use millrace_cli::commands::Arguments;
use millrace_core::contract::app::{
    AnswerHead, CallContext, ContentMode, EmptyBody, RequestMode, read_push, read_single,
};
use millrace_core::outcome::{Class, Item, Outcome};

fn docs(page: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(page)
}

fn section(page: &mut String, name: &str, command: &Command) {
    // What the environment of this run holds is nobody's default.
    let mut shown = command
        .clone()
        .mut_args(|argument| argument.hide_env_values(true))
        .term_width(100);
    let help = trimmed(&shown.render_long_help().to_string());
    write!(
        page,
        "
## {name}

```text
{help}
```
"
    )
    .expect("text");
    let inner = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
    for inner in inner {
        section(page, &format!("{name} {}", inner.get_name()), inner);
    }
}

fn trimmed(help: &str) -> String {
    help.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
        .trim_end()
        .to_owned()
}

#[test]
fn the_command_line_page_is_what_help_says() {
    let mut command = Arguments::command();
    command.build();
    let mut page = "# Command line\n\nMade from `millrace --help`; `UPDATE=1` writes it again \
                    (integration-tests/tests/reference_pages.rs).\n"
        .to_owned();
    section(&mut page, "millrace", &command);
    let path = docs("reference/cli.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).expect("written");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|kept| kept == page),
        "docs/reference/cli.md is old; UPDATE=1 cargo test -p millrace-integration-tests --test reference_pages"
    );
}

/// An ```http block of the page.
struct Message {
    first_line: String,
    headers: Vec<(String, String)>,
    body: String,
}

fn messages() -> Vec<Message> {
    let page = fs::read_to_string(docs("reference/app-contract.md")).expect("the page");
    let blocks = page
        .split("```http\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().expect("a block"));
    blocks
        .map(|block| {
            let (head, body) = block.split_once("\n\n").expect("a head and a body");
            let mut lines = head.lines();
            let first_line = lines.next().expect("a first line").to_owned();
            let headers = lines.map(|line| {
                let (name, value) = line.split_once(": ").expect("a header");
                (name.to_owned(), value.to_owned())
            });
            Message {
                first_line,
                headers: headers.collect(),
                body: body.to_owned(),
            }
        })
        .collect()
}

impl Message {
    fn answer(&self) -> Option<Outcome> {
        let status = self
            .first_line
            .strip_prefix("HTTP/1.1 ")?
            .split(' ')
            .next()?
            .parse()
            .ok()?;
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let head = AnswerHead::read(status, headers);
        let context = CallContext {
            content: ContentMode::Raw,
            cluster: String::new(),
            path: "/process".into(),
            release: "r1".into(),
            max_attempts: 5,
            forward_headers: Vec::new(),
            all_headers: false,
            push: false,
            content_type_always: true,
            empty_body: EmptyBody::Error,
            request: RequestMode::Single,
            max_request_bytes: 1 << 20,
            max_response_bytes: 1 << 20,
        };
        Some(read_single(
            &context,
            &head,
            Bytes::from(self.body.clone()),
            0,
        ))
    }
}

#[test]
fn the_lengths_in_the_contract_page_are_right() {
    let messages = messages();
    assert!(messages.len() >= 6);
    for message in messages {
        let length = message
            .headers
            .iter()
            .find(|(name, _)| name == "Content-Length");
        assert_eq!(
            length.expect("a length").1,
            message.body.len().to_string(),
            "{}",
            message.body
        );
    }
}

#[test]
fn the_answers_in_the_contract_page_mean_what_it_says() {
    let outcomes: Vec<Outcome> = messages().iter().filter_map(Message::answer).collect();
    let [one, several, busy, _batch, _to_the_app] = outcomes.as_slice() else {
        panic!("{outcomes:?}")
    };
    assert!(
        matches!(one, Outcome::Items(items) if matches!(items[..], [Item::Emit(_)])),
        "{one:?}"
    );
    let Outcome::Items(items) = several else {
        panic!("{several:?}")
    };
    let [Item::EmitMany(outputs)] = items.as_slice() else {
        panic!("{items:?}")
    };
    assert_eq!(outputs[0].value.as_deref(), Some(&b"a"[..]));
    assert_eq!(outputs[1].value.as_deref(), Some(&[0x00, 0xFF][..]));
    assert_eq!(outputs[1].topic.as_deref(), Some("orders-alt"));
    let Outcome::Failed(failure) = busy else {
        panic!("{busy:?}")
    };
    assert_eq!(
        (failure.class, failure.code.as_str()),
        (Class::Transient, "DB_BUSY")
    );
}

#[test]
fn the_post_in_the_contract_page_is_a_result_and_is_answered_with_its_value() {
    let messages = messages();
    let at = messages
        .iter()
        .position(|message| message.first_line == "POST / HTTP/1.1");
    let at = at.expect("a post of push mode");
    let headers: Vec<_> = messages[at]
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let pushed = read_push(&headers, &Bytes::from(messages[at].body.clone()), false);
    let pushed = pushed.expect("a result");
    assert!(pushed.correlation.is_some());
    assert_eq!(
        pushed.output.value.as_deref(),
        Some(messages[at].body.as_bytes())
    );
    let answer = &messages[at + 1];
    assert_eq!(answer.body, format!("msg: {}", messages[at].body));
}
