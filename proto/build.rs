//! Generates the gRPC code from the `.proto` files.
//!
//! protox parses them in Rust, so that building needs no `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["common", "coordinator", "participant", "admin"].map(|name| format!("lockstep/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
