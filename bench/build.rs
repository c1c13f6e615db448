//! Generates the service's code from its `.proto` file.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .compile_fds(protox::compile(["teller.proto", "dtmrs.proto"], ["proto"])?)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
