//! Orders two chairs of which there is one. The first argument is the coordinator's address, if it is not the usual one.

#[tokio::main]
async fn main() -> Result<(), example_axum::Refused> {
    let coordinator = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7420".to_owned());
    let (answers, ordered, free) = example_axum::run(&coordinator).await?;
    println!("first order: {}\nsecond order: {}\n{ordered} ordered, {free} free", answers[0], answers[1]);
    Ok(())
}
