//! Generates the control plane's messages, client and server from `proto/`.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/trivet/v1/manager.proto");
    // It may carry a key: `api/src/hidden.rs` shows the rest of it.
    let config = tonic_prost_build::configure().skip_debug(["trivet.v1.AttachVolumeRequest"]);
    config.compile_protos(&["proto/trivet/v1/manager.proto"], &["proto"])
}
