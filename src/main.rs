fn main() -> std::process::ExitCode {
    hk_dr::cli::main()
}
