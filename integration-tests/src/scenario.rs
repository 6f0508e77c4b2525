//! The name of a failure scenario, as its output and `docs/explanation/reliability.md` say it.

/// Says in the output of a story which scenario it is and which rules it proves.
pub fn scenario(id: &str, rules: &[&str], what: &str) {
    println!("{id} proves {}: {what}", rules.join(", "));
}
