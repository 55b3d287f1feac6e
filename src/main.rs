//! The `advisor` program; everything is in the library.

fn main() -> std::process::ExitCode {
    advisor::cli::main()
}
