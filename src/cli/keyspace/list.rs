//! `keyspace list` and `keyspace show`.

use std::collections::BTreeMap;

use flotilla_proto::v1;
use flotilla_router::Client;
use serde_json::Value;

use super::settings::{self, boundary_text, split_text, state_text};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table, plural, size};
use crate::cli::range::of_keyspace;

#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    /// Its name
    name: String,
}

/// What the ranges of a keyspace come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// Ranges.
    pub ranges: u64,
    /// Bytes of data in them, about.
    pub bytes: u64,
}

/// The extents by keyspace.
pub async fn extents(client: &Client) -> Result<BTreeMap<u64, Extent>> {
    Ok(extents_of(client.list_ranges().await?.ranges))
}

fn extents_of(ranges: Vec<v1::RangeStatus>) -> BTreeMap<u64, Extent> {
    let mut extents = BTreeMap::<u64, Extent>::new();
    for status in ranges {
        let extent = extents.entry(status.descriptor.map_or(0, |descriptor| descriptor.keyspace_id)).or_default();
        extent.ranges += 1;
        extent.bytes += status.data_bytes;
    }
    extents
}

pub async fn list(global: &Global) -> Result {
    let client = global.client().await?;
    let mut keyspaces = client.list_keyspaces().await?;
    keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
    let extents = extents(&client).await?;
    if global.json() {
        return output::json(&Value::Array(keyspaces.iter().map(|keyspace| to_json(keyspace, &extents)).collect()));
    }
    output::line(table(&keyspaces, &extents))
}

fn table(keyspaces: &[v1::Keyspace], extents: &BTreeMap<u64, Extent>) -> Table {
    let mut table = Table::new(&["name", ">id", ">replicas", "boundary", ">split at", ">ranges", ">size", "state"]);
    for keyspace in keyspaces {
        let extent = extents.get(&keyspace.keyspace_id).copied().unwrap_or_default();
        table.row(vec![
            keyspace.name.clone(),
            keyspace.keyspace_id.to_string(),
            keyspace.replicas.to_string(),
            boundary_text(keyspace.boundary.as_ref()),
            split_text(keyspace.split_bytes),
            extent.ranges.to_string(),
            size(extent.bytes),
            state_text(keyspace).into(),
        ]);
    }
    table
}

fn to_json(keyspace: &v1::Keyspace, extents: &BTreeMap<u64, Extent>) -> Value {
    let extent = extents.get(&keyspace.keyspace_id).copied().unwrap_or_default();
    let mut value = settings::to_json(keyspace);
    value["ranges"] = extent.ranges.into();
    value["data_bytes"] = extent.bytes.into();
    value
}

pub async fn show(args: &ShowArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let keyspace = super::find(&client, &args.name).await?;
    let (ranges, _) = of_keyspace(&client, &args.name).await?;
    let extents = extents_of(ranges);
    if global.json() {
        return output::json(&to_json(&keyspace, &extents));
    }
    let extent = extents.get(&keyspace.keyspace_id).copied().unwrap_or_default();
    output::line(format_args!(
        "{}\n{}, {}; {}",
        settings::line(&keyspace),
        plural(extent.ranges, "range"),
        size(extent.bytes),
        state_text(&keyspace),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspaces_are_listed_with_what_they_hold() {
        let keyspace = v1::Keyspace { keyspace_id: 1, name: "default".into(), replicas: 3, ..Default::default() };
        let extents = BTreeMap::from([(1, Extent { ranges: 4, bytes: 2048 })]);
        let text = table(std::slice::from_ref(&keyspace), &extents).to_string();
        let cells: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(cells, ["default", "1", "3", "any", "never", "4", "2.0", "KiB", "normal"]);
        assert_eq!(to_json(&keyspace, &extents)["ranges"], 4);
    }
}
