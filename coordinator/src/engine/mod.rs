pub mod delivery;
pub mod input;
pub mod shard;
