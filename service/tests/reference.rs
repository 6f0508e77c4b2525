//! The generated pages of the documentation are fresh; `UPDATE=1` rewrites them.

use std::path::Path;

use millrace_core::contract::block;

#[test]
fn c4_the_configuration_reference_is_generated_from_the_table_of_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/configuration.md");
    let fresh = block::reference();
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &fresh).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == fresh,
        "{} is stale; run UPDATE=1 cargo test -p millrace-service",
        path.display()
    );
}
