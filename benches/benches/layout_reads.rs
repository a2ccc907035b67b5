//! A point read by get against one by seeking the key's prefix, which reads of the newest of many
//! versions will need; and 16 keys by one MultiGet.
//!
//! `plain` keys are whole in themselves; `revisioned` ones carry a descending revision behind the same
//! prefix, three versions to a key. Present and absent keys alternate in key order, so that an absent
//! one lies inside every file's span. Files: four in level 0, overlapping, all blocks in the cache.
//!
//! `cargo bench -p flotilla-benches --bench layout_reads -- [--reps N] [--seconds S] [--keys N] [--dir DIR]`

use std::error::Error;
use std::time::{Duration, Instant};

use flotilla_benches::args::{Args, Extra};
use flotilla_benches::db::{self, Opened, Tuning};
use flotilla_benches::stats::Table;
use flotilla_engine::keys;
use flotilla_proto::KeyspaceId;
use rocksdb::ReadOptions;
use rocksdb::properties::TOTAL_SST_FILES_SIZE;
use rocksdb::statistics::Ticker;

const EXTRAS: &[Extra] = &[Extra { flag: "keys", default: 32_000, help: "keys present, and as many absent" }];
const PLAIN: KeyspaceId = KeyspaceId(1);
const REVISIONED: KeyspaceId = KeyspaceId(2);
const VERSIONS: u64 = 3;
const FILES: u64 = 4;
const MULTI: usize = 16;
const VALUE: [u8; 256] = [0x5A; 256];

#[derive(Clone, Copy)]
enum Way {
    Get,
    Multi,
    SeekPrefix(KeyspaceId),
    SeekTotal(KeyspaceId),
}

const WAYS: [(&str, Way); 6] = [
    ("get_pinned_cf", Way::Get),
    ("multi-get of 16, each key", Way::Multi),
    ("prefix seek, plain", Way::SeekPrefix(PLAIN)),
    ("prefix seek, newest of 3", Way::SeekPrefix(REVISIONED)),
    ("seek without bloom, plain", Way::SeekTotal(PLAIN)),
    ("seek without bloom, newest of 3", Way::SeekTotal(REVISIONED)),
];

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse("point reads by get, multi-get and prefix seek", 0.06, EXTRAS);
    let keys = args.extra("keys").max(MULTI as u64);
    let columns = ["present, us", "absent, us", "absent: files passed by"];
    for (place, bloom) in [("memtable", 0.0), ("memtable with a bloom filter (5%)", 0.05)] {
        let scratch = tempfile::tempdir_in(&args.dir)?;
        let tuning = Tuning { state_memtable_bloom: bloom, ..Tuning::default() };
        let store = db::open(scratch.path(), tuning)?;
        fill(&store, keys, false)?;
        measure(&store, &args, keys, place, &columns)?.print();
    }
    let scratch = tempfile::tempdir_in(&args.dir)?;
    let store = db::open(scratch.path(), Tuning::default())?;
    fill(&store, keys, true)?;
    measure(&store, &args, keys, "four overlapping files, blocks cached", &columns)?.print();
    Ok(())
}

