//! Scenarios: clusters, what happens to them, and what must come of it. Each is a file of `tests/scenarios`; its
//! language is described in world/script.rs.

use crate::world::script::run;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                drop(run(include_str!(concat!("../scenarios/", stringify!($name), ".scn"))));
            }
        )*

        #[test]
        fn every_file_is_run() {
            let names = [$(stringify!($name)),*];
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
            for file in std::fs::read_dir(directory).expect("the directory") {
                let file = file.expect("an entry").file_name().into_string().expect("a name");
                assert!(names.contains(&file.trim_end_matches(".scn")), "{file} is not run");
            }
        }
    };
}

scenarios! {
    a_new_node_gets_its_share,
    a_dead_node_is_replaced,
    a_zone_is_lost,
    a_zone_comes,
    two_racks,
    a_label_changes,
    constraints_change,
    leaders_where_they_are_preferred,
    constraints_nobody_satisfies,
    decommission_one_of_five,
    decommission_one_of_three,
    decommission_a_dead_node,
    decommission_a_dead_node_nobody_knows,
    maintenance_over_a_restart,
    maintenance_and_a_failure,
    the_least_safe_first,
    one_hot_range,
    twenty_hot_ranges,
    noisy_loads,
    a_slow_node,
    a_full_node,
    cold_neighbours_merge,
    ranges_cut_beforehand_stay,
    merges_by_hand,
    moved_by_hand,
    a_replica_where_leaders_are_preferred,
    a_thousand_nodes,
}

#[test]
#[ignore = "it takes minutes, and two GiB: `make million`"]
#[allow(clippy::disallowed_methods, reason = "the time is printed for people; nothing depends on it")]
fn a_thousand_nodes_and_a_million_ranges() {
    // Small ranges, of which more move at once; and as many more of them as there are more ranges, less some that are
    // moved for balance before the nodes die.
    let text = include_str!("../scenarios/a_thousand_nodes.scn").replace("ranges=20000", "ranges=1000000");
    let text = text.replace("bytes=16M", "bytes=1M").replace("at-risk >= 80", "at-risk >= 3900");
    let text = text.replace("short >= 50", "short >= 1000").replace("moves >= 200", "moves >= 9900");
    let begun = std::time::Instant::now();
    let world = run(&text.replace("moves <= 210", "moves <= 10500").replace("gap <= 10", "gap <= 260"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or("unknown", str::trim);
    println!(
        "{:.0} s for {} simulated seconds, a round in each; {} orders; peak memory, the nodes' included: {peak}",
        begun.elapsed().as_secs_f64(),
        world.steps,
        world.judge.given
    );
}
