//! Rules of releases: what an app's state and side effects permit, and gates that make sense.

use super::{Checker, at_most};
use crate::contract::block::problem::Problem;
use crate::contract::block::{
    AppState, Block, Compare, CompareMode, ContractMode, Correlate, GateSource, ShadowSafety,
    Strategy,
};
use crate::evidence::path::Path;

pub(super) fn check(check: &mut Checker<'_>, block: &Block) {
    strategy(check, block);
    state(check, block);
    verification(check, block);
    gates(check, block);
    steps(check, block);
}

fn strategy(check: &mut Checker<'_>, block: &Block) {
    let release = &block.release;
    let recreate = release.strategy == Strategy::Recreate;
    let key = "release.strategy";
    let mut needs = |broken: bool, (with, word): (&str, &str), reason: &str| {
        check.refuse_if(broken && !recreate, &[key, with], || {
            Problem::new(key, "BlueGreen", format!("Recreate, with {with}: {word}")).because(reason)
        });
    };
    needs(
        block.app.state == AppState::Shared,
        ("app.state", "Shared"),
        "C-2: two releases would change the same state",
    );
    let serial = block.app.contract.mode == ContractMode::Push
        && block.app.push.correlate == Correlate::Serial;
    needs(
        serial,
        ("app.push.correlate", "Serial"),
        "C-2: without an echoed header nobody knows which release a result belongs to",
    );
    let live_shadow =
        block.app.shadow == ShadowSafety::Unsafe && release.shadow.replay_from_ms.is_none();
    needs(
        live_shadow,
        ("app.shadow", "Unsafe"),
        "C-2: asking the candidate in silence would have side effects",
    );
}

fn state(check: &mut Checker<'_>, block: &Block) {
    let release = &block.release;
    if block.app.state != AppState::PerRelease {
        return;
    }
    let reason = "C-2: with app.state: PerRelease the candidate must have seen every event";
    let key = "release.shadow.partitions";
    check.refuse_if(release.shadow.partitions < 1.0, &[key, "app.state"], || {
        Problem::new(
            key,
            format!("{}%", release.shadow.partitions * 100.0),
            "100%",
        )
        .because(reason)
    });
    let key = "release.rollback.retainReplicas";
    check.refuse_if(release.rollback.retain_replicas != block.replicas, &[key, "replicas", "app.state"], || {
        Problem::new(key, release.rollback.retain_replicas.to_string(), format!("replicas, which is {}", block.replicas))
            .because("C-2: with app.state: PerRelease the old release must be able to take everything back")
    });
}

fn verification(check: &mut Checker<'_>, block: &Block) {
    let verification = &block.release.verification;
    at_most(
        check,
        (
            "release.verification.minDuration",
            verification.min_duration,
        ),
        (
            "release.verification.maxDuration",
            verification.max_duration,
        ),
    );
    let blind =
        block.release.strategy == Strategy::BlueGreen && block.release.shadow.partitions <= 0.0;
    let key = "release.verification.minPartitions";
    check.refuse_if(blind, &[key, "release.shadow.partitions"], || {
        Problem::new(
            key,
            verification.min_partitions.to_string(),
            "not above the sample, which is 0% of the partitions",
        )
        .because("C-2")
    });
    let path = "release.verification.compare.path";
    let no_path = matches!(&verification.compare.mode, CompareMode::Label(path) if path.is_empty());
    check.refuse_if(
        no_path,
        &[path, "release.verification.compare.mode"],
        || Problem::new(path, "nothing", "a path, required with mode: Label").because("J2"),
    );
    paths(check, &verification.compare);
}

