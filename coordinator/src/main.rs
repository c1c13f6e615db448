//! The program `lockstep`. All of it is in the library, so that another program can be a coordinator too.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep_coordinator::run(std::env::args_os())
}
