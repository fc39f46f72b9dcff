//! Launchers: scripts that a cluster's manager starts the other processes with (`TRIVET_LAUNCHER`), to put
//! each where the test wants it. A script is given the process's arguments, and becomes it in the end.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Learns the process's name (`replica-1`, `engine-disk0`) and the address at which it is to listen.
const BEGIN: &str = r#"#!/bin/sh
for argument; do
    case "$before" in
        --lock) name=$(basename "$argument" .lock) ;;
        --listen) listen=$argument ;;
    esac
    before=$argument
done
"#;

/// Writes the launcher that does `body`, which finds `$name` and `$listen` set.
pub(crate) fn write(path: &Path, body: &str) {
    std::fs::write(path, format!("{BEGIN}{body}"))
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o755)))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
