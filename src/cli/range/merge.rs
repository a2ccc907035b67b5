//! `range merge`: two neighbours become one.

use std::time::Duration;

use flotilla_proto::RangeId;
use serde_json::json;

use super::failure;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::{Global, parse_duration};
use crate::cli::output::{self, duration};

#[derive(clap::Args, Debug)]
pub struct MergeArgs {
    /// The left range: it keeps its id
    left: u64,
    /// Its right neighbour
    right: u64,
    /// How long to wait until it is done
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_duration)]
    wait: Duration,
}

pub async fn run(args: &MergeArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let bar = output::progress(0, "merge");
    bar.enable_steady_tick(Duration::from_millis(200));
    let answer = client.merge_ranges(RangeId(args.left), RangeId(args.right), args.wait).await;
    bar.finish_and_clear();
    let answer = answer.map_err(failure)?;
    if global.json() {
        return output::json(&json!({
            "left_range_id": args.left, "right_range_id": args.right, "done": answer.done,
        }));
    }
    if !answer.done {
        let what = format!("the merge is not done after {}", duration(args.wait));
        return Err(Failure::failed(what).hint(format!("it goes on; see `flotilla range explain {}`", args.right)));
    }
    output::line(format_args!("range {} has what range {} held", args.left, args.right))
}