fn user_key(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Even numbers are present, odd ones absent.
fn fill(store: &Opened, keys: u64, flush: bool) -> Result<(), Box<dyn Error>> {
    let family = store.family("state");
    if flush {
        store.db.set_options_cf(family, &[("disable_auto_compactions", "true")])?;
    }
    for file in 0..FILES {
        for number in (file..keys).step_by(FILES as usize) {
            let user_key = user_key(number * 2);
            let plain = [(keys::data(PLAIN, &user_key), &VALUE[..])];
            let versions = (0..VERSIONS).map(|version| (revisioned(&user_key, version + 1), &VALUE[..]));
            store.db.write(db::batch_of(family, plain.into_iter().chain(versions)))?;
        }
        if flush {
            store.db.flush_cf(family)?;
        }
    }
    let files = store.db.property_int_value_cf(family, TOTAL_SST_FILES_SIZE)?;
    if !flush && files != Some(0) {
        return Err("so many keys do not fit into the memtable: give a smaller --keys".into());
    }
    Ok(())
}

fn revisioned(user_key: &[u8], revision: u64) -> Vec<u8> {
    let mut key = keys::data(REVISIONED, user_key);
    key.extend_from_slice(&(!revision).to_be_bytes());
    key
}

fn measure(
    store: &Opened,
    args: &Args,
    keys: u64,
    place: &str,
    columns: &[&'static str],
) -> Result<Table, Box<dyn Error>> {
    let mut table = Table::new(place, columns);
    for (_, way) in WAYS {
        run(store, way, keys, true, args.seconds)?; // brings the blocks into the cache
    }
    for _ in 0..args.reps {
        for (name, way) in WAYS {
            let present = run(store, way, keys, true, args.seconds)?;
            let passed = files_passed(store);
            let absent = run(store, way, keys, false, args.seconds)?;
            let passed = (files_passed(store) - passed) as f64 / absent.reads as f64;
            table.add(name, &[present.us, absent.us, passed]);
        }
    }
    Ok(table)
}

/// Files that a filter let a read pass by; the memtable's filter is not counted.
fn files_passed(store: &Opened) -> u64 {
    let tickers = [Ticker::BloomFilterUseful, Ticker::NonLastLevelSeekFiltered, Ticker::LastLevelSeekFiltered];
    tickers.into_iter().map(|ticker| store.options.get_ticker_count(ticker)).sum()
}

struct Measured {
    us: f64,
    reads: u64,
}

fn run(store: &Opened, way: Way, keys: u64, present: bool, seconds: f64) -> Result<Measured, Box<dyn Error>> {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        user_key((seed >> 33) % keys * 2 + u64::from(!present))
    };
    let (mut reads, mut found) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..MULTI {
            match way {
                Way::Get => found += u64::from(get(store, &next())?),
                Way::Multi => {
                    let mut sixteen: Vec<Vec<u8>> = (0..MULTI).map(|_| keys::data(PLAIN, &next())).collect();
                    sixteen.sort_unstable();
                    found += multi_get(store, &sixteen)?;
                    reads += MULTI as u64 - 1;
                }
                Way::SeekPrefix(keyspace) => found += u64::from(seek(store, keyspace, &next(), false)?),
                Way::SeekTotal(keyspace) => found += u64::from(seek(store, keyspace, &next(), true)?),
            }
            reads += 1;
        }
    }
    let us = start.elapsed().as_secs_f64() * 1e6 / reads as f64;
    if found != if present { reads } else { 0 } {
        return Err(format!("{found} of {reads} reads found their key").into());
    }
    Ok(Measured { us, reads })
}

fn get(store: &Opened, user_key: &[u8]) -> Result<bool, rocksdb::Error> {
    let value = store.db.get_pinned_cf(store.family("state"), keys::data(PLAIN, user_key))?;
    Ok(value.is_some_and(|value| value.len() == VALUE.len()))
}

fn multi_get(store: &Opened, keys: &[Vec<u8>]) -> Result<u64, rocksdb::Error> {
    let mut found = 0;
    for value in store.db.batched_multi_get_cf(store.family("state"), keys, true) {
        found += u64::from(value?.is_some_and(|value| value.len() == VALUE.len()));
    }
    Ok(found)
}

fn seek(store: &Opened, keyspace: KeyspaceId, user_key: &[u8], total_order: bool) -> Result<bool, rocksdb::Error> {
    let mut options = ReadOptions::default();
    options.set_total_order_seek(total_order);
    options.set_prefix_same_as_start(!total_order);
    let prefix = keys::data(keyspace, user_key);
    let mut iterator = store.db.raw_iterator_cf_opt(store.family("state"), options);
    iterator.seek(&prefix);
    let found = iterator.item().is_some_and(|(key, value)| key.starts_with(&prefix) && value.len() == VALUE.len());
    iterator.status()?;
    Ok(found)
}
