//! The snapshot pipeline against fakes, real servers, and the tools a person would use instead of hk-dr.

mod faults;
mod in_place;
mod looking;
mod looking_back;
mod members;
pub mod oracle;
mod pruning;
mod recipients;
mod several;
mod signing;
mod stock_tools;
mod stolen;
pub mod support;
