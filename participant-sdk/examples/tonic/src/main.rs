//! Reserves furniture. The first argument is the coordinator's address, if it is not the usual one.

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let coordinator = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7420".to_owned());
    let (second, free) = example_tonic::run(&coordinator).await?;
    println!("first: reserved\nsecond: {second}\nfree: {free:?}");
    Ok(())
}
