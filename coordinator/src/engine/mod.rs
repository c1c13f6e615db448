pub mod clock;
pub mod delivery;
pub mod handle;
pub mod input;
pub mod inquiry;
pub mod maintenance;
pub mod shard;
pub mod shell;

#[cfg(test)]
mod tests;
