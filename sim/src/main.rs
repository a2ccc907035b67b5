//! Runs the simulation: `flotilla-sim --seeds 300`, or one seed with `--seed 7 --trace`.
//!
//! Exit code 0: no seed failed; 1: one did, and its seed and the command that repeats it are printed;
//! 2: the arguments are wrong. With `--expect-marks` 1 means as well that a coverage mark was left out. With `--expect-failure` (mutants) 0 means that a failure was found.

use std::process::ExitCode;
use std::time::Duration;

use flotilla_mutants::{FoundBy, Mutant};
use flotilla_sim::run::{Options, Seeds, run_seed, run_seeds};

const USAGE: &str =
    "usage: flotilla-sim [--seeds N] [--first S] [--seconds T] [--jobs J] [--black-box] [--expect-failure] [--expect-marks] [--mutant NAME]
       flotilla-sim --seed S [--trace] [--black-box] [--mutant NAME]
       flotilla-sim --list-mutants
  --seeds N         run at least N seeds, from S (1) on
  --seconds T       and go on until T seconds have passed
  --black-box       check only what clients could notice in the end
  --expect-failure  one seed after another until one fails, and exit 0 only if one did
  --expect-marks    fail if all seeds together leave a coverage mark out
  --mutant NAME     with this known bug; only in a build with --features mutants
  --list-mutants    each mutant's name, what must find it (seeds, seeds+storms, nothing) and what is broken";

#[derive(Debug, Default)]
struct Arguments {
    seeds: Seeds,
    options: Options,
    seed: Option<u64>,
    expect_failure: bool,
    expect_marks: bool,
    mutant: Option<Mutant>,
    list_mutants: bool,
}

fn parse() -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, String> {
            let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
            value.parse().map_err(|_| format!("{argument} {value}: not a number"))
        };
        match argument.as_str() {
            "--seeds" => parsed.seeds.count = number()?,
            "--first" => parsed.seeds.first = number()?,
            "--seconds" => parsed.seeds.at_least = Duration::from_secs(number()?),
            "--seed" => parsed.seed = Some(number()?),
            "--jobs" => parsed.seeds.jobs = usize::try_from(number()?).map_err(|error| error.to_string())?,
            "--trace" => parsed.options.print_trace = true,
            "--black-box" => parsed.options.black_box = true,
            "--expect-marks" => parsed.expect_marks = true,
            "--expect-failure" => parsed.expect_failure = true,
            "--list-mutants" => parsed.list_mutants = true,
            "--mutant" => {
                let name = arguments.next().ok_or("--mutant needs a name")?;
                parsed.mutant = Some(name.parse::<Mutant>().map_err(|error| error.to_string())?);
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if parsed.expect_failure {
        // One after another: the number of seeds until the first failure is asked for.
        parsed.seeds = Seeds { jobs: 1, failures_max: 1, ..parsed.seeds };
    }
    Ok(parsed)
}

fn list_mutants() {
    for mutant in Mutant::ALL {
        let found_by = match mutant.found_by() {
            FoundBy::Seeds => "seeds",
            FoundBy::SeedsAndStorms => "seeds+storms",
            FoundBy::Nothing => "nothing",
        };
        println!("{mutant}\t{found_by}\t{}", mutant.what());
    }
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.list_mutants {
        list_mutants();
        return ExitCode::SUCCESS;
    }
    if let Some(Err(refused)) = arguments.mutant.map(Mutant::choose) {
        eprintln!("{refused}");
        return ExitCode::from(2);
    }
    if let Some(seed) = arguments.seed {
        let report = run_seed(seed, arguments.options);
        println!("seed {seed}: trace hash {:016x}, {}", report.trace_hash, report.failure.as_deref().unwrap_or("ok"));
        return if report.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let summary = run_seeds(&arguments.seeds, arguments.options);
    if !arguments.expect_failure {
        print!("{summary}");
        let missing = if arguments.expect_marks { summary.missing_marks() } else { Vec::new() };
        for mark in &missing {
            println!("sim: FAILED: no seed has hit the mark: {mark}");
        }
        return if summary.failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let Some(report) = summary.failures.values().next() else {
        println!("not found within {} seeds", summary.seeds);
        return ExitCode::FAILURE;
    };
    let what = report.failure.as_deref().unwrap_or_default();
    println!("found after {} seeds: seed {}, {what}", summary.seeds, report.seed);
    ExitCode::SUCCESS
}