/// A misspelt path would silently compare nothing.
fn paths(check: &mut Checker<'_>, compare: &Compare) {
    let under = "release.verification.compare";
    let list = |key: &str, texts: &[String]| {
        let texts = texts.iter().enumerate();
        texts
            .map(|(i, text)| (format!("{under}.{key}[{i}]"), text.clone()))
            .collect::<Vec<_>>()
    };
    let mut all = list("ignore", &compare.ignore);
    all.extend(list("redact.keep", &compare.redact_keep));
    let fields = compare.fields.iter().enumerate();
    all.extend(fields.map(|(i, rule)| (format!("{under}.fields[{i}].path"), rule.path.clone())));
    let label = match &compare.mode {
        CompareMode::Label(path) => Some((format!("{under}.path"), path.clone())),
        CompareMode::Bytes | CompareMode::Json => None,
    };
    for (key, text) in all
        .iter()
        .chain(&label)
        .filter(|(_, text)| !text.is_empty())
    {
        let path = Path::parse(text);
        check.refuse_if(path.is_err(), &[key], || {
            let allowed = "a path such as `model.scores[0]`, `scores[*]` or `[\"a.b\"]`";
            Problem::new(key, text.clone(), allowed).because("J2")
        });
    }
    if let Some((key, text)) = &label {
        let several = Path::parse(text).is_ok_and(|path| !path.is_single());
        check.refuse_if(several, &[key], || {
            let allowed = "the path of one place, without `*`";
            Problem::new(key, text.clone(), allowed).because("J2")
        });
    }
}

fn gates(check: &mut Checker<'_>, block: &Block) {
    for (i, gate) in block.release.verification.gates.iter().enumerate() {
        let path = format!("release.verification.gates[{i}]");
        check.exactly_one(&path, &["metric", "prometheus", "webhook"]);
        match &gate.source {
            GateSource::Metric(metric) => {
                let open = gate.min.is_none() && gate.max.is_none() && gate.max_delta.is_none();
                check.refuse_if(open && !metric.is_empty(), &[&path], || {
                    Problem::new(
                        &path,
                        format!("{metric} without a bound"),
                        "min, max or maxDelta",
                    )
                    .because("J7")
                });
                let no_rate = !matches!(&metric[..], "errorRate" | "deadLetterRate" | "");
                let key = format!("{path}.maxDelta");
                check.refuse_if(no_rate && gate.max_delta.is_some(), &[&key], || {
                    let allowed = "min or max: only errorRate and deadLetterRate have a difference";
                    Problem::new(&key, format!("maxDelta of {metric}"), allowed).because("J5")
                });
            }
            GateSource::Prometheus { name, .. } | GateSource::Webhook { name, .. } => {
                let key = format!("{path}.name");
                check.refuse_if(name.is_empty(), &[&key], || {
                    Problem::new(
                        &key,
                        "nothing",
                        "text, required with prometheus and webhook",
                    )
                });
                let bounds = ["min", "max", "maxDelta"].map(|bound| format!("{path}.{bound}"));
                for bound in bounds
                    .iter()
                    .filter(|bound| check.has(bound))
                    .cloned()
                    .collect::<Vec<_>>()
                {
                    let found = check.shown(&bound);
                    check.refuse_if(true, &[&bound], || {
                        Problem::new(
                            &bound,
                            found,
                            "no bound here: it stands with a metric, or under prometheus",
                        )
                    });
                }
            }
        }
    }
}

fn steps(check: &mut Checker<'_>, block: &Block) {
    let steps = &block.release.promotion.steps;
    let key = "release.promotion.steps";
    let rising = steps
        .windows(2)
        .all(|pair| pair[0].partitions < pair[1].partitions);
    let whole = steps.last().is_some_and(|last| last.partitions >= 1.0);
    check.refuse_if(!(rising && whole), &[key], || {
        Problem::new(
            key,
            check_shown(steps),
            "rising percentages, the last one 100%",
        )
    });
}

fn check_shown(steps: &[crate::contract::block::PromotionStep]) -> String {
    let steps: Vec<_> = steps
        .iter()
        .map(|step| format!("{}%", step.partitions * 100.0))
        .collect();
    if steps.is_empty() {
        "no steps".to_owned()
    } else {
        steps.join(", ")
    }
}
