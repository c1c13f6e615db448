//! SDK

pub mod resource;
