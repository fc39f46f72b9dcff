//! Generates the control plane's messages, client and server from `proto/`.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/trivet/v1/manager.proto");
    tonic_prost_build::configure().compile_protos(&["proto/trivet/v1/manager.proto"], &["proto"])
}
