//! `kv delete-range`: all keys of a span, part by part.
//!
//! Not one point in time, and not atomic: it may end anywhere, and says where. A part whose outcome
//! is unknown is repeated: that deletes nothing twice, but counts less than was deleted.

use std::ffi::OsString;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_router::{DeleteOptions, DeletedPart};
use serde_json::json;

use super::Keyspace;
use crate::cli::bytes::{KeyStyle, base64};
use crate::cli::confirm;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, plural};
use crate::cli::stop::{Stop, interrupted};

/// Keys deleted between two steps of the progress bar.
const PART_KEYS: u64 = 1_000;
/// How often a part is tried.
const ATTEMPTS: u32 = 4;

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("span").required(true)))]
pub struct DeleteRangeArgs {
    /// First key
    #[arg(group = "span", requires = "end")]
    start: Option<OsString>,
    /// First key after the span
    end: Option<OsString>,
    /// All keys that begin so
    #[arg(long, value_name = "PREFIX", group = "span")]
    prefix: Option<OsString>,
    /// All keys of the keyspace
    #[arg(long, group = "span")]
    all: bool,
    /// Go on where an earlier run ended
    #[arg(long, value_name = "TOKEN", group = "span")]
    token: Option<String>,
    /// At most so many keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    style: KeyStyle,
}

/// How far it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    deleted: u64,
    /// An answer was lost: more may be deleted than was counted.
    at_least: bool,
    /// Where to go on, empty at the beginning; `None`: the span is done.
    next: Option<Bytes>,
}

pub async fn run(args: DeleteRangeArgs, keyspace: &Keyspace<'_>) -> Result {
    let options = options(&args)?;
    let what = what(&args, &options, keyspace.name());
    let ask = confirm::must_ask(args.yes, &format!("{what} would be deleted for good"))?;
    let client = keyspace.client().await?;
    if ask {
        confirm::ask(&format!("{what} will be deleted for good. Type yes to go on:"), "yes")?;
    }
    let bar = output::progress(0, "delete");
    let mut progress = Progress { next: Some(options.token.clone()), ..Progress::default() };
    let part = |token: Bytes, limit: u64| {
        let (client, options) = (client.clone(), DeleteOptions { token, limit, ..options.clone() });
        async move { client.delete_range(options).await }
    };
    let mut stop = Stop::new()?;
    let limit = args.limit.unwrap_or(u64::MAX);
    let result = delete(&mut progress, limit, part, &mut stop, |deleted| bar.set_position(deleted)).await;
    bar.finish_and_clear();
    report(&progress, keyspace.global)?;
    result.map_err(|failure| failure.also("what is deleted stays so; the same command goes on with the rest"))
}

fn options(args: &DeleteRangeArgs) -> Result<DeleteOptions> {
    if let Some(token) = &args.token {
        return Ok(DeleteOptions { token: super::token(token, "kv delete-range")?, ..DeleteOptions::all() });
    }
    if let Some(prefix) = &args.prefix {
        return Ok(DeleteOptions::prefix(args.style.key(prefix)?));
    }
    let key = |argument: &Option<OsString>| argument.as_ref().map_or(Ok(Bytes::new()), |key| args.style.key(key));
    let (start, end) = (key(&args.start)?, key(&args.end)?);
    if !args.all && (end.is_empty() || start >= end) {
        return Err(Failure::usage("the end of the span does not lie behind its start")
            .hint("END is the first key that stays; --prefix and --all name spans without an end"));
    }
    Ok(DeleteOptions::span(start, end))
}

fn what(args: &DeleteRangeArgs, options: &DeleteOptions, keyspace: &str) -> String {
    let show = |key: &Bytes| args.style.show(key);
    match &args.prefix {
        _ if args.token.is_some() => format!("the rest of a span of keyspace \"{keyspace}\""),
        _ if args.all => format!("all keys of keyspace \"{keyspace}\""),
        Some(_) => format!("all keys of keyspace \"{keyspace}\" that begin with {}", show(&options.start)),
        None => {
            format!("all keys of keyspace \"{keyspace}\" from {} up to {}", show(&options.start), show(&options.end))
        }
    }
}

