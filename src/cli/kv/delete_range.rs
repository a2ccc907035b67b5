//! `kv delete-range`: all keys of a span, page by page.
//!
//! Not one point in time, and not atomic: it may end anywhere, and says where. A page whose outcome
//! is unknown is repeated: that deletes nothing twice, but counts less than was deleted.

use std::ffi::OsString;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_router::{Client, ScanOptions, WriteOp};
use serde_json::json;

use super::Keyspace;
use crate::cli::bytes::{KeyStyle, base64};
use crate::cli::confirm;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, plural};
use crate::cli::stop::{Stop, interrupted};

/// Keys asked to be deleted at once.
const PAGE_KEYS: u32 = 1_000;
/// How often a page is tried.
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
    /// Go on where an earlier run ended, within the same span
    #[arg(long, value_name = "KEY")]
    from: Option<OsString>,
    /// At most so many keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    style: KeyStyle,
}

/// A span of keys; an empty end is the end of the keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Bytes,
    end: Bytes,
}

/// How far it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    deleted: u64,
    /// A page was repeated: more may be deleted than was counted.
    repeated: bool,
    /// Where to go on; `None`: the span is empty.
    next: Option<Bytes>,
}

pub async fn run(args: DeleteRangeArgs, keyspace: &Keyspace<'_>) -> Result {
    let span = span(&args)?;
    let what = what(&args, &span, keyspace.name());
    let ask = confirm::must_ask(args.yes, &format!("{what} would be deleted for good"))?;
    let client = keyspace.client().await?;
    if ask {
        confirm::ask(&format!("{what} will be deleted for good. Type yes to go on:"), "yes")?;
    }
    let bar = output::progress(0, "delete");
    let mut progress = Progress { next: Some(span.start.clone()), ..Progress::default() };
    let page = |start: Bytes, limit: u32| page(client.clone(), Span { start, end: span.end.clone() }, limit);
    let mut stop = Stop::new()?;
    let result = delete(&mut progress, args.limit.unwrap_or(u64::MAX), page, &mut stop, |deleted| {
        bar.set_position(deleted);
    })
    .await;
    bar.finish_and_clear();
    report(&progress, args.style, keyspace.global)?;
    result.map_err(|failure| failure.also("what is deleted stays so; the same command goes on with the rest"))
}

/// What is left to be deleted.
fn span(args: &DeleteRangeArgs) -> Result<Span> {
    let Span { start, end } = whole_span(args)?;
    let Some(from) = &args.from else { return Ok(Span { start, end }) };
    let from = args.style.key(from)?;
    if from < start || (!end.is_empty() && from >= end) {
        return Err(Failure::usage(format!("--from {} lies outside of the span", args.style.show(&from)))
            .hint("name the same span as the run that printed it"));
    }
    Ok(Span { start: from, end })
}

fn whole_span(args: &DeleteRangeArgs) -> Result<Span> {
    if args.all {
        return Ok(Span { start: Bytes::new(), end: Bytes::new() });
    }
    if let Some(prefix) = &args.prefix {
        let ScanOptions { start, end, .. } = ScanOptions::prefix(args.style.key(prefix)?);
        return Ok(Span { start, end });
    }
    let key = |argument: &Option<OsString>| argument.as_ref().map_or(Ok(Bytes::new()), |key| args.style.key(key));
    let (start, end) = (key(&args.start)?, key(&args.end)?);
    if end.is_empty() || start >= end {
        return Err(Failure::usage("the end of the span does not lie behind its start")
            .hint("END is the first key that stays; --prefix and --all name spans without an end"));
    }
    Ok(Span { start, end })
}

fn what(args: &DeleteRangeArgs, span: &Span, keyspace: &str) -> String {
    let show = |key: &Bytes| args.style.show(key);
    match &args.prefix {
        _ if args.from.is_some() => format!("the rest of the span, from {}", show(&span.start)),
        _ if args.all => format!("all keys of keyspace \"{keyspace}\""),
        Some(_) => format!("all keys of keyspace \"{keyspace}\" that begin with {}", show(&span.start)),
        None => format!("all keys of keyspace \"{keyspace}\" from {} up to {}", show(&span.start), show(&span.end)),
    }
}

