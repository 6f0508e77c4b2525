//! Reads `release` and `notifications`.

use std::time::Duration;

use serde::Deserialize;

use super::Scope;
use crate::contract::block::release::{
    Approvals, AutoRollback, Compare, CompareMode, DeletionPolicy, FieldRule, Gate, GateSource,
    Guard, NewRelease, Notification, NotifyOn, OnFail, Promotion, PromotionMode, PromotionStep,
    Release, Rollback, Shadow, Strategy, Verification,
};
use crate::contract::block::values;

pub(super) fn release(top: &Scope<'_>) -> Release {
    let scope = top.inside("release");
    let auto = scope.inside("rollback.auto");
    Release {
        strategy: scope.word("strategy").unwrap_or(Strategy::BlueGreen),
        shadow: Shadow {
            replicas: scope.whole_32("shadow.replicas"),
            partitions: scope.percentage("shadow.partitions"),
            max_bytes_per_second: scope.size("shadow.maxBytesPerSecond").unwrap_or_default(),
            replay_from_ms: values::instant(&scope.get("shadow.replay.from")),
        },
        guard: Guard {
            lag_growth: scope.duration("guard.lagGrowth"),
            latency_ratio: scope.number("guard.latencyRatio"),
        },
        verification: verification(&scope.inside("verification")),
        promotion: promotion(&scope.inside("promotion")),
        rollback: Rollback {
            window: scope.duration("rollback.window"),
            retain_replicas: scope.whole_32("rollback.retainReplicas"),
            auto: auto.is_there().then(|| AutoRollback {
                error_rate: auto.percentage("errorRate"),
                during: auto.duration("for"),
            }),
        },
        on_new_release: scope.word("onNewRelease").unwrap_or(NewRelease::Settle),
        deletion_policy: scope
            .word("deletionPolicy")
            .unwrap_or(DeletionPolicy::DeleteGroups),
        history_limit: scope.whole_32("historyLimit"),
    }
}

fn verification(scope: &Scope<'_>) -> Verification {
    Verification {
        min_events: scope.whole("minEvents"),
        min_duration: scope.duration("minDuration"),
        max_duration: scope.duration("maxDuration"),
        min_partitions: scope.whole_32("minPartitions"),
        compare: compare(&scope.inside("compare")),
        gates: match scope.items("gates") {
            Some(gates) => gates.iter().map(gate).collect(),
            None => usual_gates(),
        },
    }
}

fn compare(scope: &Scope<'_>) -> Compare {
    let field = |scope: &Scope<'_>| FieldRule {
        path: scope.text("path"),
        abs: scope.maybe_number("abs"),
        rel: scope.maybe_number("rel"),
    };
    Compare {
        mode: match scope.text("mode").as_str() {
            "Bytes" => CompareMode::Bytes,
            "Label" => CompareMode::Label(scope.text("path")),
            _ => CompareMode::Json,
        },
        ignore: scope.texts("ignore"),
        numeric_abs: scope.number("numeric.abs"),
        numeric_rel: scope.number("numeric.rel"),
        fields: scope
            .items("fields")
            .unwrap_or_default()
            .iter()
            .map(field)
            .collect(),
        noise_baseline: scope.percentage("noiseBaseline"),
        redact_keep: scope.texts("redact.keep"),
    }
}

fn gate(scope: &Scope<'_>) -> Gate {
    let [prometheus, webhook] = ["prometheus", "webhook"].map(|name| scope.inside(name));
    Gate {
        source: if prometheus.is_there() {
            GateSource::Prometheus {
                name: scope.text("name"),
                url: prometheus.text("url"),
                query: prometheus.text("query"),
                max: prometheus.number("max"),
            }
        } else if webhook.is_there() {
            GateSource::Webhook {
                name: scope.text("name"),
                url: webhook.text("url"),
                timeout: webhook.duration("timeout"),
            }
        } else {
            GateSource::Metric(scope.text("metric"))
        },
        min: scope.maybe_number("min"),
        max: scope.maybe_number("max"),
        max_delta: scope.maybe_number("maxDelta"),
        on_fail: scope.word("onFail").unwrap_or(OnFail::Reject),
        dry_run: scope.flag("dryRun"),
    }
}

/// What decides when the document names no gates.
fn usual_gates() -> Vec<Gate> {
    let gate = |metric: &str, on_fail| {
        Gate::without_bounds(GateSource::Metric(metric.to_owned()), on_fail)
    };
    vec![
        Gate {
            min: Some(99.0),
            ..gate("agreement", OnFail::Reject)
        },
        Gate {
            max_delta: Some(0.1),
            ..gate("errorRate", OnFail::Reject)
        },
        Gate {
            max: Some(1.3),
            ..gate("p95LatencyRatio", OnFail::Hold)
        },
    ]
}

fn promotion(scope: &Scope<'_>) -> Promotion {
    let step = |scope: &Scope<'_>| PromotionStep {
        partitions: scope.percentage("partitions"),
        pause: scope.duration("pause"),
    };
    Promotion {
        mode: scope.word("mode").unwrap_or(PromotionMode::Manual),
        approvals: Approvals {
            required: scope.whole_32("approvals.required"),
            forbid_author: scope.flag("approvals.forbidAuthor"),
        },
        approved_release: scope.filled("approvedRelease"),
        max_cutover_lag: scope.whole("maxCutoverLag"),
        max_unadopted: scope.whole_32("maxUnadopted"),
        steps: match scope.items("steps") {
            Some(steps) => steps.iter().map(step).collect(),
            None => vec![PromotionStep {
                partitions: 1.0,
                pause: Duration::ZERO,
            }],
        },
    }
}

pub(super) fn notifications(top: &Scope<'_>) -> Vec<Notification> {
    let notification = |scope: &Scope<'_>| Notification {
        on: Vec::<NotifyOn>::deserialize(scope.get("on")).unwrap_or_default(),
        url: scope.text("webhook.url"),
        secret: scope.secret("webhook.secret"),
    };
    top.items("notifications")
        .unwrap_or_default()
        .iter()
        .map(notification)
        .collect()
}
