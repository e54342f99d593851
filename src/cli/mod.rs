//! The command line: one file per subcommand, and all terminal output.

mod artifact;
mod build;
mod command;
mod completion;
mod copy;
mod dev;
mod diagnostics;
mod eval;
mod flags;
mod for_each;
mod generate_key_pair;
mod images;
mod init;
mod inspect;
mod local;
mod login;
mod opa;
mod output;
mod password;
mod progress;
mod pull;
mod push;
mod read;
mod refresh;
mod remote_list;
mod repl;
mod rm;
mod runtime;
mod save;
mod serve;
mod sign;
mod store_flag;
mod table;
mod tag;
mod tags;
mod target;
mod trust;
mod usage;
mod verify;
mod verify_bundle;
mod version;

use command::Arguments;
use output::{eprint, eprint_lines, one_line, print, print_json};
use runtime::{block_on, interruptible};

pub use command::main;
