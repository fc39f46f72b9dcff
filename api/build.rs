//! Generates the control plane's messages, client and server from `proto/`.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/trivet/v1/manager.proto");
    // They may carry a key: `api/src/hidden.rs` shows the rest of them.
    let hidden = ["Attach", "Revert", "Rekey"].map(|verb| format!("trivet.v1.{verb}VolumeRequest"));
    let config = tonic_prost_build::configure().skip_debug(hidden);
    config.compile_protos(&["proto/trivet/v1/manager.proto"], &["proto"])
}
