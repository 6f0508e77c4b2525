//! The reference page of configuration (C-4), from the table of keys.

use std::fmt::Write as _;

use super::keys::{self, Absent, Key, Kind, Later};

const HEAD: &str = "\
<!-- Generated from core/src/contract/block/keys; `UPDATE=1 cargo test -p millrace-service` rewrites it. -->
# Configuration

One document describes a block. It is YAML: the bare document, or a whole `PipelineBlock` object \
whose `spec` it is. `millrace check FILE` reports everything that is wrong with it at once; \
`millrace schema` prints its JSON Schema for editors.

- Durations are `250ms`, `10s`, `5m`, `24h`; sizes are bytes or `64Ki`, `8Mi`, `2Gi`; percentages are text: `\"25%\"`.
- A secret is a reference: `{file: FILE}` or `{env: NAME}`. Files are read again when they change; any other change needs a restart.
- `null` is the same as leaving a key out.
- Environment variables override the document: `MILLRACE__FLOW__MAX_IN_FLIGHT=512` is `flow.maxInFlight`. Two underscores separate levels; case and single underscores do not matter; values are YAML, so `MILLRACE__INPUT__KAFKA__TOPICS='[a, b]'` is a list. Lists are replaced as a whole. In names of librdkafka properties an underscore stands for a dot.
- *Needed*: the document is refused without it (within its section, if the section is there).
- *Later*: the key is valid, but this version refuses to start a block that uses it.

";

/// The page, as Markdown.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    let mut top = "";
    for key in keys::all() {
        let section = key.path.split(['.', '[']).next().unwrap_or(key.path);
        if section != top {
            top = section;
            page.push_str(&format!("\n## {top}\n\n"));
            page.push_str("| key | type | unit | default | since | rule | meaning |\n|---|---|---|---|---|---|---|\n");
        }
        row(&mut page, key);
    }
    page
}

fn row(page: &mut String, key: &Key) {
    let later = match key.later {
        Later::No => String::new(),
        Later::Set => " *Later.*".to_owned(),
        Later::Words(words) => format!(" *Later: {}.*", words.join(", ")),
    };
    let rule = if key.rule.is_empty() { "–" } else { key.rule };
    let unit = key.kind.unit();
    let unit = if unit.is_empty() { "–" } else { &unit };
    writeln!(
        page,
        "| `{}` | {} | {unit} | {} | {} | {rule} | {}{later} |",
        key.path,
        key.kind.type_name(),
        default(key),
        key.since,
        key.says,
    )
    .expect("writing to a String cannot fail");
}

fn default(key: &Key) -> String {
    match key.default {
        Absent::Required => "*needed*".to_owned(),
        Absent::Nothing if matches!(key.kind, Kind::Section) => "–".to_owned(),
        Absent::Nothing => "nothing".to_owned(),
        Absent::Json(text) => {
            let plain = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            format!(
                "`{}`",
                plain.filter(|text| !text.is_empty()).unwrap_or(text)
            )
        }
        Absent::Depends(words) => words.to_owned(),
    }
}
