pub mod branch;
pub mod event;
pub mod outcome;
pub mod presumption;
pub mod record;
pub mod transaction;

#[cfg(test)]
pub(crate) mod tests;
