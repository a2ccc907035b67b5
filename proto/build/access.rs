//! The table of who may call which RPC (proto/access.txt), as the build reads it: checked against the services that
//! there are, and made into a constant. Included by the build scripts of the crates that have services, and by tests.

use std::collections::BTreeMap;

/// The lines of the table: by path, the name of the variant of `Who`.
pub type Table = BTreeMap<String, &'static str>;

/// Reads the table; the error names the line.
pub fn parse(text: &str) -> Result<Table, String> {
    let mut table = Table::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |what: String| Err(format!("proto/access.txt, line {number}: {what}"));
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let (path, who) = match words[..] {
            [] => continue,
            [path, who] => (path, who),
            _ => return wrong("write /PACKAGE.SERVICE/METHOD and who may call it".into()),
        };
        let who = match who {
            "anyone" => "Anyone",
            "client" => "Client",
            "operator" => "Operator",
            "node" => "Node",
            other => return wrong(format!("there is no \"{other}\": write anyone, client, operator or node")),
        };
        if !path.starts_with('/') || path.matches('/').count() != 2 {
            return wrong(format!("\"{path}\" is no /PACKAGE.SERVICE/METHOD"));
        }
        if table.insert(path.into(), who).is_some() {
            return wrong(format!("{path} has a line already"));
        }
    }
    Ok(table)
}

/// Compares the lines of some services with the RPCs that they have (as paths), in both directions.
pub fn check(table: &Table, services: &[String], rpcs: &[String]) -> Result<(), String> {
    if let Some(missing) = rpcs.iter().find(|rpc| !table.contains_key(*rpc)) {
        return Err(format!("{missing} has no line in proto/access.txt: add one that says who may call it"));
    }
    let of_these = |path: &String| services.iter().any(|service| path.starts_with(&format!("/{service}/")));
    match table.keys().find(|path| of_these(path) && !rpcs.contains(path)) {
        Some(gone) => Err(format!("proto/access.txt has a line for {gone}, and there is no such RPC: take it out")),
        None => Ok(()),
    }
}
