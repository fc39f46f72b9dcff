//! model
#![forbid(unsafe_code)]

pub mod action;
pub mod bounds;
pub mod check;
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
mod swapping;
pub mod symmetry;
pub mod variant;
