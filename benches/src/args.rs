//! The command line that all benches share.

use std::path::PathBuf;
use std::process::exit;

/// A number that one bench knows besides the common ones.
#[derive(Clone, Copy, Debug)]
pub struct Extra {
    /// The flag, without its dashes.
    pub flag: &'static str,
    /// What it is when not given.
    pub default: u64,
    /// One line for `--help`.
    pub help: &'static str,
}

/// What a bench was asked to do.
#[derive(Debug)]
pub struct Args {
    /// Repetitions of every variant.
    pub reps: usize,
    /// Length of one repetition, where it is a matter of time.
    pub seconds: f64,
    /// Where scratch directories are made: the disk that is measured.
    pub dir: PathBuf,
    extras: Vec<(&'static str, u64)>,
}

impl Args {
    /// Reads the command line; prints usage and ends the process when it is wrong or asked for help.
    pub fn parse(about: &str, seconds: f64, extras: &[Extra]) -> Self {
        match Self::read(std::env::args().skip(1), seconds, extras) {
            Ok(Some(args)) => args,
            Ok(None) => {
                print!("{}", usage(about, seconds, extras));
                exit(0)
            }
            Err(problem) => {
                eprintln!("{problem}\n{}", usage(about, seconds, extras));
                exit(2)
            }
        }
    }

    fn read(mut line: impl Iterator<Item = String>, seconds: f64, extras: &[Extra]) -> Result<Option<Self>, String> {
        let mut args = Self {
            reps: 5,
            seconds,
            dir: std::env::temp_dir(),
            extras: extras.iter().map(|extra| (extra.flag, extra.default)).collect(),
        };
        while let Some(flag) = line.next() {
            match flag.as_str() {
                "--bench" => continue, // cargo adds it
                "--help" | "-h" => return Ok(None),
                _ => {}
            }
            let value = line.next().ok_or_else(|| format!("{flag}: unknown, or lacks its value"))?;
            let wrong = |_| format!("{flag} {value}: not a number");
            match flag.as_str() {
                "--reps" => args.reps = value.parse::<usize>().map_err(wrong)?.max(1),
                "--seconds" => args.seconds = value.parse().map_err(|_| format!("{flag} {value}: not a number"))?,
                "--dir" => args.dir = value.into(),
                _ => {
                    let known = args.extras.iter_mut().find(|(name, _)| flag.strip_prefix("--") == Some(name));
                    known.ok_or_else(|| format!("{flag}: unknown"))?.1 = value.parse().map_err(wrong)?;
                }
            }
        }
        Ok(Some(args))
    }

    /// The value of one of the bench's own flags.
    pub fn extra(&self, flag: &str) -> u64 {
        let found = self.extras.iter().find(|(name, _)| *name == flag);
        found.expect("a bench asks only for the flags it declared").1
    }
}

fn usage(about: &str, seconds: f64, extras: &[Extra]) -> String {
    let mut text = format!(
        "{about}\n\n  --reps N      repetitions of each variant (5)\n  --seconds S   length of one repetition ({seconds})\n  \
         --dir DIR     where scratch files go: the disk that is measured (the system's temporary directory)\n"
    );
    for Extra { flag, default, help } in extras {
        text.push_str(&format!("  --{flag} N   {help} ({default})\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTRAS: &[Extra] = &[Extra { flag: "nodes", default: 7, help: "how many" }];

    fn read(line: &[&str]) -> Result<Option<Args>, String> {
        Args::read(line.iter().map(|word| word.to_string()), 0.5, EXTRAS)
    }

    #[test]
    fn flags_are_read_and_others_refused() {
        let args = read(&["--bench", "--nodes", "3", "--seconds", "2"]).unwrap().unwrap();
        assert_eq!((args.extra("nodes"), args.seconds, args.reps), (3, 2.0, 5));
        assert_eq!(read(&[]).unwrap().unwrap().extra("nodes"), 7);
        assert!(read(&["--help"]).unwrap().is_none());
        assert!(read(&["--shards", "3"]).unwrap_err().contains("--shards"));
        assert!(read(&["--reps", "many"]).unwrap_err().contains("many"));
        assert!(read(&["--reps"]).is_err());
    }
}
