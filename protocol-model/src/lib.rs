//! model
#![forbid(unsafe_code)]

pub mod action;
pub mod bounds;
mod faults;
pub mod history;
pub mod list;
mod membership;
pub mod model;
mod opening;
pub mod record;
pub mod replica;
mod requests;
pub mod set;
pub mod state;
pub mod symmetry;
mod swapping;
pub mod variant;
