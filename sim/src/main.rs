//! Runs the simulation: `flotilla-sim --seeds 300`, or one seed with `--seed 7 --trace`.
//!
//! Exit code 0: no seed failed; 1: one did, and its seed and the command that repeats it are printed;
//! 2: the arguments are wrong. With `--expect-failure` (mutants) 0 means that a failure was found.

use std::process::ExitCode;

use flotilla_sim::run::{run_seed, run_seeds};

const USAGE: &str = "usage: flotilla-sim [--seeds N] [--first S] [--jobs J] [--expect-failure]
       flotilla-sim --seed S [--trace]";

#[derive(Debug)]
struct Arguments {
    seeds: u64,
    first: u64,
    seed: Option<u64>,
    trace: bool,
    jobs: usize,
    expect_failure: bool,
}

fn parse() -> Result<Arguments, String> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed = Arguments { seeds: 50, first: 1, seed: None, trace: false, jobs, expect_failure: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, String> {
            let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
            value.parse().map_err(|_| format!("{argument} {value}: not a number"))
        };
        match argument.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--first" => parsed.first = number()?,
            "--seed" => parsed.seed = Some(number()?),
            "--jobs" => parsed.jobs = usize::try_from(number()?).map_err(|error| error.to_string())?,
            "--trace" => parsed.trace = true,
            "--expect-failure" => parsed.expect_failure = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = arguments.seed {
        let report = run_seed(seed, arguments.trace);
        println!("seed {seed}: trace hash {:016x}, {}", report.trace_hash, report.failure.as_deref().unwrap_or("ok"));
        return if report.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    // One after another where the number of seeds until the first failure is asked for.
    let jobs = if arguments.expect_failure { 1 } else { arguments.jobs };
    let failures_max = if arguments.expect_failure { 1 } else { 10 };
    let summary = run_seeds(arguments.first, arguments.seeds, jobs, failures_max);
    if arguments.expect_failure {
        let Some(report) = summary.failures.values().next() else {
            println!("not found within {} seeds", summary.seeds);
            return ExitCode::FAILURE;
        };
        println!(
            "found after {} seeds: seed {} {}",
            summary.seeds,
            report.seed,
            report.failure.as_deref().unwrap_or("")
        );
        return ExitCode::SUCCESS;
    }
    print!("{summary}");
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
