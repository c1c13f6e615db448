pub mod delivery;
pub mod input;
pub mod shard;

#[cfg(test)]
mod tests;