/// Deletes page after page, until the span is empty, the limit is reached, or something ends it.
async fn delete<F>(
    progress: &mut Progress,
    limit: u64,
    mut page: impl FnMut(Bytes, u32) -> F,
    stop: &mut Stop,
    mut show: impl FnMut(u64),
) -> Result
where
    F: Future<Output = flotilla_proto::Result<(u64, Option<Bytes>)>>,
{
    let mut attempt = 1;
    while let Some(start) = progress.next.clone() {
        let left = limit.saturating_sub(progress.deleted).min(PAGE_KEYS.into()) as u32;
        if left == 0 {
            return Ok(());
        }
        let answer = tokio::select! {
            answer = page(start, left) => answer,
            () = stop.asked() => return Err(interrupted()),
        };
        match answer {
            Ok((deleted, next)) => {
                progress.deleted += deleted;
                progress.next = next;
                attempt = 1;
                show(progress.deleted);
            }
            Err(error) if error.action() == Action::Fail || attempt == ATTEMPTS => return Err(error.into()),
            Err(error) => {
                // A part of the page may be gone already.
                progress.repeated = true;
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
                attempt += 1;
            }
        }
    }
    Ok(())
}

/// Deletes the first keys of a span; returns how many, and where to go on.
async fn page(client: Client, span: Span, limit: u32) -> flotilla_proto::Result<(u64, Option<Bytes>)> {
    let options = ScanOptions { keys_only: true, limit, ..ScanOptions::span(span.start, span.end) };
    let page = client.scan(options).await?;
    let delete = |key: &Bytes| WriteOp::Delete { key: key.clone() };
    let keys: Vec<Bytes> = page.records.into_iter().map(|record| record.key).collect();
    let mut deleted = 0;
    if !keys.is_empty() {
        for result in client.batch(keys.iter().map(delete).collect(), false).await? {
            deleted += u64::from(result?.existed);
        }
    }
    let next = keys.last().filter(|_| !page.next_token.is_empty()).map(|last| [last, &b"\0"[..]].concat().into());
    Ok((deleted, next))
}

fn report(progress: &Progress, style: KeyStyle, global: &Global) -> Result {
    let Progress { deleted, repeated, next } = progress;
    if global.json() {
        return output::json(&json!({
            "deleted": deleted,
            "at_least": repeated,
            "complete": next.is_none(),
            "next_key": next.as_deref().map(base64),
        }));
    }
    let about = if *repeated { "at least " } else { "" };
    output::line(format_args!("deleted {about}{}", plural(*deleted, "key")))?;
    if let Some(next) = next {
        // On stderr, as with scans.
        eprintln!("there is more: --from {}", style.show(next));
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

    fn span_of(words: &[&str]) -> Result<(Vec<u8>, Vec<u8>)> {
        let span = span(&parse(words).expect("valid"))?;
        Ok((span.start.to_vec(), span.end.to_vec()))
    }

    #[test]
    fn a_span_is_named_in_one_of_three_ways() {
        assert_eq!(span_of(&["a", "c\\x00"]), Ok((b"a".to_vec(), b"c\0".to_vec())));
        assert_eq!(span_of(&["--prefix", "p/"]), Ok((b"p/".to_vec(), b"p0".to_vec())));
        assert_eq!(span_of(&["--all"]), Ok((vec![], vec![])));
        assert_eq!(span_of(&["--hex", "00", "ff"]), Ok((vec![0], vec![255])));
        assert_eq!(span_of(&["--prefix", "p/", "--from", "p/m"]), Ok((b"p/m".to_vec(), b"p0".to_vec())));
        for bad in [&["b", "a"][..], &["a", "a"], &["a", ""], &["--prefix", "p", "--from", "q"]] {
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
        let mut page = |start: Bytes, limit: u32| {
            calls += 1;
            let start = std::str::from_utf8(&start).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            let found: Vec<u32> = keys.range(start..).take(limit as usize).copied().collect();
            found.iter().for_each(|key| assert!(keys.remove(key)));
            let next = keys.range(start..).next().map(|key| key.to_string().into());
            let lost = calls % 3 == 2;
            let answer = Ok((found.len() as u64, next));
            async move { if lost { Err(Error::Ambiguous { reason: "lost".into() }) } else { answer } }
        };
        let result =
            crate::cli::block_on(async { delete(&mut progress, limit, &mut page, &mut Stop::new()?, |_| {}).await });
        (result, progress)
    }

    #[test]
    fn pages_follow_until_the_span_is_empty_or_the_limit_is_reached() {
        let mut keys: BTreeSet<u32> = (0..3_500).collect();
        let (result, progress) = run(&mut keys, u64::MAX);
        assert_eq!((result, progress.next, keys.len()), (Ok(()), None, 0));
        assert!(progress.repeated && progress.deleted <= 3_500);
        let mut keys: BTreeSet<u32> = (0..10).collect();
        let (result, progress) = run(&mut keys, 4);
        assert_eq!((result, progress.deleted, progress.next), (Ok(()), 4, Some("4".into())));
        assert_eq!(keys.len(), 6);
    }
}
