//! `kubectl standfast`: halts trading systems, shows that they are halted, and resumes trading.

mod args;
mod cluster;
mod command;
mod failure;
mod name;
mod screen;
mod text;
mod view;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Not clap's 2: that says that a halt is not proven.
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    // Few requests, one after the other: one thread is quicker to start than several.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen::fail(&failure::Failure::new(format!("starting: {error}")));
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(command::run(cli));
    // A request that was given up must not keep the program alive.
    runtime.shutdown_background();
    ExitCode::from(code)
}
