//! The registry client and the watcher over real HTTP, against a registry that misbehaves
//! on demand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic, and its helpers too")]
#![allow(clippy::print_stdout, reason = "figures, for those who ask for them")]

mod answers;
mod attacks;
mod author;
mod command;
mod conformance;
mod crowding;
mod crowds;
mod dev;
mod drain;
mod evaluation;
mod evidence;
mod expectations;
mod fallbacks;
mod faulty;
mod files;
mod first_hour;
mod forge;
mod frames;
mod gate;
mod intake;
mod live;
mod opa_check;
mod protocols;
mod reads;
mod reload;
mod rooms;
mod roots;
mod scale;
mod serving;
mod shells;
mod signatures;
mod signing;
mod transfers;
mod trouble;
mod tuf;
mod writes;
