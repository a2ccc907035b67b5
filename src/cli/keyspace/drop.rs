//! `keyspace drop`: asks first, but never a script.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;

use super::list::extents;
use super::order_failure;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, plural, size};

#[derive(clap::Args, Debug)]
pub struct DropArgs {
    /// Its name
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: &DropArgs, global: &Global) -> Result {
    if !args.yes && !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("dropping \"{}\" deletes all its keys for good", args.name))
            .hint("say --yes if that is meant; nothing was done"));
    }
    let client = global.client().await?;
    let keyspace = super::find(&client, &args.name).await?;
    if !args.yes {
        let extent = extents(&client).await?.get(&keyspace.keyspace_id).copied().unwrap_or_default();
        let holds = format!("{}, about {}", plural(extent.ranges, "range"), size(extent.bytes));
        confirm(&args.name, &holds, &mut io::stdin().lock(), &mut io::stderr())?;
    }
    client.drop_keyspace(&args.name).await.map_err(order_failure)?;
    if global.json() {
        return output::json(&json!({ "dropped": args.name, "keyspace_id": keyspace.keyspace_id }));
    }
    output::line(format_args!("dropped \"{}\" (id {})", args.name, keyspace.keyspace_id))
}

/// Asks for the name once more.
fn confirm(name: &str, holds: &str, answers: &mut impl BufRead, questions: &mut impl Write) -> Result {
    write!(questions, "All keys of \"{name}\" ({holds}) will be gone for good. Type its name to drop it: ")?;
    questions.flush()?;
    let mut typed = String::new();
    answers.read_line(&mut typed).map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    if typed.trim() == name {
        return Ok(());
    }
    Err(Failure::failed("that is not its name; nothing was done"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_itself_is_a_yes() {
        let ask = |typed: &str| confirm("prod", "1 range", &mut typed.as_bytes(), &mut Vec::new());
        assert_eq!(ask("prod\n"), Ok(()));
        for no in ["", "y\n", "yes\n", "pro\n", "prod2\n"] {
            assert_eq!(ask(no).expect_err(no).code(), 1);
        }
    }
}