/// Deletes part after part, until the span is done, the limit is reached, or something ends it.
async fn delete<F>(
    progress: &mut Progress,
    limit: u64,
    mut part: impl FnMut(Bytes, u64) -> F,
    stop: &mut Stop,
    mut show: impl FnMut(u64),
) -> Result
where
    F: Future<Output = flotilla_proto::Result<DeletedPart>>,
{
    let mut attempt = 1;
    while let Some(token) = progress.next.clone() {
        let left = limit.saturating_sub(progress.deleted).min(PART_KEYS);
        if left == 0 {
            return Ok(());
        }
        let answer = tokio::select! {
            answer = part(token, left) => answer,
            () = stop.asked() => {
                // What was under way goes on without us.
                progress.at_least = true;
                return Err(interrupted());
            }
        };
        match answer {
            Ok(DeletedPart { count, next_token }) => {
                progress.deleted += count;
                progress.next = Some(next_token).filter(|token| !token.is_empty());
                attempt = 1;
                show(progress.deleted);
            }
            Err(error) if error.action() == Action::Fail || attempt == ATTEMPTS => return Err(error.into()),
            Err(error) => {
                progress.at_least |= error.action() == Action::Ambiguous;
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
                attempt += 1;
            }
        }
    }
    Ok(())
}

fn report(progress: &Progress, global: &Global) -> Result {
    let Progress { deleted, at_least, next } = progress;
    // Nothing was done yet: the same command begins again.
    let token = next.as_deref().filter(|token| !token.is_empty()).map(base64);
    if global.json() {
        return output::json(&json!({
            "deleted": deleted,
            "at_least": at_least,
            "complete": next.is_none(),
            "next_token": token.unwrap_or_default(),
        }));
    }
    let about = if *at_least { "at least " } else { "" };
    output::line(format_args!("deleted {about}{}", plural(*deleted, "key")))?;
    if let Some(token) = token {
        // On stderr, as with scans.
        eprintln!("there is more: --token {token}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;
    use flotilla_proto::Error;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DeleteRangeArgs,
    }

    fn parse(words: &[&str]) -> Option<DeleteRangeArgs> {
        Line::try_parse_from([&["delete-range"], words].concat()).ok().map(|line| line.args)
    }

    fn span_of(words: &[&str]) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        let options = options(&parse(words).expect("valid"))?;
        Ok((options.start.to_vec(), options.end.to_vec(), options.token.to_vec()))
    }

    #[test]
    fn a_span_is_named_in_one_of_four_ways() {
        assert_eq!(span_of(&["a", "c\\x00"]), Ok((b"a".to_vec(), b"c\0".to_vec(), vec![])));
        assert_eq!(span_of(&["--prefix", "p/"]), Ok((b"p/".to_vec(), b"p0".to_vec(), vec![])));
        assert_eq!(span_of(&["--all"]), Ok((vec![], vec![], vec![])));
        assert_eq!(span_of(&["--hex", "00", "ff"]), Ok((vec![0], vec![255], vec![])));
        assert_eq!(span_of(&["--token", "AAE="]), Ok((vec![], vec![], vec![0, 1])));
        for bad in [&["b", "a"][..], &["a", "a"], &["a", ""], &["--token", "?"], &["--token", ""]] {
            assert_eq!(span_of(bad).expect_err("refused").code(), 2, "{bad:?}");
        }
        for bad in [&[][..], &["a"], &["a", "b", "--all"], &["--prefix", "a", "--all"], &["--all", "--limit", "0"]] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    /// Deletes from a set; every third answer is lost.
    fn run(keys: &mut BTreeSet<u32>, limit: u64) -> (Result, Progress) {
        let mut progress = Progress { next: Some(Bytes::new()), ..Progress::default() };
        let mut calls = 0;
        let mut part = |token: Bytes, limit: u64| {
            calls += 1;
            let start = std::str::from_utf8(&token).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let found: Vec<u32> = keys.range(start..).take(limit as usize).copied().collect();
            found.iter().for_each(|key| assert!(keys.remove(key)));
            let next_token = keys.range(start..).next().map(|key| key.to_string().into()).unwrap_or_default();
            let lost = calls % 3 == 2;
            let answer = Ok(DeletedPart { count: found.len() as u64, next_token });
            async move { if lost { Err(Error::Ambiguous { reason: "lost".into() }) } else { answer } }
        };
        let result =
            crate::cli::block_on(async { delete(&mut progress, limit, &mut part, &mut Stop::new()?, |_| {}).await });
        (result, progress)
    }

    #[test]
    fn parts_follow_until_the_span_is_done_or_the_limit_is_reached() {
        let mut keys: BTreeSet<u32> = (0..3_500).collect();
        let (result, progress) = run(&mut keys, u64::MAX);
        assert_eq!((result, progress.next, keys.len()), (Ok(()), None, 0));
        assert!(progress.at_least && progress.deleted <= 3_500);
        let mut keys: BTreeSet<u32> = (0..10).collect();
        let (result, progress) = run(&mut keys, 4);
        assert_eq!((result, progress.deleted, progress.next), (Ok(()), 4, Some("4".into())));
        assert_eq!(keys.len(), 6);
    }
}
