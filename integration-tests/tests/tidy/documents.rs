//! What the documents promise exists: files, sections, `make` targets, metrics; and every page can
//! be found from the index.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::assert_clean;
use super::tree::{files, root, sources};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A document's text without code blocks and code spans, whose brackets are no links.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            for (at, part) in line.split('`').enumerate() {
                prose.push_str(if at % 2 == 0 { part } else { "code" });
            }
        }
        prose.push('\n');
    }
    prose
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose
        .match_indices("](")
        .filter_map(|(at, _)| {
            let target = prose[at + 2..].split(')').next()?;
            Some(
                target
                    .split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            )
        })
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        in_block ^= line.starts_with("```");
        if in_block || !line.starts_with('#') {
            continue;
        }
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// Where the links of `document`, which reads `text`, lead nowhere.
fn broken_links(root: &Path, document: &str, text: &str) -> Vec<String> {
    let folder = Path::new(document).parent().expect("a file has a folder");
    let broken = |link: &String| {
        if link.contains("://") || link.starts_with("mailto:") {
            return false;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = root.join(folder).join(file);
        let target_text = if file.is_empty() {
            text.to_owned()
        } else if anchor.is_empty() {
            return !target.exists();
        } else {
            fs::read_to_string(target).unwrap_or_default()
        };
        !anchors(&target_text).contains(anchor)
    };
    links(text)
        .iter()
        .filter(|link| broken(link))
        .map(|link| format!("{document}: {link} leads nowhere"))
        .collect()
}

#[test]
fn every_link_of_every_document_leads_somewhere() {
    let documents = files(&root(), "md");
    assert!(documents.iter().any(|path| path == "README.md"));
    assert_clean(
        documents
            .iter()
            .flat_map(|path| broken_links(&root(), path, &read(path)))
            .collect(),
    );
}

#[test]
fn a_broken_link_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("docs")).expect("created");
    fs::write(
        folder.path().join("docs/a.md"),
        "# One title, `two` words\n```\n# no title\n```\n",
    )
    .expect("written");
    let check = |text: &str, broken| {
        assert_eq!(
            broken_links(folder.path(), "docs/b.md", text).len(),
            broken,
            "{text}"
        )
    };
    check(
        "[x](a.md) [x](../docs/a.md#one-title-two-words) [x](https://a.b/c) [x](#here)\n# Here",
        0,
    );
    check("[x](c.md)", 1);
    check("[x](a.md#no-title)", 1);
    check("[x](#there)", 1);
    check("`[x](c.md)`\n```\n[x](c.md)\n```\n", 0);
}

#[test]
fn every_page_is_found_from_the_index() {
    let index: BTreeSet<String> = links(&read("docs/README.md")).into_iter().collect();
    let missing = files(&root().join("docs"), "md")
        .into_iter()
        .filter(|page| page != "README.md" && !index.contains(page));
    assert_clean(
        missing
            .map(|page| format!("docs/README.md does not link {page}"))
            .collect(),
    );
}

/// Targets that `make` is called with in code spans and code blocks.
fn make_targets(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let spans: Vec<&str> = if in_block {
            vec![line]
        } else {
            line.split('`')
                .enumerate()
                .filter(|(at, _)| at % 2 == 1)
                .map(|(_, s)| s)
                .collect()
        };
        for span in spans {
            let Some(target) = span.trim_start_matches("$ ").strip_prefix("make ") else {
                continue;
            };
            let name: String = target
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            if !name.is_empty() && !name.starts_with('-') {
                found.insert(name);
            }
        }
    }
    found
}

#[test]
fn the_make_targets_that_documents_name_exist() {
    let makefile = read("Makefile");
    let exists = |target: &String| {
        makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")))
    };
    let mut complaints = Vec::new();
    for path in files(&root(), "md") {
        // An app's own documents speak of the app's own Makefile.
        if path.starts_with("app-template/") {
            continue;
        }
        let unknown = make_targets(&read(&path))
            .into_iter()
            .filter(|target| !exists(target));
        complaints.extend(unknown.map(|target| format!("{path}: there is no `make {target}`")));
    }
    assert_clean(complaints);
    assert_eq!(
        make_targets("`make it`\n```sh\nmake that KEEP=1\n```\nmake no -C").len(),
        2
    );
}

/// Every whole `millrace_…` name in the text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("millrace_") {
        let before = text[..at].chars().next_back();
        let name: String = text[at..]
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_')
            .collect();
        let after = text[at + name.len()..].chars().next();
        // In code a metric is a text of its own; in the page it is a code span of its own.
        if matches!(
            (before, after),
            (Some('"'), Some('"')) | (Some('`'), Some('`'))
        ) {
            found.insert(name);
        }
    }
    found
}

#[test]
fn the_metrics_page_lists_what_the_code_registers() {
    let documented = metric_names(&read("docs/reference/metrics.md"));
    let mut registered = BTreeSet::new();
    for source in sources() {
        let metered = ["input/src/", "output/src/", "service/src/"]
            .iter()
            .any(|place| source.path.starts_with(place));
        if metered && !source.in_tests_folder() {
            let shipped = source.tests_from_line().unwrap_or(usize::MAX);
            let text: Vec<&str> = source.text.lines().take(shipped).collect();
            registered.extend(metric_names(&text.join("\n")));
        }
    }
    assert!(registered.len() > 20, "found only {registered:?}");
    let unknown = documented
        .difference(&registered)
        .map(|name| format!("documented, not registered: {name}"));
    let silent = registered
        .difference(&documented)
        .map(|name| format!("registered, not documented: {name}"));
    assert_clean(unknown.chain(silent).collect());
}

#[test]
fn shell_scripts_parse_and_can_be_started() {
    let mut scripts = files(&root(), "sh");
    scripts.push(".ci/run".into());
    let mut complaints = Vec::new();
    for script in scripts {
        let path = root().join(&script);
        let mode = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .permissions()
            .mode();
        if mode & 0o111 == 0 {
            complaints.push(format!("{script} is not executable"));
        }
        if !Command::new("bash")
            .arg("-n")
            .arg(&path)
            .status()
            .expect("bash runs")
            .success()
        {
            complaints.push(format!("{script} does not parse"));
        }
    }
    assert_clean(complaints);
}

/// Whatever a manifest names that is not ours.
fn dependencies() -> BTreeSet<String> {
    let (_, edges) = super::edges();
    edges
        .into_iter()
        .map(|edge| edge.to)
        .filter(|name| !name.starts_with("millrace-"))
        .collect()
}

#[test]
fn every_dependency_has_a_decision() {
    let decisions: String = files(&root().join("docs/decisions"), "md")
        .iter()
        .map(|page| read(&format!("docs/decisions/{page}")))
        .collect();
    let named: BTreeSet<&str> = decisions
        .split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'))
        .collect();
    let silent = dependencies()
        .into_iter()
        .filter(|name| !named.contains(name.as_str()));
    assert_clean(
        silent
            .map(|name| format!("no page in docs/decisions speaks of {name}"))
            .collect(),
    );
}
